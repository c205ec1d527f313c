//! From a question to its answer and how long that may be remembered: Redis first, then the API, then Redis is told.
//!
//! The API is the truth. What stands in Redis is believed as far as its shape goes and only while the key lives; a
//! value that is not what it should be is a miss. An answer asked for before a change, or so soon after it that the
//! API may have answered from its own memory, is neither shared nor kept.

use super::api::Api;
use super::object::Object;
use super::push::{API_MEMORY, Matter, Push, RUNNER_PREFIX, Shared, link_key, public_key};
use super::recheck::Rechecks;
use super::redis::{Failure, Redis, Stored};
use super::runner_address::RunnerUrl;
use super::stats::{SharedResult, Stats};
use crate::config::Config;
use crate::ids::{SandboxId, SignedToken, Token};
use crate::mailbox::{Answer, ProofKind, Question, Reply, RunnerAddress};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// v0.190's, for every key of these kinds.
const PUBLIC_TTL: Duration = Duration::from_secs(3600);
const RUNNER_TTL: Duration = Duration::from_secs(120);
const VERDICT_TTL: Duration = Duration::from_secs(120);
/// Our own verdicts: `<prefix><kind>:<sandbox>:<SHA-256 of the token>`. v0.190 puts the token itself into the name.
const VERDICT_PREFIX: &str = "proxy:sandgate-verdict:";
/// v0.190's verdicts: `<prefix><sandbox>:<token>`, whatever the token was shown as.
const V0_190_VERDICT_PREFIX: &str = "proxy:sandbox-auth-key-valid:";
/// Longest value that is read.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// For so long after a change, what stands in Redis may have been put there by a proxy that asked too early.
const DOUBT: Duration = Duration::from_secs(10);

/// How long answers may be remembered.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a public flag, a runner and a good token, when nobody tells of changes.
    pub public: Duration,
    pub runner: Duration,
    pub verdict: Duration,
    /// Of any "no".
    pub negative: Duration,
    /// Of a public flag and a runner whose change will be heard of.
    pub public_pushed: Duration,
    pub runner_pushed: Duration,
}

impl Lifetimes {
    pub fn of(config: &Config) -> Self {
        Self {
            public: config.ttl_public,
            runner: config.ttl_runner,
            verdict: config.ttl_verdict,
            negative: config.ttl_negative,
            public_pushed: config.ttl_public_pushed,
            runner_pushed: config.ttl_runner_pushed,
        }
    }
}

/// A reply and how long it may be kept.
#[derive(Debug)]
pub struct Found {
    pub reply: Reply,
    pub keep: Duration,
}

pub struct Lookup {
    api: Arc<Api>,
    shared: Option<SharedCache>,
    lifetimes: Lifetimes,
    stats: Arc<Stats>,
    /// The account in Redis may see when signed links end.
    sees_links: AtomicBool,
}

struct SharedCache {
    redis: Redis,
    push: Arc<Push>,
    rechecks: Rechecks,
}

/// An answer that may be kept so long if its change will be heard of, and so long if not.
struct Keep {
    pushed: Duration,
    alone: Duration,
}

impl Lookup {
    pub fn new(
        api: Arc<Api>,
        shared: Option<(Redis, Arc<Push>)>,
        lifetimes: Lifetimes,
        stats: Arc<Stats>,
    ) -> Self {
        let shared = shared.map(|(redis, push)| {
            let rechecks =
                Rechecks::new(Arc::clone(&api), redis.clone(), Arc::clone(&push), Arc::clone(&stats));
            SharedCache { redis, push, rechecks }
        });
        Self { api, shared, lifetimes, stats, sees_links: AtomicBool::new(true) }
    }

    /// Cancel-safe.
    pub async fn answer(&self, question: &Question) -> Found {
        if let Some(denied) = self.denied(question) {
            return denied;
        }
        let found = self.find(question).await;
        // What was taken away meanwhile is not given, whatever was found.
        self.denied(question).unwrap_or(found)
    }

    /// What news have taken away, and the API may not know yet.
    fn denied(&self, question: &Question) -> Option<Found> {
        let SharedCache { push, .. } = self.shared.as_ref()?;
        let keep = push.denies(question)?.min(self.lifetimes.negative);
        Some(Found { reply: Ok(Answer::No), keep })
    }

