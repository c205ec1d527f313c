//! A non-blocking stream socket of a shard: waits go through the ring, bytes through direct calls.
//!
//! Waiting and moving are apart on purpose. `readable()` and `writable()` own no buffer, so an idle connection holds
//! none and dropping a wait loses no byte; `try_*` calls never block. Three calls hand a buffer to the ring instead, on
//! the path of every small request: [`Socket::recv_waiting`], when an answer is certain to come,
//! [`Socket::recv_cancellable`], when a next request is likely, and [`Socket::send_waiting`] for whole messages. They
//! save a system call each, and messages sent in one turn of the loop leave together, which pays where they are many (see
//! [`Turns`](crate::turns::Turns)). They must not be dropped; whoever wants them to end shuts the socket down or cancels.

use crate::sys::{self, Duplex};
use monoio::buf::IoBufMut;
use monoio::io::CancelHandle;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use smallvec::SmallVec;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// Outcome of a call that never blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// This many bytes; never zero.
    Bytes(usize),
    /// The peer will send no more.
    End,
    /// Nothing possible now: wait for readiness.
    NotReady,
}

/// One word and what it points to: thousands of idle ones are kept.
pub struct Socket {
    stream: Duplex,
}

impl Socket {
    /// Takes a descriptor that is non-blocking and close-on-exec. Must be called on a shard's runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { stream: Duplex::new(fd)? })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.stream)
    }

    /// The number alone, for the deadline table; valid while the socket lives.
    pub fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Cancel-safe: nothing is consumed. Also returns when the peer hung up or the socket was shut down.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.stream.stream().readable(false)
    }

    /// Cancel-safe.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.stream.stream().writable(false)
    }

    /// Appends what is there to `buf`, at most up to its capacity.
    pub fn try_recv(&self, buf: &mut Vec<u8>) -> io::Result<Moved> {
        self.try_recv_at_most(buf, usize::MAX)
    }

    /// As [`Self::try_recv`], never more than `max` bytes: what is not asked for stays in the kernel.
    pub fn try_recv_at_most(&self, buf: &mut Vec<u8>, max: usize) -> io::Result<Moved> {
        assert!(max > 0 && buf.len() < buf.capacity(), "a read into nothing would look like the end");
        match sys::recv_append(self.fd(), buf, max) {
            Ok(0) => Ok(Moved::End),
            Ok(n) => Ok(Moved::Bytes(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::NotReady),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what fits now.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<Moved> {
        self.try_send_with(bytes, SendFlags::empty())
    }

    /// As [`Self::try_send`], of bytes on which others follow at once: what fills no segment waits for them (`MSG_MORE`).
    /// Left alone it would wait 200 ms.
    pub fn try_send_ahead(&self, bytes: &[u8]) -> io::Result<Moved> {
        self.try_send_with(bytes, SendFlags::MORE)
    }

    fn try_send_with(&self, bytes: &[u8], flags: SendFlags) -> io::Result<Moved> {
        match rustix::net::send(self.fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | flags) {
            Ok(n) => Ok(Moved::Bytes(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::NotReady),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next bytes with the buffer in the kernel's hands; appends at most `max` to `buf`. `Ok(0)`: the peer
    /// ended. Not cancel-safe: await it to its end.
    pub async fn recv_waiting(&self, buf: Vec<u8>, max: usize) -> (io::Result<usize>, Vec<u8>) {
        let (start, end) = (buf.len(), buf.capacity().min(buf.len() + max));
        let (result, slice) = self.stream.read(buf.slice_mut(start..end)).await;
        (result, slice.into_inner())
    }

    /// As [`Self::recv_waiting`], until cancelled, which is `ECANCELED`; bytes that came before are given all the same.
    pub async fn recv_cancellable(&self, buf: Vec<u8>, cancel: CancelHandle) -> (io::Result<usize>, Vec<u8>) {
        let (start, end) = (buf.len(), buf.capacity());
        let (result, slice) = self.stream.read_cancellable(buf.slice_mut(start..end), cancel).await;
        (result, slice.into_inner())
    }

    /// Sends with the buffer in the kernel's hands, as soon as the shard has nothing else to do: how many of its bytes
    /// were taken, not always all. Not cancel-safe: await it to its end.
    pub fn send_waiting(&self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> {
        self.stream.write(buf)
    }

    /// Is the idle connection still usable: open, and silent? A byte nobody asked for makes it unusable.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        let peek = rustix::net::recv(self.fd(), &mut byte[..], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        matches!(peek, Err(Errno::AGAIN))
    }

    pub fn shutdown(&self, how: Shutdown) {
        shutdown(self.fd(), how);
    }

    /// For what lives long: tunnels, streams, large bodies. A peer that vanished is noticed after about 2 minutes. Short
    /// requests do not pay the calls, and a connection pays the four that set it once.
    pub fn keep_alive(&self) -> io::Result<()> {
        let fd = self.fd();
        let socket = socket2::SockRef::from(&fd);
        if socket.keepalive()? {
            return Ok(());
        }
        let probes = socket2::TcpKeepalive::new()
            .with_time(std::time::Duration::from_secs(60))
            .with_interval(std::time::Duration::from_secs(15))
            .with_retries(4);
        socket.set_tcp_keepalive(&probes)
    }

    /// From how many received bytes on the socket counts as readable (`SO_RCVLOWAT`); calls that move bytes take what is
    /// there all the same. 1 when nobody said otherwise, and what everybody but bulk relies on. An end or an error always
    /// counts, and so does a full receive window.
    pub fn wake_from(&self, bytes: u64) -> io::Result<()> {
        sys::set_receive_low_water(self.fd(), i32::try_from(bytes).unwrap_or(i32::MAX))
    }

    /// The error a finished non-blocking connect left behind.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        socket2::SockRef::from(&self.fd()).take_error()
    }
}

/// As [`Socket::is_quiet`], of several with one call.
pub fn are_silent<'a>(sockets: impl Iterator<Item = &'a Socket>) -> SmallVec<[bool; 32]> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let watched = PollFlags::IN | PollFlags::RDHUP;
    let mut asked: SmallVec<[PollFd<'a>; 32]> =
        sockets.map(|socket| PollFd::from_borrowed_fd(socket.fd(), watched)).collect();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error says nothing about any of them, so none counts as silent.
    let answered = poll(&mut asked, Some(&at_once)).is_ok();
    asked.iter().map(|one| answered && one.revents().is_empty()).collect()
}

/// Ends one or both directions of a socket known by number or borrow. A socket that is not connected any more has
/// nothing left to end, so the error says nothing.
pub fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) {
    let _ = rustix::net::shutdown(fd, how);
}

/// Starts a connection; it is established once the socket is writable without [`Socket::take_error`].
/// `Ok(true)`: established already.
pub fn start_connect(addr: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    use socket2::{Domain, Protocol, Type};
    let socket =
        socket2::Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some((low, high)) = local_ports() {
        // An older kernel finds a port all the same.
        let _ = sys::set_local_ports(socket.as_fd(), low, high);
    }
    let established = match socket.connect(&addr.into()) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => false,
        Err(error) => return Err(error),
    };
    Ok((OwnedFd::from(socket), established))
}

/// Why no connection to this address was made: is it something of ours that was missing, and not the peer? Descriptors, a
/// local port (`EADDRNOTAVAIL`), memory, epoll watches (`ENOSPC`).
pub fn is_want(error: &io::Error, addr: SocketAddr) -> bool {
    match error.raw_os_error() {
        // Also said of every IPv6 address where the machine has none of its own to connect from.
        Some(libc::EADDRNOTAVAIL) => addr.is_ipv4() || has_way(addr),
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC) => {
            true
        }
        _ => false,
    }
}

