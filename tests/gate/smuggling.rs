//! Messages that two readers could read in two ways end at the gate, in both directions.
//!
//! Four things are held for every case: a strict reader finds in the runners' streams as many requests as the gate let
//! in; what was sent on is canonical; after a refusal nothing further on the connection is interpreted; and the next
//! client gets its own answer. Refusals are held to their reason by the gate's own counters: a case that is refused
//! for another reason than the one it was written for proves nothing.

use crate::harness::{Api, DEADLINE, Gate, HOST, Runner, Wire, find, ok};
use crate::traffic::Dice;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

const H: &str = "Host: 3000-sb1.preview.test\r\n";

/// Bytes and the reason they are refused for.
type Case = (String, &'static str);

fn request(start: &str, fields: &str, body: &str) -> String {
    format!("{start}\r\n{H}{fields}\r\n{body}")
}

fn lengths(all: &mut Vec<Case>) {
    let bad = [
        "+5",
        "-5",
        "+0",
        "-0",
        "0x5",
        "5a",
        "a5",
        "5.0",
        "5,0x",
        "5 5",
        "",
        "1_0",
        "5;",
        "5;q=1",
        "\"5\"",
        "5e0",
        "1e1",
        "NaN",
        "inf",
        "18446744073709551616",
        "99999999999999999999",
        "\u{ff15}",
        "\u{665}",
        "5\u{a0}",
        "(5)",
        "#5",
        "5#",
    ];
    for name in ["Content-Length", "content-length", "CONTENT-LENGTH"] {
        for method in ["POST", "GET", "DELETE"] {
            for value in bad {
                let reason = if value.contains(',') { "length_conflict" } else { "length_syntax" };
                all.push((
                    request(&format!("{method} /x HTTP/1.1"), &format!("{name}: {value}\r\n"), "hello"),
                    reason,
                ));
            }
        }
    }
    for (one, two) in [("5", "5"), ("5", "6"), ("0", "5"), ("5", "0"), ("05", "5"), ("5", "")] {
        for joined in [", ", ",", " , ", "\t,\t"] {
            let fields = format!("Content-Length: {one}{joined}{two}\r\n");
            all.push((request("POST /x HTTP/1.1", &fields, "hello"), "length_conflict"));
        }
        for between in ["", "X-A: b\r\n", "X-A: b\r\nX-B: c\r\n"] {
            let fields = format!("Content-Length: {one}\r\n{between}content-length: {two}\r\n");
            all.push((request("POST /x HTTP/1.1", &fields, "hello"), "length_conflict"));
        }
    }
    for coding in ["chunked", "Chunked", "CHUNKED"] {
        for length in ["0", "5", "6", "100"] {
            for between in ["", "X-A: b\r\n"] {
                let (cl, te) =
                    (format!("Content-Length: {length}\r\n"), format!("Transfer-Encoding: {coding}\r\n"));
                for fields in [format!("{cl}{between}{te}"), format!("{te}{between}{cl}")] {
                    let new = request("POST /x HTTP/1.1", &fields, "0\r\n\r\n");
                    all.push((new, "length_with_transfer_encoding"));
                    let old = request("POST /x HTTP/1.0", &fields, "0\r\n\r\n");
                    all.push((old, "transfer_encoding_on_http10"));
                }
            }
        }
    }
}

fn codings(all: &mut Vec<Case>) {
    let bad = [
        "xchunked",
        "chunkedx",
        "chunke",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        ", chunked",
        "chunked;q=1",
        "chunked;",
        ";chunked",
        "\"chunked\"",
        "'chunked'",
        "",
        "identity",
        "chunked identity",
        "chunked\tx",
        "chunked=1",
        "chun\u{212a}ed",
        "\u{85}chunked",
        "chunked\u{a0}",
        "chunked\u{2028}",
        "[chunked]",
        "deflate",
        "trailers",
        "chunked\u{130}",
    ];
    for name in ["Transfer-Encoding", "transfer-encoding"] {
        for with in ["", "Content-Length: 5\r\n"] {
            for value in bad {
                let fields = format!("{name}: {value}\r\n{with}");
                all.push((
                    request("POST /x HTTP/1.1", &fields, "0\r\n\r\n"),
                    "transfer_encoding_unsupported",
                ));
            }
        }
    }
    for second in ["chunked", "identity", "gzip", ""] {
        let fields = format!("Transfer-Encoding: chunked\r\nX-A: b\r\nTransfer-Encoding: {second}\r\n");
        all.push((request("POST /x HTTP/1.1", &fields, "0\r\n\r\n"), "transfer_encoding_unsupported"));
    }
}

fn spellings(all: &mut Vec<Case>) {
    for (name, value) in [("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("Host", "other.test")] {
        for line in [
            format!("{name} : {value}"),
            format!("{name}\t: {value}"),
            format!(" {name}: {value}"),
            format!("\t{name}: {value}"),
            format!("{name}\0: {value}"),
            format!("{name}\x0b: {value}"),
            format!("\x0c{name}: {value}"),
            format!("{name}\u{a0}: {value}"),
            format!("\u{feff}{name}: {value}"),
            format!("{name};: {value}"),
            format!("\"{name}\": {value}"),
            format!("{name}\r: {value}"),
            format!("\r{name}: {value}"),
            format!("X-A: b\r{name}: {value}"),
            format!("X-A: b\r\n {name}: {value}"),
            format!("X-A: b\r\n\t{name}: {value}"),
            format!("{name}:\r\n {value}"),
            format!("{name}: \x0b{value}"),
            format!("{name}: {value}\x0c"),
            format!("{name}: {value}\0"),
            format!("{name}: {value}\x7f"),
            format!("{name}: \x1b{value}"),
            format!("{name} {value}"),
            format!(": {value}\r\n{name}: {value}"),
        ] {
            all.push((request("POST /x HTTP/1.1", &format!("{line}\r\n"), "0\r\n\r\n"), "syntax"));
        }
        for line in [
            format!("X-A: b\n{name}: {value}"),
            format!("{name}: {value}\nX-A: b"),
            format!("X: a\n\n{name}: {value}"),
        ] {
            all.push((request("POST /x HTTP/1.1", &format!("{line}\r\n"), "0\r\n\r\n"), "bare_lf"));
        }
    }
}

fn chunks(all: &mut Vec<Case>) {
    let syntax = [
        "5\nhello\r\n0\r\n\r\n",
        "5;ext\nhello\r\n0\r\n\r\n",
        "5;a=b\rX\r\nhello\r\n0\r\n\r\n",
        "5;a=\"x\r\n\"\rhello",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\t5\r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "5,5\r\nhello\r\n0\r\n\r\n",
        "\u{ff15}\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello\r\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\n\rX",
        "5\r\nhello\r\n0\r\nno-colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\r\n folded\r\n\r\n",
        "5\r\nhello\r\n0\r\nX : a\r\n\r\n",
        "5\r\nhello\r\n0\r\n: a\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX\0: a\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\rb\r\n\r\n",
        "5\r\nhello\r\n0 \r\n\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
    ];
    let large = [
        "10000000000000000",
        "FFFFFFFFFFFFFFFF",
        "8000000000000000",
        "7fffffffffffffff",
        "00000000000000005",
    ];
    for before in ["", "3\r\nabc\r\n", "1;ok=\"1\"\r\nx\r\n"] {
        let mut push = |body: String, reason| {
            let bytes =
                request("POST /x HTTP/1.1", "Transfer-Encoding: chunked\r\n", &format!("{before}{body}"));
            all.push((bytes, reason));
        };
        syntax.iter().for_each(|body| push((*body).to_owned(), "chunk_syntax"));
        large.iter().for_each(|size| push(format!("{size}\r\nhello\r\n0\r\n\r\n"), "chunk_too_large"));
        push(format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(300)), "chunk_syntax");
        push(format!("0\r\nX: {}\r\n\r\n", "y".repeat(40_000)), "trailer_too_large");
    }
}

fn starts(all: &mut Vec<Case>) {
    for (start, reason) in [
        ("GET  /x HTTP/1.1", "syntax"),
        ("GET /x  HTTP/1.1", "syntax"),
        ("GET /x HTTP/1.1 ", "syntax"),
        ("GET /x HTTP/1.1\t", "syntax"),
        (" GET /x HTTP/1.1", "syntax"),
        ("GET\t/x HTTP/1.1", "syntax"),
        ("GET /x\tHTTP/1.1", "syntax"),
        ("GET /x y HTTP/1.1", "syntax"),
        ("GET /x HTTP /1.1", "syntax"),
        ("GET /x HTTP/2.0", "version"),
        ("GET /x HTTP/1.2", "version"),
        ("GET /x HTTP/0.9", "version"),
        ("GET /x HTTP/11.1", "version"),
        ("GET /x HTTP/1.1x", "syntax"),
        ("GET /x http/1.1", "syntax"),
        ("GET /x HTTPS/1.1", "syntax"),
        ("GET /x", "syntax"),
        ("GET", "syntax"),
        ("G@T /x HTTP/1.1", "syntax"),
        ("G\0T /x HTTP/1.1", "syntax"),
        ("\u{e4} /x HTTP/1.1", "syntax"),
        ("GET /x\0 HTTP/1.1", "syntax"),
        ("GET /x\x7f HTTP/1.1", "syntax"),
        ("GET x HTTP/1.1", "target_syntax"),
        ("GET ?x HTTP/1.1", "target_syntax"),
        ("GET * HTTP/1.1", "target_syntax"),
        ("GET /x#y HTTP/1.1", "target_syntax"),
        ("GET /x?y#z HTTP/1.1", "target_syntax"),
        ("GET /x\\..\\y HTTP/1.1", "target_syntax"),
        ("GET ftp://3000-sb1.preview.test/x HTTP/1.1", "target_syntax"),
        ("GET //3000-sb1.preview.test:80@x HTTP/1.1 HTTP/1.1", "syntax"),
        ("GET http:/3000-sb1.preview.test/x HTTP/1.1", "target_syntax"),
        ("GET http://3000-sb1.preview.test?x HTTP/1.1", "target_syntax"),
        ("CONNECT /x HTTP/1.1", "target_syntax"),
        ("GET http://other.test/x HTTP/1.1", "authority_mismatch"),
        ("GET http://3000-sb1.preview.test:80/x HTTP/1.1", "authority_mismatch"),
        ("GET http://u@3000-sb1.preview.test/x HTTP/1.1", "authority_mismatch"),
        ("GET http://3000-sb1.preview.test@other.test/x HTTP/1.1", "authority_mismatch"),
        ("GET http://3000-sb1.preview.test./x HTTP/1.1", "authority_mismatch"),
        ("GET http://3000-sb1.preview.test%2f@other.test/x HTTP/1.1", "authority_mismatch"),
        ("GET https:///x HTTP/1.1", "authority_mismatch"),
    ] {
        all.push((request(start, "", ""), reason));
    }
    for (bytes, reason) in [
        (format!("GET /x HTTP/1.1\n{H}\r\n"), "bare_lf"),
        (format!("GET /x HTTP/1.1\nHost: {HOST}\n\n"), "bare_lf"),
        (format!("GET /x HTTP/1.1\r\nHost: {HOST}\n\r\n"), "bare_lf"),
        (format!("GET /x HTTP/1.1\r\n{H}\n"), "bare_lf"),
        (format!("\nGET /x HTTP/1.1\r\n{H}\r\n"), "bare_lf"),
        (format!("\r\n\r\nGET /x HTTP/1.1\r\n{H}\r\n"), "syntax"),
        (format!("\r\rGET /x HTTP/1.1\r\n{H}\r\n"), "syntax"),
        (format!("GET /x HTTP/1.1\rHost: {HOST}\r\r"), "syntax"),
        (format!("GET /x HTTP/1.1\r\n X: folded first\r\n{H}\r\n"), "syntax"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(), "syntax"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "version"),
    ] {
        all.push((bytes, reason));
    }
    for (host, reason) in [
        ("", "host_missing"),
        ("Host: \r\n", "host_syntax"),
        ("Host:\t\r\n", "host_syntax"),
        ("Host: a b\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test, other.test\r\n", "host_syntax"),
        ("Host: u@3000-sb1.preview.test\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test/x\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test?x\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test#x\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test:\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test:80:80\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test:+80\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test:65536\r\n", "host_syntax"),
        ("Host: 3000-sb1%2epreview.test\r\n", "host_syntax"),
        ("Host: 3000-sb1;preview.test\r\n", "host_syntax"),
        ("Host: [::1\r\n", "host_syntax"),
        ("Host: [::1%25lo]\r\n", "host_syntax"),
        ("Host: http://3000-sb1.preview.test\r\n", "host_syntax"),
        ("Host: \u{ff13}000-sb1.preview.test\r\n", "host_syntax"),
        ("Host: 3000-sb1.preview.test\r\nHost: 3000-sb1.preview.test\r\n", "host_double"),
        ("Host: 3000-sb1.preview.test\r\nhost: other.test\r\n", "host_double"),
        ("Host: other.test\r\nX-A: b\r\nHOST: 3000-sb1.preview.test\r\n", "host_double"),
        ("Host: 3000-sb1.preview.test\r\nHost:\r\n", "host_double"),
    ] {
        for start in ["GET /x HTTP/1.1", "GET http://3000-sb1.preview.test/x HTTP/1.1", "GET /x HTTP/1.0"] {
            all.push((format!("{start}\r\n{host}\r\n"), reason));
        }
    }
    for body in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        for upgrade in ["websocket", "WebSocket", "h2c, websocket"] {
            let fields = format!("Connection: Upgrade\r\nUpgrade: {upgrade}\r\n{body}");
            all.push((request("GET /x HTTP/1.1", &fields, "hello"), "upgrade_with_body"));
        }
    }
    all.push((request("GET /x HTTP/1.1", &format!("X: {}\r\n", "y".repeat(40_000)), ""), "head_too_large"));
    all.push((request("GET /x HTTP/1.1", &"X: y\r\n".repeat(300), ""), "too_many_fields"));
    all.push((request(&format!("GET /{} HTTP/1.1", "x".repeat(17_000)), "", ""), "uri_too_long"));
}

