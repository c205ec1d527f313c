//! A shard: one pinned thread with one ring and one of everything. Nothing in it is shared with another.

use crate::access_log::Log;
use crate::activity::Activity;
use crate::admission::{Admission, Limit};
use crate::buffers::Buffers;
use crate::changes::Record;
use crate::client::{self, Client};
use crate::config::{Config, CookieMode, Scheme};
use crate::contained::Contained;
use crate::cookie::CookieKeys;
use crate::counters::{CacheKind, Counters, Revoked, add};
use crate::deadlines::{Deadlines, TICK};
use crate::error::Cause;
use crate::grant::Verdicts;
use crate::ids::SandboxId;
use crate::live::Live;
use crate::log::Turn;
use crate::log_writer::LogSender;
use crate::mailbox::{Change, Down, ToControl, ToShard};
use crate::pool::Pool;
use crate::questions::Questions;
use crate::readiness;
use crate::request_id::RequestIds;
use crate::ring::{self, Driver};
use crate::route::RouteRules;
use crate::socket::{self, Socket};
use crate::sys;
use crate::target::Places;
use crate::ticker::Ticker;
use crate::turns::{self, Turns};
use crate::warm::{WARM_MAX, Warm};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;

/// Connections accepted in one go before others have their turn.
const ACCEPT_BATCH: u32 = 64;
/// Accepted at most once the shard drains: as many as its queue holds.
const DRAIN_ACCEPTS: u32 = crate::serve::BACKLOG as u32;
/// Changes remembered per shard; verdicts from before the oldest are asked for anew.
const CHANGES_MAX: usize = 16 * 1024;
/// Ticks between two looks at the idle runner connections.
const POOL_SWEEP_TICKS: u32 = 10;

pub struct Shard {
    pub index: usize,
    pub config: Arc<Config>,
    pub route_rules: RouteRules,
    /// As clients see it.
    pub scheme: &'static str,
    pub counters: Rc<Counters>,
    pub buffers: Buffers,
    pub deadlines: Rc<Deadlines>,
    pub pool: Pool,
    pub verdicts: RefCell<Verdicts>,
    pub cookie_keys: CookieKeys,
    pub places: RefCell<Places>,
    pub activity: Rc<Activity>,
    /// All shards'.
    pub admission: Arc<Admission>,
    /// Descriptors from here on are not for clients' connections; set once all shards have got theirs.
    client_fd_end: Cell<RawFd>,
    /// That something of ours was missing for a connection to a runner.
    pub want_told: RefCell<Turn>,
    pub live: Rc<Live>,
    /// What was learnt before these is old.
    pub changes: Record,
    pub questions: Questions,
    pub request_ids: RequestIds,
    pub log: Log,
    pub draining: Cell<bool>,
    /// Who waits for new connections, and ends that when the shard drains.
    accepter: RefCell<Option<Waker>>,
    /// New connections may come, or be waiting.
    listening: Cell<bool>,
    /// Why one of the tasks it cannot be without has ended; for whoever reads the mail.
    broken: Cell<Option<io::Error>>,
    /// How often a signed link has ended or changed: what is being asked about links meanwhile is not to be kept.
    pub links_changed: Cell<u64>,
    /// Connections that wait for their next request with a buffer.
    pub warm: Warm,
    /// How many messages a turn of the loop sends.
    pub turns: Turns,
}

impl Shard {
    /// One of everything, empty. Its tasks and its ring are [`run`]'s.
    pub fn new(
        index: usize,
        config: Arc<Config>,
        admission: Arc<Admission>,
        driver: Driver,
        up: mpsc::Sender<ToControl>,
        log: LogSender,
    ) -> Self {
        let limits = config.limits.clone();
        let (counters, deadlines) = (Rc::new(Counters::default()), Deadlines::new());
        let idle_ticks = (limits.runner_idle.as_millis() / TICK.as_millis()) as u32;
        Self {
            index,
            route_rules: RouteRules {
                toolbox_only: config.toolbox_only,
                own_sessions: config.cookie_mode == CookieMode::Isolated,
            },
            scheme: match config.protocol {
                Scheme::Http => "http",
                Scheme::Https => "https",
            },
            buffers: Buffers::new(limits.bulk_buffers_max, limits.pipes_max),
            live: Live::new(deadlines.clone()),
            deadlines,
            pool: Pool::new(limits.runner_idle_max, idle_ticks),
            verdicts: RefCell::new(Verdicts::new(limits.sandbox_cache_max, limits.verdict_cache_max)),
            cookie_keys: CookieKeys::new(
                config.api_key.expose(),
                config.cookie_keys.iter().map(|key| key.expose()),
            ),
            places: RefCell::new(Places::new(limits.sandbox_cache_max)),
            activity: Activity::new(config.activity_interval, config.tunnel_activity_bytes),
            admission,
            client_fd_end: Cell::new(RawFd::MAX),
            want_told: RefCell::default(),
            changes: Record::new(CHANGES_MAX),
            questions: Questions::new(up, limits.questions_max),
            request_ids: RequestIds::new(),
            log: Log::new(config.access_log, config.slow, log, counters.clone()),
            draining: Cell::new(false),
            accepter: RefCell::default(),
            listening: Cell::new(true),
            broken: Cell::new(None),
            links_changed: Cell::new(0),
            warm: Warm::new(if driver == Driver::Epoll { 0 } else { WARM_MAX }),
            turns: Turns::new(driver != Driver::Epoll, counters.clone()),
            counters,
            config,
        }
    }
}

