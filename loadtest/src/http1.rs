//! HTTP/1.1 from the client's side: one exchange at a time on a kept connection.
//!
//! Made to cost little, as it shares the machine with what it measures: requests are written from memory used again,
//! answers are read into one buffer per thread and counted, an idle connection holds no buffer.

mod response;

pub use response::{ProxyError, ResponseReader};

use crate::failure::Failure;
use crate::transport::Transport;
use bytes::Bytes;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

/// Bodies without a content of their own are sent out of this.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What all connections of a thread read into.
pub type Scratch = Rc<RefCell<Box<[u8]>>>;

pub fn scratch() -> Scratch {
    Rc::new(RefCell::new(vec![0; 128 * 1024].into_boxed_slice()))
}

/// A request: its head with whatever of the body fits, and what follows.
#[derive(Default)]
pub struct Request {
    pub bytes: Vec<u8>,
    /// A body that many requests have in common.
    body: Bytes,
    /// How many zero bytes.
    tail: u64,
    /// Its method is HEAD: the answer is a head alone, whatever length that tells (RFC 9110 9.3.2).
    pub is_head: bool,
}

impl Request {
    /// Bodies up to this length leave in one write with the head.
    const INLINE_MAX: u64 = 16 * 1024;

    /// Adds a body of zeros after the head.
    pub fn add_body(&mut self, bytes: u64) {
        if bytes <= Self::INLINE_MAX {
            self.bytes.resize(self.bytes.len() + bytes as usize, 0);
        } else {
            self.tail = bytes;
        }
    }

    /// Adds a body after the head.
    pub fn attach(&mut self, body: &Bytes) {
        if body.len() as u64 <= Self::INLINE_MAX {
            self.bytes.extend_from_slice(body);
        } else {
            self.body = body.clone();
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.body = Bytes::new();
        self.tail = 0;
        self.is_head = false;
    }

    /// Bytes of all of it.
    pub fn length(&self) -> u64 {
        (self.bytes.len() + self.body.len()) as u64 + self.tail
    }
}

/// An answer, its body counted and gone.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body_bytes: u64,
    pub first_byte: Instant,
    /// The connection may carry another exchange.
    pub reusable: bool,
    /// What the proxy says about an answer of its own.
    pub error: Option<Box<ProxyError>>,
}

/// One connection.
pub struct Http1 {
    io: Transport,
    scratch: Scratch,
    /// Received and not yet understood.
    carry: Vec<u8>,
}

impl Http1 {
    pub fn new(io: Transport, scratch: Scratch) -> Self {
        Self { io, scratch, carry: Vec::new() }
    }

    /// The connection and what was received beyond the last answer.
    pub fn into_parts(self) -> (Transport, Vec<u8>) {
        (self.io, self.carry)
    }

    /// Whether nothing has come since the last answer, as far as is known here: neither the end nor bytes nobody asked for.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Sends a request and reads its answer, both at the same time: servers may answer early. `sink` sees the body.
    ///
    /// Not cancel-safe: a connection whose exchange was dropped must be closed.
    pub async fn exchange(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<Reply, Failure> {
        let mut exchange = Exchange {
            head: &request.bytes,
            body: &request.body,
            tail: request.tail,
            flushed: false,
            write_failed: false,
            reader: ResponseReader::to(request.is_head),
            first_byte: None,
        };
        std::future::poll_fn(|cx| exchange.poll(cx, self, sink)).await
    }
}

struct Exchange<'a> {
    head: &'a [u8],
    body: &'a [u8],
    tail: u64,
    flushed: bool,
    /// The other side takes no more; its answer may be there all the same.
    write_failed: bool,
    reader: ResponseReader,
    first_byte: Option<Instant>,
}

impl Exchange<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Http1,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Reply, Failure>> {
        if !self.flushed
            && !self.write_failed
            && let Poll::Ready(Err(_)) = self.poll_send(cx, &mut connection.io)
        {
            self.write_failed = true;
        }
        loop {
            let scratch = connection.scratch.clone();
            let mut scratch = scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut connection.io).poll_read(cx, &mut buffer)) {
                Err(error) => return Poll::Ready(Err(self.cut(Failure::of_stream(&error)))),
                Ok(()) if buffer.filled().is_empty() => {
                    let failure =
                        if self.first_byte.is_some() { Failure::Truncated } else { Failure::ClosedEarly };
                    if !self.reader.end() {
                        return Poll::Ready(Err(if self.write_failed { Failure::Reset } else { failure }));
                    }
                }
                Ok(()) => {
                    self.first_byte.get_or_insert_with(Instant::now);
                    connection.carry =
                        self.feed(std::mem::take(&mut connection.carry), buffer.filled(), sink)?;
                }
            }
            if self.reader.is_done() {
                return Poll::Ready(Ok(self.reply(connection)));
            }
        }
    }

    /// Lets the reader have what was left and what came; what it does not take yet is left again.
    fn feed(
        &mut self,
        mut carry: Vec<u8>,
        new: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<u8>, Failure> {
        if carry.is_empty() {
            let taken = self.reader.feed(new, sink)?;
            carry.extend_from_slice(&new[taken..]);
        } else {
            carry.extend_from_slice(new);
            let taken = self.reader.feed(&carry, sink)?;
            carry.drain(..taken);
        }
        Ok(carry)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, io: &mut Transport) -> Poll<io::Result<()>> {
        for part in [&mut self.head, &mut self.body] {
            while !part.is_empty() {
                let sent = ready!(Pin::new(&mut *io).poll_write(cx, part))?;
                *part = &part[sent..];
            }
        }
        while self.tail > 0 {
            let next = &ZEROS[..self.tail.min(ZEROS.len() as u64) as usize];
            self.tail -= ready!(Pin::new(&mut *io).poll_write(cx, next))? as u64;
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    /// A connection that ends hard: what that means depends on how far the answer was.
    fn cut(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Reset if self.first_byte.is_some() => Failure::Truncated,
            other => other,
        }
    }

    fn reply(&mut self, connection: &Http1) -> Reply {
        let status = self.reader.status();
        let leftover = !connection.carry.is_empty();
        Reply {
            status,
            body_bytes: self.reader.body_bytes(),
            first_byte: self.first_byte.unwrap_or_else(Instant::now),
            // An answer before the request was sent, or bytes nobody asked for: the stream's state is not known.
            reusable: self.reader.keeps_alive() && self.flushed && (!leftover || status == 101),
            error: self.reader.take_error(),
        }
    }
}
