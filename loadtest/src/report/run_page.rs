//! The HTML report of one run: what a person wants to know first stands first.

use super::changes::{CHANGES_MAX, Change, changes};
use super::chart::Ink;
use super::columns::{Column, columns};
use super::command::quoted;
use super::figures::{self, COLUMNS_MAX};
use super::heat;
use super::moved;
use super::page::{bad_card, bar, card, figure, page};
use crate::measure::{Count, Totals, bytes_text, number_text, quantile_text, share_text, time_text};
use crate::report::{phase_errors, planned_rate_text};
use crate::result::{
    ChurnResult, ChurnVerdict, ClassResult, ErrorCount, Hist, PhaseResult, RunResult, Search, ServerCounters,
};
use maud::{Markup, html};

/// Most rows of tables whose length a run decides.
const ROWS_MAX: usize = 200;
/// Rows of a side table that need not be folded away.
const OPEN_MAX: usize = 6;
/// Classes with a curve of their own.
const CURVES_MAX: usize = 6;

pub fn text(result: &RunResult) -> String {
    let totals = Totals::of(result);
    let columns = columns(result, COLUMNS_MAX);
    let main = html! {
        (summary(result, &totals))
        (assertions(result))
        (latency(&totals))
        (over_time(result, &columns))
        (errors(&totals))
        (proxy(result, &totals, &columns))
        (phases(result))
        (churn(result))
        (idle(result, &columns))
        (search(result))
        (setup(result))
    };
    page(&format!("{} – loadtest", result.meta.name), &header(result), &main)
}

fn header(result: &RunResult) -> Markup {
    let (meta, config) = (&result.meta, &result.config);
    html! {
        h1 {
            // A word goes to the next line as a whole: an address is broken only where it is longer than a line, between its parts.
            @for word in meta.name.split_whitespace() {
                span.word { @for part in word.split_inclusive(['/', '.', ':', '_', '=', '&']) { (part) wbr; } } " "
            }
            @if result.validity.valid { span.badge.good { "valid" } } @else { span.badge.bad { "not valid" } }
            @if meta.partial { " " span.badge.warn { "ended early" } }
        }
        p.quiet {
            @if config.target != meta.name { (config.target) " · " }
            (config.protocol) @if config.tls { " over TLS" } " · " (config.model) " loop · "
            (config.connections) " connections · " (meta.started_at)
        }
        @for reason in &result.validity.reasons {
            @if reason.fatal { p.note.bad { b { "Do not trust these figures: " } (reason.message) } }
            @else { p.note { (reason.message) } }
        }
    }
}

fn summary(result: &RunResult, totals: &Totals) -> Markup {
    let all = &totals.all;
    let rate = if totals.duration_s > 0.0 { all.ok as f64 / totals.duration_s } else { 0.0 };
    let response = |quantile| quantile_text(&all.response, quantile);
    let count = |count| totals.count(count);
    let bad = count(Count::Failed) + count(Count::Unsent) + count(Count::Unfinished);
    let of = format!("of {}", number_text((count(Count::Ok) + bad) as f64));
    let errors = totals.errors().map_or("–".into(), share_text);
    html! {
        @if let Some(search) = &result.search {
            p {
                (found_text(search))
                @if search.rate.is_some() { " Figures and percentiles are of its step; what is over time shows the whole search." }
            }
        }
        div.cards {
            (card("rate", &format!("{}/s", number_text(rate)), &planned_text(result)))
            (card("p50", &response(0.5), "response time"))
            (card("p99", &response(0.99), &format!("service {}", quantile_text(&all.service, 0.99))))
            (card("p99.9", &response(0.999), &format!("longest {}", response(1.0))))
            @if bad > 0 { (bad_card("errors", &errors, &of)) } @else { (card("errors", &errors, &of)) }
            @if let Some(cpu_us) = totals.cpu_us() {
                (card("proxy CPU", &format!("{} µs", number_text((cpu_us * 10.0).round() / 10.0)), "per request"))
                @if cpu_us > 0.0 { (card("proxy", &format!("{}/s", number_text(1e6 / cpu_us)), "requests per core")) }
            }
            @if let (Some(calls), Some(enters)) = (totals.calls(), totals.enters()) {
                (card("system calls", &format!("{calls:.2}"), &format!("per request, io_uring_enter {enters:.2}")))
            }
            @if let Some(bytes) = totals.memory_max_bytes() { (card("proxy memory", &bytes_text(bytes as f64), "resident, highest")) }
            @if let Some(spliced) = totals.spliced_share() { (card("spliced", &share_text(spliced), "of body bytes")) }
            @if let Some(copied) = totals.copied_per_request() { (card("copied", &bytes_text(copied), "per request")) }
        }
    }
}

