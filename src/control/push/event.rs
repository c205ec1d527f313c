//! What the API publishes of a sandbox, as far as it matters here.

use crate::control::object::Object;
use crate::counters::Revoked;
use crate::ids::{SandboxId, Token};
use crate::mailbox::{Said, TokenHash};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// What the API publishes: the whole sandbox as it is now, and for a change of state the new one. Everything else in
/// it is left unread. What is not of the kind it should be says nothing; only without an id there are no news.
#[derive(Deserialize)]
struct SandboxEvent<'a> {
    #[serde(borrow)]
    sandbox: Object<EventSandbox<'a>>,
    #[serde(rename = "newState", borrow, default)]
    new_state: Maybe<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct EventSandbox<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(default)]
    public: Maybe<bool>,
    #[serde(borrow, default)]
    state: Maybe<Cow<'a, str>>,
    #[serde(rename = "authToken", borrow, default)]
    auth_token: Maybe<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Maybe<T> {
    Is(T),
    Else(IgnoredAny),
    #[default]
    #[serde(skip)]
    Missing,
}

impl<T> Maybe<T> {
    fn is(self) -> Option<T> {
        if let Self::Is(value) = self { Some(value) } else { None }
    }
}

/// The state as one in which nothing runs that could answer.
fn ended(state: &str) -> Option<Revoked> {
    match state {
        "stopped" => Some(Revoked::Stopped),
        "archived" => Some(Revoked::Archived),
        "destroyed" => Some(Revoked::Destroyed),
        _ => None,
    }
}

/// Of which sandbox, and what is said of it. `None`: nobody can tell of which.
pub fn read(payload: &[u8]) -> Option<(SandboxId, Said)> {
    let Object(SandboxEvent { sandbox: Object(sandbox), new_state }) =
        serde_json::from_slice(payload).ok()?;
    let id = SandboxId::parse(sandbox.id.as_bytes())?;
    let token = sandbox.auth_token.is().filter(|token| Token::is_valid(token.as_bytes()));
    let said = Said {
        public: sandbox.public.is(),
        token: token.map(|token| TokenHash::of(&token)),
        ended: new_state.is().or(sandbox.state.is()).and_then(|state| ended(&state)),
    };
    Some((id, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_is_of_the_right_kind_and_nothing_else() {
        let said = |payload: &str| read(payload.as_bytes()).map(|(_, said)| said);
        let token = Some(TokenHash::of("t"));
        let nothing = Said::default();
        for (payload, expected) in [
            (r#"{"sandbox":{"id":"a"}}"#, nothing),
            (r#"{"sandbox":{"id":"a","public":false}}"#, Said { public: Some(false), ..nothing }),
            (
                r#"{"sandbox":{"id":"a","public":true,"authToken":"t"}}"#,
                Said { public: Some(true), token, ..nothing },
            ),
            (r#"{"sandbox":{"public":"no","authToken":["t"],"id":"a"},"newState":7}"#, nothing),
            (r#"{"sandbox":{"id":"a","public":null,"authToken":"","state":{}}}"#, nothing),
            (r#"{"sandbox":{"id":"a","authToken":"t\n","more":{"public":false}}}"#, nothing),
            (
                r#"{"sandbox":{"id":"a","state":"stopped"},"newDesiredState":"x"}"#,
                Said { ended: Some(Revoked::Stopped), ..nothing },
            ),
            // The state at the time of the change, not at the time of the telling.
            (r#"{"newState":"starting","sandbox":{"state":"stopped","id":"a"}}"#, nothing),
            (
                r#"{"newState":"destroyed","sandbox":{"state":"started","id":"\u0061"}}"#,
                Said { ended: Some(Revoked::Destroyed), ..nothing },
            ),
        ] {
            assert_eq!(said(payload), Some(expected), "{payload}");
        }
        for payload in [
            "",
            "7",
            "{}",
            r#"{"sandbox":{"id":7}}"#,
            r#"{"sandbox":{"id":"a/b"}}"#,
            // What stands in an array has no name.
            r#"{"sandbox":[]}"#,
            r#"{"sandbox":["a",false]}"#,
            r#"[{"id":"a","public":false}]"#,
        ] {
            assert_eq!(said(payload), None, "{payload}");
        }
    }
}
