//! Strings that must not be seen, and what may be shown of those that might contain one.

use std::fmt;

/// Stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// A string that prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// `text` without what could be a secret in it if it is, or was meant to be, a URL: whatever stands before the last
/// `@`, and query and fragment. Does not parse: a mistyped URL has the same secrets in it as a good one.
pub fn redact_url(text: &str) -> String {
    let (head, rest) = match text.rfind('@') {
        Some(at) => {
            let start = text[..at].find("://").map_or(0, |scheme_end| scheme_end + 3);
            (format!("{}{REDACTED}", &text[..start]), &text[at..])
        }
        None => (String::new(), text),
    };
    match rest.find(['?', '#']) {
        Some(end) => format!("{head}{}{REDACTED}", &rest[..=end]),
        None => head + rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_redacted_in_every_format() {
        let secret = Secret::new("canary");
        assert_eq!(format!("{secret} {secret:?} {secret:#?}"), "[redacted] [redacted] [redacted]");
        assert_eq!(secret.expose(), "canary");
    }

    #[test]
    fn a_url_is_shown_without_user_password_query_and_fragment() {
        for (text, shown) in [
            ("http://api:3000/api", "http://api:3000/api"),
            ("http://u:canary@api/api", "http://[redacted]@api/api"),
            ("http://u:can@ary@api/api", "http://[redacted]@api/api"),
            ("u:canary@api", "[redacted]@api"),
            ("http:/u:canary@api", "[redacted]@api"),
            ("http://api/api?key=canary", "http://api/api?[redacted]"),
            ("http://api/api#canary", "http://api/api#[redacted]"),
            ("http://u:c?canary@api/api", "http://[redacted]@api/api"),
            ("http://u:canary@api/api?canary", "http://[redacted]@api/api?[redacted]"),
            ("http://u:canary@api/?x=a@b?canary", "http://[redacted]@b?[redacted]"),
        ] {
            assert_eq!(redact_url(text), shown, "{text}");
            assert!(!redact_url(text).contains("canary"), "{text}");
        }
    }
}
