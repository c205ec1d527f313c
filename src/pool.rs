//! Idle connections to runners, per shard.
//!
//! A connection is given out only if it was open and silent a moment ago, and taken back only by an exchange that
//! ended exactly where its framing said; anything odd and it is closed. A byte nobody asked for would else be taken
//! for the answer to the next request, which may be another tenant's. Whether they are silent is asked of several at
//! once, as many as were wanted lately: one system call for each cost 3 % of a small request.

use crate::counters::{Counters, add, less};
use crate::mailbox::RunnerAddress;
use crate::socket::{self, Socket};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For so long what was found silent counts as silent. A request leaves at the end of the loop's turn, so whatever is
/// found out here is about that old when it does: the moment adds to a gap that cannot be closed, and is as short.
const SILENCE_HOLDS: Duration = Duration::from_micros(100);
/// Most connections asked at once.
const LOOK_MAX: usize = 32;

/// A runner as a shard knows it: where it is, and this shard's idle connections to it.
pub struct Runner {
    pub address: Arc<RunnerAddress>,
    idle: Rc<IdleList>,
}

#[derive(Default)]
struct IdleList {
    /// Newest last; given out from the end, expired from the front.
    sockets: RefCell<Vec<Idle>>,
    /// Some of the newest, found silent by the last look.
    silent: RefCell<Silent>,
}

/// What a look may be that a connection is given out on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Another request's, [`SILENCE_HOLDS`] ago at most.
    Recent,
    /// One of now: the request cannot be sent again if the runner has closed meanwhile.
    Anew,
}

/// A connection and the tick it was given back at.
type Idle = (Socket, u32);

#[derive(Default)]
struct Silent {
    sockets: Vec<Idle>,
    looked_at: Option<Instant>,
    /// Since the last look.
    taken: usize,
}

/// All idle connections of a shard.
pub struct Pool {
    lists: RefCell<HashMap<Vec<SocketAddr>, Rc<IdleList>>>,
    /// Those somebody holds. Thousands of sandboxes are on one runner: it is known once, not once for each.
    runners: RefCell<HashMap<Arc<RunnerAddress>, Weak<Runner>>>,
    idle_count: Cell<usize>,
    idle_max: usize,
    /// Of this number and from it on none is kept.
    fd_end: Cell<RawFd>,
    /// In ticks.
    idle_ticks: u32,
}

impl Pool {
    pub fn new(idle_max: usize, idle_ticks: u32) -> Self {
        Self {
            lists: RefCell::default(),
            runners: RefCell::default(),
            idle_count: Cell::new(0),
            idle_max,
            fd_end: Cell::new(RawFd::MAX),
            idle_ticks,
        }
    }

    /// Runners at the same addresses share their idle connections, whoever's sandboxes they hold. All of them: a
    /// connection may have been made to any.
    pub fn runner(&self, address: Arc<RunnerAddress>) -> Option<Rc<Runner>> {
        if address.addrs.is_empty() {
            return None;
        }
        let mut runners = self.runners.borrow_mut();
        if let Some(runner) = runners.get(&address).and_then(Weak::upgrade) {
            return Some(runner);
        }
        let idle = self.lists.borrow_mut().entry(address.addrs.clone()).or_default().clone();
        let runner = Rc::new(Runner { address: address.clone(), idle });
        runners.insert(address, Rc::downgrade(&runner));
        Some(runner)
    }

    /// A usable idle connection, or `None`. `now` is this very moment.
    pub fn take(&self, runner: &Runner, now: Instant, trust: Trust, counters: &Counters) -> Option<Socket> {
        let mut silent = runner.idle.silent.borrow_mut();
        let holds = trust == Trust::Recent
            && silent.looked_at.is_some_and(|at| now.saturating_duration_since(at) < SILENCE_HOLDS);
        if !holds || silent.sockets.is_empty() {
            self.look(&mut runner.idle.sockets.borrow_mut(), &mut silent, counters);
            silent.looked_at = Some(now);
        }
        let (socket, _) = silent.sockets.pop()?;
        silent.taken += 1;
        self.idle_count.set(self.idle_count.get() - 1);
        less(&counters.runner_idle);
        add(&counters.runner_reuses, 1);
        Some(socket)
    }

