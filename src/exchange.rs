//! One request and its response through one runner connection.
//!
//! Both bodies move at the same time, so an early answer passes while the upload still runs. The runner connection
//! goes back to the pool only when both sides ended exactly where their framing said. A request is sent twice only
//! if not a byte of it was taken, or it is idempotent, without a body left to stream, and a *reused* connection gave
//! not a byte of an answer (RFC 9110 9.2.2).

use crate::activity::Place;
use crate::chunked::{self, ChunkReader};
use crate::client::Client;
use crate::cors::Sharing;
use crate::counters::add;
use crate::deadlines::Fired;
use crate::error::Cause;
use crate::forward::{self, Confine, RequestPlan, ResponsePlan};
use crate::framing::{RequestBody, ResponseBody};
use crate::grant::{Access, Asker, Grant, authorize};
use crate::head::{FieldId, RequestHead, ResponseHead, Version};
use crate::live::Alive;
use crate::pool::Trust;
use crate::relay::{Fault, Lane, SPLICE_MIN, SinkFraming, Way};
use crate::route::route;
use crate::shard::Shard;
use crate::socket::{self, Moved, Socket};
use crate::sys;
use crate::target::{self, Target};
use crate::tunnel::Tunnel;
use base64::Engine as _;
use rustix::net::Shutdown;
use std::cell::Cell;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// From so many bytes to come on, a body of a known length is cut when its right ends.
const LONG_BODY: u64 = 256 * 1024;

/// What the first read of an answer takes: the head, and all of a small answer. More would copy what of a large one can be
/// spliced.
const FIRST_READ: usize = 4 * 1024;

/// What becomes of the client's connection.
pub enum Next {
    KeepAlive,
    Close,
    Tunnel(Tunnel),
}

/// A finished exchange.
pub struct Done {
    pub next: Next,
    pub status: u16,
    /// How many of the bytes behind the head belonged to this request.
    pub used: usize,
    /// Bytes of a later request that were read together with this one's body.
    pub overread: Vec<u8>,
    /// The answer came before the end of the request's body, which the client may still be sending.
    pub early: bool,
}

/// An exchange that failed.
pub struct Failed {
    pub cause: Cause,
    /// Nothing was sent to the client yet: it can be told. Otherwise its connection ends, and the answer with it.
    pub answerable: bool,
    /// The answer was of a kind whose end is the connection's end: only a reset shows that it is cut short.
    pub reset: bool,
}

impl Failed {
    fn before_answer(cause: Cause) -> Self {
        Self { cause, answerable: true, reset: false }
    }
}

/// The request as it goes out.
pub struct Outgoing<'a, 'b> {
    pub head: &'a RequestHead<'b>,
    /// Bytes read behind the head.
    pub rest: &'a [u8],
    pub grant: &'a Grant,
    pub request_id: &'a str,
    /// A page of another origin asked.
    pub sharing: Option<Sharing<'a>>,
    /// The visitor's.
    pub ip: IpAddr,
    /// Where the grant's sandbox was found.
    pub place: Option<&'a Rc<Place>>,
    /// The moment before [`exchange`] is called.
    pub located_at: Instant,
}

