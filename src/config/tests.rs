//! What an operator may set and what becomes of it. Values are pairs; the process's environment is not touched.

use super::table::{self, Default as Fallback, Kind, VARIABLES};
use super::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

const GOOD: [(&str, &str); 5] = [
    ("PROXY_PORT", "4000"),
    ("PROXY_PROTOCOL", "http"),
    ("PROXY_API_KEY", "0123456789abcdef0123456789abcdef"),
    ("DAYTONA_API_URL", "http://api:3000/api"),
    // Not required; without it there is a warning.
    ("SANDGATE_ALLOWED_DOMAINS", "proxy.example.com"),
];

fn environment(changes: &[(&str, &str)]) -> Environment {
    GOOD.iter().chain(changes).copied().collect()
}

fn good(changes: &[(&str, &str)]) -> Config {
    Config::from_env(&environment(changes)).unwrap_or_else(|mistakes| panic!("{changes:?}: {mistakes:?}"))
}

fn mistakes(changes: &[(&str, &str)]) -> Vec<Mistake> {
    match Config::from_env(&environment(changes)) {
        Ok(_) => panic!("{changes:?} is taken"),
        Err(mistakes) => mistakes,
    }
}

#[track_caller]
fn refused(name: &str, value: &str, kind: MistakeKind) {
    let found = mistakes(&[(name, value)]);
    let [mistake] = found.as_slice() else { panic!("{name}={value:?}: {found:?}") };
    assert_eq!((mistake.variable.as_str(), mistake.kind), (name, kind), "{value:?}");
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let environment = GOOD[..4].iter().copied().collect();
    let config = Config::from_env(&environment).expect("nothing more is required");
    assert_eq!(config.listen.to_string(), "0.0.0.0:4000");
    assert_eq!(config.protocol, Scheme::Http);
    assert_eq!(config.api_key.expose(), GOOD[2].1);
    assert_eq!(config.api_url, "http://api:3000/api");
    assert_eq!(config.api_timeout, Duration::from_secs(60));
    assert_eq!(config.metrics, None);
    assert_eq!(config.shutdown, Duration::from_secs(3600));
    assert_eq!(
        (config.toolbox_only, config.pin, config.defer_accept, config.preview_warning),
        (false, true, true, false)
    );
    assert_eq!((config.shards, config.slow), (None, None));
    assert_eq!((config.driver, config.access_log), (DriverChoice::Auto, AccessLog::Errors));
    assert_eq!(config.trusted_proxies, []);
    assert_eq!((&config.trusted_origins[..], &config.cookie_keys[..]), (&[][..], &[][..]));
    assert!(config.confine_apps);
    let ttls = [config.ttl_public, config.ttl_runner, config.ttl_verdict, config.ttl_negative];
    assert_eq!(ttls.map(|ttl| ttl.as_secs()), [30, 120, 120, 5]);
    assert_eq!(config.ttl_signed.as_secs(), 5);
    assert_eq!((config.redis.clone(), config.cookie_domain.clone()), (None, None));
    assert_eq!(config.allowed_domains, None);
    let [warning] = config.warnings() else { panic!("{:?}", config.warnings()) };
    assert!(warning.what.starts_with("SANDGATE_ALLOWED_DOMAINS is not set"), "{warning}");
    assert_eq!(good(&[]).warnings(), []);
}

/// The table's defaults are what operators read, those of `Limits` what tests of the data plane use.
#[test]
fn the_documented_limits_are_those_of_the_code() {
    assert_eq!(format!("{:?}", good(&[]).limits), format!("{:?}", Limits::default()));
}

