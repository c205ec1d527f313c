//! The flags that describe a load, and the plan they make.

use crate::assertion::Thresholds;
use crate::find_max::Bound;
use crate::har::{Recording, Recordings};
use crate::host::ProxySource;
use crate::plan::{Class, Client, Idle, Load, Phase, Plan, Target, Workload};
use crate::population::AuthKind;
use crate::quantity::{self, Span};
use crate::report::Outputs;
use crate::run::{Agents, Observation};
use crate::scenario::{ClientSetting, Scenario, Setting};
use crate::start::{CommandLine, Staging, StartArgs};
use clap::Args;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the load goes.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// The proxy: http://host:port, or https
    #[arg(required_unless_present = "start", conflicts_with = "start")]
    pub url: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
    /// Preview domain: requests go to {port}-{sandbox}.DOMAIN; without it to the URL's own host, as for any server [default with
    /// --start: preview.test]
    #[arg(long, help_heading = "Target")]
    pub domain: Option<String>,
    /// HTTP/2: by ALPN over TLS, with prior knowledge in the clear
    #[arg(long, help_heading = "Target")]
    pub http2: bool,
    /// Trust the certificates in this PEM file instead of the web's
    #[arg(long, value_name = "FILE", conflicts_with = "start", help_heading = "Target")]
    pub ca: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long, conflicts_with_all = ["ca", "start"], help_heading = "Target")]
    pub insecure: bool,
    /// Seed of the population: the backend's [default: 1]
    #[arg(long, help_heading = "Target")]
    population: Option<u64>,
    /// File with the proxy's API key, which signs cookies; needed for `--auth cookie`
    #[arg(long, value_name = "FILE", conflicts_with = "start", help_heading = "Target")]
    pub proxy_key_file: Option<PathBuf>,
}

impl TargetArgs {
    pub fn target(&self) -> Target {
        Target {
            url: self.url.clone().unwrap_or_default(),
            domain: self.domain.clone(),
            http2: self.http2,
            ca: self.ca.clone(),
            insecure: self.insecure,
        }
    }

    /// What a run against it is called: what was started, or the URL.
    fn name(&self) -> String {
        let started = self.start.start.as_ref().map(|command| command.text.clone());
        started.or(self.url.clone()).unwrap_or_default()
    }

    pub fn population(&self) -> u64 {
        self.population.unwrap_or(Workload::default().population)
    }

    /// `Err` names flags that mean nothing for this target.
    fn check(&self) -> Result<(), String> {
        self.start.check()?;
        if self.domain.is_none() {
            let key = self.proxy_key_file.is_some();
            vain("--domain", &[("--population", self.population.is_some()), ("--proxy-key-file", key)])?;
        }
        if self.url.as_ref().is_some_and(|url| url.starts_with("http://")) {
            vain("an https:// URL", &[("--ca", self.ca.is_some()), ("--insecure", self.insecure)])?;
        }
        Ok(())
    }

    pub fn proxy_key(&self) -> Result<Option<String>, String> {
        self.proxy_key_file.as_deref().map(read_key).transpose()
    }
}

/// Refuses flags that were given where what gives them a meaning was not: what they ask for would silently not be done.
pub fn vain(missing: &str, flags: &[(&str, bool)]) -> Result<(), String> {
    let given: Vec<&str> = flags.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match given.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "without {missing} there is no meaning in {}: add the one or leave out the other",
            given.join(", ")
        )),
    }
}

/// A key out of a file: keys on the command line are seen by everybody.
pub fn read_key(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match text.trim() {
        "" => Err(format!("{}: empty", file.display())),
        key => Ok(key.to_owned()),
    }
}

