//! The head of an answer as its client gets it.

use super::confine::{self, Confine};
use super::lines::{Lines, digit, write_field, write_length, write_line};
use super::{Named, is_clean, write_websocket_upgrade};
use crate::cors::{ALLOW_ORIGIN, Sharing, SharingFields};
use crate::framing::ResponseBody;
use crate::head::{Field, FieldId, ResponseHead, Version};
use crate::ids::SandboxId;

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
    out.reserve(head.bytes.len() + 256);
    write_status_line(head, out);
    let passed = pass(head, plan, out);
    if head.status >= 200 {
        if let Some(sharing) = plan.sharing {
            sharing.write(passed.app_shares, &passed.shared, out);
        }
        if plan.is_guest() {
            passed.document.write_isolation(head.status, out);
        }
        if let Some(sources) = plan.frame_ancestors {
            // A copy kept from a tab is not for a frame, whose holder it does not name.
            out.extend_from_slice(b"Vary: Sec-Fetch-Dest\r\nContent-Security-Policy: frame-ancestors ");
            out.extend_from_slice(sources.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    write_framing(head.status, plan.framing, passed.length, out);
    if head.status == SWITCHING {
        write_websocket_upgrade(out);
    } else if head.status >= 200 {
        if plan.close {
            write_field("Connection", b"close", out);
        } else if plan.client_version == Version::Http10 {
            write_field("Connection", b"keep-alive", out);
        }
    }
    if head.status >= 200 || head.status == SWITCHING {
        if let Some(value) = plan.set_cookie {
            write_field("Set-Cookie", value.as_bytes(), out);
        }
        if !passed.has_request_id {
            write_field("X-Request-Id", plan.request_id.as_bytes(), out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

const SWITCHING: u16 = 101;

impl ResponsePlan<'_> {
    /// Under an origin that is not the app's alone.
    fn is_guest(&self) -> bool {
        self.confine.as_ref().is_some_and(|confine| !confine.own_host)
    }
}

fn write_status_line(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    // The status code has three digits.
    let [hundreds, tens, ones] = [head.status / 100, head.status / 10, head.status].map(digit);
    out.extend_from_slice(&[hundreds, tens, ones, b' ']);
    out.extend_from_slice(head.reason.of(head.bytes));
    out.extend_from_slice(b"\r\n");
}

/// What the app's fields said that is ours to answer.
#[derive(Default)]
struct Passed<'h> {
    has_request_id: bool,
    /// As it stands in the first `Content-Length`.
    length: Option<&'h [u8]>,
    app_shares: bool,
    shared: SharingFields,
    document: confine::Document,
}

/// Writes the app's fields that may pass.
fn pass<'h>(head: &ResponseHead<'h>, plan: &ResponsePlan<'_>, out: &mut Vec<u8>) -> Passed<'h> {
    let bytes = head.bytes;
    let sharing = plan.sharing.filter(|_| head.status >= 200);
    let guest = plan.is_guest();
    let app_shares = sharing.is_some() && has_field(head, ALLOW_ORIGIN);
    let mut passed = Passed { app_shares, ..Passed::default() };
    let mut named = Named::Nothing;
    named.add(head.connection_names());
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
                passed.length = passed.length.or(Some(value));
                false
            }
            FieldId::SetCookie => !confine::sets_our_cookie(value),
            FieldId::AltSvc => plan.confine.is_none(),
            FieldId::Other if guest && confine::speaks_for_origin(field.name.of(bytes)) => false,
            FieldId::Other => {
                let name = field.name.of(bytes);
                sharing.is_none_or(|sharing| sharing.keeps(name, app_shares, &mut passed.shared))
            }
            _ => true,
        };
        if !kept || named.hold(field, bytes) {
            continue;
        }
        if guest {
            passed.document.add(field.name.of(bytes), value);
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
                passed.has_request_id |= field.id == FieldId::XRequestId;
                lines.keep(field, out);
            }
        }
    }
    lines.flush(out);
    passed
}

/// `length`: what the app said.
fn write_framing(status: u16, framing: ResponseBody, length: Option<&[u8]>, out: &mut Vec<u8>) {
    match framing {
        ResponseBody::Length(length) => write_length(length, out),
        ResponseBody::Chunked => write_field("Transfer-Encoding", b"chunked", out),
        ResponseBody::UntilClose => {}
        // To HEAD and with 304 the length is a fact about the resource; 1xx and 204 must not have one (RFC 9110 8.6).
        ResponseBody::None if status < 200 || status == 204 => {}
        ResponseBody::None => {
            let number = |digits: &&[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            if let Some(digits) = length.filter(number) {
                write_field("Content-Length", digits, out);
            }
        }
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
