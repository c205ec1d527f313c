//! What the gate answers by itself: refusals, redirects of a login, preflights, the warning page, its health.

use super::Client;
use crate::cors::{Preflight, Sharing};
use crate::counters::{Class, add};
use crate::error::{Cause, Source};
use crate::exchange::{Done, Failed, Next};
use crate::framing::RequestBody;
use crate::grant::Asker;
use crate::head::{Method, RequestHead};
use crate::login::navigation::{self, Asks};
use crate::login::{self, page};
use crate::request_id::RequestId;
use crate::route::Route;
use crate::shard::Shard;
use crate::socket::Moved;
use crate::turns;
use crate::warning;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::os::fd::OwnedFd;
use std::time::SystemTime;

/// Bytes of a request read, and thrown away, of who is turned away.
const TURNED_AWAY_MAX: usize = 64 * 1024;

/// A request that the gate may answer by itself.
#[derive(Clone, Copy)]
pub struct Asked<'a, 'b> {
    pub shard: &'a Shard,
    pub client: &'a Client,
    pub head: &'a RequestHead<'b>,
    /// Bytes read behind the head.
    pub rest: &'a [u8],
    pub request_id: &'a str,
}

impl Asked<'_, '_> {
    /// Bytes of the body when all of it was read already; `None` when some of it is still to come.
    pub fn body_here(&self) -> Option<usize> {
        match self.head.body {
            RequestBody::None => Some(0),
            RequestBody::Length(n) => usize::try_from(n).ok().filter(|n| *n <= self.rest.len()),
            RequestBody::Chunked => None,
        }
    }

    /// Sends an answer of ours in full.
    async fn own(&self, own: Own<'_>) -> Result<Done, Failed> {
        let used = self.body_here();
        let keep = own.keep && self.head.keep_alive && !self.shard.draining.get() && used.is_some();
        let (status, own) = (own.status, Own { keep, ..own });
        let gone = |_| Failed { cause: Cause::ClientGone, answerable: false };
        let text = own.text(self.head.method, self.request_id);
        self.client.send(self.shard, &text).await.map_err(gone)?;
        let next = if keep { Next::KeepAlive } else { Next::Close };
        let early = used.is_none();
        Ok(Done { next, status, used: used.unwrap_or(0), overread: Vec::new(), early })
    }
}

/// Answered without a proof, which browsers do not send with it, and without asking anybody.
pub async fn preflight(asked: Asked<'_, '_>, preflight: Preflight<'_>) -> Result<Done, Failed> {
    let extra = preflight.fields();
    let own = Own { status: 204, content_type: "", extra: &extra, body: "", keep: true };
    asked.own(own).await
}

/// The page that is shown before a preview, or what follows from it.
pub async fn warn(asked: Asked<'_, '_>) -> Result<Done, Failed> {
    let Asked { shard, head, .. } = asked;
    if head.method != Method::Post {
        let (extra, body) = (warning::fields(), warning::page(head));
        let content_type = "text/html; charset=utf-8";
        let own = Own { status: 200, content_type, extra: &extra, body: &body, keep: true };
        return asked.own(own).await;
    }
    let Some(accepted) = warning::accept(head, shard.scheme == "https") else {
        return Err(Failed { cause: Cause::ForeignForm, answerable: true });
    };
    let extra = format!("Location: {}\r\nSet-Cookie: {}\r\n", accepted.location, accepted.set_cookie);
    let own = Own { status: 303, content_type: "text/plain", extra: &extra, body: "", keep: true };
    asked.own(own).await
}

/// A step of a login, or the first one instead of a refusal.
pub async fn log_in(
    asked: Asked<'_, '_>,
    asker: &Asker<'_>,
    route: &Route,
    refusal: Option<Cause>,
) -> Result<Done, Failed> {
    let head = asked.head;
    let id: RequestId = asked.request_id.as_bytes().try_into().expect("as it was made");
    let (status, redirect) = match (route, refusal) {
        (Route::Callback, _) => (302, login::callback(asker, head, id).await),
        (Route::Handoff, _) => (303, login::hand_off(asker, head, id).await),
        // The status of v0.190; a request that gets here has no body to be repeated.
        (route, Some(refusal)) => (307, login::instead(asker, route, head, id, refusal).await),
        (_, None) => (500, Err(Cause::Internal)),
    };
    let redirect = redirect.map_err(|cause| Failed { cause, answerable: true })?;
    let mut extra = format!("Location: {}\r\nReferrer-Policy: no-referrer\r\n", redirect.location);
    for cookie in &redirect.set_cookies {
        extra.push_str(&format!("Set-Cookie: {cookie}\r\n"));
    }
    debug_assert!(extra.is_ascii() && !extra.contains("\r\n\r\n"), "made of checked parts");
    let own = Own { status, content_type: "text/plain", extra: &extra, body: "", keep: head.keep_alive };
    asked.own(own).await
}

