//! The sandbox API as a proxy sees it, over the whole population, and the levers that change it under load.
//!
//! Booleans are the bare text `true` with content type text/html, unknown and private sandboxes are the same 404, and
//! the wrong key is a 401: the forms a proxy meets in production.

use super::answer::Answer;
use super::fault::Rule;
use super::peer::Head;
use super::redis::News;
use super::runner::number_parameter;
use super::state::{ENDPOINTS, Full, Side, World, count};
use crate::population::Sandbox;
use crate::world::{LEVER_RESTART_REDIS, LEVER_RESTART_RUNNER, LEVER_SANDBOXES};
use serde_json::{Value, json};
use std::time::Duration;

const THEN: &str = "2026-01-01T00:00:00.000Z";
/// Longest a runner or Redis may be kept away by a lever.
const DOWN_MAX: Duration = Duration::from_secs(600);

/// What the API says, and what is to be done because of it.
pub(super) struct Reply {
    pub answer: Answer,
    /// Cut all runner connections and listen again after so long.
    pub restart_runner: Option<Duration>,
    /// The same for the relay to Redis.
    pub restart_redis: Option<Duration>,
    /// To be told to the Redis that proxies listen to.
    pub news: Option<News>,
}

/// Whether a target is one of the levers' rather than the API's.
pub(super) fn is_lever(target: &str) -> bool {
    target.starts_with("/_load/")
}

/// Answers a request to the API.
pub(super) fn answer(world: &World, head: &Head) -> Answer {
    let path = head.target().split('?').next().unwrap_or_default();
    if let Some(path) = path.strip_prefix(OIDC).and_then(|rest| rest.strip_prefix('/')) {
        return oidc(world, path);
    }
    let Some(path) = path.strip_prefix("/api/") else {
        // The dashboard: what a wrong DAYTONA_API_URL leads to.
        return html("<!doctype html><title>dashboard</title>");
    };
    let segments: Vec<&str> = path.split('/').collect();
    let bearer = head.authorization().and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let (endpoint, answer) = route(world, head.method(), &segments, bearer);
    let counters = &world.counters;
    let place = ENDPOINTS.iter().position(|name| *name == endpoint).unwrap_or(ENDPOINTS.len() - 1);
    count(&counters.api_requests[place]);
    if answer.status >= 400 {
        count(&counters.api_refusals);
    }
    answer
}

/// The endpoint's name in the counters, and its answer.
fn route(world: &World, method: &str, segments: &[&str], bearer: &str) -> (&'static str, Answer) {
    let service = bearer == world.proxy_key;
    match (method, segments) {
        ("GET", ["config"]) => ("config", config(world)),
        ("GET", ["preview", id, "access"]) => ("access", access(world, id, bearer)),
        (_, ["preview" | "runners", ..]) if !service => ("other", invalid()),
        ("GET", ["preview", id, "public"]) => {
            let public = world.sandbox(id).is_some_and(|sandbox| world.is_public(sandbox));
            ("public", yes_or_unknown(public, id))
        }
        ("GET", ["preview", id, "validate", token]) => {
            let good = world.sandbox(id).is_some_and(|sandbox| world.token(sandbox) == *token);
            ("validate", yes_or_unknown(good, id))
        }
        ("GET", ["preview", token, port, "sandbox-id"]) => ("signed", signed(world, token, port)),
        ("GET", ["runners", "by-sandbox", id]) => (
            "runner",
            match world.sandbox(id) {
                Some(sandbox) => Answer::json(200, &runner(world, world.runner_of(sandbox))),
                None => unknown(id),
            },
        ),
        ("GET", ["runners", id, "full"]) => (
            "runner",
            match (0..world.runner_urls.len()).find(|number| runner_id(*number) == *id) {
                Some(number) => Answer::json(200, &runner(world, number)),
                None => error(404, "Runner not found"),
            },
        ),
        ("POST", ["sandbox", id, "last-activity"]) => (
            "activity",
            match world.sandbox(id) {
                _ if !service => invalid(),
                Some(_) => Answer::text(201, "", ""),
                None => unknown(id),
            },
        ),
        ("GET", ["sandbox", id]) => (
            "object",
            match world.sandbox(id) {
                None => unknown(id),
                Some(sandbox) if world.population.bearer(sandbox) != bearer => invalid(),
                Some(sandbox) => Answer::json(200, &sandbox_object(world, id, sandbox)),
            },
        ),
        ("GET", ["snapshots", id]) => (
            "object",
            match bearer.starts_with("dtn_") {
                true => Answer::json(200, &snapshot(id)),
                false => invalid(),
            },
        ),
        _ => ("other", error(404, "Cannot find this")),
    }
}

