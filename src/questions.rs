//! A shard's open questions to the control plane: asked, awaited with the client in view, answered by ticket.

use crate::changes::AsOf;
use crate::counters::{add, less};
use crate::deadlines::Watch;
use crate::mailbox::{Question, Reply, ToControl, Trouble};
use crate::shard::Shard;
use std::cell::RefCell;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;

struct Slot {
    /// Distinguishes this question from an earlier one in the same slot, whose late answer must not count.
    generation: u32,
    waiting: bool,
    reply: Option<(Reply, Duration)>,
    waker: Option<Waker>,
}

pub struct Questions {
    up: mpsc::Sender<ToControl>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    open_max: usize,
}

/// What came of a question.
#[derive(Debug)]
pub struct Told {
    pub reply: Reply,
    /// How long it may be remembered; zero: not at all.
    pub keep: Duration,
    /// When it was asked: a change after it makes the reply old.
    pub as_of: AsOf,
}

/// The client left before the answer came.
#[derive(Debug)]
pub struct Left;

impl Questions {
    pub fn new(up: mpsc::Sender<ToControl>, open_max: usize) -> Self {
        Self { up, slots: RefCell::default(), free: RefCell::default(), open_max }
    }

    /// Says something that has no answer. `false`: the mailbox is full.
    pub fn tell(&self, message: ToControl) -> bool {
        self.up.try_send(message).is_ok()
    }

    /// An answer arrived. Late ones, for questions nobody waits for, are dropped.
    pub fn answer(&self, ticket: u64, reply: Reply, keep: Duration) {
        let (index, generation) = (ticket as u32 as usize, (ticket >> 32) as u32);
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(index).filter(|s| s.waiting && s.generation == generation) else {
            return;
        };
        slot.reply = Some((reply, keep));
        let waker = slot.waker.take();
        drop(slots);
        waker.into_iter().for_each(Waker::wake);
    }

    fn open(&self) -> Option<(u32, u32)> {
        let mut slots = self.slots.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => index,
            None if slots.len() < self.open_max => {
                slots.push(Slot { generation: 0, waiting: false, reply: None, waker: None });
                slots.len() as u32 - 1
            }
            None => return None,
        };
        let slot = &mut slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.waiting = true;
        Some((index, slot.generation))
    }

    fn close(&self, index: u32) -> bool {
        let slot = &mut self.slots.borrow_mut()[index as usize];
        let answered = slot.reply.is_some();
        (slot.waiting, slot.reply, slot.waker) = (false, None, None);
        self.free.borrow_mut().push(index);
        answered
    }
}

/// Asks and waits. The control plane answers every question by its own deadline; the wait ends earlier when the
/// client leaves. Cancel-safe: the question is withdrawn.
pub async fn ask(shard: &Shard, watch: &Watch, question: Question) -> Result<Told, Left> {
    let questions = &shard.questions;
    let as_of = shard.changes.now();
    let overloaded = Told { reply: Err(Trouble::Overloaded), keep: Duration::ZERO, as_of };
    let sandbox = question.sandbox().copied();
    let Some((index, generation)) = questions.open() else { return Ok(overloaded) };
    add(&shard.counters.questions_asked, 1);
    add(&shard.counters.questions_open, 1);
    let ticket = u64::from(generation) << 32 | u64::from(index);
    let pending = Pending { shard, index, ticket };
    if !questions.tell(ToControl::Ask { shard: shard.index, ticket, question }) {
        return Ok(overloaded);
    }
    watch.waits_for_others(true);
    let answered = std::future::poll_fn(|cx| {
        let slot = &mut pending.shard.questions.slots.borrow_mut()[pending.index as usize];
        if let Some(answer) = &slot.reply {
            return Poll::Ready(Ok(answer.clone()));
        }
        if watch.fired().is_some() {
            return Poll::Ready(Err(Left));
        }
        slot.waker = Some(cx.waker().clone());
        watch.wake_on_fire(cx.waker());
        Poll::Pending
    })
    .await;
    watch.waits_for_others(false);
    let (reply, keep) = answered?;
    let old = sandbox.is_some_and(|sandbox| shard.changes.is_old(&sandbox, as_of));
    Ok(Told { reply, keep: if old { Duration::ZERO } else { keep }, as_of })
}

struct Pending<'a> {
    shard: &'a Shard,
    index: u32,
    ticket: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        less(&self.shard.counters.questions_open);
        if !self.shard.questions.close(self.index) {
            // A full mailbox loses this; the flight then ends by its own deadline.
            self.shard.questions.tell(ToControl::Cancel { shard: self.shard.index, ticket: self.ticket });
        }
    }
}
