//! The session cookie as a proof, and the one a signed link leaves.
//!
//! `daytona-sandbox-auth-{label}` opens the sandbox it names as its value, under that very label: what a login leaves.
//! v0.190 gives visitors of signed links one too, named by the link's token; there it opens every port of the
//! sandbox, and its toolbox, for an hour after the link is over. Here such a cookie opens nothing: the token in the
//! host is asked about whenever it is used. It is still written, for gates of v0.190 behind the same addresses.

use super::decision::Finding;
use crate::config::{CookieMode, Scheme};
use crate::cookie::{self, AUTH_MAX_AGE, AUTH_PREFIX, SAME_NAMED_MAX, SameSite, SetCookie};
use crate::head::{FieldId, RequestHead};
use crate::ids::SandboxId;
use crate::initiator::{self, Place, may_use_cookies};
use crate::login::{HOST_COOKIE, host_cookie_value};
use crate::shard::Shard;
use std::borrow::Cow;
use std::time::SystemTime;

/// `preview`: by its host, not by the toolbox path.
pub fn find(shard: &Shard, head: &RequestHead<'_>, sandbox: &SandboxId, preview: bool) -> Finding {
    if !head.seen.contains(FieldId::Cookie) {
        return Finding::NotShown;
    }
    if !may_use_cookies(head, &place(shard, sandbox, preview)) {
        return Finding::NotShown;
    }
    let own = preview && shard.config.cookie_mode == CookieMode::Isolated;
    let good = vouches(shard, head, sandbox, sandbox) || (own && vouches_here(shard, head, sandbox));
    if good { Finding::Good } else { Finding::Bad }
}

/// Who may frame a preview that a session opened.
pub fn frame_ancestors(shard: &Shard, head: &RequestHead<'_>, sandbox: &SandboxId) -> Cow<'static, str> {
    initiator::frame_ancestors(head, &place(shard, sandbox, true))
}

fn place<'a>(shard: &'a Shard, sandbox: &'a SandboxId, preview: bool) -> Place<'a> {
    let https = shard.config.protocol == Scheme::Https;
    Place { https, sandbox, own_origin: preview, trusted: &shard.config.trusted_origins }
}

/// The cookie for visitors of a signed link, unless they have it. As v0.190 makes it, but for the host alone even
/// where COOKIE_DOMAIN is set: its name is the link, and no other host has a use for it. None where sessions are of one
/// host alone: no gate of v0.190 shares those.
pub fn for_link(
    shard: &Shard,
    head: &RequestHead<'_>,
    label: &SandboxId,
    sandbox: &SandboxId,
) -> Option<Box<str>> {
    let isolated = shard.config.cookie_mode == CookieMode::Isolated;
    if isolated || (head.seen.contains(FieldId::Cookie) && vouches(shard, head, label, sandbox)) {
        return None;
    }
    let secure = shard.config.protocol == Scheme::Https;
    let name = Name::of(label);
    let name = name.as_str();
    let value = cookie::escape(shard.cookie_keys.seal(name, sandbox.as_bytes(), unix_now()).as_bytes());
    let (dest, site) = (head.first(FieldId::SecFetchDest), head.first(FieldId::SecFetchSite));
    let set_cookie = SetCookie {
        name,
        value: &value,
        domain: std::str::from_utf8(head.authority.of(head.bytes)).ok().and_then(cookie::domain_of_host),
        max_age: AUTH_MAX_AGE,
        secure,
        same_site: SameSite::of_request(dest, site, secure),
    };
    Some(set_cookie.text().into())
}

/// Some cookie named after `label` is signed by us and says `sandbox`.
fn vouches(shard: &Shard, head: &RequestHead<'_>, label: &SandboxId, sandbox: &SandboxId) -> bool {
    holds(shard, head, Name::of(label).as_str(), sandbox.as_bytes())
}

/// The session of this one host says that it is, and names the sandbox.
fn vouches_here(shard: &Shard, head: &RequestHead<'_>, sandbox: &SandboxId) -> bool {
    let host = String::from_utf8_lossy(head.authority.of(head.bytes));
    holds(shard, head, HOST_COOKIE, host_cookie_value(sandbox, &host).as_bytes())
}

/// Some cookie of this name is signed by us and has this value.
fn holds(shard: &Shard, head: &RequestHead<'_>, name: &str, value: &[u8]) -> bool {
    made_at(shard, head, name, value).next().is_some()
}

/// When those of this name were made that are signed by us and have this value.
fn made_at(shard: &Shard, head: &RequestHead<'_>, name: &str, value: &[u8]) -> impl Iterator<Item = u64> {
    let now = unix_now();
    let fields = head.fields.iter().filter(|f| f.id == FieldId::Cookie);
    let cookies =
        fields.flat_map(|f| cookie::named(f.value.of(head.bytes), name.as_bytes())).take(SAME_NAMED_MAX);
    cookies.filter_map(move |escaped| {
        let opened = cookie::unescape(escaped)
            .and_then(|cookie| shard.cookie_keys.open(name, &cookie, now, AUTH_MAX_AGE))?;
        // What is signed is no secret to who holds it: an ordinary comparison tells nothing.
        (opened.value[..] == *value).then_some(opened.made_at)
    })
}

/// When the session ends that opened this, in seconds since 1970: that of the youngest cookie. `None`: it has.
pub fn ends_at(shard: &Shard, head: &RequestHead<'_>, sandbox: &SandboxId, preview: bool) -> Option<u64> {
    let own = preview && shard.config.cookie_mode == CookieMode::Isolated;
    let host = String::from_utf8_lossy(head.authority.of(head.bytes));
    let value = host_cookie_value(sandbox, &host);
    let here = own.then(|| made_at(shard, head, HOST_COOKIE, value.as_bytes()));
    let name = Name::of(sandbox);
    let youngest =
        made_at(shard, head, name.as_str(), sandbox.as_bytes()).chain(here.into_iter().flatten()).max();
    youngest.map(|made_at| made_at + AUTH_MAX_AGE.as_secs())
}

/// The name of the cookie for a label; on the stack, it is made for every request with a session.
struct Name {
    len: usize,
    bytes: [u8; AUTH_PREFIX.len() + SandboxId::MAX],
}

impl Name {
    fn of(label: &SandboxId) -> Self {
        let len = AUTH_PREFIX.len() + label.as_bytes().len();
        let mut bytes = [0; AUTH_PREFIX.len() + SandboxId::MAX];
        bytes[..AUTH_PREFIX.len()].copy_from_slice(AUTH_PREFIX.as_bytes());
        bytes[AUTH_PREFIX.len()..len].copy_from_slice(label.as_bytes());
        Self { len, bytes }
    }

    fn as_str(&self) -> &str {
        // Both parts are ASCII; the fallback cannot be reached and names no cookie.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// Seconds. A clock before 1970 makes every cookie too new to be true.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
