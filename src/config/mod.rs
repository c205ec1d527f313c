//! Configuration: environment (strings) -> [`Config`] (checked values), with all mistakes told together.
//!
//! Nothing is clamped, nothing is ignored silently. What can be set stands in one table ([`table`]); this file says
//! what it becomes. Knows no socket and no thread.

mod dotenv;
mod environment;
mod mistake;
mod reader;
mod secret;
mod table;
mod words;

#[cfg(test)]
mod tests;

pub use environment::{Environment, Origin};
pub use mistake::{Kind as MistakeKind, Mistake, Warning};
pub use secret::Secret;
pub use table::reference;
pub use words::{AccessLog, CookieMode, DriverChoice, Scheme};

use crate::admission::AdmissionRules;
use crate::cors;
use crate::initiator;
use crate::limits::Limits;
use crate::rate::Rate;
use crate::route::Domains;
use ipnet::IpNet;
use reader::Reader;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;
use url::Url;
use words::WeakKeys;

/// Shorter API keys can be guessed.
const API_KEY_LENGTH_MIN: usize = 32;

/// Each may cost an HMAC per cookie that no key opens.
const COOKIE_KEYS_MAX: usize = 4;

const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// Keys that stand in public examples.
const API_KEYS_KNOWN: [&str; 2] = ["super_secret_key", "secret_api_token"];

/// Everything an operator decides, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// As clients see it.
    pub protocol: Scheme,
    /// The gate's own key at the API.
    pub api_key: Secret,
    /// Base of the API without a slash at its end, without user, password, query and fragment.
    pub api_url: String,
    /// One request to the API.
    pub api_timeout: Duration,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// From SIGTERM to the end of what is still open.
    pub shutdown: Duration,
    /// Preview hosts whose port is not 2280 do not exist.
    pub toolbox_only: bool,
    /// `None`: one per CPU this process may use.
    pub shards: Option<NonZeroUsize>,
    /// Tie each shard to a CPU.
    pub pin: bool,
    /// Connections wait in the kernel for their first byte.
    pub defer_accept: bool,
    pub driver: DriverChoice,
    /// Peers that may speak for others.
    pub trusted_proxies: Vec<IpNet>,
    /// Whose hosts are served; `None`: those of any.
    pub allowed_domains: Option<Domains>,
    /// Other sites whose pages may act with a visitor's session cookie.
    pub trusted_origins: Vec<initiator::Origin>,
    /// Former API keys, whose cookies stay good.
    pub cookie_keys: Vec<Secret>,
    /// Take out of apps' answers what reaches other sandboxes.
    pub confine_apps: bool,
    pub access_log: AccessLog,
    /// With [`AccessLog::Errors`]: requests that take longer get a line too.
    pub slow: Option<Duration>,
    /// How long a shard remembers that a sandbox is public,
    pub ttl_public: Duration,
    /// its runner,
    pub ttl_runner: Duration,
    /// that a key or token opens it,
    pub ttl_verdict: Duration,
    /// that a signed link opens it,
    pub ttl_signed: Duration,
    /// and any "no".
    pub ttl_negative: Duration,
    /// The first two where Redis tells of changes.
    pub ttl_public_pushed: Duration,
    pub ttl_runner_pushed: Duration,
    /// Between two reports of one sandbox's use.
    pub activity_interval: Duration,
    /// What a tunnel must move to count as use; 0: being open is enough.
    pub tunnel_activity_bytes: u64,
    /// Requests without a proof count as use too.
    pub anonymous_activity: bool,
    pub admission: AdmissionRules,
    pub limits: Limits,
    pub oidc: Oidc,
    pub cookie_mode: CookieMode,
    /// `None`: every proxy is on its own.
    pub redis: Option<Redis>,
    /// For the cookies of [`CookieMode::Shared`]; `None`: per host.
    pub cookie_domain: Option<String>,
    /// Ask people once a day before they see a preview.
    pub preview_warning: bool,
    pub cors: cors::Mode,
    warnings: Vec<Warning>,
}

/// Login settings; what is `None` comes from the API's `/config`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Oidc {
    pub client_id: Option<String>,
    pub client_secret: Option<Secret>,
    pub domain: Option<String>,
    pub public_domain: Option<String>,
    pub audience: Option<String>,
}

