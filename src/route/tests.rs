//! Tests of routing.

use super::*;
use crate::forward::{RequestPlan, RunnerPath, write_request};
use crate::head::Reject;
use crate::limits::Limits;
use proptest::prelude::*;

fn head(bytes: &[u8]) -> Result<RequestHead<'_>, Reject> {
    RequestHead::parse(bytes, &Limits::default()).map(|head| head.expect("a whole head"))
}

#[derive(PartialEq, Eq, Debug)]
enum To {
    Preview(u16, &'static str),
    Nowhere(NoRoute),
    /// The head itself is refused.
    Refused(Reject),
}

/// Where `GET /x` on this host leads.
fn of_host(host: &str) -> Result<Route, To> {
    let text = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let head = head(text.as_bytes()).map_err(To::Refused)?;
    route(&head, RouteRules::default()).map_err(To::Nowhere)
}

fn of_path(method: &str, path: &str) -> Result<Route, NoRoute> {
    let text = format!("{method} {path} HTTP/1.1\r\nHost: base.test\r\n\r\n");
    route(&head(text.as_bytes()).expect("a good head"), RouteRules::default())
}

#[test]
fn of_a_domain_that_is_not_served_only_the_health_of_the_gate_is_told() {
    let domains = Domains::parse("p.test,base.test").expect("two domains");
    let of = |domains, host: &str, path: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        route_within(domains, &head(text.as_bytes()).expect("a good head"), RouteRules::default(), false)
    };
    for (host, path) in [
        ("3000-sb1.p.test", "/"),
        ("base.test:443", "/toolbox/sb1/x"),
        ("base.test", "/callback"),
        ("base.test", "/sandboxes/sb1/build-logs"),
        ("base.test", "/nothing"),
        ("x-sb1.p.test", "/"),
        ("0-sb1.p.test", "/"),
    ] {
        let routed = of(None, host, path);
        assert_eq!(of(Some(&domains), host, path), routed, "{host}{path}");
        // The same of another domain leads nowhere, whatever it would have led to.
        let foreign = host.replace(".test", ".evil");
        assert_eq!(of(None, &foreign, path), routed, "{foreign}{path}");
        assert_eq!(of(Some(&domains), &foreign, path), Err(NoRoute::ForeignHost), "{foreign}{path}");
    }
    for host in ["10.0.0.7:4000", "[fd00::7]", "base.evil", "base.test"] {
        assert_eq!(of(Some(&domains), host, "/health"), Ok(Route::Health), "{host}");
    }
    // There it is the app's.
    assert_eq!(of(Some(&domains), "3000-sb1.p.evil", "/health"), Err(NoRoute::ForeignHost));
}

