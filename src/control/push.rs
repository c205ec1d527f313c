//! What changed, as Redis tells it while it happens.
//!
//! Two sources on one connection: the keys API and proxies share (a deleted key is a changed sandbox) and the channel
//! on which the API publishes each change of a sandbox's state. A canary key that is written over another connection
//! once a second shows that news arrive, and how fast; while it is not heard, nothing may be remembered for long.
//!
//! News are noted in the moment they are read, in the order Redis sent them, between the answers of the same
//! connection: an operation whose answer is there knows of every change before it.

use super::redis::{Listener, News, Redis};
use super::stats::Stats;
use crate::changes::Changes;
use crate::counters::Revoked;
use crate::ids::SandboxId;
use crate::log::{Level, Log};
use crate::mailbox::Change;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Where v0.190 and the API keep a sandbox's public flag,
pub const PUBLIC_PREFIX: &str = "proxy:sandbox-public:";
/// and its runner.
pub const RUNNER_PREFIX: &str = "proxy:sandbox-runner-info:";
/// Where the API publishes changes of state.
const CHANNEL: &str = "sandbox.event.channel";
const CANARY_PREFIX: &str = "proxy:sandgate-canary:";
const CANARY_EVERY: Duration = Duration::from_secs(1);
/// Longer than a write and its news ever take, unless something is broken.
const CANARY_DEADLINE: Duration = Duration::from_secs(2);
/// How long the API answers from a memory of its own (3 s) after a change.
pub const API_MEMORY: Duration = Duration::from_millis(3500);
/// Changes remembered; see [`Changes`].
const CHANGES_MAX: usize = 50_000;
/// Keys known to be in Redis. Costs about 150 bytes each; what finds no room is remembered for short times only.
const PRESENT_MAX: usize = 200_000;
/// News on their way to the shards; with more, the shards are told to forget everything.
const NEWS_MAX: usize = 16 * 1024;

/// A key whose deletion means something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shared {
    Public,
    Runner,
}

/// For the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Changed(SandboxId, Change),
    Forget,
    Canary(Instant),
}

/// What has been heard. One per process.
pub struct Push {
    state: Mutex<State>,
    told: mpsc::Sender<Told>,
    canary_key: String,
    heard: Notify,
    stats: Arc<Stats>,
    log: Log,
}

struct State {
    changes: Changes<Instant>,
    /// Until when a key is known to be in Redis. Only the end of such a key says that something changed: other
    /// proxies write keys that are not there, which says nothing.
    present: HashMap<(Shared, SandboxId), Instant>,
    /// Since when no news can have been missed.
    complete_since: Option<Instant>,
    canary_sent: Option<Instant>,
    trusted: bool,
    /// The queue was full: what was lost is made up for by forgetting everything.
    lost: bool,
}

impl Push {
    /// The receiver is the way to the shards.
    pub fn new(stats: Arc<Stats>, log: Log) -> (Arc<Self>, mpsc::Receiver<Told>) {
        let (told, receiver) = mpsc::channel(NEWS_MAX);
        let state = State {
            changes: Changes::new(CHANGES_MAX),
            present: HashMap::new(),
            complete_since: None,
            canary_sent: None,
            trusted: false,
            lost: false,
        };
        let canary_key = format!("{CANARY_PREFIX}{}", uuid::Uuid::now_v7());
        let push = Self { state: Mutex::new(state), told, canary_key, heard: Notify::new(), stats, log };
        (Arc::new(push), receiver)
    }

    /// News arrive: what is remembered will be taken back when it changes.
    pub fn is_trusted(&self) -> bool {
        self.state().trusted
    }

    /// Since when every change would have been heard; `None`: not now.
    pub fn complete_since(&self) -> Option<Instant> {
        let state = self.state();
        state.complete_since.filter(|_| state.trusted)
    }

    /// Has the sandbox changed, or may it have, at `at` or later?
    pub fn changed_since(&self, sandbox: &SandboxId, at: Instant) -> bool {
        self.state().changes.since(sandbox, at)
    }

    pub fn last_change(&self, sandbox: &SandboxId) -> Option<Instant> {
        self.state().changes.last(sandbox)
    }

    /// From now until `until` the end of this key is a change. Say it before the key is read or written: its end may
    /// be told together with the answer. `false`: there is no room, the end will not be noticed.
    pub fn watch(&self, key: Shared, sandbox: &SandboxId, until: Instant) -> bool {
        let mut state = self.state();
        if state.present.len() >= PRESENT_MAX {
            let now = Instant::now();
            state.present.retain(|_, until| *until > now);
        }
        let room = state.present.len() < PRESENT_MAX;
        if room {
            state.present.insert((key, *sandbox), until);
        }
        room
    }

    pub fn unwatch(&self, key: Shared, sandbox: &SandboxId) {
        self.state().present.remove(&(key, *sandbox));
    }

    /// Writes the canary and listens for it, for ever.
    pub async fn keep_canary(self: Arc<Self>, redis: Redis) {
        let mut up = redis.watch_up();
        loop {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            let Ok(mut writer) = redis.connect_writer().await else {
                tokio::time::sleep(CANARY_EVERY).await;
                continue;
            };
            while redis.is_up() && self.sing(&mut writer).await {
                tokio::time::sleep(CANARY_EVERY).await;
            }
            self.distrust();
            tokio::time::sleep(CANARY_EVERY / 4).await;
        }
    }

