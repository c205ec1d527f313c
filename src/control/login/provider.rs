//! The OpenID provider: what it says of itself, its keys, and the exchange of a code for tokens.
//!
//! A provider may have two names: browsers know it by the public one (OIDC_PUBLIC_DOMAIN), this process reaches it by
//! the internal one (OIDC_DOMAIN), and its own document speaks of either. Whatever a browser is sent to has the public
//! origin, whatever is fetched from here the internal one. Knows no flow and no cookie.

use super::settings::{Identity, Settings};
use crate::log::{Level, Log};
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreClientAuthMethod, CoreIdTokenVerifier, CoreJsonWebKeySet,
    CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreTokenResponse,
};
use openidconnect::{
    AuthType, AuthUrl, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret, CsrfToken,
    HttpRequest, HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, TokenResponse, TokenUrl,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

/// How long what was fetched is used without asking again.
const FRESH: Duration = Duration::from_secs(3600);
/// How much longer it is used while the provider cannot be asked.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How long a failed fetch is not repeated.
const FAILED: Duration = Duration::from_secs(3);
/// Least time between two fetches of the keys because a token names an unknown one: anybody can name unknown keys.
const ROTATED: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest document or answer of the provider's.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Why the provider does not help. Detail goes to the log only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// It cannot be reached, or says it is out of order.
    Down,
    /// It is there and says what cannot be used: wrong issuer, broken document, refused client.
    Unusable,
    /// It does not take the code: used, too old, or of somebody else's login.
    CodeRefused,
    /// Its ID token does not hold: signature, issuer, audience, nonce or time.
    TokenInvalid,
}

/// What a provider says of itself, each URL with the origin it is to be used with.
#[derive(Clone, Debug)]
pub struct Document {
    /// As tokens name it.
    pub issuer: IssuerUrl,
    pub authorize: AuthUrl,
    pub token: TokenUrl,
    pub jwks: Url,
    pub algorithms: Vec<CoreJwsSigningAlgorithm>,
    /// The secret goes into the body: the provider does not take it as basic authentication.
    pub secret_in_body: bool,
    /// RFC 9207: the provider puts `iss` into every callback.
    pub names_itself: bool,
}

impl Document {
    /// # Errors
    /// A sentence for the operator.
    pub fn read(bytes: &[u8], internal: &Url, public: &Url) -> Result<Self, &'static str> {
        let said: CoreProviderMetadata = serde_json::from_slice(bytes)
            .map_err(|_| "the discovery document is not one of OpenID Connect")?;
        let issuer = said.issuer().clone();
        let is = |url: &Url| url.as_str().trim_end_matches('/') == issuer.as_str().trim_end_matches('/');
        if !is(internal) && !is(public) {
            return Err(
                "the provider's issuer is neither OIDC_DOMAIN nor OIDC_PUBLIC_DOMAIN: set the latter to it",
            );
        }
        let token = said.token_endpoint().ok_or("the provider has no token endpoint")?;
        let authorize = moved(said.authorization_endpoint().url(), internal, public);
        let token = moved(token.url(), public, internal);
        let jwks = moved(said.jwks_uri().url(), public, internal);
        if [&authorize, &token, &jwks].iter().any(|url| !matches!(url.scheme(), "http" | "https")) {
            return Err("an endpoint of the provider is not http(s)");
        }
        // What is signed with a shared secret or not at all proves nothing.
        let asymmetric = |algorithm: &&CoreJwsSigningAlgorithm| {
            !matches!(
                algorithm,
                CoreJwsSigningAlgorithm::None
                    | CoreJwsSigningAlgorithm::HmacSha256
                    | CoreJwsSigningAlgorithm::HmacSha384
                    | CoreJwsSigningAlgorithm::HmacSha512
            )
        };
        let algorithms: Vec<_> =
            said.id_token_signing_alg_values_supported().iter().filter(asymmetric).cloned().collect();
        if algorithms.is_empty() {
            return Err("the provider signs ID tokens in no way that proves who did, such as RS256 or ES256");
        }
        let methods = said.token_endpoint_auth_methods_supported();
        let takes = |method| methods.is_none_or(|methods| methods.contains(&method));
        #[derive(serde::Deserialize)]
        struct Further {
            authorization_response_iss_parameter_supported: Option<bool>,
        }
        // Taken for a no, it would let callbacks pass that another provider could have sent.
        let further: Further = serde_json::from_slice(bytes).map_err(
            |_| "the provider says authorization_response_iss_parameter_supported twice, or no truth value of it",
        )?;
        Ok(Self {
            issuer,
            authorize: AuthUrl::from_url(authorize),
            token: TokenUrl::from_url(token),
            jwks,
            algorithms,
            secret_in_body: !takes(CoreClientAuthMethod::ClientSecretBasic),
            names_itself: further.authorization_response_iss_parameter_supported == Some(true),
        })
    }
}

