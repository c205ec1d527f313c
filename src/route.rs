//! Authority and path to what is asked for. Pure; the one place that reads a host name or a path prefix.

mod contain;
mod domains;
#[cfg(test)]
mod tests;

use crate::head::{Field, FieldId, Method, RequestHead};
use crate::ids::{Port, SandboxId};
use crate::login::HANDOFF_PATH;
use crate::octets::Octets;
pub use domains::Domains;

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// `{port}-{label}.domain`: the label is a sandbox id or (later) a signed token. The whole path is the app's.
    Preview { port: Port, label: SandboxId },
    /// `/toolbox/{id}/...`: `rest_at` is where the path behind the id starts in the target (at a `/`, or at the end
    /// of the path when nothing follows: then the runner is sent `/`).
    Toolbox { sandbox: SandboxId, rest_at: u16 },
    /// `/sandboxes/{id}/build-logs`, `/snapshots/{id}/build-logs`. Of the client's query only `follow` is kept: the
    /// runner takes the first `snapshotRef` it finds, so a client's own would read another tenant's log.
    BuildLogs { of: BuildLogsOf, follow: bool },
    /// `GET`/`HEAD /health` on a host that is not a preview host.
    Health,
    /// `GET /callback` on a host that is not a preview host: a browser is back from the login provider.
    Callback,
    /// `GET /.daytona/auth` on a preview host, where each has a session of its own: a browser brings its login there.
    Handoff,
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
    /// The path climbs above its root in some hop's reading: 400.
    PathClimbs,
    /// CONNECT and TRACE: 405.
    MethodNotAllowed,
    /// The host is of a domain that is not served: 421.
    ForeignHost,
    /// A service worker's script, of an origin that is not one sandbox's alone: 403.
    ServiceWorker,
}

/// Settings that change routing.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRules {
    /// TOOLBOX_ONLY_MODE: preview hosts whose port is not 2280 do not exist.
    pub toolbox_only: bool,
    /// Preview hosts have sessions of their own: `/.daytona/` is the gate's there and never the app's.
    pub own_sessions: bool,
}

/// The toolbox of a sandbox, as a port.
const TOOLBOX_PORT: u16 = 2280;
/// What is the gate's own on a preview host.
const OWN_PREFIX: &[u8] = b"/.daytona/";
/// Longest snapshot id or name in bytes.
const SNAPSHOT_MAX: usize = 128;

/// As [`route`], for hosts of these domains alone; the health of the gate is told under any name, for load balancers
/// ask by address. `trusted_peer`: what it says of the host the client asked for counts as well.
pub fn route_within(
    domains: Option<&Domains>,
    head: &RequestHead<'_>,
    rules: RouteRules,
    trusted_peer: bool,
) -> Result<Route, NoRoute> {
    let routed = route(head, rules);
    match domains {
        Some(domains) if routed != Ok(Route::Health) && !domains.have(head, trusted_peer) => {
            Err(NoRoute::ForeignHost)
        }
        _ => routed,
    }
}

/// The host decides first: on a preview host every path belongs to the app. Allocates for build logs of a snapshot
/// only.
pub fn route(head: &RequestHead<'_>, rules: RouteRules) -> Result<Route, NoRoute> {
    if matches!(head.method, Method::Connect | Method::Trace) {
        return Err(NoRoute::MethodNotAllowed);
    }
    let path = head.path();
    if path.first() != Some(&b'/') {
        // `OPTIONS *` asks about the server as a whole (RFC 9110 9.3.7); behind a prefix it has no meaning.
        return Err(NoRoute::NotFound);
    }
    match preview_host(head.authority.of(head.bytes))? {
        Some((port, _)) if rules.toolbox_only && port.number() != TOOLBOX_PORT => Err(NoRoute::NotFound),
        Some(_) if rules.own_sessions && path.starts_with(OWN_PREFIX) => {
            let handoff = path == HANDOFF_PATH.as_bytes() && head.method == Method::Get;
            if handoff { Ok(Route::Handoff) } else { Err(NoRoute::NotFound) }
        }
        Some((port, label)) => {
            contained(path)?;
            Ok(Route::Preview { port, label })
        }
        None => match own_path(head, path)? {
            // It would answer for all toolboxes and for the end of logins.
            Route::Toolbox { .. } | Route::BuildLogs { .. } if registers_worker(head) => {
                Err(NoRoute::ServiceWorker)
            }
            route => Ok(route),
        },
    }
}

