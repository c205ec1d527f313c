//! What a stall, a delay or an overload is called in the result.

use super::peer::{Answer, Server, codes, ok, plan, run, run_until};
use loadtest::host::ProxySource;
use loadtest::plan::{Class, Load};
use loadtest::quantity::Span;
use loadtest::result::{RunResult, heat_bucket};
use loadtest::run::{self, Observation};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MS: f64 = 1000.0;

/// For half a second out of three nothing is answered. A tool that waits for answers before it asks on would see a
/// handful of slow requests; users would have seen every sixth.
#[test]
fn a_stall_shows_in_response_time_and_hides_in_service_time() {
    let server = Server::start(|asked| {
        let stall = Duration::from_millis(1000)..Duration::from_millis(1500);
        if stall.contains(&asked.at) {
            thread::sleep(stall.end.saturating_sub(asked.at));
        }
        ok()
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 200.0 }, 3000);
    plan.client.connections = 4;
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!((total.planned, total.ok, total.unsent), (600, 600, 0));
    let (service, response) = (total.service, total.response);
    // 100 of 600 were due in the stall, waiting 250 ms on average.
    assert!(response.quantile_us(0.95) > 250.0 * MS, "{:?}", response.quantiles());
    assert!(response.quantile_us(0.50) < 200.0 * MS, "{:?}", response.quantiles());
    // The six worst came right after its begin and waited for nearly all of it, as a plan that is kept says.
    assert!(response.quantile_us(0.99) > 450.0 * MS, "{:?}", response.quantiles());
    // Four connections, so four requests, were under way.
    assert!(service.quantile_us(0.95) < 200.0 * MS, "{:?}", service.quantiles());
    assert!(service.max_ns() > 400_000_000, "{:?}", service.quantiles());
    // A second has what it planned itself, not what was left of those before.
    let planned: Vec<u64> = result.phases[0].timeline.points.iter().map(|point| point.planned).collect();
    assert!(planned.iter().all(|planned| (190..=210).contains(planned)), "{planned:?}");
    assert_eq!(planned.iter().sum::<u64>(), 600);
    let late = heat_bucket(300_000_000);
    let slow: u64 = result.phases[0].timeline.points.iter().map(|p| p.heat[late..].iter().sum::<u64>()).sum();
    assert!(slow >= 30, "half a second shows in the heat map, too: {slow}");
}

#[test]
fn in_a_closed_loop_response_time_is_service_time_and_first_connects_count() {
    let server = Server::start(|_| ok());
    let mut plan = plan(&server.url(), Load::Closed, 500);
    plan.client.connections = 4;
    let total = run(plan.clone()).phases[0].total();
    assert!(total.ok > 100 && total.resent == 0, "{} {}", total.ok, total.resent);
    assert_eq!(total.response, total.service, "nothing but the request is in either");
    assert_eq!(total.extra["connect"].count(), 4);
    plan.workload.fresh = 1.0;
    let total = run(plan).phases[0].total();
    assert!(total.response != total.service, "to connect is in response times alone");
    assert_eq!(total.extra["connect"].count(), total.sent);
}

#[test]
fn the_calls_of_a_second_are_shown_while_it_goes_on() {
    let server = Server::start(|_| ok());
    let plan = Arc::new(plan(&server.url(), Load::Hold { rate: 100.0 }, 1200));
    let proxy = Some(ProxySource::Pid(std::process::id()));
    let observation = Observation { proxy, count_calls: true, ..Observation::default() };
    let (mut shown, stop) = (Vec::new(), Arc::new(AtomicBool::new(false)));
    let result =
        run::run(&plan, &observation, &stop, &mut |moment| shown.extend(moment.calls)).expect("it runs");
    let used = result.phases[0].proxy.as_ref().and_then(|proxy| proxy.calls.as_ref());
    assert!(used.is_some_and(|used| used.system_calls > 120), "tests/run mounts tracefs: {used:?}");
    // Here the whole process is the proxy, the load generator's rings included.
    assert!(!shown.is_empty() && shown.iter().all(|calls| calls.system_calls > 100), "{shown:?}");
}

