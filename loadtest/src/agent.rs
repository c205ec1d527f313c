//! Load from several hosts: agents wait for a coordinator, run its plan's parts and report as threads of their own.
//!
//! One TCP connection each, JSON by lines. Both sides know a key; it never travels: the agent asks with a nonce, the
//! coordinator answers with an HMAC over it and over its order's digest, and sends the order when the agent has taken it.
//! The order itself (with the key that signs cookies, if any) travels in the clear: the network between them must be a
//! trusted one. An agent runs no commands.
//!
//! An agent makes one load at a time and says so to others. Who has not shown the key yet may send one short line within
//! [`ANSWER_MAX`], and holds nobody else up meanwhile.

use crate::plan::{Plan, Share};
use crate::result::ClientHost;
use crate::run::{Crew, Local};
use crate::worker::Report;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest report: the results of a thread with many phases and classes.
const REPORT_BYTES_MAX: usize = 64 << 20;
/// Longest order: a plan with many source addresses, or with recordings.
const ORDER_BYTES_MAX: usize = 16 << 20;
/// Everything else, and all that is read from somebody who has not shown the key.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Both must be up to this; results go with the version. Behind the slash: what they say to each other.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/4");
/// For what is answered at once.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// An agent that has nothing to report says that it is there: behind the last second, requests may have a long grace.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Longer than a machine at its limit keeps a thread waiting.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const _: () = assert!(SILENCE_MAX.as_secs() >= 10 * HEARTBEAT.as_secs());
/// How long the next coordinator waits for a load that is just ending.
const BUSY_WAIT: Duration = Duration::from_secs(3);
/// Peers that have not shown the key, at a time; beyond it the one that has been there longest goes.
const STRANGERS_MAX: usize = 16;
/// A peer's host that is gone without a word is noticed after about half a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Agent to coordinator.
#[derive(Serialize, Deserialize)]
enum FromAgent {
    Hello {
        version: String,
        nonce: String,
    },
    /// The key is right and the agent free: send the order.
    Welcome,
    /// The plan is taken: so many threads will report.
    Crew {
        threads: u32,
        hosts: Vec<ClientHost>,
    },
    Report {
        thread: u32,
        report: Report,
    },
    /// Nothing new.
    StillHere,
    Refused(String),
}

/// Coordinator to agent.
#[derive(Serialize, Deserialize)]
enum ToAgent {
    /// SHA-256 of the order to come, and the proof over it.
    Claim {
        digest: String,
        proof: String,
    },
    /// An [`Order`] as JSON.
    Order(String),
    Start {
        after_ms: u64,
    },
    Stop,
}

#[derive(Serialize, Deserialize)]
struct Order {
    plan: Plan,
    share: Share,
}

fn proof(key: &str, nonce: &str, digest: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(nonce.as_bytes());
    mac.update(b"\0");
    mac.update(digest.as_bytes());
    mac
}

