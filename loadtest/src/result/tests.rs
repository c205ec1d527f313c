use super::*;

fn hist(values: &[u64]) -> Hist {
    let mut hist = Hist::default();
    values.iter().for_each(|ns| hist.record_ns(*ns));
    hist
}

#[test]
fn a_histogram_survives_json_and_merging_equals_recording() {
    let (a, b) = (hist(&[1_000, 50_000, 7_000_000_000]), hist(&[80, 60_000]));
    let read: Hist = serde_json::from_str(&serde_json::to_string(&a).expect("JSON")).expect("its own");
    assert_eq!(read, a);
    let mut merged = read;
    merged.merge(&b);
    let all = hist(&[1_000, 50_000, 7_000_000_000, 80, 60_000]);
    assert_eq!(merged.quantiles(), all.quantiles());
}

#[test]
fn values_are_within_a_tenth_of_a_percent_and_clamped_to_an_hour() {
    let within = |ns: u64| {
        let found = hist(&[ns]).quantile_ns(0.5);
        (found as f64 - ns as f64).abs() / ns as f64 <= 0.001
    };
    assert!([1_000, 33_333, 1_234_567, 59_999_999_999].into_iter().all(within));
    assert!(hist(&[u64::MAX]).max_ns() <= 3_602_000_000_000);
    assert_eq!(Hist::default().quantiles(), Quantiles::default());
}

#[test]
fn damaged_histograms_are_refused() {
    for text in [r#"{"hdr":"!!"}"#, r#"{"hdr":"AAAA"}"#, "{}"] {
        assert!(serde_json::from_str::<Hist>(text).is_err(), "{text}");
    }
}

fn second(at_s: u32, latency_ns: u64) -> Point {
    let mut heat = vec![0; HEAT_BUCKETS];
    heat[heat_bucket(latency_ns)] = 10;
    let us = latency_ns as f64 / 1000.0;
    Point {
        at_s,
        planned: 10,
        sent: 10,
        ok: 10,
        heat,
        max_us: us,
        p50_us: us,
        p99_us: us,
        ..Point::default()
    }
}

#[test]
fn a_timeline_stays_bounded_and_keeps_its_sums() {
    let mut timeline = Timeline::default();
    let seconds = 3 * Timeline::POINTS_MAX as u32;
    for at_s in 0..seconds {
        timeline.push(second(at_s, 1_000_000));
        assert!(timeline.points.len() <= Timeline::POINTS_MAX);
    }
    assert_eq!(timeline.step_s, 4);
    assert_eq!(timeline.points.iter().map(|p| p.sent).sum::<u64>(), u64::from(seconds) * 10);
    assert!(timeline.points.windows(2).all(|pair| pair[0].at_s + 4 == pair[1].at_s));
    assert!(timeline.points.iter().all(|p| (900.0..1200.0).contains(&p.p99_us)));
}

#[test]
fn timelines_of_two_load_generators_merge_by_the_second() {
    let (mut a, mut b) = (Timeline::default(), Timeline::default());
    a.push(second(0, 1_000_000));
    b.push(second(0, 9_000_000));
    b.push(second(1, 1_000_000));
    a.merge(&b);
    assert_eq!(a.points.iter().map(|p| (p.at_s, p.sent)).collect::<Vec<_>>(), [(0, 20), (1, 10)]);
    assert_eq!(a.points[0].max_us, 9000.0);
    assert!((8000.0..=9000.0).contains(&a.points[0].p99_us), "{}", a.points[0].p99_us);
}

#[test]
fn heat_buckets_cover_all_latencies_in_order() {
    let mut last = 0;
    for ns in [0, 15_999, 16_001, 100_000, 5_000_000, 1_000_000_000, 60_000_000_000, u64::MAX] {
        let bucket = heat_bucket(ns);
        assert!(bucket >= last && bucket < HEAT_BUCKETS);
        if ns < 60_000_000_000 {
            assert!(heat_bound_us(bucket) * 1000.0 >= ns as f64);
        }
        last = bucket;
    }
}

