//! A real OpenID provider (npm `oidc-provider`) as a process of its own, on loopback; killed when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub struct OidcProvider {
    child: Child,
    pub addr: SocketAddr,
}

impl OidcProvider {
    /// Its issuer, the name browsers know it by, is `http://localhost:{port}`; it can be reached by 127.0.0.1 as well.
    pub fn start(redirect_uris: &[String], client_secret: Option<&str>) -> Self {
        let dir = std::env::var_os("SANDGATE_TEST_OIDC_DIR").map(PathBuf::from).unwrap_or_else(|| {
            let home = std::env::var_os("HOME").map(PathBuf::from).expect("a home directory");
            home.join(".cache/sandgate-tests/oidc-provider")
        });
        assert!(
            dir.join("node_modules/oidc-provider").is_dir(),
            "the tests' OpenID provider is not installed in {}: copy package.json and package-lock.json of \
             tests/oidc there and run npm ci, or run tests/run, which does and sets SANDGATE_TEST_OIDC_DIR",
            dir.display()
        );
        let settings = serde_json::json!({
            "issuer": "http://localhost:{port}",
            "redirectUris": redirect_uris,
            "clientId": "daytona",
            "clientSecret": client_secret,
        });
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc/provider.mjs");
        let mut child = Command::new("node")
            .args([script, &settings.to_string()])
            .env("SANDGATE_TEST_OIDC_DIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(
                "node is installed: version 20 or later from https://nodejs.org or the system's packages",
            );
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let port = lines.find_map(|line| line.ok()?.strip_prefix("listening on ")?.parse().ok());
        let port: u16 =
            port.expect("the provider starts; its errors show with: node tests/oidc/provider.mjs");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// As browsers know it.
    pub fn public(&self) -> String {
        format!("http://localhost:{}", self.port())
    }

    /// As the gate reaches it.
    pub fn internal(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// From now on other keys sign.
    pub fn rotate(&self) {
        self.tell("rotate");
    }

    /// From now on ID tokens are wrong: `nonce`, `issuer`, `audience`, `expired`; `none` ends it.
    pub fn tamper(&self, how: &str) {
        self.tell(&format!("tamper/{how}"));
    }

    /// Paths it was asked for.
    pub fn asked(&self) -> Vec<String> {
        let said: serde_json::Value = serde_json::from_str(&self.tell("requests")).expect("JSON");
        let paths = said.as_array().expect("a list").iter().map(|request| request["path"].as_str());
        paths.map(|path| path.unwrap_or_default().to_owned()).collect()
    }

    fn tell(&self, what: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).expect("the provider listens");
        write!(
            stream,
            "POST /__test/{what} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("a whole answer")
    }
}

impl Drop for OidcProvider {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
