//! v0.190's behaviour, case by case: the same requests, byte for byte, and what must come back and reach the runner.
//!
//! `conformance/cases.json` holds them. `same`: v0.190's own recorded answer must be given. `better`: where v0.190 is
//! wrong or says more than it must, status, truncation and what the runner was sent are held to. `deviation`: we differ
//! on purpose, the reason beside it.

#[path = "support/free_port.rs"]
mod free_port;

use free_port::free_port;
use sandgate::cookie::{self, CookieKeys};
use sandgate::demo::record::{BodyRecord, RunnerRequest};
use sandgate::demo::spec::{
    PublicAnswer, RunnerAnswer, SandboxSpec, SandboxState, SignedToken, User, WorldSpec,
};
use sandgate::demo::world::World;
use serde_json::Value;
use sha1::{Digest, Sha1};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

const DEADLINE: Duration = Duration::from_secs(10);

/// The gate as a process; ended with the test.
struct Gate {
    child: Child,
    address: SocketAddr,
}

impl Gate {
    fn start(world: &World) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandgate"));
        command.env_clear().stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(sandgate::demo::environment(world, address.port()));
        // Whether a request that was not answered is sent again depends on a kept connection, which is one shard's.
        command.env("SANDGATE_SHARDS", "1");
        // Cases name other domains, too.
        command.env("SANDGATE_ALLOWED_DOMAINS", "");
        if let Ok(driver) = std::env::var("SANDGATE_TEST_DRIVER") {
            command.env("SANDGATE_DRIVER", driver);
        }
        let mut gate = Self { child: command.spawn().expect("the binary starts"), address };
        let begun = Instant::now();
        while TcpStream::connect(gate.address).is_err() {
            let ended = gate.child.try_wait().expect("a child of ours");
            assert!(ended.is_none() && begun.elapsed() < DEADLINE, "the gate does not listen: {ended:?}");
            std::thread::yield_now();
        }
        gate
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn world() -> World {
    let open = SandboxSpec::public;
    let status = |id: &str, status| open(id).with_public(PublicAnswer::Status(status));
    World::start(WorldSpec {
        sandboxes: vec![
            open("pub"),
            SandboxSpec::private("priv", "tokpriv"),
            SandboxSpec::private("other", "tokother"),
            open("norun").with_runner(RunnerAnswer::Status(404)),
            open("nourl").with_runner(RunnerAnswer::NoUrl),
            open("down").with_runner(RunnerAnswer::Refused),
            open("badurl").with_runner(RunnerAnswer::BadUrl),
            open("path").with_runner(RunnerAnswer::WithPath),
            open("run503").with_runner(RunnerAnswer::Status(503)),
            open("stopped").with_state(SandboxState::Stopped),
            open("gone").with_state(SandboxState::Gone),
            open("apihtml").with_public(PublicAnswer::Html),
            status("api503", 503),
            status("api429", 429),
            status("api500", 500),
        ],
        users: vec![User::new("dtn_good", &["priv", "other"]), User::new("dtn_other", &["other"])],
        signed: vec![
            SignedToken { token: "sgn3000token0001".into(), port: 3000, sandbox: "priv".into() },
            SignedToken { token: "sgn22222token001".into(), port: 22222, sandbox: "priv".into() },
        ],
        ..WorldSpec::default()
    })
    .expect("the world listens on loopback")
}

/// A response as a client sees it.
#[derive(Debug, Default)]
struct Answer {
    status: u64,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    truncated: bool,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

struct Reader {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Reader {
    fn more(&mut self) -> bool {
        let mut piece = [0; 65536];
        match self.stream.read(&mut piece) {
            Ok(n) if n > 0 => self.ahead.extend_from_slice(&piece[..n]),
            _ => return false,
        }
        true
    }

    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(mark.len()).position(|w| w == mark) {
                let rest = self.ahead.split_off(at + mark.len());
                let mut found = std::mem::replace(&mut self.ahead, rest);
                found.truncate(at);
                return Some(found);
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn exactly(&mut self, n: usize) -> (Vec<u8>, bool) {
        while self.ahead.len() < n && self.more() {}
        let rest = self.ahead.split_off(n.min(self.ahead.len()));
        let found = std::mem::replace(&mut self.ahead, rest);
        let short = found.len() < n;
        (found, short)
    }

    fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.ahead)
    }

