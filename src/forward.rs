//! The heads we write: request to the runner, response to the client. Header rules live here and nowhere else.
//!
//! One order, both ways: hop-by-hop fields and those `Connection` names go first (RFC 9110 7.6.1), then what is
//! reserved, in every spelling; what is ours is written once, behind everything else. So no list a client sends can
//! take a field of ours away, and no copy of its own can stand before it (CVE-2024-45410 was that mistake).
//! Everything else passes with its bytes, its spelling and its place unchanged. Knows no socket and no configuration;
//! what the body is has been decided in [`crate::framing`].

mod confine;
mod proofs;
#[cfg(test)]
mod tests;

pub use confine::Confine;
pub use proofs::{AUTH_QUERY_KEY, query_token};

use crate::cors::{ALLOW_ORIGIN, Sharing, SharingFields};
use crate::framing::{RequestBody, ResponseBody};
use crate::head::{Field, FieldId, RequestHead, ResponseHead, Version};
use crate::ids::{Port, SandboxId};
use smallvec::SmallVec;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

/// Where on a runner a request goes, behind the runner's own base path.
pub enum RunnerPath {
    /// An app: `/sandboxes/{id}/toolbox/proxy/{port}` and the client's path.
    Preview { sandbox: SandboxId, port: Port },
    /// The toolbox: `/sandboxes/{id}/toolbox` and the client's path from this offset of its target on.
    Toolbox { sandbox: SandboxId, rest_at: u16 },
    /// In place of the client's path and query.
    Whole(String),
}

/// What the request to the runner is made of besides the client's head.
///
/// Its texts come from checked sources and hold no control characters.
pub struct RequestPlan<'a> {
    /// Runner's `proxyUrl` authority, for `Host`.
    pub host: &'a str,
    /// Path part of the runner's `proxyUrl`, without a slash at its end.
    pub base_path: &'a str,
    pub path: &'a RunnerPath,
    /// `Bearer <runner api key>`, the value of `X-Daytona-Authorization`.
    pub authorization: &'a str,
    /// Strip the client's `Authorization`: it was the proof that let this request in.
    pub strip_authorization: bool,
    pub client_ip: IpAddr,
    /// The peer may speak for others: its X-Forwarded-For is appended to, its X-Forwarded-Host and -Proto kept.
    /// `client_ip` is the peer's own address then.
    pub trusted_peer: bool,
    /// `http` or `https` as the client sees it.
    pub scheme: &'a str,
    pub request_id: &'a str,
}

/// Path and query of a request without our query parameter.
pub fn target_without_proofs(head: &RequestHead<'_>) -> Vec<u8> {
    let mut target = head.path().to_vec();
    if let Some(query) = head.query() {
        proofs::append_query(query, &mut target);
    }
    target
}

