//! Changes under load: how long until they are felt.

use super::peer::{Answer, Server, change, codes, ok, plan, run, run_until};
use loadtest::assertion::{self, Thresholds};
use loadtest::plan::{Action, Churn, Expectation, Load, Phase, Plan};
use loadtest::population::AuthKind;
use loadtest::quantity::Span;
use loadtest::report;
use loadtest::result::{ChurnResult, ChurnVerdict, RunResult};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A server that turns away what is asked from 250 ms after `POST /lever` on, for half a second.
fn levered() -> Server {
    let pulled: Arc<Mutex<Option<Instant>>> = Arc::default();
    Server::start(move |asked| {
        let mut pulled = pulled.lock().expect("not poisoned");
        if asked.line == "POST /lever" {
            *pulled = Some(Instant::now());
            return Answer::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".into());
        }
        match pulled.map(|at| at.elapsed().as_millis()) {
            Some(250..750) => Answer::Say(403, String::new()),
            _ => ok(),
        }
    })
}

fn lever(server: &Server) -> Action {
    Action::Post(format!("http://{}/lever", server.address))
}

fn with_changes(server: &Server, length_ms: u64, churn: Vec<Churn>) -> Plan {
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, length_ms);
    plan.phases[0].churn = churn;
    plan
}

/// The change is of the population's first sandbox.
fn of_sandbox(mut churn: Churn) -> Churn {
    churn.probe.sandbox = Some((0, AuthKind::Public));
    churn
}

fn churned(server: &Server, action: Action, effect: Expectation) -> ChurnResult {
    let mut churn = Churn { within: Span(Duration::from_millis(1200)), ..change(action, effect) };
    churn.probe.recovery = true;
    run(with_changes(server, 1500, vec![churn])).phases[0].churn[0].clone()
}

#[test]
fn the_time_to_effect_and_to_recovery_is_told() {
    let server = levered();
    let churn = churned(&server, lever(&server), Expectation::Refused);
    assert_eq!(churn.error, None);
    let (effect, recovered) = (churn.effect_ms.expect("seen"), churn.recovered_ms.expect("seen"));
    assert!((249.0..=600.0).contains(&effect), "{effect}");
    assert!((749.0..=1200.0).contains(&recovered), "{recovered}");
    assert!(churn.probes > 20);
}

#[test]
fn a_change_that_must_not_be_felt_is_reported_when_it_is() {
    let server = levered();
    let churn = churned(&server, lever(&server), Expectation::Unharmed);
    assert!(churn.effect_ms.is_some_and(|ms| ms >= 249.0), "{churn:?}");
    let harmless = churned(&server, Action::Command("true".into()), Expectation::Unharmed);
    assert_eq!(harmless.verdict(), ChurnVerdict::AsExpected);
    assert_eq!((harmless.effect_ms, harmless.error), (None, None));
}

#[test]
fn a_lever_that_does_not_move_says_why() {
    let server = Server::start(|_| ok());
    let churn = churned(&server, Action::Command("exit 3".into()), Expectation::Refused);
    assert!(churn.error.is_some_and(|error| error.contains("exit status: 3")) && churn.effect_ms.is_none());
    let there = churned(&server, Action::Command("true".into()), Expectation::Ok);
    assert!(there.error.is_some_and(|error| error.contains("was there before")));
}

#[test]
fn changes_of_one_sandbox_wait_for_each_other() {
    let server = levered();
    let churn = |name: &str, at_ms, effect, action| {
        let at = Span(Duration::from_millis(at_ms));
        of_sandbox(Churn { name: name.into(), at, ..change(action, effect) })
    };
    // The second is planned before the first is felt, 250 ms after its lever.
    let changes = vec![
        churn("a", 200, Expectation::Refused, lever(&server)),
        churn("b", 210, Expectation::Ok, Action::Command("true".into())),
    ];
    let mut plan = with_changes(&server, 1500, changes);
    plan.target.domain = Some("preview.test".into());
    let churn = run(plan).phases[0].churn.clone();
    let [first, second] = &churn[..] else { panic!("{churn:?}") };
    assert_eq!((&first.error, &second.error), (&None, &None));
    assert!(second.at_s > 0.44 && second.effect_ms.is_some(), "{second:?}");
}

