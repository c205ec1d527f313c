//! Answers cut short, answers with too much behind them, answers that never come, and bodies to the byte.

use crate::harness::{Api, Gate, HOST, Runner, ok};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[test]
fn a_truncated_answer_is_never_passed_as_a_complete_one() {
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(request)) = wire.message() else { return };
        let kind = request.target().rsplit('/').next().unwrap_or_default().to_owned();
        let answer: &[u8] = match kind.as_str() {
            "short" | "short-rst" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            "chunked" | "chunked-rst" => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            }
            "in-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
            "no-last-crlf" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "close-rst" => b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
            _ => b"HTTP/1.1 200 OK\r\nContent-Le",
        };
        wire.send(answer).expect("the gate reads");
        if kind.ends_with("-rst") {
            wire.reset();
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for kind in
        ["short", "short-rst", "chunked", "chunked-rst", "in-chunk", "no-last-crlf", "close-rst", "head"]
    {
        match gate.get(&format!("/{kind}")) {
            Ok(answer) => assert_eq!(answer.status(), 502, "{kind}: {answer:?}"),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                ),
                "{kind}: {error}"
            ),
        }
    }
    gate.check(&runner);
}

#[test]
fn bytes_behind_an_answer_reach_no_other_client() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let mut answer = ok(request.target());
            if request.target().ends_with("/odd") {
                answer.extend_from_slice(&ok("stolen"));
            }
            if wire.send(answer).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for round in 0..20 {
        let odd = gate.get("/odd").expect("an answer");
        assert!(odd.text().ends_with("/odd"), "{odd:?}");
        let path = format!("/next-{round}");
        let next = gate.get(&path).expect("an answer");
        assert!(next.text().ends_with(&path), "{next:?}");
    }
    // None of the connections with an oddity was used again.
    assert!(runner.received().len() > 20, "{}", runner.received().len());
    gate.check(&runner);
}

