//! What people and other programs read of a result: JSON, `.hlog`, CSV, Markdown, and an HTML page that stands alone.
//!
//! Everything is made from a [`RunResult`] alone: a report can be made again from a saved one.

mod changes;
pub(crate) mod chart;
pub(crate) mod columns;
mod command;
mod csv;
pub(crate) mod figures;
mod heat;
mod hlog;
pub(crate) mod markdown;
mod moved;
pub(crate) mod page;
mod run_page;
mod scale;

use crate::assertion::{self, Thresholds};
use crate::measure::number_text;
use crate::result::{ClassResult, FORMAT, PhaseResult, RunResult};
use clap::Args;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Largest result file read.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Where a result goes besides the terminal, and what it must hold.
#[derive(Clone, Debug, Default, Args)]
pub struct Outputs {
    /// Write the whole result as JSON: for `report`, `compare` and `assert`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write a report as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
    /// Write the histograms in HdrHistogram's log format
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub hlog: Option<PathBuf>,
    /// Write the timeline as comma-separated values, a line for each second of each phase
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub csv: Option<PathBuf>,
    /// Write a summary in Markdown, for CI
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub markdown: Option<PathBuf>,
    /// Thresholds, like 'p99<5ms,err<0.1%,cpu_us<20'; the exit code is 99 when one does not hold
    #[arg(long, value_name = "THRESHOLDS", help_heading = "Output")]
    pub assert: Vec<Thresholds>,
}

impl Outputs {
    /// The files that are wanted.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> + Clone {
        [&self.json, &self.html, &self.hlog, &self.csv, &self.markdown].into_iter().flatten()
    }

    /// Tries whether the files can be written, so that a run of an hour does not end with nowhere to put its result.
    ///
    /// # Errors
    /// Names the first that cannot.
    pub fn check(&self) -> io::Result<()> {
        check_outputs(self.files(), &[])
    }

    /// Checks the thresholds, notes them in the result and writes all files. Whether every threshold holds.
    ///
    /// # Errors
    /// Names the first file that cannot be written; those after it are not tried.
    pub fn finish(&self, result: &mut RunResult) -> io::Result<bool> {
        let thresholds: Vec<_> = self.assert.iter().flat_map(|list| list.0.iter().cloned()).collect();
        let holds = assertion::check(result, &thresholds);
        if let Some(path) = &self.json {
            write_file(path, |out| {
                serde_json::to_writer(&mut *out, result).map_err(io::Error::from)?;
                out.write_all(b"\n")
            })?;
        }
        if let Some(path) = &self.html {
            write_file(path, |out| out.write_all(run_page::text(result).as_bytes()))?;
        }
        if let Some(path) = &self.hlog {
            write_file(path, |out| hlog::write(result, out))?;
        }
        if let Some(path) = &self.csv {
            write_file(path, |out| csv::write(result, out))?;
        }
        if let Some(path) = &self.markdown {
            write_file(path, |out| out.write_all(markdown::text(result).as_bytes()))?;
        }
        Ok(holds)
    }
}

/// What a phase planned, at its begin and end.
pub(crate) fn planned_rate_text(planned: Option<(f64, f64)>) -> String {
    match planned {
        None => "–".into(),
        Some((from, to)) if from == to => format!("{}/s", number_text(to)),
        Some((from, to)) => format!("{} to {}/s", number_text(from), number_text(to)),
    }
}

/// [`crate::measure::Totals::errors`] of one phase. `total`: its classes in sum.
fn phase_errors(phase: &PhaseResult, total: &ClassResult) -> Option<f64> {
    let (idle_ok, idle_bad) =
        phase.idle.as_ref().map_or((0, 0), |idle| (idle.well(), idle.failures() + idle.unfinished));
    let bad = total.failed + total.unsent + total.unfinished + idle_bad;
    let all = total.ok + idle_ok + bad;
    (all > 0).then(|| bad as f64 / all as f64)
}

/// The HTML report of a run.
pub fn html(result: &RunResult) -> String {
    run_page::text(result)
}

/// The Markdown summary of a run.
pub fn markdown(result: &RunResult) -> String {
    markdown::text(result)
}

