//! Medians with their spread, and what sandgate is of each.

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

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | {} |", self.peers.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.peers.len()))?;
        for (name, columns) in &self.rows {
            let first = columns.first().filter(|values| !values.is_empty()).map(|values| median(values));
            let cells = columns.iter().enumerate().map(|(column, values)| {
                if values.is_empty() {
                    return String::new();
                }
                let (low, high) = values.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
                let ratio = match first {
                    Some(first) if column > 0 => format!(", {:.2}", first / median(values)),
                    _ => String::new(),
                };
                format!("{} [{}-{}]{ratio}", short(median(values)), short(low), short(high))
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

    #[test]
    fn a_cell_has_median_spread_and_what_the_first_column_is_of_it() {
        let mut table = Table::new(&[&PEERS[0], &PEERS[1], &PEERS[2]]);
        [3.0, 1.0, 2.0].into_iter().for_each(|v| table.add("row", "sandgate", v));
        [4.0, 400.0].into_iter().for_each(|v| table.add("row", "nginx", v));
        let text = table.to_string();
        assert_eq!(text.lines().last(), Some("| row | 2.00 [1.00-3.00] | 202 [4.00-400], 0.01 |  |"));
    }
}
