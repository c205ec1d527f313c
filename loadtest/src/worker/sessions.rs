//! What lives on connections of its own: event streams, WebSockets, page loads. Each session is a task.

use super::{Next, Slot, Worker};
use crate::aim::Visitor;
use crate::alarm::Alarm;
use crate::failure::Failure;
use crate::http1::{Http1, Request};
use crate::plan::Class;
use crate::recorder::{Arrival, Outcome};
use crate::websocket::{self, Event, FrameReader};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

/// Connections a browser opens to one host.
const PAGE_CONNECTIONS: usize = 6;

/// Starts sessions when they are due, up to the bound; beyond it they count as unsent.
pub(super) async fn dispatch(worker: Rc<Worker>) {
    let Ok(alarm) = Alarm::new() else { return };
    let most = (worker.plan.client.sessions_max / worker.part.count).max(1);
    let mut free: Vec<Rc<Slot>> = Vec::new();
    let ended: Rc<std::cell::RefCell<Vec<Rc<Slot>>>> = Rc::default();
    loop {
        let now = Instant::now();
        let next = worker.next(&mut worker.sessions.borrow_mut(), now);
        match next {
            Next::Over => return,
            Next::At(due) => alarm.until(due.min(now + Duration::from_millis(100))).await,
            Next::Due(arrival) if worker.sessions_open.get() >= most => {
                worker.record(|recorder| recorder.unsent(&arrival, now));
            }
            Next::Due(arrival) => {
                free.append(&mut ended.borrow_mut());
                let slot = free.pop().unwrap_or_else(|| worker.new_slot());
                worker.sessions_open.set(worker.sessions_open.get() + 1);
                worker.record(|recorder| {
                    recorder.sent(&arrival, now.saturating_duration_since(arrival.intended));
                });
                slot.under_way.set(Some((arrival, now)));
                let (worker, ended) = (worker.clone(), ended.clone());
                spawn_local(async move {
                    Session::new(&worker, arrival, slot.clone()).run(now).await;
                    worker.sessions_open.set(worker.sessions_open.get() - 1);
                    slot.under_way.set(None);
                    ended.borrow_mut().push(slot);
                });
            }
        }
    }
}

struct Session<'a> {
    worker: &'a Rc<Worker>,
    arrival: Arrival,
    slot: Rc<Slot>,
    visitor: Visitor,
    /// The status that decided, once there is one.
    status: Cell<u16>,
}

impl<'a> Session<'a> {
    fn new(worker: &'a Rc<Worker>, arrival: Arrival, slot: Rc<Slot>) -> Self {
        let mut visitor = Visitor::default();
        worker.aim.borrow_mut().draw(&mut visitor);
        Self { worker, arrival, slot, visitor, status: Cell::new(0) }
    }

    async fn run(&self, begun: Instant) {
        let result = match &self.worker.classes[self.arrival.class] {
            Class::Events { .. } => self.events(begun).await,
            Class::WebSocket { messages, bytes } => self.websocket(begun, *messages, *bytes as usize).await,
            Class::Page { assets, bytes } => self.page(begun, *assets, *bytes).await,
            _ => unreachable!("only sessions are dispatched here"),
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(failure) => {
                // Its time is known to be at least this, unless it was measured before.
                if self.slot.under_way.get().is_some() {
                    self.reached(begun);
                }
                Outcome::Failed(failure)
            }
        };
        self.worker.record(|recorder| recorder.judged(&self.arrival, outcome, self.visitor.refused));
    }

    /// What the class's latency measures has happened.
    fn reached(&self, begun: Instant) {
        self.slot.under_way.set(None);
        self.worker.record(|recorder| recorder.timed(&self.arrival, begun, Instant::now()));
    }

    fn timeout(&self) -> Duration {
        self.worker.plan.client.timeout.0
    }

