//! The flags that describe a load, and the plan they make.

use crate::host::ProxySource;
use crate::plan::{Class, Client, Idle, Load, Phase, Plan, Target, Workload};
use crate::population::AuthKind;
use crate::quantity::{self, Span};
use crate::run::Observation;
use clap::Args;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Where the load goes and how the load generator works: the same for every way of using it.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// The proxy: http://host:port, or https
    pub url: String,
    /// Preview domain: requests go to {port}-{sandbox}.DOMAIN; without it to the URL's own host, as for any server
    #[arg(long, help_heading = "Target")]
    pub domain: Option<String>,
    /// HTTP/2: by ALPN over TLS, with prior knowledge in the clear
    #[arg(long, help_heading = "Target")]
    pub http2: bool,
    /// Trust the certificates in this PEM file instead of the web's
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    pub ca: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long, conflicts_with = "ca", help_heading = "Target")]
    pub insecure: bool,

    /// How many sandboxes there are: 500, 100k, 1M
    #[arg(long, value_parser = quantity::count, default_value = "100", help_heading = "Sandboxes")]
    pub sandboxes: u64,
    /// Exponent of their popularity; 0: all alike
    #[arg(long, default_value_t = 1.1, help_heading = "Sandboxes")]
    pub zipf: f64,
    /// Apps' ports, equally often
    #[arg(long, value_delimiter = ',', default_value = "3000", help_heading = "Sandboxes")]
    pub ports: Vec<u16>,
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
    /// Seed of the population: the backend's
    #[arg(long, default_value_t = 1, help_heading = "Sandboxes")]
    pub population: u64,
    /// File with the proxy's API key, which signs cookies; needed for `--auth cookie`
    #[arg(long, value_name = "FILE", help_heading = "Sandboxes")]
    pub proxy_key_file: Option<PathBuf>,

    /// Classes of requests by weight: get:1k, upload:64k, exec:500ms, sse:10x100ms, ws:10x32, page:20x8k, path:/x
    /// [default: get:1k, without --domain the URL's path]
    #[arg(long, value_parser = mix, help_heading = "Load")]
    pub mix: Option<Mix>,
    /// Share of requests on a connection of their own
    #[arg(long, value_parser = quantity::share, default_value = "0", help_heading = "Load")]
    pub fresh: f64,
    /// Kept connections; each carries a request at a time (HTTP/2: --streams)
    #[arg(long, short, default_value_t = 64, help_heading = "Load")]
    pub connections: u32,
    /// Requests at a time on an HTTP/2 connection
    #[arg(long, default_value_t = 32, help_heading = "Load")]
    pub streams: u32,
    /// Most WebSockets, event streams and page loads at a time
    #[arg(long, default_value_t = 10_000, help_heading = "Load")]
    pub sessions_max: u32,
    /// Random intervals, as of independent users, instead of equal ones
    #[arg(long, help_heading = "Load")]
    pub poisson: bool,
    /// Longest wait for an answer
    #[arg(long, default_value = "30s", help_heading = "Load")]
    pub timeout: Span,

    /// Threads [default: half of the CPUs]
    #[arg(long, short, help_heading = "Load generator")]
    pub threads: Option<u32>,
    /// CPUs to pin the threads to: 0,2
    #[arg(long, value_delimiter = ',', help_heading = "Load generator")]
    pub cpus: Vec<usize>,
    /// Source addresses in turn, for more than 28,000 connections: 127.0.0.2-127.0.0.9 or a list
    #[arg(long, value_parser = sources, help_heading = "Load generator")]
    pub sources: Option<Sources>,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 1, help_heading = "Load generator")]
    pub seed: u64,
    /// The result is not valid if the load generator itself sends later than this (p99)
    #[arg(long, default_value = "2ms", help_heading = "Load generator")]
    pub lag_max: Span,
    /// How long answers may still come when the load is over
    #[arg(long, default_value = "5s", help_heading = "Load generator")]
    pub grace: Span,

    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// What is watched besides the load.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// The proxy's process, with its threads and descendants, or its cgroup's path: CPU per request from outside
    #[arg(long, value_name = "PID|CGROUP", help_heading = "Proxy")]
    pub proxy_pid: Option<ProxySource>,
    /// The proxy's metrics page, read before, during and after
    #[arg(long, value_name = "URL", help_heading = "Proxy")]
    pub metrics_url: Option<String>,
}

impl ObserveArgs {
    pub fn observation(&self) -> Observation {
        Observation { proxy: self.proxy_pid.clone(), metrics_url: self.metrics_url.clone() }
    }
}

