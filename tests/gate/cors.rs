//! Pages of other origins: what they may send and read, without a question to anybody.

use crate::harness::{Api, Gate, HOST, Message, Runner};
use std::sync::atomic::Ordering::SeqCst;

/// An app that says itself who may read it, twice over at `/own`.
fn app() -> Runner {
    Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let fields = if request.target().ends_with("/own") {
                "Access-Control-Allow-Origin: https://mine.example\r\nAccess-Control-Allow-Origin: *\r\n\
                 Access-Control-Expose-Headers: x-mine\r\n"
            } else {
                ""
            };
            let told = request.field("X-Daytona-Disable-CORS").unwrap_or("stripped");
            let body = format!("{} {told}", request.first.split(' ').next().unwrap_or_default());
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{body}");
            if wire.send(answer).is_err() {
                return;
            }
        }
    })
}

fn ask(gate: &Gate, line: &str, host: &str, fields: &str) -> Message {
    let mut wire = gate.connect();
    wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

fn values<'a>(message: &'a Message, name: &str) -> Vec<&'a str> {
    message.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
}

const PAGE: &str = "Origin: https://app.example\r\n";
const ORIGIN: &str = "Access-Control-Allow-Origin";
const CREDENTIALS: &str = "Access-Control-Allow-Credentials";

#[test]
fn a_preflight_is_answered_without_api_and_runner_and_the_connection_goes_on() {
    let runner = app();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[]);
    let mut wire = gate.connect();
    for host in [HOST, "2280-sb1.preview.test", "proxy.test"] {
        wire.send(format!(
            "OPTIONS /toolbox/sb1/files HTTP/1.1\r\nHost: {host}\r\n{PAGE}Access-Control-Request-Method: PUT\r\n\
             Access-Control-Request-Headers: authorization, x-daytona-preview-token\r\n\r\n"
        ))
        .expect("the gate reads");
        let answer = wire.expect_message().expect("an answer");
        assert_eq!(answer.status(), 204, "{answer:?}");
        assert_eq!(values(&answer, ORIGIN), ["https://app.example"]);
        assert_eq!(
            values(&answer, "Access-Control-Allow-Headers"),
            ["authorization, x-daytona-preview-token"]
        );
        assert!(answer.field("Content-Length").is_none(), "{answer:?}");
    }
    assert_eq!(api.script.questions.load(SeqCst), 0);
    assert!(runner.received().is_empty());
}

#[test]
fn the_apps_own_word_counts_once_and_where_it_says_nothing_every_origin_may_read() {
    let runner = app();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let own = ask(&gate, "GET /own", HOST, PAGE);
    assert_eq!(values(&own, ORIGIN), ["https://mine.example"]);
    assert_eq!(values(&own, "Access-Control-Expose-Headers"), ["x-mine"]);
    let silent = ask(&gate, "GET /", HOST, PAGE);
    assert_eq!(values(&silent, ORIGIN), ["https://app.example"]);
    assert_eq!(values(&silent, "Vary"), ["Origin"]);
    assert_eq!(values(&silent, CREDENTIALS), [""; 0]);
    // Not a preflight: the app's.
    let options = ask(&gate, "OPTIONS /", HOST, PAGE);
    assert_eq!((options.status(), options.text().as_str()), (200, "OPTIONS stripped"));
    for fields in ["", &format!("Origin: http://{HOST}\r\n")] {
        assert_eq!(values(&ask(&gate, "GET /", HOST, fields), ORIGIN), [""; 0], "{fields}");
    }
}

#[test]
fn pages_of_the_same_sandbox_get_credentials_and_those_of_another_do_not() {
    let runner = app();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let asks = "Access-Control-Request-Method: PUT\r\n";
    for (host, line, origin, preflight, answer) in [
        (HOST, "/", "http://8080-sb1.preview.test", true, true),
        (HOST, "/", "http://8080-sb2.preview.test", false, false),
        // The label of this sandbox under somebody else's domain.
        (HOST, "/", "http://8080-sb1.evil.test", true, false),
        (HOST, "/", "https://app.example", true, false),
        ("preview.test", "/toolbox/sb1/x", "http://8080-sb1.preview.test", true, true),
        ("preview.test", "/toolbox/sb1/x", "http://8080-sb2.preview.test", false, false),
    ] {
        let page = format!("Origin: {origin}\r\n");
        let asked = ask(&gate, &format!("OPTIONS {line}"), host, &format!("{page}{asks}"));
        assert_eq!(asked.status(), 204);
        assert_eq!(
            values(&asked, CREDENTIALS).len(),
            usize::from(preflight),
            "{host} from {origin}: {asked:?}"
        );
        let token = "X-Daytona-Preview-Token: tok\r\n";
        let got = ask(&gate, &format!("GET {line}"), host, &format!("{page}{token}"));
        assert_eq!(got.status(), 200);
        assert_eq!(values(&got, ORIGIN), [origin]);
        assert_eq!(values(&got, CREDENTIALS).len(), usize::from(answer), "{host} from {origin}: {got:?}");
    }
}

#[test]
fn a_refusal_can_be_read_too() {
    let runner = app();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let answer = ask(&gate, "GET /", "2280-sb1.preview.test", PAGE);
    assert_eq!(answer.status(), 401);
    assert_eq!(values(&answer, ORIGIN), ["https://app.example"]);
    assert!(
        answer.field("Access-Control-Expose-Headers").is_some_and(|v| v.contains("X-Preview-Error-Code"))
    );
}

#[test]
fn disabled_by_the_request_or_the_operator_all_of_it_is_the_apps() {
    let runner = app();
    let api = Api::start(runner.addr);
    let asks = "Access-Control-Request-Method: PUT\r\n";
    let off = "X-Daytona-Disable-CORS: true\r\n";
    let by_request = Gate::start(&api, &[]);
    let by_operator = Gate::start(&api, &[("SANDGATE_CORS", "passthru")]);
    for (gate, extra) in [(&by_request, off), (&by_operator, "")] {
        let preflight = ask(gate, "OPTIONS /", HOST, &format!("{PAGE}{asks}{extra}"));
        assert_eq!((preflight.status(), preflight.text().as_str()), (200, "OPTIONS stripped"));
        let answer = ask(gate, "GET /", HOST, &format!("{PAGE}{extra}"));
        assert_eq!(values(&answer, ORIGIN), [""; 0]);
    }
}

#[test]
fn simple_is_v0190s_way_without_its_doubled_fields() {
    let runner = app();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CORS", "simple")]);
    assert_eq!(ask(&gate, "OPTIONS /", HOST, PAGE).status(), 204);
    let answer = ask(&gate, "GET /own", HOST, PAGE);
    assert_eq!(values(&answer, ORIGIN), ["https://app.example"]);
    assert_eq!(values(&answer, CREDENTIALS), ["true"]);
}