    /// Opens a connection and notes how long it took.
    async fn connect(&self) -> Result<Http1, Failure> {
        let begun = Instant::now();
        let connection = self.worker.connect(&self.visitor.host).await?;
        self.worker.record(|recorder| recorder.extra(&self.arrival, "connect", begun.elapsed()));
        Ok(connection)
    }

    /// One answer within the deadline.
    async fn within<T>(&self, exchange: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::time::timeout(self.timeout(), exchange).await.unwrap_or(Err(Failure::Timeout))
    }

    fn request(&self, path: &str, more: &str) -> Request {
        let mut request = Request::default();
        self.visitor.write_head(&mut request.bytes, "GET", path, None, more);
        request
    }

    /// An event stream to its end. The time between two events is `event_gap`.
    async fn events(&self, begun: Instant) -> Result<Outcome, Failure> {
        let mut connection = self.connect().await?;
        let request = self.request(&self.worker.paths[self.arrival.class], "accept: text/event-stream\r\n");
        let Class::Events { count, every } = &self.worker.classes[self.arrival.class] else {
            unreachable!("the caller looked")
        };
        let (mut events, mut newlines, mut last) = (0u32, 0u8, None::<Instant>);
        let mut sink = |data: &[u8]| {
            for byte in data {
                match byte {
                    b'\n' => newlines += 1,
                    b'\r' => continue,
                    _ => newlines = 0,
                }
                if newlines == 2 {
                    let now = Instant::now();
                    match last {
                        None => self.reached(begun),
                        Some(before) => {
                            self.worker.record(|r| r.message(&self.arrival, "event_gap", now - before));
                        }
                    }
                    (last, events, newlines) = (Some(now), events + 1, 0);
                }
            }
        };
        let most = self.timeout() + every.0 * *count;
        let reply = tokio::time::timeout(most, connection.exchange(&request, &mut sink)).await;
        let reply = reply.unwrap_or(Err(Failure::Timeout))?;
        self.worker.record(|recorder| {
            recorder.moved(&self.arrival, request.bytes.len() as u64, reply.body_bytes);
        });
        if self.slot.under_way.get().is_some() {
            self.reached(begun);
        }
        if reply.status == 200 && events != *count {
            return Err(Failure::WrongContent);
        }
        Ok(Outcome::Answered { status: reply.status, error: reply.error })
    }

    /// A WebSocket with its echoes, each timed from its sending (`ws_echo`).
    async fn websocket(&self, begun: Instant, messages: u32, bytes: usize) -> Result<Outcome, Failure> {
        let random = self.worker.aim.borrow_mut().random();
        let mut connection = self.connect().await?;
        let fields = websocket::handshake_fields(random);
        let request = self.request(&self.worker.paths[self.arrival.class], &fields);
        let reply = self.within(connection.exchange(&request, &mut |_| {})).await?;
        self.reached(begun);
        if reply.status != 101 {
            // A 2xx is an answer, but not to this question.
            return match reply.status {
                200..=299 => Err(Failure::WrongContent),
                status => Ok(Outcome::Answered { status, error: reply.error }),
            };
        }
        self.worker.record(|recorder| recorder.extra(&self.arrival, "ws_connect", begun.elapsed()));
        let (mut io, leftover) = connection.into_parts();
        let mut frames = FrameReader::default();
        frames.feed(&leftover);
        let mut out = Vec::with_capacity(bytes + 14);
        let payload: Vec<u8> = (0..bytes).map(|n| (random as usize).wrapping_add(n) as u8).collect();
        for n in 0..messages {
            out.clear();
            websocket::write_message(&mut out, &payload, (random >> 8) as u32 ^ n);
            let sent_at = Instant::now();
            self.within(async {
                io.write_all(&out).await.map_err(|error| Failure::of_stream(&error))?;
                io.flush().await.map_err(|error| Failure::of_stream(&error))
            })
            .await?;
            let echo = self.within(next_message(&mut io, &mut frames)).await?;
            self.worker.record(|recorder| recorder.message(&self.arrival, "ws_echo", sent_at.elapsed()));
            self.worker.record(|recorder| recorder.moved(&self.arrival, out.len() as u64, echo.len() as u64));
            if echo != payload {
                return Err(Failure::WrongContent);
            }
        }
        out.clear();
        websocket::write_close(&mut out, random as u32);
        // The session is over whatever becomes of the close.
        drop(io.write_all(&out).await);
        Ok(Outcome::Answered { status: 101, error: None })
    }

