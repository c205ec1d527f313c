//! A client's connection, from its first byte to its last.
//!
//! Between requests it is one small task waiting for readiness: no buffer, no pipe. A request's working state is
//! allocated when its first byte is there and freed with it. The stages behind the head do not know whether the
//! transport is plain or the protocol HTTP/1.1.

use crate::access_log::Line;
use crate::activity::InUse;
use crate::admission::{Exceeded, Held, Limit};
use crate::cors::{self, Decision, Preflight, Relation, Sharing};
use crate::counters::{AuthResult, Class, add, less};
use crate::deadlines::{Fired, WARM_TICKS, Watch};
use crate::error::{Cause, Source};
use crate::exchange::{self, Failed, Next, Outgoing};
use crate::grant::{Asker, Grant, authorize};
use crate::head::{FieldId, Method, RequestHead};
use crate::ids::SandboxId;
use crate::initiator;
use crate::login::navigation::{self, Asks};
use crate::login::{self, page};
use crate::rate::ClientNet;
use crate::relay::Means;
use crate::request_id::RequestId;
use crate::route::{NoRoute, Route, route_within};
use crate::shard::Shard;
use crate::socket::{Moved, Socket};
use crate::sys;
use crate::target;
use crate::tunnel;
use crate::warning;
use rustix::net::Shutdown;
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// What carries the client's bytes: plain TCP today.
type Transport = Socket;

pub struct Client {
    // Before the socket: its entry names the descriptor and must go first.
    pub watch: Watch,
    transport: Transport,
    pub peer: IpAddr,
    /// The peer may speak for others.
    pub trusted: bool,
    first_byte: Cell<Option<Instant>>,
    /// What keeps the sandbox of the request or tunnel from being stopped.
    in_use: Cell<Option<InUse>>,
    /// The sandbox's count of what is under way, when it is limited.
    sandbox_slot: Cell<Option<Box<Held<SandboxId>>>>,
    /// Dropped with it.
    _held: Option<Box<Held<ClientNet>>>,
}

impl Client {
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    pub fn means<'a>(&'a self, shard: &'a Shard) -> Means<'a> {
        let stall = shard.config.limits.client_stall;
        Means { buffers: &shard.buffers, counters: &shard.counters, watch: &self.watch, stall, in_use: None }
    }

    /// Heads and small answers.
    pub async fn send(&self, shard: &Shard, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.transport.try_send(bytes)? {
                Moved::Bytes(n) => bytes = &bytes[n..],
                Moved::End | Moved::NotReady => {
                    self.watch.client_writes(shard.config.limits.client_stall);
                    self.transport.writable().await?;
                    self.watch.client_writes(None);
                }
            }
        }
        Ok(())
    }

    /// What really happened, when a deadline or the client's leaving ended the wait.
    pub fn cause_or(&self, cause: Cause) -> Cause {
        match self.watch.fired() {
            Some(Fired::ClientRead) => Cause::BodyStalled,
            Some(Fired::ClientWrite | Fired::ClientGone) => Cause::ClientGone,
            Some(Fired::Runner) => Cause::RunnerTimeout,
            Some(Fired::Revoked(_)) => Cause::Revoked,
            None => cause,
        }
    }

    /// The app's answer has begun.
    pub fn first_byte(&self, shard: &Shard) {
        if shard.log.times_first_byte() {
            self.first_byte.set(Some(Instant::now()));
        }
    }
}

impl Client {
    /// An accepted connection. Made outside of its task, which would else keep room for every part of it twice.
    /// `held`: its place among its client's, where these are limited.
    pub fn new(
        shard: &Shard,
        socket: Socket,
        peer: IpAddr,
        trusted: bool,
        held: Option<Box<Held<ClientNet>>>,
    ) -> Self {
        Self {
            watch: shard.deadlines.watch(socket.raw_fd()),
            transport: socket,
            peer,
            trusted,
            first_byte: Cell::new(None),
            in_use: Cell::new(None),
            sandbox_slot: Cell::new(None),
            _held: held,
        }
    }
}

