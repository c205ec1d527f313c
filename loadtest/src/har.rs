//! Recordings of browsers (HAR 1.2), to be replayed at sandboxes: which requests were sent, when, and how they were answered.
//!
//! Recordings are full of secrets. What is said about them, be it an error, is counts and numbers of entries. Knows no
//! socket; files are read where a plan is made, and the plan carries what was in them.

mod archive;
mod request;
mod timestamp;
mod url;

pub use request::RecordedRequest;

use crate::plan::Class;
use archive::Log;
use request::Unfit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::{Origin, Url};

/// A file is in memory while it is read; most of it is answers, which are not kept.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Of one request.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Of all requests of a recording: once in memory, however many sessions replay it, and once on the way to each agent.
const RECORDING_BYTES_MAX: usize = 8 << 20;
/// From the first request to the last.
const SPAN_MAX: Duration = Duration::from_secs(24 * 3600);

/// A file's requests to one origin, in the order in which they left.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// What reports call it: `har:` and this.
    pub name: String,
    pub requests: Vec<RecordedRequest>,
    /// Entries of the file that are not replayed.
    left_out: BTreeMap<Omission, u32>,
}

/// Why an entry is not replayed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Omission {
    OtherOrigin,
    /// A WebSocket or an event stream.
    Stream,
    /// `data:`, `blob:`, an extension's.
    NotHttp,
    /// Out of the browser's cache or its service worker.
    Cached,
    /// Blocked, or left before the answer.
    Unanswered,
    NoBody,
    Unusable,
}

impl Omission {
    fn as_str(self) -> &'static str {
        match self {
            Self::OtherOrigin => "to other origins",
            Self::Stream => "WebSockets or event streams",
            Self::NotHttp => "not over HTTP",
            Self::Cached => "answered by the browser itself",
            Self::Unanswered => "without an answer",
            Self::NoBody => "with a body that is not in the file",
            Self::Unusable => "without a usable method, URL, time or header field",
        }
    }
}

impl Recording {
    /// # Errors
    /// A sentence that says what is wrong and what to do, with nothing of the file in it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, String> {
        let log = Log::read(bytes)?;
        let mut left_out = BTreeMap::new();
        let mut leave_out = |why: Omission| *left_out.entry(why).or_insert(0) += 1;
        let mut candidates = Vec::new();
        for (index, entry) in log.entries().enumerate() {
            match entry.ok_or(Omission::Unusable).and_then(|entry| Candidate::of(index + 1, entry)) {
                Ok(candidate) => candidates.push(candidate),
                Err(why) => leave_out(why),
            }
        }
        let origin = recorded_origin(&log, &candidates);
        let mut timed = Vec::new();
        for candidate in candidates {
            match candidate.into_request(origin.as_ref())? {
                Ok(request) => timed.push(request),
                Err(why) => leave_out(why),
            }
        }
        check_size(&timed)?;
        timed.sort_by_key(|(micros, number, _)| (*micros, *number));
        let recording = Self { name: name.into(), requests: in_time(timed)?, left_out };
        match recording.requests.is_empty() {
            true => Err(format!(
                "nothing to replay, {}: load the page while the network panel is open",
                recording.omissions().unwrap_or_default()
            )),
            false => Ok(recording),
        }
    }

    /// From the first request to the last.
    pub fn span(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |request| request.offset)
    }

    /// How many requests, and in what time.
    pub fn extent(&self) -> String {
        match (self.requests.len(), self.span()) {
            (1, _) => "1 request".into(),
            (count, span) if span.is_zero() => format!("{count} requests at once"),
            (count, span) => format!("{count} requests in {span:.1?}"),
        }
    }

    /// What of the file is not replayed, in words; `None`: all of it is.
    pub fn omissions(&self) -> Option<String> {
        let count: u32 = self.left_out.values().sum();
        let parts = self.left_out.iter().map(|(why, count)| format!("{count} {}", why.as_str()));
        let parts = parts.collect::<Vec<_>>().join(", ");
        let entries = count as usize + self.requests.len();
        (count > 0).then(|| format!("{count} of {entries} entries are left out: {parts}"))
    }
}

/// What it is, in a line.
impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "har:{}: {}", self.name, self.extent())?;
        self.omissions().map_or(Ok(()), |omissions| write!(f, "; {omissions}"))
    }
}

/// Shows nothing of the requests.
impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("name", &self.name)
            .field("requests", &self.requests.len())
            .field("left_out", &self.left_out)
            .finish()
    }
}

/// A request, when it began, and which entry of the file it is.
type Timed = (i64, usize, RecordedRequest);

/// An entry that a server answered to its end.
struct Candidate {
    /// Of the file's entries, counted from 1.
    number: usize,
    /// When it began, since 1970.
    micros: i64,
    url: Url,
    entry: archive::Entry,
}

impl Candidate {
    fn of(number: usize, entry: archive::Entry) -> Result<Self, Omission> {
        if entry.is_stream() {
            return Err(Omission::Stream);
        }
        let Some(url) = Url::parse(&entry.request.url) else {
            let is_http = entry.request.url.starts_with("http");
            return Err(if is_http { Omission::Unusable } else { Omission::NotHttp });
        };
        if entry.is_cached() {
            return Err(Omission::Cached);
        }
        if entry.response.status == 0 {
            return Err(Omission::Unanswered);
        }
        let micros = timestamp::micros(&entry.started_date_time).ok_or(Omission::Unusable)?;
        Ok(Self { number, micros, url, entry })
    }

