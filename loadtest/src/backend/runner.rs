//! The runner: its key, its paths, sandboxes that are not there or not running; everything else is an app's affair.

use super::answer::{Answer, Next, send};
use super::app::{self, App};
use super::peer::{Broken, Head, Peer};
use super::state::{Dice, World, count};
use serde_json::json;

/// Answers one request.
pub(super) async fn answer(
    world: &World,
    peer: &mut Peer,
    head: &Head,
    dice: &mut Dice,
) -> Result<Next, Broken> {
    count(&world.counters.runner_requests);
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    if path == "/" {
        return refuse(peer, head, 200, "the runner is well").await;
    }
    let key = head.runner_authorization().or(head.authorization());
    if key.and_then(|value| value.strip_prefix("Bearer ")) != Some(&world.runner_key) {
        count(&world.counters.runner_unauthorized);
        return refuse(peer, head, 401, "invalid token").await;
    }
    if path == "/snapshots/logs" {
        let app = App { world, peer, head, sandbox: "", port: 0, path: "/bytes/10000", query: "" };
        return app::answer(app, dice).await;
    }
    let Some((sandbox, port, path)) = split_path(path) else {
        return refuse(peer, head, 404, "not found").await;
    };
    match world.sandbox(sandbox) {
        None => {
            count(&world.counters.runner_unknown_sandbox);
            refuse(peer, head, 404, "not found: sandbox container not found").await
        }
        Some(known) if world.is_stopped(known) => {
            refuse(peer, head, 400, "no IP address found. Is the Sandbox started?").await
        }
        Some(_) => app::answer(App { world, peer, head, sandbox, port, path, query }, dice).await,
    }
}

/// `/sandboxes/{id}/toolbox/proxy/{port}{path}` or `/sandboxes/{id}/toolbox{path}`, which is port 2280.
fn split_path(path: &str) -> Option<(&str, u16, &str)> {
    let (sandbox, rest) = path.strip_prefix("/sandboxes/")?.split_once('/')?;
    let rest = rest.strip_prefix("toolbox")?;
    let Some(rest) = rest.strip_prefix("/proxy/") else {
        return Some((sandbox, 2280, rest));
    };
    let digits = rest.find('/').unwrap_or(rest.len());
    Some((sandbox, rest[..digits].parse().ok()?, &rest[digits..]))
}

/// An answer of the runner's own. The request's body is read, so that the connection can go on.
async fn refuse(peer: &mut Peer, head: &Head, status: u16, message: &str) -> Result<Next, Broken> {
    peer.body(head.framing, None, &mut |_| ()).await?;
    let body =
        json!({"statusCode": status, "message": message, "path": head.target(), "method": head.method()});
    send(peer, head, &Default::default(), Answer::json(status, &body)).await
}

/// A numeric query parameter, `default` when it is missing or no number.
pub(super) fn number_parameter(query: &str, name: &str, default: u64) -> u64 {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_sandbox_port_and_the_apps_own_path() {
        for (path, parts) in [
            ("/sandboxes/a-b/toolbox/proxy/3000/x/y", Some(("a-b", 3000, "/x/y"))),
            ("/sandboxes/a/toolbox/proxy/3000", Some(("a", 3000, ""))),
            ("/sandboxes/a/toolbox/files", Some(("a", 2280, "/files"))),
            ("/sandboxes/a/toolbox/proxy/99999/x", None),
            ("/sandboxes/a/other", None),
            ("/elsewhere", None),
        ] {
            assert_eq!(split_path(path), parts, "{path}");
        }
    }
}
