//! `loadtest backend`: an API and a runner for every sandbox of a population, so that a proxy can be measured with nothing
//! else installed, and broken answers on demand.
//!
//! A request's way: [`listener`] accepts, [`peer`] reads, [`api`] or [`runner`] and [`app`] decide, [`answer`] writes, with
//! the [`fault`] that befalls it. The API tells the proxy that all sandboxes are on runners which are this one, at one address
//! or several. [`redis`] is told of changes as the API tells it; proxies reach it by a [`relay`]. Nothing is stored but what levers changed.

mod answer;
mod api;
mod app;
mod fault;
mod listener;
mod peer;
mod redis;
mod relay;
mod runner;
mod state;

pub use app::ANSWERED_BY;
pub use fault::{Fault, Rule};
pub use state::Side;

use crate::cli;
use crate::cli::EXIT_USAGE;
use crate::host;
use crate::population::Population;
use crate::quantity;
use crate::run_args::{Sources, sources};
use crate::unshown::unshown;
use clap::Args;
use listener::{Plan, Restarts};
use relay::Relay;
use state::World;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// The proxy's and the runner's keys: known to everybody, for tests alone.
pub const PROXY_KEY: &str = "loadtest-proxy-key-0123456789abcdef";
const RUNNER_KEY: &str = "loadtest-runner-key";

#[derive(Clone, Debug, Args)]
pub struct BackendArgs {
    /// Address to listen on. The levers ask for no key: keep it to loopback or a closed network
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Port of the API; 0: any
    #[arg(long, default_value_t = 0)]
    pub api_port: u16,
    /// Port of the runner; 0: any
    #[arg(long, default_value_t = 0)]
    pub runner_port: u16,
    /// Addresses of the runners, sandboxes in turn: 127.0.0.2-127.0.0.9 or a list. A proxy can have about 28,000
    /// connections to each, and half of them fast. Default: one, on the address above
    #[arg(long, value_parser = sources, value_name = "ADDRESSES")]
    pub runner_addresses: Option<Sources>,
    /// Other backends with the same flags may listen on the same ports, each taking its part of the connections: for
    /// more sockets than one process may open. Levers reach one of them
    #[arg(long)]
    pub share_ports: bool,
    /// The Redis proxies share with the API: told of changes as the API tells it. The proxy's settings name a relay to it,
    /// which a lever can take away
    #[arg(long, value_name = "HOST:PORT", value_parser = unshown(redis::address))]
    pub redis: Option<String>,
    /// Port of that relay; 0: any
    #[arg(long, default_value_t = 0, requires = "redis")]
    pub redis_port: u16,
    /// Port the proxy is to listen on, for the settings that are printed
    #[arg(long, default_value_t = 4000)]
    pub proxy_port: u16,
    /// Seed of the population; the load must have the same
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many public and how many private sandboxes exist; default: as many as anybody asks for
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    pub sandboxes: Option<u64>,
    /// Key the proxy shows to the API
    #[arg(long, default_value = PROXY_KEY)]
    pub proxy_key: String,
    /// Threads; default: one per CPU this process may use
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Connections at once, API and runner each; more wait. Costs a socket and up to 10 KB each
    #[arg(long, default_value = "200k", value_name = "N", value_parser = quantity::count32)]
    pub connections_max: u32,
    /// What goes wrong at the runner, like 'rate=1%,delay=20ms,jitter=10ms' or 'path=/bytes,truncate@100'; the first
    /// rule that hits counts
    #[arg(long = "fault", value_name = "RULE")]
    pub faults: Vec<Rule>,
    /// The same for the API
    #[arg(long = "api-fault", value_name = "RULE")]
    pub api_faults: Vec<Rule>,
    /// Write the proxy's settings here, too, as NAME=value lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
}

impl BackendArgs {
    /// Where the runner listens.
    pub fn runner_ips(&self) -> Vec<IpAddr> {
        self.runner_addresses.as_ref().map_or(vec![self.listen], |list| list.0.clone())
    }
}

