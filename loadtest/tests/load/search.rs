//! The search for the highest rate, and two targets in turns.

use super::peer::{Server, ok, plan, run};
use loadtest::find_max::{Bound, search};
use loadtest::interleave;
use loadtest::plan::{Load, Plan};
use loadtest::quantity::Span;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

#[test]
fn the_highest_rate_of_a_server_with_a_known_one_is_found() {
    // One request at a time, 4 ms each: 250 a second, less what the machine adds.
    let counter = Mutex::new(());
    let server = Server::start(move |_| {
        let _alone = counter.lock().expect("not poisoned");
        thread::sleep(Duration::from_millis(4));
        ok()
    });
    let template = plan(&server.url(), Load::Quiet, 1);
    let bound = Bound {
        p99: vec!["150ms".parse().expect("a bound")],
        errors: 0.01,
        from: 50.0,
        to: 3200.0,
        step: Span(Duration::from_millis(1000)),
        precision: 0.5,
    };
    let result = search(&template, &bound, &AtomicBool::new(false), &mut |plan| Ok(run(plan)), &mut |_| {})
        .expect("it ran");
    let search = result.search.as_ref().expect("a search");
    let rate = search.rate.expect("something held");
    assert!((100.0..=300.0).contains(&rate), "{rate} {:?}", search.steps);
    assert_eq!(result.measured().count(), search.steps.len());
    assert!(search.steps.iter().any(|step| !step.held));
}

#[test]
fn turns_are_taken_and_each_target_keeps_its_own_figures() {
    let delayed = |ms| {
        Server::start(move |_| {
            thread::sleep(Duration::from_millis(ms));
            ok()
        })
    };
    let (fast, slow) = (delayed(1), delayed(60));
    let plans = [&fast, &slow].map(|server| plan(&server.url(), Load::Hold { rate: 50.0 }, 300));
    let mut order = Vec::new();
    let mut run_one = |plan: &Plan, _: usize| Ok(run(plan.clone()));
    let stop = AtomicBool::new(false);
    let results =
        interleave::run(plans, 3, &stop, &mut run_one, &mut |round, target, _| order.push((round, target)));
    let [a, b] = results.expect("it ran").map(|result| result.expect("it had turns"));
    assert_eq!(order, [(1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (3, 1)]);
    for (result, range) in [(&a, 1.0..55.0), (&b, 60.0..200.0)] {
        assert_eq!(result.phases.len(), 3);
        assert_eq!(result.phases[2].name, "round 3, p");
        for phase in &result.phases {
            let p50 = phase.total().response.quantile_us(0.5) / 1000.0;
            assert!(range.contains(&p50), "{p50}");
        }
        let starts: Vec<_> = result.phases.iter().map(|phase| phase.start_s).collect();
        assert!(starts.is_sorted() && starts[2] > 0.5);
    }
}
