//! What goes on for long, and by what right: tunnels, streams and uploads of this shard, so that they end when the
//! right does.
//!
//! A request that is answered in one go is not in here. News that say by themselves which right is gone cut what rests
//! on it at once. Where they only say that something changed, what the sandbox's live connections rest on is found out
//! again, and once more when the API has forgotten its own memory; without news it is found out whenever a verdict
//! would have run out. What no longer holds is cut. That the API cannot say is no reason to cut a terminal somebody
//! works in, unless something has changed: then it must say within [`DOUBT_TICKS`].

mod agenda;

use crate::activity::Place;
use crate::counters::{Revoked, add};
use crate::deadlines::{Deadlines, TICK};
use crate::grant::{Basis, Holds, holds};
use crate::ids::{Port, SandboxId, SignedToken};
use crate::mailbox::{Change, ProofKind, Said, TokenHash};
use crate::shard::Shard;
use agenda::{Agenda, Entry};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Changed sandboxes looked at at once.
const CHANGED_MAX: usize = 64;
/// Sandboxes whose time has come that are looked at at once, and that are taken up in one tick: the rate of look-ups
/// without news is bounded. With n live sandboxes all due at once the last is taken up n / 128 ticks later.
const DUE_MAX: usize = 128;
/// Rights of one sandbox that are asked about at once.
const PASSES_MAX: usize = 16;
/// An API that takes longer cannot say.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After a change the API may answer from its own memory for 3 s: then it is asked once more.
const SETTLED_TICKS: u32 = 37;
/// How soon the API is asked again that could not say.
const AGAIN_TICKS: u32 = 10;
/// How soon a sandbox is taken up again whose look has not come to an end.
const OVERDUE_TICKS: u32 = 100;
/// For so long a changed sandbox's connections live on while the API cannot say whether they may.
const DOUBT_TICKS: u32 = 300;

/// What is live on a shard. Costs about 150 bytes and the token per entry; there are no more than connections.
pub struct Live {
    deadlines: Rc<Deadlines>,
    agenda: RefCell<Agenda>,
    /// Changed, and not looked at yet.
    changed: RefCell<VecDeque<SandboxId>>,
    waiting: RefCell<HashSet<SandboxId>>,
    /// Looks under way, at changed sandboxes and at due ones.
    changed_count: Cell<usize>,
    due_count: Cell<usize>,
    /// News so far, and looks that put off the last word.
    news: Cell<u64>,
}

/// By what right.
#[derive(Clone)]
pub struct Pass {
    /// Whose sandbox it is to; known once, whatever is live there.
    pub place: Rc<Place>,
    pub basis: Basis,
    /// For the API's own limits.
    pub client_ip: IpAddr,
}

impl Pass {
    pub fn sandbox(&self) -> &SandboxId {
        &self.place.sandbox
    }
}

/// A live connection; it is over when this is dropped.
pub struct Alive {
    live: Rc<Live>,
    index: u32,
}

/// Whose connections.
enum Of<'a> {
    All,
    Basis(&'a Basis),
    /// Preview tokens other than this one.
    TokensBut(TokenHash),
}

impl Live {
    pub fn new(deadlines: Rc<Deadlines>) -> Rc<Self> {
        Rc::new(Self {
            deadlines,
            agenda: RefCell::default(),
            changed: RefCell::default(),
            waiting: RefCell::default(),
            changed_count: Cell::new(0),
            due_count: Cell::new(0),
            news: Cell::new(0),
        })
    }

    /// The number of something new.
    fn number(&self) -> u64 {
        self.news.set(self.news.get() + 1);
        self.news.get()
    }

    /// `watch` is the connection's place in the deadline table, which it keeps for as long as the result lives.
    /// `check_in`: when to find out again without news. Whatever rests on the API's word is looked at once more when the
    /// API has forgotten its own memory: what it said so far may have been out of that, and news about it may be past.
    pub fn enter(self: &Rc<Self>, pass: Pass, watch: u32, check_in: Duration) -> Alive {
        let check_in = match pass.basis {
            Basis::Cookie { .. } => ticks(check_in),
            _ => ticks(check_in).min(SETTLED_TICKS),
        };
        let entry = Entry {
            pass,
            watch,
            check_at: self.deadlines.now() + check_in,
            asks_twice: false,
            doubt_since: None,
            news: 0,
        };
        Alive { index: self.agenda.borrow_mut().enter(entry), live: self.clone() }
    }