/// The Redis that API and proxies share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redis {
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub tls: bool,
}

impl Config {
    /// Checks everything that is set. Fails with every mistake there is, none of which shows a secret.
    pub fn from_env(environment: &Environment) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(environment);
        let config = read(&mut reader);
        match config {
            Some(mut config) if reader.mistakes.is_empty() => {
                config.warnings.splice(0..0, environment.warnings().iter().cloned());
                Ok(config)
            }
            _ => Err(reader.mistakes),
        }
    }

    /// What is accepted and should still be known, to be logged at start.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// Reads everything before it gives up, so that every mistake is noted. `None`: a required value is missing or bad.
fn read(reader: &mut Reader<'_>) -> Option<Config> {
    let mut warnings = Vec::new();
    let port = reader.number("PROXY_PORT").map(port);
    let protocol = reader.word("PROXY_PROTOCOL", Scheme::from_word);
    let api_key = reader.secret("PROXY_API_KEY");
    let api_url = reader.base_url("DAYTONA_API_URL").map(|url| api_base(url, &mut warnings));
    let listen = reader.address("SANDGATE_LISTEN");
    let metrics = metrics(reader, port, &mut warnings);
    let limits = limits(reader);
    refuse_tls(reader, &mut warnings);
    let oidc = oidc(reader);
    let redis = redis(reader);
    let cookie_domain = cookie_domain(reader);
    let cookie_mode = cookie_mode(reader, protocol, &mut warnings);
    let preview_warning = reader.flag("PREVIEW_WARNING_ENABLED");
    let trusted_proxies = reader.networks("SANDGATE_TRUSTED_PROXIES");
    if trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        warnings.push(Warning::new(
            "SANDGATE_TRUSTED_PROXIES trusts every address: any client may claim any other's",
            "name the networks of the load balancers in front",
        ));
    }
    let allowed_domains = allowed_domains(reader, cookie_domain.as_deref(), &mut warnings);
    let trusted_origins = reader.origins("SANDGATE_TRUSTED_ORIGINS");
    let cookie_keys = cookie_keys(reader);
    weak_keys(reader, api_key.as_ref(), &cookie_keys, &mut warnings);
    let confine_apps = reader.flag("SANDGATE_CONFINE_APPS");
    let shards = reader.number("SANDGATE_SHARDS").and_then(|count| NonZeroUsize::new(count as usize));
    let driver = reader.word("SANDGATE_DRIVER", DriverChoice::from_word);
    let access_log = reader.word("SANDGATE_ACCESS_LOG", AccessLog::from_word);
    let slow = reader.millis_or_never("SANDGATE_SLOW_MS");
    if slow.is_some() && access_log == Some(AccessLog::Off) {
        warnings.push(Warning::new(
            "SANDGATE_SLOW_MS has no effect with SANDGATE_ACCESS_LOG=off",
            "set SANDGATE_ACCESS_LOG=errors, or leave SANDGATE_SLOW_MS unset",
        ));
    }
    let api_timeout = reader.seconds("API_CLIENT_TIMEOUT_SEC");
    let shutdown = reader.seconds("SHUTDOWN_TIMEOUT_SEC");
    let toolbox_only = reader.flag("TOOLBOX_ONLY_MODE");
    let pin = reader.flag("SANDGATE_PIN");
    let defer_accept = reader.flag("SANDGATE_DEFER_ACCEPT");
    let ttl_public = reader.seconds("SANDGATE_PUBLIC_TTL_SEC");
    let ttl_runner = reader.seconds("SANDGATE_RUNNER_TTL_SEC");
    let ttl_verdict = reader.seconds("SANDGATE_VERDICT_TTL_SEC");
    let ttl_signed = reader.seconds("SANDGATE_SIGNED_TTL_SEC");
    let ttl_negative = reader.seconds("SANDGATE_NEGATIVE_TTL_SEC");
    let ttl_public_pushed = reader.seconds("SANDGATE_PUSHED_PUBLIC_TTL_SEC");
    let ttl_runner_pushed = reader.seconds("SANDGATE_PUSHED_RUNNER_TTL_SEC");
    let admission = admission(reader);
    let cors = reader.word("SANDGATE_CORS", cors::Mode::from_word);
    let activity_interval = reader.seconds("SANDGATE_ACTIVITY_INTERVAL_SEC");
    let tunnel_activity_bytes = reader.count("SANDGATE_TUNNEL_ACTIVITY_BYTES") as u64;
    let anonymous_activity = reader.flag("SANDGATE_ANONYMOUS_ACTIVITY");
    Some(Config {
        listen: SocketAddr::new(listen, port?),
        protocol: protocol?,
        api_key: api_key?,
        api_url: api_url?,
        api_timeout,
        metrics,
        shutdown,
        toolbox_only,
        shards,
        pin,
        defer_accept,
        driver: driver?,
        trusted_proxies,
        allowed_domains,
        trusted_origins,
        cookie_keys,
        confine_apps,
        access_log: access_log?,
        slow,
        ttl_public,
        ttl_runner,
        ttl_verdict,
        ttl_signed,
        ttl_negative,
        ttl_public_pushed,
        ttl_runner_pushed,
        activity_interval,
        tunnel_activity_bytes,
        anonymous_activity,
        admission,
        limits,
        oidc,
        redis,
        cookie_mode: cookie_mode?,
        cookie_domain,
        preview_warning,
        cors: cors?,
        warnings,
    })
}

