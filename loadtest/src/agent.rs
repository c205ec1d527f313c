//! Load from several hosts: agents wait for a coordinator, run its plan's parts and report as threads of its own.
//!
//! One TCP connection each, JSON by lines. Both sides know a key; it never travels: the agent asks with a nonce, the
//! coordinator answers with an HMAC over it and the plan. The plan itself (with the key that signs cookies, if any) travels
//! in the clear: the network between them must be a trusted one. An agent runs no commands.

use crate::plan::{Plan, Share};
use crate::result::ClientHost;
use crate::run::{Crew, Local};
use crate::worker::Report;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// Longest line: the results of a thread with many phases and classes.
const LINE_MAX: u64 = 64 << 20;
/// Both must be up to this; results go with the version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For what is answered at once.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// An agent tells each second.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Agent to coordinator.
#[derive(Serialize, Deserialize)]
enum FromAgent {
    Hello {
        version: String,
        nonce: String,
    },
    /// The plan is taken: so many threads will report.
    Crew {
        threads: u32,
        hosts: Vec<ClientHost>,
    },
    Report {
        thread: u32,
        report: Report,
    },
    Refused(String),
}

/// Coordinator to agent.
#[derive(Serialize, Deserialize)]
enum ToAgent {
    Plan { order: String, proof: String },
    Start { after_ms: u64 },
    Stop,
}

/// What the proof is over.
#[derive(Serialize, Deserialize)]
struct Order {
    plan: Plan,
    share: Share,
}

fn proof(key: &str, nonce: &str, order: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(nonce.as_bytes());
    mac.update(b"\0");
    mac.update(order.as_bytes());
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.is_ascii() && text.len().is_multiple_of(2);
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    digits.then(|| (0..text.len()).step_by(2).map(pair).collect())?
}

fn send<T: Serialize>(stream: &mut TcpStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: for<'de> Deserialize<'de>>(reader: &mut BufReader<TcpStream>) -> io::Result<T> {
    let mut line = String::new();
    reader.by_ref().take(LINE_MAX).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// Serves coordinators one after the other. `once`: only one. Tells each refusal and end on stderr.
pub fn serve(listener: &TcpListener, key: &str, once: bool) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept()?;
        eprintln!("{peer}: connected");
        match serve_one(stream, key) {
            Ok(()) => eprintln!("{peer}: done"),
            Err(error) => eprintln!("{peer}: {error}"),
        }
        if once {
            return Ok(());
        }
    }
}

