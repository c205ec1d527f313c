//! The binary: the command line and nothing else.

use loadtest::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::from_words().run()
}