/// Our own page: is the gate alive? 503 while it drains, so that load balancers turn away.
pub async fn health(asked: Asked<'_, '_>) -> Result<Done, Failed> {
    let draining = asked.shard.draining.get();
    let (status, word) = if draining { (503, "draining") } else { (200, "ok") };
    let version = env!("CARGO_PKG_VERSION");
    let body = format!("{{\"status\":\"{word}\",\"version\":\"{version}\"}}");
    let content_type = "application/json; charset=utf-8";
    let own = Own { status, content_type, extra: "", body: &body, keep: true };
    asked.own(own).await
}

/// A response of our own.
struct Own<'a> {
    status: u16,
    content_type: &'a str,
    /// Further field lines, each with its CRLF.
    extra: &'a str,
    body: &'a str,
    keep: bool,
}

impl Own<'_> {
    fn text(&self, method: Method, request_id: &str) -> Vec<u8> {
        let Self { status, content_type, extra, body, keep } = self;
        let connection = if *keep { "" } else { "Connection: close\r\n" };
        let shown = if method == Method::Head { "" } else { body };
        // A 204 has neither (RFC 9110 8.6).
        let body_fields = match status {
            204 => String::new(),
            _ => format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len()),
        };
        format!(
            "HTTP/1.1 {status} {}\r\n{body_fields}{extra}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: {request_id}\r\n\
             {connection}\r\n{shown}",
            reason(*status),
        )
        .into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// What is to be done with a client's connection once it has its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    Keep,
    /// Nothing more is to come from there.
    Close,
    /// The client may still be sending: see [`linger`].
    Linger,
}

/// Tells the client why its request ends here.
pub async fn error(asked: Asked<'_, '_>, cause: Cause, sharing: Option<Sharing<'_>>) -> After {
    let Asked { shard, client, head, request_id, .. } = asked;
    if cause == Cause::ClientGone {
        return After::Close;
    }
    let method = String::from_utf8_lossy(head.method_text.of(head.bytes));
    let path = String::from_utf8_lossy(head.path());
    let refused = matches!(cause, Cause::Rejected(_) | Cause::BodyStalled);
    let whole = asked.body_here().is_some() && !refused;
    let keep = whole && head.keep_alive && !shard.draining.get();
    let shared = sharing.map(|sharing| sharing.own_fields()).unwrap_or_default();
    let text = match (cause, navigation::asks(head)) {
        (Cause::Login(_), _) | (_, Asks::Navigation) => {
            error_page(cause, head.method, None, request_id, keep)
        }
        (_, Asks::Frame) => {
            let host = String::from_utf8_lossy(head.authority.of(head.bytes));
            let target = crate::forward::target_without_proofs(head);
            let url = format!("{}://{host}{}", shard.scheme, String::from_utf8_lossy(&target));
            let in_tab = (cause.answer().status == 401).then_some(url.as_str());
            error_page(cause, head.method, in_tab, request_id, keep)
        }
        (_, Asks::Other) => error_text(cause, head.method, &method, &path, request_id, keep, &shared),
    };
    match client.send(shard, &text).await {
        Err(_) => After::Close,
        Ok(()) if keep => After::Keep,
        Ok(()) if !whole || head.keep_alive => After::Linger,
        Ok(()) => After::Close,
    }
}

/// As [`error`], when there is no head to speak of. The connection ends.
pub async fn refuse(shard: &Shard, client: &Client, cause: Cause) {
    let mut request_id = [0; 36];
    let request_id = shard.request_ids.next(&mut request_id);
    let row = cause.answer();
    add(&shard.counters.errors[source_index(row.source)], 1);
    add(&shard.counters.requests[Class::Own as usize][usize::from(row.status / 100)], 1);
    let text = error_text(cause, Method::Get, "", "", request_id, false, "");
    if client.send(shard, &text).await.is_ok() {
        linger(shard, client).await;
    }
}

