//! A gate as a process of its own, a scripted API, scripted runners and a client that reads strictly.

use super::strict;
use crate::free_port::free_port;
use sandgate::demo::world::World;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Port 3000 of a public sandbox.
pub const HOST: &str = "3000-sb1.preview.test";
/// The gate's service key.
pub const KEY: &str = "a-key-of-this-test-and-of-nothing-else";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Nothing here takes as long.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// What a connection received.
type Tape = Arc<Mutex<Vec<u8>>>;

/// One side of a connection, read message by message.
pub struct Wire {
    pub stream: TcpStream,
    ahead: Vec<u8>,
    tape: Option<Tape>,
}

/// A request or a response, whole.
#[derive(Debug, Clone)]
pub struct Message {
    pub first: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    pub fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or("")
    }

    pub fn is_response(&self) -> bool {
        self.first.starts_with("HTTP/")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn has_code(&self, code: &str) -> bool {
        self.field("X-Preview-Error-Code") == Some(code)
            && self.text().contains(&format!("\"code\":\"{code}\""))
    }
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout that is not zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout that is not zero");
        stream.set_nodelay(true).expect("TCP");
        Self { stream, ahead: Vec::new(), tape: None }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// A GET on this connection, and its answer.
    pub fn get(&mut self, path: &str) -> io::Result<Message> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
        self.expect_message()
    }

    /// `None`: the end came before the first byte.
    pub fn message(&mut self) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head()? else { return Ok(None) };
        message.body = self.body(&message)?;
        Ok(Some(message))
    }

    pub fn expect_message(&mut self) -> io::Result<Message> {
        self.message()?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    pub fn head(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                break end;
            }
            if self.fill()? == 0 {
                return if self.ahead.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        };
        let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
            if line.contains(['\r', '\n', '\0']) || name.contains([' ', '\t']) {
                return Err(ErrorKind::InvalidData.into());
            }
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Some(Message { first, fields, body: Vec::new() }))
    }

    pub fn body(&mut self, head: &Message) -> io::Result<Vec<u8>> {
        let of = |name: &str| head.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
        let (lengths, codings) = (of("Content-Length"), of("Transfer-Encoding"));
        if lengths + codings > 1 {
            return Err(ErrorKind::InvalidData.into());
        }
        if let Some(length) = head.field("Content-Length") {
            return self.exactly(length.parse().map_err(|_| ErrorKind::InvalidData)?);
        }
        if head.field("Transfer-Encoding").is_some() {
            return self.chunks();
        }
        let bodiless = !head.is_response() || head.status() < 200 || matches!(head.status(), 204 | 304);
        if bodiless { Ok(Vec::new()) } else { self.rest() }
    }

    pub fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < n {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.ahead.drain(..n).collect())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line = self.ahead.drain(..end + 2).take(end).collect::<Vec<u8>>();
                return String::from_utf8(line).map_err(|_| ErrorKind::InvalidData.into());
            }
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = !line.is_empty() && line.bytes().all(|b| b.is_ascii_hexdigit());
            let size =
                usize::from_str_radix(&line, 16).ok().filter(|_| digits).ok_or(ErrorKind::InvalidData)?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size)?);
            if !self.line()?.is_empty() {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        while !self.line()?.is_empty() {}
        Ok(body)
    }

    /// Everything up to the other side's end.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.ahead))
    }

    /// The other side sends nothing more: it has ended or reset the connection.
    pub fn is_over(&mut self) -> bool {
        match self.rest() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == ErrorKind::ConnectionReset && self.ahead.is_empty(),
        }
    }

    /// The same connection, for another thread. What was read ahead stays here.
    pub fn again(&self) -> Self {
        let stream = self.stream.try_clone().expect("a descriptor");
        Self { stream, ahead: Vec::new(), tape: self.tape.clone() }
    }

    /// The other side has ended or reset the connection, whatever lies unread.
    pub fn is_cut(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut polled = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        poll(&mut polled, Some(&rustix::event::Timespec::default())).expect("an open descriptor");
        polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    pub fn end_writing(&self) {
        // Already gone is ended too.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("an open socket");
    }

    pub fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 64 * 1024];
        let n = self.stream.read(&mut piece)?;
        self.ahead.extend_from_slice(&piece[..n]);
        if let Some(tape) = &self.tape {
            tape.lock().expect("no thread panics with it").extend_from_slice(&piece[..n]);
        }
        Ok(n)
    }

    pub fn take_ahead(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ahead)
    }
}

pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Records what each connection received; behaves as the test says.
pub struct Runner {
    pub addr: SocketAddr,
    tapes: Arc<Mutex<Vec<Tape>>>,
    forgets: Arc<AtomicBool>,
}

impl Runner {
    /// `behave` gets each connection and its number, from 0.
    pub fn start(behave: impl Fn(Wire, usize) + Send + Sync + 'static) -> Self {
        Self::start_at(LOOPBACK, behave)
    }

    pub fn start_at(ip: IpAddr, behave: impl Fn(Wire, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("the address has a free port");
        // Of hundreds at once the kernel loses one now and then where only 128 may wait: it falls back on SYN cookies, and resets
        // who sends on behind an acknowledgement it had to drop.
        rustix::net::listen(&listener, 4096).expect("more may wait");
        let addr = listener.local_addr().expect("it is bound");
        let tapes: Arc<Mutex<Vec<Tape>>> = Arc::default();
        let forgets = Arc::new(AtomicBool::new(false));
        let (all, behave, forgetting) = (tapes.clone(), Arc::new(behave), forgets.clone());
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let tape: Tape = Arc::default();
                all.lock().expect("no thread panics with it").push(tape.clone());
                let behave = behave.clone();
                let mut wire = Wire::new(stream);
                wire.tape = Some(tape).filter(|_| !forgetting.load(SeqCst));
                thread::spawn(move || behave(wire, number));
            }
        });
        Self { addr, tapes, forgets }
    }

    /// From now on connections are not recorded: their bytes are too many.
    pub fn forget(&self) {
        self.forgets.store(true, SeqCst);
    }

    /// Answers every whole request with its target.
    pub fn echo() -> Self {
        Self::start(|mut wire, _| {
            while let Ok(Some(request)) = wire.message() {
                if wire.send(ok(request.target())).is_err() {
                    return;
                }
            }
        })
    }

    /// What each connection carried so far, by the strict reader. Panics where a message was not canonical.
    pub fn streams(&self) -> Vec<strict::Stream> {
        let read = |bytes: &Vec<u8>| match strict::stream(bytes) {
            Ok(stream) => stream,
            Err(rule) => panic!("a runner received {rule}"),
        };
        self.received().iter().map(read).collect()
    }

    /// The bytes of each connection so far.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let tapes = self.tapes.lock().expect("no thread panics with it");
        tapes.iter().map(|t| t.lock().expect("no thread panics with it").clone()).collect()
    }
}

impl Drop for Runner {
    /// Whatever the test was about: everything that reached a runner was canonical.
    fn drop(&mut self) {
        if !thread::panicking() {
            self.streams();
        }
    }
}

/// What the API says, and how often it was asked.
pub struct Api {
    pub addr: SocketAddr,
    pub script: Arc<Script>,
}

pub struct Script {
    pub runner_ip: IpAddr,
    pub runner_port: AtomicU16,
    /// Of every answer.
    pub status: AtomicU16,
    pub runner_questions: AtomicUsize,
    pub questions: AtomicUsize,
    held: Mutex<Option<String>>,
    /// What it says from some moment on: until then it answers from memory.
    later: Mutex<Option<(Instant, u16)>>,
    trouble: Mutex<Option<Trouble>>,
    /// Sandboxes on a runner of their own, by port.
    elsewhere: Mutex<HashMap<String, u16>>,
    /// Of reports that a sandbox is in use; 0: they are left unanswered.
    pub activity_status: AtomicU16,
    /// Every request so far, as it came.
    asked: Mutex<Vec<Message>>,
    /// Other answers than the usual, by how the target begins.
    replies: Mutex<Vec<(String, u16, String)>>,
    changed: Condvar,
}

impl Api {
    pub fn start(runner: SocketAddr) -> Self {
        Self::start_at(LOOPBACK, runner)
    }

