//! How many messages a turn of the shard's loop sends.
//!
//! A message that is alone is sent at once, by a call. Where a turn has many, each is left to the ring, which sends them
//! one after another at the turn's end: no call for each, the CPU's caches hold what all of them need, and a peer is woken
//! once for all of its own. One alone would only take a turn more that way.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// So many in a turn are many.
const MANY: u32 = 16;

pub struct Turns {
    ring: bool,
    /// So far in this turn.
    sent: Cell<u32>,
    /// In the last one that had any.
    before: Cell<u32>,
    ends: RefCell<Option<Waker>>,
}

impl Turns {
    /// Without a ring every message is alone.
    pub fn new(ring: bool) -> Self {
        Self { ring, sent: Cell::new(0), before: Cell::new(0), ends: RefCell::default() }
    }

    /// One more message is to be sent: had it better leave with the others of this turn? There are about as many of them
    /// as in the turn before.
    pub fn joins_others(&self) -> bool {
        let sent = self.sent.get() + 1;
        self.sent.set(sent);
        if sent == 1
            && let Some(ends) = &*self.ends.borrow()
        {
            ends.wake_by_ref();
        }
        self.ring && sent.max(self.before.get()) >= MANY
    }

    /// A task of the shard's own: it comes to its turn behind all that were awake when the first message was sent, and
    /// then the next turn begins.
    pub async fn count(&self) {
        poll_fn(|cx| {
            let sent = self.sent.take();
            if sent > 0 {
                self.before.set(sent);
            }
            let mut ends = self.ends.borrow_mut();
            if !ends.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *ends = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;
    use std::rc::Rc;
    use std::time::Duration;

    /// Who sends so many in one turn: how many of them are to leave together.
    fn send(turns: &Turns, messages: u32) -> usize {
        (0..messages).filter(|_| turns.joins_others()).count()
    }

    #[test]
    fn what_leaves_together_is_many_in_this_turn_or_the_one_before() {
        on_a_shard(|| async {
            let turns = Rc::new(Turns::new(true));
            let counting = turns.clone();
            monoio::spawn(async move { counting.count().await });
            let next_turn = || monoio::time::sleep(Duration::ZERO);
            next_turn().await;
            assert_eq!(send(&turns, MANY - 1), 0);
            assert_eq!(send(&turns, 2), 2, "they are the last of many");
            next_turn().await;
            // A turn in which nothing is sent says nothing.
            next_turn().await;
            assert_eq!(send(&turns, 3), 3, "they come behind many");
            next_turn().await;
            assert_eq!(send(&turns, MANY - 1), 0, "they come behind few");
            assert_eq!(send(&Turns::new(false), 2 * MANY), 0, "there is no ring");
        });
    }
}
