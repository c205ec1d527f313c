//! Where in a list an entry with a certain hash stands: a table of places, without the keys.
//!
//! Linear probing over buckets of 8 bytes, at most three quarters of them in use, so a look is one cache line more often
//! than not. What is removed leaves no mark (the ones behind it move up), so the table never needs to be built anew for
//! that. It doubles when it is full, and its entries move over a few at a time, with what is put in or looked for later:
//! it is as large as the most that was in it asks for, and nobody ever pays for moving a million at once.

use foldhash::quality::RandomState;
use std::hash::{BuildHasher, Hash};

/// Of a table nobody has put anything in; a power of two, as all sizes are.
const BUCKETS_MIN: usize = 8;
/// Buckets that move over with one insertion or look. A table doubles again after three quarters as many insertions as
/// the old one has buckets, at the earliest: two would do for the move to be over by then.
const MOVED_AT_ONCE: usize = 4;
/// An entry was here in a table that is left, and the looks for others go on. No entry: its low half is 0.
const LEFT: u64 = 1 << 32;

pub struct Index {
    /// High half: the hash; low half: the place plus one. 0: empty. There is always an empty one.
    buckets: Vec<u64>,
    /// The table before the last doubling, until all its entries have moved; then without a bucket. None comes in any more,
    /// so that it keeps its empty bucket.
    leaving: Vec<u64>,
    /// Buckets of `leaving` below this one are done.
    moved: usize,
    /// Keyed at random: who chooses the keys must not choose the buckets.
    /// Anybody may choose labels, but not see what they hash to: the seed is this process's own, an entry costs a look-up
    /// at the API (bounded for each client when in vain), and the number of entries is bounded. Who found the seed out all
    /// the same would make a look a walk over the entries, never an answer for another key: keys are compared in full.
    hasher: RandomState,
    entries: usize,
}

impl Index {
    /// Places and buckets are counted in 32 bits.
    pub const ENTRIES_MAX: usize = 1 << 30;

    /// Takes 11 to 21 bytes for each entry, and half of that more while a move goes on.
    pub fn new() -> Self {
        Self {
            buckets: vec![0; BUCKETS_MIN],
            leaving: Vec::new(),
            moved: 0,
            hasher: RandomState::default(),
            entries: 0,
        }
    }

    pub fn hash(&self, key: &impl Hash) -> u32 {
        // Any half is as good.
        self.hasher.hash_one(key) as u32
    }

    /// As [`Self::find`], and takes a part in a move that goes on: one that nobody pushed on would keep both tables.
    pub fn look(&mut self, hash: u32, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        if !self.leaving.is_empty() {
            self.move_some();
        }
        self.find(hash, is_it)
    }

    /// The place of the entry that `is_it`; several may have one hash.
    pub fn find(&self, hash: u32, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        if let Some(at) = bucket(&self.buckets, hash, &is_it) {
            return Some(place_of(self.buckets[at]));
        }
        bucket(&self.leaving, hash, &is_it).map(|at| place_of(self.leaving[at]))
    }

    /// The entry is not in here yet, and there are fewer than the most.
    pub fn insert(&mut self, hash: u32, place: usize) {
        self.move_some();
        self.entries += 1;
        if self.entries > self.buckets.len() / 4 * 3 {
            debug_assert!(self.leaving.is_empty(), "a move is over before the next begins");
            let doubled = vec![0; self.buckets.len() * 2];
            self.leaving = std::mem::replace(&mut self.buckets, doubled);
            self.moved = 0;
        }
        put(&mut self.buckets, bucket_of(hash, place));
    }

    /// The entry stands elsewhere now.
    pub fn replace(&mut self, hash: u32, before: usize, place: usize) {
        for buckets in [&mut self.buckets, &mut self.leaving] {
            if let Some(at) = bucket(buckets, hash, &|found| found == before) {
                buckets[at] = bucket_of(hash, place);
                return;
            }
        }
    }

    pub fn remove(&mut self, hash: u32, place: usize) {
        if let Some(at) = bucket(&self.buckets, hash, &|found| found == place) {
            self.entries -= 1;
            close(&mut self.buckets, at);
        } else if let Some(at) = bucket(&self.leaving, hash, &|found| found == place) {
            self.entries -= 1;
            self.leaving[at] = LEFT;
        }
    }

    /// Gives back what it took, too.
    pub fn clear(&mut self) {
        self.buckets = vec![0; BUCKETS_MIN];
        (self.leaving, self.moved) = (Vec::new(), 0);
        self.entries = 0;
    }

    #[cfg(test)]
    pub fn is_moving(&self) -> bool {
        !self.leaving.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries
    }

