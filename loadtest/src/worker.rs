//! One thread of the load generator: its part of the plan, on a runtime of its own, sharing nothing while it runs.
//!
//! Requests are pulled: a free connection takes the next arrival of the schedule when it is due, so a backlog costs no
//! memory and a request's intended time is never forgotten. [`line`] says what is next, [`dispatch`] hands it out. [`pool`]
//! holds kept connections (HTTP/1.1, [`http2`]), [`sessions`] what lives on connections of its own, [`idle`] what is only held.

mod dispatch;
mod http2;
mod idle;
mod line;
mod pool;
mod sessions;

use crate::aim::Aim;
use crate::alarm::{Alarm, Timers};
use crate::content::Content;
use crate::http1::{Scratch, scratch};
use crate::plan::{Class, Load, Plan, Share};
use crate::recorder::{Arrival, Interval, Recorder};
use crate::result::{ClassResult, HAR_REQUEST, Hist, IdleResult};
use crate::transport::{Connector, Place};
use dispatch::{Arrivals, Slot, UnderWay};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// In a closed loop, after a connection could not be had.
const HOLD_OFF: Duration = Duration::from_millis(100);

/// What a thread is given.
pub struct Assignment {
    pub plan: Arc<Plan>,
    pub place: Place,
    /// Which thread of all threads of all load generators.
    pub part: Share,
    /// Connections of this thread.
    pub connections: u32,
    pub cpu: Option<usize>,
    /// Differs from run to run.
    pub run: u64,
    pub stop: Arc<AtomicBool>,
    pub reports: Sender<(u32, Report)>,
    /// When the first phase begins: comes when all threads are ready.
    pub start: oneshot::Receiver<Instant>,
    /// Which thread of this load generator, to sign reports with.
    pub thread: u32,
}

/// What a thread tells.
#[derive(Serialize, Deserialize)]
pub enum Report {
    /// Connections are open, or could not be.
    Ready,
    Second(Box<Second>),
    Done(Box<Done>),
    /// The thread could not work at all.
    Failed(String),
}

/// About once a second, and at each phase's end.
#[derive(Serialize, Deserialize)]
pub struct Second {
    pub phase: usize,
    /// Since the phase's begin, when the interval began.
    pub at: Duration,
    pub interval: Interval,
    pub planned: u64,
    pub backlog: u64,
    pub connections: u64,
    /// WebSockets held idle.
    pub idle: u64,
    /// CPU of the thread in the interval.
    pub cpu: Duration,
    /// How long the interval was.
    pub wall: Duration,
}

#[derive(Serialize, Deserialize)]
pub struct Done {
    /// By phase and class.
    pub classes: Vec<Vec<ClassResult>>,
    /// By phase.
    pub lag: Vec<Hist>,
    pub idle: Vec<Option<IdleResult>>,
    /// It was stopped before its part of the plan was over.
    pub cut: bool,
}

/// Does the thread's part. Returns when all of it is over.
pub fn run(assignment: Assignment) {
    let (thread, reports) = (assignment.thread, assignment.reports.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| {
        let local = LocalSet::new();
        let done = runtime.block_on(local.run_until(work(assignment)));
        // Sessions still open are dropped with the set: their connections close.
        done
    });
    let report = match outcome {
        Ok(done) => Report::Done(Box::new(done)),
        Err(error) => Report::Failed(error.to_string()),
    };
    // The receiver is gone only when the run was given up.
    drop(reports.send((thread, report)));
}

