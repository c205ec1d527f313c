//! What it costs to know many sandboxes: CPU of a shard per request, and memory per sandbox, with 1, 10,000 and 1,000,000
//! of them remembered. Run with `cargo bench --bench known`; `-- 100000` adds a row.
//!
//! Whole shards, rings, sockets and all, each on a thread of its own on one CPU; client, app and the one who answers the
//! shards' questions share another. First each sandbox is visited once, which nobody measures; then sandboxes are drawn
//! at random, so that hardly a request finds its entry in a CPU's cache. Every answer is then from memory: a question
//! asked while it is measured ends the run. Rounds of all sizes are interleaved.

#[path = "../stages/inputs.rs"]
#[allow(dead_code, reason = "shared with the stages, which use the rest")]
mod inputs;

use rustix::thread::{CpuSet, sched_setaffinity};
use sandgate::log_writer::LogWriter;
use sandgate::mailbox::{Down, ToControl, ToShard};
use sandgate::ring::{self, Wish};
use sandgate::shard::{self, Start};
use sandgate::socket;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc as channel;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [u64; 3] = [1, 10_000, 1_000_000];
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(1500);
/// Each has one request under way.
const CONNECTIONS: usize = 64;
/// Of the app's answer.
const BODY: usize = 1024;
const KEEP: Duration = Duration::from_secs(3600);

fn main() {
    let more = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let mut sizes: Vec<u64> = SIZES.into_iter().chain(more).collect();
    sizes.sort_unstable();
    sizes.dedup();
    pin(1);
    let app = app();
    let mut benches: Vec<_> = sizes.iter().map(|&size| Bench::start(size, app)).collect();
    for bench in &mut benches {
        bench.meet_all();
    }
    let mut costs = vec![Vec::new(); benches.len()];
    for round in 0..ROUNDS {
        for n in 0..benches.len() {
            let n = (n + round) % benches.len();
            costs[n].push(benches[n].measure());
        }
    }
    report(&benches, &costs);
    // The shards are not drained: the process ends with them.
    std::process::exit(0);
}

fn report(benches: &[Bench], costs: &[Vec<f64>]) {
    println!("| sandboxes known | CPU us per request [lowest-highest] | of the first | bytes per sandbox |");
    println!("|---|---|---|---|");
    let middle = |costs: &[f64]| {
        let mut sorted = costs.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
    };
    let first = middle(&costs[0]).0;
    for (bench, costs) in benches.iter().zip(costs) {
        let (median, lowest, highest) = middle(costs);
        let bytes = match bench.size {
            // Lost in what the first request of all brings.
            ..1000 => String::new(),
            size => (bench.grown_bytes / size).to_string(),
        };
        let (size, ratio) = (bench.size, median / first);
        println!("| {size} | {median:.2} [{lowest:.2}-{highest:.2}] | {ratio:.3} | {bytes} |");
    }
}

/// A shard that knows so many sandboxes, and its clients.
struct Bench {
    size: u64,
    wires: Vec<TcpStream>,
    /// Of the shard's thread.
    schedstat: String,
    asked: Arc<AtomicU64>,
    random: u64,
    grown_bytes: u64,
}