#[test]
fn no_alias_of_a_port_or_a_label_is_a_port_or_a_label() {
    use NoRoute::{BadHost, NotFound};
    let long = format!("3000-{}.p.test", "a".repeat(57));
    let too_long = format!("3000-{}.p.test", "a".repeat(58));
    let rows = [
        ("3000-sb1.p.test", To::Preview(3000, "sb1")),
        ("1-sb1.p.test", To::Preview(1, "sb1")),
        ("65535-sb1.p.test", To::Preview(65535, "sb1")),
        ("2280-sb1.p.test", To::Preview(2280, "sb1")),
        // Hosts have no case, an optional port and an optional last dot; the domain is anybody's.
        ("3000-SB1.P.TEST", To::Preview(3000, "sb1")),
        ("3000-Sb1.p.test.", To::Preview(3000, "sb1")),
        ("3000-sb1.p.test:8443", To::Preview(3000, "sb1")),
        ("3000-sb1.", To::Preview(3000, "sb1")),
        ("3000-sb1", To::Preview(3000, "sb1")),
        ("3000-sb1:80", To::Preview(3000, "sb1")),
        ("3000-a-b_c-1.p.test", To::Preview(3000, "a-b_c-1")),
        // Numbers that other readers take for 2280 or for any port.
        ("02280-sb1.p.test", To::Nowhere(BadHost)),
        ("00002280-sb1.p.test", To::Nowhere(BadHost)),
        ("022222-sb1.p.test", To::Nowhere(BadHost)),
        ("033333-sb1.p.test", To::Nowhere(BadHost)),
        ("0-sb1.p.test", To::Nowhere(BadHost)),
        ("65536-sb1.p.test", To::Nowhere(BadHost)),
        ("67816-sb1.p.test", To::Nowhere(BadHost)),
        ("99999999-sb1.p.test", To::Nowhere(BadHost)),
        ("4294969576-sb1.p.test", To::Nowhere(BadHost)),
        ("18446744073709553896-sb1.p.test", To::Nowhere(BadHost)),
        ("+2280-sb1.p.test", To::Refused(Reject::HostSyntax)),
        ("-2280-sb1.p.test", To::Nowhere(NotFound)),
        ("-1-sb1.p.test", To::Nowhere(NotFound)),
        ("２２８０-sb1.p.test", To::Refused(Reject::HostSyntax)),
        ("2280.0-sb1.p.test", To::Nowhere(NotFound)),
        ("0x8E8-sb1.p.test", To::Nowhere(NotFound)),
        ("2e3-sb1.p.test", To::Nowhere(NotFound)),
        ("2_280-sb1.p.test", To::Nowhere(NotFound)),
        ("2280_-sb1.p.test", To::Nowhere(NotFound)),
        ("2280 -sb1.p.test", To::Refused(Reject::HostSyntax)),
        ("%32280-sb1.p.test", To::Refused(Reject::HostSyntax)),
        // Labels.
        ("3000-.p.test", To::Nowhere(BadHost)),
        ("3000-", To::Nowhere(BadHost)),
        ("-", To::Nowhere(NotFound)),
        ("3000.p.test", To::Nowhere(NotFound)),
        ("sb1.p.test", To::Nowhere(NotFound)),
        ("x3000-sb1.p.test", To::Nowhere(NotFound)),
        (&too_long, To::Nowhere(BadHost)),
        ("3000-sb1%2ep.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1%00.p.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1;x.p.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1:80:80", To::Refused(Reject::HostSyntax)),
        ("3000-sb1:+80", To::Refused(Reject::HostSyntax)),
        ("3000-sb1:", To::Refused(Reject::HostSyntax)),
        ("3000-sb1/x.p.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1\\x.p.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1,3000-sb2.p.test", To::Refused(Reject::HostSyntax)),
        ("u@3000-sb1.p.test", To::Refused(Reject::HostSyntax)),
        ("3000-sb1\u{e4}.p.test", To::Refused(Reject::HostSyntax)),
        ("[::1]", To::Nowhere(NotFound)),
        ("[3000-sb1]", To::Refused(Reject::HostSyntax)),
        ("[::1%25eth0]", To::Refused(Reject::HostSyntax)),
        ("127.0.0.1:80", To::Nowhere(NotFound)),
    ];
    for (host, expected) in rows {
        let found = match of_host(host) {
            Ok(Route::Preview { port, label }) => {
                let To::Preview(_, text) = &expected else { panic!("{host}: {port}-{label}") };
                assert_eq!(label.as_str(), *text, "{host}");
                To::Preview(port.number(), text)
            }
            Ok(other) => panic!("{host}: {other:?}"),
            Err(nowhere) => nowhere,
        };
        assert_eq!(found, expected, "{host}");
    }
    assert!(of_host(&long).is_ok());
}

