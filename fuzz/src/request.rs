//! A request's head: read, and written for the runner.
//!
//! The first byte of the input says who asks and where it goes, the rest is the head.

use super::message::{self, Message, folded, is_token, members};
use super::{cuts, proofs};
use sandgate::forward::{RequestPlan, RunnerPath, write_request};
use sandgate::framing::RequestBody;
use sandgate::head::{Method, RequestHead, Version};
use sandgate::ids::{Port, SandboxId};
use sandgate::limits::Limits;
use std::net::IpAddr;

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let Some((&options, bytes)) = input.split_first() else { return };
    let limits = limits(options & 0x20 != 0);
    let parse = |bytes| RequestHead::parse(bytes, &limits);
    cuts::verdict_does_not_depend_on_them(bytes, parse, same, |head| head.bytes.len());
    if let Ok(Some(head)) = parse(bytes) {
        has_one_reading(&head, &limits);
        // What the route refuses is never written.
        if !matches!(head.method, Method::Connect | Method::Trace) && head.path().first() == Some(&b'/') {
            arrives_as_it_was_decided(&head, options);
        }
    }
}

/// With `small` what is long is refused early.
fn limits(small: bool) -> Limits {
    if small {
        Limits { head_bytes_max: 256, uri_bytes_max: 64, header_count_max: 8, ..Limits::default() }
    } else {
        Limits::default()
    }
}

fn same(a: &RequestHead<'_>, b: &RequestHead<'_>) -> bool {
    let fields =
        |head: &RequestHead<'_>| head.fields.iter().map(|f| (f.id, f.name, f.value)).collect::<Vec<_>>();
    let flags = |head: &RequestHead<'_>| [head.websocket, head.keep_alive, head.expect_continue];
    let spans = |head: &RequestHead<'_>| [head.method_text, head.target, head.authority];
    (a.bytes, a.method, a.version, a.path_len, a.body, a.seen)
        == (b.bytes, b.method, b.version, b.path_len, b.body, b.seen)
        && flags(a) == flags(b)
        && spans(a) == spans(b)
        && fields(a) == fields(b)
}

/// The plainest reader finds the same message, and its framing and authority leave no choice (RFC 9112 3.2, 6.3).
fn has_one_reading(head: &RequestHead<'_>, limits: &Limits) {
    assert!(head.bytes.len() <= limits.head_bytes_max && head.fields.len() <= limits.header_count_max);
    let plain = Message::read(head.bytes.strip_prefix(b"\r\n").unwrap_or(head.bytes));
    let [method, target, version] = plain.start;
    assert!(is_token(method));
    assert_eq!(method, head.method_text.of(head.bytes));
    assert_eq!(head.method == Method::Get, method == b"GET");
    assert_eq!(version, if head.version == Version::Http11 { b"HTTP/1.1" } else { b"HTTP/1.0" });
    assert!(
        target.len() <= limits.uri_bytes_max && target.iter().all(|b| b.is_ascii_graphic() && *b != b'#')
    );
    let read: Vec<_> = head.fields.iter().map(|f| (f.name.of(head.bytes), f.value.of(head.bytes))).collect();
    assert_eq!(plain.fields, read);

    let hosts = plain.all("host");
    assert_eq!(hosts, [head.authority.of(head.bytes)]);
    assert!(
        hosts[0].iter().all(|b| b.is_ascii_alphanumeric() || b"._-:[]".contains(b)) && !hosts[0].is_empty()
    );
    // Absolute-form names the same authority.
    let seen = head.target.of(head.bytes);
    assert!(target.ends_with(seen) || seen == b"/", "{}", target.escape_ascii());
    if target != seen {
        let absolute = target.to_ascii_lowercase();
        let rest =
            absolute.strip_prefix(b"http://").or(absolute.strip_prefix(b"https://")).expect("a scheme");
        assert_eq!(rest.split(|b| *b == b'/').next(), Some(&*hosts[0].to_ascii_lowercase()));
    }

    let (lengths, codings) = (plain.all("content-length"), plain.all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings");
    let length = lengths.first().map(|digits| {
        assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
        std::str::from_utf8(digits).expect("digits").parse().expect("of 64 bits")
    });
    let body = match (length, codings.first()) {
        (Some(length), _) => RequestBody::Length(length),
        (None, Some(coding)) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && head.version == Version::Http11);
            RequestBody::Chunked
        }
        (None, None) => RequestBody::None,
    };
    assert_eq!(head.body, body);
    assert!(!head.websocket || matches!(body, RequestBody::None | RequestBody::Length(0)));
}