/// Serves a connection to its end. Not an `async fn`: those keep their arguments twice.
pub fn serve(shard: Rc<Shard>, client: Client) -> impl Future<Output = ()> {
    add(&shard.counters.connections_open, 1);
    async move {
        // Who connects speaks soon, and who spoke soon after the last answer will again.
        let (mut warm, mut soon) = (shard.warm.has_room() && !shard.draining.get(), true);
        loop {
            if !warm {
                let since = shard.deadlines.now();
                client.watch.idle(shard.config.limits.client_idle);
                if client.transport.readable().await.is_err() {
                    break;
                }
                soon = shard.deadlines.now() - since <= WARM_TICKS;
            }
            match sys::boxed(|| requests(&shard, &client, warm, soon)).await {
                Next::KeepAlive if !shard.draining.get() => warm = false,
                Next::KeepAlive | Next::Close => break,
                Next::Tunnel(tunnel) => {
                    client.watch.busy();
                    client.watch.forget_warm();
                    // Apart, so that connections that never become tunnels do not carry its state.
                    Box::pin(tunnelled(&shard, &client, tunnel)).await;
                    break;
                }
            }
        }
        less(&shard.counters.connections_open);
    }
}

async fn tunnelled(shard: &Shard, client: &Client, tunnel: tunnel::Tunnel) {
    let in_use = client.in_use.take();
    in_use.iter().for_each(InUse::is_tunnel);
    let means = Means { in_use: in_use.as_ref(), ..client.means(shard) };
    tunnel::run(&client.transport, tunnel, means).await;
}

/// Serves requests until the connection has no byte left to interpret and no next one came soon.
/// `between`: none has begun yet, else bytes are here. `soon`: the next one is worth a warm wait.
async fn requests(shard: &Shard, client: &Client, mut between: bool, soon: bool) -> Next {
    let mut buf = shard.buffers.small();
    let (mut begun, mut waited) = (None, false);
    loop {
        if std::mem::take(&mut between) {
            let received;
            (received, buf) = next_request(shard, client, buf).await;
            match received {
                Received::Bytes => {
                    begun = Some(Instant::now());
                    client.watch.busy();
                }
                Received::Nothing => {
                    shard.buffers.give(buf);
                    return Next::KeepAlive;
                }
                Received::End => return Next::Close,
            }
        }
        // One request's head may need several reads; pipelined ones need none.
        let parsed = RequestHead::parse(&buf, &shard.config.limits);
        match parsed {
            Ok(None) => match client.transport.try_recv(with_room(&mut buf)) {
                Ok(Moved::Bytes(_)) => {
                    if begun.is_none() {
                        begun = Some(Instant::now());
                        client.watch.busy();
                    }
                }
                Ok(Moved::NotReady) if buf.is_empty() => {
                    shard.buffers.give(buf);
                    return Next::KeepAlive;
                }
                Ok(Moved::NotReady) => {
                    waited = true;
                    let begun = *begun.get_or_insert_with(Instant::now);
                    let left = shard.config.limits.head_deadline.saturating_sub(begun.elapsed());
                    client.watch.client_reads(Some(left));
                    let ready = client.transport.readable().await;
                    client.watch.client_reads(None);
                    if ready.is_err() {
                        return Next::Close;
                    }
                }
                Ok(Moved::End) if client.watch.fired() == Some(Fired::ClientRead) => {
                    refuse(shard, client, Cause::HeadTimeout).await;
                    return Next::Close;
                }
                Ok(Moved::End) | Err(_) => return Next::Close,
            },
            Err(reject) => {
                add(&shard.counters.rejects[reject as usize], 1);
                refuse(shard, client, Cause::Rejected(reject)).await;
                return Next::Close;
            }
            Ok(Some(head)) => {
                let head_bytes = head.bytes.len();
                let started = begun.take().unwrap_or_else(Instant::now);
                // Not the time of the first byte: a head sent slowly must not stretch what is remembered.
                let now = if std::mem::take(&mut waited) { Instant::now() } else { started };
                client.watch.busy();
                let stamps = Stamps { started, now, granted: None, class: Class::Own, auth: None };
                let (next, used, overread) = request(shard, client, &head, &buf[head_bytes..], stamps).await;
                drop(head);
                if !matches!(next, Next::KeepAlive) {
                    shard.buffers.give(buf);
                    return next;
                }
                if overread.is_empty() && buf.len() == head_bytes + used {
                    // The usual case: nothing is pipelined. Whether more is there is for the ring to say.
                    if !soon {
                        shard.buffers.give(buf);
                        return Next::KeepAlive;
                    }
                    buf.clear();
                    between = true;
                } else if overread.is_empty() {
                    buf.drain(..head_bytes + used);
                } else {
                    // Only a body that was read to its end leaves bytes of a later request.
                    buf.clear();
                    buf.extend_from_slice(&overread);
                }
            }
        }
    }
}