#[test]
fn a_known_delay_is_what_is_measured() {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_millis(30));
        ok()
    });
    let total = run(plan(&server.url(), Load::Hold { rate: 100.0 }, 2000)).phases[0].total();
    assert_eq!((total.planned, total.ok), (200, 200));
    for hist in [&total.service, &total.response] {
        let least = hist.quantiles().min_us;
        assert!(least >= 29.9 * MS, "{least}: nothing is faster than it was");
        assert!(hist.quantile_us(0.5) < 60.0 * MS, "{:?}", hist.quantiles());
    }
    assert!(total.response.quantiles().mean_us >= total.service.quantiles().mean_us);
}

/// The server's own clock says when requests came: as the plan has it, not when answers allowed it.
#[test]
fn requests_leave_when_the_plan_says() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let server = Server::start(move |asked| {
        seen.lock().expect("not poisoned").push(asked.at);
        thread::sleep(Duration::from_millis(20));
        ok()
    });
    run(plan(&server.url(), Load::Ramp { from: 50.0, to: 150.0 }, 2000));
    let mut times = times.lock().expect("not poisoned").clone();
    times.sort_unstable();
    let begin = times[0];
    let halfway = times.iter().filter(|at| **at - begin < Duration::from_secs(1)).count();
    assert!((199..=200).contains(&times.len()), "{}", times.len());
    // The integral of the ramp's first half is 75.
    assert!((60..=90).contains(&halfway), "{halfway}");
}

#[test]
fn an_overload_is_told_as_requests_that_were_never_sent() {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_millis(50));
        ok()
    });
    // Two connections do 40 a second at most.
    let mut plan = plan(&server.url(), Load::Hold { rate: 200.0 }, 1500);
    plan.client.connections = 2;
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!(total.planned, 300, "all of the plan is accounted for");
    assert_eq!(total.sent + total.unsent, 300);
    assert!(total.ok <= 66 && total.unsent >= 230, "{} {}", total.ok, total.unsent);
    // The unsent count with the age they had, so the percentiles do not look better than it was.
    assert!(total.response.quantile_us(0.5) > 400.0 * MS, "{:?}", total.response.quantiles());
    assert!(codes(&result).contains(&"unsent".into()) && result.validity.valid);
    let last = result.phases[0].timeline.points.last().expect("seconds");
    assert!(last.backlog > 200, "{}", last.backlog);
}

#[test]
fn what_is_under_way_at_the_end_is_unfinished_and_not_forgotten() {
    let server = Server::start(|asked| {
        if asked.number == 5 {
            thread::sleep(Duration::from_secs(20));
        }
        ok()
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 50.0 }, 1000);
    plan.client.grace = Span(Duration::from_millis(200));
    let total = run(plan).phases[0].total();
    assert_eq!((total.planned, total.ok, total.unfinished), (50, 49, 1));
    assert!(total.response.max_ns() > 700_000_000, "at least its age: {:?}", total.response.quantiles());
}

#[test]
fn lateness_of_its_own_makes_a_result_invalid() {
    let server = Server::start(|_| ok());
    let mut plan = plan(&server.url(), Load::Hold { rate: 100.0 }, 600);
    plan.client.lag_max = Some(Span(Duration::from_nanos(1)));
    let result = run(plan);
    assert!(!result.validity.valid && codes(&result) == ["send_lag"], "{:?}", result.validity);
}

/// The thread itself does nothing for a while at the phase's end: connections were free all the time.
#[test]
fn a_pause_of_its_own_at_the_end_is_not_the_targets() {
    let server = Server::start(|_| ok());
    let json = std::env::temp_dir().join(format!("loadtest-{}-paused.json", std::process::id()));
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["run", &server.url(), "--rate", "200", "--for", "2s", "--lag-max", "100ms", "-q", "--json"])
        .arg(&json)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let pid = Pid::from_child(&child);
    server.wait_for(320);
    kill_process(pid, Signal::STOP).expect("it lives");
    // The pause itself: it lasts to well behind the end.
    thread::sleep(Duration::from_millis(1000));
    kill_process(pid, Signal::CONT).expect("it lives");
    assert_eq!(child.wait().expect("it ends").code(), Some(3), "its own lateness makes it invalid");
    let result: RunResult =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("a result");
    std::fs::remove_file(&json).expect("ours");
    let total = result.phases[0].total();
    assert_eq!((total.planned, total.sent, total.ok, total.unsent), (400, 400, 400, 0));
    assert_eq!(codes(&result), ["send_lag"], "{:?}", result.validity);
    assert!(total.response.max_ns() > 500_000_000, "and is in its times: {:?}", total.response.quantiles());
}