#[test]
fn every_variable_reaches_its_field() {
    let config = good(&[
        ("PROXY_PORT", "65535"),
        ("PROXY_PROTOCOL", "https"),
        ("METRICS_PORT", "9090"),
        ("SHUTDOWN_TIMEOUT_SEC", "0"),
        ("API_CLIENT_TIMEOUT_SEC", "7"),
        ("TOOLBOX_ONLY_MODE", "1"),
        ("PREVIEW_WARNING_ENABLED", "T"),
        ("COOKIE_DOMAIN", ".proxy.example.com"),
        ("OIDC_CLIENT_ID", "daytona"),
        ("OIDC_CLIENT_SECRET", "oidc-secret"),
        ("OIDC_DOMAIN", "http://dex:5556/dex"),
        ("OIDC_PUBLIC_DOMAIN", "http://localhost:5556/dex"),
        ("OIDC_AUDIENCE", "aud"),
        ("REDIS_HOST", "redis"),
        ("REDIS_PORT", "6380"),
        ("REDIS_USERNAME", "user"),
        ("REDIS_PASSWORD", "redis password"),
        ("REDIS_TLS", "True"),
        ("SANDGATE_LISTEN", "[::]"),
        ("SANDGATE_METRICS_LISTEN", "::1"),
        ("SANDGATE_SHARDS", "3"),
        ("SANDGATE_PIN", "f"),
        ("SANDGATE_DEFER_ACCEPT", "false"),
        ("SANDGATE_DRIVER", "io_uring"),
        ("SANDGATE_ACCESS_LOG", "all"),
        ("SANDGATE_SLOW_MS", "250"),
        ("SANDGATE_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7,fd00::/8"),
        ("SANDGATE_ALLOWED_DOMAINS", "Proxy.Example.com, localhost"),
        ("SANDGATE_TRUSTED_ORIGINS", "https://app.example.com, http://LOCALHOST:3000/"),
        ("SANDGATE_COOKIE_KEYS", "former-key,older"),
        ("SANDGATE_CONFINE_APPS", "false"),
        ("SANDGATE_PUBLIC_TTL_SEC", "1"),
        ("SANDGATE_RUNNER_TTL_SEC", "2"),
        ("SANDGATE_VERDICT_TTL_SEC", "3"),
        ("SANDGATE_NEGATIVE_TTL_SEC", "4"),
        ("SANDGATE_LOOKUP_RATE", "31"),
        ("SANDGATE_LOOKUP_BURST", "32"),
        ("SANDGATE_CLIENT_RATE", "33"),
        ("SANDGATE_SANDBOX_RATE", "34"),
        ("SANDGATE_CLIENT_CONNECTIONS_MAX", "35"),
        ("SANDGATE_SANDBOX_REQUESTS_MAX", "36"),
        ("SANDGATE_LIMIT_KEYS_MAX", "37"),
        ("SANDGATE_CORS", "simple"),
        ("SANDGATE_ACTIVITY_INTERVAL_SEC", "5"),
        ("SANDGATE_TUNNEL_ACTIVITY_BYTES", "6"),
        ("SANDGATE_ANONYMOUS_ACTIVITY", "false"),
        ("SANDGATE_SIGNED_TTL_SEC", "6"),
        ("SANDGATE_HEAD_BYTES_MAX", "2001"),
        ("SANDGATE_HEADER_COUNT_MAX", "102"),
        ("SANDGATE_URI_BYTES_MAX", "1003"),
        ("SANDGATE_HEAD_TIMEOUT_MS", "104"),
        ("SANDGATE_CLIENT_IDLE_MS", "105"),
        ("SANDGATE_CLIENT_STALL_MS", "106"),
        ("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "107"),
        ("SANDGATE_CONNECT_TIMEOUT_MS", "108"),
        ("SANDGATE_RUNNER_IDLE_MS", "109"),
        ("SANDGATE_RUNNER_IDLE_MAX", "110"),
        ("SANDGATE_CONNECTIONS_MAX", "111"),
        ("SANDGATE_SANDBOX_CACHE_MAX", "112"),
        ("SANDGATE_VERDICT_CACHE_MAX", "113"),
        ("SANDGATE_QUESTIONS_MAX", "114"),
        ("SANDGATE_LINGER_MS", "115"),
    ]);
    let ms = Duration::from_millis;
    assert_eq!(config.listen.to_string(), "[::]:65535");
    assert_eq!(config.protocol.as_str(), "https");
    assert_eq!(config.metrics.map(|at| at.to_string()).as_deref(), Some("[::1]:9090"));
    assert_eq!((config.shutdown, config.api_timeout), (Duration::ZERO, Duration::from_secs(7)));
    assert_eq!(
        (config.toolbox_only, config.preview_warning, config.pin, config.defer_accept),
        (true, true, false, false)
    );
    assert_eq!(config.cookie_domain.as_deref(), Some(".proxy.example.com"));
    let domains = config.allowed_domains.as_ref().expect("some are set");
    assert_eq!(domains.iter().collect::<Vec<_>>(), ["proxy.example.com", "localhost"]);
    let origins = ["https://app.example.com", "http://localhost:3000"];
    assert_eq!(
        config.trusted_origins,
        origins.map(|o| initiator::Origin::parse(o.as_bytes()).expect("an origin"))
    );
    assert_eq!(config.cookie_keys, [Secret::new("former-key"), Secret::new("older")]);
    assert!(!config.confine_apps);
    let oidc = Oidc {
        client_id: Some("daytona".into()),
        client_secret: Some(Secret::new("oidc-secret")),
        domain: Some("http://dex:5556/dex".into()),
        public_domain: Some("http://localhost:5556/dex".into()),
        audience: Some("aud".into()),
    };
    assert_eq!(config.oidc, oidc);
    let redis = Redis {
        host: "redis".into(),
        port: 6380,
        username: Some("user".into()),
        password: Some(Secret::new("redis password")),
        tls: true,
    };
    assert_eq!(config.redis, Some(redis));
    assert_eq!(config.shards.map(NonZeroUsize::get), Some(3));
    assert_eq!((config.driver, config.access_log), (DriverChoice::IoUring, AccessLog::All));
    assert_eq!(config.slow, Some(ms(250)));
    let trusted: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    let ttls = [config.ttl_public, config.ttl_runner, config.ttl_verdict, config.ttl_negative];
    assert_eq!(ttls.map(|ttl| ttl.as_secs()), [1, 2, 3, 4]);
    assert_eq!((config.activity_interval, config.tunnel_activity_bytes), (Duration::from_secs(5), 6));
    assert!(!config.anonymous_activity);
    assert_eq!(config.cors, crate::cors::Mode::Simple);
    let admission = config.admission;
    let rate = |rate: Option<Rate>| rate.map(|rate| (rate.per_second.get(), rate.burst.get()));
    assert_eq!(rate(admission.lookups), Some((31, 32)));
    assert_eq!(rate(admission.client_requests), Some((33, 66)));
    assert_eq!(rate(admission.sandbox_requests), Some((34, 68)));
    let most = (admission.client_connections_max, admission.sandbox_requests_max, admission.keys_max);
    assert_eq!(most, (Some(35), Some(36), 37));
    assert_eq!(config.ttl_signed.as_secs(), 6);
    let limits = config.limits;
    assert_eq!((limits.head_bytes_max, limits.header_count_max, limits.uri_bytes_max), (2001, 102, 1003));
    assert_eq!((limits.head_deadline, limits.client_idle), (ms(104), ms(105)));
    assert_eq!((limits.client_stall, limits.runner_first_byte), (Some(ms(106)), Some(ms(107))));
    assert_eq!((limits.runner_connect, limits.runner_idle), (ms(108), ms(109)));
    assert_eq!((limits.runner_idle_max, limits.connections_max), (110, 111));
    assert_eq!((limits.sandbox_cache_max, limits.verdict_cache_max), (112, 113));
    assert_eq!((limits.questions_max, limits.linger), (114, ms(115)));
}

#[test]
fn zero_means_never_where_the_reference_says_so() {
    let limits = good(&[("SANDGATE_CLIENT_STALL_MS", "0"), ("SANDGATE_FIRST_BYTE_TIMEOUT_MS", "0")]).limits;
    assert_eq!((limits.client_stall, limits.runner_first_byte), (None, None));
    assert_eq!(good(&[("METRICS_PORT", "0")]).metrics, None);
}

#[test]
fn every_number_is_taken_at_both_ends_of_its_range_and_refused_beyond() {
    for variable in VARIABLES {
        let Kind::Number { min, max, .. } = variable.kind else { continue };
        for value in [min, max] {
            let value = value.to_string();
            // The two are bound to each other; what is tested here is the range of each.
            let room = ("SANDGATE_HEAD_BYTES_MAX", "65535");
            let small = ("SANDGATE_URI_BYTES_MAX", "256");
            good(&[room, small, (variable.name, &value)]);
        }
        refused(variable.name, &(max + 1).to_string(), MistakeKind::Invalid);
        if min > 0 {
            refused(variable.name, &(min - 1).to_string(), MistakeKind::Invalid);
        }
        for value in ["+5000", "-1", " 5000", "5000 ", "5e3", "0x50", "5000ms", "99999999999999999999", "ten"]
        {
            refused(variable.name, value, MistakeKind::Invalid);
        }
    }
}

#[test]
fn every_flag_takes_what_go_takes_and_nothing_else() {
    for variable in VARIABLES.iter().filter(|variable| variable.kind == Kind::Flag) {
        for value in ["0", "f", "F", "false", "FALSE", "False"] {
            good(&[(variable.name, value)]);
        }
        for value in ["yes", "on", "tRUE", "2", " true"] {
            refused(variable.name, value, MistakeKind::Invalid);
        }
    }
    for value in ["1", "t", "T", "true", "TRUE", "True"] {
        assert!(good(&[("TOOLBOX_ONLY_MODE", value)]).toolbox_only, "{value}");
        assert!(!good(&[("SANDGATE_PIN", "0"), ("TOOLBOX_ONLY_MODE", value)]).pin);
    }
}

#[test]
fn every_listed_word_is_taken_and_others_are_refused() {
    for variable in VARIABLES {
        let Kind::OneOf(words) = variable.kind else { continue };
        // Which words go together is tested elsewhere.
        let room = ("PROXY_PROTOCOL", "https");
        words.iter().for_each(|word| drop(good(&[room, (variable.name, word)])));
        for value in ["none", &words[0].to_uppercase(), "auto,epoll"] {
            refused(variable.name, value, MistakeKind::Invalid);
        }
    }
}

#[test]
fn values_of_the_wrong_shape_are_refused() {
    for (name, values) in [
        (
            "DAYTONA_API_URL",
            &["api:3000/api", "ftp://api/api", "http://", "/api", "http://api/api?x=1", "http://api/api#x"][..],
        ),
        ("PROXY_API_KEY", &["two words and enough of them to be long", "line\nbreak", "schlüssel", "tab\t"]),
        ("SANDGATE_LISTEN", &["localhost", "0.0.0.0:4000", "[::]:80", "[0.0.0.0]", "[::", "0"]),
        ("SANDGATE_METRICS_LISTEN", &["example.com"]),
        ("SANDGATE_TRUSTED_PROXIES", &["10.0.0.0/33", "10.0.0.1,", "any", "10.0.0.1;10.0.0.2", ","]),
        (
            "SANDGATE_TRUSTED_ORIGINS",
            &[
                "app.example",
                "https://a.example/x",
                "https://u@a.example",
                "ws://a.example",
                "null",
                "*",
                "https://a,",
            ],
        ),
        (
            "SANDGATE_ALLOWED_DOMAINS",
            &[
                ",",
                "a.test,",
                "a..test",
                ".a.test",
                "a.test.",
                "*.a.test",
                "a.test:80",
                "https://a.test",
                "a.test/",
                "a b",
                "[::1]",
                &["a"; 33].join(","),
                &"a".repeat(254),
            ],
        ),
        ("SANDGATE_COOKIE_KEYS", &["a,,b", "a,b,c,d,e", "a, b"]),
        ("OIDC_DOMAIN", &["dex:5556", "http://user@dex/dex", "http://:pw@dex/dex"]),
        ("OIDC_PUBLIC_DOMAIN", &["localhost", "http://localhost/?a"]),
        ("OIDC_CLIENT_SECRET", &["line\nbreak"]),
        ("REDIS_HOST", &["redis://redis", "user:pw@redis", "a b"]),
        ("COOKIE_DOMAIN", &["..example.com", "example.com:80", "https://example.com", "a b", "."]),
    ] {
        values.iter().for_each(|value| refused(name, value, MistakeKind::Invalid));
    }
}

#[test]
fn the_api_url_is_kept_without_slash_user_and_password() {
    for (url, kept) in [
        ("http://api:3000/api/", "http://api:3000/api"),
        ("HTTPS://Api.Example.com:443/x/api", "https://api.example.com/x/api"),
        ("http://u:canary@api/api", "http://api/api"),
        ("http://api", "http://api"),
    ] {
        assert_eq!(good(&[("DAYTONA_API_URL", url)]).api_url, kept);
    }
}

#[test]
fn what_would_change_security_or_cannot_both_be_is_refused() {
    refused("ENABLE_TLS", "true", MistakeKind::Unsupported);
    refused("METRICS_PORT", "4000", MistakeKind::Relation);
    let [mistake] = &mistakes(&[("SANDGATE_HEAD_BYTES_MAX", "1024")])[..] else { panic!("one relation") };
    assert_eq!(mistake.kind, MistakeKind::Relation);
    assert!(mistake.problem.contains("URI"), "{mistake}");
}

#[test]
fn a_port_injected_by_kubernetes_is_refused_with_the_way_out() {
    let [mistake] = &mistakes(&[("PROXY_PORT", "tcp://10.0.0.1:4000")])[..] else { panic!("one mistake") };
    assert!(mistake.remedy.contains("enableServiceLinks"), "{mistake}");
}

#[test]
fn all_mistakes_are_told_together_each_with_variable_value_and_remedy() {
    let found = Config::from_env(&Environment::from_iter([
        ("PROXY_PORT", "http"),
        ("PROXY_PROTOCOL", ""),
        ("DAYTONA_API_URL", "ftp://api"),
        ("ENABLE_TLS", "1"),
        ("SANDGATE_SHARDS", "0"),
        ("SANDGATE_DRIVR", "epoll"),
        ("SANDGATE_HEAD_BYTES_MAX", "1"),
    ]))
    .expect_err("nothing is right here");
    let lines: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
    let starts = [
        "CFG_INVALID DAYTONA_API_URL=\"ftp://api\": the scheme is neither http nor https; set a URL",
        "CFG_INVALID PROXY_PORT=\"http\": not a whole number; set 1 to 65535 (Port clients connect to)",
        "CFG_INVALID SANDGATE_HEAD_BYTES_MAX=\"1\": out of range; set 1024 to 65535 bytes",
        "CFG_INVALID SANDGATE_SHARDS=\"0\": out of range; set 1 to 1024 threads",
        "CFG_REQUIRED PROXY_API_KEY: it must be set; ",
        "CFG_REQUIRED PROXY_PROTOCOL: it must be set; set http or https",
        "CFG_UNKNOWN SANDGATE_DRIVR: there is no such variable; did you mean SANDGATE_DRIVER?",
        "CFG_UNSUPPORTED ENABLE_TLS=\"1\": TLS is not supported by this version yet; terminate TLS in front",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}\nshould start with\n{start}");
        assert!(!line.contains('\n'));
    }
}