/// Sends the request to its target and the answer to the client.
pub async fn exchange(
    client: &Client,
    asker: &Asker<'_>,
    mut target: Target,
    outgoing: &Outgoing<'_, '_>,
) -> Result<Done, Failed> {
    let (shard, head) = (asker.shard, outgoing.head);
    let body = Body::of(head.body, outgoing.rest);
    let mut out = shard.buffers.small();
    let (mut looked_up_again, mut resent) = (false, false);
    let mut at = Some(outgoing.located_at);
    let trust = if body.complete && head.method.is_idempotent() { Trust::Recent } else { Trust::Anew };
    loop {
        let now = at.take().unwrap_or_else(Instant::now);
        let reused = shard.pool.take(&target.runner, now, trust, &shard.counters);
        let was_reused = reused.is_some();
        let runner = match reused {
            Some(socket) => socket,
            None => match connect(client, shard, &target).await {
                Ok(socket) => socket,
                Err(cause) if cause != Cause::ClientGone && !looked_up_again => {
                    // What is remembered may be old: the sandbox may have moved.
                    looked_up_again = true;
                    target =
                        target::locate(asker, outgoing.grant, true).await.map_err(Failed::before_answer)?;
                    continue;
                }
                Err(cause) => return Err(Failed::before_answer(cause)),
            },
        };
        client.watch.attach(runner.raw_fd());
        let attached = Attached { client };
        out.clear();
        write_head(client, shard, &target, outgoing, &mut out);
        out.extend_from_slice(&outgoing.rest[..body.with_head]);
        client.watch.waits_for_others(true);
        client.watch.runner_answers(shard.config.limits.runner_first_byte);

        let sent;
        (sent, out) = send_head(&runner, out).await;
        let result = match sent {
            Err(Unsent::Nothing) if was_reused => {
                add(&shard.counters.runner_retries, 1);
                drop(attached);
                continue;
            }
            Err(_) => Err(Failed::before_answer(client.cause_or(Cause::RunnerClosed))),
            Ok(()) if body.complete => {
                // The head is out: its buffer takes the answer, so that a waiting request holds two buffers, not three.
                out.clear();
                let (received, inbuf) = runner.recv_waiting(std::mem::take(&mut out), FIRST_READ).await;
                match received {
                    Ok(n) if n > 0 => match still_granted(asker, outgoing).await {
                        Ok(()) => respond(client, shard, &runner, outgoing, inbuf, &Cell::new(false)).await,
                        Err(cause) => Err(Failed::before_answer(cause)),
                    },
                    _ if was_reused
                        && !resent
                        && head.method.is_idempotent()
                        && client.watch.fired().is_none() =>
                    {
                        resent = true;
                        out = inbuf;
                        add(&shard.counters.runner_retries, 1);
                        drop(attached);
                        continue;
                    }
                    _ => Err(Failed::before_answer(client.cause_or(Cause::RunnerClosed))),
                }
                .map(|answer| (answer, Uploaded::Whole(Vec::new())))
            }
            // Apart: its state is three times that of a request without a body to stream.
            Ok(()) => match still_granted(asker, outgoing).await {
                Ok(()) => sys::boxed(|| both_ways(client, shard, &runner, outgoing, &body)).await,
                Err(cause) => Err(Failed::before_answer(cause)),
            },
        };
        client.watch.waits_for_others(false);
        shard.buffers.give(std::mem::take(&mut out));
        let (answer, uploaded) = match result {
            Ok(result) => result,
            Err(failed) => {
                runner.shutdown(Shutdown::Both);
                return Err(failed);
            }
        };
        drop(attached);
        let (whole, overread) = match uploaded {
            Uploaded::Whole(overread) => (true, overread),
            Uploaded::Cut => (false, Vec::new()),
        };
        let status = answer.status;
        if let Some(leftover) = answer.switched {
            if !leftover.is_empty() {
                client.send(shard, &leftover).await.map_err(|_| Failed {
                    cause: Cause::ClientGone,
                    answerable: false,
                    reset: false,
                })?;
            }
            let alive = enter(client, shard, &runner, outgoing);
            let next = Next::Tunnel(Tunnel::new(runner, outgoing.rest, &leftover, alive));
            return Ok(Done { next, status, used: outgoing.rest.len(), overread: Vec::new(), early: false });
        }
        if answer.runner_reusable && whole {
            shard.pool.give(&target.runner, runner, shard.deadlines.now(), &shard.counters);
        }
        let next = if answer.client_stays && whole { Next::KeepAlive } else { Next::Close };
        return Ok(Done { next, status, used: body.used, overread, early: !whole });
    }
}

/// An answer that took its time must not be shown to somebody who was let in before a change and would not be now.
async fn still_granted(asker: &Asker<'_>, outgoing: &Outgoing<'_, '_>) -> Result<(), Cause> {
    let Outgoing { grant, head, .. } = outgoing;
    let Some(sandbox) = grant.sandbox() else { return Ok(()) };
    if !asker.shard.changes.is_old(sandbox, grant.as_of()) {
        return Ok(());
    }
    let route = route(head, asker.shard.route_rules).map_err(Cause::NoRoute)?;
    Box::pin(authorize(asker, &route, head)).await.map(drop)
}

/// Takes the runner's descriptor out of the deadline table before the socket can close.
struct Attached<'a> {
    client: &'a Client,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.client.watch.detach();
    }
}

/// How the request's body lies in what was read already.
struct Body {
    /// Bytes sent together with the head.
    with_head: usize,
    /// Bytes of `rest` that belong to this request.
    used: usize,
    /// Nothing is left to stream.
    complete: bool,
    /// Of a known length, still to come from the client.
    length_left: u64,
}

