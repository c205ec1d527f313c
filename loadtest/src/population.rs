//! The sandboxes a load is aimed at: who exists, who is public and which credentials open them.
//!
//! Everything is computed from a seed and an index, nothing is stored: a population of ten million costs no memory, and
//! the load generator and `loadtest backend` agree without talking. A backend that knows the seed can tell from an id
//! alone whether it is one of the population's. Pure: no socket, no clock.
//!
//! These are test credentials: unguessable to nobody who knows the seed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt::Write as _;

/// Neighbouring indices of private sandboxes that belong to one user, and so open with one bearer key.
const SANDBOXES_PER_OWNER: u64 = 8;
/// Indices have 47 bits: with the visibility they fill the 48 bits of an id that are not its checksum.
const INDEX_MAX: u64 = (1 << 47) - 1;
const CODE_MASK: u64 = (1 << 48) - 1;

/// What a client shows to be let in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthKind {
    /// Nothing: the sandbox is public.
    Public,
    /// `X-Daytona-Preview-Token`.
    Token,
    /// `Authorization: Bearer` with the key of a user who may see the sandbox.
    Bearer,
    /// `?DAYTONA_SANDBOX_AUTH_KEY=`.
    Query,
    /// The cookie a proxy gives out after a login.
    Cookie,
    /// A signed token in place of the sandbox id in the host.
    Signed,
}

impl AuthKind {
    pub const ALL: [Self; 6] =
        [Self::Public, Self::Token, Self::Bearer, Self::Query, Self::Cookie, Self::Signed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Token => "token",
            Self::Bearer => "bearer",
            Self::Query => "query",
            Self::Cookie => "cookie",
            Self::Signed => "signed",
        }
    }
}

/// One sandbox of the population. Public and private ones are numbered apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sandbox {
    pub index: u64,
    pub public: bool,
}

impl Sandbox {
    fn code(self) -> u64 {
        ((self.index & INDEX_MAX) << 1) | u64::from(self.public)
    }

    fn of_code(code: u64) -> Self {
        Self { index: code >> 1, public: code & 1 == 1 }
    }
}

/// A population is its seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Population {
    seed: u64,
}

impl Population {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The sandbox's id, in the form of a UUID. [`Self::sandbox_of_id`] is its inverse.
    pub fn id(&self, sandbox: Sandbox) -> String {
        let code = scramble(sandbox.code(), self.seed);
        let check = self.hash(b'i', code, 0);
        format!(
            "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
            code >> 16,
            code & 0xffff,
            check & 0xfff,
            0x8000 | (check >> 12) & 0x3fff,
            (check >> 16) & CODE_MASK,
        )
    }

    /// The sandbox with this id, `None` if the id is not of this population. Letters may have either case.
    pub fn sandbox_of_id(&self, id: &str) -> Option<Sandbox> {
        let code = u64::from_str_radix(id.get(..8)?, 16).ok()? << 16
            | u64::from_str_radix(id.get(9..13)?, 16).ok()?;
        let sandbox = Sandbox::of_code(unscramble(code, self.seed));
        self.id(sandbox).eq_ignore_ascii_case(id).then_some(sandbox)
    }

    /// The preview token: 32 characters.
    pub fn token(&self, sandbox: Sandbox) -> String {
        format!("{:016x}{:016x}", self.hash(b't', sandbox.code(), 0), self.hash(b't', sandbox.code(), 1))
    }

    /// The API key of the user who owns the sandbox and its neighbours.
    pub fn bearer(&self, sandbox: Sandbox) -> String {
        let owner = sandbox.index / SANDBOXES_PER_OWNER;
        (0..4).fold(String::from("dtn_"), |mut key, part| {
            let _infallible = write!(key, "{:016x}", self.hash(b'b', owner, part));
            key
        })
    }

