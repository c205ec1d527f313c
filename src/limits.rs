//! Every bound of the data plane, in one place, with what it costs.

use crate::rate::Rate;
use std::num::NonZeroU32;
use std::time::Duration;

/// The bounds of one process; where a field says "per shard" it holds for each core by itself.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest request or response head in bytes. Costs one pooled buffer of this size per request being read.
    pub head_bytes_max: usize,
    /// Most header fields of one head. Costs 10 bytes each while the head lives.
    pub header_count_max: usize,
    /// Longest request target in bytes.
    pub uri_bytes_max: usize,
    /// Informational (1xx) responses forwarded for one request: apps beat with them for hours, and more at a time is an
    /// upstream fault.
    pub informational: Rate,
    /// From the first byte of a request to the end of its head. 408 and close after it.
    pub head_deadline: Duration,
    /// How long a kept-alive client connection may be silent. Longer than common load balancers' 600 s.
    pub client_idle: Duration,
    /// How long a body may stand still while the *client* is the one to move (sending or reading). `None`: for ever.
    pub client_stall: Option<Duration>,
    /// From the last request byte to the runner's response head, and how long it may take nothing of a body. `None` (default): for ever, commands run for hours.
    pub runner_first_byte: Option<Duration>,
    /// TCP connect to a runner.
    pub runner_connect: Duration,
    /// How long an idle runner connection is kept; below the runner's own 70 s.
    pub runner_idle: Duration,
    /// Idle runner connections kept per shard. Costs a socket and about 300 bytes each.
    pub runner_idle_max: usize,
    /// Open client connections per shard; beyond it, and where only [`Descriptors::kept`] are left, new ones are answered 503
    /// and closed.
    pub connections_max: usize,
    /// How long and how much of an unread request body is drained so that an early answer is not lost in a reset. Costs
    /// reads, no memory.
    pub linger: Duration,
    pub linger_bytes_max: u64,
    /// Cached sandboxes per shard (public flag and runner). About 280 bytes each, as they come.
    pub sandbox_cache_max: usize,
    /// Cached verdicts per shard, and as many signed links. About 140 bytes each, as they come.
    pub verdict_cache_max: usize,
    /// Questions a shard may have open at the control plane; beyond it requests are answered 503.
    pub questions_max: usize,
    /// Pipes for splice kept per shard. Each is 1 MiB of kernel address space, filled only while in use.
    pub pipes_max: usize,
    /// Bulk buffers (256 KiB) per shard; whoever finds none has a small one.
    pub bulk_buffers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes_max: 32 * 1024,
            header_count_max: 128,
            uri_bytes_max: 16 * 1024,
            informational: Rate { per_second: nonzero(50), burst: nonzero(100) },
            head_deadline: Duration::from_secs(15),
            client_idle: Duration::from_secs(620),
            client_stall: Some(Duration::from_secs(300)),
            runner_first_byte: None,
            runner_connect: Duration::from_secs(5),
            runner_idle: Duration::from_secs(45),
            runner_idle_max: 4096,
            connections_max: 200_000,
            linger: Duration::from_secs(2),
            linger_bytes_max: 64 << 20,
            sandbox_cache_max: 100_000,
            verdict_cache_max: 100_000,
            questions_max: 4096,
            pipes_max: 64,
            bulk_buffers_max: 64,
        }
    }
}

fn nonzero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("a literal that is not zero")
}

/// Descriptors of a process and what they are for. Those that are the gate's own count against no other part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// For clients' connections and the runner connections that were there first. The kernel gives out the lowest number
    /// that is free: those below `own + clients`.
    pub clients: u64,
    /// The last ones, left alone by clients' connections: for connections to runners, without which who was let in could not
    /// be served, and for pipes and the API.
    pub kept: u64,
}

impl Descriptors {
    /// `own`: taken already by what the gate needs itself.
    pub fn of(limit: u64, own: u64) -> Self {
        let rest = limit.saturating_sub(own);
        let kept = (rest / 4).min(DESCRIPTORS_KEPT_MAX);
        Self { clients: rest - kept, kept }
    }

    /// Is it worth while to start?
    pub fn carry(self, shards: usize) -> bool {
        self.clients >= CLIENT_DESCRIPTORS_MIN * shards as u64
    }
}

/// As many new runner connections at a time are a storm already.
pub const DESCRIPTORS_KEPT_MAX: u64 = 1024;

/// With fewer for each shard a gate turns everybody away as soon as somebody has come.
pub const CLIENT_DESCRIPTORS_MIN: u64 = 16;

/// A shard's own: ring, bells, listener, clock, epoll set, reserve. At most, for either driver.
pub const SHARD_DESCRIPTORS: u64 = 10;

/// The process's own beside its shards: standard streams, signals, the control plane's epoll set and metrics page.
pub const PROCESS_DESCRIPTORS: u64 = 16;

impl Limits {
    /// Relations that must hold between the bounds; each broken one as a sentence for the operator.
    pub fn broken_relations(&self) -> Vec<&'static str> {
        let mut broken = Vec::new();
        if self.head_bytes_max > usize::from(u16::MAX) {
            broken.push("a head is addressed with 16-bit offsets: head bytes must stay at or below 65535");
        }
        if self.uri_bytes_max >= self.head_bytes_max {
            broken.push("the longest URI must fit into the longest head");
        }
        if self.runner_idle >= Duration::from_secs(70) {
            broken.push("runners close idle connections after 70 s: the pool must let go earlier");
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gate_has_itself_is_taken_from_no_client() {
        let part = |limit, own| Descriptors::of(limit, own).clients;
        assert_eq!([part(1024, 24), part(1024, 875), part(1 << 20, 100)], [750, 112, (1 << 20) - 100 - 1024]);
        assert_eq!(part(96, 100), 0);
        // 16 for each of 7, not of 8.
        assert!(Descriptors::of(1024, 875).carry(7) && !Descriptors::of(1024, 875).carry(8));
    }
}
