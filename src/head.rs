//! Message heads: bytes in, checked values out. Knows no socket, no clock and no configuration but its limits.
//!
//! `httparse` tokenizes; everything it lets through that a strict proxy must not (SECURITY 3.2) is refused here:
//! bare LF, a target with characters outside RFC 3986, an ambiguous framing or authority.

use crate::framing::{RequestBody, ResponseBody};
use crate::limits::Limits;
use smallvec::SmallVec;

/// A stretch of the head's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    pub start: u16,
    pub len: u16,
}

impl Span {
    pub fn of<'b>(self, bytes: &'b [u8]) -> &'b [u8] {
        &bytes[usize::from(self.start)..usize::from(self.start) + usize::from(self.len)]
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

/// The fields some stage of ours looks at; everything else is `Other` and passes as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldId {
    Other,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    /// Connection-level without being named: Keep-Alive, Proxy-Connection, TE, Upgrade, HTTP2-Settings,
    /// Proxy-Authenticate, Proxy-Authorization, Proxy-Authentication-Info.
    HopByHop,
    Te,
    Upgrade,
    Trailer,
    Expect,
    Authorization,
    Cookie,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XForwardedPort,
    XRealIp,
    /// RFC 7239.
    Forwarded,
    XRequestId,
    /// `X-Daytona-Preview-Token`.
    PreviewToken,
    /// Names a client must never deliver to a runner, in any spelling (`_` for `-`, any case):
    /// `X-Daytona-Authorization`, and `_` spellings of the other names we set or strip.
    Reserved,
    /// `X-Daytona-Skip-Last-Activity-Update`.
    SkipLastActivity,
    /// `X-Daytona-Skip-Preview-Warning`, `X-Daytona-Disable-CORS`.
    ProxyControl,
    Origin,
    SecWebSocketKey,
    SecWebSocketAccept,
    SecWebSocketVersion,
    SecFetchMode,
    Accept,
    UserAgent,
}

impl FieldId {
    /// Case-insensitive.
    pub fn of(name: &[u8]) -> Self {
        let _ = name;
        unimplemented!()
    }
}

pub type Fields = SmallVec<[Field; 32]>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    Http10,
    Http11,
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
    pub method: Method,
    pub method_text: Span,
    pub version: Version,
    /// Path and query of the target as received, `/` at least; `*` only for OPTIONS. Never absolute-form: that one's
    /// authority has been compared with `Host` and dropped.
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
    pub fn parse(bytes: &'b [u8], limits: &Limits) -> Result<Option<Self>, Reject> {
        let _ = (bytes, limits);
        unimplemented!()
    }

    pub fn path(&self) -> &'b [u8] {
        &self.target.of(self.bytes)[..usize::from(self.path_len)]
    }

    /// Behind the `?`; `None` without one.
    pub fn query(&self) -> Option<&'b [u8]> {
        self.target.of(self.bytes).get(usize::from(self.path_len) + 1..)
    }

    /// The names listed in every `Connection` field, as received; empty list members are skipped (RFC 9110 7.6.1).
    pub fn connection_names(&self) -> impl Iterator<Item = &[u8]> {
        connection_names(self.bytes, &self.fields)
    }
}

impl<'b> ResponseHead<'b> {
    /// `request` is the method of the request this answers: it decides whether a body follows.
    /// `Ok(None)`: not complete yet.
    pub fn parse(bytes: &'b [u8], request: Method, limits: &Limits) -> Result<Option<Self>, Reject> {
        let _ = (bytes, request, limits);
        unimplemented!()
    }

    /// The names listed in every `Connection` field, as received; empty list members are skipped (RFC 9110 7.6.1).
    pub fn connection_names(&self) -> impl Iterator<Item = &[u8]> {
        connection_names(self.bytes, &self.fields)
    }
}

fn connection_names<'h>(bytes: &'h [u8], fields: &'h [Field]) -> impl Iterator<Item = &'h [u8]> {
    fields
        .iter()
        .filter(|field| field.id == FieldId::Connection)
        .flat_map(move |field| field.value.of(bytes).split(|&b| b == b','))
        .map(|name| name.trim_ascii())
        .filter(|name| !name.is_empty())
}
