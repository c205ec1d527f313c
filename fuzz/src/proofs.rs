//! A client's proofs of access, as a plain reader finds them: what an app must never see.

use super::message::{percent_decoded, split};

const QUERY_KEY: &[u8] = b"DAYTONA_SANDBOX_AUTH_KEY";

/// The query as the app is to get it, with its `?`.
pub fn query_without(query: Option<&[u8]>) -> Vec<u8> {
    let Some(query) = query else { return Vec::new() };
    let pairs = split(query, b"&");
    let theirs: Vec<&[u8]> = pairs.iter().copied().filter(|pair| !is_our_pair(pair)).collect();
    let left = theirs.join(&b'&');
    // A pair of nothing beside ours is nothing.
    if left.is_empty() && theirs.len() < pairs.len() { Vec::new() } else { [b"?", &left[..]].concat() }
}

/// Its name, decoded as forms are, is ours.
pub fn is_our_pair(pair: &[u8]) -> bool {
    let name = pair.split(|b| *b == b'=').next().unwrap_or_default();
    let spaced: Vec<u8> = name.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    percent_decoded(&spaced) == QUERY_KEY
}

/// The name, to all who fold case, of a cookie that is ours.
pub fn is_our_cookie(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
    ["daytona-sandbox-auth-", "__host-daytona-", "daytona-login-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "pkce_verifier"
        || name == "daytona-preview-page-accepted"
}

/// A `Cookie` value as the app is to get it. `None`: not at all.
pub fn cookies_without(value: &[u8]) -> Option<Vec<u8>> {
    let crumbs = split(value, b";");
    let is_ours = |crumb: &&[u8]| is_our_cookie(crumb.split(|b| *b == b'=').next().unwrap_or_default());
    if !crumbs.iter().any(is_ours) {
        return (!value.is_empty()).then(|| value.to_vec());
    }
    let theirs: Vec<&[u8]> = crumbs.into_iter().filter(|crumb| !is_ours(crumb)).collect();
    theirs.iter().any(|crumb| !crumb.trim_ascii().is_empty()).then(|| theirs.join(&b';'))
}

/// `dtn_` and 64 hexadecimal digits, anywhere.
pub fn holds_api_key(text: &[u8]) -> bool {
    text.windows(68).any(|w| w.starts_with(b"dtn_") && w[4..].iter().all(u8::is_ascii_hexdigit))
}
