//! The turns of a shard's loop: how many messages one sends, and how who has had enough of it ends one.
//!
//! A message that is alone is sent at once, by a call; left to the ring it would take a turn more. Where there are many in
//! a turn the ring sends them one after another at its end: no call for each, the CPU's caches hold what all of them need,
//! and a peer is woken once for all of its own. How many there will be is not known before, but about as many as last time.

use crate::counters::{Counters, add};
use crate::socket::Socket;
use crate::sys;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// So many in a turn are many. CPU of a request, sent together over sent at once (2-core AMD VM, 7 paired rounds): 1.04 with
/// two in a turn, 1.00 with some thirty, 0.94 with a hundred. Where calls are dearer the ring pays earlier.
const MANY: u32 = 16;

/// After the bell could not be waited for.
const RETRY: Duration = Duration::from_millis(1);

pub struct Turns {
    ring: bool,
    counters: Rc<Counters>,
    /// So far in this turn.
    sent: Cell<u32>,
    /// In the last one that had any.
    before: Cell<u32>,
    ends: RefCell<Option<Waker>>,
}

impl Turns {
    /// Without a ring every message is alone.
    pub fn new(ring: bool, counters: Rc<Counters>) -> Self {
        Self { ring, counters, sent: Cell::new(0), before: Cell::new(0), ends: RefCell::default() }
    }

    /// Does every wait give the others their turn? On epoll only what is not ready yet is waited for.
    pub fn waits_are_turns(&self) -> bool {
        self.ring
    }

    /// Counts a message that is to be sent: had it better leave together with others, through the ring?
    pub fn leaves_together(&self) -> bool {
        if !self.ring {
            return false;
        }
        let sent = self.sent.get().saturating_add(1);
        self.sent.set(sent);
        if sent == 1
            && let Some(ends) = &*self.ends.borrow()
        {
            ends.wake_by_ref();
        }
        let together = sent.max(self.before.get()) >= MANY;
        if together {
            add(&self.counters.sent_together, 1);
        }
        together
    }

    /// A task of the shard's own: it comes to its turn behind all that were awake when the first message was sent, and
    /// then the next turn begins. Never ends.
    pub async fn count(&self) {
        poll_fn(|cx| {
            self.before.set(self.sent.take());
            let mut ends = self.ends.borrow_mut();
            if !ends.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *ends = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// As after a turn of so many, where nobody counts.
    #[cfg(test)]
    pub fn follow(&self, many: bool) {
        self.before.set(if many { MANY } else { 0 });
        self.sent.set(0);
    }
}

thread_local! {
    /// Of the shard whose thread this is: whoever moves bytes has no way to it.
    static PASSES: RefCell<Option<Passes>> = const { RefCell::new(None) };
}

/// Who has ended his turn by himself, and what the loop hears of it by.
struct Passes {
    bell: Rc<Socket>,
    waiting: Vec<Waker>,
    /// So far.
    calls: u32,
}

/// Runs `main`, in which turns can be ended. On a shard's runtime, once. Takes a descriptor.
///
/// In one task with it, so that nothing of the ring outlives it: a shard's last closings leave when all of it is gone.
pub async fn provide<F: Future>(main: F) -> io::Result<F::Output> {
    let bell = Rc::new(Socket::new(sys::eventfd()?)?);
    PASSES.set(Some(Passes { bell: bell.clone(), waiting: Vec::new(), calls: 0 }));
    let _provided = Provided;
    let (mut calls, mut main) = (pin!(call(&bell)), pin!(main));
    let output = poll_fn(|cx| {
        // It never ends.
        let _ = calls.as_mut().poll(cx);
        main.as_mut().poll(cx)
    });
    Ok(output.await)
}

/// Wakes who waits, in a turn of its own. Never ends.
async fn call(bell: &Socket) {
    loop {
        if bell.readable().await.is_err() {
            // The ring could not wait, for want of memory.
            monoio::time::sleep(RETRY).await;
        }
        let _ = rustix::io::read(bell.fd(), &mut [0; 8]);
        let waiting = PASSES.with_borrow_mut(|passes| {
            let passes = passes.as_mut()?;
            passes.calls = passes.calls.wrapping_add(1);
            Some(std::mem::take(&mut passes.waiting))
        });
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

struct Provided;

impl Drop for Provided {
    fn drop(&mut self) {
        // While there is a runtime: with who waits go tasks and their sockets.
        drop(PASSES.take());
    }
}

/// Ends the turn: returns when the loop has asked the kernel what else there is, and all that was awake has run. A task that
/// wakes itself would not do: it goes to the front of the queue.
pub async fn pass() {
    let mut since = None;
    poll_fn(|cx| {
        let over = PASSES.with_borrow_mut(|passes| {
            // Nobody would call.
            let Some(passes) = passes else { return true };
            if let Some(since) = since {
                return passes.calls != since;
            }
            let rings = passes.waiting.is_empty();
            if rings && rustix::io::write(passes.bell.fd(), &1_u64.to_ne_bytes()).is_err() {
                return true;
            }
            passes.waiting.push(cx.waker().clone());
            since = Some(passes.calls);
            false
        });
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}

/// Waits, and if there was nothing to wait for ends the turn: whoever goes on for as long as there is something, which may
/// be for ever, leaves the others theirs here. A wait through the ring is one anyway; on epoll what is ready is ready at once.
pub async fn in_turn<W: Future>(wait: W) -> W::Output {
    let mut waited = false;
    let mut wait = pin!(wait);
    let output = poll_fn(|cx| {
        let polled = wait.as_mut().poll(cx);
        waited |= polled.is_pending();
        polled
    })
    .await;
    if !waited {
        pass().await;
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;

    /// Who sends so many: how many of them are to leave together.
    fn send(turns: &Turns, messages: u32) -> usize {
        (0..messages).filter(|_| turns.leaves_together()).count()
    }

    #[test]
    fn what_leaves_together_is_many_in_this_turn_or_the_one_before() {
        on_a_shard(|| async {
            let counters = Rc::new(Counters::default());
            let turns = Rc::new(Turns::new(true, counters.clone()));
            let counting = turns.clone();
            monoio::spawn(async move { counting.count().await });
            let next_turn = || monoio::time::sleep(Duration::ZERO);
            next_turn().await;
            // A task each, all awake at once.
            for _ in 0..MANY {
                let turns = turns.clone();
                monoio::spawn(async move { send(&turns, 1) });
            }
            next_turn().await;
            assert_eq!(counters.sent_together.get(), 1, "the last of many");
            next_turn().await;
            assert_eq!(send(&turns, 3), 3, "they come behind many");
            next_turn().await;
            assert_eq!(send(&turns, MANY - 1), 0, "they come behind few");
            assert_eq!(send(&turns, 2), 2, "they are the last of many");
            assert_eq!(counters.sent_together.get(), 1 + 3 + 2);
            assert_eq!(send(&Turns::new(false, counters), 2 * MANY), 0, "there is no ring");
        });
    }
}
