//! What pages of sandboxes may do to each other, as far as browsers do what answers say.

use crate::harness::{Api, Gate, Message, Runner, ok};
use crate::proofs::cookie;

fn ask(gate: &Gate, line: &str, host: &str, fields: &[(&str, &str)]) -> Message {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut wire = gate.connect();
    wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

fn all<'m>(answer: &'m Message, name: &str) -> Vec<&'m str> {
    let named = answer.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

/// Answers with the type the request asks for, and with all an app can say for an origin.
fn speaking_runner() -> Runner {
    Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let content_type = request.field("X-Type").map(|t| format!("Content-Type: {t}\r\n"));
            let answer = format!(
                "HTTP/1.1 200 OK\r\n{}Content-Security-Policy: default-src 'self'\r\nService-Worker-Allowed: /\r\n\
                 NEL: {{\"report_to\":\"x\",\"success_fraction\":1}}\r\nReport-To: {{\"group\":\"x\"}}\r\n\
                 reporting-endpoints: x=\"https://evil.test\"\r\nStrict-Transport-Security: max-age=0\r\n\
                 X-Content-Type-Options: sniff\r\nContent-Length: 0\r\n\r\n",
                content_type.unwrap_or_default()
            );
            if wire.send(answer).is_err() {
                return;
            }
        }
    })
}

const FOR_AN_ORIGIN: [&str; 5] =
    ["Service-Worker-Allowed", "NEL", "Report-To", "Reporting-Endpoints", "Strict-Transport-Security"];
const TOKEN: (&str, &str) = ("X-Daytona-Preview-Token", "tok");

#[test]
fn a_document_under_the_toolbox_acts_in_no_origin_and_speaks_for_none() {
    let api = Api::start(speaking_runner().addr);
    let gate = Gate::start(&api, &[]);
    for (content_type, document) in [
        ("text/html; charset=utf-8", true),
        ("image/svg+xml", true),
        ("application/xml", true),
        ("", true),
        ("application/json", false),
        ("application/octet-stream", false),
        ("image/png", false),
    ] {
        for path in ["/toolbox/sb1/proxy/3000/page", "/toolbox/sb1/files/download"] {
            let fields = [TOKEN, ("X-Type", content_type)];
            let fields = if content_type.is_empty() { &fields[..1] } else { &fields };
            let answer = ask(&gate, &format!("GET {path}"), "preview.test", fields);
            let policies = all(&answer, "Content-Security-Policy");
            let wanted: &[&str] =
                if document { &["default-src 'self'", "sandbox"] } else { &["default-src 'self'"] };
            assert_eq!(policies, wanted, "{content_type}: {answer:?}");
            assert_eq!(all(&answer, "X-Content-Type-Options"), ["nosniff"], "{content_type}");
            for name in FOR_AN_ORIGIN {
                assert!(answer.field(name).is_none(), "{name}: {answer:?}");
            }
        }
    }
    let html = ("X-Type", "text/html");
    let preview = ask(&gate, "GET /page", "3000-sb1.preview.test", &[html]);
    assert_eq!(
        all(&preview, "Content-Security-Policy"),
        ["default-src 'self'"],
        "a preview's host is its own"
    );
    assert!(FOR_AN_ORIGIN.iter().all(|name| preview.field(name).is_some()), "{preview:?}");
    // Where the operator leaves apps alone, so does the gate.
    let free = Gate::start(&api, &[("SANDGATE_CONFINE_APPS", "false")]);
    let answer = ask(&free, "GET /toolbox/sb1/page", "preview.test", &[TOKEN, html]);
    assert_eq!(all(&answer, "Content-Security-Policy"), ["default-src 'self'"]);
}

#[test]
fn a_service_workers_script_is_refused_under_the_shared_origin_alone() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    for settings in [&[][..], &[("SANDGATE_CONFINE_APPS", "false")]] {
        let gate = Gate::start(&api, settings);
        let asked_before = runner.received().iter().map(Vec::len).sum::<usize>();
        for path in ["/toolbox/sb1/sw.js", "/sandboxes/sb1/build-logs", "/snapshots/snap/build-logs"] {
            for said in [("Service-Worker", "script"), ("Sec-Fetch-Dest", "serviceworker")] {
                let fields = [TOKEN, ("Authorization", "Bearer key"), said];
                let answer = ask(&gate, &format!("GET {path}"), "preview.test", &fields);
                assert!(
                    answer.status() == 403 && answer.has_code("SERVICE_WORKER_REFUSED"),
                    "{path}: {answer:?}"
                );
            }
        }
        assert_eq!(runner.received().iter().map(Vec::len).sum::<usize>(), asked_before);
        let own = ask(&gate, "GET /sw.js", "3000-sb1.preview.test", &[("Service-Worker", "script")]);
        assert_eq!(own.status(), 200, "a preview's host is its own: {own:?}");
    }
}