#[test]
fn a_failure_has_no_time_unless_it_was_waited_for() {
    let server = Server::start(|asked| match asked.number % 4 {
        0 => Answer::Say(503, String::new()),
        1 => Answer::Last(Vec::new()),
        2 => {
            thread::sleep(Duration::from_millis(400));
            ok()
        }
        _ => {
            thread::sleep(Duration::from_millis(20));
            ok()
        }
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 40.0 }, 2000);
    plan.client.timeout = Span(Duration::from_millis(200));
    plan.phases[0].mix = vec![(Class::Upload { bytes: 1 }, 1.0)];
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!((total.sent, total.ok), (80, 20), "{:?}", total.errors);
    let count =
        |code: &str| total.errors.iter().find(|error| error.code == code).map_or(0, |error| error.count);
    assert_eq!((count("timeout"), total.failed), (20, 60), "{:?}", total.errors);
    for hist in [&total.service, &total.response] {
        assert_eq!(hist.count(), 40, "the good ones and those given up");
        assert!(hist.quantiles().min_us >= 20.0 * MS, "{:?}", hist.quantiles());
    }
    let rate = result.phases[0].rate();
    assert!((9.0..=10.5).contains(&rate), "only what ended as it should makes the rate: {rate}");
}

#[test]
fn a_target_that_does_nothing_right_makes_no_valid_result_and_is_not_hammered() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", closed.local_addr().expect("bound"));
    drop(closed);
    let mut plan = plan(&url, Load::Closed, 1000);
    plan.client.connections = 4;
    let result = run(plan);
    let total = result.phases[0].total();
    assert_eq!((total.ok, total.response.count()), (0, 0));
    assert!((4..=80).contains(&total.failed), "{}", total.failed);
    assert!(!result.validity.valid && codes(&result) == ["nothing"], "{:?}", result.validity);
}

#[test]
fn a_closed_loop_keeps_every_connection_busy_and_no_more() {
    let most = Arc::new(Mutex::new((0, 0)));
    let seen = most.clone();
    let server = Server::start(move |_| {
        {
            let mut most = seen.lock().expect("not poisoned");
            most.0 += 1;
            most.1 = most.1.max(most.0);
        }
        thread::sleep(Duration::from_millis(10));
        seen.lock().expect("not poisoned").0 -= 1;
        ok()
    });
    let mut plan = plan(&server.url(), Load::Closed, 1000);
    plan.client.connections = 6;
    let result = run(plan);
    assert_eq!(most.lock().expect("not poisoned").1, 6);
    let rate = result.phases[0].rate();
    assert!((120.0..=600.0).contains(&rate), "{rate}");
    assert_eq!(server.connections.load(SeqCst), 6);
}

#[test]
fn a_stop_leaves_a_true_partial_result() {
    let server = Server::start(|_| ok());
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let requests = server.requests.clone();
    thread::spawn(move || {
        while requests.load(SeqCst) < 40 {
            thread::sleep(Duration::from_millis(5));
        }
        stopping.store(true, SeqCst);
    });
    let result = run_until(plan(&server.url(), Load::Hold { rate: 50.0 }, 600_000), &stop);
    let (phase, total) = (&result.phases[0], result.phases[0].total());
    assert!(result.meta.partial && result.validity.valid, "{:?}", result.validity);
    assert_eq!(total.ok, server.requests.load(SeqCst));
    assert!(phase.duration_s < 60.0 && phase.rate() > 10.0, "{} {}", phase.duration_s, phase.rate());
}

