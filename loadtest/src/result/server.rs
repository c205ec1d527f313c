//! The proxy's own counters.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The proxy's `/metrics` page around and during the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerCounters {
    pub url: String,
    /// Names with labels as on the page; histograms' buckets are left out.
    pub before: BTreeMap<String, f64>,
    pub after: BTreeMap<String, f64>,
    /// Times in seconds since the run's start, with counters that moved; bounded like a timeline.
    pub samples: Vec<ServerSample>,
    /// Scrapes that failed, and why the last one did.
    pub failures: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerSample {
    pub at_s: f64,
    pub values: BTreeMap<String, f64>,
}

impl ServerCounters {
    /// What each counter gained, for those that moved; nothing if the page was not read before the load.
    pub fn gained(&self) -> BTreeMap<&str, f64> {
        if self.before.is_empty() {
            return BTreeMap::new();
        }
        let before = |name: &String| self.before.get(name).copied().unwrap_or(0.0);
        let moved = self.after.iter().map(|(name, after)| (name.as_str(), after - before(name)));
        moved.filter(|(_, gain)| *gain != 0.0).collect()
    }
}
