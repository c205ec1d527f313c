//! The client against a real redis-server in good and bad days.

use super::*;
use crate::config::Secret;
use crate::control::fake_api::within;
use crate::control::redis_server::{self, RedisServer};
use std::future::Future;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

const TTL: Duration = Duration::from_secs(60);
/// What one operation may take beyond its deadline on a busy machine; at least ten times less than any other wait here.
const SLACK: Duration = Duration::from_millis(150);

fn settings(port: u16) -> config::Redis {
    config::Redis { host: "127.0.0.1".into(), port, username: None, password: None, tls: false }
}

struct World {
    redis: Redis,
    stats: Arc<Stats>,
    keeping: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl World {
    fn new(settings: &config::Redis) -> Self {
        let stats = Arc::<Stats>::default();
        let redis = Redis::new(settings, None, Arc::clone(&stats), Log::discard()).expect("good settings");
        let keeping = tokio::spawn(redis.clone().keep());
        Self { redis, stats, keeping }
    }

    async fn connected(settings: &config::Redis) -> Self {
        let world = Self::new(settings);
        world.is(true).await;
        world
    }

    async fn is(&self, up: bool) {
        within(self.redis.watch_up().wait_for(|now| *now == up)).await.expect("the handle lives");
    }
}

/// The runtime goes on meanwhile.
async fn cli(server: &RedisServer, args: &[&str]) -> String {
    let (port, args) = (server.port, args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
    let run = move || redis_server::cli(port, &args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.expect("it does not panic")
}

async fn timed<T>(operation: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (operation.await, begun.elapsed())
}

#[tokio::test]
async fn values_are_set_read_expire_and_go() {
    let server = RedisServer::start(&[]);
    let world = World::connected(&settings(server.port)).await;
    let redis = &world.redis;
    assert_eq!(redis.get("k").await, Ok(None));
    assert_eq!(redis.set("k", b"v", TTL).await, Ok(()));
    assert_eq!(redis.get("k").await, Ok(Some(b"v".to_vec())));
    let ttl: u64 = cli(&server, &["pttl", "k"]).await.parse().expect("a number");
    assert!((50_000..=60_000).contains(&ttl), "{ttl}");
    assert_eq!(redis.del("k").await, Ok(true));
    assert_eq!(redis.del("k").await, Ok(false));
    // Below a millisecond is not "for ever".
    redis.set("brief", b"v", Duration::ZERO).await.expect("set");
    within(async { while redis.get("brief").await.expect("up").is_some() {} }).await;
}

#[tokio::test]
async fn of_many_that_set_or_delete_at_once_exactly_one_is_told_so() {
    let server = RedisServer::start(&[]);
    let (one, two) =
        (World::connected(&settings(server.port)).await, World::connected(&settings(server.port)).await);
    let set = futures_util::future::join_all(
        (0..50).map(|n| if n % 2 == 0 { &one } else { &two }.redis.set_nx("guard", b"1", TTL)),
    );
    assert_eq!(set.await.into_iter().filter(|set| *set == Ok(true)).count(), 1);
    let deleted = futures_util::future::join_all(
        (0..50).map(|n| if n % 2 == 0 { &one } else { &two }.redis.del("guard")),
    );
    assert_eq!(deleted.await.into_iter().filter(|gone| *gone == Ok(true)).count(), 1);
}

#[tokio::test]
async fn user_and_password_are_shown_and_wrong_ones_never_connect() {
    let server = RedisServer::start(&["--user", "gate", "on", ">right-password", "~*", "&*", "+@all"]);
    let good = config::Redis {
        username: Some("gate".into()),
        password: Some(Secret::new("right-password")),
        ..settings(server.port)
    };
    let world = World::connected(&good).await;
    assert_eq!(world.redis.set("k", b"v", TTL).await, Ok(()));

    let server = RedisServer::start(&["--requirepass", "right-password"]);
    let good = config::Redis { password: Some(Secret::new("right-password")), ..settings(server.port) };
    assert_eq!(World::connected(&good).await.redis.get("k").await, Ok(None));
    for password in [None, Some(Secret::new("wrong"))] {
        let world = World::new(&config::Redis { password, ..settings(server.port) });
        within(async {
            while world.stats.redis.connects_failed.load(Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let (result, took) = timed(world.redis.get("k")).await;
        assert_eq!(result, Err(Failure::Down));
        assert!(took < SLACK, "{took:?}");
        assert!(!world.redis.is_up());
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_nothing_and_is_found_when_it_comes() {
    let port = RedisServer::start(&[]).port;
    let world = World::new(&settings(port));
    let (results, took) = timed(async {
        for _ in 0..1000 {
            assert_eq!(world.redis.get("k").await, Err(Failure::Down));
        }
    })
    .await;
    let () = results;
    assert!(took < SLACK, "{took:?}");
    assert_eq!(world.stats.redis.skipped.load(Relaxed), 1000);
    let _server = RedisServer::start_at(port, &[]);
    world.is(true).await;
    assert_eq!(world.redis.set("k", b"v", TTL).await, Ok(()));
}

#[tokio::test]
async fn a_server_that_hangs_costs_its_deadline_once() {
    let server = RedisServer::start(&[]);
    let world = World::connected(&settings(server.port)).await;
    server.freeze();
    // All at once: none waits behind another.
    let operations = futures_util::future::join_all((0..100).map(|_| world.redis.get("k")));
    let (results, took) = timed(operations).await;
    assert!(results.iter().all(|result| *result == Err(Failure::Down)));
    assert!(took < DEADLINE + SLACK, "{took:?}");
    assert!(!world.redis.is_up());
    let (result, took) = timed(world.redis.get("k")).await;
    assert_eq!(result, Err(Failure::Down));
    assert!(took < Duration::from_millis(20), "{took:?}");
    server.thaw();
    world.is(true).await;
    assert_eq!(world.redis.get("k").await, Ok(None));
}

#[tokio::test]
async fn a_hang_is_noticed_though_nobody_asks() {
    let server = RedisServer::start(&[]);
    let world = World::connected(&settings(server.port)).await;
    server.freeze();
    world.is(false).await;
    assert_eq!(world.stats.redis.up.load(Relaxed), 0);
}

#[tokio::test]
async fn a_paused_server_is_a_slow_one() {
    let server = RedisServer::start(&[]);
    let world = World::connected(&settings(server.port)).await;
    assert_eq!(cli(&server, &["client", "pause", "1500", "ALL"]).await, "OK");
    let (result, took) = timed(world.redis.set("k", b"v", TTL)).await;
    assert_eq!(result, Err(Failure::Down));
    assert!(took < DEADLINE + SLACK, "{took:?}");
    world.is(true).await;
    assert_eq!(world.redis.set("k", b"v", TTL).await, Ok(()));
}

/// Passes everything on to the server, its answers late while `slow`. Ends with the test's runtime.
async fn late_answers(server: u16, slow: Arc<std::sync::atomic::AtomicBool>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else { return };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let slow = Arc::clone(&slow);
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = from_server.read(&mut piece).await {
                    if slow.load(Relaxed) {
                        tokio::time::sleep(DEADLINE + SLACK).await;
                    }
                    if to_client.write_all(&piece[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_slow_server_costs_its_deadline_once_and_is_left_alone_until_it_is_fast() {
    let server = RedisServer::start(&[]);
    let slow = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let world = World::connected(&settings(late_answers(server.port, Arc::clone(&slow)).await)).await;
    slow.store(true, Relaxed);
    let (got, took) = timed(world.redis.get("k")).await;
    assert!(got == Err(Failure::Down) && took < DEADLINE + SLACK, "{took:?}");
    // It can be connected to, and is not worth it.
    within(async {
        while world.stats.redis.connects_failed.load(Relaxed) < 2 {
            assert!(!world.redis.is_up());
            assert_eq!(world.redis.get("k").await, Err(Failure::Down));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    slow.store(false, Relaxed);
    world.is(true).await;
    assert_eq!(world.redis.get("k").await, Ok(None));
}

#[tokio::test]
async fn a_restart_is_survived_and_what_was_there_is_gone() {
    let server = RedisServer::start(&[]);
    let port = server.port;
    let world = World::connected(&settings(port)).await;
    world.redis.set("k", b"v", TTL).await.expect("set");
    drop(server);
    world.is(false).await;
    let _server = RedisServer::start_at(port, &[]);
    world.is(true).await;
    assert_eq!(world.redis.get("k").await, Ok(None));
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_does_not_open_the_breaker() {
    let server = RedisServer::start(&[]);
    let world = World::connected(&settings(server.port)).await;
    assert_eq!(cli(&server, &["rpush", "list", "x"]).await, "1");
    assert_eq!(world.redis.get("list").await, Err(Failure::Refused));
    // Nobody is at the other end of the replication: it serves what it has and takes nothing.
    assert_eq!(cli(&server, &["replicaof", "127.0.0.1", "1"]).await, "OK");
    assert_eq!(world.redis.set("k", b"v", TTL).await, Err(Failure::Refused));
    assert_eq!(world.redis.set_nx("k", b"v", TTL).await, Err(Failure::Refused));
    assert_eq!(world.redis.get("k").await, Ok(None));
    assert!(world.redis.is_up());
    assert_eq!(world.stats.redis.refused.load(Relaxed), 3);
}

#[tokio::test]
async fn what_does_not_speak_the_protocol_is_no_redis() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (told, mut attempts) = tokio::sync::mpsc::unbounded_channel();
    let talking = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = told.send(());
        }
    });
    let world = World::new(&settings(port));
    for _ in 0..3 {
        within(attempts.recv()).await.expect("it tries again");
        assert_eq!(world.redis.get("k").await, Err(Failure::Down));
    }
    assert!(!world.redis.is_up());
    talking.abort();
}
