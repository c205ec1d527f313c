//! What the stages are measured with: heads as browsers, SDKs and apps send them, and a shard that has seen them before.

use sandgate::admission::Admission;
use sandgate::config::{Config, Environment};
use sandgate::cookie::CookieKeys;
use sandgate::deadlines::Watch;
use sandgate::forward::{Confine, RequestPlan, ResponsePlan, RunnerPath};
use sandgate::framing::ResponseBody;
use sandgate::grant::{Asker, Grant, authorize};
use sandgate::head::{Method, RequestHead, ResponseHead, Version};
use sandgate::ids::{Port, SandboxId};
use sandgate::limits::Limits;
use sandgate::log_writer::LogWriter;
use sandgate::mailbox::{Answer, Question, RunnerAddress, ToControl};
use sandgate::route::{Route, RouteRules, route};
use sandgate::shard::Shard;
use sandgate::target::{Target, locate};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// An asset, as a browser asks for it: 12 fields.
pub const BROWSER: &[u8] = b"GET /assets/index-4f2a91.js?v=3 HTTP/1.1\r\n\
Host: 3000-public0123456789abcd.preview.example\r\n\
Connection: keep-alive\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36\r\n\
Accept: */*\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: cors\r\n\
Sec-Fetch-Dest: script\r\n\
Referer: https://3000-public0123456789abcd.preview.example/\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-US,en;q=0.9\r\n\
Cookie: theme=dark; session=0d9f2c7b6a514e1f\r\n\r\n";

/// What a load generator sends.
pub const SHORT: &[u8] = b"GET / HTTP/1.1\r\nHost: 3000-public0123456789abcd.preview.example\r\n\r\n";

/// A private sandbox by preview token.
pub const HEADER_TOKEN: &[u8] = b"GET /api/items HTTP/1.1\r\n\
Host: 8080-private0123456789abc.preview.example\r\n\
X-Daytona-Preview-Token: q7c2m4p8x1z9k3v5\r\n\
Accept: application/json\r\n\
User-Agent: python-requests/2.32\r\n\r\n";

/// The toolbox of a sandbox by API key.
pub const BEARER: &[u8] = b"POST /toolbox/private0123456789abc/process/execute HTTP/1.1\r\n\
Host: proxy.example\r\n\
Authorization: Bearer dtn_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n\
Content-Type: application/json\r\n\
Content-Length: 31\r\n\
User-Agent: daytona-sdk/0.190\r\n\
Accept: */*\r\n\r\n";

/// What an app answers: 8 fields.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
Content-Type: text/javascript; charset=utf-8\r\n\
Content-Length: 1024\r\n\
Cache-Control: public, max-age=31536000, immutable\r\n\
ETag: W/\"400-198f1b5a2c8\"\r\n\
Date: Mon, 01 Sep 2025 10:00:00 GMT\r\n\
Vary: Origin\r\n\
Connection: keep-alive\r\n\
Keep-Alive: timeout=5\r\n\r\n";

pub const REQUEST_ID: &str = "0199-inputs-are-no-secret-and-36-long";
pub const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// A page's own request to a private sandbox, with the session cookie a login left.
pub fn cookie_request(keys: &CookieKeys) -> Vec<u8> {
    let name = "daytona-sandbox-auth-private0123456789abc";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let cookie = sandgate::cookie::escape(keys.seal(name, b"private0123456789abc", now).as_bytes());
    format!(
        "GET /api/items HTTP/1.1\r\nHost: 8080-private0123456789abc.preview.example\r\nAccept: */*\r\n\
         Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nCookie: theme=dark; {name}={cookie}\r\n\r\n"
    )
    .into_bytes()
}

/// `count` chunks of `size` bytes and the end.
pub fn chunked(count: usize, size: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..count {
        body.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        body.resize(body.len() + size, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

pub fn request<'b>(bytes: &'b [u8], limits: &Limits) -> RequestHead<'b> {
    RequestHead::parse(bytes, limits).expect("it is good").expect("it is whole")
}

pub fn response<'b>(bytes: &'b [u8], limits: &Limits) -> ResponseHead<'b> {
    ResponseHead::parse(bytes, Method::Get, limits).expect("it is good").expect("it is whole")
}

pub fn routed(head: &RequestHead<'_>) -> Route {
    route(head, RouteRules::default()).expect("it names something")
}

pub fn runner_path() -> RunnerPath {
    let sandbox = SandboxId::parse(b"public0123456789abcd").expect("an id");
    RunnerPath::Preview { sandbox, port: Port::parse(b"3000").expect("a port") }
}

pub fn request_plan(path: &RunnerPath) -> RequestPlan<'_> {
    RequestPlan {
        host: "10.0.3.17:3003",
        base_path: "",
        path,
        authorization: "Bearer 0123456789abcdef0123456789abcdef",
        strip_authorization: false,
        client_ip: CLIENT_IP,
        trusted_peer: false,
        scheme: "https",
        request_id: REQUEST_ID,
    }
}

