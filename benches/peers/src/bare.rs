//! The floor: a forwarder that rewrites the path, adds the runner's key, and decides nothing. One thread, one ring, each
//! client with a runner connection of its own; whatever comes is sent on as it came. It has no limits, no deadlines, no
//! framing and no checks, and is only good for being compared with.

use io_uring::{IoUring, cqueue, opcode, squeue, types::Fd};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

const BUFFER: usize = 64 * 1024;
const ADDED: &[u8] = b"X-Daytona-Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n";
const ACCEPT: u64 = u64::MAX;

/// One direction of a pair.
struct Lane {
    from: RawFd,
    to: RawFd,
    buffer: Box<[u8; BUFFER]>,
    /// What of the buffer is still to be sent.
    left: std::ops::Range<usize>,
    /// Requests are rewritten, answers are not.
    rewrites: bool,
}

struct Pair {
    lanes: [Lane; 2],
    /// Operations the kernel still has; the buffers live until there is none.
    pending: u32,
    over: bool,
    _streams: [TcpStream; 2],
}

/// Runs until the process ends.
pub fn run(listen: SocketAddr, runner: SocketAddr) -> io::Result<()> {
    let listener = crate::peer::listener(listen)?;
    // A ring's accept waits by itself, and returns at once from a socket that does not block.
    listener.set_nonblocking(false)?;
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun().setup_cqsize(16_384);
    let mut ring: IoUring = builder.build(4096)?;
    let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut())
        .build()
        .user_data(ACCEPT);
    push(&mut ring, &accept)?;
    let mut pairs: Vec<Option<Box<Pair>>> = Vec::new();
    loop {
        ring.submit_and_wait(1)?;
        let done: Vec<(u64, i32)> =
            ring.completion().map(|c: cqueue::Entry| (c.user_data(), c.result())).collect();
        for (data, result) in done {
            if data == ACCEPT {
                push(&mut ring, &accept)?;
                if result >= 0 {
                    accepted(&mut ring, &mut pairs, result, runner)?;
                }
                continue;
            }
            let (at, lane, sent) = ((data >> 2) as usize, (data >> 1 & 1) as usize, data & 1 == 1);
            let Some(pair) = pairs[at].as_mut() else { continue };
            pair.pending -= 1;
            if pair.over || result <= 0 {
                pair.end();
                if pair.pending == 0 {
                    pairs[at] = None;
                }
                continue;
            }
            let entry = pair.lanes[lane].next(result as usize, sent).user_data(0);
            let (entry, sends) = (entry, !pair.lanes[lane].left.is_empty());
            pair.pending += 1;
            push(&mut ring, &entry.user_data((at as u64) << 2 | (lane as u64) << 1 | u64::from(sends)))?;
        }
    }
}

fn accepted(
    ring: &mut IoUring,
    pairs: &mut Vec<Option<Box<Pair>>>,
    client: RawFd,
    runner: SocketAddr,
) -> io::Result<()> {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let client = unsafe { TcpStream::from_raw_fd(client) };
    let Ok(runner) = TcpStream::connect(runner) else { return Ok(()) };
    client.set_nodelay(true)?;
    runner.set_nodelay(true)?;
    let lane = |from: &TcpStream, to: &TcpStream, rewrites| Lane {
        from: from.as_raw_fd(),
        to: to.as_raw_fd(),
        buffer: Box::new([0; BUFFER]),
        left: 0..0,
        rewrites,
    };
    let lanes = [lane(&client, &runner, true), lane(&runner, &client, false)];
    let at = pairs.iter().position(Option::is_none).unwrap_or(pairs.len());
    if at == pairs.len() {
        pairs.push(None);
    }
    let pair =
        pairs[at].insert(Box::new(Pair { lanes, pending: 2, over: false, _streams: [client, runner] }));
    for lane in 0..2 {
        push(ring, &pair.lanes[lane].receive().user_data((at as u64) << 2 | (lane as u64) << 1))?;
    }
    Ok(())
}

impl Pair {
    /// Wakes what still waits, so that the pair can go.
    fn end(&mut self) {
        if !self.over {
            self.over = true;
            for stream in &self._streams {
                // Closed by its peer already is as good.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

impl Lane {
    fn next(&mut self, n: usize, sent: bool) -> squeue::Entry {
        if sent {
            self.left.start += n;
        } else {
            self.left = self.fit(n);
        }
        if self.left.is_empty() { self.receive() } else { self.send() }
    }

    /// What was received, as it is to be sent.
    fn fit(&mut self, n: usize) -> std::ops::Range<usize> {
        let buffer = &mut self.buffer[..];
        let rewritten = self.rewrites && (buffer.starts_with(b"GET /") || buffer.starts_with(b"POST /"));
        let Some((prefix, at)) = rewritten.then(|| prefix_of(&buffer[..n])).flatten() else { return 0..n };
        let first_line = memchr::memchr(b'\n', &buffer[..n]).map_or(n, |end| end + 1);
        buffer.copy_within(first_line..n, first_line + prefix.len() + ADDED.len());
        buffer.copy_within(at..first_line, at + prefix.len());
        buffer[at..at + prefix.len()].copy_from_slice(&prefix);
        buffer[first_line + prefix.len()..][..ADDED.len()].copy_from_slice(ADDED);
        0..n + prefix.len() + ADDED.len()
    }

    fn receive(&mut self) -> squeue::Entry {
        self.left = 0..0;
        let room = BUFFER - 512;
        opcode::Recv::new(Fd(self.from), self.buffer.as_mut_ptr(), room as u32).build()
    }

    fn send(&self) -> squeue::Entry {
        let bytes = &self.buffer[self.left.clone()];
        opcode::Send::new(Fd(self.to), bytes.as_ptr(), bytes.len() as u32).flags(libc::MSG_NOSIGNAL).build()
    }
}

/// `/sandboxes/{id}/toolbox/proxy/{port}` from the host, and where in the request line it goes.
fn prefix_of(head: &[u8]) -> Option<(Vec<u8>, usize)> {
    let host = &head[memchr::memmem::find(head, b"\r\nHost: ")? + 8..];
    let label = &host[..memchr::memchr(b'.', host)?];
    let (port, id) = label.split_at(memchr::memchr(b'-', label)?);
    let prefix = [b"/sandboxes/", &id[1..], b"/toolbox/proxy/", port].concat();
    Some((prefix, memchr::memchr(b'/', head)?))
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    loop {
        // SAFETY: an entry names a descriptor and a buffer of a pair that is kept until `pending` is 0, or the
        // listener, which lives as long as the loop.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        ring.submit()?;
    }
}
