//! Changes while a load runs, and how long each takes to be felt: a lever is pulled, a probe asks until it sees the effect.

use crate::aim::{Aim, Visitor};
use crate::http1::{Http1, Request, scratch};
use crate::plan::{Action, Churn, Expectation, PROBE_TIMEOUT, Plan, Share};
use crate::result::{ChurnResult, CutShort};
use crate::transport::{Connector, Place};
use std::io::{self, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Probes end with the load: what is felt later was not felt under load. So long after its end is still the load's.
const GRACE: Duration = Duration::from_secs(1);
/// After so long the operator is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The changes of a plan while they go on, each line of them on a thread.
///
/// Whatever becomes of the run, what a lever changed is put back when the load is over, by [`Self::finish`] or by dropping it.
pub struct Changes {
    lines: Vec<JoinHandle<Vec<(usize, ChurnResult)>>>,
    names: Vec<String>,
    given_up: Arc<AtomicBool>,
}

impl Changes {
    /// Changes of the same sandbox come one after the other: what the first does to it is what the second finds, however long
    /// that takes. `start`: of the load; `stop`: the operator's.
    pub fn spawn(plan: &Arc<Plan>, start: Instant, stop: &Arc<AtomicBool>) -> Self {
        let mut lines: Vec<Vec<Planned>> = Vec::new();
        let mut begin = start;
        for (phase, planned) in plan.phases.iter().enumerate() {
            for churn in &planned.churn {
                let sandbox = churn.probe.sandbox;
                let same = |line: &&mut Vec<Planned>| {
                    sandbox.is_some() && line.iter().any(|earlier| earlier.churn.probe.sandbox == sandbox)
                };
                let next = Planned { phase, begin, churn: churn.clone() };
                match lines.iter_mut().find(same) {
                    Some(line) => line.push(next),
                    None => lines.push(vec![next]),
                }
            }
            begin += planned.length.0;
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let spawn = |line| {
            let ends = Ends { load: begin, stop: stop.clone(), given_up: given_up.clone() };
            let plan = plan.clone();
            thread::spawn(move || run_line(&plan, line, &ends))
        };
        let names =
            plan.phases.iter().flat_map(|phase| &phase.churn).map(|churn| churn.name.clone()).collect();
        Self { lines: lines.into_iter().map(spawn).collect(), names, given_up }
    }

    /// Makes no more of them and probes no longer: the load is over before its time.
    pub fn end(&self) {
        self.given_up.store(true, Relaxed);
    }

    /// What became of each, with the number of its phase. Returns when all is put back, soon after the load's end.
    pub fn finish(mut self) -> Vec<(usize, ChurnResult)> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && self.lines.iter().any(|line| !line.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        if self.lines.iter().any(|line| !line.is_finished()) {
            // A terminal that is gone is no reason to wait less.
            let names = self.names.join(", ");
            drop(writeln!(io::stderr(), "loadtest: the load is over; waiting for changes to end: {names}"));
        }
        self.lines.drain(..).filter_map(|line| line.join().ok()).flatten().collect()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.end();
        for line in self.lines.drain(..) {
            // A panic of that thread has been printed by then.
            let _ = line.join();
        }
    }
}

/// A change and its phase: the number, and when it begins.
struct Planned {
    phase: usize,
    begin: Instant,
    churn: Churn,
}

/// What ends the changes.
struct Ends {
    /// When the last phase is over.
    load: Instant,
    stop: Arc<AtomicBool>,
    given_up: Arc<AtomicBool>,
}

impl Ends {
    fn stopped(&self) -> bool {
        self.stop.load(Relaxed) || self.given_up.load(Relaxed)
    }

    /// Until then, or until somebody ends the run.
    async fn wait_until(&self, due: Instant) {
        while Instant::now() < due && !self.stopped() {
            tokio::time::sleep_until(due.min(Instant::now() + Duration::from_millis(50)).into()).await;
        }
    }
}

fn run_line(plan: &Plan, line: Vec<Planned>, ends: &Ends) -> Vec<(usize, ChurnResult)> {
    let new = |planned: &Planned| ChurnResult {
        name: planned.churn.name.clone(),
        at_s: planned.churn.at.0.as_secs_f64(),
        within_s: planned.churn.within.0.as_secs_f64(),
        unharmed: planned.churn.probe.effect == Expectation::Unharmed,
        recovery: planned.churn.probe.recovery,
        ..ChurnResult::default()
    };
    let mut results: Vec<(usize, ChurnResult)> =
        line.iter().map(|planned| (planned.phase, new(planned))).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            results.iter_mut().for_each(|(_, result)| result.error = Some(error.to_string()));
            return results;
        }
    };
    runtime.block_on(async {
        // The last lever that was pulled, and what is to be done about it.
        let mut left: Vec<(usize, &Action)> = Vec::new();
        for (n, planned) in line.iter().enumerate() {
            let watch = Watch { plan, churn: &planned.churn, ends };
            let mut pulled = false;
            let outcome = watch.run(planned.begin, &mut results[n].1, &mut pulled).await;
            results[n].1.error = outcome.err();
            if pulled && results[n].1.error.is_none() {
                // This one is the way back of an earlier one.
                left.retain(|(_, undo)| **undo != planned.churn.action);
            }
            if let Some(undo) =
                planned.churn.undo.as_ref().filter(|undo| pulled && **undo != planned.churn.action)
            {
                left.retain(|(_, earlier)| *earlier != undo);
                left.push((n, undo));
            }
        }
        ends.wait_until(ends.load).await;
        for (n, undo) in left {
            results[n].1.put_back_error = act(undo).await.err().map(Undone::text);
        }
    });
    results
}

