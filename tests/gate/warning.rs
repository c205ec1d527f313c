//! The page before a preview: for people, once, and not to be clicked away by anyone else.

use crate::harness::{Api, Gate, HOST, Message, Runner};
use std::sync::atomic::Ordering::SeqCst;

const NAVIGATION: &str = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nAccept: text/html\r\n";
const ON: (&str, &str) = ("PREVIEW_WARNING_ENABLED", "true");

fn ask(gate: &Gate, line: &str, host: &str, fields: &str) -> Message {
    let mut wire = gate.connect();
    wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

fn is_page(answer: &Message) -> bool {
    answer.text().contains("action=\"/accept-daytona-preview-warning?redirect=")
}

#[test]
fn a_person_is_asked_once_and_comes_back_to_where_the_page_stood() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[ON]);
    let page = ask(&gate, "GET /deep/path?a=1&b=2", HOST, NAVIGATION);
    assert!(is_page(&page), "{page:?}");
    let policy = page.field("Content-Security-Policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.field("Cache-Control"), Some("no-store"));
    // Nobody was asked for it.
    assert_eq!(api.script.questions.load(SeqCst), 0);
    assert!(runner.received().is_empty());

    let text = page.text();
    let action = text.split("action=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form");
    let sent =
        ask(&gate, &format!("POST {action}"), HOST, "Sec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n");
    assert_eq!((sent.status(), sent.field("Location")), (303, Some("/deep/path?a=1&b=2")), "{sent:?}");
    let cookie = sent.field("Set-Cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
    let back = ask(&gate, "GET /deep/path?a=1&b=2", HOST, &format!("{NAVIGATION}Cookie: x=1; {cookie}\r\n"));
    assert!(back.text().ends_with("/deep/path?a=1&b=2"), "{back:?}");
}

#[test]
fn programs_scripts_frames_and_sockets_are_not_asked() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[ON]);
    for fields in [
        "User-Agent: curl/8\r\nAccept: */*\r\n",
        "User-Agent: Mozilla/5.0\r\nAccept: text/html\r\n",
        "Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nAccept: text/html\r\n",
        "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\nAccept: text/html\r\n",
        &format!("{NAVIGATION}X-Daytona-Skip-Preview-Warning: true\r\n"),
    ] {
        let answer = ask(&gate, "GET /app", HOST, fields);
        assert!(answer.status() == 200 && !is_page(&answer), "{fields}: {answer:?}");
    }
    let key = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert!(!is_page(&ask(&gate, "GET /ws", HOST, &format!("{NAVIGATION}{key}"))));
    let token = "X-Daytona-Preview-Token: tok\r\n";
    let toolbox = ask(&gate, "GET /toolbox/sb1/files", "preview.test", &format!("{NAVIGATION}{token}"));
    assert!(toolbox.status() == 200 && !is_page(&toolbox), "{toolbox:?}");
}

#[test]
fn a_form_of_another_page_sets_no_cookie_and_a_redirect_stays_on_this_host() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[ON]);
    let accept = |query: &str, fields: &str| {
        ask(
            &gate,
            &format!("POST /accept-daytona-preview-warning{query}"),
            HOST,
            &format!("{fields}Content-Length: 0\r\n"),
        )
    };
    for fields in ["", "Sec-Fetch-Site: same-site\r\n", "Origin: http://3000-sb2.preview.test\r\n"] {
        let answer = accept("?redirect=/", fields);
        assert_eq!(answer.status(), 403, "{fields}: {answer:?}");
        assert!(answer.field("Set-Cookie").is_none());
    }
    for query in ["?redirect=https://evil.test/", "?redirect=//evil.test", "?redirect=/%5Cevil.test", ""] {
        let answer = accept(query, "Sec-Fetch-Site: same-origin\r\n");
        assert_eq!((answer.status(), answer.field("Location")), (303, Some("/")), "{query}");
    }
    // Its GET is the app's.
    let answer = ask(&gate, "GET /accept-daytona-preview-warning?redirect=/", HOST, "");
    assert!(answer.text().ends_with("/accept-daytona-preview-warning?redirect=/"), "{answer:?}");
}

#[test]
fn switched_off_nobody_is_asked() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    assert!(!is_page(&ask(&gate, "GET /", HOST, NAVIGATION)));
}
