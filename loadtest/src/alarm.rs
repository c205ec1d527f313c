//! A timer of better than the runtime's millisecond: requests leave when they are due.

use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// One timer; whoever needs it earliest sets it.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    due: Cell<Option<Instant>>,
}

impl Alarm {
    /// Must be made within the thread's runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Deprecated for descriptors that are closed or replaced while registered: this one is owned and stays.
        #[expect(deprecated, reason = "its successor is unsafe to call; OwnedFd keeps what it asks for")]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, due: Cell::new(None) })
    }

    /// Rings at `due` at the latest.
    pub fn set(&self, due: Instant) {
        if self.due.get().is_some_and(|set| set <= due) {
            return;
        }
        self.due.set(Some(due));
        // Zero would disarm it.
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)
            .expect("a valid time for a timer of our own");
    }

    /// Waits until it rings; then it is not set. Cancel-safe.
    pub async fn rung(&self) {
        let mut expirations = [0; 8];
        loop {
            let mut guard = self.timer.readable().await.expect("the runtime outlives its tasks");
            let read = guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            if read.is_ok() {
                self.due.set(None);
                return;
            }
        }
    }

    /// Waits until this moment.
    pub async fn until(&self, due: Instant) {
        while Instant::now() < due {
            self.set(due);
            self.rung().await;
        }
    }
}
