//! Connections: plain or TLS, from a source address of choice.

use crate::failure::Failure;
use crate::plan::Target;
use crate::unshown::shown_url;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use socket2::{Domain, Protocol, Socket, Type};
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where to connect: the target's URL taken apart.
#[derive(Clone, Debug)]
pub struct Place {
    pub address: SocketAddr,
    /// As in `Host` when no preview domain is given.
    pub authority: String,
    /// Path and query of the URL.
    pub path: String,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub http2: bool,
}

impl Place {
    /// Resolves and loads what the target names. `Err` says what is wrong, for the operator.
    pub fn of(target: &Target) -> Result<Self, String> {
        let wrong = |what: &str| format!("target `{}`: {what}", shown_url(&target.url));
        let (scheme, rest) = target.url.split_once("://").ok_or_else(|| wrong("no http:// or https://"))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("the scheme is neither http nor https")),
        };
        let slash = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        if !authority.starts_with('[') && authority.matches(':').count() > 1 {
            return Err(wrong("an IPv6 address stands in brackets, as in http://[::1]:80"));
        }
        if authority.is_empty()
            || authority.starts_with(':')
            || rest.contains(['@', '#', ' '])
            || !rest.is_ascii()
        {
            return Err(wrong("not a host with an optional port and path"));
        }
        // What is behind the last colon, but of those within an address' brackets.
        let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(wrong("its port is none from 1 to 65535"));
        }
        let name = match (port.is_some(), secure) {
            (true, _) => authority.to_owned(),
            (false, true) => format!("{authority}:443"),
            (false, false) => format!("{authority}:80"),
        };
        let address = address_of(&name).map_err(|error| wrong(&error.to_string()))?;
        Ok(Self {
            address,
            authority: authority.into(),
            path: if path.is_empty() { "/".into() } else { path.into() },
            tls: secure.then(|| tls_config(target)).transpose()?.map(Arc::new),
            http2: target.http2,
        })
    }
}

/// Names below `localhost` are this machine's (RFC 6761 6.3), as in browsers; not every resolver knows them.
fn address_of(name: &str) -> io::Result<SocketAddr> {
    let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
    if let (true, Ok(port)) = (host.to_ascii_lowercase().ends_with(".localhost"), port.parse()) {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let none = || io::Error::other("the name has no address");
    name.to_socket_addrs()?.next().ok_or_else(none)
}

fn tls_config(target: &Target) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = if target.insecure {
        let verifier = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        let mut roots = rustls::RootCertStore::empty();
        match &target.ca {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(file) => {
                let wrong = |error: &dyn std::fmt::Display| format!("ca {}: {error}", file.display());
                let certificates =
                    rustls::pki_types::CertificateDer::pem_file_iter(file).map_err(|e| wrong(&e))?;
                for certificate in certificates {
                    roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
                }
                if roots.is_empty() {
                    return Err(wrong(&"there is no certificate in it (PEM)"));
                }
            }
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = vec![if target.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_or_refused_with_what_is_wrong() {
        let place = |url: &str| Place::of(&Target { url: url.into(), ..Target::default() });
        for (url, address, authority) in [
            ("http://127.0.0.1:81", "127.0.0.1:81", "127.0.0.1:81"),
            ("HTTP://127.0.0.1/a", "127.0.0.1:80", "127.0.0.1"),
            ("http://[::1]:81/", "[::1]:81", "[::1]:81"),
            ("http://[::1]", "[::1]:80", "[::1]"),
            // Whatever the resolver says of it.
            ("http://3000-echo.Proxy.LOCALHOST:81/x", "127.0.0.1:81", "3000-echo.Proxy.LOCALHOST:81"),
        ] {
            let found = place(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((found.address.to_string().as_str(), found.authority.as_str()), (address, authority));
        }
        for (url, why) in [
            ("127.0.0.1:81", "no http:// or https://"),
            ("ftp://127.0.0.1", "neither http nor https"),
            ("http://", "not a host"),
            ("http://:81/", "not a host"),
            ("http://127.0.0.1:0", "from 1 to 65535"),
            ("http://127.0.0.1:65536/", "from 1 to 65535"),
            ("http://127.0.0.1:", "from 1 to 65535"),
            ("http://127.0.0.1:x", "from 1 to 65535"),
            ("http://::1:81/", "stands in brackets"),
        ] {
            let error = place(url).err().unwrap_or_default();
            assert!(error.contains(why), "{url}: {error}");
        }
    }
}

/// For targets with certificates of their own making: any certificate, but signatures must be right.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens connections to one place, taking source addresses in turn.
pub struct Connector {
    place: Place,
    sources: Vec<IpAddr>,
    next_source: Cell<usize>,
}

impl Connector {
    pub fn new(place: Place, sources: Vec<IpAddr>) -> Self {
        Self { place, sources, next_source: Cell::new(0) }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Connects, with TLS if the target has it. `host`: the name to ask for in TLS.
    pub async fn connect(&self, host: &str, within: Duration) -> Result<Transport, Failure> {
        match tokio::time::timeout(within, self.open(host)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::ConnectTimeout),
        }
    }

    async fn open(&self, host: &str) -> Result<Transport, Failure> {
        let socket = self.socket().map_err(|error| Failure::of_connect(&error))?;
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        let stream = socket.connect(self.place.address).await.map_err(|error| Failure::of_connect(&error))?;
        stream.set_nodelay(true).map_err(|error| Failure::of_stream(&error))?;
        let Some(config) = &self.place.tls else { return Ok(Transport::Plain(stream)) };
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned();
        let name = ServerName::try_from(name)
            .map_err(|_| Failure::Tls("tls: the host is no name a certificate can have"))?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
        Ok(Transport::Tls(Box::new(stream.map_err(|error| Failure::of_tls(&error))?)))
    }

    fn socket(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.place.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if !self.sources.is_empty() {
            let turn = self.next_source.get();
            self.next_source.set((turn + 1) % self.sources.len());
            socket.bind(&SocketAddr::new(self.sources[turn], 0).into())?;
        }
        Ok(socket)
    }
}

/// An open connection.
pub enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