/// Who asks and where it goes.
struct World {
    trusted_peer: bool,
    strip_authorization: bool,
    client_ip: IpAddr,
    path: RunnerPath,
    prefix: &'static str,
    /// Of the client's path this is left out.
    rest_at: usize,
}

const RUNNER: &str = "runner.test:3003";
const OUR_KEY: &str = "Bearer the-runners-own-key";
const REQUEST_ID: &str = "our-id";

impl World {
    fn of(options: u8, head: &RequestHead<'_>) -> Self {
        let sandbox = SandboxId::parse(b"sb1").expect("an id");
        let client_ip = if options & 0x10 != 0 { "2001:db8::7" } else { "192.0.2.1" };
        let rest_at = head.path().len().min("/toolbox/sb1".len());
        let (path, prefix, rest_at) = match options >> 2 & 3 {
            0 | 1 => {
                let port = Port::parse(b"3000").expect("a port");
                (RunnerPath::Preview { sandbox, port }, "/base/sandboxes/sb1/toolbox/proxy/3000", 0)
            }
            2 => (
                RunnerPath::Toolbox { sandbox, rest_at: rest_at as u16 },
                "/base/sandboxes/sb1/toolbox",
                rest_at,
            ),
            _ => (RunnerPath::Whole("/logs?of=ours".to_owned()), "/base/logs?of=ours", 0),
        };
        Self {
            trusted_peer: options & 1 != 0,
            strip_authorization: options & 2 != 0,
            client_ip: client_ip.parse().expect("an address"),
            path,
            prefix,
            rest_at,
        }
    }
}

/// The runner reads the method, target and framing that were decided here, every field of the client's it may have, each
/// once and in order, and of the others none, and ours: nothing a client sends adds to them or takes one away.
fn arrives_as_it_was_decided(head: &RequestHead<'_>, options: u8) {
    let world = World::of(options, head);
    let plan = RequestPlan {
        host: RUNNER,
        base_path: "/base",
        path: &world.path,
        authorization: OUR_KEY,
        strip_authorization: world.strip_authorization,
        client_ip: world.client_ip,
        trusted_peer: world.trusted_peer,
        scheme: "https",
        request_id: REQUEST_ID,
    };
    let mut out = b"before".to_vec();
    write_request(head, &plan, &mut out);
    let out = out.strip_prefix(b"before").expect("it appends");

    let limits =
        Limits { head_bytes_max: 65_535, uri_bytes_max: 65_535, header_count_max: 256, ..Limits::default() };
    let again = RequestHead::parse(out, &limits).expect("good").expect("whole");
    assert_eq!(again.bytes.len(), out.len(), "something stands behind the head");
    assert_eq!(again.version, Version::Http11);
    assert_eq!(
        (again.body, again.websocket, again.expect_continue),
        (head.body, head.websocket, head.expect_continue)
    );
    assert!(again.keep_alive);

    let sent = Message::read(out);
    let of_client = Message::read(head.bytes.strip_prefix(b"\r\n").unwrap_or(head.bytes));
    let target = expected_target(head, &world);
    assert_eq!(sent.start, [head.method_text.of(head.bytes), &target, b"HTTP/1.1"]);
    is_canonical(out, &sent);

    let expected = expected_fields(&of_client, head, &world);
    let fields = sent.fields.iter().map(|(name, value)| (*name, value.to_vec())).collect::<Vec<_>>();
    if connection_names(&of_client).len() > 16 {
        // Whoever names so many loses all fields that are not known: fewer than expected, and in order.
        let mut expected = expected.into_iter();
        assert!(fields.iter().all(|field| expected.any(|e| is_same(&e, field))));
        return;
    }
    for (at, pair) in expected.iter().enumerate() {
        assert!(fields.get(at).is_some_and(|field| is_same(pair, field)), "{pair:?} at {at} of {fields:?}");
    }
    assert_eq!(fields.len(), expected.len());
}

type Field<'b> = (&'b [u8], Vec<u8>);

