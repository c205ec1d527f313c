//! `loadtest compare`: two results beside each other, and for each measure whether the difference is more than noise.

mod bootstrap;
mod page;

use crate::measure::{Measure, Totals, Unit, What};
use crate::quantity;
use crate::report::{self, write_file};
use crate::result::RunResult;
use crate::{assertion, cli};
use bootstrap::{Draws, SECONDS_MIN, Seconds, Statistic};
use clap::Args;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// From this share on failures are worth a word, as they have no times.
const ERRORS_TOLD: f64 = 0.01;
/// As of a run: the result is not valid.
const EXIT_INVALID: u8 = 3;

#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// What `run --json` wrote of the one to compare with
    pub a: PathBuf,
    /// And of the one to judge
    pub b: PathBuf,
    /// Write the comparison as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write it in Markdown, for CI
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Smaller differences are called noise however sure they are
    #[arg(long, default_value = "2%", value_parser = quantity::share, value_name = "SHARE")]
    pub tolerance: f64,
    /// How sure a verdict must be, each measure for itself
    #[arg(long, default_value = "99%", value_parser = quantity::share, value_name = "SHARE")]
    pub confidence: f64,
    /// Of the draws the intervals are made from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// End with 99 when any measure has become worse, with 3 when a result is not valid and nothing can be said
    #[arg(long)]
    pub fail_if_slower: bool,
}

/// How sure, how large, and where the dice begin.
#[derive(Clone, Copy, Debug)]
pub struct Judgement {
    /// 0 to 1.
    pub tolerance: f64,
    /// 0 to 1.
    pub confidence: f64,
    pub seed: u64,
}

impl Default for Judgement {
    fn default() -> Self {
        Self { tolerance: 0.02, confidence: 0.99, seed: 1 }
    }
}

/// What is said about one measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Better,
    Worse,
    /// The interval holds "no difference", or the difference is within the tolerance.
    Noise,
    /// No interval (one number each, too few seconds), or a result that is not valid.
    Unknown,
}

/// One measure of both.
#[derive(Clone, Debug)]
pub struct Row {
    pub measure: Measure,
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// Of the ratio B to A; for shares of the difference B minus A.
    pub interval: Option<(f64, f64)>,
    pub verdict: Verdict,
}

/// Two results beside each other.
pub struct Comparison<'a> {
    pub a: &'a RunResult,
    pub b: &'a RunResult,
    pub judgement: Judgement,
    /// In what they are not alike, or why not to trust it: sentences.
    pub cautions: Vec<String>,
    pub rows: Vec<Row>,
    /// Response times by class, without verdicts.
    pub classes: Vec<Row>,
}

/// Judged measures and what they are drawn as.
fn judged() -> Vec<(Measure, Statistic)> {
    let quantiles = [0.5, 0.9, 0.99, 0.999];
    let times = quantiles.map(|quantile| (Measure::response(quantile), Statistic::Quantile(quantile)));
    let others = [
        (Measure::of_all(What::Rate), Statistic::Rate),
        (Measure::of_all(What::Errors), Statistic::Errors),
        (Measure::of_all(What::Cpu), Statistic::Cpu),
    ];
    times.into_iter().chain(others).collect()
}

impl<'a> Comparison<'a> {
    pub fn new(a: &'a RunResult, b: &'a RunResult, judgement: Judgement) -> Self {
        let (totals_a, totals_b) = (Totals::of(a), Totals::of(b));
        let (seconds_a, seconds_b) = (Seconds::of(a), Seconds::of(b));
        let judged = judged();
        let enough = seconds_a.count().min(seconds_b.count()) >= SECONDS_MIN;
        let draws = enough.then(|| {
            let statistics: Vec<Statistic> = judged.iter().map(|(_, statistic)| *statistic).collect();
            Draws::new(&seconds_a, &seconds_b, &statistics, judgement.seed)
        });
        let fewest = totals_a.all.response.count().min(totals_b.all.response.count()) as f64;
        let row = |measure: Measure, statistic: Option<Statistic>| {
            let (va, vb) = (measure.value(&totals_a), measure.value(&totals_b));
            // A quantile beyond which fewer than ten lie is made of single requests.
            let seen =
                !matches!(statistic, Some(Statistic::Quantile(quantile)) if fewest * (1.0 - quantile) < 10.0);
            let known = va.zip(vb).zip(draws.as_ref()).zip(statistic).filter(|_| seen);
            let interval = known.and_then(|(((va, vb), draws), statistic)| match measure.unit() {
                Unit::Share => draws.difference(statistic, va, vb, judgement.confidence),
                _ => draws.ratio(statistic, va, vb, judgement.confidence),
            });
            // What measured the load generator says nothing about the proxy.
            let verdict = match a.validity.valid && b.validity.valid {
                true => verdict(&measure, va, vb, interval, judgement.tolerance),
                false => Verdict::Unknown,
            };
            Row { measure, a: va, b: vb, interval, verdict }
        };
        let mut rows: Vec<Row> =
            judged.into_iter().map(|(measure, statistic)| row(measure, Some(statistic))).collect();
        let shown = [What::Calls, What::Enters, What::Memory, What::Spliced];
        rows.extend(shown.map(|what| row(Measure::of_all(what), None)));
        rows.retain(|row| row.a.is_some() || row.b.is_some());
        let names: Vec<&String> =
            totals_a.classes.keys().filter(|name| totals_b.classes.contains_key(*name)).collect();
        let of_class = |name: &&String| {
            let class = Some((*name).clone());
            [0.5, 0.99]
                .map(|quantile| row(Measure { class: class.clone(), ..Measure::response(quantile) }, None))
        };
        let classes = if names.len() > 1 { names.iter().flat_map(of_class).collect() } else { Vec::new() };
        let cautions = cautions(a, b, &seconds_a, &seconds_b);
        Self { a, b, judgement, cautions, rows, classes }
    }

