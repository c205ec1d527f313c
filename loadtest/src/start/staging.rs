//! What will be started, checked and with its addresses: the load is planned with these before anything runs.

use super::child::{Child, ChildSpec};
use super::port::ClaimedPort;
use super::stage::{Proxy, Stage};
use super::{BackendFlags, CommandLine, DOMAIN, StartArgs};
use crate::plan::Plan;
use crate::result::Started;
use crate::run::check_cpus;
use crate::run_args::TargetArgs;
use crate::scrape;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Longest wait for the backend, and for a metrics page beside a proxy that answers already.
const BACKEND_MAX: Duration = Duration::from_secs(30);
const METRICS_MAX: Duration = Duration::from_secs(1);
/// What the backend says when it listens; its settings stand before.
const BACKEND_LISTENS: &str = "API on ";
/// Settings only `--redis` or the command itself may set: one left in our environment would be measured, too.
const REDIS: &str = "REDIS_";

pub struct Staging {
    backend: BackendFlags,
    seed: u64,
    api: SocketAddr,
    proxies: Vec<Planned>,
    start_cpus: Vec<usize>,
    backend_cpus: Vec<usize>,
    timeout: Duration,
    _api_port: Option<ClaimedPort>,
}

struct Planned {
    command: CommandLine,
    port: ClaimedPort,
    metrics: ClaimedPort,
}

impl Staging {
    /// Chooses ports for the proxy of `--start` and those of `more`, and fills in where the load goes: URL and domain. `None`: nothing
    /// is to be started.
    ///
    /// # Errors
    /// A sentence: no port is free, or a CPU is not ours.
    pub fn new(target: &mut TargetArgs, more: &[CommandLine]) -> Result<Option<Self>, String> {
        let StartArgs { start, start_cpus, start_timeout, backend_args, backend_cpus } = target.start.clone();
        let Some(first) = start else { return Ok(None) };
        check_cpus("--start-cpus", &start_cpus)?;
        check_cpus("--backend-cpus", &backend_cpus)?;
        let port = || ClaimedPort::any().map_err(|error| format!("--start: {error}"));
        let mut proxies = Vec::new();
        for command in [&first].into_iter().chain(more) {
            proxies.push(Planned { command: command.clone(), port: port()?, metrics: port()? });
        }
        let backend = backend_args.unwrap_or_default();
        let api_port = if backend.args.api_port == 0 { Some(port()?) } else { None };
        let api = api_port.as_ref().map_or(backend.args.api_port, |port| port.number);
        target.url = Some(proxies[0].url());
        target.domain.get_or_insert_with(|| DOMAIN.into());
        Ok(Some(Self {
            api: SocketAddr::new(backend.args.listen, api),
            backend,
            seed: target.population(),
            proxies,
            start_cpus,
            backend_cpus,
            timeout: start_timeout.map_or(Duration::from_secs(30), |span| span.0),
            _api_port: api_port,
        }))
    }

    /// Address of the proxy that is target number so much.
    pub fn url(&self, target: usize) -> String {
        self.proxies[target].url()
    }

    /// The backend's API, for its levers.
    pub fn levers(&self) -> String {
        format!("http://{}", self.api)
    }

    /// The key that signs cookies.
    pub fn fill_in_key(&self, plan: &mut Plan) {
        plan.workload.proxy_key = Some(self.backend.args.proxy_key.clone());
    }

    /// Starts everything, in order; what runs already is ended on errors. To be called on the main thread. `stop` ends the wait, and
    /// is set when one of the processes ends. `tell` is told each of them.
    ///
    /// # Errors
    /// A sentence: what does not start or answer, with the last of what it said.
    pub fn start(self, stop: &Arc<AtomicBool>, tell: &mut dyn FnMut(&str)) -> Result<Stage, String> {
        let mut stage = Stage::default();
        let outcome = self.start_on(&mut stage, stop, tell);
        match (outcome, stage.failure()) {
            (Ok(()), None) => Ok(stage),
            // One that ended sets `stop`: it is the cause.
            (_, Some(failure)) => Err(failure.for_terminal()),
            (Err(error), None) => Err(error),
        }
    }

