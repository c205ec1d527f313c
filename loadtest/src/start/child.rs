//! A process of ours: started in a group of its own, watched, and ended with its group when dropped.

use super::group::Group;
use super::output::Output;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, waitid};
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{self, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// From SIGTERM to SIGKILL.
const END_MAX: Duration = Duration::from_secs(5);
/// From SIGKILL on: the kernel may refuse it, and a process in its hands ends when those let go.
const KILL_MAX: Duration = Duration::from_secs(2);
/// How long the last lines of an ended process may take; whoever it started may hold the pipe open.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
/// Between looks at whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is started, and how.
pub struct ChildSpec<'a> {
    /// What errors call it.
    pub name: String,
    pub words: &'a [String],
    /// Beside our own environment, which it inherits.
    pub environment: &'a [(String, String)],
    /// Names of our environment that begin like this are not inherited.
    pub withheld: Option<&'a str>,
    /// Empty: those we may use.
    pub cpus: &'a [usize],
    /// Not to be shown in what it said.
    pub secret: &'a str,
}

/// It ends with this process, whatever becomes of that: see [`super::launch`]. What it started in turn ends with it when it is
/// dropped, but not when this process is killed.
pub struct Child {
    name: String,
    secret: String,
    process: process::Child,
    group: Group,
    output: Output,
    /// Disconnected when all of it was read.
    all_read: Receiver<()>,
    /// Disconnected when it has ended.
    over: Receiver<Infallible>,
}

/// That one has ended by itself.
pub struct Failure {
    /// Who and how. Fit for files.
    pub how: String,
    /// For the terminal alone: programs that fail like to print what they were told, secrets too.
    last_words: String,
}

impl Failure {
    pub fn for_terminal(&self) -> String {
        format!("{}; {}", self.how, self.last_words)
    }
}

impl Child {
    /// To be called on the main thread: the process ends with the thread that started it. Sets `stop` when it ends.
    ///
    /// # Errors
    /// A sentence: no process or thread can be had. A command that cannot be run ends as a process.
    pub fn start(spec: &ChildSpec<'_>, stop: &Arc<AtomicBool>) -> Result<Self, String> {
        Self::spawn(spec, stop).map_err(|error| format!("{} cannot be started: {error}", spec.name))
    }

    fn spawn(spec: &ChildSpec<'_>, stop: &Arc<AtomicBool>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("launch").arg("--parent").arg(process::id().to_string());
        if !spec.cpus.is_empty() {
            let cpus: Vec<String> = spec.cpus.iter().map(usize::to_string).collect();
            command.arg("--cpus").arg(cpus.join(","));
        }
        command.arg("--").args(spec.words);
        if let Some(prefix) = spec.withheld {
            let names = std::env::vars_os().map(|(name, _)| name);
            names.filter(|name| name.as_bytes().starts_with(prefix.as_bytes())).for_each(|name| {
                command.env_remove(name);
            });
        }
        command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // Ctrl-C at a terminal is for us: the load ends first.
        command.process_group(0);
        let (output, all_read) = Output::read(reader)?;
        let process = command.spawn()?;
        let (alive, over) = channel();
        let pid = Pid::from_child(&process);
        let group = Group::new(pid);
        let child = Self {
            name: spec.name.clone(),
            secret: spec.secret.into(),
            process,
            group,
            output,
            all_read,
            over,
        };
        let stop = stop.clone();
        thread::Builder::new().name("child".into()).spawn(move || {
            await_end(pid);
            stop.store(true, Relaxed);
            drop(alive);
        })?;
        Ok(child)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub fn output(&self) -> &Output {
        &self.output
    }

    /// That it has ended. `None`: it lives, says the kernel itself, and not whoever is told by it a little later.
    pub fn failure(&self) -> Option<Failure> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let how = how(&waitid(WaitId::Pid(self.pid()), options).ok()??);
        // Nothing is sent: the reader drops its end.
        let _ = self.all_read.recv_timeout(LAST_WORDS_MAX);
        let last_words = self.output.last_lines(&self.secret);
        Some(Failure { how: format!("{} ended with {how}", self.name), last_words })
    }

    /// Looks again and again until there is something; each look is told the time that is left.
    ///
    /// # Errors
    /// A sentence: it ended, `most` is over (`missing` says of what), or `stop` was set.
    pub fn until<T>(
        &self,
        missing: &str,
        most: Duration,
        stop: &AtomicBool,
        look: &mut dyn FnMut(Duration) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + most;
        loop {
            if let Some(found) = look(deadline.saturating_duration_since(Instant::now())) {
                return Ok(found);
            }
            if self.ends_within(LOOK_EVERY) {
                return Err(self.failure().map_or(String::new(), |failure| failure.for_terminal()));
            }
            if stop.load(Relaxed) {
                return Err("stopped before the first request".into());
            }
            if Instant::now() >= deadline {
                let (name, said) = (&self.name, self.output.last_lines(&self.secret));
                return Err(format!("{name} {missing} within {}; {said}", humantime::format_duration(most)));
            }
        }
    }

    pub fn ends_within(&self, most: Duration) -> bool {
        match self.over.recv_timeout(most) {
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
            Ok(never) => match never {},
        }
    }
}

impl Child {
    /// Nobody has waited for it yet, so that the number is still its own. It may have left its group.
    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        self.group.signal(signal).or_else(|_| kill_process(self.pid(), signal))
    }

    /// It, and then all of its group: what a wrapper started may end in peace, too.
    fn group_ends_within(&self, most: Duration) -> bool {
        let deadline = Instant::now() + most;
        if !self.ends_within(most) {
            return false;
        }
        while self.group.has_living() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(LOOK_EVERY);
        }
        true
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Whoever is gone already is as good.
        let _ = self.signal(Signal::TERM);
        if !self.group_ends_within(END_MAX) {
            let killed = self.signal(Signal::KILL);
            if !self.ends_within(KILL_MAX) {
                let why = killed.err().map_or("it goes on after SIGKILL".into(), |error| error.to_string());
                let line = format!("loadtest: pid {} could not be ended: {why}\n", self.pid());
                // The terminal may be gone.
                drop(io::stderr().write_all(line.as_bytes()));
                return;
            }
        }
        self.group.forget();
        let _ = self.process.wait();
    }
}

/// Returns when the process has ended and leaves it unwaited for.
fn await_end(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
}

fn how(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}
