//! A chunked body: read in pieces, against a reader that has all of it and no state.
//!
//! The first byte of the input says how the pieces are taken, the second and third the bound of the trailer section, the
//! rest is the body.

use super::cuts;
use super::message::{folded, is_token};
use sandgate::chunked::{ChunkReader, Piece, is_whole, write_chunk_line, write_end};
use sandgate::head::Reject;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<u8>,
    used: usize,
}

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let [options, high, low, body @ ..] = input else { return };
    let trailers_max = usize::from(u16::from_be_bytes([*high, *low]) % 2048);
    let skips = options & 1 != 0;
    let whole = read(body, &[], trailers_max, false);
    let pieces = cuts::of(body);
    assert_eq!(read(body, &pieces, trailers_max, skips), whole);
    let few: Vec<usize> = pieces.into_iter().filter(|at| at % 7 == usize::from(options >> 1) % 7).collect();
    assert_eq!(read(body, &few, trailers_max, !skips), whole);

    match (&whole, plain(body)) {
        (Ok(Some(found)), Plain::Whole(plain)) => {
            assert_eq!(*found, plain.body);
            assert!(found.trailers.len() <= trailers_max + 2);
            assert!(
                plain.line_bytes <= 16 * plain.lines + 2 * found.data.len() + EXCESS_MAX,
                "mostly size lines"
            );
            is_written_as_it_is_read(found, trailers_max);
        }
        (Ok(None), Plain::More) => {}
        (Err(Reject::ChunkSyntax | Reject::ChunkTooLarge), Plain::Broken) => {}
        // What is bounded as well.
        (Err(Reject::TrailerTooLarge), plain) => {
            assert!(trailers_max < body.len(), "{plain:?}");
        }
        (Err(Reject::ChunkSyntax), plain) => assert!(body.len() > EXCESS_MAX, "{plain:?}"),
        (found, plain) => panic!("{found:?} against {plain:?}"),
    }
    if body.len() < EXCESS_MAX {
        assert_eq!(is_whole(body), matches!(plain(body), Plain::Whole(p) if p.body.used == body.len()));
    }
}