    async fn find(&self, question: &Question) -> Found {
        let began = Instant::now();
        // The name of a key is told to everybody who may list keys or watch commands.
        let shared = self.shared.as_ref().filter(|_| !may_name_a_link(question));
        match (question, shared) {
            (Question::Public(sandbox), Some(shared)) => self.public(question, sandbox, shared, began).await,
            (Question::Runner { sandbox, fresh }, Some(shared)) => {
                self.runner(question, (sandbox, *fresh), shared, began).await
            }
            (Question::Verdict { proof, sandbox, token, .. }, Some(shared)) => {
                self.verdict(question, (*proof, sandbox, token), shared, began).await
            }
            (Question::SignedToken { token, port }, Some(SharedCache { redis, push, .. })) => {
                push.expect_link(*token, *port);
                let found = self.alone(question).await;
                match found.reply {
                    Ok(Answer::Sandbox(_)) => {
                        self.note_end(&link_key(token, *port), redis, |at| {
                            push.link_ends_at(*token, *port, at)
                        })
                        .await;
                    }
                    // Nothing rests on it: who guesses takes no place from links there are.
                    _ => push.forget_link(*token, *port),
                }
                found
            }
            _ => self.alone(question).await,
        }
    }

    async fn alone(&self, question: &Question) -> Found {
        let reply = self.api.answer(question).await;
        let keep = self.keep_alone(question, &reply);
        Found { reply, keep }
    }

    /// When the link's key ends, if it can be seen.
    async fn note_end(&self, key: &str, redis: &Redis, note: impl FnOnce(Instant)) {
        if !self.sees_links.load(Relaxed) {
            return;
        }
        match redis.lives_for(key).await {
            Ok(Some(left)) => note(Instant::now() + left),
            // An account that may not look will not be let look later.
            Err(Failure::Refused) => self.sees_links.store(false, Relaxed),
            Ok(None) | Err(Failure::Down) => {}
        }
    }

    /// An answer asked for at `began` may be about what was before a change.
    pub fn is_outdated(&self, question: &Question, began: Instant) -> bool {
        let Some(SharedCache { push, .. }) = &self.shared else { return false };
        question.sandbox().is_some_and(|sandbox| push.changed_since(Matter::of(question), sandbox, began))
    }

    /// Nobody tells of changes.
    fn keep_alone(&self, question: &Question, reply: &Reply) -> Duration {
        let lifetimes = &self.lifetimes;
        match (question, reply) {
            (_, Err(_)) => Duration::ZERO,
            (Question::Public(_), Ok(Answer::Yes)) => lifetimes.public,
            (Question::Verdict { .. }, Ok(Answer::Yes)) => lifetimes.verdict,
            (_, Ok(Answer::Runner(_))) => lifetimes.runner,
            (_, Ok(Answer::No | Answer::NotFound)) => lifetimes.negative,
            // What else there is, who asks knows best how long it holds.
            _ => Duration::MAX,
        }
    }

    async fn public(
        &self,
        question: &Question,
        sandbox: &SandboxId,
        shared: &SharedCache,
        began: Instant,
    ) -> Found {
        let SharedCache { redis, push, .. } = shared;
        let Lifetimes { public, public_pushed, negative, .. } = self.lifetimes;
        let key = public_key(sandbox);
        let heard = push.expect(Shared::Public, sandbox, began + PUBLIC_TTL);
        let stored = self.read(redis, &[&key]).await.pop().flatten();
        let known = stored.as_ref().and_then(|stored| Some((flag(stored)?, stored.expires_in?)));
        self.count(stored.is_some(), known.is_some());
        if let Some((value, expires_in)) = known {
            push.watch(Shared::Public, sandbox, began + expires_in);
            let written = began.checked_sub(PUBLIC_TTL.saturating_sub(expires_in));
            if flag_is_believed(push, sandbox, value, written, began) {
                if value {
                    // One that has not long to live may have been written so: its age is not known.
                    let aged = written.filter(|_| expires_in > PUBLIC_TTL / 2);
                    push.rests_on_flag(sandbox, aged.unwrap_or(began));
                }
                let pushed = if heard && push.is_trusted() { public_pushed } else { public };
                let keep = if value { pushed } else { negative };
                return Found { reply: Ok(yes_or_no(value)), keep: keep.min(expires_in) };
            }
        }
        if stored.is_none()
            && push.flag_is_absent(sandbox)
            && let Some(denied) = self.denied(question)
        {
            return denied;
        }
        let asked = Instant::now();
        let reply = self.api.answer(question).await;
        let public_now = match &reply {
            Ok(Answer::Yes) => true,
            Ok(_) => false,
            Err(_) => {
                push.unwatch(Shared::Public, sandbox);
                return Found { reply, keep: Duration::ZERO };
            }
        };
        // "No" is the answer for every label that names no sandbox, too: v0.190's hour would fill Redis with them.
        let ttl = if public_now { PUBLIC_TTL } else { negative };
        let entry = Entry {
            key: &key,
            watched: heard.then_some(Shared::Public),
            says_public: public_now,
            value: flag_json(public_now),
            ttl,
        };
        let keep = if public_now {
            Keep { pushed: public_pushed, alone: public }
        } else {
            Keep { pushed: negative, alone: negative }
        };
        // Where the key ends nobody is told of changes: it must outlive what rests on it.
        let same = known.is_some_and(|(value, left)| value == public_now && left >= keep.pushed);
        let keep = share(shared, sandbox, asked, entry, same, keep).await;
        Found { reply, keep }
    }

