//! Which sandboxes changed lately: what was learnt of one before its last change is not to be kept.
//!
//! Bounded: when there are too many, the oldest are forgotten, and everything learnt before them counts as changed.
//! Knows no clock: a stamp is a time or a count, as long as it only grows.

use crate::ids::SandboxId;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};

pub struct Changes<T> {
    last: HashMap<SandboxId, T>,
    /// Oldest first; a sandbox that changed again stands in it again.
    order: VecDeque<(SandboxId, T)>,
    /// Up to here anything may have changed.
    floor: Option<T>,
    entries_max: usize,
}

impl<T: Copy + Ord> Changes<T> {
    /// Remembers at most `entries_max` changes, about 200 bytes each.
    pub fn new(entries_max: usize) -> Self {
        Self { last: HashMap::new(), order: VecDeque::new(), floor: None, entries_max }
    }

    /// The sandbox changed at `at`, which is not before any earlier stamp.
    pub fn note(&mut self, sandbox: SandboxId, at: T) {
        self.last.insert(sandbox, at);
        self.order.push_back((sandbox, at));
        while self.order.len() > self.entries_max {
            let Some((sandbox, at)) = self.order.pop_front() else { return };
            if self.last.get(&sandbox) == Some(&at) {
                self.last.remove(&sandbox);
                self.floor = self.floor.max(Some(at));
            }
        }
    }

    /// Anything may have changed up to `at`.
    pub fn note_all(&mut self, at: T) {
        self.last.clear();
        self.order.clear();
        self.floor = self.floor.max(Some(at));
    }

    /// Has the sandbox changed, or may it have, at `at` or later?
    pub fn since(&self, sandbox: &SandboxId, at: T) -> bool {
        self.floor >= Some(at) || self.last(sandbox).is_some_and(|last| last >= at)
    }

    /// Its last change, if it is remembered.
    pub fn last(&self, sandbox: &SandboxId) -> Option<T> {
        // The usual case: nothing happened anywhere.
        if self.last.is_empty() { None } else { self.last.get(sandbox).copied() }
    }
}

/// A shard's own record: changes are counted, so that what was learnt before one is told apart from what was learnt
/// after it whatever the clock says.
pub struct Record {
    changes: RefCell<Changes<u64>>,
    count: Cell<u64>,
}

/// A moment between two changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsOf(u64);

impl Record {
    /// See [`Changes::new`].
    pub fn new(entries_max: usize) -> Self {
        Self { changes: RefCell::new(Changes::new(entries_max)), count: Cell::new(0) }
    }

    pub fn now(&self) -> AsOf {
        AsOf(self.count.get() + 1)
    }

    pub fn note(&self, sandbox: SandboxId) {
        self.count.set(self.count.get() + 1);
        self.changes.borrow_mut().note(sandbox, self.count.get());
    }

    pub fn note_all(&self) {
        self.count.set(self.count.get() + 1);
        self.changes.borrow_mut().note_all(self.count.get());
    }

    /// Has the sandbox changed, or may it have, since this was learnt?
    pub fn is_old(&self, sandbox: &SandboxId, learnt: AsOf) -> bool {
        // The usual case: nothing happened anywhere.
        learnt.0 <= self.count.get() && self.changes.borrow().since(sandbox, learnt.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u32) -> SandboxId {
        SandboxId::parse(format!("s{n}").as_bytes()).expect("an id")
    }

    #[test]
    fn what_was_learnt_before_a_change_is_old_and_what_was_learnt_after_is_not() {
        let mut changes = Changes::new(8);
        assert!(!changes.since(&id(1), 0));
        changes.note(id(1), 5);
        assert!(changes.since(&id(1), 4) && changes.since(&id(1), 5) && !changes.since(&id(1), 6));
        assert!(!changes.since(&id(2), 0));
        changes.note_all(7);
        assert!(changes.since(&id(2), 7) && !changes.since(&id(2), 8));
        assert_eq!(changes.last(&id(1)), None);
    }

    #[test]
    fn a_record_tells_before_from_after_one_change() {
        let record = Record::new(8);
        let before = record.now();
        record.note(id(1));
        assert!(record.is_old(&id(1), before) && !record.is_old(&id(2), before));
        let after = record.now();
        assert!(!record.is_old(&id(1), after));
        record.note_all();
        assert!(record.is_old(&id(2), after) && !record.is_old(&id(2), record.now()));
    }

    proptest! {
        /// Against one that never forgets: it may say "changed" too often, never too seldom, and holds its bound.
        #[test]
        fn a_change_is_never_denied_and_the_bound_holds(
            sandboxes in proptest::collection::vec(0u32..20, 1..200), entries_max in 1usize..16,
        ) {
            let mut changes = Changes::new(entries_max);
            let mut all = HashMap::new();
            for (at, n) in sandboxes.into_iter().enumerate() {
                changes.note(id(n), at);
                all.insert(n, at);
                prop_assert!(changes.order.len() <= entries_max && changes.last.len() <= entries_max);
            }
            for n in 0..20 {
                for at in 0..200 {
                    let changed = all.get(&n).is_some_and(|last| *last >= at);
                    prop_assert!(!changed || changes.since(&id(n), at));
                }
            }
        }
    }
}
