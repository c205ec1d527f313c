//! What a run shall do, complete and checked: the command line and scenario files become a plan, agents receive it.

mod class;

pub use class::{Class, PAGE_CONNECTIONS};

use crate::har::Recording;
use crate::population::AuthKind;
use crate::quantity::Span;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    pub target: Target,
    pub client: Client,
    pub workload: Workload,
    pub phases: Vec<Phase>,
    /// What its classes `har:` replay.
    pub recordings: Vec<Recording>,
}

/// Where the load goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// `http` or `https`, host and port, path: a proxy's address.
    pub url: String,
    /// Preview domain: with it requests go to hosts `{port}-{sandbox}.{domain}`; without, to the URL's own.
    pub domain: Option<String>,
    /// Speak HTTP/2: by ALPN over TLS, with prior knowledge in the clear.
    pub http2: bool,
    /// Certificates to trust instead of the web's.
    pub ca: Option<PathBuf>,
    /// Trust any certificate.
    pub insecure: bool,
}

/// How the load generator works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    pub threads: u32,
    /// CPUs to pin the threads to, in turn; empty: none.
    pub cpus: Vec<usize>,
    /// Kept connections of all threads together; each carries one request at a time (HTTP/2: `streams`).
    pub connections: u32,
    pub streams: u32,
    /// Most sessions (WebSockets, event streams, page loads, recordings) at a time.
    pub sessions_max: u32,
    /// Source addresses, used in turn: each gives about 28,000 connections to one target, half of them fast.
    pub sources: Vec<IpAddr>,
    pub seed: u64,
    /// For one request; for sessions, for each event and echo.
    pub timeout: Span,
    /// How long requests may still run when the last phase is over.
    pub grace: Span,
    /// Intervals between requests vary as those of independent users do, instead of being equal.
    pub poisson: bool,
    /// 99th percentile of the load generator's own lateness beyond which a result is not valid. `None`: see
    /// [`Self::lag_bound`].
    pub lag_max: Option<Span>,
}

/// Longest load, all phases together, and longest wait for an answer. What is kept of a load does not grow with its length;
/// this keeps clocks and their arithmetic in range, and mistyped lengths out.
pub const LENGTH_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// Lateness that does not matter, whatever is measured.
const LAG_ALWAYS_FINE: Duration = Duration::from_millis(2);
/// The part of a response time that may be the load generator's lateness.
const LAG_SHARE: u32 = 10;

impl Client {
    /// How late the load generator may be at a percentile where the fastest class's response time is this. Nobody can send
    /// the last of a burst when the first is due; it spoils little where answers take ten times as long.
    pub fn lag_bound(&self, response: Duration) -> Duration {
        self.lag_max.map_or_else(|| (response / LAG_SHARE).max(LAG_ALWAYS_FINE), |bound| bound.0)
    }
}

impl Default for Client {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: (cpus / 2).clamp(1, 8) as u32,
            cpus: Vec::new(),
            connections: 64,
            streams: 32,
            sessions_max: 10_000,
            sources: Vec::new(),
            seed: 1,
            timeout: Span(Duration::from_secs(30)),
            grace: Span(Duration::from_secs(5)),
            poisson: false,
            lag_max: None,
        }
    }
}

/// Whom the requests are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workload {
    /// How many sandboxes; public and private ones by the weights of `auth`.
    pub sandboxes: u64,
    /// Exponent of their popularity: 0: all alike; 1.1: few get most.
    pub zipf: f64,
    /// Apps' ports, equally often.
    pub ports: Vec<u16>,
    pub auth: Vec<(AuthKind, f64)>,
    /// Share of requests with a credential that opens nothing.
    pub bad: f64,
    /// Share of requests to sandboxes never asked for before, so that no cache knows them.
    pub cold: f64,
    /// Share of requests on a connection of their own.
    pub fresh: f64,
    /// Share of requests in the form `/toolbox/{id}/proxy/{port}/...`.
    pub toolbox: f64,
    /// Seed of the population; the backend has the same.
    pub population: u64,
    /// Key of the cookies' signature: the proxy's API key.
    pub proxy_key: Option<String>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            sandboxes: 100,
            zipf: 1.1,
            ports: vec![3000],
            auth: vec![(AuthKind::Public, 1.0)],
            bad: 0.0,
            cold: 0.0,
            fresh: 0.0,
            toolbox: 0.0,
            population: 1,
            proxy_key: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub load: Load,
    pub length: Span,
    /// Weights of the classes of requests.
    pub mix: Vec<(Class, f64)>,
    /// Its figures do not count.
    pub warmup: bool,
    pub churn: Vec<Churn>,
    /// WebSockets opened and held through the phase.
    pub idle: Option<Idle>,
}

