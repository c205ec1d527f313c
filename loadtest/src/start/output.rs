//! The last of what a process writes: its pipe is always read, so that it never waits for us, and memory is bounded.

use std::io::{self, PipeReader, Read as _};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Bytes kept at least, once as many were written; twice as many at most.
const KEPT: usize = 16 * 1024;
/// Lines and bytes of them that are shown.
const LINES_SHOWN: usize = 12;
const LINE_MAX: usize = 300;

#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// Reads on a thread of its own. What is returned besides is disconnected when all was read: nobody holds the pipe's other
    /// end any more.
    pub fn read(mut pipe: PipeReader) -> io::Result<(Self, Receiver<()>)> {
        let (output, (reading, ended)) = (Self::default(), channel());
        let kept = output.clone();
        thread::Builder::new().name("output".into()).spawn(move || {
            let _reading = reading;
            let mut buffer = vec![0; 64 * 1024];
            // A pipe that cannot be read says no more than one that ended.
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                kept.push(&buffer[..read]);
            }
        })?;
        Ok((output, ended))
    }

    fn push(&self, data: &[u8]) {
        let mut kept = self.lock();
        kept.extend_from_slice(&data[data.len().saturating_sub(KEPT)..]);
        if kept.len() > 2 * KEPT {
            let surplus = kept.len() - KEPT;
            kept.drain(..surplus);
        }
    }

    /// All that is kept.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }

    /// The last lines for an error, each on a line of its own behind a colon. `secret` is blotted out: programs that fail like to
    /// print their settings.
    pub fn last_lines(&self, secret: &str) -> String {
        let mut text = self.text();
        if !secret.is_empty() {
            text = text.replace(secret, "***");
        }
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return "it said nothing".into();
        }
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].iter().map(|line| {
            // Colours and the like are for the terminal of whoever started it.
            let printable = line.chars().filter(|c| !c.is_control() || *c == '\t');
            format!("\n    {}", printable.take(LINE_MAX).collect::<String>())
        });
        "it said last:".to_owned() + &shown.collect::<String>()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_last_lines_stay_and_memory_is_bounded() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let (output, ended) = Output::read(reader).expect("a thread");
        for number in 0..20_000 {
            writeln!(writer, "line {number}").expect("it is read");
        }
        write!(writer, "\x1b[31mkey s3cret\x1b[0m\n\n{}", "x".repeat(1000)).expect("it is read");
        drop(writer);
        ended.recv().expect_err("nothing is sent");
        assert!((KEPT..=2 * KEPT).contains(&output.lock().len()));
        let said = output.last_lines("s3cret");
        assert_eq!(said.lines().count(), 1 + LINES_SHOWN, "{said}");
        assert!(said.contains("\n    line 19999\n    [31mkey ***[0m\n    xxx"), "{said}");
        assert!(said.len() < 1000 && !said.contains("line 19989\n"), "{said}");
        assert_eq!(Output::default().last_lines(""), "it said nothing");
    }
}
