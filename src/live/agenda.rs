//! What is live, found by its sandbox and by when it is to be looked at again.
//!
//! The orders are kept sorted beside the entries, so that neither a change nor a tick nor an answer reads more of them than
//! it is about, and what has waited longest comes first, wherever it stands. Knows no shard and no clock: ticks are given.

use super::Pass;
use crate::grant::Basis;
use crate::ids::SandboxId;
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};

#[derive(Default)]
pub struct Agenda {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    marks: RandomState,
    /// By the mark of the sandbox, that of the right, then place. Equal marks of different ones cost a comparison.
    by_right: BTreeSet<(u32, u32, u32)>,
    /// Those that rest on a signed link, by the mark of that, then place.
    by_link: BTreeSet<(u32, u32)>,
    /// By tick, then place.
    by_time: BTreeSet<(u32, u32)>,
}

pub struct Entry {
    pub pass: Pass,
    /// Of the client's connection in the deadline table.
    pub watch: u32,
    /// In ticks.
    pub check_at: u32,
    /// The API may answer from its own memory: what it says now is asked once more.
    pub asks_twice: bool,
    /// Since when it is not known whether the right still holds, and something changed.
    pub doubt_since: Option<u32>,
    /// Number of the last news about it, or of the look that left it to a later one: what a look that began before says
    /// for the right says nothing about them.
    pub news: u64,
}

impl Agenda {
    fn mark(&self, of: impl Hash) -> u32 {
        self.marks.hash_one(of) as u32
    }

    fn marks(&self, pass: &Pass) -> (u32, u32) {
        (self.mark(pass.sandbox()), self.mark(&pass.basis))
    }

