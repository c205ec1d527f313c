//! What the control plane counts about itself. Atomics only because the runtime asks for `Send`; one thread uses them.

use crate::counters::DURATION_BOUNDS_MS;
use crate::mailbox::{Answer, LoginFault, LoginQuestion, ProofKind, Question, Reply, Trouble};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a question makes the control plane do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Public,
    Access,
    Validate,
    SignedToken,
    Runner,
    BuildLogs,
    LoginStart,
    LoginCallback,
    LoginHandoff,
}

impl Operation {
    pub const ALL: &'static [Self] = &[
        Self::Public,
        Self::Access,
        Self::Validate,
        Self::SignedToken,
        Self::Runner,
        Self::BuildLogs,
        Self::LoginStart,
        Self::LoginCallback,
        Self::LoginHandoff,
    ];

    pub fn of(question: &Question) -> Self {
        match question {
            Question::Public(_) => Self::Public,
            Question::Verdict { proof: ProofKind::Bearer, .. } => Self::Access,
            Question::Verdict { proof: ProofKind::PreviewToken, .. } => Self::Validate,
            Question::SignedToken { .. } => Self::SignedToken,
            Question::Runner { .. } => Self::Runner,
            Question::BuildLogs { .. } => Self::BuildLogs,
            Question::Login(LoginQuestion::Start { .. }) => Self::LoginStart,
            Question::Login(LoginQuestion::Callback { .. }) => Self::LoginCallback,
            Question::Login(LoginQuestion::Handoff { .. }) => Self::LoginHandoff,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Access => "access",
            Self::Validate => "validate",
            Self::SignedToken => "signed_token",
            Self::Runner => "runner",
            Self::BuildLogs => "build_logs",
            Self::LoginStart => "login_start",
            Self::LoginCallback => "login_callback",
            Self::LoginHandoff => "login_handoff",
        }
    }
}

/// What became of a mention that a sandbox is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActivityResult {
    /// The API has taken the report.
    Reported,
    /// Reported less than an interval ago: nothing to do.
    Recent,
    /// The API does not know the sandbox, or not our key.
    Refused,
    /// The API could not be told in time.
    Failed,
    /// No room.
    Dropped,
}

impl ActivityResult {
    pub const ALL: &'static [Self] =
        &[Self::Reported, Self::Recent, Self::Refused, Self::Failed, Self::Dropped];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Recent => "recent",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Labels of the troubles, in the order of [`Stats::troubles`].
pub const TROUBLES: [&str; 7] =
    ["unreachable", "timeout", "status", "rate_limited", "garbage", "runner_url", "overloaded"];

fn trouble_index(trouble: Trouble) -> usize {
    match trouble {
        Trouble::ApiUnreachable => 0,
        Trouble::ApiTimeout => 1,
        Trouble::ApiStatus(_) => 2,
        Trouble::ApiRateLimited(_) => 3,
        Trouble::ApiGarbage => 4,
        Trouble::RunnerUrl => 5,
        // Shards do not ask then: it never gets here.
        Trouble::Overloaded | Trouble::ClientLimited(_) => 6,
    }
}

/// Not cumulative; the last bucket is for the rest.
#[derive(Default)]
pub struct Histogram {
    pub buckets: [AtomicU64; DURATION_BOUNDS_MS.len() + 1],
    pub sum_us: AtomicU64,
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        // Compared in microseconds: 5.5 ms is not "at most 5".
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_MS.partition_point(|bound_ms| bound_ms * 1000 < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }
}

/// How a step of a login ended, in the order of [`Stats::logins`].
pub const LOGIN_RESULTS: [&str; 14] = [
    "ok",
    "not_configured",
    "state_invalid",
    "expired",
    "other_browser",
    "used",
    "denied",
    "code_refused",
    "no_access",
    "provider_down",
    "provider_unusable",
    "token_invalid",
    "api",
    "internal",
];

/// Steps of a login, in the order of [`Stats::logins`].
pub const LOGIN_STEPS: [&str; 3] = ["start", "callback", "handoff"];

fn login_result(reply: &Reply) -> usize {
    let Ok(Answer::LoginRefused(fault)) = reply else { return if reply.is_ok() { 0 } else { 13 } };
    match fault {
        LoginFault::NotConfigured => 1,
        LoginFault::StateInvalid => 2,
        LoginFault::Expired => 3,
        LoginFault::OtherBrowser => 4,
        LoginFault::Replayed => 5,
        LoginFault::Denied => 6,
        LoginFault::CodeRefused => 7,
        LoginFault::NoAccess => 8,
        LoginFault::ProviderDown => 9,
        LoginFault::ProviderUnusable => 10,
        LoginFault::TokenInvalid => 11,
        LoginFault::Api(_) => 12,
        LoginFault::Internal => 13,
    }
}

#[derive(Default)]
pub struct Stats {
    /// How long flights took, by [`Operation`]; cancelled ones are not in it.
    pub flight_seconds: [Histogram; Operation::ALL.len()],
    /// By [`TROUBLES`].
    pub troubles: [AtomicU64; TROUBLES.len()],
    /// By [`LOGIN_STEPS`], then by [`LOGIN_RESULTS`].
    pub logins: [[AtomicU64; LOGIN_RESULTS.len()]; LOGIN_STEPS.len()],
    /// By [`ActivityResult`].
    pub activity: [AtomicU64; ActivityResult::ALL.len()],
    /// Questions that joined a flight under way.
    pub joined: AtomicU64,
    /// Gauge.
    pub flights_open: AtomicU64,
    /// Answers that found a shard's queue full and wait (gauge).
    pub answers_waiting: AtomicU64,
    pub redis: RedisStats,
    pub push: PushStats,
    /// Look-ups in the shared cache, by [`SharedResult`].
    pub shared: [AtomicU64; SharedResult::ALL.len()],
    /// By [`RecheckResult`].
    pub rechecks: [AtomicU64; RecheckResult::ALL.len()],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedResult {
    Hit,
    Miss,
    /// Something stands there that is not what it should be, or may be too old.
    Unusable,
}

impl SharedResult {
    pub const ALL: &'static [Self] = &[Self::Hit, Self::Miss, Self::Unusable];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Unusable => "unusable",
        }
    }
}

