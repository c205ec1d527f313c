use super::*;
use crate::measure::Totals;
use crate::plan::{Class, Client, Phase, Target, Workload};
use crate::quantity::Span;
use crate::recorder::Interval;
use crate::result::{CallUse, HAR_REQUEST, IdleResult};

fn plan(load: Load) -> Plan {
    Plan {
        name: "x".into(),
        target: Target::default(),
        client: Client::default(),
        workload: Workload::default(),
        recordings: Vec::new(),
        phases: vec![Phase {
            name: "p".into(),
            load,
            length: Span(Duration::from_secs(30)),
            mix: vec![(Class::Get { bytes: 1 }, 1.0)],
            warmup: false,
            churn: Vec::new(),
            idle: None,
        }],
    }
}

fn second(at: u64, cpu_ms: u64, latency_ms: u64) -> Report {
    let mut interval = Interval { sent: 10, ok: 10, heat: vec![0; HEAT_BUCKETS], ..Interval::default() };
    (0..10).for_each(|_| interval.response.record_ns(latency_ms * 1_000_000));
    Report::Second(Box::new(Second {
        phase: 0,
        at: Duration::from_secs(at),
        interval,
        planned: 10,
        backlog: 0,
        connections: 1,
        idle: 0,
        cpu: Duration::from_millis(cpu_ms),
        wall: Duration::from_secs(1),
    }))
}

fn done() -> Report {
    let class = ClassResult { planned: 300, sent: 300, ok: 300, ..ClassResult::default() };
    Report::Done(Box::new(Done {
        classes: vec![vec![class]],
        lag: vec![Hist::default()],
        idle: vec![None],
        cut: false,
    }))
}

/// The result of two threads with these seconds each: CPU of the second thread and latency by second.
fn result(load: Load, seconds: &[(u64, u64)], proxy: Vec<Option<ProxyUse>>) -> RunResult {
    let plan = plan(load);
    let mut tally = Tally::new(&plan, 2);
    for (at, (cpu_ms, latency_ms)) in (0..).zip(seconds) {
        tally.take(0, second(at, 100, *latency_ms)).expect("planned");
        tally.take(1, second(at, *cpu_ms, *latency_ms)).expect("planned");
    }
    assert!(!tally.is_complete());
    tally.take(0, done()).expect("planned");
    tally.take(1, done()).expect("planned");
    assert!(tally.is_complete());
    tally.finish(&plan, Vec::new(), SystemTime::now(), None, proxy, Vec::new())
}

