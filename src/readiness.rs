//! Which of a shard's tunnels have something to read: one edge-triggered epoll set, itself waited for through the ring.
//!
//! A wait through the ring is made anew for each message: an entry, a place among those who wait for the socket, a
//! completion. A member of the set is one once and for all, and the kernel says of many with one call which have got something.
//! That call, and the wait for the set itself, come with every turn of the loop: it pays where many speak, and a few tunnels
//! are better off with the ring.
//!
//! An arrival is told once, so that there may be something is remembered until a read has found that there is not.

use crate::socket::Socket;
use crate::turns;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Most arrivals taken in one turn of the loop; what is left is told in the next.
const EVENTS_MAX: usize = 256;
/// After the ring could not wait, for want of memory.
const RETRY: Duration = Duration::from_millis(1);

thread_local! {
    /// The one of the shard whose thread this is: thousands of idle tunnels have no room for the way to it.
    static SET: RefCell<Option<Set>> = const { RefCell::new(None) };
}

struct Set {
    epoll: Rc<Socket>,
    places: Vec<Place>,
    free: Vec<NonZeroU32>,
}

#[derive(Default)]
struct Place {
    /// How often the place was given away: what is told of who had it before is not for who has it now.
    generation: u32,
    /// There may be something to read.
    ready: bool,
    /// A read of less than was asked for does not mean that nothing is left: the peer has ended, which is told once, or
    /// has sent urgent data, before which a read stops.
    more_behind: bool,
    waker: Option<Waker>,
}

/// A socket's place in its shard's set, until dropped: the number of the place, counted from 1. Keep it no longer than the
/// socket.
pub struct Member(NonZeroU32);

/// Keeps the thread's set. Whoever waits when it is dropped is told nothing any more.
pub struct Open(());

/// Makes this thread's set and the task that listens to it. On a shard's runtime, once. Takes a descriptor.
pub fn open() -> io::Result<Open> {
    let epoll = Rc::new(Socket::new(epoll::create(CreateFlags::CLOEXEC)?)?);
    SET.set(Some(Set { epoll: epoll.clone(), places: Vec::new(), free: Vec::new() }));
    monoio::spawn(listen(epoll));
    Ok(Open(()))
}

impl Drop for Open {
    fn drop(&mut self) {
        // While there is a runtime: with who waits go tasks and their sockets.
        drop(SET.take());
    }
}

/// Wakes whoever waits. Never ends.
async fn listen(epoll: Rc<Socket>) {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [MaybeUninit::<Event>::uninit(); EVENTS_MAX];
    loop {
        if turns::in_turn(epoll.readable()).await.is_err() {
            monoio::time::sleep(RETRY).await;
        }
        // It can fail by a signal alone, of which a shard gets none; then the next turn tells.
        if let Ok((told, _)) = epoll::wait(epoll.fd(), &mut events, Some(&AT_ONCE)) {
            with(|set| told.iter().for_each(|event| set.told(event)));
        }
    }
}

/// `None`: this thread has no set, or none any more.
fn with<R>(change: impl FnOnce(&mut Set) -> R) -> Option<R> {
    SET.try_with(|set| set.borrow_mut().as_mut().map(change)).ok().flatten()
}

impl Set {
    fn place(&mut self, member: NonZeroU32) -> &mut Place {
        &mut self.places[member.get() as usize - 1]
    }

    fn enter(&mut self, socket: BorrowedFd<'_>) -> io::Result<Member> {
        let member = match self.free.last() {
            Some(member) => *member,
            None => {
                self.places.push(Place::default());
                let member = NonZeroU32::new(self.places.len() as u32).expect("one more than before");
                self.free.push(member);
                member
            }
        };
        let it = self.place(member);
        (it.ready, it.more_behind) = (false, false);
        let data = EventData::new_u64((u64::from(it.generation) << 32) | u64::from(member.get()));
        let watched = EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        epoll::add(self.epoll.fd(), socket, data, watched)?;
        self.free.pop();
        Ok(Member(member))
    }

    fn told(&mut self, event: &Event) {
        let (data, flags) = (event.data.u64(), event.flags);
        let Some(member) = NonZeroU32::new(data as u32) else { return };
        let it = self.place(member);
        if it.generation != (data >> 32) as u32 {
            // A socket leaves the set when it is closed, which may be long after its place was given back.
            return;
        }
        let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI;
        it.ready = true;
        it.more_behind |= flags.intersects(ends);
        if let Some(waker) = it.waker.take() {
            waker.wake();
        }
    }
}

