//! A tunnel after a `101`: bytes both ways, half-close each way, no timer but for a client that takes nothing. Idle, it
//! is two waits and nothing else.
//!
//! The bytes are the app's and pass as they are. But where the runner's frames end is followed, so that a tunnel whose
//! right has gone, or whose gate goes, ends with a close frame that says why: see [`last_words`].

pub(crate) mod frames;
pub mod last_words;

use crate::buffers::{BULK, Lease, PIPE};
use crate::counters::{Counters, add, less};
use crate::live::Alive;
use crate::readiness::Member;
use crate::relay::{FULL_READS, Fault, Lane, Means, Stream, TURN, Way};
use crate::socket::{Moved, Socket};
use crate::turns;
use frames::Frames;
use rustix::net::Shutdown;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

/// From so much of one frame's payload on a pipe pays for itself, and for reading the header apart.
const SPLICE_IN_FRAME_MIN: u64 = 64 * 1024;
/// What a copied byte counts for in a turn: it may be a header, and each header is looked at.
const COPIED_WEIGHT: u64 = 4;
/// What is read for a header where large frames follow each other.
const HEADER_READ: u64 = 16;

/// With so many tunnels one set waits for all of them, see [`crate::readiness`]. CPU of an echo, by the ring over by the set
/// (2-core AMD VM, 5 paired rounds): 0.90 with 2 tunnels, 1.00 with 8, 1.03 with 16, 1.08 with 64, 1.14 with 512.
const CROWD_MIN: u64 = 16;

/// A runner connection that has switched protocols.
pub struct Tunnel {
    runner: Socket,
    /// What the client sent before there was a tunnel.
    #[expect(clippy::box_collection, reason = "a word, not three, for what is needed only at the beginning")]
    early: Cell<Option<Box<Vec<u8>>>>,
    /// The runner's, up to the last byte that was read.
    frames: Cell<Frames>,
    /// Of the runner's bytes some were read and are not sent yet.
    owing: Cell<bool>,
    /// One way has ended, and is counted.
    half_closed: Cell<bool>,
    _alive: Option<Alive>,
}

impl Tunnel {
    /// `early`: what the client sent behind its request. `leftover`: what the runner sent behind its answer's head, and
    /// the client has already. `alive` cuts the tunnel when the right it was opened by ends.
    pub fn new(runner: Socket, early: &[u8], leftover: &[u8], alive: Option<Alive>) -> Self {
        let mut frames = Frames::default();
        frames.pass(leftover);
        Self {
            runner,
            early: Cell::new((!early.is_empty()).then(|| Box::new(early.to_vec()))),
            frames: Cell::new(frames),
            owing: Cell::new(false),
            half_closed: Cell::new(false),
            _alive: alive,
        }
    }
}

/// A tunnel under way: what both directions share.
struct Course<'a, C> {
    client: &'a C,
    tunnel: &'a Tunnel,
    means: &'a Means<'a>,
}

impl<C> Drop for Course<'_, C> {
    /// Out of the deadline table before the socket can close.
    fn drop(&mut self) {
        self.means.watch.detach();
        less(&self.means.counters.tunnels_open);
        if self.tunnel.half_closed.get() {
            less(&self.means.counters.tunnels_half_closed);
        }
    }
}

/// Runs until both directions ended, one broke or the right is gone. Bytes moved stand in the counters.
///
/// Thousands of these wait for hours, so nothing is kept twice: no `async fn`, whose arguments would be.
pub fn run<'a, C: Stream>(
    client: &'a C,
    tunnel: &'a Tunnel,
    means: &'a Means<'a>,
) -> impl Future<Output = ()> + use<'a, C> {
    add(&means.counters.tunnels, 1);
    add(&means.counters.tunnels_open, 1);
    // Hours without a byte are normal here; a peer that vanished must be noticed all the same.
    let _ = client.keep_alive();
    let _ = tunnel.runner.keep_alive();
    means.watch.attach(tunnel.runner.raw_fd());
    let course = Course { client, tunnel, means };
    async move {
        // Until both directions ended; or until the right is gone and there is a last word to say.
        let why = {
            let mut up =
                pin!(direction(&course, Way::Up, |course| course.client, |course| &course.tunnel.runner));
            let mut down =
                pin!(direction(&course, Way::Down, |course| &course.tunnel.runner, |course| course.client));
            let course = &course;
            let (mut up_done, mut down_done, mut tells_why) = (false, false, false);
            poll_fn(move |cx| {
                if !tells_why {
                    tells_why = true;
                    course.means.watch.tells_why(cx.waker());
                }
                // From then on nothing is read any more; what was read of the runner's is still sent.
                let why = course.means.watch.revoked();
                if why.is_none() {
                    up_done = up_done || up.as_mut().poll(cx).is_ready();
                }
                if why.is_none() || course.tunnel.owing.get() {
                    down_done = down_done || down.as_mut().poll(cx).is_ready();
                }
                if up_done != down_done && !course.tunnel.half_closed.replace(true) {
                    add(&course.means.counters.tunnels_half_closed, 1);
                }
                match why {
                    None if up_done && down_done => Poll::Ready(None),
                    None => Poll::Pending,
                    // The client has had the end already.
                    Some(_) if down_done => Poll::Ready(None),
                    Some(_) if course.tunnel.owing.get() => Poll::Pending,
                    why => Poll::Ready(why),
                }
            })
            .await
        };
        if let Some(why) = why {
            Box::pin(last_words::say(&course, why)).await;
        }
    }
}

