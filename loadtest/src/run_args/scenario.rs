//! `loadtest scenario`: a plan out of a file, and what of it the command line changes.

use super::{ClientArgs, ObserveArgs, OutputArgs, TargetArgs, vain};
use crate::plan::Plan;
use crate::quantity;
use crate::scenario::{Scenario, Setting};
use crate::unshown::{unshown, url_without_user};
use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct ScenarioArgs {
    /// One that comes along (`loadtest scenarios` lists them) or a file
    #[arg(value_name = "NAME|FILE")]
    pub scenario: String,
    #[command(flatten)]
    pub target: TargetArgs,
    /// The backend's API, whose levers change things under load: http://host:port
    #[arg(long, value_name = "URL", value_parser = unshown(url_without_user), conflicts_with = "start", help_heading = "Target")]
    pub levers: Option<String>,
    /// Factor on all rates and idle counts
    #[arg(long, default_value_t = 1.0, help_heading = "Load")]
    pub rate_scale: f64,
    /// Factor on all times
    #[arg(long, default_value_t = 1.0, help_heading = "Load")]
    pub time_scale: f64,
    /// How many sandboxes instead of the scenario's
    #[arg(long, value_parser = quantity::count, help_heading = "Load")]
    pub sandboxes: Option<u64>,
    /// Kept connections instead of the scenario's
    #[arg(long, short, value_parser = quantity::count32, help_heading = "Load")]
    pub connections: Option<u32>,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ScenarioArgs {
    pub fn plan(&self) -> Result<Plan, String> {
        let target = &self.target;
        target.check()?;
        if target.domain.is_none() {
            vain("--domain", &[("--sandboxes", self.sandboxes.is_some())])?;
        }
        let scale = |scale: f64| scale > 0.0 && scale <= 1000.0;
        if !scale(self.rate_scale) || !scale(self.time_scale) {
            return Err("--rate-scale and --time-scale: above 0, at most 1000".into());
        }
        Scenario::load(&self.scenario)?.plan(&Setting {
            target: target.target(),
            levers: self.levers.clone(),
            rate_scale: self.rate_scale,
            time_scale: self.time_scale,
            sandboxes: self.sandboxes,
            connections: self.connections,
            population: target.population(),
            proxy_key: target.proxy_key()?,
            client: self.client.setting(),
        })
    }
}
