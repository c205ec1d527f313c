//! Tests of the heads we write.

use super::*;
use crate::framing::ResponseBody;
use crate::head::{Method, RequestHead, ResponseHead, Version};
use crate::ids::{Port, SandboxId};
use crate::limits::Limits;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

const HOST: &str = "3000-sb1.preview.test";
const PREFIX: &str = "/base/sandboxes/sb1/toolbox/proxy/3000";
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

static APP: LazyLock<RunnerPath> =
    LazyLock::new(|| RunnerPath::Preview { sandbox: sandbox(), port: Port::parse(b"3000").expect("a port") });

fn sandbox() -> SandboxId {
    SandboxId::parse(b"sb1").expect("an id")
}

fn plan() -> RequestPlan<'static> {
    RequestPlan {
        host: "runner.test:3003",
        base_path: "/base",
        path: &APP,
        authorization: "Bearer runner-key",
        strip_authorization: false,
        client_ip: PEER,
        trusted_peer: false,
        scheme: "https",
        request_id: "our-id",
    }
}

/// A head as it goes out, line by line.
struct Sent {
    target: String,
    fields: Vec<(String, String)>,
    text: Vec<u8>,
}

impl Sent {
    /// Read by splitting alone, and checked to be what the strict reader takes for the same message.
    fn read(text: Vec<u8>) -> Self {
        let lines = text.strip_suffix(b"\r\n\r\n").expect("ends with an empty line");
        let lines = String::from_utf8_lossy(lines).into_owned();
        let mut lines = lines.split("\r\n");
        let first = lines.next().expect("a first line");
        let words: Vec<&str> = first.split(' ').collect();
        assert_eq!((words.len(), words[2]), (3, "HTTP/1.1"), "{first}");
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a colon and a space");
            (name.to_owned(), value.to_owned())
        });
        Self { target: words[1].to_owned(), fields: fields.collect(), text }
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// As a gateway behind us names fields for an application.
    fn folded(&self, name: &str) -> Vec<&str> {
        let fold = |name: &str| -> String {
            name.chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect()
        };
        self.fields.iter().filter(|(n, _)| fold(n) == fold(name)).map(|(_, v)| v.as_str()).collect()
    }

    fn holds(&self, text: &str) -> bool {
        memchr::memmem::find(&self.text, text.as_bytes()).is_some()
    }
}