#[test]
fn what_is_accepted_without_effect_is_warned_about_by_name() {
    for name in VARIABLES.iter().filter(|v| v.meaning.contains("no effect")).map(|v| v.name) {
        let value = match table::find(name).map(|v| v.kind) {
            Some(Kind::Flag) => "true",
            Some(Kind::Url) => "https://example.com/",
            Some(Kind::Number { .. }) => "6379",
            _ => "something",
        };
        let config = good(&[("REDIS_HOST", "redis"), (name, value)]);
        let warned =
            |warning: &Warning| warning.what.starts_with(&format!("{name} is accepted and has no effect"));
        assert!(config.warnings().iter().any(warned), "{name}: {:?}", config.warnings());
    }
    // Without a host they never meant anything.
    let config =
        good(&[("REDIS_PORT", "6379"), ("REDIS_TLS", "false"), ("PREVIEW_WARNING_ENABLED", "false")]);
    assert_eq!(config.warnings(), []);
}

#[test]
fn sessions_of_one_host_alone_need_https() {
    let isolated = ("SANDGATE_COOKIE_MODE", "isolated");
    refused(isolated.0, isolated.1, MistakeKind::Relation);
    let config = good(&[("PROXY_PROTOCOL", "https"), isolated]);
    assert_eq!((config.cookie_mode, config.warnings()), (CookieMode::Isolated, &[][..]));
    let config = good(&[("PROXY_PROTOCOL", "https"), isolated, ("COOKIE_DOMAIN", "example.com")]);
    let [warning] = config.warnings() else { panic!("{:?}", config.warnings()) };
    assert_eq!(warning.what, "COOKIE_DOMAIN has no effect with SANDGATE_COOKIE_MODE=isolated");
    assert_eq!(good(&[]).cookie_mode, CookieMode::Shared);
}

