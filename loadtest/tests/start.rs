//! `--start`: real backends and proxies, started by the binary for a run, and what is left of them when it is over.

#[path = "support/gate_binary.rs"]
mod gate_binary;

use gate_binary::gate_binary;
use loadtest::backend::PROXY_KEY;
use loadtest::result::RunResult;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// For whatever a busy machine takes its time for.
const PATIENCE: Duration = Duration::from_secs(60);

/// `loadtest` and what it says, line by line.
struct Loadtest {
    child: Child,
    lines: Receiver<Line>,
    said: Said,
}

/// Of one of its two streams, each told apart: whose next line comes first is for nobody to say.
enum Line {
    Out(String),
    Err(String),
}

#[derive(Default)]
struct Said {
    out: String,
    err: String,
}

impl Said {
    fn add(&mut self, line: Line) -> String {
        let (stream, line) = match line {
            Line::Out(line) => (&mut self.out, line),
            Line::Err(line) => (&mut self.err, line),
        };
        *stream += &line;
        line
    }

    fn all(&self) -> String {
        [&*self.err, &self.out].concat()
    }
}

impl Loadtest {
    /// With one thread in backend and gate, and no judgement of a busy machine's lateness.
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(words).args(["--lag-max", "60s"]);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        command.env("SANDGATE_SHARDS", "1").env("SANDGATE_LISTEN", "127.0.0.1");
        if let Ok(driver) = std::env::var("SANDGATE_TEST_DRIVER") {
            command.env("SANDGATE_DRIVER", driver);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As a shell at a terminal does.
        command.process_group(0);
        let mut child = command.spawn().expect("it starts");
        let (sender, lines) = channel();
        forward(child.stdout.take().expect("piped"), Line::Out, sender.clone());
        forward(child.stderr.take().expect("piped"), Line::Err, sender);
        Self { child, lines, said: Said::default() }
    }

    /// The next line with this text in it.
    fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let line = self.said.add(line);
            if line.contains(text) {
                return line;
            }
        }
        panic!("no `{text}`: {}", self.said.all())
    }

    /// The next one that says what was started.
    fn started(&mut self) -> Pid {
        let line = self.line("started ");
        let (_, rest) = line.split_once(" pid ").expect("with its number");
        let number = rest.split(',').next().and_then(|number| number.parse().ok());
        Pid::from_raw(number.expect("a number")).expect("none is 0")
    }

    /// Its exit code, none after a signal, and all it said: messages, then results.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => drop(self.said.add(line)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on: {}", self.said.all()),
            }
        }
        (self.child.wait().expect("a child").code(), self.said.all())
    }
}

impl Drop for Loadtest {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(from: impl Read + Send + 'static, stream: fn(String) -> Line, to: Sender<Line>) {
    let mut lines = BufReader::new(from);
    thread::spawn(move || {
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            // Nobody may want to know any more.
            drop(to.send(stream(String::from_utf8_lossy(&line).into_owned())));
            line.clear();
        }
    });
}

/// No such process, or one that nobody has waited for yet.
fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim().starts_with('Z')))
}

