//! Tests of the message heads.

use super::*;
use proptest::prelude::*;

const HOST: &str = "3000-sb1.preview.test";

fn request<'b>(bytes: &'b [u8], limits: &Limits) -> Result<Option<RequestHead<'b>>, Reject> {
    RequestHead::parse(bytes, limits)
}

fn accepted(text: &str) -> RequestHead<'_> {
    match request(text.as_bytes(), &Limits::default()) {
        Ok(Some(head)) => head,
        other => panic!("{text:?}: {:?}", other.map(|head| head.is_some())),
    }
}

fn refused(bytes: &[u8]) -> Result<bool, Reject> {
    request(bytes, &Limits::default()).map(|head| head.is_some())
}

/// Everything a head says, so that two can be compared.
fn said(head: &RequestHead<'_>) -> String {
    let fields: Vec<_> = head
        .fields
        .iter()
        .map(|f| (f.id, f.name.of(head.bytes).to_vec(), f.value.of(head.bytes).to_vec()))
        .collect();
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {fields:?} {} {} {} {:?} {:?}",
        head.bytes,
        head.method,
        head.method_text.of(head.bytes),
        head.version,
        head.path(),
        head.query(),
        head.websocket,
        head.keep_alive,
        head.expect_continue,
        head.body,
        head.authority.of(head.bytes),
    )
}

/// What a connection makes of `bytes` when they come in pieces that end at `cuts`: the first verdict counts.
fn in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<String>, Reject> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    for end in ends {
        if let Some(head) = request(&bytes[..end], &Limits::default())? {
            return Ok(Some(said(&head)));
        }
    }
    Ok(None)
}

fn response_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<String>, Reject> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    for end in ends {
        if let Some(head) = ResponseHead::parse(&bytes[..end], Method::Get, &Limits::default())? {
            return Ok(Some(format!(
                "{:?} {} {:?} {:?} {}",
                head.bytes,
                head.status,
                head.reason.of(head.bytes),
                head.body,
                head.keep_alive
            )));
        }
    }
    Ok(None)
}

/// Pieces of which heads are put together, good and bad.
const LINES: &[&str] = &[
    "Host: 3000-sb1.preview.test",
    "Host: 3000-sb1.preview.test",
    "Host: other.test",
    "Content-Length: 5",
    "Content-Length: 5",
    "Content-Length: +5",
    "content-length:0",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: \u{85}chunked\u{a0}",
    "Transfer-Encoding: identity",
    "Connection: close, X-A",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "X-A:\t b \t",
    "X-Empty:",
    "X-\u{e4}: b",
    "X-A: \u{e4}",
    " folded",
    "Cookie: a=b; daytona-sandbox-auth-x=y",
];
const ENDS: &[&str] = &["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\n\r\n"];
const STARTS: &[&str] = &[
    "GET /a?b=c HTTP/1.1",
    "POST /a/%2e%2e/b HTTP/1.1",
    "GET http://3000-sb1.preview.test/x HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET / HTTP/1.0",
    "GET / HTTP/1.2",
    "get /# HTTP/1.1",
    "GET  / HTTP/1.1",
    "\r\nGET / HTTP/1.1",
    "\nGET / HTTP/1.1",
];
const NASTY: &[u8] = b"\r\n\0\t :;,aZ09+-%#/?\x0b\x7f\x80\x85\xa0\xff";

