//! `loadtest`: measures a preview proxy from outside and says honestly what it saw.
//!
//! * [`population`]: sandboxes and their credentials out of a seed; shared by the load and the backend.
//! * [`backend`]: an API and a runner for a population, with faults on demand.
//! * [`world`]: the paths both sides agree on.
//! * [`result`]: what a run found out, as data: written to JSON, read by reports and comparisons.

pub mod backend;
pub mod cli;
pub mod population;
pub mod result;
pub mod world;
