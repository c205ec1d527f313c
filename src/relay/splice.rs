//! Bodies that go through a pipe.

use super::gather::Gather;
use super::{Fault, Lane, Mover, SinkFraming, Stream};
use crate::buffers::{Lease, PIPE, SMALL};
use crate::chunked;
use crate::counters::add;
use crate::socket::Moved;
use crate::turns;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::io;

/// NONBLOCK for the pipe; the sockets are non-blocking themselves. Never MORE: it holds the last segment back.
const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

impl<S: Stream, D: Stream> Lane<'_, S, D> {
    pub(super) async fn spliced(&self, pipe: Lease<'_>, first: &[u8], length: u64) -> Result<(), Fault> {
        let (mut first, mut left) = (first, length);
        let mut gather = Gather::from(self.source);
        let mut told = false;
        loop {
            let n = match self.fill(&pipe, left) {
                Ok(Moved::Bytes(n)) => n as u64,
                Ok(Moved::NotReady) if !told => 0,
                // Readable or at its end, as splice sees it.
                Ok(Moved::NotReady | Moved::End) => {
                    self.send(first).await?;
                    first = b"";
                    match self.step_over(left).await {
                        Ok(n) => left -= n,
                        Err(fault) => {
                            pipe.give_back();
                            return Err(fault);
                        }
                    }
                    0
                }
                Err(error) => {
                    self.send(first).await?;
                    return Err(Fault::SourceBroke(error));
                }
            };
            if n > 0 && !first.is_empty() {
                // In one segment with what is in the pipe.
                first = &first[self.sent(self.sink.try_send_ahead(first))?..];
            }
            self.send(first).await?;
            first = b"";
            self.drain(&pipe, n).await?;
            left -= n;
            if left == 0 {
                pipe.give_back();
                return Ok(());
            }
            // A wait each time: the others have their turn, and the source has time to bring more.
            let patience = gather.patience(n, left);
            told = patience.is_none();
            match patience {
                None => turns::in_turn(self.wait_readable()).await?,
                // So short that it needs no deadline.
                Some(moment) => {
                    let ready = turns::in_turn(monoio::time::timeout(moment, self.source.readable())).await;
                    ready.unwrap_or(Ok(())).map_err(Fault::SourceBroke)?;
                }
            }
            if let Err(revoked) = self.is_allowed() {
                pipe.give_back();
                return Err(revoked);
            }
        }
    }

    /// By copying, and at most `left` bytes: what splice leaves in a source. It stops before urgent data for ever, and takes it
    /// for the end where the peer has ended behind it; a receive leaves the urgent byte out, which is no part of the stream.
    async fn step_over(&self, left: u64) -> Result<u64, Fault> {
        let mut buf = self.means.buffers.small();
        let max = usize::try_from(left).unwrap_or(SMALL).min(SMALL);
        let moved = self.source.try_recv_at_most(&mut buf, max).map_err(Fault::SourceBroke)?;
        if moved == Moved::End {
            self.means.buffers.give(buf);
            return Err(Fault::SourceEnded);
        }
        let n = buf.len() as u64;
        self.send(&buf).await?;
        self.means.buffers.give(buf);
        Ok(n)
    }

    /// Until the source has nothing ready (or ended, which the caller's next read will see).
    pub(super) async fn spliced_while_busy(
        &self,
        pipe: Lease<'_>,
        framing: SinkFraming,
    ) -> Result<u64, Fault> {
        let (mut total, mut unpaused) = (0, 0);
        let mut line = Vec::new();
        loop {
            let n = match self.fill(&pipe, PIPE as u64) {
                Ok(Moved::Bytes(n)) => n as u64,
                Ok(Moved::End | Moved::NotReady) => {
                    pipe.give_back();
                    return Ok(total);
                }
                Err(error) => return Err(Fault::SourceBroke(error)),
            };
            total += n;
            if framing == SinkFraming::Chunked {
                line.clear();
                chunked::write_chunk_line(n, &mut line);
                self.send(&line).await?;
            }
            self.drain(&pipe, n).await?;
            if framing == SinkFraming::Chunked {
                self.send(b"\r\n").await?;
            }
            self.take_turns(&mut unpaused, n).await?;
            self.is_allowed()?;
        }
    }

    /// Source to empty pipe, without waiting.
    pub fn fill(&self, pipe: &Lease<'_>, max: u64) -> io::Result<Moved> {
        let Some(source) = self.source.splice_fd() else { return Ok(Moved::NotReady) };
        let max = usize::try_from(max).unwrap_or(PIPE).min(PIPE);
        add(&self.means.counters.splice_calls, 1);
        match rustix::pipe::splice(source, None, pipe.write(), None, max, FLAGS) {
            Ok(0) => Ok(Moved::End),
            Ok(n) => Ok(Moved::Bytes(n)),
            // The pipe is empty, so the source has nothing yet, or urgent data next.
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::NotReady),
            Err(error) => Err(error.into()),
        }
    }

    /// All `n` bytes of the pipe to the sink. While bytes are in the pipe only the sink is waited for: a full pipe
    /// and an empty source look the same to `splice`.
    pub async fn drain(&self, pipe: &Lease<'_>, n: u64) -> Result<(), Fault> {
        self.count(n, Mover::Splice);
        let mut left = n as usize;
        while left > 0 {
            let Some(sink) = self.sink.splice_fd() else {
                return Err(Fault::SinkBroke(io::ErrorKind::Unsupported.into()));
            };
            add(&self.means.counters.splice_calls, 1);
            match rustix::pipe::splice(pipe.read(), None, sink, None, left, FLAGS) {
                Ok(moved) => left -= moved,
                Err(Errno::AGAIN | Errno::INTR) => self.wait_writable().await?,
                Err(error) => return Err(Fault::SinkBroke(error.into())),
            }
        }
        Ok(())
    }

    /// `None`: copy instead. All are lent, or the process is out of descriptors, or an end has none.
    pub fn pipe(&self) -> Option<Lease<'_>> {
        self.source.splice_fd().and(self.sink.splice_fd())?;
        self.means.buffers.pipe().ok().flatten()
    }
}
