//! Pooled memory of a shard: small buffers for heads and trickles, large ones for bulk, pipes for splice.
//!
//! Everything is handed out by value and given back; what is not given back is simply freed. Bounded: beyond the
//! bounds things are made and dropped, never waited for.

use rustix::pipe::PipeFlags;
use std::cell::{Cell, RefCell};
use std::io;
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
    pipes_max: usize,
    pipes_out: Cell<usize>,
}

/// An empty pipe. Handed back only when empty: leftover bytes would reach another connection.
pub struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

impl Buffers {
    pub fn new(bulk_max: usize, pipes_max: usize) -> Self {
        Self {
            small: RefCell::default(),
            bulk: RefCell::default(),
            pipes: RefCell::default(),
            bulk_max,
            pipes_max,
            pipes_out: Cell::new(0),
        }
    }

    /// Empty, with at least [`SMALL`] capacity.
    pub fn small(&self) -> Vec<u8> {
        self.small.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SMALL))
    }

    /// Empty, with [`BULK`] capacity.
    pub fn bulk(&self) -> Vec<u8> {
        self.bulk.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BULK))
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

    /// `Ok(None)`: all pipes this shard may have are in use; copy instead.
    pub fn pipe(&self) -> io::Result<Option<Pipe>> {
        if let Some(pipe) = self.pipes.borrow_mut().pop() {
            self.pipes_out.set(self.pipes_out.get() + 1);
            return Ok(Some(pipe));
        }
        if self.pipes_out.get() >= self.pipes_max {
            return Ok(None);
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller pipe than wished works as well, only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
        self.pipes_out.set(self.pipes_out.get() + 1);
        Ok(Some(Pipe { read, write }))
    }

    /// Takes back an empty pipe.
    pub fn give_pipe(&self, pipe: Pipe) {
        self.pipes_out.set(self.pipes_out.get().saturating_sub(1));
        self.pipes.borrow_mut().push(pipe);
    }

    /// A pipe with bytes left in it is closed.
    pub fn discard_pipe(&self, pipe: Pipe) {
        self.pipes_out.set(self.pipes_out.get().saturating_sub(1));
        drop(pipe);
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
        buffers.give_pipe(one);
        buffers.discard_pipe(two);
        assert!(buffers.pipe().expect("no error").is_some());
        assert!(buffers.pipe().expect("no error").is_some());
        assert!(buffers.pipe().expect("no error").is_none());
    }

    #[test]
    fn a_buffer_comes_back_empty_and_one_that_grew_too_large_does_not() {
        let buffers = Buffers::new(1, 1);
        let mut buf = buffers.small();
        buf.extend_from_slice(b"secret of another request");
        buffers.give(buf);
        assert!(buffers.small().is_empty());
        buffers.give(Vec::with_capacity(BULK * 2));
        assert_eq!(buffers.bulk().capacity(), BULK);
    }
}
