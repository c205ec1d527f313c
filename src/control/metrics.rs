//! `/metrics`: the shards' counters added up, as Prometheus text.

use crate::counters::{AuthResult, CacheKind, Class, Counters, DURATION_BOUNDS_MS};
use crate::error::Source;
use crate::head::Reject;
use crate::mailbox::{Down, ToShard};
use std::cell::Cell;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A shard that does not answer within this is left out.
const REPORT: Duration = Duration::from_secs(1);
/// From connecting to the last byte of the page.
const SCRAPE: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Serves one scrape after another; a scraper is a single client.
pub async fn serve(listener: TcpListener, downs: Vec<Arc<Down>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(REPORT).await;
            continue;
        };
        // A scraper that is slow or gone is no one else's trouble.
        let _ = tokio::time::timeout(SCRAPE, scrape(stream, &downs)).await;
    }
}

async fn scrape(mut stream: TcpStream, downs: &[Arc<Down>]) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|b| *b == b' ').collect::<Vec<_>>()[..] {
        [b"GET", b"/metrics", _] => ("200 OK", page(&reports(downs).await)),
        [b"GET", b"/healthz", _] => ("200 OK", "ok\n".into()),
        _ => ("404 Not Found", "see /metrics\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn reports(downs: &[Arc<Down>]) -> Vec<Counters> {
    let mut reports = Vec::new();
    for down in downs {
        let (sender, report) = oneshot::channel();
        if down.push(ToShard::Report(sender)).is_ok()
            && let Ok(Ok(counters)) = tokio::time::timeout(REPORT, report).await
        {
            reports.push(*counters);
        }
    }
    reports
}

struct Page<'a> {
    text: String,
    shards: &'a [Counters],
}

impl Page<'_> {
    fn sum(&self, pick: impl Fn(&Counters) -> &Cell<u64>) -> u64 {
        self.shards.iter().map(|c| pick(c).get()).sum()
    }

    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    /// One summed number.
    fn one(&mut self, name: &str, kind: &str, help: &str, pick: impl Fn(&Counters) -> &Cell<u64>) {
        self.about(name, kind, help);
        let value = self.sum(pick);
        self.line(name, "", value);
    }

    /// One number per shard.
    fn per_shard(&mut self, name: &str, help: &str, pick: impl Fn(&Counters) -> &Cell<u64>) {
        self.about(name, "gauge", help);
        for at in 0..self.shards.len() {
            let value = pick(&self.shards[at]).get();
            self.line(name, &format!("shard=\"{at}\""), value);
        }
    }

    /// One summed number per label value.
    fn by<T: Copy>(
        &mut self,
        name: &str,
        help: &str,
        values: &[(String, T)],
        pick: impl Fn(&Counters, T) -> &Cell<u64>,
    ) {
        self.about(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        for (labels, value) in values {
            let sum = self.sum(|c| pick(c, *value));
            self.line(name, labels, sum);
        }
    }
}

fn labelled<T: Copy>(label: &str, all: &[T], text: impl Fn(T) -> String) -> Vec<(String, T)> {
    all.iter().map(|value| (format!("{label}=\"{}\"", text(*value)), *value)).collect()
}

