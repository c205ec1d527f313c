//! What an app says to browsers about more than itself: taken out of its answers.
//!
//! All sandboxes are siblings under one domain. A cookie for that domain goes to all of them, and clearing cookies
//! clears theirs: browsers keep both by registrable domain. What is about the app's own host passes. Under the
//! toolboxes, whose origin all sandboxes share and the end of logins too, no document may act in the origin's name. Pure.

use super::proofs::is_our_cookie;
use std::ops::Range;

/// The host a browser has asked, as far as it is the app's.
#[derive(Clone, Copy, Debug)]
pub struct Confine<'a> {
    /// With its port, if any.
    pub authority: &'a [u8],
    /// The host is the sandbox's alone, not that of all toolboxes.
    pub own_host: bool,
}

impl Confine<'_> {
    /// Where in the value of a `Set-Cookie` attributes stand that make it a cookie of hosts beside the app's, each with
    /// the `;` before it. Without them it is one of the host alone (RFC 6265 4.1.2.3). Empty for most.
    pub(super) fn wide_domains(&self, set_cookie: &[u8]) -> impl Iterator<Item = Range<usize>> {
        let attributes = memchr::memchr_iter(b';', set_cookie);
        attributes.filter_map(move |start| {
            let end =
                memchr::memchr(b';', &set_cookie[start + 1..]).map_or(set_cookie.len(), |n| start + 1 + n);
            self.is_wide_domain(&set_cookie[start + 1..end]).then_some(start..end)
        })
    }

    fn is_wide_domain(&self, attribute: &[u8]) -> bool {
        let Some(equals) = memchr::memchr(b'=', attribute) else { return false };
        if !attribute[..equals].trim_ascii().eq_ignore_ascii_case(b"domain") {
            return false;
        }
        let mut domain = attribute[equals + 1..].trim_ascii();
        while let [b'.', rest @ ..] | [rest @ .., b'.'] = domain {
            domain = rest;
        }
        let host_end = memchr::memchr(b':', self.authority).unwrap_or(self.authority.len());
        let mut host = &self.authority[..host_end];
        while let [rest @ .., b'.'] = host {
            host = rest;
        }
        let Some(above) = host.len().checked_sub(domain.len()) else { return false };
        // Anything else than the host and what is above it is refused by browsers.
        host[above..].eq_ignore_ascii_case(domain)
            && if above == 0 { !self.own_host } else { domain.is_empty() || host[above - 1] == b'.' }
    }
}

/// The value of a `Set-Cookie` is about a cookie that is ours by name. One without a name (`=name=value`) is sent back
/// as its value alone, which then looks like one of ours.
pub(super) fn sets_our_cookie(set_cookie: &[u8]) -> bool {
    let pair = set_cookie.trim_ascii_start();
    is_our_cookie(pair.strip_prefix(b"=").unwrap_or(pair))
}

/// Appends the value of a `Clear-Site-Data` (W3C) without `"cookies"`, and with `"*"` cut down to what is the origin's
/// own. `false`: nothing is left of it, and nothing was appended.
pub(super) fn append_clear_site_data(value: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for member in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
        let kept = match member {
            member if member.eq_ignore_ascii_case(b"\"cookies\"") => continue,
            b"\"*\"" => b"\"cache\", \"storage\"",
            member => member,
        };
        if out.len() > start {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(kept);
    }
    out.len() > start
}

/// A field about a whole origin, in the answer of one that is a guest there: what a service worker's script may reach
/// (Service Workers 3.4.1), whether the host is asked in clear text at all (RFC 6797), and where browsers report each of
/// its requests to, URL included (Network Error Logging, Reporting API). The last is ours to write.
pub(super) fn speaks_for_origin(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    is(b"service-worker-allowed")
        || is(b"strict-transport-security")
        || is(b"nel")
        || is(b"report-to")
        || is(b"reporting-endpoints")
        || is(b"x-content-type-options")
}

/// What a browser will make of a guest's answer, told by the fields that reach it.
#[derive(Default)]
pub(super) struct Document {
    types: usize,
    /// As far as it goes: with two types browsers decide, and without one.
    inert: bool,
    has_policy: bool,
}

impl Document {
    /// A field that is passed on.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"content-type") {
            self.types += 1;
            self.inert = self.types == 1 && is_inert(value);
        }
        self.has_policy |= name.eq_ignore_ascii_case(b"content-security-policy");
    }

    /// Appends what keeps the answer from acting in the origin's name. As a document it gets an origin of its own and no
    /// script (CSP 3 6.3.4); an app's own policy stays, both hold. What browsers never make a document of that can act
    /// goes without: a policy would only get into the way of their viewers. That they don't guess is what `nosniff` is
    /// for. What a 304 says replaces what was stored with the answer it confirms (RFC 9111 3.2): it is judged as an
    /// answer if it says anything of that, and else leaves what was stored as it is.
    pub(super) fn write_isolation(&self, status: u16, out: &mut Vec<u8>) {
        out.extend_from_slice(b"X-Content-Type-Options: nosniff\r\n");
        let confirms = status == 304 && self.types == 0 && !self.has_policy;
        if !self.inert && !confirms {
            out.extend_from_slice(b"Content-Security-Policy: sandbox\r\n");
        }
    }
}

