//! Idle connections to runners, per shard.
//!
//! A connection is given out only if it is open and silent at that moment, and taken back only by an exchange that
//! ended exactly where its framing said; anything odd and it is closed.

use crate::counters::{Counters, add, less};
use crate::mailbox::RunnerAddress;
use crate::socket::Socket;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// A runner as a shard knows it: where it is, and this shard's idle connections to it.
pub struct Runner {
    pub address: Arc<RunnerAddress>,
    idle: Rc<IdleList>,
}

#[derive(Default)]
struct IdleList {
    /// Newest last; given out from the end, expired from the front.
    sockets: RefCell<Vec<(Socket, u32)>>,
}

/// All idle connections of a shard.
pub struct Pool {
    lists: RefCell<HashMap<Vec<SocketAddr>, Rc<IdleList>>>,
    idle_count: Cell<usize>,
    idle_max: usize,
    /// In ticks.
    idle_ticks: u32,
}

impl Pool {
    pub fn new(idle_max: usize, idle_ticks: u32) -> Self {
        Self { lists: RefCell::default(), idle_count: Cell::new(0), idle_max, idle_ticks }
    }

    /// Runners at the same addresses share their idle connections, whoever's sandboxes they hold. All of them: a
    /// connection may have been made to any.
    pub fn runner(&self, address: Arc<RunnerAddress>) -> Option<Rc<Runner>> {
        if address.addrs.is_empty() {
            return None;
        }
        let idle = self.lists.borrow_mut().entry(address.addrs.clone()).or_default().clone();
        Some(Rc::new(Runner { address, idle }))
    }

    /// A usable idle connection, or `None`.
    pub fn take(&self, runner: &Runner, counters: &Counters) -> Option<Socket> {
        loop {
            let (socket, _) = runner.idle.sockets.borrow_mut().pop()?;
            self.idle_count.set(self.idle_count.get() - 1);
            less(&counters.runner_idle);
            if socket.is_quiet() {
                add(&counters.runner_reuses, 1);
                return Some(socket);
            }
            add(&counters.runner_stale, 1);
        }
    }

    /// Takes a connection whose last exchange ended cleanly.
    pub fn give(&self, runner: &Runner, socket: Socket, now: u32, counters: &Counters) {
        if self.idle_count.get() >= self.idle_max {
            return;
        }
        runner.idle.sockets.borrow_mut().push((socket, now));
        self.idle_count.set(self.idle_count.get() + 1);
        add(&counters.runner_idle, 1);
    }

    /// Closes what idled too long or was closed by its runner, and forgets runners nobody names any more.
    pub fn sweep(&self, now: u32, counters: &Counters) {
        self.lists.borrow_mut().retain(|_, list| {
            let mut sockets = list.sockets.borrow_mut();
            let before = sockets.len();
            sockets.retain(|(socket, since)| now.wrapping_sub(*since) < self.idle_ticks && socket.is_quiet());
            let closed = before - sockets.len();
            self.idle_count.set(self.idle_count.get() - closed);
            (0..closed).for_each(|_| less(&counters.runner_idle));
            !sockets.is_empty() || Rc::strong_count(list) > 1
        });
    }

    /// Closes everything (drain).
    pub fn clear(&self, counters: &Counters) {
        for list in self.lists.borrow().values() {
            list.sockets.borrow_mut().clear();
        }
        self.idle_count.set(0);
        counters.runner_idle.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runners_share_connections_only_where_all_their_addresses_are_the_same() {
        let pool = Pool::new(8, 100);
        let runner = |addrs: &[&str]| {
            let address = RunnerAddress {
                authority: "runner".into(),
                base_path: String::new(),
                addrs: addrs.iter().map(|addr| addr.parse().expect("an address")).collect(),
                authorization: "Bearer k".into(),
            };
            pool.runner(Arc::new(address)).expect("it has an address")
        };
        let one = runner(&["192.0.2.1:80", "192.0.2.2:80"]);
        assert!(Rc::ptr_eq(&one.idle, &runner(&["192.0.2.1:80", "192.0.2.2:80"]).idle));
        // A connection of the first may have been made to its second address, which is not one of these.
        for other in
            [&["192.0.2.1:80"][..], &["192.0.2.1:80", "192.0.2.3:80"], &["192.0.2.1:81", "192.0.2.2:80"]]
        {
            assert!(!Rc::ptr_eq(&one.idle, &runner(other).idle), "{other:?}");
        }
    }
}
