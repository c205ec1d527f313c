//! The heat map: how response times are spread, over time.

use super::chart::{Chart, HEAT_LEVELS, HeatColumn, Size};
use super::columns::Column;
use super::figures::{Figure, end_of, phases, readouts};
use super::scale::Scale;
use crate::measure::{number_text, share_text, time_text};
use crate::result::{RunResult, heat_bound_us};

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
    let most = cells.fold(0.0, f64::max);
    let column_cells = |column: &Column| HeatColumn {
        x: column.from_s,
        width: column.width_s,
        cells: column
            .heat
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (below(bucket), heat_bound_us(bucket), level(per_s(*count, column), most)))
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
    let chart = Chart {
        title: "How response times are spread over time",
        size: Size::Wide,
        x: Scale::clock(end_of(columns)),
        y: Scale::log_time(below(first) * 1.25, heat_bound_us(last) / 1.25),
        marks: phases(result),
        heat: columns.iter().map(column_cells).collect(),
        readouts: readouts(columns, text),
    };
    Some(Figure { svg: chart.svg(), keys: Vec::new() })
}

/// Logarithmic: one in a thousand must still be seen.
fn level(rate: f64, most: f64) -> usize {
    let decades = 4.0;
    let share = 1.0 + (rate / most).log10() / decades;
    ((share * HEAT_LEVELS as f64).ceil() as usize).clamp(1, HEAT_LEVELS)
}
