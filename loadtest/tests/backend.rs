//! The backend over real sockets, byte for byte: what a proxy would see of the API, of the apps and of each fault.

use loadtest::backend::{ANSWERED_BY, Backend, BackendArgs, PROXY_KEY, Side};
use loadtest::population::{AuthKind, Population, Sandbox};
use loadtest::world;
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const SEED: u64 = 42;
const PUBLIC: Sandbox = Sandbox { index: 3, public: true };
const PRIVATE: Sandbox = Sandbox { index: 3, public: false };
const RUNNER_AUTHORIZATION: &str = "X-Daytona-Authorization: Bearer loadtest-runner-key\r\n";
/// For what must come, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

fn arguments() -> BackendArgs {
    BackendArgs {
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        api_port: 0,
        runner_port: 0,
        runner_addresses: None,
        share_ports: false,
        redis: None,
        redis_port: 0,
        proxy_port: 4000,
        seed: SEED,
        sandboxes: Some(100),
        proxy_key: PROXY_KEY.into(),
        threads: NonZeroUsize::new(2),
        connections_max: 1000,
        faults: Vec::new(),
        api_faults: Vec::new(),
        env_file: None,
    }
}

fn backend() -> Backend {
    Backend::start(&arguments()).expect("a backend on ports of the kernel's choice")
}

