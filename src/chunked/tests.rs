//! Tests of the chunked coding.

use super::*;
use proptest::prelude::*;

const TRAILERS_MAX: usize = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<u8>,
    /// Bytes of the input that were consumed.
    used: usize,
}

/// `Ok(None)`: not complete. Pieces end at `cuts`; `skip` moves data as a relay that never looks at it does.
fn read(input: &[u8], cuts: &[usize], skip: bool) -> Result<Option<Body>, Reject> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    ends.push(input.len());
    ends.sort_unstable();
    let mut reader = ChunkReader::new(TRAILERS_MAX);
    let (mut at, mut data) = (0, Vec::new());
    for end in ends {
        loop {
            if skip && reader.data_remaining() > 0 {
                let n = reader.data_remaining().min((end - at) as u64);
                data.extend_from_slice(&input[at..at + n as usize]);
                reader.skip_data(n);
                at += n as usize;
            }
            let (used, piece) = reader.next(&input[at..end])?;
            assert!(used <= end - at);
            match piece {
                Piece::Data { at: from, n } => {
                    assert_eq!(from + n, used, "the consumed bytes end with the data");
                    assert!(n > 0);
                    data.extend_from_slice(&input[at + from..at + from + n]);
                }
                Piece::NeedMore => assert_eq!(used, end - at),
                Piece::End => {
                    let trailers = reader.trailers().to_vec();
                    return Ok(Some(Body { data, trailers, used: at + used }));
                }
            }
            at += used;
            if piece == Piece::NeedMore {
                break;
            }
        }
    }
    assert!(reader.trailers().is_empty(), "trailers before the end");
    Ok(None)
}

fn whole(input: &[u8]) -> Result<Option<Body>, Reject> {
    read(input, &[], false)
}

/// A body in valid but odd spelling, and its data.
fn valid() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let data = proptest::collection::vec(any::<u8>(), 1..40);
    let extension = proptest::sample::select(&["", "", ";a", ";a=b", ";", ";a=\"q s\"; b", ";\t"][..]);
    let chunk = (data, extension, any::<bool>(), 0..4_usize);
    let trailer = proptest::sample::select(&["", "X-Sum: 1\r\n", "X-A:\r\nX-B: \u{e4}\r\n"][..]);
    let last = proptest::sample::select(&["0", "000", "0;x"][..]);
    (proptest::collection::vec(chunk, 0..6), trailer, last).prop_map(|(chunks, trailers, last)| {
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        for (data, extension, upper, zeros) in chunks {
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
            bytes.extend_from_slice(format!("{}{size}{extension}\r\n", "0".repeat(zeros)).as_bytes());
            bytes.extend_from_slice(&data);
            bytes.extend_from_slice(b"\r\n");
            all.extend_from_slice(&data);
        }
        bytes.extend_from_slice(format!("{last}\r\n{trailers}\r\n").as_bytes());
        (bytes, all)
    })
}

/// A reader of the same grammar in another shape: lines of a whole input, no state.
fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let line = line_at(input, &mut at)?;
        let size = line.split(|b| *b == b';').next()?;
        if size.is_empty() || size.len() > 16 || !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let extension = &line[size.len()..];
        if !extension.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e)) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(input.get(at..at.checked_add(size)?)?);
        at += size;
        if input.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let line = line_at(input, &mut at)?;
        if line.is_empty() {
            return Some((data, at));
        }
        let colon = line.iter().position(|b| *b == b':')?;
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let text = |b: &u8| matches!(b, b'\t' | 0x20..=0x7e | 0x80..);
        if colon == 0 || !line[..colon].iter().all(token) || !line[colon..].iter().all(text) {
            return None;
        }
    }
}

/// Up to CRLF; a CR or LF that stands alone is no line end.
fn line_at<'b>(input: &'b [u8], at: &mut usize) -> Option<&'b [u8]> {
    let rest = &input[*at..];
    let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'))?;
    if rest.get(end..end + 2)? != b"\r\n" {
        return None;
    }
    *at += end + 2;
    Some(&rest[..end])
}