    /// Its answer sent the browser to another origin, as from http to https.
    fn leads_away(&self) -> bool {
        let to = self.entry.redirect().and_then(Url::parse);
        to.is_some_and(|to| to.origin != self.url.origin)
    }

    /// `Err` refuses the whole file; why one is left out is in its `Ok`.
    fn into_request(self, origin: Option<&Origin>) -> Result<Result<Timed, Omission>, String> {
        let Some(origin) = origin.filter(|origin| **origin == self.url.origin) else {
            return Ok(Err(Omission::OtherOrigin));
        };
        match RecordedRequest::of(self.entry, self.url, origin) {
            Ok(request) => Ok(Ok((self.micros, self.number, request))),
            Err(Unfit::Omitted(why)) => Ok(Err(why)),
            Err(Unfit::TooLarge(bytes)) => Err(format!(
                "entry {}: its body has {bytes} bytes, and {BODY_BYTES_MAX} is the most: remove the entry",
                self.number
            )),
        }
    }
}

/// The first page's, where the file says its URL, else that of the first entry. Whoever only sent the browser on is neither.
fn recorded_origin(log: &Log<'_>, candidates: &[Candidate]) -> Option<Origin> {
    let led = candidates.iter().position(|candidate| !candidate.leads_away()).unwrap_or(0);
    let mut origins = candidates[led..].iter().map(|candidate| &candidate.url.origin);
    let page = log.first_page().and_then(|title| Url::parse(&title)).map(|url| url.origin);
    match page.filter(|page| origins.clone().any(|origin| origin == page)) {
        None => origins.next().cloned(),
        page => page,
    }
}

fn check_size(timed: &[Timed]) -> Result<(), String> {
    let mut bytes = 0;
    for (_, number, request) in timed {
        bytes += request.bytes();
        if bytes > RECORDING_BYTES_MAX {
            return Err(format!(
                "the requests up to entry {number} have {bytes} bytes together, and {RECORDING_BYTES_MAX} is the most: record \
                 less at a time, or remove the largest bodies"
            ));
        }
    }
    Ok(())
}

/// Requests in order, each with its offset from the first.
fn in_time(timed: Vec<Timed>) -> Result<Vec<RecordedRequest>, String> {
    let first = timed.first().map_or(0, |(micros, ..)| *micros);
    let place = |(micros, number, mut request): Timed| {
        request.offset = Duration::from_micros(micros.abs_diff(first));
        match request.offset <= SPAN_MAX {
            true => Ok(request),
            false => Err(format!(
                "entry {number}: it is {} hours behind the first, and 24 is the most: record less at a time",
                request.offset.as_secs() / 3600
            )),
        }
    };
    timed.into_iter().map(place).collect()
}

/// The recordings a plan is made with: each file is read once, however often and by whatever path its class is named.
#[derive(Debug, Default)]
pub struct Recordings {
    directory: PathBuf,
    read: Vec<(PathBuf, Recording)>,
}

impl Recordings {
    /// Files are named relative to this directory.
    pub fn relative_to(directory: &Path) -> Self {
        Self { directory: directory.into(), read: Vec::new() }
    }

    /// A class as people write it: of a recording they name the file.
    pub fn class_of(&mut self, text: &str) -> Result<Class, String> {
        match text.strip_prefix("har:") {
            Some("") => Err("`har:`: a HAR file's name follows".into()),
            Some(file) => self.class(file),
            None => text.parse(),
        }
    }

    /// The class that replays a file. `Err` names the file and says what to do.
    fn class(&mut self, file: &str) -> Result<Class, String> {
        let wrong = |why: String| format!("har:{file}: {why}");
        let named = self.directory.join(file);
        let path = named.canonicalize().map_err(|error| wrong(not_there(&error)))?;
        if let Some((_, known)) = self.read.iter().find(|(known, _)| *known == path) {
            return Ok(Class::Recording(known.name.clone()));
        }
        let name = name_of(&named);
        if let Some((other, _)) = self.read.iter().find(|(_, known)| known.name == name) {
            return Err(wrong(format!(
                "reports would call it har:{name}, as they do {}: rename one of the files",
                other.display()
            )));
        }
        let recording = Recording::parse(&name, &contents(&path).map_err(wrong)?).map_err(wrong)?;
        self.read.push((path, recording));
        Ok(Class::Recording(name))
    }

    pub fn into_plan(self) -> Vec<Recording> {
        self.read.into_iter().map(|(_, recording)| recording).collect()
    }
}

fn not_there(error: &std::io::Error) -> String {
    format!(
        "{error}: name a HAR file that is there (--mix divides at commas: a path with one needs a scenario, or another name)"
    )
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(not_there(&error)),
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => Err(format!(
            "it is larger than {} MiB: export it without the contents of answers, or record less at a time",
            FILE_BYTES_MAX >> 20
        )),
        Ok(_) => Ok(bytes),
    }
}

/// The file's name without its ending, in characters that mean nothing in mixes and thresholds.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().map(|c| if is_name_char(c) { c } else { '-' }).take(NAME_MAX).collect();
    if name.is_empty() { "recording".into() } else { name }
}

const NAME_MAX: usize = 40;

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Whether a class may be called so.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_name_char) && text.chars().count() <= NAME_MAX
}

#[cfg(test)]
mod tests;