fn sent_by(start: &str, fields: &str, plan: &RequestPlan<'_>) -> Sent {
    let text = format!("{start} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
    let limits = Limits::default();
    let head = RequestHead::parse(text.as_bytes(), &limits).expect("a good head").expect("whole");
    let mut out = Vec::new();
    write_request(&head, plan, &mut out);
    let again = RequestHead::parse(&out, &limits).expect("canonical").expect("whole");
    assert_eq!(again.bytes.len(), out.len());
    assert_eq!((again.body, again.method, again.websocket), (head.body, head.method, head.websocket));
    drop(again);
    Sent::read(out)
}

fn sent(start: &str, fields: &str) -> Sent {
    sent_by(start, fields, &plan())
}

// ---------------------------------------------------------------------------------------------------------------
// Fields

/// What the gate vouches for, and what it must have for each.
const OURS: &[(&str, Option<&str>)] = &[
    ("Host", Some("runner.test:3003")),
    ("X-Daytona-Authorization", Some("Bearer runner-key")),
    ("X-Forwarded-For", Some("192.0.2.1")),
    ("X-Forwarded-Host", Some(HOST)),
    ("X-Forwarded-Proto", Some("https")),
    ("X-Forwarded-Port", None),
    ("X-Real-IP", None),
    ("Forwarded", None),
    ("X-Daytona-Preview-Token", None),
    ("X-Daytona-Skip-Last-Activity-Update", None),
    ("X-Daytona-Skip-Preview-Warning", None),
    ("X-Daytona-Disable-CORS", None),
    ("Content-Length", None),
    ("Transfer-Encoding", None),
    ("Connection", None),
    ("Keep-Alive", None),
    ("Proxy-Connection", None),
    ("Proxy-Authorization", None),
    ("TE", None),
    ("Upgrade", None),
    ("HTTP2-Settings", None),
    ("Expect", None),
];

fn spellings(name: &str) -> Vec<String> {
    let crooked = name
        .chars()
        .enumerate()
        .map(|(n, c)| if n % 2 == 0 { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() });
    let mut all = vec![name.to_owned(), name.to_lowercase(), name.to_uppercase(), crooked.collect()];
    if name.contains('-') {
        all.push(name.replace('-', "_"));
        all.push(name.replacen('-', "_", 1).to_lowercase());
        all.push(name.replace('-', ".").to_uppercase());
    }
    all
}

#[test]
fn no_spelling_repetition_or_connection_option_forges_or_removes_a_field_of_ours() {
    let mut combinations = 0;
    for (name, _) in OURS {
        for spelling in spellings(name) {
            // Copies that would be refused as framing or authority are the head's business.
            let framing = ["host", "content-length", "transfer-encoding"];
            let copies = if framing.contains(&spelling.to_lowercase().as_str()) { 0..1 } else { 0..4 };
            for copies in copies {
                for option in
                    [None, Some(name.to_string()), Some(name.to_uppercase()), Some(spelling.clone())]
                {
                    let mut fields = format!("{spelling}: evil\r\n").repeat(copies);
                    if let Some(option) = option {
                        fields =
                            format!("Connection: x, {option} ,close\r\n{fields}Connection: {option}\r\n");
                    }
                    let sent = sent("GET /x", &fields);
                    for (ours, value) in OURS {
                        let expected: Vec<&str> = value.iter().copied().collect();
                        assert_eq!(sent.folded(ours), expected, "{ours} with {fields:?}");
                    }
                    assert!(!sent.holds("evil"), "{fields:?}");
                    assert_eq!(sent.all("X-Request-Id"), ["our-id"]);
                    combinations += 1;
                }
            }
        }
    }
    assert!(combinations > 1000, "{combinations}");
}

#[test]
fn fields_of_the_app_pass_with_bytes_spelling_order_and_repetition() {
    let lines = [
        "x-ODD_name: \u{e4}\t b",
        "X-Twice: 1",
        "X-Twice: 2",
        "Accept: */*",
        "User_Agent: of the app",
        "Origin: https://a",
        "Authorization: Bearer of-the-app",
        "Cookie: a=b",
        "Sec-Fetch-Mode: cors",
        "X-Empty: ",
        "X-Request-Id: theirs",
    ];
    let sent = sent("PATCH /x", &lines.map(|line| format!("{line}\r\n")).concat());
    let passed: Vec<String> =
        sent.fields[1..=lines.len()].iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(passed, lines);
    assert_eq!(sent.all("X-Request-Id"), ["theirs"]);
}

#[test]
fn what_connection_names_stays_here_and_a_flood_of_names_takes_all_unknown_fields() {
    let sent = sent("GET /x", "Connection: X-Hop, \tx-other\r\nX-Hop: 1\r\nX-OTHER: 2\r\nX-Kept: 3\r\n");
    assert_eq!(sent.all("X-Hop").len() + sent.all("X-Other").len(), 0);
    assert_eq!(sent.all("X-Kept"), ["3"]);
    let names: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
    let flood =
        sent_by("GET /x", &format!("Connection: {}\r\nX-39: 1\r\nAccept: 2\r\n", names.join(", ")), &plan());
    assert_eq!(flood.all("X-39").len(), 0);
    assert_eq!(flood.all("Accept"), ["2"]);
    assert_eq!(flood.all("X-Daytona-Authorization"), ["Bearer runner-key"]);
}

#[test]
fn a_trusted_peer_is_appended_to_and_believed_and_nobody_else_is() {
    let fields = "X-Forwarded-For: 203.0.113.7, 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n\
        X-Forwarded-Host: outer.test\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 203.0.113.7\r\n\
        Connection: X-Forwarded-For, X-Forwarded-Port\r\nX_Forwarded_For: evil\r\nX-Daytona-Authorization: evil\r\n";
    let sent = sent_by("GET /x", fields, &RequestPlan { trusted_peer: true, ..plan() });
    assert_eq!(sent.folded("X-Forwarded-For"), ["203.0.113.7, 10.0.0.1, 10.0.0.2, 192.0.2.1"]);
    assert_eq!(sent.folded("X-Forwarded-Host"), ["outer.test"]);
    assert_eq!(sent.folded("X-Forwarded-Proto"), ["http"]);
    assert_eq!(sent.folded("X-Forwarded-Port"), ["443"]);
    assert_eq!(sent.folded("X-Real-IP"), ["203.0.113.7"]);
    assert_eq!(sent.folded("X-Daytona-Authorization"), ["Bearer runner-key"]);
    assert!(!sent.holds("evil"));
    // IPv4 in IPv6 clothes is the same address.
    let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped());
    let sent = sent_by("GET /x", "", &RequestPlan { client_ip: mapped, ..plan() });
    assert_eq!(sent.all("X-Forwarded-For"), ["192.0.2.9"]);
}

