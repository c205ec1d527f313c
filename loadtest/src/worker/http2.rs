//! Kept HTTP/2 connections: many requests at a time on each, through the `h2` crate.

use super::{Slot, Worker};
use crate::aim::Visitor;
use crate::content::Check;
use crate::failure::Failure;
use crate::http1::ProxyError;
use crate::recorder::{Arrival, Outcome};
use bytes::Bytes;
use h2::client::SendRequest;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

/// Window for answers, per stream and per connection: large, so that the client does not set the pace.
const WINDOW: u32 = 4 << 20;
/// Code of what has none of its own.
const OTHER: &str = "http/2";
static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];

pub(super) fn spawn(worker: &Rc<Worker>, connections: u32, ready: &mpsc::Sender<()>) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let shared = Rc::new(Shared::default());
        for _ in 0..worker.plan.client.streams {
            let stream = Stream {
                worker: worker.clone(),
                slot: worker.new_slot(),
                shared: shared.clone(),
                visitor: Visitor::default(),
                on: Cell::default(),
                unreachable: Cell::default(),
            };
            tasks.push(spawn_local(stream.run(ready.clone())));
        }
    }
    tasks
}

/// One connection as its streams share it.
#[derive(Default)]
struct Shared {
    connection: RefCell<Option<Connection>>,
    /// How many there were.
    number: Cell<u64>,
    /// How long the connection took, until a request has it in its figures.
    took: Cell<Option<Duration>>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Bytes>,
    number: u64,
}

impl Shared {
    /// No new request goes to this one, which another may have replaced already.
    fn leave(&self, number: u64) {
        let mut connection = self.connection.borrow_mut();
        connection.take_if(|connection| connection.number == number);
    }
}

/// A place for one request at a time on a shared connection.
struct Stream {
    worker: Rc<Worker>,
    slot: Rc<Slot>,
    shared: Rc<Shared>,
    visitor: Visitor,
    /// Number of the connection the last request went to.
    on: Cell<u64>,
    /// The last request could not be sent for want of a connection.
    unreachable: Cell<bool>,
}

struct Answer {
    status: u16,
    error: Option<Box<ProxyError>>,
    body_bytes: u64,
    check: Check,
    first_byte: Instant,
}

impl Stream {
    async fn run(mut self, ready: mpsc::Sender<()>) {
        self.worker.aim.borrow_mut().draw(&mut self.visitor);
        drop(self.connection().await);
        drop(ready);
        while let Some((arrival, could)) = self.worker.arrival(&self.slot).await {
            self.serve(arrival, could).await;
            if self.unreachable.take() {
                self.worker.hold_off(&arrival).await;
            }
        }
    }

    /// The shared connection's, after connecting if there is none.
    async fn connection(&self) -> Result<Connection, Failure> {
        let current = || self.shared.connection.borrow().clone();
        if let Some(connection) = current() {
            return Ok(connection);
        }
        let _alone = self.shared.connecting.lock().await;
        if let Some(connection) = current() {
            return Ok(connection);
        }
        let begun = Instant::now();
        let within = self.worker.plan.client.timeout.0.min(Duration::from_secs(10));
        let transport = self.worker.connector.connect(&self.visitor.host, within).await?;
        if let crate::transport::Transport::Tls(stream) = &transport
            && stream.get_ref().1.alpn_protocol() != Some(b"h2")
        {
            return Err(Failure::Http2("http/2: the server does not speak it (ALPN)"));
        }
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let handshake = tokio::time::timeout(within, builder.handshake(transport)).await;
        let (sender, connection) =
            handshake.map_err(|_| Failure::ConnectTimeout)?.map_err(|error| failure(&error))?;
        self.shared.took.set(Some(begun.elapsed()));
        self.worker.open.set(self.worker.open.get() + 1);
        let (shared, worker) = (self.shared.clone(), self.worker.clone());
        let number = shared.number.get() + 1;
        shared.number.set(number);
        spawn_local(async move {
            // Its error is each stream's own; what matters here is that it is over.
            drop(connection.await);
            worker.open.set(worker.open.get() - 1);
            shared.leave(number);
        });
        let connection = Connection { sender, number };
        *self.shared.connection.borrow_mut() = Some(connection.clone());
        Ok(connection)
    }