    /// Finds silent connections among the newest, as many as were taken since the last look and one more; closes what
    /// is not silent on the way.
    fn look(&self, sockets: &mut Vec<Idle>, silent: &mut Silent, counters: &Counters) {
        sockets.append(&mut silent.sockets);
        let wanted = (std::mem::take(&mut silent.taken) + 1).min(LOOK_MAX);
        while silent.sockets.is_empty() && !sockets.is_empty() {
            let newest = sockets.len().saturating_sub(wanted);
            silent.sockets.extend(sockets.drain(newest..));
            let asked = silent.sockets.len();
            let mut verdicts =
                socket::are_silent(silent.sockets.iter().map(|(socket, _)| socket)).into_iter();
            silent.sockets.retain(|_| verdicts.next() == Some(true));
            for _ in silent.sockets.len()..asked {
                self.idle_count.set(self.idle_count.get() - 1);
                less(&counters.runner_idle);
                add(&counters.runner_stale, 1);
            }
        }
    }

    /// The kernel gives out the lowest number that is free: where the descriptors are running out none is to lie idle, for
    /// other runners want connections, too.
    pub fn keep_below(&self, fd_end: RawFd) {
        self.fd_end.set(fd_end);
    }

    /// Takes a connection whose last exchange ended cleanly.
    pub fn give(&self, runner: &Runner, socket: Socket, now: u32, counters: &Counters) {
        if self.idle_count.get() >= self.idle_max || socket.raw_fd() >= self.fd_end.get() {
            return;
        }
        runner.idle.sockets.borrow_mut().push((socket, now));
        self.idle_count.set(self.idle_count.get() + 1);
        add(&counters.runner_idle, 1);
    }

