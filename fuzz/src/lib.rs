//! What holds of any bytes a stranger may send: one function for each reader, which panics where it does not.
//!
//! Written once and used twice: `targets/` lets libFuzzer look for bytes that break it, and the product's `tests/fuzz.rs`
//! replays the seeds, and seeded changes of them, with every run of the tests. The models here are slow and plain on
//! purpose and share no code with what they judge.

pub mod browser;
pub mod chunks;
mod cuts;
pub mod frames;
mod jar;
mod message;
pub mod news;
mod proofs;
pub mod provider;
pub mod request;
pub mod response;
pub mod route;
mod runner;
pub mod session;
pub mod told;