fn planned_text(result: &RunResult) -> String {
    let rates: Vec<f64> =
        result.judged().filter_map(|phase| phase.planned_rate).flat_map(|(from, to)| [from, to]).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    match () {
        () if rates.is_empty() => "as fast as answers come".into(),
        () if least == most => format!("planned {}/s", number_text(most)),
        () => format!("planned {} to {}/s", number_text(least), number_text(most)),
    }
}

fn assertions(result: &RunResult) -> Markup {
    html! {
        @if !result.assertions.is_empty() {
            h2 { "Thresholds" }
            div.box { table {
                tr { th { "threshold" } th { "found" } th { "" } }
                @for assertion in &result.assertions {
                    tr {
                        td { code { (assertion.text) } }
                        td { (assertion.found) }
                        td { @if assertion.holds { span.badge.good { "holds" } } @else { span.badge.bad { "does not hold" } } }
                    }
                }
            } }
        }
    }
}

fn latency(totals: &Totals) -> Markup {
    let all = &totals.all;
    let mut curves: Vec<(&str, Ink, &Hist)> = vec![
        ("response time", Ink::Series(0), &all.response),
        ("service time", Ink::Dashed(0), &all.service),
    ];
    let single = totals.classes.len() < 2;
    let mut busiest: Vec<_> = totals.classes.iter().filter(|(_, class)| !class.response.is_empty()).collect();
    busiest.sort_by_key(|(_, class)| std::cmp::Reverse(class.response.count()));
    if !single {
        let classes = busiest.iter().take(CURVES_MAX).enumerate();
        curves.extend(classes.map(|(n, (name, class))| (name.as_str(), Ink::Series(n + 1), &class.response)));
    }
    let mut caption =
        "Response time runs from when a request should have been sent, service time from when it was. \
                       They part where the proxy made requests wait."
            .to_owned();
    let more = busiest.len().saturating_sub(CURVES_MAX);
    if more > 0 {
        let classes = if more == 1 { "class is" } else { "classes are" };
        caption += &format!(
            " Of the classes those with the most requests have a curve; {more} more {classes} in the table only."
        );
    }
    // Its errors are those of the cards and of `err`.
    let sum = !single || totals.idle.is_some();
    html! {
        h2 { "Latency" }
        @if let Some(chart) = figures::percentiles(&curves) { (figure("Time by percentile", &chart, &caption)) }
        div.box { table {
            (class_head())
            @if sum { (class_row("all", all, totals.duration_s, totals.errors(), true)) }
            @for (name, class) in totals.classes.iter().take(ROWS_MAX) {
                (class_row(name, class, totals.duration_s, Totals::error_share(class), !sum))
            }
        } }
        @if totals.idle.is_some() { p.quiet { "The errors of all count idle WebSockets, too; rates, times and bytes do not." } }
        (further_times(totals))
    }
}

fn class_head() -> Markup {
    html! {
        tr {
            th { "response time by class" }
            @for name in ["rate", "p50", "p90", "p99", "p99.9", "max", "service p99", "errors", "down", "up"] { th.n { (name) } }
        }
    }
}

fn class_row(name: &str, class: &ClassResult, duration_s: f64, errors: Option<f64>, sum: bool) -> Markup {
    let rate = if duration_s > 0.0 { class.ok as f64 / duration_s } else { 0.0 };
    html! {
        tr class=[sum.then_some("sum")] {
            td { (name) }
            td.n { (number_text(rate)) "/s" }
            @for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] { td.n { (quantile_text(&class.response, quantile)) } }
            td.n { (quantile_text(&class.service, 0.99)) }
            td.n.bad[errors.is_some_and(|share| share > 0.0)] { (errors.map_or("–".into(), share_text)) }
            td.n { (bytes_text(class.bytes_down as f64)) }
            td.n { (bytes_text(class.bytes_up as f64)) }
        }
    }
}

