//! The binary: the command line and nothing else.

use clap::Parser;
use loadtest::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::parse().run()
}
