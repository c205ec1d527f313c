//! The chunked transfer coding, read strictly and written canonically (RFC 9112 7.1).
//!
//! Bytes in, bytes out; no socket. Chunk lines are written as `HEX CRLF`; extensions of the sender are checked and
//! dropped; LF without CR, signs, whitespace around the size and empty sizes are refused.

#[cfg(test)]
mod tests;

use crate::head::{FieldId, Reject};

/// Reads one chunked body from pieces cut anywhere.
pub struct ChunkReader {
    state: State,
    /// How far size lines outweigh the data they announce, see [`LINE_EXCESS_MAX`].
    line_excess: u64,
    trailer_bytes_max: usize,
    /// Bytes of the trailer section so far, dropped fields included.
    trailer_bytes: usize,
    /// Checked and kept trailer lines, and behind `line_start` the one being read.
    trailers: Vec<u8>,
    line_start: usize,
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

/// Where in the grammar the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In a chunk's size line, `digits` of the size read.
    Size {
        size: u64,
        digits: u32,
    },
    /// Behind the `;`, `len` bytes read.
    Extension {
        size: u64,
        len: u32,
    },
    /// Before the LF of the size line.
    SizeLf {
        size: u64,
        line_len: u32,
    },
    /// `remaining` bytes of data to come, never 0.
    Data {
        remaining: u64,
    },
    /// Behind a chunk's data, before CR and before LF.
    DataCr,
    DataLf,
    /// In a trailer line, or at its start.
    Trailer,
    /// Before the LF of a trailer line.
    TrailerLf,
    End,
    Refused(Reject),
}

/// 16 digits say any 64-bit number.
const SIZE_DIGITS_MAX: u32 = 16;
/// Far above every real chunk, and sums of it with buffer lengths do not overflow.
const SIZE_MAX: u64 = 1 << 62;
/// Longest extension part of one size line.
const EXTENSION_BYTES_MAX: u32 = 256;
/// Each size line may have 16 bytes and twice its chunk's length for nothing; what is beyond that adds up, what is
/// below it is given back, and the sum is bounded by this. So tiny chunks pass for ever, and a body that is mostly
/// extensions does not (CVE-2023-39326, whose remedy this is).
const LINE_EXCESS_MAX: u64 = 16 * 1024;

/// All of a body, its trailer section included, and nothing behind it.
pub fn is_whole(body: &[u8]) -> bool {
    let (mut reader, mut at) = (ChunkReader::new(body.len()), 0);
    loop {
        match reader.next(&body[at..]) {
            Ok((used, Piece::Data { .. })) => at += used,
            Ok((used, Piece::End)) => return at + used == body.len(),
            Ok((_, Piece::NeedMore)) | Err(_) => return false,
        }
    }
}

impl ChunkReader {
    /// `trailer_bytes_max` bounds the trailer section.
    pub fn new(trailer_bytes_max: usize) -> Self {
        Self {
            state: State::Size { size: 0, digits: 0 },
            line_excess: 0,
            trailer_bytes_max,
            trailer_bytes: 0,
            trailers: Vec::new(),
            line_start: 0,
        }
    }

