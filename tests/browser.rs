//! A real Chromium against the demo: what a person with a browser gets, and what hostile pages do not.

#[path = "support/free_port.rs"]
mod free_port;
#[path = "gate/harness.rs"]
#[allow(dead_code, reason = "this binary uses a part of it")]
mod harness;
#[path = "support/scene.rs"]
#[allow(dead_code, reason = "this binary uses a part of it")]
mod scene;
#[path = "gate/strict.rs"]
#[allow(dead_code, reason = "this binary uses a part of it")]
mod strict;

use harness::{Api, Gate, KEY, Runner};
use sandgate::cookie::{AUTH_PREFIX, CookieKeys, escape};
use scene::Scene;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

const DEADLINE: Duration = Duration::from_secs(10);

/// `sandgate demo` as a process.
struct Demo {
    child: Child,
    port: u16,
}

impl Demo {
    fn start() -> Self {
        let port = free_port::free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandgate"));
        command.args(["demo", "--port", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::piped());
        let driver = std::env::var("SANDGATE_TEST_DRIVER");
        if let Ok(driver) = &driver {
            command.env("SANDGATE_DRIVER", driver);
        }
        let mut child = command.spawn().expect("the binary starts");
        let events = child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(events).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("sandgate is listening")).expect("the demo listens");
        assert!(driver.is_err() || line.contains(&driver.unwrap_or_default()), "another driver: {line}");
        std::thread::spawn(move || lines.for_each(drop));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().expect("a child of ours");
            assert!(ended.is_none() && begun.elapsed() < DEADLINE, "the demo does not listen: {ended:?}");
            std::thread::yield_now();
        }
        Self { child, port }
    }

    /// The page's document as the browser has it once all of `parts` are in it, or at the deadline.
    fn document(&self, sandbox: &str, parts: &[&str]) -> String {
        Browser::open(&self.url(sandbox)).document(parts)
    }

    fn url(&self, sandbox: &str) -> String {
        format!("http://3000-{sandbox}.proxy.localhost:{}/", self.port)
    }
}

/// A headless Chromium with one page, driven over its DevTools protocol.
struct Browser {
    child: Child,
    page: WebSocket<MaybeTlsStream<TcpStream>>,
    calls: u64,
    _profile: Profile,
}

impl Browser {
    fn open(url: &str) -> Self {
        let browser = std::env::var("SANDGATE_TEST_CHROMIUM").unwrap_or_else(|_| "chromium".into());
        let profile = Profile::new();
        let mut child = Command::new(&browser)
            .args("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run".split(' '))
            .args("--disable-background-networking --disable-component-update --disable-sync".split(' '))
            .args(["--remote-debugging-port=0", &format!("--user-data-dir={}", profile.0.display())])
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{browser} does not start ({error}): apt-get install chromium"));
        let stderr = child.stderr.take().expect("piped");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let address = lines
            .find_map(|line| line.strip_prefix("DevTools listening on ws://").map(str::to_owned))
            .and_then(|rest| rest.split('/').next().map(str::to_owned))
            .expect("the browser says where its DevTools are");
        // The rest is noise, but a full pipe would hold the browser up.
        std::thread::spawn(move || lines.for_each(drop));
        let begun = Instant::now();
        let socket = loop {
            let pages: Vec<serde_json::Value> = serde_json::from_slice(&fetch(&address)).unwrap_or_default();
            let found = pages.iter().find(|page| page["type"] == "page");
            if let Some(socket) = found.and_then(|page| page["webSocketDebuggerUrl"].as_str()) {
                break socket.to_owned();
            }
            assert!(begun.elapsed() < DEADLINE, "the browser has no page");
            std::thread::yield_now();
        };
        let (page, _) = tungstenite::connect(socket).expect("the page's DevTools take us");
        let mut browser = Self { child, page, calls: 0, _profile: profile };
        browser.call("Page.navigate", &serde_json::json!({"url": url}));
        browser
    }