struct Watch<'a> {
    plan: &'a Plan,
    churn: &'a Churn,
    ends: &'a Ends,
}

/// What a probe saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Ok,
    Refused,
    Fails,
    Else,
}

impl Watch<'_> {
    /// `pulled`: whether the lever was touched.
    async fn run(
        &self,
        phase_begin: Instant,
        result: &mut ChurnResult,
        pulled: &mut bool,
    ) -> Result<(), String> {
        let place = Place::of(&self.plan.target)?;
        let visitor = self.visitor(&place);
        let connector = Connector::new(place, Vec::new());
        let mut probe = Prober { connector, visitor, path: self.churn.probe.path.clone(), connection: None };
        self.ends.wait_until(phase_begin + self.churn.at.0).await;
        if self.ends.stopped() {
            result.cut_short = Some(CutShort::Stopped);
            return Ok(());
        }
        if Instant::now() >= self.ends.load {
            return Err("the load was over before it was its turn".into());
        }
        // What is there before shows that the effect is an effect.
        let before = probe.ask().await;
        result.probes += 1;
        let wanted = self.churn.probe.effect;
        if wanted.is_effect(before) {
            return Err(format!("the effect was there before: {before:?}"));
        }
        *pulled = true;
        let begun = Instant::now();
        result.at_s = (begun - phase_begin).as_secs_f64();
        let mut acting = std::pin::pin!(async { (act(&self.churn.action).await, begun.elapsed()) });
        let (outcome, took) = {
            let mut watching = std::pin::pin!(self.watch(&mut probe, begun, result));
            tokio::select! {
                acted = &mut acting => {
                    // What was not done has no effect to wait for.
                    if acted.0.is_ok() {
                        watching.await;
                    }
                    acted
                }
                () = &mut watching => acting.await,
            }
        };
        result.action_ms = took.as_secs_f64() * 1000.0;
        match outcome {
            Err(Undone::NotThere(why)) if self.churn.if_possible => result.left_out = Some(why),
            outcome => outcome.map_err(Undone::text)?,
        }
        Ok(())
    }

    fn visitor(&self, place: &Place) -> Visitor {
        match self.churn.probe.sandbox {
            None => Visitor { host: place.authority.clone(), ..Visitor::default() },
            Some((index, kind)) => {
                let (workload, target) = (&self.plan.workload, &self.plan.target);
                Aim::new(workload, target, &place.authority, 0, Share::WHOLE, 0).visitor_of(index, kind)
            }
        }
    }

    /// Asks until the effect is seen, and then until it is over if that is wanted.
    async fn watch(&self, probe: &mut Prober, pulled: Instant, result: &mut ChurnResult) {
        let wanted = self.churn.probe.effect;
        let (within, load) = (pulled + self.churn.within.0, self.ends.load + GRACE);
        let end = within.min(load);
        // A probe that is under way then says nothing any more, but where no effect is expected: there a target that has not
        // answered since the change would pass for unharmed.
        let patience = if wanted == Expectation::Unharmed { PROBE_TIMEOUT } else { Duration::ZERO };
        let mut next = Instant::now();
        while Instant::now() < end && !self.ends.stopped() {
            let asking = probe.ask();
            let Ok(seen) = tokio::time::timeout_at((end + patience).into(), asking).await else { break };
            result.probes += 1;
            let since = Some(pulled.elapsed().as_secs_f64() * 1000.0);
            match (result.effect_ms, wanted.is_effect(seen)) {
                (None, true) => result.effect_ms = since,
                (Some(_), false) => result.recovered_ms = result.recovered_ms.or(since),
                _ => {}
            }
            let done =
                result.effect_ms.is_some() && (!self.churn.probe.recovery || result.recovered_ms.is_some());
            if done && wanted != Expectation::Unharmed {
                return;
            }
            next = (next + self.churn.probe.every.0).max(Instant::now());
            tokio::time::sleep_until(next.min(end).into()).await;
        }
        result.cut_short = match () {
            () if Instant::now() >= within => None,
            () if self.ends.stopped() => Some(CutShort::Stopped),
            () if load < within => Some(CutShort::LoadOver { after_s: (end - pulled).as_secs_f64() }),
            () => None,
        };
    }
}