const HOST: &str = "3000-priv.preview.localhost";

/// A private sandbox, and what a visitor logged in to it holds.
fn private() -> (Runner, Api, String) {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(_)) = wire.message() {
            if wire.send(ok("private")).is_err() {
                return;
            }
        }
    });
    let api = Api::start(runner.addr);
    api.script.reply("/api/preview/priv/public", 404, "{}");
    (runner, api, cookie("priv", "priv"))
}

#[test]
fn in_a_frame_a_session_counts_by_the_page_that_holds_it() {
    let (_runner, api, session) = private();
    let gate = Gate::start(&api, &[("SANDGATE_TRUSTED_ORIGINS", "https://dashboard.test")]);
    let framed = |dest: &str, site: &str, referer: Option<&str>| {
        let mut fields = vec![
            ("Cookie", session.as_str()),
            ("Sec-Fetch-Mode", "navigate"),
            ("Sec-Fetch-Dest", dest),
            ("Sec-Fetch-Site", site),
        ];
        fields.extend(referer.map(|referer| ("Referer", referer)));
        ask(&gate, "GET /", HOST, &fields)
    };
    for dest in ["iframe", "frame", "embed", "object", "fencedframe"] {
        for (site, referer, counts) in [
            ("same-origin", None, true),
            ("same-site", Some("http://8080-priv.preview.localhost/"), true),
            ("cross-site", Some("https://dashboard.test/"), true),
            ("same-site", Some("http://3000-evil.preview.localhost/"), false),
            ("same-site", Some("http://preview.localhost/toolbox/priv/x"), false),
            ("same-site", None, false),
            ("cross-site", Some("https://evil.test/"), false),
            ("cross-site", None, false),
        ] {
            let answer = framed(dest, site, referer);
            let wanted = if counts { 200 } else { 401 };
            assert_eq!(answer.status(), wanted, "{dest} {site} {referer:?}: {answer:?}");
            // It has been decided for this frame; a copy may be put into another one.
            let policy = answer.field("Content-Security-Policy").unwrap_or_default();
            assert!(
                !counts || policy.starts_with("frame-ancestors 'self' https://dashboard.test"),
                "{policy}"
            );
            assert!(!policy.contains("evil"), "{policy}");
        }
    }
    assert_eq!(
        framed("document", "cross-site", Some("https://evil.test/")).status(),
        200,
        "a link opens a tab"
    );
}