/// Times beside response and service: to connect, between events, of echoes.
fn further_times(totals: &Totals) -> Markup {
    let rows: Vec<(&str, &str, &Hist)> = totals
        .classes
        .iter()
        .flat_map(|(class, result)| {
            result.extra.iter().map(move |(name, hist)| (class.as_str(), name.as_str(), hist))
        })
        .filter(|(_, _, hist)| !hist.is_empty())
        .take(ROWS_MAX)
        .collect();
    html! {
        @if !rows.is_empty() {
            // A mix has many: they are in the way of who looks for the rest.
            details open[rows.len() <= OPEN_MAX] {
            summary { "Further times: to connect, to the first byte, between events" }
            div.box { table {
                tr { th { "class" } th { "time" } @for name in ["count", "p50", "p90", "p99", "p99.9", "max"] { th.n { (name) } } }
                @for (class, name, hist) in rows {
                    tr {
                        td { (class) } td { (name) } td.n { (number_text(hist.count() as f64)) }
                        @for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] { td.n { (quantile_text(hist, quantile)) } }
                    }
                }
            } }
            }
        }
    }
}

fn over_time(result: &RunResult, columns: &[Column]) -> Markup {
    html! {
        @if !columns.is_empty() {
            h2 { "Over time" }
            (figure("Requests per second", &figures::rates(result, columns), &phase_caption(result)))
            @if let Some(chart) = figures::times(result, columns) { (figure("Response times", &chart, "")) }
            @if let Some(chart) = heat::figure(result, columns) { (figure("Spread of response times", &chart, heat::CAPTION)) }
            @if let Some(chart) = figures::backlog(result, columns) {
                (figure("Waiting to be sent", &chart, "Due by the plan, but no connection was free. Their wait is in their response time."))
            }
        }
    }
}

fn phase_caption(result: &RunResult) -> String {
    let names: Vec<String> = result
        .phases
        .iter()
        .take(ROWS_MAX)
        .map(|phase| {
            let word = if phase.warmup { ", not measured" } else { "" };
            format!("{} ({} s{word})", phase.name, number_text(phase.duration_s))
        })
        .collect();
    if names.len() > 1 { format!("Phases: {}.", names.join(", ")) } else { String::new() }
}

fn errors(totals: &Totals) -> Markup {
    let all = &totals.all;
    let idle = totals.idle.as_ref();
    let of_idle =
        |error: &ErrorCount| ErrorCount { code: format!("idle WebSocket: {}", error.code), ..error.clone() };
    let mut errors: Vec<ErrorCount> = all.errors.clone();
    errors.extend(idle.iter().flat_map(|idle| &idle.errors).map(of_idle));
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    let most = errors.first().map_or(1, |error| error.count.max(1)) as f64;
    let (cut, unfinished) = idle.map_or((0, 0), |idle| (idle.lost, idle.unfinished));
    html! {
        h2 { "Errors and statuses" }
        @if errors.is_empty() && all.unsent + all.unfinished + cut + unfinished == 0 {
            p.good {
                "Every request ended as it should" @if idle.is_some() { ", and every idle WebSocket stayed open" } "."
            }
        } @else {
            div.box { table {
                tr { th { "error" } th { "said by" } th.n { "count" } th { "" } }
                @for error in errors.iter().take(ROWS_MAX) {
                    tr {
                        td { (error.code) } td { (error.source) } td.n { (number_text(error.count as f64)) }
                        td { (bar(error.count as f64 / most)) }
                    }
                }
                @if errors.len() > ROWS_MAX { tr { td colspan="4" { (errors.len() - ROWS_MAX) " more kinds" } } }
                @if all.unsent > 0 { tr { td { "never sent: no connection was free" } td { "plan" } td.n { (number_text(all.unsent as f64)) } td {} } }
                @if cut > 0 { tr { td { "idle WebSocket: cut by the other side" } td { "network" } td.n { (number_text(cut as f64)) } td {} } }
                @if unfinished > 0 { tr { td { "idle WebSocket: no answer to the handshake by the end" } td { "plan" } td.n { (number_text(unfinished as f64)) } td {} } }
                @if all.unfinished > 0 { tr { td { "no answer by the end" } td { "plan" } td.n { (number_text(all.unfinished as f64)) } td {} } }
            } }
        }
        @if !all.statuses.is_empty() {
            p.quiet {
                "Answers by status: "
                @for (at, (status, count)) in all.statuses.iter().enumerate() {
                    @if at > 0 { ", " } (status) " × " (number_text(*count as f64))
                }
                @if all.refused_rightly > 0 { ". Bad credentials refused as they should be: " (number_text(all.refused_rightly as f64)) }
                "."
            }
        }
    }
}

