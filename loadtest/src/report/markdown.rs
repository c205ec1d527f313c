//! The Markdown summary: what fits into a CI job's page or a pull request.

use crate::measure::{Totals, bytes_text, number_text, quantile_text, share_text, time_text};
use crate::report::{phase_errors, planned_rate_text};
use crate::result::{ChurnVerdict, ClassResult, ErrorCount, PhaseResult, RunResult, Search};
use std::fmt::Write as _;

/// Most rows of the table of errors.
const ERRORS_MAX: usize = 20;
/// Most rows of the tables of phases and steps.
const PHASES_MAX: usize = 100;

pub fn text(result: &RunResult) -> String {
    let totals = Totals::of(result);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "## loadtest: {}\n", escape(&result.meta.name));
    let config = &result.config;
    let _ = writeln!(
        text,
        "{} · {} · {} loop · {} connections · {} s measured · {}\n",
        escape(&config.target),
        escape(&config.protocol),
        escape(&config.model),
        config.connections,
        number_text(totals.duration_s),
        escape(&result.meta.started_at),
    );
    for reason in &result.validity.reasons {
        let word = if reason.fatal { "**Not valid**" } else { "Note" };
        let _ = writeln!(text, "> {word}: {}\n", escape(&reason.message));
    }
    if !result.assertions.is_empty() {
        text.push_str("| threshold | found | |\n|---|---|---|\n");
        for assertion in &result.assertions {
            let sign = if assertion.holds { "✅" } else { "❌" };
            let _ = writeln!(text, "| `{}` | {} | {sign} |", code(&assertion.text), escape(&assertion.found));
        }
        text.push('\n');
    }
    if let Some(search) = &result.search {
        let bound = escape(&search.bound);
        let _ = match search.rate {
            Some(rate) => writeln!(
                text,
                "Highest rate with {bound}: **{}/s**. The figures by class, and the thresholds', are of its step.\n",
                number_text(rate)
            ),
            None => writeln!(text, "Highest rate with {bound}: **{}**.\n", search.nothing_held()),
        };
    }
    text.push_str(
        "| class | rate | p50 | p90 | p99 | p99.9 | max | errors |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    class_row(&mut text, "**all**", &totals.all, totals.duration_s, totals.errors());
    if totals.classes.len() > 1 {
        for (name, class) in &totals.classes {
            class_row(&mut text, &escape(name), class, totals.duration_s, Totals::error_share(class));
        }
    }
    text.push('\n');
    idle(&mut text, &totals);
    churn(&mut text, result);
    if let Some(cpu_us) = totals.cpu_us() {
        let _ = write!(text, "Proxy: {cpu_us:.1} µs CPU per request");
        if cpu_us > 0.0 {
            let _ = write!(text, " ({} requests/s/core)", number_text(1e6 / cpu_us));
        }
        if let Some(bytes) = totals.memory_max_bytes() {
            let _ = write!(text, ", {} memory", bytes_text(bytes as f64));
        }
        text.push_str(".\n");
    }
    if let (Some(calls), Some(enters)) = (totals.calls(), totals.enters()) {
        let _ = writeln!(text, "System calls per request: {calls:.2}, of them io_uring_enter {enters:.2}.");
    }
    if let Some(spliced) = totals.spliced_share() {
        let copied = totals
            .copied_per_request()
            .map_or(String::new(), |bytes| format!("; copied for each request: {}", bytes_text(bytes)));
        let _ = writeln!(text, "Bytes spliced: {}{copied}.", share_text(spliced));
    }
    let of_idle =
        |error: &ErrorCount| ErrorCount { code: format!("idle WebSocket: {}", error.code), ..error.clone() };
    let of_idle = totals.idle.iter().flat_map(|idle| &idle.errors).map(of_idle);
    let all: Vec<ErrorCount> = totals.all.errors.iter().cloned().chain(of_idle).collect();
    errors(&mut text, &all);
    match &result.search {
        Some(search) => steps(&mut text, search),
        None => phases(&mut text, &result.phases),
    }
    text
}

