//! Where the load goes, and what may be said of that.

use super::{read_key, vain};
use crate::plan::{Target, Workload};
use crate::start::StartArgs;
use crate::unshown::{shown_url, unshown, url_without_user};
use clap::Args;
use std::path::PathBuf;

/// Where the load goes.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// The proxy: http://host:port, or https
    #[arg(value_parser = unshown(url_without_user), required_unless_present = "start", conflicts_with = "start")]
    pub url: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
    /// Preview domain: requests go to {port}-{sandbox}.DOMAIN; without it to the URL's own host, as for any server [default with
    /// --start: preview.test]
    #[arg(long, help_heading = "Target")]
    pub domain: Option<String>,
    /// HTTP/2: by ALPN over TLS, with prior knowledge in the clear
    #[arg(long, help_heading = "Target")]
    pub http2: bool,
    /// Trust the certificates in this PEM file instead of the web's
    #[arg(long, value_name = "FILE", conflicts_with = "start", help_heading = "Target")]
    pub ca: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long, conflicts_with_all = ["ca", "start"], help_heading = "Target")]
    pub insecure: bool,
    /// Seed of the population: the backend's [default: 1]
    #[arg(long, help_heading = "Target")]
    population: Option<u64>,
    /// File with the proxy's API key, which signs cookies; needed for `--auth cookie`
    #[arg(long, value_name = "FILE", conflicts_with = "start", help_heading = "Target")]
    pub proxy_key_file: Option<PathBuf>,
}

impl TargetArgs {
    pub fn target(&self) -> Target {
        Target {
            url: self.url.clone().unwrap_or_default(),
            domain: self.domain.clone(),
            http2: self.http2,
            ca: self.ca.clone(),
            insecure: self.insecure,
        }
    }

    /// What a run against it is called: what was started, or the URL.
    pub(super) fn name(&self) -> String {
        let started = self.start.start.as_ref().map(|command| command.text.clone());
        started.or(self.url.clone()).unwrap_or_default()
    }

    pub fn population(&self) -> u64 {
        self.population.unwrap_or(Workload::default().population)
    }

    /// `Err` names flags that mean nothing for this target.
    pub(super) fn check(&self) -> Result<(), String> {
        self.start.check()?;
        if self.domain.is_none() {
            let key = self.proxy_key_file.is_some();
            vain("--domain", &[("--population", self.population.is_some()), ("--proxy-key-file", key)])?;
        }
        if let Some(domain) = &self.domain {
            check_domain(domain)?;
            let path = self.url.as_ref().and_then(|url| url.split_once("://")?.1.split_once('/'));
            if path.is_some_and(|(_, path)| !path.is_empty()) {
                return Err("with --domain requests go to the apps' own paths: leave out the URL's".into());
            }
        }
        if self.url.as_ref().is_some_and(|url| url.starts_with("http://")) {
            vain("an https:// URL", &[("--ca", self.ca.is_some()), ("--insecure", self.insecure)])?;
        }
        Ok(())
    }

    pub fn proxy_key(&self) -> Result<Option<String>, String> {
        self.proxy_key_file.as_deref().map(read_key).transpose()
    }
}

/// A name that hosts can stand in front of, with the port that stands in `Host` if that is none of the usual.
fn check_domain(domain: &str) -> Result<(), String> {
    let (name, port) = domain.split_once(':').map_or((domain, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let good = name.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok());
    good.then_some(()).ok_or_else(|| {
        format!(
            "--domain `{}`: a name such as preview.example.com, without scheme and path",
            shown_url(domain)
        )
    })
}