/// A run with one change whose effect is wanted within 400 ms.
fn with_change(server: &Server, action: Action, effect: Expectation, recovery: bool) -> RunResult {
    let mut churn = Churn {
        name: "the door, shut".into(),
        within: Span(Duration::from_millis(400)),
        ..change(action, effect)
    };
    churn.probe.recovery = recovery;
    run(with_changes(server, 1500, vec![churn]))
}

fn holds(result: &mut RunResult, thresholds: &str) -> Vec<bool> {
    let thresholds: Thresholds = thresholds.parse().expect("good");
    result.assertions.clear();
    assertion::check(result, &thresholds.0);
    result.assertions.iter().map(|assertion| assertion.holds).collect()
}

#[test]
fn what_a_plan_expects_of_a_change_is_a_threshold_of_the_run() {
    let server = levered();
    let mut felt = with_change(&server, lever(&server), Expectation::Refused, false);
    let [assertion] = &felt.assertions[..] else { panic!("{:?}", felt.assertions) };
    assert!(assertion.holds && assertion.text == "effect.the door, shut<=0.4s", "{assertion:?}");
    assert!(report::markdown(&felt).contains("| the door, shut | p + 0.2 s | "));
    let thresholds =
        "effect<1s,effect.the-door-shut<1s,effect.the-door-shut<100ms,effect.another<1s,recovery<1s";
    assert_eq!(holds(&mut felt, thresholds), [true, true, false, false, false], "{:?}", felt.assertions);

    // Nothing happens; it is felt where nothing should be; it is felt and does not end in time.
    let deaf = Server::start(|_| ok());
    let missed = with_change(&deaf, lever(&deaf), Expectation::Refused, false);
    let server = levered();
    let harmed = with_change(&server, lever(&server), Expectation::Unharmed, false);
    let server = levered();
    let unhealed = with_change(&server, lever(&server), Expectation::Refused, true);
    for (mut result, why) in [
        (missed, "effect not seen within 0.4 s"),
        (harmed, "was felt after 0."),
        (unhealed, "recovery not seen"),
    ] {
        assert!(result.validity.valid && result.assertions.iter().any(|assertion| !assertion.holds), "{why}");
        assert!(
            matches!(result.phases[0].churn[0].verdict(), ChurnVerdict::Missed(how) if how.contains(why))
        );
        let (html, markdown) = (report::html(&result), report::markdown(&result));
        assert!(html.contains(why) && markdown.contains(&format!("❌ {why}")), "{markdown}");
        assert_eq!(holds(&mut result, "recovery.the-door-shut<60s"), [false]);
    }
}

#[test]
fn a_change_that_could_not_be_made_makes_the_result_invalid() {
    let server = Server::start(|_| ok());
    let nowhere = format!("http://127.0.0.1:{}/lever", crate::free_port::free_port());
    for (action, effect, why) in [
        (Action::Command("exit 3".into()), Expectation::Refused, "exit status: 3"),
        (Action::Command("exit 3".into()), Expectation::Unharmed, "exit status: 3"),
        (Action::Post(nowhere), Expectation::Refused, "connect refused"),
        (Action::Command("true".into()), Expectation::Ok, "was there before"),
    ] {
        let result = with_change(&server, action, effect, false);
        assert_eq!((result.validity.valid, codes(&result)), (false, vec!["churn".to_owned()]), "{why}");
        assert!(result.validity.reasons[0].message.contains(why), "{:?}", result.validity.reasons);
        assert!(result.assertions.is_empty(), "nothing is known about the target: {:?}", result.assertions);
    }
}

#[test]
fn probes_end_with_the_load_and_say_so() {
    let server = Server::start(|_| ok());
    let churn = |effect| Churn {
        within: Span(Duration::from_secs(60)),
        ..change(Action::Command("true".into()), effect)
    };
    let plan = with_changes(&server, 1000, vec![churn(Expectation::Refused), churn(Expectation::Unharmed)]);
    let begun = Instant::now();
    let result = run(plan);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let [refused, unharmed] = &result.phases[0].churn[..] else { panic!("{:?}", result.phases[0].churn) };
    assert!(
        matches!(refused.verdict(), ChurnVerdict::Unknown(why) if why.contains("until the load was over"))
    );
    assert_eq!(unharmed.verdict(), ChurnVerdict::AsExpected, "it was not, as long as there was load");
    assert!(!result.validity.valid && codes(&result) == ["churn"], "{:?}", result.validity.reasons);
}

