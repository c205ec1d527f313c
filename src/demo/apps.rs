//! Apps inside a sandbox that answer by the first path segment: well-behaved ones, odd ones and broken ones.
//!
//! | segment | answer |
//! |---|---|
//! | `status/N` | status N, `x-app: 1`; 204 and 304 without a length |
//! | `redir?u=URL`, `redirnoloc` | 302 with and without `Location` |
//! | `cors`, `setcookie`, `hop`, `bigheader`, `range` | fixed headers a gate must pass on or must not |
//! | `chunked`, `closebody`, `http10`, `sse`, `drip?n=&ms=`, `big/N` | the ways a body can end |
//! | `hints`, `informational/N`, `expect` | informational answers before the final one |
//! | `slowhead?ms=`, `never` | a head that comes late, or not at all |
//! | `early` | 413 before the request's body was read |
//! | `upload` | hashes the request's body |
//! | `download/N` | N pseudo-random bytes, see [`super::download`] |
//! | `ws`, `wsecho`, `live` | see [`super::live`] |
//! | `trunc`, `truncchunk`, `noresp`, `garbage`, `badcl`, `tecl`, `extra`, `two`, `body204` | broken framing |
//! | `reset`, `resetmid?n=`, `close-after` | ways a connection can end |
//! | anything else | 200, the request as JSON: `{"line":…,"headers":[[name,value]…],"body":…}` |

use super::peer::{After, Broken, Head, Peer, answer, head_bytes, percent_decoded};
use super::record::{BodyRecord, hex};
use super::runner::Outcome;
use super::world::Shared;
use super::{download, live};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::sleep;

/// A request on its way into an app.
pub(super) struct Request<'a> {
    pub shared: &'a Shared,
    pub peer: &'a mut Peer,
    /// Its number in the record.
    pub number: u64,
    pub head: Head,
    /// Target as the app sees it.
    pub target: String,
}

impl Request<'_> {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The path's segment number `index`, counted from 0.
    pub fn segment(&self, index: usize) -> &str {
        self.path().trim_matches('/').split('/').nth(index).unwrap_or_default()
    }

    /// The percent-decoded value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        let value = query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))?;
        Some(percent_decoded(value))
    }

    /// A numeric query parameter, `default` when it is missing or no number.
    pub fn number_parameter(&self, name: &str, default: u64) -> u64 {
        self.parameter(name).and_then(|v| v.parse().ok()).unwrap_or(default)
    }

    /// Reads the whole body and puts it into the record.
    pub async fn read_body(&mut self) -> Result<BodyRecord, Broken> {
        self.read_body_with(|_| ()).await
    }

    /// As [`Self::read_body`], and shows each piece to `also`.
    pub async fn read_body_with(&mut self, mut also: impl FnMut(&[u8]) + Send) -> Result<BodyRecord, Broken> {
        let mut keeper = self.shared.recorder.body();
        let mut sink = |piece: &[u8]| {
            keeper.add(piece);
            also(piece);
        };
        let trailers = self.peer.body(self.head.framing, &mut sink).await?;
        let body = keeper.finish();
        self.shared.recorder.runner_body(self.number, body.clone(), trailers);
        Ok(body)
    }

    pub async fn send_answer(
        &mut self,
        status: u16,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Outcome, Broken> {
        self.peer.send(&answer(status, fields, body, &self.head)).await?;
        Ok(Outcome::Done(self.after()))
    }

    /// Whether the connection stays after an answer that has an end of its own.
    pub fn after(&self) -> After {
        if self.head.wants_close() { After::Close } else { After::KeepAlive }
    }

    async fn send_and_stay(&mut self, bytes: &[u8]) -> Result<Outcome, Broken> {
        self.peer.send(bytes).await?;
        Ok(Outcome::Done(self.after()))
    }

    async fn send_and_close(&mut self, bytes: &[u8]) -> Result<Outcome, Broken> {
        self.peer.send(bytes).await?;
        Ok(Outcome::Done(After::Close))
    }
}

