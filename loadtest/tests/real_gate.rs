//! Backend, gate and load as an operator starts them: three processes on loopback, and the result says what was there.

#[path = "../../tests/support/free_port.rs"]
mod free_port;
#[path = "support/gate_binary.rs"]
mod gate_binary;
#[path = "../../tests/support/redis_server.rs"]
#[allow(dead_code, reason = "the gate's tests need more of it")]
mod redis_server;

use free_port::free_port;
use gate_binary::gate_binary;
use loadtest::result::{ChurnResult, ClassResult, PhaseResult, RunResult};
use redis_server::RedisServer;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

/// A child of this test; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A backend and a gate before it.
struct Site {
    _backend: Process,
    gate: Process,
    port: u16,
    metrics: u16,
    /// Base URL of the backend's API.
    api: String,
    folder: PathBuf,
}

impl Site {
    fn start(name: &str, backend: &[&str], gate: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("loadtest-gate-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (port, metrics) = (free_port(), free_port());
        let environment = folder.join("gate.env");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(["backend", "--threads", "1", "--proxy-port", &port.to_string()]);
        command.arg("--env-file").arg(&environment).args(backend);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut backend = Process(command.spawn().expect("it starts"));
        let first = await_line(backend.0.stdout.take().expect("piped"), "API on ");
        let api = first.trim_start_matches("API on ").split(',').next().expect("an address").to_owned();

        let settings = std::fs::read_to_string(&environment).expect("it was written before the first line");
        let settings: BTreeMap<&str, &str> =
            settings.lines().filter_map(|line| line.split_once('=')).collect();
        std::fs::write(folder.join("key"), settings["PROXY_API_KEY"]).expect("written");
        let mut command = Command::new(gate_binary());
        command.envs(&settings).env("METRICS_PORT", metrics.to_string()).env("SANDGATE_LISTEN", "127.0.0.1");
        command.env("SANDGATE_SHARDS", "1").envs(gate.iter().copied());
        if let Ok(driver) = std::env::var("SANDGATE_TEST_DRIVER") {
            command.env("SANDGATE_DRIVER", driver);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut gate = Process(command.spawn().expect("the gate starts"));
        await_line(gate.0.stderr.take().expect("piped"), "sandgate is listening");
        Self { _backend: backend, gate, port, metrics, api: format!("http://{api}"), folder }
    }

    /// `loadtest` with this gate as its target: its exit code, what it said, and the result it wrote.
    fn load(&self, words: &[&str], more: &[&str]) -> (Option<i32>, String, RunResult) {
        let json = self.folder.join("result.json");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(words).arg(format!("http://127.0.0.1:{}", self.port));
        command.args(["--domain", "preview.test", "-q", "--proxy-pid", &self.gate.0.id().to_string()]);
        command.arg("--metrics-url").arg(format!("http://127.0.0.1:{}/metrics", self.metrics));
        command.arg("--proxy-key-file").arg(self.folder.join("key")).arg("--json").arg(&json);
        // Machines that run tests are busy: neither lateness nor patience is the matter here.
        let output = command.args(["--lag-max", "60s"]).args(more).stdin(Stdio::null()).output();
        let output = output.expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let text = std::fs::read(&json).unwrap_or_else(|error| panic!("no result ({error}): {said}"));
        (output.status.code(), said, serde_json::from_slice(&text).expect("a result"))
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).expect("it was written")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The first line with `text` in it. What comes behind is read and dropped, so that nobody waits for a reader.
fn await_line(from: impl Read + Send + 'static, text: &str) -> String {
    let mut lines = BufReader::new(from);
    let (mut line, mut all) = (String::new(), String::new());
    while !line.contains(text) {
        line.clear();
        assert!(lines.read_line(&mut line).expect("text") > 0, "it ended without `{text}`: {all}");
        all.push_str(&line);
    }
    thread::spawn(move || drop(std::io::copy(&mut lines, &mut std::io::sink())));
    line
}

/// All that was planned was sent, and ended as it should.
fn assert_clean(total: &ClassResult, said: &str) {
    assert_eq!(total.errors, [], "{said}");
    let kinds = (total.failed, total.unsent, total.unfinished);
    assert_eq!((total.ok, kinds), (total.planned, (0, 0, 0)), "{said}");
}

/// Every element is closed, in its order, and no figure is none.
fn assert_well_formed(html: &str) {
    const VOID: [&str; 5] = ["meta", "br", "hr", "col", "wbr"];
    assert!(html.starts_with("<!DOCTYPE html>"), "{}", &html[..40]);
    let mut open = Vec::new();
    for piece in html["<!DOCTYPE html>".len()..].split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag that ends");
        assert!(!text.contains("NaN") && !text.contains("inf "), "{text}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("a name").to_owned();
        match tag.starts_with('/') {
            true => assert_eq!(open.pop(), Some(name), "{tag}"),
            false if tag.ends_with('/') || VOID.contains(&name.as_str()) => {}
            false => open.push(name),
        }
    }
    assert_eq!(open, Vec::<String>::new());
}

#[test]
fn all_that_sandboxes_carry_passes_the_gate_and_every_bad_credential_is_refused() {
    let site = Site::start("all", &[], &[]);
    let html = site.folder.join("report.html");
    let mix = "get:1k=78,get:2M=4,upload:64k=8,exec:20ms=2,ws:5x32=3,sse:4x20ms=3,page:10x8k=2";
    let auth = "public:30,token:20,bearer:20,query:5,cookie:15,signed:10";
    let more = [
        ["--sandboxes", "200", "--auth", auth, "--bad-token", "1%", "--cold", "2%"],
        ["--toolbox", "10%", "--fresh", "5%", "--mix", mix, "--rate", "120"],
        ["--for", "5s", "--timeout", "60s", "--grace", "60s", "--idle", "100"],
    ];
    let mut more = more.concat();
    more.extend(["--idle-rate", "100", "--assert", "err<=0%,spliced>10%,cpu_us>0"]);
    more.extend(["--html", html.to_str().expect("UTF-8")]);
    let (code, said, result) = site.load(&["run"], &more);
    assert_eq!(code, Some(0), "{said}");
    let (phase, total) = (&result.phases[0], result.phases[0].total());
    assert_clean(&total, &said);
    assert_eq!(total.planned, 600);
    for (name, class) in &phase.classes {
        assert!(class.ok > 0, "no {name} was sent");
    }
    let class = |name: &str| &phase.classes[name];
    assert_eq!(class("ws:5x32").extra["ws_echo"].count() % 5, 0, "five echoes on each WebSocket");
    assert!(class("get:2M").bytes_down >= 2 << 20 && class("upload:64k").bytes_up >= 64 << 10);
    let idle = phase.idle.as_ref().expect("held");
    assert_eq!((idle.open, idle.failed, idle.lost), (100, 0, 0), "{said}");

    // The gate's own count of what it refused is the load generator's of what had to be.
    let server = result.server.as_ref().expect("scraped");
    let gained = server.gained();
    let refused: f64 = gained
        .iter()
        .filter(|(name, _)| name.starts_with("preview_auth_total{"))
        // A cookie that was not made with the key is none.
        .filter(|(name, _)| name.contains("invalid") || name.contains("missing"))
        .map(|(_, count)| count)
        .sum();
    assert!(total.refused_rightly > 0 && refused == total.refused_rightly as f64, "{refused} {gained:?}");
    for path in ["copy", "splice"] {
        let bytes = gained.iter().filter(|(name, _)| {
            name.starts_with("preview_bytes_total{") && name.contains(&format!("path=\"{path}\""))
        });
        assert!(bytes.map(|(_, bytes)| bytes).sum::<f64>() > 1e6, "{path}: {gained:?}");
    }
    let proxy = phase.proxy.as_ref().expect("watched");
    assert!(proxy.cpu_s > 0.0 && proxy.cpu_us_per_request > 0.0 && proxy.memory_max_bytes > 1 << 20);

    let page = site.text("report.html");
    assert_well_formed(&page);
    for text in ["get:2M", "ws:5x32", "spliced", "requests per core", "preview_bytes_total", "Thresholds"] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn a_changed_sandbox_a_restarted_runner_and_a_dead_redis_are_felt_in_the_time_reported() {
    let redis = RedisServer::start(&[]);
    let address = format!("127.0.0.1:{}", redis.port);
    // Without news a public sandbox stays open for longer than anybody waits here.
    let ttl = [("SANDGATE_PUSHED_PUBLIC_TTL_SEC", "3600")];
    let site = Site::start("changes", &["--redis", &address], &ttl);
    let file = site.folder.join("scenario.toml");
    // Sandbox 1000 is nobody's but the probes': requests of the load are not refused by what happens to it.
    let text = format!(
        "name = 'changes'\nabout = 'of a test'\n\
         [workload]\nsandboxes = 50\nauth = 'public:6,token:4'\n\
         [client]\nconnections = 32\ntimeout = '60s'\ngrace = '60s'\n\
         [[phase]]\nname = 'news'\nfor = '6s'\nrate = 60\nmix = {{ 'get:1k' = 95, 'ws:4x32' = 5 }}\n\
         [[phase.churn]]\nname = 'private'\nat = '1s'\nlever = 'private'\nsandbox = 1000\neffect = 'refused'\nwithin = '30s'\n\
         [[phase.churn]]\nname = 'public again'\nat = '3s'\nlever = 'public'\nsandbox = 1000\neffect = 'ok'\nwithin = '30s'\n\
         [[phase.churn]]\nname = 'no Redis'\nat = '5s'\ncommand = 'redis-cli -p {} shutdown nosave'\nauth = 'token'\n\
         sandbox = 1001\neffect = 'unharmed'\nwithin = '1s'\n\
         [[phase.churn]]\nname = 'Redis away'\nat = '4s'\nlever = 'restart-redis'\nauth = 'token'\n\
         sandbox = 1001\neffect = 'unharmed'\nwithin = '500ms'\n\
         [[phase]]\nname = 'restart'\nfor = '2s'\nrate = 60\nmix = {{ 'get:1k' = 1 }}\n\
         [[phase.churn]]\nname = 'runner'\nat = '500ms'\nlever = 'restart-runner'\nauth = 'token'\nsandbox = 1001\n\
         effect = 'fails'\nrecovery = true\nwithin = '30s'\n\
         [[phase]]\nname = 'after'\nfor = '1s'\nrate = 60\n",
        redis.port
    );
    std::fs::write(&file, text).expect("written");
    let (code, said, result) =
        site.load(&["scenario", file.to_str().expect("UTF-8")], &["--levers", &site.api]);
    assert_eq!(code, Some(0), "{said}");
    let [news, restart, after] = &result.phases[..] else { panic!("{said}") };
    let churn = |phase: &PhaseResult, name: &str| -> ChurnResult {
        let found = phase.churn.iter().find(|churn| churn.name == name).cloned().expect("reported");
        assert_eq!(found.error, None, "{name}");
        found
    };
    for name in ["private", "public again"] {
        let churn = churn(news, name);
        assert!(churn.effect_ms.is_some_and(|ms| ms > 0.0 && ms < 20_000.0), "{churn:?}");
    }
    for name in ["Redis away", "no Redis"] {
        assert_eq!(churn(news, name).effect_ms, None, "nobody felt it");
    }
    let runner = churn(restart, "runner");
    let (effect, recovered) = (runner.effect_ms.expect("felt"), runner.recovered_ms.expect("over"));
    // It was away for half a second.
    assert!(effect < recovered && recovered >= 400.0, "{runner:?}");
    assert_clean(&news.total(), &said);
    assert_clean(&after.total(), &said);
    let failed = restart.total();
    assert!(failed.failed > 0 && failed.ok > 0, "{said}");
    let theirs = failed.errors.iter().all(|error| error.source == "runner");
    assert!(theirs, "what went wrong was the runner's fault: {:?}", failed.errors);
}

/// The first thing a careful operator does with the settings the backend prints.
#[test]
fn the_doctor_finds_all_that_the_backend_s_settings_name() {
    let redis = RedisServer::start(&[]);
    let site = Site::start("doctor", &["--redis", &format!("127.0.0.1:{}", redis.port)], &[]);
    let settings = std::fs::read_to_string(site.folder.join("gate.env")).expect("written");
    let mut command = Command::new(gate_binary());
    command.arg("doctor").envs(settings.lines().filter_map(|line| line.split_once('=')));
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for item in ["api", "api key", "redis", "oidc"] {
        let line = said.lines().find(|line| line.get(6..20).is_some_and(|name| name.trim_end() == item));
        assert!(line.is_some_and(|line| line.starts_with("PASS")), "{item}: {said}");
    }
}

/// What the percentiles of wrk2 and the like are for: a tool that waits for answers before it asks on sees four slow
/// requests here, users would have seen a hundred.
#[test]
fn a_gate_that_stands_still_for_half_a_second_is_reported_as_its_users_felt_it() {
    let site = Site::start("still", &[], &[]);
    let file = site.folder.join("scenario.toml");
    let pid = site.gate.0.id();
    let text = format!(
        "name = 'still'\nabout = 'of a test'\n[client]\nconnections = 4\ntimeout = '60s'\ngrace = '60s'\n\
         [[phase]]\nname = 'p'\nfor = '3s'\nrate = 200\nmix = {{ 'get:1k' = 1 }}\n\
         [[phase.churn]]\nname = 'still'\nat = '1s'\ncommand = 'kill -STOP {pid}; sleep 0.5; kill -CONT {pid}'\n\
         effect = 'unharmed'\nwithin = '1s'\n"
    );
    std::fs::write(&file, text).expect("written");
    let (code, said, result) = site.load(&["scenario", file.to_str().expect("UTF-8")], &[]);
    assert_eq!(code, Some(0), "{said}");
    let (phase, total) = (&result.phases[0], result.phases[0].total());
    assert_clean(&total, &said);
    assert_eq!((total.planned, &phase.churn[0].error), (600, &None), "{said}");
    // A hundred of 600 were due meanwhile; four connections were under way.
    let (response, service) = (&total.response, &total.service);
    assert!(response.quantile_us(0.95) > 250_000.0 && response.quantile_us(0.99) > 400_000.0, "{said}");
    assert!(service.quantile_us(0.95) < response.quantile_us(0.95) / 2.0, "{said}");
    assert!(service.max_ns() > 400_000_000, "{said}");
}
