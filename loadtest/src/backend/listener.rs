//! Threads and their listeners: each thread has a runtime and a share of every listener's connections.
//!
//! The kernel spreads connections over the threads (SO_REUSEPORT); a connection stays on its thread.

use super::answer::{Answer, Next, send};
use super::api;
use super::peer::{Broken, Framing, Head, Peer};
use super::redis;
use super::runner;
use super::state::{Dice, Open, Side, World, count};
use futures_util::{SinkExt, StreamExt};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

const BACKLOG: i32 = 4096;
/// Body of a lever's request.
const LEVER_BYTES_MAX: usize = 64 << 10;
/// Per open WebSocket; a read is as large at most.
const WEBSOCKET_BUFFER_BYTES: usize = 2 << 10;
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Accept failed: out of descriptors, probably. Trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every thread gets.
#[derive(Clone)]
pub(super) struct Plan {
    pub world: Arc<World>,
    pub seed: u64,
    /// `host:port` of the Redis that is told of changes, and the restarts of the relay in front of it.
    pub redis: Option<(Arc<str>, Restarts)>,
    /// Per side of a thread; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Which of the threads this is for.
    pub thread: usize,
    pub restarts: Restarts,
    /// Connections of all threads are numbered.
    pub connections: Arc<AtomicU64>,
}

/// Restarts of the runner, or of the relay to Redis: asked for by a lever, done by every thread that listens there.
#[derive(Clone)]
pub(super) struct Restarts {
    /// How many have been asked for, and how long the last one is to keep it away.
    asked: watch::Sender<(u64, Duration)>,
    /// By thread: the last one for which it has stopped listening.
    done: watch::Sender<Vec<u64>>,
}

impl Restarts {
    pub fn new(threads: usize) -> Self {
        Self { asked: watch::Sender::new((0, Duration::ZERO)), done: watch::Sender::new(vec![0; threads]) }
    }

    /// The number of the last one that was asked for, and how long it is to last.
    pub fn asked(&self) -> watch::Receiver<(u64, Duration)> {
        self.asked.subscribe()
    }

    /// The thread listens no more.
    pub fn done(&self, thread: usize, number: u64) {
        self.done.send_modify(|done| done[thread] = number);
    }

    /// Returns when no thread listens any more.
    async fn restart(&self, down: Duration) {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            number = asked.0 + 1;
            *asked = (number, down);
        });
        // The sender is here: waiting ends only when it is so.
        let _ = self.done.subscribe().wait_for(|done| done.iter().all(|last| *last >= number)).await;
    }
}

/// A listener that shares its port with others of the same call.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One thread's life: until `stop` changes or its sender is gone.
pub(super) async fn live(
    plan: Plan,
    api: TcpListener,
    runners: Vec<TcpListener>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let api = tokio::net::TcpListener::from_std(api)?;
    tokio::select! {
        never = accept(plan.clone(), api, Side::Api, permits(&plan)) => match never {},
        ended = accept_with_restarts(&plan, runners) => ended,
        _ = stop.changed() => Ok(()),
    }
}

async fn accept_with_restarts(plan: &Plan, first: Vec<TcpListener>) -> io::Result<()> {
    let addresses: Vec<SocketAddr> = first.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    let mut asked = plan.restarts.asked();
    let mut listeners = first;
    loop {
        let (mut accepting, permits) = (JoinSet::new(), permits(plan));
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            accepting.spawn(accept(plan.clone(), listener, Side::Runner, permits.clone()));
        }
        // The sender is in `plan`.
        let _ = asked.changed().await;
        // Listeners and connections end with their tasks.
        accepting.shutdown().await;
        let (number, down) = *asked.borrow_and_update();
        plan.restarts.done(plan.thread, number);
        tokio::time::sleep(down).await;
        listeners = addresses.iter().map(|address| listen(*address)).collect::<Result<_, _>>()?;
    }
}

/// A side's connections at once on one thread.
fn permits(plan: &Plan) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(plan.connections_max))
}

