//! Recordings of browsers, replayed.

use super::peer::{Answer, Asked, Server, codes, ok, plan, run};
use loadtest::agent;
use loadtest::har::Recording;
use loadtest::host::ProxySource;
use loadtest::plan::{Class, Load, Plan};
use loadtest::population::{AuthKind, Population, Sandbox};
use loadtest::quantity::Span;
use loadtest::result::{ClassResult, ErrorCount};
use loadtest::run::{Agents, Observation, run_on};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const CHROMIUM: &[u8] = include_bytes!("../recordings/chromium.har");
/// Requests of it that are replayed, and when they left, in milliseconds.
const REPLAYED: [(&str, u64); 11] = [
    ("GET /page?assets=3", 0),
    ("GET /bytes/700?asset=0", 31),
    ("GET /bytes/1200?asset=1", 32),
    ("GET /bytes/2500?asset=2", 32),
    ("GET /favicon.ico", 214),
    ("POST /upload?hash=false", 527),
    ("POST /form", 1132),
    ("HEAD /missing/status", 1137),
    ("GET /status/404", 1144),
    ("GET /bytes/2000", 1148),
    ("GET /bytes/100?x=1", 1153),
];

/// Method, path, when it left in milliseconds, its answer's status, length of its body.
fn recording(requests: &[(&str, &str, u32, u16, usize)]) -> Vec<u8> {
    let entry = |(method, path, ms, status, bytes): &(&str, &str, u32, u16, usize)| -> Value {
        let mut request =
            json!({ "method": method, "url": format!("https://recorded.test{path}"), "headers": [] });
        if *bytes > 0 {
            request["postData"] = json!({ "mimeType": "text/plain", "text": "x".repeat(*bytes) });
        }
        json!({
            "startedDateTime": format!("2026-05-01T12:00:{:02}.{:03}Z", ms / 1000, ms % 1000),
            "request": request,
            "response": { "status": status },
        })
    };
    json!({ "log": { "entries": requests.iter().map(entry).collect::<Vec<_>>() } }).to_string().into_bytes()
}

/// Sessions of one recording.
fn replaying(server: &Server, har: &[u8], load: Load, length_ms: u64) -> Plan {
    let mut plan = plan(&server.url(), load, length_ms);
    plan.recordings = vec![Recording::parse("shop", har).expect("a recording")];
    plan.phases[0].mix = vec![(Class::Recording("shop".into()), 1.0)];
    plan
}

/// Longer than the machine may pause, from the last of most recordings here on.
const LENGTH_MS: u64 = 3000;

/// Sessions that begin at once.
fn ten() -> Load {
    Load::Burst { size: 10, every: Span(Duration::from_secs(60)) }
}

/// A single session.
fn one() -> Load {
    Load::Burst { size: 1, every: Span(Duration::from_secs(60)) }
}

fn replayed(server: &Server, har: &[u8], length_ms: u64) -> ClassResult {
    run(replaying(server, har, one(), length_ms)).phases[0].classes["har:shop"].clone()
}

/// As the recorded server did.
fn as_recorded(asked: &Asked) -> Answer {
    match asked.line.as_str() {
        line if line.starts_with("HEAD") => {
            Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n".into())
        }
        "GET /status/404" => Answer::Say(404, "none".into()),
        "GET /bytes/2000" => Answer::Say(206, "x".repeat(100)),
        _ => ok(),
    }
}

