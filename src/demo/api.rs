//! The sandbox API as a gate sees it: previews, runners, sandboxes, snapshots, activity, and a login provider.
//!
//! Booleans come as the bare text `true` with content type text/html and everything outside `/api/` is the dashboard
//! with status 200, because that is what the real one does and what a gate must survive.

use super::peer::{After, Broken, Head, Peer, answer, percent_decoded};
use super::provider::{CLIENT_ID, Said};
use super::record::ApiRequest;
use super::spec::{ApiMood, PublicAnswer, RunnerAnswer};
use super::world::{Shared, State};
use serde_json::{Value, json};
use std::sync::Arc;

const RUNNER_ID: &str = "11111111-1111-4111-8111-111111111111";
const THEN: &str = "2026-01-01T00:00:00.000Z";
/// Longest request body kept for the record; the API's callers send next to none.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Serves one connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, mut peer: Peer) {
    // However the caller leaves is its own affair; what it asked is in the record.
    while let Ok(After::KeepAlive) = one(&shared, &mut peer).await {}
}

async fn one(shared: &Shared, peer: &mut Peer) -> Result<After, Broken> {
    let head = peer.head().await?;
    let mut body = Vec::new();
    let mut keep = |piece: &[u8]| {
        let room = BODY_BYTES_MAX.saturating_sub(body.len());
        body.extend_from_slice(&piece[..room.min(piece.len())]);
    };
    peer.body(head.framing, &mut keep).await?;
    shared.recorder.api_request(ApiRequest {
        line: format!("{} {}", head.method, head.target),
        authorization: head.first("authorization").unwrap_or_default().into(),
        forwarded_for: head.first("x-forwarded-for").unwrap_or_default().into(),
        body: body.clone(),
    });
    let mood = shared.state().mood;
    let reply = match mood {
        ApiMood::Normal => {
            if head.path().ends_with("/access") {
                look_up(shared, &head).await;
            }
            reply(&mut shared.state(), &head, &body)
        }
        ApiMood::Status(status) => error(status, "The API is not well"),
        ApiMood::Silent => {
            peer.until_closed().await?;
            return Ok(After::Close);
        }
        ApiMood::Closing => return Ok(After::Close),
    };
    let fields: Vec<_> = reply.fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
    peer.send(&answer(reply.status, &fields, &reply.body, &head)).await?;
    Ok(if head.wants_close() { After::Close } else { After::KeepAlive })
}

struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Whose token is it? Asks the other provider, if there is one, about a bearer nobody has.
async fn look_up(shared: &Shared, head: &Head) {
    let Some(userinfo) = shared.state().userinfo.clone() else { return };
    let Some(bearer) = head.first("authorization").and_then(|value| value.strip_prefix("Bearer ")) else {
        return;
    };
    if shared.state().user(bearer).is_some() {
        return;
    }
    let ask = reqwest::Client::new().get(userinfo).bearer_auth(bearer).send();
    let Ok(answer) = ask.await else { return };
    let Ok(text) = answer.text().await else { return };
    let said: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(subject) = said["sub"].as_str() {
        shared.state().logged_in(subject, bearer);
    }
}

