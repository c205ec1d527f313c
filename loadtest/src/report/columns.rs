//! A run over time in at most so many columns, however long it was. Pure.

use crate::result::{PhaseResult, Point, RunResult, heat_quantile_us};

/// What happened in one stretch of the run, warm-ups and gaps between phases included.
#[derive(Clone, Debug, Default)]
pub struct Column {
    /// Since the run's start.
    pub from_s: f64,
    pub width_s: f64,
    pub planned: u64,
    pub ok: u64,
    pub failed: u64,
    /// Counts by bucket, see [`crate::result::heat_bucket`].
    pub heat: Vec<u64>,
    /// Microseconds; NaN where nothing ended.
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub backlog: u64,
    pub connections: u64,
    pub idle: u64,
    /// Percent of one CPU.
    pub client_cpu: f64,
    pub proxy_cpu: Option<f64>,
}

/// The run in at most `columns_max` columns.
pub fn columns(result: &RunResult, columns_max: usize) -> Vec<Column> {
    let fine: Vec<Column> = result.phases.iter().flat_map(of_phase).collect();
    let each = fine.len().div_ceil(columns_max.max(1)).max(1);
    fine.chunks(each).map(merged).collect()
}

fn of_phase(phase: &PhaseResult) -> Vec<Column> {
    let step = f64::from(phase.timeline.step_s.max(1));
    let mut columns: Vec<Column> = Vec::with_capacity(phase.timeline.points.len());
    for point in &phase.timeline.points {
        let left = phase.duration_s - f64::from(point.at_s);
        let column = of_point(point, phase.start_s, step.min(left.max(0.0)));
        match columns.last_mut() {
            // What is left of a second, and answers that came after the phase's end: too short for a rate of its own.
            Some(last) if left < step / 2.0 => *last = merged(&[last.clone(), column]),
            _ => columns.push(column),
        }
    }
    columns
}

fn of_point(point: &Point, start_s: f64, width_s: f64) -> Column {
    let some = point.heat.iter().any(|count| *count > 0);
    let time = |us: f64| if some { us } else { f64::NAN };
    Column {
        from_s: start_s + f64::from(point.at_s),
        width_s,
        planned: point.planned,
        ok: point.ok,
        failed: point.failed,
        heat: point.heat.clone(),
        p50_us: time(point.p50_us),
        p99_us: time(point.p99_us),
        max_us: time(point.max_us),
        backlog: point.backlog,
        connections: point.connections,
        idle: point.idle,
        client_cpu: point.client_cpu,
        proxy_cpu: point.proxy_cpu,
    }
}

fn merged(columns: &[Column]) -> Column {
    let [only] = columns else {
        let mut heat = vec![0; columns.iter().map(|column| column.heat.len()).max().unwrap_or(0)];
        for column in columns {
            heat.iter_mut().zip(&column.heat).for_each(|(sum, count)| *sum += count);
        }
        let sum = |of: fn(&Column) -> u64| columns.iter().map(of).sum();
        let width_s: f64 = columns.iter().map(|column| column.width_s).sum();
        let mean = |of: &dyn Fn(&Column) -> Option<f64>| {
            let known = columns.iter().filter_map(|column| Some((of(column)?, column.width_s)));
            let (sum, width) =
                known.fold((0.0, 0.0), |(sum, width), (value, w)| (sum + value * w, width + w));
            (width > 0.0).then(|| sum / width)
        };
        // `f64::max` takes the number of a number and a NaN.
        let max_us = columns.iter().map(|column| column.max_us).fold(f64::NAN, f64::max);
        let quantile = |quantile| match max_us.is_nan() {
            true => f64::NAN,
            false => heat_quantile_us(&heat, quantile).min(max_us),
        };
        return Column {
            from_s: columns.first().map_or(0.0, |column| column.from_s),
            width_s,
            planned: sum(|column| column.planned),
            ok: sum(|column| column.ok),
            failed: sum(|column| column.failed),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us,
            backlog: columns.iter().map(|column| column.backlog).max().unwrap_or(0),
            connections: columns.iter().map(|column| column.connections).max().unwrap_or(0),
            // As it was at the end.
            idle: columns.last().map_or(0, |column| column.idle),
            client_cpu: mean(&|column| Some(column.client_cpu)).unwrap_or(0.0),
            proxy_cpu: mean(&|column| column.proxy_cpu),
            heat,
        };
    };
    only.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{HEAT_BUCKETS, Timeline, heat_bucket};

    fn phase(start_s: f64, duration_s: f64, seconds: u32) -> PhaseResult {
        let mut timeline = Timeline::default();
        for at_s in 0..seconds {
            let mut heat = vec![0; HEAT_BUCKETS];
            heat[heat_bucket(1_000_000)] = 100;
            let point =
                Point { at_s, planned: 100, ok: 99, failed: 1, heat, max_us: 1000.0, ..Point::default() };
            timeline.push(Point { p50_us: 1000.0, p99_us: 1000.0, proxy_cpu: Some(50.0), ..point });
        }
        PhaseResult { start_s, duration_s, timeline, ..PhaseResult::default() }
    }

    #[test]
    fn however_long_the_run_columns_are_few_and_keep_the_sums() {
        let phases = vec![phase(0.0, 10.0, 10), phase(10.0, 2000.0, 2000)];
        let result = RunResult { phases, ..RunResult::default() };
        let columns = columns(&result, 160);
        assert!((80..=160).contains(&columns.len()), "{}", columns.len());
        assert_eq!(columns.iter().map(|column| column.ok).sum::<u64>(), 2010 * 99);
        assert!(
            columns.windows(2).all(|pair| (pair[0].from_s + pair[0].width_s - pair[1].from_s).abs() < 1e-6)
        );
        assert!(
            columns
                .iter()
                .all(|column| (column.p99_us - 1000.0).abs() < 1.0 && column.proxy_cpu == Some(50.0))
        );
    }

    #[test]
    fn what_came_after_the_phases_end_makes_no_column_of_its_own() {
        let result = RunResult { phases: vec![phase(0.0, 3.2, 5)], ..RunResult::default() };
        let columns = columns(&result, 160);
        assert_eq!(columns.iter().map(|column| column.ok).collect::<Vec<_>>(), [99, 99, 297]);
        assert!((columns[2].width_s - 1.2).abs() < 1e-9);
        assert!(super::columns(&RunResult::default(), 160).is_empty());
    }
}
