//! What a shard remembers of the API's verdicts, and for how long. Everything that lets somebody in from memory is in
//! here, so that what evicts has one place to go to.

use crate::cache::TtlMap;
use crate::changes::AsOf;
use crate::ids::{Port, SandboxId, SignedToken};
use crate::mailbox::ProofKind;
use sha2::{Digest, Sha256};

pub struct Verdicts {
    /// May anybody in?
    pub public: TtlMap<SandboxId, bool>,
    /// Does this token open this sandbox?
    pub proofs: TtlMap<ProofKey, Known<bool>>,
    /// Where does this link lead? `None`: nowhere.
    pub links: TtlMap<(SignedToken, Port), Known<Option<SandboxId>>>,
}

/// A verdict and when it was asked for: many can be about one sandbox, so a change of it does not seek them out, it
/// makes them old.
#[derive(Clone, Copy)]
pub struct Known<T> {
    pub verdict: T,
    pub as_of: AsOf,
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
    /// The sandbox changed. Its tokens and links are told to be old by the shard's record of changes.
    pub fn evict(&mut self, sandbox: &SandboxId) {
        self.public.remove(sandbox);
    }

    pub fn clear(&mut self) {
        self.public.clear();
        self.proofs.clear();
        self.links.clear();
    }
}
