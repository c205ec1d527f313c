//! How many connections of a shard may wait for their next request with a buffer in the ring's hands.
//!
//! Such a wait saves a system call where the next request comes at once, and costs a small buffer and the request's
//! state where it does not: bounded in number here and, by the deadline table, in time.

use std::cell::Cell;

/// On a ring, per shard. Costs a small buffer and about 5 KB each, for two ticks behind the last request; what a burst of
/// connections leaves of it stays resident for a while, so it is no more than the small buffers that are kept anyway.
pub const WARM_MAX: usize = 256;

pub struct Warm {
    open: Cell<usize>,
    max: usize,
}

/// One that waits so; over when dropped.
pub struct Place<'a>(&'a Warm);

impl Warm {
    /// `max` 0: none may; on epoll a receive is a wait and a call like any other.
    pub fn new(max: usize) -> Self {
        Self { open: Cell::new(0), max }
    }

    pub fn has_room(&self) -> bool {
        self.open.get() < self.max
    }

    /// `None`: enough wait so already.
    pub fn enter(&self) -> Option<Place<'_>> {
        self.has_room().then(|| {
            self.open.set(self.open.get() + 1);
            Place(self)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
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
        assert!(warm.enter().is_some());
        drop(two);
        assert_eq!(warm.open.get(), 0);
        assert!(Warm::new(0).enter().is_none());
    }
}
