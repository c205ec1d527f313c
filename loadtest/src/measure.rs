//! What can be said about a run in one number: its name, its unit and which way is better.
//!
//! Thresholds, comparisons and summaries all read results through here, so `p99` means the same everywhere: the response
//! time, of all classes together, over all phases but warm-ups; of a search for the highest rate, over the step of the
//! rate that was found. Pure.

mod text;
mod totals;

pub use text::{bytes_text, number_text, quantile_text, share_text, time_text};
pub use totals::Totals;

use crate::plan::{Class, Plan};
use crate::result::{ClassResult, HAR_REQUEST, Hist, REFUSED};
use std::fmt;
use totals::{same_name, share};

/// A number about a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Measure {
    /// Of one class of requests; `None`: of all.
    pub class: Option<String>,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// A time of requests: `response`, `service`, or a further one such as `connect`.
    Time {
        of: String,
        at: Statistic,
    },
    /// How late requests left by the load generator's own doing.
    Lag(Statistic),
    Errors,
    /// Requests that ended, per second; of a search the rate it found.
    Rate,
    /// CPU of the proxy per answer.
    Cpu,
    /// System calls of the proxy per answer.
    Calls,
    /// Of them: `io_uring_enter`.
    Enters,
    /// Answers per second one core of the proxy would do.
    RatePerCore,
    /// Highest resident memory of the proxy.
    Memory,
    /// Share of body bytes that stayed in the kernel.
    Spliced,
    Count(Count),
    /// Idle WebSockets that did not open, or have no answer to their handshake at the end.
    IdleFailed,
    /// Idle WebSockets the other side ended.
    IdleCut,
    /// From a change under load to the first probe that felt it: of the changes of this name, or of all; the longest.
    Effect(Option<String>),
    /// From a change under load to the first probe that was as before again; the longest.
    Recovery(Option<String>),
    /// 1 when the load generator kept up, else 0.
    Valid,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Statistic {
    /// 0 to 1.
    Quantile(f64),
    Mean,
    Min,
    Max,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    Sent,
    Ok,
    Failed,
    Unsent,
    Unfinished,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Microseconds.
    Time,
    /// 0 to 1.
    Share,
    PerSecond,
    Bytes,
    Count,
}

/// Times of requests. Not all are known of each class: [`Class::has_time`].
const TIMES: [&str; 10] = [
    RESPONSE,
    SERVICE,
    "connect",
    "first_byte",
    "event_gap",
    "ws_connect",
    "ws_echo",
    "asset",
    HAR_REQUEST,
    REFUSED,
];
const RESPONSE: &str = "response";
const SERVICE: &str = "service";

/// What measures can be named, for people who mistyped one.
pub const NAMES: &str = "p50 (any percentile), mean, min, max, err, rate, cpu_us, calls, enters, rps_core, mem, spliced, \
                         sent, ok, failed, unsent, unfinished, idle.failed, idle.cut, effect, recovery, \
                         effect.NAME and recovery.NAME of a change, valid; with service., connect., first_byte., event_gap., \
                         ws_connect., ws_echo., asset., har_request., refused. or lag. in front of a percentile, and a class with / in \
                         front of all: get/service.p99";

impl Measure {
    pub fn of_all(what: What) -> Self {
        Self { class: None, what }
    }

    /// The response time at a quantile.
    pub fn response(quantile: f64) -> Self {
        Self::of_all(What::Time { of: RESPONSE.into(), at: Statistic::Quantile(quantile) })
    }

