//! A real redis-server as a process of its own, on loopback, with a directory of its own; killed when dropped.

use crate::free_port::free_port;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub struct RedisServer {
    child: Child,
    pub port: u16,
    dir: PathBuf,
}

/// How many ports are tried: nobody of these tests takes one that was found free, but somebody else may.
const TRIES: usize = 8;

impl RedisServer {
    /// With further options, as on its command line: `&["--requirepass", "x"]`.
    pub fn start(options: &[&str]) -> Self {
        for _ in 0..TRIES {
            let port = free_port();
            if let Some(server) = Self::try_start(port, options) {
                return server;
            }
        }
        panic!("redis-server does not start; as root: apt-get install -y redis-server");
    }

    /// A server at a port where one was before.
    pub fn start_at(port: u16, options: &[&str]) -> Self {
        for _ in 0..TRIES {
            if let Some(server) = Self::try_start(port, options) {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("redis-server does not come back at port {port}");
    }

    fn try_start(port: u16, options: &[&str]) -> Option<Self> {
        let unique = format!("sandgate-redis-{}-{port}-{:?}", std::process::id(), std::time::Instant::now());
        let dir = std::env::temp_dir().join(unique.replace([' ', '{', '}', ':'], ""));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let tls = options.contains(&"--tls-port");
        let port_option = if tls { "--tls-port" } else { "--port" };
        let mut command = Command::new("redis-server");
        if tls {
            command.args(["--port", "0"]);
        }
        let mut child = command
            .args([port_option, &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(&dir)
            .args(options.iter().filter(|option| **option != "--tls-port"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed; as root: apt-get install -y redis-server");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("Ready to accept connections") {
            line.clear();
            if lines.read_line(&mut line).unwrap_or(0) == 0 {
                let _ = child.wait();
                let _ = std::fs::remove_dir_all(&dir);
                return None;
            }
        }
        std::thread::spawn(move || {
            // Kept empty, so that the server never waits for its reader.
            let _ = std::io::copy(&mut lines, &mut std::io::sink());
        });
        Some(Self { child, port, dir })
    }

    /// Stops answering, as a machine that hangs; [`Self::thaw`] ends it.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }
}

/// What `redis-cli` prints for a command at this port, without the last newline. Blocks.
pub fn cli(port: u16, args: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(args)
        .output()
        .expect("redis-cli is installed with redis-server");
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Gone already is as good. A frozen process is killed, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
