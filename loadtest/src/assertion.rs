//! Thresholds: `p99<5ms,err<0.1%,cpu_us<20` against a result. Pure.
//!
//! A threshold on something the run does not know does not hold: a gate must not open because a figure is missing.

use crate::measure::{Measure, Totals, Unit, Watched, What, no_class};
use crate::plan::Plan;
use crate::result::{Assertion, RunResult};
use std::fmt;
use std::str::FromStr;

/// The process's exit code when a threshold does not hold, as k6 has it.
pub const EXIT_CODE: u8 = 99;

/// One threshold: a measure, a relation and a bound.
#[derive(Clone, PartialEq, Debug)]
pub struct Threshold {
    text: String,
    measure: Measure,
    relation: Relation,
    /// In the base of the measure's unit.
    bound: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// A list of thresholds, as it stands on the command line.
#[derive(Clone, PartialEq, Debug)]
pub struct Thresholds(pub Vec<Threshold>);

impl FromStr for Thresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<_>, _>>().map(Self)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a threshold is empty; write them like p99<5ms,err<0.1%".into());
        }
        if text == "valid" {
            let measure = Measure::of_all(What::Valid);
            return Ok(Self { text: text.into(), measure, relation: Relation::AtLeast, bound: 1.0 });
        }
        let Some(at) = text.find(['<', '>', '=', '!']) else {
            return Err(format!("`{text}` compares nothing; write it like p99<5ms with <, <=, > or >="));
        };
        let (name, rest) = text.split_at(at);
        let length = rest.len() - rest.trim_start_matches(['<', '>', '=', '!']).len();
        let (sign, bound) = rest.split_at(length);
        let relation = match sign {
            "<" => Relation::Below,
            "<=" => Relation::AtMost,
            ">" => Relation::Above,
            ">=" => Relation::AtLeast,
            _ => return Err(format!("`{text}`: `{sign}` is none of <, <=, > and >=")),
        };
        let measure = Measure::parse(name.trim()).map_err(|why| format!("`{text}`: {why}"))?;
        if measure.what == What::Valid {
            return Err(format!("`{text}`: write `valid` alone"));
        }
        let bound = parse_bound(&measure, bound.trim()).map_err(|why| format!("`{text}`: {why}"))?;
        Ok(Self { text: text.into(), measure, relation, bound })
    }
}

impl Threshold {
    pub fn check(&self, totals: &Totals) -> Assertion {
        let found = self.measure.value(totals);
        let holds = found.is_some_and(|found| match self.relation {
            Relation::Below => found < self.bound,
            Relation::AtMost => found <= self.bound,
            Relation::Above => found > self.bound,
            Relation::AtLeast => found >= self.bound,
        });
        let found = match (&self.measure.what, found) {
            (What::Valid, Some(valid)) => String::from(if valid > 0.0 { "valid" } else { "not valid" }),
            (_, Some(found)) => self.measure.unit().text(found),
            (_, None) => match &self.measure.class {
                Some(class) if totals.class(class).is_none() => no_class(class, &totals.class_names()),
                _ => "not measured".into(),
            },
        };
        Assertion { text: self.text.clone(), found, holds }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a run of this plan, so observed, can know what the thresholds are on: they would not hold, whatever the target does.
///
/// # Errors
/// A line for each of which it cannot.
pub fn foresee<'a>(
    lists: impl IntoIterator<Item = &'a Thresholds>,
    plan: &Plan,
    watched: &Watched,
) -> Result<(), String> {
    let thresholds = lists.into_iter().flat_map(|list| &list.0);
    let mistakes: Vec<String> = thresholds
        .filter_map(|threshold| {
            let why = threshold.measure.foresee(plan, watched).err()?;
            Some(format!("threshold `{threshold}`: {why}"))
        })
        .collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("\n")) }
}

/// Checks all thresholds and writes what was found into the result. Whether all hold.
pub fn check(result: &mut RunResult, thresholds: &[Threshold]) -> bool {
    let totals = Totals::of(result);
    let nothing_held = result.search.as_ref().is_some_and(|search| search.rate.is_none());
    result.assertions.extend(thresholds.iter().map(|threshold| match nothing_held {
        // Counts of nothing would be 0, and below any bound.
        true if threshold.measure.what != What::Valid => {
            Assertion { text: threshold.text.clone(), found: "no rate held".into(), holds: false }
        }
        _ => threshold.check(&totals),
    }));
    result.assertions.iter().all(|assertion| assertion.holds)
}

/// One line per assertion, for a terminal.
pub fn lines(assertions: &[Assertion]) -> String {
    let width = assertions.iter().map(|assertion| assertion.text.chars().count()).max().unwrap_or(0);
    let line = |assertion: &Assertion| {
        let word = if assertion.holds { "ok  " } else { "FAIL" };
        format!("{word}  {:width$}  found {}\n", assertion.text, assertion.found)
    };
    assertions.iter().map(line).collect()
}

fn parse_bound(measure: &Measure, text: &str) -> Result<f64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no number with a unit"))?;
    let unit = unit.trim();
    let wrong = |wanted: &str| Err(format!("`{text}`: {wanted}"));
    let factor = match (measure.unit(), unit) {
        (Unit::Time, "ns") => 1e-3,
        (Unit::Time, "us" | "µs") => 1.0,
        (Unit::Time, "ms") => 1e3,
        (Unit::Time, "s") => 1e6,
        (Unit::Time, "m" | "min") => 6e7,
        // The name says the unit.
        (Unit::Time, "") if measure.what == What::Cpu => 1.0,
        (Unit::Time, "") => return wrong("a time needs a unit: ns, us, ms, s or m"),
        (Unit::Time, _) => return wrong("units of time are ns, us, ms, s and m"),
        (Unit::Share, "%") if number <= 100.0 => 0.01,
        (Unit::Share, "") if number < 1.0 => 1.0,
        (Unit::Share, "") if number == 1.0 => return wrong("is it 1% or 100%? write it with its sign"),
        (Unit::Share, _) => return wrong("a share is written like 0.1% or 0.001 and is at most 100%"),
        (Unit::PerSecond, "" | "/s") => 1.0,
        (Unit::PerSecond, "k" | "k/s") => 1e3,
        (Unit::PerSecond, _) => return wrong("a rate is written like 5000 or 5k, per second"),
        (Unit::Bytes, "" | "B") => 1.0,
        (Unit::Bytes, "k" | "KiB") => 1024.0,
        (Unit::Bytes, "M" | "MiB") => 1024.0 * 1024.0,
        (Unit::Bytes, "G" | "GiB") => 1024.0 * 1024.0 * 1024.0,
        (Unit::Bytes, _) => return wrong("units of size are B, KiB, MiB and GiB"),
        (Unit::Count, "") => 1.0,
        (Unit::Count, _) => return wrong("a count has no unit"),
    };
    Ok(number * factor)
}

#[cfg(test)]
mod tests;
