//! What one thread counts: totals by phase and class, and the running second.

use crate::failure::Failure;
use crate::http1::ProxyError;
use crate::result::{ClassResult, ErrorCount, HEAT_BUCKETS, Hist, REFUSED, heat_bucket};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A request to be sent: when, of which class.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub phase: usize,
    pub class: usize,
    /// When the plan has it. Response time counts from here.
    pub intended: Instant,
}

/// How an exchange ended.
pub enum Outcome {
    Answered {
        status: u16,
        error: Option<Box<ProxyError>>,
    },
    /// Answered as it should be, whatever that status means elsewhere.
    Expected {
        status: u16,
    },
    /// Answered, but not with what was asked for.
    Wrong {
        status: u16,
        failure: Failure,
    },
    Failed(Failure),
}

/// Since the last report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Interval {
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    pub bytes_down: u64,
    /// Echoes, events, and what else a session had answered beside its first request: more than requests, not requests.
    pub messages: u64,
    pub heat: Vec<u64>,
    pub response: Hist,
    pub errors: Vec<ErrorCount>,
}

pub struct Recorder {
    phases: Vec<Vec<ClassResult>>,
    lag: Vec<Hist>,
    interval: Interval,
}

impl Recorder {
    pub fn new(phases: usize, classes: usize) -> Self {
        Self {
            phases: vec![vec![ClassResult::default(); classes]; phases],
            lag: vec![Hist::default(); phases],
            interval: Self::interval(),
        }
    }

    fn interval() -> Interval {
        Interval { heat: vec![0; HEAT_BUCKETS], ..Interval::default() }
    }

    fn class(&mut self, arrival: &Arrival) -> &mut ClassResult {
        &mut self.phases[arrival.phase][arrival.class]
    }

    /// A request is about to be sent. `lag`: how late for no other reason than this thread.
    pub fn sent(&mut self, arrival: &Arrival, lag: Duration) {
        self.interval.sent += 1;
        self.lag[arrival.phase].record_ns(nanos(lag));
        let class = self.class(arrival);
        class.planned += 1;
        class.sent += 1;
    }

    /// The plan had it and it was not sent.
    pub fn unsent(&mut self, arrival: &Arrival, now: Instant) {
        let class = self.class(arrival);
        class.planned += 1;
        class.unsent += 1;
        class.response.record_ns(nanos(now.saturating_duration_since(arrival.intended)));
    }

    /// Was sent and has no answer, or not all of one. `timed`: what its class's times measure has come, and is told.
    pub fn unfinished(&mut self, arrival: &Arrival, sent_at: Instant, timed: bool, now: Instant) {
        let class = self.class(arrival);
        class.unfinished += 1;
        if timed {
            return;
        }
        class.service.record_ns(nanos(now.saturating_duration_since(sent_at)));
        class.response.record_ns(nanos(now.saturating_duration_since(arrival.intended)));
    }

    /// The times of one that ended as it should, or was given up: that one's would have been longer still. Other failures
    /// have none, for a fast failure is no fast answer.
    pub fn timed(&mut self, arrival: &Arrival, sent_at: Instant, ended_at: Instant) {
        let response = nanos(ended_at.saturating_duration_since(arrival.intended));
        self.interval.heat[heat_bucket(response)] += 1;
        self.interval.response.record_ns(response);
        let class = self.class(arrival);
        class.service.record_ns(nanos(ended_at.saturating_duration_since(sent_at)));
        class.response.record_ns(response);
    }

    /// How one ended, and from when to when it took if that is not told already. `refused`: its credential was bad, so 401,
    /// 403 or a redirect to a login is right. Whether it had what it asked for.
    pub fn ended(
        &mut self,
        arrival: &Arrival,
        outcome: Outcome,
        refused: bool,
        took: Option<(Instant, Instant)>,
    ) -> bool {
        let given_up = matches!(&outcome, Outcome::Failed(failure) if failure.is_timeout());
        let verdict = match outcome {
            Outcome::Failed(failure) => Err((failure.code().to_owned(), failure.source().to_owned())),
            Outcome::Wrong { status, failure } => {
                *self.class(arrival).statuses.entry(status).or_default() += 1;
                // What a bad credential got matters more than what was wrong with it.
                let named = Err((failure.code().to_owned(), failure.source().to_owned()));
                judge(status, None, refused).and(named)
            }
            Outcome::Expected { status } => {
                *self.class(arrival).statuses.entry(status).or_default() += 1;
                Ok(())
            }
            Outcome::Answered { status, error } => {
                *self.class(arrival).statuses.entry(status).or_default() += 1;
                judge(status, error, refused)
            }
        };
        let answered = verdict.is_ok() && !refused;
        match took {
            Some((sent_at, ended_at)) if given_up || answered => self.timed(arrival, sent_at, ended_at),
            // Who checks a credential and stops there is done sooner than who goes on.
            Some((_, ended_at)) if verdict.is_ok() => {
                self.extra(arrival, REFUSED, ended_at.saturating_duration_since(arrival.intended));
            }
            _ => {}
        }
        match &verdict {
            Ok(()) => self.interval.ok += 1,
            Err((code, source)) => {
                self.interval.failed += 1;
                ErrorCount::count(&mut self.interval.errors, code, source, 1);
            }
        }
        let class = self.class(arrival);
        match verdict {
            Ok(()) => {
                class.ok += 1;
                class.refused_rightly += u64::from(refused);
            }
            Err((code, source)) => {
                class.failed += 1;
                class.count_error(&code, &source, 1);
            }
        }
        answered
    }

