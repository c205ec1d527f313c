//! Answers on their way out, whole or broken on purpose.
//!
//! Everything the backend says passes here, so every fault can befall every endpoint.

use super::fault::{Ending, Fault};
use super::peer::{Broken, Head, Peer};
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::sleep;

/// What is to become of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    KeepAlive,
    Close,
    /// Close our direction, read the other one to its end.
    HalfClose,
    Reset,
    /// The 101 is sent.
    WebSocket,
}

pub(super) struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    /// Further fields, each ending with CRLF.
    pub fields: String,
    pub body: Body,
}

pub(super) enum Body {
    Bytes(Vec<u8>),
    /// These bytes of the endless [`PATTERN`].
    Pattern(Range<u64>),
}

impl Answer {
    pub fn text(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type, fields: String::new(), body: Body::Bytes(body.into()) }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }

    /// Adds a field. Neither part may hold control characters; what comes from a request does not after parsing.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(self.fields, "{name}: {value}\r\n");
        self
    }
}

/// Bytes without a pattern a compressor or a mix-up of offsets could profit from; byte `i` of any body made of it is
/// `PATTERN[i % PATTERN_BYTES]`. The length is odd, so that no power of two falls on the same place again.
pub const PATTERN_BYTES: usize = (256 << 10) - 1;
pub static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; PATTERN_BYTES];
    fastrand::Rng::with_seed(0x5ad6).fill(&mut bytes);
    bytes
});

/// Bodies up to this go out in one write with their head.
const ONE_WRITE_BYTES: u64 = 16 << 10;

/// Sends an answer whose body is at hand.
pub(super) async fn send(
    peer: &mut Peer,
    head: &Head,
    fault: &Fault,
    answer: Answer,
) -> Result<Next, Broken> {
    let length = match &answer.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Pattern(range) => range.end - range.start,
    };
    if fault.is_none() && length <= ONE_WRITE_BYTES {
        let mut out = head_text(&answer, Some(length)).into_bytes();
        if head.method() != "HEAD" {
            match &answer.body {
                Body::Bytes(bytes) => out.extend_from_slice(bytes),
                Body::Pattern(range) => pattern(range.clone(), |piece| out.extend_from_slice(piece)),
            }
        }
        peer.send(&out).await?;
        return Ok(if head.wants_close { Next::Close } else { Next::KeepAlive });
    }
    let mut writer = match BodyWriter::begin(peer, head, *fault, &answer, Some(length)).await? {
        Ok(writer) => writer,
        Err(next) => return Ok(next),
    };
    match answer.body {
        Body::Bytes(bytes) => {
            let _ = writer.write(&bytes).await?;
        }
        Body::Pattern(Range { mut start, end }) => {
            while start < end {
                let piece = pattern_piece(start..end);
                start += piece.len() as u64;
                if writer.write(piece).await?.is_break() {
                    break;
                }
            }
        }
    }
    writer.end().await
}

/// What comes before any answer: the delay, and the endings without a first byte. `Some`: nothing is to be said.
pub(super) async fn before_answer(peer: &mut Peer, fault: &Fault) -> Option<Next> {
    if !fault.delay.is_zero() {
        sleep(fault.delay).await;
    }
    match fault.ending {
        Ending::Never => {
            peer.until_closed().await;
            Some(Next::Close)
        }
        Ending::Reset(None) => Some(Next::Reset),
        _ => None,
    }
}

/// A body being written. Dropped before [`Self::end`], the answer is cut short: close the connection then.
pub(super) struct BodyWriter<'a> {
    peer: &'a mut Peer,
    fault: Fault,
    /// Bytes of the body until the fault's cut.
    left: Option<u64>,
    chunked: bool,
    bodiless: bool,
    wants_close: bool,
    cut: bool,
}

