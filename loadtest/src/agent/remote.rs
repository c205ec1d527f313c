//! The coordinator's side: agents as one crew.

use super::wire::{
    ANSWER_MAX, Channel, FromAgent, LINE_BYTES_MAX, ORDER_BYTES_MAX, Order, REPORT_BYTES_MAX, SILENCE_MAX,
    ToAgent, VERSION, digest, hex, proof, receive, send,
};
use crate::plan::{Plan, Share};
use crate::result::ClientHost;
use crate::run::Crew;
use crate::worker::Report;
use hmac::Mac as _;
use std::collections::BTreeSet;
use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

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
        if !name.contains(':') {
            return Err(io::Error::other("no port: agents are named host:port"));
        }
        let address = name.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut channel = Channel::new(TcpStream::connect_timeout(&address, ANSWER_MAX)?)?;
        let hello = channel.receive(LINE_BYTES_MAX, ANSWER_MAX).map_err(|error| match error.kind() {
            // Something else, or so old that it says hello in another way.
            io::ErrorKind::InvalidData => io::Error::other("is no agent of this loadtest's version"),
            _ => error,
        })?;
        let FromAgent::Hello { version, nonce } = hello else {
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