/// Reads the request's body, where the behaviour wants that, and answers.
pub(super) async fn answer_by_path(mut request: Request<'_>) -> Result<Outcome, Broken> {
    let app = request.segment(0).to_owned();
    match app.as_str() {
        "early" => {
            request.send_answer(413, &[("x-early", "1")], b"too big").await?;
            request.read_body().await?;
            return Ok(Outcome::Done(request.after()));
        }
        "ws" | "wsecho" | "live" if request.head.is_websocket() => return live::accept(&app, request).await,
        "expect" => request.peer.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?,
        "upload" => return upload(request).await,
        _ => {}
    }
    let body = request.read_body().await?;
    match app.as_str() {
        "status" => {
            let status = request.segment(1).parse().unwrap_or(200);
            match status {
                204 | 304 => request.send_and_stay(&head_bytes(status, &[("x-app", "1")])).await,
                _ => request.send_answer(status, &[("x-app", "1")], b"status").await,
            }
        }
        "redir" => {
            let to = request.parameter("u").unwrap_or_default();
            request.send_answer(302, &[("location", &to)], b"").await
        }
        "redirnoloc" => request.send_answer(302, &[], b"").await,
        "bigheader" => request.send_answer(200, &[("x-big", &"y".repeat(20_000))], b"ok").await,
        "big" => {
            let n = request.segment(1).parse().unwrap_or(0).min(BIG_MAX);
            let body: Vec<u8> = b"0123456789abcdef".iter().copied().cycle().take(n).collect();
            request.send_answer(200, &[("content-type", "application/octet-stream")], &body).await
        }
        "sse" => three_events(request).await,
        "drip" => drip(request).await,
        "download" => download::answer(request).await,
        "informational" => {
            let count = request.segment(1).parse().unwrap_or(1usize).min(INFORMATIONAL_MAX);
            let one = head_bytes(103, &[("Link", "</a.css>; rel=preload")]);
            request.peer.send(&one.repeat(count)).await?;
            request.send_answer(200, &[], b"informed").await
        }
        "slowhead" => {
            sleep(Duration::from_millis(request.number_parameter("ms", 1000))).await;
            request.send_answer(200, &[], b"late").await
        }
        "never" => {
            request.peer.until_closed().await?;
            Err(Broken::Inside)
        }
        "close-after" => {
            let bytes = answer(200, &[("Connection", "close")], b"bye", &request.head);
            request.send_and_close(&bytes).await
        }
        "reset" => Ok(Outcome::Reset),
        "resetmid" => {
            let n = request.number_parameter("n", 10).min(BIG_MAX as u64);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", n * 2);
            request.peer.send(head.as_bytes()).await?;
            request.peer.send(&b"r".repeat(n as usize)).await?;
            Ok(Outcome::Reset)
        }
        "noresp" => Ok(Outcome::Done(After::Close)),
        "expect" => request.send_answer(200, &[], b"continued").await,
        _ => match canned(&app) {
            Some((bytes, After::KeepAlive)) => {
                let bytes = if request.head.is_head() { head_of(bytes) } else { bytes };
                request.send_and_stay(bytes).await
            }
            Some((bytes, After::Close)) => request.send_and_close(bytes).await,
            None => echo(request, body).await,
        },
    }
}

/// Longest answer made in memory.
const BIG_MAX: usize = 64 << 20;
/// More informational answers than any gate lets through.
const INFORMATIONAL_MAX: usize = 10_000;

