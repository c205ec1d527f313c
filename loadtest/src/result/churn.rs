//! What came of the changes under load: what was seen of each, and what that says.

use super::Assertion;
use serde::{Deserialize, Serialize};

/// A change under load and how long it took to be felt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChurnResult {
    pub name: String,
    /// Since the phase's start.
    pub at_s: f64,
    /// How long the lever itself took.
    pub action_ms: f64,
    /// From pulling the lever to the first probe that saw the effect; `None`: not seen in time.
    pub effect_ms: Option<f64>,
    /// From pulling the lever to the first probe that was as before; `None`: not asked for or not seen.
    pub recovered_ms: Option<f64>,
    /// The recovery was asked for.
    #[serde(default)]
    pub recovery: bool,
    /// The first of them before the lever was pulled.
    pub probes: u64,
    /// How long effect and recovery might take.
    #[serde(default)]
    pub within_s: f64,
    /// No effect was expected: every probe had to be as before.
    #[serde(default)]
    pub unharmed: bool,
    /// Why probes ended before `within_s` was over with something still to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<CutShort>,
    /// Why the lever could not be pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it was not done where it need not be: the backend has no such lever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Why what it changed is still changed after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutShort {
    /// By the operator, or because a load generator was lost.
    Stopped,
    /// So long after the lever was pulled; what had not been felt by then may have come later.
    LoadOver { after_s: f64 },
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ChurnVerdict {
    AsExpected,
    /// The target did not do what was expected of it.
    Missed(String),
    /// The change was not made, or nobody could wait for its effect: nothing is known about the target.
    Unknown(String),
    /// The backend has no such lever, and the scenario does without.
    LeftOut(String),
}

impl ChurnResult {
    /// The lever was pulled.
    pub fn was_made(&self) -> bool {
        self.error.is_none() && self.left_out.is_none() && self.probes > 0
    }

    /// How long probes went on after the lever was touched, where they did to their end.
    fn watched_s(&self) -> f64 {
        match self.cut_short {
            Some(CutShort::LoadOver { after_s }) => after_s,
            _ => self.within_s,
        }
    }

    pub fn verdict(&self) -> ChurnVerdict {
        use ChurnVerdict::{AsExpected, LeftOut, Missed, Unknown};
        if let Some(error) = &self.error {
            return Unknown(format!("could not be done: {error}"));
        }
        if let Some(why) = &self.left_out {
            return LeftOut(format!("left out: {why}"));
        }
        if !self.was_made() {
            return Unknown("not made: the run was ended before it was its turn".into());
        }
        let missing = match (self.unharmed, self.effect_ms, self.recovery, self.recovered_ms) {
            (true, Some(ms), ..) => return Missed(format!("was felt after {:.3} s", ms / 1000.0)),
            (true, None, ..) if self.probes < 2 => {
                return Unknown(
                    "no probe was answered while it was watched: a longer phase or `within`".into(),
                );
            }
            (true, None, ..) if self.cut_short == Some(CutShort::Stopped) => {
                return Unknown(format!("the run was ended before the {} s were over", self.within_s));
            }
            (true, None, ..) if self.action_ms > self.watched_s() * 1000.0 => {
                return Unknown(format!(
                    "the lever took {:.1} s and the target was watched for {:.1} s: a longer `within`, or an earlier change",
                    self.action_ms / 1000.0,
                    self.watched_s()
                ));
            }
            (true, None, ..) => return AsExpected,
            (false, None, ..) => "effect",
            (false, Some(_), true, None) => "recovery",
            (false, Some(_), ..) => return AsExpected,
        };
        match self.cut_short {
            None => Missed(format!("{missing} not seen within {} s", self.within_s)),
            Some(CutShort::Stopped) => Unknown(format!("{missing} not seen: the run was ended before")),
            Some(CutShort::LoadOver { after_s }) => Unknown(format!(
                "{missing} not seen in the {after_s:.1} s until the load was over, and it may take {} s: a longer phase, an \
                 earlier change, or a shorter `within`",
                self.within_s
            )),
        }
    }

