//! Times as recordings have them (ISO 8601): `2026-05-01T12:34:56.789Z`, `2026-05-01T14:34:56.789+02:00`.

/// Microseconds since 1970. `None`: no such time. Digits beyond microseconds are left out.
pub(super) fn micros(text: &str) -> Option<i64> {
    let (day, clock) = text.split_once(['T', 't', ' '])?;
    let days = days(day)?;
    let at = clock.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = clock.split_at(at);
    let (seconds, fraction) = clock.split_once(['.', ',']).unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(seconds, ':')?;
    // A leap second is the next one's beginning.
    let in_range = hour < 24 && minute < 60 && second <= 60;
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = fraction.get(..6).unwrap_or(fraction);
    let scale = 10i64.pow(6 - u32::try_from(fraction.len()).ok()?);
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second - offset(zone)?;
    in_range.then_some(seconds * 1_000_000 + number(fraction)? * scale)
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    let (sign, rest) = zone.split_at_checked(1)?;
    if rest.is_empty() {
        return sign.eq_ignore_ascii_case("z").then_some(0);
    }
    let (hours, minutes) = match rest.split_once(':') {
        Some(parts) => parts,
        None => rest.split_at_checked(2)?,
    };
    let minutes = if minutes.is_empty() { "0" } else { minutes };
    let seconds = number(hours)? * 3600 + number(minutes)? * 60;
    match sign {
        "+" => Some(seconds),
        "-" => Some(-seconds),
        _ => None,
    }
}

/// Days since 1970 of `year-month-day` in the Gregorian calendar.
fn days(day: &str) -> Option<i64> {
    let [year, month, day] = numbers(day, '-')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    Some(365 * year + leap_days + (153 * month + 2) / 5 + day - 719_469)
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator).map(number);
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

fn number(text: &str) -> Option<i64> {
    let plain = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_zones() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:00.001Z", 1000),
            ("2000-02-29T12:00:00.5+00:00", 951_825_600_500_000),
            ("2026-05-01T12:34:56.789Z", 1_777_638_896_789_000),
            ("2026-05-01T14:34:56.789+02:00", 1_777_638_896_789_000),
            ("2026-05-01T07:04:56.789-0530", 1_777_638_896_789_000),
            ("2026-05-01T12:34:56.7891239Z", 1_777_638_896_789_123),
        ] {
            assert_eq!(micros(text), Some(expected), "{text}");
            // The standard library's way of saying the same, for what it can read.
            if text.ends_with('Z') {
                let other =
                    humantime::parse_rfc3339(text).expect("a time").duration_since(std::time::UNIX_EPOCH);
                assert_eq!(other.expect("after 1970").as_micros() as i64, expected, "{text}");
            }
        }
        for text in [
            "",
            "yesterday",
            "2026-05-01",
            "2026-05-01T12:34:56",
            "2026-13-01T00:00:00Z",
            "2026-05-01T25:00:00Z",
            "2026-05-01T12:34Z",
            "2026-05-01T12:34:56.Z",
            "2026-05-01T12:34:56é",
            "2026-05-01T12:00:00.12345éZ",
            "2026-05-01T12:00:00.123456éZ",
            "99999999999-05-01T12:34:56Z",
        ] {
            assert_eq!(micros(text), None, "{text}");
        }
    }

    /// Times with a few characters put in, taken out or replaced, most of them such as times are made of.
    #[test]
    fn no_text_panics() {
        let characters: Vec<char> = "0123456789999:-+.,TtZz éß😀\u{0}".chars().collect();
        for seed in 0..50_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut text: Vec<char> = "2026-05-01T12:34:56.123456+02:00".chars().collect();
            for _ in 0..random.usize(..8) {
                let at = random.usize(..=text.len());
                let end = (at + random.usize(..3)).min(text.len());
                let more = (0..random.usize(..3)).map(|_| characters[random.usize(..characters.len())]);
                text.splice(at..end, more.collect::<Vec<_>>());
            }
            let text: String = text.into_iter().collect();
            if std::panic::catch_unwind(|| micros(&text)).is_err() {
                panic!("seed {seed}: {text:?}");
            }
        }
    }
}
