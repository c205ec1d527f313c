//! A small OpenID provider for the demo: authorization code with PKCE, and a page with a button for each account.
//!
//! Nobody proves who they are: whoever presses an account's button is that account. It does check what a provider must,
//! so that a gate that gets through here would get through a real one: redirect URI, PKCE, a code that counts once and
//! soon, and signed ID tokens with the login's nonce.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openidconnect::core::{CoreEdDsaPrivateSigningKey, CoreJwsSigningAlgorithm};
use openidconnect::{JsonWebKeyId, PrivateSigningKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use url::Url;

/// The one client: what the API's `/config` and the demo's environment name.
pub const CLIENT_ID: &str = "daytona";
const CODE_LIFE: Duration = Duration::from_secs(60);
/// Codes that wait for their exchange; older ones make room.
const CODES_MAX: usize = 64;

pub(super) struct Provider {
    issuer: String,
    key: CoreEdDsaPrivateSigningKey,
    codes: VecDeque<(String, Issued)>,
}

struct Issued {
    account: String,
    challenge: String,
    redirect_uri: String,
    nonce: Option<String>,
    expires: Instant,
}

/// What the world's API answers for the provider.
pub(super) enum Said {
    Json(u16, Value),
    Page(String),
    /// To the gate's callback.
    Away(String),
    /// A token for this account, to be a bearer at the API.
    Token {
        account: String,
        token: String,
        answer: Value,
    },
    Nothing,
}

type Parameters = BTreeMap<String, String>;

impl Provider {
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn new(issuer: String) -> std::io::Result<Self> {
        // RFC 8410: what stands in front of an Ed25519 seed in PKCS #8.
        let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        der.extend(random::<32>()?);
        let pem =
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
        let id = JsonWebKeyId::new("demo".into());
        let key =
            CoreEdDsaPrivateSigningKey::from_ed25519_pem(&pem, Some(id)).map_err(std::io::Error::other)?;
        Ok(Self { issuer, key, codes: VecDeque::new() })
    }

    /// `page` is the path behind `/oidc/`; `accounts` are the names that may be chosen.
    pub fn answer(
        &mut self,
        page: &str,
        query: &str,
        body: &[u8],
        accounts: &[&str],
    ) -> std::io::Result<Said> {
        let parameters = |text: &[u8]| -> Parameters {
            url::form_urlencoded::parse(text).map(|(n, v)| (n.into_owned(), v.into_owned())).collect()
        };
        match page {
            ".well-known/openid-configuration" => Ok(Said::Json(200, self.document())),
            "jwks" => Ok(Said::Json(200, json!({"keys": [self.key.as_verification_key()]}))),
            "authorize" => Ok(match sound(&parameters(query.as_bytes())) {
                Ok(_) => Said::Page(choice(query, accounts)),
                Err(problem) => Said::Json(400, json!({"error": "invalid_request", "problem": problem})),
            }),
            "decide" => self.decide(&parameters(query.as_bytes()), accounts),
            "token" => self.token(&parameters(body)),
            _ => Ok(Said::Nothing),
        }
    }

    fn document(&self) -> Value {
        let issuer = &self.issuer;
        json!({
            "issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/jwks"),
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA"], "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "authorization_response_iss_parameter_supported": true,
        })
    }

    /// A button was pressed.
    fn decide(&mut self, asked: &Parameters, accounts: &[&str]) -> std::io::Result<Said> {
        let mut back = match sound(asked) {
            Ok(redirect_uri) => redirect_uri,
            Err(problem) => {
                return Ok(Said::Json(400, json!({"error": "invalid_request", "problem": problem})));
            }
        };
        let redirect_uri = asked["redirect_uri"].clone();
        let account = asked.get("account").filter(|account| accounts.contains(&account.as_str()));
        let mut say = |name: &str, value: &str| {
            back.query_pairs_mut().append_pair(name, value);
        };
        match account {
            Some(account) => {
                let code = secret()?;
                say("code", &code);
                if self.codes.len() >= CODES_MAX {
                    self.codes.pop_front();
                }
                let issued = Issued {
                    account: account.clone(),
                    challenge: asked["code_challenge"].clone(),
                    redirect_uri,
                    nonce: asked.get("nonce").cloned(),
                    expires: Instant::now() + CODE_LIFE,
                };
                self.codes.push_back((code, issued));
            }
            None => say("error", "access_denied"),
        }
        say("state", asked.get("state").map_or("", String::as_str));
        say("iss", &self.issuer);
        Ok(Said::Away(back.into()))
    }

    /// RFC 6749 4.1.3 with RFC 7636 4.6.
    fn token(&mut self, asked: &Parameters) -> std::io::Result<Said> {
        let given = |name: &str| asked.get(name).map_or("", String::as_str);
        let refused = |error: &str| Ok(Said::Json(400, json!({"error": error})));
        if given("grant_type") != "authorization_code" {
            return refused("unsupported_grant_type");
        }
        let at = self.codes.iter().position(|(code, _)| code == given("code"));
        // Whatever becomes of it, a code counts once.
        let issued = at.and_then(|at| self.codes.remove(at)).map(|(_, issued)| issued);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(given("code_verifier")));
        let Some(issued) = issued.filter(|issued| {
            issued.expires > Instant::now()
                && issued.redirect_uri == given("redirect_uri")
                && issued.challenge == challenge
                && given("client_id") == CLIENT_ID
        }) else {
            return refused("invalid_grant");
        };
        let token = secret()?;
        let answer = json!({
            "access_token": token, "token_type": "Bearer", "expires_in": 3600,
            "id_token": self.id_token(&issued),
        });
        Ok(Said::Token { account: issued.account, token, answer })
    }

    fn id_token(&self, issued: &Issued) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = json!({
            "iss": self.issuer, "sub": issued.account, "aud": CLIENT_ID, "nonce": issued.nonce,
            "iat": now, "exp": now + 300,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text =
            format!("{}.{}", part(&json!({"alg": "EdDSA", "kid": "demo", "typ": "JWT"})), part(&claims));
        let signature = self.key.sign(&CoreJwsSigningAlgorithm::EdDsa, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.expect("Ed25519 signs anything")))
    }
}