    /// # Errors
    /// A sentence that says what is wrong and what there is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is no measure; there are {NAMES}");
        // A change's name is whatever its scenario says.
        for (prefix, what) in [("effect.", What::Effect as fn(_) -> _), ("recovery.", What::Recovery)] {
            if let Some(name) = text.strip_prefix(prefix).filter(|name| !name.is_empty()) {
                return Ok(Self::of_all(what(Some(name.to_owned()))));
            }
        }
        let (class, name) = match text.rsplit_once('/') {
            Some((class, name)) if !class.is_empty() => (Some(class.to_owned()), name),
            Some(_) => return Err(format!("`{text}`: the class in front of / is missing")),
            None => (None, text),
        };
        let what = match name {
            "err" => What::Errors,
            "rate" => What::Rate,
            "cpu_us" => What::Cpu,
            "calls" => What::Calls,
            "enters" => What::Enters,
            "rps_core" => What::RatePerCore,
            "mem" => What::Memory,
            "spliced" => What::Spliced,
            "valid" => What::Valid,
            "sent" => What::Count(Count::Sent),
            "ok" => What::Count(Count::Ok),
            "failed" => What::Count(Count::Failed),
            "unsent" => What::Count(Count::Unsent),
            "unfinished" => What::Count(Count::Unfinished),
            "idle.failed" => What::IdleFailed,
            "idle.cut" => What::IdleCut,
            "effect" => What::Effect(None),
            "recovery" => What::Recovery(None),
            _ => {
                // The first dot: `p99.9` has one of its own.
                let (of, at) = match name.split_once('.') {
                    Some((of, at)) if Statistic::parse(name).is_none() => (of, at),
                    _ => ("response", name),
                };
                let at = Statistic::parse(at).ok_or_else(unknown)?;
                match of {
                    "lag" => What::Lag(at),
                    of if TIMES.contains(&of) => What::Time { of: of.to_owned(), at },
                    _ => return Err(unknown()),
                }
            }
        };
        let of_the_whole = matches!(
            what,
            What::Lag(_)
                | What::Cpu
                | What::Calls
                | What::Enters
                | What::RatePerCore
                | What::Memory
                | What::Spliced
                | What::IdleFailed
                | What::IdleCut
                | What::Effect(_)
                | What::Recovery(_)
                | What::Valid
        );
        if class.is_some() && of_the_whole {
            return Err(format!("`{text}`: `{name}` is known for the whole run only, not for a class"));
        }
        Ok(Self { class, what })
    }

    /// The value in the unit's base. `None`: the run does not know it.
    pub fn value(&self, totals: &Totals) -> Option<f64> {
        let class = match &self.class {
            None => &totals.all,
            Some(name) => totals.class(name)?,
        };
        match &self.what {
            What::Time { of, at } => {
                let hist = match of.as_str() {
                    RESPONSE => &class.response,
                    SERVICE => &class.service,
                    of => class.extra.get(of)?,
                };
                at.of(hist)
            }
            What::Lag(at) => at.of(&totals.send_lag),
            What::Errors if self.class.is_none() => totals.errors(),
            What::Errors => Totals::error_share(class),
            // What a search found is the rate that was sent, not what of it had ended when the step did.
            What::Rate if self.class.is_none() && totals.found_rate.is_some() => totals.found_rate,
            What::Rate => share(class.ok as f64, totals.duration_s),
            What::Cpu => totals.cpu_us(),
            What::Calls => totals.calls(),
            What::Enters => totals.enters(),
            What::RatePerCore => totals.cpu_us().filter(|us| *us > 0.0).map(|us| 1e6 / us),
            What::Memory => totals.memory_max_bytes.map(|bytes| bytes as f64),
            What::Spliced => totals.spliced_share(),
            What::Count(count) if self.class.is_none() => Some(totals.count(*count) as f64),
            What::Count(count) => Some(count.of(class) as f64),
            What::IdleFailed => totals.idle.as_ref().map(|idle| (idle.failed + idle.unfinished) as f64),
            What::IdleCut => totals.idle.as_ref().map(|idle| idle.lost as f64),
            What::Effect(name) => totals.longest(name.as_deref(), false),
            What::Recovery(name) => totals.longest(name.as_deref(), true),
            What::Valid => Some(f64::from(u8::from(totals.valid))),
        }
    }

    /// Why a run of this plan, so observed, cannot know it; to be told before it begins.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn foresee(&self, plan: &Plan, watched: &Watched) -> Result<(), String> {
        let judged = plan.phases.iter().filter(|phase| !phase.warmup);
        let sent: Vec<&Class> = judged.flat_map(|phase| &phase.mix).map(|(class, _)| class).collect();
        let classes: Vec<Class> = plan.classes().into_iter().filter(|class| sent.contains(&class)).collect();
        let meant: Vec<&Class> = match &self.class {
            None => classes.iter().collect(),
            Some(name) => {
                let names: Vec<String> = classes.iter().map(ToString::to_string).collect();
                let place = class_named(name, &names).ok_or_else(|| no_class(name, &names))?;
                vec![&classes[place]]
            }
        };
        let idle = plan.phases.iter().any(|phase| phase.idle.is_some());
        let churn = || plan.phases.iter().flat_map(|phase| &phase.churn);
        let need = |is_there: bool, remedy: &str| match is_there {
            true => Ok(()),
            false => Err(remedy.to_owned()),
        };
        match &self.what {
            What::Time { of, .. } if of == REFUSED => {
                need(plan.workload.bad > 0.0, "this load has no bad credentials: --bad-token")
            }
            What::Time { of, .. } => need(
                meant.iter().any(|class| class.has_time(of)),
                &format!("no request of this load has a time `{of}`"),
            ),
            What::Cpu | What::RatePerCore | What::Memory => {
                need(watched.process, "the proxy's process is not watched: --proxy-pid, or --start")
            }
            What::Calls | What::Enters => need(watched.calls, "system calls are not counted: --count-calls"),
            What::Spliced => {
                need(watched.counters, "the proxy's counters are not read: --metrics-url, or --start")
            }
            What::IdleFailed | What::IdleCut => {
                need(idle, "this load holds no idle WebSockets: --idle, or a phase with `idle`")
            }
            What::Effect(None) | What::Recovery(None) => {
                need(churn().next().is_some(), "nothing changes under this load")
            }
            What::Effect(Some(name)) | What::Recovery(Some(name)) => {
                let names: Vec<&str> = churn().map(|churn| churn.name.as_str()).collect();
                let there = if names.is_empty() { "none".into() } else { names.join(", ") };
                need(
                    names.iter().any(|known| same_name(name, known)),
                    &format!("no change under this load is called `{name}`; there are {there}"),
                )
            }
            What::Lag(_) | What::Errors | What::Rate | What::Count(_) | What::Valid => Ok(()),
        }
    }

    pub fn unit(&self) -> Unit {
        match self.what {
            What::Time { .. } | What::Lag(_) | What::Cpu | What::Effect(_) | What::Recovery(_) => Unit::Time,
            What::Errors | What::Spliced => Unit::Share,
            What::Rate | What::RatePerCore => Unit::PerSecond,
            What::Memory => Unit::Bytes,
            What::Count(_) | What::IdleFailed | What::IdleCut | What::Valid | What::Calls | What::Enters => {
                Unit::Count
            }
        }
    }

    /// Whether a larger value is the better one.
    pub fn more_is_better(&self) -> bool {
        matches!(
            self.what,
            What::Rate
                | What::RatePerCore
                | What::Spliced
                | What::Valid
                | What::Count(Count::Ok | Count::Sent)
        )
    }
}

