//! Login over real sockets: the binary, a real OpenID provider, the embedded API and runner, and people with browsers.

#[path = "support/free_port.rs"]
mod free_port;
#[path = "login/person.rs"]
mod person;
#[path = "support/scene.rs"]
mod scene;

use free_port::free_port;
use person::{NAVIGATION, Page, Person};
use scene::{Scene, TOKEN};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use url::Url;

const DEADLINE: Duration = Duration::from_secs(20);

fn person(scene: &Scene) -> Person {
    Person::new(&[scene.address(), scene.provider.addr])
}

/// The app's own answer: it shows the request as it got it.
fn is_app(page: &Page, line: &str) -> bool {
    page.status == 200 && page.body.contains(line)
}

/// A page for people with a strict policy and nothing of the provider's in it.
fn is_readable(page: &Page, status: u16, code: &str) {
    assert_eq!((page.status, page.code()), (status, code), "{page:?}");
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"), "{page:?}");
    let policy = page.field("content-security-policy").unwrap_or_default();
    assert!(
        policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert_eq!(page.field("cache-control"), Some("no-store"));
    assert_eq!(page.field("referrer-policy"), Some("no-referrer"));
    assert!(page.body.starts_with("<!doctype html>") && page.body.contains(code), "{}", page.body);
    assert!(page.field("location").is_none());
}

#[test]
fn a_person_logs_in_and_stays_logged_in_where_the_issuer_has_two_names() {
    let scene = Scene::start();
    let mut alice = person(&scene);
    alice.plant("proxy.localhost", "theme", "dark");
    let first = alice.get(&scene.url("priv", "/hello?a=b&c=%20d"));
    assert_eq!(first.status, 307, "{first:?}");
    let authorize = first.location();
    assert_eq!(
        authorize.origin().ascii_serialization(),
        scene.provider.public(),
        "browsers get the public name"
    );
    assert!(!first.location().as_str().contains("127.0.0.1"), "{authorize}");
    let page = alice.log_in(&scene.url("priv", "/hello?a=b&c=%20d"), "alice");
    assert!(is_app(&page, "GET /sandboxes/priv/toolbox/proxy/3000/hello?a=b&c=%20d"), "{page:?}");
    assert_eq!(page.url.as_str(), scene.url("priv", "/hello?a=b&c=%20d"));
    assert!(
        scene.provider.asked().contains(&"/token".to_owned()),
        "the code was exchanged by the internal name"
    );
    let again = alice.get(&scene.url("priv", "/again"));
    assert!(is_app(&again, "/again"), "{again:?}");
    let other = alice.get(&scene.url("other", "/"));
    assert_eq!(other.status, 307, "a login opens the sandbox it was for");
    let page = alice.log_in(&scene.url("other", "/"), "alice");
    assert!(is_app(&page, "/sandboxes/other/"), "the provider knows her now: {page:?}");
    for cookie in scene.cookies_at_apps() {
        assert!(!cookie.contains("daytona") && !cookie.contains("login"), "an app was sent {cookie}");
    }
}

#[test]
fn who_has_no_access_or_refuses_gets_a_page_that_says_so() {
    let scene = Scene::start();
    let page = person(&scene).log_in(&scene.url("priv", "/"), "mallory");
    is_readable(&page, 403, "LOGIN_NO_ACCESS");
    let page = person(&scene).log_in(&scene.url("nosuch", "/"), "alice");
    is_readable(&page, 403, "LOGIN_NO_ACCESS");
    let callback = |query: &str| format!("http://proxy.localhost:{}/callback?{query}", scene.port);
    let denied = person(&scene).get(&callback("error=access_denied&error_description=%3Cscript%3Ecanary"));
    is_readable(&denied, 401, "LOGIN_DENIED");
    assert!(!denied.body.contains("canary"), "a stranger's words are not shown");
    for query in ["", "code=x&state=%7Bx", "state=x"] {
        is_readable(&person(&scene).get(&callback(query)), 400, "LOGIN_STATE_INVALID");
    }
    let mut app = person(&scene);
    let on_preview = app.request("GET", &scene.url("pub", "/callback?code=x&state=y"), NAVIGATION, "");
    assert!(
        is_app(&on_preview, "/callback?code=x&state=y"),
        "on a preview host it is the app's: {on_preview:?}"
    );
}

#[test]
fn a_callback_counts_once_and_for_the_browser_that_left() {
    let scene = Scene::start();
    let mut alice = person(&scene);
    let back = alice.open_until(&scene.url("priv", "/"), "/callback", "alice").location();
    // Somebody else is made to open the end of the login, with a cookie planted beside.
    let mut victim = person(&scene);
    victim.plant("proxy.localhost", "daytona-login-0123456789abcdef", "x");
    is_readable(&victim.get(back.as_str()), 400, "LOGIN_OTHER_BROWSER");
    assert!(victim.holds().iter().all(|name| !name.starts_with("daytona-sandbox-auth-")));
    let forged = back.as_str().replace("state=", "state=A");
    is_readable(&alice.get(&forged), 400, "LOGIN_STATE_INVALID");
    let elsewhere = back.as_str().replace("proxy.localhost", "localhost");
    is_readable(&alice.clone().get(&elsewhere), 400, "LOGIN_STATE_INVALID");

    let mut twin = alice.clone();
    let ended = alice.get(back.as_str());
    assert_eq!(
        (ended.status, ended.location().as_str()),
        (302, scene.url("priv", "/").as_str()),
        "{ended:?}"
    );
    is_readable(&twin.get(back.as_str()), 400, "LOGIN_USED");

    // The code once more, in a new login of its own.
    let code = |url: &Url| url.query_pairs().find(|(n, _)| n == "code").map(|(_, v)| v.into_owned());
    let used = code(&back).expect("a code");
    let mut bob = person(&scene);
    let fresh = bob.open_until(&scene.url("priv", "/"), "/callback", "alice").location();
    let replayed = fresh.as_str().replace(&code(&fresh).expect("a code"), &used);
    is_readable(&bob.get(&replayed), 400, "LOGIN_CODE_REFUSED");
}

#[test]
fn tabs_that_log_in_at_once_all_come_back() {
    let scene = Scene::start();
    let mut alice = person(&scene);
    // Three tabs are opened before anybody logs in.
    let tabs: Vec<_> =
        ["/tab/1", "/tab/2", "/tab/3"].map(|path| (path, alice.get(&scene.url("priv", path)))).into();
    for (path, left) in tabs.iter().rev() {
        let page = alice.log_in(left.location().as_str(), "alice");
        assert!(is_app(&page, &format!("/proxy/3000{path}")), "{path}: {page:?}");
        assert_eq!(page.url.path(), *path);
    }
    assert!(alice.holds().iter().all(|name| !name.starts_with("daytona-login-")), "{:?}", alice.holds());
}

#[test]
fn cookies_planted_by_a_siblings_page_do_not_keep_anybody_out() {
    let scene = Scene::start();
    let mut alice = person(&scene);
    let back = alice.open_until(&scene.url("priv", "/"), "/callback", "alice").location();
    // As many as a browser keeps, looking like the real one, and some that only begin so; all before it.
    for n in 0..170 {
        alice.plant("proxy.localhost", &format!("daytona-login-{n:016x}"), &format!("{n:032x}"));
    }
    let real = alice.holds().into_iter().rfind(|name| name.starts_with("daytona-login-"));
    let real = real.expect("the login's own").to_owned();
    alice.plant("proxy.localhost", &real, &"0".repeat(32));
    alice.plant("proxy.localhost", &real, &"x".repeat(4000));
    alice.plant("proxy.localhost", "daytona-login-", &"x".repeat(8200));
    let ended = alice.get(back.as_str());
    assert_eq!(
        (ended.status, ended.location().as_str()),
        (302, scene.url("priv", "/").as_str()),
        "{ended:?}"
    );
}

#[test]
fn beginning_logins_is_on_the_account_of_who_begins_them() {
    let settings = [("SANDGATE_LOOKUP_RATE", "1"), ("SANDGATE_LOOKUP_BURST", "5"), ("SANDGATE_SHARDS", "1")];
    let scene = Scene::with(None, &settings);
    let begun = Instant::now();
    let mut anybody = person(&scene);
    let mut begins = 0;
    for n in 0..40 {
        let page = anybody.get(&scene.url("priv", &format!("/{n}")));
        match page.status {
            307 => begins += 1,
            _ => is_readable(&page, 429, "CLIENT_LIMIT"),
        }
    }
    let seconds = begun.elapsed().as_secs() as usize;
    assert!((1..=5 + seconds + 1).contains(&begins), "{begins} logins begun in {seconds} s");
}

#[test]
fn an_id_token_that_does_not_hold_opens_nothing() {
    let scene = Scene::start();
    for how in ["nonce", "issuer", "audience", "expired"] {
        scene.provider.tamper(how);
        let mut alice = person(&scene);
        is_readable(&alice.log_in(&scene.url("priv", "/"), "alice"), 502, "LOGIN_TOKEN_INVALID");
        assert!(alice.holds().iter().all(|name| !name.starts_with("daytona-sandbox-auth-")), "{how}");
    }
    scene.provider.tamper("none");
    let page = person(&scene).log_in(&scene.url("priv", "/"), "alice");
    assert!(is_app(&page, "/sandboxes/priv/"), "an honest one does: {page:?}");
    assert!(!scene.said().contains("canary"), "what the token said stays out of the log");
}

#[test]
fn a_provider_may_change_its_keys() {
    let scene = Scene::start();
    assert!(is_app(&person(&scene).log_in(&scene.url("priv", "/"), "alice"), "/sandboxes/priv/"));
    let fetched = |scene: &Scene| scene.provider.asked().iter().filter(|path| *path == "/jwks").count();
    assert_eq!(fetched(&scene), 1);
    scene.provider.rotate();
    // Known keys may be asked for again some seconds after they came, not sooner.
    let begun = Instant::now();
    let page = loop {
        let page = person(&scene).log_in(&scene.url("priv", "/"), "alice");
        if page.status == 200 || begun.elapsed() > DEADLINE {
            break page;
        }
        is_readable(&page, 502, "LOGIN_TOKEN_INVALID");
        std::thread::sleep(Duration::from_millis(500));
    };
    assert!(is_app(&page, "/sandboxes/priv/"), "{page:?}");
    assert_eq!(fetched(&scene), 2, "and not for every token with a key unknown");
}

#[test]
fn nothing_but_a_person_opening_a_page_is_sent_to_log_in() {
    let scene = Scene::start();
    let fetch = |mode: &str, dest: &str| {
        format!("Accept: text/html,*/*\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n")
    };
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://app.example\r\n";
    let page = NAVIGATION.to_owned();
    for (method, fields) in [
        ("POST", page.clone() + "Content-Length: 0\r\n"),
        ("PUT", page.clone() + "Content-Length: 0\r\n"),
        ("DELETE", page.clone()),
        ("GET", fetch("cors", "empty")),
        ("GET", fetch("no-cors", "image")),
        ("GET", fetch("no-cors", "script")),
        ("GET", fetch("same-origin", "empty")),
        ("GET", "Accept: */*\r\n".into()),
        ("GET", String::new()),
        ("GET", "Accept: text/html\r\nX-Requested-With: XMLHttpRequest\r\n".into()),
        ("GET", page.clone() + "Sec-Purpose: prefetch\r\n"),
        ("GET", websocket.into()),
    ] {
        let answer = person(&scene).request(method, &scene.url("priv", "/"), &fields, "");
        assert_eq!((answer.status, answer.code()), (401, "AUTH_REQUIRED"), "{method} {fields}: {answer:?}");
        assert_eq!(answer.field("content-type"), Some("application/json"), "{method} {fields}");
        assert!(answer.body.starts_with('{') && answer.set_cookies().next().is_none());
        assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
    }
    let toolbox = format!("http://localhost:{}/toolbox/priv/files", scene.port);
    let answer = person(&scene).request("GET", &toolbox, NAVIGATION, "");
    assert_eq!((answer.status, answer.field("location")), (401, None), "never on the toolbox: {answer:?}");
    let frame =
        person(&scene).request("GET", &scene.url("priv", "//x.example/?q"), &fetch("navigate", "iframe"), "");
    assert_eq!((frame.status, frame.field("location")), (401, None), "never in a frame: {frame:?}");
    let link = format!("href=\"{}\" target=\"_blank\"", scene.url("priv", "//x.example/?q"));
    assert!(frame.body.contains(&link), "but in a tab: {frame:?}");
    for (fields, status) in [("X-Daytona-Preview-Token: wrong\r\n", 307), ("", 307)] {
        let url = scene.url("priv", "/?DAYTONA_SANDBOX_AUTH_KEY=canary&x=1");
        let answer = person(&scene).request("GET", &url, &(page.clone() + fields), "");
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.field("cache-control"), Some("no-store"));
    }
    let head = person(&scene).request("HEAD", &scene.url("priv", "/"), &page, "");
    assert_eq!((head.status, head.body.as_str()), (307, ""));
    assert!(
        scene.provider.asked().iter().all(|path| path.starts_with("/.well-known/")),
        "nobody was logged in"
    );
}

