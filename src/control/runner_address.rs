//! A runner's `proxyUrl` or `apiUrl` taken apart and its name resolved.
//!
//! Not by a WHATWG parser: that one would fold dots and percent signs of the path.

use crate::mailbox::{RunnerAddress, Trouble};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const RESOLVE: Duration = Duration::from_secs(5);

/// Host, port and path of an `http` URL.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Parts {
    host: String,
    port: u16,
    authority: String,
    base_path: String,
}

/// Parses, checks and resolves. Everything wrong with it is [`Trouble::RunnerUrl`].
pub async fn resolve(url: Option<&str>, api_key: &str) -> Result<RunnerAddress, Trouble> {
    let parts = url.and_then(parse).ok_or(Trouble::RunnerUrl)?;
    if api_key.is_empty() || !api_key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Trouble::RunnerUrl);
    }
    let addrs = match parts.host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, parts.port)],
        Err(_) => {
            let lookup = tokio::net::lookup_host((parts.host.as_str(), parts.port));
            let found = tokio::time::timeout(RESOLVE, lookup).await.map_err(|_| Trouble::RunnerUrl)?;
            let mut addrs: Vec<_> = found.map_err(|_| Trouble::RunnerUrl)?.collect();
            // `localhost` often resolves to ::1 first, where no runner listens.
            addrs.sort_by_key(SocketAddr::is_ipv6);
            addrs.dedup();
            addrs
        }
    };
    if addrs.is_empty() {
        return Err(Trouble::RunnerUrl);
    }
    let authorization = format!("Bearer {api_key}");
    Ok(RunnerAddress { addrs, authority: parts.authority, base_path: parts.base_path, authorization })
}

fn parse(url: &str) -> Option<Parts> {
    let scheme = url.get(..7).filter(|s| s.eq_ignore_ascii_case("http://"))?;
    let rest = &url[scheme.len()..];
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (v6, port) = v6.split_once(']')?;
            v6.parse::<std::net::Ipv6Addr>().ok()?;
            (format!("[{v6}]"), port.strip_prefix(':').map_or_else(|| port.is_empty().then_some(80), number)?)
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
            let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if host.is_empty() || !host.bytes().all(named) {
                return None;
            }
            (host.to_owned(), port.map_or(Some(80), number)?)
        }
    };
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
    if !path.bytes().all(plain) {
        return None;
    }
    let authority = if port == 80 { host.clone() } else { format!("{host}:{port}") };
    Some(Parts { host, port, authority, base_path: path.trim_end_matches('/').to_owned() })
}

fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_paths_kept_as_they_are() {
        for (url, host, port, authority, base) in [
            ("http://runner:3003", "runner", 3003, "runner:3003", ""),
            ("http://10.1.2.3/", "10.1.2.3", 80, "10.1.2.3", ""),
            ("HTTP://r.example:80/base/r1/", "r.example", 80, "r.example", "/base/r1"),
            ("http://[::1]:9/a%2e%2e/b", "[::1]", 9, "[::1]:9", "/a%2e%2e/b"),
        ] {
            let parts = parse(url).expect(url);
            assert_eq!(
                (parts.host.as_str(), parts.port, parts.authority.as_str(), parts.base_path.as_str()),
                (host, port, authority, base),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_no_plain_http_url_is_refused() {
        for url in [
            "",
            "runner:3003",
            "https://runner",
            "ftp://runner",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:+80",
            "http://a:65536",
            "http://a:",
            "http://[::bad",
            "http://[::1]x",
            "http://u@a",
            "http://a/x y",
            "http://a/?q",
            "http://a\r\nx",
            "http://a/\u{e4}",
        ] {
            assert_eq!(parse(url), None, "{url:?}");
        }
    }
}