/// A media type no browser makes a document of that runs or refers to anything.
fn is_inert(content_type: &[u8]) -> bool {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    let media_type = content_type[..end].trim_ascii();
    let is = |known: &[u8]| media_type.eq_ignore_ascii_case(known);
    let starts = |kind: &[u8]| media_type.get(..kind.len()).is_some_and(|s| s.eq_ignore_ascii_case(kind));
    // A list of two is one value with a comma in it.
    let whole = !content_type.contains(&b',');
    whole
        && (is(b"application/json")
            || is(b"application/octet-stream")
            || is(b"text/plain")
            || is(b"text/event-stream")
            || is(b"application/x-ndjson")
            || is(b"application/zip")
            || is(b"application/gzip")
            || is(b"application/x-tar")
            || is(b"application/pdf")
            || (starts(b"image/") && !starts(b"image/svg"))
            || starts(b"audio/")
            || starts(b"video/")
            || starts(b"font/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_browser_makes_a_document_of_is_inert() {
        for inert in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/octet-stream",
            "text/plain;charset=utf-8",
            "text/event-stream",
            "image/png",
            "video/mp4",
        ] {
            assert!(is_inert(inert.as_bytes()), "{inert}");
        }
        for active in [
            "",
            "text/html",
            "text/html; x=application/json",
            "application/xhtml+xml",
            "image/svg+xml",
            "IMAGE/SVG",
            "text/xml",
            "application/xml",
            "application/rss+xml",
            "multipart/x-mixed-replace; boundary=application/json",
            "text/javascript",
            "text/css",
            "application/jsonx",
            "application/json, text/html",
            "text/plain\tx",
            "unknown",
            "*/*",
        ] {
            assert!(!is_inert(active.as_bytes()), "{active}");
        }
    }

    #[test]
    fn what_is_about_the_whole_origin_is_told_in_any_case() {
        for name in
            ["Service-Worker-Allowed", "NEL", "report-to", "Strict-Transport-Security", "Reporting-Endpoints"]
        {
            assert!(speaks_for_origin(name.as_bytes()), "{name}");
        }
        for name in ["Content-Type", "Content-Security-Policy", "X-Frame-Options", "Service-Worker", "X-NEL"]
        {
            assert!(!speaks_for_origin(name.as_bytes()), "{name}");
        }
    }

    fn confined(authority: &str, own_host: bool, set_cookie: &str) -> String {
        let confine = Confine { authority: authority.as_bytes(), own_host };
        let mut left = set_cookie.to_owned();
        let ranges: Vec<_> = confine.wide_domains(set_cookie.as_bytes()).collect();
        ranges.into_iter().rev().for_each(|range| left.replace_range(range, ""));
        left
    }

    #[test]
    fn a_domain_above_the_apps_host_goes_and_everything_else_stays() {
        let host = "3000-a.proxy.example.com:8443";
        for wide in [
            "proxy.example.com",
            ".proxy.example.com",
            "example.com",
            "com",
            ".COM",
            "Proxy.Example.Com.",
            "",
            ".",
        ] {
            for spelling in ["Domain=", "domain =", " DOMAIN= "] {
                let cookie = format!("a=b; Path=/;{spelling}{wide}; HttpOnly");
                assert_eq!(confined(host, true, &cookie), "a=b; Path=/; HttpOnly", "{cookie}");
                assert_eq!(confined(host, true, &format!("a=b;{spelling}{wide}")), "a=b");
            }
        }
        for kept in [
            "a=b",
            "a=b; Domain=3000-a.proxy.example.com",
            "a=b; Domain=.3000-A.proxy.example.com",
            "a=b; Domain=x.3000-a.proxy.example.com",
            "a=b; Domain=ple.com",
            "a=b; Domain=other.com",
            "a=b; Domain",
            "a=b; Path=/; Max-Age=1; SameSite=None; Secure; Partitioned",
            "domain=proxy.example.com",
            "a=Domain=proxy.example.com",
            "",
        ] {
            assert_eq!(confined(host, true, kept), kept);
        }
    }

    #[test]
    fn two_domains_both_go() {
        assert_eq!(confined("3000-a.p.test", true, "a=b; Domain=p.test; Domain=test"), "a=b");
    }

    #[test]
    fn on_the_host_of_all_toolboxes_no_domain_is_an_apps_own() {
        assert_eq!(confined("proxy.test", false, "a=b; Domain=proxy.test"), "a=b");
        assert_eq!(confined("proxy.test.", false, "a=b; Domain=.proxy.test"), "a=b");
        assert_eq!(confined("proxy.test", false, "a=b; Domain=a.proxy.test"), "a=b; Domain=a.proxy.test");
    }

    #[test]
    fn our_names_are_ours_with_and_without_a_name() {
        for ours in [
            "daytona-sandbox-auth-a=x; Path=/",
            " Daytona-Sandbox-Auth-a = x",
            "daytona-sandbox-auth-a",
            "=daytona-sandbox-auth-a=x",
            " =pkce_verifier=x",
            "=daytona-sandbox-auth-a",
        ] {
            assert!(sets_our_cookie(ours.as_bytes()), "{ours}");
        }
        for apps in ["a=daytona-sandbox-auth-a=x", "my-daytona-sandbox-auth-a=x", "==daytona", "=", ""] {
            assert!(!sets_our_cookie(apps.as_bytes()), "{apps}");
        }
    }

    #[test]
    fn clearing_is_cut_down_to_the_origins_own() {
        for (value, left) in [
            ("\"cache\", \"cookies\", \"storage\"", Some("\"cache\", \"storage\"")),
            ("\"cookies\"", None),
            ("\"Cookies\"", None),
            ("\"*\"", Some("\"cache\", \"storage\"")),
            ("\"*\",\"cookies\"", Some("\"cache\", \"storage\"")),
            ("\"cache\"", Some("\"cache\"")),
        ] {
            let mut out = b"x".to_vec();
            let any = append_clear_site_data(value.as_bytes(), &mut out);
            assert_eq!(
                any.then(|| String::from_utf8_lossy(&out[1..]).into_owned()).as_deref(),
                left,
                "{value}"
            );
        }
    }
}
