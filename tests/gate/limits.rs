//! What one client can cost: look-ups in vain, requests, connections; and whose account it goes on.

use crate::harness::{Api, DEADLINE, Gate, HOST, Message, Runner, Wire, ok};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Instant;

/// A second client: loopback has many addresses.
fn connect_from(gate: &Gate, last: u8) -> Wire {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    socket.bind(&from.into()).expect("all of 127/8 is ours");
    socket.connect(&gate.addr.into()).expect("the gate listens");
    Wire::new(TcpStream::from(socket))
}

fn get(wire: &mut Wire, host: &str, fields: &str) -> Message {
    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

fn api_with_strangers() -> (Runner, Api) {
    let runner = Runner::echo();
    let api = Api::start(runner.addr);
    // Whatever begins with `no` is private, and no token opens it.
    api.script.reply("/api/preview/no", 404, "{}");
    (runner, api)
}

fn is_limited(answer: &Message, code: &str) -> bool {
    let wait: Option<u32> = answer.field("Retry-After").and_then(|v| v.parse().ok());
    answer.status() == 429 && answer.has_code(code) && wait.is_some_and(|seconds| (1..=60).contains(&seconds))
}

#[test]
fn what_cannot_be_a_sandbox_or_a_token_reaches_nobody() {
    let (_runner, api) = api_with_strangers();
    let gate = Gate::start(&api, &[]);
    let long = format!("3000-{}.preview.test", "a".repeat(58));
    for host in [
        "02280-sb1.preview.test",
        "3000-.preview.test",
        "65536-sb1.preview.test",
        "3000-a~b.preview.test",
        &long,
    ] {
        let answer = get(&mut gate.connect(), host, "");
        assert_eq!(answer.status(), 400, "{host}: {answer:?}");
    }
    for path in ["/toolbox/a.b/x", "/toolbox/%2e%2e/x", "/toolbox//x", "/sandboxes/a.b/build-logs"] {
        let mut wire = gate.connect();
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: preview.test\r\nAuthorization: Bearer k\r\n\r\n"))
            .expect("the gate reads");
        let answer = wire.expect_message().expect("an answer");
        assert!(matches!(answer.status(), 400 | 404), "{path}: {answer:?}");
    }
    assert_eq!(api.script.questions.load(SeqCst), 0);
}

#[test]
fn ten_thousand_bad_tokens_at_once_are_a_question_each_and_a_good_client_does_not_notice() {
    const TOKENS: usize = 20;
    const CLIENTS: usize = 10_000;
    let limit = raised_descriptor_limit();
    assert!(limit > CLIENTS as u64 + 4096, "the test needs more descriptors than {limit}");
    let (_runner, api) = api_with_strangers();
    // Nothing is forgotten while the test runs, however slow the machine; the shards share one question.
    let gate = Gate::start(&api, &[("SANDGATE_NEGATIVE_TTL_SEC", "60"), ("SANDGATE_SHARDS", "2")]);
    let mut flood: Vec<Wire> = (0..CLIENTS)
        .map(|n| {
            let mut wire = gate.connect();
            let token = n % TOKENS;
            wire.send(format!(
                "GET / HTTP/1.1\r\nHost: 3000-no1.preview.test\r\nX-Daytona-Preview-Token: bad{token}\r\n\r\n"
            ))
            .expect("the gate reads");
            wire
        })
        .collect();
    let good = get(&mut connect_from(&gate, 2), "2280-sb9.preview.test", "X-Daytona-Preview-Token: good\r\n");
    assert_eq!(good.status(), 200, "{good:?}");
    for wire in &mut flood {
        let answer = wire.expect_message().expect("an answer");
        assert!(answer.status() == 401 || is_limited(&answer, "CLIENT_LIMIT"), "{answer:?}");
    }
    for token in 0..TOKENS {
        let asked = api.script.asked(&format!("/validate/bad{token}")).len();
        assert!(asked <= 1, "{asked} questions about one token");
    }
    assert!(api.script.asked("/api/preview/no1/public").len() <= 1);
}

#[test]
fn random_hosts_cost_what_the_bucket_holds_and_neither_memory_nor_others() {
    let (_runner, api) = api_with_strangers();
    let settings = [
        ("SANDGATE_LOOKUP_RATE", "1"),
        ("SANDGATE_LOOKUP_BURST", "100"),
        ("SANDGATE_SANDBOX_CACHE_MAX", "1000"),
    ];
    let gate = Gate::start(&api, &settings);
    let mut known = gate.connect();
    assert_eq!(get(&mut known, HOST, "").status(), 200);
    let before = api.script.questions.load(SeqCst);
    let mut wire = gate.connect();
    let resident = |gate: &Gate| gate.resident();
    (0..500).for_each(|n| drop(get(&mut wire, &format!("3000-nowarm{n}.preview.test"), "")));
    let (begun, resident_before) = (Instant::now(), resident(&gate));
    let mut limited = 0;
    for n in 0..10_000 {
        let answer = get(&mut wire, &format!("3000-no{n}.preview.test"), "");
        limited += usize::from(is_limited(&answer, "CLIENT_LIMIT"));
        assert!(matches!(answer.status(), 401 | 429), "{answer:?}");
    }
    let (asked, seconds) = (api.script.questions.load(SeqCst) - before, begun.elapsed().as_secs() as usize);
    // One comes back each second, before the count began too.
    assert!(asked <= 100 + seconds + 10, "{asked} questions in {seconds} s");
    assert!(limited >= 9_500, "{limited}");
    let grown = resident(&gate).saturating_sub(resident_before);
    assert!(grown < 4 * 1024, "{grown} KiB more");
    // What is remembered stays open to the very client, and another has an account of its own.
    assert_eq!(get(&mut known, HOST, "").status(), 200);
    assert_eq!(get(&mut connect_from(&gate, 2), "3000-sb2.preview.test", "").status(), 200);
}

#[test]
fn random_hosts_fill_the_caches_to_their_bound_and_no_further() {
    let (_runner, api) = api_with_strangers();
    let settings = [
        ("SANDGATE_SANDBOX_CACHE_MAX", "64"),
        ("SANDGATE_VERDICT_CACHE_MAX", "32"),
        ("SANDGATE_LOOKUP_RATE", "0"),
    ];
    let gate = Gate::start(&api, &settings);
    let mut wire = gate.connect();
    for n in 0..200 {
        assert_eq!(get(&mut wire, &format!("3000-open{n}.preview.test"), "").status(), 200);
        let token = format!("X-Daytona-Preview-Token: token-{n}\r\n");
        assert_eq!(get(&mut wire, &format!("3000-no{n}.preview.test"), &token).status(), 401);
    }
    for (cache, entries) in [("public", 64), ("runner", 64), ("verdict", 32)] {
        gate.await_metric(&format!("preview_cache_entries{{cache=\"{cache}\"}}"), entries);
    }
}

#[test]
fn look_ups_that_let_somebody_in_cost_nothing() {
    let (_runner, api) = api_with_strangers();
    let gate = Gate::start(&api, &[("SANDGATE_LOOKUP_RATE", "1"), ("SANDGATE_LOOKUP_BURST", "4")]);
    let mut wire = gate.connect();
    for n in 0..50 {
        let answer = get(&mut wire, &format!("2280-sb{n}.preview.test"), "X-Daytona-Preview-Token: t\r\n");
        assert_eq!(answer.status(), 200, "{n}: {answer:?}");
    }
}

#[test]
fn a_client_over_its_rate_is_told_when_to_come_back_and_another_is_not_concerned() {
    let (_runner, api) = api_with_strangers();
    let gate = Gate::start(&api, &[("SANDGATE_CLIENT_RATE", "1")]);
    let mut wire = gate.connect();
    assert!((0..2).all(|_| get(&mut wire, HOST, "").status() == 200));
    let answer = get(&mut wire, HOST, "");
    assert!(is_limited(&answer, "CLIENT_LIMIT"), "{answer:?}");
    assert_eq!(get(&mut connect_from(&gate, 2), HOST, "").status(), 200);
}

#[test]
fn a_sandbox_over_its_rate_is_told_and_another_is_not_concerned() {
    let (_runner, api) = api_with_strangers();
    let gate = Gate::start(&api, &[("SANDGATE_SANDBOX_RATE", "1")]);
    let mut wire = gate.connect();
    assert!((0..2).all(|_| get(&mut wire, HOST, "").status() == 200));
    let answer = get(&mut connect_from(&gate, 2), HOST, "");
    assert!(is_limited(&answer, "SANDBOX_LIMIT"), "{answer:?}");
    assert_eq!(get(&mut wire, "3000-sb2.preview.test", "").status(), 200);
}

#[test]
fn who_is_turned_away_with_a_request_on_its_way_is_told_and_not_reset() {
    let (_runner, api) = api_with_strangers();
    // Accepted when its first bytes are there: they are unread when it is turned away.
    let limits = [("SANDGATE_CLIENT_CONNECTIONS_MAX", "1"), ("SANDGATE_DEFER_ACCEPT", "true")];
    let gate = Gate::start(&api, &limits);
    let mut first = gate.connect();
    assert_eq!(get(&mut first, HOST, "").status(), 200);
    for length in [0, 4096, 40_000] {
        let mut next = gate.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
        next.send([head.into_bytes(), vec![b'x'; length]].concat()).expect("the kernel takes it");
        let answer = next.expect_message().expect("an answer");
        assert!(is_limited(&answer, "CLIENT_LIMIT"), "{answer:?}");
        assert_eq!(next.rest().expect("no reset"), b"", "{length}");
    }
}

#[test]
fn connections_of_one_client_are_counted_and_a_place_comes_free_when_one_ends() {
    let (_runner, api) = api_with_strangers();
    let gate = Gate::start(&api, &[("SANDGATE_CLIENT_CONNECTIONS_MAX", "2")]);
    let (mut one, mut two) = (gate.connect(), gate.connect());
    assert_eq!((get(&mut one, HOST, "").status(), get(&mut two, HOST, "").status()), (200, 200));
    let mut third = gate.connect();
    let answer = third.expect_message().expect("an answer");
    assert!(is_limited(&answer, "CLIENT_LIMIT"), "{answer:?}");
    assert!(third.is_over());
    assert_eq!(get(&mut connect_from(&gate, 2), HOST, "").status(), 200);
    drop(one);
    let begun = Instant::now();
    loop {
        let mut again = gate.connect();
        // Turned away before it reads: sending may fail.
        let sent = again.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        if sent.is_ok() && again.message().is_ok_and(|answer| answer.is_some_and(|a| a.status() == 200)) {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the place stays taken");
    }
}

/// The kernel spreads the connections over the shards; were each to count by itself, twice as many would pass.
#[test]
fn limits_are_the_gates_and_not_each_shards() {
    let (_runner, api) = api_with_strangers();
    let two = ("SANDGATE_SHARDS", "2");
    let gate = Gate::start(&api, &[two, ("SANDGATE_CLIENT_CONNECTIONS_MAX", "5")]);
    let mut wires: Vec<_> = (0..40).map(|_| gate.connect()).collect();
    // Turned away before it reads: sending may fail.
    let is_let_in = |wire: &mut Wire| {
        let sent = wire.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        sent.is_ok() && wire.message().is_ok_and(|answer| answer.is_some_and(|a| a.status() == 200))
    };
    assert_eq!(wires.iter_mut().map(is_let_in).filter(|is_in| *is_in).count(), 5);

    let begun = Instant::now();
    let gate = Gate::start(&api, &[two, ("SANDGATE_LOOKUP_RATE", "1"), ("SANDGATE_LOOKUP_BURST", "50")]);
    let asks = |n| get(&mut gate.connect(), &format!("3000-no{n}.preview.test"), "").status();
    let refused = (0..100).map(asks).filter(|status| *status == 429).count();
    // One comes back each second. Two shards would have refused nobody.
    let back = begun.elapsed().as_secs() as usize + 1;
    assert!((50usize.saturating_sub(back)..=50).contains(&refused), "{refused} refused, {back} came back");
    assert!(refused > 0, "too slow to tell: {:?}", begun.elapsed());
}

#[test]
fn requests_under_way_to_one_sandbox_are_counted_until_they_end() {
    let (go, may_go) = mpsc::channel();
    let (here, is_here) = mpsc::channel();
    let shared = std::sync::Mutex::new((may_go, here));
    let runner = Runner::start(move |mut wire, number| {
        while let Ok(Some(_)) = wire.message() {
            if number == 0 {
                let (may_go, here) = &*shared.lock().expect("one connection");
                here.send(()).expect("the test waits");
                let _ = may_go.recv_timeout(DEADLINE);
            }
            if wire.send(ok("done")).is_err() {
                return;
            }
        }
    });
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("SANDGATE_SANDBOX_REQUESTS_MAX", "1")]);
    let mut slow = gate.connect();
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    is_here.recv_timeout(DEADLINE).expect("the runner has it");
    let answer = get(&mut gate.connect(), HOST, "");
    assert!(is_limited(&answer, "SANDBOX_LIMIT"), "{answer:?}");
    assert_eq!(get(&mut gate.connect(), "3000-sb2.preview.test", "").status(), 200);
    go.send(()).expect("the runner waits");
    assert_eq!(slow.expect_message().expect("an answer").status(), 200);
    assert_eq!(get(&mut slow, HOST, "").status(), 200);
}