/// The load generator itself.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Threads [default: half of the CPUs]
    #[arg(long, short, help_heading = "Load generator")]
    pub threads: Option<u32>,
    /// CPUs to pin the threads to: 0,2
    #[arg(long, value_delimiter = ',', help_heading = "Load generator")]
    pub cpus: Vec<usize>,
    /// Source addresses in turn, one for each 10,000 connections or so: 127.0.0.2-127.0.0.9 or a list
    #[arg(long, value_parser = sources, help_heading = "Load generator")]
    pub sources: Option<Sources>,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 1, help_heading = "Load generator")]
    pub seed: u64,
    /// The result is not valid if the load generator itself sends later than this (p99) [default: 2ms, or at p50, p90 and p99
    /// a tenth of the fastest class's response time there, where that is more]
    #[arg(long, help_heading = "Load generator")]
    pub lag_max: Option<Span>,
    /// Agents that make the load instead of this process: host:port,... (see `loadtest agent`)
    #[arg(
        long,
        value_delimiter = ',',
        requires = "agent_key_file",
        conflicts_with = "start",
        help_heading = "Load generator"
    )]
    pub agents: Vec<String>,
    /// File with the key the agents know
    #[arg(long, value_name = "FILE", requires = "agents", help_heading = "Load generator")]
    pub agent_key_file: Option<PathBuf>,
}

impl ClientArgs {
    pub fn setting(&self) -> ClientSetting {
        ClientSetting {
            threads: self.threads,
            cpus: self.cpus.clone(),
            sources: self.sources.clone().map(|sources| sources.0).unwrap_or_default(),
            seed: self.seed,
            lag_max: self.lag_max,
        }
    }

    /// Agents with their key, if there are any.
    pub fn agents(&self) -> Result<Option<Agents>, String> {
        match &self.agent_key_file {
            Some(file) if !self.agents.is_empty() => {
                Ok(Some(Agents { names: self.agents.clone(), key: read_key(file)? }))
            }
            _ => Ok(None),
        }
    }
}

/// Sandboxes, credentials, classes: one load, however it is used.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// How many sandboxes there are: 500, 100k, 1M [default: 100]; this group needs --domain
    #[arg(long, value_parser = quantity::count, help_heading = "Sandboxes")]
    pub sandboxes: Option<u64>,
    /// Exponent of their popularity; 0: all alike [default: 1.1]
    #[arg(long, help_heading = "Sandboxes")]
    pub zipf: Option<f64>,
    /// Apps' ports, equally often [default: 3000]
    #[arg(long, value_delimiter = ',', help_heading = "Sandboxes")]
    pub ports: Option<Vec<u16>>,
    /// Credentials by weight: public, token, bearer, query, cookie, signed [default: public]
    #[arg(long, value_parser = auth, help_heading = "Sandboxes")]
    pub auth: Option<Auth>,
    /// Share of requests whose credential opens nothing and must be refused
    #[arg(long, value_parser = quantity::share, default_value = "0", help_heading = "Sandboxes")]
    pub bad_token: f64,
    /// Share of requests to sandboxes no cache has seen
    #[arg(long, value_parser = quantity::share, default_value = "0", help_heading = "Sandboxes")]
    pub cold: f64,
    /// Share of requests in the form /toolbox/{sandbox}/...
    #[arg(long, value_parser = quantity::share, default_value = "0", help_heading = "Sandboxes")]
    pub toolbox: f64,

    /// Classes of requests by weight: get:1k, upload:64k, exec:500ms, sse:10x100ms, ws:10x32 (or ws:10x32@50ms: sent as planned), page:20x8k, path:/x,
    /// har:recording.har (replayed)
    /// [default: get:1k, without --domain the URL's path]
    #[arg(long, value_parser = mix, help_heading = "Load")]
    pub mix: Option<Mix>,
    /// Share of requests on a connection of their own
    #[arg(long, value_parser = quantity::share, default_value = "0", help_heading = "Load")]
    pub fresh: f64,
    /// Kept connections; each carries a request at a time (HTTP/2: --streams)
    #[arg(long, short, value_parser = quantity::count32, default_value = "64", help_heading = "Load")]
    pub connections: u32,
    /// Requests at a time on an HTTP/2 connection [default: 32]
    #[arg(long, help_heading = "Load")]
    pub streams: Option<u32>,
    /// Most WebSockets, event streams, page loads and recordings at a time; a page or a recording has six connections
    #[arg(long, value_parser = quantity::count32, default_value = "10k", help_heading = "Load")]
    pub sessions_max: u32,
    /// Random intervals, as of independent users, instead of equal ones
    #[arg(long, help_heading = "Load")]
    pub poisson: bool,
    /// Longest wait for an answer
    #[arg(long, value_parser = quantity::length, default_value = "30s", help_heading = "Load")]
    pub timeout: Span,
    /// How long answers may still come when the load is over
    #[arg(long, value_parser = quantity::length, default_value = "5s", help_heading = "Load")]
    pub grace: Span,

    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// What is watched besides the load.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// The proxy's process, with its threads and descendants, or its cgroup's path: CPU per request from outside
    #[arg(long, value_name = "PID|CGROUP", group = "process", help_heading = "Proxy")]
    pub proxy_pid: Option<ProxySource>,
    /// Count the proxy's system calls, too (root; makes each of them dearer: not together with comparing CPU)
    #[arg(long, requires = "process", help_heading = "Proxy")]
    pub count_calls: bool,
    /// The proxy's metrics page, read before, during and after
    #[arg(long, value_name = "URL", conflicts_with = "start", help_heading = "Proxy")]
    pub metrics_url: Option<String>,
}

