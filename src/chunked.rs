//! The chunked transfer coding, read strictly and written canonically (RFC 9112 7.1).
//!
//! Bytes in, bytes out; no socket. Chunk lines are `HEX CRLF`, upstream extensions are dropped, LF without CR, signs,
//! quotes and empty sizes are refused.

use crate::head::Reject;

/// Reads one chunked body from pieces cut anywhere.
pub struct ChunkReader {
    _state: (),
}

/// What the next bytes of the input are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// The next `n` bytes at `at` are body data (`at` counts from the start of the input given).
    Data { at: usize, n: usize },
    /// The body and its trailer section are complete; input behind `consumed` belongs to the next message.
    End,
    /// All input was consumed; more is needed.
    NeedMore,
}

impl ChunkReader {
    /// `trailer_bytes_max` bounds the trailer section.
    pub fn new(trailer_bytes_max: usize) -> Self {
        let _ = trailer_bytes_max;
        unimplemented!()
    }

    /// Consumes from `input`; returns how many bytes were consumed and what the last of them were. For
    /// `Piece::Data` the consumed bytes end with the data. Call again with the rest until `NeedMore` or `End`.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), Reject> {
        let _ = input;
        unimplemented!()
    }

    /// Body bytes still to come in the current chunk, known once its size line was read: a relay may move these
    /// without looking at them and then say so with [`Self::skip_data`].
    pub fn data_remaining(&self) -> u64 {
        unimplemented!()
    }

    /// `n` bytes of the current chunk's data were moved elsewhere. Panics never; `n` beyond the chunk is capped by
    /// the caller's use of [`Self::data_remaining`].
    pub fn skip_data(&mut self, n: u64) {
        let _ = n;
        unimplemented!()
    }

    /// The trailer section's field lines as received and checked (`name: value CRLF`…), without the final blank
    /// line and without fields that must not stand there (framing, routing, authentication, RFC 9110 6.5.1).
    /// Empty before `End`.
    pub fn trailers(&self) -> &[u8] {
        unimplemented!()
    }
}

/// Writes `HEX CRLF` for a chunk of `n` bytes into `out`; `n` must not be 0 (that would end the body).
pub fn write_chunk_line(n: u64, out: &mut Vec<u8>) {
    let _ = (n, out);
    unimplemented!()
}

/// Writes the last chunk and the trailer section.
pub fn write_end(trailers: &[u8], out: &mut Vec<u8>) {
    let _ = (trailers, out);
    unimplemented!()
}
