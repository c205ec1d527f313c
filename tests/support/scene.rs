//! A gate with a real OpenID provider in front of the embedded API and runner.

#[path = "oidc_provider.rs"]
pub mod oidc_provider;

use crate::free_port::free_port;
use oidc_provider::OidcProvider;
use sandgate::demo::spec::{Account, SandboxSpec, WorldSpec};
use sandgate::demo::world::World;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
/// Opens the private sandboxes.
pub const TOKEN: &str = "canary-preview-token";

/// A gate with everything around it.
pub struct Scene {
    child: Child,
    pub port: u16,
    scheme: &'static str,
    pub provider: OidcProvider,
    world: World,
    /// What the gate says on standard output and standard error.
    said: PathBuf,
}

impl Scene {
    /// As Dex stands beside Daytona: the gate reaches the provider by another name than browsers do.
    pub fn start() -> Self {
        Self::with(None, &[])
    }

    /// Settings stand after those of the scene, so they can replace them.
    pub fn with(client_secret: Option<&str>, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let https = settings.contains(&("PROXY_PROTOCOL", "https"));
        let scheme = if https { "https" } else { "http" };
        let callback = format!("{scheme}://proxy.localhost:{port}/callback");
        let provider = OidcProvider::start(&[callback], client_secret);
        let private = |id| SandboxSpec { token: TOKEN.into(), ..SandboxSpec::private(id, TOKEN) };
        let world = World::start(WorldSpec {
            sandboxes: vec![private("priv"), private("other"), SandboxSpec::public("pub")],
            accounts: vec![Account::new("alice", &["priv", "other"]), Account::new("mallory", &[])],
            userinfo: Some(format!("{}/me", provider.internal())),
            ..WorldSpec::default()
        })
        .expect("loopback");
        let said = std::env::temp_dir().join(format!("sandgate-login-{}-{port}", std::process::id()));
        let out = std::fs::File::create(&said).expect("a temporary file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandgate"));
        command.env_clear().stdout(out.try_clone().expect("a descriptor")).stderr(out);
        command.envs(sandgate::demo::environment(&world, port)).env("SANDGATE_SHARDS", "2");
        command.env("OIDC_DOMAIN", provider.internal()).env("OIDC_PUBLIC_DOMAIN", provider.public());
        command.env("OIDC_CLIENT_ID", "daytona").env("OIDC_AUDIENCE", "daytona");
        command.envs(client_secret.map(|secret| ("OIDC_CLIENT_SECRET", secret)));
        command.envs(settings.iter().copied());
        if let Ok(driver) = std::env::var("SANDGATE_TEST_DRIVER") {
            command.env("SANDGATE_DRIVER", driver);
        }
        command.stdin(Stdio::null());
        let child = command.spawn().expect("the binary starts");
        let mut scene = Self { child, port, scheme, provider, world, said };
        let begun = Instant::now();
        while TcpStream::connect(scene.address()).is_err() {
            let ended = scene.child.try_wait().expect("a child of ours");
            assert!(
                ended.is_none() && begun.elapsed() < DEADLINE,
                "the gate does not listen: {}",
                scene.said()
            );
            std::thread::yield_now();
        }
        scene
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self, sandbox: &str, path: &str) -> String {
        format!("{}://3000-{sandbox}.proxy.localhost:{}{path}", self.scheme, self.port)
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Cookies an app was sent, in all requests so far.
    pub fn cookies_at_apps(&self) -> Vec<String> {
        let values = |request: &sandgate::demo::record::RunnerRequest| {
            request.values("cookie").into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        self.world.log(|record| record.runner().flat_map(values).collect())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.said);
    }
}
