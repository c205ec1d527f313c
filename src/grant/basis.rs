//! What a grant rests on, kept with what lives long, so that it can be found out again whether it still holds.

use super::decision::Finding;
use super::{About, Access, Asker, Grant, bearer, session};
use crate::activity::Place;
use crate::config::Config;
use crate::counters::{AuthResult, Revoked};
use crate::forward;
use crate::head::{FieldId, RequestHead};
use crate::ids::{Port, SandboxId, SignedToken, Token};
use crate::live::Pass;
use crate::mailbox::ProofKind;
use crate::route::{Route, route};
use crate::shard::Shard;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Basis {
    Public,
    Token {
        kind: ProofKind,
        token: Token,
    },
    Link {
        token: SignedToken,
        port: Port,
    },
    /// Signed by us for an hour: it says no more than which sandbox it opens, so nobody can take it back before, but
    /// it ends with its sandbox. In seconds since 1970.
    Cookie {
        ends_at: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    Yes,
    No,
    NobodyKnows,
}

impl Basis {
    /// How long it is believed without news.
    pub fn lifetime(&self, config: &Config) -> Duration {
        match self {
            Self::Public => config.ttl_public,
            Self::Token { .. } => config.ttl_verdict,
            Self::Link { .. } => config.ttl_signed,
            Self::Cookie { ends_at } => Duration::from_secs(ends_at.saturating_sub(session::unix_now())),
        }
    }

    pub fn is_link(&self) -> bool {
        matches!(self, Self::Link { .. })
    }

    /// Why what rested on it ends.
    pub fn revoked(&self) -> Revoked {
        match self {
            Self::Public => Revoked::Private,
            Self::Token { .. } => Revoked::Token,
            Self::Link { .. } => Revoked::Link,
            Self::Cookie { .. } => Revoked::Session,
        }
    }
}

impl Grant {
    /// `None`: of no sandbox. The proof is read from the head once more: only what lives long needs it. `place` is where
    /// the sandbox is.
    pub fn pass(
        &self,
        shard: &Shard,
        head: &RequestHead<'_>,
        client_ip: IpAddr,
        place: &Rc<Place>,
    ) -> Option<Pass> {
        let (sandbox, port) = match self.access() {
            Access::Preview { sandbox, port } => (*sandbox, Some(*port)),
            Access::Toolbox { sandbox, .. } => (*sandbox, None),
            Access::BuildLogs { .. } => return None,
        };
        let token = |kind, text: Option<&[u8]>| Some(Basis::Token { kind, token: Token::parse(text?)? });
        let basis = match self.auth() {
            AuthResult::Public => Basis::Public,
            AuthResult::Bearer => token(ProofKind::Bearer, bearer(head))?,
            AuthResult::Header => token(ProofKind::PreviewToken, head.first(FieldId::PreviewToken))?,
            AuthResult::Query => {
                let text = head.query().and_then(forward::query_token);
                token(ProofKind::PreviewToken, text.as_deref())?
            }
            AuthResult::SignedLink => {
                let Ok(Route::Preview { label, .. }) = route(head, shard.route_rules) else { return None };
                Basis::Link { token: SignedToken::of_label(&label)?, port: port? }
            }
            _ => Basis::Cookie {
                ends_at: session::ends_at(shard, head, &sandbox, port.is_some()).unwrap_or(0),
            },
        };
        debug_assert!(place.sandbox == sandbox, "located by this grant");
        Some(Pass { place: place.clone(), basis, client_ip })
    }

    pub fn sandbox(&self) -> Option<&SandboxId> {
        match self.access() {
            Access::Preview { sandbox, .. } | Access::Toolbox { sandbox, .. } => Some(sandbox),
            Access::BuildLogs { .. } => None,
        }
    }
}

/// Finds out, from memory or the API, as for a new request.
pub async fn holds(shard: &Shard, pass: &Pass) -> Holds {
    let watch = shard.deadlines.nobody();
    let asker = Asker::of_gate(shard, &watch, pass.client_ip, Instant::now());
    let about = About { asker: &asker, sandbox: pass.sandbox(), api_down: None };
    let finding = match &pass.basis {
        Basis::Public => about.public().await,
        Basis::Token { kind, token } => about.token(*kind, token.expose().as_bytes()).await,
        Basis::Link { token, port } => about.link(*token, *port).await,
        Basis::Cookie { ends_at } if *ends_at > session::unix_now() => return Holds::Yes,
        Basis::Cookie { .. } => return Holds::No,
    };
    match finding {
        Ok(Finding::Good) => Holds::Yes,
        Ok(Finding::LinkTo(sandbox)) if sandbox == *pass.sandbox() => Holds::Yes,
        Ok(Finding::Bad | Finding::NotShown | Finding::Unknown | Finding::LinkTo(_)) => Holds::No,
        Ok(Finding::Trouble(_)) | Err(_) => Holds::NobodyKnows,
    }
}
