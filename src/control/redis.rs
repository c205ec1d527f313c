//! The Redis that API and proxies share, as something that may be gone at any moment.
//!
//! An operation takes at most [`DEADLINE`]. The first one that takes longer, or finds the connection broken, opens the
//! breaker: until the connection is back, every further operation fails at once and costs nothing. Bringing it back is
//! [`Redis::keep`]'s, in the background. Knows no key and no meaning of a value.

#[cfg(test)]
mod tests;

use super::stats::Stats;
use crate::config;
use crate::log::{Level, Log};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo as _, ProtocolVersion, RedisConnectionInfo, RedisError,
};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// For one operation, waiting in line included.
pub const DEADLINE: Duration = Duration::from_millis(100);
/// For one attempt to connect and introduce ourselves; nobody waits for it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Distance of two looks at a connection nobody uses.
const PING_EVERY: Duration = Duration::from_millis(500);
/// Wait after the first failed attempt; doubles with each further one.
const BACK_OFF_BASE: Duration = Duration::from_millis(50);
const BACK_OFF_CAP: Duration = Duration::from_secs(2);
/// A connection that lived this long was a good one: the next failure starts the back-off anew.
const SETTLED: Duration = Duration::from_secs(5);
/// Operations in line; more wait within their own deadline.
const PIPELINE: usize = 1024;

/// Why an operation has no result. For a cache either is a miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No connection, or none that answers in time.
    Down,
    /// Redis answered, but not with what was asked for: wrong type, read-only, no permission, still loading.
    Refused,
}

/// A handle; clones share the connection and the breaker.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    /// Never held across an await.
    link: Mutex<Link>,
    /// Told of every change of `link`.
    up: watch::Sender<bool>,
    stats: Arc<Stats>,
    log: Log,
}

#[derive(Default)]
struct Link {
    /// `None`: the breaker is open.
    connection: Option<MultiplexedConnection>,
    /// Distinguishes this connection from earlier ones, whose late failures must not end it.
    generation: u64,
}