    /// A signed token for one port: stands in the host where the id would. 16 letters and digits, as v0.190's: proxies
    /// tell them from ids by that. [`Self::sandbox_of_signed`] is its inverse.
    pub fn signed(&self, sandbox: Sandbox, port: u16) -> String {
        let code = scramble(sandbox.code(), self.seed ^ 0x5167);
        signed_text(code, self.hash(b's', code, u64::from(port)))
    }

    /// The sandbox a signed token opens at this port. `None`: made up, or for another port.
    pub fn sandbox_of_signed(&self, token: &str, port: u16) -> Option<Sandbox> {
        let number = u128::from_str_radix(token, 36).ok()?;
        let code = u64::try_from(number >> SIGNED_CHECK_BITS).ok().filter(|code| *code <= CODE_MASK)?;
        let sandbox = Sandbox::of_code(unscramble(code, self.seed ^ 0x5167));
        self.signed(sandbox, port).eq_ignore_ascii_case(token).then_some(sandbox)
    }

    /// A credential that has the right form and opens nothing. `nonce` makes it one of many.
    pub fn bad(&self, kind: AuthKind, sandbox: Sandbox, nonce: u64) -> String {
        let hash = |part| self.hash(b'x', sandbox.code() ^ nonce.rotate_left(17), part);
        match kind {
            AuthKind::Bearer => {
                format!("dtn_{:016x}{:016x}{:016x}{:016x}", hash(0), hash(1), hash(2), hash(3))
            }
            AuthKind::Signed => signed_text(hash(0) & CODE_MASK, hash(1)),
            _ => format!("{:016x}{:016x}", hash(0), hash(1)),
        }
    }

    fn hash(&self, purpose: u8, a: u64, b: u64) -> u64 {
        let first = mix(self.seed ^ u64::from(purpose).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mix(mix(first ^ a).wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03)) ^ a)
    }
}

/// The name of the cookie that opens what `label` names (a sandbox id or a signed token).
pub fn cookie_name(label: &str) -> String {
    format!("daytona-sandbox-auth-{label}")
}

/// The cookie's value as v0.190 gives it out, escaped as it stands in a header: gorilla/securecookie's format, keyed
/// with the proxy's API key, around the sandbox id. `made_at` in seconds since 1970; proxies take it for an hour.
pub fn cookie_value(proxy_key: &str, name: &str, id: &str, made_at: u64) -> String {
    debug_assert!(id.len() < 120, "longer strings have another length prefix");
    let mut gob = vec![id.len() as u8 + 3, 0x0c, 0x00, id.len() as u8];
    gob.extend_from_slice(id.as_bytes());
    let value = URL_SAFE.encode(gob);
    let mut mac =
        Hmac::<Sha256>::new_from_slice(proxy_key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{name}|{made_at}|{value}").as_bytes());
    let mut whole = format!("{made_at}|{value}|").into_bytes();
    whole.extend_from_slice(&mac.finalize().into_bytes());
    URL_SAFE.encode(whole).replace('=', "%3D")
}

/// What of a signed token's 82 bits is not the sandbox's code. 36^16 is a little more than 2^82.
const SIGNED_CHECK_BITS: u32 = 34;

fn signed_text(code: u64, check: u64) -> String {
    let check = check & ((1 << SIGNED_CHECK_BITS) - 1);
    let mut number = u128::from(code) << SIGNED_CHECK_BITS | u128::from(check);
    let mut text = [b'0'; 16];
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
    }
    text.iter().map(|digit| char::from(*digit)).collect()
}

/// A bijection on 48 bits that makes neighbours look unrelated: each step can be undone.
fn scramble(code: u64, seed: u64) -> u64 {
    let key = mix(seed);
    let mut x = (code ^ key) & CODE_MASK;
    for _ in 0..2 {
        x = x.wrapping_mul(ODD) & CODE_MASK;
        x ^= x >> 24;
    }
    x
}

