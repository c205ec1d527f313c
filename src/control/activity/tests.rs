//! Reports to a scripted API, and claims in a real Redis.

use super::*;
use crate::config::Secret;
use crate::control::fake_api::{Act, FakeApi, reply, within};
use crate::control::redis_server::RedisServer;
use crate::log::Log;
use std::sync::atomic::Ordering::Relaxed;

struct World {
    api: FakeApi,
    mentions: Mentions,
    stats: Arc<Stats>,
}

impl World {
    async fn start(api: FakeApi, interval: Duration) -> Self {
        Self::with_redis(api, interval, None).await
    }

    async fn with_redis(api: FakeApi, interval: Duration, redis: Option<Redis>) -> Self {
        let stats = Arc::<Stats>::default();
        let client = Api::new(&api.base(), &Secret::new("service"), Duration::from_secs(5), Log::discard());
        let (mentions, reporter) =
            Reporter::new(Arc::new(client.expect("good settings")), redis, interval, Arc::clone(&stats));
        tokio::spawn(reporter.run());
        Self { api, mentions, stats }
    }

    fn mention(&self, name: &str) {
        self.mentions.mention(SandboxId::parse(name.as_bytes()).expect("an id"));
    }

    async fn counted(&self, result: ActivityResult, count: u64) {
        within(async {
            while self.stats.activity[result as usize].load(Relaxed) < count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn many_mentions_are_one_report_with_our_key_and_without_a_body() {
    let world = World::start(FakeApi::always(Act::Send(reply(201, "", ""))).await, LONG).await;
    (0..50).for_each(|_| world.mention("a"));
    world.mention("b");
    world.counted(ActivityResult::Recent, 49).await;
    world.counted(ActivityResult::Reported, 2).await;
    let mut heads = world.api.heads();
    heads.sort();
    let lines: Vec<_> = heads.iter().map(|head| head.lines().next().unwrap_or_default()).collect();
    assert_eq!(
        lines,
        ["POST /api/sandbox/a/last-activity HTTP/1.1", "POST /api/sandbox/b/last-activity HTTP/1.1"]
    );
    for head in heads {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\nauthorization: bearer service\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-length: 0\r\n"), "{head}");
    }
}

#[tokio::test]
async fn an_interval_later_the_next_mention_is_a_report_again() {
    let world =
        World::start(FakeApi::always(Act::Send(reply(201, "", ""))).await, Duration::from_millis(300)).await;
    world.mention("a");
    world.counted(ActivityResult::Reported, 1).await;
    within(async {
        while world.api.seen().requests < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.mention("a");
        }
    })
    .await;
}

#[tokio::test]
async fn trouble_is_tried_again_until_the_report_is_taken() {
    let answers = [reply(503, "", ""), reply(500, "", ""), reply(429, "Retry-After: 0\r\n", "")];
    let api = FakeApi::start(move |n, _| match answers.get(n) {
        Some(answer) => Act::Send(answer.clone()),
        None if n == 3 => Act::Reset,
        None => Act::Send(reply(201, "", "")),
    })
    .await;
    let world = World::start(api, LONG).await;
    world.mention("a");
    world.counted(ActivityResult::Reported, 1).await;
    assert_eq!(world.api.seen().requests, 5);
}

#[tokio::test]
async fn what_the_api_refuses_is_not_tried_again() {
    for status in [400, 401, 403, 404] {
        let world = World::start(FakeApi::always(Act::Send(reply(status, "", ""))).await, LONG).await;
        world.mention("a");
        world.counted(ActivityResult::Refused, 1).await;
        world.mention("a");
        world.counted(ActivityResult::Recent, 1).await;
        assert_eq!(world.api.seen().requests, 1, "{status}");
    }
}

#[tokio::test]
async fn a_report_that_failed_for_good_is_made_anew_at_the_next_mention() {
    let world =
        World::start(FakeApi::always(Act::Send(reply(503, "", ""))).await, Duration::from_millis(100)).await;
    world.mention("a");
    world.counted(ActivityResult::Failed, 1).await;
    world.mention("a");
    world.counted(ActivityResult::Failed, 2).await;
    assert_eq!(world.stats.activity[ActivityResult::Recent as usize].load(Relaxed), 0);
}

#[tokio::test]
async fn an_api_that_hangs_costs_a_bounded_number_of_calls_and_the_rest_is_counted() {
    let world = World::start(FakeApi::always(Act::SendAndHang(Vec::new())).await, LONG).await;
    for n in 0..REPORTS_MAX {
        world.mention(&format!("s{n}"));
    }
    world.api.wait_for(|seen| seen.requests == REPORTS_MAX).await;
    for n in 0..MENTIONS_MAX + 10 {
        world.mention(&format!("t{n}"));
    }
    world.counted(ActivityResult::Dropped, 10).await;
    assert_eq!(world.api.seen().requests, REPORTS_MAX);
}

async fn redis(server: &RedisServer) -> Redis {
    let settings = crate::config::Redis {
        host: "127.0.0.1".into(),
        port: server.port,
        username: None,
        password: None,
        tls: false,
    };
    let redis = Redis::new(&settings, None, Arc::default(), Log::discard()).expect("good settings");
    tokio::spawn(redis.clone().keep());
    within(redis.watch_up().wait_for(|up| *up)).await.expect("the handle lives");
    redis
}

#[tokio::test]
async fn of_proxies_on_one_redis_one_reports_and_after_its_failure_another() {
    let server = RedisServer::start(&[]);
    let redis = redis(&server).await;
    let taken = || FakeApi::always(Act::Send(reply(201, "", "")));
    let failing = FakeApi::always(Act::Send(reply(503, "", ""))).await;
    let one = World::with_redis(failing, Duration::from_millis(200), Some(redis.clone())).await;
    let two = World::with_redis(taken().await, LONG, Some(redis.clone())).await;
    let three = World::with_redis(taken().await, LONG, Some(redis.clone())).await;
    one.mention("a");
    one.counted(ActivityResult::Failed, 1).await;
    two.mention("a");
    two.counted(ActivityResult::Reported, 1).await;
    for n in 1..4 {
        three.mention("a");
        three.counted(ActivityResult::Recent, n).await;
    }
    assert_eq!(three.api.seen().requests, 0);
    let entry = redis.get("proxy:sandbox-last-activity-update:a").await.expect("an answer");
    assert_eq!(entry.as_deref(), Some(&br#"{"value":true}"#[..]));
}

#[tokio::test]
async fn without_its_redis_a_sandbox_in_use_is_reported_all_the_same() {
    let server = RedisServer::start(&[]);
    let redis = redis(&server).await;
    drop(server);
    let api = FakeApi::always(Act::Send(reply(201, "", ""))).await;
    let world = World::with_redis(api, LONG, Some(redis)).await;
    world.mention("a");
    world.counted(ActivityResult::Reported, 1).await;
}
