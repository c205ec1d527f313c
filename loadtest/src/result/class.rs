//! What requests of one kind came to, and idle connections.

use super::Hist;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One class of requests in one phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClassResult {
    /// Arrivals of the plan that fell into the phase.
    pub planned: u64,
    pub sent: u64,
    /// Ended as they should: 2xx (or 101) for good credentials; 401, 403 or a redirect to a login for bad ones.
    pub ok: u64,
    pub failed: u64,
    /// Of `ok`: refusals of requests that had to be refused.
    pub refused_rightly: u64,
    /// Should have been sent and were not when the phase ended: no connection was free. In `response`, at their age.
    pub unsent: u64,
    /// Sent and without an answer when the run's grace was over; of sessions: with something missing that was due. In
    /// `response`, at their age, if what that measures was missing.
    pub unfinished: u64,
    /// Of `ok`: sessions that were ended early because the run was over; up to then nothing was missing.
    #[serde(default)]
    pub shortened: u64,
    /// Sent a second time, on a new connection, as the kept one turned out to be closed.
    #[serde(default)]
    pub resent: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: Vec<ErrorCount>,
    /// From the first byte sent to the last received, of what ended as it should and of what was given up (a timeout, not
    /// finished): a fast failure is no fast answer, and neither is a fast refusal, however right. Sessions: a page to its last asset, a recording to its last
    /// answer (none if it was shortened), an event stream to its first event, a WebSocket to its handshake's end.
    pub service: Hist,
    /// From when it should have been sent to the last byte received, of the same ones and of those never sent.
    pub response: Hist,
    /// Further measures: `connect`, `first_byte`, `event_gap`, `ws_connect`, `ws_echo`, `asset`, `har_request`, `refused`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Hist>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ErrorCount {
    /// The proxy's own code (`X-Preview-Error-Code`), `HTTP 502`, or what happened to the connection: `connect refused`,
    /// `reset`, `timeout`, `truncated`, `malformed`, `let in` (a bad credential was taken).
    pub code: String,
    /// Who says so: the proxy's `X-Preview-Error-Source`, or `answer`, `network`, `load generator`.
    pub source: String,
    pub count: u64,
}

impl ErrorCount {
    /// Kinds kept apart; what comes beyond is `others`: names may be made up by the other side.
    const KINDS_MAX: usize = 64;

    /// Adds to the list's entry of this kind.
    pub fn count(list: &mut Vec<Self>, code: &str, source: &str, count: u64) {
        match list.iter().position(|error| error.code == code && error.source == source) {
            Some(known) => list[known].count += count,
            None if list.len() < Self::KINDS_MAX || code == "others" => {
                list.push(Self { code: code.into(), source: source.into(), count });
            }
            None => Self::count(list, "others", "answer", count),
        }
    }
}

/// Connections that were opened and held without traffic.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IdleResult {
    pub planned: u64,
    /// Open at the phase's end.
    pub open: u64,
    pub failed: u64,
    /// Begun, and neither open nor failed at the phase's end.
    #[serde(default)]
    pub unfinished: u64,
    /// Cut by the other side while idle.
    pub lost: u64,
    /// Opened by a later attempt than the first, after a cut or a failure.
    #[serde(default)]
    pub reopened: u64,
    pub connects_per_s: f64,
    pub connect: Hist,
    pub errors: Vec<ErrorCount>,
}

impl IdleResult {
    /// Opened and not cut.
    pub fn well(&self) -> u64 {
        self.connect.count().saturating_sub(self.lost)
    }

    /// Did not open, or did not stay open.
    pub fn failures(&self) -> u64 {
        self.failed + self.lost
    }

    /// Adds what another thread or load generator held.
    pub fn merge(&mut self, other: &Self) {
        self.planned += other.planned;
        self.open += other.open;
        self.failed += other.failed;
        self.unfinished += other.unfinished;
        self.lost += other.lost;
        self.reopened += other.reopened;
        self.connects_per_s += other.connects_per_s;
        self.connect.merge(&other.connect);
        for error in &other.errors {
            ErrorCount::count(&mut self.errors, &error.code, &error.source, error.count);
        }
    }
}

/// The measure of refusals that were right: from when such a request should have been sent to the end of its answer.
pub const REFUSED: &str = "refused";

/// The measure of a recording's single requests: from when each was due to the end of its answer.
pub const HAR_REQUEST: &str = "har_request";

impl ClassResult {
    /// The times that tell how fast the target answers: of a recording those of its requests, for its sessions' have the
    /// recorded pauses in them.
    pub fn pace(&self) -> &Hist {
        self.extra.get(HAR_REQUEST).unwrap_or(&self.response)
    }

    /// Requests that came to an end, well or not.
    pub fn ended(&self) -> u64 {
        self.ok + self.failed
    }

    pub fn count_error(&mut self, code: &str, source: &str, count: u64) {
        ErrorCount::count(&mut self.errors, code, source, count);
    }

    /// Adds what another thread or load generator saw of the same class.
    pub fn merge(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.refused_rightly += other.refused_rightly;
        self.unsent += other.unsent;
        self.unfinished += other.unfinished;
        self.shortened += other.shortened;
        self.resent += other.resent;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for error in &other.errors {
            self.count_error(&error.code, &error.source, error.count);
        }
        self.service.merge(&other.service);
        self.response.merge(&other.response);
        for (name, hist) in &other.extra {
            self.extra.entry(name.clone()).or_default().merge(hist);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_classes_add_up() {
        let one = |code: &str| {
            let mut class = ClassResult { planned: 2, sent: 2, ok: 1, failed: 1, ..ClassResult::default() };
            class.statuses.insert(200, 1);
            class.count_error(code, "network", 1);
            class.service.record_ns(1000);
            class.extra.entry("connect".into()).or_default().record_ns(5000);
            class
        };
        let mut sum = one("reset");
        sum.merge(&one("reset"));
        sum.merge(&one("timeout"));
        assert_eq!((sum.planned, sum.ended(), sum.statuses[&200], sum.service.count()), (6, 6, 3, 3));
        assert_eq!(
            sum.errors.iter().map(|e| (e.code.as_str(), e.count)).collect::<Vec<_>>(),
            [("reset", 2), ("timeout", 1)]
        );
        assert_eq!(sum.extra["connect"].count(), 3);
    }
}