    /// The page's document as the browser has it once all of `parts` are in it, or at the deadline.
    fn document(&mut self, parts: &[&str]) -> String {
        let script = format!(
            "new Promise(done => {{
                const parts = {parts}, html = () => document.documentElement.outerHTML;
                const look = () => {{ if (parts.every(part => html().includes(part))) done(html()); }};
                new MutationObserver(look).observe(document, {{subtree: true, childList: true, characterData: true}});
                setTimeout(() => done(html()), {deadline});
                look();
            }})",
            parts = serde_json::json!(parts),
            deadline = DEADLINE.as_millis(),
        );
        self.evaluate(&script)
    }

    /// Waits for a page with `part` in it, and does something there.
    fn act(&mut self, part: &str, action: &str) {
        let document = self.document(&[part]);
        assert!(document.contains(part), "{part} is missing in:\n{document}");
        self.evaluate(&format!("{action}; 'done'"));
    }

    /// One call of the DevTools protocol, and its answer.
    fn call(&mut self, method: &str, parameters: &serde_json::Value) -> serde_json::Value {
        self.calls += 1;
        let call = serde_json::json!({"id": self.calls, "method": method, "params": parameters});
        self.page.send(Message::text(call.to_string())).expect("the browser listens");
        loop {
            let message = self.page.read().expect("the browser answers").into_data();
            let message: serde_json::Value = serde_json::from_slice(&message).expect("JSON");
            if message["id"] == self.calls {
                return message;
            }
        }
    }

    /// The text a promise of the page resolves to. A page that is replaced meanwhile (the first one, by the one
    /// asked for) takes its promises with it: then the next page is asked.
    fn evaluate(&mut self, script: &str) -> String {
        let begun = Instant::now();
        loop {
            let parameters =
                serde_json::json!({"expression": script, "awaitPromise": true, "returnByValue": true});
            let answer = self.call("Runtime.evaluate", &parameters);
            if let Some(text) = answer["result"]["result"]["value"].as_str() {
                return text.to_owned();
            }
            assert!(begun.elapsed() < DEADLINE, "the page does not answer: {answer}");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The list of the browser's pages.
fn fetch(address: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the DevTools listen");
    write!(stream, "GET /json/list HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("written");
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().expect("digits");
        }
        line.clear();
    }
    answer.resize(length, 0);
    reader.read_exact(&mut answer).expect("a whole answer");
    answer
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new, empty profile, removed with the test.
struct Profile(PathBuf);

impl Profile {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sandgate-browser-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory of our own");
        Self(path)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_page_loads_its_script_its_live_connection_opens_and_its_own_requests_pass() {
    let parts = [
        "You came through the gate",
        "WebSocket to /live is open",
        "GET /sandboxes/web/toolbox/proxy/3000/echo HTTP/1.1",
        "X-Forwarded-Host: 3000-web.proxy.localhost",
    ];
    let document = Demo::start().document("web", &parts);
    for part in parts {
        assert!(document.contains(part), "{part} is missing in:\n{document}");
    }
}

#[test]
fn a_private_sandbox_asks_who_is_there_and_opens_to_its_owner_alone() {
    let demo = Demo::start();
    let mut page = Browser::open(&demo.url("private"));
    let document = page.document(&["Log in to the demo"]);
    assert!(!document.contains("/sandboxes/private/"), "nothing of the sandbox is shown: {document}");
    page.act("id=\"owner\"", "document.getElementById('owner').click()");
    let document = page.document(&["/sandboxes/private/"]);
    assert!(document.contains("GET /sandboxes/private/toolbox/proxy/3000/ HTTP/1.1"), "{document}");
    assert!(!document.contains("daytona-"), "the app is sent no cookie of the gate's: {document}");

    for (button, code) in [("stranger", "LOGIN_NO_ACCESS"), ("nobody", "LOGIN_DENIED")] {
        let mut page = Browser::open(&demo.url("private"));
        page.act(&format!("id=\"{button}\""), &format!("document.getElementById('{button}').click()"));
        let document = page.document(&[code]);
        assert!(document.contains(code) && !document.contains("/sandboxes/private/"), "{button}: {document}");
    }
}

#[test]
fn a_person_logs_in_with_a_real_provider() {
    let scene = Scene::start();
    let mut page = Browser::open(&scene.url("priv", "/hello?a=b"));
    page.act(
        "name=\"login\"",
        "document.querySelector('[name=login]').value = 'alice';
         document.querySelector('[name=password]').value = 'any';
         document.querySelector('form').submit()",
    );
    page.act("value=\"consent\"", "document.querySelector('form').submit()");
    let document = page.document(&["/sandboxes/priv/"]);
    assert!(document.contains("GET /sandboxes/priv/toolbox/proxy/3000/hello?a=b HTTP/1.1"), "{document}");
    assert!(!document.contains("daytona-"), "the app is sent no cookie of the gate's: {document}");
}

/// A runner whose apps answer with these pages, by how the target ends (its query aside).
fn serving(pages: Vec<(String, String)>) -> Runner {
    Runner::start(move |mut wire, _| {
        while let Ok(Some(request)) = wire.message() {
            let path = request.target().split('?').next().unwrap_or_default();
            let page = pages.iter().find(|(end, _)| path.ends_with(end)).map(|(_, page)| page.as_str());
            let (status, body) = page.map_or(("404 Not Found", ""), |page| ("200 OK", page));
            let kind = if path.ends_with(".js") { "text/javascript" } else { "text/html" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nService-Worker-Allowed: /\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            if wire.send(answer).is_err() {
                return;
            }
        }
    })
}

/// What a page under the toolbox of one sandbox gets at in the origin it shares with all others: whether its own script
/// ran, a service worker for the origin, cookies, storage, and the origin.
fn reach_of_a_toolbox_page(settings: &[(&str, &str)]) -> String {
    let page = "<title>calm</title><script>document.title = 'ran'</script><p>hostile page</p>";
    let runner = serving(vec![("/page".into(), page.into()), ("/sw.js".into(), "onfetch = () => {}".into())]);
    let gate = Gate::start(&Api::start(runner.addr), settings);
    let base = format!("http://proxy.localhost:{}", gate.addr.port());
    let mut browser = Browser::open("about:blank");
    let planted = serde_json::json!({"url": base, "name": "planted", "value": "by-the-base-host"});
    browser.call("Network.setCookie", &planted);
    let token = "DAYTONA_SANDBOX_AUTH_KEY=tok";
    browser.call("Page.navigate", &serde_json::json!({"url": format!("{base}/toolbox/evil/page?{token}")}));
    assert!(browser.document(&["hostile page"]).contains("hostile page"));
    let tried = |what: &str| format!("try {{ said.push({what}) }} catch (error) {{ said.push(error.name) }}");
    let script = format!(
        "(async () => {{ const said = [document.title]; {}; {}; {}; said.push(self.origin); return said.join(' ') }})()",
        tried(&format!(
            "(await navigator.serviceWorker.register('/toolbox/evil/sw.js?{token}', {{scope: '/'}})).scope"
        )),
        tried("document.cookie"),
        tried("(localStorage.x = 'stored')"),
    );
    browser.evaluate(&script).replace(&base, "base")
}

#[test]
fn a_hostile_toolbox_page_gets_neither_a_service_worker_nor_what_the_base_origin_holds() {
    assert_eq!(reach_of_a_toolbox_page(&[]), "calm SecurityError SecurityError SecurityError null");
    // Left alone, it is a page of the base origin; a service worker it has not even then.
    assert_eq!(
        reach_of_a_toolbox_page(&[("SANDGATE_CONFINE_APPS", "false")]),
        "ran TypeError planted=by-the-base-host stored base"
    );
}

#[test]
fn a_private_page_is_shown_in_a_frame_of_its_own_sandbox_and_not_in_a_siblings() {
    const SECRET: &str = "/sandboxes/priv/toolbox/proxy/3000/secret";
    let free = free_port::free_port();
    let holder = |note: &str| {
        format!(
            "<body>{note}<script>onmessage = e => document.body.append('frame says ' + e.data)</script>\
             <iframe src=\"http://3000-priv.proxy.localhost:{free}/secret\" \
             onload=\"document.body.append('frame is ' + 'there')\"></iframe></body>"
        )
    };
    let secret = "<p>a private page</p><script>parent.postMessage('shown', '*')</script>";
    let runner = serving(vec![
        ("/sandboxes/evil/toolbox/proxy/3000/".into(), holder("a sibling's page")),
        ("/sandboxes/priv/toolbox/proxy/8080/".into(), holder("an own page")),
        (SECRET.into(), secret.into()),
    ]);
    let api = Api::start(runner.addr);
    api.script.reply("/api/preview/priv/public", 404, "{}");
    let gate = Gate::start(&api, &[("PROXY_PORT", &free.to_string())]);
    let name = format!("{AUTH_PREFIX}priv");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let session = CookieKeys::new(KEY, []).seal(&name, b"priv", now);
    let session = serde_json::json!({
        "name": name, "value": escape(session.as_bytes()), "domain": ".proxy.localhost", "path": "/",
        "sameSite": "Lax", "httpOnly": true,
    });
    let open = |label: &str, parts: &[&str]| {
        let mut browser = Browser::open("about:blank");
        let set = browser.call("Network.setCookie", &session);
        assert_eq!(set["result"]["success"], true, "{set}");
        let url = format!("http://{label}.proxy.localhost:{free}/");
        browser.call("Page.navigate", &serde_json::json!({"url": url}));
        browser.document(parts)
    };
    let own = open("8080-priv", &["frame says shown"]);
    assert!(own.contains("an own page") && own.contains("frame says shown"), "{own}");
    let framed = |runner: &Runner| {
        let received = runner.received().concat();
        received.windows(SECRET.len()).filter(|w| *w == SECRET.as_bytes()).count()
    };
    let before = framed(&runner);
    let siblings = open("3000-evil", &["frame is there"]);
    assert!(siblings.contains("a sibling's page") && siblings.contains("frame is there"), "{siblings}");
    assert!(!siblings.contains("shown"), "{siblings}");
    assert_eq!(framed(&runner), before, "it is not even asked for in the visitor's name");
    drop(gate);
}
