//! News from Redis: what they take away, what is told on of them, and while they may be relied on.
//!
//! Each line of the input is one step: what this gate does (`flag`, `runner`, `rests`, `absent`, `withdraw`, `link`, `sent`) or
//! hears (`key`, `event`, `all`, `listening`, `lost`, `canary`), and behind a space what it is about. The reading of an
//! event is `told`'s; here it is taken as read.

use super::message::split;
use sandgate::control::redis::{Listener, News};
use sandgate::ids::{SandboxId, Token};
use sandgate::log::Log;
use sandgate::log_writer::LogWriter;
use sandgate::mailbox::{Change, ProofKind, Question, Said, TokenHash};
use sandgate::readers::{Matter, Push, Shared, Told, link_of_key, sandbox_event};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// What is taken away is held for longer than this; a machine that stood still meanwhile proves nothing.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Longer than a key needs to stand, and to be left, for its end to be a deletion.
const LONG: Duration = Duration::from_secs(60);
/// Tokens that are shown.
const TOKENS: [&str; 3] = ["t", "old", "new"];

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let writer = LogWriter::spawn("log-fuzz", Box::new(std::io::sink()), 1).expect("a thread");
    Log::new(Some(writer.sender()))
});

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let stats = Arc::default();
    let (push, mut told) = Push::new(Arc::clone(&stats), LOG.clone());
    let start = Instant::now();
    let mut model = Model::default();
    for line in split(input, b"\n") {
        let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
        let (step, about) = (&line[..end], line.get(end + 1..).unwrap_or_default());
        let wanted = take_step(&push, &mut model, step, about, start);
        if start.elapsed() > AT_ONCE {
            return;
        }
        let said: Vec<Told> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        // When the canary was sent is nobody's business here.
        let same = |(a, b): (&Told, &Told)| a == b || matches!((a, b), (Told::Canary(_), Told::Canary(_)));
        let all_same = said.len() == wanted.len() && said.iter().zip(&wanted).all(same);
        assert!(all_same, "told {said:?}, not {wanted:?} of {:?}", line.escape_ascii().to_string());
        model.count += said.iter().filter(|told| matches!(told, Told::Changed(..))).count() as u64;
        knows(&push, &model, start);
    }
    assert_eq!(stats.push.changes.load(Relaxed), model.count);
    assert_eq!(stats.push.unreadable.load(Relaxed), model.unreadable);
    assert_eq!(stats.push.trusted.load(Relaxed), u64::from(model.trusted));
}

/// All that can be asked of it.
fn knows(push: &Push, model: &Model, start: Instant) {
    assert_eq!(push.is_trusted(), model.trusted, "trusted");
    assert_eq!(push.complete_since().is_some(), model.trusted, "complete");
    let nobody = SandboxId::parse(b"nobody").expect("an id");
    let answers: Vec<_> = model
        .sandboxes
        .values()
        .chain([&nobody])
        .map(|sandbox| {
            let name = sandbox.as_str();
            for (matter, changed) in [(Matter::Anything, &model.changed), (Matter::Flag, &model.flags)] {
                let wanted = model.all_changed || changed.contains(name);
                assert_eq!(push.changed_since(matter, sandbox, start), wanted, "{matter:?} of {name}");
            }
            let public = push.denies(&Question::Public(*sandbox)).is_some();
            let tokens = TOKENS.map(|token| {
                let shown = |proof| {
                    let token = Token::parse(token.as_bytes()).expect("visible");
                    Question::Verdict { proof, sandbox: *sandbox, token, client_ip: [127, 0, 0, 1].into() }
                };
                // Of API keys the news say nothing.
                assert_eq!(push.denies(&shown(ProofKind::Bearer)), None);
                push.denies(&shown(ProofKind::PreviewToken)).is_some()
            });
            (name, public, tokens)
        })
        .collect();
    if start.elapsed() > AT_ONCE {
        return;
    }
    for (name, public, tokens) in answers {
        assert_eq!(public, model.private.contains(name), "the flag of {name}");
        let good = model.tokens.get(name).map(|token| token.good);
        let wanted = TOKENS.map(|token| good.is_some_and(|good| good != TokenHash::of(token)));
        assert_eq!(tokens, wanted, "tokens of {name}");
    }
}

