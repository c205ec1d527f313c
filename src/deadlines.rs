//! Every wait on a peer has its deadline here: one table per shard, swept ten times a second.
//!
//! Arming a deadline is one store; nothing is queued, nothing is cancelled. When one passes, the sweep shuts the
//! socket down, so the pending wait returns by itself and nothing in flight is ever dropped; the reason stands in
//! the table. The sweep also notices clients that left while their request waits for the runner or the control plane.
//!
//! Thousands may end at the same moment, by one deadline or by one news: each costs calls and wakes a task, so they do in
//! pieces, between which the others have their turns.

use crate::counters::{Counters, Revoked, add};
use crate::{sys, turns};
use rustix::net::Shutdown;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Distance of two sweeps: deadlines are this exact.
pub const TICK: Duration = Duration::from_millis(100);
/// A request that waits longer than this for someone else has its client looked at.
const HANGUP_TICKS: u32 = 5;
/// What a revoked client is told at the end must be taken by it within this.
const LAST_WORDS_TICKS: u32 = 3;
/// The same as a time, with the tick in which it is noticed.
pub const LAST_WORDS: Duration = TICK.saturating_mul(LAST_WORDS_TICKS + 1);
/// What is done in one turn at least: 32 ends, each 44 us with what its task does then (8,000 tunnels that ended together). An
/// entry that is only passed weighs 1.
const TURN_WEIGHT: usize = 32 * END_WEIGHT;
const END_WEIGHT: usize = 1024;
const SUSPECT_WEIGHT: usize = 16;
/// After a turn of the others' that was longer, a third of its time.
const WEIGHT_PER_MICRO: usize = END_WEIGHT / 44 / 3;
const NEVER: u32 = 0;
const NO_FD: RawFd = -1;

/// Why a wait ended that nobody answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fired {
    /// The client did not send in time.
    ClientRead,
    /// The client did not take what was sent to it in time.
    ClientWrite,
    /// The runner did not connect or answer in time.
    Runner,
    /// The client left while others were being waited for.
    ClientGone,
    /// The right it was let in by is gone, or the gate itself is about to be.
    Revoked(Revoked),
}

/// Where the first byte of the next request would be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// In the socket, until its task takes it.
    InSocket,
    /// In a buffer of the ring's, which nobody sees before its task does. The wait is cancelled soon.
    InRing,
}

struct Entry {
    client: RawFd,
    runner: RawFd,
    read_by: u32,
    write_by: u32,
    /// Of a revoked connection whose client is being told why.
    last_words_by: u32,
    runner_by: u32,
    /// Tick since which the client's leaving matters; `NEVER`: it does not.
    waiting_since: u32,
    /// Between requests: may be closed for a drain.
    idle: Option<Idle>,
    /// When it is revoked its task tells the client why before the end.
    tells_why: bool,
    /// It is revoked and not ended yet.
    to_end: bool,
    /// The answer under way is whole only when the connection ends.
    ends_answer: bool,
    fired: Option<Fired>,
    waker: Option<Waker>,
}

impl Entry {
    fn is_revoked(&self) -> bool {
        matches!(self.fired, Some(Fired::Revoked(_)))
    }

    /// What was to end is over, whatever it was.
    fn rearm(&mut self) {
        (self.fired, self.to_end) = (None, false);
    }

    /// What was sent may still be on its way, but an answer that is cut short must not look whole.
    fn end_client(&self) {
        if self.ends_answer {
            sys::abort_raw(self.client);
        } else {
            sys::shutdown_raw(self.client, Shutdown::Both);
        }
    }

    /// Whom to wake.
    fn end_revoked(&mut self, now: u32) -> Option<Waker> {
        self.to_end = false;
        if self.tells_why {
            // Nothing more goes to the runner, and the task, woken, ends the rest. The client's side stays whole: its
            // bytes would be answered by a reset that takes the last words along.
            sys::shutdown_raw(self.runner, Shutdown::Write);
            self.last_words_by = now + LAST_WORDS_TICKS;
        } else {
            self.end_client();
            sys::shutdown_raw(self.runner, Shutdown::Both);
        }
        self.waker.take()
    }
}

/// One shard's table.
pub struct Deadlines {
    now: Cell<u32>,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    /// Entries that name a client.
    clients: Cell<usize>,
    /// Places of revoked entries, in the order in which they are ended.
    to_end: RefCell<VecDeque<u32>>,
    /// Who ends them.
    ender: RefCell<Option<Waker>>,
}

