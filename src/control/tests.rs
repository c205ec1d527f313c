//! The control plane between a scripted API and mailboxes whose shards are played by the tests.

use super::fake_api::{Act, FakeApi, reply, within};
use super::*;
use crate::counters::Counters;
use crate::ids::{SandboxId, Token};
use crate::mailbox::{Answer, ProofKind};
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(super) const LIFETIMES: Lifetimes = Lifetimes {
    public: Duration::from_secs(30),
    runner: Duration::from_secs(120),
    verdict: Duration::from_secs(120),
    negative: Duration::from_secs(5),
    public_pushed: Duration::from_secs(121),
    runner_pushed: Duration::from_secs(3600),
};

fn no_login() -> LoginSettings {
    LoginSettings {
        scheme: crate::config::Scheme::Http,
        oidc: crate::config::Oidc {
            client_id: None,
            client_secret: None,
            domain: None,
            public_domain: None,
            audience: None,
        },
        cookie_mode: crate::config::CookieMode::Shared,
        cookie_domain: None,
        keys: vec![Secret::new("canary")],
    }
}

struct World {
    api: FakeApi,
    up: mpsc::Sender<ToControl>,
    downs: Vec<Arc<Down>>,
    drained: watch::Receiver<bool>,
    metrics: SocketAddr,
    running: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl World {
    async fn start(api: FakeApi, shards: usize, queue: usize, flights_max: usize) -> Self {
        let (up, inbox) = mpsc::channel(1024);
        let downs: Vec<_> = (0..shards).map(|_| Arc::new(Down::new(queue).expect("an eventfd"))).collect();
        let settings = Settings {
            api_base: api.base(),
            api_key: Secret::new("service"),
            timeout: Duration::from_secs(20),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            activity_interval: Duration::from_secs(45),
            redis: None,
            lifetimes: LIFETIMES,
            flights_max,
            login: no_login(),
        };
        let control =
            Control::with_log(settings, inbox, downs.clone(), Log::discard()).expect("good settings");
        let drained = control.all_drained();
        let metrics = control.metrics_addr().expect("asked for");
        let (end, ended) = oneshot::channel();
        let running = tokio::spawn(control.run(async move {
            // Forgotten by a test that does not end it: then it ends with the test's runtime.
            if ended.await.is_err() {
                std::future::pending().await
            }
        }));
        Self { api, up, downs, drained, metrics, running, end }
    }

    async fn ask(&self, shard: usize, ticket: u64, question: Question) {
        self.up.send(ToControl::Ask { shard, ticket, question }).await.expect("control runs");
    }

    async fn cancel(&self, shard: usize, ticket: u64) {
        self.up.send(ToControl::Cancel { shard, ticket }).await.expect("control runs");
    }

    /// The next answer of a shard, waiting for the bell as a shard would.
    async fn answer(&self, shard: usize) -> (u64, String) {
        match self.message(shard).await {
            ToShard::Answer { ticket, reply, keep: _ } => (ticket, format!("{reply:?}")),
            other => panic!("{other:?}"),
        }
    }

    async fn message(&self, shard: usize) -> ToShard {
        within(async {
            loop {
                if let Some(message) = self.downs[shard].pop() {
                    return message;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn scrape(&self, request: &str) -> String {
        scrape(self.metrics, request).await
    }
}

async fn scrape(addr: SocketAddr, request: &str) -> String {
    within(async {
        let mut stream = TcpStream::connect(addr).await.expect("the page listens");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("the page closes");
        text
    })
    .await
}

fn id(name: &str) -> SandboxId {
    SandboxId::parse(name.as_bytes()).expect("an id")
}

fn public(name: &str) -> Question {
    Question::Public(id(name))
}

fn verdict(token: &str, ip: [u8; 4]) -> Question {
    let token = Token::parse(token.as_bytes()).expect("visible");
    Question::Verdict { proof: ProofKind::Bearer, sandbox: id("s"), token, client_ip: IpAddr::from(ip) }
}

fn yes() -> Vec<u8> {
    reply(200, "", "true")
}

#[tokio::test]
async fn fifty_equal_questions_of_three_shards_are_one_call_and_fifty_answers() {
    let api = FakeApi::always(Act::SendWhenReleased(yes())).await;
    let world = World::start(api, 3, 64, 8).await;
    for n in 0..50 {
        world.ask(n as usize % 3, n, public("s")).await;
    }
    // Messages are taken in order: when this one flies, all before it have been seen.
    world.ask(0, 1000, public("marker")).await;
    world.api.wait_for(|seen| seen.requests == 2).await;
    world.api.release(2);
    let mut tickets = Vec::new();
    for n in 0..51 {
        let shard = if n == 50 { 0 } else { n % 3 };
        let (ticket, told) = world.answer(shard).await;
        assert_eq!(told, "Ok(Yes)");
        assert!(ticket == 1000 || ticket as usize % 3 == shard, "an answer went to the wrong shard");
        tickets.push(ticket);
    }
    tickets.sort_unstable();
    assert_eq!(tickets, Vec::from_iter((0..50).chain([1000])));
    assert!(world.downs.iter().all(|down| down.pop().is_none()), "each asker is answered once");
    assert_eq!(world.api.seen().requests, 2);
    // Answered is not cached: the next one flies again.
    world.ask(0, 2000, public("s")).await;
    world.api.wait_for(|seen| seen.requests == 3).await;
}

#[tokio::test]
async fn another_token_client_or_freshness_is_another_call() {
    let api = FakeApi::always(Act::SendWhenReleased(yes())).await;
    let world = World::start(api, 1, 64, 64).await;
    let runner = |fresh| Question::Runner { sandbox: id("s"), fresh };
    let questions = [
        verdict("a", [192, 0, 2, 1]),
        verdict("b", [192, 0, 2, 1]),
        verdict("a", [192, 0, 2, 2]),
        runner(false),
        runner(true),
    ];
    for (ticket, question) in questions.into_iter().enumerate() {
        world.ask(0, ticket as u64, question).await;
    }
    world.api.wait_for(|seen| seen.requests == 5).await;
}

#[tokio::test]
async fn a_flight_nobody_waits_for_closes_its_connection_and_a_shared_one_flies_on() {
    let api = FakeApi::always(Act::SendWhenReleased(yes())).await;
    let world = World::start(api, 2, 64, 8).await;
    world.ask(0, 1, public("alone")).await;
    world.ask(0, 2, public("shared")).await;
    world.ask(1, 3, public("shared")).await;
    world.api.wait_for(|seen| seen.requests == 2).await;
    world.cancel(0, 2).await;
    world.cancel(0, 1).await;
    world.api.wait_for(|seen| seen.closed == 1).await;
    world.api.release(1);
    assert_eq!(world.answer(1).await, (3, "Ok(Yes)".into()));
    assert!(world.downs[0].pop().is_none(), "who left is not answered");
    // The same question later is a new flight.
    world.ask(0, 4, public("alone")).await;
    world.api.release(1);
    assert_eq!(world.answer(0).await, (4, "Ok(Yes)".into()));
    assert_eq!(world.api.seen().requests, 3);
}

#[tokio::test]
async fn a_full_queue_loses_no_answer_and_holds_up_no_other_shard() {
    let world = World::start(FakeApi::always(Act::Send(yes())).await, 2, 1, 64).await;
    for ticket in 0..10 {
        world.ask(0, ticket, public(&format!("s-{ticket}"))).await;
    }
    world.api.wait_for(|seen| seen.requests == 10).await;
    // Shard 0 reads nothing yet and its queue holds one.
    for ticket in 100..105 {
        world.ask(1, ticket, public("other")).await;
        assert_eq!(world.answer(1).await, (ticket, "Ok(Yes)".into()));
    }
    let mut tickets = Vec::new();
    for _ in 0..10 {
        tickets.push(world.answer(0).await.0);
    }
    tickets.sort_unstable();
    assert_eq!(tickets, Vec::from_iter(0..10));
}

#[tokio::test]
async fn beyond_the_bound_questions_are_answered_overloaded() {
    let api = FakeApi::always(Act::SendWhenReleased(yes())).await;
    let world = World::start(api, 1, 64, 1).await;
    world.ask(0, 1, public("a")).await;
    world.ask(0, 2, public("b")).await;
    assert_eq!(world.answer(0).await, (2, "Err(Overloaded)".into()));
    world.api.release(1);
    assert_eq!(world.answer(0).await, (1, "Ok(Yes)".into()));
    world.ask(0, 3, public("b")).await;
    world.api.release(1);
    assert_eq!(world.answer(0).await, (3, "Ok(Yes)".into()));
}

#[tokio::test]
async fn a_shared_answer_is_one_allocation() {
    let body = r#"{"proxyUrl":"http://127.0.0.1:3003","apiKey":"k"}"#;
    let api = FakeApi::always(Act::SendWhenReleased(reply(200, "", body))).await;
    let world = World::start(api, 2, 64, 8).await;
    let runner = || Question::Runner { sandbox: id("s"), fresh: false };
    world.ask(0, 1, runner()).await;
    world.ask(1, 1, runner()).await;
    world.ask(0, 2, public("marker")).await;
    world.api.wait_for(|seen| seen.requests == 2).await;
    world.api.release(2);
    let address = async |shard| loop {
        if let ToShard::Answer { reply: Ok(Answer::Runner(address)), .. } = world.message(shard).await {
            return address;
        }
    };
    assert!(Arc::ptr_eq(&address(0).await, &address(1).await));
}

#[tokio::test]
async fn drained_is_said_once_all_shards_have() {
    let world = World::start(FakeApi::always(Act::Send(yes())).await, 3, 8, 8).await;
    let mut drained = world.drained.clone();
    for shard in [0, 2, 2] {
        world.up.send(ToControl::Drained { shard }).await.expect("control runs");
    }
    // An answer shows that what was sent before it has been taken.
    world.ask(0, 1, public("s")).await;
    world.answer(0).await;
    assert!(!*drained.borrow());
    world.up.send(ToControl::Drained { shard: 1 }).await.expect("control runs");
    within(drained.wait_for(|all| *all)).await.expect("control runs");
}

#[tokio::test]
async fn the_end_closes_open_calls_and_the_metrics_page() {
    let api = FakeApi::always(Act::SendWhenReleased(yes())).await;
    let world = World::start(api, 1, 8, 8).await;
    world.ask(0, 1, public("s")).await;
    world.api.wait_for(|seen| seen.requests == 1).await;
    world.end.send(()).expect("control runs");
    within(world.running).await.expect("it ends");
    world.api.wait_for(|seen| seen.closed == 1).await;
    assert!(TcpStream::connect(world.metrics).await.is_err());
}

#[tokio::test]
async fn control_ends_when_no_shard_is_left() {
    let World { up, running, end, .. } = World::start(FakeApi::always(Act::Send(yes())).await, 1, 8, 8).await;
    drop(up);
    within(running).await.expect("it ends");
    drop(end);
}

#[tokio::test]
async fn control_ends_when_a_part_of_it_panics_and_not_when_one_is_done() {
    let settings = Settings {
        api_base: "http://api/api".into(),
        api_key: Secret::new("service"),
        timeout: Duration::from_secs(1),
        metrics: None,
        activity_interval: Duration::from_secs(45),
        redis: None,
        lifetimes: LIFETIMES,
        flights_max: 1,
        login: no_login(),
    };
    let (_up, inbox) = mpsc::channel(1);
    let mut control = Control::with_log(settings, inbox, Vec::new(), Log::discard()).expect("good settings");
    let (fail, failing) = oneshot::channel::<()>();
    control.servers.spawn(async {});
    control.servers.spawn(async move { failing.await.expect("as a fault does") });
    let mut running = tokio::spawn(control.run(std::future::pending()));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut running).await.is_err(), "one was done");
    drop(fail);
    within(running).await.expect("it ends and does not panic itself");
}

#[test]
fn a_taken_metrics_port_is_told_with_its_variable() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let settings = Settings {
        api_base: "http://api/api".into(),
        api_key: Secret::new("canary"),
        timeout: Duration::from_secs(1),
        metrics: taken.local_addr().ok(),
        activity_interval: Duration::from_secs(45),
        redis: None,
        lifetimes: LIFETIMES,
        flights_max: 1,
        login: no_login(),
    };
    assert!(!format!("{settings:?}").contains("canary"));
    let error = Control::new(settings, mpsc::channel(1).1, Vec::new()).err().expect("taken");
    assert!(error.to_string().contains("METRICS_PORT"), "{error}");
}

/// Answers reports with `accepted`, until it is told to end.
fn play_shard(down: Arc<Down>, accepted: u64) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            match down.pop() {
                Some(ToShard::Report(sender)) => {
                    let counters = Box::<Counters>::default();
                    counters.accepted.set(accepted);
                    counters.connections_open.set(accepted * 10);
                    sender.send(counters).expect("the scrape waits");
                }
                Some(ToShard::Stop) => return,
                Some(other) => panic!("{other:?}"),
                None => tokio::task::yield_now().await,
            }
        }
    })
}

