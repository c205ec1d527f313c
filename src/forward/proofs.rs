//! Proofs of access as they stand in queries, cookies and `Authorization`: found, and taken out by byte surgery.
//!
//! What is left keeps its bytes and its order. The one who reads a proof and the one who removes it use the same
//! parse, or a spelling that one of them misses would go on to the app.

/// Name of the query parameter that carries a preview token.
pub const AUTH_QUERY_KEY: &[u8] = b"DAYTONA_SANDBOX_AUTH_KEY";

/// The first value of our query parameter, percent-decoded, `+` as space. `None` when absent; a value with a broken
/// escape keeps it as it is.
pub fn query_token(query: &[u8]) -> Option<Vec<u8>> {
    let pair = query.split(|&b| b == b'&').find(|pair| is_ours(pair))?;
    let value = pair.splitn(2, |&b| b == b'=').nth(1).unwrap_or_default();
    Some(FormDecoded(value).collect())
}

/// Appends `?` and `query` without any of our parameters. Nothing, when nothing is left; a query without them as it
/// is. Pairs are separated by `&` alone: a `;` is part of a pair, as it is to the one that would read ours.
pub(super) fn append_query(query: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.push(b'?');
    let (mut first, mut stripped) = (true, false);
    for pair in query.split(|&b| b == b'&') {
        if is_ours(pair) {
            stripped = true;
            continue;
        }
        if !first {
            out.push(b'&');
        }
        first = false;
        out.extend_from_slice(pair);
    }
    if stripped && out.len() == start + 1 {
        out.truncate(start);
    }
}

/// Appends a `Cookie` value without the cookies that are ours by name, the others byte-identical. `false`: nothing
/// is left of it, and nothing was appended.
pub(super) fn append_cookies(value: &[u8], out: &mut Vec<u8>) -> bool {
    let crumbs = || value.split(|&b| b == b';');
    if !crumbs().any(is_our_cookie) {
        out.extend_from_slice(value);
        return !value.is_empty();
    }
    let start = out.len();
    let mut holds_any = false;
    for (at, crumb) in crumbs().filter(|crumb| !is_our_cookie(crumb)).enumerate() {
        if at == 0 {
            // The space behind a separator goes with the separator.
            out.extend_from_slice(crumb.trim_ascii_start());
        } else {
            out.push(b';');
            out.extend_from_slice(crumb);
        }
        holds_any |= !crumb.trim_ascii().is_empty();
    }
    if !holds_any {
        out.truncate(start);
    }
    holds_any
}

/// `text` starts with a cookie pair: is its name reserved for us? Case does not matter: no app has a use for a
/// lookalike, and some readers fold names.
pub(super) fn is_our_cookie(text: &[u8]) -> bool {
    let end = memchr::memchr2(b'=', b';', text).unwrap_or(text.len());
    let name = text[..end].trim_ascii();
    let starts = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|s| s.eq_ignore_ascii_case(prefix));
    starts(b"daytona-sandbox-auth-")
        || starts(b"__Host-daytona-")
        || starts(b"daytona-login-")
        || name.eq_ignore_ascii_case(b"pkce_verifier")
        || name.eq_ignore_ascii_case(b"daytona-preview-page-accepted")
}

/// An API key (`dtn_` and 64 hexadecimal digits) anywhere in it, whatever the scheme: a public sandbox needs no
/// proof, so a client that sends its key all the same would hand it to the app.
pub(super) fn holds_api_key(authorization: &[u8]) -> bool {
    const DIGITS: usize = 64;
    memchr::memmem::find_iter(authorization, b"dtn_").any(|at| {
        let digits = authorization.get(at + 4..at + 4 + DIGITS);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// The pair's name is ours when decoded.
fn is_ours(pair: &[u8]) -> bool {
    let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
    FormDecoded(&pair[..end]).eq(AUTH_QUERY_KEY.iter().copied())
}

/// `application/x-www-form-urlencoded` without the errors: a `%` without two hexadecimal digits stands for itself.
struct FormDecoded<'b>(&'b [u8]);

impl Iterator for FormDecoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let hex = |b: u8| char::from(b).to_digit(16);
        if let [b'%', high, low, rest @ ..] = self.0
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            self.0 = rest;
            return Some((high * 16 + low) as u8);
        }
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(if byte == b'+' { b' ' } else { byte })
    }
}