impl Expectation {
    /// Where none is expected, whatever is not well is one.
    fn is_effect(self, seen: Seen) -> bool {
        match self {
            Self::Ok => seen == Seen::Ok,
            Self::Refused => seen == Seen::Refused,
            Self::Fails => seen == Seen::Fails,
            Self::Unharmed => seen != Seen::Ok,
        }
    }
}

struct Prober {
    connector: Connector,
    visitor: Visitor,
    path: String,
    connection: Option<Http1>,
}

impl Prober {
    async fn ask(&mut self) -> Seen {
        match tokio::time::timeout(PROBE_TIMEOUT, self.exchange()).await {
            Ok(Some(status)) => match status {
                200..=299 => Seen::Ok,
                401 | 403 | 302 | 307 => Seen::Refused,
                500.. => Seen::Fails,
                _ => Seen::Else,
            },
            Ok(None) | Err(_) => Seen::Fails,
        }
    }

    async fn exchange(&mut self) -> Option<u16> {
        let mut request = Request::default();
        self.visitor.write_head(&mut request.bytes, "GET", &self.path, None, "");
        // A kept connection may have been closed since the last question: then a new one answers.
        if let Some(mut kept) = self.connection.take()
            && let Ok(reply) = kept.exchange(&request, &mut |_| {}).await
        {
            self.connection = reply.reusable.then_some(kept);
            return Some(reply.status);
        }
        let transport = self.connector.connect(&self.visitor.host, PROBE_TIMEOUT).await.ok()?;
        let mut fresh = Http1::new(transport, scratch());
        let reply = fresh.exchange(&request, &mut |_| {}).await.ok()?;
        self.connection = reply.reusable.then_some(fresh);
        Some(reply.status)
    }
}

/// Why a lever was not pulled.
enum Undone {
    /// The other side has no such lever.
    NotThere(String),
    Else(String),
}

impl Undone {
    fn text(self) -> String {
        match self {
            Self::NotThere(text) | Self::Else(text) => text,
        }
    }
}

/// Pulls the lever.
async fn act(action: &Action) -> Result<(), Undone> {
    match action {
        Action::Command(command) => {
            let command = command.clone();
            let run = move || {
                std::process::Command::new("sh")
                    .arg("-c")
                    .arg(&command)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .status()
            };
            // On a thread of its own: probes go on while it runs.
            match tokio::task::spawn_blocking(run).await {
                Ok(Ok(status)) if status.success() => Ok(()),
                Ok(Ok(status)) => Err(Undone::Else(format!("the command ended with {status}"))),
                Ok(Err(error)) => Err(Undone::Else(format!("the command did not run: {error}"))),
                Err(error) => Err(Undone::Else(error.to_string())),
            }
        }
        Action::Post(url) => {
            let target = crate::plan::Target { url: url.clone(), ..crate::plan::Target::default() };
            let place = Place::of(&target).map_err(Undone::Else)?;
            let (host, path) = (place.authority.clone(), place.path.clone());
            let connector = Connector::new(place, Vec::new());
            let mut request = Request::default();
            Visitor { host: host.clone(), ..Visitor::default() }.write_head(
                &mut request.bytes,
                "POST",
                &path,
                Some(0),
                "",
            );
            let exchange = async {
                let transport = connector.connect(&host, PROBE_TIMEOUT).await?;
                Http1::new(transport, scratch()).exchange(&request, &mut |_| {}).await
            };
            match tokio::time::timeout(Duration::from_secs(10), exchange).await {
                Ok(Ok(reply)) if (200..300).contains(&reply.status) => Ok(()),
                Ok(Ok(reply)) if matches!(reply.status, 404 | 501) => {
                    Err(Undone::NotThere(format!("{url} answered {}", reply.status)))
                }
                Ok(Ok(reply)) => Err(Undone::Else(format!("{url} answered {}", reply.status))),
                Ok(Err(failure)) => Err(Undone::Else(format!("{url}: {}", failure.code()))),
                Err(_) => Err(Undone::Else(format!("{url}: no answer"))),
            }
        }
    }
}