fn codes(result: &RunResult) -> Vec<&str> {
    result.validity.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

#[test]
fn lateness_counts_beside_the_fastest_answers_unless_a_bound_is_given() {
    let hist = |each_ms: &[u64]| {
        let mut hist = Hist::default();
        each_ms.iter().for_each(|ms| hist.record_ns(ms * 1_000_000));
        hist
    };
    let class = |each_ms: &[u64]| {
        let n = each_ms.len() as u64;
        ClassResult { planned: n, sent: n, ok: n, response: hist(each_ms), ..ClassResult::default() }
    };
    let of_all = |lag_ms: &[u64], responses: [&[u64]; 2], lag_max: Option<Duration>| {
        let mut plan = plan(Load::Hold { rate: 10.0 });
        plan.phases[0].mix.push((Class::Get { bytes: 2 }, 1.0));
        plan.client.lag_max = lag_max.map(Span);
        let lag = hist(lag_ms);
        let mut tally = Tally::new(&plan, 1);
        let classes = vec![responses.map(class).to_vec()];
        tally
            .take(0, Report::Done(Box::new(Done { classes, lag: vec![lag], idle: vec![None], cut: false })))
            .expect("planned");
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        codes(&result).contains(&"send_lag")
    };
    let judged =
        |lag: u64, responses: [u64; 2], lag_max| of_all(&[lag], [&responses[..1], &responses[1..]], lag_max);
    assert!(!judged(1, [1, 1], None) && judged(3, [1, 1], None));
    assert!(!judged(4, [50, 60], None) && judged(6, [60, 50], None), "a tenth of the fastest");
    assert!(judged(4, [1, 10_000], None), "one slow class excuses nothing");
    let few_slow: Vec<u64> = (0..100).map(|at| if at < 98 { 1 } else { 10_000 }).collect();
    assert!(of_all(&[4], [&few_slow, &few_slow], None), "nor do a few slow answers");
    let few_late: Vec<u64> = (0..100).map(|at| if at < 98 { 0 } else { 900 }).collect();
    assert!(
        !of_all(&few_late, [&few_slow, &few_slow], None),
        "few late ones beside few that took ten times as long"
    );
    assert!(
        judged(4, [50, 50], Some(Duration::from_millis(3)))
            && !judged(4, [1, 1], Some(Duration::from_secs(1)))
    );
}

/// In either order, and when an hour has made the steps longer than a second.
#[test]
fn the_proxy_s_cpu_of_a_second_is_shown_and_kept_whoever_tells_first() {
    for second_of in [0, Timeline::POINTS_MAX as u64 + 100] {
        for cpu_first in [true, false] {
            let mut plan = plan(Load::Hold { rate: 20.0 });
            plan.phases[0].length = Span(Duration::from_secs(10_000));
            let mut tally = Tally::new(&plan, 1);
            (0..second_of).for_each(|at| tally.take(0, second(at, 1, 1)).expect("planned"));
            if cpu_first {
                tally.proxy_cpu(0, second_of as u32, 40.0);
            }
            tally.take(0, second(second_of, 1, 1)).expect("planned");
            if !cpu_first {
                tally.proxy_cpu(0, second_of as u32, 40.0);
            }
            let moment = tally.moment(Duration::ZERO);
            assert_eq!(moment.second.proxy_cpu, Some(40.0), "{second_of} {cpu_first}");
            let kept = moment.timeline.points.last().and_then(|point| point.proxy_cpu);
            assert_eq!(kept, Some(40.0), "{second_of} {cpu_first}");
        }
    }
}

#[test]
fn of_several_percentiles_that_are_late_the_worst_is_named() {
    let plan = plan(Load::Hold { rate: 20.0 });
    let hist = |each_ms: &[u64]| {
        let mut hist = Hist::default();
        each_ms.iter().for_each(|ms| hist.record_ns(ms * 1_000_000));
        hist
    };
    let lag: Vec<u64> = (0..100).map(|at| if at < 95 { 3 } else { 400 }).collect();
    // A class of nothing but right refusals has no times, and is no fastest one.
    let classes =
        vec![vec![ClassResult { sent: 100, ok: 100, response: hist(&[25; 100]), ..ClassResult::default() }]];
    let mut tally = Tally::new(&plan, 1);
    let done = Done { classes, lag: vec![hist(&lag)], idle: vec![None], cut: false };
    tally.take(0, Report::Done(Box::new(done))).expect("planned");
    let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
    let message = &result.validity.reasons[0].message;
    assert!(message.contains("sent late, p99 4"), "{message}");
}

/// Its sessions take as long as a user did: a tenth of that would excuse any lateness.
#[test]
fn lateness_counts_beside_a_recording_s_requests() {
    let hist = |ms: u64| {
        let mut hist = Hist::default();
        hist.record_ns(ms * 1_000_000);
        hist
    };
    let plan = plan(Load::Hold { rate: 10.0 });
    let is_late = |request_ms| {
        let mut class =
            ClassResult { planned: 1, sent: 1, ok: 1, response: hist(10_000), ..ClassResult::default() };
        class.extra.insert(HAR_REQUEST.into(), hist(request_ms));
        let done = Done { classes: vec![vec![class]], lag: vec![hist(4)], idle: vec![None], cut: false };
        let mut tally = Tally::new(&plan, 1);
        tally.take(0, Report::Done(Box::new(done))).expect("planned");
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        codes(&result).contains(&"send_lag")
    };
    assert_eq!([1, 30, 50].map(is_late), [true, true, false]);
}

#[test]
fn one_busy_thread_makes_the_result_invalid_however_idle_the_others_are() {
    let hold = Load::Hold { rate: 20.0 };
    let idle = result(hold, &[(500, 1); 30], Vec::new());
    assert!(idle.validity.valid && codes(&idle).is_empty());
    let busy = result(hold, &[(900, 1); 30], Vec::new());
    assert!(!busy.validity.valid && codes(&busy) == ["client_cpu"]);
    assert_eq!(busy.phases[0].client.busiest_percent, 90.0);
    assert_eq!(busy.phases[0].timeline.points[3].client_cpu, 90.0);
}

#[test]
fn only_errors_of_its_own_making_make_the_result_invalid() {
    let plan = plan(Load::Hold { rate: 20.0 });
    for (source, codes_) in [(Failure::OWN_SOURCE, &["client_limit"][..]), ("client", &[])] {
        let mut tally = Tally::new(&plan, 1);
        let mut class = ClassResult { ok: 1, failed: 1, ..ClassResult::default() };
        class.count_error("AUTH_REQUIRED", source, 1);
        let done =
            Done { classes: vec![vec![class]], lag: vec![Hist::default()], idle: vec![None], cut: false };
        tally.take(0, Report::Done(Box::new(done))).expect("planned");
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        assert_eq!(codes(&result), codes_, "a proxy's `client` is the visitor, not us");
    }
}

#[test]
fn seconds_of_all_threads_are_one_point() {
    let result = result(Load::Hold { rate: 20.0 }, &[(1, 5); 30], Vec::new());
    let points = &result.phases[0].timeline.points;
    assert_eq!((points.len(), points[0].ok, points[29].at_s), (30, 20, 29));
    assert!((4900.0..5100.0).contains(&points[0].p99_us));
    assert_eq!(result.phases[0].total().ok, 600);
}

#[test]
fn a_soak_that_gets_slower_or_larger_says_so_and_a_steady_one_does_not() {
    let soak = Load::Soak { rate: 20.0 };
    let used = |end| {
        let used = ProxyUse { memory_early_bytes: 10 << 20, memory_end_bytes: end, ..ProxyUse::default() };
        vec![Some(used)]
    };
    assert!(codes(&result(soak, &[(1, 5); 30], used(12 << 20))).is_empty());
    let slower: Vec<(u64, u64)> = (0..30).map(|n| (1, 5 + n)).collect();
    let drifted = result(soak, &slower, used(40 << 20));
    assert_eq!(codes(&drifted), ["drift", "drift"]);
    assert!(drifted.validity.valid, "worth knowing, not wrong");
    // One bad second is no drift.
    let mut hiccup = [(1, 5); 30];
    hiccup[29].1 = 500;
    assert!(codes(&result(soak, &hiccup, Vec::new())).is_empty());
}

/// Threads wake a little late for a phase and add up its seconds from there: less than the whole.
#[test]
fn an_end_in_a_later_phase_leaves_those_before_whole_whatever_their_seconds_add_up_to() {
    let mut plan = plan(Load::Hold { rate: 20.0 });
    let warmup = Phase {
        name: "warm-up".into(),
        length: Span(Duration::from_millis(800)),
        warmup: true,
        ..plan.phases[0].clone()
    };
    plan.phases.insert(0, warmup);
    plan.phases.push(Phase { name: "never".into(), ..plan.phases[1].clone() });
    let of = |phase, wall_us| {
        let Report::Second(mut second) = second(0, 1, 1) else { unreachable!() };
        (second.phase, second.wall) = (phase, Duration::from_micros(wall_us));
        Report::Second(second)
    };
    // A thread that is gone, or says that it was stopped.
    let ended = |reports: Vec<Report>| {
        let mut tally = Tally::new(&plan, 1);
        if !matches!(reports.last(), Some(Report::Done(_))) {
            tally.thread_lost();
        }
        reports.into_iter().for_each(|report| tally.take(0, report).expect("planned"));
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        result.phases.into_iter().map(|phase| (phase.name, phase.duration_s)).collect::<Vec<_>>()
    };
    let phase = |name: &str, duration_s| (name.to_owned(), duration_s);
    assert_eq!(ended(vec![of(0, 799_600), of(1, 250_000)]), [phase("warm-up", 0.8), phase("p", 0.25)]);
    assert_eq!(ended(vec![of(0, 400_000)]), [phase("warm-up", 0.4)]);
    assert_eq!(ended(Vec::new()), [phase("warm-up", 0.0)]);
    // Stopped before the phase's first second was reported: what was sent in it is there all the same.
    let class = |planned| vec![ClassResult { planned, sent: planned, ok: planned, ..ClassResult::default() }];
    let done = Done {
        classes: vec![class(16), class(1), class(0)],
        lag: vec![Hist::default(); 3],
        idle: vec![None; 3],
        cut: true,
    };
    let reports = vec![of(0, 799_600), Report::Done(Box::new(done))];
    assert_eq!(ended(reports), [phase("warm-up", 0.8), phase("p", 0.0)]);
}

#[test]
fn a_run_is_partial_if_a_thread_says_so_whatever_the_time() {
    let plan = plan(Load::Hold { rate: 20.0 });
    for (cuts, partial) in [([false, false], false), ([false, true], true), ([true, false], true)] {
        let mut tally = Tally::new(&plan, 2);
        for (thread, cut) in (0..).zip(cuts) {
            (0..30).for_each(|at| tally.take(thread, second(at, 1, 1)).expect("planned"));
            let Report::Done(mut done) = done() else { unreachable!() };
            done.cut = cut;
            tally.take(thread, Report::Done(done)).expect("planned");
        }
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        assert_eq!(
            (result.meta.partial, codes(&result).contains(&"partial")),
            (partial, partial),
            "{cuts:?}"
        );
        assert!(result.validity.valid, "{:?}", result.validity);
    }
}

#[test]
fn idle_websockets_of_which_none_opened_are_no_result_and_one_is() {
    let mut plan = plan(Load::Quiet);
    plan.phases[0].idle = Some(crate::plan::Idle { count: 5, rate: 5.0, reopen: false });
    for (opened, told) in [(0, &["nothing"][..]), (1, &[])] {
        let mut idle = IdleResult { planned: 5, failed: 5 - opened, open: opened, ..IdleResult::default() };
        (0..opened).for_each(|_| idle.connect.record_ns(1_000_000));
        let mut tally = Tally::new(&plan, 1);
        let Report::Done(mut done) = done() else { unreachable!() };
        done.idle = vec![Some(idle)];
        tally.take(0, Report::Done(done)).expect("planned");
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        assert_eq!((codes(&result), result.validity.valid), (told.to_vec(), told.is_empty()));
    }
}

#[test]
fn what_was_stopped_before_anything_counted_is_no_result() {
    let mut plan = plan(Load::Hold { rate: 20.0 });
    plan.phases.insert(0, Phase { warmup: true, ..plan.phases[0].clone() });
    let class = || vec![ClassResult { planned: 5, sent: 5, ok: 5, ..ClassResult::default() }];
    let none = || vec![ClassResult::default()];
    for (second_phase, valid) in [(none(), false), (class(), true)] {
        let mut tally = Tally::new(&plan, 1);
        let (lag, idle) = (vec![Hist::default(); 2], vec![None; 2]);
        let done = Done { classes: vec![class(), second_phase], lag, idle, cut: true };
        tally.take(0, Report::Done(Box::new(done))).expect("planned");
        let result = tally.finish(&plan, Vec::new(), SystemTime::now(), None, Vec::new(), Vec::new());
        assert_eq!(codes(&result), if valid { &["partial"][..] } else { &["partial", "nothing"] });
        assert_eq!(result.validity.valid, valid);
    }
}

#[test]
fn reports_of_what_was_not_planned_are_refused() {
    let plan = plan(Load::Hold { rate: 1.0 });
    let mut tally = Tally::new(&plan, 1);
    let strange =
        Report::Done(Box::new(Done { classes: Vec::new(), lag: Vec::new(), idle: Vec::new(), cut: false }));
    assert!(tally.take(0, strange).is_err());
    let Report::Second(mut late) = second(0, 1, 1) else { unreachable!() };
    late.phase = 7;
    assert!(tally.take(0, Report::Second(late)).is_err());
}

#[test]
fn a_proxy_s_cpu_and_calls_are_divided_by_what_it_did() {
    let calls = CallUse { system_calls: 1200, ring_enters: 300, ..CallUse::default() };
    let proxy = vec![Some(ProxyUse { cpu_s: 0.006, calls: Some(calls), ..ProxyUse::default() })];
    let result = result(Load::Hold { rate: 20.0 }, &[(1, 1); 30], proxy);
    let used = result.phases[0].proxy.as_ref().expect("given");
    // 600 requests ended.
    assert!((used.cpu_us_per_request - 10.0).abs() < 1e-6, "{used:?}");
    assert!((used.requests_per_core_s - 100_000.0).abs() < 1e-3);
    let calls = used.calls.as_ref().expect("counted");
    assert_eq!((calls.system_calls_per_request, calls.ring_enters_per_request), (2.0, 0.5));
    let totals = Totals::of(&result);
    assert_eq!((totals.calls(), totals.enters()), (Some(2.0), Some(0.5)));
}
