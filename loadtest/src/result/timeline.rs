//! A phase second by second, and its heat map.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A row of numbers over time, of bounded length: when it would grow beyond [`Timeline::POINTS_MAX`], neighbours are merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// Width of a point in seconds: 1, 2, 4 ...
    pub step_s: u32,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub at_s: u32,
    pub planned: u64,
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    pub bytes_down: u64,
    /// Response times of requests that ended in this step, all classes: counts by bucket, see [`heat_bucket`].
    pub heat: Vec<u64>,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// Planned and not yet sent at the end of the step.
    pub backlog: u64,
    pub connections: u64,
    /// WebSockets held idle at the end of the step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub idle: u64,
    /// Percent of one CPU: the busiest thread of the load generator, and the proxy in sum.
    pub client_cpu: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_cpu: Option<f64>,
}

/// As serde wants it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Bounds of the heat map: bucket n ends at `HEAT_BASE_NS * 2^((n + 1) / 4)`, a quarter of an octave wide each.
pub const HEAT_BASE_NS: f64 = 16_000.0;
/// From 16 microseconds to about two minutes.
pub const HEAT_BUCKETS: usize = 92;

/// The heat map's bucket of a latency.
pub fn heat_bucket(ns: u64) -> usize {
    let octaves = (ns as f64 / HEAT_BASE_NS).max(1.0).log2();
    ((octaves * 4.0) as usize).min(HEAT_BUCKETS - 1)
}

/// Upper end of a bucket in microseconds.
pub fn heat_bound_us(bucket: usize) -> f64 {
    HEAT_BASE_NS / 1000.0 * ((bucket as f64 + 1.0) / 4.0).exp2()
}

impl Default for Timeline {
    fn default() -> Self {
        Self { step_s: 1, points: Vec::new() }
    }
}

impl Timeline {
    /// Most points kept: an hour by the second.
    pub const POINTS_MAX: usize = 3600;

    /// Adds the next second.
    pub fn push(&mut self, point: Point) {
        let at = point.at_s / self.step_s;
        match self.points.last_mut() {
            Some(last) if last.at_s / self.step_s == at => last.absorb(&point),
            _ => self.points.push(Point { at_s: at * self.step_s, ..point }),
        }
        if self.points.len() > Self::POINTS_MAX {
            self.halve();
        }
    }

    /// Adds another load generator's seconds to these.
    pub fn merge(&mut self, other: &Self) {
        let (mut ours, mut theirs) = (std::mem::take(self), other.clone());
        while ours.step_s < theirs.step_s {
            ours.halve();
        }
        while theirs.step_s < ours.step_s {
            theirs.halve();
        }
        let mut points: BTreeMap<u32, Point> = ours.points.into_iter().map(|p| (p.at_s, p)).collect();
        for point in theirs.points {
            match points.get_mut(&point.at_s) {
                Some(ours) => ours.join(&point),
                None => drop(points.insert(point.at_s, point)),
            }
        }
        *self = Self { step_s: ours.step_s, points: points.into_values().collect() };
    }

    fn halve(&mut self) {
        self.step_s *= 2;
        let mut wider: Vec<Point> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in self.points.drain(..) {
            let at_s = point.at_s / self.step_s * self.step_s;
            match wider.last_mut() {
                Some(last) if last.at_s == at_s => last.absorb(&point),
                _ => wider.push(Point { at_s, ..point }),
            }
        }
        self.points = wider;
    }
}

impl Point {
    /// Merges the following step into this one.
    fn absorb(&mut self, next: &Self) {
        self.add_counts(next);
        (self.backlog, self.connections, self.idle) = (next.backlog, next.connections, next.idle);
        self.client_cpu = (self.client_cpu + next.client_cpu) / 2.0;
        self.proxy_cpu = match (self.proxy_cpu, next.proxy_cpu) {
            (Some(a), Some(b)) => Some((a + b) / 2.0),
            (a, b) => a.or(b),
        };
    }

    /// Merges the same step of another load generator into this one.
    pub(crate) fn join(&mut self, other: &Self) {
        self.add_counts(other);
        self.backlog += other.backlog;
        self.connections += other.connections;
        self.idle += other.idle;
        self.client_cpu = self.client_cpu.max(other.client_cpu);
        self.proxy_cpu = self.proxy_cpu.or(other.proxy_cpu);
    }

    fn add_counts(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.bytes_down += other.bytes_down;
        if self.heat.len() < other.heat.len() {
            self.heat.resize(other.heat.len(), 0);
        }
        for (sum, count) in self.heat.iter_mut().zip(&other.heat) {
            *sum += count;
        }
        self.max_us = self.max_us.max(other.max_us);
        self.p50_us = heat_quantile_us(&self.heat, 0.5).min(self.max_us);
        self.p99_us = heat_quantile_us(&self.heat, 0.99).min(self.max_us);
    }
}

/// A quantile out of a heat map's column: the upper end of its bucket, so at most a fifth too high.
pub fn heat_quantile_us(heat: &[u64], quantile: f64) -> f64 {
    let rank = (heat.iter().sum::<u64>() as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    for (bucket, count) in heat.iter().enumerate() {
        seen += count;
        if seen >= rank && seen > 0 {
            return heat_bound_us(bucket);
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at_s: u32, latency_ns: u64) -> Point {
        let mut heat = vec![0; HEAT_BUCKETS];
        heat[heat_bucket(latency_ns)] = 10;
        let us = latency_ns as f64 / 1000.0;
        Point {
            at_s,
            planned: 10,
            sent: 10,
            ok: 10,
            heat,
            max_us: us,
            p50_us: us,
            p99_us: us,
            ..Point::default()
        }
    }

    #[test]
    fn a_timeline_stays_bounded_and_keeps_its_sums() {
        let mut timeline = Timeline::default();
        let seconds = 3 * Timeline::POINTS_MAX as u32;
        for at_s in 0..seconds {
            timeline.push(second(at_s, 1_000_000));
            assert!(timeline.points.len() <= Timeline::POINTS_MAX);
        }
        assert_eq!(timeline.step_s, 4);
        assert_eq!(timeline.points.iter().map(|p| p.sent).sum::<u64>(), u64::from(seconds) * 10);
        assert!(timeline.points.windows(2).all(|pair| pair[0].at_s + 4 == pair[1].at_s));
        assert!(timeline.points.iter().all(|p| (900.0..1200.0).contains(&p.p99_us)));
    }

    #[test]
    fn timelines_of_two_load_generators_merge_by_the_second() {
        let (mut a, mut b) = (Timeline::default(), Timeline::default());
        a.push(second(0, 1_000_000));
        b.push(second(0, 9_000_000));
        b.push(second(1, 1_000_000));
        a.merge(&b);
        assert_eq!(a.points.iter().map(|p| (p.at_s, p.sent)).collect::<Vec<_>>(), [(0, 20), (1, 10)]);
        assert_eq!(a.points[0].max_us, 9000.0);
        assert!((8000.0..=9000.0).contains(&a.points[0].p99_us), "{}", a.points[0].p99_us);
    }

    #[test]
    fn heat_buckets_cover_all_latencies_in_order() {
        let mut last = 0;
        for ns in [0, 15_999, 16_001, 100_000, 5_000_000, 1_000_000_000, 60_000_000_000, u64::MAX] {
            let bucket = heat_bucket(ns);
            assert!(bucket >= last && bucket < HEAT_BUCKETS);
            if ns < 60_000_000_000 {
                assert!(heat_bound_us(bucket) * 1000.0 >= ns as f64);
            }
            last = bucket;
        }
    }
}
