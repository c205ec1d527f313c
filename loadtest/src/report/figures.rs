//! The figures of a run: which series each shows, on which axes.

use super::chart::{Chart, Ink, Mark, Readout, Size};
use super::columns::Column;
use super::scale::{Numbers, Scale};
use crate::measure::{number_text, time_text};
use crate::result::{Hist, RunResult};

/// Columns of a chart over time. Few enough for a page of some hundred kilobytes.
pub const COLUMNS_MAX: usize = 240;
/// Steps of a percentile curve, and of its hover strips.
const CURVE_STEPS: usize = 240;
const CURVE_READOUTS: usize = 60;

/// A shorter queue is what one second hands to the next.
const BACKLOG_MIN: u64 = 10;

/// A series' name, for a legend outside the picture, and its colour.
pub struct Key<'a> {
    pub ink: Ink,
    pub name: &'a str,
}

/// A chart and its legend.
pub struct Figure<'a> {
    pub svg: String,
    pub keys: Vec<Key<'a>>,
}

/// Time by quantile, one curve for each histogram that is not empty.
pub fn percentiles<'a>(curves: &[(&'a str, Ink, &Hist)]) -> Option<Figure<'a>> {
    let curves: Vec<_> = curves.iter().filter(|(_, _, hist)| !hist.is_empty()).collect();
    let longest = curves.iter().map(|(_, _, hist)| hist.count()).max()?;
    let nines = (longest as f64).log10().max(1.0);
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    let mut marks = Vec::new();
    for (_, ink, hist) in &curves {
        // Beyond its last value a curve has nothing to say.
        let end = (hist.count() as f64).log10();
        let points: Vec<(f64, f64)> = (0..=CURVE_STEPS)
            .map(|step| nines * step as f64 / CURVE_STEPS as f64)
            .take_while(|at| *at <= end + nines / CURVE_STEPS as f64)
            .map(|at| (at, hist.quantile_us(1.0 - 10f64.powf(-at))))
            .collect();
        least = points.iter().map(|point| point.1).fold(least, f64::min);
        most = points.iter().map(|point| point.1).fold(most, f64::max);
        marks.push(Mark::Line(*ink, points));
    }
    let step = nines / CURVE_READOUTS as f64;
    let readouts = (0..CURVE_READOUTS).map(|n| {
        let at = (n as f64 + 0.5) * step;
        let quantile = 1.0 - 10f64.powf(-at);
        let times: Vec<String> =
            curves.iter().map(|(_, _, hist)| time_text(hist.quantile_us(quantile))).collect();
        let text = format!("p{}: {}", round_percent(quantile), times.join(" | "));
        Readout { from: n as f64 * step, to: (n + 1) as f64 * step, text }
    });
    let chart = Chart {
        title: "Time by percentile",
        size: Size::Wide,
        x: Scale::nines(nines),
        y: Scale::log_time(least, most),
        marks,
        heat: Vec::new(),
        readouts: readouts.collect(),
    };
    let keys = curves.iter().map(|(name, ink, _)| Key { ink: *ink, name }).collect();
    Some(Figure { svg: chart.svg(), keys })
}

/// As many digits as tell it from its neighbours.
fn round_percent(quantile: f64) -> String {
    let percent = quantile * 100.0;
    let digits = (-(1.0 - quantile).log10()).floor().clamp(0.0, 5.0) as usize;
    format!("{percent:.digits$}")
}

/// Where the phases are, and their ends.
pub(super) fn phases(result: &RunResult) -> Vec<Mark> {
    let mut marks = Vec::new();
    for phase in &result.phases {
        if phase.warmup {
            marks.push(Mark::Band(phase.start_s, phase.start_s + phase.duration_s));
        } else if phase.start_s > 0.0 {
            marks.push(Mark::Moment(Ink::Grid, phase.start_s));
        }
        let made = phase.churn.iter().filter(|churn| churn.was_made());
        marks.extend(made.map(|churn| Mark::Moment(Ink::Series(3), phase.start_s + churn.at_s)));
    }
    marks
}

