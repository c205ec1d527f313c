//! The API client against a scripted API over real sockets.

use super::*;
use crate::control::fake_api::{Act, FakeApi, reply};
use crate::free_port::free_port;
use crate::log_writer::LogWriter;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Mutex;

const SERVICE: &str = "canary-service-key";
const USER: &str = "canary-user-token";
const UUID: &str = "0b2f4d6e-0000-4000-8000-00000000000a";

fn token(text: &str) -> Token {
    Token::parse(text.as_bytes()).expect("visible")
}

fn id() -> SandboxId {
    SandboxId::parse(b"s-1").expect("an id")
}

fn ip() -> IpAddr {
    IpAddr::from([192, 0, 2, 7])
}

fn public() -> Question {
    Question::Public(id())
}

fn verdict(proof: ProofKind, text: &str) -> Question {
    Question::Verdict { proof, sandbox: id(), token: token(text), client_ip: ip() }
}

fn link() -> Question {
    let token = SandboxId::parse(b"canary0123456789").and_then(|label| SignedToken::of_label(&label));
    let port = Port::parse(b"3000").expect("a port");
    Question::SignedToken { token: token.expect("16 letters and digits"), port }
}

fn runner() -> Question {
    Question::Runner { sandbox: id(), fresh: false }
}

fn logs_of(of: BuildLogsOf) -> Question {
    Question::BuildLogs { of, bearer: token(USER), client_ip: ip() }
}

fn snapshot(name: &str) -> Question {
    logs_of(BuildLogsOf::Snapshot(name.into()))
}

fn client_of(base: &str, deadline: Duration, log: Log) -> Api {
    Api::new(base, &Secret::new(SERVICE), deadline, log).expect("good settings")
}

async fn ask(api: &FakeApi, question: &Question) -> Reply {
    client_of(&api.base(), Duration::from_secs(20), Log::discard()).answer(question).await
}

/// An answer in words, since addresses compare by content only.
fn told(reply: &Reply) -> String {
    format!("{reply:?}")
}

/// Asks an API that always answers so; gives the reply and how often it was asked.
async fn asked(question: &Question, answer: Vec<u8>) -> (String, usize) {
    let api = FakeApi::always(Act::Send(answer)).await;
    let reply = ask(&api, question).await;
    (told(&reply), api.seen().requests)
}

fn field<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn yes_is_a_200_that_says_true_and_nothing_else() {
    for question in [public(), verdict(ProofKind::Bearer, USER), verdict(ProofKind::PreviewToken, "tok")] {
        for (body, wanted) in [
            ("true", "Ok(Yes)"),
            (" true\r\n", "Ok(Yes)"),
            ("false", "Ok(No)"),
            ("", "Err(ApiGarbage)"),
            ("TRUE", "Err(ApiGarbage)"),
            ("\"true\"", "Err(ApiGarbage)"),
            ("truefalse", "Err(ApiGarbage)"),
            ("<!doctype html><title>Dashboard</title>true", "Err(ApiGarbage)"),
        ] {
            let html = reply(200, "Content-Type: text/html\r\n", body);
            assert_eq!(asked(&question, html).await, (wanted.into(), 1), "{question:?} {body:?}");
        }
    }
}

#[tokio::test]
async fn a_link_leads_to_the_sandbox_the_api_names_and_to_nothing_that_is_no_id() {
    for (body, wanted) in [
        ("0b2f4d6e-0000-4000-8000-00000000000a", "Ok(Sandbox(0b2f4d6e-0000-4000-8000-00000000000a))"),
        (" s_1\r\n", "Ok(Sandbox(s_1))"),
        ("", "Err(ApiGarbage)"),
        ("\"s-1\"", "Err(ApiGarbage)"),
        ("../other", "Err(ApiGarbage)"),
        ("s 1", "Err(ApiGarbage)"),
        ("<!doctype html><title>Dashboard</title>", "Err(ApiGarbage)"),
    ] {
        let html = reply(200, "Content-Type: text/html\r\n", body);
        assert_eq!(asked(&link(), html).await, (wanted.into(), 1), "{body:?}");
    }
    assert!(!format!("{:?}", link()).contains("canary"));
}

