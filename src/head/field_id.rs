//! Field names some stage of the gate looks at. Knows names only, not what is done with the fields.

use crate::octets::Octets;

/// The fields some stage of ours looks at; everything else is `Other` and passes as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldId {
    Other,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    /// Connection-level without being named in `Connection`: Keep-Alive, Proxy-Connection, HTTP2-Settings,
    /// Proxy-Authenticate, Proxy-Authorization, Proxy-Authentication-Info. (TE, Upgrade and Trailer are too, but
    /// have ids of their own.)
    HopByHop,
    Te,
    Upgrade,
    Trailer,
    Expect,
    Authorization,
    Cookie,
    /// RFC 7239.
    Forwarded,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XForwardedPort,
    XRealIp,
    XRequestId,
    /// `X-Daytona-Preview-Token`.
    PreviewToken,
    /// Names a client must never deliver to a runner: `X-Daytona-Authorization` in any spelling, and respellings
    /// of the other names we set or strip.
    Reserved,
    /// `X-Daytona-Skip-Last-Activity-Update`.
    SkipLastActivity,
    /// `X-Daytona-Skip-Preview-Warning`.
    SkipPreviewWarning,
    /// `X-Daytona-Disable-CORS`.
    DisableCors,
    Origin,
    Referer,
    AccessControlRequestMethod,
    AccessControlRequestHeaders,
    SecWebSocketKey,
    SecWebSocketAccept,
    SecWebSocketVersion,
    SecFetchMode,
    SecFetchDest,
    SecFetchSite,
    UpgradeInsecureRequests,
    SetCookie,
    AltSvc,
    ClearSiteData,
    Accept,
    UserAgent,
    Location,
}

/// Which fields a head has at all: most questions about a field are answered by its absence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FieldSet(u64);

impl FieldSet {
    pub fn insert(&mut self, id: FieldId) {
        self.0 |= Self::bit(id);
    }

    pub fn contains(self, id: FieldId) -> bool {
        self.0 & Self::bit(id) != 0
    }

    const fn bit(id: FieldId) -> u64 {
        1 << id as u8
    }
}

const _: () = assert!((FieldId::Location as u8) < 64, "a field's number is a bit of 64");

/// Longer than every name in [`FieldId::exact`].
const KNOWN_NAME_BYTES_MAX: usize = 40;

impl FieldId {
    /// In a client's head.
    ///
    /// CGI-like gateways behind us fold every byte that is not a letter or digit into `_` before an application
    /// sees the name, so `X_Forwarded_For` (or `X.Forwarded.For`) would arrive as the field we vouch for
    /// (CVE-2025-64484). Such spellings of a name we set or strip are `Reserved`.
    pub fn of_client(name: &[u8]) -> Self {
        let id = Self::exact(name);
        static PLAIN: Octets = Octets::alphanumeric_and(b"-");
        if id == Self::Other && !PLAIN.hold_all(name) {
            return Self::respelled(name);
        }
        id
    }