    /// What the plan expects of the change, as thresholds: nothing where nothing is known.
    pub fn assertions(&self) -> Vec<Assertion> {
        let verdict = self.verdict();
        if !matches!(verdict, ChurnVerdict::AsExpected | ChurnVerdict::Missed(_)) {
            return Vec::new();
        }
        if self.unharmed {
            let found = match verdict {
                ChurnVerdict::Missed(how) => how,
                _ => "not felt".into(),
            };
            return vec![Assertion {
                text: format!("unharmed by {}", self.name),
                found,
                holds: self.effect_ms.is_none(),
            }];
        }
        let within = |what: &str, ms: Option<f64>| Assertion {
            text: format!("{what}.{}<={}s", self.name, self.within_s),
            found: ms.map_or("not seen".into(), |ms| format!("{:.3} s", ms / 1000.0)),
            holds: ms.is_some(),
        };
        let mut assertions = vec![within("effect", self.effect_ms)];
        assertions.extend(self.recovery.then(|| within("recovery", self.recovered_ms)));
        assertions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_change_is_what_was_seen_of_it() {
        let (stopped, over) = (Some(CutShort::Stopped), Some(CutShort::LoadOver { after_s: 0.5 }));
        let no = None::<f64>;
        // What was expected, probes, effect and recovery in ms, what ended them: what is said.
        for (unharmed, recovery, probes, effect, recovered, cut_short, said) in [
            (true, false, 0, no, no, stopped, "unknown: not made"),
            (true, false, 1, no, no, None, "unknown: no probe was answered"),
            (true, false, 1, no, no, stopped, "unknown: no probe was answered"),
            (true, false, 1, no, no, over, "unknown: no probe was answered"),
            (true, false, 9, no, no, None, "as expected"),
            (true, false, 9, no, no, over, "as expected"),
            (true, false, 9, no, no, stopped, "unknown: the run was ended before the 3 s were over"),
            (true, false, 9, Some(7.0), no, None, "missed: was felt after 0.007 s"),
            (true, false, 9, Some(7.0), Some(9.0), stopped, "missed: was felt after 0.007 s"),
            (true, false, 9, Some(7.0), no, over, "missed: was felt after 0.007 s"),
            // Its lever took 0.6 s.
            (true, false, 7, no, no, None, "as expected"),
            (
                true,
                false,
                7,
                no,
                no,
                over,
                "unknown: the lever took 0.6 s and the target was watched for 0.5 s",
            ),
            (false, false, 0, no, no, stopped, "unknown: not made"),
            (false, true, 0, no, no, stopped, "unknown: not made"),
            (false, false, 1, no, no, None, "missed: effect not seen within 3 s"),
            (false, false, 9, no, no, stopped, "unknown: effect not seen: the run was ended"),
            (false, false, 9, no, no, over, "unknown: effect not seen in the 0.5 s"),
            (false, false, 9, Some(7.0), no, None, "as expected"),
            (false, true, 9, no, no, None, "missed: effect not seen within 3 s"),
            (false, true, 9, Some(7.0), no, None, "missed: recovery not seen within 3 s"),
            (false, true, 9, Some(7.0), no, stopped, "unknown: recovery not seen: the run was ended"),
            (false, true, 9, Some(7.0), no, over, "unknown: recovery not seen in the 0.5 s"),
            (false, true, 9, Some(7.0), Some(9.0), None, "as expected"),
            (false, true, 9, Some(7.0), Some(9.0), stopped, "as expected"),
        ] {
            let (effect_ms, recovered_ms) = (effect, recovered);
            let within_s = 3.0;
            let churn = ChurnResult {
                unharmed,
                recovery,
                probes,
                effect_ms,
                recovered_ms,
                cut_short,
                within_s,
                action_ms: if probes == 7 { 600.0 } else { 3.0 },
                ..ChurnResult::default()
            };
            let found = match churn.verdict() {
                ChurnVerdict::AsExpected => "as expected".into(),
                ChurnVerdict::Missed(how) => format!("missed: {how}"),
                ChurnVerdict::Unknown(why) => format!("unknown: {why}"),
                ChurnVerdict::LeftOut(why) => format!("left out: {why}"),
            };
            assert!(found.starts_with(said), "{churn:?}: {found}");
            assert_eq!(churn.assertions().is_empty(), found.starts_with("unknown"), "{churn:?}");
            assert_eq!(churn.was_made(), probes > 0, "{churn:?}");
            // What was not done at all, or need not be, has been seen nothing of.
            let failed = ChurnResult { error: Some("why".into()), ..churn.clone() };
            assert_eq!(failed.verdict(), ChurnVerdict::Unknown("could not be done: why".into()));
            let left_out = ChurnResult { left_out: Some("why".into()), ..churn };
            assert_eq!(left_out.verdict(), ChurnVerdict::LeftOut("left out: why".into()));
            for not_made in [failed, left_out] {
                assert!(!not_made.was_made() && not_made.assertions().is_empty());
            }
        }
    }
}
