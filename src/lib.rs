//! sandgate: the gate in front of sandboxes.
//!
//! A request's way through the listing of this folder:
//!
//! ```text
//! shard (accept) -> client -> head -> route -> grant -> target -> exchange -> Next::{KeepAlive, Close, Tunnel}
//! ```
//!
//! Each stage's output type is the next stage's only input: a [`grant::Grant`] is made by the authorizer alone and
//! a [`target::Target`] only from a `Grant`, so forwarding an unauthorized request does not compile. Protocol
//! modules ([`head`], [`framing`], [`chunked`], [`route`], [`forward`]) know no socket, no clock and no configuration.

pub mod access_log;
pub mod activity;
pub mod admission;
pub mod buffers;
pub mod cache;
pub mod changes;
pub mod chunked;
pub mod cli;
pub mod client;
pub mod config;
pub mod contained;
pub mod control;
pub mod cookie;
pub mod cors;
pub mod counters;
pub mod deadlines;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod exchange;
pub mod forward;
pub mod framing;
#[cfg(test)]
#[path = "../tests/support/free_port.rs"]
mod free_port;
pub mod grant;
pub mod head;
pub mod ids;
pub mod initiator;
pub mod limits;
pub mod live;
pub mod log;
pub mod log_writer;
pub mod login;
pub mod mailbox;
mod octets;
pub mod pool;
pub mod questions;
pub mod rate;
pub mod readiness;
pub mod relay;
pub mod request_id;
pub mod ring;
pub mod route;
pub mod serve;
pub mod shard;
pub mod socket;
pub mod sys;
pub mod target;
mod ticker;
pub mod tunnel;
mod turns;
pub mod warm;
mod warning;

/// What reads and hears strangers, the API, Redis and the provider and is nobody else's business, for the properties in
/// `fuzz/`.
#[doc(hidden)]
pub mod readers {
    pub use crate::client::visitor::of as visitor;
    pub use crate::control::api::decode::{build, login_settings, retry_after, runner, yes_or_no};
    pub use crate::control::api::path_segment;
    pub use crate::control::login::Said as Callback;
    pub use crate::control::login::provider::Document;
    pub use crate::control::lookup::{flag, place};
    pub use crate::control::push::event::read as sandbox_event;
    pub use crate::control::push::links::{key as link_key, of_key as link_of_key};
    pub use crate::control::push::{Matter, Push, Shared, Told};
    pub use crate::control::runner_address::RunnerUrl;
    pub use crate::tunnel::frames::{Frames, Place, close_frame};
    pub use crate::warning::{Accepted, accept, page as warning_page};
}
