//! Planted secrets, and all the places they must not turn up in.

use crate::harness::{DEADLINE, KEY, Message, Trouble, Wire, ok};
use crate::proofs::cookie;
use crate::shared::redis_server::cli;
use crate::shared::{World, until};
use std::time::{Duration, Instant};

const LINK: &str = "canarylink000001";
const DEAD_LINK: &str = "canarylink000002";
const LOST_LINK: &str = "canarylink000003";
const BEARER: &str = "dtn_ca9a27000000000000000000000000000000000000000000000000000000beef";
const TOKEN: &str = "canary-preview-token-of-32-chars";
const RUNNER_KEY: &str = "canary-runner-key";

const NAVIGATION: [(&str, &str); 3] =
    [("Accept", "text/html"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];

fn ask(world: &World, line: &str, host: &str, fields: &[(&str, &str)]) -> Message {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut wire = world.gate.connect();
    wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).expect("the gate reads");
    wire.expect_message().expect("an answer")
}

/// Takes what it is sent, but for what says that its connection fails.
fn serve(mut wire: Wire, _: usize) {
    while let Ok(Some(request)) = wire.message() {
        let answer =
            if request.target().contains("broken") { b"nonsense\r\n\r\n".to_vec() } else { ok("fine") };
        if wire.send(answer).is_err() {
            return;
        }
    }
}

#[test]
fn no_secret_stands_in_a_log_an_error_a_metric_or_the_name_of_a_key() {
    let settings = [
        ("SANDGATE_ACCESS_LOG", "all"),
        ("API_CLIENT_TIMEOUT_SEC", "1"),
        // A refusal stays in Redis until the end of the test.
        ("SANDGATE_NEGATIVE_TTL_SEC", "60"),
        ("SANDGATE_SHARDS", "1"),
    ];
    let world = World::before(crate::harness::Runner::start(serve), &settings);
    let script = &world.api.script;
    let runner = format!(r#"{{"proxyUrl":"http://{}","apiKey":"{RUNNER_KEY}"}}"#, world.runner.addr);
    script.reply("/api/runners/by-sandbox/", 200, &runner);
    script.reply(&format!("/api/preview/{LINK}/3000/sandbox-id"), 200, "priv");
    for gone in [LINK, DEAD_LINK, LOST_LINK] {
        script.reply(&format!("/api/preview/{gone}/"), 404, "{}");
    }
    script.reply("/api/preview/priv/public", 404, "{}");
    script.reply("/api/preview/no", 404, "{}");
    let session = cookie("priv", "priv");
    let bearer = format!("Bearer {BEARER}");
    let shown = |n: usize| -> Vec<(&'static str, String)> {
        vec![
            ("Authorization", format!("{bearer}{n}")),
            ("X-Daytona-Preview-Token", format!("{TOKEN}{n}")),
            ("Cookie", format!("a=b; daytona-sandbox-auth-x={n}canary-cookie; {session}")),
        ]
    };
    let mut errors = Vec::new();
    let mut ask_all = |hosts: &[String], targets: &[&str], round: usize| {
        let all = shown(round);
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for (host, target) in hosts.iter().flat_map(|host| targets.iter().map(move |target| (host, target))) {
            for fields in [&[][..], &all[..1], &all[1..2], &all[2..], &all[..]] {
                for fields in [fields.to_vec(), [fields, &NAVIGATION].concat()] {
                    let answer = ask(&world, &format!("GET {target}"), host, &fields);
                    if answer.status() >= 400 {
                        errors.push(format!("{:?} {}", answer.fields, answer.text()));
                    }
                }
            }
        }
    };
    let host = |label: &str| format!("{label}.preview.test");
    let links = [LINK, DEAD_LINK, LOST_LINK].map(|link| host(&format!("3000-{link}")));
    let hosts = ["3000-priv", "22222-priv", "3000-pub", "3000-no1", &format!("2280-{LINK}")].map(host);
    let targets = ["/page", "/broken", "/p?DAYTONA_SANDBOX_AUTH_KEY=canary-query&x=1"];
    ask_all(&[&links[..2], &hosts].concat(), &targets, 0);
    let others = ["/toolbox/priv/x?DAYTONA_SANDBOX_AUTH_KEY=canary-query", "/sandboxes/priv/build-logs"];
    ask_all(&["preview.test".to_owned()], &others, 0);
    for (n, trouble) in Trouble::ALL.into_iter().enumerate().filter(|(_, t)| *t != Trouble::Silent) {
        script.trouble(Some(trouble));
        ask_all(&[links[2].clone(), host("3000-other")], &targets[2..], n + 1);
    }
    script.trouble(None);
    // On a busy machine Redis may have been taken for slow at first: asked again, until it is told.
    let begun = Instant::now();
    let told = [links[0].clone(), links[1].clone(), host("3000-priv"), host("3000-pub")];
    let keys = loop {
        let keys = cli(world.redis.port, &["keys", "*"]);
        if keys.contains("proxy:sandbox-public:pub") && keys.contains("proxy:sandgate-verdict:") {
            break keys;
        }
        assert!(begun.elapsed() < DEADLINE, "{keys}");
        std::thread::sleep(Duration::from_millis(200));
        ask_all(&told, &targets[..1], 100 + begun.elapsed().as_millis() as usize);
    };
    assert!(errors.len() > 100, "{} errors", errors.len());
    let last = ask(&world, "GET /the-last-one", "3000-pub.preview.test", &[]);
    assert_eq!(last.status(), 200);
    let read = |text: &std::sync::Mutex<String>| text.lock().expect("no thread panics with it").clone();
    until(|| read(&world.gate.access_log).contains("/the-last-one"), "the access log has all of it");
    let places = [
        ("an error", errors.join("\n")),
        ("a key of Redis", keys),
        ("the log", read(&world.gate.events)),
        ("the access log", read(&world.gate.access_log)),
        ("the metrics", world.metrics()),
    ];
    let (_, sealed) = session.split_once('=').expect("a pair");
    let secrets = [
        LINK,
        DEAD_LINK,
        LOST_LINK,
        &BEARER[..20],
        TOKEN,
        "canary-query",
        "canary-cookie",
        sealed,
        KEY,
        RUNNER_KEY,
    ];
    for (place, text) in &places {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in secrets {
            let found = text.lines().find(|line| line.contains(secret));
            assert!(found.is_none(), "{secret} stands in {place}: {found:?}");
        }
    }
}
