//! The timeline as comma-separated values (RFC 4180), for plots of one's own: a line for each step of each phase.

use crate::result::RunResult;
use std::io::{self, Write};

const HEAD: &str = "phase,warmup,at_s,step_s,planned,sent,ok,failed,p50_us,p99_us,max_us,backlog,connections,\
                    bytes_down,client_cpu_percent,proxy_cpu_percent,idle";

/// Counts are of the step, `at_s` is since the run's start. What was not measured is empty.
pub fn write(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{HEAD}\r\n")?;
    for phase in &result.phases {
        let (name, step_s) = (quoted(&phase.name), phase.timeline.step_s);
        for point in &phase.timeline.points {
            let at_s = phase.start_s + f64::from(point.at_s);
            // Without a time there is no percentile.
            let timed = point.heat.iter().any(|count| *count > 0);
            let time = |us: f64| if timed { format!("{us:.1}") } else { String::new() };
            let proxy_cpu = point.proxy_cpu.map_or(String::new(), |percent| format!("{percent:.1}"));
            write!(
                out,
                "{name},{},{at_s},{step_s},{},{},{},{},{},{},{},{},{},{},{:.1},{proxy_cpu},{}\r\n",
                phase.warmup,
                point.planned,
                point.sent,
                point.ok,
                point.failed,
                time(point.p50_us),
                time(point.p99_us),
                time(point.max_us),
                point.backlog,
                point.connections,
                point.bytes_down,
                point.client_cpu,
                point.idle,
            )?;
        }
    }
    Ok(())
}

/// Names are whatever a scenario says. Spreadsheets take what begins so for a formula: it gets an apostrophe, as they want it.
fn quoted(name: &str) -> String {
    let mark = if name.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("\"{mark}{}\"", name.replace('"', "\"\""))
}