/// A running backend. Dropping it ends it with all its connections.
pub struct Backend {
    api: SocketAddr,
    runners: Vec<SocketAddr>,
    proxy_port: u16,
    world: Arc<World>,
    /// Where proxies reach Redis.
    relay: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Backend {
    /// Listens, then starts the threads: when this returns, connections are taken.
    ///
    /// # Errors
    /// An address cannot be listened on, or a thread cannot be started.
    pub fn start(args: &BackendArgs) -> io::Result<Self> {
        let addresses = args.runner_ips();
        if args.listen.is_unspecified() || addresses.iter().any(IpAddr::is_unspecified) {
            let why =
                "the API tells the proxy where the runner is: listen on an address the proxy can connect to";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let available = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let threads = args.threads.unwrap_or_else(available).get();
        let open = |ip, port| listeners(SocketAddr::new(ip, port), threads, args.share_ports);
        let (api, api_listeners) = open(args.listen, args.api_port)?;
        let mut runners = Vec::new();
        let mut runner_listeners: Vec<Vec<std::net::TcpListener>> =
            (0..threads).map(|_| Vec::new()).collect();
        for address in addresses {
            let (runner, listeners) = open(address, args.runner_port)?;
            runners.push(runner);
            runner_listeners.iter_mut().zip(listeners).for_each(|(thread, listener)| thread.push(listener));
        }
        let relay = args.redis.as_deref().map(|redis| {
            let address = SocketAddr::new(args.listen, args.redis_port);
            let (address, mut listeners) = listeners(address, 1, args.share_ports)?;
            let listener = listeners.pop().expect("one was asked for");
            Ok::<_, io::Error>(Relay { address, listener, redis: redis.into(), restarts: Restarts::new(1) })
        });
        let relay = relay.transpose()?;
        let world = World::new(
            Population::new(args.seed),
            args.sandboxes.unwrap_or(u64::MAX),
            [args.proxy_key.clone(), RUNNER_KEY.to_owned()],
            format!("http://{api}"),
            runners.iter().map(|runner| format!("http://{runner}")).collect(),
        );
        world.set_faults(Side::Runner, args.faults.clone());
        world.set_faults(Side::Api, args.api_faults.clone());
        let world = Arc::new(world);
        let plan = Plan {
            world: Arc::clone(&world),
            seed: args.seed,
            connections_max: (args.connections_max as usize / threads).max(1),
            redis: relay.as_ref().map(|relay| (relay.redis.clone(), relay.restarts.clone())),
            thread: 0,
            restarts: Restarts::new(threads),
            connections: Arc::new(AtomicU64::new(0)),
        };
        let stop = watch::Sender::new(false);
        let mut backend = Self {
            api,
            runners,
            proxy_port: args.proxy_port,
            world,
            relay: relay.as_ref().map(|relay| relay.address),
            stop,
            threads: Vec::new(),
        };
        for (thread, (api, runners)) in api_listeners.into_iter().zip(runner_listeners).enumerate() {
            let plan = Plan { thread, ..plan.clone() };
            let stopped = backend.stop.subscribe();
            let work = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(listener::live(plan, api, runners, stopped))
            };
            backend.threads.push(std::thread::Builder::new().name(format!("backend-{thread}")).spawn(work)?);
        }
        if let Some(relay) = relay {
            let (world, stopped) = (backend.world.clone(), backend.stop.subscribe());
            let work = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(relay.live(&world, stopped))
            };
            backend.threads.push(std::thread::Builder::new().name("backend-redis".into()).spawn(work)?);
        }
        Ok(backend)
    }

    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The first, if there are several.
    pub fn runner(&self) -> SocketAddr {
        self.runners[0]
    }

    pub fn runners(&self) -> &[SocketAddr] {
        &self.runners
    }

    /// Replaces the faults of one side.
    pub fn set_faults(&self, side: Side, rules: Vec<Rule>) {
        self.world.set_faults(side, rules);
    }

    /// What has been counted, as on `/_load/counters`.
    pub fn counters(&self) -> serde_json::Value {
        self.world.counters.json()
    }

