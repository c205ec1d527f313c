//! Cookies of this gate: found in a request, signed and verified, written into a response.
//!
//! The names, the signature and the attributes are v0.190's, so that its sessions hold here and ours hold there while
//! both serve the same hosts. Pure: knows no socket, no clock (`now` is given) and no configuration.

mod set_cookie;
mod signature;

pub use set_cookie::{SameSite, SetCookie, domain_of_host, domain_of_siblings};
pub use signature::{CookieKeys, MADE_AHEAD_MAX, Opened};

use smallvec::SmallVec;
use std::time::Duration;

/// Start of the name of the cookie that says "whoever shows this may enter"; the host's label follows.
pub const AUTH_PREFIX: &str = "daytona-sandbox-auth-";

/// How long such a cookie is good, as v0.190 has it: from its signed time of making, whatever the browser was told.
pub const AUTH_MAX_AGE: Duration = Duration::from_secs(3600);

/// How many cookies of one name are looked at. A page of a sibling sandbox can set some for our path, and the first of
/// them must not hide the good one; each costs a check of its signature under each key (about a microsecond).
pub const SAME_NAMED_MAX: usize = 8;

/// Values of the cookies called `name` (case matters, RFC 6265 5.4) in one value of a `Cookie` field, in their order,
/// without the quotes some clients put around them.
pub fn named<'b>(field: &'b [u8], name: &[u8]) -> impl Iterator<Item = &'b [u8]> {
    field.split(|&b| b == b';').filter_map(move |crumb| {
        let value = crumb.trim_ascii_start().strip_prefix(name)?.trim_ascii_start().strip_prefix(b"=")?;
        Some(unquoted(value.trim_ascii()))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

/// The value as it was before it was escaped for `Set-Cookie` (`+` is a space). `None` for a broken escape.
pub fn unescape(value: &[u8]) -> Option<SmallVec<[u8; 192]>> {
    let mut out = SmallVec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = |b: Option<&u8>| char::from(*b?).to_digit(16);
                let (high, low) = (hex(rest.first())?, hex(rest.get(1))?);
                rest = &rest[2..];
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    Some(out)
}

/// As v0.190 escapes a value: everything but unreserved characters (RFC 3986 2.3), a space as `+`.
pub fn escape(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len() + 8);
    for &byte in value {
        match byte {
            b' ' => out.push('+'),
            b if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') => {
                out.push(char::from(b));
            }
            b => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(char::from(HEX[usize::from(b >> 4)]));
                out.push(char::from(HEX[usize::from(b & 15)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(field: &str, name: &str) -> Vec<String> {
        named(field.as_bytes(), name.as_bytes()).map(|v| String::from_utf8_lossy(v).into_owned()).collect()
    }

    #[test]
    fn every_cookie_of_the_name_is_found_and_no_other() {
        assert_eq!(values("a=1; b=2;a=3 ;\ta = 4; a=; a=\"5\"", "a"), ["1", "3", "4", "", "5"]);
        assert!(values("A=1; aa=2; xa=3; a; =a=4; b=a=5", "a").is_empty());
        assert!(values("", "a").is_empty());
        assert_eq!(values("a=x=y", "a"), ["x=y"], "only the first = ends a name");
    }

    #[test]
    fn escapes_are_those_of_a_query() {
        assert_eq!(escape(b"aZ9-_.~ =;%\xc3\xbc"), "aZ9-_.~+%3D%3B%25%C3%BC");
        assert_eq!(unescape(b"a%3db%2B+%C3%BC").as_deref(), Some(&b"a=b+ \xc3\xbc"[..]));
        for broken in [&b"%"[..], b"%4", b"%zz", b"a%4"] {
            assert_eq!(unescape(broken), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let back = unescape(escape(&value).as_bytes());
            prop_assert_eq!(back.as_deref(), Some(&value[..]));
        }
    }
}
