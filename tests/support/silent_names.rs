//! A name server that says nothing: whoever asks waits for as long as the C library is told to.

use std::net::UdpSocket;
use std::path::PathBuf;

pub struct SilentNames {
    socket: UdpSocket,
    settings: PathBuf,
}

impl SilentNames {
    /// At an address of the test's own, for port 53 cannot be chosen. As root.
    pub fn start(ip: &str) -> Self {
        let socket = UdpSocket::bind((ip, 53)).expect("as root");
        let settings = std::env::temp_dir().join(format!("sandgate-resolv-{ip}-{}", std::process::id()));
        let text = format!("nameserver {ip}\noptions timeout:30 attempts:5\n");
        std::fs::write(&settings, text).expect("there is room for a file");
        Self { socket, settings }
    }

    /// In front of a command: it asks here and nowhere else.
    pub fn wrapper(&self) -> [&str; 6] {
        let instead = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        ["unshare", "--mount", "sh", "-c", instead, self.settings.to_str().expect("a path that is text")]
    }

    /// Until a name is asked for.
    pub fn await_question(&self, within: std::time::Duration) {
        self.socket.set_read_timeout(Some(within)).expect("not zero");
        self.socket.recv(&mut [0; 512]).expect("the name server is asked");
    }
}

impl Drop for SilentNames {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.settings);
    }
}
