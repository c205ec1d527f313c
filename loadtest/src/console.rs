//! What a run says on the terminal: a line now and then, a summary at the end.

use crate::compare::{Comparison, Row};
use crate::measure::{Totals, bytes_text, share_text, time_text as time};
use crate::plan::Plan;
use crate::result::{ChurnVerdict, ClassResult, Hist, PhaseResult, RunResult, Search, SearchStep};
use crate::run::Moment;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

/// A line each second for terminals that are none, each few seconds when it goes on for long.
pub struct Lines {
    last: Option<Duration>,
}

impl Lines {
    pub fn new() -> Self {
        Self { last: None }
    }

    pub fn show(&mut self, moment: &Moment<'_>) {
        let every = if moment.elapsed > Duration::from_secs(60) { 10 } else { 1 };
        let due =
            self.last.is_none_or(|last| moment.elapsed >= last + Duration::from_millis(every * 1000 - 100));
        if moment.second.sent + moment.second.planned == 0 || !due {
            return;
        }
        self.last = Some(moment.elapsed);
        let (point, quantiles) = (moment.second, moment.quantiles);
        let phase = moment.plan.phases.get(moment.phase).map_or("", |phase| &phase.name);
        let line = format!(
            "{:>5.0}s {phase}: {:>7} planned/s {:>7} ended/s {:>5} failed/s  p50 {}  p99 {}  backlog {}",
            moment.elapsed.as_secs_f64(),
            point.planned,
            point.ok + point.failed,
            point.failed,
            known(quantiles.count, quantiles.p50_us),
            known(quantiles.count, quantiles.p99_us),
            point.backlog,
        );
        // A terminal that is gone is no reason to end the run.
        drop(writeln!(io::stderr(), "{line}"));
    }
}

/// A percentile of so many.
pub fn known(count: u64, us: f64) -> String {
    if count == 0 { "–".into() } else { time(us) }
}

/// The result in a few lines.
pub fn summary(result: &RunResult) -> String {
    let mut text = String::new();
    let config = &result.config;
    let _infallible = writeln!(
        text,
        "{}  {} loop, {}{}, {} connections",
        config.target,
        config.model,
        config.protocol,
        if config.tls { " over TLS" } else { "" },
        config.connections,
    );
    match &result.search {
        None => result.phases.iter().for_each(|phase| add_phase(&mut text, phase)),
        Some(search) => add_search(&mut text, search, result),
    }
    if let Some((copied, spliced)) = Totals::of(result).moved() {
        let share = share_text(spliced / (copied + spliced));
        let _infallible = writeln!(
            text,
            "\nbody bytes in the proxy, by its own count: {} spliced, {} copied ({share} spliced)",
            bytes_text(spliced),
            bytes_text(copied),
        );
    }
    add_reasons(&mut text, "", result);
    text
}

/// Its steps, and of the one that stands for the result everything.
fn add_search(text: &mut String, search: &Search, result: &RunResult) {
    text.push('\n');
    for step in &search.steps {
        let _infallible = writeln!(text, "{}", search_step(step));
    }
    result.judged().filter(|_| search.rate.is_some()).for_each(|phase| add_phase(text, phase));
    let found =
        search.rate.map_or_else(|| search.nothing_held().into(), |rate| format!("{rate:.0} requests/s"));
    let _infallible = writeln!(text, "\nhighest rate with {}: {found}", search.bound);
}

