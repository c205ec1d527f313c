//! The sandbox API as this gate uses it: a question in, an answer or the trouble out.
//!
//! What the API says is trusted only as far as it is understood: a "yes" is a 200 whose body is `true`, since a wrong
//! base URL is answered with a web page and 200. No redirect is followed and no proxy taken from the environment: the
//! keys go to the configured API alone. Knows no shard and no cache.

pub(crate) mod decode;
#[cfg(test)]
mod tests;

use super::runner_address::{RunnerUrl, UrlFault};
use crate::config::Secret;
use crate::control::login::settings::ApiOidc;
use crate::ids::{Port, SandboxId, SignedToken, Token};
use crate::log::{Level, Log};
use crate::mailbox::{Answer, ProofKind, Question, Reply, Trouble};
use crate::route::BuildLogsOf;
use decode::RunnerFields;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Tries of one call, the first included; only for calls that did not get through (no answer, 502, 503, 504).
const TRIES: u32 = 3;
/// Wait before the second try; doubles with each further one.
const RETRY_BASE: Duration = Duration::from_millis(150);
const RETRY_CAP: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Shorter than common keep-alive times of servers, so that a pooled connection is seldom a dead one.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Longest body of an answer. Costs this much per flight at worst.
const BODY_BYTES_MAX: usize = 64 * 1024;
const OBJECT_BYTES_MAX: usize = 256 * 1024;
/// How long the body of an answer that is decided by its status is read to keep the connection.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);
/// Longest preview token put into a path. They have 32 characters.
const PREVIEW_TOKEN_MAX: usize = 256;

/// A client of the API. One per process: it holds the connection pool.
pub struct Api {
    client: reqwest::Client,
    base: String,
    service_bearer: HeaderValue,
    deadline: Duration,
    log: Log,
}

/// Whose call it is.
#[derive(Clone, Copy)]
enum Caller<'a> {
    /// Ours, with the service key.
    Service,
    /// Nobody in particular: the page is for all.
    Anyone,
    /// A client's own: the API counts failed attempts by the address in `X-Forwarded-For`.
    Client { bearer: &'a Token, ip: IpAddr },
}

/// What the API made of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reported {
    Taken,
    /// Trying again would change nothing.
    Refused,
    /// Worth another try; after this many seconds if it said so.
    NotNow(Option<u32>),
}

/// An answer that got through.
struct Fetched {
    status: u16,
    retry_after: Option<u32>,
    /// Empty unless the status is 200.
    body: Vec<u8>,
}

/// A trouble and, for the log alone, what is known about it. Holds no URL and no secret.
struct Failure {
    trouble: Trouble,
    detail: String,
}

impl Failure {
    fn new(trouble: Trouble, detail: impl Into<String>) -> Self {
        Self { trouble, detail: detail.into() }
    }
}

