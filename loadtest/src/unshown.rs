//! Words of a command line that may be secrets, or hold one. What is wrong with them is told without them: errors are pasted
//! into tickets and kept in CI's logs.

use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, Command};
use std::ffi::OsStr;

/// For the value of a flag. `parse` does not repeat it in what it says either.
pub const fn unshown<T>(parse: fn(&str) -> Result<T, String>) -> Unshown<T> {
    Unshown(parse)
}

#[derive(Clone)]
pub struct Unshown<T>(fn(&str) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Unshown<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let parsed = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(self.0);
        parsed.map_err(|why| {
            let flag = arg.map(Arg::to_string).unwrap_or_default();
            let message = format!("invalid value for '{flag}': {why}\n");
            Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// An error without a word that no flag takes: it may be the rest of a value somebody forgot to quote.
pub fn without_stray_word(mut error: Error, words: &[String]) -> Error {
    let ContextValue::String(stray) = error.get(ContextKind::InvalidArg).unwrap_or(&ContextValue::None)
    else {
        return error;
    };
    if error.kind() != ErrorKind::UnknownArgument || stray.starts_with('-') {
        return error;
    }
    let place =
        words.iter().position(|word| word == stray).map_or(String::new(), |n| format!(" (word {})", n + 1));
    error.insert(ContextKind::InvalidArg, ContextValue::String(format!("***{place}")));
    // How to have it taken as a value would repeat it.
    error.remove(ContextKind::Suggested);
    error
}

/// A URL of the command line: it names a run and is kept in results, where a password must not be.
pub fn url_without_user(text: &str) -> Result<String, String> {
    match text.contains('@') {
        true => {
            Err("no user and password are sent, and a path has no @ in it: leave out what stands up to the @"
                .into())
        }
        false => Ok(text.to_owned()),
    }
}

/// A URL as errors name it: without user and password, and without its query.
pub fn shown_url(url: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let scheme = url.find("://").filter(|end| is_scheme(&url[..*end])).map_or("", |end| &url[..end + 3]);
    let rest = &url[scheme.len()..];
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("***@", rest));
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    format!("{scheme}{user}{rest}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_named_without_what_may_be_secret() {
        for (url, shown) in [
            ("https://host:1/a/b", "https://host:1/a/b"),
            ("http://user:pa/ss?@host/a?key=x", "http://***@host/a?***"),
            ("user:pass@host", "***@host"),
            ("http://host/?key=x@y", "http://***@y"),
            ("host?a://b", "host?***"),
            ("", ""),
        ] {
            assert_eq!(shown_url(url), shown, "{url}");
        }
    }
}
