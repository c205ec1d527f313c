//! The steps of a search for the highest rate.

use serde::{Deserialize, Serialize};

/// A search for the highest rate within a bound; each step is a phase of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    pub bound: String,
    /// The highest rate that held; `None`: not even the lowest did, or was tried to its end.
    pub rate: Option<f64>,
    pub steps: Vec<SearchStep>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// Name of the phase.
    pub phase: String,
    pub rate: f64,
    /// Requests per second that ended.
    pub achieved: f64,
    pub p99_us: f64,
    pub error_share: f64,
    pub held: bool,
    /// The load generator was the limit: says nothing about the proxy.
    pub invalid: bool,
    /// Ended before its time: neither held nor failed to.
    #[serde(default)]
    pub partial: bool,
}

impl Search {
    /// What the search came to where it has no rate.
    pub fn nothing_held(&self) -> &'static str {
        match self.steps.iter().any(|step| !step.partial) {
            true => "not even the lowest held",
            false => "ended before the lowest was tried",
        }
    }

    /// Which step is the one with the highest rate that held. Steps are the run's measured phases, in their order.
    pub(super) fn found(&self) -> Option<usize> {
        let held = self.steps.iter().enumerate().filter(|(_, step)| step.held);
        held.max_by(|(_, a), (_, b)| a.rate.total_cmp(&b.rate)).map(|(step, _)| step)
    }
}
