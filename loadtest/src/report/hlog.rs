//! `.hlog`: HdrHistogram's interval log, format 1.3, as HistogramLogAnalyzer, HistogramLogProcessor and the libraries of
//! other languages read it.
//!
//! One line per phase, class and time, tagged `{class}.{response|service|…}`; values in nanoseconds, the readable
//! maximum in milliseconds. Times are in histograms per phase only, so an interval is a phase.

use crate::result::{ClassResult, Hist, RunResult};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// The readable maximum's unit in nanoseconds.
const MAX_UNIT_NS: f64 = 1e6;

/// Writes all phases, warm-ups too (tags begin with `warmup.`).
///
/// # Errors
/// Those of `out`.
pub fn write(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    let mut out = out;
    let mut serializer = V2DeflateSerializer::new();
    let started = humantime::parse_rfc3339_weak(&result.meta.started_at).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(&format!(
            "[loadtest {}: {}; values in ns]",
            result.meta.version,
            one_line(&result.meta.name)
        ))
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(MAX_UNIT_NS)
        .begin_log_with(&mut out, &mut serializer)?;
    for phase in &result.phases {
        let (start, duration) = (seconds(phase.start_s), seconds(phase.duration_s));
        log.write_comment(&format!("[phase {}]", one_line(&phase.name)))?;
        for (name, class) in &phase.classes {
            for (time, hist) in times(class).filter(|(_, hist)| !hist.is_empty()) {
                let prefix = if phase.warmup { "warmup." } else { "" };
                let tag = tag_text(&format!("{prefix}{name}.{time}"));
                let written = log.write_histogram(hist.histogram(), start, duration, Tag::new(&tag));
                written.map_err(|error| match error {
                    IntervalLogWriterError::IoError(error) => error,
                    IntervalLogWriterError::SerializeError(error) => io::Error::other(error.to_string()),
                })?;
            }
        }
    }
    Ok(())
}

/// A class's histograms by the name of their time.
pub(super) fn times(class: &ClassResult) -> impl Iterator<Item = (&str, &Hist)> {
    let own = [("response", &class.response), ("service", &class.service)];
    own.into_iter().chain(class.extra.iter().map(|(name, hist)| (name.as_str(), hist)))
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A tag holds no comma, blank or line end.
fn tag_text(text: &str) -> String {
    text.replace(|c: char| c.is_control() || c == ',' || c == ' ', "_")
}