/// As [`refuse`], for who has just come and has no place here. One try and no wait: it must not cost room.
pub fn turn_away(shard: &Shard, client: &OwnedFd, cause: Cause) {
    let mut request_id = [0; 36];
    let request_id = shard.request_ids.next(&mut request_id);
    let text = error_text(cause, Method::Get, "", "", request_id, false, "");
    let _ = rustix::net::send(client, &text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    // What is unread at the close makes it a reset, see [`linger`]. What comes later still does.
    let mut request = [0; 4096];
    for _ in 0..TURNED_AWAY_MAX / request.len() {
        match rustix::net::recv(client, &mut request, RecvFlags::DONTWAIT) {
            Ok((n, _)) if n == request.len() => {}
            _ => return,
        }
    }
}

/// `shared`: field lines for a page of another origin that asked.
fn error_text(
    cause: Cause,
    kind: Method,
    method: &str,
    path: &str,
    request_id: &str,
    keep: bool,
    shared: &str,
) -> Vec<u8> {
    let row = cause.answer();
    let timestamp = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut body = serde_json::json!({
        "statusCode": row.status,
        "message": row.message,
        "code": row.code,
        "timestamp": timestamp,
        "path": path,
        "method": method,
        "requestId": request_id,
        "source": row.source.as_str(),
        "hint": row.hint,
    });
    if let Some(seconds) = row.retry_after {
        body["retryAfter"] = seconds.into();
    }
    let extra = error_fields(&row) + shared;
    let (content_type, body) = ("application/json", body.to_string());
    Own { status: row.status, content_type, extra: &extra, body: &body, keep }.text(kind, request_id)
}

/// The same for a person.
fn error_page(cause: Cause, kind: Method, in_tab: Option<&str>, request_id: &str, keep: bool) -> Vec<u8> {
    let row = cause.answer();
    let framing = if in_tab.is_some() { "" } else { "; frame-ancestors 'none'" };
    let extra = format!(
        "{}Content-Security-Policy: {}{framing}\r\nReferrer-Policy: no-referrer\r\n",
        error_fields(&row),
        page::POLICY
    );
    let (content_type, body) = ("text/html; charset=utf-8", page::page(&row, request_id, in_tab));
    Own { status: row.status, content_type, extra: &extra, body: &body, keep }.text(kind, request_id)
}

fn error_fields(row: &crate::error::Answer) -> String {
    let mut fields =
        format!("X-Preview-Error-Source: {}\r\nX-Preview-Error-Code: {}\r\n", row.source.as_str(), row.code);
    if row.status == 401 {
        fields.push_str("WWW-Authenticate: Bearer\r\n");
    }
    if row.status == 405 {
        fields.push_str("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
    }
    if let Some(seconds) = row.retry_after {
        fields.push_str(&format!("Retry-After: {seconds}\r\n"));
    }
    fields
}

/// Reads on for a moment and throws away, so that closing does not turn into a reset that eats the answer (RFC 9112 9.6):
/// for clients that may be sending the rest of a body, or a next request because it was not they who wanted the end. Nothing
/// of it is interpreted.
pub async fn linger(shard: &Shard, client: &Client) {
    client.transport.shutdown(Shutdown::Write);
    let limits = &shard.config.limits;
    client.watch.unfire();
    client.watch.client_reads(Some(limits.linger));
    let mut left = limits.linger_bytes_max;
    let mut buf = shard.buffers.small();
    // A wait each time: whoever goes on sending leaves the others their turn, and the deadline its.
    while left > 0 && turns::in_turn(client.transport.readable()).await.is_ok() {
        buf.clear();
        match client.transport.try_recv(&mut buf) {
            Ok(Moved::Bytes(n)) if client.watch.fired().is_none() => left = left.saturating_sub(n as u64),
            Ok(Moved::NotReady) => {}
            // The deadline ends the reading side, but not what still comes.
            Ok(Moved::Bytes(_) | Moved::End) | Err(_) => break,
        }
    }
    shard.buffers.give(buf);
}

pub fn source_index(source: Source) -> usize {
    Source::ALL.iter().position(|s| *s == source).unwrap_or(0)
}
