//! Message heads: bytes in, checked values out. Knows no socket, no clock and no configuration but its limits.
//!
//! `httparse` tokenizes; what it lets through and a strict proxy must not is refused here: bare LF, empty lines, a
//! target with characters outside RFC 3986, an ambiguous framing or authority.

mod field_id;
mod target;
#[cfg(test)]
mod tests;

pub use field_id::{FieldId, FieldSet};

use crate::framing::{FramingFields, RequestBody, ResponseBody};
use crate::limits::Limits;
use httparse::Status;
use smallvec::SmallVec;
use std::mem::MaybeUninit;

/// A stretch of the head's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    pub start: u16,
    pub len: u16,
}

impl Span {
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[usize::from(self.start)..usize::from(self.start) + usize::from(self.len)]
    }

    /// Where `part`, a slice of `head`, lies in it. An empty part may come from anywhere and has no place.
    fn at(part: &[u8], head: &[u8]) -> Self {
        if part.is_empty() {
            return Self::default();
        }
        // The casts are exact: a head is at most 65535 bytes (`head_bytes_max`).
        Self { start: (part.as_ptr().addr() - head.as_ptr().addr()) as u16, len: part.len() as u16 }
    }
}

/// One field line. Offsets, so that a head costs no allocation and can be made by any protocol's reader.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub id: FieldId,
    pub name: Span,
    /// Without surrounding SP and HTAB.
    pub value: Span,
}

impl Field {
    fn of(header: &httparse::Header<'_>, id: FieldId, head: &[u8]) -> Self {
        Self { id, name: Span::at(header.name.as_bytes(), head), value: Span::at(header.value, head) }
    }
}

/// Inline up to 32 fields (320 bytes), which ordinary heads stay below.
pub type Fields = SmallVec<[Field; 32]>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    Http10,
    Http11,
}