enum Received {
    /// At least the first byte of a request.
    Bytes,
    /// Not soon.
    Nothing,
    End,
}

/// Waits a moment for the first bytes of a request, with the buffer in the ring's hands: on a busy connection they
/// come at once, and taking them then costs no system call. A connection that stays silent gives the buffer back.
async fn next_request(shard: &Shard, client: &Client, buf: Vec<u8>) -> (Received, Vec<u8>) {
    let Some(_warm) = shard.warm.enter().filter(|_| !shard.draining.get()) else {
        return (Received::Nothing, buf);
    };
    let cancel = client.watch.warm(shard.config.limits.client_idle);
    let (received, buf) = client.transport.recv_cancellable(buf, cancel).await;
    let received = match received {
        Ok(0) => Received::End,
        Ok(_) => Received::Bytes,
        Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Received::Nothing,
        Err(_) => Received::End,
    };
    (received, buf)
}

/// One request through all stages.
async fn request(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    mut stamps: Stamps,
) -> (Next, usize, Vec<u8>) {
    add(&shard.counters.requests_active, 1);
    let request_id = shard.request_ids.next();
    let request_id = std::str::from_utf8(&request_id).expect("hex digits and dashes");
    client.first_byte.set(None);
    // What ended the one before it on this connection is over.
    client.watch.unfire();
    let domains = shard.config.allowed_domains.as_ref();
    let routed = route_within(domains, head, shard.route_rules, client.trusted);
    let mut sharing = None;
    let decision = match routed {
        Err(NoRoute::ForeignHost) => Decision::Nothing,
        _ => cors::decide(head, shard.config.cors, |origin| relation(shard, head, &routed, origin)),
    };
    let outcome = match decision {
        Decision::Preflight(preflight) => {
            Box::pin(answer_preflight(shard, client, head, rest, request_id, preflight)).await
        }
        decision => {
            if let Decision::Share(with) = decision {
                sharing = Some(with);
            }
            let decided = Decided { routed, sharing };
            staged(shard, client, head, rest, request_id, decided, &mut stamps).await
        }
    };
    let (next, used, overread, status, cause) = match outcome {
        Ok(done) => {
            if done.early {
                // The client may read only when it has sent everything.
                linger(shard, client).await;
            }
            (done.next, done.used, done.overread, done.status, None)
        }
        Err(Failed { cause, answerable, reset }) => {
            if let Cause::Rejected(reject) = cause {
                // Before the answer, as for heads: who has the answer finds it counted.
                add(&shard.counters.rejects[reject as usize], 1);
            }
            let status = if answerable { cause.answer().status } else { 0 };
            let stays = answerable && answer(shard, client, head, rest, cause, request_id, sharing).await;
            if reset {
                let linger = socket2::SockRef::from(&client.transport.fd()).set_linger(Some(Duration::ZERO));
                // A socket that is gone already needs no reset.
                let _ = linger;
            }
            let next = if stays { Next::KeepAlive } else { Next::Close };
            (next, body_here(head, rest).unwrap_or(0), Vec::new(), status, Some(cause))
        }
    };
    client.watch.waits_for_others(false);
    if !matches!(next, Next::Tunnel(_)) {
        client.in_use.set(None);
        client.sandbox_slot.set(None);
    }
    less(&shard.counters.requests_active);
    finish(shard, client, head, request_id, &stamps, status, cause);
    (next, used, overread)
}

struct Stamps {
    /// Its first byte was there.
    started: Instant,
    /// All of its head was.
    now: Instant,
    granted: Option<Instant>,
    class: Class,
    auth: Option<AuthResult>,
}

/// What follows from the head alone.
struct Decided<'b> {
    routed: Result<Route, NoRoute>,
    /// A page of another origin asks.
    sharing: Option<Sharing<'b>>,
}

