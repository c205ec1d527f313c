//! The paths that are not previews: toolbox and build logs.

use crate::harness::{Api, Gate, Message, Runner, ok};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;

fn ask(gate: &Gate, line: &str, host: &str, fields: &str) -> Message {
    let mut wire = gate.connect();
    wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

const TOKEN: &str = "X-Daytona-Preview-Token: tok\r\n";
const BEARER: &str = "Authorization: Bearer users-own-key\r\nX-Forwarded-For: 192.0.2.1\r\n";

#[test]
fn a_redirect_within_the_toolbox_gets_its_prefix_and_any_other_stays_as_it_is() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let location = request.field("X-Location").unwrap_or_default().to_owned();
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            if wire.send(answer).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for (sent, passed) in [
        ("/files", "/toolbox/sb1/files"),
        ("/", "/toolbox/sb1/"),
        ("/a?b=/c", "/toolbox/sb1/a?b=/c"),
        ("/toolbox/sb1/done", "/toolbox/sb1/done"),
        ("/toolbox/sb1x", "/toolbox/sb1/toolbox/sb1x"),
        ("https://elsewhere.example/a", "https://elsewhere.example/a"),
        ("//elsewhere.example/a", "//elsewhere.example/a"),
        ("/\\elsewhere.example", "/\\elsewhere.example"),
        ("relative", "relative"),
        ("", ""),
    ] {
        let fields = format!("{TOKEN}X-Location: {sent}\r\n");
        let answer = ask(&gate, "GET /toolbox/sb1/x", "preview.test", &fields);
        assert_eq!(answer.field("Location"), Some(passed), "{sent}");
        let preview = ask(&gate, "GET /x", "3000-sb1.preview.test", &fields);
        assert_eq!(preview.field("Location"), Some(sent), "a preview's is the app's");
    }
}

#[test]
fn the_toolbox_is_there_without_a_slash_and_never_sends_anybody_to_log_in() {
    let gate = Gate::start(&Api::start(Runner::echo().addr), &[]);
    let answer = ask(&gate, "GET /toolbox/sb1", "preview.test", TOKEN);
    assert!(answer.text().ends_with("/sandboxes/sb1/toolbox/"), "{answer:?}");
    let answer = ask(&gate, "GET /toolbox/sb1?a=1", "preview.test", TOKEN);
    assert!(answer.text().ends_with("/sandboxes/sb1/toolbox/?a=1"), "{answer:?}");
    let navigation = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nAccept: text/html\r\n";
    assert_eq!(ask(&gate, "GET /toolbox/sb1/x", "preview.test", navigation).status(), 401);
}

#[test]
fn in_toolbox_only_mode_previews_of_other_ports_do_not_exist() {
    let api = Api::start(Runner::echo().addr);
    let gate = Gate::start(&api, &[("TOOLBOX_ONLY_MODE", "true")]);
    assert_eq!(ask(&gate, "GET /", "3000-sb1.preview.test", TOKEN).status(), 404);
    assert_eq!(ask(&gate, "GET /", "22222-sb1.preview.test", TOKEN).status(), 404);
    assert_eq!(api.script.questions.load(SeqCst), 0);
    assert_eq!(ask(&gate, "GET /", "2280-sb1.preview.test", TOKEN).status(), 200);
    assert_eq!(ask(&gate, "GET /toolbox/sb1/files", "preview.test", TOKEN).status(), 200);
    assert_eq!(ask(&gate, "GET /health", "preview.test", "").status(), 200);
}