#[tokio::test]
async fn a_refusal_of_our_key_is_trouble_and_a_refusal_of_theirs_is_a_no() {
    let bearer = verdict(ProofKind::Bearer, USER);
    let preview = verdict(ProofKind::PreviewToken, "tok");
    for (question, status, wanted) in [
        (&public(), 401, "Err(ApiStatus(401))"),
        (&public(), 403, "Err(ApiStatus(403))"),
        (&public(), 404, "Ok(No)"),
        (&preview, 401, "Err(ApiStatus(401))"),
        (&preview, 403, "Err(ApiStatus(403))"),
        (&preview, 404, "Ok(No)"),
        (&bearer, 401, "Ok(No)"),
        (&bearer, 403, "Ok(No)"),
        (&bearer, 404, "Ok(No)"),
        (&link(), 401, "Err(ApiStatus(401))"),
        (&link(), 403, "Ok(No)"),
        (&link(), 404, "Ok(No)"),
        (&runner(), 401, "Err(ApiStatus(401))"),
        (&runner(), 403, "Err(ApiStatus(403))"),
        (&runner(), 404, "Ok(NotFound)"),
        (&snapshot("s"), 401, "Ok(No)"),
        (&snapshot("s"), 403, "Ok(NotFound)"),
        (&snapshot("s"), 404, "Ok(NotFound)"),
    ] {
        let answer = reply(status, "", "{\"message\":\"true\"}");
        assert_eq!(asked(question, answer).await, (wanted.into(), 1), "{question:?} {status}");
    }
}

#[tokio::test]
async fn other_statuses_are_trouble_after_one_try() {
    let questions = [
        public(),
        verdict(ProofKind::Bearer, USER),
        verdict(ProofKind::PreviewToken, "t"),
        link(),
        runner(),
        snapshot("s"),
    ];
    for question in &questions {
        for status in [204, 400, 408, 410, 418, 500, 501, 505] {
            let wanted = format!("Err(ApiStatus({status}))");
            let body = if status == 204 { "" } else { "true" };
            assert_eq!(asked(question, reply(status, "", body)).await, (wanted, 1), "{question:?}");
        }
        for (extra, wanted) in [
            ("", "None"),
            ("Retry-After: 7\r\n", "Some(7)"),
            ("Retry-After: +7\r\n", "None"),
            ("Retry-After: 99999999999\r\n", "None"),
            ("Retry-After: Tue, 24 Nov 2026 00:00:00 GMT\r\n", "None"),
        ] {
            let wanted = format!("Err(ApiRateLimited({wanted}))");
            assert_eq!(asked(question, reply(429, extra, "true")).await, (wanted, 1), "{question:?} {extra}");
        }
    }
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let elsewhere = FakeApi::always(Act::Send(reply(200, "", "true"))).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}\r\n", elsewhere.base());
        let wanted = format!("Err(ApiStatus({status}))");
        assert_eq!(asked(&public(), reply(status, &location, "")).await, (wanted, 1));
    }
    assert_eq!(elsewhere.seen().connections, 0);
}

