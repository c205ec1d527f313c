//! Changes under load, numbered: the number at a line in the charts is the one in the table.

use crate::result::{ChurnResult, PhaseResult, RunResult};

/// Most in a table and in the charts.
pub const CHANGES_MAX: usize = 200;

pub struct Change<'a> {
    /// From 1, those that were not made included.
    pub number: usize,
    pub phase: &'a PhaseResult,
    pub churn: &'a ChurnResult,
}

impl Change<'_> {
    /// Since the run's start.
    pub fn at_s(&self) -> f64 {
        self.phase.start_s + self.churn.at_s
    }
}

/// In the order of the table.
pub fn changes(result: &RunResult) -> impl Iterator<Item = Change<'_>> {
    let all = result.phases.iter().flat_map(|phase| phase.churn.iter().map(move |churn| (phase, churn)));
    all.enumerate().map(|(n, (phase, churn))| Change { number: n + 1, phase, churn })
}
