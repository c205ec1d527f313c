//! The apps behind the runner: what a load needs, by the first part of the path.
//!
//! | path | answer |
//! |---|---|
//! | `/bytes/{n}` | n bytes with a length, ranges of them too; `?delay_ms=` holds it back; n like 64k |
//! | `/upload` | reads the body; JSON with its bytes and, unless `?hash=false`, their SHA-256 |
//! | `/events` | server-sent events with the time each left; `?count=&every_ms=&bytes=` |
//! | `/ws` | a WebSocket that sends every message back |
//! | `/exec` | 200 after `?ms=`, as a command that runs |
//! | `/page` | a small page that names its assets; `?assets=` |
//! | `/status/{n}` | that status |
//! | `/echo`, and anything else | the request's head as it came and its body's first bytes, as JSON |
//!
//! Every answer says which sandbox and port it is from. `?fault=` on any path makes it go wrong.

use super::answer::{Answer, Body, BodyWriter, Next, before_answer, send};
use super::fault::Fault;
use super::peer::{Broken, Head, Peer};
use super::runner::number_parameter;
use super::state::{Dice, World, count};
use crate::quantity;
use crate::world;
use base64::Engine as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep, sleep_until};

/// Of a body that is sent back.
const ECHO_BYTES_MAX: usize = 64 << 10;
/// Padding of one event.
const EVENT_BYTES_MAX: u64 = 1 << 20;
/// Assets of a page like a dev server's with nothing bundled.
const ASSETS: u64 = 60;
const ASSETS_MAX: u64 = 1000;

/// The value of the field that says whose answer it is: `{sandbox}:{port}`.
pub const ANSWERED_BY: &str = "X-Answered-By";

/// A request on its way into an app.
pub(super) struct App<'a> {
    pub world: &'a World,
    pub peer: &'a mut Peer,
    pub head: &'a Head,
    pub sandbox: &'a str,
    pub port: u16,
    /// As the app sees it.
    pub path: &'a str,
    pub query: &'a str,
}

pub(super) async fn answer(mut app: App<'_>, dice: &mut Dice) -> Result<Next, Broken> {
    let fault = match dice.throw(app.world, app.path, app.query) {
        Ok(fault) => fault,
        Err(mistake) => {
            app.read_body(&Fault::default()).await?;
            return app.send(&Fault::default(), Answer::text(400, "text/plain", mistake.to_string())).await;
        }
    };
    if app.head.expects_continue {
        app.peer.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let path = app.path;
    if let Some(size) = path.strip_prefix(world::BYTES) {
        return bytes(app, fault, size).await;
    }
    match path {
        world::UPLOAD => upload(app, fault).await,
        world::EVENTS => events(app, fault).await,
        world::WEBSOCKET if app.head.is_websocket => websocket(app, fault).await,
        world::EXEC => {
            app.read_body(&fault).await?;
            sleep(app.millis("ms")).await;
            app.send(&fault, Answer::json(200, &json!({"exitCode": 0, "result": ""}))).await
        }
        world::PAGE => {
            app.read_body(&fault).await?;
            let assets = number_parameter(app.query, "assets", ASSETS).min(ASSETS_MAX);
            app.send(&fault, Answer::text(200, "text/html; charset=utf-8", page(assets))).await
        }
        _ => match path.strip_prefix("/status/").and_then(|status| status.parse().ok()) {
            Some(status @ 200..=599) => {
                app.read_body(&fault).await?;
                app.send(&fault, Answer::text(status, "", "")).await
            }
            _ => echo(app, fault).await,
        },
    }
}

impl App<'_> {
    /// Reads and drops the request's body.
    async fn read_body(&mut self, fault: &Fault) -> Result<(), Broken> {
        self.peer.body(self.head.framing, fault.slow_read, &mut |_| ()).await
    }

    async fn send(self, fault: &Fault, answer: Answer) -> Result<Next, Broken> {
        let answer = answer.with(ANSWERED_BY, format_args!("{}:{}", self.sandbox, self.port));
        send(self.peer, self.head, fault, answer).await
    }

    fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(number_parameter(self.query, name, 0))
    }
}

async fn bytes(mut app: App<'_>, fault: Fault, size: &str) -> Result<Next, Broken> {
    app.read_body(&fault).await?;
    let Ok(size) = quantity::bytes(size) else {
        return app.send(&fault, Answer::text(404, "text/plain", "no such size")).await;
    };
    let delay = app.millis("delay_ms");
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let (status, range) = match app.head.range().map(|text| byte_range(text, size)) {
        Some(Some(Ok(range))) => (206, range),
        Some(Some(Err(Unsatisfiable))) => {
            let answer = Answer::text(416, "", "").with("Content-Range", format_args!("bytes */{size}"));
            return app.send(&fault, answer).await;
        }
        Some(None) | None => (200, 0..size),
    };
    let mut answer = Answer::text(status, "application/octet-stream", "").with("Accept-Ranges", "bytes");
    if status == 206 {
        answer = answer.with("Content-Range", format_args!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    answer.body = Body::Pattern(range);
    app.send(&fault, answer).await
}

struct Unsatisfiable;

/// A single range (RFC 9110 14.1.2). `None`: not understood, the field is to be ignored.
fn byte_range(text: &str, size: u64) -> Option<Result<Range<u64>, Unsatisfiable>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => size.saturating_sub(count)..size,
        _ => return None,
    };
    Some(if range.start < size { Ok(range) } else { Err(Unsatisfiable) })
}

