//! The friendly sandboxes of the demo. Paths they do not know answer as in [`super::apps`].

use super::apps::{self, Request};
use super::live;
use super::peer::{After, Broken, head_bytes};
use super::runner::Outcome;
use super::spec::{App, PublicAnswer, SandboxSpec, SandboxState};
use std::time::Duration;

/// The token that opens the private sample. No secret: it opens a sample on loopback.
pub const PRIVATE_TOKEN: &str = "letmein";

/// A sample, and what there is to see in it.
pub struct Sample {
    pub sandbox: SandboxSpec,
    /// Path to begin with.
    pub path: &'static str,
    pub what: &'static str,
}

/// All samples, in the order they are shown.
pub fn all() -> Vec<Sample> {
    let app = |id, app| SandboxSpec::public(id).with_app(app);
    let sample = |sandbox, path, what| Sample { sandbox, path, what };
    vec![
        sample(app("web", App::Web), "/", "a page that updates itself over a WebSocket"),
        sample(app("echo", App::Paths), "/hello?who=you", "shows the request as the app got it"),
        sample(app("sse", App::Events), "/", "server-sent events, one a second"),
        sample(app("files", App::Files), "/", "downloads with ranges, an upload that is hashed"),
        sample(app("slow", App::Slow), "/", "takes three seconds to answer"),
        sample(app("crash", App::Crash), "/", "an app that closes without an answer"),
        sample(
            app("stopped", App::Paths).with_state(SandboxState::Stopped),
            "/",
            "a sandbox that is not running",
        ),
        sample(
            SandboxSpec { token: PRIVATE_TOKEN.into(), ..app("private", App::Paths) }
                .with_public(PublicAnswer::No),
            "/",
            "private: wants a login, an API key or a preview token",
        ),
    ]
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// The files of a sample's page.
fn file(app: App, path: &str) -> Option<(&'static str, &'static str)> {
    match (app, path) {
        (App::Web, "/") => Some((HTML, include_str!("page/index.html"))),
        (App::Web, "/app.js") => Some((JS, include_str!("page/app.js"))),
        (App::Web, "/gate.svg") => Some(("image/svg+xml", include_str!("page/gate.svg"))),
        (App::Files, "/") => Some((HTML, include_str!("page/files.html"))),
        (App::Files, "/files.js") => Some((JS, include_str!("page/files.js"))),
        (App::Web | App::Files, "/style.css") => Some((CSS, include_str!("page/style.css"))),
        _ => None,
    }
}

pub(super) async fn answer(app: App, mut request: Request<'_>) -> Result<Outcome, Broken> {
    if let Some((kind, text)) = file(app, request.path()) {
        request.read_body().await?;
        let fields = [("content-type", kind), ("cache-control", "no-cache")];
        return request.send_answer(200, &fields, text.as_bytes()).await;
    }
    match (app, request.path()) {
        (App::Events, "/") => events(request).await,
        (App::Slow, _) => {
            request.read_body().await?;
            tokio::time::sleep(Duration::from_millis(request.number_parameter("ms", 3000))).await;
            let text = "That took a while.\n";
            request.send_answer(200, &[("content-type", "text/plain")], text.as_bytes()).await
        }
        (App::Crash, _) => {
            request.read_body().await?;
            Ok(Outcome::Done(After::Close))
        }
        _ => apps::answer_by_path(request).await,
    }
}

/// One event a second until the client leaves, or `?n=` of them.
async fn events(mut request: Request<'_>) -> Result<Outcome, Broken> {
    request.read_body().await?;
    let fields = [
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache"),
        ("Transfer-Encoding", "chunked"),
    ];
    request.peer.send(&head_bytes(200, &fields)).await?;
    let count = request.number_parameter("n", u64::MAX);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for i in 0..count {
        ticks.tick().await;
        let event = format!("id: {i}\ndata: {{\"count\":{i},\"unix_ms\":{}}}\n\n", live::unix_ms());
        request.peer.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
    }
    request.peer.send(b"0\r\n\r\n").await?;
    Ok(Outcome::Done(request.after()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_name_no_other_site() {
        for (app, path) in [
            (App::Web, "/"),
            (App::Web, "/app.js"),
            (App::Web, "/style.css"),
            (App::Files, "/"),
            (App::Files, "/files.js"),
        ] {
            let (_, text) = file(app, path).expect("the sample has this file");
            assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
        }
    }
}
