//! Faults on purpose: what can go wrong with an answer, how that is written, and which request gets which.
//!
//! Pure: knows no socket and no clock. A fault is a list of parts, `delay=20ms,reset@100`; a rule puts conditions in
//! front, `rate=1%,path=/bytes,truncate@1000`.

use crate::quantity;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What goes wrong with one answer. The default is nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Fault {
    /// Before the answer's first byte.
    pub delay: Duration,
    /// At most this much more, evenly spread.
    pub jitter: Duration,
    /// Instead of the answer the app would give.
    pub status: Option<u16>,
    /// The request's body is read at this many bytes a second.
    pub slow_read: Option<u64>,
    /// The answer's body is written at this many bytes a second.
    pub slow_write: Option<u64>,
    /// Every byte of the body leaves as a chunk and a segment of its own.
    pub bytewise: bool,
    pub ending: Ending,
}

/// How an answer ends. Offsets count bytes of the answer's body as the app made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ending {
    #[default]
    Whole,
    /// The connection is reset (RST): before the answer's first byte without an offset, else behind that many bytes.
    Reset(Option<u64>),
    /// Our direction ends (FIN) behind that many bytes; what the peer still sends is read until it ends, too.
    HalfClose(u64),
    /// Both directions end behind that many bytes, in order, though more was announced.
    Truncate(u64),
    /// The request is read and nothing is ever said.
    Never,
}

impl Ending {
    /// How many bytes of the body leave before it happens.
    pub fn cut(self) -> Option<u64> {
        match self {
            Self::Reset(Some(at)) | Self::HalfClose(at) | Self::Truncate(at) => Some(at),
            Self::Whole | Self::Reset(None) | Self::Never => None,
        }
    }
}

/// Names of what [`Fault`] can hold, for counters; the order is [`Fault::kinds`]'s.
pub const KINDS: [&str; 9] =
    ["delay", "status", "slow-read", "slow-write", "bytewise", "reset", "half-close", "truncate", "never"];

impl Fault {
    /// Which of [`KINDS`] are in this fault.
    pub fn kinds(&self) -> [bool; KINDS.len()] {
        [
            !self.delay.is_zero() || !self.jitter.is_zero(),
            self.status.is_some(),
            self.slow_read.is_some(),
            self.slow_write.is_some(),
            self.bytewise,
            matches!(self.ending, Ending::Reset(_)),
            matches!(self.ending, Ending::HalfClose(_)),
            matches!(self.ending, Ending::Truncate(_)),
            self.ending == Ending::Never,
        ]
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, part: &str) -> Result<(), Mistake> {
        let wrong = |why: &str| Err(Mistake(format!("{part:?}: {why}")));
        let (name, value) = match part.split_once(['=', '@']) {
            Some((name, value)) => (name, Some(value)),
            None => (part, None),
        };
        let at_sign = part.as_bytes().get(name.len()) == Some(&b'@');
        if at_sign != matches!(name, "reset" | "half-close" | "truncate") && value.is_some() {
            return wrong(if at_sign { "is written with =" } else { "is written with @" });
        }
        let duration = || quantity::duration(value.unwrap_or_default()).map_err(Mistake);
        let size = || quantity::bytes(value.unwrap_or_default()).map_err(Mistake);
        let ending = match name {
            "delay" => return duration().map(|value| self.delay = value),
            "jitter" => return duration().map(|value| self.jitter = value),
            "status" => match value.and_then(|v| v.parse().ok()) {
                Some(status @ 200..=599) => {
                    self.status = Some(status);
                    return Ok(());
                }
                _ => return wrong("wants a status of 200 to 599"),
            },
            "slow-read" | "slow-write" => {
                let text = value.unwrap_or_default();
                let rate = quantity::bytes(text.strip_suffix("/s").unwrap_or(text));
                let Some(rate) = rate.ok().filter(|rate| *rate > 0) else {
                    return wrong("wants bytes a second, like 64k/s");
                };
                if name == "slow-read" {
                    self.slow_read = Some(rate)
                } else {
                    self.slow_write = Some(rate)
                }
                return Ok(());
            }
            "bytewise" if value.is_none() => {
                self.bytewise = true;
                return Ok(());
            }
            "never" if value.is_none() => Ending::Never,
            "reset" if value.is_none() => Ending::Reset(None),
            "reset" => Ending::Reset(Some(size()?)),
            "half-close" => Ending::HalfClose(size()?),
            "truncate" => Ending::Truncate(size()?),
            "bytewise" | "never" => return wrong("takes no value"),
            _ => return wrong("is no fault"),
        };
        if self.ending != Ending::Whole {
            return wrong("an answer can end in one way only");
        }
        self.ending = ending;
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let mut fault = Self::default();
        for part in text.split(',').map(str::trim) {
            fault.add(part)?;
        }
        Ok(fault)
    }
}

