//! The heat map: how response times are spread, over time.

use super::chart::{HEAT_LEVELS, HeatColumn, Ink, Size};
use super::columns::Column;
use super::figures::{Figure, Key, OverTime, readouts};
use super::scale::Scale;
use crate::measure::{number_text, share_text, time_text};
use crate::result::{RunResult, heat_bound_us};

/// Levels are equal factors: one request in a thousand must still be seen.
const LEVELS_PER_DECADE: f64 = 2.0;

pub const CAPTION: &str = "Each column is a stretch of time, each cell a range of response times a quarter of an octave high. Its colour says how many \
     requests ended there each second, up to the number in the legend: two colours on are ten times as many.";

/// How response times are spread, over time: the darker, the more of them.
pub fn figure(result: &RunResult, columns: &[Column]) -> Option<Figure<'static>> {
    let used = |column: &Column| {
        let first = column.heat.iter().position(|count| *count > 0)?;
        Some((first, column.heat.iter().rposition(|count| *count > 0)?))
    };
    let first = columns.iter().filter_map(used).map(|range| range.0).min()?;
    let last = columns.iter().filter_map(used).map(|range| range.1).max()?;
    let below = |bucket: usize| {
        if bucket == 0 { heat_bound_us(0) / 2f64.powf(0.25) } else { heat_bound_us(bucket - 1) }
    };
    // Levels are of the rate, so that columns of different widths compare.
    let per_s = |count: u64, column: &Column| count as f64 / column.width_s.max(0.1);
    let cells = columns.iter().flat_map(|column| column.heat.iter().map(move |count| per_s(*count, column)));
    let top = top(cells.fold(0.0, f64::max));
    let column_cells = |column: &Column| HeatColumn {
        x: column.from_s,
        width: column.width_s,
        cells: column
            .heat
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (below(bucket), heat_bound_us(bucket), level(per_s(*count, column), top)))
            .collect(),
    };
    let text = |column: &Column| {
        let fullest =
            column.heat.iter().enumerate().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > 0);
        fullest.map_or("nothing ended".into(), |(bucket, count)| {
            let all: u64 = column.heat.iter().sum();
            let (low, high) = (time_text(below(bucket)), time_text(heat_bound_us(bucket)));
            format!(
                "{} ended, {} of them in {low} to {high}",
                number_text(all as f64),
                share_text(*count as f64 / all as f64)
            )
        })
    };
    let heat: Vec<HeatColumn> = columns.iter().map(column_cells).collect();
    let keys = keys(&heat, top);
    let shown = OverTime {
        title: "How response times are spread over time",
        size: Size::Wide,
        y: Scale::log_time(below(first), heat_bound_us(last)),
        marks: Vec::new(),
        heat,
        readouts: readouts(columns, text),
        keys,
    };
    Some(shown.figure(result, columns))
}

/// A legend from the lowest level there is.
fn keys(heat: &[HeatColumn], top: f64) -> Vec<Key<'static>> {
    let least = heat.iter().flat_map(|column| &column.cells).map(|cell| cell.2).min().unwrap_or(HEAT_LEVELS);
    let key = |level| Key::new(Ink::Heat(level), format!("≤ {}/s", bound_text(bound(level, top))));
    (least..=HEAT_LEVELS).map(key).collect()
}

/// The upper end of the highest level: a power of ten or the half of one, so that the others are, too.
fn top(most: f64) -> f64 {
    let half_decades = (most.log10() * LEVELS_PER_DECADE - 1e-9).ceil();
    10f64.powf(half_decades / LEVELS_PER_DECADE)
}

/// The level of a rate; what is below the lowest is in it, too.
fn level(rate: f64, top: f64) -> usize {
    let below = ((top / rate).log10() * LEVELS_PER_DECADE + 1e-9).floor();
    HEAT_LEVELS.saturating_sub(below as usize).max(1)
}

/// The highest rate of a level.
fn bound(level: usize, top: f64) -> f64 {
    top / 10f64.powf((HEAT_LEVELS - level) as f64 / LEVELS_PER_DECADE)
}

/// Two digits, which are enough to tell levels apart.
fn bound_text(bound: f64) -> String {
    let digits = (1.0 - (bound + 1e-9).log10().floor()).max(0.0) as usize;
    let whole = (bound - bound.round()).abs() < 1e-9;
    if whole || digits == 0 { number_text(bound.round()) } else { format!("{bound:.digits$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_ends_where_the_legend_says() {
        for most in [0.07, 1.0, 37.0, 100.0, 4321.0] {
            let top = top(most);
            assert!(top >= most * 0.999_999 && level(most, top) == HEAT_LEVELS, "{most} of {top}");
            for n in 1..HEAT_LEVELS {
                let bound = bound(n, top);
                assert_eq!((level(bound, top), level(bound * 1.01, top)), (n, n + 1), "{most}: {bound}");
            }
            assert_eq!(level(top / 1e9, top), 1);
        }
        let texts = |most| [5, 6, 7, 8].map(|level| bound_text(bound(level, top(most))));
        assert_eq!(texts(37.0), ["3.2", "10", "32", "100"]);
        assert_eq!(texts(0.5), ["0.032", "0.10", "0.32", "1"]);
    }

    #[test]
    fn a_legend_begins_at_the_lowest_level_there_is() {
        let column = HeatColumn { x: 0.0, width: 1.0, cells: vec![(1.0, 2.0, 6), (2.0, 3.0, 8)] };
        let names: Vec<_> = keys(&[column], 100.0).into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["≤ 10/s", "≤ 32/s", "≤ 100/s"]);
    }
}
