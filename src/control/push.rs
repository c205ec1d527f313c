//! What changed, as Redis tells it while it happens.
//!
//! Two sources on one connection: the keys API and proxies share (a deleted key is a changed sandbox) and the channel
//! on which the API publishes each change of a sandbox's state. A canary key that is written over another connection
//! once a second shows that news arrive, and how fast; while it is not heard, nothing may be remembered for long.
//!
//! What the channel says of the sandbox itself, its flag, its token and its state, takes rights away at once, and so does
//! the end of a key that said "public": nobody deletes it but the API, when the sandbox is made private. Nothing that is
//! heard gives a right, and where it does not say enough the API is asked.
//!
//! News are noted in the moment they are read, in the order Redis sent them, between the answers of the same
//! connection: an operation whose answer is there knows of every change before it.

pub(crate) mod event;
pub(crate) mod links;
mod taken;

use super::redis::{Listener, News, Redis};
use super::stats::Stats;
use crate::changes::Changes;
use crate::ids::{Port, SandboxId, SignedToken};
use crate::log::{Level, Log};
use crate::mailbox::{Change, Question, Said};
pub use links::key as link_key;
use links::{LINK_PREFIX, Links};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use taken::Taken;
use tokio::sync::{Notify, mpsc};

/// Where v0.190 and the API keep a sandbox's public flag,
const PUBLIC_PREFIX: &str = "proxy:sandbox-public:";
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
/// Sandboxes of which something was taken away lately.
const TAKEN_MAX: usize = 20_000;
/// Signed links asked about lately.
const LINKS_MAX: usize = 20_000;
/// Distance of two looks for links whose time has come.
const LINKS_EVERY: Duration = Duration::from_millis(100);
/// A key is written by each proxy that misses it at the same time; one that stood for longer is not written again, so
/// its end is its deletion, unless it was near its end anyway and somebody renewed it.
const STANDING: Duration = Duration::from_secs(10);
/// News on their way to the shards; with more, the shards are told to forget everything.
const NEWS_MAX: usize = 16 * 1024;

pub fn public_key(sandbox: &SandboxId) -> String {
    format!("{PUBLIC_PREFIX}{sandbox}")
}

/// A key whose deletion means something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shared {
    Public,
    Runner,
}

/// What a change can be about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Matter {
    /// The public flag alone.
    Flag,
    Anything,
}

impl Matter {
    pub fn of(question: &Question) -> Self {
        if matches!(question, Question::Public(_)) { Self::Flag } else { Self::Anything }
    }
}

/// A key that is in Redis.
#[derive(Clone, Copy)]
struct Present {
    until: Instant,
    /// Since when it says "public", if it does and may be believed.
    public_since: Option<Instant>,
}