impl Deadlines {
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1),
            entries: RefCell::default(),
            free: RefCell::default(),
            clients: Cell::new(0),
            to_end: RefCell::default(),
            ender: RefCell::default(),
        })
    }

    /// A place for one client connection; the descriptor must stay open as long as the result lives.
    pub fn watch(self: &Rc<Self>, client: RawFd) -> Watch {
        let entry = Entry {
            client,
            runner: NO_FD,
            read_by: NEVER,
            write_by: NEVER,
            last_words_by: NEVER,
            runner_by: NEVER,
            waiting_since: NEVER,
            idle: None,
            tells_why: false,
            to_end: false,
            ends_answer: false,
            fired: None,
            waker: None,
        };
        if client != NO_FD {
            self.clients.set(self.clients.get() + 1);
        }
        let mut entries = self.entries.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                entries[index as usize] = entry;
                index
            }
            None => {
                entries.push(entry);
                entries.len() as u32 - 1
            }
        };
        Watch { table: self.clone(), index }
    }

    /// Client connections there are, tunnels included.
    pub fn clients(&self) -> usize {
        self.clients.get()
    }

    /// A place for a wait on which no client depends.
    pub fn nobody(self: &Rc<Self>) -> Watch {
        self.watch(NO_FD)
    }

    /// Revokes a connection, which is marked at once and ended by [`Self::end_revoked`]. `false`: it was revoked already.
    pub fn revoke(&self, index: u32, why: Revoked) -> bool {
        self.revoke_entry(&mut self.entries.borrow_mut()[index as usize], index, why)
    }

    /// Revokes all that can tell their clients why; how many. The rest ends by itself or when the process does.
    pub fn revoke_who_tell_why(&self, why: Revoked) -> usize {
        let mut entries = self.entries.borrow_mut();
        let who = (0..).zip(entries.iter_mut()).filter(|(_, entry)| entry.client != NO_FD && entry.tells_why);
        who.filter_map(|(index, entry)| self.revoke_entry(entry, index, why).then_some(())).count()
    }

    fn revoke_entry(&self, entry: &mut Entry, index: u32, why: Revoked) -> bool {
        if entry.is_revoked() {
            return false;
        }
        (entry.fired, entry.to_end) = (Some(Fired::Revoked(why)), true);
        let mut to_end = self.to_end.borrow_mut();
        to_end.push_back(index);
        if to_end.len() == 1
            && let Some(ender) = &*self.ender.borrow()
        {
            ender.wake_by_ref();
        }
        true
    }

    /// Ends all connections whose end would else make the answer under way look whole. Nothing is served any more.
    pub fn abort_answers(&self) {
        let entries = self.entries.borrow();
        entries.iter().filter(|entry| entry.ends_answer).for_each(Entry::end_client);
    }

    /// A task of the shard's own: ends revoked connections and those to the runner they use, both ways; where the task
    /// tells the client why, only the way to the runner is, see [`Watch::tells_why`]. The first ones in the turn in which they
    /// are revoked. Never ends.
    pub async fn end_revoked(&self) {
        loop {
            poll_fn(|cx| {
                if !self.to_end.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.ender.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            let mut others = Duration::ZERO;
            while self.end_some(others) {
                others = others_turn().await;
            }
        }
    }

    /// As many as one turn bears after one so long of the others'. Are there more?
    pub fn end_some(&self, others: Duration) -> bool {
        let now = self.now.get();
        let mut wakers = Vec::new();
        let more = {
            let (mut entries, mut to_end) = (self.entries.borrow_mut(), self.to_end.borrow_mut());
            let mut room = share(others) / END_WEIGHT;
            while room > 0
                && let Some(index) = to_end.pop_front()
            {
                let entry = &mut entries[index as usize];
                // Others may have the place since, or the same one another request.
                if entry.to_end {
                    room -= 1;
                    wakers.extend(entry.end_revoked(now));
                }
            }
            !to_end.is_empty()
        };
        wakers.into_iter().for_each(Waker::wake);
        more
    }

    /// Ticks since start: a clock of one tick's exactness for free.
    pub fn now(&self) -> u32 {
        self.now.get()
    }

    /// One tick: fires what is due, and counts it. With `drain`, idle connections end too, but for those whose next request
    /// is here. `rested` hears of every turn that was left to others meanwhile, and how long it was.
    pub async fn sweep(&self, drain: &Cell<bool>, counters: &Counters, mut rested: impl FnMut(Duration)) {
        self.now.set(self.now.get() + 1);
        let (mut at, mut others) = (0, Duration::ZERO);
        loop {
            let (fired, next) = self.sweep_some(at, drain.get(), share(others));
            add(&counters.deadlines, fired);
            let Some(next) = next else { return };
            at = next;
            others = others_turn().await;
            rested(others);
        }
    }

    /// From this place on, and of such a weight. How many fired, and where to go on.
    fn sweep_some(&self, from: usize, drain: bool, room: usize) -> (u64, Option<usize>) {
        let now = self.now.get();
        let mut fired = 0;
        let (mut idlers, mut suspects) = (Vec::new(), Vec::new());
        let mut wakers = Vec::new();
        let mut entries = self.entries.borrow_mut();
        let (mut weight, mut next) = (0, None);
        for (at, entry) in entries.iter_mut().enumerate().skip(from) {
            if weight >= room {
                next = Some(at);
                break;
            }
            weight += 1;
            if entry.client == NO_FD {
                continue;
            }
            if due(entry.last_words_by, now) {
                weight += END_WEIGHT;
                // The reason is known already; it was not said or not taken in time.
                entry.end_client();
                sys::shutdown_raw(entry.runner, Shutdown::Both);
                entry.last_words_by = NEVER;
                wakers.extend(entry.waker.take());
            }
            let ends_idle = entry.idle.is_some() && due(entry.read_by, now);
            if ends_idle || (drain && entry.idle == Some(Idle::InSocket)) {
                weight += END_WEIGHT;
                idlers.push((at, entry.client));
                continue;
            }
            let reason = if due(entry.read_by, now) {
                sys::shutdown_raw(entry.client, Shutdown::Read);
                entry.read_by = NEVER;
                Fired::ClientRead
            } else if due(entry.write_by, now) {
                entry.end_client();
                entry.write_by = NEVER;
                Fired::ClientWrite
            } else if due(entry.runner_by, now) {
                sys::shutdown_raw(entry.runner, Shutdown::Both);
                entry.runner_by = NEVER;
                Fired::Runner
            } else {
                if entry.waiting_since != NEVER && now - entry.waiting_since >= HANGUP_TICKS {
                    weight += SUSPECT_WEIGHT;
                    suspects.push((at, entry.client));
                }
                continue;
            };
            weight += END_WEIGHT;
            fired += 1;
            entry.fired.get_or_insert(reason);
            wakers.extend(entry.waker.take());
        }
        for (at, has_bytes) in sys::readable(&idlers) {
            // Its task is about to take them; without the reading side the rest of that request would never come.
            if !has_bytes {
                // Only the reading side: what was sent may still be on its way.
                sys::shutdown_raw(entries[at].client, Shutdown::Read);
                entries[at].read_by = NEVER;
            }
        }
        for (at, gone) in sys::hung_up(&suspects) {
            let entry = &mut entries[at];
            if gone {
                entry.fired.get_or_insert(Fired::ClientGone);
                sys::shutdown_raw(entry.runner, Shutdown::Both);
                wakers.extend(entry.waker.take());
            }
            // Looked at again after as long a wait.
            entry.waiting_since = if gone { NEVER } else { now };
        }
        drop(entries);
        wakers.into_iter().for_each(Waker::wake);
        (fired, next)
    }

    #[cfg(test)]
    pub fn end_all(&self) {
        while self.end_some(Duration::ZERO) {}
    }

    /// A tick and all that comes of it at once, where there is no shard.
    #[cfg(test)]
    pub fn sweep_at_once(&self, drain: bool) {
        self.now.set(self.now.get() + 1);
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.sweep_some(at, drain, TURN_WEIGHT).1;
        }
        self.end_all();
    }
}

