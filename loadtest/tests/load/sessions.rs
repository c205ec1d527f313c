//! What lives longer than an exchange: WebSockets, event streams, pages, idle tunnels.

use super::peer::{Answer, Asked, Server, codes, ok, plan, run};
use loadtest::assertion::{self, Thresholds};
use loadtest::plan::{Class, Idle, Load};
use loadtest::quantity::Span;
use loadtest::report;
use loadtest::result::ClassResult;
use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

fn class(text: &str) -> Class {
    text.parse().expect("a class")
}

fn of(server: &Server, name: &str, rate: f64) -> ClassResult {
    let mut plan = plan(&server.url(), Load::Hold { rate }, 1000);
    plan.phases[0].mix = vec![(class(name), 1.0)];
    run(plan).phases[0].classes[name].clone()
}

fn is(asked: &Asked, field: &str) -> bool {
    asked.head.to_ascii_lowercase().contains(field)
}

#[test]
fn websockets_are_timed_by_handshake_and_by_echo() {
    let server = Server::start(|asked| {
        assert!(is(asked, "upgrade: websocket") && is(asked, "sec-websocket-version: 13"));
        Answer::Echo { corrupt_after: u32::MAX }
    });
    let result = of(&server, "ws:7x32", 20.0);
    assert_eq!((result.planned, result.ok, result.failed), (20, 20, 0), "{:?}", result.errors);
    assert_eq!((result.extra["ws_echo"].count(), result.extra["ws_connect"].count()), (140, 20));
    assert_eq!(result.statuses[&101], 20);
    assert_eq!(server.connections.load(SeqCst) - 16, 20, "each has a connection of its own");
}

#[test]
fn an_echo_that_is_not_what_was_sent_is_a_failure() {
    let server = Server::start(|_| Answer::Echo { corrupt_after: 3 });
    let result = of(&server, "ws:7x32", 20.0);
    assert_eq!((result.ok, result.failed, result.errors[0].code.as_str()), (0, 20, "wrong content"));
}

#[test]
fn a_websocket_answered_with_200_is_no_websocket() {
    let server = Server::start(|_| ok());
    assert_eq!(of(&server, "ws:1x32", 20.0).errors[0].code, "wrong content");
}

#[test]
fn events_are_timed_by_their_gaps_and_a_missing_one_is_a_failure() {
    let server = Server::start(|asked| {
        assert!(asked.line.starts_with("GET /events?count=4&every_ms=20"), "{}", asked.line);
        let events = if asked.number % 2 == 0 { 4 } else { 3 };
        let body = "id: 1\ndata: x\n\n".repeat(events);
        Answer::Raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into())
    });
    let result = of(&server, "sse:4x20ms", 20.0);
    // Those to the pool's connections are none: all requests are sessions.
    assert_eq!((result.ok, result.failed), (10, 10), "{:?}", result.errors);
    assert_eq!(result.errors[0].code, "wrong content");
    assert_eq!(result.extra["event_gap"].count(), 10 * 3 + 10 * 2);
}

/// What a session's times measure has come early, and then nothing more.
#[test]
fn a_session_that_hangs_is_unfinished_however_well_it_began() {
    let server = Server::start(|asked| match is(asked, "upgrade: websocket") {
        true => Answer::Hold { cut_after: None },
        false => Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\ndata: x\n\n".into()),
    });
    for name in ["ws:7x32", "ws:7x32@20ms", "sse:4x20ms"] {
        let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1000);
        plan.phases[0].mix = vec![(class(name), 1.0)];
        plan.client.grace = Span(Duration::from_millis(200));
        let result = run(plan);
        let total = result.phases[0].total();
        assert_eq!((total.sent, total.unfinished, total.ok, total.failed), (20, 20, 0, 0), "{name}");
        assert_eq!(total.response.count(), 20, "{name}: each has one time");
        assert!(codes(&result).contains(&"nothing".into()), "{name}: {:?}", result.validity);
    }
}