    /// The measure of this name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.measure.to_string() == name)
    }

    /// Why nothing is said of the measures, if nothing is.
    pub fn no_verdict(&self) -> Option<&str> {
        let judged = self.rows.iter().any(|row| row.verdict != Verdict::Unknown);
        let why = self.cautions.first().map_or("there is nothing to compare", String::as_str);
        (!judged).then_some(why)
    }

    /// Writes the files that are wanted.
    ///
    /// # Errors
    /// Names the first that cannot be written.
    pub fn write(&self, html: Option<&Path>, markdown: Option<&Path>) -> Result<(), String> {
        for (path, text) in
            [(html, Self::html as fn(&Self) -> String), (markdown, Self::markdown as fn(&Self) -> String)]
        {
            if let Some(path) = path {
                write_file(path, |out| out.write_all(text(self).as_bytes()))
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("A  {}\nB  {}\n\n", side_text(self.a), side_text(self.b));
        let mut lines = vec![["", "A", "B", "change", "interval", ""].map(String::from)];
        lines.extend(self.rows.iter().chain(&self.classes).map(|row| {
            let [a, b] = row.values();
            [row.measure.to_string(), a, b, row.change(), row.interval_text(), row.word().into()]
        }));
        let widths: Vec<usize> = (0..6)
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        for line in &lines {
            let [name, a, b, change, interval, word] = line;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{name:w0$}  {a:>w1$}  {b:>w2$}  {change:>w3$}  {interval:>w4$}  {word}",
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2],
                w3 = widths[3],
                w4 = widths[4],
            );
        }
        for caution in &self.cautions {
            let _ = write!(text, "\n! {caution}");
        }
        text.push('\n');
        text
    }

    /// For CI.
    pub fn markdown(&self) -> String {
        let escape = report::markdown::escape;
        let mut text = format!(
            "## loadtest: B against A\n\nA: {}  \nB: {}\n\n",
            escape(&side_text(self.a)),
            escape(&side_text(self.b))
        );
        text.push_str("| measure | A | B | change | interval | |\n|---|--:|--:|--:|--:|---|\n");
        for row in self.rows.iter().chain(&self.classes) {
            let [a, b] = row.values();
            let (name, word) = (escape(&row.measure.to_string()), row.word());
            let _ = writeln!(
                text,
                "| {name} | {a} | {b} | {} | {} | {word} |",
                row.change(),
                row.interval_text()
            );
        }
        for caution in &self.cautions {
            let _ = write!(text, "\n> {}\n", escape(caution));
        }
        text
    }

    pub fn html(&self) -> String {
        page::text(self)
    }

    /// Whether any measure has become worse.
    pub fn is_worse(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Worse)
    }
}

impl Row {
    fn values(&self) -> [String; 2] {
        [self.a, self.b].map(|value| value.map_or("–".into(), |value| self.measure.unit().text(value)))
    }

    /// `+12.3%`; for shares the difference in percentage points.
    pub fn change(&self) -> String {
        match (self.a, self.b, self.measure.unit()) {
            (Some(a), Some(b), Unit::Share) => points_text(b - a),
            (Some(a), Some(b), _) if a > 0.0 && b > 0.0 => ratio_text(b / a),
            _ => "–".into(),
        }
    }

    pub fn interval_text(&self) -> String {
        match (self.interval, self.measure.unit()) {
            (None, _) => String::new(),
            (Some((low, high)), Unit::Share) => format!("{} to {}", points_text(low), points_text(high)),
            (Some((low, high)), _) => format!("{} to {}", ratio_text(low), ratio_text(high)),
        }
    }

    pub fn word(&self) -> &'static str {
        match (self.verdict, &self.measure.what) {
            (Verdict::Better, What::Errors) => "better",
            (Verdict::Worse, What::Errors) => "worse",
            (Verdict::Better, _) => "faster",
            (Verdict::Worse, _) => "slower",
            (Verdict::Noise, _) => "noise",
            (Verdict::Unknown, _) => "",
        }
    }
}