/// Only where there is more than one: the table by class says the same of a single one.
fn phases(text: &mut String, phases: &[PhaseResult]) {
    if phases.len() < 2 {
        return;
    }
    text.push_str("\n| phase | kind | seconds | planned | rate | p50 | p99 | max | errors | proxy CPU |\n");
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for phase in phases.iter().take(PHASES_MAX) {
        let total = phase.total();
        let warmup = if phase.warmup { " (not measured)" } else { "" };
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| quantile_text(&total.response, quantile));
        let _ = writeln!(
            text,
            "| {}{warmup} | {} | {} | {} | {}/s | {p50} | {p99} | {max} | {} | {} |",
            escape(&phase.name),
            escape(&phase.kind),
            number_text((phase.duration_s * 10.0).round() / 10.0),
            planned_rate_text(phase.planned_rate),
            number_text(phase.rate()),
            phase_errors(phase, &total).map_or("–".into(), share_text),
            phase.proxy.as_ref().map_or("–".into(), |proxy| format!("{:.1} µs", proxy.cpu_us_per_request)),
        );
    }
    if phases.len() > PHASES_MAX {
        let _ = writeln!(text, "| {} more | | | | | | | | | |", phases.len() - PHASES_MAX);
    }
}

fn steps(text: &mut String, search: &Search) {
    text.push_str("\n| rate | ended | p99 | errors | |\n|--:|--:|--:|--:|---|\n");
    for step in search.steps.iter().take(PHASES_MAX) {
        let word = match step {
            step if step.held => "held",
            step if step.partial => "ended early",
            step if step.invalid => "did not hold, the load generator was in the way",
            _ => "did not hold",
        };
        let _ = writeln!(
            text,
            "| {}/s | {}/s | {} | {} | {word} |",
            number_text(step.rate),
            number_text(step.achieved),
            time_text(step.p99_us),
            share_text(step.error_share)
        );
    }
}

/// Changes under load.
fn churn(text: &mut String, result: &RunResult) {
    let mut rows =
        result.phases.iter().flat_map(|phase| phase.churn.iter().map(move |churn| (phase, churn))).peekable();
    if rows.peek().is_none() {
        return;
    }
    text.push_str("| change | at | felt after | well again after | |\n|---|--:|--:|--:|---|\n");
    for (phase, churn) in rows {
        let none = if churn.unharmed { "not felt" } else { "not seen" };
        let time = |ms: Option<f64>| ms.map_or(none.into(), |ms| time_text(ms * 1000.0));
        let recovered = if churn.recovery { time(churn.recovered_ms) } else { "–".into() };
        let verdict = match churn.verdict() {
            ChurnVerdict::AsExpected => "✅".into(),
            ChurnVerdict::Missed(how) => format!("❌ {}", escape(&how)),
            ChurnVerdict::Unknown(why) => format!("❌ {}", escape(&why)),
            ChurnVerdict::LeftOut(why) => escape(&why),
        };
        let (name, at) = (escape(&churn.name), format!("{} + {:.1} s", escape(&phase.name), churn.at_s));
        let _ = writeln!(text, "| {name} | {at} | {} | {recovered} | {verdict} |", time(churn.effect_ms));
    }
    text.push('\n');
}

/// Held WebSockets, over all measured phases.
fn idle(text: &mut String, totals: &Totals) {
    let Some(idle) = &totals.idle else { return };
    let bad = idle.failures() + idle.unfinished;
    let _ = writeln!(
        text,
        "{}Idle WebSockets: {} of {} open at the end, {} failed, {} without an answer, {} cut, {} opened again; handshake p99 {}.\n",
        if bad > 0 { "❌ " } else { "" },
        idle.open,
        idle.planned,
        idle.failed,
        idle.unfinished,
        idle.lost,
        idle.reopened,
        quantile_text(&idle.connect, 0.99),
    );
}

fn class_row(text: &mut String, name: &str, class: &ClassResult, duration_s: f64, errors: Option<f64>) {
    let rate = if duration_s > 0.0 { class.ok as f64 / duration_s } else { 0.0 };
    let _ = write!(text, "| {name} | {}/s |", number_text(rate));
    for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
        let _ = write!(text, " {} |", quantile_text(&class.response, quantile));
    }
    let _ = writeln!(text, " {} |", errors.map_or("–".into(), share_text));
}

fn errors(text: &mut String, errors: &[ErrorCount]) {
    if errors.is_empty() {
        return;
    }
    let mut errors: Vec<&ErrorCount> = errors.iter().collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    text.push_str("\n| error | source | count |\n|---|---|--:|\n");
    for error in errors.iter().take(ERRORS_MAX) {
        let _ = writeln!(text, "| {} | {} | {} |", escape(&error.code), escape(&error.source), error.count);
    }
    if errors.len() > ERRORS_MAX {
        let _ = writeln!(text, "| {} more kinds | | |", errors.len() - ERRORS_MAX);
    }
}

/// Text that is text: no markup, no HTML, no second cell.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' | '!' | '~' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Text between backticks in a table's cell.
fn code(text: &str) -> String {
    text.replace(|c: char| c == '`' || c.is_control(), " ").replace('|', "\\|")
}
