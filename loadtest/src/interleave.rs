//! Two targets in turns: A B, then B A, and so on, so that whatever the machine does befalls both alike.

use crate::plan::Plan;
use crate::result::RunResult;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Runs each plan `rounds` times; phases of the results are called by their round. What ends it early (`stop`, or a run that
/// cannot be made) leaves the rounds before, and of the first round whatever there is: partial, and not valid if nobody
/// wanted the end. A target that had no turn has no result.
///
/// # Errors
/// Those of the very first run.
pub fn run(
    plans: [Plan; 2],
    rounds: u32,
    stop: &AtomicBool,
    run: &mut dyn FnMut(&Plan, usize) -> Result<RunResult, String>,
    tell: &mut dyn FnMut(u32, usize, &RunResult),
) -> Result<[Option<RunResult>; 2], String> {
    let mut whole: [Option<RunResult>; 2] = [None, None];
    for round in 1..=rounds {
        let mut pair: [Option<RunResult>; 2] = [None, None];
        let mut end = None;
        // Who goes first changes, so that being second is no disadvantage of one of them.
        for target in if round % 2 == 1 { [0, 1] } else { [1, 0] } {
            let mut result = match run(&plans[target], target) {
                Ok(result) => result,
                Err(error) if round == 1 && pair.iter().all(Option::is_none) => return Err(error),
                Err(error) => {
                    end = Some(error);
                    break;
                }
            };
            tell(round, target, &result);
            for phase in &mut result.phases {
                phase.name = format!("round {round}, {}", phase.name);
            }
            let stopped = result.meta.partial;
            pair[target] = Some(result);
            if stopped {
                end = Some("ended before its time".into());
                break;
            }
        }
        // One's turn without the other's, or with a part of it, compares nothing, but may be all there is.
        let is_whole = end.is_none();
        for (whole, result) in whole.iter_mut().zip(pair).filter(|_| is_whole || round == 1) {
            match (whole.as_mut(), result) {
                (Some(whole), Some(result)) => whole.append(result),
                (None, result) => *whole = result,
                (Some(_), None) => {}
            }
        }
        if let Some(why) = end {
            let left_out = if round == 1 { "" } else { ", which is left out" };
            let why = format!("{why}: in round {round} of {rounds}{left_out}");
            whole.iter_mut().flatten().for_each(|whole| whole.end_early(&why, !stop.load(Relaxed)));
            break;
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Client, Target, Workload};
    use crate::result::{Meta, PhaseResult, Validity};

    fn plan(name: &str) -> Plan {
        Plan {
            name: name.into(),
            target: Target::default(),
            client: Client::default(),
            workload: Workload::default(),
            recordings: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// Rounds, what is said of them, and whether they are valid.
    type Left = Option<(usize, String, bool)>;

    /// Rounds each target has in the result, and what is said of them, if turn number `end` ends like this.
    fn ended(end: usize, stopped: bool, outcome: Result<(), &str>) -> Result<[Left; 2], String> {
        let mut turn = 0;
        let mut one = |_: &Plan, _: usize| {
            turn += 1;
            let partial = turn == end && outcome.is_ok();
            if turn == end {
                outcome?;
            }
            let validity = Validity { valid: true, ..Validity::default() };
            let meta = Meta { partial, ..Meta::default() };
            Ok(RunResult { phases: vec![PhaseResult::default()], validity, meta, ..RunResult::default() })
        };
        let stop = AtomicBool::new(stopped);
        let results = run([plan("a"), plan("b")], 3, &stop, &mut one, &mut |_, _, _| {})?;
        Ok(results.map(|result| {
            result.map(|result| {
                assert!(result.meta.partial);
                let said =
                    result.validity.reasons.last().map_or(String::new(), |reason| reason.message.clone());
                (result.phases.len(), said, result.validity.valid)
            })
        }))
    }

    #[test]
    fn what_ends_it_early_leaves_what_there_is() {
        let said = |rounds, text: &str, valid| Some((rounds, text.to_owned(), valid));
        let first = "ended before its time: in round 1 of 3";
        assert_eq!(ended(1, true, Ok(())), Ok([said(1, first, true), None]));
        assert_eq!(ended(2, true, Ok(())), Ok([said(1, first, true), said(1, first, true)]));
        let second = "ended before its time: in round 2 of 3, which is left out";
        // Its first turn cut, its second.
        for end in [3, 4] {
            assert_eq!(ended(end, true, Ok(())), Ok([said(1, second, true), said(1, second, true)]));
        }
        let gone = "no such process: in round 2 of 3, which is left out";
        assert_eq!(ended(4, false, Err("no such process")), Ok([said(1, gone, false), said(1, gone, false)]));
        assert_eq!(ended(1, false, Err("no such process")), Err("no such process".into()));
    }
}
