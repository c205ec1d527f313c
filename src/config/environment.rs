//! Strings by name, each with where it came from: the process's environment under the `.env` files. Decides which names
//! concern the gate; what the values mean is for others.

use super::dotenv;
use super::mistake::{Kind, Mistake, Warning};
use super::secret::{REDACTED, redact_url};
use super::table::{self, Default, VARIABLES};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io::ErrorKind;
use std::path::Path;

/// Names of the files, the later over the earlier; all over the process's environment.
pub const FILES: [&str; 3] = [".env", ".env.local", ".env.production"];

/// Starts the names that are ours alone, so that an unknown one is a mistake and not somebody else's.
const OWN_PREFIX: &str = "SANDGATE_";

/// Where a value was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Process,
    File(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("environment"),
            Self::File(name) => f.write_str(name),
        }
    }
}

/// Everything set that may concern the gate. No `Debug`: there are secrets in it.
#[derive(Clone, std::default::Default)]
pub struct Environment {
    values: BTreeMap<String, (String, Origin)>,
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut environment = Self::default();
        for (name, value) in pairs {
            environment.set(name.into(), value.into(), Origin::Process);
        }
        environment
    }
}

impl Environment {
    /// The process's environment. A value of ours that is not UTF-8 becomes a mistake.
    pub fn of_process() -> Self {
        let mut environment = Self::default();
        for (name, value) in std::env::vars_os() {
            // Our names are ASCII: what is not UTF-8 is none of them.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => environment.set(name, value, Origin::Process),
                Err(_) if is_ours(&name) => environment.mistakes.push(Mistake {
                    kind: Kind::Invalid,
                    variable: name,
                    value: None,
                    problem: "the value is not UTF-8".into(),
                    remedy: "set it to plain text".into(),
                }),
                Err(_) => {}
            }
        }
        environment
    }

    /// Puts the files of `directory` over what is there, up to the first that is missing. Whatever cannot be read
    /// becomes a mistake.
    pub fn with_files(mut self, directory: &Path) -> Self {
        let mut missing = None;
        for file in FILES {
            if let Some(missing) = missing {
                if directory.join(file).exists() {
                    self.warnings.push(Warning::new(
                        &format!("{file} is not read, because there is no {missing}"),
                        &format!("make {missing}, which may be empty, or remove {file}"),
                    ));
                }
                continue;
            }
            match std::fs::read_to_string(directory.join(file)) {
                Ok(text) => self.add_file(file, &text),
                Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(file),
                Err(error) => self.mistakes.push(Mistake {
                    kind: Kind::File,
                    variable: file.into(),
                    value: None,
                    problem: format!("it cannot be read: {error}"),
                    remedy: "make it a readable UTF-8 file or remove it".into(),
                }),
            }
        }
        self
    }

    /// The value of `name` if it is set and not empty, and where.
    pub fn value(&self, name: &str) -> Option<(&str, Origin)> {
        let (value, origin) = self.values.get(name)?;
        (!value.is_empty()).then_some((value.as_str(), *origin))
    }

    /// What is wrong before any value is looked at: unreadable files and values, names nobody knows.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let unknown = self.values.keys().filter(|name| table::find(name).is_none()).map(|name| Mistake {
            kind: Kind::Unknown,
            variable: name.clone(),
            // Not shown: it may be a secret with a mistyped name.
            value: None,
            problem: "there is no such variable".into(),
            remedy: match closest(name) {
                Some(known) => format!("did you mean {known}? sandgate serve --help lists all"),
                None => "remove it; sandgate serve --help lists all".into(),
            },
        });
        self.mistakes.iter().cloned().chain(unknown).collect()
    }

    /// What the operator should know about the files.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Every variable with the value in force and where it came from, one line each; without secrets.
    pub fn effective(&self) -> String {
        let mut text = String::new();
        for variable in VARIABLES {
            let name = variable.name;
            // Writing to a String cannot fail.
            let _ = match (self.value(name), variable.default) {
                (Some((value, origin)), _) => {
                    writeln!(text, "{name}={}  # {origin}", shown(variable.kind, value))
                }
                (None, Default::Value(value)) => writeln!(text, "{name}={value}  # default"),
                (None, Default::Unset(words)) => writeln!(text, "{name}=  # default: {words}"),
                (None, Default::Required) => writeln!(text, "{name}=  # required and not set"),
            };
        }
        text
    }

    fn add_file(&mut self, file: &'static str, text: &str) {
        let (pairs, bad) = dotenv::parse(text);
        for (name, value) in pairs {
            self.set(name, value, Origin::File(file));
        }
        self.mistakes.extend(bad.into_iter().map(|bad| Mistake {
            kind: Kind::File,
            variable: format!("{file}:{}", bad.line),
            value: None,
            problem: bad.problem.into(),
            remedy: bad.remedy.into(),
        }));
    }

    fn set(&mut self, name: String, value: String, origin: Origin) {
        if is_ours(&name) && !is_service_link(&name, &value) {
            self.values.insert(name, (value, origin));
        }
    }
}

