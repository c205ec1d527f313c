//! The binary over real sockets: the API and the runner are scripted here, byte by byte.

#[path = "gate/activity.rs"]
mod activity;
#[path = "gate/answers.rs"]
mod answers;
#[path = "gate/bulk.rs"]
mod bulk;
#[path = "gate/chaos.rs"]
mod chaos;
#[path = "gate/cors.rs"]
mod cors;
#[path = "gate/effect.rs"]
mod effect;
#[path = "gate/faults.rs"]
mod faults;
#[path = "gate/fleet.rs"]
mod fleet;
#[path = "support/free_port.rs"]
mod free_port;
#[path = "gate/harness.rs"]
mod harness;
#[path = "gate/kernel.rs"]
mod kernel;
#[path = "gate/last_words.rs"]
mod last_words;
#[path = "gate/life.rs"]
mod life;
#[path = "gate/limits.rs"]
mod limits;
#[path = "gate/origins.rs"]
mod origins;
#[path = "gate/proofs.rs"]
mod proofs;
#[path = "gate/revocation.rs"]
mod revocation;
#[path = "gate/rights.rs"]
mod rights;
#[path = "gate/secrets.rs"]
mod secrets;
#[path = "gate/shared.rs"]
mod shared;
#[path = "support/silent_names.rs"]
mod silent_names;
#[path = "gate/smuggling.rs"]
mod smuggling;
#[path = "gate/strict.rs"]
mod strict;
#[path = "gate/toolbox.rs"]
mod toolbox;
#[path = "gate/traffic.rs"]
mod traffic;
#[path = "gate/tunnels.rs"]
mod tunnels;
#[path = "gate/warning.rs"]
mod warning;
