//! One accepted connection of the backend: reads request heads and bodies, writes bytes as they are.
//!
//! Knows HTTP/1.1's grammar and no endpoint. Lean rather than strict: whether a proxy frames well is judged by the
//! proxy's own tests; here a message that cannot be understood ends the connection and is counted.

use std::io;
use std::ops::Range;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest head, and longest chunk-size or trailer line. Costs at most this much per connection.
const HEAD_BYTES_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 128;
/// What a connection reads at once, between messages and inside bodies.
const READ_BYTES: usize = 4 << 10;
const BODY_READ_BYTES: usize = 256 << 10;
/// As runners of v0.190 do: pooled connections of a proxy must end before.
pub(super) const IDLE: Duration = Duration::from_secs(70);
/// A head that has begun, and any step of a body.
const STEP: Duration = Duration::from_secs(600);
/// Longest wait for the other side's end at an ordinary close.
const CLOSE: Duration = Duration::from_secs(2);
/// Longest a connection lives on after our side of it ended.
const LINGER: Duration = Duration::from_secs(600);

/// Why a connection cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nothing came where a request could have begun: the ordinary end.
    Between,
    /// The other side left, failed or fell silent in the middle of something.
    Inside,
    Malformed,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Inside
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// A request head: its bytes, and where in them the parts are that the backend looks at.
#[derive(Debug)]
pub(super) struct Head {
    text: String,
    method: Range<usize>,
    target: Range<usize>,
    authorization: Option<Range<usize>>,
    runner_authorization: Option<Range<usize>>,
    range: Option<Range<usize>>,
    websocket_key: Option<Range<usize>>,
    websocket_protocol: Option<Range<usize>>,
    pub framing: Framing,
    pub is_websocket: bool,
    pub expects_continue: bool,
    /// The client wants no further request on this connection.
    pub wants_close: bool,
}

impl Head {
    pub fn method(&self) -> &str {
        &self.text[self.method.clone()]
    }

    pub fn target(&self) -> &str {
        &self.text[self.target.clone()]
    }

    pub fn authorization(&self) -> Option<&str> {
        self.part(&self.authorization)
    }

    /// First `X-Daytona-Authorization`.
    pub fn runner_authorization(&self) -> Option<&str> {
        self.part(&self.runner_authorization)
    }

    pub fn range(&self) -> Option<&str> {
        self.part(&self.range)
    }

    pub fn websocket_key(&self) -> Option<&str> {
        self.part(&self.websocket_key)
    }

    pub fn websocket_protocol(&self) -> Option<&str> {
        self.part(&self.websocket_protocol)
    }

    /// The whole head as it came.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn part(&self, range: &Option<Range<usize>>) -> Option<&str> {
        range.clone().map(|range| &self.text[range])
    }
}

