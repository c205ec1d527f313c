//! What the kernel may do to a gate: deadlines that race with bytes, interrupted waits, no ring, little locked memory,
//! and gigabytes through pipes, also in segments of a real network's size.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, ok};
use crate::shared::until;
use crate::traffic::{Dice, Kind, Ledger, Outcome, attempt, pattern, serve_honestly};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// The last byte of each of these comes about when its deadline does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Race {
    Head,
    Body,
    /// The next request on a connection that is about to be closed.
    Idle,
}

/// `true`: answered with its own body. `false`: refused, or ended without a byte.
fn race(gate: &Gate, race: Race, wait: Duration, id: u64) -> bool {
    let body = format!("body-of-{id}");
    let path = format!("/{race:?}/{id}");
    let length = body.len();
    let mut wire = gate.connect();
    let request = format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}");
    let held = match race {
        Race::Head => request.find("\r\n\r\n").expect("a head") + 3,
        Race::Body => request.len() - 1,
        Race::Idle => {
            assert_eq!(wire.get("/first").expect("an answer").status(), 200);
            0
        }
    };
    wire.send(&request[..held]).expect("the gate reads");
    // Drawn to fall before, into and behind the sweep that closes.
    thread::sleep(wait);
    let _ = wire.send(&request[held..]);
    match wire.message() {
        Ok(Some(answer)) if answer.status() == 200 => {
            assert_eq!(answer.text(), body, "{race:?} {id}");
            true
        }
        Ok(Some(answer)) => {
            assert_eq!(answer.status(), 408, "{race:?} {id}: {answer:?}");
            assert!(race != Race::Idle, "an idle connection is closed in silence");
            false
        }
        Ok(None) => false,
        Err(error) => {
            let ended = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof);
            assert!(ended, "{race:?} {id}: {error}");
            false
        }
    }
}

#[test]
fn a_byte_that_races_with_a_deadline_is_served_or_refused_and_never_lost() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            if wire.send(ok(&request.text())).is_err() {
                return;
            }
        }
    });
    let settings = [
        ("SANDGATE_HEAD_TIMEOUT_MS", "300"),
        ("SANDGATE_CLIENT_STALL_MS", "300"),
        ("SANDGATE_CLIENT_IDLE_MS", "300"),
    ];
    let gate = Gate::start(&Api::start(runner.addr), &settings);
    let (served, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for worker in 0..48_u64 {
            let (gate, served, ended) = (&gate, &served, &ended);
            scope.spawn(move || {
                let mut dice = Dice(worker);
                for round in 0..4 {
                    let kind = [Race::Head, Race::Body, Race::Idle][(worker as usize + round) % 3];
                    let wait = Duration::from_micros(200_000 + dice.below(400_000));
                    let count =
                        if race(gate, kind, wait, worker * 100 + round as u64) { served } else { ended };
                    count.fetch_add(1, SeqCst);
                }
            });
        }
    });
    let (served, ended) = (served.into_inner(), ended.into_inner());
    assert!(served > 20 && ended > 20, "{served} served, {ended} ended: no race was run");
    gate.await_metric("http_server_active_requests", 0);
    gate.check(&runner);
}

/// A stop and a continue end a wait in the kernel with EINTR, handler or not (signal(7)).
#[test]
fn waits_interrupted_a_thousand_times_a_second_lose_nothing() {
    let ledger = Ledger::new();
    let doing = ledger.clone();
    let runner = Runner::start(move |mut wire, _| {
        let _ = serve_honestly(&mut wire, &doing);
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let (done, interrupts) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (gate, interrupts) = (&gate, &interrupts);
                scope.spawn(move || {
                    for round in 0.. {
                        if round >= 40 && interrupts.load(SeqCst) >= 200 {
                            return;
                        }
                        let kind = Kind::ALL[(worker + round) % Kind::ALL.len()];
                        let id = (worker * 1_000_000 + round) as u64;
                        let outcome = attempt(&mut gate.connect(), HOST, "None", kind, id);
                        assert_eq!(outcome, Outcome::Complete, "{kind:?} {id}");
                    }
                })
            })
            .collect();
        let (gate, done, interrupts) = (&gate, &done, &interrupts);
        scope.spawn(move || {
            while !done.load(SeqCst) {
                gate.signal(rustix::process::Signal::STOP);
                gate.signal(rustix::process::Signal::CONT);
                interrupts.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_micros(700));
            }
        });
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, SeqCst);
        assert!(results.iter().all(Result::is_ok), "a worker failed");
    });
    ledger.check();
    gate.check(&runner);
}

