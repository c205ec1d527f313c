//! From a checked configuration to running shards, and back: start and drain in order.

use crate::admission::Admission;
use crate::config::{Config, DriverChoice, Mistake, MistakeKind};
use crate::contained;
use crate::control::{Control, Lifetimes, LoginSettings, Settings};
use crate::deadlines;
use crate::limits::{self, Descriptors};
use crate::log;
use crate::log_writer::LogWriter;
use crate::mailbox::{Down, ToControl, ToShard};
use crate::ring::{self, Wish};
use crate::shard::{self, Start};
use crate::socket;
use crate::sys;
use crate::tunnel::last_words;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Waiting connections per listener; the kernel cuts it to net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// Room in a shard's downward queue for messages that are no answers.
const MESSAGES_EXTRA: usize = 64;
/// Batches of access log lines between shards and their writer.
const LOG_BATCHES_MAX: usize = 64;
/// How long the lines of each log may take to be written at the end; an output that nobody reads must not hold the exit up.
const LOG_DEADLINE: Duration = Duration::from_secs(2);

/// How long shards may take to make room for each message, and to stop. One that needs longer is stuck: it must not keep the
/// others from being told, nor the process from ending.
const SHARD_PATIENCE: Duration = Duration::from_secs(10);
/// How soon they are looked at again.
const AGAIN: Duration = Duration::from_millis(5);

/// How much longer than its time a drain may take so that tunnels end with a close frame, and clients with theirs.
const LAST_WORDS: Duration = deadlines::LAST_WORDS.saturating_add(last_words::LINGER);

/// Runs until SIGTERM or SIGINT and the drain that follows.
pub fn run(config: Config) -> ExitCode {
    for warning in config.warnings() {
        log::milestone("warning", &warning.what, &[("remedy", &warning.remedy)]);
    }
    std::panic::set_hook(Box::new(contained::tell));
    let code = serve(config).unwrap_or_else(|error| {
        log::milestone("error", &error.to_string(), &[]);
        ExitCode::FAILURE
    });
    log::finish(LOG_DEADLINE);
    code
}

fn with_context(what: String) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn serve(config: Config) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = serve_on(&runtime, config);
    // Dropped, it would wait for look-ups of names, which take minutes where no name server answers.
    runtime.shutdown_background();
    code
}

/// `runtime`: the control plane's.
fn serve_on(runtime: &Runtime, config: Config) -> io::Result<ExitCode> {
    raise_descriptor_limit();
    // Before any pinning: it reads the calling thread's own mask.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let shard_count = config.shards.map_or(cores.len().max(1), std::num::NonZero::get);
    let choice = ring::choose(wish(config.driver))?;
    let config = Arc::new(config);
    let (up, inbox) = mpsc::channel(config.limits.questions_max * shard_count);
    let log = LogWriter::stdout(LOG_BATCHES_MAX)?;

    let downs: Vec<_> = (0..shard_count)
        .map(|_| Down::new(config.limits.questions_max + MESSAGES_EXTRA).map(Arc::new))
        .collect::<io::Result<_>>()?;
    // All that can be refused is asked for before anything runs: whoever reads "listening" may rely on all of it, the
    // metrics page and the handling of signals included.
    let _in_runtime = runtime.enter();
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let control = Control::new(settings(&config), inbox, downs.clone()).map_err(io::Error::other)?;
    let listeners: Vec<_> = (0..shard_count)
        .map(|_| {
            socket::listen(config.listen, BACKLOG, config.defer_accept)
                .map_err(with_context(format!("cannot listen on {} (PROXY_PORT)", config.listen)))
        })
        .collect::<io::Result<_>>()?;
    let admission = Arc::new(Admission::new(&config.admission));
    let (mut threads, (ended, shard_ended)) = (Vec::new(), mpsc::channel(shard_count));
    let (ready, all_ready) = std::sync::mpsc::channel();
    for (index, (listener, down)) in listeners.into_iter().zip(&downs).enumerate() {
        let start = Start {
            index,
            config: config.clone(),
            admission: admission.clone(),
            driver: choice.driver,
            core: if config.pin { cores.get(index % cores.len().max(1)).copied() } else { None },
            listener,
            ready: ready.clone(),
            down: down.clone(),
            up: up.clone(),
            log: log.sender(),
        };
        let thread = std::thread::Builder::new().name(format!("shard-{index}"));
        let end = End { shard: index, down: down.clone(), up: up.clone(), ended: ended.clone() };
        threads.push(thread.spawn(move || {
            // Dropped by a panic, too.
            let _end = end;
            shard::run(start)
        })?);
    }
    drop((up, ended, ready));
    if are_ready(&all_ready, shard_count) {
        let ends = descriptor_ends(open_descriptors(), shard_count).inspect_err(|_| {
            runtime.block_on(tell(&downs, || ToShard::Stop));
        })?;
        let Ends { client_fd_end, idle_fd_end } = ends;
        runtime.block_on(tell(&downs, || ToShard::Accept { client_fd_end, idle_fd_end }));
        let address = config.listen.to_string();
        let shards = shard_count.to_string();
        log::milestone(
            "info",
            "sandgate is listening",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("address", &address),
                ("shards", &shards),
                ("driver", choice.driver.as_str()),
                ("driver_reason", &choice.reason),
            ],
        );
    } else if let Err(likely) = descriptor_ends(own_descriptors(shard_count), shard_count) {
        // Which shard has ended, and of what, is told below.
        log::milestone("error", &likely.to_string(), &[]);
    }

    let mut failed = !runtime.block_on(live(config.shutdown, control, signals, downs, shard_ended));
    for (index, why) in join(threads, SHARD_PATIENCE) {
        failed = true;
        log::milestone("error", "a shard did not end well", &[("shard", &index.to_string()), ("why", &why)]);
    }
    if !log.finish(LOG_DEADLINE) {
        log::milestone("warning", "the last access log lines were not taken in time and are lost", &[]);
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Waits for shards, all of them `within` this: which did not end well, and why.
fn join(threads: Vec<JoinHandle<io::Result<()>>>, within: Duration) -> Vec<(usize, String)> {
    let until = Instant::now() + within;
    let ends = threads.into_iter().map(|thread| {
        while !thread.is_finished() {
            if Instant::now() >= until {
                return Err("it does not stop".to_owned());
            }
            std::thread::sleep(AGAIN);
        }
        let ended = thread.join().map_err(|_| "it panicked".to_owned())?;
        ended.map_err(|error| error.to_string())
    });
    ends.enumerate().filter_map(|(index, end)| Some((index, end.err()?))).collect()
}

/// Says that a shard's thread is over, however it came to that.
struct End {
    shard: usize,
    down: Arc<Down>,
    up: mpsc::Sender<ToControl>,
    ended: mpsc::Sender<usize>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.down.end();
        let _ = self.ended.try_send(self.shard);
        // Lost when the control plane is swamped or gone; then a drain lasts its whole time.
        let _ = self.up.try_send(ToControl::Drained { shard: self.shard });
    }
}

