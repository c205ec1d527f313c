//! The command line: subcommands and their flags.

use crate::assertion;
use crate::backend::{self, BackendArgs};
use crate::compare::{self, CompareArgs};
use crate::console::{self, Lines};
use crate::interleave;
use crate::live::Screen;
use crate::plan::Plan;
use crate::population::{AuthKind, Population, Sandbox};
use crate::report::Outputs;
use crate::result::RunResult;
use crate::run::{self, Moment, Observation};
use crate::run_args::{
    AgentArgs, ClientArgs, FindMaxArgs, InterleaveArgs, ObserveArgs, OutputArgs, RunArgs, ScenarioArgs,
    read_key,
};
use crate::saved::{self, AssertArgs, ReportArgs};
use crate::start::{self, LaunchArgs, Stage, Staging};
use crate::{agent, find_max, scenario};
use clap::{Args, Parser, Subcommand};
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
                Ok(()) => ExitCode::SUCCESS,
                // A reader that has seen enough, as `head` has.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("loadtest: {error}");
                    ExitCode::FAILURE
                }
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
        eprintln!("loadtest: {error}");
        ExitCode::from(EXIT_USAGE)
    })
}

fn run_once(args: &RunArgs) -> Result<ExitCode, String> {
    let mut load = args.load.clone();
    let staging = Staging::new(&mut load.target, &[])?;
    let mut plan = load.paced(&args.pace)?;
    args.output.files.check().map_err(|error| error.to_string())?;
    let runner = Runner::new(&load.client, args.output.quiet)?;
    let stage = runner.stage(staging, &mut plan, args.output.quiet)?;
    let outcome = runner.run(plan, &stage.observation(0, &load.observe));
    let result = stage.settle(0, outcome)?;
    drop(stage);
    conclude(result, &args.output)
}

fn run_scenario(args: &ScenarioArgs) -> Result<ExitCode, String> {
    let mut args = args.clone();
    let staging = Staging::new(&mut args.target, &[])?;
    args.levers = args.levers.or_else(|| staging.as_ref().map(Staging::levers));
    let mut plan = args.plan()?;
    args.output.files.check().map_err(|error| error.to_string())?;
    let runner = Runner::new(&args.client, args.output.quiet)?;
    let stage = runner.stage(staging, &mut plan, args.output.quiet)?;
    let outcome = runner.run(plan, &stage.observation(0, &args.observe));
    let result = stage.settle(0, outcome)?;
    drop(stage);
    conclude(result, &args.output)
}

fn list_scenarios() -> Result<ExitCode, String> {
    for (name, _) in scenario::SHIPPED {
        println!("{name:<14} {}", scenario::Scenario::load(name)?.about);
    }
    Ok(ExitCode::SUCCESS)
}

fn find_maximum(args: &FindMaxArgs) -> Result<ExitCode, String> {
    let mut args = args.clone();
    let bound = args.bound()?;
    let staging = Staging::new(&mut args.load.target, &[])?;
    let mut template = args.template()?;
    args.output.files.check().map_err(|error| error.to_string())?;
    let runner = Runner::new(&args.load.client, true)?;
    let stage = runner.stage(staging, &mut template, args.output.quiet)?;
    let observation = stage.observation(0, &args.load.observe);
    let mut tell = |step: &crate::result::SearchStep| {
        if !args.output.quiet {
            eprintln!("{}", console::search_step(step));
        }
    };
    let mut run = |plan| runner.run(plan, &observation);
    let outcome = find_max::search(&template, &bound, &runner.stop, &mut run, &mut tell);
    let result = stage.settle(0, outcome)?;
    drop(stage);
    conclude(result, &args.output)
}