    /// Ends them, and counts them.
    fn cut(&self, shard: &Shard, sandbox: &SandboxId, of: Of<'_>, why: Revoked) {
        let mut watches = Vec::new();
        let mut agenda = self.agenda.borrow_mut();
        match of {
            Of::All => agenda.each(sandbox, |entry| watches.push(entry.watch)),
            Of::Basis(basis) => agenda.each_resting_on(sandbox, basis, |entry| watches.push(entry.watch)),
            Of::TokensBut(good) => agenda.each(sandbox, |entry| match &entry.pass.basis {
                Basis::Token { kind: ProofKind::PreviewToken, token }
                    if TokenHash::of(token.expose()) != good =>
                {
                    watches.push(entry.watch);
                }
                _ => {}
            }),
        }
        drop(agenda);
        // Each at most once: it stays in the table until its task has seen the end.
        let ended = watches.into_iter().filter(|watch| self.deadlines.revoke(*watch, why)).count();
        add(&shard.counters.revoked[why as usize], ended as u64);
    }

    /// The sandbox changed.
    pub fn changed(self: &Rc<Self>, shard: &Rc<Shard>, sandbox: &SandboxId, change: Change) {
        match change {
            Change::Runner => {}
            Change::Private => self.cut(shard, sandbox, Of::Basis(&Basis::Public), Revoked::Private),
            Change::Public => self.doubt(shard, sandbox, |basis| *basis == Basis::Public),
            Change::State(Said { ended: Some(why), .. }) => self.cut(shard, sandbox, Of::All, why),
            Change::State(said) => {
                if said.public == Some(false) {
                    self.cut(shard, sandbox, Of::Basis(&Basis::Public), Revoked::Private);
                }
                if let Some(good) = said.token {
                    self.cut(shard, sandbox, Of::TokensBut(good), Revoked::Token);
                }
                // Where it says nothing against a right, that is no proof that there is one.
                let flag_is_same = said.public == Some(true);
                self.doubt(shard, sandbox, |basis| !(flag_is_same && *basis == Basis::Public));
            }
        }
    }

    /// The signed link may be over.
    pub fn link_changed(self: &Rc<Self>, shard: &Rc<Shard>, token: SignedToken, port: Port) {
        let changed = Basis::Link { token, port };
        let sandboxes = self.agenda.borrow().resting_on_link(&changed);
        for sandbox in sandboxes {
            self.doubt(shard, &sandbox, |basis| *basis == changed);
        }
    }

    fn doubt(self: &Rc<Self>, shard: &Rc<Shard>, sandbox: &SandboxId, doubtful: impl Fn(&Basis) -> bool) {
        let (now, news) = (self.deadlines.now(), self.number());
        let mut any = false;
        self.agenda.borrow_mut().each(sandbox, |entry| {
            if doubtful(&entry.pass.basis) {
                any = true;
                entry.news = news;
                entry.asks_twice = true;
                entry.doubt_since.get_or_insert(now);
            }
        });
        if any && self.waiting.borrow_mut().insert(*sandbox) {
            self.changed.borrow_mut().push_back(*sandbox);
            self.look_at_changed(shard);
        }
    }

    /// News may have been missed: everything is looked at again, as fast as looks without news may be.
    pub fn forgotten(&self) {
        self.agenda.borrow_mut().all_due(self.deadlines.now(), self.number());
    }

    /// One tick: takes up what is due, the longest due first.
    pub fn tick(self: &Rc<Self>, shard: &Rc<Shard>) {
        let now = self.deadlines.now();
        let room = DUE_MAX - self.due_count.get();
        let due = self.agenda.borrow_mut().take_due(now, now + OVERDUE_TICKS, room);
        for sandbox in due {
            self.due_count.set(self.due_count.get() + 1);
            let (live, shard) = (self.clone(), shard.clone());
            monoio::spawn(async move {
                live.look(&shard, &sandbox).await;
                live.due_count.set(live.due_count.get() - 1);
            });
        }
    }

    fn look_at_changed(self: &Rc<Self>, shard: &Rc<Shard>) {
        while self.changed_count.get() < CHANGED_MAX {
            let Some(sandbox) = self.changed.borrow_mut().pop_front() else { return };
            // What changes from here on is a look of its own.
            self.waiting.borrow_mut().remove(&sandbox);
            self.changed_count.set(self.changed_count.get() + 1);
            let (live, shard) = (self.clone(), shard.clone());
            monoio::spawn(async move {
                live.look(&shard, &sandbox).await;
                live.changed_count.set(live.changed_count.get() - 1);
                live.look_at_changed(&shard);
            });
        }
    }

