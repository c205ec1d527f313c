//! The head of a request as its runner gets it.

use super::lines::{Lines, write_field, write_ip, write_length, write_number};
use super::{Named, is_clean, proofs, write_websocket_upgrade};
use crate::framing::RequestBody;
use crate::head::{Field, FieldId, RequestHead};
use crate::ids::{Port, SandboxId};
use std::net::IpAddr;

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

impl RequestPlan<'_> {
    fn is_clean(&self) -> bool {
        let whole = if let RunnerPath::Whole(target) = self.path { target } else { "" };
        let words = [self.host, self.base_path, whole, self.scheme];
        words.iter().all(|text| is_clean(text) && !text.contains(' '))
            && is_clean(self.authorization)
            && is_clean(self.request_id)
    }
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
