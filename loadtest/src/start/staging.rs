//! What will be started, checked and with its addresses: the load is planned with these before anything runs.

use super::child::{Child, ChildSpec};
use super::port::ClaimedPort;
use super::stage::{Proxy, Stage};
use super::{BackendFlags, CommandLine, DOMAIN, StartArgs};
use crate::backend::BackendArgs;
use crate::plan::Plan;
use crate::result::Started;
use crate::run::check_cpus;
use crate::run_args::TargetArgs;
use crate::scrape;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
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
    _backend_ports: Vec<ClaimedPort>,
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
    /// A sentence: no port is free, one that was asked for is taken, or a CPU is not ours.
    pub fn new(target: &mut TargetArgs, more: &[CommandLine]) -> Result<Option<Self>, String> {
        let StartArgs { start, start_cpus, start_timeout, backend_args, backend_cpus } = target.start.clone();
        let Some(first) = start else { return Ok(None) };
        check_cpus("--start-cpus", &start_cpus)?;
        check_cpus("--backend-cpus", &backend_cpus)?;
        let backend = backend_args.unwrap_or_default();
        // Before the others, which are chosen.
        let mut backend_ports = claim_given(&backend.args)?;
        let port = || ClaimedPort::any().map_err(|error| format!("--start: {error}"));
        let mut proxies = Vec::new();
        for command in [&first].into_iter().chain(more) {
            proxies.push(Planned { command: command.clone(), port: port()?, metrics: port()? });
        }
        let mut api = backend.args.api_port;
        if api == 0 {
            let chosen = port()?;
            api = chosen.number;
            backend_ports.push(chosen);
        }
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
            _backend_ports: backend_ports,
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

/// The ports that the backend's flags name, so that nobody is given them before it listens.
///
/// # Errors
/// A sentence: one is another loadtest's, or cannot be listened on.
fn claim_given(args: &BackendArgs) -> Result<Vec<ClaimedPort>, String> {
    let (own, runners) = ([args.listen], args.runner_ips());
    let given = [
        ("--api-port", args.api_port, &own[..]),
        ("--runner-port", args.runner_port, &runners),
        ("--redis-port", args.redis_port, &own),
    ];
    let mut claimed: Vec<ClaimedPort> = Vec::new();
    // Kept to the end, so that two flags do not name the same port of one address.
    let mut listeners = Vec::new();
    for (flag, port, addresses) in given.into_iter().filter(|(_, port, _)| *port != 0) {
        let refused = |why: &dyn Display| {
            format!(
                "--backend-args: {flag} {port}: {why}: give another port, or leave out {flag}, and one that is free is chosen"
            )
        };
        if claimed.iter().all(|other| other.number != port) {
            let claim = ClaimedPort::claim(port).map_err(|error| refused(&error))?;
            if claim.is_none() && !args.share_ports {
                return Err(refused(&"another loadtest that runs has this port"));
            }
            claimed.extend(claim);
        }
        // Who shares them listens beside others.
        for address in addresses.iter().filter(|_| !args.share_ports) {
            let address = SocketAddr::new(*address, port);
            let cannot = |error| refused(&format!("cannot listen on {address}: {error}"));
            listeners.push(TcpListener::bind(address).map_err(cannot)?);
        }
    }
    Ok(claimed)
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
    fn a_port_the_backend_s_flags_name_is_claimed_or_refused_with_what_to_do() {
        let claim = |flags: &str| claim_given(&flags.parse::<BackendFlags>().expect("flags").args);
        // Those that nobody is given, by us or by the kernel.
        let a = fastrand::u16(20_000..30_000);
        let (b, other) = (a + 1, ClaimedPort::any().expect("a port"));
        let ports = format!("--api-port {a} --runner-port {b} --runner-addresses 127.0.0.2-127.0.0.3");
        let claimed = claim(&ports).expect("free");
        assert_eq!(claimed.iter().map(|port| port.number).collect::<Vec<_>>(), [a, b]);
        for (flags, flag, port) in [
            (ports.clone(), "--api-port", a),
            (format!("--runner-port {}", other.number), "--runner-port", other.number),
            (format!("--redis x:1 --redis-port {b}"), "--redis-port", b),
        ] {
            let error = claim(&flags).err().expect("claimed");
            let what = format!("--backend-args: {flag} {port}: another loadtest ");
            assert!(error.starts_with(&what) && error.contains(&format!("leave out {flag},")), "{error}");
        }
        // Those who share them are told by their flag that others are there.
        assert!(claim(&format!("{ports} --share-ports")).is_ok_and(|claimed| claimed.is_empty()));
        drop(claimed);

        let taken = TcpListener::bind(("127.0.0.2", b)).expect("free");
        let error = claim(&ports).err().expect("somebody listens");
        let what = format!("--backend-args: --runner-port {b}: cannot listen on 127.0.0.2:{b}: ");
        assert!(error.starts_with(&what), "{error}");
        drop(taken);

        assert!(claim(&format!("--api-port {a} --runner-port {a} --runner-addresses 127.0.0.2")).is_ok());
        let error = claim(&format!("--api-port {a} --runner-port {a}")).err().expect("one port, one address");
        assert!(error.contains(&format!("--runner-port {a}: cannot listen on 127.0.0.1:{a}")), "{error}");
    }

    #[test]
    fn settings_are_read_when_all_of_them_are_there() {
        assert_eq!(settings("A=1\nB=x=y\n"), None);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let text = "A=1\nB=x=y\nAPI on 127.0.0.1:1, runner\n    export A=1\n";
        assert_eq!(settings(text), Some(vec![pair("A", "1"), pair("B", "x=y")]));
    }
}
