//! What a shard counts. Plain cells of one thread; the control plane asks for a copy and adds the copies up.

use crate::admission::Limit;
use crate::error::Source;
use crate::head::Reject;
use std::cell::Cell;
use std::time::Duration;

/// Upper bounds in milliseconds of the duration histogram (OpenTelemetry's advice, longer ones for held commands).
pub const DURATION_BOUNDS_MS: [u64; 17] =
    [5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000, 30_000, 60_000, 180_000];

/// Upper bounds in microseconds of the histogram of [`Counters::invalidation_lag`].
pub const LAG_BOUNDS_US: [u64; 10] =
    [250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 1_000_000, 10_000_000];

/// What a request was, for labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Preview,
    Toolbox,
    BuildLogs,
    WebSocket,
    /// Answered before or without a route: health page, refused heads.
    Own,
}

impl Class {
    pub const ALL: &'static [Self] =
        &[Self::Preview, Self::Toolbox, Self::BuildLogs, Self::WebSocket, Self::Own];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preview => "preview",
            Self::Toolbox => "toolbox",
            Self::BuildLogs => "build_logs",
            Self::WebSocket => "websocket",
            Self::Own => "own",
        }
    }
}

/// How a request was let in or refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthResult {
    Public,
    Bearer,
    Header,
    Query,
    Cookie,
    SignedLink,
    Missing,
    Invalid,
    /// The API could not say.
    Undecided,
}

impl AuthResult {
    pub const ALL: &'static [Self] = &[
        Self::Public,
        Self::Bearer,
        Self::Header,
        Self::Query,
        Self::Cookie,
        Self::SignedLink,
        Self::Missing,
        Self::Invalid,
        Self::Undecided,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Bearer => "bearer",
            Self::Header => "header",
            Self::Query => "query",
            Self::Cookie => "cookie",
            Self::SignedLink => "signed_link",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Undecided => "undecided",
        }
    }
}

/// A bound cache of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheKind {
    Public,
    Runner,
    Verdict,
    SignedLink,
}

impl CacheKind {
    pub const ALL: &'static [Self] = &[Self::Public, Self::Runner, Self::Verdict, Self::SignedLink];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Runner => "runner",
            Self::Verdict => "verdict",
            Self::SignedLink => "signed_link",
        }
    }
}

/// Why something that lived long was ended by the gate. A client that can be told is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revoked {
    /// The sandbox is not public any more.
    Private,
    /// The key or token opens it no more.
    Token,
    /// The signed link is over.
    Link,
    /// The session's time is over.
    Session,
    /// Nothing runs in the sandbox any more, and the next three say why.
    Stopped,
    Archived,
    Destroyed,
    /// Something changed, and nobody could say for too long whether the right still holds.
    Undecided,
    /// The gate ends; no right does.
    Draining,
}

impl Revoked {
    pub const ALL: &'static [Self] = &[
        Self::Private,
        Self::Token,
        Self::Link,
        Self::Session,
        Self::Stopped,
        Self::Archived,
        Self::Destroyed,
        Self::Undecided,
        Self::Draining,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Token => "token",
            Self::Link => "link",
            Self::Session => "session",
            Self::Stopped => "stopped",
            Self::Archived => "archived",
            Self::Destroyed => "destroyed",
            Self::Undecided => "undecided",
            Self::Draining => "draining",
        }
    }
}

type Count = Cell<u64>;

/// One shard's counters. Gauges are named as such; all else only grows.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub accepted: Count,
    /// Gauge.
    pub connections_open: Count,
    pub connections_shed: Count,
    /// Accept failed for want of descriptors or memory.
    pub accept_failures: Count,
    /// By class, then by hundreds of the status (index 0 counts requests whose client left).
    pub requests: [[Count; 6]; 5],
    pub requests_active: Count,
    /// By class: buckets of [`DURATION_BOUNDS_MS`] (not cumulative) and one for the rest.
    pub durations: [[Count; 18]; 5],
    /// By class, in microseconds.
    pub duration_sum_us: [Count; 5],
    pub rejects: [Count; Reject::ALL.len()],
    /// Answers we made, by source.
    pub errors: [Count; Source::ALL.len()],
    pub auth: [Count; AuthResult::ALL.len()],
    pub cache_hits: [Count; CacheKind::ALL.len()],
    pub cache_misses: [Count; CacheKind::ALL.len()],
    /// Gauges.
    pub cache_entries: [Count; CacheKind::ALL.len()],
    pub questions_asked: Count,
    /// Gauge.
    pub questions_open: Count,
    /// How long a change in Redis took to get here, measured by canaries: buckets of [`LAG_BOUNDS_US`], not cumulative.
    pub invalidation_lags: [Count; LAG_BOUNDS_US.len() + 1],
    pub invalidation_lag_sum_us: Count,
    /// Connections cut, by [`Revoked`].
    pub revoked: [Count; Revoked::ALL.len()],
    pub runner_connects: Count,
    pub runner_connect_failures: Count,
    pub runner_reuses: Count,
    /// A pooled connection was dead when it was about to be used.
    pub runner_stale: Count,
    pub runner_retries: Count,
    /// Gauge.
    pub runner_idle: Count,
    /// Heads and whole answers, see [`Turns`](crate::turns::Turns).
    pub sent_together: Count,
    pub tunnels: Count,
    /// Gauge.
    pub tunnels_open: Count,
    /// Gauge: of these, one way has ended.
    pub tunnels_half_closed: Count,
    /// Body and tunnel bytes from clients to runners, copied through our memory.
    pub bytes_up_copied: Count,
    pub bytes_up_spliced: Count,
    pub bytes_down_copied: Count,
    pub bytes_down_spliced: Count,
    pub splice_calls: Count,
    /// Bodies cut short by the runner and therefore cut short to the client.
    pub truncated: Count,
    pub deadlines: Count,
    /// Mentions of sandboxes in use that the mailbox had no room for.
    pub activity_dropped: Count,
    /// Refused because a client or sandbox used too much, by limit.
    pub limited: [Count; Limit::ALL.len()],
    pub log_lines: Count,
    pub log_lines_dropped: Count,
    /// Longest time between two looks at the ring since the last report, microseconds (gauge).
    pub loop_stall_us: Count,
    /// CPU of the shard's thread since it began, microseconds.
    pub cpu_us: Count,
}

impl Counters {
    pub fn invalidation_lag(&self, lag: Duration) {
        let us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        add(&self.invalidation_lags[LAG_BOUNDS_US.partition_point(|bound| *bound < us)], 1);
        add(&self.invalidation_lag_sum_us, us);
    }
}

/// `cell += n`.
pub fn add(cell: &Count, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

/// Counts itself in a gauge while it lives.
pub struct Counted<'a>(&'a Count);

impl<'a> Counted<'a> {
    pub fn new(gauge: &'a Count) -> Self {
        add(gauge, 1);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        less(self.0);
    }
}

/// `gauge -= 1`.
pub fn less(gauge: &Count) {
    gauge.set(gauge.get().saturating_sub(1));
}
