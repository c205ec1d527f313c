//! What a request asks for: host and path to a route, and the route to a path on a runner.
//!
//! The first byte of the input says which rules hold; up to the first LF stands the host, behind it the target.

use super::message::percent_decoded;
use super::proofs;
use super::runner;
use sandgate::forward::{RunnerPath, query_token, target_without_proofs};
use sandgate::head::RequestHead;
use sandgate::ids::{SandboxId, SignedToken};
use sandgate::limits::Limits;
use sandgate::route::{BuildLogsOf, Domains, NoRoute, Route, RouteRules, route, route_within};

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let Some((&options, text)) = input.split_first() else { return };
    let end = text.iter().position(|b| *b == b'\n').unwrap_or(text.len());
    let (host, target) = (&text[..end], text.get(end + 1..).unwrap_or_default());
    let method: &[u8] = if options & 4 != 0 { b"POST " } else { b"GET " };
    let head = [method, target, b" HTTP/1.1\r\nHost: ", host, b"\r\n\r\n"].concat();
    let Ok(Some(head)) = RequestHead::parse(&head, &Limits::default()) else { return };
    let rules = RouteRules { toolbox_only: options & 1 != 0, own_sessions: options & 2 != 0 };

    no_proof_stays_in(&head);
    let routed = route(&head, rules);
    is_within_its_domain(&head, rules, &routed);
    let path = head.path();
    match routed {
        Ok(Route::Preview { port, label }) => {
            let first =
                head.authority.of(head.bytes).split(|b| matches!(b, b'.' | b':')).next().unwrap_or_default();
            // One spelling only: no alias of a reserved port.
            assert_eq!(first.to_ascii_lowercase(), format!("{port}-{label}").into_bytes());
            assert!(!rules.toolbox_only || port.number() == 2280);
            assert!(!rules.own_sessions || !path.starts_with(b"/.daytona/"));
            is_a_link_or_not(&label);
            let prefix = format!("/sandboxes/{label}/toolbox/proxy/{port}");
            arrives_below(&head, &RunnerPath::Preview { sandbox: label, port }, &prefix);
        }
        Ok(Route::Toolbox { sandbox, rest_at }) => {
            let rest = path.strip_prefix(format!("/toolbox/{sandbox}").as_bytes()).expect("its own path");
            assert_eq!(path.len() - rest.len(), usize::from(rest_at));
            assert!(matches!(rest.first(), None | Some(b'/')));
            let prefix = format!("/sandboxes/{sandbox}/toolbox");
            arrives_below(&head, &RunnerPath::Toolbox { sandbox, rest_at }, &prefix);
        }
        Ok(Route::BuildLogs { of, follow }) => {
            let (kind, name) = match &of {
                BuildLogsOf::Sandbox(id) => ("sandboxes", id.as_str()),
                BuildLogsOf::Snapshot(name) => ("snapshots", &**name),
            };
            assert_eq!(path, format!("/{kind}/{name}/build-logs").as_bytes());
            // It becomes a segment of a path of the API's.
            assert!(!name.contains('/') && name.bytes().any(|b| b != b'.') && !name.contains('%'));
            assert!(
                !follow
                    || head
                        .query()
                        .is_some_and(|query| query.split(|b| *b == b'&').any(|p| p == b"follow=true"))
            );
        }
        Ok(Route::Health | Route::Callback) => assert!(matches!(path, b"/health" | b"/callback")),
        Ok(Route::Handoff) => assert!(rules.own_sessions && path == b"/.daytona/auth"),
        Err(NoRoute::PathClimbs) => {
            // Nothing is refused that has no two dots in any reading.
            let read = percent_decoded(&percent_decoded(path));
            assert!(read.windows(2).any(|w| w == b".."), "{}", path.escape_ascii());
        }
        Err(_) => {}
    }
}

