//! One recorded request and what its answer must be.

use super::archive::{Entry, PostData};
use super::url::{Origin, Url, without_key};
use super::{BODY_BYTES_MAX, Omission};
use crate::aim::Visitor;
use crate::http1::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::time::Duration;

/// Of one hop or of one connection (RFC 9110 7.6.1), or written anew for the one the request goes to.
const LEFT_TO_THE_CONNECTION: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// The sandbox's visitor has their own.
const CREDENTIALS: [&str; 6] = [
    "authorization",
    "cookie",
    "cookie2",
    "proxy-authorization",
    "x-daytona-authorization",
    "x-daytona-preview-token",
];

/// Without `Debug`: recordings are full of secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedRequest {
    /// Since the recording's first request.
    pub offset: Duration,
    method: String,
    /// Path and query.
    target: String,
    fields: Vec<Field>,
    #[serde(with = "base64_text")]
    body: Option<Bytes>,
    /// What was answered.
    status: u16,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Field {
    name: String,
    /// Names the recorded origin, in whose place the sandbox's stands: the value follows it.
    at_origin: bool,
    value: String,
}

/// Why an entry is no request to be replayed.
pub(super) enum Unfit {
    Omitted(Omission),
    /// So many bytes of a body.
    TooLarge(usize),
}

impl RecordedRequest {
    /// Of an entry to `origin` whose URL is `url`; its offset is the caller's to say.
    pub(super) fn of(entry: Entry, url: Url, origin: &Origin) -> Result<Self, Unfit> {
        let request = entry.request;
        let method = request.method;
        if !is_token(&method) || matches!(method.as_str(), "CONNECT" | "TRACE") {
            return Err(Unfit::Omitted(Omission::Unusable));
        }
        let announced =
            request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let announced = announced.and_then(|field| field.value.trim().parse::<u64>().ok());
        let had_body = request.body_size.is_some_and(|bytes| bytes > 0.0) || announced.is_some_and(|n| n > 0);
        let body = match &request.post_data {
            Some(data) => Some(body_of(data).ok_or(Unfit::Omitted(Omission::NoBody))?),
            None if had_body => return Err(Unfit::Omitted(Omission::NoBody)),
            None => matches!(method.as_str(), "POST" | "PUT" | "PATCH").then(Bytes::new),
        };
        if let Some(bytes) = body.as_ref().map(Bytes::len).filter(|bytes| *bytes > BODY_BYTES_MAX) {
            return Err(Unfit::TooLarge(bytes));
        }
        let mut fields = Vec::new();
        let hops: Vec<String> = request
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case("connection"))
            .flat_map(|field| field.value.split(','))
            .map(|option| option.trim().to_ascii_lowercase())
            .collect();
        for recorded in request.headers {
            let lower = recorded.name.to_ascii_lowercase();
            let is_left = LEFT_TO_THE_CONNECTION.contains(&lower.as_str())
                || CREDENTIALS.contains(&lower.as_str())
                || hops.contains(&lower)
                // HTTP/2's own (RFC 9113 8.3).
                || lower.starts_with(':');
            if is_left {
                continue;
            }
            if !is_token(&recorded.name) || !is_field_value(&recorded.value) {
                return Err(Unfit::Omitted(Omission::Unusable));
            }
            fields.push(Field::of(recorded.name, &recorded.value, origin));
        }
        let mime_type = request.post_data.map(|data| data.mime_type).unwrap_or_default();
        let has_type = fields.iter().any(|field| field.name.eq_ignore_ascii_case("content-type"));
        if !has_type && !mime_type.is_empty() && is_field_value(&mime_type) {
            fields.push(Field { name: "content-type".into(), at_origin: false, value: mime_type });
        }
        let (offset, target, status) = (Duration::ZERO, url.target, entry.response.status);
        Ok(Self { offset, method, target, fields, body, status })
    }

    /// Memory its texts and body take.
    pub(super) fn bytes(&self) -> usize {
        let fields = self.fields.iter().map(|field| field.name.len() + field.value.len() + 4);
        self.method.len()
            + self.target.len()
            + fields.sum::<usize>()
            + self.body.as_ref().map_or(0, Bytes::len)
    }

    /// The request as this visitor sends it. `scheme` is the target's.
    pub fn write(&self, request: &mut Request, visitor: &Visitor, scheme: &str) {
        request.clear();
        request.is_head = self.method == "HEAD";
        let mut target = String::with_capacity(self.target.len() + 64);
        visitor.write_target(&mut target, &self.target);
        let host = &visitor.host;
        let out = &mut request.bytes;
        let _infallible = write!(out, "{} {target} HTTP/1.1\r\nhost: {host}\r\n", self.method);
        for Field { name, at_origin, value } in &self.fields {
            let _infallible = match at_origin {
                true => write!(out, "{name}: {scheme}://{host}{value}\r\n"),
                false => write!(out, "{name}: {value}\r\n"),
            };
        }
        if let Some((name, value)) = &visitor.field {
            let _infallible = write!(out, "{name}: {value}\r\n");
        }
        if let Some(origin) = visitor.origin.as_ref().filter(|_| self.lacks_origin()) {
            let _infallible = write!(out, "origin: {origin}\r\n");
        }
        if let Some(body) = &self.body {
            let _infallible = write!(out, "content-length: {}\r\n", body.len());
        }
        out.extend_from_slice(b"\r\n");
        if let Some(body) = &self.body {
            request.attach(body);
        }
    }

    /// Changes something, and does not say for which page.
    fn lacks_origin(&self) -> bool {
        let reads = matches!(self.method.as_str(), "GET" | "HEAD");
        !reads && !self.has_field("origin")
    }

    fn has_field(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name.eq_ignore_ascii_case(name))
    }

    /// May be sent again when a kept connection turns out to be closed (RFC 9110 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
    }

    /// Whether a status is what the recording has: of the same class. An answer to a condition may be the whole as well as
    /// 304, for whoever is asked now knows other versions.
    pub fn expects(&self, status: u16) -> bool {
        let class = |status: u16| if status == 304 { 2 } else { status / 100 };
        let conditional = self.has_field("if-none-match") || self.has_field("if-modified-since");
        class(status) == class(self.status) && (status != 304 || conditional)
    }
}