/// What happened so far, as plainly as it can be kept: nothing is ever over.
#[derive(Default)]
struct Model {
    keys: BTreeMap<(&'static str, String), Key>,
    links: BTreeSet<(String, u16)>,
    /// All that have been named.
    sandboxes: BTreeMap<String, SandboxId>,
    changed: BTreeSet<String>,
    flags: BTreeSet<String>,
    all_changed: bool,
    private: BTreeSet<String>,
    /// Those whose key said "public" and ended, for whatever reason.
    flag_lost: BTreeSet<String>,
    tokens: BTreeMap<String, Good>,
    listening: bool,
    sent: bool,
    trusted: bool,
    count: u64,
    unreadable: u64,
}

/// A key known to be in Redis.
#[derive(Clone, Copy)]
struct Key {
    left: Left,
    /// It says "public"; `true`: for long.
    public: Option<bool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Left {
    Over,
    Soon,
    Long,
}

struct Good {
    good: TokenHash,
    before: Option<TokenHash>,
}

/// Does it, and gives what the shards are to be told.
fn take_step(push: &Push, model: &mut Model, step: &[u8], about: &[u8], now: Instant) -> Vec<Told> {
    match step {
        b"listening" => {
            push.hear(News::Listening);
            model.listening = true;
            vec![]
        }
        b"sent" => {
            push.canary_is_sent();
            model.sent = true;
            vec![]
        }
        b"canary" => {
            let key = push.prefixes().pop().expect("its key is listened for");
            push.hear(News::Invalidated(key.as_bytes()));
            // Only one of our own proves that news arrive, and only where all are listened for.
            if !std::mem::take(&mut model.sent) {
                return vec![];
            }
            model.trusted = model.listening;
            vec![Told::Canary(now)]
        }
        b"all" | b"lost" => {
            if step == b"lost" {
                push.hear(News::Lost);
                (model.listening, model.trusted) = (false, false);
            } else {
                push.hear(News::AllInvalidated);
            }
            model.keys.clear();
            model.all_changed = true;
            vec![Told::Forget]
        }
        b"event" => {
            push.hear(News::Published(about));
            match sandbox_event(about) {
                Some((sandbox, said)) => model.published(sandbox, said),
                None => {
                    model.unreadable += 1;
                    vec![]
                }
            }
        }
        b"key" => {
            push.hear(News::Invalidated(about));
            model.ended(about)
        }
        b"link" => {
            if let Some((token, port)) = link_of_key(about) {
                push.expect_link(token, port);
                model.links.insert((token.expose().to_owned(), port.number()));
            }
            vec![]
        }
        _ => of_a_sandbox(push, model, step, about, now),
    }
}

/// `absent ID`, `withdraw ID`, `flag LEFT ID`, `runner LEFT ID`, `rests AGE ID`.
fn of_a_sandbox(push: &Push, model: &mut Model, step: &[u8], about: &[u8], now: Instant) -> Vec<Told> {
    let (how, id) = match about.iter().position(|b| *b == b' ') {
        Some(space) => (&about[..space], &about[space + 1..]),
        None => (&b""[..], about),
    };
    let Some(sandbox) = SandboxId::parse(id) else { return vec![] };
    let name = model.named(sandbox);
    match step {
        b"flag" | b"runner" => {
            let (shared, kind) =
                if step == b"flag" { (Shared::Public, "flag") } else { (Shared::Runner, "runner") };
            let (left, until) = match how {
                b"over" => (Left::Over, now),
                b"soon" => (Left::Soon, now + LONG / 12),
                _ => (Left::Long, now + LONG),
            };
            assert!(push.expect(shared, &sandbox, now + LONG), "there is room");
            push.watch(shared, &sandbox, until);
            let known = model.keys.get(&(kind, name.clone())).filter(|key| key.left != Left::Over);
            let public = known.and_then(|key| key.public);
            model.keys.insert((kind, name), Key { left, public });
        }
        b"rests" => {
            let long = how == b"old";
            let age = if long { LONG } else { Duration::ZERO };
            // On a machine that has just been started nothing is old.
            let Some(since) = now.checked_sub(age) else { return vec![] };
            push.rests_on_flag(&sandbox, since);
            if let Some(key) = model.keys.get_mut(&("flag", name)) {
                key.public = Some(long);
            }
        }
        b"withdraw" => {
            push.withdraw(sandbox);
            model.keys.remove(&("flag", name));
            return model.made_private(sandbox);
        }
        b"absent" => {
            let lost = push.flag_is_absent(&sandbox);
            if now.elapsed() > AT_ONCE {
                return vec![];
            }
            assert_eq!(lost, model.flag_lost.contains(&name), "the flag of {name} is lost");
            if lost && !model.private.contains(&name) {
                return model.made_private(sandbox);
            }
        }
        _ => {}
    }
    vec![]
}

impl Model {
    fn named(&mut self, sandbox: SandboxId) -> String {
        self.sandboxes.insert(sandbox.as_str().to_owned(), sandbox);
        sandbox.as_str().to_owned()
    }