#[test]
fn a_forwarded_address_counts_from_trusted_peers_alone_and_only_as_far_as_they_vouch() {
    let (_runner, api) = api_with_strangers();
    let limited = ("SANDGATE_CLIENT_RATE", "1");
    let ask = |gate: &Gate, forwarded: &str| {
        get(&mut gate.connect(), HOST, &format!("X-Forwarded-For: {forwarded}\r\n")).status()
    };
    let trusting = Gate::start(&api, &[limited, ("SANDGATE_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]);
    assert_eq!((ask(&trusting, "192.0.2.1"), ask(&trusting, "192.0.2.1:4711")), (200, 200));
    assert_eq!(ask(&trusting, "192.0.2.1"), 429);
    // Left of the first untrusted address anybody may have written anything.
    assert_eq!(ask(&trusting, "192.0.2.77, 192.0.2.1, 10.1.2.3"), 429);
    assert_eq!(ask(&trusting, "192.0.2.2"), 200);
    // All of an IPv6 customer's addresses are one client.
    assert_eq!((ask(&trusting, "2001:db8::1"), ask(&trusting, "[2001:db8::2]:80")), (200, 200));
    assert_eq!(ask(&trusting, "2001:db8::ffff:3"), 429);

    let alone = Gate::start(&api, &[limited]);
    assert_eq!((ask(&alone, "192.0.2.1"), ask(&alone, "192.0.2.2")), (200, 200));
    assert_eq!(ask(&alone, "192.0.2.3"), 429);
}

#[test]
fn the_api_is_told_the_visitors_address_and_not_what_a_stranger_claims() {
    let (_runner, api) = api_with_strangers();
    let told = |settings: &[(&str, &str)], sandbox: &str| {
        let gate = Gate::start(&api, settings);
        let fields = "Authorization: Bearer key\r\nX-Forwarded-For: 192.0.2.9, 198.51.100.7\r\n";
        assert_eq!(get(&mut gate.connect(), &format!("2280-{sandbox}.preview.test"), fields).status(), 200);
        let asked = api.script.asked(&format!("/api/preview/{sandbox}/access"));
        asked[0].field("X-Forwarded-For").expect("told").to_owned()
    };
    assert_eq!(told(&[("SANDGATE_TRUSTED_PROXIES", "127.0.0.1")], "sb7"), "198.51.100.7");
    assert_eq!(told(&[], "sb8"), "127.0.0.1");
}

fn raised_descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, the soft limit stays and counts.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
