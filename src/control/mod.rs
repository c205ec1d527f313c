//! The control plane: one thread that knows what shards do not and may wait where shards may not.
//!
//! Takes questions from all shards, lets equal ones share a call to the API, and answers each asker exactly once.
//! Runs on a tokio current-thread runtime (name lookups go to its blocking pool). Knows no client connection.

mod activity;
pub(crate) mod api;
mod echo;
mod exposition;
#[cfg(test)]
mod fake_api;
mod flights;
pub(crate) mod login;
pub(crate) mod lookup;
mod metrics;
mod object;
mod process;
pub(crate) mod push;
mod recheck;
pub mod redis;
#[cfg(test)]
#[path = "../../tests/support/redis_server.rs"]
#[allow(dead_code, reason = "shared with other tests, which use the rest")]
mod redis_server;
pub(crate) mod runner_address;
mod stats;
#[cfg(test)]
mod tests;

use crate::config::{self, Secret};
use crate::log::{self, Level, Log};
use crate::mailbox::{Down, Question, Reply, ToControl, ToShard, Trouble};
use activity::{Mentions, Reporter};
use api::Api;
use echo::Echo;
use flights::{Asked, Flights, Waiter};
use login::Login;
pub use login::LoginSettings;
pub use lookup::Lifetimes;
use lookup::{Found, Lookup};
use push::{Push, Told};
use redis::Redis;
use stats::{Operation, Stats};
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

/// How soon an answer that found a shard's queue full is tried again.
const REDELIVER: Duration = Duration::from_millis(2);

#[derive(Clone, Debug)]
pub struct Settings {
    /// With its path, as `http://api:3000/api`.
    pub api_base: String,
    /// The service key.
    pub api_key: Secret,
    /// For one question, all tries and calls together.
    pub timeout: Duration,
    /// Where the metrics page listens; `None`: nowhere. It has no access control: a loopback address, unless the
    /// network keeps strangers away.
    pub metrics: Option<SocketAddr>,
    /// Least time between two reports that a sandbox is in use.
    pub activity_interval: Duration,
    /// What API and proxies share; `None`: every proxy is on its own.
    pub redis: Option<config::Redis>,
    pub lifetimes: Lifetimes,
    /// Most calls under way at once; beyond it questions are answered [`Trouble::Overloaded`]. Each costs a task, a
    /// connection and at worst 256 KiB of body.
    pub flights_max: usize,
    pub login: LoginSettings,
}

/// Why there is no control plane.
#[derive(Debug)]
pub enum StartError {
    /// A sentence for the operator.
    Setting(&'static str),
    /// The metrics page cannot listen.
    Metrics(SocketAddr, std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setting(sentence) => f.write_str(sentence),
            Self::Metrics(addr, error) => {
                write!(f, "the metrics page cannot listen at {addr} (METRICS_PORT): {error}")
            }
        }
    }
}

impl std::error::Error for StartError {}

pub struct Control {
    lookup: Arc<Lookup>,
    login: Arc<Login>,
    redis: Option<Shared>,
    inbox: mpsc::Receiver<ToControl>,
    flights: Flights,
    echo: Echo,
    tasks: JoinSet<Landed>,
    /// What goes on all the time: the metrics page, reports of use, the way to Redis. A JoinSet aborts what it holds, so they
    /// end with this.
    servers: JoinSet<()>,
    outbox: Outbox,
    mentions: Mentions,
    /// Until [`Self::run`].
    reporter: Option<Reporter>,
    stats: Arc<Stats>,
    metrics: Option<metrics::Server>,
    /// By shard.
    drained: Vec<bool>,
    all_drained: watch::Sender<bool>,
}

/// What API and proxies share.
struct Shared {
    redis: Redis,
    push: Arc<Push>,
    told: mpsc::Receiver<Told>,
}

/// What a flight brings home.
struct Landed {
    question: Arc<Question>,
    operation: Operation,
    took: Duration,
    found: Found,
}

impl Control {
    /// `downs` by shard number. The metrics page listens from here on and answers once [`Self::run`] runs.
    pub fn new(
        settings: Settings,
        inbox: mpsc::Receiver<ToControl>,
        downs: Vec<Arc<Down>>,
    ) -> Result<Self, StartError> {
        Self::with_log(settings, inbox, downs, log::process_log())
    }

