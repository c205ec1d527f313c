//! The command line: subcommands and their flags.

use crate::backend::{self, BackendArgs};
use crate::console::{self, Lines};
use crate::population::{AuthKind, Population, Sandbox};
use crate::result::RunResult;
use crate::run;
use crate::run_args::{OutputArgs, RunArgs};
use clap::{Args, Parser, Subcommand};
use std::io::{self, Write};
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
    /// Stand in for the API and the runners, so that a proxy can be measured with nothing else installed
    Backend(BackendArgs),
    /// Print the sandboxes of a population with their credentials, tab-separated, to set up an API of your own
    Population(PopulationArgs),
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
            Command::Backend(args) => backend::run(&args),
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
const EXIT_USAGE: u8 = 2;
/// The result is not valid: it says more about the load generator than about the target.
const EXIT_INVALID: u8 = 3;

fn report_error(outcome: Result<ExitCode, String>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("loadtest: {error}");
        ExitCode::from(EXIT_USAGE)
    })
}

fn run_once(args: &RunArgs) -> Result<ExitCode, String> {
    let plan = Arc::new(args.plan()?);
    let stop = stop_on_signals()?;
    if !args.output.quiet {
        eprintln!("{}", console::announcement(&plan));
    }
    let mut lines = Lines::new();
    let quiet = args.output.quiet;
    let mut watch = |moment: &run::Moment<'_>| {
        if !quiet {
            lines.show(moment);
        }
    };
    let result = run::run(&plan, &args.load.observe.observation(), &stop, &mut watch)?;
    conclude(result, &args.output)
}

/// Writes what was asked for and chooses the exit code.
fn conclude(mut result: RunResult, output: &OutputArgs) -> Result<ExitCode, String> {
    result.meta.command = std::env::args().collect();
    if let Some(file) = &output.json {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = serde_json::to_vec_pretty(&result).map_err(|error| wrong(&error))?;
        std::fs::write(file, text).map_err(|error| wrong(&error))?;
    }
    // Nobody may be reading; the files are written.
    drop(io::stdout().write_all(console::summary(&result).as_bytes()));
    Ok(if result.validity.valid { ExitCode::SUCCESS } else { ExitCode::from(EXIT_INVALID) })
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
