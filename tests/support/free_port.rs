//! Ports for servers that are processes of their own and must be told one.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Nobody listens there, and nobody will before the server does: it is none of those the kernel gives to connections and
/// to `bind` at port 0 (32768 and up), and the UDP port of the same number, held until this process ends, keeps every
/// other caller away, in whichever process and copy of this module.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = std::process::id().wrapping_mul(211).wrapping_add(NEXT.fetch_add(1, Relaxed).into());
        let port = 12_000 + (number % 20_000) as u16;
        let Ok(claim) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            std::mem::forget(claim);
            return port;
        }
    }
}