async fn work(assignment: Assignment) -> io::Result<Done> {
    let start = assignment.start;
    if let Some(cpu) = assignment.cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    let plan = assignment.plan;
    let sources = plan.client.sources.clone();
    let workload = &plan.workload;
    let aim = Aim::new(
        workload,
        &plan.target,
        &assignment.place.authority,
        plan.client.seed.wrapping_add(u64::from(assignment.part.index) << 32),
        assignment.part,
        assignment.run,
    );
    let classes = plan.classes();
    let worker = Rc::new(Worker {
        connector: Connector::new(assignment.place, sources),
        paths: classes.iter().map(Class::path).collect(),
        contents: classes.iter().map(|class| Content::of(class, &plan)).collect(),
        recorder: RefCell::new(Some(Recorder::new(plan.phases.len(), classes.len()))),
        random: RefCell::new(SmallRng::seed_from_u64(
            plan.client.seed ^ 0xa11 ^ u64::from(assignment.part.index),
        )),
        aim: RefCell::new(aim),
        timetable: RefCell::default(),
        pool: RefCell::default(),
        sessions: RefCell::default(),
        alarm: Alarm::new()?,
        timers: Timers::new()?,
        parked: RefCell::default(),
        slots: RefCell::default(),
        open: Cell::new(0),
        sessions_open: Cell::new(0),
        idle_open: Cell::new(0),
        idle: RefCell::new(vec![None; plan.phases.len()]),
        ending: Ending::default(),
        scratch: scratch(),
        part: assignment.part,
        stop: assignment.stop,
        classes,
        plan: plan.clone(),
    });
    let mut tasks = Vec::new();
    let (ready, mut is_ready) = tokio::sync::mpsc::channel::<()>(1);
    tasks.extend(pool::spawn(&worker, assignment.connections, &ready));
    drop(ready);
    // Each task drops its end when it has tried to connect; none sends anything.
    let _all_tried = is_ready.recv().await;
    drop(assignment.reports.send((assignment.thread, Report::Ready)));
    let Ok(start) = start.await else { return Err(io::Error::other("the run was given up")) };
    worker.begin(start);
    let waking = worker.clone();
    tasks.push(tokio::task::spawn_local(async move { waking.timers.run().await }));
    tasks.push(tokio::task::spawn_local(worker.clone().dispatch()));
    tasks.push(tokio::task::spawn_local(sessions::dispatch(worker.clone())));
    let holding = tokio::task::spawn_local(idle::hold(worker.clone()));
    worker.report_seconds(&assignment.reports, assignment.thread).await;
    worker.grace().await;
    // Its last figures are taken at the last phase's end, which is now; it looks at the clock twenty times a second.
    drop(tokio::time::timeout(Duration::from_secs(1), holding).await);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(worker.finish())
}

/// What the thread's tasks share.
struct Worker {
    plan: Arc<Plan>,
    classes: Vec<Class>,
    paths: Vec<String>,
    /// What each class's answer must hold.
    contents: Vec<Content>,
    connector: Connector,
    aim: RefCell<Aim>,
    random: RefCell<SmallRng>,
    recorder: RefCell<Option<Recorder>>,
    timetable: RefCell<Vec<Times>>,
    /// Arrivals for kept connections; `None`: the start is not known yet.
    pool: RefCell<Option<Arrivals>>,
    /// Arrivals for sessions.
    sessions: RefCell<Option<Arrivals>>,
    /// Of whoever hands arrivals to kept connections.
    alarm: Alarm,
    /// Of everybody else.
    timers: Timers,
    /// Free connections, the longest free first.
    parked: RefCell<VecDeque<Rc<Slot>>>,
    /// Everyone who may have a request under way.
    slots: RefCell<Vec<Rc<Slot>>>,
    /// Kept connections that are open.
    open: Cell<u64>,
    sessions_open: Cell<u32>,
    idle_open: Cell<u64>,
    idle: RefCell<Vec<Option<IdleResult>>>,
    ending: Ending,
    scratch: Scratch,
    part: Share,
    stop: Arc<AtomicBool>,
}

/// When a phase is.
struct Times {
    begin: Instant,
    end: Instant,
}

/// That the plan is over: sessions begin nothing more.
#[derive(Default)]
struct Ending {
    /// When what is missing then is not waited for any longer.
    patience: Cell<Option<Instant>>,
    told: tokio::sync::Notify,
}

impl Ending {
    /// Waits for it; until when there is patience. Cancel-safe.
    async fn begun(&self) -> Instant {
        loop {
            let told = self.told.notified();
            if let Some(patience) = self.patience.get() {
                return patience;
            }
            told.await;
        }
    }
}

