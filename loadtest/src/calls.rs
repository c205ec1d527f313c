//! How many system calls the proxy makes, counted by the kernel: trace points, for each of its threads.
//!
//! A call that is counted costs more, for everybody on the machine while it goes on, so it is done when asked for and not
//! together with measuring CPU for a comparison.

use crate::host::ProxySource;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Where the kernel's trace points are described.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const ALL: &str = "raw_syscalls/sys_enter";
const RING: &str = "syscalls/sys_enter_io_uring_enter";

const REFUSED: &str = "system calls cannot be counted";
const REMEDY: &str = "run as root, or as the proxy's user with sysctl -w kernel.perf_event_paranoid=-1 and a tracefs \
                      that user may read";

/// Counts from when it was made.
pub struct CallCounter {
    all: Vec<Counter>,
    ring: Vec<Counter>,
}

/// So far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub system_calls: u64,
    /// Of them, those that hand operations to a ring or wait for it.
    pub ring_enters: u64,
}

impl Calls {
    /// Those made after `before`, which the same counter said earlier. A kernel that counts backwards ends no run.
    pub fn since(self, before: Self) -> Self {
        Self {
            system_calls: self.system_calls.saturating_sub(before.system_calls),
            ring_enters: self.ring_enters.saturating_sub(before.ring_enters),
        }
    }

    /// Rounded; those made within `time`, which is not zero.
    pub fn per_second(self, time: Duration) -> Self {
        let rate = |calls: u64| (calls as f64 / time.as_secs_f64()).round() as u64;
        Self { system_calls: rate(self.system_calls), ring_enters: rate(self.ring_enters) }
    }
}

impl CallCounter {
    /// Of all threads there are, and those and the processes they start from now on. One that is started while this opens
    /// may be missed: a proxy under load has its threads.
    ///
    /// # Errors
    /// A sentence that says what the kernel refuses and what to do.
    pub fn new(source: &ProxySource) -> Result<Self, String> {
        let tids = source.tids().map_err(|error| format!("{source}: {error}"))?;
        let count = |point: &str| {
            let id = point_id(&TRACEFS.map(Path::new), point)?;
            let counters = tids.iter().map(|tid| of_thread(*tid, id)).filter_map(Result::transpose);
            let counters = counters.collect::<io::Result<Vec<_>>>();
            match counters.map_err(|error| format!("{REFUSED}: {error}; {REMEDY}"))? {
                none if none.is_empty() => Err(format!("{REFUSED}: {source} has ended")),
                counters => Ok(counters),
            }
        };
        Ok(Self { all: count(ALL)?, ring: count(RING)? })
    }

    /// # Errors
    /// The kernel's, which is not to be expected of a counter that was opened. Part of a sum would look like one.
    pub fn read(&mut self) -> io::Result<Calls> {
        let sum =
            |counters: &mut Vec<Counter>| counters.iter_mut().map(Counter::read).sum::<io::Result<u64>>();
        Ok(Calls { system_calls: sum(&mut self.all)?, ring_enters: sum(&mut self.ring)? })
    }
}

/// The kernel's number of a trace point.
fn point_id(tracefs: &[&Path], point: &str) -> Result<u64, String> {
    let mut missing = None;
    for folder in tracefs {
        match fs::read_to_string(folder.join("events").join(point).join("id")) {
            Ok(text) => return text.trim().parse().map_err(|_| format!("{REFUSED}: {point} has no number")),
            // Mounted elsewhere, or not at all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing = Some(error),
            Err(error) => return Err(format!("{REFUSED}: trace point {point}: {error}; {REMEDY}")),
        }
    }
    let error = missing.map_or_else(String::new, |error| format!(": {error}"));
    Err(format!(
        "{REFUSED}: no trace point {point}{error}; as root, mount -t tracefs nodev /sys/kernel/tracing"
    ))
}

/// `Ok(None)`: it ended meanwhile.
fn of_thread(tid: u32, point: u64) -> io::Result<Option<Counter>> {
    let tid = i32::try_from(tid).map_err(io::Error::other)?;
    let opened = Builder::new(Tracepoint::with_id(point))
        .observe_pid(tid)
        .any_cpu()
        .inherit(true)
        // Where a call is entered is the kernel.
        .include_kernel()
        .enabled(true)
        .build();
    match opened {
        Ok(counter) => Ok(Some(counter)),
        Err(error) if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `ESRCH`.
const NO_SUCH_PROCESS: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn the_calls_of_a_process_and_of_what_it_starts_are_counted_one_by_one() {
        // The shell's builtins and what it runs; `dd` reads and writes as often as it is told.
        let script = "read x; dd if=/dev/zero of=/dev/null bs=1 count=$x 2>/dev/null; echo done; read x";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut counter = CallCounter::new(&ProxySource::Pid(shell.id())).expect("tests/run mounts tracefs");
        let (mut to, from) = (shell.stdin.take().expect("piped"), shell.stdout.take().expect("piped"));
        let before = counter.read().expect("open");
        to.write_all(b"50000\n").expect("a pipe");
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).expect("a pipe");
        let calls = counter.read().expect("open").system_calls - before.system_calls;
        // What starting it takes are a few hundred.
        assert!((100_000..103_000).contains(&calls), "{calls}");
        assert_eq!(counter.read().expect("open").ring_enters, 0);
        drop(to);
        shell.wait().expect("it ends");
    }

    #[test]
    fn the_ring_is_told_from_other_calls() {
        let ring = io_uring::IoUring::new(1).expect("a ring");
        let mut counter =
            CallCounter::new(&ProxySource::Pid(std::process::id())).expect("tests/run mounts tracefs");
        let before = counter.read().expect("open");
        (0..100).for_each(|_| assert_eq!(ring.submitter().submit().expect("nothing to submit"), 0));
        let calls = counter.read().expect("open");
        assert_eq!(calls.ring_enters - before.ring_enters, 100);
        assert!(calls.system_calls - before.system_calls >= 100);
    }

    #[test]
    fn a_part_of_a_second_is_told_as_a_rate() {
        let (before, now) =
            (Calls { system_calls: 20, ring_enters: 10 }, Calls { system_calls: 320, ring_enters: 55 });
        let rate = now.since(before).per_second(Duration::from_millis(500));
        assert_eq!(rate, Calls { system_calls: 600, ring_enters: 90 });
    }

    #[test]
    fn a_kernel_that_shows_no_trace_points_is_told_with_what_to_do() {
        let folder = std::env::temp_dir().join(format!("loadtest-no-tracefs-{}", std::process::id()));
        let error = point_id(&[&folder], ALL).expect_err("nothing is there");
        assert!(error.contains("mount -t tracefs") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_process_that_is_not_there_is_told() {
        let error = CallCounter::new(&ProxySource::Pid(u32::MAX)).err().expect("no such process");
        assert!(error.contains("pid 4294967295"), "{error}");
    }
}
