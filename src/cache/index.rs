//! Where in a list an entry with a certain hash stands: a table of places, without the keys.
//!
//! Linear probing over half-full to three-quarters-full buckets of 8 bytes, so a look is one cache line more often than
//! not. What is removed leaves no mark (the ones behind it move up), so the table never needs to be built anew.

use foldhash::quality::RandomState;
use std::hash::{BuildHasher, Hash};

pub struct Index {
    /// High half: the hash; low half: the place plus one. 0: empty. There is always an empty one.
    buckets: Vec<u64>,
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

    /// For places below `entries_max`. Costs 11 to 21 bytes of address space each, touched with use.
    pub fn new(entries_max: usize) -> Self {
        let buckets = (entries_max + entries_max / 3 + 1).next_power_of_two();
        Self { buckets: vec![0; buckets], hasher: RandomState::default(), entries: 0 }
    }

    pub fn hash(&self, key: &impl Hash) -> u32 {
        // Any half is as good.
        self.hasher.hash_one(key) as u32
    }

    /// The place of the entry that `is_it`; several may have one hash.
    pub fn find(&self, hash: u32, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        self.bucket(hash, is_it).map(|at| place_of(self.buckets[at]))
    }

    /// The entry is not in here yet, and there are fewer than the most.
    pub fn insert(&mut self, hash: u32, place: usize) {
        let mut at = self.home(hash);
        while self.buckets[at] != 0 {
            at = self.after(at);
        }
        self.buckets[at] = bucket_of(hash, place);
        self.entries += 1;
    }

    /// The entry stands elsewhere now.
    pub fn replace(&mut self, hash: u32, before: usize, place: usize) {
        if let Some(at) = self.bucket(hash, |found| found == before) {
            self.buckets[at] = bucket_of(hash, place);
        }
    }

    pub fn remove(&mut self, hash: u32, place: usize) {
        let Some(mut hole) = self.bucket(hash, |found| found == place) else { return };
        self.entries -= 1;
        let mut at = hole;
        loop {
            at = self.after(at);
            let bucket = self.buckets[at];
            if bucket == 0 {
                break;
            }
            // It may stand in the hole if that is not before its home.
            let mask = self.buckets.len() - 1;
            let from = |start: usize| at.wrapping_sub(start) & mask;
            if from(self.home(hash_of(bucket))) >= from(hole) {
                self.buckets[hole] = bucket;
                hole = at;
            }
        }
        self.buckets[hole] = 0;
    }

    pub fn clear(&mut self) {
        self.buckets.fill(0);
        self.entries = 0;
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries
    }

    fn bucket(&self, hash: u32, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            match self.buckets[at] {
                0 => return None,
                bucket if hash_of(bucket) == hash && is_it(place_of(bucket)) => return Some(at),
                _ => at = self.after(at),
            }
        }
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.buckets.len() - 1)
    }
}

fn bucket_of(hash: u32, place: usize) -> u64 {
    u64::from(hash) << 32 | (place as u64 + 1)
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

    proptest! {
        /// Hashes that collide, over and over and round the end: against a plain list.
        #[test]
        fn what_is_in_is_found_and_nothing_else(
            ops in proptest::collection::vec((any::<bool>(), 0usize..6, 0u32..9), 1..200),
        ) {
            let mut index = Index::new(6);
            let mut model: [Option<u32>; 6] = [None; 6];
            for (insert, place, hash) in ops {
                match (insert, model[place]) {
                    (true, None) => {
                        index.insert(hash, place);
                        model[place] = Some(hash);
                    }
                    (false, Some(hash)) => {
                        index.remove(hash, place);
                        model[place] = None;
                    }
                    _ => {}
                }
                prop_assert_eq!(index.len(), model.iter().flatten().count());
                for (place, hash) in model.iter().enumerate() {
                    for any in 0..9 {
                        let found = index.find(any, |found| found == place);
                        prop_assert_eq!(found, (*hash == Some(any)).then_some(place));
                    }
                }
            }
        }
    }
}