fn proxy(result: &RunResult, totals: &Totals, columns: &[Column]) -> Markup {
    let lag = &totals.send_lag;
    let lag_text = if lag.is_empty() {
        String::new()
    } else {
        let (p99, most) = (quantile_text(lag, 0.99), quantile_text(lag, 1.0));
        format!("The load generator sent 99% of requests within {p99} of their time, the latest {most} late.")
    };
    html! {
        h2 { "Client and proxy" }
        div.grid {
            @if let Some(chart) = figures::cpu(result, columns) { (figure("CPU, percent of one core", &chart, &lag_text)) }
            @if let Some(server) = &result.server {
                @if let Some(chart) = moved::figure(result, server, columns) { (figure("Bytes per second", &chart, &moved_text(totals))) }
            }
        }
        @if let Some(server) = &result.server { (counters(server)) }
    }
}

fn moved_text(totals: &Totals) -> String {
    totals.moved().map_or(String::new(), |(copied, spliced)| {
        let share =
            totals.spliced_share().map_or(String::new(), |share| format!(", {} of all", share_text(share)));
        format!("{} spliced{share}; {} copied.", bytes_text(spliced), bytes_text(copied))
    })
}

fn counters(server: &ServerCounters) -> Markup {
    let gained = server.gained();
    html! {
        details {
            summary { "The proxy's own counters: " (gained.len()) " moved" }
            @if let Some(failure) = &server.last_failure {
                p.note { (server.failures) " scrapes failed, the last one: " (failure) }
            }
            div.box { table {
                tr { th { "counter" } th.n { "gained" } }
                @for (name, gain) in gained.iter().take(ROWS_MAX) { tr { td { code { (name) } } td.n { (number_text(*gain)) } } }
                @if gained.len() > ROWS_MAX { tr { td colspan="2" { (gained.len() - ROWS_MAX) " more" } } }
            } }
        }
    }
}

fn phases(result: &RunResult) -> Markup {
    html! {
        @if result.phases.len() > 1 {
            h2 { "Phases" }
            div.box { table {
                tr {
                    th { "phase" } th { "kind" }
                    @for name in ["seconds", "planned", "rate", "p50", "p99", "max", "errors", "proxy CPU"] { th.n { (name) } }
                }
                @for phase in result.phases.iter().take(ROWS_MAX) { (phase_row(phase)) }
            } }
        }
    }
}

fn phase_row(phase: &PhaseResult) -> Markup {
    let total = phase.total();
    let cpu =
        phase.proxy.as_ref().map_or("–".into(), |proxy| format!("{:.1} µs", proxy.cpu_us_per_request));
    html! {
        tr {
            td { (phase.name) @if phase.warmup { " " span.quiet { "not measured" } } }
            td { (phase.kind) }
            td.n { (number_text((phase.duration_s * 10.0).round() / 10.0)) }
            td.n { (planned_rate_text(phase.planned_rate)) }
            td.n { (number_text(phase.rate())) "/s" }
            @for quantile in [0.5, 0.99, 1.0] { td.n { (quantile_text(&total.response, quantile)) } }
            td.n { (phase_errors(phase, &total).map_or("–".into(), share_text)) }
            td.n { (cpu) }
        }
    }
}

fn churn(result: &RunResult) -> Markup {
    let rows: Vec<_> = changes(result).take(CHANGES_MAX).collect();
    let ms = |churn: &ChurnResult, value: Option<f64>| {
        let none = if churn.unharmed { "not felt" } else { "not seen" };
        value.map_or(none.into(), |ms| time_text(ms * 1e3))
    };
    html! {
        @if !rows.is_empty() {
            h2 { "Changes under load" }
            div.box { table {
                tr { th.n { "#" } th { "change" } th { "phase" } th.n { "at" } th.n { "pulled in" } th.n { "felt after" } th.n { "well again after" } th.n { "probes" } }
                @for Change { number, phase, churn } in rows {
                    tr {
                        td.n { (number) }
                        td {
                            (churn.name) " "
                            @match churn.verdict() {
                                ChurnVerdict::AsExpected => span.badge.good { "as expected" },
                                ChurnVerdict::Missed(how) => span.badge.bad { (how) },
                                ChurnVerdict::Unknown(why) => span.badge.bad { (why) },
                                ChurnVerdict::LeftOut(why) => span.badge.warn { (why) },
                            }
                            @if let Some(error) = &churn.put_back_error { " " span.bad { "not put back: " (error) } }
                        }
                        td { (phase.name) }
                        td.n { (format!("{:.1} s", churn.at_s)) }
                        td.n { (time_text(churn.action_ms * 1e3)) }
                        td.n { (ms(churn, churn.effect_ms)) }
                        td.n { (if churn.recovery { ms(churn, churn.recovered_ms) } else { "–".into() }) }
                        td.n { (number_text(churn.probes as f64)) }
                    }
                }
            } }
            p.quiet { "Those that were made are lines with their numbers in the charts over time." }
        }
    }
}

