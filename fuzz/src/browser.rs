//! What a browser says of the page that asks: origins, Fetch Metadata, the cookies of a login, the form of the warning.
//!
//! The first byte of the input says where the request goes, up to the first LF stands its target, then its fields.

use super::message::split;
use sandgate::cors::{self, Decision, Mode, Relation};
use sandgate::head::{FieldId, Method, RequestHead};
use sandgate::ids::SandboxId;
use sandgate::initiator::{Origin, Place, frame_ancestors, is_sibling, is_welcome, may_use_cookies};
use sandgate::limits::Limits;
use sandgate::login::flow::{FlowCookies, return_to};
use sandgate::login::navigation::{Asks, asks};
use sandgate::readers::{Accepted, accept, warning_page};

const HOST: &str = "3000-sb1.preview.test";
const TOOLBOXES: &str = "preview.test";
const TRUSTED: &str = "https://app.test";
const METHODS: [&str; 4] = ["GET", "POST", "OPTIONS", "HEAD"];

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let Some((&options, text)) = input.split_first() else { return };
    let own_origin = options & 4 == 0;
    let host = if own_origin { HOST } else { TOOLBOXES };
    let mut lines = split(text, b"\n").into_iter();
    let method = METHODS[usize::from(options & 3)].as_bytes();
    let mut head =
        [method, b" ", lines.next().unwrap_or_default(), b" HTTP/1.1\r\nHost: ", host.as_bytes(), b"\r\n"]
            .concat();
    lines.for_each(|line| head.extend_from_slice(&[line, b"\r\n"].concat()));
    head.extend_from_slice(b"\r\n");
    let Ok(Some(head)) = RequestHead::parse(&head, &Limits::default()) else { return };

    let sandbox = SandboxId::parse(b"sb1").expect("an id");
    let trusted = [Origin::parse(TRUSTED.as_bytes()).expect("an origin")];
    let place = Place { https: options & 8 == 0, sandbox: &sandbox, own_origin, trusted: &trusted };
    cookies_count_for_its_own_pages(&head, &place);
    its_frames_are_named_and_nothing_else(&head, &place);
    what_is_shared_is_repeated_and_nothing_else(&head, &place, options);
    it_goes_back_to_a_path(&head);
    logins_begin_with_a_page(&head);
}

/// Scheme, port label of digits, and domain, as a page of the sandbox has them.
fn is_own(origin: &[u8], place: &Place<'_>) -> bool {
    let origin = String::from_utf8_lossy(origin).to_ascii_lowercase();
    let rest = match origin.split_once("://") {
        Some(("https", rest)) => rest,
        Some(("http", rest)) if !place.https => rest,
        _ => return false,
    };
    let port = rest.strip_suffix("-sb1.preview.test").unwrap_or_default();
    port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port)
}

fn cookies_count_for_its_own_pages(head: &RequestHead<'_>, place: &Place<'_>) {
    let all =
        |id| head.fields.iter().filter(|f| f.id == id).map(|f| f.value.of(head.bytes)).collect::<Vec<_>>();
    for origin in all(FieldId::Origin).into_iter().chain(all(FieldId::Referer)) {
        let welcome = is_welcome(origin, head, place);
        assert_eq!(
            welcome,
            is_own(origin, place) || origin.eq_ignore_ascii_case(TRUSTED.as_bytes()),
            "{}",
            origin.escape_ascii()
        );
    }
    let (origins, sites) = (all(FieldId::Origin), all(FieldId::SecFetchSite));
    if !may_use_cookies(head, place) {
        return;
    }
    assert!(origins.len() <= 1);
    let same_origin = place.own_origin && sites == [b"same-origin"];
    if let [origin] = origins[..] {
        assert!(is_welcome(origin, head, place) || same_origin, "{}", origin.escape_ascii());
        return;
    }
    // Without an origin nothing is changed and no tunnel opened but by its own pages.
    assert!(sites.len() <= 1);
    let by_referer = all(FieldId::Referer).len() == 1;
    let reads = matches!(head.method, Method::Get | Method::Head) && !head.websocket;
    assert!(reads || same_origin || (by_referer && !sites.is_empty()));
}

