//! Signed cookies, sealed logins, X-Forwarded-For: what lets somebody in, or says who it is.
//!
//! Up to the first LF stands a name, behind it a value.

use super::message::{members, percent_decoded, split};
use sandgate::cookie::{self, CookieKeys};
use sandgate::head::RequestHead;
use sandgate::limits::Limits;
use sandgate::login::flow::{Flow, Ticket};
use sandgate::login::sealed::{Purpose, Seal};
use sandgate::readers::visitor;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

const NOW: u64 = 1_800_000_000;
static KEYS: LazyLock<CookieKeys> = LazyLock::new(|| CookieKeys::new("a key", ["an older key"]));
static SEAL: LazyLock<Seal> = LazyLock::new(|| Seal::new(["a secret"]));

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let end = input.iter().position(|b| *b == b'\n').unwrap_or(input.len());
    let (name, value) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    what_was_not_signed_opens_nothing(name, value);
    what_was_not_sealed_opens_nothing(value);
    cookies_are_found_by_their_name(name, value);
    a_visitor_is_who_trusted_peers_say(value);
}

fn what_was_not_signed_opens_nothing(name: &[u8], value: &[u8]) {
    let name = String::from_utf8_lossy(name);
    let day = Duration::from_secs(86_400);
    assert_eq!(KEYS.open(&name, value, NOW, day), None);
    let sealed = KEYS.seal(&name, value, NOW);
    let opened = KEYS.open(&name, sealed.as_bytes(), NOW, day);
    if let Some(opened) = &opened {
        assert_eq!((&opened.value[..], opened.made_at), (value, NOW));
    }
    assert_eq!(opened.is_some(), sealed.len() <= 4096);
    assert_eq!(KEYS.open(&name, sealed.as_bytes(), NOW + 86_401, day), None, "too old");
    assert_eq!(KEYS.open(&name, sealed.as_bytes(), NOW - 301, day), None, "of the future");
    assert_eq!(KEYS.open(&format!("{name}x"), sealed.as_bytes(), NOW, day), None, "of another name");
    // The input chooses a place and a change.
    if let [at, change, ..] = value {
        let mut forged = sealed.clone().into_bytes();
        let at = usize::from(*at) * forged.len() / 256;
        forged[at] ^= change;
        assert!(*change == 0 || KEYS.open(&name, &forged, NOW, day).is_none(), "forged at {at} by {change}");
    }
    let escaped = cookie::escape(value);
    assert!(escaped.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~+%".contains(&b)));
    assert_eq!(cookie::unescape(escaped.as_bytes()).as_deref(), Some(value));
    if let Some(unescaped) = cookie::unescape(value) {
        let spaced: Vec<u8> = value.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
        assert_eq!(&unescaped[..], percent_decoded(&spaced));
    }
}

fn what_was_not_sealed_opens_nothing(value: &[u8]) {
    let text = String::from_utf8_lossy(value);
    assert_eq!(SEAL.open(Purpose::State, &text), None);
    assert!(Flow::open(&SEAL, &text, "preview.test", NOW).is_err());
    // Sealed by us, but nothing that was ever a login.
    let sealed = SEAL.seal(Purpose::State, value).expect("random bytes");
    assert_eq!(SEAL.open(Purpose::Ticket, &sealed), None);
    if let Ok(flow) = Flow::open(&SEAL, &sealed, "preview.test", NOW) {
        assert!(flow.expires > NOW && flow.host.ends_with(".preview.test"));
    }
    let ticket = SEAL.seal(Purpose::Ticket, value).expect("random bytes");
    if let Ok(ticket) = Ticket::open(&SEAL, &ticket, "3000-sb1.preview.test", NOW) {
        assert!(ticket.expires > NOW && ticket.host == "3000-sb1.preview.test");
    }
}

fn cookies_are_found_by_their_name(name: &[u8], field: &[u8]) {
    // The gate's own names are tokens.
    if name.is_empty() || !name.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b)) {
        return;
    }
    let expected: Vec<&[u8]> = split(field, b";")
        .into_iter()
        .filter_map(|crumb| {
            let equals = crumb.iter().position(|b| *b == b'=')?;
            (crumb[..equals].trim_ascii() == name).then(|| crumb[equals + 1..].trim_ascii())
        })
        .map(|value| {
            if value.len() > 1 && value.starts_with(b"\"") && value.ends_with(b"\"") {
                &value[1..value.len() - 1]
            } else {
                value
            }
        })
        .collect();
    assert_eq!(cookie::named(field, name).collect::<Vec<_>>(), expected);
}

/// Read from the right, in however many fields it stands.
fn a_visitor_is_who_trusted_peers_say(value: &[u8]) {
    let trusted = ["10.0.0.0/8".parse().expect("a network"), "2001:db8::/32".parse().expect("a network")];
    let peer = IpAddr::from([10, 0, 0, 1]);
    let of = |fields: &[&[u8]]| {
        let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
        fields
            .iter()
            .for_each(|value| head.extend_from_slice(&[b"X-Forwarded-For: ", *value, b"\r\n"].concat()));
        head.extend_from_slice(b"\r\n");
        let head = RequestHead::parse(&head, &Limits::default()).ok()??;
        Some(visitor(&head, peer, &trusted))
    };
    if value.iter().any(|b| matches!(b, b'\r' | b'\n')) {
        return;
    }
    let Some(visitor) = of(&[value]) else { return };
    let mut expected = peer;
    for part in split(value, b",").into_iter().rev() {
        let Some(ip) = address(part) else { break };
        expected = ip;
        if !trusted.iter().any(|net: &ipnet::IpNet| net.contains(&expected)) {
            break;
        }
    }
    assert_eq!(visitor, expected);
    let parts = split(value, b",");
    if parts.len() < 64 {
        assert_eq!(of(&parts), Some(visitor), "in as many fields");
    }
    assert!(visitor == peer || members(value).iter().any(|part| address(part) == Some(visitor)));
}

fn address(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(ip.to_canonical())
}
