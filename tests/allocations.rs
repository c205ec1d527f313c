//! What a request costs in allocations: none in the stages once the caches know it, and a counted few in the shard
//! around them. `cargo bench --bench stages` tells the time of the same stages on the same inputs.

#[path = "../benches/stages/inputs.rs"]
#[allow(dead_code, reason = "shared with the benchmarks, which use the rest")]
mod inputs;

use allocation_counter::measure;
use inputs::{ANSWER, BEARER, BROWSER, HEADER_TOKEN, SHORT, World};
use sandgate::chunked::{self, ChunkReader, Piece};
use sandgate::error::Cause;
use sandgate::forward;
use sandgate::head::{Method, Reject, RequestHead, ResponseHead};
use sandgate::log_writer::LogWriter;
use sandgate::mailbox::{Down, ToControl, ToShard, Trouble};
use sandgate::ring::{self, Driver, Wish};
use sandgate::route::NoRoute;
use sandgate::shard::{self, Start};
use sandgate::socket;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use tokio::sync::mpsc;

/// What the settings say of `SANDGATE_SANDBOX_CACHE_MAX`, and of `SANDGATE_VERDICT_CACHE_MAX`.
const SANDBOX_BYTES: u64 = 300;
const VERDICT_BYTES: u64 = 300;

/// Runs `stage` a hundred times after once, which may grow what is kept for ever.
fn assert_no_allocation(name: &str, mut stage: impl FnMut()) {
    stage();
    let counted = measure(|| (0..100).for_each(|_| stage()));
    assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
}

const REQUESTS: [(&str, &[u8]); 4] =
    [("browser", BROWSER), ("short", SHORT), ("header token", HEADER_TOKEN), ("bearer", BEARER)];

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(black_box(Box::new(black_box(1)))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn reading_a_head_allocates_nothing() {
    let limits = inputs::config().limits.clone();
    for (name, bytes) in REQUESTS {
        assert_no_allocation(name, || {
            black_box(RequestHead::parse(black_box(bytes), &limits).is_ok());
        });
    }
    assert_no_allocation("answer", || {
        black_box(ResponseHead::parse(black_box(ANSWER), Method::Get, &limits).is_ok());
    });
}

#[test]
fn a_request_the_caches_know_finds_its_way_without_allocation() {
    let world = World::new();
    for (name, bytes) in REQUESTS {
        world.warm(bytes);
        let head = inputs::request(bytes, &world.limits);
        assert_no_allocation(name, || {
            let route = inputs::routed(black_box(&head));
            let grant = world.granted(&route, &head);
            black_box(world.located(&grant));
        });
    }
}

#[test]
fn a_session_is_checked_without_allocation() {
    let world = World::new();
    let bytes = inputs::cookie_request(&world.shard.cookie_keys);
    world.warm(&bytes);
    let head = inputs::request(&bytes, &world.limits);
    let route = inputs::routed(&head);
    assert_no_allocation("session", || {
        black_box(world.granted(black_box(&route), &head));
    });
}

#[test]
fn writing_heads_allocates_nothing_but_the_buffer() {
    let limits = inputs::config().limits.clone();
    let (path, mut out) = (inputs::runner_path(), Vec::with_capacity(16 * 1024));
    for (name, bytes) in REQUESTS {
        let head = inputs::request(bytes, &limits);
        let plan = inputs::request_plan(&path);
        assert_no_allocation(name, || {
            out.clear();
            forward::write_request(black_box(&head), &plan, &mut out);
        });
    }
    let (answer, plan) = (inputs::response(ANSWER, &limits), inputs::response_plan());
    assert_no_allocation("answer", || {
        out.clear();
        forward::write_response(black_box(&answer), &plan, &mut out);
    });
}

#[test]
fn chunks_are_read_and_written_without_allocation() {
    let body = inputs::chunked(100, 700);
    let mut out = Vec::with_capacity(1024);
    assert_no_allocation("chunks", || {
        let (mut reader, mut at, mut data) = (ChunkReader::new(1024), 0, 0);
        loop {
            match reader.next(&body[at..]).expect("it is good") {
                (used, Piece::Data { n, .. }) => {
                    (at, data) = (at + used, data + n);
                    out.clear();
                    chunked::write_chunk_line(n as u64, &mut out);
                }
                (_, end) => {
                    assert_eq!((end, data), (Piece::End, 70_000));
                    return;
                }
            }
        }
    });
}

#[test]
fn a_cause_finds_its_row_without_allocation() {
    let causes = [
        Cause::Rejected(Reject::BareLf),
        Cause::NoRoute(NoRoute::NotFound),
        Cause::AuthRequired,
        Cause::Api(Trouble::ApiRateLimited(None)),
        Cause::RunnerConnect,
        Cause::Internal,
    ];
    for cause in causes {
        assert_no_allocation("cause", || {
            black_box(black_box(cause).answer());
        });
    }
}

/// What a sandbox costs while it is remembered, with a token that opens it: what the settings say, whoever makes up
/// the names, and nothing beyond their number.
#[test]
fn random_names_cost_what_the_settings_say_up_to_their_number_and_nothing_beyond() {
    const ENTRIES: u64 = 4096;
    let most = ENTRIES.to_string();
    let one = measure(|| drop(black_box(World::with(&cache_sizes("1", "1")))));
    for (sandbox_count, verdict_count, bytes_each, opens) in [
        (most.as_str(), "1", SANDBOX_BYTES, open as fn(u64) -> String),
        ("1", most.as_str(), VERDICT_BYTES, private),
    ] {
        let mut world = None;
        let ahead = measure(|| world = Some(World::with(&cache_sizes(sandbox_count, verdict_count))));
        let world = world.expect("it was made");
        let visit = |names: std::ops::Range<u64>| {
            measure(|| names.for_each(|name| world.warm(opens(name).as_bytes())))
        };
        let filled = visit(0..ENTRIES);
        let beyond = visit(ENTRIES..5 * ENTRIES);
        let verdicts = world.shard.verdicts.borrow();
        let held = [verdicts.public.len(), world.shard.places.borrow().len(), verdicts.proofs.len()];
        let each = if verdict_count == "1" { [ENTRIES, ENTRIES, 0] } else { [1, 1, ENTRIES] };
        assert_eq!(held.map(|len| len as u64), each);
        let bytes = ahead.bytes_max - one.bytes_max + filled.bytes_current.max(0) as u64;
        println!("{} bytes each", bytes / ENTRIES);
        assert!(bytes <= bytes_each * ENTRIES, "{} bytes each", bytes / ENTRIES);
        assert!(beyond.bytes_current <= 64 * 1024, "{} bytes more", beyond.bytes_current);
    }
}

/// Nobody is charged for asking.
fn cache_sizes<'v>(sandboxes: &'v str, verdicts: &'v str) -> [(&'static str, &'v str); 3] {
    let rate = ("SANDGATE_LOOKUP_RATE", "0");
    [("SANDGATE_SANDBOX_CACHE_MAX", sandboxes), ("SANDGATE_VERDICT_CACHE_MAX", verdicts), rate]
}

