//! Adds up what threads report, and judges in the end whether it can be believed.

use crate::calls::Calls;
use crate::failure::Failure;
use crate::plan::{Load, Plan};
use crate::result::{
    ChurnResult, ChurnVerdict, ClassResult, ClientHost, ClientUse, ErrorCount, FORMAT, HEAT_BUCKETS, Hist,
    IdleResult, Meta, PhaseResult, Point, ProxyUse, Quantiles, Reason, RunConfig, RunResult, ServerCounters,
    ServerSample, Timeline, Validity,
};
use crate::worker::{Done, Report, Second};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Share of a CPU from which a thread of ours may have been what set the pace.
const BUSY_PERCENT: f64 = 80.0;
/// CPU of phases shorter than this says little: a thread's start alone fills it.
const JUDGED_MIN: Duration = Duration::from_millis(500);
/// Seconds a thread may be behind before its second is given up waiting for.
const PENDING_MAX: usize = 10;

/// What goes on, for a live view.
pub struct Moment<'a> {
    pub elapsed: Duration,
    pub plan: &'a Plan,
    pub phase: usize,
    /// The last whole second.
    pub second: &'a Point,
    pub quantiles: Quantiles,
    pub ok: u64,
    pub failed: u64,
    pub errors: &'a [ErrorCount],
    /// Of the proxy in the last second; `None`: not counted, or it is away.
    pub calls: Option<Calls>,
    pub server: Option<&'a ServerSample>,
    pub server_before: Option<&'a ServerSample>,
    /// Seconds of this phase.
    pub timeline: &'a Timeline,
}

pub(super) struct Tally<'a> {
    plan: &'a Plan,
    threads: u32,
    done: u32,
    /// A thread ended before its part of the plan did.
    cut: bool,
    classes: Vec<Vec<ClassResult>>,
    lag: Vec<Hist>,
    idle: Vec<Option<IdleResult>>,
    timelines: Vec<Timeline>,
    pending: BTreeMap<(usize, u32), Pending>,
    /// By phase and thread: CPU and how long it ran.
    cpu: Vec<BTreeMap<u32, (Duration, Duration)>>,
    /// By phase: ended requests with echoes and events, for the cost of each.
    units: Vec<u64>,
    proxy_cpu: BTreeMap<(usize, u32), f64>,
    proxy_calls: Option<Calls>,
    last: Point,
    last_quantiles: Quantiles,
    phase: usize,
    ok: u64,
    failed: u64,
    errors: Vec<ErrorCount>,
    samples: [Option<ServerSample>; 2],
}

/// A second not all threads have reported yet.
#[derive(Default)]
struct Pending {
    reports: u32,
    point: Point,
    response: Hist,
}

impl<'a> Tally<'a> {
    pub fn new(plan: &'a Plan, threads: u32) -> Self {
        let phases = plan.phases.len();
        Self {
            plan,
            threads,
            done: 0,
            cut: false,
            classes: vec![vec![ClassResult::default(); plan.classes().len()]; phases],
            lag: vec![Hist::default(); phases],
            idle: vec![None; phases],
            timelines: vec![Timeline::default(); phases],
            pending: BTreeMap::new(),
            cpu: vec![BTreeMap::new(); phases],
            units: vec![0; phases],
            proxy_cpu: BTreeMap::new(),
            proxy_calls: None,
            last: Point::default(),
            last_quantiles: Quantiles::default(),
            phase: 0,
            ok: 0,
            failed: 0,
            errors: Vec::new(),
            samples: [None, None],
        }
    }

    pub fn is_complete(&self) -> bool {
        self.done == self.threads
    }

    /// A thread is gone without its results: nobody waits for it any more.
    pub fn thread_lost(&mut self) {
        self.threads -= 1;
        self.cut = true;
    }

