//! The apps that speak WebSocket: `ws` (raw bytes, for tunnels), `wsecho` and `live` (real frames).

use super::apps::Request;
use super::peer::{Broken, Peer};
use super::runner::Outcome;
use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use sha1::{Digest, Sha1};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

/// What is said once the 101 is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Talk {
    /// Every byte comes back as it is, frames or not.
    Bytes,
    /// Every message comes back.
    Echo,
    /// The time every second, and every text comes back marked as an echo.
    Live,
}

/// Sends the 101 for the app of this name. `ws` puts its first frame into the same write, so that bytes follow the
/// head at once.
pub(super) async fn accept(app: &str, request: Request<'_>) -> Result<Outcome, Broken> {
    let talk = match app {
        "ws" => Talk::Bytes,
        "wsecho" => Talk::Echo,
        _ => Talk::Live,
    };
    let key = request.head.first("sec-websocket-key").unwrap_or_default();
    let protocol = request.head.first("sec-websocket-protocol").and_then(|p| p.split(',').next());
    let mut out = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n",
        accept_value(key)
    );
    if let Some(protocol) = protocol {
        out.push_str(&format!("Sec-WebSocket-Protocol: {}\r\n", protocol.trim()));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    if talk == Talk::Bytes {
        out.extend_from_slice(b"\x81\x05first");
    }
    request.peer.send(&out).await?;
    Ok(Outcome::WebSocket(talk))
}

/// Talks until either side ends it; how it ends is told by the close frames, not here.
pub(super) async fn converse(mut peer: Peer, talk: Talk) {
    if talk == Talk::Bytes {
        while let Ok(bytes) = peer.some().await {
            if bytes.is_empty() || peer.send(&bytes).await.is_err() {
                break;
            }
        }
        return;
    }
    let (stream, ahead) = peer.into_parts();
    let socket = WebSocketStream::from_partially_read(stream, ahead, Role::Server, None).await;
    // An error here is the other side breaking off, which a demo or test has every right to do.
    let _ = match talk {
        Talk::Live => push_time(socket).await,
        Talk::Echo | Talk::Bytes => echo(socket).await,
    };
}

async fn echo<S>(mut socket: WebSocketStream<S>) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(message) = socket.next().await {
        // Pongs and the closing frame are sent by the library.
        if let message @ (Message::Text(_) | Message::Binary(_)) = message? {
            socket.send(message).await?;
        }
    }
    Ok(())
}

async fn push_time<S>(mut socket: WebSocketStream<S>) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut count = 0u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = json!({"kind": "time", "unix_ms": unix_ms(), "count": count});
                socket.send(Message::text(now.to_string())).await?;
                count += 1;
            }
            message = socket.next() => match message {
                None => return Ok(()),
                Some(message) => {
                    if let Message::Text(text) = message? {
                        let echo = json!({"kind": "echo", "text": text.as_str()});
                        socket.send(Message::text(echo.to_string())).await?;
                    }
                }
            },
        }
    }
}

/// RFC 6455 4.2.2.
fn accept_value(key: &str) -> String {
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// Milliseconds since 1970, 0 for a clock set before that.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_the_standards_example() {
        assert_eq!(accept_value("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
