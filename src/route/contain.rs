//! Does a path climb above its own root, in the reading of any hop that may see it? Knows nothing but the bytes.
//!
//! A client's path is sent on verbatim behind a prefix that names the sandbox and the port, with the runner's key
//! attached. A hop that normalises paths (a load balancer, nginx, a servlet container) must not be able to fold the
//! result out of that prefix, whatever it takes for a separator, a dot or an empty segment.
//!
//! The readings, and all their compositions: RFC 3986 5.2.4 as it is, percent-decoded once or twice first, `\` as
//! `/`, repeated slashes merged, `;parameters` of segments dropped. What does not climb in any of them passes
//! untouched, dot segments included.

/// True when the depth below the root can become negative. Empty paths and paths without dot segments never climb.
/// `path` is empty or begins with a `/`.
///
/// No allocation; the walk is for paths with `/.`, `%` or `\` only.
pub(super) fn climbs(path: &[u8]) -> bool {
    debug_assert!(path.first().is_none_or(|b| *b == b'/'), "its first segment would not be looked at");
    // Without an escape or a backslash only a segment that starts with a plain dot can climb. Looked at without an end
    // before the last byte: so the compiler looks at many at a time.
    let is_disputed = |b: u8| (b == b'%') | (b == b'\\');
    let pairs = path.iter().zip(path.get(1..).unwrap_or_default());
    let suspect = pairs.fold(false, |suspect, (before, byte)| {
        suspect | is_disputed(*byte) | ((*before == b'/') & (*byte == b'.'))
    });
    if !suspect {
        return false;
    }
    let mut depth = 0;
    // `/` is a separator to everybody, so it may be split at first: an escape cannot span it.
    path.split(|&b| b == b'/').any(|piece| {
        depth = lowest_depth_behind(piece, depth);
        depth < 0
    })
}

/// What one hop can take a segment for. `..;x` is `Up`: some drop the parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    Up,
    /// Nothing or a single dot.
    Stay,
    Down,
}

impl Segment {
    fn step(self) -> i32 {
        match self {
            Self::Up => -1,
            Self::Stay => 0,
            Self::Down => 1,
        }
    }
}

/// The least depth any hop can be at behind `piece`, or a negative one if it can get there within.
///
/// Within a piece the separators are disputed (`\`, `%2f`, `%255c`, ...): any run of the parts between them may be
/// one segment to somebody. All ways to join them are followed at once, as the least depth at the end of each part.
/// Removing a segment together with the `..` behind it never lowers what follows, because a segment counts one at
/// most: so a path that stays non-negative here does so for compositions of the readings too.
fn lowest_depth_behind(piece: &[u8], depth: i32) -> i32 {
    let parts = Parts { bytes: Decoded(Decoded(piece.iter().copied())), ended: false };
    let mut lowest = depth;
    // Least depth when a segment that began in an earlier part still goes on.
    let mut joined: Option<i32> = None;
    for part in parts {
        let alone = lowest + part.alone.step();
        let begun = lowest + part.when_joined.step();
        lowest = joined.map_or(alone, |joined| joined.min(alone));
        joined = Some(joined.map_or(begun, |joined| joined.min(begun)));
        if lowest < 0 {
            break;
        }
    }
    lowest
}

struct Part {
    alone: Segment,
    /// What it is when it goes on across a disputed separator: a name, unless all of that is dropped as parameters.
    when_joined: Segment,
}

/// Parts of a piece between disputed separators, one at least.
struct Parts<I> {
    bytes: I,
    ended: bool,
}

impl<I: Iterator<Item = u8>> Iterator for Parts<I> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.ended {
            return None;
        }
        let (mut dots, mut named, mut parameters) = (0usize, false, false);
        loop {
            match self.bytes.next() {
                None => {
                    self.ended = true;
                    break;
                }
                Some(b'/' | b'\\') => break,
                Some(b';') => parameters = true,
                Some(_) if parameters => {}
                Some(b'.') => dots += 1,
                Some(_) => named = true,
            }
        }
        let alone = match (named, dots) {
            (false, 0 | 1) => Segment::Stay,
            (false, 2) => Segment::Up,
            _ => Segment::Down,
        };
        Some(Part { alone, when_joined: if parameters { alone } else { Segment::Down } })
    }
}

/// Percent-decoding; a `%` without two hexadecimal digits stands for itself.
#[derive(Clone)]
struct Decoded<I>(I);

impl<I: Iterator<Item = u8> + Clone> Iterator for Decoded<I> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let byte = self.0.next()?;
        if byte != b'%' {
            return Some(byte);
        }
        let mut ahead = self.0.clone();
        let mut digit = || ahead.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => {
                self.0 = ahead;
                Some((high * 16 + low) as u8)
            }
            _ => Some(byte),
        }
    }
}