/// Answers that are always the same bytes, and whether the connection outlives them.
fn canned(app: &str) -> Option<(&'static [u8], After)> {
    use After::{Close, KeepAlive};
    let (text, after) = match app {
        "cors" => (
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://app.example\r\nAccess-Control-Allow-Credentials: true\r\n\
             Vary: Origin, Accept\r\nAccess-Control-Expose-Headers: x-mine\r\nContent-Length: 1\r\n\r\nc",
            KeepAlive,
        ),
        "setcookie" => (
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; HttpOnly\r\n\
             set-cookie: daytona-sandbox-auth-priv=evil\r\nContent-Length: 1\r\n\r\nx",
            KeepAlive,
        ),
        "chunked" => (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nContent-Type: text/plain\r\n\r\n\
             3\r\nabc\r\n5;ext=1\r\ndefgh\r\n0\r\nx-sum: 42\r\n\r\n",
            KeepAlive,
        ),
        "closebody" => {
            ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nuntil close", Close)
        }
        "http10" => ("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold server", Close),
        "hints" => (
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhinted",
            KeepAlive,
        ),
        "trunc" => ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", Close),
        "truncchunk" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", Close),
        "garbage" => ("not http at all\r\n\r\n", Close),
        "badcl" => ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", Close),
        "tecl" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            Close,
        ),
        "hop" => (
            "HTTP/1.1 200 OK\r\nConnection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Authenticate: Basic\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
            KeepAlive,
        ),
        "range" => (
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/10\r\nAccept-Ranges: bytes\r\n\
             Content-Length: 5\r\n\r\nabcde",
            KeepAlive,
        ),
        // The connection stays open behind these three: what is on it belongs to no request.
        "extra" => ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcdefghij", KeepAlive),
        "two" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond",
            KeepAlive,
        ),
        "body204" => ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde", KeepAlive),
        _ => return None,
    };
    Some((text.as_bytes(), after))
}

/// A canned answer as far as a HEAD request gets it: the (final) head.
fn head_of(bytes: &'static [u8]) -> &'static [u8] {
    memchr::memmem::find(bytes, b"\r\n\r\n").map_or(bytes, |end| &bytes[..end + 4])
}

async fn echo(mut request: Request<'_>, body: BodyRecord) -> Result<Outcome, Broken> {
    let body = match body {
        BodyRecord::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        BodyRecord::Digest { len, sha1 } => format!("{len} bytes sha1 {sha1}"),
        BodyRecord::Unread => String::new(),
    };
    let head = &request.head;
    let line = format!("{} {} {}", head.method, head.target, head.version);
    // Written by hand for the order of the members: a reader sees the line first.
    let text = format!(
        "{{\"line\": {}, \"headers\": {}, \"body\": {}}}",
        json!(line),
        json!(head.fields),
        json!(body)
    );
    request.send_answer(200, &[("content-type", "application/json"), ("x-app", "1")], text.as_bytes()).await
}

pub(super) async fn upload(mut request: Request<'_>) -> Result<Outcome, Broken> {
    if request.head.expects_continue() {
        request.peer.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (mut bytes, mut sha1, mut sha256) = (0u64, Sha1::new(), Sha256::new());
    let hash = |piece: &[u8]| {
        bytes += piece.len() as u64;
        sha1.update(piece);
        sha256.update(piece);
    };
    request.read_body_with(hash).await?;
    let report =
        json!({"bytes": bytes, "sha256": hex(&sha256.finalize()), "sha1": hex(&sha1.finalize())}).to_string();
    request.send_answer(200, &[("content-type", "application/json")], report.as_bytes()).await
}

async fn three_events(mut request: Request<'_>) -> Result<Outcome, Broken> {
    let fields = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")];
    request.peer.send(&head_bytes(200, &fields)).await?;
    for i in 0..3 {
        let event = format!("data: {i}\n\n");
        request.peer.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        sleep(Duration::from_millis(150)).await;
    }
    request.send_and_stay(b"0\r\n\r\n").await
}

async fn drip(mut request: Request<'_>) -> Result<Outcome, Broken> {
    let count = request.number_parameter("n", 10);
    let pause = Duration::from_millis(request.number_parameter("ms", 100));
    request.peer.send(&head_bytes(200, &[("Transfer-Encoding", "chunked")])).await?;
    for i in 0..count {
        let byte = b'a' + (i % 26) as u8;
        request.peer.send(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await?;
        sleep(pause).await;
    }
    request.send_and_stay(b"0\r\n\r\n").await
}