#[cfg(test)]
impl Shard {
    /// A shard that nothing runs and whose questions nobody answers, with these settings beside those that must be.
    pub(crate) fn alone(driver: Driver, settings: &[(&str, &str)]) -> Rc<Self> {
        use crate::config::Environment;
        use crate::log_writer::LogWriter;
        let required = [
            ("PROXY_PORT", "1"),
            ("PROXY_PROTOCOL", "http"),
            ("PROXY_API_KEY", "a-key-that-opens-nothing-anywhere-0"),
            ("DAYTONA_API_URL", "http://127.0.0.1:1/api"),
        ];
        let environment = Environment::from_iter(required.into_iter().chain(settings.iter().copied()));
        let config = Arc::new(Config::from_env(&environment).expect("the settings are good"));
        let log = LogWriter::spawn("log", Box::new(io::sink()), 1).expect("a thread");
        let admission = Arc::new(Admission::new(&config.admission));
        Rc::new(Self::new(0, config, admission, driver, mpsc::channel(1).0, log.sender()))
    }
}

impl Shard {
    /// What is known of the sandbox is old, and so is what is being asked.
    fn changed(&self, sandbox: &SandboxId, change: Change) {
        self.changes.note(*sandbox);
        let (flag, place) = match change {
            Change::Public | Change::Private => (true, false),
            Change::Runner => (false, true),
            // That the flag is what it was changes nothing about it.
            Change::State(said) => (said.public != Some(true), true),
        };
        if flag {
            self.verdicts.borrow_mut().evict(sandbox);
        }
        if place {
            self.places.borrow_mut().remove(sandbox);
        }
    }

    fn forget(&self) {
        self.changes.note_all();
        self.verdicts.borrow_mut().clear();
        self.places.borrow_mut().clear();
    }
}

/// What a shard's thread is started with.
pub struct Start {
    pub index: usize,
    pub config: Arc<Config>,
    /// Shared by all shards.
    pub admission: Arc<Admission>,
    pub driver: Driver,
    /// The CPU to stay on.
    pub core: Option<core_affinity::CoreId>,
    pub listener: OwnedFd,
    /// Told once the shard has all descriptors that are its own; then it waits for [`ToShard::Accept`].
    pub ready: std::sync::mpsc::Sender<()>,
    pub down: Arc<Down>,
    pub up: mpsc::Sender<ToControl>,
    pub log: LogSender,
}

/// Runs a shard on this thread until it is told to stop.
pub fn run(start: Start) -> io::Result<()> {
    sys::block_signals()?;
    if let Some(core) = start.core {
        // Refused in some containers; then the kernel places the thread.
        core_affinity::set_for_current(core);
    }
    ring::block_on(start.driver, main(start))?
}

async fn main(start: Start) -> io::Result<()> {
    let Start { index, config, admission, driver, core: _, listener, ready, down, up, log } = start;
    let shard = Rc::new(Shard::new(index, config, admission, driver, up, log));
    // Held back so that at the limit of descriptors a connection can still be taken and turned away.
    let listener = Listener { socket: Socket::new(listener)?, reserve: reserve() };
    let _set = readiness::open()?;
    let counting = shard.clone();
    monoio::spawn(async move { counting.turns.count().await });
    let ending = shard.clone();
    monoio::spawn(async move { ending.deadlines.end_revoked().await });
    monoio::spawn(keep_time(shard.clone(), Ticker::new(TICK)?, down.clone()));
    let bell = Socket::new(down.bell().try_clone_to_owned()?)?;
    // Who is gone hears of no end either.
    let _ = ready.send(());
    drop(ready);
    let ended = mail(&shard, &down, &bell, listener).await;
    shard.deadlines.abort_answers();
    ended
}