#[test]
fn little_locked_memory_is_enough() {
    let runner = Runner::echo();
    let gate = Gate::start_under(&["prlimit", "--memlock=65536:65536"], &Api::start(runner.addr), &[]);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    let asked = std::env::var("SANDGATE_TEST_DRIVER").unwrap_or_else(|_| "io_uring".into());
    let events = gate.events.lock().expect("no thread panics with it").clone();
    assert!(events.contains(&format!("\"driver\":\"{asked}")), "{events}");
}

/// On a thread of its own, whose children inherit the filter: `io_uring_setup` fails there as in a container.
fn without_ring<R: Send>(errno: i32, run: impl FnOnce() -> R + Send) -> R {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    thread::scope(|scope| {
        let confined = scope.spawn(move || {
            let arch = std::env::consts::ARCH.try_into().expect("an architecture the filter knows");
            let forbidden = SeccompAction::Errno(errno.unsigned_abs());
            let calls = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
            let filter =
                SeccompFilter::new(calls, SeccompAction::Allow, forbidden, arch).expect("a good filter");
            let program: BpfProgram = filter.try_into().expect("it compiles");
            apply_filter(&program).expect("a thread may confine itself");
            run()
        });
        confined.join().expect("no panic")
    })
}

#[test]
fn where_the_ring_is_forbidden_epoll_serves_and_one_line_says_why() {
    for (errno, word) in [(libc::EPERM, "not permitted"), (libc::ENOSYS, "not implemented")] {
        let runner = Runner::echo();
        let api = Api::start(runner.addr);
        let gate = without_ring(errno, || Gate::start(&api, &[("SANDGATE_DRIVER", "auto")]));
        assert_eq!(gate.get("/").expect("an answer").status(), 200);
        let events = gate.events.lock().expect("no thread panics with it").to_lowercase();
        let lines: Vec<&str> = events.lines().filter(|line| line.contains("io_uring")).collect();
        let [line] = lines[..] else { panic!("not one line: {events}") };
        assert!(line.contains("\"driver\":\"epoll\"") && line.contains(word), "{line}");
    }
}

#[test]
fn where_the_ring_is_forbidden_and_was_asked_for_nothing_starts() {
    let output = without_ring(libc::EPERM, || {
        Command::new(env!("CARGO_BIN_EXE_sandgate"))
            .env("DAYTONA_API_URL", "http://127.0.0.1:1/api")
            .env("PROXY_PORT", crate::free_port::free_port().to_string())
            .env("PROXY_PROTOCOL", "http")
            .env("PROXY_API_KEY", "a-key-of-this-test-and-of-nothing-else")
            .env("SANDGATE_LISTEN", "127.0.0.1")
            .env("SANDGATE_DRIVER", "io_uring")
            .output()
            .expect("the binary runs")
    });
    let events = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && events.contains("io_uring was asked for"), "{events}");
}

// ---------------------------------------------------------------------------------------------------------------
// Bulk

const BLOCK: usize = 1 << 20;

/// Blocks of a body of any length: each another stretch of one noise.
struct Noise(Vec<u8>);

impl Noise {
    fn new() -> Arc<Self> {
        Arc::new(Self(pattern(1, 2 * BLOCK)))
    }

    fn block(&self, n: usize) -> &[u8] {
        let at = (n * 4099) % BLOCK;
        &self.0[at..at + BLOCK]
    }

    fn send(&self, wire: &mut Wire, blocks: usize) -> std::io::Result<()> {
        (0..blocks).try_for_each(|n| wire.send(self.block(n)))
    }