    /// `false`: it was not written, or not heard.
    async fn sing(&self, writer: &mut super::redis::Writer) -> bool {
        let heard = self.heard.notified();
        self.state().canary_sent = Some(Instant::now());
        let singing = async {
            writer.set(&self.canary_key, b"{\"value\":true}", CANARY_EVERY * 10).await?;
            heard.await;
            Ok::<_, super::redis::Failure>(())
        };
        let heard = matches!(tokio::time::timeout(CANARY_DEADLINE, singing).await, Ok(Ok(())));
        if !heard {
            self.log.event(Level::Warn, "redis_push_silent", &[]);
        }
        heard
    }

    /// What was heard so far holds; what comes may be missed.
    fn distrust(&self) {
        let mut state = self.state();
        if state.trusted {
            state.forget();
            self.tell(&mut state, Told::Forget);
        }
        self.stats.push.trusted.store(0, Relaxed);
    }

    fn tell(&self, state: &mut State, told: Told) {
        if state.lost {
            // Until there is room for it.
            match self.told.try_send(Told::Forget) {
                Ok(()) => state.lost = false,
                Err(_) => return,
            }
        }
        if self.told.try_send(told).is_err() {
            state.changes.note_all(Instant::now());
            state.lost = true;
            self.stats.push.lost.fetch_add(1, Relaxed);
        }
    }

    fn invalidated(&self, state: &mut State, key: &[u8], now: Instant) {
        if key == self.canary_key.as_bytes() {
            let Some(sent) = state.canary_sent.take() else { return };
            state.trusted = state.complete_since.is_some();
            self.stats.push.trusted.store(u64::from(state.trusted), Relaxed);
            self.heard.notify_waiters();
            return self.tell(state, Told::Canary(sent));
        }
        let of = |prefix: &str| SandboxId::parse(key.strip_prefix(prefix.as_bytes())?);
        let (shared, sandbox, change) = if let Some(sandbox) = of(PUBLIC_PREFIX) {
            (Shared::Public, sandbox, Change::Public)
        } else if let Some(sandbox) = of(RUNNER_PREFIX) {
            (Shared::Runner, sandbox, Change::Runner)
        } else {
            return;
        };
        // A key that has come to its time says nothing.
        if state.present.remove(&(shared, sandbox)).is_some_and(|until| now < until) {
            self.changed(state, sandbox, change, now);
        }
    }

    fn changed(&self, state: &mut State, sandbox: SandboxId, change: Change, now: Instant) {
        self.stats.push.changes.fetch_add(1, Relaxed);
        state.changes.note(sandbox, now);
        self.tell(state, Told::Changed(sandbox, change));
    }

    fn published(&self, state: &mut State, payload: &[u8], now: Instant) {
        match sandbox_event(payload) {
            Some((sandbox, change)) => self.changed(state, sandbox, change, now),
            None => {
                self.stats.push.unreadable.fetch_add(1, Relaxed);
                self.log.event(Level::Warn, "sandbox_event_unreadable", &[]);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of it is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self) {
        self.trusted = false;
        self.present.clear();
        self.changes.note_all(Instant::now());
    }
}

impl Listener for Push {
    fn prefixes(&self) -> Vec<String> {
        vec![PUBLIC_PREFIX.to_owned(), RUNNER_PREFIX.to_owned(), self.canary_key.clone()]
    }

    fn channel(&self) -> &str {
        CHANNEL
    }

    fn hear(&self, news: News<'_>) {
        let now = Instant::now();
        let mut state = self.state();
        match news {
            News::Listening => state.complete_since = Some(now),
            News::Invalidated(key) => self.invalidated(&mut state, key, now),
            News::Published(payload) => self.published(&mut state, payload, now),
            News::AllInvalidated => {
                let trusted = state.trusted;
                state.forget();
                state.trusted = trusted;
                self.tell(&mut state, Told::Forget);
            }
            News::Lost => {
                state.complete_since = None;
                state.forget();
                self.stats.push.trusted.store(0, Relaxed);
                self.tell(&mut state, Told::Forget);
            }
        }
    }
}

/// What the API publishes: the whole sandbox, and for a change of state the new one. Everything else in it is left
/// unread, secrets among it.
#[derive(Deserialize)]
struct SandboxEvent {
    sandbox: EventSandbox,
    #[serde(rename = "newState")]
    new_state: Option<String>,
}

#[derive(Deserialize)]
struct EventSandbox {
    id: String,
}

/// The state as one in which nothing runs that could answer.
fn ended(state: &str) -> Option<Revoked> {
    match state {
        "stopped" => Some(Revoked::Stopped),
        "archived" => Some(Revoked::Archived),
        "destroyed" => Some(Revoked::Destroyed),
        _ => None,
    }
}

fn sandbox_event(payload: &[u8]) -> Option<(SandboxId, Change)> {
    let event: SandboxEvent = serde_json::from_slice(payload).ok()?;
    let ended = event.new_state.as_deref().and_then(ended);
    let sandbox = SandboxId::parse(event.sandbox.id.as_bytes())?;
    Some((sandbox, ended.map_or(Change::State, Change::Ended)))
}
