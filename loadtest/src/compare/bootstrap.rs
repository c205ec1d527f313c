//! How sure a difference is: the runs' seconds are drawn again, and the spread of what comes out is the interval.
//!
//! Requests of one moment share their fate, so single requests must not be drawn as if they were independent: the unit is
//! a block of neighbouring seconds. Where a run has several rounds of the same kind, rounds are drawn first, and what
//! differs between rounds is in the interval, too. Pure; a seed repeats it.

use crate::result::{PhaseResult, Point, RunResult, heat_bound_us};

/// Fewer seconds than these say nothing about their own spread.
pub const SECONDS_MIN: usize = 8;
/// Rounds from which on the difference between rounds can be seen.
const ROUNDS_MIN: usize = 3;
/// Draws. The ends of a 99 % interval are the tenth from either side.
const DRAWS: usize = 2000;

/// What is computed from drawn seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Statistic {
    /// Response time, all classes.
    Quantile(f64),
    /// Requests ended per second.
    Rate,
    /// CPU of the proxy per answer.
    Cpu,
    /// Share of failed requests.
    Errors,
}

/// A run's measured seconds, by phase.
pub struct Seconds {
    phases: Vec<Vec<Second>>,
    /// Phases are rounds of the same: any could stand for any other.
    rounds: bool,
}

struct Second {
    heat: Vec<u64>,
    ended: u64,
    failed: u64,
    width_s: f64,
    /// CPU seconds of the proxy, and the answers of the seconds for which they are known.
    cpu: Option<f64>,
}

/// Sums over drawn seconds.
#[derive(Default)]
struct Sum {
    heat: Vec<u64>,
    ended: u64,
    failed: u64,
    width_s: f64,
    cpu_s: f64,
    cpu_answers: u64,
}

impl Seconds {
    pub fn of(result: &RunResult) -> Self {
        let phases: Vec<&PhaseResult> = result.judged().collect();
        let alike = |phase: &&PhaseResult| {
            phases
                .first()
                .is_some_and(|first| first.kind == phase.kind && first.planned_rate == phase.planned_rate)
        };
        let rounds = phases.len() >= ROUNDS_MIN && phases.iter().all(alike);
        let phases = phases.into_iter().map(seconds).filter(|seconds| !seconds.is_empty()).collect();
        Self { phases, rounds }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// Whether the interval knows what differs between rounds.
    pub fn has_rounds(&self) -> bool {
        self.rounds
    }

    fn whole(&self) -> Sum {
        let mut sum = Sum::default();
        self.phases.iter().flatten().for_each(|second| sum.add(second));
        sum
    }

    fn drawn(&self, dice: &mut fastrand::Rng) -> Sum {
        let mut sum = Sum::default();
        for at in 0..self.phases.len() {
            let at = if self.rounds { dice.usize(..self.phases.len()) } else { at };
            let phase = &self.phases[at];
            let block = (phase.len() as f64).cbrt().ceil() as usize;
            let mut left = phase.len();
            while left > 0 {
                let start = dice.usize(..phase.len());
                let length = block.min(left);
                (0..length).for_each(|n| sum.add(&phase[(start + n) % phase.len()]));
                left -= length;
            }
        }
        sum
    }
}

fn seconds(phase: &PhaseResult) -> Vec<Second> {
    let step = f64::from(phase.timeline.step_s.max(1));
    let one = |point: &Point| {
        let width_s = step.min(phase.duration_s - f64::from(point.at_s));
        // Answers behind the phase's end belong to no second of their own.
        (width_s >= step / 2.0).then(|| Second {
            heat: point.heat.clone(),
            ended: point.ok + point.failed,
            failed: point.failed,
            width_s,
            cpu: point.proxy_cpu.map(|percent| percent / 100.0 * width_s),
        })
    };
    phase.timeline.points.iter().filter_map(one).collect()
}

impl Sum {
    fn add(&mut self, second: &Second) {
        if self.heat.len() < second.heat.len() {
            self.heat.resize(second.heat.len(), 0);
        }
        self.heat.iter_mut().zip(&second.heat).for_each(|(sum, count)| *sum += count);
        self.ended += second.ended;
        self.failed += second.failed;
        self.width_s += second.width_s;
        if let Some(cpu_s) = second.cpu {
            self.cpu_s += cpu_s;
            self.cpu_answers += second.ended;
        }
    }

