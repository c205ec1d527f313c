//! Bytes through the proxy over time, out of its own counters.

use super::chart::{Ink, Mark, Readout, Size};
use super::columns::Column;
use super::figures::{Figure, Key, OverTime, curve, end_of};
use super::scale::{Numbers, Scale};
use crate::measure::bytes_text;
use crate::result::{RunResult, ServerCounters};
use std::collections::BTreeMap;

/// Points of a chart of half width: more would be a thicket.
const MOVED_MAX: usize = 160;

/// Bytes per second the proxy moved, by how.
pub fn figure(result: &RunResult, server: &ServerCounters, columns: &[Column]) -> Option<Figure<'static>> {
    let end = end_of(columns);
    let copied = rates(&totals(server, "path=\"copy\""), end);
    let spliced = rates(&totals(server, "path=\"splice\""), end);
    let most = copied.iter().chain(&spliced).map(|(.., rate)| *rate).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let readouts = copied.iter().zip(&spliced).map(|((from, to, copied), (.., spliced))| Readout {
        from: *from,
        to: *to,
        text: format!("{from:.0} s: {}/s spliced, {}/s copied", bytes_text(*spliced), bytes_text(*copied)),
    });
    let readouts = readouts.collect();
    let (copied, spliced) = (curve(&copied), curve(&spliced));
    let keys =
        [(Ink::Series(2), "spliced: stayed in the kernel"), (Ink::Series(1), "copied through its memory")];
    let shown = OverTime {
        title: "Bytes per second through the proxy",
        size: Size::Half,
        y: Scale::up_to(most * 1.05, Numbers::Bytes),
        marks: vec![
            Mark::Area(Ink::Series(2), spliced.clone()),
            Mark::Line(Ink::Series(2), spliced),
            Mark::Line(Ink::Series(1), copied),
        ],
        heat: Vec::new(),
        readouts,
        keys: keys.map(|(ink, name)| Key::new(ink, name)).into(),
    };
    Some(shown.figure(result, columns))
}

/// Seconds since the start and the bytes moved until then in this way.
fn totals(server: &ServerCounters, label: &str) -> Vec<(f64, f64)> {
    let of_path = |name: &&String| name.starts_with("preview_bytes_total{") && name.contains(label);
    let names: Vec<&String> = server.after.keys().filter(of_path).collect();
    // A sample holds only what has moved; the rest is as it was before.
    let sum = |values: &BTreeMap<String, f64>| -> f64 {
        let value = |name: &&String| values.get(*name).or(server.before.get(*name)).copied().unwrap_or(0.0);
        names.iter().map(value).sum()
    };
    let begin = std::iter::once((0.0, sum(&server.before)));
    begin.chain(server.samples.iter().map(|sample| (sample.at_s, sum(&sample.values)))).collect()
}

/// Stretches of time `(from, to, bytes per second)`, none of them beyond the end.
fn rates(totals: &[(f64, f64)], end: f64) -> Vec<(f64, f64, f64)> {
    let mut totals = totals.to_vec();
    // After the end nobody sends: an interval that is for the most part beyond it is none of the load's, and of the last
    // one only what is before it.
    while let [.., (from, _), (to, _)] = totals[..]
        && (from + to) / 2.0 >= end
    {
        totals.pop();
    }
    if let Some(last) = totals.last_mut() {
        last.0 = last.0.min(end);
    }
    // Totals may be thinned out: what lies between two is in their difference.
    let last = totals.last().copied();
    let each = totals.len().div_ceil(MOVED_MAX).max(1);
    let mut kept: Vec<_> = totals.into_iter().step_by(each).collect();
    kept.extend(last.filter(|last| kept.last() != Some(last)));
    // Too short for a rate of its own.
    if let [.., (a, _), (b, _), (c, _)] = kept[..]
        && c - b < (b - a) / 2.0
    {
        kept.remove(kept.len() - 2);
    }
    let rate = |pair: &[(f64, f64)]| {
        let ((from, before), (to, after)) = (pair[0], pair[1]);
        (from, to, ((after - before) / (to - from).max(1e-3)).max(0.0))
    };
    kept.windows(2).map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_its_own_stretch_and_none_is_beyond_the_end() {
        let totals = [(0.0, 0.0), (1.0, 100.0), (2.0, 300.0), (3.0, 310.0)];
        let steady = [(0.0, 1.0, 100.0), (1.0, 2.0, 200.0)];
        assert_eq!(rates(&totals, 2.0), steady);
        assert_eq!(rates(&totals, 2.3), steady, "what was hardly any of the load's");
        assert_eq!(rates(&totals, 2.5 + 1e-6)[2].1, 2.5 + 1e-6);
        assert_eq!(rates(&totals, 3.0), [steady[0], steady[1], (2.0, 3.0, 10.0)]);
        let short = [(0.0, 0.0), (1.0, 100.0), (1.1, 100.0)];
        assert_eq!(rates(&short, 1.1), [(0.0, 1.1, 100.0 / 1.1)], "too short for a rate");
        assert_eq!(rates(&[(0.0, 5.0)], 9.0), []);
    }

    #[test]
    fn however_many_samples_stretches_are_few_and_reach_the_last() {
        let totals: Vec<(f64, f64)> = (0..=1003).map(|n| (f64::from(n), f64::from(n) * 10.0)).collect();
        let rates = rates(&totals, 1003.0);
        assert!(rates.len() <= MOVED_MAX && rates.last().is_some_and(|(_, to, _)| *to == 1003.0));
        assert!(rates.iter().all(|(.., rate)| (rate - 10.0).abs() < 1e-9));
    }
}
