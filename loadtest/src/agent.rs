//! Load from several hosts: agents wait for a coordinator, run its plan's parts and report as threads of their own.
//!
//! One TCP connection each, JSON by lines. Both sides know a key; it never travels: the agent asks with a nonce, the
//! coordinator answers with an HMAC over it and over its order's digest, and sends the order when the agent has taken it.
//! The order itself (with the key that signs cookies, if any) travels in the clear: the network between them must be a
//! trusted one. An agent runs no commands.
//!
//! An agent makes one load at a time and says so to others. Who has not shown the key yet may send one short line within
//! [`ANSWER_MAX`], and holds nobody else up meanwhile.

mod remote;
mod wire;

pub use remote::Remote;

use crate::run::{Crew as _, Local};
use crate::worker::Report;
use hmac::Mac as _;
use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use wire::{
    ANSWER_MAX, Channel, FromAgent, HEARTBEAT, LINE_BYTES_MAX, ORDER_BYTES_MAX, Order, ToAgent, VERSION,
    digest, hex, proof, receive, send, unhex,
};

/// How long the next coordinator waits for a load that is just ending.
const BUSY_WAIT: Duration = Duration::from_secs(3);
/// Peers that have not shown the key, at a time; beyond it the one that has been there longest goes.
const STRANGERS_MAX: usize = 16;

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

#[cfg(test)]
mod tests {
    use super::wire::REPORT_BYTES_MAX;
    use super::*;
    use crate::plan::{Class, Client, Load, Phase, Plan, Share, Target, Workload};
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
