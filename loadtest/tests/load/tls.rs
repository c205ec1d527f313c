//! TLS and HTTP/2 from the client's side, against nginx, which speaks both for certain.

use super::peer::{plan, run};
use crate::free_port::free_port;
use loadtest::plan::{Class, Load, Plan};
use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, KeyPair, generate_simple_self_signed};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

struct Nginx {
    process: Child,
    folder: PathBuf,
    tls: u16,
    clear: u16,
}

impl Nginx {
    fn start(name: &str) -> Self {
        Self::with(name, 100_000, IsCa::NoCa)
    }

    /// `requests`: so many a connection. `issues`: whether its certificate is said to sign others.
    fn with(name: &str, requests: u32, issues: IsCa) -> Self {
        let folder = std::env::temp_dir().join(format!("loadtest-nginx-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let names = ["localhost".into(), "127.0.0.1".into()];
        let mut certificate = CertificateParams::new(names).expect("names");
        certificate.is_ca = issues;
        let signing_key = KeyPair::generate().expect("a key");
        let cert = certificate.self_signed(&signing_key).expect("a certificate");
        fs::write(folder.join("cert.pem"), cert.pem()).expect("a file");
        fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("a file");
        fs::write(folder.join("big"), vec![b'x'; 200_000]).expect("a file");
        let (tls, clear) = (free_port(), free_port());
        let path = folder.display();
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
             log_format protocol '$server_protocol $request_method $status $request_length';\n\
             access_log {path}/access.log protocol;\n\
             client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;\n\
             uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi; client_max_body_size 10m;\n\
             keepalive_requests {requests};\n\
             ssl_certificate {path}/cert.pem; ssl_certificate_key {path}/key.pem;\n\
             server {{ listen 127.0.0.1:{tls} ssl http2; listen 127.0.0.1:{clear} http2;\n\
             location / {{ return 200 'hello'; }}\n\
             location /upload {{ return 200 'taken'; }}\n\
             location /big {{ root {path}; }}\n\
             }} }}\n"
        );
        fs::write(folder.join("nginx.conf"), config).expect("a file");
        let program = std::env::var("LOADTEST_TEST_NGINX").unwrap_or_else(|_| "nginx".into());
        let process = Command::new(&program)
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
        let nginx = Self { process, folder, tls, clear };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", clear)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", nginx.log("error.log"));
            thread::sleep(Duration::from_millis(10));
        }
        nginx
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    fn plan(&self, scheme: &str, class: &str) -> Plan {
        let port = if scheme == "https" { self.tls } else { self.clear };
        let mut plan = plan(&format!("{scheme}://localhost:{port}"), Load::Hold { rate: 100.0 }, 500);
        plan.target.ca = (scheme == "https").then(|| self.folder.join("cert.pem"));
        plan.phases[0].mix = vec![(class.parse::<Class>().expect("a class"), 1.0)];
        plan.client.connections = 2;
        plan
    }

    /// Ends nginx, so that its log is whole, and gives out the log's lines.
    fn requests(mut self) -> Vec<String> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).expect("it lives");
        self.process.wait().expect("it ends");
        self.log("access.log").lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.folder as &Path));
    }
}

#[test]
fn http_1_1_over_tls() {
    let nginx = Nginx::start("h1-tls");
    let total = run(nginx.plan("https", "path:/hello")).phases[0].total();
    assert_eq!((total.ok, total.failed, total.bytes_down), (50, 0, 250), "{:?}", total.errors);
    let lines = nginx.requests();
    assert!(lines.len() == 50 && lines.iter().all(|line| line.starts_with("HTTP/1.1 GET 200")), "{lines:?}");
}

#[test]
fn a_certificate_of_its_own_is_not_trusted_unless_that_is_said() {
    let nginx = Nginx::start("trust");
    let mut plan = nginx.plan("https", "path:/hello");
    plan.target.ca = None;
    let total = run(plan.clone()).phases[0].total();
    assert_eq!(
        (total.ok, total.errors[0].code.as_str()),
        (0, "tls: the certificate's issuer is not trusted")
    );
    plan.target.insecure = true;
    assert_eq!(run(plan).phases[0].total().ok, 50);
}

