//! sandgate beside its peers at the same job: CPU per request, latency at a fixed rate, memory of what is idle.
//! `benches/peers/run` installs what is needed and runs this in a network namespace of its own.

mod backend;
mod bare;
mod load;
mod peer;
mod table;
mod wire;

use clap::{Parser, Subcommand};
use load::{Kind, Load};
use peer::{Binaries, PEERS, Peer, Program, Running, local};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use table::Table;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure and print the table
    Run(Run),
    /// The app and the API behind every peer
    Backend,
    /// The bare forwarder
    Bare,
}

#[derive(clap::Args)]
struct Run {
    /// The gate's binary
    #[arg(long, default_value = "target/release/sandgate")]
    sandgate: PathBuf,
    /// A build of Daytona's proxy v0.190, which then is a peer, too
    #[arg(long)]
    former: Option<PathBuf>,
    /// Interleaved rounds: each peer once in each round, in an order that turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Requests a second of the latency rows
    #[arg(long, default_value_t = 4000.0)]
    rate: f64,
    /// Rows to measure, by the start of their names; all by default
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Peers to measure; all by default
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Configurations and logs of the peers
    #[arg(long, default_value = "target/peers")]
    directory: PathBuf,
}

/// A row of the table.
struct Work {
    name: &'static str,
    kind: Kind,
    connections: usize,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Cpu,
    Latency,
    Memory,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const fn work(name: &'static str, kind: Kind, connections: usize, what: What) -> Work {
    Work { name, kind, connections, what }
}

const fn get(bytes: u64) -> Kind {
    Kind::Get { bytes, private: false }
}

const WORK: [Work; 13] = [
    work("1 KiB, public", get(KIB), 64, What::Cpu),
    work("1 KiB, token", Kind::Get { bytes: KIB, private: true }, 64, What::Cpu),
    work("connection per request", Kind::Close { bytes: KIB }, 64, What::Cpu),
    work("64 KiB", get(64 * KIB), 32, What::Cpu),
    work("1 MiB", get(MIB), 16, What::Cpu),
    work("100 MiB", get(100 * MIB), 4, What::Cpu),
    work("upload of 10 MiB", Kind::Upload { bytes: 10 * MIB }, 8, What::Cpu),
    work("WebSocket echo, 1", Kind::WebSocket, 1, What::Cpu),
    work("WebSocket echo, 64", Kind::WebSocket, 64, What::Cpu),
    work("WebSocket echo, 512", Kind::WebSocket, 512, What::Cpu),
    work("p99, us, at a fixed rate", get(KIB), 64, What::Latency),
    work("bytes per idle connection", get(KIB), 8000, What::Memory),
    work("bytes per idle tunnel", Kind::WebSocket, 4000, What::Memory),
];

/// The proxy has one CPU for itself, app and load share another.
const PROXY_CPU: usize = 0;
const OTHER_CPU: usize = 1;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Backend => backend::run(local(peer::BACKEND), local(peer::API)),
        Command::Bare => bare::run(local(9040), local(peer::BACKEND)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Run {
    fn run(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let directory = self.directory.canonicalize()?;
        let former = self.former.as_ref().map(|path| path.canonicalize()).transpose()?;
        let binaries = Binaries { sandgate: self.sandgate.canonicalize()?, former };
        let named = |peer: &&Peer| {
            (peer.program != Program::Former || binaries.former.is_some())
                && (self.peers.is_empty() || self.peers.iter().any(|name| name == peer.name))
        };
        let peers: Vec<&Peer> = PEERS.iter().filter(named).collect();
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let core = cores.into_iter().find(|core| core.id == OTHER_CPU);
        core_affinity::set_for_current(core.ok_or_else(|| io::Error::other("two CPUs are needed"))?);
        let wanted =
            |work: &&Work| self.only.is_empty() || self.only.iter().any(|start| work.name.starts_with(start));
        let _backend = peer::backend(OTHER_CPU)?;
        let mut table = Table::new(&peers);
        for work in WORK.iter().filter(wanted) {
            let mut running = Vec::new();
            if work.what != What::Memory {
                for peer in &peers {
                    if !running.iter().any(|r: &Running| r.program == Some(peer.program)) {
                        running.push(peer.program.start(PROXY_CPU, &directory, &binaries)?);
                    }
                }
            }
            for round in 0..self.rounds {
                for turn in 0..peers.len() {
                    let peer = peers[(turn + round) % peers.len()];
                    if !fits(peer, work) {
                        continue;
                    }
                    let value = match work.what {
                        What::Memory => {
                            memory(&peer.program.start(PROXY_CPU, &directory, &binaries)?, peer, work)?
                        }
                        _ => {
                            let process = running.iter().find(|r| r.program == Some(peer.program));
                            self.once(process.expect("started above"), peer, work)?
                        }
                    };
                    eprintln!("{} | {} | {value:.2}", work.name, peer.name);
                    table.add(work.name, peer.name, value);
                }
            }
        }
        println!("{table}");
        Ok(())
    }

    /// CPU microseconds per request, or microseconds of the 99th percentile.
    fn once(&self, process: &Running, peer: &Peer, work: &Work) -> io::Result<f64> {
        let mut load = Load::new(local(peer.port), work.kind, work.connections)?;
        let mut stamps = Vec::new();
        let length = Duration::from_secs_f64(self.seconds);
        let around = || stamps.push(process.cpu_us());
        let outcome = match work.what {
            What::Latency => load.open(self.rate, length, around)?,
            _ => load.closed(length, around)?,
        };
        if outcome.requests <= 0.0 || outcome.errors as f64 > outcome.requests / 1000.0 {
            let text = format!(
                "{} at {}: {} errors, {} answers",
                work.name, peer.name, outcome.errors, outcome.requests
            );
            return Err(io::Error::other(text));
        }
        Ok(match work.what {
            What::Latency => f64::from(outcome.latencies[outcome.latencies.len() * 99 / 100]),
            _ => (stamps[1] - stamps[0]) / outcome.requests,
        })
    }
}

/// Resident bytes for each silent connection, by a process that has worked before.
fn memory(process: &Running, peer: &Peer, work: &Work) -> io::Result<f64> {
    Load::new(local(peer.port), work.kind, 64)?.closed(Duration::from_millis(300), || {})?;
    let before = process.resident();
    let _silent = Load::idle(local(peer.port), work.kind, work.connections)?;
    // Buffers of the last answers are given back.
    std::thread::sleep(Duration::from_millis(300));
    Ok(process.resident().saturating_sub(before) as f64 / work.connections as f64)
}

/// What would say nothing is left out: a plain forwarder at HTTP policy, and the bare one at what it does not bound.
fn fits(peer: &Peer, work: &Work) -> bool {
    let cpu = work.what == What::Cpu;
    match (peer.name, work.kind) {
        ("haproxy-tcp", kind) => cpu && kind == get(KIB),
        ("bare", kind) => cpu && matches!(kind, Kind::Get { bytes: KIB, .. } | Kind::WebSocket),
        ("haproxy-splice", Kind::Get { bytes, .. } | Kind::Upload { bytes }) => bytes > KIB,
        ("haproxy-splice", kind) => cpu && kind == Kind::WebSocket,
        _ => true,
    }
}
