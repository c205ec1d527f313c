//! The beat of a shard's clock, told by a timer of the kernel's.
//!
//! It is waited for through the ring like a socket. A timer of the runtime's would put a timeout, and a timer of the
//! kernel's for it, around every wait of the shard: 2 % to 5 % of what a message or a connection costs that comes alone.

use crate::socket::Socket;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io;
use std::time::{Duration, Instant};

pub struct Ticker {
    timer: Socket,
    every: Duration,
    due: Instant,
}

impl Ticker {
    /// The first beat comes after `every`. Must be called on a shard's runtime. Takes a descriptor.
    pub fn new(every: Duration) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let length = Timespec::try_from(every).map_err(|_| io::ErrorKind::InvalidInput)?;
        let due = Instant::now() + every;
        let beats = Itimerspec { it_interval: length, it_value: length };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &beats)?;
        Ok(Self { timer: Socket::new(timer)?, every, due })
    }

    /// Waits for the next beat: how late it is. Those that were missed are one. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Duration> {
        loop {
            let mut beats = [0; 8];
            match rustix::io::read(self.timer.fd(), &mut beats) {
                Ok(_) => {
                    let late = Instant::now().saturating_duration_since(self.due);
                    let beats = u32::try_from(u64::from_ne_bytes(beats)).unwrap_or(u32::MAX);
                    self.due += self.every.saturating_mul(beats);
                    return Ok(late);
                }
                Err(Errno::AGAIN | Errno::INTR) => self.timer.readable().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;

    #[test]
    fn beats_that_were_missed_are_one_which_says_how_late_it_is() {
        on_a_shard(|| async {
            const EVERY: Duration = Duration::from_millis(20);
            let begun = Instant::now();
            let mut ticker = Ticker::new(EVERY).expect("a timer");
            ticker.next().await.expect("a beat");
            assert!(begun.elapsed() >= EVERY, "{:?}", begun.elapsed());
            // The shard is held up for three and more; the first of them is due within one.
            let (since, held_up) = (Instant::now(), EVERY * 7 / 2);
            while since.elapsed() < held_up {
                std::hint::spin_loop();
            }
            let late = ticker.next().await.expect("a beat");
            assert!(late >= held_up - EVERY, "{late:?}");
            // The next one keeps to the same beat, and is not one of those that were missed.
            ticker.next().await.expect("a beat");
            let beats = begun.elapsed().as_micros() / EVERY.as_micros();
            assert!(beats >= 5, "{beats}");
        });
    }
}