    /// As it is spelled, in any case. Not for what a client sends and somebody behind us may fold, see [`Self::of_client`].
    pub fn exact(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => Self::Te,
            4 if is(b"host") => Self::Host,
            6 if is(b"accept") => Self::Accept,
            6 if is(b"cookie") => Self::Cookie,
            6 if is(b"origin") => Self::Origin,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            8 if is(b"location") => Self::Location,
            7 if is(b"alt-svc") => Self::AltSvc,
            7 if is(b"referer") => Self::Referer,
            7 if is(b"trailer") => Self::Trailer,
            9 if is(b"forwarded") => Self::Forwarded,
            9 if is(b"x-real-ip") => Self::XRealIp,
            10 if is(b"user-agent") => Self::UserAgent,
            10 if is(b"set-cookie") => Self::SetCookie,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::HopByHop,
            12 if is(b"x-request-id") => Self::XRequestId,
            13 if is(b"authorization") => Self::Authorization,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"sec-fetch-mode") => Self::SecFetchMode,
            14 if is(b"sec-fetch-dest") => Self::SecFetchDest,
            14 if is(b"sec-fetch-site") => Self::SecFetchSite,
            14 if is(b"http2-settings") => Self::HopByHop,
            15 if is(b"clear-site-data") => Self::ClearSiteData,
            15 if is(b"x-forwarded-for") => Self::XForwardedFor,
            16 if is(b"x-forwarded-host") => Self::XForwardedHost,
            16 if is(b"x-forwarded-port") => Self::XForwardedPort,
            16 if is(b"proxy-connection") => Self::HopByHop,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            17 if is(b"x-forwarded-proto") => Self::XForwardedProto,
            17 if is(b"sec-websocket-key") => Self::SecWebSocketKey,
            18 if is(b"proxy-authenticate") => Self::HopByHop,
            19 if is(b"proxy-authorization") => Self::HopByHop,
            20 if is(b"sec-websocket-accept") => Self::SecWebSocketAccept,
            21 if is(b"sec-websocket-version") => Self::SecWebSocketVersion,
            22 if is(b"x-daytona-disable-cors") => Self::DisableCors,
            23 if is(b"x-daytona-preview-token") => Self::PreviewToken,
            23 if is(b"x-daytona-authorization") => Self::Reserved,
            25 if is(b"proxy-authentication-info") => Self::HopByHop,
            25 if is(b"upgrade-insecure-requests") => Self::UpgradeInsecureRequests,
            29 if is(b"access-control-request-method") => Self::AccessControlRequestMethod,
            30 if is(b"access-control-request-headers") => Self::AccessControlRequestHeaders,
            30 if is(b"x-daytona-skip-preview-warning") => Self::SkipPreviewWarning,
            35 if is(b"x-daytona-skip-last-activity-update") => Self::SkipLastActivity,
            _ => Self::Other,
        }
    }

    #[cold]
    fn respelled(name: &[u8]) -> Self {
        let mut folded = [0; KNOWN_NAME_BYTES_MAX];
        let Some(folded) = folded.get_mut(..name.len()) else { return Self::Other };
        for (to, from) in folded.iter_mut().zip(name) {
            *to = if from.is_ascii_alphanumeric() { *from } else { b'-' };
        }
        match Self::exact(folded) {
            // Only read by us, never set or stripped: an application may use such a name for itself.
            Self::Other
            | Self::Origin
            | Self::Accept
            | Self::UserAgent
            | Self::AccessControlRequestMethod
            | Self::AccessControlRequestHeaders
            | Self::SecFetchMode
            | Self::SecFetchDest
            | Self::SecFetchSite
            | Self::UpgradeInsecureRequests
            | Self::Referer
            | Self::SetCookie
            | Self::AltSvc
            | Self::ClearSiteData
            | Self::SecWebSocketKey
            | Self::SecWebSocketAccept
            | Self::SecWebSocketVersion
            | Self::Location => Self::Other,
            _ => Self::Reserved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldId, FieldSet};

    const KNOWN: &[(&str, FieldId)] = &[
        ("Host", FieldId::Host),
        ("Connection", FieldId::Connection),
        ("Content-Length", FieldId::ContentLength),
        ("Transfer-Encoding", FieldId::TransferEncoding),
        ("Keep-Alive", FieldId::HopByHop),
        ("Proxy-Connection", FieldId::HopByHop),
        ("HTTP2-Settings", FieldId::HopByHop),
        ("Proxy-Authenticate", FieldId::HopByHop),
        ("Proxy-Authorization", FieldId::HopByHop),
        ("Proxy-Authentication-Info", FieldId::HopByHop),
        ("TE", FieldId::Te),
        ("Upgrade", FieldId::Upgrade),
        ("Trailer", FieldId::Trailer),
        ("Expect", FieldId::Expect),
        ("Authorization", FieldId::Authorization),
        ("Cookie", FieldId::Cookie),
        ("Forwarded", FieldId::Forwarded),
        ("X-Forwarded-For", FieldId::XForwardedFor),
        ("X-Forwarded-Host", FieldId::XForwardedHost),
        ("X-Forwarded-Proto", FieldId::XForwardedProto),
        ("X-Forwarded-Port", FieldId::XForwardedPort),
        ("X-Real-IP", FieldId::XRealIp),
        ("X-Request-ID", FieldId::XRequestId),
        ("X-Daytona-Preview-Token", FieldId::PreviewToken),
        ("X-Daytona-Authorization", FieldId::Reserved),
        ("X-Daytona-Skip-Last-Activity-Update", FieldId::SkipLastActivity),
        ("X-Daytona-Skip-Preview-Warning", FieldId::SkipPreviewWarning),
        ("X-Daytona-Disable-CORS", FieldId::DisableCors),
        ("Origin", FieldId::Origin),
        ("Referer", FieldId::Referer),
        ("Set-Cookie", FieldId::SetCookie),
        ("Alt-Svc", FieldId::AltSvc),
        ("Clear-Site-Data", FieldId::ClearSiteData),
        ("Access-Control-Request-Method", FieldId::AccessControlRequestMethod),
        ("Access-Control-Request-Headers", FieldId::AccessControlRequestHeaders),
        ("Sec-WebSocket-Key", FieldId::SecWebSocketKey),
        ("Sec-WebSocket-Accept", FieldId::SecWebSocketAccept),
        ("Sec-WebSocket-Version", FieldId::SecWebSocketVersion),
        ("Sec-Fetch-Mode", FieldId::SecFetchMode),
        ("Sec-Fetch-Dest", FieldId::SecFetchDest),
        ("Sec-Fetch-Site", FieldId::SecFetchSite),
        ("Upgrade-Insecure-Requests", FieldId::UpgradeInsecureRequests),
        ("Accept", FieldId::Accept),
        ("User-Agent", FieldId::UserAgent),
        ("Location", FieldId::Location),
    ];

    #[test]
    fn known_names_match_in_any_case() {
        for (name, id) in KNOWN {
            for spelling in [name.to_string(), name.to_lowercase(), name.to_uppercase()] {
                for given in [FieldId::exact(spelling.as_bytes()), FieldId::of_client(spelling.as_bytes())] {
                    assert_eq!(given, *id, "{spelling}");
                }
            }
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        for (name, id) in KNOWN {
            let mut set = FieldSet::default();
            set.insert(*id);
            assert!(KNOWN.iter().all(|(_, other)| set.contains(*other) == (other == id)), "{name}");
        }
    }

    #[test]
    fn a_name_longer_or_shorter_by_a_byte_is_another_field() {
        for (name, _) in KNOWN {
            assert_eq!(FieldId::of_client(format!("{name}x").as_bytes()), FieldId::Other, "{name}x");
            assert_eq!(FieldId::of_client(&name.as_bytes()[1..]), FieldId::Other, "{name} cut");
        }
        assert_eq!(FieldId::of_client(b""), FieldId::Other);
        // KELVIN SIGN lower-cases to `k` in Unicode; field names are ASCII.
        assert_eq!(FieldId::of_client("coo\u{212A}ie".as_bytes()), FieldId::Other);
    }

    #[test]
    fn respelled_names_we_set_or_strip_are_reserved() {
        for name in [
            "X_Daytona_Authorization",
            "x_daytona-authorization",
            "X-Daytona_Authorization",
            "X_Forwarded_For",
            "X-Forwarded_Host",
            "x_forwarded_proto",
            "X_Forwarded_Port",
            "X.Forwarded.For",
            "X_Real_IP",
            "Content_Length",
            "TRANSFER_ENCODING",
            "Keep_Alive",
            "X_Request_Id",
            "X_Daytona_Preview_Token",
            "X_Daytona_Skip_Last_Activity_Update",
        ] {
            assert_eq!(FieldId::of_client(name.as_bytes()), FieldId::Reserved, "{name}");
            assert_eq!(FieldId::exact(name.as_bytes()), FieldId::Other, "a runner's {name}");
        }
        for name in ["User_Agent", "Sec_Fetch_Mode", "X_Other", "_", "X-Forwarded-For-", "my_app_key"] {
            assert_eq!(FieldId::of_client(name.as_bytes()), FieldId::Other, "{name}");
        }
        assert_eq!(FieldId::of_client(&[b'_'; 300]), FieldId::Other);
    }
}
