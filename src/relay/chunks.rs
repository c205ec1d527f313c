//! Bodies framed in chunks, read from a source or written for a sink.

use super::{Fault, Lane, SPLICE_MIN, SinkFraming, Stream};
use crate::buffers::SMALL;
use crate::chunked::{self, ChunkReader, Piece};

/// What a chunk counts for beside its bytes: likewise, of its framing.
const CHUNK_WEIGHT: u64 = 256;

impl<S: Stream, D: Stream> Lane<'_, S, D> {
    /// Moves one chunked body whose first bytes are `buf` (read already, not looked at). The end and the trailers
    /// are written too when the sink is chunked. Returns what was read behind the body's end.
    pub async fn chunked(
        &self,
        reader: &mut ChunkReader,
        mut buf: Vec<u8>,
        framing: SinkFraming,
    ) -> Result<Vec<u8>, Fault> {
        let mut out = self.means.buffers.small();
        let mut unpaused = 0;
        loop {
            let (mut at, mut data, mut weight) = (0, Vec::new(), 0);
            let ended = loop {
                weight += CHUNK_WEIGHT;
                let (used, piece) = reader.next(&buf[at..]).map_err(Fault::SourceSyntax)?;
                match piece {
                    Piece::Data { at: from, n } => data.push(at + from..at + from + n),
                    Piece::NeedMore => break false,
                    Piece::End => {
                        at += used;
                        break true;
                    }
                }
                at += used;
            };
            let length: usize = data.iter().map(ExactSizeIterator::len).sum();
            out.clear();
            // What remains of a large chunk can be announced with what is here and then moved without a look.
            let ahead = if ended { 0 } else { reader.data_remaining() };
            let ahead = if ahead >= SPLICE_MIN { ahead } else { 0 };
            if framing == SinkFraming::Chunked && length as u64 + ahead > 0 {
                chunked::write_chunk_line(length as u64 + ahead, &mut out);
            }
            data.into_iter().for_each(|stretch| out.extend_from_slice(&buf[stretch]));
            if framing == SinkFraming::Chunked && length > 0 && ahead == 0 {
                out.extend_from_slice(b"\r\n");
            }
            if ended && framing == SinkFraming::Chunked {
                chunked::write_end(reader.trailers(), &mut out);
            }
            if ahead == 0 {
                self.send(&out).await?;
            } else {
                self.exact(&out, ahead).await?;
                reader.skip_data(ahead);
                if framing == SinkFraming::Chunked {
                    self.send(b"\r\n").await?;
                }
            }
            if ended {
                self.means.buffers.give(out);
                buf.drain(..at);
                return Ok(buf);
            }
            buf.clear();
            if buf.capacity() < SMALL {
                // What was read behind a head came in a buffer of just its size.
                buf = self.means.buffers.small();
            }
            let n = self.recv(&mut buf, SMALL).await?;
            if n == 0 {
                return Err(Fault::SourceEnded);
            }
            self.take_turns(&mut unpaused, n as u64 + weight + ahead).await?;
            self.is_allowed()?;
        }
    }

    /// As one chunk.
    pub async fn send_chunk(&self, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut out = self.means.buffers.small();
        chunked::write_chunk_line(bytes.len() as u64, &mut out);
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
        self.send(&out).await?;
        self.means.buffers.give(out);
        Ok(())
    }
}