    pub fn start_at(ip: IpAddr, runner: SocketAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("the address has a free port");
        let addr = listener.local_addr().expect("it is bound");
        let script = Arc::new(Script {
            runner_ip: runner.ip(),
            runner_port: AtomicU16::new(runner.port()),
            trouble: Mutex::default(),
            later: Mutex::default(),
            elsewhere: Mutex::default(),
            status: AtomicU16::new(200),
            runner_questions: AtomicUsize::new(0),
            questions: AtomicUsize::new(0),
            held: Mutex::default(),
            activity_status: AtomicU16::new(201),
            asked: Mutex::default(),
            replies: Mutex::default(),
            changed: Condvar::new(),
        });
        let told = script.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let told = told.clone();
                thread::spawn(move || told.answer(Wire::new(stream)));
            }
        });
        Self { addr, script }
    }
}

/// What can be wrong with an API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    Closes,
    Silent,
    Garbage,
    /// `200`, and a page of somebody else's.
    Page,
    Status500,
    Status503,
    Status429,
}

impl Trouble {
    pub const ALL: [Self; 7] = [
        Self::Closes,
        Self::Silent,
        Self::Garbage,
        Self::Page,
        Self::Status500,
        Self::Status503,
        Self::Status429,
    ];

    fn answer(self) -> &'static str {
        match self {
            Self::Closes | Self::Silent => "",
            Self::Garbage => "true\r\n\r\n",
            Self::Page => "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>t",
            Self::Status500 => "HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\ntrue",
            Self::Status503 => "HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\ntrue",
            Self::Status429 => "HTTP/1.1 429 X\r\nContent-Length: 4\r\n\r\ntrue",
        }
    }
}

impl Script {
    /// Answers targets that begin like this with `status` and `body`. The first that fits counts; the same beginning
    /// again is answered anew.
    pub fn reply(&self, start: &str, status: u16, body: &str) {
        let mut replies = self.replies.lock().expect("no thread panics with it");
        match replies.iter_mut().find(|(known, ..)| known == start) {
            Some(known) => (known.1, known.2) = (status, body.into()),
            None => replies.push((start.into(), status, body.into())),
        }
    }

    fn replied(&self, target: &str) -> Option<(u16, String)> {
        let replies = self.replies.lock().expect("no thread panics with it");
        replies
            .iter()
            .find(|(start, ..)| target.starts_with(start))
            .map(|(_, status, body)| (*status, body.clone()))
    }

    /// Questions whose target ends like this wait for their answer until something else is held.
    pub fn hold(&self, end: Option<&str>) {
        *self.held.lock().expect("no thread panics with it") = end.map(str::to_owned);
    }

    fn is_held(&self, target: &str) -> bool {
        let held = self.held.lock().expect("no thread panics with it");
        held.as_ref().is_some_and(|end| target.ends_with(end))
    }

    /// The requests whose target ends like this, so far.
    pub fn asked(&self, end: &str) -> Vec<Message> {
        let asked = self.asked.lock().expect("no thread panics with it");
        asked.iter().filter(|request| request.target().ends_with(end)).cloned().collect()
    }

    /// Waits until there are so many of them.
    pub fn wait_for(&self, end: &str, count: usize) -> Vec<Message> {
        let begun = Instant::now();
        let mut asked = self.asked.lock().expect("no thread panics with it");
        loop {
            let found: Vec<_> = asked.iter().filter(|r| r.target().ends_with(end)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let left = DEADLINE.saturating_sub(begun.elapsed());
            assert!(!left.is_zero(), "{} of {count} requests to {end}", found.len());
            asked = self.changed.wait_timeout(asked, left).expect("no thread panics with it").0;
        }
    }

    /// The truth is this from now on, and for so long it goes on to say what it said.
    pub fn says_later(&self, status: u16, memory: Duration) {
        *self.later.lock().expect("no thread panics with it") = Some((Instant::now() + memory, status));
    }

    /// From the next question on; `None`: it is well.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        *self.trouble.lock().expect("no thread panics with it") = trouble;
    }

    pub fn send_to(&self, sandbox: &str, port: u16) {
        self.elsewhere.lock().expect("no thread panics with it").insert(sandbox.to_owned(), port);
    }

