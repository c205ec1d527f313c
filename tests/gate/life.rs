//! Deadlines, peers that are not there, and the end of the process.

use crate::free_port::free_port;
use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, ok};
use crate::silent_names::SilentNames;
use rustix::process::Signal;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

#[test]
fn half_a_head_is_answered_408_and_closed() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_HEAD_TIMEOUT_MS", "500")]);
    let mut wire = gate.connect();
    let begun = Instant::now();
    wire.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\nX-A: ")).expect("the gate reads");
    let answer = wire.expect_message().expect("an answer");
    assert_eq!(answer.status(), 408, "{answer:?}");
    assert!(begun.elapsed() >= Duration::from_millis(400), "too early: {:?}", begun.elapsed());
    assert!(wire.is_over());
    assert!(runner.received().is_empty());
    gate.check(&runner);
}

#[test]
fn an_idle_connection_is_closed_in_silence() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CLIENT_IDLE_MS", "1000")]);
    let mut wire = gate.connect();
    assert_eq!(wire.get("/one").expect("an answer").status(), 200);
    let begun = Instant::now();
    assert!(wire.is_over());
    assert!(begun.elapsed() >= Duration::from_millis(500), "too early: {:?}", begun.elapsed());
    gate.check(&runner);
}

/// The kernel hands it over after a second, and the gate's own deadline counts from there.
#[test]
fn a_connection_that_never_says_a_word_is_closed_too() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CLIENT_IDLE_MS", "300")]);
    assert!(gate.connect().is_over());
    gate.check(&runner);
}

/// An app's time counts from the end of the body: a slow client's is not the app's.
#[test]
fn an_upload_may_last_longer_than_the_app_may_take_to_answer() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "300")]);
    for framing in ["Content-Length: 4", "Transfer-Encoding: chunked"] {
        let mut wire = gate.connect();
        let parts =
            if framing.contains("chunked") { ["2\r\nab\r\n", "2\r\ncd\r\n0\r\n\r\n"] } else { ["ab", "cd"] };
        wire.send(format!("POST /slow HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n{}", parts[0]))
            .expect("the gate reads");
        std::thread::sleep(Duration::from_millis(800));
        wire.send(parts[1]).expect("the gate reads");
        assert_eq!(wire.expect_message().expect("an answer").status(), 200, "{framing}");
    }
    gate.check(&runner);
}

#[test]
fn an_app_that_takes_nothing_of_a_body_is_given_up_and_one_that_then_does_not_answer_too() {
    let (may_go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let runner = Runner::start(move |mut wire, number| {
        if matches!(wire.head(), Ok(Some(_))) && number == 1 {
            let _ = wire.exactly(4);
        }
        // Open, and silent.
        let _ = goes.lock().expect("one at a time").recv_timeout(DEADLINE);
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "300")]);
    // More than all buffers on the way hold.
    let body = 256 * 1024 * 1024;
    let mut wire = gate.connect();
    wire.send(format!("POST /deaf HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {body}\r\n\r\n"))
        .expect("the gate reads");
    let sending = std::thread::spawn({
        let mut wire = wire.again();
        move || {
            let part = vec![b'x'; 1024 * 1024];
            (0..body / part.len()).take_while(|_| wire.send(&part).is_ok()).count()
        }
    });
    let answer = wire.expect_message().expect("an answer");
    assert!(answer.status() == 504 && answer.has_code("UPSTREAM_TIMEOUT"), "{answer:?}");
    assert!(sending.join().expect("no panic") < 256, "all of it was taken");
    may_go.send(()).expect("the runner waits");

    let mut wire = gate.connect();
    wire.send(format!("POST /mute HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nab"))
        .expect("the gate reads");
    wire.send("cd").expect("the gate reads");
    let answer = wire.expect_message().expect("an answer");
    assert!(answer.status() == 504 && answer.has_code("UPSTREAM_TIMEOUT"), "{answer:?}");
    may_go.send(()).expect("the runner waits");
}

#[test]
fn a_runner_that_refuses_is_looked_up_once_more_and_then_told() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let api = Api::start(nobody);
    let gate = Gate::start(&api, &[]);
    let answer = gate.get("/").expect("an answer");
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(answer.has_code("RUNNER_UNREACHABLE"), "{answer:?}");
    assert_eq!(api.script.runner_questions.load(SeqCst), 2);
    // The sandbox moved: the same gate finds it.
    let runner = Runner::echo();
    api.script.runner_port.store(runner.addr.port(), SeqCst);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    assert_eq!(api.script.runner_questions.load(SeqCst), 3);
    gate.check(&runner);
}

