//! Kept connections: one request at a time each, another host with every request.

use super::{Slot, Worker, http2};
use crate::aim::Visitor;
use crate::content::{Check, Content};
use crate::failure::Failure;
use crate::http1::{Http1, Reply, Request};
use crate::plan::Load;
use crate::recorder::{Arrival, Outcome};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

/// Starts them; each drops its `ready` when it has tried to connect.
pub(super) fn spawn(worker: &Rc<Worker>, connections: u32, ready: &mpsc::Sender<()>) -> Vec<JoinHandle<()>> {
    if worker.connector.place().http2 {
        return http2::spawn(worker, connections, ready);
    }
    let spawn = |_| spawn_local(Kept::new(worker.clone()).run(ready.clone()));
    (0..connections).map(spawn).collect()
}

/// One kept connection, opened again when it is lost.
struct Kept {
    worker: Rc<Worker>,
    slot: Rc<Slot>,
    connection: Option<Http1>,
    /// How long the connection took that was there before the first request, until that has it in its figures.
    took: Option<Duration>,
    visitor: Visitor,
    request: Request,
    /// The last request could not be sent for want of a connection.
    unreachable: bool,
    /// Of the answer under way.
    check: Check,
}

impl Kept {
    fn new(worker: Rc<Worker>) -> Self {
        let slot = worker.new_slot();
        let (visitor, request) = (Visitor::default(), Request::default());
        let check = Check::new(Content::Anything);
        Self { worker, slot, connection: None, took: None, visitor, request, unreachable: false, check }
    }

    async fn run(mut self, ready: mpsc::Sender<()>) {
        self.worker.aim.borrow_mut().draw(&mut self.visitor);
        let connecting = Instant::now();
        // Not there yet: the first request tries again and is charged with it.
        self.connection = self.worker.connect(&self.visitor.host).await.ok();
        self.took = self.connection.is_some().then(|| connecting.elapsed());
        self.note_open();
        drop(ready);
        while let Some((arrival, could)) = self.worker.arrival(&self.slot).await {
            self.serve(arrival, could).await;
            if std::mem::take(&mut self.unreachable) {
                self.worker.hold_off(&arrival).await;
            }
        }
    }

    fn note_open(&self) {
        let open = &self.worker.open;
        open.set(open.get() + u64::from(self.connection.is_some()));
    }

    /// One arrival, to its end. `could`: since when only this thread's lateness held it back.
    async fn serve(&mut self, arrival: Arrival, could: Instant) {
        let worker = self.worker.clone();
        worker.aim.borrow_mut().draw(&mut self.visitor);
        let class = &worker.classes[arrival.class];
        let path = if worker.plan.target.domain.is_none() && worker.paths[arrival.class] == "/" {
            &worker.connector.place().path
        } else {
            &worker.paths[arrival.class]
        };
        self.request.clear();
        self.visitor.write_class(&mut self.request.bytes, class, path);
        self.request.add_body(class.body_bytes().unwrap_or(0));
        let begun = Instant::now();
        let arrival = worker.leaving(arrival, begun);
        worker.record(|recorder| recorder.sent(&arrival, begun.saturating_duration_since(could)));
        self.slot.begin(arrival, begun);
        let (sent_at, outcome) = self.exchange(&arrival, begun).await;
        let ended_at = Instant::now();
        self.slot.under_way.set(None);
        let up = self.request.length();
        worker.record(|recorder| {
            let (outcome, first_byte) = match outcome {
                Ok(reply) => {
                    recorder.moved(&arrival, up, reply.body_bytes);
                    (self.check.outcome(reply.status, reply.error), reply.first_byte)
                }
                Err(failure) => (Outcome::Failed(failure), ended_at),
            };
            if recorder.ended(&arrival, outcome, self.visitor.refused, Some((sent_at, ended_at))) {
                recorder.extra(&arrival, "first_byte", first_byte.saturating_duration_since(sent_at));
            }
        });
    }

    /// Sends the request and takes the answer: on the kept connection, or on one of its own.
    async fn exchange(&mut self, arrival: &Arrival, begun: Instant) -> (Instant, Result<Reply, Failure>) {
        let worker = self.worker.clone();
        let deadline = begun + worker.plan.client.timeout.0;
        let kept = if self.visitor.fresh { None } else { self.connection.take() };
        let was_kept = kept.is_some();
        if was_kept {
            worker.open.set(worker.open.get() - 1);
            if let Some(took) = self.took.take() {
                worker.record(|recorder| recorder.extra(arrival, "connect", took));
            }
            let outcome = self.attempt(arrival, kept.expect("just seen"), deadline).await;
            let closed = matches!(outcome, Err(Failure::ClosedEarly | Failure::Reset));
            // Closed between two requests, as servers may (RFC 9112 9.3.1): what is idempotent goes again.
            if !(closed && worker.classes[arrival.class].is_idempotent()) {
                return (begun, outcome);
            }
            worker.record(|recorder| recorder.resent(arrival));
        }
        let connecting = Instant::now();
        match worker.connect(&self.visitor.host).await {
            Err(failure) => {
                self.unreachable = true;
                (begun, Err(failure))
            }
            Ok(connection) => {
                let connected = Instant::now();
                worker.record(|recorder| recorder.extra(arrival, "connect", connected - connecting));
                (connected, self.attempt(arrival, connection, deadline).await)
            }
        }
    }

    async fn attempt(
        &mut self,
        arrival: &Arrival,
        mut connection: Http1,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        self.check = Check::new(self.worker.contents[arrival.class]);
        let mut sink = |piece: &[u8]| self.check.see(piece);
        let exchange = connection.exchange(&self.request, &mut sink);
        let outcome = match tokio::time::timeout_at(deadline.into(), exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Timeout),
        };
        if outcome.as_ref().is_ok_and(|reply| reply.reusable) && !self.visitor.fresh {
            self.connection = Some(connection);
            self.note_open();
        }
        outcome
    }
}

impl Worker {
    /// An arrival that is being sent. In a closed loop it is due now: no plan wanted it earlier.
    pub(super) fn leaving(&self, arrival: Arrival, now: Instant) -> Arrival {
        match self.plan.phases[arrival.phase].load {
            Load::Closed => Arrival { intended: now, ..arrival },
            _ => arrival,
        }
    }

    /// A new HTTP/1.1 connection.
    pub(super) async fn connect(&self, host: &str) -> Result<Http1, Failure> {
        let within = self.plan.client.timeout.0.min(Duration::from_secs(10));
        let transport = self.connector.connect(host, within).await?;
        Ok(Http1::new(transport, self.scratch.clone()))
    }
}