/// An API that knows one build and its runner.
fn api_with_builds(runner: &Runner) -> Api {
    let api = Api::start(runner.addr);
    let build = r#"{"id":"sb1","buildInfo":{"snapshotRef":"reg/snap:1&x"},"runnerId":"11111111-1111-4111-8111-111111111111"}"#;
    api.script.reply("/api/sandbox/sb1", 200, build);
    api.script.reply(
        "/api/snapshots/snap1",
        200,
        r#"{"id":"snap1","ref":"reg/snap:2","initialRunnerId":"11111111-1111-4111-8111-111111111111"}"#,
    );
    api.script.reply("/api/sandbox/norunner", 200, r#"{"buildInfo":{"snapshotRef":"r"},"runnerId":null}"#);
    api.script.reply("/api/snapshots/norunner", 200, r#"{"ref":"r","initialRunnerId":null}"#);
    api.script.reply(
        "/api/sandbox/nobuild",
        200,
        r#"{"buildInfo":null,"runnerId":"11111111-1111-4111-8111-111111111111"}"#,
    );
    for status in [401, 403, 404, 429, 500] {
        api.script.reply(&format!("/api/sandbox/s{status}"), status, "{}");
    }
    let runner = format!(r#"{{"apiUrl":"http://{}","proxyUrl":null,"apiKey":"runner-key"}}"#, runner.addr);
    api.script.reply("/api/runners/11111111-1111-4111-8111-111111111111/full", 200, &runner);
    api
}

#[test]
fn build_logs_are_looked_up_with_the_callers_own_key_and_fetched_by_their_own_reference() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let key = request.field("X-Daytona-Authorization").unwrap_or("none").to_owned();
            let own = request.field("Authorization").unwrap_or("stripped").to_owned();
            if wire.send(ok(&format!("{} {key} {own}", request.target()))).is_err() {
                return;
            }
        }
    });
    let api = api_with_builds(&runner);
    let gate = Gate::start(&api, &[]);
    for (path, target) in [
        ("/sandboxes/sb1/build-logs", "/snapshots/logs?snapshotRef=reg%2Fsnap%3A1%26x"),
        (
            "/sandboxes/sb1/build-logs?follow=true",
            "/snapshots/logs?snapshotRef=reg%2Fsnap%3A1%26x&follow=true",
        ),
        ("/snapshots/snap1/build-logs", "/snapshots/logs?snapshotRef=reg%2Fsnap%3A2"),
        (
            "/snapshots/snap1/build-logs?snapshotRef=stolen&follow=true&snapshotRef=stolen",
            "/snapshots/logs?snapshotRef=reg%2Fsnap%3A2&follow=true",
        ),
    ] {
        let answer = ask(&gate, &format!("GET {path}"), "preview.test", BEARER);
        assert_eq!(answer.text(), format!("{target} Bearer runner-key stripped"), "{path}");
    }
    let asked = api.script.asked("/api/sandbox/sb1");
    assert_eq!(asked[0].field("Authorization"), Some("Bearer users-own-key"));
    assert_eq!(asked[0].field("X-Forwarded-For"), Some("127.0.0.1"));
    let asked = api.script.asked("/api/runners/11111111-1111-4111-8111-111111111111/full");
    assert_eq!(asked[0].field("Authorization"), Some("Bearer a-key-of-this-test-and-of-nothing-else"));
    // A log is no use of the sandbox.
    assert!(api.script.asked("/last-activity").is_empty());
}

#[test]
fn why_there_is_no_build_log_is_told_by_cause() {
    let runner = Runner::echo();
    let gate = Gate::start(&api_with_builds(&runner), &[]);
    for (path, fields, status, code) in [
        ("/sandboxes/sb1/build-logs", "", 401, "AUTH_REQUIRED"),
        ("/sandboxes/sb1/build-logs", TOKEN, 401, "AUTH_REQUIRED"),
        ("/sandboxes/s401/build-logs", BEARER, 401, "AUTH_INVALID"),
        ("/sandboxes/s403/build-logs", BEARER, 404, "NOT_FOUND"),
        ("/sandboxes/s404/build-logs", BEARER, 404, "NOT_FOUND"),
        ("/sandboxes/s429/build-logs", BEARER, 429, "RATE_LIMITED"),
        ("/sandboxes/s500/build-logs", BEARER, 502, "CONTROL_PLANE_ERROR"),
        ("/sandboxes/norunner/build-logs", BEARER, 404, "NOT_FOUND"),
        ("/snapshots/norunner/build-logs", BEARER, 404, "NOT_FOUND"),
        ("/sandboxes/nobuild/build-logs", BEARER, 404, "NOT_FOUND"),
    ] {
        let answer = ask(&gate, &format!("GET {path}"), "preview.test", fields);
        assert_eq!(answer.status(), status, "{path}: {answer:?}");
        assert!(answer.has_code(code), "{path}: {answer:?}");
    }
    assert!(runner.received().is_empty());
}

#[test]
fn a_followed_log_comes_line_by_line_and_ends_at_the_runner_when_the_client_leaves() {
    let (told, tell) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(_)) = wire.message() else { return };
        wire.send(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .expect("the gate reads");
        wire.send("6\r\nline 1\r\n").expect("the gate reads");
        told.lock()
            .expect("one connection")
            .send(wire.rest().is_ok() || wire.is_over())
            .expect("the test waits");
    });
    let gate = Gate::start(&api_with_builds(&runner), &[]);
    let mut wire = gate.connect();
    wire.send(format!(
        "GET /sandboxes/sb1/build-logs?follow=true HTTP/1.1\r\nHost: preview.test\r\n{BEARER}\r\n"
    ))
    .expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 200);
    assert_eq!(wire.exactly(11).expect("the first line"), b"6\r\nline 1\r\n");
    drop(wire);
    tell.recv_timeout(crate::harness::DEADLINE).expect("the runner sees the end");
}
