//! The world's side of one HTTP/1.1 connection: strict reading, raw recording, and answers byte for byte.
//!
//! Deliberately not built on the gate's own parsers: what the gate sends must be judged by somebody else. Anything
//! ambiguous (two framing fields, a bare LF, a chunk that does not end where it should) is `Malformed`.

use super::record::{ConnectionEnd, Recorder};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head and longest chunk or trailer line the world reads.
const HEAD_BYTES_MAX: usize = 256 << 10;
const LINE_BYTES_MAX: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;

/// Why a connection cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nothing came where a request could have begun.
    Between,
    /// The other side left or failed in the middle of something.
    Inside,
    Malformed(String),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Inside
    }
}

/// What is to become of the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum After {
    KeepAlive,
    Close,
}

/// A request head as received; bytes are shown as Latin-1, one `char` per byte.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub method: String,
    pub target: String,
    /// `HTTP/1.0` or `HTTP/1.1`.
    pub version: &'static str,
    pub fields: Vec<(String, String)>,
    pub framing: Framing,
}

impl Head {
    /// First value of a field, by case-insensitive name.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    pub fn expects_continue(&self) -> bool {
        self.first("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
    }

    pub fn is_websocket(&self) -> bool {
        self.first("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
    }

    /// The client wants no further request on this connection.
    pub fn wants_close(&self) -> bool {
        let close = |v: &str| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("close"));
        self.version == "HTTP/1.0" || self.first("connection").is_some_and(close)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// One accepted connection.
pub(super) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
    /// Where raw bytes are kept, and under which number. The API's connections are not kept raw.
    tape: Option<(Arc<Recorder>, u64)>,
}

impl Peer {
    pub fn new(stream: TcpStream, tape: Option<(Arc<Recorder>, u64)>) -> Self {
        Self { stream, buffer: Vec::new(), at: 0, tape }
    }

    /// The next request's head.
    pub async fn head(&mut self) -> Result<Head, Broken> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memmem::find(&self.unread()[searched..], b"\r\n\r\n") {
                let head = parse_head(&self.unread()[..searched + end + 4])?;
                self.consume(searched + end + 4);
                return Ok(head);
            }
            searched = self.unread().len().saturating_sub(3);
            if self.unread().len() > HEAD_BYTES_MAX {
                return Err(Broken::Malformed("the head does not end".into()));
            }
            let fresh = self.unread().is_empty();
            match self.fill().await {
                Ok(0) | Err(_) if fresh => return Err(Broken::Between),
                Ok(0) | Err(_) => return Err(Broken::Inside),
                Ok(_) => {}
            }
        }
    }

    /// Reads the body, giving each piece to `sink`; the trailer lines of a chunked one come back.
    pub async fn body(
        &mut self,
        framing: Framing,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Vec<String>, Broken> {
        match framing {
            Framing::None => Ok(Vec::new()),
            Framing::Length(n) => self.data(n, sink).await.map(|()| Vec::new()),
            Framing::Chunked => self.chunks(sink).await,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.stream.write_all(bytes).await.map_err(Broken::from)
    }

    /// Whatever comes next, once; empty at the end.
    pub async fn some(&mut self) -> Result<Vec<u8>, Broken> {
        if self.unread().is_empty() {
            self.fill().await?;
        }
        let bytes = self.unread().to_vec();
        self.consume(bytes.len());
        Ok(bytes)
    }

    /// Reads until the other side closes.
    pub async fn until_closed(&mut self) -> Result<(), Broken> {
        while !self.some().await?.is_empty() {}
        Ok(())
    }

    /// Makes the close that follows a reset (RST) instead of an orderly end.
    pub fn reset_on_close(&self) -> Result<(), Broken> {
        self.stream.set_zero_linger().map_err(Broken::from)
    }

    /// Ends our direction and waits for the other side to end its own, so that an answer in flight is not lost to a
    /// reset because of unread bytes. Bounded in time: a peer that never closes is cut.
    pub async fn close(mut self) {
        if self.stream.shutdown().await.is_ok() {
            let patience = std::time::Duration::from_secs(2);
            // Whether it ended in order is of no interest any more.
            let _ = tokio::time::timeout(patience, self.until_closed()).await;
        }
    }

    /// The socket and the bytes read ahead, for a protocol of another kind. No longer recorded.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        let ahead = self.buffer[self.at..].to_vec();
        (self.stream, ahead)
    }

    pub fn ended(&self, end: ConnectionEnd) {
        if let Some((recorder, id)) = &self.tape {
            recorder.connection_ended(*id, end);
        }
    }

    async fn data(&mut self, mut n: u64, sink: &mut (dyn FnMut(&[u8]) + Send)) -> Result<(), Broken> {
        while n > 0 {
            if self.unread().is_empty() && self.fill().await? == 0 {
                return Err(Broken::Inside);
            }
            let take = usize::try_from(n).unwrap_or(usize::MAX).min(self.unread().len());
            sink(&self.unread()[..take]);
            self.consume(take);
            n -= take as u64;
        }
        Ok(())
    }

    async fn chunks(&mut self, sink: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Vec<String>, Broken> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default();
            let digits = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
            let size = u64::from_str_radix(size, 16).ok().filter(|_| digits);
            let size = size.ok_or_else(|| Broken::Malformed(format!("chunk line {line:?}")))?;
            if size == 0 {
                break;
            }
            self.data(size, sink).await?;
            let line = self.line().await?;
            if !line.is_empty() {
                return Err(Broken::Malformed(format!("chunk data is followed by {line:?}")));
            }
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(line);
        }
    }

    /// A line without its CRLF.
    async fn line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(lf) = memchr::memchr(b'\n', self.unread()) {
                let line = self.unread()[..lf].strip_suffix(b"\r").map(latin1);
                let line = line.ok_or_else(|| Broken::Malformed("a line ends with a bare LF".into()))?;
                self.consume(lf + 1);
                return Ok(line);
            }
            if self.unread().len() > LINE_BYTES_MAX {
                return Err(Broken::Malformed("a line does not end".into()));
            }
            if self.fill().await? == 0 {
                return Err(Broken::Inside);
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
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.reserve(READ_BYTES);
        let before = self.buffer.len();
        let n = self.stream.read_buf(&mut self.buffer).await?;
        if let Some((recorder, id)) = &self.tape {
            recorder.connection_bytes(*id, &self.buffer[before..]);
        }
        Ok(n)
    }
}

