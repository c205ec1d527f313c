//! Commands on saved results: `report` makes reports of one, `assert` checks thresholds on it.

use crate::assertion::{self, Thresholds};
use crate::cli;
use crate::report::{self, Outputs};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// What `run --json` wrote
    pub result: PathBuf,
    #[command(flatten)]
    pub outputs: Outputs,
}

#[derive(Clone, Debug, Args)]
pub struct AssertArgs {
    /// What `run --json` wrote
    pub result: PathBuf,
    /// Like 'p99<5ms,err<0.1%,cpu_us<20'
    #[arg(required = true)]
    pub thresholds: Vec<Thresholds>,
}

/// Writes what is asked for; the Markdown summary to standard output when nothing is.
///
/// # Errors
/// A sentence: a file cannot be read or written.
pub fn report(args: &ReportArgs) -> Result<ExitCode, String> {
    report::check_outputs(args.outputs.files(), &[&args.result]).map_err(|error| error.to_string())?;
    let mut result = report::load(&args.result)?;
    let holds = args.outputs.finish(&mut result).map_err(|error| error.to_string())?;
    if args.outputs.files().next().is_none() {
        cli::print(&report::markdown(&result))?;
    }
    cli::tell(&assertion::lines(&result.assertions), report::take_stdout(args.outputs.files()))?;
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::from(assertion::EXIT_CODE) })
}

/// Checks what is asked now, whatever the run itself was asked.
///
/// # Errors
/// A sentence: the file cannot be read.
pub fn assert(args: &AssertArgs) -> Result<ExitCode, String> {
    let mut result = report::load(&args.result)?;
    result.assertions.clear();
    let thresholds: Vec<_> = args.thresholds.iter().flat_map(|list| list.0.iter().cloned()).collect();
    let holds = assertion::check(&mut result, &thresholds);
    cli::print(&assertion::lines(&result.assertions))?;
    for reason in result.validity.reasons.iter().filter(|reason| reason.fatal) {
        eprintln!("loadtest: the result is not valid: {}", reason.message);
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::from(assertion::EXIT_CODE) })
}