/// Something fetched, and when; and when fetching it failed.
struct Kept<T> {
    known: Option<(Arc<T>, Instant)>,
    failed: Option<(Instant, Fault)>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { known: None, failed: None }
    }
}

impl<T> Kept<T> {
    /// `None`: it is to be fetched now.
    fn usable(&self, now: Instant, fresh: Duration) -> Option<Result<Arc<T>, Fault>> {
        if let Some((known, at)) = &self.known {
            let failed_lately = self.failed.is_some_and(|(failed, _)| now < failed + FAILED);
            if now < *at + fresh || (failed_lately && now < *at + FRESH + STALE) {
                return Some(Ok(Arc::clone(known)));
            }
        }
        self.failed.filter(|(failed, _)| now < *failed + FAILED).map(|(_, fault)| Err(fault))
    }

    /// Takes in what a fetch brought. What is known outlives failures for a while.
    fn take(&mut self, now: Instant, fetched: Result<T, Fault>) -> Result<Arc<T>, Fault> {
        match fetched {
            Ok(fetched) => {
                let known = Arc::new(fetched);
                *self = Self { known: Some((Arc::clone(&known), now)), failed: None };
                Ok(known)
            }
            Err(fault) => {
                self.failed = Some((now, fault));
                match &self.known {
                    Some((known, at)) if now < *at + FRESH + STALE => Ok(Arc::clone(known)),
                    _ => Err(fault),
                }
            }
        }
    }
}

pub(super) struct Provider {
    http: reqwest::Client,
    settings: Settings,
    // Held while fetching: those who come meanwhile want the same.
    document: Mutex<Kept<Document>>,
    keys: Mutex<Kept<CoreJsonWebKeySet>>,
    log: Log,
}

/// What is to be asked of the provider when a login begins.
pub(super) struct Leaving<'a> {
    pub redirect_uri: &'a str,
    pub verifier: &'a str,
    pub nonce: &'a str,
    pub state: String,
}

/// What came back.
pub(super) struct Returning<'a> {
    pub redirect_uri: String,
    pub verifier: String,
    pub nonce: &'a str,
    pub code: String,
    /// `iss` of the callback (RFC 9207).
    pub issuer: Option<&'a str>,
}

impl Provider {
    /// # Errors
    /// A sentence for the operator.
    pub fn new(settings: Settings, log: Log) -> Result<Self, &'static str> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("sandgate/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the code, or the client's secret, to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(DEADLINE)
            .build()
            .map_err(|_| "the HTTP client for login cannot be set up")?;
        Ok(Self { http, settings, document: Mutex::default(), keys: Mutex::default(), log })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where a browser goes to log in.
    pub async fn authorize_url(
        &self,
        identity: &Identity,
        leaving: Leaving<'_>,
    ) -> Result<openidconnect::url::Url, Fault> {
        let document = self.document(identity).await?;
        let Leaving { redirect_uri, verifier, nonce, state } = leaving;
        let verifier = PkceCodeVerifier::new(verifier.to_owned());
        let nonce = Nonce::new(nonce.to_owned());
        let redirect_uri = RedirectUrl::new(redirect_uri.to_owned()).map_err(|_| Fault::Unusable)?;
        let no_keys = CoreJsonWebKeySet::new(Vec::new());
        let client =
            CoreClient::new(ClientId::new(identity.client_id.clone()), document.issuer.clone(), no_keys)
                .set_auth_uri(document.authorize.clone())
                .set_redirect_uri(redirect_uri);
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let mut request = client
            .authorize_url(flow, || CsrfToken::new(state), || nonce)
            .add_scope(Scope::new("profile".into()))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
        if let Some(audience) = &identity.audience {
            request = request.add_extra_param("audience", audience);
        }
        Ok(request.url().0)
    }

