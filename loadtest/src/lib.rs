//! `loadtest`: measures a preview proxy from outside and says honestly what it saw.
//!
//! * [`plan`]: what to do, complete and checked.
//! * [`run`]: carries it out and puts the result together.
//! * [`har`]: recordings of browsers, to be replayed.
//! * [`scenario`], [`find_max`], [`interleave`], [`agent`]: ways of making and using plans.
//! * [`worker`]: one thread of load; [`schedule`] says when, [`aim`] for whom.
//! * [`population`]: sandboxes and their credentials out of a seed; shared by the load and the backend.
//! * [`measure`]: numbers about a result by name; [`assertion`]: thresholds on them.
//! * [`compare`]: two results beside each other, and whether the difference is noise.
//! * [`report`]: JSON, `.hlog`, Markdown and HTML out of a result.
//! * [`start`]: a backend and a proxy of its own for a run.
//! * [`backend`]: an API and a runner for a population, with faults on demand.
//! * [`world`]: the paths both sides agree on; `content`: what their answers must hold.
//! * [`result`]: what a run found out, as data: written to JSON, read by reports and comparisons.

pub mod agent;
pub mod aim;
mod alarm;
pub mod assertion;
pub mod backend;
mod calls;
mod churn;
pub mod cli;
pub mod compare;
mod console;
mod content;
pub mod failure;
mod files;
pub mod find_max;
pub mod har;
pub mod host;
pub mod http1;
pub mod interleave;
mod live;
pub mod measure;
pub mod plan;
pub mod population;
pub mod quantity;
mod recorder;
pub mod report;
pub mod result;
pub mod run;
pub mod run_args;
mod saved;
pub mod scenario;
pub mod schedule;
mod scrape;
mod signals;
pub mod start;
pub mod transport;
mod turns;
mod unshown;
pub mod websocket;
pub mod worker;
pub mod world;
