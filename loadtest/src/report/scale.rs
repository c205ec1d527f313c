//! Axes: where a value lies and where the ticks are. Pure.

use crate::measure::{bytes_text, number_text, time_text};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Linear,
    /// Equal steps are equal factors.
    Log,
    /// The value is the number of nines, `-log10(1 - quantile)`.
    Nines,
}

/// What the ticks' numbers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbers {
    /// Seconds since the start.
    Clock,
    /// Microseconds.
    Time,
    Plain,
    Percent,
    Bytes,
    Quantile,
}

/// One axis.
#[derive(Clone, Debug)]
pub struct Scale {
    pub from: f64,
    pub to: f64,
    shape: Shape,
    numbers: Numbers,
}

impl Scale {
    /// From 0 to a round number at or above `most`.
    pub fn up_to(most: f64, numbers: Numbers) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let step = step(most, 5.0, numbers);
        Self { from: 0.0, to: (most / step).ceil() * step, shape: Shape::Linear, numbers }
    }

    /// Exactly from 0 to `end` seconds.
    pub fn clock(end: f64) -> Self {
        Self { from: 0.0, to: end.max(1.0), shape: Shape::Linear, numbers: Numbers::Clock }
    }

    /// Microseconds on a logarithmic scale that holds both values with a little room, of a wide range a share of it; up to a
    /// label above the highest where there is one near.
    pub fn log_time(least_us: f64, most_us: f64) -> Self {
        let least = if least_us.is_finite() && least_us > 0.0 { least_us } else { 1.0 };
        let range = (most_us / least).max(1.0);
        let from = least / range.powf(0.04).max(1.25);
        let ticks = Self::log_span(from, most_us * range.powf(0.16).max(1.25)).ticks();
        let label = ticks.into_iter().find(|tick| *tick > most_us).unwrap_or(most_us);
        Self::log_span(from, label.max(most_us * range.powf(0.08).max(1.25)))
    }

    /// Microseconds on a logarithmic scale from one to the other, or farther both ways where that is next to nothing.
    fn log_span(from_us: f64, to_us: f64) -> Self {
        let wider = (4.0 * from_us / to_us).sqrt().max(1.0);
        Self { from: from_us / wider, to: to_us * wider, shape: Shape::Log, numbers: Numbers::Time }
    }

    /// Quantiles up to so many nines.
    pub fn nines(most: f64) -> Self {
        Self { from: 0.0, to: most.clamp(1.0, 7.0), shape: Shape::Nines, numbers: Numbers::Quantile }
    }

    /// The pixel of a value; values beyond the ends are at the ends.
    pub fn place(&self, value: f64, (start, end): (i32, i32)) -> i32 {
        let share = match self.shape {
            Shape::Linear | Shape::Nines => (value - self.from) / (self.to - self.from),
            Shape::Log => (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln(),
        };
        start + (share.clamp(0.0, 1.0) * f64::from(end - start)).round() as i32
    }

    fn ticks(&self) -> Vec<f64> {
        match self.shape {
            Shape::Linear => {
                let parts = if self.numbers == Numbers::Clock { 10.0 } else { 5.0 };
                let step = step(self.to - self.from, parts, self.numbers);
                (0..=20)
                    .map(|n| self.from + f64::from(n) * step)
                    .take_while(|at| *at <= self.to * 1.0001)
                    .collect()
            }
            Shape::Nines => (0..=self.to as i32).map(f64::from).collect(),
            Shape::Log => {
                let decades = (self.to / self.from).log10();
                // As many as a chart's height has room for.
                let within: &[f64] = match decades {
                    _ if decades < 1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
                    _ if decades < 4.0 => &[1.0, 2.0, 5.0],
                    _ if decades < 6.0 => &[1.0, 3.0],
                    _ => &[1.0],
                };
                let first = self.from.log10().floor() as i32;
                let all = (first..=first + decades as i32 + 1)
                    .flat_map(|decade| within.iter().map(move |factor| factor * 10f64.powi(decade)));
                all.filter(|at| (self.from..=self.to).contains(at)).collect()
            }
        }
    }

    fn text(&self, value: f64) -> String {
        match self.numbers {
            Numbers::Clock => clock_text(value),
            // A tick at 100 s is no round number of minutes.
            Numbers::Time if self.shape == Shape::Log && value >= 6e7 => {
                format!("{} s", number_text((value / 1e6).round()))
            }
            Numbers::Time if self.shape == Shape::Log => trimmed(&time_text(value * (1.0 + 1e-12))),
            Numbers::Time => trimmed(&time_text(value)),
            Numbers::Plain => number_text(value),
            Numbers::Percent => format!("{}%", number_text(value)),
            Numbers::Bytes => trimmed(&bytes_text(value)),
            Numbers::Quantile => quantile_text(value),
        }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.place(*value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, value: &f64) -> String {
        self.text(*value)
    }
}

/// A round step, so that about `parts` of them make `span`.
fn step(span: f64, parts: f64, numbers: Numbers) -> f64 {
    let rough = span / parts;
    if numbers == Numbers::Clock && rough > 10.0 {
        const ROUND: [f64; 10] = [15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0];
        return ROUND.into_iter().find(|step| *step >= rough).unwrap_or((rough / 3600.0).ceil() * 3600.0);
    }
    if numbers == Numbers::Bytes && rough > 1.0 {
        return 2f64.powf(rough.log2().ceil());
    }
    let decade = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(decade * 10.0);
    // Half a second or half a request is no tick.
    if matches!(numbers, Numbers::Clock) { step.max(1.0) } else { step }
}

/// `30s`, `2m`, `1h 30m`.
fn clock_text(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m {s}s"),
        (h, 0, 0) => format!("{h}h"),
        (h, m, _) => format!("{h}h {m}m"),
    }
}

