//! Who made a browser send a request: may a session cookie count for it?
//!
//! Browsers add cookies on their own, whichever page asks. All sandboxes are siblings under one domain, so neither
//! `SameSite` nor the cookie's domain keeps the page of one from acting on another in its visitor's name: `fetch` to
//! its toolbox, a WebSocket to its terminal. What tells is who the browser says the initiator is: `Origin` (RFC 6454
//! 7.3) and `Sec-Fetch-Site` (Fetch Metadata), neither of which a page can forge. A cookie counts for the sandbox's
//! own pages, for origins the operator trusts, and for opening a page in a tab; else the request is treated as having
//! none. In a frame a page is shown and clicked on inside another one, whose visitor may not know (clickjacking, RFC 9700
//! 4.16): there the cookie counts for those that count anyway. Proofs that are no cookies are never sent by themselves
//! and count from anywhere. Pure.

use crate::head::{Field, FieldId, Method, RequestHead};
use crate::ids::SandboxId;
use crate::route;
use std::borrow::Cow;

/// Scheme, host and port of a page (RFC 6454), as browsers write it: lower case, default port left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin(Box<str>);

impl Origin {
    /// `None` for what is no http(s) origin, `null` among it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        parts(text.as_bytes())?;
        Some(Self(text.to_ascii_lowercase().into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is asked for, as the browser sees it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Clients come over https.
    pub https: bool,
    pub sandbox: &'a SandboxId,
    /// The origin is the sandbox's alone (a preview host), not that of all toolboxes.
    pub own_origin: bool,
    pub trusted: &'a [Origin],
}

/// Whether cookies of this request are its visitor's will. `false`: treat it as having none.
pub fn may_use_cookies(head: &RequestHead<'_>, place: &Place<'_>) -> bool {
    let reads = matches!(head.method, Method::Get | Method::Head) && !head.websocket;
    let site = one(head, FieldId::SecFetchSite);
    match one(head, FieldId::Origin) {
        One::Is(origin) => is_welcome(origin, head, place) || (place.own_origin && site.is(b"same-origin")),
        One::Several => false,
        One::None => match site {
            One::Several => false,
            One::Is(b"same-origin") => place.own_origin,
            // Typed, or from a bookmark.
            One::Is(b"none") => reads,
            One::Is(_) => {
                // A link from anywhere opens a page in a tab; what it holds stays out of the linking page's reach. Under
                // the toolboxes' shared origin it would not: there any sandbox's page may hold the window.
                (place.own_origin && reads && opens_a_tab(head)) || comes_from_welcome_page(head, place)
            }
            // Browsers name the initiator of whatever changes something, opens a WebSocket or reads what it fetched
            // across origins. What is left is no browser's, or opens or embeds something the page cannot read; whether
            // it may be framed is told with the answer, see `frame_ancestors`.
            One::None => reads && (place.own_origin || browsers_send_metadata(head, place)),
        },
    }
}

/// A field that must not stand there twice: two values would let two readers see two initiators.
#[derive(Clone, Copy)]
enum One<'b> {
    None,
    Is(&'b [u8]),
    Several,
}

impl One<'_> {
    fn is(self, text: &[u8]) -> bool {
        matches!(self, Self::Is(value) if value == text)
    }
}

fn one<'b>(head: &RequestHead<'b>, id: FieldId) -> One<'b> {
    let value = |field: &Field| field.value.of(head.bytes);
    let mut values = head.fields.iter().filter(|f| f.id == id).map(value);
    match (values.next(), values.next()) {
        (None, _) => One::None,
        (Some(value), None) => One::Is(value),
        (Some(_), Some(_)) => One::Several,
    }
}

fn opens_a_tab(head: &RequestHead<'_>) -> bool {
    one(head, FieldId::SecFetchMode).is(b"navigate") && one(head, FieldId::SecFetchDest).is(b"document")
}

/// What a page on another port of the same sandbox loads or frames has no `Origin`; its `Referer` says as much. A page
/// can leave that out, not invent one.
fn comes_from_welcome_page(head: &RequestHead<'_>, place: &Place<'_>) -> bool {
    welcome_referer(head, place).is_some()
}

