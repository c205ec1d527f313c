//! What no safe crate offers: the only module that may say `unsafe`.
//!
//! Everything else the data plane asks of the kernel goes through `rustix`, whose wrappers are safe.
#![allow(unsafe_code)]

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, CancelHandle, CancelableAsyncReadRent};
use monoio::net::UnixStream;
use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;

/// Boxes a future where it will stay. `Box::pin` makes it on the stack and copies all of it, a request's four kilobytes
/// with every request; here only what the future starts with is written.
pub fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let mut place = Box::<F>::new_uninit();
    place.write(make());
    // SAFETY: the line above initialised it. (A panic in `make` drops an uninitialised box, which drops nothing.)
    Box::into_pin(unsafe { place.assume_init() })
}

/// Gives the kernel what this thread's allocator has had free for a second. The allocator does so by itself only in passing,
/// so that what a burst has left would stay for as long as nothing else comes.
pub fn give_memory_back() {
    // SAFETY: it may be called at any time, from any thread, and touches nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

/// A non-blocking, close-on-exec eventfd at zero.
pub fn eventfd() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// The descriptor of something that only tells its number (monoio's streams).
pub fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the descriptor lives at least as long as its owner, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Blocks every signal on the calling thread, so that none interrupts its ring (the runtime ignores the error an
/// interrupted `io_uring_enter` returns). Signals go to the thread that waits for them.
pub fn block_signals() -> io::Result<()> {
    // SAFETY: `set` is initialised by sigfillset before it is read; no other memory is involved.
    let code = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Which local ports the socket may get when it connects; Linux 6.3 and later. Bounds outside the network namespace's own
/// (`net.ipv4.ip_local_port_range`) are the kernel's to correct.
pub fn set_local_ports(fd: BorrowedFd<'_>, low: u16, high: u16) -> io::Result<()> {
    /// linux/in.h; for IPv6 sockets, too.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = (u32::from(high) << 16) | u32::from(low);
    // SAFETY: the kernel reads the four bytes of `range` during the call.
    let code = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A non-blocking `recv` that appends at most `max` bytes to the spare capacity of `buf`; how many came.
pub fn recv_append(fd: BorrowedFd<'_>, buf: &mut Vec<u8>, max: usize) -> rustix::io::Result<usize> {
    let len = buf.len();
    let room = (buf.capacity() - len).min(max);
    let spare = &mut buf.spare_capacity_mut()[..room];
    let ((filled, _), n) = rustix::net::recv(fd, spare, rustix::net::RecvFlags::DONTWAIT)?;
    let filled = filled.len().min(n);
    // SAFETY: recv initialised the first `filled` bytes of the spare capacity, which starts at `len`.
    unsafe { buf.set_len(len + filled) };
    Ok(filled)
}

/// `SO_RCVLOWAT`.
pub fn set_receive_low_water(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length are those of `bytes`, which the kernel reads during the call.
    let code = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), size)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `TCP_DEFER_ACCEPT`: the listener is woken by a connection's first byte, not by its handshake. One that stays silent is
/// there after about so many seconds, with the next handshake packet that is answered.
pub fn set_defer_accept(fd: BorrowedFd<'_>, seconds: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length are those of `seconds`, which the kernel reads during the call.
    let code = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends directions of a socket known by number, as the deadline table knows it. A negative number is no socket.
/// The table's entries live no longer than the sockets they name, so the number cannot have passed to another.
pub fn shutdown_raw(fd: RawFd, how: rustix::net::Shutdown) {
    if fd < 0 {
        return;
    }
    // SAFETY: used for this call only, while its owner keeps it open (see above).
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // A socket that is not connected (any more) has nothing left to end.
    let _ = rustix::net::shutdown(fd, how);
}

/// Closing the socket resets the connection: whoever reads from it gets an error and not an end. A negative number is
/// nobody. As for [`shutdown_raw`], the owner keeps it open.
pub fn reset_on_close_raw(fd: RawFd) {
    if fd < 0 {
        return;
    }
    // SAFETY: used for this call only, while its owner keeps it open (see above).
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // A socket that is gone already needs no reset.
    let _ = socket2::SockRef::from(&fd).set_linger(Some(std::time::Duration::ZERO));
}

/// Resets the connection now; whoever waits for the socket is woken, and it stays open. As for [`shutdown_raw`].
pub fn abort_raw(fd: RawFd) {
    if fd < 0 {
        return;
    }
    // SAFETY: used for this call only, while its owner keeps it open (see above).
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // What is no TCP connection (any more) has nothing left to reset.
    let _ = rustix::net::connect_unspec(fd);
}

/// Which of these sockets (with the caller's label) were closed or half-closed by their peer. Never waits.
pub fn hung_up<L: Copy>(sockets: &[(L, RawFd)]) -> Vec<(L, bool)> {
    polled(sockets, libc::POLLRDHUP, libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR)
}

/// Which of these have bytes, an end or an error for who reads. Never waits.
pub fn readable<L: Copy>(sockets: &[(L, RawFd)]) -> Vec<(L, bool)> {
    polled(sockets, libc::POLLIN, libc::POLLIN | libc::POLLHUP | libc::POLLERR)
}

fn polled<L: Copy>(sockets: &[(L, RawFd)], asked: libc::c_short, watched: libc::c_short) -> Vec<(L, bool)> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut polled: Vec<_> =
        sockets.iter().map(|(_, fd)| libc::pollfd { fd: *fd, events: asked, revents: 0 }).collect();
    // SAFETY: pointer and length belong to `polled`, which lives across the call; a timeout of zero never blocks.
    let found = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
    let is = |p: &libc::pollfd| found > 0 && p.revents & watched != 0;
    sockets.iter().zip(&polled).map(|((label, _), p)| (*label, is(p))).collect()
}

/// A stream that may be read and written at the same time by whoever can name it.
///
/// monoio asks for `&mut` although its operations need none: each clones the handle of the descriptor and never looks
/// at the stream again. Its own split halves rely on just that.
///
/// Its `TcpStream` is the same and room for two addresses nobody asks for: 72 bytes in every idle connection. Of either,
/// only what works on any stream socket is used here.
pub struct Duplex(UnsafeCell<UnixStream>);

impl Duplex {
    /// Of any connected stream socket, or of something else that can be waited for.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))?;
        Ok(Self(UnsafeCell::new(stream)))
    }

    pub fn stream(&self) -> &UnixStream {
        // SAFETY: a `&mut` made below ends before the call that made it returns to anyone who could hold this one;
        // nothing of a stream ever changes.
        unsafe { &*self.0.get() }
    }

    /// One write through the ring, which owns the buffer until then.
    pub fn write<B: IoBuf>(&self, buf: B) -> impl Future<Output = (io::Result<usize>, B)> {
        // SAFETY: UnixStream implements monoio's `Split`: writes are independent of reads and of shared use. The
        // version is pinned in the manifest.
        unsafe { &mut *self.0.get() }.write(buf)
    }

    /// One read through the ring, which owns the buffer until then.
    pub fn read<B: IoBufMut>(&self, buf: B) -> impl Future<Output = (io::Result<usize>, B)> {
        // SAFETY: as in `write`.
        unsafe { &mut *self.0.get() }.read(buf)
    }

    /// As [`Self::read`]; cancelled through the handle it still has to be awaited, and says what came before.
    pub fn read_cancellable<B: IoBufMut>(
        &self,
        buf: B,
        cancel: CancelHandle,
    ) -> impl Future<Output = (io::Result<usize>, B)> {
        // SAFETY: as in `write`, but for one thing: the future keeps the `&mut` until it is done. It uses it before it
        // first waits, to clone the handle of the descriptor, and never again; nobody else ever writes to the stream.
        unsafe { &mut *self.0.get() }.cancelable_read(buf, cancel)
    }
}

impl AsRawFd for Duplex {
    fn as_raw_fd(&self) -> RawFd {
        self.stream().as_raw_fd()
    }
}
