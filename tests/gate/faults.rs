//! Faults of runners and clients, against every kind of traffic: what is expected of each stands in one table.
//!
//! In every case: one outcome per request and never a cut answer that looks whole, bodies to the byte both ways, no
//! POST executed twice, and afterwards nothing left of any of it in the gate.

use crate::harness::{Api, DEADLINE, Gate, HOST, Message, Runner, Wire, find, ok};
use crate::traffic::{
    Kind, Ledger, Outcome, answer, asked, attempt, attempt_once, give_answer, serve_honestly, take_body,
};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// The first bytes one by one.
    Drip,
    /// A few 103 before the answer.
    FewInformational,
    /// The end right behind the whole answer.
    EndBehind,
    /// A whole second answer behind the first.
    SecondAnswer,
    /// Before a body is read.
    EndUnread,
    ResetAtHead,
    ResetInHead,
    EndInHead,
    ResetInBody,
    EndInBody,
    /// Without end.
    ManyInformational,
    SwitchUnasked,
    LongField,
    ManyFields,
    Garbage,
    Silence,
}

impl Fault {
    const ALL: [Self; 17] = [
        Self::None,
        Self::Drip,
        Self::FewInformational,
        Self::EndBehind,
        Self::SecondAnswer,
        Self::EndUnread,
        Self::ResetAtHead,
        Self::ResetInHead,
        Self::EndInHead,
        Self::ResetInBody,
        Self::EndInBody,
        Self::ManyInformational,
        Self::SwitchUnasked,
        Self::LongField,
        Self::ManyFields,
        Self::Garbage,
        Self::Silence,
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| format!("{fault:?}") == name)
    }

    /// `None`: makes no sense for this kind.
    fn expected(self, kind: Kind) -> Option<Outcome> {
        let refused = |status, code: &str| Some(Outcome::Refused(status, code.to_owned()));
        match self {
            Self::SecondAnswer | Self::SwitchUnasked if kind == Kind::WebSocket => None,
            Self::None | Self::Drip | Self::FewInformational | Self::EndBehind | Self::SecondAnswer => {
                Some(Outcome::Complete)
            }
            Self::EndUnread | Self::ResetAtHead => refused(502, "UPSTREAM_CLOSED"),
            Self::EndInHead
            | Self::ManyInformational
            | Self::SwitchUnasked
            | Self::LongField
            | Self::ManyFields
            | Self::Garbage => refused(502, "UPSTREAM_INVALID"),
            // Whether the bytes before a reset were read or not is a matter of time.
            Self::ResetInHead => refused(502, "UPSTREAM_"),
            Self::ResetInBody | Self::EndInBody => Some(Outcome::Broken),
            Self::Silence => refused(504, "UPSTREAM_TIMEOUT"),
        }
    }

    fn met(self, kind: Kind, outcome: &Outcome) -> bool {
        match (self.expected(kind), outcome) {
            (Some(Outcome::Refused(status, prefix)), Outcome::Refused(found, code)) => {
                status == *found && code.starts_with(&prefix)
            }
            (expected, outcome) => expected.as_ref() == Some(outcome),
        }
    }
}

