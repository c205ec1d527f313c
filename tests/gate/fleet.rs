//! Gates of v0.190 and of ours behind the same addresses, on one Redis: what one leaves, the other takes.
//!
//! `fleet.json` is what both were seen to write, byte by byte, while they ran side by side (v0.190.0, Redis 7): session
//! cookies with the second they were made in, and the `SET` commands. Of each the other kind was seen to take it: it let
//! the visitor in and asked the API nothing, but for the entries under `proxy:sandgate-verdict:`, which are ours alone.
//! Nothing in it was made by the code under test.

use crate::harness::{Api, DEADLINE, Gate, KEY, Runner, Trouble};
use crate::shared::redis_server::{RedisServer, cli};
use crate::shared::until;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac};
use sandgate::cookie::{AUTH_MAX_AGE, AUTH_PREFIX, CookieKeys, escape, unescape};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Deserialize)]
struct Recorded {
    key: String,
    /// Where the sandboxes' runner was.
    runner: String,
    token: String,
    api_key: String,
    link: String,
    cookies: Vec<Cookie>,
    entries: Vec<Entry>,
}

#[derive(Deserialize, Clone)]
struct Cookie {
    made_by: Maker,
    of: Of,
    label: String,
    /// Seconds since 1970.
    at: u64,
    set_cookie: String,
}

#[derive(Deserialize, Clone)]
struct Entry {
    made_by: Maker,
    shown: Shown,
    key: String,
    value: String,
    ttl_sec: u64,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum Maker {
    #[serde(rename = "v0.190")]
    V0190,
    #[serde(rename = "sandgate")]
    Sandgate,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Of {
    Login,
    Link,
}

/// What the visitor came with.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Shown {
    /// Nothing, to a public sandbox.
    Public,
    Token,
    ApiKey,
    /// Nothing, until the sandbox's use was reported: v0.190 mostly fails to, when the request is over first.
    Use,
}

/// The private sandbox, and whither the link leads.
const SANDBOX: &str = "priv";
const EVERYTHING: [Shown; 4] = [Shown::Public, Shown::Token, Shown::ApiKey, Shown::Use];

fn recorded() -> Recorded {
    let recorded: Recorded = serde_json::from_str(include_str!("fleet.json")).expect("it has this shape");
    assert_eq!(recorded.key, KEY);
    recorded
}

impl Recorded {
    fn entries(&self, made_by: Maker, shown: Shown) -> Vec<Entry> {
        let all = self.entries.iter().filter(|entry| entry.made_by == made_by && entry.shown == shown);
        all.cloned().collect()
    }

