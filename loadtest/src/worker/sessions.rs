//! What lives on connections of its own: event streams, WebSockets, page loads, recordings. Each session is a task.

pub(super) mod replay;

use super::dispatch::Next;
use super::line::Asker;
use super::{Ending, Slot, UnderWay, Worker};
use crate::aim::Visitor;
use crate::content::{Check, Content};
use crate::failure::Failure;
use crate::http1::{Http1, Request};
use crate::plan::{Class, PAGE_CONNECTIONS};
use crate::quantity::Span;
use crate::recorder::{Arrival, Outcome};
use crate::transport::Transport;
use crate::websocket::{self, Event, FrameReader};
use replay::Replay;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// Starts sessions when they are due, up to the bound; beyond it they count as unsent.
pub(super) async fn dispatch(worker: Rc<Worker>) {
    let most = (worker.plan.client.sessions_max / worker.part.count).max(1);
    let mut free: Vec<Rc<Slot>> = Vec::new();
    let ended: Rc<std::cell::RefCell<Vec<Rc<Slot>>>> = Rc::default();
    loop {
        let now = Instant::now();
        // A session needs nobody to be free.
        match worker.next(&worker.sessions, Asker::WasFree, now) {
            Next::Over => return,
            Next::At(due) => worker.timers.until(due.min(now + Duration::from_millis(100))).await,
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
                slot.begin(arrival, now);
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
            Class::WebSocket { messages, bytes, every } => {
                self.websocket(begun, *messages, *bytes as usize, *every).await
            }
            Class::Page { assets, bytes } => self.page(*assets, *bytes).await,
            Class::Recording(name) => {
                let recording = self.worker.plan.recording(name).expect("the plan was checked");
                Replay::new(self, &recording.requests, begun).run().await
            }
            _ => unreachable!("only sessions are dispatched here"),
        };
        let outcome = result.unwrap_or_else(Outcome::Failed);
        let timed = self.slot.under_way.get().is_some_and(|under_way| under_way.timed);
        let took = (!timed).then(|| (begun, Instant::now()));
        self.worker.record(|recorder| recorder.ended(&self.arrival, outcome, self.visitor.refused, took));
    }

    /// What the class's times measure has come, and the session goes on.
    fn reached(&self, begun: Instant) {
        self.slot.under_way.set(Some(UnderWay { arrival: self.arrival, begun, timed: true }));
        self.worker.record(|recorder| recorder.timed(&self.arrival, begun, Instant::now()));
    }

    /// The run is over, and nothing was missing up to now.
    fn shortened(&self, status: u16) -> Outcome {
        self.worker.record(|recorder| recorder.shortened(&self.arrival));
        Outcome::Answered { status, error: None }
    }

    /// Its time was to be that of its whole, of which the run has only a part.
    fn has_no_time(&self, begun: Instant) {
        self.slot.under_way.set(Some(UnderWay { arrival: self.arrival, begun, timed: true }));
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

    /// An event stream to its end, or the run's. The time between two events is `event_gap`.
    async fn events(&self, begun: Instant) -> Result<Outcome, Failure> {
        let mut connection = self.connect().await?;
        let request = self.request(&self.worker.paths[self.arrival.class], "accept: text/event-stream\r\n");
        let Class::Events { count, every } = &self.worker.classes[self.arrival.class] else {
            unreachable!("the caller looked")
        };
        let heard = Heard::default();
        let mut newlines = 0u8;
        let mut sink = |data: &[u8]| {
            heard.bytes.set(heard.bytes.get() + data.len() as u64);
            for byte in data {
                match byte {
                    b'\n' => newlines += 1,
                    b'\r' => continue,
                    _ => newlines = 0,
                }
                if newlines == 2 {
                    let now = Instant::now();
                    match heard.event(now) {
                        None => self.reached(begun),
                        Some(before) => {
                            self.worker.record(|r| r.message(&self.arrival, "event_gap", now - before));
                        }
                    }
                    newlines = 0;
                }
            }
        };
        let most = self.timeout() + every.0 * *count;
        let exchange = tokio::time::timeout(most, connection.exchange(&request, &mut sink));
        let reply = tokio::select! {
            biased;
            reply = exchange => Some(reply.unwrap_or(Err(Failure::Timeout))?),
            () = heard.may_end(&self.worker.ending, every.0) => None,
        };
        self.count(&request, heard.bytes.get());
        match reply {
            None => Ok(self.shortened(200)),
            Some(reply) if reply.status == 200 && heard.events.get() != *count => Err(Failure::WrongContent),
            Some(reply) => Ok(Outcome::Answered { status: reply.status, error: reply.error }),
        }
    }

    /// A WebSocket with its echoes (`ws_echo`). Without `every` each message follows the echo of the last one and is timed
    /// from its sending; with it they are sent as planned, whatever has come back, and timed from then.
    async fn websocket(
        &self,
        begun: Instant,
        messages: u32,
        bytes: usize,
        every: Option<Span>,
    ) -> Result<Outcome, Failure> {
        let random = self.worker.aim.borrow_mut().random();
        let mut connection = self.connect().await?;
        let fields = websocket::handshake_fields(random);
        let request = self.request(&self.worker.paths[self.arrival.class], &fields);
        let reply = self.within(connection.exchange(&request, &mut |_| {})).await?;
        if reply.status != 101 {
            // A 2xx is an answer, but not to this question.
            return match reply.status {
                200..=299 => Err(Failure::WrongContent),
                status => Ok(Outcome::Answered { status, error: reply.error }),
            };
        }
        self.reached(begun);
        self.worker.record(|recorder| recorder.extra(&self.arrival, "ws_connect", begun.elapsed()));
        let (mut io, leftover) = connection.into_parts();
        let mut frames = FrameReader::default();
        frames.feed(&leftover);
        let payload: Vec<u8> = (0..bytes).map(|n| (random as usize).wrapping_add(n) as u8).collect();
        let echoed = match every {
            None => self.echo_by_echo(&mut io, &mut frames, messages, &payload).await?,
            Some(every) => {
                let echoes = Echoes::new(self, &payload, messages, every.0);
                echoes.run(&mut io, &mut frames).await?
            }
        };
        let mut close = Vec::new();
        websocket::write_close(&mut close, random as u32);
        // The session is over whatever becomes of the close.
        drop(io.write_all(&close).await);
        match echoed < messages {
            true => Ok(self.shortened(101)),
            false => Ok(Outcome::Answered { status: 101, error: None }),
        }
    }

    /// How many there were until the run was over.
    async fn echo_by_echo(
        &self,
        io: &mut Transport,
        frames: &mut FrameReader,
        messages: u32,
        payload: &[u8],
    ) -> Result<u32, Failure> {
        let mut out = Vec::with_capacity(payload.len() + 14);
        for n in 0..messages {
            if self.worker.ending.patience.get().is_some() {
                return Ok(n);
            }
            out.clear();
            websocket::write_message(&mut out, payload, mask(n));
            let sent_at = Instant::now();
            self.within(async {
                io.write_all(&out).await.map_err(|error| Failure::of_stream(&error))?;
                io.flush().await.map_err(|error| Failure::of_stream(&error))
            })
            .await?;
            let echo = self.within(next_message(io, frames)).await?;
            self.echoed(&echo, payload, out.len(), sent_at)?;
        }
        Ok(messages)
    }

    fn echoed(&self, echo: &[u8], payload: &[u8], sent: usize, since: Instant) -> Result<(), Failure> {
        self.worker.record(|recorder| {
            recorder.message(&self.arrival, "ws_echo", since.elapsed());
            recorder.moved(&self.arrival, sent as u64, echo.len() as u64);
        });
        if echo == payload { Ok(()) } else { Err(Failure::WrongContent) }
    }

    /// A page: its HTML, then its assets over as many connections as a browser opens.
    async fn page(&self, assets: u32, bytes: u64) -> Result<Outcome, Failure> {
        let mut first = self.connect().await?;
        let request = self.request(&self.worker.paths[self.arrival.class], "");
        let mut check = Check::new(self.worker.contents[self.arrival.class]);
        let reply = self.within(first.exchange(&request, &mut |piece| check.see(piece))).await?;
        self.status.set(reply.status);
        self.count(&request, reply.body_bytes);
        let outcome = check.outcome(reply.status, reply.error);
        if !matches!(outcome, Outcome::Answered { status: 200..=299, .. }) {
            return Ok(outcome);
        }
        let left = Cell::new(assets);
        let mut kept = reply.reusable.then_some(first);
        let lanes = (0..PAGE_CONNECTIONS.min(assets as usize)).map(|_| self.lane(kept.take(), &left, bytes));
        let outcomes = join_all(lanes.map(|lane| Box::pin(lane) as _).collect()).await;
        for outcome in outcomes {
            if let Some(failed) = outcome? {
                return Ok(failed);
            }
        }
        Ok(Outcome::Answered { status: self.status.get(), error: None })
    }

    /// One of a page's connections: takes assets as long as there are any. An answer that is not what was asked for ends it.
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
            let mut check = Check::new(Content::Length(bytes));
            let reply = self.within(lane.exchange(&request, &mut |piece| check.see(piece))).await?;
            self.count(&request, reply.body_bytes);
            self.worker.record(|recorder| recorder.message(&self.arrival, "asset", asked.elapsed()));
            let outcome = check.outcome(reply.status, reply.error);
            if !matches!(outcome, Outcome::Answered { status: 200..=299, .. }) {
                return Ok(Some(outcome));
            }
            connection = reply.reusable.then_some(lane);
        }
        Ok(None)
    }

    fn count(&self, request: &Request, down: u64) {
        self.worker.record(|recorder| recorder.moved(&self.arrival, request.length(), down));
    }
}