    async fn runner(
        &self,
        question: &Question,
        (sandbox, fresh): (&SandboxId, bool),
        shared: &SharedCache,
        began: Instant,
    ) -> Found {
        let SharedCache { redis, push, .. } = shared;
        let Lifetimes { runner, runner_pushed, negative, .. } = self.lifetimes;
        let key = format!("{RUNNER_PREFIX}{sandbox}");
        let heard = push.expect(Shared::Runner, sandbox, began + RUNNER_TTL);
        let stored = if fresh { None } else { self.read(redis, &[&key]).await.pop().flatten() };
        let known = match stored.as_ref().and_then(|stored| Some((place(stored)?, stored.expires_in?))) {
            Some((place, expires_in)) => place.address().await.map(|address| (address, expires_in)),
            None => None,
        };
        self.count(stored.is_some(), known.is_some());
        if let Some((address, expires_in)) = &known {
            push.watch(Shared::Runner, sandbox, began + *expires_in);
            if !in_doubt(push, Matter::Anything, sandbox, began) {
                // Written when changes were not heard yet, it may be older than one.
                let written = began.checked_sub(RUNNER_TTL.saturating_sub(*expires_in));
                let pushed = heard && push.complete_since().is_some_and(|since| written >= Some(since));
                let keep = if pushed { runner_pushed } else { runner.min(*expires_in) };
                return Found { reply: Ok(Answer::Runner(Arc::clone(address))), keep };
            }
        }
        let asked = Instant::now();
        let reply = self.api.answer(question).await;
        let Ok(Answer::Runner(address)) = &reply else {
            push.unwatch(Shared::Runner, sandbox);
            let keep = if reply.is_ok() { negative } else { Duration::ZERO };
            return Found { reply, keep: keep.min(until_settled(push, Matter::Anything, sandbox, asked)) };
        };
        let entry = Entry {
            key: &key,
            watched: heard.then_some(Shared::Runner),
            says_public: false,
            value: place_json(address),
            ttl: RUNNER_TTL,
        };
        let same = known.is_some_and(|(known, _)| known == *address);
        let keep = Keep { pushed: runner_pushed, alone: runner };
        let keep = share(shared, sandbox, asked, entry, same, keep).await;
        Found { reply, keep }
    }

