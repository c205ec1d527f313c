//! Reports that a sandbox is in use: made for what keeps it running, and only for that.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, ok};
use crate::tunnels::{ACCEPT, switching, upgrade};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

const REPORT: &str = "/api/sandbox/sb1/last-activity";
/// Reports a second apart, so that a test sees several.
const QUICK: (&str, &str) = ("SANDGATE_ACTIVITY_INTERVAL_SEC", "1");

#[test]
fn a_burst_of_requests_is_one_report_with_the_gates_key_and_the_client_needs_not_wait_for_it() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    // Never answered: the requests below must not notice.
    api.script.activity_status.store(0, SeqCst);
    let gate = Gate::start(&api, &[("SANDGATE_SHARDS", "2")]);
    for _ in 0..20 {
        assert_eq!(gate.get("/").expect("an answer").status(), 200);
    }
    let reports = api.script.wait_for(REPORT, 1);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].first, format!("POST {REPORT} HTTP/1.1"));
    assert_eq!(reports[0].field("Authorization"), Some("Bearer a-key-of-this-test-and-of-nothing-else"));
}

#[test]
fn a_request_that_says_so_is_not_reported_and_the_word_does_not_reach_the_app() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let told = request.field("X-Daytona-Skip-Last-Activity-Update").unwrap_or("nothing");
            if wire.send(ok(told)).is_err() {
                return;
            }
        }
    });
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[]);
    let ask = |value: &str| {
        let mut wire = gate.connect();
        wire.send(format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Daytona-Skip-Last-Activity-Update: {value}\r\n\r\n"
        ))
        .expect("the gate reads");
        wire.expect_message().expect("an answer").text()
    };
    assert_eq!(ask("true"), "nothing");
    // One that is reported, and with it everything before: mentions are taken in order.
    assert_eq!(ask("false"), "nothing");
    let reports = api.script.wait_for(REPORT, 1);
    assert_eq!(reports.len(), 1, "{reports:?}");
}

#[test]
fn without_anonymous_activity_only_a_proof_is_reported() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("SANDGATE_ANONYMOUS_ACTIVITY", "false")]);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    let mut wire = gate.connect();
    wire.send("GET / HTTP/1.1\r\nHost: 2280-sb2.preview.test\r\nX-Daytona-Preview-Token: tok\r\n\r\n")
        .expect("the gate reads");
    assert_eq!(wire.expect_message().expect("an answer").status(), 200);
    api.script.wait_for("/api/sandbox/sb2/last-activity", 1);
    assert!(api.script.asked(REPORT).is_empty());
}

#[test]
fn a_request_that_waits_is_reported_again_and_again_and_after_its_end_no_more() {
    let (go, may_go) = mpsc::channel();
    let may_go = std::sync::Mutex::new(may_go);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(_)) = wire.message() else { return };
        let _ = may_go.lock().expect("one connection").recv_timeout(DEADLINE);
        let _ = wire.send(ok("done"));
        let _ = wire.rest();
    });
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[QUICK]);
    let mut wire = gate.connect();
    wire.send(format!("POST /run HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"))
        .expect("the gate reads");
    api.script.wait_for(REPORT, 3);
    go.send(()).expect("the runner waits");
    assert_eq!(wire.expect_message().expect("an answer").status(), 200);
    assert_quiet(&api);
}

#[test]
fn a_client_that_leaves_at_once_has_been_reported() {
    let runner = Runner::start(|mut wire, _| drop(wire.rest()));
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[]);
    let mut wire = gate.connect();
    wire.send(format!("GET /gone HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    wire.reset();
    api.script.wait_for(REPORT, 1);
}

#[test]
fn a_report_the_api_could_not_take_is_made_again() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    api.script.activity_status.store(503, SeqCst);
    let gate = Gate::start(&api, &[]);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    api.script.wait_for(REPORT, 3);
}

fn tunnel_runner() -> Runner {
    Runner::start(|mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send(switching(ACCEPT)).expect("the gate reads");
        let _ = wire.rest();
    })
}

fn open_tunnel(gate: &Gate) -> Wire {
    let mut wire = gate.connect();
    wire.send(upgrade("/ws")).expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
    wire
}

#[test]
fn a_tunnel_counts_while_bytes_move_and_not_while_it_idles() {
    let runner = tunnel_runner();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[QUICK]);
    let mut wire = open_tunnel(&gate);
    let begun = std::time::Instant::now();
    while api.script.asked(REPORT).len() < 3 {
        assert!(begun.elapsed() < DEADLINE, "no report for a busy tunnel");
        wire.send("x").expect("the gate reads");
        std::thread::yield_now();
    }
    assert_quiet(&api);
    // It lives all the same.
    wire.send("x").expect("the gate reads");
    let reports = api.script.asked(REPORT).len();
    api.script.wait_for(REPORT, reports + 1);
}

#[test]
fn being_open_is_enough_where_so_configured() {
    let runner = tunnel_runner();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[QUICK, ("SANDGATE_TUNNEL_ACTIVITY_BYTES", "0")]);
    let _wire = open_tunnel(&gate);
    api.script.wait_for(REPORT, 3);
}

/// No report in two intervals, once what was mentioned before is through.
fn assert_quiet(api: &Api) {
    std::thread::sleep(Duration::from_millis(1500));
    let before = api.script.asked(REPORT).len();
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(api.script.asked(REPORT).len(), before, "reported without being used");
}