    fn answer(&mut self, to_head: bool, after: &[u8]) -> Answer {
        let Some(head) = self.until(b"\r\n\r\n") else { return Answer::default() };
        let head: String = head.iter().map(|b| char::from(*b)).collect();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let field = |l: &str| l.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
        let mut answer = Answer { status, fields: lines.filter_map(field).collect(), ..Answer::default() };
        if status == 100 {
            return self.answer(to_head, after);
        }
        if status == 101 {
            // Everything said through the tunnel, until the echo of what we say last is there.
            self.stream.write_all(after).expect("the tunnel takes bytes");
            let echoed = self.until(if after.is_empty() { b"first" } else { after });
            answer.truncated = echoed.is_none();
        } else if to_head || matches!(status, 204 | 304) {
        } else if answer.field("transfer-encoding") == Some("chunked") {
            loop {
                let Some(line) = self.until(b"\r\n") else { break answer.truncated = true };
                let n = usize::from_str_radix(&String::from_utf8_lossy(&line), 16)
                    .expect("canonical chunk lines");
                if n == 0 {
                    while self.until(b"\r\n").is_some_and(|trailer| !trailer.is_empty()) {}
                    break;
                }
                let (data, short) = self.exactly(n + 2);
                answer.body.extend_from_slice(&data[..n.min(data.len())]);
                if short {
                    break answer.truncated = true;
                }
            }
        } else if let Some(n) = answer.field("content-length").map(|n| n.parse().expect("digits")) {
            (answer.body, answer.truncated) = self.exactly(n);
        } else {
            answer.body = self.rest();
        }
        answer
    }
}

/// As the recorded answers show a body.
fn shown(body: &[u8], whole_below: usize) -> String {
    if body.len() < whole_below {
        return body.iter().map(|b| char::from(*b)).collect();
    }
    format!("{} bytes sha1 {:x}", body.len(), Sha1::digest(body))
}

/// What hops set as they please.
const UNHELD_TO_CLIENT: [&str; 9] = [
    "date",
    "server",
    "connection",
    "x-request-id",
    "via",
    "keep-alive",
    "traceparent",
    "content-length",
    "transfer-encoding",
];
const UNHELD_TO_RUNNER: [&str; 12] = [
    "connection",
    "user-agent",
    "accept-encoding",
    "transfer-encoding",
    "content-length",
    "traceparent",
    "x-request-id",
    "te",
    "via",
    "forwarded",
    "x-forwarded-proto",
    "expect",
];

fn held(fields: &[(String, String)], unheld: &[&str]) -> Value {
    let named = fields.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.clone()));
    let mut held: Vec<_> = named.filter(|(n, _)| !unheld.contains(&n.as_str())).collect();
    held.sort();
    serde_json::json!(held)
}

