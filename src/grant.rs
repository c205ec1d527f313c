//! Who may pass. The only place that makes a [`Grant`]; whatever is unknown or failing is closed.
//!
//! Order of proofs as in v0.190: the public flag (never for reserved ports, never for the toolbox), then bearer,
//! preview-token header, query parameter. A proof that is refused does not end the search: apps have bearers of
//! their own.

use crate::cache::TtlMap;
use crate::changes::AsOf;
use crate::counters::{AuthResult, CacheKind, add};
use crate::deadlines::Watch;
use crate::error::Cause;
use crate::forward;
use crate::head::{FieldId, RequestHead};
use crate::ids::{Port, SandboxId, Token};
use crate::mailbox::{Answer, ProofKind, Question, Reply, Trouble};
use crate::questions::{Left, ask};
use crate::route::{BuildLogsOf, Route};
use crate::shard::Shard;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::time::Instant;

/// A request that may go on, and to what.
pub struct Grant {
    access: Access,
    auth: AuthResult,
}

/// What the grant opens.
pub enum Access {
    Preview {
        sandbox: SandboxId,
        port: Port,
    },
    Toolbox {
        sandbox: SandboxId,
        rest_at: u16,
    },
    /// The caller's own bearer is the API's business: the look-up of the logs is the check.
    BuildLogs {
        of: BuildLogsOf,
        follow: bool,
        bearer: Token,
    },
}

impl Grant {
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub fn auth(&self) -> AuthResult {
        self.auth
    }

    /// The client's `Authorization` was the proof and ends here.
    pub fn strips_authorization(&self) -> bool {
        self.auth == AuthResult::Bearer
    }
}

/// Verdicts of the API, per shard. The kind of proof is part of the key: a token good in one slot says nothing about
/// another. Tokens are kept as hashes only.
pub struct Verdicts {
    public: TtlMap<SandboxId, bool>,
    proofs: TtlMap<ProofKey, Verdict>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ProofKey {
    kind: ProofKind,
    sandbox: SandboxId,
    token: [u8; 32],
}

struct Verdict {
    good: bool,
    as_of: AsOf,
}

impl Verdicts {
    pub fn new(sandboxes_max: usize, proofs_max: usize) -> Self {
        Self { public: TtlMap::new(sandboxes_max), proofs: TtlMap::new(proofs_max) }
    }

    /// The sandbox changed. What is remembered of its tokens is known to be old by the shard's record.
    pub fn evict(&mut self, sandbox: &SandboxId) {
        self.public.remove(sandbox);
    }

    pub fn clear(&mut self) {
        self.public.clear();
        self.proofs.clear();
    }

    pub fn public_len(&self) -> usize {
        self.public.len()
    }

    pub fn proofs_len(&self) -> usize {
        self.proofs.len()
    }
}

/// What the authorizer is told about the client.
pub struct Asker<'a> {
    pub shard: &'a Shard,
    pub watch: &'a Watch,
    /// The visitor's address, for the API's own limits.
    pub ip: IpAddr,
    pub now: Instant,
}

/// `Route::Health` needs no grant and must not be given here.
pub async fn authorize(asker: &Asker<'_>, route: &Route, head: &RequestHead<'_>) -> Result<Grant, Cause> {
    let result = decide(asker, route, head).await;
    let label = match &result {
        Ok(grant) => grant.auth,
        Err(Cause::AuthRequired) => AuthResult::Missing,
        Err(Cause::AuthInvalid) => AuthResult::Invalid,
        Err(_) => AuthResult::Undecided,
    };
    add(&asker.shard.counters.auth[label as usize], 1);
    result
}

async fn decide(asker: &Asker<'_>, route: &Route, head: &RequestHead<'_>) -> Result<Grant, Cause> {
    match route {
        Route::Preview { port, label } => {
            let access = Access::Preview { sandbox: *label, port: *port };
            if !port.is_reserved() && is_public(asker, label).await? {
                return Ok(Grant { access, auth: AuthResult::Public });
            }
            Ok(Grant { access, auth: prove(asker, label, head).await? })
        }
        Route::Toolbox { sandbox, rest_at } => {
            let access = Access::Toolbox { sandbox: *sandbox, rest_at: *rest_at };
            Ok(Grant { access, auth: prove(asker, sandbox, head).await? })
        }
        Route::BuildLogs { of, follow } => {
            let bearer = bearer(head).and_then(Token::parse).ok_or(Cause::AuthRequired)?;
            Ok(Grant {
                access: Access::BuildLogs { of: of.clone(), follow: *follow, bearer },
                auth: AuthResult::Bearer,
            })
        }
        Route::Health => Err(Cause::Internal),
    }
}

