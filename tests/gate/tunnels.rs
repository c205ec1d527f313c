//! Upgrades: bytes to the byte both ways, half-closes, and answers that are no upgrade.

use crate::harness::{Api, Gate, HOST, Runner, Wire, ok};
use std::sync::mpsc;
use std::time::Duration;

/// The example of RFC 6455 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

pub fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

fn gate_before(behave: impl Fn(Wire, usize) + Send + Sync + 'static) -> (Runner, Gate) {
    let runner = Runner::start(behave);
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    (runner, gate)
}

#[test]
fn a_tunnel_may_be_silent_for_longer_than_a_body() {
    let (told, tell) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send(switching(ACCEPT)).expect("the gate reads");
        // Four times as long as a body might stand still; an end would be told at once.
        wire.stream.set_read_timeout(Some(Duration::from_millis(1200))).expect("not zero");
        let silence = wire.fill().map_err(|error| error.kind());
        wire.stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("not zero");
        wire.send("down").expect("the gate reads");
        let up = wire.exactly(2).expect("bytes of the tunnel");
        told.lock().expect("one connection").send((silence, up)).expect("the test waits");
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CLIENT_STALL_MS", "300")]);
    let mut wire = gate.connect();
    wire.send(upgrade("/ws")).expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
    assert_eq!(wire.exactly(4).expect("bytes of the tunnel"), b"down");
    wire.send("up").expect("the gate reads");
    let (silence, up) = tell.recv_timeout(crate::harness::DEADLINE).expect("the runner is done");
    assert_eq!(silence, Err(std::io::ErrorKind::WouldBlock), "the tunnel was ended");
    assert_eq!(up, b"up");
    gate.check(&runner);
}

#[test]
fn bytes_sent_before_the_switch_arrive_after_it_and_bytes_glued_to_it_are_kept() {
    let (told, tell) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let (runner, gate) = gate_before(move |mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        // Nothing of the early bytes may be here yet: the gate must not send them before the 101.
        wire.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("not zero");
        let early = wire.fill().map_err(|error| error.kind());
        wire.stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("not zero");
        wire.send(switching(ACCEPT) + "glued").expect("the gate reads");
        let first = wire.exactly(5).expect("the early bytes");
        wire.send("down").expect("the gate reads");
        let second = wire.exactly(2).expect("bytes of the tunnel");
        told.lock().expect("one connection").send((early, first, second)).expect("the test waits");
    });
    let mut wire = gate.connect();
    wire.send(upgrade("/ws") + "early").expect("the gate reads");
    let head = wire.head().expect("an answer").expect("an answer");
    assert_eq!(head.status(), 101, "{head:?}");
    assert_eq!(head.field("Sec-WebSocket-Accept"), Some(ACCEPT));
    assert_eq!(wire.exactly(9).expect("bytes of the tunnel"), b"glueddown");
    wire.send("up").expect("the gate reads");
    let (early, first, second) = tell.recv_timeout(crate::harness::DEADLINE).expect("the runner is done");
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock), "bytes before the switch");
    assert_eq!((first.as_slice(), second.as_slice()), (&b"early"[..], &b"up"[..]));
    assert!(wire.is_over(), "the runner's end is passed on");
    gate.check(&runner);
}

#[test]
fn a_half_close_passes_each_way_and_leaves_the_other_way_open() {
    let (told, tell) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let (runner, gate) = gate_before(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        wire.send(switching(ACCEPT)).expect("the gate reads");
        if head.target().ends_with("/client-first") {
            let all = wire.rest().expect("the client's end");
            wire.send([b"got ", all.as_slice()].concat()).expect("the gate reads");
        } else {
            wire.send("last words").expect("the gate reads");
            wire.end_writing();
            let all = wire.rest().map_err(|error| error.kind());
            told.lock().expect("no thread panics with it").send(all).expect("the test waits");
        }
    });
    let mut wire = gate.connect();
    wire.send(upgrade("/client-first")).expect("the gate reads");
    wire.head().expect("an answer").expect("an answer");
    wire.send("all of it").expect("the gate reads");
    wire.end_writing();
    assert_eq!(wire.rest().expect("the runner's answer"), b"got all of it");

    let mut wire = gate.connect();
    wire.send(upgrade("/runner-first")).expect("the gate reads");
    wire.head().expect("an answer").expect("an answer");
    assert_eq!(wire.rest().expect("the runner's words"), b"last words");
    assert_eq!(gate.metric("preview_ws_half_closed"), 1);
    wire.send("still here").expect("this way is open");
    wire.end_writing();
    let all = tell.recv_timeout(crate::harness::DEADLINE).expect("the runner sees the client's end");
    assert_eq!(all, Ok(b"still here".to_vec()));
    gate.await_metric("preview_ws_half_closed", 0);
    gate.check(&runner);
}

