//! What a lane under test needs of its shard.

use super::{Means, Patience};
use crate::buffers::Buffers;
use crate::counters::Counters;
use crate::deadlines::{Deadlines, Watch};
use crate::turns::Turns;
use std::rc::Rc;

pub(crate) struct World {
    pub buffers: Buffers,
    pub counters: Rc<Counters>,
    pub watch: Watch,
    pub turns: Turns,
}

impl World {
    /// With so many pipes, known to no deadline table, and every message alone.
    pub fn new(pipes: usize) -> Self {
        Self::with(pipes, false)
    }

    /// As [`Self::new`], but that messages may leave together.
    pub fn with_ring(pipes: usize) -> Self {
        Self::with(pipes, true)
    }

    fn with(pipes: usize, ring: bool) -> Self {
        let counters = Rc::new(Counters::default());
        Self {
            buffers: Buffers::new(1, pipes),
            turns: Turns::new(ring, counters.clone()),
            counters,
            watch: Deadlines::new().nobody(),
        }
    }

    /// Nobody is waited for for a limited time.
    pub fn means(&self) -> Means<'_> {
        let Self { buffers, counters: _, watch, turns } = self;
        let none = Patience::default();
        Means { buffers, turns, watch, stall: none, runner_stall: none, in_use: None }
    }
}
