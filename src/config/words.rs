//! Settings that are one of a few words.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    Http,
    Https,
}

/// Who sees the cookie of a login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CookieMode {
    /// All hosts of the domain, as in v0.190.
    Shared,
    /// The one host that was logged in to.
    Isolated,
}

/// What becomes of a key that can be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WeakKeys {
    /// The operator is told.
    Warn,
    /// The gate does not start.
    Refuse,
}

/// What carries the data plane's I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, else epoll.
    Auto,
    IoUring,
    Epoll,
}

/// Which requests get a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessLog {
    Off,
    Errors,
    All,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| scheme.as_str() == word)
    }
}

impl CookieMode {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "shared" => Some(Self::Shared),
            "isolated" => Some(Self::Isolated),
            _ => None,
        }
    }
}

impl WeakKeys {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "warn" => Some(Self::Warn),
            "refuse" => Some(Self::Refuse),
            _ => None,
        }
    }
}

impl DriverChoice {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "io_uring" => Some(Self::IoUring),
            "epoll" => Some(Self::Epoll),
            _ => None,
        }
    }
}

impl AccessLog {
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "off" => Some(Self::Off),
            "errors" => Some(Self::Errors),
            "all" => Some(Self::All),
            _ => None,
        }
    }
}