#[test]
fn a_switch_that_was_not_asked_for_or_not_proved_is_a_bad_gateway() {
    let (runner, gate) = gate_before(|mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let accept = if head.target().ends_with("/wrong") { "AAAAAAAAAAAAAAAAAAAAAAAAAAA=" } else { ACCEPT };
        wire.send(switching(accept)).expect("the gate reads");
        // Held open: the gate decides from the head alone.
        let _ = wire.rest();
    });
    let mut wire = gate.connect();
    wire.send(upgrade("/wrong")).expect("the gate reads");
    assert_eq!(wire.expect_message().expect("an answer").status(), 502);
    assert_eq!(gate.get("/plain").expect("an answer").status(), 502);
    gate.check(&runner);
}

#[test]
fn an_upgrade_to_h2c_is_not_passed_on() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(head)) = wire.message() {
            let asked = head.field("Upgrade").is_some()
                || head.field("HTTP2-Settings").is_some()
                || head.field("Connection").is_some_and(|v| v.to_ascii_lowercase().contains("upgrade"));
            wire.send(ok(if asked { "asked" } else { "stripped" })).expect("the gate reads");
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    wire.send(format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
    ))
    .expect("the gate reads");
    assert_eq!(wire.expect_message().expect("an answer").text(), "stripped");
    gate.check(&runner);
}

#[test]
fn a_thousand_idle_tunnels_hold_no_kernel_worker() {
    const TUNNELS: usize = 1000;
    // Three descriptors per tunnel stand in this process.
    if let Ok(limit) = rlimit() {
        assert!(limit > 3 * TUNNELS as u64, "the test needs more descriptors than {limit}");
    }
    let (runner, gate) = gate_before(|mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send(switching(ACCEPT)).expect("the gate reads");
        wire.stream.set_read_timeout(None).expect("no timeout");
        let _ = wire.rest();
    });
    let tunnels: Vec<Wire> = (0..TUNNELS)
        .map(|_| {
            let mut wire = gate.connect();
            wire.send(upgrade("/idle")).expect("the gate reads");
            assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
            wire
        })
        .collect();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gate.child.id())).expect("it runs");
    let names: Vec<String> =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect();
    assert!(!names.is_empty());
    let workers = names.iter().filter(|name| name.starts_with("iou-wrk")).count();
    assert_eq!(workers, 0, "{names:?}");
    assert_eq!(tunnels.len(), TUNNELS);
    gate.check(&runner);
}

/// How many sockets the largest of the gate's epoll sets holds.
fn set_of(gate: &Gate) -> usize {
    let infos = std::fs::read_dir(format!("/proc/{}/fdinfo", gate.child.id())).expect("it runs");
    let infos = infos.filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok());
    infos.map(|info| info.lines().filter(|line| line.starts_with("tfd:")).count()).max().expect("open")
}

#[test]
fn tunnels_that_are_many_speak_end_and_break_each_for_itself() {
    const TUNNELS: usize = 60;
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send(switching(ACCEPT)).expect("the gate reads");
        // Says everything back, and in the end that it was the end.
        while let Ok(byte) = wire.exactly(1) {
            if wire.send(byte).is_err() {
                return;
            }
        }
        let _ = wire.send("!");
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_SHARDS", "1")]);
    let mut tunnels: Vec<Wire> = (0..TUNNELS)
        .map(|_| {
            let mut wire = gate.connect();
            wire.send(upgrade("/many")).expect("the gate reads");
            assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
            wire
        })
        .collect();
    for round in 0..20_u8 {
        let words: Vec<Vec<u8>> = (0..tunnels.len()).map(|n| vec![round, n as u8, b'w', b's']).collect();
        for (wire, word) in tunnels.iter_mut().zip(&words) {
            wire.send(word).expect("the gate reads");
        }
        for (n, (wire, word)) in tunnels.iter_mut().zip(&words).enumerate() {
            assert_eq!(&wire.exactly(4).expect("an echo"), word, "round {round}, tunnel {n}");
        }
        match round {
            // In the midst of the others'.
            5 => tunnels.remove(30).reset(),
            10 => {
                let mut wire = tunnels.remove(20);
                wire.send("the last of it").expect("the gate reads");
                wire.end_writing();
                assert_eq!(wire.rest().expect("all, and the runner's end"), b"the last of it!");
            }
            _ => {}
        }
    }
    gate.await_metric("preview_ws_open", tunnels.len() as u64);
    assert!(set_of(&gate) >= 2 * (tunnels.len() - 16), "waited for by the ring");
    for wire in &tunnels {
        wire.end_writing();
    }
    for (n, wire) in tunnels.iter_mut().enumerate() {
        assert_eq!(wire.rest().expect("the runner's end"), b"!", "tunnel {n}");
    }
    gate.await_metric("preview_ws_open", 0);
    gate.check(&runner);
}

/// Raised to the hard one.
fn rlimit() -> Result<u64, ()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, the soft limit stays and counts.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.ok_or(())
}
