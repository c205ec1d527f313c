//! A client's connection, from its first byte to its last.
//!
//! Between requests it is one small task waiting for readiness: no buffer, no pipe. A request's working state is
//! allocated when its first byte is there and freed with it. The stages behind the head do not know whether the
//! transport is plain or the protocol HTTP/1.1.

mod reply;
mod request;
pub(crate) mod visitor;

pub use reply::turn_away;

use crate::activity::InUse;
use crate::admission::Held;
use crate::buffers;
use crate::contained::Contained;
use crate::counters::add;
use crate::deadlines::{Fired, Idle, Watch};
use crate::error::Cause;
use crate::exchange::Next;
use crate::head::RequestHead;
use crate::ids::SandboxId;
use crate::rate::ClientNet;
use crate::relay::{Means, Patience};
use crate::shard::Shard;
use crate::socket::{Moved, Socket};
use crate::sys;
use crate::tunnel::{self, Tunnel};
use crate::turns;
use crate::warm::WARM_TICKS;
use request::Stamps;
use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

/// So many pipelined requests are served before the other connections of the shard have their turn. What is answered from
/// memory needs no wait of its own: a client that sends without a pause would have the shard to itself.
const IN_A_ROW: u8 = 16;

/// What carries the client's bytes: plain TCP today.
type Transport = Socket;

pub struct Client {
    // Before the socket: its entry names the descriptor and must go first.
    pub watch: Watch,
    transport: Transport,
    pub peer: IpAddr,
    /// The peer may speak for others.
    pub trusted: bool,
    /// Microseconds from the grant to the first byte of the app's answer, up to 71 minutes.
    first_byte: Cell<Option<NonZeroU32>>,
    /// What keeps the sandbox of the request or tunnel from being stopped.
    in_use: Cell<Option<InUse>>,
    /// The sandbox's count of what is under way, when it is limited.
    sandbox_slot: Cell<Option<Box<Held<SandboxId>>>>,
    /// Dropped with it.
    held: Option<Box<Held<ClientNet>>>,
}

impl Client {
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    pub fn means<'a>(&'a self, shard: &'a Shard) -> Means<'a> {
        means(shard, &self.watch)
    }

