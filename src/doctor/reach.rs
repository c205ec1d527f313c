//! What the configuration names: is it there, and is it what it should be? Real calls, as `serve` will make them.

use super::Finding;
use crate::config::{self, Config};
use crate::control::api::Api;
use crate::control::login::provider::Document;
use crate::control::redis::{Failure, Redis};
use crate::ids::SandboxId;
use crate::log::Log;
use crate::log_writer::LogWriter;
use crate::mailbox::{Answer, Question, Trouble};
use reqwest::header::{ACCEPT, DATE, LOCATION};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use url::Url;

/// Of one call or look-up.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// A clock further off than this breaks short-lived tokens and cookies (their usual leeway is a minute).
const CLOCK_OFF_MAX: Duration = Duration::from_secs(30);
/// Stands where a sandbox id may; no sandbox has it.
const NO_SANDBOX: &[u8] = b"sandgate-doctor";

/// Looks at everything the configuration names, and at the names of `domain`.
pub fn look(config: Option<&Config>, domain: Option<&str>) -> io::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        let mut findings = Vec::new();
        if let Some(config) = config {
            let client = client()?;
            let fetched = api(config, &client, &mut findings).await;
            if let Some(settings) = &config.redis {
                findings.push(redis(settings).await);
            }
            if let Some(issuer) = issuer(config, fetched.as_ref()) {
                findings.push(provider(&client, &issuer, config.oidc.public_domain.as_deref()).await);
            }
        }
        if let Some(domain) = domain {
            findings.push(names(domain).await);
        }
        Ok(findings)
    });
    // Dropped, it would wait for look-ups that had their time and were given up.
    runtime.shutdown_background();
    found
}

fn client() -> io::Result<reqwest::Client> {
    // As the gate's own client of the API: no redirect, no proxy of the environment.
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
    builder.timeout(DEADLINE).build().map_err(io::Error::other)
}

/// Three items: the address, the key, the clock. Returns what the API's `/config` says.
async fn api(
    config: &Config,
    client: &reqwest::Client,
    findings: &mut Vec<Finding>,
) -> Option<serde_json::Value> {
    let url = format!("{}/config", config.api_url);
    let asked = SystemTime::now();
    let answer = match get(client, &url).await {
        Ok(answer) => answer,
        Err(why) => {
            let remedy =
                "is it running, and is DAYTONA_API_URL right? (the gate starts without it and answers 503)";
            findings.push(Finding::fail("api", format!("{}: {why}", config.api_url), remedy));
            return None;
        }
    };
    findings.extend(clock(asked, answer.date.as_deref()));
    let said =
        serde_json::from_slice::<serde_json::Value>(&answer.body).ok().filter(serde_json::Value::is_object);
    let Some(said) = said.filter(|_| answer.status == 200) else {
        let (value, remedy) = not_an_api(&answer);
        findings.push(Finding::fail("api", format!("{url}: {value}"), remedy));
        return None;
    };
    let version = said.get("version").and_then(|v| v.as_str()).map_or_else(String::new, |v| format!(" {v}"));
    findings.push(Finding::pass("api", format!("{} answers as a sandbox API{version}", config.api_url)));
    findings.push(key(config).await);
    Some(said)
}

struct Fetched {
    status: u16,
    location: Option<String>,
    date: Option<String>,
    body: Vec<u8>,
}

/// The error is a sentence without the URL, which may hold a password.
async fn get(client: &reqwest::Client, url: &str) -> Result<Fetched, String> {
    let plain = |error: reqwest::Error| {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    };
    let mut response = client.get(url).header(ACCEPT, "application/json").send().await.map_err(plain)?;
    let field = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (location, date, status) = (field(LOCATION), field(DATE), response.status().as_u16());
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(plain)? {
        body.extend_from_slice(&piece);
        if body.len() > BODY_BYTES_MAX {
            return Err(format!("more than {BODY_BYTES_MAX} bytes"));
        }
    }
    Ok(Fetched { status, location, date, body })
}