/// How much, and who sets the pace.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Load {
    /// Requests per second.
    Hold { rate: f64 },
    /// As `Hold`, for long: the report looks for drift.
    Soak { rate: f64 },
    /// Grows or falls evenly.
    Ramp { from: f64, to: f64 },
    /// So many at the same moment, every so often.
    Burst { size: u32, every: Span },
    /// The next request when the last is answered, on every connection.
    Closed,
    /// No requests: only what is held idle, or churn.
    Quiet,
}

impl Load {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hold { .. } => "hold",
            Self::Soak { .. } => "soak",
            Self::Ramp { .. } => "ramp",
            Self::Burst { .. } => "burst",
            Self::Closed => "closed",
            Self::Quiet => "quiet",
        }
    }

    /// Requests per second at begin and end.
    pub fn rates(&self) -> Option<(f64, f64)> {
        match *self {
            Self::Hold { rate } | Self::Soak { rate } => Some((rate, rate)),
            Self::Ramp { from, to } => Some((from, to)),
            Self::Burst { size, every } => {
                let rate = f64::from(size) / every.0.as_secs_f64();
                Some((rate, rate))
            }
            Self::Closed => None,
            Self::Quiet => Some((0.0, 0.0)),
        }
    }
}

/// Idle WebSockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    pub count: u64,
    /// Opened per second.
    pub rate: f64,
    /// Those that are cut are opened again, a second later, as clients do that reconnect.
    #[serde(default)]
    pub reopen: bool,
}

/// Something changes while the load runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Churn {
    pub name: String,
    /// Since the phase's begin.
    pub at: Span,
    pub action: Action,
    pub probe: Probe,
    /// How long to look for the effect and, after it, for the recovery; both together.
    pub within: Span,
    /// Done when the load is over, if the lever was pulled: the next run finds things as this one did.
    #[serde(default)]
    pub undo: Option<Action>,
    /// Where the backend has no such lever (404, 501) it is left out, and the result says so.
    #[serde(default)]
    pub if_possible: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A shell command of the operator's.
    Command(String),
    /// `POST` to this URL; 2xx is success.
    Post(String),
}

/// One probe may take as long; slower is as good as no answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A request that shows the effect: repeated on connections of its own until the answer is the expected one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Which public or private sandbox; `None`: the target's own URL.
    pub sandbox: Option<(u64, AuthKind)>,
    pub path: String,
    pub effect: Expectation,
    /// Look further, until it is as before.
    pub recovery: bool,
    pub every: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expectation {
    /// 2xx.
    Ok,
    /// 401, 403, or a redirect to a login.
    Refused,
    /// 5xx or no answer.
    Fails,
    /// No effect is expected: every probe in the time must be 2xx.
    Unharmed,
}

/// A part of a plan: load generator `index` of `count`, each with the same number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub index: u32,
    pub count: u32,
}

impl Share {
    pub const WHOLE: Self = Self { index: 0, count: 1 };
}

