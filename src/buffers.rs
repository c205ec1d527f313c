//! Pooled memory of a shard: small buffers for heads and trickles, large ones for bulk, pipes for splice.
//!
//! Nothing is waited for: beyond what may be kept, small buffers are made and freed; pipes and bulk buffers are lent, and whoever
//! finds all of them lent does without.

use rustix::pipe::PipeFlags;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;

/// A small buffer: ordinary heads and messages fit.
pub const SMALL: usize = 16 * 1024;
/// A bulk buffer: chunk size beats mechanism when bytes must be copied.
pub const BULK: usize = 256 * 1024;
/// What a pipe is asked to hold. The kernel may refuse (fs.pipe-user-pages-soft); then it holds less.
pub const PIPE: usize = 1 << 20;

const SMALL_KEPT: usize = 256;

pub struct Buffers {
    small: RefCell<Vec<Vec<u8>>>,
    bulk: RefCell<Vec<Vec<u8>>>,
    pipes: RefCell<Vec<Pipe>>,
    bulk_max: usize,
    bulk_out: Cell<usize>,
    pipes_max: usize,
    pipes_out: Cell<usize>,
    /// How many small buffers have lain here all the time since the last trim.
    small_unused: Cell<usize>,
    bulk_unused: Cell<usize>,
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// An empty pipe on loan. Dropped, it is closed: bytes may be left in it, and they would reach another connection.
/// Only [`Lease::give_back`] returns it to the pool.
pub struct Lease<'a> {
    buffers: &'a Buffers,
    /// Gone only while `give_back` runs.
    pipe: Option<Pipe>,
}

/// A buffer for much on loan, empty at first: a bulk buffer, or a small one where as many of those are lent as may be. A peer
/// that stands still holds what is in it, so their number bounds the memory that such peers cost.
pub struct Loan<'a> {
    buffers: &'a Buffers,
    buf: Vec<u8>,
    is_bulk: bool,
}

impl Deref for Loan<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.buf
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if self.is_bulk {
            self.buffers.bulk_out.set(self.buffers.bulk_out.get() - 1);
        }
        self.buffers.give(std::mem::take(&mut self.buf));
    }
}

/// Room for more of a head that does not fit yet; the parser bounds how far this goes.
pub fn with_room(buf: &mut Vec<u8>) -> &mut Vec<u8> {
    if buf.capacity() - buf.len() < 1024 {
        buf.reserve(SMALL);
    }
    buf
}

impl Lease<'_> {
    fn pipe(&self) -> &Pipe {
        self.pipe.as_ref().expect("taken by give_back alone, which consumes the lease")
    }

    pub fn read(&self) -> &OwnedFd {
        &self.pipe().read
    }

    pub fn write(&self) -> &OwnedFd {
        &self.pipe().write
    }

    /// The pipe is empty again.
    pub fn give_back(mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.buffers.pipes.borrow_mut().push(pipe);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.buffers.pipes_out.set(self.buffers.pipes_out.get().saturating_sub(1));
    }
}

impl Buffers {
    pub fn new(bulk_max: usize, pipes_max: usize) -> Self {
        Self {
            small: RefCell::default(),
            bulk: RefCell::default(),
            pipes: RefCell::default(),
            bulk_max,
            bulk_out: Cell::new(0),
            pipes_max,
            pipes_out: Cell::new(0),
            small_unused: Cell::new(0),
            bulk_unused: Cell::new(0),
        }
    }

    /// Empty, with at least [`SMALL`] capacity.
    pub fn small(&self) -> Vec<u8> {
        let mut small = self.small.borrow_mut();
        let buf = small.pop();
        self.small_unused.set(self.small_unused.get().min(small.len()));
        buf.unwrap_or_else(|| Vec::with_capacity(SMALL))
    }

