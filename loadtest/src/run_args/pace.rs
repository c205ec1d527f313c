//! How much of a load, for how long: its phases.

use crate::plan::{Class, Idle, Load, Phase};
use crate::quantity::{self, Span};
use clap::Args;
use std::time::Duration;

/// How much, and for how long.
#[derive(Clone, Debug, Args)]
pub struct PaceArgs {
    /// Requests per second, whatever the answers do; latency counts from when each should have been sent
    #[arg(long, short, value_parser = quantity::rate, help_heading = "Load", conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// Closed loop: on each connection the next request when the last is answered. For the most a proxy can do; its
    /// latencies say nothing about users
    #[arg(long, help_heading = "Load")]
    pub closed: bool,
    /// How long to measure, at most 31 days
    #[arg(long = "for", value_parser = quantity::length, value_name = "TIME", default_value = "10s", help_heading = "Load")]
    pub length: Span,
    /// A time before that does not count
    #[arg(long, value_parser = quantity::length, value_name = "TIME", default_value = "0s", help_heading = "Load")]
    pub warmup: Span,
    /// WebSockets to open and hold meanwhile: 10k, 100k
    #[arg(long, value_parser = quantity::count, value_name = "N", help_heading = "Load")]
    pub idle: Option<u64>,
    /// How many of them to open per second [default: 1000]
    #[arg(long, value_parser = quantity::rate, help_heading = "Load")]
    pub idle_rate: Option<f64>,
}

impl PaceArgs {
    /// One measured phase, and a warm-up before it if one is wanted.
    pub fn phases(&self, mix: &[(Class, f64)]) -> Result<Vec<Phase>, String> {
        let load = match (self.rate, self.closed, self.idle) {
            (_, true, _) => Load::Closed,
            (Some(rate), ..) => Load::Hold { rate },
            (None, false, Some(_)) => Load::Quiet,
            (None, false, None) => {
                return Err("say how much: --rate for an open loop, --closed for the most, or --idle".into());
            }
        };
        let phase = |name: &str, length, warmup| Phase {
            name: name.into(),
            load,
            length,
            mix: mix.to_vec(),
            warmup,
            churn: Vec::new(),
            idle: None,
        };
        let mut phases = Vec::new();
        if self.warmup.0 > Duration::ZERO {
            phases.push(phase("warm-up", self.warmup, true));
        }
        let rate = self.idle_rate.unwrap_or(1000.0);
        let idle = self.idle.map(|count| Idle { count, rate, reopen: false });
        phases.push(Phase { idle, ..phase("measured", self.length, false) });
        Ok(phases)
    }
}