fn digest(order: &str) -> String {
    hex(&Sha256::digest(order.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.is_ascii() && text.len().is_multiple_of(2);
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    digits.then(|| (0..text.len()).step_by(2).map(pair).collect())?
}

/// A connection to the other side, message by message.
struct Channel {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Channel {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let probes =
            socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(2);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        send(&mut self.stream, message)
    }

    /// The next message, the whole of it within so long.
    fn receive<T: for<'de> Deserialize<'de>>(&mut self, bytes_max: usize, within: Duration) -> io::Result<T> {
        receive(&mut self.reader, bytes_max, Some(within))
    }
}

fn send<T: Serialize>(stream: &mut TcpStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A line, however slowly its bytes come: the whole of it `within` so long (`None`: whenever).
fn receive<T: for<'de> Deserialize<'de>>(
    reader: &mut BufReader<TcpStream>,
    bytes_max: usize,
    within: Option<Duration>,
) -> io::Result<T> {
    let silent = |within: Duration| {
        io::Error::new(io::ErrorKind::TimedOut, format!("did not answer within {} s", within.as_secs()))
    };
    let deadline = within.map(|within| (Instant::now() + within, within));
    let mut line = Vec::new();
    loop {
        let left = deadline.map(|(at, within)| (at.saturating_duration_since(Instant::now()), within));
        if let Some((Duration::ZERO, within)) = left {
            return Err(silent(within));
        }
        reader.get_ref().set_read_timeout(left.map(|(left, _)| left))?;
        let read = match reader.fill_buf() {
            Ok([]) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(read) => read,
            // The clock is looked at above.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let end = memchr::memchr(b'\n', read);
        let taken = end.map_or(read.len(), |end| end + 1);
        line.extend_from_slice(&read[..taken]);
        reader.consume(taken);
        if line.len() > bytes_max {
            return Err(io::Error::other(format!("a message is longer than {bytes_max} bytes")));
        }
        if end.is_some() {
            return Ok(serde_json::from_slice(&line)?);
        }
    }
}

/// Serves coordinators one after the other; those that come meanwhile are told that the agent is busy. `once`: ends after the
/// first load. Tells each refusal and end on stderr.
pub fn serve(listener: &TcpListener, key: &str, once: bool) -> io::Result<()> {
    let agent = Agent {
        listener,
        key,
        once,
        over: AtomicBool::new(false),
        strangers: Mutex::default(),
        busy: Mutex::default(),
        freed: Condvar::new(),
    };
    thread::scope(|scope| {
        loop {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(_) if agent.over.load(Relaxed) => return Ok(()),
                Err(error) => return Err(error),
            };
            agent.admit(&stream, peer)?;
            let agent = &agent;
            scope.spawn(move || agent.attend(stream, peer));
        }
    })
}

struct Agent<'a> {
    listener: &'a TcpListener,
    key: &'a str,
    once: bool,
    over: AtomicBool,
    /// Who has not shown the key yet, the longest there first.
    strangers: Mutex<VecDeque<(SocketAddr, TcpStream)>>,
    /// Whose load is being made.
    busy: Mutex<Option<SocketAddr>>,
    freed: Condvar,
}

impl Agent<'_> {
    /// Notes a stranger, and ends the one that has been there longest when there are too many.
    fn admit(&self, stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
        eprintln!("{peer}: connected");
        let mut strangers = lock(&self.strangers);
        if strangers.len() >= STRANGERS_MAX
            && let Some((_, oldest)) = strangers.pop_front()
        {
            // One that is gone already is what is wanted.
            drop(oldest.shutdown(Shutdown::Both));
        }
        strangers.push_back((peer, stream.try_clone()?));
        Ok(())
    }

    /// Has shown the key, or failed to: is among the strangers no longer.
    fn forget(&self, peer: SocketAddr) {
        lock(&self.strangers).retain(|(stranger, _)| *stranger != peer);
    }

    fn attend(&self, stream: TcpStream, peer: SocketAddr) {
        let outcome = Channel::new(stream).and_then(|mut channel| {
            let claimed = self.claim(&mut channel);
            self.forget(peer);
            let digest = claimed?;
            if let Err(other) = self.occupy(peer) {
                let busy = format!("is busy with another run, for {other}: try again when that is over");
                channel.send(&FromAgent::Refused(busy.clone()))?;
                return Err(io::Error::other(format!("refused: {busy}")));
            }
            let outcome = self.welcome(channel, &digest);
            self.free();
            outcome
        });
        match outcome {
            Ok(()) => eprintln!("{peer}: done"),
            Err(error) => eprintln!("{peer}: {error}"),
        }
    }

    /// Lets a stranger show the key; gives out its order's digest.
    fn claim(&self, channel: &mut Channel) -> io::Result<String> {
        let nonce = hex(&rand::random::<[u8; 16]>());
        channel.send(&FromAgent::Hello { version: VERSION.into(), nonce: nonce.clone() })?;
        let ToAgent::Claim { digest, proof: shown } = channel.receive(LINE_BYTES_MAX, ANSWER_MAX)? else {
            return Err(io::Error::other("is no coordinator"));
        };
        let shown = unhex(&shown).unwrap_or_default();
        if proof(self.key, &nonce, &digest).verify_slice(&shown).is_err() {
            channel.send(&FromAgent::Refused("the key is another one".into()))?;
            return Err(io::Error::other("refused: the key is another one"));
        }
        Ok(digest)
    }

    /// `Err` says who is being served.
    fn occupy(&self, peer: SocketAddr) -> Result<(), SocketAddr> {
        let free = self.freed.wait_timeout_while(lock(&self.busy), BUSY_WAIT, |busy| busy.is_some());
        let mut busy = free.map_or_else(|poisoned| poisoned.into_inner().0, |(busy, _)| busy);
        match *busy {
            Some(other) => Err(other),
            None => {
                *busy = Some(peer);
                Ok(())
            }
        }
    }

    fn free(&self) {
        *lock(&self.busy) = None;
        self.freed.notify_one();
        if self.once {
            self.over.store(true, Relaxed);
            lock(&self.strangers).drain(..).for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
            // Ends the wait in `accept`, as Linux has it.
            drop(socket2::SockRef::from(self.listener).shutdown(Shutdown::Both));
        }
    }

    /// Takes the order, and makes the load.
    fn welcome(&self, mut channel: Channel, promised: &str) -> io::Result<()> {
        channel.send(&FromAgent::Welcome)?;
        let order = match channel.receive(ORDER_BYTES_MAX, ANSWER_MAX)? {
            ToAgent::Order(order) if digest(&order) == promised => order,
            _ => return Err(io::Error::other("the order is not the one the key was shown for")),
        };
        let Order { plan, share } = serde_json::from_str(&order)?;
        let (reports, inbox) = mpsc::channel();
        let crew = match Local::spawn(&Arc::new(plan), share, reports) {
            Ok(crew) => crew,
            Err(error) => {
                channel.send(&FromAgent::Refused(error.clone()))?;
                return Err(io::Error::other(error));
            }
        };
        channel.send(&FromAgent::Crew { threads: crew.threads(), hosts: crew.hosts() })?;
        make_load(channel, crew, &inbox)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes orders to the crew and its reports to the coordinator, until all threads have ended.
fn make_load(channel: Channel, mut crew: Local, inbox: &Receiver<(u32, Report)>) -> io::Result<()> {
    let Channel { mut stream, mut reader } = channel;
    // Orders come while reports go. A coordinator that is gone is one that says stop.
    let (orders, order_inbox) = mpsc::channel();
    let listening = thread::spawn(move || {
        loop {
            let order = receive(&mut reader, LINE_BYTES_MAX, None).unwrap_or(ToAgent::Stop);
            let last = matches!(order, ToAgent::Stop);
            if orders.send(order).is_err() || last {
                return;
            }
        }
    });
    let mut left = crew.threads();
    let mut said = Instant::now();
    let outcome = loop {
        while let Ok(order) = order_inbox.try_recv() {
            match order {
                ToAgent::Start { after_ms } => {
                    drop(crew.start(Duration::from_millis(after_ms.min(60_000))));
                }
                ToAgent::Stop => crew.stop(),
                ToAgent::Claim { .. } | ToAgent::Order(_) => {}
            }
        }
        match inbox.recv_timeout(Duration::from_millis(5)) {
            Ok((thread, report)) => {
                let last = matches!(report, Report::Done(_) | Report::Failed(_));
                if let Err(error) = send(&mut stream, &FromAgent::Report { thread, report }) {
                    break Err(error);
                }
                said = Instant::now();
                left -= u32::from(last);
                if left == 0 {
                    break Ok(());
                }
            }
            Err(RecvTimeoutError::Timeout) if said.elapsed() >= HEARTBEAT => {
                if let Err(error) = send(&mut stream, &FromAgent::StillHere) {
                    break Err(error);
                }
                said = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(error) => break Err(io::Error::other(error)),
        }
    };
    // Ends the listening thread's read.
    drop(stream.shutdown(Shutdown::Both));
    drop(listening.join());
    outcome
}

/// An [`Order`] an agent takes. `Err` says that it is too long.
fn order(plan: &Plan, share: Share) -> Result<String, String> {
    let order =
        serde_json::to_string(&Order { plan: plan.clone(), share }).map_err(|error| error.to_string())?;
    // It travels as a text within a message, where quotes take more.
    let line =
        serde_json::to_string(&ToAgent::Order(order.clone())).map_or(usize::MAX, |line| line.len() + 1);
    match line > ORDER_BYTES_MAX {
        true => Err(format!(
            "the plan has {line} bytes with its recordings, and agents take {ORDER_BYTES_MAX}: fewer `har:` classes in a run, or \
             recordings with smaller bodies"
        )),
        false => Ok(order),
    }
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
            remote.add(name, key, order(plan, share)?, reports.clone()).map_err(wrong)?;
        }
        Ok(remote)
    }

    fn add(
        &mut self,
        name: &str,
        key: &str,
        order: String,
        reports: Sender<(u32, Report)>,
    ) -> io::Result<()> {
        let address = name.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut channel = Channel::new(TcpStream::connect_timeout(&address, ANSWER_MAX)?)?;
        let FromAgent::Hello { version, nonce } = channel.receive(LINE_BYTES_MAX, ANSWER_MAX)? else {
            return Err(io::Error::other("is no agent"));
        };
        if version != VERSION {
            return Err(io::Error::other(format!("has version {version}, this is {VERSION}")));
        }
        let digest = digest(&order);
        let proof = hex(&proof(key, &nonce, &digest).finalize().into_bytes());
        channel.send(&ToAgent::Claim { digest, proof })?;
        match channel.receive(LINE_BYTES_MAX, ANSWER_MAX)? {
            FromAgent::Welcome => channel.send(&ToAgent::Order(order))?,
            FromAgent::Refused(reason) => return Err(io::Error::other(reason)),
            _ => return Err(io::Error::other("is no agent")),
        }
        let (threads, hosts) = match channel.receive(LINE_BYTES_MAX, ANSWER_MAX)? {
            FromAgent::Crew { threads, hosts } if threads <= 1024 => (threads, hosts),
            FromAgent::Refused(reason) => return Err(io::Error::other(reason)),
            _ => return Err(io::Error::other("is no agent")),
        };
        let first = self.threads;
        self.threads += threads;
        self.hosts.extend(hosts);
        let Channel { stream, mut reader } = channel;
        let (name, over) = (name.to_owned(), self.over.clone());
        thread::spawn(move || {
            // Those that have yet to end.
            let mut working: BTreeSet<u32> = (0..threads).collect();
            while !working.is_empty() {
                let why = match receive(&mut reader, REPORT_BYTES_MAX, Some(SILENCE_MAX)) {
                    Ok(FromAgent::Report { thread, report }) if working.contains(&thread) => {
                        let report = match report {
                            Report::Failed(error) => Report::Failed(format!("agent {name}: {error}")),
                            report => report,
                        };
                        if matches!(report, Report::Done(_) | Report::Failed(_)) {
                            working.remove(&thread);
                        }
                        if over.load(Relaxed) || reports.send((first + thread, report)).is_err() {
                            return;
                        }
                        continue;
                    }
                    Ok(FromAgent::StillHere) => continue,
                    Ok(_) => "not understood".into(),
                    Err(error) => error.to_string(),
                };
                for thread in std::mem::take(&mut working) {
                    if over.load(Relaxed) {
                        return;
                    }
                    // Nobody may be listening any more.
                    drop(reports.send((first + thread, Report::Failed(format!("agent {name}: {why}")))));
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
            drop(agent.shutdown(Shutdown::Both));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Class, Client, Load, Phase, Target, Workload};
    use crate::quantity::Span;

    /// A load that is over soon and whose requests are waited for long after it.
    fn plan(target: SocketAddr, grace: Duration) -> Plan {
        Plan {
            name: "x".into(),
            target: Target { url: format!("http://{target}/"), ..Target::default() },
            client: Client { threads: 1, connections: 1, grace: Span(grace), ..Client::default() },
            workload: Workload::default(),
            recordings: Vec::new(),
            phases: vec![Phase {
                name: "p".into(),
                load: Load::Hold { rate: 10.0 },
                length: Span(Duration::from_millis(300)),
                mix: vec![(Class::Get { bytes: 1 }, 1.0)],
                warmup: false,
                churn: Vec::new(),
                idle: None,
            }],
        }
    }

    #[test]
    fn an_agent_says_that_it_is_there_while_it_waits_for_the_last_answers() {
        // Connects in the kernel, and never answers.
        let target = TcpListener::bind("127.0.0.1:0").expect("a port");
        let plan = plan(target.local_addr().expect("bound"), 3 * HEARTBEAT);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let agent = thread::spawn(move || serve(&listener, "key", true));
        let mut channel = Channel::new(TcpStream::connect(address).expect("it listens")).expect("a socket");
        let hear = |channel: &mut Channel, within| {
            channel.receive::<FromAgent>(REPORT_BYTES_MAX, within).expect("no silence")
        };
        let FromAgent::Hello { nonce, .. } = hear(&mut channel, ANSWER_MAX) else { panic!("no hello") };
        let order = serde_json::to_string(&Order { plan, share: Share::WHOLE }).expect("a plan");
        let digest = digest(&order);
        let proof = hex(&proof("key", &nonce, &digest).finalize().into_bytes());
        channel.send(&ToAgent::Claim { digest, proof }).expect("it listens");
        assert!(matches!(hear(&mut channel, ANSWER_MAX), FromAgent::Welcome));
        channel.send(&ToAgent::Order(order)).expect("it listens");
        assert!(matches!(hear(&mut channel, ANSWER_MAX), FromAgent::Crew { threads: 1, .. }));
        channel.send(&ToAgent::Start { after_ms: 0 }).expect("it listens");
        let mut beats = 0;
        loop {
            match hear(&mut channel, 2 * HEARTBEAT) {
                FromAgent::StillHere => beats += 1,
                FromAgent::Report { report: Report::Done(_), .. } => break,
                FromAgent::Report { report: Report::Failed(error), .. } => panic!("{error}"),
                _ => {}
            }
        }
        assert!(beats >= 2, "{beats}");
        agent.join().expect("no panic").expect("it served");
    }
}