/// What came of an event stream.
#[derive(Default)]
struct Heard {
    events: Cell<u32>,
    last: Cell<Option<Instant>>,
    bytes: Cell<u64>,
    one_more: Notify,
}

impl Heard {
    /// When the one before came.
    fn event(&self, now: Instant) -> Option<Instant> {
        self.events.set(self.events.get() + 1);
        self.one_more.notify_one();
        self.last.replace(Some(now))
    }

    /// The run is over, and the next event has come since or will not be due while there is patience. One that is due and
    /// does not come is missing.
    async fn may_end(&self, ending: &Ending, every: Duration) {
        let patience = ending.begun().await;
        let so_far = self.events.get();
        if self.last.get().is_some_and(|last| last + every > patience) {
            return;
        }
        while self.events.get() == so_far {
            self.one_more.notified().await;
        }
    }
}

/// The echoes of a WebSocket whose messages are sent as planned: an open loop.
struct Echoes<'a> {
    session: &'a Session<'a>,
    payload: &'a [u8],
    messages: u32,
    every: Duration,
    begun: Instant,
    sent: Cell<u32>,
    /// Of each message as it is sent.
    frame_bytes: Cell<usize>,
    /// Nothing more is sent.
    all_sent: Cell<bool>,
    /// What the writing side hears of: pings to be answered.
    pongs: RefCell<Vec<u8>>,
    pinged: Notify,
}

