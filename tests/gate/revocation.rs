//! What lives long ends when the right it was let in by does, and not otherwise.

use crate::harness::{Api, DEADLINE, Gate, HOST, KEY, Runner, Wire, ok};
use crate::shared::redis_server::cli;
use crate::shared::{PUBLIC_KEY, World, until};
use crate::tunnels::{ACCEPT, switching, upgrade};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

pub const CHANNEL: &str = "sandbox.event.channel";
/// For so long after a change the API goes on to say what was true before it.
const API_MEMORY: Duration = Duration::from_secs(3);
/// Of each kind, so that several shards have some.
const ROUNDS: usize = 4;
const TOKEN: &str = "abcdefghijklmnopqrstuvwxyz012345";
const NEW_TOKEN: &str = "zyxwvutsrqponmlkjihgfedcba543210";
/// From the event to the end of the connection; a busy machine is given some more than the second that is aimed at.
const SOON: Duration = Duration::from_secs(2);

/// What each connection of the runner saw at its end is sent on: `true`, it was ended.
pub fn endless_runner() -> (Runner, mpsc::Receiver<bool>) {
    let (told, tell) = mpsc::channel();
    let told = Mutex::new(told);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let begin = if head.field("Upgrade").is_some() {
            switching(ACCEPT).into_bytes()
        } else if head.target().ends_with("/events") {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n".to_vec()
        } else if head.target().ends_with("/chunks") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n".to_vec()
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegin".to_vec()
        };
        if wire.send(begin).is_err() {
            return;
        }
        if head.field("Upgrade").is_some() {
            // An echo, to see whether it lives.
            while wire.fill().is_ok_and(|n| n > 0) {
                let bytes = wire.take_ahead();
                if wire.send(bytes).is_err() {
                    break;
                }
            }
        } else {
            let _ = wire.rest();
        }
        let _ = told.lock().expect("no thread panics with it").send(true);
    });
    (runner, tell)
}