fn not_an_api(answer: &Fetched) -> (String, &'static str) {
    let start = answer.body.trim_ascii_start();
    if start.first() == Some(&b'<') {
        return ("a web page, not an API".into(), "DAYTONA_API_URL must be the API's, with /api at its end");
    }
    match answer.status {
        200 => {
            ("a 200 that is no JSON object".into(), "DAYTONA_API_URL must be the API's, with /api at its end")
        }
        status @ 300..=399 => {
            let to = answer.location.as_deref().unwrap_or("nowhere");
            // A redirect's target is the API's own word; its query may hold anything and is left out.
            let to = to.split(['?', '#']).next().unwrap_or_default();
            (
                format!("{status}, redirects to {to}"),
                "no redirect is followed: set DAYTONA_API_URL to the last address",
            )
        }
        404 => ("404".into(), "DAYTONA_API_URL must be the API's, with /api at its end"),
        status => (status.to_string(), "look into the API's log"),
    }
}

/// Does the API take the gate's key? Asked as the gate asks, about a sandbox that is not there.
async fn key(config: &Config) -> Finding {
    let unlogged = LogWriter::spawn("doctor", Box::new(io::sink()), 1).ok();
    let log = Log::new(unlogged.as_ref().map(LogWriter::sender));
    let api = match Api::new(&config.api_url, &config.api_key, DEADLINE, log) {
        Ok(api) => api,
        Err(why) => return Finding::fail("api key", why, "correct the setting"),
    };
    let id = SandboxId::parse(NO_SANDBOX).expect("letters and a dash");
    match api.answer(&Question::Public(id)).await {
        Ok(Answer::Yes | Answer::No) => Finding::pass("api key", "the API takes it"),
        Err(Trouble::ApiStatus(status @ (401 | 403))) => Finding::fail(
            "api key",
            format!("the API refuses it with {status}"),
            "set PROXY_API_KEY to the key the API knows its proxy by (its PROXY_API_KEY)",
        ),
        other => Finding::fail(
            "api key",
            format!("the API could not say: {other:?}"),
            "look into the API's log; DAYTONA_API_URL must end with /api",
        ),
    }
}

/// Through the gate's own client: connection, TLS, login and one harmless command.
async fn redis(settings: &config::Redis) -> Finding {
    let place = format!("{}:{}{}", settings.host, settings.port, if settings.tls { " over TLS" } else { "" });
    let remedy = "is it running, and are REDIS_HOST, REDIS_PORT, REDIS_TLS and the login right? (without it the gate \
                  keeps its own short memory)";
    let said = Said::default();
    let writer = LogWriter::spawn("doctor", Box::new(said.clone()), 16).ok();
    let log = Log::new(writer.as_ref().map(LogWriter::sender));
    let client = match Redis::new(settings, None, Arc::default(), log) {
        Ok(client) => client,
        Err(why) => return Finding::fail("redis", format!("{place}: {why}"), "correct the setting"),
    };
    let mut up = client.watch_up();
    let keeper = tokio::spawn(client.clone().keep());
    let connected = tokio::time::timeout(DEADLINE, up.wait_for(|up| *up)).await.is_ok_and(|up| up.is_ok());
    let asked = Instant::now();
    let answer = if connected { client.get("sandgate:doctor").await } else { Err(Failure::Down) };
    let took = asked.elapsed();
    keeper.abort();
    let why = || {
        writer.map(|writer| writer.finish(Duration::from_secs(1)));
        said.last_detail().map_or_else(String::new, |detail| format!(" ({detail})"))
    };
    match answer {
        Ok(_) => Finding::pass("redis", format!("{place} answers in {:.1} ms", took.as_secs_f64() * 1000.0)),
        Err(Failure::Down) => Finding::fail("redis", format!("{place}: no connection{}", why()), remedy),
        Err(Failure::Refused) => {
            let remedy = "the login must be allowed GET, SET, DEL, SUBSCRIBE and CLIENT TRACKING";
            Finding::fail("redis", format!("{place}: it refuses GET{}", why()), remedy)
        }
    }
}

/// What the client says to the log.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Of its last event; the log holds no secrets.
    fn last_detail(&self) -> Option<String> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines =
            said.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<serde_json::Value>(l).ok());
        lines.rev().find_map(|line| Some(line.get("detail")?.as_str()?.to_owned()))
    }
}

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Against the API's, exact to a second and the call's own time.
fn clock(asked: SystemTime, date: Option<&str>) -> Option<Finding> {
    let theirs = httpdate(date?)?;
    let ours = SystemTime::now();
    let off = match (theirs.duration_since(ours), asked.duration_since(theirs)) {
        (Ok(ahead), _) => ahead,
        (_, Ok(behind)) => behind,
        _ => Duration::ZERO,
    };
    let value = format!("{} s from the API's", off.as_secs());
    Some(if off > CLOCK_OFF_MAX {
        let remedy = "let a time service (chrony, systemd-timesyncd) set both clocks";
        Finding::warn("clock", value, remedy).wanted(format!("at most {} s", CLOCK_OFF_MAX.as_secs()))
    } else {
        Finding::pass("clock", value)
    })
}

