//! What browsers make of a `Set-Cookie` (RFC 6265bis 5.6), and what they send back of it.

use super::message::trim;
use super::proofs::is_our_cookie;
use sandgate::cookie;

struct Cookie<'b> {
    name: &'b [u8],
    value: &'b [u8],
    attributes: Vec<(&'b [u8], &'b [u8])>,
}

impl<'b> Cookie<'b> {
    fn stored(set_cookie: &'b [u8]) -> Self {
        let mut parts = set_cookie.split(|b| *b == b';');
        let pair = parts.next().unwrap_or_default();
        // One without `=` has no name.
        let (name, value) = at_equals(pair).unwrap_or((b"", trim(pair)));
        Self {
            name,
            value,
            attributes: parts.map(|part| at_equals(part).unwrap_or((trim(part), b""))).collect(),
        }
    }

    /// The last one counts.
    fn attribute(&self, name: &str) -> Option<&'b [u8]> {
        self.attributes
            .iter()
            .rfind(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| *value)
    }

    fn sent_back(&self) -> Vec<u8> {
        if self.name.is_empty() { self.value.to_vec() } else { [self.name, b"=", self.value].concat() }
    }
}

fn at_equals(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = text.iter().position(|b| *b == b'=')?;
    Some((trim(&text[..equals]), trim(&text[equals + 1..])))
}

/// What comes back of it is read as none of the gate's own.
pub fn holds_no_cookie_of_ours(set_cookie: &[u8]) {
    let back = Cookie::stored(set_cookie).sent_back();
    let name = back.split(|b| *b == b'=').next().unwrap_or_default();
    assert!(!is_our_cookie(name), "{}", set_cookie.escape_ascii());
    for ours in [
        "daytona-sandbox-auth-sb1",
        "pkce_verifier",
        "__Host-daytona-sandbox-auth",
        "daytona-preview-page-accepted",
    ] {
        assert_eq!(cookie::named(&back, ours.as_bytes()).count(), 0, "{}", set_cookie.escape_ascii());
    }
}

/// No other host than the one asked gets it, except those below where the host is the app's alone.
pub fn is_of_one_host(set_cookie: &[u8], authority: &str, own_host: bool) {
    let host = authority.split(':').next().unwrap_or_default();
    let Some(domain) = Cookie::stored(set_cookie).attribute("domain") else { return };
    let domain = String::from_utf8_lossy(domain).to_ascii_lowercase();
    // Browsers drop one dot in front, and refuse what the host does not lie in.
    let domain = domain.strip_prefix('.').unwrap_or(&domain);
    let covers = !domain.is_empty()
        && (host == domain || host.strip_suffix(domain).is_some_and(|above| above.ends_with('.')));
    assert!(!covers || (own_host && host == domain), "{}", set_cookie.escape_ascii());
}

pub fn path(set_cookie: &[u8]) -> Option<String> {
    Cookie::stored(set_cookie).attribute("path").map(|path| String::from_utf8_lossy(path).into_owned())
}