    /// A page: its HTML, then its assets over as many connections as a browser opens.
    async fn page(&self, begun: Instant, assets: u32, bytes: u64) -> Result<Outcome, Failure> {
        let mut first = self.connect().await?;
        let request = self.request(&self.worker.paths[self.arrival.class], "");
        let reply = self.within(first.exchange(&request, &mut |_| {})).await?;
        self.status.set(reply.status);
        self.count(&request, reply.body_bytes);
        if !(200..300).contains(&reply.status) {
            self.reached(begun);
            return Ok(Outcome::Answered { status: reply.status, error: reply.error });
        }
        let left = Cell::new(assets);
        let mut kept = reply.reusable.then_some(first);
        let lanes = (0..PAGE_CONNECTIONS.min(assets as usize)).map(|_| self.lane(kept.take(), &left, bytes));
        let outcomes = join_all(lanes.map(|lane| Box::pin(lane) as _).collect()).await;
        self.reached(begun);
        for outcome in outcomes {
            if let Some(failed) = outcome? {
                return Ok(failed);
            }
        }
        Ok(Outcome::Answered { status: self.status.get(), error: None })
    }

    /// One of a page's connections: takes assets as long as there are any. An answer that is not 2xx ends it.
    async fn lane(
        &self,
        mut connection: Option<Http1>,
        left: &Cell<u32>,
        bytes: u64,
    ) -> Result<Option<Outcome>, Failure> {
        let request = self.request(&Class::Get { bytes }.path(), "");
        while left.get() > 0 {
            left.set(left.get() - 1);
            let mut lane = match connection.take() {
                Some(kept) => kept,
                None => self.connect().await?,
            };
            let asked = Instant::now();
            let reply = self.within(lane.exchange(&request, &mut |_| {})).await?;
            self.count(&request, reply.body_bytes);
            self.worker.record(|recorder| recorder.message(&self.arrival, "asset", asked.elapsed()));
            if !(200..300).contains(&reply.status) {
                return Ok(Some(Outcome::Answered { status: reply.status, error: reply.error }));
            }
            connection = reply.reusable.then_some(lane);
        }
        Ok(None)
    }

    fn count(&self, request: &Request, down: u64) {
        self.worker.record(|recorder| recorder.moved(&self.arrival, request.bytes.len() as u64, down));
    }
}

/// The next message; pings on the way are answered.
pub(super) async fn next_message(
    io: &mut crate::transport::Transport,
    frames: &mut FrameReader,
) -> Result<Vec<u8>, Failure> {
    let mut buffer = [0; 4096];
    loop {
        match frames.next_event()? {
            Some(Event::Message(message)) => return Ok(message),
            Some(Event::Close) => return Err(Failure::ClosedEarly),
            Some(Event::Pong) => {}
            Some(Event::Ping(payload)) => {
                let mut pong = Vec::new();
                websocket::write_pong(&mut pong, &payload, 0x5a5a_5a5a);
                io.write_all(&pong).await.map_err(|error| Failure::of_stream(&error))?;
            }
            None => match io.read(&mut buffer).await {
                Ok(0) => return Err(Failure::Truncated),
                Ok(read) => frames.feed(&buffer[..read]),
                Err(error) => return Err(Failure::of_stream(&error)),
            },
        }
    }
}

type Boxed<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + 'a>>;

/// All of a few futures, on this task.
async fn join_all<T>(mut futures: Vec<Boxed<'_, T>>) -> Vec<T> {
    let mut outputs: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
}