/// Is there an address of ours to reach this one from? Sends nothing.
fn has_way(addr: SocketAddr) -> bool {
    use socket2::{Domain, Socket, Type};
    Socket::new(Domain::for_address(addr), Type::DGRAM, None)
        .is_ok_and(|udp| udp.connect(&addr.into()).is_ok())
}

/// The network namespace's ports for connecting, as they were at the first connect.
///
/// A socket that names them may have any of them. One that does not gets an even one, and only when the kernel has
/// looked at every even one does it look at the odd: with half of the range in use towards one runner (14,116 tunnels) each
/// connect costs 1.4 to 1.9 ms of the shard's time instead of 20 us, and soon nothing else gets done.
fn local_ports() -> Option<(u16, u16)> {
    static PORTS: OnceLock<Option<(u16, u16)>> = OnceLock::new();
    *PORTS.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let (low, high) = text.trim().split_once(char::is_whitespace)?;
        Some((low.parse().ok()?, high.trim().parse().ok()?))
    })
}

/// A listening socket of one shard. `defer`: connections wait in the kernel for their first byte, see
/// [`sys::set_defer_accept`].
pub fn listen(addr: SocketAddr, backlog: i32, defer: bool) -> io::Result<OwnedFd> {
    /// The kernel counts in handshakes answered again, of which one comes a second after the first.
    const DEFER_SEC: libc::c_int = 1;
    let socket = bind(addr)?;
    if defer {
        sys::set_defer_accept(socket.as_fd(), DEFER_SEC)?;
    }
    socket.listen(backlog)?;
    Ok(OwnedFd::from(socket))
}