/// What a turn bears after one so long of the others'.
fn share(others: Duration) -> usize {
    // A machine that stood still was not the others'.
    let micros = others.min(TICK).as_micros() as usize;
    micros.saturating_mul(WEIGHT_PER_MICRO).max(TURN_WEIGHT)
}

/// Leaves the others a turn; how long it was.
async fn others_turn() -> Duration {
    let begun = Instant::now();
    turns::pass().await;
    begun.elapsed()
}

/// Rounded up; what does not fit is for ever. In 64 bits: `Duration` counts in 128, whose division is a call, and this
/// is done several times a request.
fn ticks(wait: Duration) -> u32 {
    const TICK_MILLIS: u64 = TICK.as_millis() as u64;
    let millis = wait.as_secs().saturating_mul(1000).saturating_add(u64::from(wait.subsec_millis()));
    let begun = u64::from(!wait.subsec_nanos().is_multiple_of(1_000_000));
    u32::try_from(millis.saturating_add(begun).div_ceil(TICK_MILLIS)).unwrap_or(u32::MAX)
}

fn due(by: u32, now: u32) -> bool {
    by != NEVER && by <= now
}

/// One connection's place in the table. Dropping it takes it out; keep it no longer than the sockets it names.
pub struct Watch {
    table: Rc<Deadlines>,
    index: u32,
}