    fn expect(&self, wire: &mut Wire, blocks: usize) {
        for n in 0..blocks {
            let came = wire.exactly(BLOCK).unwrap_or_else(|error| panic!("block {n} of {blocks}: {error}"));
            assert!(came == self.block(n), "block {n} of {blocks} is another");
        }
    }
}

/// `/down/{blocks}` sends, `/up/{blocks}` checks, a WebSocket does both at once.
fn bulk_runner(ip: IpAddr, noise: &Arc<Noise>) -> Runner {
    let noise = noise.clone();
    Runner::start_at(ip, move |mut wire, _| {
        while let Ok(Some(head)) = wire.head() {
            let mut words = head.target().rsplit('/');
            let blocks: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("down") => {
                    let length = blocks * BLOCK;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    if wire.send(head).is_err() || noise.send(&mut wire, blocks).is_err() {
                        return;
                    }
                }
                Some("up") => {
                    noise.expect(&mut wire, blocks);
                    if wire.send(ok("as sent")).is_err() {
                        return;
                    }
                }
                Some("both") => {
                    let _ = wire.send(crate::traffic::answer(Kind::WebSocket, 0));
                    let mut down = wire.again();
                    thread::scope(|scope| {
                        scope.spawn(|| noise.send(&mut down, blocks));
                        noise.expect(&mut wire, blocks);
                    });
                    return;
                }
                _ => {
                    let _ = wire.send(ok("small"));
                }
            }
        }
    })
}