/// Where to send the browser back to, if the request is one that a provider may answer so. Only to a gate on this
/// machine: the demo is for nobody else.
fn sound(asked: &Parameters) -> Result<Url, &'static str> {
    let given = |name: &str| asked.get(name).map_or("", String::as_str);
    if given("client_id") != CLIENT_ID || given("response_type") != "code" {
        return Err("the client or the response type is not known");
    }
    if given("code_challenge_method") != "S256" || given("code_challenge").is_empty() {
        return Err("PKCE with S256 is required");
    }
    let uri = Url::parse(given("redirect_uri")).map_err(|_| "the redirect URI is none")?;
    let local = uri.host_str().is_some_and(|host| host == "localhost" || host.ends_with(".localhost"));
    if !local || uri.path() != "/callback" || uri.query().is_some() || uri.fragment().is_some() {
        return Err("the redirect URI is not a gate's on this machine");
    }
    Ok(uri)
}

/// The page of buttons.
fn choice(query: &str, accounts: &[&str]) -> String {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Log in to the demo</title>\n\
         <style>body{font:16px/1.5 system-ui,sans-serif;max-width:30rem;margin:12vh auto;padding:0 1rem}\
         a{display:block;margin:.6rem 0;padding:.6rem 1rem;border:1px solid #888;border-radius:.4rem;\
         color:inherit;text-decoration:none}</style>\n\
         <h1>Log in to the demo</h1>\n<p>This stands where your login provider would. Who are you?</p>\n",
    );
    // A query comes as ASCII without quotes or angle brackets, but a `&` of it must not begin an entity.
    let query = query.replace('&', "&amp;").replace('"', "%22").replace('<', "%3C").replace('>', "%3E");
    for account in accounts {
        // Writing to a String cannot fail.
        let _ =
            writeln!(page, "<a id=\"{account}\" href=\"decide?{query}&amp;account={account}\">{account}</a>");
    }
    let _ = writeln!(page, "<a id=\"nobody\" href=\"decide?{query}\">Nobody: refuse</a>");
    page
}