impl Version {
    /// The tokenizer knows the minor versions 0 and 1 only.
    fn of_minor(minor: u8) -> Self {
        if minor == 0 { Self::Http10 } else { Self::Http11 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Connect,
    Trace,
    Other,
}

impl Method {
    /// Case-sensitive (RFC 9110 9.1).
    fn of(text: &[u8]) -> Self {
        match text {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"CONNECT" => Self::Connect,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// RFC 9110 9.2.2: may be sent again when it is not known whether the first was received.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// A request head whose framing and authority are decided.
pub struct RequestHead<'b> {
    /// The head's bytes, blank line included; the body starts behind them.
    pub bytes: &'b [u8],
    pub fields: Fields,
    /// Of `fields`.
    pub seen: FieldSet,
    pub method: Method,
    pub method_text: Span,
    pub version: Version,
    /// Path and query of the target as received, `/` at least; `*` only for OPTIONS, `host:port` only for CONNECT.
    /// Never absolute-form: that one's authority has been compared with `Host` and dropped.
    pub target: Span,
    /// Length of the path within `target` (the query, if any, starts there with `?`).
    pub path_len: u16,
    /// `Host` as received, port included (RFC 9112 3.2).
    pub authority: Span,
    pub body: RequestBody,
    /// `Upgrade: websocket` with `Connection: upgrade` on a GET of HTTP/1.1 without a body.
    pub websocket: bool,
    /// The client allows another request on this connection.
    pub keep_alive: bool,
    pub expect_continue: bool,
}

/// A response head whose framing is decided.
pub struct ResponseHead<'b> {
    pub bytes: &'b [u8],
    pub fields: Fields,
    pub status: u16,
    pub reason: Span,
    pub version: Version,
    pub body: ResponseBody,
    /// The runner allows another request on this connection.
    pub keep_alive: bool,
}

/// Why a head was refused. Each has a counter; the variant's name in snake_case is the counter's label.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reject {
    Syntax,
    BareLf,
    Version,
    HeadTooLarge,
    TooManyFields,
    UriTooLong,
    TargetSyntax,
    HostMissing,
    HostDouble,
    HostSyntax,
    AuthorityMismatch,
    LengthSyntax,
    LengthConflict,
    LengthWithTransferEncoding,
    TransferEncodingUnsupported,
    TransferEncodingOnHttp10,
    UpgradeWithBody,
    ChunkSyntax,
    ChunkTooLarge,
    TrailerTooLarge,
}

impl Reject {
    pub const ALL: &'static [Self] = &[
        Self::Syntax,
        Self::BareLf,
        Self::Version,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::UriTooLong,
        Self::TargetSyntax,
        Self::HostMissing,
        Self::HostDouble,
        Self::HostSyntax,
        Self::AuthorityMismatch,
        Self::LengthSyntax,
        Self::LengthConflict,
        Self::LengthWithTransferEncoding,
        Self::TransferEncodingUnsupported,
        Self::TransferEncodingOnHttp10,
        Self::UpgradeWithBody,
        Self::ChunkSyntax,
        Self::ChunkTooLarge,
        Self::TrailerTooLarge,
    ];
}

impl<'b> RequestHead<'b> {
    /// `Ok(None)`: not complete yet, read more. After an error nothing later on the connection may be interpreted.
    ///
    /// `bytes` may reach beyond the head. One empty line before the request line is skipped (RFC 9112 2.2: some
    /// clients send CRLF behind a body); it stays part of the head's bytes.
    pub fn parse(bytes: &'b [u8], limits: &Limits) -> Result<Option<Self>, Reject> {
        let window = window(bytes, limits);
        let start = if window.starts_with(b"\r\n") { 2 } else { 0 };
        // The tokenizer would skip any number of empty lines, ended by bare LF too.
        match window.get(start) {
            Some(b'\n') => return Err(Reject::BareLf),
            Some(b'\r') if start > 0 || window.len() > 1 => return Err(Reject::Syntax),
            _ => {}
        }
        let mut table = [const { MaybeUninit::uninit() }; FIELD_TABLE_LEN];
        let mut request = httparse::Request::new(&mut []);
        let status = request.parse_with_uninit_headers(&window[start..], field_table(&mut table, limits));
        let Status::Complete(len) = status.map_err(|error| reject_of(error, &window[start..], 2))? else {
            refuse_long_target(&window[start..], request.path, limits)?;
            return incomplete(bytes, window, limits);
        };
        let bytes = &window[..start + len];
        if has_bare_lf(bytes) {
            return Err(Reject::BareLf);
        }
        let (Some(method_text), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(Reject::Syntax);
        };
        if target.len() > limits.uri_bytes_max {
            return Err(Reject::UriTooLong);
        }
        let version = Version::of_minor(version);
        let method = Method::of(method_text.as_bytes());

        let mut fields = Fields::new();
        fields.reserve(request.headers.len());
        let mut framing = FramingFields::default();
        let mut connection = ConnectionOptions::default();
        let mut host = None;
        let (mut upgrade, mut expect_continue) = (false, false);
        let mut seen = FieldSet::default();
        for header in &*request.headers {
            let field = Field::of(header, FieldId::of_client(header.name.as_bytes()), bytes);
            seen.insert(field.id);
            match field.id {
                FieldId::Host if host.is_some() => return Err(Reject::HostDouble),
                FieldId::Host => host = Some(field.value),
                FieldId::ContentLength => framing.content_length(header.value)?,
                FieldId::TransferEncoding => framing.transfer_encoding(header.value)?,
                FieldId::Connection => connection.add(header.value),
                FieldId::Upgrade => {
                    upgrade |= list(header.value).any(|name| name.eq_ignore_ascii_case(b"websocket"));
                }
                FieldId::Expect => expect_continue |= header.value.eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
            fields.push(field);
        }

        // HTTP/1.0 may omit Host, but without one there is nothing to route by.
        let authority = host.ok_or(Reject::HostMissing)?;
        if !target::is_authority(authority.of(bytes)) {
            return Err(Reject::HostSyntax);
        }
        let target = target::read(target.as_bytes(), method, authority.of(bytes))?;
        // The cast is exact: it is a part of the head.
        let path_len = target.path_len as u16;
        let target = Span::at(target.path_and_query, bytes);
        let body = framing.request(version)?;
        let websocket = method == Method::Get && version == Version::Http11 && upgrade && connection.upgrade;
        if websocket && !matches!(body, RequestBody::None | RequestBody::Length(0)) {
            return Err(Reject::UpgradeWithBody);
        }
        Ok(Some(Self {
            bytes,
            fields,
            seen,
            method,
            method_text: Span::at(method_text.as_bytes(), bytes),
            version,
            target,
            path_len,
            authority,
            body,
            websocket,
            keep_alive: connection.keeps_alive(version),
            // RFC 9110 10.1.1: to be ignored from an HTTP/1.0 client.
            expect_continue: expect_continue && version == Version::Http11,
        }))
    }

    pub fn path(&self) -> &'b [u8] {
        &self.target.of(self.bytes)[..usize::from(self.path_len)]
    }