/// The configuration's word for what [`ring::choose`] is asked.
pub fn wish(driver: DriverChoice) -> Wish {
    match driver {
        DriverChoice::Auto => Wish::Auto,
        DriverChoice::IoUring => Wish::IoUring,
        DriverChoice::Epoll => Wish::Epoll,
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        api_base: config.api_url.clone(),
        api_key: config.api_key.clone(),
        timeout: config.api_timeout,
        metrics: config.metrics,
        activity_interval: config.activity_interval,
        redis: config.redis.clone(),
        lifetimes: Lifetimes::of(config),
        flights_max: config.limits.questions_max,
        login: LoginSettings {
            scheme: config.protocol,
            oidc: config.oidc.clone(),
            cookie_mode: config.cookie_mode,
            cookie_domain: config.cookie_domain.clone(),
            keys: std::iter::once(&config.api_key).chain(&config.cookie_keys).cloned().collect(),
        },
    }
}

/// The control plane's life: serve, drain on the first signal, end on the second. `shutdown`: how long a drain lasts.
///
/// A shard or the control plane that ends by itself is a fault. What is left of the gate could go on, but without a part of
/// what makes it safe, and unseen: tunnels are told, and the process ends for its supervisor to start it anew. There is no
/// drain, for nobody takes the new connections meanwhile, and of a shard that panicked not even the old ones are served.
/// `false`: it came to that.
async fn live(
    shutdown: Duration,
    control: Control,
    (mut terminate, mut interrupt): (Signal, Signal),
    downs: Vec<Arc<Down>>,
    mut shard_ended: mpsc::Receiver<usize>,
) -> bool {
    let mut drained = control.all_drained();
    let drained_late = drained.clone();
    let mut control = tokio::spawn(control.run(std::future::pending()));

    let fault = tokio::select! {
        () = either(&mut terminate, &mut interrupt) => None,
        _ = shard_ended.recv() => Some("a shard has ended"),
        _ = &mut control => Some("the control plane has ended"),
    };
    if let Some(fault) = fault {
        log::milestone("error", fault, &[]);
        tell(&downs, || ToShard::Drain).await;
        tell(&downs, || ToShard::LastWords).await;
        heard(drained).await;
        tell(&downs, || ToShard::Stop).await;
        return false;
    }
    log::milestone("info", "draining: no new connections, what runs may finish", &[]);
    tell(&downs, || ToShard::Drain).await;
    tokio::select! {
        // An error would mean that the control plane is gone: then nobody will say it any more.
        Ok(_) = drained.wait_for(|all| *all) => log::milestone("info", "drained", &[]),
        () = tokio::time::sleep(shutdown) => {
            log::milestone("warning", "the time to drain is over, ending what still runs", &[]);
            tell(&downs, || ToShard::LastWords).await;
            heard(drained_late).await;
        }
        () = either(&mut terminate, &mut interrupt) => {
            log::milestone("warning", "second signal: ending what still runs", &[]);
        }
    }
    tell(&downs, || ToShard::Stop).await;
    control.abort();
    true
}