#[derive(Clone, Debug)]
pub struct Auth(Vec<(AuthKind, f64)>);
#[derive(Clone, Debug)]
pub struct Mix(Vec<(Class, f64)>);
#[derive(Clone, Debug)]
pub struct Sources(Vec<IpAddr>);

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
pub fn mix_weights(text: &str) -> Result<Vec<(Class, f64)>, String> {
    let pair = |part: &str| {
        let (class, weight) = part.rsplit_once('=').unwrap_or((part, "1"));
        match weight.parse::<f64>() {
            Ok(weight) if weight > 0.0 && weight.is_finite() => Ok((class.trim().parse()?, weight)),
            _ => Err(format!("`{part}`: the weight behind = is no number above 0")),
        }
    };
    text.split(',').map(pair).collect()
}

fn mix(text: &str) -> Result<Mix, String> {
    mix_weights(text).map(Mix)
}

fn sources(text: &str) -> Result<Sources, String> {
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
        let proxy_key = match &self.proxy_key_file {
            None => None,
            Some(file) => {
                let text =
                    std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
                Some(text.trim().to_owned())
            }
        };
        let defaults = Client::default();
        Ok(Plan {
            name: self.url.clone(),
            target: Target {
                url: self.url.clone(),
                domain: self.domain.clone(),
                http2: self.http2,
                ca: self.ca.clone(),
                insecure: self.insecure,
            },
            client: Client {
                threads: self.threads.unwrap_or(defaults.threads),
                cpus: self.cpus.clone(),
                connections: self.connections,
                streams: self.streams,
                sessions_max: self.sessions_max,
                sources: self.sources.clone().map(|sources| sources.0).unwrap_or_default(),
                seed: self.seed,
                timeout: self.timeout,
                grace: self.grace,
                poisson: self.poisson,
                lag_max: self.lag_max,
            },
            workload: Workload {
                sandboxes: self.sandboxes,
                zipf: self.zipf,
                ports: self.ports.clone(),
                auth: self.auth.clone().map_or_else(|| Workload::default().auth, |auth| auth.0),
                bad: self.bad_token,
                cold: self.cold,
                fresh: self.fresh,
                toolbox: self.toolbox,
                population: self.population,
                proxy_key,
            },
            phases,
        })
    }

    /// The classes asked for: without a preview domain, what the URL names.
    pub fn mix(&self) -> Vec<(Class, f64)> {
        match (&self.mix, &self.domain) {
            (Some(mix), _) => mix.0.clone(),
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
    /// Requests per second, whatever the answers do; latency counts from when each should have been sent
    #[arg(long, short, value_parser = quantity::rate, help_heading = "Load", conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// Closed loop: on each connection the next request when the last is answered. For the most a proxy can do; its
    /// latencies say nothing about users
    #[arg(long, help_heading = "Load")]
    pub closed: bool,
    /// How long to measure
    #[arg(long = "for", value_name = "TIME", default_value = "10s", help_heading = "Load")]
    pub length: Span,
    /// A time before that does not count
    #[arg(long, value_name = "TIME", default_value = "0s", help_heading = "Load")]
    pub warmup: Span,
    /// WebSockets to open and hold meanwhile: 10k, 100k
    #[arg(long, value_parser = quantity::count, value_name = "N", help_heading = "Load")]
    pub idle: Option<u64>,
    /// How many of them to open per second
    #[arg(long, value_parser = quantity::rate, default_value = "1000", help_heading = "Load")]
    pub idle_rate: f64,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where the result goes.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// No live view; only the summary at the end
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

impl RunArgs {
    /// The plan of one measured phase, and a warm-up before it if one is wanted.
    pub fn plan(&self) -> Result<Plan, String> {
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
            mix: self.load.mix(),
            warmup,
            churn: Vec::new(),
            idle: None,
        };
        let mut phases = Vec::new();
        if self.warmup.0 > Duration::ZERO {
            phases.push(phase("warm-up", self.warmup, true));
        }
        let idle = self.idle.map(|count| Idle { count, rate: self.idle_rate });
        phases.push(Phase { idle, ..phase("measured", self.length, false) });
        self.load.plan(phases)
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
        let mix = mix_weights("get:1k=90,ws:10x32=9,path:/a?b=c=1").expect("a mix");
        let names: Vec<_> = mix.iter().map(|(class, weight)| (class.to_string(), *weight)).collect();
        assert_eq!(names, [("get:1k".into(), 90.0), ("ws:10x32".into(), 9.0), ("path:/a?b=c".into(), 1.0)]);
        assert!(mix_weights("get:1k=0").is_err() && mix_weights("get:1k=x").is_err());
    }
}