/// One direction to its end, beginning with what was read already. A clean end is passed on as a half-close; a broken
/// one ends both.
///
/// `source` and `sink` say which ends these are, so that no direction needs to keep them.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would keep its arguments twice, in thousands of idle tunnels"
)]
fn direction<'c, 'a, C, S: Stream + 'c, D: Stream + 'c>(
    course: &'c Course<'a, C>,
    way: Way,
    source: impl Fn(&'c Course<'a, C>) -> &'c S + Copy,
    sink: impl Fn(&'c Course<'a, C>) -> &'c D + Copy,
) -> impl Future<Output = ()> {
    async move {
        let mut pace = Pace { unpaused: 0, full_reads: 0 };
        let mut member = None;
        let ended = 'ended: {
            // Boxed, here and below: an idle direction is little more than its wait for readiness.
            if let Some(next) = early(lane(course, way, source, sink), course, pace) {
                match next.await {
                    Ok(after) => pace = after,
                    Err(fault) => break 'ended Err(fault),
                }
            }
            loop {
                if member.is_none() && is_crowded(course.means.counters) {
                    // Where there is no room for it the ring waits.
                    member = source(course).splice_fd().and_then(|fd| Member::enter(fd).ok());
                }
                match &member {
                    Some(member) => member.readable().await,
                    None => {
                        if let Err(error) = source(course).readable().await {
                            break Err(Fault::SourceBroke(error));
                        }
                    }
                }
                let next = {
                    let lane = lane(course, way, source, sink);
                    match step(&lane, course, &mut pace, member.as_ref()) {
                        Ok(Step::Done) => continue,
                        Ok(Step::Ended) => break Ok(()),
                        Ok(Step::Owes(bytes, sent)) => later(catch_up(lane, course, bytes, sent, pace)),
                        Err(fault) => break Err(fault),
                    }
                };
                match next.await {
                    Ok(after) => pace = after,
                    Err(fault) => break Err(fault),
                }
            }
        };
        match ended {
            Ok(()) => sink(course).shutdown(Shutdown::Write),
            Err(_) => {
                sink(course).shutdown(Shutdown::Both);
                source(course).shutdown(Shutdown::Both);
            }
        }
    }
}

/// What has to be done before more is read.
type Next<'a> = Pin<Box<dyn Future<Output = Result<Pace, Fault>> + 'a>>;

fn later<'a>(next: impl Future<Output = Result<Pace, Fault>> + 'a) -> Next<'a> {
    Box::pin(next)
}

/// What the client sent before there was a tunnel.
fn early<'c, C, S: Stream, D: Stream>(
    lane: Lane<'c, S, D>,
    course: &'c Course<'_, C>,
    pace: Pace,
) -> Option<Next<'c>> {
    let early = if lane.way == Way::Up { course.tunnel.early.take() } else { None };
    Some(later(catch_up(lane, course, *early?, 0, pace)))
}

fn lane<'c, 'a, C, S, D>(
    course: &'c Course<'a, C>,
    way: Way,
    source: impl Fn(&'c Course<'a, C>) -> &'c S,
    sink: impl Fn(&'c Course<'a, C>) -> &'c D,
) -> Lane<'c, S, D> {
    Lane { source: source(course), sink: sink(course), way, means: course.means }
}

/// What a pace counts in: two bytes hold all of it, in thousands of idle tunnels.
const UNIT: u64 = 32 * 1024;

/// How much came lately.
#[derive(Clone, Copy)]
struct Pace {
    /// Without a wait, in [`UNIT`]s, each time rounded up.
    unpaused: u8,
    /// In a row.
    full_reads: u8,
}

impl Pace {
    fn takes_turns(self) -> bool {
        u64::from(self.unpaused) >= TURN / UNIT
    }

    fn reads_much(self) -> bool {
        u32::from(self.full_reads) >= FULL_READS
    }
}

/// Both fit.
const _: () = assert!(TURN / UNIT <= u8::MAX as u64 && FULL_READS < u8::MAX as u32);

enum Step {
    Done,
    /// These bytes were read, and so many of them sent; or there is much to move.
    Owes(Vec<u8>, usize),
    /// The source will send no more.
    Ended,
}

