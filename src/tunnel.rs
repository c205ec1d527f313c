//! A tunnel after a `101`: bytes both ways, half-close each way, no timer but for a client that takes nothing. Idle, it
//! is two waits and nothing else.
//!
//! The bytes are the app's and pass as they are. But where the runner's frames end is followed, so that a tunnel whose
//! right has gone, or whose gate goes, ends with a close frame that says why: see [`last_words`].

mod frames;
pub mod last_words;

use crate::buffers::{BULK, Lease, PIPE};
use crate::counters::{Revoked, add, less};
use crate::live::Alive;
use crate::relay::{FULL_READS, Fault, Lane, Means, Stream, TURN, Way};
use crate::socket::{Moved, Socket};
use frames::Frames;
use rustix::net::Shutdown;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

/// From so much of one frame's payload on a pipe pays for itself, and for reading the header apart.
const SPLICE_IN_FRAME_MIN: u64 = 64 * 1024;
/// What is read for a header where large frames follow each other.
const HEADER_READ: u64 = 16;

/// With so many tunnels open, messages leave through the ring, all of a turn together: the peers are woken once for all.
/// With fewer, one that is alone would only take a turn more.
const TOGETHER_MIN: u64 = 8;

/// A runner connection that has switched protocols.
pub struct Tunnel {
    runner: Socket,
    early: Option<Box<[u8]>>,
    frames: Frames,
    alive: Option<Alive>,
}

impl Tunnel {
    /// `early`: what the client sent behind its request. `leftover`: what the runner sent behind its answer's head, and
    /// the client has already. `alive` cuts the tunnel when the right it was opened by ends.
    pub fn new(runner: Socket, early: &[u8], leftover: &[u8], alive: Option<Alive>) -> Self {
        let mut frames = Frames::new();
        frames.pass(leftover);
        Self { runner, early: (!early.is_empty()).then(|| early.into()), frames, alive }
    }
}

/// What both directions share.
struct Course<'a> {
    means: Means<'a>,
    runner: Socket,
    early: Cell<Option<Box<[u8]>>>,
    /// The runner's, up to the last byte that was read.
    frames: Cell<Frames>,
    /// Of the runner's bytes some were read and are not sent yet.
    owing: Cell<bool>,
    _alive: Option<Alive>,
}

impl Drop for Course<'_> {
    /// Out of the deadline table before the socket can close.
    fn drop(&mut self) {
        self.means.watch.detach();
    }
}

/// Runs until both directions ended, one broke or the right is gone. Bytes moved stand in the counters.
///
/// Thousands of these wait for hours, so nothing is kept twice: no `async fn`, whose arguments would be.
pub fn run<'a, C: Stream>(
    client: &'a C,
    tunnel: Tunnel,
    means: Means<'a>,
) -> impl Future<Output = ()> + use<'a, C> {
    let Tunnel { runner, early, frames, alive } = tunnel;
    add(&means.counters.tunnels, 1);
    add(&means.counters.tunnels_open, 1);
    // Hours without a byte are normal here; a peer that vanished must be noticed all the same.
    let _ = client.keep_alive();
    let _ = runner.keep_alive();
    means.watch.attach(runner.raw_fd());
    let course = Course {
        means,
        runner,
        early: Cell::new(early),
        frames: Cell::new(frames),
        owing: Cell::new(false),
        _alive: alive,
    };
    async move {
        let course = &course;
        if let Some(why) = both_ways(client, course).await {
            Box::pin(last_words::say(client, course, why)).await;
        }
        less(&course.means.counters.tunnels_open);
    }
}

/// Until both directions ended; or until the right is gone and there is a last word to say.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would keep its arguments twice, in thousands of idle tunnels"
)]
fn both_ways<'a, 'c, C: Stream>(
    client: &'a C,
    course: &'a Course<'c>,
) -> impl Future<Output = Option<Revoked>> + use<'a, 'c, C> {
    async move {
        let mut up = pin!(direction(client, &course.runner, Way::Up, course));
        let mut down = pin!(direction(&course.runner, client, Way::Down, course));
        let (mut up_done, mut down_done, mut tells_why) = (false, false, false);
        poll_fn(|cx| {
            if !tells_why {
                tells_why = true;
                course.means.watch.tells_why(cx.waker());
            }
            // From then on nothing is read any more; what was read of the runner's is still sent.
            let why = course.means.watch.revoked();
            if why.is_none() {
                up_done = up_done || up.as_mut().poll(cx).is_ready();
            }
            if why.is_none() || course.owing.get() {
                down_done = down_done || down.as_mut().poll(cx).is_ready();
            }
            match why {
                None if up_done && down_done => Poll::Ready(None),
                None => Poll::Pending,
                // The client has had the end already.
                Some(_) if down_done => Poll::Ready(None),
                Some(_) if course.owing.get() => Poll::Pending,
                why => Poll::Ready(why),
            }
        })
        .await
    }
}

