//! Logins and tickets that have been used: each counts once, here and at the gates that share our Redis.

use crate::control::redis::Redis;
use crate::login::flow::{FlowId, hex};
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most that are remembered, some 60 bytes each. Beyond it the oldest are forgotten: what is then left against a second
/// use is the provider, which takes a code once, and the browser's cookie.
const USED_MAX: usize = 65_536;

pub(super) struct Used {
    // Never held over an await.
    here: Mutex<Remembered>,
    shared: Option<Redis>,
}

impl Used {
    pub fn new(shared: Option<Redis>) -> Self {
        Self { here: Mutex::default(), shared }
    }

    /// Known here to have been used.
    pub fn holds(&self, id: &FlowId) -> bool {
        self.here().ids.contains(id)
    }

    /// `false`: it was used before. `expires` and `now` in seconds since 1970. A Redis that does not answer costs its
    /// deadline; what is remembered here has to do then.
    pub async fn first(&self, id: FlowId, expires: u64, now: u64) -> bool {
        if !self.here().first(id, expires, now) {
            return false;
        }
        let Some(redis) = &self.shared else { return true };
        let ttl = Duration::from_secs(expires.saturating_sub(now).max(1));
        let key = format!("sandgate:login-used:{}", hex(&id));
        !matches!(redis.set_nx(&key, b"1", ttl).await, Ok(false))
    }

    fn here(&self) -> MutexGuard<'_, Remembered> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Remembered {
    ids: HashSet<FlowId>,
    /// In the order of their use, with the time from which they are refused for their age anyway.
    order: VecDeque<(FlowId, u64)>,
}

impl Remembered {
    fn first(&mut self, id: FlowId, expires: u64, now: u64) -> bool {
        while self.order.front().is_some_and(|(_, expires)| *expires <= now) || self.order.len() >= USED_MAX {
            let Some((oldest, _)) = self.order.pop_front() else { break };
            self.ids.remove(&oldest);
        }
        let first = self.ids.insert(id);
        if first {
            self.order.push_back((id, expires));
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn id(n: usize) -> FlowId {
        (n as u128).to_be_bytes()
    }

    #[test]
    fn each_counts_once_and_is_forgotten_when_its_time_is_over() {
        let mut used = Remembered::default();
        assert!(used.first(id(1), 100, 0));
        assert!(!used.first(id(1), 100, 99));
        assert!(used.first(id(2), 200, 100));
        assert_eq!(used.order.len(), 1, "the first is forgotten");
        assert!(!used.first(id(2), 200, 100));
    }

    #[test]
    fn no_more_are_kept_than_the_bound() {
        let mut used = Remembered::default();
        for n in 0..USED_MAX + 10 {
            assert!(used.first(id(n), 100, 0));
        }
        assert_eq!((used.order.len(), used.ids.len()), (USED_MAX, USED_MAX));
        assert!(!used.first(id(USED_MAX + 9), 100, 0), "the latest are");
    }
}
