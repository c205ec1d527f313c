//! Lets a source that is fast gather more before it is looked at again.
//!
//! Every look costs a wake-up, two splices, an acknowledgement and a send of whatever came, be it one segment or a
//! megabyte. So after a look that brought much the kernel is told to wake us for a megabyte, or for what is left
//! (`SO_RCVLOWAT`), and the wait is short: whatever came until the runtime's next millisecond is taken then. A source that
//! brings little is waited for plainly, so a body that trickles is passed on byte by byte.

use super::Stream;
use std::time::Duration;

/// What a look brought when the source may be asked to gather.
const BRISK: u64 = 32 * 1024;
/// What to gather. The receive window is made to fit by the kernel, within `net.ipv4.tcp_rmem`.
const GATHERED: u64 = 1 << 20;
/// The runtime's timers tick once in a millisecond: this ends with the tick that comes next.
const PATIENCE: Duration = Duration::from_micros(50);

/// The wish of one body. Dropped, the source wakes for each byte again, as whoever reads from it next expects.
pub struct Gather<'a, S: Stream> {
    source: &'a S,
    at_least: u64,
}

impl<'a, S: Stream> Gather<'a, S> {
    pub fn from(source: &'a S) -> Self {
        Self { source, at_least: 1 }
    }

    /// Says how long to wait for the next bytes after a look that brought `came`, when `left` are to come. `None`: as
    /// long as it takes.
    pub fn patience(&mut self, came: u64, left: u64) -> Option<Duration> {
        let wish = if came < BRISK { 1 } else { left.min(GATHERED) };
        if wish != self.at_least && self.source.wake_from(wish).is_ok() {
            self.at_least = wish;
        }
        (self.at_least > 1).then_some(PATIENCE)
    }
}

impl<S: Stream> Drop for Gather<'_, S> {
    fn drop(&mut self) {
        if self.at_least > 1 {
            // It could be raised, so it can be lowered; a socket that is broken meanwhile is not read from again.
            let _ = self.source.wake_from(1);
        }
    }
}