async fn staged(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
    decided: Decided<'_>,
    stamps: &mut Stamps,
) -> Result<exchange::Done, Failed> {
    let Decided { routed, sharing } = decided;
    let early = |cause| Failed { cause, answerable: true, reset: false };
    if shard.config.preview_warning && warns(head, &routed) {
        return Box::pin(warn(shard, client, head, rest, request_id)).await;
    }
    let route = routed.map_err(|no| early(Cause::NoRoute(no)))?;
    stamps.class = match &route {
        Route::Preview { .. } | Route::Toolbox { .. } if head.websocket => Class::WebSocket,
        Route::Preview { .. } => Class::Preview,
        Route::Toolbox { .. } => Class::Toolbox,
        Route::BuildLogs { .. } => Class::BuildLogs,
        Route::Health | Route::Callback | Route::Handoff => Class::Own,
    };
    if route == Route::Health {
        return health(shard, client, head, rest, request_id).await;
    }
    let asker = Asker::new(shard, &client.watch, client.visitor(shard, head), stamps.now);
    let limited = |limit, exceeded: Exceeded| {
        add(&shard.counters.limited[limit as usize], 1);
        early(Cause::Limited(limit, exceeded.0))
    };
    shard
        .admission
        .client_request(asker.ip.into(), asker.now)
        .map_err(|exceeded| limited(Limit::ClientRequests, exceeded))?;
    let granted = match &route {
        Route::Callback | Route::Handoff => Err(None),
        route => authorize(&asker, route, head).await.map_err(Some),
    };
    let grant = match granted {
        Ok(grant) => grant,
        // Boxed: seldom, and no request that passes should carry its state.
        Err(refusal) => {
            return Box::pin(log_in(client, &asker, &route, head, rest, request_id, refusal)).await;
        }
    };
    stamps.auth = Some(grant.auth());
    let target = target::locate(&asker, &grant, false).await.map_err(early)?;
    asker.repay();
    if let Some(place) = &target.place {
        let slot = shard.admission.sandbox_request(&place.sandbox, asker.now);
        let slot = slot.map_err(|exceeded| limited(Limit::Sandbox, exceeded))?;
        client.sandbox_slot.set(slot.map(Box::new));
    }
    if let Some(place) = target.place.as_ref().filter(|_| keeps_awake(shard, head, &grant)) {
        shard.activity.mention(place, shard.deadlines.now(), &shard.questions, &shard.counters);
        client.in_use.set(Some(shard.activity.begin(place)));
    }
    let located_at = Instant::now();
    stamps.granted = Some(located_at);
    let outgoing = Outgoing { head, rest, grant: &grant, request_id, sharing, ip: asker.ip, located_at };
    exchange::exchange(client, &asker, target, &outgoing).await
}

/// What the page that asks is to the sandbox it asks.
fn relation(
    shard: &Shard,
    head: &RequestHead<'_>,
    routed: &Result<Route, NoRoute>,
    origin: &[u8],
) -> Relation {
    let (sandbox, own_origin) = match routed {
        Ok(Route::Preview { label, .. }) => (label, true),
        Ok(Route::Toolbox { sandbox, .. }) => (sandbox, false),
        _ => return Relation::Stranger,
    };
    let (https, trusted) = (shard.scheme == "https", shard.config.trusted_origins.as_slice());
    if initiator::is_welcome(origin, head, &initiator::Place { https, sandbox, own_origin, trusted }) {
        Relation::Welcome
    } else if initiator::is_sibling(origin, head) {
        Relation::Sibling
    } else {
        Relation::Stranger
    }
}

/// Answered without a proof, which browsers do not send with it, and without asking anybody.
async fn answer_preflight(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
    preflight: Preflight<'_>,
) -> Result<exchange::Done, Failed> {
    let extra = preflight.fields();
    let own = Own { status: 204, content_type: "", extra: &extra, body: "", keep: true };
    own_answer(shard, client, head, rest, request_id, own).await
}

/// Is this about the page that is shown before a preview?
fn warns(head: &RequestHead<'_>, routed: &Result<Route, NoRoute>) -> bool {
    let is_form = head.method == Method::Post && head.path() == warning::ACCEPT_PATH;
    (is_form && *routed != Err(NoRoute::ForeignHost))
        || (matches!(routed, Ok(Route::Preview { .. })) && warning::is_due(head))
}

async fn warn(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
) -> Result<exchange::Done, Failed> {
    if head.method != Method::Post {
        let (extra, body) = (warning::fields(), warning::page(head));
        let content_type = "text/html; charset=utf-8";
        let own = Own { status: 200, content_type, extra: &extra, body: &body, keep: true };
        return own_answer(shard, client, head, rest, request_id, own).await;
    }
    let Some(accepted) = warning::accept(head, shard.scheme == "https") else {
        return Err(Failed { cause: Cause::ForeignForm, answerable: true, reset: false });
    };
    let extra = format!("Location: {}\r\nSet-Cookie: {}\r\n", accepted.location, accepted.set_cookie);
    let own = Own { status: 303, content_type: "text/plain", extra: &extra, body: "", keep: true };
    own_answer(shard, client, head, rest, request_id, own).await
}