/// A user's own question: whose key opens the sandbox may see it.
fn access(world: &World, id: &str, bearer: &str) -> Answer {
    match world.sandbox(id) {
        Some(sandbox) if world.population.bearer(sandbox) == bearer => html("true"),
        Some(_) => invalid(),
        None => unknown(id),
    }
}

fn signed(world: &World, token: &str, port: &str) -> Answer {
    let sandbox = port.parse().ok().and_then(|port| world.population.sandbox_of_signed(token, port));
    match sandbox.filter(|sandbox| sandbox.index < world.sandboxes_max) {
        Some(sandbox) => html(world.population.id(sandbox)),
        None => error(403, "Invalid or expired token"),
    }
}

/// Pulls a lever; see [`crate::world`]. The body of a fault lever holds one rule a line.
pub(super) fn lever(world: &World, head: &Head, body: &[u8]) -> Reply {
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    let done = || Answer::text(204, "", "");
    let plain = |answer| Reply { answer, restart_runner: None, restart_redis: None, news: None };
    let down = || Duration::from_millis(number_parameter(query, "down_ms", 0)).min(DOWN_MAX);
    match (head.method(), path) {
        ("GET", "/_load/counters") => plain(Answer::json(200, &world.counters.json())),
        ("POST", LEVER_RESTART_RUNNER) => Reply { restart_runner: Some(down()), ..plain(done()) },
        ("POST", LEVER_RESTART_REDIS) => Reply { restart_redis: Some(down()), ..plain(done()) },
        ("PUT", "/_load/faults/api") => plain(set_faults(world, Side::Api, body)),
        ("PUT", "/_load/faults/runner") => plain(set_faults(world, Side::Runner, body)),
        ("POST", path) if path.starts_with(LEVER_SANDBOXES) => {
            sandbox_lever(world, &path[LEVER_SANDBOXES.len()..], query)
        }
        _ => plain(error(404, "no such lever")),
    }
}

fn sandbox_lever(world: &World, rest: &str, query: &str) -> Reply {
    let refused = |answer| Reply { answer, restart_runner: None, restart_redis: None, news: None };
    let Some((id, lever)) = rest.split_once('/') else { return refused(error(404, "no such lever")) };
    let Some(sandbox) = world.sandbox(id) else { return refused(unknown(id)) };
    let flag = |name: &str| match parameter(query, name) {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(error(400, &format!("{name}=true or {name}=false is missing"))),
    };
    let id = world.population.id(sandbox);
    let done = || Answer::text(204, "", "");
    let pulled = match lever {
        "visibility" => flag("public").map(|public| {
            world.set_public(sandbox, public).map(|()| (done(), Some(News::Visibility { id })))
        }),
        "state" => flag("running").map(|running| {
            world.set_stopped(sandbox, !running).map(|()| (done(), Some(News::State { id, running })))
        }),
        // The API says nothing of new tokens: proxies find out when what they remember has aged.
        "rotate-token" => {
            Ok(world.rotate_token(sandbox).map(|token| (Answer::json(200, &json!({ "token": token })), None)))
        }
        _ => Err(error(404, "no such lever")),
    };
    match pulled {
        Ok(Ok((answer, news))) => Reply { news, ..refused(answer) },
        Ok(Err(Full)) => refused(error(503, "too many sandboxes have been changed")),
        Err(answer) => refused(answer),
    }
}

fn set_faults(world: &World, side: Side, body: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(body);
    let rules: Result<Vec<Rule>, _> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::parse).collect();
    match rules {
        Ok(rules) => {
            world.set_faults(side, rules);
            Answer::text(204, "", "")
        }
        Err(mistake) => error(400, &mistake.to_string()),
    }
}