pub(super) fn end_of(columns: &[Column]) -> f64 {
    columns.last().map_or(1.0, |column| column.from_s + column.width_s)
}

fn line(columns: &[Column], value: impl Fn(&Column) -> f64) -> Vec<(f64, f64)> {
    columns.iter().map(|column| (column.from_s + column.width_s / 2.0, value(column))).collect()
}

pub(super) fn readouts(columns: &[Column], text: impl Fn(&Column) -> String) -> Vec<Readout> {
    let one = |column: &Column| Readout {
        from: column.from_s,
        to: column.from_s + column.width_s,
        text: format!("{:.0} s: {}", column.from_s, text(column)),
    };
    columns.iter().map(one).collect()
}

fn rate(count: u64, column: &Column) -> f64 {
    if column.width_s > 0.0 { count as f64 / column.width_s } else { 0.0 }
}

/// Requests per second: planned, ended well, failed.
pub fn rates(result: &RunResult, columns: &[Column]) -> Figure<'static> {
    let ok = line(columns, |column| rate(column.ok, column));
    let planned = line(columns, |column| rate(column.planned, column));
    let failed = line(columns, |column| rate(column.failed, column));
    let most = ok.iter().chain(&planned).chain(&failed).map(|point| point.1).fold(0.0, f64::max);
    let mut marks = phases(result);
    let mut keys = vec![Key { ink: Ink::Series(0), name: "ended well" }];
    marks.push(Mark::Area(Ink::Series(0), ok.clone()));
    marks.push(Mark::Line(Ink::Series(0), ok));
    if columns.iter().any(|column| column.planned > 0) {
        marks.push(Mark::Line(Ink::Dashed(1), planned));
        keys.push(Key { ink: Ink::Dashed(1), name: "planned" });
    }
    if columns.iter().any(|column| column.failed > 0) {
        marks.push(Mark::Line(Ink::Bad, failed));
        keys.push(Key { ink: Ink::Bad, name: "failed" });
    }
    let text = |column: &Column| {
        let per_s = |count| number_text(rate(count, column));
        format!(
            "{}/s, planned {}/s, failed {}/s",
            per_s(column.ok),
            per_s(column.planned),
            per_s(column.failed)
        )
    };
    let chart = Chart {
        title: "Requests per second over time",
        size: Size::Wide,
        x: Scale::clock(end_of(columns)),
        y: Scale::up_to(most * 1.05, Numbers::Plain),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
    };
    Figure { svg: chart.svg(), keys }
}

/// p50, p99 and the longest response time.
pub fn times(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let known = columns.iter().filter(|column| !column.p50_us.is_nan());
    let (least, most) = known.fold((f64::INFINITY, 0.0f64), |(least, most), column| {
        (least.min(column.p50_us), most.max(column.max_us))
    });
    if most <= 0.0 {
        return None;
    }
    let mut marks = phases(result);
    marks.push(Mark::Line(Ink::Dashed(2), line(columns, |column| column.max_us)));
    marks.push(Mark::Line(Ink::Series(1), line(columns, |column| column.p99_us)));
    marks.push(Mark::Line(Ink::Series(0), line(columns, |column| column.p50_us)));
    let text = |column: &Column| match column.p50_us.is_nan() {
        true => "nothing ended".into(),
        false => {
            let [p50, p99, max] = [column.p50_us, column.p99_us, column.max_us].map(time_text);
            format!("p50 {p50}, p99 {p99}, max {max}")
        }
    };
    let chart = Chart {
        title: "Response times over time",
        size: Size::Wide,
        x: Scale::clock(end_of(columns)),
        y: Scale::log_time(least, most),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
    };
    let keys = [(Ink::Series(0), "p50"), (Ink::Series(1), "p99"), (Ink::Dashed(2), "longest")];
    Some(Figure { svg: chart.svg(), keys: keys.map(|(ink, name)| Key { ink, name }).into() })
}

