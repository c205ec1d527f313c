//! Ports for servers that are processes of their own and must be told one.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

const FIRST: u16 = 12_000;
const PORTS: u32 = 20_000;

/// Nobody listens there, and nobody will before the server does: it is none of those the kernel gives to connections and
/// to `bind` at port 0 (32768 and up), and the UDP port of the same number, held until this process ends, keeps every
/// other caller away, in whichever process and copy of this module.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..PORTS {
        let number = std::process::id().wrapping_mul(211).wrapping_add(NEXT.fetch_add(1, Relaxed).into());
        let port = FIRST + (number % PORTS) as u16;
        // Claimed first, so that of two who ask one alone goes on.
        let free = UdpSocket::bind(("127.0.0.1", port))
            .and_then(|claim| TcpListener::bind(("127.0.0.1", port)).map(|_| claim));
        match free {
            Ok(claim) => {
                std::mem::forget(claim);
                return port;
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => panic!("no port for a server of the test: {error}"),
        }
    }
    panic!("{PORTS} ports from {FIRST} on are all taken");
}
