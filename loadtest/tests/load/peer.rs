//! A scripted server, a thread per connection, and plans to send at it.

use loadtest::plan::{Action, Churn, Class, Client, Expectation, Load, Phase, Plan, Probe, Target, Workload};
use loadtest::quantity::Span;
use loadtest::result::RunResult;
use loadtest::run::{self, Observation};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// A request as the server sees it.
pub struct Asked {
    /// `GET /path`
    pub line: String,
    pub head: String,
    pub body_bytes: u64,
    /// Since the server's start.
    pub at: Duration,
    /// Of all requests, this is number.
    pub number: u64,
    pub peer: SocketAddr,
}

/// What to do with a request.
pub enum Answer {
    /// Status and body.
    Say(u16, String),
    /// Bytes as they stand, and the connection stays.
    Raw(Vec<u8>),
    /// As `Raw`, and then the end.
    Last(Vec<u8>),
    /// Answers 101 and echoes; after so many messages it corrupts one.
    Echo { corrupt_after: u32 },
    /// Answers 101 and echoes; once, before so many messages have been answered, it takes so long.
    EchoWithStall { before: u32, stall: Duration },
    /// An event every so often, until the client leaves.
    Events { every: Duration },
    /// Answers 101 and holds; cuts after so long.
    Hold { cut_after: Option<Duration> },
}

pub fn ok() -> Answer {
    Answer::Say(200, "ok".into())
}

/// A server that lives as long as this does; its threads end with their connections.
pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
    pub connections: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Server {
    pub fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (requests, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let (counted, connected, ending, script) =
            (requests.clone(), connections.clone(), over.clone(), Arc::new(script));
        let begun = Instant::now();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                connected.fetch_add(1, SeqCst);
                let (script, counted) = (script.clone(), counted.clone());
                thread::spawn(move || drop(serve(stream, begun, &*script, &counted)));
            }
        });
        Self { address, requests, connections, over }
    }

    /// Waits until so many requests have come.
    pub fn wait_for(&self, requests: u64) {
        let begun = Instant::now();
        while self.requests.load(SeqCst) < requests {
            assert!(begun.elapsed() < Duration::from_secs(30), "no load");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(
    stream: TcpStream,
    begun: Instant,
    script: &dyn Fn(&Asked) -> Answer,
    counted: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut line, mut head, mut length) = (String::new(), String::new(), 0u64);
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            if field.trim().is_empty() {
                break;
            }
            if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            head.push_str(&field);
        }
        let body_bytes = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let asked = Asked {
            line: line.trim_end().trim_end_matches(" HTTP/1.1").into(),
            head,
            body_bytes,
            at: begun.elapsed(),
            number: counted.fetch_add(1, SeqCst),
            peer,
        };
        match script(&asked) {
            Answer::Say(status, body) => {
                write!(stream, "HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            }
            Answer::Raw(bytes) => stream.write_all(&bytes)?,
            Answer::Last(bytes) => return stream.write_all(&bytes),
            Answer::Echo { corrupt_after } => {
                stream.write_all(SWITCH)?;
                return echo(&mut reader, &mut stream, corrupt_after, &mut |_| {});
            }
            Answer::EchoWithStall { before, stall } => {
                stream.write_all(SWITCH)?;
                return echo(&mut reader, &mut stream, u32::MAX, &mut |n| {
                    if n == before {
                        thread::sleep(stall);
                    }
                });
            }
            Answer::Events { every } => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")?;
                loop {
                    stream.write_all(b"data: x\n\n")?;
                    thread::sleep(every);
                }
            }
            Answer::Hold { cut_after } => {
                stream.write_all(SWITCH)?;
                stream.set_read_timeout(cut_after)?;
                // Until the client leaves, or the time is up.
                return std::io::copy(&mut reader, &mut std::io::sink()).map(drop);
            }
        }
    }
}

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// Echoes short masked messages.
fn echo(
    reader: &mut impl Read,
    stream: &mut TcpStream,
    corrupt_after: u32,
    before: &mut dyn FnMut(u32),
) -> std::io::Result<()> {
    for n in 0.. {
        let mut head = [0; 6];
        reader.read_exact(&mut head)?;
        assert!(head[1] & 0x80 != 0 && head[1] & 0x7f < 126, "short and masked");
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        reader.read_exact(&mut payload)?;
        payload.iter_mut().zip(head[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        if head[0] & 0x0f == 8 {
            return Ok(());
        }
        if n >= corrupt_after {
            payload[0] ^= 1;
        }
        before(n);
        let mut frame = vec![0x82, payload.len() as u8];
        frame.extend_from_slice(&payload);
        stream.write_all(&frame)?;
    }
    Ok(())
}

/// A plan for a server that is no proxy: one phase of GET /.
pub fn plan(url: &str, load: Load, length_ms: u64) -> Plan {
    Plan {
        name: "test".into(),
        target: Target { url: url.into(), ..Target::default() },
        client: Client {
            threads: 1,
            connections: 16,
            // Twice as many files are within every machine's limit.
            sessions_max: 1000,
            grace: Span(Duration::from_secs(2)),
            // Machines that run tests are busy: lateness is judged where it is the matter.
            lag_max: Some(Span(Duration::from_secs(1))),
            ..Client::default()
        },
        workload: Workload::default(),
        recordings: Vec::new(),
        phases: vec![Phase {
            name: "p".into(),
            load,
            length: Span(Duration::from_millis(length_ms)),
            mix: vec![(Class::Path("/".into()), 1.0)],
            warmup: false,
            churn: Vec::new(),
            idle: None,
        }],
    }
}

/// A change 200 ms into its phase, and probes of the target itself that look for the effect for 20 s and for nothing more.
pub fn change(action: Action, effect: Expectation) -> Churn {
    Churn {
        name: "change".into(),
        at: Span(Duration::from_millis(200)),
        action,
        probe: Probe {
            sandbox: None,
            path: "/".into(),
            effect,
            recovery: false,
            every: Span(Duration::from_millis(2)),
        },
        within: Span(Duration::from_secs(20)),
        undo: None,
        if_possible: false,
    }
}

pub fn run(plan: Plan) -> RunResult {
    run_until(plan, &Arc::new(AtomicBool::new(false)))
}

pub fn run_until(plan: Plan, stop: &Arc<AtomicBool>) -> RunResult {
    run::run(&Arc::new(plan), &Observation::default(), stop, &mut |_| {}).expect("it runs")
}

pub fn codes(result: &RunResult) -> Vec<String> {
    result.validity.reasons.iter().map(|reason| reason.code.clone()).collect()
}