#[test]
fn the_framing_is_written_from_what_was_decided() {
    assert_eq!(sent("POST /x", "content-length: 0005\r\n").all("Content-Length"), ["5"]);
    assert_eq!(sent("POST /x", "Content-Length: 0\r\n").all("Content-Length"), ["0"]);
    let chunked = sent("POST /x", "transfer-encoding: CHUNKED\r\nTrailer: X-Sum\r\n");
    assert_eq!(chunked.all("Transfer-Encoding"), ["chunked"]);
    assert_eq!(chunked.all("Trailer"), ["X-Sum"]);
    assert_eq!(
        sent("POST /x", "Expect: 100-continue\r\nContent-Length: 1\r\n").all("Expect"),
        ["100-continue"]
    );
    assert!(sent("GET /x", "Expect: something\r\n").all("Expect").is_empty());
    let upgrade = sent("GET /x", "Connection: Upgrade, X-A\r\nUpgrade: h2c, WebSocket\r\nX-A: 1\r\n");
    assert_eq!(upgrade.all("Upgrade"), ["websocket"]);
    assert_eq!(upgrade.all("Connection"), ["Upgrade"]);
    assert!(upgrade.all("X-A").is_empty());
    let h2c =
        sent("GET /x", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n");
    assert!(h2c.all("Upgrade").is_empty() && h2c.all("Connection").is_empty() && !h2c.holds("AAA"));
}

#[test]
fn authorization_passes_unless_it_was_the_proof_or_is_a_key_of_the_platform() {
    let key = format!("dtn_{}", "0a".repeat(32));
    let of = |value: &str, strip_authorization| {
        let fields = format!("Authorization: {value}\r\nAUTHORIZATION: {value}\r\n");
        sent_by("GET /x", &fields, &RequestPlan { strip_authorization, ..plan() }).all("Authorization").len()
    };
    assert_eq!(of("Bearer of-the-app", false), 2);
    assert_eq!(of("Bearer of-the-app", true), 0);
    assert_eq!(of(&format!("Bearer {key}"), false), 0);
    assert_eq!(of(&format!("Basic x:{key}"), false), 0);
    assert_eq!(of("Bearer dtn_short", false), 2, "an app's own token may begin alike");
}

// ---------------------------------------------------------------------------------------------------------------
// Target and query

#[test]
fn the_target_is_the_prefix_and_the_clients_bytes() {
    assert_eq!(sent("GET /a//b/%2e?c=%20&&d", "").target, format!("{PREFIX}/a//b/%2e?c=%20&&d"));
    assert_eq!(sent("GET /?", "").target, format!("{PREFIX}/?"));
    // Behind the prefix there is always a slash: 3000 must not become 30001.
    let rest = |start: &str, rest_at| {
        let path = RunnerPath::Toolbox { sandbox: sandbox(), rest_at };
        sent_by(start, "", &RequestPlan { path: &path, ..plan() }).target
    };
    assert_eq!(rest("GET /toolbox/sb1", 12), "/base/sandboxes/sb1/toolbox/");
    assert_eq!(rest("GET /toolbox/sb1?x", 12), "/base/sandboxes/sb1/toolbox/?x");
    assert_eq!(rest("GET /toolbox/sb1/files", 12), "/base/sandboxes/sb1/toolbox/files");
    let whole = RunnerPath::Whole("/snapshots/logs?snapshotRef=own".into());
    let sent = sent_by("GET /x?snapshotRef=stolen", "", &RequestPlan { path: &whole, ..plan() });
    assert_eq!(sent.target, "/base/snapshots/logs?snapshotRef=own");
}

/// Pairs of a query that are ours, in spellings a form decoder takes for the same name.
const OUR_PAIRS: &[&str] = &[
    "DAYTONA_SANDBOX_AUTH_KEY=evil",
    "DAYTONA_SANDBOX_AUTH_KEY=evil=more",
    "DAYTONA_SANDBOX_AUTH_KEY=",
    "DAYTONA_SANDBOX_AUTH_KEY",
    "%44AYTONA_SANDBOX_AUTH_KEY=evil",
    "DAYTONA%5FSANDBOX%5fAUTH_KEY=evil",
];
const THEIR_PAIRS: &[&str] = &[
    "a=b",
    "",
    "=",
    "daytona_sandbox_auth_key=x",
    "XDAYTONA_SANDBOX_AUTH_KEY=x",
    "DAYTONA_SANDBOX_AUTH_KEYS=x",
    "DAYTONA+SANDBOX+AUTH+KEY=x",
    "%2544AYTONA_SANDBOX_AUTH_KEY=x",
    "a;DAYTONA_SANDBOX_AUTH_KEY=x",
    "a=DAYTONA_SANDBOX_AUTH_KEY=x",
    "a=%26DAYTONA_SANDBOX_AUTH_KEY%3Dx",
    "q=%zz%",
    "plus=a+b",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn our_parameter_goes_wherever_it_stands_and_the_rest_keeps_its_bytes(
        pairs in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(OUR_PAIRS),
                proptest::sample::select(THEIR_PAIRS),
                proptest::sample::select(THEIR_PAIRS),
            ], 1..8),
    ) {
        let query = pairs.join("&");
        let theirs: Vec<&str> = pairs.iter().copied().filter(|pair| !OUR_PAIRS.contains(pair)).collect();
        let expected = if theirs.is_empty() { String::new() } else { format!("?{}", theirs.join("&")) };
        let target = sent(&format!("GET /x?{query}"), "").target;
        // A single empty pair beside ours leaves nothing worth a question mark.
        let found = target.strip_prefix(PREFIX).expect("the prefix");
        prop_assert!(
            found == format!("/x{expected}") || (expected == "?" && found == "/x"),
            "{query}: {found}"
        );
        prop_assert!(!target.contains("evil"));
        // Who reads and who removes agree on what is ours.
        let ours = pairs.iter().find(|pair| OUR_PAIRS.contains(pair));
        let token = query_token(query.as_bytes());
        prop_assert_eq!(token.is_some(), ours.is_some());
        if let (Some(token), Some(ours)) = (token, ours) {
            let value = ours.split_once('=').map_or("", |(_, value)| value);
            prop_assert_eq!(token, value.as_bytes());
        }
    }

    #[test]
    fn our_cookies_go_wherever_they_stand_and_the_rest_keep_their_bytes(
        lines in proptest::collection::vec(
            proptest::collection::vec(
                prop_oneof![
                    proptest::sample::select(OUR_COOKIES),
                    proptest::sample::select(THEIR_COOKIES),
                    proptest::sample::select(THEIR_COOKIES),
                ], 1..6),
            1..4),
    ) {
        let fields: String = lines.iter().map(|line| format!("Cookie: {}\r\n", line.join("; "))).collect();
        let expected: Vec<String> = lines
            .iter()
            .map(|line| line.iter().copied().filter(|c| !OUR_COOKIES.contains(c)).collect::<Vec<_>>().join("; "))
            .filter(|line| !line.is_empty())
            .collect();
        let sent = sent("GET /x", &fields);
        prop_assert_eq!(sent.all("Cookie"), expected);
        prop_assert!(!sent.holds("evil"));
    }
}