    /// Behind the `?`; `None` without one.
    pub fn query(&self) -> Option<&'b [u8]> {
        self.target.of(self.bytes).get(usize::from(self.path_len) + 1..)
    }

    /// The first field of this kind.
    pub fn first(&self, id: FieldId) -> Option<&'b [u8]> {
        if !self.seen.contains(id) {
            return None;
        }
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(self.bytes))
    }

    /// What the `Connection` fields name, in any case: options and the fields meant for this hop alone
    /// (RFC 9110 7.6.1).
    pub fn connection_names(&self) -> impl Iterator<Item = &'b [u8]> {
        connection_names(&self.fields, self.bytes)
    }
}

impl<'b> ResponseHead<'b> {
    /// `request` is the method of the request this answers: it decides whether a body follows.
    /// `Ok(None)`: not complete yet.
    pub fn parse(bytes: &'b [u8], request: Method, limits: &Limits) -> Result<Option<Self>, Reject> {
        let window = window(bytes, limits);
        // The tokenizer would skip empty lines: leftovers of an earlier response, so nothing behind can be trusted.
        match window.first() {
            Some(b'\n') => return Err(Reject::BareLf),
            Some(b'\r') => return Err(Reject::Syntax),
            _ => {}
        }
        let mut table = [const { MaybeUninit::uninit() }; FIELD_TABLE_LEN];
        let mut response = httparse::Response::new(&mut []);
        let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            window,
            field_table(&mut table, limits),
        );
        let Status::Complete(len) = status.map_err(|error| reject_of(error, window, 0))? else {
            return incomplete(bytes, window, limits);
        };
        let bytes = &window[..len];
        if has_bare_lf(bytes) {
            return Err(Reject::BareLf);
        }
        let (Some(status @ 100..), Some(version)) = (response.code, response.version) else {
            return Err(Reject::Syntax);
        };
        let version = Version::of_minor(version);

        let mut fields = Fields::new();
        fields.reserve(response.headers.len());
        let mut framing = FramingFields::default();
        let mut connection = ConnectionOptions::default();
        for header in &*response.headers {
            // Nobody folds it on its way to the client.
            let field = Field::of(header, FieldId::exact(header.name.as_bytes()), bytes);
            match field.id {
                FieldId::ContentLength => framing.content_length(header.value)?,
                FieldId::TransferEncoding => framing.transfer_encoding(header.value)?,
                FieldId::Connection => connection.add(header.value),
                _ => {}
            }
            fields.push(field);
        }

        let body = framing.response(version, status, request)?;
        Ok(Some(Self {
            bytes,
            fields,
            status,
            reason: reason(bytes),
            version,
            body,
            keep_alive: connection.keeps_alive(version)
                && body != ResponseBody::UntilClose
                && !framing.announces_forbidden_body(status),
        }))
    }

    /// What the `Connection` fields name, as in [`RequestHead::connection_names`].
    pub fn connection_names(&self) -> impl Iterator<Item = &'b [u8]> {
        connection_names(&self.fields, self.bytes)
    }
}

/// Most fields of any head whatever the limits say: the tokenizer's table stands on the stack, 32 bytes each.
const FIELD_TABLE_LEN: usize = 256;

