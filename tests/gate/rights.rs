//! Whose right it is and on whose account it goes, in the moments where that is easily got wrong.

use crate::harness::{Api, DEADLINE, Gate, HOST, Message, Runner, Wire, ok};
use crate::shared::redis_server::cli;
use crate::shared::{API_MEMORY, PUBLIC_KEY, World, until};
use crate::tunnels::{ACCEPT, switching, upgrade};
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn get(wire: &mut Wire, host: &str, fields: &str) -> Message {
    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

#[test]
fn a_gate_that_begins_right_after_a_change_puts_nothing_old_into_redis() {
    for _ in 0..3 {
        let begun = Instant::now();
        let world = World::just_begun(Runner::echo(), &[]);
        // Made private a moment ago, which nobody was there to hear: the API still says what it remembers.
        let first = world.gate.get("/").expect("an answer").status();
        let stored = cli(world.redis.port, &["exists", PUBLIC_KEY]);
        if begun.elapsed() > API_MEMORY {
            // Too slow a machine to be sure that it was still in doubt.
            continue;
        }
        assert_eq!((first, stored.as_str()), (200, "0"), "for gates and hours to come");
        world.api.script.reply("/api/preview/sb1/public", 404, "{}");
        until(|| world.gate.get("/").expect("an answer").status() == 401, "it is asked about again");
        return;
    }
    panic!("a gate takes more than {API_MEMORY:?} to start here");
}

#[test]
fn an_upload_let_in_before_a_change_does_not_reach_the_app_after_it() {
    let runner = Runner::echo();
    let world = World::before(runner, &[]);
    let script = &world.api.script;
    script.hold(Some("/by-sandbox/sb1"));
    let mut wire = world.gate.connect();
    wire.send(format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n"
    ))
    .expect("the gate reads");
    script.wait_for("/by-sandbox/sb1", 1);
    script.reply("/api/preview/sb1/public", 404, "{}");
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    world.until_metric("preview_push_changes_total 1");
    script.hold(None);
    let answer = wire.expect_message().expect("an answer");
    assert!(answer.has_code("AUTH_REQUIRED"), "{answer:?}");
    let received = world.runner.received().concat();
    assert!(!received.windows(6).any(|w| w == b"secret"), "{}", String::from_utf8_lossy(&received));
}

#[test]
fn an_app_cannot_hide_a_stream_behind_what_looks_like_its_end() {
    let (told, tell) = mpsc::channel();
    let told = Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        if !matches!(wire.message(), Ok(Some(_))) {
            return;
        }
        let begin = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nbegin0\r\n\r\n";
        if wire.send(begin).is_ok() {
            let _ = wire.rest();
            let _ = told.lock().expect("no thread panics with it").send(());
        }
    });
    let world = World::before(runner, &[]);
    let mut wire = world.gate.connect();
    wire.send(format!("GET /stream HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 200);
    world.api.script.reply("/api/preview/sb1/public", 404, "{}");
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    tell.recv_timeout(DEADLINE).expect("it ends with its right");
    world.until_metric("preview_revoked_total{reason=\"private\"} 1");
}

#[test]
fn what_ended_one_request_is_not_told_of_the_next_one_on_its_connection() {
    let runner = Runner::start(|mut wire, number| {
        let _ = wire.message();
        if number == 0 {
            // Until the gate has had enough.
            let _ = wire.rest();
        }
    });
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "300")]);
    let mut wire = gate.connect();
    // Both at once, so that the connection is not idle between them.
    let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n");
    wire.send(post.repeat(2)).expect("the gate reads");
    for code in ["UPSTREAM_TIMEOUT", "UPSTREAM_CLOSED"] {
        let answer = wire.expect_message().expect("an answer on the same connection");
        assert!(answer.has_code(code), "{answer:?}");
    }
    // Nor was its connecting taken for too slow, and the runner looked for again.
    assert_eq!(api.script.runner_questions.load(SeqCst), 1);
}

