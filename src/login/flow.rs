//! One login on its way: what the provider carries for us, what the browser keeps, and where both must meet again.
//!
//! Pure: time and randomness are given. A [`Flow`] travels sealed in `state`, so nobody but us knows or chooses what is
//! in it; the browser that began it keeps a cookie whose hash is in there. A [`Ticket`] carries a finished login to the
//! sandbox's own host, for the cookie mode in which no cookie is seen by two sandboxes.

use super::sealed::{Purpose, Seal};
use crate::cookie;
use crate::ids::SandboxId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// From leaving for the provider to coming back.
pub const FLOW_LIFE_SEC: u64 = 300;
/// From coming back to the sandbox's own host.
pub const TICKET_LIFE_SEC: u64 = 60;
/// Longest path and query to come back to. All of it travels through the provider in a URL.
const RETURN_BYTES_MAX: usize = 2048;

/// Random bytes that name a flow and its cookie.
pub type FlowId = [u8; 16];

/// What is known of a login when it begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    #[serde(rename = "i")]
    pub id: FlowId,
    /// SHA-256 of the flow cookie's value.
    #[serde(rename = "b")]
    pub binding: [u8; 32],
    /// Authority of the preview host, in lower case.
    #[serde(rename = "h")]
    pub host: String,
    #[serde(rename = "s")]
    pub sandbox: String,
    /// Path and query to come back to, without proofs.
    #[serde(rename = "r")]
    pub return_to: String,
    /// PKCE's secret (RFC 7636).
    #[serde(rename = "v")]
    pub verifier: String,
    #[serde(rename = "n")]
    pub nonce: String,
    /// Seconds since 1970.
    #[serde(rename = "e")]
    pub expires: u64,
}

/// A finished login on its way to the host it is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    #[serde(rename = "i")]
    pub id: FlowId,
    #[serde(rename = "b")]
    pub binding: [u8; 32],
    #[serde(rename = "h")]
    pub host: String,
    #[serde(rename = "s")]
    pub sandbox: String,
    #[serde(rename = "r")]
    pub return_to: String,
    #[serde(rename = "e")]
    pub expires: u64,
}

/// Why a flow or ticket that came back is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not sealed by us, or not for this host.
    Forged,
    Expired,
    /// The browser has not the cookie of the one that began.
    OtherBrowser,
}

impl Flow {
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn seal(&self, seal: &Seal) -> Result<String, getrandom::Error> {
        seal.seal(Purpose::State, &serde_json::to_vec(self).expect("strings and numbers"))
    }

    /// `callback_host` is the authority the callback was asked at: a flow begun on a host of another domain is not
    /// ours to finish, whoever sealed it.
    pub fn open(seal: &Seal, state: &str, callback_host: &str, now: u64) -> Result<Self, Refusal> {
        let flow: Self = opened(seal, Purpose::State, state)?;
        if base_of(&flow.host) != Some(callback_host.to_ascii_lowercase().as_str()) {
            return Err(Refusal::Forged);
        }
        if flow.expires <= now {
            return Err(Refusal::Expired);
        }
        Ok(flow)
    }

    pub fn sandbox(&self) -> Result<SandboxId, Refusal> {
        SandboxId::parse(self.sandbox.as_bytes()).ok_or(Refusal::Forged)
    }

    /// The finished login, for its host.
    pub fn ticket(self, now: u64) -> Ticket {
        let Self { id, binding, host, sandbox, return_to, .. } = self;
        Ticket { id, binding, host, sandbox, return_to, expires: now + TICKET_LIFE_SEC }
    }
}

impl Ticket {
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn seal(&self, seal: &Seal) -> Result<String, getrandom::Error> {
        seal.seal(Purpose::Ticket, &serde_json::to_vec(self).expect("strings and numbers"))
    }

