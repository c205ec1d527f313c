//! The beat of a shard's clock, told by a timer of the kernel's.
//!
//! It is waited for through the ring like a socket. A timer of the runtime's would put a timeout, and a timer of the
//! kernel's for it, around every wait of the shard: 3 % to 7 % of what a message or a connection costs that comes alone.

use crate::socket::Socket;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io;
use std::time::{Duration, Instant};

pub struct Ticker {
    timer: Socket,
    every: Duration,
    once: Itimerspec,
    last: Instant,
}

impl Ticker {
    /// Must be called on a shard's runtime. Takes a descriptor.
    pub fn new(every: Duration) -> io::Result<Self> {
        assert!(!every.is_zero(), "it would never tick");
        let it_value = Timespec::try_from(every).expect("a beat is short");
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { timer: Socket::new(timer)?, every, once, last: Instant::now() })
    }

    /// Others had a turn: what follows is not late for them.
    pub fn rested(&mut self) {
        self.last = Instant::now();
    }

    /// Waits for a whole beat from now on, however late the last one was: how much later than that this one comes after it
    /// (or after the last rest), with all that was done in between. So between two of them the others have their turn, and no deadline counted in beats
    /// comes early; on a shard that is held up all come as much later. Dropped, it begins anew.
    pub async fn next(&mut self) -> io::Result<Duration> {
        timerfd_settime(self.timer.fd(), TimerfdTimerFlags::empty(), &self.once)?;
        loop {
            self.timer.readable().await?;
            match rustix::io::read(self.timer.fd(), &mut [0; 8]) {
                Ok(_) => {
                    let now = Instant::now();
                    let passed = now.duration_since(std::mem::replace(&mut self.last, now));
                    return Ok(passed.saturating_sub(self.every));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Driver, Wish, block_on, choose};
    use std::cell::Cell;
    use std::rc::Rc;

    /// Also where others always have something to do, and where it comes to it late.
    fn beats_on(driver: Driver) {
        const EVERY: Duration = Duration::from_millis(50);
        let main = async {
            let turns = Rc::new(Cell::new(0));
            let others = turns.clone();
            monoio::spawn(async move {
                loop {
                    monoio::time::sleep(Duration::ZERO).await;
                    others.set(others.get() + 1);
                }
            });
            let mut ticker = Ticker::new(EVERY).expect("a timer");
            let mut held_up = Duration::ZERO;
            for _ in 0..5 {
                let (begun, before) = (Instant::now(), turns.get());
                let late = ticker.next().await.expect("a beat");
                assert!(
                    begun.elapsed() >= EVERY && late >= held_up,
                    "{late:?} late after {:?}",
                    begun.elapsed()
                );
                assert!(turns.get() > before, "nobody else had a turn");
                // The shard is held up for longer than a beat.
                let since = Instant::now();
                held_up = EVERY * 2;
                while since.elapsed() < held_up {
                    std::hint::spin_loop();
                }
            }
        };
        block_on(driver, main).expect("a runtime");
    }

    #[test]
    fn a_beat_is_never_short_and_never_keeps_the_others_from_their_turn() {
        let best = choose(Wish::Auto).expect("a driver").driver;
        for driver in [best, Driver::Epoll] {
            std::thread::spawn(move || beats_on(driver)).join().expect("no panic");
        }
    }
}
