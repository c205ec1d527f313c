//! A WebSocket's frames, followed while they pass, against a reader that has all of them.
//!
//! The first byte of the input says how long the pieces are, the rest is what a server sends.

use sandgate::readers::{Frames, Place, close_frame};

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let Some((&options, bytes)) = input.split_first() else { return };
    let piece = usize::from(options >> 1) + 1;
    let mut frames = Frames::default();
    is_at(&frames, bytes, 0);
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + piece);
        // A relay may move what needs no look without giving it one.
        let unseen = frames.unseen().min((end - at) as u64);
        if options & 1 != 0 && unseen > 0 {
            frames.pass_unseen(unseen);
            at += unseen as usize;
        } else {
            frames.pass(&bytes[at..end]);
            at = end;
        }
        is_at(&frames, bytes, at);
    }
    // A farewell put where one may stand is found by whoever reads on.
    if frames.place() == Place::Between {
        let ended = [bytes, &close_frame(1001, "bye")].concat();
        let (_, place) = place(&ended);
        assert_eq!(place, Place::Nowhere);
        frames.pass(&ended[bytes.len()..]);
        assert_eq!(frames.place(), Place::Nowhere);
    }
}

fn is_at(frames: &Frames, bytes: &[u8], at: usize) {
    let (payload, place) = place(&bytes[..at]);
    assert_eq!(frames.place(), place, "at {at}");
    if place != Place::Nowhere {
        // Of a payload, as long as one is under way.
        let unseen = if let (Some(_), Place::Within(left)) = (payload, place) { left } else { 0 };
        assert_eq!(frames.unseen(), unseen, "at {at}");
    }
}

/// Where a stream stands behind `bytes` (RFC 6455 5.2), and the length of the payload it is in.
fn place(mut bytes: &[u8]) -> (Option<u64>, Place) {
    loop {
        let [first, second, rest @ ..] = bytes else {
            return (None, if bytes.is_empty() { Place::Between } else { Place::Within(1) });
        };
        let (is_control, is_last) = (first & 0x08 != 0, first & 0x80 != 0);
        if second & 0x80 != 0 || (is_control && (*second > 125 || !is_last)) {
            return (None, Place::Nowhere);
        }
        let extended = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((digits, behind)) = rest.split_at_checked(extended) else {
            return (None, Place::Within((extended - rest.len()) as u64));
        };
        let length = match extended {
            0 => u64::from(*second),
            _ => digits.iter().fold(0, |n, digit| n << 8 | u64::from(*digit)),
        };
        let shortest = match extended {
            2 => 126,
            8 => 65_536,
            _ => 0,
        };
        if length < shortest || length > i64::MAX as u64 {
            return (None, Place::Nowhere);
        }
        if (behind.len() as u64) < length {
            return (Some(length), Place::Within(length - behind.len() as u64));
        }
        if first & 0x0f == 8 {
            return (None, Place::Nowhere);
        }
        bytes = &behind[length as usize..];
    }
}
