//! `loadtest interleave`: two targets in turns.

use super::{LoadArgs, PaceArgs};
use crate::assertion::Thresholds;
use crate::host::ProxySource;
use crate::start::{CommandLine, Staging};
use crate::unshown::{unshown, url_without_user};
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr as _;

#[derive(Clone, Debug, Args)]
pub struct InterleaveArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    /// The other target, B; the first is A
    #[arg(long, value_name = "URL", value_parser = unshown(url_without_user), conflicts_with = "start", help_heading = "Other target")]
    pub with: Option<String>,
    /// Start B, as --start does A: each on a port of its own, before the same backend
    #[arg(long, value_name = "COMMAND", value_parser = unshown(CommandLine::from_str), help_heading = "Other target")]
    pub start_with: Option<CommandLine>,
    /// B's process or cgroup
    #[arg(long, value_name = "PID|CGROUP", conflicts_with = "start", help_heading = "Other target")]
    pub with_proxy_pid: Option<ProxySource>,
    /// B's metrics page
    #[arg(long, value_name = "URL", value_parser = unshown(url_without_user), conflicts_with = "start", help_heading = "Other target")]
    pub with_metrics_url: Option<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Load")]
    pub rounds: u32,
    /// Write A's result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json_a: Option<PathBuf>,
    /// Write B's result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json_b: Option<PathBuf>,
    /// Write the comparison of the two as one HTML page, as `compare` does
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
    /// Write it in Markdown, for CI
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub markdown: Option<PathBuf>,
    /// Thresholds on A, like 'p99<5ms,err<0.1%'; the exit code is 99 when one does not hold
    #[arg(long, value_name = "THRESHOLDS", help_heading = "Output")]
    pub assert_a: Vec<Thresholds>,
    /// Thresholds on B
    #[arg(long, value_name = "THRESHOLDS", help_heading = "Output")]
    pub assert_b: Vec<Thresholds>,
    /// Only the summary at the end
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

/// The second of two that take turns.
pub struct OtherTarget {
    pub name: String,
    pub url: String,
}

impl InterleaveArgs {
    pub fn other(&self, staging: Option<&Staging>) -> Result<OtherTarget, String> {
        match (&self.with, &self.start_with, staging) {
            (_, Some(_), None) => Err("--start-with starts one target: --start must start the first".into()),
            (Some(url), ..) => Ok(OtherTarget { name: url.clone(), url: url.clone() }),
            (None, Some(command), Some(staging)) => {
                Ok(OtherTarget { name: command.text.clone(), url: staging.url(1) })
            }
            (None, None, Some(_)) => {
                Err("--start starts one target: --start-with must start the other".into())
            }
            (None, None, None) => Err("--with must name the other target".into()),
        }
    }
}