fn quantile_text(nines: f64) -> String {
    match nines.round() as usize {
        0 => "0%".into(),
        1 => "90%".into(),
        2 => "99%".into(),
        n => format!("99.{}%", "9".repeat(n - 2)),
    }
}

/// `10.0 µs` as `10 µs`: ticks are round.
fn trimmed(text: &str) -> String {
    let Some((number, unit)) = text.split_once(' ') else { return text.into() };
    let number =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|tick| scale.text(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_few_whatever_the_range() {
        for exponent in -2..12 {
            for factor in [1.0, 1.7, 3.3, 9.9] {
                let most = factor * 10f64.powi(exponent);
                for numbers in [Numbers::Plain, Numbers::Bytes, Numbers::Time, Numbers::Percent] {
                    let scale = Scale::up_to(most, numbers);
                    let ticks = scale.ticks();
                    assert!((2..=8).contains(&ticks.len()), "{most} {numbers:?}: {ticks:?}");
                    assert!(scale.to >= most && scale.to <= most * 2.5, "{most} {numbers:?}: {}", scale.to);
                }
                let ticks = Scale::clock(most).ticks();
                assert!((2..=12).contains(&ticks.len()), "{most} s: {ticks:?}");
            }
        }
        assert_eq!(
            labels(&Scale::up_to(4200.0, Numbers::Plain)),
            ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
        );
        assert_eq!(labels(&Scale::clock(600.0))[..3], ["0s", "1m", "2m"]);
        assert_eq!(labels(&Scale::nines(4.0)), ["0%", "90%", "99%", "99.9%", "99.99%"]);
        assert_eq!(
            labels(&Scale::log_time(100.0, 3000.0)),
            ["100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms"]
        );
        assert_eq!(
            labels(&Scale::log_time(10.0, 2e5)),
            ["10 µs", "30 µs", "100 µs", "300 µs", "1 ms", "3 ms", "10 ms", "30 ms", "100 ms", "300 ms"]
        );
        assert_eq!(labels(&Scale::log_time(1.0, 5e7)).last().map(String::as_str), Some("100 s"));
    }

    #[test]
    fn a_logarithmic_axis_has_room_above_and_labels_that_do_not_touch() {
        for least in [0.7, 95.0, 4400.0] {
            for range in [1.0, 1.5, 20.0, 900.0, 5e4, 2e6, 1e8] {
                let scale = Scale::log_time(least, least * range);
                let top = scale.place(least * range, (0, 1000));
                assert!((500..=950).contains(&top), "{least} x {range}: the highest is at {top} of 1000");
                let ticks = scale.ticks();
                assert!((3..=13).contains(&ticks.len()), "{least} x {range}: {ticks:?}");
                let places: Vec<i32> = ticks.iter().map(|tick| scale.place(*tick, (0, 1000))).collect();
                let close = places.windows(2).map(|pair| pair[1] - pair[0]).min();
                assert!(close >= Some(60), "{least} x {range}: {places:?}");
            }
        }
    }

    #[test]
    fn values_lie_in_order_and_inside() {
        for scale in [Scale::up_to(10.0, Numbers::Plain), Scale::log_time(1.0, 100.0), Scale::nines(3.0)] {
            let places: Vec<i32> = (-5..200).map(|n| scale.place(f64::from(n), (0, 1000))).collect();
            assert!(places.is_sorted() && places.iter().all(|place| (0..=1000).contains(place)));
            assert_eq!((scale.place(scale.from, (0, 1000)), scale.place(scale.to, (0, 1000))), (0, 1000));
        }
    }
}
