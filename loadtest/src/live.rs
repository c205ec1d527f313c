//! The live view: what goes on this second, on the whole terminal. Left when the run ends; the summary stays.

use crate::console::time;
use crate::quantity::bytes_text;
use crate::run::Moment;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
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
        terminal.clear().inspect_err(|_| leave())?;
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
    let [head, charts, numbers, lists] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(6),
        Constraint::Length(7),
        Constraint::Length(10),
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
    let title = format!(
        " {}  {}  phase {} of {}: {phase} ",
        moment.plan.name,
        moment.plan.target.url,
        moment.phase + 1,
        moment.plan.phases.len()
    );
    let label = format!("{:.0} s of {:.0} s", moment.elapsed.as_secs_f64(), total.as_secs_f64());
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

fn second_lines(moment: &Moment<'_>) -> Vec<String> {
    let (point, q) = (moment.second, &moment.quantiles);
    vec![
        format!(
            "planned {:>8}/s   ended {:>8}/s   failed {:>6}/s",
            point.planned,
            point.ok + point.failed,
            point.failed
        ),
        format!("p50 {:>10}   p90 {:>10}", time(q.p50_us), time(q.p90_us)),
        format!("p99 {:>10}   p99.9 {:>8}   max {:>10}", time(q.p99_us), time(q.p999_us), time(q.max_us)),
        format!(
            "backlog {:>8}   connections {:>6}   {}B/s down",
            point.backlog,
            point.connections,
            bytes_text(point.bytes_down >> 10 << 10)
        ),
        format!("so far: {} ok, {} failed", moment.ok, moment.failed),
    ]
}

fn client_lines(moment: &Moment<'_>) -> Vec<String> {
    let point = moment.second;
    let warn = if point.client_cpu > 80.0 { "  <- too busy to be believed" } else { "" };
    let mut lines = vec![format!("busiest thread of ours: {:.0} % of a CPU{warn}", point.client_cpu)];
    if let Some(cpu) = point.proxy_cpu {
        let ended = (point.ok + point.failed).max(1);
        lines
            .push(format!("proxy: {cpu:.0} % of a CPU, {:.1} us per request", cpu * 10_000.0 / ended as f64));
    }
    if let Some(calls) = moment.calls {
        let (all, enters) = (calls.system_calls, calls.ring_enters);
        lines.push(format!("proxy: {all} system calls/s, of them io_uring_enter {enters}"));
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
    gains.into_iter().take(8).map(|(rate, name)| format!("{rate:>12.0}  {name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Calls;
    use crate::plan::{Client, Load, Phase, Plan, Target, Workload};
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
            idle: None,
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
            planned: 120,
            ok: 100,
            failed: 3,
            client_cpu: 93.0,
            proxy_cpu: Some(50.0),
            ..Point::default()
        };
        let sample =
            |at_s, value| ServerSample { at_s, values: [("requests_total".to_owned(), value)].into() };
        let (before, now) = (sample(1.0, 5.0), sample(2.0, 47.0));
        let timeline = Timeline { step_s: 1, points: vec![point.clone(); 3] };
        let errors = [ErrorCount { code: "RUNNER_DOWN".into(), source: "runner".into(), count: 3 }];
        let moment = Moment {
            elapsed: Duration::from_secs(4),
            plan: &plan,
            phase: 0,
            second: &point,
            quantiles: Quantiles { p99_us: 1500.0, ..Quantiles::default() },
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
                "4 s of 10 s",
                "103/s",
                "1.50 ms",
                "RUNNER_DOWN",
                "42  requests_total",
                "too busy",
                "321 system calls/s, of them io_uring_enter 108",
            ];
            for wanted in if width == 120 { &wanted[..] } else { &[] } {
                assert!(text.contains(wanted), "{wanted}: {text}");
            }
        }
    }
}