    fn answer(&self, mut wire: Wire) {
        while let Ok(Some(request)) = wire.message() {
            let activity = request.target().ends_with("/last-activity");
            self.asked.lock().expect("no thread panics with it").push(request.clone());
            self.changed.notify_all();
            if activity {
                let status = self.activity_status.load(SeqCst);
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                if status == 0 || wire.send(answer).is_err() {
                    // Held open until the gate gives up.
                    return drop(wire.rest());
                }
                continue;
            }
            if let Some((at, status)) = *self.later.lock().expect("no thread panics with it")
                && at <= Instant::now()
            {
                self.status.store(status, SeqCst);
            }
            let runner = request.target().starts_with("/api/runners/by-sandbox/");
            self.questions.fetch_add(1, SeqCst);
            while self.is_held(request.target()) {
                thread::sleep(Duration::from_millis(1));
            }
            let trouble = *self.trouble.lock().expect("no thread panics with it");
            if let Some(trouble) = trouble {
                let told = wire.send(trouble.answer());
                if trouble == Trouble::Silent {
                    let _ = wire.rest();
                }
                if told.is_err() || matches!(trouble, Trouble::Closes | Trouble::Silent | Trouble::Garbage) {
                    return;
                }
                continue;
            }
            self.runner_questions.fetch_add(usize::from(runner), SeqCst);
            let body = if runner {
                let sandbox = request.target().rsplit('/').next().unwrap_or_default();
                let elsewhere =
                    self.elsewhere.lock().expect("no thread panics with it").get(sandbox).copied();
                let port = elsewhere.unwrap_or_else(|| self.runner_port.load(SeqCst));
                format!("{{\"proxyUrl\":\"http://{}:{port}\",\"apiKey\":\"k\"}}", self.runner_ip)
            } else {
                "true".into()
            };
            let status = match self.status.load(SeqCst) {
                200 if request.first.starts_with("POST") => 201,
                status => status,
            };
            let (status, body) = self.replied(request.target()).unwrap_or((status, body));
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            if wire.send(answer).is_err() {
                return;
            }
        }
    }
}

/// Reads on in a thread of its own, so that the gate never waits for its reader.
fn collect(begun: String, from: impl BufRead + Send + 'static) -> Arc<Mutex<String>> {
    let all = Arc::new(Mutex::new(begun));
    let text = all.clone();
    thread::spawn(move || {
        for line in from.lines().map_while(Result::ok) {
            text.lock().expect("no thread panics with it").push_str(&(line + "\n"));
        }
    });
    all
}

/// Until not a byte more fits into the pipe.
fn fill(pipe: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut pipe = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(pipe).expect("a pipe");
    for size in [4096, 1] {
        while pipe.write(&vec![b'\n'; size]).is_ok() {}
    }
}

/// What is done with standard error once the gate listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    Read,
    /// The pipe is full, and nobody reads it.
    Blocked,
}

/// The process under test; killed when dropped.
pub struct Gate {
    pub child: Child,
    pub addr: SocketAddr,
    pub metrics: SocketAddr,
    /// Standard error so far.
    pub events: Arc<Mutex<String>>,
    /// The access log so far.
    pub access_log: Arc<Mutex<String>>,
    /// Of a gate whose events nobody reads: open.
    _unread: Option<BufReader<ChildStderr>>,
}

impl Gate {
    pub fn start(api: &Api, settings: &[(&str, &str)]) -> Self {
        Self::start_under(&[], api, settings)
    }

    /// `wrapper`: a command that runs the one behind it, such as `prlimit`.
    pub fn start_under(wrapper: &[&str], api: &Api, settings: &[(&str, &str)]) -> Self {
        Self::launch(wrapper, &format!("http://{}/api", api.addr), settings, Events::Read)
    }

    /// No line fits into its standard error any more.
    pub fn start_unheard(api: &Api, settings: &[(&str, &str)]) -> Self {
        Self::launch(&[], &format!("http://{}/api", api.addr), settings, Events::Blocked)
    }

    /// In front of a whole world, whose service key must be [`KEY`].
    pub fn before(world: &World, settings: &[(&str, &str)]) -> Self {
        Self::launch(&[], &world.api_url(), settings, Events::Read)
    }