impl<'a> Echoes<'a> {
    fn new(session: &'a Session<'a>, payload: &'a [u8], messages: u32, every: Duration) -> Self {
        Self {
            session,
            payload,
            messages,
            every,
            begun: Instant::now(),
            sent: Cell::new(0),
            frame_bytes: Cell::new(0),
            all_sent: Cell::new(false),
            pongs: RefCell::default(),
            pinged: Notify::new(),
        }
    }

    fn planned(&self, n: u32) -> Instant {
        self.begun + self.every * n
    }

    /// How many there were until the run was over.
    async fn run(&self, io: &mut Transport, frames: &mut FrameReader) -> Result<u32, Failure> {
        let (mut read, mut write) = tokio::io::split(io);
        let reading = self.read(&mut read, frames);
        tokio::pin!(reading);
        tokio::select! {
            echoed = &mut reading => echoed,
            sent = self.write(&mut write) => {
                sent?;
                reading.await
            }
        }
    }

    /// Sends all messages, each when it is planned.
    async fn write(&self, io: &mut (impl AsyncWrite + Unpin)) -> Result<(), Failure> {
        let (ending, timers) = (&self.session.worker.ending, &self.session.worker.timers);
        let mut out = Vec::with_capacity(self.payload.len() + 14);
        // Since when only this thread's lateness keeps the next message back: before, the other side did.
        let mut could = self.begun;
        loop {
            let n = self.sent.get();
            let is_last = n == self.messages || ending.patience.get().is_some();
            self.all_sent.set(is_last);
            out.clear();
            tokio::select! {
                biased;
                () = self.pinged.notified() => out.append(&mut self.pongs.borrow_mut()),
                () = timers.until(self.planned(n)), if !is_last => {
                    let lag = self.planned(n).max(could).elapsed();
                    self.session.worker.record(|recorder| recorder.late(&self.session.arrival, lag));
                    websocket::write_message(&mut out, self.payload, mask(n));
                    self.frame_bytes.set(out.len());
                    self.sent.set(n + 1);
                }
                _ = ending.begun(), if !is_last => continue,
            }
            let written = async {
                io.write_all(&out).await?;
                io.flush().await
            };
            written.await.map_err(|error| Failure::of_stream(&error))?;
            could = Instant::now();
        }
    }