fn weak_keys(
    reader: &mut Reader<'_>,
    api_key: Option<&Secret>,
    cookie_keys: &[Secret],
    warnings: &mut Vec<Warning>,
) {
    let refused = reader.word("SANDGATE_WEAK_KEYS", WeakKeys::from_word) == Some(WeakKeys::Refuse);
    let former = cookie_keys.iter().filter_map(weakness).next().map(|weakness| {
        ("SANDGATE_COOKIE_KEYS", format!("one of its keys {weakness}"), "remove it; its sessions end")
    });
    let current = api_key.and_then(weakness).map(|weakness| {
        ("PROXY_API_KEY", format!("it {weakness}"), "set a random one of 32 characters or more")
    });
    for (name, problem, remedy) in current.into_iter().chain(former) {
        if refused {
            reader.invalid(name, &format!("{problem} (SANDGATE_WEAK_KEYS=refuse)"), remedy);
        } else {
            warnings.push(Warning::new(&format!("{name}: {problem}"), remedy));
        }
    }
}

fn weakness(key: &Secret) -> Option<String> {
    if API_KEYS_KNOWN.contains(&key.expose()) {
        return Some("is from public examples, so that anyone can use it".into());
    }
    (key.expose().len() < API_KEY_LENGTH_MIN)
        .then(|| format!("is shorter than {API_KEY_LENGTH_MIN} characters, so that it can be guessed"))
}

fn api_base(mut url: Url, warnings: &mut Vec<Warning>) -> String {
    if !url.username().is_empty() || url.password().is_some() {
        warnings.push(Warning::new(
            "user and password in DAYTONA_API_URL are not used: PROXY_API_KEY is the proof",
            "remove them from the URL",
        ));
        // Cannot fail: an http(s) URL has a host.
        let _ = (url.set_username(""), url.set_password(None));
    }
    let base = url.as_str().trim_end_matches('/').to_owned();
    if !base.ends_with("/api") {
        warnings.push(Warning::new(
            "DAYTONA_API_URL does not end with /api: the API will probably not be found there",
            "set the API's base, like http://api:3000/api",
        ));
    }
    base
}

fn metrics(reader: &mut Reader<'_>, main: Option<u16>, warnings: &mut Vec<Warning>) -> Option<SocketAddr> {
    let address = reader.address("SANDGATE_METRICS_LISTEN");
    let port = reader.number("METRICS_PORT").map(port).filter(|port| *port != 0)?;
    if Some(port) == main {
        reader.note(MistakeKind::Relation, "METRICS_PORT", "PROXY_PORT is the same", "set another port");
    }
    if !reader.is_set("SANDGATE_METRICS_LISTEN") {
        warnings.push(Warning::new(
            &format!(
                "metrics are served on {address} only, because METRICS_PORT is set and SANDGATE_METRICS_LISTEN is not"
            ),
            "set SANDGATE_METRICS_LISTEN to the address that is scraped",
        ));
    }
    Some(SocketAddr::new(address, port))
}

