//! Hands arrivals to kept connections: one that is free takes the next when it is due.

use super::Worker;
use super::line::{Asker, Line, Step, Stretch};
use super::sessions::replay::Progress;
use crate::aim::Weighted;
use crate::plan::{Class, Phase};
use crate::recorder::Arrival;
use crate::schedule::{Part, Schedule};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// The plan's arrivals of one line, and which classes they are of.
pub(super) struct Arrivals {
    pub line: Line,
    /// By phase, indices of classes.
    mixes: Vec<Weighted<usize>>,
}

/// What there is to be sent next.
pub(super) enum Next {
    Due(Arrival),
    At(Instant),
    Over,
}

/// A place for one request at a time.
#[derive(Default)]
pub(super) struct Slot {
    waker: RefCell<Option<Waker>>,
    /// Handed over while parked.
    handed: Cell<Option<Arrival>>,
    parked: Cell<bool>,
    pub under_way: Cell<Option<UnderWay>>,
    /// Of a recording: how far it has come.
    pub replay: RefCell<Option<Rc<Progress>>>,
}

#[derive(Clone, Copy)]
pub(super) struct UnderWay {
    pub arrival: Arrival,
    pub begun: Instant,
    /// What the class's times measure has come.
    pub timed: bool,
}

impl Slot {
    pub fn begin(&self, arrival: Arrival, begun: Instant) {
        self.under_way.set(Some(UnderWay { arrival, begun, timed: false }));
        *self.replay.borrow_mut() = None;
    }

    fn wake(&self) {
        self.parked.set(false);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Worker {
    /// The arrivals of classes that are sessions, or of those that are not. `begins`: of the phases.
    pub(super) fn arrivals(&self, sessions: bool, begins: &[Instant]) -> Arrivals {
        let mix = |phase: &Phase, sessions: bool| {
            let of = phase.mix.iter().filter(|(class, _)| class.is_session() == sessions);
            let index = |class: &Class| self.classes.iter().position(|c| c == class).expect("of the mixes");
            Weighted::new(&of.map(|(class, weight)| (index(class), *weight)).collect::<Vec<_>>())
        };
        let part = Part { index: self.part.index, count: self.part.count };
        let phases = self.plan.phases.iter().zip(begins).enumerate();
        let (stretches, mixes) = phases
            .map(|(n, (phase, begin))| {
                let (ours, others) = (mix(phase, sessions), mix(phase, !sessions));
                let share = ours.total() / (ours.total() + others.total()).max(f64::MIN_POSITIVE);
                let seed = self.plan.client.seed ^ (n as u64) << 40 ^ u64::from(part.index) << 20;
                let poisson = self.plan.client.poisson.then_some(seed ^ u64::from(sessions));
                let schedule = Schedule::new(phase.load, phase.length.0, share, part, poisson);
                let end = *begin + phase.length.0;
                (Stretch::new(*begin, end, phase.load, ours.is_empty(), schedule), ours)
            })
            .unzip();
        Arrivals { line: Line::new(stretches), mixes }
    }

    /// The next arrival; one that is due is taken.
    pub(super) fn next(&self, arrivals: &RefCell<Option<Arrivals>>, asker: Asker, now: Instant) -> Next {
        let mut arrivals = arrivals.borrow_mut();
        // The start is not known yet; `begin` sets the alarm to it.
        let Some(Arrivals { line, mixes }) = arrivals.as_mut() else {
            return Next::At(now + Duration::from_secs(3600));
        };
        if self.stopped() {
            line.stop(asker, now);
        }
        let arrival = |phase: usize, intended| {
            let class = *mixes[phase].draw(&mut self.random.borrow_mut());
            Arrival { phase, class, intended }
        };
        loop {
            match line.next(asker, now) {
                Step::Send { phase, due } => return Next::Due(arrival(phase, due)),
                Step::Wait(until) => return Next::At(until),
                Step::Over => return Next::Over,
                // Counted with its age.
                Step::GiveUp { phase, due } => {
                    self.record(|recorder| recorder.unsent(&arrival(phase, due), now));
                }
            }
        }
    }

    /// Waits for the slot's next arrival and since when it could have been sent; `None`: the run is over.
    pub(super) async fn arrival(&self, slot: &Rc<Slot>) -> Option<(Arrival, Instant)> {
        let freed = Instant::now();
        let mut now = freed;
        std::future::poll_fn(|cx| {
            if let Some(arrival) = slot.handed.take() {
                return Poll::Ready(Some(arrival));
            }
            if slot.parked.get() {
                *slot.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            match self.next(&self.pool, Asker::WasBusy, now) {
                Next::Due(arrival) => Poll::Ready(Some(arrival)),
                Next::Over => Poll::Ready(None),
                Next::At(due) => {
                    self.alarm.set(due);
                    *slot.waker.borrow_mut() = Some(cx.waker().clone());
                    slot.parked.set(true);
                    self.parked.borrow_mut().push_back(slot.clone());
                    now = Instant::now();
                    Poll::Pending
                }
            }
        })
        .await
        .map(|arrival| (arrival, freed.max(arrival.intended)))
    }

    /// Hands arrivals to free connections when they are due.
    pub(super) async fn dispatch(self: Rc<Self>) {
        loop {
            loop {
                let Some(slot) = self.parked.borrow_mut().pop_front() else { break };
                match self.next(&self.pool, Asker::WasFree, Instant::now()) {
                    Next::Due(arrival) => {
                        slot.handed.set(Some(arrival));
                        slot.wake();
                    }
                    Next::At(due) => {
                        self.parked.borrow_mut().push_front(slot);
                        self.alarm.set(due);
                        break;
                    }
                    Next::Over => slot.wake(),
                }
            }
            self.alarm.rung().await;
        }
    }

    /// Nothing of the line is sent any more, unless it is catching up.
    pub(super) fn close(&self, arrivals: &RefCell<Option<Arrivals>>, now: Instant) {
        if !arrivals.borrow().as_ref().is_some_and(|arrivals| arrivals.line.is_catching_up()) {
            let next = self.next(arrivals, Asker::WasBusy, now);
            debug_assert!(matches!(next, Next::Over), "the plan is over");
        }
    }
}
