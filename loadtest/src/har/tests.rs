use super::*;
use crate::aim::Visitor;
use crate::http1::Request;
use serde_json::{Value, json};

/// Chromium's network panel, saved with everything in it.
const CHROMIUM: &[u8] = include_bytes!("../../tests/recordings/chromium.har");

fn entry(method: &str, url: &str, at: &str, status: u16) -> Value {
    json!({
        "startedDateTime": at,
        "request": { "method": method, "url": url, "headers": [], "bodySize": 0 },
        "response": { "status": status, "content": { "mimeType": "text/html" } },
    })
}

fn get(url: &str) -> Value {
    entry("GET", url, "2026-05-01T12:00:00.000Z", 200)
}

fn with(mut entry: Value, path: &str, value: Value) -> Value {
    let (parent, name) = path.rsplit_once('/').expect("a pointer");
    entry.pointer_mut(parent).expect("there")[name] = value;
    entry
}

fn fields(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

fn file(entries: &[Value]) -> Vec<u8> {
    json!({ "log": { "version": "1.2", "entries": entries } }).to_string().into_bytes()
}

fn parse(entries: &[Value]) -> Result<Recording, String> {
    Recording::parse("x", &file(entries))
}

fn visitor() -> Visitor {
    Visitor {
        host: "3000-id.preview.test".into(),
        field: Some(("x-daytona-preview-token", "ours".into())),
        ..Visitor::default()
    }
}

/// What leaves, for each request.
fn sent(recording: &Recording, visitor: &Visitor) -> Vec<String> {
    let mut request = Request::default();
    let mut write = |recorded: &RecordedRequest| {
        recorded.write(&mut request, visitor, "http");
        String::from_utf8(request.bytes.clone()).expect("these are texts")
    };
    recording.requests.iter().map(&mut write).collect()
}

#[test]
fn what_chromium_saves_is_read() {
    let recording = Recording::parse("shop", CHROMIUM).expect("a recording");
    assert_eq!(
        recording.omissions().expect("some"),
        "6 of 17 entries are left out: 1 to other origins, 2 WebSockets or event streams, 1 not over HTTP, 1 answered by \
         the browser itself, 1 without an answer"
    );
    let sent = sent(&recording, &visitor());
    let lines: Vec<&str> = sent.iter().filter_map(|text| text.split(" HTTP/1.1\r\n").next()).collect();
    assert_eq!(
        lines,
        [
            "GET /page?assets=3",
            "GET /bytes/700?asset=0",
            "GET /bytes/1200?asset=1",
            "GET /bytes/2500?asset=2",
            "GET /favicon.ico",
            "POST /upload?hash=false",
            "POST /form",
            "HEAD /missing/status",
            "GET /status/404",
            "GET /bytes/2000",
            "GET /bytes/100?x=1",
        ]
    );
    assert_eq!(recording.requests[0].offset, Duration::ZERO);
    assert_eq!(recording.span(), Duration::from_millis(1153));
    assert!(sent[5].ends_with("\r\ncontent-length: 16\r\n\r\n{\"name\":\"näme\"}"), "{}", sent[5]);
    assert!(sent[6].ends_with("\r\n\r\na=b+c&d=%C3%A9"));
    assert!(sent[9].contains("\r\nRange: bytes=0-99\r\n"), "{}", sent[9]);
}

#[test]
fn nothing_of_the_recorded_visitor_is_kept_or_shown() {
    assert!(CHROMIUM.windows(15).any(|part| part == b"recorded-secret"), "it is in the file");
    let recording = Recording::parse("shop", CHROMIUM).expect("a recording");
    let wire = serde_json::to_string(&recording).expect("JSON");
    // Of the recorded host, which may hold a token, neither.
    for secret in ["recorded-secret", "288e0f5b"] {
        let shown = format!("{recording:?} {recording}");
        assert!(!wire.contains(secret) && !shown.contains(secret), "{secret}");
    }
    assert!(!format!("{recording:?}").contains("/page"));
    assert_eq!(
        serde_json::from_str::<Recording>(&wire).expect("its own"),
        recording,
        "it survives its way to an agent"
    );
}

/// Zones, titles that are no URLs, WebSockets under http, bodies with parameters, a mark of the byte order.
#[test]
fn what_firefox_saves_is_read() {
    let form = json!({
        "mimeType": "application/x-www-form-urlencoded",
        "params": [{ "name": "a", "value": "b c" }, { "name": "d", "value": "é&" }],
        "text": "",
    });
    let post = with(
        entry("POST", "https://a.test/form", "2026-05-01T14:00:00.250+02:00", 302),
        "/request/postData",
        form,
    );
    let later = entry("GET", "https://a.test/later", "2026-05-01T14:00:00.100+02:00", 200);
    let first = entry("GET", "https://a.test/#top", "2026-05-01T14:00:00.000+02:00", 304);
    let websocket = entry("GET", "https://a.test/live", "2026-05-01T14:00:00.300+02:00", 101);
    let blocked = entry("GET", "https://a.test/ad", "2026-05-01T14:00:00.300+02:00", 0);
    let log = json!({ "log": {
        "version": "1.2",
        "creator": { "name": "Firefox", "version": "140" },
        "pages": [{ "id": "page_1", "title": "A shop", "startedDateTime": "2026-05-01T14:00:00.000+02:00" }],
        "entries": [first, post, later, websocket, blocked],
    }});
    let text = [b"\xef\xbb\xbf".to_vec(), log.to_string().into_bytes()].concat();
    let recording = Recording::parse("x", &text).expect("a recording");
    let offsets: Vec<u128> = recording.requests.iter().map(|request| request.offset.as_millis()).collect();
    assert_eq!(offsets, [0, 100, 250], "in the order of time");
    assert_eq!(
        sent(&recording, &Visitor { host: "h".into(), ..Visitor::default() })[2],
        "POST /form HTTP/1.1\r\nhost: h\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 17\r\n\r\n\
         a=b+c&d=%C3%A9%26"
    );
    assert_eq!(
        recording.omissions().expect("some"),
        "2 of 5 entries are left out: 1 WebSockets or event streams, 1 without an answer"
    );
}

#[test]
fn the_visitor_s_credentials_host_and_origin_take_the_place_of_the_recorded_ones() {
    let recorded = fields(&[
        (":authority", "a.test"),
        ("Host", "a.test"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("TE", "trailers"),
        ("Content-Length", "3"),
        ("Cookie", "s=secret"),
        ("authorization", "Bearer secret"),
        ("X-Daytona-Preview-Token", "secret"),
        ("Accept", "text/html"),
        ("Origin", "https://a.test"),
        ("Referer", "https://a.test/p?DAYTONA_SANDBOX_AUTH_KEY=secret&y=1"),
        ("If-None-Match", "\"v1\""),
    ]);
    let entry =
        entry("POST", "https://a.test/p?DAYTONA_SANDBOX_AUTH_KEY=secret", "2026-05-01T12:00:00Z", 200);
    let entry = with(entry, "/request/headers", recorded);
    let entry =
        with(entry, "/request/postData", json!({ "mimeType": "", "text": "eHl6", "encoding": "base64" }));
    let recording = parse(&[entry]).expect("a recording");
    assert_eq!(
        sent(&recording, &visitor())[0],
        "POST /p HTTP/1.1\r\nhost: 3000-id.preview.test\r\nAccept: text/html\r\n\
         Origin: http://3000-id.preview.test\r\nReferer: http://3000-id.preview.test/p?y=1\r\nIf-None-Match: \"v1\"\r\n\
         x-daytona-preview-token: ours\r\ncontent-length: 3\r\n\r\nxyz"
    );
    let toolbox =
        Visitor { prefix: "/toolbox/id/proxy/3000".into(), query: "KEY=ours".into(), ..Visitor::default() };
    assert!(sent(&recording, &toolbox)[0].starts_with("POST /toolbox/id/proxy/3000/p?KEY=ours HTTP/1.1\r\n"));
}

/// Chromium writes bytes as characters up to U+00FF, and leaves files out of forms.
#[test]
fn a_body_is_sent_as_long_as_it_was_or_its_entry_left_out() {
    let body = |data: Value, content_length: Option<&str>, body_size: i64| {
        let entry = entry("POST", "https://a.test/", "2026-05-01T12:00:00Z", 200);
        let lengths: Vec<_> = content_length.map(|bytes| ("Content-Length", bytes)).into_iter().collect();
        let entry = with(with(entry, "/request/postData", data), "/request/headers", fields(&lengths));
        let recording = parse(&[with(entry, "/request/bodySize", json!(body_size))]);
        recording.map(|recording| {
            let mut request = Request::default();
            recording.requests[0].write(&mut request, &visitor(), "http");
            let head = request.bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head");
            request.bytes.split_off(head + 4)
        })
    };
    let text = |text: &str| json!({ "mimeType": "x/y", "text": text });
    let form = json!({ "mimeType": "x/y", "params": [{ "name": "a", "value": "b" }] });
    let base64 = json!({ "mimeType": "x/y", "text": "eHl6", "encoding": "base64" });
    for (data, content_length, body_size, sent) in [
        (text("é"), None, 0, Some("é".as_bytes())),
        (text("é"), None, -1, Some("é".as_bytes())),
        (text("é"), Some("2"), -1, Some("é".as_bytes())),
        (text("\u{89}PNG\u{0}ÿ"), Some("6"), -1, Some(b"\x89PNG\0\xff")),
        (text("\u{89}PNG"), None, 4, Some(b"\x89PNG")),
        // The field's is what was sent.
        (text("abc"), Some("3"), 7, Some(b"abc")),
        (text("abc"), Some("7"), 3, None),
        (text("abc"), None, 7, None),
        // The bytes are lost.
        (text("\u{fffd}\u{fffd}"), Some("2"), 2, None),
        (text(""), Some("5"), 5, None),
        (form.clone(), Some("3"), 3, Some(b"a=b")),
        (form, Some("4"), 4, None),
        (base64.clone(), Some("3"), 3, Some(b"xyz")),
        (base64, Some("4"), 4, None),
    ] {
        let found = body(data.clone(), content_length, body_size);
        match sent {
            Some(bytes) => assert_eq!(found.as_deref(), Ok(bytes), "{data} {content_length:?} {body_size}"),
            None => {
                let error = found.expect_err("it is not whole");
                assert!(error.contains("1 with a body that is not in the file"), "{data}: {error}");
            }
        }
    }
}

/// A signed link has its token in the host; a page has the address of another in a query.
#[test]
fn tokens_leave_wherever_a_request_s_head_has_them() {
    let sent_with = |name: &str, value: &str| {
        let entry = entry(
            "POST",
            "https://a.test/p?to=https%3A%2F%2Fb.test%2F%3FDAYTONA_SANDBOX_AUTH_KEY%3Dsecret",
            "2026-05-01T12:00:00Z",
            200,
        );
        let recording =
            parse(&[with(entry, "/request/headers", fields(&[(name, value)]))]).expect("a recording");
        let sent = sent(&recording, &Visitor { host: "h".into(), ..Visitor::default() });
        assert!(sent[0].starts_with("POST /p?to=https%3A%2F%2Fb.test%2F%3F HTTP/1.1\r\n"), "{}", sent[0]);
        assert!(!sent[0].contains("secret"), "{}", sent[0]);
        sent[0].lines().filter(|line| line.starts_with(name)).collect::<String>()
    };
    for (name, value, left) in [
        ("Origin", "https://3000-secret.test", ""),
        ("Referer", "https://3000-secret.test/x", ""),
        ("Referer", "https://a.test/?DAYTONA_SANDBOX_AUTH_KEY=secret&x", "Referer: http://h/?x"),
        ("Referer", "about:secret", ""),
        ("Origin", "null", "Origin: null"),
        ("X-Page", "https://a.test/?DAYTONA_SANDBOX_AUTH_KEY=secret", "X-Page: https://a.test/"),
        ("Next-Url", "%2Fx%3FDAYTONA_SANDBOX_AUTH_KEY%3Dsecret%26y", "Next-Url: %2Fx%3F%26y"),
    ] {
        assert_eq!(sent_with(name, value), left, "{name}: {value}");
    }
}

/// A cookie counts for a browser's own pages only.
#[test]
fn what_changes_something_names_its_page_once() {
    let cookie = Visitor { origin: Some("http://h".into()), host: "h".into(), ..Visitor::default() };
    let origins = |method: &str, recorded: &[(&str, &str)]| {
        let entry = entry(method, "http://a.test/", "2026-05-01T12:00:00Z", 200);
        let recording = parse(&[with(entry, "/request/headers", fields(recorded))]).expect("a recording");
        sent(&recording, &cookie)[0].to_lowercase().matches("origin: http://h\r\n").count()
    };
    assert_eq!(
        (origins("GET", &[]), origins("POST", &[]), origins("POST", &[("Origin", "http://a.test")])),
        (0, 1, 1)
    );
}

#[test]
fn entries_that_are_no_requests_of_the_page_are_counted_and_the_rest_is_replayed() {
    let good = get("https://a.test/");
    let posted = |data: Value| {
        with(entry("POST", "https://a.test/", "2026-05-01T12:00:00Z", 200), "/request/postData", data)
    };
    for (odd, word) in [
        (get("https://b.test/"), "to other origins"),
        (get("http://a.test/"), "to other origins"),
        (get("wss://a.test/"), "WebSockets"),
        (with(get("https://a.test/"), "/_webSocketMessages", json!([])), "WebSockets"),
        (
            with(get("https://a.test/"), "/response/content/mimeType", json!("text/event-stream;x")),
            "event streams",
        ),
        (get("data:text/plain,x"), "not over HTTP"),
        (get("blob:https://a.test/1"), "not over HTTP"),
        (get("chrome-extension://abc/x.js"), "not over HTTP"),
        (with(get("https://a.test/"), "/_fromCache", json!("memory")), "by the browser itself"),
        (
            with(get("https://a.test/"), "/response/_fetchedViaServiceWorker", json!(true)),
            "by the browser itself",
        ),
        (with(get("https://a.test/"), "/response/status", json!(0)), "without an answer"),
        (with(get("https://a.test/"), "/response/status", json!(-1)), "without an answer"),
        (with(get("https://a.test/"), "/request/bodySize", json!(7)), "a body that is not in the file"),
        (
            posted(json!({ "mimeType": "multipart/form-data; boundary=x", "params": [{ "name": "a" }] })),
            "a body that",
        ),
        (get("https:///"), "without a usable"),
        (with(get("https://a.test/"), "/request/method", json!("CONNECT")), "without a usable"),
        (with(get("https://a.test/"), "/request/method", json!("GE T")), "without a usable"),
        (with(get("https://a.test/"), "/startedDateTime", json!("today")), "without a usable"),
        (with(get("https://a.test/"), "/request/headers", fields(&[("x", "a\r\nb: c")])), "without a usable"),
        (with(get("https://a.test/"), "/request/headers", fields(&[("x y", "a")])), "without a usable"),
        (with(get("https://a.test/"), "/response/status", json!("200")), "without a usable"),
        (json!(7), "without a usable"),
    ] {
        let recording = parse(&[good.clone(), odd.clone()]).unwrap_or_else(|error| panic!("{odd}: {error}"));
        let said = recording.omissions().unwrap_or_default();
        assert!(
            recording.requests.len() == 1 && said.starts_with("1 of 2 entries") && said.contains(word),
            "{odd}: {said}"
        );
    }
    assert_eq!(parse(&[good]).expect("a recording").omissions(), None);
}

/// Exporters write what they do not know as nothing, each in its own way.
#[test]
fn nothing_in_the_place_of_something_is_nothing() {
    let post = entry("POST", "https://a.test/", "2026-05-01T12:00:00Z", 200);
    let with_data = |data: Value| with(post.clone(), "/request/postData", data);
    for odd in [
        with(get("https://a.test/"), "/_fromCache", json!(false)),
        with(get("https://a.test/"), "/_fromCache", Value::Null),
        with(get("https://a.test/"), "/response/_fetchedViaServiceWorker", Value::Null),
        with(get("https://a.test/"), "/response/content", Value::Null),
        with(get("https://a.test/"), "/response/content/mimeType", Value::Null),
        with(get("https://a.test/"), "/request/headers", Value::Null),
        with(get("https://a.test/"), "/request/headers", json!([{ "name": "x", "value": null }])),
        with(get("https://a.test/"), "/request/bodySize", Value::Null),
        with_data(Value::Null),
        with_data(json!({ "mimeType": "x/y", "text": "z", "params": null, "encoding": null })),
        with_data(json!({ "mimeType": null, "text": "z", "params": [] })),
        with_data(json!({ "mimeType": "x/y", "params": [{ "name": "a", "value": null }] })),
    ] {
        let recording = parse(std::slice::from_ref(&odd)).unwrap_or_else(|error| panic!("{odd}: {error}"));
        assert_eq!((recording.requests.len(), recording.omissions()), (1, None), "{odd}");
    }
}

#[test]
fn the_origin_is_the_first_page_s_where_the_file_says_it_and_else_the_first_entry_s() {
    let count = |title: &str| {
        let entries = [get("https://cdn.test/"), get("https://a.test/"), get("https://a.test/x")];
        let log = json!({ "log": { "pages": [{ "title": title }], "entries": entries } });
        Recording::parse("x", log.to_string().as_bytes()).expect("a recording").requests.len()
    };
    assert_eq!((count("https://a.test/"), count("A shop"), count("https://absent.test/")), (2, 1, 1));
}

/// As who types a name without https is sent on.
#[test]
fn redirects_to_another_origin_are_not_where_the_recording_is_from() {
    let redirect = |from: &str, status: u16, to: &str| {
        let entry = entry("GET", from, "2026-05-01T12:00:00Z", status);
        with(entry, "/response/redirectURL", json!(to))
    };
    let first_target = |title: &str, entries: &[Value]| {
        let log = json!({ "log": { "pages": [{ "title": title }], "entries": entries } });
        let recording = Recording::parse("x", log.to_string().as_bytes()).expect("a recording");
        let count = recording.requests.len();
        (sent(&recording, &visitor())[0].split(' ').nth(1).expect("a target").to_owned(), count)
    };
    let away = redirect("http://a.test/from", 301, "https://www.a.test/");
    let twice = redirect("https://www.a.test/on", 302, "https://shop.test/");
    let (page, asset) = (get("https://shop.test/page"), get("https://shop.test/asset"));
    let entries = [away.clone(), twice, page.clone(), asset.clone()];
    for title in ["A shop", "http://a.test/from", "https://shop.test/page"] {
        assert_eq!(first_target(title, &entries), ("/page".into(), 2), "{title}");
    }
    // Within the origin, and where nothing else is.
    let within = redirect("https://shop.test/from", 302, "/page");
    assert_eq!(first_target("", &[within, page.clone()]), ("/from".into(), 2));
    let within = redirect("https://shop.test/from", 302, "https://shop.test/page");
    assert_eq!(first_target("", &[within, page]), ("/from".into(), 2));
    assert_eq!(first_target("", std::slice::from_ref(&away)), ("/from".into(), 1));
    // What is no redirect says nothing with such a field.
    let not_modified = redirect("https://shop.test/from", 304, "https://other.test/");
    assert_eq!(first_target("", &[not_modified, away, asset]), ("/from".into(), 2));
}

#[test]
fn what_is_said_of_a_recording_counts_its_requests() {
    let later = entry("GET", "https://a.test/", "2026-05-01T12:00:00.250Z", 200);
    let told = |entries: &[Value]| parse(entries).expect("a recording").to_string();
    assert_eq!(told(&[get("https://a.test/")]), "har:x: 1 request");
    assert_eq!(told(&[get("https://a.test/"), get("https://a.test/")]), "har:x: 2 requests at once");
    assert_eq!(told(&[get("https://a.test/"), later]), "har:x: 2 requests in 250.0ms");
}

#[test]
fn what_is_no_recording_is_refused_with_the_reason_and_without_its_content() {
    let refused = |bytes: &[u8]| Recording::parse("x", bytes).expect_err("no recording");
    for (bytes, words) in [
        (&b""[..], "no JSON (line 1, column 0)"),
        (b"<html>secret", "no JSON (line 1, column 1)"),
        (b"{\"log\":{\"entries\":[{\"secret\":", "no JSON"),
        (b"[1,2]", "log.entries"),
        (b"{\"secret\":1}", "log.entries"),
        (b"{\"log\":{\"version\":\"1.2\"}}", "log.entries"),
        (b"{\"log\":\"secret\"}", "log.entries"),
        (b"{\"log\":{\"entries\":\"secret\"}}", "log.entries"),
        (b"{\"log\":{\"entries\":[]}}", "is empty"),
        (b"{\"log\":{\"entries\":[{\"secret\":1}]}}", "nothing to replay, 1 of 1 entries"),
    ] {
        let error = refused(bytes);
        assert!(error.contains(words) && !error.contains("secret"), "{error}");
    }
}

#[test]
fn what_is_too_much_is_refused_with_the_entry_and_the_limit() {
    let posted = |bytes: usize| {
        let entry = entry("POST", "https://a.test/", "2026-05-01T12:00:00Z", 200);
        with(entry, "/request/postData", json!({ "mimeType": "text/plain", "text": "s".repeat(bytes) }))
    };
    let good = get("https://a.test/");
    let error = parse(&[good.clone(), posted(BODY_BYTES_MAX + 1)]).expect_err("too large");
    assert!(
        error.starts_with("entry 2: ") && error.contains("4194305 bytes") && error.contains("4194304"),
        "{error}"
    );
    assert!(parse(&[posted(BODY_BYTES_MAX)]).is_ok());
    let error = parse(&[posted(BODY_BYTES_MAX), posted(BODY_BYTES_MAX)]).expect_err("too large together");
    assert!(error.contains("up to entry 2") && error.contains("8388608"), "{error}");
    let late = entry("GET", "https://a.test/", "2026-05-03T12:00:00Z", 200);
    let error = parse(&[good, late]).expect_err("too long");
    assert!(error.starts_with("entry 2: ") && error.contains("48 hours"), "{error}");
    let many = format!("{{\"log\":{{\"entries\":[{}0]}}}}", "0,".repeat(archive::ENTRIES_MAX));
    let error = Recording::parse("x", many.as_bytes()).expect_err("too many");
    assert!(error.contains("10001 entries, and 10000 is the most"), "{error}");
}

#[test]
fn an_answer_is_right_when_its_status_is_of_the_recorded_class_and_a_redirect_when_it_is_the_recorded_one() {
    let condition = &[("If-None-Match", "\"v\"")][..];
    for (recorded, fields_of, answer, right) in [
        (200, &[][..], 200, true),
        (200, &[], 204, true),
        (206, &[], 200, true),
        (200, &[], 404, false),
        (200, &[], 302, false),
        (302, &[], 302, true),
        (302, &[], 303, false),
        (302, &[], 307, false),
        (308, &[], 301, false),
        (302, &[], 200, false),
        (404, &[], 404, true),
        (404, &[], 200, false),
        (500, &[], 502, true),
        // What is asked for under a condition may have changed, or not.
        (304, condition, 200, true),
        (304, condition, 304, true),
        (200, condition, 304, true),
        (304, condition, 302, false),
        (302, condition, 304, false),
        (200, &[], 304, false),
    ] {
        let entry = entry("GET", "https://a.test/", "2026-05-01T12:00:00Z", recorded);
        let recording = parse(&[with(entry, "/request/headers", fields(fields_of))]).expect("a recording");
        assert_eq!(recording.requests[0].expects(answer), right, "{recorded} {fields_of:?} {answer}");
    }
}

#[test]
fn a_file_is_read_once_and_names_are_short_and_do_not_clash() {
    let folder = std::env::temp_dir().join(format!("loadtest-har-names-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("b")).expect("a folder");
    let text = file(&[get("https://a.test/")]);
    for name in ["my shop, v<2>.har", "plain.har", "b/plain.har"] {
        std::fs::write(folder.join(name), &text).expect("written");
    }
    let mut recordings = Recordings::relative_to(&folder);
    let mut name = |file: &str| recordings.class(file).map(|class| class.to_string());
    assert_eq!(name("plain.har"), Ok("har:plain".into()));
    assert_eq!(name("my shop, v<2>.har"), Ok("har:my-shop--v-2-".into()));
    assert_eq!(name("plain.har"), Ok("har:plain".into()));
    assert_eq!(name("./b/../plain.har"), Ok("har:plain".into()));
    let error = name("b/plain.har").expect_err("two of one name");
    assert!(error.starts_with("har:b/plain.har: ") && error.contains("rename"), "{error}");
    assert_eq!(recordings.into_plan().len(), 2);
    let threshold = "har:my-shop--v-2-/har_request.p99<50ms".parse::<crate::assertion::Threshold>();
    assert!(threshold.is_ok(), "{threshold:?}");
    std::fs::remove_dir_all(&folder).expect("ours");
}
