//! What reached the world: every request and, per runner connection, the raw bytes, bounded.
//!
//! Written by the world's thread, read by tests on another. Waiting is done on a condition variable, never by
//! sleeping. Knows nothing of what the requests mean.

use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much is kept. Older things go first.
#[derive(Clone, Copy, Debug)]
pub struct RecordLimits {
    /// Requests kept. Costs their heads and up to `body_bytes_max` each.
    pub entries_max: usize,
    /// Longest request body kept as bytes; longer ones are kept as length and SHA-1.
    pub body_bytes_max: usize,
    /// Raw bytes kept of one connection to the runner, from its beginning.
    pub connection_raw_bytes_max: usize,
    /// Connections kept.
    pub connections_max: usize,
}

impl Default for RecordLimits {
    /// For tests: at most 10,000 requests, and 1,000 connections with 64 KiB each (64 MiB when all are full).
    fn default() -> Self {
        Self {
            entries_max: 10_000,
            body_bytes_max: 2_000,
            connection_raw_bytes_max: 64 << 10,
            connections_max: 1_000,
        }
    }
}

impl RecordLimits {
    /// For a world that runs for days: the last 100 requests, no raw bytes.
    pub fn small() -> Self {
        Self { entries_max: 100, body_bytes_max: 256, connection_raw_bytes_max: 0, connections_max: 100 }
    }
}

/// One request that reached the world, in order of arrival.
#[derive(Clone, Debug)]
pub enum Entry {
    Api(ApiRequest),
    Runner(RunnerRequest),
}

/// A request to the API.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    /// Method and target, e.g. `GET /api/config`.
    pub line: String,
    /// `Authorization`, empty when absent.
    pub authorization: String,
    /// `X-Forwarded-For`, empty when absent.
    pub forwarded_for: String,
    pub body: Vec<u8>,
}

/// A request to the runner. Bytes of the head are shown as Latin-1, one `char` per byte.
#[derive(Clone, Debug)]
pub struct RunnerRequest {
    /// Which connection it came on, see [`Record::connection`].
    pub connection: u64,
    /// Method and target, e.g. `GET /sandboxes/a/toolbox/files`.
    pub line: String,
    /// In order, names spelled as received.
    pub headers: Vec<(String, String)>,
    pub body: BodyRecord,
    /// `name: value` lines behind a chunked body.
    pub trailers: Vec<String>,
}

impl RunnerRequest {
    /// All values of a field, by case-insensitive name.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }
}

/// A request body as kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BodyRecord {
    /// The app has not read it to its end: still coming, or never asked for.
    Unread,
    Bytes(Vec<u8>),
    Digest {
        len: u64,
        sha1: String,
    },
}

/// One connection to the runner as its bytes came in.
#[derive(Clone, Debug)]
pub struct RawConnection {
    pub id: u64,
    /// From the first byte on, up to [`RecordLimits::connection_raw_bytes_max`].
    pub raw: Vec<u8>,
    /// All bytes that came, kept or not.
    pub received: u64,
    /// Requests begun on it.
    pub request_count: u64,
    pub end: Option<ConnectionEnd>,
}

/// How a connection to the runner ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConnectionEnd {
    /// The gate closed it between requests.
    ClosedBetween,
    /// The gate closed or reset it inside a request or while an answer was written.
    ClosedInside,
    /// The app chose to end it.
    ByApp,
    /// What came is not HTTP/1.1 with an unambiguous framing; the reason.
    Malformed(String),
}

/// What has been kept so far.
#[derive(Debug, Default)]
pub struct Record {
    entries: VecDeque<Entry>,
    /// Sequence number of the first entry kept.
    first: u64,
    connections: BTreeMap<u64, RawConnection>,
}

impl Record {
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub fn api(&self) -> impl DoubleEndedIterator<Item = &ApiRequest> {
        self.entries.iter().filter_map(|e| match e {
            Entry::Api(request) => Some(request),
            Entry::Runner(_) => None,
        })
    }

