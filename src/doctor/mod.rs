//! `sandgate doctor`: does this machine, this configuration and what it names fit together? Reads what `serve` reads,
//! asks what `serve` will ask, and says of each item what is there, what is wanted and what to do about it.
//!
//! Starts nothing, changes nothing and listens nowhere. Knows no shard.

mod machine;
mod reach;
#[cfg(test)]
mod tests;

use crate::config::{Config, Environment};
use crate::limits::Limits;
use crate::{ring, serve};
use machine::{Load, Machine};
use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// How one item stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    Pass,
    /// The gate works, with less than it could or only so far.
    Warn,
    /// The gate does not start, or does not do its work.
    Fail,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One item. Holds no secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub verdict: Verdict,
    pub item: &'static str,
    /// What is there.
    pub value: String,
    /// What should be, and for what; nothing when the value says all.
    pub wanted: String,
    /// What to do; nothing when it passes.
    pub remedy: String,
}

impl Finding {
    fn pass(item: &'static str, value: impl Into<String>) -> Self {
        let (wanted, remedy) = (String::new(), String::new());
        Self { verdict: Verdict::Pass, item, value: value.into(), wanted, remedy }
    }

    fn fail(item: &'static str, value: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, remedy: remedy.into(), ..Self::pass(item, value) }
    }

    fn warn(item: &'static str, value: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, remedy: remedy.into(), ..Self::pass(item, value) }
    }

    fn wanted(self, wanted: impl Into<String>) -> Self {
        Self { wanted: wanted.into(), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:<14}  {}", self.verdict.as_str(), self.item, self.value)?;
        if !self.wanted.is_empty() {
            write!(f, " (wanted: {})", self.wanted)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "\n      -> {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Looks at everything and prints it. The exit code is 1 when an item failed, 0 otherwise.
///
/// `domain`: of the preview hosts, to see whether any name in it resolves.
pub fn run(environment: &Environment, domain: Option<&str>) -> ExitCode {
    let mut worst = Verdict::Pass;
    let mut tell = |findings: Vec<Finding>| {
        for finding in findings {
            worst = worst.max(finding.verdict);
            // Who has read enough, as `head` has, still gets the exit code.
            drop(writeln!(io::stdout(), "{finding}"));
        }
    };
    let config = match Config::from_env(environment) {
        Ok(config) => {
            tell(configured(&config));
            Some(config)
        }
        Err(mistakes) => {
            tell(mistakes.iter().map(|m| Finding::fail("configuration", m.what(), &m.remedy)).collect());
            None
        }
    };
    tell(look(config.as_ref()));
    match reach::look(config.as_ref(), domain) {
        Ok(findings) => tell(findings),
        Err(error) => tell(vec![Finding::fail("network", error.to_string(), "free some resources")]),
    }
    ExitCode::from(u8::from(worst == Verdict::Fail))
}

fn configured(config: &Config) -> Vec<Finding> {
    match config.warnings() {
        [] => vec![Finding::pass("configuration", "every setting is good")],
        warnings => warnings.iter().map(|w| Finding::warn("configuration", &w.what, &w.remedy)).collect(),
    }
}

/// The machine against what the configuration asks of it; against the defaults when that cannot be read.
fn look(config: Option<&Config>) -> Vec<Finding> {
    let machine = Machine::at(Path::new("/"));
    let limits = config.map_or_else(Limits::default, |c| c.limits.clone());
    let cores = core_affinity::get_core_ids().map_or(1, |ids| ids.len().max(1));
    let shards = config.and_then(|c| c.shards).map_or(cores, std::num::NonZero::get);
    let load = Load { shards, cores, limits: &limits };
    let wish = serve::wish(config.map_or(crate::config::DriverChoice::Auto, |c| c.driver));
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let memlock = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
    let mut findings = vec![
        machine.driver(wish, &ring::choose(wish)),
        machine.memlock(&load, memlock),
        machine.cpus(&load),
        machine.descriptors(&load, hard),
        machine.watches(&load, hard),
        machine.backlog(),
        machine.half_open(config.is_none_or(|c| c.defer_accept)),
        machine.ports(config.map(|c| c.listen.port())),
        machine.congestion(),
        machine.conntrack(&load, hard),
        machine.memory(&load, hard),
        machine.pipes(&load),
    ];
    findings.extend(config.map(|c| machine::listen(c.listen)));
    findings
}
