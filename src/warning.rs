//! The page that asks a person, once a day and host, whether to go on to a preview. Pure.
//!
//! Anyone may run a sandbox, so anyone may put a look-alike of a bank on one; whoever opens a preview for the first time
//! is told so. Only people who open a page are asked: a script, a WebSocket, a frame or a program would get a page where
//! it wants data. That one has been asked is a convenience kept in a cookie and nothing rests on it.

use crate::head::{FieldId, Method, RequestHead};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// Where the page's form goes, on every host.
pub const ACCEPT_PATH: &[u8] = b"/accept-daytona-preview-warning";
const COOKIE: &[u8] = b"daytona-preview-page-accepted";
const COOKIE_SECONDS: u32 = 24 * 3600;
/// Longest path to go back to.
const BACK_BYTES_MAX: usize = 8 * 1024;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem;\
                     color:#222;background:#fff}h1{font-size:1.4rem}code{overflow-wrap:anywhere}\
                     button{font:inherit;padding:.5rem 1.2rem;border:0;border-radius:.4rem;background:#06c;color:#fff}\
                     @media(prefers-color-scheme:dark){body{color:#ddd;background:#111}}";

/// Is this a person opening a preview who has not been asked yet?
pub fn is_due(head: &RequestHead<'_>) -> bool {
    opens_a_page(head) && head.first(FieldId::SkipPreviewWarning) != Some(b"true") && !has_accepted(head)
}

/// A top-level navigation. Browsers say so, except towards hosts in clear text; there the hints that only navigations
/// have must do. Programs that merely call themselves a browser show none of them.
fn opens_a_page(head: &RequestHead<'_>) -> bool {
    if head.method != Method::Get || head.websocket || head.seen.contains(FieldId::Origin) {
        return false;
    }
    match (head.first(FieldId::SecFetchMode), head.first(FieldId::SecFetchDest)) {
        (Some(mode), Some(dest)) => mode == b"navigate" && dest == b"document",
        (None, None) => {
            let accepts = head.first(FieldId::Accept).unwrap_or_default();
            head.first(FieldId::UpgradeInsecureRequests) == Some(b"1")
                && memchr::memmem::find(accepts, b"text/html").is_some()
        }
        _ => false,
    }
}

fn has_accepted(head: &RequestHead<'_>) -> bool {
    let cookies = head.fields.iter().filter(|f| f.id == FieldId::Cookie);
    cookies.flat_map(|field| field.value.of(head.bytes).split(|b| *b == b';')).any(|crumb| {
        let crumb = crumb.trim_ascii();
        crumb.strip_prefix(COOKIE).is_some_and(|value| value == b"=true")
    })
}

/// What stands beside [`page`]. Nothing may be loaded and nobody may frame it: a click must be its reader's.
///
/// `form-action` is left out: browsers hold the redirect that follows the form to it too, and an app may send its
/// visitor on to another site to log in.
pub fn fields() -> String {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    // With `no-referrer` the form's own request would have no `Origin` to be told from a stranger's by.
    format!(
        "Content-Security-Policy: default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; \
         frame-ancestors 'none'\r\nX-Frame-Options: DENY\r\nReferrer-Policy: same-origin\r\n\
         X-Robots-Tag: noindex\r\n"
    )
}

pub fn page(head: &RequestHead<'_>) -> String {
    let mut action = String::from_utf8_lossy(ACCEPT_PATH).into_owned();
    action.push_str("?redirect=");
    for byte in head.target.of(head.bytes) {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            action.push(char::from(*byte));
        } else {
            let _ = write!(action, "%{byte:02X}");
        }
    }
    // The authority's grammar leaves nothing in it that HTML gives a meaning to; escaped all the same.
    let host = String::from_utf8_lossy(head.authority.of(head.bytes));
    let host = host.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Preview of a sandbox</title><style>{STYLE}</style>\n\
         <h1>You are about to open somebody's sandbox</h1>\n\
         <p><code>{host}</code> shows whatever runs in a sandbox. Nobody has checked it.</p>\n\
         <p>Go on only if you trust whoever gave you this address. Do not enter passwords or card numbers that \
         belong to another site.</p>\n\
         <form method=\"post\" action=\"{action}\"><button>I understand, go on</button></form>\n"
    )
}

/// The answer to the form.
#[derive(PartialEq, Eq, Debug)]
pub struct Accepted {
    /// A path of this host, checked.
    pub location: String,
    pub set_cookie: String,
}

/// `None`: not the page's own form. `secure`: clients come over https.
pub fn accept(head: &RequestHead<'_>, secure: bool) -> Option<Accepted> {
    if !is_own_form(head) {
        return None;
    }
    let location = head.query().and_then(redirect).unwrap_or_else(|| "/".to_owned());
    let secure = if secure { "; Secure" } else { "" };
    let name = String::from_utf8_lossy(COOKIE);
    let set_cookie = format!("{name}=true; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax{secure}");
    Some(Accepted { location, set_cookie })
}

/// Browsers name who sends a form; what does not say so is not believed.
fn is_own_form(head: &RequestHead<'_>) -> bool {
    let is_ours = |origin: &[u8]| {
        let authority = memchr::memmem::find(origin, b"://").map(|at| &origin[at + 3..]);
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(head.authority.of(head.bytes)))
    };
    let site = head.first(FieldId::SecFetchSite);
    match (site, head.first(FieldId::Origin)) {
        (Some(b"same-origin"), origin) => origin.is_none_or(is_ours),
        (Some(b"none"), None) => true,
        (Some(_), _) | (None, None) => false,
        (None, Some(origin)) => is_ours(origin),
    }
}

