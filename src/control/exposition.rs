//! Counters as text: Prometheus' exposition format 0.0.4. Pure; a new counter is one line here.
//!
//! Labels come from closed lists of ours: never a sandbox, a host or anything else a client names.

use super::process::Process;
use super::stats::{
    ActivityResult, LOGIN_RESULTS, LOGIN_STEPS, Operation, RecheckResult, SharedResult, Stats, TROUBLES,
};
use crate::admission::Limit;
use crate::contained;
use crate::counters::{AuthResult, CacheKind, Class, Counters, DURATION_BOUNDS_MS, LAG_BOUNDS_US, Revoked};
use crate::error::Source;
use crate::head::Reject;
use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

type Field = fn(&Counters) -> &Cell<u64>;

/// Only grow; summed over the shards.
const TOTALS: &[(&str, &str, Field)] = &[
    ("preview_connections_accepted_total", "Client connections accepted.", |c| &c.accepted),
    ("preview_connections_shed_total", "Client connections refused for want of room.", |c| {
        &c.connections_shed
    }),
    ("preview_accept_failures_total", "Accepts that failed for want of descriptors or memory.", |c| {
        &c.accept_failures
    }),
    ("preview_questions_total", "Questions shards asked of the control plane.", |c| &c.questions_asked),
    ("preview_upstream_reuses_total", "Requests sent on a pooled runner connection.", |c| &c.runner_reuses),
    ("preview_upstream_stale_total", "Pooled runner connections found dead when needed.", |c| {
        &c.runner_stale
    }),
    ("preview_upstream_retries_total", "Requests sent to a runner a second time.", |c| &c.runner_retries),
    ("preview_sent_together_total", "Heads and whole answers left to the ring, to leave with others.", |c| {
        &c.sent_together
    }),
    ("preview_ws_total", "Tunnels opened (WebSockets).", |c| &c.tunnels),
    ("preview_splice_calls_total", "Calls of splice(2).", |c| &c.splice_calls),
    ("preview_truncated_total", "Bodies a runner cut short.", |c| &c.truncated),
    ("preview_deadlines_total", "Deadlines that ran out.", |c| &c.deadlines),
    ("preview_activity_unsaid_total", "Mentions of sandboxes in use that found the mailbox full.", |c| {
        &c.activity_dropped
    }),
    ("preview_log_lines_total", "Access log lines handed to the writer.", |c| &c.log_lines),
    ("preview_log_lines_dropped_total", "Access log lines dropped because the writer lagged.", |c| {
        &c.log_lines_dropped
    }),
];

/// Gauges summed over the shards.
const GAUGES: &[(&str, &str, Field)] = &[
    ("http_server_active_requests", "Requests being served.", |c| &c.requests_active),
    ("preview_questions_open", "Questions shards wait for.", |c| &c.questions_open),
    ("preview_ws_open", "Tunnels open now.", |c| &c.tunnels_open),
    ("preview_ws_half_closed", "Open tunnels of which one way has ended.", |c| &c.tunnels_half_closed),
];

/// Gauges of each shard.
const SHARD_GAUGES: &[(&str, &str, Field)] = &[
    ("preview_connections_open", "Client connections open now.", |c| &c.connections_open),
    ("preview_pool_idle", "Idle runner connections.", |c| &c.runner_idle),
];

