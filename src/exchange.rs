//! One request and its response through one runner connection.
//!
//! Both bodies move at the same time, so an early answer passes while the upload still runs. The runner connection
//! goes back to the pool only when both sides ended exactly where their framing said. A request is sent twice only
//! if not a byte of it was taken, or it is idempotent, without a body left to stream, and a *reused* connection gave
//! not a byte of an answer (RFC 9110 9.2.2).

mod answer;

use crate::activity::Place;
use crate::chunked::ChunkReader;
use crate::client::Client;
use crate::cors::Sharing;
use crate::counters::add;
use crate::deadlines::Fired;
use crate::error::Cause;
use crate::forward::{self, RequestPlan};
use crate::framing::RequestBody;
use crate::grant::{Asker, Grant, authorize};
use crate::head::RequestHead;
use crate::live::Alive;
use crate::log::{self, Level};
use crate::pool::Trust;
use crate::relay::{Fault, Lane, SinkFraming, Way};
use crate::route::route;
use crate::shard::Shard;
use crate::socket::{self, Moved, Socket};
use crate::sys;
use crate::target::{self, Target};
use crate::tunnel::Tunnel;
use answer::{Answered, respond};
use rustix::net::Shutdown;
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

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

/// How far both ways are. Each looks at the other's.
#[derive(Default)]
struct Progress {
    /// Nothing of the request's body is left to send.
    uploaded: Cell<bool>,
    /// The answer proper has begun: the client cannot be told anything else.
    answered: Cell<bool>,
}

/// An exchange that failed.
pub struct Failed {
    pub cause: Cause,
    /// Nothing was sent to the client yet: it can be told. Otherwise its connection ends, and the answer with it.
    pub answerable: bool,
}

