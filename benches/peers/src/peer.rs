//! The proxies side by side: how each is started for the same job, and what it costs.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BACKEND: u16 = 9000;
pub const API: u16 = 9001;

/// A column of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub name: &'static str,
    pub program: Program,
    pub port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Sandgate,
    Nginx,
    Haproxy,
    Bare,
    /// The proxy sandgate replaces, v0.190 of Daytona's.
    Former,
}

pub const PEERS: [Peer; 7] = [
    Peer { name: "sandgate", program: Program::Sandgate, port: 9010 },
    Peer { name: "nginx", program: Program::Nginx, port: 9020 },
    Peer { name: "haproxy", program: Program::Haproxy, port: 9030 },
    Peer { name: "haproxy-splice", program: Program::Haproxy, port: 9031 },
    Peer { name: "haproxy-tcp", program: Program::Haproxy, port: 9032 },
    Peer { name: "bare", program: Program::Bare, port: 9040 },
    Peer { name: "v0.190", program: Program::Former, port: 9050 },
];

/// What is started that no package holds.
pub struct Binaries {
    pub sandgate: PathBuf,
    pub former: Option<PathBuf>,
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A process, ended when dropped.
pub struct Running {
    pub program: Option<Program>,
    child: Child,
}

impl Running {
    fn spawn(program: Option<Program>, command: &mut Command, ready: SocketAddr) -> io::Result<Self> {
        // The kernel takes a ring down after its process has ended, and the listener with it.
        stands(ready, false)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let running = Self { program, child };
        stands(ready, true).map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))?;
        Ok(running)
    }

    /// CPU time of all its processes, in microseconds: run time as the scheduler counts it, of every thread.
    pub fn cpu_us(&self) -> f64 {
        let mut ns = 0.0;
        for pid in family(self.child.id()) {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                ns += text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        ns / 1000.0
    }

    /// Resident memory of all its processes, in bytes.
    pub fn resident(&self) -> u64 {
        let of = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        family(self.child.id()).into_iter().map(of).sum()
    }
}

/// Waits until connections to `addr` are taken, or refused, several times on end.
fn stands(addr: SocketAddr, wanted: bool) -> io::Result<()> {
    const ON_END: u32 = 5;
    let (end, mut seen) = (Instant::now() + Duration::from_secs(10), 0);
    while seen < ON_END {
        seen = if TcpStream::connect(addr).is_ok() == wanted { seen + 1 } else { 0 };
        if Instant::now() > end {
            let word = if wanted { "nobody listens on" } else { "somebody else listens on" };
            return Err(io::Error::other(format!("{word} {addr}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in family(self.child.id()).into_iter().rev() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // Gone already is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// The process and its children (nginx's worker).
fn family(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// On this CPU, whatever the caller's own is.
fn on_cpu(cpu: usize, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpu.to_string()).arg(program.as_ref());
    command
}

pub fn backend(cpu: usize) -> io::Result<Running> {
    let mut command = on_cpu(cpu, std::env::current_exe()?);
    Running::spawn(None, command.arg("backend"), local(BACKEND))
}

impl Program {
    /// `directory` takes its configuration and what it writes.
    pub fn start(self, cpu: usize, directory: &Path, binaries: &Binaries) -> io::Result<Running> {
        let ready = local(PEERS.iter().find(|p| p.program == self).map_or(0, |p| p.port));
        let mut command = match self {
            Self::Sandgate => {
                let mut command = gate(cpu, &binaries.sandgate, ready, directory);
                command
                    .env("SANDGATE_LISTEN", "127.0.0.1")
                    .env("SANDGATE_SHARDS", "1")
                    .env("SANDGATE_VERDICT_TTL_SEC", "600")
                    .env("SANDGATE_PUBLIC_TTL_SEC", "120");
                command
            }
            Self::Former => {
                let binary =
                    binaries.former.as_ref().ok_or_else(|| io::Error::other("--former is missing"))?;
                let mut command = gate(cpu, binary, ready, directory);
                // It does not start without; nobody logs in.
                command
                    .env("OIDC_CLIENT_ID", "nobody")
                    .env("OIDC_AUDIENCE", "nobody")
                    .env("OIDC_DOMAIN", format!("http://{}/oidc", local(API)))
                    .env("GIN_MODE", "release");
                command
            }
            Self::Nginx => {
                let path = configuration(directory, "nginx.conf", include_str!("../conf/nginx.conf"), ready)?;
                let mut command = on_cpu(cpu, "nginx");
                command
                    .arg("-p")
                    .arg(directory)
                    .arg("-c")
                    .arg(path)
                    .arg("-e")
                    .arg(directory.join("nginx.err"));
                command
            }
            Self::Haproxy => {
                let policy = include_str!("../conf/haproxy-policy.cfg").trim_end();
                let text = include_str!("../conf/haproxy.cfg").replace("{policy}", policy);
                let path = configuration(directory, "haproxy.cfg", &text, ready)?;
                let mut command = on_cpu(cpu, "haproxy");
                command.arg("-db").arg("-f").arg(path);
                command
            }
            Self::Bare => {
                let mut command = on_cpu(cpu, std::env::current_exe()?);
                command.arg("bare");
                command
            }
        };
        command.stderr(fs::File::create(directory.join(format!("{self:?}.err")))?);
        Running::spawn(Some(self), &mut command, ready)
    }
}

/// sandgate and what it replaces, which read the same environment.
fn gate(cpu: usize, binary: &Path, listen: SocketAddr, directory: &Path) -> Command {
    let mut command = on_cpu(cpu, binary);
    command
        .env("DAYTONA_API_URL", format!("http://{}/api", local(API)))
        .env("PROXY_PORT", listen.port().to_string())
        .env("PROXY_PROTOCOL", "http")
        .env("PROXY_API_KEY", "a-key-of-this-measurement-and-nothing-else")
        .current_dir(directory);
    command
}

fn configuration(directory: &Path, name: &str, text: &str, listen: SocketAddr) -> io::Result<PathBuf> {
    let other = |offset: u16| local(listen.port() + offset).to_string();
    let text = text
        .replace("{dir}", &directory.display().to_string())
        .replace("{runner}", &local(BACKEND).to_string())
        .replace("{token}", crate::load::TOKEN)
        .replace("{listen}", &other(0))
        .replace("{listen_splice}", &other(1))
        .replace("{listen_tcp}", &other(2));
    let path = directory.join(name);
    fs::File::create(&path)?.write_all(text.as_bytes())?;
    Ok(path)
}