/// Reads the control plane's messages until `Stop`.
async fn mail(shard: &Rc<Shard>, down: &Arc<Down>, bell: &Socket, listener: Listener) -> io::Result<()> {
    let mut listener = Some(listener);
    loop {
        // Emptied before the queue is, so that no ring is missed.
        let _ = rustix::io::read(bell.fd(), &mut [0u8; 8]);
        while let Some(message) = down.pop() {
            match message {
                ToShard::Answer { ticket, reply, keep } => shard.questions.answer(ticket, reply, keep),
                ToShard::Changed { sandbox, change } => {
                    shard.changed(&sandbox, change);
                    shard.live.changed(shard, &sandbox, change);
                }
                ToShard::LinkChanged { token, port } => {
                    shard.links_changed.set(shard.links_changed.get() + 1);
                    shard.verdicts.borrow_mut().links.remove(&(token, port));
                    shard.live.link_changed(shard, token, port);
                }
                ToShard::Forget => {
                    shard.forget();
                    shard.live.forgotten();
                }
                ToShard::Canary(sent) => shard.counters.invalidation_lag(sent.elapsed()),
                ToShard::Report(sender) => {
                    gauges(shard);
                    // A scrape that gave up needs no answer.
                    let _ = sender.send(Box::new((*shard.counters).clone()));
                    shard.counters.loop_stall_us.set(0);
                }
                ToShard::Accept { client_fd_end, idle_fd_end } => {
                    shard.client_fd_end.set(client_fd_end);
                    shard.pool.keep_below(idle_fd_end);
                    if let Some(listener) = listener.take() {
                        monoio::spawn(accept(shard.clone(), listener, down.clone()));
                    }
                }
                ToShard::Drain => {
                    if listener.take().is_some() {
                        shard.listening.set(false);
                    }
                    shard.draining.set(true);
                    shard.pool.clear(&shard.counters);
                    if let Some(accepter) = shard.accepter.take() {
                        accepter.wake();
                    }
                }
                ToShard::LastWords => {
                    let told = shard.deadlines.revoke_who_tell_why(Revoked::Draining);
                    add(&shard.counters.revoked[Revoked::Draining as usize], told as u64);
                }
                ToShard::Stop => {
                    shard.log.hand_over();
                    return Ok(());
                }
            }
        }
        if let Some(error) = shard.broken.take() {
            return Err(error);
        }
        bell.readable().await?;
    }
}

fn gauges(shard: &Shard) {
    shard.counters.connections_open.set(shard.deadlines.clients() as u64);
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    shard.counters.cpu_us.set(cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1000);
    let entries = &shard.counters.cache_entries;
    let verdicts = shard.verdicts.borrow();
    entries[CacheKind::Public as usize].set(verdicts.public.len() as u64);
    entries[CacheKind::Verdict as usize].set(verdicts.proofs.len() as u64);
    entries[CacheKind::SignedLink as usize].set(verdicts.links.len() as u64);
    entries[CacheKind::Runner as usize].set(shard.places.borrow().len() as u64);
}

struct Listener {
    socket: Socket,
    reserve: Option<std::fs::File>,
}

fn reserve() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}

/// A shard that accepts no more though nobody told it so would be missed by those alone who are given to it: it ends.
async fn accept(shard: Rc<Shard>, mut listener: Listener, down: Arc<Down>) {
    if let Err(error) = accept_all(&shard, &mut listener).await
        && !shard.draining.get()
    {
        ends(&shard, &down, error);
    }
    // Dropped alone it would be closed some turns later.
    listener.socket.shutdown(rustix::net::Shutdown::Both);
    shard.listening.set(false);
}

/// Until the shard drains and the queue is empty: closing a listener resets whoever waits in it, with a request sent
/// already. Where others come as fast, those who were there when the drain began have been taken by [`DRAIN_ACCEPTS`]. An
/// error: listening ended by itself.
async fn accept_all(
    shard: &Rc<Shard>,
    Listener { socket: listener, reserve: kept }: &mut Listener,
) -> io::Result<()> {
    let mut batches_left = DRAIN_ACCEPTS.div_ceil(ACCEPT_BATCH);
    loop {
        if shard.draining.get() {
            if batches_left == 0 {
                return Ok(());
            }
            batches_left -= 1;
            turns::pass().await;
        } else {
            turns::in_turn(connections_or_drain(shard, listener)).await?;
        }
        let draining = shard.draining.get();
        match accept_some(shard, listener) {
            Ok(Queue::Empty) if draining => return Ok(()),
            Ok(_) => {}
            Err(_) => {
                drop(kept.take());
                let told = turn_some_away(shard, listener, if draining { ACCEPT_BATCH } else { 1 });
                *kept = reserve();
                if !draining {
                    monoio::time::sleep(TICK).await;
                } else if told != Some(Queue::More) {
                    // What is left cannot even be told.
                    return Ok(());
                }
            }
        }
    }
}