/// The page. `reports` by shard, `None` for one that has never reported; `reporting` is how many did this time.
pub(super) fn page(
    reports: &[Option<Box<Counters>>],
    reporting: usize,
    stats: &Stats,
    process: &Process,
) -> String {
    let mut page = Page { text: String::with_capacity(16 * 1024) };
    let sum = |field: &dyn Fn(&Counters) -> &Cell<u64>| {
        reports.iter().flatten().map(|counters| field(counters).get()).fold(0, u64::wrapping_add)
    };
    for (name, help, field) in TOTALS {
        page.family(name, "counter", help).sample(name, &[], sum(field));
    }
    for (name, help, field) in GAUGES {
        page.family(name, "gauge", help).sample(name, &[], sum(field));
    }
    for (name, help, field) in SHARD_GAUGES {
        page.family(name, "gauge", help);
        for (shard, counters) in reported(reports) {
            page.sample(name, &[("shard", &shard)], field(counters).get());
        }
    }
    let name = "preview_loop_stall_seconds";
    page.family(name, "gauge", "Longest time between two looks at the ring since the last scrape.");
    for (shard, counters) in reported(reports) {
        page.sample(name, &[("shard", &shard)], counters.loop_stall_us.get() as f64 / 1e6);
    }

    let name = "preview_shard_cpu_seconds_total";
    page.family(name, "counter", "CPU of the shard's thread; its rate is how busy the shard is.");
    for (shard, counters) in reported(reports) {
        page.sample(name, &[("shard", &shard)], counters.cpu_us.get() as f64 / 1e6);
    }

    requests(&mut page, &sum);
    labelled(&mut page, &sum);
    control_plane(&mut page, stats);

    let name = "preview_faults_total";
    page.family(name, "counter", "Connections ended by a fault of the gate's own; its log names the place.");
    page.sample(name, &[], contained::faults());
    let name = "preview_shards";
    page.family(name, "gauge", "Shards of this process, and those that answered this scrape in time.");
    page.sample(name, &[("state", "all")], reports.len());
    page.sample(name, &[("state", "reporting")], reporting);
    let name = "preview_build_info";
    page.family(name, "gauge", "Always 1; the labels say what runs.");
    page.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    own(&mut page, process);
    page.text
}

/// The process by the names Prometheus' clients have for these.
fn own(page: &mut Page, process: &Process) {
    let name = "process_cpu_seconds_total";
    page.family(name, "counter", "CPU of all threads.").sample(name, &[], process.cpu.as_secs_f64());
    let name = "process_start_time_seconds";
    page.family(name, "gauge", "When the process began, since 1970.");
    page.sample(name, &[], process.started.as_secs_f64());
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Memory that is there.", process.resident_bytes),
        ("process_open_fds", "Descriptors that are open.", process.open_fds),
        ("process_max_fds", "Descriptors that may be open.", process.max_fds),
    ] {
        if let Some(value) = value {
            page.family(name, "gauge", help).sample(name, &[], value);
        }
    }
}

type Sum<'a> = &'a dyn Fn(&dyn Fn(&Counters) -> &Cell<u64>) -> u64;

/// What is known by class of request.
fn requests(page: &mut Page, sum: Sum<'_>) {
    let name = "http_server_requests_total";
    page.family(name, "counter", "Requests by class and by hundreds of the status; none: the client left.");
    for (class, label) in Class::ALL.iter().map(|class| class.as_str()).enumerate() {
        for (hundreds, status) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let count = sum(&|c| &c.requests[class][hundreds]);
            page.sample(name, &[("class", label), ("status", status)], count);
        }
    }
    let name = "http_server_request_duration_seconds";
    page.family(name, "histogram", "From a request's first byte to the end of its exchange.");
    for (class, label) in Class::ALL.iter().map(|class| class.as_str()).enumerate() {
        let bucket = |n: usize| sum(&|c| &c.durations[class][n]);
        page.histogram(name, ("class", label), bucket, sum(&|c| &c.duration_sum_us[class]));
    }
}

