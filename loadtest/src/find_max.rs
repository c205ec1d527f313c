//! The highest rate a target does within a bound: doubles until it fails, then halves the gap (as a ratio).

use crate::measure::{class_named, no_class};
use crate::plan::{Load, Phase, Plan};
use crate::quantity::Span;
use crate::result::{PhaseResult, Reason, RunResult, Search, SearchStep, Validity};
use crate::run::LOST;
use crate::scrape;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// What to look for.
#[derive(Clone, Debug)]
pub struct Bound {
    /// All must hold.
    pub p99: Vec<P99>,
    /// Share of failures at most.
    pub errors: f64,
    pub from: f64,
    pub to: f64,
    pub step: Span,
    /// Found when the gap between what holds and what does not is at most this share.
    pub precision: f64,
}

/// Response time's 99th percentile at most; of recordings that of their requests.
#[derive(Clone, PartialEq, Debug)]
pub struct P99 {
    /// `None`: all requests together.
    pub class: Option<String>,
    pub most: Span,
}

/// `5ms`, or of one class `get:1k/5ms`.
impl FromStr for P99 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (class, most) = match text.rsplit_once('/') {
            Some(("", _)) => return Err(format!("`{text}`: the class in front of / is missing")),
            Some((class, most)) => (Some(class.to_owned()), most),
            None => (None, text),
        };
        Ok(Self { class, most: most.parse()? })
    }
}

impl fmt::Display for P99 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class.as_ref().map_or(String::new(), |class| format!("{class}/"));
        write!(f, "{class}p99 <= {}", self.most)
    }
}

impl P99 {
    /// Microseconds in the phase, and how much of what is allowed that is. `None`: no request of these has a time.
    fn found(&self, phase: &PhaseResult) -> Option<(f64, f64)> {
        let pace = match &self.class {
            None => phase.pace(),
            Some(class) => {
                let names: Vec<&String> = phase.classes.keys().collect();
                phase.classes[names[class_named(class, &names)?]].pace().clone()
            }
        };
        let us = pace.quantile_us(0.99);
        (!pace.is_empty()).then(|| (us, us / (self.most.0.as_secs_f64() * 1e6)))
    }
}

impl Bound {
    /// What is wrong with it for this load, for the operator.
    pub fn mistake(&self, load: &Plan) -> Option<String> {
        let names: Vec<String> = load.classes().iter().map(ToString::to_string).collect();
        let classes = self.p99.iter().filter_map(|p99| p99.class.as_ref());
        let missing = classes.into_iter().find(|class| class_named(class, &names).is_none());
        match self {
            bound if bound.from <= 0.0 || bound.from > bound.to => {
                Some("--from must be above 0 and at most --to".into())
            }
            bound if !(0.001..=1.0).contains(&bound.precision) => Some("--precision: 0.1% to 100%".into()),
            bound if bound.p99.iter().any(|p99| p99.most.0.is_zero()) || bound.step.0.is_zero() => {
                Some("--p99 and --step: above 0".into())
            }
            _ => missing.map(|class| format!("--p99: {}", no_class(class, &names))),
        }
    }

    fn text(&self) -> String {
        let bounds: Vec<String> = self.p99.iter().map(ToString::to_string).collect();
        format!("{}, errors <= {} %", bounds.join(", "), self.errors * 100.0)
    }
}

