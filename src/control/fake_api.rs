//! A scripted API for tests: real sockets, raw HTTP/1.1, and a record of what it was asked.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Nothing takes this long unless it never comes.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// What to do about a request.
#[derive(Clone)]
pub(super) enum Act {
    /// Send these bytes and read on.
    Send(Vec<u8>),
    /// The same after [`FakeApi::release`] has been called for it.
    SendWhenReleased(Vec<u8>),
    /// Send these bytes and close.
    SendAndClose(Vec<u8>),
    /// Send these bytes and nothing more, until the client leaves.
    SendAndHang(Vec<u8>),
    Reset,
}

#[derive(Clone)]
pub(super) struct FakeApi {
    addr: SocketAddr,
    state: Arc<State>,
}

type Script = dyn Fn(usize, &str) -> Act + Send + Sync;

struct State {
    script: Box<Script>,
    heads: Mutex<Vec<String>>,
    seen: watch::Sender<Seen>,
    releases: Semaphore,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Seen {
    pub(super) connections: usize,
    pub(super) requests: usize,
    /// Connections the client closed.
    pub(super) closed: usize,
}

impl FakeApi {
    /// `script` is asked with the request's number, from 0, and its path.
    pub(super) async fn start(script: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            script: Box::new(script),
            heads: Mutex::default(),
            seen: watch::Sender::default(),
            releases: Semaphore::new(0),
        });
        let of_task = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                of_task.seen.send_modify(|seen| seen.connections += 1);
                tokio::spawn(serve(stream, Arc::clone(&of_task)));
            }
        });
        Self { addr, state }
    }

    /// The same answer to everything.
    pub(super) async fn always(act: Act) -> Self {
        Self::start(move |_, _| act.clone()).await
    }

    pub(super) fn base(&self) -> String {
        format!("http://{}/api", self.addr)
    }

    pub(super) fn seen(&self) -> Seen {
        *self.state.seen.borrow()
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.state.heads.lock().expect("no test panics with it").clone()
    }

    pub(super) fn release(&self, count: usize) {
        self.state.releases.add_permits(count);
    }

    pub(super) async fn wait_for(&self, what: impl Fn(&Seen) -> bool) {
        let mut seen = self.state.seen.subscribe();
        within(seen.wait_for(what)).await.expect("the server runs");
    }
}

pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// An answer of this status, with `extra` field lines (each with its CRLF).
pub(super) fn reply(status: u16, extra: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return state.seen.send_modify(|seen| seen.closed += 1);
            }
        };
        let head = String::from_utf8(bytes.drain(..end).collect()).expect("heads are ASCII");
        let path = head.split(' ').nth(1).expect("a request line").to_owned();
        let number = {
            let mut heads = state.heads.lock().expect("no test panics with it");
            heads.push(head);
            heads.len() - 1
        };
        state.seen.send_modify(|seen| seen.requests += 1);
        let act = (state.script)(number, &path);
        // A client that has left is what some tests are about.
        match act {
            Act::Send(bytes) => drop(stream.write_all(&bytes).await),
            Act::SendWhenReleased(answer) => {
                tokio::select! {
                    permit = state.releases.acquire() => permit.expect("never closed").forget(),
                    _ = stream.read_buf(&mut bytes) => {
                        return state.seen.send_modify(|seen| seen.closed += 1);
                    }
                }
                drop(stream.write_all(&answer).await);
            }
            Act::SendAndClose(bytes) => return drop(stream.write_all(&bytes).await),
            Act::SendAndHang(bytes) => drop(stream.write_all(&bytes).await),
            Act::Reset => {
                let linger = Some(Duration::ZERO);
                return socket2::SockRef::from(&stream).set_linger(linger).expect("a live socket");
            }
        }
    }
}
