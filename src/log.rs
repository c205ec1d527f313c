//! What the operator should know: one JSON line per event on standard error, written by a thread of its own.
//!
//! Each kind of event passes at most once a second, with a count of what was held back, so that trouble does not
//! flood. Not for the way of a request: an event takes a lock and allocates. Callers put no secret and no URL into it.

use crate::log_writer::{LogSender, LogWriter};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Equal events closer together than this are only counted.
const QUIET: Duration = Duration::from_secs(1);
/// Lines waiting for standard error; beyond it they are lost.
const LINES_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Writes one line to the process's log: `{"ts":…,"level":…,"what":…,<fields>}`, `ts` as RFC 3339
/// in UTC. `what` names the kind of event and is what the rate is limited by; field names must be unique.
pub fn event(level: Level, what: &'static str, fields: &[(&'static str, &str)]) {
    process_log().event(level, what, fields);
}

/// As [`event`], for what happens a few times in the process's life, such as its start and its end: nothing of it is
/// held back. `{"level":…,"message":…,<fields>}`.
pub fn milestone(level: &str, message: &str, fields: &[(&str, &str)]) {
    let all = [("level", level), ("message", message)].into_iter().chain(fields.iter().copied());
    let line: serde_json::Map<_, _> = all.map(|(name, value)| (name.to_owned(), value.into())).collect();
    process_log().write(format!("{}\n", serde_json::Value::Object(line)).into_bytes());
}

/// The log [`event`] writes to.
pub fn process_log() -> Log {
    process().0.clone()
}

/// Writes out what is queued; at the end of the process. Events after it are lost. `false` when standard error did
/// not take them within `deadline`.
pub fn finish(deadline: Duration) -> bool {
    let writer = process().1.lock().unwrap_or_else(PoisonError::into_inner).take();
    writer.is_none_or(|writer| writer.finish(deadline))
}

/// A place for events. Clones share the rate limits.
#[derive(Clone)]
pub struct Log {
    /// `None` when the system refused a thread: lines then go straight to standard error.
    out: Option<LogSender>,
    /// By kind; kinds are literals in the source, so this is bounded.
    turns: Arc<Mutex<HashMap<&'static str, Turn>>>,
}

/// When a kind of event may be told again. By itself for events on the way of a request: held back there, they cost nothing.
#[derive(Default)]
pub struct Turn {
    at: Option<Instant>,
    suppressed: u64,
}

impl Turn {
    /// How many events were held back since the last one that was not; `None` when this one is, too.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            self.suppressed += 1;
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Log {
    pub fn new(out: Option<LogSender>) -> Self {
        Self { out, turns: Arc::default() }
    }

    /// A log nobody reads.
    #[cfg(test)]
    pub(crate) fn discard() -> Self {
        let writer = LogWriter::spawn("log-test", Box::new(std::io::sink()), 1).expect("a thread");
        Self::new(Some(writer.sender()))
    }

    /// As [`event`], to this log.
    pub fn event(&self, level: Level, what: &'static str, fields: &[(&'static str, &str)]) {
        self.event_at(Instant::now(), level, what, fields);
    }

    fn event_at(&self, now: Instant, level: Level, what: &'static str, fields: &[(&'static str, &str)]) {
        let Some(suppressed) = self.turn(now, what) else { return };
        self.write(line(level, what, fields, suppressed));
    }

    /// One whole line, in one write: those of several gates that share a log do not mix.
    fn write(&self, line: Vec<u8>) {
        match &self.out {
            // A full queue loses the line: waiting for standard error is what must not happen.
            Some(out) => drop(out.try_send(line)),
            None => drop(std::io::Write::write_all(&mut std::io::stderr(), &line)),
        }
    }

    /// As [`Turn::pass`], for this kind.
    fn turn(&self, now: Instant, what: &'static str) -> Option<u64> {
        // A panic elsewhere leaves the counts usable.
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(what).or_default().pass(now)
    }
}

fn process() -> &'static (Log, Mutex<Option<LogWriter>>) {
    static PROCESS: OnceLock<(Log, Mutex<Option<LogWriter>>)> = OnceLock::new();
    PROCESS.get_or_init(|| {
        let writer = LogWriter::spawn("event-log", Box::new(std::io::stderr()), LINES_MAX).ok();
        (Log::new(writer.as_ref().map(LogWriter::sender)), Mutex::new(writer))
    })
}

fn line(level: Level, what: &str, fields: &[(&'static str, &str)], suppressed: u64) -> Vec<u8> {
    let ts = humantime::format_rfc3339_millis(SystemTime::now());
    let mut line = format!("{{\"ts\":\"{ts}\",\"level\":\"{}\",\"what\":{}", level.as_str(), json(what));
    for (name, value) in fields {
        // Writing to a String cannot fail, here and below.
        let _ = write!(line, ",{}:{}", json(name), json(value));
    }
    if suppressed > 0 {
        let _ = write!(line, ",\"suppressed\":{suppressed}");
    }
    line.push_str("}\n");
    line.into_bytes()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(events: impl FnOnce(&Log)) -> Vec<serde_json::Value> {
        let page = Page::default();
        let writer = LogWriter::spawn("log-test", Box::new(page.clone()), 64).expect("a thread");
        events(&Log::new(Some(writer.sender())));
        assert!(writer.finish(Duration::from_secs(10)));
        let bytes = page.0.lock().expect("no test panics with it").clone();
        let text = String::from_utf8(bytes).expect("JSON is text");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_fields_hold() {
        let lines = lines_of(|log| log.event(Level::Warn, "odd", &[("detail", "a\"b\\c\nd\u{1}")]));
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["level"], "warn");
        assert_eq!(lines[0]["what"], "odd");
        assert_eq!(lines[0]["detail"], "a\"b\\c\nd\u{1}");
        assert!(lines[0]["ts"].as_str().is_some_and(|ts| humantime::parse_rfc3339(ts).is_ok()));
    }

    #[test]
    fn each_kind_passes_once_a_second_and_says_how_many_did_not() {
        let lines = lines_of(|log| {
            let start = Instant::now();
            for ms in [0, 1, 999, 1000, 1500, 2000] {
                log.event_at(start + Duration::from_millis(ms), Level::Info, "often", &[]);
            }
            log.event_at(start + Duration::from_millis(1), Level::Info, "other", &[]);
        });
        let seen: Vec<_> = lines.iter().map(|l| (l["what"].as_str(), l["suppressed"].as_u64())).collect();
        assert_eq!(
            seen,
            [
                (Some("often"), None),
                (Some("often"), Some(2)),
                (Some("often"), Some(1)),
                (Some("other"), None)
            ]
        );
    }
}