fn id(sandbox: Sandbox) -> String {
    Population::new(SEED).id(sandbox)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("the backend listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// An answer as its bytes say it.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).expect("a head"), 1, "the head ends early: {head:?}");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("ASCII")
}

/// One answer with a length; the connection stays.
fn read_answer(stream: &mut TcpStream) -> Answer {
    let head = read_head(stream);
    let status = head[9..12].parse().expect("a status");
    let mut answer = Answer { status, head, body: Vec::new() };
    let length = answer.field("content-length").map_or(0, |length| length.parse().expect("a length"));
    answer.body = vec![0; length];
    stream.read_exact(&mut answer.body).expect("the whole body");
    answer
}

fn ask(stream: &mut TcpStream, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: x\r\n{fields}{length}\r\n").expect("sent");
    stream.write_all(body).expect("sent");
    read_answer(stream)
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

fn api(backend: &Backend, method: &str, target: &str, key: &str) -> Answer {
    ask(&mut connect(backend.api()), method, target, &bearer(key), b"")
}

/// The runner's path of an app's path.
fn at(sandbox: Sandbox, path: &str) -> String {
    format!("/sandboxes/{}/toolbox/proxy/3000{path}", id(sandbox))
}

fn app(backend: &Backend, path: &str) -> Answer {
    ask(&mut connect(backend.runner()), "GET", &at(PUBLIC, path), RUNNER_AUTHORIZATION, b"")
}

fn send_get(stream: &mut TcpStream, path: &str, fields: &str) {
    let target = at(PUBLIC, path);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n{RUNNER_AUTHORIZATION}{fields}\r\n").expect("sent");
}

/// Sends a GET and reads until the connection ends: what came, and whether it ended in order.
fn read_to_end(backend: &Backend, path: &str) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut stream = connect(backend.runner());
    send_get(&mut stream, path, "Connection: close\r\n");
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(drop).map_err(|error| error.kind());
    (bytes, end)
}

fn body_of(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    &bytes[end + 4..]
}

#[test]
fn the_api_answers_as_the_real_one_for_every_sandbox_of_the_population() {
    let (backend, population) = (backend(), Population::new(SEED));
    let (public, private) = (id(PUBLIC), id(PRIVATE));
    let beyond = id(Sandbox { index: 100, public: true });
    let (token, key) = (population.token(PRIVATE), population.bearer(PRIVATE));
    let signed = population.signed(PRIVATE, 3000);
    let bad = population.bad(AuthKind::Token, PRIVATE, 1);
    for (target, with, status, body) in [
        (format!("preview/{public}/public"), PROXY_KEY, 200, "true"),
        (format!("preview/{private}/public"), PROXY_KEY, 404, ""),
        (format!("preview/{beyond}/public"), PROXY_KEY, 404, ""),
        ("preview/unknown/public".into(), PROXY_KEY, 404, ""),
        (format!("preview/{public}/public"), "wrong", 401, ""),
        (format!("preview/{private}/validate/{token}"), PROXY_KEY, 200, "true"),
        (format!("preview/{private}/validate/{bad}"), PROXY_KEY, 404, ""),
        (format!("preview/{private}/access"), &key, 200, "true"),
        (format!("preview/{private}/access"), "dtn_wrong", 401, ""),
        (format!("preview/{signed}/3000/sandbox-id"), PROXY_KEY, 200, private.as_str()),
        (format!("preview/{signed}/3001/sandbox-id"), PROXY_KEY, 403, ""),
        (format!("runners/by-sandbox/{beyond}"), PROXY_KEY, 404, ""),
        (format!("sandbox/{private}"), "dtn_wrong", 401, ""),
    ] {
        let answer = api(&backend, "GET", &format!("/api/{target}"), with);
        assert_eq!(answer.status, status, "{target}: {answer:?}");
        assert!(status != 200 || answer.text() == body, "{target}: {answer:?}");
    }
    let runner = api(&backend, "GET", &format!("/api/runners/by-sandbox/{private}"), PROXY_KEY).json();
    assert_eq!(runner["proxyUrl"], format!("http://{}", backend.runner()));
    assert_eq!(runner["apiKey"], "loadtest-runner-key");
    let sandbox = api(&backend, "GET", &format!("/api/sandbox/{private}"), &key).json();
    assert_eq!(sandbox["runnerId"], runner["id"]);
    let full = format!("/api/runners/{}/full", runner["id"].as_str().unwrap_or_default());
    assert_eq!(api(&backend, "GET", &full, PROXY_KEY).json(), runner);
    let activity = format!("/api/sandbox/{private}/last-activity");
    assert_eq!(api(&backend, "POST", &activity, PROXY_KEY).status, 201);
    assert_eq!(api(&backend, "GET", "/api/config", "").json()["oidc"]["clientId"], "loadtest");
    assert!(api(&backend, "GET", "/preview/x/public", PROXY_KEY).text().contains("dashboard"));

    let counted = backend.counters();
    assert_eq!(counted["api"]["requests"]["public"], 4);
    assert_eq!(counted["api"]["requests"]["activity"], 1);
}

#[test]
fn the_runner_wants_its_key_and_knows_only_its_sandboxes() {
    let backend = backend();
    let mut stream = connect(backend.runner());
    assert_eq!(ask(&mut stream, "GET", &at(PUBLIC, "/"), "", b"").status, 401);
    assert_eq!(ask(&mut stream, "POST", &at(PUBLIC, "/"), &bearer("wrong"), b"body").status, 401);
    let beyond = Sandbox { index: 100, public: true };
    assert_eq!(ask(&mut stream, "GET", &at(beyond, "/"), RUNNER_AUTHORIZATION, b"").status, 404);
    let answer = ask(&mut stream, "GET", &at(PUBLIC, "/x?y=1"), RUNNER_AUTHORIZATION, b"");
    let by = format!("{}:3000", id(PUBLIC));
    assert_eq!((answer.status, answer.field(ANSWERED_BY)), (200, Some(by.as_str())));
    assert_eq!((&answer.json()["path"], &answer.json()["query"]), (&"/x".into(), &"y=1".into()));
    let counted = backend.counters();
    assert_eq!(counted["runner"]["unauthorized"], 2);
    assert_eq!(counted["runner"]["connections"], 1, "refusals keep the connection");
}

#[test]
fn bytes_come_in_the_size_and_range_asked_for_and_are_always_the_same() {
    let backend = backend();
    let whole = app(&backend, "/bytes/1M").body;
    assert_eq!(whole.len(), 1 << 20);
    assert_eq!(app(&backend, "/bytes/1048576").body, whole);
    let mut stream = connect(backend.runner());
    let fields = format!("{RUNNER_AUTHORIZATION}Range: bytes=300000-700000\r\n");
    let part = ask(&mut stream, "GET", &at(PUBLIC, "/bytes/1M"), &fields, b"");
    assert_eq!((part.status, part.field("content-range")), (206, Some("bytes 300000-700000/1048576")));
    assert_eq!(part.body, whole[300_000..=700_000]);
    let fields = format!("{RUNNER_AUTHORIZATION}Range: bytes=2000000-\r\n");
    assert_eq!(ask(&mut stream, "GET", &at(PUBLIC, "/bytes/1M"), &fields, b"").status, 416);
    assert_eq!(ask(&mut stream, "GET", &at(PUBLIC, "/bytes/much"), RUNNER_AUTHORIZATION, b"").status, 404);
}

#[test]
fn an_upload_is_answered_with_its_length_and_hash_whatever_its_framing() {
    let backend = backend();
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut stream = connect(backend.runner());
    let target = at(PUBLIC, world::UPLOAD);
    let sized = ask(&mut stream, "POST", &target, RUNNER_AUTHORIZATION, &body).json();
    assert_eq!((&sized["bytes"], &sized["sha256"]), (&3_000_000.into(), &hash.as_str().into()));
    let fields = format!("{RUNNER_AUTHORIZATION}Transfer-Encoding: chunked\r\n");
    write!(stream, "POST {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").expect("sent");
    for chunk in body.chunks(65_537) {
        write!(stream, "{:x};ext=1\r\n", chunk.len()).expect("sent");
        stream.write_all(chunk).expect("sent");
        stream.write_all(b"\r\n").expect("sent");
    }
    stream.write_all(b"0\r\nx-trailer: 1\r\n\r\n").expect("sent");
    assert_eq!(read_answer(&mut stream).json(), sized);
}

#[test]
fn events_are_chunks_of_their_own_with_number_and_time() {
    let backend = backend();
    let (bytes, end) = read_to_end(&backend, "/events?count=3&every_ms=1");
    let text = std::str::from_utf8(body_of(&bytes)).expect("text");
    assert_eq!((end, text.matches("id: ").count()), (Ok(()), 3), "{text}");
    assert!(text.contains("id: 2\ndata: {\"sent_ns\":") && text.ends_with("0\r\n\r\n"), "{text}");
}

#[test]
fn a_websocket_echoes_messages_and_answers_with_its_subprotocol() {
    let backend = backend();
    let mut stream = connect(backend.runner());
    // The first frame is sent with the head: it must not be lost.
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\n{RUNNER_AUTHORIZATION}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: a, b\r\n\r\n",
        at(PUBLIC, world::WEBSOCKET)
    );
    let frame = [0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3];
    stream.write_all(&[request.as_bytes(), &frame].concat()).expect("sent");
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert!(head.contains("Sec-WebSocket-Protocol: a\r\n"), "{head}");
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).expect("the message back");
    assert_eq!(&echoed, b"\x82\x03abc");
    // Closing is answered with the same code.
    stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).expect("sent");
    let mut closing = Vec::new();
    stream.read_to_end(&mut closing).expect("an orderly end");
    assert_eq!(closing, [0x88, 0x02, 0x03, 0xe8]);
}

