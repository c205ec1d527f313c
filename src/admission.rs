//! How much of the gate one client or one sandbox may use: the one thing all shards share.
//!
//! The kernel spreads a client's connections over the shards as it likes, so a limit that each shard counted by itself would
//! be somewhere between what is written and that many times the shards. What is shared is asked for only where a limit is
//! configured or a look-up leaves the shard: one lock of a [`Stripe`], held for one look into a table, never over a wait.
//!
//! Look-ups that ask the control plane are counted against the client that caused them and given back when it turns
//! out to be let in. So who guesses names or tokens can make the gate ask the API no faster than its bucket fills, and
//! who may pass never notices. The other limits are off unless configured.

use crate::ids::SandboxId;
use crate::rate::{Buckets, ClientNet, Rate};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// As many that two shards seldom want the same one at once.
const STRIPES_MAX: usize = 64;
/// A stripe of few keys would fill while others have room.
const KEYS_IN_STRIPE_MIN: usize = 1024;

/// What is configured; `None`: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdmissionRules {
    /// Look-ups in vain, per client.
    pub lookups: Option<Rate>,
    /// Requests per client.
    pub client_requests: Option<Rate>,
    /// Requests per sandbox.
    pub sandbox_requests: Option<Rate>,
    /// Open connections per client.
    pub client_connections_max: Option<u32>,
    /// Requests and tunnels under way per sandbox.
    pub sandbox_requests_max: Option<u32>,
    /// Clients, and sandboxes, a limit remembers. Costs about 150 bytes each and limit.
    pub keys_max: usize,
}

pub struct Admission {
    lookups: Option<Striped<Buckets<ClientNet>>>,
    client_requests: Option<Striped<Buckets<ClientNet>>>,
    sandbox_requests: Option<Striped<Buckets<SandboxId>>>,
    client_connections: Option<Arc<Counted<ClientNet>>>,
    sandbox_under_way: Option<Arc<Counted<SandboxId>>>,
}

/// Which limit it was, for counters and answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    LookUps,
    ClientRequests,
    ClientConnections,
    Sandbox,
}

impl Limit {
    pub const ALL: &'static [Self] =
        &[Self::LookUps, Self::ClientRequests, Self::ClientConnections, Self::Sandbox];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::LookUps => "lookups",
            Self::ClientRequests => "client_requests",
            Self::ClientConnections => "client_connections",
            Self::Sandbox => "sandbox",
        }
    }
}

/// Too much; whole seconds until it is worth another try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exceeded(pub u32);

impl Admission {
    pub fn new(rules: &AdmissionRules) -> Self {
        let keys_max = rules.keys_max;
        Self {
            lookups: rules.lookups.map(|rate| buckets(rate, keys_max)),
            client_requests: rules.client_requests.map(|rate| buckets(rate, keys_max)),
            sandbox_requests: rules.sandbox_requests.map(|rate| buckets(rate, keys_max)),
            client_connections: rules.client_connections_max.map(Counted::new),
            sandbox_under_way: rules.sandbox_requests_max.map(Counted::new),
        }
    }

    /// Before a look-up that asks the control plane.
    pub fn look_up(&self, client: ClientNet, now: Instant) -> Result<(), Exceeded> {
        take(&self.lookups, &client, now)
    }

    /// So many look-ups were not in vain.
    pub fn looked_up_well(&self, client: ClientNet, count: u32, now: Instant) {
        if let Some(lookups) = &self.lookups {
            lookups.with(&client, |buckets| buckets.give_back(&client, count, now));
        }
    }

    pub fn client_request(&self, client: ClientNet, now: Instant) -> Result<(), Exceeded> {
        take(&self.client_requests, &client, now)
    }

    /// `Ok(Some(_))` is held for as long as the request or tunnel lives.
    pub fn sandbox_request(
        &self,
        sandbox: &SandboxId,
        now: Instant,
    ) -> Result<Option<Held<SandboxId>>, Exceeded> {
        take(&self.sandbox_requests, sandbox, now)?;
        hold(&self.sandbox_under_way, *sandbox)
    }

    /// `Ok(Some(_))` is held for as long as the connection lives.
    pub fn client_connection(&self, client: ClientNet) -> Result<Option<Held<ClientNet>>, Exceeded> {
        hold(&self.client_connections, client)
    }
}

