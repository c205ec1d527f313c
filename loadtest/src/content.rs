//! What the answer to one of the load's own paths must hold. A status says that somebody answered; only the content says
//! that it was the app, and that all of its answer arrived.
//!
//! Lengths are compared as answers are counted anyway; what is kept of a body is bounded. Knows no socket.

use crate::failure::Failure;
use crate::http1::ProxyError;
use crate::plan::{Class, Plan};
use crate::recorder::Outcome;
use serde::Deserialize;

/// Longest report on an upload that is read, and of a page's end.
const REPORT_BYTES_MAX: usize = 512;
const PAGE_END: &[u8] = b"</html>";

/// What a 2xx must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    Anything,
    /// So many bytes.
    Length(u64),
    /// JSON that says of an upload that so many bytes were received.
    Received(u64),
    /// HTML with its end.
    Page,
}

impl Content {
    /// Of a class's (first) answer. `get` names its size itself, wherever it goes; what else is said of answers is agreed
    /// with the apps of sandboxes only (see [`crate::world`]).
    pub fn of(class: &Class, plan: &Plan) -> Self {
        match *class {
            Class::Get { bytes } => Self::Length(bytes),
            Class::Upload { bytes } if plan.target.domain.is_some() => Self::Received(bytes),
            Class::Page { .. } if plan.target.domain.is_some() => Self::Page,
            _ => Self::Anything,
        }
    }
}

/// One answer's body against what it must hold.
#[derive(Debug)]
pub struct Check {
    content: Content,
    bytes: u64,
    /// The report's beginning, the page's end.
    kept: Vec<u8>,
}

#[derive(Deserialize)]
struct Report {
    bytes: u64,
}

impl Check {
    pub fn new(content: Content) -> Self {
        Self { content, bytes: 0, kept: Vec::new() }
    }

    /// The next piece of the body.
    pub fn see(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        match self.content {
            Content::Anything | Content::Length(_) => {}
            Content::Received(_) => {
                let room = REPORT_BYTES_MAX - self.kept.len();
                self.kept.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Content::Page => {
                self.kept.extend_from_slice(&piece[piece.len().saturating_sub(REPORT_BYTES_MAX)..]);
                self.kept.drain(..self.kept.len().saturating_sub(REPORT_BYTES_MAX));
            }
        }
    }

    fn holds(&self) -> bool {
        match self.content {
            Content::Anything => true,
            Content::Length(bytes) => self.bytes == bytes,
            Content::Received(bytes) => {
                serde_json::from_slice::<Report>(&self.kept).is_ok_and(|report| report.bytes == bytes)
            }
            Content::Page => self.kept.trim_ascii_end().ends_with(PAGE_END),
        }
    }

    /// How the exchange ended: an answer that is no 2xx has a content of its own.
    pub fn outcome(&self, status: u16, error: Option<Box<ProxyError>>) -> Outcome {
        match status {
            200..=299 if !self.holds() => Outcome::Wrong { status, failure: Failure::WrongContent },
            _ => Outcome::Answered { status, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(content: Content, body: &[u8], step: usize) -> bool {
        let mut check = Check::new(content);
        body.chunks(step).for_each(|piece| check.see(piece));
        matches!(check.outcome(200, None), Outcome::Answered { .. })
    }

    #[test]
    fn a_body_is_what_was_asked_for_whatever_its_pieces() {
        let page = [vec![b'.'; 2000], b"</html>\n".to_vec()].concat();
        for (content, good, bad) in [
            (Content::Length(4), &b"abcd"[..], [&b"abc"[..], b"abcde", b""]),
            (Content::Received(12), br#"{"bytes":12,"sha256":"x"}"#, [b"", br#"{"bytes":11}"#, b"12"]),
            (Content::Page, &page, [b"", &page[..2000], &page[..2006]]),
        ] {
            for step in [1, 7, 4096] {
                assert!(holds(content, good, step), "{content:?} by {step}");
                for body in bad {
                    assert!(!holds(content, body, step), "{content:?} {body:?} by {step}");
                }
            }
        }
        assert!(holds(Content::Anything, b"", 1));
    }

    #[test]
    fn what_is_kept_is_bounded_and_an_error_is_no_wrong_content() {
        let mut check = Check::new(Content::Received(1));
        check.see(&[b' '; 100_000]);
        assert_eq!(check.kept.len(), REPORT_BYTES_MAX);
        assert!(matches!(check.outcome(502, None), Outcome::Answered { status: 502, .. }));
    }
}
