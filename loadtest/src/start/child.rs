//! A process of ours: started in a group of its own, watched, and ended with its group when dropped.

use super::output::Output;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group, waitid,
};
use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// From SIGTERM to SIGKILL.
const END_MAX: Duration = Duration::from_secs(5);
/// How long the last lines of an ended process may take; whoever it started may hold the pipe open.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
/// Between looks at whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a process is started.
pub struct Launch<'a> {
    /// What errors call it.
    pub name: String,
    pub words: &'a [String],
    /// Beside our own environment, which it inherits.
    pub environment: &'a [(String, String)],
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
    output: Output,
    /// How it ended.
    ended: Arc<OnceLock<String>>,
    /// Disconnected when it has.
    over: Receiver<Infallible>,
}

impl Child {
    /// To be called on the main thread: the process ends with the thread that started it. Sets `stop` when it ends.
    ///
    /// # Errors
    /// A sentence: no process or thread can be had. A command that cannot be run ends as a process.
    pub fn start(launch: &Launch<'_>, stop: &Arc<AtomicBool>) -> Result<Self, String> {
        Self::spawn(launch, stop).map_err(|error| format!("{} cannot be started: {error}", launch.name))
    }

    fn spawn(launch: &Launch<'_>, stop: &Arc<AtomicBool>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("launch").arg("--parent").arg(process::id().to_string());
        if !launch.cpus.is_empty() {
            let cpus: Vec<String> = launch.cpus.iter().map(usize::to_string).collect();
            command.arg("--cpus").arg(cpus.join(","));
        }
        command.arg("--").args(launch.words);
        command.envs(launch.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // Ctrl-C at a terminal is for us: the load ends first.
        command.process_group(0);
        let (output, all_read) = Output::read(reader)?;
        let process = command.spawn()?;
        let (ended, (alive, over)) = (Arc::new(OnceLock::new()), channel());
        let child = Self {
            name: launch.name.clone(),
            secret: launch.secret.into(),
            process,
            output,
            ended: ended.clone(),
            over,
        };
        let (pid, stop) = (child.pid(), stop.clone());
        thread::Builder::new().name("child".into()).spawn(move || {
            let how = await_end(pid);
            // Nothing is sent: the reader drops its end.
            let _ = all_read.recv_timeout(LAST_WORDS_MAX);
            ended.get_or_init(|| how);
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

    /// That it has ended, how, and what it said last. `None`: it lives.
    pub fn failure(&self) -> Option<String> {
        let how = self.ended.get()?;
        Some(format!("{} ended with {how}; {}", self.name, self.output.last_lines(&self.secret)))
    }

    /// Looks again and again until there is something.
    ///
    /// # Errors
    /// A sentence: it ended, `most` is over (`missing` says of what), or `stop` was set.
    pub fn until<T>(
        &self,
        missing: &str,
        most: Duration,
        stop: &AtomicBool,
        look: &mut dyn FnMut() -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + most;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if self.ends_within(LOOK_EVERY) {
                return Err(self.failure().unwrap_or_default());
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

impl Drop for Child {
    fn drop(&mut self) {
        // Nobody has waited for it yet, so that the number is still its own. It may have left its group, which then may be none:
        // no error, and whoever is gone already is as good.
        let pid = self.pid();
        let _ = kill_process_group(pid, Signal::TERM).or_else(|_| kill_process(pid, Signal::TERM));
        self.ends_within(END_MAX);
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns when the process has ended and leaves it unwaited for.
fn await_end(pid: Pid) -> String {
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(Errno::INTR) => {}
            Ok(Some(status)) => return how(&status),
            Ok(None) => return "an unknown status".into(),
            Err(error) => return format!("an unknown status ({error})"),
        }
    }
}

fn how(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}