/// Does this request start its sandbox's auto-stop timer anew?
fn keeps_awake(shard: &Shard, head: &RequestHead<'_>, grant: &Grant) -> bool {
    let skips = head.first(FieldId::SkipLastActivity).is_some_and(|v| v.eq_ignore_ascii_case(b"true"));
    !skips && (shard.config.anonymous_activity || grant.auth() != AuthResult::Public)
}

impl Client {
    /// The address the request comes from: the peer's, or what trusted peers say in X-Forwarded-For, read from the
    /// right up to the first address that is not trusted itself. Anything further left may be invented.
    fn visitor(&self, shard: &Shard, head: &RequestHead<'_>) -> IpAddr {
        if !self.trusted {
            return self.peer;
        }
        let mut visitor = self.peer;
        let fields = head.fields.iter().filter(|f| f.id == FieldId::XForwardedFor);
        for field in fields.rev() {
            for part in field.value.of(head.bytes).rsplit(|b| *b == b',') {
                let Some(ip) = forwarded_address(part) else { return visitor };
                visitor = ip;
                if !shard.config.trusted_proxies.iter().any(|net| net.contains(&visitor)) {
                    return visitor;
                }
            }
        }
        visitor
    }
}

/// An address as proxies write it into X-Forwarded-For: alone, or with a port as some do.
fn forwarded_address(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    Some(bare.parse().ok().or_else(with_port)?.to_canonical())
}

/// A step of a login, or the first one instead of a refusal.
async fn log_in(
    client: &Client,
    asker: &Asker<'_>,
    route: &Route,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
    refusal: Option<Cause>,
) -> Result<exchange::Done, Failed> {
    let id: RequestId = request_id.as_bytes().try_into().expect("as it was made");
    let (status, redirect) = match (route, refusal) {
        (Route::Callback, _) => (302, login::callback(asker, head, id).await),
        (Route::Handoff, _) => (303, login::hand_off(asker, head, id).await),
        // The status of v0.190; a request that gets here has no body to be repeated.
        (route, Some(refusal)) => (307, login::instead(asker, route, head, id, refusal).await),
        (_, None) => (500, Err(Cause::Internal)),
    };
    let redirect = redirect.map_err(|cause| Failed { cause, answerable: true, reset: false })?;
    let mut extra = format!("Location: {}\r\nReferrer-Policy: no-referrer\r\n", redirect.location);
    for cookie in &redirect.set_cookies {
        extra.push_str(&format!("Set-Cookie: {cookie}\r\n"));
    }
    debug_assert!(extra.is_ascii() && !extra.contains("\r\n\r\n"), "made of checked parts");
    let own = Own { status, content_type: "text/plain", extra: &extra, body: "", keep: head.keep_alive };
    own_answer(asker.shard, client, head, rest, request_id, own).await
}

/// Sends an answer of ours in full.
async fn own_answer(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
    own: Own<'_>,
) -> Result<exchange::Done, Failed> {
    let used = body_here(head, rest);
    let keep = own.keep && head.keep_alive && !shard.draining.get() && used.is_some();
    let (status, own) = (own.status, Own { keep, ..own });
    let gone = |_| Failed { cause: Cause::ClientGone, answerable: false, reset: false };
    client.send(shard, &own.text(head.method, request_id)).await.map_err(gone)?;
    let next = if keep { Next::KeepAlive } else { Next::Close };
    Ok(exchange::Done { next, status, used: used.unwrap_or(0), overread: Vec::new(), early: false })
}

