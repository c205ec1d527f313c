//! Answers with a good status and not with what was asked for.

use super::peer::{Answer, Server, ok, plan, run};
use loadtest::plan::{Class, Load};
use loadtest::population::AuthKind;
use loadtest::result::{ClassResult, ErrorCount};

/// All requests of one class in a second, to the sandboxes of a preview domain.
fn asked(server: &Server, class: &str, bad: f64) -> ClassResult {
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1000);
    plan.target.domain = Some("preview.test".into());
    plan.workload.bad = bad;
    plan.workload.auth = vec![(AuthKind::Token, 1.0)];
    plan.phases[0].mix = vec![(class.parse::<Class>().expect("a class"), 1.0)];
    run(plan).phases[0].total()
}

fn wrong(count: u64) -> Vec<ErrorCount> {
    vec![ErrorCount { code: "wrong content".into(), source: "answer".into(), count }]
}

/// What a proxy makes of every answer that loses the end of each: the framing is in order, the content is not.
#[test]
fn an_answer_that_is_not_what_was_asked_for_is_an_error_whatever_its_status() {
    let short = Server::start(|asked| match asked.line.as_str() {
        "GET /page" => Answer::Say(200, "<!doctype html>\n</html>\n".into()),
        _ => ok(),
    });
    for class in ["get:1k", "get:64k", "page:3x8k", "upload:1000", "upload:64k"] {
        let total = asked(&short, class, 0.0);
        assert_eq!((total.ok, total.errors), (0, wrong(20)), "{class}");
        assert!(total.statuses[&200] == 20, "{class}: the status is told all the same: {:?}", total.statuses);
    }
    let empty = Server::start(|_| Answer::Say(200, String::new()));
    for class in ["get:1", "page:1x1", "upload:1"] {
        assert_eq!(asked(&empty, class, 0.0).errors, wrong(20), "{class}");
    }
    let miscounting =
        Server::start(|asked| Answer::Say(200, format!("{{\"bytes\":{}}}", asked.body_bytes - 1)));
    assert_eq!(asked(&miscounting, "upload:64k", 0.0).errors, wrong(20));
}

#[test]
fn what_was_asked_for_is_right() {
    let server = Server::start(|asked| match asked.line.split_once("/bytes/") {
        Some((_, size)) => Answer::Say(200, "x".repeat(size.parse().expect("a size"))),
        None if asked.line == "POST /upload" => {
            Answer::Say(200, format!("{{\"bytes\":{}}}", asked.body_bytes))
        }
        None => Answer::Say(200, "<!doctype html>\n</html>\n".into()),
    });
    for class in ["get:1k", "get:64k", "page:3x8k", "upload:1000", "upload:64k", "path:/anything"] {
        let total = asked(&server, class, 0.0);
        assert_eq!((total.ok, total.failed), (20, 0), "{class}: {:?}", total.errors);
    }
}

#[test]
fn a_bad_credential_that_is_let_in_is_that_and_no_wrong_content() {
    let server = Server::start(|_| ok());
    let total = asked(&server, "get:1k", 1.0);
    assert_eq!(total.errors, [ErrorCount { code: "let in".into(), source: "answer".into(), count: 20 }]);
}

/// Nobody knows what a server that is no sandbox's app says to an upload or at a path of its own.
#[test]
fn of_any_other_server_only_the_size_that_was_named_is_expected() {
    let server = Server::start(|_| ok());
    for (class, good) in [("path:/", 20), ("upload:1000", 20), ("get:2", 20), ("get:3", 0)] {
        let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 1000);
        plan.phases[0].mix = vec![(class.parse::<Class>().expect("a class"), 1.0)];
        assert_eq!(run(plan).phases[0].total().ok, good, "{class}");
    }
}
