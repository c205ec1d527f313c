//! WebSockets that are opened and only held: what a proxy pays for tunnels nobody uses.

use super::Worker;
use crate::aim::Visitor;
use crate::failure::Failure;
use crate::http1::Request;
use crate::plan::{Class, Idle};
use crate::result::{ErrorCount, Hist, IdleResult};
use crate::transport::Transport;
use crate::websocket;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_local};

/// Handshakes under way at a time: beyond it the rate asked for is not reached, and the report shows it.
const HANDSHAKES_MAX: usize = 512;
/// So many are closed at once, then others have their turn: thousands of closes are a second in which nothing is sent.
const CLOSE_STEP: usize = 32;
const CLOSE_PAUSE: Duration = Duration::from_millis(1);
/// Handshakes under way at the phase's end may take so much longer.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
/// A cut one is opened again after this, and so is one whose opening again failed.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Goes through the phases and holds what each asks for until its end.
pub(super) async fn hold(worker: Rc<Worker>) {
    for phase in 0..worker.plan.phases.len() {
        let (begin, end) = {
            let timetable = worker.timetable.borrow();
            (timetable[phase].begin, timetable[phase].end)
        };
        worker.sleep_until(begin).await;
        if let Some(idle) = worker.plan.phases[phase].idle.clone()
            && !worker.stopped()
        {
            let result = hold_phase(&worker, &idle, phase, end).await;
            worker.idle.borrow_mut()[phase] = Some(result);
        }
        worker.sleep_until(end).await;
    }
}

#[derive(Default)]
struct Tally {
    open: Cell<u64>,
    lost: Cell<u64>,
    reopened: Cell<u64>,
    failed: Cell<u64>,
    under_way: Cell<u64>,
    connect: RefCell<Hist>,
    errors: RefCell<Vec<ErrorCount>>,
}

async fn hold_phase(worker: &Rc<Worker>, idle: &Idle, phase: usize, end: Instant) -> IdleResult {
    let count = worker.part.count;
    let planned = idle.count / u64::from(count)
        + u64::from(u64::from(worker.part.index) < idle.count % u64::from(count));
    let every = Duration::from_secs_f64(f64::from(count) / idle.rate);
    let tally = Rc::new(Tally::default());
    let handshakes = std::sync::Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut held: Vec<JoinHandle<()>> = Vec::new();
    let begun = Instant::now();
    let mut all_open = None;
    for n in 0..planned {
        // Far less than the end is away: how late it rings does not matter.
        worker.timers.until((begun + every.mul_f64(n as f64)).min(end)).await;
        if Instant::now() >= end || worker.stopped() {
            break;
        }
        let permit = handshakes.clone().acquire_owned().await.expect("never closed");
        let (worker, tally, reopen) = (worker.clone(), tally.clone(), idle.reopen);
        let handshakes = handshakes.clone();
        held.push(spawn_local(async move {
            let (mut permit, mut again) = (Some(permit), false);
            loop {
                let begun = Instant::now();
                tally.under_way.set(tally.under_way.get() + 1);
                let outcome = open(&worker).await;
                tally.under_way.set(tally.under_way.get() - 1);
                drop(permit.take());
                match outcome {
                    Err((code, source)) => tally.fail(&code, &source),
                    Ok(io) => {
                        tally.connect.borrow_mut().record_ns(begun.elapsed().as_nanos() as u64);
                        tally.reopened.set(tally.reopened.get() + u64::from(again));
                        tally.open.set(tally.open.get() + 1);
                        worker.idle_open.set(worker.idle_open.get() + 1);
                        until_cut(&io).await;
                        worker.idle_open.set(worker.idle_open.get() - 1);
                        tally.open.set(tally.open.get() - 1);
                        tally.lost.set(tally.lost.get() + 1);
                    }
                }
                if !reopen {
                    return;
                }
                again = true;
                tokio::time::sleep(REOPEN_PAUSE).await;
                permit = Some(handshakes.clone().acquire_owned().await.expect("never closed"));
            }
        }));
    }
    // Those under way are waited for, so that the rate is the rate of what was opened.
    let under_way = handshakes.acquire_many(HANDSHAKES_MAX as u32);
    if tokio::time::timeout_at(end.into(), under_way).await.is_ok() {
        all_open = Some((begun.elapsed(), tally.connect.borrow().count()));
    }
    while Instant::now() < end && !worker.stopped() {
        worker.open_idle(phase, tally.open.get());
        worker.sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
    }
    // One that was begun a moment ago is no failure.
    let latest = end + worker.plan.client.grace.0.min(HANDSHAKE_GRACE);
    while tally.under_way.get() > 0 && Instant::now() < latest && !worker.stopped() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (open, unfinished) = (tally.open.get(), tally.under_way.get());
    let (took, connects) = all_open.unwrap_or_else(|| (begun.elapsed(), tally.connect.borrow().count()));
    // They are closed from now on, and no longer held.
    worker.idle_open.set(worker.idle_open.get() - open);
    spawn_local(close(held));
    IdleResult {
        planned,
        open,
        failed: tally.failed.get(),
        unfinished,
        lost: tally.lost.get(),
        reopened: tally.reopened.get(),
        connects_per_s: connects as f64 / took.as_secs_f64(),
        connect: tally.connect.take(),
        errors: tally.errors.take(),
    }
}

async fn close(held: Vec<JoinHandle<()>>) {
    for step in held.chunks(CLOSE_STEP) {
        step.iter().for_each(JoinHandle::abort);
        tokio::time::sleep(CLOSE_PAUSE).await;
    }
}

impl Tally {
    fn fail(&self, code: &str, source: &str) {
        self.failed.set(self.failed.get() + 1);
        ErrorCount::count(&mut self.errors.borrow_mut(), code, source, 1);
    }
}

impl Worker {
    fn open_idle(&self, phase: usize, open: u64) {
        let mut idle = self.idle.borrow_mut();
        idle[phase].get_or_insert_default().open = open;
    }
}

async fn open(worker: &Worker) -> Result<Transport, (String, String)> {
    let named = |failure: Failure| (failure.code().to_owned(), failure.source().to_owned());
    let mut visitor = Visitor::default();
    let random = {
        let mut aim = worker.aim.borrow_mut();
        // A refused one holds nothing: it is drawn again.
        loop {
            aim.draw(&mut visitor);
            if !visitor.refused {
                break aim.random();
            }
        }
    };
    let mut connection = worker.connect(&visitor.host).await.map_err(named)?;
    let mut request = Request::default();
    let path = Class::WebSocket { messages: 1, bytes: 1, every: None }.path();
    visitor.write_head(&mut request.bytes, "GET", &path, None, &websocket::handshake_fields(random));
    let mut ignored = |_: &[u8]| {};
    let exchange = connection.exchange(&request, &mut ignored);
    let reply = tokio::time::timeout(worker.plan.client.timeout.0, exchange).await;
    let reply = reply.unwrap_or(Err(Failure::Timeout)).map_err(named)?;
    match (reply.status, reply.error) {
        (101, _) => Ok(connection.into_parts().0),
        (_, Some(error)) => Err((error.code, error.source)),
        (status, None) => Err((format!("HTTP {status}"), "answer".into())),
    }
}

/// Holds no buffer while nothing comes. Data (a ping, a greeting) is thrown away; the end is the end.
async fn until_cut(io: &Transport) {
    let mut buffer = [0; 64];
    loop {
        if io.tcp().readable().await.is_err() {
            return;
        }
        match io.tcp().try_read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
