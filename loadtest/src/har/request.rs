//! One recorded request and what its answer must be.

use super::archive::{self, Entry, Pair, PostData};
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
        let method = &entry.request.method;
        if !is_token(method) || matches!(method.as_str(), "CONNECT" | "TRACE") {
            return Err(Unfit::Omitted(Omission::Unusable));
        }
        let body = body_of(&entry.request)?;
        let fields = fields_of(&entry.request, origin)?;
        let (offset, target, status) = (Duration::ZERO, url.target, entry.response.status);
        Ok(Self { offset, method: entry.request.method, target, fields, body, status })
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

    /// Whether a status is what the recording has: of the same class, and of redirects the very one, for an app's is not
    /// that to a login. An answer to a condition may be the whole as well as 304, for whoever is asked now knows other
    /// versions.
    pub fn expects(&self, status: u16) -> bool {
        let class = |status: u16| if status == 304 { 2 } else { status / 100 };
        let conditional = self.has_field("if-none-match") || self.has_field("if-modified-since");
        match class(status) {
            3 => status == self.status,
            class_of_answer => class_of_answer == class(self.status) && (status != 304 || conditional),
        }
    }
}

impl Field {
    /// `None`: it names a page of another origin, whose host may be a token.
    fn of(name: &str, value: &str, origin: &Origin) -> Option<Self> {
        let (is_origin, is_referer) =
            (name.eq_ignore_ascii_case("origin"), name.eq_ignore_ascii_case("referer"));
        let field = |at_origin, value| Some(Self { name: name.into(), at_origin, value });
        match Url::parse(value).filter(|url| url.origin == *origin) {
            _ if !is_origin && !is_referer => field(false, without_key(value)),
            Some(_) if is_origin => field(true, String::new()),
            Some(url) => field(true, url.target),
            // Of a page that has none (RFC 6454 7.3).
            None if is_origin && value == "null" => field(false, value.into()),
            None => None,
        }
    }
}

/// What is sent of a request's fields, without those of the connection and of the visitor.
fn fields_of(request: &archive::Request, origin: &Origin) -> Result<Vec<Field>, Unfit> {
    let connection = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
    let options = connection.flat_map(|field| field.value.split(','));
    let hops: Vec<String> = options.map(|option| option.trim().to_ascii_lowercase()).collect();
    let mut fields = Vec::new();
    for recorded in &request.headers {
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
        fields.extend(Field::of(&recorded.name, &recorded.value, origin));
    }
    let mime_type = request.post_data.as_ref().map_or("", |data| &data.mime_type);
    let has_type = fields.iter().any(|field| field.name.eq_ignore_ascii_case("content-type"));
    if !has_type && !mime_type.is_empty() && is_field_value(mime_type) {
        fields.push(Field { name: "content-type".into(), at_origin: false, value: mime_type.into() });
    }
    Ok(fields)
}

/// `None`: it has none, and needs none.
fn body_of(request: &archive::Request) -> Result<Option<Bytes>, Unfit> {
    let announced = announced_bytes(request);
    let body = match &request.post_data {
        Some(data) => Some(recorded_body(data, announced).ok_or(Unfit::Omitted(Omission::NoBody))?),
        None if announced.is_some_and(|bytes| bytes > 0) => return Err(Unfit::Omitted(Omission::NoBody)),
        None => matches!(request.method.as_str(), "POST" | "PUT" | "PATCH").then(Bytes::new),
    };
    match body.as_ref().map(Bytes::len).filter(|bytes| *bytes > BODY_BYTES_MAX) {
        Some(bytes) => Err(Unfit::TooLarge(bytes)),
        None => Ok(body),
    }
}

/// How long the body was that the browser sent, where the file says it.
fn announced_bytes(request: &archive::Request) -> Option<u64> {
    let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let told = field.and_then(|field| field.value.trim().parse().ok());
    told.or_else(|| request.body_size.filter(|bytes| *bytes > 0.0).map(|bytes| bytes as u64))
}

/// `None`: it is not in the recording, or not as it was sent: browsers leave files out of forms, and what is no text they
/// write as characters up to U+00FF, one a byte.
fn recorded_body(data: &PostData, announced: Option<u64>) -> Option<Bytes> {
    let fits = |body: &Bytes| announced.is_none_or(|bytes| bytes == body.len() as u64);
    let params = data.params.as_slice();
    match (&data.text, data.encoding.as_deref()) {
        (Some(text), Some("base64")) => STANDARD.decode(text.trim()).ok().map(Bytes::from).filter(fits),
        (Some(text), _) if !text.is_empty() || params.is_empty() => {
            let body = Bytes::from(text.clone());
            if fits(&body) { Some(body) } else { bytes_as_characters(text).filter(fits) }
        }
        // The parts' boundary and files are not told.
        _ if data.mime_type.starts_with("multipart/") => None,
        _ if params.is_empty() => None,
        _ => {
            let pair = |pair: &Pair| format!("{}={}", form_text(&pair.name), form_text(&pair.value));
            Some(Bytes::from(params.iter().map(pair).collect::<Vec<_>>().join("&"))).filter(fits)
        }
    }
}

/// Latin-1: each character's number is a byte.
fn bytes_as_characters(text: &str) -> Option<Bytes> {
    let bytes = text.chars().map(|character| u8::try_from(u32::from(character)).ok());
    bytes.collect::<Option<Vec<u8>>>().map(Bytes::from)
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