/// A whole answer with `Content-Length`; to HEAD the body is left out.
pub(super) fn answer(status: u16, fields: &[(&str, &str)], body: &[u8], request: &Head) -> Vec<u8> {
    let mut out = head_bytes(status, fields);
    out.truncate(out.len() - 2);
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    if !request.is_head() {
        out.extend_from_slice(body);
    }
    out
}

/// An answer's head alone, blank line included.
pub(super) fn head_bytes(status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} {}\r\n", reason(status)).into_bytes();
    for (name, value) in fields {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Every byte as the `char` of the same number.
pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// `%XX` decoded; anything else as it is.
pub(super) fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|h| first == b'%' && h.iter().all(u8::is_ascii_hexdigit));
        let byte = escape.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn parse_head(bytes: &[u8]) -> Result<Head, Broken> {
    let malformed = |why: &str| Broken::Malformed(why.into());
    if memchr::memchr_iter(b'\n', bytes).any(|i| i == 0 || bytes[i - 1] != b'\r') {
        return Err(malformed("the head has a bare LF"));
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        Ok(_) => return Err(malformed("the head does not end at its blank line")),
        Err(error) => return Err(Broken::Malformed(format!("the head is refused: {error}"))),
    }
    let fields: Vec<_> =
        request.headers.iter().map(|h| (latin1(h.name.as_bytes()), latin1(h.value))).collect();
    Ok(Head {
        method: request.method.unwrap_or_default().into(),
        target: latin1(request.path.unwrap_or_default().as_bytes()),
        version: if request.version == Some(0) { "HTTP/1.0" } else { "HTTP/1.1" },
        framing: framing(&fields)?,
        fields,
    })
}

/// RFC 9112 6.3, refusing everything two readers could read in two ways.
fn framing(fields: &[(String, String)]) -> Result<Framing, Broken> {
    let all = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    };
    match (all("content-length").as_slice(), all("transfer-encoding").as_slice()) {
        ([], []) => Ok(Framing::None),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| Broken::Malformed("length out of range".into()))
        }
        (lengths, codings) => Err(Broken::Malformed(format!("framing {lengths:?} {codings:?}"))),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "X",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, Broken> {
        parse_head(text.as_bytes())
    }

    #[test]
    fn ambiguous_framing_is_malformed() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            assert!(matches!(head(&text), Err(Broken::Malformed(_))), "{fields:?}");
        }
    }

    #[test]
    fn a_bare_lf_in_a_head_is_malformed() {
        assert!(matches!(head("GET / HTTP/1.1\nHost: a\r\n\r\n"), Err(Broken::Malformed(_))));
    }

    #[test]
    fn fields_keep_order_spelling_and_bytes() {
        let h = head("GET /a?b HTTP/1.1\r\nX-B: 1\r\nx-a: 2\r\n\r\n").expect("a good head");
        assert_eq!(h.fields, [("X-B".into(), "1".into()), ("x-a".into(), "2".into())]);
        assert_eq!((h.path(), h.framing), ("/a", Framing::None));
    }

    #[test]
    fn percent_escapes_are_decoded_and_broken_ones_left() {
        assert_eq!(percent_decoded("a%2Fb%zz%4"), "a/b%zz%4");
    }
}
