//! What lives long ends when the right it was let in by does, and not otherwise.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, ok};
use crate::shared::redis_server::cli;
use crate::shared::{PUBLIC_KEY, World};
use crate::tunnels::{ACCEPT, switching, upgrade};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

const CHANNEL: &str = "sandbox.event.channel";
/// From the event to the end of the connection; a busy machine is given some more than the second that is aimed at.
const SOON: Duration = Duration::from_secs(2);

/// What each connection of the runner saw at its end is sent on: `true`, it was ended.
fn endless_runner() -> (Runner, mpsc::Receiver<bool>) {
    let (told, tell) = mpsc::channel();
    let told = Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let begin = if head.field("Upgrade").is_some() {
            switching(ACCEPT).into_bytes()
        } else if head.target().ends_with("/events") {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n".to_vec()
        } else if head.target().ends_with("/chunks") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n".to_vec()
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegin".to_vec()
        };
        if wire.send(begin).is_err() {
            return;
        }
        if head.field("Upgrade").is_some() {
            // An echo, to see whether it lives.
            while wire.fill().is_ok_and(|n| n > 0) {
                let bytes = wire.take_ahead();
                if wire.send(bytes).is_err() {
                    break;
                }
            }
        } else {
            let _ = wire.rest();
        }
        let _ = told.lock().expect("no thread panics with it").send(true);
    });
    (runner, tell)
}

/// Asks with these further field lines and reads the head of the answer.
fn opened(gate: &Gate, host: &str, request: &str, fields: &str) -> Wire {
    let mut wire = gate.connect();
    let request = request.replace(HOST, host);
    let (line, rest) = request.split_once("\r\n").expect("a request line");
    wire.send(format!("{line}\r\n{fields}{rest}")).expect("the gate reads");
    let head = wire.head().expect("an answer").expect("an answer");
    assert!(matches!(head.status(), 101 | 200), "{head:?}");
    wire
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// A tunnel, a stream, chunks and a download.
fn one_of_each(gate: &Gate, host: &str, fields: &str) -> Vec<Wire> {
    let requests = [upgrade("/ws"), get("/events"), get("/chunks"), get("/download")];
    requests.iter().map(|request| opened(gate, host, request, fields)).collect()
}

/// Each ends, at both its ends.
fn all_end(wires: Vec<Wire>, runner_told: &mpsc::Receiver<bool>, since: Instant) {
    let count = wires.len();
    for mut wire in wires {
        // Its last bytes, if any, and then the end, by a close or a reset.
        let _ = wire.rest();
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    }
    for _ in 0..count {
        assert_eq!(runner_told.recv_timeout(DEADLINE), Ok(true));
    }
}

fn lives(tunnel: &mut Wire) -> bool {
    tunnel.send("ping").is_ok() && tunnel.exactly(4).is_ok_and(|echo| echo == b"ping")
}

fn event(state: &str) -> String {
    format!(r#"{{"sandbox":{{"id":"sb1"}},"oldState":"x","newState":"{state}"}}"#)
}

#[test]
fn what_was_let_in_by_a_public_sandbox_ends_when_it_is_made_private() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    let wires = one_of_each(&world.gate, HOST, "");
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    all_end(wires, &told, Instant::now());
    world.until_metric("preview_revoked_total{reason=\"private\"} 4");
}

#[test]
fn what_was_let_in_by_a_token_ends_when_the_token_is_replaced() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    // A reserved port: the public flag opens nothing there.
    let host = HOST.replace("3000-", "22222-");
    let token = "X-Daytona-Preview-Token: abcdefghijklmnopqrstuvwxyz012345\r\n";
    let wires = one_of_each(&world.gate, &host, token);
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    all_end(wires, &told, Instant::now());
    world.until_metric("preview_revoked_total{reason=\"token\"} 4");
}

#[test]
fn everything_ends_with_its_sandbox_and_nothing_of_another() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    let wires = one_of_each(&world.gate, HOST, "");
    let mut other = opened(&world.gate, &HOST.replace("sb1", "sb2"), &upgrade("/ws"), "");
    cli(world.redis.port, &["publish", CHANNEL, &event("destroyed")]);
    all_end(wires, &told, Instant::now());
    world.until_metric("preview_revoked_total{reason=\"destroyed\"} 4");
    assert!(lives(&mut other));
}

#[test]
fn a_right_that_still_holds_is_left_alone_whatever_changed() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    let mut tunnel = opened(&world.gate, HOST, &upgrade("/ws"), "");
    let asked = world.api.script.questions.load(SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    crate::shared::until(|| world.api.script.questions.load(SeqCst) > asked, "it is asked about again");
    assert!(lives(&mut tunnel));
    assert!(!world.metrics().contains("preview_revoked_total{reason=\"private\"} 1"));
}

#[test]
fn trouble_at_the_api_cuts_nothing_at_once() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    let mut tunnel = opened(&world.gate, HOST, &upgrade("/ws"), "");
    let asked = world.api.script.questions.load(SeqCst);
    world.api.script.status.store(500, SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    crate::shared::until(|| world.api.script.questions.load(SeqCst) > asked + 1, "it is asked twice");
    assert!(lives(&mut tunnel));
}

#[test]
fn without_redis_a_right_is_found_out_again_when_its_time_is_over() {
    let (runner, told) = endless_runner();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("SANDGATE_PUBLIC_TTL_SEC", "1")]);
    let wires = one_of_each(&gate, HOST, "");
    api.script.status.store(404, SeqCst);
    let begun = Instant::now();
    for mut wire in wires {
        let _ = wire.rest();
        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    }
    for _ in 0..4 {
        assert_eq!(told.recv_timeout(DEADLINE), Ok(true));
    }
}

#[test]
fn an_answer_that_took_longer_than_its_right_is_not_shown() {
    let (read, has_read) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let shared = Mutex::new((read, may_go));
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(_)) = wire.message() {
            let (read, may_go) = &*shared.lock().expect("no thread panics with it");
            read.send(()).expect("the test waits");
            let () = may_go.recv_timeout(DEADLINE).expect("the test says when");
            if wire.send(ok("a secret of the sandbox")).is_err() {
                return;
            }
        }
    });
    let world = World::before(runner, &[]);
    let mut wire = world.gate.connect();
    wire.send(get("/slow")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner has it");
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    world.until_metric("preview_push_changes_total 1");
    go.send(()).expect("the runner waits");
    let answer = wire.expect_message().expect("an answer");
    assert_eq!(answer.status(), 401, "{answer:?}");
    assert!(!answer.text().contains("secret"));
}