#[test]
fn a_sandbox_gets_what_the_browser_sent_not_before_it_did_with_credentials_of_its_own() {
    let seen: Arc<Mutex<Vec<(String, String, Instant)>>> = Arc::default();
    let watched = seen.clone();
    let server = Server::start(move |asked| {
        watched.lock().expect("not poisoned").push((asked.line.clone(), asked.head.clone(), Instant::now()));
        as_recorded(asked)
    });
    let mut plan = replaying(&server, CHROMIUM, one(), LENGTH_MS);
    plan.target.domain = Some("preview.test".into());
    plan.workload.auth = vec![(AuthKind::Token, 1.0)];
    plan.workload.sandboxes = 1;
    let begun = Instant::now();
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!((total.planned, total.ok, total.shortened), (1, 1, 0), "{:?}", total.errors);
    let mut seen = seen.lock().expect("not poisoned");
    let mut lines: Vec<&str> = seen.iter().map(|(line, ..)| line.as_str()).collect();
    let mut expected: Vec<&str> = REPLAYED.iter().map(|(line, _)| *line).collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    let sandbox = Sandbox { index: 0, public: false };
    let (id, token) = (Population::new(1).id(sandbox), Population::new(1).token(sandbox));
    for (line, head, at) in seen.drain(..) {
        let (_, ms) = REPLAYED.iter().find(|(other, _)| *other == line).expect("just compared");
        assert!(at >= begun + Duration::from_millis(*ms), "{line}: {:?}", at - begun);
        let head = head.to_lowercase();
        let has = |field: &str| head.matches(&format!("{field}\r\n")).count();
        assert_eq!(has(&format!("host: 3000-{id}.preview.test")), 1, "{head}");
        assert_eq!(has(&format!("x-daytona-preview-token: {token}")), 1, "{head}");
        assert_eq!(head.matches("preview-token").count(), 1, "{head}");
        assert!(
            !head.contains("recorded-secret") && !head.contains("cookie") && !head.contains("localhost"),
            "{head}"
        );
        assert!(head.contains("user-agent: mozilla/5.0"), "{head}");
    }
    let requests = &total.extra["har_request"];
    assert_eq!(requests.count(), 11);
    // The session's time has the recorded pauses in it.
    assert!(total.response.quantile_us(0.5) >= 1_153_000.0, "{:?}", total.response.quantiles());
    let note = result.validity.reasons.iter().find(|reason| reason.code == "har").expect("told");
    assert!(
        !note.fatal && note.message.contains("6 of 17 entries are left out: 1 to other origins"),
        "{note:?}"
    );
}

/// Requests are due when they were recorded, whether or not a connection is free: a stall is in the time of each of them.
#[test]
fn a_stall_is_in_the_time_of_every_request_that_was_due_in_it() {
    const STALL: Duration = Duration::from_millis(500);
    let stalled: Mutex<Option<Instant>> = Mutex::default();
    let server = Server::start(move |_| {
        let until = *stalled.lock().expect("not poisoned").get_or_insert(Instant::now() + STALL);
        thread::sleep(until.saturating_duration_since(Instant::now()));
        ok()
    });
    let requests: Vec<_> = (0..15).map(|n| ("GET", "/", n * 10, 200, 0)).collect();
    let total = replayed(&server, &recording(&requests), LENGTH_MS);
    assert_eq!((total.ok, total.failed), (1, 0), "{:?}", total.errors);
    let times = &total.extra["har_request"];
    // The last was due 140 ms after the first, and nobody was answered earlier than 500 ms after that.
    assert_eq!(times.count(), 15);
    assert!(times.quantiles().min_us >= 355_000.0, "{:?}", times.quantiles());
    assert_eq!(server.connections.load(SeqCst) - 16, 6, "as many as a browser opens");
}

