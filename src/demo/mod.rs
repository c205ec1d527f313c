//! The embedded world: an API, a runner and sample sandboxes, for `sandgate demo` and for the tests.
//!
//! It takes the place of everything around a gate, in one process and on loopback. The gate itself is not in here:
//! it is started by the caller with the environment that [`environment`] makes, as any operator would.

mod api;
pub mod apps;
pub mod download;
mod live;
mod peer;
mod provider;
pub mod record;
mod runner;
pub mod samples;
pub mod spec;
pub mod world;

use record::RecordLimits;
use spec::{Account, User, WorldSpec};
use std::io::{self, Write};
use std::process::ExitCode;
use world::World;

/// What `sandgate demo` can be told.
#[derive(Clone, Copy, Debug)]
pub struct DemoOptions {
    /// Where the gate listens.
    pub port: u16,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { port: 4000 }
    }
}

/// Names and values of environment variables.
pub type Environment = Vec<(&'static str, String)>;

/// The service key of the demo: opens nothing but a world on loopback.
const DEMO_KEY: &str = "demo-proxy-key";
/// Where the samples are. Two labels: browsers take no cookie for all of `localhost`, and a login leaves one.
const DOMAIN: &str = "proxy.localhost";
/// An API key that owns every sample.
const DEMO_BEARER: &str = "dtn_demo";

/// Starts the world, says where to look, and hands over to `serve`, which runs the gate with the given environment
/// until it is told to end (Ctrl-C). The world ends with it.
pub fn run(options: DemoOptions, serve: impl FnOnce(Environment) -> ExitCode) -> ExitCode {
    let world = match World::start(demo_spec()) {
        Ok(world) => world,
        Err(error) => {
            eprintln!("the demo's API and runner cannot listen on loopback: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = write_guide(&mut io::stdout().lock(), options.port) {
        eprintln!("the demo cannot say where it is: {error}");
        return ExitCode::FAILURE;
    }
    serve(environment(&world, options.port))
}

/// What a gate in front of `world` is told by its environment.
pub fn environment(world: &World, port: u16) -> Environment {
    vec![
        ("PROXY_PORT", port.to_string()),
        ("PROXY_PROTOCOL", "http".into()),
        // The key below is in the source: nobody else is to reach what it opens.
        ("SANDGATE_LISTEN", "127.0.0.1".into()),
        ("PROXY_API_KEY", world.proxy_key()),
        ("DAYTONA_API_URL", world.api_url()),
        ("SANDGATE_ALLOWED_DOMAINS", format!("{DOMAIN},localhost")),
        ("REDIS_HOST", String::new()),
    ]
}

fn demo_spec() -> WorldSpec {
    let samples: Vec<_> = samples::all().into_iter().map(|s| s.sandbox).collect();
    let ids: Vec<_> = samples.iter().map(|s| s.id.as_str()).collect();
    WorldSpec {
        proxy_key: DEMO_KEY.into(),
        users: vec![User::new(DEMO_BEARER, &ids)],
        accounts: vec![Account::new("owner", &ids), Account::new("stranger", &[])],
        record: RecordLimits::small(),
        sandboxes: samples.clone(),
        ..WorldSpec::default()
    }
}

fn write_guide(out: &mut impl Write, port: u16) -> io::Result<()> {
    writeln!(out, "\nA gate, an API, a runner and their sandboxes, all in this process. Open one:\n")?;
    for sample in samples::all() {
        let url = format!("http://3000-{}.{DOMAIN}:{port}{}", sample.sandbox.id, sample.path);
        writeln!(out, "  {url:<60} {}", sample.what)?;
    }
    writeln!(out, "\nThe private one asks who you are: \"owner\" may see it, \"stranger\" may not.")?;
    let token = samples::PRIVATE_TOKEN;
    writeln!(out, "\nOr ask with curl:\n")?;
    for line in [
        format!("curl http://3000-echo.{DOMAIN}:{port}/hello -d 'a body'"),
        format!("curl -N http://3000-sse.{DOMAIN}:{port}/"),
        format!("curl http://3000-files.{DOMAIN}:{port}/download/1073741824 -o /dev/null"),
        format!("curl -T some-file http://3000-files.{DOMAIN}:{port}/upload"),
        format!("curl -i http://3000-private.{DOMAIN}:{port}/"),
        format!("curl http://3000-private.{DOMAIN}:{port}/ -H 'X-Daytona-Preview-Token: {token}'"),
        format!("curl http://3000-private.{DOMAIN}:{port}/ -H 'Authorization: Bearer {DEMO_BEARER}'"),
        format!("curl http://localhost:{port}/toolbox/private/files -H 'X-Daytona-Preview-Token: {token}'"),
    ] {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "\nCtrl-C ends it.\n")?;
    out.flush()
}

#[cfg(test)]
mod tests;
