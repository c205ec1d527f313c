//! Who may pass. The only place that makes a [`Grant`]; whatever is unknown or failing is closed.
//!
//! What decides is [`decision`]; here is what finds out for it: in the head, in memory, from the API.

mod basis;
mod decision;
mod session;
mod verdicts;

pub use basis::{Basis, Holds, holds};
pub use verdicts::Verdicts;

use crate::admission::{Exceeded, Limit};
use crate::changes::AsOf;
use crate::counters::{AuthResult, CacheKind, add};
use crate::deadlines::Watch;
use crate::error::Cause;
use crate::forward;
use crate::head::{FieldId, RequestHead};
use crate::ids::{Port, SandboxId, SignedToken, Token};
use crate::mailbox::{Answer, ProofKind, Question, Reply, Trouble};
use crate::questions::{Left, Told, ask};
use crate::route::{BuildLogsOf, Route};
use crate::shard::Shard;
use decision::{Finding, Findings, Proof, Step, decide};
use std::borrow::Cow;
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use verdicts::{Known, ProofKey};

/// A request that may go on, and to what.
pub struct Grant {
    access: Access,
    auth: AuthResult,
    set_cookie: Option<Box<str>>,
    frame_ancestors: Option<Cow<'static, str>>,
    as_of: AsOf,
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

    /// Value of a `Set-Cookie` for the answer.
    pub fn set_cookie(&self) -> Option<&str> {
        self.set_cookie.as_deref()
    }

    /// Who may frame the answer, where the browser does not say who asks for it.
    pub fn frame_ancestors(&self) -> Option<&str> {
        self.frame_ancestors.as_deref()
    }

    /// It was found out not before this: a change since then makes it doubtful.
    pub fn as_of(&self) -> AsOf {
        self.as_of
    }

    /// The client's `Authorization` was the proof and ends here.
    pub fn strips_authorization(&self) -> bool {
        self.auth == AuthResult::Bearer
    }
}

/// What the authorizer is told about the client.
pub struct Asker<'a> {
    pub shard: &'a Shard,
    pub watch: &'a Watch,
    /// The visitor's address, for the API's own limits.
    pub ip: IpAddr,
    pub now: Instant,
    /// Questions asked on the client's account and not paid back.
    asked: Cell<u32>,
    /// The client pays, and memory will do; what the gate wants to know for itself costs nobody and is found out anew.
    charged: bool,
}

impl<'a> Asker<'a> {
    pub fn new(shard: &'a Shard, watch: &'a Watch, ip: IpAddr, now: Instant) -> Self {
        Self { shard, watch, ip, now, asked: Cell::new(0), charged: true }
    }

    /// For looking again at what a client opened: neither it nor what others asked lately must be able to put that off.
    pub fn of_gate(shard: &'a Shard, watch: &'a Watch, ip: IpAddr, now: Instant) -> Self {
        Self { charged: false, ..Self::new(shard, watch, ip, now) }
    }

    /// Asks the control plane on the client's account: who asks too much in vain is not asked for any more.
    pub async fn ask(&self, question: Question) -> Result<Told, Cause> {
        if self.charged
            && let Err(Exceeded(seconds)) = self.shard.admission.look_up(self.ip.into(), self.now)
        {
            add(&self.shard.counters.limited[Limit::LookUps as usize], 1);
            let as_of = self.shard.changes.now();
            return Ok(Told { reply: Err(Trouble::ClientLimited(seconds)), keep: Duration::ZERO, as_of });
        }
        let is_proof = matches!(question, Question::Verdict { .. } | Question::SignedToken { .. });
        let told = ask(self.shard, self.watch, question).await.map_err(|Left| Cause::ClientGone)?;
        // A proof that is refused was asked about in vain, whatever another one opens.
        let in_vain = is_proof && matches!(told.reply, Ok(Answer::No | Answer::NotFound));
        if self.charged && !in_vain {
            self.asked.set(self.asked.get() + 1);
        }
        Ok(told)
    }

    /// The questions so far were not in vain: the client was let in.
    pub fn repay(&self) {
        let asked = self.asked.take();
        if asked > 0 {
            self.shard.admission.looked_up_well(self.ip.into(), asked, self.now);
        }
    }
}

/// `Route::Health` and the steps of a login need no grant and must not be given here.
pub async fn authorize(asker: &Asker<'_>, route: &Route, head: &RequestHead<'_>) -> Result<Grant, Cause> {
    let as_of = asker.shard.changes.now();
    let result = search(asker, route, head).await.map(|grant| Grant { as_of, ..grant });
    let label = match &result {
        Ok(grant) => grant.auth,
        Err(Cause::AuthRequired) => AuthResult::Missing,
        Err(Cause::AuthInvalid | Cause::SignedUrlExpired) => AuthResult::Invalid,
        Err(_) => AuthResult::Undecided,
    };
    add(&asker.shard.counters.auth[label as usize], 1);
    result
}