#[tokio::test]
async fn each_question_is_the_one_call_with_the_right_key() {
    for (question, path, key, forwarded) in [
        (public(), "/api/preview/s-1/public", SERVICE, None),
        (verdict(ProofKind::Bearer, USER), "/api/preview/s-1/access", USER, Some("192.0.2.7")),
        (verdict(ProofKind::PreviewToken, "t_o-K1"), "/api/preview/s-1/validate/t_o-K1", SERVICE, None),
        (link(), "/api/preview/canary0123456789/3000/sandbox-id", SERVICE, None),
        (runner(), "/api/runners/by-sandbox/s-1", SERVICE, None),
        (logs_of(BuildLogsOf::Sandbox(id())), "/api/sandbox/s-1", USER, Some("192.0.2.7")),
        (snapshot("a.b:1"), "/api/snapshots/a.b%3A1", USER, Some("192.0.2.7")),
    ] {
        let api = FakeApi::always(Act::Send(reply(404, "", ""))).await;
        ask(&api, &question).await.expect("a 404 is an answer to all of them");
        let heads = api.heads();
        assert_eq!(heads.len(), 1);
        assert!(heads[0].starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{}", heads[0]);
        assert_eq!(field(&heads[0], "authorization"), [format!("Bearer {key}")]);
        assert_eq!(field(&heads[0], "x-forwarded-for"), Vec::from_iter(forwarded));
        assert_eq!(field(&heads[0], "accept"), ["application/json"]);
        assert_eq!(field(&heads[0], "user-agent"), [format!("sandgate/{}", env!("CARGO_PKG_VERSION"))]);
    }
}

#[tokio::test]
async fn what_cannot_be_a_preview_token_or_a_name_never_reaches_a_path() {
    let api = FakeApi::always(Act::Send(reply(200, "", "true"))).await;
    let long = "t".repeat(PREVIEW_TOKEN_MAX + 1);
    for text in ["../../x", "a/b", "a%2Fb", "a.b", "a?b", "a#b", "a\\b", "..", long.as_str()] {
        let reply = ask(&api, &verdict(ProofKind::PreviewToken, text)).await;
        assert_eq!(told(&reply), "Ok(No)", "{text}");
    }
    for name in ["", ".", "..", "..."] {
        assert_eq!(told(&ask(&api, &snapshot(name)).await), "Ok(NotFound)", "{name}");
    }
    assert_eq!(api.seen().connections, 0);
}

#[tokio::test]
async fn a_runner_is_its_proxy_url_and_key_and_the_rest_does_not_matter() {
    let fields =
        |url: &str, key: &str| format!(r#"{{"proxyUrl":{url},"apiKey":{key},"memory":null,"x":[{{}}]}}"#);
    let body = fields(r#""http://127.0.0.1:3003/base/""#, r#""k""#);
    let api = FakeApi::always(Act::Send(reply(200, "", &body))).await;
    let Ok(Answer::Runner(address)) = ask(&api, &runner()).await else { panic!("a runner") };
    assert_eq!(address.addrs, [SocketAddr::from(([127, 0, 0, 1], 3003))]);
    assert_eq!((address.authority.as_str(), address.base_path.as_str()), ("127.0.0.1:3003", "/base"));
    assert_eq!(address.authorization, "Bearer k");

    for (body, wanted) in [
        (fields("null", r#""k""#), "RunnerUrl"),
        (fields(r#""""#, r#""k""#), "RunnerUrl"),
        (r#"{"apiKey":"k"}"#.to_owned(), "RunnerUrl"),
        (fields(r#""https://127.0.0.1""#, r#""k""#), "RunnerUrl"),
        (fields(r#""ftp://127.0.0.1""#, r#""k""#), "RunnerUrl"),
        (fields(r#""http://u:p@127.0.0.1""#, r#""k""#), "RunnerUrl"),
        (fields(r#""http://no-such-host.invalid""#, r#""k""#), "RunnerUrl"),
        (fields("7", r#""k""#), "ApiGarbage"),
        (fields(r#""http://127.0.0.1""#, "null"), "ApiGarbage"),
        (fields(r#""http://127.0.0.1""#, r#""k\r\nX: y""#), "ApiGarbage"),
        (r#"{"proxyUrl":"http://127.0.0.1"}"#.to_owned(), "ApiGarbage"),
        (r#"{"proxyUrl":"http://127.0.0.1","apiKey":"k""#.to_owned(), "ApiGarbage"),
        ("true".to_owned(), "ApiGarbage"),
        (r#"["http://127.0.0.1",null,"k"]"#.to_owned(), "ApiGarbage"),
        ("<html>".to_owned(), "ApiGarbage"),
        (String::new(), "ApiGarbage"),
    ] {
        let wanted = (format!("Err({wanted})"), 1);
        assert_eq!(asked(&runner(), reply(200, "", &body)).await, wanted, "{body}");
    }
}

#[tokio::test]
async fn build_logs_ask_as_the_caller_first_and_as_the_gate_for_the_runner() {
    let runner = r#"{"proxyUrl":"http://127.0.0.1:1","apiUrl":"http://127.0.0.1:8080/v","apiKey":"k"}"#;
    for (question, first) in [
        (
            logs_of(BuildLogsOf::Sandbox(id())),
            format!(r#"{{"buildInfo":{{"snapshotRef":"r/x:1"}},"runnerId":"{UUID}"}}"#),
        ),
        (snapshot("s"), format!(r#"{{"ref":"r/x:1","initialRunnerId":"{UUID}"}}"#)),
    ] {
        let api = FakeApi::start(move |n, _| {
            Act::Send(reply(200, "", if n == 0 { first.as_str() } else { runner }))
        })
        .await;
        let Ok(Answer::BuildLogs { runner, snapshot_ref }) = ask(&api, &question).await else {
            panic!("build logs")
        };
        assert_eq!(snapshot_ref, "r/x:1");
        assert_eq!(runner.addrs, [SocketAddr::from(([127, 0, 0, 1], 8080))]);
        assert_eq!(runner.base_path, "/v");
        let heads = api.heads();
        assert_eq!(heads.len(), 2);
        assert_eq!(field(&heads[0], "authorization"), [format!("Bearer {USER}")]);
        assert!(heads[1].starts_with(&format!("GET /api/runners/{UUID}/full ")), "{}", heads[1]);
        assert_eq!(field(&heads[1], "authorization"), [format!("Bearer {SERVICE}")]);
        assert!(field(&heads[1], "x-forwarded-for").is_empty());
    }
}

#[tokio::test]
async fn a_missing_build_or_runner_is_not_found_and_a_strange_runner_id_is_not_asked_for() {
    for (body, wanted) in [
        (r#"{"ref":"r"}"#, "Ok(NotFound)"),
        (r#"{"ref":"r","initialRunnerId":null}"#, "Ok(NotFound)"),
        (r#"{"initialRunnerId":"x"}"#, "Ok(NotFound)"),
        (r#"{"ref":"r","initialRunnerId":"../../etc"}"#, "Err(ApiGarbage)"),
    ] {
        assert_eq!(asked(&snapshot("s"), reply(200, "", body)).await, (wanted.into(), 1), "{body}");
    }
    for (status, wanted) in
        [(404, "Ok(NotFound)"), (400, "Err(ApiStatus(400))"), (401, "Err(ApiStatus(401))")]
    {
        let first = format!(r#"{{"ref":"r","initialRunnerId":"{UUID}"}}"#);
        let api = FakeApi::start(move |n, _| {
            Act::Send(if n == 0 { reply(200, "", &first) } else { reply(status, "", "") })
        })
        .await;
        assert_eq!(told(&ask(&api, &snapshot("s")).await), wanted);
    }
}

#[tokio::test]
async fn what_did_not_get_through_is_tried_three_times() {
    let yes = || Act::Send(reply(200, "", "true"));
    let status = |status| Act::Send(reply(status, "", ""));
    let torn = || Act::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntr".to_vec());
    for (script, wanted, requests) in [
        ([status(503), status(503), yes()], "Ok(Yes)", 3),
        ([status(502), yes(), yes()], "Ok(Yes)", 2),
        ([status(504), status(502), status(503)], "Err(ApiStatus(503))", 3),
        ([Act::Reset, Act::Reset, yes()], "Ok(Yes)", 3),
        ([Act::SendAndClose(Vec::new()), Act::Reset, Act::Reset], "Err(ApiUnreachable)", 3),
        ([torn(), torn(), yes()], "Ok(Yes)", 3),
        ([Act::SendAndClose(b"no HTTP\r\n\r\n".to_vec()), yes(), yes()], "Ok(Yes)", 2),
        ([status(503), status(500), yes()], "Err(ApiStatus(500))", 2),
        ([status(503), status(404), yes()], "Ok(No)", 2),
        ([status(500), yes(), yes()], "Err(ApiStatus(500))", 1),
        ([status(429), yes(), yes()], "Err(ApiRateLimited(None))", 1),
    ] {
        // A fourth try would be seen as a wrong answer or a wrong count.
        let api = FakeApi::start(move |n, _| script.get(n).cloned().unwrap_or(Act::Reset)).await;
        let reply = ask(&api, &public()).await;
        assert_eq!((told(&reply).as_str(), api.seen().requests), (wanted, requests));
    }
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let api =
        client_of(&format!("http://127.0.0.1:{}/api", free_port()), Duration::from_secs(20), Log::discard());
    assert_eq!(told(&api.answer(&public()).await), "Err(ApiUnreachable)");
}

#[tokio::test]
async fn the_deadline_covers_silence_dripping_and_all_tries() {
    for act in [
        Act::SendAndHang(Vec::new()),
        Act::SendAndHang(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Act::SendAndHang(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntr".to_vec()),
        // Less than one wait between tries.
        Act::Send(reply(503, "", "")),
    ] {
        let api = FakeApi::always(act).await;
        let client = client_of(&api.base(), Duration::from_millis(100), Log::discard());
        assert_eq!(told(&client.answer(&public()).await), "Err(ApiTimeout)");
    }
}

#[tokio::test]
async fn a_status_that_decides_does_not_wait_for_its_body() {
    let act = Act::SendAndHang(b"HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\nnot".to_vec());
    let api = FakeApi::always(act).await;
    let client = client_of(&api.base(), Duration::from_secs(10), Log::discard());
    assert_eq!(told(&client.answer(&public()).await), "Ok(No)");
}

#[tokio::test]
async fn connections_are_used_again_after_a_no() {
    let api = FakeApi::always(Act::Send(reply(404, "", &"x".repeat(2000)))).await;
    let client = client_of(&api.base(), Duration::from_secs(20), Log::discard());
    for _ in 0..5 {
        assert_eq!(told(&client.answer(&public()).await), "Ok(No)");
    }
    assert_eq!((api.seen().requests, api.seen().connections), (5, 1));
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_garbage_and_is_not_read_to_its_end() {
    let endless = |chunk: usize, count: usize| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..count {
            bytes.extend_from_slice(format!("{chunk:x}\r\n{}\r\n", " ".repeat(chunk)).as_bytes());
        }
        // Never ended: whoever reads on runs into the deadline.
        Act::SendAndHang(bytes)
    };
    for (question, bytes_max) in [(public(), BODY_BYTES_MAX), (runner(), OBJECT_BYTES_MAX)] {
        let api = FakeApi::always(endless(1024, bytes_max / 1024 + 1)).await;
        assert_eq!(told(&ask(&api, &question).await), "Err(ApiGarbage)");
        assert_eq!(api.seen().requests, 1);
    }
}

#[test]
fn unusable_settings_are_refused_in_words_that_quote_nothing() {
    for base in [
        "",
        "api:3000/api",
        "ftp://api/api",
        "http://canary@api/api",
        "http://u:canary@api/api",
        "http://api/api?canary",
        "http://api/api#canary",
    ] {
        let error = Api::new(base, &Secret::new("k"), Duration::from_secs(1), Log::discard());
        let error = error.err().expect(base);
        assert!(error.contains("DAYTONA_API_URL") && !error.contains("canary"), "{error}");
    }
    for key in ["", "canary\n", "canary key", "canaryü"] {
        let error = Api::new("http://api/api", &Secret::new(key), Duration::from_secs(1), Log::discard());
        let error = error.err().expect("no header value");
        assert!(error.contains("PROXY_API_KEY") && !error.contains("canary"), "{error}");
    }
}

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_shows_in_questions_replies_or_the_log_whatever_goes_wrong() {
    let preview = "canary-preview-token";
    let questions = [
        public(),
        verdict(ProofKind::Bearer, USER),
        verdict(ProofKind::PreviewToken, preview),
        runner(),
        logs_of(BuildLogsOf::Sandbox(id())),
    ];
    let key = r#""apiKey":"canary-runner-key""#;
    let acts = [
        Act::Send(reply(500, "", "canary")),
        Act::Send(reply(302, "Location: http://canary/\r\n", "")),
        Act::Send(reply(429, "Retry-After: 1\r\n", "canary")),
        Act::Send(reply(200, "", "canary")),
        Act::Send(reply(200, "", &format!(r#"{{"proxyUrl":"http://u:canary@h/",{key}}}"#))),
        Act::Send(reply(200, "", &format!(r#"{{"proxyUrl":"https://canary.example/",{key}}}"#))),
        Act::Send(reply(200, "", &format!(r#"{{"proxyUrl":"http://canary.invalid/",{key}}}"#))),
        Act::Send(reply(200, "", &format!(r#"{{"proxyUrl":["canary"],{key}}}"#))),
        Act::Send(reply(200, "", &format!(r#"{{"proxyUrl":"http://127.0.0.1:1/",{key}}}"#))),
        Act::Send(reply(200, "", r#"{"ref":"r","buildInfo":{"snapshotRef":"r"},"runnerId":"canary"}"#)),
        Act::SendAndHang(Vec::new()),
        Act::Reset,
        Act::SendAndClose(b"HTTP/1.1 canary\r\n\r\n".to_vec()),
    ];
    let page = Page::default();
    let writer = LogWriter::spawn("log-test", Box::new(page.clone()), 1024).expect("a thread");
    let mut troubles = 0;
    for act in acts {
        let api = FakeApi::always(act).await;
        for question in &questions {
            // A log of its own, so that no event is held back.
            let log = Log::new(Some(writer.sender()));
            let reply = client_of(&api.base(), Duration::from_millis(700), log).answer(question).await;
            troubles += usize::from(reply.is_err());
            let shown = format!("{question:?} {reply:?}");
            assert!(!shown.contains("canary"), "{shown}");
        }
        // A label nobody has vouched for may be a signed token.
        let label = SandboxId::parse(b"canary-label").expect("an id");
        let proof = ProofKind::Bearer;
        for question in [
            Question::Public(label),
            Question::Verdict { proof, sandbox: label, token: token(USER), client_ip: ip() },
            link(),
        ] {
            let log = Log::new(Some(writer.sender()));
            let reply = client_of(&api.base(), Duration::from_millis(700), log).answer(&question).await;
            troubles += usize::from(reply.is_err());
        }
    }
    assert!(writer.finish(Duration::from_secs(10)));
    let log = String::from_utf8(page.0.lock().expect("no test panics with it").clone()).expect("text");
    assert_eq!(log.lines().count(), troubles, "each trouble is told");
    assert!(troubles > 40, "{troubles}");
    assert!(!log.contains("canary"), "{log}");
}
