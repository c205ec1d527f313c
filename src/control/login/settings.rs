//! Who the provider is: from the environment, and what is missing there from the API's `/config`.
//!
//! Start-up does not wait for it: the first login does.

use crate::config::{Oidc, Secret};
use crate::control::api::Api;
use crate::mailbox::Trouble;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

/// How long the API's word is used without asking again, and how long it is not asked again after a failure.
const FRESH: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(3);

/// Everything that must be known of the provider beforehand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub client_id: String,
    /// A client without one is public: PKCE alone protects its codes.
    pub client_secret: Option<Secret>,
    /// Where it is reached from here.
    pub domain: Url,
    /// Where browsers reach it, if that is elsewhere.
    pub public_domain: Option<Url>,
    pub audience: Option<String>,
}

/// The part of `/config` that is about login. Whatever else is there may come, go or change its shape.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiOidc {
    pub issuer: Option<String>,
    pub client_id: Option<String>,
    pub audience: Option<String>,
}

pub(super) struct Settings {
    told: Oidc,
    api: Arc<Api>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    said: Option<(ApiOidc, Instant)>,
    failed: Option<(Trouble, Instant)>,
}

impl Settings {
    pub fn new(told: Oidc, api: Arc<Api>) -> Self {
        Self { told, api, kept: Mutex::default() }
    }

    /// `None`: neither the environment nor the API names a provider, so there is no login.
    pub async fn identity(&self) -> Result<Option<Identity>, Trouble> {
        let Oidc { client_id, client_secret, domain, public_domain, audience } = &self.told;
        let complete = client_id.is_some() && domain.is_some() && audience.is_some();
        let said = match if complete { Ok(ApiOidc::default()) } else { self.ask().await } {
            // An API that knows no such page knows no login; that is not an outage.
            Err(Trouble::ApiGarbage | Trouble::ApiStatus(400..=499)) => ApiOidc::default(),
            said => said?,
        };
        let given = |text: &String| !text.is_empty();
        let client_id = client_id.clone().or(said.client_id.filter(given));
        let domain = domain.clone().or(said.issuer.filter(given));
        let (Some(client_id), Some(domain)) = (client_id, domain) else { return Ok(None) };
        let url = |text: &str| Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(domain) = url(&domain) else { return Err(Trouble::ApiGarbage) };
        Ok(Some(Identity {
            client_id,
            client_secret: client_secret.clone(),
            domain,
            public_domain: public_domain.as_deref().and_then(url),
            audience: audience.clone().or(said.audience.filter(given)),
        }))
    }

    /// What the API says, at most [`FRESH`] old if it can be asked, else as it said last.
    async fn ask(&self) -> Result<ApiOidc, Trouble> {
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        if let Some((said, _)) = kept.said.as_ref().filter(|(_, at)| now < *at + FRESH) {
            return Ok(said.clone());
        }
        let failed = kept.failed.filter(|(_, at)| now < *at + FAILED).map(|(trouble, _)| trouble);
        let answer = match failed {
            Some(trouble) => Err(trouble),
            None => self.api.login_settings().await,
        };
        match answer {
            Ok(said) => {
                *kept = Kept { said: Some((said.clone(), Instant::now())), failed: None };
                Ok(said)
            }
            Err(trouble) => {
                if failed.is_none() {
                    kept.failed = Some((trouble, Instant::now()));
                }
                kept.said.as_ref().map(|(said, _)| said.clone()).ok_or(trouble)
            }
        }
    }
}
