//! A latency histogram that can be merged, written and read back without loss.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as HdrReader, Serializer as _, V2Serializer};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nanoseconds, three significant digits, from 64 ns to an hour; longer ones count as an hour. At most about 250 KB.
///
/// In JSON: its quantiles for people and its counts (HdrHistogram V2, base64) for programs.
#[derive(Clone, Debug, PartialEq)]
pub struct Hist(Histogram<u64>);

/// What people read. Microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub count: u64,
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

#[derive(Serialize, Deserialize)]
struct Form {
    #[serde(flatten)]
    quantiles: Quantiles,
    hdr: String,
}

impl Default for Hist {
    fn default() -> Self {
        Self::with_digits(3)
    }
}

impl Hist {
    const LOWEST_NS: u64 = 64;
    const HIGHEST_NS: u64 = 3_600_000_000_000;

    fn with_digits(digits: u8) -> Self {
        let histogram = Histogram::new_with_bounds(1, 2, digits).map(|mut histogram| {
            // Grows with the values seen instead of taking its full size at once; the bound is kept by `record`.
            histogram.auto(true);
            histogram
        });
        Self(histogram.expect("bounds and digits are in range"))
    }

    pub fn record_ns(&mut self, ns: u64) {
        let ns = ns.clamp(Self::LOWEST_NS, Self::HIGHEST_NS);
        self.0.record(ns).expect("the histogram resizes up to what is clamped to");
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the histogram resizes up to what was recorded");
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// `quantile` from 0 to 1; 0 when empty.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) }
    }

    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.quantile_ns(quantile) as f64 / 1000.0
    }

    pub fn max_ns(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// For what this type does not offer: iteration, `.hlog`.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    pub fn clear(&mut self) {
        self.0.reset();
    }

    pub fn quantiles(&self) -> Quantiles {
        if self.0.is_empty() {
            return Quantiles::default();
        }
        Quantiles {
            count: self.count(),
            min_us: self.0.min() as f64 / 1000.0,
            mean_us: (self.0.mean() / 10.0).round() / 100.0,
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: self.0.max() as f64 / 1000.0,
        }
    }
}

impl Serialize for Hist {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).map_err(serde::ser::Error::custom)?;
        Form { quantiles: self.quantiles(), hdr: STANDARD.encode(bytes) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Hist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Form::deserialize(deserializer)?;
        let bytes = STANDARD.decode(form.hdr).map_err(D::Error::custom)?;
        let mut histogram: Histogram<u64> =
            HdrReader::new().deserialize(&mut bytes.as_slice()).map_err(D::Error::custom)?;
        histogram.auto(true);
        Ok(Self(histogram))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hist(values: &[u64]) -> Hist {
        let mut hist = Hist::default();
        values.iter().for_each(|ns| hist.record_ns(*ns));
        hist
    }

    #[test]
    fn a_histogram_survives_json_and_merging_equals_recording() {
        let (a, b) = (hist(&[1_000, 50_000, 7_000_000_000]), hist(&[80, 60_000]));
        let read: Hist = serde_json::from_str(&serde_json::to_string(&a).expect("JSON")).expect("its own");
        assert_eq!(read, a);
        let mut merged = read;
        merged.merge(&b);
        let all = hist(&[1_000, 50_000, 7_000_000_000, 80, 60_000]);
        assert_eq!(merged.quantiles(), all.quantiles());
    }

    #[test]
    fn values_are_within_a_tenth_of_a_percent_and_clamped_to_an_hour() {
        let within = |ns: u64| {
            let found = hist(&[ns]).quantile_ns(0.5);
            (found as f64 - ns as f64).abs() / ns as f64 <= 0.001
        };
        assert!([1_000, 33_333, 1_234_567, 59_999_999_999].into_iter().all(within));
        assert!(hist(&[u64::MAX]).max_ns() <= 3_602_000_000_000);
        assert_eq!(Hist::default().quantiles(), Quantiles::default());
    }

    #[test]
    fn damaged_histograms_are_refused() {
        for text in [r#"{"hdr":"!!"}"#, r#"{"hdr":"AAAA"}"#, "{}"] {
            assert!(serde_json::from_str::<Hist>(text).is_err(), "{text}");
        }
    }
}
