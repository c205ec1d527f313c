//! From a checked configuration to running shards, and back: start and drain in order.

use crate::access_log;
use crate::config::{Config, DriverChoice};
use crate::control::{self, api::Api, metrics};
use crate::mailbox::{Down, ToShard};
use crate::ring::{self, Wish};
use crate::shard::{self, Start};
use crate::socket;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Waiting connections per listener; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Room in a shard's downward queue for messages that are no answers.
const MESSAGES_EXTRA: usize = 64;

/// Runs until SIGTERM or SIGINT and the drain that follows.
pub fn run(config: Config) -> ExitCode {
    for warning in config.warnings() {
        event("warning", &[("message", warning)]);
    }
    match serve(config) {
        Ok(code) => code,
        Err(error) => {
            event("error", &[("message", &error.to_string())]);
            ExitCode::FAILURE
        }
    }
}

/// One JSON line on standard error.
fn event(level: &str, fields: &[(&str, &str)]) {
    let mut line = serde_json::Map::new();
    line.insert("level".into(), level.into());
    line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    eprintln!("{}", serde_json::Value::Object(line));
}

fn with_context(what: String) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn serve(config: Config) -> io::Result<ExitCode> {
    raise_descriptor_limit();
    // Before any pinning: it reads the calling thread's own mask.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let shard_count = config.shards.map_or(cores.len().max(1), std::num::NonZero::get);
    let choice = ring::choose(match config.driver {
        DriverChoice::Auto => Wish::Auto,
        DriverChoice::IoUring => Wish::IoUring,
        DriverChoice::Epoll => Wish::Epoll,
    })?;
    let config = Arc::new(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (up, inbox) = mpsc::channel(config.limits.questions_max * shard_count);
    let (log, log_thread) = access_log::start_writer(Box::new(io::stdout()))?;

    let mut downs = Vec::new();
    let mut threads = Vec::new();
    for index in 0..shard_count {
        let down = Arc::new(Down::new(config.limits.questions_max + MESSAGES_EXTRA)?);
        let listener = socket::listen(config.listen, BACKLOG)
            .map_err(with_context(format!("cannot listen on {} (PROXY_PORT)", config.listen)))?;
        let start = Start {
            index,
            config: config.clone(),
            driver: choice.driver,
            core: if config.pin { cores.get(index % cores.len().max(1)).copied() } else { None },
            listener,
            down: down.clone(),
            up: up.clone(),
            log: log.clone(),
        };
        downs.push(down);
        let thread = std::thread::Builder::new().name(format!("shard-{index}"));
        threads.push(thread.spawn(move || shard::run(start))?);
    }
    drop((up, log));
    let address = config.listen.to_string();
    let shards = shard_count.to_string();
    event(
        "info",
        &[
            ("message", "sandgate is listening"),
            ("version", env!("CARGO_PKG_VERSION")),
            ("address", &address),
            ("shards", &shards),
            ("driver", choice.driver.as_str()),
            ("driver_reason", &choice.reason),
        ],
    );

    let outcome = runtime.block_on(live(config, inbox, downs));
    let mut failed = false;
    for thread in threads {
        failed |= !matches!(thread.join(), Ok(Ok(())));
    }
    // Shards are gone, so the writer ends when all lines are written.
    let _ = log_thread.join();
    if failed {
        event("error", &[("message", "a shard ended with an error")]);
    }
    outcome.map(|code| if failed { ExitCode::FAILURE } else { code })
}

/// The control plane's life: serve, drain on the first signal, end on the second.
async fn live(
    config: Arc<Config>,
    inbox: mpsc::Receiver<crate::mailbox::ToControl>,
    downs: Vec<Arc<Down>>,
) -> io::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let api = Api::new(config.api_url.clone(), config.api_key.expose().to_owned(), config.api_timeout)
        .map_err(|error| io::Error::other(error.without_url()))?;
    let (drained_sender, mut drained) = mpsc::unbounded_channel();
    let flights_max = config.limits.questions_max;
    let control = control::run(Arc::new(api), inbox, downs.clone(), flights_max, drained_sender);
    let control = tokio::spawn(control);
    if let Some(address) = config.metrics {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(with_context(format!("cannot listen on {address} (METRICS_PORT)")));
        match listener {
            Ok(listener) => drop(tokio::spawn(metrics::serve(listener, downs.clone()))),
            Err(error) => {
                tell(&downs, || ToShard::Stop).await;
                return Err(error);
            }
        }
    }

    either(&mut terminate, &mut interrupt).await;
    event("info", &[("message", "draining: no new connections, what runs may finish")]);
    tell(&downs, || ToShard::Drain).await;
    let all = async {
        for _ in 0..downs.len() {
            if drained.recv().await.is_none() {
                return;
            }
        }
    };
    tokio::select! {
        () = all => event("info", &[("message", "drained")]),
        () = tokio::time::sleep(config.shutdown) => {
            event("warning", &[("message", "the time to drain is over, ending what still runs")]);
        }
        () = either(&mut terminate, &mut interrupt) => {
            event("warning", &[("message", "second signal: ending what still runs")]);
        }
    }
    tell(&downs, || ToShard::Stop).await;
    control.abort();
    Ok(ExitCode::SUCCESS)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn tell(downs: &[Arc<Down>], message: impl Fn() -> ToShard) {
    for down in downs {
        while down.push(message()).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// Every connection is two descriptors: the soft limit goes up to the hard one. Refused, the soft limit stays.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