    pub fn take(&mut self, thread: u32, report: Report) -> Result<(), String> {
        match report {
            Report::Ready => {}
            Report::Second(second) => self.second(thread, *second)?,
            Report::Done(done) => self.thread_done(*done)?,
            Report::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn second(&mut self, thread: u32, second: Second) -> Result<(), String> {
        // Reports may come from another host: its indices are not taken on trust.
        if second.phase >= self.timelines.len() || second.interval.heat.len() > HEAT_BUCKETS {
            return Err("a load generator reports what was not planned".into());
        }
        let cpu = self.cpu[second.phase].entry(thread).or_default();
        *cpu = (cpu.0 + second.cpu, cpu.1 + second.wall);
        let at_s = (second.at.as_secs_f64() + 0.001) as u32;
        let interval = second.interval;
        self.units[second.phase] += interval.ok + interval.failed + interval.messages;
        self.ok += interval.ok;
        self.failed += interval.failed;
        for error in &interval.errors {
            ErrorCount::count(&mut self.errors, &error.code, &error.source, error.count);
        }
        let wall = second.wall.as_secs_f64().max(1e-6);
        let point = Point {
            at_s,
            planned: second.planned,
            sent: interval.sent,
            ok: interval.ok,
            failed: interval.failed,
            bytes_down: interval.bytes_down,
            heat: interval.heat,
            max_us: interval.response.max_ns() as f64 / 1000.0,
            backlog: second.backlog,
            connections: second.connections,
            idle: second.idle,
            client_cpu: second.cpu.as_secs_f64() / wall * 100.0,
            ..Point::default()
        };
        let pending = self.pending.entry((second.phase, at_s)).or_default();
        pending.response.merge(&interval.response);
        match pending.reports {
            0 => pending.point = point,
            _ => pending.point.join(&point),
        }
        pending.reports += 1;
        if pending.reports == self.threads || self.pending.len() > PENDING_MAX {
            self.settle(PENDING_MAX);
        }
        Ok(())
    }

    /// Moves complete seconds into the timeline, and incomplete ones if there are more than `most`.
    fn settle(&mut self, most: usize) {
        while let Some(entry) = self.pending.first_entry() {
            if entry.get().reports < self.threads && self.pending.len() <= most {
                return;
            }
            let ((phase, second), mut pending) = self.pending.pop_first().expect("just seen");
            pending.point.p50_us = pending.response.quantile_us(0.5);
            pending.point.p99_us = pending.response.quantile_us(0.99);
            pending.point.proxy_cpu = self.proxy_cpu.remove(&(phase, second));
            self.last_quantiles = pending.response.quantiles();
            self.last = pending.point.clone();
            self.phase = phase;
            self.timelines[phase].push(pending.point);
        }
    }

    fn thread_done(&mut self, done: Done) -> Result<(), String> {
        let fits = done.classes.len() == self.classes.len()
            && done.classes.iter().zip(&self.classes).all(|(theirs, ours)| theirs.len() == ours.len())
            && done.lag.len() == self.lag.len()
            && done.idle.len() == self.idle.len();
        if !fits {
            return Err("a load generator reports what was not planned".into());
        }
        for (ours, theirs) in self.classes.iter_mut().flatten().zip(done.classes.iter().flatten()) {
            ours.merge(theirs);
        }
        for (ours, theirs) in self.lag.iter_mut().zip(&done.lag) {
            ours.merge(theirs);
        }
        for (ours, theirs) in self.idle.iter_mut().zip(done.idle) {
            match (ours.as_mut(), theirs) {
                (Some(ours), Some(theirs)) => ours.merge(&theirs),
                (None, theirs) => *ours = theirs,
                (_, None) => {}
            }
        }
        self.cut |= done.cut;
        self.done += 1;
        Ok(())
    }

    /// Percent of one CPU the proxy used in a second of a phase.
    pub fn proxy_cpu(&mut self, phase: usize, second: u32, percent: f64) {
        // The threads tell of a second when it is over, which may be just before.
        match self.timelines[phase].points.last_mut() {
            Some(point) if self.phase == phase && self.last.at_s == second => {
                self.last.proxy_cpu = Some(percent);
                // Of a step of several seconds it is one.
                point.proxy_cpu = Some(point.proxy_cpu.map_or(percent, |before| (before + percent) / 2.0));
            }
            _ => drop(self.proxy_cpu.insert((phase, second), percent)),
        }
        // What no second ever claims, as after a thread's death, does not pile up.
        while self.proxy_cpu.len() > 2 * PENDING_MAX {
            self.proxy_cpu.pop_first();
        }
    }

    /// What the proxy makes in a second, from now on.
    pub fn proxy_calls(&mut self, calls: Option<Calls>) {
        self.proxy_calls = calls;
    }

    pub fn server(&mut self, sample: ServerSample) {
        let [_, newer] = &mut self.samples;
        let older = newer.take();
        self.samples = [older, Some(sample)];
    }

    pub fn moment(&self, elapsed: Duration) -> Moment<'_> {
        Moment {
            elapsed,
            plan: self.plan,
            phase: self.phase,
            second: &self.last,
            quantiles: self.last_quantiles,
            ok: self.ok,
            failed: self.failed,
            errors: &self.errors,
            calls: self.proxy_calls,
            server: self.samples[1].as_ref(),
            server_before: self.samples[0].as_ref(),
            timeline: &self.timelines[self.phase],
        }
    }

    pub fn finish(
        mut self,
        plan: &Plan,
        clients: Vec<ClientHost>,
        started_at: SystemTime,
        server: Option<ServerCounters>,
        proxy: Vec<Option<ProxyUse>>,
        churn: Vec<(usize, ChurnResult)>,
    ) -> RunResult {
        self.settle(0);
        // The threads say so: until they have heard of a stop and the last answers are there, the plan's time may be over.
        let partial = self.cut;
        let names: Vec<String> = plan.classes().iter().map(ToString::to_string).collect();
        let mut proxy = proxy.into_iter();
        let mut phases = Vec::new();
        let mut begin = Duration::ZERO;
        // The phase in which the end came is the last of which there is anything; those before it are whole. Clocks would
        // not say: the seconds of a whole phase, added up, may be a little shorter than it.
        let cut = partial.then(|| (0..plan.phases.len()).rev().find(|n| self.was_begun(*n)).unwrap_or(0));
        for (n, phase) in plan.phases.iter().enumerate().take(cut.map_or(usize::MAX, |cut| cut + 1)) {
            let ran = self.cpu[n].values().map(|(_, wall)| *wall).max().unwrap_or_default();
            let duration = if cut == Some(n) { ran.min(phase.length.0) } else { phase.length.0 };
            let named = names.iter().cloned().zip(std::mem::take(&mut self.classes[n]));
            let wanted = |name: &String| phase.mix.iter().any(|(class, _)| class.to_string() == *name);
            let mut used = proxy.next().flatten();
            if let Some(used) = &mut used {
                // A handshake is work, too.
                let held = self.idle[n].as_ref().map_or(0, |idle| idle.connect.count());
                let units = self.units[n] + held;
                if units > 0 && used.cpu_s > 0.0 {
                    used.cpu_us_per_request = used.cpu_s * 1e6 / units as f64;
                    used.requests_per_core_s = units as f64 / used.cpu_s;
                }
                if let Some(calls) = used.calls.as_mut().filter(|_| units > 0) {
                    calls.system_calls_per_request = calls.system_calls as f64 / units as f64;
                    calls.ring_enters_per_request = calls.ring_enters as f64 / units as f64;
                }
            }
            phases.push(PhaseResult {
                name: phase.name.clone(),
                kind: phase.load.as_str().into(),
                warmup: phase.warmup,
                start_s: begin.as_secs_f64(),
                duration_s: duration.as_secs_f64(),
                planned_rate: phase.load.rates(),
                classes: named.filter(|(name, _)| wanted(name)).collect(),
                timeline: std::mem::take(&mut self.timelines[n]),
                client: self.client_use(n),
                proxy: used,
                churn: churn.iter().filter(|(at, _)| *at == n).map(|(_, churn)| churn.clone()).collect(),
                idle: self.idle[n].take(),
            });
            begin += phase.length.0;
        }
        let mut reasons = reasons(plan, &phases, partial);
        reasons
            .extend(churn.iter().flat_map(|(phase, churn)| churn_reasons(&plan.phases[*phase].name, churn)));
        let assertions =
            phases.iter().flat_map(|phase| &phase.churn).flat_map(ChurnResult::assertions).collect();
        let time = |at: SystemTime| humantime::format_rfc3339_millis(at).to_string();
        RunResult {
            format: FORMAT,
            meta: Meta {
                version: env!("CARGO_PKG_VERSION").into(),
                name: plan.name.clone(),
                started_at: time(started_at),
                ended_at: time(SystemTime::now()),
                command: Vec::new(),
                clients,
                partial,
                started: None,
            },
            config: config(plan),
            phases,
            server,
            validity: Validity::of(reasons),
            assertions,
            search: None,
        }
    }

    /// Something of it was reported.
    fn was_begun(&self, phase: usize) -> bool {
        let counted = self.classes[phase].iter().any(|class| class.planned > 0);
        counted || !self.cpu[phase].is_empty() || self.idle[phase].is_some()
    }

    fn client_use(&mut self, phase: usize) -> ClientUse {
        let threads = &self.cpu[phase];
        let busy =
            |(cpu, wall): &(Duration, Duration)| cpu.as_secs_f64() / wall.as_secs_f64().max(1e-6) * 100.0;
        ClientUse {
            cpu_s: threads.values().map(|(cpu, _)| cpu.as_secs_f64()).sum(),
            busiest_percent: threads.values().map(busy).fold(0.0, f64::max),
            send_lag: std::mem::take(&mut self.lag[phase]),
        }
    }
}

/// Why the figures might not be the proxy's.
fn reasons(plan: &Plan, phases: &[PhaseResult], partial: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |fatal: bool, code: &str, message: String| {
        reasons.push(Reason { code: code.into(), message, fatal });
    };
    if partial {
        add(false, "partial", "ended before its time".into());
    }
    for recording in &plan.recordings {
        if let Some(omissions) = recording.omissions() {
            add(false, "har", format!("har:{}: {omissions}", recording.name));
        }
    }
    if partial && phases.iter().all(|phase| phase.warmup) {
        add(true, "nothing", "ended before anything that counts".into());
    }
    for (phase, planned) in phases.iter().zip(&plan.phases).filter(|(phase, _)| !phase.warmup) {
        let name = &phase.name;
        let busy = phase.client.busiest_percent;
        if busy > BUSY_PERCENT && planned.length.0 >= JUDGED_MIN {
            let text = format!(
                "{name}: a thread of the load generator used {busy:.0} % of a CPU (bound {BUSY_PERCENT} %): more threads or agents"
            );
            add(true, "client_cpu", text);
        }
        let total = phase.total();
        // Of those that are too late the one by most.
        let late = ["p50", "p90", "p99"].into_iter().zip([0.5, 0.9, 0.99]).filter_map(|(at, quantile)| {
            let lag = Duration::from_nanos(phase.client.send_lag.quantile_ns(quantile));
            let paces = phase.classes.values().map(ClassResult::pace).filter(|pace| !pace.is_empty());
            let fastest = paces.map(|pace| pace.quantile_ns(quantile)).min();
            let bound = plan.client.lag_bound(Duration::from_nanos(fastest.unwrap_or(0)));
            (lag > bound).then_some((at, lag, bound))
        });
        let worst = late.max_by(|(_, lag, bound), (_, other, of)| {
            lag.div_duration_f64(*bound).total_cmp(&other.div_duration_f64(*of))
        });
        if let Some((at, lag, bound)) = worst.filter(|_| planned.load != Load::Closed) {
            let text = format!(
                "{name}: the load generator itself sent late, {at} {lag:.1?} (bound {bound:.1?}): its figures contain its own delay"
            );
            add(true, "send_lag", text);
        }
        for (class, result) in &phase.classes {
            let session = planned.mix.iter().any(|(c, _)| c.is_session() && c.to_string() == *class);
            if result.unsent > 0 && session {
                let text = format!(
                    "{name}: {} of {class} were not begun: sessions-max {} was reached",
                    result.unsent, plan.client.sessions_max
                );
                add(true, "sessions_max", text);
            } else if result.unsent > 0 {
                let text = format!(
                    "{name}: {} requests of {class} were due and never sent, for no connection was free: the target is slower than the plan, or {} connections are too few",
                    result.unsent, plan.client.connections
                );
                add(false, "unsent", text);
            }
        }
        let own: u64 = total
            .errors
            .iter()
            .chain(phase.idle.iter().flat_map(|idle| &idle.errors))
            .filter(|error| error.source == Failure::OWN_SOURCE)
            .map(|error| error.count)
            .sum();
        if own > 0 {
            add(
                true,
                "client_limit",
                format!(
                    "{name}: {own} connections failed for want of local ports or descriptors: more --sources, a higher file limit"
                ),
            );
        }
        if matches!(planned.load, Load::Soak { .. }) {
            drift(phase).into_iter().for_each(|text| add(false, "drift", text));
        }
        if let Some(idle) = phase.idle.as_ref().filter(|idle| idle.planned > 0 && idle.connect.is_empty()) {
            let text = format!("{name}: none of {} idle WebSockets opened", idle.planned);
            add(true, "nothing", text);
        }
        if total.ok == 0 && planned.load != Load::Quiet {
            let text = match (total.ended(), total.sent) {
                (0, _) => format!("{name}: no request came to an end"),
                (_, sent) => format!("{name}: none of {sent} requests ended as it should"),
            };
            add(true, "nothing", text);
        }
    }
    reasons
}

/// What to know about a change, in a phase the run has come to or not.
fn churn_reasons(phase: &str, churn: &ChurnResult) -> Vec<Reason> {
    let reason = |fatal, why: String| {
        let message = format!("{phase}: {}: {why}", churn.name);
        Reason { code: "churn".into(), message, fatal }
    };
    let judged = match churn.verdict() {
        ChurnVerdict::Unknown(why) => Some(reason(true, why)),
        ChurnVerdict::LeftOut(why) => Some(reason(false, why)),
        ChurnVerdict::AsExpected | ChurnVerdict::Missed(_) => None,
    };
    let left = churn
        .put_back_error
        .as_ref()
        .map(|error| reason(false, format!("could not be put back, the next run will find it so: {error}")));
    judged.into_iter().chain(left).collect()
}

/// What a long phase's end has that its beginning had not: slower answers, more memory.
fn drift(phase: &PhaseResult) -> Vec<String> {
    const GROWTH: f64 = 1.5;
    let points = &phase.timeline.points;
    let part = points.len() / 5;
    let mut texts = Vec::new();
    // The median of a fifth: one bad second is no drift.
    let typical = |points: &[Point]| {
        let mut p99: Vec<f64> = points.iter().map(|point| point.p99_us).collect();
        p99.sort_by(f64::total_cmp);
        p99.get(p99.len() / 2).copied().unwrap_or_default()
    };
    if part >= 3 {
        let (first, last) = (typical(&points[..part]), typical(&points[points.len() - part..]));
        if first > 0.0 && last > first * GROWTH {
            texts.push(format!(
                "{}: p99 went from {first:.0} us in the first fifth to {last:.0} us in the last",
                phase.name
            ));
        }
    }
    if let Some(used) = &phase.proxy
        && used.memory_end_bytes as f64 > used.memory_early_bytes as f64 * GROWTH
    {
        let (early, end) = (used.memory_early_bytes >> 20, used.memory_end_bytes >> 20);
        texts.push(format!("{}: the proxy's memory went from {early} MB to {end} MB", phase.name));
    }
    texts
}

/// What was asked for, without secrets.
fn config(plan: &Plan) -> RunConfig {
    let (client, workload) = (&plan.client, &plan.workload);
    let closed = plan.phases.iter().any(|phase| phase.load == Load::Closed);
    let open = plan.phases.iter().any(|phase| phase.load != Load::Closed);
    let mut settings = vec![("threads".to_owned(), client.threads.to_string())];
    let mut add = |name: &str, value: String| settings.push((name.into(), value));
    add("arrivals", if client.poisson { "poisson" } else { "constant" }.into());
    add("timeout", client.timeout.to_string());
    add(
        "lag bound",
        client.lag_max.map_or("2ms or a tenth of the fastest response".into(), |bound| bound.to_string()),
    );
    if !client.sources.is_empty() {
        add("source addresses", client.sources.len().to_string());
    }
    if let Some(domain) = &plan.target.domain {
        let percent = |share: f64| format!("{} %", share * 100.0);
        add("domain", domain.clone());
        add("sandboxes", workload.sandboxes.to_string());
        add("zipf", workload.zipf.to_string());
        add("ports", format!("{:?}", workload.ports));
        let auth = workload.auth.iter().map(|(kind, weight)| format!("{}:{weight}", kind.as_str()));
        add("auth", auth.collect::<Vec<_>>().join(","));
        add("bad credentials", percent(workload.bad));
        add("cold sandboxes", percent(workload.cold));
        add("toolbox form", percent(workload.toolbox));
    }
    for recording in &plan.recordings {
        add(&format!("har:{}", recording.name), recording.extent());
    }
    add("fresh connections", format!("{} %", workload.fresh * 100.0));
    if client.timeout.0.is_zero() {
        add("timeout", "none".into());
    }
    RunConfig {
        target: plan.target.url.clone(),
        model: match (open, closed) {
            (true, true) => "open and closed",
            (false, _) => "closed",
            (true, false) => "open",
        }
        .into(),
        protocol: if plan.target.http2 { "h2" } else { "http/1.1" }.into(),
        tls: plan.target.url.starts_with("https:"),
        connections: client.connections,
        seed: client.seed,
        settings,
    }
}

#[cfg(test)]
mod tests;
