//! Where bytes come in pieces. A short input is cut everywhere; of a long one some places are taken, others for other inputs.

const EVERYWHERE_BELOW: usize = 128;
const PLACES: usize = 40;

/// Rising, without the end itself.
pub fn of(bytes: &[u8]) -> Vec<usize> {
    if bytes.len() < EVERYWHERE_BELOW {
        return (0..bytes.len()).collect();
    }
    // FNV-1a, then xorshift: the same input is always cut the same way.
    let mut state = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    }) | 1;
    let mut places: Vec<usize> = (0..PLACES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bytes.len() as u64) as usize
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Reads longer and longer prefixes, as a connection does: the first verdict must be that on the whole, it must come where
/// the message ends and not before, and more bytes behind it must not change it. What is refused may be refused for
/// another reason when less of it is there.
pub fn verdict_does_not_depend_on_them<'b, H, E: std::fmt::Debug>(
    bytes: &'b [u8],
    parse: impl Fn(&'b [u8]) -> Result<Option<H>, E>,
    same: impl Fn(&H, &H) -> bool,
    len: impl Fn(&H) -> usize,
) {
    let whole = parse(bytes);
    let mut decided = false;
    let mut ends = of(bytes);
    if let Ok(Some(head)) = &whole {
        ends.extend([len(head) - 1, len(head)]);
        ends.sort_unstable();
    }
    for end in ends {
        match (parse(&bytes[..end]), &whole) {
            (Ok(None), _) => assert!(!decided, "waits again at {end}"),
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert!(end >= len(whole), "ends before its end, at {end}");
                assert!(same(&part, whole), "another message at {end}");
                decided = true;
            }
            (Err(_), Err(_)) => decided = true,
            (part, whole) => panic!(
                "cut at {end}: {:?}, whole: {:?}",
                part.map(|head| head.is_some()),
                whole.as_ref().map(|head| head.is_some())
            ),
        }
        if let Ok(Some(whole)) = &whole {
            assert!(decided || end < len(whole), "whole and waits, at {end}");
        }
    }
}