/// Asks with these further field lines and reads the head of the answer.
pub fn opened(gate: &Gate, host: &str, request: &str, fields: &str) -> Wire {
    let mut wire = gate.connect();
    let request = request.replace(HOST, host);
    let (line, rest) = request.split_once("\r\n").expect("a request line");
    wire.send(format!("{line}\r\n{fields}{rest}")).expect("the gate reads");
    let head = wire.head().expect("an answer").expect("an answer");
    assert!(matches!(head.status(), 101 | 200), "{head:?}");
    wire
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// A tunnel, a stream, chunks and a download.
fn one_of_each(gate: &Gate, host: &str, fields: &str) -> Vec<Wire> {
    let requests = [upgrade("/ws"), get("/events"), get("/chunks"), get("/download")];
    requests.iter().map(|request| opened(gate, host, request, fields)).collect()
}

/// Some of each, on several shards.
fn some_of_each(gate: &Gate, host: &str, fields: &str) -> Vec<Wire> {
    (0..ROUNDS).flat_map(|_| one_of_each(gate, host, fields)).collect()
}

/// The status of a new request.
fn asked(gate: &Gate, host: &str, fields: &str) -> u16 {
    let mut wire = gate.connect();
    wire.send(format!("GET /download HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.head().expect("an answer").expect("an answer").status()
}

/// The session of a login that long ago, in a page of this very host.
pub fn session(host: &str, age: u64) -> String {
    let cookie = crate::proofs::cookie_made(KEY, "sb1", "sb1", age);
    format!("Origin: http://{host}\r\nCookie: {cookie}\r\n")
}

fn shows(token: &str) -> String {
    format!("X-Daytona-Preview-Token: {token}\r\n")
}

/// Each ends, at both its ends.
fn all_end(wires: Vec<Wire>, runner_told: &mpsc::Receiver<bool>, since: Instant) {
    all_end_within(wires, runner_told, since, SOON);
}

fn all_end_within(wires: Vec<Wire>, runner_told: &mpsc::Receiver<bool>, since: Instant, within: Duration) {
    let count = wires.len();
    for mut wire in wires {
        // Its last bytes, if any, and then the end, by a close or a reset.
        let _ = wire.rest();
        assert!(since.elapsed() < within, "{:?}", since.elapsed());
    }
    for _ in 0..count {
        assert_eq!(runner_told.recv_timeout(DEADLINE), Ok(true));
    }
}

fn lives(tunnel: &mut Wire) -> bool {
    tunnel.send("ping").is_ok() && tunnel.exactly(4).is_ok_and(|echo| echo == b"ping")
}

fn event(state: &str) -> String {
    format!(r#"{{"sandbox":{{"id":"sb1"}},"oldState":"x","newState":"{state}"}}"#)
}

/// As the API publishes it: the whole sandbox, of which this is a part.
fn event_of(sandbox: &str) -> String {
    format!(
        r#"{{"sandbox":{{"organizationId":"o","id":"sb1",{sandbox},"env":{{"public":true}},"labels":{{}}}},"oldDesiredState":"x","newDesiredState":"started"}}"#
    )
}

#[test]
fn what_was_let_in_by_a_public_sandbox_ends_when_it_is_made_private_though_the_api_remembers_it() {
    for (change, value) in [("del", PUBLIC_KEY), ("publish", &event_of(r#""public":false"#))] {
        let (runner, told) = endless_runner();
        let world = World::before(runner, &[]);
        let wires = some_of_each(&world.gate, HOST, "");
        let mut of_token =
            opened(&world.gate, &HOST.replace("3000-", "2280-"), &upgrade("/ws"), &shows(TOKEN));
        world.api.script.says_later(404, API_MEMORY);
        let words: &[&str] = if change == "del" { &[change, value] } else { &[change, CHANNEL, value] };
        cli(world.redis.port, words);
        let since = Instant::now();
        all_end(wires, &told, since);
        // Nor is anybody let in anew, on no shard.
        for _ in 0..ROUNDS * 4 {
            assert_eq!(asked(&world.gate, HOST, ""), 401);
        }
        assert!(since.elapsed() < API_MEMORY, "the API says so itself by now: {:?}", since.elapsed());
        // A token still counts.
        assert!(lives(&mut of_token));
        world.until_metric(&format!("preview_revoked_total{{reason=\"private\"}} {}", ROUNDS * 4));
    }
}

#[test]
fn what_was_let_in_by_a_token_ends_when_the_token_is_replaced_though_the_api_remembers_it() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    // A reserved port: the public flag opens nothing there.
    let host = HOST.replace("3000-", "22222-");
    let wires = some_of_each(&world.gate, &host, &shows(TOKEN));
    let mut new = opened(&world.gate, &host, &upgrade("/ws"), &shows(NEW_TOKEN));
    let event = event_of(&format!(r#""authToken":"{NEW_TOKEN}""#));
    cli(world.redis.port, &["publish", CHANNEL, &event]);
    let since = Instant::now();
    all_end(wires, &told, since);
    for _ in 0..ROUNDS * 4 {
        assert_eq!(asked(&world.gate, &host, &shows(TOKEN)), 401);
    }
    assert!(since.elapsed() < API_MEMORY, "{:?}", since.elapsed());
    assert_eq!(asked(&world.gate, &host, &shows(NEW_TOKEN)), 200);
    assert!(lives(&mut new));
    world.until_metric(&format!("preview_revoked_total{{reason=\"token\"}} {}", ROUNDS * 4));
}

#[test]
fn where_the_event_does_not_say_which_token_is_good_the_api_is_asked() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    let host = HOST.replace("3000-", "22222-");
    let wires = one_of_each(&world.gate, &host, &shows(TOKEN));
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    all_end(wires, &told, Instant::now());
    world.until_metric("preview_revoked_total{reason=\"token\"} 4");
}

#[test]
fn news_in_a_row_put_the_last_question_off_no_further_than_the_apis_memory() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    let host = HOST.replace("3000-", "22222-");
    let wires = one_of_each(&world.gate, &host, &shows(TOKEN));
    world.api.script.says_later(404, API_MEMORY);
    // Two that do not say which token is good, each the reason of a look, within one round trip to the API.
    for _ in 0..2 {
        cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    }
    let since = Instant::now();
    all_end_within(wires, &told, since, API_MEMORY + SOON);
    world.until_metric("preview_revoked_total{reason=\"token\"} 4");
}

#[test]
fn late_news_give_a_replaced_token_back_to_nobody_and_take_the_new_one_from_nobody() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    let host = HOST.replace("3000-", "22222-");
    let since = Instant::now();
    // The last one comes late; the API says "yes" to both.
    for (number, token) in [TOKEN, NEW_TOKEN, TOKEN].into_iter().enumerate() {
        let event = event_of(&format!(r#""authToken":"{token}""#));
        cli(world.redis.port, &["publish", CHANNEL, &event]);
        world.until_metric(&format!("preview_push_changes_total {}", number + 1));
    }
    for _ in 0..ROUNDS * 4 {
        assert_eq!(asked(&world.gate, &host, &shows(TOKEN)), 401);
        assert_eq!(asked(&world.gate, &host, &shows(NEW_TOKEN)), 200);
    }
    assert!(since.elapsed() < API_MEMORY, "{:?}", since.elapsed());
}

#[test]
fn an_event_gives_no_right() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    world.api.script.status.store(404, SeqCst);
    let reserved = HOST.replace("3000-", "22222-");
    let refused = || {
        assert_eq!(asked(&world.gate, HOST, ""), 401);
        assert_eq!(asked(&world.gate, &reserved, &shows(NEW_TOKEN)), 401);
    };
    refused();
    let event = event_of(&format!(r#""public":true,"authToken":"{NEW_TOKEN}""#));
    cli(world.redis.port, &["publish", CHANNEL, &event]);
    world.until_metric("preview_push_changes_total 1");
    (0..ROUNDS).for_each(|_| refused());
}

/// There is no event for a link's end: it is found out within its time to live, however busy the link is.
#[test]
fn what_was_let_in_by_a_signed_link_ends_within_its_time_to_live_after_the_link() {
    const LINK: &str = "a1b2c3d4e5f6g7h8";
    const TTL: Duration = Duration::from_secs(2);
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[("SANDGATE_SIGNED_TTL_SEC", "2"), ("SANDGATE_SHARDS", "2")]);
    let script = &world.api.script;
    // The label is no sandbox, and the link's token is.
    script.reply(&format!("/api/preview/{LINK}/public"), 404, "");
    let target = format!("/api/preview/{LINK}/3000/sandbox-id");
    script.reply(&target, 200, "sb1");
    let host = HOST.replace("sb1", LINK);
    let wires = some_of_each(&world.gate, &host, "");
    script.reply(&target, 403, "{}");
    let since = Instant::now();
    // Visitors who come meanwhile are let in from memory at most, and put nothing off.
    while asked(&world.gate, &host, "") == 200 {
        assert!(since.elapsed() < TTL + SOON, "{:?}", since.elapsed());
    }
    for mut wire in wires {
        let _ = wire.rest();
    }
    println!("a signed link's connections ended {:?} after it, its time to live is {TTL:?}", since.elapsed());
    assert!(since.elapsed() < TTL + SOON, "{:?}", since.elapsed());
    // And maybe some of the visitors.
    let counted = || world.gate_metric("preview_revoked_total{reason=\"link\"}");
    crate::shared::until(|| counted() >= ROUNDS as u64 * 4, "they are counted");
    drop(told);
}

/// The link as the API keeps it in Redis, for so many milliseconds, and what it answers.
pub fn link(world: &World, token: &str, lives_ms: &str) -> String {
    world.api.script.reply(&format!("/api/preview/{token}/public"), 404, "");
    world.api.script.reply(&format!("/api/preview/{token}/3000/sandbox-id"), 200, "sb1");
    let key = format!("sandbox:signed-preview-url-token:3000:{token}");
    cli(world.redis.port, &["set", &key, "sb1", "px", lives_ms]);
    key
}

#[test]
fn what_was_let_in_by_a_signed_link_ends_with_the_link_where_its_key_is_seen() {
    const LIVES: Duration = Duration::from_millis(2500);
    let (runner, told) = endless_runner();
    // Without news, a minute later.
    let world = World::before(runner, &[("SANDGATE_SIGNED_TTL_SEC", "60")]);
    let (revoked, expired, other) = ("a1b2c3d4e5f6g7h8", "b1b2c3d4e5f6g7h8", "c1b2c3d4e5f6g7h8");
    let host = |token: &str| HOST.replace("sb1", token);
    let key = link(&world, revoked, "60000");
    link(&world, other, "60000");
    let wires = some_of_each(&world.gate, &host(revoked), "");
    let mut lasting = opened(&world.gate, &host(other), &upgrade("/ws"), "");
    world.api.script.reply(&format!("/api/preview/{revoked}/3000/sandbox-id"), 403, "{}");
    cli(world.redis.port, &["del", &key]);
    all_end(wires, &told, Instant::now());
    assert_eq!(asked(&world.gate, &host(revoked), ""), 401);
    world.until_metric(&format!("preview_revoked_total{{reason=\"link\"}} {}", ROUNDS * 4));

    link(&world, expired, &LIVES.as_millis().to_string());
    let begun = Instant::now();
    let wires = some_of_each(&world.gate, &host(expired), "");
    world.api.script.reply(&format!("/api/preview/{expired}/3000/sandbox-id"), 403, "{}");
    all_end(wires, &told, begun + LIVES);
    assert!(begun.elapsed() > LIVES, "{:?}", begun.elapsed());
    assert!(lives(&mut lasting));
}

#[test]
fn what_was_let_in_by_a_session_ends_with_the_session() {
    let (runner, told) = endless_runner();
    let api = Api::start(runner.addr);
    api.script.status.store(404, SeqCst);
    api.script.reply(
        "/api/runners/",
        200,
        &format!(r#"{{"proxyUrl":"http://{}","apiKey":"k"}}"#, runner.addr),
    );
    let gate = Gate::start(&api, &[]);
    let session = |age| session(HOST, age);
    let begun = Instant::now();
    let wires = one_of_each(&gate, HOST, &session(3597));
    let mut fresh = opened(&gate, HOST, &upgrade("/ws"), &session(0));
    // The younger of two is the session.
    let both = session(0)
        .replace("Cookie: ", &format!("Cookie: {}; ", crate::proofs::cookie_made(KEY, "sb1", "sb1", 3597)));
    let mut younger = opened(&gate, HOST, &upgrade("/ws"), &both);
    for mut wire in wires {
        let _ = wire.rest();
    }
    let took = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(3) + SOON).contains(&took), "{took:?}");
    gate.await_metric("preview_revoked_total{reason=\"session\"}", 4);
    assert!(lives(&mut fresh) && lives(&mut younger));
    drop(told);
}

#[test]
fn everything_ends_with_its_sandbox_and_nothing_of_another() {
    let (runner, told) = endless_runner();
    let world = World::before(runner, &[]);
    let mut other = opened(&world.gate, &HOST.replace("sb1", "sb2"), &upgrade("/ws"), "");
    let terminal = HOST.replace("3000-", "22222-");
    for state in ["stopped", "archived", "destroyed"] {
        let mut wires = some_of_each(&world.gate, HOST, "");
        wires.extend(one_of_each(&world.gate, &terminal, &session(&terminal, 0)));
        let count = wires.len();
        cli(world.redis.port, &["publish", CHANNEL, &event(state)]);
        all_end(wires, &told, Instant::now());
        world.until_metric(&format!("preview_revoked_total{{reason=\"{state}\"}} {count}"));
    }
    assert!(lives(&mut other));
}

#[test]
fn a_right_that_still_holds_is_left_alone_whatever_changed() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    let mut tunnel = opened(&world.gate, HOST, &upgrade("/ws"), "");
    let asked = world.api.script.questions.load(SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    crate::shared::until(|| world.api.script.questions.load(SeqCst) > asked, "it is asked about again");
    assert!(lives(&mut tunnel));
    assert!(!world.metrics().contains("preview_revoked_total{reason=\"private\"} 1"));
}

#[test]
fn trouble_at_the_api_cuts_nothing_at_once() {
    let (runner, _told) = endless_runner();
    let world = World::before(runner, &[]);
    let mut tunnel = opened(&world.gate, HOST, &upgrade("/ws"), "");
    let asked = world.api.script.questions.load(SeqCst);
    world.api.script.status.store(500, SeqCst);
    cli(world.redis.port, &["publish", CHANNEL, &event("started")]);
    crate::shared::until(|| world.api.script.questions.load(SeqCst) > asked + 1, "it is asked twice");
    assert!(lives(&mut tunnel));
}

#[test]
fn without_redis_a_right_is_found_out_again_when_its_time_is_over() {
    let (runner, told) = endless_runner();
    let api = Api::start(runner.addr);
    let gate = Gate::start(&api, &[("SANDGATE_PUBLIC_TTL_SEC", "1")]);
    let wires = one_of_each(&gate, HOST, "");
    api.script.status.store(404, SeqCst);
    let begun = Instant::now();
    for mut wire in wires {
        let _ = wire.rest();
        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    }
    for _ in 0..4 {
        assert_eq!(told.recv_timeout(DEADLINE), Ok(true));
    }
}

#[test]
fn an_answer_that_took_longer_than_its_right_is_not_shown() {
    let (read, has_read) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let shared = Mutex::new((read, may_go));
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(_)) = wire.message() {
            let (read, may_go) = &*shared.lock().expect("no thread panics with it");
            read.send(()).expect("the test waits");
            let () = may_go.recv_timeout(DEADLINE).expect("the test says when");
            if wire.send(ok("a secret of the sandbox")).is_err() {
                return;
            }
        }
    });
    let world = World::before(runner, &[]);
    let mut wire = world.gate.connect();
    wire.send(get("/slow")).expect("the gate reads");
    has_read.recv_timeout(DEADLINE).expect("the runner has it");
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    world.until_metric("preview_push_changes_total 1");
    go.send(()).expect("the runner waits");
    let answer = wire.expect_message().expect("an answer");
    assert_eq!(answer.status(), 401, "{answer:?}");
    assert!(!answer.text().contains("secret"));
}

/// Such an app may say for hours that it is at it, or begin to say something; the right is looked at when the first of it
/// comes, and then no more.
#[test]
fn an_answer_behind_an_early_beginning_is_not_shown_either_when_the_right_has_gone() {
    const BEGINNINGS: [&str; 2] = ["HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 2"];
    let (read, has_read) = mpsc::channel();
    let may_go = Arc::new(AtomicBool::new(true));
    let go = may_go.clone();
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(head)) = wire.message() {
            let informational = head.target().ends_with("/informational");
            let beginning = BEGINNINGS[usize::from(!informational)];
            wire.send(beginning).expect("the gate reads");
            read.send(()).expect("the test waits");
            until(|| may_go.load(SeqCst), "the test says when");
            let answer = ok("a secret of the sandbox");
            if wire.send(&answer[if informational { 0 } else { beginning.len() }..]).is_err() {
                return;
            }
        }
    });
    let world = World::before(runner, &[]);
    let ask = |path: &str| {
        let mut wire = world.gate.connect();
        wire.send(get(path)).expect("the gate reads");
        has_read.recv_timeout(DEADLINE).expect("the runner has it");
        if path == "/informational" {
            assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 102);
        }
        wire
    };
    for path in ["/informational", "/half-a-head"] {
        let mut wire = ask(path);
        assert_eq!(wire.expect_message().expect("an answer").text(), "a secret of the sandbox");
    }
    go.store(false, SeqCst);
    let mut wires = [ask("/informational"), ask("/half-a-head")];
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["del", PUBLIC_KEY]);
    world.until_metric("preview_revoked_total{reason=\"private\"} 2");
    go.store(true, SeqCst);
    for wire in &mut wires {
        // The end, by whatever; if there is an answer before it, not the app's.
        wire.stream.set_read_timeout(Some(Duration::from_secs(2))).expect("not zero");
        let mut heard = Vec::new();
        let _ = std::io::Read::read_to_end(&mut wire.stream, &mut heard);
        assert!(!String::from_utf8_lossy(&heard).contains("secret"), "{heard:?}");
    }
}
