//! Signed cookie values, byte for byte as gorilla/securecookie 1.1.2 makes them without a block key:
//!
//! ```text
//! base64url( timestamp "|" base64url(gob(value)) "|" HMAC-SHA256(key, name "|" timestamp "|" base64url(gob(value))) )
//! ```
//!
//! Signed, not encrypted: the value can be read by whoever has the cookie.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use smallvec::SmallVec;
use std::time::Duration;

type Buffer = SmallVec<[u8; 192]>;

/// Longest cookie that is looked at in bytes; the library's own limit.
const COOKIE_MAX: usize = 4096;

/// How far ahead of our clock a cookie may claim to have been made: the clocks of two gates differ a little, and more
/// would make it live longer.
pub const MADE_AHEAD_MAX: Duration = Duration::from_secs(300);

/// The keys cookies are signed with. No `Debug`: they are secrets.
pub struct CookieKeys {
    /// Signs; all verify.
    current: Hmac<Sha256>,
    older: Vec<Hmac<Sha256>>,
}

/// A cookie whose signature is good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    pub value: SmallVec<[u8; 64]>,
    /// Seconds since 1970.
    pub made_at: u64,
}

impl CookieKeys {
    /// `current` signs; cookies signed with one of `older` are taken too, so that a key can be changed without ending
    /// every session. Each older key costs an HMAC per cookie that the ones before it do not open.
    pub fn new<'k>(current: &str, older: impl IntoIterator<Item = &'k str>) -> Self {
        let key = |key: &str| Hmac::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
        Self { current: key(current), older: older.into_iter().map(key).collect() }
    }

    /// The cookie for `value` under `name`, made `now` (seconds since 1970). Still to be escaped for `Set-Cookie`.
    pub fn seal(&self, name: &str, value: &[u8], now: u64) -> String {
        let mut text = format!("{now}|").into_bytes();
        text.extend_from_slice(URL_SAFE.encode(gob_string(value)).as_bytes());
        let mac = mac_of(&self.current, name.as_bytes(), &text).finalize().into_bytes();
        text.push(b'|');
        text.extend_from_slice(&mac);
        URL_SAFE.encode(text)
    }

    /// `cookie` unescaped. `None`: not made under this name with one of the keys, or older than `max_age`, or made
    /// later than `now` can explain. Signatures are compared in constant time.
    pub fn open(&self, name: &str, cookie: &[u8], now: u64, max_age: Duration) -> Option<Opened> {
        if cookie.len() > COOKIE_MAX {
            return None;
        }
        let text = from_base64(cookie)?;
        let time_end = memchr::memchr(b'|', &text)?;
        let value_end = time_end + 1 + memchr::memchr(b'|', &text[time_end + 1..])?;
        let made_at = seconds(&text[..time_end])?;
        let fresh =
            now.saturating_sub(made_at) <= max_age.as_secs() && made_at <= now + MADE_AHEAD_MAX.as_secs();
        let (signed, mac) = (&text[..value_end], &text[value_end + 1..]);
        let is_from = |key| mac_of(key, name.as_bytes(), signed).verify_slice(mac).is_ok();
        if !fresh || !std::iter::once(&self.current).chain(&self.older).any(is_from) {
            return None;
        }
        let gob = from_base64(&text[time_end + 1..value_end])?;
        Some(Opened { value: SmallVec::from_slice(string_of_gob(&gob)?), made_at })
    }
}

fn mac_of(key: &Hmac<Sha256>, name: &[u8], signed: &[u8]) -> Hmac<Sha256> {
    let mut mac = key.clone();
    mac.update(name);
    mac.update(b"|");
    mac.update(signed);
    mac
}

fn from_base64(text: &[u8]) -> Option<Buffer> {
    let mut out = Buffer::from_elem(0, base64::decoded_len_estimate(text.len()));
    let len = URL_SAFE.decode_slice(text, &mut out).ok()?;
    out.truncate(len);
    Some(out)
}

fn seconds(digits: &[u8]) -> Option<u64> {
    // Digits only: `parse` by itself would take "+5".
    let ok = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| ok)?.parse().ok()
}

/// Go's gob of one string: the message's length, the type (6, zigzag), a zero, the string's length, the string.
fn gob_string(value: &[u8]) -> Vec<u8> {
    const TYPE_STRING: u8 = 6 << 1;
    let mut body = vec![TYPE_STRING, 0];
    push_uint(value.len(), &mut body);
    body.extend_from_slice(value);
    let mut gob = Vec::with_capacity(body.len() + 3);
    push_uint(body.len(), &mut gob);
    gob.extend_from_slice(&body);
    gob
}

fn string_of_gob(gob: &[u8]) -> Option<&[u8]> {
    let (len, body) = take_uint(gob)?;
    let (len_of_string, string) = take_uint(body.strip_prefix(&[6 << 1, 0])?)?;
    (len == body.len() && len_of_string == string.len()).then_some(string)
}

