//! The figures of a run: which series each shows, on which axes.

use super::changes::{CHANGES_MAX, Change, changes};
use super::chart::{Chart, Flag, HeatColumn, Ink, Mark, Readout, Size};
use super::columns::Column;
use super::scale::{Numbers, Scale};
use crate::measure::{number_text, time_text};
use crate::result::{Hist, PhaseResult, RunResult};
use std::borrow::Cow;

/// Columns of a chart over time. Few enough for a page of some hundred kilobytes.
pub const COLUMNS_MAX: usize = 240;
/// Steps of a percentile curve, and of its hover strips.
const CURVE_STEPS: usize = 240;
const CURVE_READOUTS: usize = 60;

/// A shorter queue is what one second hands to the next.
const BACKLOG_MIN: u64 = 10;

/// The upper end of a scale of CPU is not below: percent of one core.
const CPU_LEAST: f64 = 5.0;

/// The colour of flags, see the style sheet.
const FLAG: Ink = Ink::Series(3);

/// A series' name, for a legend outside the picture, and its colour.
pub struct Key<'a> {
    pub ink: Ink,
    pub name: Cow<'a, str>,
}

impl<'a> Key<'a> {
    pub fn new(ink: Ink, name: impl Into<Cow<'a, str>>) -> Self {
        Self { ink, name: name.into() }
    }
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
        x_title: "share of requests that took no longer",
        y: Scale::log_time(least, most),
        marks,
        heat: Vec::new(),
        flags: Vec::new(),
        readouts: readouts.collect(),
    };
    let keys = curves.iter().map(|(name, ink, _)| Key::new(*ink, *name)).collect();
    Some(Figure { svg: chart.svg(), keys })
}

/// As many digits as tell it from its neighbours.
fn round_percent(quantile: f64) -> String {
    let percent = quantile * 100.0;
    let digits = (-(1.0 - quantile).log10()).floor().clamp(0.0, 5.0) as usize;
    format!("{percent:.digits$}")
}

/// What one chart over time shows; the axis of time, phases and changes are the same in all of a run's.
pub(super) struct OverTime {
    pub title: &'static str,
    pub size: Size,
    pub y: Scale,
    pub marks: Vec<Mark>,
    pub heat: Vec<HeatColumn>,
    pub readouts: Vec<Readout>,
    pub keys: Vec<Key<'static>>,
}

impl OverTime {
    pub(super) fn figure(self, result: &RunResult, columns: &[Column]) -> Figure<'static> {
        let (mut keys, flags) = (self.keys, flags(result));
        if !flags.is_empty() {
            keys.push(Key::new(FLAG, "changes under load, numbered as in their table"));
        }
        let chart = Chart {
            title: self.title,
            size: self.size,
            x: Scale::clock(end_of(columns)),
            x_title: "",
            y: self.y,
            marks: phases(result).into_iter().chain(self.marks).collect(),
            heat: self.heat,
            flags,
            readouts: self.readouts,
        };
        Figure { svg: chart.svg(), keys }
    }
}

/// Where the phases are.
fn phases(result: &RunResult) -> Vec<Mark> {
    let mark = |phase: &PhaseResult| match phase.warmup {
        true => Some(Mark::Band(phase.start_s, phase.start_s + phase.duration_s)),
        false => (phase.start_s > 0.0).then_some(Mark::Moment(Ink::Grid, phase.start_s)),
    };
    result.phases.iter().filter_map(mark).collect()
}

/// Where something was changed.
fn flags(result: &RunResult) -> Vec<Flag> {
    let flag = |change: Change<'_>| Flag {
        x: change.at_s(),
        number: change.number,
        title: format!("{}, at {:.1} s", change.churn.name, change.at_s()),
    };
    let made = changes(result).take(CHANGES_MAX).filter(|change| change.churn.was_made());
    let mut flags: Vec<Flag> = made.map(flag).collect();
    flags.sort_by(|a, b| a.x.total_cmp(&b.x));
    flags
}