fn limits(reader: &mut Reader<'_>) -> Limits {
    let mistakes = reader.mistakes.len();
    let limits = Limits {
        head_bytes_max: reader.count("SANDGATE_HEAD_BYTES_MAX"),
        header_count_max: reader.count("SANDGATE_HEADER_COUNT_MAX"),
        uri_bytes_max: reader.count("SANDGATE_URI_BYTES_MAX"),
        head_deadline: reader.millis("SANDGATE_HEAD_TIMEOUT_MS"),
        client_idle: reader.millis("SANDGATE_CLIENT_IDLE_MS"),
        client_stall: reader.millis_or_never("SANDGATE_CLIENT_STALL_MS"),
        runner_first_byte: reader.millis_or_never("SANDGATE_FIRST_BYTE_TIMEOUT_MS"),
        runner_connect: reader.millis("SANDGATE_CONNECT_TIMEOUT_MS"),
        runner_idle: reader.millis("SANDGATE_RUNNER_IDLE_MS"),
        runner_idle_max: reader.count("SANDGATE_RUNNER_IDLE_MAX"),
        connections_max: reader.count("SANDGATE_CONNECTIONS_MAX"),
        linger: reader.millis("SANDGATE_LINGER_MS"),
        sandbox_cache_max: reader.count("SANDGATE_SANDBOX_CACHE_MAX"),
        verdict_cache_max: reader.count("SANDGATE_VERDICT_CACHE_MAX"),
        questions_max: reader.count("SANDGATE_QUESTIONS_MAX"),
        ..Limits::default()
    };
    // Next to a value out of range, a broken relation would be its echo.
    if reader.mistakes.len() == mistakes {
        reader.mistakes.extend(limits.broken_relations().into_iter().map(|relation| Mistake {
            kind: MistakeKind::Relation,
            variable: "SANDGATE_*_MAX, SANDGATE_*_MS".into(),
            value: None,
            problem: relation.into(),
            remedy: "change one of the two".into(),
        }));
    }
    limits
}

fn admission(reader: &mut Reader<'_>) -> AdmissionRules {
    let mut number =
        |name| NonZeroU32::new(u32::try_from(reader.count(name)).expect("ranges stay below 2^32"));
    let burst = number("SANDGATE_LOOKUP_BURST");
    let lookups = number("SANDGATE_LOOKUP_RATE").zip(burst);
    // What a page of many assets asks at once is not a flood.
    let two_seconds = |per_second: NonZeroU32| Rate { per_second, burst: per_second.saturating_mul(TWO) };
    AdmissionRules {
        lookups: lookups.map(|(per_second, burst)| Rate { per_second, burst }),
        client_requests: number("SANDGATE_CLIENT_RATE").map(two_seconds),
        sandbox_requests: number("SANDGATE_SANDBOX_RATE").map(two_seconds),
        client_connections_max: number("SANDGATE_CLIENT_CONNECTIONS_MAX").map(NonZeroU32::get),
        sandbox_requests_max: number("SANDGATE_SANDBOX_REQUESTS_MAX").map(NonZeroU32::get),
        keys_max: reader.count("SANDGATE_LIMIT_KEYS_MAX"),
    }
}

/// Going on in clear text where TLS was asked for would show every token to the network.
fn refuse_tls(reader: &mut Reader<'_>, warnings: &mut Vec<Warning>) {
    if reader.flag("ENABLE_TLS") {
        let remedy = "terminate TLS in front (PROXY_PROTOCOL=https says so to apps) and set ENABLE_TLS=false";
        let problem = "TLS is not supported by this version yet";
        reader.note(MistakeKind::Unsupported, "ENABLE_TLS", problem, remedy);
        return;
    }
    let files = ["TLS_CERT_FILE", "TLS_KEY_FILE"];
    warnings.extend(files.into_iter().filter(|name| reader.is_set(name)).map(no_effect));
}

fn oidc(reader: &mut Reader<'_>) -> Oidc {
    let mut issuer = |name| {
        let url = reader.base_url(name)?;
        if !url.username().is_empty() || url.password().is_some() {
            reader.invalid(name, "it has a user or password in it", "set a URL like https://host/path");
        }
        Some(url.into())
    };
    let domain = issuer("OIDC_DOMAIN");
    let public_domain = issuer("OIDC_PUBLIC_DOMAIN");
    Oidc {
        client_id: reader.text("OIDC_CLIENT_ID"),
        client_secret: reader.secret("OIDC_CLIENT_SECRET"),
        domain,
        public_domain,
        audience: reader.text("OIDC_AUDIENCE"),
    }
}