/// Where levers are pulled: `true` when the door was shut and opened again, and when.
#[derive(Default)]
struct Door {
    shut: AtomicBool,
    opened: Mutex<Vec<Instant>>,
}

fn door(server_door: &Arc<Door>) -> Server {
    let door = server_door.clone();
    Server::start(move |asked| {
        match asked.line.as_str() {
            "POST /shut" => door.shut.store(true, SeqCst),
            "POST /open" => {
                door.shut.store(false, SeqCst);
                door.opened.lock().expect("not poisoned").push(Instant::now());
            }
            _ if door.shut.load(SeqCst) => return Answer::Say(403, String::new()),
            _ => {}
        }
        ok()
    })
}

#[test]
fn what_was_changed_is_put_back_when_the_load_is_over_and_when_it_is_stopped() {
    let door_of = Arc::new(Door::default());
    let server = door(&door_of);
    let post = |path: &str| Action::Post(format!("http://{}/{path}", server.address));
    let churn = |at_ms, path: &str, effect, undo| {
        let at = Span(Duration::from_millis(at_ms));
        of_sandbox(Churn { name: path.into(), at, undo, ..change(post(path), effect) })
    };
    let shutting = |length_ms, churn: Vec<Churn>| {
        let mut plan = with_changes(&server, length_ms, churn);
        plan.target.domain = Some("preview.test".into());
        plan
    };
    let opened = || std::mem::take(&mut *door_of.opened.lock().expect("not poisoned"));
    let shut = || churn(200, "shut", Expectation::Refused, Some(post("open")));

    let begun = Instant::now();
    let result = run(shutting(1500, vec![shut()]));
    assert_eq!(result.phases[0].churn[0].verdict(), ChurnVerdict::AsExpected);
    let [at] = opened()[..] else { panic!("opened once") };
    assert!(at - begun >= Duration::from_millis(1500), "after the load, not into it: {:?}", at - begun);

    // Opened by the plan itself: nothing is left to be done.
    run(shutting(1500, vec![shut(), churn(600, "open", Expectation::Ok, None)]));
    assert_eq!(opened().len(), 1, "by the plan");

    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, watched) = (stop.clone(), door_of.clone());
    let stopper = thread::spawn(move || {
        while !watched.shut.load(SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        stopping.store(true, SeqCst);
    });
    let result = run_until(shutting(600_000, vec![shut()]), &stop);
    stopper.join().expect("it watched");
    assert!(result.meta.partial && result.phases[0].churn[0].put_back_error.is_none());
    assert_eq!(opened().len(), 1, "put back");
    assert!(!door_of.shut.load(SeqCst));

    // The server of a lever may be gone by then.
    let lost = Churn { undo: Some(Action::Command("exit 7".into())), ..shut() };
    let result = run(shutting(1500, vec![lost]));
    let told = &result.validity.reasons[0];
    assert!(result.validity.valid && told.message.contains("could not be put back"), "{told:?}");
}

#[test]
fn a_change_a_stopped_run_did_not_come_to_makes_its_result_invalid() {
    let server = Server::start(|_| ok());
    for expected in [Expectation::Unharmed, Expectation::Refused] {
        let late = || Churn { at: Span(Duration::from_secs(500)), ..change(lever(&server), expected) };
        let mut plan = with_changes(&server, 600_000, vec![late()]);
        let next = Phase { name: "next".into(), churn: vec![late()], ..plan.phases[0].clone() };
        plan.phases.push(next);
        let stop = Arc::new(AtomicBool::new(false));
        let result = thread::scope(|scope| {
            let run = scope.spawn(|| run_until(plan, &stop));
            let before = server.requests.load(SeqCst);
            server.wait_for(before + 10);
            stop.store(true, SeqCst);
            run.join().expect("no panic")
        });
        assert!(result.meta.partial && !result.validity.valid && result.assertions.is_empty());
        assert_eq!(codes(&result), ["partial", "churn", "churn"], "one of them in a phase that never came");
        let why = "change: not made: the run was ended before it was its turn";
        for (reason, phase) in result.validity.reasons[1..].iter().zip(["p", "next"]) {
            assert!(reason.fatal && reason.message == format!("{phase}: {why}"), "{reason:?}");
        }
        assert!(report::markdown(&result).contains(&format!("❌ {}", &why["change: ".len()..])));
    }
}

