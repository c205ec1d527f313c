//! Which sandboxes are in use, told to the control plane so that their auto-stop timers start anew.
//!
//! A request costs a comparison here: its sandbox is mentioned when it was not for a while, and once more for as long
//! as the exchange or tunnel lives. How often the API is told, and that it is, is the control plane's business. A
//! tunnel counts only if bytes moved in it: a forgotten tab must not keep a sandbox running for weeks.

use crate::counters::{Counters, add};
use crate::deadlines::TICK;
use crate::ids::SandboxId;
use crate::mailbox::ToControl;
use crate::pool::Runner;
use crate::questions::Questions;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A mention the mailbox had no room for is tried again after this long.
const AGAIN_TICKS: u32 = 10;

/// Where a sandbox is, and when it is to be mentioned next.
pub struct Place {
    pub sandbox: SandboxId,
    pub runner: Rc<Runner>,
    /// In ticks.
    mention_from: Cell<u32>,
}

impl Place {
    pub fn new(sandbox: SandboxId, runner: Rc<Runner>) -> Rc<Self> {
        Rc::new(Self { sandbox, runner, mention_from: Cell::new(0) })
    }
}

#[cfg(test)]
impl Place {
    /// For tests of what does not ask where.
    pub(crate) fn somewhere(sandbox: SandboxId) -> Rc<Self> {
        let address = crate::mailbox::RunnerAddress {
            addrs: vec![([127, 0, 0, 1], 1).into()],
            authority: String::new(),
            base_path: String::new(),
            authorization: String::new(),
        };
        let runner = crate::pool::Pool::new(1, 1).runner(std::sync::Arc::new(address));
        Self::new(sandbox, runner.expect("an address"))
    }
}

/// What a shard serves right now.
pub struct Activity {
    uses: RefCell<Vec<Use>>,
    free: RefCell<Vec<u32>>,
    /// Between two mentions of a sandbox, in ticks.
    mention_ticks: u32,
    /// In how many ticks every use is looked at once.
    round_ticks: u32,
    /// Bytes a tunnel must move in a round to count; 0: being open is enough.
    tunnel_bytes_min: u64,
}

struct Use {
    /// `None`: free.
    place: Option<Rc<Place>>,
    tunnel: bool,
    /// Since the last look; more than fits is as much as is ever asked for.
    moved_bytes: u32,
}

/// One exchange or tunnel of a sandbox that counts as its use. Ends when dropped.
pub struct InUse {
    activity: Rc<Activity>,
    index: u32,
}

impl Activity {
    /// `report_interval`: of the control plane's reports; mentions come five times as often, so that a report is never
    /// late by more than a fifth. Every use is looked at twice between two mentions.
    pub fn new(report_interval: Duration, tunnel_bytes_min: u64) -> Rc<Self> {
        let mention_ticks = (report_interval.as_millis() / TICK.as_millis() / 5).max(1) as u32;
        Rc::new(Self {
            uses: RefCell::default(),
            free: RefCell::default(),
            mention_ticks,
            round_ticks: (mention_ticks / 2).max(1),
            tunnel_bytes_min,
        })
    }

    /// A request begins that counts as use of its sandbox.
    pub fn begin(self: &Rc<Self>, place: &Rc<Place>) -> InUse {
        let one = Use { place: Some(place.clone()), tunnel: false, moved_bytes: 0 };
        let mut uses = self.uses.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => {
                uses[index as usize] = one;
                index
            }
            None => {
                uses.push(one);
                uses.len() as u32 - 1
            }
        };
        InUse { activity: self.clone(), index }
    }

    /// Tells the control plane, unless it was told a moment ago. Never waits.
    pub fn mention(&self, place: &Place, now: u32, questions: &Questions, counters: &Counters) {
        if place.mention_from.get() > now {
            return;
        }
        let told = questions.tell(ToControl::Active { sandbox: place.sandbox });
        if !told {
            add(&counters.activity_dropped, 1);
        }
        place.mention_from.set(now + if told { self.mention_ticks } else { AGAIN_TICKS });
    }

    /// One tick: looks at a part of what is in use, so that a round of all is spread over many ticks.
    pub fn look(&self, now: u32, questions: &Questions, counters: &Counters) {
        let (first, step) = ((now % self.round_ticks) as usize, self.round_ticks as usize);
        for one in self.uses.borrow_mut().iter_mut().skip(first).step_by(step) {
            let Some(place) = &one.place else { continue };
            let counts = !one.tunnel || u64::from(one.moved_bytes) >= self.tunnel_bytes_min;
            one.moved_bytes = 0;
            if counts {
                self.mention(place, now, questions, counters);
            }
        }
    }
}