impl Watch {
    fn with<R>(&self, change: impl FnOnce(&mut Entry) -> R) -> R {
        change(&mut self.table.entries.borrow_mut()[self.index as usize])
    }

    fn by(&self, within: Option<Duration>) -> u32 {
        match within {
            None => NEVER,
            Some(wait) => self.table.now.get().saturating_add(ticks(wait)).saturating_add(1),
        }
    }

    /// The answer under way has no other end than the connection's: until it is whole, whoever closes that resets it, and so
    /// does whatever else ends it.
    pub fn ends_answer(&self, does: bool) {
        self.with(|e| e.ends_answer = does);
    }

    /// For [`Deadlines::revoke`].
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The client must send something within this. `None` disarms, here and below.
    pub fn client_reads(&self, within: Option<Duration>) {
        let by = self.by(within);
        self.with(|e| e.read_by = by);
    }

    /// The client must take something within this.
    pub fn client_writes(&self, within: Option<Duration>) {
        let by = self.by(within);
        self.with(|e| e.write_by = by);
    }

    /// The attached runner must connect or answer within this.
    pub fn runner_answers(&self, within: Option<Duration>) {
        let by = self.by(within);
        self.with(|e| e.runner_by = by);
    }

    /// Between requests, for at most this long.
    pub fn idle(&self, idle: Idle, within: Duration) {
        let by = self.by(Some(within));
        self.with(|e| {
            e.rearm();
            (e.idle, e.read_by) = (Some(idle), by);
        });
    }

    /// A request's first byte is here, or the connection has become a tunnel.
    pub fn busy(&self) {
        self.with(|e| (e.idle, e.read_by) = (None, NEVER));
    }

    /// Its head is here; what ended the one before it on this connection is over.
    pub fn begins(&self) {
        self.with(|e| {
            e.rearm();
            (e.idle, e.read_by) = (None, NEVER);
        });
    }

    /// The runner connection this client's request uses now; the socket must stay open until [`Self::detach`].
    pub fn attach(&self, runner: RawFd) {
        self.with(|e| e.runner = runner);
    }

    /// As [`Self::attach`], [`Self::runner_answers`] and [`Self::waits_for_others`] at once.
    pub fn waits_for_runner(&self, runner: RawFd, within: Option<Duration>) {
        let (by, since) = (self.by(within), self.table.now.get());
        self.with(|e| (e.runner, e.runner_by, e.waiting_since) = (runner, by, since));
    }

    /// Nothing is waited for of it any more.
    pub fn detach(&self) {
        self.with(|e| (e.runner, e.runner_by, e.waiting_since) = (NO_FD, NEVER, NEVER));
    }

    /// From now on somebody else is waited for: the client's leaving ends that wait.
    pub fn waits_for_others(&self, waits: bool) {
        let since = if waits { self.table.now.get() } else { NEVER };
        self.with(|e| e.waiting_since = since);
    }

    /// From now on the task of this connection, woken by this, tells its client why it is revoked. From the mark on it takes
    /// nothing more to the runner, and of what the runner sends no more than what the last words need before them. When its
    /// turn to end comes the way to the runner is shut down, and the task has 0.4 s for the rest.
    pub fn tells_why(&self, waker: &Waker) {
        self.with(|e| (e.tells_why, e.waker) = (true, Some(waker.clone())));
    }

    /// The last words are said; the client may close as well within this.
    pub fn told_why(&self, within: Duration) {
        let by = self.by(Some(within));
        self.with(|e| (e.to_end, e.last_words_by, e.read_by) = (false, NEVER, by));
    }

    /// Why the right is gone, if it is.
    pub fn revoked(&self) -> Option<Revoked> {
        match self.fired() {
            Some(Fired::Revoked(why)) => Some(why),
            _ => None,
        }
    }

    pub fn fired(&self) -> Option<Fired> {
        self.with(|e| e.fired)
    }

    /// The cause was dealt with; another wait begins.
    pub fn unfire(&self) {
        self.with(Entry::rearm);
    }

    /// Wakes this task when something fires (for waits that have no socket).
    pub fn wake_on_fire(&self, waker: &Waker) {
        self.with(|e| e.waker = Some(waker.clone()));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (client, cut) = self.with(|e| {
            (e.runner, e.waker, e.to_end) = (NO_FD, None, false);
            (std::mem::replace(&mut e.client, NO_FD), std::mem::take(&mut e.ends_answer))
        });
        if client != NO_FD {
            self.table.clients.set(self.table.clients.get() - 1);
        }
        // An answer that is cut short must not end as a whole one does. Of whose task meets a fault of ours none is known to
        // be whole.
        if cut || std::thread::panicking() {
            sys::reset_on_close_raw(client);
        }
        self.table.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests;
