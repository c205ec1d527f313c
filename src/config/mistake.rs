//! What is wrong with the configuration, as one line for the operator. Knows no variable by name.

use std::fmt;

/// One thing the operator has to correct before the gate starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    pub kind: Kind,
    /// The variable's name, or `file:line` for [`Kind::File`].
    pub variable: String,
    /// What was found there, without its secret parts. `None`: nothing, or nothing that may be shown.
    pub value: Option<String>,
    pub problem: String,
    pub remedy: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Must be set and is not.
    Required,
    /// Set to something it cannot mean.
    Invalid,
    /// No variable has this name.
    Unknown,
    /// Asks for what this version cannot do, and going on without it would be unsafe.
    Unsupported,
    /// Good by itself, impossible beside another one.
    Relation,
    /// A `.env` file that cannot be read.
    File,
}

impl Kind {
    /// Stable: scripts may match on it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Required => "CFG_REQUIRED",
            Self::Invalid => "CFG_INVALID",
            Self::Unknown => "CFG_UNKNOWN",
            Self::Unsupported => "CFG_UNSUPPORTED",
            Self::Relation => "CFG_RELATION",
            Self::File => "CFG_FILE",
        }
    }
}

impl Mistake {
    /// All but the remedy.
    pub fn what(&self) -> String {
        // Debug form: a line break in the value does not break the line.
        let value = self.value.as_ref().map_or(String::new(), |value| format!("={value:?}"));
        format!("{} {}{value}: {}", self.kind.code(), self.variable, self.problem)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.remedy)
    }
}

/// What is accepted and should still be known, without secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    pub what: String,
    pub remedy: String,
}

impl Warning {
    pub(super) fn new(what: &str, remedy: &str) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}