/// Of a cookie field that lost one of ours the spaces around it may go along.
fn is_same(expected: &Field<'_>, found: &Field<'_>) -> bool {
    let blank = |value: &[u8]| {
        message::split(value, b";")
            .into_iter()
            .map(<[u8]>::trim_ascii)
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let is_cookie = expected.0.eq_ignore_ascii_case(b"cookie");
    expected.0 == found.0 && (expected.1 == found.1 || (is_cookie && blank(&expected.1) == blank(&found.1)))
}

/// One space behind each colon and nothing around it (but for cookies, which keep their bytes).
fn is_canonical(out: &[u8], sent: &Message<'_>) {
    let mut text = sent.start.join(&b' ');
    text.extend_from_slice(b"\r\n");
    for (name, value) in &sent.fields {
        text.extend_from_slice(&[name, &b": "[..], value, b"\r\n"].concat());
    }
    text.extend_from_slice(b"\r\n");
    assert_eq!(out.escape_ascii().to_string(), text.escape_ascii().to_string());
}

fn expected_target(head: &RequestHead<'_>, world: &World) -> Vec<u8> {
    let mut target = world.prefix.as_bytes().to_vec();
    if matches!(world.path, RunnerPath::Whole(_)) {
        return target;
    }
    let rest = &head.path()[world.rest_at..];
    if rest.first() != Some(&b'/') {
        target.push(b'/');
    }
    target.extend_from_slice(rest);
    target.extend_from_slice(&proofs::query_without(head.query()));
    target
}

/// Names that are never the client's to send: this hop's own (RFC 9110 7.6.1), what the gate vouches for, what is for it.
const NEVER: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "te",
    "upgrade",
    "expect",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-daytona-authorization",
    "x-daytona-preview-token",
    "x-daytona-skip-preview-warning",
    "x-daytona-skip-last-activity-update",
    "x-daytona-disable-cors",
];
/// A trusted peer's to send.
const OF_PEERS: &[&str] = &["forwarded", "x-forwarded-port", "x-real-ip"];
/// May be sent, but not in another spelling that gateways take for the same.
const IN_ONE_SPELLING: &[&str] = &["authorization", "cookie", "trailer", "x-request-id"];

fn connection_names<'b>(message: &Message<'b>) -> Vec<&'b [u8]> {
    let words = ["close", "keep-alive", "upgrade"];
    let is_word = |name: &&[u8]| words.iter().any(|word| name.eq_ignore_ascii_case(word.as_bytes()));
    let named = message.all("connection").into_iter().flat_map(members);
    named.filter(|name| !is_word(name)).collect()
}

fn expected_fields<'b>(of_client: &Message<'b>, head: &RequestHead<'_>, world: &World) -> Vec<Field<'b>> {
    let mut fields: Vec<Field<'b>> = vec![(b"Host", RUNNER.into())];
    let named = connection_names(of_client);
    let is_in = |list: &[&str], name: &str| list.contains(&name);
    for (name, value) in &of_client.fields {
        let (lower, folded) = (String::from_utf8_lossy(name).to_ascii_lowercase(), folded(name));
        if is_in(OF_PEERS, &lower) && world.trusted_peer {
            fields.push((name, value.to_vec()));
            continue;
        }
        let respelled = lower != folded && is_in(IN_ONE_SPELLING, &folded);
        let never = is_in(NEVER, &folded) || is_in(OF_PEERS, &folded) || respelled;
        let is_named = named.iter().any(|n| n.eq_ignore_ascii_case(name));
        let kept = !never
            && !is_named
            && !(lower == "authorization" && (world.strip_authorization || proofs::holds_api_key(value)));
        let left = if lower == "cookie" { proofs::cookies_without(value) } else { Some(value.to_vec()) };
        fields.extend(left.filter(|_| kept).map(|left| (*name, left)));
    }
    match head.body {
        RequestBody::None => {}
        RequestBody::Length(length) => fields.push((b"Content-Length", length.to_string().into())),
        RequestBody::Chunked => fields.push((b"Transfer-Encoding", b"chunked".into())),
    }
    if head.expect_continue {
        fields.push((b"Expect", b"100-continue".into()));
    }
    if head.websocket {
        fields.extend([(&b"Connection"[..], b"Upgrade".to_vec()), (b"Upgrade", b"websocket".to_vec())]);
    }
    let said = |name| of_client.all(name).into_iter().filter(|value| world.trusted_peer && !value.is_empty());
    let ip = world.client_ip.to_string();
    let chain: Vec<&[u8]> = said("x-forwarded-for").chain([ip.as_bytes()]).collect();
    fields.push((b"X-Forwarded-For", chain.join(&b", "[..])));
    let host = said("x-forwarded-host").next().unwrap_or(of_client.all("host")[0]);
    fields.push((b"X-Forwarded-Host", host.to_vec()));
    fields.push((b"X-Forwarded-Proto", said("x-forwarded-proto").next().unwrap_or(b"https").to_vec()));
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"x-request-id")) {
        fields.push((b"X-Request-Id", REQUEST_ID.into()));
    }
    fields.push((b"X-Daytona-Authorization", OUR_KEY.into()));
    fields
}