    async fn serve(&mut self, arrival: Arrival, could: Instant) {
        let worker = self.worker.clone();
        worker.aim.borrow_mut().draw(&mut self.visitor);
        let begun = Instant::now();
        let arrival = worker.leaving(arrival, begun);
        worker.record(|recorder| recorder.sent(&arrival, begun.saturating_duration_since(could)));
        self.slot.begin(arrival, begun);
        let deadline = begun + worker.plan.client.timeout.0;
        let outcome = match tokio::time::timeout_at(deadline.into(), self.exchange(&arrival)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // It may be dead, as a kept HTTP/1.1 connection may be that ends so.
                self.shared.leave(self.on.get());
                Err(Failure::Timeout)
            }
        };
        let ended_at = Instant::now();
        self.slot.under_way.set(None);
        worker.record(|recorder| {
            let (outcome, first_byte) = match outcome {
                Ok(answer) => {
                    let up = worker.classes[arrival.class].body_bytes().unwrap_or(0);
                    recorder.moved(&arrival, up, answer.body_bytes);
                    (answer.check.outcome(answer.status, answer.error), answer.first_byte)
                }
                Err(failure) => (Outcome::Failed(failure), ended_at),
            };
            if recorder.ended(&arrival, outcome, self.visitor.refused, Some((begun, ended_at))) {
                recorder.extra(&arrival, "first_byte", first_byte.saturating_duration_since(begun));
            }
        });
    }

    /// On the shared connection; once more on a new one when that takes no more requests (RFC 9113 6.8), as servers may
    /// say at any time.
    async fn exchange(&self, arrival: &Arrival) -> Result<Answer, Failure> {
        match self.attempt(arrival).await {
            Err(Broken { unprocessed: true, .. }) => {
                self.worker.record(|recorder| recorder.resent(arrival));
                self.attempt(arrival).await
            }
            first => first,
        }
        .map_err(|broken| broken.failure)
    }

    async fn attempt(&self, arrival: &Arrival) -> Result<Answer, Broken> {
        let connection = self.connection().await.map_err(|failure| {
            self.unreachable.set(true);
            Broken::of_stream(failure)
        })?;
        self.on.set(connection.number);
        let answer = self.ask(arrival, connection).await;
        if answer.as_ref().is_err_and(|broken| broken.gone) {
            self.shared.leave(self.on.get());
        }
        answer
    }

    async fn ask(&self, arrival: &Arrival, connection: Connection) -> Result<Answer, Broken> {
        if let Some(took) = self.shared.took.take() {
            self.worker.record(|recorder| recorder.extra(arrival, "connect", took));
        }
        let mut sender = connection.sender.ready().await.map_err(|error| Broken::before_sending(&error))?;
        let class = &self.worker.classes[arrival.class];
        let request = self.request(arrival).map_err(Broken::of_stream)?;
        let body = class.body_bytes().unwrap_or(0);
        let check = Check::new(self.worker.contents[arrival.class]);
        let sent = sender.send_request(request, body == 0);
        let (answer, sink) = sent.map_err(|error| Broken::before_sending(&error))?;
        let (sent, answered) = tokio::join!(send_body(sink, body), receive(answer, check));
        // A server may answer without reading the body; then the answer counts, not the body's fate.
        answered.map_err(|broken| match sent {
            Err(failure) if !broken.unprocessed => Broken { failure, ..broken },
            _ => broken,
        })
    }

    fn request(&self, arrival: &Arrival) -> Result<http::Request<()>, Failure> {
        let worker = &self.worker;
        let class = &worker.classes[arrival.class];
        let path = match worker.plan.target.domain {
            None if worker.paths[arrival.class] == "/" => &worker.connector.place().path,
            _ => &worker.paths[arrival.class],
        };
        let scheme = if worker.connector.place().tls.is_some() { "https" } else { "http" };
        let mut uri = format!("{scheme}://{}", self.visitor.host);
        self.visitor.write_target(&mut uri, path);
        let mut request = http::Request::builder().method(class.method()).uri(uri).header("accept", "*/*");
        if let Some((name, value)) = &self.visitor.field {
            request = request.header(*name, value);
        }
        if let Some(origin) = self.visitor.origin.as_ref().filter(|_| class.method() != "GET") {
            request = request.header("origin", origin);
        }
        if let Some(bytes) = class.body_bytes() {
            request = request.header("content-length", bytes);
        }
        // Only a path of the plan that is no URI can be wrong here.
        request.body(()).map_err(|_| Failure::Http2("http/2: the path is no URI"))
    }
}

