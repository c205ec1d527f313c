//! Changes under load: how long until they are felt.

use super::peer::{Answer, Server, ok, plan, run};
use loadtest::plan::{Action, Churn, Expectation, Load, Probe};
use loadtest::population::AuthKind;
use loadtest::quantity::Span;
use loadtest::result::ChurnResult;
use std::sync::{Arc, Mutex};
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

fn churned(server: &Server, action: Action, effect: Expectation) -> ChurnResult {
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1500);
    plan.phases[0].churn = vec![Churn {
        name: "change".into(),
        at: Span(Duration::from_millis(200)),
        action,
        probe: Probe {
            sandbox: None,
            path: "/".into(),
            effect,
            recovery: true,
            every: Span(Duration::from_millis(2)),
        },
        within: Span(Duration::from_millis(1200)),
    }];
    run(plan).phases[0].churn[0].clone()
}

#[test]
fn the_time_to_effect_and_to_recovery_is_told() {
    let server = levered();
    let churn =
        churned(&server, Action::Post(format!("http://{}/lever", server.address)), Expectation::Refused);
    assert_eq!(churn.error, None);
    let (effect, recovered) = (churn.effect_ms.expect("seen"), churn.recovered_ms.expect("seen"));
    assert!((249.0..=600.0).contains(&effect), "{effect}");
    assert!((749.0..=1200.0).contains(&recovered), "{recovered}");
    assert!(churn.probes > 20);
}

#[test]
fn a_change_that_must_not_be_felt_is_reported_when_it_is() {
    let server = levered();
    let churn =
        churned(&server, Action::Post(format!("http://{}/lever", server.address)), Expectation::Unharmed);
    assert!(churn.effect_ms.is_some_and(|ms| ms >= 249.0), "{churn:?}");
    let harmless = churned(&server, Action::Command("true".into()), Expectation::Unharmed);
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
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1500);
    plan.target.domain = Some("preview.test".into());
    let churn = |name: &str, at_ms, effect, action| Churn {
        name: name.into(),
        at: Span(Duration::from_millis(at_ms)),
        action,
        probe: Probe {
            sandbox: Some((0, AuthKind::Public)),
            path: "/".into(),
            effect,
            recovery: false,
            every: Span(Duration::from_millis(2)),
        },
        within: Span(Duration::from_secs(20)),
    };
    // The second is planned before the first is felt, 250 ms after its lever.
    let lever = Action::Post(format!("http://{}/lever", server.address));
    plan.phases[0].churn = vec![
        churn("a", 200, Expectation::Refused, lever),
        churn("b", 210, Expectation::Ok, Action::Command("true".into())),
    ];
    let churn = run(plan).phases[0].churn.clone();
    let [first, second] = &churn[..] else { panic!("{churn:?}") };
    assert_eq!((&first.error, &second.error), (&None, &None));
    assert!(second.at_s > 0.44 && second.effect_ms.is_some(), "{second:?}");
}