#[test]
fn an_address_nobody_can_connect_to_is_refused() {
    let args = BackendArgs { listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED), ..arguments() };
    let refused = Backend::start(&args).err().expect("refused");
    assert!(refused.to_string().contains("an address the proxy can connect to"), "{refused}");
}

#[test]
fn a_websocket_can_be_refused_by_a_fault() {
    let backend = backend();
    let mut stream = connect(backend.runner());
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n";
    send_get(&mut stream, "/ws?fault=status=503", upgrade);
    assert_eq!(read_answer(&mut stream).status, 503);
}

#[test]
fn a_page_names_assets_that_exist() {
    let backend = backend();
    let page = app(&backend, "/page?assets=5");
    let assets: Vec<&str> =
        page.text().split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(assets.len(), 5);
    for asset in assets {
        let answer = app(&backend, asset);
        assert!(answer.status == 200 && answer.body.len() >= 500, "{asset}");
    }
}

#[test]
fn a_reset_cuts_the_connection_and_no_byte_beyond_its_offset_leaves() {
    let backend = backend();
    for path in ["/bytes/1000?fault=reset@100", "/bytes/50?fault=reset@100"] {
        let (bytes, end) = read_to_end(&backend, path);
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{path}");
        // A reset may overtake bytes the reader has not taken yet, the head's too.
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        assert!(bytes.len() - head <= 100, "{path}");
    }
    let (bytes, end) = read_to_end(&backend, "/bytes/1000?fault=reset");
    assert_eq!((bytes.len(), end), (0, Err(ErrorKind::ConnectionReset)));
}