#[test]
fn with_the_provider_down_only_logging_in_is_out_of_order() {
    // The discard port: nothing listens there.
    let down = [("OIDC_DOMAIN", "http://127.0.0.1:9"), ("OIDC_PUBLIC_DOMAIN", "http://127.0.0.1:9")];
    let scene = Scene::with(None, &down);
    let begun = Instant::now();
    let page = person(&scene).get(&scene.url("priv", "/"));
    is_readable(&page, 503, "LOGIN_PROVIDER_DOWN");
    assert_eq!(page.field("retry-after"), Some("5"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(is_app(&person(&scene).get(&scene.url("pub", "/x")), "/sandboxes/pub/"));
    let token = format!("{NAVIGATION}X-Daytona-Preview-Token: {TOKEN}\r\n");
    let page = person(&scene).request("GET", &scene.url("priv", "/x"), &token, "");
    assert!(is_app(&page, "/sandboxes/priv/"), "{page:?}");
    let script = person(&scene).request("GET", &scene.url("priv", "/"), "", "");
    assert_eq!(
        (script.status, script.code()),
        (401, "AUTH_REQUIRED"),
        "who would not be sent there is not told"
    );
}

#[test]
fn in_isolated_mode_each_host_has_a_session_of_its_own() {
    let scene = Scene::with(None, &[("PROXY_PROTOCOL", "https"), ("SANDGATE_COOKIE_MODE", "isolated")]);
    let mut alice = person(&scene);
    let handoff = alice.open_until(&scene.url("priv", "/hello"), "/.daytona/auth", "alice").location();
    // The ticket in another browser, at another host, and in the wrong hands.
    is_readable(&person(&scene).get(handoff.as_str()), 400, "LOGIN_OTHER_BROWSER");
    let elsewhere = handoff.as_str().replace("3000-priv", "3001-priv");
    is_readable(&alice.clone().get(&elsewhere), 400, "LOGIN_STATE_INVALID");
    let mut twin = alice.clone();
    let ended = alice.get(handoff.as_str());
    assert_eq!((ended.status, ended.location().as_str()), (303, scene.url("priv", "/hello").as_str()));
    is_readable(&twin.get(handoff.as_str()), 400, "LOGIN_USED");
    assert_eq!(
        alice.holds().iter().filter(|name| name.contains("daytona")).count(),
        1,
        "{:?}",
        alice.holds()
    );
    assert!(alice.holds().contains(&"__Host-daytona-sandbox-auth"));

    let page = alice.get(&scene.url("priv", "/hello"));
    assert!(is_app(&page, "/proxy/3000/hello"), "{page:?}");
    let host = |label: &str| Url::parse(&scene.url("x", "/").replace("3000-x", label)).expect("a URL");
    for label in ["3001-priv", "3000-other", "2280-priv"] {
        assert_eq!(alice.cookies(&host(label)), "", "no other host is sent it");
        // Nor is it worth anything there, carried by hand.
        let carried = format!("{NAVIGATION}Cookie: {}\r\n", alice.cookies(&host("3000-priv")));
        let answer = person(&scene).request("GET", host(label).as_str(), &carried, "");
        assert_eq!(answer.status, 307, "{label}: {answer:?}");
    }
    let own = alice.get(&scene.url("pub", "/.daytona/other"));
    assert_eq!(own.status, 404, "the prefix is never the app's");
    for cookie in scene.cookies_at_apps() {
        assert!(!cookie.contains("daytona"), "an app was sent {cookie}");
    }
}

#[test]
fn no_secret_of_a_login_is_logged_or_shown() {
    let free = free_port();
    let metrics = free.to_string();
    let secret = "canary-client-secret";
    let scene = Scene::with(Some(secret), &[("SANDGATE_ACCESS_LOG", "all"), ("METRICS_PORT", &metrics)]);
    let mut alice = person(&scene);
    let back = alice.open_until(&scene.url("priv", "/"), "/callback", "alice").location();
    let ended = alice.get(back.as_str());
    assert_eq!(ended.status, 302, "a client with a secret logs in: {ended:?}");
    let refused = alice.get(back.as_str());
    is_readable(&refused, 400, "LOGIN_USED");
    let mut secrets = vec![secret.to_owned()];
    secrets.extend(back.query_pairs().filter(|(n, _)| n != "iss").map(|(_, v)| v.into_owned()));
    secrets.extend(
        alice
            .cookies(&Url::parse(&scene.url("priv", "/callback")).expect("a URL"))
            .split("; ")
            .map(|pair| pair.split_once('=').map(|(_, value)| value.to_owned()).expect("a pair")),
    );
    let page = Person::new(&[SocketAddr::from(([127, 0, 0, 1], free))])
        .get(&format!("http://127.0.0.1:{free}/metrics"));
    for (step, result) in [("start", "ok"), ("callback", "ok"), ("callback", "used")] {
        let line = format!("preview_login_total{{step=\"{step}\",result=\"{result}\"}} 1\n");
        assert!(page.body.contains(&line), "{line} is missing in {}", page.body);
    }
    let begun = Instant::now();
    while !scene.said().contains("LOGIN_USED") {
        assert!(begun.elapsed() < DEADLINE, "the access log has it: {}", scene.said());
        std::thread::yield_now();
    }
    assert!(secrets.len() >= 4, "{secrets:?}");
    for secret in &secrets {
        for shown in [&scene.said(), &page.body, &refused.body] {
            assert!(!shown.contains(secret.as_str()), "{secret} in {shown}");
        }
    }
}