    fn start_on(
        self,
        stage: &mut Stage,
        stop: &Arc<AtomicBool>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        let backend = stage.backend.insert(self.start_backend(stop)?);
        let environment = backend
            .until("does not listen", BACKEND_MAX, stop, &mut |_| settings(&backend.output().text()))?;
        tell(&format!("started the backend, pid {}, API on {}", backend.pid(), self.api));
        for planned in self.proxies {
            let (port, metrics) = (planned.port.number, planned.metrics.number);
            let own = [("PROXY_PORT", port), ("METRICS_PORT", metrics)];
            let own = own.map(|(name, value)| (name.to_owned(), value.to_string()));
            let environment = [&environment[..], &own].concat();
            let spec = ChildSpec {
                name: format!("the proxy `{}`", planned.command.text),
                words: &planned.command.words,
                environment: &environment,
                withheld: Some(REDIS),
                cpus: &self.start_cpus,
                secret: &self.backend.args.proxy_key,
            };
            let child = Child::start(&spec, stop)?;
            stage.proxies.push(Proxy {
                child,
                metrics_url: None,
                started: Started {
                    proxy: planned.command.text,
                    proxy_cpus: self.start_cpus.clone(),
                    backend_args: self.backend.text.clone(),
                    backend_cpus: self.backend_cpus.clone(),
                },
                _ports: [planned.port, planned.metrics],
            });
            let proxy = stage.proxies.last_mut().expect("just pushed");
            proxy.await_answer(port, self.timeout, stop)?;
            proxy.metrics_url = metrics_page(&proxy.child, metrics, stop);
            let page = proxy.metrics_url.as_deref().unwrap_or("none");
            let (pid, command) = (proxy.child.pid(), &proxy.started.proxy);
            tell(&format!("started `{command}`, pid {pid}, on 127.0.0.1:{port}, metrics page: {page}"));
        }
        Ok(())
    }

    fn start_backend(&self, stop: &Arc<AtomicBool>) -> Result<Child, String> {
        let own = std::env::current_exe().map_err(|error| format!("loadtest's own program: {error}"))?;
        let mut words = vec![own.to_string_lossy().into_owned(), "backend".into()];
        words.extend(self.backend.words.iter().cloned());
        words.extend(["--seed".into(), self.seed.to_string(), "--env-file".into(), "/dev/stdout".into()]);
        if self.backend.args.api_port == 0 {
            words.extend(["--api-port".into(), self.api.port().to_string()]);
        }
        let spec = ChildSpec {
            name: "the backend".into(),
            words: &words,
            environment: &[],
            withheld: None,
            cpus: &self.backend_cpus,
            secret: &self.backend.args.proxy_key,
        };
        Child::start(&spec, stop)
    }
}

impl Planned {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number)
    }
}

/// What the backend printed for the proxy, once it has printed all of it.
fn settings(said: &str) -> Option<Vec<(String, String)>> {
    let (settings, _) = said.split_once(BACKEND_LISTENS)?;
    let pairs = settings.lines().filter_map(|line| line.split_once('='));
    Some(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The page's URL if there is one with metrics on it.
fn metrics_page(proxy: &Child, port: u16, stop: &AtomicBool) -> Option<String> {
    let authority = format!("127.0.0.1:{port}");
    // The port may be listened on a little later than the other.
    let answer = proxy.until("", METRICS_MAX, stop, &mut |left| {
        scrape::get_within(&authority, "/metrics", left, stop).ok()
    });
    let (status, page) = answer.ok()?;
    let is_page = status == 200 && scrape::holds_metrics(&page);
    is_page.then(|| format!("http://{authority}/metrics"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_when_all_of_them_are_there() {
        assert_eq!(settings("A=1\nB=x=y\n"), None);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let text = "A=1\nB=x=y\nAPI on 127.0.0.1:1, runner\n    export A=1\n";
        assert_eq!(settings(text), Some(vec![pair("A", "1"), pair("B", "x=y")]));
    }
}
