//! Whom a request is for and what it shows: draws sandbox, port and credential by the workload's weights.
//!
//! Seeded: the same plan draws the same requests. Knows no socket; heads are written for HTTP/1.1 here, the HTTP/2 client
//! reads the same fields.

use crate::plan::{Class, Share, Target, Workload};
use crate::population::{AuthKind, Population, Sandbox, cookie_name, cookie_value};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who visits: host, path prefix and credential of one request, or of all requests of one session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Visitor {
    /// Value of `Host`.
    pub host: String,
    /// What stands before the app's path.
    pub prefix: String,
    /// What is added to the app's query.
    pub query: String,
    /// The credential's header field.
    pub field: Option<(&'static str, String)>,
    /// The page a browser would name as the initiator. Cookies are a browser's, and count for its own pages only.
    pub origin: Option<String>,
    /// The credential opens nothing: a refusal is the right answer.
    pub refused: bool,
    /// Wants a connection of its own.
    pub fresh: bool,
}

/// Draws visitors.
pub struct Aim {
    random: SmallRng,
    workload: Workload,
    population: Population,
    /// `None`: the target is an ordinary server, always the same visitor.
    domain: Option<String>,
    authority: String,
    scheme: &'static str,
    public: Popularity,
    private: Popularity,
    kinds: Weighted<AuthKind>,
    cold_next: u64,
    cold_step: u64,
}

impl Aim {
    /// `authority`: the target's own. `part`: which thread of all; `run`: differs from run to run, so that cold
    /// sandboxes are really new.
    pub fn new(
        workload: &Workload,
        target: &Target,
        authority: &str,
        seed: u64,
        part: Share,
        run: u64,
    ) -> Self {
        let weight = |public: bool| -> f64 {
            let of = workload.auth.iter().filter(|(kind, _)| (*kind == AuthKind::Public) == public);
            of.map(|(_, weight)| weight).sum()
        };
        let share = weight(true) / (weight(true) + weight(false));
        let public = ((workload.sandboxes as f64 * share).round() as u64).max(1);
        let private = workload.sandboxes.saturating_sub(public).max(1);
        Self {
            random: SmallRng::seed_from_u64(seed),
            population: Population::new(workload.population),
            domain: target.domain.clone(),
            authority: authority.into(),
            scheme: if target.url.starts_with("https:") { "https" } else { "http" },
            public: Popularity::new(public, workload.zipf),
            private: Popularity::new(private, workload.zipf),
            kinds: Weighted::new(&workload.auth),
            // Above every population's indices; 67 million of them per run.
            cold_next: (1 << 46) + ((run & 0xf_ffff) << 26) + u64::from(part.index),
            cold_step: u64::from(part.count),
            workload: workload.clone(),
        }
    }

    /// The next visitor, into memory that is used again.
    pub fn draw(&mut self, visitor: &mut Visitor) {
        visitor.host.clear();
        visitor.prefix.clear();
        visitor.query.clear();
        visitor.field = None;
        visitor.origin = None;
        visitor.refused = false;
        visitor.fresh = self.chance(self.workload.fresh);
        if self.domain.is_none() {
            visitor.host.push_str(&self.authority);
            return;
        }
        let mut kind = *self.kinds.draw(&mut self.random);
        let bad = self.chance(self.workload.bad);
        if bad && kind == AuthKind::Public {
            kind = AuthKind::Token;
        }
        let public = kind == AuthKind::Public;
        let index = if self.chance(self.workload.cold) {
            self.cold_next += self.cold_step;
            self.cold_next
        } else if public {
            self.public.draw(&mut self.random)
        } else {
            self.private.draw(&mut self.random)
        };
        // That form is for programs: links and cookies are a browser's.
        let program = matches!(kind, AuthKind::Token | AuthKind::Bearer | AuthKind::Query);
        let toolbox = program && self.chance(self.workload.toolbox);
        let port = self.workload.ports[self.random.random_range(0..self.workload.ports.len())];
        let nonce = if bad { Some(self.random.random()) } else { None };
        self.describe(visitor, Sandbox { index, public }, kind, port, nonce, toolbox);
    }

    /// The visitor of one sandbox in particular.
    pub fn visitor_of(&self, index: u64, kind: AuthKind) -> Visitor {
        let mut visitor = Visitor::default();
        let sandbox = Sandbox { index, public: kind == AuthKind::Public };
        self.describe(&mut visitor, sandbox, kind, self.workload.ports[0], None, false);
        visitor
    }

    fn describe(
        &self,
        visitor: &mut Visitor,
        sandbox: Sandbox,
        kind: AuthKind,
        port: u16,
        bad: Option<u64>,
        toolbox: bool,
    ) {
        let population = &self.population;
        let secret = |good: fn(&Population, Sandbox) -> String| match bad {
            Some(nonce) => population.bad(kind, sandbox, nonce),
            None => good(population, sandbox),
        };
        visitor.refused = bad.is_some();
        let mut label = population.id(sandbox);
        match kind {
            AuthKind::Public => {}
            AuthKind::Token => visitor.field = Some(("x-daytona-preview-token", secret(Population::token))),
            AuthKind::Bearer => {
                visitor.field = Some(("authorization", format!("Bearer {}", secret(Population::bearer))));
            }
            AuthKind::Query => {
                let _infallible =
                    write!(visitor.query, "DAYTONA_SANDBOX_AUTH_KEY={}", secret(Population::token));
            }
            AuthKind::Cookie => {
                let name = cookie_name(&label);
                let value = match (bad, &self.workload.proxy_key) {
                    (None, Some(key)) => cookie_value(key, &name, &label, now_s()),
                    (nonce, _) => population.bad(kind, sandbox, nonce.unwrap_or_default()),
                };
                visitor.field = Some(("cookie", format!("{name}={value}")));
            }
            AuthKind::Signed => {
                label = match bad {
                    Some(nonce) => population.bad(kind, sandbox, nonce),
                    None => population.signed(sandbox, port),
                }
            }
        }
        let domain = self.domain.as_deref().unwrap_or(&self.authority);
        let _infallible = if toolbox {
            visitor.host.push_str(domain);
            write!(visitor.prefix, "/toolbox/{label}/proxy/{port}")
        } else {
            write!(visitor.host, "{port}-{label}.{domain}")
        };
        if kind == AuthKind::Cookie {
            visitor.origin = Some(format!("{}://{}", self.scheme, visitor.host));
        }
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.random::<f64>() < share
    }

    /// A random number, for masks and keys.
    pub fn random(&mut self) -> u64 {
        self.random.random()
    }
}

impl Visitor {
    /// Path and query of a request to the app's `path`.
    pub fn write_target(&self, out: &mut String, path: &str) {
        out.push_str(&self.prefix);
        out.push_str(path);
        if !self.query.is_empty() {
            out.push(if path.contains('?') { '&' } else { '?' });
            out.push_str(&self.query);
        }
    }

    /// An HTTP/1.1 head. `more`: further field lines, each with its CRLF.
    pub fn write_head(&self, out: &mut Vec<u8>, method: &str, path: &str, body: Option<u64>, more: &str) {
        let mut head = String::with_capacity(256);
        head.push_str(method);
        head.push(' ');
        self.write_target(&mut head, path);
        let _infallible = write!(head, " HTTP/1.1\r\nhost: {}\r\naccept: */*\r\n", self.host);
        if let Some((name, value)) = &self.field {
            let _infallible = write!(head, "{name}: {value}\r\n");
        }
        if let Some(bytes) = body {
            let _infallible = write!(head, "content-length: {bytes}\r\n");
        }
        if let Some(origin) = self.origin.as_ref().filter(|_| method != "GET" || more.contains("upgrade:")) {
            let _infallible = write!(head, "origin: {origin}\r\n");
        }
        head.push_str(more);
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
    }

    /// The head of a class's (first) request.
    pub fn write_class(&self, out: &mut Vec<u8>, class: &Class, path: &str) {
        self.write_head(out, class.method(), path, class.body_bytes(), "");
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Ranks by Zipf's law.
struct Popularity(Zipf<f64>);

impl Popularity {
    fn new(count: u64, exponent: f64) -> Self {
        Self(Zipf::new(count as f64, exponent).expect("the plan was checked: count >= 1, exponent >= 0"))
    }

    fn draw(&self, random: &mut SmallRng) -> u64 {
        self.0.sample(random) as u64 - 1
    }
}

/// Items drawn by weight.
#[derive(Clone, Debug)]
pub struct Weighted<T> {
    /// Items with the sum of all weights up to theirs.
    items: Vec<(T, f64)>,
}

impl<T: Clone> Weighted<T> {
    pub fn new(weights: &[(T, f64)]) -> Self {
        let mut sum = 0.0;
        let items = weights.iter().filter(|(_, weight)| *weight > 0.0).map(|(item, weight)| {
            sum += weight;
            (item.clone(), sum)
        });
        Self { items: items.collect() }
    }

    pub fn total(&self) -> f64 {
        self.items.last().map_or(0.0, |(_, sum)| *sum)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// One of them. The list must not be empty.
    pub fn draw(&self, random: &mut SmallRng) -> &T {
        let at = random.random::<f64>() * self.total();
        let index = self.items.partition_point(|(_, sum)| *sum <= at).min(self.items.len() - 1);
        &self.items[index].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn target() -> Target {
        Target { url: "http://127.0.0.1:1".into(), domain: Some("preview.test".into()), ..Target::default() }
    }

    fn aim(workload: &Workload) -> Aim {
        Aim::new(workload, &target(), "127.0.0.1:1", 7, Share::WHOLE, 1)
    }

    fn visitors(workload: &Workload, count: usize) -> Vec<Visitor> {
        let mut aim = aim(workload);
        let mut draw = || {
            let mut visitor = Visitor::default();
            aim.draw(&mut visitor);
            visitor
        };
        (0..count).map(|_| draw()).collect()
    }

    fn label(visitor: &Visitor) -> &str {
        visitor.host.split_once('-').and_then(|(_, rest)| rest.split_once('.')).expect("a preview host").0
    }

    #[test]
    fn kinds_bad_tokens_and_ports_come_in_their_shares() {
        let workload = Workload {
            sandboxes: 1000,
            ports: vec![3000, 5173],
            auth: vec![(AuthKind::Public, 50.0), (AuthKind::Token, 30.0), (AuthKind::Bearer, 20.0)],
            bad: 0.1,
            ..Workload::default()
        };
        let drawn = visitors(&workload, 20_000);
        let share = |test: &dyn Fn(&Visitor) -> bool| {
            drawn.iter().filter(|visitor| test(visitor)).count() as f64 / drawn.len() as f64
        };
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.02, "{found} {wanted}");
        near(share(&|v| v.refused), 0.1);
        near(share(&|v| v.field.is_none()), 0.45);
        near(share(&|v| matches!(v.field, Some(("authorization", _)))), 0.2);
        near(share(&|v| v.host.starts_with("5173-")), 0.5);
        assert_eq!(drawn, visitors(&workload, 20_000), "the seed repeats them");
        let population = Population::new(1);
        for visitor in &drawn {
            let sandbox = population.sandbox_of_id(label(visitor)).expect("of the population");
            if let Some(("x-daytona-preview-token", token)) = &visitor.field {
                assert_eq!(*token == population.token(sandbox), !visitor.refused);
                assert!(!sandbox.public);
            }
        }
    }

    #[test]
    fn popularity_follows_zipf_and_zero_is_even() {
        let ranks = |zipf| {
            let drawn = visitors(&Workload { sandboxes: 100, zipf, ..Workload::default() }, 20_000);
            let mut counts: HashMap<String, u32> = HashMap::new();
            drawn.iter().for_each(|v| *counts.entry(label(v).to_owned()).or_default() += 1);
            let mut counts: Vec<u32> = counts.into_values().collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts
        };
        let (skewed, even) = (ranks(1.0), ranks(0.0));
        // With 100 ranks and exponent 1 the first gets 1/5.19, twice the second.
        assert!((3_500..4_300).contains(&skewed[0]) && skewed[0] > skewed[1] * 8 / 5, "{:?}", &skewed[..3]);
        assert!(even.len() == 100 && even[0] < 300, "{:?}", &even[..3]);
    }

    #[test]
    fn cold_sandboxes_never_repeat_nor_meet_those_of_other_threads() {
        let workload = Workload { cold: 1.0, ..Workload::default() };
        let mut seen = HashSet::new();
        for index in 0..3 {
            let part = Share { index, count: 3 };
            let mut aim = Aim::new(&workload, &target(), "", 7, part, 99);
            for _ in 0..500 {
                let mut visitor = Visitor::default();
                aim.draw(&mut visitor);
                assert!(seen.insert(visitor.host));
            }
        }
    }

    #[test]
    fn each_credential_stands_where_the_proxy_looks_for_it() {
        let workload = Workload { proxy_key: Some("key".into()), ..Workload::default() };
        let aim = aim(&workload);
        let head = |kind| {
            let mut out = Vec::new();
            aim.visitor_of(4, kind).write_head(&mut out, "GET", "/a?b", None, "");
            String::from_utf8(out).expect("ASCII")
        };
        let population = Population::new(1);
        let private = Sandbox { index: 4, public: false };
        let id = population.id(private);
        let token = population.token(private);
        assert!(
            head(AuthKind::Query)
                .starts_with(&format!("GET /a?b&DAYTONA_SANDBOX_AUTH_KEY={token} HTTP/1.1\r\n"))
        );
        assert!(head(AuthKind::Token).contains(&format!("\r\nx-daytona-preview-token: {token}\r\n")));
        assert!(head(AuthKind::Cookie).contains(&format!("\r\ncookie: daytona-sandbox-auth-{id}=")));
        let signed = population.signed(private, 3000);
        assert!(head(AuthKind::Signed).contains(&format!("\r\nhost: 3000-{signed}.preview.test\r\n")));
    }

    /// Browsers name the page behind what changes something or opens a WebSocket; programs with keys do not.
    #[test]
    fn a_cookie_comes_with_its_page_where_a_browser_names_it() {
        let workload = Workload { proxy_key: Some("key".into()), ..Workload::default() };
        let aim = aim(&workload);
        let named = |kind, method, more: &str| {
            let mut out = Vec::new();
            let visitor = aim.visitor_of(4, kind);
            visitor.write_head(&mut out, method, "/", None, more);
            String::from_utf8(out)
                .expect("ASCII")
                .contains(&format!("\r\norigin: http://{}\r\n", visitor.host))
        };
        let upgrade = crate::websocket::handshake_fields(1);
        assert!(named(AuthKind::Cookie, "POST", "") && named(AuthKind::Cookie, "GET", &upgrade));
        assert!(!named(AuthKind::Cookie, "GET", "") && !named(AuthKind::Token, "POST", &upgrade));
    }

    #[test]
    fn the_toolbox_form_has_the_sandbox_in_its_path() {
        let workload = Workload { toolbox: 1.0, auth: vec![(AuthKind::Bearer, 1.0)], ..Workload::default() };
        let visitor = &visitors(&workload, 1)[0];
        assert_eq!(visitor.host, "preview.test");
        assert!(visitor.prefix.starts_with("/toolbox/") && visitor.prefix.ends_with("/proxy/3000"));
    }
}
