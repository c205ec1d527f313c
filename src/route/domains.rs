//! Which hosts are served, where the operator has said so. What is derived from a host (the way back from a login, the
//! domain of a cookie, the links of an app) is then derived from one of these only.

use crate::head::{FieldId, RequestHead};

/// Each request is compared with all of them.
const DOMAINS_MAX: usize = 32;
/// RFC 1035 2.3.4.
const DOMAIN_BYTES_MAX: usize = 253;

/// At least one domain, in lower case, without port and dot at its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domains(Box<[Box<str>]>);

impl Domains {
    /// Names with commas between. `None`: one of them is none, or they are too many.
    pub fn parse(list: &str) -> Option<Self> {
        let parse = |name: &str| is_domain(name).then(|| name.to_ascii_lowercase().into());
        let domains: Box<[Box<str>]> =
            list.split(',').map(|name| parse(name.trim())).collect::<Option<_>>()?;
        (domains.len() <= DOMAINS_MAX).then_some(Self(domains))
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|domain| &**domain)
    }

    /// Is the request for one of these, or for a host right under one? So must be what a trusted peer says the client
    /// asked for: the app is told that name.
    pub fn have(&self, head: &RequestHead<'_>, trusted_peer: bool) -> bool {
        let forwarded =
            head.fields.iter().filter(|f| trusted_peer && f.id == FieldId::XForwardedHost && f.value.len > 0);
        self.have_host(head.authority.of(head.bytes))
            && forwarded
                .flat_map(|field| field.value.of(head.bytes).split(|b| *b == b','))
                .all(|host| self.have_host(host.trim_ascii()))
    }

    fn have_host(&self, authority: &[u8]) -> bool {
        let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
        let host = &authority[..end];
        let host = host.strip_suffix(b".").unwrap_or(host);
        let above = memchr::memchr(b'.', host).map(|dot| &host[dot + 1..]).filter(|_| host[0] != b'.');
        self.iter().any(|domain| {
            let is = |host: &[u8]| host.eq_ignore_ascii_case(domain.as_bytes());
            is(host) || above.is_some_and(is)
        })
    }
}

fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn have(host: &str, fields: &str, trusted_peer: bool) -> bool {
        let domains = Domains::parse("Preview.Test, proxy.example.com").expect("two domains");
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("good").expect("whole");
        domains.have(&head, trusted_peer)
    }

    #[test]
    fn a_domain_and_what_is_right_under_it_are_served_in_any_case_and_at_any_port() {
        for host in [
            "preview.test",
            "PREVIEW.test:8443",
            "3000-sb1.preview.test",
            "3000-sb1.Preview.Test.",
            "3000-sb1.preview.test.:80",
            "any.proxy.example.com",
        ] {
            assert!(have(host, "", false), "{host}");
        }
        for host in [
            "3000-sb1.preview.test.evil.test",
            "3000-sb1.evil-preview.test",
            "3000-sb1.evil.preview.test",
            "preview.test..",
            ".preview.test",
            "test",
            "example.com",
            "xpreview.test",
            "3000-sb1",
            "127.0.0.1",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(!have(host, "", false), "{host}");
        }
    }

    #[test]
    fn what_a_trusted_peer_says_was_asked_for_is_held_to_it_and_from_others_it_means_nothing() {
        for (fields, allowed) in [
            ("X-Forwarded-Host: 3000-sb1.preview.test\r\n", true),
            ("X-Forwarded-Host:\r\n", true),
            ("X-Forwarded-Host: preview.test, proxy.example.com:443\r\n", true),
            ("X-Forwarded-Host: evil.test\r\n", false),
            ("X-Forwarded-Host: preview.test,evil.test\r\n", false),
            ("X-Forwarded-Host: preview.test\r\nX-Forwarded-Host: evil.test\r\n", false),
            ("X-Forwarded-Host: preview.test/../x\r\n", false),
        ] {
            assert_eq!(have("3000-sb1.preview.test", fields, true), allowed, "{fields}");
            assert!(have("3000-sb1.preview.test", fields, false), "{fields}");
        }
        assert!(!have("evil.test", "X-Forwarded-Host: preview.test\r\n", true));
    }
}
