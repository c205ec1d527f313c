//! The end of a tunnel that the gate ends: a close frame with a code and a reason (RFC 6455 5.5.1), where one may stand.
//!
//! Not a byte of the client's reaches the runner any more, and of the runner's only the rest of the frame that is under
//! way: a frame inside of another would be worse than none. All of it has the time that the deadline table gives for last
//! words; where the place for a frame is not found by then, or the runner does not speak in frames, the end is a bare one.

use super::Course;
use super::frames::{Place, close_frame};
use crate::buffers::SMALL;
use crate::counters::Revoked;
use crate::relay::{Lane, Stream, Way};
use crate::socket::Moved;
use crate::turns;
use rustix::net::Shutdown;
use std::time::Duration;

/// How long the client's own close is waited for.
pub const LINGER: Duration = Duration::from_secs(1);
/// What is read of the client meanwhile, and thrown away.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Code (RFC 6455 7.4) and reason. 1001: what it talked to goes away. 4001: what let the client in does not any more;
/// another proof may. 4003: it is not known whether it may stay.
pub const fn farewell(why: Revoked) -> (u16, &'static str) {
    match why {
        Revoked::Private => (4001, "the sandbox is not public any more"),
        Revoked::Token => (4001, "the token is not valid any more"),
        Revoked::Link => (4001, "the signed link is not valid any more"),
        Revoked::Session => (4001, "the session is over"),
        Revoked::Undecided => (4003, "it cannot be found out whether this is still allowed"),
        Revoked::Stopped => (1001, "the sandbox was stopped"),
        Revoked::Archived => (1001, "the sandbox was archived"),
        Revoked::Destroyed => (1001, "the sandbox was destroyed"),
        Revoked::Draining => (1001, "the gateway is shutting down"),
    }
}

/// Tells the client why this is the end, if that is possible, and ends both sides.
pub(super) async fn say<C: Stream>(course: &Course<'_, C>, why: Revoked) {
    let said = frame(course, why).await;
    course.tunnel.runner.shutdown(Shutdown::Both);
    match said {
        Some(()) => linger(course).await,
        None => course.client.shutdown(Shutdown::Both),
    }
}

/// `None`: it could not be said.
async fn frame<C: Stream>(course: &Course<'_, C>, why: Revoked) -> Option<()> {
    let means = course.means;
    let lane = Lane { source: &course.tunnel.runner, sink: course.client, way: Way::Down, means };
    let mut unpaused = 0;
    let mut frames = course.tunnel.frames.get();
    while let Place::Within(left) = frames.place() {
        // Waited for without one: all tunnels may end at once.
        course.tunnel.runner.readable().await.ok()?;
        let mut buf = means.buffers.small();
        let max = usize::try_from(left).unwrap_or(SMALL).min(SMALL);
        match course.tunnel.runner.try_recv_at_most(&mut buf, max).ok()? {
            Moved::Bytes(n) => {
                frames.pass(&buf);
                lane.send(&buf).await.ok()?;
                lane.take_turns(&mut unpaused, n as u64).await.ok()?;
            }
            Moved::NotReady => {}
            Moved::End => return None,
        }
        means.buffers.give(buf);
    }
    if frames.place() == Place::Nowhere {
        return None;
    }
    let (code, reason) = farewell(why);
    lane.send(&close_frame(code, reason)).await.ok()
}

/// Reads on for a moment, until the client has closed as well, so that closing does not turn into a reset that eats the
/// frame. Nothing of it is interpreted.
async fn linger<C: Stream>(course: &Course<'_, C>) {
    let Course { client, means, .. } = course;
    client.shutdown(Shutdown::Write);
    means.watch.told_why(LINGER);
    let mut left = LINGER_BYTES_MAX;
    while left > 0 && turns::in_turn(client.readable()).await.is_ok() {
        let mut buf = means.buffers.small();
        match client.try_recv_at_most(&mut buf, SMALL) {
            Ok(Moved::Bytes(n)) => left = left.saturating_sub(n),
            Ok(Moved::NotReady) => {}
            Ok(Moved::End) | Err(_) => break,
        }
        means.buffers.give(buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use crate::counters::Counters;
    use crate::deadlines::Deadlines;
    use crate::relay::{Means, Patience};
    use crate::ring;
    use crate::socket::Socket;
    use crate::tunnel::{Tunnel, run};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// All that the client of a tunnel gets which is ended so while it says nothing.
    fn heard_of(why: Revoked) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let (runner, app) = UnixStream::pair().expect("pair");
        // Its leaving is the end of the lingering.
        let client = std::thread::spawn(move || {
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).map(|_| heard)
        });
        ring::on_a_shard(move || async move {
            let raw = std::os::fd::AsRawFd::as_raw_fd(&ours);
            let (client, runner) = (Socket::new(ours.into()), Socket::new(runner.into()));
            let (client, runner) = (client.expect("a socket"), runner.expect("a socket"));
            let table = Deadlines::new();
            let (watch, buffers, counters) = (table.watch(raw), Buffers::new(1, 1), Counters::default());
            let means = Means {
                buffers: &buffers,
                counters: &counters,
                watch: &watch,
                stall: Patience::default(),
                runner_stall: Patience::default(),
                in_use: None,
            };
            let tunnel = Tunnel::new(runner, b"", b"", None);
            let tunnel = run(&client, &tunnel, &means);
            // Polled in this order: it runs by then.
            let ended = async {
                assert!(table.revoke(watch.index(), why));
                table.end_all();
            };
            futures_util::future::join(tunnel, ended).await;
        });
        drop(app);
        client.join().expect("no panic").expect("an end without a reset")
    }

    /// Clients act on the code, people read the reason: both are told as they stand here.
    #[test]
    fn whatever_ends_a_tunnel_its_client_is_told_that_and_why() {
        for why in Revoked::ALL {
            let (code, reason) = match why {
                Revoked::Private => (4001_u16, "the sandbox is not public any more"),
                Revoked::Token => (4001, "the token is not valid any more"),
                Revoked::Link => (4001, "the signed link is not valid any more"),
                Revoked::Session => (4001, "the session is over"),
                Revoked::Undecided => (4003, "it cannot be found out whether this is still allowed"),
                Revoked::Stopped => (1001, "the sandbox was stopped"),
                Revoked::Archived => (1001, "the sandbox was archived"),
                Revoked::Destroyed => (1001, "the sandbox was destroyed"),
                Revoked::Draining => (1001, "the gateway is shutting down"),
            };
            let head = [0x88, 2 + reason.len() as u8];
            assert_eq!(
                heard_of(*why),
                [&head[..], &code.to_be_bytes(), reason.as_bytes()].concat(),
                "{why:?}"
            );
        }
    }

    #[test]
    fn every_end_has_a_code_of_its_kind_and_a_reason_that_fits() {
        for why in Revoked::ALL {
            let (code, reason) = farewell(*why);
            assert!(matches!(code, 1001 | 4001 | 4003), "{why:?}");
            assert!(!reason.is_empty() && close_frame(code, reason).len() <= 127, "{why:?}");
        }
    }
}