    /// With [`BULK`] capacity, or [`SMALL`] where too many of those are lent.
    pub fn large(&self) -> Loan<'_> {
        if self.bulk_out.get() >= self.bulk_max {
            return Loan { buffers: self, buf: self.small(), is_bulk: false };
        }
        self.bulk_out.set(self.bulk_out.get() + 1);
        let mut bulk = self.bulk.borrow_mut();
        let buf = bulk.pop().unwrap_or_else(|| Vec::with_capacity(BULK));
        self.bulk_unused.set(self.bulk_unused.get().min(bulk.len()));
        Loan { buffers: self, buf, is_bulk: true }
    }

    /// Takes back any buffer; one that grew beyond its kind or finds its place taken is freed.
    pub fn give(&self, mut buf: Vec<u8>) {
        buf.clear();
        let (place, kept) = match buf.capacity() {
            SMALL..=65_536 => (&self.small, SMALL_KEPT),
            BULK => (&self.bulk, self.bulk_max),
            _ => return,
        };
        let mut place = place.borrow_mut();
        if place.len() < kept {
            place.push(buf);
        }
    }

    /// Frees half of the buffers that nobody asked for since the last call, so that a burst is paid back in a few.
    pub fn trim(&self) {
        for (place, unused) in [(&self.small, &self.small_unused), (&self.bulk, &self.bulk_unused)] {
            let mut place = place.borrow_mut();
            let kept = place.len() - unused.get().div_ceil(2);
            place.truncate(kept);
            unused.set(kept);
        }
    }

    /// `Ok(None)`: all pipes this shard may have are in use; copy instead.
    pub fn pipe(&self) -> io::Result<Option<Lease<'_>>> {
        if self.pipes_out.get() >= self.pipes_max {
            return Ok(None);
        }
        let pooled = self.pipes.borrow_mut().pop();
        let pipe = match pooled {
            Some(pipe) => pipe,
            None => {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                // A smaller pipe than wished works as well, only slower.
                let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
                Pipe { read, write }
            }
        };
        self.pipes_out.set(self.pipes_out.get() + 1);
        Ok(Some(Lease { buffers: self, pipe: Some(pipe) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_bounded_and_come_back() {
        let buffers = Buffers::new(1, 2);
        let one = buffers.pipe().expect("made").expect("first");
        let two = buffers.pipe().expect("made").expect("second");
        assert!(buffers.pipe().expect("no error").is_none());
        one.give_back();
        drop(two);
        assert_eq!(buffers.pipes.borrow().len(), 1, "a dropped lease closes its pipe");
        let _one = buffers.pipe().expect("no error").expect("free again");
        let _two = buffers.pipe().expect("no error").expect("free again");
        assert!(buffers.pipe().expect("no error").is_none());
    }

    #[test]
    fn what_a_burst_left_is_freed_and_what_is_in_use_stays() {
        let buffers = Buffers::new(4, 1);
        let burst: Vec<_> = (0..64).map(|_| buffers.small()).collect();
        burst.into_iter().for_each(|buf| buffers.give(buf));
        for _ in 0..10 {
            let busy: Vec<_> = (0..8).map(|_| buffers.small()).collect();
            busy.into_iter().for_each(|buf| buffers.give(buf));
            buffers.trim();
        }
        assert_eq!(buffers.small.borrow().len(), 8);
    }

    #[test]
    fn a_buffer_comes_back_empty_and_one_that_grew_too_large_does_not() {
        let buffers = Buffers::new(1, 1);
        let mut buf = buffers.small();
        buf.extend_from_slice(b"secret of another request");
        buffers.give(buf);
        assert!(buffers.small().is_empty());
        buffers.give(Vec::with_capacity(BULK * 2));
        assert_eq!(buffers.large().capacity(), BULK);
    }

    #[test]
    fn bulk_buffers_are_bounded_and_whoever_comes_later_has_small_ones() {
        let buffers = Buffers::new(2, 1);
        let mut lent = [0; 3].map(|_| buffers.large());
        assert_eq!(lent.each_ref().map(|buf| buf.capacity()), [BULK, BULK, SMALL]);
        lent[0].extend_from_slice(b"secret of another request");
        drop(lent);
        let lent = [0; 3].map(|_| buffers.large());
        assert_eq!(
            lent.each_ref().map(|buf| (buf.len(), buf.capacity())),
            [(0, BULK), (0, BULK), (0, SMALL)]
        );
    }
}