    fn with_log(
        settings: Settings,
        inbox: mpsc::Receiver<ToControl>,
        downs: Vec<Arc<Down>>,
        log: Log,
    ) -> Result<Self, StartError> {
        let Settings {
            api_base,
            api_key,
            timeout,
            metrics,
            redis,
            activity_interval,
            lifetimes,
            flights_max,
            login,
        } = settings;
        let stats = Arc::<Stats>::default();
        let metrics = metrics
            .map(|addr| {
                metrics::Server::bind(addr, downs.clone(), Arc::clone(&stats))
                    .map_err(|error| StartError::Metrics(addr, error))
            })
            .transpose()?;
        let redis = redis.map(|redis| Shared::new(&redis, &stats, &log)).transpose()?;
        let api = Api::new(&api_base, &api_key, timeout, log.clone()).map_err(StartError::Setting)?;
        let api = Arc::new(api);
        let shared = redis.as_ref().map(|shared| (shared.redis.clone(), Arc::clone(&shared.push)));
        let client = redis.as_ref().map(|shared| shared.redis.clone());
        let (mentions, reporter) =
            Reporter::new(Arc::clone(&api), client, activity_interval, Arc::clone(&stats));
        let used_at = redis.as_ref().map(|shared| shared.redis.clone());
        let login =
            Login::new(login, Arc::clone(&api), used_at, timeout, log).map_err(StartError::Setting)?;
        Ok(Self {
            lookup: Arc::new(Lookup::new(api, shared, lifetimes, Arc::clone(&stats))),
            redis,
            login: Arc::new(login),
            inbox,
            mentions,
            reporter: Some(reporter),
            flights: Flights::new(flights_max),
            echo: Echo::new(),
            tasks: JoinSet::new(),
            servers: JoinSet::new(),
            drained: vec![false; downs.len()],
            outbox: Outbox::new(downs),
            stats,
            metrics,
            all_drained: watch::Sender::new(false),
        })
    }

    /// Becomes true once every shard has said [`ToControl::Drained`].
    pub fn all_drained(&self) -> watch::Receiver<bool> {
        self.all_drained.subscribe()
    }

    /// Where the metrics page listens: the port when 0 was asked for.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(metrics::Server::addr)
    }

    /// Serves until `shutdown` resolves, every sender of the inbox is gone or a part of it panics: changes that nobody passes on
    /// any more would let in who is not to be. Open flights end with it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        if let Some(server) = self.metrics.take() {
            self.servers.spawn(server.run());
        }
        if let Some(reporter) = self.reporter.take() {
            self.servers.spawn(reporter.run());
        }
        let mut told = None;
        if let Some(Shared { redis, push, told: receiver }) = self.redis.take() {
            self.servers.spawn(redis.clone().keep());
            self.servers.spawn(Arc::clone(&push).keep_links());
            self.servers.spawn(push.keep_canary(redis));
            told = Some(receiver);
        }
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                news = hear(&mut told) => self.outbox.tell(news),
                Some(ended) = self.tasks.join_next_with_id() => self.land(ended),
                Some(ended) = self.servers.join_next() => if ended.is_err() { return },
                () = tokio::time::sleep(REDELIVER), if self.outbox.is_waiting() => self.outbox.redeliver(),
            }
            self.stats.flights_open.store(self.flights.count() as u64, Relaxed);
            self.stats.answers_waiting.store(self.outbox.waiting_count() as u64, Relaxed);
        }
    }

    fn take(&mut self, message: ToControl) {
        match message {
            ToControl::Ask { shard, ticket, question } => self.ask(Waiter { shard, ticket }, question),
            ToControl::Cancel { shard, ticket } => self.flights.cancel(Waiter { shard, ticket }),
            ToControl::Active { sandbox } => self.mentions.mention(sandbox),
            ToControl::Drained { shard } => {
                if let Some(drained) = self.drained.get_mut(shard) {
                    *drained = true;
                }
                if self.drained.iter().all(|drained| *drained) {
                    self.all_drained.send_replace(true);
                }
            }
        }
    }

    fn ask(&mut self, waiter: Waiter, question: Question) {
        if let Some(heard) = self.echo.of(&question, Instant::now())
            && !self.lookup.is_outdated(&question, heard.began)
        {
            self.stats.joined.fetch_add(1, Relaxed);
            return self.outbox.answer(waiter, heard.reply, heard.keep);
        }
        let Self { flights, tasks, lookup, login, .. } = self;
        if let Some(began) = flights.began(&question)
            && lookup.is_outdated(&question, began)
        {
            // Whoever asks now must not be told what held before the change.
            flights.leave_alone(&question);
        }
        let asked = flights.ask(question, waiter, |question| {
            let (lookup, login) = (Arc::clone(lookup), Arc::clone(login));
            tasks.spawn(async move {
                let start = Instant::now();
                let found = match &*question {
                    Question::Login(question) => {
                        Found { reply: login.answer(question).await, keep: Duration::ZERO }
                    }
                    question => lookup.answer(question).await,
                };
                Landed { operation: Operation::of(&question), took: start.elapsed(), question, found }
            })
        });
        match asked {
            Asked::Flies => {}
            Asked::Joined => {
                self.stats.joined.fetch_add(1, Relaxed);
            }
            Asked::Full => {
                self.stats.trouble(Trouble::Overloaded);
                self.outbox.answer(waiter, Err(Trouble::Overloaded), Duration::ZERO);
            }
        }
    }

    fn land(&mut self, ended: Result<(Id, Landed), JoinError>) {
        let (id, found) = match ended {
            Ok((id, Landed { question, operation, took, found })) => {
                self.stats.landed(operation, took, &found.reply);
                self.echo.hear(question, &found, took, Instant::now());
                (id, found)
            }
            // Cancelled ones have left the table: nobody is told.
            Err(error) => {
                if error.is_panic() {
                    log::event(Level::Error, "flight_panicked", &[]);
                    self.stats.trouble(Trouble::ApiGarbage);
                }
                (error.id(), Found { reply: Err(Trouble::ApiGarbage), keep: Duration::ZERO })
            }
        };
        for waiter in self.flights.land(id) {
            self.outbox.answer(waiter, found.reply.clone(), found.keep);
        }
    }
}

