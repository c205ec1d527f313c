//! What the kernel says of this process.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// `None`: this kernel, or this container, does not say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Process {
    pub cpu: Duration,
    /// Since 1970.
    pub started: Duration,
    pub resident_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    /// `None` also where there is no limit.
    pub max_fds: Option<u64>,
}

impl Process {
    /// As it is now; reads two small files of `/proc`. `started`: since 1970.
    pub(super) fn look(started: Duration) -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32),
            started,
            resident_bytes: std::fs::read_to_string("/proc/self/statm")
                .ok()
                .as_deref()
                .and_then(resident_bytes),
            // Since Linux 6.2 the directory's size is how many there are; before it is 0. Listing them would take 50 ms for
            // 100,000, in which nothing else is done here.
            open_fds: std::fs::metadata("/proc/self/fd").map(|fds| fds.len()).ok().filter(|count| *count > 0),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        }
    }
}

/// The second number, in pages.
fn resident_bytes(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_as_it_is() {
        let started = Duration::from_secs(1_700_000_000);
        let before = Process::look(started);
        let held: Vec<_> =
            (0..100).map(|_| std::fs::File::open("/dev/null").expect("a descriptor")).collect();
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = Process::look(started);
        assert!(after.cpu > before.cpu && after.started == started);
        let grown = after.resident_bytes.zip(before.resident_bytes).map(|(after, before)| after - before);
        assert!(grown.is_some_and(|bytes| bytes > 32 << 20), "{before:?} {after:?}");
        // Other tests open and close theirs at the same time.
        let more = after.open_fds.zip(before.open_fds).map(|(after, before)| after as i64 - before as i64);
        assert!(more.is_none_or(|more| more > 50), "{before:?} {after:?}");
        assert!(after.max_fds.is_none_or(|most| most >= 100));
        drop((held, memory));
        for text in ["", "1", "1 x 3", "5 99999999999999999999"] {
            assert_eq!(resident_bytes(text), None, "{text}");
        }
    }
}
