//! A relay in front of the Redis that proxies share with the API, so that a lever can take it away and bring it back: a Redis
//! belongs to its operator and is not to be stopped from here.
//!
//! Bytes pass as they are, TLS and logins too. What the API itself tells Redis ([`super::redis`]) does not come this way.

use super::listener::{Restarts, listen};
use super::state::{World, count};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connecting to Redis may take as long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Accept failed: out of descriptors, probably. Trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Relay {
    /// Where proxies come in.
    pub address: SocketAddr,
    pub listener: TcpListener,
    /// `host:port` of the Redis itself.
    pub redis: Arc<str>,
    /// Of one thread, the relay's.
    pub restarts: Restarts,
}

impl Relay {
    /// Relays until `stop` changes or its sender is gone.
    pub async fn live(self, world: &World, mut stop: watch::Receiver<bool>) -> io::Result<()> {
        tokio::select! {
            ended = self.relay(world) => ended,
            _ = stop.changed() => Ok(()),
        }
    }

    async fn relay(self, world: &World) -> io::Result<()> {
        let mut asked = self.restarts.asked();
        let mut listener = self.listener;
        loop {
            let listening = tokio::net::TcpListener::from_std(listener)?;
            // Connections end with it.
            let mut connections = JoinSet::new();
            tokio::select! {
                never = accept(world, &listening, &self.redis, &mut connections) => match never {},
                _ = asked.changed() => {}
            }
            drop(listening);
            connections.shutdown().await;
            let (number, down) = *asked.borrow_and_update();
            self.restarts.done(0, number);
            tokio::time::sleep(down).await;
            listener = listen(self.address)?;
        }
    }
}

async fn accept(
    world: &World,
    listener: &tokio::net::TcpListener,
    redis: &Arc<str>,
    connections: &mut JoinSet<()>,
) -> std::convert::Infallible {
    loop {
        match listener.accept().await {
            Ok((proxy, _)) => {
                count(&world.counters.redis_connections);
                let redis = redis.clone();
                connections.spawn(async move { pass(proxy, &redis).await });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        // What is over is forgotten.
        while connections.try_join_next().is_some() {}
    }
}

/// One proxy's connection, to its end. A Redis that cannot be reached ends it at once, as one that dies does.
async fn pass(mut proxy: TcpStream, redis: &str) {
    let Ok(Ok(mut redis)) = timeout(PATIENCE, TcpStream::connect(redis)).await else { return };
    // Small messages that wait for each other.
    if proxy.set_nodelay(true).and_then(|()| redis.set_nodelay(true)).is_ok() {
        // However it ends, both sides are closed with it.
        let _ = tokio::io::copy_bidirectional(&mut proxy, &mut redis).await;
    }
}