/// `value` as it may be shown, on one line.
pub fn shown(kind: table::Kind, value: &str) -> String {
    match kind {
        table::Kind::Secret => REDACTED.to_owned(),
        // Whatever it should be: a URL with a password may have been put there by mistake.
        _ => redact_url(value).escape_debug().to_string(),
    }
}

/// Names of the test harness (`SANDGATE_TEST_*`) and of what starts us (`SANDGATE_BIN`, where the binary is) are
/// left to them.
fn is_ours(name: &str) -> bool {
    table::find(name).is_some()
        || (name.starts_with(OWN_PREFIX) && !name.starts_with("SANDGATE_TEST_") && name != "SANDGATE_BIN")
}

/// Kubernetes puts `SANDGATE_PORT`, `SANDGATE_SERVICE_HOST`, `SANDGATE_PORT_4000_TCP_ADDR` and the like into every
/// container of a namespace that has a service of the name `sandgate`, or `sandgate-...`.
fn is_service_link(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("SANDGATE") else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = rest.rfind("_PORT_").map(|at| &rest[at + 6..]);
    let is_port = port.is_some_and(|port| {
        let mut parts = port.split('_');
        parts.next().is_some_and(is_number) && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    });
    let is_link = rest.ends_with("_PORT") && value.contains("://");
    rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT") || is_link || is_port
}

fn closest(name: &str) -> Option<&'static str> {
    let near = VARIABLES.iter().filter(|variable| variable.name.starts_with(OWN_PREFIX));
    let near = near.map(|variable| (strsim::damerau_levenshtein(name, variable.name), variable.name));
    near.min().filter(|(distance, _)| *distance <= 4).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_injected_by_kubernetes_and_names_of_others_are_ignored() {
        let environment = Environment::from_iter([
            ("SANDGATE_PORT", "tcp://10.0.0.1:4000"),
            ("SANDGATE_PORT_4000_TCP", "tcp://10.0.0.1:4000"),
            ("SANDGATE_PORT_4000_TCP_ADDR", "10.0.0.1"),
            ("SANDGATE_SERVICE_HOST", "10.0.0.1"),
            ("SANDGATE_SERVICE_PORT", "4000"),
            ("SANDGATE_SERVICE_PORT_HTTP", "4000"),
            ("SANDGATE_METRICS_PORT_9090_TCP_PROTO", "tcp"),
            ("SANDGATE_TEST_DRIVER", "epoll"),
            ("SANDGATE_BIN", "target/release/sandgate"),
            ("HOME", "/root"),
        ]);
        assert_eq!(environment.mistakes(), []);
        assert!(VARIABLES.iter().all(|variable| !is_service_link(variable.name, "tcp://10.0.0.1:80")));
    }

    #[test]
    fn an_unknown_name_of_ours_is_a_mistake_with_the_closest_known_one() {
        for (name, meant) in [
            ("SANDGATE_SHARD", Some("SANDGATE_SHARDS")),
            ("SANDGATE_HEAD_TIMEOUT_SEC", Some("SANDGATE_HEAD_TIMEOUT_MS")),
            ("SANDGATE_TRUSTED_PROXYS", Some("SANDGATE_TRUSTED_PROXIES")),
            ("SANDGATE_COFFEE_WITH_MILK", None),
        ] {
            let mistakes = Environment::from_iter([(name, "canary")]).mistakes();
            let [mistake] = mistakes.as_slice() else { panic!("{name}: {mistakes:?}") };
            let line = mistake.to_string();
            assert!(line.starts_with(&format!("CFG_UNKNOWN {name}: ")), "{line}");
            assert!(!line.contains("canary"), "{line}");
            assert_eq!(line.contains("did you mean"), meant.is_some(), "{line}");
            assert!(meant.is_none_or(|meant| line.contains(meant)), "{line}");
        }
    }
}