#[test]
fn failures_of_tls_and_http_2_say_what_is_wrong() {
    let nginx = Nginx::start("reasons");
    let code = |change: &dyn Fn(&mut Plan)| {
        let mut plan = nginx.plan("https", "path:/hello");
        change(&mut plan);
        let total = run(plan).phases[0].total();
        assert_eq!((total.ok, total.errors.len()), (0, 1), "{:?}", total.errors);
        total.errors[0].code.clone()
    };
    let other = nginx.folder.join("other.pem");
    let CertifiedKey { cert, .. } = generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    fs::write(&other, cert.pem()).expect("a file");
    // Certificates of tests all have one issuer by name.
    let wrong_ca = code(&|plan| plan.target.ca = Some(other.clone()));
    assert_eq!(wrong_ca, "tls: the certificate's signature is not the trusted issuer's");
    let plain = format!("https://127.0.0.1:{}", nginx.clear);
    assert_eq!(code(&|plan| plan.target.url = plain.clone()), "tls: what came is no TLS");
    let server = super::peer::Server::start(|_| super::peer::ok());
    let clear = code(&|plan| {
        plan.target.url = server.url();
        plan.target.ca = None;
        plan.target.http2 = true;
    });
    assert_eq!(clear, "http/2: what came is no HTTP/2: the server may speak HTTP/1.1 only");
}

/// As `openssl req -x509` makes them.
#[test]
fn a_certificate_that_signs_others_is_named_as_that_and_taken_only_unseen() {
    let nginx = Nginx::with("issuer", 100_000, IsCa::Ca(BasicConstraints::Unconstrained));
    let mut plan = nginx.plan("https", "path:/hello");
    let total = run(plan.clone()).phases[0].total();
    let code = "tls: the certificate is an issuer's, not a server's (only --insecure takes it)";
    assert_eq!((total.ok, total.errors[0].code.as_str()), (0, code));
    (plan.target.ca, plan.target.insecure) = (None, true);
    assert_eq!(run(plan).phases[0].total().ok, 50);
}

#[test]
fn http_2_over_tls_and_in_the_clear() {
    let nginx = Nginx::start("h2");
    for scheme in ["https", "http"] {
        let mut plan = nginx.plan(scheme, "path:/big");
        plan.target.http2 = true;
        let result = run(plan);
        let total = result.phases[0].total();
        assert_eq!(
            (total.ok, total.failed),
            (50, 0),
            "{scheme}: {:?} {}",
            total.errors,
            nginx.log("error.log")
        );
        assert_eq!(total.bytes_down, 50 * 200_000);
        assert!(result.config.protocol == "h2");
        let mut plan = nginx.plan(scheme, "upload:100k");
        plan.target.http2 = true;
        let total = run(plan).phases[0].total();
        assert_eq!((total.ok, total.failed), (50, 0), "{scheme}: {:?}", total.errors);
    }
    let lines = nginx.requests();
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((count("HTTP/2.0 GET 200"), count("HTTP/2.0 POST 200")), (100, 100), "{lines:?}");
}

/// A server may say at any time that a connection takes no more requests (RFC 9113 6.8); nginx does after so many.
#[test]
fn http_2_connections_that_go_away_are_replaced_and_nothing_is_lost() {
    let nginx = Nginx::with("goaway", 40, IsCa::NoCa);
    for load in [Load::Closed, Load::Hold { rate: 400.0 }] {
        let mut plan = nginx.plan("http", "path:/hello");
        plan.target.http2 = true;
        (plan.phases[0].load, plan.client.streams) = (load, 4);
        let result = run(plan);
        let total = result.phases[0].total();
        // Whoever waited 100 ms after each connection would come to a thousand in the closed loop, and comes to 13,000 here.
        let least = if load == Load::Closed { 2000 } else { 190 };
        assert!(
            total.ok >= least && total.failed + total.unfinished == 0,
            "{load:?}: {} {:?}",
            total.ok,
            total.errors
        );
        assert!(result.phases[0].timeline.points.iter().all(|point| point.connections <= 4), "{load:?}");
    }
    let served = nginx.requests().iter().filter(|line| line.starts_with("HTTP/2.0 GET 200")).count();
    assert!(served >= 300, "{served}");
}
