//! Moves bytes from one peer to the other, as cheaply as their number and shape allow.
//!
//! Small amounts are copied through a pooled buffer. Once [`SPLICE_MIN`] or more of a known length remain, or reads
//! keep coming back full, bytes go through a pipe with `splice(2)` and never enter our memory. The ring's own splice
//! is never used: each idle one would hold a kernel thread. Waits are readiness only, so an idle lane holds neither
//! buffer nor pipe, and dropping a lane (but in [`Lane::send_whole`]) loses nothing that was not lost with its connection.

mod chunks;
mod gather;
mod splice;

use crate::activity::InUse;
use crate::buffers::Buffers;
use crate::counters::{Counters, add};
use crate::deadlines::Watch;
use crate::head::Reject;
use crate::socket::{Moved, Socket};
use crate::turns;
use rustix::net::Shutdown;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// From this many bytes on a pipe pays for itself.
pub const SPLICE_MIN: u64 = 16 * 1024;
/// Full reads in a row that turn an open-ended lane to splice.
pub const FULL_READS: u32 = 3;
/// Bytes moved without a wait before the other connections of the shard get their turn.
pub const TURN: u64 = 1 << 20;
/// What every read counts for in a turn at least: as many bytes as are moved in the time of its calls.
const READ_WEIGHT: u64 = 16 * 1024;

/// One peer of a lane. Plain sockets today; a TLS transport has no descriptor to splice from.
pub trait Stream {
    fn readable(&self) -> impl Future<Output = io::Result<()>>;
    fn writable(&self) -> impl Future<Output = io::Result<()>>;
    fn try_recv_at_most(&self, buf: &mut Vec<u8>, max: usize) -> io::Result<Moved>;
    fn try_send(&self, bytes: &[u8]) -> io::Result<Moved>;
    /// See [`Socket::try_send_ahead`].
    fn try_send_ahead(&self, bytes: &[u8]) -> io::Result<Moved>;
    /// See [`Socket::send_waiting`].
    fn send_waiting(&self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)>;
    fn shutdown(&self, how: Shutdown);
    /// See [`Socket::keep_alive`].
    fn keep_alive(&self) -> io::Result<()>;
    /// See [`Socket::wake_from`].
    fn wake_from(&self, bytes: u64) -> io::Result<()>;
    /// The descriptor whose bytes are the stream's bytes.
    fn splice_fd(&self) -> Option<BorrowedFd<'_>>;
}

impl Stream for Socket {
    fn readable(&self) -> impl Future<Output = io::Result<()>> {
        Socket::readable(self)
    }
    fn writable(&self) -> impl Future<Output = io::Result<()>> {
        Socket::writable(self)
    }
    fn try_recv_at_most(&self, buf: &mut Vec<u8>, max: usize) -> io::Result<Moved> {
        Socket::try_recv_at_most(self, buf, max)
    }
    fn try_send(&self, bytes: &[u8]) -> io::Result<Moved> {
        Socket::try_send(self, bytes)
    }
    fn try_send_ahead(&self, bytes: &[u8]) -> io::Result<Moved> {
        Socket::try_send_ahead(self, bytes)
    }
    fn send_waiting(&self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> {
        Socket::send_waiting(self, buf)
    }
    fn shutdown(&self, how: Shutdown) {
        Socket::shutdown(self, how);
    }
    fn keep_alive(&self) -> io::Result<()> {
        Socket::keep_alive(self)
    }
    fn wake_from(&self, bytes: u64) -> io::Result<()> {
        Socket::wake_from(self, bytes)
    }
    fn splice_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

/// Which way a lane goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Client to runner.
    Up,
    /// Runner to client.
    Down,
}

/// Why a lane ended before its end.
#[derive(Debug)]
pub enum Fault {
    /// The source closed or broke before the framing was complete.
    SourceEnded,
    SourceBroke(io::Error),
    /// The source's chunked framing is invalid.
    SourceSyntax(Reject),
    /// The sink takes no more.
    SinkBroke(io::Error),
    /// The right by which bytes are moved is gone.
    Revoked,
}

/// What a lane needs besides its two ends.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    pub buffers: &'a Buffers,
    pub counters: &'a Counters,
    pub watch: &'a Watch,
    /// How long the client may stand still.
    pub stall: Patience,
    /// How long the runner may take nothing.
    pub runner_stall: Patience,
    /// Told of bytes when only they make this count as use of the sandbox.
    pub in_use: Option<&'a InUse>,
}

/// How long a peer may stand still; nothing: for as long as it likes. In milliseconds, up to 49 days: every idle tunnel
/// keeps two.
#[derive(Clone, Copy, Default)]
pub struct Patience(Option<NonZeroU32>);

impl From<Option<Duration>> for Patience {
    fn from(wait: Option<Duration>) -> Self {
        let millis = wait.map(|wait| wait.as_secs().saturating_mul(1000) + u64::from(wait.subsec_millis()));
        Self(millis.and_then(|millis| NonZeroU32::new(u32::try_from(millis).unwrap_or(u32::MAX).max(1))))
    }
}

