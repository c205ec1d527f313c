//! Scenario files: a day's load in TOML, from phases, mixes and changes under load. See `loadtest/scenarios/`.

use crate::har::Recordings;
use crate::plan::{
    Action, Churn, Class, Client, Expectation, Idle, Load, Phase, Plan, Probe, Target, Workload,
};
use crate::population::{AuthKind, Population, Sandbox};
use crate::quantity::{self, Span};
use crate::run_args::{auth_weights, vain};
use crate::world;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Those that come along, by name.
pub const SHIPPED: [(&str, &str); 6] = [
    ("smoke", include_str!("../scenarios/smoke.toml")),
    ("browser-day", include_str!("../scenarios/browser-day.toml")),
    ("api-storm", include_str!("../scenarios/api-storm.toml")),
    ("agents", include_str!("../scenarios/agents.toml")),
    ("idle-tunnels", include_str!("../scenarios/idle-tunnels.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
];

/// A scenario as it stands in its file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// For whom reads the list.
    pub about: String,
    #[serde(default)]
    workload: WorkloadTable,
    #[serde(default)]
    client: ClientTable,
    phase: Vec<PhaseTable>,
    /// Where it stands: recordings are named from there.
    #[serde(skip)]
    directory: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadTable {
    sandboxes: Option<Number>,
    zipf: Option<f64>,
    ports: Option<Vec<u16>>,
    auth: Option<String>,
    bad: Option<Number>,
    cold: Option<Number>,
    fresh: Option<Number>,
    toolbox: Option<Number>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientTable {
    connections: Option<u32>,
    sessions_max: Option<u32>,
    timeout: Option<Span>,
    grace: Option<Span>,
    poisson: Option<bool>,
    lag_max: Option<Span>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseTable {
    name: String,
    #[serde(rename = "for")]
    length: Span,
    rate: Option<Number>,
    soak: Option<Number>,
    ramp: Option<[Number; 2]>,
    burst: Option<BurstTable>,
    #[serde(default)]
    closed: bool,
    /// Class and weight; a phase without one takes the former phase's.
    mix: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    warmup: bool,
    idle: Option<IdleTable>,
    #[serde(default)]
    churn: Vec<ChurnTable>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BurstTable {
    size: u32,
    every: Span,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdleTable {
    count: Number,
    rate: Number,
    #[serde(default)]
    reopen: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChurnTable {
    name: String,
    at: Span,
    /// `private`, `public` (of the probed sandbox), `restart-runner` or `restart-redis`: levers of `loadtest backend`.
    lever: Option<Lever>,
    /// Anything else: a shell command.
    command: Option<String>,
    /// Left out where the backend does not have the lever.
    #[serde(default)]
    if_possible: bool,
    /// A shell command that undoes the first when the run is over, whatever became of it. Levers undo themselves.
    undo: Option<String>,
    /// Index of the sandbox that is changed and probed.
    #[serde(default)]
    sandbox: u64,
    #[serde(default = "public")]
    auth: String,
    effect: Expectation,
    /// Look further, until it is as before.
    #[serde(default)]
    recovery: bool,
    #[serde(default = "ten_seconds")]
    within: Span,
    #[serde(default = "two_milliseconds")]
    every: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Lever {
    Private,
    Public,
    RestartRunner,
    RestartRedis,
}

fn public() -> String {
    "public".into()
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

fn two_milliseconds() -> Span {
    Span(Duration::from_millis(2))
}

/// A number, or a text with a unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Real(f64),
    Text(String),
}

impl Number {
    fn text(&self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Real(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// What the command line adds to a scenario.
#[derive(Clone, Debug)]
pub struct Setting {
    pub target: Target,
    /// Base URL of the backend's API, whose levers churn pulls; without it a scenario with levers is refused.
    pub levers: Option<String>,
    /// Factor on all rates and idle counts.
    pub rate_scale: f64,
    /// Factor on all lengths and times.
    pub time_scale: f64,
    pub sandboxes: Option<u64>,
    pub connections: Option<u32>,
    pub population: u64,
    pub proxy_key: Option<String>,
    /// Replaces the scenario's.
    pub client: ClientSetting,
}

/// The load generator's own.
#[derive(Clone, Debug, Default)]
pub struct ClientSetting {
    pub threads: Option<u32>,
    pub cpus: Vec<usize>,
    pub sources: Vec<std::net::IpAddr>,
    pub seed: u64,
    pub lag_max: Option<Span>,
}

impl Scenario {
    /// One that comes along, or a file.
    pub fn load(name: &str) -> Result<Self, String> {
        let text = match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(Path::new(name)).map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    format!("scenario `{name}`: not one that comes along (`loadtest scenarios`), and no file")
                }
                _ => format!("scenario `{name}`: {error}"),
            })?,
        };
        let scenario = Self::parse(&text).map_err(|error| format!("scenario `{name}`: {error}"))?;
        Ok(Self { directory: Path::new(name).parent().unwrap_or(Path::new("")).into(), ..scenario })
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The plan against this target.
    pub fn plan(&self, setting: &Setting) -> Result<Plan, String> {
        let mut mix: Vec<(Class, f64)> = Vec::new();
        let mut recordings = Recordings::relative_to(&self.directory);
        let mut phases = Vec::new();
        for table in &self.phase {
            let wrong = |error: String| format!("phase {}: {error}", table.name);
            if let Some(classes) = &table.mix {
                mix = mix_of(classes, &mut recordings).map_err(wrong)?;
            }
            phases.push(Phase { mix: mix.clone(), ..self.phase(table, setting).map_err(wrong)? });
        }
        Ok(Plan {
            name: self.name.clone(),
            target: setting.target.clone(),
            client: self.client(setting),
            workload: self.workload(setting)?,
            phases,
            recordings: recordings.into_plan(),
        })
    }

    fn client(&self, setting: &Setting) -> Client {
        let (table, ours, defaults) = (&self.client, &setting.client, Client::default());
        Client {
            threads: ours.threads.unwrap_or(defaults.threads),
            cpus: ours.cpus.clone(),
            connections: setting.connections.or(table.connections).unwrap_or(defaults.connections),
            sessions_max: table.sessions_max.unwrap_or(defaults.sessions_max),
            sources: ours.sources.clone(),
            seed: ours.seed,
            timeout: table.timeout.unwrap_or(defaults.timeout),
            grace: table.grace.unwrap_or(defaults.grace),
            poisson: table.poisson.unwrap_or(defaults.poisson),
            lag_max: ours.lag_max.or(table.lag_max),
            streams: defaults.streams,
        }
    }

    fn workload(&self, setting: &Setting) -> Result<Workload, String> {
        let (table, defaults) = (&self.workload, Workload::default());
        if setting.target.domain.is_none() {
            let keys = [
                ("`sandboxes`", table.sandboxes.is_some()),
                ("`zipf`", table.zipf.is_some()),
                ("`ports`", table.ports.is_some()),
                ("`auth`", table.auth.is_some()),
                ("`bad`", table.bad.is_some()),
                ("`cold`", table.cold.is_some()),
                ("`toolbox`", table.toolbox.is_some()),
            ];
            vain("--domain", &keys).map_err(|error| format!("[workload]: {error}"))?;
        }
        let share = |number: &Option<Number>| number.as_ref().map_or(Ok(0.0), |n| quantity::share(&n.text()));
        let sandboxes = table.sandboxes.as_ref().map(|number| quantity::count(&number.text())).transpose()?;
        Ok(Workload {
            sandboxes: setting.sandboxes.or(sandboxes).unwrap_or(defaults.sandboxes),
            zipf: table.zipf.unwrap_or(defaults.zipf),
            ports: table.ports.clone().unwrap_or(defaults.ports),
            auth: table.auth.as_deref().map(auth_weights).transpose()?.unwrap_or(defaults.auth),
            bad: share(&table.bad)?,
            cold: share(&table.cold)?,
            fresh: share(&table.fresh)?,
            toolbox: share(&table.toolbox)?,
            population: setting.population,
            proxy_key: setting.proxy_key.clone(),
        })
    }

    fn phase(&self, table: &PhaseTable, setting: &Setting) -> Result<Phase, String> {
        let rate = |number: &Number| quantity::rate(&number.text()).map(|rate| rate * setting.rate_scale);
        // A ramp may begin or end at nothing.
        let ramp_rate = |number: &Number| if number.text() == "0" { Ok(0.0) } else { rate(number) };
        let scaled = |span: Span| Span(span.0.mul_f64(setting.time_scale));
        let mut loads = Vec::new();
        loads.extend(table.rate.as_ref().map(|number| Ok(Load::Hold { rate: rate(number)? })));
        loads.extend(table.soak.as_ref().map(|number| Ok(Load::Soak { rate: rate(number)? })));
        loads.extend(
            table
                .ramp
                .as_ref()
                .map(|[from, to]| Ok(Load::Ramp { from: ramp_rate(from)?, to: ramp_rate(to)? })),
        );
        loads.extend(table.burst.as_ref().map(|burst| {
            // What is scaled down stays a burst.
            let size = match burst.size {
                0 => 0,
                size => (f64::from(size) * setting.rate_scale).round().max(1.0) as u32,
            };
            Ok::<_, String>(Load::Burst { size, every: scaled(burst.every) })
        }));
        loads.extend(table.closed.then_some(Ok(Load::Closed)));
        let load = match loads.pop() {
            None if table.mix.is_some() => {
                return Err(
                    "a mix without a rate sends nothing: add rate, ramp, burst, soak or closed".into()
                );
            }
            None => Load::Quiet,
            Some(load) if loads.is_empty() => load?,
            Some(_) => return Err("one of rate, ramp, burst, soak and closed".into()),
        };
        let idle = table.idle.as_ref().map(|idle| {
            let count = quantity::count(&idle.count.text())? as f64 * setting.rate_scale;
            let count = count.round().max(1.0) as u64;
            Ok::<_, String>(Idle { count, rate: rate(&idle.rate)?, reopen: idle.reopen })
        });
        let churn = table.churn.iter().map(|churn| churn_of(churn, setting, &scaled));
        Ok(Phase {
            name: table.name.clone(),
            load,
            length: scaled(table.length),
            mix: Vec::new(),
            warmup: table.warmup,
            churn: churn.collect::<Result<_, _>>()?,
            idle: idle.transpose()?,
        })
    }
}

/// Names of files may hold what divides the classes on the command line.
fn mix_of(table: &BTreeMap<String, f64>, recordings: &mut Recordings) -> Result<Vec<(Class, f64)>, String> {
    let weighted = |(class, weight): (&String, &f64)| match *weight {
        weight if weight > 0.0 && weight.is_finite() => Ok((recordings.class_of(class.trim())?, weight)),
        weight => Err(format!("mix: `{class}`: its weight {weight} is no number above 0")),
    };
    table.iter().map(weighted).collect()
}

fn churn_of(table: &ChurnTable, setting: &Setting, scaled: &dyn Fn(Span) -> Span) -> Result<Churn, String> {
    let kinds = auth_weights(&table.auth)?;
    let kind = kinds.first().map_or(AuthKind::Public, |(kind, _)| *kind);
    let sandbox = Sandbox { index: table.sandbox, public: kind == AuthKind::Public };
    let (action, undo) = match (&table.lever, &table.command) {
        (None, Some(command)) => (Action::Command(command.clone()), table.undo.clone().map(Action::Command)),
        (Some(_), _) if table.undo.is_some() => {
            return Err(format!("churn {}: undo goes with a command, a lever undoes itself", table.name));
        }
        (Some(lever), None) => {
            let Some(base) = &setting.levers else {
                return Err(format!("churn {}: --levers must name the backend's API", table.name));
            };
            let id = Population::new(setting.population).id(sandbox);
            let base = base.trim_end_matches('/');
            let visible = |public: bool| {
                Action::Post(format!("{base}{}{id}/visibility?public={public}", world::LEVER_SANDBOXES))
            };
            match lever {
                Lever::Private => (visible(false), Some(visible(sandbox.public))),
                Lever::Public => (visible(true), Some(visible(sandbox.public))),
                Lever::RestartRunner => {
                    (Action::Post(format!("{base}{}?down_ms=500", world::LEVER_RESTART_RUNNER)), None)
                }
                Lever::RestartRedis => {
                    (Action::Post(format!("{base}{}?down_ms=2000", world::LEVER_RESTART_REDIS)), None)
                }
            }
        }
        _ => return Err(format!("churn {}: either a lever or a command", table.name)),
    };
    let probe = Probe {
        sandbox: setting.target.domain.is_some().then_some((table.sandbox, kind)),
        path: Class::Get { bytes: 1 }.path(),
        effect: table.effect,
        recovery: table.recovery,
        every: table.every,
    };
    // What a proxy remembers ages as ever: `within` is not scaled.
    let (name, at, within) = (table.name.clone(), scaled(table.at), table.within);
    Ok(Churn { name, at, action, probe, within, undo, if_possible: table.if_possible })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            target: Target {
                url: "http://127.0.0.1:1".into(),
                domain: Some("preview.test".into()),
                ..Target::default()
            },
            levers: Some("http://127.0.0.1:2".into()),
            rate_scale: 1.0,
            time_scale: 1.0,
            sandboxes: None,
            connections: None,
            population: 1,
            proxy_key: Some("key".into()),
            client: ClientSetting::default(),
        }
    }

    #[test]
    fn every_shipped_scenario_makes_a_plan_without_mistakes() {
        for (name, _) in SHIPPED {
            let scenario = Scenario::load(name).unwrap_or_else(|error| panic!("{error}"));
            let plan = scenario.plan(&setting()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(plan.mistakes(), Vec::<String>::new(), "{name}");
            assert!(!scenario.about.is_empty() && plan.phases.iter().any(|phase| !phase.warmup), "{name}");
        }
    }

    #[test]
    fn scales_reach_rates_and_times() {
        let text = "name = 'x'\nabout = 'x'\n[[phase]]\nname = 'a'\nfor = '10s'\nramp = [0, '1k']\nmix = { 'get:1k' = 1 }\n\
                    [[phase]]\nname = 'b'\nfor = '1m'\nburst = { size = 100, every = '2s' }\nidle = { count = '10k', rate = 500 }\n";
        let setting = Setting { rate_scale: 0.1, time_scale: 0.5, ..setting() };
        let plan = Scenario::parse(text).and_then(|scenario| scenario.plan(&setting)).expect("a plan");
        assert_eq!(plan.phases[0].load, Load::Ramp { from: 0.0, to: 100.0 });
        assert_eq!(plan.phases[0].length.0, Duration::from_secs(5));
        assert_eq!(plan.phases[1].load, Load::Burst { size: 10, every: Span(Duration::from_secs(1)) });
        assert_eq!(plan.phases[1].idle, Some(Idle { count: 1000, rate: 50.0, reopen: false }));
        assert_eq!(plan.phases[1].mix, plan.phases[0].mix, "kept from the phase before");
    }

    #[test]
    fn a_workload_of_sandboxes_means_nothing_without_a_domain() {
        let error = |workload: &str, domain: Option<&str>| {
            let text = format!(
                "name = 'x'\nabout = 'x'\n[workload]\n{workload}\n[[phase]]\nname = 'a'\nfor = '1s'\nrate = 1\nmix = {{ get = 1 }}"
            );
            let target = Target { domain: domain.map(Into::into), ..setting().target };
            let plan =
                Scenario::parse(&text).and_then(|scenario| scenario.plan(&Setting { target, ..setting() }));
            plan.err()
        };
        for key in [
            "sandboxes = 5",
            "zipf = 1.0",
            "ports = [3000]",
            "auth = 'token'",
            "bad = '1%'",
            "cold = 0.1",
            "toolbox = 1",
        ] {
            let name = key.split(' ').next().expect("a key");
            let told = format!(
                "[workload]: without --domain there is no meaning in `{name}`: add the one or leave out the other"
            );
            assert_eq!(error(key, None), Some(told));
            assert_eq!(error(key, Some("preview.test")), None);
        }
        let both = error("auth = 'token'\nsandboxes = '5k'", None).expect("refused");
        assert!(both.contains("in `sandboxes`, `auth`: add"), "{both}");
        assert_eq!(error("fresh = '10%'", None), None, "of any server");
    }

    #[test]
    fn mistakes_name_their_phase_or_key() {
        let error = |phase: &str, setting: &Setting| {
            let text = format!("name = 'x'\nabout = 'x'\n[[phase]]\nname = 'p'\nfor = '1s'\n{phase}");
            Scenario::parse(&text).and_then(|scenario| scenario.plan(setting)).expect_err("a mistake")
        };
        let setting = setting();
        assert!(error("rate = 1\nclosed = true", &setting).contains("phase p: one of"));
        assert!(error("rat = 1", &setting).contains("rat"));
        assert!(error("mix = { get = 1 }", &setting).contains("phase p: a mix without a rate"));
        let burst = "name = 'x'\nabout = 'x'\n[[phase]]\nname = ' '\nfor = '1s'\nburst = { size = 0, every = '1s' }\nmix = { get = 1 }";
        let plan = Scenario::parse(burst).and_then(|scenario| scenario.plan(&setting)).expect("read");
        let told = ["a phase has no name", "phase  : a burst needs a size and an interval"];
        assert_eq!(plan.mistakes()[..2], told);
        assert!(error("rate = 'fast'", &setting).contains("fast"));
        assert!(error("rate = 1\nmix = { 'got:1' = 1 }", &setting).contains("got:1"));
        assert!(error("rate = 1\nmix = { 'get:1k' = 0 }", &setting).contains("`get:1k`: its weight 0"));
        let absent = error("rate = 1\nmix = { 'har:a,b=c.har' = 1 }", &setting);
        assert!(absent.starts_with("phase p: har:a,b=c.har: No such file"), "{absent}");
        assert!(error("rate = 1\nmix = { 'har:' = 1 }", &setting).contains("a HAR file's name follows"));
        let churn = "rate = 1\n[[phase.churn]]\nname = 'c'\nat = '1s'\neffect = 'refused'\n";
        assert!(error(churn, &setting).contains("churn c: either"));
        let unlevered = Setting { levers: None, ..setting };
        assert!(error(&format!("{churn}lever = 'private'\n"), &unlevered).contains("--levers"));
    }
}
