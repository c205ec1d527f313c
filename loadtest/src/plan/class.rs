//! Kinds of requests and how they are written: `get:1k`, `upload:64k`, `exec:500ms`, `sse:10x100ms`, `ws:10x32`,
//! `ws:10x32@50ms`, `page:20x8k`, `path:/anything`, `har:name`.

use crate::har;
use crate::quantity::{Span, bytes, bytes_text, count};
use crate::result::HAR_REQUEST;
use crate::unshown::shown_url;
use crate::world;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Connections a browser opens to one host.
pub const PAGE_CONNECTIONS: usize = 6;

#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// An answer of so many bytes.
    Get { bytes: u64 },
    /// A body of so many bytes.
    Upload { bytes: u64 },
    /// A command that takes so long.
    Exec { takes: Span },
    /// A GET of this path and query.
    Path(String),
    /// An event stream.
    Events { count: u32, every: Span },
    /// A WebSocket with so many echoes of so many bytes: one after the other, or one sent every so often.
    WebSocket { messages: u32, bytes: u32, every: Option<Span> },
    /// A page and its assets, six at a time.
    Page { assets: u32, bytes: u64 },
    /// The plan's recording of this name, replayed.
    Recording(String),
}

impl Class {
    /// Lives on a connection of its own, for more than one exchange.
    pub fn is_session(&self) -> bool {
        matches!(self, Self::Events { .. } | Self::WebSocket { .. } | Self::Page { .. } | Self::Recording(_))
    }

    /// Most connections one of it has open at a time.
    pub fn connections_max(&self) -> u64 {
        match self {
            Self::Page { assets, .. } => u64::from(*assets).clamp(1, PAGE_CONNECTIONS as u64),
            Self::Recording(_) => PAGE_CONNECTIONS as u64,
            _ => 1,
        }
    }

    pub fn method(&self) -> &'static str {
        match self {
            Self::Upload { .. } | Self::Exec { .. } => "POST",
            _ => "GET",
        }
    }

    /// The (first) request's path and query.
    pub fn path(&self) -> String {
        match self {
            Self::Get { bytes } => format!("{}{bytes}", world::BYTES),
            Self::Upload { .. } => world::UPLOAD.into(),
            Self::Exec { takes } => format!("{}?ms={}", world::EXEC, takes.0.as_millis()),
            Self::Path(path) => path.clone(),
            Self::Events { count, every } => {
                format!("{}?count={count}&every_ms={}", world::EVENTS, every.0.as_millis())
            }
            Self::WebSocket { .. } => world::WEBSOCKET.into(),
            Self::Page { .. } => world::PAGE.into(),
            // Each of its requests has its own.
            Self::Recording(_) => "/".into(),
        }
    }

    /// Length of the request's body; `None`: it has none.
    pub fn body_bytes(&self) -> Option<u64> {
        match self {
            Self::Upload { bytes } => Some(*bytes),
            Self::Exec { .. } => Some(0),
            _ => None,
        }
    }

    /// Whether its requests have this time: one of [`crate::measure`]'s.
    pub fn has_time(&self, of: &str) -> bool {
        match of {
            "first_byte" => !self.is_session(),
            "event_gap" => matches!(self, Self::Events { .. }),
            "ws_connect" | "ws_echo" => matches!(self, Self::WebSocket { .. }),
            "asset" => matches!(self, Self::Page { .. }),
            HAR_REQUEST => matches!(self, Self::Recording(_)),
            _ => true,
        }
    }

    /// May be sent again when a kept connection turns out to be closed.
    pub fn is_idempotent(&self) -> bool {
        self.method() == "GET"
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |span: &Span| span.to_string().replace(' ', "");
        match self {
            Self::Get { bytes } => write!(f, "get:{}", bytes_text(*bytes)),
            Self::Upload { bytes } => write!(f, "upload:{}", bytes_text(*bytes)),
            Self::Exec { takes } => write!(f, "exec:{}", short(takes)),
            Self::Path(path) => write!(f, "path:{path}"),
            Self::Events { count, every } => write!(f, "sse:{count}x{}", short(every)),
            Self::WebSocket { messages, bytes, every } => {
                write!(f, "ws:{messages}x{}", bytes_text(u64::from(*bytes)))?;
                every.iter().try_for_each(|every| write!(f, "@{}", short(every)))
            }
            Self::Page { assets, bytes } => write!(f, "page:{assets}x{}", bytes_text(*bytes)),
            Self::Recording(name) => write!(f, "har:{name}"),
        }
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let or = |default: &'static str| if rest.is_empty() { default } else { rest };
        let times = |default: &'static str| {
            or(default)
                .split_once('x')
                .ok_or_else(|| format!("`{text}`: a count, x and a size, as in {default}"))
        };
        let bounded = |text: &str, max: u64| match count(text)? {
            n if (1..=max).contains(&n) => Ok(n as u32),
            n => Err(format!("`{text}`: {n} is not between 1 and {max}")),
        };
        Ok(match kind {
            "get" => Self::Get { bytes: bytes(or("1k"))? },
            "upload" => Self::Upload { bytes: bytes(or("64k"))? },
            "exec" => Self::Exec { takes: or("100ms").parse()? },
            "path" if rest.starts_with('/') && rest.bytes().all(|b| b.is_ascii_graphic()) => {
                Self::Path(rest.into())
            }
            "path" => {
                return Err(format!("`{}`: a path begins with / and is visible ASCII", shown_url(text)));
            }
            "sse" => {
                let (events, every) = times("10x100ms")?;
                Self::Events { count: bounded(events, 1_000_000)?, every: every.parse()? }
            }
            "ws" => {
                let (messages, rest) = times("10x32")?;
                let (size, every) = match rest.split_once('@') {
                    Some((size, every)) => (size, Some(every.parse()?)),
                    None => (rest, None),
                };
                let size = bytes(size)?.clamp(1, 1 << 20) as u32;
                Self::WebSocket { messages: bounded(messages, 1_000_000)?, bytes: size, every }
            }
            "page" => {
                let (assets, size) = times("20x8k")?;
                Self::Page { assets: bounded(assets, 1000)?, bytes: bytes(size)? }
            }
            "har" if har::is_name(rest) => Self::Recording(rest.into()),
            "har" => return Err(format!("`{text}`: a recording's name is letters, digits, -, _ and .")),
            _ => {
                return Err(format!(
                    "`{}`: one of get, upload, exec, path, sse, ws, page, har",
                    shown_url(text)
                ));
            }
        })
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Class {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_as_they_are_written() {
        for text in [
            "get:1k",
            "upload:64k",
            "exec:500ms",
            "sse:10x100ms",
            "ws:10x32",
            "ws:10x32@50ms",
            "page:20x8k",
            "path:/a?b=c",
            "har:shop-1.2",
        ] {
            assert_eq!(text.parse::<Class>().map(|class| class.to_string()), Ok(text.into()));
        }
        assert_eq!("get".parse(), Ok(Class::Get { bytes: 1024 }));
        for text in [
            "",
            "got:1",
            "get:x",
            "path:a",
            "path:/a b",
            "sse:10",
            "ws:0x1",
            "ws:1x1@",
            "exec:fast",
            "har:",
            "har:a/b",
        ] {
            assert!(text.parse::<Class>().is_err(), "{text}");
        }
    }
}