/// What is looked at besides the load.
#[derive(Clone, Copy, Default, Debug)]
pub struct Watched {
    /// The proxy's process.
    pub process: bool,
    /// Its system calls.
    pub calls: bool,
    /// Its own counters.
    pub counters: bool,
}

/// Which of the classes' names is meant: that very one; one written in another way (`get` is `get:1k`); or the only one of
/// its kind.
pub(crate) fn class_named(name: &str, names: &[impl AsRef<str>]) -> Option<usize> {
    let place = |name: &str| names.iter().position(|known| known.as_ref() == name);
    let of_kind = |known: &str| known.split_once(':').is_some_and(|(kind, _)| kind == name);
    let only = || {
        let mut places = (0..names.len()).filter(|n| of_kind(names[*n].as_ref()));
        places.next().filter(|_| places.next().is_none())
    };
    let written = || place(&name.parse::<Class>().ok()?.to_string());
    place(name).or_else(written).or_else(only)
}

/// That none of them is meant.
pub(crate) fn no_class(name: &str, names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    format!("no class `{name}`; there are {}", names.join(", "))
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(class) = &self.class {
            write!(f, "{class}/")?;
        }
        match &self.what {
            What::Time { of, at } if of == RESPONSE => at.fmt(f),
            What::Time { of, at } => write!(f, "{of}.{at}"),
            What::Lag(at) => write!(f, "lag.{at}"),
            What::Errors => f.write_str("err"),
            What::Rate => f.write_str("rate"),
            What::Cpu => f.write_str("cpu_us"),
            What::Calls => f.write_str("calls"),
            What::Enters => f.write_str("enters"),
            What::RatePerCore => f.write_str("rps_core"),
            What::Memory => f.write_str("mem"),
            What::Spliced => f.write_str("spliced"),
            What::Count(count) => f.write_str(count.as_str()),
            What::IdleFailed => f.write_str("idle.failed"),
            What::IdleCut => f.write_str("idle.cut"),
            What::Effect(name) => changed(f, "effect", name.as_deref()),
            What::Recovery(name) => changed(f, "recovery", name.as_deref()),
            What::Valid => f.write_str("valid"),
        }
    }
}