#[test]
fn what_a_session_opened_says_who_may_frame_it_whoever_asked() {
    let (_runner, api, session) = private();
    let gate = Gate::start(&api, &[("SANDGATE_TRUSTED_ORIGINS", "https://dashboard.test")]);
    let policies = |fields: &[(&str, &str)]| {
        let answer = ask(&gate, "GET /", HOST, fields);
        assert_eq!(answer.status(), 200, "{answer:?}");
        all(&answer, "Content-Security-Policy").join(" | ")
    };
    let session = ("Cookie", session.as_str());
    let own = "frame-ancestors 'self' https://dashboard.test";
    assert_eq!(policies(&[session]), own);
    // What a service worker fetches to answer with later, and what a tab leaves in the cache.
    let worker = ("Sec-Fetch-Site", "same-origin");
    assert_eq!(policies(&[session, worker, ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]), own);
    let tab = [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    assert_eq!(policies(&[session, tab[0], tab[1], tab[2]]), own);
    let kept = ask(&gate, "GET /", HOST, &[session, tab[0], tab[1], tab[2]]);
    assert_eq!(all(&kept, "Vary"), ["Sec-Fetch-Dest"], "a tab's copy is none for a frame");
    let of_sandbox = format!("{own} http://8080-priv.preview.localhost");
    assert_eq!(policies(&[session, ("Referer", "http://8080-priv.preview.localhost/x")]), of_sandbox);
    assert_eq!(policies(&[session, ("Referer", "http://3000-evil.preview.localhost/")]), own);
    // What no cookie opened may be framed as the app likes.
    assert_eq!(policies(&[TOKEN]), "");
}

/// Gives the answer whose number ends the path.
fn saying_runner(answers: &'static [&'static str]) -> Runner {
    Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let number = request.target().rsplit('/').next().and_then(|n| n.parse::<usize>().ok());
            let answer = number.and_then(|n| answers.get(n)).expect("a number of an answer");
            if wire.send(answer).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_guest_is_judged_by_what_the_browser_gets_of_its_answer() {
    let runner = saying_runner(&[
        "HTTP/1.1 200 OK\r\nConnection: content-type\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Security-Policy: default-src *\r\n\r\n",
    ]);
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for (number, isolated) in [true, true, false, true, true].into_iter().enumerate() {
        let answer = ask(&gate, &format!("GET /toolbox/sb1/proxy/3000/{number}"), "preview.test", &[TOKEN]);
        let policies = all(&answer, "Content-Security-Policy");
        assert_eq!(policies.contains(&"sandbox"), isolated, "{number}: {answer:?}");
        assert_eq!(all(&answer, "X-Content-Type-Options"), ["nosniff"], "{number}");
    }
}

#[test]
fn a_guests_cookies_are_its_own_paths_and_it_clears_nothing() {
    let runner =
        saying_runner(&["HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d; Path=/callback; Secure\r\n\
         Clear-Site-Data: \"storage\"\r\nContent-Length: 0\r\n\r\n"]);
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let guest = ask(&gate, "GET /toolbox/sb1/proxy/3000/0", "preview.test", &[TOKEN]);
    let cookies = all(&guest, "Set-Cookie");
    assert_eq!(cookies, ["a=b; Path=/toolbox/sb1", "c=d; Path=/callback; Secure; Path=/toolbox/sb1"]);
    assert!(guest.field("Clear-Site-Data").is_none(), "{guest:?}");
    let own = ask(&gate, "GET /0", "3000-sb1.preview.test", &[]);
    assert_eq!(
        all(&own, "Set-Cookie"),
        ["a=b", "c=d; Path=/callback; Secure"],
        "a preview's host is its own"
    );
    assert_eq!(own.field("Clear-Site-Data"), Some("\"storage\""));
}

#[test]
fn hosts_of_other_domains_are_refused_before_anybody_is_asked_and_health_is_told_under_any_name() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    let settings = [
        ("SANDGATE_ALLOWED_DOMAINS", "preview.test"),
        ("SANDGATE_TRUSTED_PROXIES", "127.0.0.1"),
        ("PREVIEW_WARNING_ENABLED", "true"),
    ];
    let gate = Gate::start(&api, &settings);
    let (own, foreign, base) = ("3000-sb1.preview.test", "3000-sb1.evil.test", "evil.test:80");
    let navigation = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    let preflight = [("Origin", "https://x.test"), ("Access-Control-Request-Method", "GET")];
    let forwarded = [("X-Forwarded-Host", "3000-sb1.evil.test")];
    for (line, host, fields) in [
        ("GET /", foreign, &[TOKEN][..]),
        ("GET /", foreign, &navigation),
        ("GET /health", foreign, &[]),
        ("OPTIONS /", foreign, &preflight),
        ("POST /accept-daytona-preview-warning", foreign, &[]),
        ("GET /toolbox/sb1/files", base, &[TOKEN]),
        ("GET /callback?code=1&state=2", base, &[]),
        ("GET /", "127.0.0.1", &[]),
        ("GET /", own, &forwarded),
    ] {
        let answer = ask(&gate, line, host, fields);
        assert_eq!(answer.status(), 421, "{line} {host} {fields:?}: {answer:?}");
        // A person is told on a page, a preflight has no page to tell.
        assert_eq!(answer.field("X-Preview-Error-Code"), Some("HOST_NOT_SERVED"), "{line} {host}");
        assert_eq!(answer.field("Access-Control-Allow-Origin"), None, "{line} {host}");
        assert_eq!(answer.field("Set-Cookie"), None, "{line} {host}");
    }
    assert!(api.script.asked("").is_empty() && runner.received().is_empty(), "nobody was asked");
    assert_eq!(ask(&gate, "GET /health", "10.0.0.7", &[]).status(), 200);
    let forwarded = [("X-Forwarded-Host", "3000-sb1.Preview.test:443")];
    for fields in [&[][..], &forwarded] {
        assert_eq!(ask(&gate, "GET /", own, fields).status(), 200, "{fields:?}");
    }
    let unset = "SANDGATE_ALLOWED_DOMAINS is not set";
    let warned = |gate: &Gate| gate.events.lock().expect("no thread panics with it").matches(unset).count();
    assert_eq!((warned(&gate), warned(&Gate::start(&api, &[]))), (0, 1));
}