    async fn verdict(
        &self,
        question: &Question,
        (proof, sandbox, token): (ProofKind, &SandboxId, &Token),
        shared: &SharedCache,
        began: Instant,
    ) -> Found {
        let SharedCache { redis, push, .. } = shared;
        let Lifetimes { verdict, negative, .. } = self.lifetimes;
        let ours = verdict_key(proof, sandbox, token);
        let theirs = format!("{V0_190_VERDICT_PREFIX}{sandbox}:{}", token.expose());
        // A "yes" of v0.190 does not say which kind of proof it is about.
        let readable = kind_of(token) == Some(proof);
        let keys = [ours.as_str(), theirs.as_str()];
        let stored = self.read(redis, if readable { &keys } else { &keys[..1] }).await;
        let mut seen = false;
        // Older than this, it may be from before a change that nobody here has heard of, or that API's memory hid.
        let change = push.last_change(Matter::Anything, sandbox);
        let trusted_from = push.complete_since().max(change.map(|change| change + API_MEMORY));
        let known = stored.iter().flatten().find_map(|stored| {
            seen = true;
            let expires_in = stored.expires_in.filter(|_| flag(stored) == Some(true))?;
            let written = began.checked_sub(VERDICT_TTL.checked_sub(expires_in)?)?;
            (Some(written) >= trusted_from && push.is_trusted()).then_some(expires_in)
        });
        self.count(seen, known.is_some());
        if let Some(expires_in) = known {
            return Found { reply: Ok(Answer::Yes), keep: verdict.min(expires_in) };
        }
        let asked = Instant::now();
        let reply = self.api.answer(question).await;
        match &reply {
            Ok(Answer::Yes) => {
                let entry = Entry {
                    key: &ours,
                    watched: None,
                    says_public: false,
                    value: flag_json(true),
                    ttl: VERDICT_TTL,
                };
                let keep = Keep { pushed: verdict, alone: verdict };
                let keep = share(shared, sandbox, asked, entry, false, keep).await;
                Found { reply, keep }
            }
            // Not shared: bad tokens cost nothing to invent.
            Ok(_) => {
                let settled = until_settled(push, Matter::Anything, sandbox, asked);
                Found { keep: negative.min(settled), reply }
            }
            Err(_) => Found { reply, keep: Duration::ZERO },
        }
    }

    async fn read(&self, redis: &Redis, keys: &[&str]) -> Vec<Option<Stored>> {
        redis.read(keys, VALUE_BYTES_MAX).await.unwrap_or_default()
    }

    fn count(&self, stored: bool, usable: bool) {
        self.stats.shared(match (stored, usable) {
            (_, true) => SharedResult::Hit,
            (true, false) => SharedResult::Unusable,
            (false, false) => SharedResult::Miss,
        });
    }
}

/// What is to be put into Redis.
struct Entry<'a> {
    key: &'a str,
    /// Its end says that something changed.
    watched: Option<Shared>,
    /// And that the sandbox is not public any more.
    says_public: bool,
    value: String,
    ttl: Duration,
}

/// Puts the API's answer where others find it, unless something changed, and says how long it may be kept. `same`: it
/// stands there already; writing it again would look like a change to others.
async fn share(
    SharedCache { redis, push, rechecks }: &SharedCache,
    sandbox: &SandboxId,
    began: Instant,
    entry: Entry<'_>,
    same: bool,
    keep: Keep,
) -> Duration {
    let matter = if entry.watched == Some(Shared::Public) { Matter::Flag } else { Matter::Anything };
    let settled = until_settled(push, matter, sandbox, began);
    if settled < Duration::MAX {
        return keep.alone.min(settled);
    }
    let mut may_last = true;
    if !same {
        // Where no news come, or nobody asks again, nobody would take it back: it stands no longer than what rests on
        // it.
        may_last = push.complete_since().is_some() && (!entry.says_public || rechecks.expect(*sandbox));
        let ttl = if may_last { entry.ttl } else { entry.ttl.min(keep.alone) };
        if let Some(shared) = entry.watched {
            push.expect(shared, sandbox, Instant::now() + ttl);
            push.watch(shared, sandbox, Instant::now() + ttl);
        }
        if redis.set(entry.key, entry.value.as_bytes(), ttl).await.is_err() {
            if let Some(shared) = entry.watched {
                push.unwatch(shared, sandbox);
            }
            return keep.alone;
        }
        // Heard between asking and writing: ours came last and must go again.
        if push.changed_since(matter, sandbox, began) {
            // Cannot be deleted: then there is no connection, and everything is forgotten anyway.
            let _ = redis.del(entry.key).await;
            return Duration::ZERO;
        }
    }
    if entry.watched.is_some() && entry.says_public {
        push.rests_on_flag(sandbox, Instant::now());
    }
    if may_last && entry.watched.is_some() && push.is_trusted() { keep.pushed } else { keep.alone }
}

/// How long an answer asked for at `began` may be kept for all that is known of changes: not at all when there was
/// one since, briefly when the API may have answered from its memory, [`Duration::MAX`] otherwise. Before news were
/// listened for there may always have been a change: a gate that has just begun knows no better than that.
fn until_settled(push: &Push, matter: Matter, sandbox: &SandboxId, began: Instant) -> Duration {
    if push.changed_since(matter, sandbox, began) {
        return Duration::ZERO;
    }
    match push.last_change(matter, sandbox).max(push.complete_since()).map(|change| change + API_MEMORY) {
        Some(settled) if began < settled => settled.saturating_duration_since(Instant::now()),
        _ => Duration::MAX,
    }
}