/// The origin of the page that refers, if it is welcome.
fn welcome_referer<'b>(head: &RequestHead<'b>, place: &Place<'_>) -> Option<&'b [u8]> {
    let One::Is(referer) = one(head, FieldId::Referer) else { return None };
    let authority = memchr::memmem::find(referer, b"://").map_or(referer.len(), |at| at + 3);
    let end = memchr::memchr(b'/', &referer[authority..]).map_or(referer.len(), |at| authority + at);
    let origin = &referer[..end];
    is_welcome(origin, head, place).then_some(origin)
}

/// Who may frame what a cookie opened: the sources of `frame-ancestors` (CSP 3 6.4.2). Also where the browser has said
/// who frames it and that has been decided: a copy of the answer may be framed by somebody else later, out of a cache or
/// by the app's own service worker, and the page that holds a frame may itself be framed.
pub fn frame_ancestors(head: &RequestHead<'_>, place: &Place<'_>) -> Cow<'static, str> {
    // Both are checked to be scheme, host and port: nothing in them ends a source or a policy.
    let referer = welcome_referer(head, place).and_then(|origin| std::str::from_utf8(origin).ok());
    let more = place.trusted.iter().map(Origin::as_str).chain(referer);
    more.fold(Cow::Borrowed("'self'"), |sources, source| Cow::Owned(format!("{sources} {source}")))
}

/// One the operator trusts, or a page of the same sandbox: the same label under the same domain and port, whatever
/// its own port label. Another domain with the label in front is anybody's.
pub fn is_welcome(origin: &[u8], head: &RequestHead<'_>, place: &Place<'_>) -> bool {
    if place.trusted.iter().any(|trusted| origin.eq_ignore_ascii_case(trusted.as_str().as_bytes())) {
        return true;
    }
    let Some((https, from)) = parts(origin) else { return false };
    // A page that came in clear text may have been written by anyone on the way.
    if place.https && !https {
        return false;
    }
    let Ok(Some((_, label))) = route::preview_host(from) else { return false };
    let to = head.authority.of(head.bytes);
    let domain = if place.own_origin { behind_first_label(to) } else { Some(to) };
    label == *place.sandbox
        && behind_first_label(from).zip(domain).is_some_and(|(from, to)| from.eq_ignore_ascii_case(to))
}

/// A page of some sandbox under the same domain: what browsers take for the same site.
pub fn is_sibling(origin: &[u8], head: &RequestHead<'_>) -> bool {
    let is_preview = |authority| matches!(route::preview_host(authority), Ok(Some(_)));
    let to = head.authority.of(head.bytes);
    let domain = if is_preview(to) { behind_first_label(to) } else { Some(to) };
    parts(origin).filter(|(_, from)| is_preview(from)).is_some_and(|(_, from)| {
        behind_first_label(from).zip(domain).is_some_and(|(from, to)| from.eq_ignore_ascii_case(to))
    })
}

fn behind_first_label(authority: &[u8]) -> Option<&[u8]> {
    memchr::memchr(b'.', authority).map(|dot| &authority[dot + 1..])
}

/// Is it https, and the authority. `None` for anything with more to it, like a path.
fn parts(origin: &[u8]) -> Option<(bool, &[u8])> {
    let (https, authority) = match origin.split_at_checked(8) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"https://") => (true, rest),
        _ => {
            let (scheme, rest) = origin.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"http://").then_some((false, rest))?
        }
    };
    let is_host = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
    (!authority.is_empty() && authority.iter().all(is_host)).then_some((https, authority))
}