/// A fault and the requests that get it.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Share of the matching requests, 0 to 1.
    pub rate: f64,
    /// Only requests whose path, as the app sees it, begins so.
    pub path: Option<String>,
    pub fault: Fault,
}

impl FromStr for Rule {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let mut rule = Self { rate: 1.0, path: None, fault: Fault::default() };
        for part in text.split(',').map(str::trim) {
            if let Some(rate) = part.strip_prefix("rate=") {
                rule.rate = quantity::share(rate).map_err(Mistake)?;
            } else if let Some(path) = part.strip_prefix("path=") {
                if !path.starts_with('/') {
                    return Err(Mistake(format!("{part:?}: a path begins with /")));
                }
                rule.path = Some(path.to_owned());
            } else {
                rule.fault.add(part)?;
            }
        }
        if rule.fault.is_none() {
            return Err(Mistake(format!("{text:?} names no fault")));
        }
        Ok(rule)
    }
}

/// The first rule that matches and whose dice fall its way.
pub fn choose(rules: &[Rule], path: &str, dice: &mut fastrand::Rng) -> Fault {
    let hit = rules.iter().find(|rule| {
        rule.path.as_deref().is_none_or(|prefix| path.starts_with(prefix)) && dice.f64() < rule.rate
    });
    hit.map_or_else(Fault::default, |rule| rule.fault)
}

/// Why a fault cannot be understood, and what can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake(String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; a fault is a list of delay=20ms, jitter=10ms, status=503, slow-read=64k/s, slow-write=1k/s, \
             bytewise and one of reset, reset@N, half-close@N, truncate@N, never, behind rate=1% and path=/prefix",
            self.0
        )
    }
}

impl std::error::Error for Mistake {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_part_by_part() {
        let ms = Duration::from_millis;
        let none = Fault::default();
        for (text, fault) in [
            ("delay=20ms", Fault { delay: ms(20), ..none }),
            ("delay=1s,jitter=10ms", Fault { delay: ms(1000), jitter: ms(10), ..none }),
            ("status=503", Fault { status: Some(503), ..none }),
            ("slow-read=64k/s", Fault { slow_read: Some(65536), ..none }),
            ("slow-write=1k", Fault { slow_write: Some(1024), ..none }),
            ("bytewise, reset@100", Fault { bytewise: true, ending: Ending::Reset(Some(100)), ..none }),
            ("reset", Fault { ending: Ending::Reset(None), ..none }),
            ("half-close@0", Fault { ending: Ending::HalfClose(0), ..none }),
            ("truncate@1m", Fault { ending: Ending::Truncate(1 << 20), ..none }),
            ("never", Fault { ending: Ending::Never, ..none }),
        ] {
            assert_eq!(text.parse::<Fault>(), Ok(fault), "{text}");
        }
        for text in [
            "",
            "delay",
            "delay=",
            "delay=5",
            "delay@5ms",
            "reset=5",
            "reset@x",
            "truncate",
            "never=1",
            "bytewise=1",
            "never,reset",
            "status=99",
            "status=600",
            "slow-read=0",
            "slow-read=fast",
            "explode",
            "delay=5ms,",
            "rate=1%",
            "truncate@-1",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text:?} is no fault");
        }
    }

    #[test]
    fn rules_put_conditions_in_front_and_must_name_a_fault() {
        let rule: Rule = "rate=1%,path=/bytes,delay=5ms".parse().expect("a good rule");
        assert_eq!((rule.rate, rule.path.as_deref()), (0.01, Some("/bytes")));
        assert_eq!("never".parse::<Rule>().map(|rule| rule.rate), Ok(1.0));
        for text in ["rate=1%", "rate=101%,never", "rate=-1,never", "rate=x,never", "path=bytes,never", ""] {
            assert!(text.parse::<Rule>().is_err(), "{text:?} is no rule");
        }
        let told = "rate=1%,explode".parse::<Rule>().expect_err("no such fault").to_string();
        assert!(told.contains("\"explode\"") && told.contains("truncate@N"), "{told}");
    }

    #[test]
    fn the_first_matching_rule_is_taken_at_its_rate_and_a_seed_repeats_the_choice() {
        let rules: Vec<Rule> =
            ["path=/a,never", "rate=25%,delay=1ms"].iter().map(|text| text.parse().expect("good")).collect();
        let throw = |path, seed| {
            let mut dice = fastrand::Rng::with_seed(seed);
            (0..10_000).map(|_| choose(&rules, path, &mut dice)).collect::<Vec<_>>()
        };
        assert!(throw("/abc", 1).iter().all(|fault| fault.ending == Ending::Never));
        let hits = throw("/b", 2).iter().filter(|fault| !fault.is_none()).count();
        assert!((2300..2700).contains(&hits), "{hits} of 10000 at 25 %");
        assert_eq!(throw("/b", 3), throw("/b", 3));
        assert_ne!(throw("/b", 3), throw("/b", 4));
    }
}
