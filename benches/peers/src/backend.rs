//! The app behind every peer, one thread: `…/b/{n}` answers n bytes, `…/u` takes a body, `…/ws` echoes frames. And the
//! API the gate asks.

use crate::wire::{self, Poll, would_block};
use base64::Engine as _;
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const PIECE: usize = 256 * 1024;
const LISTENER: u64 = u64::MAX;
/// Of a WebSocket frame's head as a client sends it: two bytes and the mask.
const FRAME_HEAD: usize = 6;

struct Conn {
    stream: TcpStream,
    /// Not answered yet: part of a head, or of frames.
    unread: Vec<u8>,
    /// Of the body of a request, still to come.
    discard: u64,
    out: Vec<u8>,
    /// Zeros behind `out`.
    body: u64,
    websocket: bool,
}

/// Serves until the process ends.
pub fn run(listen: SocketAddr, api: SocketAddr) -> io::Result<()> {
    let api = TcpListener::bind(api)?;
    std::thread::spawn(move || answer_api(&api, listen));
    let listener = crate::peer::listener(listen)?;
    let mut poll = Poll::new()?;
    poll.add_listener(&listener, LISTENER)?;
    let (mut conns, mut next, mut piece) = (HashMap::new(), 0, vec![0; PIECE]);
    loop {
        for token in poll.wait(Duration::from_secs(1))? {
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    poll.add(&stream, next)?;
                    let (unread, out) = (Vec::new(), Vec::new());
                    conns.insert(next, Conn { stream, unread, discard: 0, out, body: 0, websocket: false });
                    next += 1;
                }
            } else if let Some(conn) = conns.get_mut(&token)
                && conn.turn(&mut piece).is_err()
            {
                conns.remove(&token);
            }
        }
    }
}

impl Conn {
    /// Reads and writes as far as both go. An error, or the client's end, ends the connection.
    fn turn(&mut self, piece: &mut [u8]) -> io::Result<()> {
        loop {
            self.write(piece)?;
            match self.stream.read(piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.take(&piece[..n])?,
                Err(error) if would_block(&error) => return self.write(piece),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let skipped = self.discard.min(bytes.len() as u64);
        bytes = &bytes[skipped as usize..];
        if self.discard > 0 {
            self.discard -= skipped;
            if self.discard == 0 {
                self.answer("200 OK", "", 1);
            }
        }
        self.unread.extend_from_slice(bytes);
        while !self.websocket
            && let Some(len) = wire::head_len(&self.unread)
        {
            let head: Vec<u8> = self.unread.drain(..len).collect();
            self.request(&head)?;
        }
        if self.websocket {
            self.echo();
        }
        Ok(())
    }

    fn request(&mut self, head: &[u8]) -> io::Result<()> {
        let target =
            head.split(|b| *b == b' ').nth(1).and_then(|t| std::str::from_utf8(t).ok()).unwrap_or_default();
        if let Some((_, n)) = target.rsplit_once("/b/") {
            self.answer("200 OK", "", n.parse().map_err(|_| io::ErrorKind::InvalidData)?);
        } else if target.ends_with("/u") {
            let here = wire::length(head).min(self.unread.len() as u64);
            self.unread.drain(..here as usize);
            self.discard = wire::length(head) - here;
            if self.discard == 0 {
                self.answer("200 OK", "", 1);
            }
        } else if target.ends_with("/ws") {
            let mut hash = Sha1::new();
            hash.update(wire::field(head, "sec-websocket-key").unwrap_or_default());
            hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            let accept = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
            let fields = format!(
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            self.out.extend_from_slice(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}").as_bytes());
            self.websocket = true;
        } else {
            self.answer("404 Not Found", "", 0);
        }
        Ok(())
    }

    fn answer(&mut self, status: &str, fields: &str, length: u64) {
        let head = format!(
            "HTTP/1.1 {status}\r\nServer: app\r\nContent-Type: application/octet-stream\r\n{fields}Content-Length: {length}\r\n\r\n"
        );
        self.out.extend_from_slice(head.as_bytes());
        self.body += length;
    }

    /// Frames of less than 126 bytes whose mask is zero, which is all the load sends.
    fn echo(&mut self) {
        while let [first, second, ..] = self.unread[..]
            && let len = usize::from(second & 0x7f)
            && self.unread.len() >= FRAME_HEAD + len
        {
            self.out.extend_from_slice(&[first, len as u8]);
            self.out.extend_from_slice(&self.unread[FRAME_HEAD..FRAME_HEAD + len]);
            self.unread.drain(..FRAME_HEAD + len);
        }
    }

    fn write(&mut self, zeros: &[u8]) -> io::Result<()> {
        loop {
            // Small answers leave with their head.
            let with_head = self.body.min(64 * 1024);
            if !self.out.is_empty() && self.out.len() < 4096 && with_head > 0 {
                self.out.resize(self.out.len() + with_head as usize, 0);
                self.body -= with_head;
            }
            let bytes = if self.out.is_empty() {
                &zeros[..zeros.len().min(usize::try_from(self.body).unwrap_or(usize::MAX))]
            } else {
                &self.out[..]
            };
            if bytes.is_empty() {
                return Ok(());
            }
            match self.stream.write(bytes) {
                Ok(n) if self.out.is_empty() => self.body -= n as u64,
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whoever is called `public…` is, every token is good, one runner holds all sandboxes.
fn answer_api(listener: &TcpListener, runner: SocketAddr) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer_questions(stream, runner));
    }
}

fn answer_questions(mut stream: TcpStream, runner: SocketAddr) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (status, body) = if path.contains("/runners/by-sandbox/") {
            (200, description(runner))
        } else if path.ends_with("/config") {
            (200, config(runner))
        } else if path.ends_with("/public") && !path.contains("/preview/public") {
            (404, String::new())
        } else if head.starts_with("POST") {
            (201, String::new())
        } else {
            (200, "true".to_owned())
        };
        let length = body.len();
        let kind = "Content-Type: application/json";
        write!(stream, "HTTP/1.1 {status} X\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    }
}

/// Of the runner, with all that v0.190 does not take it without.
fn description(runner: SocketAddr) -> String {
    let url = format!("http://{runner}");
    serde_json::json!({
        "id": "00000000-0000-4000-8000-000000000000",
        "name": "runner",
        "domain": "runner",
        "apiUrl": url,
        "proxyUrl": url,
        "apiKey": "0123456789abcdef0123456789abcdef",
        "cpu": 1,
        "memory": 1,
        "disk": 1,
        "gpu": 0,
        "gpuType": "",
        "region": "here",
        "runnerClass": "container",
        "state": "ready",
        "unschedulable": false,
        "tags": [],
        "version": "1",
        "apiVersion": "2",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:00.000Z",
    })
    .to_string()
}

/// All that v0.190 does not start without. It has what it needs from its environment.
fn config(somewhere: SocketAddr) -> String {
    let url = format!("http://{somewhere}");
    serde_json::json!({
        "version": "0.190",
        "environment": "benchmark",
        "oidc": { "issuer": url, "clientId": "nobody", "audience": "nobody" },
        "linkedAccountsEnabled": false,
        "announcements": {},
        "proxyTemplateUrl": url,
        "proxyToolboxUrl": url,
        "dashboardUrl": url,
        "defaultSnapshot": "none",
        "maxAutoArchiveInterval": 1,
        // As the API spells it.
        "maintananceMode": false,
    })
    .to_string()
}