fn corpus() -> Vec<Case> {
    let mut all = Vec::new();
    for group in [lengths, codings, spellings, chunks, starts] {
        group(&mut all);
    }
    all
}

/// The samples of `preview_rejects_total` above zero.
fn rejects(gate: &Gate) -> Vec<(String, u64)> {
    let page = gate.page();
    let lines = page.lines().filter_map(|line| line.strip_prefix("preview_rejects_total{reason=\""));
    let pairs = lines.filter_map(|line| line.split_once("\"} "));
    pairs.filter_map(|(reason, count)| Some((reason.to_owned(), count.parse().ok()?))).collect()
}

/// Every request that was let in has reached the runners, whole or not.
fn as_many_as_let_in(gate: &Gate, runner: &Runner) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let seen: usize = runner.streams().iter().map(crate::strict::Stream::begun).sum();
        let let_in = gate.authorized();
        if seen as u64 == let_in {
            return Ok(());
        }
        if begun.elapsed() > DEADLINE {
            return Err(format!("the runners saw {seen} requests, {let_in} were let in"));
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused_for_its_reason_and_nothing_behind_it_is_read() {
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_HEAD_TIMEOUT_MS", "2000")]);
    let corpus = corpus();
    assert!(corpus.len() >= 500, "{}", corpus.len());
    let mut wrong = String::new();
    let mut before = rejects(&gate);
    for (number, (case, reason)) in corpus.iter().enumerate() {
        let name: String = case.escape_debug().take(300).collect();
        let mut wire = gate.connect();
        let sent = format!("{case}GET /smuggled HTTP/1.1\r\n{H}\r\n");
        wire.send(&sent).expect("the gate reads it");
        match wire.message() {
            Ok(Some(answer)) if !(400..600).contains(&answer.status()) => {
                let _ = writeln!(wrong, "{name}: {} {}", answer.first, answer.text());
            }
            Ok(Some(answer)) if !wire.is_over() => {
                let _ = writeln!(wrong, "{name}: goes on behind {}", answer.first);
            }
            Ok(Some(_)) => {}
            other => {
                let _ = writeln!(wrong, "{name}: {other:?}");
            }
        }
        let after = rejects(&gate);
        let counted: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).map(|(_, a)| &*a.0).collect();
        if counted != [*reason] {
            let _ = writeln!(wrong, "{name}: counted as {counted:?}, not {reason}");
        }
        before = after;
        let path = format!("/good-{number}");
        let answer = gate.get(&path).expect("a good request is answered");
        if !answer.text().ends_with(&path) {
            let _ = writeln!(wrong, "behind {name}, {path} was answered {}", answer.text());
        }
    }
    if runner.received().iter().any(|bytes| find(bytes, b"/smuggled").is_some()) {
        wrong.push_str("a runner saw /smuggled");
    }
    assert!(wrong.is_empty(), "{wrong}");
    as_many_as_let_in(&gate, &runner).expect("one request at the runner for each that was let in");
}

