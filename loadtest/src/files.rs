//! How many files a plan may need open at a time: a limit that is too low is said before the run, not felt in it.

use crate::plan::{Plan, Share};
use crate::schedule::{Part, Schedule};

/// The process's own: standard streams, files of results, the proxy's metrics page and counters.
const OWN: u64 = 48;
/// A thread's runtime, its timers, and the connections that are being opened anew while the old ones close.
const PER_THREAD: u64 = 16;

/// The most this load generator may have open, as its part of the plan.
pub fn wanted(plan: &Plan, share: Share) -> u64 {
    let client = &plan.client;
    let idle = plan.phases.iter().filter_map(|phase| phase.idle.as_ref()).map(|idle| idle.count).max();
    let load = u64::from(client.connections) + idle.unwrap_or(0) + of_sessions(plan);
    load.div_ceil(u64::from(share.count)) + u64::from(client.threads) * PER_THREAD + OWN
}

/// Of sessions: as many as may be under way at a time, of those that need most. No more of a class than the plan has of it.
fn of_sessions(plan: &Plan) -> u64 {
    let mut classes: Vec<(u64, u64)> = Vec::new();
    for phase in &plan.phases {
        let whole: f64 = phase.mix.iter().map(|(_, weight)| weight).sum();
        for (class, weight) in phase.mix.iter().filter(|(class, _)| class.is_session()) {
            let part = Part { index: 0, count: 1 };
            let schedule = Schedule::new(phase.load, phase.length.0, weight / whole, part, None);
            classes.push((class.connections_max(), drawn_at_most(schedule.backlog(phase.length.0))));
        }
    }
    classes.sort_unstable_by_key(|(files, _)| std::cmp::Reverse(*files));
    let mut free = u64::from(plan.client.sessions_max);
    let of_class = |(files, count): (u64, u64)| {
        let open = count.min(free);
        free -= open;
        open * files
    };
    classes.into_iter().map(of_class).sum()
}

/// Classes (and random intervals) are drawn: more than this of them is less likely than one run in a million.
fn drawn_at_most(expected: u64) -> u64 {
    expected + (expected as f64).sqrt().ceil() as u64 * 5 + 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::har::Recordings;
    use crate::plan::{Client, Idle, Load, Phase, Target, Workload};
    use crate::quantity::Span;
    use std::time::Duration;

    /// A phase of 100 s, its sessions bounded.
    fn plan(rate: f64, mix: &str, sessions_max: u32) -> Plan {
        Plan {
            name: "x".into(),
            target: Target::default(),
            client: Client { threads: 1, connections: 100, sessions_max, ..Client::default() },
            workload: Workload::default(),
            phases: vec![Phase {
                name: "p".into(),
                load: Load::Hold { rate },
                length: Span(Duration::from_secs(100)),
                mix: crate::run_args::mix_weights(mix, &mut Recordings::default()).expect("a mix"),
                warmup: false,
                churn: Vec::new(),
                idle: None,
            }],
            recordings: Vec::new(),
        }
    }

    /// Beyond what every plan of these needs.
    fn more(plan: &Plan) -> u64 {
        wanted(plan, Share::WHOLE) - wanted(&self::plan(1.0, "get", 1), Share::WHOLE)
    }

    #[test]
    fn sessions_need_what_their_class_opens_and_no_more_than_there_are() {
        for (rate, mix, sessions_max, files) in [
            (1000.0, "get", 10_000, 0),
            // The bound is reached: one connection each, however the messages are timed.
            (1000.0, "ws:10x32", 10_000, 10_000),
            (1000.0, "ws:10x32@50ms", 10_000, 10_000),
            (1000.0, "sse:10x100ms", 10_000, 10_000),
            // A browser's six, or fewer assets than that.
            (1000.0, "page:20x8k", 10_000, 60_000),
            (1000.0, "page:2x8k", 10_000, 20_000),
            // The dearest first.
            (1000.0, "ws:10x32=50,page:20x8k=50", 10_000, 60_000),
            // 1,000 sessions in all, drawn: 160 + 5 more at most.
            (10.0, "ws:10x32", 10_000, 1_165),
            // 100 pages + 55, and of 900 WebSockets as many as are left.
            (10.0, "page:20x8k=10,ws:10x32=90", 1_000, 155 * 6 + 845),
        ] {
            assert_eq!(more(&plan(rate, mix, sessions_max)), files, "{mix} at {rate}");
        }
    }

    #[test]
    fn idle_sockets_connections_and_threads_count_and_load_generators_share_them() {
        let least = plan(1.0, "get", 1);
        let mut held = least.clone();
        held.phases[0].idle = Some(Idle { count: 5_000, rate: 1.0, reopen: false });
        held.client.connections = 300;
        held.client.threads = 5;
        let threads = 4 * PER_THREAD;
        assert_eq!(wanted(&held, Share::WHOLE), wanted(&least, Share::WHOLE) + 5_200 + threads);
        let third = Share { index: 0, count: 3 };
        assert_eq!(wanted(&held, third), 5_300u64.div_ceil(3) + 5 * PER_THREAD + OWN);
    }
}