pub(super) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of bodies read.
    pub body_bytes_in: u64,
    /// Bytes written, heads included.
    pub bytes_out: u64,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), at: 0, body_bytes_in: 0, bytes_out: 0 }
    }

    /// The next request's head.
    pub async fn head(&mut self) -> Result<Head, Broken> {
        let mut searched = 0;
        loop {
            let start = searched.min(self.unread().len());
            if let Some(end) = memchr::memmem::find(&self.unread()[start..], b"\r\n\r\n") {
                let length = start + end + 4;
                let head = parse_head(&self.unread()[..length])?;
                self.consume(length);
                return Ok(head);
            }
            searched = self.unread().len().saturating_sub(3);
            if self.unread().len() > HEAD_BYTES_MAX {
                return Err(Broken::Malformed);
            }
            let between = self.unread().is_empty();
            let patience = if between { IDLE } else { STEP };
            match timeout(patience, self.fill(READ_BYTES)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ if between => return Err(Broken::Between),
                _ => return Err(Broken::Inside),
            }
        }
    }

    /// Reads a body, giving each piece to `sink`, at no more than `rate` bytes a second.
    pub async fn body(
        &mut self,
        framing: Framing,
        rate: Option<u64>,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), Broken> {
        match framing {
            Framing::None => Ok(()),
            Framing::Length(n) => self.data(n, rate, sink).await,
            Framing::Chunked => loop {
                let line = self.line().await?;
                let digits = line.split(|b| *b == b';').next().unwrap_or_default();
                let size =
                    std::str::from_utf8(digits).ok().and_then(|d| u64::from_str_radix(d.trim(), 16).ok());
                match size.ok_or(Broken::Malformed)? {
                    0 => {
                        while !self.line().await?.is_empty() {}
                        return Ok(());
                    }
                    size => self.data(size, rate, sink).await?,
                }
                if !self.line().await?.is_empty() {
                    return Err(Broken::Malformed);
                }
            },
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        timeout(STEP, self.stream.write_all(bytes)).await.map_err(|_| Broken::Inside)??;
        self.bytes_out += bytes.len() as u64;
        Ok(())
    }

    /// Reads and drops whatever comes until the other side ends, for a bounded time.
    pub async fn until_closed(&mut self) {
        self.consume(self.unread().len());
        let drain = async {
            while matches!(self.fill(READ_BYTES).await, Ok(n) if n > 0) {
                self.consume(self.unread().len());
            }
        };
        // However it ends, the connection is over.
        let _ = timeout(LINGER, drain).await;
    }

    /// Ends our direction.
    pub async fn shut(&mut self) {
        // A peer that is gone already has its wish.
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection in order: our direction first, then what still comes is read for a short while.
    pub async fn close(mut self) {
        self.shut().await;
        // A peer that does not end its side by then is cut.
        let _ = timeout(CLOSE, self.until_closed()).await;
    }

    /// Ends the connection by a reset (RST).
    pub fn reset(self) {
        // On failure the close is an orderly one; a socket that can no longer be set up is closed already.
        let _ = self.stream.set_zero_linger();
    }

    /// The socket and the bytes read ahead, for a protocol of another kind.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer[self.at..].to_vec())
    }

    async fn data(
        &mut self,
        mut n: u64,
        rate: Option<u64>,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), Broken> {
        // Ten reads a second where the rate is bounded.
        let piece_max =
            rate.map_or(BODY_READ_BYTES, |rate| usize::try_from(rate / 10).unwrap_or(BODY_READ_BYTES).max(1));
        while n > 0 {
            if self.unread().is_empty() {
                let want = piece_max.min(BODY_READ_BYTES).min(usize::try_from(n).unwrap_or(usize::MAX));
                match timeout(STEP, self.fill(want.max(READ_BYTES.min(piece_max)))).await {
                    Ok(Ok(read)) if read > 0 => {}
                    _ => return Err(Broken::Inside),
                }
            }
            let take = usize::try_from(n).unwrap_or(usize::MAX).min(self.unread().len()).min(piece_max);
            sink(&self.unread()[..take]);
            self.body_bytes_in += take as u64;
            self.consume(take);
            n -= take as u64;
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_secs_f64(take as f64 / rate as f64)).await;
            }
        }
        Ok(())
    }

    /// A line without its CRLF.
    async fn line(&mut self) -> Result<Vec<u8>, Broken> {
        loop {
            if let Some(lf) = memchr::memchr(b'\n', self.unread()) {
                let line = self.unread()[..lf].strip_suffix(b"\r").map(<[u8]>::to_vec);
                self.consume(lf + 1);
                return line.ok_or(Broken::Malformed);
            }
            if self.unread().len() > HEAD_BYTES_MAX {
                return Err(Broken::Malformed);
            }
            match timeout(STEP, self.fill(READ_BYTES)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return Err(Broken::Inside),
            }
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            if self.buffer.capacity() > HEAD_BYTES_MAX {
                // What a big body needed is not kept for an idle connection.
                self.buffer = Vec::new();
            }
        }
    }

    /// One read of at most `bytes` more.
    async fn fill(&mut self, bytes: usize) -> io::Result<usize> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        self.buffer.reserve(bytes);
        (&mut self.stream).take(bytes as u64).read_buf(&mut self.buffer).await
    }
}

fn parse_head(bytes: &[u8]) -> Result<Head, Broken> {
    let text = std::str::from_utf8(bytes).map_err(|_| Broken::Malformed)?;
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    if !matches!(request.parse(bytes), Ok(httparse::Status::Complete(_))) {
        return Err(Broken::Malformed);
    }
    // Where a part of the head lies in it.
    let place = |part: &[u8]| {
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + part.len()
    };
    let mut head = Head {
        text: text.to_owned(),
        method: place(request.method.unwrap_or_default().as_bytes()),
        target: place(request.path.unwrap_or_default().as_bytes()),
        authorization: None,
        runner_authorization: None,
        range: None,
        websocket_key: None,
        websocket_protocol: None,
        framing: Framing::None,
        is_websocket: false,
        expects_continue: false,
        wants_close: request.version == Some(0),
    };
    for field in request.headers.iter() {
        let first = |slot: &mut Option<Range<usize>>| *slot = slot.take().or(Some(place(field.value)));
        let says = |word: &[u8]| {
            field.value.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(word))
        };
        match field.name.len() {
            5 if field.name.eq_ignore_ascii_case("range") => first(&mut head.range),
            6 if field.name.eq_ignore_ascii_case("expect") => head.expects_continue = says(b"100-continue"),
            7 if field.name.eq_ignore_ascii_case("upgrade") => head.is_websocket = says(b"websocket"),
            10 if field.name.eq_ignore_ascii_case("connection") => head.wants_close |= says(b"close"),
            13 if field.name.eq_ignore_ascii_case("authorization") => first(&mut head.authorization),
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
                let length = Framing::Length(length.ok_or(Broken::Malformed)?);
                if head.framing != Framing::Chunked {
                    head.framing = length;
                }
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if !says(b"chunked") {
                    return Err(Broken::Malformed);
                }
                head.framing = Framing::Chunked;
            }
            17 if field.name.eq_ignore_ascii_case("sec-websocket-key") => first(&mut head.websocket_key),
            22 if field.name.eq_ignore_ascii_case("sec-websocket-protocol") => {
                first(&mut head.websocket_protocol)
            }
            23 if field.name.eq_ignore_ascii_case("x-daytona-authorization") => {
                first(&mut head.runner_authorization)
            }
            _ => {}
        }
    }
    Ok(head)
}
