//! What one run found out, as data: the JSON a run writes and everything else reads.
//!
//! Latencies are in nanoseconds inside histograms and in microseconds where people read them. **Service time** runs from
//! the moment a request was sent, **response time** from the moment it should have been sent by the plan: when a
//! proxy stalls, only the second shows what its users felt. Knows no socket and does no reporting.

mod hist;

pub use hist::{Hist, Quantiles};

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

/// One class of requests in one phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClassResult {
    /// Arrivals of the plan that fell into the phase.
    pub planned: u64,
    pub sent: u64,
    /// Ended as they should: 2xx (or 101) for good credentials; 401, 403 or a redirect to a login for bad ones.
    pub ok: u64,
    pub failed: u64,
    /// Of `ok`: refusals of requests that had to be refused.
    pub refused_rightly: u64,
    /// Should have been sent and were not when the phase ended: no connection was free. In `response`, at their age.
    pub unsent: u64,
    /// Sent and without an answer when the run's grace was over; of sessions: with something missing that was due. In
    /// `response`, at their age, if what that measures was missing.
    pub unfinished: u64,
    /// Of `ok`: sessions that were ended early because the run was over; up to then nothing was missing.
    #[serde(default)]
    pub shortened: u64,
    /// Sent a second time, on a new connection, as the kept one turned out to be closed.
    #[serde(default)]
    pub resent: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: Vec<ErrorCount>,
    /// From the first byte sent to the last received, of what ended as it should and of what was given up (a timeout, not
    /// finished): a fast failure is no fast answer. Sessions: a page to its last asset, an event stream to its first
    /// event, a WebSocket to its handshake's end.
    pub service: Hist,
    /// From when it should have been sent to the last byte received, of the same ones and of those never sent.
    pub response: Hist,
    /// Further measures: `connect`, `first_byte`, `event_gap`, `ws_connect`, `ws_echo`, `page`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Hist>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ErrorCount {
    /// The proxy's own code (`X-Preview-Error-Code`), `HTTP 502`, or what happened to the connection: `connect refused`,
    /// `reset`, `timeout`, `truncated`, `malformed`, `let in` (a bad credential was taken).
    pub code: String,
    /// Who says so: the proxy's `X-Preview-Error-Source`, or `answer`, `network`, `load generator`.
    pub source: String,
    pub count: u64,
}

impl ErrorCount {
    /// Kinds kept apart; what comes beyond is `others`: names may be made up by the other side.
    const KINDS_MAX: usize = 64;

    /// Adds to the list's entry of this kind.
    pub fn count(list: &mut Vec<Self>, code: &str, source: &str, count: u64) {
        match list.iter().position(|error| error.code == code && error.source == source) {
            Some(known) => list[known].count += count,
            None if list.len() < Self::KINDS_MAX || code == "others" => {
                list.push(Self { code: code.into(), source: source.into(), count });
            }
            None => Self::count(list, "others", "answer", count),
        }
    }
}

/// A row of numbers over time, of bounded length: when it would grow beyond [`Timeline::POINTS_MAX`], neighbours are merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// Width of a point in seconds: 1, 2, 4 ...
    pub step_s: u32,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub at_s: u32,
    pub planned: u64,
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    pub bytes_down: u64,
    /// Response times of requests that ended in this step, all classes: counts by bucket, see [`heat_bucket`].
    pub heat: Vec<u64>,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// Planned and not yet sent at the end of the step.
    pub backlog: u64,
    pub connections: u64,
    /// Percent of one CPU: the busiest thread of the load generator, and the proxy in sum.
    pub client_cpu: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_cpu: Option<f64>,
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