fn cookie_mode(
    reader: &mut Reader<'_>,
    protocol: Option<Scheme>,
    warnings: &mut Vec<Warning>,
) -> Option<CookieMode> {
    let mode = reader.word("SANDGATE_COOKIE_MODE", CookieMode::from_word);
    if mode == Some(CookieMode::Isolated) {
        if protocol == Some(Scheme::Http) {
            reader.note(
                MistakeKind::Relation,
                "SANDGATE_COOKIE_MODE",
                "browsers take cookies of one host alone over https only, and PROXY_PROTOCOL is http",
                "set PROXY_PROTOCOL=https with TLS in front, or SANDGATE_COOKIE_MODE=shared",
            );
        }
        if reader.is_set("COOKIE_DOMAIN") {
            warnings.push(Warning::new(
                "COOKIE_DOMAIN has no effect with SANDGATE_COOKIE_MODE=isolated",
                "leave it unset, or set SANDGATE_COOKIE_MODE=shared",
            ));
        }
    }
    mode
}

fn redis(reader: &mut Reader<'_>) -> Option<Redis> {
    let port = reader.number("REDIS_PORT").map_or(6379, port);
    let username = reader.text("REDIS_USERNAME");
    let password = reader.text("REDIS_PASSWORD").map(Secret::new);
    let tls = reader.flag("REDIS_TLS");
    let host = reader.text("REDIS_HOST")?;
    if host.contains(['/', '@', '?', '#']) || host.contains(char::is_whitespace) {
        reader.invalid(
            "REDIS_HOST",
            "not a host name",
            "set the name alone, REDIS_PORT and REDIS_TLS beside it",
        );
    }
    Some(Redis { host, port, username, password, tls })
}

fn cookie_keys(reader: &mut Reader<'_>) -> Vec<Secret> {
    let keys = reader.secret("SANDGATE_COOKIE_KEYS");
    let keys: Vec<_> = keys.iter().flat_map(|keys| keys.expose().split(',')).map(Secret::new).collect();
    if keys.len() > COOKIE_KEYS_MAX || keys.iter().any(|key| key.expose().is_empty()) {
        let remedy = "set up to 4 former API keys with commas between";
        reader.invalid("SANDGATE_COOKIE_KEYS", "too many keys, or an empty one", remedy);
    }
    keys
}

fn cookie_domain(reader: &mut Reader<'_>) -> Option<String> {
    let domain = reader.text("COOKIE_DOMAIN")?;
    let name = domain.strip_prefix('.').unwrap_or(&domain);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !name.split('.').all(is_label) {
        reader.invalid(
            "COOKIE_DOMAIN",
            "not a domain",
            "set a name like proxy.example.com, without port and path",
        );
        return None;
    }
    Some(domain)
}

fn allowed_domains(
    reader: &mut Reader<'_>,
    cookie_domain: Option<&str>,
    warnings: &mut Vec<Warning>,
) -> Option<Domains> {
    if !reader.is_set("SANDGATE_ALLOWED_DOMAINS") {
        warnings.push(Warning::new(
            "SANDGATE_ALLOWED_DOMAINS is not set: requests are served under any domain that points here",
            "set it to the domains of the previews",
        ));
        return None;
    }
    let domains = reader.domains("SANDGATE_ALLOWED_DOMAINS")?;
    let cookies_reach = |name: &str| {
        let name = name.trim_start_matches('.').to_ascii_lowercase();
        domains.iter().any(|domain| domain == name || domain.ends_with(&format!(".{name}")))
    };
    if !cookie_domain.is_none_or(cookies_reach) {
        reader.note(
            MistakeKind::Relation,
            "COOKIE_DOMAIN",
            "it holds none of SANDGATE_ALLOWED_DOMAINS: no browser would send its cookies here",
            "set one of these domains, or leave it unset",
        );
    }
    Some(domains)
}

fn no_effect(name: &str) -> Warning {
    Warning::new(&format!("{name} is accepted and has no effect in this version"), "leave it unset")
}

fn port(number: u64) -> u16 {
    u16::try_from(number).expect("the table's ranges of ports end at 65535")
}