pub fn response_plan() -> ResponsePlan<'static> {
    ResponsePlan {
        client_version: Version::Http11,
        framing: ResponseBody::Length(1024),
        close: false,
        request_id: REQUEST_ID,
        set_cookie: None,
        frame_ancestors: None,
        confine: Some(Confine { authority: b"3000-public0123456789abcd.proxy.example.com", own_host: true }),
        sharing: None,
        redirect_prefix: None,
    }
}

pub fn config() -> Arc<Config> {
    config_with(&[])
}

pub fn config_with(more: &[(&str, &str)]) -> Arc<Config> {
    let environment: Environment = [
        ("PROXY_PORT", "4000"),
        ("PROXY_PROTOCOL", "https"),
        ("PROXY_API_KEY", "a-key-that-opens-nothing-anywhere-0"),
        ("DAYTONA_API_URL", "http://127.0.0.1:1/api"),
        ("SANDGATE_VERDICT_TTL_SEC", "600"),
        ("SANDGATE_PUBLIC_TTL_SEC", "120"),
        ("SANDGATE_RUNNER_TTL_SEC", "3600"),
    ]
    .into_iter()
    .chain(more.iter().copied())
    .collect();
    Arc::new(Config::from_env(&environment).expect("the settings are good"))
}

/// What the shards of a gate share.
pub fn admission(config: &Config) -> Arc<Admission> {
    Arc::new(Admission::new(&config.admission))
}

/// The one who answers a shard's questions: `public…` sandboxes are, every proof is good, `runner` holds all.
pub fn answer(question: &Question, runner: &Arc<RunnerAddress>) -> Answer {
    match question {
        Question::Public(sandbox) if !sandbox.as_str().starts_with("public") => Answer::No,
        Question::SignedToken { .. } => {
            Answer::Sandbox(SandboxId::parse(b"private0123456789abc").expect("an id"))
        }
        Question::Runner { .. } => Answer::Runner(runner.clone()),
        _ => Answer::Yes,
    }
}

pub fn runner(addr: SocketAddr) -> Arc<RunnerAddress> {
    Arc::new(RunnerAddress {
        addrs: vec![addr],
        authority: addr.to_string(),
        base_path: String::new(),
        authorization: "Bearer 0123456789abcdef0123456789abcdef".into(),
    })
}

/// A shard without ring and tasks, and the questions it asks.
pub struct World {
    pub shard: Shard,
    pub limits: Limits,
    watch: Watch,
    questions: RefCell<mpsc::Receiver<ToControl>>,
    runner: Arc<RunnerAddress>,
    now: Instant,
}

impl World {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With further settings.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let config = config_with(settings);
        let (up, questions) = mpsc::channel(16);
        let log = LogWriter::spawn("log", Box::new(std::io::sink()), 1).expect("a thread");
        let limits = config.limits.clone();
        let runner = runner(SocketAddr::from(([10, 0, 3, 17], 3003)));
        let admission = admission(&config);
        let shard = Shard::new(0, config, admission, sandgate::ring::Driver::Epoll, up, log.sender());
        // No descriptor: nothing fires.
        let watch = shard.deadlines.watch(-1);
        Self { shard, limits, watch, questions: RefCell::new(questions), runner, now: Instant::now() }
    }

    fn asker(&self) -> Asker<'_> {
        Asker::new(&self.shard, &self.watch, CLIENT_IP, self.now)
    }

    /// Lets the shard see this request once, so that its caches know all about it.
    pub fn warm(&self, bytes: &[u8]) {
        let head = request(bytes, &self.limits);
        let route = routed(&head);
        let asker = self.asker();
        let grant = self.settle(authorize(&asker, &route, &head)).expect("it is granted");
        self.settle(locate(&asker, &grant, false)).expect("it is somewhere");
    }

    /// From the caches alone.
    pub fn granted(&self, route: &Route, head: &RequestHead<'_>) -> Grant {
        at_once(authorize(&self.asker(), route, head)).expect("it is granted")
    }

    /// From the caches alone.
    pub fn located(&self, grant: &Grant) -> Target {
        at_once(locate(&self.asker(), grant, false)).expect("it is somewhere")
    }

    /// Runs `stage` with everything it asks answered at once.
    fn settle<T>(&self, stage: impl Future<Output = T>) -> T {
        let (mut stage, mut context) = (pin!(stage), Context::from_waker(Waker::noop()));
        loop {
            if let Poll::Ready(done) = stage.as_mut().poll(&mut context) {
                return done;
            }
            while let Ok(ToControl::Ask { ticket, question, .. }) = self.questions.borrow_mut().try_recv() {
                let reply = Ok(answer(&question, &self.runner));
                self.shard.questions.answer(ticket, reply, Duration::from_secs(3600));
            }
        }
    }
}

/// A stage that has all it needs at hand ends with its first poll.
fn at_once<T>(stage: impl Future<Output = T>) -> T {
    match pin!(stage).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it had to ask"),
    }
}
