//! The one table from a cause to the answer a client sees.
//!
//! Whose fault first, then what. The text outside is chosen here; nothing that came from the API, a runner or the
//! system is ever put into it. The inside text goes to the log, complete.

use crate::admission::Limit;
use crate::head::Reject;
use crate::mailbox::{LoginFault, Trouble};
use crate::route::NoRoute;

/// Why a request is answered by us and not by the app.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The client's message is refused; the connection ends.
    Rejected(Reject),
    HeadTimeout,
    BodyStalled,
    NoRoute(NoRoute),
    /// No proof was shown.
    AuthRequired,
    /// Proofs were shown and none is good.
    AuthInvalid,
    /// The host is that of a signed link, and the link is unknown, over or for another port.
    SignedUrlExpired,
    /// A form that changes something was not sent by the page it belongs to.
    ForeignForm,
    /// Not there, or not for this caller: indistinguishable on purpose.
    NotFound,
    /// The sandbox has no runner (archived, not built yet, destroyed).
    SandboxNotRunning,
    /// The client or the sandbox uses more than it may; seconds to wait.
    Limited(Limit, u32),
    /// The control plane has no answer.
    Api(Trouble),
    /// A login ended without opening anything.
    Login(LoginFault),
    RunnerConnect,
    RunnerConnectTimeout,
    /// The runner closed without a byte of an answer.
    RunnerClosed,
    /// What the runner sent is not an HTTP response we can pass on.
    RunnerGarbage,
    RunnerTimeout,
    /// Too many connections or questions here.
    Overloaded,
    /// Our own fault: out of descriptors or memory.
    Internal,
    /// What let the client in holds no more: its connection is cut.
    Revoked,
    /// The client left before an answer; nothing is sent, it is only logged and counted.
    ClientGone,
}

/// Who is to be asked about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Client,
    Proxy,
    Api,
    Runner,
    /// The provider people log in with.
    Login,
}

impl Source {
    pub const ALL: &'static [Self] = &[Self::Client, Self::Proxy, Self::Api, Self::Runner, Self::Login];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Api => "api",
            Self::Runner => "runner",
            Self::Login => "login",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: u16,
    pub code: &'static str,
    pub source: Source,
    pub message: &'static str,
    pub hint: &'static str,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u32>,
}