/// As a relay reads a body that comes in pieces which end at `cuts`. With `skips` it does not look at the data.
fn read(input: &[u8], cuts: &[usize], trailers_max: usize, skips: bool) -> Result<Option<Body>, Reject> {
    let mut reader = ChunkReader::new(trailers_max);
    let (mut at, mut data) = (0, Vec::new());
    for end in cuts.iter().copied().chain([input.len()]) {
        loop {
            if skips && reader.data_remaining() > 0 {
                let n = reader.data_remaining().min((end - at) as u64);
                data.extend_from_slice(&input[at..at + n as usize]);
                reader.skip_data(n);
                at += n as usize;
            }
            let remaining = reader.data_remaining();
            let (used, piece) = reader.next(&input[at..end]).inspect_err(|reject| {
                assert_eq!(reader.next(b"0\r\n\r\n"), Err(*reject), "it reads on behind an error");
            })?;
            match piece {
                Piece::Data { at: from, n } => {
                    assert!(n > 0 && from + n == used && (remaining == 0 || n as u64 <= remaining));
                    data.extend_from_slice(&input[at + from..at + used]);
                }
                Piece::NeedMore => assert_eq!(used, end - at),
                Piece::End => {
                    assert_eq!(reader.next(b"0\r\n\r\n"), Ok((0, Piece::End)), "it reads on behind the end");
                    return Ok(Some(Body { data, trailers: reader.trailers().to_vec(), used: at + used }));
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

/// Excess of size lines that is taken; the sum over a body that is shorter cannot reach it.
const EXCESS_MAX: usize = 16 * 1024;

#[derive(Debug)]
struct PlainBody {
    body: Body,
    lines: usize,
    line_bytes: usize,
}

#[derive(Debug)]
enum Plain {
    Whole(PlainBody),
    More,
    Broken,
}

/// RFC 9112 7.1 without its leniencies.
fn plain(input: &[u8]) -> Plain {
    let (mut at, mut data, mut lines, mut line_bytes) = (0, Vec::new(), 0, 0);
    loop {
        let line = match line(&input[at..], is_size_line_so_far, 1) {
            Ok(line) => line,
            Err(plain) => return plain,
        };
        let digits = line.iter().position(|b| *b == b';').unwrap_or(line.len());
        let size = std::str::from_utf8(&line[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("digits");
        at += line.len() + 2;
        lines += 1;
        line_bytes += line.len();
        if size == 0 {
            break;
        }
        let n = size.min(input.len() - at);
        data.extend_from_slice(&input[at..at + n]);
        at += n;
        let behind = &input[at..input.len().min(at + 2)];
        if !b"\r\n".starts_with(behind) {
            return Plain::Broken;
        }
        if behind.len() < 2 || n < size {
            return Plain::More;
        }
        at += 2;
    }
    let mut trailers = Vec::new();
    loop {
        let line = match line(&input[at..], |_| true, 0) {
            Ok(line) => line,
            Err(plain) => return plain,
        };
        at += line.len() + 2;
        if line.is_empty() {
            return Plain::Whole(PlainBody { body: Body { data, trailers, used: at }, lines, line_bytes });
        }
        let colon = line.iter().position(|b| *b == b':').unwrap_or(0);
        let is_text = |b: &u8| matches!(b, b'\t' | 0x20..=0x7e | 0x80..);
        if !is_token(&line[..colon]) || !line[colon..].iter().all(is_text) {
            return Plain::Broken;
        }
        if !steers(&folded(&line[..colon])) {
            trailers.extend_from_slice(&input[at - line.len() - 2..at]);
        }
    }
}

/// Up to CRLF. As long as it goes on, `so_far` must hold of it.
fn line(input: &[u8], so_far: impl Fn(&[u8]) -> bool, len_min: usize) -> Result<&[u8], Plain> {
    let end = input.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(input.len());
    let (line, behind) = (&input[..end], &input[end..input.len().min(end + 2)]);
    let ends_early = !behind.is_empty() && line.len() < len_min;
    if !so_far(line) || ends_early || !b"\r\n".starts_with(behind) {
        return Err(Plain::Broken);
    }
    if behind.len() < 2 { Err(Plain::More) } else { Ok(line) }
}

fn is_size_line_so_far(line: &[u8]) -> bool {
    let digits = line.iter().position(|b| *b == b';').unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    let number = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
    let good_size =
        size.len() <= 16 && size.iter().all(u8::is_ascii_hexdigit) && number.is_none_or(|n| n <= 1 << 62);
    let good_extension = extension.len() <= 257 && extension.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e));
    good_size && good_extension && (extension.is_empty() || !size.is_empty())
}

/// Who merges a trailer into the head would act on it (RFC 9110 6.5.1).
fn steers(name: &str) -> bool {
    const PREFIXES: &[&str] =
        &["x-daytona-", "x-forwarded-", "proxy-", "if-", "sec-", "access-control-", "content-"];
    const NAMES: &[&str] = &[
        "accept",
        "age",
        "alt-svc",
        "authentication-info",
        "authorization",
        "cache-control",
        "clear-site-data",
        "connection",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "range",
        "referer",
        "refresh",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "upgrade-insecure-requests",
        "user-agent",
        "vary",
        "warning",
        "www-authenticate",
        "x-real-ip",
        "x-request-id",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Written anew it has no extensions, no trailer that steers, and says the same.
fn is_written_as_it_is_read(body: &Body, trailers_max: usize) {
    let mut out = Vec::new();
    for chunk in body.data.chunks(300) {
        write_chunk_line(chunk.len() as u64, &mut out);
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    write_end(&body.trailers, &mut out);
    let again = read(&out, &[], trailers_max, false);
    assert_eq!(again, Ok(Some(Body { used: out.len(), ..body.clone() })));
}
