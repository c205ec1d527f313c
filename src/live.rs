//! What goes on for long, and by what right: tunnels, streams and uploads of this shard, so that they end when the
//! right does.
//!
//! A request that is answered in one go is not in here. When a sandbox changes, what its live connections rest on is
//! found out again, and once more when the API has forgotten its own memory; without news it is found out whenever a
//! verdict would have run out. What no longer holds is cut. That the API cannot say is no reason to cut a terminal
//! somebody works in, unless something has changed: then it must say within [`DOUBT_TICKS`].

use crate::counters::{Revoked, add};
use crate::deadlines::{Deadlines, TICK};
use crate::grant::{Basis, Holds, holds};
use crate::ids::SandboxId;
use crate::mailbox::Change;
use crate::shard::Shard;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Sandboxes looked at at once.
const CHECKS_MAX: usize = 64;
/// Sandboxes whose time has come that are taken up in one tick: the rate of look-ups without news is bounded.
const DUE_PER_TICK_MAX: usize = 64;
/// Every entry is looked at once in so many ticks.
const ROUND_TICKS: usize = 10;
/// After a change the API may answer from its own memory for 3 s: then it is asked once more.
const SETTLED_TICKS: u32 = 37;
/// How soon the API is asked again that could not say.
const AGAIN_TICKS: u32 = 10;
/// For so long a changed sandbox's connections live on while the API cannot say whether they may.
const DOUBT_TICKS: u32 = 300;

/// What is live on a shard. Costs about 250 bytes and the token per entry; there are no more than connections.
pub struct Live {
    deadlines: Rc<Deadlines>,
    entries: RefCell<Vec<Option<Entry>>>,
    /// By entry, so that a search for a sandbox's entries reads four bytes for each.
    marks: RefCell<Vec<u32>>,
    free: RefCell<Vec<u32>>,
    queue: RefCell<VecDeque<SandboxId>>,
    queued: RefCell<HashSet<SandboxId>>,
    checks: Cell<usize>,
}

struct Entry {
    pass: Pass,
    /// Of the client's connection in the deadline table.
    watch: u32,
    /// In ticks.
    check_at: u32,
    /// Since when it is not known whether the right still holds, and something changed.
    doubt_since: Option<u32>,
}

/// By what right.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass {
    pub sandbox: SandboxId,
    pub basis: Basis,
    /// For the API's own limits.
    pub client_ip: IpAddr,
}

/// A live connection; it is over when this is dropped.
pub struct Alive {
    live: Rc<Live>,
    index: u32,
}

impl Live {
    pub fn new(deadlines: Rc<Deadlines>) -> Rc<Self> {
        Rc::new(Self {
            deadlines,
            entries: RefCell::default(),
            marks: RefCell::default(),
            free: RefCell::default(),
            queue: RefCell::default(),
            queued: RefCell::default(),
            checks: Cell::new(0),
        })
    }

