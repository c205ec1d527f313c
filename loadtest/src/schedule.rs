//! When requests should be sent: intended times computed from the plan, one after the other, never stored.
//!
//! Pure: times are offsets from the phase's begin. A thread's part of a rate is every n-th arrival of the whole, so the
//! parts of all threads and agents together are exactly the plan.

use crate::plan::Load;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;

/// Which arrivals of the whole are this part's: `index`, `index + count`, ...
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub index: u32,
    pub count: u32,
}

/// The intended times of one phase. Memory does not grow with a backlog: what is late is still only a number.
#[derive(Clone, Debug)]
pub struct Schedule {
    load: Load,
    /// Share of the phase's rate that is meant.
    scale: f64,
    length: f64,
    part: Part,
    /// Arrivals of the whole passed before the next one (a real number with random intervals).
    position: f64,
    random: Option<SmallRng>,
    taken: u64,
}

impl Schedule {
    /// `scale`: share of the rate, as when a phase's classes have schedules of their own. `poisson`: seed of random
    /// intervals.
    pub fn new(load: Load, length: Duration, scale: f64, part: Part, poisson: Option<u64>) -> Self {
        let mut random = poisson.map(SmallRng::seed_from_u64);
        let position = match &mut random {
            // A part of a Poisson process is one with a smaller rate.
            Some(random) => exponential(random) * f64::from(part.count),
            None => f64::from(part.index),
        };
        Self { load, scale, length: length.as_secs_f64(), part, position, random, taken: 0 }
    }

    /// The next intended time, `None` when the phase has no more. A closed loop has none to tell.
    pub fn peek(&self) -> Option<Duration> {
        let at = self.time_of(self.position)?;
        (at < self.length).then(|| Duration::from_secs_f64(at))
    }

    /// Takes the next one.
    pub fn advance(&mut self) {
        self.taken += 1;
        self.position += match &mut self.random {
            Some(random) => exponential(random) * f64::from(self.part.count),
            None => f64::from(self.part.count),
        };
    }

    /// How many are due by `now` and not taken (with random intervals: about).
    pub fn backlog(&self, now: Duration) -> u64 {
        let now = now.as_secs_f64().min(self.length);
        let due = match self.load {
            Load::Hold { rate } | Load::Soak { rate } => rate * self.scale * now,
            Load::Ramp { from, to } => {
                (from * now + (to - from) / self.length * now * now / 2.0) * self.scale
            }
            Load::Burst { size, every } => {
                ((now / every.0.as_secs_f64()).floor() + 1.0) * f64::from(size) * self.scale
            }
            Load::Closed | Load::Quiet => 0.0,
        };
        ((due - self.position) / f64::from(self.part.count)).max(0.0) as u64
    }

    /// How many were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// When arrival number `n` of the whole is due, in seconds: the inverse of the rate's integral.
    fn time_of(&self, n: f64) -> Option<f64> {
        match self.load {
            Load::Hold { rate } | Load::Soak { rate } => {
                (rate * self.scale > 0.0).then(|| n / (rate * self.scale))
            }
            Load::Ramp { from, to } => {
                let (from, to) = (from * self.scale, to * self.scale);
                let slope = (to - from) / self.length;
                if slope.abs() < 1e-9 {
                    return (from > 0.0).then(|| n / from);
                }
                // n = from t + slope t^2 / 2; a falling ramp may end before the n-th.
                let root = from * from + 2.0 * slope * n;
                (root >= 0.0).then(|| (root.sqrt() - from) / slope)
            }
            Load::Burst { size, every } => {
                let size = f64::from(size) * self.scale;
                (size > 0.0).then(|| (n / size).floor() * every.0.as_secs_f64())
            }
            Load::Closed | Load::Quiet => None,
        }
    }
}