impl Cause {
    pub fn answer(self) -> Answer {
        use Source::*;
        let row = |status, code, source, message, hint| Answer {
            status,
            code,
            source,
            message,
            hint,
            retry_after: None,
        };
        match self {
            Self::Rejected(reject) => {
                let (status, code, message) = match reject {
                    Reject::HeadTooLarge | Reject::TooManyFields | Reject::TrailerTooLarge => {
                        (431, "HEADERS_TOO_LARGE", "the request's header section is too large")
                    }
                    Reject::UriTooLong => (414, "URI_TOO_LONG", "the request target is too long"),
                    Reject::Version => {
                        (505, "HTTP_VERSION_NOT_SUPPORTED", "this HTTP version is not spoken here")
                    }
                    Reject::TransferEncodingUnsupported => (
                        501,
                        "TRANSFER_ENCODING_UNSUPPORTED",
                        "only the chunked transfer coding is supported",
                    ),
                    Reject::HostMissing
                    | Reject::HostDouble
                    | Reject::HostSyntax
                    | Reject::AuthorityMismatch => {
                        (400, "BAD_HOST", "the request does not name one valid host")
                    }
                    _ => (400, "BAD_REQUEST", "the request is not valid HTTP"),
                };
                row(
                    status,
                    code,
                    Client,
                    message,
                    "the connection was closed; correct the request and send it again",
                )
            }
            Self::Revoked => row(
                401,
                "GRANT_REVOKED",
                Client,
                "what let this connection in holds no more",
                "connect again with a proof that holds",
            ),
            Self::HeadTimeout => row(
                408,
                "REQUEST_TIMEOUT",
                Client,
                "the request head did not arrive in time",
                "send the whole head at once",
            ),
            Self::BodyStalled => row(
                408,
                "REQUEST_BODY_TIMEOUT",
                Client,
                "the request body stood still for too long",
                "check the connection and send it again",
            ),
            Self::NoRoute(NoRoute::NotFound) => row(
                404,
                "NOT_FOUND",
                Client,
                "nothing is served at this address",
                "previews live at {port}-{sandboxId} hosts, the toolbox at /toolbox/{sandboxId}/",
            ),
            Self::NoRoute(NoRoute::BadHost) => row(
                400,
                "BAD_HOST",
                Client,
                "this address is not a preview",
                "a preview host is {port}-{sandboxId}.<domain>, the port from 1 to 65535 without leading zeros",
            ),
            Self::NoRoute(NoRoute::PathClimbs) => row(
                400,
                "BAD_PATH",
                Client,
                "the path climbs above its root",
                "remove the leading .. segments",
            ),
            Self::NoRoute(NoRoute::MethodNotAllowed) => row(
                405,
                "METHOD_NOT_ALLOWED",
                Client,
                "this method is not forwarded",
                "CONNECT and TRACE are refused",
            ),
            // RFC 9110 15.5.20; what it forbids to proxies it does not to gateways, which are origins to clients.
            Self::NoRoute(NoRoute::ForeignHost) => row(
                421,
                "HOST_NOT_SERVED",
                Client,
                "no host of this domain is served here",
                "check the address; the operator's SANDGATE_ALLOWED_DOMAINS lists the domains",
            ),
            Self::NoRoute(NoRoute::ServiceWorker) => row(
                403,
                "SERVICE_WORKER_REFUSED",
                Client,
                "no service worker may be registered here",
                "all sandboxes share this origin; register it on the preview's own host",
            ),
            Self::AuthRequired => row(
                401,
                "AUTH_REQUIRED",
                Client,
                "this sandbox is private and no credentials were sent",
                "send an API key or JWT as a bearer, or a preview token in X-Daytona-Preview-Token",
            ),
            Self::AuthInvalid => row(
                401,
                "AUTH_INVALID",
                Client,
                "the credentials sent do not open this sandbox",
                "get a fresh preview token or use a key with access to this sandbox",
            ),
            Self::SignedUrlExpired => row(
                401,
                "SIGNED_URL_EXPIRED",
                Client,
                "this signed link has expired or was revoked",
                "ask the sender for a new link",
            ),
            Self::ForeignForm => row(
                403,
                "FOREIGN_FORM",
                Client,
                "this form belongs to another page",
                "open the preview itself and use the button there",
            ),
            Self::NotFound => row(
                404,
                "NOT_FOUND",
                Client,
                "not found, or not visible to these credentials",
                "check the id and the credentials",
            ),
            Self::SandboxNotRunning => row(
                503,
                "SANDBOX_NOT_RUNNING",
                Api,
                "the sandbox is not on any runner now",
                "start the sandbox, then try again",
            ),
            Self::Api(trouble) => match trouble {
                Trouble::ApiUnreachable => row(
                    503,
                    "CONTROL_PLANE_DOWN",
                    Api,
                    "the sandbox API cannot be reached",
                    "try again shortly",
                ),
                Trouble::ApiTimeout => row(
                    504,
                    "CONTROL_PLANE_TIMEOUT",
                    Api,
                    "the sandbox API did not answer in time",
                    "try again shortly",
                ),
                Trouble::ApiStatus(502..=504) => {
                    row(503, "CONTROL_PLANE_DOWN", Api, "the sandbox API is unavailable", "try again shortly")
                }
                Trouble::ApiStatus(_) => row(
                    502,
                    "CONTROL_PLANE_ERROR",
                    Api,
                    "the sandbox API failed",
                    "try again; if it persists, the operator's log has the cause",
                ),
                Trouble::ApiRateLimited(wait) => Answer {
                    retry_after: Some(wait.unwrap_or(1)),
                    ..row(
                        429,
                        "RATE_LIMITED",
                        Api,
                        "the sandbox API is limiting requests",
                        "slow down and try again",
                    )
                },
                Trouble::ApiGarbage => row(
                    502,
                    "CONTROL_PLANE_ERROR",
                    Api,
                    "the sandbox API gave an unusable answer",
                    "the operator should check DAYTONA_API_URL, it must end with /api",
                ),
                Trouble::RunnerUrl => row(
                    502,
                    "RUNNER_ADDRESS_INVALID",
                    Api,
                    "the sandbox's runner has no usable address",
                    "the operator should check the runner's proxy URL",
                ),
                Trouble::Overloaded => Self::Overloaded.answer(),
                Trouble::ClientLimited(seconds) => Self::Limited(Limit::LookUps, seconds).answer(),
            },
            Self::Limited(limit, seconds) => {
                let (code, message, hint) = match limit {
                    Limit::LookUps => (
                        "CLIENT_LIMIT",
                        "too many requests from your address that open nothing",
                        "check host and credentials, then try again",
                    ),
                    Limit::ClientRequests => {
                        ("CLIENT_LIMIT", "too many requests from your address", "slow down and try again")
                    }
                    Limit::ClientConnections => (
                        "CLIENT_LIMIT",
                        "too many connections from your address",
                        "close some, or wait for others to end",
                    ),
                    Limit::Sandbox => {
                        ("SANDBOX_LIMIT", "too many requests to this sandbox", "slow down and try again")
                    }
                };
                Answer { retry_after: Some(seconds), ..row(429, code, Proxy, message, hint) }
            }
            Self::Login(fault) => login(fault),
            Self::RunnerConnect => row(
                502,
                "RUNNER_UNREACHABLE",
                Runner,
                "the sandbox's runner refused the connection",
                "try again shortly",
            ),
            Self::RunnerConnectTimeout => row(
                504,
                "RUNNER_UNREACHABLE",
                Runner,
                "the sandbox's runner did not accept a connection in time",
                "try again shortly",
            ),
            Self::RunnerClosed => row(
                502,
                "UPSTREAM_CLOSED",
                Runner,
                "the connection ended before the app answered",
                "check the app's log; the request may have been executed",
            ),
            Self::RunnerGarbage => row(
                502,
                "UPSTREAM_INVALID",
                Runner,
                "the app's answer is not valid HTTP",
                "check the app's log",
            ),
            Self::RunnerTimeout => {
                row(504, "UPSTREAM_TIMEOUT", Runner, "the app did not answer in time", "check the app's log")
            }
            Self::Overloaded => Answer {
                retry_after: Some(1),
                ..row(503, "OVERLOADED", Proxy, "too much is going on here", "try again shortly")
            },
            Self::Internal => row(
                500,
                "INTERNAL",
                Proxy,
                "the gate could not handle the request",
                "try again; the operator's log has the cause",
            ),
            Self::ClientGone => row(499, "CLIENT_GONE", Client, "the client left", ""),
        }
    }
}