fn download(gate: &Gate, noise: &Noise, blocks: usize) {
    let mut wire = gate.connect();
    wire.send(format!("GET /down/{blocks} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 200);
    noise.expect(&mut wire, blocks);
}

fn upload(gate: &Gate, noise: &Noise, blocks: usize) {
    let mut wire = gate.connect();
    let length = blocks * BLOCK;
    wire.send(format!("POST /up/{blocks} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"))
        .expect("the gate reads");
    noise.send(&mut wire, blocks).expect("the gate reads");
    wire.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
    assert_eq!(wire.expect_message().expect("the runner checked every block").text(), "as sent");
}

fn both_ways(gate: &Gate, noise: &Noise, blocks: usize) {
    let mut wire = gate.connect();
    wire.send(format!(
        "GET /both/{blocks} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))
    .expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
    let mut up = wire.again();
    thread::scope(|scope| {
        scope.spawn(move || {
            noise.send(&mut up, blocks).expect("the gate reads");
            up.end_writing();
        });
        noise.expect(&mut wire, blocks);
    });
    // The runner ends when it has checked all of its own.
    assert!(wire.is_over());
}

#[test]
fn the_memory_of_a_burst_goes_back_to_the_kernel_when_nothing_comes_after_it() {
    let runner = Runner::start(|mut wire, _| while let Ok(Some(_)) = wire.message() {});
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let before = gate.resident();
    // Each has a buffer of 16 KiB and the state of a request.
    let burst: Vec<Wire> = (0..500)
        .map(|_| {
            let mut wire = gate.connect();
            wire.send(format!("GET / HTTP/1.1\r\nX-Half: {}", "x".repeat(9000))).expect("the gate reads");
            wire
        })
        .collect();
    until(|| gate.resident() > before + 7000, "what a burst brings is kept in memory");
    drop(burst);
    until(|| gate.resident() < before + 3500, "most of it is given back");
}

/// `SANDGATE_TEST_BULK_MB` each way, 512 by default: memory is flat from the first block to the last.
#[test]
fn bodies_far_larger_than_memory_may_be_pass_in_flat_memory_and_through_pipes() {
    let megabytes = std::env::var("SANDGATE_TEST_BULK_MB").ok();
    let blocks: usize = megabytes.map_or(512, |mb| mb.parse().expect("SANDGATE_TEST_BULK_MB is a number"));
    let noise = Noise::new();
    let runner = bulk_runner(IpAddr::from([127, 0, 0, 1]), &noise);
    // Gigabytes are not kept for reading.
    runner.forget();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for transfer in [download, upload] {
        transfer(&gate, &noise, 32);
    }
    let before = gate.resident();
    let (done, highest) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut took = Vec::new();
    thread::scope(|scope| {
        let (gate, done, highest) = (&gate, &done, &highest);
        scope.spawn(move || {
            while !done.load(SeqCst) {
                highest.fetch_max(gate.resident() as usize, SeqCst);
                thread::sleep(Duration::from_millis(5));
            }
        });
        for transfer in [download, upload] {
            let (begun, spent) = (Instant::now(), gate.cpu());
            transfer(gate, &noise, blocks);
            took.push((begun.elapsed(), gate.cpu() - spent));
        }
        done.store(true, SeqCst);
    });
    let grown = (highest.into_inner() as u64).saturating_sub(before);
    println!(
        "{blocks} MiB down and up: (time, CPU of the gate) {took:?}, resident {before} KiB and {grown} KiB more"
    );
    assert!(grown < 8 * 1024, "{grown} KiB more than {before} KiB");
    let page = gate.page();
    for way in ["up", "down"] {
        let of = |how: &str| {
            crate::harness::sample_of(&page, &format!("preview_bytes_total{{dir=\"{way}\",path=\"{how}\"}}"))
        };
        let (copied, spliced) = (of("copy"), of("splice"));
        assert!(spliced > 50 * copied, "{way}: {copied} bytes copied, {spliced} spliced");
    }
}

/// Two network namespaces and a cable between them whose segments are no larger than a real one's.
struct Cable {
    world: String,
    gates: String,
}

impl Cable {
    const WORLD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 203, 113, 1));
    const GATES: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 203, 113, 2));

    fn lay() -> Self {
        let id = std::process::id();
        let cable = Self { world: format!("sgw{id}"), gates: format!("sgg{id}") };
        let Self { world, gates } = &cable;
        for command in [
            format!("netns add {world}"),
            format!("netns add {gates}"),
            format!("link add v0 netns {world} type veth peer name v1 netns {gates}"),
            format!("-n {world} addr add {}/24 dev v0", Self::WORLD),
            format!("-n {gates} addr add {}/24 dev v1", Self::GATES),
            format!("-n {world} link set v0 gso_max_segs 1 up"),
            format!("-n {gates} link set v1 gso_max_segs 1 up"),
            format!("-n {world} link set lo up"),
            format!("-n {gates} link set lo up"),
        ] {
            cable.ip(&command);
        }
        cable
    }

    fn ip(&self, command: &str) {
        let output = Command::new("ip").args(command.split(' ')).output();
        let told = match &output {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        panic!(
            "`ip {command}` failed ({}): this test lays a cable between network namespaces; run it as root (in a \
             container with --cap-add NET_ADMIN --cap-add SYS_ADMIN) with iproute2 installed: apt-get install iproute2",
            told.trim()
        );
    }

    /// On a thread in the namespace of clients, runners and API.
    fn in_world<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.world)).expect("it was made");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let network = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(network),
                )
                .expect("as root");
                run()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Packets that arrived at the gate's end.
    fn packets(&self) -> u64 {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.gates, "cat", "/sys/class/net/v1/statistics/rx_packets"])
            .output()
            .expect("it ran before");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.world, &self.gates] {
            // The test says what failed, if something did.
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// Loopback moves 64 KiB at a time; a network moves 1448 bytes, which is where pages in pipes are many and small.
#[test]
fn a_hundred_megabytes_each_way_arrive_to_the_byte_in_segments_of_a_network() {
    let cable = Cable::lay();
    let world = Cable::WORLD;
    let gates = Cable::GATES.to_string();
    cable.in_world(|| {
        let noise = Noise::new();
        let runner = bulk_runner(world, &noise);
        runner.forget();
        let api = Api::start_at(world, runner.addr);
        let settings = [("SANDGATE_LISTEN", gates.as_str()), ("SANDGATE_METRICS_LISTEN", gates.as_str())];
        let gate = Gate::start_under(&["ip", "netns", "exec", &cable.gates], &api, &settings);
        let before = cable.packets();
        for transfer in [download, upload, both_ways] {
            transfer(&gate, &noise, 100);
        }
        let packets = cable.packets() - before;
        let segments = (4 * 100 * BLOCK / 1448) as u64;
        assert!(packets > segments, "{packets} packets: these were no segments of a network ({segments})");
        let spliced = gate.metric("preview_bytes_total{dir=\"down\",path=\"splice\"}");
        assert!(spliced > 100 << 20, "{spliced} bytes spliced");
    });
}

#[test]
fn a_gate_with_nothing_to_do_does_nothing() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    let spent = gate.cpu();
    thread::sleep(Duration::from_secs(1));
    let spent = gate.cpu() - spent;
    assert!(spent <= Duration::from_millis(100), "{spent:?} in a second of nothing");
    assert!(DEADLINE > Duration::from_secs(1));
}

