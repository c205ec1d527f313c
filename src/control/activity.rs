//! Reports to the API that sandboxes are in use, which start their auto-stop timers anew.
//!
//! Shards mention a sandbox every few seconds while it is used; of these mentions at most one per interval becomes a
//! report, with Redis one of all proxies. A report belongs to nobody's request: it outlives the client, is tried again while the API is in trouble,
//! and a sandbox whose report failed is reported at its next mention. Bounded on all sides; what finds no room is
//! counted, and mentioned again if the sandbox is still in use.

#[cfg(test)]
mod tests;

use super::api::{Api, Reported};
use super::redis::Redis;
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
    redis: Option<Redis>,
    mentions: mpsc::Receiver<SandboxId>,
    /// Reported, or being reported, less than an interval ago.
    recent: TtlMap<SandboxId, ()>,
    interval: Duration,
    reports: JoinSet<(SandboxId, ActivityResult)>,
    stats: Arc<Stats>,
}

impl Reporter {
    /// `interval`: least time between two reports of one sandbox, and how long one is tried.
    pub(super) fn new(
        api: Arc<Api>,
        redis: Option<Redis>,
        interval: Duration,
        stats: Arc<Stats>,
    ) -> (Mentions, Self) {
        let (queue, mentions) = mpsc::channel(MENTIONS_MAX);
        let recent = TtlMap::new(REMEMBERED_MAX);
        let reporter = Self {
            api,
            redis,
            mentions,
            recent,
            interval,
            reports: JoinSet::new(),
            stats: Arc::clone(&stats),
        };
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
                    // Not by us: who did knows how long that is good for, so it is asked again.
                    if matches!(result, ActivityResult::Failed | ActivityResult::Recent) {
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
        let (api, redis, interval) = (Arc::clone(&self.api), self.redis.clone(), self.interval);
        self.reports.spawn(async move {
            let claim = Claim { redis, key: format!("{CLAIM}{sandbox}") };
            if !claim.take(interval).await {
                return (sandbox, ActivityResult::Recent);
            }
            let reported = tokio::time::timeout(interval, report(&api, &sandbox)).await;
            let result = reported.unwrap_or(ActivityResult::Failed);
            if result == ActivityResult::Failed {
                claim.give_up().await;
            }
            (sandbox, result)
        });
    }
}

/// Among all proxies, the one that reports a sandbox in this interval. Name and shape of the entry are v0.190's.
struct Claim {
    redis: Option<Redis>,
    key: String,
}

const CLAIM: &str = "proxy:sandbox-last-activity-update:";

impl Claim {
    /// `false`: another proxy has it. Without an answer everybody reports: twice is better than not at all.
    async fn take(&self, interval: Duration) -> bool {
        match &self.redis {
            Some(redis) => redis.set_nx(&self.key, br#"{"value":true}"#, interval).await.unwrap_or(true),
            None => true,
        }
    }

    async fn give_up(&self) {
        if let Some(redis) = &self.redis {
            // It expires by itself.
            let _ = redis.del(&self.key).await;
        }
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
