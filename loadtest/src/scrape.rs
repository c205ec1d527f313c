//! The proxy's `/metrics` page (Prometheus text format): before, during and after a run.

use crate::http1::ResponseReader;
use crate::result::{Reason, ServerCounters, ServerSample};
use crate::unshown::shown_url;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest page taken.
const PAGE_MAX: usize = 8 << 20;
/// Most samples kept; beyond it every second one goes.
const SAMPLES_MAX: usize = 600;
const TIMEOUT: Duration = Duration::from_secs(3);
/// Between looks at whether the wait is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Follows one page.
pub struct Scraper {
    authority: String,
    path: String,
    counters: ServerCounters,
    /// Every so many scrapes one is kept.
    keep_every: u32,
    skipped: u32,
}

impl Scraper {
    /// `url`: `http://host:port/path`.
    pub fn new(url: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("metrics `{}`: {what}", shown_url(url));
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("no http:// URL"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Ok(Self {
            authority: authority.into(),
            path: if path.is_empty() { "/metrics".into() } else { path.into() },
            counters: ServerCounters { url: url.into(), ..ServerCounters::default() },
            keep_every: 1,
            skipped: 0,
        })
    }

    /// Reads the page once before the load.
    pub fn begin(&mut self) {
        if let Some(values) = self.read() {
            self.counters.before = values;
        }
    }

    /// Reads it during the load. `at`: since the run's start.
    pub fn sample(&mut self, at: Duration) -> Option<&ServerSample> {
        let values = self.read()?;
        self.skipped += 1;
        if self.skipped < self.keep_every {
            return None;
        }
        self.skipped = 0;
        let moved = values.into_iter().filter(|(name, value)| self.counters.before.get(name) != Some(value));
        self.counters.samples.push(ServerSample { at_s: at.as_secs_f64(), values: moved.collect() });
        if self.counters.samples.len() > SAMPLES_MAX {
            let mut n = 0;
            self.counters.samples.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.keep_every *= 2;
        }
        self.counters.samples.last()
    }

    /// Reads it once more and gives everything out.
    pub fn end(mut self) -> ServerCounters {
        if let Some(values) = self.read() {
            self.counters.after = values;
        }
        self.counters
    }

    fn read(&mut self) -> Option<BTreeMap<String, f64>> {
        let page = fetch(&self.authority, &self.path).map(|page| parse(&page));
        let failure = match page {
            Ok(values) if !values.is_empty() => return Some(values),
            Ok(_) => "there is no metric on it; the Prometheus text format is expected".into(),
            Err(error) => error.to_string(),
        };
        self.counters.failures += 1;
        self.counters.last_failure = Some(failure);
        None
    }
}

/// What to know about counters that are not, or not all, what was asked for.
pub fn note(counters: &ServerCounters) -> Option<Reason> {
    let failure = counters.last_failure.as_ref()?;
    let missing = match (counters.before.is_empty(), counters.after.is_empty()) {
        (true, true) if counters.samples.is_empty() => {
            "could not be read: the proxy's counters are not in the result"
        }
        (true, _) => "could not be read before the load: what counters gained is not in the result",
        (false, true) => "could not be read after the load: what counters gained is not in the result",
        (false, false) => "could not be read at times",
    };
    let message = format!("the metrics page {} {missing} ({failure})", counters.url);
    Some(Reason { code: "metrics".into(), message, fatal: false })
}

/// Whether the text is a metrics page.
pub fn holds_metrics(page: &str) -> bool {
    !parse(page).is_empty()
}

fn fetch(authority: &str, path: &str) -> io::Result<String> {
    match get(authority, path)? {
        (200, page) => Ok(page),
        (status, _) => Err(io::Error::other(format!("HTTP {status}"))),
    }
}

/// Status and body, in seconds at most.
fn get(authority: &str, path: &str) -> io::Result<(u16, String)> {
    get_within(authority, path, TIMEOUT, &AtomicBool::new(false))
}

/// Status and body, in this time at most and never more than seconds; `stop` ends the wait for them.
pub fn get_within(
    authority: &str,
    path: &str,
    most: Duration,
    stop: &AtomicBool,
) -> io::Result<(u16, String)> {
    let deadline = Instant::now() + most.min(TIMEOUT);
    let name = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let address = name.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    // A timeout of nothing is refused.
    let mut stream = TcpStream::connect_timeout(&address, most.clamp(LOOK_EVERY, TIMEOUT))?;
    stream.set_read_timeout(Some(LOOK_EVERY))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\naccept: text/plain\r\n\r\n"
    )?;
    let (mut reader, mut page, mut pending) = (ResponseReader::default(), Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    while !reader.is_done() {
        if page.len() > PAGE_MAX || Instant::now() >= deadline || stop.load(Relaxed) {
            return Err(io::Error::other("the page is too long or too slow"));
        }
        let read = match stream.read(&mut buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            read => read?,
        };
        if read == 0 && !reader.end() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pending.extend_from_slice(&buffer[..read]);
        let taken = reader.feed(&pending, &mut |data| page.extend_from_slice(data));
        pending.drain(..taken.map_err(|_| io::ErrorKind::InvalidData)?);
    }
    Ok((reader.status(), String::from_utf8_lossy(&page).into_owned()))
}

/// Names with their labels, as they stand; buckets of histograms are left out.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        if line.starts_with('#') || line.contains("_bucket{") {
            return None;
        }
        // Labels may hold spaces; a time may follow the value.
        let end = line.find('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
        let name = line[..end].split('{').next().unwrap_or_default();
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':')) {
            return None;
        }
        let value = line[end..].split_ascii_whitespace().next()?.parse().ok()?;
        Some((line[..end].to_owned(), value))
    };
    page.lines().filter_map(sample).filter(|(_, value): &(_, f64)| value.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_without_its_buckets_and_comments() {
        let page = "# HELP a x\n# TYPE a counter\na 5\nb{c=\"d e\"} 1.5e3\nh_bucket{le=\"1\"} 9\nh_sum 2 1700000000\nbad\nn NaN\n<p>x 5\n";
        let values = parse(page);
        let expected = [("a", 5.0), ("b{c=\"d e\"}", 1500.0), ("h_sum", 2.0)];
        assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn what_moved_is_what_was_gained() {
        let of = |a: f64| BTreeMap::from([("a".to_owned(), a), ("still".to_owned(), 1.0)]);
        let counters = ServerCounters { before: of(1.0), after: of(4.0), ..ServerCounters::default() };
        assert_eq!(counters.gained(), BTreeMap::from([("a", 3.0)]));
    }

    #[test]
    fn a_page_nobody_serves_is_counted_and_not_fatal() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let mut scraper = Scraper::new(&format!("http://{address}/metrics")).expect("a URL");
        scraper.begin();
        let counters = scraper.end();
        assert_eq!((counters.failures, counters.before.len()), (2, 0));
        let note = note(&counters).expect("there is something to know");
        assert!(note.message.contains(&address.to_string()) && note.message.contains("could not be read:"));
        assert!(note.message.contains("refused") && !note.fatal, "{note:?}");
    }

    #[test]
    fn a_wait_ends_with_its_time_or_when_it_is_stopped() {
        // It takes connections, and nobody ever answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let authority = silent.local_addr().expect("bound").to_string();
        for (most, stop) in [(Duration::ZERO, false), (Duration::from_secs(3600), true)] {
            let begun = Instant::now();
            get_within(&authority, "/", most, &AtomicBool::new(stop)).expect_err("no answer");
            assert!(begun.elapsed() < TIMEOUT);
        }
    }
}