/// Searches with `run`, which runs one plan. `template` gives everything but rate and phase. The result has every step
/// as a phase. A rate that fails gets a second chance: one bad second on a shared machine is not the target's limit.
pub fn search(
    template: &Plan,
    bound: &Bound,
    stop: &AtomicBool,
    run: &mut dyn FnMut(Plan) -> Result<RunResult, String>,
    tell: &mut dyn FnMut(&SearchStep),
) -> Result<RunResult, String> {
    let mut whole: Option<RunResult> = None;
    let mut search = Search { bound: bound.text(), ..Search::default() };
    let mut gap = Gap { low: None, high: None };
    while let Some(rate) = gap.next(bound) {
        let mut held = false;
        for attempt in 1..=2 {
            let name = format!("{rate:.0}/s{}", if attempt == 1 { "" } else { ", again" });
            let result = match (run(step_plan(template, bound, &name, rate)), whole.take()) {
                (Ok(result), before) => {
                    whole = before;
                    result
                }
                (Err(error), None) => return Err(error),
                // The steps before are worth having.
                (Err(error), Some(before)) => {
                    let mut whole = finish(before, search, bound);
                    whole.end_early(&format!("{error}: at {name}"), !stop.load(Relaxed));
                    return Ok(whole);
                }
            };
            let step = judge(&result, bound, &name, rate);
            tell(&step);
            held = step.held;
            let stopped = step.partial;
            // Stopped in the warm-up, it is no phase that counts.
            search.steps.extend(result.measured().next().map(|_| step));
            match &mut whole {
                None => whole = Some(result),
                Some(whole) => whole.append(result),
            }
            if stopped {
                return whole.map(|whole| finish(whole, search, bound)).ok_or_else(|| "stopped".into());
            }
            if held {
                break;
            }
        }
        *(if held { &mut gap.low } else { &mut gap.high }) = Some(rate);
        search.rate = gap.low;
    }
    whole.map(|whole| finish(whole, search, bound)).ok_or_else(|| "nothing was tried".into())
}

/// The highest rate that held and the lowest that did not.
struct Gap {
    low: Option<f64>,
    high: Option<f64>,
}

impl Gap {
    /// The next rate to try, `None`: found.
    fn next(&self, bound: &Bound) -> Option<f64> {
        match (self.low, self.high) {
            (None, None) => Some(bound.from),
            // Not even the lowest.
            (None, Some(_)) => None,
            (Some(low), None) if low >= bound.to => None,
            (Some(low), None) => Some((low * 2.0).min(bound.to)),
            (Some(low), Some(high)) if high / low <= 1.0 + bound.precision => None,
            (Some(low), Some(high)) => Some((low * high).sqrt()),
        }
    }
}

fn step_plan(template: &Plan, bound: &Bound, name: &str, rate: f64) -> Plan {
    let phase = |name: &str, length, warmup| Phase {
        name: name.into(),
        load: Load::Hold { rate },
        length,
        mix: template.phases[0].mix.clone(),
        warmup,
        churn: Vec::new(),
        idle: None,
    };
    // A little of the rate before, so that connections and caches are warm.
    let warmup = Span((bound.step.0 / 5).min(Duration::from_secs(1)));
    Plan { phases: vec![phase("warm-up", warmup, true), phase(name, bound.step, false)], ..template.clone() }
}

fn judge(result: &RunResult, bound: &Bound, name: &str, rate: f64) -> SearchStep {
    let measured = result.measured().next();
    let total = measured.map(PhaseResult::total).unwrap_or_default();
    let ended = total.ended();
    let missing = total.unsent + total.unfinished;
    let bad = total.failed + missing;
    let error_share = if ended + missing > 0 { bad as f64 / (ended + missing) as f64 } else { 1.0 };
    let partial = result.meta.partial;
    // Where a bound's requests have not a single time nothing is known of it. Of several the nearest to its limit is told.
    let found: Option<Vec<(f64, f64)>> =
        measured.and_then(|phase| bound.p99.iter().map(|p99| p99.found(phase)).collect());
    let tightest = found.into_iter().flatten().max_by(|a, b| a.1.total_cmp(&b.1));
    let within = tightest.is_some_and(|(_, part)| part <= 1.0) && error_share <= bound.errors;
    let p99_us = tightest.map_or(0.0, |(us, _)| us);
    SearchStep {
        phase: name.into(),
        rate,
        achieved: measured.map_or(0.0, PhaseResult::rate),
        p99_us,
        error_share,
        held: within && !partial,
        invalid: !result.validity.valid,
        partial,
    }
}