fn add_phase(text: &mut String, phase: &PhaseResult) {
    let total = phase.total();
    let warmup = if phase.warmup { ", does not count" } else { "" };
    let shortened = match total.shortened {
        0 => String::new(),
        n => format!(" ({n} ended with the run)"),
    };
    let _infallible = writeln!(
        text,
        "\n{} ({}, {:.1} s{warmup}): {:.0} requests/s, {} ok{shortened}, {} failed, {} unsent, {} unfinished",
        phase.name,
        phase.kind,
        phase.duration_s,
        phase.rate(),
        total.ok,
        total.failed,
        total.unsent,
        total.unfinished,
    );
    if !phase.classes.is_empty() {
        let _infallible = writeln!(
            text,
            "  {:<24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "count", "p50", "p90", "p99", "p99.9", "max"
        );
    }
    if phase.classes.len() > 1 {
        row(text, "all response", &total.response);
    }
    let closed = phase.planned_rate.is_none();
    for (name, class) in &phase.classes {
        if class.response.is_empty() && class.service.is_empty() {
            let _infallible = writeln!(text, "  {name}: nothing that has a time");
        }
        // In a closed loop they part where requests had to connect.
        if !closed || class.response != class.service {
            row(text, &format!("{name} response"), &class.response);
        }
        row(text, &format!("{name} service"), &class.service);
        for (extra, hist) in &class.extra {
            row(text, &format!("  {extra}"), hist);
        }
        add_errors(text, class);
    }
    if let Some(idle) = &phase.idle {
        let _infallible = writeln!(
            text,
            "  idle WebSockets: {} of {} open, {} failed, {} without an answer, {} cut, {} opened again, opened at {:.0}/s",
            idle.open,
            idle.planned,
            idle.failed,
            idle.unfinished,
            idle.lost,
            idle.reopened,
            idle.connects_per_s
        );
        row(text, "  handshake", &idle.connect);
        for error in &idle.errors {
            let _infallible = writeln!(text, "  {:>9} x {} ({})", error.count, error.code, error.source);
        }
    }
    for churn in &phase.churn {
        let none = if churn.unharmed { "none, as it should be" } else { "not seen" };
        let shown = |ms: Option<f64>| ms.map_or(none.into(), |ms| format!("after {}", time(ms * 1000.0)));
        let outcome = match churn.verdict() {
            ChurnVerdict::LeftOut(why) => why,
            ChurnVerdict::Unknown(why) if !churn.was_made() => why,
            _ => {
                let recovered = match churn.recovery {
                    true => format!(", recovered {}", shown(churn.recovered_ms)),
                    false => String::new(),
                };
                let (effect, took) = (shown(churn.effect_ms), time(churn.action_ms * 1000.0));
                format!("effect {effect}{recovered} ({} probes; the lever took {took})", churn.probes)
            }
        };
        let verdict = match churn.verdict() {
            ChurnVerdict::Missed(how) => format!("; NOT AS EXPECTED: {how}"),
            _ => String::new(),
        };
        let _infallible = writeln!(text, "  {} at {:.1} s: {outcome}{verdict}", churn.name, churn.at_s);
    }
    if let Some(proxy) = &phase.proxy {
        let _infallible = writeln!(
            text,
            "  proxy ({}): {:.2} µs CPU per request, {:.0} requests/s per core, {} at most",
            proxy.source,
            proxy.cpu_us_per_request,
            proxy.requests_per_core_s,
            bytes_text(proxy.memory_max_bytes as f64),
        );
    }
    if let Some(calls) = phase.proxy.as_ref().and_then(|proxy| proxy.calls.as_ref()) {
        let _infallible = writeln!(
            text,
            "  proxy: {:.2} system calls per request, of them io_uring_enter {:.2}",
            calls.system_calls_per_request, calls.ring_enters_per_request,
        );
    }
    let _infallible = writeln!(
        text,
        "  load generator: busiest thread {:.0} % of a CPU, sends late by p99 {}",
        phase.client.busiest_percent,
        time(phase.client.send_lag.quantile_us(0.99)),
    );
}

fn add_errors(text: &mut String, class: &ClassResult) {
    for error in &class.errors {
        let _infallible = writeln!(text, "  {:>9} x {} ({})", error.count, error.code, error.source);
    }
    if class.refused_rightly > 0 {
        let _infallible = writeln!(text, "  {:>9} x refused, as they had to be", class.refused_rightly);
    }
    if class.resent > 0 {
        let _infallible =
            writeln!(text, "  {:>9} x sent again, the kept connection was closed", class.resent);
    }
}

