use super::*;
use crate::result::{ClassResult, PhaseResult};

/// Of 1000 requests 990 took a millisecond and ten 20; two failed.
fn totals() -> Totals {
    let mut class = ClassResult { sent: 1000, ok: 998, failed: 2, ..ClassResult::default() };
    for at in 0..1000 {
        class.response.record_ns(if at < 990 { 1_000_000 } else { 20_000_000 });
        class.service.record_ns(500_000);
    }
    let mut result = RunResult::default();
    result.validity.valid = true;
    let mut phase = PhaseResult { duration_s: 10.0, ..PhaseResult::default() };
    phase.classes.insert("get:1k".into(), class);
    result.phases.push(phase);
    Totals::of(&result)
}

fn holds(text: &str) -> bool {
    text.parse::<Threshold>().expect(text).check(&totals()).holds
}

#[test]
fn thresholds_are_checked_in_the_unit_they_are_written_in() {
    for text in [
        "p50<1.1ms",
        "p50 < 1100us",
        "p99<=2ms",
        "p99.9>19ms",
        "max<0.1s",
        "max<1m",
        "mean>1ms",
        "p999<21ms",
        "err<1%",
        "err<=0.002",
        "rate>=99.8",
        "rate<1k/s",
        "ok>997",
        "failed<3",
        "get:1k/p50<1.1ms",
        "service.p99<600us",
        "get:1k/service.p99<600000ns",
        "unsent<=0",
        "valid",
    ] {
        assert!(holds(text), "{text}");
    }
    for text in ["p50<1ms", "p99.9<5ms", "err<0.1%", "rate>5k", "ok>=999", "rate>=100", "get:1k/max<5ms"] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn what_the_run_does_not_know_does_not_hold() {
    for (text, found) in [
        ("cpu_us<20", "not measured"),
        ("enters<1.2", "not measured"),
        ("calls<2", "not measured"),
        ("mem<1GiB", "not measured"),
        ("spliced>90%", "not measured"),
        ("ws/p99<5ms", "no class `ws`; there are get:1k"),
        ("connect.p99<5ms", "not measured"),
        ("lag.p99<1ms", "not measured"),
    ] {
        let assertion = text.parse::<Threshold>().expect(text).check(&totals());
        assert_eq!((assertion.holds, assertion.found.as_str()), (false, found), "{text}");
    }
}

#[test]
fn a_class_may_be_named_shortly_where_one_alone_is_meant() {
    let named =
        |name: &str, names: &[&str]| crate::measure::class_named(name, names).map(|n| names[n].to_owned());
    let two = ["get:1k", "get:8k"];
    for (name, names, meant) in [
        ("get:8k", &two[..], Some("get:8k")),
        ("get:8192", &two, Some("get:8k")),
        // As `--mix get` is.
        ("get", &two, Some("get:1k")),
        ("get", &["get:8k", "upload:1k"], Some("get:8k")),
        ("upload", &["get:8k", "upload:1k"], Some("upload:1k")),
        ("get", &["get:8k", "get:9k"], None),
        ("get:2k", &two, None),
        ("ge", &two, None),
        // A saved result may have any.
        ("none of ours", &["none of ours"], Some("none of ours")),
    ] {
        assert_eq!(named(name, names).as_deref(), meant, "{name} of {names:?}");
    }
    assert!(holds("get/p50<1.1ms") && holds("get:1024/p50<1.1ms") && !holds("upload/p50<1.1ms"));
}

#[test]
fn what_a_run_cannot_know_is_told_before_it() {
    use crate::har::Recordings;
    use crate::plan::{Client, Idle, Load, Phase, Target, Workload};
    let phase = |mix: &str, warmup| Phase {
        name: "p".into(),
        load: Load::Hold { rate: 1.0 },
        length: "1s".parse().expect("a time"),
        mix: crate::run_args::mix_weights(mix, &mut Recordings::default()).expect("a mix"),
        warmup,
        churn: Vec::new(),
        idle: None,
    };
    let mut plan = Plan {
        name: "x".into(),
        target: Target::default(),
        client: Client::default(),
        workload: Workload::default(),
        phases: vec![phase("upload:1k", true), phase("get:1k,ws:1x1", false)],
        recordings: Vec::new(),
    };
    let told = |plan: &Plan, text: &str, watched| {
        foresee(&[text.parse().expect(text)], plan, &watched).err().unwrap_or_default()
    };
    let (nothing, all) = (Watched::default(), Watched { process: true, calls: true, counters: true });
    for text in [
        "p99<1s,err<1%,rate>1,lag.p99<1s,valid,failed<1",
        "get/first_byte.p99<1s,ws/ws_echo.p99<1s,ws/p50<1s",
    ] {
        assert_eq!(told(&plan, text, nothing), "", "{text}");
    }
    for (text, remedy) in [
        ("cpu_us<1", "--proxy-pid"),
        ("mem<1M", "--proxy-pid"),
        ("rps_core>1", "--proxy-pid"),
        ("calls<1", "--count-calls"),
        ("spliced>1%", "--metrics-url"),
    ] {
        assert!(told(&plan, text, nothing).contains(remedy), "{text}");
        assert_eq!(told(&plan, text, all), "", "{text}");
    }
    for (text, why) in [
        // Sent in the warm-up alone, which no threshold is about.
        ("upload/p99<1s", "no class `upload`; there are get:1k, ws:1x1"),
        ("get/ws_echo.p99<1s", "no request of this load has a time `ws_echo`"),
        ("ws/first_byte.p99<1s", "has a time `first_byte`"),
        ("asset.p99<1s", "has a time `asset`"),
        ("idle.cut<1", "--idle"),
        ("effect<1s", "nothing changes"),
        ("recovery.x<1s", "is called `x`; there are none"),
    ] {
        assert!(told(&plan, text, all).contains(why), "{text}: {}", told(&plan, text, all));
    }
    assert_eq!(told(&plan, "effect<1s,p99<1s,idle.cut<1", all).lines().count(), 2, "all together");
    plan.phases[1].idle = Some(Idle { count: 1, rate: 1.0, reopen: false });
    assert_eq!(told(&plan, "idle.cut<1", all), "");
    plan.phases[1].churn.push(crate::plan::Churn {
        name: "Redis dies".into(),
        at: Default::default(),
        action: crate::plan::Action::Command("true".into()),
        probe: crate::plan::Probe {
            sandbox: None,
            path: "/".into(),
            effect: crate::plan::Expectation::Unharmed,
            recovery: false,
            every: "1s".parse().expect("a time"),
        },
        within: Default::default(),
        undo: None,
        if_possible: false,
    });
    assert_eq!(told(&plan, "effect<1s,effect.redis-dies<1s,recovery.Redis dies<1s", all), "");
    assert!(told(&plan, "effect.redis<1s", all).contains("there are Redis dies"));
}

#[test]
fn mistakes_are_told_with_what_is_wrong_and_what_is_right() {
    for (text, told) in [
        ("", "is empty"),
        ("p99<5ms,", "is empty"),
        ("p99", "compares nothing"),
        ("p99=5ms", "none of <, <=, > and >="),
        ("p99!=5ms", "none of"),
        ("p99<<5ms", "none of"),
        ("p99<5", "a time needs a unit"),
        ("p99<5min,p50<3h", "units of time are"),
        ("p99<ms", "is no number"),
        ("p99<-5ms", "is no number"),
        ("p99<1.2.3ms", "is no number"),
        ("err<0.1ms", "a share is written like"),
        ("err<5", "at most 100%"),
        ("err<101%", "at most 100%"),
        ("rate>5ms", "a rate is written like"),
        ("mem<5ms", "units of size are"),
        ("failed<1%", "a count has no unit"),
        ("latency<5ms", "`latency` is no measure; there are p50"),
        ("servce.p99<5ms", "`servce.p99` is no measure"),
        ("get/cpu_us<5", "for the whole run only"),
        ("/p99<5ms", "the class in front of / is missing"),
    ] {
        let mistake = text.parse::<Thresholds>().expect_err(text);
        assert!(mistake.contains(told), "{text}: {mistake}");
        assert!(
            text.is_empty() || told == "is empty" || mistake.contains('`'),
            "{text}: names what it means: {mistake}"
        );
    }
}

#[test]
fn results_remember_what_was_found() {
    let Thresholds(thresholds) = "err<=0%, p99<1s".parse().expect("good");
    let mut result = RunResult::default();
    assert!(!check(&mut result, &thresholds), "nothing was measured");
    assert_eq!(result.assertions.iter().map(|a| a.holds).collect::<Vec<_>>(), [false, false]);
    let lines = lines(&result.assertions);
    assert!(
        lines.contains("FAIL  err<=0%  found not measured\n")
            && lines.contains("FAIL  p99<1s   found not measured\n"),
        "{lines}"
    );
}
