//! A bounded map whose entries expire: what a shard remembers of the control plane's answers.
//!
//! Knows no clock: `now` is given. When full, the entry that was not used since the hand last passed makes room
//! (CLOCK), so a flood of once-seen keys cannot push out what is in use.
//!
//! An entry costs its slot and about 16 bytes of index. Address space is set aside for all slots at once and touched with
//! use; the index grows a few entries at a time: no request ever pays for moving a million.

mod index;

use index::Index;
use std::hash::Hash;
use std::time::{Duration, Instant};

struct Slot<K, V> {
    key: K,
    value: V,
    /// Since the map's beginning, in nanoseconds.
    expires: u64,
    used: bool,
}

pub struct TtlMap<K, V> {
    index: Index,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    entries_max: usize,
    /// The first moment the map was told of.
    begun: Option<Instant>,
}

impl<K: Hash + Eq + Clone, V> TtlMap<K, V> {
    /// Never holds more than `entries_max` entries.
    pub fn new(entries_max: usize) -> Self {
        assert!(entries_max > 0 && entries_max <= Index::ENTRIES_MAX, "a cache holds at least one entry");
        let slots = Vec::with_capacity(entries_max);
        Self { index: Index::new(), slots, hand: 0, entries_max, begun: None }
    }

    /// `None` when unknown or expired.
    pub fn get(&mut self, key: &K, now: Instant) -> Option<&V> {
        let now = self.moment(now);
        let at = self.index.look(self.index.hash(key), |at| self.slots[at].key == *key)?;
        let slot = &mut self.slots[at];
        if slot.expires <= now {
            return None;
        }
        slot.used = true;
        Some(&slot.value)
    }

    /// What is not to be kept at all takes nobody's place.
    pub fn insert(&mut self, key: K, value: V, ttl: Duration, now: Instant) {
        if ttl.is_zero() {
            return self.remove(&key);
        }
        let now = self.moment(now);
        let expires = now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
        if let Some(at) = self.find(&key) {
            let slot = &mut self.slots[at];
            (slot.value, slot.expires) = (value, expires);
            return;
        }
        let hash = self.index.hash(&key);
        let slot = Slot { key, value, expires, used: false };
        let at = if self.slots.len() < self.entries_max {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            let at = self.victim(now);
            let old = std::mem::replace(&mut self.slots[at], slot);
            self.index.remove(self.index.hash(&old.key), at);
            at
        };
        self.index.insert(hash, at);
    }

    /// The entry is gone for the next `get`.
    pub fn remove(&mut self, key: &K) {
        let Some(at) = self.find(key) else { return };
        self.index.remove(self.index.hash(key), at);
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.index.replace(self.index.hash(&moved.key), self.slots.len(), at);
        }
    }

    pub fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn find(&self, key: &K) -> Option<usize> {
        self.index.find(self.index.hash(key), |at| self.slots[at].key == *key)
    }

    /// 584 years last.
    fn moment(&mut self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(*self.begun.get_or_insert(now));
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// At most two rounds: the first takes every mark away.
    fn victim(&mut self, now: u64) -> usize {
        loop {
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            let slot = &mut self.slots[at];
            if slot.expires <= now || !slot.used {
                return at;
            }
            slot.used = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn an_entry_is_there_until_its_time_and_not_a_moment_longer() {
        let (mut map, now) = (TtlMap::new(4), Instant::now());
        map.insert("a", 1, TTL, now);
        assert_eq!(map.get(&"a", now + TTL - Duration::from_nanos(1)), Some(&1));
        assert_eq!(map.get(&"a", now + TTL), None);
    }

    #[test]
    fn a_flood_of_new_keys_neither_grows_the_map_nor_evicts_what_is_in_use() {
        let (mut map, now) = (TtlMap::new(8), Instant::now());
        map.insert(u32::MAX, 0, TTL, now);
        for key in 0..1000 {
            assert!(map.get(&u32::MAX, now).is_some(), "evicted by key {key}");
            map.insert(key, 0, TTL, now);
        }
        assert_eq!(map.len(), 8);
    }

    #[test]
    fn what_is_not_to_be_kept_takes_nobodys_place_and_ends_what_was_there() {
        let (mut map, now) = (TtlMap::new(1), Instant::now());
        map.insert("a", 1, TTL, now);
        map.insert("b", 2, Duration::ZERO, now);
        assert_eq!(map.get(&"a", now), Some(&1));
        assert_eq!(map.get(&"b", now), None);
        map.insert("a", 3, Duration::ZERO, now);
        assert!(map.is_empty());
    }

    #[test]
    fn an_overwritten_entry_takes_the_new_value_and_the_new_time() {
        let (mut map, now) = (TtlMap::new(2), Instant::now());
        map.insert("a", 1, TTL, now);
        map.insert("a", 2, TTL * 2, now);
        assert_eq!(map.get(&"a", now + TTL), Some(&2));
        assert_eq!(map.len(), 1);
    }

    #[test]
    fn a_map_that_is_only_looked_at_does_not_keep_two_tables() {
        let (mut map, now) = (TtlMap::new(100), Instant::now());
        // The last doubling is with the 97th.
        (0..100).for_each(|key| map.insert(key, key, TTL, now));
        assert!(map.index.is_moving());
        assert!((0..100).all(|key| map.get(&key, now) == Some(&key)));
        assert!(!map.index.is_moving());
    }

    proptest! {
        /// Against a plain model: what the map says is there was put there last under that key and is not expired.
        #[test]
        fn never_tells_another_keys_or_an_old_value(ops in proptest::collection::vec((0u8..3, 0u8..12, 0u64..20), 1..300)) {
            let (mut map, start) = (TtlMap::new(5), Instant::now());
            let mut model = HashMap::new();
            for (step, (op, key, ttl)) in ops.into_iter().enumerate() {
                let now = start + Duration::from_secs(step as u64);
                match op {
                    0 => { map.insert(key, step, Duration::from_secs(ttl), now); model.insert(key, (step, now + Duration::from_secs(ttl))); }
                    1 => { map.remove(&key); model.remove(&key); }
                    _ => if let Some(value) = map.get(&key, now).copied() {
                        let (expected, expires) = model[&key];
                        prop_assert_eq!(value, expected);
                        prop_assert!(expires > now);
                    }
                }
                prop_assert!(map.len() <= 5);
                prop_assert_eq!(map.index.len(), map.slots.len());
                for (at, slot) in map.slots.iter().enumerate() {
                    prop_assert_eq!(map.find(&slot.key), Some(at));
                }
            }
        }
    }
}
