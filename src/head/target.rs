//! Request targets and authorities: byte grammars, and which form of target a request uses (RFC 9112 3.2).

use super::{Method, Reject};
use crate::octets::Octets;
use std::net::Ipv6Addr;

/// A DNS name's length in text (RFC 1035 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// What of a request's target is passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'t> {
    pub path_and_query: &'t [u8],
    /// The query, if any, starts there with `?`.
    pub path_len: usize,
}

/// Decides the target's form and what of it is the path and query.
///
/// `authority` is the checked `Host`. An absolute-form target must name the same authority, or the two would be
/// routed differently by whoever reads the other one; its scheme says nothing about this connection and is dropped.
pub(super) fn read<'t>(target: &'t [u8], method: Method, authority: &[u8]) -> Result<Target<'t>, Reject> {
    let path_end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(path_end);
    if refused_for(path) & (NOWHERE | NOT_IN_PATH) != 0 || refused_for(query) & NOWHERE != 0 {
        return Err(Reject::TargetSyntax);
    }
    let from = |start: usize| Ok(Target { path_and_query: &target[start..], path_len: path_end - start });
    // authority-form is CONNECT's only form and no other method's (RFC 9112 3.2.3); the route refuses the method.
    if method == Method::Connect {
        return if is_authority(target) { from(0) } else { Err(Reject::TargetSyntax) };
    }
    if target.first() == Some(&b'/') || (target == b"*" && method == Method::Options) {
        return from(0);
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|given| given.eq_ignore_ascii_case(scheme)))
        .ok_or(Reject::TargetSyntax)?;
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    if !rest[..end].eq_ignore_ascii_case(authority) {
        return Err(Reject::AuthorityMismatch);
    }
    match rest.get(end) {
        Some(b'/') => from(scheme.len() + end),
        // An empty path means `/`: the scheme has one to point at.
        None => Ok(Target { path_and_query: &target[scheme.len() - 1..scheme.len()], path_len: 1 }),
        // An empty path before a query has no `/?` to point at. Clients write the slash (RFC 9112 3.2.1).
        Some(_) => Err(Reject::TargetSyntax),
    }
}

/// `host [":" port]`: a name or IPv4 of `[A-Za-z0-9._-]`, or an IPv6 address in brackets without a zone; a port of
/// at most 65535. Narrower than RFC 3986's reg-name: what percent-encoding, `@`, `,` or `;` in an authority mean
/// differs between implementations, and no name we serve has them.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let host_end = match bytes.first() {
        Some(b'[') => match memchr::memchr(b']', bytes) {
            Some(close) => close + 1,
            None => return false,
        },
        _ => memchr::memchr(b':', bytes).unwrap_or(bytes.len()),
    };
    let (host, port) = bytes.split_at(host_end);
    let host_ok = match host {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
        }
        name => {
            static OF_NAME: Octets = Octets::alphanumeric_and(b"._-");
            !name.is_empty() && OF_NAME.hold_all(name)
        }
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0, |n, digit| n * 10 + u32::from(digit - b'0')) <= 65535
        }
        _ => false,
    };
    host_ok && port_ok && host.len() <= HOST_BYTES_MAX
}

/// What may stand in a target: all of ASCII that is seen, but for `#`. RFC 3986 has fewer; apps' clients send the others
/// unescaped, no parser splits a target at them, and whatever shows one escapes it. `%` need not be followed by two hex
/// digits, since applications do send stray ones. Refused: controls, space and DEL; bytes from 0x80, whose encoding each hop
/// guesses; `#`, at which some implementations cut a fragment off and others do not (CVE-2023-45539); and before the query
/// `\`, which browsers and Windows take for `/`.
static REFUSED: [u8; 256] = {
    let mut refused = [NOWHERE; 256];
    let mut b = 0x21;
    while b < 0x7f {
        refused[b] = 0;
        b += 1;
    }
    refused[b'#' as usize] = NOWHERE;
    refused[b'\\' as usize] = NOT_IN_PATH;
    refused
};

const NOWHERE: u8 = 1;
const NOT_IN_PATH: u8 = 2;

/// Of all bytes together.
fn refused_for(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |refused, b| refused | REFUSED[usize::from(*b)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_names_or_addresses_with_an_optional_port() {
        for good in
            ["a", "3000-abc.preview.example", "A_b-c.d", "127.0.0.1", "h:1", "h:65535", "[::1]", "[::1]:80"]
        {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        let longest = "a".repeat(253);
        assert!(is_authority(longest.as_bytes()));
        assert!(is_authority(format!("{longest}:65535").as_bytes()));
        let too_long = "a".repeat(254);
        for bad in [
            "",
            ":",
            ":80",
            "h:",
            "h:+1",
            "h:65536",
            "h:000080",
            "h:8a",
            "a:1:2",
            "a,b",
            "a b",
            "u@h",
            "a%2e",
            "a;b",
            "a/b",
            "a?b",
            "a#b",
            "[",
            "[]",
            "[::1",
            "[::1]x",
            "[::1%25lo]",
            "[v1.x]",
            "[1.2.3.4]",
            "::1",
            "a\0",
            "ä",
            &too_long,
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn exactly_the_documented_bytes_may_stand_in_a_target() {
        let documented =
            b"!\"$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";
        for (before, only_in_query) in [("/", &b"\\"[..]), ("/?", b"")] {
            let is_allowed = |byte: &u8| {
                let target = [before.as_bytes(), &[*byte], b"x"].concat();
                read(&target, Method::Get, b"a").is_ok_and(|read| read.path_and_query == target)
            };
            let allowed: Vec<u8> = (0..=255).filter(is_allowed).collect();
            let expected: Vec<u8> =
                documented.iter().copied().filter(|byte| !only_in_query.contains(byte)).collect();
            assert_eq!(allowed, expected, "behind {before}");
        }
    }
}
