//! What an agent and its coordinator say to each other, and how long and how late it may be.

use crate::plan::{Plan, Share};
use crate::result::ClientHost;
use crate::worker::Report;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longest report: the results of a thread with many phases and classes.
pub(super) const REPORT_BYTES_MAX: usize = 64 << 20;
/// Longest order: a plan with many source addresses, or with recordings.
pub(super) const ORDER_BYTES_MAX: usize = 16 << 20;
/// Everything else, and all that is read from somebody who has not shown the key.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// Both must be up to this; results go with the version. Behind the slash: what they say to each other.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/5");
/// For what is answered at once.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// An agent that has nothing to report says that it is there: behind the last second, requests may have a long grace.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// Longer than a machine at its limit keeps a thread waiting.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);
const _: () = assert!(SILENCE_MAX.as_secs() >= 10 * HEARTBEAT.as_secs());
/// A peer's host that is gone without a word is noticed after about half a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Agent to coordinator.
#[derive(Serialize, Deserialize)]
pub(super) enum FromAgent {
    Hello {
        version: String,
        nonce: String,
    },
    /// The key is right and the agent free: send the order.
    Welcome,
    /// The plan is taken: so many threads will report.
    Crew {
        threads: u32,
        hosts: Vec<ClientHost>,
    },
    Report {
        thread: u32,
        report: Report,
    },
    /// Nothing new.
    StillHere,
    Refused(String),
}

/// Coordinator to agent.
#[derive(Serialize, Deserialize)]
pub(super) enum ToAgent {
    /// SHA-256 of the order to come, and the proof over it.
    Claim {
        digest: String,
        proof: String,
    },
    /// An [`Order`] as JSON.
    Order(String),
    Start {
        after_ms: u64,
    },
    Stop,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub plan: Plan,
    pub share: Share,
}

pub(super) fn proof(key: &str, nonce: &str, digest: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(nonce.as_bytes());
    mac.update(b"\0");
    mac.update(digest.as_bytes());
    mac
}

pub(super) fn digest(order: &str) -> String {
    hex(&Sha256::digest(order.as_bytes()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.is_ascii() && text.len().is_multiple_of(2);
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    digits.then(|| (0..text.len()).step_by(2).map(pair).collect())?
}

/// A connection to the other side, message by message.
pub(super) struct Channel {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Channel {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let probes =
            socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(2);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        send(&mut self.stream, message)
    }

    /// The next message, the whole of it within so long.
    pub fn receive<T: for<'de> Deserialize<'de>>(
        &mut self,
        bytes_max: usize,
        within: Duration,
    ) -> io::Result<T> {
        receive(&mut self.reader, bytes_max, Some(within))
    }
}

pub(super) fn send<T: Serialize>(stream: &mut TcpStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A line, however slowly its bytes come: the whole of it `within` so long (`None`: whenever).
pub(super) fn receive<T: for<'de> Deserialize<'de>>(
    reader: &mut BufReader<TcpStream>,
    bytes_max: usize,
    within: Option<Duration>,
) -> io::Result<T> {
    let silent = |within: Duration| {
        io::Error::new(io::ErrorKind::TimedOut, format!("did not answer within {} s", within.as_secs()))
    };
    let deadline = within.map(|within| (Instant::now() + within, within));
    let mut line = Vec::new();
    loop {
        let left = deadline.map(|(at, within)| (at.saturating_duration_since(Instant::now()), within));
        if let Some((Duration::ZERO, within)) = left {
            return Err(silent(within));
        }
        reader.get_ref().set_read_timeout(left.map(|(left, _)| left))?;
        let read = match reader.fill_buf() {
            Ok([]) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(read) => read,
            // The clock is looked at above.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let end = memchr::memchr(b'\n', read);
        let taken = end.map_or(read.len(), |end| end + 1);
        line.extend_from_slice(&read[..taken]);
        reader.consume(taken);
        if line.len() > bytes_max {
            return Err(io::Error::other(format!("a message is longer than {bytes_max} bytes")));
        }
        if end.is_some() {
            return Ok(serde_json::from_slice(&line)?);
        }
    }
}