/// One direction to its end, beginning with what was read already. A clean end is passed on as a half-close; a broken
/// one ends both.
fn direction<'a, 'c, S: Stream, D: Stream>(
    source: &'a S,
    sink: &'a D,
    way: Way,
    course: &'a Course<'c>,
) -> impl Future<Output = ()> + use<'a, 'c, S, D> {
    let early = if way == Way::Up { course.early.take() } else { None };
    let mut pace = Pace { unpaused: 0, full_reads: 0 };
    let mut next = early.map(|early| owing(lane(source, sink, way, course), course, early.into(), 0, pace));
    async move {
        let ended = loop {
            // Boxed, and nothing else lives across a wait: an idle direction is as small as its wait for readiness.
            if let Some(next) = next.take() {
                match next.await {
                    Ok(after) => pace = after,
                    Err(fault) => break Err(fault),
                }
            }
            if let Err(error) = source.readable().await {
                break Err(Fault::SourceBroke(error));
            }
            let lane = lane(source, sink, way, course);
            next = match step(&lane, course, &mut pace) {
                Ok(Step::Done) => None,
                Ok(Step::Ended) => break Ok(()),
                Ok(Step::Whole(bytes)) => Some(Box::pin(send_together(lane, course, bytes, pace))),
                Ok(Step::Owes(bytes, sent)) => Some(owing(lane, course, bytes, sent, pace)),
                Err(fault) => break Err(fault),
            };
        };
        match ended {
            Ok(()) => sink.shutdown(Shutdown::Write),
            Err(_) => {
                sink.shutdown(Shutdown::Both);
                source.shutdown(Shutdown::Both);
            }
        }
    }
}

/// What has to be done before more is read.
type Next<'a> = Pin<Box<dyn Future<Output = Result<Pace, Fault>> + 'a>>;

fn owing<'a, S: Stream, D: Stream>(
    lane: Lane<'a, S, D>,
    course: &'a Course<'_>,
    bytes: Vec<u8>,
    sent: usize,
    pace: Pace,
) -> Next<'a> {
    Box::pin(catch_up(lane, course, bytes, sent, pace))
}

fn lane<'a, S, D>(source: &'a S, sink: &'a D, way: Way, course: &'a Course<'_>) -> Lane<'a, S, D> {
    Lane { source, sink, way, means: &course.means }
}

/// How much came lately.
#[derive(Clone, Copy)]
struct Pace {
    /// Bytes without a wait.
    unpaused: u32,
    /// In a row.
    full_reads: u32,
}

enum Step {
    Done,
    /// These bytes were read and may leave together with others'.
    Whole(Vec<u8>),
    /// These bytes were read, and so many of them sent; or there is much to move.
    Owes(Vec<u8>, usize),
    /// The source will send no more.
    Ended,
}

/// What can be done without a wait.
fn step<S: Stream, D: Stream>(
    lane: &Lane<'_, S, D>,
    course: &Course<'_>,
    pace: &mut Pace,
) -> Result<Step, Fault> {
    let buffers = lane.means.buffers;
    let mut buf = buffers.small();
    let room = buf.capacity();
    let n = match lane.source.try_recv_at_most(&mut buf, room).map_err(Fault::SourceBroke)? {
        Moved::Bytes(n) => n,
        end => {
            buffers.give(buf);
            return Ok(if end == Moved::End { Step::Ended } else { Step::Done });
        }
    };
    course.passes(lane.way, &buf);
    if lane.means.counters.tunnels_open.get() >= TOGETHER_MIN && n < room {
        pace.full_reads = 0;
        return Ok(Step::Whole(buf));
    }
    let sent = lane.send_now(&buf)?;
    pace.unpaused = pace.unpaused.saturating_add(n as u32);
    pace.full_reads = if n == room { pace.full_reads + 1 } else { 0 };
    if sent < n || pace.full_reads >= FULL_READS || u64::from(pace.unpaused) >= TURN {
        return Ok(Step::Owes(buf, sent));
    }
    buffers.give(buf);
    Ok(Step::Done)
}

