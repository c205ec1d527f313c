//! Login by OpenID Connect: authorization code with PKCE (OpenID Connect Core 3.1, RFC 7636, RFC 9700).
//!
//! Three questions: where does a browser go to log in, what becomes of one that comes back, and may a ticket be
//! redeemed at a sandbox's own host. Between them nothing is remembered here but what has been used: a login's facts
//! travel sealed with the browser. Cookies are made here, so that shards only carry them.

pub(crate) mod provider;
pub(super) mod settings;
#[cfg(test)]
mod tests;
mod used;

use super::api::Api;
use super::redis::Redis;
use crate::config::{CookieMode, Oidc, Scheme, Secret};
use crate::cookie::{self, CookieKeys, SameSite, SetCookie};
use crate::ids::{SandboxId, Token};
use crate::log::Log;
use crate::login::flow::{self, FLOW_LIFE_SEC, Flow, FlowCookie, FlowId, Refusal, Ticket};
use crate::login::sealed::Seal;
use crate::login::{HANDOFF_PATH, flow_cookie_prefix};
use crate::mailbox::{Answer, LoginFault, LoginQuestion, Redirect, Reply};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use provider::{Fault, Leaving, Provider, Returning};
use settings::{Identity, Settings};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use used::Used;

/// What the operator decided about login.
#[derive(Clone, Debug)]
pub struct LoginSettings {
    /// As browsers see it.
    pub scheme: Scheme,
    pub oidc: Oidc,
    pub cookie_mode: CookieMode,
    /// `None`: per host.
    pub cookie_domain: Option<String>,
    /// The first one signs and seals. At least one.
    pub keys: Vec<Secret>,
}

pub(super) struct Login {
    settings: LoginSettings,
    provider: Provider,
    seal: Seal,
    cookie_keys: CookieKeys,
    /// For one step, all calls together.
    deadline: Duration,
    api: Arc<Api>,
    used: Used,
}

