//! The Redis that proxies share with the API, told of changes as the API tells it.
//!
//! Without this a proxy learns of a change when what it remembers has aged; with it, at once. Levers are pulled seldom: a
//! connection for each.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For connecting and both commands together.
const PATIENCE: Duration = Duration::from_secs(2);
/// A number, or an error's sentence.
const ANSWER_BYTES_MAX: usize = 512;

/// What a lever changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    Visibility { id: String },
    State { id: String, running: bool },
}

impl News {
    fn command(&self) -> Vec<String> {
        match self {
            // Proxies of all kinds keep the flag there; the API deletes it.
            Self::Visibility { id } => vec!["DEL".into(), format!("proxy:sandbox-public:{id}")],
            Self::State { id, running } => {
                let [old, new] = if *running { ["stopped", "started"] } else { ["started", "stopped"] };
                let event = serde_json::json!({"sandbox": {"id": id, "state": new}, "oldState": old, "newState": new});
                vec!["PUBLISH".into(), "sandbox.event.channel".into(), event.to_string()]
            }
        }
    }
}

/// `HOST:PORT` of the command line.
pub(super) fn address(text: &str) -> Result<String, String> {
    let good = |(host, port): (&str, &str)| {
        !host.is_empty() && !host.contains('@') && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match text.rsplit_once(':').is_some_and(good) {
        true => Ok(text.to_owned()),
        // It may be a URL with a password.
        false => Err("no host with a port, such as 127.0.0.1:6379".into()),
    }
}

/// Returns when Redis has taken it.
pub(super) async fn tell(address: &str, news: &News) -> io::Result<()> {
    let command = news.command();
    let mut request = format!("*{}\r\n", command.len());
    for word in &command {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") && answer.len() < ANSWER_BYTES_MAX {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        match answer.first() {
            Some(b':') => Ok(()),
            _ => Err(io::Error::other(String::from_utf8_lossy(&answer).trim().to_owned())),
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_has_a_host_and_a_port() {
        assert!(address("127.0.0.1:6379").is_ok() && address("redis:6379").is_ok());
        for text in ["", "redis", ":6379", "redis:0", "redis:x", "redis:70000"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