/// The whole page.
pub fn page(shards: &[Counters]) -> String {
    let mut p = Page { text: String::new(), shards };
    p.about("preview_build_info", "gauge", "What runs here.");
    p.line("preview_build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    durations(&mut p);
    let mut statuses = Vec::new();
    for class in Class::ALL {
        for hundreds in 0..6 {
            let status = if hundreds == 0 { "aborted".into() } else { format!("{hundreds}xx") };
            statuses.push((
                format!("class=\"{}\",status=\"{status}\"", class.as_str()),
                (*class as usize, hundreds),
            ));
        }
    }
    p.by("preview_requests_total", "Requests by class and status.", &statuses, |c, (k, s)| &c.requests[k][s]);
    p.one("http_server_active_requests", "gauge", "Requests being served.", |c| &c.requests_active);
    p.one("preview_accepted_total", "counter", "Connections accepted.", |c| &c.accepted);
    p.one("preview_shed_total", "counter", "Connections turned away at the limit.", |c| &c.connections_shed);
    p.one("preview_accept_failures_total", "counter", "Accepts that failed.", |c| &c.accept_failures);
    p.per_shard("preview_connections_open", "Open client connections.", |c| &c.connections_open);
    let auth = labelled("result", AuthResult::ALL, |r| r.as_str().into());
    p.by("preview_auth_total", "Requests by what let them in or kept them out.", &auth, |c, r| {
        &c.auth[r as usize]
    });
    let caches = labelled("cache", CacheKind::ALL, |k| k.as_str().into());
    p.by("preview_cache_hits_total", "Answers from a shard's memory.", &caches, |c, k| {
        &c.cache_hits[k as usize]
    });
    p.by("preview_cache_misses_total", "Questions a shard could not answer.", &caches, |c, k| {
        &c.cache_misses[k as usize]
    });
    p.by("preview_cache_entries", "Entries remembered.", &caches, |c, k| &c.cache_entries[k as usize]);
    let rejects = labelled("reason", Reject::ALL, |r| snake_case(&format!("{r:?}")));
    p.by("preview_rejects_total", "Messages refused as invalid HTTP.", &rejects, |c, r| {
        &c.rejects[r as usize]
    });
    let sources: Vec<_> =
        Source::ALL.iter().enumerate().map(|(at, s)| (format!("source=\"{}\"", s.as_str()), at)).collect();
    p.by("preview_errors_total", "Answers made here, by whose trouble it was.", &sources, |c, at| {
        &c.errors[at]
    });
    p.one("preview_questions_total", "counter", "Questions to the control plane.", |c| &c.questions_asked);
    p.one("preview_questions_open", "gauge", "Questions without an answer yet.", |c| &c.questions_open);
    p.one("preview_upstream_connects_total", "counter", "Connects to runners.", |c| &c.runner_connects);
    p.one("preview_upstream_connect_failures_total", "counter", "Failed ones.", |c| {
        &c.runner_connect_failures
    });
    p.one("preview_upstream_reuses_total", "counter", "Requests on a pooled connection.", |c| {
        &c.runner_reuses
    });
    p.one("preview_upstream_stale_total", "counter", "Pooled connections found dead.", |c| &c.runner_stale);
    p.one("preview_upstream_retries_total", "counter", "Requests sent again.", |c| &c.runner_retries);
    p.per_shard("preview_pool_idle", "Idle runner connections.", |c| &c.runner_idle);
    p.one("preview_tunnels_total", "counter", "Tunnels opened.", |c| &c.tunnels);
    p.one("preview_ws_open", "gauge", "Open tunnels.", |c| &c.tunnels_open);
    p.about("preview_bytes_total", "counter", "Bytes relayed, by direction and by who moved them.");
    type Pick = fn(&Counters) -> &Cell<u64>;
    let bytes: [(&str, Pick); 4] = [
        ("dir=\"up\",path=\"copy\"", |c| &c.bytes_up_copied),
        ("dir=\"up\",path=\"splice\"", |c| &c.bytes_up_spliced),
        ("dir=\"down\",path=\"copy\"", |c| &c.bytes_down_copied),
        ("dir=\"down\",path=\"splice\"", |c| &c.bytes_down_spliced),
    ];
    for (labels, pick) in bytes {
        let value = p.sum(pick);
        p.line("preview_bytes_total", labels, value);
    }
    p.one("preview_splice_calls_total", "counter", "splice(2) calls.", |c| &c.splice_calls);
    p.one("preview_truncated_total", "counter", "Answers cut short by the runner.", |c| &c.truncated);
    p.one("preview_deadlines_total", "counter", "Waits that ended by their deadline.", |c| &c.deadlines);
    p.one("preview_log_lines_total", "counter", "Access log lines written.", |c| &c.log_lines);
    p.one("preview_log_lines_dropped_total", "counter", "Lines dropped, the output was slow.", |c| {
        &c.log_lines_dropped
    });
    p.per_shard("preview_loop_stall_microseconds", "Longest hold-up since the last scrape.", |c| {
        &c.loop_stall_us
    });
    p.text
}

fn durations(p: &mut Page<'_>) {
    let name = "http_server_request_duration_seconds";
    p.about(name, "histogram", "From the first byte of a request to the end of its answer.");
    for class in Class::ALL {
        let k = *class as usize;
        let mut below = 0;
        for (at, bound) in DURATION_BOUNDS_MS.iter().enumerate() {
            below += p.sum(|c| &c.durations[k][at]);
            let le = *bound as f64 / 1000.0;
            p.line(&format!("{name}_bucket"), &format!("class=\"{}\",le=\"{le}\"", class.as_str()), below);
        }
        below += p.sum(|c| &c.durations[k][DURATION_BOUNDS_MS.len()]);
        let labels = format!("class=\"{}\"", class.as_str());
        p.line(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), below);
        let sum = p.sum(|c| &c.duration_sum_us[k]) as f64 / 1e6;
        let _ = writeln!(p.text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {below}");
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::add;

    #[test]
    fn shards_are_added_up_and_buckets_are_cumulative() {
        let shards = [Counters::default(), Counters::default()];
        add(&shards[0].accepted, 2);
        add(&shards[1].accepted, 3);
        add(&shards[0].durations[0][0], 4);
        add(&shards[1].durations[0][17], 1);
        add(&shards[1].rejects[Reject::BareLf as usize], 1);
        let page = page(&shards);
        let has = |line: &str| assert!(page.lines().any(|l| l == line), "{line} missing in\n{page}");
        has("preview_accepted_total 5");
        has("http_server_request_duration_seconds_bucket{class=\"preview\",le=\"0.005\"} 4");
        has("http_server_request_duration_seconds_bucket{class=\"preview\",le=\"180\"} 4");
        has("http_server_request_duration_seconds_bucket{class=\"preview\",le=\"+Inf\"} 5");
        has("preview_rejects_total{reason=\"bare_lf\"} 1");
    }

    #[test]
    fn every_line_is_a_comment_or_a_name_with_a_number() {
        for line in page(&[Counters::default()]).lines() {
            let number = line.rsplit(' ').next().expect("a last word");
            assert!(line.starts_with("# ") || number.parse::<f64>().is_ok(), "{line}");
        }
    }
}
