//! The metrics page: a listener of its own that answers `GET /metrics` and `GET /healthz` and nothing else.
//!
//! One request per connection, each connection under one deadline, a bounded number at a time. Knows how to collect
//! the shards' counters, not what they mean.

use super::exposition;
use super::process::Process;
use super::stats::Stats;
use crate::counters::Counters;
use crate::mailbox::{Down, ToShard};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// More wait in the listener's queue.
const CONNECTIONS_MAX: usize = 16;
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);
/// A shard that has not reported by then appears with its last report.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
const HEAD_BYTES_MAX: usize = 8 * 1024;
const FIELDS_MAX: usize = 64;
/// Accept failed: out of descriptors, probably. Trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Server {
    listener: std::net::TcpListener,
    addr: SocketAddr,
    collector: Arc<Collector>,
}

struct Collector {
    downs: Vec<Arc<Down>>,
    stats: Arc<Stats>,
    /// Of the process, since 1970.
    started: Duration,
    /// By shard. A sum without a shard that is merely late would look like a restart to whoever scrapes.
    last: Mutex<Vec<Option<Box<Counters>>>>,
}

impl Server {
    pub(super) fn bind(addr: SocketAddr, downs: Vec<Arc<Down>>, stats: Arc<Stats>) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let last = Mutex::new(downs.iter().map(|_| None).collect());
        // The page is there from the start.
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self { listener, addr, collector: Arc::new(Collector { downs, stats, started, last }) })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Never returns while the listener lives; dropping the future ends all connections.
    pub(super) async fn run(self) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                let detail = error.to_string();
                crate::log::event(crate::log::Level::Error, "metrics_page_failed", &[("detail", &detail)]);
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    let collector = Arc::clone(&self.collector);
                    connections.spawn(async move {
                        // A scraper that is gone or too slow asks again.
                        let _ = timeout(CONNECTION_DEADLINE, serve(stream, &collector)).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

impl Collector {
    /// All shards at once; a shard's queue that is full or a shard that is stuck costs freshness, not the page.
    async fn page(&self) -> String {
        let until = Instant::now() + REPORT_DEADLINE;
        let asked: Vec<_> = self
            .downs
            .iter()
            .map(|down| {
                let (send, receive) = oneshot::channel();
                down.push(ToShard::Report(send)).ok().map(|()| receive)
            })
            .collect();
        let mut fresh = Vec::with_capacity(asked.len());
        for receive in asked {
            fresh.push(match receive {
                Some(receive) => timeout_at(until, receive).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let reporting = fresh.iter().flatten().count();
        for (slot, report) in last.iter_mut().zip(fresh) {
            if report.is_some() {
                *slot = report;
            }
        }
        exposition::page(&last, reporting, &self.stats, &Process::look(self.started))
    }
}

async fn serve(mut stream: TcpStream, collector: &Collector) -> std::io::Result<()> {
    let request = match read_head(&mut stream).await? {
        Some(request) => request,
        None => return Ok(()),
    };
    let (status, content_type, body) = match &request {
        Ok(Request { path, .. }) => match path.as_str() {
            "/metrics" => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", collector.page().await),
            "/healthz" => ("200 OK", "text/plain; charset=utf-8", "ok\n".to_owned()),
            _ => ("404 Not Found", "text/plain; charset=utf-8", "see /metrics and /healthz\n".to_owned()),
        },
        Err(status) => (*status, "text/plain; charset=utf-8", String::new()),
    };
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !matches!(request, Ok(Request { head_only: true, .. })) {
        response.push_str(&body);
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

struct Request {
    /// Without the query.
    path: String,
    head_only: bool,
}

/// `None`: closed before a whole head came. The inner error is a status line's end.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<Result<Request, &'static str>>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if bytes.len() >= HEAD_BYTES_MAX {
            return Ok(Some(Err("431 Request Header Fields Too Large")));
        }
        let room = (HEAD_BYTES_MAX - bytes.len()) as u64;
        if (&mut *stream).take(room).read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut fields);
        match head.parse(&bytes) {
            Ok(httparse::Status::Partial) => {}
            Ok(httparse::Status::Complete(_)) => return Ok(Some(request(&head))),
            Err(httparse::Error::TooManyHeaders) => {
                return Ok(Some(Err("431 Request Header Fields Too Large")));
            }
            Err(_) => return Ok(Some(Err("400 Bad Request"))),
        }
    }
}

fn request(head: &httparse::Request<'_, '_>) -> Result<Request, &'static str> {
    let head_only = match head.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err("405 Method Not Allowed"),
    };
    let target = head.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path).to_owned();
    Ok(Request { path, head_only })
}