/// A change under load and how long it took to be felt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChurnResult {
    pub name: String,
    /// Since the phase's start.
    pub at_s: f64,
    /// How long the lever itself took.
    pub action_ms: f64,
    /// From pulling the lever to the first probe that saw the effect; `None`: not seen in time.
    pub effect_ms: Option<f64>,
    /// From pulling the lever to the first probe that was as before; `None`: not asked for or not seen.
    pub recovered_ms: Option<f64>,
    /// The recovery was asked for.
    #[serde(default)]
    pub recovery: bool,
    /// The first of them before the lever was pulled.
    pub probes: u64,
    /// How long effect and recovery might take.
    #[serde(default)]
    pub within_s: f64,
    /// No effect was expected: every probe had to be as before.
    #[serde(default)]
    pub unharmed: bool,
    /// Why probes ended before `within_s` was over with something still to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<CutShort>,
    /// Why the lever could not be pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it was not done where it need not be: the backend has no such lever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Why what it changed is still changed after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutShort {
    /// By the operator, or because a load generator was lost.
    Stopped,
    /// So long after the lever was pulled; what had not been felt by then may have come later.
    LoadOver { after_s: f64 },
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ChurnVerdict {
    AsExpected,
    /// The target did not do what was expected of it.
    Missed(String),
    /// The change was not made, or nobody could wait for its effect: nothing is known about the target.
    Unknown(String),
    /// The backend has no such lever, and the scenario does without.
    LeftOut(String),
}

impl ChurnResult {
    /// The lever was pulled.
    pub fn was_made(&self) -> bool {
        self.error.is_none() && self.left_out.is_none() && self.probes > 0
    }

    pub fn verdict(&self) -> ChurnVerdict {
        use ChurnVerdict::{AsExpected, LeftOut, Missed, Unknown};
        if let Some(error) = &self.error {
            return Unknown(format!("could not be done: {error}"));
        }
        if let Some(why) = &self.left_out {
            return LeftOut(format!("left out: {why}"));
        }
        if !self.was_made() {
            return Unknown("not made: the run was ended before it was its turn".into());
        }
        let missing = match (self.unharmed, self.effect_ms, self.recovery, self.recovered_ms) {
            (true, Some(ms), ..) => return Missed(format!("was felt after {:.3} s", ms / 1000.0)),
            (true, None, ..) if self.probes < 2 => {
                return Unknown(format!(
                    "no probe was answered in the {} s for which it was watched: a longer `within`",
                    self.within_s
                ));
            }
            (true, None, ..) if self.cut_short == Some(CutShort::Stopped) => {
                return Unknown(format!("the run was ended before the {} s were over", self.within_s));
            }
            (true, None, ..) => return AsExpected,
            (false, None, ..) => "effect",
            (false, Some(_), true, None) => "recovery",
            (false, Some(_), ..) => return AsExpected,
        };
        match self.cut_short {
            None => Missed(format!("{missing} not seen within {} s", self.within_s)),
            Some(CutShort::Stopped) => Unknown(format!("{missing} not seen: the run was ended before")),
            Some(CutShort::LoadOver { after_s }) => Unknown(format!(
                "{missing} not seen in the {after_s:.1} s until the load was over, and it may take {} s: a longer phase, an \
                 earlier change, or a shorter `within`",
                self.within_s
            )),
        }
    }

    /// What the plan expects of the change, as thresholds: nothing where nothing is known.
    pub fn assertions(&self) -> Vec<Assertion> {
        let verdict = self.verdict();
        if !matches!(verdict, ChurnVerdict::AsExpected | ChurnVerdict::Missed(_)) {
            return Vec::new();
        }
        if self.unharmed {
            let found = match verdict {
                ChurnVerdict::Missed(how) => how,
                _ => "not felt".into(),
            };
            return vec![Assertion {
                text: format!("unharmed by {}", self.name),
                found,
                holds: self.effect_ms.is_none(),
            }];
        }
        let within = |what: &str, ms: Option<f64>| Assertion {
            text: format!("{what}.{}<={}s", self.name, self.within_s),
            found: ms.map_or("not seen".into(), |ms| format!("{:.3} s", ms / 1000.0)),
            holds: ms.is_some(),
        };
        let mut assertions = vec![within("effect", self.effect_ms)];
        assertions.extend(self.recovery.then(|| within("recovery", self.recovered_ms)));
        assertions
    }
}

/// Connections that were opened and held without traffic.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IdleResult {
    pub planned: u64,
    /// Open at the phase's end.
    pub open: u64,
    pub failed: u64,
    /// Begun, and neither open nor failed at the phase's end.
    #[serde(default)]
    pub unfinished: u64,
    /// Cut by the other side while idle.
    pub lost: u64,
    /// Opened by a later attempt than the first, after a cut or a failure.
    #[serde(default)]
    pub reopened: u64,
    pub connects_per_s: f64,
    pub connect: Hist,
    pub errors: Vec<ErrorCount>,
}

