//! The live view: what goes on this second, on the whole terminal. Left when the run ends; the summary stays.

use crate::measure::{bytes_text, time_text as time};
use crate::run::Moment;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::{Backend as _, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline};
use std::io::{self, Stderr, Write as _};
use std::time::Duration;

/// Draws on stderr's terminal. Signals still reach the process: the terminal's mode is not changed.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
}

impl Screen {
    /// Takes the terminal over until this is dropped.
    pub fn open() -> io::Result<Self> {
        execute!(io::stderr(), EnterAlternateScreen, Hide)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stderr())).inspect_err(|_| leave())?;
        // Without asking where the cursor is: not every terminal answers.
        terminal.backend_mut().clear().inspect_err(|_| leave())?;
        Ok(Self { terminal })
    }

    pub fn show(&mut self, moment: &Moment<'_>) {
        // A terminal that is gone is no reason to end the run.
        drop(self.terminal.draw(|frame| draw(frame, moment)));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    drop(execute!(io::stderr(), LeaveAlternateScreen, Show));
    drop(io::stderr().flush());
}

/// The whole picture.
fn draw(frame: &mut Frame<'_>, moment: &Moment<'_>) {
    // 24 lines at least, on which everything is to be seen.
    let [head, charts, numbers, lists] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(5),
        Constraint::Length(8),
        Constraint::Max(10),
    ])
    .areas(frame.area());
    draw_progress(frame, head, moment);
    let [rate, latency] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(charts);
    draw_charts(frame, rate, latency, moment);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(numbers);
    frame.render_widget(boxed("this second", second_lines(moment)), left);
    frame.render_widget(boxed("load generator and proxy", client_lines(moment)), right);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(lists);
    frame.render_widget(boxed("errors", error_lines(moment)), left);
    frame.render_widget(boxed("the proxy's counters, per second", counter_lines(moment)), right);
}

fn boxed<'a>(title: &'a str, lines: Vec<String>) -> Paragraph<'a> {
    let lines: Vec<Line<'a>> = lines.into_iter().map(Line::from).collect();
    Paragraph::new(lines).block(Block::bordered().title(title))
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    let total: Duration = moment.plan.phases.iter().map(|phase| phase.length.0).sum();
    let phase = moment.plan.phases.get(moment.phase).map_or("", |phase| &phase.name);
    let ratio = (moment.elapsed.as_secs_f64() / total.as_secs_f64().max(1e-9)).clamp(0.0, 1.0);
    let (name, url) = (&moment.plan.name, &moment.plan.target.url);
    let name = if name == url { String::new() } else { format!(" {name} ") };
    // What changes first: the rest may be cut.
    let phases = moment.plan.phases.len();
    let title = format!(" phase {} of {phases}: {phase}  {url} {name}", moment.phase + 1);
    let label = format!(
        "{:.0} s of {:.0} s, {} ok, {} failed",
        moment.elapsed.as_secs_f64(),
        total.as_secs_f64(),
        moment.ok,
        moment.failed
    );
    let gauge = Gauge::default()
        .block(Block::bordered().title(title))
        .gauge_style(Style::default().fg(Color::Cyan))
        .ratio(ratio)
        .label(label);
    frame.render_widget(gauge, area);
}

fn draw_charts(frame: &mut Frame<'_>, rate: Rect, latency: Rect, moment: &Moment<'_>) {
    let points = &moment.timeline.points;
    let last = |width: u16| &points[points.len().saturating_sub(usize::from(width))..];
    let ended: Vec<u64> = last(rate.width).iter().map(|point| point.ok + point.failed).collect();
    let p99: Vec<u64> = last(latency.width).iter().map(|point| point.p99_us as u64).collect();
    let failing = points.last().is_some_and(|point| point.failed > 0);
    let colour = if failing { Color::Red } else { Color::Green };
    let chart = |title: String, data: Vec<u64>, colour| {
        Sparkline::default()
            .block(Block::bordered().title(title))
            .data(data)
            .style(Style::default().fg(colour))
    };
    let most = p99.iter().max().copied().unwrap_or(0) as f64;
    frame.render_widget(chart("ended per second".into(), ended, colour), rate);
    frame.render_widget(chart(format!("p99 (highest {})", time(most)), p99, Color::Yellow), latency);
}

/// No line is wider than half of 80 columns has room for.
fn second_lines(moment: &Moment<'_>) -> Vec<String> {
    let (point, q) = (moment.second, &moment.quantiles);
    let bytes = bytes_text(point.bytes_down as f64);
    vec![
        format!("planned {:>9}/s ended {:>9}/s", point.planned, point.ok + point.failed),
        format!("failed  {:>9}/s backlog {:>8}", point.failed, point.backlog),
        format!("p50 {:>10}  p90   {:>10}", time(q.p50_us), time(q.p90_us)),
        format!("p99 {:>10}  p99.9 {:>10}", time(q.p99_us), time(q.p999_us)),
        format!("max {:>10}  down  {bytes:>10}/s", time(q.max_us)),
        connection_line(moment),
    ]
}

fn connection_line(moment: &Moment<'_>) -> String {
    let planned = moment.plan.phases.get(moment.phase).and_then(|phase| phase.idle.as_ref());
    let idle =
        planned.map_or(String::new(), |idle| format!("  idle {} of {}", moment.second.idle, idle.count));
    format!("connected {}{idle}", moment.second.connections)
}