impl Bench {
    fn start(size: u64, app: SocketAddr) -> Self {
        let listener = socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 256, false)
            .expect("loopback has a free port");
        let addr = socket2::SockRef::from(&listener).local_addr().expect("bound");
        let addr = addr.as_socket().expect("of the internet");
        let (up, mut questions) = mpsc::channel(4096);
        let down = Arc::new(Down::new(4096).expect("an eventfd"));
        let log = LogWriter::spawn("log", Box::new(io::sink()), 1).expect("a thread");
        let config = inputs::config_with(&[
            ("SANDGATE_SANDBOX_CACHE_MAX", &size.to_string()),
            ("SANDGATE_ACCESS_LOG", "off"),
            ("SANDGATE_LOOKUP_RATE", "0"),
            // Each sandbox used is reported every 45 s, which is work by the sandbox used, not by the sandbox known.
            ("SANDGATE_ANONYMOUS_ACTIVITY", "false"),
        ]);
        // Nobody has to wait for it.
        let (ready, _) = channel::channel();
        down.push(ToShard::Accept { client_fd_end: i32::MAX, idle_fd_end: i32::MAX })
            .expect("the queue has room");
        let start = Start {
            index: 0,
            admission: inputs::admission(&config),
            config,
            driver: ring::choose(Wish::Auto).expect("there is epoll at least").driver,
            core: None,
            listener,
            ready,
            down: down.clone(),
            up,
            log: log.sender(),
        };
        let (runner, asked) = (inputs::runner(app), Arc::new(AtomicU64::new(0)));
        let counted = asked.clone();
        thread::spawn(move || {
            while let Some(message) = questions.blocking_recv() {
                if let ToControl::Ask { ticket, question, .. } = message {
                    counted.fetch_add(1, Relaxed);
                    let reply = Ok(inputs::answer(&question, &runner));
                    down.push(ToShard::Answer { ticket, reply, keep: KEEP }).expect("the queue has room");
                }
            }
        });
        let (tell, told) = channel::channel();
        thread::spawn(move || {
            // Lives as long as the shard.
            let _log = log;
            pin(0);
            tell.send(rustix::thread::gettid().as_raw_nonzero()).expect("it waits");
            shard::run(start).expect("it runs");
        });
        let schedstat = format!("/proc/self/task/{}/schedstat", told.recv().expect("it begins"));
        let connect = |_| {
            let wire = TcpStream::connect(addr).expect("it listens");
            wire.set_nodelay(true).expect("an open socket");
            wire
        };
        let wires = (0..CONNECTIONS).map(connect).collect();
        Self { size, wires, schedstat, asked, random: 1, grown_bytes: 0 }
    }

    /// Visits every sandbox once.
    fn meet_all(&mut self) {
        // What is there whatever the number of sandboxes, is there.
        let size = self.size;
        self.visit(std::iter::repeat_n(0, CONNECTIONS * 100));
        let before = resident();
        self.visit(0..size);
        self.grown_bytes = resident().saturating_sub(before);
    }

    /// CPU of the shard's thread, microseconds per request.
    fn measure(&mut self) -> f64 {
        let (asked, cpu, begun) = (self.asked.load(Relaxed), self.cpu(), Instant::now());
        let mut count = 0;
        while begun.elapsed() < ROUND {
            let (mut random, size) = (self.random, self.size);
            let draw = || {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % size
            };
            let sandboxes: Vec<u64> = std::iter::repeat_with(draw).take(CONNECTIONS * 16).collect();
            self.random = random;
            count += sandboxes.len();
            self.visit(sandboxes);
        }
        let cpu = self.cpu() - cpu;
        assert_eq!(self.asked.load(Relaxed), asked, "questions were asked: not everything was remembered");
        cpu as f64 / 1000.0 / count as f64
    }

    /// Each connection asks, then each is read, and again.
    fn visit(&mut self, sandboxes: impl IntoIterator<Item = u64>) {
        let mut sandboxes = sandboxes.into_iter().peekable();
        let mut request = Vec::with_capacity(256);
        while sandboxes.peek().is_some() {
            let mut open = 0;
            for (wire, sandbox) in self.wires.iter_mut().zip(sandboxes.by_ref().take(CONNECTIONS)) {
                request.clear();
                // As long as a UUID.
                let host = format_args!("3000-public-{sandbox:029}.preview.example");
                write!(request, "GET /b HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("memory");
                wire.write_all(&request).expect("it reads");
                open += 1;
            }
            for wire in &mut self.wires[..open] {
                read_answer(wire);
            }
        }
    }

    /// Nanoseconds so far.
    fn cpu(&self) -> u64 {
        let stat = std::fs::read_to_string(&self.schedstat).expect("a thread of ours");
        stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds")
    }
}

fn read_answer(wire: &mut TcpStream) {
    let (mut answer, mut len) = ([0; 4096], 0);
    loop {
        match wire.read(&mut answer[len..]).expect("an answer") {
            0 => panic!("it closed after {:?}", String::from_utf8_lossy(&answer[..len])),
            n => len += n,
        }
        if let Some(end) = answer[..len].windows(4).position(|w| w == b"\r\n\r\n")
            && len == end + 4 + BODY
        {
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..end]));
            return;
        }
    }
}

/// Answers every request on any number of connections with 1 KiB.
fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{}", "x".repeat(BODY));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                let (mut request, mut len) = ([0; 4096], 0);
                while let Ok(n @ 1..) = stream.read(&mut request[len..]) {
                    len += n;
                    if request[..len].ends_with(b"\r\n\r\n") {
                        len = 0;
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    addr
}

/// This thread, and those it starts, to one CPU; where there is only one, all share it.
fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    let _ = sched_setaffinity(None, &only);
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is there");
    line.split_ascii_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("kilobytes") * 1024
}