#[test]
fn a_truncated_answer_ends_in_order_after_exactly_so_many_bytes() {
    let backend = backend();
    let whole = app(&backend, "/bytes/1000").body;
    for at in [0, 1, 999] {
        let (bytes, end) = read_to_end(&backend, &format!("/bytes/1000?fault=truncate@{at}"));
        assert_eq!((end, body_of(&bytes)), (Ok(()), &whole[..at]));
        let head = String::from_utf8_lossy(&bytes[..bytes.len() - at]);
        assert!(head.contains("Content-Length: 1000\r\n"), "{head}");
    }
    // Chunked bodies are cut, too: there is no last chunk.
    let (bytes, end) = read_to_end(&backend, "/events?count=1000&fault=truncate@50");
    assert!(end == Ok(()) && !bytes.ends_with(b"0\r\n\r\n"));
}

#[test]
fn a_half_closed_connection_still_takes_what_the_peer_sends() {
    let backend = backend();
    let mut stream = connect(backend.runner());
    send_get(&mut stream, "/bytes/1000?fault=half-close@10", "");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an end");
    assert_eq!(body_of(&bytes).len(), 10);
    // A closed socket would answer the first of these with a reset. More than any buffer between the two takes:
    // somebody reads.
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    for _ in 0..256 {
        stream.write_all(&[b'x'; 65_536]).expect("the other side reads on");
    }
    stream.shutdown(Shutdown::Write).expect("our end");
}

#[test]
fn bytewise_answers_are_chunks_of_one_byte() {
    let backend = backend();
    let whole = app(&backend, "/bytes/20").body;
    let (bytes, end) = read_to_end(&backend, "/bytes/20?fault=bytewise");
    let mut expected: Vec<u8> =
        whole.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect();
    expected.extend_from_slice(b"0\r\n\r\n");
    assert_eq!((end, body_of(&bytes)), (Ok(()), expected.as_slice()));
}

#[test]
fn delays_and_slow_bodies_take_at_least_their_time() {
    let backend = backend();
    for (path, at_least_ms) in [
        ("/bytes/10?fault=delay=80ms", 80),
        ("/bytes/10?delay_ms=80", 80),
        ("/exec?ms=80", 80),
        // Two writes with a tenth of a second between them.
        ("/bytes/2000?fault=slow-write=10000/s", 100),
    ] {
        let begin = Instant::now();
        assert_eq!(app(&backend, path).status, 200, "{path}");
        assert!(begin.elapsed() >= Duration::from_millis(at_least_ms), "{path} took {:?}", begin.elapsed());
    }
    let (begin, target) = (Instant::now(), at(PUBLIC, "/upload?fault=slow-read=10000/s"));
    let answer = ask(&mut connect(backend.runner()), "POST", &target, RUNNER_AUTHORIZATION, &[0; 2000]);
    assert_eq!(answer.json()["bytes"], 2000);
    assert!(begin.elapsed() >= Duration::from_millis(200), "took {:?}", begin.elapsed());
}

#[test]
fn never_says_nothing_until_the_peer_gives_up() {
    let backend = backend();
    let mut stream = connect(backend.runner());
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    send_get(&mut stream, "/?fault=never", "");
    let error = stream.read(&mut [0; 1]).expect_err("nothing comes");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    stream.shutdown(Shutdown::Write).expect("our end");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(stream.read(&mut [0; 1]).expect("an orderly end"), 0);
}

