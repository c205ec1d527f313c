//! Bytes through the proxy over time, out of its own counters.

use super::chart::{Chart, Ink, Mark, Readout, Size};
use super::figures::{Figure, Key, phases};
use super::scale::{Numbers, Scale};
use crate::measure::bytes_text;
use crate::result::{RunResult, ServerCounters};
use std::collections::BTreeMap;

/// Points of a chart of half width: more would be a thicket.
const MOVED_MAX: usize = 160;

/// Bytes per second the proxy moved, by how.
pub fn figure(result: &RunResult, server: &ServerCounters) -> Option<Figure<'static>> {
    // A sample holds only what has moved; the rest is as it was before.
    let path = |label: &str| -> Vec<(f64, f64)> {
        let of_path = |name: &&String| name.starts_with("preview_bytes_total{") && name.contains(label);
        let names: Vec<&String> = server.after.keys().filter(of_path).collect();
        let sum = |values: &BTreeMap<String, f64>| -> f64 {
            let value =
                |name: &&String| values.get(*name).or(server.before.get(*name)).copied().unwrap_or(0.0);
            names.iter().map(value).sum()
        };
        let begin = std::iter::once((0.0, sum(&server.before)));
        let samples = server.samples.iter().map(|sample| (sample.at_s, sum(&sample.values)));
        let totals: Vec<(f64, f64)> = begin.chain(samples).collect();
        // Totals may be thinned out: what lies between two is in their difference.
        let totals: Vec<_> = totals.iter().step_by(totals.len().div_ceil(MOVED_MAX)).copied().collect();
        let gain = |pair: &[(f64, f64)]| {
            let ((from, before), (to, after)) = (pair[0], pair[1]);
            (((from + to) / 2.0), ((after - before) / (to - from).max(1e-3)).max(0.0))
        };
        totals.windows(2).map(gain).collect()
    };
    let (copied, spliced) = (path("path=\"copy\""), path("path=\"splice\""));
    let most = copied.iter().chain(&spliced).map(|point| point.1).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let half = copied.windows(2).map(|pair| (pair[1].0 - pair[0].0) / 2.0).next().unwrap_or(0.5);
    let readouts = copied.iter().zip(&spliced).map(|(copied, spliced)| Readout {
        from: copied.0 - half,
        to: copied.0 + half,
        text: format!(
            "{:.0} s: {}/s spliced, {}/s copied",
            copied.0,
            bytes_text(spliced.1),
            bytes_text(copied.1)
        ),
    });
    let readouts = readouts.collect();
    let end = server.samples.last().map_or(1.0, |sample| sample.at_s);
    let mut marks = phases(result);
    marks.push(Mark::Area(Ink::Series(2), spliced.clone()));
    marks.push(Mark::Line(Ink::Series(2), spliced));
    marks.push(Mark::Line(Ink::Series(1), copied));
    let chart = Chart {
        title: "Bytes per second through the proxy",
        size: Size::Half,
        x: Scale::clock(end),
        y: Scale::up_to(most, Numbers::Bytes),
        marks,
        heat: Vec::new(),
        readouts,
    };
    let keys =
        [(Ink::Series(2), "spliced: stayed in the kernel"), (Ink::Series(1), "copied through its memory")];
    Some(Figure { svg: chart.svg(), keys: keys.map(|(ink, name)| Key { ink, name }).into() })
}