#[test]
fn an_api_that_is_down_is_asked_three_times_and_told() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    api.script.status.store(503, SeqCst);
    let gate = Gate::start(&api, &[]);
    let answer = gate.get("/").expect("an answer");
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.has_code("CONTROL_PLANE_DOWN"), "{answer:?}");
    assert_eq!(api.script.questions.load(SeqCst), 3);
    assert!(runner.received().is_empty());
    gate.check(&runner);
}

/// A runner that answers `/slow` when told to, and tells when it has read it.
fn slow_runner() -> (Runner, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (read, has_read) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let shared = Mutex::new((read, may_go));
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            if request.target().ends_with("/slow") {
                let (read, may_go) = &*shared.lock().expect("no thread panics with it");
                read.send(()).expect("the test waits");
                // The second signal's test never lets it go.
                let _ = may_go.recv_timeout(DEADLINE);
            }
            if wire.send(ok(request.target())).is_err() {
                return;
            }
        }
    });
    (runner, has_read, go)
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let (runner, has_read, go) = slow_runner();
    let mut gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut idle = gate.connect();
    assert_eq!(idle.get("/one").expect("an answer").status(), 200);
    let mut slow = gate.connect();
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner reads it");
    gate.signal(Signal::TERM);
    assert!(idle.is_over(), "an idle connection is closed");
    await_refusal(gate.addr);
    go.send(()).expect("the runner waits");
    let answer = slow.expect_message().expect("what runs is finished");
    assert!(answer.text().ends_with("/slow"), "{answer:?}");
    assert!(slow.is_over());
    assert_eq!(gate.exit_code(), Some(0));
}

