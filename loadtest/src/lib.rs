//! `loadtest`: measures a preview proxy from outside and says honestly what it saw.
//!
//! * [`population`]: sandboxes and their credentials out of a seed; shared by the load and the backend.
//! * [`measure`]: numbers about a result by name; [`assertion`]: thresholds on them.
//! * [`report`]: JSON, `.hlog`, Markdown and HTML out of a result.
//! * [`backend`]: an API and a runner for a population, with faults on demand.
//! * [`world`]: the paths both sides agree on.
//! * [`result`]: what a run found out, as data: written to JSON, read by reports and comparisons.

pub mod assertion;
pub mod backend;
pub mod cli;
pub mod measure;
pub mod population;
pub mod report;
pub mod result;
pub mod world;
