//! The load: one thread, closed loop for cost (each connection sends its next request when the last is answered), open
//! loop for latency (counted from the moment a request was due, whatever held it up).

use crate::wire::{self, Poll, would_block};
use rustix::net::RecvFlags;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const TOKEN: &str = "q7c2m4p8x1z9k3v5";
const WARM_UP: Duration = Duration::from_millis(150);
/// Connections that fail are opened again this often before the load gives up.
const FAILURES_MAX: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Answers of this many bytes on kept connections.
    Get {
        bytes: u64,
        private: bool,
    },
    /// A connection for each request.
    Close {
        bytes: u64,
    },
    Upload {
        bytes: u64,
    },
    /// Frames of 32 bytes, each sent when the last came back.
    WebSocket,
}

impl Kind {
    /// The first bytes of a connection, and of every request but a WebSocket's.
    fn request(self) -> Vec<u8> {
        let (line, fields) = match self {
            Self::Get { bytes, private: false } => (format!("GET /b/{bytes}"), String::new()),
            Self::Get { bytes, private: true } => {
                (format!("GET /b/{bytes}"), format!("X-Daytona-Preview-Token: {TOKEN}\r\n"))
            }
            Self::Close { bytes } => (format!("GET /b/{bytes}"), "Connection: close\r\n".into()),
            Self::Upload { bytes } => ("POST /u".into(), format!("Content-Length: {bytes}\r\n")),
            Self::WebSocket => {
                let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
                ("GET /ws".into(), format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}"))
            }
        };
        let name = if matches!(self, Self::Get { private: true, .. }) { "private" } else { "public" };
        let host = format!("3000-{name}0123456789abcd.preview.example");
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: load\r\nAccept: */*\r\n{fields}\r\n")
            .into_bytes()
    }

    /// Body bytes by which work is counted when a request takes longer than a measurement.
    fn bulk(self) -> Option<u64> {
        match self {
            Self::Get { bytes, .. } | Self::Upload { bytes } if bytes > 1 << 20 => Some(bytes),
            _ => None,
        }
    }
}

const FRAME: &[u8] = &{
    let mut frame = [b'x'; 38];
    frame[0] = 0x82;
    frame[1] = 0x80 | 32;
    // A mask of zeros.
    (frame[2], frame[3], frame[4], frame[5]) = (0, 0, 0, 0);
    frame
};
const FRAME_BACK: u64 = 34;

struct Conn {
    stream: TcpStream,
    /// Of the request at hand, still to be sent: of the head, then of the body.
    head_left: usize,
    body_left: u64,
    /// Nothing is on its way.
    idle: bool,
    switched: bool,
    head: Vec<u8>,
    /// Of the answer, once its head is there.
    to_come: Option<u64>,
    due: Instant,
}

#[derive(Default)]
pub struct Outcome {
    /// Requests answered; of bulk, bytes moved divided by a body's length.
    pub requests: f64,
    pub errors: u64,
    /// Microseconds, sorted.
    pub latencies: Vec<u32>,
}

pub struct Load {
    to: SocketAddr,
    kind: Kind,
    request: Vec<u8>,
    conns: Vec<Conn>,
    poll: Poll,
    piece: Vec<u8>,
    requests: u64,
    bytes: u64,
    errors: u64,
    latencies: Vec<u32>,
    /// Open loop: connections without work, and work without a connection.
    free: Vec<usize>,
    waiting: VecDeque<Instant>,
    open: bool,
}

impl Load {
    pub fn new(to: SocketAddr, kind: Kind, connections: usize) -> io::Result<Self> {
        let mut load = Self {
            to,
            kind,
            request: kind.request(),
            conns: Vec::new(),
            poll: Poll::new()?,
            piece: vec![b'x'; 256 * 1024],
            requests: 0,
            bytes: 0,
            errors: 0,
            latencies: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            open: false,
        };
        load.grow(connections)?;
        Ok(load)
    }

    /// Opens connections, each of which begins with its first request.
    fn grow(&mut self, connections: usize) -> io::Result<()> {
        for _ in 0..connections {
            let conn = self.connect()?;
            self.poll.add(&conn.stream, self.conns.len() as u64)?;
            self.conns.push(conn);
        }
        Ok(())
    }

    /// `connections` that have had one answer each and are silent, never more than a few busy at once.
    pub fn idle(to: SocketAddr, kind: Kind, connections: usize) -> io::Result<Self> {
        const AT_ONCE: usize = 32;
        let mut load = Self::new(to, kind, 0)?;
        while load.conns.len() < connections {
            load.grow(AT_ONCE.min(connections - load.conns.len()))?;
            load.settle(Duration::from_secs(5))?;
        }
        Ok(load)
    }

    fn connect(&self) -> io::Result<Conn> {
        let stream = wire::connect(self.to)?;
        let mut conn = Conn {
            stream,
            head_left: 0,
            body_left: 0,
            idle: false,
            switched: false,
            head: Vec::new(),
            to_come: None,
            due: Instant::now(),
        };
        conn.begin(self.kind, self.request.len());
        Ok(conn)
    }

    /// Closed loop for `duration`, after a warm-up; `around` is called at its start and its end.
    pub fn closed(&mut self, duration: Duration, mut around: impl FnMut()) -> io::Result<Outcome> {
        self.turn_until(Instant::now() + WARM_UP)?;
        (self.requests, self.bytes, self.errors) = (0, 0, 0);
        around();
        self.turn_until(Instant::now() + duration)?;
        around();
        let requests = match self.kind.bulk() {
            Some(bytes) => self.bytes as f64 / bytes as f64,
            None => self.requests as f64,
        };
        Ok(Outcome { requests, errors: self.errors, latencies: Vec::new() })
    }

    /// Every connection has had one answer and is silent.
    fn settle(&mut self, at_most: Duration) -> io::Result<()> {
        self.open = true;
        let end = Instant::now() + at_most;
        while self.free.len() < self.conns.len() {
            if Instant::now() > end {
                return Err(io::Error::other(format!(
                    "{} of {} connections stand",
                    self.free.len(),
                    self.conns.len()
                )));
            }
            self.turn(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// `rate` requests a second for `duration`, each due at its own moment.
    pub fn open(&mut self, rate: f64, duration: Duration, mut around: impl FnMut()) -> io::Result<Outcome> {
        self.settle(Duration::from_secs(5))?;
        (self.requests, self.errors) = (0, 0);
        self.latencies.clear();
        let (start, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
        around();
        let mut next = start;
        while next < start + duration {
            let now = Instant::now();
            while next <= now {
                self.waiting.push_back(next);
                next += gap;
            }
            while let (Some(_), Some(&at)) = (self.waiting.front(), self.free.last()) {
                self.free.pop();
                let due = self.waiting.pop_front().expect("it was just looked at");
                self.conns[at].due = due;
                self.conns[at].begin(self.kind, self.request.len());
                self.advance(at)?;
            }
            for token in self.poll.wait_exactly(next.saturating_duration_since(Instant::now()))? {
                self.advance(token as usize)?;
            }
        }
        around();
        self.latencies.sort_unstable();
        let latencies = std::mem::take(&mut self.latencies);
        Ok(Outcome { requests: self.requests as f64, errors: self.errors, latencies })
    }

    fn turn_until(&mut self, end: Instant) -> io::Result<()> {
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.turn(left)?;
        }
        Ok(())
    }

    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        for token in self.poll.wait(at_most)? {
            self.advance(token as usize)?;
        }
        Ok(())
    }

    /// Moves one connection as far as it goes; one that failed, or ended as it should, is opened anew.
    fn advance(&mut self, at: usize) -> io::Result<()> {
        loop {
            match self.step(at) {
                Ok(Step::Waits) => return Ok(()),
                Ok(Step::Answered) => {
                    self.requests += 1;
                    let conn = &mut self.conns[at];
                    if self.open {
                        self.latencies
                            .push(u32::try_from(conn.due.elapsed().as_micros()).unwrap_or(u32::MAX));
                        conn.idle = true;
                        self.free.push(at);
                        return Ok(());
                    }
                    if !matches!(self.kind, Kind::Close { .. }) {
                        conn.begin(self.kind, self.request.len());
                        continue;
                    }
                }
                Err(error) => {
                    self.errors += 1;
                    if self.errors > FAILURES_MAX {
                        return Err(error);
                    }
                }
            }
            let conn = self.connect()?;
            self.poll.add(&conn.stream, at as u64)?;
            self.conns[at] = conn;
            return Ok(());
        }
    }

    fn step(&mut self, at: usize) -> io::Result<Step> {
        let conn = &mut self.conns[at];
        if conn.idle {
            return Ok(Step::Waits);
        }
        while conn.head_left > 0 || conn.body_left > 0 {
            let bytes = match (conn.head_left, conn.switched) {
                (0, _) => &self.piece[..self.piece.len().min(conn.body_left as usize)],
                (left, true) => &FRAME[FRAME.len() - left..],
                (left, false) => &self.request[self.request.len() - left..],
            };
            match conn.stream.write(bytes) {
                Ok(n) if conn.head_left > 0 => conn.head_left -= n,
                Ok(n) => {
                    conn.body_left -= n as u64;
                    self.bytes += n as u64;
                }
                Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => break,
                Err(error) => return Err(error),
            }
        }
        loop {
            let read = match conn.to_come {
                // Counted, not copied.
                Some(left) => {
                    let len = self.piece.len().min(left as usize);
                    let flags = if len > 4096 { RecvFlags::TRUNC } else { RecvFlags::empty() };
                    rustix::net::recv(&conn.stream, &mut self.piece[..len], flags)
                        .map(|(_, n)| n)
                        .map_err(io::Error::from)
                }
                None => conn.stream.read(&mut self.piece[..16 * 1024]),
            };
            let n = match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(error) if would_block(&error) => return Ok(Step::Waits),
                Err(error) => return Err(error),
            };
            let left = match conn.to_come {
                Some(left) => left - n as u64,
                None => {
                    conn.head.extend_from_slice(&self.piece[..n]);
                    let Some(len) = wire::head_len(&conn.head) else { continue };
                    let status = conn.head.get(9..12).unwrap_or_default();
                    let expected: &[u8] = if self.kind == Kind::WebSocket { b"101" } else { b"200" };
                    if status != expected {
                        let text = String::from_utf8_lossy(&conn.head).into_owned();
                        return Err(io::Error::other(text));
                    }
                    conn.switched = self.kind == Kind::WebSocket;
                    let length = if conn.switched { 0 } else { wire::length(&conn.head[..len]) };
                    length - (conn.head.len() - len) as u64
                }
            };
            if !matches!(self.kind, Kind::Upload { .. }) {
                self.bytes += n as u64;
            }
            conn.to_come = Some(left);
            if left == 0 {
                return Ok(Step::Answered);
            }
        }
    }
}

enum Step {
    Waits,
    Answered,
}

impl Conn {
    fn begin(&mut self, kind: Kind, request_len: usize) {
        self.idle = false;
        self.head.clear();
        if self.switched {
            (self.head_left, self.to_come) = (FRAME.len(), Some(FRAME_BACK));
            return;
        }
        (self.head_left, self.to_come) = (request_len, None);
        self.body_left = if let Kind::Upload { bytes } = kind { bytes } else { 0 };
    }
}