#[test]
fn a_session_that_goes_on_well_when_the_run_is_over_is_ended_and_no_error() {
    let server = Server::start(|asked| match is(asked, "upgrade: websocket") {
        true => Answer::Echo { corrupt_after: u32::MAX },
        // The next one would be due long after the end, or is always soon to come.
        false if asked.line.contains("every_ms=60000") => Answer::Events { every: Duration::from_secs(60) },
        false => Answer::Events { every: Duration::from_millis(20) },
    });
    for name in ["ws:100000x8", "ws:100000x8@20ms", "sse:100000x20ms", "sse:9x60s"] {
        let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 500);
        plan.phases[0].mix = vec![(class(name), 1.0)];
        plan.client.grace = Span(Duration::from_secs(20));
        let begun = std::time::Instant::now();
        let result = run(plan);
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}: the grace is not used up");
        let total = result.phases[0].total();
        assert_eq!((total.sent, total.ok, total.shortened), (10, 10, 10), "{name}: {:?}", total.errors);
        // Echo after echo keeps a CPU busy, which is told.
        assert!(codes(&result).iter().all(|code| code == "client_cpu"), "{name}: {:?}", result.validity);
    }
}

/// Messages that wait for echoes hide a stall from all but one of them.
#[test]
fn messages_sent_as_planned_show_a_stall_and_messages_after_echoes_hide_it() {
    const STALL: Duration = Duration::from_millis(400);
    let server = Server::start(|_| Answer::EchoWithStall { before: 5, stall: STALL });
    for (name, is_seen) in [("ws:20x8@20ms", true), ("ws:20x8", false)] {
        let mut plan =
            plan(&server.url(), Load::Burst { size: 1, every: Span(Duration::from_secs(5)) }, 2000);
        plan.phases[0].mix = vec![(class(name), 1.0)];
        let total = run(plan).phases[0].total();
        let echoes = &total.extra["ws_echo"];
        assert_eq!((total.ok, total.shortened, echoes.count()), (1, 0, 20), "{name}: {:?}", total.errors);
        assert!(echoes.max_ns() >= STALL.as_nanos() as u64, "{name}: {:?}", echoes.quantiles());
        // Fifteen of twenty were due in it or right after; they waited 200 ms on average.
        assert_eq!(echoes.quantile_us(0.5) > 50_000.0, is_seen, "{name}: {:?}", echoes.quantiles());
    }
}

#[test]
fn a_page_loads_its_assets_over_six_connections() {
    let seen = Arc::new(Mutex::new((HashSet::new(), 0)));
    let watched = seen.clone();
    let server = Server::start(move |asked| {
        let mut seen = watched.lock().expect("not poisoned");
        if asked.line == "GET /bytes/100" {
            seen.0.insert(asked.peer);
            seen.1 += 1;
        }
        drop(seen);
        thread::sleep(Duration::from_millis(5));
        Answer::Say(200, "x".repeat(100))
    });
    let mut plan = plan(&server.url(), Load::Burst { size: 1, every: Span(Duration::from_secs(5)) }, 500);
    plan.phases[0].mix = vec![(class("page:20x100"), 1.0)];
    let result = run(plan).phases[0].classes["page:20x100"].clone();
    assert_eq!((result.ok, result.failed), (1, 0), "{:?}", result.errors);
    let seen = seen.lock().expect("not poisoned");
    assert_eq!((seen.0.len(), seen.1), (6, 20));
    // A page, then 20 assets six at a time: five rounds of 5 ms at least.
    assert!(result.response.quantile_us(0.5) >= 24_000.0, "{:?}", result.response.quantiles());
}

#[test]
fn sessions_beyond_the_bound_are_unsent_and_make_the_result_invalid() {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_secs(2));
        Answer::Echo { corrupt_after: u32::MAX }
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 500);
    plan.phases[0].mix = vec![(class("ws:1x8"), 1.0)];
    plan.client.sessions_max = 3;
    plan.client.grace = Span(Duration::from_millis(100));
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!((total.sent, total.unsent, total.unfinished), (3, 7, 3));
    assert!(codes(&result).contains(&"sessions_max".into()) && !result.validity.valid);
}

