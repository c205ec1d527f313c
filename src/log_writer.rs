//! A thread that writes log lines, so that nobody who serves requests ever waits for a pipe or a disk.
//!
//! Shards hand over batches of finished JSON lines and never wait: a full queue gives the batch back, the shard counts
//! its lines as dropped and goes on. Knows nothing of what a line says.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

enum Message {
    Batch(Vec<u8>),
    /// Wakes a waiting writer so that it sees `ending`.
    End,
}

#[derive(Default)]
struct Shared {
    ending: AtomicBool,
    failed_batches: AtomicU64,
}

/// Owner of the writer thread. Dropping it without [`Self::finish`] leaves the thread to end with its last sender.
pub struct LogWriter {
    to_writer: mpsc::SyncSender<Message>,
    shared: Arc<Shared>,
    done: mpsc::Receiver<()>,
}

/// The shards' end. Cloning is cheap; all clones share one queue.
#[derive(Clone)]
pub struct LogSender {
    to_writer: mpsc::SyncSender<Message>,
}

impl LogSender {
    /// Never waits. The batch comes back when the queue is full or the writer has ended; its lines are then the
    /// caller's to count as dropped. A batch is whole lines, each with its newline.
    pub fn try_send(&self, batch: Vec<u8>) -> Result<(), Vec<u8>> {
        self.to_writer.try_send(Message::Batch(batch)).map_err(|refused| match refused {
            mpsc::TrySendError::Full(Message::Batch(batch))
            | mpsc::TrySendError::Disconnected(Message::Batch(batch)) => batch,
            // What comes back is what went in.
            _ => Vec::new(),
        })
    }
}

impl LogWriter {
    /// Starts the thread. At most `batches_max` batches wait for it: the memory bound is that times the batch size.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn spawn(name: &str, out: Box<dyn Write + Send>, batches_max: usize) -> std::io::Result<Self> {
        let (to_writer, batches) = mpsc::sync_channel(batches_max);
        let (say_done, done) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            write_batches(batches, out, &of_thread);
            // Nobody listens when the owner was dropped.
            let _ = say_done.send(());
        })?;
        Ok(Self { to_writer, shared, done })
    }

    /// As [`Self::spawn`], to standard output.
    pub fn stdout(batches_max: usize) -> std::io::Result<Self> {
        Self::spawn("access-log", Box::new(std::io::stdout()), batches_max)
    }

    pub fn sender(&self) -> LogSender {
        LogSender { to_writer: self.to_writer.clone() }
    }

    /// Batches the output refused (a closed pipe, a full disk). Their lines are lost.
    pub fn failed_batches(&self) -> u64 {
        self.shared.failed_batches.load(Ordering::Relaxed)
    }

    /// Writes what is queued, flushes and ends the thread. `false` when that took longer than `deadline`: the thread
    /// is then stuck in the output and left behind. Senders may still exist; what they send afterwards is refused.
    pub fn finish(self, deadline: Duration) -> bool {
        self.shared.ending.store(true, Ordering::SeqCst);
        // A full queue needs no wake-up: the writer looks at `ending` after each batch.
        let _ = self.to_writer.try_send(Message::End);
        self.done.recv_timeout(deadline).is_ok()
    }
}

/// Owns the queue so that it is closed, and late batches refused, before anybody hears of the end.
fn write_batches(batches: mpsc::Receiver<Message>, mut out: Box<dyn Write + Send>, shared: &Shared) {
    // A failed write may have stopped within a line.
    let mut line_is_torn = false;
    let mut write = |batch: &[u8]| {
        let result = if line_is_torn { out.write_all(b"\n") } else { Ok(()) }
            .and_then(|()| out.write_all(batch))
            .and_then(|()| out.flush());
        line_is_torn = result.is_err();
        if result.is_err() {
            shared.failed_batches.fetch_add(1, Ordering::Relaxed);
        }
    };
    while let Ok(message) = batches.recv() {
        if let Message::Batch(batch) = message {
            write(&batch);
        }
        if shared.ending.load(Ordering::SeqCst) {
            while let Ok(message) = batches.try_recv() {
                if let Message::Batch(batch) = message {
                    write(&batch);
                }
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const LONG: Duration = Duration::from_secs(10);

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no test panics with it").clone()).expect("lines are text")
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Says when a write has begun, and stays in it until allowed to go on.
    struct Gate {
        begun: mpsc::Sender<()>,
        go: mpsc::Receiver<()>,
        page: Page,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.begun.send(()).expect("the test listens");
            // An ended test lets it go.
            let _ = self.go.recv();
            self.page.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn finish_writes_everything_queued_in_order_although_senders_live() {
        let page = Page::default();
        let writer = LogWriter::spawn("log-test", Box::new(page.clone()), 1000).expect("a thread");
        let sender = writer.sender();
        let mut wanted = String::new();
        for n in 0..1000 {
            let line = format!("{{\"n\":{n}}}\n");
            wanted.push_str(&line);
            let mut batch = line.into_bytes();
            while let Err(back) = sender.try_send(batch) {
                batch = back;
                std::thread::yield_now();
            }
        }
        assert!(writer.finish(LONG));
        assert_eq!(page.text(), wanted);
        assert_eq!(sender.try_send(b"late\n".to_vec()), Err(b"late\n".to_vec()));
    }

    #[test]
    fn a_stuck_output_gives_batches_back_and_blocks_neither_sender_nor_finish() {
        let (begun_tx, begun) = mpsc::channel();
        let (go, go_rx) = mpsc::channel();
        let page = Page::default();
        let gate = Gate { begun: begun_tx, go: go_rx, page: page.clone() };
        let writer = LogWriter::spawn("log-test", Box::new(gate), 2).expect("a thread");
        let sender = writer.sender();
        assert_eq!(sender.try_send(b"in the write\n".to_vec()), Ok(()));
        begun.recv_timeout(LONG).expect("the writer took it");
        assert_eq!(sender.try_send(b"queued 1\n".to_vec()), Ok(()));
        assert_eq!(sender.try_send(b"queued 2\n".to_vec()), Ok(()));
        assert_eq!(sender.try_send(b"too many\n".to_vec()), Err(b"too many\n".to_vec()));
        assert!(!writer.finish(Duration::from_millis(20)), "the output is stuck");
        // The queue was full at finish: the writer must still notice, write what is queued and end.
        for _ in 0..3 {
            go.send(()).expect("the writer waits");
        }
        for _ in 0..2 {
            begun.recv_timeout(LONG).expect("the queued batches are written");
        }
        assert!(begun.recv_timeout(LONG).is_err(), "the thread has ended and dropped its output");
        assert_eq!(page.text(), "in the write\nqueued 1\nqueued 2\n");
    }

    #[test]
    fn a_broken_output_is_counted_and_the_next_line_starts_on_its_own() {
        struct Torn(Page, u32);
        impl Write for Torn {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.1 += 1;
                match self.1 {
                    1 => self.0.write(&bytes[..3]),
                    2 => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)),
                    _ => self.0.write(bytes),
                }
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let page = Page::default();
        let writer = LogWriter::spawn("log-test", Box::new(Torn(page.clone(), 0)), 8).expect("a thread");
        let sender = writer.sender();
        for line in ["first\n", "second\n"] {
            assert_eq!(sender.try_send(line.into()), Ok(()));
        }
        let shared = Arc::clone(&writer.shared);
        assert!(writer.finish(LONG));
        assert_eq!(page.text(), "fir\nsecond\n");
        assert_eq!(shared.failed_batches.load(Ordering::Relaxed), 1);
    }
}