/// Appends the whole head, blank line included, to `out`. Always HTTP/1.1; allocates nothing but `out`.
///
/// Of a client's proofs none reaches the app: preview tokens, our cookies, our query parameter and anything that
/// looks like an API key of ours go whether or not they were what let the request in.
pub fn write_request(head: &RequestHead<'_>, plan: &RequestPlan<'_>, out: &mut Vec<u8>) {
    debug_assert!(plan.is_clean(), "a text of the plan holds control characters");
    let bytes = head.bytes;
    out.reserve(bytes.len() + plan.base_path.len() + plan.authorization.len() + 512);

    out.extend_from_slice(head.method_text.of(bytes));
    out.push(b' ');
    write_target(head, plan, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_field("Host", plan.host.as_bytes(), out);

    let mut named = Named::Nothing;
    named.add(head.connection_names());
    let mut has_request_id = false;
    let mut lines = Lines::of(bytes);
    for field in &head.fields {
        let value = field.value.of(bytes);
        let kept = match field.id {
            // Written by us, below, from what was decided about the message.
            FieldId::Host
            | FieldId::Connection
            | FieldId::ContentLength
            | FieldId::TransferEncoding
            | FieldId::HopByHop
            | FieldId::Te
            | FieldId::Upgrade
            | FieldId::Expect
            | FieldId::XForwardedFor
            | FieldId::XForwardedHost
            | FieldId::XForwardedProto => false,
            // For us, or for nobody.
            FieldId::Reserved
            | FieldId::PreviewToken
            | FieldId::SkipPreviewWarning
            | FieldId::DisableCors
            | FieldId::SkipLastActivity => false,
            // What a trusted peer says about the client stays, even if a client's `Connection` names it.
            FieldId::Forwarded | FieldId::XForwardedPort | FieldId::XRealIp => {
                if plan.trusted_peer {
                    lines.keep(field, out);
                }
                false
            }
            FieldId::Authorization => !plan.strip_authorization && !proofs::holds_api_key(value),
            _ => true,
        };
        if !kept || named.hold(field, bytes) {
            continue;
        }
        match field.id {
            FieldId::Cookie => {
                lines.flush(out);
                write_cookie(bytes, field, out);
            }
            id => {
                has_request_id |= id == FieldId::XRequestId;
                lines.keep(field, out);
            }
        }
    }
    lines.flush(out);

    match head.body {
        RequestBody::None => {}
        RequestBody::Length(length) => write_length(length, out),
        RequestBody::Chunked => write_field("Transfer-Encoding", b"chunked", out),
    }
    if head.expect_continue {
        write_field("Expect", b"100-continue", out);
    }
    if head.websocket {
        write_websocket_upgrade(out);
    }
    write_forwarded(head, plan, out);
    if !has_request_id {
        write_field("X-Request-Id", plan.request_id.as_bytes(), out);
    }
    write_field("X-Daytona-Authorization", plan.authorization.as_bytes(), out);
    out.extend_from_slice(b"\r\n");
}

/// What the response to the client needs to know besides the runner's head.
pub struct ResponsePlan<'a> {
    /// The client's version: an HTTP/1.0 client has to be told that its connection stays.
    pub client_version: Version,
    /// How the body goes out; decided by the exchange from the runner's framing and the client's version.
    pub framing: ResponseBody,
    /// The connection ends after this response.
    pub close: bool,
    pub request_id: &'a str,
    /// Value of a `Set-Cookie` of ours. Not written with 1xx but 101.
    pub set_cookie: Option<&'a str>,
    /// Sources of a `frame-ancestors` policy of ours, beside what the app says. Not written with 1xx.
    pub frame_ancestors: Option<&'a str>,
    /// `None`: what the app says about other hosts passes.
    pub confine: Option<Confine<'a>>,
    /// A page of another origin asked.
    pub sharing: Option<Sharing<'a>>,
    /// What a redirect to a path of its own needs in front of it: the toolbox's paths begin behind `/toolbox/{id}`.
    pub redirect_prefix: Option<SandboxId>,
}

