//! The shared cache on a real redis-server, between a scripted API and what v0.190 and the API leave there.

use super::*;
use crate::config::{self, Secret};
use crate::control::fake_api::{Act, FakeApi, reply, within};
use crate::control::push::Told;
use crate::control::redis::{Listener as _, News};
use crate::control::redis_server::{self, RedisServer};
use crate::control::stats::RecheckResult;
use crate::control::tests::LIFETIMES;
use crate::counters::Revoked;
use crate::log::Log;
use crate::mailbox::{Change, Said, TokenHash, Trouble};
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const TOKEN: &str = "abcdefghijklmnopqrstuvwxyz012345";
const API_KEY: &str = "dtn_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One proxy's control plane, as far as it asks and remembers.
struct Proxy {
    lookup: Lookup,
    redis: Redis,
    push: Arc<Push>,
    told: mpsc::Receiver<Told>,
    stats: Arc<Stats>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    fn start(port: u16, api: &FakeApi) -> Self {
        let stats = Arc::<Stats>::default();
        let settings =
            config::Redis { host: "127.0.0.1".into(), port, username: None, password: None, tls: false };
        let (push, told) = Push::new(Arc::clone(&stats), Log::discard());
        let listener: Arc<dyn crate::control::redis::Listener> = Arc::<Push>::clone(&push);
        let redis =
            Redis::new(&settings, Some(listener), Arc::clone(&stats), Log::discard()).expect("good settings");
        let api = Api::new(&api.base(), &Secret::new("service"), Duration::from_secs(5), Log::discard());
        let mut tasks = JoinSet::new();
        tasks.spawn(redis.clone().keep());
        tasks.spawn(Arc::clone(&push).keep_canary(redis.clone()));
        let shared = Some((redis.clone(), Arc::clone(&push)));
        let lookup =
            Lookup::new(Arc::new(api.expect("good settings")), shared, LIFETIMES, Arc::clone(&stats));
        Self { lookup, redis, push, told, stats, _tasks: tasks }
    }

    async fn trusting(server: &RedisServer, api: &FakeApi) -> Self {
        let proxy = Self::start(server.port, api);
        proxy.settled().await;
        proxy
    }

    /// Until it has listened for so long that no change is left which it has not heard of and the API has not either.
    async fn settled(&self) {
        self.until(|proxy| proxy.push.is_trusted()).await;
        tokio::time::sleep(API_MEMORY).await;
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        within(async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn ask(&self, question: Question) -> (String, Duration) {
        let Found { reply, keep } = within(self.lookup.answer(&question)).await;
        (format!("{reply:?}"), keep)
    }

    /// The next news but canaries.
    async fn heard(&mut self) -> Told {
        within(async {
            loop {
                match self.told.recv().await.expect("the other end lives") {
                    Told::Canary(_) => {}
                    told => return told,
                }
            }
        })
        .await
    }

    fn rechecks(&mut self) -> &mut Rechecks {
        &mut self.lookup.shared.as_mut().expect("there is a Redis").rechecks
    }

    fn rechecked(&self, result: RecheckResult) -> u64 {
        self.stats.rechecks[result as usize].load(Relaxed)
    }

    fn shared(&self, result: SharedResult) -> u64 {
        self.stats.shared[result as usize].load(Relaxed)
    }
}

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text.as_bytes()).expect("an id")
}

fn public(text: &str) -> Question {
    Question::Public(id(text))
}

fn runner(text: &str, fresh: bool) -> Question {
    Question::Runner { sandbox: id(text), fresh }
}

fn verdict(proof: ProofKind, token: &str) -> Question {
    let token = Token::parse(token.as_bytes()).expect("visible");
    Question::Verdict { proof, sandbox: id("sb"), token, client_ip: [127, 0, 0, 1].into() }
}