const COOKIE_KEYS_WITH_A_WEAK_ONE: &str = "0123456789abcdef0123456789abcdef,canary";

#[test]
fn keys_that_can_be_guessed_are_refused_where_the_operator_wants_it() {
    let refuse = ("SANDGATE_WEAK_KEYS", "refuse");
    let (short, known) = ("0123456789abcdef0123456789abcde", "secret_api_token");
    good(&[refuse, ("SANDGATE_COOKIE_KEYS", GOOD[2].1)]);
    for (changes, names) in [
        (&[("PROXY_API_KEY", short)][..], &["PROXY_API_KEY"][..]),
        (&[("PROXY_API_KEY", known)], &["PROXY_API_KEY"]),
        (&[("SANDGATE_COOKIE_KEYS", COOKIE_KEYS_WITH_A_WEAK_ONE)], &["SANDGATE_COOKIE_KEYS"]),
        (
            &[("PROXY_API_KEY", known), ("SANDGATE_COOKIE_KEYS", short), ("PROXY_PORT", "0")],
            &["PROXY_PORT", "PROXY_API_KEY", "SANDGATE_COOKIE_KEYS"],
        ),
    ] {
        let found = mistakes(&[&[refuse], changes].concat());
        assert_eq!(found.iter().map(|mistake| mistake.variable.as_str()).collect::<Vec<_>>(), names);
        for mistake in found.iter().filter(|mistake| mistake.variable != "PROXY_PORT") {
            let line = mistake.to_string();
            assert!(
                line.contains("SANDGATE_WEAK_KEYS=refuse") && mistake.kind == MistakeKind::Invalid,
                "{line}"
            );
            assert!(![short, known, "canary"].iter().any(|key| line.contains(key)), "{line}");
        }
    }
}