fn message(starts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let line = (proptest::sample::select(LINES), proptest::sample::select(ENDS));
    let lines = proptest::collection::vec(line, 0..6);
    let changes =
        proptest::collection::vec((any::<proptest::sample::Index>(), proptest::sample::select(NASTY)), 0..3);
    (proptest::sample::select(starts), lines, changes, any::<bool>()).prop_map(
        |(start, lines, changes, with_host)| {
            let mut bytes = start.as_bytes().to_vec();
            bytes.extend_from_slice(b"\r\n");
            if with_host {
                bytes.extend_from_slice(b"Host: 3000-sb1.preview.test\r\n");
            }
            for (line, end) in lines {
                bytes.extend_from_slice(line.as_bytes());
                bytes.extend_from_slice(end.as_bytes());
            }
            bytes.extend_from_slice(b"\r\nbody and GET /next HTTP/1.1\n\n");
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_request_says_the_same_however_it_was_cut(
        bytes in message(STARTS),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let whole = in_pieces(&bytes, &[]);
        let pieces = in_pieces(&bytes, &cuts);
        // A refusal may name what was seen first; whether it is one may not depend on the cuts.
        match (&whole, &pieces) {
            (Err(_), Err(_)) => {}
            _ => prop_assert_eq!(&whole, &pieces, "{}", bytes.escape_ascii()),
        }
        // Byte by byte is the worst of all cuts.
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(in_pieces(&bytes, &each).ok(), whole.ok(), "{}", bytes.escape_ascii());
    }

    #[test]
    fn a_response_says_the_same_however_it_was_cut(
        bytes in message(&["HTTP/1.1 200 OK", "HTTP/1.0 204 No", "HTTP/1.1 101 S", "HTTP/1.1 99 x", "HTTP/1.1  200 "]),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let whole = response_in_pieces(&bytes, &[]);
        match (&whole, response_in_pieces(&bytes, &cuts)) {
            (Err(_), Err(_)) => {}
            (_, pieces) => prop_assert_eq!(&whole, &pieces, "{}", bytes.escape_ascii()),
        }
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(response_in_pieces(&bytes, &each).ok(), whole.ok(), "{}", bytes.escape_ascii());
    }

    /// Against a reader that does nothing but split at CRLF and at the first colon.
    #[test]
    fn what_is_accepted_has_one_reading(bytes in message(STARTS)) {
        if let Ok(Some(head)) = request(&bytes, &Limits::default()) {
            let text = head.bytes.strip_prefix(b"\r\n").unwrap_or(head.bytes);
            let lines = text.strip_suffix(b"\r\n\r\n").expect("ends with an empty line");
            let lines: Vec<&[u8]> = split_crlf(lines);
            prop_assert_eq!(lines.len(), head.fields.len() + 1);
            let first = [head.method_text.of(head.bytes), b" "].concat();
            prop_assert!(lines[0].starts_with(&first));
            prop_assert_eq!(lines[0].iter().filter(|b| **b == b' ').count(), 2);
            let mut counts = [0; 3];
            for (line, field) in lines[1..].iter().zip(&head.fields) {
                let colon = line.iter().position(|b| *b == b':').expect("a colon");
                let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
                prop_assert_eq!(name, field.name.of(head.bytes));
                prop_assert_eq!(value, field.value.of(head.bytes));
                prop_assert!(!name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b':'));
                prop_assert!(value.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..)));
                for (count, known) in counts.iter_mut().zip(["host", "content-length", "transfer-encoding"]) {
                    *count += usize::from(name.eq_ignore_ascii_case(known.as_bytes()));
                }
            }
            prop_assert_eq!(counts[0], 1);
            prop_assert!(counts[1] + counts[2] <= 1);
            let chunked = head.body == RequestBody::Chunked;
            prop_assert_eq!(chunked, counts[2] == 1);
            prop_assert!(!chunked || head.version == Version::Http11);
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = request(&bytes, &Limits::default());
        let _ = ResponseHead::parse(&bytes, Method::Head, &Limits::default());
    }
}

fn split_crlf(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    lines
}

