//! Medians with their spread, and what sandgate is of each.
//!
//! A machine that is shared has fast and slow seconds. Medians of two columns may be of different ones; what was measured in
//! the same round seldom is. So a ratio is the median of the rounds' own, and stands with their quartiles.

use crate::peer::Peer;
use std::fmt;

pub struct Table {
    peers: Vec<&'static str>,
    rows: Vec<(&'static str, Vec<Vec<f64>>)>,
}

impl Table {
    pub fn new(peers: &[&Peer]) -> Self {
        Self { peers: peers.iter().map(|p| p.name).collect(), rows: Vec::new() }
    }

    pub fn add(&mut self, row: &'static str, peer: &'static str, value: f64) {
        let at = self.rows.iter().position(|(name, _)| *name == row).unwrap_or_else(|| {
            self.rows.push((row, vec![Vec::new(); self.peers.len()]));
            self.rows.len() - 1
        });
        let column = self.peers.iter().position(|name| *name == peer).expect("one of the table's");
        self.rows[at].1[column].push(value);
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of values in order, between two of them where need be; `part` is 0.5 for the median.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() - 1) as f64 * part;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// What `ours` is of `theirs`, round by round: the median, and the quartiles. None without a round they share.
fn ratio(ours: &[f64], theirs: &[f64]) -> Option<String> {
    let ratios = sorted(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs));
    let of = |part| quantile(&ratios, part);
    (!ratios.is_empty()).then(|| format!("{:.2} ({:.2}-{:.2})", of(0.5), of(0.25), of(0.75)))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | {} |", self.peers.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.peers.len()))?;
        for (name, columns) in &self.rows {
            let cells = columns.iter().enumerate().map(|(column, values)| {
                if values.is_empty() {
                    return String::new();
                }
                let ordered = sorted(values.iter().copied());
                let of = |part| short(quantile(&ordered, part));
                let ratio = if column > 0 { ratio(&columns[0], values) } else { None };
                let ratio = ratio.map_or_else(String::new, |ratio| format!(", {ratio}"));
                format!("{} [{}-{}]{ratio}", of(0.5), of(0.0), of(1.0))
            });
            writeln!(f, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PEERS;

    fn row(rounds: &[(f64, f64)]) -> String {
        let mut table = Table::new(&[&PEERS[0], &PEERS[1], &PEERS[2]]);
        for (ours, theirs) in rounds {
            table.add("row", "nginx", *theirs);
            table.add("row", "sandgate", *ours);
        }
        table.to_string().lines().last().expect("a row").to_owned()
    }

    #[test]
    fn a_cell_has_median_spread_and_what_the_first_column_is_of_it() {
        let text = row(&[(3.0, 4.0), (1.0, 400.0), (2.0, 8.0)]);
        assert_eq!(text, "| row | 2.00 [1.00-3.00] | 8.00 [4.00-400], 0.25 (0.13-0.50) |  |");
    }

    #[test]
    fn a_machine_whose_speed_changes_between_rounds_changes_no_ratio() {
        // The medians of the columns, 20 and 11, would say 1.82.
        let text = row(&[(10.0, 11.0), (20.0, 22.0), (10.0, 11.0), (20.0, 22.0), (20.0, 11.0)]);
        assert_eq!(text, "| row | 20.0 [10.0-20.0] | 11.0 [11.0-22.0], 0.91 (0.91-0.91) |  |");
    }
}
