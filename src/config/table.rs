//! The one table of everything that can be set. The reader, `--help`, `--print-config`, the check for unknown names and
//! the did-you-mean all come from here, so a range cannot be documented and not enforced.

use std::fmt::Write;

/// One environment variable.
#[derive(Debug)]
pub struct Variable {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// What it does, what it costs, in one line.
    pub meaning: &'static str,
}

/// What a value may look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    /// Never shown.
    Secret,
    /// Shown without user, password and query.
    Url,
    /// What Go's `strconv.ParseBool` takes.
    Flag,
    OneOf(&'static [&'static str]),
    /// Decimal digits, both ends included.
    Number {
        min: u64,
        max: u64,
        unit: &'static str,
    },
    /// An IPv4 or IPv6 address without a port, IPv6 with or without brackets.
    Address,
    /// Addresses and networks, separated by commas.
    Networks,
    /// Web origins (RFC 6454), separated by commas.
    Origins,
    /// Names, separated by commas.
    Domains,
}

/// What holds when a variable is unset or empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Default {
    /// The gate does not start.
    Required,
    /// Nothing; in words.
    Unset(&'static str),
    Value(&'static str),
}

pub fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// Every variable with its values, default and meaning, as `--help` prints it.
pub fn reference() -> String {
    let mut text = String::from(
        "Configuration comes from the environment. .env, .env.local and .env.production in the working directory \
         override it in this order; reading stops at the first that is missing. An empty value counts as unset.\n",
    );
    for variable in VARIABLES {
        let default = match variable.default {
            Default::Required => "required".to_owned(),
            Default::Unset(words) => format!("default: {words}"),
            Default::Value(value) => format!("default {value}"),
        };
        let name = variable.name;
        // Writing to a String cannot fail.
        let _ =
            write!(text, "\n  {name}  [{}; {default}]\n      {}", variable.kind.describe(), variable.meaning);
    }
    text
}

impl Kind {
    /// The values it takes, in words.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Secret => "secret".to_owned(),
            Self::Url => "URL".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::OneOf(words) => words.join(" or "),
            Self::Number { min, max, unit: "" } => format!("{min} to {max}"),
            Self::Number { min, max, unit } => format!("{min} to {max} {unit}"),
            Self::Address => "IP address".to_owned(),
            Self::Networks => "IP addresses and networks (CIDR) with commas between".to_owned(),
            Self::Origins => "origins with commas between".to_owned(),
            Self::Domains => "domains with commas between".to_owned(),
        }
    }
}

const fn row(name: &'static str, kind: Kind, default: Default, meaning: &'static str) -> Variable {
    Variable { name, kind, default, meaning }
}

const fn number(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Number { min, max, unit }
}

const DAY_MS: u64 = 24 * 3600 * 1000;

use self::Default::{Required, Unset, Value};
use self::Kind::{Address, Domains, Flag, Networks, OneOf, Origins, Secret, Text, Url};