#[test]
fn rules_befall_paths_and_both_sides_and_can_be_changed_at_run_time() {
    let rule = |text: &str| text.parse().expect("a good rule");
    let args = BackendArgs {
        faults: vec![rule("path=/status,status=503")],
        api_faults: vec![rule("path=/api/preview,status=502")],
        ..arguments()
    };
    let backend = Backend::start(&args).expect("a backend");
    let public = format!("/api/preview/{}/public", id(PUBLIC));
    assert_eq!((app(&backend, "/status/200").status, app(&backend, "/other").status), (503, 200));
    assert_eq!(api(&backend, "GET", &public, PROXY_KEY).status, 502);

    // A connection that is open already gets the new rules, too.
    let mut stream = connect(backend.runner());
    assert_eq!(ask(&mut stream, "GET", &at(PUBLIC, "/other"), RUNNER_AUTHORIZATION, b"").status, 200);
    let put = |side: &str, body: &[u8]| {
        ask(&mut connect(backend.api()), "PUT", &format!("/_load/faults/{side}"), "", body).status
    };
    assert_eq!((put("runner", b"path=/other,status=429\n\n"), put("runner", b"explode")), (204, 400));
    assert_eq!(ask(&mut stream, "GET", &at(PUBLIC, "/other"), RUNNER_AUTHORIZATION, b"").status, 429);
    backend.set_faults(Side::Api, Vec::new());
    assert_eq!(api(&backend, "GET", &public, PROXY_KEY).status, 200);
    assert_eq!(backend.counters()["faults"]["status"], 3);
    assert_eq!(app(&backend, "/x?fault=explode").status, 400);
}

#[test]
fn the_issuer_the_api_names_is_there_and_lets_nobody_in() {
    let backend = backend();
    let config = api(&backend, "GET", "/api/config", "").json();
    let issuer = config["oidc"]["issuer"].as_str().expect("named").to_owned();
    assert_eq!(issuer, format!("http://{}/oidc", backend.api()));
    let found = api(&backend, "GET", "/oidc/.well-known/openid-configuration", "").json();
    assert_eq!(found["issuer"], issuer.as_str());
    for name in ["authorization_endpoint", "token_endpoint", "jwks_uri"] {
        assert!(found[name].as_str().is_some_and(|url| url.starts_with(&issuer)), "{name}: {found}");
    }
    assert_eq!(api(&backend, "GET", "/oidc/jwks", "").json(), serde_json::json!({ "keys": [] }));
    for path in ["/oidc/authorize", "/oidc/token", "/oidc/"] {
        let answer = api(&backend, "GET", path, "");
        assert!(answer.status == 501 && answer.text().contains("nobody can log in"), "{path}: {answer:?}");
    }
}

#[test]
fn levers_change_what_the_api_says_at_once() {
    let (backend, population) = (backend(), Population::new(SEED));
    let lever = |target: &str| ask(&mut connect(backend.api()), "POST", target, "", b"");
    let says_yes = |question: &str| {
        api(&backend, "GET", &format!("/api/preview/{}/{question}", id(PUBLIC)), PROXY_KEY).status == 200
    };
    let sandbox = format!("{}{}", world::LEVER_SANDBOXES, id(PUBLIC));
    assert!(says_yes("public"));
    assert_eq!(lever(&format!("{sandbox}/visibility?public=false")).status, 204);
    assert!(!says_yes("public"));
    assert_eq!(lever(&format!("{sandbox}/visibility?public=true")).status, 204);
    assert!(says_yes("public"));
    assert_eq!(lever(&format!("{sandbox}/visibility")).status, 400);
    assert_eq!(lever("/_load/sandboxes/unknown/visibility?public=true").status, 404);

    let old = population.token(PUBLIC);
    assert!(says_yes(&format!("validate/{old}")));
    let rotated = lever(&format!("{sandbox}/rotate-token")).json();
    let new = rotated["token"].as_str().expect("the new token");
    assert!(says_yes(&format!("validate/{new}")) && !says_yes(&format!("validate/{old}")));

    assert_eq!(lever(&format!("{sandbox}/state?running=false")).status, 204);
    let stopped = app(&backend, "/");
    assert!(stopped.status == 400 && stopped.text().contains("Is the Sandbox started?"));
    assert_eq!(lever(&format!("{sandbox}/state?running=true")).status, 204);
    assert_eq!(app(&backend, "/").status, 200);
}