fn buckets<K: Hash + Eq + Clone>(rate: Rate, keys_max: usize) -> Striped<Buckets<K>> {
    let stripes = stripes_for(keys_max);
    Striped::new(stripes, || Buckets::new(rate, keys_max.div_ceil(stripes)))
}

fn take<K: Hash + Eq + Clone>(
    buckets: &Option<Striped<Buckets<K>>>,
    key: &K,
    now: Instant,
) -> Result<(), Exceeded> {
    let Some(buckets) = buckets else { return Ok(()) };
    let ceil = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    buckets
        .with(key, |buckets| buckets.take(key, now))
        .map_err(|wait| Exceeded(u32::try_from(ceil(wait)).unwrap_or(u32::MAX)))
}

fn hold<K: Hash + Eq + Copy>(counted: &Option<Arc<Counted<K>>>, key: K) -> Result<Option<Held<K>>, Exceeded> {
    counted.as_ref().map(|counted| Counted::hold(counted, key)).transpose()
}

/// How many there are of each key now. Keys without any are not kept, so what bounds all of them bounds the table.
struct Counted<K> {
    counts: Striped<HashMap<K, u32>>,
    max: u32,
}

/// One of those counted, until it is dropped.
pub struct Held<K: Hash + Eq> {
    counted: Arc<Counted<K>>,
    key: K,
}

impl<K: Hash + Eq + Copy> Counted<K> {
    fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { counts: Striped::new(STRIPES_MAX, HashMap::default), max })
    }

    fn hold(self: &Arc<Self>, key: K) -> Result<Held<K>, Exceeded> {
        self.counts.with(&key, |counts| {
            let count = counts.get(&key).copied().unwrap_or(0);
            if count >= self.max {
                return Err(Exceeded(1));
            }
            counts.insert(key, count + 1);
            Ok(())
        })?;
        Ok(Held { counted: self.clone(), key })
    }
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        self.counted.counts.with(&self.key, |counts| match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.key);
            }
        });
    }
}

/// A table in parts that are locked apart. Which part a key is in nobody outside can tell: the hash is seeded anew in every
/// process.
struct Striped<T> {
    stripes: Box<[Stripe<T>]>,
    hasher: RandomState,
}

/// On cache lines of its own, or shards would wait for each other's without sharing a lock.
#[repr(align(128))]
struct Stripe<T>(Mutex<T>);

/// Few keys are in few stripes, so that all of them find room.
fn stripes_for(keys_max: usize) -> usize {
    (keys_max / KEYS_IN_STRIPE_MIN).clamp(1, STRIPES_MAX)
}

impl<T> Striped<T> {
    fn new(stripes: usize, mut make: impl FnMut() -> T) -> Self {
        let stripes = (0..stripes).map(|_| Stripe(Mutex::new(make()))).collect();
        Self { stripes, hasher: RandomState::default() }
    }