#[test]
fn an_answer_that_is_not_as_recorded_fails_its_session_and_the_others_are_sent_all_the_same() {
    let requests = [("GET", "/a", 0, 200, 0), ("GET", "/b", 20, 404, 0), ("POST", "/c", 40, 200, 5)];
    let har = recording(&requests);
    let with = |path: &'static str, answer: fn() -> Answer| {
        let server = Server::start(move |asked| match asked.line.as_str() {
            line if line.ends_with(path) => answer(),
            "GET /b" => Answer::Say(404, String::new()),
            _ => ok(),
        });
        let total = replayed(&server, &har, LENGTH_MS);
        assert_eq!((total.ok + total.failed, server.requests.load(SeqCst)), (1, 3), "{path}");
        total
    };
    let error =
        |code: &str, source: &str| vec![ErrorCount { code: code.into(), source: source.into(), count: 1 }];
    let right = with("/none", ok);
    assert_eq!((right.ok, right.extra["har_request"].count()), (1, 3), "{:?}", right.errors);
    let total = with("/a", || Answer::Say(503, String::new()));
    assert_eq!(total.errors, error("HTTP 503", "answer"));
    assert_eq!((total.response.count(), total.extra["har_request"].count()), (0, 2), "a failure has no time");
    assert_eq!(with("/b", ok).errors, error("not as recorded", "answer"));
    assert_eq!(with("/c", || Answer::Say(302, String::new())).errors, error("HTTP 302", "answer"));
    let own: fn() -> Answer = || {
        let fields = "x-preview-error-code: SANDBOX_NOT_FOUND\r\nx-preview-error-source: control-plane\r\n";
        Answer::Raw(format!("HTTP/1.1 404 Not Found\r\n{fields}content-length: 0\r\n\r\n").into())
    };
    assert_eq!(with("/b", own).errors, error("SANDBOX_NOT_FOUND", "control-plane"), "the app was not asked");
    assert_eq!(
        with("/a", || Answer::Last(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".into())).errors[0].code,
        "truncated"
    );
}

/// As a proxy's to a login is, where the app's own was recorded.
#[test]
fn a_redirect_of_another_status_than_the_recorded_one_is_counted_by_its_status() {
    let har = recording(&[("GET", "/", 0, 302, 0)]);
    for (status, failed) in [(302, None), (307, Some("HTTP 307")), (200, Some("not as recorded"))] {
        let server = Server::start(move |_| Answer::Say(status, String::new()));
        let total = replayed(&server, &har, LENGTH_MS);
        let codes: Vec<&str> = total.errors.iter().map(|error| error.code.as_str()).collect();
        assert_eq!((total.ok, codes), (u64::from(failed.is_none()), Vec::from_iter(failed)), "{status}");
        assert_eq!(total.statuses.get(&status), Some(&1));
    }
}

/// What failed cost the proxy its CPU, too.
#[test]
fn every_answer_counts_where_the_proxy_s_cpu_is_divided_by_what_it_did() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /a" => ok(),
        "GET /b" => Answer::Say(503, String::new()),
        _ => Answer::Last(Vec::new()),
    });
    let requests: Vec<_> = ["/a", "/b", "/b", "/c", "/a"].map(|path| ("GET", path, 0, 200, 0)).into();
    let plan = replaying(&server, &recording(&requests), one(), LENGTH_MS);
    let proxy = Some(ProxySource::Pid(std::process::id()));
    let observation = Observation { proxy, ..Observation::default() };
    let result =
        loadtest::run::run(&Arc::new(plan), &observation, &Arc::default(), &mut |_| {}).expect("it runs");
    let (total, used) = (result.phases[0].total(), result.phases[0].proxy.clone().expect("watched"));
    assert_eq!((total.failed, total.extra["har_request"].count()), (1, 2), "{:?}", total.errors);
    let units = used.cpu_s * 1e6 / used.cpu_us_per_request;
    assert!((units - 5.0).abs() < 0.01, "{units}: {used:?}");
}

#[test]
fn bodies_arrive_whole_and_once_however_long_they_are() {
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let watched = seen.clone();
    let server = Server::start(move |asked| {
        watched.lock().expect("not poisoned").push(asked.body_bytes);
        ok()
    });
    let requests =
        [("POST", "/a", 0, 200, 10), ("PUT", "/b", 20, 200, 3_000_000), ("POST", "/c", 40, 200, 16_384)];
    let total = replayed(&server, &recording(&requests), LENGTH_MS);
    assert_eq!((total.ok, total.failed), (1, 0), "{:?}", total.errors);
    let mut seen = seen.lock().expect("not poisoned").clone();
    seen.sort_unstable();
    assert_eq!(seen, [10, 16_384, 3_000_000]);
    assert!(total.bytes_up > 3_016_394, "{}", total.bytes_up);
}