/// An exponentially distributed number with mean 1.
fn exponential(random: &mut SmallRng) -> f64 {
    let uniform: f64 = random.random();
    -(1.0 - uniform).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::Span;

    const WHOLE: Part = Part { index: 0, count: 1 };

    fn times(mut schedule: Schedule) -> Vec<f64> {
        let mut times = Vec::new();
        while let Some(at) = schedule.peek() {
            times.push(at.as_secs_f64());
            schedule.advance();
        }
        assert_eq!(schedule.taken(), times.len() as u64);
        times
    }

    fn of(load: Load, part: Part) -> Vec<f64> {
        times(Schedule::new(load, Duration::from_secs(10), 1.0, part, None))
    }

    #[test]
    fn a_held_rate_is_evenly_spaced() {
        let times = of(Load::Hold { rate: 100.0 }, WHOLE);
        assert_eq!(times.len(), 1000);
        assert!(times.windows(2).all(|pair| (pair[1] - pair[0] - 0.01).abs() < 1e-6));
    }

    #[test]
    fn a_ramp_sends_the_area_under_it_whichever_way_it_goes() {
        for (from, to) in [(0.0, 200.0), (200.0, 0.0), (50.0, 150.0)] {
            let times = of(Load::Ramp { from, to }, WHOLE);
            assert!((998..=1000).contains(&times.len()), "{from} to {to}: {}", times.len());
            assert!(times.windows(2).all(|pair| pair[0] <= pair[1]));
            let first_half = times.iter().filter(|at| **at < 5.0).count() as f64;
            let expected = (from + (from + to) / 2.0) / 2.0 * 5.0;
            assert!((first_half - expected).abs() <= 2.0, "{first_half} {expected}");
        }
    }

    #[test]
    fn bursts_come_at_once() {
        let times = of(Load::Burst { size: 30, every: Span(Duration::from_secs(4)) }, WHOLE);
        let at = |second: f64| times.iter().filter(|at| **at == second).count();
        assert_eq!((times.len(), at(0.0), at(4.0), at(8.0)), (90, 30, 30, 30));
    }

    #[test]
    fn the_parts_together_are_the_whole() {
        for load in [
            Load::Hold { rate: 33.3 },
            Load::Ramp { from: 5.0, to: 50.0 },
            Load::Burst { size: 7, every: Span(Duration::from_secs(3)) },
        ] {
            let mut parts: Vec<f64> = (0..3).flat_map(|index| of(load, Part { index, count: 3 })).collect();
            parts.sort_by(f64::total_cmp);
            assert_eq!(parts, of(load, WHOLE), "{load:?}");
        }
    }

    #[test]
    fn random_intervals_keep_the_rate_and_repeat_with_the_seed() {
        let random = |seed| {
            let load = Load::Hold { rate: 1000.0 };
            times(Schedule::new(load, Duration::from_secs(10), 1.0, WHOLE, Some(seed)))
        };
        let times = random(1);
        assert!((9_600..=10_400).contains(&times.len()), "{}", times.len());
        assert_eq!(times, random(1));
        assert_ne!(times, random(2));
        // Exponential intervals: a share of 1/e is longer than the mean.
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > 0.001).count() as f64;
        assert!((0.33..0.41).contains(&(long / times.len() as f64)));
    }

    #[test]
    fn a_backlog_is_what_is_due_and_not_taken() {
        let load = Load::Hold { rate: 100.0 };
        let mut schedule = Schedule::new(load, Duration::from_secs(10), 1.0, WHOLE, None);
        assert_eq!(schedule.backlog(Duration::from_secs(2)), 200);
        (0..150).for_each(|_| schedule.advance());
        assert_eq!(schedule.backlog(Duration::from_secs(2)), 50);
        assert_eq!(schedule.backlog(Duration::from_secs(99)), 850, "no more than the phase has");
    }

    #[test]
    fn nothing_is_due_in_a_quiet_phase() {
        assert!(of(Load::Quiet, WHOLE).is_empty());
        assert!(
            times(Schedule::new(Load::Hold { rate: 9.0 }, Duration::from_secs(9), 0.0, WHOLE, None))
                .is_empty()
        );
    }
}
