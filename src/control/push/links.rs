//! Which signed links have been asked about, and when they end: the API keeps each as a key in Redis that lives as long
//! as the link, and deletes it when the link is revoked.

use crate::ids::{Port, SandboxId, SignedToken};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Where the API keeps them: `<prefix><port>:<token>`.
pub const LINK_PREFIX: &str = "sandbox:signed-preview-url-token:";
/// For so long after it was asked about a link's end is told; what rests on it is asked about more often.
const REMEMBERED: Duration = Duration::from_secs(180);

/// Bounded: what finds no room is found out when its time to live is over.
pub struct Links {
    known: HashMap<(SignedToken, Port), Known>,
    links_max: usize,
}

struct Known {
    until: Instant,
    ends_at: Option<Instant>,
}

/// The name of a link's key. Secret.
pub fn key(token: &SignedToken, port: Port) -> String {
    format!("{LINK_PREFIX}{port}:{}", token.expose())
}

/// The link of a key's name.
pub fn of_key(key: &[u8]) -> Option<(SignedToken, Port)> {
    let name = key.strip_prefix(LINK_PREFIX.as_bytes())?;
    let colon = name.iter().position(|b| *b == b':')?;
    let (port, token) = (&name[..colon], &name[colon + 1..]);
    Some((SignedToken::of_label(&SandboxId::parse(token)?)?, Port::parse(port)?))
}

impl Links {
    /// At most so many, about 100 bytes each.
    pub fn new(links_max: usize) -> Self {
        Self { known: HashMap::new(), links_max }
    }

    /// The link is being asked about.
    pub fn expect(&mut self, link: (SignedToken, Port), now: Instant) {
        if self.known.len() >= self.links_max && !self.known.contains_key(&link) {
            self.known.retain(|_, known| known.until > now);
            if self.known.len() >= self.links_max {
                return;
            }
        }
        self.known.entry(link).or_insert(Known { until: now, ends_at: None }).until = now + REMEMBERED;
    }

    pub fn ends_at(&mut self, link: (SignedToken, Port), at: Instant) {
        if let Some(known) = self.known.get_mut(&link) {
            known.ends_at = Some(at);
        }
    }

    /// Its key changed or is gone: whether somebody here wants to know.
    pub fn forget(&mut self, link: (SignedToken, Port)) -> bool {
        self.known.remove(&link).is_some()
    }

    /// Those whose time has come; they are forgotten.
    pub fn over(&mut self, now: Instant) -> Vec<(SignedToken, Port)> {
        let over = |known: &Known| known.ends_at.is_some_and(|at| at <= now);
        self.known.extract_if(|_, known| over(known)).map(|(link, _)| link).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(n: u32) -> (SignedToken, Port) {
        of_key(format!("{LINK_PREFIX}3000:link{n:012}").as_bytes()).expect("a link")
    }

    #[test]
    fn a_name_and_its_link_are_one_and_other_names_are_none() {
        let (token, port) = link(7);
        assert_eq!(of_key(key(&token, port).as_bytes()), Some((token, port)));
        for name in
            ["3000", "3000:", ":abcdefghijklmnop", "03000:abcdefghijklmnop", "3000:ABCDEFGHIJKLMNOP", "x"]
        {
            assert_eq!(of_key(format!("{LINK_PREFIX}{name}").as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn an_end_is_told_once_and_only_of_what_was_asked_about() {
        let (mut links, now) = (Links::new(2), Instant::now());
        (0..3).for_each(|n| links.expect(link(n), now));
        links.ends_at(link(0), now + REMEMBERED);
        links.ends_at(link(2), now);
        assert_eq!(links.over(now), []);
        assert!(links.forget(link(1)) && !links.forget(link(1)) && !links.forget(link(2)));
        assert_eq!(links.over(now + REMEMBERED), [link(0)]);
        assert_eq!(links.over(now + REMEMBERED), []);
    }
}
