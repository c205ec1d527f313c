//! The heads we write: request to the runner, response to the client. Header rules live here and nowhere else
//! (SECURITY W6): hop-by-hop and `Connection`-named fields go first, then reserved names in every spelling, then ours
//! are set once.

use crate::framing::{RequestBody, ResponseBody};
use crate::head::{RequestHead, ResponseHead, Version};
use std::net::IpAddr;

/// What the request to the runner is made of besides the client's head.
pub struct RequestPlan<'a> {
    /// Runner's `proxyUrl` authority, for `Host`.
    pub host: &'a str,
    /// Target up to where the client's path goes on, e.g. `/base/sandboxes/{id}/toolbox/proxy/3000`.
    pub path_prefix: &'a str,
    /// The client's path from this offset of its target on is appended; a `/` is put in when nothing is left.
    pub path_at: u16,
    /// Replaces path and query of the client altogether (build logs).
    pub whole_target: Option<&'a str>,
    /// `Bearer <runner api key>`, the value of `X-Daytona-Authorization`.
    pub authorization: &'a str,
    /// Strip the client's `Authorization`: it was the proof that let this request in.
    pub strip_authorization: bool,
    pub client_ip: IpAddr,
    /// The peer may speak for others: its X-Forwarded-For is appended to, its X-Forwarded-Host and -Proto kept.
    pub trusted_peer: bool,
    /// `http` or `https` as the client sees it.
    pub scheme: &'a str,
    pub request_id: &'a str,
}

/// Appends the whole head, blank line included, to `out`.
pub fn write_request(head: &RequestHead<'_>, plan: &RequestPlan<'_>, out: &mut Vec<u8>) {
    let _ = (head, plan, out, RequestBody::None);
    unimplemented!()
}

/// What the response to the client needs to know besides the runner's head.
pub struct ResponsePlan<'a> {
    /// The client's version: chunked is not for HTTP/1.0.
    pub client_version: Version,
    /// How the body goes out; decided by the exchange from the runner's framing and the client's version.
    pub framing: ResponseBody,
    /// The connection ends after this response.
    pub close: bool,
    pub request_id: &'a str,
}

/// Appends the whole head, blank line included, to `out`. Status 101 keeps `Upgrade` and `Connection: Upgrade`.
pub fn write_response(head: &ResponseHead<'_>, plan: &ResponsePlan<'_>, out: &mut Vec<u8>) {
    let _ = (head, plan, out);
    unimplemented!()
}

/// Name of the query parameter that carries a preview token.
pub const AUTH_QUERY_KEY: &[u8] = b"DAYTONA_SANDBOX_AUTH_KEY";

/// The first value of our query parameter, percent-decoded. `None` when absent.
pub fn query_token(query: &[u8]) -> Option<Vec<u8>> {
    let _ = query;
    unimplemented!()
}

/// `query` without any of our parameters, by byte surgery; the rest keeps bytes and order. `None`: nothing is left,
/// the `?` goes too. Works on the same parse as [`query_token`].
pub fn strip_query(query: &[u8]) -> Option<Vec<u8>> {
    let _ = query;
    unimplemented!()
}

/// `Cookie` value without the cookies that are ours by name, other cookies byte-identical. `None`: nothing is left.
/// Borrowed when there was nothing to strip.
pub fn strip_cookies(value: &[u8]) -> Option<std::borrow::Cow<'_, [u8]>> {
    let _ = value;
    unimplemented!()
}
