//! One value at a time, from the strings of an [`Environment`] to checked types. A value that cannot be read is noted
//! and replaced by its default, so that the reading goes on and all mistakes are told together.

use super::environment::{Environment, shown};
use super::mistake::{Kind as MistakeKind, Mistake};
use super::secret::Secret;
use super::table::{self, Default, Kind, Variable};
use crate::initiator::Origin;
use crate::route::Domains;
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;
use url::Url;

pub struct Reader<'a> {
    environment: &'a Environment,
    pub mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: environment.mistakes() }
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.environment.value(name).is_some()
    }

    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    /// Something that can stand in a header field: visible ASCII.
    pub fn secret(&mut self, name: &'static str) -> Option<Secret> {
        let value = self.value(name)?;
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            self.invalid(
                name,
                "it has white space, line breaks or other than ASCII in it",
                "set the key alone",
            );
            return None;
        }
        Some(Secret::new(value))
    }

    pub fn flag(&mut self, name: &'static str) -> bool {
        match self.value(name) {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") | None => false,
            Some(_) => {
                self.invalid(name, "not a truth value", "set true or false");
                default_of(name) == Some("true")
            }
        }
    }

    pub fn number(&mut self, name: &'static str) -> Option<u64> {
        let Kind::Number { min, max, .. } = row(name).kind else { unreachable!("{name} is no number") };
        let value = self.value(name)?;
        // Digits only: `parse` by itself would take "+5".
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        match value.parse::<u64>() {
            Ok(number) if digits && (min..=max).contains(&number) => return Some(number),
            _ if value.contains("://") => self.invalid(
                name,
                "this is the address of a Kubernetes service, injected because a service has this name",
                "set it in the container or set enableServiceLinks: false in the pod",
            ),
            Err(_) if !digits => self.invalid(name, "not a whole number", &row(name).remedy()),
            _ => self.invalid(name, "out of range", &row(name).remedy()),
        }
        default_of(name).map(|text| text.parse().expect("the table's defaults are numbers"))
    }

    /// A number the table has a default for.
    pub fn count(&mut self, name: &'static str) -> usize {
        let number = self.number(name).expect("the table has a default for this");
        usize::try_from(number).expect("ranges stay below 2^32")
    }

    pub fn seconds(&mut self, name: &'static str) -> Duration {
        Duration::from_secs(self.count(name) as u64)
    }

    pub fn millis(&mut self, name: &'static str) -> Duration {
        Duration::from_millis(self.count(name) as u64)
    }

    /// As [`Self::millis`], with 0 for no bound.
    pub fn millis_or_never(&mut self, name: &'static str) -> Option<Duration> {
        Some(self.millis(name)).filter(|duration| !duration.is_zero())
    }

    /// One of the words the table lists; `meaning` knows each of them.
    pub fn word<T>(&mut self, name: &'static str, meaning: fn(&str) -> Option<T>) -> Option<T> {
        match self.value(name).map(meaning)? {
            None => {
                self.invalid(name, "not one of its words", &row(name).remedy());
                default_of(name).and_then(meaning)
            }
            known => known,
        }
    }

    pub fn address(&mut self, name: &'static str) -> IpAddr {
        let parse = |text: &str| {
            let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            inner.map_or_else(|| text.parse().ok(), |inner| inner.parse().ok().map(IpAddr::V6))
        };
        if let Some(address) = self.value(name).and_then(parse) {
            return address;
        }
        self.invalid(
            name,
            "not an IP address",
            "set an address without a port, like 0.0.0.0, [::] or 127.0.0.1",
        );
        default_of(name).and_then(parse).expect("the table's defaults are addresses")
    }

    pub fn networks(&mut self, name: &'static str) -> Vec<IpNet> {
        let parse = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let Some(value) = self.value(name) else { return Vec::new() };
        let networks: Result<_, _> = value.split(',').map(|part| parse(part.trim())).collect();
        networks.unwrap_or_else(|_| {
            let remedy = "set addresses and networks like 10.0.0.0/8,192.0.2.7,fd00::/8";
            self.invalid(name, "not a list of IP addresses and networks", remedy);
            Vec::new()
        })
    }

    pub fn origins(&mut self, name: &'static str) -> Vec<Origin> {
        let Some(value) = self.value(name) else { return Vec::new() };
        let parse = |part: &str| {
            let url = Url::parse(part).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
            // Nothing but scheme, host and port: what is more would be ignored.
            let whole =
                url.as_str().strip_suffix('/').filter(|origin| *origin == url.origin().ascii_serialization());
            Origin::parse(whole?.as_bytes())
        };
        let origins: Option<_> = value.split(',').map(|part| parse(part.trim())).collect();
        origins.unwrap_or_else(|| {
            let remedy = "set origins like https://app.example.com,http://localhost:3000";
            self.invalid(name, "not a list of origins (scheme, host and port alone)", remedy);
            Vec::new()
        })
    }

    pub fn domains(&mut self, name: &'static str) -> Option<Domains> {
        let domains = Domains::parse(self.value(name)?);
        if domains.is_none() {
            let remedy = "set up to 32 like proxy.example.com,preview.example.org, without port, path and *";
            self.invalid(name, "not a list of domains", remedy);
        }
        domains
    }

    /// An http(s) base: no query and no fragment.
    pub fn base_url(&mut self, name: &'static str) -> Option<Url> {
        let value = self.value(name)?;
        let problem = match Url::parse(value) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") => "the scheme is neither http nor https",
            Ok(url) if url.query().is_some() || url.fragment().is_some() => "it has a query or a fragment",
            Ok(url) => return Some(url),
            Err(_) => "not a URL",
        };
        self.invalid(name, problem, "set a URL like https://host/path");
        None
    }

    pub fn invalid(&mut self, name: &'static str, problem: &str, remedy: &str) {
        self.note(MistakeKind::Invalid, name, problem, remedy);
    }

    pub fn note(&mut self, kind: MistakeKind, name: &'static str, problem: &str, remedy: &str) {
        let value = self.environment.value(name).map(|(value, _)| shown(row(name).kind, value));
        let (problem, remedy) = (problem.to_owned(), remedy.to_owned());
        self.mistakes.push(Mistake { kind, variable: name.to_owned(), value, problem, remedy });
    }

    /// The text in force: what is set, else the default. Notes a required value that is missing.
    fn value(&mut self, name: &'static str) -> Option<&'a str> {
        let set = self.environment.value(name).map(|(value, _)| value);
        if set.is_none() && row(name).default == Default::Required {
            self.note(MistakeKind::Required, name, "it must be set", &row(name).remedy());
        }
        set.or_else(|| default_of(name))
    }
}

impl Variable {
    fn remedy(&self) -> String {
        format!("set {} ({})", self.kind.describe(), self.meaning.trim_end_matches('.'))
    }
}

fn row(name: &'static str) -> &'static Variable {
    table::find(name).unwrap_or_else(|| unreachable!("{name} is read and not in the table"))
}

fn default_of(name: &'static str) -> Option<&'static str> {
    match row(name).default {
        Default::Value(text) => Some(text),
        Default::Required | Default::Unset(_) => None,
    }
}