fn reply(state: &mut State, head: &Head, body: &[u8]) -> Reply {
    let path = head.path();
    if let Some(page) = path.strip_prefix("/oidc/") {
        let query = head.target.split_once('?').map_or("", |(_, query)| query);
        return login_provider(state, page, query, body);
    }
    let Some(path) = path.strip_prefix("/api/") else {
        return if path == "/" { redirect("/dashboard") } else { dashboard() };
    };
    let segments: Vec<String> = path.split('/').map(percent_decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let bearer = head.first("authorization").unwrap_or_default().strip_prefix("Bearer ").unwrap_or_default();
    let user = state.user(bearer);
    let service = bearer == state.proxy_key;
    let invalid = || error(401, "Invalid credentials");
    match (head.method.as_str(), segments.as_slice()) {
        ("GET", ["config"]) => config(state),
        ("GET", ["preview", id, "access"]) => match user {
            None => invalid(),
            Some(user) if user.sandboxes.contains(*id) => yes(),
            Some(_) => error(404, "Sandbox not found"),
        },
        (_, ["preview" | "runners", ..]) if !service => invalid(),
        ("GET", ["preview", id, "public"]) => match state.sandboxes.get(*id).map(|s| s.public) {
            Some(PublicAnswer::Yes) => yes(),
            Some(PublicAnswer::Status(status)) => error(status, "upstream trouble"),
            Some(PublicAnswer::Html) => dashboard(),
            Some(PublicAnswer::No) | None => unknown(id),
        },
        ("GET", ["preview", id, "validate", token]) => match state.sandboxes.get(*id) {
            Some(sandbox) if sandbox.token == *token => yes(),
            _ => unknown(id),
        },
        ("GET", ["preview", token, port, "sandbox-id"]) => {
            let good = |s: &&super::spec::SignedToken| s.token == *token && s.port.to_string() == *port;
            match state.signed.iter().find(good) {
                Some(signed) => html(signed.sandbox.clone()),
                None => error(403, "Invalid or expired token"),
            }
        }
        ("GET", ["runners", "by-sandbox", id]) => match state.sandboxes.get(*id).map(|s| &s.runner) {
            None => unknown(id),
            Some(RunnerAnswer::Status(status)) => {
                error(*status, &format!("Sandbox with ID {id} does not have a runner"))
            }
            Some(answer) => json_reply(200, &runner(state, answer)),
        },
        ("GET", ["runners", id, "full"]) if *id == RUNNER_ID => {
            json_reply(200, &runner(state, &RunnerAnswer::Ok))
        }
        ("GET", ["runners", _, "full"]) => error(404, "Runner not found"),
        ("POST", ["sandbox", id, "last-activity"]) => {
            match (service || user.is_some(), state.sandboxes.get(*id)) {
                (false, _) => invalid(),
                (true, None) => unknown(id),
                (true, Some(_)) => Reply { status: 201, fields: Vec::new(), body: Vec::new() },
            }
        }
        ("GET", ["sandbox", id]) => match user {
            None => invalid(),
            Some(user) if user.sandboxes.contains(*id) => json_reply(200, &sandbox(id)),
            Some(_) => unknown(id),
        },
        ("GET", ["snapshots", id]) => match user {
            None => invalid(),
            Some(_) => json_reply(200, &snapshot(id)),
        },
        _ => error(404, &format!("Cannot {} {}", head.method, head.path())),
    }
}

fn login_provider(state: &mut State, page: &str, query: &str, body: &[u8]) -> Reply {
    let State { provider, accounts, .. } = &mut *state;
    let names: Vec<_> = accounts.iter().map(|account| account.name.as_str()).collect();
    match provider.answer(page, query, body, &names) {
        Ok(Said::Json(status, value)) => json_reply(status, &value),
        Ok(Said::Page(page)) => html(page),
        Ok(Said::Away(to)) => redirect(&to),
        Ok(Said::Token { account, token, answer }) => {
            state.logged_in(&account, &token);
            json_reply(200, &answer)
        }
        Ok(Said::Nothing) => dashboard(),
        Err(_) => error(500, "no random bytes"),
    }
}

fn config(state: &State) -> Reply {
    let issuer = format!("http://{}/oidc", state.api);
    json_reply(
        200,
        &json!({
            "version": "0.190.0", "oidc": {"issuer": issuer, "clientId": CLIENT_ID, "audience": CLIENT_ID},
            "linkedAccountsEnabled": false, "announcements": {}, "proxyTemplateUrl": "x", "proxyToolboxUrl": "x",
            "defaultSnapshot": "x", "dashboardUrl": "x", "maxAutoArchiveInterval": 1, "maintananceMode": false,
            "environment": "demo",
        }),
    )
}

fn runner(state: &State, answer: &RunnerAnswer) -> Value {
    let own = format!("http://{}", state.runner);
    let proxy_url = match answer {
        RunnerAnswer::NoUrl => None,
        // The discard port: nothing listens there.
        RunnerAnswer::Refused => Some("http://127.0.0.1:9".into()),
        RunnerAnswer::BadUrl => Some("http://[::bad".into()),
        RunnerAnswer::WithPath => Some(format!("{own}/base/r1")),
        RunnerAnswer::At(url) => Some(url.clone()),
        RunnerAnswer::Ok | RunnerAnswer::Status(_) => Some(own.clone()),
    };
    json!({
        "id": RUNNER_ID, "domain": "r1", "apiUrl": own, "proxyUrl": proxy_url, "apiKey": state.runner_key,
        "cpu": 1, "memory": 1, "disk": 1, "gpu": 0, "gpuType": "", "region": "eu", "name": "r1", "state": "ready",
        "unschedulable": false, "tags": [], "createdAt": THEN, "updatedAt": THEN, "version": "1",
        "apiVersion": "2", "runnerClass": "container",
    })
}

fn sandbox(id: &str) -> Value {
    json!({
        "id": id, "organizationId": "o", "name": id, "user": "u", "env": {}, "labels": {}, "public": false,
        "networkBlockAll": false, "target": "eu", "cpu": 1, "gpu": 0, "memory": 1, "disk": 1, "snapshot": "s",
        "toolboxProxyUrl": "x", "state": "started", "desiredState": "started", "runnerId": RUNNER_ID,
        "buildInfo": {"snapshotRef": "reg/snap:1", "createdAt": THEN, "updatedAt": THEN},
    })
}

fn snapshot(id: &str) -> Value {
    json!({
        "id": id, "general": false, "name": "s", "state": "active", "size": 1, "entrypoint": [], "cpu": 1,
        "gpu": 0, "mem": 1, "disk": 1, "errorReason": null, "createdAt": THEN, "updatedAt": THEN,
        "lastUsedAt": null, "ref": "reg/snap:2", "initialRunnerId": RUNNER_ID, "skipValidation": false,
    })
}

fn yes() -> Reply {
    html("true".into())
}

fn html(text: String) -> Reply {
    let fields = vec![("content-type", "text/html; charset=utf-8".into())];
    Reply { status: 200, fields, body: text.into_bytes() }
}

fn dashboard() -> Reply {
    html("<!doctype html><title>dashboard</title>".into())
}

fn redirect(to: &str) -> Reply {
    Reply { status: 302, fields: vec![("location", to.into())], body: Vec::new() }
}

fn unknown(id: &str) -> Reply {
    error(404, &format!("Sandbox with ID {id} not found"))
}

fn error(status: u16, message: &str) -> Reply {
    json_reply(
        status,
        &json!({"path": "/api", "timestamp": THEN, "statusCode": status, "error": "Error", "message": message}),
    )
}

fn json_reply(status: u16, value: &Value) -> Reply {
    let fields = vec![("content-type", "application/json; charset=utf-8".into())];
    Reply { status, fields, body: value.to_string().into_bytes() }
}