/// Our own page: is the gate alive? 503 while it drains, so that load balancers turn away.
async fn health(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    request_id: &str,
) -> Result<exchange::Done, Failed> {
    let draining = shard.draining.get();
    let (status, word) = if draining { (503, "draining") } else { (200, "ok") };
    let version = env!("CARGO_PKG_VERSION");
    let body = format!("{{\"status\":\"{word}\",\"version\":\"{version}\"}}");
    let content_type = "application/json; charset=utf-8";
    let own = Own { status, content_type, extra: "", body: &body, keep: true };
    own_answer(shard, client, head, rest, request_id, own).await
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

/// Bytes of the body when all of it was read already; `None` when some of it is still to come.
fn body_here(head: &RequestHead<'_>, rest: &[u8]) -> Option<usize> {
    use crate::framing::RequestBody;
    match head.body {
        RequestBody::None => Some(0),
        RequestBody::Length(n) => usize::try_from(n).ok().filter(|n| *n <= rest.len()),
        RequestBody::Chunked => None,
    }
}

/// Tells the client why its request ends here. `true`: the connection goes on.
async fn answer(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    cause: Cause,
    request_id: &str,
    sharing: Option<Sharing<'_>>,
) -> bool {
    if cause == Cause::ClientGone {
        return false;
    }
    let method = String::from_utf8_lossy(head.method_text.of(head.bytes));
    let path = String::from_utf8_lossy(head.path());
    let refused = matches!(cause, Cause::Rejected(_) | Cause::BodyStalled);
    let whole = body_here(head, rest).is_some() && !refused;
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
    if client.send(shard, &text).await.is_err() {
        return false;
    }
    if !whole {
        linger(shard, client).await;
    }
    keep
}

/// As [`answer`], when there is no head to speak of. The connection ends.
async fn refuse(shard: &Shard, client: &Client, cause: Cause) {
    let request_id: RequestId = shard.request_ids.next();
    let request_id = std::str::from_utf8(&request_id).expect("hex digits and dashes");
    let row = cause.answer();
    add(&shard.counters.errors[source_index(row.source)], 1);
    add(&shard.counters.requests[Class::Own as usize][usize::from(row.status / 100)], 1);
    let text = error_text(cause, Method::Get, "", "", request_id, false, "");
    if client.send(shard, &text).await.is_ok() {
        linger(shard, client).await;
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

/// Reads on for a moment and throws away, so that closing does not turn into a reset that eats the answer. Nothing
/// of it is interpreted.
async fn linger(shard: &Shard, client: &Client) {
    client.transport.shutdown(Shutdown::Write);
    let limits = &shard.config.limits;
    client.watch.unfire();
    client.watch.client_reads(Some(limits.linger));
    let mut left = limits.linger_bytes_max;
    let mut buf = shard.buffers.small();
    while left > 0 {
        buf.clear();
        match client.transport.try_recv(&mut buf) {
            Ok(Moved::Bytes(n)) => left = left.saturating_sub(n as u64),
            Ok(Moved::NotReady) if client.transport.readable().await.is_ok() => {}
            _ => break,
        }
    }
    shard.buffers.give(buf);
}

fn source_index(source: Source) -> usize {
    Source::ALL.iter().position(|s| *s == source).unwrap_or(0)
}

/// Counts and, where asked for, logs.
fn finish(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    request_id: &str,
    stamps: &Stamps,
    status: u16,
    cause: Option<Cause>,
) {
    let took = stamps.started.elapsed();
    let class = stamps.class as usize;
    let counters = &shard.counters;
    add(&counters.requests[class][usize::from(status / 100).min(5)], 1);
    let millis = took.as_millis() as u64;
    let bucket = crate::counters::DURATION_BOUNDS_MS.partition_point(|bound| *bound < millis);
    add(&counters.durations[class][bucket], 1);
    add(&counters.duration_sum_us[class], took.as_micros() as u64);
    if let Some(cause) = cause {
        add(&counters.errors[source_index(cause.answer().source)], 1);
    }
    if shard.log.wants(status, cause, took) {
        let since = |at: Option<Instant>| at.map(|at| at.duration_since(stamps.started));
        shard.log.write(&Line {
            request_id,
            class: stamps.class.as_str(),
            method: head.method_text.of(head.bytes),
            host: head.authority.of(head.bytes),
            path: head.path(),
            status,
            cause: cause.map(|c| c.answer()),
            auth: stamps.auth.map(|a| a.as_str()),
            client_ip: client.visitor(shard, head),
            granted: since(stamps.granted),
            first_byte: since(client.first_byte.get()),
            took,
        });
    }
}

/// Room for more of a head; the parser bounds how far this goes.
fn with_room(buf: &mut Vec<u8>) -> &mut Vec<u8> {
    if buf.capacity() - buf.len() < 1024 {
        buf.reserve(16 * 1024);
    }
    buf
}