/// Appends the whole head, blank line included, to `out`. Status 101 keeps `Upgrade` and `Connection: Upgrade`.
///
/// The app's `Set-Cookie` of a cookie that is ours by name is dropped; when it is confined, so is what it says about
/// more than its own host, and `Alt-Svc`, which would move its visitors to an address that is not this gate. Under the
/// toolboxes' shared origin it is a guest: it speaks for nothing there, and no document of its acts in that origin.
pub fn write_response(head: &ResponseHead<'_>, plan: &ResponsePlan<'_>, out: &mut Vec<u8>) {
    debug_assert!(is_clean(plan.request_id), "the request id holds control characters");
    let bytes = head.bytes;
    out.reserve(bytes.len() + 256);
    let switching = head.status == 101;
    let informational = head.status < 200 && !switching;

    out.extend_from_slice(b"HTTP/1.1 ");
    // The status code has three digits.
    let [hundreds, tens, ones] = [head.status / 100, head.status / 10, head.status].map(digit);
    out.extend_from_slice(&[hundreds, tens, ones, b' ']);
    out.extend_from_slice(head.reason.of(bytes));
    out.extend_from_slice(b"\r\n");

    let mut named = Named::Nothing;
    named.add(head.connection_names());
    let mut has_request_id = false;
    let mut length = None;
    let sharing = plan.sharing.filter(|_| head.status >= 200);
    let app_shares = sharing.is_some() && has_field(head, ALLOW_ORIGIN);
    let mut shared = SharingFields::default();
    // Under an origin that is not the app's alone.
    let guest = plan.confine.as_ref().is_some_and(|confine| !confine.own_host);
    let mut document = confine::Document::default();
    let mut lines = Lines::of(bytes);
    for field in &head.fields {
        let value = field.value.of(bytes);
        let kept = match field.id {
            FieldId::Connection
            | FieldId::TransferEncoding
            | FieldId::HopByHop
            | FieldId::Te
            | FieldId::Upgrade => false,
            FieldId::ContentLength => {
                length = length.or(Some(value));
                false
            }
            FieldId::SetCookie => !confine::sets_our_cookie(value),
            FieldId::AltSvc => plan.confine.is_none(),
            FieldId::Other if guest && confine::speaks_for_origin(field.name.of(bytes)) => false,
            FieldId::Other => {
                sharing.is_none_or(|sharing| sharing.keeps(field.name.of(bytes), app_shares, &mut shared))
            }
            _ => true,
        };
        if !kept || named.hold(field, bytes) {
            continue;
        }
        if guest {
            document.add(field.name.of(bytes), value);
        }
        match (field.id, &plan.confine) {
            (FieldId::SetCookie, Some(confine)) => {
                lines.flush(out);
                match (guest, &plan.redirect_prefix) {
                    (false, _) => write_set_cookie(bytes, field, confine, "", out),
                    (true, Some(sandbox)) => {
                        let path = format!("; Path=/toolbox/{sandbox}");
                        write_set_cookie(bytes, field, confine, &path, out);
                    }
                    // What is no sandbox's has no place for one.
                    (true, None) => {}
                }
            }
            (FieldId::ClearSiteData, Some(_)) if guest => {}
            (FieldId::ClearSiteData, Some(_)) => {
                lines.flush(out);
                write_clear_site_data(bytes, field, out);
            }
            (FieldId::Location, _) => {
                lines.flush(out);
                write_location(bytes, field, plan.redirect_prefix.as_ref(), out);
            }
            _ => {
                has_request_id |= field.id == FieldId::XRequestId;
                lines.keep(field, out);
            }
        }
    }
    lines.flush(out);

    if let Some(sharing) = sharing {
        sharing.write(app_shares, &shared, out);
    }
    if guest && head.status >= 200 {
        document.write_isolation(head.status, out);
    }
    if let Some(sources) = plan.frame_ancestors
        && head.status >= 200
    {
        // A copy kept from a tab is not for a frame, whose holder it does not name.
        out.extend_from_slice(b"Vary: Sec-Fetch-Dest\r\nContent-Security-Policy: frame-ancestors ");
        out.extend_from_slice(sources.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match plan.framing {
        ResponseBody::Length(length) => write_length(length, out),
        ResponseBody::Chunked => write_field("Transfer-Encoding", b"chunked", out),
        ResponseBody::UntilClose => {}
        // To HEAD and with 304 the length is a fact about the resource; 1xx and 204 must not have one (RFC 9110 8.6).
        ResponseBody::None => match length {
            Some(digits)
                if head.status >= 200
                    && head.status != 204
                    && !digits.is_empty()
                    && digits.iter().all(u8::is_ascii_digit) =>
            {
                write_field("Content-Length", digits, out);
            }
            _ => {}
        },
    }
    if switching {
        write_websocket_upgrade(out);
    } else if !informational {
        if plan.close {
            write_field("Connection", b"close", out);
        } else if plan.client_version == Version::Http10 {
            write_field("Connection", b"keep-alive", out);
        }
    }
    if let Some(value) = plan.set_cookie
        && !informational
    {
        write_field("Set-Cookie", value.as_bytes(), out);
    }
    if !has_request_id && !informational {
        write_field("X-Request-Id", plan.request_id.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

impl RequestPlan<'_> {
    fn is_clean(&self) -> bool {
        let whole = if let RunnerPath::Whole(target) = self.path { target } else { "" };
        let words = [self.host, self.base_path, whole, self.scheme];
        words.iter().all(|text| is_clean(text) && !text.contains(' '))
            && is_clean(self.authorization)
            && is_clean(self.request_id)
    }
}

fn is_clean(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

fn write_target(head: &RequestHead<'_>, plan: &RequestPlan<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(plan.base_path.as_bytes());
    let rest_at = match plan.path {
        RunnerPath::Preview { sandbox, port } => {
            write_toolbox(sandbox, out);
            out.extend_from_slice(b"/proxy/");
            write_number(u64::from(port.number()), out);
            0
        }
        RunnerPath::Toolbox { sandbox, rest_at } => {
            write_toolbox(sandbox, out);
            usize::from(*rest_at)
        }
        RunnerPath::Whole(target) => return out.extend_from_slice(target.as_bytes()),
    };
    let rest = head.path().get(rest_at..).unwrap_or_default();
    // Behind the prefix stands a `/`, whatever the client sent: `3000` must not become `30001`.
    if rest.first() != Some(&b'/') {
        out.push(b'/');
    }
    if rest != b"*" {
        out.extend_from_slice(rest);
    }
    if let Some(query) = head.query() {
        proofs::append_query(query, out);
    }
}

fn write_toolbox(sandbox: &SandboxId, out: &mut Vec<u8>) {
    out.extend_from_slice(b"/sandboxes/");
    out.extend_from_slice(sandbox.as_bytes());
    out.extend_from_slice(b"/toolbox");
}

/// The fields a `Connection` field names, without the three words that are not names.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for one head; a box would be an allocation per request"
)]
enum Named<'h> {
    /// The usual case.
    Nothing,
    These(SmallVec<[&'h [u8]; Named::MAX]>),
    /// No honest sender lists so many. Comparing each with each field would cost the square of a head, so all
    /// fields we do not know count as named.
    TooMany,
}

impl<'h> Named<'h> {
    const MAX: usize = 16;

    /// In place: it is 264 bytes to move.
    fn add(&mut self, names: impl Iterator<Item = &'h [u8]>) {
        for name in names {
            let word =
                [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|w| name.eq_ignore_ascii_case(w));
            if word {
                continue;
            }
            match self {
                Self::Nothing => *self = Self::These(SmallVec::from_iter([name])),
                Self::These(these) if these.len() < Self::MAX => these.push(name),
                _ => return *self = Self::TooMany,
            }
        }
    }

    fn hold(&self, field: &Field, bytes: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(names) => names.iter().any(|name| name.eq_ignore_ascii_case(field.name.of(bytes))),
            Self::TooMany => field.id == FieldId::Other,
        }
    }
}

fn write_forwarded(head: &RequestHead<'_>, plan: &RequestPlan<'_>, out: &mut Vec<u8>) {
    // What a trusted peer said, nothing from anybody else.
    let said = |id| {
        let of_peer = move |field: &&Field| plan.trusted_peer && field.id == id && field.value.len > 0;
        head.fields.iter().filter(of_peer).map(|field| field.value.of(head.bytes))
    };
    out.extend_from_slice(b"X-Forwarded-For: ");
    for value in said(FieldId::XForwardedFor) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    write_ip(plan.client_ip.to_canonical(), out);
    out.extend_from_slice(b"\r\n");

    let host = said(FieldId::XForwardedHost).next().unwrap_or(head.authority.of(head.bytes));
    write_field("X-Forwarded-Host", host, out);
    let scheme = said(FieldId::XForwardedProto).next().unwrap_or(plan.scheme.as_bytes());
    write_field("X-Forwarded-Proto", scheme, out);
}

/// Lower case: the toolbox compares the token as it is written. `Connection` names it, as RFC 9110 7.8 wants.
fn write_websocket_upgrade(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
}

fn write_cookie(bytes: &[u8], field: &Field, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(field.name.of(bytes));
    out.extend_from_slice(b": ");
    if proofs::append_cookies(field.value.of(bytes), out) {
        out.extend_from_slice(b"\r\n");
    } else {
        out.truncate(start);
    }
}

/// `last`: a further attribute, which counts before any of its name in front of it (RFC 6265 5.3).
fn write_set_cookie(bytes: &[u8], field: &Field, confine: &Confine<'_>, last: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(field.name.of(bytes));
    out.extend_from_slice(b": ");
    let value = field.value.of(bytes);
    let mut kept = 0;
    for wide in confine.wide_domains(value) {
        out.extend_from_slice(&value[kept..wide.start]);
        kept = wide.end;
    }
    out.extend_from_slice(&value[kept..]);
    out.extend_from_slice(last.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_clear_site_data(bytes: &[u8], field: &Field, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(field.name.of(bytes));
    out.extend_from_slice(b": ");
    if confine::append_clear_site_data(field.value.of(bytes), out) {
        out.extend_from_slice(b"\r\n");
    } else {
        out.truncate(start);
    }
}

fn has_field(head: &ResponseHead<'_>, name: &[u8]) -> bool {
    head.fields.iter().any(|field| field.name.of(head.bytes).eq_ignore_ascii_case(name))
}

/// Only an absolute path is one of the toolbox; a URL, `//host` (and what browsers take for it) and nothing at all
/// mean what they mean anywhere.
fn write_location(bytes: &[u8], field: &Field, prefix: Option<&SandboxId>, out: &mut Vec<u8>) {
    let value = field.value.of(bytes);
    let Some(sandbox) =
        prefix.filter(|_| value.first() == Some(&b'/') && !matches!(value.get(1), Some(b'/' | b'\\')))
    else {
        return write_line(bytes, field, out);
    };
    let prefix = format!("/toolbox/{sandbox}");
    let prefixed =
        value.strip_prefix(prefix.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
    out.extend_from_slice(field.name.of(bytes));
    out.extend_from_slice(b": ");
    if !prefixed {
        out.extend_from_slice(prefix.as_bytes());
    }
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Lines of the other side that pass unchanged, copied as far as they stand together in its head.
struct Lines<'h> {
    bytes: &'h [u8],
    /// What is kept and not yet written.
    run: Range<usize>,
}

impl<'h> Lines<'h> {
    fn of(bytes: &'h [u8]) -> Self {
        Self { bytes, run: 0..0 }
    }

    fn keep(&mut self, field: &Field, out: &mut Vec<u8>) {
        match self.as_it_stands(field) {
            Some(line) if line.start == self.run.end => self.run.end = line.end,
            Some(line) => {
                self.flush(out);
                self.run = line;
            }
            None => {
                self.flush(out);
                write_line(self.bytes, field, out);
            }
        }
    }

    /// Where the line is, if it is spelled as we would: one space, and nothing behind the value but CRLF.
    fn as_it_stands(&self, field: &Field) -> Option<Range<usize>> {
        let start = usize::from(field.name.start);
        let colon = start + usize::from(field.name.len);
        let value = usize::from(field.value.start);
        let end = value + usize::from(field.value.len);
        let canonical = value == colon + 2
            && self.bytes.get(colon..value) == Some(b": ")
            && self.bytes.get(end..end + 2) == Some(b"\r\n");
        canonical.then_some(start..end + 2)
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[std::mem::take(&mut self.run)]);
    }
}

/// A field line of the other side, name and value byte-identical.
fn write_line(bytes: &[u8], field: &Field, out: &mut Vec<u8>) {
    let (name, value) = (field.name.of(bytes), field.value.of(bytes));
    debug_assert!(
        !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)),
        "the head's parser let a break through"
    );
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Inlined for the name: text of a known length is stored, without a call.
#[inline(always)]
fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    write_number(length, out);
    out.extend_from_slice(b"\r\n");
}

fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        // By hand: the formatting machinery costs more than the rest of the field.
        IpAddr::V4(ip) => {
            let (mut text, mut len) = ([b'.'; "255.255.255.255.".len()], 0);
            for octet in ip.octets() {
                let digits = [octet / 100, octet / 10, octet].map(|n| digit(n.into()));
                let leading = usize::from(octet < 10) + usize::from(octet < 100);
                for digit in &digits[leading..] {
                    text[len] = *digit;
                    len += 1;
                }
                // Behind each but the last one, which is cut off, its dot.
                len += 1;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        IpAddr::V6(ip) => write!(out, "{ip}").expect("a Vec takes all that is written"),
    }
}

/// The last digit.
fn digit(number: u16) -> u8 {
    b'0' + (number % 10) as u8
}

fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