#[test]
fn merged_classes_add_up() {
    let one = |code: &str| {
        let mut class = ClassResult { planned: 2, sent: 2, ok: 1, failed: 1, ..ClassResult::default() };
        class.statuses.insert(200, 1);
        class.count_error(code, "network", 1);
        class.service.record_ns(1000);
        class.extra.entry("connect".into()).or_default().record_ns(5000);
        class
    };
    let mut sum = one("reset");
    sum.merge(&one("reset"));
    sum.merge(&one("timeout"));
    assert_eq!((sum.planned, sum.ended(), sum.statuses[&200], sum.service.count()), (6, 6, 3, 3));
    assert_eq!(
        sum.errors.iter().map(|e| (e.code.as_str(), e.count)).collect::<Vec<_>>(),
        [("reset", 2), ("timeout", 1)]
    );
    assert_eq!(sum.extra["connect"].count(), 3);
}

#[test]
fn what_is_said_of_a_change_is_what_was_seen_of_it() {
    let (stopped, over) = (Some(CutShort::Stopped), Some(CutShort::LoadOver { after_s: 0.5 }));
    let no = None::<f64>;
    // What was expected, probes, effect and recovery in ms, what ended them: what is said.
    for (unharmed, recovery, probes, effect, recovered, cut_short, said) in [
        (true, false, 0, no, no, stopped, "unknown: not made"),
        (true, false, 1, no, no, None, "unknown: no probe was answered"),
        (true, false, 1, no, no, stopped, "unknown: no probe was answered"),
        (true, false, 1, no, no, over, "unknown: no probe was answered"),
        (true, false, 9, no, no, None, "as expected"),
        (true, false, 9, no, no, over, "as expected"),
        (true, false, 9, no, no, stopped, "unknown: the run was ended before the 3 s were over"),
        (true, false, 9, Some(7.0), no, None, "missed: was felt after 0.007 s"),
        (true, false, 9, Some(7.0), Some(9.0), stopped, "missed: was felt after 0.007 s"),
        (true, false, 9, Some(7.0), no, over, "missed: was felt after 0.007 s"),
        (false, false, 0, no, no, stopped, "unknown: not made"),
        (false, true, 0, no, no, stopped, "unknown: not made"),
        (false, false, 1, no, no, None, "missed: effect not seen within 3 s"),
        (false, false, 9, no, no, stopped, "unknown: effect not seen: the run was ended"),
        (false, false, 9, no, no, over, "unknown: effect not seen in the 0.5 s"),
        (false, false, 9, Some(7.0), no, None, "as expected"),
        (false, true, 9, no, no, None, "missed: effect not seen within 3 s"),
        (false, true, 9, Some(7.0), no, None, "missed: recovery not seen within 3 s"),
        (false, true, 9, Some(7.0), no, stopped, "unknown: recovery not seen: the run was ended"),
        (false, true, 9, Some(7.0), no, over, "unknown: recovery not seen in the 0.5 s"),
        (false, true, 9, Some(7.0), Some(9.0), None, "as expected"),
        (false, true, 9, Some(7.0), Some(9.0), stopped, "as expected"),
    ] {
        let (effect_ms, recovered_ms) = (effect, recovered);
        let within_s = 3.0;
        let churn = ChurnResult {
            unharmed,
            recovery,
            probes,
            effect_ms,
            recovered_ms,
            cut_short,
            within_s,
            ..ChurnResult::default()
        };
        let found = match churn.verdict() {
            ChurnVerdict::AsExpected => "as expected".into(),
            ChurnVerdict::Missed(how) => format!("missed: {how}"),
            ChurnVerdict::Unknown(why) => format!("unknown: {why}"),
            ChurnVerdict::LeftOut(why) => format!("left out: {why}"),
        };
        assert!(found.starts_with(said), "{churn:?}: {found}");
        assert_eq!(churn.assertions().is_empty(), found.starts_with("unknown"), "{churn:?}");
        assert_eq!(churn.was_made(), probes > 0, "{churn:?}");
        // What was not done at all, or need not be, has been seen nothing of.
        let failed = ChurnResult { error: Some("why".into()), ..churn.clone() };
        assert_eq!(failed.verdict(), ChurnVerdict::Unknown("could not be done: why".into()));
        let left_out = ChurnResult { left_out: Some("why".into()), ..churn };
        assert_eq!(left_out.verdict(), ChurnVerdict::LeftOut("left out: why".into()));
        for not_made in [failed, left_out] {
            assert!(!not_made.was_made() && not_made.assertions().is_empty());
        }
    }
}