impl Member {
    /// What is there to be read already is told, too. An error: this thread has no set, the kernel has no room for one more
    /// (`fs.epoll.max_user_watches`), or this is nothing that can be waited for.
    pub fn enter(socket: BorrowedFd<'_>) -> io::Result<Self> {
        with(|set| set.enter(socket)).unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    /// Until there may be something to read, which a read finds out: at once, if the last one may have left something. Also
    /// when the peer hung up or the socket was shut down. Cancel-safe. One task at a time.
    pub async fn readable(&self) {
        poll_fn(|cx| {
            let waits = |set: &mut Set| {
                let it = set.place(self.0);
                let new = !it.ready && !it.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
                // Who waited before is let go of outside: it might be the last that holds a task, and that a member.
                (it.ready, if new { it.waker.replace(cx.waker().clone()) } else { None })
            };
            match with(waits) {
                Some((false, _before)) => Poll::Pending,
                // Without a set nobody is told anything any more.
                Some((true, _)) | None => Poll::Ready(()),
            }
        })
        .await
    }

    /// A read has found nothing.
    pub fn read_nothing(&self) {
        with(|set| set.place(self.0).ready = false);
    }

    /// A read has brought less than it had room for.
    pub fn read_short(&self) {
        with(|set| {
            let it = set.place(self.0);
            it.ready = it.more_behind;
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _waited = with(|set| {
            set.free.push(self.0);
            let it = set.place(self.0);
            it.generation = it.generation.wrapping_add(1);
            it.waker.take()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;
    use crate::socket::Moved;
    use rustix::net::{SendFlags, Shutdown};
    use std::cell::Cell;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    /// Ours, and theirs, whose bytes are here when they are sent: on loopback the sender brings them.
    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let theirs = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        theirs.set_nodelay(true).expect("open");
        let (ours, _) = listener.accept().expect("accepted");
        ours.set_nonblocking(true).expect("open");
        (Socket::new(ours.into()).expect("a socket"), theirs)
    }

    async fn turns() {
        for _ in 0..3 {
            monoio::time::sleep(Duration::ZERO).await;
        }
    }

    /// As a tunnel reads: what comes until the end, or until so much is there.
    async fn read(member: &Member, socket: &Socket, until: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < until {
            member.readable().await;
            let mut buf = Vec::with_capacity(8);
            match socket.try_recv(&mut buf).expect("open") {
                Moved::Bytes(8) => {}
                Moved::Bytes(_) => member.read_short(),
                Moved::NotReady => member.read_nothing(),
                Moved::End => break,
            }
            all.extend(buf);
        }
        all
    }

    #[test]
    fn all_that_comes_is_told_be_it_there_before_between_or_after_and_so_is_the_end() {
        on_a_shard(|| async {
            let _set = open().expect("a set");
            let (ours, mut theirs) = pair();
            theirs.write_all(b"before").expect("sent");
            let member = Member::enter(ours.fd()).expect("room");
            assert_eq!(read(&member, &ours, 6).await, b"before");
            // Read short above, so it waits; a byte comes while it does.
            let speaks = async {
                turns().await;
                theirs.write_all(b"and much more than one read of eight takes").expect("sent");
                turns().await;
                // Together with the end, which is told but once.
                theirs.write_all(b", last").expect("sent");
                theirs.shutdown(std::net::Shutdown::Write).expect("open");
            };
            let (all, ()) = futures_util::future::join(read(&member, &ours, usize::MAX), speaks).await;
            assert_eq!(all, b"and much more than one read of eight takes, last");
        });
    }

    #[test]
    fn what_is_behind_urgent_data_is_not_forgotten() {
        on_a_shard(|| async {
            let _set = open().expect("a set");
            let (ours, mut theirs) = pair();
            let member = Member::enter(ours.fd()).expect("room");
            theirs.write_all(b"a").expect("sent");
            rustix::net::send(&theirs, b"bc!", SendFlags::OOB).expect("sent");
            theirs.write_all(b"de").expect("sent");
            // A read stops before the urgent byte, which is no part of the stream.
            assert_eq!(read(&member, &ours, 5).await, b"abcde");
        });
    }

    #[test]
    fn a_socket_that_is_shut_down_here_wakes_who_waits() {
        on_a_shard(|| async {
            let _set = open().expect("a set");
            let (ours, _theirs) = pair();
            let member = Member::enter(ours.fd()).expect("room");
            let ends = async {
                turns().await;
                ours.shutdown(Shutdown::Read);
            };
            let (all, ()) = futures_util::future::join(read(&member, &ours, usize::MAX), ends).await;
            assert!(all.is_empty());
        });
    }

    #[test]
    fn what_comes_for_who_had_the_place_before_wakes_nobody() {
        on_a_shard(|| async {
            let _set = open().expect("a set");
            let ((first, mut speaks), (second, mut silent)) = (pair(), pair());
            let member = Member::enter(first.fd()).expect("room");
            let place = member.0;
            speaks.write_all(b"x").expect("sent");
            rustix::net::send(&speaks, b"!", SendFlags::OOB).expect("sent");
            turns().await;
            drop(member);
            let member = Member::enter(second.fd()).expect("room");
            assert_eq!(member.0, place, "a place is used again");
            let told = Cell::new(false);
            let waits = async {
                member.readable().await;
                told.set(true);
                // As if more had been there: nothing is behind it.
                member.read_short();
                assert!(futures_util::FutureExt::now_or_never(member.readable()).is_none());
            };
            let script = async {
                // The first socket is still open, and in the set.
                speaks.write_all(b"x").expect("sent");
                turns().await;
                assert!(!told.get(), "told of another's");
                silent.write_all(b"x").expect("sent");
            };
            futures_util::future::join(waits, script).await;
        });
    }

    #[test]
    fn without_a_set_nobody_enters() {
        on_a_shard(|| async {
            let (ours, _theirs) = pair();
            assert!(Member::enter(ours.fd()).is_err());
            let _set = open().expect("a set");
            assert!(Member::enter(ours.fd()).is_ok());
        });
    }

    #[test]
    fn a_task_that_still_waits_goes_with_the_set() {
        on_a_shard(|| async {
            let set = open().expect("a set");
            let (ours, _theirs) = pair();
            let held = Rc::new(());
            let holds = held.clone();
            monoio::spawn(async move {
                let member = Member::enter(ours.fd()).expect("room");
                member.readable().await;
                drop((member, ours, holds));
            });
            turns().await;
            assert_eq!(Rc::strong_count(&held), 2);
            drop(set);
            assert_eq!(Rc::strong_count(&held), 1);
        });
    }
}
