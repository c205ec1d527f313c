//! How fast a change takes effect on all shards: a measurement, not a test, for it says as much about the machine.
//!
//!     cargo build --release
//!     SANDGATE_TEST_GATE=target/release/sandgate cargo test --test gate -- --ignored --nocapture event_to_effect

use crate::harness::{DEADLINE, Runner, Wire, ok};
use crate::revocation::{CHANNEL, opened};
use crate::shared::World;
use crate::tunnels::{ACCEPT, switching, upgrade};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Of each way a change is told.
const FLIPS: usize = 500;
/// Kept connections that ask all the time, enough to have some on each of the two shards, and as many tunnels.
const CONNECTIONS: usize = 8;

/// A connection of the API's to Redis.
struct Teller(TcpStream);

impl Teller {
    /// When it was begun to be told.
    fn tell(&mut self, words: &[&str]) -> Instant {
        let mut command = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| command.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        let begun = Instant::now();
        self.0.write_all(command.as_bytes()).expect("Redis reads");
        let mut reply = [0; 64];
        let n = self.0.read(&mut reply).expect("Redis answers");
        assert!(reply[..n].starts_with(b":"), "{:?}", String::from_utf8_lossy(&reply[..n]));
        begun
    }
}

fn runner() -> Runner {
    Runner::start(|mut wire, _| {
        while let Ok(Some(head)) = wire.head() {
            let switches = head.field("Upgrade").is_some();
            let answer = if switches { switching(ACCEPT).into_bytes() } else { ok("x") };
            if wire.send(answer).is_err() {
                return;
            }
            if switches {
                let _ = wire.rest();
                return;
            }
        }
    })
}

#[derive(Default)]
struct Effects {
    /// A request and its answer before: so exact are the others.
    request: Vec<Duration>,
    first_refused: Vec<Duration>,
    all_refused: Vec<Duration>,
    all_cut: Vec<Duration>,
}

fn status(wire: &mut Wire, host: &str) -> u16 {
    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer").status()
}

/// A public sandbox nobody has heard of is visited, and made private.
fn flip(
    world: &World,
    visitors: &mut [Wire],
    sandbox: &str,
    tell: impl FnOnce() -> Instant,
    effects: &mut Effects,
) {
    let host = format!("3000-{sandbox}.preview.test");
    for visitor in &mut *visitors {
        assert_eq!(status(visitor, &host), 200);
    }
    for visitor in &mut *visitors {
        let begun = Instant::now();
        assert_eq!(status(visitor, &host), 200);
        effects.request.push(begun.elapsed());
    }
    let tunnels: Vec<Wire> =
        (0..CONNECTIONS).map(|_| opened(&world.gate, &host, &upgrade("/ws"), "")).collect();
    let mut open: Vec<_> = visitors.iter_mut().collect();
    let mut live: Vec<_> = tunnels.iter().collect();
    let told = tell();
    let (mut first_refused, mut all_refused, mut all_cut) = (None, None, None);
    while all_refused.is_none() || all_cut.is_none() {
        open.retain_mut(|visitor| {
            let refused = status(visitor, &host) == 401;
            if refused {
                first_refused.get_or_insert_with(|| told.elapsed());
            }
            // Between two requests, so that none waits for all others.
            live.retain(|tunnel| !tunnel.is_cut());
            if live.is_empty() {
                all_cut.get_or_insert_with(|| told.elapsed());
            }
            !refused
        });
        if open.is_empty() {
            all_refused.get_or_insert_with(|| told.elapsed());
            live.retain(|tunnel| !tunnel.is_cut());
        }
        if live.is_empty() {
            all_cut.get_or_insert_with(|| told.elapsed());
        }
        assert!(told.elapsed() < DEADLINE, "{} open, {} live", open.len(), live.len());
    }
    effects.first_refused.extend(first_refused);
    effects.all_refused.extend(all_refused);
    effects.all_cut.extend(all_cut);
}

fn figures(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1000.0;
    println!(
        "{what:<44} n {}  p50 {:7.3}  p99 {:7.3}  max {:7.3} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

#[test]
#[ignore = "a measurement; see the top of tests/gate/effect.rs"]
fn event_to_effect() {
    let settings = [("SANDGATE_SHARDS", "2"), ("SANDGATE_LOOKUP_RATE", "0")];
    let world = World::before(runner(), &settings);
    let mut teller = Teller(TcpStream::connect(("127.0.0.1", world.redis.port)).expect("Redis listens"));
    let mut visitors: Vec<Wire> = (0..CONNECTIONS).map(|_| world.gate.connect()).collect();
    for way in ["event", "key"] {
        let mut effects = Effects::default();
        for n in 0..FLIPS {
            let sandbox = format!("{way}{n}");
            let event = format!(
                r#"{{"sandbox":{{"id":"{sandbox}","public":false}},"oldDesiredState":"x","newDesiredState":"y"}}"#
            );
            let key = format!("proxy:sandbox-public:{sandbox}");
            let tell = || match way {
                "event" => teller.tell(&["PUBLISH", CHANNEL, &event]),
                _ => teller.tell(&["DEL", &key]),
            };
            flip(&world, &mut visitors, &sandbox, tell, &mut effects);
        }
        let Effects { request, first_refused, all_refused, all_cut } = effects;
        println!("made private, told by {way}; 2 shards, {CONNECTIONS} visitors, {CONNECTIONS} tunnels:");
        figures("  a request and its answer before", request);
        figures("  to the first refused request", first_refused);
        figures("  to a refused request of each visitor", all_refused);
        figures("  to the end of all tunnels", all_cut);
    }
}
