//! The flags that describe a load, and the plan they make.
//!
//! Each group of flags is beside its checks and with what it gives to the plan: [`target`], [`client`], [`load`] with its
//! [`weights`], [`pace`]. A subcommand with a file of its own has flags beyond these.

mod client;
mod find_max;
mod interleave;
mod load;
mod pace;
mod scenario;
mod target;
mod weights;

pub use client::{ClientArgs, Sources, source_addresses, sources};
pub use find_max::FindMaxArgs;
pub use interleave::{InterleaveArgs, OtherTarget};
pub use load::LoadArgs;
pub use pace::PaceArgs;
pub use scenario::ScenarioArgs;
pub use target::TargetArgs;
pub use weights::{Auth, Mix, auth_weights, mix_weights};

use crate::host::ProxySource;
use crate::measure::Watched;
use crate::report::Outputs;
use crate::run::Observation;
use crate::unshown::{unshown, url_without_user};
use clap::Args;
use std::path::{Path, PathBuf};

/// `loadtest run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is watched besides the load.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// The proxy's process, with its threads and descendants, or its cgroup's path: CPU per request from outside
    #[arg(long, value_name = "PID|CGROUP", group = "process", help_heading = "Proxy")]
    pub proxy_pid: Option<ProxySource>,
    /// Count the proxy's system calls, too (root; makes each of them dearer: not together with comparing CPU)
    #[arg(long, requires = "process", help_heading = "Proxy")]
    pub count_calls: bool,
    /// The proxy's metrics page, read before, during and after
    #[arg(long, value_name = "URL", value_parser = unshown(url_without_user), conflicts_with = "start", help_heading = "Proxy")]
    pub metrics_url: Option<String>,
}

impl ObserveArgs {
    /// `started`: by `--start`, which watches what it starts.
    pub fn watched(&self, started: bool) -> Watched {
        Watched {
            process: started || self.proxy_pid.is_some(),
            calls: self.count_calls,
            counters: started || self.metrics_url.is_some(),
        }
    }

    pub fn observation(&self) -> Observation {
        Observation {
            proxy: self.proxy_pid.clone(),
            count_calls: self.count_calls,
            metrics_url: self.metrics_url.clone(),
        }
    }
}

/// Where the result goes.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    #[command(flatten)]
    pub files: Outputs,
    /// No live view; only the summary at the end
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

/// `loadtest agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Address and port to listen on; port 0: any, it is printed
    #[arg(long, default_value = "127.0.0.1:7878")]
    pub listen: std::net::SocketAddr,
    /// File with the key coordinators must know: whoever has it decides where this host's load goes
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// Make one load and end
    #[arg(long)]
    pub once: bool,
}

/// Refuses flags that were given where what gives them a meaning was not: what they ask for would silently not be done.
pub fn vain(missing: &str, flags: &[(&str, bool)]) -> Result<(), String> {
    let given: Vec<&str> = flags.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match given.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "without {missing} there is no meaning in {}: add the one or leave out the other",
            given.join(", ")
        )),
    }
}

/// A key out of a file: keys on the command line are seen by everybody.
pub fn read_key(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match text.trim() {
        "" => Err(format!("{}: empty", file.display())),
        key => Ok(key.to_owned()),
    }
}
