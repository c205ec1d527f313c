//! Authority and path to what is asked for. Pure; the one place that reads a host name or a path prefix.

use crate::head::RequestHead;
use crate::ids::{Port, SandboxId};

/// What a request asks for (CONTRACT 0, 2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// `{port}-{label}.domain`: the label is a sandbox id or (later) a signed token.
    Preview { port: Port, label: SandboxId },
    /// `/toolbox/{id}/...`: `rest_at` is where the path behind the id starts in the target (at a `/`, or at the end
    /// of the path when nothing follows: then the runner is sent `/`).
    Toolbox { sandbox: SandboxId, rest_at: u16 },
    /// `/sandboxes/{id}/build-logs`, `/snapshots/{id}/build-logs`.
    BuildLogs { of: BuildLogsOf, follow: bool },
    /// `GET`/`HEAD /health` on a host that is not a preview host.
    Health,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum BuildLogsOf {
    Sandbox(SandboxId),
    /// Id or name: 1 to 128 bytes of `[A-Za-z0-9_.:-]`, not only dots.
    Snapshot(Box<str>),
}

/// Why there is no route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoute {
    /// Nothing here: 404.
    NotFound,
    /// The host looks like a preview host but its port or label is not one: 400.
    BadHost,
    /// The path climbs above its root in some hop's reading (SECURITY W5): 400.
    PathClimbs,
    /// CONNECT and TRACE: 405.
    MethodNotAllowed,
}

/// Settings that change routing.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRules {
    /// TOOLBOX_ONLY_MODE: preview hosts whose port is not 2280 do not exist.
    pub toolbox_only: bool,
}

pub fn route(head: &RequestHead<'_>, rules: RouteRules) -> Result<Route, NoRoute> {
    let _ = (head, rules);
    unimplemented!()
}
