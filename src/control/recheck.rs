//! A "yes" that was put into Redis is asked about once more, when the API's memory is over.
//!
//! While its key was not there nobody could be told that the sandbox was made private, and the API may have said "yes"
//! from its memory a moment later. From the writing on a change deletes the key, which is heard; what was before it the
//! API knows for certain once its memory is over. Unasked, such a "yes" would stand for v0.190's hour.

use super::api::Api;
use super::push::{API_MEMORY, Push, public_key};
use super::redis::{DEADLINE, Redis};
use super::stats::{RecheckResult, Stats};
use crate::ids::SandboxId;
use crate::mailbox::{Answer, Question};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// From before the writing to the asking. From one that brought nothing to the next twice as long each time, up to
/// [`WAIT_MAX`]: an API in trouble is not to be kept there.
const WAIT: Duration = Duration::from_millis(3700);
const _: () = assert!(
    WAIT.as_millis() > API_MEMORY.as_millis() + DEADLINE.as_millis(),
    "the writing may take that long"
);
/// As many flags may wait to be asked about; each costs a task of about 1 KiB.
const PENDING_MAX: usize = 4096;
/// Calls to the API at once.
const ASKED_MAX: usize = 32;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// So many times at most: about as long as the key lives.
const TRIES_MAX: usize = 64;

pub(super) struct Rechecks {
    work: Arc<Work>,
    /// Ends with this.
    pending: Mutex<JoinSet<()>>,
    pub(super) pending_max: usize,
    pub(super) wait: Duration,
}

struct Work {
    api: Arc<Api>,
    redis: Redis,
    push: Arc<Push>,
    stats: Arc<Stats>,
    turns: Semaphore,
}

impl Rechecks {
    pub(super) fn new(api: Arc<Api>, redis: Redis, push: Arc<Push>, stats: Arc<Stats>) -> Self {
        let work = Work { api, redis, push, stats, turns: Semaphore::new(ASKED_MAX) };
        Self { work: Arc::new(work), pending: Mutex::default(), pending_max: PENDING_MAX, wait: WAIT }
    }

    /// Say it before the flag is written: who writes may be cancelled at any moment. `false`: too many wait already,
    /// nobody will ask.
    pub(super) fn expect(&self, sandbox: SandboxId) -> bool {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while pending.try_join_next().is_some() {}
        let room = pending.len() < self.pending_max;
        if room {
            pending.spawn(Arc::clone(&self.work).ask_again(sandbox, self.wait));
        } else {
            self.work.stats.recheck(RecheckResult::NoRoom);
        }
        room
    }
}

impl Work {
    async fn ask_again(self: Arc<Self>, sandbox: SandboxId, wait: Duration) {
        for wait in waits(wait) {
            tokio::time::sleep(wait).await;
            let reply = {
                let _turn = self.turns.acquire().await.expect("it is never closed");
                self.api.answer(&Question::Public(sandbox)).await
            };
            match reply {
                Ok(Answer::Yes) => return self.stats.recheck(RecheckResult::Confirmed),
                Ok(_) => {
                    self.push.withdraw(sandbox);
                    // The end of the key tells all others.
                    if self.redis.del(&public_key(&sandbox)).await.is_ok() {
                        return self.stats.recheck(RecheckResult::Withdrawn);
                    }
                }
                // An API that cannot say takes nothing away.
                Err(_) => self.stats.recheck(RecheckResult::Unanswered),
            }
        }
    }
}

/// Before each asking.
fn waits(first: Duration) -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(first), |wait| Some((*wait * 2).min(WAIT_MAX))).take(TRIES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_in_trouble_is_asked_less_and_less_often_and_for_about_as_long_as_the_key_lives() {
        let waits: Vec<_> = waits(WAIT).collect();
        assert_eq!(waits[..2], [WAIT, WAIT * 2]);
        assert!(waits.is_sorted() && waits.last() == Some(&WAIT_MAX), "{waits:?}");
        let all = waits.iter().sum::<Duration>();
        assert!((3500..3700).contains(&all.as_secs()), "{all:?}");
    }
}