/// Below 128 the number itself; else its negated byte count and its bytes, most significant first.
fn push_uint(number: usize, out: &mut Vec<u8>) {
    if let Ok(small @ 0..128) = u8::try_from(number) {
        return out.push(small);
    }
    let bytes = number.to_be_bytes();
    let bytes = &bytes[number.leading_zeros() as usize / 8..];
    out.push((bytes.len() as u8).wrapping_neg());
    out.extend_from_slice(bytes);
}

fn take_uint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 128 {
        return Some((usize::from(first), rest));
    }
    let (digits, rest) = rest.split_at_checked(usize::from(first.wrapping_neg()))?;
    // No cookie holds more than its four digits can say.
    let ok = digits.len() <= 4;
    ok.then(|| (digits.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cookie::{escape, unescape};
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Made by the real library.
    #[derive(serde::Deserialize)]
    struct Vector {
        key: String,
        name: String,
        value: String,
        cookie: String,
        set_cookie_value: String,
        made_at: u64,
        max_age: u64,
    }

    fn vectors() -> Vec<Vector> {
        serde_json::from_str(include_str!("securecookie.json")).expect("JSON")
    }

    #[test]
    fn cookies_are_those_of_the_real_library_in_both_directions() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 50);
        for v in vectors {
            let keys = CookieKeys::new(&v.key, []);
            assert_eq!(keys.seal(&v.name, v.value.as_bytes(), v.made_at), v.cookie);
            assert_eq!(escape(v.cookie.as_bytes()), v.set_cookie_value);
            let cookie = unescape(v.set_cookie_value.as_bytes()).expect("an escaped value");
            let opened = keys.open(&v.name, &cookie, v.made_at, HOUR).expect("a good cookie");
            assert_eq!((&opened.value[..], opened.made_at), (v.value.as_bytes(), v.made_at));
            let last = v.made_at + v.max_age;
            assert!(keys.open(&v.name, &cookie, last, HOUR).is_some(), "to its last second");
            assert_eq!(keys.open(&v.name, &cookie, last + 1, HOUR), None, "and not a second longer");
        }
    }

    #[test]
    fn another_name_another_key_or_a_changed_byte_is_refused() {
        let keys = CookieKeys::new("key", []);
        let cookie = keys.seal("name", b"value", 1000);
        assert!(keys.open("name", cookie.as_bytes(), 1000, HOUR).is_some());
        assert_eq!(keys.open("nam", cookie.as_bytes(), 1000, HOUR), None);
        assert_eq!(CookieKeys::new("kez", []).open("name", cookie.as_bytes(), 1000, HOUR), None);
        let text = URL_SAFE.decode(&cookie).expect("base64");
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            let changed = URL_SAFE.encode(changed);
            assert_eq!(keys.open("name", changed.as_bytes(), 1000, HOUR), None, "byte {at}");
        }
        for at in 0..cookie.len() {
            assert_eq!(keys.open("name", &cookie.as_bytes()[..at], 1000, HOUR), None, "cut at {at}");
        }
    }

    #[test]
    fn a_clock_that_is_a_little_ahead_is_forgiven_and_more_is_not() {
        let keys = CookieKeys::new("key", []);
        let ahead = MADE_AHEAD_MAX.as_secs();
        let cookie = keys.seal("name", b"value", 1000 + ahead);
        assert!(keys.open("name", cookie.as_bytes(), 1000, HOUR).is_some());
        assert_eq!(keys.open("name", cookie.as_bytes(), 999, HOUR), None);
    }

    #[test]
    fn older_keys_open_and_the_current_one_signs() {
        let (before, after) = (CookieKeys::new("old", []), CookieKeys::new("new", ["older", "old"]));
        let cookie = before.seal("name", b"value", 1000);
        assert!(after.open("name", cookie.as_bytes(), 1000, HOUR).is_some());
        let cookie = after.seal("name", b"value", 1000);
        assert!(CookieKeys::new("new", []).open("name", cookie.as_bytes(), 1000, HOUR).is_some());
        assert_eq!(before.open("name", cookie.as_bytes(), 1000, HOUR), None);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(value in proptest::collection::vec(any::<u8>(), 0..600), now in 0u64..1 << 40) {
            let keys = CookieKeys::new("key", []);
            let cookie = keys.seal("name", &value, now);
            let opened = keys.open("name", cookie.as_bytes(), now, HOUR);
            prop_assert_eq!(opened.map(|o| o.value.to_vec()), Some(value));
        }

        /// Behind a good signature nothing may panic either: a key that leaked must not become a crash.
        #[test]
        fn no_signed_text_whatever_panics(inner in proptest::collection::vec(any::<u8>(), 0..80)) {
            let keys = CookieKeys::new("key", []);
            let mut text = b"1000|".to_vec();
            text.extend_from_slice(URL_SAFE.encode(&inner).as_bytes());
            let mac = mac_of(&keys.current, b"name", &text).finalize().into_bytes();
            text.push(b'|');
            text.extend_from_slice(&mac);
            let opened = keys.open("name", URL_SAFE.encode(text).as_bytes(), 1000, HOUR);
            prop_assert_eq!(opened.map(|o| gob_string(&o.value)).is_some_and(|gob| gob != inner), false);
            let _ = keys.open("name", &inner, 1000, HOUR);
        }
    }
}
