//! Request ids: UUIDv7 (RFC 9562 5.7), from a generator of the shard's own so that none is shared between cores.

use rustix::time::ClockId;
use std::cell::Cell;

/// Room for the textual form.
pub type RequestId = [u8; 36];

/// Not for secrets: ids only have to differ (xorshift64*, seeded by the system once).
pub struct RequestIds {
    state: Cell<u64>,
}

impl RequestIds {
    pub fn new() -> Self {
        let seed = uuid::Uuid::now_v7().as_u128() as u64;
        Self { state: Cell::new(seed | 1) }
    }

    /// The textual form, in `room`.
    pub fn next<'r>(&self, room: &'r mut RequestId) -> &'r str {
        // The time of the last timer interrupt, a few milliseconds old at most: a read instead of a look at the clock.
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        let millis = now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000;
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.random().to_ne_bytes());
        random[8..].copy_from_slice(&self.random().to_ne_bytes()[..2]);
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        id.hyphenated().encode_lower(room)
    }

    fn random(&self) -> u64 {
        let mut x = self.state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuid_v7_and_differ() {
        let ids = RequestIds::new();
        let made: std::collections::HashSet<_> =
            (0..10_000).map(|_| ids.next(&mut [0; 36]).to_string()).collect();
        assert_eq!(made.len(), 10_000);
        for id in made {
            let id = uuid::Uuid::try_parse(&id).expect("a UUID");
            assert_eq!(id.get_version_num(), 7);
        }
    }
}
