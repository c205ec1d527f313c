//! The sandbox API as a client. The status decides; a `200` must really say what it means.
//!
//! No redirect is followed, no proxy taken from the environment, no URL or token ever put into an error.

use super::runner_address;
use crate::ids::{SandboxId, Token};
use crate::mailbox::{Answer, ProofKind, Question, Reply, Trouble};
use crate::route::BuildLogsOf;
use reqwest::{Response, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Tries of one question: only for transport errors and 502, 503, 504.
const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(150);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Longest answer taken.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

pub struct Api {
    http: reqwest::Client,
    base: String,
    /// The gate's own key. Secret.
    key: String,
    timeout: Duration,
}

/// Whose credentials a call carries.
enum Caller<'a> {
    Service,
    /// A user's bearer, and where the user comes from (the API limits by that address).
    User(&'a Token, IpAddr),
}

/// What of a runner is used; everything else the API may change.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunnerFull {
    #[serde(default)]
    proxy_url: Option<String>,
    #[serde(default)]
    api_url: Option<String>,
    api_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sandbox {
    #[serde(default)]
    runner_id: Option<String>,
    #[serde(default)]
    build_info: Option<BuildInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildInfo {
    #[serde(default)]
    snapshot_ref: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    #[serde(default, rename = "ref")]
    reference: Option<String>,
    #[serde(default)]
    initial_runner_id: Option<String>,
}

impl Api {
    /// `base` without a slash at its end; `timeout` covers a question with all its tries.
    pub fn new(base: String, key: String, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("sandgate/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { http, base, key, timeout })
    }

    /// Always answers, within the timeout.
    pub async fn answer(&self, question: &Question) -> Reply {
        tokio::time::timeout(self.timeout, self.ask(question)).await.unwrap_or(Err(Trouble::ApiTimeout))
    }

    async fn ask(&self, question: &Question) -> Reply {
        match question {
            Question::Public(id) => self.yes_or_no(&format!("/preview/{id}/public"), Caller::Service).await,
            Question::Verdict { proof: ProofKind::Bearer, sandbox, token, client_ip } => {
                self.yes_or_no(&format!("/preview/{sandbox}/access"), Caller::User(token, *client_ip)).await
            }
            Question::Verdict { proof: ProofKind::PreviewToken, sandbox, token, .. } => {
                let token = token.expose();
                // What cannot be a preview token must not become part of a path either.
                if !token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                    return Ok(Answer::No);
                }
                self.yes_or_no(&format!("/preview/{sandbox}/validate/{token}"), Caller::Service).await
            }
            Question::Runner { sandbox, .. } => self.runner(sandbox).await,
            Question::BuildLogs { of, bearer, client_ip } => {
                self.build_logs(of, Caller::User(bearer, *client_ip)).await
            }
        }
    }

    async fn yes_or_no(&self, path: &str, caller: Caller<'_>) -> Reply {
        let response = self.get(path, &caller).await?;
        match (response.status(), caller) {
            (StatusCode::OK, _) => match body(response).await?.trim_ascii() {
                b"true" => Ok(Answer::Yes),
                b"false" => Ok(Answer::No),
                // A dashboard's page, say: the base URL is wrong.
                _ => Err(Trouble::ApiGarbage),
            },
            (StatusCode::NOT_FOUND, _) => Ok(Answer::No),
            // About the user's credentials. About ours it would say nothing about the sandbox.
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Caller::User(..)) => Ok(Answer::No),
            _ => Err(trouble(&response)),
        }
    }

    async fn runner(&self, sandbox: &SandboxId) -> Reply {
        let response = self.get(&format!("/runners/by-sandbox/{sandbox}"), &Caller::Service).await?;
        match response.status() {
            StatusCode::OK => {
                let runner: RunnerFull = json(response).await?;
                let address = runner_address::resolve(runner.proxy_url.as_deref(), &runner.api_key).await?;
                Ok(Answer::Runner(Arc::new(address)))
            }
            StatusCode::NOT_FOUND => Ok(Answer::NotFound),
            _ => Err(trouble(&response)),
        }
    }

    async fn build_logs(&self, of: &BuildLogsOf, caller: Caller<'_>) -> Reply {
        let path = match of {
            BuildLogsOf::Sandbox(id) => format!("/sandbox/{id}"),
            // The route let only unreserved characters and ':' through, which a path segment may hold.
            BuildLogsOf::Snapshot(name) => format!("/snapshots/{name}"),
        };
        let response = self.get(&path, &caller).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Ok(Answer::No),
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => return Ok(Answer::NotFound),
            _ => return Err(trouble(&response)),
        }
        let (snapshot_ref, runner_id) = match of {
            BuildLogsOf::Sandbox(_) => {
                let sandbox: Sandbox = json(response).await?;
                (sandbox.build_info.and_then(|b| b.snapshot_ref), sandbox.runner_id)
            }
            BuildLogsOf::Snapshot(_) => {
                let snapshot: Snapshot = json(response).await?;
                (snapshot.reference, snapshot.initial_runner_id)
            }
        };
        let (Some(snapshot_ref), Some(runner_id)) = (snapshot_ref, runner_id) else {
            return Ok(Answer::NotFound);
        };
        if !runner_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') || runner_id.is_empty() {
            return Err(Trouble::ApiGarbage);
        }
        let response = self.get(&format!("/runners/{runner_id}/full"), &Caller::Service).await?;
        match response.status() {
            StatusCode::OK => {
                let runner: RunnerFull = json(response).await?;
                let address = runner_address::resolve(runner.api_url.as_deref(), &runner.api_key).await?;
                Ok(Answer::BuildLogs { runner: Arc::new(address), snapshot_ref })
            }
            StatusCode::NOT_FOUND => Ok(Answer::NotFound),
            _ => Err(trouble(&response)),
        }
    }

    async fn get(&self, path: &str, caller: &Caller<'_>) -> Result<Response, Trouble> {
        let mut backoff = BACKOFF;
        let mut tries = 0;
        loop {
            tries += 1;
            let request =
                self.http.get(format!("{}{path}", self.base)).header(header::ACCEPT, "application/json");
            let request = match caller {
                Caller::Service => request.bearer_auth(&self.key),
                Caller::User(token, ip) => {
                    request.bearer_auth(token.expose()).header("X-Forwarded-For", ip.to_string())
                }
            };
            let result = request.send().await;
            let passing = match &result {
                Ok(response) => matches!(response.status().as_u16(), 502..=504),
                Err(_) => true,
            };
            if !passing || tries == TRIES {
                return result.map_err(|_| Trouble::ApiUnreachable);
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// A status that says nothing about the question.
fn trouble(response: &Response) -> Trouble {
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        return Trouble::ApiRateLimited(wait);
    }
    Trouble::ApiStatus(response.status().as_u16())
}

async fn body(mut response: Response) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|_| Trouble::ApiUnreachable)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(Trouble::ApiGarbage);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Trouble> {
    serde_json::from_slice(&body(response).await?).map_err(|_| Trouble::ApiGarbage)
}
