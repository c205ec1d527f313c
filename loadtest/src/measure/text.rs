//! Values as people read them.

use crate::result::Hist;

/// Microseconds as `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`, `3.5 min`.
pub fn time_text(us: f64) -> String {
    let (value, unit) = match us {
        _ if us <= 0.0 => return "0".into(),
        _ if us < 1.0 => (us * 1e3, "ns"),
        _ if us < 1e3 => (us, "µs"),
        _ if us < 1e6 => (us / 1e3, "ms"),
        _ if us < 6e7 => (us / 1e6, "s"),
        _ => (us / 6e7, "min"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A quantile's time; a dash where there is none.
pub fn quantile_text(hist: &Hist, quantile: f64) -> String {
    if hist.is_empty() { "–".into() } else { time_text(hist.quantile_us(quantile)) }
}

/// Bytes as `512 B`, `1.5 KiB`, `3.20 GiB`.
pub fn bytes_text(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{value:.0} B")
            } else {
                format!("{} {unit}", three_digits(value))
            };
        }
        value /= 1024.0;
    }
    format!("{} TiB", three_digits(value))
}

pub fn share_text(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent == 0.0 => "0%".into(),
        _ if percent < 0.001 => "<0.001%".into(),
        _ if percent < 0.1 => format!("{percent:.3}%"),
        // What is not all must not read as all.
        _ if percent > 99.95 && percent < 100.0 => format!("{:.3}%", percent.min(99.999)),
        _ => format!("{}%", three_digits(percent)),
    }
}

/// Counts and rates: `1,234,567`, `12.3`.
pub fn number_text(value: f64) -> String {
    if value.abs() < 100.0 && value.fract() != 0.0 {
        return three_digits(value);
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value <= -0.5 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_about_three_digits_and_a_unit() {
        assert_eq!(
            [0.85, 12.34, 999.96, 4_560.0, 1.2e6, 2.1e8].map(time_text),
            ["850 ns", "12.3 µs", "1000 µs", "4.56 ms", "1.20 s", "3.50 min"]
        );
        assert_eq!([512.0, 1536.0, 3.2e9].map(bytes_text), ["512 B", "1.50 KiB", "2.98 GiB"]);
        assert_eq!(
            [0.0, 0.000_001, 0.000_5, 0.123, 0.999_999, 1.0].map(share_text),
            ["0%", "<0.001%", "0.050%", "12.3%", "99.999%", "100%"]
        );
        assert_eq!(
            [0.0, 12.34, 999.0, 1_234_567.0, -1_000.0].map(number_text),
            ["0", "12.3", "999", "1,234,567", "-1,000"]
        );
    }
}
