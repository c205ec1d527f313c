//! Comparisons of runs whose difference is known beforehand.

mod synthetic;

use loadtest::compare::{Comparison, Judgement, Verdict};
use loadtest::result::{PhaseResult, Reason, RunResult, Timeline, Validity};
use synthetic::{Recipe, run};

const SEEDS: u64 = 40;

fn verdicts(a: &RunResult, b: &RunResult, measures: &[&str]) -> Vec<Verdict> {
    let comparison = Comparison::new(a, b, Judgement::default());
    let verdict = |name: &&str| {
        comparison
            .rows
            .iter()
            .find(|row| row.measure.to_string() == *name)
            .map(|row| row.verdict)
            .expect(name)
    };
    measures.iter().map(verdict).collect()
}

/// How often B of another seed was judged so, over all seeds and measures.
fn share(change: impl Fn(Recipe) -> Recipe, measures: &[&str], wanted: Verdict) -> f64 {
    let mut hits = 0;
    for seed in 0..SEEDS {
        let a = run(&Recipe { seed: 2 * seed + 1, ..Recipe::default() });
        let b = run(&change(Recipe { seed: 2 * seed + 2, ..Recipe::default() }));
        hits += verdicts(&a, &b, measures).into_iter().filter(|verdict| *verdict == wanted).count();
    }
    hits as f64 / (SEEDS as usize * measures.len()) as f64
}

#[test]
fn runs_of_the_same_distribution_are_noise() {
    let noise = share(|recipe| recipe, &["p50", "p90", "p99", "cpu_us", "err"], Verdict::Noise);
    assert!(noise >= 0.95, "noise in {:.1} %", noise * 100.0);
}

#[test]
fn a_run_a_fifth_slower_or_faster_is_called_so() {
    let slower =
        |recipe: Recipe| Recipe { median_us: recipe.median_us * 1.2, cpu_us: recipe.cpu_us * 1.2, ..recipe };
    let faster =
        |recipe: Recipe| Recipe { median_us: recipe.median_us / 1.2, cpu_us: recipe.cpu_us / 1.2, ..recipe };
    let measures = ["p50", "p90", "p99", "cpu_us"];
    let (worse, better) =
        (share(slower, &measures, Verdict::Worse), share(faster, &measures, Verdict::Better));
    assert!(worse >= 0.95 && better >= 0.95, "slower in {worse}, faster in {better}");
    // And never the other way round.
    assert_eq!(
        (share(slower, &measures, Verdict::Better), share(faster, &measures, Verdict::Worse)),
        (0.0, 0.0)
    );
}

#[test]
fn more_errors_are_worse_and_fewer_better() {
    let errors = |share| move |recipe: Recipe| Recipe { errors: share, ..recipe };
    assert!(share(errors(0.02), &["err"], Verdict::Worse) >= 0.95);
    let (few, many) = (run(&Recipe::default()), run(&Recipe { errors: 0.02, ..Recipe::default() }));
    assert_eq!(verdicts(&many, &few, &["err"]), [Verdict::Better]);
}

#[test]
fn a_sure_difference_within_the_tolerance_is_noise() {
    let (a, b) = (run(&Recipe::default()), run(&Recipe { cpu_us: 13.0, ..Recipe::default() }));
    let judged = |tolerance| {
        let comparison = Comparison::new(&a, &b, Judgement { tolerance, ..Judgement::default() });
        comparison.rows.iter().find(|row| row.measure.to_string() == "cpu_us").map(|row| row.verdict)
    };
    assert_eq!((judged(0.02), judged(0.15)), (Some(Verdict::Worse), Some(Verdict::Noise)));
}

#[test]
fn a_seed_repeats_the_intervals_and_they_hold_the_change() {
    let (a, b) = (run(&Recipe::default()), run(&Recipe { seed: 9, median_us: 500.0, ..Recipe::default() }));
    let intervals = |seed| {
        let comparison = Comparison::new(&a, &b, Judgement { seed, ..Judgement::default() });
        comparison.rows.iter().map(|row| row.interval).collect::<Vec<_>>()
    };
    assert_eq!(intervals(1), intervals(1));
    assert_ne!(intervals(1), intervals(2));
    let (low, high) = intervals(1)[0].expect("p50 has one");
    assert!(low < 1.25 && 1.25 < high && high - low < 0.2, "{low} to {high}");
}

#[test]
fn short_runs_get_no_verdicts_and_single_runs_a_caution() {
    let short = run(&Recipe { seconds: 5, ..Recipe::default() });
    let comparison = Comparison::new(&short, &short, Judgement::default());
    assert!(comparison.rows.iter().all(|row| row.verdict == Verdict::Unknown));
    assert!(comparison.cautions[0].contains("5 seconds are too few"), "{:?}", comparison.cautions);
    let long = run(&Recipe::default());
    let comparison = Comparison::new(&long, &long, Judgement::default());
    assert!(comparison.cautions[0].contains("One run each"), "{:?}", comparison.cautions);
    assert!(
        comparison.rows.iter().all(|row| row.verdict != Verdict::Better && row.verdict != Verdict::Worse)
    );
}

