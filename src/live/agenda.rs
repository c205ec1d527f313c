//! What is live, found by its sandbox and by when it is to be looked at again.
//!
//! Both orders are kept sorted beside the entries, so that neither a change nor a tick reads them all, and what has
//! waited longest comes first, wherever it stands. Knows no shard and no clock: ticks are given.

use super::Pass;
use crate::grant::Basis;
use crate::ids::SandboxId;
use std::collections::{BTreeSet, HashSet};

#[derive(Default)]
pub struct Agenda {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// By [`mark`], then place. Equal marks of different sandboxes cost a comparison.
    by_sandbox: BTreeSet<(u32, u32)>,
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
    pub fn enter(&mut self, entry: Entry) -> u32 {
        let (mark, check_at) = (mark(entry.pass.sandbox()), entry.check_at);
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
        self.by_sandbox.insert((mark, index));
        self.by_time.insert((check_at, index));
        index
    }

    pub fn leave(&mut self, index: u32) {
        let Some(entry) = self.entries[index as usize].take() else { return };
        self.by_sandbox.remove(&(mark(entry.pass.sandbox()), index));
        self.by_time.remove(&(entry.check_at, index));
        self.free.push(index);
    }

    fn of(&self, sandbox: &SandboxId) -> impl Iterator<Item = (u32, &Entry)> {
        let mark = mark(sandbox);
        let places = self.by_sandbox.range((mark, 0)..=(mark, u32::MAX)).map(|(_, index)| *index);
        let entries = places.filter_map(|index| Some((index, self.entries[index as usize].as_ref()?)));
        entries.filter(move |(_, entry)| entry.pass.sandbox() == sandbox)
    }

    /// One of each right by which something of the sandbox is live.
    pub fn passes(&self, sandbox: &SandboxId) -> Vec<Pass> {
        let mut seen = HashSet::new();
        let first_of_each = self.of(sandbox).filter(|(_, entry)| seen.insert(&entry.pass.basis));
        first_of_each.map(|(_, entry)| entry.pass.clone()).collect()
    }

    /// Sandboxes of which something rests on this. Reads all there is.
    pub fn resting_on(&self, basis: &Basis) -> HashSet<SandboxId> {
        let entries = self.entries.iter().flatten().filter(|entry| entry.pass.basis == *basis);
        entries.map(|entry| *entry.pass.sandbox()).collect()
    }

    /// Looks at, and may change, every entry of the sandbox.
    pub fn each(&mut self, sandbox: &SandboxId, mut change: impl FnMut(&mut Entry)) {
        let places: Vec<u32> = self.of(sandbox).map(|(index, _)| index).collect();
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

fn mark(sandbox: &SandboxId) -> u32 {
    let bytes = sandbox.as_bytes().iter();
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::Place;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const SANDBOXES: u32 = 10_000;
    const PER_TICK: usize = 128;
    const EVERY: u32 = 300;

    fn id(n: u32) -> SandboxId {
        SandboxId::parse(format!("sandbox-{n}").as_bytes()).expect("an id")
    }

    fn entry(n: u32, check_at: u32) -> Entry {
        let pass = Pass {
            place: Place::somewhere(id(n)),
            basis: Basis::Public,
            client_ip: Ipv4Addr::LOCALHOST.into(),
        };
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

    proptest! {
        /// Both orders always hold exactly the entries, and what is due is taken in order.
        #[test]
        fn both_orders_agree_with_the_entries(
            steps in proptest::collection::vec((0u32..6, 0u32..40, any::<bool>()), 1..200),
        ) {
            let mut agenda = Agenda::default();
            let mut places = Vec::new();
            for (now, (n, at, leaves)) in (0u32..).zip(steps) {
                match (leaves, places.pop()) {
                    (true, Some(place)) => agenda.leave(place),
                    (_, kept) => {
                        places.extend(kept);
                        places.push(agenda.enter(entry(n, at)));
                    }
                }
                let first = agenda.by_time.first().map(|(at, _)| *at);
                let taken = agenda.take_due(now, now + 5, 1);
                prop_assert_eq!(taken.is_empty(), first.is_none_or(|at| at > now));
                prop_assert_eq!(agenda.by_time.len(), places.len());
                prop_assert_eq!(agenda.by_sandbox.len(), places.len());
                let all: usize = (0..6).map(|n| agenda.of(&id(n)).count()).sum();
                prop_assert_eq!(all, places.len());
                for (at, place) in &agenda.by_time {
                    prop_assert_eq!(agenda.entries[*place as usize].as_ref().map(|e| e.check_at), Some(*at));
                }
            }
        }
    }
}