impl Body {
    fn of(framing: RequestBody, rest: &[u8]) -> Self {
        match framing {
            RequestBody::None => Self { with_head: 0, used: 0, complete: true, length_left: 0 },
            RequestBody::Length(length) => {
                let here = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
                let left = length - here as u64;
                Self { with_head: here, used: here, complete: left == 0, length_left: left }
            }
            RequestBody::Chunked => Self { with_head: 0, used: rest.len(), complete: false, length_left: 0 },
        }
    }
}

fn write_head(
    client: &Client,
    shard: &Shard,
    target: &Target,
    outgoing: &Outgoing<'_, '_>,
    out: &mut Vec<u8>,
) {
    let address = &target.runner.address;
    let plan = RequestPlan {
        host: &address.authority,
        base_path: &address.base_path,
        path: &target.path,
        authorization: &address.authorization,
        strip_authorization: target.strip_authorization,
        client_ip: client.peer,
        trusted_peer: client.trusted,
        scheme: shard.scheme,
        request_id: outgoing.request_id,
    };
    forward::write_request(outgoing.head, &plan, out);
}

enum Unsent {
    Nothing,
    Part,
}

/// The head, and the buffer back.
async fn send_head(runner: &Socket, out: Vec<u8>) -> (Result<(), Unsent>, Vec<u8>) {
    let (sent, out) = runner.send_waiting(out).await;
    let Ok(mut sent) = sent else { return (Err(Unsent::Nothing), out) };
    while sent < out.len() {
        match runner.try_send(&out[sent..]) {
            Ok(Moved::Bytes(n)) => sent += n,
            Ok(_) if runner.writable().await.is_ok() => {}
            _ => return (Err(Unsent::Part), out),
        }
    }
    (Ok(()), out)
}