fn serve_one(mut stream: TcpStream, key: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let nonce = hex(&rand::random::<[u8; 16]>());
    send(&mut stream, &FromAgent::Hello { version: VERSION.into(), nonce: nonce.clone() })?;
    let ToAgent::Plan { order, proof: shown } = receive(&mut reader)? else {
        return Err(io::Error::other("no plan"));
    };
    let shown = unhex(&shown).unwrap_or_default();
    if proof(key, &nonce, &order).verify_slice(&shown).is_err() {
        send(&mut stream, &FromAgent::Refused("the key is another one".into()))?;
        return Err(io::Error::other("refused: the key is another one"));
    }
    let Order { plan, share } = serde_json::from_str(&order)?;
    let (reports, inbox) = channel();
    let mut crew = match Local::spawn(&Arc::new(plan), share, reports) {
        Ok(crew) => crew,
        Err(error) => {
            send(&mut stream, &FromAgent::Refused(error.clone()))?;
            return Err(io::Error::other(error));
        }
    };
    let threads = crew.threads();
    send(&mut stream, &FromAgent::Crew { threads, hosts: crew.hosts() })?;
    // Orders come while reports go. A coordinator that is gone is one that says stop.
    reader.get_ref().set_read_timeout(None)?;
    let (orders, order_inbox) = channel();
    let listening = thread::spawn(move || {
        loop {
            let order = receive(&mut reader).unwrap_or(ToAgent::Stop);
            let last = matches!(order, ToAgent::Stop);
            if orders.send(order).is_err() || last {
                return;
            }
        }
    });
    let mut left = threads;
    let outcome = loop {
        while let Ok(order) = order_inbox.try_recv() {
            match order {
                ToAgent::Start { after_ms } => {
                    drop(crew.start(Duration::from_millis(after_ms.min(60_000))));
                }
                ToAgent::Stop => crew.stop(),
                ToAgent::Plan { .. } => {}
            }
        }
        match inbox.recv_timeout(Duration::from_millis(5)) {
            Ok((thread, report)) => {
                let last = matches!(report, Report::Done(_) | Report::Failed(_));
                if let Err(error) = send(&mut stream, &FromAgent::Report { thread, report }) {
                    break Err(error);
                }
                left -= u32::from(last);
                if left == 0 {
                    break Ok(());
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(error) => break Err(io::Error::other(error)),
        }
    };
    // Ends the listening thread's read.
    drop(stream.shutdown(std::net::Shutdown::Both));
    drop(listening.join());
    outcome
}

/// Agents as one crew.
pub struct Remote {
    agents: Vec<TcpStream>,
    threads: u32,
    hosts: Vec<ClientHost>,
    over: Arc<AtomicBool>,
}

impl Remote {
    /// Hands each agent its part of the plan. `Err` names the agent.
    pub fn connect(
        names: &[String],
        key: &str,
        plan: &Plan,
        reports: &Sender<(u32, Report)>,
    ) -> Result<Self, String> {
        let over = Arc::new(AtomicBool::new(false));
        let mut remote = Self { agents: Vec::new(), threads: 0, hosts: Vec::new(), over };
        for (index, name) in names.iter().enumerate() {
            let share = Share { index: index as u32, count: names.len() as u32 };
            let wrong = |error: io::Error| format!("agent {name}: {error}");
            remote.add(name, key, plan, share, reports.clone()).map_err(wrong)?;
        }
        Ok(remote)
    }

    fn add(
        &mut self,
        name: &str,
        key: &str,
        plan: &Plan,
        share: Share,
        reports: Sender<(u32, Report)>,
    ) -> io::Result<()> {
        let address = name.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let FromAgent::Hello { version, nonce } = receive(&mut reader)? else {
            return Err(io::Error::other("is no agent"));
        };
        if version != VERSION {
            return Err(io::Error::other(format!("has version {version}, this is {VERSION}")));
        }
        let order = serde_json::to_string(&Order { plan: plan.clone(), share })?;
        let proof = hex(&proof(key, &nonce, &order).finalize().into_bytes());
        send(&mut stream, &ToAgent::Plan { order, proof })?;
        let (threads, hosts) = match receive(&mut reader)? {
            FromAgent::Crew { threads, hosts } if threads <= 1024 => (threads, hosts),
            FromAgent::Refused(reason) => return Err(io::Error::other(reason)),
            _ => return Err(io::Error::other("is no agent")),
        };
        let first = self.threads;
        self.threads += threads;
        self.hosts.extend(hosts);
        reader.get_ref().set_read_timeout(Some(SILENCE_MAX))?;
        let (name, over) = (name.to_owned(), self.over.clone());
        thread::spawn(move || {
            let mut left = threads;
            while left > 0 {
                let report = match receive(&mut reader) {
                    Ok(FromAgent::Report { thread, report }) if thread < threads => (first + thread, report),
                    Ok(_) => (first, Report::Failed(format!("agent {name}: not understood"))),
                    Err(error) => (first, Report::Failed(format!("agent {name}: {error}"))),
                };
                left -= u32::from(matches!(report.1, Report::Done(_)));
                let failed = matches!(report.1, Report::Failed(_));
                if over.load(Relaxed) || reports.send(report).is_err() || failed {
                    return;
                }
            }
        });
        self.agents.push(stream);
        Ok(())
    }
}

impl Crew for Remote {
    fn threads(&self) -> u32 {
        self.threads
    }

    fn start(&mut self, after: Duration) -> Result<(), String> {
        let message = ToAgent::Start { after_ms: after.as_millis() as u64 };
        for agent in &mut self.agents {
            send(agent, &message).map_err(|error| format!("an agent is gone: {error}"))?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        for agent in &mut self.agents {
            // One that is gone has stopped.
            drop(send(agent, &ToAgent::Stop));
        }
    }

    fn hosts(&self) -> Vec<ClientHost> {
        self.hosts.clone()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for agent in &self.agents {
            // Also ends the reading thread.
            drop(agent.shutdown(std::net::Shutdown::Both));
        }
    }
}
