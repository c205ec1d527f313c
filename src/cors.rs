//! Which pages of other origins may read an answer (CORS, Fetch standard 3.2). Pure.
//!
//! Apps in sandboxes are called from pages anywhere, so unless told otherwise every origin may read what the request's
//! own proofs opened. What differs is credentials, which browsers add on their own: an answer that was made with them
//! is for pages of the same sandbox and for origins the operator trusts. A preflight is answered here, at once and
//! without a question to anybody: browsers send it without any proof, so nobody else could.

use crate::head::{FieldId, Method, RequestHead};
use std::fmt::Write as _;

/// How much of it is the gate's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The app's own fields count; where it has none, the gate's do.
    Auto,
    /// As v0.190: the gate answers every `OPTIONS` across origins and opens every answer, with credentials. The app's
    /// own fields are replaced, not doubled.
    Simple,
    /// All of it is the app's.
    PassThrough,
}

impl Mode {
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "simple" => Some(Self::Simple),
            "passthru" => Some(Self::PassThrough),
            _ => None,
        }
    }
}

/// What the page that asks is to the sandbox it asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// A page of the same sandbox, or one the operator trusts.
    Welcome,
    /// A page of another sandbox: to browsers the same site, so cookies go along whatever their `SameSite` says.
    Sibling,
    /// Any other.
    Stranger,
}

/// What is to be done about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision<'b> {
    /// No page of another origin asks, or it is not ours to answer.
    Nothing,
    /// Answer this now.
    Preflight(Preflight<'b>),
    /// Let the answer be read.
    Share(Sharing<'b>),
}

/// A browser asks whether a page may send a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preflight<'b> {
    origin: &'b [u8],
    credentials: bool,
    method: Option<&'b [u8]>,
    headers: Option<&'b [u8]>,
}

/// An answer that a page of another origin may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sharing<'b> {
    mode: Mode,
    origin: &'b [u8],
    credentials: bool,
}

/// Longest origin that is repeated. A host has 253 bytes at most.
const ORIGIN_BYTES_MAX: usize = 300;
/// v0.190's; browsers cap it themselves.
const MAX_AGE_SECONDS: u32 = 43_200;
const METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
/// What a page may see of an answer the gate makes.
const OWN_FIELDS: &str = "X-Request-Id, X-Preview-Error-Code, X-Preview-Error-Source, Retry-After";

/// `relation` is asked only when it matters, with the page's origin.
pub fn decide<'b>(
    head: &RequestHead<'b>,
    mode: Mode,
    relation: impl FnOnce(&'b [u8]) -> Relation,
) -> Decision<'b> {
    let Some(origin) = head.first(FieldId::Origin) else { return Decision::Nothing };
    let disabled = head.first(FieldId::DisableCors) == Some(b"true");
    if mode == Mode::PassThrough || disabled || !is_repeatable(origin) || is_same(origin, head) {
        return Decision::Nothing;
    }
    let method = head.first(FieldId::AccessControlRequestMethod).filter(|text| are_tokens(text));
    let relation = relation(origin);
    if head.method == Method::Options && (method.is_some() || mode == Mode::Simple) {
        // Whether the request that follows brings credentials is not known yet; what it gets is decided then. Only
        // to another sandbox's page no such request is allowed: it could change things without reading the answer.
        let credentials = mode == Mode::Simple || (relation != Relation::Sibling && origin != b"null");
        let headers = head.first(FieldId::AccessControlRequestHeaders).filter(|text| are_tokens(text));
        return Decision::Preflight(Preflight { origin, credentials, method, headers });
    }
    let credentials = mode == Mode::Simple || relation == Relation::Welcome;
    Decision::Share(Sharing { mode, origin, credentials })
}

