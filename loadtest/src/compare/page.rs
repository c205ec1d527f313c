//! The HTML page of a comparison: the verdicts first, then both runs in the same pictures.

use super::{Comparison, Row, Verdict};
use crate::measure::{Totals, Unit};
use crate::report::{chart::Ink, columns::columns, figures, page};
use crate::result::RunResult;
use maud::{Markup, html};

const A: Ink = Ink::Series(0);
const B: Ink = Ink::Series(1);
/// Half the width of the picture of an interval.
const HALF: f64 = 120.0;

pub fn text(comparison: &Comparison<'_>) -> String {
    let (totals_a, totals_b) = (Totals::of(comparison.a), Totals::of(comparison.b));
    let confidence = comparison.judgement.confidence * 100.0;
    let header = html! {
        h1 { "B against A " (headline(comparison)) }
        @for (name, result) in [("A", comparison.a), ("B", comparison.b)] { (side(name, result)) }
        @for caution in &comparison.cautions { p.note { (caution) } }
    };
    let curves = [("A", A, &totals_a.all.response), ("B", B, &totals_b.all.response)];
    let (columns_a, columns_b) =
        (columns(comparison.a, figures::COLUMNS_MAX), columns(comparison.b, figures::COLUMNS_MAX));
    let overlay = |of, title| figures::overlay(title, [(&columns_a, A, "A"), (&columns_b, B, "B")], of);
    let main = html! {
        h2 { "Verdicts" }
        div.box { table {
            tr {
                th { "measure" } th.n { "A" } th.n { "B" } th.n { "change" } th.n { (confidence) "% interval" } th { "" } th { "verdict" }
            }
            @for row in &comparison.rows { (line(row, extent(&comparison.rows))) }
        } }
        p.quiet {
            "Intervals come from drawing blocks of the runs' seconds anew; a verdict is given when the interval leaves out "
            "\"no change\" and the change is at least " (format!("{:.0}%", comparison.judgement.tolerance * 100.0)) "."
        }
        @if let Some(chart) = figures::percentiles(&curves) { (page::figure("Response time by percentile", &chart, "")) }
        @if let Some(chart) = overlay(figures::Over::P50, "Median response time over time") { (page::figure("Median response time", &chart, "")) }
        @if let Some(chart) = overlay(figures::Over::P99, "99th percentile over time") { (page::figure("99th percentile", &chart, "")) }
        @if let Some(chart) = overlay(figures::Over::ProxyCpu, "CPU of the proxy over time") {
            (page::figure("CPU of the proxy, percent of one core", &chart, ""))
        }
        @if !comparison.classes.is_empty() {
            h2 { "By class" }
            div.box { table {
                tr { th { "measure" } th.n { "A" } th.n { "B" } th.n { "change" } }
                @for row in &comparison.classes {
                    @let [a, b] = row.values();
                    tr { td { (row.measure.to_string()) } td.n { (a) } td.n { (b) } td.n { (row.change()) } }
                }
            } }
        }
    };
    page::page("B against A – loadtest", &header, &main)
}

fn headline(comparison: &Comparison<'_>) -> Markup {
    let count = |verdict| comparison.rows.iter().filter(|row| row.verdict == verdict).count();
    let (better, worse) = (count(Verdict::Better), count(Verdict::Worse));
    html! {
        @if better > 0 { span.badge.good { (better) " better" } " " }
        @if worse > 0 { span.badge.bad { (worse) " worse" } }
        @if better + worse == 0 {
            @if count(Verdict::Noise) > 0 { span.badge.noise { "no difference beyond noise" } }
            @else { span.badge.warn { "no verdicts" } }
        }
    }
}

fn side(name: &str, result: &RunResult) -> Markup {
    html! { p.quiet { b { (name) } " " (result.meta.name) " · " (result.config.target) " · " (result.meta.started_at) } }
}

/// How far the widest interval reaches, so that all are drawn on one scale: a natural logarithm.
fn extent(rows: &[Row]) -> f64 {
    let reach = |row: &Row| match (row.interval, row.measure.unit()) {
        (Some((low, high)), unit) if unit != Unit::Share => low.ln().abs().max(high.ln().abs()),
        _ => 0.0,
    };
    // At least a tenth, so that noise does not fill the picture; at most tenfold.
    rows.iter().map(reach).fold(0.1, f64::max).min(10f64.ln())
}

fn line(row: &Row, extent: f64) -> Markup {
    let [a, b] = row.values();
    html! {
        tr {
            td { (row.measure.to_string()) }
            td.n { (a) } td.n { (b) } td.n { (row.change()) } td.n { (row.interval_text()) }
            td { @if row.measure.unit() != Unit::Share { (interval(row, extent)) } }
            td {
                @match row.verdict {
                    Verdict::Better => span.badge.good { (row.word()) },
                    Verdict::Worse => span.badge.bad { (row.word()) },
                    Verdict::Noise => span.badge.noise { (row.word()) },
                    Verdict::Unknown => "",
                }
            }
        }
    }
}

/// The interval as a line around its middle; left of the dashed line B is smaller.
fn interval(row: &Row, extent: f64) -> Markup {
    let place = |ratio: f64| format!("{:.1}", HALF + (ratio.ln() / extent).clamp(-1.0, 1.0) * (HALF - 6.0));
    html! {
        @if let (Some((low, high)), Some(a), Some(b)) = (row.interval, row.a, row.b) {
            svg.interval viewBox="0 0 240 18" aria-hidden="true" {
                line.zero x1="120" x2="120" y1="0" y2="18" {}
                line.whisker x1=(place(low)) x2=(place(high)) y1="9" y2="9" {}
                circle.dot cx=(place(b / a)) cy="9" r="3.5" {}
            }
        }
    }
}