impl ObserveArgs {
    pub fn observation(&self) -> Observation {
        Observation {
            proxy: self.proxy_pid.clone(),
            count_calls: self.count_calls,
            metrics_url: self.metrics_url.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Auth(Vec<(AuthKind, f64)>);
#[derive(Clone, Debug)]
pub struct Mix {
    classes: Vec<(Class, f64)>,
    recordings: Vec<Recording>,
}
#[derive(Clone, Debug)]
pub struct Sources(pub Vec<IpAddr>);

/// A list of kinds of credentials with weights.
pub fn auth_weights(text: &str) -> Result<Vec<(AuthKind, f64)>, String> {
    quantity::weights(text, |name| {
        let kind = AuthKind::ALL.into_iter().find(|kind| kind.as_str() == name);
        kind.ok_or_else(|| format!("`{name}`: one of public, token, bearer, query, cookie, signed"))
    })
}

fn auth(text: &str) -> Result<Auth, String> {
    auth_weights(text).map(Auth)
}

/// A list of classes with weights. A class has a colon of its own, so the weight follows an equals sign.
pub fn mix_weights(text: &str, recordings: &mut Recordings) -> Result<Vec<(Class, f64)>, String> {
    let pair = |part: &str| {
        let (class, weight) = part.rsplit_once('=').unwrap_or((part, "1"));
        match weight.parse::<f64>() {
            Ok(weight) if weight > 0.0 && weight.is_finite() => {
                Ok((recordings.class_of(class.trim())?, weight))
            }
            _ => Err(format!("`{part}`: the weight behind = is no number above 0")),
        }
    };
    text.split(',').map(pair).collect()
}

fn mix(text: &str) -> Result<Mix, String> {
    let mut recordings = Recordings::default();
    let classes = mix_weights(text, &mut recordings)?;
    Ok(Mix { classes, recordings: recordings.into_plan() })
}

/// [`source_addresses`] for the command line.
pub fn sources(text: &str) -> Result<Sources, String> {
    source_addresses(text).map(Sources)
}

/// Addresses with commas between; `first-last` is a range of IPv4 addresses.
pub fn source_addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    const MOST: u32 = 65_536;
    let mut addresses = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("`{part}` is no address and no range such as 127.0.0.2-127.0.0.9");
        match part.split_once('-') {
            None => addresses.push(part.parse().map_err(|_| wrong())?),
            Some((first, last)) => {
                let number = |text: &str| text.parse::<Ipv4Addr>().map(u32::from).map_err(|_| wrong());
                let (first, last) = (number(first)?, number(last)?);
                if first > last || last - first >= MOST {
                    return Err(wrong());
                }
                addresses.extend((first..=last).map(|n| IpAddr::V4(Ipv4Addr::from(n))));
            }
        }
    }
    Ok(addresses)
}

impl LoadArgs {
    /// Target, client and workload; the phases are the caller's.
    pub fn plan(&self, phases: Vec<Phase>) -> Result<Plan, String> {
        self.check()?;
        let (client, defaults) = (self.client.setting(), Client::default());
        let workload = Workload::default();
        Ok(Plan {
            name: self.target.name(),
            target: self.target.target(),
            client: Client {
                threads: client.threads.unwrap_or(defaults.threads),
                cpus: client.cpus,
                connections: self.connections,
                streams: self.streams.unwrap_or(defaults.streams),
                sessions_max: self.sessions_max,
                sources: client.sources,
                seed: client.seed,
                timeout: self.timeout,
                grace: self.grace,
                poisson: self.poisson,
                lag_max: client.lag_max,
            },
            workload: Workload {
                sandboxes: self.sandboxes.unwrap_or(workload.sandboxes),
                zipf: self.zipf.unwrap_or(workload.zipf),
                ports: self.ports.clone().unwrap_or(workload.ports),
                auth: self.auth.clone().map_or(workload.auth, |auth| auth.0),
                bad: self.bad_token,
                cold: self.cold,
                fresh: self.fresh,
                toolbox: self.toolbox,
                population: self.target.population(),
                proxy_key: self.target.proxy_key()?,
            },
            phases,
            recordings: self.mix.as_ref().map(|mix| mix.recordings.clone()).unwrap_or_default(),
        })
    }