/// Writes the histograms as `.hlog`.
///
/// # Errors
/// Those of `out`.
pub fn write_hlog(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    hlog::write(result, out)
}

/// Writes the timeline as comma-separated values.
///
/// # Errors
/// Those of `out`.
pub fn write_csv(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    csv::write(result, out)
}

/// Reads a saved result.
///
/// # Errors
/// A sentence that names the file: it is not there, too large, no result or one of a later format.
pub fn load(path: &Path) -> Result<RunResult, String> {
    let told = |why: String| format!("{}: {why}", path.display());
    let file = File::open(path).map_err(|error| told(error.to_string()))?;
    let length = file.metadata().map_err(|error| told(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(told("too large to be a result".into()));
    }
    let result: RunResult = serde_json::from_reader(BufReader::new(file))
        .map_err(|error| told(format!("this is no result that `loadtest run --json` wrote: {error}")))?;
    match result.format {
        FORMAT => Ok(result),
        other => Err(told(format!("its format is {other}, this loadtest reads {FORMAT}"))),
    }
}

/// Whether [`write_file`] could write there now. What is there stays as it is.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    if path == Path::new("-")
        || path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
    {
        return Ok(());
    }
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()));
    if path.is_dir() {
        return Err(told(io::ErrorKind::IsADirectory.into()));
    }
    let temporary = beside(path);
    File::create(&temporary).and_then(|_| std::fs::remove_file(&temporary)).map_err(told)
}

/// One of the outputs is standard output: what people are told has to go elsewhere.
pub(crate) fn take_stdout<'a>(mut outputs: impl Iterator<Item = &'a PathBuf>) -> bool {
    outputs.any(|path| path == Path::new("-"))
}

/// Tries whether the files can be written, each for itself and none in place of one that is read.
///
/// # Errors
/// Names the first that cannot.
pub(crate) fn check_outputs<'a>(
    outputs: impl Iterator<Item = &'a PathBuf> + Clone,
    inputs: &[&PathBuf],
) -> io::Result<()> {
    outputs.clone().try_for_each(|path| check_writable(path))?;
    // One file by any name. What is not there yet is no input; what is no file, as `/dev/stdout`, keeps nothing.
    let file = |path: &Path| path.canonicalize().ok().filter(|path| path.is_file());
    let read: Vec<PathBuf> = inputs.iter().filter_map(|input| file(input)).collect();
    if let Some(same) = outputs.clone().find(|path| file(path).is_some_and(|path| read.contains(&path))) {
        let message = format!(
            "{} is read and would be written over: give what is written another name",
            same.display()
        );
        return Err(io::Error::other(message));
    }
    check_distinct(outputs)
}

/// Of two results in one file the first is lost. What is no file, as `-` and `/dev/null`, takes them all.
pub(crate) fn check_distinct<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> io::Result<()> {
    let mut files: Vec<&PathBuf> = Vec::new();
    for path in paths {
        let is_file = path != Path::new("-") && path.metadata().map_or(true, |metadata| metadata.is_file());
        if is_file && files.contains(&path) {
            let message = format!("{} cannot take two outputs: give each a file of its own", path.display());
            return Err(io::Error::other(message));
        }
        files.push(path);
    }
    Ok(())
}

/// The name of the temporary file of another.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Through a temporary file beside it: nobody finds half a report. `-` is standard output.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    if path == Path::new("-") {
        let mut out = io::stdout().lock();
        return match write(&mut out).and_then(|()| out.flush()) {
            // Whoever reads it may have seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        };
    }
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()));
    let filled = |path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>| {
        let mut out = BufWriter::new(File::create(path)?);
        write(&mut out)?;
        out.flush()
    };
    // A link is followed: what it points to is what is wanted anew.
    let path = &path.canonicalize().unwrap_or_else(|_| path.into());
    let mut write = Some(write);
    let mut once = |out: &mut dyn Write| write.take().map_or(Ok(()), |write| write(out));
    // A device or a pipe cannot be put in place of another.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return filled(path, &mut once).map_err(told);
    }
    let temporary = beside(path);
    let written = filled(&temporary, &mut once).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // What could not be written may not be there either.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(told)
}
