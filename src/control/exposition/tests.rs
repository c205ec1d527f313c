//! The page against the format's rules and against every field of the counters.

use super::*;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Value by sample name and labels; panics where a line is not of the format.
fn samples(page: &str) -> HashMap<String, f64> {
    let name_ok = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut families: HashMap<&str, &str> = HashMap::new();
    let mut helped = HashSet::new();
    let mut samples = HashMap::new();
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a help text");
            assert!(name_ok(name) && !text.is_empty() && helped.insert(name), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a kind");
            assert!(matches!(kind, "counter" | "gauge" | "histogram") && helped.contains(name), "{line}");
            assert!(families.insert(name, kind).is_none(), "one TYPE of each: {line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| families.get(family) == Some(&"histogram"))
                .unwrap_or(name);
            assert!(name_ok(name) && families.contains_key(family), "{line}");
            let labels = labels.strip_suffix('}').expect("closed labels");
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, text) = label.split_once('=').expect("a label");
                let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).expect("quoted");
                assert!(name_ok(label) && !text.contains(['"', '\\']), "{line}");
            }
            let value = value.parse().expect("a number");
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    samples
}

/// All cells of the counters; does not compile while it lacks a field.
fn cells(counters: &Counters) -> Vec<&Cell<u64>> {
    let Counters {
        accepted,
        connections_open,
        connections_shed,
        accept_failures,
        requests,
        requests_active,
        durations,
        duration_sum_us,
        rejects,
        errors,
        auth,
        cache_hits,
        cache_misses,
        cache_entries,
        invalidation_lags,
        revoked,
        invalidation_lag_sum_us,
        questions_asked,
        questions_open,
        runner_connects,
        runner_connect_failures,
        runner_reuses,
        runner_stale,
        runner_retries,
        runner_idle,
        sent_together,
        tunnels,
        tunnels_open,
        tunnels_half_closed,
        bytes_up_copied,
        bytes_up_spliced,
        bytes_down_copied,
        bytes_down_spliced,
        splice_calls,
        truncated,
        deadlines,
        activity_dropped,
        limited,
        log_lines,
        log_lines_dropped,
        loop_stall_us,
        cpu_us,
    } = counters;
    let mut cells = vec![
        accepted,
        connections_open,
        connections_shed,
        accept_failures,
        requests_active,
        invalidation_lag_sum_us,
        questions_asked,
        questions_open,
        runner_connects,
        runner_connect_failures,
        runner_reuses,
        runner_stale,
        runner_retries,
        runner_idle,
        sent_together,
        tunnels,
        tunnels_open,
        tunnels_half_closed,
        bytes_up_copied,
        bytes_up_spliced,
        bytes_down_copied,
        bytes_down_spliced,
        splice_calls,
        truncated,
        deadlines,
        activity_dropped,
        log_lines,
        log_lines_dropped,
        loop_stall_us,
        cpu_us,
    ];
    cells.extend(requests.iter().flatten().chain(durations.iter().flatten()).chain(duration_sum_us));
    cells.extend(rejects.iter().chain(errors).chain(auth).chain(cache_hits).chain(cache_misses));
    cells.extend(cache_entries.iter().chain(invalidation_lags).chain(revoked));
    cells.extend(limited);
    cells
}

#[test]
fn every_counter_moves_some_line_of_the_page() {
    let text = |reports: &[Option<Box<Counters>>]| page(reports, 1, &Stats::default(), &Process::default());
    let nothing = text(&[Some(Box::default())]);
    let all = cells(&Counters::default()).len();
    for at in 0..all {
        let counters = Box::<Counters>::default();
        cells(&counters)[at].set(7_000_000);
        let counters = Some(counters);
        assert_ne!(text(&[counters]), nothing, "cell {at}");
    }
}

