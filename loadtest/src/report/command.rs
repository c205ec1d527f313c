//! A command line as it can be given to a shell again.

/// Each word as a POSIX shell reads it back.
pub fn quoted(words: &[String]) -> Vec<String> {
    // What stands before an `=` in the first word would be a variable.
    let plain = |n: usize, word: &str| {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "@%_+:,./-".contains(c) || c == '=' && n > 0;
        !word.is_empty() && word.chars().all(harmless)
    };
    let quoted = |(n, word): (usize, &String)| match plain(n, word) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().enumerate().map(quoted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_same_words() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (given, text) in [
            (
                &["loadtest", "run", "--mix", "get:1k=8,upload:4k=1"][..],
                "loadtest run --mix get:1k=8,upload:4k=1",
            ),
            (&["loadtest", "--assert", "p99<5ms"], "loadtest --assert 'p99<5ms'"),
            (&["x", "--start", "env A=b ./sandgate", ""], "x --start 'env A=b ./sandgate' ''"),
            (
                &["A=b", "it's", "$HOME", "~/x", "a*", "a;b", "#"],
                r"'A=b' 'it'\''s' '$HOME' '~/x' 'a*' 'a;b' '#'",
            ),
            (&["two\nlines", "`x`", "\"", "\\", "é", "!"], "'two\nlines' '`x`' '\"' '\\' 'é' '!'"),
        ] {
            assert_eq!(quoted(&words(given)).join(" "), text);
            assert_eq!(shlex::split(text), Some(words(given)));
        }
    }
}