impl Preflight<'_> {
    /// The answer's field lines, each with its CRLF. Its status is 204, it has no body.
    pub fn fields(&self) -> String {
        let mut fields = String::with_capacity(400);
        write_origin(self.origin, self.credentials, &mut fields);
        let _ = write!(fields, "Access-Control-Allow-Methods: {METHODS}");
        // All are allowed; the list names the usual ones and the one asked for.
        let named = |method: &[u8]| METHODS.split(',').any(|known| known.as_bytes() == method);
        if let Some(method) = self.method.filter(|method| !named(method)) {
            let _ = write!(fields, ",{}", ascii(method));
        }
        if let Some(headers) = self.headers {
            let _ = write!(fields, "\r\nAccess-Control-Allow-Headers: {}", ascii(headers));
        }
        let _ = write!(
            fields,
            "\r\nAccess-Control-Max-Age: {MAX_AGE_SECONDS}\r\n\
             Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"
        );
        fields
    }
}

impl Sharing<'_> {
    /// Whether a field of the app's answer stays. `shares`: the app says itself who may read; `seen` remembers what
    /// stood there, for a second `Access-Control-Allow-Origin` makes browsers refuse both.
    pub fn keeps(&self, name: &[u8], shares: bool, seen: &mut SharingFields) -> bool {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        let app_speaks = self.mode == Mode::Auto && shares;
        if is(ALLOW_ORIGIN) {
            return app_speaks && !std::mem::replace(&mut seen.origin, true);
        }
        if is(ALLOW_CREDENTIALS) {
            return app_speaks && !std::mem::replace(&mut seen.credentials, true);
        }
        seen.exposes |= is(EXPOSE_HEADERS);
        true
    }

    /// Appends what the app's answer lacks.
    pub fn write(&self, shares: bool, seen: &SharingFields, out: &mut Vec<u8>) {
        if self.mode == Mode::Auto && shares {
            return;
        }
        let mut fields = String::with_capacity(200);
        write_origin(self.origin, self.credentials, &mut fields);
        if self.mode == Mode::Auto && !seen.exposes {
            fields.push_str("Access-Control-Expose-Headers: *\r\n");
        }
        fields.push_str("Vary: Origin\r\n");
        out.extend_from_slice(fields.as_bytes());
    }

    /// Field lines for an answer of the gate's own, each with its CRLF.
    pub fn own_fields(&self) -> String {
        let mut fields = String::with_capacity(300);
        write_origin(self.origin, self.credentials, &mut fields);
        let _ = write!(fields, "Access-Control-Expose-Headers: {OWN_FIELDS}\r\nVary: Origin\r\n");
        fields
    }
}

/// What of CORS stood in the app's answer and was passed on.
#[derive(Clone, Copy, Default, Debug)]
pub struct SharingFields {
    origin: bool,
    credentials: bool,
    exposes: bool,
}

pub const ALLOW_ORIGIN: &[u8] = b"access-control-allow-origin";
const ALLOW_CREDENTIALS: &[u8] = b"access-control-allow-credentials";
const EXPOSE_HEADERS: &[u8] = b"access-control-expose-headers";

fn write_origin(origin: &[u8], credentials: bool, fields: &mut String) {
    let _ = write!(fields, "Access-Control-Allow-Origin: {}\r\n", ascii(origin));
    if credentials {
        fields.push_str("Access-Control-Allow-Credentials: true\r\n");
    }
}

/// Checked before: what is repeated is visible ASCII.
fn ascii(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

fn is_repeatable(origin: &[u8]) -> bool {
    !origin.is_empty() && origin.len() <= ORIGIN_BYTES_MAX && origin.iter().all(u8::is_ascii_graphic)
}

/// The page is of the very host that is asked. Its scheme is not looked at: behind a TLS terminator the gate's own is
/// a matter of configuration.
fn is_same(origin: &[u8], head: &RequestHead<'_>) -> bool {
    let authority = memchr::memmem::find(origin, b"://").map(|at| &origin[at + 3..]);
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(head.authority.of(head.bytes)))
}

