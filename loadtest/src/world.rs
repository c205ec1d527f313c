//! The paths of the apps behind a runner, and the levers of the backend, as the load and `loadtest backend` agree on them.
//!
//! Another backend can serve the same paths; a scenario can name others. What the load looks for in the
//! answers is said here.

/// `GET /bytes/{n}`: an answer of exactly n bytes with a Content-Length. `?delay_ms=` holds it back.
pub const BYTES: &str = "/bytes/";
/// `POST /upload`: reads the body, answers 200 with JSON `{"bytes":n}`, the number of bytes that arrived; other members may
/// stand beside it, 512 bytes in all.
pub const UPLOAD: &str = "/upload";
/// `GET /events?count=&every_ms=`: server-sent events, each with an `id`, then the end.
pub const EVENTS: &str = "/events";
/// `GET /ws` with an upgrade: a WebSocket that echoes messages of either kind.
pub const WEBSOCKET: &str = "/ws";
/// `POST /exec?ms=`: answers 200 after so long, as a command that runs.
pub const EXEC: &str = "/exec";
/// `GET /page`: a small HTML page that ends with `</html>`. Its assets are under [`BYTES`].
pub const PAGE: &str = "/page";

/// Levers of the backend's API listener, for churn while a load runs. `POST` each; 204 when it has taken effect there.
///
/// `/_load/sandboxes/{id}/visibility?public=true|false`
pub const LEVER_SANDBOXES: &str = "/_load/sandboxes/";
/// `/_load/runner/restart?down_ms=`: all runner connections are cut and nobody listens for so long.
pub const LEVER_RESTART_RUNNER: &str = "/_load/runner/restart";
/// `/_load/redis/restart?down_ms=`: the same for the Redis of the proxy's settings; 501 where the backend has none.
pub const LEVER_RESTART_REDIS: &str = "/_load/redis/restart";