const NASTY: &[u8] = b"\r\n\0\t ;:05fFgx+-\"\x7f\x80";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_body_says_the_same_however_it_was_cut(
        (bytes, data) in valid(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        skip in any::<bool>(),
    ) {
        let body = whole(&bytes).expect("valid").expect("complete");
        prop_assert_eq!(&body.data, &data);
        prop_assert_eq!(body.used, bytes.len());
        prop_assert_eq!(read(&bytes, &cuts, skip), Ok(Some(body.clone())));
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(read(&bytes, &each, skip), Ok(Some(body)));
    }

    #[test]
    fn a_broken_body_is_broken_however_it_was_cut_and_by_another_reader_too(
        (mut bytes, _) in valid(),
        changes in proptest::collection::vec(
            (any::<proptest::sample::Index>(), proptest::sample::select(NASTY)), 0..3),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        behind in proptest::sample::select(&["", "GET / HTTP/1.1\r\n\r\n"][..]),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.extend_from_slice(behind.as_bytes());
        let verdict = whole(&bytes);
        prop_assert_eq!(read(&bytes, &cuts, true), verdict.clone());
        match (reference(&bytes), &verdict) {
            (Some((data, used)), Ok(Some(body))) => {
                prop_assert_eq!(&data, &body.data);
                prop_assert_eq!(used, body.used);
            }
            (None, Ok(None) | Err(_)) => {}
            // Sizes beyond memory are for this reader a refusal or a wait, for the other one nothing.
            (other, _) => prop_assert!(false, "{other:?} against {verdict:?}: {}", bytes.escape_ascii()),
        }
    }

    #[test]
    fn what_is_written_is_canonical_and_reads_back(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
    ) {
        let mut out = Vec::new();
        for chunk in &chunks {
            write_chunk_line(chunk.len() as u64, &mut out);
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        write_end(b"X-Sum: 1\r\n", &mut out);
        let body = whole(&out).expect("valid").expect("complete");
        prop_assert_eq!(body.data, chunks.concat());
        prop_assert_eq!(body.trailers, b"X-Sum: 1\r\n");
        prop_assert_eq!(body.used, out.len());
    }

    #[test]
    fn a_size_line_is_its_number_in_hexadecimal(n in 1..=u64::MAX) {
        let mut out = Vec::new();
        write_chunk_line(n, &mut out);
        prop_assert_eq!(out, format!("{n:x}\r\n").into_bytes());
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = whole(&bytes);
        let _ = read(&bytes, &[1, 2, 3, 5, 8, 13], true);
    }
}

#[test]
fn what_other_readers_take_is_refused() {
    for (input, reason) in [
        // Bare LF and CR, in every place.
        ("5\nhello\r\n0\r\n\r\n", Reject::ChunkSyntax),
        ("5\r\nhello\n0\r\n\r\n", Reject::ChunkSyntax),
        ("5\r\nhello\r0\r\n\r\n", Reject::ChunkSyntax),
        ("5\rhello", Reject::ChunkSyntax),
        ("5\r\nhello\r\n0\n\r\n", Reject::ChunkSyntax),
        ("5\r\nhello\r\n0\r\n\n", Reject::ChunkSyntax),
        ("5\r\nhello\r\n0\r\n\rX", Reject::ChunkSyntax),
        // Extensions that end for some at LF, for some at CRLF in quotes.
        ("5;\n\r\n", Reject::ChunkSyntax),
        ("5;a\nhello\r\n", Reject::ChunkSyntax),
        ("5;a=\"x\ry\"\r\nhello\r\n", Reject::ChunkSyntax),
        ("5;a\0\r\nhello\r\n", Reject::ChunkSyntax),
        ("5;\u{e4}\r\nhello\r\n", Reject::ChunkSyntax),
        ("5;\x7f\r\nhello\r\n", Reject::ChunkSyntax),
        // Sizes that are none.
        ("\r\nhello", Reject::ChunkSyntax),
        (";a\r\nhello", Reject::ChunkSyntax),
        ("+5\r\nhello", Reject::ChunkSyntax),
        ("-5\r\nhello", Reject::ChunkSyntax),
        ("0x5\r\nhello", Reject::ChunkSyntax),
        (" 5\r\nhello", Reject::ChunkSyntax),
        ("5 \r\nhello", Reject::ChunkSyntax),
        ("5\t;a\r\nhello", Reject::ChunkSyntax),
        ("g\r\nhello", Reject::ChunkSyntax),
        ("5_0\r\nhello", Reject::ChunkSyntax),
        ("5\0\r\nhello", Reject::ChunkSyntax),
        ("\u{ff15}\r\nhello", Reject::ChunkSyntax),
        // Data longer or shorter than announced.
        ("5\r\nhelloX\r\n0\r\n\r\n", Reject::ChunkSyntax),
        ("4\r\nhello\r\n0\r\n\r\n", Reject::ChunkSyntax),
        ("5\r\nhello0\r\n\r\n", Reject::ChunkSyntax),
        // Trailers.
        ("0\r\nno colon\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\n: nameless\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\nX : a\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\nX: a\r\n folded\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\nX: a\nY: b\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\nX: a\rb\r\n\r\n", Reject::ChunkSyntax),
        ("0\r\nX: a\0\r\n\r\n", Reject::ChunkSyntax),
        // Beyond every counter.
        ("FFFFFFFFFFFFFFFF\r\n", Reject::ChunkTooLarge),
        ("8000000000000000\r\n", Reject::ChunkTooLarge),
        ("10000000000000000\r\n", Reject::ChunkTooLarge),
        ("00000000000000005\r\nhello\r\n", Reject::ChunkTooLarge),
    ] {
        assert_eq!(whole(input.as_bytes()), Err(reason), "{input:?}");
        // Nothing behind a refusal is read.
        let mut reader = ChunkReader::new(TRAILERS_MAX);
        let mut at = 0;
        let refused = loop {
            match reader.next(&input.as_bytes()[at..]) {
                Ok((used, _)) => at += used,
                Err(reject) => break reject,
            }
        };
        assert_eq!(refused, reason);
        assert_eq!(reader.next(b"0\r\n\r\n"), Err(reason), "{input:?}");
    }
}

#[test]
fn an_incomplete_body_is_never_complete() {
    let body = b"5;x\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n";
    for end in 0..body.len() {
        assert_eq!(whole(&body[..end]), Ok(None), "{}", body[..end].escape_ascii());
    }
    assert!(whole(body).expect("valid").is_some());
}

#[test]
fn what_stands_behind_the_end_is_left_alone() {
    let body = whole(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n").expect("valid").expect("complete");
    assert_eq!((body.data.as_slice(), body.used), (&b"x"[..], 11));
    let mut reader = ChunkReader::new(TRAILERS_MAX);
    assert_eq!(reader.next(b"0\r\n\r\nmore"), Ok((5, Piece::End)));
    assert_eq!(reader.next(b"more"), Ok((0, Piece::End)));
}

#[test]
fn the_largest_size_is_taken_and_may_be_skipped() {
    let mut reader = ChunkReader::new(TRAILERS_MAX);
    assert_eq!(reader.next(b"4000000000000000\r\n"), Ok((18, Piece::NeedMore)));
    assert_eq!(reader.data_remaining(), SIZE_MAX);
    reader.skip_data(SIZE_MAX - 1);
    assert_eq!(reader.data_remaining(), 1);
    reader.skip_data(u64::MAX);
    assert_eq!(reader.next(b"\r\n0\r\n\r\n"), Ok((7, Piece::End)));
    assert_eq!(whole(b"4000000000000001\r\n"), Err(Reject::ChunkTooLarge));
}

#[test]
fn extensions_are_bounded_by_line_and_by_body_and_tiny_chunks_pass_for_ever() {
    let line = |len: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(len));
    let max = EXTENSION_BYTES_MAX as usize;
    assert!(whole(line(max).as_bytes()).expect("taken").is_some());
    assert_eq!(whole(line(max + 1).as_bytes()), Err(Reject::ChunkSyntax));

    // A body that is mostly extensions ends after its excess is used up.
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(max));
    let excess = (max as u64 + 1) - 18;
    let most = (LINE_EXCESS_MAX / excess) as usize;
    assert!(whole((chunk.repeat(most) + "0\r\n\r\n").as_bytes()).expect("taken").is_some());
    assert_eq!(whole(chunk.repeat(most + 1).as_bytes()), Err(Reject::ChunkSyntax));

    // One byte a chunk is an honest stream.
    assert!(whole(("1\r\nx\r\n".repeat(100_000) + "0\r\n\r\n").as_bytes()).expect("taken").is_some());
}