/// May a flag that was written into Redis at `written`, as far as that is known, be believed?
fn flag_is_believed(
    push: &Push,
    sandbox: &SandboxId,
    value: bool,
    written: Option<Instant>,
    began: Instant,
) -> bool {
    // Written while the API may still have told what was true before the last change: v0.190 keeps that for an hour.
    let change = push.last_change(Matter::Flag, sandbox);
    let settled = change.is_none_or(|change| written >= Some(change + API_MEMORY));
    (settled || !value) && !in_doubt(push, Matter::Flag, sandbox, began)
}

/// The label may be a signed link's token, which nothing keeps secret as a part of a key's name. A sandbox of such a
/// name is answered for by the API alone, as without Redis.
fn may_name_a_link(question: &Question) -> bool {
    question.sandbox().is_some_and(|label| SignedToken::of_label(label).is_some())
}

fn in_doubt(push: &Push, matter: Matter, sandbox: &SandboxId, began: Instant) -> bool {
    push.changed_since(matter, sandbox, began)
        || push.last_change(matter, sandbox).is_some_and(|change| began < change + DOUBT)
}

fn yes_or_no(value: bool) -> Answer {
    if value { Answer::Yes } else { Answer::No }
}

/// The shape of every value of v0.190.
#[derive(Deserialize, Serialize)]
struct Wrapped<T> {
    value: T,
}

pub fn flag(stored: &Stored) -> Option<bool> {
    serde_json::from_slice(&stored.value).ok().map(|Object(Wrapped { value })| value)
}

fn flag_json(value: bool) -> String {
    format!("{{\"value\":{value}}}")
}

/// `apiUrl` is the runner's proxy URL, by v0.190's own misnomer. Written in its order, too, so that the same runner is
/// the same bytes whoever wrote it.
#[derive(Deserialize, Serialize)]
pub struct Place {
    #[serde(rename = "apiUrl")]
    pub api_url: String,
    #[serde(rename = "apiKey")]
    pub api_key: String,
}

impl Place {
    /// Read as strictly as what the API says: whoever can write to Redis must not gain more than a wrong host.
    async fn address(&self) -> Option<Arc<RunnerAddress>> {
        let url = RunnerUrl::parse(&self.api_url).ok()?;
        let key = Token::parse(self.api_key.as_bytes())?;
        url.resolve(&key).await.ok().map(Arc::new)
    }
}

pub fn place(stored: &Stored) -> Option<Place> {
    serde_json::from_slice(&stored.value).ok().map(|Object(Wrapped { value: Object(place) })| place)
}

fn place_json(address: &RunnerAddress) -> String {
    let RunnerAddress { authority, base_path, authorization, addrs: _ } = address;
    let api_key = authorization.strip_prefix("Bearer ").unwrap_or_default().to_owned();
    let value = Place { api_url: format!("http://{authority}{base_path}"), api_key };
    serde_json::to_string(&Wrapped { value }).expect("text is JSON")
}

fn verdict_key(proof: ProofKind, sandbox: &SandboxId, token: &Token) -> String {
    let kind = match proof {
        ProofKind::Bearer => "bearer",
        ProofKind::PreviewToken => "preview-token",
    };
    let hash = Sha256::digest(token.expose().as_bytes());
    format!("{VERDICT_PREFIX}{kind}:{sandbox}:{hash:x}")
}

/// The one kind a token of this form can be good as: preview tokens are 32 of a small alphabet, API keys and JWTs
/// look different. v0.190 stores one "yes" for both kinds; where the form does not tell them apart, it says nothing.
fn kind_of(token: &Token) -> Option<ProofKind> {
    let text = token.expose();
    let is_preview = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let is_jwt = text.starts_with("eyJ") && text.bytes().filter(|b| *b == b'.').count() == 2;
    if text.len() == 32 && text.bytes().all(is_preview) {
        Some(ProofKind::PreviewToken)
    } else if is_jwt || (text.starts_with("dtn_") && text.len() > 36) {
        Some(ProofKind::Bearer)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
