//! The runner: checks the gate's key, finds the sandbox, strips its own and the daemon's path, and lets the app answer.

use super::apps::{self, Request};
use super::peer::{After, Broken, Peer, answer};
use super::record::{BodyRecord, ConnectionEnd, RunnerRequest};
use super::spec::{App, SandboxState};
use super::world::Shared;
use super::{live, samples};
use serde_json::json;
use std::sync::Arc;

/// What stands before `/sandboxes/...` when the runner is given out with a path.
const BASE_PATH: &str = "/base/r1";

/// Serves one connection until it ends, and records how.
pub(super) async fn serve(shared: Arc<Shared>, mut peer: Peer, id: u64) {
    let end = loop {
        match one(&shared, &mut peer, id).await {
            Ok(Outcome::Done(After::KeepAlive)) => {}
            Ok(Outcome::Done(After::Close)) => break ConnectionEnd::ByApp,
            Ok(Outcome::WebSocket(talk)) => {
                peer.ended(ConnectionEnd::ByApp);
                live::converse(peer, talk).await;
                return;
            }
            Ok(Outcome::Reset) => {
                peer.ended(ConnectionEnd::ByApp);
                // A socket that cannot be told to reset is closed in order, which the test then sees.
                let _ = peer.reset_on_close();
                return;
            }
            Err(Broken::Between) => break ConnectionEnd::ClosedBetween,
            Err(Broken::Inside) => break ConnectionEnd::ClosedInside,
            Err(Broken::Malformed(why)) => break ConnectionEnd::Malformed(why),
        }
    };
    peer.ended(end);
    peer.close().await;
}

/// What an app's answer leads to.
pub(super) enum Outcome {
    Done(After),
    /// The 101 is sent; from here on it is WebSocket frames.
    WebSocket(live::Talk),
    /// The connection is to end with a reset.
    Reset,
}

async fn one(shared: &Shared, peer: &mut Peer, id: u64) -> Result<Outcome, Broken> {
    let head = peer.head().await?;
    let number = shared.recorder.runner_request(RunnerRequest {
        connection: id,
        line: format!("{} {}", head.method, head.target),
        headers: head.fields.clone(),
        body: BodyRecord::Unread,
        trailers: Vec::new(),
    });
    let target = head.target.strip_prefix(BASE_PATH).unwrap_or(&head.target);
    let path = target.split('?').next().unwrap_or_default();
    let addressed = toolbox(target);
    let (key, sandbox) = {
        let state = shared.state();
        let sandbox = addressed.and_then(|(id, _)| state.sandboxes.get(id)).map(|s| (s.state, s.app));
        (format!("Bearer {}", state.runner_key), sandbox)
    };
    if head.first("x-daytona-authorization") != Some(&key) {
        let body = json!({"statusCode": 401, "message": "invalid token", "code": "UNAUTHORIZED"});
        peer.send(&answer(401, &[JSON], body.to_string().as_bytes(), &head)).await?;
        return Ok(Outcome::Done(After::Close));
    }
    let own_answer = match (addressed, sandbox) {
        (Some((_, rest)), Some((SandboxState::Running, app))) => {
            let target = app_target(rest);
            let request = Request { shared, peer, number, target, head };
            return match app {
                App::Paths => apps::answer_by_path(request).await,
                _ => samples::answer(app, request).await,
            };
        }
        (Some(_), Some((SandboxState::Stopped, _))) => refusal(400, path, &head),
        (Some(_), _) => refusal(404, path, &head),
        (None, _) if path == "/snapshots/logs" => {
            let bytes = [("content-type", "application/octet-stream")];
            answer(200, &bytes, format!("log of {target}").as_bytes(), &head)
        }
        (None, _) => answer(404, &[], b"runner: no route", &head),
    };
    let mut request = Request { shared, peer, number, target: String::new(), head };
    request.read_body().await?;
    request.peer.send(&own_answer).await?;
    Ok(Outcome::Done(request.after()))
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

/// `/sandboxes/{id}/toolbox{rest}`: the id and the rest, which is empty or begins with `/` or `?`.
fn toolbox(target: &str) -> Option<(&str, &str)> {
    let (id, rest) = target.strip_prefix("/sandboxes/")?.split_once('/')?;
    let rest = rest.strip_prefix("toolbox")?;
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some((id, rest))
}

/// What the app sees: the daemon takes `/proxy/{port}` away.
fn app_target(rest: &str) -> String {
    let inner = rest.strip_prefix("/proxy/").map(|r| r.find(['/', '?']).map_or("", |at| &r[at..]));
    let inner = inner.unwrap_or(rest);
    if inner.starts_with('/') { inner.into() } else { format!("/{inner}") }
}

fn refusal(status: u16, path: &str, head: &super::peer::Head) -> Vec<u8> {
    let (message, code) = match status {
        400 => ("bad request: no IP address found. Is the Sandbox started?", "BAD_REQUEST"),
        _ => ("not found: sandbox container not found: No such container", "NOT_FOUND"),
    };
    let body =
        json!({"statusCode": status, "message": message, "code": code, "path": path, "method": head.method});
    answer(status, &[JSON], body.to_string().as_bytes(), head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_and_the_daemons_prefix_are_taken_away_byte_for_byte() {
        for (target, id, app) in [
            ("/sandboxes/a/toolbox/proxy/3000/x%2Fy?z=1", "a", "/x%2Fy?z=1"),
            ("/sandboxes/a/toolbox/proxy/3000", "a", "/"),
            ("/sandboxes/a/toolbox/proxy/3000?q", "a", "/?q"),
            ("/sandboxes/a/toolbox/files?path=/", "a", "/files?path=/"),
            ("/sandboxes/a/toolbox", "a", "/"),
        ] {
            let (found, rest) = toolbox(target).expect(target);
            assert_eq!((found, app_target(rest).as_str()), (id, app), "{target}");
        }
        assert_eq!(toolbox("/sandboxes/a/toolboxes"), None);
        assert_eq!(toolbox("/sandboxes/a"), None);
    }
}
