//! What load and backend share: non-blocking sockets behind epoll, heads and their ends.

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

pub struct Poll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(1024) })
    }

    /// Edge-triggered for both directions: whoever is told moves bytes until nothing goes any more.
    pub fn add(&self, source: &impl std::os::fd::AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.fd, source, EventData::new_u64(token), flags)?)
    }

    /// Level-triggered, for reading: listeners.
    pub fn add_listener(&self, source: &impl std::os::fd::AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.fd, source, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// As [`Self::wait`], which may last up to a millisecond too long: by so much all that is due at a moment of its own would
    /// be late.
    pub fn wait_exactly(&mut self, at_most: Duration) -> io::Result<Vec<u64>> {
        match rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timespec(at_most))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => self.wait(Duration::ZERO),
            Err(error) => Err(error.into()),
        }
    }

    pub fn wait(&mut self, at_most: Duration) -> io::Result<Vec<u64>> {
        self.events.clear();
        let wait = timespec(at_most);
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64()).collect())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// Starts a connection; its first writability tells that it stands.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Where the head at the start of `bytes` ends, if it is whole.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a field of `head`; the peers all spell names their own way.
pub fn field<'h>(head: &'h [u8], name: &str) -> Option<&'h str> {
    let text = std::str::from_utf8(head).ok()?;
    text.split("\r\n").skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub fn length(head: &[u8]) -> u64 {
    field(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
}

pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
