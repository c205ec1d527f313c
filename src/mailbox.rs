//! The two-way road between shards and the control plane: questions go up, answers come down.
//!
//! Up: tokio's bounded channel (`try_send`, never waits). Down: a bounded lock-free queue per shard and an eventfd
//! the shard reads through its ring. Nothing here allocates per message but the message.

use crate::counters::Revoked;
use crate::ids::{Port, SandboxId, SignedToken, Token};
use crate::login::flow::FlowCookies;
use crate::request_id::RequestId;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a shard does not know. Equal questions (the full identity: every field counts) become one flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Question {
    /// Is the sandbox public? Answered `Yes` or `No`.
    Public(SandboxId),
    /// May whoever shows this pass? Answered `Yes` or `No`.
    Verdict { proof: ProofKind, sandbox: SandboxId, token: Token, client_ip: IpAddr },
    /// Which sandbox does a signed link's token open at this port? Answered `Sandbox`, or `No` when it is unknown, over
    /// or for another port.
    SignedToken { token: SignedToken, port: Port },
    /// Where is the sandbox? Answered `Runner` or `NotFound`. `fresh` bypasses every cache on the way.
    Runner { sandbox: SandboxId, fresh: bool },
    /// Build logs with the caller's own access. Answered `BuildLogs`, `No` (the caller may not) or `NotFound`.
    BuildLogs { of: crate::route::BuildLogsOf, bearer: Token, client_ip: IpAddr },
    /// Answered `Redirect` or `LoginRefused`.
    Login(LoginQuestion),
}

/// The steps of a login. No two are equal, for each has its own request's id: a step counts once, so sharing one's
/// answer would let the second in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LoginQuestion {
    /// Where does a person log in to open this? `return_to` is path and query, without proofs.
    Start { request_id: RequestId, host: Box<str>, sandbox: SandboxId, return_to: Box<str> },
    /// A browser is back from the provider. `host` is that of the callback; the query holds the code; `cookies` are the
    /// ones that tie logins to browsers.
    Callback { request_id: RequestId, host: Box<str>, query: Token, cookies: FlowCookies, client_ip: IpAddr },
    /// A browser brings a ticket to the host of the sandbox.
    Handoff { request_id: RequestId, host: Box<str>, query: Token, cookies: FlowCookies },
}

/// Where a browser goes next, and with which cookies.
#[derive(Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Absolute. Secret: holds a login's state or ticket.
    pub location: String,
    /// `Set-Cookie` values. Secret.
    pub set_cookies: Vec<String>,
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redirect([secret])")
    }
}

/// Why a login does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoginFault {
    /// There is no provider, or the host has no place for a callback.
    NotConfigured,
    /// What came back is not what we sent: no state of ours, or one of another domain.
    StateInvalid,
    /// It took too long.
    Expired,
    /// The browser that came back is not the one that left, or keeps no cookies.
    OtherBrowser,
    /// It came back before.
    Replayed,
    /// The person, or the provider, said no.
    Denied,
    /// The provider does not take the code.
    CodeRefused,
    /// Logged in, but this sandbox is not there for this account.
    NoAccess,
    ProviderDown,
    /// The provider, or what is set about it, is wrong.
    ProviderUnusable,
    /// Its ID token does not hold.
    TokenInvalid,
    Api(Trouble),
    Internal,
}

impl Question {
    /// Whose change makes the answer old.
    pub fn sandbox(&self) -> Option<&SandboxId> {
        match self {
            Self::Public(sandbox) | Self::Verdict { sandbox, .. } | Self::Runner { sandbox, .. } => {
                Some(sandbox)
            }
            Self::SignedToken { .. } | Self::BuildLogs { .. } | Self::Login(_) => None,
        }
    }
}

/// The proofs the API judges. Part of every cache key: a token good in one slot says nothing about another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProofKind {
    /// `Authorization: Bearer`: `GET /preview/{id}/access` with the caller's own bearer.
    Bearer,
    /// Preview token by header or query: `GET /preview/{id}/validate/{token}` with the service key.
    PreviewToken,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Yes,
    No,
    NotFound,
    Sandbox(SandboxId),
    Runner(Arc<RunnerAddress>),
    BuildLogs { runner: Arc<RunnerAddress>, snapshot_ref: String },
    Redirect(Box<Redirect>),
    LoginRefused(LoginFault),
}

/// Where a runner listens and what it wants to see. Made by the control plane, which resolved the name.
#[derive(PartialEq, Eq, Hash)]
pub struct RunnerAddress {
    /// At least one, in the order to try.
    pub addrs: Vec<SocketAddr>,
    /// `Host` for requests to it: host and, when not the scheme's default, port.
    pub authority: String,
    /// Path part of its URL without a trailing slash; empty or starting with `/`.
    pub base_path: String,
    /// `Bearer <api key>`. Secret.
    pub authorization: String,
}

impl std::fmt::Debug for RunnerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { addrs, authority, base_path, authorization: _ } = self;
        write!(f, "RunnerAddress({authority}{base_path} at {addrs:?})")
    }
}