/// Finds out what the decision wants to know until it is made.
async fn search(asker: &Asker<'_>, route: &Route, head: &RequestHead<'_>) -> Result<Grant, Cause> {
    let mut findings = Findings::default();
    let mut api_down = None;
    loop {
        match decide(route, &findings) {
            Step::Find(proof) => {
                let finding = find(asker, route, head, proof, api_down).await?;
                if let Finding::Trouble(trouble) = finding
                    && is_down(trouble)
                {
                    // It has been waited for once: from here on only what is remembered counts.
                    api_down = Some(trouble);
                }
                findings.set(proof, finding);
            }
            Step::Grant { proof, link_to } => return grant(asker, route, head, proof, link_to),
            Step::Refuse(cause) => return Err(cause),
        }
    }
}

/// Not about one question: the next one would end the same way, after as long a wait.
fn is_down(trouble: Trouble) -> bool {
    matches!(
        trouble,
        Trouble::ApiUnreachable
            | Trouble::ApiTimeout
            | Trouble::ApiStatus(502..=504)
            | Trouble::Overloaded
            | Trouble::ClientLimited(_)
    )
}

fn grant(
    asker: &Asker<'_>,
    route: &Route,
    head: &RequestHead<'_>,
    proof: Proof,
    link_to: Option<SandboxId>,
) -> Result<Grant, Cause> {
    let access = match route {
        Route::Preview { port, label } => Access::Preview { sandbox: link_to.unwrap_or(*label), port: *port },
        Route::Toolbox { sandbox, rest_at } => Access::Toolbox { sandbox: *sandbox, rest_at: *rest_at },
        Route::BuildLogs { of, follow } => {
            let bearer = bearer(head).and_then(Token::parse).ok_or(Cause::AuthRequired)?;
            Access::BuildLogs { of: of.clone(), follow: *follow, bearer }
        }
        Route::Health | Route::Callback | Route::Handoff => return Err(Cause::Internal),
    };
    let set_cookie = match (route, link_to) {
        (Route::Preview { label, .. }, Some(sandbox)) => {
            session::for_link(asker.shard, head, label, &sandbox)
        }
        _ => None,
    };
    let frame_ancestors = match (route, proof) {
        (Route::Preview { label, .. }, Proof::Cookie) => {
            Some(session::frame_ancestors(asker.shard, head, label))
        }
        _ => None,
    };
    let auth = match proof {
        Proof::Public => AuthResult::Public,
        Proof::Bearer => AuthResult::Bearer,
        Proof::Header => AuthResult::Header,
        Proof::Query => AuthResult::Query,
        Proof::Cookie => AuthResult::Cookie,
        Proof::SignedLink => AuthResult::SignedLink,
    };
    Ok(Grant { access, auth, set_cookie, frame_ancestors, as_of: asker.shard.changes.now() })
}

async fn find(
    asker: &Asker<'_>,
    route: &Route,
    head: &RequestHead<'_>,
    proof: Proof,
    api_down: Option<Trouble>,
) -> Result<Finding, Cause> {
    let (sandbox, port) = match route {
        Route::Preview { port, label } => (label, Some(*port)),
        Route::Toolbox { sandbox, .. } => (sandbox, None),
        Route::BuildLogs { .. } | Route::Health | Route::Callback | Route::Handoff => {
            let shown = bearer(head).is_some_and(Token::is_valid);
            return Ok(if shown { Finding::Good } else { Finding::NotShown });
        }
    };
    let about = About { asker, sandbox, api_down };
    let of_query;
    let (kind, shown) = match proof {
        Proof::Public => return about.public().await,
        Proof::Cookie => return Ok(session::find(asker.shard, head, sandbox, port.is_some())),
        Proof::SignedLink => {
            let (Some(token), Some(port)) = (SignedToken::of_label(sandbox), port) else {
                return Ok(Finding::NotShown);
            };
            return about.link(token, port).await;
        }
        Proof::Bearer => (ProofKind::Bearer, bearer(head)),
        Proof::Header => (ProofKind::PreviewToken, head.first(FieldId::PreviewToken)),
        Proof::Query => {
            of_query = head.query().and_then(forward::query_token);
            (ProofKind::PreviewToken, of_query.as_deref())
        }
    };
    match shown.filter(|text| Token::is_valid(text)) {
        Some(token) => about.token(kind, token).await,
        None => Ok(Finding::NotShown),
    }
}

/// Questions about one sandbox, answered from memory or by the API.
struct About<'a> {
    asker: &'a Asker<'a>,
    sandbox: &'a SandboxId,
    api_down: Option<Trouble>,
}