    /// [`Self::plan`] with the phases of a pace.
    pub fn paced(&self, pace: &PaceArgs) -> Result<Plan, String> {
        let phases = pace.phases(&self.mix())?;
        if pace.idle.is_none() {
            vain("--idle", &[("--idle-rate", pace.idle_rate.is_some())])?;
        }
        if pace.rate.is_none() {
            vain("--rate", &[("--poisson", self.poisson)])?;
        }
        if pace.rate.is_none() && !pace.closed {
            vain("--rate or --closed", &[("--mix", self.mix.is_some()), ("--fresh", self.fresh > 0.0)])?;
        }
        self.plan(phases)
    }

    /// `Err` names flags that mean nothing in this company.
    fn check(&self) -> Result<(), String> {
        self.target.check()?;
        if self.target.domain.is_none() {
            let flags = [
                ("--sandboxes", self.sandboxes.is_some()),
                ("--zipf", self.zipf.is_some()),
                ("--ports", self.ports.is_some()),
                ("--auth", self.auth.is_some()),
                ("--bad-token", self.bad_token > 0.0),
                ("--cold", self.cold > 0.0),
                ("--toolbox", self.toolbox > 0.0),
            ];
            vain("--domain", &flags)?;
        }
        if !self.target.http2 {
            vain("--http2", &[("--streams", self.streams.is_some())])?;
        }
        Ok(())
    }