/// Tokens (RFC 9110 5.6.2) with commas and blanks between: safe to repeat.
fn are_tokens(text: &[u8]) -> bool {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, \t".contains(b);
    text.iter().any(u8::is_ascii_alphanumeric) && text.iter().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use proptest::prelude::*;

    const PAGE: &str = "https://app.example";

    fn with<R>(method: &str, fields: &[(&str, &str)], look: impl FnOnce(&RequestHead<'_>) -> R) -> R {
        let mut text = format!("{method} / HTTP/1.1\r\nHost: 3000-a.preview.test\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("valid").expect("whole");
        look(&head)
    }

    fn decided(mode: Mode, relation: Relation, method: &str, fields: &[(&str, &str)]) -> String {
        with(method, fields, |head| match decide(head, mode, |_| relation) {
            Decision::Nothing => "nothing".to_owned(),
            Decision::Preflight(preflight) => preflight.fields(),
            Decision::Share(sharing) => sharing.own_fields(),
        })
    }

    const ASKS: (&str, &str) = ("Access-Control-Request-Method", "PUT");

    #[test]
    fn only_pages_of_other_origins_are_our_business() {
        use {Mode::*, Relation::*};
        let off = ("X-Daytona-Disable-CORS", "true");
        for (mode, fields) in [
            (Auto, &[][..]),
            (Simple, &[][..]),
            (Auto, &[("Origin", "https://3000-A.preview.test")][..]),
            (Simple, &[("Origin", "http://3000-a.preview.test")][..]),
            (PassThrough, &[("Origin", PAGE), ASKS][..]),
            (Auto, &[("Origin", PAGE), off][..]),
            (Simple, &[("Origin", PAGE), off][..]),
            (Auto, &[("Origin", "")][..]),
            (Auto, &[("Origin", "https://a b")][..]),
        ] {
            assert_eq!(decided(mode, Stranger, "GET", fields), "nothing", "{mode:?} {fields:?}");
            assert_eq!(decided(mode, Stranger, "OPTIONS", fields), "nothing", "{mode:?} {fields:?}");
        }
    }

    #[test]
    fn a_preflight_allows_what_it_was_asked_for() {
        let fields = [("Origin", PAGE), ASKS, ("Access-Control-Request-Headers", "x-a, content-type")];
        let answer = decided(Mode::Auto, Relation::Stranger, "OPTIONS", &fields);
        assert_eq!(
            answer,
            "Access-Control-Allow-Origin: https://app.example\r\nAccess-Control-Allow-Credentials: true\r\n\
             Access-Control-Allow-Methods: GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS\r\n\
             Access-Control-Allow-Headers: x-a, content-type\r\nAccess-Control-Max-Age: 43200\r\n\
             Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"
        );
        let fields = [("Origin", PAGE), ("Access-Control-Request-Method", "PROPFIND")];
        let answer = decided(Mode::Auto, Relation::Stranger, "OPTIONS", &fields);
        assert!(answer.contains("HEAD,OPTIONS,PROPFIND\r\n"), "{answer}");
        assert!(!answer.contains("Allow-Headers"), "{answer}");
    }

    #[test]
    fn an_options_request_that_is_no_preflight_is_the_apps_except_as_v0190() {
        let fields = [("Origin", PAGE)];
        with("OPTIONS", &fields, |head| {
            let auto = decide(head, Mode::Auto, |_| Relation::Stranger);
            assert!(matches!(auto, Decision::Share(_)), "{auto:?}");
            let simple = decide(head, Mode::Simple, |_| Relation::Stranger);
            assert!(matches!(simple, Decision::Preflight(_)), "{simple:?}");
        });
    }

    #[test]
    fn credentials_are_for_the_welcome_and_never_for_another_sandboxs_page() {
        use {Mode::*, Relation::*};
        for (mode, relation, preflight, answer) in [
            (Auto, Welcome, true, true),
            (Auto, Stranger, true, false),
            (Auto, Sibling, false, false),
            (Simple, Sibling, true, true),
        ] {
            let fields = [("Origin", PAGE), ASKS];
            let has = |text: String| text.contains("Allow-Credentials: true\r\n");
            assert_eq!(has(decided(mode, relation, "OPTIONS", &fields)), preflight, "{mode:?} {relation:?}");
            assert_eq!(has(decided(mode, relation, "PUT", &fields)), answer, "{mode:?} {relation:?}");
        }
        // A sandboxed frame of anybody's.
        let fields = [("Origin", "null"), ASKS];
        assert!(!decided(Auto, Stranger, "OPTIONS", &fields).contains("Credentials"));
    }

    /// What an app's answer becomes.
    fn passed(mode: Mode, app: &[(&str, &str)]) -> String {
        with("GET", &[("Origin", PAGE)], |head| {
            let Decision::Share(sharing) = decide(head, mode, |_| Relation::Stranger) else {
                panic!("shared")
            };
            let shares = app.iter().any(|(name, _)| name.as_bytes().eq_ignore_ascii_case(ALLOW_ORIGIN));
            let (mut seen, mut out) = (SharingFields::default(), Vec::new());
            for (name, value) in app {
                if sharing.keeps(name.as_bytes(), shares, &mut seen) {
                    out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
                }
            }
            sharing.write(shares, &seen, &mut out);
            String::from_utf8(out).expect("ASCII")
        })
    }

    #[test]
    fn the_app_wins_where_it_speaks_and_the_gate_fills_in_where_it_does_not() {
        let own =
            "Access-Control-Allow-Origin: https://mine.example\r\nAccess-Control-Allow-Credentials: true\r\n";
        let app = [
            ("Access-Control-Allow-Origin", "https://mine.example"),
            ("Access-Control-Allow-Credentials", "true"),
        ];
        assert_eq!(passed(Mode::Auto, &app), own);
        assert_eq!(
            passed(Mode::Auto, &[("X", "1")]),
            "X: 1\r\nAccess-Control-Allow-Origin: https://app.example\r\nAccess-Control-Expose-Headers: *\r\n\
             Vary: Origin\r\n"
        );
        assert_eq!(
            passed(Mode::Auto, &[("Access-Control-Expose-Headers", "x-mine")]),
            "Access-Control-Expose-Headers: x-mine\r\nAccess-Control-Allow-Origin: https://app.example\r\n\
             Vary: Origin\r\n"
        );
        assert_eq!(
            passed(Mode::Simple, &app),
            "Access-Control-Allow-Origin: https://app.example\r\nAccess-Control-Allow-Credentials: true\r\n\
             Vary: Origin\r\n"
        );
    }

    proptest! {
        /// Whatever the app sends and whatever mode is set, browsers find one value of each, and no line is broken.
        #[test]
        fn there_are_never_two_values(
            names in proptest::collection::vec(0usize..5, 0..8),
            simple in any::<bool>(),
        ) {
            let known = [
                "Access-Control-Allow-Origin",
                "access-control-allow-origin",
                "Access-Control-Allow-Credentials",
                "Access-Control-Expose-Headers",
                "X-Other",
            ];
            let app: Vec<_> = names.iter().map(|n| (known[*n], "v")).collect();
            let passed = passed(if simple { Mode::Simple } else { Mode::Auto }, &app).to_ascii_lowercase();
            prop_assert_eq!(passed.matches("access-control-allow-origin:").count(), 1);
            prop_assert!(passed.matches("access-control-allow-credentials:").count() <= 1);
            prop_assert!(passed.ends_with("\r\n"));
        }

        /// Nothing of a request can end a line of the answer or begin another.
        #[test]
        fn what_is_repeated_stays_in_its_field(origin in "[ -~]{0,40}", method in "[ -~]{0,20}", headers in "[ -~]{0,40}") {
            let fields = [
                ("Origin", origin.as_str()),
                ("Access-Control-Request-Method", method.as_str()),
                ("Access-Control-Request-Headers", headers.as_str()),
            ];
            let answer = decided(Mode::Auto, Relation::Stranger, "OPTIONS", &fields);
            if answer != "nothing" {
                for line in answer.trim_end().split("\r\n") {
                    prop_assert!(line.starts_with("Access-Control-") || line.starts_with("Vary: "), "{}", line);
                }
            }
        }
    }
}