/// Are there [`CROWD_MIN`] tunnels in which bytes may go both ways? The others are often over but for one end's word.
fn is_crowded(counters: &Counters) -> bool {
    counters.tunnels_open.get() >= CROWD_MIN + counters.tunnels_half_closed.get()
}

/// What can be done without a wait.
fn step<C, S: Stream, D: Stream>(
    lane: &Lane<'_, S, D>,
    course: &Course<'_, C>,
    pace: &mut Pace,
    member: Option<&Member>,
) -> Result<Step, Fault> {
    let buffers = lane.means.buffers;
    let mut buf = buffers.small();
    let room = buf.capacity();
    let n = match lane.source.try_recv_at_most(&mut buf, room).map_err(Fault::SourceBroke)? {
        Moved::Bytes(n) => n,
        end => {
            buffers.give(buf);
            member.inspect(|member| member.read_nothing());
            return Ok(if end == Moved::End { Step::Ended } else { Step::Done });
        }
    };
    course.passes(lane.way, &buf);
    if n < room {
        member.inspect(|member| member.read_short());
    }
    let sent = lane.send_now(&buf)?;
    pace.unpaused = pace.unpaused.saturating_add((n as u64).div_ceil(UNIT) as u8);
    pace.full_reads = if n == room { pace.full_reads + 1 } else { 0 };
    if sent < n || pace.reads_much() || pace.takes_turns() {
        return Ok(Step::Owes(buf, sent));
    }
    buffers.give(buf);
    Ok(Step::Done)
}

/// What has to wait, and what is much.
async fn catch_up<C, S: Stream, D: Stream>(
    lane: Lane<'_, S, D>,
    course: &Course<'_, C>,
    buf: Vec<u8>,
    sent: usize,
    mut pace: Pace,
) -> Result<Pace, Fault> {
    course.owes(lane.way);
    lane.send(&buf[sent..]).await?;
    lane.means.buffers.give(buf);
    if pace.reads_much() {
        pace.full_reads = 0;
        if let Some(pipe) = lane.pipe() {
            rush(&lane, course, pipe).await?;
        }
    }
    if pace.takes_turns() {
        pace.unpaused = 0;
        turns::in_turn(lane.wait_writable()).await?;
    }
    course.owes_nothing(lane.way).await;
    Ok(pace)
}

/// For as long as the source has more ready (or ended, which the next read will see).
///
/// Frames are followed: only what lies inside of one is spliced, headers and small frames are copied.
async fn rush<C, S: Stream, D: Stream>(
    lane: &Lane<'_, S, D>,
    course: &Course<'_, C>,
    pipe: Lease<'_>,
) -> Result<(), Fault> {
    let mut unpaused = 0;
    let mut loan = None;
    while lane.means.watch.revoked().is_none() {
        let mut frames = course.tunnel.frames.get();
        let unseen = if lane.way == Way::Up { u64::MAX } else { frames.unseen() };
        let moved = if unseen >= SPLICE_IN_FRAME_MIN {
            lane.fill(&pipe, unseen.min(PIPE as u64))
        } else {
            let buf = loan.get_or_insert_with(|| lane.means.buffers.large());
            buf.clear();
            let to_header = usize::try_from(unseen + HEADER_READ).unwrap_or(BULK);
            let large_ones = frames.payload() >= SPLICE_IN_FRAME_MIN;
            lane.source.try_recv_at_most(buf, if large_ones { to_header } else { BULK })
        };
        let n = match moved.map_err(Fault::SourceBroke)? {
            Moved::Bytes(n) => n as u64,
            Moved::End | Moved::NotReady => break,
        };
        let mut weight = n;
        if unseen >= SPLICE_IN_FRAME_MIN {
            if lane.way == Way::Down {
                frames.pass_unseen(n);
                course.tunnel.frames.set(frames);
            }
            lane.drain(&pipe, n).await?;
        } else if let Some(buf) = &loan {
            course.passes(lane.way, buf);
            lane.send(buf).await?;
            weight = COPIED_WEIGHT * n;
        }
        lane.take_turns(&mut unpaused, weight).await?;
    }
    pipe.give_back();
    Ok(())
}

impl<C> Course<'_, C> {
    fn owes(&self, way: Way) {
        if way == Way::Down {
            self.tunnel.owing.set(true);
        }
    }

    /// Does not return when the right is gone: not a byte more is to be read here, and the other half of this task goes
    /// on.
    async fn owes_nothing(&self, way: Way) {
        if way == Way::Down {
            self.tunnel.owing.set(false);
            if self.means.watch.revoked().is_some() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn passes(&self, way: Way, bytes: &[u8]) {
        if way == Way::Down {
            let mut frames = self.tunnel.frames.get();
            frames.pass(bytes);
            self.tunnel.frames.set(frames);
        }
    }
}

#[cfg(test)]
mod tests;