    /// Settings of a proxy that is to use this backend.
    pub fn proxy_environment(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("DAYTONA_API_URL", format!("http://{}/api", self.api)),
            ("PROXY_API_KEY", self.world.proxy_key.clone()),
            ("PROXY_PORT", self.proxy_port.to_string()),
            ("PROXY_PROTOCOL", "http".into()),
        ];
        if let Some(relay) = self.relay {
            settings
                .extend([("REDIS_HOST", relay.ip().to_string()), ("REDIS_PORT", relay.port().to_string())]);
        }
        settings
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A panic of that thread has been printed by then.
            let _ = thread.join();
        }
    }
}

/// One listener per thread on the same port, chosen by the kernel if it is 0. `shared`: others may be there already.
fn listeners(
    address: SocketAddr,
    count: usize,
    shared: bool,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let cannot =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    if !shared && address.port() != 0 {
        // Listeners of ours share their port, with those of anybody who shares: one that does not finds them out.
        std::net::TcpListener::bind(address).map_err(cannot)?;
    }
    let first = listener::listen(address).map_err(cannot)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..count {
        all.push(listener::listen(address).map_err(cannot)?);
    }
    Ok((address, all))
}

/// The command: runs until Ctrl-C or SIGTERM and then prints what was counted.
pub fn run(args: &BackendArgs) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest backend: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn serve(args: &BackendArgs) -> io::Result<()> {
    // Where the limit stays too low, what cannot be accepted waits.
    host::raise_open_files();
    let backend = Backend::start(args)?;
    let environment = backend.proxy_environment();
    if let Some(file) = &args.env_file {
        let lines: String = environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        std::fs::write(file, lines).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display()))
        })?;
    }
    cli::print(&introduction(&backend, args)).map_err(io::Error::other)?;
    wait_for_end()?;
    let counters = backend.counters();
    drop(backend);
    cli::print(&format!("{counters:#}\n")).map_err(io::Error::other)
}

/// What to do next, in lines that can be pasted.
fn introduction(backend: &Backend, args: &BackendArgs) -> String {
    let mut text = format!(
        "API on {}, runner{} on {}, {} of seed {}. Ctrl-C ends it and prints what was counted.\n\n\
         Start the proxy to be measured with\n\n",
        backend.api,
        if backend.runners.len() == 1 { "" } else { "s" },
        runners(&backend.runners),
        args.sandboxes.map_or("all sandboxes".into(), |n| format!("{n} public and {n} private sandboxes")),
        args.seed,
    );
    // Writing to a String cannot fail.
    for (name, value) in backend.proxy_environment() {
        let _ = writeln!(text, "    export {name}={value}");
    }
    let _ = write!(
        text,
        "\nand the load with, for instance\n\n\
         \x20   loadtest run http://127.0.0.1:{proxy} --domain preview.test --population {seed} --rate 1000 --html report.html\n\n\
         Levers, while it runs:\n\n\
         \x20   curl http://{api}/_load/counters\n\
         \x20   curl -X POST 'http://{api}/_load/runner/restart?down_ms=500'\n\
         \x20   curl -X POST 'http://{api}/_load/sandboxes/{id}/visibility?public=false'\n\
         {redis}\
         \x20   curl -X PUT --data 'rate=1%,delay=20ms' http://{api}/_load/faults/runner\n",
        proxy = backend.proxy_port,
        seed = args.seed,
        api = backend.api,
        redis = backend.relay.map_or(String::new(), |_| format!(
            "    curl -X POST 'http://{}/_load/redis/restart?down_ms=2000'\n",
            backend.api
        )),
        id = backend.world.population.id(crate::population::Sandbox { index: 0, public: true }),
    );
    text
}

/// The first and how many more: there may be thousands.
fn runners(all: &[SocketAddr]) -> String {
    match all {
        [one] => one.to_string(),
        [first, more @ ..] => format!("{first} and {} more", more.len()),
        [] => String::new(),
    }
}

fn wait_for_end() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    })
}
