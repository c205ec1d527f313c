//! What all threads of the backend share: who exists, what has been changed by levers, faults in force, counters.
//!
//! The population is computed, only what levers changed is stored. Locks are held for a look-up and never across a wait;
//! requests to apps take none unless something has been changed.

use super::fault::{self, Fault, Rule};
use crate::population::{AuthKind, Population, Sandbox};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Sandboxes levers may change. Costs about 40 bytes each.
const CHANGED_MAX: usize = 1_000_000;

/// What stands in for the API and the runners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Api,
    Runner,
}

pub(super) struct World {
    pub population: Population,
    /// Only indices below exist.
    pub sandboxes_max: u64,
    pub proxy_key: String,
    pub runner_key: String,
    /// Base URLs with scheme and port, no slash at the end. There is at least one runner.
    pub api_url: String,
    pub runner_urls: Vec<String>,
    pub counters: Counters,
    changes: RwLock<HashMap<(u64, bool), Change>>,
    /// As many as `changes` has: read without the lock.
    changed: AtomicUsize,
    faults: RwLock<[Arc<[Rule]>; 2]>,
    faults_version: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Change {
    public: Option<bool>,
    /// 0 is the token the population says.
    token_number: u64,
    stopped: bool,
}

/// Too many sandboxes have been changed to remember one more.
#[derive(Debug)]
pub(super) struct Full;

impl World {
    pub fn new(
        population: Population,
        sandboxes_max: u64,
        keys: [String; 2],
        api_url: String,
        runner_urls: Vec<String>,
    ) -> Self {
        let [proxy_key, runner_key] = keys;
        Self {
            population,
            sandboxes_max,
            proxy_key,
            runner_key,
            api_url,
            runner_urls,
            counters: Counters::default(),
            changes: RwLock::default(),
            changed: AtomicUsize::new(0),
            faults: RwLock::new([Arc::new([]), Arc::new([])]),
            faults_version: AtomicU64::new(0),
        }
    }

    pub fn sandbox(&self, id: &str) -> Option<Sandbox> {
        self.population.sandbox_of_id(id).filter(|sandbox| sandbox.index < self.sandboxes_max)
    }

    /// Which runner the sandbox is on.
    pub fn runner_of(&self, sandbox: Sandbox) -> usize {
        (sandbox.index % self.runner_urls.len() as u64) as usize
    }

    pub fn is_public(&self, sandbox: Sandbox) -> bool {
        self.change_of(sandbox).public.unwrap_or(sandbox.public)
    }

    pub fn is_stopped(&self, sandbox: Sandbox) -> bool {
        self.change_of(sandbox).stopped
    }

    pub fn token(&self, sandbox: Sandbox) -> String {
        self.numbered_token(sandbox, self.change_of(sandbox).token_number)
    }

    pub fn set_public(&self, sandbox: Sandbox, public: bool) -> Result<(), Full> {
        self.change(sandbox, |change| change.public = Some(public)).map(drop)
    }

    pub fn set_stopped(&self, sandbox: Sandbox, stopped: bool) -> Result<(), Full> {
        self.change(sandbox, |change| change.stopped = stopped).map(drop)
    }

    /// The new token; the old one opens nothing from now on.
    pub fn rotate_token(&self, sandbox: Sandbox) -> Result<String, Full> {
        let change = self.change(sandbox, |change| change.token_number += 1)?;
        Ok(self.numbered_token(sandbox, change.token_number))
    }

    fn numbered_token(&self, sandbox: Sandbox, number: u64) -> String {
        match number {
            0 => self.population.token(sandbox),
            // One that opens nothing by the population's word: good from the moment it is given out here.
            number => self.population.bad(AuthKind::Token, sandbox, u64::MAX - number),
        }
    }

    fn change_of(&self, sandbox: Sandbox) -> Change {
        if self.changed.load(Relaxed) == 0 {
            return Change::default();
        }
        read(&self.changes).get(&(sandbox.index, sandbox.public)).copied().unwrap_or_default()
    }

    fn change(&self, sandbox: Sandbox, change: impl FnOnce(&mut Change)) -> Result<Change, Full> {
        let mut changes = write(&self.changes);
        let key = (sandbox.index, sandbox.public);
        if changes.len() >= CHANGED_MAX && !changes.contains_key(&key) {
            return Err(Full);
        }
        let entry = changes.entry(key).or_default();
        change(entry);
        let changed = *entry;
        self.changed.store(changes.len(), Relaxed);
        Ok(changed)
    }

    pub fn set_faults(&self, side: Side, rules: Vec<Rule>) {
        write(&self.faults)[side as usize] = rules.into();
        self.faults_version.fetch_add(1, Relaxed);
    }

