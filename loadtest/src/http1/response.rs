//! Reads one HTTP/1.1 response (RFC 9112), strictly, out of any split of its bytes. Knows no socket.

use crate::failure::Failure;

/// Longest head taken.
const HEAD_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 128;

/// What a proxy says about an answer it made itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyError {
    pub code: String,
    pub source: String,
}

#[derive(Debug, Default)]
pub struct ResponseReader {
    state: State,
    status: u16,
    body_bytes: u64,
    keep_alive: bool,
    /// The request was a HEAD.
    head_only: bool,
    error: Option<Box<ProxyError>>,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Head,
    /// So many bytes are to come.
    Length(u64),
    UntilClose,
    /// In the line with a chunk's size: its value so far, and whether it has digits.
    ChunkSize {
        size: u64,
        digits: u8,
    },
    ChunkExtension {
        size: u64,
    },
    /// After the CR of a chunk's line.
    ChunkLine {
        size: u64,
    },
    ChunkData(u64),
    /// After a chunk's data: CR, then LF.
    ChunkEnd {
        cr: bool,
    },
    /// In the trailer section; whether its current line is empty so far, and after a CR.
    Trailer {
        empty: bool,
        cr: bool,
    },
    Done,
}

impl ResponseReader {
    /// Of the answer to a request whose method is HEAD, or another one.
    pub fn to(is_head: bool) -> Self {
        Self { head_only: is_head, ..Self::default() }
    }

    /// Takes bytes and says how many; those of an incomplete head are not taken. `sink` sees the body.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, Failure> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            let rest = &bytes[at..];
            at += match self.state {
                State::Head => match self.head(rest)? {
                    0 => break,
                    taken => taken,
                },
                State::Length(left) => {
                    let taken = self.body(rest, left, sink);
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    taken
                }
                State::UntilClose => self.body(rest, u64::MAX, sink),
                State::ChunkData(left) => {
                    let taken = self.body(rest, left, sink);
                    let left = left - taken as u64;
                    self.state =
                        if left == 0 { State::ChunkEnd { cr: false } } else { State::ChunkData(left) };
                    taken
                }
                _ => {
                    self.state = self.chunk_syntax(rest[0])?;
                    1
                }
            };
        }
        Ok(at)
    }

    /// The connection ended. Whether the response is complete with that.
    pub fn end(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.is_done()
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    pub fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    pub fn take_error(&mut self) -> Option<Box<ProxyError>> {
        self.error.take()
    }

    fn body(&mut self, bytes: &[u8], left: u64, sink: &mut dyn FnMut(&[u8])) -> usize {
        let taken = left.min(bytes.len() as u64) as usize;
        self.body_bytes += taken as u64;
        sink(&bytes[..taken]);
        taken
    }

    /// How long the head was; 0: it is not complete.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Ok(0),
            _ => return Err(Failure::Malformed),
        };
        let status = response.code.unwrap_or_default();
        if (100..200).contains(&status) && status != 101 {
            return Ok(length);
        }
        self.status = status;
        self.keep_alive = response.version == Some(1);
        let mut framing: Option<State> = None;
        let (mut code, mut source) = (None, None);
        for field in response.headers.iter() {
            let value = field.value.trim_ascii();
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                // Twice, or beside a transfer coding: two opinions where the body ends (RFC 9112 6.3).
                framing = match framing {
                    None => Some(State::Length(length_of(value)?)),
                    Some(_) => return Err(Failure::Malformed),
                };
            } else if is("transfer-encoding") {
                framing = match framing {
                    None if value.eq_ignore_ascii_case(b"chunked") => {
                        Some(State::ChunkSize { size: 0, digits: 0 })
                    }
                    _ => return Err(Failure::Malformed),
                };
            } else if is("connection") {
                let mut options = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
                if options.any(|option| option.eq_ignore_ascii_case(b"close")) {
                    self.keep_alive = false;
                }
            } else if is("x-preview-error-code") {
                code = Some(String::from_utf8_lossy(value).into_owned());
            } else if is("x-preview-error-source") {
                source = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        if let Some(mut code) = code {
            // Names of errors are few and short; whatever else stands there must not fill the result.
            code.truncate(code.floor_char_boundary(64));
            let mut source = source.unwrap_or_else(|| "answer".into());
            source.truncate(source.floor_char_boundary(64));
            self.error = Some(Box::new(ProxyError { code, source }));
        }
        self.state = match framing {
            _ if self.head_only || matches!(status, 101 | 204 | 304) => State::Done,
            Some(State::Length(0)) => State::Done,
            Some(framing) => framing,
            None => {
                self.keep_alive = false;
                State::UntilClose
            }
        };
        Ok(length)
    }

    /// One byte of what stands around chunks (RFC 9112 7.1).
    fn chunk_syntax(&self, byte: u8) -> Result<State, Failure> {
        Ok(match (&self.state, byte) {
            (State::ChunkSize { size, digits }, _) if byte.is_ascii_hexdigit() && *digits < 15 => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or_default());
                State::ChunkSize { size: size * 16 + digit, digits: digits + 1 }
            }
            (State::ChunkSize { size, digits: 1.. }, b'\r') => State::ChunkLine { size: *size },
            (State::ChunkSize { size, digits: 1.. }, b';' | b' ' | b'\t') => {
                State::ChunkExtension { size: *size }
            }
            (State::ChunkExtension { size }, b'\r') => State::ChunkLine { size: *size },
            (State::ChunkExtension { size }, byte) if byte != b'\n' => State::ChunkExtension { size: *size },
            (State::ChunkLine { size: 0 }, b'\n') => State::Trailer { empty: true, cr: false },
            (State::ChunkLine { size }, b'\n') => State::ChunkData(*size),
            (State::ChunkEnd { cr: false }, b'\r') => State::ChunkEnd { cr: true },
            (State::ChunkEnd { cr: true }, b'\n') => State::ChunkSize { size: 0, digits: 0 },
            (State::Trailer { empty, cr: false }, b'\r') => State::Trailer { empty: *empty, cr: true },
            (State::Trailer { empty: true, cr: true }, b'\n') => State::Done,
            (State::Trailer { empty: false, cr: true }, b'\n') => State::Trailer { empty: true, cr: false },
            (State::Trailer { cr: false, .. }, byte) if byte != b'\n' => {
                State::Trailer { empty: false, cr: false }
            }
            _ => return Err(Failure::Malformed),
        })
    }
}