async fn connect(client: &Client, shard: &Shard, target: &Target) -> Result<Socket, Cause> {
    let mut last = Cause::RunnerConnect;
    for addr in &target.runner.address.addrs {
        add(&shard.counters.runner_connects, 1);
        let attempt = async {
            let (fd, established) = socket::start_connect(*addr)?;
            let socket = Socket::new(fd)?;
            if !established {
                client.watch.attach(socket.raw_fd());
                let _attached = Attached { client };
                client.watch.runner_answers(Some(shard.config.limits.runner_connect));
                client.watch.waits_for_others(true);
                socket.writable().await?;
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                if client.watch.fired().is_some() {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
            }
            Ok::<_, std::io::Error>(socket)
        };
        match attempt.await {
            Ok(socket) => return Ok(socket),
            Err(_) => {
                add(&shard.counters.runner_connect_failures, 1);
                last = match client.watch.fired() {
                    Some(Fired::Runner) => {
                        client.watch.unfire();
                        Cause::RunnerConnectTimeout
                    }
                    Some(_) => return Err(Cause::ClientGone),
                    None => Cause::RunnerConnect,
                };
            }
        }
    }
    Err(last)
}

enum Uploaded {
    /// Ended where its framing said; what was read behind it.
    Whole(Vec<u8>),
    Cut,
}

/// Upload and answer at the same time.
async fn both_ways(
    client: &Client,
    shard: &Shard,
    runner: &Socket,
    outgoing: &Outgoing<'_, '_>,
    body: &Body,
) -> Result<(Answered, Uploaded), Failed> {
    let head = outgoing.head;
    let _alive = enter(client, shard, runner, outgoing);
    let started = Cell::new(false);
    let means = client.means(shard);
    let lane = Lane { source: client.transport(), sink: runner, way: Way::Up, means: &means };
    // The app's time to answer begins with the body's end. Until then it has to take some of it now and then.
    client.watch.runner_answers(None);
    let upload = async {
        match head.body {
            RequestBody::Chunked => {
                let mut reader = ChunkReader::new(shard.config.limits.head_bytes_max);
                lane.chunked(&mut reader, outgoing.rest.to_vec(), SinkFraming::Chunked).await
            }
            RequestBody::Length(_) | RequestBody::None => {
                lane.exact(b"", body.length_left).await.map(|()| Vec::new())
            }
        }
    };
    let inbuf = shard.buffers.small();
    let answer = respond(client, shard, runner, outgoing, inbuf, &started);
    let (mut upload, mut answer) = (pin!(upload), pin!(answer));
    let mut uploaded = None;
    let answered = std::future::poll_fn(|cx| {
        if uploaded.is_none()
            && let Poll::Ready(result) = upload.as_mut().poll(cx)
        {
            // A runner that takes no more may have answered already; a client that broke off ends the exchange.
            let client_failed = match &result {
                Err(Fault::SourceEnded | Fault::SourceBroke(_)) => Some(client.cause_or(Cause::ClientGone)),
                Err(Fault::SourceSyntax(reject)) => Some(Cause::Rejected(*reject)),
                Err(Fault::Resources(_)) => Some(Cause::Internal),
                Err(Fault::SinkBroke(_)) | Ok(_) => None,
            };
            if result.is_ok() && !started.get() {
                client.watch.runner_answers(shard.config.limits.runner_first_byte);
            }
            uploaded = Some(result);
            if let Some(cause) = client_failed {
                let failed = Failed { cause, answerable: !started.get(), reset: false };
                return Poll::Ready(Err(failed));
            }
        }
        answer.as_mut().poll(cx)
    })
    .await?;
    let uploaded = match uploaded {
        Some(result) => result.ok(),
        // An early answer. A runner that keeps its connection gets the rest for a moment, so that both connections
        // may stay; one that does not has no use for it. The upload's waits own nothing, so giving up loses nothing
        // but the connection, which ends anyway.
        None if answered.runner_reusable => {
            monoio::time::timeout(shard.config.limits.linger, upload).await.ok().and_then(Result::ok)
        }
        None => None,
    };
    Ok((answered, uploaded.map_or(Uploaded::Cut, Uploaded::Whole)))
}

struct Answered {
    status: u16,
    /// Ended exactly where its framing said, and the runner keeps its connection.
    runner_reusable: bool,
    client_stays: bool,
    /// A 101 was passed on; what the runner sent behind it.
    switched: Option<Vec<u8>>,
}

/// What a head of the runner's means for the relay. Apart from the head itself, which is written out where it is read
/// and not kept over a wait.
enum Step {
    More,
    /// A 1xx, so many bytes of what was received.
    Informational(usize),
    /// The 101; what the runner sent behind it.
    Switched(Vec<u8>),
    Final(Final),
}

/// The final head, as far as the relay needs it.
struct Final {
    head_bytes: usize,
    status: u16,
    body: ResponseBody,
    keep_alive: bool,
    /// As the body goes out.
    framing: ResponseBody,
    client_stays: bool,
}

/// Reads the next head out of what was received and writes the client's to `out`.
fn step(
    shard: &Shard,
    outgoing: &Outgoing<'_, '_>,
    received: &[u8],
    out: &mut Vec<u8>,
) -> Result<Step, Cause> {
    let head = outgoing.head;
    let parsed = ResponseHead::parse(received, head.method, &shard.config.limits);
    // By reference: a head is some 400 bytes to move.
    let answer = match &parsed {
        Err(_) => return Err(Cause::RunnerGarbage),
        Ok(None) => return Ok(Step::More),
        Ok(Some(answer)) => answer,
    };
    let head_bytes = answer.bytes.len();
    if answer.status == 101 {
        if !head.websocket || !accepts_websocket(head, answer) {
            return Err(Cause::RunnerGarbage);
        }
        forward::write_response(answer, &response_plan(shard, outgoing, ResponseBody::None, false), out);
        return Ok(Step::Switched(received[head_bytes..].to_vec()));
    }
    if answer.status < 200 {
        // RFC 9110 15.2: never to an HTTP/1.0 client.
        if head.version == Version::Http11 {
            forward::write_response(answer, &response_plan(shard, outgoing, ResponseBody::None, false), out);
        }
        return Ok(Step::Informational(head_bytes));
    }
    let framing = match answer.body {
        ResponseBody::Chunked | ResponseBody::UntilClose if head.version == Version::Http10 => {
            ResponseBody::UntilClose
        }
        ResponseBody::UntilClose => ResponseBody::Chunked,
        other => other,
    };
    let close = !head.keep_alive || shard.draining.get() || framing == ResponseBody::UntilClose;
    forward::write_response(answer, &response_plan(shard, outgoing, framing, close), out);
    Ok(Step::Final(Final {
        head_bytes,
        status: answer.status,
        body: answer.body,
        keep_alive: answer.keep_alive,
        framing,
        client_stays: !close,
    }))
}

impl Final {
    /// Bytes still to come of a known length; 0 when nobody knows.
    fn left(&self, received: &[u8]) -> u64 {
        match self.body {
            ResponseBody::Length(length) => length.saturating_sub((received.len() - self.head_bytes) as u64),
            _ => 0,
        }
    }
}

/// Reads the runner's answer, of which `inbuf` holds the first bytes, and passes it on.
async fn respond(
    client: &Client,
    shard: &Shard,
    runner: &Socket,
    outgoing: &Outgoing<'_, '_>,
    mut inbuf: Vec<u8>,
    started: &Cell<bool>,
) -> Result<Answered, Failed> {
    let limits = &shard.config.limits;
    let fail = |cause| Failed { cause: client.cause_or(cause), answerable: !started.get(), reset: false };
    let mut out = shard.buffers.small();
    let mut informational = 0;
    let last = loop {
        out.clear();
        match step(shard, outgoing, &inbuf, &mut out).map_err(fail)? {
            Step::Final(last) => break last,
            Step::More => match runner.try_recv(with_room(&mut inbuf)) {
                Ok(Moved::Bytes(_)) => {}
                Ok(Moved::NotReady) => runner.readable().await.map_err(|_| fail(Cause::RunnerClosed))?,
                Ok(Moved::End) if !inbuf.is_empty() => return Err(fail(Cause::RunnerGarbage)),
                Ok(Moved::End) | Err(_) => return Err(fail(Cause::RunnerClosed)),
            },
            Step::Switched(behind) => {
                started.set(true);
                client.send(shard, &out).await.map_err(|_| fail(Cause::ClientGone))?;
                let (status, switched) = (101, Some(behind));
                return Ok(Answered { status, runner_reusable: false, client_stays: false, switched });
            }
            Step::Informational(used) => {
                informational += 1;
                if informational > limits.informational_max {
                    return Err(fail(Cause::RunnerGarbage));
                }
                client.send(shard, &out).await.map_err(|_| fail(Cause::ClientGone))?;
                inbuf.drain(..used);
            }
        }
    };
    let Final { framing, client_stays, .. } = last;
    // The first read took little, for the sake of what is to be spliced. All else goes on with what is here by now.
    if inbuf.len() >= FIRST_READ && last.left(&inbuf) < SPLICE_MIN {
        match runner.try_recv(with_room(&mut inbuf)) {
            Err(_) if last.body == ResponseBody::UntilClose => return Err(fail(Cause::RunnerClosed)),
            // A body that knows its end finds out by itself that the rest is missing, if it is.
            _ => {}
        }
    }
    client.watch.runner_answers(None);
    started.set(true);
    client.first_byte(shard, outgoing.located_at);
    let reset = framing == ResponseBody::UntilClose;
    let sink = if framing == ResponseBody::Chunked { SinkFraming::Chunked } else { SinkFraming::Bare };
    let means = client.means(shard);
    let _alive =
        goes_on(last.body, &inbuf[last.head_bytes..]).then(|| enter(client, shard, runner, outgoing));
    let lane = Lane { source: runner, sink: client.transport(), way: Way::Down, means: &means };
    let moved = async {
        let here = &inbuf[last.head_bytes..];
        match last.body {
            ResponseBody::None => {
                out = lane.send_whole(std::mem::take(&mut out)).await?;
                Ok(here.is_empty())
            }
            ResponseBody::Length(length) => {
                let take = usize::try_from(length).unwrap_or(usize::MAX).min(here.len());
                out.extend_from_slice(&here[..take]);
                let left = length - take as u64;
                if left > 0 {
                    // At once, so that the rest follows without a turn of the loop between.
                    lane.exact(&out, left).await?;
                } else {
                    out = lane.send_whole(std::mem::take(&mut out)).await?;
                }
                // Bytes behind the end: delivered is what was announced, and the connection is not used again.
                Ok(take == here.len())
            }
            ResponseBody::Chunked => {
                lane.send(&out).await?;
                let mut reader = ChunkReader::new(limits.head_bytes_max);
                let mut body = shard.buffers.small();
                body.extend_from_slice(here);
                let behind = lane.chunked(&mut reader, body, sink).await?;
                Ok(behind.is_empty())
            }
            ResponseBody::UntilClose => {
                lane.send(&out).await?;
                match sink {
                    SinkFraming::Bare => lane.send(here).await?,
                    SinkFraming::Chunked => lane.send_chunk(here).await?,
                }
                lane.until_end(sink).await?;
                if client.watch.fired().is_some() {
                    return Err(Fault::SourceEnded);
                }
                if sink == SinkFraming::Chunked {
                    let mut end = Vec::with_capacity(8);
                    chunked::write_end(b"", &mut end);
                    lane.send(&end).await?;
                }
                Ok(false)
            }
        }
    }
    .await;
    shard.buffers.give(out);
    shard.buffers.give(std::mem::take(&mut inbuf));
    match moved {
        Ok(clean) => Ok(Answered {
            status: last.status,
            runner_reusable: clean && last.keep_alive,
            client_stays,
            switched: None,
        }),
        Err(fault) => {
            let cause = match fault {
                Fault::SinkBroke(_) => Cause::ClientGone,
                Fault::Resources(_) => Cause::Internal,
                Fault::SourceEnded | Fault::SourceBroke(_) | Fault::SourceSyntax(_) => {
                    add(&shard.counters.truncated, 1);
                    Cause::RunnerClosed
                }
            };
            Err(Failed { cause: client.cause_or(cause), answerable: false, reset })
        }
    }
}

/// What lives long is found again when its right ends.
fn enter(client: &Client, shard: &Shard, runner: &Socket, outgoing: &Outgoing<'_, '_>) -> Option<Alive> {
    let pass = outgoing.grant.pass(shard, outgoing.head, outgoing.ip, outgoing.place?)?;
    // What changed since the grant is found out about at once.
    let outdated = shard.changes.is_old(pass.sandbox(), outgoing.grant.as_of());
    let check_in = if outdated { Duration::ZERO } else { pass.basis.lifetime(&shard.config) };
    // A peer that vanished without a word must not hold what lives long.
    for socket in [client.transport(), runner] {
        let _ = socket.keep_alive();
    }
    Some(shard.live.enter(pass, client.watch.index(), check_in))
}

/// A body of which much is still to come, or nobody knows how much. What is left of others is not worth the trouble.
/// What looks like the end of chunks may be data of one: an app must not be able to hide a stream that way.
fn goes_on(body: ResponseBody, here: &[u8]) -> bool {
    match body {
        ResponseBody::None => false,
        ResponseBody::Length(length) => length > LONG_BODY + here.len() as u64,
        ResponseBody::Chunked => !here.ends_with(b"0\r\n\r\n") || !chunked::is_whole(here),
        ResponseBody::UntilClose => true,
    }
}

/// Room for at least a page of a head that does not fit yet; the parser bounds how far this goes.
fn with_room(buf: &mut Vec<u8>) -> &mut Vec<u8> {
    if buf.capacity() - buf.len() < 1024 {
        buf.reserve(16 * 1024);
    }
    buf
}

fn response_plan<'a>(
    shard: &Shard,
    outgoing: &Outgoing<'a, '_>,
    framing: ResponseBody,
    close: bool,
) -> ResponsePlan<'a> {
    let (head, grant) = (outgoing.head, outgoing.grant);
    let own_host = matches!(grant.access(), Access::Preview { .. });
    let confine = Confine { authority: head.authority.of(head.bytes), own_host };
    ResponsePlan {
        client_version: head.version,
        framing,
        close,
        request_id: outgoing.request_id,
        set_cookie: grant.set_cookie(),
        frame_ancestors: grant.frame_ancestors(),
        confine: shard.config.confine_apps.then_some(confine),
        sharing: outgoing.sharing,
        redirect_prefix: match grant.access() {
            Access::Toolbox { sandbox, .. } => Some(*sandbox),
            Access::Preview { .. } | Access::BuildLogs { .. } => None,
        },
    }
}

/// RFC 6455 4.1: `Upgrade: websocket` and the digest of the client's own key, or it is no tunnel.
fn accepts_websocket(request: &RequestHead<'_>, answer: &ResponseHead<'_>) -> bool {
    use sha1::{Digest, Sha1};
    let of_request = |id| request.fields.iter().find(|f| f.id == id).map(|f| f.value.of(request.bytes));
    let of_answer = |id| answer.fields.iter().find(|f| f.id == id).map(|f| f.value.of(answer.bytes));
    let Some(key) = of_request(FieldId::SecWebSocketKey) else { return false };
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let expected = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
    of_answer(FieldId::Upgrade).is_some_and(|v| v.eq_ignore_ascii_case(b"websocket"))
        && of_answer(FieldId::SecWebSocketAccept) == Some(expected.as_bytes())
}
