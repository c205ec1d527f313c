//! What comes of two targets that took turns: a result for each, and what one is beside the other.

use crate::compare::{Comparison, Judgement};
use crate::report::{self, Outputs};
use crate::result::RunResult;
use crate::run_args::InterleaveArgs;
use crate::{assertion, cli, console};
use std::process::ExitCode;

/// Where it goes.
pub struct TurnOutputs {
    each: [Outputs; 2],
    both: Outputs,
}

/// What is said of the two.
struct Said {
    text: String,
    holds: bool,
    valid: bool,
}

impl TurnOutputs {
    pub fn new(args: &InterleaveArgs) -> Self {
        let of = |(json, assert): (&Option<_>, &Vec<_>)| Outputs {
            json: json.clone(),
            assert: assert.clone(),
            ..Outputs::default()
        };
        Self {
            each: [(&args.json_a, &args.assert_a), (&args.json_b, &args.assert_b)].map(of),
            both: Outputs { html: args.html.clone(), markdown: args.markdown.clone(), ..Outputs::default() },
        }
    }

    /// `Err` names what cannot be written.
    pub fn check(&self) -> Result<(), String> {
        let all = || self.each.iter().chain([&self.both]);
        all()
            .try_for_each(Outputs::check)
            .and_then(|()| report::check_distinct(all().flat_map(Outputs::files)))
            .map_err(|error| error.to_string())
    }

    /// Writes what was asked for and chooses the exit code. `failure`: what was started and ended by itself.
    ///
    /// # Errors
    /// A sentence: a file cannot be written.
    pub fn conclude(
        &self,
        mut results: [Option<RunResult>; 2],
        failure: Option<&str>,
    ) -> Result<ExitCode, String> {
        let said = self.finish_each(&mut results, failure)?;
        let text = self.finish_both(results)? + &said.text;
        cli::tell(&text, report::take_stdout(self.each.iter().chain([&self.both]).flat_map(Outputs::files)))?;
        Ok(cli::exit_code(said.holds, said.valid))
    }

    fn finish_each(
        &self,
        results: &mut [Option<RunResult>; 2],
        failure: Option<&str>,
    ) -> Result<Said, String> {
        let mut said = Said { text: String::new(), holds: true, valid: failure.is_none() };
        for ((name, output), result) in ["A", "B"].into_iter().zip(&self.each).zip(results) {
            let Some(result) = result else {
                let why = failure.map_or(String::new(), |why| format!(": {why}"));
                said.text += &format!("{name} had no turn{why}\n");
                // As with any figure that is missing.
                said.holds &= output.assert.is_empty();
                continue;
            };
            result.meta.command = std::env::args().collect();
            said.holds &= output.finish(result).map_err(|error| error.to_string())?;
            said.valid &= result.validity.valid;
            let lines = assertion::lines(&result.assertions);
            said.text.extend(lines.lines().map(|line| format!("{name}: {line}\n")));
        }
        Ok(said)
    }

    fn finish_both(&self, results: [Option<RunResult>; 2]) -> Result<String, String> {
        let both = &self.both;
        match results {
            [Some(a), Some(b)] => {
                let comparison = Comparison::new(&a, &b, Judgement::default());
                comparison.write(both.html.as_deref(), both.markdown.as_deref())?;
                Ok(console::against(&comparison))
            }
            // There is nothing to compare with.
            [Some(mut only), None] | [None, Some(mut only)] => {
                both.finish(&mut only).map_err(|error| error.to_string())?;
                Ok(console::summary(&only))
            }
            [None, None] => Ok(String::new()),
        }
    }
}
