//! Whose address a request comes from, where trusted peers speak for others. Pure.

use crate::head::{FieldId, RequestHead};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// What trusted peers say in X-Forwarded-For, read from the right up to the first address that is not trusted itself.
/// Anything further left may be invented, and so may be what stands behind something that is no address.
///
/// `peer` is trusted.
pub fn of(head: &RequestHead<'_>, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut visitor = peer;
    let fields = head.fields.iter().filter(|f| f.id == FieldId::XForwardedFor);
    for field in fields.rev() {
        for part in field.value.of(head.bytes).rsplit(|b| *b == b',') {
            let Some(ip) = address(part) else { return visitor };
            visitor = ip;
            if !trusted.iter().any(|net| net.contains(&visitor)) {
                return visitor;
            }
        }
    }
    visitor
}

/// An address as proxies write it: alone, or with a port as some do.
fn address(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    Some(bare.parse().ok().or_else(with_port)?.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn visitor(fields: &[&str]) -> String {
        let fields: String = fields.iter().map(|value| format!("X-Forwarded-For: {value}\r\n")).collect();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("good").expect("whole");
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
        of(&head, [10, 0, 0, 1].into(), &trusted).to_string()
    }

    #[test]
    fn it_is_the_first_from_the_right_that_is_not_trusted_itself() {
        for (fields, expected) in [
            (&[][..], "10.0.0.1"),
            (&["203.0.113.7"], "203.0.113.7"),
            (&["198.51.100.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
            (&["198.51.100.1,203.0.113.7", "10.0.0.2"], "203.0.113.7"),
            (&["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["203.0.113.7:4711, [fd00::1]:80, ::ffff:10.0.0.2"], "203.0.113.7"),
            (&["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["203.0.113.7, "], "10.0.0.1"),
        ] {
            assert_eq!(visitor(fields), expected, "{fields:?}");
        }
    }
}
