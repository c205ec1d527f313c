//! A person with a browser: keeps cookies as browsers do, follows redirects, fills in the provider's forms.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use url::Url;

const DEADLINE: Duration = Duration::from_secs(20);
/// More is a loop.
const REDIRECTS_MAX: usize = 20;

/// What came back.
#[derive(Clone, Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

impl Page {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn location(&self) -> Url {
        self.url.join(self.field("location").expect("a redirect")).expect("a URL")
    }

    pub fn set_cookies(&self) -> impl Iterator<Item = &str> {
        let named = |(n, _): &&(String, String)| n.eq_ignore_ascii_case("set-cookie");
        self.fields.iter().filter(named).map(|(_, v)| v.as_str())
    }

    pub fn code(&self) -> &str {
        self.field("x-preview-error-code").unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct Cookie {
    name: String,
    value: String,
    domain: String,
    host_only: bool,
    path: String,
    secure: bool,
}

/// What a browser sends when a page is opened in a tab.
pub const NAVIGATION: &str = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n\
                              Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Site: none\r\n";

#[derive(Clone)]
pub struct Person {
    /// Everything is on loopback: the port says who is meant.
    servers: Vec<SocketAddr>,
    jar: Vec<Cookie>,
}

impl Person {
    pub fn new(servers: &[SocketAddr]) -> Self {
        Self { servers: servers.to_vec(), jar: Vec::new() }
    }

    /// Opens a page, and follows where it leads.
    pub fn open(&mut self, url: &str) -> Page {
        let page = self.get(url);
        self.follow(page)
    }

    /// As [`Self::open`], but stops before the first URL with this path.
    pub fn open_until(&mut self, url: &str, path: &str, name: &str) -> Page {
        let mut page = self.get(url);
        for _ in 0..REDIRECTS_MAX {
            if (300..400).contains(&page.status) && page.location().path() == path {
                return page;
            }
            page = match page.status {
                300..400 => self.get(page.location().as_str()),
                _ => self.fill_in(&page, name),
            };
        }
        panic!("{path} does not come: {page:?}");
    }

    fn follow(&mut self, mut page: Page) -> Page {
        for _ in 0..REDIRECTS_MAX {
            if !(300..400).contains(&page.status) {
                return page;
            }
            page = self.get(page.location().as_str());
        }
        panic!("a loop of redirects: {page:?}");
    }

    /// One navigation, not followed.
    pub fn get(&mut self, url: &str) -> Page {
        self.request("GET", url, NAVIGATION, "")
    }

    /// Opens a page and, where the provider asks, logs in by this name and consents.
    pub fn log_in(&mut self, url: &str, name: &str) -> Page {
        let mut page = self.open(url);
        for _ in 0..3 {
            if !page.body.contains("name=\"prompt\"") {
                return page;
            }
            let answer = self.fill_in(&page, name);
            page = self.follow(answer);
        }
        page
    }

    /// Submits the provider's form; the answer is not followed.
    fn fill_in(&mut self, page: &Page, name: &str) -> Page {
        let between = |start: &str| {
            let rest = page.body.split_once(start).map(|(_, rest)| rest)?;
            rest.split('"').next().map(str::to_owned)
        };
        let action = between("action=\"").unwrap_or_else(|| panic!("no form: {page:?}"));
        let body = match between("name=\"prompt\" value=\"").as_deref() {
            Some("login") => format!("prompt=login&login={name}&password=any"),
            _ => "prompt=consent".to_owned(),
        };
        let fields = format!("{NAVIGATION}Content-Type: application/x-www-form-urlencoded\r\n");
        let url = page.url.join(&action).expect("a URL");
        self.request("POST", url.as_str(), &fields, &body)
    }

    pub fn request(&mut self, method: &str, url: &str, fields: &str, body: &str) -> Page {
        let url = Url::parse(url).expect("a URL");
        let port = url.port_or_known_default().expect("http or https");
        let server = self.servers.iter().find(|server| server.port() == port);
        let server = server.unwrap_or_else(|| panic!("{url} leads to nobody's port"));
        let host = url.host_str().expect("a host");
        let cookies = self.cookies(&url);
        let cookies = if cookies.is_empty() { cookies } else { format!("Cookie: {cookies}\r\n") };
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let text = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\n{fields}{cookies}{length}Connection: close\r\n\r\n{body}"
        );
        // As if TLS ended in front of the gate, what is https is plain by here.
        let mut stream = TcpStream::connect(server).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.write_all(text.as_bytes()).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers in time and in full");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer from {url}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let page = Page { url, status, fields, body: body.to_owned() };
        for cookie in page.set_cookies() {
            self.keep(&page.url, cookie);
        }
        page
    }

    /// The `Cookie` value for a URL (RFC 6265 5.4).
    pub fn cookies(&self, url: &Url) -> String {
        let host = url.host_str().expect("a host");
        let fits = |cookie: &&Cookie| {
            let domain = host == cookie.domain
                || !cookie.host_only && host.strip_suffix(&cookie.domain).is_some_and(|h| h.ends_with('.'));
            let path = url.path().strip_prefix(&cookie.path);
            let path = path
                .is_some_and(|rest| cookie.path.ends_with('/') || rest.is_empty() || rest.starts_with('/'));
            domain && path && (!cookie.secure || url.scheme() == "https")
        };
        let held = self.jar.iter().filter(fits).map(|c| format!("{}={}", c.name, c.value));
        held.collect::<Vec<_>>().join("; ")
    }

    /// RFC 6265bis 5.7: what a browser would not take is not kept.
    fn keep(&mut self, url: &Url, text: &str) {
        let mut parts = text.split(';').map(str::trim);
        let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).expect("a pair");
        let host = url.host_str().expect("a host").to_owned();
        let mut cookie = Cookie {
            name: name.into(),
            value: value.into(),
            domain: host.clone(),
            host_only: true,
            path: "/".into(),
            secure: false,
        };
        let mut gone = false;
        for part in parts {
            let (attribute, value) = part.split_once('=').unwrap_or((part, ""));
            match attribute.to_ascii_lowercase().as_str() {
                "domain" => {
                    let domain = value.trim_start_matches('.');
                    let covers =
                        host == domain || host.strip_suffix(domain).is_some_and(|h| h.ends_with('.'));
                    // One label is a public suffix.
                    if !covers || !domain.contains('.') {
                        return;
                    }
                    (cookie.domain, cookie.host_only) = (domain.to_owned(), false);
                }
                "path" => cookie.path = value.to_owned(),
                "secure" => cookie.secure = true,
                "max-age" => gone = value == "0",
                "expires" => gone |= value.contains(" 1970 "),
                _ => {}
            }
        }
        if cookie.secure && url.scheme() != "https" {
            return;
        }
        if cookie.name.starts_with("__Host-") && !(cookie.secure && cookie.host_only && cookie.path == "/") {
            return;
        }
        let same = |c: &Cookie| c.name == cookie.name && c.domain == cookie.domain && c.path == cookie.path;
        self.jar.retain(|c| !same(c));
        if !gone {
            self.jar.push(cookie);
        }
    }

    /// Names of the cookies it holds.
    pub fn holds(&self) -> Vec<&str> {
        self.jar.iter().map(|cookie| cookie.name.as_str()).collect()
    }

    /// As a script of a page of `domain` could.
    pub fn plant(&mut self, domain: &str, name: &str, value: &str) {
        self.jar.insert(
            0,
            Cookie {
                name: name.into(),
                value: value.into(),
                domain: domain.into(),
                host_only: false,
                path: "/callback".into(),
                secure: false,
            },
        );
    }
}