    /// Consumes from `input`; returns how many bytes were consumed and what the last of them were. For
    /// `Piece::Data` the consumed bytes end with the data. Call again with the rest until `NeedMore` or `End`.
    ///
    /// An error is final: every later call returns it again. Behind `End` nothing more is consumed.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), Reject> {
        let mut at = 0;
        loop {
            match self.state {
                State::End => return Ok((at, Piece::End)),
                State::Refused(reject) => return Err(reject),
                _ if at == input.len() => return Ok((at, Piece::NeedMore)),
                State::Data { remaining } => {
                    let n = usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len() - at);
                    self.skip_data(n as u64);
                    return Ok((at + n, Piece::Data { at, n }));
                }
                State::Trailer => at += self.trailer(&input[at..]),
                _ => {
                    self.state = self.step(input[at]);
                    at += 1;
                }
            }
        }
    }

    /// Body bytes still to come in the current chunk, known once its size line was read: a relay may move these
    /// without looking at them and then say so with [`Self::skip_data`].
    pub fn data_remaining(&self) -> u64 {
        match self.state {
            State::Data { remaining } => remaining,
            _ => 0,
        }
    }

    /// `n` bytes of the current chunk's data were moved elsewhere. Panics never; `n` beyond
    /// [`Self::data_remaining`] counts as all of it.
    pub fn skip_data(&mut self, n: u64) {
        if let State::Data { remaining } = self.state {
            self.state = match remaining.saturating_sub(n) {
                0 => State::DataCr,
                remaining => State::Data { remaining },
            };
        }
    }

    /// The trailer section's field lines as received and checked (`name: value CRLF`…), without the final blank
    /// line and without fields that must not stand there (framing, routing, authentication, RFC 9110 6.5.1).
    /// Empty before `End`.
    pub fn trailers(&self) -> &[u8] {
        if self.state == State::End { &self.trailers } else { &[] }
    }

    /// One byte of size line or line end.
    fn step(&mut self, byte: u8) -> State {
        match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let size = size << 4 | u64::from(hex_value(byte));
                if digits == SIZE_DIGITS_MAX || size > SIZE_MAX {
                    return State::Refused(Reject::ChunkTooLarge);
                }
                State::Size { size, digits: digits + 1 }
            }
            (State::Size { size, digits: 1.. }, b';') => State::Extension { size, len: 0 },
            (State::Size { size, digits: digits @ 1.. }, b'\r') => State::SizeLf { size, line_len: digits },
            // No bytes from 0x80 and no quoting rules: the line ends at its first CR for every reader.
            (State::Extension { size, len }, b'\t' | b' '..=b'~') if len < EXTENSION_BYTES_MAX => {
                State::Extension { size, len: len + 1 }
            }
            (State::Extension { size, len }, b'\r') => State::SizeLf { size, line_len: len + 1 },
            (State::SizeLf { size, line_len }, b'\n') => self.chunk(size, line_len),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::TrailerLf, b'\n') => self.trailer_line(),
            _ => State::Refused(Reject::ChunkSyntax),
        }
    }

    /// A size line is complete.
    fn chunk(&mut self, size: u64, line_len: u32) -> State {
        self.line_excess =
            (self.line_excess + u64::from(line_len)).saturating_sub(16 + 2 * size.min(SIZE_MAX / 2));
        match size {
            _ if self.line_excess > LINE_EXCESS_MAX => State::Refused(Reject::ChunkSyntax),
            0 => State::Trailer,
            remaining => State::Data { remaining },
        }
    }

    /// Takes bytes of a trailer line up to its CR; returns how many.
    fn trailer(&mut self, input: &[u8]) -> usize {
        let end = memchr::memchr2(b'\r', b'\n', input);
        let line = &input[..end.unwrap_or(input.len())];
        self.trailer_bytes += line.len();
        if self.trailer_bytes > self.trailer_bytes_max {
            self.state = State::Refused(Reject::TrailerTooLarge);
            return line.len();
        }
        self.trailers.extend_from_slice(line);
        match end {
            None => line.len(),
            Some(at) => {
                self.state = match input[at] {
                    b'\r' => State::TrailerLf,
                    _ => State::Refused(Reject::ChunkSyntax),
                };
                at + 1
            }
        }
    }

    /// A trailer line is complete; the empty one ends the body.
    fn trailer_line(&mut self) -> State {
        let line = &self.trailers[self.line_start..];
        if line.is_empty() {
            return State::End;
        }
        let Some(name) = field_line_name(line) else { return State::Refused(Reject::ChunkSyntax) };
        self.trailer_bytes += 2;
        if may_be_trailer(name) {
            self.trailers.extend_from_slice(b"\r\n");
            self.line_start = self.trailers.len();
        } else {
            self.trailers.truncate(self.line_start);
        }
        State::Trailer
    }
}

/// Writes `HEX CRLF` for a chunk of `n` bytes into `out`; `n` must not be 0 (that would end the body).
pub fn write_chunk_line(n: u64, out: &mut Vec<u8>) {
    debug_assert!(n > 0, "a chunk of no bytes ends the body");
    let digits = (u64::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(n >> (4 * digit) & 0xf) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the last chunk and the trailer section (lines as [`ChunkReader::trailers`] gives them, or none).
pub fn write_end(trailers: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// The name of `line` if it is a field line (RFC 9112 5): a token, the colon at once behind it, a value without
/// controls. A folded line fails by its first byte.
fn field_line_name(line: &[u8]) -> Option<&[u8]> {
    let (name, value) = line.split_at(memchr::memchr(b':', line)?);
    let value_ok = value.iter().all(|b| matches!(b, b'\t' | b' '..=b'~' | 0x80..));
    (!name.is_empty() && name.iter().all(|b| is_token_byte(*b)) && value_ok).then_some(name)
}

/// RFC 9110 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a field may stand in a trailer section. RFC 9110 6.5.1: none that is needed for framing, routing,
/// authentication, request modifiers, response controls or content format, as a recipient that merges trailers
/// into the head would act on what was never checked. Compared with every odd byte taken for `-`, as CGI-like
/// recipients do.
fn may_be_trailer(name: &[u8]) -> bool {
    let folded: Vec<u8> =
        name.iter().map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'-' }).collect();
    FieldId::exact(&folded) == FieldId::Other
        && !FORBIDDEN_PREFIXES.iter().any(|prefix| folded.starts_with(prefix.as_bytes()))
        && !FORBIDDEN.iter().any(|name| folded == name.as_bytes())
}

const FORBIDDEN_PREFIXES: &[&str] =
    &["x-daytona-", "x-forwarded-", "proxy-", "if-", "sec-", "access-control-", "content-"];

const FORBIDDEN: &[&str] = &[
    "age",
    "alt-svc",
    "authentication-info",
    "cache-control",
    "clear-site-data",
    "date",
    "expires",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "refresh",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "vary",
    "warning",
    "www-authenticate",
];
