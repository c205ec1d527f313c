//! What a shard remembers of the API's verdicts, and for how long. Everything that lets somebody in from memory is in
//! here, so that what evicts has one place to go to.

use crate::cache::TtlMap;
use crate::ids::{Port, SandboxId, SignedToken};
use crate::mailbox::ProofKind;
use sha2::{Digest, Sha256};

pub struct Verdicts {
    /// May anybody in?
    pub public: TtlMap<SandboxId, bool>,
    /// Does this token open this sandbox?
    pub proofs: TtlMap<ProofKey, bool>,
    /// Where does this link lead? `None`: nowhere.
    pub links: TtlMap<(SignedToken, Port), Option<SandboxId>>,
}

/// The kind of proof is part of the key: a token good in one slot says nothing about another. The token is kept as
/// its hash only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProofKey {
    kind: ProofKind,
    sandbox: SandboxId,
    token: [u8; 32],
}

impl ProofKey {
    pub fn new(kind: ProofKind, sandbox: &SandboxId, token: &[u8]) -> Self {
        Self { kind, sandbox: *sandbox, token: Sha256::digest(token).into() }
    }
}

impl Verdicts {
    /// At most so many sandboxes, and so many tokens and as many links.
    pub fn new(sandboxes_max: usize, proofs_max: usize) -> Self {
        Self {
            public: TtlMap::new(sandboxes_max),
            proofs: TtlMap::new(proofs_max),
            links: TtlMap::new(proofs_max),
        }
    }
}
