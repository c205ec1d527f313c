//! Changes while a load runs, and how long each takes to be felt: a lever is pulled, a probe asks until it sees the effect.

use crate::aim::{Aim, Visitor};
use crate::http1::{Http1, Request, scratch};
use crate::plan::{Action, Churn, Expectation, Plan, Share};
use crate::result::ChurnResult;
use crate::transport::{Connector, Place};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// One probe may take as long; slower is as good as no answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a thread for each change of the plan; each ends with the phases' numbers and what it saw. Changes of the same
/// sandbox come one after the other: what the first does to it is what the second finds, however long that takes.
pub fn spawn(
    plan: &Arc<Plan>,
    start: Instant,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<Vec<(usize, ChurnResult)>>> {
    let mut lines: Vec<Vec<(usize, Instant, Churn)>> = Vec::new();
    let mut begin = start;
    for (n, phase) in plan.phases.iter().enumerate() {
        for churn in &phase.churn {
            let sandbox = churn.probe.sandbox;
            let same = |line: &&mut Vec<(usize, Instant, Churn)>| {
                sandbox.is_some() && line.iter().any(|(.., earlier)| earlier.probe.sandbox == sandbox)
            };
            match lines.iter_mut().find(same) {
                Some(line) => line.push((n, begin, churn.clone())),
                None => lines.push(vec![(n, begin, churn.clone())]),
            }
        }
        begin += phase.length.0;
    }
    let run_line = |line: Vec<(usize, Instant, Churn)>| {
        let (plan, stop) = (plan.clone(), stop.clone());
        thread::spawn(move || {
            let run = |(n, begin, churn): (usize, Instant, Churn)| {
                let mut result = ChurnResult {
                    name: churn.name.clone(),
                    at_s: churn.at.0.as_secs_f64(),
                    recovery: churn.probe.recovery,
                    ..ChurnResult::default()
                };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
                    runtime
                        .block_on(Watch { plan: &plan, churn: &churn, stop: &stop }.run(begin, &mut result))
                });
                result.error = outcome.err();
                (n, result)
            };
            line.into_iter().map(run).collect()
        })
    };
    lines.into_iter().map(run_line).collect()
}

struct Watch<'a> {
    plan: &'a Plan,
    churn: &'a Churn,
    stop: &'a AtomicBool,
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
    async fn run(&self, phase_begin: Instant, result: &mut ChurnResult) -> Result<(), String> {
        let place = Place::of(&self.plan.target)?;
        let visitor = self.visitor(&place);
        let connector = Connector::new(place, Vec::new());
        let mut probe = Prober { connector, visitor, path: self.churn.probe.path.clone(), connection: None };
        let due = phase_begin + self.churn.at.0;
        while Instant::now() < due {
            if self.stop.load(Relaxed) {
                return Err("the run was stopped before".into());
            }
            tokio::time::sleep_until(due.min(Instant::now() + Duration::from_millis(50)).into()).await;
        }
        // What is there before shows that the effect is an effect.
        let before = probe.ask().await;
        result.probes += 1;
        let wanted = self.churn.probe.effect;
        if wanted.matches(before) && wanted != Expectation::Unharmed {
            return Err(format!("the effect was there before: {before:?}"));
        }
        let pulled = Instant::now();
        result.at_s = (pulled - phase_begin).as_secs_f64();
        let action = act(&self.churn.action);
        let acting = async {
            let outcome = action.await;
            (outcome, pulled.elapsed())
        };
        let watching = self.watch(&mut probe, pulled, result);
        let ((outcome, took), ()) = tokio::join!(acting, watching);
        result.action_ms = took.as_secs_f64() * 1000.0;
        outcome
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
        let end = pulled + self.churn.within.0;
        let mut next = Instant::now();
        while Instant::now() < end && !self.stop.load(Relaxed) {
            let seen = probe.ask().await;
            result.probes += 1;
            let since = Some(pulled.elapsed().as_secs_f64() * 1000.0);
            match result.effect_ms {
                None if wanted == Expectation::Unharmed && seen != Seen::Ok => result.effect_ms = since,
                None if wanted.matches(seen) && wanted != Expectation::Unharmed => result.effect_ms = since,
                Some(_)
                    if result.recovered_ms.is_none()
                        && !wanted.matches(seen)
                        && wanted != Expectation::Unharmed =>
                {
                    result.recovered_ms = since;
                }
                Some(_)
                    if result.recovered_ms.is_none()
                        && wanted == Expectation::Unharmed
                        && seen == Seen::Ok =>
                {
                    result.recovered_ms = since;
                }
                _ => {}
            }
            let done =
                result.effect_ms.is_some() && (!self.churn.probe.recovery || result.recovered_ms.is_some());
            if done && wanted != Expectation::Unharmed {
                return;
            }
            next = (next + self.churn.probe.every.0).max(Instant::now());
            tokio::time::sleep_until(next.into()).await;
        }
    }
}

impl Expectation {
    fn matches(self, seen: Seen) -> bool {
        matches!(
            (self, seen),
            (Self::Ok | Self::Unharmed, Seen::Ok)
                | (Self::Refused, Seen::Refused)
                | (Self::Fails, Seen::Fails)
        )
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

/// Pulls the lever.
async fn act(action: &Action) -> Result<(), String> {
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
                Ok(Ok(status)) => Err(format!("the command ended with {status}")),
                Ok(Err(error)) => Err(format!("the command did not run: {error}")),
                Err(error) => Err(error.to_string()),
            }
        }
        Action::Post(url) => {
            let target = crate::plan::Target { url: url.clone(), ..crate::plan::Target::default() };
            let place = Place::of(&target)?;
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
                Ok(Ok(reply)) => Err(format!("{url} answered {}", reply.status)),
                Ok(Err(failure)) => Err(format!("{url}: {}", failure.code())),
                Err(_) => Err(format!("{url}: no answer")),
            }
        }
    }
}