fn verdict(
    measure: &Measure,
    a: Option<f64>,
    b: Option<f64>,
    interval: Option<(f64, f64)>,
    tolerance: f64,
) -> Verdict {
    let Some(((low, high), (a, b))) = interval.zip(a.zip(b)) else { return Verdict::Unknown };
    let share = measure.unit() == Unit::Share;
    let same = if share { 0.0 } else { 1.0 };
    // Of a share, a difference counts however small against the whole: one request in ten thousand failing is much.
    let small = !share && (b / a - 1.0).abs() < tolerance;
    let (larger, smaller) = (low > same, high < same);
    match (larger, smaller) {
        _ if small => Verdict::Noise,
        (false, false) => Verdict::Noise,
        (larger, _) if larger == measure.more_is_better() => Verdict::Better,
        _ => Verdict::Worse,
    }
}

/// Why to read the rows with care.
fn cautions(a: &RunResult, b: &RunResult, seconds_a: &Seconds, seconds_b: &Seconds) -> Vec<String> {
    let mut cautions = Vec::new();
    for (name, result) in [("A", a), ("B", b)] {
        for reason in result.validity.reasons.iter().filter(|reason| reason.fatal) {
            cautions.push(format!("{name} is not valid: {}", reason.message));
        }
        if result.meta.partial {
            cautions.push(format!("{name} was ended before its time."));
        }
        let errors = Totals::error_share(&Totals::of(result).all).filter(|share| *share > ERRORS_TOLD);
        if let Some(share) = errors {
            let percent = share * 100.0;
            cautions
                .push(format!("{name}: {percent:.1} % of the requests failed: the times are the others'."));
        }
    }
    let shortest = seconds_a.count().min(seconds_b.count());
    if shortest < SECONDS_MIN {
        cautions.push(format!(
            "{shortest} seconds are too few for verdicts: measure for {SECONDS_MIN} at least."
        ));
    } else if !(seconds_a.has_rounds() && seconds_b.has_rounds()) {
        cautions.push(
            "One run each: what else changed on the machine from one run to the next is not in the intervals. Rounds \
             that alternate between the two tell more."
                .into(),
        );
    }
    let (config_a, config_b) = (&a.config, &b.config);
    let rates = |result: &RunResult| {
        let rates: Vec<String> =
            result.judged().map(|phase| report::planned_rate_text(phase.planned_rate)).collect();
        rates.join(", ")
    };
    let pairs = [
        ("model", config_a.model.clone(), config_b.model.clone()),
        ("protocol", config_a.protocol.clone(), config_b.protocol.clone()),
        ("TLS", config_a.tls.to_string(), config_b.tls.to_string()),
        ("connections", config_a.connections.to_string(), config_b.connections.to_string()),
        ("planned rates", rates(a), rates(b)),
    ];
    let unlike = pairs.into_iter().filter(|(_, a, b)| a != b);
    cautions.extend(unlike.map(|(name, a, b)| format!("Not the same load: {name} {a} against {b}.")));
    // How late a load generator may be is no part of its load.
    for (name, value) in config_a.settings.iter().filter(|(name, _)| name != "lag bound") {
        if let Some((_, other)) = config_b.settings.iter().find(|(other, _)| other == name)
            && other != value
        {
            cautions.push(format!("Not the same load: {name} {value} against {other}."));
        }
    }
    cautions
}

fn side_text(result: &RunResult) -> String {
    format!("{} ({}, {})", result.meta.name, result.config.target, result.meta.started_at)
}

/// A ratio as a change: `+12.3%`, and beyond threefold `×4.2`.
fn ratio_text(ratio: f64) -> String {
    let percent = (ratio - 1.0) * 100.0;
    match percent {
        _ if ratio >= 3.0 => format!("×{ratio:.1}"),
        _ if percent.abs() < 0.05 => "0%".into(),
        _ => format!("{percent:+.1}%"),
    }
}

/// A difference of shares in percentage points.
fn points_text(difference: f64) -> String {
    let points = difference * 100.0;
    match points.abs() {
        p if p < 0.0005 => "0 pp".into(),
        p if p < 0.1 => format!("{points:+.3} pp"),
        p if p < 1.0 => format!("{points:+.2} pp"),
        _ => format!("{points:+.1} pp"),
    }
}

/// The command.
///
/// # Errors
/// A sentence: a file cannot be read or written.
pub fn run(args: &CompareArgs) -> Result<ExitCode, String> {
    let outputs = [&args.html, &args.markdown].into_iter().flatten();
    report::check_outputs(outputs, &[&args.a, &args.b]).map_err(|error| error.to_string())?;
    let (a, b) = (report::load(&args.a)?, report::load(&args.b)?);
    let judgement = Judgement { tolerance: args.tolerance, confidence: args.confidence, seed: args.seed };
    let comparison = Comparison::new(&a, &b, judgement);
    comparison.write(args.html.as_deref(), args.markdown.as_deref())?;
    cli::tell(&comparison.text(), report::take_stdout([&args.html, &args.markdown].into_iter().flatten()))?;
    Ok(match args.fail_if_slower {
        true if comparison.no_verdict().is_some() => ExitCode::from(EXIT_INVALID),
        true if comparison.is_worse() => ExitCode::from(assertion::EXIT_CODE),
        _ => ExitCode::SUCCESS,
    })
}