#[tokio::test]
async fn a_scrape_adds_the_shards_up_and_a_late_shard_keeps_its_last_report() {
    let world = World::start(FakeApi::always(Act::Send(yes())).await, 2, 8, 8).await;
    world.ask(0, 1, public("s")).await;
    world.answer(0).await;
    let shards = [play_shard(world.downs[0].clone(), 2), play_shard(world.downs[1].clone(), 3)];
    let get = "GET /metrics?x=1 HTTP/1.1\r\nHost: m\r\n\r\n";
    let page = world.scrape(get).await;
    let (head, body) = page.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let has = |page: &str, line: &str| assert!(page.lines().any(|l| l == line), "no {line} in\n{page}");
    has(body, "preview_connections_accepted_total 5");
    has(body, "preview_connections_open{shard=\"1\"} 30");
    has(body, "preview_controlplane_seconds_count{op=\"public\"} 1");
    has(body, "preview_shards{state=\"reporting\"} 2");

    world.downs[1].push(ToShard::Stop).expect("room");
    let [first, second] = shards;
    within(second).await.expect("ended");
    let page = world.scrape(get).await;
    has(&page, "preview_connections_accepted_total 5");
    has(&page, "preview_shards{state=\"reporting\"} 1");
    first.abort();
}

#[tokio::test]
async fn the_page_answers_get_and_head_of_two_paths_and_refuses_the_rest() {
    let world = World::start(FakeApi::always(Act::Send(yes())).await, 0, 8, 8).await;
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(8 * 1024));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", "200 OK"),
        ("HEAD /metrics HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("no\u{1}thing\r\n\r\n", "400 Bad Request"),
        (many.as_str(), "431 Request Header Fields Too Large"),
    ] {
        let answer = world.scrape(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:.20}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!(
            body.is_empty(),
            request.starts_with("HEAD") || status.as_bytes()[0] == b'4' && status != "404 Not Found"
        );
        assert_eq!(head.contains("Allow: GET, HEAD"), status.starts_with("405"), "{head}");
    }
    let answer = world.scrape(&long[..8 * 1024]).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(
        world.scrape("GET /healthz HTTP/1.1\r\n\r\n").await.split_once("\r\n\r\n").expect("a head").1,
        "ok\n"
    );
}

#[tokio::test]
async fn silent_clients_cannot_keep_the_page_from_others_for_longer_than_the_deadline() {
    let world = World::start(FakeApi::always(Act::Send(yes())).await, 0, 8, 8).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(world.metrics).await.expect("queued at least"));
    }
    // More than are served at once; each is let go after five seconds, well within `scrape`'s own twenty.
    assert!(world.scrape("GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}
