//! A tunnel after a `101`: bytes both ways, half-close each way, no timer but for a client that takes nothing. Idle, it is two waits and nothing else.

use crate::counters::{add, less};
use crate::deadlines::Watch;
use crate::live::Alive;
use crate::relay::{Lane, Means, SinkFraming, Stream, Way};
use crate::socket::Socket;
use rustix::net::Shutdown;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// A runner connection that has switched protocols, and what the client sent behind its request.
pub struct Tunnel {
    pub runner: Socket,
    pub early: Vec<u8>,
    /// Cuts it when the right it was opened by ends.
    pub alive: Option<Alive>,
}

/// The runner's place beside the client in the deadline table; out of it before the socket can close.
struct Attached<'a> {
    watch: &'a Watch,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.watch.detach();
    }
}

/// Runs until both directions ended or one broke. Bytes moved stand in the counters.
///
/// Thousands of these wait for hours, so nothing is kept twice: no `async fn`, whose arguments would be.
pub fn run<'a, C: Stream>(
    client: &'a C,
    tunnel: Tunnel,
    means: Means<'a>,
) -> impl Future<Output = ()> + use<'a, C> {
    let Tunnel { runner, early, alive } = tunnel;
    add(&means.counters.tunnels, 1);
    add(&means.counters.tunnels_open, 1);
    // Hours without a byte are normal here; a peer that vanished must be noticed all the same.
    let _ = client.keep_alive();
    let _ = runner.keep_alive();
    async move {
        let _alive = alive;
        means.watch.attach(runner.raw_fd());
        let _attached = Attached { watch: means.watch };
        let up = Lane { source: client, sink: &runner, way: Way::Up, means: &means };
        let down = Lane { source: &runner, sink: client, way: Way::Down, means: &means };
        let (mut up, mut down) = (pin!(direction(up, early)), pin!(direction(down, Vec::new())));
        let (mut up_done, mut down_done) = (false, false);
        poll_fn(|cx| {
            up_done = up_done || up.as_mut().poll(cx).is_ready();
            down_done = down_done || down.as_mut().poll(cx).is_ready();
            if up_done && down_done { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        less(&means.counters.tunnels_open);
    }
}

/// One direction to its end, beginning with what was read already. A clean end is passed on as a half-close; a broken
/// one ends both.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would keep the lane twice, in thousands of idle tunnels"
)]
fn direction<'a, S: Stream, D: Stream>(
    lane: Lane<'a, S, D>,
    early: Vec<u8>,
) -> impl Future<Output = ()> + use<'a, S, D> {
    async move {
        let mut ended = Ok(());
        if !early.is_empty() {
            ended = Box::pin(lane.send_whole(early)).await.map(drop);
        }
        if ended.is_ok() {
            ended = lane.until_end(SinkFraming::Bare).await.map(drop);
        }
        match ended {
            Ok(()) => lane.sink.shutdown(Shutdown::Write),
            Err(_) => {
                lane.sink.shutdown(Shutdown::Both);
                lane.source.shutdown(Shutdown::Both);
            }
        }
    }
}
