//! Who may pass, in front of a whole world: every proof, wherever it is shown and whatever the API does about it.

use crate::harness::{DEADLINE, Gate, KEY, Message, Runner, Wire};
use sandgate::cookie::{AUTH_PREFIX, CookieKeys, escape};
use sandgate::demo::spec::{ApiMood, SandboxSpec, SignedToken, User, WorldSpec};
use sandgate::demo::world::World;
use std::time::{Duration, Instant, SystemTime};

const LINK: &str = "linktoken0000001";
/// An API key as they look: what looks like one reaches no app, public or not.
const BEARER: &str = "dtn_ca9a47000000000000000000000000000000000000000000000000000000beef";

/// `priv` and `other` belong to different people; `pub` is open to all.
fn world() -> World {
    World::start(WorldSpec {
        proxy_key: KEY.into(),
        sandboxes: vec![
            SandboxSpec::public("pub"),
            SandboxSpec::private("priv", "canary-preview"),
            SandboxSpec::private("other", "canary-preview-other"),
        ],
        users: vec![User::new(BEARER, &["priv", "pub"]), User::new("canary-other-bearer", &["other"])],
        signed: vec![SignedToken { token: LINK.into(), port: 3000, sandbox: "priv".into() }],
        ..WorldSpec::default()
    })
    .expect("the world listens on loopback")
}

fn host(port: u16, label: &str) -> String {
    format!("{port}-{label}.preview.localhost")
}

