//! A WebSocket whose right has gone, or whose gate goes, is told why; and no frame of the app's is ever broken for that.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, sample_of};
use crate::revocation::{link, session};
use crate::shared::redis_server::cli;
use crate::shared::{PUBLIC_KEY, World};
use crate::tunnels::{ACCEPT, switching, upgrade};
use rustix::process::Signal;
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Error, Message, WebSocket};

const PRIVATE: &str = "the sandbox is not public any more";

/// A runner of which each connection is an echo, by an implementation that is not ours.
fn echo() -> Runner {
    Runner::start(|wire, _| {
        let Ok(mut socket) = tungstenite::accept(wire.stream) else { return };
        while let Ok(message) = socket.read() {
            if message.is_text() && socket.send(message).is_err() {
                return;
            }
        }
    })
}

/// A client that is not ours either, which has heard its echo.
fn client(gate: &Gate, host: &str, token: Option<&str>) -> WebSocket<TcpStream> {
    client_that_shows(
        gate,
        host,
        &token.map_or_else(String::new, |t| format!("X-Daytona-Preview-Token: {t}\r\n")),
    )
}

fn client_that_shows(gate: &Gate, host: &str, fields: &str) -> WebSocket<TcpStream> {
    let mut request = format!("ws://{host}/ws").into_client_request().expect("a URL");
    for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
        let name = tungstenite::http::HeaderName::from_bytes(name.as_bytes()).expect("a field name");
        request.headers_mut().insert(name, value.parse().expect("a field value"));
    }
    let stream = gate.connect().stream;
    let (mut socket, _) = tungstenite::client(request, stream).expect("it is let in");
    socket.send(Message::text("hello")).expect("the gate reads");
    assert_eq!(socket.read().expect("an echo"), Message::text("hello"));
    socket
}

/// It hears this, answers, and sees a clean end.
fn is_told(mut socket: WebSocket<TcpStream>, code: u16, reason: &str) {
    match socket.read() {
        Ok(Message::Close(Some(frame))) => {
            assert_eq!((u16::from(frame.code), frame.reason.as_str()), (code, reason));
        }
        other => panic!("{code} {reason}: {other:?}"),
    }
    let end = socket.read();
    assert!(matches!(end, Err(Error::ConnectionClosed)), "{code} {reason}: {end:?}");
}

fn event(state: &str) -> String {
    format!(r#"{{"sandbox":{{"id":"sb1"}},"oldState":"x","newState":"{state}"}}"#)
}

fn make_private(world: &World) {
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["del", PUBLIC_KEY]);
}

#[test]
fn who_is_not_let_in_any_more_is_told_so() {
    let world = World::before(echo(), &[]);
    let by_flag = client(&world.gate, HOST, None);
    make_private(&world);
    is_told(by_flag, 4001, PRIVATE);

    let world = World::before(echo(), &[]);
    // A reserved port: the public flag opens nothing there.
    let host = HOST.replace("3000-", "22222-");
    let by_token = client(&world.gate, &host, Some("abcdefghijklmnopqrstuvwxyz012345"));
    world.api.script.status.store(404, SeqCst);
    cli(world.redis.port, &["publish", "sandbox.event.channel", &event("started")]);
    is_told(by_token, 4001, "the token is not valid any more");
}

#[test]
fn who_came_by_a_link_or_a_session_is_told_when_that_is_over() {
    const LINK: &str = "a1b2c3d4e5f6g7h8";
    let world = World::before(echo(), &[("SANDGATE_SIGNED_TTL_SEC", "60")]);
    let key = link(&world, LINK, "60000");
    let by_link = client(&world.gate, &HOST.replace("sb1", LINK), None);
    // The public flag opens nothing there, and the session's hour has a second or two to go.
    let host = HOST.replace("3000-", "22222-");
    let by_session = client_that_shows(&world.gate, &host, &session(&host, 3598));
    world.api.script.reply(&format!("/api/preview/{LINK}/3000/sandbox-id"), 403, "{}");
    cli(world.redis.port, &["del", &key]);
    is_told(by_link, 4001, "the signed link is not valid any more");
    is_told(by_session, 4001, "the session is over");
}