#[test]
fn cookies_that_would_reach_no_allowed_domain_are_a_mistake() {
    for (domain, taken) in [
        (".proxy.example.com", true),
        ("Example.com", true),
        ("localhost", true),
        ("proxy.example.org", false),
        ("xample.com", false),
        ("a.proxy.example.com", false),
    ] {
        let settings =
            [("SANDGATE_ALLOWED_DOMAINS", "proxy.example.com,localhost"), ("COOKIE_DOMAIN", domain)];
        let found = Config::from_env(&environment(&settings));
        let [mistake] = &found.err().unwrap_or_default()[..] else {
            assert!(taken, "{domain}");
            continue;
        };
        assert!(!taken, "{domain}: {mistake}");
        assert_eq!((mistake.variable.as_str(), mistake.kind), ("COOKIE_DOMAIN", MistakeKind::Relation));
    }
}

#[test]
fn what_is_risky_is_warned_about() {
    for (name, value, warning) in [
        ("PROXY_API_KEY", "super_secret_key", "PROXY_API_KEY: it is from public examples"),
        ("PROXY_API_KEY", "0123456789abcdef0123456789abcde", "PROXY_API_KEY: it is shorter than 32"),
        (
            "SANDGATE_COOKIE_KEYS",
            COOKIE_KEYS_WITH_A_WEAK_ONE,
            "SANDGATE_COOKIE_KEYS: one of its keys is shorter",
        ),
        ("DAYTONA_API_URL", "http://api:3000", "DAYTONA_API_URL does not end with /api"),
        ("DAYTONA_API_URL", "http://u:canary@api/api", "user and password in DAYTONA_API_URL"),
        ("METRICS_PORT", "9090", "metrics are served on 127.0.0.1 only"),
        ("SANDGATE_TRUSTED_PROXIES", "10.0.0.0/8,::/0", "SANDGATE_TRUSTED_PROXIES trusts every address"),
    ] {
        let config = good(&[(name, value)]);
        let [found] = config.warnings() else { panic!("{name}={value}: {:?}", config.warnings()) };
        assert!(found.what.starts_with(warning) && !found.remedy.is_empty(), "{found}");
        assert!(!found.to_string().contains("canary"));
    }
    let config = good(&[("SANDGATE_SLOW_MS", "5"), ("SANDGATE_ACCESS_LOG", "off")]);
    let [warning] = config.warnings() else { panic!("{:?}", config.warnings()) };
    assert_eq!(warning.what, "SANDGATE_SLOW_MS has no effect with SANDGATE_ACCESS_LOG=off");
    let config = good(&[("METRICS_PORT", "9090"), ("SANDGATE_METRICS_LISTEN", "0.0.0.0")]);
    assert_eq!(config.warnings(), []);
}

