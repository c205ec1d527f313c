//! The binary: exit codes, files, signals.

use super::peer::{Answer, Server, ok};
use crate::free_port::free_port;
use loadtest::result::RunResult;
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

fn loadtest(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(child: Child) -> (Output, String) {
    let output = child.wait_with_output().expect("it ends");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("loadtest-{}-{name}.json", std::process::id()))
}

fn read(path: &PathBuf) -> RunResult {
    let text = std::fs::read(path).expect("it was written");
    std::fs::remove_file(path).expect("ours");
    serde_json::from_slice(&text).expect("a result")
}

#[test]
fn ctrl_c_ends_a_run_with_a_valid_partial_report() {
    let server = Server::start(|_| ok());
    let json = file("ctrl-c");
    let json_text = json.to_str().expect("UTF-8");
    let arguments =
        ["run", &server.url(), "--rate", "50", "--for", "10m", "--lag-max", "1s", "--json", json_text, "-q"];
    let child = loadtest(&arguments).spawn().expect("it starts");
    let pid = Pid::from_child(&child);
    server.wait_for(30);
    kill_process(pid, Signal::INT).expect("it lives");
    let begun = Instant::now();
    let (output, text) = output(child);
    assert!(output.status.success(), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let result = read(&json);
    assert!(result.meta.partial && result.validity.valid);
    assert_eq!(result.phases[0].total().ok, server.requests.load(SeqCst));
    assert!(text.contains("ended before its time"), "{text}");
}

/// A list of a month's seconds alone would be more than 100 MB.
#[test]
fn memory_does_not_grow_with_the_length_of_the_plan() {
    let server = Server::start(|_| ok());
    let arguments = ["run", &server.url(), "--rate", "20", "--for", "31d", "--lag-max", "1s", "-q"];
    let child = loadtest(&arguments).spawn().expect("it starts");
    server.wait_for(10);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it lives");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it lives");
    let (output, text) = output(child);
    assert!(output.status.success(), "{text}");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak_kb < 64 * 1024, "{peak_kb} kB");
}