    /// Heads and small answers.
    pub async fn send(&self, shard: &Shard, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.transport.try_send(bytes)? {
                Moved::Bytes(n) => bytes = &bytes[n..],
                Moved::End | Moved::NotReady => self.wait_writable(shard).await?,
            }
        }
        Ok(())
    }

    async fn wait_writable(&self, shard: &Shard) -> io::Result<()> {
        self.watch.client_writes(shard.config.limits.client_stall);
        self.transport.writable().await?;
        self.watch.client_writes(None);
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
    pub fn first_byte(&self, shard: &Shard, granted: Instant) {
        if shard.log.times_first_byte() {
            let micros = u32::try_from(granted.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.first_byte.set(NonZeroU32::new(micros.max(1)));
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
            held,
        }
    }
}

fn means<'a>(shard: &'a Shard, watch: &'a Watch) -> Means<'a> {
    let limits = &shard.config.limits;
    Means {
        buffers: &shard.buffers,
        counters: &shard.counters,
        watch,
        stall: limits.client_stall.into(),
        runner_stall: limits.runner_first_byte.into(),
        in_use: None,
    }
}

/// Serves a connection to its end.
#[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice")]
pub fn serve(shard: Rc<Shard>, client: Client) -> impl Future<Output = ()> {
    async move {
        // Who connects speaks soon, and who spoke soon after the last answer will again.
        let (mut warm, mut soon) = (shard.warm.has_room() && !shard.draining.get(), true);
        let mut in_a_row = 0;
        loop {
            if !warm {
                let since = shard.deadlines.now();
                client.watch.idle(Idle::InSocket, shard.config.limits.client_idle);
                if client.transport.readable().await.is_err() {
                    break;
                }
                if shard.turns.waits_are_turns() {
                    in_a_row = 0;
                }
                soon = shard.deadlines.now() - since <= WARM_TICKS;
            }
            let next = sys::boxed(|| requests(&shard, &client, warm, soon, &mut in_a_row)).await;
            match next {
                // A drain ends it at the next tick: until then a request may be here, which no answer said would be too late.
                Next::KeepAlive => warm = false,
                Next::Close => break,
                Next::Tunnel(tunnel) => {
                    // A task of its own, so that neither carries the other's state.
                    monoio::spawn(Contained::new(tunnelled(shard, client, tunnel)));
                    return;
                }
            }
        }
    }
}

/// Of the connection only what a tunnel needs is kept: thousands of them wait for hours.
fn tunnelled(shard: Rc<Shard>, client: Client, tunnel: Tunnel) -> impl Future<Output = ()> {
    let Client { watch, transport, in_use, sandbox_slot, held, .. } = client;
    watch.busy();
    let in_use = in_use.into_inner();
    in_use.iter().for_each(InUse::is_tunnel);
    // Seldom any.
    let counted = match (sandbox_slot.into_inner(), held) {
        (None, None) => None,
        places => Some(Box::new(places)),
    };
    async move {
        // An app may take as long as it likes; only what is gone is noticed.
        let runner_stall = Patience::default();
        let means = Means { in_use: in_use.as_ref(), runner_stall, ..means(&shard, &watch) };
        tunnel::run(&transport, &tunnel, &means).await;
        // In this order: its entry names the descriptors.
        drop(watch);
        drop((transport, tunnel, counted));
    }
}

/// Serves requests until the connection has no byte left to interpret and no next one came soon.
/// `between`: none has begun yet, else bytes are here. `soon`: the next one is worth a warm wait. `in_a_row`: how many were
/// served without one.
async fn requests(shard: &Shard, client: &Client, mut between: bool, soon: bool, in_a_row: &mut u8) -> Next {
    let mut buf = shard.buffers.small();
    let (mut begun, mut waited) = (None, false);
    loop {
        if std::mem::take(&mut between) {
            let received;
            (received, buf) = next_request(shard, client, buf).await;
            match received {
                Received::Bytes => {
                    *in_a_row = 0;
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
            Ok(None) => {
                waited |= !buf.is_empty();
                if let Some(end) = read_head(shard, client, &mut buf, &mut begun).await {
                    shard.buffers.give(buf);
                    return end;
                }
            }
            Err(reject) => {
                add(&shard.counters.rejects[reject as usize], 1);
                reply::refuse(shard, client, Cause::Rejected(reject)).await;
                return Next::Close;
            }
            Ok(Some(head)) => {
                let head_bytes = head.bytes.len();
                let started = begun.take().unwrap_or_else(Instant::now);
                // Not the time of the first byte: a head sent slowly must not stretch what is remembered.
                let now = if std::mem::take(&mut waited) { Instant::now() } else { started };
                client.watch.begins();
                let (stamps, rest) = (Stamps::new(started, now), &buf[head_bytes..]);
                // Pinned, like the larger stages behind it: awaited by name a future is moved twice before it begins.
                let (next, used, overread) = pin!(request::serve(shard, client, &head, rest, stamps)).await;
                drop(head);
                if !matches!(next, Next::KeepAlive) {
                    shard.buffers.give(buf);
                    return next;
                }
                *in_a_row += 1;
                if *in_a_row == IN_A_ROW {
                    *in_a_row = 0;
                    let taken = turns::in_turn(client.wait_writable(shard)).await;
                    let is_over = Some(Fired::ClientWrite);
                    if taken.is_err() || client.watch.fired() == is_over || client.watch.revoked().is_some() {
                        return Next::Close;
                    }
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

/// Reads more of a head, of which `buf` holds a part or nothing yet; `begun` when its first byte came. What is returned ends
/// the row of requests.
async fn read_head(
    shard: &Shard,
    client: &Client,
    buf: &mut Vec<u8>,
    begun: &mut Option<Instant>,
) -> Option<Next> {
    if !buf.is_empty() {
        // A wait even if more is here: whoever sends a head in morsels has it parsed anew for each.
        let begun = *begun.get_or_insert_with(Instant::now);
        let left = shard.config.limits.head_deadline.saturating_sub(begun.elapsed());
        client.watch.client_reads(Some(left));
        let ready = turns::in_turn(client.transport.readable()).await;
        client.watch.client_reads(None);
        if ready.is_err() {
            return Some(Next::Close);
        }
    }
    match client.transport.try_recv(buffers::with_room(buf)) {
        Ok(Moved::Bytes(_)) => {
            if begun.is_none() {
                *begun = Some(Instant::now());
                client.watch.busy();
            }
            None
        }
        Ok(Moved::NotReady) if buf.is_empty() => Some(Next::KeepAlive),
        Ok(Moved::NotReady) => None,
        Ok(Moved::End) if client.watch.fired() == Some(Fired::ClientRead) => {
            reply::refuse(shard, client, Cause::HeadTimeout).await;
            Some(Next::Close)
        }
        Ok(Moved::End) | Err(_) => Some(Next::Close),
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
    let Some(warm) = shard.warm.enter().filter(|_| !shard.draining.get()) else {
        return (Received::Nothing, buf);
    };
    client.watch.idle(Idle::InRing, shard.config.limits.client_idle);
    let (received, buf) = pin!(client.transport.recv_cancellable(buf, warm.wait())).await;
    let received = match received {
        Ok(0) => Received::End,
        Ok(_) => Received::Bytes,
        Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Received::Nothing,
        Err(_) => Received::End,
    };
    (received, buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::SMALL;
    use crate::ring::{Driver, count_turns, on_a_shard, on_each_driver};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    /// What the runtime puts around a task.
    const TASK: usize = 48;

    #[test]
    #[expect(clippy::await_holding_refcell_ref, reason = "that is the fault")]
    fn a_request_that_meets_a_fault_ends_its_connection_and_no_other() {
        let pair = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let theirs = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            let (ours, _) = listener.accept().expect("accepted");
            ours.set_nonblocking(true).expect("an open socket");
            (theirs, ours)
        };
        let ((mut hit, its_end), (mut spared, other_end)) = (pair(), pair());
        let clients = std::thread::spawn(move || {
            hit.write_all(b"GET / HTTP/1.1\r\nHost: 3000-sb1.preview.test\r\n\r\n").expect("sent");
            let end = hit.read(&mut [0; 1]).map_err(|error| error.kind());
            let mut answer = String::new();
            spared
                .write_all(b"GET /health HTTP/1.1\r\nHost: p.test\r\nConnection: close\r\n\r\n")
                .expect("sent");
            spared.read_to_string(&mut answer).map(|_| (end, answer))
        });
        on_a_shard(move || async move {
            let shard = Shard::alone(Driver::Epoll, &[]);
            // The fault: whoever asks what is known of a sandbox finds it taken.
            let _taken = shard.verdicts.borrow_mut();
            for end in [its_end, other_end] {
                crate::shard::accepted(&shard, end.into(), [127, 0, 0, 1].into());
            }
            while !clients.is_finished() || shard.deadlines.clients() > 0 {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(shard.counters.requests_active.get(), 0);
            let (end, answer) = clients.join().expect("no panic").expect("the other is served to its end");
            assert_eq!(end, Err(ErrorKind::ConnectionReset));
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        });
    }

    #[test]
    fn who_pipelines_without_a_pause_leaves_the_others_their_turn() {
        // Many to a read, and so that each read ends with one.
        for (requests, length) in [(320, 0), (160, SMALL / 8)] {
            on_each_driver(move || async move {
                let shard = Shard::alone(Driver::Epoll, &[]);
                let (ours, mut theirs) = UnixStream::pair().expect("pair");
                ours.set_nonblocking(true).expect("set");
                for end in [&ours, &theirs] {
                    socket2::SockRef::from(end).set_send_buffer_size(1 << 20).expect("open");
                }
                // All of them are here before the first is read, none is answered by anybody else, and all answers fit.
                let head = "GET /health HTTP/1.1\r\nHost: p.test\r\nX-Padding: ";
                let request = format!("{head}{}\r\n\r\n", "x".repeat(length.saturating_sub(head.len() + 4)));
                theirs.write_all(request.repeat(requests).as_bytes()).expect("they fit");
                theirs.shutdown(std::net::Shutdown::Write).expect("open");
                let socket = Socket::new(ours.into()).expect("made");
                let client = Client::new(&shard, socket, [127, 0, 0, 1].into(), false, None);
                let turns = count_turns().await;
                serve(shard.clone(), client).await;
                assert!(turns.get() as usize >= requests / 16, "{} turns", turns.get());
                let mut answers = vec![0; 1 << 20];
                let n = theirs.read(&mut answers).expect("answers");
                let answers = String::from_utf8_lossy(&answers[..n]);
                assert_eq!(answers.matches("HTTP/1.1 200 ").count(), requests);
            });
        }
    }

    /// The allocator's classes are 256, 320, 384, 448, 512 and 640 bytes: one byte more costs 64 or 128.
    #[test]
    fn an_idle_connection_and_an_idle_tunnel_fill_a_class_of_the_allocator_each() {
        on_a_shard(|| async {
            let shard = Shard::alone(Driver::Epoll, &[]);
            let socket = || {
                let (ours, _) = UnixStream::pair().expect("pair");
                Socket::new(ours.into()).expect("made")
            };
            let client = || Client::new(&shard, socket(), [127, 0, 0, 1].into(), false, None);
            let connection = TASK + size_of_val(&serve(shard.clone(), client()));
            let tunnel = Tunnel::new(socket(), b"", b"", None);
            let tunnel = TASK + size_of_val(&tunnelled(shard.clone(), client(), tunnel));
            assert!(connection <= 256 && tunnel <= 512, "{connection} and {tunnel}");
        });
    }
}
