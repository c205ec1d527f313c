//! An app's answer: its head is read, and written for the client.
//!
//! The first two bytes of the input say who asked and what the gate was told, the rest is the head.

use super::message::{self, Message};
use super::{cuts, jar};
use sandgate::cors::{self, Decision, Mode, Relation, Sharing};
use sandgate::forward::{Confine, ResponsePlan, write_response};
use sandgate::framing::ResponseBody;
use sandgate::head::{Method, RequestHead, ResponseHead, Version};
use sandgate::ids::SandboxId;
use sandgate::limits::Limits;

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let [options, more, bytes @ ..] = input else { return };
    let method = if options & 1 != 0 { Method::Head } else { Method::Get };
    let limits = Limits::default();
    let parse = |bytes| ResponseHead::parse(bytes, method, &limits);
    cuts::verdict_does_not_depend_on_them(bytes, parse, same, |head| head.bytes.len());
    if let Ok(Some(head)) = parse(bytes) {
        has_one_reading(&head, method);
        arrives_as_it_was_decided(&head, method, [*options, *more]);
    }
}

fn same(a: &ResponseHead<'_>, b: &ResponseHead<'_>) -> bool {
    let fields =
        |head: &ResponseHead<'_>| head.fields.iter().map(|f| (f.id, f.name, f.value)).collect::<Vec<_>>();
    (a.bytes, a.status, a.reason, a.version, a.body, a.keep_alive)
        == (b.bytes, b.status, b.reason, b.version, b.body, b.keep_alive)
        && fields(a) == fields(b)
}

/// The plainest reader finds the same message, and its framing leaves no choice (RFC 9112 6.3).
fn has_one_reading(head: &ResponseHead<'_>, method: Method) {
    let plain = Message::read(head.bytes);
    let read: Vec<_> = head.fields.iter().map(|f| (f.name.of(head.bytes), f.value.of(head.bytes))).collect();
    assert_eq!(plain.fields, read);
    assert_eq!(plain.start[0], if head.version == Version::Http11 { b"HTTP/1.1" } else { b"HTTP/1.0" });
    assert_eq!(plain.start[1], head.status.to_string().as_bytes());
    assert!((100..=999).contains(&head.status));
    assert_eq!(plain.start[2], head.reason.of(head.bytes));

    let (lengths, codings) = (plain.all("content-length"), plain.all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings");
    let none = method == Method::Head || matches!(head.status, 100..=199 | 204 | 304);
    let body = match (lengths.first(), codings.first()) {
        (Some(digits), _) => {
            assert!(digits.iter().all(u8::is_ascii_digit));
            ResponseBody::Length(std::str::from_utf8(digits).expect("digits").parse().expect("of 64 bits"))
        }
        (None, Some(coding)) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && head.version == Version::Http11);
            ResponseBody::Chunked
        }
        (None, None) => ResponseBody::UntilClose,
    };
    assert_eq!(head.body, if none { ResponseBody::None } else { body });
    // Nothing may be read behind what ends with the connection, or behind a body that should not be there.
    let forbidden = matches!(head.status, 100..=199 | 204)
        && !matches!(body, ResponseBody::UntilClose | ResponseBody::Length(0));
    assert!(!head.keep_alive || (head.body != ResponseBody::UntilClose && !forbidden));
}

const AUTHORITY: &str = "3000-sb1.preview.test:8443";
const PAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: 3000-sb1.preview.test\r\nOrigin: https://page.test\r\n\r\n";
const REQUEST_ID: &str = "our-id";
const OUR_COOKIE: &str = "daytona-sandbox-auth-sb1=ours; Path=/";

struct World {
    /// The app has a host of its own, or is a guest at that of all toolboxes.
    own_host: bool,
    confined: bool,
    old_client: bool,
    close: bool,
    toolbox: bool,
    sets_cookie: bool,
    framed: bool,
    sharing: Option<(Mode, Sharing<'static>)>,
}

impl World {
    fn of([options, more]: [u8; 2]) -> Self {
        let mode = if more & 2 != 0 { Mode::Simple } else { Mode::Auto };
        Self {
            own_host: options & 2 != 0,
            confined: options & 4 == 0,
            old_client: options & 8 != 0,
            close: options & 16 != 0,
            toolbox: options & 2 == 0 && options & 32 != 0,
            sets_cookie: options & 64 != 0,
            framed: options & 128 != 0,
            sharing: (more & 1 != 0).then(|| (mode, sharing(mode, more & 4 != 0))),
        }
    }
}

fn sharing(mode: Mode, welcome: bool) -> Sharing<'static> {
    let head = RequestHead::parse(PAGE, &Limits::default()).expect("good").expect("whole");
    let relation = if welcome { Relation::Welcome } else { Relation::Stranger };
    match cors::decide(&head, mode, |_| relation) {
        Decision::Share(sharing) => sharing,
        other => panic!("{other:?}"),
    }
}

