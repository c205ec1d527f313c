//! Token buckets, one per key, in a bounded table. Pure: `now` is given.
//!
//! A bucket is kept as the moment at which it will be full again (the generic cell rate algorithm, ITU-T I.371): one
//! instant per key, and a full bucket is no entry at all, so expiry forgets nothing. When the table is full the entry
//! that was not used for longest starts anew: a flood of once-seen keys gains no more than it has, a full bucket each.

use crate::cache::TtlMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

impl Rate {
    /// In which one token comes, and in which an empty bucket fills.
    fn times(self) -> (Duration, Duration) {
        let interval = Duration::from_secs(1) / self.per_second.get();
        (interval, interval * self.burst.get())
    }
}

/// One bucket by itself.
pub struct Bucket {
    /// `None`: it is full.
    full_at: Option<Instant>,
    interval: Duration,
    span: Duration,
}

impl Bucket {
    pub fn new(rate: Rate) -> Self {
        let (interval, span) = rate.times();
        Self { full_at: None, interval, span }
    }

    /// Takes a token; `false`: there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        let taken = full_at.duration_since(now) <= self.span;
        if taken {
            self.full_at = Some(full_at);
        }
        taken
    }
}

pub struct Buckets<K> {
    /// When each will be full again.
    full_at: TtlMap<K, Instant>,
    /// In which one token comes.
    interval: Duration,
    /// In which an empty bucket fills.
    span: Duration,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// At most `keys_max` are remembered.
    pub fn new(rate: Rate, keys_max: usize) -> Self {
        let (interval, span) = rate.times();
        Self { full_at: TtlMap::new(keys_max), interval, span }
    }

    /// Takes a token, or says how long to wait for one.
    pub fn take(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.get(key, now).copied().unwrap_or(now) + self.interval;
        let empty_for = full_at.duration_since(now);
        if empty_for > self.span {
            return Err(empty_for - self.span);
        }
        self.full_at.insert(key.clone(), full_at, empty_for, now);
        Ok(())
    }

    /// Puts tokens back; what would not fit is lost.
    pub fn give_back(&mut self, key: &K, count: u32, now: Instant) {
        let Some(full_at) = self.full_at.get(key, now).copied() else { return };
        let empty_for = full_at.duration_since(now).saturating_sub(self.interval * count);
        self.full_at.insert(key.clone(), now + empty_for, empty_for, now);
    }

    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }
}

/// Who is counted as one: an IPv4 address, or the /64 that an IPv6 customer has at least (RFC 6177).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ClientNet {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for ClientNet {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buckets(per_second: u32, burst: u32, keys_max: usize) -> Buckets<u32> {
        let number = |n| NonZeroU32::new(n).expect("not zero");
        Buckets::new(Rate { per_second: number(per_second), burst: number(burst) }, keys_max)
    }

    #[test]
    fn a_burst_passes_then_one_per_interval_and_the_wait_told_is_the_wait_there_is() {
        let (mut buckets, now) = (buckets(10, 5, 4), Instant::now());
        (0..5).for_each(|n| assert_eq!(buckets.take(&1, now), Ok(()), "{n}"));
        let wait = buckets.take(&1, now).expect_err("empty");
        assert_eq!(wait, Duration::from_millis(100));
        assert!(buckets.take(&1, now + wait - Duration::from_nanos(1)).is_err());
        assert_eq!(buckets.take(&1, now + wait), Ok(()));
        assert_eq!(buckets.take(&2, now), Ok(()), "another's bucket is its own");
    }

    #[test]
    fn a_bucket_by_itself_gives_what_is_asked_slowly_for_ever_and_a_burst_once() {
        let number = |n| NonZeroU32::new(n).expect("not zero");
        let mut bucket = Bucket::new(Rate { per_second: number(10), burst: number(5) });
        let mut now = Instant::now();
        for beat in 0..10_000 {
            assert!(bucket.take(now), "{beat}");
            now += Duration::from_millis(100);
        }
        assert_eq!((0..100).filter(|_| bucket.take(now)).count(), 5);
        now += Duration::from_millis(300);
        assert_eq!((0..100).filter(|_| bucket.take(now)).count(), 3);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more() {
        let (mut buckets, now) = (buckets(1, 3, 4), Instant::now());
        (0..3).for_each(|_| assert!(buckets.take(&1, now).is_ok()));
        buckets.give_back(&1, 2, now);
        assert!(buckets.take(&1, now).is_ok() && buckets.take(&1, now).is_ok());
        assert!(buckets.take(&1, now).is_err());
        buckets.give_back(&1, 100, now);
        (0..3).for_each(|_| assert!(buckets.take(&1, now).is_ok()));
        assert!(buckets.take(&1, now).is_err());
    }

    #[test]
    fn a_flood_of_keys_grows_nothing_and_frees_nobody_who_keeps_knocking() {
        let (mut buckets, now) = (buckets(1, 1, 100), Instant::now());
        assert!(buckets.take(&u32::MAX, now).is_ok());
        for key in 0..10_000 {
            assert!(buckets.take(&u32::MAX, now).is_err(), "freed by {key}");
            assert!(buckets.take(&key, now).is_ok());
        }
        assert_eq!(buckets.len(), 100);
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_mapped_address_is_the_ipv4_one() {
        let net = |text: &str| ClientNet::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(net("2001:db8:1:2::1"), net("2001:db8:1:2:ffff::9"));
        assert_ne!(net("2001:db8:1:2::1"), net("2001:db8:1:3::1"));
        assert_eq!(net("::ffff:192.0.2.1"), net("192.0.2.1"));
        assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
    }

    proptest! {
        /// Against a plain bucket of fractions: in any stretch no more passes than the burst and what came meanwhile.
        #[test]
        fn no_more_passes_than_a_bucket_holds_and_gets(
            (rate, burst) in (1u32..200, 1u32..50),
            steps in proptest::collection::vec(0u64..40, 1..300),
        ) {
            let (mut buckets, start) = (buckets(rate, burst, 4), Instant::now());
            let (mut now, mut tokens) = (start, f64::from(burst));
            for millis in steps {
                now += Duration::from_millis(millis);
                tokens = (tokens + millis as f64 * f64::from(rate) / 1000.0).min(f64::from(burst));
                let passed = buckets.take(&1, now).is_ok();
                // Rounding of the interval to nanoseconds.
                if (tokens - 1.0).abs() > 1e-3 {
                    prop_assert_eq!(passed, tokens > 1.0, "{} tokens", tokens);
                }
                if passed {
                    tokens -= 1.0;
                }
            }
        }
    }
}