/// Sources of a policy: nothing in one ends it or begins another directive.
fn its_frames_are_named_and_nothing_else(head: &RequestHead<'_>, place: &Place<'_>) {
    let sources = frame_ancestors(head, place);
    let mut sources = sources.split(' ');
    assert_eq!((sources.next(), sources.next()), (Some("'self'"), Some(TRUSTED)));
    let rest: Vec<&str> = sources.collect();
    assert!(rest.len() <= 1);
    assert!(
        rest.iter().all(|source| is_own(source.as_bytes(), place) || source.eq_ignore_ascii_case(TRUSTED))
    );
}

fn what_is_shared_is_repeated_and_nothing_else(head: &RequestHead<'_>, place: &Place<'_>, options: u8) {
    let mode = if options & 16 != 0 { Mode::Simple } else { Mode::Auto };
    let mut told = None;
    let relation = |origin: &[u8]| {
        let relation = match (is_welcome(origin, head, place), is_sibling(origin, head)) {
            (true, _) => Relation::Welcome,
            (_, true) => Relation::Sibling,
            _ => Relation::Stranger,
        };
        told = Some(relation);
        relation
    };
    let fields = match cors::decide(head, mode, relation) {
        Decision::Nothing => return,
        Decision::Preflight(preflight) => preflight.fields(),
        Decision::Share(sharing) => sharing.own_fields(),
    };
    let origin = head.first(FieldId::Origin).expect("somebody asks");
    let lines: Vec<&str> = fields.strip_suffix("\r\n").expect("whole lines").split("\r\n").collect();
    let of = |name: &str| lines.iter().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>();
    assert_eq!(of("Access-Control-Allow-Origin: "), [std::str::from_utf8(origin).expect("ASCII")]);
    assert!(lines.iter().all(|line| line.starts_with("Access-Control-") || line.starts_with("Vary: ")));
    assert!(lines.iter().all(|line| line.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~'))));
    let credentials = of("Access-Control-Allow-Credentials: ");
    let allowed = mode == Mode::Simple || !matches!(told, Some(Relation::Sibling));
    assert!(credentials.is_empty() || (credentials == ["true"] && allowed));
}

/// The warning leads back to this host whatever its link says, and its page shows nothing but what it shows to all.
fn it_goes_back_to_a_path(head: &RequestHead<'_>) {
    if let Some(Accepted { location, .. }) = accept(head, true) {
        assert!(location.bytes().all(|b| b.is_ascii_graphic()));
        // As browsers resolve it (URL standard): `\` is `/`, and two of them begin a host.
        let seen = location.replace('\\', "/");
        assert!(seen.starts_with('/') && !seen.starts_with("//"), "{location}");
    }
    let page = warning_page(head);
    let action = page.split("action=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form");
    let redirect = action.strip_prefix("/accept-daytona-preview-warning?redirect=").expect("its own form");
    assert!(redirect.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/%".contains(&b)));
    let plain = RequestHead::parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &Limits::default())
        .expect("good")
        .expect("whole");
    assert_eq!(page.matches('<').count(), warning_page(&plain).matches('<').count());
}

fn logins_begin_with_a_page(head: &RequestHead<'_>) {
    if asks(head) != Asks::Other {
        assert!(matches!(head.method, Method::Get | Method::Head) && !head.websocket);
    }
    let back = return_to(&String::from_utf8_lossy(head.target.of(head.bytes)));
    assert!(back.starts_with('/') && back.len() <= 2048);
    let cookies = head.fields.iter().filter(|f| f.id == FieldId::Cookie).map(|f| f.value.of(head.bytes));
    let kept = FlowCookies::read(cookies, "daytona-login-");
    for crumb in kept.expose().split(';').filter(|kept| !kept.is_empty()) {
        let (id, secret) =
            crumb.strip_prefix("daytona-login-").and_then(|rest| rest.split_once('=')).expect("a pair");
        assert!(
            (id.len(), secret.len()) == (16, 32)
                && [id, secret].concat().bytes().all(|b| b.is_ascii_hexdigit())
        );
    }
}