#[test]
fn a_trailer_section_may_be_as_long_as_its_limit() {
    let of = |len: usize| format!("0\r\nX: {}\r\n\r\n", "y".repeat(len - "X: \r\n".len()));
    assert!(whole(of(TRAILERS_MAX).as_bytes()).expect("taken").is_some());
    // The line's end is only counted with the next line.
    assert_eq!(whole(of(TRAILERS_MAX + 3).as_bytes()), Err(Reject::TrailerTooLarge));
    // Fields that are dropped count too, or they would be free.
    let dropped = "0\r\n".to_owned() + &"Age: 1\r\n".repeat(TRAILERS_MAX / 8 + 1) + "\r\n";
    assert_eq!(whole(dropped.as_bytes()), Err(Reject::TrailerTooLarge));
}

#[test]
fn fields_that_steer_a_message_are_dropped_from_trailers() {
    let kept = |line: &str| {
        let input = format!("0\r\nX-Before: 1\r\n{line}\r\nX-Behind: 2\r\n\r\n");
        let trailers = whole(input.as_bytes()).expect("valid").expect("complete").trailers;
        let text = String::from_utf8(trailers).expect("ASCII");
        assert!(text.starts_with("X-Before: 1\r\n") && text.ends_with("X-Behind: 2\r\n"), "{text}");
        text.contains(line)
    };
    for line in ["X-Checksum: a", "Server-Timing: a", "grpc-status: 0", "ETag: a", "Digest: a"] {
        assert!(kept(line), "{line}");
    }
    for line in [
        "Content-Length: 5",
        "content_length: 5",
        "Transfer-Encoding: chunked",
        "TRANSFER_ENCODING: chunked",
        "Host: a",
        "Connection: close",
        "Trailer: a",
        "TE: a",
        "Upgrade: a",
        "Expect: a",
        "Authorization: a",
        "Cookie: a",
        "Set-Cookie: a",
        "Set.Cookie: a",
        "X-Daytona-Authorization: a",
        "X_Daytona_Authorization: a",
        "X-Daytona-Anything: a",
        "X-Forwarded-For: a",
        "X-Forwarded-Anything: a",
        "X-Real-IP: a",
        "Forwarded: a",
        "Proxy-Anything: a",
        "Content-Type: a",
        "Content-Encoding: a",
        "Location: a",
        "Cache-Control: a",
        "Access-Control-Allow-Origin: *",
        "Sec-WebSocket-Accept: a",
        "If-None-Match: a",
    ] {
        assert!(!kept(line), "{line}");
    }
}

#[test]
fn a_body_is_whole_at_its_end_and_not_where_its_data_looks_like_it() {
    for whole in ["0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "1\r\na\r\n0\r\nX: 1\r\n\r\n"] {
        assert!(is_whole(whole.as_bytes()), "{whole:?}");
        for end in 0..whole.len() {
            assert!(!is_whole(&whole.as_bytes()[..end]), "{whole:?} to {end}");
        }
        assert!(!is_whole(format!("{whole}0\r\n\r\n").as_bytes()));
    }
    assert!(!is_whole(b"1000\r\nabc\r\n0\r\n\r\n"), "data of a chunk that goes on");
    assert!(!is_whole(b"zz0\r\n\r\n"));
}
