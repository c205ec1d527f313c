//! `.env` files: lines to names and values. Knows no variable by name and no directory.
//!
//! The dialect is the one v0.190 reads, as far as a line goes: `export`, comments, single quotes (as they stand), double
//! quotes (escapes and references), `$NAME` and `${NAME}` for names set further up in the same file. Two things it does
//! silently are errors here: a reference to a name that is not set above, and a quoted value that goes on over lines.

/// A line that cannot be read. Its text is left out on purpose: it may hold a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    pub problem: &'static str,
    pub remedy: &'static str,
}

/// Names and values in the file's order, and every line that could not be read.
pub fn parse(text: &str) -> (Vec<(String, String)>, Vec<BadLine>) {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut bad = Vec::new();
    for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match pair(line, &pairs) {
            Ok(pair) => pairs.push(pair),
            Err((problem, remedy)) => bad.push(BadLine { line: index + 1, problem, remedy }),
        }
    }
    (pairs, bad)
}

type Problem = (&'static str, &'static str);

fn pair(line: &str, above: &[(String, String)]) -> Result<(String, String), Problem> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (name, value) = line.split_once('=').ok_or(("there is no = in this line", "write NAME=value"))?;
    let name = name.trim_end();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(("what stands before the = is no name", "write NAME=value, the name in A-Z, 0-9 and _"));
    }
    Ok((name.to_owned(), value_of(value.trim_start(), above)?))
}

fn value_of(text: &str, above: &[(String, String)]) -> Result<String, Problem> {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        return expand(without_comment(text), above, Quoting::None);
    };
    let body = &text[1..];
    let end = closing(body, quote).ok_or((
        "the quoted value does not end in this line",
        "close the quote; write a line break as \\n",
    ))?;
    let rest = body[end + 1..].trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err((
            "something follows the closing quote",
            "quote the whole value, or escape the inner quote",
        ));
    }
    match quote {
        '\'' => Ok(body[..end].to_owned()),
        _ => expand(&body[..end], above, Quoting::Double),
    }
}

/// Offset of the quote that ends the value; a backslash takes the next character along.
fn closing(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    body.char_indices().find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped && quote == '"';
        closes.then_some(at)
    })
}

/// A `#` starts a comment at the beginning and behind white space only: it is common inside of passwords.
fn without_comment(text: &str) -> &str {
    let is_start = |at: &usize| *at == 0 || text[..*at].ends_with([' ', '\t']);
    let end = text.match_indices('#').map(|(at, _)| at).find(is_start).unwrap_or(text.len());
    text[..end].trim_end()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    None,
    Double,
}

fn expand(text: &str, above: &[(String, String)], quoting: Quoting) -> Result<String, Problem> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '$']) {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if rest.as_bytes()[at] == b'$' {
            let (value, after) = reference(tail, above)?;
            out.push_str(value);
            rest = after;
            continue;
        }
        let Some(next) = tail.chars().next() else {
            out.push('\\');
            return Ok(out);
        };
        match (quoting, next) {
            (_, '$') => out.push('$'),
            (Quoting::Double, 'n') => out.push('\n'),
            (Quoting::Double, 'r') => out.push('\r'),
            (Quoting::Double, other) => out.push(other),
            (Quoting::None, other) => out.extend(['\\', other]),
        }
        rest = &tail[next.len_utf8()..];
    }
    out.push_str(rest);
    Ok(out)
}

/// What a `$` before `tail` stands for, and what follows it. Only upper-case names are references, so most
/// passwords with a `$` in them mean themselves.
fn reference<'a>(tail: &'a str, above: &'a [(String, String)]) -> Result<(&'a str, &'a str), Problem> {
    let inner = tail.strip_prefix('{').unwrap_or(tail);
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let end = inner.find(|c| !is_part(c)).unwrap_or(inner.len());
    let name = &inner[..end];
    if name.is_empty() {
        return Ok(("$", tail));
    }
    let after = &inner[end..];
    let after = if inner.len() < tail.len() { after.strip_prefix('}').unwrap_or(after) } else { after };
    let value = above.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let value = value.ok_or((
        "the value refers with $ to a name that is not set above in this file",
        "put the value into single quotes if the $ is meant as it stands",
    ))?;
    Ok((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_every_form_of_quoting() {
        for (line, value) in [
            ("A=b", "b"),
            ("export A=b", "b"),
            ("export\tA = b ", "b"),
            ("A=", ""),
            ("A= # empty", ""),
            ("A=b # comment", "b"),
            ("A=pass#word", "pass#word"),
            ("A='b # $X \\n' # comment", "b # $X \\n"),
            ("A=\"b # c\"", "b # c"),
            ("A=\"x\\ny\\\"z\\\\\"", "x\ny\"z\\"),
            ("A=x=y=", "x=y="),
            ("A=c:\\path\\$", "c:\\path$"),
            ("A=a$b", "a$b"),
            ("A=\\$HOME", "$HOME"),
            ("A=end$", "end$"),
            ("A=end\\", "end\\"),
            ("A=ü'b", "ü'b"),
        ] {
            let (pairs, bad) = parse(line);
            assert_eq!((pairs, bad), (vec![("A".into(), value.into())], vec![]), "{line}");
        }
    }

    #[test]
    fn references_mean_the_last_value_above_in_the_same_file() {
        let (pairs, bad) = parse("A=1\nA=2\nB=x${A}y$A-\nC='$A'\nD=\"<$B>\"\n");
        assert_eq!(bad, []);
        let value = |name: &str| pairs.iter().rev().find(|p| p.0 == name).map(|p| p.1.as_str());
        assert_eq!(value("B"), Some("x2y2-"));
        assert_eq!(value("C"), Some("$A"));
        assert_eq!(value("D"), Some("<x2y2->"));
    }

    #[test]
    fn every_bad_line_is_named_with_its_number_and_without_its_text() {
        let text =
            "\u{feff}# head\r\nA=1\r\ncanary\nB C=canary\n=canary\nD='canary\nE=\"canary\" x\nF=$CANARY\nG=2";
        let (pairs, bad) = parse(text);
        assert_eq!(pairs, [("A".into(), "1".into()), ("G".into(), "2".into())]);
        assert_eq!(bad.iter().map(|b| b.line).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
        assert!(!format!("{bad:?}").to_lowercase().contains("canary"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_and_single_quotes_keep_everything(text in "\\PC*", line in "[^'\\n\\r]*") {
            parse(&text);
            let quoted = format!("A='{line}'");
            let (pairs, _) = parse(&quoted);
            proptest::prop_assert_eq!(pairs, vec![("A".to_owned(), line)]);
        }
    }
}