impl Worker {
    fn begin(&self, start: Instant) {
        let mut end = start;
        let times = self.plan.phases.iter().map(|phase| {
            let begin = end;
            end += phase.length.0;
            Times { begin, end }
        });
        let timetable: Vec<Times> = times.collect();
        let begins: Vec<Instant> = timetable.iter().map(|times| times.begin).collect();
        *self.timetable.borrow_mut() = timetable;
        *self.pool.borrow_mut() = Some(self.arrivals(false, &begins));
        *self.sessions.borrow_mut() = Some(self.arrivals(true, &begins));
        self.alarm.set(start);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    fn record<R>(&self, f: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
        // After the end there is nothing to record into: what comes late was counted as unfinished.
        self.recorder.borrow_mut().as_mut().map(f)
    }

    fn new_slot(&self) -> Rc<Slot> {
        let slot = Rc::new(Slot::default());
        self.slots.borrow_mut().push(slot.clone());
        slot
    }

    /// Sends a report each second of each phase, until the last phase is over.
    async fn report_seconds(&self, reports: &Sender<(u32, Report)>, thread: u32) {
        let phases: Vec<(Instant, Instant)> =
            self.timetable.borrow().iter().map(|times| (times.begin, times.end)).collect();
        let Some(first) = phases.first() else { return };
        self.sleep_until(first.0).await;
        let (mut cpu_before, mut wall_before) = (thread_cpu(), Instant::now());
        for (phase, (begin, end)) in phases.into_iter().enumerate() {
            let (mut at, mut backlog_before) = (begin, 0);
            while at < end && !self.stopped() {
                // The last step takes a remainder shorter than half a second with it.
                let next =
                    if end - at < Duration::from_millis(1500) { end } else { at + Duration::from_secs(1) };
                self.sleep_until(next).await;
                let (cpu, wall) = (thread_cpu(), Instant::now());
                let interval = self.record(Recorder::take_interval).unwrap_or_default();
                let backlog = self.backlog(phase, wall);
                let second = Second {
                    phase,
                    at: at - begin,
                    // What was due before and is sent now was planned before.
                    planned: (interval.sent + backlog).saturating_sub(backlog_before),
                    interval,
                    backlog,
                    connections: self.open.get() + u64::from(self.sessions_open.get()),
                    idle: self.idle_open.get(),
                    cpu: cpu.saturating_sub(cpu_before),
                    wall: wall - wall_before,
                };
                drop(reports.send((thread, Report::Second(Box::new(second)))));
                (cpu_before, wall_before, backlog_before) = (cpu, wall, backlog);
                at = next;
            }
        }
    }

    fn lines(&self) -> [&RefCell<Option<Arrivals>>; 2] {
        [&self.pool, &self.sessions]
    }

    /// Due in this phase and not sent, of both lines.
    fn backlog(&self, phase: usize, now: Instant) -> u64 {
        let of = |arrivals: &Arrivals| arrivals.line.backlog(phase, now);
        self.lines().iter().map(|arrivals| arrivals.borrow().as_ref().map_or(0, of)).sum()
    }

    /// Waits, but no longer than to the operator's stop.
    async fn sleep_until(&self, due: Instant) {
        let step = Duration::from_millis(50);
        while !self.stopped() && Instant::now() < due {
            tokio::time::sleep_until((Instant::now() + step).min(due).into()).await;
        }
    }

    /// Ends the lines and lets what is under way come to its end.
    async fn grace(&self) {
        let now = Instant::now();
        // The backlog, even if no connection ever becomes free; where one is free, whoever hands arrivals out sees to it.
        if self.parked.borrow().is_empty() {
            self.close(&self.pool, now);
        }
        self.alarm.set(now);
        let most = if self.stopped() { Duration::from_secs(1) } else { Duration::MAX };
        let end = now + self.plan.client.grace.0.min(most);
        self.ending.patience.set(Some(end));
        self.ending.told.notify_waiters();
        let under_way = || self.slots.borrow().iter().any(|slot| slot.under_way.get().is_some());
        let open = |arrivals: &Arrivals| !arrivals.line.is_over();
        let busy = || {
            under_way() || self.lines().iter().any(|arrivals| arrivals.borrow().as_ref().is_some_and(open))
        };
        while busy() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let now = Instant::now();
        for arrivals in self.lines() {
            arrivals.borrow_mut().iter_mut().for_each(|arrivals| arrivals.line.give_up());
            self.close(arrivals, now);
        }
    }

    /// In a closed loop nothing else would keep from trying as fast as one can.
    async fn hold_off(&self, arrival: &Arrival) {
        if self.plan.phases[arrival.phase].load == Load::Closed {
            tokio::time::sleep(HOLD_OFF).await;
        }
    }

    fn finish(&self) -> Done {
        let now = Instant::now();
        let mut recorder = self.recorder.borrow_mut().take().expect("finished once");
        for slot in self.slots.borrow().iter() {
            let Some(UnderWay { arrival, begun, timed }) = slot.under_way.get() else { continue };
            let replay = slot.replay.borrow();
            // Had all gone well it would have no time either, as its end is beyond the run's; its age would be a short one
            // among whole ones.
            let cut = replay.as_ref().is_some_and(|replay| replay.is_cut());
            recorder.unfinished(&arrival, begun, timed || cut, now);
            let Class::Recording(name) = &self.classes[arrival.class] else { continue };
            let requests = self.plan.recording(name).map_or(&[][..], |recording| &recording.requests);
            for n in replay.iter().flat_map(|replay| replay.owed()) {
                let age = now.saturating_duration_since(begun + requests[n].offset);
                recorder.extra(&arrival, HAR_REQUEST, age);
            }
        }
        let (classes, lag) = recorder.finish();
        let cut = |arrivals: &Arrivals| arrivals.line.was_cut();
        let cut = self.lines().iter().any(|arrivals| arrivals.borrow().as_ref().is_some_and(cut));
        Done { classes, lag, idle: std::mem::take(&mut self.idle.borrow_mut()), cut }
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