/// Dropping this ends all connections that were accepted by it.
async fn accept(
    plan: Plan,
    listener: tokio::net::TcpListener,
    side: Side,
    permits: Arc<Semaphore>,
) -> std::convert::Infallible {
    let mut connections = JoinSet::new();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small writes are behaviours here: each must leave at once. Without it they only come later.
                let _ = stream.set_nodelay(true);
                let plan = plan.clone();
                connections.spawn(async move {
                    match side {
                        Side::Api => serve_api(&plan, stream).await,
                        Side::Runner => serve_runner(&plan, stream).await,
                    }
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_api(plan: &Plan, stream: TcpStream) {
    let world = &plan.world;
    count(&world.counters.api_connections);
    let mut dice = Dice::new(world, Side::Api, plan.seed, plan.connections.fetch_add(1, Relaxed));
    let mut peer = Peer::new(stream);
    let ended = loop {
        match api_request(plan, &mut peer, &mut dice).await {
            Ok(Next::KeepAlive) => {}
            Ok(next) => break Ok(next),
            Err(broken) => break Err(broken),
        }
    };
    end(world, peer, ended).await;
}

async fn api_request(plan: &Plan, peer: &mut Peer, dice: &mut Dice) -> Result<Next, Broken> {
    let head = peer.head().await?;
    let body = lever_body(peer, head.framing).await?;
    if api::is_lever(head.target()) {
        let reply = api::lever(&plan.world, &head, &body);
        if let Some(down) = reply.restart_runner {
            plan.restarts.restart(down).await;
        }
        let answer = match (reply.news, &plan.redis) {
            (_, redis) if reply.restart_redis.is_some() => {
                let down = reply.restart_redis.unwrap_or_default();
                match redis {
                    Some((_, restarts)) => {
                        restarts.restart(down).await;
                        reply.answer
                    }
                    None => {
                        api::error(501, "there is no Redis here: start the backend with --redis HOST:PORT")
                    }
                }
            }
            (Some(news), Some((redis, _))) => match redis::tell(redis, &news).await {
                Ok(()) => reply.answer,
                Err(error) => api::error(502, &format!("changed, but Redis {redis} was not told: {error}")),
            },
            _ => reply.answer,
        };
        return send(peer, &head, &Default::default(), answer).await;
    }
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    match dice.throw(&plan.world, path, query) {
        Ok(fault) => send(peer, &head, &fault, api::answer(&plan.world, &head)).await,
        Err(mistake) => {
            send(peer, &head, &Default::default(), Answer::text(400, "text/plain", mistake.to_string())).await
        }
    }
}

/// The API's callers send next to none; what is too long is cut.
async fn lever_body(peer: &mut Peer, framing: Framing) -> Result<Vec<u8>, Broken> {
    let mut body = Vec::new();
    let mut keep =
        |piece: &[u8]| body.extend_from_slice(&piece[..piece.len().min(LEVER_BYTES_MAX - body.len())]);
    peer.body(framing, None, &mut keep).await?;
    Ok(body)
}

async fn serve_runner(plan: &Plan, stream: TcpStream) {
    let world = &plan.world;
    count(&world.counters.runner_connections);
    let _open = Open::new(&world.counters.runner_connections_open);
    let mut dice = Dice::new(world, Side::Runner, plan.seed, plan.connections.fetch_add(1, Relaxed));
    let mut peer = Peer::new(stream);
    let ended = loop {
        let answered = match peer.head().await {
            Ok(head) => answer(world, &mut peer, &head, &mut dice).await,
            Err(broken) => Err(broken),
        };
        match answered {
            Ok(Next::KeepAlive) => {}
            Ok(next) => break Ok(next),
            Err(broken) => break Err(broken),
        }
    };
    end(world, peer, ended).await;
}

async fn answer(world: &World, peer: &mut Peer, head: &Head, dice: &mut Dice) -> Result<Next, Broken> {
    let next = runner::answer(world, peer, head, dice).await;
    world.counters.body_bytes_in.fetch_add(std::mem::take(&mut peer.body_bytes_in), Relaxed);
    world.counters.bytes_out.fetch_add(std::mem::take(&mut peer.bytes_out), Relaxed);
    next
}

async fn end(world: &World, mut peer: Peer, ended: Result<Next, Broken>) {
    match ended {
        Ok(Next::WebSocket) => echo(world, peer).await,
        Ok(Next::Reset) => peer.reset(),
        Ok(Next::HalfClose) => {
            peer.shut().await;
            peer.until_closed().await;
        }
        // Unread bytes would turn the close into a reset, which may overtake what was sent.
        Ok(Next::Close | Next::KeepAlive) => peer.close().await,
        Err(Broken::Between) => {}
        Err(Broken::Inside) => count(&world.counters.broken_off),
        Err(Broken::Malformed) => count(&world.counters.malformed),
    }
}

/// Sends every message back until either side ends it.
async fn echo(world: &World, peer: Peer) {
    let counters = &world.counters;
    count(&counters.websockets);
    let _open = Open::new(&counters.websockets_open);
    let config = WebSocketConfig::default()
        .read_buffer_size(WEBSOCKET_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (stream, ahead) = peer.into_parts();
    let mut socket = WebSocketStream::from_partially_read(stream, ahead, Role::Server, Some(config)).await;
    while let Some(Ok(message)) = socket.next().await {
        // Pongs and the closing frame are sent by the library.
        if message.is_text() || message.is_binary() {
            count(&counters.websocket_messages);
            if socket.send(message).await.is_err() {
                break;
            }
        }
    }
}
