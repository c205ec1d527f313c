//! `--start`: a backend and the proxy to be measured, started for one run and ended after it.
//!
//! [`Staging`] is what will be started, checked and with its addresses, before anything runs; [`Stage`] is what
//! runs, and what a result is told of it. A [`child`] is a process with the last of what it says; it leads a [`group`], and begins as
//! [`launch`], which sees to it that it does not outlive us. Makes no load: where it goes is filled in, what it did is settled.

mod child;
mod group;
mod launch;
mod output;
mod port;
mod stage;
mod staging;

pub use group::kill_all;
pub use launch::{LaunchArgs, launch};
pub use stage::Stage;
pub use staging::Staging;

use crate::backend::BackendArgs;
use crate::quantity::{self, Span};
use crate::run_args::vain;
use crate::unshown::{unshown, without_stray_word};
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use std::str::FromStr;

/// The preview domain where the load names none: proxies take whatever stands behind a host's first label.
const DOMAIN: &str = "preview.test";

/// What to start, and where it may run.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// Start this proxy, and a backend for it, and end both after the run: './sandgate', 'env NAME=value ./sandgate'. It gets
    /// the settings `backend` prints, PROXY_PORT and METRICS_PORT; words are split as a shell does, no shell runs
    #[arg(long, value_name = "COMMAND", value_parser = unshown(CommandLine::from_str), group = "process", help_heading = "Start")]
    pub start: Option<CommandLine>,
    /// CPUs the started proxy may use: 0,2
    #[arg(long, value_delimiter = ',', value_name = "CPUS", help_heading = "Start")]
    pub start_cpus: Vec<usize>,
    /// Longest wait until it answers [default: 30s]
    #[arg(long, value_parser = quantity::length, value_name = "TIME", help_heading = "Start")]
    pub start_timeout: Option<Span>,
    /// More flags for the backend: '--redis 127.0.0.1:6379 --fault rate=1%,delay=20ms'
    #[arg(long, value_name = "FLAGS", value_parser = unshown(BackendFlags::from_str), allow_hyphen_values = true, help_heading = "Start")]
    pub backend_args: Option<BackendFlags>,
    /// CPUs the backend may use
    #[arg(long, value_delimiter = ',', value_name = "CPUS", help_heading = "Start")]
    pub backend_cpus: Vec<usize>,
}

impl StartArgs {
    /// `Err` names flags that mean nothing where nothing is started. (clap's `requires` does not see it beside a URL.)
    pub fn check(&self) -> Result<(), String> {
        if self.start.is_some() {
            return Ok(());
        }
        let flags = [
            ("--start-cpus", !self.start_cpus.is_empty()),
            ("--start-timeout", self.start_timeout.is_some()),
            ("--backend-args", self.backend_args.is_some()),
            ("--backend-cpus", !self.backend_cpus.is_empty()),
        ];
        vain("--start", &flags)
    }
}

/// A command as it was given, and its words.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandLine {
    pub text: String,
    words: Vec<String>,
}

impl FromStr for CommandLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = split(text)?;
        let first = words.first().ok_or("no command in it")?;
        if let Some((name, _)) = first.split_once('=').filter(|(name, _)| !name.contains('/')) {
            let remedy = "settings stand behind env, which sets them: 'env NAME=value ./proxy'";
            return Err(format!("`{name}=...` is no program, and no shell runs: {remedy}"));
        }
        if first.starts_with('~') || first.contains('$') {
            return Err(format!("`{first}`: no shell runs that would replace ~ and $: give the whole path"));
        }
        Ok(Self { text: text.into(), words })
    }
}

/// Flags of `loadtest backend`, checked.
#[derive(Clone, Debug)]
pub struct BackendFlags {
    text: String,
    words: Vec<String>,
    args: BackendArgs,
}

#[derive(Parser)]
#[command(name = "loadtest backend", no_binary_name = true, disable_help_flag = true)]
struct BackendCommand {
    #[command(flatten)]
    args: BackendArgs,
}

impl FromStr for BackendFlags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = split(text)?;
        let first_line = |error: clap::Error| {
            let text = without_stray_word(error, &words).to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        };
        let matches = BackendCommand::command().try_get_matches_from(&words).map_err(first_line)?;
        for (name, flag, instead) in [
            ("seed", "--seed", "--population gives both sides theirs"),
            ("proxy_key", "--proxy-key", "both sides have the same, and it would stand in results"),
            ("proxy_port", "--proxy-port", "a free port is chosen"),
            ("env_file", "--env-file", "the proxy gets these settings from loadtest"),
        ] {
            if matches.value_source(name) == Some(ValueSource::CommandLine) {
                return Err(format!("{flag} has no meaning here: {instead}"));
            }
        }
        let command = BackendCommand::from_arg_matches(&matches).map_err(first_line)?;
        Ok(Self { text: text.into(), words, args: command.args })
    }
}

impl Default for BackendFlags {
    fn default() -> Self {
        "".parse().expect("every flag of the backend has a default")
    }
}

fn split(text: &str) -> Result<Vec<String>, String> {
    shlex::split(text).ok_or_else(|| "a quote is open at its end".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_splits_them() {
        let words = |text: &str| text.parse().map(|line: CommandLine| line.words);
        let expected = ["env", "A=b c", "./gate", "--x"].map(String::from).to_vec();
        assert_eq!(words("env 'A=b c'  ./gate --x"), Ok(expected));
        assert_eq!(words("x; rm $HOME"), Ok(["x;", "rm", "$HOME"].map(String::from).to_vec()), "no shell");
        assert!(words("x 'y").is_err_and(|error| error.contains("quote")));
        assert!(words(" ").is_err_and(|error| error.contains("no command")));
        assert!(words("A=1 ./gate").is_err_and(|error| error.contains("'env NAME=value ./proxy'")));
        assert!(words("./a=1/gate").is_ok());
        for text in ["~/gate", "$HOME/gate", "${X}"] {
            assert!(words(text).is_err_and(|error| error.contains("the whole path")), "{text}");
        }
    }

    #[test]
    fn the_backend_s_flags_are_checked_and_those_it_is_given_are_refused() {
        let flags = |text: &str| text.parse::<BackendFlags>();
        let good = flags("--fault 'rate=1%,delay=20ms' --api-port 4001").expect("good");
        assert_eq!((good.words.len(), good.args.api_port, good.args.faults.len()), (4, 4001, 1));
        for (text, said) in [
            ("--seed 3", "--population"),
            ("--env-file x", "--env-file"),
            ("--proxy-key x", "--proxy-key has no meaning here"),
            ("--proxy-port 1", "a free port"),
            ("--fautl x", "--fautl"),
            ("--fault 'rate=x'", "rate=x"),
            ("--help", "--help"),
            ("'", "quote"),
        ] {
            let error = flags(text).expect_err(text);
            assert!(error.contains(said) && !error.contains('\n'), "{text}: {error}");
        }
        let error = flags("--proxy-key my s3cret").expect_err("no quotes");
        assert!(error.contains("'*** (word 3)'"), "{error}");
    }
}
