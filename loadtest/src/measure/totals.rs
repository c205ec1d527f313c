//! A run as its measured phases add up.

use super::{Count, class_named};
use crate::result::{ChurnResult, ClassResult, Hist, IdleResult, RunResult};
use std::collections::BTreeMap;

/// A run as its measured phases add up.
pub struct Totals {
    pub all: ClassResult,
    pub classes: BTreeMap<String, ClassResult>,
    /// Idle WebSockets. Each attempt to open one counts as a request that was sent: well when it stayed open, failed when it
    /// did not open or was cut. In rates and times they are not.
    pub idle: Option<IdleResult>,
    /// Changes under load, of all phases.
    churn: Vec<ChurnResult>,
    /// How late requests left by the load generator's own doing.
    pub send_lag: Hist,
    /// Of the judged phases.
    pub duration_s: f64,
    /// What a search found: its rate.
    pub(super) found_rate: Option<f64>,
    /// CPU seconds of the proxy and the answers they were spent on, over the phases in which it was watched. What counts
    /// as an answer (echoes and events do) is the run's to say.
    proxy_cpu: Option<(f64, f64)>,
    calls: Option<CallTotals>,
    pub(super) memory_max_bytes: Option<u64>,
    /// Body bytes through the proxy: copied and spliced.
    moved: Option<(f64, f64)>,
    /// Requests, those of the warm-up too.
    ended_in_all: u64,
    pub(super) valid: bool,
}

/// Over the phases in which they were counted.
#[derive(Clone, Debug, Default)]
struct CallTotals {
    all: f64,
    enters: f64,
    /// The answers they were made for.
    requests: f64,
}

impl Totals {
    pub fn of(result: &RunResult) -> Self {
        let mut totals = Self {
            all: ClassResult::default(),
            classes: BTreeMap::new(),
            idle: None,
            churn: result.phases.iter().flat_map(|phase| phase.churn.iter().cloned()).collect(),
            send_lag: Hist::default(),
            duration_s: 0.0,
            found_rate: result.search.as_ref().and_then(|search| search.rate),
            proxy_cpu: None,
            calls: None,
            memory_max_bytes: None,
            moved: moved_bytes(result),
            ended_in_all: result.phases.iter().map(|phase| phase.total().ended()).sum(),
            valid: result.validity.valid,
        };
        for phase in result.judged() {
            totals.duration_s += phase.duration_s;
            totals.send_lag.merge(&phase.client.send_lag);
            if let Some(idle) = &phase.idle {
                totals.idle.get_or_insert_default().merge(idle);
            }
            for (name, class) in &phase.classes {
                totals.all.merge(class);
                totals.classes.entry(name.clone()).or_default().merge(class);
            }
            if let Some(proxy) = &phase.proxy {
                let (cpu_s, answers) = totals.proxy_cpu.get_or_insert((0.0, 0.0));
                *cpu_s += proxy.cpu_s;
                *answers += share(proxy.cpu_s * 1e6, proxy.cpu_us_per_request).unwrap_or(0.0);
                totals.memory_max_bytes = totals.memory_max_bytes.max(Some(proxy.memory_max_bytes));
                if let Some(used) = &proxy.calls {
                    let calls = totals.calls.get_or_insert_default();
                    calls.all += used.system_calls as f64;
                    calls.enters += used.ring_enters as f64;
                    calls.requests +=
                        share(used.system_calls as f64, used.system_calls_per_request).unwrap_or(0.0);
                }
            }
        }
        totals
    }

    /// The class that is meant by this name.
    pub fn class(&self, name: &str) -> Option<&ClassResult> {
        let names = self.class_names();
        self.classes.get(names[class_named(name, &names)?])
    }

    pub(crate) fn class_names(&self) -> Vec<&str> {
        self.classes.keys().map(String::as_str).collect()
    }

    /// Share of requests that did not end as they should, those never sent or never answered included. `None`:
    /// there were none.
    pub fn error_share(class: &ClassResult) -> Option<f64> {
        let bad = class.failed + class.unsent + class.unfinished;
        share(bad as f64, (class.ok + bad) as f64)
    }

    /// [`Self::error_share`] of all classes and of idle WebSockets together.
    pub fn errors(&self) -> Option<f64> {
        let count = |count: Count| count.of_all(self) as f64;
        let bad = count(Count::Failed) + count(Count::Unsent) + count(Count::Unfinished);
        share(bad, count(Count::Ok) + bad)
    }

    /// Requests and idle WebSockets of the kind.
    pub fn count(&self, count: Count) -> u64 {
        count.of_all(self)
    }

    /// Microseconds until changes were felt, or over: the longest. `None`: there was none, or one was not seen.
    pub(super) fn longest(&self, name: Option<&str>, recovery: bool) -> Option<f64> {
        // Where no effect is expected there is none to wait for.
        let of = |churn: &&ChurnResult| match name {
            Some(name) => same_name(name, &churn.name),
            None => !churn.unharmed && (!recovery || churn.recovery),
        };
        let mut longest = None;
        for churn in self.churn.iter().filter(of) {
            let ms = if recovery { churn.recovered_ms? } else { churn.effect_ms? };
            longest = Some(f64::max(longest.unwrap_or(0.0), ms * 1000.0));
        }
        longest
    }

    /// Microseconds of the proxy's CPU for one answer.
    pub fn cpu_us(&self) -> Option<f64> {
        let (cpu_s, answers) = self.proxy_cpu?;
        share(cpu_s * 1e6, answers)
    }

    /// The proxy's system calls for one answer.
    pub fn calls(&self) -> Option<f64> {
        self.calls.as_ref().and_then(|calls| share(calls.all, calls.requests))
    }

    /// Of them: `io_uring_enter`.
    pub fn enters(&self) -> Option<f64> {
        self.calls.as_ref().and_then(|calls| share(calls.enters, calls.requests))
    }

    pub fn memory_max_bytes(&self) -> Option<u64> {
        self.memory_max_bytes
    }

    /// Bytes the proxy copied through its memory and bytes it left in the kernel.
    pub fn moved(&self) -> Option<(f64, f64)> {
        self.moved
    }

    pub fn spliced_share(&self) -> Option<f64> {
        self.moved.and_then(|(copied, spliced)| share(spliced, copied + spliced))
    }

    /// Bytes the proxy copied for one request. Both are counted over the whole run, warming up included.
    pub fn copied_per_request(&self) -> Option<f64> {
        self.moved.and_then(|(copied, _)| share(copied, self.ended_in_all as f64))
    }
}

fn moved_bytes(result: &RunResult) -> Option<(f64, f64)> {
    let gained = result.server.as_ref()?.gained();
    let path = |label: &str| -> f64 {
        let of_path = |name: &&str| name.starts_with("preview_bytes_total{") && name.contains(label);
        // From 0, for the sum of nothing is -0.
        gained.iter().filter(|(name, _)| of_path(name)).fold(0.0, |sum, (_, bytes)| sum + bytes)
    };
    let (copied, spliced) = (path("path=\"copy\""), path("path=\"splice\""));
    (copied + spliced > 0.0).then_some((copied, spliced))
}

pub(super) fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// Names of changes are sentences: `Redis dies` is `redis-dies`, too.
pub(super) fn same_name(a: &str, b: &str) -> bool {
    let words = |name: &str| {
        let lower = name.to_lowercase();
        let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    words(a) == words(b)
}