/// What is under way holds the run up until the plan's time is over; it is less than planned all the same.
#[test]
fn a_stop_in_the_last_second_leaves_a_partial_result() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let server = Server::start(move |asked| {
        if asked.number >= 10 {
            stopping.store(true, SeqCst);
            thread::sleep(Duration::from_millis(1500));
        }
        ok()
    });
    let begun = Instant::now();
    let result = run_until(plan(&server.url(), Load::Hold { rate: 10.0 }, 1800), &stop);
    let planned = result.phases[0].total().planned;
    assert!(begun.elapsed() > Duration::from_millis(1800), "{:?}", begun.elapsed());
    // On a machine that heard of the stop too late for it, all of the plan.
    assert!(result.meta.partial || planned == 18, "{planned} of 18");
}

#[test]
fn a_stop_between_two_sessions_blames_nobody() {
    let server = Server::start(|_| Answer::Echo { corrupt_after: u32::MAX });
    let stop = Arc::new(AtomicBool::new(false));
    let mut plan = plan(&server.url(), Load::Hold { rate: 400.0 }, 600_000);
    plan.phases[0].mix = vec![("ws:1x8".parse().expect("a class"), 1.0)];
    let (stopping, requests) = (stop.clone(), server.requests.clone());
    thread::spawn(move || {
        while requests.load(SeqCst) < 100 {
            thread::sleep(Duration::from_millis(1));
        }
        stopping.store(true, SeqCst);
    });
    let result = run_until(plan, &stop);
    let total = result.phases[0].total();
    assert_eq!((total.unsent, codes(&result)), (0, vec!["partial".to_owned()]), "{:?}", result.validity);
}

#[test]
fn failures_are_named_by_what_happened_and_by_whom() {
    let error = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nx-preview-error-code: RUNNER_DOWN\r\n\
                 x-preview-error-source: runner\r\n\r\n";
    let server = Server::start(move |asked| match asked.number % 5 {
        0 => Answer::Raw(error.into()),
        1 => Answer::Say(503, String::new()),
        2 => Answer::Last(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".into()),
        3 => Answer::Last(b"SSH-2.0-OpenSSH\r\n\r\n".into()),
        _ => ok(),
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 50.0 }, 1000);
    // One connection: the order is the server's.
    plan.client.connections = 1;
    let total = run(plan).phases[0].total();
    let count = |code: &str, source: &str| {
        total.errors.iter().filter(|e| e.code == code && e.source == source).map(|e| e.count).sum::<u64>()
    };
    assert_eq!((total.ok, total.failed), (10, 40));
    assert_eq!(count("RUNNER_DOWN", "runner"), 10);
    assert_eq!(count("HTTP 503", "answer"), 10);
    assert_eq!(count("truncated", "network"), 10);
    assert_eq!(count("malformed", "answer"), 10);
}

#[test]
fn a_kept_connection_that_was_closed_costs_a_new_one_and_no_error() {
    // Every answer is followed by the end, without saying so.
    let server = Server::start(|_| Answer::Last(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into()));
    let mut plan = plan(&server.url(), Load::Hold { rate: 50.0 }, 600);
    plan.client.connections = 2;
    let total = run(plan).phases[0].total();
    assert_eq!((total.ok, total.failed), (30, 0), "{:?}", total.errors);
    assert!(total.resent >= 25, "{}", total.resent);
}

#[test]
fn uploads_arrive_whole_and_an_early_answer_counts() {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let seen = bytes.clone();
    let server = Server::start(move |asked| {
        seen.lock().expect("not poisoned").push((asked.line.clone(), asked.body_bytes));
        ok()
    });
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1000);
    plan.phases[0].mix = vec![(Class::Upload { bytes: 1000 }, 1.0), (Class::Upload { bytes: 300_000 }, 1.0)];
    let result = run(plan);
    assert_eq!(result.phases[0].total().ok, 20);
    let seen = bytes.lock().expect("not poisoned");
    assert!(
        seen.iter().all(|(line, bytes)| line == "POST /upload" && [1000, 300_000].contains(bytes)),
        "{seen:?}"
    );
    for class in ["upload:1000", "upload:300000"] {
        assert!(result.phases[0].classes[class].ok > 0, "{:?}", result.phases[0].classes.keys());
    }
}
