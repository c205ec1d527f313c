//! URLs as recordings have them, as far as a request needs them.

/// The query key of a preview token. Whoever replays a recording has one of their own.
const KEY: &str = "DAYTONA_SANDBOX_AUTH_KEY";

/// Where a page is from. Without `Debug`: a host may hold a signed token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

/// An `http` or `https` URL.
pub(super) struct Url {
    pub origin: Origin,
    /// Path and query as they stand in a request line, without the preview token.
    pub target: String,
}

impl Url {
    /// `None`: of another scheme, or no URL.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
            _ => (host, if secure { 443 } else { 80 }),
        };
        if name.is_empty() {
            return None;
        }
        let path = rest.split('#').next().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self {
            origin: Origin { secure, host: name.to_ascii_lowercase(), port },
            target: visible(&format!("{slash}{}", without_key(path))),
        })
    }
}

/// The text without preview tokens: in its query, and in URLs that stand in it, percent-encoded once or twice.
pub(super) fn without_key(text: &str) -> String {
    without_inner_key(&without_pair(text))
}

fn without_pair(text: &str) -> String {
    let Some((path, query)) = text.split_once('?') else { return text.to_owned() };
    let is_key = |pair: &&str| {
        let (name, _value) = pair.split_once('=').unwrap_or((pair, ""));
        name.eq_ignore_ascii_case(KEY)
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_key(pair)).collect();
    match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    }
}

/// What may stand between the key and its token, and behind that, in a URL within another text.
const EQUALS: [&str; 3] = ["=", "%3d", "%253d"];
const ENDS: [&str; 14] =
    ["&", "#", " ", "\"", "'", ",", ";", "%26", "%2526", "%23", "%2523", "%20", "%2520", "%22"];

/// The key has no character that is ever encoded.
fn without_inner_key(text: &str) -> String {
    // Of the same length.
    let (lower, key) = (text.to_ascii_lowercase(), KEY.to_ascii_lowercase());
    let (mut kept, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(found) = lower[at..].find(&key).map(|found| at + found) {
        let behind = found + key.len();
        match EQUALS.iter().find(|equals| lower[behind..].starts_with(**equals)) {
            None => {
                kept.push_str(&text[at..behind]);
                at = behind;
            }
            Some(equals) => {
                kept.push_str(&text[at..found]);
                let token = &lower[behind + equals.len()..];
                let end = ENDS.iter().filter_map(|end| token.find(end)).min().unwrap_or(token.len());
                at = behind + equals.len() + end;
            }
        }
    }
    kept.push_str(&text[at..]);
    kept
}

/// What may not stand in a request line is percent-encoded, as browsers do before they send it.
fn visible(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, target) in [
            ("http://a.test", "a.test", 80, "/"),
            ("HTTPS://A.Test/x?y=1#z", "a.test", 443, "/x?y=1"),
            ("https://a.test:8443?q", "a.test", 8443, "/?q"),
            ("http://[::1]:3000/é b|", "[::1]", 3000, "/%C3%A9%20b|"),
            ("http://[::1]/", "[::1]", 80, "/"),
            ("http://user:secret@a.test/", "a.test", 80, "/"),
        ] {
            let url = Url::parse(text).unwrap_or_else(|| panic!("{text}"));
            let Origin { host: found, port: at, .. } = &url.origin;
            assert_eq!((found.as_str(), *at, url.target.as_str()), (host, port, target), "{text}");
        }
        for text in
            ["", "/x", "ws://a.test/", "data:text/plain,x", "blob:http://a.test/1", "http://", "http://a:x/"]
        {
            assert!(Url::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_default_port_is_the_same_origin_and_another_scheme_is_not() {
        let origin = |text: &str| Url::parse(text).expect("a URL").origin;
        assert!(origin("https://a.test/x") == origin("https://A.TEST:443/y"));
        assert!(origin("https://a.test/") != origin("http://a.test/"));
        assert!(origin("http://a.test:3000/") != origin("http://a.test/"));
    }

    #[test]
    fn the_preview_token_leaves_the_query() {
        for (text, rest) in [
            ("/a?DAYTONA_SANDBOX_AUTH_KEY=s", "/a"),
            ("/a?x=1&daytona_sandbox_auth_key=s&y", "/a?x=1&y"),
            ("/a?x=DAYTONA_SANDBOX_AUTH_KEY", "/a?x=DAYTONA_SANDBOX_AUTH_KEY"),
            (
                "/a?to=https%3A%2F%2Fh%2F%3FDAYTONA_SANDBOX_AUTH_KEY%3Ds%2Bs%26y%3D1",
                "/a?to=https%3A%2F%2Fh%2F%3F%26y%3D1",
            ),
            ("/a?to=h%253Fdaytona_sandbox_auth_key%253Ds%2526y&z", "/a?to=h%253F%2526y&z"),
            ("/a?to=/b?DAYTONA_SANDBOX_AUTH_KEY=s", "/a?to=/b?"),
            ("é \"/b?x&to=DAYTONA_SANDBOX_AUTH_KEY=s\" é", "é \"/b?x&to=\" é"),
            ("/a?", "/a?"),
            ("/a", "/a"),
        ] {
            assert_eq!(without_key(text), rest);
        }
    }
}