    /// The access token for a code, once its ID token, if there is one, holds. Without one the access token stands
    /// alone: it is worth what the API says of it.
    pub async fn redeem(&self, identity: &Identity, returning: Returning<'_>) -> Result<String, Fault> {
        let document = self.document(identity).await?;
        match returning.issuer {
            Some(issuer) if issuer != document.issuer.as_str() => {
                return Err(self.report(Fault::TokenInvalid, "the callback names another issuer"));
            }
            None if document.names_itself => {
                return Err(self.report(Fault::TokenInvalid, "the callback names no issuer"));
            }
            _ => {}
        }
        let response = self.exchange(&document, identity, &returning).await?;
        if let Some(id_token) = response.id_token() {
            let nonce = Nonce::new(returning.nonce.to_owned());
            let keys = self.keys(&document, FRESH).await?;
            let mut checked = check(&document, identity, &keys, id_token, &nonce);
            if let Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey | SignatureVerificationError::CryptoError(_),
            )) = checked
            {
                // The provider may have changed its keys.
                let keys = self.keys(&document, ROTATED).await?;
                checked = check(&document, identity, &keys, id_token, &nonce);
            }
            // The error's text holds claims of the token: its kind is enough.
            checked.map_err(|error| self.report(Fault::TokenInvalid, kind_of(&error)))?;
        }
        Ok(response.access_token().secret().clone())
    }

    async fn exchange(
        &self,
        document: &Document,
        identity: &Identity,
        returning: &Returning<'_>,
    ) -> Result<CoreTokenResponse, Fault> {
        let redirect_uri = RedirectUrl::new(returning.redirect_uri.clone()).map_err(|_| Fault::Unusable)?;
        let no_keys = CoreJsonWebKeySet::new(Vec::new());
        let mut client =
            CoreClient::new(ClientId::new(identity.client_id.clone()), document.issuer.clone(), no_keys)
                .set_token_uri(document.token.clone())
                .set_redirect_uri(redirect_uri);
        if let Some(secret) = &identity.client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.expose().to_owned()));
        }
        if document.secret_in_body {
            client = client.set_auth_type(AuthType::RequestBody);
        }
        let http = self.http.clone();
        let send = move |request| call(http.clone(), request);
        let request = client
            .exchange_code(AuthorizationCode::new(returning.code.clone()))
            .set_pkce_verifier(PkceCodeVerifier::new(returning.verifier.clone()));
        request.request_async(&send).await.map_err(|error| match error {
            RequestTokenError::Request(Broken) => {
                self.report(Fault::Down, "the token endpoint does not answer")
            }
            RequestTokenError::ServerResponse(answer) => match answer.error().as_ref() {
                "invalid_grant" => Fault::CodeRefused,
                // A registered word, or a stranger's: only ours are shown.
                "invalid_client" | "unauthorized_client" => self.report(
                    Fault::Unusable,
                    "the provider refuses this client: are OIDC_CLIENT_ID and OIDC_CLIENT_SECRET right?",
                ),
                "invalid_request" => {
                    self.report(Fault::Unusable, "the provider calls the token request invalid")
                }
                _ => self.report(Fault::Unusable, "the provider refuses the token request"),
            },
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
                self.report(Fault::Unusable, "the token endpoint's answer is not one of OAuth")
            }
        })
    }

    async fn document(&self, identity: &Identity) -> Result<Arc<Document>, Fault> {
        let mut kept = self.document.lock().await;
        if let Some(usable) = kept.usable(Instant::now(), FRESH) {
            return usable;
        }
        let fetched = self.discover(identity).await;
        kept.take(Instant::now(), fetched)
    }

    async fn discover(&self, identity: &Identity) -> Result<Document, Fault> {
        let internal = &identity.domain;
        let public = identity.public_domain.as_ref().unwrap_or(internal);
        let base = internal.as_str().trim_end_matches('/');
        let bytes = self.fetch(&format!("{base}/.well-known/openid-configuration")).await?;
        Document::read(&bytes, internal, public).map_err(|detail| self.report(Fault::Unusable, detail))
    }

    /// The provider's keys, no older than `fresh` if it can be asked.
    async fn keys(&self, document: &Document, fresh: Duration) -> Result<Arc<CoreJsonWebKeySet>, Fault> {
        let mut kept = self.keys.lock().await;
        if let Some(usable) = kept.usable(Instant::now(), fresh) {
            return usable;
        }
        let fetched = match self.fetch(document.jwks.as_str()).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|_| self.report(Fault::Unusable, "the provider's key set is not one")),
            Err(fault) => Err(fault),
        };
        kept.take(Instant::now(), fetched)
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, Fault> {
        let down = |detail| self.report(Fault::Down, detail);
        let response = self.http.get(url).send().await.map_err(|_| down("the provider cannot be reached"))?;
        match response.status().as_u16() {
            200 => {}
            500.. => return Err(down("the provider answers with a 5xx")),
            _ => {
                return Err(self.report(
                    Fault::Unusable,
                    "the provider's documents are not there: is OIDC_DOMAIN its issuer?",
                ));
            }
        }
        body(response).await.map_err(|_| down("the provider's document does not arrive, or does not end"))
    }

    /// One line for the operator; `detail` is a sentence of ours.
    fn report(&self, fault: Fault, detail: &str) -> Fault {
        let what = match fault {
            Fault::Down => "login_provider_down",
            Fault::Unusable => "login_provider_unusable",
            Fault::CodeRefused => "login_code_refused",
            Fault::TokenInvalid => "login_token_invalid",
        };
        self.log.event(Level::Error, what, &[("detail", detail)]);
        fault
    }
}

/// The connection or the answer broke. Says nothing: the request held a code and maybe a secret.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no usable answer")
    }
}

