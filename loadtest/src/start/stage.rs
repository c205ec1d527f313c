//! What runs for a load: a backend and the proxies before it.

use super::child::{Child, Failure};
use super::port::ClaimedPort;
use crate::host::ProxySource;
use crate::result::{Reason, RunResult, Started, Validity};
use crate::run::Observation;
use crate::run_args::ObserveArgs;
use crate::scrape;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Code of the reason that what was started ended by itself.
const ENDED: &str = "process_ended";

/// Processes that end, the last one first, when this is dropped. The default: none, the targets are there already.
#[derive(Default)]
pub struct Stage {
    pub(super) proxies: Vec<Proxy>,
    pub(super) backend: Option<Child>,
}

pub(super) struct Proxy {
    pub child: Child,
    pub metrics_url: Option<String>,
    pub started: Started,
    pub _ports: [ClaimedPort; 2],
}

impl Proxy {
    /// Any answer will do: what it answers the load is what will be measured.
    pub fn await_answer(&self, port: u16, most: Duration, stop: &AtomicBool) -> Result<(), String> {
        let authority = format!("127.0.0.1:{port}");
        let missing = format!("does not answer on PROXY_PORT, {authority},");
        self.child.until(&missing, most, stop, &mut |left| {
            scrape::get_within(&authority, "/health", left, stop).ok().map(drop)
        })
    }
}

impl Stage {
    /// What to watch while this target is under load; `given` where it was not started here.
    pub fn observation(&self, target: usize, given: &ObserveArgs) -> Observation {
        match self.proxies.get(target) {
            None => given.observation(),
            Some(proxy) => Observation {
                proxy: Some(ProxySource::Pid(proxy.child.pid().as_raw_pid() as u32)),
                count_calls: given.count_calls,
                metrics_url: proxy.metrics_url.clone(),
            },
        }
    }

    /// A run of the target with what became of the processes. One of its own that has ended makes the result not valid, or is what
    /// the error was about; the end of another target's proxy is why it is partial.
    pub fn settle(&self, target: usize, outcome: Result<RunResult, String>) -> Result<RunResult, String> {
        let own = self.failure_of(target);
        let mut result = outcome.map_err(|error| own.as_ref().map_or(error, Failure::for_terminal))?;
        result.meta.started = self.proxies.get(target).map(|proxy| proxy.started.clone());
        let fatal = own.is_some();
        let failure = own.or_else(|| self.failure().filter(|_| result.meta.partial));
        let failure = failure.map(|failure| Reason { code: ENDED.into(), message: failure.how, fatal });
        result.validity = Validity::of(failure.into_iter().chain(result.validity.reasons).collect());
        Ok(result)
    }

    /// That one of them has ended, whichever.
    pub fn failure(&self) -> Option<Failure> {
        self.children().find_map(Child::failure)
    }

    /// That this target's proxy has ended, or the backend.
    fn failure_of(&self, target: usize) -> Option<Failure> {
        let own = self.proxies.get(target).map(|proxy| &proxy.child);
        own.into_iter().chain(&self.backend).find_map(Child::failure)
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        self.proxies.iter().map(|proxy| &proxy.child).chain(&self.backend)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        while self.proxies.pop().is_some() {}
        self.backend = None;
    }
}