    /// `host` is the authority the ticket was shown at.
    pub fn open(seal: &Seal, ticket: &str, host: &str, now: u64) -> Result<Self, Refusal> {
        let ticket: Self = opened(seal, Purpose::Ticket, ticket)?;
        if ticket.host != host.to_ascii_lowercase() {
            return Err(Refusal::Forged);
        }
        if ticket.expires <= now {
            return Err(Refusal::Expired);
        }
        Ok(ticket)
    }

    pub fn sandbox(&self) -> Result<SandboxId, Refusal> {
        SandboxId::parse(self.sandbox.as_bytes()).ok_or(Refusal::Forged)
    }
}

fn opened<T: for<'d> Deserialize<'d>>(seal: &Seal, purpose: Purpose, text: &str) -> Result<T, Refusal> {
    let plain = seal.open(purpose, text).ok_or(Refusal::Forged)?;
    serde_json::from_slice(&plain).map_err(|_| Refusal::Forged)
}

/// Name and value of the cookie that ties a flow to its browser.
#[derive(Clone, PartialEq, Eq)]
pub struct FlowCookie {
    pub name: String,
    pub value: String,
}

impl FlowCookie {
    /// `secret` is random.
    pub fn new(prefix: &str, id: &FlowId, secret: &[u8; 16]) -> Self {
        Self { name: Self::name_of(prefix, id), value: hex(secret) }
    }

    /// Each flow has a cookie of its own: tabs that log in at once do not overwrite each other's.
    pub fn name_of(prefix: &str, id: &FlowId) -> String {
        format!("{prefix}{}", hex(&id[..8]))
    }

    pub fn binding(&self) -> [u8; 32] {
        Sha256::digest(self.value.as_bytes()).into()
    }
}

/// The cookies that tie logins to a browser, as one `Cookie` value; the rest of the jar is not the control plane's
/// business. Secret, never printed.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct FlowCookies(Box<str>);

impl FlowCookies {
    /// As many as fit a head of the default size, and more than browsers keep for all hosts of a domain together (some
    /// 180 to 600): a page of a sibling sandbox can plant as many for our path, before ours. Costs 36 KiB when somebody does.
    const COUNT_MAX: usize = 512;
    /// Of a name behind its prefix, and of a value.
    const ID_DIGITS: usize = 16;
    const SECRET_DIGITS: usize = 32;

    /// From the values of `Cookie` fields. What only looks like one of ours is passed over, however long it is.
    pub fn read<'b>(values: impl Iterator<Item = &'b [u8]>, prefix: &str) -> Self {
        let crumbs = values.flat_map(|value| value.split(|b| *b == b';')).map(<[u8]>::trim_ascii);
        let mut found = String::new();
        for crumb in crumbs.filter(|crumb| Self::is_one(crumb, prefix)).take(Self::COUNT_MAX) {
            if !found.is_empty() {
                found.push(';');
            }
            found.extend(crumb.iter().map(|b| char::from(*b)));
        }
        Self(found.into())
    }

    /// Exactly as [`FlowCookie::new`] makes them.
    fn is_one(crumb: &[u8], prefix: &str) -> bool {
        let is_hex = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        crumb
            .strip_prefix(prefix.as_bytes())
            .filter(|rest| rest.len() == Self::ID_DIGITS + 1 + Self::SECRET_DIGITS)
            .is_some_and(|rest| {
                let (id, rest) = rest.split_at(Self::ID_DIGITS);
                is_hex(id) && rest[0] == b'=' && is_hex(&rest[1..])
            })
    }

    /// The secrets themselves, for the one place that compares them.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FlowCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Does the browser hold the flow's cookie? `cookies` is a `Cookie` field's value; of several cookies with the name any
/// will do, for a sibling host can plant one beside ours.
pub fn holds_binding(cookies: &str, name: &str, binding: &[u8; 32]) -> Result<(), Refusal> {
    let mut values = cookie::named(cookies.as_bytes(), name.as_bytes());
    if values.any(|value| is_bound(value, binding)) { Ok(()) } else { Err(Refusal::OtherBrowser) }
}

