//! A fault in our own code, met while one connection is served, ends that connection and no other.
//!
//! Everybody's tunnels hang on a shard, and what it reads comes from anybody: one request that meets a fault must not
//! take the others along. Only connections are contained. What decides about many, such as looking after revoked rights,
//! ends its shard and with it the process, see [`crate::serve`]: going on without it would not be safe.

use crate::log::{self, Level};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

/// Connections that ended so, of all shards.
static FAULTS: AtomicU64 = AtomicU64::new(0);

pub fn faults() -> u64 {
    FAULTS.load(Relaxed)
}

pin_project_lite::pin_project! {
    /// A connection's task. Done when the task is, or when it panicked: what it held has been dropped by then.
    ///
    /// The state it shares with others stays whole, because it is borrowed for single steps and given back by destructors.
    pub struct Contained<F> {
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Contained<F> {
    pub fn new(task: F) -> Self {
        Self { task }
    }
}

impl<F: Future<Output = ()>> Future for Contained<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = self.project().task;
        catch_unwind(AssertUnwindSafe(|| task.poll(cx))).unwrap_or_else(|_| {
            FAULTS.fetch_add(1, Relaxed);
            Poll::Ready(())
        })
    }
}

/// For [`std::panic::set_hook`]: one line with the place in the source, queued, at most one a second. The message is left
/// out, for it may hold what was being read, such as a token.
pub fn tell(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    log::event(Level::Error, "panicked", &[("at", &place), ("thread", thread)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadlines::Deadlines;
    use crate::ring::on_a_shard;
    use crate::socket::Socket;
    use std::cell::Cell;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::rc::Rc;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let theirs = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (ours, _) = listener.accept().expect("accepted");
        ours.set_nonblocking(true).expect("an open socket");
        (theirs, ours.into())
    }

    #[test]
    fn a_fault_ends_its_connection_by_a_reset_and_no_other() {
        let ((mut theirs, ours), (mut others, other)) = (pair(), pair());
        let before = faults();
        // Elsewhere: the shard itself closes what the fault leaves behind.
        let client = std::thread::spawn(move || {
            theirs.write_all(b"x").expect("sent");
            let mut answer = Vec::new();
            let end = theirs.read_to_end(&mut answer);
            (answer, end.map_err(|error| error.kind()))
        });
        on_a_shard(move || async move {
            let deadlines = Deadlines::new();
            let (ended, watches) = (Rc::new(Cell::new(false)), deadlines.clone());
            let faulty = async move {
                let socket = Socket::new(ours).expect("on a shard");
                let _watch = watches.watch(socket.raw_fd());
                // What a client that waits for the end would take for a whole answer.
                socket.try_send(b"HTTP/1.1 200 OK\r\n\r\nhalf").expect("sent");
                // Nothing is left unread: that alone would be a reset.
                socket.readable().await.expect("readable");
                socket.try_recv(&mut Vec::with_capacity(8)).expect("read");
                panic!("as a fault does");
            };
            let done = ended.clone();
            let sound = async move {
                let socket = Socket::new(other).expect("on a shard");
                while !done.get() {
                    monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                socket.try_send(b"sound").expect("sent");
            };
            let sound = monoio::spawn(Contained::new(sound));
            monoio::spawn(Contained::new(faulty)).await;
            ended.set(true);
            sound.await;
            assert_eq!(deadlines.clients(), 0, "its place is given back");
        });
        let (answer, end) = client.join().expect("no panic");
        assert!(end == Err(ErrorKind::ConnectionReset), "no end that looks whole: {end:?} after {answer:?}");
        let mut word = String::new();
        others.read_to_string(&mut word).expect("whole");
        assert_eq!(word, "sound");
        assert!(faults() > before);
    }
}