/// `None`: not a preview host. Its domain is not looked at: several may point here.
pub fn preview_host(authority: &[u8]) -> Result<Option<(Port, SandboxId)>, NoRoute> {
    if authority.first() == Some(&b'[') {
        return Ok(None);
    }
    // The authority's grammar is checked: what is left of the first of these is the first label.
    let end = memchr::memchr2(b'.', b':', authority).unwrap_or(authority.len());
    let first_label = &authority[..end];
    let Some(dash) = memchr::memchr(b'-', first_label) else { return Ok(None) };
    let (port, label) = (&first_label[..dash], &first_label[dash + 1..]);
    if port.is_empty() || !port.iter().all(u8::is_ascii_digit) {
        return Ok(None);
    }
    match (Port::parse(port), SandboxId::parse_host_label(label)) {
        (Some(port), Some(label)) => Ok(Some((port, label))),
        _ => Err(NoRoute::BadHost),
    }
}

/// The paths of hosts that are not previews. Matched byte by byte, never decoded: what is forwarded is the same text.
fn own_path(head: &RequestHead<'_>, path: &[u8]) -> Result<Route, NoRoute> {
    if path == b"/health" && matches!(head.method, Method::Get | Method::Head) {
        return Ok(Route::Health);
    }
    if path == b"/callback" && head.method == Method::Get {
        return Ok(Route::Callback);
    }
    if let Some(behind) = path.strip_prefix(b"/toolbox/") {
        let id_len = memchr::memchr(b'/', behind).unwrap_or(behind.len());
        let (id, rest) = behind.split_at(id_len);
        let sandbox = SandboxId::parse(id).ok_or(NoRoute::NotFound)?;
        contained(rest)?;
        // A target is addressed with 16 bits, its path is shorter, and what is subtracted is a part of it.
        return Ok(Route::Toolbox { sandbox, rest_at: head.path_len - rest.len() as u16 });
    }
    if head.method == Method::Get
        && let Some(of) = build_logs(path)
    {
        return Ok(Route::BuildLogs { of, follow: follows(head.query()) });
    }
    Err(NoRoute::NotFound)
}

/// Browsers say it of a service worker's script and of what it imports, and no page can take it away (Service Workers
/// 4.3; Fetch Metadata says it again).
fn registers_worker(head: &RequestHead<'_>) -> bool {
    let is_worker = |field: &Field| match field.id {
        FieldId::Other => field.name.of(head.bytes).eq_ignore_ascii_case(b"service-worker"),
        FieldId::SecFetchDest => field.value.of(head.bytes) == b"serviceworker",
        _ => false,
    };
    head.fields.iter().any(is_worker)
}

fn build_logs(path: &[u8]) -> Option<BuildLogsOf> {
    let path = path.strip_suffix(b"/build-logs")?;
    if let Some(id) = path.strip_prefix(b"/sandboxes/") {
        return SandboxId::parse(id).map(BuildLogsOf::Sandbox);
    }
    let name = path.strip_prefix(b"/snapshots/")?;
    static OF_NAME: Octets = Octets::alphanumeric_and(b"_.:-");
    let ok = name.len() <= SNAPSHOT_MAX && OF_NAME.hold_all(name) && name.iter().any(|&b| b != b'.');
    let name = ok.then(|| std::str::from_utf8(name).ok()).flatten()?;
    Some(BuildLogsOf::Snapshot(name.into()))
}

/// The first `follow` counts.
fn follows(query: Option<&[u8]>) -> bool {
    let mut values =
        query.unwrap_or_default().split(|&b| b == b'&').filter_map(|pair| pair.strip_prefix(b"follow"));
    values.find(|rest| matches!(rest.first(), None | Some(b'='))) == Some(b"=true")
}

fn contained(path: &[u8]) -> Result<(), NoRoute> {
    if contain::climbs(path) { Err(NoRoute::PathClimbs) } else { Ok(()) }
}
