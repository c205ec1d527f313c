//! The command line: subcommands and their flags.

use crate::assertion;
use crate::backend::{self, BackendArgs};
use crate::compare::{self, CompareArgs};
use crate::console::{self, Lines};
use crate::interleave;
use crate::live::Screen;
use crate::plan::{Plan, Target};
use crate::population::{AuthKind, Population, Sandbox};
use crate::report;
use crate::result::RunResult;
use crate::run::{self, Moment, Observation};
use crate::run_args::{
    AgentArgs, ClientArgs, FindMaxArgs, InterleaveArgs, ObserveArgs, OutputArgs, RunArgs, ScenarioArgs,
    read_key,
};
use crate::saved::{self, AssertArgs, ReportArgs};
use crate::signals::stop_on_signals;
use crate::start::{self, LaunchArgs, Stage, Staging};
use crate::transport::Place;
use crate::turns::TurnOutputs;
use crate::unshown::without_stray_word;
use crate::{agent, find_max, scenario};
use clap::{Args, Parser, Subcommand};
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Load for preview proxies: open loop, sandbox-shaped, honest.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put a load on a proxy (or any server) and say what it did
    Run(Box<RunArgs>),
    /// Run phases, mixes and changes under load from a file, or one of the scenarios that come along
    Scenario(Box<ScenarioArgs>),
    /// Say which scenarios come along
    Scenarios,
    /// Search the highest rate whose 99th percentile stays under a bound
    FindMax(Box<FindMaxArgs>),
    /// Measure two targets in turns, A B A B, so that a noisy machine is noisy for both
    Interleave(Box<InterleaveArgs>),
    /// Make load for a coordinator on another host
    Agent(AgentArgs),
    /// Stand in for the API and the runners, so that a proxy can be measured with nothing else installed
    Backend(BackendArgs),
    /// Make reports out of a saved result
    Report(ReportArgs),
    /// Put two saved results beside each other and say of each measure: faster, slower or noise
    Compare(CompareArgs),
    /// Check thresholds on a saved result: exit code 99 when one does not hold
    Assert(AssertArgs),
    /// Print the sandboxes of a population with their credentials, tab-separated, to set up an API of your own
    Population(PopulationArgs),
    /// Become a command that ends with whoever started this
    #[command(hide = true)]
    Launch(LaunchArgs),
}

#[derive(Debug, Args)]
struct PopulationArgs {
    /// Seed of the population
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many public ones
    #[arg(long, default_value_t = 0)]
    public: u64,
    /// How many private ones
    #[arg(long, default_value_t = 10)]
    private: u64,
    /// Port the signed tokens are for
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

impl Cli {
    /// What the process was started with. Does not return if that is wrong, or if it asks for help.
    pub fn from_words() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let words: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
            without_stray_word(error, &words).exit()
        })
    }

    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(args) => report_error(run_once(&args)),
            Command::Scenario(args) => report_error(run_scenario(&args)),
            Command::Scenarios => report_error(list_scenarios()),
            Command::FindMax(args) => report_error(find_maximum(&args)),
            Command::Interleave(args) => report_error(take_turns(&args)),
            Command::Agent(args) => report_error(serve_agent(&args)),
            Command::Backend(args) => backend::run(&args),
            Command::Report(args) => report_error(saved::report(&args)),
            Command::Compare(args) => report_error(compare::run(&args)),
            Command::Assert(args) => report_error(saved::assert(&args)),
            Command::Launch(args) => start::launch(&args),
            Command::Population(args) => match print_population(&args, &mut io::stdout().lock()) {
                // As of [`print`], but for what need not be in memory as a whole.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    report_error(Err(format!("standard output: {error}")))
                }
                _ => ExitCode::SUCCESS,
            },
        }
    }
}

/// The command line or the machine does not allow what is asked.
pub(crate) const EXIT_USAGE: u8 = 2;
/// The result is not valid: it says more about the load generator than about the target.
const EXIT_INVALID: u8 = 3;

fn report_error(outcome: Result<ExitCode, String>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        say(&format!("loadtest: {error}"), false);
        ExitCode::from(EXIT_USAGE)
    })
}

fn run_once(args: &RunArgs) -> Result<ExitCode, String> {
    let mut load = args.load.clone();
    let staging = Staging::new(&mut load.target, &[])?;
    let setup =
        Setup { plan: load.paced(&args.pace)?, staging, client: &load.client, live: !args.output.quiet };
    setup.measure(&args.output, &load.observe, |runner, plan, observation| runner.run(plan, observation))
}

fn run_scenario(args: &ScenarioArgs) -> Result<ExitCode, String> {
    let mut args = args.clone();
    let staging = Staging::new(&mut args.target, &[])?;
    args.levers = args.levers.or_else(|| staging.as_ref().map(Staging::levers));
    let setup = Setup { plan: args.plan()?, staging, client: &args.client, live: !args.output.quiet };
    setup.measure(&args.output, &args.observe, |runner, plan, observation| runner.run(plan, observation))
}

