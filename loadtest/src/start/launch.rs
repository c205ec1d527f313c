//! A started process's first moments: `loadtest launch`, which binds its life to that of whoever started it, chooses its
//! CPUs, and becomes the command. So what std does not do between fork and exec needs no code there.

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// As shells say that a command cannot be run.
const EXIT_NOT_RUN: u8 = 127;

#[derive(Clone, Debug, Args)]
pub struct LaunchArgs {
    /// Process id of whoever starts this: its end is this process's, too
    #[arg(long)]
    parent: i32,
    /// CPUs to run on
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command; returns if it cannot.
pub fn launch(args: &LaunchArgs) -> ExitCode {
    eprintln!("loadtest: {}", become_command(args));
    ExitCode::from(EXIT_NOT_RUN)
}

fn become_command(args: &LaunchArgs) -> String {
    // The kernel sends it when the parent ends, however it does; exec keeps it, unless the program has more rights than we.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("the parent's end cannot be watched: {error}");
    }
    // One that ended before this moment sends nothing.
    if getppid() != Pid::from_raw(args.parent) {
        return "whoever started this is gone".into();
    }
    if !args.cpus.is_empty() {
        let mut cpus = CpuSet::new();
        args.cpus.iter().for_each(|cpu| cpus.set(*cpu));
        if let Err(error) = sched_setaffinity(None, &cpus) {
            return format!("CPUs {:?}: {error}", args.cpus);
        }
    }
    let Some((program, rest)) = args.command.split_first() else { return "no command".into() };
    let error = Command::new(program).args(rest).exec();
    format!("cannot run `{}`: {error}", program.display())
}