/// The rows of [`Cause::Login`]. All are read by people.
fn login(fault: LoginFault) -> Answer {
    use Source::{Client, Login};
    let row = |status, code, source, message, hint| Answer {
        status,
        code,
        source,
        message,
        hint,
        retry_after: None,
    };
    match fault {
        LoginFault::NotConfigured => {
            row(401, "LOGIN_UNAVAILABLE", Client, "nobody can log in here", "ask for a signed link")
        }
        LoginFault::StateInvalid => row(
            400,
            "LOGIN_STATE_INVALID",
            Client,
            "this is not the end of a login that began here",
            "open the sandbox's page again to log in",
        ),
        LoginFault::Expired => row(
            400,
            "LOGIN_EXPIRED",
            Client,
            "logging in took too long",
            "open the sandbox's page again to log in",
        ),
        LoginFault::OtherBrowser => row(
            400,
            "LOGIN_OTHER_BROWSER",
            Client,
            "this login began in another browser, or this one keeps no cookies",
            "open the sandbox's page again, with cookies allowed",
        ),
        LoginFault::Replayed => row(
            400,
            "LOGIN_USED",
            Client,
            "this login has been used already",
            "open the sandbox's page again; if it asks, log in again",
        ),
        LoginFault::Denied => row(
            401,
            "LOGIN_DENIED",
            Client,
            "the login was refused or given up",
            "open the sandbox's page again to try once more",
        ),
        LoginFault::CodeRefused => row(
            400,
            "LOGIN_CODE_REFUSED",
            Client,
            "the login provider does not know this login any more",
            "open the sandbox's page again to log in",
        ),
        LoginFault::NoAccess => row(
            403,
            "LOGIN_NO_ACCESS",
            Client,
            "you are logged in, but there is no such sandbox for this account",
            "check the address, or ask the sandbox's owner to let you in",
        ),
        LoginFault::ProviderDown => Answer {
            retry_after: Some(5),
            ..row(
                503,
                "LOGIN_PROVIDER_DOWN",
                Login,
                "the login provider cannot be reached now",
                "open the sandbox's page again in a moment; links with a token work meanwhile",
            )
        },
        LoginFault::ProviderUnusable => row(
            502,
            "LOGIN_FAILED",
            Login,
            "the login provider did not complete the login",
            "if it persists, the operator's log has the cause",
        ),
        LoginFault::TokenInvalid => row(
            502,
            "LOGIN_TOKEN_INVALID",
            Login,
            "what the login provider said of this login does not hold",
            "open the sandbox's page again; if it persists, the operator's log has the cause",
        ),
        LoginFault::Api(trouble) => Cause::Api(trouble).answer(),
        LoginFault::Internal => Cause::Internal.answer(),
    }
}