/// The name of the flow cookie the browser holds for this binding, for who has no flow id.
pub fn name_of_binding(cookies: &str, prefix: &str, binding: &[u8; 32]) -> Result<String, Refusal> {
    let pairs = cookies.split(';').filter_map(|crumb| crumb.trim().split_once('='));
    let mut ours = pairs.filter(|(name, _)| name.starts_with(prefix));
    let found = ours.find(|(_, value)| is_bound(value.as_bytes(), binding));
    found.map(|(name, _)| name.to_owned()).ok_or(Refusal::OtherBrowser)
}

/// Hashes of what was shown: how long their comparison takes tells nothing of the cookie.
fn is_bound(value: &[u8], binding: &[u8; 32]) -> bool {
    <[u8; 32]>::from(Sha256::digest(value)) == *binding
}

/// The authority behind a preview host's first label: where `/callback` is. `None`: there is none.
pub fn base_of(host: &str) -> Option<&str> {
    let (_, base) = host.split_once('.')?;
    (!base.is_empty() && !base.starts_with(':')).then_some(base)
}

/// Path and query to come back to, of a target without proofs. One that is too long loses its query, and then itself:
/// the app's front page is better than no login.
pub fn return_to(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let fits = [target, path].into_iter().find(|t| t.len() <= RETURN_BYTES_MAX && t.starts_with('/'));
    fits.unwrap_or("/").to_owned()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn seal() -> Seal {
        Seal::new(["a secret"])
    }

    fn cookie() -> FlowCookie {
        FlowCookie::new("login-", &[7; 16], &[9; 16])
    }

    fn flow() -> Flow {
        Flow {
            id: [7; 16],
            binding: cookie().binding(),
            host: "3000-priv.proxy.test:4000".into(),
            sandbox: "priv".into(),
            return_to: "/a?b=c".into(),
            verifier: "v".into(),
            nonce: "n".into(),
            expires: NOW + FLOW_LIFE_SEC,
        }
    }

    #[test]
    fn a_flow_comes_back_as_it_left_to_its_own_domain_and_in_time() {
        let state = flow().seal(&seal()).expect("random bytes");
        assert_eq!(Flow::open(&seal(), &state, "Proxy.Test:4000", NOW), Ok(flow()));
        for other in ["evil.test:4000", "proxy.test", "proxy.test:80", "3000-priv.proxy.test:4000", ""] {
            assert_eq!(Flow::open(&seal(), &state, other, NOW), Err(Refusal::Forged), "{other}");
        }
        let late = NOW + FLOW_LIFE_SEC;
        assert!(Flow::open(&seal(), &state, "proxy.test:4000", late - 1).is_ok());
        assert_eq!(Flow::open(&seal(), &state, "proxy.test:4000", late), Err(Refusal::Expired));
    }

    #[test]
    fn a_state_fits_a_url_and_shows_nothing() {
        let mut long = flow();
        long.return_to = return_to(&format!("/{}", "x".repeat(RETURN_BYTES_MAX - 1)));
        let state = long.seal(&seal()).expect("random bytes");
        assert!(state.len() < 4096, "{}", state.len());
        let state = flow().seal(&seal()).expect("random bytes");
        assert!(state.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')));
    }

    #[test]
    fn a_ticket_is_for_one_host_and_one_minute_and_no_state() {
        let ticket = flow().ticket(NOW).seal(&seal()).expect("random bytes");
        let open = |host: &str, now| Ticket::open(&seal(), &ticket, host, now);
        assert_eq!(open("3000-PRIV.proxy.test:4000", NOW).map(|t| t.return_to), Ok("/a?b=c".into()));
        assert_eq!(open("3001-priv.proxy.test:4000", NOW), Err(Refusal::Forged));
        assert_eq!(open("3000-priv.proxy.test:4000", NOW + TICKET_LIFE_SEC), Err(Refusal::Expired));
        assert_eq!(Flow::open(&seal(), &ticket, "proxy.test:4000", NOW), Err(Refusal::Forged));
    }

    #[test]
    fn only_the_browser_with_the_flows_cookie_holds_it() {
        let FlowCookie { name, value } = cookie();
        let held = |cookies: &str| holds_binding(cookies, &name, &cookie().binding());
        assert_eq!(held(&format!("a=b; {name}={value}; c=d")), Ok(()));
        assert_eq!(held(&format!("{name}=planted; {name}={value}")), Ok(()), "any of the name will do");
        for cookies in ["", &format!("{name}="), &format!("{name}=x"), &format!("login-ff={value}"), &value] {
            assert_eq!(held(cookies), Err(Refusal::OtherBrowser), "{cookies}");
        }
        let named = |cookies: &str| name_of_binding(cookies, "login-", &cookie().binding());
        assert_eq!(named(&format!("login-ff=x; other={value}; {name}={value}")), Ok(name.clone()));
        assert_eq!(named(&format!("other={value}")), Err(Refusal::OtherBrowser));
    }

    #[test]
    fn of_a_jar_full_of_lookalikes_the_flow_cookies_are_read() {
        let FlowCookie { name, value } = cookie();
        let (good, id) = (format!("{name}={value}"), &name["login-".len()..]);
        let planted = [
            format!("login-{}", "x".repeat(9000)),
            format!("{name}={}", "0".repeat(9000)),
            format!("{name}={}", "0".repeat(31)),
            format!("{name}={}", "A".repeat(32)),
            format!("login-{}={value}", "A".repeat(16)),
            format!("login-{id}0={}", &value[1..]),
            format!("Login-{id}={value}"),
            format!("x={good}"),
            name.clone(),
            String::new(),
        ];
        let jar = format!("{}; {good}", planted.join("; "));
        let other = format!("a=b;{good} ; c");
        let read = FlowCookies::read([jar.as_bytes(), other.as_bytes()].into_iter(), "login-");
        assert_eq!(read.expose(), format!("{good};{good}"));
        assert_eq!(format!("{read:?}"), "[secret]");
        assert_eq!(FlowCookies::read([&b""[..]].into_iter(), "login-").expose(), "");
    }

    #[test]
    fn more_flow_cookies_than_a_browser_keeps_are_not_carried_on() {
        let some = |count: usize| vec![format!("login-{:016x}={:032x}", 1, 2); count].join("; ");
        let read = |count| FlowCookies::read([some(count).as_bytes()].into_iter(), "login-").expose().len();
        assert!(read(180) > read(179));
        assert_eq!(read(1000), read(FlowCookies::COUNT_MAX));
    }

    #[test]
    fn the_way_back_is_a_path() {
        for (target, wanted) in [("/", "/"), ("/a?b", "/a?b"), ("//evil.test/", "//evil.test/"), ("", "/")] {
            assert_eq!(return_to(target), wanted);
        }
        for target in ["https://evil.test/", "evil.test", "?x", "\\evil.test", "javascript:alert(1)"] {
            assert_eq!(return_to(target), "/", "{target}");
        }
        assert_eq!(return_to(&format!("/a?{}", "q".repeat(RETURN_BYTES_MAX))), "/a");
        assert_eq!(return_to(&format!("/{}", "a".repeat(RETURN_BYTES_MAX))), "/");
    }

    proptest! {
        #[test]
        fn no_text_leads_away_from_the_host(text in "[/\\\\@:.?#%a-z0-9\\[\\]&=;-]{0,40}") {
            let to = url::Url::parse(&format!("http://3000-a.test:4000{}", return_to(&text))).expect("a URL");
            prop_assert_eq!(to.origin().ascii_serialization(), "http://3000-a.test:4000");
            prop_assert_eq!((to.username(), to.password()), ("", None));
        }
    }

    #[test]
    fn the_base_is_what_is_behind_the_first_label() {
        for (host, base) in [
            ("3000-a.proxy.test:4000", Some("proxy.test:4000")),
            ("3000-a.localhost", Some("localhost")),
            ("3000-a", None),
            ("3000-a:4000", None),
            ("3000-a.", None),
        ] {
            assert_eq!(base_of(host), base, "{host}");
        }
    }
}
