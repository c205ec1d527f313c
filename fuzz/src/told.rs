//! What the API and Redis tell: words, objects, events, keys and their values, a runner's URL. They are not strangers, but
//! what they say lets somebody in, goes into paths and heads, and into errors that are logged.
//!
//! The input is the whole text.

use super::message::{Message, percent_decoded};
use super::runner::written;
use sandgate::control::redis::Stored;
use sandgate::forward::RunnerPath;
use sandgate::head::RequestHead;
use sandgate::ids::{Port, SandboxId};
use sandgate::limits::Limits;
use sandgate::readers::{
    RunnerUrl, build, flag, link_key, link_of_key, login_settings, path_segment, place, retry_after, runner,
    sandbox_event, yes_or_no,
};
use sandgate::route::BuildLogsOf;
use serde_json::Value;

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    let sandbox = SandboxId::parse(b"sb1").expect("an id");
    let of = [BuildLogsOf::Sandbox(sandbox), BuildLogsOf::Snapshot("snap".into())];
    let mut errors = Vec::new();
    match runner(input) {
        Ok(_) => assert!(input.trim_ascii().starts_with(b"{") && input.trim_ascii().ends_with(b"}")),
        Err(error) => errors.push(error),
    }
    for of in &of {
        match build(of, input) {
            Ok(Some(build)) => {
                assert!(
                    build.runner_id.len() == 36
                        && build.runner_id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
                );
                assert!(!build.snapshot_ref.is_empty() && build.snapshot_ref.len() <= 1024);
                if let Ok(told) = serde_json::from_slice::<Value>(input) {
                    let places = [&told["buildInfo"]["snapshotRef"], &told["ref"]];
                    assert!(places.contains(&&Value::from(build.snapshot_ref)), "under no name");
                }
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    let whole = serde_json::from_slice::<Value>(input).ok();
    match login_settings(input) {
        Ok(said) => {
            if let Some(told) = &whole {
                let fields = [said.issuer, said.client_id, said.audience];
                let told = ["issuer", "clientId", "audience"].map(|name| told["oidc"][name].as_str());
                assert_eq!(fields.each_ref().map(Option::as_deref), told, "under no name");
            }
        }
        Err(error) => errors.push(error),
    }
    errors.iter().for_each(|error| says_where_and_not_what(error));
    lets_in_by_one_word(input, whole.as_ref());
    if let Some(seconds) = retry_after(input) {
        assert!(input.iter().all(u8::is_ascii_digit));
        assert_eq!(String::from_utf8_lossy(input).trim_start_matches('0').parse().unwrap_or(0), seconds);
    }

    if let Some((id, said)) = sandbox_event(input) {
        // Numbers beyond a float and more nesting than this reader takes may stand in what is left unread.
        if let Ok(event) = serde_json::from_slice::<Value>(input) {
            assert_eq!(event["sandbox"]["id"], id.as_str());
            // Nothing is made up, and what is no boolean is none.
            assert_eq!(said.public, event["sandbox"]["public"].as_bool());
            assert!(said.token.is_none() || event["sandbox"]["authToken"].is_string());
        }
    }
    if let Some((token, port)) = link_of_key(input) {
        assert_eq!(link_key(&token, port).as_bytes(), input, "two names of one link");
    }
    if let Ok(url) = std::str::from_utf8(input) {
        a_runners_url_stays_in_its_place(url);
        a_snapshots_name_is_one_segment(url);
    }
}

/// The API's `true`, and Redis's `{"value":true}`; a page, a text or a list that holds the word is none.
fn lets_in_by_one_word(input: &[u8], whole: Option<&Value>) {
    if let Ok(yes) = yes_or_no(input) {
        assert_eq!(input.trim_ascii(), yes.to_string().as_bytes());
    }
    let stored = Stored { value: input.to_vec(), expires_in: None };
    // Of a name that comes twice this reader keeps the last, and the gate none.
    let value = whole.filter(|whole| whole.is_object()).map(|whole| &whole["value"]);
    let read = flag(&stored);
    assert!(read.is_none() || whole.is_none() || read == value.and_then(Value::as_bool), "{read:?}");
    if let (Some(place), Some(_)) = (place(&stored), whole) {
        let value = value.expect("an object");
        assert!(value.is_object(), "in a list nothing has a name");
        assert_eq!(
            (value["apiUrl"].as_str(), value["apiKey"].as_str()),
            (Some(&*place.api_url), Some(&*place.api_key))
        );
    }
}

/// Of the API's paths: it ends none, begins no query and leads nowhere else, however it is spelled.
fn a_snapshots_name_is_one_segment(name: &str) {
    let Some(segment) = path_segment(name) else { return assert!(name.trim_matches('.').is_empty()) };
    assert_eq!(percent_decoded(segment.as_bytes()), name.as_bytes());
    let path = format!("/api/snapshots/{segment}");
    let url = url::Url::parse(&format!("http://api.test{path}")).expect("a URL");
    assert_eq!((url.path(), url.query(), url.fragment()), (&*path, None, None));
}

/// Of its own words and numbers alone.
fn says_where_and_not_what(error: &str) {
    const KNOWN: &[&str] = &[
        "a 200 whose body is not a JSON object; does DAYTONA_API_URL end with /api?",
        "a field of an unexpected type at line # column #",
        "broken JSON at line # column #",
        "a runner id that is no UUID",
        "a snapshot reference of more than # bytes",
    ];
    let numbers = |text: &str| {
        let digits = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit()) && w != "200";
        text.split(' ').map(|word| if digits(word) { "#" } else { word }).collect::<Vec<_>>().join(" ")
    };
    assert!(KNOWN.contains(&numbers(error).as_str()), "{error}");
}

/// Host and path of a request made with it are exactly its own.
fn a_runners_url_stays_in_its_place(url: &str) {
    let Ok(parsed) = RunnerUrl::parse(url) else { return };
    let (authority, base_path) = (parsed.authority(), &parsed.base_path);
    assert!(url.to_ascii_lowercase().starts_with("http://"));
    assert!(
        base_path.is_empty()
            || (base_path.starts_with('/') && !base_path.ends_with('/') && url.contains(base_path.as_str()))
    );
    let sandbox = SandboxId::parse(b"sb1").expect("an id");
    let path = RunnerPath::Preview { sandbox, port: Port::parse(b"3000").expect("a port") };
    let head = b"GET /x HTTP/1.1\r\nHost: 3000-sb1.preview.test\r\n\r\n";
    let head = RequestHead::parse(head, &Limits::default()).expect("good").expect("whole");
    let out = written(&head, &authority, base_path, &path);
    let again = RequestHead::parse(&out, &Limits::default()).expect("good").expect("whole");
    assert_eq!(again.target.of(&out), format!("{base_path}/sandboxes/sb1/toolbox/proxy/3000/x").as_bytes());
    assert_eq!(Message::read(&out).all("host"), [authority.as_bytes()]);
}