impl Api {
    /// `base` is the API's URL with its path (`http://api:3000/api`); `deadline` is for a whole question, all tries
    /// and calls together.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn new(base: &str, service_key: &Secret, deadline: Duration, log: Log) -> Result<Self, &'static str> {
        let url = reqwest::Url::parse(base).map_err(|_| "DAYTONA_API_URL is not a URL")?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("DAYTONA_API_URL must start with http:// or https://");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("DAYTONA_API_URL must not hold a user name or password");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("DAYTONA_API_URL must not hold a query or fragment");
        }
        let key = service_key.expose();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("PROXY_API_KEY must be visible ASCII characters");
        }
        let client = reqwest::Client::builder()
            .user_agent(concat!("sandgate/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_DEADLINE.min(deadline))
            .pool_idle_timeout(POOL_IDLE)
            .build()
            .map_err(|_| "the HTTP client of the API cannot be set up")?;
        Ok(Self {
            client,
            base: url.as_str().trim_end_matches('/').to_owned(),
            service_bearer: bearer(key),
            deadline,
            log,
        })
    }

    /// Asks until there is an answer or the deadline. Dropping the future ends the call and its connection.
    pub async fn answer(&self, question: &Question) -> Reply {
        let asked = match tokio::time::timeout(self.deadline, self.ask(question)).await {
            Ok(asked) => asked,
            Err(_) => Err(Failure::new(Trouble::ApiTimeout, "no answer within the deadline")),
        };
        asked.map_err(|failure| {
            self.report(question, &failure);
            failure.trouble
        })
    }

    /// Starts the sandbox's auto-stop timer anew. One try, within `deadline`.
    pub async fn report_activity(&self, id: &SandboxId) -> Reported {
        let request = self.client.post(format!("{}/sandbox/{id}/last-activity", self.base));
        // Without a body a client need not say its length; servers that insist exist.
        let request = request.header(AUTHORIZATION, self.service_bearer.clone()).header(CONTENT_LENGTH, 0);
        let once = self.once(request, BODY_BYTES_MAX);
        let fetched = match tokio::time::timeout(self.deadline, once).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(_)) | Err(_) => return Reported::NotNow(None),
        };
        match fetched.status {
            200..=299 => Reported::Taken,
            429 | 500..=599 => Reported::NotNow(fetched.retry_after),
            status => {
                if matches!(status, 401 | 403) {
                    self.log.event(
                        Level::Error,
                        "activity_refused",
                        &[("detail", &refusal(&fetched).detail)],
                    );
                }
                Reported::Refused
            }
        }
    }

    async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        match question {
            Question::Public(id) => self.is_public(id).await,
            Question::Verdict { proof: ProofKind::Bearer, sandbox, token, client_ip } => {
                self.bearer_opens(sandbox, Caller::Client { bearer: token, ip: *client_ip }).await
            }
            Question::Verdict { proof: ProofKind::PreviewToken, sandbox, token, client_ip: _ } => {
                self.preview_token_opens(sandbox, token).await
            }
            Question::SignedToken { token, port } => self.sandbox_of_link(token, *port).await,
            Question::Runner { sandbox, fresh: _ } => self.runner_of(sandbox).await,
            Question::BuildLogs { of, bearer, client_ip } => {
                self.build_logs(of, Caller::Client { bearer, ip: *client_ip }).await
            }
            // Steps of a login are not the API's to answer.
            Question::Login(_) => Err(garbage("a step of a login was asked of the API")),
        }
    }

    /// May who has this access token open the sandbox? Bounded by the caller's deadline.
    pub async fn user_may_enter(&self, id: &SandboxId, token: &Token, ip: IpAddr) -> Result<bool, Trouble> {
        let question =
            Question::Verdict { proof: ProofKind::Bearer, sandbox: *id, token: token.clone(), client_ip: ip };
        self.answer(&question).await.map(|answer| matches!(answer, Answer::Yes))
    }

    /// What the API says about login to whoever asks.
    pub(in crate::control) async fn login_settings(&self) -> Result<ApiOidc, Trouble> {
        let fetched = async {
            let fetched = self.get("/config", Caller::Anyone, OBJECT_BYTES_MAX).await?;
            match fetched.status {
                200 => decode::login_settings(&fetched.body).map_err(garbage),
                _ => Err(refusal(&fetched)),
            }
        };
        let fetched = match tokio::time::timeout(self.deadline, fetched).await {
            Ok(fetched) => fetched,
            Err(_) => Err(Failure::new(Trouble::ApiTimeout, "no answer within the deadline")),
        };
        fetched.map_err(|failure| {
            let fields = [("operation", "config"), ("detail", failure.detail.as_str())];
            self.log.event(Level::Error, "api_login_settings", &fields);
            failure.trouble
        })
    }

    async fn is_public(&self, id: &SandboxId) -> Result<Answer, Failure> {
        let fetched = self.get(&format!("/preview/{id}/public"), Caller::Service, BODY_BYTES_MAX).await?;
        match fetched.status {
            200 => yes_or_no(&fetched.body),
            404 => Ok(Answer::No),
            // 401 and 403 are about our key and never a "no": a wrong key must not close public sandboxes for long.
            _ => Err(refusal(&fetched)),
        }
    }

    async fn bearer_opens(&self, id: &SandboxId, caller: Caller<'_>) -> Result<Answer, Failure> {
        let fetched = self.get(&format!("/preview/{id}/access"), caller, BODY_BYTES_MAX).await?;
        match fetched.status {
            200 => yes_or_no(&fetched.body),
            401 | 403 | 404 => Ok(Answer::No),
            _ => Err(refusal(&fetched)),
        }
    }

    async fn preview_token_opens(&self, id: &SandboxId, token: &Token) -> Result<Answer, Failure> {
        let token = token.expose();
        let path_safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if token.len() > PREVIEW_TOKEN_MAX || !token.bytes().all(path_safe) {
            // No token looks like this, and it must not shape the path of a call with our key.
            return Ok(Answer::No);
        }
        let path = format!("/preview/{id}/validate/{token}");
        let fetched = self.get(&path, Caller::Service, BODY_BYTES_MAX).await?;
        match fetched.status {
            200 => yes_or_no(&fetched.body),
            404 => Ok(Answer::No),
            _ => Err(refusal(&fetched)),
        }
    }

    async fn sandbox_of_link(&self, token: &SignedToken, port: Port) -> Result<Answer, Failure> {
        let path = format!("/preview/{}/{port}/sandbox-id", token.expose());
        let fetched = self.get(&path, Caller::Service, BODY_BYTES_MAX).await?;
        match fetched.status {
            // The bare id; a page of the dashboard does not pass for one.
            200 => SandboxId::parse(fetched.body.trim_ascii()).map(Answer::Sandbox).ok_or_else(|| {
                garbage("a 200 whose body is no sandbox id; does DAYTONA_API_URL end with /api?")
            }),
            403 | 404 => Ok(Answer::No),
            _ => Err(refusal(&fetched)),
        }
    }

    async fn runner_of(&self, id: &SandboxId) -> Result<Answer, Failure> {
        let path = format!("/runners/by-sandbox/{id}");
        let fetched = self.get(&path, Caller::Service, OBJECT_BYTES_MAX).await?;
        match fetched.status {
            200 => {
                let fields = decode::runner(&fetched.body).map_err(garbage)?;
                self.address(fields.proxy_url.as_deref(), &fields).await.map(Answer::Runner)
            }
            404 => Ok(Answer::NotFound),
            _ => Err(refusal(&fetched)),
        }
    }

    async fn build_logs(&self, of: &BuildLogsOf, caller: Caller<'_>) -> Result<Answer, Failure> {
        let path = match of {
            BuildLogsOf::Sandbox(id) => format!("/sandbox/{id}"),
            BuildLogsOf::Snapshot(name) => match path_segment(name) {
                Some(segment) => format!("/snapshots/{segment}"),
                None => return Ok(Answer::NotFound),
            },
        };
        let fetched = self.get(&path, caller, OBJECT_BYTES_MAX).await?;
        let build = match fetched.status {
            200 => decode::build(of, &fetched.body).map_err(garbage)?,
            401 => return Ok(Answer::No),
            403 | 404 => return Ok(Answer::NotFound),
            _ => return Err(refusal(&fetched)),
        };
        let Some(build) = build else { return Ok(Answer::NotFound) };
        let path = format!("/runners/{}/full", build.runner_id);
        let fetched = self.get(&path, Caller::Service, OBJECT_BYTES_MAX).await?;
        match fetched.status {
            200 => {
                let fields = decode::runner(&fetched.body).map_err(garbage)?;
                let runner = self.address(fields.api_url.as_deref(), &fields).await?;
                Ok(Answer::BuildLogs { runner, snapshot_ref: build.snapshot_ref })
            }
            404 => Ok(Answer::NotFound),
            _ => Err(refusal(&fetched)),
        }
    }

    /// `url` is the one of the runner's two that is wanted.
    async fn address(
        &self,
        url: Option<&str>,
        fields: &RunnerFields,
    ) -> Result<Arc<crate::mailbox::RunnerAddress>, Failure> {
        let fault = |fault: UrlFault| Failure::new(Trouble::RunnerUrl, fault.as_str());
        let url = RunnerUrl::parse(url.unwrap_or_default()).map_err(fault)?;
        let key = Token::parse(fields.api_key.as_deref().unwrap_or_default().as_bytes())
            .ok_or_else(|| garbage("the runner has no API key that can stand in a header"))?;
        url.resolve(&key).await.map(Arc::new).map_err(fault)
    }

    /// One call with its retries.
    async fn get(&self, path: &str, caller: Caller<'_>, body_bytes_max: usize) -> Result<Fetched, Failure> {
        let mut wait = RETRY_BASE;
        for _ in 1..TRIES {
            match self.get_once(path, caller, body_bytes_max).await {
                Ok(fetched) if !matches!(fetched.status, 502..=504) => return Ok(fetched),
                Err(failure) if failure.trouble != Trouble::ApiUnreachable => return Err(failure),
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_CAP);
        }
        self.get_once(path, caller, body_bytes_max).await
    }

    async fn get_once(
        &self,
        path: &str,
        caller: Caller<'_>,
        body_bytes_max: usize,
    ) -> Result<Fetched, Failure> {
        let request = self.client.get(format!("{}{path}", self.base));
        let request = match caller {
            Caller::Service => request.header(AUTHORIZATION, self.service_bearer.clone()),
            Caller::Anyone => request,
            Caller::Client { bearer: token, ip } => request
                .header(AUTHORIZATION, bearer(token.expose()))
                .header("x-forwarded-for", ip.to_string()),
        };
        self.once(request, body_bytes_max).await
    }

    async fn once(
        &self,
        request: reqwest::RequestBuilder,
        body_bytes_max: usize,
    ) -> Result<Fetched, Failure> {
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| decode::retry_after(value.as_bytes()));
        let body = if status == 200 {
            read_body(response, body_bytes_max).await?
        } else {
            // The status decides. The rest is read, briefly, only so that the connection can be used again.
            let _ = tokio::time::timeout(DRAIN_DEADLINE, read_body(response, BODY_BYTES_MAX)).await;
            Vec::new()
        };
        Ok(Fetched { status, retry_after, body })
    }

    fn report(&self, question: &Question, failure: &Failure) {
        let what = match failure.trouble {
            Trouble::ApiUnreachable => "api_unreachable",
            Trouble::ApiTimeout => "api_timeout",
            Trouble::ApiStatus(_) => "api_status",
            Trouble::ApiRateLimited(_) => "api_rate_limited",
            Trouble::ApiGarbage => "api_garbage",
            Trouble::RunnerUrl => "runner_url",
            Trouble::Overloaded | Trouble::ClientLimited(_) => "overloaded",
        };
        let operation = super::stats::Operation::of(question).as_str();
        let sandbox = match question {
            Question::Runner { sandbox: id, .. }
            | Question::BuildLogs { of: BuildLogsOf::Sandbox(id), .. } => id.as_str(),
            // Before anybody is let in, what a client put where an id belongs may be a signed token.
            Question::Public(_)
            | Question::Verdict { .. }
            | Question::SignedToken { .. }
            | Question::Login(_) => "",
            Question::BuildLogs { of: BuildLogsOf::Snapshot(_), .. } => "",
        };
        let fields = [("operation", operation), ("sandbox", sandbox), ("detail", &failure.detail)];
        self.log.event(Level::Error, what, &fields);
    }
}