    /// Somebody else wrote this key, or deleted it, or it came to its time.
    fn ended(&mut self, key: &[u8]) -> Vec<Told> {
        if let Some((token, port)) = link_of_key(key) {
            let known = self.links.remove(&(token.expose().to_owned(), port.number()));
            return if known { vec![Told::Link(token, port)] } else { vec![] };
        }
        let kinds = [("flag", &b"proxy:sandbox-public:"[..]), ("runner", b"proxy:sandbox-runner-info:")];
        for (kind, prefix) in kinds {
            let Some(sandbox) = key.strip_prefix(prefix).and_then(SandboxId::parse) else { continue };
            let name = self.named(sandbox);
            // Others write keys that are not there: that is no change.
            let Some(key) = self.keys.remove(&(kind, name.clone())) else { return vec![] };
            if key.left == Left::Over {
                return vec![];
            }
            if kind == "runner" {
                return self.changed(sandbox, Change::Runner);
            }
            if key.public == Some(true) && key.left == Left::Long {
                return self.made_private(sandbox);
            }
            if key.public.is_some() {
                self.flag_lost.insert(name);
            }
            return self.changed(sandbox, Change::Public);
        }
        vec![]
    }

    fn published(&mut self, sandbox: SandboxId, mut said: Said) -> Vec<Told> {
        let name = self.named(sandbox);
        if said.public == Some(false) {
            self.private.insert(name.clone());
        }
        if let Some(token) = said.token {
            match self.tokens.get_mut(&name) {
                None => drop(self.tokens.insert(name, Good { good: token, before: None })),
                // Late news of the token before: it does not come back.
                Some(known) if known.before == Some(token) => said.token = None,
                Some(known) if known.good == token => {}
                Some(known) => *known = Good { good: token, before: Some(known.good) },
            }
        }
        self.changed(sandbox, Change::State(said))
    }

    fn made_private(&mut self, sandbox: SandboxId) -> Vec<Told> {
        let name = self.named(sandbox);
        self.private.insert(name);
        self.changed(sandbox, Change::Private)
    }

    fn changed(&mut self, sandbox: SandboxId, change: Change) -> Vec<Told> {
        let name = self.named(sandbox);
        let flag = match change {
            Change::Runner => false,
            Change::State(said) => said.public != Some(true),
            Change::Public | Change::Private => true,
        };
        if flag {
            self.flags.insert(name.clone());
        }
        self.changed.insert(name);
        vec![Told::Changed(sandbox, change)]
    }
}
