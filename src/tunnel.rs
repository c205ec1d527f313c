//! A tunnel after a `101`: bytes both ways, no timer, half-close each way. Idle, it is two waits and nothing else.

use crate::counters::{add, less};
use crate::relay::{Fault, Lane, Means, SinkFraming, Stream, Way};
use crate::socket::{self, Socket};
use rustix::net::Shutdown;

/// A runner connection that has switched protocols, and what the client sent behind its request.
pub struct Tunnel {
    pub runner: Socket,
    pub early: Vec<u8>,
}

/// Runs until both directions ended or one broke. Bytes moved stand in the counters.
pub async fn run<C: Stream>(client: &C, tunnel: Tunnel, means: Means<'_>) {
    let Tunnel { runner, early } = tunnel;
    add(&means.counters.tunnels, 1);
    add(&means.counters.tunnels_open, 1);
    // Hours without a byte are normal here; a peer that vanished must be noticed all the same.
    for fd in [client.splice_fd(), runner.splice_fd()].into_iter().flatten() {
        let _ = socket::set_keepalive(fd);
    }
    let up = Lane { source: client, sink: &runner, way: Way::Up, means };
    let down = Lane { source: &runner, sink: client, way: Way::Down, means };
    let up = async {
        let sent = up.send(&early).await;
        drop(early);
        direction(&up, sent).await;
    };
    let down = async { direction(&down, Ok(())).await };
    join(up, down).await;
    less(&means.counters.tunnels_open);
}

/// One direction to its end. A clean end is passed on as a half-close; a broken one ends both.
async fn direction<S: Stream, D: Stream>(lane: &Lane<'_, S, D>, begun: Result<(), Fault>) {
    let ended = match begun {
        Ok(()) => lane.until_end(SinkFraming::Bare).await.map(|_| ()),
        Err(fault) => Err(fault),
    };
    match ended {
        Ok(()) => lane.sink.shutdown(Shutdown::Write),
        Err(_) => {
            lane.sink.shutdown(Shutdown::Both);
            lane.source.shutdown(Shutdown::Both);
        }
    }
}

async fn join(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut a_done, mut b_done) = (false, false);
    std::future::poll_fn(|cx| {
        a_done = a_done || a.as_mut().poll(cx).is_ready();
        b_done = b_done || b.as_mut().poll(cx).is_ready();
        if a_done && b_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