fn open(name: u64) -> String {
    format!("GET / HTTP/1.1\r\nHost: 3000-public{name:051}.preview.example\r\n\r\n")
}

fn private(name: u64) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: 3000-private{name:050}.preview.example\r\n\
         X-Daytona-Preview-Token: token-{name}\r\n\r\n"
    )
}

/// All that a shard allocates for one more request on a busy kept-alive connection, its runtime included: nothing on a
/// ring, where the connection keeps the request's working state for a moment; that state on epoll. Found by counting a
/// short and a long life of the same shard and dividing the difference.
#[test]
fn a_request_costs_a_shard_no_allocation_on_a_ring_and_one_on_epoll() {
    for driver in [ring::choose(Wish::Auto).expect("there is epoll at least").driver, Driver::Epoll] {
        let (few, many) = (lifetime(driver, 1_000), lifetime(driver, 11_000));
        let per_request = (many as f64 - few as f64) / 10_000.0;
        println!("{}: {per_request:.3} allocations per request", driver.as_str());
        let expected = if driver == Driver::Epoll { 1.0 } else { 0.0 };
        // The shard's clock ticks meanwhile, and not equally often in both lives; a pause cools the connection.
        assert!(per_request < expected + 0.1, "{}: {per_request}", driver.as_str());
    }
}

/// Allocations of a shard's whole life, in which one client sends `requests` requests one after the other.
fn lifetime(driver: Driver, requests: usize) -> u64 {
    let runner = inputs::runner(app());
    let (up, mut questions) = mpsc::channel(16);
    let down = Arc::new(Down::new(32).expect("an eventfd"));
    let listener =
        socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)), 16, false).expect("loopback has a free port");
    let addr =
        socket2::SockRef::from(&listener).local_addr().ok().and_then(|a| a.as_socket()).expect("bound");
    let log = LogWriter::spawn("log", Box::new(io::sink()), 1).expect("a thread");
    let config = inputs::config();
    // Nobody has to wait for it.
    let (ready, _) = std::sync::mpsc::channel();
    down.push(ToShard::Accept { client_fd_end: i32::MAX, idle_fd_end: i32::MAX })
        .expect("the queue has room");
    let start = Start {
        index: 0,
        admission: inputs::admission(&config),
        config,
        driver,
        core: None,
        listener,
        ready,
        down: down.clone(),
        up,
        log: log.sender(),
    };
    let answers = down.clone();
    thread::spawn(move || {
        while let Some(message) = questions.blocking_recv() {
            if let ToControl::Ask { ticket, question, .. } = message {
                let reply = Ok(inputs::answer(&question, &runner));
                let keep = std::time::Duration::from_secs(3600);
                answers.push(ToShard::Answer { ticket, reply, keep }).expect("the queue has room");
            }
        }
    });
    let shard = thread::spawn(move || {
        let counted = measure(|| shard::run(start).expect("it runs"));
        counted.count_total
    });
    let mut client = TcpStream::connect(addr).expect("it listens");
    client.set_nodelay(true).expect("an open socket");
    for _ in 0..requests {
        client.write_all(SHORT).expect("it reads");
        read_answer(&mut client);
    }
    down.push(ToShard::Stop).expect("the queue has room");
    shard.join().expect("no panic")
}

fn read_answer(client: &mut TcpStream) {
    let (mut answer, mut len) = ([0; 4096], 0);
    while !answer[..len].ends_with(b"the body") {
        match client.read(&mut answer[len..]).expect("an answer within its time") {
            0 => panic!("it closed after {:?}", String::from_utf8_lossy(&answer[..len])),
            n => len += n,
        }
    }
}

/// An app that answers every request, of any number of connections.
fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut request, mut len) = ([0; 4096], 0);
                while let Ok(n @ 1..) = stream.read(&mut request[len..]) {
                    len += n;
                    if request[..len].ends_with(b"\r\n\r\n") {
                        len = 0;
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe body";
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    addr
}