/// A case's shortcomings, empty when it is as it must be.
fn judge(case: &Value, answer: &Answer, sent: &[RunnerRequest], runner: &str) -> Vec<String> {
    let mut short = Vec::new();
    let mut hold = |what: &str, got: Value, want: &Value| {
        if got != *want {
            short.push(format!("{what} is {got}, not {want}"));
        }
    };
    hold("status", answer.status.into(), &case["status"]);
    if !case["truncated"].is_null() {
        hold("truncated", answer.truncated.into(), &case["truncated"]);
    }
    if let Some(has) = case["has"].as_object() {
        for (name, values) in has {
            let got: Vec<_> = answer.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v).collect();
            hold(name, serde_json::json!(got), values);
        }
    }
    if case["kind"] == "same" {
        hold("fields", held(&answer.fields, &UNHELD_TO_CLIENT), &case["fields"]);
        if !case["body"].is_null() {
            hold("body", shown(&answer.body, 40_000).into(), &case["body"]);
        }
    }
    // A body that turned out invalid on its way: the runner may have seen its beginning, never its end. Such cases
    // come last, for what the runner sees of one may come late.
    let Some(wanted) = case["runner"].as_array() else {
        let whole = sent.iter().filter(|request| request.body != BodyRecord::Unread).count();
        hold("whole requests to the runner", whole.into(), &0.into());
        return short;
    };
    hold("requests to the runner", sent.len().into(), &wanted.len().into());
    for (got, want) in sent.iter().zip(wanted) {
        hold("line to the runner", got.line.clone().into(), &want["line"]);
        let body = match &got.body {
            BodyRecord::Bytes(bytes) => shown(bytes, 2000),
            BodyRecord::Digest { len, sha1 } => format!("{len} bytes sha1 {sha1}"),
            BodyRecord::Unread => String::new(),
        };
        hold("body to the runner", body.into(), &want["body"]);
        if case["kind"] == "same" {
            let fields: Vec<_> =
                got.headers.iter().map(|(n, v)| (n.clone(), v.replace(runner, "127.0.0.1:9600"))).collect();
            hold("fields to the runner", held(&fields, &UNHELD_TO_RUNNER), &want["fields"]);
        }
        let keys = got.values("x-daytona-authorization");
        hold("keys to the runner", serde_json::json!(keys), &serde_json::json!(["Bearer runner-key-1"]));
        if !case["cookies_to_runner"].is_null() {
            hold(
                "cookies to the runner",
                serde_json::json!(got.values("cookie")),
                &case["cookies_to_runner"],
            );
        }
        for ours in ["x-daytona-preview-token", "daytona-sandbox-auth-key"] {
            hold(ours, got.values(ours).len().into(), &0.into());
        }
    }
    short
}

/// `{cookie NAME VALUE AGE}` stands for a cookie made AGE seconds ago.
fn with_cookies(raw: &str, key: &str) -> String {
    let Some((before, rest)) = raw.split_once("{cookie ") else { return raw.to_owned() };
    let (marker, after) = rest.split_once('}').expect("a marker ends");
    let [name, value, age] = marker.split(' ').collect::<Vec<_>>().try_into().expect("three words");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let made_at = now.checked_add_signed(-age.parse::<i64>().expect("seconds")).expect("a time");
    let sealed = CookieKeys::new(key, []).seal(name, value.as_bytes(), made_at);
    format!("{before}{}{}", cookie::escape(sealed.as_bytes()), with_cookies(after, key))
}

fn latin1(text: &Value) -> Vec<u8> {
    text.as_str().expect("text").chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect()
}

#[test]
fn every_case_is_answered_as_v0190_does_or_better_and_every_deviation_has_a_reason() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("conformance/cases.json")).expect("JSON");
    let world = world();
    let gate = Gate::start(&world);
    let runner = world.runner_addr().to_string();
    let (mut passed, mut failed) = (0, Vec::new());
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        assert!(
            case["kind"] != "deviation" || case["reason"].is_string(),
            "{name} deviates without a reason"
        );
        world.clear();
        let text = with_cookies(case["raw"].as_str().expect("text"), &world.proxy_key());
        let mut raw = latin1(&text.into());
        if let Some(n) = case["fill"].as_u64() {
            raw.extend(b"0123456789abcdef".iter().cycle().take(n as usize));
        }
        let stream = TcpStream::connect(gate.address).expect("the gate accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        let mut reader = Reader { stream, ahead: Vec::new() };
        reader.stream.write_all(&raw).expect("the gate reads");
        let to_head = raw.starts_with(b"HEAD ");
        let answer = reader.answer(to_head, &latin1(&case["after"]));
        if case["two"] == true {
            assert_eq!(reader.answer(false, b"").status, 200, "{name}: the second answer");
        }
        if case["hold"] == true && answer.status >= 400 && answer.status != 404 {
            assert_eq!(reader.rest(), b"", "{name}: nothing behind a refusal is answered");
        }
        // The record of a request is complete once its answer is: the runner reads before it answers.
        let sent = world.log(|record| record.runner().cloned().collect::<Vec<_>>());
        match judge(case, &answer, &sent, &runner).as_slice() {
            [] => passed += 1,
            short => failed.push(format!("{name}: {}", short.join("; "))),
        }
    }
    assert!(failed.is_empty(), "{} fall short:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(passed, 136);
}