    fn faults(&self, side: Side) -> Arc<[Rule]> {
        Arc::clone(&read(&self.faults)[side as usize])
    }
}

/// A connection's way to its faults: a copy of the rules, renewed when they change, and dice of its own.
pub(super) struct Dice {
    side: Side,
    rules: Arc<[Rule]>,
    version: u64,
    dice: fastrand::Rng,
}

impl Dice {
    /// Connections of the same number make the same throws.
    pub fn new(world: &World, side: Side, seed: u64, connection: u64) -> Self {
        let version = world.faults_version.load(Relaxed);
        let dice = fastrand::Rng::with_seed(seed ^ connection.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { side, rules: world.faults(side), version, dice }
    }

    /// The fault for a request: the one its query asks for, else by the rules. Jitter is thrown and part of the delay.
    ///
    /// # Errors
    /// The query asks for what is no fault.
    pub fn throw(&mut self, world: &World, path: &str, query: &str) -> Result<Fault, fault::Mistake> {
        let version = world.faults_version.load(Relaxed);
        if version != self.version {
            self.rules = world.faults(self.side);
            self.version = version;
        }
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("fault="));
        let mut fault = match asked {
            Some(text) => text.parse()?,
            None if self.rules.is_empty() => return Ok(Fault::default()),
            None => fault::choose(&self.rules, path, &mut self.dice),
        };
        if !fault.jitter.is_zero() {
            fault.delay += fault.jitter.mul_f64(self.dice.f64());
        }
        if !fault.is_none() {
            world.counters.faults(&fault);
        }
        Ok(fault)
    }
}

/// Requests to the API, by endpoint.
pub(super) const ENDPOINTS: [&str; 9] =
    ["config", "public", "validate", "access", "signed", "runner", "activity", "object", "other"];

/// Sums over all threads. Only grow, but for the two `_open`.
#[derive(Default)]
pub(super) struct Counters {
    pub api_requests: [AtomicU64; ENDPOINTS.len()],
    pub api_refusals: AtomicU64,
    pub api_connections: AtomicU64,
    /// Of proxies, through the relay.
    pub redis_connections: AtomicU64,
    pub runner_connections: AtomicU64,
    pub runner_connections_open: AtomicU64,
    pub runner_requests: AtomicU64,
    /// Requests without the runner's key: what a proxy must never send.
    pub runner_unauthorized: AtomicU64,
    pub runner_unknown_sandbox: AtomicU64,
    pub websockets: AtomicU64,
    pub websockets_open: AtomicU64,
    pub websocket_messages: AtomicU64,
    pub events: AtomicU64,
    pub body_bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub malformed: AtomicU64,
    /// Connections that ended in the middle of a request or of an answer without a fault of ours.
    pub broken_off: AtomicU64,
    pub faults: [AtomicU64; fault::KINDS.len()],
}

impl Counters {
    fn faults(&self, fault: &Fault) {
        for (count, happens) in self.faults.iter().zip(fault.kinds()) {
            count.fetch_add(u64::from(happens), Relaxed);
        }
    }

    pub fn json(&self) -> serde_json::Value {
        let load = |count: &AtomicU64| count.load(Relaxed);
        let named = |names: &[&str], counts: &[AtomicU64]| {
            names.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), load(count).into())).collect()
        };
        let (api, faults): (serde_json::Map<_, _>, serde_json::Map<_, _>) =
            (named(&ENDPOINTS, &self.api_requests), named(&fault::KINDS, &self.faults));
        serde_json::json!({
            "api": {"requests": api, "refusals": load(&self.api_refusals), "connections": load(&self.api_connections)},
            "redis": {"connections": load(&self.redis_connections)},
            "runner": {
                "connections": load(&self.runner_connections),
                "connections_open": load(&self.runner_connections_open),
                "requests": load(&self.runner_requests),
                "unauthorized": load(&self.runner_unauthorized),
                "unknown_sandbox": load(&self.runner_unknown_sandbox),
                "websockets": load(&self.websockets),
                "websockets_open": load(&self.websockets_open),
                "websocket_messages": load(&self.websocket_messages),
                "events": load(&self.events),
                "body_bytes_in": load(&self.body_bytes_in),
                "bytes_out": load(&self.bytes_out),
                "malformed": load(&self.malformed),
                "broken_off": load(&self.broken_off),
            },
            "faults": faults,
        })
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Counts one for as long as it lives.
pub(super) struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    pub fn new(counter: &'a AtomicU64) -> Self {
        count(counter);
        Self(counter)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What is behind these locks is whole after every statement: a panic elsewhere does not spoil it.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