/// In a long pause servers close what is idle; what must not be sent twice goes on a new connection then.
#[test]
fn a_connection_closed_in_a_recorded_pause_is_no_failure() {
    let server = Server::start(|_| Answer::Last(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into()));
    let requests = [("GET", "/", 0, 200, 0), ("POST", "/", 400, 200, 3), ("POST", "/", 800, 200, 3)];
    let total = replayed(&server, &recording(&requests), LENGTH_MS);
    assert_eq!(
        (total.ok, total.resent, server.connections.load(SeqCst) - 16),
        (1, 0, 3),
        "{:?}",
        total.errors
    );
}

/// Each attempt takes less than the timeout, both together more.
#[test]
fn a_request_that_is_sent_again_has_no_more_time_than_any_other() {
    const HALF: Duration = Duration::from_millis(700);
    let server = Server::start(|asked| {
        if asked.line == "GET /twice" {
            thread::sleep(HALF);
        }
        // The first attempt ends with its connection, before a byte of an answer.
        static SEEN: AtomicBool = AtomicBool::new(false);
        match asked.line == "GET /twice" && !SEEN.swap(true, SeqCst) {
            true => Answer::Last(Vec::new()),
            false => ok(),
        }
    });
    let requests = [("GET", "/", 0, 200, 0), ("GET", "/twice", 1000, 200, 0)];
    let mut plan = replaying(&server, &recording(&requests), one(), LENGTH_MS);
    plan.client.timeout = Span(Duration::from_millis(1000));
    let total = run(plan).phases[0].total();
    assert_eq!((total.failed, total.errors[0].code.as_str()), (1, "timeout"), "{:?}", total.errors);
}

#[test]
fn a_bad_credential_s_session_ends_with_its_first_answer() {
    for (status, outcome) in [(401, Ok(())), (307, Ok(())), (200, Err("let in")), (404, Err("HTTP 404"))] {
        let server = Server::start(move |_| Answer::Say(status, String::new()));
        let requests = [("GET", "/", 0, 200, 0), ("GET", "/x", 0, 200, 0), ("GET", "/y", 10, 200, 0)];
        let mut plan = replaying(&server, &recording(&requests), ten(), LENGTH_MS);
        plan.target.domain = Some("preview.test".into());
        plan.workload.auth = vec![(AuthKind::Bearer, 1.0)];
        plan.workload.bad = 1.0;
        let total = run(plan).phases[0].total();
        assert_eq!(server.requests.load(SeqCst), 10, "{status}");
        match outcome {
            Ok(()) => assert_eq!((total.ok, total.refused_rightly), (10, 10), "{status}"),
            Err(code) => assert_eq!((total.failed, total.errors[0].code.as_str()), (10, code), "{status}"),
        }
    }
}

/// When it ends is known from the plan alone, so that leaving out its time does not make others look better.
#[test]
fn a_session_that_goes_on_well_when_the_run_is_over_is_shortened_and_has_no_time() {
    let server = Server::start(|_| ok());
    let requests = [("GET", "/", 0, 200, 0), ("GET", "/late", 30_000, 200, 0)];
    let mut plan = replaying(&server, &recording(&requests), ten(), LENGTH_MS);
    plan.client.grace = Span(Duration::from_secs(20));
    let begun = Instant::now();
    let result = run(plan);
    assert!(begun.elapsed() < Duration::from_secs(15), "neither pause nor grace is waited for");
    let total = result.phases[0].total();
    assert_eq!((total.ok, total.shortened, server.requests.load(SeqCst)), (10, 10, 10));
    assert_eq!((total.response.count(), total.extra["har_request"].count()), (0, 10));
    assert_eq!(codes(&result), Vec::<String>::new());
}

