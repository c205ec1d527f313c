//! How much of the gate one client or one sandbox may use. A shard's own counts: nothing is shared.
//!
//! Look-ups that ask the control plane are counted against the client that caused them and given back when it turns
//! out to be let in. So who guesses names or tokens can make the gate ask the API no faster than its bucket fills, and
//! who may pass never notices. The other limits are off unless configured.

use crate::ids::SandboxId;
use crate::rate::{Buckets, ClientNet, Rate};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;
use std::time::{Duration, Instant};

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
    lookups: Option<RefCell<Buckets<ClientNet>>>,
    client_requests: Option<RefCell<Buckets<ClientNet>>>,
    sandbox_requests: Option<RefCell<Buckets<SandboxId>>>,
    client_connections: Option<Rc<Counted<ClientNet>>>,
    sandbox_under_way: Option<Rc<Counted<SandboxId>>>,
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
        let of_client = |rate: Rate| RefCell::new(Buckets::new(rate, rules.keys_max));
        Self {
            lookups: rules.lookups.map(of_client),
            client_requests: rules.client_requests.map(of_client),
            sandbox_requests: rules
                .sandbox_requests
                .map(|rate| RefCell::new(Buckets::new(rate, rules.keys_max))),
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
            lookups.borrow_mut().give_back(&client, count, now);
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

fn take<K: Hash + Eq + Clone>(
    buckets: &Option<RefCell<Buckets<K>>>,
    key: &K,
    now: Instant,
) -> Result<(), Exceeded> {
    let Some(buckets) = buckets else { return Ok(()) };
    let ceil = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    buckets
        .borrow_mut()
        .take(key, now)
        .map_err(|wait| Exceeded(u32::try_from(ceil(wait)).unwrap_or(u32::MAX)))
}

fn hold<K: Hash + Eq + Copy>(counted: &Option<Rc<Counted<K>>>, key: K) -> Result<Option<Held<K>>, Exceeded> {
    counted.as_ref().map(|counted| Counted::hold(counted, key)).transpose()
}

/// How many there are of each key now. Keys without any are not kept, so what bounds all of them bounds the table.
struct Counted<K> {
    counts: RefCell<HashMap<K, u32>>,
    max: u32,
}

/// One of those counted, until it is dropped.
pub struct Held<K: Hash + Eq> {
    counted: Rc<Counted<K>>,
    key: K,
}

impl<K: Hash + Eq + Copy> Counted<K> {
    fn new(max: u32) -> Rc<Self> {
        Rc::new(Self { counts: RefCell::default(), max })
    }

    fn hold(self: &Rc<Self>, key: K) -> Result<Held<K>, Exceeded> {
        let mut counts = self.counts.borrow_mut();
        let count = counts.get(&key).copied().unwrap_or(0);
        if count >= self.max {
            return Err(Exceeded(1));
        }
        counts.insert(key, count + 1);
        Ok(Held { counted: self.clone(), key })
    }
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        let mut counts = self.counted.counts.borrow_mut();
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

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
        let counted = admission.client_connections.expect("configured");
        assert!(counted.counts.borrow().is_empty());
    }
}
