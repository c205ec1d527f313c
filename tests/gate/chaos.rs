//! A storm: an honest runner behind a network that breaks off, stalls and drips as a seed says, clients that leave, and a
//! canary that must not notice.
//!
//! `SANDGATE_TEST_SOAK_SEC` is how long (2 by default), `SANDGATE_TEST_SEED` repeats one; a failure tells its seed.

use crate::faults::{await_rest, baseline};
use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire};
use crate::traffic::{Dice, Kind, Ledger, Outcome, attempt, serve_honestly};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What becomes of one connection through the network.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Pass,
    /// Accepted so much later.
    Late(Duration),
    /// Both ways in pieces of this many bytes.
    Pieces(usize),
    /// Broken off when so many bytes came down, or went up.
    ResetDown(usize),
    EndDown(usize),
    ResetUp(usize),
    /// Nothing for so long behind so many bytes down.
    Stall(usize, Duration),
}

impl Fate {
    fn drawn(dice: &mut Dice) -> Self {
        // Answers have a head, so small numbers cut there.
        let at = match dice.below(3) {
            0 => dice.below(200),
            1 => dice.below(60_000),
            _ => dice.below(1_500_000),
        } as usize;
        match dice.below(14) {
            0 => Self::Late(Duration::from_millis(dice.below(50))),
            1 | 2 => Self::Pieces(1 + dice.below(3000) as usize),
            3 | 4 => Self::ResetDown(at),
            5 | 6 => Self::EndDown(at),
            7 => Self::ResetUp(at),
            8 => Self::Stall(at, Duration::from_millis(dice.below(80))),
            _ => Self::Pass,
        }
    }
}

/// The network in front of `runner`.
fn network(runner: SocketAddr, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for (number, near) in listener.incoming().enumerate() {
            let Ok(near) = near else { return };
            let mut dice = Dice(seed ^ (number as u64).wrapping_mul(0x5851_f42d_4c95_7f2d));
            let fate = Fate::drawn(&mut dice);
            thread::spawn(move || carry(&near, runner, fate));
        }
    });
    addr
}