/// Connects until that is refused, which must be at once: who balances load fails over then, and waits for nothing.
fn await_refusal(addr: SocketAddr) {
    let begun = Instant::now();
    let error = loop {
        assert!(begun.elapsed() < DEADLINE, "new connections are taken");
        if let Err(error) = TcpStream::connect_timeout(&addr, Duration::from_millis(700)) {
            break error;
        }
    };
    let ends = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
    assert!(ends.contains(&error.kind()), "{error}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (runner, has_read, _go) = slow_runner();
    let mut gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut idle = gate.connect();
    assert_eq!(idle.get("/one").expect("an answer").status(), 200);
    let mut slow = gate.connect();
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner reads it");
    gate.signal(Signal::TERM);
    // Seen to drain, so the second signal is a second one.
    assert!(idle.is_over());
    let begun = Instant::now();
    gate.signal(Signal::TERM);
    assert_eq!(gate.exit_code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(slow.message().is_err() || slow.is_over());
}

/// It is stopped, then told to drain and let go.
fn drain_with_a_full_queue(gate: &Gate, fill: impl FnOnce()) {
    gate.signal(Signal::STOP);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", gate.child.id())).expect("it is there");
    while !state().contains(") T ") {
        std::thread::yield_now();
    }
    fill();
    gate.signal(Signal::TERM);
    gate.signal(Signal::CONT);
}

/// To them they are connected, and their requests are sent or under way.
#[test]
fn a_drain_serves_whom_the_kernel_has_let_in_already() {
    let runner = Runner::echo();
    let mut gate = Gate::start(&Api::start(runner.addr), &[]);
    assert_eq!(gate.get("/known").expect("an answer").status(), 200);
    let mut wires = Vec::new();
    drain_with_a_full_queue(&gate, || {
        // More than are accepted in a turn.
        wires.extend((0..500).map(|_| gate.connect()));
        for wire in &mut wires {
            wire.send(format!("POST /queued HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nha"))
                .expect("the kernel takes it");
        }
    });
    await_refusal(gate.addr);
    for (at, wire) in wires.iter_mut().enumerate() {
        wire.send("lf").unwrap_or_else(|error| panic!("the {at}th of them: {error}"));
        let answer = wire.expect_message().unwrap_or_else(|error| panic!("the {at}th of them: {error}"));
        assert_eq!(answer.status(), 200, "the {at}th of them: {answer:?}");
        assert_eq!(wire.rest().expect("an end without a reset"), b"");
        wire.end_writing();
    }
    assert_eq!(gate.exit_code(), Some(0));
}

#[test]
fn a_drain_short_of_descriptors_tells_whom_it_cannot_serve() {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    let mut gate = Gate::start_under(&["prlimit", "--nofile=96:96"], &api, &[]);
    assert_eq!(gate.get("/known").expect("an answer").status(), 200);
    let mut wires = Vec::new();
    drain_with_a_full_queue(&gate, || {
        wires.extend((0..300).map(|_| gate.connect()));
        for wire in &mut wires {
            wire.send(format!("GET /queued HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the kernel takes it");
        }
    });
    let mut told = [0; 2];
    for (at, wire) in wires.iter_mut().enumerate() {
        let answer = wire.expect_message().unwrap_or_else(|error| panic!("the {at}th of them: {error}"));
        match answer.status() {
            200 => told[0] += 1,
            503 => told[1] += 1,
            _ => panic!("the {at}th of them: {answer:?}"),
        }
    }
    assert!(told[0] > 0 && told[1] > 0, "{told:?}");
    drop(wires);
    assert_eq!(gate.exit_code(), Some(0));
}

/// It sends the next request before it hears that this answer is the last.
#[test]
fn a_drain_resets_no_client_that_pipelines() {
    let runner = Runner::echo();
    let mut gate = Gate::start(&Api::start(runner.addr), &[]);
    for host in ["preview.test", HOST] {
        let mut wire = gate.connect();
        let sending = std::thread::spawn({
            let mut wire = wire.again();
            let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
            // Until the gate's end is answered by ours.
            move || while wire.send(&request).is_ok() {}
        });
        wire.expect_message().expect("an answer");
        gate.signal(Signal::TERM);
        loop {
            let answer = wire.expect_message().expect("an answer behind which no other was said to come");
            if answer.field("Connection") == Some("close") {
                break;
            }
        }
        assert_eq!(wire.rest().expect("an end without a reset"), b"", "{host}");
        wire.end_writing();
        sending.join().expect("no panic");
        assert_eq!(gate.exit_code(), Some(0));
        gate = Gate::start(&Api::start(runner.addr), &[]);
    }
}

/// To an HTTP/1.0 client the end of the connection is the end of the answer.
#[test]
fn an_answer_that_the_end_of_the_process_cuts_short_does_not_end_as_a_whole_one_does() {
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(request)) = wire.message() else { return };
        let (fields, begin) = match request.target().rsplit('/').next() {
            Some("chunked") => ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
            _ => ("Connection: close\r\n", "hello"),
        };
        let _ = wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n{begin}"));
        if !request.target().ends_with("/whole") {
            let _ = wire.rest();
        }
    });
    let api = Api::start(runner.addr);
    for (timeout, signals) in [("1", 1), ("60", 2)] {
        let mut gate = Gate::start(&api, &[("SHUTDOWN_TIMEOUT_SEC", timeout)]);
        let begin = |path: &str| {
            let mut wire = gate.connect();
            wire.send(format!("GET /{path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
            wire.head().expect("an answer").expect("an answer");
            assert_eq!(wire.exactly(5).expect("its beginning"), b"hello");
            wire
        };
        let mut idle = gate.connect();
        assert_eq!(idle.get("/whole").expect("an answer").text(), "hello");
        let mut whole = begin("whole");
        let mut cut = [begin("until-close"), begin("chunked")];
        for signal in 0..signals {
            gate.signal(Signal::TERM);
            if signal == 0 {
                assert_eq!(idle.rest().expect("an end without a reset"), b"", "seen to drain");
            }
        }
        for wire in &mut cut {
            let end = wire.rest().map_err(|error| error.kind());
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{signals} signals");
        }
        assert_eq!(whole.rest().expect("an end without a reset"), b"");
        assert_eq!(gate.exit_code(), Some(0));
    }
}

/// It tells of its end before it ends: to somebody who does not listen, too.
#[test]
fn a_standard_error_that_nobody_reads_holds_neither_the_drain_nor_the_end_up() {
    let (runner, has_read, _go) = slow_runner();
    let mut gate = Gate::start_unheard(&Api::start(runner.addr), &[("SHUTDOWN_TIMEOUT_SEC", "1")]);
    let mut idle = gate.connect();
    assert_eq!(idle.get("/one").expect("an answer").status(), 200);
    let mut slow = gate.connect();
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner reads it");
    gate.signal(Signal::TERM);
    assert!(idle.is_over(), "it drains");
    assert_eq!(gate.exit_code(), Some(0));
}

#[test]
fn a_look_up_of_a_name_that_nobody_answers_does_not_hold_the_end_up() {
    let names = SilentNames::start("127.77.53.1");
    let settings = [("DAYTONA_API_URL", "http://api.example/api"), ("SHUTDOWN_TIMEOUT_SEC", "0")];
    let mut gate = Gate::start_under(&names.wrapper(), &Api::start(Runner::echo().addr), &settings);
    let mut waits = gate.connect();
    waits.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    names.await_question(DEADLINE);
    gate.signal(Signal::TERM);
    assert_eq!(gate.exit_code(), Some(0));
}

/// What a gate under such a wrapper says to its end, which is not one of success.
fn failed_start(wrapper: &[&str], settings: &[(&str, &str)]) -> String {
    let words: Vec<_> = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_sandgate")]).collect();
    let output = std::process::Command::new(words[0])
        .args(&words[1..])
        .env("DAYTONA_API_URL", "http://127.0.0.1:1/api")
        .env("PROXY_PORT", free_port().to_string())
        .env("PROXY_PROTOCOL", "http")
        .env("PROXY_API_KEY", "a-key-of-this-test-and-of-nothing-else")
        .env("SANDGATE_LISTEN", "127.0.0.1")
        .envs(settings.iter().copied())
        .output()
        .expect("the binary runs");
    let events = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{events}");
    assert!(!events.contains("listening\""), "it said that it listens: {events}");
    events
}

#[test]
fn a_metrics_port_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let events = failed_start(&[], &[("METRICS_PORT", &port)]);
    assert!(events.contains(&port), "{events}");
}

/// What is left of it could serve, but nobody would know that it is a part.
#[test]
fn a_gate_whose_shard_ends_fails_so_that_it_is_started_anew() {
    // Too few for eight rings.
    let events = failed_start(&["prlimit", "--nofile=40:40"], &[("SANDGATE_SHARDS", "8")]);
    for said in [
        "a shard has ended",
        "a shard did not end well",
        "Too many open files",
        "CFG_RELATION SANDGATE_SHARDS",
    ] {
        assert!(events.contains(said), "{said}: {events}");
    }
}

/// They would turn everybody away for ever.
#[test]
fn shards_that_leave_no_descriptor_for_clients_do_not_start() {
    let events = failed_start(&["prlimit", "--nofile=128:128"], &[("SANDGATE_SHARDS", "8")]);
    for said in ["CFG_RELATION SANDGATE_SHARDS", "the limit of 128 descriptors", "LimitNOFILE="] {
        assert!(events.contains(said), "{said}: {events}");
    }
}

/// A quarter of the rest, not of all: eight shards have some 80 themselves.
#[test]
fn what_the_shards_need_themselves_is_not_taken_from_the_clients() {
    let runner = Runner::echo();
    let settings = [("SANDGATE_SHARDS", "8"), ("SANDGATE_PIN", "false")];
    let gate = Gate::start_under(&["prlimit", "--nofile=320:320"], &Api::start(runner.addr), &settings);
    let mut wires: Vec<_> = (0..165).map(|_| gate.connect()).collect();
    for (at, wire) in wires.iter_mut().enumerate() {
        wire.send("GET /health HTTP/1.1\r\nHost: p.test\r\n\r\n").expect("the gate reads");
        assert_eq!(wire.expect_message().expect("an answer").status(), 200, "the {at}th of them");
    }
    // What a shard is reckoned to have, at most.
    let open = std::fs::read_dir(format!("/proc/{}/fd", gate.child.id())).expect("it runs").count();
    let own = open - wires.len();
    assert!((8 * 7..=16 + 8 * 10).contains(&own), "{own} of its own");
}

#[test]
fn a_connection_serves_on_after_a_pause_of_any_length() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wires: Vec<_> = (0..8).map(|_| gate.connect()).collect();
    // Around the moment (two to three tenths of a second) in which a wait for a next request changes its kind, in steps
    // that meet it at different points.
    for pause_ms in [0, 1, 50, 150, 190, 200, 205, 215, 230, 250, 280, 300, 310, 350, 700] {
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        for (n, wire) in wires.iter_mut().enumerate() {
            let path = format!("/{pause_ms}/{n}");
            let answer = wire.get(&path).expect("an answer after a pause");
            assert_eq!(answer.status(), 200, "after {pause_ms} ms");
            assert!(answer.text().contains(&path), "after {pause_ms} ms: {answer:?}");
        }
    }
    gate.check(&runner);
}

#[test]
fn the_page_tells_what_each_shard_and_the_process_use() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_SHARDS", "2")]);
    let value = |name: &str| -> f64 {
        let page = gate.page();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}:\n{page}"))
    };
    let shards = || [0, 1].map(|n| value(&format!("preview_shard_cpu_seconds_total{{shard=\"{n}\"}}")));
    let (cpu, fds) = (shards(), value("process_open_fds"));
    let mut wires: Vec<_> = (0..64).map(|_| gate.connect()).collect();
    for n in 0..1000 {
        assert_eq!(wires[n % 64].get("/").expect("an answer").status(), 200);
    }
    let after = shards();
    // 64 connections, none of them on one of the two shards: once in 2^63.
    assert!(after[0] > cpu[0] && after[1] > cpu[1], "{cpu:?} {after:?}");
    assert!(value("process_cpu_seconds_total") >= after.iter().sum());
    assert!(value("process_open_fds") >= fds + 64.0 && value("process_max_fds") >= fds + 64.0);
    assert!(value("process_resident_memory_bytes") > 4e6);
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set").as_secs_f64();
    assert!((0.0..600.0).contains(&(since_1970 - value("process_start_time_seconds"))));
}