fn length_of(value: &[u8]) -> Result<u64, Failure> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if !digits {
        return Err(Failure::Malformed);
    }
    Ok(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, body and whether the connection is kept, fed in pieces of `step` bytes.
    fn read(text: &str, step: usize) -> Result<(u16, String, bool), Option<Failure>> {
        let mut reader = ResponseReader::default();
        let (mut body, mut pending) = (Vec::new(), Vec::new());
        for piece in text.as_bytes().chunks(step) {
            pending.extend_from_slice(piece);
            let taken = reader.feed(&pending, &mut |data| body.extend_from_slice(data)).map_err(Some)?;
            pending.drain(..taken);
        }
        if !reader.end() {
            return Err(None);
        }
        assert_eq!(reader.body_bytes(), body.len() as u64);
        Ok((reader.status(), String::from_utf8_lossy(&body).into_owned(), reader.keeps_alive()))
    }

    #[test]
    fn every_framing_is_read_whatever_the_split() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", true)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", (200, "", true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", (204, "", true)),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, "", true)),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nrest", (200, "rest", false)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", (200, "x", false)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                (200, "ok", true),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
                (200, "abc0123456789", true),
            ),
        ];
        for (text, (status, body, keep)) in cases {
            for step in [1, 2, 3, 7, 1000] {
                assert_eq!(read(text, step), Ok((status, body.into(), keep)), "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn what_is_cut_short_is_not_complete() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            "HTTP/1.1 200",
        ] {
            assert_eq!(read(text, 1000), Err(None), "{text:?}");
        }
    }

    #[test]
    fn nonsense_is_malformed() {
        let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        for text in [
            "HTTP/9.9 x\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            chunked("\r\n"),
            chunked("g\r\n"),
            chunked("1\nx\r\n"),
            chunked("1\r\nxy\r\n"),
            chunked("fffffffffffffffff\r\n"),
        ] {
            assert_eq!(read(&text, 1000), Err(Some(Failure::Malformed)), "{text:?}");
        }
    }

    #[test]
    fn the_answer_to_a_head_is_a_head_whatever_length_it_tells() {
        for framing in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", ""] {
            let mut reader = ResponseReader::to(true);
            let text = format!("HTTP/1.1 200 OK\r\n{framing}\r\n");
            assert_eq!(reader.feed(text.as_bytes(), &mut |_| {}), Ok(text.len()));
            assert!(reader.is_done() && reader.keeps_alive(), "{framing}");
        }
    }

    #[test]
    fn what_follows_an_answer_is_left_and_the_proxy_s_error_is_named() {
        let text = b"HTTP/1.1 502 Bad\r\nContent-Length: 1\r\nX-Preview-Error-Code: RUNNER_DOWN\r\n\
                     X-Preview-Error-Source: runner\r\n\r\nxHTTP/1.1 200 OK";
        let mut reader = ResponseReader::default();
        let taken = reader.feed(text, &mut |_| {}).expect("well-formed");
        assert_eq!(&text[taken..], b"HTTP/1.1 200 OK");
        let error = *reader.take_error().expect("named");
        assert_eq!((error.code.as_str(), error.source.as_str()), ("RUNNER_DOWN", "runner"));
    }

    #[test]
    fn a_head_without_end_is_malformed() {
        let text = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_MAX));
        assert_eq!(read(&text, 4096), Err(Some(Failure::Malformed)));
    }
}