pub const VARIABLES: &[Variable] = &[
    // v0.190, names and meanings unchanged.
    row("PROXY_PORT", number(1, 65_535, ""), Required, "Port clients connect to."),
    row(
        "PROXY_PROTOCOL",
        OneOf(&["http", "https"]),
        Required,
        "Scheme as clients see it: what X-Forwarded-Proto says.",
    ),
    row("PROXY_API_KEY", Secret, Required, "The gate's own key at the API; 32 characters or more."),
    row("DAYTONA_API_URL", Url, Required, "Base of the API, with /api at its end."),
    row("METRICS_PORT", number(0, 65_535, ""), Value("0"), "Port of the Prometheus page; 0: off."),
    row(
        "SHUTDOWN_TIMEOUT_SEC",
        number(0, 604_800, "s"),
        Value("3600"),
        "How long open requests and tunnels may go on after SIGTERM before they are cut.",
    ),
    row(
        "API_CLIENT_TIMEOUT_SEC",
        number(1, 3600, "s"),
        Value("60"),
        "How long one request to the API may take; the client waits as long.",
    ),
    row(
        "TOOLBOX_ONLY_MODE",
        Flag,
        Value("false"),
        "Preview hosts exist for port 2280 only, all others are 404.",
    ),
    row(
        "COOKIE_DOMAIN",
        Text,
        Unset("the preview host without its first label"),
        "Domain of the cookie a login leaves, in cookie mode shared.",
    ),
    row(
        "PREVIEW_WARNING_ENABLED",
        Flag,
        Value("false"),
        "People who open a preview are asked once a day and host whether they trust it.",
    ),
    row("ENABLE_TLS", Flag, Value("false"), "true is refused in this version: terminate TLS in front."),
    row("TLS_CERT_FILE", Text, Unset("none"), "Accepted, has no effect in this version."),
    row("TLS_KEY_FILE", Text, Unset("none"), "Accepted, has no effect in this version."),
    row("OIDC_CLIENT_ID", Text, Unset("the API's"), "This gate's client id at the login provider."),
    row("OIDC_CLIENT_SECRET", Secret, Unset("none"), "Its secret; none for a public client (PKCE)."),
    row("OIDC_DOMAIN", Url, Unset("the API's"), "The login provider as this process reaches it."),
    row("OIDC_PUBLIC_DOMAIN", Url, Unset("OIDC_DOMAIN"), "The login provider as browsers reach it."),
    row("OIDC_AUDIENCE", Text, Unset("the API's"), "Whom access tokens are asked for: the API."),
    row(
        "REDIS_HOST",
        Text,
        Unset("caches in memory only"),
        "The Redis of the API, 6 or newer: caches shared with other proxies, changes heard of as they happen.",
    ),
    row("REDIS_PORT", number(1, 65_535, ""), Unset("6379"), "Its port."),
    row("REDIS_USERNAME", Text, Unset("none"), "ACL user."),
    row("REDIS_PASSWORD", Secret, Unset("none"), "Password of the user, or of the server."),
    row(
        "REDIS_TLS",
        Flag,
        Value("false"),
        "TLS, with the system's trusted certificates or those in SSL_CERT_FILE.",
    ),
    // Our own.
    row("SANDGATE_LISTEN", Address, Value("0.0.0.0"), "Address to listen on; [::] takes IPv4 and IPv6."),
    row(
        "SANDGATE_SHARDS",
        number(1, 1024, "threads"),
        Unset("one per CPU this process may use"),
        "Threads of the data plane, each with its own ring, pools and caches.",
    ),
    row(
        "SANDGATE_COOKIE_MODE",
        OneOf(&["shared", "isolated"]),
        Value("shared"),
        "Who sees a login's cookie: shared: all hosts of the domain, as v0.190; isolated: the host logged in to (https only).",
    ),
    row("SANDGATE_PIN", Flag, Value("true"), "Tie each shard to one CPU; false where CPUs are shared."),
    row(
        "SANDGATE_DEFER_ACCEPT",
        Flag,
        Value("true"),
        "The kernel keeps a new connection until its first byte is there, a silent one for a second. Needs net.ipv4.tcp_syncookies.",
    ),
    row(
        "SANDGATE_DRIVER",
        OneOf(&["auto", "io_uring", "epoll"]),
        Value("auto"),
        "auto takes io_uring if the kernel allows it, else epoll; io_uring refuses to start without it.",
    ),
    row(
        "SANDGATE_TRUSTED_PROXIES",
        Networks,
        Unset("none"),
        "Peers whose X-Forwarded-For, -Host and -Proto are believed. Anyone in there can claim any address.",
    ),
    row(
        "SANDGATE_ALLOWED_DOMAINS",
        Domains,
        Unset("any, with a warning"),
        "Served are these hosts and {label}.<domain>, X-Forwarded-Host of trusted peers included; others are answered 421.",
    ),
    row(
        "SANDGATE_TRUSTED_ORIGINS",
        Origins,
        Unset("none"),
        "Other sites, like https://app.example.com, whose pages may act with a visitor's session cookie.",
    ),
    row(
        "SANDGATE_COOKIE_KEYS",
        Secret,
        Unset("none"),
        "Former values of PROXY_API_KEY, up to 4 with commas between: session cookies signed with them stay good.",
    ),
    row(
        "SANDGATE_WEAK_KEYS",
        OneOf(&["warn", "refuse"]),
        Value("warn"),
        "Keys (PROXY_API_KEY, SANDGATE_COOKIE_KEYS) of fewer than 32 characters or from public examples: refuse does not start.",
    ),
    row(
        "SANDGATE_CONFINE_APPS",
        Flag,
        Value("true"),
        "Take out of apps' answers what reaches other sandboxes: wide cookie domains, Alt-Svc, documents in the toolboxes' origin.",
    ),
    row(
        "SANDGATE_ACCESS_LOG",
        OneOf(&["off", "errors", "all"]),
        Value("errors"),
        "Which requests get a line; all costs about a microsecond each.",
    ),
    row(
        "SANDGATE_SLOW_MS",
        number(0, DAY_MS, "ms"),
        Value("0"),
        "With errors: requests slower than this get a line too; 0: none.",
    ),
    row(
        "SANDGATE_METRICS_LISTEN",
        Address,
        Value("127.0.0.1"),
        "Address of METRICS_PORT. The page asks for no key.",
    ),
    row(
        "SANDGATE_PUBLIC_TTL_SEC",
        number(1, 120, "s"),
        Value("30"),
        "How long a sandbox made private may still be open to all.",
    ),
    row(
        "SANDGATE_RUNNER_TTL_SEC",
        number(1, 3600, "s"),
        Value("120"),
        "How long a sandbox's runner is remembered.",
    ),
    row(
        "SANDGATE_VERDICT_TTL_SEC",
        number(1, 600, "s"),
        Value("120"),
        "How long a revoked key or token may still open a sandbox it has just opened.",
    ),
    row(
        "SANDGATE_SIGNED_TTL_SEC",
        number(1, 60, "s"),
        Value("5"),
        "How long a signed link that has expired or was revoked may still open what it has just opened.",
    ),
    row(
        "SANDGATE_NEGATIVE_TTL_SEC",
        number(1, 60, "s"),
        Value("5"),
        "How long a refusal is remembered, so that repeating it does not reach the API.",
    ),
    row(
        "SANDGATE_PUSHED_PUBLIC_TTL_SEC",
        number(1, 3600, "s"),
        Value("120"),
        "SANDGATE_PUBLIC_TTL_SEC where Redis tells of changes within milliseconds.",
    ),
    row(
        "SANDGATE_PUSHED_RUNNER_TTL_SEC",
        number(1, 86_400, "s"),
        Value("3600"),
        "SANDGATE_RUNNER_TTL_SEC where Redis tells of changes within milliseconds.",
    ),
    row(
        "SANDGATE_LOOKUP_RATE",
        number(0, 1_000_000, "per second and client"),
        Value("50"),
        "Look-ups at the API that let nobody in; beyond it the client (IPv6: its /64) is answered 429; 0: no limit.",
    ),
    row(
        "SANDGATE_LOOKUP_BURST",
        number(1, 1_000_000, "per client"),
        Value("2000"),
        "Look-ups at once before that rate holds; bounds how many a client may have under way.",
    ),
    row(
        "SANDGATE_CLIENT_RATE",
        number(0, 1_000_000, "per second and client"),
        Value("0"),
        "Requests of one client; bursts of twice as many pass. 0: no limit.",
    ),
    row(
        "SANDGATE_SANDBOX_RATE",
        number(0, 1_000_000, "per second and sandbox"),
        Value("0"),
        "Requests to one sandbox; bursts of twice as many pass. 0: no limit.",
    ),
    row(
        "SANDGATE_CLIENT_CONNECTIONS_MAX",
        number(0, 10_000_000, "per client"),
        Value("0"),
        "Open connections of one client; those of trusted proxies do not count. 0: no limit.",
    ),
    row(
        "SANDGATE_SANDBOX_REQUESTS_MAX",
        number(0, 10_000_000, "per sandbox"),
        Value("0"),
        "Requests and tunnels under way to one sandbox. 0: no limit.",
    ),
    row(
        "SANDGATE_LIMIT_KEYS_MAX",
        number(1, 10_000_000, "per limit"),
        Value("100000"),
        "Clients, and sandboxes, whose use is remembered. Costs about 150 bytes each.",
    ),
    row(
        "SANDGATE_CORS",
        OneOf(&["auto", "simple", "passthru"]),
        Value("auto"),
        "auto: the app's own CORS fields count, else any origin may read; simple: as v0.190; passthru: the app's affair.",
    ),
    row(
        "SANDGATE_ACTIVITY_INTERVAL_SEC",
        number(1, 3600, "s"),
        Value("45"),
        "Least time between two reports that a sandbox is in use, which start its auto-stop timer anew.",
    ),
    row(
        "SANDGATE_TUNNEL_ACTIVITY_BYTES",
        number(0, 1 << 30, "bytes"),
        Value("1"),
        "What a tunnel must move within a tenth of that interval to count as use; 0: being open is enough.",
    ),
    row(
        "SANDGATE_ANONYMOUS_ACTIVITY",
        Flag,
        Value("true"),
        "Visitors of public sandboxes keep them running; false: only who showed a proof does.",
    ),
    row(
        "SANDGATE_HEAD_BYTES_MAX",
        number(1024, 65_535, "bytes"),
        Value("32768"),
        "Longest request or response head. Costs a buffer of this size per request being read.",
    ),
    row(
        "SANDGATE_HEADER_COUNT_MAX",
        number(8, 256, "fields"),
        Value("128"),
        "Most fields of one head. Costs 10 bytes each while the head lives.",
    ),
    row(
        "SANDGATE_URI_BYTES_MAX",
        number(256, 65_534, "bytes"),
        Value("16384"),
        "Longest request target; below SANDGATE_HEAD_BYTES_MAX.",
    ),
    row(
        "SANDGATE_HEAD_TIMEOUT_MS",
        number(10, 600_000, "ms"),
        Value("15000"),
        "From a request's first byte to the end of its head; 408 after it.",
    ),
    row(
        "SANDGATE_CLIENT_IDLE_MS",
        number(10, DAY_MS, "ms"),
        Value("620000"),
        "How long a kept-alive client connection may be silent; longer than the load balancer's in front.",
    ),
    row(
        "SANDGATE_CLIENT_STALL_MS",
        number(0, DAY_MS, "ms"),
        Value("300000"),
        "How long a body may stand still while the client is the one to move; 0: for ever.",
    ),
    row(
        "SANDGATE_FIRST_BYTE_TIMEOUT_MS",
        number(0, DAY_MS, "ms"),
        Value("0"),
        "From a request's last byte to the app's response head, and how long it may take nothing of a body; 0: for ever, commands run for hours.",
    ),
    row(
        "SANDGATE_CONNECT_TIMEOUT_MS",
        number(10, 600_000, "ms"),
        Value("5000"),
        "How long a runner may take to accept a connection.",
    ),
    row(
        "SANDGATE_RUNNER_IDLE_MS",
        number(10, 69_999, "ms"),
        Value("45000"),
        "How long an idle runner connection is kept; below the 70 s after which runners close it.",
    ),
    row(
        "SANDGATE_RUNNER_IDLE_MAX",
        number(0, 1_000_000, "connections per shard"),
        Value("4096"),
        "Idle runner connections kept. Costs a socket and about 300 bytes each.",
    ),
    row(
        "SANDGATE_CONNECTIONS_MAX",
        number(1, 10_000_000, "connections per shard"),
        Value("200000"),
        "Open client connections; beyond it, or short of descriptors, new ones are answered 503 and closed.",
    ),
    row(
        "SANDGATE_SANDBOX_CACHE_MAX",
        number(1, 10_000_000, "sandboxes per shard"),
        Value("100000"),
        "Remembered sandboxes. Costs about 280 bytes each, as they come.",
    ),
    row(
        "SANDGATE_VERDICT_CACHE_MAX",
        number(1, 10_000_000, "verdicts per shard"),
        Value("100000"),
        "Remembered verdicts on keys and tokens. Costs about 140 bytes each, as they come.",
    ),
    row(
        "SANDGATE_QUESTIONS_MAX",
        number(1, 1_000_000, "questions per shard"),
        Value("4096"),
        "Requests that may wait for the API at once; beyond it they are answered 503.",
    ),
    row(
        "SANDGATE_LINGER_MS",
        number(0, 60_000, "ms"),
        Value("2000"),
        "How long an unread body is drained after an early answer, so that a reset does not eat the answer.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_there_once_and_in_the_reference_with_its_values() {
        let names: BTreeSet<_> = VARIABLES.iter().map(|v| v.name).collect();
        assert_eq!(names.len(), VARIABLES.len());
        let reference = reference();
        for variable in VARIABLES {
            let line = format!("  {}  [{};", variable.name, variable.kind.describe());
            assert!(reference.contains(&line), "{line}");
            assert!(reference.contains(variable.meaning));
        }
    }
}