fn unscramble(code: u64, seed: u64) -> u64 {
    let mut x = code & CODE_MASK;
    for _ in 0..2 {
        // Shifting by half the width twice gives nothing: xor with the shifted value undoes itself.
        x ^= x >> 24;
        x = x.wrapping_mul(ODD_INVERSE) & CODE_MASK;
    }
    (x ^ mix(seed)) & CODE_MASK
}

const ODD: u64 = 0x9e37_79b9_7f4b;
const ODD_INVERSE: u64 = inverse(ODD);

/// The inverse modulo 2^64 (and so modulo 2^48) by Newton's iteration: each step doubles the right bits, from 3 to 96.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut step = 0;
    while step < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

/// SplitMix64's finalizer.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PRIVATE: Sandbox = Sandbox { index: 5, public: false };

    #[test]
    fn ids_and_signed_tokens_name_their_sandbox_and_no_other_population_s() {
        let (ours, other) = (Population::new(1), Population::new(2));
        let mut seen = HashSet::new();
        for index in (0..2000).chain([INDEX_MAX]) {
            for public in [false, true] {
                let sandbox = Sandbox { index, public };
                let id = ours.id(sandbox);
                assert_eq!((id.len(), ours.sandbox_of_id(&id)), (36, Some(sandbox)), "{id}");
                assert_eq!(ours.sandbox_of_id(&id.to_ascii_uppercase()), Some(sandbox));
                assert_eq!(other.sandbox_of_id(&id), None);
                let signed = ours.signed(sandbox, 3000);
                assert!(signed.len() == 16 && signed.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')));
                assert_eq!(ours.sandbox_of_signed(&signed, 3000), Some(sandbox));
                assert_eq!(ours.sandbox_of_signed(&signed, 3001), None, "bound to its port");
                assert_eq!(other.sandbox_of_signed(&signed, 3000), None);
                assert!(seen.insert(id) && seen.insert(signed));
            }
        }
    }

    #[test]
    fn what_is_not_an_id_is_nobody_s() {
        let population = Population::new(1);
        for text in ["", "x", "3000-abc", "zzzzzzzz-zzzz-8zzz-8zzz-zzzzzzzzzzzz", "ééééééééééééééééééé"]
        {
            assert_eq!(population.sandbox_of_id(text), None, "{text}");
            assert_eq!(population.sandbox_of_signed(text, 3000), None, "{text}");
        }
        let mut id = population.id(PRIVATE);
        id.replace_range(35.., if id.ends_with('0') { "1" } else { "0" });
        assert_eq!(population.sandbox_of_id(&id), None);
    }

    #[test]
    fn owners_share_a_key_and_bad_credentials_equal_no_good_one() {
        let population = Population::new(7);
        let at = |index| Sandbox { index, public: false };
        assert_eq!(population.bearer(at(0)), population.bearer(at(7)));
        assert_ne!(population.bearer(at(7)), population.bearer(at(8)));
        assert_ne!(population.token(at(0)), population.token(at(1)));
        for nonce in 0..1000 {
            let bad = |kind| population.bad(kind, PRIVATE, nonce);
            assert_ne!(bad(AuthKind::Token), population.token(PRIVATE));
            assert_ne!(bad(AuthKind::Bearer), population.bearer(PRIVATE));
            assert_eq!(population.sandbox_of_signed(&bad(AuthKind::Signed), 3000), None);
        }
    }

    #[test]
    fn cookies_are_those_of_gorilla_securecookie() {
        // A value made by the Go library.
        let id = "7f3c1e0a-5b1d-4c55-9d5e-0f6f2a9f1b10";
        let value = cookie_value("conformance-proxy-key", &cookie_name("priv"), id, 1_795_474_683);
        assert_eq!(
            value,
            "MTc5NTQ3NDY4M3xKd3dBSkRkbU0yTXhaVEJoTFRWaU1XUXROR00xTlMwNVpEVmxMVEJtTm1ZeVlUbG1NV0l4TUE9PXwBO1ky\
             bLOU03cInmNQOZX-bR_uM_D-lXYiy2Elt5y3LA%3D%3D"
        );
    }
}