fn list_scenarios() -> Result<ExitCode, String> {
    let line = |name| Ok(format!("{name:<14} {}\n", scenario::Scenario::load(name)?.about));
    let lines: Result<String, String> = scenario::SHIPPED.into_iter().map(|(name, _)| line(name)).collect();
    print(&lines?)?;
    Ok(ExitCode::SUCCESS)
}

fn find_maximum(args: &FindMaxArgs) -> Result<ExitCode, String> {
    let mut args = args.clone();
    let staging = Staging::new(&mut args.load.target, &[])?;
    let plan = args.template()?;
    let bound = args.bound(&plan)?;
    let setup = Setup { plan, staging, client: &args.load.client, live: false };
    setup.measure(&args.output, &args.load.observe, |runner, template, observation| {
        let mut tell = |step: &crate::result::SearchStep| say(&console::search_step(step), args.output.quiet);
        let mut run = |plan| runner.run(plan, observation);
        find_max::search(&template, &bound, &runner.stop, &mut run, &mut tell)
    })
}

fn take_turns(args: &InterleaveArgs) -> Result<ExitCode, String> {
    let mut load = args.load.clone();
    let staging = Staging::new(&mut load.target, args.start_with.as_slice())?;
    let other = args.other(staging.as_ref())?;
    let plan = load.paced(&args.pace)?;
    if staging.is_none() {
        // Before A's first turn, which would be in vain.
        Place::of(&Target { url: other.url.clone(), ..plan.target.clone() })?;
    }
    let outputs = TurnOutputs::new(args);
    outputs.check()?;
    let count_calls = load.observe.count_calls && (staging.is_some() || args.with_proxy_pid.is_some());
    let of_b = ObserveArgs {
        proxy_pid: args.with_proxy_pid.clone(),
        count_calls,
        metrics_url: args.with_metrics_url.clone(),
    };
    let started = staging.is_some();
    for (thresholds, observe) in [(&args.assert_a, &load.observe), (&args.assert_b, &of_b)] {
        assertion::foresee(thresholds, &plan, &observe.watched(started))?;
    }
    let setup = Setup { plan, staging, client: &load.client, live: false };
    setup.on_stage(args.quiet, |runner, a, stage| {
        let mut b = a.clone();
        (b.name, b.target.url) = (other.name, other.url);
        let observations = [stage.observation(0, &load.observe), stage.observation(1, &of_b)];
        let mut tell = |round: u32, target: usize, result: &RunResult| {
            say(&console::round(round, target, result), args.quiet);
        };
        let mut run = |plan: &Plan, target: usize| runner.run(plan.clone(), &observations[target]);
        let outcome = interleave::run([a, b], args.rounds, &runner.stop, &mut run, &mut tell);
        let mut results =
            outcome.map_err(|error| stage.failure().map_or(error, |failure| failure.for_terminal()))?;
        for (target, result) in results.iter_mut().enumerate() {
            *result = result.take().map(|result| stage.settle(target, Ok(result))).transpose()?;
        }
        outputs.conclude(results, stage.failure().map(|failure| failure.how).as_deref())
    })
}

fn serve_agent(args: &AgentArgs) -> Result<ExitCode, String> {
    let key = read_key(&args.key_file)?;
    let listener =
        std::net::TcpListener::bind(args.listen).map_err(|error| format!("{}: {error}", args.listen))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    print(&format!("agent on {address}\n"))?;
    agent::serve(&listener, &key, args.once).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// A load, and what is to be started for it.
struct Setup<'a> {
    plan: Plan,
    staging: Option<Staging>,
    client: &'a ClientArgs,
    /// Runs are shown as they go on.
    live: bool,
}

impl Setup<'_> {
    /// Measures one target and writes what came of it.
    fn measure(
        self,
        output: &OutputArgs,
        observe: &ObserveArgs,
        measure: impl FnOnce(&Runner, Plan, &Observation) -> Result<RunResult, String>,
    ) -> Result<ExitCode, String> {
        output.files.check().map_err(|error| error.to_string())?;
        assertion::foresee(&output.files.assert, &self.plan, &observe.watched(self.staging.is_some()))?;
        self.on_stage(output.quiet, |runner, plan, stage| {
            let outcome = measure(runner, plan, &stage.observation(0, observe));
            conclude(stage.settle(0, outcome)?, output)
        })
    }

    /// Starts what is to be started, if anything is, and ends it when everything is done and written: ends take their time.
    fn on_stage(
        mut self,
        quiet: bool,
        act: impl FnOnce(&Runner, Plan, &Stage) -> Result<ExitCode, String>,
    ) -> Result<ExitCode, String> {
        let runner = Runner::new(self.client, !self.live)?;
        let stage = runner.stage(self.staging, &mut self.plan, quiet)?;
        let outcome = act(&runner, self.plan, &stage);
        if let (Ok(_), Some(failure)) = (&outcome, stage.failure()) {
            say(&format!("loadtest: {}", failure.for_terminal()), false);
        }
        outcome
    }
}