#[test]
fn turns_that_are_stopped_in_the_first_round_leave_what_there_is() {
    let (a, b) = (Server::start(|_| ok()), Server::start(|_| ok()));
    let json = file("turns-stopped");
    let (url_a, url_b) = (a.url(), b.url());
    let child = loadtest(&[
        "interleave",
        &url_a,
        "--with",
        &url_b,
        "--rate",
        "50",
        "--for",
        "10m",
        "--lag-max",
        "1s",
    ])
    .args(["--json-a", json.to_str().expect("UTF-8"), "--markdown", "-", "--assert-a", "err<1%"])
    .spawn()
    .expect("it starts");
    a.wait_for(20);
    kill_process(Pid::from_child(&child), Signal::INT).expect("it lives");
    let (output, text) = output(child);
    assert!(output.status.success(), "{text}");
    let result = read(&json);
    assert!(result.meta.partial && result.phases[0].total().ok == a.requests.load(SeqCst));
    for said in ["B had no turn", "in round 1 of 5", "A: ok    err<1%", "| **all** |"] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn turns_are_compared_in_files_and_judged_each_by_its_thresholds() {
    let (a, b) = (Server::start(|_| ok()), Server::start(|_| ok()));
    let arguments = [
        "interleave",
        &a.url(),
        "--with",
        &b.url(),
        "--rate",
        "50",
        "--for",
        "300ms",
        "--rounds",
        "2",
        "--lag-max",
        "1s",
    ];
    let run = |more: &[&str]| output(loadtest(&arguments).args(more).spawn().expect("it starts"));
    let (output, text) = run(&["--html", "-", "--assert-a", "err<1%", "--assert-b", "p99<1ns"]);
    assert_eq!(output.status.code(), Some(99), "{text}");
    for said in
        ["B against A", "</html>", "the median of the rounds' ratios", "A: ok    err<1%", "B: FAIL  p99<1ns"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    let (output, text) = run(&["--markdown", "-"]);
    assert!(output.status.success() && text.contains("| measure | A | B |"), "{text}");
}

#[test]
fn what_is_written_to_standard_output_stands_there_alone() {
    let server = Server::start(|_| ok());
    let url = server.url();
    let run = |more: &[&str]| {
        let arguments =
            ["run", &url, "--rate", "50", "--for", "300ms", "--lag-max", "1s", "--assert", "err<1%"];
        let output = loadtest(&arguments).args(more).spawn().expect("it starts").wait_with_output();
        let output = output.expect("it ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (text(output.stdout), text(output.stderr))
    };
    let (out, told) = run(&["--json", "-"]);
    let result: RunResult = serde_json::from_str(&out).expect("one result and nothing else");
    assert!(result.assertions[0].holds && told.contains("ok    err<1%"), "{told}");
    let (out, told) = run(&["--markdown", "-"]);
    assert!(
        out.contains("| **all** |") && !out.contains("ok    err<1%") && told.contains("ok    err<1%"),
        "{out}"
    );
    let (out, told) = run(&[]);
    assert!(out.contains("ok    err<1%") && !told.contains("ok    err<1%"), "{out}");
}

#[test]
fn the_proxy_s_cpu_and_counters_are_in_the_report() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /metrics" => Answer::Say(200, format!("requests_total {}\n", asked.number)),
        _ => ok(),
    });
    let json = file("counters");
    let (pid, metrics) = (std::process::id().to_string(), format!("{}metrics", server.url()));
    let arguments = [
        "run",
        &server.url(),
        "--rate",
        "100",
        "--for",
        "1200ms",
        "--lag-max",
        "1s",
        "--proxy-pid",
        &pid,
        "--metrics-url",
        &metrics,
        "--json",
        json.to_str().expect("UTF-8"),
    ];
    let (output, text) = output(loadtest(&arguments).spawn().expect("it starts"));
    assert!(output.status.success(), "{text}");
    let result = read(&json);
    let proxy = result.phases[0].proxy.clone().expect("watched");
    assert!(proxy.cpu_s > 0.0 && proxy.cpu_us_per_request > 0.0 && proxy.memory_max_bytes > 0, "{proxy:?}");
    let counters = result.server.expect("scraped");
    assert!(counters.gained()["requests_total"] >= 120.0, "{:?}", counters.gained());
    assert!(!counters.samples.is_empty() && counters.failures == 0);
    assert!(text.contains("µs CPU per request"), "{text}");
}

#[test]
fn a_metrics_page_that_says_nothing_is_told_everywhere() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /page" => Answer::Say(200, "<h1>5 metrics</h1>\nnot found\n".into()),
        _ => ok(),
    });
    let absent = format!("http://127.0.0.1:{}/metrics", free_port());
    for (metrics, why) in [(absent, "refused"), (format!("{}page", server.url()), "there is no metric on it")]
    {
        let arguments = [
            "run",
            &server.url(),
            "--rate",
            "20",
            "--for",
            "300ms",
            "--lag-max",
            "1s",
            "--metrics-url",
            &metrics,
        ];
        let (output, text) =
            output(loadtest(&[&arguments[..], &["--markdown", "-"]].concat()).spawn().expect("it starts"));
        assert!(output.status.success(), "{text}");
        let told = |start: &str| {
            text.lines().any(|line| {
                line.starts_with(start) && line.contains(why) && line.contains("could not be read")
            })
        };
        assert!(told("note: the metrics page") && told("> Note: the metrics page"), "{text}");
    }
}