fn take_turns(args: &InterleaveArgs) -> Result<ExitCode, String> {
    let mut load = args.load.clone();
    let staging = Staging::new(&mut load.target, args.start_with.as_slice())?;
    let other = args.other(staging.as_ref())?;
    let mut a = load.paced(&args.pace)?;
    let outputs = [(&args.json_a, &args.assert_a), (&args.json_b, &args.assert_b)]
        .map(|(json, assert)| Outputs { json: json.clone(), assert: assert.clone(), ..Outputs::default() });
    let both = Outputs { html: args.html.clone(), markdown: args.markdown.clone(), ..Outputs::default() };
    outputs.iter().chain([&both]).try_for_each(Outputs::check).map_err(|error| error.to_string())?;
    let count_calls = load.observe.count_calls && (staging.is_some() || args.with_proxy_pid.is_some());
    let of_b = ObserveArgs {
        proxy_pid: args.with_proxy_pid.clone(),
        count_calls,
        metrics_url: args.with_metrics_url.clone(),
    };
    let runner = Runner::new(&load.client, true)?;
    let stage = runner.stage(staging, &mut a, args.quiet)?;
    let mut b = a.clone();
    (b.name, b.target.url) = other;
    let observations = [stage.observation(0, &load.observe), stage.observation(1, &of_b)];
    let mut tell = |round: u32, target: usize, result: &RunResult| {
        if !args.quiet {
            eprintln!("{}", console::round(round, target, result));
        }
    };
    let mut run = |plan: &Plan, target: usize| runner.run(plan.clone(), &observations[target]);
    let outcome = interleave::run([a, b], args.rounds, &runner.stop, &mut run, &mut tell);
    let failure = stage.failure();
    let mut results = outcome.map_err(|error| failure.clone().unwrap_or(error))?;
    for (target, result) in results.iter_mut().enumerate() {
        *result = result.take().map(|result| stage.settle(target, Ok(result))).transpose()?;
    }
    drop(stage);
    let (mut text, mut holds, mut valid) = (String::new(), true, failure.is_none());
    for ((name, output), result) in ["A", "B"].into_iter().zip(&outputs).zip(&mut results) {
        let Some(result) = result else {
            let why = failure.as_ref().map_or(String::new(), |why| format!(": {why}"));
            text += &format!("{name} had no turn{why}\n");
            // As with any figure that is missing.
            holds &= output.assert.is_empty();
            continue;
        };
        result.meta.command = std::env::args().collect();
        holds &= output.finish(result).map_err(|error| error.to_string())?;
        valid &= result.validity.valid;
        let lines = assertion::lines(&result.assertions);
        text.extend(lines.lines().map(|line| format!("{name}: {line}\n")));
    }
    text = match &results {
        [Some(a), Some(b)] => {
            compare::Comparison::new(a, b, compare::Judgement::default())
                .write(both.html.as_deref(), both.markdown.as_deref())?;
            console::against(a, b) + &text
        }
        // There is nothing to compare with.
        [one, other] => match one.clone().or(other.clone()) {
            Some(mut only) => {
                both.finish(&mut only).map_err(|error| error.to_string())?;
                console::summary(&only) + &text
            }
            None => text,
        },
    };
    // Nobody may be reading; the files are written.
    drop(io::stdout().write_all(text.as_bytes()));
    Ok(match (holds, valid) {
        (false, _) => ExitCode::from(assertion::EXIT_CODE),
        (true, false) => ExitCode::from(EXIT_INVALID),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn serve_agent(args: &AgentArgs) -> Result<ExitCode, String> {
    let key = read_key(&args.key_file)?;
    let listener =
        std::net::TcpListener::bind(args.listen).map_err(|error| format!("{}: {error}", args.listen))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("agent on {address}");
    agent::serve(&listener, &key, args.once).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
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
        staging.start(&self.stop, &mut |line| {
            if !quiet {
                eprintln!("{line}");
            }
        })
    }

    fn run(&self, plan: Plan, observation: &Observation) -> Result<RunResult, String> {
        let plan = Arc::new(plan);
        if !self.quiet {
            eprintln!("{}", console::announcement(&plan));
        }
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
    // Nobody may be reading; the files are written.
    drop(io::stdout().write_all(summary.as_bytes()));
    Ok(match (holds, result.validity.valid) {
        (false, _) => ExitCode::from(assertion::EXIT_CODE),
        (true, false) => ExitCode::from(EXIT_INVALID),
        (true, true) => ExitCode::SUCCESS,
    })
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

/// The first SIGINT or SIGTERM ends the run with what there is, the second ends the process.
fn stop_on_signals() -> Result<Arc<AtomicBool>, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let of = |kind| signal(kind).map_err(|error| error.to_string());
        (of(SignalKind::interrupt())?, of(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stopping.swap(true, Relaxed) {
                    std::process::exit(130);
                }
            }
        })
    });
    Ok(stop)
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