impl Plan {
    /// # Errors
    /// [`Self::mistakes`], a line each.
    pub fn check(&self) -> Result<(), String> {
        let mistakes = self.mistakes();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("\n")) }
    }

    /// Of all phases, each once; what the result calls them.
    pub fn classes(&self) -> Vec<Class> {
        let mut classes: Vec<Class> = Vec::new();
        for (class, _) in self.phases.iter().flat_map(|phase| &phase.mix) {
            if !classes.contains(class) {
                classes.push(class.clone());
            }
        }
        classes
    }

    /// The recording of a class `har:name`.
    pub fn recording(&self, name: &str) -> Option<&Recording> {
        self.recordings.iter().find(|recording| recording.name == name)
    }

    /// Everything that is wrong with it, for the operator.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut need = |ok: bool, text: &str| {
            if !ok {
                mistakes.push(text.to_owned());
            }
        };
        let workload = &self.workload;
        need(
            (1..=1024).contains(&self.client.threads),
            &outside("threads", self.client.threads, "1 to 1024"),
        );
        need(
            (1..=1_000_000).contains(&self.client.connections),
            &outside("connections", self.client.connections, "1 to 1,000,000"),
        );
        need(
            (1..=10_000).contains(&self.client.streams),
            &outside("streams", self.client.streams, "1 to 10,000"),
        );
        need(workload.zipf >= 0.0 && workload.zipf <= 10.0, "zipf: 0 to 10");
        need(workload.sandboxes > 0 && workload.sandboxes <= 1 << 40, "sandboxes: 1 to 2^40");
        need(!workload.ports.is_empty() && !workload.ports.contains(&0), "ports: at least one, none 0");
        need(!workload.auth.is_empty(), "auth: at least one kind");
        let cookies = workload.auth.iter().any(|(kind, weight)| *kind == AuthKind::Cookie && *weight > 0.0);
        need(
            !cookies || workload.proxy_key.is_some(),
            "auth cookie: --proxy-key-file must name the proxy's API key, which signs cookies",
        );
        need(!self.phases.is_empty(), "phases: at least one");
        let length = self.phases.iter().fold(Duration::ZERO, |sum, phase| sum.saturating_add(phase.length.0));
        need(
            length <= LENGTH_MAX,
            "phases: together longer than 31 days, the longest a load may be: lower their `for` or --time-scale",
        );
        need(
            self.client.timeout.0.max(self.client.grace.0) <= LENGTH_MAX,
            "timeout and grace: at most 31 days",
        );
        need(!self.client.timeout.0.is_zero(), "timeout: above 0, or no answer is in time");
        let one_only = workload.fresh > 0.0
            || self
                .phases
                .iter()
                .any(|phase| phase.idle.is_some() || phase.mix.iter().any(|(class, _)| class.is_session()));
        need(
            !self.target.http2 || !one_only,
            "http2: connections of their own (WebSockets, event streams, pages, recordings, idle sockets, fresh) are HTTP/1.1 here",
        );
        for phase in &self.phases {
            let quiet = phase.load == Load::Quiet;
            need(!phase.name.trim().is_empty(), "a phase has no name");
            need(!phase.length.0.is_zero(), &format!("phase {}: its length (`for`) is 0", phase.name));
            need(quiet || !phase.mix.is_empty(), &format!("phase {}: no mix", phase.name));
            for class in phase.mix.iter().map(|(class, _)| class) {
                let missing = matches!(class, Class::Recording(name) if self.recording(name).is_none());
                need(!missing, &format!("phase {}: the plan has no recording for {class}", phase.name));
            }
            let whole_sessions = phase.mix.iter().any(|(class, _)| class.is_session());
            need(
                phase.load != Load::Closed || !whole_sessions,
                &format!(
                    "phase {}: a closed loop has no WebSockets, event streams, pages or recordings",
                    phase.name
                ),
            );
            need(
                phase.idle.is_none() || workload.bad < 1.0,
                &format!("phase {}: idle WebSockets need good credentials", phase.name),
            );
            need(
                phase.idle.as_ref().is_none_or(|idle| idle.rate > 0.0 && idle.count > 0),
                &format!("phase {}: idle needs a count and a rate", phase.name),
            );
            for churn in &phase.churn {
                let (name, at, length) = (&churn.name, churn.at, phase.length);
                need(
                    churn.probe.effect != Expectation::Fails || churn.within.0 > PROBE_TIMEOUT,
                    &format!(
                        "phase {}: churn {name}: within {} is over before a target that no longer answers counts as failing, \
                         for which a probe waits {}: within = \"{}\" or more",
                        phase.name,
                        churn.within,
                        Span(PROBE_TIMEOUT),
                        Span(2 * PROBE_TIMEOUT)
                    ),
                );
                need(
                    at.0 < length.0,
                    &format!(
                        "phase {}: churn {name}: at {at} is not within the phase, which is {length} long",
                        phase.name
                    ),
                );
            }
            if let Load::Burst { size, every } = phase.load {
                let ok = size > 0 && !every.0.is_zero();
                need(ok, &format!("phase {}: a burst needs a size and an interval", phase.name));
            }
            if let Some((from, to)) = phase.load.rates() {
                let ok = quiet || from >= 0.0 && to >= 0.0 && from + to > 0.0 && from.max(to) <= 1e8;
                need(ok, &format!("phase {}: rates from 0 to 100M", phase.name));
            }
        }
        mistakes
    }
}