    /// The classes asked for: without a preview domain, what the URL names.
    pub fn mix(&self) -> Vec<(Class, f64)> {
        match (&self.mix, &self.target.domain) {
            (Some(mix), _) => mix.classes.clone(),
            (None, Some(_)) => vec![(Class::Get { bytes: 1024 }, 1.0)],
            (None, None) => vec![(Class::Path("/".into()), 1.0)],
        }
    }
}

/// `loadtest run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How much, and for how long.
#[derive(Clone, Debug, Args)]
pub struct PaceArgs {
    /// Requests per second, whatever the answers do; latency counts from when each should have been sent
    #[arg(long, short, value_parser = quantity::rate, help_heading = "Load", conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// Closed loop: on each connection the next request when the last is answered. For the most a proxy can do; its
    /// latencies say nothing about users
    #[arg(long, help_heading = "Load")]
    pub closed: bool,
    /// How long to measure, at most 31 days
    #[arg(long = "for", value_parser = quantity::length, value_name = "TIME", default_value = "10s", help_heading = "Load")]
    pub length: Span,
    /// A time before that does not count
    #[arg(long, value_parser = quantity::length, value_name = "TIME", default_value = "0s", help_heading = "Load")]
    pub warmup: Span,
    /// WebSockets to open and hold meanwhile: 10k, 100k
    #[arg(long, value_parser = quantity::count, value_name = "N", help_heading = "Load")]
    pub idle: Option<u64>,
    /// How many of them to open per second [default: 1000]
    #[arg(long, value_parser = quantity::rate, help_heading = "Load")]
    pub idle_rate: Option<f64>,
}

/// `loadtest interleave`.
#[derive(Clone, Debug, Args)]
pub struct InterleaveArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    /// The other target, B; the first is A
    #[arg(long, value_name = "URL", conflicts_with = "start", help_heading = "Other target")]
    pub with: Option<String>,
    /// Start B, as --start does A: each on a port of its own, before the same backend
    #[arg(long, value_name = "COMMAND", help_heading = "Other target")]
    pub start_with: Option<CommandLine>,
    /// B's process or cgroup
    #[arg(long, value_name = "PID|CGROUP", conflicts_with = "start", help_heading = "Other target")]
    pub with_proxy_pid: Option<ProxySource>,
    /// B's metrics page
    #[arg(long, value_name = "URL", conflicts_with = "start", help_heading = "Other target")]
    pub with_metrics_url: Option<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Load")]
    pub rounds: u32,
    /// Write A's result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json_a: Option<PathBuf>,
    /// Write B's result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json_b: Option<PathBuf>,
    /// Write the comparison of the two as one HTML page, as `compare` does
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
    /// Write it in Markdown, for CI
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub markdown: Option<PathBuf>,
    /// Thresholds on A, like 'p99<5ms,err<0.1%'; the exit code is 99 when one does not hold
    #[arg(long, value_name = "THRESHOLDS", help_heading = "Output")]
    pub assert_a: Vec<Thresholds>,
    /// Thresholds on B
    #[arg(long, value_name = "THRESHOLDS", help_heading = "Output")]
    pub assert_b: Vec<Thresholds>,
    /// Only the summary at the end
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

/// The second of two that take turns.
pub struct OtherTarget {
    pub name: String,
    pub url: String,
}

impl InterleaveArgs {
    pub fn other(&self, staging: Option<&Staging>) -> Result<OtherTarget, String> {
        match (&self.with, &self.start_with, staging) {
            (_, Some(_), None) => Err("--start-with starts one target: --start must start the first".into()),
            (Some(url), ..) => Ok(OtherTarget { name: url.clone(), url: url.clone() }),
            (None, Some(command), Some(staging)) => {
                Ok(OtherTarget { name: command.text.clone(), url: staging.url(1) })
            }
            (None, None, Some(_)) => {
                Err("--start starts one target: --start-with must start the other".into())
            }
            (None, None, None) => Err("--with must name the other target".into()),
        }
    }
}

/// `loadtest find-max`.
#[derive(Clone, Debug, Args)]
pub struct FindMaxArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Longest 99th percentile of response time
    #[arg(long, default_value = "5ms", help_heading = "Search")]
    pub p99: Span,
    /// Highest share of requests that fail, or are not sent for want of a free connection
    #[arg(long, value_parser = quantity::share, default_value = "0.1%", help_heading = "Search")]
    pub errors: f64,
    /// Lowest rate to try
    #[arg(long, value_parser = quantity::rate, default_value = "100", help_heading = "Search")]
    pub from: f64,
    /// Highest rate to try
    #[arg(long, value_parser = quantity::rate, default_value = "1M", help_heading = "Search")]
    pub to: f64,
    /// How long each rate is held
    #[arg(long, value_parser = quantity::length, value_name = "TIME", default_value = "5s", help_heading = "Search")]
    pub step: Span,
    /// Stop when what holds and what does not are as near
    #[arg(long, value_parser = quantity::share, default_value = "5%", help_heading = "Search")]
    pub precision: f64,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl FindMaxArgs {
    /// A plan whose phase has only its classes.
    pub fn template(&self) -> Result<Plan, String> {
        self.load.plan(vec![Phase {
            name: "template".into(),
            load: Load::Quiet,
            length: self.step,
            mix: self.load.mix(),
            warmup: false,
            churn: Vec::new(),
            idle: None,
        }])
    }

    pub fn bound(&self) -> Result<Bound, String> {
        let bound = Bound {
            p99: self.p99.0,
            errors: self.errors,
            from: self.from,
            to: self.to,
            step: self.step,
            precision: self.precision,
        };
        match bound.mistake() {
            Some(mistake) => Err(mistake.into()),
            None => Ok(bound),
        }
    }
}

/// `loadtest scenario`.
#[derive(Clone, Debug, Args)]
pub struct ScenarioArgs {
    /// One that comes along (`loadtest scenarios` lists them) or a file
    #[arg(value_name = "NAME|FILE")]
    pub scenario: String,
    #[command(flatten)]
    pub target: TargetArgs,
    /// The backend's API, whose levers change things under load: http://host:port
    #[arg(long, value_name = "URL", conflicts_with = "start", help_heading = "Target")]
    pub levers: Option<String>,
    /// Factor on all rates and idle counts
    #[arg(long, default_value_t = 1.0, help_heading = "Load")]
    pub rate_scale: f64,
    /// Factor on all times
    #[arg(long, default_value_t = 1.0, help_heading = "Load")]
    pub time_scale: f64,
    /// How many sandboxes instead of the scenario's
    #[arg(long, value_parser = quantity::count, help_heading = "Load")]
    pub sandboxes: Option<u64>,
    /// Kept connections instead of the scenario's
    #[arg(long, short, value_parser = quantity::count32, help_heading = "Load")]
    pub connections: Option<u32>,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ScenarioArgs {
    pub fn plan(&self) -> Result<Plan, String> {
        let target = &self.target;
        target.check()?;
        if target.domain.is_none() {
            vain("--domain", &[("--sandboxes", self.sandboxes.is_some())])?;
        }
        let scale = |scale: f64| scale > 0.0 && scale <= 1000.0;
        if !scale(self.rate_scale) || !scale(self.time_scale) {
            return Err("--rate-scale and --time-scale: above 0, at most 1000".into());
        }
        Scenario::load(&self.scenario)?.plan(&Setting {
            target: target.target(),
            levers: self.levers.clone(),
            rate_scale: self.rate_scale,
            time_scale: self.time_scale,
            sandboxes: self.sandboxes,
            connections: self.connections,
            population: target.population(),
            proxy_key: target.proxy_key()?,
            client: self.client.setting(),
        })
    }
}

/// `loadtest agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Address and port to listen on; port 0: any, it is printed
    #[arg(long, default_value = "127.0.0.1:7878")]
    pub listen: std::net::SocketAddr,
    /// File with the key coordinators must know: whoever has it decides where this host's load goes
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// Make one load and end
    #[arg(long)]
    pub once: bool,
}

/// Where the result goes.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    #[command(flatten)]
    pub files: Outputs,
    /// No live view; only the summary at the end
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

impl PaceArgs {
    /// One measured phase, and a warm-up before it if one is wanted.
    pub fn phases(&self, mix: &[(Class, f64)]) -> Result<Vec<Phase>, String> {
        let load = match (self.rate, self.closed, self.idle) {
            (_, true, _) => Load::Closed,
            (Some(rate), ..) => Load::Hold { rate },
            (None, false, Some(_)) => Load::Quiet,
            (None, false, None) => {
                return Err("say how much: --rate for an open loop, --closed for the most, or --idle".into());
            }
        };
        let phase = |name: &str, length, warmup| Phase {
            name: name.into(),
            load,
            length,
            mix: mix.to_vec(),
            warmup,
            churn: Vec::new(),
            idle: None,
        };
        let mut phases = Vec::new();
        if self.warmup.0 > Duration::ZERO {
            phases.push(phase("warm-up", self.warmup, true));
        }
        let rate = self.idle_rate.unwrap_or(1000.0);
        let idle = self.idle.map(|count| Idle { count, rate, reopen: false });
        phases.push(Phase { idle, ..phase("measured", self.length, false) });
        Ok(phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ranges_are_written_out() {
        let count = |text: &str| source_addresses(text).map(|addresses| addresses.len());
        assert_eq!(
            (count("127.0.0.2-127.0.0.9"), count("127.0.0.1"), count("::1,127.0.0.1")),
            (Ok(8), Ok(1), Ok(2))
        );
        assert_eq!(
            source_addresses("127.0.0.255-127.0.1.1").map(|a| a[2].to_string()),
            Ok("127.0.1.1".into())
        );
        for text in ["", "x", "127.0.0.9-127.0.0.2", "0.0.0.0-255.255.255.255", "::1-::9"] {
            assert!(source_addresses(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mixes_keep_the_colons_of_their_classes() {
        let mix_weights = |text| mix_weights(text, &mut Recordings::default());
        let mix = mix_weights("get:1k=90,ws:10x32=9,path:/a?b=c=1").expect("a mix");
        let names: Vec<_> = mix.iter().map(|(class, weight)| (class.to_string(), *weight)).collect();
        assert_eq!(names, [("get:1k".into(), 90.0), ("ws:10x32".into(), 9.0), ("path:/a?b=c".into(), 1.0)]);
        assert!(mix_weights("get:1k=0").is_err() && mix_weights("get:1k=x").is_err());
        let error = mix_weights("get:1k=1,har:absent.har=1").expect_err("no such file");
        assert!(error.starts_with("har:absent.har: ") && error.contains("No such file"), "{error}");
        assert!(mix_weights("har:=1").is_err());
    }
}
