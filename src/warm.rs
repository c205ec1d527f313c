//! Connections that wait for their next request with a buffer in the ring's hands.
//!
//! Such a wait saves a system call where the next request comes at once, and costs a small buffer and the request's
//! state where it does not: bounded here in number and in time.

use monoio::io::{CancelHandle, Canceller};
use std::cell::{Cell, RefCell};

/// On a ring, per shard. Costs a small buffer and about 5 KB each, for two ticks behind the last request; what a burst of
/// connections leaves of it stays resident for a while, so it is no more than the small buffers that are kept anyway.
pub const WARM_MAX: usize = 256;
/// For so many ticks one may wait in silence.
pub const WARM_TICKS: u32 = 2;

pub struct Warm {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    now: Cell<u32>,
    max: usize,
}

#[derive(Default)]
struct Slot {
    /// Tick of the wait's begin; `None`: nothing to cancel.
    since: Option<u32>,
    canceller: Canceller,
}

/// One that waits so; over when dropped.
pub struct Place<'a> {
    warm: &'a Warm,
    index: usize,
}

impl Warm {
    /// `max` 0: none may; on epoll a receive is a wait and a call like any other.
    pub fn new(max: usize) -> Self {
        Self { slots: RefCell::default(), free: RefCell::default(), now: Cell::new(0), max }
    }

    /// How many wait so.
    pub fn open(&self) -> usize {
        self.slots.borrow().len() - self.free.borrow().len()
    }

    pub fn has_room(&self) -> bool {
        self.open() < self.max
    }

    /// `None`: enough wait so already.
    pub fn enter(&self) -> Option<Place<'_>> {
        let mut slots = self.slots.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => index,
            None if slots.len() < self.max => {
                slots.push(Slot::default());
                slots.len() - 1
            }
            None => return None,
        };
        Some(Place { warm: self, index })
    }

    /// One tick: cancels the waits that have lasted for long enough.
    pub fn tick(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        let mut slots = self.slots.borrow_mut();
        for slot in slots.iter_mut().filter(|s| s.since.is_some_and(|since| now - since >= WARM_TICKS)) {
            slot.since = None;
            // The task awaits the receive's result, which is the bytes if they were faster.
            drop(std::mem::take(&mut slot.canceller).cancel());
        }
    }
}

impl Place<'_> {
    /// The wait begins, to be cancelled through this.
    pub fn wait(&self) -> CancelHandle {
        let slot = &mut self.warm.slots.borrow_mut()[self.index];
        slot.since = Some(self.warm.now.get());
        slot.canceller.handle()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.warm.slots.borrow_mut()[self.index].since = None;
        self.warm.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_wait_and_places_come_back() {
        let warm = Warm::new(2);
        let one = warm.enter().expect("room for one");
        let two = warm.enter().expect("room for two");
        assert!(!warm.has_room() && warm.enter().is_none());
        drop(one);
        let three = warm.enter().expect("room again");
        drop((two, three));
        assert_eq!((warm.open(), warm.slots.borrow().len()), (0, 2));
        assert!(Warm::new(0).enter().is_none());
    }
}