fn outside(what: &str, value: u32, range: &str) -> String {
    format!("{what}: {value} is not within {range}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::har::Recordings;

    fn plan(load: Load, mix: &str) -> Plan {
        Plan {
            name: "x".into(),
            target: Target { url: "http://127.0.0.1:1".into(), ..Target::default() },
            client: Client::default(),
            workload: Workload::default(),
            phases: vec![Phase {
                name: "p".into(),
                load,
                length: Span(Duration::from_secs(1)),
                mix: crate::run_args::mix_weights(mix, &mut Recordings::default()).expect("a mix"),
                warmup: false,
                churn: Vec::new(),
                idle: None,
            }],
            recordings: Vec::new(),
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_all_together() {
        let good = plan(Load::Hold { rate: 1.0 }, "get:1k,ws:1x1");
        assert_eq!(good.mistakes(), Vec::<String>::new());
        let mut bad = plan(Load::Closed, "ws:1x1");
        bad.client.connections = 0;
        bad.client.timeout = Span::default();
        bad.target.http2 = true;
        bad.workload.auth = vec![(AuthKind::Cookie, 1.0)];
        bad.phases[0].length = Span::default();
        let mistakes = bad.mistakes().join("\n");
        for part in [
            "connections:",
            "timeout:",
            "http2:",
            "--proxy-key-file",
            "its length (`for`) is 0",
            "closed loop",
        ] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
        assert!(plan(Load::Burst { size: 1, every: Span::default() }, "get").mistakes()[0].contains("burst"));
        assert!(plan(Load::Hold { rate: -1.0 }, "get").mistakes()[0].contains("rates"));
        let mut long = plan(Load::Soak { rate: 1.0 }, "get");
        long.phases[0].length = Span(LENGTH_MAX);
        assert_eq!(long.mistakes(), Vec::<String>::new());
        long.phases.push(long.phases[0].clone());
        long.phases[1].length = Span(Duration::MAX);
        assert!(long.mistakes()[0].contains("31 days"));
    }

    /// Silence is a failure when a probe has waited for its end, and then the time would be over.
    #[test]
    fn a_failure_is_looked_for_longer_than_a_probe_waits() {
        let mistakes = |effect, within: Duration| {
            let mut plan = plan(Load::Hold { rate: 1.0 }, "get");
            let probe =
                Probe { sandbox: None, path: "/".into(), effect, recovery: false, every: Span::default() };
            plan.phases[0].churn = vec![Churn {
                name: "c".into(),
                at: Span::default(),
                action: Action::Command("true".into()),
                probe,
                within: Span(within),
                undo: None,
                if_possible: false,
            }];
            plan.mistakes()
        };
        for within in [Duration::from_millis(500), PROBE_TIMEOUT] {
            let [mistake] = &mistakes(Expectation::Fails, within)[..] else { panic!("{within:?}") };
            assert!(
                mistake.starts_with("phase p: churn c: within ") && mistake.contains("within = \"4s\""),
                "{mistake}"
            );
            assert!(
                mistakes(Expectation::Refused, within).is_empty()
                    && mistakes(Expectation::Unharmed, within).is_empty()
            );
        }
        assert!(mistakes(Expectation::Fails, Duration::from_secs(4)).is_empty());
    }

    #[test]
    fn a_plan_survives_its_way_to_an_agent() {
        let mut plan = plan(Load::Ramp { from: 0.0, to: 10.0 }, "get:1k=3,page:2x8k=1");
        plan.phases[0].idle = Some(Idle { count: 3, rate: 1.5, reopen: true });
        let text = serde_json::to_string(&plan).expect("JSON");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("its own"), plan);
    }
}
