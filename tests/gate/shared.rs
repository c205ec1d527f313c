//! Several shards and a real Redis: what changes there, changes here.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire};
use redis_server::{RedisServer, cli};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

#[path = "../support/redis_server.rs"]
#[allow(dead_code, reason = "shared with other tests, which use the rest")]
pub mod redis_server;

pub const PUBLIC_KEY: &str = "proxy:sandbox-public:sb1";
const SHARDS: &str = "4";
/// For so long after a change the API may still answer what was true before it, and a little more.
pub const API_MEMORY: Duration = Duration::from_millis(3600);
/// Enough for the kernel to give each of the shards some.
const CONNECTIONS: usize = 48;

pub struct World {
    pub redis: RedisServer,
    pub api: Api,
    pub runner: Runner,
    pub gate: Gate,
    metrics: u16,
}

impl World {
    /// A gate that only tells its metrics, before this Redis.
    fn watching(redis: RedisServer, settings: &[(&str, &str)]) -> Self {
        let runner = Runner::echo();
        let api = Api::start(runner.addr);
        let metrics = crate::free_port::free_port();
        let (port, metrics_port) = (redis.port.to_string(), metrics.to_string());
        let ours = [
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", port.as_str()),
            ("METRICS_PORT", metrics_port.as_str()),
        ];
        let gate = Gate::start(&api, &[&ours[..], settings].concat());
        Self { redis, api, runner, gate, metrics }
    }

    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::before(Runner::echo(), settings)
    }

    pub fn before(runner: Runner, settings: &[(&str, &str)]) -> Self {
        let world = Self::just_begun(runner, settings);
        world.settle();
        world
    }

    /// Until it has listened for longer than the API answers from a memory of its own: before that, what the API says
    /// is not shared.
    fn settle(&self) {
        self.until_metric("preview_push_trusted 1");
        std::thread::sleep(API_MEMORY);
    }

    /// News have just begun to be heard.
    pub fn just_begun(runner: Runner, settings: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start(&[]);
        let api = Api::start(runner.addr);
        let metrics = crate::free_port::free_port();
        let (port, metrics_port) = (redis.port.to_string(), metrics.to_string());
        let ours = [
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", port.as_str()),
            ("METRICS_PORT", metrics_port.as_str()),
            ("SANDGATE_SHARDS", SHARDS),
            // Only news can close what was open.
            ("SANDGATE_PUSHED_PUBLIC_TTL_SEC", "3600"),
        ];
        let gate = Gate::start(&api, &[&ours[..], settings].concat());
        let world = Self { redis, api, runner, gate, metrics };
        world.until_metric("preview_push_trusted 1");
        world
    }

    /// Empty while nobody listens yet.
    pub fn metrics(&self) -> String {
        let Ok(stream) = std::net::TcpStream::connect(("127.0.0.1", self.metrics)) else {
            return String::new();
        };
        let mut wire = Wire::new(stream);
        wire.send("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it reads");
        wire.expect_message().expect("a page").text()
    }

    /// One sample, by name and labels as they stand there.
    pub fn gate_metric(&self, sample: &str) -> u64 {
        crate::harness::sample_of(&self.metrics(), sample)
    }

    pub fn until_metric(&self, line: &str) {
        until(|| self.metrics().lines().any(|l| l == line), line);
    }

    /// Connections on all shards, each of which has just seen the sandbox as public.
    fn warm(&self) -> Vec<Wire> {
        let mut wires: Vec<_> = (0..CONNECTIONS).map(|_| self.gate.connect()).collect();
        for wire in &mut wires {
            assert_eq!(wire.get("/").expect("an answer").status(), 200);
        }
        wires
    }
}

pub fn until(what: impl Fn() -> bool, claim: &str) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < DEADLINE, "{claim}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_sandbox_made_private_is_closed_on_every_shard_and_opened_again() {
    let world = World::start(&[]);
    let mut wires = world.warm();
    let asked = world.api.script.questions.load(SeqCst);
    assert!(asked <= 2, "the shards share one answer of each kind: {asked}");
    for (status, answer) in [(404, 401), (200, 200)] {
        // As the API does it: the truth first, then the key.
        world.api.script.status.store(status, SeqCst);
        // Present again after the first round, though only for the seconds of a "no".
        cli(world.redis.port, &["del", PUBLIC_KEY]);
        let begun = Instant::now();
        for wire in &mut wires {
            while wire.get("/").expect("an answer").status() != answer {
                assert!(begun.elapsed() < DEADLINE, "still {status} after {:?}", begun.elapsed());
            }
        }
    }
}

#[test]
fn changes_reach_every_shard_and_canaries_say_how_fast() {
    let world = World::start(&[]);
    // One canary, once per shard.
    until(
        || {
            let page = world.metrics();
            let count = page.lines().find_map(|l| l.strip_prefix("preview_invalidation_lag_seconds_count "));
            count.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n >= 4)
        },
        "canaries are counted",
    );
}

#[test]
fn redis_gone_costs_answers_nothing_and_back_it_is_used_again() {
    let world = World::start(&[]);
    let mut wires = world.warm();
    let port = world.redis.port;
    let World { redis, gate, api, .. } = &world;
    redis.freeze();
    // The shards have forgotten what rested on news.
    world.until_metric("preview_redis_up 0");
    let begun = Instant::now();
    for wire in &mut wires {
        assert_eq!(wire.get("/").expect("an answer").status(), 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    redis.thaw();
    world.settle();
    // A sandbox nobody has asked for yet.
    let mut wire = gate.connect();
    wire.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", HOST.replace("sb1", "sb2"))).expect("it reads");
    assert_eq!(wire.expect_message().expect("an answer").status(), 200);
    assert_eq!(cli(port, &["get", "proxy:sandbox-public:sb2"]), r#"{"value":true}"#);
    assert!(api.script.questions.load(SeqCst) >= 4);
}

/// A certificate and its key as files, named after `name`; gone with the result.
struct Certificate {
    folder: std::path::PathBuf,
}

impl Certificate {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sandgate-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]);
        let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
        std::fs::write(folder.join("cert.pem"), cert.pem()).expect("a file");
        std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("a file");
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn redis_over_tls_is_trusted_by_its_certificate_and_by_no_other() {
    let (ours, other) = (Certificate::new("ours"), Certificate::new("other"));
    let (cert, key) = (ours.file("cert.pem"), ours.file("key.pem"));
    let start = || {
        RedisServer::start(&[
            "--tls-port",
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &cert,
            "--tls-auth-clients",
            "no",
            "--requirepass",
            "right-password",
        ])
    };
    let settings =
        [("REDIS_TLS", "true"), ("REDIS_PASSWORD", "right-password"), ("SSL_CERT_FILE", cert.as_str())];
    let world = World::watching(start(), &settings);
    world.until_metric("preview_redis_up 1");
    world.until_metric("preview_push_trusted 1");
    let other = other.file("cert.pem");
    let settings =
        [("REDIS_TLS", "true"), ("REDIS_PASSWORD", "right-password"), ("SSL_CERT_FILE", other.as_str())];
    let world = World::watching(start(), &settings);
    world.until_metric("preview_redis_up 0");
    until(|| !world.metrics().contains("preview_redis_connect_failures_total 0"), "it is tried and refused");
    world.until_metric("preview_redis_up 0");
    // Requests are served all the same.
    assert_eq!(world.gate.get("/").expect("an answer").status(), 200);
}
