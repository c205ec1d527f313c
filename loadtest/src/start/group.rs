//! Process groups of what was started, known to the whole process: whoever ends it at once ends them first.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ALIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Kills all of them. What was only just forked is killed by the kernel when we end: see [`super::launch`].
pub fn kill_all() {
    for group in alive().iter() {
        // Gone already is as good.
        let _ = kill_process_group(*group, Signal::KILL);
    }
}

/// A group, led by a process of ours that nobody has waited for: as long as that is so the number is its own.
pub struct Group(Pid);

impl Group {
    pub fn new(leader: Pid) -> Self {
        alive().push(leader);
        Self(leader)
    }

    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        kill_process_group(self.0, signal)
    }

    /// To be called before its leader is waited for.
    pub fn forget(&self) {
        alive().retain(|group| *group != self.0);
    }

    /// Whether one of it has not ended yet. Those that nobody waits for do not count, as the kernel counts them.
    pub fn has_living(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        let group = self.0.to_string();
        processes.flatten().any(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            is_living_member(&stat, &group)
        })
    }
}

/// Of a process with this `/proc/PID/stat`: its name, which may hold anything, in brackets, then state, parent and group.
fn is_living_member(stat: &str, group: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_ascii_whitespace();
    let (state, member_of) = (fields.next(), fields.nth(1));
    member_of == Some(group) && !matches!(state, Some("Z" | "X"))
}

fn alive() -> MutexGuard<'static, Vec<Pid>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_from_others_and_from_those_that_have_ended() {
        assert!(is_living_member("7 (a) Z 5) S 1 5 5 0", "5"));
        for stat in ["7 (a) Z 1 5 5 0", "7 (a) S 5 7 5 0", "5 (a) S 1 55 5 0", ""] {
            assert!(!is_living_member(stat, "5"), "{stat}");
        }
    }
}