#[test]
fn the_page_keeps_the_format_with_any_number_of_shards() {
    for count in 0..4 {
        let reports: Vec<_> = (0..count).map(|n| (n != 1).then(Box::<Counters>::default)).collect();
        let samples = samples(&page(&reports, 0, &Stats::default(), &Process::default()));
        assert_eq!(samples["preview_shards{state=\"all\"}"], f64::from(count));
        assert!(samples.values().all(|value| *value >= 0.0));
    }
}

#[test]
fn shards_add_up_and_their_gauges_stand_alone() {
    let shard = |accepted, open, connects, failures, stall_us| {
        let counters = Box::<Counters>::default();
        counters.accepted.set(accepted);
        counters.connections_open.set(open);
        counters.runner_connects.set(connects);
        counters.runner_connect_failures.set(failures);
        counters.loop_stall_us.set(stall_us);
        counters.cpu_us.set(open * 100_000);
        counters.requests[Class::Toolbox as usize][5].set(accepted);
        counters.rejects[Reject::LengthWithTransferEncoding as usize].set(accepted);
        counters.bytes_down_spliced.set(accepted);
        Some(counters)
    };
    let reports = [shard(2, 10, 5, 1, 1500), None, shard(3, 20, 6, 2, 0)];
    let samples = samples(&page(&reports, 2, &Stats::default(), &Process::default()));
    for (series, value) in [
        ("preview_connections_accepted_total", 5.0),
        ("preview_connections_open{shard=\"0\"}", 10.0),
        ("preview_connections_open{shard=\"2\"}", 20.0),
        ("preview_loop_stall_seconds{shard=\"0\"}", 0.0015),
        ("preview_shard_cpu_seconds_total{shard=\"2\"}", 2.0),
        ("preview_upstream_connects_total{result=\"ok\"}", 8.0),
        ("preview_upstream_connects_total{result=\"failed\"}", 3.0),
        ("http_server_requests_total{class=\"toolbox\",status=\"5xx\"}", 5.0),
        ("preview_rejects_total{reason=\"length_with_transfer_encoding\"}", 5.0),
        ("preview_bytes_total{dir=\"down\",path=\"splice\"}", 5.0),
        ("preview_bytes_total{dir=\"up\",path=\"splice\"}", 0.0),
        ("preview_shards{state=\"all\"}", 3.0),
        ("preview_shards{state=\"reporting\"}", 2.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
    assert!(!samples.contains_key("preview_connections_open{shard=\"1\"}"));
}

#[test]
fn buckets_are_cumulative_and_end_in_the_count() {
    let counters = Box::<Counters>::default();
    let of_class = &counters.durations[Class::WebSocket as usize];
    for (bucket, count) in [(0, 4), (4, 2), (17, 1)] {
        of_class[bucket].set(count);
    }
    counters.duration_sum_us[Class::WebSocket as usize].set(181_500_000);
    let stats = Stats::default();
    stats.landed(Operation::Runner, Duration::from_millis(60), &Err(crate::mailbox::Trouble::ApiStatus(500)));
    let samples = samples(&page(&[Some(counters)], 1, &stats, &Process::default()));
    let web = |suffix: &str, le: &str| {
        samples[&format!("http_server_request_duration_seconds_{suffix}{{class=\"websocket\"{le}}}")]
    };
    assert_eq!(web("bucket", ",le=\"0.005\""), 4.0);
    assert_eq!(web("bucket", ",le=\"0.05\""), 4.0);
    assert_eq!(web("bucket", ",le=\"0.075\""), 6.0);
    assert_eq!(web("bucket", ",le=\"180\""), 6.0);
    assert_eq!(web("bucket", ",le=\"+Inf\""), 7.0);
    assert_eq!((web("count", ""), web("sum", "")), (7.0, 181.5));
    assert_eq!(samples["preview_controlplane_seconds_bucket{op=\"runner\",le=\"0.05\"}"], 0.0);
    assert_eq!(samples["preview_controlplane_seconds_bucket{op=\"runner\",le=\"0.075\"}"], 1.0);
    assert_eq!(samples["preview_controlplane_troubles_total{trouble=\"status\"}"], 1.0);
}