fn client_lines(moment: &Moment<'_>) -> Vec<String> {
    let point = moment.second;
    let mut lines = vec![format!("our busiest thread: {:.0} % of a CPU", point.client_cpu)];
    if point.client_cpu > 80.0 {
        lines.push("  ^ too busy to be believed".into());
    }
    if let Some(cpu) = point.proxy_cpu {
        let ended = (point.ok + point.failed).max(1);
        lines.push(format!("proxy: {cpu:.0} % CPU, {:.1} µs a request", cpu * 10_000.0 / ended as f64));
    }
    if let Some(calls) = moment.calls {
        lines.push(format!("proxy: {} system calls/s,", calls.system_calls));
        lines.push(format!("  io_uring_enter {}/s", calls.ring_enters));
    }
    lines
}

fn error_lines(moment: &Moment<'_>) -> Vec<String> {
    let mut errors: Vec<_> = moment.errors.iter().collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    errors
        .iter()
        .take(8)
        .map(|error| format!("{:>9}  {} ({})", error.count, error.code, error.source))
        .collect()
}

/// What moved most between the last two looks at the page.
fn counter_lines(moment: &Moment<'_>) -> Vec<String> {
    let (Some(before), Some(now)) = (moment.server_before, moment.server) else { return Vec::new() };
    let seconds = (now.at_s - before.at_s).max(0.1);
    let gain = |(name, value): (&String, &f64)| {
        let rate = (value - before.values.get(name)?) / seconds;
        (rate > 0.0 && !name.contains("_sum")).then(|| (rate, name.clone()))
    };
    let mut gains: Vec<(f64, String)> = now.values.iter().filter_map(gain).collect();
    gains.sort_by(|a, b| b.0.total_cmp(&a.0));
    gains.into_iter().take(8).map(|(rate, name)| format!("{rate:>9.0}  {}", short(&name))).collect()
}

/// A metric by what tells it from the others, which is mostly its labels: `preview_bytes_total{path="copy"}` is
/// `bytes{path=copy}`.
fn short(name: &str) -> String {
    let (metric, labels) = name.split_once('{').map_or((name, ""), |(metric, labels)| (metric, labels));
    let metric = metric.strip_prefix("preview_").unwrap_or(metric);
    let metric = metric.strip_suffix("_total").unwrap_or(metric);
    match labels {
        "" => metric.to_owned(),
        labels => format!("{metric}{{{}", labels.replace('"', "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Calls;
    use crate::plan::{Client, Idle, Load, Phase, Plan, Target, Workload};
    use crate::quantity::Span;
    use crate::result::{ErrorCount, Point, Quantiles, ServerSample, Timeline};
    use ratatui::backend::TestBackend;

    fn text_of(backend: &TestBackend) -> String {
        backend.buffer().content().iter().map(|cell| cell.symbol()).collect()
    }

    #[test]
    fn the_view_shows_rate_percentiles_errors_and_counters() {
        let phase = Phase {
            name: "noon".into(),
            load: Load::Hold { rate: 100.0 },
            length: Span(Duration::from_secs(10)),
            mix: Vec::new(),
            warmup: false,
            churn: Vec::new(),
            idle: Some(Idle { count: 20_000, rate: 1.0, reopen: false }),
        };
        let plan = Plan {
            name: "day".into(),
            target: Target { url: "http://proxy:4000".into(), ..Target::default() },
            client: Client::default(),
            workload: Workload::default(),
            recordings: Vec::new(),
            phases: vec![phase],
        };
        let point = Point {
            planned: 120_000,
            ok: 100_000,
            failed: 300_001,
            backlog: 1_234_567,
            bytes_down: 5 << 30,
            connections: 100_000,
            idle: 19_999,
            client_cpu: 93.0,
            proxy_cpu: Some(50.0),
            ..Point::default()
        };
        let counter = r#"preview_bytes_total{dir="down",path="splice"}"#.to_owned();
        let sample = |at_s, value| ServerSample { at_s, values: [(counter.clone(), value)].into() };
        let (before, now) = (sample(1.0, 5.0), sample(2.0, 47.0));
        let timeline = Timeline { step_s: 1, points: vec![point.clone(); 3] };
        let errors = [ErrorCount { code: "RUNNER_DOWN".into(), source: "runner".into(), count: 3 }];
        let moment = Moment {
            elapsed: Duration::from_secs(4),
            plan: &plan,
            phase: 0,
            second: &point,
            quantiles: Quantiles { p99_us: 1500.0, max_us: 99_900.0, ..Quantiles::default() },
            ok: 300,
            failed: 9,
            errors: &errors,
            calls: Some(Calls { system_calls: 321, ring_enters: 108 }),
            server: Some(&now),
            server_before: Some(&before),
            timeline: &timeline,
        };
        for (width, height) in [(120, 30), (80, 24), (10, 4)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
            terminal.draw(|frame| draw(frame, &moment)).expect("memory");
            let text = text_of(terminal.backend());
            let wanted = [
                "noon",
                "4 s of 10 s, 300 ok, 9 failed",
                "ended    400001/s",
                "failed     300001/s",
                "backlog  1234567",
                "1.50 ms",
                "max    99.9 ms",
                "5.00 GiB/s",
                "connected 100000  idle 19999 of 20000",
                "RUNNER_DOWN",
                "42  bytes{dir=down,path=splice}",
                "too busy",
                "50 % CPU, 1.2 µs a request",
                "321 system calls/s",
                "io_uring_enter 108/s",
            ];
            for wanted in if width >= 80 { &wanted[..] } else { &[] } {
                assert!(text.contains(wanted), "{wanted}: {text}");
            }
        }
    }
}