fn secret() -> std::io::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: &[&str] = &["owner"];

    fn provider() -> Provider {
        Provider::new("http://127.0.0.1:1/oidc".into()).expect("random bytes")
    }

    fn query(changes: &[(&str, &str)]) -> String {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest("the verifier"));
        let mut parameters = BTreeMap::from([
            ("client_id", CLIENT_ID),
            ("response_type", "code"),
            ("redirect_uri", "http://proxy.localhost:4000/callback"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("state", "s"),
            ("nonce", "n"),
            ("account", "owner"),
        ]);
        parameters.extend(changes.iter().copied());
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
    }

    fn code(provider: &mut Provider) -> String {
        match provider.answer("decide", &query(&[]), b"", ACCOUNTS).expect("random bytes") {
            Said::Away(to) => {
                let to = Url::parse(&to).expect("a URL");
                to.query_pairs().find(|(n, _)| n == "code").map(|(_, v)| v.into_owned()).expect("a code")
            }
            _ => panic!("not sent back"),
        }
    }

    fn exchange(provider: &mut Provider, code: &str, changes: &[(&str, &str)]) -> Option<String> {
        let mut parameters = BTreeMap::from([
            ("grant_type", "authorization_code"),
            ("client_id", CLIENT_ID),
            ("redirect_uri", "http://proxy.localhost:4000/callback"),
            ("code", code),
            ("code_verifier", "the verifier"),
        ]);
        parameters.extend(changes.iter().copied());
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        match provider.answer("token", "", body.as_bytes(), ACCOUNTS).expect("random bytes") {
            Said::Token { account, .. } => Some(account),
            _ => None,
        }
    }

    #[test]
    fn a_code_is_worth_a_token_once_and_to_who_has_the_verifier_only() {
        let mut provider = provider();
        let good = code(&mut provider);
        assert_eq!(exchange(&mut provider, &good, &[]).as_deref(), Some("owner"));
        assert_eq!(exchange(&mut provider, &good, &[]), None, "a second time");
        for wrong in [
            ("code_verifier", "another"),
            ("client_id", "x"),
            ("redirect_uri", "http://localhost/callback"),
            ("code", "x"),
            ("grant_type", "password"),
        ] {
            let code = code(&mut provider);
            assert_eq!(exchange(&mut provider, &code, &[wrong]), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_a_gate_on_this_machine_is_sent_anything() {
        for wrong in [
            ("redirect_uri", "http://evil.example/callback"),
            ("redirect_uri", "http://localhost.evil.example/callback"),
            ("redirect_uri", "http://localhost/elsewhere"),
            ("redirect_uri", "javascript:alert(1)"),
            ("client_id", "x"),
            ("code_challenge_method", "plain"),
            ("code_challenge", ""),
        ] {
            for page in ["authorize", "decide"] {
                let said = provider().answer(page, &query(&[wrong]), b"", ACCOUNTS).expect("random bytes");
                assert!(matches!(said, Said::Json(400, _)), "{page} {wrong:?}");
            }
        }
    }

    #[test]
    fn who_is_no_account_is_refused() {
        for account in ["nobody", ""] {
            let said = provider().answer("decide", &query(&[("account", account)]), b"", ACCOUNTS);
            let Ok(Said::Away(to)) = said else { panic!("not sent back") };
            assert!(to.contains("error=access_denied") && !to.contains("code="), "{to}");
        }
    }
}
