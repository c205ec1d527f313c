//! What the OpenID provider says of itself, and what a browser brings back from it.
//!
//! The first byte of the input says under which names the provider is known, behind it stands its discovery document; the
//! whole of it is a callback's query as well.

use super::message::{percent_decoded, split};
use sandgate::readers::{Callback, Document};
use serde_json::Value;
use url::Url;

/// From here, and to browsers.
const NAMES: [(&str, &str); 4] = [
    ("https://idp.test/", "https://idp.test/"),
    ("http://dex:5556/dex", "http://localhost:5556/dex"),
    ("http://idp:8080/a", "https://sso.test/realms/a/"),
    ("http://idp.test/in/", "http://idp.test/out/"),
];

/// Whose key is one holder's alone (RFC 7518 3.1, RFC 8037 3.1).
const ASYMMETRIC: [&str; 10] =
    ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"];

/// # Panics
/// Something that must hold does not.
pub fn holds(input: &[u8]) {
    a_callback_says_a_thing_once(input);
    let Some((&names, document)) = input.split_first() else { return };
    let (internal, public) = NAMES[usize::from(names & 3)];
    let [internal, public] = [internal, public].map(|name| Url::parse(name).expect("a URL"));
    let Ok(read) = Document::read(document, &internal, &public) else { return };
    // Numbers beyond a float may stand in what is left unread.
    let Ok(said) = serde_json::from_slice::<Value>(document) else { return };
    let text = |name: &str| said[name].as_str().expect("what must be there is text").to_owned();

    let issuer = text("issuer");
    assert_eq!(read.issuer.as_str(), issuer, "tokens are held against what it says");
    let is = |url: &Url| url.as_str().trim_end_matches('/') == issuer.trim_end_matches('/');
    assert!(is(&internal) || is(&public), "somebody else's document");

    for (name, used, from, to) in [
        ("authorization_endpoint", read.authorize.url(), &internal, &public),
        ("token_endpoint", read.token.url(), &public, &internal),
        ("jwks_uri", &read.jwks, &public, &internal),
    ] {
        let told = Url::parse(&text(name)).expect("a URL");
        assert!(["http", "https"].contains(&used.scheme()), "{name}: {used}");
        assert_eq!(used.query(), told.query(), "{name}");
        if told.origin() != from.origin() {
            assert_eq!(used, &told, "{name}: at another place than it said");
            continue;
        }
        assert_eq!(used.origin(), to.origin(), "{name}: out of reach");
        // The path is said, with the one name's beginning in place of the other's.
        let [from, to] = [from, to].map(|url| split(url.path().trim_end_matches('/').as_bytes(), b"/"));
        let told = split(told.path().as_bytes(), b"/");
        let wanted = match told.strip_prefix(&from[..]) {
            Some(rest) if !rest.is_empty() => [&to[..], rest].concat(),
            _ => told,
        };
        assert_eq!(split(used.path().as_bytes(), b"/"), wanted, "{name}");
    }

    let list = |name: &str| said[name].as_array().cloned();
    // Words nobody knows are passed over.
    let offered = list("id_token_signing_alg_values_supported").expect("a list");
    let taken: Vec<Value> =
        read.algorithms.iter().map(|word| serde_json::to_value(word).expect("a word")).collect();
    let proves = |word: &&Value| ASYMMETRIC.iter().any(|known| *word == known);
    assert_eq!(
        taken,
        offered.iter().filter(proves).cloned().collect::<Vec<_>>(),
        "signed by nobody, or by everybody"
    );
    let methods = list("token_endpoint_auth_methods_supported");
    let basic = methods.is_none_or(|methods| methods.contains(&"client_secret_basic".into()));
    assert_eq!(read.secret_in_body, !basic);
    let names_itself = &said["authorization_response_iss_parameter_supported"];
    assert_eq!(read.names_itself, *names_itself == true);
    assert!(names_itself.is_boolean() || names_itself.is_null(), "a word that is none taken for a no");
}

/// The first time; anybody can put more behind what the provider said.
fn a_callback_says_a_thing_once(query: &[u8]) {
    let Ok(query) = std::str::from_utf8(query) else { return };
    let plain = |text: &[u8]| {
        let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
        String::from_utf8_lossy(&percent_decoded(&spaced)).into_owned()
    };
    let pairs: Vec<(String, String)> = split(query.as_bytes(), b"&")
        .into_iter()
        .map(|pair| {
            let end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            (plain(&pair[..end]), plain(pair.get(end + 1..).unwrap_or_default()))
        })
        .collect();
    let first = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let said = Callback::read(query);
    let said = [said.code, said.state, said.error, said.issuer];
    assert_eq!(said, ["code", "state", "error", "iss"].map(first));
}