fn await_gone(pids: &[Pid]) {
    let deadline = Instant::now() + PATIENCE;
    for pid in pids {
        while !is_gone(*pid) {
            assert!(Instant::now() < deadline, "{pid} lives");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A folder of this test's own, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadtest-start-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn result(&self, name: &str) -> RunResult {
        serde_json::from_slice(&fs::read(self.0.join(name)).expect("it was written")).expect("a result")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn gate() -> String {
    gate_binary().to_str().expect("UTF-8").to_owned()
}

const ONE_THREAD: [&str; 2] = ["--backend-args", "--threads 1"];

#[test]
fn one_command_measures_a_proxy_with_all_that_is_known_of_it() {
    let (folder, gate) = (Folder::new("whole"), gate());
    let (json, html) = (folder.file("r.json"), folder.file("r.html"));
    let mut words = vec!["run", "--start", &gate, "--population", "7", "--rate", "100", "--for", "2s"];
    words.extend(["--auth", "public:3,token:3,bearer:2,cookie:2", "--bad-token", "5%", "--timeout", "60s"]);
    words.extend(["--json", &json, "--html", &html, "--assert", "err<=0%,cpu_us>0"]);
    words.extend(["--backend-args", "--threads 1 --fault 'path=/nowhere,status=503'"]);
    let mut run = Loadtest::start(&words);
    let pids = [run.started(), run.started()];
    let (code, said) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(pids.into_iter().all(is_gone), "{pids:?}: {said}");
    let result = folder.result("r.json");
    let total = result.phases[0].total();
    // Cookies with another key, and sandboxes of another population, would have been refused.
    assert_eq!((total.ok, total.failed), (200, 0), "{said}");
    let server = result.server.expect("the metrics page was found");
    assert!(server.gained().keys().any(|name| name.starts_with("preview_")), "{:?}", server.gained());
    let started = result.meta.started.expect("told");
    assert_eq!((&started.proxy, &result.meta.name), (&gate, &gate));
    assert_eq!(started.backend_args, words[words.len() - 1]);
    let page = fs::read_to_string(&html).expect("written");
    assert!(page.contains("loadtest backend --threads 1 --fault") && page.contains(&gate));
    for text in [&said, &page, &fs::read_to_string(&json).expect("written")] {
        assert!(!text.contains(PROXY_KEY));
    }
}

#[test]
fn a_scenario_finds_the_levers_and_a_search_its_rate() {
    let (folder, gate) = (Folder::new("others"), gate());
    let (file, json) = (folder.file("s.toml"), folder.file("r.json"));
    let text = "name = 's'\nabout = 'of a test'\n[client]\ntimeout = '60s'\n[[phase]]\nname = 'p'\nfor = '3s'\nrate = 20\n\
                mix = { 'get:1k' = 1 }\n[[phase.churn]]\nname = 'runner'\nat = '500ms'\nlever = 'restart-runner'\n\
                effect = 'fails'\nwithin = '60s'\n";
    fs::write(&file, text).expect("written");
    let common = ["--start", &gate, ONE_THREAD[0], ONE_THREAD[1], "-q", "--json", &json];
    let (code, said) = Loadtest::start(&[&["scenario", &file][..], &common].concat()).end();
    // That nothing failed but by the restart is for other tests.
    assert_eq!(code, Some(0), "{said}");
    let result = folder.result("r.json");
    let churn = &result.phases[0].churn[0];
    assert!(churn.error.is_none() && churn.effect_ms.is_some(), "{churn:?}");
    assert_eq!((result.meta.name.as_str(), result.meta.started.map(|s| s.proxy)), ("s", Some(gate.clone())));

    let search = ["--from", "20", "--to", "40", "--step", "300ms", "--p99", "60s", "--errors", "100%"];
    let (code, said) = Loadtest::start(&[&["find-max"][..], &common, &search].concat()).end();
    assert_eq!(code, Some(0), "{said}");
    let result = folder.result("r.json");
    assert_eq!(result.search.expect("a search").rate, Some(40.0));
    assert!(result.phases.iter().all(|phase| phase.proxy.as_ref().is_some_and(|used| used.cpu_s > 0.0)));
}

#[test]
fn two_proxies_take_turns_each_on_its_own_port() {
    let (folder, gate) = (Folder::new("turns"), gate());
    let (json_a, json_b) = (folder.file("a.json"), folder.file("b.json"));
    let other = format!("env SANDGATE_LOOKUP_RATE=100 {gate}");
    let mut words =
        vec!["interleave", "--start", &gate, "--start-with", &other, "--rate", "50", "--for", "300ms"];
    words.extend(["--rounds", "2", "--auth", "cookie", "--json-a", &json_a, "--json-b", &json_b]);
    words.extend(ONE_THREAD);
    let mut run = Loadtest::start(&words);
    let pids = [run.started(), run.started(), run.started()];
    let (code, said) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(pids.into_iter().all(is_gone), "{pids:?}: {said}");
    let results = [folder.result("a.json"), folder.result("b.json")];
    for ((result, command), pid) in results.iter().zip([&gate, &other]).zip(&pids[1..]) {
        assert_eq!(result.meta.started.as_ref().map(|started| &started.proxy), Some(command));
        assert!(said.contains(&format!("({command})")), "{said}");
        for phase in &result.phases {
            assert_eq!((phase.total().ok, phase.total().failed), (15, 0), "{said}");
            assert_eq!(phase.proxy.as_ref().map(|used| used.source.clone()), Some(format!("pid {pid}")));
        }
        assert!(result.server.is_some());
    }
    assert_ne!(results[0].config.target, results[1].config.target);
}

#[test]
fn a_proxy_gets_the_backend_s_settings_and_our_environment_and_no_key_is_shown() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.env("OURS", "passed on").env("REDIS_HOST", "forgotten").env("REDIS_TLS", "true");
    // No more than is shown of what it says.
    let names = "^(OURS|PROXY_API_KEY|DAYTONA_API_URL|PROXY_PROTOCOL|PROXY_PORT|METRICS_PORT|REDIS_[A-Z]*)=";
    let proxy = format!("env REDIS_PORT=6 sh -c 'env | grep -E \"{names}\"; exit 3'");
    command.args(["run", "--start", &proxy, "--rate", "1", ONE_THREAD[0], ONE_THREAD[1]]);
    let (code, said) = Loadtest::spawn(command).end();
    assert_eq!(code, Some(2), "{said}");
    for line in [
        &*format!("loadtest: the proxy `{proxy}` ended with exit status 3; it said last:"),
        "    OURS=passed on",
        "    PROXY_API_KEY=***",
        "    DAYTONA_API_URL=http://127.0.0.1:",
        "    PROXY_PROTOCOL=http",
        "    PROXY_PORT=1",
        "    METRICS_PORT=1",
        "    REDIS_PORT=6",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "{line}: {said}");
    }
    assert!(!said.contains("REDIS_HOST=") && !said.contains("REDIS_TLS="), "{said}");
    assert!(!said.contains(PROXY_KEY) && !said.contains("=4000"), "{said}");
}

#[test]
fn what_does_not_start_is_told_with_what_it_said() {
    let run = |more: &[&str]| {
        let words = [&["run", "--rate", "1", "--for", "1s"][..], more].concat();
        let mut run = Loadtest::start(&words);
        let backend = run.started();
        let (code, said) = run.end();
        assert!(is_gone(backend), "{said}");
        (code, said)
    };
    let folder = Folder::new("silent");
    let file = folder.file("pid");
    let silent = format!("sh -c 'echo $$ > {file}; echo waiting; exec sleep 600'");
    for (command, lines) in [
        (
            "./no-such-proxy --x",
            vec!["ended with exit status 127", "cannot run `./no-such-proxy`: No such file"],
        ),
        ("sh -c 'echo out; echo err >&2; kill -9 $$'", vec!["ended with signal 9", "    out", "    err"]),
        (&silent, vec!["does not answer on PROXY_PORT, 127.0.0.1:1", "within 200ms", "    waiting"]),
    ] {
        let (code, said) =
            run(&["--start", command, "--start-timeout", "200ms", ONE_THREAD[0], ONE_THREAD[1]]);
        assert_eq!(code, Some(2), "{said}");
        for line in lines {
            assert!(said.contains(line), "{line}: {said}");
        }
    }
    assert!(is_gone(pid_in(&file)));
    let cpu = first_cpu();
    let command = "sh -c 'grep Cpus_allowed_list /proc/self/status; exit 1'";
    let (_, said) = run(&["--start", command, "--start-cpus", &cpu]);
    assert!(said.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{said}");
}

/// That this process may use.
fn first_cpu() -> String {
    let allowed = rustix::thread::sched_getaffinity(None).expect("its own");
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("one").to_string()
}

/// A load that goes on until it is ended; the backend and the gate it has started.
fn under_load(more: &[&str]) -> (Loadtest, [Pid; 2]) {
    under_load_of(&gate(), more)
}

fn under_load_of(command: &str, more: &[&str]) -> (Loadtest, [Pid; 2]) {
    let words = ["run", "--start", command, "--rate", "50", "--for", "10m", ONE_THREAD[0], ONE_THREAD[1]];
    let mut run = Loadtest::start(&[&words[..], more].concat());
    let pids = [run.started(), run.started()];
    run.line("ended/s");
    (run, pids)
}

#[test]
fn a_proxy_or_a_backend_that_dies_ends_the_run_which_is_not_valid() {
    for (victim, name) in [(1, "the proxy `"), (0, "the backend ended")] {
        let folder = Folder::new(&format!("dies-{victim}"));
        let (run, pids) = under_load(&["--json", &folder.file("r.json")]);
        kill_process(pids[victim], Signal::KILL).expect("it lives");
        let (code, said) = run.end();
        assert_eq!(code, Some(3), "{said}");
        assert!(pids.into_iter().all(is_gone), "{pids:?}: {said}");
        let result = folder.result("r.json");
        assert!(result.meta.partial && !result.validity.valid && result.phases[0].total().ok > 0);
        let reason = &result.validity.reasons[0];
        assert_eq!((reason.code.as_str(), reason.fatal), ("process_ended", true));
        assert!(reason.message.starts_with(name), "{reason:?}");
        // What it said, which may hold secrets, is for the terminal alone.
        assert!(reason.message.ends_with("ended with signal 9"), "{reason:?}");
        assert!(said.contains(&format!("loadtest: {}; it said last:\n    ", reason.message)), "{said}");
    }
}

#[test]
fn ctrl_c_ends_the_load_and_then_all_that_was_started() {
    let folder = Folder::new("ctrl-c");
    let (run, pids) = under_load(&["--json", &folder.file("r.json")]);
    // A terminal tells all that run in the foreground.
    kill_process_group(Pid::from_child(&run.child), Signal::INT).expect("it lives");
    let (code, said) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(pids.into_iter().all(is_gone), "{pids:?}: {said}");
    let result = folder.result("r.json");
    // The proxy was there to the last.
    assert!(result.meta.partial && result.validity.valid, "{said}");
    assert_eq!(result.phases[0].total().failed, 0, "{said}");
}

#[test]
fn nothing_outlives_a_loadtest_that_is_killed() {
    let (run, pids) = under_load(&[]);
    assert!(pids.into_iter().all(|pid| !is_gone(pid)));
    kill_process(Pid::from_child(&run.child), Signal::KILL).expect("it lives");
    let (code, _) = run.end();
    assert_eq!(code, None);
    await_gone(&pids);
}

#[test]
fn what_a_script_started_ends_with_it() {
    let folder = Folder::new("script");
    let file = folder.file("pid");
    let command = format!("sh -c '{} & echo $! > {file}; wait'", gate());
    let words = ["run", "--start", &command, "--rate", "50", "--for", "300ms", ONE_THREAD[0], ONE_THREAD[1]];
    let (code, said) = Loadtest::start(&words).end();
    assert_eq!(code, Some(0), "{said}");
    await_gone(&[pid_in(&file)]);
}

fn pid_in(file: &str) -> Pid {
    let pid = fs::read_to_string(file).expect("written").trim().parse().expect("a number");
    Pid::from_raw(pid).expect("none is 0")
}

#[test]
fn what_a_proxy_started_may_end_in_peace_after_it() {
    let folder = Folder::new("peace");
    let (ready, file) = (folder.file("ready"), folder.file("peace"));
    let beside =
        format!("trap \"sleep 0.5; echo > {file}; exit\" TERM; echo > {ready}; while :; do sleep 0.05; done");
    let command = format!("sh -c '({beside}) & until [ -e {ready} ]; do sleep 0.05; done; exec {}'", gate());
    let words = ["run", "--start", &command, "--rate", "50", "--for", "300ms", ONE_THREAD[0], ONE_THREAD[1]];
    let (code, said) = Loadtest::start(&words).end();
    assert_eq!(code, Some(0), "{said}");
    assert!(fs::exists(&file).expect("a folder of ours"), "{said}");
}

#[test]
fn a_death_just_before_the_end_counts_though_its_output_goes_on() {
    let folder = Folder::new("late");
    // What it started holds its output open.
    let command = format!("sh -c 'sleep 600 & exec {}'", gate());
    let (run, pids) = under_load_of(&command, &["--json", &folder.file("r.json")]);
    kill_process(pids[1], Signal::KILL).expect("it lives");
    await_gone(&pids[1..]);
    // The user's first, whatever ended before.
    kill_process(Pid::from_child(&run.child), Signal::INT).expect("nobody has waited for it");
    let (code, said) = run.end();
    assert_eq!(code, Some(3), "{said}");
    let validity = folder.result("r.json").validity;
    assert_eq!((validity.valid, validity.reasons[0].code.as_str()), (false, "process_ended"));
}

#[test]
fn results_come_before_the_ends_and_a_second_signal_ends_all_at_once() {
    let folder = Folder::new("at-once");
    let (file, json) = (folder.file("pid"), folder.file("r.json"));
    // It ignores SIGTERM, so that the end of its group takes its time.
    let command = format!("sh -c 'trap \"\" TERM; sleep 600 & echo $! > {file}; exec {}'", gate());
    let words = ["run", "--start", &command, "--rate", "50", "--for", "300ms", "-q", "--json", &json];
    let mut run = Loadtest::start(&[&words[..], &ONE_THREAD].concat());
    // The first line is of the summary.
    run.line("");
    let stubborn = pid_in(&file);
    assert!(!is_gone(stubborn));
    assert_eq!(folder.result("r.json").phases[0].total().ok, 15);
    // Two of a kind may arrive as one.
    for signal in [Signal::INT, Signal::HUP] {
        kill_process(Pid::from_child(&run.child), signal).expect("nobody has waited for it");
    }
    run.end();
    await_gone(&[stubborn]);
}

#[test]
fn the_result_of_one_says_that_the_other_ended() {
    let (folder, gate) = (Folder::new("other-ends"), gate());
    let (json_a, json_b) = (folder.file("a.json"), folder.file("b.json"));
    let other = format!("env SANDGATE_LOOKUP_RATE=100 {gate}");
    let mut words = vec!["interleave", "--start", &gate, "--start-with", &other, "--rate", "50"];
    words.extend(["--for", "300ms", "--rounds", "1000", "--json-a", &json_a, "--json-b", &json_b]);
    words.extend(ONE_THREAD);
    let mut run = Loadtest::start(&words);
    let (_, a) = (run.started(), run.started());
    run.started();
    run.line("round 2");
    kill_process(a, Signal::KILL).expect("it lives");
    let (code, said) = run.end();
    assert_eq!(code, Some(3), "{said}");
    let ended = format!("the proxy `{gate}` ended with signal 9");
    for (name, fatal) in [("a.json", true), ("b.json", false)] {
        let result = folder.result(name);
        let reason = &result.validity.reasons[0];
        assert!(result.meta.partial && result.validity.valid != fatal, "{name}: {said}");
        assert_eq!((reason.code.as_str(), reason.fatal, &reason.message), ("process_ended", fatal, &ended));
    }
}

#[test]
fn flags_that_mean_nothing_together_are_refused_before_anything_starts() {
    let (url, gate) = ("http://127.0.0.1:1", "./proxy");
    let start = ["run", "--rate", "1", "--start", gate];
    let refused = |words: &[&str], said: &[&str]| {
        let (code, text) = Loadtest::start(words).end();
        assert_eq!(code, Some(2), "{words:?}: {text}");
        assert!(!text.contains("started"), "{text}");
        for said in said {
            assert!(text.contains(said), "{words:?}: {said}: {text}");
        }
    };
    for more in [
        &[url][..],
        &["--proxy-pid", "1"],
        &["--metrics-url", url],
        &["--proxy-key-file", "x"],
        &["--ca", "x"],
        &["--insecure"],
        &["--agents", "h:1", "--agent-key-file", "x"],
    ] {
        refused(&[&start[..], more].concat(), &["cannot be used with", "--start <COMMAND>"]);
    }
    refused(&["scenario", "smoke", "--start", gate, "--levers", url], &["--levers", "--start"]);
    refused(&["run", "--rate", "1"], &["<URL"]);
    for flag in [["--start-cpus", "0"], ["--backend-args", "--threads 1"], ["--start-timeout", "1s"]] {
        refused(&[&["run", url, "--rate", "1"][..], &flag].concat(), &["without --start", flag[0]]);
    }
    refused(&["run", url, "--rate", "1", "--count-calls"], &["--proxy-pid", "--start"]);
    refused(&[&start[..], &["--backend-args", "--seed 2"]].concat(), &["--seed", "--population"]);
    refused(&[&start[..], &["--start-cpus", "5000"]].concat(), &["--start-cpus 5000", "may run on"]);
    refused(&[&start[..], &["--backend-args", "--proxy-key x"]].concat(), &["--proxy-key has no meaning"]);
    refused(&["run", "--rate", "1", "--start", "x 'y"], &["quote"]);
    refused(&["run", "--rate", "1", "--start", "A=1 ./proxy"], &["`A=...`", "'env NAME=value ./proxy'"]);
    refused(&["run", "--rate", "1", "--start", "~/proxy"], &["`~/proxy`", "whole path"]);
    // Mistakes of the load itself are found as early.
    refused(&[&start[..], &["--closed"]].concat(), &["--closed"]);
    refused(&[&start[..], &["--zipf", "99"]].concat(), &["zipf"]);
    let turns = ["interleave", "--rate", "1"];
    refused(&[&turns[..], &["--start", gate]].concat(), &["--start-with"]);
    refused(&[&turns[..], &["--start", gate, "--with", url]].concat(), &["--with", "--start"]);
    let second = [url, "--start-with", gate];
    refused(&[&turns[..], &second].concat(), &["--start must start the first"]);
    refused(&[&turns[..], &second, &["--with", url]].concat(), &["--start must start the first"]);
    refused(&[&turns[..], &[url]].concat(), &["--with"]);
    let pid = ["--start", gate, "--start-with", gate, "--with-proxy-pid", "1"];
    refused(&[&turns[..], &pid].concat(), &["--with-proxy-pid", "--start"]);
}