#[test]
fn idle_tunnels_come_from_all_source_addresses_and_cut_ones_are_counted() {
    let sources = Arc::new(Mutex::new(HashSet::new()));
    let seen = sources.clone();
    let server = Server::start(move |asked| {
        seen.lock().expect("not poisoned").insert(asked.peer.ip());
        Answer::Hold { cut_after: (asked.number < 10).then_some(Duration::from_millis(300)) }
    });
    let mut plan = plan(&server.url(), Load::Quiet, 1500);
    plan.phases[0].idle = Some(Idle { count: 120, rate: 400.0, reopen: false });
    plan.client.sources = (2..6).map(|n| std::net::IpAddr::from([127, 0, 0, n])).collect();
    plan.client.connections = 1;
    let result = run(plan);
    let idle = result.phases[0].idle.clone().expect("held");
    assert_eq!((idle.planned, idle.open, idle.lost, idle.failed), (120, 110, 10, 0), "{:?}", idle.errors);
    assert_eq!((idle.connect.count(), sources.lock().expect("not poisoned").len()), (120, 4));
    assert!((200.0..=410.0).contains(&idle.connects_per_s), "{}", idle.connects_per_s);
}

#[test]
fn cut_idle_tunnels_are_opened_again_where_that_is_wanted() {
    let server = Server::start(|asked| Answer::Hold {
        cut_after: (asked.number < 10).then_some(Duration::from_millis(200)),
    });
    let mut plan = plan(&server.url(), Load::Quiet, 2500);
    plan.phases[0].idle = Some(Idle { count: 40, rate: 400.0, reopen: true });
    plan.client.connections = 1;
    let idle = run(plan).phases[0].idle.clone().expect("held");
    assert_eq!((idle.planned, idle.lost, idle.reopened, idle.open, idle.failed), (40, 10, 10, 40, 0));
}

/// A proxy that answers every handshake with 200 holds nothing, and that is the run's failure as any other.
#[test]
fn idle_tunnels_that_do_not_open_are_errors_of_the_run() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /ws" => ok(),
        _ => Answer::Say(200, "x".into()),
    });
    let held = |script: Server| {
        let mut plan = plan(&script.url(), Load::Hold { rate: 50.0 }, 1500);
        plan.phases[0].idle = Some(Idle { count: 50, rate: 200.0, reopen: false });
        run(plan)
    };
    let mut refused = held(server);
    let idle = refused.phases[0].idle.clone().expect("asked for");
    assert_eq!((idle.open, idle.failed, idle.unfinished), (0, 50, 0), "{:?}", idle.errors);
    let thresholds: Thresholds =
        "err<39%,err>41%,failed<50,failed<51,idle.failed<50,idle.failed<51,sent<126,idle.cut<1"
            .parse()
            .expect("good");
    assertion::check(&mut refused, &thresholds.0);
    let holds: Vec<_> = refused.assertions.iter().map(|assertion| assertion.holds).collect();
    // 75 requests are good, 50 tunnels are not: 40 %.
    assert_eq!(holds, [false, false, false, true, false, true, true, true], "{:?}", refused.assertions);
    let (html, markdown) = (report::html(&refused), report::markdown(&refused));
    assert!(!html.contains("Every request ended as it should"));
    assert!(html.contains("idle WebSocket: HTTP 200") && html.contains("40.0%"));
    assert!(markdown.contains("❌ Idle WebSockets: 0 of 50 open at the end, 50 failed"), "{markdown}");
    assert!(markdown.contains("| idle WebSocket: HTTP 200 | answer | 50 |"), "{markdown}");

    // Neither does silence pass for a tunnel.
    let silent = held(Server::start(|asked| match asked.line.as_str() {
        "GET /ws" => Answer::Raw(Vec::new()),
        _ => ok(),
    }));
    let idle = silent.phases[0].idle.clone().expect("asked for");
    assert_eq!((idle.open, idle.failed, idle.unfinished), (0, 0, 50));
    assert!(!report::html(&silent).contains("Every request ended as it should"));

    let good = held(Server::start(|asked| match asked.line.as_str() {
        "GET /ws" => Answer::Hold { cut_after: None },
        _ => ok(),
    }));
    assert!(
        report::html(&good)
            .contains("Every request ended as it should, and every idle WebSocket stayed open.")
    );
    assert!(report::markdown(&good).contains("Idle WebSockets: 50 of 50 open at the end, 0 failed"));
}