/// More completions at once than the submission queue holds entries are what a burst is: none may be lost, and as many
/// deadlines in one sweep all fire.
#[test]
fn thousands_of_requests_and_of_deadlines_at_the_same_moment_are_all_dealt_with() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    const CROWD: usize = 6000;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(most > 2 * CROWD as u64, "the test needs more descriptors than {most}: ulimit -n");
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_CLIENT_IDLE_MS", "4000")]);
    assert_eq!(gate.get("/").expect("an answer").status(), 200);
    let mut crowd: Vec<Wire> = (0..CROWD).map(|_| gate.connect()).collect();
    gate.await_metric("preview_connections_open{shard=\"0\"}", CROWD as u64);
    // Everything is in the sockets before the gate sees any of it.
    gate.signal(rustix::process::Signal::STOP);
    for wire in &mut crowd {
        wire.send("GET /health HTTP/1.1\r\nHost: base.test\r\n\r\n").expect("room in the socket");
    }
    gate.signal(rustix::process::Signal::CONT);
    for (number, wire) in crowd.iter_mut().enumerate() {
        let answer = wire.expect_message().unwrap_or_else(|error| panic!("{number} of {CROWD}: {error}"));
        assert_eq!(answer.status(), 200);
    }
    for wire in &mut crowd {
        assert!(wire.is_over(), "an idle connection is closed");
    }
    drop(crowd);
    gate.await_metric("preview_connections_open{shard=\"0\"}", 0);
    assert_eq!(gate.get("/after").expect("an answer").status(), 200);
}

/// What a crowd asks and is answered is all there before the gate sees any of it.
#[test]
fn requests_and_answers_of_one_moment_leave_together_and_each_arrives_where_it_belongs() {
    use rustix::process::Signal;
    const CROWD: usize = 40;
    // Requests at the runner so far, how many of them it may answer, and answers it has given.
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let theirs = counts.clone();
    let runner = Runner::start(move |mut wire, _| {
        let [asked, allowed, answered] = &*theirs;
        while let Ok(Some(request)) = wire.message() {
            let number = asked.fetch_add(1, SeqCst);
            until(|| allowed.load(SeqCst) > number, "nobody lets the runner answer");
            wire.send(ok(request.target())).expect("the gate reads");
            answered.fetch_add(1, SeqCst);
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut crowd: Vec<Wire> = (0..CROWD).map(|_| gate.connect()).collect();
    let [asked, allowed, answered] = &*counts;
    // The first round makes the runner's connections, the second finds them.
    for round in 1..=2 {
        gate.signal(Signal::STOP);
        for (number, wire) in crowd.iter_mut().enumerate() {
            let head = format!("GET /{round}/{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
            wire.send(head).expect("room in the socket");
        }
        gate.signal(Signal::CONT);
        until(|| asked.load(SeqCst) == round * CROWD, "a request does not reach the runner");
        gate.signal(Signal::STOP);
        allowed.store(round * CROWD, SeqCst);
        until(|| answered.load(SeqCst) == round * CROWD, "the runner does not answer");
        gate.signal(Signal::CONT);
        for (number, wire) in crowd.iter_mut().enumerate() {
            let answer = wire.expect_message().expect("an answer").text();
            assert!(answer.ends_with(&format!("/{round}/{number}")), "{number}: {answer}");
        }
    }
    let epoll = std::env::var("SANDGATE_TEST_DRIVER").is_ok_and(|driver| driver == "epoll");
    let together = gate.metric("preview_sent_together_total");
    assert!(if epoll { together == 0 } else { together >= CROWD as u64 }, "{together}");
    gate.check(&runner);
}