async fn send_body(mut sink: h2::SendStream<Bytes>, mut left: u64) -> Result<(), Failure> {
    while left > 0 {
        sink.reserve_capacity(ZEROS.len().min(left as usize));
        let granted = std::future::poll_fn(|cx| sink.poll_capacity(cx)).await;
        let granted = granted.ok_or(Failure::Http2(OTHER))?.map_err(|error| failure(&error))?;
        let next = granted.min(ZEROS.len()).min(left as usize);
        left -= next as u64;
        sink.send_data(Bytes::from_static(&ZEROS[..next]), left == 0).map_err(|error| failure(&error))?;
    }
    Ok(())
}

async fn receive(answer: h2::client::ResponseFuture, mut check: Check) -> Result<Answer, Broken> {
    let (head, mut body) = answer.await.map_err(|error| Broken::before_answer(&error))?.into_parts();
    let first_byte = Instant::now();
    let mut body_bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| match failure(&error) {
            Failure::Reset => Failure::Truncated,
            other => other,
        });
        let data = data.map_err(Broken::of_stream)?;
        body_bytes += data.len() as u64;
        check.see(&data);
        let released = body.flow_control().release_capacity(data.len());
        released.map_err(|error| Broken::of_stream(failure(&error)))?;
    }
    let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let error = field("x-preview-error-code").map(|code| {
        Box::new(ProxyError {
            code,
            source: field("x-preview-error-source").unwrap_or_else(|| "answer".into()),
        })
    });
    Ok(Answer { status: head.status.as_u16(), error, body_bytes, check, first_byte })
}

/// Why an exchange failed, and what that says of the connection and of the request.
struct Broken {
    failure: Failure,
    /// The connection takes no more requests.
    gone: bool,
    /// The server has not begun with it: it may be sent again whatever it is.
    unprocessed: bool,
}

impl Broken {
    fn of_stream(failure: Failure) -> Self {
        Self { failure, gone: false, unprocessed: false }
    }

    fn before_sending(error: &h2::Error) -> Self {
        Self { failure: failure(error), gone: true, unprocessed: true }
    }

    /// Beyond the last stream of a GOAWAY, or refused (RFC 9113 8.7).
    fn before_answer(error: &h2::Error) -> Self {
        let went_away = error.is_go_away() && error.is_remote();
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone = went_away || error.is_io();
        Self { failure: failure(error), gone, unprocessed: went_away || refused }
    }
}

fn failure(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => Failure::of_stream(error),
        None if error.is_reset() => Failure::Reset,
        // `HTTP/1.1` read as a frame's head is one of 4.7 MB.
        None if error.is_library() && error.reason() == Some(h2::Reason::FRAME_SIZE_ERROR) => {
            Failure::Http2("http/2: what came is no HTTP/2: the server may speak HTTP/1.1 only")
        }
        None if error.is_go_away() && error.is_remote() => {
            Failure::Http2("http/2: the server gave the connection up (GOAWAY)")
        }
        None => Failure::Http2(OTHER),
    }
}
