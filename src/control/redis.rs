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
    IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, Value,
};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{error::Elapsed, timeout};

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

/// What Redis tells without being asked. Called while the connection is read: it must not wait.
pub trait Listener: Send + Sync {
    /// Keys that begin so are listened for. None may be the beginning of another.
    fn prefixes(&self) -> Vec<String>;
    /// As [`Self::prefixes`], of keys that not every account may see: that they are refused spoils nothing.
    fn more_prefixes(&self) -> Vec<String>;
    /// The channel listened to.
    fn channel(&self) -> &str;
    fn hear(&self, news: News<'_>);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News<'a> {
    /// From here on nothing is missed, until [`News::Lost`].
    Listening,
    /// Somebody else wrote this key, or it was deleted, or its time was over.
    Invalidated(&'a [u8]),
    /// All keys are gone.
    AllInvalidated,
    /// On the channel.
    Published(&'a [u8]),
    /// The connection is gone, and what it would have told.
    Lost,
}

/// A key's value and how much longer it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub value: Vec<u8>,
    /// `None`: for ever.
    pub expires_in: Option<Duration>,
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
    listener: Option<Arc<dyn Listener>>,
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
    pub fn new(
        settings: &config::Redis,
        listener: Option<Arc<dyn Listener>>,
        stats: Arc<Stats>,
        log: Log,
    ) -> Result<Self, &'static str> {
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
        let up = watch::Sender::new(false);
        let inner = Inner { client, link: Mutex::default(), up, listener, stats, log };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The value of a key; `None`: there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.call(redis::cmd("GET").arg(key)).await
    }

    /// The values of some keys, in one go. A value longer than `bytes_max` comes as its first `bytes_max` bytes.
    pub async fn read(&self, keys: &[&str], bytes_max: usize) -> Result<Vec<Option<Stored>>, Failure> {
        let mut commands = redis::pipe();
        for key in keys {
            commands.cmd("GETRANGE").arg(key).arg(0).arg(bytes_max - 1);
            commands.cmd("PTTL").arg(key);
        }
        let found: Vec<(Vec<u8>, i64)> = {
            let (mut connection, generation) = self.connection()?;
            let asked = timeout(DEADLINE, commands.query_async::<Vec<Value>>(&mut connection)).await;
            let values = self.settle(asked, generation)?;
            let pairs = values.chunks_exact(2).map(|pair| {
                let [value, ttl] = pair else { return None };
                Some((Vec::from_redis_value(value.clone()).ok()?, i64::from_redis_value(ttl.clone()).ok()?))
            });
            pairs.collect::<Option<_>>().ok_or(Failure::Refused)?
        };
        let stored = found.into_iter().map(|(value, ttl)| match ttl {
            // There is no such key.
            -2 => None,
            ttl => Some(Stored { value, expires_in: u64::try_from(ttl).ok().map(Duration::from_millis) }),
        });
        Ok(stored.collect())
    }

    /// How much longer a key lives; `None`: it is not there, or lives for ever.
    pub async fn lives_for(&self, key: &str) -> Result<Option<Duration>, Failure> {
        let left: i64 = self.call(redis::cmd("PTTL").arg(key)).await?;
        Ok(u64::try_from(left).ok().map(Duration::from_millis))
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

    /// One more connection, for what must not share the first one's fate. Not looked after: drop it when it fails.
    pub async fn connect_writer(&self) -> Result<Writer, Failure> {
        let config = config();
        let connecting = self.inner.client.get_multiplexed_async_connection_with_config(&config);
        match timeout(CONNECT_DEADLINE, connecting).await {
            Ok(Ok(connection)) => Ok(Writer { connection }),
            _ => Err(Failure::Down),
        }
    }

    async fn connect(&self) -> Result<(), RedisError> {
        let generation = {
            let mut link = self.link();
            link.generation += 1;
            link.generation
        };
        let mut config = config();
        if let Some(listener) = &self.inner.listener {
            let (listener, handle) = (Arc::clone(listener), self.clone());
            config = config.set_push_sender(move |push: PushInfo| {
                handle.pushed(&*listener, generation, &push);
                Ok::<_, redis::aio::SendError>(())
            });
        }
        let mut connection = self.inner.client.get_multiplexed_async_connection_with_config(&config).await?;
        // One that is as slow as before stays unused: else every attempt would cost somebody a deadline.
        let ping = redis::cmd("PING");
        match timeout(DEADLINE, ping.query_async::<Value>(&mut connection)).await {
            Ok(Err(error)) if !is_refusal(&error) => return Err(error),
            Ok(_) => {}
            Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
        if let Some(listener) = &self.inner.listener {
            match listen(&mut connection, &**listener).await {
                Ok(()) => {
                    match track(&mut connection, &listener.more_prefixes()).await {
                        Err(error) if !is_refusal(&error) => return Err(error),
                        Err(error) => self.report("redis_push_partly_refused", &describe(&error)),
                        Ok(()) => {}
                    }
                    listener.hear(News::Listening);
                }
                // Values are of use without news, too.
                Err(error) if is_refusal(&error) => self.report("redis_push_refused", &describe(&error)),
                Err(error) => return Err(error),
            }
        }
        self.link().connection = Some(connection);
        self.tell_up(true);
        Ok(())
    }

    fn pushed(&self, listener: &dyn Listener, generation: u64, push: &PushInfo) {
        if self.link().generation != generation {
            return;
        }
        match (&push.kind, &push.data[..]) {
            (PushKind::Disconnection, _) => drop(self.lose(generation, "disconnected")),
            (PushKind::Invalidate, [Value::Array(keys)]) => {
                for key in keys {
                    if let Value::BulkString(key) = key {
                        listener.hear(News::Invalidated(key));
                    }
                }
            }
            (PushKind::Invalidate, _) => listener.hear(News::AllInvalidated),
            (PushKind::Message, [_, Value::BulkString(payload)]) => {
                listener.hear(News::Published(payload));
            }
            _ => {}
        }
    }

    /// Until the breaker opens.
    async fn look_after(&self) {
        let mut up = self.watch_up();
        loop {
            // Refused is an answer, too.
            if self.call::<Value>(&redis::cmd("PING")).await == Err(Failure::Down) {
                return;
            }
            tokio::select! {
                _ = up.wait_for(|up| !*up) => return,
                () = tokio::time::sleep(PING_EVERY) => {}
            }
        }
    }

    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let (mut connection, generation) = self.connection()?;
        let asked = timeout(DEADLINE, command.query_async(&mut connection)).await;
        self.settle(asked, generation)
    }

    fn connection(&self) -> Result<(MultiplexedConnection, u64), Failure> {
        let link = self.link();
        match &link.connection {
            Some(connection) => Ok((connection.clone(), link.generation)),
            None => {
                self.inner.stats.redis.skipped.fetch_add(1, Relaxed);
                Err(Failure::Down)
            }
        }
    }

    fn settle<T>(
        &self,
        asked: Result<Result<T, RedisError>, Elapsed>,
        generation: u64,
    ) -> Result<T, Failure> {
        let stats = &self.inner.stats.redis;
        match asked {
            Ok(Ok(value)) => {
                stats.done.fetch_add(1, Relaxed);
                Ok(value)
            }
            Ok(Err(error)) if is_refusal(&error) => {
                stats.refused.fetch_add(1, Relaxed);
                self.report("redis_refused", &describe(&error));
                Err(Failure::Refused)
            }
            Ok(Err(error)) => {
                stats.failed.fetch_add(1, Relaxed);
                Err(self.lose(generation, &describe(&error)))
            }
            Err(_) => {
                stats.failed.fetch_add(1, Relaxed);
                Err(self.lose(generation, "no answer in time"))
            }
        }
    }

    /// Opens the breaker, once per connection.
    fn lose(&self, generation: u64, why: &str) -> Failure {
        let mut link = self.link();
        if link.generation == generation && link.connection.take().is_some() {
            drop(link);
            if let Some(listener) = &self.inner.listener {
                listener.hear(News::Lost);
            }
            self.tell_up(false);
            self.report("redis_lost", why);
        }
        Failure::Down
    }

    fn connect_failed(&self, why: &str) {
        self.inner.stats.redis.connects_failed.fetch_add(1, Relaxed);
        self.report("redis_connect_failed", why);
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

/// See [`Redis::connect_writer`].
pub struct Writer {
    connection: MultiplexedConnection,
}

impl Writer {
    /// As [`Redis::set`], without a deadline of its own.
    pub async fn set(&mut self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Failure> {
        let set = redis::cmd("SET").arg(key).arg(value).arg("PX").arg(millis(ttl)).to_owned();
        set.query_async(&mut self.connection).await.map_err(|_| Failure::Down)
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(PIPELINE)
}

/// Asks for news. What this connection itself writes is none.
async fn listen(connection: &mut MultiplexedConnection, listener: &dyn Listener) -> Result<(), RedisError> {
    track(connection, &listener.prefixes()).await?;
    connection.subscribe(listener.channel()).await
}

/// Listens for these prefixes, beside those before.
async fn track(connection: &mut MultiplexedConnection, prefixes: &[String]) -> Result<(), RedisError> {
    let mut track = redis::cmd("CLIENT");
    track.arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
    for prefix in prefixes {
        track.arg("PREFIX").arg(prefix);
    }
    track.query_async(connection).await
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
