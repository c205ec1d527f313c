//! May a request pass? One pure function of what is asked for and what has been found out about its proofs so far.
//!
//! It says what to find out next, so nothing is looked up that does not matter any more: a public sandbox's visitors
//! cost one look, and an API that is down is not asked about proofs nobody shows. Knows no API, no cache and no head.

use crate::error::Cause;
use crate::ids::{SandboxId, SignedToken};
use crate::mailbox::Trouble;
use crate::route::Route;

/// What can let a request in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// None is needed: the sandbox is public.
    Public,
    /// `Authorization: Bearer`, an API key or JWT.
    Bearer,
    /// `X-Daytona-Preview-Token`.
    Header,
    /// `?DAYTONA_SANDBOX_AUTH_KEY=`, a preview token too.
    Query,
    /// The session cookie a login left.
    Cookie,
    /// The host's label is the token of a signed link.
    SignedLink,
}

impl Proof {
    /// As v0.190 tries them. A bad one does not end the search: apps have bearers of their own.
    pub const ORDER: [Self; 6] =
        [Self::Public, Self::Bearer, Self::Header, Self::Query, Self::Cookie, Self::SignedLink];

    /// Whether it can open this at all.
    fn counts_for(self, route: &Route) -> bool {
        match (route, self) {
            // Behind reserved ports is a shell: public is never meant for them.
            (Route::Preview { port, .. }, Self::Public) => !port.is_reserved(),
            (Route::Preview { label, .. }, Self::SignedLink) => SignedToken::of_label(label).is_some(),
            (Route::Preview { .. }, _) => true,
            // A signed link opens one port of a preview, never the toolbox.
            (Route::Toolbox { .. }, proof) => !matches!(proof, Self::Public | Self::SignedLink),
            // The look-up of the logs is done in the bearer's own name: it is the check.
            (Route::BuildLogs { .. }, proof) => proof == Self::Bearer,
            (Route::Health | Route::Callback | Route::Handoff, _) => false,
        }
    }
}

/// What is known about one proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Nobody has looked.
    Unknown,
    /// The request has none.
    NotShown,
    Bad,
    /// It opens the sandbox that is asked for.
    Good,
    /// It is a link to this sandbox.
    LinkTo(SandboxId),
    /// Nobody can say. Never taken for good.
    Trouble(Trouble),
}

/// By proof.
#[derive(Clone, Copy, Debug)]
pub struct Findings([Finding; Proof::ORDER.len()]);

impl Default for Findings {
    fn default() -> Self {
        Self([Finding::Unknown; Proof::ORDER.len()])
    }
}

impl Findings {
    pub fn set(&mut self, proof: Proof, finding: Finding) {
        self.0[proof as usize] = finding;
    }

    fn of(&self, proof: Proof) -> Finding {
        self.0[proof as usize]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Find out about this one, then decide again.
    Find(Proof),
    /// Let it in. `link_to`: the sandbox a signed link leads to, in place of the one in the host.
    Grant {
        proof: Proof,
        link_to: Option<SandboxId>,
    },
    Refuse(Cause),
}

/// The first good proof in the order lets in, whatever is wrong with those before it. With none, trouble is what is
/// told, for then nobody knows; then that the link is over; then that what was shown is no good. A cookie that is no
/// good is as none: it is not the client's choice to send it.
pub fn decide(route: &Route, findings: &Findings) -> Step {
    if matches!(route, Route::Health | Route::Callback | Route::Handoff) {
        return Step::Refuse(Cause::Internal);
    }
    let mut refusal = Cause::AuthRequired;
    for proof in Proof::ORDER {
        if !proof.counts_for(route) {
            continue;
        }
        refusal = match (findings.of(proof), proof) {
            (Finding::Unknown, _) => return Step::Find(proof),
            (Finding::LinkTo(sandbox), Proof::SignedLink) => {
                return Step::Grant { proof, link_to: Some(sandbox) };
            }
            (Finding::Good, proof) if proof != Proof::SignedLink => {
                return Step::Grant { proof, link_to: None };
            }
            // Who can say where a link leads says where; nothing else leads anywhere.
            (Finding::Good | Finding::LinkTo(_), _) => return Step::Refuse(Cause::Internal),
            _ if matches!(refusal, Cause::Api(_)) => refusal,
            (Finding::Trouble(trouble), _) => Cause::Api(trouble),
            (Finding::Bad, Proof::SignedLink) => Cause::SignedUrlExpired,
            (Finding::Bad, Proof::Bearer | Proof::Header | Proof::Query) => Cause::AuthInvalid,
            (Finding::Bad, Proof::Public | Proof::Cookie) | (Finding::NotShown, _) => refusal,
        };
    }
    Step::Refuse(refusal)
}

#[cfg(test)]
mod tests;
