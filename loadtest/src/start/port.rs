//! Ports for servers that must be told one before they listen.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below those the kernel gives to connections, unless it is told otherwise (`net.ipv4.ip_local_port_range`, 32768 and up).
const RANGE: std::ops::Range<u16> = 10_000..12_000;

/// No other loadtest is given it as long as this lives.
pub struct ClaimedPort {
    pub number: u16,
    /// A name in the network namespace, as the port is; the kernel frees it with the process, however that ends.
    _claim: UnixListener,
}

impl ClaimedPort {
    /// One where nobody listens.
    ///
    /// # Errors
    /// No port is free, or the kernel refuses sockets.
    pub fn any() -> io::Result<Self> {
        for _ in 0..10 * RANGE.len() {
            // Claimed first, so that of two who look at one alone goes on.
            if let Some(port) = Self::claim(fastrand::u16(RANGE))?
                && is_free(port.number)?
            {
                return Ok(port);
            }
        }
        let message = format!("no port from {} to {} is free", RANGE.start, RANGE.end - 1);
        Err(io::Error::new(ErrorKind::AddrInUse, message))
    }

    /// `None`: it is another loadtest's. Somebody may listen there.
    ///
    /// # Errors
    /// The kernel refuses sockets.
    pub fn claim(number: u16) -> io::Result<Option<Self>> {
        let name = SocketAddr::from_abstract_name(format!("loadtest-port-{number}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(claim) => Ok(Some(Self { number, _claim: claim })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// On every address of both families: who is told a port may listen on any.
fn is_free(port: u16) -> io::Result<bool> {
    match TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => return Ok(false),
        other => drop(other?),
    }
    // Without IPv6 nobody listens there.
    let v6 = TcpListener::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    Ok(!v6.is_err_and(|error| error.kind() == ErrorKind::AddrInUse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ports_are_given_to_one_and_not_while_somebody_listens() {
        let claimed: Vec<_> = (0..50).map(|_| ClaimedPort::any().expect("a port")).collect();
        let numbers: HashSet<u16> = claimed.iter().map(|port| port.number).collect();
        assert_eq!(numbers.len(), claimed.len());
        let listener = TcpListener::bind(("127.0.0.1", claimed[0].number)).expect("it is free");
        assert!(!is_free(claimed[0].number).expect("sockets"));
        drop(listener);
        assert!(is_free(claimed[0].number).expect("sockets"));
    }
}