impl IdleResult {
    /// Opened and not cut.
    pub fn well(&self) -> u64 {
        self.connect.count().saturating_sub(self.lost)
    }

    /// Did not open, or did not stay open.
    pub fn failures(&self) -> u64 {
        self.failed + self.lost
    }

    /// Adds what another thread or load generator held.
    pub fn merge(&mut self, other: &Self) {
        self.planned += other.planned;
        self.open += other.open;
        self.failed += other.failed;
        self.unfinished += other.unfinished;
        self.lost += other.lost;
        self.reopened += other.reopened;
        self.connects_per_s += other.connects_per_s;
        self.connect.merge(&other.connect);
        for error in &other.errors {
            ErrorCount::count(&mut self.errors, &error.code, &error.source, error.count);
        }
    }
}

/// The proxy's `/metrics` page around and during the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerCounters {
    pub url: String,
    /// Names with labels as on the page; histograms' buckets are left out.
    pub before: BTreeMap<String, f64>,
    pub after: BTreeMap<String, f64>,
    /// Times in seconds since the run's start, with counters that moved; bounded like a timeline.
    pub samples: Vec<ServerSample>,
    /// Scrapes that failed, and why the last one did.
    pub failures: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerSample {
    pub at_s: f64,
    pub values: BTreeMap<String, f64>,
}

impl ServerCounters {
    /// What each counter gained, for those that moved; nothing if the page was not read before the load.
    pub fn gained(&self) -> BTreeMap<&str, f64> {
        if self.before.is_empty() {
            return BTreeMap::new();
        }
        let before = |name: &String| self.before.get(name).copied().unwrap_or(0.0);
        let moved = self.after.iter().map(|(name, after)| (name.as_str(), after - before(name)));
        moved.filter(|(_, gain)| *gain != 0.0).collect()
    }
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

/// A search for the highest rate within a bound; each step is a phase of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    pub bound: String,
    /// The highest rate that held; `None`: not even the lowest did, or was tried to its end.
    pub rate: Option<f64>,
    pub steps: Vec<SearchStep>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// Name of the phase.
    pub phase: String,
    pub rate: f64,
    /// Requests per second that ended.
    pub achieved: f64,
    pub p99_us: f64,
    pub error_share: f64,
    pub held: bool,
    /// The load generator was the limit: says nothing about the proxy.
    pub invalid: bool,
    /// Ended before its time: neither held nor failed to.
    #[serde(default)]
    pub partial: bool,
}

impl Search {
    /// What the search came to where it has no rate.
    pub fn nothing_held(&self) -> &'static str {
        match self.steps.iter().any(|step| !step.partial) {
            true => "not even the lowest held",
            false => "ended before the lowest was tried",
        }
    }

    /// Which step is the one with the highest rate that held. Steps are the run's measured phases, in their order.
    fn found(&self) -> Option<usize> {
        let held = self.steps.iter().enumerate().filter(|(_, step)| step.held);
        held.max_by(|(_, a), (_, b)| a.rate.total_cmp(&b.rate)).map(|(step, _)| step)
    }
}

/// Bounds of the heat map: bucket n ends at `HEAT_BASE_NS * 2^((n + 1) / 4)`, a quarter of an octave wide each.
pub const HEAT_BASE_NS: f64 = 16_000.0;
/// From 16 microseconds to about two minutes.
pub const HEAT_BUCKETS: usize = 92;

/// The heat map's bucket of a latency.
pub fn heat_bucket(ns: u64) -> usize {
    let octaves = (ns as f64 / HEAT_BASE_NS).max(1.0).log2();
    ((octaves * 4.0) as usize).min(HEAT_BUCKETS - 1)
}

/// Upper end of a bucket in microseconds.
pub fn heat_bound_us(bucket: usize) -> f64 {
    HEAT_BASE_NS / 1000.0 * ((bucket as f64 + 1.0) / 4.0).exp2()
}

impl Default for Timeline {
    fn default() -> Self {
        Self { step_s: 1, points: Vec::new() }
    }
}

impl Timeline {
    /// Most points kept: an hour by the second.
    pub const POINTS_MAX: usize = 3600;