/// As the exchange decides it.
fn framing(body: ResponseBody, world: &World) -> ResponseBody {
    match body {
        ResponseBody::Chunked | ResponseBody::UntilClose if world.old_client => ResponseBody::UntilClose,
        ResponseBody::UntilClose => ResponseBody::Chunked,
        other => other,
    }
}

/// The client reads the status and framing that were decided, what the app may say of itself and nothing of other hosts.
fn arrives_as_it_was_decided(head: &ResponseHead<'_>, method: Method, options: [u8; 2]) {
    let world = World::of(options);
    let framing = framing(head.body, &world);
    let sandbox = SandboxId::parse(b"sb1").expect("an id");
    let plan = ResponsePlan {
        client_version: if world.old_client { Version::Http10 } else { Version::Http11 },
        framing,
        close: world.close || framing == ResponseBody::UntilClose,
        request_id: REQUEST_ID,
        set_cookie: world.sets_cookie.then_some(OUR_COOKIE),
        frame_ancestors: world.framed.then_some("'self'"),
        confine: world
            .confined
            .then_some(Confine { authority: AUTHORITY.as_bytes(), own_host: world.own_host }),
        sharing: world.sharing.map(|(_, sharing)| sharing),
        redirect_prefix: world.toolbox.then_some(sandbox),
    };
    let mut out = b"before".to_vec();
    write_response(head, &plan, &mut out);
    let out = out.strip_prefix(b"before").expect("it appends");

    let limits = Limits { head_bytes_max: 65_535, header_count_max: 256, ..Limits::default() };
    let again = ResponseHead::parse(out, method, &limits).expect("good").expect("whole");
    assert_eq!(again.bytes.len(), out.len(), "something stands behind the head");
    assert_eq!((again.status, again.body), (head.status, framing));
    assert_eq!(again.reason.of(out), head.reason.of(head.bytes));

    let (app, sent) = (Message::read(head.bytes), Message::read(out));
    is_framed_once(head, &sent);
    has_nothing_of_the_hop(head, &plan, &sent);
    is_shared_once(head, &world, &sent);
    cookies_are_of_this_host_alone(&app, &world, head.status, &sent);
    guests_stay_guests(head, &world, &sent);
    redirects_stay(&app, &world, &sent);
    let ids = sent.all("x-request-id");
    assert!(head.status < 200 || !ids.is_empty());
}

fn is_framed_once(head: &ResponseHead<'_>, sent: &Message<'_>) {
    let (lengths, codings) = (sent.all("content-length"), sent.all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1);
    if matches!(head.status, 100..=199 | 204) {
        assert!(lengths.is_empty() && codings.is_empty(), "RFC 9112 6.1, RFC 9110 8.6");
    }
}

fn has_nothing_of_the_hop(head: &ResponseHead<'_>, plan: &ResponsePlan<'_>, sent: &Message<'_>) {
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authentication-info",
        "te",
        "http2-settings",
    ] {
        assert!(sent.all(name).is_empty(), "{name}");
    }
    let switching = head.status == 101;
    let upgrades: &[&[u8]] = if switching { &[b"websocket"] } else { &[] };
    assert_eq!(sent.all("upgrade"), upgrades);
    let connection: &[&[u8]] = match (switching, head.status < 200, plan.close, plan.client_version) {
        (true, ..) => &[b"Upgrade"],
        (_, true, ..) => &[],
        (_, _, true, _) => &[b"close"],
        (_, _, _, Version::Http10) => &[b"keep-alive"],
        _ => &[],
    };
    assert_eq!(sent.all("connection"), connection);
    // What the app's `Connection` named is gone, unless it is ours to say.
    let named = head.fields.iter().filter(|f| f.name.of(head.bytes).eq_ignore_ascii_case(b"connection"));
    for name in named.flat_map(|f| message::members(f.value.of(head.bytes))) {
        let ours = [
            "x-request-id",
            "set-cookie",
            "vary",
            "connection",
            "upgrade",
            "content-length",
            "transfer-encoding",
        ];
        let ours = ours.iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes()));
        let written = name.get(..15).is_some_and(|n| n.eq_ignore_ascii_case(b"access-control-"))
            || name.eq_ignore_ascii_case(b"content-security-policy")
            || name.eq_ignore_ascii_case(b"x-content-type-options");
        // `close`, `keep-alive` and `upgrade` are words, not names.
        let word = [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|w| name.eq_ignore_ascii_case(w));
        let many = head.connection_names().count() > 16;
        let gone = !sent.fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        assert!(ours || written || word || many || gone, "{}", name.escape_ascii());
    }
}