fn ask(gate: &Gate, first: &str, host: &str, fields: &[(&str, &str)]) -> Message {
    let mut text = format!("{first} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut wire = gate.connect();
    wire.send(text + "\r\n").expect("the gate reads");
    wire.expect_message().expect("an answer")
}

pub fn cookie_made(key: &str, label: &str, value: &str, age: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let name = format!("{AUTH_PREFIX}{label}");
    let sealed = CookieKeys::new(key, []).seal(&name, value.as_bytes(), now - age);
    format!("{name}={}", escape(sealed.as_bytes()))
}

/// A session of now, as a login leaves it.
pub fn cookie(label: &str, value: &str) -> String {
    cookie_made(KEY, label, value, 0)
}

/// What a client shows, and whether it opens `priv`.
struct Shown {
    what: &'static str,
    fields: Vec<(&'static str, String)>,
    query: &'static str,
    opens: bool,
}

fn everything_to_show() -> Vec<Shown> {
    let field = |what, name, value: &str, opens| Shown {
        what,
        fields: vec![(name, value.to_owned())],
        query: "",
        opens,
    };
    let query = |what, query, opens| Shown { what, fields: Vec::new(), query, opens };
    let bearer = |what, value: &str, opens| field(what, "Authorization", &format!("Bearer {value}"), opens);
    let header = |what, value: &str, opens| field(what, "X-Daytona-Preview-Token", value, opens);
    let cookie = |what, value: &str, opens| field(what, "Cookie", &format!("a=b; {value}; c=d"), opens);
    let mut forged = super::proofs::cookie("priv", "priv");
    let last = forged.pop().expect("not empty");
    forged.push(if last == 'A' { 'B' } else { 'A' });
    vec![
        query("nothing", "", false),
        bearer("a bearer", BEARER, true),
        bearer("a bearer of somebody else", "canary-other-bearer", false),
        bearer("an unknown or revoked bearer", "canary-nobody", false),
        bearer("a preview token as a bearer", "canary-preview", false),
        bearer("a link's token as a bearer", LINK, false),
        header("a preview token", "canary-preview", true),
        header("a preview token of another sandbox", "canary-preview-other", false),
        header("an old preview token", "canary-preview-old", false),
        header("a bearer as a preview token", BEARER, false),
        header("a link's token as a preview token", LINK, false),
        query("a preview token in the query", "?DAYTONA_SANDBOX_AUTH_KEY=canary-preview", true),
        query("another one's in the query", "?DAYTONA_SANDBOX_AUTH_KEY=canary-preview-other", false),
        cookie("a session", &super::proofs::cookie("priv", "priv"), true),
        cookie("a session that is over", &cookie_made(KEY, "priv", "priv", 3602), false),
        cookie("a session with another sandbox", &super::proofs::cookie("other", "other"), false),
        cookie("a session that names another sandbox", &super::proofs::cookie("priv", "other"), false),
        cookie("a session under another's name", &super::proofs::cookie("other", "priv"), false),
        cookie("a session signed by somebody else", &cookie_made("another-key", "priv", "priv", 0), false),
        cookie("a forged session", &forged, false),
        cookie("what a link left", &super::proofs::cookie(LINK, "priv"), false),
    ]
}

const OURS: [&str; 7] = [
    "canary-preview",
    BEARER,
    LINK,
    "daytona-sandbox-auth",
    "DAYTONA_SANDBOX_AUTH_KEY",
    "x-daytona-preview-token",
    KEY,
];

/// Requests that reached the runner, and that nothing of ours was in them.
fn reached(world: &World) -> usize {
    let sent = world.log(|record| record.runner().cloned().collect::<Vec<_>>());
    for request in &sent {
        // An app is told the host it is visited by, as it must be to link to itself, and keeps its visitors' bearers
        // that do not look like API keys: they may be its own.
        let apps_own = |(name, value): &(String, String)| match name.to_ascii_lowercase().as_str() {
            "x-forwarded-host" => true,
            "authorization" => !value.contains("dtn_"),
            _ => false,
        };
        let fields: Vec<_> = request.headers.iter().filter(|field| !apps_own(field)).collect();
        let text = format!("{} {fields:?}", request.line).to_lowercase();
        for ours in OURS {
            assert!(!text.contains(&ours.to_lowercase()), "{ours} reached the runner: {text}");
        }
        let cookies = request.values("cookie");
        assert!(cookies.iter().all(|cookies| *cookies == "a=b; c=d"), "{cookies:?}");
    }
    world.clear();
    sent.len()
}

#[test]
fn each_proof_opens_what_it_is_for_and_nothing_else_and_none_of_them_reaches_an_app() {
    let (world, toolbox) = (world(), "preview.localhost".to_owned());
    let gate = Gate::before(&world, &[]);
    for Shown { what, fields, query, opens } in everything_to_show() {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for (place, host, path, may_pass) in [
            ("a preview", host(3000, "priv"), "/echo", opens),
            ("a reserved port", host(22222, "priv"), "/echo", opens),
            ("the toolbox", toolbox.clone(), "/toolbox/priv/files", opens),
            ("a public preview", host(3000, "pub"), "/echo", true),
        ] {
            let answer = ask(&gate, &format!("GET {path}{query}"), &host, &fields);
            let wanted = if may_pass { 200 } else { 401 };
            assert_eq!(answer.status(), wanted, "{what} at {place}: {}", answer.text());
            assert_eq!(reached(&world), usize::from(may_pass), "{what} at {place}");
        }
    }
}

#[test]
fn what_opens_one_sandbox_does_not_open_the_reserved_ports_or_toolbox_of_a_public_one() {
    let world = world();
    let gate = Gate::before(&world, &[]);
    for shown in everything_to_show() {
        let fields: Vec<_> = shown.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // The bearer's owner owns `pub` too.
        let wanted = if shown.what == "a bearer" { 200 } else { 401 };
        for (host, path) in [
            (host(2280, "pub"), "/echo"),
            (host(33333, "pub"), "/echo"),
            ("preview.localhost".into(), "/toolbox/pub/files"),
        ] {
            let answer = ask(&gate, &format!("GET {path}{}", shown.query), &host, &fields);
            assert_eq!(answer.status(), wanted, "{} at {host}{path}", shown.what);
        }
    }
}

#[test]
fn an_api_in_trouble_opens_nothing_and_the_answer_says_whose_trouble_it_is() {
    let world = world();
    let gate = Gate::before(&world, &[("API_CLIENT_TIMEOUT_SEC", "1")]);
    for (number, (mood, status, code)) in [
        (ApiMood::Status(500), 502, "CONTROL_PLANE_ERROR"),
        (ApiMood::Status(429), 429, "RATE_LIMITED"),
        (ApiMood::Status(401), 502, "CONTROL_PLANE_ERROR"),
        (ApiMood::Status(204), 502, "CONTROL_PLANE_ERROR"),
        (ApiMood::Status(503), 503, "CONTROL_PLANE_DOWN"),
        (ApiMood::Closing, 503, "CONTROL_PLANE_DOWN"),
        (ApiMood::Silent, 504, "CONTROL_PLANE_TIMEOUT"),
    ]
    .into_iter()
    .enumerate()
    {
        // Names of their own: nothing is remembered about them.
        let (open, shut) = (format!("open{number}"), format!("shut{number}"));
        world.put(SandboxSpec::public(&open));
        world.put(SandboxSpec::private(&shut, "canary-preview"));
        world.set_api_mood(mood);
        let session = cookie(&shut, &shut);
        let link = format!("linktoken000100{number}");
        for (host, path, fields) in [
            (host(3000, &open), "/", vec![]),
            (host(3000, &shut), "/", vec![]),
            (host(3000, &shut), "/", vec![("X-Daytona-Preview-Token", "canary-preview")]),
            (host(22222, &shut), "/", vec![("X-Daytona-Preview-Token", "canary-preview")]),
            (
                "preview.localhost".into(),
                &format!("/toolbox/{shut}/files"),
                vec![("X-Daytona-Preview-Token", "canary-preview")],
            ),
            // The cookie is good; where the sandbox is, nobody says.
            (host(3000, &shut), "/", vec![("Cookie", &session)]),
            (host(22222, &link), "/", vec![]),
        ] {
            let answer = ask(&gate, &format!("GET {path}"), &host, &fields);
            assert_eq!(answer.status(), status, "{mood:?} {host} {fields:?}: {}", answer.text());
            assert!(answer.has_code(code), "{mood:?} {host} {fields:?}: {}", answer.text());
            assert_eq!(answer.field("X-Preview-Error-Source"), Some("api"));
            assert_eq!(reached(&world), 0);
        }
        // What the API refuses of a visitor's own bearer is about the bearer, not about our key.
        let bearer = format!("Bearer {BEARER}");
        let bearer = [("Authorization", bearer.as_str())];
        let answer = ask(&gate, "GET /echo", &host(22222, &shut), &bearer);
        let wanted = if mood == ApiMood::Status(401) { 401 } else { status };
        assert_eq!((answer.status(), reached(&world)), (wanted, 0), "{mood:?}");
        world.set_api_mood(ApiMood::Normal);
        let token = [("X-Daytona-Preview-Token", "canary-preview")];
        assert_eq!(
            ask(&gate, "GET /echo", &host(3000, &shut), &token).status(),
            200,
            "trouble is not remembered"
        );
        assert_eq!(reached(&world), 1);
    }
}

/// Asks until the answer has this status: what is remembered ends within seconds.
fn await_status(status: u16, mut ask: impl FnMut() -> Message) -> Message {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if answer.status() == status {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "still {}: {}", answer.status(), answer.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_signed_link_opens_its_port_while_it_lives_and_what_it_leaves_opens_nothing() {
    let world = world();
    let gate = Gate::before(&world, &[("SANDGATE_SIGNED_TTL_SEC", "1"), ("SANDGATE_NEGATIVE_TTL_SEC", "1")]);
    let first = ask(&gate, "GET /echo", &host(3000, LINK), &[]);
    assert_eq!((first.status(), reached(&world)), (200, 1));

    // The cookie is v0.190's: signed, named by the token, for this host, an hour.
    let set = first.field("Set-Cookie").expect("a cookie for gates of v0.190").to_owned();
    let (pair, attributes) = set.split_once("; ").expect("attributes");
    let domain = host(3000, LINK);
    assert_eq!(attributes, format!("Path=/; Domain={domain}; Max-Age=3600; HttpOnly; SameSite=Lax"));
    let (name, value) = pair.split_once('=').expect("a pair");
    let value = sandgate::cookie::unescape(value.as_bytes()).expect("escaped");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let opened = CookieKeys::new(KEY, []).open(name, &value, now, Duration::from_secs(5)).expect("ours");
    assert_eq!((name, &opened.value[..]), (format!("{AUTH_PREFIX}{LINK}").as_str(), &b"priv"[..]));

    let shown = [("Cookie", pair)];
    let again = ask(&gate, "GET /echo", &host(3000, LINK), &shown);
    assert_eq!((again.status(), again.field("Set-Cookie"), reached(&world)), (200, None, 1));

    for port in [3001, 80, 2280, 22222, 33333] {
        for fields in [&[][..], &shown] {
            let answer = ask(&gate, "GET /echo", &host(port, LINK), fields);
            assert_eq!((answer.status(), reached(&world)), (401, 0), "port {port}");
            assert!(answer.has_code("SIGNED_URL_EXPIRED"), "{}", answer.text());
        }
    }
    let answer = ask(&gate, &format!("GET /toolbox/{LINK}/files"), "preview.localhost", &shown);
    assert_eq!((answer.status(), answer.has_code("AUTH_REQUIRED"), reached(&world)), (401, true, 0));

    world.expire_signed(LINK);
    let over = await_status(401, || ask(&gate, "GET /echo", &host(3000, LINK), &shown));
    assert!(over.has_code("SIGNED_URL_EXPIRED"), "{}", over.text());
    assert_eq!(over.field("Location"), None, "no login page");
    world.clear();
    let reload = ask(&gate, "GET /echo", &host(3000, LINK), &shown);
    assert_eq!((reload.status(), reached(&world)), (401, 0));
    let token = [("Cookie", pair), ("X-Daytona-Preview-Token", "canary-preview")];
    assert_eq!(ask(&gate, "GET /echo", &host(3000, LINK), &token).status(), 401, "it is for `priv`");
}

#[test]
fn a_revoked_token_a_removed_member_and_a_closed_sandbox_are_shut_out_when_what_is_remembered_ends() {
    let world = world();
    let ttls = [
        ("SANDGATE_VERDICT_TTL_SEC", "1"),
        ("SANDGATE_PUBLIC_TTL_SEC", "1"),
        ("SANDGATE_NEGATIVE_TTL_SEC", "1"),
    ];
    let gate = Gate::before(&world, &ttls);
    let token =
        || ask(&gate, "GET /echo", &host(3000, "priv"), &[("X-Daytona-Preview-Token", "canary-preview")]);
    let bearer_field = format!("Bearer {BEARER}");
    let bearer = || ask(&gate, "GET /echo", &host(3000, "priv"), &[("Authorization", bearer_field.as_str())]);
    let public = || ask(&gate, "GET /echo", &host(3000, "pub"), &[]);
    assert_eq!([token().status(), bearer().status(), public().status()], [200; 3]);
    world.set_token("priv", "canary-preview-new");
    world.remove_user(BEARER);
    world.set_public("pub", sandgate::demo::spec::PublicAnswer::No);
    assert!(await_status(401, token).has_code("AUTH_INVALID"));
    assert!(await_status(401, bearer).has_code("AUTH_INVALID"));
    assert!(await_status(401, public).has_code("AUTH_REQUIRED"));
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Asks for an upgrade; the status of the answer alone.
fn upgrade(gate: &Gate, host: &str, fields: &[(&str, &str)]) -> u16 {
    let mut wire = gate.connect();
    let fields: String = UPGRADE.iter().chain(fields).map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    wire.send(format!("GET /ws HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.head().expect("HTTP").expect("an answer").status()
}

#[test]
fn a_session_counts_for_the_sandboxes_own_pages_and_for_opening_one() {
    let world = world();
    let gate = Gate::before(&world, &[("SANDGATE_TRUSTED_ORIGINS", "https://dashboard.test")]);
    let session = cookie("priv", "priv");
    let session = ("Cookie", session.as_str());
    let host_a = host(3000, "priv");
    let (own, sibling) =
        (format!("http://{}", host(8080, "priv")), format!("http://{}", host(3000, "other")));
    for (origin, counts) in [
        (own.as_str(), true),
        (sibling.as_str(), false),
        ("https://dashboard.test", true),
        ("https://3000-priv.evil.test", false),
        ("null", false),
    ] {
        let wanted = if counts { 200 } else { 401 };
        let post = [session, ("Origin", origin), ("Content-Length", "0")];
        assert_eq!(ask(&gate, "POST /echo", &host_a, &post).status(), wanted, "{origin}");
        let toolbox = ask(&gate, "POST /toolbox/priv/process/execute", "preview.localhost", &post);
        assert_eq!(toolbox.status(), wanted, "{origin}");
        assert_eq!(reached(&world), 2 * usize::from(counts));
        let tunnel = upgrade(&gate, &host_a, &[session, ("Origin", origin)]);
        assert_eq!(tunnel, if counts { 101 } else { 401 }, "{origin}");
        assert_eq!(reached(&world), usize::from(counts));
        // Another proof counts from anywhere.
        let token = [session, ("Origin", origin), ("X-Daytona-Preview-Token", "canary-preview")];
        assert_eq!(ask(&gate, "GET /echo", &host_a, &token).status(), 200);
        assert_eq!(reached(&world), 1);
    }
    let link = [
        session,
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Dest", "document"),
    ];
    assert_eq!(ask(&gate, "GET /echo", &host_a, &link).status(), 200);
    let image = [
        session,
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Mode", "no-cors"),
        ("Sec-Fetch-Dest", "image"),
    ];
    let refused = ask(&gate, "GET /echo", &host_a, &image);
    assert!(refused.has_code("AUTH_REQUIRED"), "as without a cookie: {}", refused.text());
    assert_eq!(reached(&world), 1);
}

#[test]
fn every_cookie_of_the_name_is_tried_in_every_field_and_with_every_key() {
    let world = world();
    let gate = Gate::before(&world, &[("SANDGATE_COOKIE_KEYS", "the-key-before-this-one,an-older-one")]);
    let good = cookie("priv", "priv");
    let tossed = format!("{AUTH_PREFIX}priv=tossed");
    let many = |count| vec![tossed.as_str(); count].join("; ");
    for fields in [
        vec![format!("{tossed}; {good}")],
        vec![format!("{}; {good}", many(7))],
        vec![tossed.clone(), good.clone()],
        vec![cookie_made("the-key-before-this-one", "priv", "priv", 0)],
        vec![cookie_made("an-older-one", "priv", "priv", 3590)],
    ] {
        let shown: Vec<_> = fields.iter().map(|value| ("Cookie", value.as_str())).collect();
        assert_eq!(ask(&gate, "GET /echo", &host(3000, "priv"), &shown).status(), 200, "{fields:?}");
    }
    // Bounded: looking at a hundred would let anyone make a request expensive.
    let beyond = format!("{}; {good}", many(8));
    assert_eq!(ask(&gate, "GET /echo", &host(3000, "priv"), &[("Cookie", &beyond)]).status(), 401);
    let unknown = cookie_made("some-other-key", "priv", "priv", 0);
    assert_eq!(ask(&gate, "GET /echo", &host(3000, "priv"), &[("Cookie", &unknown)]).status(), 401);
}

#[test]
fn no_secret_a_client_shows_stands_in_a_log_an_answer_or_the_metrics() {
    let world = world();
    let settings = [("SANDGATE_ACCESS_LOG", "all"), ("API_CLIENT_TIMEOUT_SEC", "1")];
    let gate = Gate::before(&world, &settings);
    let mut requests = 0;
    let moods = [ApiMood::Normal, ApiMood::Status(500), ApiMood::Status(429), ApiMood::Closing];
    for (number, mood) in moods.into_iter().enumerate() {
        world.set_api_mood(mood);
        // Nothing is remembered about this one.
        let fresh = format!("fresh{number}");
        // The API is asked three times then, with pauses.
        let every = if mood == ApiMood::Closing { 7 } else { 1 };
        for Shown { fields, query, what: _, opens: _ } in everything_to_show().into_iter().step_by(every) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for (host, path) in [
                (host(3000, "priv"), "/status/404"),
                (host(3000, LINK), "/status/404"),
                (host(22222, "canarytoken00001"), "/"),
                (host(22222, &format!("canarytoken0001{number}")), "/"),
                (host(3000, &fresh), "/"),
                ("preview.localhost".to_owned(), "/toolbox/other/files"),
            ] {
                let answer = ask(&gate, &format!("GET {path}{query}"), &host, &fields);
                requests += 1;
                // The link's own cookie goes to who has shown the link.
                let fields = answer.fields.iter().filter(|(name, _)| name != "Set-Cookie");
                let told: String = fields.map(|(name, value)| format!("{name}: {value}\n")).collect();
                assert_clean("an answer", &(told + &answer.text()));
            }
        }
    }
    world.set_api_mood(ApiMood::Normal);
    let page = gate.page();
    assert!(page.contains("signed_link"), "{page}");
    assert_clean("the metrics", &page);
    let begun = Instant::now();
    let lines = || gate.access_log.lock().expect("no thread panics with it").lines().count();
    while lines() < requests {
        assert!(begun.elapsed() < DEADLINE, "{} of {requests} lines", lines());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = gate.access_log.lock().expect("no thread panics with it").clone();
    assert_clean("the access log", &log);
    assert!(log.contains("\"auth\":\"signed_link\"") && log.contains("3000-[label].preview.localhost"));
    let events = gate.events.lock().expect("no thread panics with it").clone();
    assert!(events.contains("api_status"), "the API's trouble is told: {events}");
    assert_clean("the events", &events);
}

fn assert_clean(where_: &str, text: &str) {
    for secret in ["canary", BEARER, LINK, KEY] {
        assert!(!text.contains(secret), "{secret} stands in {where_}: {text}");
    }
    assert!(!text.contains(AUTH_PREFIX), "a session stands in {where_}: {text}");
}

#[test]
fn what_an_app_says_about_hosts_beside_its_own_does_not_reach_browsers() {
    let runner = Runner::start(|mut wire: Wire, _| {
        while let Ok(Some(_)) = wire.message() {
            let answer = "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=preview.test; Path=/\r\nSet-Cookie: b=2; HttpOnly\r\n\
                Set-Cookie: daytona-sandbox-auth-x=evil\r\nSet-Cookie: =pkce_verifier=evil\r\nAlt-Svc: h3=\":443\"\r\n\
                Clear-Site-Data: \"cookies\"\r\nContent-Length: 0\r\n\r\n";
            if wire.send(answer).is_err() {
                return;
            }
        }
    });
    let api = crate::harness::Api::start(runner.addr);
    let told = |settings: &[(&str, &str)]| {
        let answer = Gate::start(&api, settings).get("/").expect("an answer");
        let fields =
            answer.fields.into_iter().filter(|(name, _)| name != "X-Request-Id" && name != "Content-Length");
        fields.map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), ["Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; HttpOnly"]);
    assert_eq!(
        told(&[("SANDGATE_CONFINE_APPS", "false")]),
        [
            "Set-Cookie: a=1; Domain=preview.test; Path=/",
            "Set-Cookie: b=2; HttpOnly",
            "Alt-Svc: h3=\":443\"",
            "Clear-Site-Data: \"cookies\"",
        ]
    );
}