    /// Adds the next second.
    pub fn push(&mut self, point: Point) {
        let at = point.at_s / self.step_s;
        match self.points.last_mut() {
            Some(last) if last.at_s / self.step_s == at => last.absorb(&point),
            _ => self.points.push(Point { at_s: at * self.step_s, ..point }),
        }
        if self.points.len() > Self::POINTS_MAX {
            self.halve();
        }
    }

    /// Adds another load generator's seconds to these.
    pub fn merge(&mut self, other: &Self) {
        let (mut ours, mut theirs) = (std::mem::take(self), other.clone());
        while ours.step_s < theirs.step_s {
            ours.halve();
        }
        while theirs.step_s < ours.step_s {
            theirs.halve();
        }
        let mut points: BTreeMap<u32, Point> = ours.points.into_iter().map(|p| (p.at_s, p)).collect();
        for point in theirs.points {
            match points.get_mut(&point.at_s) {
                Some(ours) => ours.join(&point),
                None => drop(points.insert(point.at_s, point)),
            }
        }
        *self = Self { step_s: ours.step_s, points: points.into_values().collect() };
    }

    fn halve(&mut self) {
        self.step_s *= 2;
        let mut wider: Vec<Point> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in self.points.drain(..) {
            let at_s = point.at_s / self.step_s * self.step_s;
            match wider.last_mut() {
                Some(last) if last.at_s == at_s => last.absorb(&point),
                _ => wider.push(Point { at_s, ..point }),
            }
        }
        self.points = wider;
    }
}

impl Point {
    /// Merges the following step into this one.
    fn absorb(&mut self, next: &Self) {
        self.add_counts(next);
        (self.backlog, self.connections) = (next.backlog, next.connections);
        self.client_cpu = (self.client_cpu + next.client_cpu) / 2.0;
        self.proxy_cpu = match (self.proxy_cpu, next.proxy_cpu) {
            (Some(a), Some(b)) => Some((a + b) / 2.0),
            (a, b) => a.or(b),
        };
    }

    /// Merges the same step of another load generator into this one.
    pub(crate) fn join(&mut self, other: &Self) {
        self.add_counts(other);
        self.backlog += other.backlog;
        self.connections += other.connections;
        self.client_cpu = self.client_cpu.max(other.client_cpu);
        self.proxy_cpu = self.proxy_cpu.or(other.proxy_cpu);
    }

    fn add_counts(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.bytes_down += other.bytes_down;
        if self.heat.len() < other.heat.len() {
            self.heat.resize(other.heat.len(), 0);
        }
        for (sum, count) in self.heat.iter_mut().zip(&other.heat) {
            *sum += count;
        }
        self.max_us = self.max_us.max(other.max_us);
        self.p50_us = heat_quantile_us(&self.heat, 0.5).min(self.max_us);
        self.p99_us = heat_quantile_us(&self.heat, 0.99).min(self.max_us);
    }
}

/// A quantile out of a heat map's column: the upper end of its bucket, so at most a fifth too high.
pub fn heat_quantile_us(heat: &[u64], quantile: f64) -> f64 {
    let rank = (heat.iter().sum::<u64>() as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    for (bucket, count) in heat.iter().enumerate() {
        seen += count;
        if seen >= rank && seen > 0 {
            return heat_bound_us(bucket);
        }
    }
    0.0
}

impl ClassResult {
    /// Requests that came to an end, well or not.
    pub fn ended(&self) -> u64 {
        self.ok + self.failed
    }

    pub fn count_error(&mut self, code: &str, source: &str, count: u64) {
        ErrorCount::count(&mut self.errors, code, source, count);
    }

    /// Adds what another thread or load generator saw of the same class.
    pub fn merge(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.refused_rightly += other.refused_rightly;
        self.unsent += other.unsent;
        self.unfinished += other.unfinished;
        self.shortened += other.shortened;
        self.resent += other.resent;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for error in &other.errors {
            self.count_error(&error.code, &error.source, error.count);
        }
        self.service.merge(&other.service);
        self.response.merge(&other.response);
        for (name, hist) in &other.extra {
            self.extra.entry(name.clone()).or_default().merge(hist);
        }
    }
}

impl PhaseResult {
    /// All classes in one.
    pub fn total(&self) -> ClassResult {
        self.classes.values().fold(ClassResult::default(), |mut sum, class| {
            sum.merge(class);
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

#[cfg(test)]
mod tests;