/// The path to go back to, percent-decoded. Only a path: `//host`, and what browsers take for it, is another site.
fn redirect(query: &[u8]) -> Option<String> {
    let value = query.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(b"redirect="))?;
    let mut path = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [byte, behind @ ..] = rest {
        let hex = |b: &u8| char::from(*b).to_digit(16);
        match (byte, behind) {
            (b'%', [high, low, behind @ ..]) => {
                path.push((hex(high)? * 16 + hex(low)?) as u8);
                rest = behind;
            }
            (b'%', _) => return None,
            (byte, behind) => {
                path.push(*byte);
                rest = behind;
            }
        }
    }
    let is_path = path.first() == Some(&b'/') && !matches!(path.get(1), Some(b'/' | b'\\'));
    let plain = path.len() <= BACK_BYTES_MAX && path.iter().all(u8::is_ascii_graphic);
    (is_path && plain).then(|| String::from_utf8(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use proptest::prelude::*;

    fn with<R>(line: &str, fields: &str, look: impl FnOnce(&RequestHead<'_>) -> R) -> R {
        let text = format!("{line} HTTP/1.1\r\nHost: 3000-a.preview.test\r\n{fields}\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("valid").expect("whole");
        look(&head)
    }

    const NAVIGATION: &str = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    const OLD_BROWSER: &str =
        "User-Agent: Mozilla/5.0\r\nAccept: text/html,*/*\r\nUpgrade-Insecure-Requests: 1\r\n";

    #[test]
    fn a_person_who_opens_a_page_is_asked_and_nothing_else_is() {
        let due = |line: &str, fields: &str| with(line, fields, is_due);
        assert!(due("GET /", NAVIGATION));
        assert!(due("GET /a?b", OLD_BROWSER));
        for fields in [
            "",
            "User-Agent: Mozilla/5.0\r\nAccept: text/html\r\n",
            "Accept: */*\r\nUpgrade-Insecure-Requests: 1\r\n",
            "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
            "Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n",
            "Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\nAccept: text/html\r\nUpgrade-Insecure-Requests: 1\r\n",
            "Sec-Fetch-Mode: websocket\r\nSec-Fetch-Dest: websocket\r\n",
            &format!("{NAVIGATION}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"),
            &format!("{NAVIGATION}Origin: https://x.test\r\n"),
            &format!("{NAVIGATION}X-Daytona-Skip-Preview-Warning: true\r\n"),
            &format!("{NAVIGATION}Cookie: a=1; daytona-preview-page-accepted=true\r\n"),
        ] {
            assert!(!due("GET /", fields), "{fields}");
        }
        for method in ["POST", "HEAD", "OPTIONS"] {
            assert!(!due(&format!("{method} /"), NAVIGATION), "{method}");
        }
        let other = format!(
            "{NAVIGATION}Cookie: daytona-preview-page-accepted=trueish; xdaytona-preview-page-accepted=true\r\n"
        );
        assert!(due("GET /", &other));
    }

    fn accepted(query: &str, fields: &str) -> Option<Accepted> {
        let path = String::from_utf8_lossy(ACCEPT_PATH);
        with(&format!("POST {path}{query}"), fields, |head| accept(head, true))
    }

    const OWN: &str = "Sec-Fetch-Site: same-origin\r\n";

    #[test]
    fn only_the_pages_own_form_is_believed() {
        let ours = "Origin: https://3000-a.preview.test\r\n";
        for fields in [OWN, ours, "Sec-Fetch-Site: none\r\n", &format!("{OWN}{ours}")] {
            assert!(accepted("", fields).is_some(), "{fields}");
        }
        for fields in [
            "",
            "Sec-Fetch-Site: same-site\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Origin: null\r\n",
            "Origin: https://3000-b.preview.test\r\n",
            "Origin: https://3000-a.preview.test.evil.test\r\n",
            &format!("{OWN}Origin: https://evil.test\r\n"),
            &format!("Sec-Fetch-Site: cross-site\r\n{ours}"),
        ] {
            assert_eq!(accepted("", fields), None, "{fields}");
        }
    }

    #[test]
    fn it_goes_back_to_where_the_page_stood_and_never_to_another_site() {
        let location = |query: &str| accepted(query, OWN).expect("own form").location;
        assert_eq!(location("?redirect=/a%3Fb=1%26c"), "/a?b=1&c");
        for query in [
            "",
            "?redirect=",
            "?redirect=https://evil.test/",
            "?redirect=//evil.test",
            "?redirect=%2F%2Fevil.test",
            "?redirect=/%5Cevil.test",
            "?redirect=/\\evil.test".replace('\\', "%5c").as_str(),
            "?redirect=/%09/evil.test",
            "?redirect=/%0d%0aSet-Cookie:x=1",
            "?redirect=/a%",
            "?redirect=/a%zz",
            "?redirect=/%e2%80%ae",
            "?redirect=javascript:alert(1)",
        ] {
            assert_eq!(location(query), "/", "{query}");
        }
    }

    #[test]
    fn the_cookie_is_this_hosts_alone() {
        let cookie = accepted("", OWN).expect("own form").set_cookie;
        assert_eq!(
            cookie,
            "daytona-preview-page-accepted=true; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax; Secure"
        );
        with("POST /x", OWN, |head| {
            let cookie = accept(head, false).expect("own form").set_cookie;
            assert!(!cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
        });
    }

    proptest! {
        /// The page's form leads back to exactly the target it stands at, and no target breaks out of the page.
        #[test]
        fn every_target_comes_back_through_the_form(path in "/[!$-;=?-Z_a-z~]{0,30}", query in "[!$-;=?-Z_a-z~]{0,30}") {
            let target = format!("{path}?{query}");
            with(&format!("GET {target}"), NAVIGATION, |head| {
                let page = page(head);
                let action = page.split("action=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form");
                let back = action.split_once('?').map(|(_, query)| redirect(query.as_bytes())).expect("a query");
                if target.starts_with("//") {
                    assert_eq!(back, None);
                } else {
                    assert_eq!(back.as_deref(), Some(target.as_str()));
                }
                assert!(action.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/?=%".contains(&b)), "{action}");
            });
        }
    }
}