/// The run's measured seconds dealt out to rounds, each of which has a pace of its own.
fn in_rounds(recipe: &Recipe, paces: &[f64]) -> RunResult {
    let mut whole = run(recipe);
    whole.phases.clear();
    for (n, pace) in paces.iter().enumerate() {
        let round = run(&Recipe {
            seed: recipe.seed * 100 + n as u64,
            seconds: 6,
            median_us: recipe.median_us * pace,
            ..*recipe
        });
        let phase = round.phases.into_iter().find(|phase| !phase.warmup).expect("one is measured");
        whole.phases.push(PhaseResult { start_s: n as f64 * 6.0, ..phase });
    }
    whole
}

#[test]
fn what_differs_between_rounds_widens_the_interval() {
    let steady = in_rounds(&Recipe::default(), &[1.0; 6]);
    let moody = in_rounds(&Recipe { seed: 5, ..Recipe::default() }, &[0.8, 1.25, 0.85, 1.2, 0.9, 1.3]);
    let width = |b: &RunResult| {
        let comparison = Comparison::new(&steady, b, Judgement::default());
        assert!(!comparison.cautions.iter().any(|caution| caution.contains("One run each")));
        comparison.rows[0].interval.map(|(low, high)| high - low).expect("p50 has one")
    };
    let (narrow, wide) =
        (width(&in_rounds(&Recipe { seed: 3, ..Recipe::default() }, &[1.0; 6])), width(&moody));
    assert!(wide > 2.0 * narrow, "{narrow} and {wide}");
    assert_eq!(verdicts(&steady, &moody, &["p50"]), [Verdict::Noise]);
}

#[test]
fn loads_that_are_not_alike_and_invalid_runs_are_named() {
    let a = run(&Recipe::default());
    let mut b = run(&Recipe { rate: 600, ..Recipe::default() });
    b.config.connections = 128;
    b.config.settings[0].1 = "1000".into();
    b.meta.partial = true;
    b.validity =
        Validity::of(vec![Reason { code: "c".into(), message: "its CPU was at 95%".into(), fatal: true }]);
    let comparison = Comparison::new(&a, &b, Judgement::default());
    assert!(
        comparison.rows.iter().all(|row| row.verdict == Verdict::Unknown),
        "nothing is said of the proxy"
    );
    let page = comparison.html();
    assert!(page.contains("no verdicts") && !page.contains("beyond noise"));
    let all = comparison.cautions.join("\n");
    for text in [
        "B is not valid: its CPU was at 95%",
        "B was ended before its time",
        "connections 64 against 128",
        "planned rates 500/s against 600/s",
        "sandboxes 100000 against 1000",
    ] {
        assert!(all.contains(text), "{text}\n{all}");
    }
}

#[test]
fn the_page_stands_alone_and_shows_both_runs_escaped() {
    let mut a = run(&Recipe::default());
    let b = run(&Recipe { seed: 4, median_us: 600.0, ..Recipe::default() });
    a.meta.name = "<script>alert(1)</script>".into();
    a.config.settings[0].1 = "<img>".into();
    let class = a.phases[1].classes["upload"].clone();
    let mut named = b.clone();
    for result in [&mut a, &mut named] {
        result.phases[1].classes.insert("<b>".into(), class.clone());
    }
    let comparison = Comparison::new(&a, &named, Judgement::default());
    let html = comparison.html();
    for text in [
        "&lt;script&gt;",
        "slower",
        "% interval",
        "Response time by percentile",
        "CPU of the proxy",
        "&lt;b&gt;/p99",
        "class=\"interval\"",
    ] {
        assert!(html.contains(text), "{text}");
    }
    for text in ["<script", "<img", "<b>/p99", " src=", " href=", "url(", "xmlns", " style=\""] {
        assert!(!html.contains(text), "{text}");
    }
    assert!(comparison.is_worse());
    assert!(comparison.text().contains("slower") && comparison.markdown().contains("| p50 |"));
    assert!(!comparison.markdown().contains("<script"));
}

#[test]
fn system_calls_stand_beside_each_other_where_they_were_counted() {
    let mut runs = [run(&Recipe::default()), run(&Recipe::default())];
    assert!(!Comparison::new(&runs[0], &runs[1], Judgement::default()).text().contains("enters"));
    for (result, enters) in runs.iter_mut().zip([0.75, 0.5]) {
        for used in result.phases.iter_mut().filter_map(|phase| phase.proxy.as_mut()) {
            used.calls = Some(loadtest::result::CallUse {
                system_calls: 4000,
                system_calls_per_request: 2.0,
                ring_enters: (2000.0 * enters) as u64,
                ring_enters_per_request: enters,
            });
        }
    }
    let comparison = Comparison::new(&runs[0], &runs[1], Judgement::default());
    let row = |name: &str| comparison.rows.iter().find(|row| row.measure.to_string() == name).expect("shown");
    assert_eq!((row("calls").a, row("calls").b), (Some(2.0), Some(2.0)));
    assert_eq!((row("enters").a, row("enters").b), (Some(0.75), Some(0.5)));
}

#[test]
fn runs_without_anything_are_compared_without_verdicts() {
    let empty = RunResult::default();
    let comparison = Comparison::new(&empty, &empty, Judgement::default());
    assert!(comparison.rows.iter().all(|row| row.verdict == Verdict::Unknown));
    assert!(comparison.html().contains("</html>") && !comparison.text().is_empty());
    let mut silent = run(&Recipe::default());
    silent.phases[1].timeline = Timeline::default();
    assert!(!Comparison::new(&silent, &silent, Judgement::default()).is_worse());
}