#[test]
fn good_requests_are_read_as_they_are_meant() {
    let text = format!("GET /a/b?c=d HTTP/1.1\r\nHost: {HOST}\r\nX-A:\t b \t\r\nX-Empty:\r\n\r\nbody");
    let head = accepted(&text);
    assert_eq!(head.bytes.len(), text.len() - 4, "the body stays behind it");
    assert_eq!((head.method, head.version, head.body), (Method::Get, Version::Http11, RequestBody::None));
    assert_eq!((head.path(), head.query()), (&b"/a/b"[..], Some(&b"c=d"[..])));
    assert_eq!(head.authority.of(head.bytes), HOST.as_bytes());
    assert_eq!(head.fields[1].value.of(head.bytes), b"b");
    assert_eq!(head.fields[2].value.of(head.bytes), b"");
    assert!(head.keep_alive && !head.websocket && !head.expect_continue);

    // One empty line in front, which some clients send behind a body.
    assert_eq!(accepted("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").path(), b"/");
    // Absolute-form with the same authority, in any case; an empty path is `/`.
    assert_eq!(accepted("GET http://A.b:80/x?y HTTP/1.1\r\nHost: a.B:80\r\n\r\n").path(), b"/x");
    assert_eq!(accepted("GET HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n").path(), b"/");
    // Any method that is a token.
    let head = accepted("M-SEARCH!# /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.method, head.method_text.of(head.bytes)), (Method::Other, &b"M-SEARCH!#"[..]));
    assert_eq!(accepted("get /x HTTP/1.1\r\nHost: a\r\n\r\n").method, Method::Other, "methods have a case");
    // HTTP/1.0 keeps only when asked to, HTTP/1.1 unless asked not to.
    assert!(!accepted("GET / HTTP/1.0\r\nHost: a\r\n\r\n").keep_alive);
    assert!(accepted("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
    assert!(!accepted("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n").keep_alive);
    // Both options: the careful one wins.
    assert!(!accepted("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n").keep_alive);
    assert!(accepted("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n").expect_continue);
    assert!(!accepted("PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").expect_continue);
    // A query's first `?` ends the path.
    let head = accepted("GET /a?b?c HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.path(), head.query()), (&b"/a"[..], Some(&b"b?c"[..])));
    assert_eq!(accepted("GET /? HTTP/1.1\r\nHost: a\r\n\r\n").query(), Some(&b""[..]));
}

#[test]
fn a_websocket_request_is_a_get_of_http_1_1_that_names_its_upgrade_and_has_no_body() {
    let with = |start: &str, fields: &str| {
        let text = format!("{start}\r\nHost: a\r\n{fields}\r\n");
        request(text.as_bytes(), &Limits::default()).map(|head| head.expect("whole").websocket)
    };
    let get = "GET / HTTP/1.1";
    assert_eq!(with(get, "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"), Ok(true));
    assert_eq!(with(get, "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n"), Ok(true));
    assert_eq!(with(get, "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n"), Ok(true));
    assert_eq!(with(get, "Upgrade: websocket\r\n"), Ok(false));
    assert_eq!(with(get, "Connection: upgrade\r\nUpgrade: h2c\r\n"), Ok(false));
    assert_eq!(with(get, "Connection: upgrade\r\nUpgrade: websocket/13\r\n"), Ok(false));
    assert_eq!(with("GET / HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n"), Ok(false));
    assert_eq!(with("POST / HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket\r\n"), Ok(false));
    for body in ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n"] {
        let fields = format!("Connection: upgrade\r\nUpgrade: websocket\r\n{body}");
        assert_eq!(with(get, &fields), Err(Reject::UpgradeWithBody));
    }
}

/// What the tokenizer below takes and a hop behind us could read otherwise.
#[test]
fn bad_requests_are_refused_for_the_right_reason() {
    let line = |line: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
    let start = |start: &str| format!("{start}\r\nHost: a\r\n\r\n");
    let cases = [
        // Line ends.
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), Reject::BareLf),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), Reject::BareLf),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(), Reject::BareLf),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Reject::BareLf),
        ("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Reject::BareLf),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Reject::Syntax),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Reject::Syntax),
        ("GET / HTTP/1.1\rHost: a\r\r".to_owned(), Reject::Syntax),
        (line("X: a\rb"), Reject::Syntax),
        // The request line.
        (start("GET  / HTTP/1.1"), Reject::Syntax),
        (start("GET /  HTTP/1.1"), Reject::Syntax),
        (start("GET / HTTP/1.1 "), Reject::Syntax),
        (start("GET /x y HTTP/1.1"), Reject::Syntax),
        (start("GET\t/ HTTP/1.1"), Reject::Syntax),
        (start("GET /\tHTTP/1.1"), Reject::Syntax),
        (start(" GET / HTTP/1.1"), Reject::Syntax),
        (start("G(T / HTTP/1.1"), Reject::Syntax),
        (start("GET /"), Reject::Syntax),
        (start("GET / HTTP/1.2"), Reject::Version),
        (start("GET / HTTP/2.0"), Reject::Version),
        (start("GET / http/1.1"), Reject::Syntax),
        (start("GET / HTTP/01.1"), Reject::Version),
        // The target.
        (start("GET /# HTTP/1.1"), Reject::TargetSyntax),
        (start("GET /?# HTTP/1.1"), Reject::TargetSyntax),
        (start("GET /\\x HTTP/1.1"), Reject::TargetSyntax),
        (start("GET /..\\x?\\ HTTP/1.1"), Reject::TargetSyntax),
        (start("GET http://a\\b/ HTTP/1.1"), Reject::TargetSyntax),
        (start("GET x HTTP/1.1"), Reject::TargetSyntax),
        (start("GET * HTTP/1.1"), Reject::TargetSyntax),
        (start("GET ?x HTTP/1.1"), Reject::TargetSyntax),
        (start("GET ftp://a/ HTTP/1.1"), Reject::TargetSyntax),
        (start("GET http://a?x HTTP/1.1"), Reject::TargetSyntax),
        (start("CONNECT /x HTTP/1.1"), Reject::TargetSyntax),
        (start("GET http://b/ HTTP/1.1"), Reject::AuthorityMismatch),
        (start("GET http://a:80/ HTTP/1.1"), Reject::AuthorityMismatch),
        (start("GET http://u@a/ HTTP/1.1"), Reject::AuthorityMismatch),
        (start("GET http://a@b/ HTTP/1.1"), Reject::AuthorityMismatch),
        // Field lines.
        (line(" folded"), Reject::Syntax),
        (line("X: a\r\n folded"), Reject::Syntax),
        (line("X: a\r\n\tfolded"), Reject::Syntax),
        (line("X : a"), Reject::Syntax),
        (line("X\t: a"), Reject::Syntax),
        (line(": a"), Reject::Syntax),
        (line("no colon"), Reject::Syntax),
        (line("X(Y): a"), Reject::Syntax),
        (line("X: a\0b"), Reject::Syntax),
        (line("X: a\x0bb"), Reject::Syntax),
        (line("X: a\x7fb"), Reject::Syntax),
        (line("X\u{e4}: b"), Reject::Syntax),
        // The authority.
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), Reject::HostMissing),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), Reject::HostMissing),
        ("GET http://a/ HTTP/1.1\r\n\r\n".to_owned(), Reject::HostMissing),
        (line("Host: a"), Reject::HostDouble),
        (line("HOST: b"), Reject::HostDouble),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), Reject::HostSyntax),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_owned(), Reject::HostSyntax),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), Reject::HostSyntax),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(), Reject::HostSyntax),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n".to_owned(), Reject::HostSyntax),
        // Framing.
        (line("Content-Length: 5\r\nContent-Length: 5"), Reject::LengthConflict),
        (line("Content-Length: 5\r\nContent-Length: 6"), Reject::LengthConflict),
        (line("Content-Length: 5, 5"), Reject::LengthConflict),
        (line("Content-Length: "), Reject::LengthSyntax),
        (line("Content-Length: +5"), Reject::LengthSyntax),
        (line("Content-Length: 5 5"), Reject::LengthSyntax),
        (line("Content-Length: 18446744073709551616"), Reject::LengthSyntax),
        (line("Content-Length: \u{665}"), Reject::LengthSyntax),
        (line("Content-Length: 5\r\nTransfer-Encoding: chunked"), Reject::LengthWithTransferEncoding),
        (line("Transfer-Encoding: chunked\r\nContent-Length: 5"), Reject::LengthWithTransferEncoding),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            Reject::TransferEncodingOnHttp10,
        ),
    ];
    let codings = [
        "xchunked",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "\"chunked\"",
        "",
        "identity",
        "chun\u{212a}ed",
        "\u{85}chunked",
        "chunked\u{a0}",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
    ];
    for (text, reason) in cases {
        assert_eq!(refused(text.as_bytes()), Err(reason), "{text:?}");
    }
    for coding in codings {
        let text = line(&format!("Transfer-Encoding: {coding}"));
        assert_eq!(refused(text.as_bytes()), Err(Reject::TransferEncodingUnsupported), "{text:?}");
    }
    // Bytes that are no text: NEL and NBSP, which `str::trim` would take for space.
    for value in [&b"\x85chunked"[..], b"chunked\xa0", b"\xffchunked"] {
        let text =
            [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ".as_slice(), value, b"\r\n\r\n"].concat();
        assert_eq!(refused(&text), Err(Reject::TransferEncodingUnsupported), "{}", text.escape_ascii());
    }
}