impl Failed {
    fn before_answer(cause: Cause) -> Self {
        Self { cause, answerable: true }
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
                Err(Cause::RunnerConnect | Cause::RunnerConnectTimeout) if !looked_up_again => {
                    // What is remembered may be old: the sandbox may have moved.
                    looked_up_again = true;
                    target =
                        target::locate(asker, outgoing.grant, true).await.map_err(Failed::before_answer)?;
                    continue;
                }
                Err(cause) => return Err(Failed::before_answer(cause)),
            },
        };
        out.clear();
        write_head(client, shard, &target, outgoing, &mut out);
        out.extend_from_slice(&outgoing.rest[..body.with_head]);
        let attached = Attached::to(client, &runner, shard.config.limits.runner_first_byte);

        let sent;
        (sent, out) = pin!(send_head(shard, &runner, out)).await;
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
                let (received, inbuf) = pin!(runner.recv_waiting(std::mem::take(&mut out), FIRST_READ)).await;
                match received {
                    Ok(n) if n > 0 => match still_granted(asker, outgoing).await {
                        Ok(()) => {
                            let progress = Progress { uploaded: Cell::new(true), ..Progress::default() };
                            pin!(respond(client, shard, &runner, outgoing, inbuf, &progress)).await
                        }
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
                client
                    .send(shard, &leftover)
                    .await
                    .map_err(|_| Failed { cause: Cause::ClientGone, answerable: false })?;
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

impl<'a> Attached<'a> {
    /// From now on this runner is waited for, for so long.
    fn to(client: &'a Client, runner: &Socket, within: Option<Duration>) -> Self {
        client.watch.waits_for_runner(runner.raw_fd(), within);
        Self { client }
    }
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
async fn send_head(shard: &Shard, runner: &Socket, mut out: Vec<u8>) -> (Result<(), Unsent>, Vec<u8>) {
    let mut sent = 0;
    if shard.turns.leaves_together() {
        let first;
        (first, out) = runner.send_waiting(out).await;
        match first {
            Ok(n) => sent = n,
            Err(_) => return (Err(Unsent::Nothing), out),
        }
    }
    while sent < out.len() {
        match runner.try_send(&out[sent..]) {
            Ok(Moved::Bytes(n)) => sent += n,
            Ok(_) if runner.writable().await.is_ok() => {}
            _ if sent == 0 => return (Err(Unsent::Nothing), out),
            _ => return (Err(Unsent::Part), out),
        }
    }
    (Ok(()), out)
}

async fn connect(client: &Client, shard: &Shard, target: &Target) -> Result<Socket, Cause> {
    let mut last = None;
    for addr in &target.runner.address.addrs {
        add(&shard.counters.runner_connects, 1);
        let error = match connect_to(client, shard, *addr).await {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        add(&shard.counters.runner_connect_failures, 1);
        last = match client.watch.fired() {
            Some(Fired::Runner) => {
                client.watch.unfire();
                Some(Cause::RunnerConnectTimeout)
            }
            Some(_) => return Err(Cause::ClientGone),
            None if socket::is_want(&error, *addr) => {
                tell_of_want(shard, &error, Instant::now());
                // Another address is the runner's own word.
                last.or(Some(Cause::Overloaded))
            }
            None => Some(Cause::RunnerConnect),
        };
    }
    Err(last.unwrap_or(Cause::RunnerConnect))
}

/// Was it? Many requests fail like this at a time: once a second for each shard, and the rest is counted.
fn tell_of_want(shard: &Shard, error: &io::Error, now: Instant) -> bool {
    let Some(held_back) = shard.want_told.borrow_mut().pass(now) else { return false };
    let (error, failures) = (error.to_string(), (held_back + 1).to_string());
    let fields = [
        ("error", error.as_str()),
        ("failures", &failures),
        ("remedy", "`sandgate doctor` names the limits of descriptors, ports and memory"),
    ];
    log::event(Level::Error, "no connection to a runner could be made here", &fields);
    true
}

async fn connect_to(client: &Client, shard: &Shard, addr: SocketAddr) -> io::Result<Socket> {
    let (fd, established) = socket::start_connect(addr)?;
    let socket = Socket::new(fd)?;
    if !established {
        let _attached = Attached::to(client, &socket, Some(shard.config.limits.runner_connect));
        socket.writable().await?;
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        if client.watch.fired().is_some() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(socket)
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
    let progress = Progress::default();
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
    let answer = respond(client, shard, runner, outgoing, inbuf, &progress);
    let (mut upload, mut answer) = (pin!(upload), pin!(answer));
    let mut uploaded = None;
    let answered = std::future::poll_fn(|cx| {
        if uploaded.is_none()
            && let Poll::Ready(result) = upload.as_mut().poll(cx)
        {
            // A runner that takes no more may have answered already; a client that broke off ends the exchange.
            let client_failed = match &result {
                Err(Fault::SourceEnded | Fault::SourceBroke(_) | Fault::Revoked) => {
                    Some(client.cause_or(Cause::ClientGone))
                }
                Err(Fault::SourceSyntax(reject)) => Some(Cause::Rejected(*reject)),
                Err(Fault::SinkBroke(_)) | Ok(_) => None,
            };
            progress.uploaded.set(result.is_ok());
            if result.is_ok() && !progress.answered.get() {
                client.watch.runner_answers(shard.config.limits.runner_first_byte);
            }
            uploaded = Some(result);
            if let Some(cause) = client_failed {
                let failed = Failed { cause, answerable: !progress.answered.get() };
                return Poll::Ready(Err(failed));
            }
        }
        answer.as_mut().poll(cx)
    })
    .await?;
    let uploaded = match uploaded {
        Some(result) => result.ok(),
        // An early answer, which said that it is the client's last. A runner that keeps its connection gets the rest for a
        // moment, so that it may; one that does not has no use for it. The upload's waits own nothing, so giving up loses
        // nothing but the connection.
        None if answered.runner_reusable => {
            client.transport().shutdown(Shutdown::Write);
            monoio::time::timeout(shard.config.limits.linger, upload).await.ok().and_then(Result::ok)
        }
        None => None,
    };
    Ok((answered, uploaded.map_or(Uploaded::Cut, Uploaded::Whole)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Driver, Wish, choose, on_a_shard};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// A storm of them takes no lock and formats no line.
    #[test]
    fn what_was_missing_is_told_once_a_second_and_not_for_each_request() {
        let shard = Shard::alone(Driver::Epoll, &[]);
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let begun = Instant::now();
        let told =
            [0, 1, 999, 1000, 1001].map(|ms| tell_of_want(&shard, &error, begun + Duration::from_millis(ms)));
        assert_eq!(told, [true, false, false, true, false]);
    }

    /// A connection that holds little, and its other end.
    fn narrow() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("open");
        socket2::SockRef::from(&ours).set_send_buffer_size(4096).expect("open");
        (Socket::new(ours.into()).expect("a socket"), theirs)
    }

    #[test]
    fn a_head_leaves_whole_or_is_known_to_have_left_in_part_or_not_at_all_whichever_way_it_goes() {
        on_a_shard(|| async {
            let driver = choose(Wish::Auto).expect("a driver").driver;
            let shard = Shard::alone(driver, &[]);
            let head: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
            for together in [false, true] {
                shard.turns.follow(together);
                let (runner, mut theirs) = narrow();
                let reads = std::thread::spawn(move || {
                    let mut all = Vec::new();
                    theirs.read_to_end(&mut all).map(|_| all)
                });
                let (sent, kept) = send_head(&shard, &runner, head.clone()).await;
                assert!(sent.is_ok() && kept == head);
                runner.shutdown(Shutdown::Write);
                assert!(reads.join().expect("no panic").expect("read") == head);

                shard.turns.follow(together);
                let (runner, theirs) = narrow();
                drop(theirs);
                let (sent, _) = send_head(&shard, &runner, head.clone()).await;
                assert!(matches!(sent, Err(Unsent::Nothing)));

                shard.turns.follow(together);
                let (runner, mut theirs) = narrow();
                let leaves = std::thread::spawn(move || theirs.read_exact(&mut [0]));
                let (sent, _) = send_head(&shard, &runner, head.clone()).await;
                assert!(matches!(sent, Err(Unsent::Part)));
                leaves.join().expect("no panic").expect("a byte");
            }
            let by_ring = if driver == Driver::Epoll { 0 } else { 3 };
            assert_eq!(shard.counters.sent_together.get(), by_ring);
        });
    }
}
