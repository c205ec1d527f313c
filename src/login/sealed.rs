//! Text that only this gate and its fellows with the same key can read or make: XChaCha20-Poly1305 in base64url.
//!
//! Knows nothing of what is sealed. What one purpose sealed does not open for another.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;

const NONCE_BYTES: usize = 24;
/// Longest sealed text that is looked at; a browser's URL does not carry more.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// What a sealed text is for. Part of what is authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The `state` that travels through the provider.
    State,
    /// The ticket that carries a login to a sandbox's own host.
    Ticket,
}

impl Purpose {
    fn associated_data(self) -> &'static [u8] {
        match self {
            Self::State => b"sandgate login state 1",
            Self::Ticket => b"sandgate login ticket 1",
        }
    }
}

/// The first key seals, every one opens: a new key is put in front and the old one taken away later.
pub struct Seal {
    keys: Vec<XChaCha20Poly1305>,
}

impl Seal {
    /// Keys are derived (HKDF-SHA256, RFC 5869): sealed texts are shown to anybody, and must not help in guessing the
    /// secrets, which open more than a login.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let key = |secret: &str| {
            let mut key = [0; 32];
            let hkdf = Hkdf::<Sha256>::new(None, secret.as_bytes());
            hkdf.expand(b"sandgate login seal 1", &mut key).expect("32 bytes are fewer than 255 hashes");
            XChaCha20Poly1305::new(&key.into())
        };
        let keys: Vec<_> = secrets.into_iter().map(key).collect();
        assert!(!keys.is_empty(), "there is always the service key");
        Self { keys }
    }

    /// # Errors
    /// The kernel gives no random bytes.
    pub fn seal(&self, purpose: Purpose, plain: &[u8]) -> Result<String, getrandom::Error> {
        let mut nonce = [0; NONCE_BYTES];
        // 192 bits: random ones do not meet.
        getrandom::fill(&mut nonce)?;
        let payload = Payload { msg: plain, aad: purpose.associated_data() };
        let sealed = self.keys[0].encrypt(XNonce::from_slice(&nonce), payload);
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed.expect("far below the cipher's 256 GiB"));
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// `None` for everything that was not sealed for this purpose by a key of ours, without saying why.
    pub fn open(&self, purpose: Purpose, text: &str) -> Option<Vec<u8>> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES)?;
        let open = |key: &XChaCha20Poly1305| {
            let payload = Payload { msg: sealed, aad: purpose.associated_data() };
            key.decrypt(XNonce::from_slice(nonce), payload).ok()
        };
        self.keys.iter().find_map(open)
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seal({} keys)", self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(seal: &Seal, plain: &[u8]) -> String {
        seal.seal(Purpose::State, plain).expect("random bytes")
    }

    #[test]
    fn what_was_sealed_opens_for_its_purpose_only() {
        let seal = Seal::new(["a secret"]);
        let text = sealed(&seal, b"flow");
        assert_eq!(seal.open(Purpose::State, &text).as_deref(), Some(&b"flow"[..]));
        assert_eq!(seal.open(Purpose::Ticket, &text), None);
        assert_ne!(text, sealed(&seal, b"flow"), "two seals of the same are not equal");
    }

    #[test]
    fn a_change_of_any_character_is_seen() {
        let seal = Seal::new(["a secret"]);
        let text = sealed(&seal, b"flow");
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            // Far enough in the alphabet to change bits that count in the last character too.
            forged[at] = if forged[at] == b'A' { b'z' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ASCII");
            assert_eq!(seal.open(Purpose::State, &forged), None, "at {at}");
        }
        for text in ["", "A", "%7Bx", &text[1..], &"A".repeat(TEXT_BYTES_MAX + 1)] {
            assert_eq!(seal.open(Purpose::State, text), None);
        }
    }

    #[test]
    fn an_old_key_still_opens_and_no_longer_seals() {
        let (old, both, new) = (Seal::new(["old"]), Seal::new(["new", "old"]), Seal::new(["new"]));
        assert!(both.open(Purpose::State, &sealed(&old, b"x")).is_some());
        assert!(new.open(Purpose::State, &sealed(&both, b"x")).is_some());
        assert!(new.open(Purpose::State, &sealed(&old, b"x")).is_none());
    }
}
