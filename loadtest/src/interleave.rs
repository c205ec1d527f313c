//! Two targets in turns: A B, then B A, and so on, so that whatever the machine does befalls both alike.

use crate::plan::Plan;
use crate::result::RunResult;

/// Runs each plan `rounds` times; phases of the results are called by their round. Ends early, in whole rounds, when a run
/// was stopped.
pub fn run(
    plans: [Plan; 2],
    rounds: u32,
    run: &mut dyn FnMut(&Plan, usize) -> Result<RunResult, String>,
    tell: &mut dyn FnMut(u32, usize, &RunResult),
) -> Result<[RunResult; 2], String> {
    let mut whole: [Option<RunResult>; 2] = [None, None];
    for round in 1..=rounds {
        let mut pair: [Option<RunResult>; 2] = [None, None];
        // Who goes first changes, so that being second is no disadvantage of one of them.
        for target in if round % 2 == 1 { [0, 1] } else { [1, 0] } {
            let mut result = run(&plans[target], target)?;
            tell(round, target, &result);
            for phase in &mut result.phases {
                phase.name = format!("round {round}, {}", phase.name);
            }
            let stopped = result.meta.partial;
            pair[target] = Some(result);
            if stopped {
                break;
            }
        }
        let [Some(a), Some(b)] = pair else { break };
        let stopped = a.meta.partial || b.meta.partial;
        for (whole, result) in whole.iter_mut().zip([a, b]) {
            match whole {
                None => *whole = Some(result),
                Some(whole) => whole.append(result),
            }
        }
        if stopped {
            break;
        }
    }
    match whole {
        [Some(a), Some(b)] => Ok([a, b]),
        _ => Err("stopped before the first round was over".into()),
    }
}