/// IMF-fixdate (RFC 9110 5.6.7), the one form a server may send.
fn httpdate(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.strip_suffix(" GMT")?.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

/// The configured issuer, else the API's.
fn issuer(config: &Config, said: Option<&serde_json::Value>) -> Option<String> {
    let told = || said?.get("oidc")?.get("issuer")?.as_str().map(str::to_owned);
    config.oidc.domain.clone().or_else(told).filter(|issuer| !issuer.is_empty())
}

/// OpenID Connect Discovery 1.0, section 4. `public`: as browsers reach it, if that is elsewhere.
async fn provider(client: &reqwest::Client, issuer: &str, public: Option<&str>) -> Finding {
    let public = public.unwrap_or(issuer);
    let issuer = issuer.trim_end_matches('/');
    let url = format!("{issuer}/.well-known/openid-configuration");
    let remedy = "OIDC_DOMAIN must be the issuer as this machine reaches it; login does not work without it";
    let answer = match get(client, &url).await {
        Ok(answer) => answer,
        Err(why) => return Finding::fail("oidc", format!("{issuer}: {why}"), remedy),
    };
    let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let names = ["issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"];
    let missing: Vec<_> = names.into_iter().filter(|name| !said[*name].is_string()).collect();
    if answer.status != 200 || !missing.is_empty() {
        let value = format!("{url}: {} without {}", answer.status, missing.join(", "));
        return Finding::fail("oidc", value, remedy);
    }
    // As the first login will read it.
    let read = match (Url::parse(issuer), Url::parse(public)) {
        (Ok(internal), Ok(public)) => Document::read(&answer.body, &internal, &public).map(|_| ()),
        _ => Err("its name is no URL"),
    };
    let own = said["issuer"].as_str().unwrap_or_default().trim_end_matches('/');
    let differs = if own == issuer { String::new() } else { format!(", which calls itself {own}") };
    match read {
        Ok(()) => Finding::pass("oidc", format!("{issuer}{differs}")),
        Err(why) => {
            Finding::fail("oidc", format!("{issuer}{differs}: {why}"), "logins end with an error until then")
        }
    }
}

/// Previews need every name of the domain to lead here; which address is right only the operator can say.
async fn names(domain: &str) -> Finding {
    let domain = domain.trim_start_matches("*.").trim_matches('.');
    let name = format!("3000-{}.{domain}", uuid::Uuid::now_v7().simple());
    let found = tokio::time::timeout(DEADLINE, tokio::net::lookup_host((name.as_str(), 443))).await;
    let remedy =
        format!("add a record *.{domain} with the address of this gate or of what stands in front of it");
    match found {
        Err(_) => Finding::fail("dns", format!("{name}: no answer in {} s", DEADLINE.as_secs()), remedy),
        Ok(Err(error)) => Finding::fail("dns", format!("{name}: {error}"), remedy),
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<_> = addresses.map(|a| a.ip().to_string()).collect();
            addresses.dedup();
            Finding::pass("dns", format!("*.{domain} leads to {}", addresses.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_what_is_none_is_not() {
        let epoch = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(httpdate("Sun, 06 Nov 1994 08:49:37 GMT"), epoch(784_111_777));
        for text in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Foo 1994 08:49:37 GMT",
        ] {
            assert_eq!(httpdate(text), None, "{text}");
        }
    }

    #[test]
    fn a_clock_that_is_off_either_way_is_told_and_no_date_tells_nothing() {
        use crate::doctor::Verdict;
        let date = |at: SystemTime| {
            let text = humantime::format_rfc3339_seconds(at).to_string();
            // Only the parts that are read: day, month, year and time.
            let months =
                ["", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = months[text[5..7].parse::<usize>().expect("digits")];
            format!("Day, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
        };
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        for (theirs, verdict) in
            [(now, Verdict::Pass), (now - hour, Verdict::Warn), (now + hour, Verdict::Warn)]
        {
            let finding = clock(now, Some(&date(theirs))).expect("there is a date");
            assert_eq!(finding.verdict, verdict, "{finding}");
        }
        assert_eq!(clock(now, None), None);
    }
}