async fn upload(app: App<'_>, fault: Fault) -> Result<Next, Broken> {
    let (mut bytes, mut hash) = (0u64, Sha256::new());
    let hashed = !app.query.split('&').any(|pair| pair == "hash=false");
    let mut sink = |piece: &[u8]| {
        bytes += piece.len() as u64;
        if hashed {
            hash.update(piece);
        }
    };
    app.peer.body(app.head.framing, fault.slow_read, &mut sink).await?;
    let mut report = json!({ "bytes": bytes });
    if hashed {
        let hex = hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
        report["sha256"] = hex.into();
    }
    app.send(&fault, Answer::json(200, &report)).await
}

/// Each event's data says when it left, in nanoseconds since 1970: on one machine, or between synchronized clocks, a
/// client can tell how long it was under way.
async fn events(mut app: App<'_>, fault: Fault) -> Result<Next, Broken> {
    app.read_body(&fault).await?;
    let count_max = number_parameter(app.query, "count", 10);
    let every = app.millis("every_ms");
    let padding = ".".repeat(number_parameter(app.query, "bytes", 0).min(EVENT_BYTES_MAX) as usize);
    let answer = Answer::text(200, "text/event-stream", "")
        .with("Cache-Control", "no-store")
        .with(ANSWERED_BY, format_args!("{}:{}", app.sandbox, app.port));
    let mut writer = match BodyWriter::begin(app.peer, app.head, fault, &answer, None).await? {
        Ok(writer) => writer,
        Err(next) => return Ok(next),
    };
    let start = Instant::now();
    for id in 0..count_max {
        // From the plan, not from the last event: a slow one does not shift all others.
        sleep_until(start + every.saturating_mul(u32::try_from(id).unwrap_or(u32::MAX))).await;
        let event = format!("id: {id}\ndata: {{\"sent_ns\":{}}}{padding}\n\n", unix_ns());
        count(&app.world.counters.events);
        if writer.write(event.as_bytes()).await?.is_break() {
            break;
        }
    }
    writer.end().await
}

/// Nanoseconds since 1970; 0 for a clock set before.
fn unix_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

async fn websocket(app: App<'_>, fault: Fault) -> Result<Next, Broken> {
    let Some(key) = app.head.websocket_key() else {
        return app.send(&fault, Answer::text(400, "text/plain", "no Sec-WebSocket-Key")).await;
    };
    if fault.status.is_some() {
        return app.send(&fault, Answer::text(200, "", "")).await;
    }
    if let Some(next) = before_answer(app.peer, &fault).await {
        return Ok(next);
    }
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut out = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{ANSWERED_BY}: {}:{}\r\n",
        app.sandbox, app.port
    );
    if let Some(protocol) = app.head.websocket_protocol().and_then(|offer| offer.split(',').next()) {
        let _infallible = write!(out, "Sec-WebSocket-Protocol: {}\r\n", protocol.trim());
    }
    out.push_str("\r\n");
    app.peer.send(out.as_bytes()).await?;
    Ok(Next::WebSocket)
}

/// A page as a dev server gives it out: scripts and styles one by one. Sizes are spread as those of modules are: many
/// small ones, a few large.
fn page(assets: u64) -> String {
    let mut page =
        String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>page</title>\n");
    for asset in 0..assets {
        let _infallible =
            writeln!(page, "<script src=\"{}{}?asset={asset}\"></script>", world::BYTES, asset_bytes(asset));
    }
    page.push_str("</html>\n");
    page
}

/// 500 bytes to 128 KiB, the same for the same number.
fn asset_bytes(asset: u64) -> u64 {
    const SIZES: [u64; 12] =
        [700, 1_200, 2_500, 900, 4_000, 8_000, 1_500, 500, 20_000, 3_000, 1_000, 131_072];
    SIZES[(asset % SIZES.len() as u64) as usize]
}

async fn echo(app: App<'_>, fault: Fault) -> Result<Next, Broken> {
    let (mut bytes, mut kept) = (0u64, Vec::new());
    let mut sink = |piece: &[u8]| {
        bytes += piece.len() as u64;
        kept.extend_from_slice(&piece[..piece.len().min(ECHO_BYTES_MAX - kept.len())]);
    };
    app.peer.body(app.head.framing, fault.slow_read, &mut sink).await?;
    let seen = json!({
        "sandbox": app.sandbox,
        "port": app.port,
        "path": app.path,
        "query": app.query,
        "head": app.head.text(),
        "bytes": bytes,
        "body_base64": base64::engine::general_purpose::STANDARD.encode(&kept),
    });
    app.send(&fault, Answer::json(200, &seen)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let read = |text| byte_range(text, 10).and_then(Result::ok);
        assert_eq!(read("bytes=0-4"), Some(0..5));
        assert_eq!(read("bytes=5-"), Some(5..10));
        assert_eq!(read("bytes=-3"), Some(7..10));
        assert_eq!(read("bytes=-30"), Some(0..10));
        assert_eq!(read("bytes=8-99"), Some(8..10));
        for ignored in ["bytes=4-2", "lines=1-2", "bytes=1-2,4-5", "bytes=-0", "bytes=-"] {
            assert!(byte_range(ignored, 10).is_none(), "{ignored}");
        }
        assert!(matches!(byte_range("bytes=10-", 10), Some(Err(Unsatisfiable))));
        assert!(matches!(byte_range("bytes=0-", 0), Some(Err(Unsatisfiable))));
    }
}
