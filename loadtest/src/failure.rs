//! What can go wrong with a request, as the load generator sees it.

use std::io;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    Refused,
    /// No connection within the deadline.
    ConnectTimeout,
    Connect(io::ErrorKind),
    /// No local port or descriptor left: the load generator's own limit.
    OwnLimit,
    /// What was wrong, as its code.
    Tls(&'static str),
    Reset,
    /// The end came before the first byte of an answer.
    ClosedEarly,
    /// The end came within an answer.
    Truncated,
    Timeout,
    /// Not HTTP, or not what its own head says.
    Malformed,
    /// The answer is right by HTTP but not what was asked for.
    WrongContent,
    /// Good as such, but the recording has another kind of answer.
    NotAsRecorded,
    /// HTTP/2's own errors; what was wrong, as its code.
    Http2(&'static str),
}

impl Failure {
    /// Source of what the load generator does to itself. No proxy calls an error's source so.
    pub const OWN_SOURCE: &'static str = "load generator";

    pub fn code(self) -> &'static str {
        match self {
            Self::Refused => "connect refused",
            Self::ConnectTimeout => "connect timeout",
            Self::Connect(_) => "connect failed",
            Self::OwnLimit => "no local port or descriptor",
            Self::Tls(code) | Self::Http2(code) => code,
            Self::Reset => "reset",
            Self::ClosedEarly => "closed before the answer",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::WrongContent => "wrong content",
            Self::NotAsRecorded => "not as recorded",
        }
    }

    /// The load generator waited no longer.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::Timeout | Self::ConnectTimeout)
    }

    pub fn source(self) -> &'static str {
        match self {
            Self::OwnLimit => Self::OWN_SOURCE,
            Self::Malformed | Self::WrongContent | Self::NotAsRecorded => "answer",
            _ => "network",
        }
    }

    /// Of an established connection.
    pub fn of_stream(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::InvalidData => Self::of_tls(error),
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Reset,
        }
    }

    /// Of a TLS handshake, or of TLS later on.
    pub fn of_tls(error: &io::Error) -> Self {
        use rustls::{AlertDescription, CertificateError as Certificate, Error};
        let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::Tls("tls: closed during the handshake"),
                io::ErrorKind::InvalidData => Self::Tls("tls"),
                _ => Self::of_stream(error),
            };
        };
        Self::Tls(match cause {
            Error::InvalidCertificate(certificate) => match certificate {
                Certificate::UnknownIssuer => "tls: the certificate's issuer is not trusted",
                Certificate::Expired | Certificate::ExpiredContext { .. } => {
                    "tls: the certificate has expired"
                }
                Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                    "tls: the certificate is not valid yet"
                }
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                    "tls: the certificate is for another name"
                }
                Certificate::BadSignature => "tls: the certificate's signature is not the trusted issuer's",
                Certificate::Revoked => "tls: the certificate is revoked",
                // A self-signed one as `openssl req -x509` makes them. The verifier's error is not this crate's to name.
                Certificate::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                    "tls: the certificate is an issuer's, not a server's (only --insecure takes it)"
                }
                _ => "tls: the certificate is not good",
            },
            Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                "tls: no application protocol in common (ALPN)"
            }
            Error::PeerIncompatible(_)
            | Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure) => {
                "tls: no version or cipher in common"
            }
            Error::InvalidMessage(_) => "tls: what came is no TLS",
            Error::AlertReceived(AlertDescription::UnrecognisedName) => {
                "tls: the server does not know the name"
            }
            Error::AlertReceived(_) => "tls: alert from the server",
            _ => "tls",
        })
    }

    /// Of an attempt to connect.
    pub fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::OwnLimit,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            kind => match error.raw_os_error() {
                Some(EMFILE | ENFILE | ENOBUFS | ENOMEM) => Self::OwnLimit,
                _ => Self::Connect(kind),
            },
        }
    }
}

const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOBUFS: i32 = 105;