#[test]
fn an_empty_cookie_in_front_of_ours_keeps_its_place() {
    let sent = sent("GET /x", "Cookie: ; a=1; pkce_verifier=evil; b=2\r\n");
    assert_eq!(sent.all("Cookie"), ["; a=1; b=2"]);
}

const OUR_COOKIES: &[&str] = &[
    "daytona-sandbox-auth-sb1=evil",
    "daytona-sandbox-auth-=evil",
    "DAYTONA-Sandbox-Auth-x=evil",
    "daytona-sandbox-auth-sb1 =evil",
    "pkce_verifier=evil",
    "pkce_verifier",
    "daytona-preview-page-accepted=evil",
    "__Host-daytona-sandbox-auth=evil",
];
const THEIR_COOKIES: &[&str] = &[
    "a=b",
    "session=\"x, y\"",
    "xpkce_verifier=1",
    "pkce_verifiers=1",
    "my-daytona-sandbox-auth-x=1",
    "a=daytona-sandbox-auth-x=1",
    "theme=\u{e4}",
    "empty=",
    "nameonly",
];

// ---------------------------------------------------------------------------------------------------------------
// Responses

fn answered(head: &str, plan: &ResponsePlan<'_>) -> Vec<String> {
    let limits = Limits::default();
    let answer = ResponseHead::parse(head.as_bytes(), Method::Get, &limits).expect("good").expect("whole");
    let mut out = Vec::new();
    write_response(&answer, plan, &mut out);
    let again = ResponseHead::parse(&out, Method::Get, &limits).expect("canonical").expect("whole");
    assert_eq!((again.status, again.bytes.len()), (answer.status, out.len()));
    let text = String::from_utf8_lossy(out.strip_suffix(b"\r\n\r\n").expect("whole")).into_owned();
    text.split("\r\n").map(str::to_owned).collect()
}