type FieldTable<'b> = [MaybeUninit<httparse::Header<'b>>];

fn field_table<'t, 'b>(table: &'t mut FieldTable<'b>, limits: &Limits) -> &'t mut FieldTable<'b> {
    &mut table[..limits.header_count_max.min(FIELD_TABLE_LEN)]
}

/// Spans are 16 bits.
fn head_bytes_max(limits: &Limits) -> usize {
    limits.head_bytes_max.min(usize::from(u16::MAX))
}

/// What of `bytes` a head may lie in.
fn window<'b>(bytes: &'b [u8], limits: &Limits) -> &'b [u8] {
    &bytes[..bytes.len().min(head_bytes_max(limits))]
}

/// A head that did not end within `window`: waits for more, unless what came already decides it.
fn incomplete<T>(bytes: &[u8], window: &[u8], limits: &Limits) -> Result<Option<T>, Reject> {
    if has_bare_lf(window) {
        return Err(Reject::BareLf);
    }
    if bytes.len() >= head_bytes_max(limits) { Err(Reject::HeadTooLarge) } else { Ok(None) }
}

/// The tokenizer takes LF for CRLF; a hop that does not would see other lines than we do.
///
/// Without an end before the last byte: so the compiler looks at many at a time, which costs a quarter of a search for each
/// line's end where lines are short, and half where they are long.
fn has_bare_lf(bytes: &[u8]) -> bool {
    let Some((first, behind)) = bytes.split_first() else { return false };
    let pairs = bytes.iter().zip(behind);
    let bare = pairs.fold(false, |bare, (before, byte)| bare | ((*byte == b'\n') & (*before != b'\r')));
    bare | (*first == b'\n')
}

/// `version_at`: which word of the first line the version is. What stands there may be no version at all (a target
/// with a space in it), and then it is the line that is wrong.
fn reject_of(error: httparse::Error, head: &[u8], version_at: usize) -> Reject {
    let is_version =
        || head.split(|b| *b == b' ').nth(version_at).is_some_and(|word| word.starts_with(b"HTTP/"));
    match error {
        httparse::Error::TooManyHeaders => Reject::TooManyFields,
        httparse::Error::Version if is_version() => Reject::Version,
        _ => Reject::Syntax,
    }
}

/// Refuses an incomplete head whose target is already too long, whether or not its end was seen (`target`).
fn refuse_long_target(head: &[u8], target: Option<&str>, limits: &Limits) -> Result<(), Reject> {
    let seen = match (target, memchr::memchr(b' ', head)) {
        (Some(target), _) => target.len(),
        (None, Some(method_len)) => head.len() - method_len - 1,
        (None, None) => 0,
    };
    if seen > limits.uri_bytes_max { Err(Reject::UriTooLong) } else { Ok(()) }
}

/// What stands between the status code and CRLF; the tokenizer's own answer drops a phrase with bytes from 0x80.
fn reason(head: &[u8]) -> Span {
    const BEFORE: usize = "HTTP/1.1 200 ".len();
    let line_len = memchr::memchr(b'\r', head).unwrap_or(0);
    Span::at(head.get(BEFORE..line_len).unwrap_or_default(), head)
}

/// The members of a comma-separated list (RFC 9110 5.6.1), without SP and HTAB around them and without empty ones.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|member| !member.is_empty())
}

/// SP and HTAB only: what `trim_ascii` takes further (FF, CR, LF) is no whitespace in HTTP.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn connection_names<'b>(fields: &[Field], bytes: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
    fields
        .iter()
        .filter(|field| field.id == FieldId::Connection)
        .flat_map(|field| list(field.value.of(bytes)))
}

/// The `Connection` options that mean something to us.
#[derive(Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl ConnectionOptions {
    fn add(&mut self, value: &[u8]) {
        for option in list(value) {
            match option.len() {
                5 => self.close |= option.eq_ignore_ascii_case(b"close"),
                7 => self.upgrade |= option.eq_ignore_ascii_case(b"upgrade"),
                10 => self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive"),
                _ => {}
            }
        }
    }

    /// RFC 9112 9.3.
    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}