/// The canary stands wherever a secret may, in good and in bad values: it shows up nowhere.
#[test]
fn no_secret_is_shown_by_mistakes_warnings_debug_or_the_list_of_settings() {
    let secrets = VARIABLES.iter().filter(|v| v.kind == Kind::Secret).map(|v| v.name);
    let urls = VARIABLES.iter().filter(|v| v.kind == Kind::Url).map(|v| v.name);
    let texts = VARIABLES.iter().filter(|v| v.kind == Kind::Text).map(|v| v.name);
    let mut planted: Vec<(&str, &str)> = Vec::new();
    for name in secrets {
        planted.extend([
            (name, "canary"),
            (name, "canary\ncanary"),
            (name, "canary-0123456789-0123456789-012345"),
        ]);
    }
    for name in urls.chain(texts) {
        planted.extend([
            (name, "http://user:canary@host/api"),
            (name, "http://user:can@ary:canary@host/api?canary"),
            (name, "http://host/api?key=canary"),
            (name, "http:/user:canary@host"),
            (name, "ftp://canary@host"),
        ]);
    }
    planted.push(("SANDGATE_API_KEY", "canary"));
    for change in planted {
        let environment = environment(&[change]);
        let told = match Config::from_env(&environment) {
            // A free text means what it says; that there is a URL in it is nothing `Debug` has to guess.
            Ok(config) if table::find(change.0).is_some_and(|v| v.kind == Kind::Text) => {
                format!("{:?}", config.warnings())
            }
            Ok(config) => format!("{config:?} {:?}", config.warnings()),
            Err(mistakes) => mistakes.iter().map(|mistake| format!("{mistake} {mistake:?}\n")).collect(),
        };
        for text in [told, environment.effective()] {
            assert!(!text.contains("canary"), "{change:?} is shown in {text}");
        }
    }
}

