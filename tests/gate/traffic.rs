//! Every kind of traffic from both ends: what a client asks, what an honest runner answers, and what came of it.
//!
//! Every body is a pattern made from its request's own number, so bytes of one exchange in another, lost bytes and
//! doubled bytes all show as a wrong body.

use crate::harness::{Gate, HOST, Message, Wire};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

/// The example of RFC 6455 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const UPLOAD: usize = 200_000;
const DOWNLOAD: usize = 600_000;
const ECHO: usize = 50_000;
const EVENTS: usize = 20;
/// More 1xx than this are an app's mistake.
const INFORMATIONAL_MAX: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Get,
    Upload,
    ChunkedUpload,
    Download,
    Events,
    WebSocket,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Get, Self::Upload, Self::ChunkedUpload, Self::Download, Self::Events, Self::WebSocket];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
    }

    pub fn is_post(self) -> bool {
        matches!(self, Self::Upload | Self::ChunkedUpload)
    }
}

/// What became of one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything that was sent came, both ways, to the byte.
    Complete,
    /// The gate said no, with its machine-readable code.
    Refused(u16, String),
    /// The connection ended, and nothing before that looked like a whole answer.
    Broken,
}

/// A seeded stream of numbers (SplitMix64).
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// The bytes of exchange `id`.
pub fn pattern(id: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(id.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What runners executed, and what they found wrong.
#[derive(Default)]
pub struct Ledger {
    /// How often each POST was executed, by its number.
    executed: Mutex<HashMap<u64, usize>>,
    wrong: Mutex<Vec<String>>,
}

impl Ledger {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn executed(&self, id: u64) {
        *self.executed.lock().expect("no thread panics with it").entry(id).or_default() += 1;
    }

    fn wrong(&self, text: String) {
        self.wrong.lock().expect("no thread panics with it").push(text);
    }

    /// No POST was executed twice, and no runner got what it should not.
    pub fn check(&self) {
        let executed = self.executed.lock().expect("no thread panics with it");
        let twice: Vec<_> = executed.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "executed twice: {twice:?}");
        let wrong = self.wrong.lock().expect("no thread panics with it");
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// `.../{fault}/{kind}/{id}`
pub fn asked(head: &Message) -> Option<(String, Kind, u64)> {
    let mut words = head.target().rsplit('/');
    let id = words.next()?.parse().ok()?;
    let kind = Kind::named(words.next()?)?;
    Some((words.next()?.to_owned(), kind, id))
}

/// The honest answer, as bytes. (A WebSocket's is only its head.)
pub fn answer(kind: Kind, id: u64) -> Vec<u8> {
    let sized = |body: Vec<u8>| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend(body);
        answer
    };
    match kind {
        Kind::Get | Kind::Upload | Kind::ChunkedUpload => sized(pattern(id, 100)),
        Kind::Download => sized(pattern(id, DOWNLOAD)),
        Kind::Events => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = |text: String| format!("{:x}\r\n{text}\r\n", text.len());
            let events: String = (0..EVENTS).map(|n| chunk(event(id, n))).collect();
            format!("{head}{events}0\r\n\r\n").into_bytes()
        }
        Kind::WebSocket => format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        )
        .into_bytes(),
    }
}

fn event(id: u64, n: usize) -> String {
    format!("data: {id} {n}\n\n")
}

/// Reads the rest of a request whose head was read; an upload that came whole counts as executed.
pub fn take_body(wire: &mut Wire, head: &Message, kind: Kind, id: u64, ledger: &Ledger) -> io::Result<()> {
    if kind.is_post() {
        let body = wire.body(head)?;
        if body != pattern(id, UPLOAD) {
            ledger.wrong(format!("the runner got another body for {id} ({} bytes)", body.len()));
        }
        ledger.executed(id);
    }
    Ok(())
}

/// The honest end of an exchange whose request was read.
pub fn give_answer(wire: &mut Wire, kind: Kind, id: u64, ledger: &Ledger) -> io::Result<()> {
    wire.send(answer(kind, id))?;
    if kind == Kind::WebSocket {
        let heard = wire.exactly(ECHO)?;
        wire.send(&heard)?;
        let rest = wire.rest()?;
        if heard != pattern(id, ECHO) || !rest.is_empty() {
            ledger.wrong(format!("the tunnel of {id} carried something else, and {} bytes more", rest.len()));
        }
    }
    Ok(())
}