    fn with<R>(&self, key: &impl Hash, look: impl FnOnce(&mut T) -> R) -> R {
        let at = self.hasher.hash_one(key) as usize % self.stripes.len();
        // A shard that panicked left the table between two looks: none of them has a half-way state.
        look(&mut self.stripes[at].0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::SeqCst;

    fn rules() -> AdmissionRules {
        AdmissionRules {
            lookups: None,
            client_requests: None,
            sandbox_requests: None,
            client_connections_max: None,
            sandbox_requests_max: None,
            keys_max: 100,
        }
    }

    fn rate(per_second: u32, burst: u32) -> Option<Rate> {
        let number = |n| NonZeroU32::new(n).expect("not zero");
        Some(Rate { per_second: number(per_second), burst: number(burst) })
    }

    const ALICE: ClientNet = ClientNet::V4(1);
    const BOB: ClientNet = ClientNet::V4(2);

    #[test]
    fn without_rules_nothing_is_refused() {
        let (admission, now) = (Admission::new(&rules()), Instant::now());
        let sandbox = SandboxId::parse(b"a").expect("an id");
        for _ in 0..10_000 {
            assert_eq!(admission.look_up(ALICE, now), Ok(()));
            assert_eq!(admission.client_request(ALICE, now), Ok(()));
            assert!(matches!(admission.sandbox_request(&sandbox, now), Ok(None)));
            assert!(matches!(admission.client_connection(ALICE), Ok(None)));
        }
    }

    #[test]
    fn look_ups_in_vain_run_out_and_good_ones_do_not() {
        let admission = Admission::new(&AdmissionRules { lookups: rate(1, 10), ..rules() });
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(admission.look_up(ALICE, now), Ok(()));
            assert_eq!(admission.look_up(ALICE, now), Ok(()));
            admission.looked_up_well(ALICE, 2, now);
        }
        (0..10).for_each(|_| assert_eq!(admission.look_up(ALICE, now), Ok(())));
        assert_eq!(admission.look_up(ALICE, now), Err(Exceeded(1)));
        assert_eq!(admission.look_up(BOB, now), Ok(()), "another client is not concerned");
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped_and_leaves_nothing_behind() {
        let admission = Admission::new(&AdmissionRules { client_connections_max: Some(2), ..rules() });
        let one = admission.client_connection(ALICE);
        let two = admission.client_connection(ALICE);
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(admission.client_connection(ALICE).err(), Some(Exceeded(1)));
        assert!(admission.client_connection(BOB).is_ok());
        drop(one);
        assert!(admission.client_connection(ALICE).is_ok());
        drop(two);
        assert_eq!(keys(&admission), 0);
    }

    fn keys(admission: &Admission) -> usize {
        let counted = admission.client_connections.as_ref().expect("configured");
        let stripes = counted.counts.stripes.iter();
        stripes.map(|stripe| stripe.0.lock().expect("nobody panicked").len()).sum()
    }

    #[test]
    fn shards_that_ask_at_once_get_what_is_written_and_not_one_more() {
        const SHARDS: usize = 4;
        const TRIES: u32 = 20_000;
        let rules = AdmissionRules {
            lookups: rate(1, 1000),
            client_connections_max: Some(2),
            keys_max: 100_000,
            ..rules()
        };
        let (admission, now) = (Admission::new(&rules), Instant::now());
        let (open, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let passed: usize = std::thread::scope(|scope| {
            let shard = || {
                let mut passed = 0;
                for _ in 0..TRIES {
                    passed += usize::from(admission.look_up(ALICE, now).is_ok());
                    if let Ok(held) = admission.client_connection(BOB) {
                        most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                        open.fetch_sub(1, SeqCst);
                        drop(held);
                    }
                }
                passed
            };
            let shards: Vec<_> = (0..SHARDS).map(|_| scope.spawn(shard)).collect();
            shards.into_iter().map(|shard| shard.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 1000);
        assert!((1..=2).contains(&most.load(SeqCst)), "{most:?} at once");
        assert_eq!(keys(&admission), 0);
    }

    #[test]
    fn as_many_clients_are_remembered_as_configured_or_nearly() {
        for keys_max in [1, 100, 2000, 100_000] {
            let admission = Admission::new(&AdmissionRules { lookups: rate(1, 1), keys_max, ..rules() });
            let now = Instant::now();
            for client in 0..2 * keys_max as u32 {
                assert_eq!(admission.look_up(ClientNet::V4(client), now), Ok(()));
            }
            let stripes = admission.lookups.as_ref().expect("configured").stripes.iter();
            let kept: usize = stripes.map(|stripe| stripe.0.lock().expect("no panic").len()).sum();
            // Twice as many fill every stripe but for chance.
            assert!(kept >= keys_max * 9 / 10 && kept <= keys_max + STRIPES_MAX, "{kept} of {keys_max}");
        }
    }

    #[test]
    fn a_shard_that_panicked_keeps_no_other_from_asking() {
        let admission = Admission::new(&AdmissionRules { lookups: rate(1, 1), ..rules() });
        let lookups = admission.lookups.as_ref().expect("configured");
        let panics = || lookups.with(&ALICE, |_| panic!("on purpose"));
        std::thread::scope(|scope| assert!(scope.spawn(panics).join().is_err()));
        assert_eq!(admission.look_up(ALICE, Instant::now()), Ok(()));
        assert_eq!(admission.look_up(ALICE, Instant::now()), Err(Exceeded(1)));
    }
}