#[test]
fn calls_that_may_not_be_counted_are_told_with_what_to_do_and_the_rest_is_measured() {
    let server = Server::start(|_| ok());
    let json = file("calls-refused");
    let pid = std::process::id().to_string();
    let mut command = Command::new("setpriv");
    // The kernel shows nobody the calls of a process that may do more than he.
    command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_loadtest"), "run"]);
    command.args([&server.url(), "--rate", "100", "--for", "1200ms", "--lag-max", "1s", "--proxy-pid", &pid]);
    command.args(["--count-calls", "--assert", "enters<1.2", "--json", json.to_str().expect("UTF-8")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (output, text) = output(command.spawn().expect("setpriv of util-linux"));
    let result = read(&json);
    assert_eq!(output.status.code(), Some(99), "a figure that is missing holds nothing: {text}");
    let proxy = result.phases[0].proxy.clone().expect("watched");
    assert!(proxy.calls.is_none() && proxy.cpu_s > 0.0 && result.validity.valid, "{proxy:?} {text}");
    let told: Vec<_> = text.lines().filter(|line| line.contains("system calls cannot be counted")).collect();
    assert!(matches!(told[..], [line] if line.contains("run as root")), "{text}");
}

#[test]
fn a_target_that_is_not_there_is_an_invalid_result_and_a_wrong_command_none() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let arguments = ["run", &url, "--rate", "20", "--for", "500ms", "--lag-max", "1s"];
    let (output_, text) = output(loadtest(&arguments).spawn().expect("it starts"));
    assert!(text.contains("connect refused"), "{text}");
    assert_eq!(output_.status.code(), Some(3), "nothing was measured: {text}");
    for (arguments, said) in [
        (&["run", "ftp://x", "--rate", "1"][..], "neither http nor https"),
        (&["run", "http://127.0.0.1:1"], "--rate"),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--for", "999999999999h"],
            "'--for <TIME>': `999999999999h` is longer than 31 days",
        ),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--auth", "cookie:1", "--domain", "x"],
            "--proxy-key-file",
        ),
        (&["scenario", "no-such-one", "http://127.0.0.1:1"], "no-such-one"),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--cpus", "0,9999"],
            "--cpus 9999: this process may run on ",
        ),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--cpus", "700"],
            "--cpus 700: this process may run on ",
        ),
        // Told before the load, not when it is over and lost.
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--for", "1h", "--json", "/no/such/folder/a.json"],
            "/no/such",
        ),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "--for", "1h", "--sources", "192.0.2.1"], "192.0.2.1"),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--json", "same.out", "--html", "same.out"],
            "same.out cannot take two",
        ),
        (
            &[
                "interleave",
                "http://127.0.0.1:1",
                "--with",
                "http://127.0.0.1:2",
                "--rate",
                "1",
                "--json-a",
                "same.out",
                "--json-b",
                "same.out",
            ],
            "same.out cannot take two",
        ),
        (&["run", "http://127.0.0.1:99999", "--rate", "1"], "its port is none from 1 to 65535"),
        (&["run", "http://::1", "--rate", "1"], "an IPv6 address stands in brackets"),
        // What no answer of the target's could make hold.
        (
            &[
                "run",
                "http://127.0.0.1:1",
                "--rate",
                "1",
                "--for",
                "1h",
                "--assert",
                "upload/p99<1s,cpu_us<9",
            ],
            "threshold `upload/p99<1s`: no class `upload`; there are path:/\nthreshold `cpu_us<9`: the proxy's process",
        ),
        (
            &[
                "interleave",
                "http://127.0.0.1:1",
                "--with",
                "http://127.0.0.1:2",
                "--rate",
                "1",
                "--assert-b",
                "idle.cut<1",
            ],
            "threshold `idle.cut<1`: this load holds no idle WebSockets",
        ),
        (
            &["find-max", "http://127.0.0.1:1", "--assert", "ws_echo.p99<9ms"],
            "threshold `ws_echo.p99<9ms`: no request of this load has a time `ws_echo`",
        ),
        (
            &["scenario", "smoke", "http://127.0.0.1:1", "--domain", "x", "--assert", "effect.no-such<1s"],
            "no change under this load is called `no-such`",
        ),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "--assert", "valid<1"], "write `valid` alone"),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "--assert", "err<1"], "is it 1% or 100%"),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "--proxy-pid", "0"], "`0` is no process"),
        (
            &["run", "http://127.0.0.1:1", "--rate", "1", "--domain", "http://x/"],
            "--domain `http://x/`: a name such as",
        ),
        (&["run", "http://127.0.0.1:1/x", "--rate", "1", "--domain", "x"], "leave out the URL's"),
        (
            &["run", "https://127.0.0.1:1", "--rate", "1", "--ca", "/dev/null"],
            "there is no certificate in it",
        ),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "-c", "0"], "connections: 0 is not within 1 to"),
        (
            &["interleave", "http://127.0.0.1:1", "--with", "127.0.0.1:2", "--rate", "1", "--for", "1h"],
            "no http:// or https://",
        ),
        (&["run", "http://127.0.0.1:1", "--rate", "0"], "`0` is no rate above 0"),
        (&["run", "http://127.0.0.1:1", "--rate", "1", "--timeout", "0s"], "timeout: above 0"),
    ] {
        let (output, text) = output(loadtest(arguments).spawn().expect("it starts"));
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

/// The binary with so many files to open.
fn limited(files: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_loadtest"), "run"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn sessions_that_may_need_more_files_than_there_are_to_open_are_refused_before_the_load() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let arguments =
        [&url, "--rate", "2k", "--for", "1s", "-t", "1", "--sessions-max", "850", "--mix", "page:20x8k"];
    let (output, text) = output(limited(1000, &arguments).spawn().expect("a shell"));
    assert_eq!(output.status.code(), Some(2), "{text}");
    let said = "may need 5228 open files, and this process may open 1000";
    assert!(
        text.contains(said) && text.contains("--sessions-max 850 (of pages and recordings, each is 6)"),
        "{text}"
    );
}

/// A timer each would be twice as many files as there are.
#[test]
fn sessions_whose_messages_are_timed_need_no_more_files_than_their_connections() {
    let server = Server::start(|_| Answer::Echo { corrupt_after: u32::MAX });
    let json = file("timers");
    let (url, json_text) = (server.url(), json.to_str().expect("UTF-8"));
    let mut arguments =
        vec![url.as_str(), "--rate", "200", "--for", "1500ms", "-t", "1", "-c", "8", "--json", json_text];
    arguments.extend(["--sessions-max", "320", "--mix", "ws:60x8@1s", "--lag-max", "10s", "-q"]);
    let (_, text) = output(limited(450, &arguments).spawn().expect("a shell"));
    let total = read(&json).phases[0].total();
    // All of them are open when the run is over.
    assert_eq!((total.ok, total.failed, total.shortened), (300, 0, 300), "{text}");
}

/// What they ask for would silently not be done.
#[test]
fn flags_that_mean_nothing_in_their_company_are_refused_with_what_is_missing() {
    let run = ["run", "http://127.0.0.1:1", "--for", "1s"];
    for (flags, missing) in [
        (&["--rate", "1", "--sandboxes", "100"][..], "--domain"),
        (&["--rate", "1", "--zipf", "1.1"], "--domain"),
        (&["--rate", "1", "--ports", "3000"], "--domain"),
        (&["--rate", "1", "--auth", "public"], "--domain"),
        (&["--rate", "1", "--bad-token", "1%"], "--domain"),
        (&["--rate", "1", "--cold", "1%"], "--domain"),
        (&["--rate", "1", "--toolbox", "1%"], "--domain"),
        (&["--rate", "1", "--population", "1"], "--domain"),
        (&["--rate", "1", "--proxy-key-file", "/dev/null"], "--domain"),
        (&["--rate", "1", "--ca", "/dev/null"], "https://"),
        (&["--rate", "1", "--insecure"], "https://"),
        (&["--rate", "1", "--streams", "32"], "--http2"),
        (&["--rate", "1", "--idle-rate", "1000"], "--idle"),
        (&["--closed", "--poisson"], "--rate"),
        (&["--idle", "1", "--fresh", "1%"], "--rate or --closed"),
        (&["--idle", "1", "--mix", "get:1k"], "--rate or --closed"),
        (&["--rate", "1", "--agent-key-file", "/dev/null"], "--agents"),
        (&["--rate", "1", "--agents", "127.0.0.1:1"], "--agent-key-file"),
    ] {
        let (output, text) = output(loadtest(&run).args(flags).spawn().expect("it starts"));
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(
            text.contains(missing)
                && flags
                    .iter()
                    .any(|flag| flag.starts_with("--") && *flag != "--rate" && text.contains(flag)),
            "{flags:?}: {text}"
        );
    }
    let scenario = ["scenario", "smoke", "http://127.0.0.1:1"];
    for (flags, missing) in [
        (&["--sandboxes", "5"][..], "--sandboxes"),
        (&[], "[workload]: without --domain there is no meaning in `sandboxes`"),
    ] {
        let (output, text) = output(loadtest(&scenario).args(flags).spawn().expect("it starts"));
        let told = text.contains("--domain") && text.contains(missing);
        assert!(output.status.code() == Some(2) && told, "{flags:?}: {text}");
    }
}

/// Errors are pasted into tickets and kept in CI's logs.
#[test]
fn what_may_be_a_secret_on_the_command_line_is_in_no_error() {
    let target = "http://127.0.0.1:1";
    for (arguments, said) in [
        (
            &["run", "--rate", "1", "--start", "TOKEN=s3cret ./gate"][..],
            "'--start <COMMAND>': `TOKEN=...` is no",
        ),
        (&["run", "--rate", "1", "--start", "env 'TOKEN=s3cret ./gate"], "a quote is open"),
        (&["run", "--rate", "1", "--start", "env", "A=1", "TOKEN=s3cret"], "'*** (word 7)'"),
        (&["interleave", "--start", "x", "--start-with", "TOKEN=s3cret y"], "--start-with <COMMAND>"),
        (&["run", "--start", "x", "--backend-args", "--proxy-key s3cret"], "--proxy-key has no meaning here"),
        (&["run", "--start", "x", "--backend-args=--proxy-key=s3cret"], "--proxy-key has no meaning here"),
        (&["run", "--start", "x", "--backend-args", "--proxy-kez s3cret"], "'--proxy-kez'"),
        (&["run", "--start", "x", "--backend-args", "--proxy-kez=s3cret"], "'--proxy-kez'"),
        (&["run", "--start", "x", "--backend-args", "--redis redis://:s3cret@x:1"], "--redis"),
        (&["run", "--start", "x", "--backend-args", "--threads 1 s3cret"], "'*** (word 3)'"),
        (&["backend", "--redis", ":s3cret@x:6379"], "'--redis <HOST:PORT>': no host with a port"),
        (&["backend", "--proxy-key", "my", "s3cret"], "'*** (word 4)'"),
        (&["backend", "--proxy-kez=s3cret"], "'--proxy-kez'"),
        (&["run", "http://user:s3cret@127.0.0.1:1", "--rate", "1"], "'[URL]': no user and password are sent"),
        (&["interleave", target, "--with", "http://a:s3cret@b", "--rate", "1"], "'--with <URL>': no user"),
        (
            &["run", target, "--rate", "1", "--metrics-url", "http://a:s3cret@b/m"],
            "'--metrics-url <URL>': no user",
        ),
        (&["scenario", "smoke", target, "--levers", "http://a:s3cret@b"], "'--levers <URL>': no user"),
        (
            &["run", target, "--rate", "1", "--mix", "path:/x?key=s3cret"],
            "'--mix <MIX>': `path:/x?***`: the weight",
        ),
        (
            &["run", target, "--rate", "1", "--mix", "path:x?key=s3cret=1"],
            "`path:x?***`: a path begins with /",
        ),
    ] {
        let (output, text) = output(loadtest(arguments).spawn().expect("it starts"));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(said) && !text.contains("s3cret"), "{arguments:?}: {text}");
    }
}

#[test]
fn shipped_scenarios_are_listed() {
    let (output, text) = output(loadtest(&["scenarios"]).spawn().expect("it starts"));
    assert!(output.status.success());
    for name in ["smoke", "browser-day", "api-storm", "agents", "idle-tunnels", "soak"] {
        assert!(text.contains(name), "{text}");
    }
}
