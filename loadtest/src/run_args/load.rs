//! One load: its target, sandboxes and classes, and the plan they make.

use super::weights::{Auth, Mix, auth, mix};
use super::{ClientArgs, ObserveArgs, PaceArgs, TargetArgs, vain};
use crate::plan::{Class, Client, Phase, Plan, Workload};
use crate::quantity::{self, Span};
use crate::unshown::unshown;
use clap::Args;

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
    #[arg(long, value_parser = unshown(mix), help_heading = "Load")]
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