/// Browsers leave Fetch Metadata out towards hosts they cannot trust: plain http, but for the machine itself.
fn browsers_send_metadata(head: &RequestHead<'_>, place: &Place<'_>) -> bool {
    let authority = head.authority.of(head.bytes);
    let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
    let host = authority[..end].to_ascii_lowercase();
    place.https || host == b"localhost" || host.ends_with(b".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    const A: &str = "3000-a.proxy.test";
    const TOOLBOXES: &str = "proxy.test";

    fn asks(https: bool, host: &str, method: &str, fields: &[(&str, &str)]) -> bool {
        let mut text = format!("{method} /toolbox/a/x HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default());
        let head = head.expect("good").expect("whole");
        let sandbox = SandboxId::parse(b"a").expect("an id");
        let trusted = [Origin::parse(b"https://app.test").expect("an origin")];
        let own_origin = host.contains('-');
        may_use_cookies(&head, &Place { https, sandbox: &sandbox, own_origin, trusted: &trusted })
    }

    const WS: [(&str, &str); 2] = [("Upgrade", "websocket"), ("Connection", "Upgrade")];

    /// Every way a page can make a browser send something that changes, listens or is read by the page.
    fn acts(origin: &str) -> Vec<bool> {
        let site = ("Sec-Fetch-Site", "same-site");
        let origin = ("Origin", origin);
        vec![
            asks(true, A, "POST", &[origin, site, ("Sec-Fetch-Mode", "cors")]),
            asks(true, A, "GET", &[origin, site, ("Sec-Fetch-Mode", "cors")]),
            asks(true, A, "DELETE", &[origin]),
            asks(
                true,
                A,
                "POST",
                &[origin, site, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
            ),
            asks(true, A, "GET", &[origin, site, WS[0], WS[1]]),
            asks(true, A, "GET", &[origin, WS[0], WS[1]]),
            asks(true, TOOLBOXES, "POST", &[origin, site]),
            asks(true, TOOLBOXES, "GET", &[origin, WS[0], WS[1]]),
        ]
    }

    #[test]
    fn pages_of_the_sandbox_and_trusted_ones_act_with_the_cookie_and_no_others_do() {
        for own in ["https://3000-a.proxy.test", "https://8080-a.proxy.test", "https://22222-A.PROXY.test"] {
            assert_eq!(acts(own), [true; 8], "{own}");
        }
        assert_eq!(acts("https://app.test"), [true; 8]);
        for foreign in [
            "https://3000-b.proxy.test",
            "https://3000-a.evil.test",
            "https://3000-a.proxy.test.evil.test",
            "https://3000-a.proxy.test:8443",
            "https://3000-a.b.proxy.test",
            "https://3000-aa.proxy.test",
            "https://03000-a.proxy.test",
            "https://proxy.test",
            "https://app.test:444",
            "http://app.test",
            "http://3000-a.proxy.test",
            "https://a.proxy.test",
            "https://3000-a.proxy.test/",
            "https://3000-b.proxy.test/https://3000-a.proxy.test",
            "null",
            "",
        ] {
            assert_eq!(acts(foreign), [false; 8], "{foreign}");
        }
    }

    #[test]
    fn a_link_from_anywhere_opens_a_page_in_a_tab_and_nothing_else() {
        for site in ["cross-site", "same-site"] {
            let nav =
                |dest| [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", dest)];
            assert!(asks(true, A, "GET", &nav("document")));
            assert!(!asks(true, A, "POST", &nav("document")), "a form");
            assert!(!asks(true, TOOLBOXES, "GET", &nav("document")), "all toolboxes share an origin");
            for dest in FRAMES.iter().chain(&["image", "script", "empty", "worker"]) {
                assert!(!asks(true, A, "GET", &nav(dest)), "{dest}");
            }
            let mode =
                |mode| [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", "document")];
            for wrong in ["no-cors", "cors", "same-origin", "websocket"] {
                assert!(!asks(true, A, "GET", &mode(wrong)), "{wrong}");
            }
        }
    }

    const FRAMES: [&str; 5] = ["iframe", "frame", "embed", "object", "fencedframe"];

    #[test]
    fn a_frame_counts_by_the_page_that_holds_it() {
        for dest in FRAMES {
            let framed = |site, referer| {
                let nav =
                    [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", dest)];
                asks(true, A, "GET", &[&nav[..], &[("Referer", referer)]].concat())
            };
            assert!(framed("same-origin", "https://3000-a.proxy.test/"));
            assert!(framed("same-site", "https://8080-a.proxy.test/"));
            assert!(framed("cross-site", "https://app.test/"));
            for stranger in ["https://3000-b.proxy.test/", "https://proxy.test/", "https://evil.test/", ""] {
                assert!(!framed("same-site", stranger) && !framed("cross-site", stranger), "{stranger}");
            }
        }
    }

    #[test]
    fn the_answer_says_who_may_frame_it() {
        let may_frame = |fields: &[(&str, &str)]| {
            let mut text = format!("GET / HTTP/1.1\r\nHost: {A}\r\n");
            fields.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
            text.push_str("\r\n");
            let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("good").expect("whole");
            let sandbox = SandboxId::parse(b"a").expect("an id");
            let trusted = [Origin::parse(b"https://app.test").expect("an origin")];
            let place = Place { https: true, sandbox: &sandbox, own_origin: true, trusted: &trusted };
            frame_ancestors(&head, &place)
        };
        assert_eq!(may_frame(&[]), "'self' https://app.test");
        let own = may_frame(&[("Referer", "https://8080-a.proxy.test/x;y")]);
        assert_eq!(own, "'self' https://app.test https://8080-a.proxy.test");
        for foreign in ["https://3000-b.proxy.test/", "https://8080-a.proxy.test;*/", "*"] {
            let said = may_frame(&[("Referer", foreign)]);
            assert_eq!(said, "'self' https://app.test", "{foreign}");
        }
        assert_eq!(may_frame(&[("Sec-Fetch-Site", "none")]), "'self' https://app.test", "a copy is kept");
    }

    #[test]
    fn subresources_count_by_the_page_that_holds_them() {
        let image = |site, referer| {
            let fields = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "no-cors"), ("Referer", referer)];
            asks(true, A, "GET", &fields)
        };
        assert!(image("same-origin", "https://evil.test/"));
        assert!(image("same-site", "https://8080-a.proxy.test/page?x=https://b/"));
        assert!(image("cross-site", "https://app.test/"));
        assert!(!image("same-site", "https://3000-b.proxy.test/"));
        assert!(!image("same-site", "https://3000-b.proxy.test/?https://3000-a.proxy.test/"));
        assert!(!image("cross-site", "3000-a.proxy.test"));
        assert!(!image("cross-site", ""));
    }

    #[test]
    fn the_shared_origin_of_toolboxes_vouches_for_nobody() {
        let site = |site| [("Sec-Fetch-Site", site)];
        assert!(asks(true, A, "POST", &site("same-origin")));
        for method in ["GET", "POST"] {
            assert!(!asks(true, TOOLBOXES, method, &site("same-origin")));
            let origin = ("Origin", "https://proxy.test");
            assert!(!asks(true, TOOLBOXES, method, &[origin, ("Sec-Fetch-Site", "same-origin")]));
        }
        assert!(asks(true, TOOLBOXES, "GET", &site("none")));
    }

    #[test]
    fn without_a_word_about_the_initiator_only_reading_counts() {
        for host in [A, TOOLBOXES] {
            for method in ["GET", "HEAD"] {
                assert!(asks(true, host, method, &[]));
            }
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"] {
                assert!(!asks(true, host, method, &[]));
            }
            assert!(!asks(true, host, "GET", &WS), "browsers name the origin of a WebSocket");
        }
        assert!(asks(false, A, "GET", &[]));
        assert!(!asks(false, TOOLBOXES, "GET", &[]), "over plain http browsers say nothing");
        assert!(asks(false, "proxy.localhost:4000", "GET", &[]), "but on the machine itself they do");
    }

    #[test]
    fn two_initiators_are_none() {
        let own = ("Origin", "https://3000-a.proxy.test");
        assert!(!asks(true, A, "GET", &[own, ("Origin", "https://3000-a.proxy.test")]));
        assert!(!asks(true, A, "GET", &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "same-origin")]));
    }

    #[test]
    fn a_secure_page_may_act_on_a_gate_told_of_http() {
        assert!(asks(false, A, "POST", &[("Origin", "https://3000-a.proxy.test")]));
        assert!(asks(false, A, "POST", &[("Origin", "http://3000-a.proxy.test")]));
    }
}