#[test]
fn the_list_of_settings_shows_every_variable_with_its_value_and_origin() {
    let text = environment(&[("REDIS_PORT", ""), ("SANDGATE_LISTEN", "::1")]).effective();
    assert_eq!(text.lines().count(), VARIABLES.len());
    for variable in VARIABLES {
        let name = variable.name;
        let line = match (GOOD.iter().find(|good| good.0 == name), variable.default) {
            _ if name == "PROXY_API_KEY" => "PROXY_API_KEY=[redacted]  # environment".to_owned(),
            _ if name == "SANDGATE_LISTEN" => "SANDGATE_LISTEN=::1  # environment".to_owned(),
            (Some((_, value)), _) => format!("{name}={value}  # environment"),
            (None, Fallback::Value(value)) => format!("{name}={value}  # default"),
            (None, Fallback::Unset(words)) => format!("{name}=  # default: {words}"),
            (None, Fallback::Required) => unreachable!("{name} is missing in GOOD"),
        };
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// A directory of its own that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn with(files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("sandgate-config-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("a fresh name in the temporary directory");
        for (name, text) in files {
            std::fs::write(path.join(name), text).expect("writable: it was just made");
        }
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("nobody else removes it");
    }
}

#[test]
fn env_files_override_the_process_and_each_other_in_their_order() {
    let directory = Directory::with(&[
        (".env", "SANDGATE_SHARDS=2\nSANDGATE_LISTEN=127.0.0.2\nMETRICS_PORT=2"),
        (".env.local", "SANDGATE_SHARDS=3\nSANDGATE_LISTEN=127.0.0.3"),
        (".env.production", "SANDGATE_SHARDS=4\nOTHER=x"),
    ]);
    let environment = environment(&[("SANDGATE_SHARDS", "1"), ("METRICS_PORT", "1"), ("SANDGATE_PIN", "0")]);
    let environment = environment.with_files(&directory.0);
    assert_eq!(environment.value("SANDGATE_SHARDS"), Some(("4", Origin::File(".env.production"))));
    assert_eq!(environment.value("SANDGATE_LISTEN"), Some(("127.0.0.3", Origin::File(".env.local"))));
    assert_eq!(environment.value("METRICS_PORT"), Some(("2", Origin::File(".env"))));
    assert_eq!(environment.value("SANDGATE_PIN"), Some(("0", Origin::Process)));
    assert_eq!(environment.value("OTHER"), None);
    assert_eq!(
        Config::from_env(&environment).map(|config| config.shards.map(NonZeroUsize::get)),
        Ok(Some(4))
    );
    assert!(environment.effective().contains("SANDGATE_SHARDS=4  # .env.production\n"));
}