impl Field {
    fn of(name: String, value: &str, origin: &Origin) -> Self {
        let kept = |value: String| Self { name: name.clone(), at_origin: false, value };
        let (is_origin, is_referer) =
            (name.eq_ignore_ascii_case("origin"), name.eq_ignore_ascii_case("referer"));
        match Url::parse(value).filter(|url| (is_origin || is_referer) && url.origin == *origin) {
            Some(_) if is_origin => Self { name, at_origin: true, value: String::new() },
            Some(url) => Self { name, at_origin: true, value: url.target },
            None if is_referer => kept(without_key(value)),
            None => kept(value.to_owned()),
        }
    }
}

/// `None`: it is not in the recording.
fn body_of(data: &PostData) -> Option<Bytes> {
    match (&data.text, data.encoding.as_deref()) {
        (Some(text), Some("base64")) => STANDARD.decode(text.trim()).ok().map(Bytes::from),
        (Some(text), _) if !text.is_empty() || data.params.is_empty() => Some(Bytes::from(text.clone())),
        // The parts' boundary and files are not told.
        _ if data.mime_type.starts_with("multipart/") => None,
        _ if data.params.is_empty() => None,
        _ => {
            let pairs = data
                .params
                .iter()
                .map(|pair| format!("{}={}", form_text(&pair.name), form_text(&pair.value)));
            Some(Bytes::from(pairs.collect::<Vec<_>>().join("&")))
        }
    }
}

/// As forms are encoded (application/x-www-form-urlencoded).
fn form_text(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b' ' => out.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// RFC 9110 5.6.2.
fn is_token(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(good)
}

/// Can stand on a field's line.
fn is_field_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || !byte.is_ascii_control())
}

/// Bodies are bytes; a plan is JSON.
mod base64_text {
    use super::{Bytes, STANDARD};
    use base64::Engine as _;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(body: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        body.as_ref().map(|body| STANDARD.encode(body)).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let body = text.map(|text| STANDARD.decode(text)).transpose();
        Ok(body.map_err(D::Error::custom)?.map(Bytes::from))
    }
}