/// No token byte, digit or colon: none of them makes a head say something else that is legal and frames the body
/// otherwise.
const NASTY: &[u8] = b"\r\n\0\t ;,\"\x0b\x0c\x1f\x7f\x80\x85\xa0\xff";

#[test]
fn no_byte_put_anywhere_into_a_request_turns_its_body_into_a_request() {
    let seed = std::env::var("SANDGATE_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut dice = Dice(seed);
    let runner = Runner::echo();
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_HEAD_TIMEOUT_MS", "2000")]);
    let hidden = format!("GET /smuggled HTTP/1.1\r\n{H}\r\n");
    let n = hidden.len();
    let seeds = [
        request("POST /x?y HTTP/1.1", &format!("X-A: b\r\nContent-Length: {n}\r\n"), &hidden),
        request(
            "POST /x?y HTTP/1.1",
            "X-A: b\r\nTransfer-Encoding: chunked\r\n",
            &format!("{n:x}\r\n{hidden}\r\n0\r\n\r\n"),
        ),
    ];
    let (mut taken, mut refused) = (0, 0);
    for seed_bytes in &seeds {
        let body_at = find(seed_bytes.as_bytes(), b"\r\n\r\n").expect("a head") + 4;
        for at in 0..body_at + 4 {
            for _ in 0..6 {
                let byte = NASTY[(dice.next() % NASTY.len() as u64) as usize];
                let mut bytes = seed_bytes.as_bytes().to_vec();
                if dice.next().is_multiple_of(2) {
                    bytes.insert(at, byte)
                } else {
                    bytes[at] = byte
                }
                let name = format!("seed {seed}: {}", bytes.escape_ascii());
                let mut wire = gate.connect();
                wire.send(&bytes).expect("the gate reads it");
                wire.end_writing();
                let mut over = false;
                while let Ok(Some(answer)) = wire.message() {
                    assert!(!over, "{name}: goes on behind a refusal");
                    over = answer.status() >= 400;
                    if over {
                        refused += 1
                    } else {
                        taken += 1
                    }
                    assert!(!answer.text().contains("/smuggled"), "{name}");
                }
            }
        }
    }
    assert!(taken > 50 && refused > 500, "{taken} taken, {refused} refused: these cases prove nothing");
    assert!(runner.received().iter().all(|bytes| {
        let streams = crate::strict::stream(bytes).expect("canonical");
        streams.requests.iter().all(|request| !request.target.contains("/smuggled"))
    }));
    as_many_as_let_in(&gate, &runner).expect("one request at the runner for each that was let in");
}

/// What a runner must not be able to say: nothing of it may look like a whole answer, or stay in a connection for
/// the next client.
#[test]
fn an_answer_that_two_readers_could_read_in_two_ways_is_a_bad_gateway_or_cut_short() {
    let line = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\nhello");
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let mut cases = Vec::new();
    for value in ["+5", "-5", "0x5", "5a", "", "5 5", "5,5", "5, 6", "18446744073709551616", "\u{ff15}"] {
        cases.push(line(&format!("Content-Length: {value}\r\n")));
    }
    for value in [
        "xchunked",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "",
        ",chunked",
        "\u{b}chunked",
        "chunked;x",
    ] {
        cases.push(line(&format!("Transfer-Encoding: {value}\r\n")));
    }
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length : 5\r\n",
        " Content-Length: 5\r\n",
        "X: a\r\n Content-Length: 5\r\n",
        "X: a\nContent-Length: 5\r\n",
        "X: a\rContent-Length: 5\r\n",
        "X\0: a\r\nContent-Length: 5\r\n",
        "X: a\0\r\nContent-Length: 5\r\n",
        "no colon\r\nContent-Length: 5\r\n",
        ": nameless\r\nContent-Length: 5\r\n",
    ] {
        cases.push(line(fields));
    }
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "\r\nhello",
        "g\r\nhello",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nno-colon\r\n\r\n",
    ] {
        cases.push(chunked(body));
    }
    for head in [
        "HTTP/1.1 200 OK\n\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "hello",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
    ] {
        cases.push(head.to_owned());
    }
    assert!(cases.len() > 60, "{}", cases.len());
    let told = Arc::new(cases);
    let cases = told.clone();
    let runner = Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let number = request.target().rsplit("/case-").next().and_then(|n| n.parse::<usize>().ok());
            let answer = match number {
                Some(number) => [told[number].as_bytes(), ok("stolen").as_slice()].concat(),
                None => ok(request.target()),
            };
            if wire.send(answer).is_err() {
                return;
            }
        }
    });
    let gate = Gate::start(&Api::start(runner.addr), &[("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "1000")]);
    for (number, case) in cases.iter().enumerate() {
        let name = case.escape_debug();
        let mut wire = gate.connect();
        match wire.get(&format!("/case-{number}")) {
            Ok(answer) => assert!(
                (502..=504).contains(&answer.status()) && !answer.text().contains("stolen"),
                "{name}: {answer:?}"
            ),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                ),
                "{name}: {error}"
            ),
        }
        let path = format!("/good-{number}");
        let answer = gate.get(&path).expect("a good request is answered");
        assert!(answer.text().ends_with(&path), "behind {name}: {answer:?}");
    }
    gate.check(&runner);
}

