//! What the world holds, as data: sandboxes, who may see them, and where things listen.
//!
//! Knows no socket. A test or the demo writes a [`WorldSpec`]; [`super::world::World`] serves it and lets it be
//! changed while it runs.

use super::record::RecordLimits;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

/// The key a gate shows to the API unless the spec says otherwise.
pub const PROXY_KEY: &str = "conformance-proxy-key";
/// The key the API hands out for the runner unless the spec says otherwise.
pub const RUNNER_KEY: &str = "runner-key-1";

/// Everything a world starts with.
#[derive(Clone, Debug)]
pub struct WorldSpec {
    /// Where the API listens; port 0 lets the system choose.
    pub api: SocketAddr,
    /// Where the runner listens; port 0 lets the system choose.
    pub runner: SocketAddr,
    /// The only service key the API accepts.
    pub proxy_key: String,
    /// The key the runner wants to see, exactly as `Bearer <key>`.
    pub runner_key: String,
    pub sandboxes: Vec<SandboxSpec>,
    pub users: Vec<User>,
    /// Who can log in: with the world's own provider by a button, with another by this name as its subject.
    pub accounts: Vec<Account>,
    /// Another provider's userinfo endpoint: whose access token a bearer is that the API does not know.
    pub userinfo: Option<String>,
    pub signed: Vec<SignedToken>,
    pub record: RecordLimits,
}

impl Default for WorldSpec {
    /// Loopback, ports chosen by the system, nobody and nothing in it.
    fn default() -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            api: anywhere,
            runner: anywhere,
            proxy_key: PROXY_KEY.into(),
            runner_key: RUNNER_KEY.into(),
            sandboxes: Vec::new(),
            users: Vec::new(),
            accounts: Vec::new(),
            userinfo: None,
            signed: Vec::new(),
            record: RecordLimits::default(),
        }
    }
}

/// One sandbox: what the API says about it and what runs in it.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    pub id: String,
    pub public: PublicAnswer,
    /// The preview token that `validate` accepts.
    pub token: String,
    pub runner: RunnerAnswer,
    pub state: SandboxState,
    pub app: App,
}

impl SandboxSpec {
    /// A running public sandbox with the paths of [`App::Paths`].
    pub fn public(id: &str) -> Self {
        Self {
            id: id.into(),
            public: PublicAnswer::Yes,
            token: format!("tok{id}"),
            runner: RunnerAnswer::Ok,
            state: SandboxState::Running,
            app: App::Paths,
        }
    }

    /// As [`Self::public`], but a proof is needed.
    pub fn private(id: &str, token: &str) -> Self {
        Self { public: PublicAnswer::No, token: token.into(), ..Self::public(id) }
    }

    pub fn with_runner(self, runner: RunnerAnswer) -> Self {
        Self { runner, ..self }
    }

    pub fn with_state(self, state: SandboxState) -> Self {
        Self { state, ..self }
    }

    pub fn with_app(self, app: App) -> Self {
        Self { app, ..self }
    }

    pub fn with_public(self, public: PublicAnswer) -> Self {
        Self { public, ..self }
    }
}

/// What `GET /preview/{id}/public` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublicAnswer {
    /// 200 `true`.
    Yes,
    /// 404, as for a sandbox that does not exist.
    No,
    /// An error with this status.
    Status(u16),
    /// 200 with a dashboard page: what a wrong base URL gives.
    Html,
}

/// What `GET /runners/by-sandbox/{id}` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunnerAnswer {
    /// The world's own runner.
    Ok,
    /// An error with this status.
    Status(u16),
    /// A runner whose proxy URL is null.
    NoUrl,
    /// A runner where nothing listens.
    Refused,
    /// A runner whose proxy URL is no URL.
    BadUrl,
    /// The world's own runner behind the path `/base/r1`.
    WithPath,
    /// A runner at this URL.
    At(String),
}

/// How the runner sees the sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SandboxState {
    Running,
    /// The container has no address: the runner answers 400.
    Stopped,
    /// The container is not there: the runner answers 404.
    Gone,
}

/// What answers on the sandbox's ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum App {
    /// Behaviour by the first path segment, see [`super::apps`]; anything else echoes the request as JSON.
    Paths,
    /// A small page that updates itself over a WebSocket.
    Web,
    /// Server-sent events, one a second.
    Events,
    /// Downloads with ranges and a hashing upload.
    Files,
    /// Takes three seconds to answer (or `?ms=`).
    Slow,
    /// Closes without an answer.
    Crash,
}

/// A bearer and the sandboxes its organisation owns.
#[derive(Clone, Debug)]
pub struct User {
    pub bearer: String,
    pub sandboxes: BTreeSet<String>,
}

impl User {
    pub fn new(bearer: &str, sandboxes: &[&str]) -> Self {
        Self { bearer: bearer.into(), sandboxes: sandboxes.iter().map(|s| s.to_string()).collect() }
    }
}

/// Somebody who can log in, and what is theirs.
#[derive(Clone, Debug)]
pub struct Account {
    /// Of `[a-z0-9-]`.
    pub name: String,
    pub sandboxes: BTreeSet<String>,
}

impl Account {
    pub fn new(name: &str, sandboxes: &[&str]) -> Self {
        Self { name: name.into(), sandboxes: sandboxes.iter().map(|s| s.to_string()).collect() }
    }
}

/// A signed preview token: opens one port of one sandbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedToken {
    pub token: String,
    pub port: u16,
    pub sandbox: String,
}

/// How the API behaves as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApiMood {
    Normal,
    /// Every request is answered with this status.
    Status(u16),
    /// Requests are read and never answered.
    Silent,
    /// The connection is closed without an answer.
    Closing,
}