fn config(world: &World) -> Answer {
    let issuer = issuer(world);
    Answer::json(
        200,
        &json!({
            "version": "0.190.0", "oidc": {"issuer": issuer, "clientId": "loadtest", "audience": "loadtest"},
            "linkedAccountsEnabled": false, "announcements": {}, "proxyTemplateUrl": "x", "proxyToolboxUrl": "x",
            "defaultSnapshot": "x", "dashboardUrl": "x", "maxAutoArchiveInterval": 1, "maintananceMode": false,
            "environment": "loadtest",
        }),
    )
}

/// Below the API's address: an OpenID provider as far as a proxy looks at one before anybody logs in.
const OIDC: &str = "/oidc";

fn issuer(world: &World) -> String {
    format!("{}{OIDC}", world.api_url)
}

/// The discovery document (OpenID Connect Discovery 1.0, section 4) and no keys. Nobody can log in.
fn oidc(world: &World, path: &str) -> Answer {
    let issuer = issuer(world);
    match path {
        ".well-known/openid-configuration" => Answer::json(
            200,
            &json!({
                "issuer": issuer,
                "authorization_endpoint": format!("{issuer}/authorize"),
                "token_endpoint": format!("{issuer}/token"),
                "jwks_uri": format!("{issuer}/jwks"),
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }),
        ),
        "jwks" => Answer::json(200, &json!({ "keys": [] })),
        _ => Answer::text(501, "text/plain", "loadtest backend has no users: nobody can log in here\n"),
    }
}

fn runner_id(number: usize) -> String {
    format!("11111111-1111-4111-8111-{number:012}")
}

fn runner(world: &World, number: usize) -> Value {
    let url = &world.runner_urls[number];
    json!({
        "id": runner_id(number), "domain": "r1", "apiUrl": url, "proxyUrl": url,
        "apiKey": world.runner_key, "cpu": 1, "memory": 1, "disk": 1, "gpu": 0, "gpuType": "", "region": "eu",
        "name": "r1", "state": "ready", "unschedulable": false, "tags": [], "createdAt": THEN, "updatedAt": THEN,
        "version": "1", "apiVersion": "2", "runnerClass": "container",
    })
}

fn sandbox_object(world: &World, id: &str, sandbox: Sandbox) -> Value {
    let state = if world.is_stopped(sandbox) { "stopped" } else { "started" };
    json!({
        "id": id, "organizationId": "o", "name": id, "user": "u", "env": {}, "labels": {},
        "public": world.is_public(sandbox), "networkBlockAll": false, "target": "eu", "cpu": 1, "gpu": 0,
        "memory": 1, "disk": 1, "snapshot": "s", "toolboxProxyUrl": "x", "state": state, "desiredState": state,
        "runnerId": runner_id(world.runner_of(sandbox)), "buildInfo": {"snapshotRef": "reg/snap:1", "createdAt": THEN, "updatedAt": THEN},
    })
}

fn snapshot(id: &str) -> Value {
    json!({
        "id": id, "general": false, "name": "s", "state": "active", "size": 1, "entrypoint": [], "cpu": 1, "gpu": 0,
        "mem": 1, "disk": 1, "errorReason": null, "createdAt": THEN, "updatedAt": THEN, "lastUsedAt": null,
        "ref": "reg/snap:2", "initialRunnerId": runner_id(0), "skipValidation": false,
    })
}

fn yes_or_unknown(yes: bool, id: &str) -> Answer {
    if yes { html("true") } else { unknown(id) }
}

fn html(text: impl Into<Vec<u8>>) -> Answer {
    Answer::text(200, "text/html; charset=utf-8", text)
}

fn invalid() -> Answer {
    error(401, "Invalid credentials")
}

fn unknown(id: &str) -> Answer {
    error(404, &format!("Sandbox with ID {id} not found"))
}

pub(super) fn error(status: u16, message: &str) -> Answer {
    Answer::json(
        status,
        &json!({"path": "/api", "timestamp": THEN, "statusCode": status, "error": "Error", "message": message}),
    )
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}