#[test]
fn nothing_is_known_of_harm_that_was_there_before() {
    let ill = Server::start(|_| Answer::Say(503, String::new()));
    let harmed = churned(&ill, Action::Command("true".into()), Expectation::Unharmed);
    assert!(
        matches!(&harmed.verdict(), ChurnVerdict::Unknown(why) if why.contains("was there before: Fails")),
        "{harmed:?}"
    );
}

#[test]
fn a_target_that_answers_no_more_is_not_unharmed_however_short_it_is_watched() {
    let pulled = Arc::new(AtomicBool::new(false));
    let seen = pulled.clone();
    let silent = Server::start(move |asked| {
        if asked.line == "POST /lever" {
            seen.store(true, SeqCst);
        } else if seen.load(SeqCst) {
            // Longer than a probe waits, and than these 400 ms.
            thread::sleep(Duration::from_secs(3));
        }
        ok()
    });
    // It is watched to its end, or until the load ends.
    for within in [Duration::from_millis(400), Duration::from_secs(60)] {
        pulled.store(false, SeqCst);
        let churn = Churn { within: Span(within), ..change(lever(&silent), Expectation::Unharmed) };
        let result = run(with_changes(&silent, 1500, vec![churn]));
        let churn = &result.phases[0].churn[0];
        assert!(
            matches!(churn.verdict(), ChurnVerdict::Missed(how) if how.contains("was felt after")),
            "{churn:?}"
        );
        assert!(!result.assertions[0].holds, "{:?}", result.assertions);
    }
}

#[test]
fn a_lever_the_backend_does_not_have_is_left_out_where_that_is_allowed_only() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "POST /lever" => Answer::Say(501, String::new()),
        _ => ok(),
    });
    let changed = |if_possible| {
        let churn = Churn { if_possible, ..change(lever(&server), Expectation::Unharmed) };
        run(with_changes(&server, 1000, vec![churn]))
    };
    let left_out = changed(true);
    assert!(left_out.validity.valid && left_out.assertions.is_empty());
    assert!(left_out.validity.reasons[0].message.contains("left out"), "{:?}", left_out.validity.reasons);
    assert!(report::markdown(&left_out).contains("left out"));
    assert!(!changed(false).validity.valid);
}

#[test]
fn a_scenario_whose_change_fails_ends_with_99_or_3_and_a_change_after_its_phase_with_2() {
    let server = Server::start(|_| ok());
    let base = format!("http://{}", server.address);
    let file = std::env::temp_dir().join(format!("loadtest-churn-{}.toml", std::process::id()));
    let scenario = |at: &str, what: &str| {
        let text = format!(
            "name = 'x'\nabout = 'x'\n[client]\nconnections = 2\nlag_max = '1s'\n\
             [[phase]]\nname = 'p'\nfor = '2s'\nrate = 20\nmix = {{ 'path:/' = 1 }}\n\
             [[phase.churn]]\nname = 'c'\nat = '{at}'\neffect = 'refused'\nwithin = '300ms'\n{what}\n"
        );
        std::fs::write(&file, text).expect("written");
        let path = file.to_str().expect("UTF-8");
        let arguments = ["scenario", path, &base, "--domain", "preview.test", "--levers", &base, "-q"];
        let output =
            Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    for (at, what, code, told) in [
        ("200ms", "lever = 'private'", 99, "FAIL  effect.c<=0.3s  found not seen"),
        (
            "200ms",
            "command = 'exit 3'",
            3,
            "NOT VALID: p: c: could not be done: the command ended with exit status: 3",
        ),
        ("50s", "command = 'true'", 2, "churn c: at 50s is not within the phase, which is 2s long"),
        ("2s", "command = 'true'", 2, "churn c: at 2s"),
        ("1s", "lever = 'private'\nundo = 'true'", 2, "a lever undoes itself"),
    ] {
        let (found, text) = scenario(at, what);
        assert!(found == Some(code) && text.contains(told), "{what}: {found:?}\n{text}");
    }
    std::fs::remove_file(&file).expect("ours");
}