/// Who reads a token and who removes it use one parse, and so does whoever decodes what is left.
fn no_proof_stays_in(head: &RequestHead<'_>) {
    let left = target_without_proofs(head);
    let query = left.get(head.path().len() + 1..).unwrap_or_default();
    assert_eq!(left, [head.path(), &proofs::query_without(head.query())].concat());
    assert_eq!(query_token(query), None);
    assert!(!query.split(|b| *b == b'&').any(proofs::is_our_pair));
    let held = head.query().is_some_and(|query| query.split(|b| *b == b'&').any(proofs::is_our_pair));
    assert_eq!(head.query().and_then(query_token).is_some(), held);
}

fn is_within_its_domain(head: &RequestHead<'_>, rules: RouteRules, routed: &Result<Route, NoRoute>) {
    let domains = Domains::parse("preview.test").expect("a domain");
    let host = String::from_utf8_lossy(head.authority.of(head.bytes)).to_ascii_lowercase();
    let host = host.rsplit_once(':').filter(|(host, _)| !host.contains(':')).map_or(&*host, |(host, _)| host);
    let host = host.strip_suffix('.').unwrap_or(host);
    let below =
        host.strip_suffix(".preview.test").is_some_and(|label| !label.is_empty() && !label.contains('.'));
    let served = host == "preview.test" || below || *routed == Ok(Route::Health);
    let expected = if served { routed.clone() } else { Err(NoRoute::ForeignHost) };
    assert_eq!(route_within(Some(&domains), head, rules, false), expected, "{host}");
}

fn is_a_link_or_not(label: &SandboxId) {
    let looks = label.as_str().len() == 16
        && label.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let token = SignedToken::of_label(label);
    assert_eq!(token.map(|token| token.expose().to_owned()), looks.then(|| label.as_str().to_owned()));
}

/// The runner, and every hop before it that decodes, merges or folds a path in a way of its own, finds the request below
/// `prefix`.
fn arrives_below(head: &RequestHead<'_>, path: &RunnerPath, prefix: &str) {
    let out = runner::written(head, "runner.test", "/base", path);
    let target = out.split(|b| *b == b' ').nth(1).expect("a target");
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    let prefix: Vec<&[u8]> = prefix.split('/').skip(1).map(str::as_bytes).collect();
    let prefix = [&[&b"base"[..]], &prefix[..]].concat();
    assert!(path.starts_with(format!("/{}/", String::from_utf8_lossy(&prefix.join(&b'/'))).as_bytes()));
    if !path.windows(2).any(|w| w == b"..") && !path.contains(&b'%') {
        return;
    }
    for reading in 0..READINGS {
        let once = read(path, reading);
        assert!(is_below(&once, &prefix), "{} in {reading:#b}", path.escape_ascii());
        // A hop that hands on what it made of the path, to another of its kind and of each other kind.
        let handed = [b"/", &once.join(&b'/')[..]].concat();
        for next in 0..READINGS {
            assert!(
                is_below(&read(&handed, next), &prefix),
                "{} in {reading:#b}, {next:#b}",
                path.escape_ascii()
            );
        }
    }
}

fn is_below(segments: &[Vec<u8>], prefix: &[&[u8]]) -> bool {
    segments.len() >= prefix.len() && prefix.iter().zip(segments).all(|(a, b)| a == b)
}

/// Whether it decodes, takes `\` for `/`, merges slashes, drops `;parameters`.
const READINGS: u8 = 16;

fn read(path: &[u8], reading: u8) -> Vec<Vec<u8>> {
    let [decodes, backslash, merges, drops] = [1, 2, 4, 8].map(|bit| reading & bit != 0);
    let text = if decodes { percent_decoded(path) } else { path.to_vec() };
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for segment in text.split(|b| *b == b'/' || (backslash && *b == b'\\')).skip(1) {
        let parameters = segment.iter().position(|b| *b == b';').filter(|_| drops);
        match &segment[..parameters.unwrap_or(segment.len())] {
            b"" if merges => {}
            b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment.to_vec()),
        }
    }
    segments
}