/// Serves honestly until a request asks for a fault.
fn serve(mut wire: Wire, ledger: &Ledger) -> io::Result<()> {
    while let Some(head) = wire.head()? {
        let (fault, kind, id) = asked(&head).ok_or(io::ErrorKind::InvalidInput)?;
        let fault = Fault::named(&fault).ok_or(io::ErrorKind::InvalidInput)?;
        if fault == Fault::EndUnread {
            return Ok(());
        }
        take_body(&mut wire, &head, kind, id, ledger)?;
        let whole = answer(kind, id);
        let head_len = find(&whole, b"\r\n\r\n").expect("a head") + 4;
        // A WebSocket's body is the echo, whose first half the client gets.
        let half = if kind == Kind::WebSocket { head_len } else { head_len + (whole.len() - head_len) / 2 };
        match fault {
            Fault::None | Fault::EndUnread => give_answer(&mut wire, kind, id, ledger)?,
            Fault::Drip => {
                for byte in &whole[..head_len + 20.min(whole.len() - head_len)] {
                    wire.send([*byte])?;
                }
                if kind == Kind::WebSocket {
                    let heard = wire.exactly(50_000)?;
                    heard.chunks(997).try_for_each(|piece| wire.send(piece))?;
                    wire.rest()?;
                } else {
                    wire.send(&whole[head_len + 20..])?;
                }
            }
            Fault::FewInformational => {
                wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(5))?;
                give_answer(&mut wire, kind, id, ledger)?;
            }
            Fault::EndBehind => {
                give_answer(&mut wire, kind, id, ledger)?;
                return Ok(());
            }
            Fault::SecondAnswer => wire.send([whole.as_slice(), &ok("stolen")].concat())?,
            Fault::ResetAtHead => {
                wire.reset();
                return Ok(());
            }
            Fault::ResetInHead => {
                wire.send(&whole[..head_len - 7])?;
                wire.reset();
                return Ok(());
            }
            Fault::EndInHead => return wire.send(&whole[..head_len - 7]),
            Fault::ResetInBody | Fault::EndInBody => {
                wire.send(&whole[..half])?;
                if kind == Kind::WebSocket {
                    let heard = wire.exactly(50_000)?;
                    wire.send(&heard[..25_000])?;
                }
                if fault == Fault::ResetInBody {
                    wire.reset();
                }
                return Ok(());
            }
            Fault::ManyInformational => loop {
                wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100))?;
            },
            Fault::SwitchUnasked => wire.send(answer(Kind::WebSocket, id))?,
            Fault::LongField => {
                wire.send(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)))?
            }
            Fault::ManyFields => {
                wire.send(format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(10_000)))?
            }
            Fault::Garbage => wire.send("hello, is it me\r\n\r\n")?,
            Fault::Silence => {
                wire.rest()?;
            }
        }
        if kind == Kind::WebSocket {
            wire.end_writing();
            return Ok(());
        }
    }
    Ok(())
}