/// Waits until clients have had the last words. Those who have not by then never will.
async fn heard(mut drained: watch::Receiver<bool>) {
    let all = async {
        if drained.wait_for(|all| *all).await.is_err() {
            // Nobody is left who would say it.
            std::future::pending().await
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, all).await;
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn tell(downs: &[Arc<Down>], message: impl Fn() -> ToShard) {
    tell_within(SHARD_PATIENCE, downs, message).await;
}

/// A shard that makes no room for the message `within` this is not told.
async fn tell_within(within: Duration, downs: &[Arc<Down>], message: impl Fn() -> ToShard) {
    let until = Instant::now() + within;
    let mut untold: Vec<usize> = (0..downs.len()).collect();
    loop {
        untold.retain(|shard| downs[*shard].push(message()).is_err());
        if untold.is_empty() || Instant::now() >= until {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    for shard in untold {
        log::milestone("error", "a shard takes no message", &[("shard", &shard.to_string())]);
    }
}

/// Every connection is two descriptors: the soft limit goes up to the hard one. Refused, the soft limit stays.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many a gate of so many shards has once they run.
fn own_descriptors(shards: usize) -> u64 {
    limits::PROCESS_DESCRIPTORS + shards as u64 * limits::SHARD_DESCRIPTORS
}

/// How many this process has.
fn open_descriptors() -> u64 {
    // Without /proc: the kernel gives out the lowest number that is free, or says that none is.
    let lowest = || sys::eventfd().map_or(u64::MAX, |fd| fd.as_raw_fd() as u64);
    std::fs::read_dir("/proc/self/fd").map_or_else(|_| lowest(), |open| open.count() as u64)
}

/// Waits until each shard has said so or has ended. `false`: one has ended, or has done neither for too long.
fn are_ready(ready: &std::sync::mpsc::Receiver<()>, shards: usize) -> bool {
    let until = Instant::now() + SHARD_PATIENCE;
    (0..shards).all(|_| ready.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok())
}

/// Where the parts of the descriptors end.
struct Ends {
    client_fd_end: RawFd,
    idle_fd_end: RawFd,
}

/// `own`: how many the gate needs itself. An error: almost all.
fn descriptor_ends(own: u64, shards: usize) -> io::Result<Ends> {
    use rustix::process::{Resource, getrlimit};
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Ok(Ends { client_fd_end: RawFd::MAX, idle_fd_end: RawFd::MAX });
    };
    let descriptors = Descriptors::of(limit, own);
    if descriptors.carry(shards) {
        let number = |at: u64| RawFd::try_from(at).unwrap_or(RawFd::MAX);
        let client_fd_end = own + descriptors.clients;
        let idle_fd_end = number(client_fd_end + descriptors.kept / 2);
        return Ok(Ends { client_fd_end: number(client_fd_end), idle_fd_end });
    }
    let for_clients = shards as u64 * (limits::CLIENT_DESCRIPTORS_MIN * 4 / 3 + 1);
    let wanted = own.max(own_descriptors(shards)).saturating_add(for_clients);
    let mistake = Mistake {
        kind: MistakeKind::Relation,
        variable: "SANDGATE_SHARDS".to_owned(),
        value: Some(shards.to_string()),
        problem: format!(
            "the limit of {limit} descriptors leaves {} for clients, fewer than {} for each shard",
            descriptors.clients,
            limits::CLIENT_DESCRIPTORS_MIN
        ),
        remedy: format!(
            "raise it (LimitNOFILE= of systemd, --ulimit nofile= of docker) to {wanted} at the very least, or run \
             fewer shards; `sandgate doctor` says what all connections want"
        ),
    };
    Err(io::Error::other(mistake.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shard_that_is_stuck_keeps_no_other_from_being_told_nor_the_process_from_ending() {
        let downs = [1, 1, 1].map(|capacity| Arc::new(Down::new(capacity).expect("an eventfd")));
        downs[0].push(ToShard::Forget).expect("room");
        downs[2].push(ToShard::Forget).expect("room");
        // The first is stuck, the last one busy until the next one has heard.
        let busy = async {
            while downs[1].pop().is_none() {
                tokio::task::yield_now().await;
            }
            downs[2].pop()
        };
        let ((), busy) = tokio::join!(tell_within(AGAIN * 20, &downs, || ToShard::Drain), busy);
        assert!(matches!(busy, Some(ToShard::Forget)) && matches!(downs[2].pop(), Some(ToShard::Drain)));
        assert!(matches!(downs[0].pop(), Some(ToShard::Forget)) && downs[0].pop().is_none());

        let (go, stuck) = std::sync::mpsc::channel::<()>();
        let threads = vec![
            std::thread::spawn(|| Ok(())),
            std::thread::spawn(move || {
                let _ = stuck.recv();
                Ok(())
            }),
            std::thread::spawn(|| Err(io::Error::other("no ring"))),
            std::thread::spawn(|| panic!("a fault of ours")),
        ];
        for ends in [0, 2, 3] {
            while !threads[ends].is_finished() {
                std::thread::yield_now();
            }
        }
        let ends = join(threads, AGAIN);
        let why = ["it does not stop", "no ring", "it panicked"].map(str::to_owned);
        assert_eq!(ends, [1, 2, 3].into_iter().zip(why).collect::<Vec<_>>());
        drop(go);
    }
}
