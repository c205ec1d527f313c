//! Login for people with a browser: who is sent to the provider, and what becomes of those who come back.
//!
//! A stage beside the request's way, entered when no proof opened a preview. What is decided, sealed and checked is
//! asked of the control plane; here it is only told apart who asks, and what of the request goes into the question.
//! Knows no socket and no provider.

pub mod flow;
pub mod navigation;
pub mod page;
pub mod sealed;

use crate::config::CookieMode;
use crate::error::Cause;
use crate::forward;
use crate::grant::Asker;
use crate::head::{FieldId, RequestHead};
use crate::ids::{SandboxId, Token};
use crate::mailbox::{Answer, LoginFault, LoginQuestion, Question, Redirect};
use crate::request_id::RequestId;
use crate::route::Route;
use flow::FlowCookies;
use navigation::Asks;

/// Where a login comes to the sandbox's own host, in isolated cookie mode.
pub const HANDOFF_PATH: &str = "/.daytona/auth";

/// The session of one host, in isolated cookie mode. The prefix makes browsers refuse it from anybody but the host
/// itself, over https (RFC 6265bis 4.1.3).
pub const HOST_COOKIE: &str = "__Host-daytona-sandbox-auth";

/// What [`HOST_COOKIE`] says, signed: the sandbox, and the host it is good at.
pub fn host_cookie_value(sandbox: &SandboxId, host: &str) -> String {
    format!("{sandbox}@{}", host.to_ascii_lowercase())
}

/// Start of the names of the cookies that tie logins to browsers.
pub fn flow_cookie_prefix(mode: CookieMode) -> &'static str {
    match mode {
        CookieMode::Shared => "daytona-login-",
        CookieMode::Isolated => "__Host-daytona-login-",
    }
}

/// In place of the refusal of a preview, if a person asked for the page: the way to log in. Otherwise the refusal.
pub async fn instead(
    asker: &Asker<'_>,
    route: &Route,
    head: &RequestHead<'_>,
    request_id: RequestId,
    refusal: Cause,
) -> Result<Redirect, Cause> {
    let Route::Preview { label, .. } = route else { return Err(refusal) };
    let mends = matches!(refusal, Cause::AuthRequired | Cause::AuthInvalid);
    if !mends || navigation::asks(head) != Asks::Navigation {
        return Err(refusal);
    }
    let return_to = String::from_utf8_lossy(&forward::target_without_proofs(head)).into_owned();
    let question = LoginQuestion::Start {
        request_id,
        host: authority(head),
        sandbox: *label,
        return_to: return_to.into_boxed_str(),
    };
    match redirect(asker, question).await {
        // Where nobody can log in, the refusal stands.
        Err(Cause::Login(LoginFault::NotConfigured)) => Err(refusal),
        other => other,
    }
}

/// The browser is back from the provider.
pub async fn callback(
    asker: &Asker<'_>,
    head: &RequestHead<'_>,
    request_id: RequestId,
) -> Result<Redirect, Cause> {
    let question = LoginQuestion::Callback {
        request_id,
        host: authority(head),
        query: query(head)?,
        cookies: flow_cookies(asker, head),
        client_ip: asker.ip,
    };
    redirect(asker, question).await
}

/// The browser is back at the sandbox's own host.
pub async fn hand_off(
    asker: &Asker<'_>,
    head: &RequestHead<'_>,
    request_id: RequestId,
) -> Result<Redirect, Cause> {
    let question = LoginQuestion::Handoff {
        request_id,
        host: authority(head),
        query: query(head)?,
        cookies: flow_cookies(asker, head),
    };
    redirect(asker, question).await
}

/// On the client's account: each step costs the control plane, and most the provider. Only steps that get somewhere
/// are paid back; the first of a login, which anybody can ask for, is not.
async fn redirect(asker: &Asker<'_>, question: LoginQuestion) -> Result<Redirect, Cause> {
    let begins = matches!(question, LoginQuestion::Start { .. });
    let told = asker.ask(Question::Login(question)).await?;
    match told.reply {
        Ok(Answer::Redirect(redirect)) => {
            if !begins {
                asker.repay();
            }
            Ok(*redirect)
        }
        Ok(Answer::LoginRefused(fault)) => Err(Cause::Login(fault)),
        Ok(_) => Err(Cause::Internal),
        Err(trouble) => Err(Cause::Login(LoginFault::Api(trouble))),
    }
}

fn authority(head: &RequestHead<'_>) -> Box<str> {
    // Its grammar is checked: nothing is lossy.
    String::from_utf8_lossy(head.authority.of(head.bytes)).into()
}

/// A callback's query holds the code; it never stands anywhere but in the question.
fn query(head: &RequestHead<'_>) -> Result<Token, Cause> {
    let query = head.query().and_then(Token::parse);
    query.ok_or(Cause::Login(LoginFault::StateInvalid))
}

fn flow_cookies(asker: &Asker<'_>, head: &RequestHead<'_>) -> FlowCookies {
    let fields = head.fields.iter().filter(|field| field.id == FieldId::Cookie);
    let values = fields.map(|field| field.value.of(head.bytes));
    FlowCookies::read(values, flow_cookie_prefix(asker.shard.config.cookie_mode))
}
