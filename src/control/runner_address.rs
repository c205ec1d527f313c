//! A runner's URL and key, as the API tells them, to the address a shard dials.
//!
//! The URL is read strictly and byte for byte: what stands behind the authority is joined with sandbox paths later,
//! so nothing may be normalized, decoded or guessed here. Knows no HTTP.

use crate::ids::Token;
use crate::mailbox::RunnerAddress;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

/// A name that does not resolve in this time does not resolve.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);
/// More addresses of one name are not tried.
const ADDRS_MAX: usize = 8;
/// Longest URL in bytes.
const URL_MAX: usize = 2048;

/// What is wrong with a runner's URL; never holds the URL itself, which may carry credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UrlFault {
    Missing,
    TooLong,
    Scheme,
    /// `https`: TLS towards runners is not spoken yet.
    Https,
    UserInfo,
    Host,
    Port,
    Path,
    /// The name does not resolve, or not in time.
    Name,
}

impl UrlFault {
    /// For the operator's log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "the runner has no URL",
            Self::TooLong => "the runner's URL is longer than 2048 bytes",
            Self::Scheme => "the runner's URL does not start with http://",
            Self::Https => "https runner URLs are not supported yet: give the runner an http URL",
            Self::UserInfo => "the runner's URL holds a user name or password",
            Self::Host => "the runner's URL holds no valid host",
            Self::Port => "the runner's URL holds no valid port",
            Self::Path => "the runner's URL has a query, a fragment or characters no path may hold",
            Self::Name => "the runner's host name does not resolve",
        }
    }
}

/// A runner URL whose parts are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunnerUrl {
    /// A name, an IPv4 address, or an IPv6 address with its brackets.
    host: String,
    port: u16,
    /// Without a trailing slash; empty or starting with `/`.
    pub base_path: String,
}

impl RunnerUrl {
    /// `http://host[:port][/path]` and nothing else (RFC 3986 3, without userinfo, query and fragment).
    pub fn parse(url: &str) -> Result<Self, UrlFault> {
        if url.is_empty() {
            return Err(UrlFault::Missing);
        }
        if url.len() > URL_MAX {
            return Err(UrlFault::TooLong);
        }
        let rest = match strip_prefix_any_case(url, "http://") {
            Some(rest) => rest,
            None if strip_prefix_any_case(url, "https://").is_some() => return Err(UrlFault::Https),
            None => return Err(UrlFault::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlFault::UserInfo);
        }
        let host_len = match authority.strip_prefix('[') {
            Some(inner) => inner.find(']').ok_or(UrlFault::Host)? + 2,
            None => authority.find(':').unwrap_or(authority.len()),
        };
        let (host, port) = authority.split_at(host_len);
        if !is_host(host) {
            return Err(UrlFault::Host);
        }
        let port = match port.strip_prefix(':') {
            Some(digits) => crate::ids::Port::parse(digits.as_bytes()).ok_or(UrlFault::Port)?.number(),
            None if port.is_empty() => 80,
            // Something between `]` and the port.
            None => return Err(UrlFault::Host),
        };
        if !path.bytes().all(is_path_byte) {
            return Err(UrlFault::Path);
        }
        Ok(Self { host: host.to_ascii_lowercase(), port, base_path: path.trim_end_matches('/').to_owned() })
    }

    /// For `Host` (RFC 9110 7.2): the port only when it is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Looks the name up and gives the address to dial with `api_key`.
    pub async fn resolve(&self, api_key: &Token) -> Result<RunnerAddress, UrlFault> {
        let name = format!("{}:{}", self.host, self.port);
        let found = match tokio::time::timeout(LOOKUP_DEADLINE, tokio::net::lookup_host(name)).await {
            Ok(Ok(found)) => ipv4_first(found),
            // Either way the operator has a name to look at; the resolver's own words add nothing.
            Ok(Err(_)) | Err(_) => return Err(UrlFault::Name),
        };
        if found.is_empty() {
            return Err(UrlFault::Name);
        }
        Ok(RunnerAddress {
            addrs: found,
            authority: self.authority(),
            base_path: self.base_path.clone(),
            authorization: format!("Bearer {}", api_key.expose()),
        })
    }
}

/// Runners publish ports on IPv4; a runner known as `localhost` was dialled at `::1`, where nothing listens. Within a
/// family the resolver's order (RFC 6724) stays.
fn ipv4_first(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for addr in found {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    addrs.sort_by_key(SocketAddr::is_ipv6);
    addrs.truncate(ADDRS_MAX);
    addrs
}

fn strip_prefix_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => {
            let name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            (1..=253).contains(&host.len()) && host.bytes().all(name_byte)
        }
    }
}

