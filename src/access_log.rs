//! The access log: shards format lines into a batch of their own and hand full batches to one writer thread.
//!
//! A slow or broken output never holds a shard up: batches that do not fit are dropped and their lines counted.
//! Queries are never logged (they may hold credentials) and neither are field values.

use crate::config::AccessLog;
use crate::counters::{AuthResult, Counters, add};
use crate::error::{Answer, Cause, Source};
use crate::log_writer::LogSender;
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

const SIGNED_LINK: &str = AuthResult::SignedLink.as_str();
/// A batch is handed over when it is this large, or at the next tick.
const BATCH_BYTES: usize = 32 * 1024;
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// One request, as it is told.
pub struct Line<'a> {
    pub request_id: &'a str,
    pub class: &'static str,
    pub method: &'a [u8],
    /// As received; a label may be a signed token, see [`Log::write`].
    pub host: &'a [u8],
    pub path: &'a [u8],
    pub status: u16,
    pub cause: Option<Answer>,
    pub auth: Option<&'static str>,
    pub client_ip: IpAddr,
    /// From the request's first byte to the decision that it may pass, and where to.
    pub granted: Option<Duration>,
    /// To the first byte of the app's answer, with [`Log::times_first_byte`].
    pub first_byte: Option<Duration>,
    pub took: Duration,
}

/// A shard's side.
pub struct Log {
    mode: AccessLog,
    slow: Option<Duration>,
    batch: RefCell<(Vec<u8>, u64)>,
    writer: LogSender,
    counters: Rc<Counters>,
}

impl Log {
    pub fn new(mode: AccessLog, slow: Option<Duration>, writer: LogSender, counters: Rc<Counters>) -> Self {
        Self { mode, slow, batch: RefCell::default(), writer, counters }
    }

    /// Do lines of ordinary requests tell when the answer began? That is a look at the clock for each.
    pub fn times_first_byte(&self) -> bool {
        self.mode == AccessLog::All || self.slow.is_some()
    }

    /// `status` 0: there was no answer, or not all of it.
    pub fn wants(&self, status: u16, cause: Option<Cause>, took: Duration) -> bool {
        match self.mode {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Errors => {
                let cut_short =
                    status == 0 && cause.is_some_and(|cause| cause.answer().source != Source::Client);
                status >= 500 || cut_short || self.slow.is_some_and(|slow| took >= slow)
            }
        }
    }

    /// Adds a line to the batch. Of a preview host only the port is told when nobody was let in, or by a signed link:
    /// what stands in a label may be a token.
    pub fn write(&self, line: &Line<'_>) {
        let ms = |d: Option<Duration>| d.map(|d| d.as_micros() as f64 / 1000.0);
        let host = String::from_utf8_lossy(line.host);
        let host = match (line.auth, host.split_once('-')) {
            (None | Some(SIGNED_LINK), Some((port, rest))) => {
                format!("{port}-[label]{}", rest.find('.').map_or("", |dot| &rest[dot..]))
            }
            _ => host.into_owned(),
        };
        let entry = serde_json::json!({
            "ts": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "request_id": line.request_id,
            "class": line.class,
            "method": String::from_utf8_lossy(line.method),
            "host": host,
            "path": String::from_utf8_lossy(line.path),
            "status": line.status,
            "error_source": line.cause.map(|c| c.source.as_str()),
            "error_code": line.cause.map(|c| c.code),
            "auth": line.auth,
            "client_ip": line.client_ip,
            "t_auth_ms": ms(line.granted),
            "t_first_byte_ms": ms(line.first_byte),
            "t_total_ms": ms(Some(line.took)),
        });
        let full = {
            let mut batch = self.batch.borrow_mut();
            // Writing JSON into memory fails for nothing but a map key that is no string.
            let _ = serde_json::to_writer(&mut batch.0, &entry);
            batch.0.push(b'\n');
            batch.1 += 1;
            batch.0.len() >= BATCH_BYTES
        };
        if full {
            self.hand_over();
        }
    }

    /// Gives the batch to the writer if it has room; keeps it a while if not.
    pub fn hand_over(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.0.is_empty() {
            return;
        }
        let (bytes, lines) = std::mem::take(&mut *batch);
        match self.writer.try_send(bytes) {
            Ok(()) => add(&self.counters.log_lines, lines),
            Err(bytes) if bytes.len() < BATCH_BYTES_MAX => *batch = (bytes, lines),
            Err(_) => add(&self.counters.log_lines_dropped, lines),
        }
    }
}