    pub fn runner(&self) -> impl DoubleEndedIterator<Item = &RunnerRequest> {
        self.entries.iter().filter_map(|e| match e {
            Entry::Runner(request) => Some(request),
            Entry::Api(_) => None,
        })
    }

    pub fn connections(&self) -> impl DoubleEndedIterator<Item = &RawConnection> {
        self.connections.values()
    }

    pub fn connection(&self, id: u64) -> Option<&RawConnection> {
        self.connections.get(&id)
    }
}

/// The record and those who wait for it to change.
#[derive(Debug)]
pub(super) struct Recorder {
    record: Mutex<Record>,
    changed: Condvar,
    limits: RecordLimits,
}

impl Recorder {
    pub fn new(limits: RecordLimits) -> Self {
        Self { record: Mutex::default(), changed: Condvar::new(), limits }
    }

    pub fn read<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.lock())
    }

    /// Looks again after each change until `look` finds something or `deadline` from now has passed.
    pub fn wait_for<T>(&self, deadline: Duration, mut look: impl FnMut(&Record) -> Option<T>) -> Option<T> {
        let until = Instant::now() + deadline;
        let mut record = self.lock();
        loop {
            if let Some(found) = look(&record) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            record = self.changed.wait_timeout(record, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Forgets requests and ended connections; open connections keep what they have.
    pub fn clear(&self) {
        self.change(|record| {
            record.first += record.entries.len() as u64;
            record.entries.clear();
            record.connections.retain(|_, c| c.end.is_none());
        });
    }

    pub fn api_request(&self, request: ApiRequest) {
        self.push(Entry::Api(request));
    }

    /// Returns the number under which the body is added later.
    pub fn runner_request(&self, request: RunnerRequest) -> u64 {
        self.change(|record| {
            if let Some(c) = record.connections.get_mut(&request.connection) {
                c.request_count += 1;
            }
        });
        self.push(Entry::Runner(request))
    }

    pub fn runner_body(&self, number: u64, body: BodyRecord, trailers: Vec<String>) {
        self.change(|record| {
            let index = number.checked_sub(record.first).and_then(|i| usize::try_from(i).ok());
            if let Some(Entry::Runner(request)) = index.and_then(|i| record.entries.get_mut(i)) {
                request.body = body;
                request.trailers = trailers;
            }
        });
    }

    pub fn connection_opened(&self, id: u64) {
        self.change(|record| {
            let fresh = RawConnection { id, raw: Vec::new(), received: 0, request_count: 0, end: None };
            record.connections.insert(id, fresh);
            while record.connections.len() > self.limits.connections_max {
                record.connections.pop_first();
            }
        });
    }

    pub fn connection_bytes(&self, id: u64, bytes: &[u8]) {
        self.change(|record| {
            let Some(c) = record.connections.get_mut(&id) else { return };
            c.received += bytes.len() as u64;
            let room = self.limits.connection_raw_bytes_max.saturating_sub(c.raw.len());
            c.raw.extend_from_slice(&bytes[..room.min(bytes.len())]);
        });
    }

    pub fn connection_ended(&self, id: u64, end: ConnectionEnd) {
        self.change(|record| {
            if let Some(c) = record.connections.get_mut(&id) {
                c.end = Some(end);
            }
        });
    }

    /// A collector that keeps as much of a body as the limits say.
    pub fn body(&self) -> BodyKeeper {
        BodyKeeper { max: self.limits.body_bytes_max, kept: Vec::new(), len: 0, sha1: Sha1::new() }
    }

    fn push(&self, entry: Entry) -> u64 {
        self.change(|record| {
            record.entries.push_back(entry);
            let number = record.first + record.entries.len() as u64 - 1;
            while record.entries.len() > self.limits.entries_max {
                record.entries.pop_front();
                record.first += 1;
            }
            number
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let out = change(&mut self.lock());
        self.changed.notify_all();
        out
    }

    /// A panicking test must not hide the record from the others: each change leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gathers a body piece by piece.
pub(super) struct BodyKeeper {
    max: usize,
    kept: Vec<u8>,
    len: u64,
    sha1: Sha1,
}

impl BodyKeeper {
    pub fn add(&mut self, piece: &[u8]) {
        self.len += piece.len() as u64;
        self.sha1.update(piece);
        let room = self.max.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&piece[..room.min(piece.len())]);
    }

    pub fn finish(self) -> BodyRecord {
        if self.len == self.kept.len() as u64 {
            return BodyRecord::Bytes(self.kept);
        }
        BodyRecord::Digest { len: self.len, sha1: hex(&self.sha1.finalize()) }
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        write!(out, "{b:02x}").expect("writing to a String cannot fail");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(line: &str) -> ApiRequest {
        ApiRequest {
            line: line.into(),
            authorization: String::new(),
            forwarded_for: String::new(),
            body: Vec::new(),
        }
    }

    fn runner(connection: u64) -> RunnerRequest {
        RunnerRequest {
            connection,
            line: "GET /".into(),
            headers: Vec::new(),
            body: BodyRecord::Unread,
            trailers: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_requests_are_forgotten_first_and_late_bodies_still_find_theirs() {
        let recorder = Recorder::new(RecordLimits { entries_max: 2, ..RecordLimits::default() });
        let gone = recorder.runner_request(runner(1));
        let kept = recorder.runner_request(runner(2));
        recorder.api_request(api("GET /last"));
        recorder.runner_body(gone, BodyRecord::Bytes(b"lost".to_vec()), Vec::new());
        recorder.runner_body(kept, BodyRecord::Bytes(b"found".to_vec()), Vec::new());
        recorder.read(|r| {
            assert_eq!(r.entries().count(), 2);
            assert_eq!(r.runner().next().map(|q| &q.body), Some(&BodyRecord::Bytes(b"found".to_vec())));
        });
    }

    #[test]
    fn raw_bytes_and_connections_are_bounded() {
        let limits =
            RecordLimits { connection_raw_bytes_max: 4, connections_max: 2, ..RecordLimits::default() };
        let recorder = Recorder::new(limits);
        for id in 1..=3 {
            recorder.connection_opened(id);
            recorder.connection_bytes(id, b"abc");
            recorder.connection_bytes(id, b"def");
        }
        recorder.read(|r| {
            let kept: Vec<_> = r.connections().map(|c| (c.id, c.raw.clone(), c.received)).collect();
            assert_eq!(kept, [(2, b"abcd".to_vec(), 6), (3, b"abcd".to_vec(), 6)]);
        });
    }

    #[test]
    fn a_body_beyond_the_bound_is_kept_as_length_and_digest() {
        let recorder = Recorder::new(RecordLimits { body_bytes_max: 2, ..RecordLimits::default() });
        let mut short = recorder.body();
        short.add(b"ab");
        assert_eq!(short.finish(), BodyRecord::Bytes(b"ab".to_vec()));
        let mut long = recorder.body();
        long.add(b"ab");
        long.add(b"c");
        let sha1 = "a9993e364706816aba3e25717850c26c9cd0d89d".to_string();
        assert_eq!(long.finish(), BodyRecord::Digest { len: 3, sha1 });
    }

    #[test]
    fn waiting_ends_with_the_change_that_was_waited_for_or_at_the_deadline() {
        let recorder = Recorder::new(RecordLimits::default());
        let found = std::thread::scope(|threads| {
            let waiter = threads.spawn(|| {
                recorder.wait_for(Duration::from_secs(10), |r| r.api().find(|a| a.line == "b").map(|_| ()))
            });
            recorder.api_request(api("a"));
            recorder.api_request(api("b"));
            waiter.join().expect("the waiter does not panic")
        });
        assert!(found.is_some());
        assert!(recorder.wait_for(Duration::ZERO, |r| r.api().find(|a| a.line == "c").map(|_| ())).is_none());
    }
}
