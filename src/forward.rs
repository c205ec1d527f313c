//! The heads we write: request to the runner, response to the client. Header rules live here and nowhere else.
//!
//! One order, both ways: hop-by-hop fields and those `Connection` names go first (RFC 9110 7.6.1), then what is
//! reserved, in every spelling; what is ours is written once, behind everything else. So no list a client sends can
//! take a field of ours away, and no copy of its own can stand before it (CVE-2024-45410 was that mistake).
//! Everything else passes with its bytes, its spelling and its place unchanged. Knows no socket and no configuration;
//! what the body is has been decided in [`crate::framing`].

mod confine;
mod lines;
mod proofs;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use confine::Confine;
pub use proofs::{AUTH_QUERY_KEY, query_token};
pub use request::{RequestPlan, RunnerPath, target_without_proofs, write_request};
pub use response::{ResponsePlan, write_response};

use crate::head::{Field, FieldId};
use smallvec::SmallVec;

fn is_clean(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

/// The fields a `Connection` field names, without the three words that are not names.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for one head; a box would be an allocation per request"
)]
enum Named<'h> {
    /// The usual case.
    Nothing,
    These(SmallVec<[&'h [u8]; Named::MAX]>),
    /// No honest sender lists so many. Comparing each with each field would cost the square of a head, so all
    /// fields we do not know count as named.
    TooMany,
}

impl<'h> Named<'h> {
    const MAX: usize = 16;

    /// In place: it is 264 bytes to move.
    fn add(&mut self, names: impl Iterator<Item = &'h [u8]>) {
        for name in names {
            let word =
                [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|w| name.eq_ignore_ascii_case(w));
            if word {
                continue;
            }
            match self {
                Self::Nothing => *self = Self::These(SmallVec::from_iter([name])),
                Self::These(these) if these.len() < Self::MAX => these.push(name),
                _ => return *self = Self::TooMany,
            }
        }
    }

    fn hold(&self, field: &Field, bytes: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(names) => names.iter().any(|name| name.eq_ignore_ascii_case(field.name.of(bytes))),
            Self::TooMany => field.id == FieldId::Other,
        }
    }
}

/// Lower case: the toolbox compares the token as it is written. `Connection` names it, as RFC 9110 7.8 wants.
fn write_websocket_upgrade(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
}
