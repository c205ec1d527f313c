//! Errors as a page for people. Pure.
//!
//! Nothing in it comes from outside but the request id and, in the link of a frame, the page's own path; all text is
//! escaped and the page may load nothing.

use crate::error::Answer;
use std::fmt::Write as _;

/// What a page with [`page`] needs beside it. No script, no picture, no form; the one style is in the page.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem;\
                     color:#222;background:#fff}h1{font-size:1.4rem}small{color:#666}\
                     @media(prefers-color-scheme:dark){body{color:#ddd;background:#111}a{color:#9cf}}";

/// `in_tab`: the page was asked for inside a frame, where nobody can log in; this is its URL, absolute.
pub fn page(row: &Answer, request_id: &str, in_tab: Option<&str>) -> String {
    let mut page = String::with_capacity(1500);
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{status} {code}</title><style>{STYLE}</style>\n\
         <h1>{message}</h1>\n<p>{hint}</p>\n",
        status = row.status,
        code = row.code,
        message = escaped(&capitalized(row.message)),
        hint = escaped(&capitalized(row.hint)),
    );
    if let Some(url) = in_tab {
        let _ = writeln!(
            page,
            "<p><a href=\"{}\" target=\"_blank\" rel=\"noopener noreferrer\">Open this page in a tab of its own \
             to log in</a>, or embed it by a signed link.</p>",
            escaped(url)
        );
    }
    let _ =
        writeln!(page, "<p><small>{} {} &middot; {}</small></p>", row.status, row.code, escaped(request_id));
    page
}

fn capitalized(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect::<String>() + ".")
        .unwrap_or_default()
}

/// For text and for attribute values in double quotes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;

    #[test]
    fn the_page_says_what_the_table_says() {
        let row = Cause::AuthRequired.answer();
        let page = page(&row, "id-1", None);
        assert!(page.contains("<title>401 AUTH_REQUIRED</title>"), "{page}");
        assert!(page.contains("This sandbox is private") && page.contains("id-1"), "{page}");
        assert!(!page.contains("<a "), "{page}");
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let row = Cause::AuthRequired.answer();
        let evil = "/\"><script>alert('1')</script>&";
        let page = page(&row, evil, Some(evil));
        assert!(!page.contains("<script>") && !page.contains("\"><s"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;").count(), 2, "{page}");
    }
}