/// Ended or reset by the other side; silence is neither.
fn is_cut(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_restarted_runner_cuts_its_connections_and_listens_again_on_its_port() {
    let backend = backend();
    let mut streams: Vec<TcpStream> = (0..8).map(|_| connect(backend.runner())).collect();
    for stream in &mut streams {
        assert_eq!(ask(stream, "GET", &at(PUBLIC, "/"), RUNNER_AUTHORIZATION, b"").status, 200);
    }
    let lever = format!("{}?down_ms=1000", world::LEVER_RESTART_RUNNER);
    assert_eq!(ask(&mut connect(backend.api()), "POST", &lever, "", b"").status, 204);
    let refused = TcpStream::connect(backend.runner()).map(drop).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    for stream in &mut streams {
        assert!(is_cut(stream), "the connection is cut");
    }
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(backend.runner()).is_err() {
        assert!(Instant::now() < deadline, "the runner is not back");
        std::thread::yield_now();
    }
}

#[test]
fn sandboxes_are_spread_over_the_runners_addresses_and_a_restart_is_of_them_all() {
    let list = loadtest::run_args::sources("127.0.0.2-127.0.0.4").expect("a range");
    let backend =
        Backend::start(&BackendArgs { runner_addresses: Some(list), ..arguments() }).expect("a backend");
    let ips: Vec<String> = backend.runners().iter().map(|runner| runner.ip().to_string()).collect();
    assert_eq!(ips, ["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    for index in 0..6 {
        let sandbox = id(Sandbox { index, public: true });
        let runner = api(&backend, "GET", &format!("/api/runners/by-sandbox/{sandbox}"), PROXY_KEY).json();
        let place = backend.runners()[index as usize % 3];
        assert_eq!(runner["proxyUrl"], format!("http://{place}"));
        let full = format!("/api/runners/{}/full", runner["id"].as_str().unwrap_or_default());
        assert_eq!(api(&backend, "GET", &full, PROXY_KEY).json(), runner);
        let at = format!("/sandboxes/{sandbox}/toolbox/proxy/3000/");
        assert_eq!(ask(&mut connect(place), "GET", &at, RUNNER_AUTHORIZATION, b"").status, 200);
    }
    let lever = format!("{}?down_ms=60000", world::LEVER_RESTART_RUNNER);
    assert_eq!(ask(&mut connect(backend.api()), "POST", &lever, "", b"").status, 204);
    for runner in backend.runners() {
        let refused = TcpStream::connect(runner).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{runner}");
    }
}

#[test]
fn redis_is_told_of_changes_as_the_api_tells_it_and_a_deaf_one_is_named() {
    let redis = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = redis.local_addr().expect("bound").to_string();
    let backend =
        Backend::start(&BackendArgs { redis: Some(address.clone()), ..arguments() }).expect("a backend");
    let heard = std::thread::spawn(move || {
        // One connection for each lever; the last is refused.
        [&b":1\r\n"[..], b":0\r\n", b"-NOAUTH Authentication required.\r\n"].map(|answer| {
            let (mut stream, _) = redis.accept().expect("a lever was pulled");
            let mut text = vec![0; 1000];
            let n = stream.read(&mut text).expect("a command");
            stream.write_all(answer).expect("it reads");
            String::from_utf8_lossy(&text[..n]).into_owned()
        })
    });
    let sandbox = id(PUBLIC);
    let lever = |lever: &str| {
        let target = format!("{}{sandbox}/{lever}", world::LEVER_SANDBOXES);
        ask(&mut connect(backend.api()), "POST", &target, "", b"")
    };
    assert_eq!(lever("visibility?public=false").status, 204);
    assert_eq!(lever("state?running=false").status, 204);
    let deaf = lever("visibility?public=true");
    assert!(
        deaf.status == 502 && deaf.text().contains("NOAUTH") && deaf.text().contains(&address),
        "{deaf:?}"
    );
    let [deleted, published, _] = heard.join().expect("three commands");
    let key = format!("proxy:sandbox-public:{sandbox}");
    assert_eq!(deleted, format!("*2\r\n$3\r\nDEL\r\n${}\r\n{key}\r\n", key.len()));
    assert!(published.contains("sandbox.event.channel") && published.contains("\"newState\":\"stopped\""));
}

/// Where the settings say the proxy finds Redis.
fn redis_of(backend: &Backend) -> SocketAddr {
    let settings = backend.proxy_environment();
    let of = |wanted| settings.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
    let (host, port) = of("REDIS_HOST").zip(of("REDIS_PORT")).expect("told");
    format!("{host}:{port}").parse().expect("an address")
}

#[test]
fn a_proxy_reaches_redis_by_a_relay_that_a_lever_takes_away_for_a_while() {
    let redis = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let real = redis.local_addr().expect("bound");
    let backend =
        Backend::start(&BackendArgs { redis: Some(real.to_string()), ..arguments() }).expect("a backend");
    std::thread::spawn(move || {
        for stream in redis.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut text = [0; 16];
                while let Ok(n @ 1..) = stream.read(&mut text) {
                    stream.write_all(&text[..n]).expect("it reads");
                }
            });
        }
    });
    let relay = redis_of(&backend);
    assert_ne!(relay, real);
    let echoes = |stream: &mut TcpStream| {
        stream.write_all(b"PING").expect("open");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("answered");
        assert_eq!(&answer, b"PING");
    };
    let mut streams = [connect(relay), connect(relay)];
    streams.iter_mut().for_each(echoes);

    let lever = |down_ms| {
        let target = format!("{}?down_ms={down_ms}", world::LEVER_RESTART_REDIS);
        ask(&mut connect(backend.api()), "POST", &target, "", b"").status
    };
    assert_eq!(lever(1000), 204);
    let refused = TcpStream::connect(relay).map(drop).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    for stream in &mut streams {
        assert!(is_cut(stream), "the connection is cut");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut back = loop {
        assert!(Instant::now() < deadline, "Redis is not back");
        match TcpStream::connect(relay) {
            Ok(stream) => break stream,
            Err(_) => std::thread::yield_now(),
        }
    };
    echoes(&mut back);
    assert_eq!(backend.counters()["redis"]["connections"], 3);
}

#[test]
fn a_backend_without_redis_has_no_lever_for_it() {
    let backend = backend();
    let answer = ask(&mut connect(backend.api()), "POST", world::LEVER_RESTART_REDIS, "", b"");
    assert!(answer.status == 501 && answer.text().contains("--redis"), "{answer:?}");
    assert!(backend.proxy_environment().iter().all(|(name, _)| !name.starts_with("REDIS")));
}

#[test]
fn a_port_that_somebody_has_is_refused_unless_it_is_to_be_shared() {
    let first = backend();
    let args = BackendArgs { api_port: first.api().port(), ..arguments() };
    let error = Backend::start(&args).err().expect("taken");
    assert!(error.kind() == ErrorKind::AddrInUse && error.to_string().contains(&first.api().to_string()));
    let second = Backend::start(&BackendArgs { share_ports: true, ..args }).expect("its part");
    let asked = |backend: &Backend| backend.counters()["api"]["connections"].as_u64().expect("a number");
    let deadline = Instant::now() + PATIENCE;
    while asked(&first) == 0 || asked(&second) == 0 {
        assert!(Instant::now() < deadline, "both take connections");
        api(&first, "GET", "/api/config", "");
    }
}
