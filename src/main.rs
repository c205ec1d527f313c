//! The binary: command line and configuration, then [`serve`], [`demo`] or [`doctor`].

use clap::Parser;
use sandgate::cli::{Cli, Command, ServeArgs};
use sandgate::config::{Config, Environment};
use sandgate::{demo, doctor, serve};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// A request's working state is allocated when its first byte comes and freed with its last: an allocator that keeps
/// such pieces per thread saves about a tenth of its CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration is wrong; nothing was started. The same as for a wrong command line.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().into_command() {
        Command::Serve(options) => serve(&options),
        Command::Doctor(options) => {
            let environment = Environment::of_process().with_files(Path::new("."));
            doctor::run(&environment, options.domain.as_deref())
        }
        Command::Demo(options) => demo::run(demo::DemoOptions { port: options.port }, |environment| {
            // How the gate runs on this machine is the operator's say; what it is in front of is not.
            let machine = ["SANDGATE_DRIVER", "SANDGATE_SHARDS", "SANDGATE_PIN"]
                .into_iter()
                .filter_map(|name| Some((name, std::env::var(name).ok()?)));
            start(&environment.into_iter().chain(machine).collect())
        }),
    }
}

fn serve(options: &ServeArgs) -> ExitCode {
    let environment = Environment::of_process().with_files(Path::new("."));
    if options.print_config && io::stdout().write_all(environment.effective().as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    match Config::from_env(&environment) {
        Ok(config) if options.check_config || options.print_config => {
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            if options.check_config {
                println!("OK");
            }
            ExitCode::SUCCESS
        }
        _ => start(&environment),
    }
}

fn start(environment: &Environment) -> ExitCode {
    match Config::from_env(environment) {
        Ok(config) => serve::run(config),
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("{mistake}");
            }
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
