//! This machine's own figures: CPU and memory of a process or a cgroup, names for the report, limits.

use crate::result::ClientHost;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The proxy as the kernel knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum ProxySource {
    /// A process with its threads and descendants.
    Pid(u32),
    /// A cgroup (v2): everything in it.
    Cgroup(PathBuf),
}

impl FromStr for ProxySource {
    type Err = String;

    /// A process id, or the path of a cgroup below `/sys/fs/cgroup`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => Err("`0` is no process".into()),
            Ok(pid) => Ok(Self::Pid(pid)),
            Err(_) if text.starts_with('/') => Ok(Self::Cgroup(text.into())),
            Err(_) => Err(format!("`{text}` is neither a process id nor a cgroup's path")),
        }
    }
}

impl fmt::Display for ProxySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid {pid}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
        }
    }
}

impl ProxySource {
    /// All its threads at this moment.
    pub fn tids(&self) -> io::Result<Vec<u32>> {
        let numbers = |text: &str| text.lines().filter_map(|line| line.parse().ok()).collect();
        let root = match self {
            Self::Cgroup(path) => return Ok(numbers(&fs::read_to_string(path.join("cgroup.threads"))?)),
            Self::Pid(root) => *root,
        };
        let mut tids = Vec::new();
        for pid in descendants(root)? {
            // A process may end while it is looked at.
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            let names =
                threads.flatten().filter_map(|thread| thread.file_name().to_str()?.parse::<u32>().ok());
            tids.extend(names);
        }
        if tids.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such process"));
        }
        Ok(tids)
    }
}

/// CPU used so far, and resident memory now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: Duration,
    pub memory_bytes: u64,
}

/// Reads a source's usage again and again; what ended processes used stays counted.
pub struct Meter {
    source: ProxySource,
    /// By process and thread: the last that was read.
    seen: HashMap<(u32, u32), Duration>,
    /// Of threads that are gone.
    gone: Duration,
}

impl Meter {
    pub fn new(source: ProxySource) -> Self {
        Self { source, seen: HashMap::new(), gone: Duration::ZERO }
    }

    pub fn source(&self) -> &ProxySource {
        &self.source
    }

    /// CPU since the first reading's beginning of time, to the nanosecond where the kernel tells it.
    pub fn read(&mut self) -> io::Result<Usage> {
        match self.source.clone() {
            ProxySource::Pid(pid) => self.read_processes(pid),
            ProxySource::Cgroup(path) => read_cgroup(&path),
        }
    }

    fn read_processes(&mut self, root: u32) -> io::Result<Usage> {
        let mut now = HashMap::new();
        let mut memory_bytes = 0;
        for pid in descendants(root)? {
            // A process may end while it is looked at; the next reading knows it is gone.
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                let Some(tid) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                if let Some(cpu) = thread_cpu(&thread.path()) {
                    now.insert((pid, tid), cpu);
                }
            }
            memory_bytes += resident(pid).unwrap_or(0);
        }
        if now.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no process {root}")));
        }
        self.gone +=
            self.seen.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, cpu)| *cpu).sum::<Duration>();
        self.seen = now;
        Ok(Usage { cpu: self.gone + self.seen.values().sum::<Duration>(), memory_bytes })
    }
}

/// Nanoseconds on a CPU: the first number of `schedstat`.
fn thread_cpu(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_ascii_whitespace().next()?.parse().ok()?))
}

fn resident(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The process and everything that descends from it.
fn descendants(root: u32) -> io::Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name before it is in parentheses and may hold anything; the parent is the second field behind it.
        let parent =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut at) = (vec![root], 0);
    while at < found.len() {
        found.extend(children.remove(&found[at]).unwrap_or_default());
        at += 1;
    }
    Ok(found)
}

fn read_cgroup(path: &Path) -> io::Result<Usage> {
    let stat = fs::read_to_string(path.join("cpu.stat"))?;
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
    let usage =
        usage.ok_or_else(|| io::Error::other(format!("{}: no usage_usec in cpu.stat", path.display())))?;
    let memory = fs::read_to_string(path.join("memory.current")).ok();
    let memory_bytes = memory.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Ok(Usage { cpu: Duration::from_micros(usage), memory_bytes })
}

/// This machine, for the report.
pub fn describe(threads: u32) -> ClientHost {
    let name = rustix::system::uname();
    ClientHost {
        hostname: name.nodename().to_string_lossy().into_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        cpu_count: std::thread::available_parallelism().map_or(0, |count| count.get() as u32),
        threads,
    }
}

/// Raises the soft limit of open files to the hard one and returns it; `None`: no limit.
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn the_cpu_of_a_process_s_children_counts_and_stays_counted_when_they_end() {
        // The shell burns nothing itself; its child does, and then ends.
        let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; echo done; read x";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut meter = Meter::new(ProxySource::Pid(shell.id()));
        let mut highest = Duration::ZERO;
        let begun = Instant::now();
        while highest < Duration::from_millis(20) && begun.elapsed() < Duration::from_secs(20) {
            highest = highest.max(meter.read().expect("it lives").cpu);
        }
        assert!(highest >= Duration::from_millis(20), "{highest:?}");
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().expect("piped")), &mut line)
            .expect("a pipe");
        let after = meter.read().expect("the shell lives");
        assert!(after.cpu >= highest && after.memory_bytes > 0, "{after:?} {highest:?}");
        drop(shell.stdin.take());
        shell.wait().expect("it ends");
        assert!(meter.read().is_err(), "gone");
    }

    #[test]
    fn a_cgroup_is_read_from_its_files() {
        let folder = std::env::temp_dir().join(format!("loadtest-cgroup-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("cpu.stat"), "usage_usec 1500000\nuser_usec 1\n").expect("a file");
        fs::write(folder.join("memory.current"), "4096\n").expect("a file");
        let usage = Meter::new(ProxySource::Cgroup(folder.clone())).read();
        fs::remove_dir_all(&folder).expect("ours");
        assert_eq!(usage.expect("readable"), Usage { cpu: Duration::from_millis(1500), memory_bytes: 4096 });
    }

    #[test]
    fn a_proxy_is_a_pid_or_a_path() {
        assert_eq!("12".parse(), Ok(ProxySource::Pid(12)));
        assert_eq!("/sys/fs/cgroup/x".parse(), Ok(ProxySource::Cgroup("/sys/fs/cgroup/x".into())));
        assert!("x".parse::<ProxySource>().is_err());
    }
}