/// What is known by a label of its own.
fn labelled(page: &mut Page, sum: Sum<'_>) {
    let name = "preview_rejects_total";
    page.family(name, "counter", "Messages refused, by reason.");
    for (n, reject) in Reject::ALL.iter().enumerate() {
        page.sample(name, &[("reason", &snake_case(&format!("{reject:?}")))], sum(&|c| &c.rejects[n]));
    }
    let name = "preview_errors_total";
    page.family(name, "counter", "Answers made here instead of by an app, by whose doing it was.");
    for (n, source) in Source::ALL.iter().enumerate() {
        page.sample(name, &[("source", source.as_str())], sum(&|c| &c.errors[n]));
    }
    let name = "preview_auth_total";
    page.family(name, "counter", "How requests were let in or refused.");
    for (n, result) in AuthResult::ALL.iter().enumerate() {
        page.sample(name, &[("result", result.as_str())], sum(&|c| &c.auth[n]));
    }
    let name = "preview_limited_total";
    page.family(name, "counter", "Requests, connections and look-ups refused because of a limit.");
    for (n, limit) in Limit::ALL.iter().enumerate() {
        page.sample(name, &[("limit", limit.as_str())], sum(&|c| &c.limited[n]));
    }
    let name = "preview_cache_total";
    page.family(name, "counter", "Look-ups in the shards' caches.");
    for (n, cache) in CacheKind::ALL.iter().map(|cache| ("cache", cache.as_str())).enumerate() {
        page.sample(name, &[cache, ("result", "hit")], sum(&|c| &c.cache_hits[n]));
        page.sample(name, &[cache, ("result", "miss")], sum(&|c| &c.cache_misses[n]));
    }
    let name = "preview_cache_entries";
    page.family(name, "gauge", "Entries in the shards' caches.");
    for (n, cache) in CacheKind::ALL.iter().enumerate() {
        page.sample(name, &[("cache", cache.as_str())], sum(&|c| &c.cache_entries[n]));
    }
    let name = "preview_invalidation_lag_seconds";
    page.family(name, "histogram", "How long a change in Redis took to reach a shard, by canaries.");
    let mut count = 0u64;
    for (n, bound) in LAG_BOUNDS_US.iter().map(|us| (*us as f64 / 1e6).to_string()).enumerate() {
        count = count.wrapping_add(sum(&|c| &c.invalidation_lags[n]));
        page.sample(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    count = count.wrapping_add(sum(&|c| &c.invalidation_lags[LAG_BOUNDS_US.len()]));
    page.sample(&format!("{name}_bucket"), &[("le", "+Inf")], count);
    page.sample(&format!("{name}_sum"), &[], sum(&|c| &c.invalidation_lag_sum_us) as f64 / 1e6);
    page.sample(&format!("{name}_count"), &[], count);
    let name = "preview_revoked_total";
    page.family(name, "counter", "Tunnels and streams cut because their right is gone, by why.");
    for (n, reason) in Revoked::ALL.iter().enumerate() {
        page.sample(name, &[("reason", reason.as_str())], sum(&|c| &c.revoked[n]));
    }
    let name = "preview_upstream_connects_total";
    page.family(name, "counter", "Connects to runners.");
    // Shards count all of them and the failed ones among them.
    let failed = sum(&|c| &c.runner_connect_failures);
    page.sample(name, &[("result", "ok")], sum(&|c| &c.runner_connects).saturating_sub(failed));
    page.sample(name, &[("result", "failed")], failed);
    let name = "preview_bytes_total";
    page.family(
        name,
        "counter",
        "Body and tunnel bytes; up is towards runners; spliced ones stay in the kernel.",
    );
    page.sample(name, &[("dir", "up"), ("path", "copy")], sum(&|c| &c.bytes_up_copied));
    page.sample(name, &[("dir", "up"), ("path", "splice")], sum(&|c| &c.bytes_up_spliced));
    page.sample(name, &[("dir", "down"), ("path", "copy")], sum(&|c| &c.bytes_down_copied));
    page.sample(name, &[("dir", "down"), ("path", "splice")], sum(&|c| &c.bytes_down_spliced));
}

fn control_plane(page: &mut Page, stats: &Stats) {
    let Stats {
        flight_seconds,
        troubles,
        logins,
        activity,
        joined,
        flights_open,
        answers_waiting,
        redis,
        push,
        rechecks,
        shared,
    } = stats;
    let load = |atomic: &AtomicU64| atomic.load(Relaxed);
    let name = "preview_controlplane_seconds";
    page.family(name, "histogram", "How long questions took that went to the API, all tries together.");
    for (operation, flights) in Operation::ALL.iter().zip(flight_seconds) {
        let bucket = |n: usize| load(&flights.buckets[n]);
        page.histogram(name, ("op", operation.as_str()), bucket, load(&flights.sum_us));
    }
    let name = "preview_controlplane_troubles_total";
    page.family(name, "counter", "Questions that found no answer, by why.");
    for (trouble, count) in TROUBLES.into_iter().zip(troubles) {
        page.sample(name, &[("trouble", trouble)], load(count));
    }
    let name = "preview_login_total";
    page.family(name, "counter", "Steps of logins, by how they ended.");
    for (step, results) in LOGIN_STEPS.into_iter().zip(logins) {
        for (result, count) in LOGIN_RESULTS.into_iter().zip(results) {
            page.sample(name, &[("step", step), ("result", result)], load(count));
        }
    }
    let name = "preview_activity_total";
    page.family(name, "counter", "Mentions by shards that a sandbox is in use, by what became of them.");
    for (result, count) in ActivityResult::ALL.iter().zip(activity) {
        page.sample(name, &[("result", result.as_str())], load(count));
    }
    let name = "preview_questions_joined_total";
    page.family(name, "counter", "Questions that shared the call of an equal one.").sample(
        name,
        &[],
        load(joined),
    );
    let name = "preview_controlplane_flights_open";
    page.family(name, "gauge", "Questions at the API now.").sample(name, &[], load(flights_open));
    let name = "preview_controlplane_answers_waiting";
    page.family(name, "gauge", "Answers that wait for room in a shard's queue.");
    page.sample(name, &[], load(answers_waiting));
    let name = "preview_redis_up";
    page.family(name, "gauge", "1 while the shared Redis answers.").sample(name, &[], load(&redis.up));
    let name = "preview_redis_connect_failures_total";
    page.family(name, "counter", "Attempts to connect to the shared Redis that failed.");
    page.sample(name, &[], load(&redis.connects_failed));
    let name = "preview_redis_operations_total";
    page.family(
        name,
        "counter",
        "Operations on the shared Redis; skipped ones found it down and cost nothing.",
    );
    for (result, count) in [
        ("ok", &redis.done),
        ("refused", &redis.refused),
        ("failed", &redis.failed),
        ("skipped", &redis.skipped),
    ] {
        page.sample(name, &[("result", result)], load(count));
    }
    let name = "preview_shared_cache_total";
    page.family(name, "counter", "Look-ups in the shared cache by what they found.");
    for (result, count) in SharedResult::ALL.iter().zip(shared) {
        page.sample(name, &[("result", result.as_str())], load(count));
    }
    let name = "preview_public_rechecks_total";
    page.family(name, "counter", "Public flags that were shared, by what the API said when asked again.");
    for (result, count) in RecheckResult::ALL.iter().zip(rechecks) {
        page.sample(name, &[("result", result.as_str())], load(count));
    }
    let name = "preview_push_trusted";
    page.family(name, "gauge", "1 while changes are known to be heard of as they happen.");
    page.sample(name, &[], load(&push.trusted));
    let name = "preview_push_changes_total";
    page.family(name, "counter", "Changes of sandboxes heard of.").sample(name, &[], load(&push.changes));
    let name = "preview_push_unreadable_total";
    page.family(name, "counter", "Messages on the API's channel that name no sandbox.");
    page.sample(name, &[], load(&push.unreadable));
    let name = "preview_push_lost_total";
    page.family(name, "counter", "Times there was no room for a change and everything was forgotten.");
    page.sample(name, &[], load(&push.lost));
}

fn reported(reports: &[Option<Box<Counters>>]) -> impl Iterator<Item = (String, &Counters)> {
    reports.iter().enumerate().filter_map(|(shard, report)| Some((shard.to_string(), report.as_deref()?)))
}

/// `HeadTooLarge` to `head_too_large`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 8);
    for (at, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Writing to a String cannot fail: the results below are ignored for that reason.
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) -> &mut Self {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    /// Label values are ours and hold nothing that needs escaping.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (n, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{value}\"", if n == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// `bucket` gives the count between two bounds; the format wants them cumulative.
    fn histogram(&mut self, name: &str, label: (&str, &str), bucket: impl Fn(usize) -> u64, sum_us: u64) {
        let buckets = format!("{name}_bucket");
        let mut count = 0u64;
        for (n, bound_ms) in DURATION_BOUNDS_MS.into_iter().enumerate() {
            count = count.wrapping_add(bucket(n));
            self.sample(&buckets, &[label, ("le", &(bound_ms as f64 / 1e3).to_string())], count);
        }
        count = count.wrapping_add(bucket(DURATION_BOUNDS_MS.len()));
        self.sample(&buckets, &[label, ("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[label], sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[label], count);
    }
}

#[cfg(test)]
mod tests;