impl Shared {
    fn new(settings: &config::Redis, stats: &Arc<Stats>, log: &Log) -> Result<Self, StartError> {
        let (push, told) = Push::new(Arc::clone(stats), log.clone());
        let listener: Arc<dyn redis::Listener> = Arc::<Push>::clone(&push);
        let redis = Redis::new(settings, Some(listener), Arc::clone(stats), log.clone());
        Ok(Self { redis: redis.map_err(StartError::Setting)?, push, told })
    }
}

/// The next news for the shards; never, where there are none.
async fn hear(told: &mut Option<mpsc::Receiver<Told>>) -> Told {
    match told {
        Some(receiver) => match receiver.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Messages on their way to the shards. No answer is lost: what finds a queue full waits here, in order. Bounded by
/// the shards' own bounds on open questions, and news by [`NEWS_WAITING_MAX`].
struct Outbox {
    downs: Vec<Arc<Down>>,
    /// By shard.
    waiting: Vec<VecDeque<ToShard>>,
}

/// With more messages waiting for a shard that is not taking them, it is told once to forget everything.
const NEWS_WAITING_MAX: usize = 64 * 1024;

impl Outbox {
    fn new(downs: Vec<Arc<Down>>) -> Self {
        Self { waiting: downs.iter().map(|_| VecDeque::new()).collect(), downs }
    }

    fn tell(&mut self, news: Told) {
        for (down, waiting) in self.downs.iter().zip(&mut self.waiting) {
            let message = match news {
                Told::Changed(..) | Told::Link(..) | Told::Forget if waiting.len() >= NEWS_WAITING_MAX => {
                    waiting.retain(|message| matches!(message, ToShard::Answer { .. }));
                    ToShard::Forget
                }
                Told::Changed(sandbox, change) => ToShard::Changed { sandbox, change },
                Told::Link(token, port) => ToShard::LinkChanged { token, port },
                Told::Forget => ToShard::Forget,
                Told::Canary(sent) => ToShard::Canary(sent),
            };
            waiting.push_back(message);
            Self::deliver(down, waiting);
        }
    }

    fn answer(&mut self, waiter: Waiter, reply: Reply, keep: Duration) {
        let Some(waiting) = self.waiting.get_mut(waiter.shard) else {
            debug_assert!(false, "a shard that does not exist has asked");
            return;
        };
        waiting.push_back(ToShard::Answer { ticket: waiter.ticket, reply, keep });
        Self::deliver(&self.downs[waiter.shard], waiting);
    }

    fn redeliver(&mut self) {
        for (down, waiting) in self.downs.iter().zip(&mut self.waiting) {
            Self::deliver(down, waiting);
        }
    }

    fn deliver(down: &Down, waiting: &mut VecDeque<ToShard>) {
        while let Some(message) = waiting.pop_front() {
            if let Err(back) = down.push(message) {
                waiting.push_front(back);
                return;
            }
        }
    }

    fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    fn waiting_count(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }
}