impl Login {
    /// # Errors
    /// A sentence for the operator.
    pub fn new(
        settings: LoginSettings,
        api: Arc<Api>,
        redis: Option<Redis>,
        deadline: Duration,
        log: Log,
    ) -> Result<Self, &'static str> {
        let mut keys = settings.keys.iter().map(Secret::expose);
        let identity = Settings::new(settings.oidc.clone(), Arc::clone(&api));
        Ok(Self {
            provider: Provider::new(identity, log)?,
            seal: Seal::new(keys.clone()),
            cookie_keys: CookieKeys::new(keys.next().expect("at least one"), keys),
            settings,
            deadline,
            api,
            used: Used::new(redis),
        })
    }

    pub async fn answer(&self, question: &LoginQuestion) -> Reply {
        let step = tokio::time::timeout(self.deadline, self.step(question));
        Ok(match step.await {
            Ok(Ok(redirect)) => Answer::Redirect(Box::new(redirect)),
            Ok(Err(fault)) => Answer::LoginRefused(fault),
            Err(_) => Answer::LoginRefused(LoginFault::ProviderDown),
        })
    }

    async fn step(&self, question: &LoginQuestion) -> Result<Redirect, LoginFault> {
        match question {
            LoginQuestion::Start { host, sandbox, return_to, .. } => {
                self.start(host, sandbox, return_to).await
            }
            LoginQuestion::Callback { host, query, cookies, client_ip, .. } => {
                self.callback(host, query.expose(), cookies.expose(), *client_ip).await
            }
            LoginQuestion::Handoff { host, query, cookies, .. } => {
                self.hand_off(host, query.expose(), cookies.expose()).await
            }
        }
    }

    async fn start(&self, host: &str, sandbox: &SandboxId, path: &str) -> Result<Redirect, LoginFault> {
        let identity = self.identity().await?;
        let host = host.to_ascii_lowercase();
        // A host of one label has no place for a callback beside it.
        let redirect_uri = self.callback_uri(flow::base_of(&host).ok_or(LoginFault::NotConfigured)?);
        let id = random::<16>()?;
        let cookie = FlowCookie::new(flow_cookie_prefix(self.settings.cookie_mode), &id, &random()?);
        let flow = Flow {
            id,
            binding: cookie.binding(),
            sandbox: sandbox.to_string(),
            return_to: flow::return_to(path),
            verifier: URL_SAFE_NO_PAD.encode(random::<32>()?),
            nonce: URL_SAFE_NO_PAD.encode(random::<16>()?),
            expires: now() + FLOW_LIFE_SEC,
            host,
        };
        let leaving = Leaving {
            redirect_uri: &redirect_uri,
            verifier: &flow.verifier,
            nonce: &flow.nonce,
            state: flow.seal(&self.seal).map_err(no_random)?,
        };
        let location = self.provider.authorize_url(&identity, leaving).await.map_err(fault)?;
        let set_cookies = vec![self.flow_cookie(&flow.host, &cookie.name, &cookie.value, FLOW_LIFE_SEC)];
        Ok(Redirect { location: location.into(), set_cookies })
    }

    async fn callback(
        &self,
        host: &str,
        query: &str,
        cookies: &str,
        client_ip: IpAddr,
    ) -> Result<Redirect, LoginFault> {
        let said = Said::read(query);
        if let Some(error) = said.error {
            return Err(said_no(&error));
        }
        let (Some(code), Some(state)) = (said.code, said.state) else {
            return Err(LoginFault::StateInvalid);
        };
        let now = now();
        let flow = Flow::open(&self.seal, &state, host, now).map_err(refused)?;
        let sandbox = flow.sandbox().map_err(refused)?;
        let cookie_name = FlowCookie::name_of(flow_cookie_prefix(self.settings.cookie_mode), &flow.id);
        // Said before the cookie is missed, which goes with the first use: somebody went back in their history.
        self.not_used(&flow.id)?;
        if self.settings.cookie_mode == CookieMode::Shared {
            // In isolated mode the sandbox's own host holds the cookie, and looks when the ticket comes there.
            flow::holds_binding(cookies, &cookie_name, &flow.binding).map_err(refused)?;
        }
        self.first_use(flow.id, flow.expires, now).await?;
        let identity = self.identity().await?;
        let returning = Returning {
            redirect_uri: self.callback_uri(host),
            verifier: flow.verifier.clone(),
            nonce: &flow.nonce,
            code,
            issuer: said.issuer.as_deref(),
        };
        let access_token = self.provider.redeem(&identity, returning).await.map_err(fault)?;
        self.may_enter(&sandbox, &access_token, client_ip).await?;
        match self.settings.cookie_mode {
            CookieMode::Shared => {
                let auth = self.shared_cookie(&flow.host, &sandbox, now);
                let gone = self.flow_cookie(&flow.host, &cookie_name, "", 0);
                Ok(Redirect {
                    location: self.url(&flow.host, &flow.return_to),
                    set_cookies: vec![auth, gone],
                })
            }
            CookieMode::Isolated => {
                let host = flow.host.clone();
                // A ticket has an id of its own: the flow's is used now.
                let ticket = Ticket { id: random()?, ..flow.ticket(now) };
                let ticket = ticket.seal(&self.seal).map_err(no_random)?;
                let location = self.url(&host, &format!("{HANDOFF_PATH}?t={ticket}"));
                Ok(Redirect { location, set_cookies: Vec::new() })
            }
        }
    }

    /// At the sandbox's own host: the ticket against the cookie of the browser that began.
    async fn hand_off(&self, host: &str, query: &str, cookies: &str) -> Result<Redirect, LoginFault> {
        let ticket = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "t");
        let ticket = ticket.map(|(_, ticket)| ticket).ok_or(LoginFault::StateInvalid)?;
        let now = now();
        let ticket = Ticket::open(&self.seal, &ticket, host, now).map_err(refused)?;
        let sandbox = ticket.sandbox().map_err(refused)?;
        self.not_used(&ticket.id)?;
        let prefix = flow_cookie_prefix(self.settings.cookie_mode);
        // The cookie's name is that of the flow, which the binding identifies as well.
        let name = flow::name_of_binding(cookies, prefix, &ticket.binding).map_err(refused)?;
        self.first_use(ticket.id, ticket.expires, now).await?;
        let auth = self.isolated_cookie(&ticket.host, &sandbox, now);
        let gone = self.flow_cookie(&ticket.host, &name, "", 0);
        Ok(Redirect { location: self.url(&ticket.host, &ticket.return_to), set_cookies: vec![auth, gone] })
    }

    async fn identity(&self) -> Result<Identity, LoginFault> {
        let identity = self.provider.settings().identity().await.map_err(LoginFault::Api)?;
        identity.ok_or(LoginFault::NotConfigured)
    }

    async fn may_enter(&self, id: &SandboxId, token: &str, ip: IpAddr) -> Result<(), LoginFault> {
        let token = Token::parse(token.as_bytes()).ok_or(LoginFault::ProviderUnusable)?;
        match self.api.user_may_enter(id, &token, ip).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(LoginFault::NoAccess),
            Err(trouble) => Err(LoginFault::Api(trouble)),
        }
    }

    fn not_used(&self, id: &FlowId) -> Result<(), LoginFault> {
        if self.used.holds(id) { Err(LoginFault::Replayed) } else { Ok(()) }
    }

    async fn first_use(&self, id: FlowId, expires: u64, now: u64) -> Result<(), LoginFault> {
        if self.used.first(id, expires, now).await { Ok(()) } else { Err(LoginFault::Replayed) }
    }

    fn url(&self, host: &str, path: &str) -> String {
        format!("{}://{host}{path}", self.settings.scheme.as_str())
    }

    fn callback_uri(&self, base: &str) -> String {
        self.url(&base.to_ascii_lowercase(), "/callback")
    }

    /// Ties a login to its browser. In shared mode for all hosts of the domain, since the callback is at another one than
    /// the preview, but for its path alone; zero seconds delete it.
    fn flow_cookie(&self, host: &str, name: &str, value: &str, seconds: u64) -> String {
        let path = match self.settings.cookie_mode {
            CookieMode::Shared => format!("/callback{}", self.domain(host)),
            CookieMode::Isolated => "/".to_owned(),
        };
        let secure = if self.settings.scheme == Scheme::Https { "; Secure" } else { "" };
        format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly{secure}; SameSite=Lax")
    }

    fn domain(&self, host: &str) -> String {
        let domain = self.settings.cookie_domain.as_deref().or_else(|| cookie::domain_of_siblings(host));
        domain.map(|domain| format!("; Domain={}", domain.trim_start_matches('.'))).unwrap_or_default()
    }

    fn shared_cookie(&self, host: &str, sandbox: &SandboxId, now: u64) -> String {
        let name = format!("{}{sandbox}", cookie::AUTH_PREFIX);
        let value = cookie::escape(self.cookie_keys.seal(&name, sandbox.as_bytes(), now).as_bytes());
        let own = self.settings.cookie_domain.as_deref().map(|domain| domain.trim_start_matches('.'));
        SetCookie {
            name: &name,
            value: &value,
            domain: own.or_else(|| cookie::domain_of_siblings(host)),
            max_age: cookie::AUTH_MAX_AGE,
            secure: self.settings.scheme == Scheme::Https,
            same_site: SameSite::Lax,
        }
        .text()
    }

    fn isolated_cookie(&self, host: &str, sandbox: &SandboxId, now: u64) -> String {
        let name = crate::login::HOST_COOKIE;
        let value = crate::login::host_cookie_value(sandbox, host);
        let value = cookie::escape(self.cookie_keys.seal(name, value.as_bytes(), now).as_bytes());
        SetCookie {
            name,
            value: &value,
            domain: None,
            max_age: cookie::AUTH_MAX_AGE,
            secure: true,
            same_site: SameSite::Lax,
        }
        .text()
    }
}

