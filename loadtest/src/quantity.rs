//! How quantities are written on the command line and in scenarios: `64k`, `1.5M`, `250ms`, `1%`, `3000,5173`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A count or a number of bytes: digits with k, M or G (powers of ten for counts, of two for bytes).
fn scaled(text: &str, kilo: u64) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a number such as 500, 64k or 1.5M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => kilo,
        "m" | "M" => kilo.pow(2),
        "g" | "G" => kilo.pow(3),
        _ => return Err(wrong()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(wrong());
    }
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    Ok((number * factor as f64).round() as u64)
}

/// A count: `100k` is 100,000.
pub fn count(text: &str) -> Result<u64, String> {
    scaled(text, 1000)
}

/// A [`count`] of things there are never more than 4 billion of.
pub fn count32(text: &str) -> Result<u32, String> {
    u32::try_from(count(text)?).map_err(|_| format!("`{text}` is more than {}", u32::MAX))
}

/// A size in bytes: `64k` is 65,536.
pub fn bytes(text: &str) -> Result<u64, String> {
    scaled(text, 1024)
}

/// A size as short as it can be written.
pub fn bytes_text(bytes: u64) -> String {
    for (unit, suffix) in [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{suffix}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// A rate in requests per second: `5000`, `5k` or `0.5`.
pub fn rate(text: &str) -> Result<f64, String> {
    let number = match text.parse::<f64>() {
        Ok(number) => number,
        Err(_) => count(text)? as f64,
    };
    let ok = number.is_finite() && number > 0.0 && number <= 1e8;
    ok.then_some(number).ok_or_else(|| format!("`{text}` is no rate above 0 and up to 100M"))
}

/// A share from 0 to 1: `1%` or `0.01`.
pub fn share(text: &str) -> Result<f64, String> {
    let (digits, scale) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    match digits.parse::<f64>() {
        Ok(number) if (0.0..=scale).contains(&number) => Ok(number / scale),
        _ => Err(format!("`{text}` is no share such as 1% or 0.01")),
    }
}

/// A duration: `250ms`, `30s`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("`{text}`: {error}"))
}

/// A [`duration`] of a load, or of a wait in it.
pub fn length(text: &str) -> Result<Span, String> {
    let length = duration(text)?;
    let ok = length <= crate::plan::LENGTH_MAX;
    ok.then_some(Span(length))
        .ok_or_else(|| format!("`{text}` is longer than 31 days, the longest a load may be"))
}

/// A duration that scenarios write as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        duration(text).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `name:weight` pairs with commas between, as in `token:30,public:70`; a weight may be left out and is 1.
pub fn weights<T>(text: &str, name: impl Fn(&str) -> Result<T, String>) -> Result<Vec<(T, f64)>, String> {
    let pair = |part: &str| {
        let (key, weight) = part.rsplit_once([':', '=']).unwrap_or((part, "1"));
        match weight.trim_end_matches('%').parse::<f64>() {
            Ok(weight) if weight >= 0.0 && weight.is_finite() => Ok((name(key.trim())?, weight)),
            _ => Err(format!("`{part}`: the weight is no number")),
        }
    };
    let pairs = text.split(',').map(pair).collect::<Result<Vec<_>, _>>()?;
    let sum: f64 = pairs.iter().map(|(_, weight)| weight).sum();
    if sum > 0.0 { Ok(pairs) } else { Err(format!("`{text}`: all weights are 0")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_decimal_and_sizes_binary() {
        assert_eq!(count("100k"), Ok(100_000));
        assert_eq!(count("1.5M"), Ok(1_500_000));
        assert_eq!((count32("4G"), count32("5G").is_err()), (Ok(4_000_000_000), true));
        assert_eq!(bytes("64k"), Ok(65_536));
        assert_eq!(bytes("0"), Ok(0));
        for text in ["", "k", "-1", "1e9", "1kk", "0x10", "ten"] {
            assert!(count(text).is_err() && bytes(text).is_err(), "{text}");
        }
        assert_eq!([0, 1000, 1024, 65_536, 1 << 20].map(bytes_text), ["0", "1000", "1k", "64k", "1M"]);
    }

    #[test]
    fn rates_and_shares_have_bounds() {
        assert_eq!((rate("0.5"), rate("5k"), rate("1e3")), (Ok(0.5), Ok(5000.0), Ok(1000.0)));
        assert!(["0", "-1", "inf", "nan", "1e9", ""].into_iter().all(|text| rate(text).is_err()));
        assert_eq!((share("1%"), share("0.25"), share("100%")), (Ok(0.01), Ok(0.25), Ok(1.0)));
        assert!(["101%", "2", "-1%", "x"].into_iter().all(|text| share(text).is_err()));
    }

    #[test]
    fn weights_are_named_and_not_all_zero() {
        let name = |text: &str| Ok(text.to_owned());
        assert_eq!(weights("a:3,b", name), Ok(vec![("a".into(), 3.0), ("b".into(), 1.0)]));
        assert_eq!(weights("get:1k=90", name), Ok(vec![("get:1k".into(), 90.0)]));
        assert!(weights("a:0", name).is_err() && weights("a:-1", name).is_err());
    }
}