#[test]
fn what_is_due_and_not_answered_is_unfinished_and_in_the_times_with_its_age() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /" => ok(),
        _ => Answer::Raw(Vec::new()),
    });
    let requests = [("GET", "/", 0, 200, 0), ("GET", "/hangs", 0, 200, 0), ("GET", "/late", 30_000, 200, 0)];
    let mut plan = replaying(&server, &recording(&requests), ten(), LENGTH_MS);
    plan.client.grace = Span(Duration::from_millis(300));
    let total = run(plan).phases[0].total();
    assert_eq!((total.sent, total.unfinished, total.ok, total.failed), (10, 10, 0, 0));
    // Had it been answered, the session would have no time: its short age is none either.
    assert_eq!((total.response.count(), total.extra["har_request"].count()), (0, 20));
    assert!(total.extra["har_request"].max_ns() >= 300_000_000);
}

/// More are due than there are connections.
#[test]
fn a_hung_session_whose_end_was_within_the_run_has_its_age_and_all_its_requests_theirs() {
    let server = Server::start(|_| Answer::Raw(Vec::new()));
    let requests: Vec<_> = (0..9).map(|n| ("GET", "/", n * 10, 200, 0)).collect();
    let mut plan = replaying(&server, &recording(&requests), one(), LENGTH_MS);
    plan.client.grace = Span(Duration::from_millis(100));
    let total = run(plan).phases[0].total();
    assert_eq!((total.unfinished, server.requests.load(SeqCst)), (1, 6));
    assert_eq!((total.response.count(), total.extra["har_request"].count()), (1, 9));
}

#[test]
fn a_timeout_in_a_session_that_the_run_s_end_cuts_is_no_short_time_of_it() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /" => ok(),
        _ => Answer::Raw(Vec::new()),
    });
    for (last_ms, session_times) in [(30_000, 0), (100, 1)] {
        let requests = [("GET", "/", 0, 200, 0), ("GET", "/hangs", 0, 200, 0), ("GET", "/", last_ms, 200, 0)];
        let mut plan = replaying(&server, &recording(&requests), one(), LENGTH_MS);
        plan.client.timeout = Span(Duration::from_millis(500));
        let total = run(plan).phases[0].total();
        assert_eq!((total.failed, total.errors[0].code.as_str(), total.shortened), (1, "timeout", 0));
        assert_eq!(total.response.count(), session_times, "{last_ms}");
    }
}

#[test]
fn agents_replay_a_recording_they_have_no_file_of() {
    let server = Server::start(as_recorded);
    let agent = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let name = listener.local_addr().expect("bound").to_string();
        (name, thread::spawn(move || agent::serve(&listener, "key", true).expect("it serves")))
    };
    let (names, handles): (Vec<_>, Vec<_>) = [agent(), agent()].into_iter().unzip();
    let agents = Agents { names, key: "key".into() };
    let mut plan = replaying(&server, CHROMIUM, Load::Hold { rate: 10.0 }, 500);
    plan.phases.push(plan.phases[0].clone());
    (plan.phases[1].load, plan.phases[1].length) = (Load::Quiet, Span(Duration::from_secs(2)));
    let on = |plan: &Plan| {
        run_on(&agents, &Arc::new(plan.clone()), &Observation::default(), &Arc::default(), &mut |_| {})
    };
    let result = on(&plan).expect("it runs");
    let total = result.phases[0].total();
    assert_eq!(
        (total.ok, total.shortened, total.extra["har_request"].count()),
        (5, 0, 55),
        "{:?}",
        total.errors
    );
    assert_eq!(server.requests.load(SeqCst), 55);
    handles.into_iter().for_each(|handle| handle.join().expect("an agent ends well"));

    // Two of the largest are more than an agent takes: said before anybody is asked.
    let large = recording(&[("POST", "/", 0, 200, 4 << 20), ("POST", "/", 0, 200, (4 << 20) - 1000)]);
    plan.recordings =
        ["shop", "b"].map(|name| Recording::parse(name, &large).expect("within the limits")).into();
    let error = on(&plan).expect_err("too large");
    assert!(error.contains("agents take 16777216") && error.contains("har:"), "{error}");
    plan.recordings.clear();
    assert!(on(&plan).expect_err("it is missing").contains("no recording for har:shop"));
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("loadtest-har-{}-{name}", std::process::id()));
    std::fs::create_dir_all(folder.join("recordings")).expect("a folder");
    let har = recording(&[("GET", "/", 0, 200, 0), ("GET", "/x", 20, 200, 0)]);
    std::fs::write(folder.join("recordings/my shop.har"), har).expect("written");
    folder
}