fn changed(f: &mut fmt::Formatter<'_>, what: &str, name: Option<&str>) -> fmt::Result {
    f.write_str(what)?;
    name.map_or(Ok(()), |name| write!(f, ".{name}"))
}

impl Statistic {
    /// `p99`, `p99.9`, `p999` (which is 99.9 in the habit of many tools), `mean`, `min`, `max`.
    fn parse(text: &str) -> Option<Self> {
        let percent = match text {
            "mean" => return Some(Self::Mean),
            "min" => return Some(Self::Min),
            "max" => return Some(Self::Max),
            _ => text.strip_prefix('p')?,
        };
        let plain = !percent.is_empty() && percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: f64 = percent.parse().ok().filter(|_| plain)?;
        match number {
            _ if number <= 100.0 => Some(Self::Quantile(number / 100.0)),
            _ if percent.len() > 2 && percent.bytes().all(|b| b == b'9') => {
                Some(Self::Quantile(number / 10f64.powi(percent.len() as i32)))
            }
            _ => None,
        }
    }

    fn of(self, hist: &Hist) -> Option<f64> {
        let histogram = hist.histogram();
        (!hist.is_empty()).then(|| match self {
            Self::Quantile(quantile) => hist.quantile_us(quantile),
            Self::Mean => histogram.mean() / 1000.0,
            Self::Min => histogram.min() as f64 / 1000.0,
            Self::Max => hist.max_ns() as f64 / 1000.0,
        })
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Rounded: 0.999 * 100 is not quite 99.9.
            Self::Quantile(quantile) => write!(f, "p{}", (quantile * 1e8).round() / 1e6),
            Self::Mean => f.write_str("mean"),
            Self::Min => f.write_str("min"),
            Self::Max => f.write_str("max"),
        }
    }
}

impl Count {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unsent => "unsent",
            Self::Unfinished => "unfinished",
        }
    }

    fn of(self, class: &ClassResult) -> u64 {
        match self {
            Self::Sent => class.sent,
            Self::Ok => class.ok,
            Self::Failed => class.failed,
            Self::Unsent => class.unsent,
            Self::Unfinished => class.unfinished,
        }
    }

    /// Idle WebSockets with the requests of all classes.
    fn of_all(self, totals: &Totals) -> u64 {
        let idle = totals.idle.as_ref().map_or(0, |idle| match self {
            Self::Sent => idle.well() + idle.failures() + idle.unfinished,
            Self::Ok => idle.well(),
            Self::Failed => idle.failures(),
            Self::Unsent => 0,
            Self::Unfinished => idle.unfinished,
        });
        self.of(&totals.all) + idle
    }
}

impl Unit {
    /// A value as people read it, three digits or so.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Time => time_text(value),
            Self::Share => share_text(value),
            Self::PerSecond => format!("{}/s", number_text(value)),
            Self::Bytes => bytes_text(value),
            Self::Count => number_text(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for (text, canonical) in [
            ("p99", "p99"),
            ("p99.9", "p99.9"),
            ("p999", "p99.9"),
            ("p9999", "p99.99"),
            ("p0", "p0"),
            ("p100", "p100"),
            ("service.p50", "service.p50"),
            ("connect.mean", "connect.mean"),
            ("lag.p99", "lag.p99"),
            ("get:1k/p99", "get:1k/p99"),
            ("a/b/ws_echo.p99.99", "a/b/ws_echo.p99.99"),
            ("err", "err"),
            ("cpu_us", "cpu_us"),
            ("calls", "calls"),
            ("enters", "enters"),
            ("spliced", "spliced"),
            ("idle.failed", "idle.failed"),
            ("idle.cut", "idle.cut"),
            ("effect", "effect"),
            ("effect.a/b. c", "effect.a/b. c"),
            ("recovery.Redis dies", "recovery.Redis dies"),
        ] {
            assert_eq!(
                Measure::parse(text).map(|measure| measure.to_string()),
                Ok(canonical.into()),
                "{text}"
            );
        }
        for text in [
            "",
            "p",
            "p101",
            "p998",
            "p-1",
            "p1e1",
            "p99x",
            "latency",
            "/p99",
            ".p99",
            "get/",
            "get/cpu_us",
            "get/enters",
            "get/idle.cut",
            "idle.open",
            "get/effect",
            "effect.",
            "service.",
        ] {
            assert!(Measure::parse(text).is_err(), "{text:?}");
        }
    }
}