/// Descriptors of the gate that are sockets.
fn sockets(gate: &Gate) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", gate.child.id())).expect("it runs");
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// Everything of all requests is gone: gauges at zero, sockets back to `baseline`.
pub fn await_rest(gate: &Gate, baseline: usize) {
    let of_all = [
        "http_server_active_requests",
        "preview_ws_open",
        "preview_ws_half_closed",
        "preview_questions_open",
    ];
    for gauge in of_all {
        gate.await_metric(gauge, 0);
    }
    gate.await_metric("preview_connections_open{shard=\"0\"}", 0);
    gate.await_metric("preview_pool_idle{shard=\"0\"}", 0);
    let begun = Instant::now();
    while sockets(gate) > baseline {
        assert!(begun.elapsed() < DEADLINE, "{} sockets, there were {baseline}", sockets(gate));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sockets of a gate at rest that has asked its API and runner once.
pub fn baseline(gate: &Gate) -> usize {
    gate.await_metric("preview_connections_open{shard=\"0\"}", 0);
    gate.await_metric("preview_pool_idle{shard=\"0\"}", 0);
    // The API's client may open another connection when questions come together.
    sockets(gate) + 8
}

#[test]
fn every_fault_of_a_runner_has_its_one_outcome_for_every_kind_of_traffic() {
    let ledger = Ledger::new();
    let start = || {
        let seen = ledger.clone();
        Runner::start(move |wire, _| {
            // A gate that broke off is part of the matter.
            let _ = serve(wire, &seen);
        })
    };
    let (runner, ending) = (start(), start());
    let (api, api_of_ending) = (Api::start(runner.addr), Api::start(ending.addr));
    let settings = [("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "400"), ("SANDGATE_RUNNER_IDLE_MS", "500")];
    let gate = Gate::start(&api, &settings);
    let number = AtomicU64::new(0);
    assert_eq!(attempt_once(&gate, "None", Kind::Get, 0), Outcome::Complete);
    let baseline = baseline(&gate);
    let wrong = Mutex::new(Vec::new());
    // On a new runner connection, and on one that was used before.
    for used in [false, true] {
        std::thread::scope(|scope| {
            for kind in Kind::ALL {
                let (gate, number, wrong, apart) = (&gate, &number, &wrong, &api_of_ending);
                scope.spawn(move || {
                    for fault in Fault::ALL.into_iter().filter(|fault| fault.expected(kind).is_some()) {
                        let id = || number.fetch_add(1, SeqCst) + 1;
                        // Whoever is given the connection that is just ending may lose an upload by it, rightly: here nobody.
                        let alone = (fault == Fault::EndBehind).then(|| Gate::start(apart, &settings));
                        let gate = alone.as_ref().unwrap_or(gate);
                        let mut wire = gate.connect();
                        if used {
                            assert_eq!(attempt(&mut wire, HOST, "None", Kind::Get, id()), Outcome::Complete);
                        }
                        let id = id();
                        let outcome = attempt(&mut wire, HOST, &format!("{fault:?}"), kind, id);
                        if !fault.met(kind, &outcome) {
                            let text = format!("{fault:?} {kind:?} (used: {used}, {id}): {outcome:?}");
                            wrong.lock().expect("no thread panics with it").push(text);
                        }
                    }
                });
            }
        });
    }
    let wrong = wrong.into_inner().expect("no thread panics with it");
    assert!(wrong.is_empty(), "{wrong:#?}");
    ledger.check();
    // The canary: behind all that the gate serves as before.
    assert_eq!(attempt_once(&gate, "None", Kind::Get, u64::from(u32::MAX)), Outcome::Complete);
    await_rest(&gate, baseline);
    gate.check(&runner);
}

/// A flood of them is a fault, see the table.
#[test]
fn an_app_may_beat_with_informational_answers_for_as_long_as_it_likes() {
    const BEATS: usize = 120;
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(request)) = wire.message() else { return };
        for _ in 0..BEATS / 12 {
            let _ = wire.send("HTTP/1.1 102 Processing\r\n\r\n".repeat(12));
            // Half as fast as may be.
            std::thread::sleep(Duration::from_millis(250));
        }
        let _ = wire.send(ok(request.target()));
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    wire.send(format!("GET /beats HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    for beat in 0..BEATS {
        assert_eq!(wire.expect_message().expect("an answer").status(), 102, "{beat}");
    }
    assert_eq!(wire.expect_message().expect("an answer").status(), 200);
    gate.check(&runner);
}

#[test]
fn what_follows_an_answer_without_a_body_is_delivered_to_nobody() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let first = match request.target().rsplit('/').next() {
                Some("204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("204-with-length") => "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nstolen",
                Some("304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nstolen",
                Some("head") => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen",
                Some("0") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nstolen",
                _ => "",
            };
            let answer = if first.is_empty() {
                ok(request.target())
            } else {
                [first.as_bytes(), &ok("stolen")].concat()
            };
            if wire.send(answer).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for (method, path) in
        [("GET", "/204"), ("GET", "/204-with-length"), ("GET", "/304"), ("HEAD", "/head"), ("GET", "/0")]
    {
        for round in 0..5 {
            let mut wire = gate.connect();
            wire.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
            let head: Message = wire.head().expect("an answer").expect("an answer");
            assert!(matches!(head.status(), 200 | 204 | 304), "{head:?}");
            // The same connection, then another one: each gets its own answer.
            for mut wire in [wire, gate.connect()] {
                let own = format!("/own-{round}");
                let answer = wire.get(&own).expect("an answer");
                assert!(answer.text().ends_with(&own), "behind {method} {path}: {answer:?}");
            }
        }
    }
    gate.check(&runner);
}

/// Where in an exchange a client leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    InHead,
    BehindHeadOfUpload,
    InUpload,
    InChunkedUpload,
    BeforeAnswer,
    InDownload,
    InEvents,
    InTunnel,
}

impl Phase {
    const ALL: [Self; 8] = [
        Self::InHead,
        Self::BehindHeadOfUpload,
        Self::InUpload,
        Self::InChunkedUpload,
        Self::BeforeAnswer,
        Self::InDownload,
        Self::InEvents,
        Self::InTunnel,
    ];
}

#[test]
fn a_client_that_leaves_at_any_moment_frees_the_runner_and_the_gate() {
    let (told, ended) = mpsc::channel();
    let told = Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        match asked(&head) {
            Some((_, Kind::Download, _)) => {
                let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n");
                while wire.send([b'x'; 65536]).is_ok() {}
            }
            Some((_, Kind::Events, _)) => {
                let _ = wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
                let _ = wire.rest();
            }
            Some((_, Kind::WebSocket, id)) => {
                let _ = wire.send(answer(Kind::WebSocket, id));
                let _ = wire.rest();
            }
            _ => {
                let _ = wire.rest();
            }
        }
        told.lock()
            .expect("no thread panics with it")
            .send(head.target().to_owned())
            .expect("the test waits");
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_RUNNER_IDLE_MS", "500")]);
    drop(gate.connect());
    let baseline = baseline(&gate) + 2;
    for phase in Phase::ALL {
        for by_reset in [false, true] {
            let mut wire = gate.connect();
            let post =
                |framing: &str| format!("POST /x/Upload/1 HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n");
            let get = |kind: &str| format!("GET /x/{kind}/1 HTTP/1.1\r\nHost: {HOST}\r\n");
            let request = match phase {
                Phase::InHead => get("Get"),
                Phase::BehindHeadOfUpload => post("Content-Length: 1000000"),
                Phase::InUpload => post("Content-Length: 10000000") + &"x".repeat(400_000),
                Phase::InChunkedUpload => {
                    post("Transfer-Encoding: chunked") + "5\r\nhello\r\nfffff\r\n" + &"x".repeat(300_000)
                }
                Phase::BeforeAnswer => get("Get") + "\r\n",
                Phase::InDownload => get("Download") + "\r\n",
                Phase::InEvents => get("Events") + "\r\n",
                Phase::InTunnel => {
                    get("WebSocket")
                        + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                }
            };
            let before = gate.authorized();
            wire.send(request).expect("the gate reads");
            match phase {
                Phase::InDownload | Phase::InEvents | Phase::InTunnel => {
                    wire.head().expect("an answer").expect("an answer");
                    if phase == Phase::InEvents {
                        wire.exactly(5).expect("a chunk");
                    }
                }
                Phase::InHead => {}
                _ => {
                    let begun = Instant::now();
                    while gate.authorized() == before {
                        assert!(begun.elapsed() < DEADLINE, "{phase:?} is not let in");
                    }
                }
            }
            if by_reset {
                wire.reset()
            } else {
                drop(wire)
            }
            if phase != Phase::InHead {
                ended
                    .recv_timeout(DEADLINE)
                    .unwrap_or_else(|_| panic!("{phase:?} (reset: {by_reset}): the runner is not freed"));
            }
        }
    }
    await_rest(&gate, baseline);
    gate.check(&runner);
}

#[test]
fn a_runner_that_does_not_take_a_connection_costs_its_time_and_no_more() {
    use socket2::{Domain, Socket, Type};
    // Its queue holds one connection, which is there already: the kernel drops what comes further.
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    deaf.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    deaf.listen(0).expect("it listens");
    let addr = deaf.local_addr().expect("bound").as_socket().expect("IPv4");
    let _queued = std::net::TcpStream::connect(addr).expect("the first one fits");
    let api = Api::start(addr);
    let gate = Gate::start(&api, &[("SANDGATE_CONNECT_TIMEOUT_MS", "300")]);
    let begun = Instant::now();
    let answer = gate.get("/").expect("an answer");
    assert!((502..=504).contains(&answer.status()), "{answer:?}");
    assert!(answer.field("X-Preview-Error-Source") == Some("runner"), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // It was asked for again once: the sandbox might have moved.
    assert_eq!(api.script.runner_questions.load(SeqCst), 2);
    gate.await_metric("http_server_active_requests", 0);
}

/// A wait for a descriptor that is not there must not spin, must not take a connection down with it, and ends when
/// there is one again.
#[test]
fn out_of_descriptors_new_connections_are_turned_away_and_old_ones_served() {
    let runner = Runner::echo();
    let gate = Gate::start_under(&["prlimit", "--nofile=96:96"], &Api::start(runner.addr), &[]);
    let mut old = gate.connect();
    assert_eq!(old.get("/before").expect("an answer").status(), 200);
    let mut crowd: Vec<Wire> = (0..150).map(|_| gate.connect()).collect();
    let begun = Instant::now();
    let told = loop {
        if let Some(turned_away) = crowd.iter_mut().find(|wire| wire.is_cut()) {
            break turned_away.expect_message().expect("an answer");
        }
        assert!(begun.elapsed() < DEADLINE, "nobody is turned away");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(told.status() == 503 && told.has_code("OVERLOADED"), "{told:?}");
    assert_eq!(told.field("X-Preview-Error-Source"), Some("proxy"));
    let spent = gate.cpu();
    std::thread::sleep(Duration::from_millis(500));
    let spent = gate.cpu() - spent;
    assert!(spent < Duration::from_millis(250), "{spent:?} of CPU in half a second of waiting");
    assert_eq!(old.get("/meanwhile").expect("who was in is served").status(), 200);
    crowd.clear();
    let begun = Instant::now();
    loop {
        // Turned away or reset until there is room again.
        if gate.get("/after").is_ok_and(|answer| answer.status() == 200) {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "nobody is let in again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(old.get("/still").expect("an answer").status(), 200);
}

/// A runner that answers `/held` when told to, and tells when it has read it.
fn holding_runner() -> (Runner, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((read, has_read), (go, may_go)) = (mpsc::channel(), mpsc::channel());
    let (read, may_go) = (Mutex::new(read), Mutex::new(may_go));
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            if request.target().ends_with("/held") {
                read.lock().expect("no thread panics with it").send(()).expect("the test waits");
                let _ = may_go.lock().expect("no thread panics with it").recv_timeout(DEADLINE);
            }
            if wire.send(ok(request.target())).is_err() {
                return;
            }
        }
    });
    (runner, has_read, go)
}

/// Idle clients are let in for as long as there is something left for what those who are in want.
#[test]
fn clients_leave_descriptors_for_the_runners_connections() {
    let (runner, has_read, go) = holding_runner();
    let gate = Gate::start_under(&["prlimit", "--nofile=128:128"], &Api::start(runner.addr), &[]);
    let mut old: Vec<Wire> = (0..8).map(|_| gate.connect()).collect();
    for wire in &mut old {
        assert_eq!(wire.get("/before").expect("an answer").status(), 200);
    }
    let mut crowd: Vec<Wire> = (0..200).map(|_| gate.connect()).collect();
    let begun = Instant::now();
    while !crowd.iter().any(Wire::is_cut) {
        assert!(begun.elapsed() < DEADLINE, "nobody is turned away");
        std::thread::sleep(Duration::from_millis(20));
    }
    for wire in &mut old {
        // Each needs a connection of its own.
        wire.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
        has_read.recv_timeout(DEADLINE).expect("the runner reads it");
    }
    (0..old.len()).for_each(|_| go.send(()).expect("the runner waits"));
    for wire in &mut old {
        assert_eq!(wire.expect_message().expect("an answer").status(), 200);
    }
    crowd.clear();
    gate.check(&runner);
}

/// The gate may have no descriptor from this number on; what it has is left to it. The limit that was.
fn limit_descriptors(gate: &Gate, end: u64) -> u64 {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let id = Pid::from_raw(gate.child.id() as i32).expect("it runs");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gate.child.id())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let maximum = line.split_whitespace().nth(4).and_then(|n| n.parse().ok());
    let new = Rlimit { current: Some(end), maximum };
    prlimit(Some(id), Resource::Nofile, new).expect("our own child").current.expect("a limit")
}

#[test]
fn a_request_for_which_there_is_no_descriptor_is_told_so_and_its_runner_not_blamed() {
    let (runner, has_read, go) = holding_runner();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[]);
    let (mut holds, mut wants) = (gate.connect(), gate.connect());
    for wire in [&mut holds, &mut wants] {
        assert_eq!(wire.get("/before").expect("an answer").status(), 200);
    }
    holds.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner reads it");
    let asked = api.script.runner_questions.load(SeqCst);
    let limit = limit_descriptors(&gate, 3);
    for _ in 0..3 {
        let answer = wants.get("/none-left").expect("an answer");
        assert!(answer.status() == 503 && answer.has_code("OVERLOADED"), "{answer:?}");
        assert_eq!(answer.field("X-Preview-Error-Source"), Some("proxy"));
        assert!(answer.field("Retry-After").is_some(), "{answer:?}");
    }
    assert_eq!(api.script.runner_questions.load(SeqCst), asked, "the API cannot help it");
    let begun = Instant::now();
    while !gate.events.lock().expect("no thread panics with it").contains("Too many open files") {
        assert!(begun.elapsed() < DEADLINE, "the operator is not told");
        std::thread::yield_now();
    }
    limit_descriptors(&gate, limit);
    assert_eq!(wants.get("/again").expect("an answer").status(), 200);
    go.send(()).expect("the runner waits");
    assert_eq!(holds.expect_message().expect("an answer").status(), 200);
}

#[test]
fn a_drain_with_everything_running_finishes_what_ends_and_cuts_what_does_not() {
    let ledger = Ledger::new();
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let (told, reached) = mpsc::channel();
    let told = Mutex::new(told);
    let seen = ledger.clone();
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let Some((what, kind, id)) = asked(&head) else { return };
        told.lock().expect("no thread panics with it").send(()).expect("the test waits");
        match what.as_str() {
            "held" => {
                let body = wire.body(&head);
                let _ = may_go.lock().expect("no thread panics with it").recv_timeout(DEADLINE);
                if body.is_ok() {
                    seen.executed(id);
                    let _ = wire.send(answer(kind, id));
                }
            }
            _ => {
                let _ = wire.send(answer(kind, id));
                let _ = wire.rest();
            }
        }
    });
    let mut gate = Gate::start(&Api::start(runner.addr), &[("SHUTDOWN_TIMEOUT_SEC", "2")]);
    let mut idle = gate.connect();
    idle.send("GET /health HTTP/1.1\r\nHost: base.test\r\n\r\n").expect("the gate reads");
    assert_eq!(idle.expect_message().expect("an answer").status(), 200);
    let mut half_head = gate.connect();
    half_head.send("GET /x HT").expect("the gate reads");
    let mut upload = gate.connect();
    upload
        .send(format!("POST /held/Upload/1 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nhello"))
        .expect("the gate reads");
    let mut get = gate.connect();
    get.send(format!("GET /held/Get/2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    let mut tunnel = gate.connect();
    tunnel
        .send(format!(
            "GET /open/WebSocket/3 HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .expect("the gate reads");
    assert_eq!(tunnel.head().expect("an answer").expect("an answer").status(), 101);
    for _ in 0..3 {
        reached.recv_timeout(DEADLINE).expect("all three are at the runner");
    }
    gate.signal(rustix::process::Signal::TERM);
    assert!(idle.is_over(), "an idle connection is closed");
    // What runs goes on: the rest of the upload is taken, both are answered.
    upload.send("world").expect("the upload goes on");
    go.send(()).expect("the runner waits");
    go.send(()).expect("the runner waits");
    assert_eq!(upload.expect_message().expect("what runs is finished").status(), 200);
    assert_eq!(get.expect_message().expect("what runs is finished").status(), 200);
    assert!(upload.is_over() && get.is_over(), "no further request is taken on them");
    // A tunnel does not end by itself: it is cut when the time is over.
    let begun = Instant::now();
    assert!(tunnel.rest().is_ok_and(|rest| rest.is_empty()) || tunnel.is_cut());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(gate.exit_code(), Some(0));
    ledger.check();
    drop(half_head);
}

#[test]
fn honest_traffic_of_every_kind_arrives_to_the_byte() {
    let ledger = Ledger::new();
    let seen = ledger.clone();
    let runner = Runner::start(move |mut wire, _| {
        // The gate closes idle connections when it likes.
        let _ = serve_honestly(&mut wire, &seen);
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let gate = &gate;
            scope.spawn(move || {
                let mut wire = gate.connect();
                for round in 0..60 {
                    let kind = Kind::ALL[(worker + round) % Kind::ALL.len()];
                    let id = (worker * 1000 + round) as u64;
                    assert_eq!(
                        attempt(&mut wire, HOST, "None", kind, id),
                        Outcome::Complete,
                        "{kind:?} {id}"
                    );
                    if kind == Kind::WebSocket {
                        wire = gate.connect();
                    }
                }
            });
        }
    });
    ledger.check();
    gate.check(&runner);
}

/// RFC 9112 9.6 lets a client end its side; whoever waits long for an app that has gone is what this must not become.
#[test]
fn a_client_that_ends_its_side_gets_a_prompt_answer_and_counts_as_gone_when_it_takes_long() {
    let (told, ended) = mpsc::channel();
    let told = Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            if request.target().ends_with("/long") {
                let rest = wire.rest().map(|rest| rest.len()).unwrap_or(0);
                told.lock().expect("no thread panics with it").send(rest).expect("the test waits");
                return;
            }
            if wire.send(ok(request.target())).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let ask = |path: &str| {
        let mut wire = gate.connect();
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
        wire.end_writing();
        wire
    };
    let answer = ask("/prompt").expect_message().expect("an answer");
    assert!(answer.text().ends_with("/prompt"), "{answer:?}");
    let mut wire = ask("/long");
    assert_eq!(ended.recv_timeout(DEADLINE).expect("the runner is let go"), 0);
    assert!(wire.is_over());
    gate.await_metric("http_server_active_requests", 0);
    gate.check(&runner);
}

/// Whatever the API does: nobody passes whom it has not let in, and whom it has let in a moment ago stays in.
#[test]
fn an_api_in_trouble_lets_nobody_in_and_throws_nobody_out() {
    use crate::harness::Trouble;
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("API_CLIENT_TIMEOUT_SEC", "1")]);
    assert_eq!(gate.get("/known").expect("an answer").status(), 200);
    for trouble in Trouble::ALL {
        api.script.trouble(Some(trouble));
        assert_eq!(gate.get("/known").expect("an answer").status(), 200, "{trouble:?}");
        for (port, proof) in [
            ("3000", ""),
            ("2280", "Authorization: Bearer secret\r\n"),
            ("3000", "X-Daytona-Preview-Token: t\r\n"),
        ] {
            let mut wire = gate.connect();
            let host = format!("{port}-new{}.preview.test", format!("{trouble:?}").to_lowercase());
            wire.send(format!("GET /new HTTP/1.1\r\nHost: {host}\r\n{proof}\r\n")).expect("the gate reads");
            let answer = wire.expect_message().expect("an answer");
            assert!(
                (401..=504).contains(&answer.status()) && answer.status() != 404,
                "{trouble:?}: {answer:?}"
            );
            assert!(answer.field("X-Preview-Error-Code").is_some(), "{trouble:?}: {answer:?}");
        }
    }
    let requests: Vec<_> = runner.streams().into_iter().flat_map(|stream| stream.requests).collect();
    assert!(requests.iter().all(|request| request.target.ends_with("/known")), "{requests:?}");
    api.script.trouble(None);
    let mut wire = gate.connect();
    wire.send("GET /new HTTP/1.1\r\nHost: 3000-sb9.preview.test\r\n\r\n").expect("the gate reads");
    assert_eq!(wire.expect_message().expect("an answer").status(), 200, "and all is well again");
    gate.check(&runner);
}

/// Neither a client nor a runner that stops reading fills the gate: the other one is stopped too.
#[test]
fn a_peer_that_does_not_read_stops_the_other_one_and_costs_no_memory() {
    let moved = std::sync::Arc::new(AtomicU64::new(0));
    let sending = moved.clone();
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        wire.stream.set_write_timeout(None).expect("no timeout");
        if head.first.starts_with("POST") {
            // Reads nothing until the gate is gone.
            while !wire.is_cut() {
                std::thread::sleep(Duration::from_millis(20));
            }
            return;
        }
        let framing = if head.target().ends_with("/chunked") {
            "Transfer-Encoding: chunked"
        } else {
            "Content-Length: 100000000000"
        };
        let _ = wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
        let block = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
        while wire.send(&block).is_ok() {
            sending.fetch_add(block.len() as u64, SeqCst);
        }
    });
    runner.forget();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let open = |number: usize| {
        let mut wire = gate.connect();
        let (start, framing) = match number % 3 {
            0 => ("GET /plain", ""),
            1 => ("GET /chunked", ""),
            _ => ("POST /up", "Content-Length: 100000000000\r\n"),
        };
        wire.send(format!("{start} HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n")).expect("the gate reads");
        wire
    };
    let mut wires: Vec<Wire> = (0..30).map(open).collect();
    let before = gate.resident();
    // Uploads, until nothing more is taken.
    let mut sent = 0;
    let block = vec![b'x'; 1 << 20];
    for wire in wires.iter_mut().skip(2).step_by(3) {
        wire.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("not zero");
        while io::Write::write(&mut wire.stream, &block).is_ok_and(|n| n > 0) {
            sent += block.len();
            assert!(sent < 1 << 30, "uploads are taken that nobody reads");
        }
    }
    let mut last = u64::MAX;
    let begun = Instant::now();
    while last != moved.load(SeqCst) {
        last = moved.load(SeqCst);
        assert!(begun.elapsed() < DEADLINE, "downloads go on that nobody reads");
        std::thread::sleep(Duration::from_millis(300));
    }
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for 30 stuck bodies");
    // A plain end would stand behind bytes that nobody takes: the client's kernel gives up on it in its own time.
    wires.into_iter().for_each(Wire::reset);
    gate.await_metric("http_server_active_requests", 0);
}

#[test]
fn at_the_limit_of_connections_the_next_one_is_told_and_the_others_are_served() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CONNECTIONS_MAX", "5")]);
    let mut inside: Vec<Wire> = (0..5).map(|_| gate.connect()).collect();
    for wire in &mut inside {
        assert_eq!(wire.get("/in").expect("an answer").status(), 200);
    }
    let mut outside = gate.connect();
    let answer = outside.expect_message().expect("told without being asked");
    assert_eq!((answer.status(), answer.field("Retry-After")), (503, Some("1")), "{answer:?}");
    assert!(outside.is_over());
    assert_eq!(gate.metric("preview_connections_shed_total"), 1);
    for wire in &mut inside {
        assert_eq!(wire.get("/still").expect("an answer").status(), 200);
    }
    inside.pop();
    gate.await_metric("preview_connections_open{shard=\"0\"}", 4);
    assert_eq!(gate.get("/in-again").expect("an answer").status(), 200);
    gate.check(&runner);
}