    pub fn moved(&mut self, arrival: &Arrival, up: u64, down: u64) {
        self.interval.bytes_down += down;
        let class = self.class(arrival);
        class.bytes_up += up;
        class.bytes_down += down;
    }

    /// A session was ended with the run; up to then nothing was missing.
    pub fn shortened(&mut self, arrival: &Arrival) {
        self.class(arrival).shortened += 1;
    }

    /// A message of a session is about to be sent, so much later than planned for no other reason than this thread.
    pub fn late(&mut self, arrival: &Arrival, lag: Duration) {
        self.lag[arrival.phase].record_ns(nanos(lag));
    }

    /// A kept connection was found closed and the request was sent again on a new one.
    pub fn resent(&mut self, arrival: &Arrival) {
        self.class(arrival).resent += 1;
    }

    /// A further measure of the class.
    pub fn extra(&mut self, arrival: &Arrival, name: &str, time: Duration) {
        let extra = &mut self.class(arrival).extra;
        match extra.get_mut(name) {
            Some(hist) => hist.record_ns(nanos(time)),
            None => extra.entry(name.to_owned()).or_default().record_ns(nanos(time)),
        }
    }

    /// An echo or event arrived.
    pub fn message(&mut self, arrival: &Arrival, name: &str, time: Duration) {
        self.one_more();
        self.extra(arrival, name, time);
    }

    /// A session had one more thing come to its end, well or not: it was work for the target.
    pub fn one_more(&mut self) {
        self.interval.messages += 1;
    }

    /// The running second's figures; a new one begins.
    pub fn take_interval(&mut self) -> Interval {
        std::mem::replace(&mut self.interval, Self::interval())
    }

    /// Everything, by phase and class, and by phase the send lag.
    pub fn finish(self) -> (Vec<Vec<ClassResult>>, Vec<Hist>) {
        (self.phases, self.lag)
    }
}

/// Errors are named by the proxy if it does, else by the status.
fn judge(status: u16, error: Option<Box<ProxyError>>, refused: bool) -> Result<(), (String, String)> {
    let turned_away = matches!(status, 401 | 403 | 302 | 307);
    match (refused, status) {
        (true, _) if turned_away => Ok(()),
        (true, 101 | 200..=299) => Err(("let in".into(), "answer".into())),
        (false, 101 | 200..=299) => Ok(()),
        _ => Err(match error {
            Some(error) => (error.code, error.source),
            None => (format!("HTTP {status}"), "answer".into()),
        }),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_credential_must_be_refused_and_a_good_one_must_not() {
        let code = |status, refused| judge(status, None, refused).map_err(|(code, _)| code);
        assert_eq!(
            (code(200, false), code(101, false), code(401, true), code(307, true)),
            (Ok(()), Ok(()), Ok(()), Ok(()))
        );
        assert_eq!(code(200, true), Err("let in".into()));
        assert_eq!(code(401, false), Err("HTTP 401".into()));
        assert_eq!(code(502, true), Err("HTTP 502".into()), "a failure is no refusal");
        let named = Some(Box::new(ProxyError { code: "RUNNER_DOWN".into(), source: "runner".into() }));
        assert_eq!(judge(502, named, false), Err(("RUNNER_DOWN".into(), "runner".into())));
    }

    #[test]
    fn a_right_refusal_is_ok_and_its_time_is_no_answer_s() {
        let mut recorder = Recorder::new(1, 1);
        let intended = Instant::now();
        let arrival = Arrival { phase: 0, class: 0, intended };
        let took = |ms| Some((intended, intended + Duration::from_millis(ms)));
        let mut end = |status, bad, ms| {
            recorder.sent(&arrival, Duration::ZERO);
            recorder.ended(&arrival, Outcome::Answered { status, error: None }, bad, took(ms))
        };
        assert!(end(200, false, 200));
        assert!(!end(401, true, 1) && !end(401, false, 1) && !end(200, true, 1));
        let interval = recorder.take_interval();
        assert_eq!((interval.response.count(), interval.heat.iter().sum::<u64>()), (1, 1));
        let (phases, _) = recorder.finish();
        let class = &phases[0][0];
        assert_eq!((class.ok, class.refused_rightly, class.failed), (2, 1, 2));
        assert_eq!((class.response.count(), class.service.count(), class.extra[REFUSED].count()), (1, 1, 1));
        assert!(
            class.response.quantile_us(0.0) > 190_000.0 && class.extra[REFUSED].quantile_us(1.0) < 1_100.0
        );
    }
}