/// What invalidates a step does not invalidate the search: a rate that held although the load generator was in the way
/// holds. One that did not is a limit of the wrong party, and then the result is only a lower bound. A step that was cut short
/// is neither.
fn finish(mut whole: RunResult, search: Search, bound: &Bound) -> RunResult {
    let mut reasons: Vec<Reason> = Vec::new();
    if search.steps.iter().any(|step| step.invalid && !step.held && !step.partial) {
        reasons.push(Reason {
            code: "client_limit".into(),
            message: "rates were given up at which the load generator itself was late or busy: the target may do more".into(),
            fatal: true,
        });
    }
    if search.rate.is_none() {
        let message = format!("no rate found: {}", search.nothing_held());
        reasons.push(Reason { code: "nothing_held".into(), message, fatal: false });
    }
    if search.rate.is_some_and(|rate| rate >= bound.to) {
        let message = "the highest rate that was to be tried held: the target may do more".into();
        reasons.push(Reason { code: "bound_reached".into(), message, fatal: false });
    }
    reasons.extend(whole.validity.reasons.into_iter().filter(|reason| reason.code == LOST));
    if whole.meta.partial {
        reasons.push(Reason {
            code: "partial".into(),
            message: "ended before its time".into(),
            fatal: false,
        });
    }
    reasons.extend(whole.server.as_ref().and_then(scrape::note));
    whole.validity = Validity::of(reasons);
    whole.search = Some(search);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Class, Client, Target, Workload};
    use crate::result::{ClassResult, HAR_REQUEST, Hist, Meta};

    fn bound(from: f64, to: f64) -> Bound {
        Bound {
            p99: vec!["10ms".parse().expect("a bound")],
            errors: 0.01,
            from,
            to,
            step: Span(Duration::from_secs(1)),
            precision: 0.05,
        }
    }

    fn template() -> Plan {
        let phase = Phase {
            name: String::new(),
            load: Load::Quiet,
            length: Span::default(),
            mix: vec![(Class::Get { bytes: 1 }, 1.0)],
            warmup: false,
            churn: Vec::new(),
            idle: None,
        };
        Plan {
            name: "x".into(),
            target: Target::default(),
            client: Client::default(),
            workload: Workload::default(),
            recordings: Vec::new(),
            phases: vec![phase],
        }
    }

    /// A target that is fast up to `capacity`. `hiccups`: so many steps fail for no reason.
    fn search_at(capacity: f64, bound: &Bound, mut hiccups: u32) -> (Search, Validity) {
        let mut run = |plan: Plan| {
            let phase = &plan.phases[1];
            let Load::Hold { rate } = phase.load else { panic!("a held rate") };
            let hiccup = hiccups > 0;
            hiccups = hiccups.saturating_sub(1);
            let mut class = ClassResult { ok: 100, sent: 100, planned: 100, ..ClassResult::default() };
            let ms = if rate <= capacity && !hiccup { 1 } else { 50 };
            (0..100).for_each(|_| class.response.record_ns(ms * 1_000_000));
            let mut measured =
                PhaseResult { name: phase.name.clone(), duration_s: 1.0, ..PhaseResult::default() };
            measured.classes.insert("get:1".into(), class);
            let validity = Validity { valid: true, ..Validity::default() };
            Ok(RunResult { phases: vec![measured], validity, ..RunResult::default() })
        };
        let result =
            search(&template(), bound, &AtomicBool::new(false), &mut run, &mut |_| {}).expect("it ran");
        assert_eq!(result.phases.len(), result.search.as_ref().map_or(0, |search| search.steps.len()));
        (result.search.expect("a search"), result.validity)
    }

    #[test]
    fn the_limit_is_found_within_the_precision() {
        for capacity in [130.0, 1000.0, 7777.0] {
            let (search, validity) = search_at(capacity, &bound(100.0, 100_000.0), 0);
            let rate = search.rate.expect("found");
            assert!(rate <= capacity && rate >= capacity / 1.06, "{rate} of {capacity}");
            assert!(search.steps.len() < 30 && validity.valid);
        }
    }

    #[test]
    fn each_class_has_its_own_bound_and_the_tightest_is_told() {
        let mut phase = PhaseResult { duration_s: 1.0, ..PhaseResult::default() };
        for (name, ms) in [("exec:200ms", 202), ("get:1k", 3)] {
            let mut class = ClassResult { ok: 100, sent: 100, ..ClassResult::default() };
            (0..100).for_each(|_| class.response.record_ns(ms * 1_000_000));
            phase.classes.insert(name.into(), class);
        }
        let result = RunResult { phases: vec![phase], ..RunResult::default() };
        for (p99, held, told_ms) in [
            (&["5ms"][..], false, 202.0),
            (&["get/5ms"], true, 3.0),
            (&["get/5ms", "exec:200ms/300ms"], true, 202.0),
            (&["get/4ms", "exec/2s"], true, 3.0),
            (&["get/5ms", "exec/100ms"], false, 202.0),
            // Nothing is known of it.
            (&["get/5ms", "ws/1s"], false, 0.0),
        ] {
            let parsed = p99.iter().map(|text| text.parse().expect("a bound")).collect();
            let step = judge(&result, &Bound { p99: parsed, ..bound(1.0, 2.0) }, "x", 1.0);
            assert!(step.held == held && (step.p99_us / 1000.0 - told_ms).abs() < 1.0, "{p99:?}: {step:?}");
        }
        let load = template();
        let mistake = |text: &str| {
            let p99 = vec![text.parse().expect("a bound")];
            Bound { p99, ..bound(1.0, 2.0) }.mistake(&load).unwrap_or_default()
        };
        assert_eq!((mistake("5ms").as_str(), mistake("get/5ms").as_str()), ("", ""));
        assert_eq!(mistake("exec/5ms"), "--p99: no class `exec`; there are get:1");
        assert!(mistake("get/0s").contains("above 0"));
        assert!("/5ms".parse::<P99>().is_err() && "get/5".parse::<P99>().is_err());
        let text = Bound { p99: vec!["get/5ms".parse().expect("a bound")], ..bound(1.0, 2.0) }.text();
        assert_eq!(text, "get/p99 <= 5ms, errors <= 1 %");
    }

    #[test]
    fn one_bad_step_is_tried_again() {
        let (search, _) = search_at(1000.0, &bound(100.0, 10_000.0), 1);
        assert!(search.rate.is_some_and(|rate| rate > 940.0), "{:?}", search.rate);
        assert!(!search.steps[0].held && search.steps[1].held);
    }

    #[test]
    fn a_step_that_cannot_be_made_leaves_those_before() {
        for stopped in [true, false] {
            let mut left = 2;
            let mut run = |plan: Plan| {
                if left == 0 {
                    return Err("no such process".into());
                }
                left -= 1;
                let mut class = ClassResult { ok: 100, ..ClassResult::default() };
                class.response.record_ns(1_000_000);
                let mut measured =
                    PhaseResult { name: plan.phases[1].name.clone(), ..PhaseResult::default() };
                measured.classes.insert("get:1".into(), class);
                let validity = Validity { valid: true, ..Validity::default() };
                Ok(RunResult { phases: vec![measured], validity, ..RunResult::default() })
            };
            let stop = AtomicBool::new(stopped);
            let result = search(&template(), &bound(100.0, 10_000.0), &stop, &mut run, &mut |_| {})
                .expect("two steps");
            assert_eq!(result.search.as_ref().and_then(|search| search.rate), Some(200.0));
            assert_eq!((result.meta.partial, result.validity.valid), (true, stopped));
            let said = result.validity.reasons.last().expect("told");
            assert_eq!(said.message, "no such process: at 400/s");
        }
    }

    /// What holds for half a second need not hold for ten.
    #[test]
    fn a_step_that_is_cut_short_neither_holds_nor_fails() {
        // What the cut step's requests took, and whether it came to its measured phase.
        for (whole_steps, ms, measured) in [(1, 1, true), (1, 50, true), (1, 1, false), (0, 1, true)] {
            let mut left = whole_steps;
            let mut run = |plan: Plan| {
                let partial = left == 0;
                left -= i32::from(!partial);
                let mut class = ClassResult { ok: 100, ..ClassResult::default() };
                class.response.record_ns(if partial { ms } else { 1 } * 1_000_000);
                let mut phases = Vec::new();
                if measured || !partial {
                    phases.push(PhaseResult { name: plan.phases[1].name.clone(), ..PhaseResult::default() });
                    phases[0].classes.insert("get:1".into(), class);
                }
                let meta = Meta { partial, ..Meta::default() };
                // As the load generator is when it was lost: that says nothing about the target.
                let validity = Validity { valid: !partial, ..Validity::default() };
                Ok(RunResult { phases, meta, validity, ..RunResult::default() })
            };
            let stop = AtomicBool::new(true);
            let result = search(&template(), &bound(100.0, 10_000.0), &stop, &mut run, &mut |_| {})
                .expect("there is something");
            let search = result.search.as_ref().expect("a search");
            assert_eq!(search.rate, (whole_steps == 1).then_some(100.0));
            let held: Vec<_> = search.steps.iter().map(|step| (step.held, step.partial)).collect();
            assert_eq!(
                held[..],
                [&[(true, false)][1 - whole_steps as usize..], &[(false, true)][usize::from(!measured)..]]
                    .concat()
            );
            let judged: Vec<_> = result.judged().map(|phase| phase.name.as_str()).collect();
            assert_eq!(judged, &["100/s"][1 - whole_steps as usize..], "figures are of the rate found");
            assert!(result.validity.valid && result.meta.partial, "{:?}", result.validity);
            let said =
                result.validity.reasons.iter().any(|reason| reason.message.contains("not even the lowest"));
            assert!(!said, "{:?}", result.validity);
        }
    }

    /// Sessions of an hour that are all shortened have no time; those of a recording have its pauses in theirs.
    #[test]
    fn a_step_is_judged_by_what_the_target_took_and_does_not_hold_without_a_time() {
        let hist = |ms: &[u64]| {
            let mut hist = Hist::default();
            ms.iter().for_each(|ms| hist.record_ns(ms * 1_000_000));
            hist
        };
        for (response, requests, held) in [
            (&[][..], None, false),
            (&[1], None, true),
            (&[50], None, false),
            (&[], Some(&[1][..]), true),
            (&[5000], Some(&[1]), true),
            (&[1], Some(&[50]), false),
        ] {
            let mut class =
                ClassResult { ok: 100, sent: 100, response: hist(response), ..ClassResult::default() };
            class.extra.extend(requests.map(|ms| (HAR_REQUEST.to_owned(), hist(ms))));
            let mut phase = PhaseResult { name: "100/s".into(), duration_s: 1.0, ..PhaseResult::default() };
            phase.classes.insert("har:x".into(), class);
            let result = RunResult { phases: vec![phase], ..RunResult::default() };
            let step = judge(&result, &bound(100.0, 1000.0), "100/s", 100.0);
            assert_eq!(step.held, held, "{response:?} {requests:?}: {step:?}");
        }
    }

    #[test]
    fn bounds_of_the_search_are_kept() {
        assert_eq!(search_at(1e9, &bound(100.0, 1000.0), 0).0.rate, Some(1000.0));
        let (search, validity) = search_at(10.0, &bound(100.0, 1000.0), 0);
        assert_eq!((search.rate, search.steps.len()), (None, 2));
        assert_eq!(validity.reasons[0].code, "nothing_held");
    }
}