fn idle(result: &RunResult, columns: &[Column]) -> Markup {
    let rows: Vec<_> = result.phases.iter().filter_map(|phase| Some((phase, phase.idle.as_ref()?))).collect();
    html! {
        @if !rows.is_empty() {
            h2 { "Idle connections" }
            @if let Some(chart) = figures::idle(result, columns) { (figure("Idle WebSockets held", &chart, "")) }
            div.box { table {
                tr {
                    th { "phase" }
                    @for name in [
                        "planned", "open at the end", "proxy memory", "failed", "no answer", "cut", "opened again",
                        "opened per second", "handshake p50", "handshake p99",
                    ] { th.n { (name) } }
                }
                @for (phase, idle) in rows {
                    tr {
                        td { (phase.name) }
                        @for count in [idle.planned, idle.open] { td.n { (number_text(count as f64)) } }
                        td.n { (phase.proxy.as_ref().map_or("–".into(), |proxy| bytes_text(proxy.memory_max_bytes as f64))) }
                        @for count in [idle.failed, idle.unfinished, idle.lost, idle.reopened] { td.n { (number_text(count as f64)) } }
                        td.n { (number_text(idle.connects_per_s)) }
                        @for quantile in [0.5, 0.99] { td.n { (quantile_text(&idle.connect, quantile)) } }
                    }
                }
            } }
        }
    }
}

fn search(result: &RunResult) -> Markup {
    html! {
        @if let Some(search) = &result.search {
            h2 { "Highest rate with " (search.bound) }
            p { (found_text(search)) }
            div.box { table {
                tr { th.n { "rate" } th.n { "achieved" } th.n { "p99" } th.n { "errors" } th { "" } }
                @for step in &search.steps {
                    tr {
                        td.n { (number_text(step.rate)) "/s" } td.n { (number_text(step.achieved)) "/s" }
                        td.n { (time_text(step.p99_us)) } td.n { (share_text(step.error_share)) }
                        td {
                            @if step.partial { span.badge.warn { "ended early" } }
                            @else if step.invalid { span.badge.warn { "load generator at its limit" } }
                            @else if step.held { span.badge.good { "held" } }
                            @else { span.badge.bad { "did not hold" } }
                        }
                    }
                }
            } }
        }
    }
}

fn found_text(search: &Search) -> Markup {
    html! {
        @match search.rate {
            Some(rate) => { b { (number_text(rate)) "/s" } " held with " (search.bound) "." },
            None => { "No rate found: " (search.nothing_held()) "." },
        }
    }
}

/// Which CPUs, if it was bound to some.
fn on(cpus: &[usize]) -> String {
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    if cpus.is_empty() { String::new() } else { format!(" on CPU {}", cpus.join(", ")) }
}

fn setup(result: &RunResult) -> Markup {
    let (meta, config) = (&result.meta, &result.config);
    html! {
        h2 { "How it was measured" }
        div.box { table {
            tr { td { "command" } td { code { @for word in quoted(&meta.command) { span.word { (word) } " " } } } }
            tr { td { "from" } td { (meta.started_at) " to " (meta.ended_at) } }
            tr { td { "target" } td { (config.target) } }
            @if let Some(started) = &meta.started {
                tr { td { "started" } td { code { (started.proxy) } (on(&started.proxy_cpus)) } }
                tr { td { "before" } td { code { "loadtest backend " (started.backend_args) } (on(&started.backend_cpus)) } }
            }
            tr { td { "seed" } td { (config.seed) } }
            @for client in meta.clients.iter().take(ROWS_MAX) {
                tr {
                    td { "load generator" }
                    td { (client.hostname) ", Linux " (client.kernel) ", " (client.threads) " threads on " (client.cpu_count) " CPUs" }
                }
            }
            @for proxy in result.measured().filter_map(|phase| phase.proxy.as_ref()).take(1) {
                tr { td { "proxy CPU from" } td { (proxy.source) } }
            }
            @if let Some(server) = &result.server { tr { td { "counters from" } td { (server.url) } } }
            @for (name, value) in config.settings.iter().take(ROWS_MAX) { tr { td { (name) } td { (value) } } }
        } }
        p.quiet { "Format " (result.format) ", loadtest " (meta.version) "." }
    }
}