    fn launch(wrapper: &[&str], api_url: &str, settings: &[(&str, &str)], then: Events) -> Self {
        let (port, metrics) = (free_port(), free_port());
        // Another build of the same may be measured.
        let gate = std::env::var("SANDGATE_TEST_GATE");
        let gate = gate.as_deref().unwrap_or(env!("CARGO_BIN_EXE_sandgate"));
        let mut words = wrapper.iter().copied().chain([gate]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words);
        command
            .env("DAYTONA_API_URL", api_url)
            .env("PROXY_PORT", port.to_string())
            .env("METRICS_PORT", metrics.to_string())
            .env("PROXY_PROTOCOL", "http")
            .env("PROXY_API_KEY", KEY)
            .env("SANDGATE_LISTEN", "127.0.0.1")
            .env("SANDGATE_SHARDS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Ok(driver) = std::env::var("SANDGATE_TEST_DRIVER") {
            command.env("SANDGATE_DRIVER", driver);
        }
        command.envs(settings.iter().copied());
        let mut child = command.spawn().expect("the binary starts");
        let mut events = BufReader::new(child.stderr.take().expect("it is piped"));
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains("sandgate is listening") {
            line.clear();
            let n = events.read_line(&mut line).expect("standard error is text");
            all.push_str(&line);
            assert!(n > 0, "the gate ended at its start: {all}");
        }
        let (told, unread) = match then {
            Events::Read => (collect(all, events), None),
            Events::Blocked => {
                fill(&format!("/proc/{}/fd/2", child.id()));
                (Arc::new(Mutex::new(all)), Some(events))
            }
        };
        let access_log = collect(String::new(), BufReader::new(child.stdout.take().expect("it is piped")));
        let at = |name: &str, port| {
            let ip = settings.iter().find(|(n, _)| *n == name).map(|(_, ip)| ip.parse().expect("an address"));
            SocketAddr::new(ip.unwrap_or(LOOPBACK), port)
        };
        let (addr, metrics) = (at("SANDGATE_LISTEN", port), at("SANDGATE_METRICS_LISTEN", metrics));
        Self { child, addr, metrics, events: told, access_log, _unread: unread }
    }

    /// The metrics page.
    pub fn page(&self) -> String {
        let mut wire = Wire::new(TcpStream::connect(self.metrics).expect("the metrics page listens"));
        wire.send("GET /metrics HTTP/1.1\r\nHost: m\r\n\r\n").expect("it reads");
        wire.expect_message().expect("the page").text()
    }

    /// One sample of it, by name and labels as they stand there.
    pub fn metric(&self, sample: &str) -> u64 {
        sample_of(&self.page(), sample)
    }

    /// Waits until the sample has the value.
    pub fn await_metric(&self, sample: &str, value: u64) {
        let begun = Instant::now();
        while self.metric(sample) != value {
            assert!(begun.elapsed() < DEADLINE, "{sample} is {}, not {value}", self.metric(sample));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Requests let in so far.
    pub fn authorized(&self) -> u64 {
        let page = self.page();
        let let_in = page.lines().filter(|line| line.starts_with("preview_auth_total{"));
        let let_in =
            let_in.filter(|line| !["missing", "invalid", "undecided"].iter().any(|no| line.contains(no)));
        let_in.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// What reached `runner` is canonical, and no more requests than were let in (or sent again).
    pub fn check(&self, runner: &Runner) {
        self.check_all(&[runner]);
    }

    pub fn check_all(&self, runners: &[&Runner]) {
        let streams = runners.iter().flat_map(|runner| runner.streams());
        let begun: usize = streams.map(|stream| stream.begun()).sum();
        let let_in = self.authorized() + self.metric("preview_upstream_retries_total");
        assert!(begun as u64 <= let_in, "a runner saw {begun} requests, {let_in} were let in");
    }

    pub fn connect(&self) -> Wire {
        Wire::new(TcpStream::connect(self.addr).expect("the gate listens"))
    }

    pub fn get(&self, path: &str) -> io::Result<Message> {
        self.connect().get(path)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.expect("a process id"), signal).expect("our own child");
    }

    /// Of the end that is awaited.
    pub fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status.code();
            }
            thread::yield_now();
        }
        panic!("the gate does not end");
    }

    /// CPU time spent, user and system, exact to 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let (_, behind_name) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks =
            |field: usize| behind_name.split_whitespace().nth(field).and_then(|n| n.parse::<u64>().ok());
        // utime and stime, in hundredths of a second.
        Duration::from_millis(10 * (ticks(11).expect("a number") + ticks(12).expect("a number")))
    }

    /// Resident memory in KiB that is no file's: pages of the program itself come with whatever is used of it first.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("a process has memory");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            let events = self.events.lock().expect("no thread panics with it");
            assert!(!events.contains("panicked"), "{events}");
        }
    }
}

pub fn sample_of(page: &str, sample: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {sample} on the page:\n{page}"))
}