fn carry(near: &TcpStream, runner: SocketAddr, fate: Fate) {
    if let Fate::Late(wait) = fate {
        thread::sleep(wait);
    }
    let Ok(far) = TcpStream::connect(runner) else { return };
    thread::scope(|scope| {
        let up = match fate {
            Fate::Pieces(_) => fate,
            Fate::ResetUp(at) => Fate::ResetDown(at),
            _ => Fate::Pass,
        };
        let down = if matches!(fate, Fate::ResetUp(_)) { Fate::Pass } else { fate };
        let far = &far;
        scope.spawn(move || one_way(near, far, up));
        one_way(far, near, down);
    });
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream, fate: Fate) {
    let mut buf = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let room = match fate {
            Fate::Pieces(size) => size,
            Fate::ResetDown(at) | Fate::EndDown(at) => buf.len().min(at.saturating_sub(total).max(1)),
            _ => buf.len(),
        };
        let n = match from.read(&mut buf[..room]) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => n,
            Err(_) => {
                for stream in [from, to] {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
        };
        let before = total;
        total += n;
        match fate {
            Fate::ResetDown(at) if total > at => {
                for stream in [from, to] {
                    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
            Fate::EndDown(at) if total > at => {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            Fate::Stall(at, wait) if before <= at && total > at => thread::sleep(wait),
            _ => {}
        }
        if to.write_all(&buf[..n]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Tells the seed when the test fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("repeat it with SANDGATE_TEST_SEED={}", self.0);
        }
    }
}

/// Fewer might miss one of the three ways by chance.
const REQUESTS_MIN: u64 = 1000;

/// What the clients saw, by outcome.
type Seen = Mutex<BTreeMap<String, u64>>;

fn client(gate: &Gate, mut dice: Dice, number: &AtomicU64, until: Instant, seen: &Seen) {
    let mut kept: Option<Wire> = None;
    while Instant::now() < until || number.load(SeqCst) < REQUESTS_MIN {
        let kind = *dice.of(&Kind::ALL);
        let id = number.fetch_add(1, SeqCst);
        if dice.below(12) == 0 {
            leave(gate, &mut dice, kind, id);
            continue;
        }
        let mut wire = kept.take().unwrap_or_else(|| gate.connect());
        let outcome = attempt(&mut wire, HOST, "storm", kind, id);
        let word = match &outcome {
            Outcome::Refused(status, code) => format!("{status} {code}"),
            other => format!("{other:?}"),
        };
        *seen.lock().expect("no thread panics with it").entry(word).or_default() += 1;
        if outcome == Outcome::Complete && kind != Kind::WebSocket {
            kept = Some(wire);
        }
    }
}

/// A client that leaves somewhere on the way.
fn leave(gate: &Gate, dice: &mut Dice, kind: Kind, id: u64) {
    let mut wire = gate.connect();
    let method = if kind.is_post() { "POST" } else { "GET" };
    let framing = if kind.is_post() { "Content-Length: 200000\r\n" } else { "" };
    let mut bytes =
        format!("{method} /storm/{kind:?}/{id} HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n").into_bytes();
    let whole = bytes.len() + usize::from(kind.is_post()) * dice.below(100_000) as usize;
    bytes.resize(whole, b'x');
    // Never the whole of an upload: the runner would take its pattern for wrong.
    bytes.truncate(1 + dice.below(whole as u64) as usize);
    let _ = wire.send(&bytes);
    if dice.below(2) == 0 {
        let _ = wire.stream.set_read_timeout(Some(Duration::from_millis(1 + dice.below(20))));
        let _ = wire.fill();
    }
    if dice.below(2) == 0 {
        wire.reset();
    }
}

#[test]
fn a_storm_ends_every_request_in_one_of_three_ways_and_leaves_nothing_behind() {
    let seed = setting("SANDGATE_TEST_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64));
    let length = Duration::from_secs(setting("SANDGATE_TEST_SOAK_SEC").unwrap_or(2));
    let _told = Told(seed);
    let ledger = Ledger::new();
    let doing = ledger.clone();
    let runner = Runner::start(move |mut wire, _| {
        let _ = serve_honestly(&mut wire, &doing);
    });
    let canary_runner = Runner::echo();
    let api = Api::start(network(runner.addr, seed));
    api.script.send_to("canary", canary_runner.addr.port());
    let gate =
        Gate::start(&api, &[("SANDGATE_RUNNER_IDLE_MS", "500"), ("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "5000")]);
    let canary_host = HOST.replace("sb1", "canary");
    let ask_canary = |wire: &mut Wire, n: u64| {
        let path = format!("/canary-{n}");
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {canary_host}\r\n\r\n")).expect("the gate reads");
        let answer = wire.expect_message().expect("the canary is answered");
        assert!(answer.status() == 200 && answer.text().ends_with(&path), "{answer:?}");
    };
    ask_canary(&mut gate.connect(), 0);
    let baseline = baseline(&gate);
    let memory = gate.resident();
    let (number, seen) = (AtomicU64::new(1), Arc::new(Seen::default()));
    let until = Instant::now() + length;
    thread::scope(|scope| {
        for worker in 0..8 {
            let (gate, number, seen) = (&gate, &number, &seen);
            scope.spawn(move || client(gate, Dice(seed.wrapping_add(worker)), number, until, seen));
        }
        let mut wire = gate.connect();
        let mut slowest = Duration::ZERO;
        for n in 1.. {
            let begun = Instant::now();
            ask_canary(&mut wire, n);
            slowest = slowest.max(begun.elapsed());
            if begun >= until {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        assert!(slowest < DEADLINE / 2, "the canary waited {slowest:?}");
    });
    let seen = seen.lock().expect("no thread panics with it").clone();
    let of = |word: &str| seen.iter().filter(|(seen, _)| seen.starts_with(word)).map(|(_, n)| n).sum::<u64>();
    assert!(of("Complete") > 20 && of("Broken") > 0 && of("502") > 0, "this storm proves nothing: {seen:?}");
    let known = ["Complete", "Broken", "502 UPSTREAM_CLOSED", "502 UPSTREAM_INVALID", "504 UPSTREAM_TIMEOUT"];
    assert!(seen.keys().all(|word| known.contains(&word.as_str())), "{seen:?}");
    ledger.check();
    await_rest(&gate, baseline);
    let grown = gate.resident().saturating_sub(memory);
    assert!(grown < 48 * 1024, "{grown} KiB more than before");
    gate.check_all(&[&runner, &canary_runner]);
    println!("seed {seed}: {seen:?}, {grown} KiB more");
}
