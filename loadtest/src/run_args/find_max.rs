//! `loadtest find-max`: a search for a rate.

use super::{LoadArgs, OutputArgs};
use crate::find_max::{Bound, P99};
use crate::plan::{Load, Phase, Plan};
use crate::quantity::{self, Span};
use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct FindMaxArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Longest 99th percentile of response time: of all requests, or of a class, as in get:1k/5ms; several: all must hold
    #[arg(
        long,
        value_name = "[CLASS/]TIME",
        default_value = "5ms",
        value_delimiter = ',',
        help_heading = "Search"
    )]
    pub p99: Vec<P99>,
    /// Highest share of requests that fail, or are not sent for want of a free connection
    #[arg(long, value_parser = quantity::share, default_value = "0.1%", help_heading = "Search")]
    pub errors: f64,
    /// Lowest rate to try
    #[arg(long, value_parser = quantity::rate, default_value = "100", help_heading = "Search")]
    pub from: f64,
    /// Highest rate to try
    #[arg(long, value_parser = quantity::rate, default_value = "1M", help_heading = "Search")]
    pub to: f64,
    /// How long each rate is held
    #[arg(long, value_parser = quantity::length, value_name = "TIME", default_value = "5s", help_heading = "Search")]
    pub step: Span,
    /// Stop when what holds and what does not are as near
    #[arg(long, value_parser = quantity::share, default_value = "5%", help_heading = "Search")]
    pub precision: f64,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl FindMaxArgs {
    /// A plan whose phase has only its classes.
    pub fn template(&self) -> Result<Plan, String> {
        self.load.plan(vec![Phase {
            name: "template".into(),
            load: Load::Quiet,
            length: self.step,
            mix: self.load.mix(),
            warmup: false,
            churn: Vec::new(),
            idle: None,
        }])
    }

    /// `template`: the load it is for.
    pub fn bound(&self, template: &Plan) -> Result<Bound, String> {
        let bound = Bound {
            p99: self.p99.clone(),
            errors: self.errors,
            from: self.from,
            to: self.to,
            step: self.step,
            precision: self.precision,
        };
        match bound.mistake(template) {
            Some(mistake) => Err(mistake),
            None => Ok(bound),
        }
    }
}