fn row(text: &mut String, name: &str, hist: &Hist) {
    if hist.is_empty() {
        return;
    }
    let q = hist.quantiles();
    let _infallible = writeln!(
        text,
        "  {name:<24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        q.count,
        time(q.p50_us),
        time(q.p90_us),
        time(q.p99_us),
        time(q.p999_us),
        time(q.max_us),
    );
}

/// One step of a search.
pub fn search_step(step: &SearchStep) -> String {
    format!(
        "{:>10.0}/s: p99 {:>10}, {:.2} % failed or unsent, {:.0}/s ended: {}{}",
        step.rate,
        time(step.p99_us),
        step.error_share * 100.0,
        step.achieved,
        match (step.held, step.partial) {
            (true, _) => "holds",
            (false, true) => "ended early",
            (false, false) => "does not hold",
        },
        if step.invalid { " (the load generator was in the way)" } else { "" },
    )
}

/// One target's turn.
pub fn round(round: u32, target: usize, result: &RunResult) -> String {
    let name = ["A", "B"][target.min(1)];
    let Some(phase) = result.measured().next() else { return format!("round {round} {name}: nothing") };
    let total = phase.total();
    let cpu =
        phase.proxy.as_ref().map_or(String::new(), |used| format!(", {:.2} µs CPU", used.cpu_us_per_request));
    format!(
        "round {round} {name}: {:.0}/s, p50 {}, p99 {}, {} failed{cpu}",
        phase.rate(),
        time(total.response.quantile_us(0.5)),
        time(total.response.quantile_us(0.99)),
        total.failed,
    )
}