/// `pchar` and `/` (RFC 3986 3.3).
fn is_path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> Result<(String, u16, String), UrlFault> {
        RunnerUrl::parse(url).map(|u| (u.authority(), u.port, u.base_path))
    }

    #[test]
    fn good_urls_keep_their_bytes_and_lose_only_trailing_slashes() {
        for (url, authority, port, path) in [
            ("http://runner:3003", "runner:3003", 3003, ""),
            ("http://runner:3003/", "runner:3003", 3003, ""),
            ("HTTP://Runner.Example", "runner.example", 80, ""),
            ("http://10.0.0.7:80/", "10.0.0.7", 80, ""),
            ("http://[::1]:8080/a//b/%2F/../c//", "[::1]:8080", 8080, "/a//b/%2F/../c"),
            ("http://[2001:DB8::7]", "[2001:db8::7]", 80, ""),
            ("http://my_runner-1.local:65535/Base", "my_runner-1.local:65535", 65535, "/Base"),
        ] {
            assert_eq!(parts(url), Ok((authority.into(), port, path.into())), "{url}");
        }
    }

    #[test]
    fn bad_urls_are_refused_with_their_fault() {
        use UrlFault::*;
        for (url, fault) in [
            ("", Missing),
            ("runner:3003", Scheme),
            ("//runner:3003", Scheme),
            ("ftp://runner", Scheme),
            ("http:/runner", Scheme),
            (" http://runner", Scheme),
            ("https://runner", Https),
            ("HTTPS://runner:3003/x", Https),
            ("http://", Host),
            ("http:///path", Host),
            ("http://:80", Host),
            ("http://run ner", Host),
            ("http://runner\\evil", Host),
            ("http://rünner", Host),
            ("http://%72unner", Host),
            ("http://[::1", Host),
            ("http://[::1]8080", Host),
            ("http://[fe80::1%eth0]", Host),
            ("http://[1.2.3.4]", Host),
            ("http://::1:80", Host),
            ("http://user@runner", UserInfo),
            ("http://user:pw@runner:80/", UserInfo),
            ("http://runner:", Port),
            ("http://runner:0", Port),
            ("http://runner:080", Port),
            ("http://runner:+80", Port),
            ("http://runner:65536", Port),
            ("http://runner:80:80", Port),
            ("http://runner/?x", Path),
            ("http://runner?x", Path),
            ("http://runner/#x", Path),
            ("http://runner/a b", Path),
            ("http://runner/\r\nX: y", Path),
            ("http://runner/ü", Path),
        ] {
            assert_eq!(RunnerUrl::parse(url), Err(fault), "{url:?}");
        }
        assert_eq!(RunnerUrl::parse(&format!("http://r/{}", "a".repeat(URL_MAX))), Err(TooLong));
    }

    #[test]
    fn ipv4_comes_first_and_the_resolvers_order_stays_within_a_family() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("a literal");
        let found = ["[::1]:1", "10.0.0.2:1", "[::2]:1", "10.0.0.1:1", "10.0.0.2:1"].map(addr).into_iter();
        let wanted = ["10.0.0.2:1", "10.0.0.1:1", "[::1]:1", "[::2]:1"].map(addr);
        assert_eq!(ipv4_first(found), wanted);
        let many = (0..100).map(|n| SocketAddr::from(([10, 0, 0, n], 1)));
        assert_eq!(ipv4_first(many).len(), ADDRS_MAX);
    }

    #[tokio::test]
    async fn an_address_is_resolved_without_its_key_showing() {
        let key = Token::parse(b"canary-key").expect("visible");
        let address = RunnerUrl::parse("http://[::1]:3003/x/").expect("good").resolve(&key).await;
        let address = address.expect("a literal resolves");
        assert_eq!(address.addrs, ["[::1]:3003".parse().expect("a literal")]);
        assert_eq!(address.authority, "[::1]:3003");
        assert_eq!(address.base_path, "/x");
        assert_eq!(address.authorization, "Bearer canary-key");
        assert!(!format!("{address:?}").contains("canary"));
        let nowhere = RunnerUrl::parse("http://no-such-host.invalid").expect("good");
        assert_eq!(nowhere.resolve(&key).await.err(), Some(UrlFault::Name));
    }
}