#[test]
fn reserved_ports_are_reserved_by_number_and_nothing_else_is() {
    let reserved: Vec<u16> = (1..=65535)
        .filter(|n: &u16| Port::parse(n.to_string().as_bytes()).expect("canonical").is_reserved())
        .collect();
    assert_eq!(reserved, [2280, 22222, 33333]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Against the rule as one would write it down: `[1-9][0-9]{0,4}-[A-Za-z0-9_-]{1,57}`, then the end, `.` or `:`.
    #[test]
    fn a_host_is_a_preview_host_exactly_by_its_first_label(
        host in proptest::collection::vec(
            proptest::sample::select(
                &["0", "1", "2280", "22222", "33333", "6553", "9", "-", "-", "a", "Z", "_", ".", ":", "80", "+"][..]),
            1..8).prop_map(|parts| parts.concat()),
    ) {
        let expected = (|| {
            let first = host.split(['.', ':']).next()?;
            let (port, label) = first.split_once('-')?;
            let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
            let number: u32 = port.parse().ok().filter(|_| digits && !port.starts_with('0'))?;
            let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            let ok = (1..=65535).contains(&number) && (1..=57).contains(&label.len()) && label.bytes().all(known);
            ok.then(|| (number, label.to_ascii_lowercase()))
        })();
        match of_host(&host) {
            Ok(Route::Preview { port, label }) => {
                prop_assert_eq!(Some((u32::from(port.number()), label.to_string())), expected, "{}", host);
            }
            Ok(other) => prop_assert!(false, "{host}: {other:?}"),
            Err(To::Refused(Reject::HostSyntax)) => {}
            Err(_) => prop_assert_eq!(expected, None, "{}", host),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Containment

const PREFIX: &str = "/sandboxes/sb1/toolbox/proxy/3000";

/// What a hop does to a path before it looks at it, in this order.
#[derive(Clone, Copy, Debug)]
struct Reading {
    decodes: usize,
    backslash: bool,
    parameters: bool,
    merge: bool,
}

fn readings() -> impl Iterator<Item = Reading> {
    (0..24).map(|n| Reading { decodes: n / 8, backslash: n & 1 > 0, parameters: n & 2 > 0, merge: n & 4 > 0 })
}

impl Reading {
    fn of(self, path: &[u8]) -> Vec<u8> {
        let mut path = path.to_vec();
        for _ in 0..self.decodes {
            path = decoded(&path);
        }
        if self.backslash {
            path.iter_mut().filter(|b| **b == b'\\').for_each(|b| *b = b'/');
        }
        let mut segments: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        if self.parameters {
            for segment in &mut segments {
                let end = segment.iter().position(|b| *b == b';').unwrap_or(segment.len());
                segment.truncate(end);
            }
        }
        if self.merge {
            let last = segments.len() - 1;
            let mut at = 0;
            segments.retain(|segment| {
                at += 1;
                !segment.is_empty() || at == 1 || at == last + 1
            });
        }
        without_dots(&segments)
    }
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < path.len() {
        let escape = path.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let escape = escape.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if path[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986 5.2.4.
fn without_dots(segments: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    for segment in segments.iter().skip(1) {
        match segment.as_slice() {
            b"." => {}
            b".." => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    [b"/", out.join(&b'/').as_slice()].concat()
}

fn stays(path: &[u8]) -> Result<(), Reading> {
    let out = [PREFIX.as_bytes(), path].concat();
    for reading in readings() {
        let read = reading.of(&out);
        let under = read.strip_prefix(PREFIX.as_bytes());
        if !under.is_some_and(|rest| rest.is_empty() || rest[0] == b'/') {
            return Err(reading);
        }
    }
    Ok(())
}

/// What is sent to the runner for this path, if anything.
fn sent(path: &[u8]) -> Option<Vec<u8>> {
    let bytes = [b"GET ".as_slice(), path, b" HTTP/1.1\r\nHost: 3000-sb1.p.test\r\n\r\n"].concat();
    let head = RequestHead::parse(&bytes, &Limits::default()).ok().flatten()?;
    let Route::Preview { port, label } = route(&head, RouteRules::default()).ok()? else { return None };
    let to = RunnerPath::Preview { sandbox: label, port };
    let plan = RequestPlan {
        host: "runner:1",
        base_path: "",
        path: &to,
        authorization: "Bearer k",
        strip_authorization: false,
        client_ip: std::net::IpAddr::from([127, 0, 0, 1]),
        trusted_peer: false,
        scheme: "http",
        request_id: "r",
    };
    let mut out = Vec::new();
    write_request(&head, &plan, &mut out);
    let line = out.split(|b| *b == b'\r').next()?;
    let target = line.split(|b| *b == b' ').nth(1)?;
    Some(target.split(|b| *b == b'?').next()?.to_vec())
}

const ATOMS: &[&str] = &[
    "/", "/", "/", "..", "..", ".", "%2e", "%2E", "%252e", "%25", "2e", "%2f", "%2F", "%252F", "%5c",
    "%255C", "\\", ";x", ";", "a", "aa", "%", "%2", "..;x", "%3b", "%253B", "%00", "%23", "%3f",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_path_leaves_its_prefix_in_any_reading(
        path in proptest::collection::vec(proptest::sample::select(ATOMS), 0..14)
            .prop_map(|atoms| format!("/{}", atoms.concat())),
    ) {
        if let Some(target) = sent(path.as_bytes()) {
            let rest = target.strip_prefix(PREFIX.as_bytes()).expect("behind the prefix");
            prop_assert_eq!(rest, path.split('?').next().unwrap_or_default().as_bytes(), "verbatim");
            let left = stays(rest);
            prop_assert!(left.is_ok(), "{path}: {left:?}");
        } else if !contain::climbs(path.as_bytes()) {
            // Refused by the head, for its bytes.
            prop_assert!(path.contains('\\'), "{path} was refused");
        }
    }

    #[test]
    fn no_bytes_leave_the_prefix_in_any_reading(
        bytes in proptest::collection::vec(
            prop_oneof![4 => proptest::sample::select(&b"/.%25eEfFcC\\;"[..]), 1 => any::<u8>()], 0..24),
    ) {
        let path = [b"/".as_slice(), &bytes].concat();
        if !contain::climbs(&path) {
            let left = stays(&path);
            prop_assert!(left.is_ok(), "{}: {left:?}", path.escape_ascii());
        }
    }

    /// The other way round: names and dots that stay within pass.
    #[test]
    fn a_path_that_goes_down_before_it_goes_up_passes_verbatim(
        names in proptest::collection::vec(proptest::sample::select(&["a", "b.c", "..x", "...", "%41"][..]), 1..6),
        ups in 0..6_usize,
    ) {
        let ups = ups.min(names.len());
        let path = format!("/{}{}", names.join("/"), "/..".repeat(ups));
        prop_assert!(!contain::climbs(path.as_bytes()), "{path}");
        prop_assert_eq!(sent(path.as_bytes()), Some([PREFIX.as_bytes(), path.as_bytes()].concat()));
    }
}

#[test]
fn climbing_paths_are_refused_on_both_forms() {
    for path in [
        "/..",
        "/../x",
        "/a/../../x",
        "/../../../../other/toolbox/x",
        "/%2e%2e/x",
        "/%2E./x",
        "/.%2e/x",
        "/..%2fx",
        "/a%2f..%2f..%2fx",
        "/%252e%252e/x",
        "/..%5cx",
        "/..%255cx",
        "/..;x/y",
        "/%2e%2e;x/y",
        "/a//../../x",
        "/./../x",
        "/a/..%2f../x",
    ] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: 3000-sb1.p.test\r\n\r\n");
        let head = head(text.as_bytes()).expect("a good head");
        assert_eq!(route(&head, RouteRules::default()), Err(NoRoute::PathClimbs), "{path}");
        assert_eq!(of_path("GET", &format!("/toolbox/sb1{path}")), Err(NoRoute::PathClimbs), "{path}");
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Our own paths

#[test]
fn own_paths_are_matched_byte_by_byte() {
    let sandbox = |id: &str| SandboxId::parse(id.as_bytes()).expect("an id");
    let toolbox = |id: &str, rest_at| Ok(Route::Toolbox { sandbox: sandbox(id), rest_at });
    assert_eq!(of_path("GET", "/toolbox/sb1/files?x"), toolbox("sb1", 12));
    assert_eq!(of_path("POST", "/toolbox/sb1/"), toolbox("sb1", 12));
    assert_eq!(of_path("GET", "/toolbox/sb1"), toolbox("sb1", 12));
    assert_eq!(of_path("GET", "/toolbox/SB1/x"), toolbox("SB1", 12), "ids in paths have a case");
    for path in [
        "/",
        "/toolbox",
        "/toolbox/",
        "/toolbox//x",
        "/toolbox/a.b/x",
        "/toolbox/a%62/x",
        "/toolbox/../x",
        "/Toolbox/sb1/x",
        "/%74oolbox/sb1/x",
        "//toolbox/sb1/x",
        "/./toolbox/sb1/x",
        "/toolbox;x/sb1/x",
        "/health/",
        "/health%00",
        "/Health",
        "/sandboxes/sb1/build-logs/",
        "/sandboxes/sb1/x/build-logs",
        "/sandboxes//build-logs",
        "/snapshots/../build-logs",
        "/snapshots/a%2fb/build-logs",
    ] {
        assert_eq!(of_path("GET", path), Err(NoRoute::NotFound), "{path}");
    }
    assert_eq!(of_path("GET", "/health?x"), Ok(Route::Health));
    assert_eq!(of_path("HEAD", "/health"), Ok(Route::Health));
    assert_eq!(of_path("POST", "/health"), Err(NoRoute::NotFound));
    assert_eq!(of_path("OPTIONS", "*"), Err(NoRoute::NotFound));
    assert_eq!(of_path("TRACE", "/x"), Err(NoRoute::MethodNotAllowed));
    assert_eq!(of_path("CONNECT", "a:1"), Err(NoRoute::MethodNotAllowed));
}

#[test]
fn build_logs_follow_only_when_the_first_follow_says_true() {
    let of = |query: &str| match of_path("GET", &format!("/sandboxes/sb1/build-logs{query}")) {
        Ok(Route::BuildLogs { of: BuildLogsOf::Sandbox(_), follow }) => follow,
        other => panic!("{query}: {other:?}"),
    };
    for query in ["?follow=true", "?a=b&follow=true", "?follow=true&follow=false"] {
        assert!(of(query), "{query}");
    }
    for query in [
        "",
        "?",
        "?follow",
        "?follow=",
        "?follow=TRUE",
        "?follow=1",
        "?following=true",
        "?follow=false&follow=true",
    ] {
        assert!(!of(query), "{query}");
    }
    let name = |name: &str| of_path("GET", &format!("/snapshots/{name}/build-logs"));
    assert!(matches!(name("reg:5000-a_b.c"), Ok(Route::BuildLogs { of: BuildLogsOf::Snapshot(_), .. })));
    assert!(name(&"a".repeat(128)).is_ok());
    assert_eq!(name(&"a".repeat(129)), Err(NoRoute::NotFound));
}

#[test]
fn in_toolbox_only_mode_preview_hosts_exist_for_the_toolbox_alone() {
    let rules = RouteRules { toolbox_only: true, ..RouteRules::default() };
    let of = |host: &str| {
        let text = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
        route(&head(text.as_bytes()).expect("a good head"), rules)
    };
    assert!(of("2280-sb1.p.test").is_ok());
    assert_eq!(of("3000-sb1.p.test"), Err(NoRoute::NotFound));
    assert_eq!(of("22222-sb1.p.test"), Err(NoRoute::NotFound));
    assert_eq!(of("02280-sb1.p.test"), Err(NoRoute::BadHost));
}

#[test]
fn the_steps_of_a_login_are_the_gates_only_where_no_app_is() {
    let of = |rules: RouteRules, method: &str, host: &str, path: &str| {
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        route(&head(text.as_bytes()).expect("a good head"), rules)
    };
    let (shared, own) = (RouteRules::default(), RouteRules { own_sessions: true, ..RouteRules::default() });
    for rules in [shared, own] {
        assert_eq!(of(rules, "GET", "p.test", "/callback?code=x"), Ok(Route::Callback));
        for (method, path) in
            [("HEAD", "/callback"), ("POST", "/callback"), ("GET", "/callback/"), ("GET", "/Callback")]
        {
            assert_eq!(of(rules, method, "p.test", path), Err(NoRoute::NotFound), "{method} {path}");
        }
        assert!(matches!(of(rules, "GET", "3000-sb1.p.test", "/callback"), Ok(Route::Preview { .. })));
        assert_eq!(of(rules, "GET", "p.test", HANDOFF_PATH), Err(NoRoute::NotFound));
    }
    let preview = "3000-sb1.p.test";
    assert!(matches!(of(shared, "GET", preview, HANDOFF_PATH), Ok(Route::Preview { .. })));
    assert_eq!(of(own, "GET", preview, &format!("{HANDOFF_PATH}?t=x")), Ok(Route::Handoff));
    for (method, path) in
        [("POST", HANDOFF_PATH), ("GET", "/.daytona/"), ("GET", "/.daytona/auth/x"), ("PUT", "/.daytona/x")]
    {
        assert_eq!(of(own, method, preview, path), Err(NoRoute::NotFound), "{method} {path}");
    }
    for path in ["/.daytona", "/.daytonas/auth", "/x/.daytona/auth"] {
        assert!(matches!(of(own, "GET", preview, path), Ok(Route::Preview { .. })), "{path}");
    }
}
