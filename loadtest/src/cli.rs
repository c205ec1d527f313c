//! The command line: subcommands and their flags.

use crate::backend::{self, BackendArgs};
use crate::population::{AuthKind, Population, Sandbox};
use clap::{Args, Parser, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;

/// Load for preview proxies: open loop, sandbox-shaped, honest.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