    /// Takes every echo. The one that is due may take as long as any answer.
    async fn read(
        &self,
        io: &mut (impl AsyncRead + Unpin),
        frames: &mut FrameReader,
    ) -> Result<u32, Failure> {
        let timeout = self.session.timeout();
        for n in 0..self.messages {
            let by = self.planned(n) + timeout;
            let echo = loop {
                if self.all_sent.get() && self.sent.get() == n {
                    return Ok(n);
                }
                let event = tokio::select! {
                    biased;
                    event = next_event(io, frames) => event?,
                    () = tokio::time::sleep_until(by.into()) => return Err(Failure::Timeout),
                    // The writing side says then that no more comes.
                    _ = self.session.worker.ending.begun(), if self.sent.get() == n => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                };
                match event {
                    Event::Message(message) => break message,
                    Event::Close => return Err(Failure::ClosedEarly),
                    Event::Pong => {}
                    Event::Ping(payload) => {
                        websocket::write_pong(&mut self.pongs.borrow_mut(), &payload, mask(n));
                        self.pinged.notify_one();
                    }
                }
            };
            if n >= self.sent.get() {
                return Err(Failure::WrongContent);
            }
            self.session.echoed(&echo, self.payload, self.frame_bytes.get(), self.planned(n))?;
        }
        Ok(self.messages)
    }
}

fn mask(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b9) ^ 0x5a5a_5a5a
}

/// The next message; pings on the way are answered.
pub(super) async fn next_message(io: &mut Transport, frames: &mut FrameReader) -> Result<Vec<u8>, Failure> {
    loop {
        match next_event(io, frames).await? {
            Event::Message(message) => return Ok(message),
            Event::Close => return Err(Failure::ClosedEarly),
            Event::Pong => {}
            Event::Ping(payload) => {
                let mut pong = Vec::new();
                websocket::write_pong(&mut pong, &payload, mask(0));
                io.write_all(&pong).await.map_err(|error| Failure::of_stream(&error))?;
            }
        }
    }
}

/// Cancel-safe: what was read is in `frames`.
async fn next_event(io: &mut (impl AsyncRead + Unpin), frames: &mut FrameReader) -> Result<Event, Failure> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(event) = frames.next_event()? {
            return Ok(event);
        }
        match io.read(&mut buffer).await {
            Ok(0) => return Err(Failure::Truncated),
            Ok(read) => frames.feed(&buffer[..read]),
            Err(error) => return Err(Failure::of_stream(&error)),
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