/// What became of a shared "yes" when its time came to be asked about again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecheckResult {
    Confirmed,
    /// It was from the API's memory: taken back from everybody.
    Withdrawn,
    /// The API could not say, and will be asked again.
    Unanswered,
    /// Too many waited: shared for a short time only.
    NoRoom,
}

impl RecheckResult {
    pub const ALL: &'static [Self] = &[Self::Confirmed, Self::Withdrawn, Self::Unanswered, Self::NoRoom];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Withdrawn => "withdrawn",
            Self::Unanswered => "unanswered",
            Self::NoRoom => "no_room",
        }
    }
}

/// News from Redis.
#[derive(Default)]
pub struct PushStats {
    /// Gauge: 1 while news are known to arrive.
    pub trusted: AtomicU64,
    /// Changes of sandboxes heard of.
    pub changes: AtomicU64,
    /// Messages on the API's channel that name no sandbox.
    pub unreadable: AtomicU64,
    /// Changes there was no room for; everything was forgotten in their place.
    pub lost: AtomicU64,
}

/// Operations on the shared Redis.
#[derive(Default)]
pub struct RedisStats {
    /// Gauge: 1 while there is a connection.
    pub up: AtomicU64,
    pub done: AtomicU64,
    pub connects_failed: AtomicU64,
    /// Answered with an error.
    pub refused: AtomicU64,
    /// Broke or took too long; each of the first kind cost up to the deadline.
    pub failed: AtomicU64,
    /// Not tried, because there was no connection.
    pub skipped: AtomicU64,
}

impl Stats {
    pub fn landed(&self, operation: Operation, took: Duration, reply: &Reply) {
        self.flight_seconds[operation as usize].record(took);
        let step = match operation {
            Operation::LoginStart => Some(0),
            Operation::LoginCallback => Some(1),
            Operation::LoginHandoff => Some(2),
            _ => None,
        };
        if let Some(step) = step {
            self.logins[step][login_result(reply)].fetch_add(1, Relaxed);
        }
        if let Err(trouble) = reply {
            self.trouble(*trouble);
        }
    }

    pub fn activity(&self, result: ActivityResult) {
        self.activity[result as usize].fetch_add(1, Relaxed);
    }

    pub fn shared(&self, result: SharedResult) {
        self.shared[result as usize].fetch_add(1, Relaxed);
    }

    pub fn recheck(&self, result: RecheckResult) {
        self.rechecks[result as usize].fetch_add(1, Relaxed);
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.troubles[trouble_index(trouble)].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_belongs_to_it_and_one_above_does_not() {
        let histogram = Histogram::default();
        for us in [0, 5_000, 5_001, 180_000_000, 180_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let counts: Vec<_> = histogram.buckets.iter().map(|b| b.load(Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[16], counts[17]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
    }
}