    /// What a visitor sends.
    fn request(&self, shown: Shown) -> String {
        let (label, field) = match shown {
            Shown::Public => ("pub", String::new()),
            Shown::Use => ("f3", String::new()),
            Shown::Token => (SANDBOX, format!("X-Daytona-Preview-Token: {}\r\n", self.token)),
            Shown::ApiKey => (SANDBOX, format!("Authorization: Bearer {}\r\n", self.api_key)),
        };
        format!("GET / HTTP/1.1\r\nHost: 3000-{label}.preview.test\r\n{field}\r\n")
    }
}

/// `name`, escaped value and attributes.
fn parts(set_cookie: &str) -> (&str, &str, &str) {
    let (pair, attributes) = set_cookie.split_once("; ").expect("attributes");
    let (name, value) = pair.split_once('=').expect("a pair");
    (name, value, attributes)
}

/// A session cookie's value as v0.190's library makes it, said here once more in the test's own words, and held to the
/// recorded ones below: so there can be one with the clock's time in it.
fn as_v0_190_makes_it(key: &str, name: &str, sandbox: &str, at: u64) -> String {
    let length = u8::try_from(sandbox.len()).expect("a short name");
    // Go's gob: length of the rest, a string, no field, the string's length.
    let gob = [&[length + 3, 0x0c, 0, length][..], sandbox.as_bytes()].concat();
    let mut text = format!("{at}|{}", URL_SAFE.encode(gob)).into_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key of any length");
    mac.update(format!("{name}|").as_bytes());
    mac.update(&text);
    text.push(b'|');
    text.extend_from_slice(&mac.finalize().into_bytes());
    escape(URL_SAFE.encode(text).as_bytes())
}

fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[test]
fn recorded_cookies_open_to_their_last_second_and_are_made_the_same() {
    let recorded = recorded();
    let keys = CookieKeys::new(&recorded.key, []);
    for Cookie { made_by, of, label, at, set_cookie } in &recorded.cookies {
        let (name, escaped, attributes) = parts(set_cookie);
        assert_eq!(name, format!("{AUTH_PREFIX}{label}"), "{made_by:?} {of:?}");
        let value = unescape(escaped.as_bytes()).expect("escaped");
        let end = at + AUTH_MAX_AGE.as_secs();
        for now in [*at, end] {
            let opened = keys.open(name, &value, now, AUTH_MAX_AGE).expect("a good cookie");
            assert_eq!((&opened.value[..], opened.made_at), (SANDBOX.as_bytes(), *at));
        }
        assert_eq!(keys.open(name, &value, end + 1, AUTH_MAX_AGE), None);
        assert_eq!(escape(keys.seal(name, SANDBOX.as_bytes(), *at).as_bytes()), escaped);
        assert_eq!(as_v0_190_makes_it(KEY, name, SANDBOX, *at), escaped);
        // Seen by the same hosts for the same time, whoever made it; ours adds the one attribute v0.190 lacks.
        let domain = match of {
            Of::Login => "preview.test".to_owned(),
            Of::Link => format!("3000-{}.preview.test", recorded.link),
        };
        let ours = if *made_by == Maker::Sandgate { "; SameSite=Lax" } else { "" };
        assert_eq!(attributes, format!("Path=/; Domain={domain}; Max-Age=3600; HttpOnly{ours}"));
    }
    for made_by in [Maker::V0190, Maker::Sandgate] {
        for of in [Of::Login, Of::Link] {
            assert!(
                recorded.cookies.iter().any(|c| c.made_by == made_by && c.of == of),
                "{made_by:?} {of:?}"
            );
        }
    }
}

/// A gate before a Redis of its own, and an API that knows what there is; nothing is remembered yet.
struct Place {
    redis: RedisServer,
    api: Api,
    runner: Runner,
    gate: Gate,
}

impl Place {
    fn start(recorded: &Recorded) -> Self {
        let (redis, runner) = (RedisServer::start(&[]), Runner::echo());
        let api = Api::start(runner.addr);
        // As the recorded API: one sandbox is private, the link is none, and no runner's key is the harness's.
        api.script.reply(&format!("/api/preview/{SANDBOX}/public"), 404, "");
        api.script.reply(&format!("/api/preview/{}/public", recorded.link), 404, "");
        api.script.reply(&format!("/api/preview/{}/3000/sandbox-id", recorded.link), 200, SANDBOX);
        let place = format!(r#"{{"proxyUrl":"http://{}","apiKey":"runner-key-1"}}"#, runner.addr);
        api.script.reply("/api/runners/by-sandbox/", 200, &place);
        let port = redis.port.to_string();
        let gate = Gate::start(&api, &[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &port)]);
        gate.await_metric("preview_push_trusted", 1);
        Self { redis, api, runner, gate }
    }

    fn status(&self, request: impl AsRef<[u8]>) -> u16 {
        let mut wire = self.gate.connect();
        wire.send(request).expect("the gate reads");
        wire.expect_message().expect("an answer").status()
    }