pub(super) fn end_of(columns: &[Column]) -> f64 {
    columns.last().map_or(1.0, |column| column.from_s + column.width_s)
}

fn line(columns: &[Column], value: impl Fn(&Column) -> f64) -> Vec<(f64, f64)> {
    let stretch = |column: &Column| (column.from_s, column.from_s + column.width_s, value(column));
    curve(&columns.iter().map(stretch).collect::<Vec<_>>())
}

/// A line through the middles of stretches `(from, to, value)` that follow each other. The first and the last of those that
/// are known reach to their ends: what was measured is shown from its begin to its end.
pub(super) fn curve(stretches: &[(f64, f64, f64)]) -> Vec<(f64, f64)> {
    let known = |n: usize| stretches.get(n).is_some_and(|(.., value)| !value.is_nan());
    let mut points = Vec::with_capacity(stretches.len() + 2);
    for (n, (from, to, value)) in stretches.iter().copied().enumerate() {
        if n == 0 || !known(n - 1) {
            points.push((from, value));
        }
        points.push(((from + to) / 2.0, value));
        if !known(n + 1) {
            points.push((to, value));
        }
    }
    points
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
    let mut marks = Vec::new();
    let mut keys = vec![Key::new(Ink::Series(0), "ended well")];
    marks.push(Mark::Area(Ink::Series(0), ok.clone()));
    marks.push(Mark::Line(Ink::Series(0), ok));
    if columns.iter().any(|column| column.planned > 0) {
        marks.push(Mark::Line(Ink::Dashed(1), planned));
        keys.push(Key::new(Ink::Dashed(1), "planned"));
    }
    if columns.iter().any(|column| column.failed > 0) {
        marks.push(Mark::Line(Ink::Bad, failed));
        keys.push(Key::new(Ink::Bad, "failed"));
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
    let shown = OverTime {
        title: "Requests per second over time",
        size: Size::Wide,
        y: Scale::up_to(most * 1.05, Numbers::Plain),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
        keys,
    };
    shown.figure(result, columns)
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
    let marks = vec![
        Mark::Line(Ink::Dashed(2), line(columns, |column| column.max_us)),
        Mark::Line(Ink::Series(1), line(columns, |column| column.p99_us)),
        Mark::Line(Ink::Series(0), line(columns, |column| column.p50_us)),
    ];
    let text = |column: &Column| match column.p50_us.is_nan() {
        true => "nothing ended".into(),
        false => {
            let [p50, p99, max] = [column.p50_us, column.p99_us, column.max_us].map(time_text);
            format!("p50 {p50}, p99 {p99}, max {max}")
        }
    };
    let keys = [(Ink::Series(0), "p50"), (Ink::Series(1), "p99"), (Ink::Dashed(2), "longest")];
    let shown = OverTime {
        title: "Response times over time",
        size: Size::Wide,
        y: Scale::log_time(least, most),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
        keys: keys.map(|(ink, name)| Key::new(ink, name)).into(),
    };
    Some(shown.figure(result, columns))
}

/// CPU of the load generator's busiest thread and of the proxy, percent of one CPU.
pub fn cpu(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let proxy = |column: &Column| column.proxy_cpu.unwrap_or(f64::NAN);
    let most = columns.iter().map(|column| column.client_cpu.max(proxy(column))).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut marks = Vec::new();
    let mut keys = Vec::new();
    if columns.iter().any(|column| column.proxy_cpu.is_some()) {
        marks.push(Mark::Line(Ink::Series(0), line(columns, proxy)));
        keys.push(Key::new(Ink::Series(0), "proxy, all threads"));
    }
    marks.push(Mark::Line(Ink::Series(1), line(columns, |column| column.client_cpu)));
    keys.push(Key::new(Ink::Series(1), "load generator, busiest thread"));
    let text = |column: &Column| {
        let percent = |percent: f64| format!("{}%", number_text(percent));
        let proxy = column.proxy_cpu.map_or("not watched".into(), percent);
        format!("proxy {proxy}, load generator {}", percent(column.client_cpu))
    };
    let shown = OverTime {
        title: "CPU over time",
        size: Size::Half,
        y: cpu_scale(most),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
        keys,
    };
    Some(shown.figure(result, columns))
}

/// Of a proxy that is hardly busy the lines must not lie on the axis, and several cores are more than 100%.
fn cpu_scale(most: f64) -> Scale {
    Scale::up_to((most * 1.05).max(CPU_LEAST), Numbers::Percent)
}

/// Requests that waited for a connection, and connections.
pub fn backlog(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let most = columns.iter().map(|column| column.backlog).max().filter(|most| *most >= BACKLOG_MIN)?;
    let waiting = line(columns, |column| column.backlog as f64);
    let marks = vec![Mark::Area(Ink::Bad, waiting.clone()), Mark::Line(Ink::Bad, waiting)];
    let text = |column: &Column| {
        format!("{} waiting, {} connections", number_text(column.backlog as f64), column.connections)
    };
    let shown = OverTime {
        title: "Requests that waited to be sent",
        size: Size::Wide,
        y: Scale::up_to(most as f64 * 1.05, Numbers::Plain),
        marks,
        heat: Vec::new(),
        readouts: readouts(columns, text),
        keys: vec![Key::new(Ink::Bad, "waiting to be sent")],
    };
    Some(shown.figure(result, columns))
}

/// WebSockets that are held, if any are.
pub fn idle(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let most = columns.iter().map(|column| column.idle).max().filter(|most| *most > 0)?;
    let held = line(columns, |column| column.idle as f64);
    let shown = OverTime {
        title: "Idle WebSockets held",
        size: Size::Wide,
        y: Scale::up_to(most as f64 * 1.05, Numbers::Plain),
        marks: vec![Mark::Area(Ink::Series(0), held.clone()), Mark::Line(Ink::Series(0), held)],
        heat: Vec::new(),
        readouts: readouts(columns, |column| format!("{} held", number_text(column.idle as f64))),
        keys: vec![Key::new(Ink::Series(0), "open")],
    };
    Some(shown.figure(result, columns))
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
        Over::ProxyCpu => cpu_scale(most),
        Over::P50 | Over::P99 => Scale::log_time(least, most),
    };
    let end = runs.iter().map(|run| end_of(run.0)).fold(0.0, f64::max);
    let chart = Chart {
        title,
        size: Size::Wide,
        x: Scale::clock(end),
        x_title: "",
        y,
        marks: runs
            .map(|(columns, ink, _)| Mark::Line(ink, line(columns, |column| over.value(column))))
            .into(),
        heat: Vec::new(),
        flags: Vec::new(),
        readouts: Vec::new(),
    };
    Some(Figure { svg: chart.svg(), keys: runs.map(|(_, ink, name)| Key::new(ink, name)).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reaches_the_ends_of_what_is_known() {
        let none = f64::NAN;
        let known = |values: &[f64]| {
            let stretch = |(n, value): (usize, &f64)| (n as f64, n as f64 + 1.0, *value);
            let stretches: Vec<_> = values.iter().enumerate().map(stretch).collect();
            curve(&stretches).into_iter().filter(|point| !point.1.is_nan()).collect::<Vec<_>>()
        };
        assert_eq!(known(&[7.0, 8.0]), [(0.0, 7.0), (0.5, 7.0), (1.5, 8.0), (2.0, 8.0)]);
        assert_eq!(known(&[7.0]), [(0.0, 7.0), (0.5, 7.0), (1.0, 7.0)]);
        assert_eq!(known(&[none, 7.0, none]), [(1.0, 7.0), (1.5, 7.0), (2.0, 7.0)]);
        assert_eq!(known(&[none]), []);
    }

    #[test]
    fn a_scale_of_cpu_fits_what_was_used() {
        assert_eq!([0.3, 4.9, 6.2, 60.0, 340.0].map(|most| cpu_scale(most).to), [5.0, 6.0, 8.0, 80.0, 400.0]);
    }
}