    pub fn enter(&mut self, entry: Entry) -> u32 {
        let (sandbox, right) = self.marks(&entry.pass);
        let (is_link, check_at) = (entry.pass.basis.is_link(), entry.check_at);
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() as u32 - 1
            }
        };
        self.by_right.insert((sandbox, right, index));
        self.by_time.insert((check_at, index));
        if is_link {
            self.by_link.insert((right, index));
        }
        index
    }

    pub fn leave(&mut self, index: u32) {
        let Some(entry) = self.entries[index as usize].take() else { return };
        let (sandbox, right) = self.marks(&entry.pass);
        self.by_right.remove(&(sandbox, right, index));
        self.by_time.remove(&(entry.check_at, index));
        self.by_link.remove(&(right, index));
        self.free.push(index);
    }

    fn at(&self, index: u32) -> Option<&Entry> {
        self.entries[index as usize].as_ref()
    }

    fn of(&self, sandbox: &SandboxId) -> impl Iterator<Item = (u32, &Entry)> {
        let mark = self.mark(sandbox);
        let places =
            self.by_right.range((mark, 0, 0)..=(mark, u32::MAX, u32::MAX)).map(|(_, _, index)| *index);
        let entries = places.filter_map(|index| Some((index, self.at(index)?)));
        entries.filter(move |(_, entry)| entry.pass.sandbox() == sandbox)
    }

    fn of_right(&self, sandbox: &SandboxId, basis: &Basis) -> impl Iterator<Item = u32> {
        let (sandbox_mark, right) = (self.mark(sandbox), self.mark(basis));
        let range = (sandbox_mark, right, 0)..=(sandbox_mark, right, u32::MAX);
        let places = self.by_right.range(range).map(|(_, _, index)| *index);
        places.filter(move |index| {
            self.at(*index).is_some_and(|entry| entry.pass.sandbox() == sandbox && entry.pass.basis == *basis)
        })
    }

    /// One of each right by which something of the sandbox is live.
    pub fn passes(&self, sandbox: &SandboxId) -> Vec<Pass> {
        let mut seen = HashSet::new();
        let first_of_each = self.of(sandbox).filter(|(_, entry)| seen.insert(&entry.pass.basis));
        first_of_each.map(|(_, entry)| entry.pass.clone()).collect()
    }

    /// Sandboxes of which something rests on this signed link.
    pub fn resting_on_link(&self, link: &Basis) -> HashSet<SandboxId> {
        let mark = self.mark(link);
        let places = self.by_link.range((mark, 0)..=(mark, u32::MAX)).map(|(_, index)| *index);
        let entries = places.filter_map(|index| self.at(index)).filter(|entry| entry.pass.basis == *link);
        entries.map(|entry| *entry.pass.sandbox()).collect()
    }

    /// Looks at, and may change, every entry of the sandbox.
    pub fn each(&mut self, sandbox: &SandboxId, change: impl FnMut(&mut Entry)) {
        let places: Vec<u32> = self.of(sandbox).map(|(index, _)| index).collect();
        self.change(places, change);
    }

    /// Looks at, and may change, every entry of the sandbox that rests on this.
    pub fn each_resting_on(&mut self, sandbox: &SandboxId, basis: &Basis, change: impl FnMut(&mut Entry)) {
        let places: Vec<u32> = self.of_right(sandbox, basis).collect();
        self.change(places, change);
    }

    fn change(&mut self, places: Vec<u32>, mut change: impl FnMut(&mut Entry)) {
        for index in places {
            let Some(entry) = &mut self.entries[index as usize] else { continue };
            let before = entry.check_at;
            change(entry);
            if entry.check_at != before {
                self.by_time.remove(&(before, index));
                self.by_time.insert((entry.check_at, index));
            }
        }
    }

    /// At most so many sandboxes, the longest due first. What is due of them now is due again at `next`.
    pub fn take_due(&mut self, now: u32, next: u32, sandboxes_max: usize) -> Vec<SandboxId> {
        let mut taken = Vec::new();
        while taken.len() < sandboxes_max {
            let Some((at, index)) = self.by_time.first().copied().filter(|(at, _)| *at <= now) else { break };
            let Some(entry) = &self.entries[index as usize] else {
                debug_assert!(false, "what has left has no time");
                self.by_time.remove(&(at, index));
                continue;
            };
            let sandbox = *entry.pass.sandbox();
            self.each(&sandbox, |entry| {
                if entry.check_at <= now {
                    entry.check_at = next;
                }
            });
            taken.push(sandbox);
        }
        taken
    }

    /// Everything is due, and once more later. `news`: the number of what made it so.
    pub fn all_due(&mut self, now: u32, news: u64) {
        for entry in self.entries.iter_mut().flatten() {
            entry.check_at = entry.check_at.min(now);
            entry.asks_twice = true;
            entry.news = news;
        }
        let entries = self.entries.iter().enumerate();
        self.by_time =
            entries.filter_map(|(index, entry)| Some((entry.as_ref()?.check_at, index as u32))).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::Place;
    use crate::ids::{Port, SignedToken};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const SANDBOXES: u32 = 10_000;
    const PER_TICK: usize = 128;
    const EVERY: u32 = 300;

    fn id(n: u32) -> SandboxId {
        SandboxId::parse(format!("sandbox-{n}").as_bytes()).expect("an id")
    }

    fn entry(n: u32, check_at: u32) -> Entry {
        resting_on(Basis::Public, n, check_at)
    }

    fn resting_on(basis: Basis, n: u32, check_at: u32) -> Entry {
        let pass = Pass { place: Place::somewhere(id(n)), basis, client_ip: Ipv4Addr::LOCALHOST.into() };
        Entry { pass, watch: n, check_at, asks_twice: false, doubt_since: None, news: 0 }
    }

    /// The worst lateness, in ticks, of all looks in so many ticks, when each look ends at once.
    fn worst_lateness(agenda: &mut Agenda, due: &mut [u32], ticks: u32) -> u32 {
        let place = |sandbox: &SandboxId| -> usize {
            sandbox.as_str().trim_start_matches("sandbox-").parse().expect("a number")
        };
        let mut worst = 0;
        for now in 1..=ticks {
            for sandbox in agenda.take_due(now, now + EVERY * 10, PER_TICK) {
                let due = &mut due[place(&sandbox)];
                worst = worst.max(now - *due);
                *due = now + EVERY;
                agenda.each(&sandbox, |entry| entry.check_at = now + EVERY);
            }
        }
        assert!(due.iter().all(|due| *due + worst >= ticks), "somebody was never taken up");
        worst
    }

    #[test]
    fn each_of_ten_thousand_sandboxes_is_taken_up_within_the_bound_wherever_it_stands() {
        // All due in the same tick, as after news were lost: the last waits for the others, 79 ticks.
        let mut agenda = Agenda::default();
        for n in 0..SANDBOXES {
            agenda.enter(entry(n, 1));
        }
        let mut due = vec![1; SANDBOXES as usize];
        let bound = SANDBOXES.div_ceil(PER_TICK as u32);
        assert_eq!(worst_lateness(&mut agenda, &mut due, 3000), bound - 1);
        // Begun one after the other, as visitors come: nobody waits.
        let mut agenda = Agenda::default();
        let mut due: Vec<_> = (0..SANDBOXES).map(|n| 1 + n % EVERY).collect();
        for n in 0..SANDBOXES {
            agenda.enter(entry(n, due[n as usize]));
        }
        assert_eq!(worst_lateness(&mut agenda, &mut due, 3000), 0);
    }

    #[test]
    fn one_sandbox_with_many_connections_costs_one_look() {
        let mut agenda = Agenda::default();
        for _ in 0..1000 {
            agenda.enter(entry(1, 1));
        }
        agenda.enter(entry(2, 1));
        assert_eq!(agenda.take_due(1, 9, 2), [id(1), id(2)]);
        assert_eq!(agenda.take_due(8, 20, 2), []);
        assert_eq!(agenda.passes(&id(1)).len(), 1);
        agenda.all_due(3, 1);
        assert_eq!(agenda.take_due(3, 20, 9), [id(1), id(2)]);
    }

    fn link(n: u32) -> Basis {
        let label = SandboxId::parse(format!("a1b2c3d4e5f6g7h{n}").as_bytes()).expect("a label");
        let token = SignedToken::of_label(&label).expect("a token");
        Basis::Link { token, port: Port::parse(b"3000").expect("a port") }
    }

    proptest! {
        /// The orders always hold exactly the entries, and what is due is taken in order.
        #[test]
        fn the_orders_agree_with_the_entries(
            steps in proptest::collection::vec((0u32..6, 0u32..3, 0u32..40, any::<bool>()), 1..200),
        ) {
            let rights = [Basis::Public, link(1), link(2)];
            let mut agenda = Agenda::default();
            let mut places: Vec<(u32, SandboxId, &Basis)> = Vec::new();
            for (now, (n, right, at, leaves)) in (0u32..).zip(steps) {
                match (leaves, places.pop()) {
                    (true, Some((place, ..))) => agenda.leave(place),
                    (_, kept) => {
                        places.extend(kept);
                        let basis = &rights[right as usize];
                        places.push((agenda.enter(resting_on(basis.clone(), n, at)), id(n), basis));
                    }
                }
                for basis in &rights {
                    let of_it = || places.iter().filter(|(_, _, with)| *with == basis);
                    for n in 0..6 {
                        let mut seen = 0;
                        agenda.each_resting_on(&id(n), basis, |entry| {
                            assert!(*entry.pass.sandbox() == id(n) && entry.pass.basis == *basis);
                            seen += 1;
                        });
                        prop_assert_eq!(seen, of_it().filter(|(_, sandbox, _)| *sandbox == id(n)).count());
                    }
                    let resting: HashSet<_> = of_it().map(|(_, sandbox, _)| *sandbox).collect();
                    let expected = if basis.is_link() { resting } else { HashSet::new() };
                    prop_assert_eq!(agenda.resting_on_link(basis), expected);
                }
                let first = agenda.by_time.first().map(|(at, _)| *at);
                let taken = agenda.take_due(now, now + 5, 1);
                prop_assert_eq!(taken.is_empty(), first.is_none_or(|at| at > now));
                prop_assert_eq!(agenda.by_time.len(), places.len());
                prop_assert_eq!(agenda.by_right.len(), places.len());
                let all: usize = (0..6).map(|n| agenda.of(&id(n)).count()).sum();
                prop_assert_eq!(all, places.len());
                for (at, place) in &agenda.by_time {
                    prop_assert_eq!(agenda.entries[*place as usize].as_ref().map(|e| e.check_at), Some(*at));
                }
            }
        }
    }
}