/// Two results side by side: the medians of their rounds and the ratio of the two, and what is to be thought of it.
pub fn against(comparison: &Comparison<'_>) -> String {
    let (a, b) = (comparison.a, comparison.b);
    let who = |result: &RunResult| match &result.meta.started {
        Some(started) => format!("{} ({})", result.config.target, started.proxy),
        None => result.config.target.clone(),
    };
    let mut text = format!("A {}\nB {}\n\n", who(a), who(b));
    let _infallible = writeln!(
        text,
        "  A and B: the medians of their rounds. B/A: the median of the rounds' ratios, not the ratio of those medians.\n\n  \
         {:<18} {:>12} {:>12} {:>8}   {:<13} verdict on B",
        "", "A", "B", "B/A", "[rounds]"
    );
    type Measure = fn(&PhaseResult) -> Option<f64>;
    let rows: [(&str, &str, Measure); 5] = [
        ("ok/s", "rate", |phase| Some(phase.rate())),
        ("p50 µs", "p50", |phase| response(phase, 0.5)),
        ("p99 µs", "p99", |phase| response(phase, 0.99)),
        ("failed", "err", |phase| Some(phase.total().failed as f64)),
        ("CPU µs/request", "cpu_us", |phase| phase.proxy.as_ref().map(|used| used.cpu_us_per_request)),
    ];
    for (name, judged, measure) in rows {
        let of = |result: &RunResult| result.measured().filter_map(measure).collect::<Vec<_>>();
        let (a, b) = (of(a), of(b));
        if a.is_empty() && b.is_empty() {
            continue;
        }
        let ratios: Vec<f64> = a.iter().zip(&b).filter(|(a, _)| **a > 0.0).map(|(a, b)| b / a).collect();
        let spread =
            ratios.iter().fold((f64::INFINITY, 0.0f64), |(low, high), r| (low.min(*r), high.max(*r)));
        let (ratio, rounds) = if ratios.is_empty() {
            Default::default()
        } else {
            (format!("{:.2}", median(ratios)), format!("[{:.2}-{:.2}]", spread.0, spread.1))
        };
        let verdict = comparison.row(judged).map_or("", Row::word);
        let line = format!(
            "  {name:<18} {:>12} {:>12} {ratio:>8}   {rounds:<13} {verdict}",
            median_text(a),
            median_text(b)
        );
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
    if let Some(why) = comparison.no_verdict() {
        let _infallible = writeln!(text, "\n  No verdict: {why}");
    }
    for (name, result) in [("A", a), ("B", b)] {
        add_reasons(&mut text, &format!("{name}: "), result);
    }
    text
}

/// `None`: nothing ended that has a time.
fn response(phase: &PhaseResult, quantile: f64) -> Option<f64> {
    let response = phase.total().response;
    (!response.is_empty()).then(|| response.quantile_us(quantile))
}

fn median_text(values: Vec<f64>) -> String {
    if values.is_empty() { "–".into() } else { format!("{:.1}", median(values)) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (above, below) = (values.len() / 2, values.len().saturating_sub(1) / 2);
    values.get(above).map_or(0.0, |upper| (upper + values[below]) / 2.0)
}

fn add_reasons(text: &mut String, prefix: &str, result: &RunResult) {
    for reason in &result.validity.reasons {
        let kind = if reason.fatal { "NOT VALID" } else { "note" };
        let _infallible = writeln!(text, "{prefix}{kind}: {} ({})", reason.message, reason.code);
    }
}

/// What is about to be done, in one line.
pub fn announcement(plan: &Plan) -> String {
    let length: Duration = plan.phases.iter().map(|phase| phase.length.0).sum();
    let mut text = format!(
        "{} for {} in {} phase(s), {} threads",
        plan.target.url,
        humantime::format_duration(length),
        plan.phases.len(),
        plan.client.threads
    );
    for recording in &plan.recordings {
        text += &format!("\n{recording}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::ServerCounters;

    #[test]
    fn of_a_search_the_steps_are_lines_and_the_found_one_is_whole() {
        let phase = |name: &str, warmup| PhaseResult { name: name.into(), warmup, ..PhaseResult::default() };
        let step = |rate, held| SearchStep { rate, held, ..SearchStep::default() };
        let mut result =
            RunResult { phases: vec![phase("warm-up", true), phase("100/s", false)], ..RunResult::default() };
        result.phases.extend([phase("warm-up", true), phase("200/s", false)]);
        let steps = vec![step(100.0, true), step(200.0, false)];
        result.search = Some(Search { bound: "p99 <= 5ms".into(), rate: Some(100.0), steps });
        let text = summary(&result);
        assert!(text.contains("100/s (") && !text.contains("warm-up") && !text.contains("200/s ("), "{text}");
        assert!(text.contains("       100/s: p99") && text.contains("       200/s: p99"), "{text}");
        assert!(text.contains("highest rate with p99 <= 5ms: 100 requests/s"), "{text}");
        result.search.as_mut().expect("just set").rate = None;
        let text = summary(&result);
        assert!(!text.contains("100/s (") && text.contains("not even the lowest held"), "{text}");
    }

    #[test]
    fn bytes_of_which_there_are_none_are_0() {
        let page = |bytes| [(r#"preview_bytes_total{path="copy"}"#.to_owned(), bytes)].into();
        let server = ServerCounters { before: page(1.0), after: page(2049.0), ..ServerCounters::default() };
        let text = summary(&RunResult { server: Some(server), ..RunResult::default() });
        assert!(text.contains("own count: 0 B spliced, 2.00 KiB copied (0% spliced)"), "{text}");
    }

    #[test]
    fn every_class_is_named_whatever_became_of_it_and_all_together_have_a_row() {
        let mut phase = PhaseResult { name: "p".into(), ..PhaseResult::default() };
        let mut failed = ClassResult { failed: 3, ..ClassResult::default() };
        failed.count_error("connect refused", "network", 3);
        let mut good = ClassResult { ok: 1, ..ClassResult::default() };
        good.response.record_ns(202_000_000);
        phase.classes.extend([("get:1k".to_owned(), good), ("upload:4k".to_owned(), failed)]);
        let mut result = RunResult::default();
        result.phases.push(phase);
        let text = summary(&result);
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(place("all response") < place("get:1k response"), "{text}");
        assert!(place("upload:4k: nothing that has a time") < place("3 x connect refused"), "{text}");
        assert!(text.contains("202 ms") && !text.contains("spliced"), "{text}");
        result.phases[0].classes.remove("upload:4k");
        assert!(!summary(&result).contains("all response"), "one class is all");
    }
}