/// What a client sends behind an upgrade is nobody's before the runner has switched, and belongs to the tunnel then.
#[test]
fn bytes_behind_an_upgrade_that_is_not_granted_reach_no_runner_unread() {
    for answer in ["200 OK", "403 Forbidden", "426 Upgrade Required", "500 No"] {
        let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\nno");
        let runner = Runner::start(move |mut wire: Wire, _| {
            while let Ok(Some(request)) = wire.message() {
                let answer = if request.field("Upgrade").is_some() {
                    text.clone().into_bytes()
                } else {
                    ok(request.target())
                };
                if wire.send(answer).is_err() {
                    return;
                }
            }
        });
        let gate = Gate::start(&Api::start(runner.addr), &[]);
        let mut wire = gate.connect();
        // A raw runner request, as an attacker would hide it in the tunnel that never comes.
        wire.send(format!(
            "GET /ws HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\
             GET /sandboxes/other/toolbox/smuggled HTTP/1.1\r\n{H}\r\n"
        ))
        .expect("the gate reads it");
        let first = wire.expect_message().expect("an answer");
        assert!(answer.starts_with(&first.status().to_string()), "{first:?}");
        // Either the connection ends, or the bytes are what they are: this client's next request, to its own sandbox.
        if let Ok(Some(second)) = wire.message() {
            assert!(
                second.text().starts_with("/sandboxes/sb1/toolbox/proxy/3000/sandboxes/other/"),
                "{second:?}"
            );
        }
        for request in runner.streams().iter().flat_map(|stream| &stream.requests) {
            assert!(request.target.starts_with("/sandboxes/sb1/toolbox/proxy/3000/"), "{request:?}");
        }
        gate.check(&runner);
    }
}