impl Patience {
    pub fn ends(self) -> bool {
        self.0.is_some()
    }

    pub fn as_duration(self) -> Option<Duration> {
        self.0.map(|millis| Duration::from_millis(millis.get().into()))
    }
}

/// One direction of one exchange or tunnel.
pub struct Lane<'a, S, D> {
    pub source: &'a S,
    pub sink: &'a D,
    pub way: Way,
    pub means: &'a Means<'a>,
}

/// How the sink's side of a body is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SinkFraming {
    /// The bytes themselves; their end is known by length or by closing.
    Bare,
    Chunked,
}

impl<S: Stream, D: Stream> Lane<'_, S, D> {
    /// Sends all of `bytes`. Waits for the sink when it must.
    pub async fn send(&self, mut bytes: &[u8]) -> Result<(), Fault> {
        self.count(bytes.len() as u64, Mover::Copy);
        while !bytes.is_empty() {
            match self.sink.try_send(bytes).map_err(Fault::SinkBroke)? {
                Moved::Bytes(n) => bytes = &bytes[n..],
                Moved::End | Moved::NotReady => self.wait_writable().await?,
            }
        }
        Ok(())
    }

    /// Sends all of a message that is small and whole, together with what others send in this turn of the loop. Gives
    /// the buffer back. Not cancel-safe.
    pub async fn send_whole(&self, message: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let armed = self.way == Way::Down && self.means.stall.ends();
        if armed {
            self.means.watch.client_writes(self.means.stall.as_duration());
        }
        let (sent, message) = self.sink.send_waiting(message).await;
        if armed {
            self.means.watch.client_writes(None);
        }
        let sent = sent.map_err(Fault::SinkBroke)?;
        self.count(sent as u64, Mover::Copy);
        if sent < message.len() {
            self.send(&message[sent..]).await?;
        }
        Ok(message)
    }

    /// Sends `first`, then moves exactly `length` bytes.
    pub async fn exact(&self, first: &[u8], length: u64) -> Result<(), Fault> {
        let mut left = length;
        if left >= SPLICE_MIN {
            // Apart: what it needs is for large bodies alone.
            return Box::pin(self.exact_large(first, left)).await;
        }
        self.send(first).await?;
        let mut buf = self.means.buffers.small();
        let mut unpaused = 0;
        while left > 0 {
            buf.clear();
            let n = self.recv(&mut buf, usize::try_from(left).unwrap_or(usize::MAX)).await?;
            if n == 0 {
                return Err(Fault::SourceEnded);
            }
            left -= n as u64;
            self.send(&buf).await?;
            self.take_turns(&mut unpaused, n as u64).await?;
        }
        self.means.buffers.give(buf);
        Ok(())
    }

    /// Through a pipe as soon as there is one; up to then by copying.
    async fn exact_large(&self, first: &[u8], length: u64) -> Result<(), Fault> {
        let (mut first, mut left, mut unpaused) = (first, length, 0);
        while left > 0 {
            if left >= SPLICE_MIN
                && let Some(pipe) = self.pipe()
            {
                return self.spliced(pipe, first, left).await;
            }
            self.send(first).await?;
            first = b"";
            // Held while the sink is waited for, not while the source is.
            let mut buf = self.means.buffers.large();
            let max = usize::try_from(left).unwrap_or(usize::MAX);
            match self.source.try_recv_at_most(&mut buf, max).map_err(Fault::SourceBroke)? {
                Moved::End => return Err(Fault::SourceEnded),
                Moved::NotReady => {
                    drop(buf);
                    self.wait_readable().await?;
                }
                Moved::Bytes(n) => {
                    self.send(&buf).await?;
                    drop(buf);
                    left -= n as u64;
                    self.take_turns(&mut unpaused, n as u64).await?;
                }
            }
            self.is_allowed()?;
        }
        Ok(())
    }

    /// Moves everything until the source ends. With [`SinkFraming::Chunked`] each stretch becomes a chunk; the last
    /// chunk is the caller's to write. Returns the number of bytes.
    pub async fn until_end(&self, framing: SinkFraming) -> Result<u64, Fault> {
        let (mut total, mut full_reads, mut unpaused) = (0, 0, 0);
        loop {
            // No deadline: a stream may be silent for as long as it likes, in either direction.
            self.source.readable().await.map_err(Fault::SourceBroke)?;
            self.is_allowed()?;
            let mut buf = self.means.buffers.small();
            let room = buf.capacity();
            let n = match self.source.try_recv_at_most(&mut buf, room).map_err(Fault::SourceBroke)? {
                Moved::NotReady => {
                    self.means.buffers.give(buf);
                    continue;
                }
                Moved::End => {
                    self.means.buffers.give(buf);
                    return Ok(total);
                }
                Moved::Bytes(n) => n,
            };
            total += n as u64;
            // The usual case needs no wait. What does is kept apart: an idle lane is as small as its first wait.
            let sent = match framing {
                SinkFraming::Bare => self.send_now(&buf)?,
                SinkFraming::Chunked => 0,
            };
            unpaused += READ_WEIGHT.max(n as u64);
            full_reads = if n == room { full_reads + 1 } else { 0 };
            let (turn, splice) = (unpaused >= TURN, full_reads >= FULL_READS);
            if sent < n || turn || splice {
                total += Box::pin(self.catch_up(&buf[sent..], framing, turn, splice)).await?;
                unpaused = if turn { 0 } else { unpaused };
                full_reads = if splice { 0 } else { full_reads };
            }
            self.means.buffers.give(buf);
        }
    }

    /// What [`Self::until_end`] does when it has to wait or there is much to move. Returns the bytes moved beyond
    /// `rest`.
    async fn catch_up(
        &self,
        rest: &[u8],
        framing: SinkFraming,
        turn: bool,
        splice: bool,
    ) -> Result<u64, Fault> {
        match framing {
            SinkFraming::Bare => self.send(rest).await?,
            SinkFraming::Chunked => self.send_chunk(rest).await?,
        }
        let pipe = if splice { self.pipe() } else { None };
        let moved = match pipe {
            Some(pipe) => self.spliced_while_busy(pipe, framing).await?,
            None => 0,
        };
        if turn {
            turns::in_turn(self.wait_writable()).await?;
        }
        Ok(moved)
    }

    /// Sends what the sink takes at once; how much that was.
    pub fn send_now(&self, bytes: &[u8]) -> Result<usize, Fault> {
        self.sent(self.sink.try_send(bytes))
    }

    fn sent(&self, sent: io::Result<Moved>) -> Result<usize, Fault> {
        match sent.map_err(Fault::SinkBroke)? {
            Moved::Bytes(n) => {
                self.count(n as u64, Mover::Copy);
                Ok(n)
            }
            Moved::End | Moved::NotReady => Ok(0),
        }
    }

    /// Appends the next bytes, waiting for them; 0 when the source ended.
    async fn recv(&self, buf: &mut Vec<u8>, max: usize) -> Result<usize, Fault> {
        loop {
            match self.source.try_recv_at_most(buf, max).map_err(Fault::SourceBroke)? {
                Moved::Bytes(n) => return Ok(n),
                Moved::End => return Ok(0),
                Moved::NotReady => self.wait_readable().await?,
            }
        }
    }

    /// Looked at in every turn: who is revoked is marked at once, and ended when his turn comes.
    fn is_allowed(&self) -> Result<(), Fault> {
        self.means.watch.revoked().map_or(Ok(()), |_| Err(Fault::Revoked))
    }

    async fn wait_readable(&self) -> Result<(), Fault> {
        let armed = self.way == Way::Up && self.means.stall.ends();
        if armed {
            self.means.watch.client_reads(self.means.stall.as_duration());
        }
        let result = self.source.readable().await;
        if armed {
            self.means.watch.client_reads(None);
        }
        result.map_err(Fault::SourceBroke)
    }

    pub async fn wait_writable(&self) -> Result<(), Fault> {
        let Means { watch, stall, runner_stall, .. } = self.means;
        match self.way {
            Way::Down if stall.ends() => watch.client_writes(stall.as_duration()),
            Way::Up if runner_stall.ends() => watch.runner_answers(runner_stall.as_duration()),
            _ => {}
        }
        let result = self.sink.writable().await;
        match self.way {
            Way::Down if stall.ends() => watch.client_writes(None),
            Way::Up if runner_stall.ends() => watch.runner_answers(None),
            _ => {}
        }
        result.map_err(Fault::SinkBroke)
    }

    /// After [`TURN`] bytes in one go everybody else runs.
    pub async fn take_turns(&self, unpaused: &mut u64, n: u64) -> Result<(), Fault> {
        *unpaused += n.max(READ_WEIGHT);
        if *unpaused < TURN {
            return Ok(());
        }
        *unpaused = 0;
        turns::in_turn(self.wait_writable()).await
    }

    fn count(&self, n: u64, mover: Mover) {
        let counters = self.means.counters;
        if let Some(in_use) = self.means.in_use {
            in_use.moved(n);
        }
        add(
            match (self.way, mover) {
                (Way::Up, Mover::Copy) => &counters.bytes_up_copied,
                (Way::Up, Mover::Splice) => &counters.bytes_up_spliced,
                (Way::Down, Mover::Copy) => &counters.bytes_down_copied,
                (Way::Down, Mover::Splice) => &counters.bytes_down_spliced,
            },
            n,
        );
    }
}

#[derive(Clone, Copy)]
enum Mover {
    Copy,
    Splice,
}

#[cfg(test)]
mod tests;