impl InUse {
    /// The request has become a tunnel: from now on only bytes count.
    pub fn is_tunnel(&self) {
        self.activity.uses.borrow_mut()[self.index as usize].tunnel = true;
    }

    pub fn moved(&self, bytes: u64) {
        let moved = &mut self.activity.uses.borrow_mut()[self.index as usize].moved_bytes;
        *moved = moved.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.activity.uses.borrow_mut()[self.index as usize].place = None;
        self.activity.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct World {
        activity: Rc<Activity>,
        questions: Questions,
        counters: Counters,
        told: mpsc::Receiver<ToControl>,
        now: u32,
    }

    impl World {
        /// Reports every 45 s: mentions every 9 s, rounds of 4.5 s.
        fn new(mailbox: usize, tunnel_bytes_min: u64) -> Self {
            let (up, told) = mpsc::channel(mailbox);
            Self {
                activity: Activity::new(Duration::from_secs(45), tunnel_bytes_min),
                questions: Questions::new(up, 1),
                counters: Counters::default(),
                told,
                now: 1,
            }
        }

        fn place(&self, sandbox: &str) -> Rc<Place> {
            Place::somewhere(SandboxId::parse(sandbox.as_bytes()).expect("an id"))
        }

        fn mention(&self, place: &Place) {
            self.activity.mention(place, self.now, &self.questions, &self.counters);
        }

        fn pass(&mut self, seconds: u32) {
            for _ in 0..seconds * 10 {
                self.now += 1;
                self.activity.look(self.now, &self.questions, &self.counters);
            }
        }

        fn told(&mut self) -> Vec<String> {
            let mut told = Vec::new();
            while let Ok(ToControl::Active { sandbox }) = self.told.try_recv() {
                told.push(sandbox.to_string());
            }
            told
        }
    }

    #[test]
    fn many_requests_in_a_row_are_one_mention() {
        let mut world = World::new(8, 1);
        let place = world.place("a");
        (0..1000).for_each(|_| world.mention(&place));
        assert_eq!(world.told(), ["a"]);
        world.now += 89;
        world.mention(&place);
        assert_eq!(world.told(), [""; 0]);
        world.now += 1;
        world.mention(&place);
        assert_eq!(world.told(), ["a"]);
    }

    #[test]
    fn an_exchange_without_a_byte_counts_for_as_long_as_it_lives() {
        let mut world = World::new(64, 1);
        let in_use = world.activity.begin(&world.place("a"));
        world.pass(91);
        let told = world.told().len();
        assert!((6..=11).contains(&told), "{told} mentions in 91 s");
        drop(in_use);
        world.pass(91);
        assert_eq!(world.told(), [""; 0]);
    }

    #[test]
    fn a_tunnel_counts_when_it_moved_enough_since_the_last_look_and_not_otherwise() {
        for (min, moved, counts) in
            [(1, 0, false), (1, 1, true), (0, 0, true), (200, 199, false), (200, 200, true)]
        {
            let mut world = World::new(64, min);
            let in_use = world.activity.begin(&world.place("a"));
            in_use.is_tunnel();
            in_use.moved(moved);
            world.pass(5);
            assert_eq!(world.told().len(), usize::from(counts), "{moved} bytes of {min}");
            // What moved then does not count again.
            world.pass(60);
            assert_eq!(world.told().is_empty(), min > 0);
        }
    }

    #[test]
    fn every_one_of_many_uses_is_looked_at_within_a_round_and_no_tick_looks_at_all() {
        let mut world = World::new(1000, 1);
        let uses: Vec<_> = (0..450).map(|n| world.activity.begin(&world.place(&format!("s{n}")))).collect();
        let mut all = Vec::new();
        for _ in 0..45 {
            world.now += 1;
            world.activity.look(world.now, &world.questions, &world.counters);
            let told = world.told();
            assert_eq!(told.len(), 10);
            all.extend(told);
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), uses.len());
    }

    #[test]
    fn a_full_mailbox_is_counted_and_tried_again_soon() {
        let mut world = World::new(1, 1);
        let (a, b) = (world.place("a"), world.place("b"));
        world.mention(&a);
        (0..100).for_each(|_| world.mention(&b));
        assert_eq!(world.counters.activity_dropped.get(), 1);
        assert_eq!(world.told(), ["a"]);
        world.now += AGAIN_TICKS;
        world.mention(&b);
        assert_eq!(world.told(), ["b"]);
    }

    #[test]
    fn a_freed_use_is_used_again_without_its_past() {
        let mut world = World::new(64, 1);
        let first = world.activity.begin(&world.place("a"));
        first.is_tunnel();
        drop(first);
        let _second = world.activity.begin(&world.place("b"));
        world.pass(5);
        assert_eq!(world.told(), ["b"]);
        assert_eq!(world.activity.uses.borrow().len(), 1);
    }
}
