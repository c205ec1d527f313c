//! `download/N`: N bytes that anybody can compute, in any range, streamed with flat memory.
//!
//! Byte `i` is byte `i % 8` (little-endian) of SplitMix64's output number `i / 8`, so a range needs nothing before it.

use super::apps::Request;
use super::peer::{Broken, head_bytes};
use super::record::hex;
use super::runner::Outcome;
use sha2::{Digest, Sha256};
use std::ops::Range;

const PIECE_BYTES: usize = 256 << 10;
/// Up to this size the whole file's SHA-256 is announced in `X-Content-Sha256`: beyond it computing the hash first
/// would hold the answer back too long.
const HASHED_MAX: u64 = 64 << 20;

/// Answers with the file of as many bytes as the path's second segment says, or with the range asked for.
pub(super) async fn answer(mut request: Request<'_>) -> Result<Outcome, Broken> {
    let size: u64 = request.segment(1).parse().unwrap_or(0);
    let range = match request.head.first("range").map(|text| byte_range(text, size)) {
        None => None,
        Some(Ok(range)) => range,
        Some(Err(Unsatisfiable)) => {
            let whole = format!("bytes */{size}");
            return request.send_answer(416, &[("Content-Range", &whole)], b"").await;
        }
    };
    let (status, range, content_range) = match range {
        Some(range) => (206, range.clone(), Some(format!("bytes {}-{}/{size}", range.start, range.end - 1))),
        None => (200, 0..size, None),
    };
    let length = (range.end - range.start).to_string();
    let hash = if size <= HASHED_MAX { Some(file_hash(size).await) } else { None };
    let mut fields = vec![
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("Content-Length", length.as_str()),
    ];
    fields.extend(content_range.as_deref().map(|text| ("Content-Range", text)));
    fields.extend(hash.as_deref().map(|text| ("X-Content-Sha256", text)));
    request.peer.send(&head_bytes(status, &fields)).await?;
    if !request.head.is_head() {
        let mut at = range.start;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        while at < range.end {
            let end = range.end.min(at + PIECE_BYTES as u64);
            fill(at..end, &mut piece);
            request.peer.send(&piece).await?;
            at = end;
        }
    }
    Ok(Outcome::Done(request.after()))
}

/// The file's bytes in `range`, in place of what `out` held.
pub fn fill(range: Range<u64>, out: &mut Vec<u8>) {
    out.clear();
    let Range { start, end } = range;
    let mut word = start / 8;
    let mut skip = (start % 8) as usize;
    let mut left = (end - start) as usize;
    while left > 0 {
        let bytes = splitmix64(word).to_le_bytes();
        let take = (8 - skip).min(left);
        out.extend_from_slice(&bytes[skip..skip + take]);
        left -= take;
        skip = 0;
        word += 1;
    }
}

/// Output number `n` of the generator seeded with 0 (Steele, Lea, Flood 2014).
fn splitmix64(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Off the world's thread, which serves others meanwhile.
async fn file_hash(size: u64) -> String {
    let work = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut at = 0;
        while at < size {
            let end = size.min(at + PIECE_BYTES as u64);
            fill(at..end, &mut piece);
            hash.update(&piece);
            at = end;
        }
        hex(&hash.finalize())
    });
    work.await.expect("hashing does not panic and is not aborted")
}

struct Unsatisfiable;

/// A single range of RFC 9110 14.1.2. `Ok(None)`: not understood, the field is to be ignored.
fn byte_range(text: &str, size: u64) -> Result<Option<Range<u64>>, Unsatisfiable> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => (size.saturating_sub(count), u64::MAX),
        _ => return Ok(None),
    };
    if first >= size {
        return Err(Unsatisfiable);
    }
    Ok(Some(first..last.saturating_add(1).min(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(range: Range<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        fill(range, &mut out);
        out
    }

    #[test]
    fn any_range_equals_the_same_part_of_the_whole() {
        let whole = bytes(0..100);
        assert_eq!(whole[..8], 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
        for start in 0..20 {
            for end in start..100 {
                assert_eq!(bytes(start..end), whole[start as usize..end as usize], "{start}..{end}");
            }
        }
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let read = |text| byte_range(text, 10).ok().flatten();
        assert_eq!(read("bytes=0-4"), Some(0..5));
        assert_eq!(read("bytes=5-"), Some(5..10));
        assert_eq!(read("bytes=-3"), Some(7..10));
        assert_eq!(read("bytes=-30"), Some(0..10));
        assert_eq!(read("bytes=8-99"), Some(8..10));
        assert_eq!(read("bytes=4-2"), None);
        assert_eq!(read("lines=1-2"), None);
        assert!(byte_range("bytes=10-", 10).is_err());
    }
}
