//! Which driver a shard runs on: the ladder DEFER_TASKRUN -> COOP_TASKRUN -> plain ring -> epoll, chosen by probing.

use crate::turns;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use std::future::Future;
use std::io;

/// Submission entries of a shard's ring; the completion queue is four times as large, so that a burst on thousands
/// of connections does not overflow it.
const ENTRIES: u32 = 4096;

/// Kernel memory of one ring: entries of 64 bytes with their index, completions of 16.
pub const BYTES: u64 = ENTRIES as u64 * (64 + 4 + 4 * 16);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// SINGLE_ISSUER | COOP_TASKRUN | DEFER_TASKRUN: completions run when the shard asks for them (Linux 6.1).
    UringDefer,
    /// SINGLE_ISSUER | COOP_TASKRUN (Linux 6.0).
    UringCoop,
    /// No flags.
    UringPlain,
    Epoll,
}

impl Driver {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UringDefer => "io_uring (defer_taskrun)",
            Self::UringCoop => "io_uring (coop_taskrun)",
            Self::UringPlain => "io_uring",
            Self::Epoll => "epoll",
        }
    }

    fn builder(self) -> io_uring::Builder {
        let mut builder = io_uring::IoUring::builder();
        builder.setup_cqsize(ENTRIES * 4);
        match self {
            Self::UringDefer => {
                builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
            }
            Self::UringCoop => {
                builder.setup_single_issuer().setup_coop_taskrun();
            }
            Self::UringPlain | Self::Epoll => {}
        }
        builder
    }
}

/// The chosen driver and, for the start-up line, why the better ones were not.
#[derive(Clone, Debug)]
pub struct Choice {
    pub driver: Driver,
    pub reason: String,
}

/// What the operator asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// The best that works.
    Auto,
    /// A ring or an error.
    IoUring,
    Epoll,
}

/// Probes by making a ring of the real size with each set of flags. Call before any shard starts.
pub fn choose(wish: Wish) -> io::Result<Choice> {
    if wish == Wish::Epoll {
        return Ok(Choice { driver: Driver::Epoll, reason: "asked for by configuration".into() });
    }
    let mut refused = Vec::new();
    for driver in [Driver::UringDefer, Driver::UringCoop, Driver::UringPlain] {
        match probe(driver) {
            Ok(()) => {
                let reason = if refused.is_empty() { "best available".into() } else { refused.join("; ") };
                return Ok(Choice { driver, reason });
            }
            Err(error) => refused.push(format!("{}: {error}", driver.as_str())),
        }
    }
    let reason = refused.join("; ");
    match wish {
        Wish::IoUring => {
            Err(io::Error::other(format!("io_uring was asked for and is not available: {reason}")))
        }
        _ => Ok(Choice { driver: Driver::Epoll, reason }),
    }
}

fn probe(driver: Driver) -> io::Result<()> {
    let ring = driver.builder().build(ENTRIES)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        (io_uring::opcode::PollAdd::CODE, "POLL_ADD"),
        (io_uring::opcode::Recv::CODE, "RECV"),
        (io_uring::opcode::Send::CODE, "SEND"),
        (io_uring::opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        (io_uring::opcode::Close::CODE, "CLOSE"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(io::Error::other(format!("the kernel's ring lacks {name}"))),
        None => Ok(()),
    }
}

/// Runs `main` on this thread until it returns.
pub fn block_on<F: Future>(driver: Driver, main: F) -> io::Result<F::Output> {
    let main = turns::provide(main);
    match driver {
        Driver::Epoll => {
            let builder = RuntimeBuilder::<LegacyDriver>::new().with_entries(ENTRIES).enable_timer();
            builder.build()?.block_on(main)
        }
        ring => {
            let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES);
            builder.uring_builder(ring.builder()).enable_timer().build()?.block_on(main)
        }
    }
}

/// Runs a test on a thread with the best driver there is.
#[cfg(test)]
pub(crate) fn on_a_shard<F: Future>(test: impl FnOnce() -> F + Send + 'static) {
    let driver = choose(Wish::Auto).expect("a driver").driver;
    std::thread::spawn(move || block_on(driver, test()).map(drop).expect("built")).join().expect("no panic");
}

/// As [`on_a_shard`], on the best driver there is and on epoll.
#[cfg(test)]
pub(crate) fn on_each_driver<F: Future>(test: impl FnOnce() -> F + Copy + Send + 'static) {
    on_a_shard(test);
    let on_epoll = move || block_on(Driver::Epoll, test()).map(drop).expect("built");
    std::thread::spawn(on_epoll).join().expect("no panic");
}

/// Counts the turns of the loop from now on: how often others than whoever runs had theirs.
#[cfg(test)]
pub(crate) async fn count_turns() -> std::rc::Rc<std::cell::Cell<u32>> {
    use crate::socket::Socket;
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    io::Write::write_all(&mut theirs, b"x").expect("open");
    let always_ready = Socket::new(ours.into()).expect("a socket");
    let turns = std::rc::Rc::new(std::cell::Cell::new(0));
    let counts = turns.clone();
    monoio::spawn(async move {
        let _theirs = theirs;
        loop {
            turns::in_turn(always_ready.readable()).await.expect("open");
            counts.set(counts.get() + 1);
        }
    });
    while turns.get() == 0 {
        monoio::time::sleep(std::time::Duration::ZERO).await;
    }
    turns.set(0);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_when_asked_for() {
        let choice = choose(Wish::Epoll).expect("epoll always works");
        assert_eq!(choice.driver, Driver::Epoll);
    }

    #[test]
    fn every_driver_the_probe_accepts_runs_a_task_and_a_timer() {
        for driver in [Driver::UringDefer, Driver::UringCoop, Driver::UringPlain, Driver::Epoll] {
            if driver != Driver::Epoll && probe(driver).is_err() {
                continue;
            }
            let ran = std::thread::spawn(move || {
                block_on(driver, async {
                    monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                    monoio::spawn(async { 7 }).await
                })
            });
            assert_eq!(ran.join().expect("no panic").expect("built"), 7, "{}", driver.as_str());
        }
    }
}