/// An honest runner's way with a connection.
pub fn serve_honestly(wire: &mut Wire, ledger: &Ledger) -> io::Result<()> {
    while let Some(head) = wire.head()? {
        let (_, kind, id) = asked(&head).ok_or(ErrorKind::InvalidInput)?;
        take_body(wire, &head, kind, id, ledger)?;
        give_answer(wire, kind, id, ledger)?;
        if kind == Kind::WebSocket {
            wire.end_writing();
            return Ok(());
        }
    }
    Ok(())
}

/// One request of this kind on `wire`. Panics on anything that looks whole and is not.
pub fn attempt(wire: &mut Wire, host: &str, fault: &str, kind: Kind, id: u64) -> Outcome {
    match try_it(wire, host, fault, kind, id) {
        Ok(outcome) => outcome,
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Broken,
            _ => panic!("{fault} {kind:?} {id}: {error}"),
        },
    }
}

/// On a new connection.
pub fn attempt_once(gate: &Gate, fault: &str, kind: Kind, id: u64) -> Outcome {
    attempt(&mut gate.connect(), HOST, fault, kind, id)
}

fn try_it(wire: &mut Wire, host: &str, fault: &str, kind: Kind, id: u64) -> io::Result<Outcome> {
    let path = format!("/{fault}/{kind:?}/{id}");
    let name = format!("{path} on {host}");
    let start =
        |method: &str, fields: &str| format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    let sent = match kind {
        Kind::Get | Kind::Download | Kind::Events => wire.send(start("GET", "")),
        Kind::Upload => wire
            .send(start("POST", &format!("Content-Length: {UPLOAD}\r\n")))
            .and_then(|()| wire.send(pattern(id, UPLOAD))),
        Kind::ChunkedUpload => wire.send(start("POST", "Transfer-Encoding: chunked\r\n")).and_then(|()| {
            for (n, piece) in pattern(id, UPLOAD).chunks(1 + (id as usize * 7919) % 60_000).enumerate() {
                let extension = if n % 2 == 0 { "" } else { ";n=\"odd\"" };
                wire.send([format!("{:x}{extension}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
            }
            wire.send("0\r\n\r\n")
        }),
        Kind::WebSocket => wire.send(start(
            "GET",
            &format!(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: {KEY}\r\n"
            ),
        )),
    };
    // Whoever answers early may have ended the connection: then the answer counts.
    let mut informational = 0;
    let mut head = loop {
        match wire.head()? {
            Some(head) if head.status() == 103 => {
                informational += 1;
                assert!(informational <= INFORMATIONAL_MAX, "{name}: 103 without end");
            }
            Some(head) => break head,
            None => {
                sent?;
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    };
    if head.status() >= 400 {
        head.body = wire.body(&head)?;
        let code = head.field("X-Preview-Error-Code").unwrap_or_default().to_owned();
        assert!(head.has_code(&code) && !code.is_empty(), "{name}: {head:?}");
        return Ok(Outcome::Refused(head.status(), code));
    }
    if kind == Kind::WebSocket {
        assert_eq!(head.status(), 101, "{name}: {head:?}");
        let said = pattern(id, ECHO);
        wire.send(&said)?;
        assert!(wire.exactly(ECHO)? == said, "{name}: another echo");
        wire.end_writing();
        return if wire.rest()?.is_empty() {
            Ok(Outcome::Complete)
        } else {
            panic!("{name}: more than the echo")
        };
    }
    assert_eq!(head.status(), 200, "{name}: {head:?}");
    let body = wire.body(&head)?;
    let expected = match kind {
        Kind::Download => pattern(id, DOWNLOAD),
        Kind::Events => (0..EVENTS).map(|n| event(id, n)).collect::<String>().into_bytes(),
        _ => pattern(id, 100),
    };
    assert!(body == expected, "{name}: a whole answer with another body ({} bytes)", body.len());
    Ok(Outcome::Complete)
}