/// For the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Changed(SandboxId, Change),
    /// The link may be over.
    Link(SignedToken, Port),
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
    /// Those that may have changed the flag.
    flags: Changes<Instant>,
    taken: Taken,
    links: Links,
    /// Until when a key is known to be in Redis. Only the end of such a key says that something changed: other
    /// proxies write keys that are not there, which says nothing.
    present: HashMap<(Shared, SandboxId), Present>,
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
            flags: Changes::new(CHANGES_MAX),
            taken: Taken::new(TAKEN_MAX, API_MEMORY),
            links: Links::new(LINKS_MAX),
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
    pub fn changed_since(&self, matter: Matter, sandbox: &SandboxId, at: Instant) -> bool {
        self.state().of(matter).since(sandbox, at)
    }

    pub fn last_change(&self, matter: Matter, sandbox: &SandboxId) -> Option<Instant> {
        self.state().of(matter).last(sandbox)
    }

    /// News have taken away what is asked about, and for so long the API may not know it yet.
    pub fn denies(&self, question: &Question) -> Option<Duration> {
        self.state().taken.denies(question, Instant::now())
    }

    /// From now until `until` the end of this key is a change. Say it before the key is read or written: its end may
    /// be told together with the answer. A key that is there already keeps its own time until more is known.
    /// `false`: there is no room, the end will not be noticed.
    pub fn expect(&self, key: Shared, sandbox: &SandboxId, until: Instant) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        if state.present.len() >= PRESENT_MAX {
            state.present.retain(|_, present| present.until > now);
        }
        if let Some(present) = state.present.get(&(key, *sandbox))
            && present.until > now
        {
            return true;
        }
        let room = state.present.len() < PRESENT_MAX;
        if room {
            state.present.insert((key, *sandbox), Present { until, public_since: None });
        }
        room
    }

    /// The key lives until then: it was read or is being written.
    pub fn watch(&self, key: Shared, sandbox: &SandboxId, until: Instant) {
        if let Some(present) = self.state().present.get_mut(&(key, *sandbox)) {
            present.until = until;
        }
    }

    /// The key, written at this moment, says "public" and is believed: its end takes that back.
    pub fn rests_on_flag(&self, sandbox: &SandboxId, written: Instant) {
        if let Some(present) = self.state().present.get_mut(&(Shared::Public, *sandbox)) {
            present.public_since = Some(written);
        }
    }

    /// The flag's key is not there. `true`: lately it ended while it said "public", so it was deleted, and the sandbox
    /// is not public any more.
    pub fn flag_is_absent(&self, sandbox: &SandboxId) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let lost = state.taken.has_lost_flag(sandbox, now);
        if lost && state.taken.denies(&Question::Public(*sandbox), now).is_none() {
            self.made_private(&mut state, *sandbox, now);
        }
        lost
    }

    /// The API says that the flag, as it stands in Redis, is not true any more. What Redis tells of what we write
    /// ourselves is nothing.
    pub fn withdraw(&self, sandbox: SandboxId) {
        let mut state = self.state();
        state.present.remove(&(Shared::Public, sandbox));
        self.made_private(&mut state, sandbox, Instant::now());
    }

    pub fn unwatch(&self, key: Shared, sandbox: &SandboxId) {
        self.state().present.remove(&(key, *sandbox));
    }

    /// The link is being asked about: from now on its end is told.
    pub fn expect_link(&self, token: SignedToken, port: Port) {
        self.state().links.expect((token, port), Instant::now());
    }

    pub fn forget_link(&self, token: SignedToken, port: Port) {
        self.state().links.forget((token, port));
    }

    pub fn link_ends_at(&self, token: SignedToken, port: Port, at: Instant) {
        self.state().links.ends_at((token, port), at);
    }

    /// Tells of links whose time has come, for ever.
    pub async fn keep_links(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LINKS_EVERY).await;
            let mut state = self.state();
            for (token, port) in state.links.over(Instant::now()) {
                self.tell(&mut state, Told::Link(token, port));
            }
        }
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
        self.canary_is_sent();
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

    /// From now on, to hear it is a proof that news arrive.
    pub fn canary_is_sent(&self) {
        self.state().canary_sent = Some(Instant::now());
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
            state.note_all();
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
        if let Some((token, port)) = links::of_key(key) {
            if state.links.forget((token, port)) {
                self.tell(state, Told::Link(token, port));
            }
            return;
        }
        let of = |prefix: &str| SandboxId::parse(key.strip_prefix(prefix.as_bytes())?);
        let (shared, sandbox) = if let Some(sandbox) = of(PUBLIC_PREFIX) {
            (Shared::Public, sandbox)
        } else if let Some(sandbox) = of(RUNNER_PREFIX) {
            (Shared::Runner, sandbox)
        } else {
            return;
        };
        let Some(Present { until, public_since }) = state.present.remove(&(shared, sandbox)) else { return };
        // A key that has come to its time says nothing.
        if until <= now {
            return;
        }
        match (shared, public_since) {
            (Shared::Runner, _) => self.changed(state, sandbox, Change::Runner, now),
            (Shared::Public, Some(since)) if since + STANDING <= now && now + STANDING < until => {
                self.made_private(state, sandbox, now);
            }
            (Shared::Public, since) => {
                if since.is_some() {
                    state.taken.flag_lost(sandbox, now);
                }
                self.changed(state, sandbox, Change::Public, now);
            }
        }
    }

    fn made_private(&self, state: &mut State, sandbox: SandboxId, now: Instant) {
        state.taken.said(sandbox, Said { public: Some(false), ..Said::default() }, now);
        self.changed(state, sandbox, Change::Private, now);
    }

    fn changed(&self, state: &mut State, sandbox: SandboxId, change: Change, now: Instant) {
        self.stats.push.changes.fetch_add(1, Relaxed);
        state.changes.note(sandbox, now);
        match change {
            Change::State(Said { public: Some(true), .. }) | Change::Runner => {}
            Change::State(_) | Change::Public | Change::Private => state.flags.note(sandbox, now),
        }
        self.tell(state, Told::Changed(sandbox, change));
    }

    fn published(&self, state: &mut State, payload: &[u8], now: Instant) {
        match event::read(payload) {
            Some((sandbox, said)) => {
                let said = state.taken.said(sandbox, said, now);
                self.changed(state, sandbox, Change::State(said), now);
            }
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
    fn of(&self, matter: Matter) -> &Changes<Instant> {
        match matter {
            Matter::Flag => &self.flags,
            Matter::Anything => &self.changes,
        }
    }

    /// What was taken away stays so.
    fn forget(&mut self) {
        self.trusted = false;
        self.present.clear();
        self.note_all();
    }

    fn note_all(&mut self) {
        let now = Instant::now();
        self.changes.note_all(now);
        self.flags.note_all(now);
    }
}

impl Listener for Push {
    fn prefixes(&self) -> Vec<String> {
        vec![PUBLIC_PREFIX.to_owned(), RUNNER_PREFIX.to_owned(), self.canary_key.clone()]
    }

    fn more_prefixes(&self) -> Vec<String> {
        vec![LINK_PREFIX.to_owned()]
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"proxy:sandbox-public:a";

    /// A key that said "public" for so long, and lives for so much longer, ends.
    fn after_the_end(age: Duration, left: Duration) -> (Arc<Push>, mpsc::Receiver<Told>, SandboxId) {
        let (push, told) = Push::new(Arc::default(), Log::discard());
        let (sandbox, now) = (SandboxId::parse(b"a").expect("an id"), Instant::now());
        assert!(push.expect(Shared::Public, &sandbox, now + Duration::from_secs(3600)));
        push.watch(Shared::Public, &sandbox, now + left);
        push.rests_on_flag(&sandbox, now.checked_sub(age).expect("the machine runs for longer"));
        push.hear(News::Invalidated(KEY));
        (push, told, sandbox)
    }

    #[test]
    fn a_standing_public_key_ends_by_its_deletion_and_a_new_one_may_have_been_written_twice() {
        let long = Duration::from_secs(60);
        let (push, mut told, sandbox) = after_the_end(STANDING, long);
        assert_eq!(told.try_recv(), Ok(Told::Changed(sandbox, Change::Private)));
        assert!(push.denies(&Question::Public(sandbox)).is_some());
        for (age, left) in [(Duration::ZERO, long), (STANDING, STANDING)] {
            let (push, mut told, sandbox) = after_the_end(age, left);
            assert_eq!(told.try_recv(), Ok(Told::Changed(sandbox, Change::Public)));
            assert_eq!(push.denies(&Question::Public(sandbox)), None);
            // Who looks for it and does not find it knows.
            assert!(push.flag_is_absent(&sandbox));
            assert_eq!(told.try_recv(), Ok(Told::Changed(sandbox, Change::Private)));
            assert!(push.denies(&Question::Public(sandbox)).is_some());
        }
        // One that has come to its time says nothing.
        let (push, mut told, sandbox) = after_the_end(STANDING, Duration::ZERO);
        assert!(told.try_recv().is_err() && !push.flag_is_absent(&sandbox));
    }

    #[test]
    fn a_key_read_again_keeps_its_time_so_that_its_end_is_not_taken_for_a_deletion() {
        let (push, mut told) = Push::new(Arc::default(), Log::discard());
        let (sandbox, now) = (SandboxId::parse(b"a").expect("an id"), Instant::now());
        push.expect(Shared::Public, &sandbox, now + STANDING);
        push.watch(Shared::Public, &sandbox, now);
        push.rests_on_flag(&sandbox, now);
        push.expect(Shared::Public, &sandbox, now + Duration::from_secs(3600));
        push.hear(News::Invalidated(KEY));
        // It was thought to be another one by then.
        assert_eq!(told.try_recv(), Ok(Told::Changed(sandbox, Change::Public)));
        assert!(!push.flag_is_absent(&sandbox));
    }

    #[test]
    fn that_the_flag_is_what_it_was_is_no_change_of_it() {
        let (push, _told) = Push::new(Arc::default(), Log::discard());
        let (sandbox, before) = (SandboxId::parse(b"a").expect("an id"), Instant::now());
        push.hear(News::Published(br#"{"sandbox":{"id":"a","public":true},"newState":"started"}"#));
        assert!(push.changed_since(Matter::Anything, &sandbox, before));
        assert!(!push.changed_since(Matter::Flag, &sandbox, before));
        push.hear(News::Published(br#"{"sandbox":{"id":"a"},"newState":"started"}"#));
        assert!(push.changed_since(Matter::Flag, &sandbox, before));
    }
}