impl About<'_> {
    async fn public(&self) -> Result<Finding, Cause> {
        let (shard, sandbox) = (self.asker.shard, *self.sandbox);
        let known = shard.verdicts.borrow_mut().public.get(&sandbox, self.asker.now).copied();
        let known = known.filter(|_| self.asker.charged);
        self.count(CacheKind::Public, known.is_some());
        if let Some(public) = known {
            return Ok(good_or_bad(public));
        }
        let told = self.ask(Question::Public(sandbox)).await?;
        Ok(yes_or_no(told.reply, |public| {
            shard.verdicts.borrow_mut().public.insert(sandbox, public, told.keep, Instant::now());
        }))
    }

    async fn token(&self, proof: ProofKind, token: &[u8]) -> Result<Finding, Cause> {
        let shard = self.asker.shard;
        let key = ProofKey::new(proof, self.sandbox, token);
        let known = shard.verdicts.borrow_mut().proofs.get(&key, self.asker.now).copied();
        let known =
            known.filter(|known| self.asker.charged && !shard.changes.is_old(self.sandbox, known.as_of));
        self.count(CacheKind::Verdict, known.is_some());
        if let Some(known) = known {
            return Ok(good_or_bad(known.verdict));
        }
        let Some(token) = Token::parse(token) else { return Ok(Finding::Bad) };
        let client_ip = match proof {
            ProofKind::Bearer => self.asker.ip,
            // Asked with our key, whoever shows it: so equal questions of all clients are one.
            ProofKind::PreviewToken => Ipv4Addr::UNSPECIFIED.into(),
        };
        let question = Question::Verdict { proof, sandbox: *self.sandbox, token, client_ip };
        let Told { reply, keep, as_of } = self.ask(question).await?;
        Ok(yes_or_no(reply, |verdict| {
            shard.verdicts.borrow_mut().proofs.insert(key, Known { verdict, as_of }, keep, Instant::now());
        }))
    }

    /// Remembered for seconds only: the API does not say how long a link lives.
    async fn link(&self, token: SignedToken, port: Port) -> Result<Finding, Cause> {
        let (shard, key) = (self.asker.shard, (token, port));
        let known = shard.verdicts.borrow_mut().links.get(&key, self.asker.now).copied();
        let is_old = |known: &Known<Option<SandboxId>>| {
            known.verdict.is_some_and(|sandbox| shard.changes.is_old(&sandbox, known.as_of))
        };
        let known = known.filter(|known| self.asker.charged && !is_old(known));
        self.count(CacheKind::SignedLink, known.is_some());
        let link_to = match known {
            Some(known) => known.verdict,
            None => {
                let changed = shard.links_changed.get();
                let Told { reply, keep, as_of } = self.ask(Question::SignedToken { token, port }).await?;
                let keep = if shard.links_changed.get() == changed { keep } else { Duration::ZERO };
                let (verdict, ttl) = match reply {
                    Ok(Answer::Sandbox(sandbox)) => (Some(sandbox), shard.config.ttl_signed),
                    Ok(Answer::No | Answer::NotFound) => (None, shard.config.ttl_negative),
                    Ok(_) => return Ok(Finding::Trouble(Trouble::ApiGarbage)),
                    Err(trouble) => return Ok(Finding::Trouble(trouble)),
                };
                let link = Known { verdict, as_of };
                shard.verdicts.borrow_mut().links.insert(key, link, ttl.min(keep), Instant::now());
                verdict
            }
        };
        Ok(link_to.map_or(Finding::Bad, Finding::LinkTo))
    }

    async fn ask(&self, question: Question) -> Result<Told, Cause> {
        if let Some(trouble) = self.api_down {
            let as_of = self.asker.shard.changes.now();
            return Ok(Told { reply: Err(trouble), keep: Duration::ZERO, as_of });
        }
        self.asker.ask(question).await
    }

    fn count(&self, cache: CacheKind, hit: bool) {
        let counters = &self.asker.shard.counters;
        let of = if hit { &counters.cache_hits } else { &counters.cache_misses };
        add(&of[cache as usize], 1);
    }
}

fn good_or_bad(good: bool) -> Finding {
    if good { Finding::Good } else { Finding::Bad }
}

/// `keep` is given what is to be remembered: never trouble.
fn yes_or_no(reply: Reply, keep: impl FnOnce(bool)) -> Finding {
    let good = match reply {
        Ok(Answer::Yes) => true,
        Ok(Answer::No | Answer::NotFound) => false,
        Ok(_) => return Finding::Trouble(Trouble::ApiGarbage),
        Err(trouble) => return Finding::Trouble(trouble),
    };
    keep(good);
    good_or_bad(good)
}

/// The scheme's name is case-insensitive (RFC 9110 11.1).
fn bearer<'b>(head: &RequestHead<'b>) -> Option<&'b [u8]> {
    let value = head.first(FieldId::Authorization)?;
    let (scheme, token) = value.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") { None } else { Some(token.trim_ascii_start()) }
}