#[test]
fn every_byte_of_a_target_is_taken_or_refused_by_one_rule() {
    for (start, bad) in [("GET /a", r"#\"), ("GET /?a", "#")] {
        for byte in 0..=255_u8 {
            let text = [start.as_bytes(), &[byte], b"b HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            let ok = matches!(byte, 0x21..=0x7e) && !bad.as_bytes().contains(&byte);
            assert_eq!(refused(&text) == Ok(true), ok, "{start} {byte:#04x}: {:?}", refused(&text));
        }
    }
}

#[test]
fn every_byte_of_a_field_name_and_of_a_value_is_taken_or_refused_by_one_rule() {
    for byte in 0..=255_u8 {
        let name = [b"GET / HTTP/1.1\r\nHost: a\r\nX".as_slice(), &[byte], b"Y: b\r\n\r\n"].concat();
        let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        // A colon ends the name earlier.
        assert_eq!(refused(&name) == Ok(true), token || byte == b':', "name {byte:#04x}");
        let value = [b"GET / HTTP/1.1\r\nHost: a\r\nX: a".as_slice(), &[byte], b"b\r\n\r\n"].concat();
        let text = matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
        assert_eq!(refused(&value) == Ok(true), text, "value {byte:#04x}");
    }
}

#[test]
fn a_head_may_be_as_long_as_its_limit_and_not_a_byte_longer() {
    let limits = Limits { head_bytes_max: 2000, uri_bytes_max: 1000, ..Limits::default() };
    let of = |len: usize| {
        let empty = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(len - empty))
    };
    let (fits, too_long) = (of(2000), of(2001));
    assert!(request(fits.as_bytes(), &limits).expect("taken").is_some());
    assert_eq!(request(too_long.as_bytes(), &limits).err(), Some(Reject::HeadTooLarge));
    // Told as soon as it is certain, and not before.
    assert!(request(&too_long.as_bytes()[..1999], &limits).expect("not yet").is_none());
    assert_eq!(request(&too_long.as_bytes()[..2000], &limits).err(), Some(Reject::HeadTooLarge));

    let answer = |len: usize| {
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(len - "HTTP/1.1 200 OK\r\nX: \r\n\r\n".len()))
    };
    assert!(ResponseHead::parse(answer(2000).as_bytes(), Method::Get, &limits).expect("taken").is_some());
    let refused = ResponseHead::parse(answer(2001).as_bytes(), Method::Get, &limits).err();
    assert_eq!(refused, Some(Reject::HeadTooLarge));
}