    /// Finds out what the sandbox's connections rest on, one of each right.
    async fn look(&self, shard: &Shard, sandbox: &SandboxId) {
        let as_of = self.news.get();
        let mut passes = self.agenda.borrow().passes(sandbox).into_iter();
        let find_out = |pass: Pass| async move {
            // Nothing is lost with a question that is withdrawn.
            let answered = monoio::time::timeout(ANSWER_WITHIN, holds(shard, &pass)).await;
            (pass.basis, answered.unwrap_or(Holds::NobodyKnows))
        };
        let mut asked: FuturesUnordered<_> = passes.by_ref().take(PASSES_MAX).map(find_out).collect();
        while let Some((basis, holds)) = asked.next().await {
            self.settle(shard, sandbox, &basis, holds, as_of);
            asked.extend(passes.next().map(find_out));
        }
    }

    /// `as_of`: the number of news when the look began.
    fn settle(&self, shard: &Shard, sandbox: &SandboxId, basis: &Basis, holds: Holds, as_of: u64) {
        let now = self.deadlines.now();
        let mut doubtful_for_too_long = false;
        let next = ticks(basis.lifetime(&shard.config));
        match holds {
            Holds::No => self.cut(shard, sandbox, Of::Basis(basis), basis.revoked()),
            Holds::Yes => self.agenda.borrow_mut().each_resting_on(sandbox, basis, |entry| {
                // What came meanwhile has a look of its own.
                if entry.news <= as_of {
                    entry.doubt_since = None;
                    entry.check_at = now + next;
                    if std::mem::take(&mut entry.asks_twice) {
                        entry.check_at = now + next.min(SETTLED_TICKS);
                        // No look that is under way puts that off.
                        entry.news = self.number();
                    }
                }
            }),
            Holds::NobodyKnows => self.agenda.borrow_mut().each_resting_on(sandbox, basis, |entry| {
                entry.check_at = now + AGAIN_TICKS;
                doubtful_for_too_long |=
                    entry.doubt_since.is_some_and(|since| now.saturating_sub(since) >= DOUBT_TICKS);
            }),
        }
        if doubtful_for_too_long {
            self.cut(shard, sandbox, Of::Basis(basis), Revoked::Undecided);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.live.agenda.borrow_mut().leave(self.index);
    }
}

fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX / 2).clamp(1, u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Driver;
    use std::net::Ipv4Addr;

    #[test]
    fn what_changed_is_cut_as_undecided_once_nobody_could_say_for_too_long_and_nothing_else_is() {
        let shard = Shard::alone(Driver::Epoll, &[]);
        let watches = [0; 2].map(|_| shard.deadlines.watch(-1));
        let [changed, same] = ["changed", "same"].map(|id| SandboxId::parse(id.as_bytes()).expect("an id"));
        let enter = |sandbox, watch: &crate::deadlines::Watch| {
            let place = Place::somewhere(sandbox);
            let pass = Pass { place, basis: Basis::Public, client_ip: Ipv4Addr::LOCALHOST.into() };
            shard.live.enter(pass, watch.index(), Duration::from_secs(30))
        };
        let _alive = [enter(changed, &watches[0]), enter(same, &watches[1])];
        let since = shard.deadlines.now();
        shard.live.agenda.borrow_mut().each(&changed, |entry| entry.doubt_since = Some(since));
        let ask = || {
            for sandbox in [&changed, &same] {
                shard.live.settle(&shard, sandbox, &Basis::Public, Holds::NobodyKnows, 0);
            }
            [watches[0].revoked(), watches[1].revoked()]
        };
        for _ in 1..DOUBT_TICKS {
            shard.deadlines.sweep_at_once(false);
            assert_eq!(ask(), [None; 2]);
        }
        shard.deadlines.sweep_at_once(false);
        assert_eq!(ask(), [Some(Revoked::Undecided), None]);
        let counted = |why: Revoked| shard.counters.revoked[why as usize].get();
        assert_eq!((counted(Revoked::Undecided), counted(Revoked::Private)), (1, 0));
    }
}
