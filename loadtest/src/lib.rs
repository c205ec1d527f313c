//! `loadtest`: measures a preview proxy from outside and says honestly what it saw.
//!
//! * [`plan`]: what to do, complete and checked.
//! * [`run`]: carries it out and puts the result together.
//! * [`worker`]: one thread of load; [`schedule`] says when, [`aim`] for whom.
//! * [`population`]: sandboxes and their credentials out of a seed; shared by the load and the backend.
//! * [`backend`]: an API and a runner for a population, with faults on demand.
//! * [`world`]: the paths both sides agree on.
//! * [`result`]: what a run found out, as data: written to JSON, read by reports and comparisons.

pub mod aim;
mod alarm;
pub mod backend;
mod churn;
pub mod cli;
mod console;
pub mod failure;
pub mod host;
pub mod http1;
pub mod plan;
pub mod population;
pub mod quantity;
mod recorder;
pub mod result;
pub mod run;
mod run_args;
pub mod schedule;
mod scrape;
pub mod transport;
pub mod websocket;
pub mod worker;
pub mod world;