/// A message, through the ring with those of all tunnels that have one in this turn of the loop.
async fn send_together<S: Stream, D: Stream>(
    lane: Lane<'_, S, D>,
    course: &Course<'_>,
    bytes: Vec<u8>,
    pace: Pace,
) -> Result<Pace, Fault> {
    course.owes(lane.way);
    let bytes = lane.send_whole(bytes).await?;
    lane.means.buffers.give(bytes);
    course.owes_nothing(lane.way).await;
    Ok(pace)
}

/// What has to wait, and what is much.
async fn catch_up<S: Stream, D: Stream>(
    lane: Lane<'_, S, D>,
    course: &Course<'_>,
    buf: Vec<u8>,
    sent: usize,
    mut pace: Pace,
) -> Result<Pace, Fault> {
    course.owes(lane.way);
    lane.send(&buf[sent..]).await?;
    lane.means.buffers.give(buf);
    if pace.full_reads >= FULL_READS {
        pace.full_reads = 0;
        // None left, or none to be had: copying goes on.
        if let Ok(Some(pipe)) = lane.pipe() {
            rush(&lane, course, pipe).await?;
        }
    }
    if u64::from(pace.unpaused) >= TURN {
        pace.unpaused = 0;
        lane.wait_writable().await?;
    }
    course.owes_nothing(lane.way).await;
    Ok(pace)
}

/// For as long as the source has more ready (or ended, which the next read will see). Whoever has a pipe may have a
/// large buffer too, so these are bounded as the pipes are.
///
/// Frames are followed: only what lies inside of one is spliced, headers and small frames are copied.
async fn rush<S: Stream, D: Stream>(
    lane: &Lane<'_, S, D>,
    course: &Course<'_>,
    pipe: Lease<'_>,
) -> Result<(), Fault> {
    let mut unpaused = 0;
    let mut buf = Vec::new();
    while lane.way == Way::Up || lane.means.watch.revoked().is_none() {
        let mut frames = course.frames.get();
        let unseen = if lane.way == Way::Up { u64::MAX } else { frames.unseen() };
        let moved = if unseen >= SPLICE_IN_FRAME_MIN {
            lane.fill(&pipe, unseen.min(PIPE as u64))
        } else {
            if buf.capacity() == 0 {
                buf = lane.means.buffers.bulk();
            }
            buf.clear();
            let to_header = usize::try_from(unseen + HEADER_READ).unwrap_or(BULK);
            let large_ones = frames.payload() >= SPLICE_IN_FRAME_MIN;
            lane.source.try_recv_at_most(&mut buf, if large_ones { to_header } else { BULK })
        };
        let n = match moved.map_err(Fault::SourceBroke)? {
            Moved::Bytes(n) => n as u64,
            Moved::End | Moved::NotReady => break,
        };
        if unseen >= SPLICE_IN_FRAME_MIN {
            if lane.way == Way::Down {
                frames.pass_unseen(n);
                course.frames.set(frames);
            }
            lane.drain(&pipe, n).await?;
        } else {
            course.passes(lane.way, &buf);
            lane.send(&buf).await?;
        }
        lane.take_turns(&mut unpaused, n).await?;
    }
    pipe.give_back();
    lane.means.buffers.give(buf);
    Ok(())
}

impl Course<'_> {
    fn owes(&self, way: Way) {
        if way == Way::Down {
            self.owing.set(true);
        }
    }

    /// Does not return when the right is gone: not a byte more is to be read here, and the other half of this task goes
    /// on.
    async fn owes_nothing(&self, way: Way) {
        if way == Way::Down {
            self.owing.set(false);
            if self.means.watch.revoked().is_some() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn passes(&self, way: Way, bytes: &[u8]) {
        if way == Way::Down {
            let mut frames = self.frames.get();
            frames.pass(bytes);
            self.frames.set(frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::counters::Counters;
    use crate::deadlines::Deadlines;
    use crate::ring::{self, Driver};

    #[test]
    fn an_idle_tunnel_is_small() {
        let size = ring::block_on(Driver::Epoll, async {
            let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
            let (runner, _app) = std::os::unix::net::UnixStream::pair().expect("pair");
            let client = Socket::new(ours.into()).expect("made");
            let runner = Socket::new(runner.into()).expect("made");
            let table = Deadlines::new();
            let (watch, buffers, counters) = (table.watch(-1), Buffers::new(1, 1), Counters::default());
            let means = Means {
                buffers: &buffers,
                counters: &counters,
                watch: &watch,
                stall: None,
                runner_stall: None,
                in_use: None,
            };
            size_of_val(&run(&client, Tunnel::new(runner, b"", b"", None), means))
        });
        let size = size.expect("epoll always works");
        assert!(size <= 560, "{size}");
    }
}
