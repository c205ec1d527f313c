//! What one run found out, as data: the JSON a run writes and everything else reads.
//!
//! Latencies are in nanoseconds inside histograms and in microseconds where people read them. **Service time** runs from
//! the moment a request was sent, **response time** from the moment it should have been sent by the plan: when a
//! proxy stalls, only the second shows what its users felt. Knows no socket and does no reporting.

mod churn;
mod class;
mod hist;
mod search;
mod server;
mod timeline;

pub use churn::{ChurnResult, ChurnVerdict, CutShort};
pub use class::{ClassResult, ErrorCount, HAR_REQUEST, IdleResult, REFUSED};
pub use hist::{Hist, Quantiles};
pub use search::{Search, SearchStep};
pub use server::{ServerCounters, ServerSample};
pub use timeline::{
    HEAT_BASE_NS, HEAT_BUCKETS, Point, Timeline, heat_bound_us, heat_bucket, heat_quantile_us,
};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format of the file. Fields may be added within one number.
pub const FORMAT: u32 = 1;

/// One run against one target.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunResult {
    pub format: u32,
    pub meta: Meta,
    pub config: RunConfig,
    pub phases: Vec<PhaseResult>,
    /// The proxy's own counters, if it was asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerCounters>,
    pub validity: Validity,
    /// What was asked of the result, and whether it holds.
    #[serde(default)]
    pub assertions: Vec<Assertion>,
    /// The steps of a search for the highest rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Version of loadtest.
    pub version: String,
    /// What the run is called; the scenario's name or the target.
    pub name: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    pub ended_at: String,
    /// The command line, credentials left out.
    pub command: Vec<String>,
    /// Where the load came from, one per agent.
    pub clients: Vec<ClientHost>,
    /// Ended before its time by a signal: what is here is true, but less than planned.
    pub partial: bool,
    /// When the target was started for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Started>,
}

/// What was started for a run and ended after it, as it was asked for; without its environment, which holds keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// The command.
    pub proxy: String,
    /// CPUs it was bound to; empty: none.
    pub proxy_cpus: Vec<usize>,
    /// Flags of the backend beside loadtest's own.
    pub backend_args: String,
    pub backend_cpus: Vec<usize>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientHost {
    pub hostname: String,
    pub kernel: String,
    pub cpu_count: u32,
    /// Of the load generator.
    pub threads: u32,
}

/// What was asked for, for the reader of a report and for comparing like with like.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunConfig {
    pub target: String,
    /// `open` (a rate that does not wait for answers) or `closed` (the next request when the last is answered).
    pub model: String,
    /// `http/1.1` or `h2`.
    pub protocol: String,
    pub tls: bool,
    pub connections: u32,
    pub seed: u64,
    /// Everything else, as names and values in reading order.
    pub settings: Vec<(String, String)>,
}

/// One phase of the plan. Phases follow each other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhaseResult {
    pub name: String,
    /// `ramp`, `hold`, `burst`, `soak` or `closed`.
    pub kind: String,
    /// Not measured: a warm-up. Reports leave it out of totals.
    pub warmup: bool,
    /// Since the run's start.
    pub start_s: f64,
    pub duration_s: f64,
    /// Requests per second planned at the phase's begin and end; `None` in a closed loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_rate: Option<(f64, f64)>,
    /// By the name of the class of requests.
    pub classes: BTreeMap<String, ClassResult>,
    /// Seconds (or longer steps, see [`Timeline::step_s`]) since the phase's start.
    pub timeline: Timeline,
    pub client: ClientUse,
    /// The proxy's CPU as seen from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyUse>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub churn: Vec<ChurnResult>,
    /// Idle connections held during the phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleResult>,
}

/// What the load cost the load generator: whether its figures can be believed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientUse {
    pub cpu_s: f64,
    /// Busiest thread over the phase, percent of a CPU.
    pub busiest_percent: f64,
    /// How late requests left although a connection was free: the load generator's own doing.
    pub send_lag: Hist,
}

/// CPU of the proxy between the phase's start and end, read from /proc or a cgroup.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProxyUse {
    /// `pid 123` (with all threads and descendants) or `cgroup /...`.
    pub source: String,
    pub cpu_s: f64,
    /// Microseconds of CPU for each request that ended; echoes on WebSockets, events and handshakes of idle WebSockets
    /// count as requests.
    pub cpu_us_per_request: f64,
    /// Requests per second that one core would do: the inverse.
    pub requests_per_core_s: f64,
    /// Resident memory, the highest that was seen.
    pub memory_max_bytes: u64,
    /// Resident memory when a tenth of the phase was over, and at its end: what grew meanwhile.
    #[serde(default)]
    pub memory_early_bytes: u64,
    #[serde(default)]
    pub memory_end_bytes: u64,
    /// When they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallUse>,
}