    /// Closes what idled too long or was closed by its runner, and forgets runners nobody names any more.
    pub fn sweep(&self, now: u32, counters: &Counters) {
        self.runners.borrow_mut().retain(|_, runner| runner.strong_count() > 0);
        self.lists.borrow_mut().retain(|_, list| {
            let mut sockets = list.sockets.borrow_mut();
            sockets.append(&mut list.silent.borrow_mut().sockets);
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
            list.silent.borrow_mut().sockets.clear();
        }
        self.idle_count.set(0);
        counters.runner_idle.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

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

    /// A pool of connections to one runner, and the runner's side of each in the order they were given back.
    struct World {
        pool: Pool,
        runner: Rc<Runner>,
        counters: Counters,
        theirs: Vec<TcpStream>,
        fds: Vec<i32>,
    }

    impl World {
        async fn of(connections: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
            let addr = listener.local_addr().expect("an address");
            let address = RunnerAddress {
                addrs: vec![addr],
                authority: String::new(),
                base_path: String::new(),
                authorization: String::new(),
            };
            let pool = Pool::new(64, 100);
            let runner = pool.runner(Arc::new(address)).expect("an address");
            let counters = Counters::default();
            let (mut theirs, mut fds) = (Vec::new(), Vec::new());
            for _ in 0..connections {
                let (fd, _) = socket::start_connect(addr).expect("connecting");
                theirs.push(listener.accept().expect("accepted").0);
                let socket = Socket::new(fd).expect("a socket");
                fds.push(socket.fd().as_raw_fd());
                pool.give(&runner, socket, 1, &counters);
            }
            Self { pool, runner, counters, theirs, fds }
        }

        /// So that the next look is one of three.
        fn take_two_and_give_them_back(&self, now: Instant) {
            let taken = [self.take(now), self.take(now)].map(|socket| socket.expect("silent"));
            taken.into_iter().for_each(|socket| self.pool.give(&self.runner, socket, 1, &self.counters));
        }

        fn take(&self, now: Instant) -> Option<Socket> {
            self.pool.take(&self.runner, now, Trust::Recent, &self.counters)
        }
    }

    #[test]
    fn a_connection_that_spoke_or_closed_while_it_was_idle_is_never_given_out() {
        on_a_shard(|| async {
            let mut world = World::of(4).await;
            world.theirs[3].write_all(b"HTTP/1.1 200 OK").expect("sent");
            world.theirs[1].shutdown(std::net::Shutdown::Both).expect("closed");
            let now = Instant::now();
            let first = world.take(now).expect("the newest that is silent");
            assert_eq!(first.raw_fd(), world.fds[2]);
            let second = world.take(now).expect("the other one");
            assert_eq!(second.raw_fd(), world.fds[0]);
            assert!(world.take(now).is_none());
            assert_eq!(world.counters.runner_stale.get(), 2);
            assert_eq!((world.pool.idle_count.get(), world.counters.runner_idle.get()), (0, 0));
        });
    }

    #[test]
    fn none_is_kept_whose_descriptor_is_among_the_last() {
        on_a_shard(|| async {
            let world = World::of(2).await;
            let now = Instant::now();
            let taken = [(); 2].map(|()| world.take(now).expect("silent"));
            let highest = taken.iter().map(Socket::raw_fd).max().expect("two");
            world.pool.keep_below(highest);
            taken.into_iter().for_each(|socket| world.pool.give(&world.runner, socket, 1, &world.counters));
            assert!(world.take(now).is_some_and(|kept| kept.raw_fd() < highest));
            assert!(world.take(now).is_none());
            assert_eq!((world.pool.idle_count.get(), world.counters.runner_idle.get()), (0, 0));
        });
    }

    #[test]
    fn what_was_found_silent_is_asked_again_once_that_is_old() {
        on_a_shard(|| async {
            let mut world = World::of(3).await;
            let now = Instant::now();
            world.take_two_and_give_them_back(now);
            let later = now + SILENCE_HOLDS;
            drop(world.take(later).expect("silent"));
            // The rest was found silent together with it, and speaks now.
            world.theirs.iter_mut().for_each(|theirs| drop(theirs.write_all(b"x")));
            assert!(world.take(later + SILENCE_HOLDS).is_none());
            assert_eq!(world.counters.runner_stale.get(), 2);
            assert_eq!(world.pool.idle_count.get(), 0);
        });
    }

    #[test]
    fn a_request_that_cannot_be_sent_again_gets_no_connection_on_an_older_look() {
        on_a_shard(|| async {
            let mut world = World::of(3).await;
            let now = Instant::now();
            world.take_two_and_give_them_back(now);
            let later = now + SILENCE_HOLDS;
            drop(world.take(later).expect("silent"));
            world.theirs.iter_mut().for_each(|theirs| drop(theirs.shutdown(std::net::Shutdown::Both)));
            assert!(world.pool.take(&world.runner, later, Trust::Anew, &world.counters).is_none());
        });
    }

    #[test]
    fn connections_found_silent_expire_like_all_others() {
        on_a_shard(|| async {
            let world = World::of(3).await;
            let now = Instant::now();
            world.take_two_and_give_them_back(now);
            drop(world.take(now + SILENCE_HOLDS));
            world.pool.sweep(200, &world.counters);
            assert_eq!((world.pool.idle_count.get(), world.counters.runner_idle.get()), (0, 0));
        });
    }

    #[test]
    fn a_runner_is_known_once_while_anybody_holds_it_and_with_another_key_is_another() {
        let pool = Pool::new(8, 100);
        let runner = |key: &str| {
            let address = RunnerAddress {
                authority: "runner".into(),
                base_path: String::new(),
                addrs: vec!["192.0.2.1:80".parse().expect("an address")],
                authorization: format!("Bearer {key}"),
            };
            pool.runner(Arc::new(address)).expect("it has an address")
        };
        let (one, other) = (runner("k"), runner("new"));
        assert!(Rc::ptr_eq(&one, &runner("k")));
        assert!(!Rc::ptr_eq(&one, &other) && Rc::ptr_eq(&one.idle, &other.idle));
        drop(other);
        pool.sweep(0, &Counters::default());
        assert_eq!(pool.runners.borrow().len(), 1);
        assert!(Rc::ptr_eq(&one, &runner("k")));
    }
}