    /// `None`: nothing to compute it from.
    fn value(&self, statistic: Statistic) -> Option<f64> {
        let ratio = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
        match statistic {
            Statistic::Quantile(quantile) => quantile_us(&self.heat, quantile),
            Statistic::Rate => ratio((self.ended - self.failed) as f64, self.width_s),
            Statistic::Cpu => ratio(self.cpu_s, self.cpu_answers as f64).filter(|cpu| *cpu > 0.0),
            Statistic::Errors => ratio(self.failed as f64, self.ended as f64),
        }
    }
}

/// A quantile of counts by bucket, as if each bucket's values were spread evenly over its octave part.
fn quantile_us(heat: &[u64], quantile: f64) -> Option<f64> {
    let all: u64 = heat.iter().sum();
    let rank = all as f64 * quantile;
    let mut below = 0.0;
    for (bucket, count) in heat.iter().map(|count| *count as f64).enumerate() {
        if count > 0.0 && below + count >= rank {
            let share = ((rank - below) / count).clamp(0.0, 1.0);
            return Some(heat_bound_us(bucket) * ((share - 1.0) / 4.0).exp2());
        }
        below += count;
    }
    None
}

/// How B compares with A, by draws of both.
pub struct Draws {
    statistics: Vec<Statistic>,
    /// By statistic, by draw: what A and B came to, relative to what they really are.
    deviations: Vec<Vec<(f64, f64)>>,
}

impl Draws {
    pub fn new(a: &Seconds, b: &Seconds, statistics: &[Statistic], seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let (whole_a, whole_b) = (a.whole(), b.whole());
        let mut deviations = vec![Vec::with_capacity(DRAWS); statistics.len()];
        for _ in 0..DRAWS {
            let (drawn_a, drawn_b) = (a.drawn(&mut dice), b.drawn(&mut dice));
            for (statistic, deviations) in statistics.iter().zip(&mut deviations) {
                let deviation = |whole: &Sum, drawn: &Sum| {
                    let (whole, drawn) = (whole.value(*statistic)?, drawn.value(*statistic)?);
                    match statistic {
                        // Shares may be 0: they are compared by their difference.
                        Statistic::Errors => Some(drawn - whole),
                        _ => Some((drawn / whole).ln()).filter(|deviation| deviation.is_finite()),
                    }
                };
                deviations.extend(deviation(&whole_a, &drawn_a).zip(deviation(&whole_b, &drawn_b)));
            }
        }
        Self { statistics: statistics.to_vec(), deviations }
    }

    /// Where the ratio B to A lies, given the two values, with this confidence (0 to 1). `None`: cannot be told.
    pub fn ratio(&self, statistic: Statistic, a: f64, b: f64, confidence: f64) -> Option<(f64, f64)> {
        let ratio = b / a;
        let (low, high) = self.spread(statistic, confidence)?;
        (ratio.is_finite() && ratio > 0.0).then(|| (ratio * low.exp(), ratio * high.exp()))
    }

    /// The same for the difference B minus A.
    pub fn difference(&self, statistic: Statistic, a: f64, b: f64, confidence: f64) -> Option<(f64, f64)> {
        let (low, high) = self.spread(statistic, confidence)?;
        Some((b - a + low, b - a + high))
    }

    fn spread(&self, statistic: Statistic, confidence: f64) -> Option<(f64, f64)> {
        let place = self.statistics.iter().position(|known| *known == statistic)?;
        let mut spread: Vec<f64> = self.deviations[place].iter().map(|(a, b)| b - a).collect();
        // A few draws without a value are no spread to speak of.
        if spread.len() < DRAWS / 2 {
            return None;
        }
        spread.sort_by(f64::total_cmp);
        let outside = ((1.0 - confidence) / 2.0 * spread.len() as f64).floor() as usize;
        Some((
            spread[outside.min(spread.len() / 2)],
            spread[spread.len() - 1 - outside.min(spread.len() / 2)],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{HEAT_BUCKETS, heat_bucket};

    #[test]
    fn interpolated_quantiles_are_within_a_few_percent() {
        let mut heat = vec![0; HEAT_BUCKETS];
        let mut dice = fastrand::Rng::with_seed(5);
        let mut values: Vec<f64> = (0..20_000).map(|_| 100.0 * (dice.f64() * 3.0).exp()).collect();
        values.iter().for_each(|us| heat[heat_bucket((us * 1000.0) as u64)] += 1);
        values.sort_by(f64::total_cmp);
        for quantile in [0.1, 0.5, 0.9, 0.99] {
            let (exact, found) =
                (values[(20_000.0 * quantile) as usize], quantile_us(&heat, quantile).unwrap_or(0.0));
            assert!((found / exact - 1.0).abs() < 0.04, "p{quantile}: {found} for {exact}");
        }
        assert_eq!(quantile_us(&[0; HEAT_BUCKETS], 0.5), None);
    }
}
