//! Signals that end a run: the first with what there is, the second at once.

use crate::start;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// As shells say that Ctrl-C ended a program.
const EXIT_INTERRUPTED: i32 = 130;

/// The first SIGINT, SIGTERM or SIGHUP sets what is returned; others may set it, too. The second ends what was started and
/// the process. A SIGHUP that whoever started us ignores, as `nohup` does, stays ignored.
///
/// # Errors
/// A sentence: the kernel refuses it.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        let of = |kind| signal(kind).map_err(|error| error.to_string());
        let hang_up = if ignores_hang_up() { None } else { Some(of(SignalKind::hangup())?) };
        (of(SignalKind::interrupt())?, of(SignalKind::terminate())?, hang_up)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            // Not read from `stop`, which an end of what was started sets: after that the user's first is still the first.
            let mut signalled = false;
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    () = received(&mut hang_up) => {}
                }
                if signalled {
                    start::kill_all();
                    std::process::exit(EXIT_INTERRUPTED);
                }
                signalled = true;
                stopping.store(true, Relaxed);
            }
        })
    });
    Ok(stop)
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn ignores_hang_up() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, SignalKind::hangup()))
}

/// What `/proc/PID/status` says: a bit for each signal, from 1 on.
fn ignores(status: &str, signal: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SignalKind::hangup()) && !ignores(status, SignalKind::interrupt()));
        assert!(
            !ignores("SigIgn:\t0000000000001000\n", SignalKind::hangup())
                && !ignores("", SignalKind::hangup())
        );
    }
}