    /// `watch` is the connection's place in the deadline table, which it keeps for as long as the result lives.
    /// `check_in`: when to find out again without news.
    pub fn enter(self: &Rc<Self>, pass: Pass, watch: u32, check_in: Duration) -> Alive {
        let mark = mark(&pass.sandbox);
        let entry =
            Entry { pass, watch, check_at: self.deadlines.now() + ticks(check_in), doubt_since: None };
        let mut entries = self.entries.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                entries[index as usize] = Some(entry);
                self.marks.borrow_mut()[index as usize] = mark;
                index
            }
            None => {
                entries.push(Some(entry));
                self.marks.borrow_mut().push(mark);
                entries.len() as u32 - 1
            }
        };
        Alive { live: self.clone(), index }
    }

    fn of(&self, sandbox: &SandboxId) -> Vec<usize> {
        let (marks, entries, wanted) = (self.marks.borrow(), self.entries.borrow(), mark(sandbox));
        let candidates = marks.iter().enumerate().filter(|(_, mark)| **mark == wanted).map(|(at, _)| at);
        candidates
            .filter(|at| entries[*at].as_ref().is_some_and(|entry| entry.pass.sandbox == *sandbox))
            .collect()
    }

    /// Its entries, one of each right.
    fn passes(&self, sandbox: &SandboxId) -> Vec<Pass> {
        let entries = self.entries.borrow();
        let mut passes: Vec<Pass> = Vec::new();
        let mut seen = HashSet::new();
        for at in self.of(sandbox) {
            if let Some(Entry { pass, .. }) = &entries[at]
                && seen.insert(&pass.basis)
            {
                passes.push(pass.clone());
            }
        }
        passes
    }

    /// Changes every entry of the sandbox that rests on `basis` (`None`: on anything).
    fn each(&self, sandbox: &SandboxId, basis: Option<&Basis>, mut change: impl FnMut(&mut Entry)) {
        let at = self.of(sandbox);
        let mut entries = self.entries.borrow_mut();
        for at in at {
            if let Some(entry) = &mut entries[at]
                && basis.is_none_or(|basis| entry.pass.basis == *basis)
            {
                change(entry);
            }
        }
    }

    /// Ends them, and counts them.
    fn cut(&self, shard: &Shard, sandbox: &SandboxId, basis: Option<&Basis>, why: Revoked) {
        let mut watches = Vec::new();
        self.each(sandbox, basis, |entry| watches.push(entry.watch));
        // Each at most once: it stays in the table until its task has seen the end.
        let ended = watches.into_iter().filter(|watch| self.deadlines.revoke(*watch, why)).count();
        add(&shard.counters.revoked[why as usize], ended as u64);
    }

    fn enqueue(&self, sandbox: SandboxId) {
        if self.queued.borrow_mut().insert(sandbox) {
            self.queue.borrow_mut().push_back(sandbox);
        }
    }

    /// The sandbox changed.
    pub fn changed(self: &Rc<Self>, shard: &Rc<Shard>, sandbox: &SandboxId, change: Change) {
        match change {
            Change::Runner => return,
            Change::Ended(why) => return self.cut(shard, sandbox, None, why),
            Change::Public | Change::State => {}
        }
        let now = self.deadlines.now();
        let mut any = false;
        self.each(sandbox, None, |entry| {
            any = true;
            entry.doubt_since.get_or_insert(now);
        });
        if any {
            self.enqueue(*sandbox);
            self.pump(shard);
        }
    }

    /// One tick: takes up what is due, a part of all entries at a time.
    pub fn tick(self: &Rc<Self>, shard: &Rc<Shard>) {
        let now = self.deadlines.now();
        let mut due = Vec::new();
        let first = now as usize % ROUND_TICKS;
        for entry in self.entries.borrow_mut().iter_mut().skip(first).step_by(ROUND_TICKS).flatten() {
            if entry.check_at <= now && due.len() < DUE_PER_TICK_MAX {
                // Asked again if nobody says anything else meanwhile.
                entry.check_at = now + AGAIN_TICKS * 10;
                due.push(entry.pass.sandbox);
            }
        }
        if !due.is_empty() {
            due.into_iter().for_each(|sandbox| self.enqueue(sandbox));
            self.pump(shard);
        }
    }

    fn pump(self: &Rc<Self>, shard: &Rc<Shard>) {
        while self.checks.get() < CHECKS_MAX {
            let Some(sandbox) = self.queue.borrow_mut().pop_front() else { return };
            // What changes from here on is a check of its own.
            self.queued.borrow_mut().remove(&sandbox);
            self.checks.set(self.checks.get() + 1);
            let (live, shard) = (self.clone(), shard.clone());
            monoio::spawn(async move {
                live.check(&shard, &sandbox).await;
                live.checks.set(live.checks.get() - 1);
                live.pump(&shard);
            });
        }
    }

    async fn check(&self, shard: &Shard, sandbox: &SandboxId) {
        let mut passes = self.passes(sandbox).into_iter();
        let find_out = |pass: Pass| async move {
            let holds = holds(shard, &pass).await;
            (pass.basis, holds)
        };
        let mut asked: FuturesUnordered<_> = passes.by_ref().take(CHECKS_MAX).map(find_out).collect();
        while let Some((basis, holds)) = asked.next().await {
            self.settle(shard, sandbox, &basis, holds);
            asked.extend(passes.next().map(find_out));
        }
    }

    fn settle(&self, shard: &Shard, sandbox: &SandboxId, basis: &Basis, holds: Holds) {
        let now = self.deadlines.now();
        let mut doubtful_for_too_long = false;
        match holds {
            Holds::Yes => self.each(sandbox, Some(basis), |entry| {
                let next = ticks(basis.lifetime(&shard.config));
                entry.check_at = now + if entry.doubt_since.take().is_some() { SETTLED_TICKS } else { next };
            }),
            Holds::No => self.cut(shard, sandbox, Some(basis), basis.revoked()),
            Holds::NobodyKnows => self.each(sandbox, Some(basis), |entry| {
                entry.check_at = now + AGAIN_TICKS;
                doubtful_for_too_long |=
                    entry.doubt_since.is_some_and(|since| now.saturating_sub(since) >= DOUBT_TICKS);
            }),
        }
        if doubtful_for_too_long {
            self.cut(shard, sandbox, Some(basis), Revoked::Undecided);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.live.entries.borrow_mut()[self.index as usize] = None;
        self.live.marks.borrow_mut()[self.index as usize] = 0;
        self.live.free.borrow_mut().push(self.index);
    }
}

/// Never 0, which marks a free place. Equal marks of different sandboxes cost a comparison.
fn mark(sandbox: &SandboxId) -> u32 {
    let folded = sandbox
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    folded.max(1)
}

fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX / 2).clamp(1, u32::MAX / 2)
}
