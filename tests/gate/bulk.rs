//! Large bodies of a known length: what the gate spares itself by letting them gather must not be felt by whoever waits
//! for a byte, nor by what comes after them on the same connections.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, ok};
use crate::traffic::pattern;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

const RUSH: usize = 300 * 1024;
const DRIPS: usize = 50;
const LENGTH: usize = 2 * (RUSH + DRIPS) + 2 * RUSH;

/// A rush and single bytes, twice, and at last a rush that is still being gathered when the body ends.
fn pieces() -> impl Iterator<Item = usize> {
    let once = || std::iter::once(RUSH).chain(std::iter::repeat_n(1, DRIPS));
    once().chain(once()).chain([RUSH, RUSH])
}

/// Each piece only when the one before it has arrived.
fn drip(wire: &mut Wire, arrived: &Receiver<()>) {
    let body = pattern(7, LENGTH);
    let mut at = 0;
    for piece in pieces() {
        wire.send(&body[at..at + piece]).expect("the gate reads");
        at += piece;
        arrived.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{piece} bytes up to {at} are held back"));
    }
}

fn catch(wire: &mut Wire, arrived: &Sender<()>) {
    let body = pattern(7, LENGTH);
    let mut at = 0;
    for piece in pieces() {
        let came = wire.exactly(piece).unwrap_or_else(|error| panic!("{piece} bytes from {at}: {error}"));
        assert!(came == body[at..at + piece], "other bytes from {at}");
        at += piece;
        // The other side fails by itself when it is gone.
        let _ = arrived.send(());
    }
}

/// Answers `/down` with, and takes from `/up`, a body in pieces. All else is told the number of its connection.
fn runner(arrived_down: Receiver<()>, arrived_up: Sender<()>) -> Runner {
    let arrived_down = Mutex::new(arrived_down);
    Runner::start(move |mut wire, number| {
        while let Ok(Some(head)) = wire.head() {
            if head.target().ends_with("/down") {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"))
                    .expect("the gate reads");
                drip(&mut wire, &arrived_down.lock().expect("no thread panics with it"));
            } else {
                if head.target().ends_with("/up") {
                    catch(&mut wire, &arrived_up);
                }
                wire.send(ok(&number.to_string())).expect("the gate reads");
            }
        }
    })
}

#[test]
fn a_byte_behind_a_rush_arrives_though_nothing_follows_and_so_does_a_small_answer_after_it() {
    let (tell_down, arrived_down) = channel();
    let runner = runner(arrived_down, channel().0);
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    for _ in 0..3 {
        wire.send(format!("GET /down HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
        assert_eq!(wire.head().expect("an answer").expect("an answer").status(), 200);
        catch(&mut wire, &tell_down);
        assert_eq!(wire.get("/small").expect("an answer").text(), "0", "by the connection the body came on");
    }
    gate.check(&runner);
}

#[test]
fn a_byte_behind_a_rush_is_sent_on_though_nothing_follows_and_so_is_a_small_request_after_it() {
    let (tell_up, arrived_up) = channel();
    let runner = runner(channel().1, tell_up);
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    for _ in 0..3 {
        wire.send(format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LENGTH}\r\n\r\n"))
            .expect("the gate reads");
        drip(&mut wire, &arrived_up);
        assert_eq!(wire.expect_message().expect("an answer").text(), "0");
        assert_eq!(wire.get("/small").expect("an answer").text(), "0");
    }
    gate.check(&runner);
}

/// Answers around what the first read of one takes, of each framing, whole to the byte.
#[test]
fn answers_of_every_length_around_the_first_read_and_the_first_splice_are_whole() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(head)) = wire.message() {
            let target = head.target().to_owned();
            let mut words = target.rsplit('/');
            let length: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let body = pattern(length as u64, length);
            let sent = match words.next() {
                Some("chunked") => {
                    let line = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
                    wire.send([line.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat())
                }
                Some("closed") => {
                    let _ = wire.send([b"HTTP/1.1 200 OK\r\n\r\n", &body[..]].concat());
                    return;
                }
                _ => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    wire.send([head.as_bytes(), &body].concat())
                }
            };
            if sent.is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    for around in [4 << 10, 16 << 10, 32 << 10, 36 << 10, 64 << 10] {
        for length in [around - 64, around - 40, around - 1, around, around + 1, around + 4096] {
            for framing in ["length", "chunked", "closed"] {
                let answer = wire.get(&format!("/{framing}/{length}")).expect("an answer");
                assert!(answer.body == pattern(length as u64, length), "{framing} {length}: another body");
            }
        }
    }
    gate.check(&runner);
}

/// Splice stops before urgent data for ever, though the socket is readable: who waits for it so would spin.
#[test]
fn a_body_with_urgent_data_in_it_arrives_without_that_byte() {
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let body = wire.body(&head).expect("all of it");
        assert!(body.iter().all(|byte| *byte == b'x'), "an urgent byte is no part of the body");
        wire.send(ok(&body.len().to_string())).expect("the gate reads");
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    wire.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n"))
        .expect("the gate reads");
    wire.send([b'x'; 60_000]).expect("the gate reads");
    // Only one: where a second comes, the first becomes part of the stream.
    rustix::net::send(&wire.stream, b"!", rustix::net::SendFlags::OOB).expect("sent");
    wire.send([b'x'; 40_000]).expect("the gate reads");
    wire.end_writing();
    assert_eq!(wire.expect_message().expect("an answer").text(), "100000");
    gate.check(&runner);
}
