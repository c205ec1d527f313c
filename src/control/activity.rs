//! Reports to the API that sandboxes are in use, which start their auto-stop timers anew.
//!
//! Shards mention a sandbox every few seconds while it is used; of these mentions at most one per interval becomes a
//! report. A report belongs to nobody's request: it outlives the client, is tried again while the API is in trouble,
//! and a sandbox whose report failed is reported at its next mention. Bounded on all sides; what finds no room is
//! counted, and mentioned again if the sandbox is still in use.

use super::api::{Api, Reported};
use super::stats::{ActivityResult, Stats};
use crate::cache::TtlMap;
use crate::ids::SandboxId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Mentions that wait while all reports under way take long. Costs 60 bytes each.
const MENTIONS_MAX: usize = 16 * 1024;
/// Reports under way at once. Each is a task and a connection to the API.
const REPORTS_MAX: usize = 32;
/// Sandboxes whose last report is remembered. Costs about 200 bytes each; a forgotten one is reported once more.
const REMEMBERED_MAX: usize = 500_000;
/// Wait before the second try; doubles with each further one.
const RETRY_BASE: Duration = Duration::from_millis(250);
const RETRY_CAP: Duration = Duration::from_secs(10);

/// Where mentions go. Never waits.
pub(super) struct Mentions {
    queue: mpsc::Sender<SandboxId>,
    stats: Arc<Stats>,
}

impl Mentions {
    pub(super) fn mention(&self, sandbox: SandboxId) {
        if self.queue.try_send(sandbox).is_err() {
            self.stats.activity(ActivityResult::Dropped);
        }
    }
}

pub(super) struct Reporter {
    api: Arc<Api>,
    mentions: mpsc::Receiver<SandboxId>,
    /// Reported, or being reported, less than an interval ago.
    recent: TtlMap<SandboxId, ()>,
    interval: Duration,
    reports: JoinSet<(SandboxId, ActivityResult)>,
    stats: Arc<Stats>,
}

impl Reporter {
    /// `interval`: least time between two reports of one sandbox, and how long one is tried.
    pub(super) fn new(api: Arc<Api>, interval: Duration, stats: Arc<Stats>) -> (Mentions, Self) {
        let (queue, mentions) = mpsc::channel(MENTIONS_MAX);
        let recent = TtlMap::new(REMEMBERED_MAX);
        let reporter =
            Self { api, mentions, recent, interval, reports: JoinSet::new(), stats: Arc::clone(&stats) };
        (Mentions { queue, stats }, reporter)
    }

    /// Ends when the other end of the queue is gone; dropping the future ends the reports under way.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                mention = self.mentions.recv(), if self.reports.len() < REPORTS_MAX => match mention {
                    Some(sandbox) => self.mentioned(sandbox),
                    None => return,
                },
                Some(ended) = self.reports.join_next() => if let Ok((sandbox, result)) = ended {
                    self.stats.activity(result);
                    if result == ActivityResult::Failed {
                        self.recent.remove(&sandbox);
                    }
                },
            }
        }
    }

    fn mentioned(&mut self, sandbox: SandboxId) {
        let now = Instant::now();
        if self.recent.get(&sandbox, now).is_some() {
            return self.stats.activity(ActivityResult::Recent);
        }
        self.recent.insert(sandbox, (), self.interval, now);
        let (api, interval) = (Arc::clone(&self.api), self.interval);
        self.reports.spawn(async move {
            let reported = tokio::time::timeout(interval, report(&api, &sandbox)).await;
            (sandbox, reported.unwrap_or(ActivityResult::Failed))
        });
    }
}

async fn report(api: &Api, sandbox: &SandboxId) -> ActivityResult {
    let mut wait = RETRY_BASE;
    loop {
        match api.report_activity(sandbox).await {
            Reported::Taken => return ActivityResult::Reported,
            Reported::Refused => return ActivityResult::Refused,
            Reported::NotNow(retry_after) => {
                let told = retry_after.map(|seconds| Duration::from_secs(seconds.into()));
                tokio::time::sleep(told.unwrap_or(wait).max(wait)).await;
                wait = (wait * 2).min(RETRY_CAP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::control::fake_api::{Act, FakeApi, reply, within};
    use crate::log::Log;
    use std::sync::atomic::Ordering::Relaxed;

    struct World {
        api: FakeApi,
        mentions: Mentions,
        stats: Arc<Stats>,
    }

    impl World {
        async fn start(api: FakeApi, interval: Duration) -> Self {
            let stats = Arc::<Stats>::default();
            let client =
                Api::new(&api.base(), &Secret::new("service"), Duration::from_secs(5), Log::discard());
            let (mentions, reporter) =
                Reporter::new(Arc::new(client.expect("good settings")), interval, Arc::clone(&stats));
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
            World::start(FakeApi::always(Act::Send(reply(201, "", ""))).await, Duration::from_millis(300))
                .await;
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
            World::start(FakeApi::always(Act::Send(reply(503, "", ""))).await, Duration::from_millis(100))
                .await;
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
}