/// System calls of the proxy between the phase's start and end, counted by the kernel. Requests as for CPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CallUse {
    pub system_calls: u64,
    pub system_calls_per_request: f64,
    /// Of them: `io_uring_enter`.
    pub ring_enters: u64,
    pub ring_enters_per_request: f64,
}

/// Whether the figures say something about the proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validity {
    pub valid: bool,
    pub reasons: Vec<Reason>,
}

/// Why a result is not valid, or (`fatal` false) what to know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// `client_cpu`, `send_lag`, `sessions_max`, `unsent`, `churn`, `partial`, ...
    pub code: String,
    pub message: String,
    pub fatal: bool,
}

impl Validity {
    pub fn of(reasons: Vec<Reason>) -> Self {
        Self { valid: !reasons.iter().any(|reason| reason.fatal), reasons }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assertion {
    /// As written, for example `p99<5ms`.
    pub text: String,
    /// What was found, in the same unit.
    pub found: String,
    pub holds: bool,
}

impl PhaseResult {
    /// All classes in one.
    pub fn total(&self) -> ClassResult {
        self.classes.values().fold(ClassResult::default(), |mut sum, class| {
            sum.merge(class);
            sum
        })
    }

    /// [`ClassResult::pace`] of all classes.
    pub fn pace(&self) -> Hist {
        self.classes.values().fold(Hist::default(), |mut sum, class| {
            sum.merge(class.pace());
            sum
        })
    }

    /// Requests per second that ended as they should.
    pub fn rate(&self) -> f64 {
        let ok: u64 = self.classes.values().map(|class| class.ok).sum();
        if self.duration_s > 0.0 { ok as f64 / self.duration_s } else { 0.0 }
    }
}

impl RunResult {
    /// Adds a later run of the same target: its phases follow these.
    pub fn append(&mut self, later: Self) {
        const SAMPLES_MAX: usize = 1200;
        let offset = self.phases.last().map_or(0.0, |phase| phase.start_s + phase.duration_s);
        let moved =
            later.phases.into_iter().map(|phase| PhaseResult { start_s: phase.start_s + offset, ..phase });
        self.phases.extend(moved);
        self.meta.ended_at = later.meta.ended_at;
        self.meta.partial |= later.meta.partial;
        match (&mut self.server, later.server) {
            (Some(server), Some(later)) => {
                server.after = later.after;
                server.failures += later.failures;
                server.last_failure = later.last_failure.or(server.last_failure.take());
                let moved = |sample: ServerSample| ServerSample { at_s: sample.at_s + offset, ..sample };
                server.samples.extend(later.samples.into_iter().map(moved));
                while server.samples.len() > SAMPLES_MAX {
                    let mut n = 0;
                    server.samples.retain(|_| {
                        n += 1;
                        n % 2 == 1
                    });
                }
            }
            (server, later) => *server = server.take().or(later),
        }
        for reason in later.validity.reasons {
            if !self.validity.reasons.contains(&reason) {
                self.validity.reasons.push(reason);
            }
        }
        self.validity.valid &= later.validity.valid;
    }

    /// Says that there is less than was planned, and why. `fatal`: nobody wanted that.
    pub fn end_early(&mut self, why: &str, fatal: bool) {
        self.meta.partial = true;
        self.validity.reasons.push(Reason { code: "partial".into(), message: why.into(), fatal });
        self.validity.valid &= !fatal;
    }

    /// The phases whose figures stand for the run: those that count; of a search the step of the rate it found, and none
    /// where no rate held.
    pub fn judged(&self) -> impl Iterator<Item = &PhaseResult> {
        let found = self.search.as_ref().map(Search::found);
        let stands = move |step: usize| found.is_none_or(|found| found == Some(step));
        self.measured().enumerate().filter(move |(step, _)| stands(*step)).map(|(_, phase)| phase)
    }

    /// The phases that count: all but warm-ups.
    pub fn measured(&self) -> impl Iterator<Item = &PhaseResult> {
        self.phases.iter().filter(|phase| !phase.warmup)
    }
}