#[test]
fn a_get_survives_a_stale_connection_and_a_post_is_never_executed_twice() {
    let executed: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = executed.clone();
    let runner = Runner::start(move |mut wire, _| {
        let mut first = true;
        while let Ok(Some(request)) = wire.message() {
            seen.lock().expect("no thread panics with it").push(request.text());
            // The second request of every connection finds nobody.
            if !first || request.target().ends_with("/never") {
                return;
            }
            first = false;
            if wire.send(ok("fine")).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let post = |path: &str, id: &str| {
        let mut wire = gate.connect();
        let length = id.len();
        wire.send(format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{id}"))
            .expect("the gate reads");
        wire.expect_message().expect("an answer")
    };
    let mut lost = 0;
    for round in 0..20 {
        assert_eq!(gate.get("/get").expect("an answer").status(), 200);
        let answer = post("/post", &format!("id-{round}"));
        if answer.status() != 200 {
            assert_eq!(answer.status(), 502, "{answer:?}");
            assert!(answer.has_code("UPSTREAM_CLOSED"), "{answer:?}");
            lost += 1;
        }
        let answer = post("/never", &format!("never-{round}"));
        assert_eq!(answer.status(), 502, "{answer:?}");
        assert!(answer.has_code("UPSTREAM_CLOSED"), "{answer:?}");
    }
    assert!(lost > 0, "no request ever met a stale connection");
    let executed = executed.lock().expect("no thread panics with it");
    let mut ids: Vec<_> = executed.iter().filter(|id| !id.is_empty()).collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "executed twice");
    gate.check(&runner);
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_uploading() {
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(_)) = wire.head() else { return };
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .expect("the gate reads");
        while wire.fill().is_ok_and(|n| n > 0) {
            wire.take_ahead();
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    let total = 50 << 20;
    wire.send(format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {total}\r\n\r\n"))
        .expect("the gate reads");
    let mut up = crate::harness::Wire::new(wire.stream.try_clone().expect("a descriptor"));
    let upload = std::thread::spawn(move || {
        let block = vec![b'x'; 1 << 20];
        // The gate may end it.
        (0..50).all(|_| up.send(&block).is_ok())
    });
    let answer = wire.expect_message().expect("the early answer");
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
    drop(wire);
    upload.join().expect("it only writes");
    gate.check(&runner);
}

/// A client that does not read while it sends gets the answer all the same, and a clean end behind it: its upload is
/// read away, where closing at once would reset the connection and take the answer with it.
#[test]
fn an_early_answer_reaches_a_client_that_reads_only_when_it_has_sent_everything() {
    const LENGTH: usize = 24 << 20;
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(head)) = wire.head() else { return };
        let closes = head.target().ends_with("/closes");
        let connection = if closes { "Connection: close\r\n" } else { "" };
        wire.send(format!("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n{connection}\r\nbig"))
            .expect("the gate reads");
        if !closes {
            // Neither reads on nor closes.
            wire.stream.set_read_timeout(None).expect("no timeout");
            let gone = wire.stream.try_clone().expect("a descriptor");
            while gone.peek(&mut [0; 1]).is_ok_and(|n| n > 0) && !wire.is_cut() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_LINGER_MS", "1500")]);
    let closed = HOST.replace("3000", "2280");
    for (host, path, status) in [(HOST, "/closes", 413), (HOST, "/stays", 413), (&closed, "/x", 401)] {
        for chunked in [false, true] {
            let mut wire = gate.connect();
            let framing = if chunked {
                "Transfer-Encoding: chunked".into()
            } else {
                format!("Content-Length: {LENGTH}")
            };
            wire.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n"))
                .expect("the gate reads");
            let block = vec![b'x'; 1 << 20];
            for _ in 0..LENGTH >> 20 {
                let piece = if chunked {
                    [b"100000\r\n".as_slice(), &block, b"\r\n"].concat()
                } else {
                    block.clone()
                };
                wire.send(piece).unwrap_or_else(|error| panic!("{path}: the upload was cut off: {error}"));
            }
            let answer = wire.expect_message().expect("the early answer");
            assert_eq!(answer.status(), status, "{path}: {answer:?}");
            assert_eq!(wire.rest().expect("an end without a reset"), b"", "{path}");
        }
    }
    gate.await_metric("http_server_active_requests", 0);
    gate.check(&runner);
}

#[test]
fn a_target_reaches_the_app_as_it_was_sent_whatever_is_seen_of_ascii() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let path = r#"/a"b<c>d{e}|^`[]'%zz;=,"#;
    for target in [path.to_owned(), format!(r#"{path}?q="<>\&p={{}}|^`"#), r"/?\..\..\".to_owned()] {
        let answer = gate.get(&target).expect("an answer");
        assert_eq!(answer.status(), 200, "{target}: {answer:?}");
        assert!(answer.text().ends_with(&target), "{target}: {answer:?}");
    }
    // What some take for a separator does not get to a hop that might.
    for target in [r"/a\b", r"/..\..\x", r"/a\..\..\b?c"] {
        let answer = gate.get(target).expect("an answer");
        assert!(answer.status() == 400 && answer.has_code("BAD_REQUEST"), "{target}: {answer:?}");
    }
    gate.check(&runner);
}

/// Whatever the runner does with its own connection: what the client sends next might be the body, or might not.
#[test]
fn an_early_answer_says_that_it_is_the_last_of_its_connection() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(head)) = wire.head() {
            let closes = head.target().ends_with("/closes");
            let connection = if closes { "Connection: close\r\n" } else { "" };
            let answer =
                format!("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n{connection}\r\nbig");
            if wire.send(answer).is_err() || closes || wire.body(&head).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for path in ["/closes", "/stays"] {
        for fields in
            ["Content-Length: 5\r\nExpect: 100-continue", "Content-Length: 5", "Transfer-Encoding: chunked"]
        {
            let mut wire = gate.connect();
            wire.send(format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n"))
                .expect("the gate reads");
            let answer = wire.expect_message().expect("the early answer");
            assert_eq!(answer.status(), 413, "{path}, {fields}: {answer:?}");
            assert_eq!(answer.field("Connection"), Some("close"), "{path}, {fields}");
            let begun = std::time::Instant::now();
            assert_eq!(wire.rest().expect("an end without a reset"), b"", "{path}, {fields}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{path}, {fields}: it hangs");
        }
    }
    // An answer to all of it is nobody's last.
    let mut wire = gate.connect();
    for _ in 0..2 {
        wire.send(format!("POST /stays HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello"))
            .expect("the gate reads");
        let answer = wire.expect_message().expect("an answer");
        assert!(answer.status() == 413 && answer.field("Connection").is_none(), "{answer:?}");
    }
    gate.check(&runner);
}

/// What the gate answers by itself without reading the body, as above.
#[test]
fn an_answer_of_the_gates_own_reaches_a_client_that_reads_only_when_it_has_sent_everything() {
    const LENGTH: usize = 3_000_000;
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("PREVIEW_WARNING_ENABLED", "true")]);
    for (start, host, fields, status) in [
        ("POST /accept-daytona-preview-warning?redirect=/x", HOST, "Sec-Fetch-Site: same-origin", 303),
        ("OPTIONS /x", HOST, "Origin: http://a.test\r\nAccess-Control-Request-Method: POST", 204),
        ("GET /health", "preview.test", "X-A: b", 200),
    ] {
        for chunked in [false, true] {
            let mut wire = gate.connect();
            let framing = if chunked {
                "Transfer-Encoding: chunked".into()
            } else {
                format!("Content-Length: {LENGTH}")
            };
            wire.send(format!("{start} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n{framing}\r\n\r\n"))
                .expect("the gate reads");
            let block = vec![b'x'; 100_000];
            for _ in 0..LENGTH / block.len() {
                let piece =
                    if chunked { [b"186a0\r\n".as_slice(), &block, b"\r\n"].concat() } else { block.clone() };
                wire.send(piece).unwrap_or_else(|error| panic!("{start}: the upload was cut off: {error}"));
            }
            wire.end_writing();
            let answer = wire.expect_message().expect("the answer");
            assert_eq!(answer.status(), status, "{start}: {answer:?}");
            assert_eq!(answer.field("Connection"), Some("close"), "{start}");
            assert_eq!(wire.rest().expect("an end without a reset"), b"", "{start}");
        }
    }
    assert!(runner.received().is_empty());
}

#[test]
fn a_chunked_upload_arrives_to_the_byte() {
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let seen = got.clone();
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            *seen.lock().expect("no thread panics with it") = request.body;
            if wire.send(ok("done")).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut wire = gate.connect();
    wire.send(format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"))
        .expect("the gate reads");
    let (mut at, mut size) = (0, 1);
    while at < body.len() {
        let end = (at + size).min(body.len());
        let mut chunk = format!("{:x};ext=\"v\"\r\n", end - at).into_bytes();
        chunk.extend_from_slice(&body[at..end]);
        chunk.extend_from_slice(b"\r\n");
        wire.send(chunk).expect("the gate reads");
        (at, size) = (end, size * 3 % 70_001 + 1);
    }
    wire.send("0\r\n\r\n").expect("the gate reads");
    assert_eq!(wire.expect_message().expect("an answer").text(), "done");
    assert!(*got.lock().expect("no thread panics with it") == body, "the runner got other bytes");
    // The connection stands where the body ended.
    assert_eq!(wire.get("/again").expect("an answer").text(), "done");
    gate.check(&runner);
}

#[test]
fn a_large_download_arrives_to_the_byte_in_bounded_memory() {
    const BLOCK: usize = 1 << 20;
    const BLOCKS: usize = 200;
    let block = |n: usize| -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        for (at, word) in block.chunks_exact_mut(8).enumerate() {
            let value = ((n * BLOCK + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        block
    };
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            if !request.target().ends_with("/big") {
                wire.send(ok("small")).expect("the gate reads");
                continue;
            }
            let length = BLOCK * BLOCKS;
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))
                .expect("the gate reads");
            for n in 0..BLOCKS {
                wire.send(block(n)).expect("the gate reads");
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let mut wire = gate.connect();
    wire.get("/small").expect("an answer");
    let before = gate.resident();
    wire.send(format!("GET /big HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
    wire.head().expect("an answer").expect("an answer");
    let (mut got, mut sent) = (Sha256::new(), Sha256::new());
    let highest = AtomicUsize::new(0);
    for n in 0..BLOCKS {
        got.update(wire.exactly(BLOCK).expect("the whole body"));
        sent.update(block(n));
        highest.fetch_max(gate.resident() as usize, SeqCst);
    }
    assert_eq!(got.finalize(), sent.finalize());
    let grown = (highest.load(SeqCst) as u64).saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
    assert_eq!(wire.get("/small").expect("an answer").text(), "small");
    gate.check(&runner);
}

#[test]
fn a_person_gets_a_page_and_a_program_json_about_the_same_trouble() {
    let runner = Runner::start(|mut wire, _| drop(wire.message()));
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    let ask = |fields: &str| {
        let mut wire = gate.connect();
        wire.send(format!("GET /%3Cscript%3E HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).expect("sent");
        wire.expect_message().expect("an answer")
    };
    let page = ask("Accept: text/html\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n");
    assert_eq!((page.status(), page.field("Content-Type")), (502, Some("text/html; charset=utf-8")));
    assert_eq!(page.field("X-Preview-Error-Code"), Some("UPSTREAM_CLOSED"));
    let policy = page.field("Content-Security-Policy").unwrap_or_default();
    assert!(
        policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert!(page.text().contains("<title>502 UPSTREAM_CLOSED</title>"), "{page:?}");
    assert!(!page.text().contains("script"), "nothing of the request is in it: {page:?}");
    let data = ask("Accept: text/html\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
    assert_eq!((data.status(), data.field("Content-Type")), (502, Some("application/json")));
    assert!(data.has_code("UPSTREAM_CLOSED"), "{data:?}");
}

/// To HTTP/1.0 the end of a body of unknown length is the end of the connection, so only a reset can say "cut short".
#[test]
fn an_http_1_0_client_sees_a_cut_answer_as_a_reset_and_a_whole_one_as_an_end() {
    let runner = Runner::start(|mut wire, _| {
        let Ok(Some(request)) = wire.message() else { return };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        match request.target().rsplit('/').next().unwrap_or_default() {
            "whole" => wire.send(format!("{chunked}0\r\nX-Sum: 1\r\n\r\n")),
            "open" => wire.send("HTTP/1.1 200 OK\r\n\r\nhello"),
            "cut" => wire.send(chunked),
            _ => {
                wire.send("HTTP/1.1 200 OK\r\n\r\nhello").expect("the gate reads");
                // The client has them: what comes now comes behind.
                std::thread::sleep(std::time::Duration::from_millis(300));
                wire.reset();
                return;
            }
        }
        .expect("the gate reads");
    });
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    for (path, whole) in [("/whole", true), ("/open", true), ("/cut", false), ("/open-reset", false)] {
        let mut wire = gate.connect();
        wire.send(format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).expect("the gate reads");
        let head = wire.head().expect("an answer").expect("an answer");
        assert_eq!((head.status(), head.field("Transfer-Encoding")), (200, None), "{path}");
        match wire.rest() {
            Ok(body) => assert!(whole && body == b"hello", "{path}: {body:?} looks whole"),
            Err(error) => {
                assert!(!whole && error.kind() == std::io::ErrorKind::ConnectionReset, "{path}: {error}")
            }
        }
    }
    gate.check(&runner);
}

#[test]
fn the_line_of_a_failed_request_says_where_its_time_went() {
    let runner = Runner::start(|mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let cut = request.target().ends_with("/cut");
            let sent =
                if cut { wire.send("HTTP/1.1 500 Odd\r\nContent-Length: 9\r\n\r\nfive") } else { Ok(()) };
            if cut || sent.is_err() {
                return;
            }
        }
    });
    // The default of SANDGATE_ACCESS_LOG: errors.
    let gate = Gate::start(&Api::start(runner.addr), &[]);
    assert!(gate.get("/cut").is_err());
    let begun = std::time::Instant::now();
    let line = loop {
        let log = gate.access_log.lock().expect("no thread panics with it").clone();
        if let Some(line) = log.lines().next() {
            break serde_json::from_str::<serde_json::Value>(line).expect("a line is JSON");
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "no line");
        std::thread::yield_now();
    };
    for stage in ["t_auth_ms", "t_total_ms"] {
        assert!(line[stage].is_number(), "{stage}: {line}");
    }
}