/// Beside what was written, of which some may be on standard output.
///
/// # Errors
/// As [`print`].
pub(crate) fn tell(text: &str, stdout_is_taken: bool) -> Result<(), String> {
    if stdout_is_taken {
        // On the terminal, which may be gone.
        drop(io::stderr().write_all(text.as_bytes()));
        return Ok(());
    }
    print(text)
}

/// To standard output. Whoever reads it may have seen enough, as `head` has.
///
/// # Errors
/// A sentence: there is no room for it.
pub(crate) fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        _ => Ok(()),
    }
}

/// On the terminal, which may be gone: the results are in files.
fn say(line: &str, quiet: bool) {
    if !quiet {
        drop(writeln!(io::stderr(), "{line}"));
    }
}

/// Runs plans here or on agents, with the live view.
struct Runner {
    agents: Option<run::Agents>,
    stop: Arc<AtomicBool>,
    quiet: bool,
}

impl Runner {
    fn new(client: &ClientArgs, quiet: bool) -> Result<Self, String> {
        Ok(Self { agents: client.agents()?, stop: stop_on_signals()?, quiet })
    }

    /// Starts what is to be started for this plan, if anything is.
    fn stage(&self, staging: Option<Staging>, plan: &mut Plan, quiet: bool) -> Result<Stage, String> {
        let Some(staging) = staging else { return Ok(Stage::default()) };
        staging.fill_in_key(plan);
        plan.check()?;
        staging.start(&self.stop, &mut |line| say(line, quiet))
    }

    fn run(&self, plan: Plan, observation: &Observation) -> Result<RunResult, String> {
        let plan = Arc::new(plan);
        say(&console::announcement(&plan), self.quiet);
        let mut view = View::new(self.quiet);
        let mut watch = |moment: &Moment<'_>| view.show(moment);
        match &self.agents {
            Some(agents) => run::run_on(agents, &plan, observation, &self.stop, &mut watch),
            None => run::run(&plan, observation, &self.stop, &mut watch),
        }
    }
}

/// Writes what was asked for and chooses the exit code.
fn conclude(mut result: RunResult, output: &OutputArgs) -> Result<ExitCode, String> {
    result.meta.command = std::env::args().collect();
    let holds = output.files.finish(&mut result).map_err(|error| error.to_string())?;
    let summary = console::summary(&result) + &assertion::lines(&result.assertions);
    tell(&summary, report::take_stdout(output.files.files()))?;
    Ok(exit_code(holds, result.validity.valid))
}

pub(crate) fn exit_code(holds: bool, valid: bool) -> ExitCode {
    match (holds, valid) {
        (false, _) => ExitCode::from(assertion::EXIT_CODE),
        (true, false) => ExitCode::from(EXIT_INVALID),
        (true, true) => ExitCode::SUCCESS,
    }
}

/// What is shown while a run goes on.
enum View {
    Nothing,
    Lines(Lines),
    Screen(Screen),
}

impl View {
    /// A screen on terminals, else lines.
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Nothing;
        }
        match io::stderr().is_terminal().then(Screen::open) {
            Some(Ok(screen)) => Self::Screen(screen),
            _ => Self::Lines(Lines::new()),
        }
    }

    fn show(&mut self, moment: &Moment<'_>) {
        match self {
            Self::Nothing => {}
            Self::Lines(lines) => lines.show(moment),
            Self::Screen(screen) => screen.show(moment),
        }
    }
}

fn print_population(args: &PopulationArgs, out: &mut dyn Write) -> io::Result<()> {
    let population = Population::new(args.seed);
    let mut out = io::BufWriter::new(out);
    writeln!(out, "visibility\tid\ttoken\tbearer\tsigned\tbad token")?;
    for (public, count) in [(true, args.public), (false, args.private)] {
        for index in 0..count {
            let sandbox = Sandbox { index, public };
            let (id, token) = (population.id(sandbox), population.token(sandbox));
            let (bearer, signed) = (population.bearer(sandbox), population.signed(sandbox, args.port));
            let visibility = if public { "public" } else { "private" };
            let bad = population.bad(AuthKind::Token, sandbox, 0);
            writeln!(out, "{visibility}\t{id}\t{token}\t{bearer}\t{signed}\t{bad}")?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_population_is_printed_with_public_ones_first() {
        let args = PopulationArgs { seed: 3, public: 1, private: 2, port: 3000 };
        let mut text = Vec::new();
        print_population(&args, &mut text).expect("memory takes it");
        let text = String::from_utf8(text).expect("ASCII");
        let kinds: Vec<_> = text.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
        assert_eq!(kinds, ["visibility", "public", "private", "private"]);
        assert!(text.contains(&Population::new(3).id(Sandbox { index: 1, public: false })));
    }
}