    fn move_some(&mut self) {
        let until = (self.moved + MOVED_AT_ONCE).min(self.leaving.len());
        for at in self.moved..until {
            let bucket = self.leaving[at];
            if is_entry(bucket) {
                self.leaving[at] = LEFT;
                put(&mut self.buckets, bucket);
            }
        }
        self.moved = until;
        if until == self.leaving.len() {
            (self.leaving, self.moved) = (Vec::new(), 0);
        }
    }
}

/// The bucket of the entry with this hash that `is_it`.
fn bucket(buckets: &[u64], hash: u32, is_it: &impl Fn(usize) -> bool) -> Option<usize> {
    if buckets.is_empty() {
        return None;
    }
    let mut at = home(buckets, hash);
    loop {
        match buckets[at] {
            0 => return None,
            bucket if hash_of(bucket) == hash && is_entry(bucket) && is_it(place_of(bucket)) => {
                return Some(at);
            }
            _ => at = after(buckets, at),
        }
    }
}

fn put(buckets: &mut [u64], bucket: u64) {
    let mut at = home(buckets, hash_of(bucket));
    while buckets[at] != 0 {
        at = after(buckets, at);
    }
    buckets[at] = bucket;
}

/// Empties a bucket, and moves up those behind it that would not be found any more.
fn close(buckets: &mut [u64], mut hole: usize) {
    let mut at = hole;
    loop {
        at = after(buckets, at);
        let bucket = buckets[at];
        if bucket == 0 {
            break;
        }
        // It may stand in the hole if that is not before its home.
        let mask = buckets.len() - 1;
        let from = |start: usize| at.wrapping_sub(start) & mask;
        if from(home(buckets, hash_of(bucket))) >= from(hole) {
            buckets[hole] = bucket;
            hole = at;
        }
    }
    buckets[hole] = 0;
}

fn home(buckets: &[u64], hash: u32) -> usize {
    hash as usize & (buckets.len() - 1)
}

fn after(buckets: &[u64], at: usize) -> usize {
    (at + 1) & (buckets.len() - 1)
}

fn bucket_of(hash: u32, place: usize) -> u64 {
    u64::from(hash) << 32 | (place as u64 + 1)
}

fn is_entry(bucket: u64) -> bool {
    bucket as u32 != 0
}

fn hash_of(bucket: u64) -> u32 {
    (bucket >> 32) as u32
}

fn place_of(bucket: u64) -> usize {
    (bucket as u32) as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACES: usize = 60;

    proptest! {
        /// Hashes that collide, over and over and round the end, while the table doubles and its entries move: against a
        /// plain list. Half of the hashes are of nine, among them the one left buckets have.
        #[test]
        fn what_is_in_is_found_and_nothing_else(
            ops in proptest::collection::vec((0..40u8, 0..PLACES, prop_oneof![0..9u32, 0..90u32]), 1..400),
        ) {
            let mut index = Index::new();
            let mut model: [Option<u32>; PLACES] = [None; PLACES];
            for (op, place, hash) in ops {
                match (op, model[place]) {
                    (0..30, None) => {
                        index.insert(hash, place);
                        model[place] = Some(hash);
                    }
                    (0..10, Some(hash)) => {
                        index.remove(hash, place);
                        model[place] = None;
                    }
                    // To the first place nobody has.
                    (30..39, Some(hash)) => if let Some(free) = model.iter().position(Option::is_none) {
                        index.replace(hash, place, free);
                        (model[free], model[place]) = (Some(hash), None);
                    }
                    (39, _) => {
                        index.clear();
                        model = [None; PLACES];
                    }
                    (10..20, Some(hash)) => prop_assert_eq!(index.look(hash, |found| found == place), Some(place)),
                    _ => {}
                }
                prop_assert_eq!(index.len(), model.iter().flatten().count());
                for (place, hash) in model.iter().enumerate() {
                    for any in [0, 1, 2, 8, 89, hash.unwrap_or(3)] {
                        let found = index.find(any, |found| found == place);
                        prop_assert_eq!(found, (*hash == Some(any)).then_some(place));
                    }
                }
            }
        }
    }

    #[test]
    fn it_is_as_large_as_the_most_that_was_in_it_asks_for() {
        let mut index = Index::new();
        for place in 0..100_000 {
            index.insert(index.hash(&place), place);
            let buckets = index.buckets.len() + index.leaving.len();
            assert!(buckets <= BUCKETS_MIN.max(4 * (place + 1)), "{buckets} for {} entries", place + 1);
        }
        assert!(!index.leaving.is_empty(), "it rests in the middle of a move");
        for place in 0..100_000 {
            assert_eq!(index.look(index.hash(&place), |found| found == place), Some(place));
        }
        assert!(index.leaving.is_empty(), "looks end a move as well");
        (100_000..200_000).for_each(|place| index.insert(index.hash(&place), place));
        assert!(!index.leaving.is_empty(), "it is cleared in the middle of a move, too");
        index.clear();
        assert_eq!((index.len(), index.buckets.len(), index.leaving.len()), (0, BUCKETS_MIN, 0));
    }
}