impl<'a> BodyWriter<'a> {
    /// Sends the head. `length`: of the body; unknown ones are chunked. `Err`: the fault ends it here.
    pub async fn begin(
        peer: &'a mut Peer,
        head: &Head,
        fault: Fault,
        answer: &Answer,
        length: Option<u64>,
    ) -> Result<Result<Self, Next>, Broken> {
        if let Some(next) = before_answer(peer, &fault).await {
            return Ok(Err(next));
        }
        let length = length.filter(|_| !fault.bytewise);
        let text = match fault.status {
            Some(status) => head_text(&Answer::text(status, answer.content_type, ""), length),
            None => head_text(answer, length),
        };
        peer.send(text.as_bytes()).await?;
        let status = fault.status.unwrap_or(answer.status);
        let bodiless = head.method() == "HEAD" || matches!(status, 204 | 304);
        let (left, chunked) = (fault.ending.cut(), length.is_none());
        let writer = Self {
            peer,
            fault,
            left,
            chunked,
            bodiless,
            wants_close: head.wants_close,
            cut: left == Some(0),
        };
        Ok(Ok(writer))
    }

    /// Break: the fault has cut the body; nothing more will be written.
    pub async fn write(&mut self, piece: &[u8]) -> Result<ControlFlow<()>, Broken> {
        if self.bodiless {
            return Ok(ControlFlow::Continue(()));
        }
        let piece = match self.left {
            Some(left) if left <= piece.len() as u64 => {
                self.cut = true;
                &piece[..left as usize]
            }
            _ => piece,
        };
        if let Some(left) = &mut self.left {
            *left -= piece.len() as u64;
        }
        let step = match (self.fault.bytewise, self.fault.slow_write) {
            (true, _) => 1,
            // Ten writes a second.
            (false, Some(rate)) => usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1),
            (false, None) => usize::MAX,
        };
        for part in piece.chunks(step.min(piece.len().max(1))) {
            if self.chunked {
                let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
                chunk.extend_from_slice(part);
                chunk.extend_from_slice(b"\r\n");
                self.peer.send(&chunk).await?;
            } else {
                self.peer.send(part).await?;
            }
            if let Some(rate) = self.fault.slow_write {
                sleep(Duration::from_secs_f64(part.len() as f64 / rate as f64)).await;
            } else if self.fault.bytewise {
                // Others have their turn, and segments their chance to leave one by one.
                tokio::task::yield_now().await;
            }
        }
        Ok(if self.cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    pub async fn end(self) -> Result<Next, Broken> {
        // An answer shorter than its fault's offset ends in the same way, behind its last byte.
        match self.fault.ending {
            Ending::Reset(Some(_)) => return Ok(Next::Reset),
            Ending::HalfClose(_) => return Ok(Next::HalfClose),
            Ending::Truncate(_) => return Ok(Next::Close),
            Ending::Whole | Ending::Reset(None) | Ending::Never => {}
        }
        if self.chunked && !self.bodiless {
            self.peer.send(b"0\r\n\r\n").await?;
        }
        Ok(if self.wants_close { Next::Close } else { Next::KeepAlive })
    }
}

fn head_text(answer: &Answer, length: Option<u64>) -> String {
    let mut text = String::with_capacity(160 + answer.fields.len());
    // Writing to a String cannot fail.
    let _ = write!(text, "HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    if !answer.content_type.is_empty() {
        let _ = write!(text, "Content-Type: {}\r\n", answer.content_type);
    }
    match length {
        _ if matches!(answer.status, 204 | 304) => {}
        Some(length) => {
            let _ = write!(text, "Content-Length: {length}\r\n");
        }
        None => text.push_str("Transfer-Encoding: chunked\r\n"),
    }
    text.push_str(&answer.fields);
    text.push_str("\r\n");
    text
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        // RFC 9112 4: a reason phrase may be empty.
        _ => "",
    }
}

/// The longest run of the pattern that begins with `range` and is at hand in one piece.
fn pattern_piece(range: Range<u64>) -> &'static [u8] {
    let from = (range.start % PATTERN_BYTES as u64) as usize;
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(PATTERN_BYTES - from);
    &PATTERN[from..from + length]
}

fn pattern(mut range: Range<u64>, mut sink: impl FnMut(&[u8])) {
    while range.start < range.end {
        let piece = pattern_piece(range.clone());
        sink(piece);
        range.start += piece.len() as u64;
    }
}