async fn is_public(asker: &Asker<'_>, sandbox: &SandboxId) -> Result<bool, Cause> {
    let shard = asker.shard;
    if let Some(public) = shard.verdicts.borrow_mut().public.get(sandbox, asker.now) {
        add(&shard.counters.cache_hits[CacheKind::Public as usize], 1);
        return Ok(*public);
    }
    add(&shard.counters.cache_misses[CacheKind::Public as usize], 1);
    let told = ask(shard, asker.watch, Question::Public(*sandbox)).await.map_err(|Left| Cause::ClientGone)?;
    let public = yes_or_no(told.reply)?;
    shard.verdicts.borrow_mut().public.insert(*sandbox, public, told.keep, Instant::now());
    Ok(public)
}

/// The first good proof. Trouble with one does not hide a good later one; with no good one it is what is answered,
/// for then nobody knows.
async fn prove(asker: &Asker<'_>, sandbox: &SandboxId, head: &RequestHead<'_>) -> Result<AuthResult, Cause> {
    let mut refusal = Cause::AuthRequired;
    let of_query = head.query().and_then(forward::query_token);
    for (kind, result, shown) in [
        (ProofKind::Bearer, AuthResult::Bearer, bearer(head)),
        (ProofKind::PreviewToken, AuthResult::Header, head.first(FieldId::PreviewToken)),
        (ProofKind::PreviewToken, AuthResult::Query, of_query.as_deref()),
    ] {
        let Some(token) = shown.filter(|text| Token::is_valid(text)) else { continue };
        match is_good(asker, kind, sandbox, token).await {
            Ok(true) => return Ok(result),
            Ok(false) if refusal == Cause::AuthRequired => refusal = Cause::AuthInvalid,
            Ok(false) => {}
            Err(Cause::ClientGone) => return Err(Cause::ClientGone),
            Err(trouble) => refusal = trouble,
        }
    }
    Err(refusal)
}

async fn is_good(
    asker: &Asker<'_>,
    proof: ProofKind,
    sandbox: &SandboxId,
    token: &[u8],
) -> Result<bool, Cause> {
    let shard = asker.shard;
    let hash = Sha256::digest(token).into();
    let key = ProofKey { kind: proof, sandbox: *sandbox, token: hash };
    if let Some(Verdict { good, as_of }) = shard.verdicts.borrow_mut().proofs.get(&key, asker.now)
        && !shard.changes.is_old(sandbox, *as_of)
    {
        add(&shard.counters.cache_hits[CacheKind::Verdict as usize], 1);
        return Ok(*good);
    }
    add(&shard.counters.cache_misses[CacheKind::Verdict as usize], 1);
    let token = Token::parse(token).ok_or(Cause::AuthInvalid)?;
    let question = Question::Verdict { proof, sandbox: *sandbox, token, client_ip: asker.ip };
    let told = ask(shard, asker.watch, question).await.map_err(|Left| Cause::ClientGone)?;
    let good = yes_or_no(told.reply)?;
    let verdict = Verdict { good, as_of: told.as_of };
    shard.verdicts.borrow_mut().proofs.insert(key, verdict, told.keep, Instant::now());
    Ok(good)
}

fn yes_or_no(reply: Reply) -> Result<bool, Cause> {
    match reply {
        Ok(Answer::Yes) => Ok(true),
        Ok(Answer::No | Answer::NotFound) => Ok(false),
        Ok(_) => Err(Cause::Api(Trouble::ApiGarbage)),
        Err(trouble) => Err(Cause::Api(trouble)),
    }
}

/// The scheme's name is case-insensitive (RFC 9110 11.1).
fn bearer<'b>(head: &RequestHead<'b>) -> Option<&'b [u8]> {
    let value = head.first(FieldId::Authorization)?;
    let (scheme, token) = value.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") { None } else { Some(token.trim_ascii_start()) }
}
