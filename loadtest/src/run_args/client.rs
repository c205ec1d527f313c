//! The load generator itself: its threads, its addresses, the agents that stand in for it.

use super::read_key;
use crate::quantity::Span;
use crate::run::Agents;
use crate::scenario::ClientSetting;
use clap::Args;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// The load generator itself.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Threads [default: half of the CPUs]
    #[arg(long, short, help_heading = "Load generator")]
    pub threads: Option<u32>,
    /// CPUs to pin the threads to: 0,2
    #[arg(long, value_delimiter = ',', help_heading = "Load generator")]
    pub cpus: Vec<usize>,
    /// Source addresses in turn, one for each 10,000 connections or so: 127.0.0.2-127.0.0.9 or a list
    #[arg(long, value_parser = sources, help_heading = "Load generator")]
    pub sources: Option<Sources>,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 1, help_heading = "Load generator")]
    pub seed: u64,
    /// The result is not valid if the load generator itself sends later than this (p99) [default: 2ms, or at p50, p90 and p99
    /// a tenth of the fastest class's response time there, where that is more]
    #[arg(long, help_heading = "Load generator")]
    pub lag_max: Option<Span>,
    /// Agents that make the load instead of this process: host:port,... (see `loadtest agent`)
    #[arg(
        long,
        value_delimiter = ',',
        requires = "agent_key_file",
        conflicts_with = "start",
        help_heading = "Load generator"
    )]
    pub agents: Vec<String>,
    /// File with the key the agents know
    #[arg(long, value_name = "FILE", requires = "agents", help_heading = "Load generator")]
    pub agent_key_file: Option<PathBuf>,
}

impl ClientArgs {
    pub fn setting(&self) -> ClientSetting {
        ClientSetting {
            threads: self.threads,
            cpus: self.cpus.clone(),
            sources: self.sources.clone().map(|sources| sources.0).unwrap_or_default(),
            seed: self.seed,
            lag_max: self.lag_max,
        }
    }

    /// Agents with their key, if there are any.
    pub fn agents(&self) -> Result<Option<Agents>, String> {
        match &self.agent_key_file {
            Some(file) if !self.agents.is_empty() => {
                Ok(Some(Agents { names: self.agents.clone(), key: read_key(file)? }))
            }
            _ => Ok(None),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Sources(pub Vec<IpAddr>);

/// [`source_addresses`] for the command line.
pub fn sources(text: &str) -> Result<Sources, String> {
    source_addresses(text).map(Sources)
}

/// Addresses with commas between; `first-last` is a range of IPv4 addresses.
pub fn source_addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    const MOST: u32 = 65_536;
    let mut addresses = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("`{part}` is no address and no range such as 127.0.0.2-127.0.0.9");
        match part.split_once('-') {
            None => addresses.push(part.parse().map_err(|_| wrong())?),
            Some((first, last)) => {
                let number = |text: &str| text.parse::<Ipv4Addr>().map(u32::from).map_err(|_| wrong());
                let (first, last) = (number(first)?, number(last)?);
                if first > last || last - first >= MOST {
                    return Err(wrong());
                }
                addresses.extend((first..=last).map(|n| IpAddr::V4(Ipv4Addr::from(n))));
            }
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ranges_are_written_out() {
        let count = |text: &str| source_addresses(text).map(|addresses| addresses.len());
        assert_eq!(
            (count("127.0.0.2-127.0.0.9"), count("127.0.0.1"), count("::1,127.0.0.1")),
            (Ok(8), Ok(1), Ok(2))
        );
        assert_eq!(
            source_addresses("127.0.0.255-127.0.1.1").map(|a| a[2].to_string()),
            Ok("127.0.1.1".into())
        );
        for text in ["", "x", "127.0.0.9-127.0.0.2", "0.0.0.0-255.255.255.255", "::1-::9"] {
            assert!(source_addresses(text).is_err(), "{text}");
        }
    }
}