/// Says yes to everything, and that every runner is at 127.0.0.1:3003.
async fn api() -> FakeApi {
    FakeApi::start(|_, path| {
        let body = if path.starts_with("/api/runners/") {
            r#"{"proxyUrl":"http://127.0.0.1:3003/base","apiKey":"runner-key"}"#
        } else {
            "true"
        };
        Act::Send(reply(200, "", body))
    })
    .await
}

/// The runtime goes on meanwhile.
async fn cli(server: &RedisServer, args: &[&str]) -> String {
    let (port, args) = (server.port, args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
    let run = move || redis_server::cli(port, &args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.expect("it does not panic")
}

async fn ttl(server: &RedisServer, key: &str) -> i64 {
    cli(server, &["ttl", key]).await.parse().expect("a number")
}

/// A change of state as the API publishes it, the rest of the sandbox left out.
fn event(sandbox: &str, state: &str) -> String {
    format!(r#"{{"sandbox":{{"id":"{sandbox}","secret":"s3cret"}},"oldState":"x","newState":"{state}"}}"#)
}

/// What stands in an array has no name: "true" in one says of nothing that it is so.
#[test]
fn what_is_stored_is_read_as_objects_alone() {
    let stored = |value: &str| Stored { value: value.into(), expires_in: None };
    for (value, expected) in [
        (r#"{"value":true}"#, Some(true)),
        (r#"{"value":false,"x":1}"#, Some(false)),
        ("[true]", None),
        ("true", None),
    ] {
        assert_eq!(flag(&stored(value)), expected, "{value}");
    }
    assert!(place(&stored(r#"{"value":{"apiUrl":"http://r:1","apiKey":"k"}}"#)).is_some());
    for value in [r#"{"value":["http://r:1","k"]}"#, r#"[{"apiUrl":"http://r:1","apiKey":"k"}]"#] {
        assert!(place(&stored(value)).is_none(), "{value}");
    }
}

#[tokio::test]
async fn what_one_proxy_learnt_another_need_not_ask() {
    let server = RedisServer::start(&[]);
    let (first_api, second_api) = (api().await, api().await);
    let first = Proxy::trusting(&server, &first_api).await;
    let second = Proxy::trusting(&server, &second_api).await;
    let questions = || {
        [
            public("sb"),
            runner("sb", false),
            verdict(ProofKind::Bearer, API_KEY),
            verdict(ProofKind::PreviewToken, TOKEN),
        ]
    };
    for question in questions() {
        let asked = first.ask(question.clone()).await;
        let (answer, _) = second.ask(question.clone()).await;
        assert_eq!(answer, asked.0, "{question:?}");
    }
    assert_eq!(first_api.seen().requests, 4);
    assert_eq!(second_api.seen().requests, 0);
    assert_eq!((second.shared(SharedResult::Hit), second.shared(SharedResult::Miss)), (4, 0));
    // Names, shapes and lives are v0.190's; no token stands in a name.
    assert_eq!(cli(&server, &["get", "proxy:sandbox-public:sb"]).await, r#"{"value":true}"#);
    assert!((3590..=3600).contains(&ttl(&server, "proxy:sandbox-public:sb").await));
    assert_eq!(
        cli(&server, &["get", "proxy:sandbox-runner-info:sb"]).await,
        r#"{"value":{"apiUrl":"http://127.0.0.1:3003/base","apiKey":"runner-key"}}"#
    );
    assert!((110..=120).contains(&ttl(&server, "proxy:sandbox-runner-info:sb").await));
    let keys = cli(&server, &["keys", "*"]).await;
    assert!(!keys.contains(TOKEN) && !keys.contains(API_KEY), "{keys}");
    assert_eq!(keys.lines().filter(|key| key.starts_with("proxy:sandgate-verdict:")).count(), 2, "{keys}");
}

#[tokio::test]
async fn what_rests_on_news_is_kept_long_and_what_does_not_is_not() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let proxy = Proxy::trusting(&server, &api).await;
    assert_eq!(proxy.ask(public("sb")).await.1, LIFETIMES.public_pushed);
    assert_eq!(proxy.ask(runner("sb", false)).await.1, LIFETIMES.runner_pushed);
    assert_eq!(proxy.ask(verdict(ProofKind::Bearer, API_KEY)).await.1, LIFETIMES.verdict);
    // A key that ends before what rests on it.
    cli(&server, &["set", "proxy:sandbox-public:brief", r#"{"value":true}"#, "EX", "7"]).await;
    assert!(proxy.ask(public("brief")).await.1 <= Duration::from_secs(7));
    drop(server);
    proxy.until(|proxy| !proxy.redis.is_up()).await;
    assert_eq!(proxy.ask(public("sb")).await.1, LIFETIMES.public);
    assert_eq!(proxy.ask(runner("sb", false)).await.1, LIFETIMES.runner);
}

#[tokio::test]
async fn entries_of_a_v0_190_proxy_are_taken_and_of_the_wrong_shape_are_not() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let proxy = Proxy::trusting(&server, &api).await;
    let set = async |key: &str, value: &str| {
        assert_eq!(cli(&server, &["set", key, value, "EX", "120"]).await, "OK");
    };
    set("proxy:sandbox-public:go", r#"{"value":false}"#).await;
    assert_eq!(proxy.ask(public("go")).await.0, "Ok(No)");
    set("proxy:sandbox-runner-info:go", r#"{"value":{"apiUrl":"http://127.0.0.1:4004","apiKey":"k"}}"#).await;
    assert!(proxy.ask(runner("go", false)).await.0.contains("127.0.0.1:4004"));
    assert_eq!(api.seen().requests, 0);

    let garbage = [
        "",
        "true",
        "{",
        "[]",
        "{}",
        r#"{"value":null}"#,
        r#"{"value":"true"}"#,
        r#"{"value":1}"#,
        r#"{"value":{"apiUrl":"https://elsewhere","apiKey":"k"}}"#,
        r#"{"value":{"apiUrl":"http://user@elsewhere","apiKey":"k"}}"#,
        r#"{"value":{"apiUrl":"http://elsewhere/?x=","apiKey":"k"}}"#,
        r#"{"value":{"apiUrl":"http://127.0.0.1:1","apiKey":"two\r\nlines"}}"#,
        r#"{"value":{"apiUrl":"","apiKey":""}}"#,
        &format!(r#"{{"value":true,"padding":"{}"}}"#, "x".repeat(VALUE_BYTES_MAX)),
    ];
    for (n, value) in garbage.into_iter().enumerate() {
        let name = format!("bad{n}");
        set(&format!("proxy:sandbox-public:{name}"), value).await;
        set(&format!("proxy:sandbox-runner-info:{name}"), value).await;
        assert_eq!(proxy.ask(public(&name)).await.0, "Ok(Yes)", "{value}");
        assert!(proxy.ask(runner(&name, false)).await.0.contains("127.0.0.1:3003"), "{value}");
    }
    // Another type, and a value that never ends, which nobody writes.
    cli(&server, &["rpush", "proxy:sandbox-public:list", "x"]).await;
    assert_eq!(proxy.ask(public("list")).await.0, "Ok(Yes)");
    cli(&server, &["set", "proxy:sandbox-public:forever", r#"{"value":false}"#]).await;
    assert_eq!(proxy.ask(public("forever")).await.0, "Ok(Yes)");
    assert_eq!(api.seen().requests, 2 * garbage.len() + 2);
}

#[tokio::test]
async fn a_yes_of_v0_190_counts_only_for_the_one_kind_its_token_can_be() {
    let server = RedisServer::start(&[]);
    let no = FakeApi::always(Act::Send(reply(404, "", ""))).await;
    let proxy = Proxy::trusting(&server, &no).await;
    let ambiguous = "0123456789abcdef";
    for token in [TOKEN, API_KEY, ambiguous] {
        let key = format!("proxy:sandbox-auth-key-valid:sb:{token}");
        cli(&server, &["set", &key, r#"{"value":true}"#, "EX", "120"]).await;
    }
    for (proof, token, answer) in [
        (ProofKind::PreviewToken, TOKEN, "Ok(Yes)"),
        (ProofKind::Bearer, TOKEN, "Ok(No)"),
        (ProofKind::Bearer, API_KEY, "Ok(Yes)"),
        (ProofKind::PreviewToken, API_KEY, "Ok(No)"),
        (ProofKind::PreviewToken, ambiguous, "Ok(No)"),
        (ProofKind::Bearer, ambiguous, "Ok(No)"),
    ] {
        assert_eq!(proxy.ask(verdict(proof, token)).await.0, answer, "{proof:?} {token}");
    }
    // A "no" may be about the other kind: never taken.
    let api = api().await;
    let proxy = Proxy::trusting(&server, &api).await;
    let other = "zyxwvutsrqponmlkjihgfedcba543210";
    cli(
        &server,
        &["set", &format!("proxy:sandbox-auth-key-valid:sb:{other}"), r#"{"value":false}"#, "EX", "5"],
    )
    .await;
    assert_eq!(proxy.ask(verdict(ProofKind::PreviewToken, other)).await.0, "Ok(Yes)");
}

#[tokio::test]
async fn a_deleted_key_and_a_published_state_are_heard_and_what_others_write_is_not_taken_for_one() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::trusting(&server, &api).await;
    proxy.ask(public("sb")).await;
    proxy.ask(runner("sb", false)).await;
    // Keys nothing here rests on.
    cli(&server, &["set", "proxy:sandbox-public:other", r#"{"value":true}"#, "EX", "1"]).await;
    cli(&server, &["del", "proxy:sandbox-public:other"]).await;
    cli(&server, &["set", "proxy:sandbox-last-activity-update:sb", "1"]).await;
    cli(&server, &["del", "proxy:sandbox-public:sb"]).await;
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Public));
    cli(&server, &["del", "proxy:sandbox-runner-info:sb"]).await;
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Runner));
    for (state, ended) in [
        ("started", None),
        ("stopping", None),
        ("stopped", Some(Revoked::Stopped)),
        ("archived", Some(Revoked::Archived)),
        ("destroyed", Some(Revoked::Destroyed)),
    ] {
        cli(&server, &["publish", "sandbox.event.channel", &event("sb", state)]).await;
        let change = Change::State(Said { ended, ..Said::default() });
        assert_eq!(proxy.heard().await, Told::Changed(id("sb"), change), "{state}");
    }
    let desired =
        r#"{"sandbox":{"id":"sb2"},"oldDesiredState":"started","newDesiredState":"stopped","more":[1]}"#;
    cli(&server, &["publish", "sandbox.event.channel", desired]).await;
    assert_eq!(proxy.heard().await, Told::Changed(id("sb2"), Change::State(Said::default())));
    for nonsense in
        ["", "{", "null", "[]", r#"{"sandbox":{"id":"../x"}}"#, r#"{"sandbox":7}"#, r#"{"id":"sb"}"#]
    {
        cli(&server, &["publish", "sandbox.event.channel", nonsense]).await;
    }
    cli(&server, &["flushall"]).await;
    assert_eq!(proxy.heard().await, Told::Forget);
    assert_eq!(proxy.stats.push.unreadable.load(Relaxed), 7);
}

#[tokio::test]
async fn what_news_take_away_is_denied_while_the_api_remembers_it_and_no_longer() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::trusting(&server, &api).await;
    let (old, new) = (TOKEN, "zyxwvutsrqponmlkjihgfedcba543210");
    let shows = |token| verdict(ProofKind::PreviewToken, token);
    proxy.ask(public("sb")).await;
    cli(&server, &["del", "proxy:sandbox-public:sb"]).await;
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Public));
    let asked = api.seen().requests;
    // The key is looked for: had somebody only written it anew, it would be there.
    let (answer, keep) = proxy.ask(public("sb")).await;
    assert!(answer == "Ok(No)" && keep <= API_MEMORY, "{answer} {keep:?}");
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Private));
    assert_eq!(proxy.ask(public("sb")).await.0, "Ok(No)");
    assert_eq!(api.seen().requests, asked);

    for question in [public("sb2"), shows(old), shows(new)] {
        assert_eq!(proxy.ask(question).await.0, "Ok(Yes)");
    }
    for (sandbox, says) in
        [("sb", format!(r#""authToken":"{new}""#)), ("sb2", r#""public":false"#.to_owned())]
    {
        let event = format!(r#"{{"sandbox":{{"id":"{sandbox}",{says}}}}}"#);
        cli(&server, &["publish", "sandbox.event.channel", &event]).await;
    }
    let said = Said { token: Some(TokenHash::of(new)), ..Said::default() };
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::State(said)));
    let said = Said { public: Some(false), ..Said::default() };
    assert_eq!(proxy.heard().await, Told::Changed(id("sb2"), Change::State(said)));
    let told = Instant::now();
    for (question, answer) in [(public("sb2"), "Ok(No)"), (shows(old), "Ok(No)"), (shows(new), "Ok(Yes)")] {
        assert_eq!(proxy.ask(question.clone()).await.0, answer, "{question:?}");
    }
    tokio::time::sleep_until((told + API_MEMORY).into()).await;
    for question in [public("sb"), public("sb2"), shows(old)] {
        assert_eq!(proxy.ask(question.clone()).await.0, "Ok(Yes)", "{question:?}");
    }
}

#[tokio::test]
async fn an_answer_asked_for_before_a_change_is_neither_shared_nor_kept() {
    let server = RedisServer::start(&[]);
    let slow = FakeApi::start(|_, path| {
        let body = if path.starts_with("/api/runners/") {
            r#"{"proxyUrl":"http://127.0.0.1:3003","apiKey":"k"}"#
        } else {
            "true"
        };
        Act::SendWhenReleased(reply(200, "", body))
    })
    .await;
    let mut proxy = Proxy::trusting(&server, &slow).await;
    let questions = [
        public("sb"),
        runner("sb", false),
        verdict(ProofKind::Bearer, API_KEY),
        verdict(ProofKind::PreviewToken, TOKEN),
    ];
    for (n, question) in questions.into_iter().enumerate() {
        let asked = proxy.lookup.answer(&question);
        let changed = async {
            slow.wait_for(|seen| seen.requests == n + 1).await;
            cli(&server, &["publish", "sandbox.event.channel", &event("sb", "started")]).await;
            within(async { while !matches!(proxy.told.recv().await, Some(Told::Changed(..))) {} }).await;
            slow.release(1);
        };
        let (found, ()) = tokio::join!(asked, changed);
        assert!(found.reply.is_ok(), "{question:?}");
        assert_eq!(found.keep, Duration::ZERO, "{question:?}");
    }
    // Only the canary.
    let keys = cli(&server, &["keys", "*"]).await;
    assert!(keys.lines().all(|key| key.starts_with("proxy:sandgate-canary:")), "{keys}");
}

#[tokio::test]
async fn while_the_api_may_answer_from_memory_its_answer_is_kept_briefly_and_redis_is_doubted() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::trusting(&server, &api).await;
    proxy.ask(public("sb")).await;
    cli(&server, &["del", "proxy:sandbox-public:sb"]).await;
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Public));
    // Another proxy asked too early and wrote down for an hour what the API still remembered.
    cli(&server, &["set", "proxy:sandbox-public:sb", r#"{"value":false}"#, "EX", "3600"]).await;
    let (answer, keep) = proxy.ask(public("sb")).await;
    assert_eq!(answer, "Ok(Yes)", "from the API");
    assert!(Duration::ZERO < keep && keep <= API_MEMORY, "{keep:?}");
    assert_eq!(cli(&server, &["get", "proxy:sandbox-public:sb"]).await, r#"{"value":false}"#);
    // Once the API's memory is over its answer replaces what stands there.
    tokio::time::sleep(keep).await;
    assert_eq!(proxy.ask(public("sb")).await, ("Ok(Yes)".into(), LIFETIMES.public_pushed));
    assert_eq!(cli(&server, &["get", "proxy:sandbox-public:sb"]).await, r#"{"value":true}"#);
}

/// Where the flag of `sb` is as `public` says and every other sandbox is public.
async fn api_of(public: &Arc<AtomicBool>) -> FakeApi {
    let public = Arc::clone(public);
    FakeApi::start(move |_, path| {
        let says = !path.contains("/sb/") || public.load(Relaxed);
        Act::Send(reply(200, "", if says { "true" } else { "false" }))
    })
    .await
}

#[tokio::test]
async fn a_yes_the_api_had_from_memory_while_the_key_was_away_is_taken_back_from_everybody() {
    let server = RedisServer::start(&[]);
    let from_memory = Arc::new(AtomicBool::new(true));
    let api = api_of(&from_memory).await;
    let (mut first, mut second) =
        tokio::join!(Proxy::trusting(&server, &api), Proxy::trusting(&server, &api));
    for name in ["sb", "sb2"] {
        assert_eq!(first.ask(public(name)).await, ("Ok(Yes)".into(), LIFETIMES.public_pushed));
        assert_eq!(second.ask(public(name)).await.0, "Ok(Yes)");
    }
    assert_eq!(api.seen().requests, 2, "the second was told by the first");
    // It was private all the time; nothing is published and no key is deleted.
    from_memory.store(false, Relaxed);
    assert_eq!(first.heard().await, Told::Changed(id("sb"), Change::Private));
    assert_eq!(second.heard().await, Told::Changed(id("sb"), Change::Public));
    for proxy in [&first, &second] {
        assert_eq!(proxy.ask(public("sb")).await.0, "Ok(No)");
    }
    first.until(|proxy| proxy.rechecked(RecheckResult::Confirmed) == 1).await;
    assert_eq!(first.rechecked(RecheckResult::Withdrawn), 1);
    assert!(ttl(&server, "proxy:sandbox-public:sb2").await > 3500, "what was confirmed stays");
    assert_eq!(second.rechecked(RecheckResult::Confirmed), 0, "who wrote asks");
}

#[tokio::test]
async fn an_api_that_cannot_say_whether_a_shared_yes_was_right_is_asked_until_it_can() {
    let server = RedisServer::start(&[]);
    let api = FakeApi::start(|number, _| {
        Act::Send(match number {
            0 => reply(200, "", "true"),
            1 => reply(500, "", ""),
            _ => reply(200, "", "false"),
        })
    })
    .await;
    let mut proxy = Proxy::start(server.port, &api);
    proxy.rechecks().wait = Duration::from_millis(5);
    proxy.settled().await;
    assert_eq!(proxy.ask(public("sb")).await.0, "Ok(Yes)");
    assert_eq!(proxy.heard().await, Told::Changed(id("sb"), Change::Private));
    proxy.until(|proxy| proxy.rechecked(RecheckResult::Withdrawn) == 1).await;
    assert_eq!(proxy.rechecked(RecheckResult::Unanswered), 1);
    assert_eq!(cli(&server, &["exists", "proxy:sandbox-public:sb"]).await, "0");
}

#[tokio::test]
async fn a_yes_that_nobody_can_ask_about_again_is_shared_and_kept_briefly() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::start(server.port, &api);
    proxy.rechecks().pending_max = 1;
    proxy.settled().await;
    let brief = LIFETIMES.public;
    for (name, keep, lives) in [("sb", LIFETIMES.public_pushed, PUBLIC_TTL), ("sb2", brief, brief)] {
        assert_eq!(proxy.ask(public(name)).await, ("Ok(Yes)".into(), keep), "{name}");
        let left = ttl(&server, &format!("proxy:sandbox-public:{name}")).await;
        assert!((1..=lives.as_secs() as i64).contains(&left), "{name}: {left}");
    }
    assert_eq!(proxy.rechecked(RecheckResult::NoRoom), 1);
}

#[test]
fn a_flag_in_redis_is_believed_again_only_when_the_doubt_after_a_change_is_over() {
    let (push, _told) = Push::new(Arc::default(), Log::discard());
    let before = Instant::now();
    assert!(flag_is_believed(&push, &id("sb"), true, Some(before), before));
    push.hear(News::Published(event("sb", "started").as_bytes()));
    let change = push.last_change(Matter::Flag, &id("sb")).expect("it was just told");
    let (settled, doubted) = (change + API_MEMORY, change + DOUBT);
    let moment = Duration::from_nanos(1);
    for (value, written, began, believed) in [
        // What is not known to be written late enough is from before the change.
        (true, Some(settled), doubted, true),
        (true, Some(settled), doubted - moment, false),
        (true, Some(settled - moment), doubted, false),
        (true, None, doubted, false),
        (true, Some(before), change + PUBLIC_TTL, false),
        // That nobody may in does no harm, once another would have written more.
        (false, Some(before), doubted, true),
        (false, Some(settled), doubted - moment, false),
    ] {
        let found = flag_is_believed(&push, &id("sb"), value, written, began);
        assert_eq!(found, believed, "{value} {:?} {:?}", written.map(|at| at - before), began - before);
    }
    assert!(flag_is_believed(&push, &id("other"), true, None, before));
}

#[tokio::test]
async fn a_proxy_that_has_just_begun_to_listen_shares_nothing_the_api_may_have_from_memory() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let proxy = Proxy::start(server.port, &api);
    proxy.until(|proxy| proxy.push.is_trusted()).await;
    // It may have been made private a moment ago, which nobody was there to hear.
    let (answer, keep) = proxy.ask(public("sb")).await;
    assert_eq!(answer, "Ok(Yes)");
    assert!(Duration::ZERO < keep && keep <= API_MEMORY, "{keep:?}");
    assert_eq!(cli(&server, &["exists", "proxy:sandbox-public:sb"]).await, "0");
    tokio::time::sleep(keep).await;
    assert_eq!(proxy.ask(public("sb")).await, ("Ok(Yes)".into(), LIFETIMES.public_pushed));
    assert_eq!(cli(&server, &["get", "proxy:sandbox-public:sb"]).await, r#"{"value":true}"#);
}

#[tokio::test]
async fn what_may_be_the_token_of_a_signed_link_stands_in_no_key() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let proxy = Proxy::trusting(&server, &api).await;
    let label = "canarylink000001";
    let token = Token::parse(API_KEY.as_bytes()).expect("visible");
    let client_ip = [127, 0, 0, 1].into();
    let bearer = Question::Verdict { proof: ProofKind::Bearer, sandbox: id(label), token, client_ip };
    for question in [public(label), runner(label, false), bearer] {
        assert!(proxy.ask(question.clone()).await.0.starts_with("Ok("), "{question:?}");
    }
    assert_eq!(api.seen().requests, 3);
    let keys = cli(&server, &["keys", "*"]).await;
    assert!(keys.lines().all(|key| key.starts_with("proxy:sandgate-canary:")), "{keys}");
}

#[tokio::test]
async fn a_token_known_before_a_restart_of_its_sandbox_is_asked_about_again() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::trusting(&server, &api).await;
    let question = verdict(ProofKind::PreviewToken, TOKEN);
    proxy.ask(question.clone()).await;
    proxy.ask(question.clone()).await;
    assert_eq!(api.seen().requests, 1);
    cli(&server, &["publish", "sandbox.event.channel", &event("sb", "started")]).await;
    proxy.heard().await;
    proxy.ask(question.clone()).await;
    assert_eq!(api.seen().requests, 2);
    // A proxy that was not there to hear of it believes nothing that is older than itself.
    let late = Proxy::trusting(&server, &api).await;
    late.ask(question).await;
    assert_eq!(api.seen().requests, 3);
}

#[tokio::test]
async fn with_redis_frozen_a_question_costs_its_deadline_once_and_the_shards_are_told_to_forget() {
    let server = RedisServer::start(&[]);
    let api = api().await;
    let mut proxy = Proxy::trusting(&server, &api).await;
    server.freeze();
    let begun = Instant::now();
    assert_eq!(proxy.ask(public("sb")).await, ("Ok(Yes)".into(), LIFETIMES.public));
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(proxy.heard().await, Told::Forget);
    let begun = Instant::now();
    proxy.ask(public("sb2")).await;
    assert!(begun.elapsed() < Duration::from_millis(80), "{:?}", begun.elapsed());
    server.thaw();
    proxy.settled().await;
    assert_eq!(proxy.ask(public("sb3")).await.1, LIFETIMES.public_pushed);
}

#[tokio::test]
async fn where_news_are_not_allowed_values_are_shared_and_kept_briefly() {
    let rules = ["--user", "gate", "on", ">pw", "~proxy:*", "resetchannels", "+@all", "-client|tracking"];
    let server = RedisServer::start(&rules);
    let api = api().await;
    let stats = Arc::<Stats>::default();
    let settings = config::Redis {
        host: "127.0.0.1".into(),
        port: server.port,
        username: Some("gate".into()),
        password: Some(Secret::new("pw")),
        tls: false,
    };
    let (push, _told) = Push::new(Arc::clone(&stats), Log::discard());
    let listener: Arc<dyn crate::control::redis::Listener> = Arc::<Push>::clone(&push);
    let redis = Redis::new(&settings, Some(listener), Arc::clone(&stats), Log::discard()).expect("good");
    let mut tasks = JoinSet::new();
    tasks.spawn(redis.clone().keep());
    within(redis.watch_up().wait_for(|up| *up)).await.expect("the handle lives");
    let client = Api::new(&api.base(), &Secret::new("service"), Duration::from_secs(5), Log::discard());
    let shared = Some((redis, Arc::clone(&push)));
    let lookup = Lookup::new(Arc::new(client.expect("good")), shared, LIFETIMES, stats);
    for _ in 0..2 {
        let found = lookup.answer(&public("sb")).await;
        assert!(found.reply.is_ok() && found.keep <= LIFETIMES.public && !found.keep.is_zero());
    }
    assert_eq!(api.seen().requests, 1);
    // A flag that nobody would take back does not stand for v0.190's hour.
    assert!((1..=LIFETIMES.public.as_secs() as i64).contains(&ttl(&server, "proxy:sandbox-public:sb").await));
    assert!(!push.is_trusted());
}

#[tokio::test]
async fn trouble_is_neither_shared_nor_kept() {
    let server = RedisServer::start(&[]);
    let broken = FakeApi::always(Act::Send(reply(500, "", ""))).await;
    let proxy = Proxy::trusting(&server, &broken).await;
    for question in [public("sb"), runner("sb", false), verdict(ProofKind::Bearer, API_KEY)] {
        let found = proxy.lookup.answer(&question).await;
        assert_eq!(found.reply.err(), Some(Trouble::ApiStatus(500)), "{question:?}");
        assert_eq!(found.keep, Duration::ZERO);
    }
    assert!(cli(&server, &["keys", "*"]).await.lines().all(|key| key.starts_with("proxy:sandgate-canary:")));
}