#[test]
fn reading_stops_at_the_first_missing_file_and_says_so() {
    for (files, shards, unread) in [
        (&[".env.local", ".env.production"][..], None, &[".env.local", ".env.production"][..]),
        (&[".env", ".env.production"], Some(".env"), &[".env.production"]),
        (&[".env", ".env.local"], Some(".env.local"), &[]),
        (&[], None, &[]),
    ] {
        let text = |file: &&'static str| (*file, "SANDGATE_SHARDS=2\n");
        let directory = Directory::with(&files.iter().map(text).collect::<Vec<_>>());
        let environment = environment(&[]).with_files(&directory.0);
        let origin = environment.value("SANDGATE_SHARDS").map(|(_, origin)| origin.to_string());
        assert_eq!(origin.as_deref(), shards, "{files:?}");
        let config = Config::from_env(&environment).expect("the files are good");
        assert_eq!(config.warnings().len(), unread.len(), "{files:?}");
        for (warning, file) in config.warnings().iter().zip(unread) {
            assert!(warning.what.starts_with(&format!("{file} is not read")), "{warning}");
        }
    }
}

#[test]
fn mistakes_in_a_file_name_file_and_line_and_an_unreadable_file_is_one() {
    let directory = Directory::with(&[(".env", "SANDGATE_SHARDS=2\n\ncanary\nSANDGATE_PORTS=canary\n")]);
    std::fs::create_dir(directory.0.join(".env.local")).expect("writable: it was just made");
    let environment = environment(&[]).with_files(&directory.0);
    let found = Config::from_env(&environment).expect_err("three mistakes");
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].starts_with("CFG_FILE .env:3: there is no = in this line"), "{}", lines[0]);
    assert!(lines[1].starts_with("CFG_FILE .env.local: it cannot be read"), "{}", lines[1]);
    assert!(lines[2].starts_with("CFG_UNKNOWN SANDGATE_PORTS: "), "{}", lines[2]);
    assert!(!lines.concat().contains("canary"));
}
