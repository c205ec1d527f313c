//! `sandgate doctor` against APIs over real sockets: what is asked, what is told, and with which exit code.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[path = "support/free_port.rs"]
mod free_port;
#[path = "support/redis_server.rs"]
#[allow(dead_code, reason = "others need more of it")]
mod redis_server;

#[path = "support/silent_names.rs"]
#[allow(dead_code, reason = "others need more of it")]
mod silent_names;

use redis_server::RedisServer;
use silent_names::SilentNames;

const KEY: &str = "canary-0123456789-0123456789-0123456789";

/// Answers every request by its path; keeps the request heads.
struct Api {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

type Answer = (u16, &'static str, String);

impl Api {
    fn start(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr = listener.local_addr().expect("it is bound");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = heads.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().expect("an open socket"));
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut head).unwrap_or(0) == 0 {
                        break;
                    }
                }
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                seen.lock().expect("no thread panics with it").push(head);
                let (status, field, body) = answer(&path);
                let text = format!(
                    "HTTP/1.1 {status} X\r\n{field}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // A client that left is none of ours.
                let _ = stream.write_all(text.as_bytes());
            }
        });
        Self { addr, heads }
    }

    fn base(&self) -> String {
        format!("http://{}/api", self.addr)
    }
}

fn good(path: &str) -> Answer {
    match path {
        "/api/config" => (200, "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n", r#"{"version":"0.190.0"}"#.into()),
        "/api/preview/sandgate-doctor/public" => (404, "", String::new()),
        _ => (500, "", String::new()),
    }
}

fn doctor(api: &str, more: &[(&str, &str)], arguments: &[&str]) -> Output {
    doctor_under(&[], api, more, arguments)
}

/// `wrapper`: a command that runs the one behind it.
fn doctor_under(wrapper: &[&str], api: &str, more: &[(&str, &str)], arguments: &[&str]) -> Output {
    let port = free_port::free_port();
    let words: Vec<_> = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_sandgate"), "doctor"]).collect();
    Command::new(words[0])
        .args(&words[1..])
        .args(arguments)
        .env_clear()
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .env("DAYTONA_API_URL", api)
        .env("PROXY_PORT", port.to_string())
        .env("PROXY_PROTOCOL", "http")
        .env("PROXY_API_KEY", KEY)
        .env("SANDGATE_LISTEN", "127.0.0.1")
        .env("SANDGATE_SHARDS", "1")
        .env("SANDGATE_CONNECTIONS_MAX", "100")
        .envs(more.iter().copied())
        .output()
        .expect("the binary was just built")
}

/// The line of `item`; that nothing secret is told, and behind whatever is not well what to do.
fn line(output: &Output, item: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains(KEY) && !String::from_utf8_lossy(&output.stderr).contains(KEY), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    for told in lines.windows(2).filter(|told| told[0].starts_with("WARN") || told[0].starts_with("FAIL")) {
        assert!(told[1].trim_start().starts_with("-> "), "{told:?}");
    }
    let found = text.lines().find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(item)));
    found.unwrap_or_else(|| panic!("no {item} in\n{text}")).to_owned()
}

#[test]
fn an_api_that_takes_the_key_passes_and_its_clock_is_compared() {
    let api = Api::start(good);
    let output = doctor(&api.base(), &[], &[]);
    assert!(line(&output, "api  ").starts_with("PASS"), "{}", line(&output, "api  "));
    assert!(line(&output, "api  ").contains("0.190.0"));
    assert!(line(&output, "api key").starts_with("PASS"), "{}", line(&output, "api key"));
    assert!(line(&output, "clock").starts_with("WARN"), "{}", line(&output, "clock"));
    for item in [
        "configuration",
        "driver",
        "memlock",
        "cpus",
        "descriptors",
        "epoll watches",
        "somaxconn",
        "ports",
        "pipes",
        "listen",
    ] {
        assert!(!line(&output, item).starts_with("FAIL"), "{}", line(&output, item));
    }
    assert_eq!(output.status.code(), Some(0), "warnings are no failure");
    let heads = api.heads.lock().expect("no thread panics with it");
    let of = |path: &str| {
        heads.iter().find(|h| h.starts_with(&format!("GET {path} "))).expect("it was asked").clone()
    };
    assert!(!of("/api/config").contains(KEY), "an open page is asked without the key");
    assert!(of("/api/preview/sandgate-doctor/public").contains(KEY));
}

#[test]
fn what_is_no_api_is_told_from_one_that_is_down_and_one_that_refuses_the_key() {
    let page = Api::start(|_| (200, "Content-Type: text/html\r\n", "<!doctype html><html>".into()));
    let moved = Api::start(|_| (302, "Location: https://user.example/login?secret=x\r\n", String::new()));
    let refusing =
        Api::start(|path| if path == "/api/config" { good(path) } else { (401, "", String::new()) });
    for (api, item, says) in [
        (page.base(), "api  ", "a web page, not an API"),
        (moved.base(), "api  ", "302, redirects to https://user.example/login"),
        ("http://127.0.0.1:1/api".into(), "api  ", "refused"),
        (refusing.base(), "api key", "refuses it with 401"),
    ] {
        let output = doctor(&api, &[], &[]);
        let line = line(&output, item);
        assert!(line.starts_with("FAIL") && line.contains(says), "{line}");
        assert!(!line.contains("secret"), "{line}");
        assert_eq!(output.status.code(), Some(1), "{line}");
    }
}