    /// What was recorded, with this place's runner in it.
    fn here(&self, recorded: &Recorded, text: &str) -> String {
        text.replace(&recorded.runner, &self.runner.addr.to_string())
    }
}

#[test]
fn a_visitor_v0_190_let_in_is_let_in_here_on_the_word_of_redis_alone() {
    let recorded = recorded();
    for shown in EVERYTHING {
        let place = Place::start(&recorded);
        let request = recorded.request(shown);
        place.api.script.trouble(Some(Trouble::Status500));
        assert_eq!(place.status(&request), 502, "{shown:?}: neither Redis nor the API says anything");
        let entries = recorded.entries(Maker::V0190, shown);
        assert!(entries.len() >= 2, "{shown:?}: a flag and a place");
        for Entry { key, value, ttl_sec, .. } in &entries {
            let value = place.here(&recorded, value);
            cli(place.redis.port, &["set", key, &value, "ex", &ttl_sec.to_string()]);
        }
        let asked = place.api.script.questions.load(SeqCst);
        assert_eq!(place.status(&request), 200, "{shown:?}");
        assert_eq!(place.api.script.questions.load(SeqCst), asked, "{shown:?}: the API was asked");
        let forwarded = String::from_utf8(place.runner.received().concat()).expect("text");
        assert!(forwarded.contains("Authorization: Bearer runner-key-1"), "{shown:?}: {forwarded}");
        if shown == Shown::Use {
            place.gate.await_metric(r#"preview_activity_total{result="recent"}"#, 1);
            assert!(place.api.script.asked("/last-activity").is_empty(), "v0.190 reported it already");
        }
    }
}

#[test]
fn what_is_written_here_is_what_v0_190_was_seen_to_take() {
    let recorded = recorded();
    for shown in EVERYTHING {
        let place = Place::start(&recorded);
        let entries = recorded.entries(Maker::Sandgate, shown);
        let in_redis = || {
            let all = cli(place.redis.port, &["keys", "proxy:*"]);
            let mut keys: Vec<_> =
                all.lines().filter(|key| !key.contains("canary")).map(str::to_owned).collect();
            keys.sort();
            keys
        };
        let mut wanted: Vec<_> = entries.iter().map(|entry| entry.key.clone()).collect();
        wanted.sort();
        // A gate that has just begun to listen does not share what the API may have had from its memory.
        let shared = || place.status(recorded.request(shown)) == 200 && in_redis() == wanted;
        until(shared, &format!("{shown:?}: {wanted:?}"));
        for Entry { key, value, ttl_sec, .. } in &entries {
            assert_eq!(cli(place.redis.port, &["get", key]), place.here(&recorded, value), "{key}");
            let left: u64 = cli(place.redis.port, &["pttl", key]).parse().expect("it ends");
            let (most, least) =
                (ttl_sec * 1000, (ttl_sec * 1000).saturating_sub(DEADLINE.as_millis() as u64));
            assert!((least..=most).contains(&left), "{key}: {left} ms of {most}");
        }
        // The same facts under the same names, whoever found them out; verdicts alone are kept under other names.
        for theirs in recorded.entries(Maker::V0190, shown) {
            let ours = entries.iter().find(|ours| ours.key == theirs.key);
            match theirs.key.strip_prefix("proxy:sandbox-auth-key-valid:priv:") {
                None => assert_eq!(ours.map(|ours| &ours.value), Some(&theirs.value), "{}", theirs.key),
                Some(token) => {
                    let hash = format!(":{SANDBOX}:{:x}", Sha256::digest(token));
                    assert!(entries.iter().any(|ours| ours.key.ends_with(&hash)), "{}", theirs.key);
                    assert!(!entries.iter().any(|ours| ours.key.contains(token)), "a token stands in a name");
                }
            }
        }
    }
}

#[test]
fn a_session_of_v0_190_opens_here_and_a_link_leaves_its_cookie() {
    let recorded = recorded();
    let place = Place::start(&recorded);
    let (name, link_name) = (format!("{AUTH_PREFIX}{SANDBOX}"), format!("{AUTH_PREFIX}{}", recorded.link));
    let visit = |label: &str, name: &str, value: &str| {
        format!("GET / HTTP/1.1\r\nHost: 3000-{label}.preview.test\r\nCookie: {name}={value}\r\n\r\n")
    };
    let fresh = as_v0_190_makes_it(KEY, &name, SANDBOX, clock());
    assert_eq!(place.status(visit(SANDBOX, &name, &fresh)), 200);
    let over = as_v0_190_makes_it(KEY, &name, SANDBOX, clock() - 2 * AUTH_MAX_AGE.as_secs());
    assert_eq!(place.status(visit(SANDBOX, &name, &over)), 401);
    let other_name = as_v0_190_makes_it(KEY, &link_name, SANDBOX, clock());
    assert_eq!(place.status(visit(SANDBOX, &name, &other_name)), 401);

    let mut wire = place.gate.connect();
    let first = clock();
    wire.send(format!("GET / HTTP/1.1\r\nHost: 3000-{}.preview.test\r\n\r\n", recorded.link))
        .expect("it reads");
    let answer = wire.expect_message().expect("an answer");
    let set_cookie = answer.field("Set-Cookie").expect("a cookie for gates of v0.190").to_owned();
    let seen = |cookie: &&Cookie| cookie.made_by == Maker::Sandgate && cookie.of == Of::Link;
    let seen = recorded.cookies.iter().find(seen).expect("one was recorded").set_cookie.clone();
    let ((name, value, attributes), (seen_name, _, seen_attributes)) = (parts(&set_cookie), parts(&seen));
    assert_eq!((name, attributes), (seen_name, seen_attributes));
    let made = (first..=clock()).any(|at| as_v0_190_makes_it(KEY, name, SANDBOX, at) == value);
    assert!(made, "v0.190 would make another one: {set_cookie}");
    // Whoever has it is not given another.
    wire.send(visit(&recorded.link, name, value)).expect("it reads");
    assert_eq!(wire.expect_message().expect("an answer").field("Set-Cookie"), None);
}
