//! `Set-Cookie` values as we write them (RFC 6265bis 4.1), attributes in the order of Go's net/http.

use std::fmt::Write as _;
use std::time::Duration;

/// Whom browsers send it for besides the site itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SameSite {
    /// Top-level navigation from other sites.
    Lax,
    /// Everybody, in a jar of its own per embedding site (`Partitioned`): what a page in another site's frame needs.
    /// Browsers take it over https only.
    NonePartitioned,
}

impl SameSite {
    /// For the answer to a request with these `Sec-Fetch-Dest` and `Sec-Fetch-Site`: a cookie for a page in a foreign
    /// frame is of use only if that frame sends it back.
    pub fn of_request(dest: Option<&[u8]>, site: Option<&[u8]>, secure: bool) -> Self {
        let framed = matches!(dest, Some(b"iframe" | b"frame")) && site == Some(b"cross-site");
        if framed && secure { Self::NonePartitioned } else { Self::Lax }
    }
}

/// One cookie of ours. Always `Path=/` and `HttpOnly`.
#[derive(Clone, Copy, Debug)]
pub struct SetCookie<'a> {
    pub name: &'a str,
    /// Escaped.
    pub value: &'a str,
    /// `None`: the host alone.
    pub domain: Option<&'a str>,
    /// Zero deletes it.
    pub max_age: Duration,
    /// Clients come over https.
    pub secure: bool,
    pub same_site: SameSite,
}

impl SetCookie<'_> {
    /// The field's value.
    pub fn text(&self) -> String {
        let Self { name, value, domain, max_age, secure, same_site } = self;
        debug_assert!(*secure || *same_site == SameSite::Lax, "browsers drop SameSite=None without Secure");
        let mut text = format!("{name}={value}; Path=/");
        // Writing to a String cannot fail.
        if let Some(domain) = domain {
            let _ = write!(text, "; Domain={domain}");
        }
        let _ = write!(text, "; Max-Age={}; HttpOnly", max_age.as_secs());
        if *secure {
            text.push_str("; Secure");
        }
        text.push_str(match same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::NonePartitioned => "; SameSite=None; Partitioned",
        });
        text
    }
}

/// The `Domain` that covers all previews beside this one: the host without its first label, as v0.190 has it for the
/// cookie of a login. `None` when nothing is left, and for addresses: they have no domain.
pub fn domain_of_siblings(authority: &str) -> Option<&str> {
    let (_, base) = domain_of_host(authority)?.split_once('.')?;
    (!base.is_empty()).then_some(base)
}

/// The `Domain` that is this host (and hosts below it): what v0.190 gives the cookie of a signed link.
pub fn domain_of_host(authority: &str) -> Option<&str> {
    let end = authority.rfind(':').filter(|_| !authority.ends_with(']')).unwrap_or(authority.len());
    let host = authority[..end].trim_end_matches('.');
    let is_address = host.starts_with('[') || host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (!host.is_empty() && !is_address).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_stand_as_v0190_writes_them_with_secure_and_same_site_behind() {
        let cookie = SetCookie {
            name: "daytona-sandbox-auth-a",
            value: "v%3D",
            domain: Some("proxy.test"),
            max_age: Duration::from_secs(3600),
            secure: false,
            same_site: SameSite::Lax,
        };
        assert_eq!(
            cookie.text(),
            "daytona-sandbox-auth-a=v%3D; Path=/; Domain=proxy.test; Max-Age=3600; HttpOnly; SameSite=Lax"
        );
        let same_site = SameSite::of_request(Some(b"iframe"), Some(b"cross-site"), true);
        let framed = SetCookie { secure: true, domain: None, same_site, ..cookie };
        assert_eq!(
            framed.text(),
            "daytona-sandbox-auth-a=v%3D; Path=/; Max-Age=3600; HttpOnly; Secure; SameSite=None; Partitioned"
        );
    }

    #[test]
    fn only_a_foreign_frame_over_https_gets_a_cookie_for_foreign_frames() {
        for (dest, site, secure) in [
            (Some(&b"document"[..]), Some(&b"cross-site"[..]), true),
            (Some(b"iframe"), Some(b"same-site"), true),
            (Some(b"iframe"), Some(b"cross-site"), false),
            (None, None, true),
        ] {
            assert_eq!(SameSite::of_request(dest, site, secure), SameSite::Lax);
        }
    }

    #[test]
    fn domains_are_hosts_without_port_and_addresses_have_none() {
        for (authority, host, siblings) in [
            ("3000-a.proxy.test:4000", Some("3000-a.proxy.test"), Some("proxy.test")),
            ("3000-a.localhost", Some("3000-a.localhost"), Some("localhost")),
            ("3000-a", Some("3000-a"), None),
            ("3000-a.proxy.test.", Some("3000-a.proxy.test"), Some("proxy.test")),
            ("127.0.0.1:80", None, None),
            ("[::1]:80", None, None),
            ("[::1]", None, None),
        ] {
            assert_eq!((domain_of_host(authority), domain_of_siblings(authority)), (host, siblings));
        }
    }
}