impl std::error::Error for Broken {}

/// One request of the OAuth library's.
async fn call(http: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, Broken> {
    let request = reqwest::Request::try_from(request.map(reqwest::Body::from)).map_err(|_| Broken)?;
    let response = http.execute(request).await.map_err(|_| Broken)?;
    let (status, headers) = (response.status(), response.headers().clone());
    if status.is_server_error() {
        return Err(Broken);
    }
    let mut answer = HttpResponse::new(body(response).await?);
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    Ok(answer)
}

async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, Broken> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Broken)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(Broken);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn check(
    document: &Document,
    identity: &Identity,
    keys: &CoreJsonWebKeySet,
    id_token: &openidconnect::core::CoreIdToken,
    nonce: &Nonce,
) -> Result<(), ClaimsVerificationError> {
    let keys = CoreJsonWebKeySet::new(keys.keys().clone());
    let client_id = ClientId::new(identity.client_id.clone());
    let verifier = CoreIdTokenVerifier::new_public_client(client_id, document.issuer.clone(), keys)
        .set_allowed_algs(document.algorithms.clone());
    id_token.claims(&verifier, nonce).map(|_| ())
}

fn kind_of(error: &ClaimsVerificationError) -> &'static str {
    match error {
        ClaimsVerificationError::Expired(_) => "the ID token has expired",
        ClaimsVerificationError::InvalidAudience(_) => "the ID token is for another client",
        ClaimsVerificationError::InvalidIssuer(_) => "the ID token is another issuer's",
        ClaimsVerificationError::InvalidNonce(_) => "the ID token is of another login",
        ClaimsVerificationError::SignatureVerification(_) => "the ID token's signature does not hold",
        _ => "the ID token cannot be used",
    }
}

/// `url` with the origin of `to`, and the path in front of it, if it lies at `from`; else as it is.
fn moved(url: &Url, from: &Url, to: &Url) -> Url {
    if url.origin() != from.origin() || from.origin() == to.origin() && from.path() == to.path() {
        return url.clone();
    }
    let (from_path, to_path) = (from.path().trim_end_matches('/'), to.path().trim_end_matches('/'));
    let path = match url.path().strip_prefix(from_path) {
        Some(rest) if rest.starts_with('/') => format!("{to_path}{rest}"),
        _ => url.path().to_owned(),
    };
    let mut moved = to.clone();
    moved.set_path(&path);
    moved.set_query(url.query());
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_move_with_their_origin_and_prefix_and_strangers_stay() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let (public, internal) = (url("http://localhost:5556/dex"), url("http://dex:5556/dex"));
        for (given, wanted) in [
            ("http://localhost:5556/dex/token", "http://dex:5556/dex/token"),
            ("http://localhost:5556/dex/keys?x=1", "http://dex:5556/dex/keys?x=1"),
            ("http://localhost:5556/other", "http://dex:5556/other"),
            ("http://localhost:5557/dex/token", "http://localhost:5557/dex/token"),
            ("https://localhost:5556/dex/token", "https://localhost:5556/dex/token"),
            ("http://dex:5556/dex/token", "http://dex:5556/dex/token"),
        ] {
            assert_eq!(moved(&url(given), &public, &internal).as_str(), wanted, "{given}");
        }
        let (public, internal) = (url("https://sso.test/realms/a/"), url("http://idp:8080/a"));
        let given = url("https://sso.test/realms/a/token");
        assert_eq!(moved(&given, &public, &internal).as_str(), "http://idp:8080/a/token");
    }

    #[test]
    fn what_is_known_outlives_a_failure_and_a_failure_is_not_repeated_at_once() {
        let mut kept = Kept::<u8>::default();
        let start = Instant::now();
        assert!(kept.usable(start, FRESH).is_none(), "nothing is known");
        assert_eq!(kept.take(start, Err(Fault::Down)), Err(Fault::Down));
        assert_eq!(kept.usable(start, FRESH), Some(Err(Fault::Down)), "not asked again at once");
        assert!(kept.usable(start + FAILED, FRESH).is_none());
        assert_eq!(kept.take(start, Ok(7)).as_deref(), Ok(&7));
        assert!(kept.usable(start + FRESH - Duration::from_secs(1), FRESH).is_some());
        let old = start + FRESH;
        assert!(kept.usable(old, FRESH).is_none());
        assert_eq!(kept.take(old, Err(Fault::Down)).as_deref(), Ok(&7), "stale is better than none");
        assert_eq!(kept.usable(old, FRESH).map(|k| k.map(|k| *k)), Some(Ok(7)));
        let too_old = start + FRESH + STALE;
        assert_eq!(kept.take(too_old, Err(Fault::Down)), Err(Fault::Down), "but not for ever");
    }
}