fn loadtest(folder: &PathBuf, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    let output = command.output().expect("it starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn files_are_named_from_the_working_directory_and_from_the_scenario_s() {
    let folder = folder("paths");
    let server = Server::start(|_| ok());
    let flags = ["--lag-max", "1s", "--assert", "har:my-shop/har_request.p99<20s,har:my-shop/ok>=2,err<=0%"];
    let run =
        ["run", &server.url(), "--rate", "4", "--for", "500ms", "--mix", "har:recordings/my shop.har=5"];
    let (code, text) = loadtest(&folder, &[&run[..], &flags].concat());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("har:my-shop: 2 requests in 20.0ms") && text.contains("har_request"), "{text}");
    let scenario = "name = 'x'\nabout = 'x'\n[[phase]]\nname = 'p'\nfor = '500ms'\nrate = 4\n\
                    mix = { 'har:a,b=1/my shop.har' = 5 }\n[[phase]]\nname = 'q'\nfor = '100ms'\n";
    // What divides a mix of the command line does not divide a table's.
    let inner = folder.join("recordings/a,b=1");
    std::fs::create_dir(&inner).expect("a folder");
    std::fs::rename(folder.join("recordings/my shop.har"), inner.join("my shop.har")).expect("ours");
    std::fs::write(folder.join("recordings/day.toml"), scenario).expect("written");
    let (code, text) =
        loadtest(&folder, &[&["scenario", "recordings/day.toml", &server.url()][..], &flags].concat());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(server.requests.load(SeqCst), 8);
    std::fs::remove_dir_all(&folder).expect("ours");
}

/// Six connections each, of as many sessions as there will be.
#[test]
fn replays_that_may_need_more_files_than_there_are_to_open_are_refused_before_the_load() {
    let folder = folder("files");
    let server = Server::start(|_| ok());
    for (rate, code) in [("2000", 2), ("20", 0)] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 1000 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_loadtest"), "run"]);
        command.args([&server.url(), "--for", "300ms", "--lag-max", "1s", "--rate", rate]);
        command.args(["--mix", "har:recordings/my shop.har"]).current_dir(&folder).stdin(Stdio::null());
        let output = command.output().expect("a shell");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{rate}: {text}");
        let told = text.contains("open files, and this process may open 1000");
        assert_eq!(told, code == 2, "{rate}: {text}");
    }
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[test]
fn what_cannot_be_replayed_is_refused_before_the_load() {
    let folder = folder("refused");
    std::fs::write(folder.join("page.har"), "<html>").expect("written");
    let server = Server::start(|_| ok());
    let good = "har:recordings/my shop.har";
    for (flags, said) in [
        (&["--rate", "1", "--mix", "har:absent.har"][..], "har:absent.har: No such file"),
        (&["--rate", "1", "--mix", "har:a,b.har"], "--mix divides at commas"),
        (&["--rate", "1", "--mix", "har:page.har"], "har:page.har: it is no JSON (line 1, column 1)"),
        (&["--rate", "1", "--mix", "har:recordings"], "har:recordings: Is a directory"),
        (&["--rate", "1", "--mix", "har:"], "a HAR file's name follows"),
        (&["--rate", "1", "--mix", good, "--http2"], "recordings"),
        (&["--closed", "--mix", good], "a closed loop has no"),
    ] {
        let (code, text) = loadtest(&folder, &[&["run", &server.url(), "--for", "1s"][..2], flags].concat());
        assert_eq!(code, Some(2), "{flags:?}: {text}");
        assert!(text.contains(said), "{flags:?}: {text}");
    }
    assert_eq!(server.connections.load(SeqCst), 0);
    std::fs::remove_dir_all(&folder).expect("ours");
}