#[test]
fn a_target_may_be_as_long_as_its_limit_and_is_refused_before_it_ends() {
    let limits = Limits { uri_bytes_max: 100, ..Limits::default() };
    let of = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len - 1));
    assert!(request(of(100).as_bytes(), &limits).expect("taken").is_some());
    assert_eq!(request(of(101).as_bytes(), &limits).err(), Some(Reject::UriTooLong));
    let begun = format!("GET /{}", "x".repeat(100));
    assert_eq!(request(begun.as_bytes(), &limits).err(), Some(Reject::UriTooLong));
    assert!(request(&begun.as_bytes()[..begun.len() - 1], &limits).expect("not yet").is_none());
}

#[test]
fn a_head_may_have_as_many_fields_as_its_limit_and_not_one_more() {
    for max in [8, 128, 256] {
        let limits = Limits { header_count_max: max, ..Limits::default() };
        let of = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        assert_eq!(request(of(max).as_bytes(), &limits).expect("taken").expect("whole").fields.len(), max);
        assert_eq!(request(of(max + 1).as_bytes(), &limits).err(), Some(Reject::TooManyFields));
        let answer = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(ResponseHead::parse(answer(max).as_bytes(), Method::Get, &limits).expect("taken").is_some());
        let refused = ResponseHead::parse(answer(max + 1).as_bytes(), Method::Get, &limits).err();
        assert_eq!(refused, Some(Reject::TooManyFields));
    }
}

#[test]
fn responses_are_read_as_they_are_meant_or_refused() {
    let parse = |text: &'static [u8]| ResponseHead::parse(text, Method::Get, &Limits::default());
    let good = |text| parse(text).expect("taken").expect("whole");
    let head = good(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((head.status, head.body, head.keep_alive), (200, ResponseBody::Length(5), true));
    assert_eq!(head.reason.of(head.bytes), b"OK");
    // A phrase may be empty, missing with its space, or in bytes that are no ASCII.
    for (text, reason) in [
        (&b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"[..], &b""[..]),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 Sch\xf6n\r\nContent-Length: 0\r\n\r\n", b"Sch\xf6n"),
    ] {
        let head = good(text);
        assert_eq!(head.reason.of(head.bytes), reason);
    }
    let head = good(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!((head.body, head.keep_alive), (ResponseBody::UntilClose, false));
    let head = good(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n");
    assert_eq!((head.body, head.keep_alive), (ResponseBody::None, false), "a body where none may be");
    let head = good(b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n");
    assert_eq!((head.body, head.keep_alive), (ResponseBody::None, true));
    for (text, reason) in [
        (&b"\r\nHTTP/1.1 200 OK\r\n\r\n"[..], Reject::Syntax),
        (b"\nHTTP/1.1 200 OK\r\n\r\n", Reject::BareLf),
        (b"HTTP/1.1 200 OK\n\n", Reject::BareLf),
        (b"HTTP/1.1 200 OK\r\nX: y\n\r\n", Reject::BareLf),
        (b"HTTP/1.1 099 OK\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 +20 OK\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 20 OK\r\n\r\n", Reject::Syntax),
        (b"HTTP/2.0 200 OK\r\n\r\n", Reject::Version),
        (b"HTTP/1.1 200 O\0K\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n", Reject::Syntax),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Reject::LengthConflict),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reject::LengthWithTransferEncoding,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Reject::TransferEncodingUnsupported),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Reject::TransferEncodingOnHttp10),
    ] {
        assert_eq!(parse(text).err(), Some(reason), "{}", text.escape_ascii());
    }
}