#[test]
fn who_goes_on_sending_is_told_all_the_same() {
    let (runner, _go) = runner_that_says(Vec::new(), Vec::new());
    let world = World::before(runner, &[]);
    let mut wire = tunnel(&world.gate);
    let (told, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let sending = std::thread::spawn({
        let (mut wire, told, sent) = (wire.again(), Arc::clone(&told), Arc::clone(&sent));
        // Masked, as a client's are. Paced, for only so much of it is waited for.
        let frame = [&[0x82, 0xbf, 1, 2, 3, 4][..], &[7; 63]].concat();
        move || {
            while !told.load(SeqCst) {
                wire.send(&frame).expect("there is no reset while it is told");
                sent.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    });
    let sends_on = || {
        let before = sent.load(SeqCst);
        while sent.load(SeqCst) < before + 10 {
            assert!(!sending.is_finished(), "it could not send");
            std::thread::yield_now();
        }
    };
    sends_on();
    make_private(&world);
    let close = close(4001, PRIVATE);
    assert_eq!(wire.exactly(close.len()).expect("all of it"), close);
    // What it sends finds nobody by now.
    sends_on();
    told.store(true, SeqCst);
    sending.join().expect("no panic");
    wire.end_writing();
    assert_eq!(wire.rest().expect("an end without a reset"), b"");
}

#[test]
fn whose_sandbox_goes_is_told_how() {
    let world = World::before(echo(), &[]);
    let states = ["stopped", "archived", "destroyed"];
    for state in states {
        let socket = client(&world.gate, HOST, None);
        cli(world.redis.port, &["publish", "sandbox.event.channel", &event(state)]);
        is_told(socket, 1001, &format!("the sandbox was {state}"));
    }
    let page = world.metrics();
    for state in states {
        assert_eq!(sample_of(&page, &format!("preview_revoked_total{{reason=\"{state}\"}}")), 1);
    }
}

#[test]
fn a_gate_whose_time_to_drain_is_over_says_goodbye() {
    let runner = echo();
    let settings = [("SHUTDOWN_TIMEOUT_SEC", "1"), ("SANDGATE_SHARDS", "1")];
    let mut gate = Gate::start(&Api::start(runner.addr), &settings);
    // So many on one shard that the set waits for them.
    let mut sockets: Vec<_> = (0..150).map(|_| client(&gate, HOST, None)).collect();
    for round in 0..20 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(format!("{number} {round}"))).expect("the gate reads");
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.read().expect("an echo"), Message::text(format!("{number} {round}")));
        }
    }
    gate.signal(Signal::TERM);
    for socket in sockets {
        is_told(socket, 1001, "the gateway is shutting down");
    }
    assert_eq!(gate.exit_code(), Some(0));
}

/// A server's frame: FIN, reserved bits and opcode in the first byte.
fn frame(first: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![first];
    match length {
        0..=125 => frame.push(length as u8),
        126..=65_535 => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    // Every byte could be a header's.
    frame.extend((0..length).map(|at| (at * 31 + length) as u8));
    frame
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    let mut close = vec![0x88, 2 + reason.len() as u8];
    close.extend(code.to_be_bytes());
    close.extend(reason.as_bytes());
    close
}

/// Says `first` at once, then `behind` when the way from the client has ended; then it stays.
fn runner_that_says(first: Vec<u8>, behind: Vec<u8>) -> (Runner, mpsc::Sender<()>) {
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let runner = Runner::start(move |mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send([switching(ACCEPT).as_bytes(), &first].concat()).expect("the gate reads");
        let _ = wire.rest();
        // The gate may have ended both ways.
        let _ = wire.send(&behind);
        let _ = may_go.lock().expect("one connection").recv_timeout(DEADLINE);
    });
    (runner, go)
}

fn tunnel(gate: &Gate) -> Wire {
    let mut wire = gate.connect();
    wire.send(upgrade("/ws")).expect("the gate reads");
    assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 101);
    wire
}

/// What the client gets in all when the right ends behind `first`.
fn heard(first: &[u8], behind: &[u8]) -> Vec<u8> {
    let (runner, _go) = runner_that_says(first.to_vec(), behind.to_vec());
    let world = World::before(runner, &[]);
    let mut wire = tunnel(&world.gate);
    assert!(wire.exactly(first.len()).expect("all of it passes") == first, "other bytes");
    make_private(&world);
    [first.to_vec(), wire.rest().expect("an end without a reset")].concat()
}

#[test]
fn a_frame_under_way_is_finished_and_none_begun() {
    let whole = frame(0x82, 1000);
    for at in [1, 3, 300, 1003] {
        let behind = [&whole[at..], &whole].concat();
        assert!(
            heard(&whole[..at], &behind) == [&whole, close(4001, PRIVATE).as_slice()].concat(),
            "at {at}"
        );
    }
}

#[test]
fn a_frame_that_does_not_end_is_not_broken_into() {
    let whole = frame(0x82, 1000);
    assert_eq!(heard(&whole[..300], b""), whole[..300]);
}

#[test]
fn who_speaks_no_frames_or_has_closed_is_not_spoken_for() {
    let said = [frame(0x81, 5), close(1000, "done")].concat();
    assert_eq!(heard(&said, b""), said);
    assert_eq!(heard(b"\x81\x02hithese are no frames", b""), b"\x81\x02hithese are no frames");
}

#[test]
fn whatever_frames_pass_they_pass_unchanged_and_are_followed() {
    // Compressed; a message in fragments with control frames in between; large and small ones in a row.
    let mut said = vec![frame(0xc1, 100), frame(0x01, 20_000), frame(0x89, 4), frame(0x00, 300 << 10)];
    said.extend([frame(0x8a, 125), frame(0x80, 70_000), frame(0x82, 3 << 20)]);
    said.extend((0..200).map(|at| frame(0x82, 4000 + at)));
    said.extend([frame(0x82, 1 << 20), frame(0x82, 65_535), frame(0x82, 65_536), frame(0x02, 2 << 20)]);
    let said = said.concat();
    let (runner, _go) = runner_that_says(said.clone(), Vec::new());
    let world = World::before(runner, &[]);
    let mut wire = tunnel(&world.gate);
    assert!(wire.exactly(said.len()).expect("all of it passes") == said, "other bytes");
    assert!(sample_of(&world.metrics(), "preview_bytes_total{dir=\"down\",path=\"splice\"}") > 1 << 20);
    make_private(&world);
    assert_eq!(wire.rest().expect("an end without a reset"), close(4001, PRIVATE));
}
