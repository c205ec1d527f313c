//! Requests that two readers could read in two ways end at the gate.

use crate::harness::{Api, Gate, HOST, Runner, Wire, find};
use std::io::Write;
use std::net::{TcpListener, TcpStream};

const H: &str = "Host: 3000-sb1.preview.test\r\n";

fn corpus() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut post = |fields: &str, body: &str| {
        all.push(format!("POST /x HTTP/1.1\r\n{H}{fields}\r\n{body}").into_bytes());
    };
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 5,6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5a\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 1_0\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length : 5\r\n",
        "Content-Length\t: 5\r\n",
        " Content-Length: 5\r\n",
        "X-A: b\r\n Content-Length: 5\r\n",
        "X-A: b\r\n\tContent-Length: 5\r\n",
        "X-A: b\nContent-Length: 5\r\n",
        "X-A: b\rContent-Length: 5\r\n",
        "X-A: b\0c\r\nContent-Length: 5\r\n",
        "X\0A: b\r\n",
        "Content-Length: 5\0\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: \r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked\x0c\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding: chunked\nX: y\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Host: other.test\r\n",
        "Host: 3000-sb1.preview.test\r\n",
        ": nameless\r\n",
        "no-colon\r\n",
        "X(A): b\r\n",
    ] {
        post(fields, "0\r\n\r\n");
    }
    for chunks in [
        "5\nhello\r\n0\r\n\r\n",
        "5;ext\nhello\r\n0\r\n\r\n",
        "5;a=b\rX\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nno-colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
    ] {
        post("Transfer-Encoding: chunked\r\n", chunks);
    }
    let heads = [
        format!("GET /x HTTP/1.1\n{H}\r\n"),
        format!("GET /x HTTP/1.1\nHost: {HOST}\n\n"),
        format!("GET /x HTTP/1.1\r\nHost: {HOST}\n\r\n"),
        format!("GET  /x HTTP/1.1\r\n{H}\r\n"),
        format!("GET /x  HTTP/1.1\r\n{H}\r\n"),
        format!("GET /x HTTP/1.1 \r\n{H}\r\n"),
        format!("GET\t/x HTTP/1.1\r\n{H}\r\n"),
        format!("GET /x y HTTP/1.1\r\n{H}\r\n"),
        format!("GET /x HTTP/2.0\r\n{H}\r\n"),
        format!("GET /x HTTP/1.2\r\n{H}\r\n"),
        format!("GET /x http/1.1\r\n{H}\r\n"),
        format!("GET /x\r\n{H}\r\n"),
        format!("G@T /x HTTP/1.1\r\n{H}\r\n"),
        format!("GET x HTTP/1.1\r\n{H}\r\n"),
        format!("GET /x\0 HTTP/1.1\r\n{H}\r\n"),
        "GET /x HTTP/1.1\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: \r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
        format!("GET /x HTTP/1.1\r\nHost: {HOST}, other.test\r\n\r\n"),
        format!("GET /x HTTP/1.1\r\nHost: u@{HOST}\r\n\r\n"),
        format!("GET http://other.test/x HTTP/1.1\r\n{H}\r\n"),
        format!("GET ftp://{HOST}/x HTTP/1.1\r\n{H}\r\n"),
        format!("POST /x HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!(
            "GET /x HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello"
        ),
        format!("GET /x HTTP/1.1\r\n X: folded first\r\n{H}\r\n"),
        format!("GET /x HTTP/1.1\rHost: {HOST}\r\r"),
    ];
    all.extend(heads.into_iter().map(String::into_bytes));
    all
}

/// How many whole requests a strict reader finds in a connection's bytes.
fn whole_requests(bytes: &[u8]) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(addr).expect("it listens");
        // A reader that refuses closes early.
        let _ = stream.write_all(&bytes);
    });
    let mut wire = Wire::new(listener.accept().expect("the writer connects").0);
    let mut count = 0;
    while let Ok(Some(_)) = wire.message() {
        count += 1;
    }
    drop(wire);
    writer.join().expect("it only writes");
    count
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_answered_once_and_reaches_no_runner_as_a_second_request() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_HEAD_TIMEOUT_MS", "2000")]);
    let corpus = corpus();
    assert!(corpus.len() >= 60, "{}", corpus.len());
    let mut good = 0;
    let mut wrong = Vec::new();
    for (number, case) in corpus.iter().enumerate() {
        let name = String::from_utf8_lossy(case).escape_debug().to_string();
        let mut wire = gate.connect();
        let mut sent = case.clone();
        sent.extend_from_slice(format!("GET /smuggled HTTP/1.1\r\n{H}\r\n").as_bytes());
        wire.send(&sent).expect("the gate reads it");
        match wire.message() {
            Ok(Some(answer)) => {
                if !(400..600).contains(&answer.status()) {
                    wrong.push(format!("{name}: {} {}", answer.first, answer.text()));
                    good += usize::from(answer.status() < 300);
                } else if !wire.is_over() {
                    wrong.push(format!("{name}: goes on behind {}", answer.first));
                }
            }
            other => wrong.push(format!("{name}: {other:?}")),
        }
        let path = format!("/good-{number}");
        let answer = gate.get(&path).expect("a good request is answered");
        good += usize::from(answer.status() == 200);
        if !answer.text().ends_with(&path) {
            wrong.push(format!("behind {name}, {path} was answered {}", answer.text()));
        }
    }
    let received = runner.received();
    if received.iter().any(|bytes| find(bytes, b"/smuggled").is_some()) {
        wrong.push("a runner saw /smuggled".into());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(received.iter().map(|bytes| whole_requests(bytes)).sum::<usize>(), good);
}