/// Takes the address without listening; SO_REUSEPORT lets every shard have its own socket on it.
pub fn bind(addr: SocketAddr) -> io::Result<socket2::Socket> {
    use socket2::{Domain, Protocol, Type};
    let socket =
        socket2::Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted connections inherit it: a call less for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Accepts one waiting connection, non-blocking and close-on-exec; passes those that went away again. `Ok(None)`: none waits.
pub fn try_accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    use rustix::net::SocketFlags;
    loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((fd, addr)) => {
                let Some(addr) = addr.and_then(|a| SocketAddr::try_from(a).ok()) else { continue };
                return Ok(Some((fd, SocketAddr::new(addr.ip().to_canonical(), addr.port()))));
            }
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::on_a_shard;

    #[test]
    fn an_accepted_connection_sends_small_messages_at_once() {
        let (listener, addr) = listening(false);
        let _client = std::net::TcpStream::connect(addr).expect("connected");
        let (accepted, _) = accepted(&listener);
        assert!(socket2::SockRef::from(&accepted).tcp_nodelay().expect("an option"));
    }

    fn listening(defer: bool) -> (OwnedFd, SocketAddr) {
        let listener = listen(([127, 0, 0, 1], 0).into(), 8, defer).expect("listening");
        let addr = socket2::SockRef::from(&listener).local_addr().expect("bound").as_socket().expect("TCP");
        (listener, addr)
    }

    /// The next one, when it is there.
    fn accepted(listener: &OwnedFd) -> (OwnedFd, SocketAddr) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut there = [PollFd::new(listener, PollFlags::IN)];
        let within = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut there, Some(&within)).expect("polled"), 1, "nobody connects");
        try_accept(listener.as_fd()).expect("accepted").expect("one waits")
    }

    #[test]
    fn a_deferred_connection_is_accepted_with_its_first_byte() {
        use std::io::Write;
        let (listener, addr) = listening(true);
        // The first says nothing, the second does: with the handshakes alone it would be the other way about.
        let silent = std::net::TcpStream::connect(addr).expect("connected");
        let mut client = std::net::TcpStream::connect(addr).expect("connected");
        client.write_all(b"x").expect("sent");
        let (_silent, (accepted, peer)) = (silent, accepted(&listener));
        assert_eq!(peer, client.local_addr().expect("connected"));
        assert_eq!(rustix::net::recv(&accepted, &mut [0; 2][..], RecvFlags::DONTWAIT).expect("here").1, 1);
    }

    /// A connected pair: ours on the shard's ring, theirs plain.
    fn pair() -> (Socket, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let (fd, _) = start_connect(listener.local_addr().expect("an address")).expect("connecting");
        let (theirs, _) = listener.accept().expect("accepted");
        (Socket::new(fd).expect("a socket"), theirs)
    }

    #[test]
    fn a_receive_that_is_cancelled_loses_no_byte_however_close_the_byte_comes() {
        use crate::warm::{WARM_TICKS, Warm};
        use std::io::Write;
        use std::rc::Rc;
        on_a_shard(|| async {
            let (ours, mut theirs) = pair();
            let ours = Rc::new(ours);
            let warm = Warm::new(1);
            let place = warm.enter().expect("room for one");
            let (mut cancelled, mut in_time) = (0, 0);
            for round in 0..3000_u32 {
                let cancel = place.wait();
                let receiving = ours.clone();
                let wait =
                    monoio::spawn(
                        async move { receiving.recv_cancellable(Vec::with_capacity(8), cancel).await },
                    );
                // The byte before the receive is submitted, after it, or after the cancellation; the last with a turn
                // of the loop between or without.
                let mut speak = || theirs.write_all(&[round as u8]).expect("sent");
                if round % 5 == 0 {
                    speak();
                }
                if round % 5 != 1 {
                    monoio::time::sleep(std::time::Duration::ZERO).await;
                }
                if round % 5 == 2 {
                    speak();
                }
                for _ in 0..WARM_TICKS {
                    warm.tick();
                }
                if round % 5 == 3 {
                    monoio::time::sleep(std::time::Duration::ZERO).await;
                }
                if ![0, 2].contains(&(round % 5)) {
                    speak();
                }
                let (received, bytes) = wait.await;
                let bytes = match received {
                    Ok(1) => {
                        in_time += 1;
                        bytes
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {
                        cancelled += 1;
                        assert!(bytes.is_empty());
                        ours.recv_waiting(bytes, 8).await.1
                    }
                    other => panic!("round {round}: {other:?}"),
                };
                assert_eq!(bytes, [round as u8], "round {round}");
            }
            assert!(cancelled > 100 && in_time > 100, "{cancelled} cancelled, {in_time} in time");
        });
    }

    #[test]
    fn several_are_asked_at_once_which_are_silent() {
        use std::io::Write;
        on_a_shard(|| async {
            let (silent, _keep) = pair();
            let (speaking, mut theirs) = pair();
            let (closed, gone) = pair();
            theirs.write_all(b"x").expect("sent");
            drop(gone);
            speaking.readable().await.expect("readable");
            closed.readable().await.expect("readable");
            assert_eq!(are_silent([&silent, &speaking, &closed].into_iter())[..], [true, false, false]);
        });
    }

    /// Without IPv6 every connect to such an address says that none of ours is available.
    #[test]
    fn an_address_that_cannot_be_reached_from_here_is_no_want_of_ports() {
        let no_port = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        // A link-local address without a link: there is no way to it on any machine.
        for (addr, want) in [("127.0.0.1:80", true), ("192.0.2.1:80", true), ("[fe80::1]:80", false)] {
            assert_eq!(is_want(&no_port, addr.parse().expect("an address")), want, "{addr}");
        }
    }

    /// What the kernel does by itself is to keep to even ports until none is left.
    #[test]
    fn connections_leave_from_all_ports_alike() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let connect = |_| start_connect(addr).expect("loopback takes it").0;
        let open: Vec<OwnedFd> = (0..64).map(connect).collect();
        let port = |fd: &OwnedFd| {
            let addr = socket2::SockRef::from(fd).local_addr().expect("connecting");
            addr.as_socket().expect("an address").port()
        };
        let odd = open.iter().filter(|fd| port(fd) % 2 == 1).count();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        assert!(odd > 0 || version < (6, 3), "64 even ports on Linux {release}");
    }
}