const CONFINE: Confine<'static> = Confine { authority: b"3000-a.proxy.test:4000", own_host: true };

fn response_plan(framing: ResponseBody) -> ResponsePlan<'static> {
    ResponsePlan {
        client_version: Version::Http11,
        framing,
        close: false,
        request_id: "our-id",
        set_cookie: None,
        frame_ancestors: None,
        confine: Some(CONFINE),
        sharing: None,
        redirect_prefix: None,
    }
}

#[test]
fn an_answer_passes_without_what_is_for_this_hop_alone_and_without_forged_cookies_of_ours() {
    let lines = answered(
        "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-A: \u{e4}\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nTrailer: X-T\r\nSet-Cookie: a=b\r\n\
         Set-Cookie: daytona-sandbox-auth-x=evil; Path=/\r\nset-cookie:  pkce_verifier=evil\r\n\
         Alt-Svc: h3=\":443\"\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n",
        &response_plan(ResponseBody::Length(5)),
    );
    let expected = [
        "HTTP/1.1 200 Fine",
        "X-A: \u{e4}",
        "Trailer: X-T",
        "Set-Cookie: a=b",
        "X-Twice: 1",
        "X-Twice: 2",
        "Content-Length: 5",
        "X-Request-Id: our-id",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn an_answer_has_the_one_framing_that_was_decided() {
    let of = |head: &str, framing| {
        let lines = answered(head, &response_plan(framing));
        let framing = |l: &&String| l.starts_with("Content-Length") || l.starts_with("Transfer-Encoding");
        lines.iter().filter(framing).cloned().collect::<Vec<_>>()
    };
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(of(length, ResponseBody::Length(5)), ["Content-Length: 5"]);
    let open = "HTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(of(open, ResponseBody::Chunked), ["Transfer-Encoding: chunked"]);
    assert!(of(open, ResponseBody::UntilClose).is_empty());
    // A length without a body says something about the resource, except where none may stand.
    assert_eq!(of("HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", ResponseBody::None), ["Content-Length: 5"]);
    assert!(of("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", ResponseBody::None).is_empty());
    assert!(of("HTTP/1.1 103 Early\r\nContent-Length: 5\r\n\r\n", ResponseBody::None).is_empty());
}

#[test]
fn the_client_is_told_what_becomes_of_its_connection() {
    let of = |client_version, close| {
        let plan = ResponsePlan { client_version, close, ..response_plan(ResponseBody::Length(0)) };
        let lines = answered("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", &plan);
        lines.into_iter().find(|line| line.starts_with("Connection"))
    };
    assert_eq!(
        of(Version::Http11, false),
        None,
        "what the runner does with its own is no concern of the client"
    );
    assert_eq!(of(Version::Http11, true).as_deref(), Some("Connection: close"));
    assert_eq!(of(Version::Http10, false).as_deref(), Some("Connection: keep-alive"));
    assert_eq!(of(Version::Http10, true).as_deref(), Some("Connection: close"));
}

#[test]
fn informational_answers_get_nothing_of_ours() {
    let lines = answered(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: close\r\n\r\n",
        &response_plan(ResponseBody::None),
    );
    assert_eq!(lines, ["HTTP/1.1 103 Early Hints", "Link: </a.css>"]);
}

#[test]
fn an_app_speaks_for_its_own_host_alone_unless_the_operator_lets_it() {
    let head = "HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=proxy.test; Path=/\r\nset-cookie: c=d; domain=.test\r\n\
         Set-Cookie: e=f; Domain=3000-a.proxy.test\r\nSet-Cookie: =daytona-sandbox-auth-x=evil\r\n\
         Clear-Site-Data: \"cookies\"\r\nClear-Site-Data: \"cache\", \"*\"\r\nAlt-Svc: h3=\":443\"\r\n\r\n";
    let confined = answered(head, &response_plan(ResponseBody::Length(0)));
    assert_eq!(
        confined[1..5],
        [
            "Set-Cookie: a=b; Path=/",
            "set-cookie: c=d",
            "Set-Cookie: e=f; Domain=3000-a.proxy.test",
            "Clear-Site-Data: \"cache\", \"cache\", \"storage\"",
        ]
    );
    assert!(confined[5].starts_with("Content-Length"), "{confined:?}");
    let free = ResponsePlan { confine: None, ..response_plan(ResponseBody::Length(0)) };
    let free = answered(head, &free);
    let unheld: Vec<_> = head.split("\r\n").filter(|l| l.contains(": ") && !l.contains("daytona")).collect();
    assert_eq!(free[1..7], unheld, "our own names are ours all the same");
}

#[test]
fn our_own_cookie_goes_out_with_the_answer_and_not_before_it() {
    let plan = ResponsePlan { set_cookie: Some("ours=1; Path=/"), ..response_plan(ResponseBody::None) };
    for (status, written) in
        [("100 Continue", 0), ("103 Early Hints", 0), ("200 OK", 1), ("304 Not Modified", 1)]
    {
        let lines = answered(&format!("HTTP/1.1 {status}\r\nSet-Cookie: a=b\r\n\r\n"), &plan);
        assert_eq!(
            lines.iter().filter(|line| *line == "Set-Cookie: ours=1; Path=/").count(),
            written,
            "{status}"
        );
        assert!(lines.contains(&"Set-Cookie: a=b".to_owned()));
    }
}