/// What a callback says (OpenID Connect Core 3.1.2.5, 3.1.2.6).
#[derive(Default)]
pub struct Said {
    pub code: Option<String>,
    pub state: Option<String>,
    pub error: Option<String>,
    pub issuer: Option<String>,
}

impl Said {
    /// The first of each name counts.
    pub fn read(query: &str) -> Self {
        let mut said = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match name.as_ref() {
                "code" => &mut said.code,
                "state" => &mut said.state,
                "error" => &mut said.error,
                "iss" => &mut said.issuer,
                _ => continue,
            };
            place.get_or_insert_with(|| value.into_owned());
        }
        said
    }
}

/// The provider sent the browser back without a code. Its words are a stranger's: anybody can link to a callback.
fn said_no(error: &str) -> LoginFault {
    match error {
        "temporarily_unavailable" | "server_error" => LoginFault::ProviderDown,
        "invalid_request" | "invalid_scope" | "unauthorized_client" | "unsupported_response_type" => {
            LoginFault::ProviderUnusable
        }
        _ => LoginFault::Denied,
    }
}

fn fault(fault: Fault) -> LoginFault {
    match fault {
        Fault::Down => LoginFault::ProviderDown,
        Fault::Unusable => LoginFault::ProviderUnusable,
        Fault::CodeRefused => LoginFault::CodeRefused,
        Fault::TokenInvalid => LoginFault::TokenInvalid,
    }
}

fn refused(refusal: Refusal) -> LoginFault {
    match refusal {
        Refusal::Forged => LoginFault::StateInvalid,
        Refusal::Expired => LoginFault::Expired,
        Refusal::OtherBrowser => LoginFault::OtherBrowser,
    }
}

fn no_random(_: getrandom::Error) -> LoginFault {
    LoginFault::Internal
}

fn random<const N: usize>() -> Result<[u8; N], LoginFault> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(no_random)?;
    Ok(bytes)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
