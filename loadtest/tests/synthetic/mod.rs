//! Results of runs that never were: latencies drawn from a distribution out of a seed, so that what a report or a
//! comparison must say is known beforehand.

use loadtest::result::{
    ClassResult, ClientHost, ClientUse, FORMAT, HEAT_BUCKETS, Meta, PhaseResult, Point, ProxyUse, RunConfig,
    RunResult, ServerCounters, ServerSample, Timeline, Validity, heat_bucket, heat_quantile_us,
};
use std::collections::BTreeMap;

/// What a run is made of.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub seed: u64,
    pub seconds: u32,
    pub rate: u64,
    /// Median response time in microseconds.
    pub median_us: f64,
    /// CPU of the proxy per request.
    pub cpu_us: f64,
    /// Share of requests that fail.
    pub errors: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { seed: 1, seconds: 30, rate: 500, median_us: 400.0, cpu_us: 12.0, errors: 0.0 }
    }
}

/// A run of one phase after a warm-up of two seconds.
pub fn run(recipe: &Recipe) -> RunResult {
    let mut dice = fastrand::Rng::with_seed(recipe.seed);
    let warmup = PhaseResult { warmup: true, ..phase(recipe, &mut dice, "warm-up", 0.0, 2) };
    let hold = phase(recipe, &mut dice, "hold", 2.0, recipe.seconds);
    RunResult {
        format: FORMAT,
        meta: Meta {
            version: "0.1.0".into(),
            name: "synthetic".into(),
            started_at: "2026-01-02T03:04:05Z".into(),
            ended_at: "2026-01-02T03:04:37Z".into(),
            command: vec!["loadtest".into(), "run".into()],
            clients: vec![ClientHost {
                hostname: "h".into(),
                kernel: "6.18".into(),
                cpu_count: 2,
                threads: 1,
            }],
            partial: false,
            started: None,
        },
        config: RunConfig {
            target: "http://127.0.0.1:4000".into(),
            model: "open".into(),
            protocol: "http/1.1".into(),
            tls: false,
            connections: 64,
            seed: recipe.seed,
            settings: vec![("sandboxes".into(), "100000".into())],
        },
        phases: vec![warmup, hold],
        server: Some(server(recipe)),
        validity: Validity { valid: true, reasons: Vec::new() },
        assertions: Vec::new(),
        search: None,
    }
}

fn phase(recipe: &Recipe, dice: &mut fastrand::Rng, name: &str, start_s: f64, seconds: u32) -> PhaseResult {
    let mut classes = BTreeMap::from([
        ("get:1k".to_owned(), ClassResult::default()),
        ("upload".to_owned(), ClassResult::default()),
    ]);
    let mut timeline = Timeline::default();
    let mut cpu_s = 0.0;
    for at_s in 0..seconds {
        // Seconds differ from each other, as they do on real machines.
        let mood = (normal(dice) * 0.05).exp();
        let mut point = Point {
            at_s,
            planned: recipe.rate,
            sent: recipe.rate,
            heat: vec![0; HEAT_BUCKETS],
            ..Point::default()
        };
        for n in 0..recipe.rate {
            let tail = if dice.f64() < 0.02 { 5.0 } else { 1.0 };
            let service_us = recipe.median_us * mood * tail * (normal(dice) * 0.3).exp();
            let response_ns = (service_us * 1100.0) as u64;
            let class =
                classes.get_mut(if n % 10 == 0 { "upload" } else { "get:1k" }).expect("both are there");
            class.planned += 1;
            class.sent += 1;
            class.bytes_down += 1024;
            class.service.record_ns((service_us * 1000.0) as u64);
            class.response.record_ns(response_ns);
            point.heat[heat_bucket(response_ns)] += 1;
            point.max_us = point.max_us.max(response_ns as f64 / 1000.0);
            if dice.f64() < recipe.errors {
                class.failed += 1;
                point.failed += 1;
                class.count_error("RUNNER_UNREACHABLE", "runner", 1);
                *class.statuses.entry(502).or_default() += 1;
            } else {
                class.ok += 1;
                point.ok += 1;
                *class.statuses.entry(200).or_default() += 1;
            }
        }
        let busy_s = recipe.rate as f64 * recipe.cpu_us * mood / 1e6;
        cpu_s += busy_s;
        point.proxy_cpu = Some(busy_s * 100.0);
        point.client_cpu = 20.0;
        point.connections = 64;
        point.p50_us = heat_quantile_us(&point.heat, 0.5);
        point.p99_us = heat_quantile_us(&point.heat, 0.99);
        timeline.push(point);
    }
    let answers: u64 = classes.values().map(ClassResult::ended).sum();
    let cpu_us_per_request = cpu_s * 1e6 / answers.max(1) as f64;
    PhaseResult {
        name: name.into(),
        kind: "hold".into(),
        start_s,
        duration_s: f64::from(seconds),
        planned_rate: Some((recipe.rate as f64, recipe.rate as f64)),
        classes,
        timeline,
        client: ClientUse { cpu_s: 1.0, busiest_percent: 20.0, ..ClientUse::default() },
        proxy: Some(ProxyUse {
            source: "pid 1".into(),
            cpu_s,
            cpu_us_per_request,
            requests_per_core_s: 1e6 / cpu_us_per_request,
            memory_max_bytes: 30 << 20,
            ..ProxyUse::default()
        }),
        ..PhaseResult::default()
    }
}

fn server(recipe: &Recipe) -> ServerCounters {
    let page = |second: u32| {
        let moved = f64::from(second) * recipe.rate as f64 * 1024.0;
        BTreeMap::from([
            ("preview_bytes_total{dir=\"down\",path=\"copy\"}".to_owned(), moved * 0.1),
            ("preview_bytes_total{dir=\"down\",path=\"splice\"}".to_owned(), moved * 0.9),
            ("preview_bytes_total{dir=\"up\",path=\"copy\"}".to_owned(), 0.0),
        ])
    };
    let seconds = recipe.seconds + 2;
    ServerCounters {
        url: "http://127.0.0.1:9090/metrics".into(),
        before: page(0),
        after: page(seconds),
        samples: (1..=seconds).map(|s| ServerSample { at_s: f64::from(s), values: page(s) }).collect(),
        failures: 0,
        last_failure: None,
    }
}

/// Standard normal, by Box and Muller.
fn normal(dice: &mut fastrand::Rng) -> f64 {
    let (a, b) = (1.0 - dice.f64(), dice.f64());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