/// Why there is no answer. Never cached as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// No connection to the API, or it broke, after the retries.
    ApiUnreachable,
    /// No answer within the deadline.
    ApiTimeout,
    /// The API answered with this status and it says nothing about the question (5xx, 401/403 for our own key, …).
    ApiStatus(u16),
    /// 429; seconds to wait if the API said so.
    ApiRateLimited(Option<u32>),
    /// A 200 that does not say what it must (a dashboard page, broken JSON).
    ApiGarbage,
    /// The runner has no usable URL: missing, not http(s), or its name does not resolve.
    RunnerUrl,
    /// The mailbox or the table of open questions is full.
    Overloaded,
    /// The client has made the gate ask too much in vain; seconds to wait. Nobody was asked.
    ClientLimited(u32),
}

pub type Reply = Result<Answer, Trouble>;

/// From a shard to the control plane.
#[derive(Debug)]
pub enum ToControl {
    Ask {
        shard: usize,
        ticket: u64,
        question: Question,
    },
    /// Nobody waits for this any more; a flight without waiters is cancelled.
    Cancel {
        shard: usize,
        ticket: u64,
    },
    /// The sandbox is in use: its auto-stop timer is to start anew. Has no answer.
    Active {
        sandbox: SandboxId,
    },
    /// The shard has no connection left after [`ToShard::Drain`].
    Drained {
        shard: usize,
    },
}

/// What happened to a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Its public flag may be another.
    Public,
    /// It is not public any more.
    Private,
    /// It may be on another runner.
    Runner,
    /// Its state is another, and with it maybe its tokens and its runner.
    State(Said),
}

/// What the news of a change say about the sandbox by themselves. Takes rights away and never gives any: which ones
/// there are is for the API to say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Said {
    pub public: Option<bool>,
    /// The one preview token that is good now.
    pub token: Option<TokenHash>,
    /// Nothing runs in it any more, for one of the reasons that name its state.
    pub ended: Option<Revoked>,
}

/// A token's SHA-256: tells another one apart and is of no use to who sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hash]")
    }
}

/// From the control plane to a shard.
#[derive(Debug)]
pub enum ToShard {
    Answer {
        ticket: u64,
        reply: Reply,
        /// How long the reply may be remembered, at most; zero: not at all.
        keep: Duration,
    },
    /// What is known of this sandbox is old, and what it let in is to be looked at again.
    Changed { sandbox: SandboxId, change: Change },
    /// What is known of this signed link is old, and what it let in is to be looked at again.
    LinkChanged { token: SignedToken, port: Port },
    /// News may have been missed: everything that is known is old.
    Forget,
    /// Made at this moment, and on the way since, as a [`Self::Changed`] would be.
    Canary(Instant),
    /// Send a copy of the counters back.
    Report(tokio::sync::oneshot::Sender<Box<crate::counters::Counters>>),
    /// Begin to accept connections, those whose descriptors stand below this. The first message.
    /// `idle_fd_end`: from here on no runner's connection is kept idle.
    Accept { client_fd_end: std::os::fd::RawFd, idle_fd_end: std::os::fd::RawFd },
    /// Accept no more, finish what runs, then say [`ToControl::Drained`].
    Drain,
    /// The time to drain is over: what can tell its client so does.
    LastWords,
    /// End now.
    Stop,
}

/// The downward road of one shard.
pub struct Down {
    queue: crossbeam_queue::ArrayQueue<ToShard>,
    bell: std::fs::File,
    ended: AtomicBool,
}

impl Down {
    /// `capacity` must cover the shard's open questions: each gets exactly one answer.
    pub fn new(capacity: usize) -> std::io::Result<Self> {
        Ok(Self {
            queue: crossbeam_queue::ArrayQueue::new(capacity),
            bell: crate::sys::eventfd()?.into(),
            ended: AtomicBool::new(false),
        })
    }

    /// Never waits. The message comes back when the queue is full; to a shard that has ended it is dropped.
    pub fn push(&self, message: ToShard) -> Result<(), ToShard> {
        if self.ended.load(Relaxed) {
            return Ok(());
        }
        self.queue.push(message)?;
        self.ring();
        Ok(())
    }

    /// Wakes the shard without a message.
    pub fn ring(&self) {
        // An eventfd write fails only when its counter is full: then the bell is ringing already.
        let _ = std::io::Write::write(&mut &self.bell, &1u64.to_ne_bytes());
    }

    /// The shard has ended: nobody is to wait for room in its queue, nor for an answer.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
        while self.pop().is_some() {}
    }

    /// For the shard: the next message, if any.
    pub fn pop(&self) -> Option<ToShard> {
        self.queue.pop()
    }

    /// For the shard: readable when there may be messages.
    pub fn bell(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.bell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_room_at_a_shard_that_has_ended() {
        let down = Down::new(1).expect("an eventfd");
        down.push(ToShard::Forget).expect("room");
        assert!(down.push(ToShard::Drain).is_err(), "full");
        down.end();
        assert!(down.pop().is_none(), "who waits for an answer is told that there is none");
        (0..3).for_each(|_| down.push(ToShard::Stop).expect("dropped"));
    }
}