/// A connection may be waiting, or the shard drains.
async fn connections_or_drain(shard: &Shard, listener: &Socket) -> io::Result<()> {
    let mut readable = pin!(listener.readable());
    poll_fn(|cx| {
        if shard.draining.get() {
            return Poll::Ready(Ok(()));
        }
        *shard.accepter.borrow_mut() = Some(cx.waker().clone());
        readable.as_mut().poll(cx)
    })
    .await
}

/// What is left to accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Queue {
    Empty,
    /// Perhaps.
    More,
}

/// As many as one turn bears. An error: there may be more, but nothing to take them with.
fn accept_some(shard: &Rc<Shard>, listener: &Socket) -> io::Result<Queue> {
    for _ in 0..ACCEPT_BATCH {
        match socket::try_accept(listener.fd()) {
            Ok(Some((fd, peer))) => accepted(shard, fd, peer.ip()),
            Ok(None) => return Ok(Queue::Empty),
            Err(error) => {
                add(&shard.counters.accept_failures, 1);
                return Err(error);
            }
        }
    }
    Ok(Queue::More)
}

/// Takes no more than one descriptor at a time. `None`: there is not even one.
fn turn_some_away(shard: &Shard, listener: &Socket, most: u32) -> Option<Queue> {
    for _ in 0..most {
        let (fd, _) = match socket::try_accept(listener.fd()) {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return Some(Queue::Empty),
            Err(_) => return None,
        };
        shed(shard, &fd);
    }
    Some(Queue::More)
}

pub(crate) fn accepted(shard: &Rc<Shard>, fd: OwnedFd, peer: std::net::IpAddr) {
    add(&shard.counters.accepted, 1);
    let full = shard.deadlines.clients() >= shard.config.limits.connections_max;
    // The kernel gives out the lowest number that is free: it says how many are in use.
    if full || fd.as_raw_fd() >= shard.client_fd_end.get() {
        shed(shard, &fd);
        return;
    }
    let trusted = shard.config.trusted_proxies.iter().any(|net| net.contains(&peer));
    // A trusted peer's connections are many clients'.
    let held = match shard.admission.client_connection(peer.into()) {
        _ if trusted => None,
        Ok(held) => held.map(Box::new),
        Err(_) => {
            add(&shard.counters.limited[Limit::ClientConnections as usize], 1);
            client::turn_away(shard, &fd, Cause::Limited(Limit::ClientConnections, 1));
            return;
        }
    };
    match Socket::new(fd) {
        Ok(socket) => {
            let client = Client::new(shard, socket, peer, trusted, held);
            monoio::spawn(Contained::new(client::serve(shard.clone(), client)));
        }
        Err(_) => add(&shard.counters.accept_failures, 1),
    }
}

fn shed(shard: &Shard, fd: &OwnedFd) {
    add(&shard.counters.connections_shed, 1);
    client::turn_away(shard, fd, Cause::Overloaded);
}

/// The shard is no use any more.
fn ends(shard: &Shard, down: &Down, error: io::Error) {
    shard.broken.set(Some(error));
    down.ring();
}

/// A shard whose clock stands still would have no deadlines: it ends.
async fn keep_time(shard: Rc<Shard>, ticker: Ticker, down: Arc<Down>) {
    if let Err(error) = tick(&shard, ticker).await {
        ends(&shard, &down, error);
    }
}

/// Deadlines, idle connections, log batches; and how late it is, which shows when something held the shard up.
async fn tick(shard: &Rc<Shard>, mut ticker: Ticker) -> io::Result<()> {
    let mut told = false;
    loop {
        let late = ticker.next().await?.as_micros() as u64;
        let counters = &shard.counters;
        counters.loop_stall_us.set(counters.loop_stall_us.get().max(late));
        let rested = |others: Duration| {
            counters.loop_stall_us.set(counters.loop_stall_us.get().max(others.as_micros() as u64));
            ticker.rested();
        };
        shard.deadlines.sweep(&shard.draining, counters, rested).await;
        shard.warm.tick();
        shard.activity.look(shard.deadlines.now(), &shard.questions, counters);
        shard.live.tick(shard);
        if shard.deadlines.now().is_multiple_of(POOL_SWEEP_TICKS) {
            shard.pool.sweep(shard.deadlines.now(), counters);
            shard.buffers.trim();
            sys::give_memory_back();
        }
        shard.log.hand_over();
        if !shard.listening.get() && shard.deadlines.clients() == 0 && !told {
            told = shard.questions.tell(ToControl::Drained { shard: shard.index });
        }
    }
}
