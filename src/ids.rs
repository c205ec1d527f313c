//! What can be mixed up has a type of its own: sandbox ids, ports, labels and tokens.
//!
//! All are checked when made and opaque afterwards. Knows no request and no configuration.

use crate::octets::Octets;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A sandbox id as it may stand in a host label, a path segment or an API path.
///
/// 1 to 57 bytes of `[A-Za-z0-9_-]` (a host label holds 63: port, dash, id): no dot, slash or percent sign, so it
/// can be put into a path as it is and no hop can fold it away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SandboxId {
    len: u8,
    bytes: [u8; SandboxId::MAX],
}

impl SandboxId {
    /// Longest id in bytes.
    pub const MAX: usize = 57;

    /// Checks charset and length. `None` when the text cannot be a sandbox id.
    pub fn parse(text: &[u8]) -> Option<Self> {
        static OF_ID: Octets = Octets::alphanumeric_and(b"-_");
        if text.is_empty() || text.len() > Self::MAX || !OF_ID.hold_all(text) {
            return None;
        }
        let mut bytes = [0; Self::MAX];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self { len: text.len() as u8, bytes })
    }

    /// As [`Self::parse`], with ASCII letters lowered: hosts are case-insensitive (RFC 9110 4.2.3).
    pub fn parse_host_label(text: &[u8]) -> Option<Self> {
        let mut id = Self::parse(text)?;
        id.bytes.make_ascii_lowercase();
        Some(id)
    }

    pub fn as_str(&self) -> &str {
        // Checked to be ASCII in `parse`; the fallback cannot be reached and names nothing.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The text alone: what lies behind it is zero in all of them.
impl Hash for SandboxId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
        state.write_u8(self.len);
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What stands in a signed link's host in place of a sandbox id: 16 of `[a-z0-9]`, random. It opens one port of one
/// sandbox for as long as the API says so. A secret, never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignedToken([u8; SignedToken::LEN]);

impl SignedToken {
    pub const LEN: usize = 16;

    /// `None` when the label cannot be one. What looks like one may still be a sandbox's id: only the API knows.
    pub fn of_label(label: &SandboxId) -> Option<Self> {
        let bytes: [u8; Self::LEN] = label.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')).then_some(Self(bytes))
    }

    /// The secret itself, for the one place that sends it on.
    pub fn expose(&self) -> &str {
        // Checked to be ASCII when made.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A TCP port of an app in a sandbox, 1 to 65535.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Port(std::num::NonZeroU16);

impl Port {
    /// The canonical spelling only: ASCII digits, no sign, no leading zero. To a dialler `02280` is port 2280: if an
    /// alias existed, it would walk around every rule about the port it names.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.is_empty() || text.len() > 5 || text[0] == b'0' || !text.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let value = text.iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
        u16::try_from(value).ok().and_then(std::num::NonZeroU16::new).map(Self)
    }

    pub fn number(self) -> u16 {
        self.0.get()
    }

    /// Terminal, toolbox and recordings: closed to the public flag, always: each of them is a shell.
    pub fn is_reserved(self) -> bool {
        matches!(self.number(), 2280 | 22222 | 33333)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A secret a client showed: an API key, a JWT or a preview token. Never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Longest token in bytes: JWTs run to a few KiB.
    pub const MAX: usize = 8 * 1024;

    /// Visible ASCII only, so that it can stand in a header; not empty, not too long. A token that is only looked up
    /// by its hash needs no copy of its own.
    pub fn is_valid(text: &[u8]) -> bool {
        !text.is_empty() && text.len() <= Self::MAX && text.iter().all(u8::is_ascii_graphic)
    }

    /// `None` when it is not valid.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::is_valid(text).then(|| Self(text.into()))
    }

    /// The secret itself, for the one place that sends it on.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