/// Browsers refuse an answer with two (Fetch 4.9).
fn is_shared_once(head: &ResponseHead<'_>, world: &World, sent: &Message<'_>) {
    let (Some((mode, _)), true) = (&world.sharing, head.status >= 200) else { return };
    let origins = sent.all("access-control-allow-origin");
    let credentials = sent.all("access-control-allow-credentials");
    // An app that names it in `Connection` takes its own away and gets none of ours: nobody may read it then.
    assert!(origins.len() <= 1 && credentials.len() <= 1);
    if *mode == Mode::Simple {
        assert_eq!(origins, [b"https://page.test"]);
        assert_eq!(credentials, [b"true"]);
    }
}

/// Whatever a browser stores of it goes to this host alone and is none of the gate's own cookies.
fn cookies_are_of_this_host_alone(app: &Message<'_>, world: &World, status: u16, sent: &Message<'_>) {
    let mut cookies = sent.all("set-cookie");
    if world.sets_cookie && (status >= 200 || status == 101) {
        assert_eq!(cookies.pop(), Some(OUR_COOKIE.as_bytes()));
    }
    assert!(cookies.len() <= app.all("set-cookie").len());
    for cookie in cookies {
        jar::holds_no_cookie_of_ours(cookie);
        if world.confined {
            jar::is_of_one_host(cookie, AUTHORITY, world.own_host);
        }
        if world.confined && !world.own_host {
            assert_eq!(jar::path(cookie).as_deref(), Some("/toolbox/sb1"), "{}", cookie.escape_ascii());
        }
    }
    if world.confined {
        assert!(sent.all("alt-svc").is_empty());
        let cleared = sent.all("clear-site-data").into_iter().flat_map(message::members);
        for kind in cleared {
            assert!(
                kind != b"\"*\"" && !kind.eq_ignore_ascii_case(b"\"cookies\""),
                "{}",
                kind.escape_ascii()
            );
        }
    }
}

/// Under the toolboxes' origin no app's document acts in the origin's name.
fn guests_stay_guests(head: &ResponseHead<'_>, world: &World, sent: &Message<'_>) {
    if !world.confined || world.own_host {
        return;
    }
    for name in [
        "service-worker-allowed",
        "strict-transport-security",
        "nel",
        "report-to",
        "reporting-endpoints",
        "clear-site-data",
    ] {
        assert!(sent.all(name).is_empty(), "{name}");
    }
    if head.status < 200 {
        return;
    }
    assert_eq!(sent.all("x-content-type-options"), [b"nosniff"]);
    let sandboxed = sent.all("content-security-policy").contains(&&b"sandbox"[..]);
    let types = sent.all("content-type");
    let may_act = match types[..] {
        [] => head.status != 304,
        [kind] => {
            let kind = String::from_utf8_lossy(kind).to_ascii_lowercase();
            ["html", "xml", "svg", "multipart", "javascript", "css", ","]
                .iter()
                .any(|word| kind.split(';').next().is_some_and(|k| k.contains(word)))
                || kind.contains(',')
        }
        _ => true,
    };
    assert!(sandboxed || !may_act, "{types:?}");
}

/// A redirect to a path of the toolbox leads to a path of the same toolbox, any other to where it said.
fn redirects_stay(app: &Message<'_>, world: &World, sent: &Message<'_>) {
    let locations = sent.all("location");
    assert!(locations.len() <= app.all("location").len());
    for location in locations {
        let is_path = location.first() == Some(&b'/') && !matches!(location.get(1), Some(b'/' | b'\\'));
        if world.toolbox && is_path {
            let rest = location.strip_prefix(b"/toolbox/sb1");
            assert!(
                rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
                "{}",
                location.escape_ascii()
            );
        } else {
            assert!(app.all("location").contains(&location));
        }
    }
}