/// Of visible ASCII, which the caller has checked.
fn bearer(secret: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Bearer {secret}")).expect("visible ASCII");
    value.set_sensitive(true);
    value
}

fn yes_or_no(body: &[u8]) -> Result<Answer, Failure> {
    decode::yes_or_no(body).map(|yes| if yes { Answer::Yes } else { Answer::No }).map_err(garbage)
}

fn garbage(detail: impl Into<String>) -> Failure {
    Failure::new(Trouble::ApiGarbage, detail)
}

/// A status that says nothing about the question.
fn refusal(fetched: &Fetched) -> Failure {
    let detail = match fetched.status {
        401 | 403 => format!("the API answered {}: is PROXY_API_KEY right?", fetched.status),
        300..=399 => {
            format!(
                "the API answered {}, a redirect: none is followed; is DAYTONA_API_URL right?",
                fetched.status
            )
        }
        status => format!("the API answered {status}"),
    };
    let trouble = match fetched.status {
        429 => Trouble::ApiRateLimited(fetched.retry_after),
        status => Trouble::ApiStatus(status),
    };
    Failure::new(trouble, detail)
}

/// The error with its causes, without the URL, whose path may hold a token.
fn unreachable(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let mut detail = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        detail.push_str(": ");
        detail.push_str(&inner.to_string());
        cause = inner.source();
    }
    Failure::new(Trouble::ApiUnreachable, detail)
}

async fn read_body(mut response: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(garbage(format!("a body of more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A snapshot's name as one path segment: everything but unreserved characters percent-encoded (RFC 3986 2.1). `None`
/// for what is no name: nothing, or only dots, which URL parsers resolve even when they are encoded.
pub fn path_segment(name: &str) -> Option<String> {
    if name.bytes().all(|b| b == b'.') {
        return None;
    }
    let mut segment = String::with_capacity(name.len() + 8);
    for b in name.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            segment.push(char::from(b));
        } else {
            segment.push_str(&format!("%{b:02X}"));
        }
    }
    Some(segment)
}