impl Redis {
    /// Opens no connection yet: [`Self::keep`] does.
    ///
    /// # Errors
    /// A sentence for the operator, without secrets.
    pub fn new(settings: &config::Redis, stats: Arc<Stats>, log: Log) -> Result<Self, &'static str> {
        let host = settings.host.clone();
        let addr = if settings.tls {
            // Chosen by name: with two providers compiled in, rustls would panic rather than choose. An error says
            // that somebody chose before us.
            drop(rustls::crypto::ring::default_provider().install_default());
            ConnectionAddr::TcpTls { host, port: settings.port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, settings.port)
        };
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &settings.username {
            login = login.set_username(username);
        }
        if let Some(password) = &settings.password {
            login = login.set_password(password.expose());
        }
        let info: ConnectionInfo =
            addr.into_connection_info().map_err(|_| "REDIS_HOST and REDIS_PORT name no address")?;
        let client = Client::open(info.set_redis_settings(login)).map_err(
            |_| "the Redis client cannot be set up; with REDIS_TLS, are there trusted certificates?",
        )?;
        let inner = Inner { client, link: Mutex::default(), up: watch::Sender::new(false), stats, log };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The value of a key; `None`: there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.call(redis::cmd("GET").arg(key)).await
    }

    /// Sets a value that lives for `ttl`, at least a millisecond.
    pub async fn set(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Failure> {
        self.call(redis::cmd("SET").arg(key).arg(value).arg("PX").arg(millis(ttl))).await
    }

    /// As [`Self::set`], if the key is not there yet; `false`: it is, and stays as it is. Two that ask at once are
    /// never both told `true`.
    pub async fn set_nx(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, Failure> {
        let set: Option<String> =
            self.call(redis::cmd("SET").arg(key).arg(value).arg("PX").arg(millis(ttl)).arg("NX")).await?;
        Ok(set.is_some())
    }

    /// `true`: the key was there. Of two that delete at once one is told `true`: what is deleted can be used once.
    pub async fn del(&self, key: &str) -> Result<bool, Failure> {
        let count: u64 = self.call(redis::cmd("DEL").arg(key)).await?;
        Ok(count > 0)
    }

    /// The breaker is closed: operations are tried.
    pub fn is_up(&self) -> bool {
        *self.inner.up.borrow()
    }

    /// Wakes with every opening and closing of the breaker.
    pub fn watch_up(&self) -> watch::Receiver<bool> {
        self.inner.up.subscribe()
    }

    /// Connects, looks after the connection and connects again, for ever. Run it once. Cancel-safe.
    pub async fn keep(self) {
        let mut wait = BACK_OFF_BASE;
        loop {
            let begun = Instant::now();
            match timeout(CONNECT_DEADLINE, self.connect()).await {
                Ok(Ok(())) => {
                    self.inner.log.event(Level::Info, "redis_connected", &[]);
                    self.look_after().await;
                    if begun.elapsed() >= SETTLED {
                        wait = BACK_OFF_BASE;
                    }
                }
                Ok(Err(error)) => self.connect_failed(&describe(&error)),
                Err(_) => self.connect_failed("no answer in time"),
            }
            // Spread, so that many proxies do not come back in the same moment.
            tokio::time::sleep(wait.mul_f64(0.5 + spread())).await;
            wait = (wait * 2).min(BACK_OFF_CAP);
        }
    }

    async fn connect(&self) -> Result<(), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE);
        let connection = self.inner.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut link = self.link();
        link.connection = Some(connection);
        link.generation += 1;
        drop(link);
        self.tell_up(true);
        Ok(())
    }

    fn connect_failed(&self, why: &str) {
        self.inner.stats.redis.connects_failed.fetch_add(1, Relaxed);
        self.report("redis_connect_failed", why);
    }

    /// Until the breaker opens.
    async fn look_after(&self) {
        let mut up = self.watch_up();
        loop {
            // Refused is an answer, too.
            if self.call::<redis::Value>(&redis::cmd("PING")).await == Err(Failure::Down) {
                return;
            }
            tokio::select! {
                _ = up.wait_for(|up| !*up) => return,
                () = tokio::time::sleep(PING_EVERY) => {}
            }
        }
    }

    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let stats = &self.inner.stats.redis;
        let (connection, generation) = {
            let link = self.link();
            (link.connection.clone(), link.generation)
        };
        let Some(mut connection) = connection else {
            stats.skipped.fetch_add(1, Relaxed);
            return Err(Failure::Down);
        };
        match timeout(DEADLINE, command.query_async(&mut connection)).await {
            Ok(Ok(value)) => {
                stats.done.fetch_add(1, Relaxed);
                Ok(value)
            }
            Ok(Err(error)) if is_refusal(&error) => {
                stats.refused.fetch_add(1, Relaxed);
                self.report("redis_refused", &describe(&error));
                Err(Failure::Refused)
            }
            Ok(Err(error)) => Err(self.lose(generation, &describe(&error))),
            Err(_) => Err(self.lose(generation, "no answer in time")),
        }
    }

    /// Opens the breaker, once per connection.
    fn lose(&self, generation: u64, why: &str) -> Failure {
        self.inner.stats.redis.failed.fetch_add(1, Relaxed);
        let mut link = self.link();
        if link.generation == generation && link.connection.take().is_some() {
            drop(link);
            self.tell_up(false);
            self.report("redis_lost", why);
        }
        Failure::Down
    }

    fn tell_up(&self, up: bool) {
        self.inner.stats.redis.up.store(u64::from(up), Relaxed);
        self.inner.up.send_replace(up);
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        // Nothing in it can be half done.
        self.inner.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, what: &'static str, detail: &str) {
        self.inner.log.event(Level::Warn, what, &[("detail", detail)]);
    }
}

/// Redis understood and said no; everything else is a connection that is not what it should be.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType)
        && !error.is_io_error()
}

/// For the log: the kind and the server's error code. Never the whole text, which may quote a value.
fn describe(error: &RedisError) -> String {
    match (error.code(), error.is_io_error()) {
        (Some(code), _) => format!("{:?}: {code}", error.kind()),
        // The system's words about a socket.
        (None, true) => error.to_string(),
        (None, false) => format!("{:?}", error.kind()),
    }
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// 0 to 1, different from process to process and from time to time; no more is needed here.
fn spread() -> f64 {
    let bytes = uuid::Uuid::now_v7().into_bytes();
    f64::from(bytes[15]) / 256.0
}