#[test]
fn a_visitor_who_has_used_up_the_look_ups_cannot_put_off_the_end_of_a_right() {
    let runner = Runner::start(|mut wire, _| {
        if matches!(wire.head(), Ok(Some(_))) && wire.send(switching(ACCEPT)).is_ok() {
            let _ = wire.rest();
        }
    });
    let api = Api::start(runner.addr);
    api.script.reply("/api/preview/no", 404, "{}");
    let settings = [
        ("SANDGATE_LOOKUP_RATE", "1"),
        ("SANDGATE_LOOKUP_BURST", "3"),
        ("SANDGATE_VERDICT_TTL_SEC", "1"),
        ("SANDGATE_NEGATIVE_TTL_SEC", "1"),
    ];
    let gate = Gate::start(&api, &settings);
    let mut tunnel = gate.connect();
    let request = upgrade("/ws").replace(HOST, "2280-sb1.preview.test");
    let (line, rest) = request.split_once("\r\n").expect("a request line");
    tunnel.send(format!("{line}\r\nX-Daytona-Preview-Token: tok\r\n{rest}")).expect("the gate reads");
    assert_eq!(tunnel.head().expect("an answer").expect("an answer").status(), 101);
    api.script.reply("/api/preview/sb1/validate/tok", 404, "{}");
    let mut guesses = gate.connect();
    let (begun, mut n) = (Instant::now(), 0);
    while !tunnel.is_cut() {
        assert!(begun.elapsed() < DEADLINE, "it lives on after {n} guesses");
        get(&mut guesses, &format!("3000-no{n}.preview.test"), "");
        n += 1;
    }
    assert!(gate.metric("preview_limited_total{limit=\"lookups\"}") > 0);
}

#[test]
fn a_proof_that_is_refused_is_paid_for_whatever_another_one_opens() {
    let api = Api::start(Runner::echo().addr);
    api.script.reply("/api/preview/sb1/access", 404, "{}");
    let gate = Gate::start(&api, &[("SANDGATE_LOOKUP_RATE", "1"), ("SANDGATE_LOOKUP_BURST", "10")]);
    let begun = Instant::now();
    let mut wire = gate.connect();
    for n in 0..100 {
        let fields = format!("X-Daytona-Preview-Token: good\r\nAuthorization: Bearer guess{n}\r\n");
        assert_eq!(get(&mut wire, "2280-sb1.preview.test", &fields).status(), 200, "the other one opens it");
    }
    let (asked, seconds) = (api.script.asked("/access").len(), begun.elapsed().as_secs() as usize);
    assert!(asked <= 10 + seconds + 1, "{asked} guesses were asked about in {seconds} s");
}

#[test]
fn a_head_sent_slowly_does_not_stretch_what_is_remembered() {
    let api = Api::start(Runner::echo().addr);
    let gate = Gate::start(&api, &[("SANDGATE_PUBLIC_TTL_SEC", "1")]);
    let mut slow = gate.connect();
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    slow.send("G").expect("the gate reads");
    api.script.reply("/api/preview/sb1/public", 404, "{}");
    // It is the time that counts: what was remembered before the first byte ends before the last one.
    std::thread::sleep(Duration::from_millis(1300));
    slow.send(format!("ET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    assert_eq!(slow.expect_message().expect("an answer").status(), 401);
}

#[test]
fn an_answer_that_is_not_to_be_kept_pushes_nothing_out_of_memory() {
    // One place for a sandbox, which is taken.
    let world =
        World::before(Runner::start(serve), &[("SANDGATE_SANDBOX_CACHE_MAX", "1"), ("SANDGATE_SHARDS", "1")]);
    assert_eq!(world.gate.get("/").expect("an answer").status(), 200);
    // An answer about another one that is old when it comes.
    world.api.script.hold(Some("/preview/sb2/public"));
    let mut wire = world.gate.connect();
    wire.send("GET / HTTP/1.1\r\nHost: 2999-sb2.preview.test\r\n\r\n").expect("the gate reads");
    world.api.script.wait_for("/preview/sb2/public", 1);
    let event = r#"{"sandbox":{"id":"sb2"},"oldState":"x","newState":"started"}"#;
    cli(world.redis.port, &["publish", "sandbox.event.channel", event]);
    world.until_metric("preview_push_changes_total 1");
    world.api.script.reply("/api/preview/sb2/public", 404, "{}");
    world.api.script.hold(None);
    assert_eq!(wire.expect_message().expect("an answer").status(), 401);
    assert_eq!(world.gate.get("/").expect("an answer").status(), 200);
    // It was remembered all the time.
    world.until_metric("preview_cache_total{cache=\"public\",result=\"hit\"} 1");
}

fn serve(mut wire: Wire, _: usize) {
    while let Ok(Some(_)) = wire.message() {
        if wire.send(ok("")).is_err() {
            return;
        }
    }
}