/// CPU of the load generator's busiest thread and of the proxy, percent of one CPU.
pub fn cpu(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let proxy = |column: &Column| column.proxy_cpu.unwrap_or(f64::NAN);
    let most = columns.iter().map(|column| column.client_cpu.max(proxy(column))).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut marks = phases(result);
    let mut keys = Vec::new();
    if columns.iter().any(|column| column.proxy_cpu.is_some()) {
        marks.push(Mark::Line(Ink::Series(0), line(columns, proxy)));
        keys.push(Key { ink: Ink::Series(0), name: "proxy, all threads" });
    }
    marks.push(Mark::Line(Ink::Series(1), line(columns, |column| column.client_cpu)));
    keys.push(Key { ink: Ink::Series(1), name: "load generator, busiest thread" });
    let text = |column: &Column| {
        let proxy = column.proxy_cpu.map_or("not watched".into(), |percent| format!("{percent:.0}%"));
        format!("proxy {proxy}, load generator {:.0}%", column.client_cpu)
    };
    let chart = Chart {
        title: "CPU over time",
        size: Size::Half,
        x: Scale::clock(end_of(columns)),
        y: Scale::up_to(most.max(100.0), Numbers::Percent),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
    };
    Some(Figure { svg: chart.svg(), keys })
}

/// Requests that waited for a connection, and connections.
pub fn backlog(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let most = columns.iter().map(|column| column.backlog).max().filter(|most| *most >= BACKLOG_MIN)?;
    let waiting = line(columns, |column| column.backlog as f64);
    let mut marks = phases(result);
    marks.push(Mark::Area(Ink::Bad, waiting.clone()));
    marks.push(Mark::Line(Ink::Bad, waiting));
    let text = |column: &Column| {
        format!("{} waiting, {} connections", number_text(column.backlog as f64), column.connections)
    };
    let chart = Chart {
        title: "Requests that waited to be sent",
        size: Size::Wide,
        x: Scale::clock(end_of(columns)),
        y: Scale::up_to(most as f64, Numbers::Plain),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
    };
    Some(Figure { svg: chart.svg(), keys: vec![Key { ink: Ink::Bad, name: "waiting to be sent" }] })
}

/// What of two runs is laid over each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    P50,
    P99,
    ProxyCpu,
}

impl Over {
    fn value(self, column: &Column) -> f64 {
        match self {
            Self::P50 => column.p50_us,
            Self::P99 => column.p99_us,
            Self::ProxyCpu => column.proxy_cpu.unwrap_or(f64::NAN),
        }
    }
}

/// Two runs in one picture, each from its own start. `None`: neither knows it.
pub fn overlay<'a>(title: &'a str, runs: [(&[Column], Ink, &'a str); 2], over: Over) -> Option<Figure<'a>> {
    let values =
        || runs.iter().flat_map(|run| run.0).map(|column| over.value(column)).filter(|value| *value > 0.0);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if most <= 0.0 {
        return None;
    }
    let y = match over {
        Over::ProxyCpu => Scale::up_to(most * 1.05, Numbers::Percent),
        Over::P50 | Over::P99 => Scale::log_time(least, most),
    };
    let end = runs.iter().map(|run| end_of(run.0)).fold(0.0, f64::max);
    let chart = Chart {
        title,
        size: Size::Wide,
        x: Scale::clock(end),
        y,
        marks: runs
            .map(|(columns, ink, _)| Mark::Line(ink, line(columns, |column| over.value(column))))
            .into(),
        heat: Vec::new(),
        readouts: Vec::new(),
    };
    Some(Figure { svg: chart.svg(), keys: runs.map(|(_, ink, name)| Key { ink, name }).into() })
}