#[test]
fn an_issuer_is_looked_up_where_the_configuration_or_the_api_says() {
    let provider = Api::start(|path| match path {
        "/dex/.well-known/openid-configuration" => {
            let body = r#"{"issuer":"http://localhost:5556/dex","authorization_endpoint":"http://localhost:5556/dex/auth",
                "token_endpoint":"http://localhost:5556/dex/token","jwks_uri":"http://localhost:5556/dex/keys",
                "response_types_supported":["code"],"subject_types_supported":["public"],
                "id_token_signing_alg_values_supported":["RS256"]}"#;
            (200, "", body.into())
        }
        "/half/.well-known/openid-configuration" => (200, "", r#"{"issuer":"x"}"#.into()),
        "/shared/.well-known/openid-configuration" => {
            let body = r#"{"issuer":"http://localhost:5556/dex","authorization_endpoint":"http://localhost:5556/dex/auth",
                "token_endpoint":"http://localhost:5556/dex/token","jwks_uri":"http://localhost:5556/dex/keys",
                "response_types_supported":["code"],"subject_types_supported":["public"],
                "id_token_signing_alg_values_supported":["HS256","none"]}"#;
            (200, "", body.into())
        }
        _ => (404, "", String::new()),
    });
    let own = provider.addr;
    let api = Api::start(move |path| match path {
        "/api/config" => (200, "", format!(r#"{{"oidc":{{"issuer":"http://{own}/none"}}}}"#)),
        path => good(path),
    });
    let set = |path: &str| format!("http://{own}{path}");
    let public = "http://localhost:5556/dex/";
    for (domain, public, verdict, says) in [
        (Some(set("/dex/")), Some(public), "PASS", "calls itself http://localhost:5556/dex"),
        // Login would refuse it, too.
        (Some(set("/dex/")), None, "FAIL", "neither OIDC_DOMAIN nor OIDC_PUBLIC_DOMAIN"),
        (Some(set("/shared")), Some(public), "FAIL", "in no way that proves who did"),
        (Some(set("/half")), None, "FAIL", "without authorization_endpoint, token_endpoint, jwks_uri"),
        (None, None, "FAIL", "404"),
    ] {
        let domain = domain.iter().map(|url| ("OIDC_DOMAIN", url.as_str()));
        let more: Vec<_> = domain.chain(public.map(|url| ("OIDC_PUBLIC_DOMAIN", url))).collect();
        let line = line(&doctor(&api.base(), &more, &[]), "oidc");
        assert!(line.starts_with(verdict) && line.contains(says), "{line}");
    }
}

#[test]
fn a_domain_without_a_wildcard_and_a_bad_setting_fail_beside_what_can_still_be_said() {
    let output =
        doctor("http://127.0.0.1:1/api", &[("SANDGATE_SHARDS", "none")], &["--domain", "preview.invalid"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(line(&output, "configuration").contains("CFG_INVALID SANDGATE_SHARDS"));
    assert!(line(&output, "dns").starts_with("FAIL"));
    assert!(!line(&output, "driver").starts_with("FAIL"));
}

/// The C library would ask for minutes.
#[test]
fn a_name_server_that_says_nothing_is_told_and_not_waited_for() {
    let names = SilentNames::start("127.77.53.2");
    let begun = Instant::now();
    let output =
        doctor_under(&names.wrapper(), "http://api.example/api", &[], &["--domain", "preview.example"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(line(&output, "api").starts_with("FAIL") && line(&output, "dns").starts_with("FAIL"));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn redis_is_asked_as_the_gate_asks_it_and_its_password_is_not_told() {
    const PASSWORD: &str = "canary-redis-0123456789";
    let (api, server) = (Api::start(good), RedisServer::start(&["--requirepass", PASSWORD]));
    let port = server.port.to_string();
    let told = |password: &str, port: &str| {
        let more = [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", port), ("REDIS_PASSWORD", password)];
        let output = doctor(&api.base(), &more, &[]);
        let line = line(&output, "redis");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("canary-redis"), "{line}");
        line
    };
    assert!(told(PASSWORD, &port).starts_with("PASS"), "{}", told(PASSWORD, &port));
    let wrong = told("canary-redis-wrong", &port);
    assert!(wrong.starts_with("FAIL") && wrong.contains("no connection ("), "{wrong}");
    let nobody = told(PASSWORD, "1");
    assert!(nobody.starts_with("FAIL"), "{nobody}");
}
