//! One thread of the load generator: its part of the plan, on a runtime of its own, sharing nothing while it runs.
//!
//! Requests are pulled: a free connection takes the next arrival of the schedule when it is due, so a backlog costs no
//! memory and a request's intended time is never forgotten. [`pool`] holds kept connections (HTTP/1.1, [`http2`]),
//! [`sessions`] what lives on connections of its own, [`idle`] what is only held.

mod http2;
mod idle;
mod pool;
mod sessions;

use crate::aim::{Aim, Weighted};
use crate::alarm::{Alarm, Timers};
use crate::content::Content;
use crate::http1::{Scratch, scratch};
use crate::plan::{Class, Load, Plan, Share};
use crate::recorder::{Arrival, Interval, Recorder};
use crate::result::{ClassResult, Hist, IdleResult};
use crate::schedule::{Part, Schedule};
use crate::transport::{Connector, Place};
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
use std::task::Waker;
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
}

/// Every class of the plan once; what the result calls it.
pub fn classes(plan: &Plan) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    for (class, _) in plan.phases.iter().flat_map(|phase| &phase.mix) {
        if !classes.contains(class) {
            classes.push(class.clone());
        }
    }
    classes
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
    let classes = classes(&plan);
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
        pool: RefCell::new(Line::new(false)),
        sessions: RefCell::new(Line::new(true)),
        alarm: Alarm::new()?,
        timers: Timers::new()?,
        parked: RefCell::default(),
        slots: RefCell::default(),
        open: Cell::new(0),
        sessions_open: Cell::new(0),
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
    /// Arrivals for kept connections.
    pool: RefCell<Line>,
    /// Arrivals for sessions.
    sessions: RefCell<Line>,
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
    idle: RefCell<Vec<Option<IdleResult>>>,
    ending: Ending,
    scratch: Scratch,
    part: Share,
    stop: Arc<AtomicBool>,
}

/// When a phase is and what comes in it, by line.
struct Times {
    begin: Instant,
    end: Instant,
    /// Indices of classes, for the pool and for sessions.
    mixes: [Weighted<usize>; 2],
    /// The share of the phase's rate that is each line's.
    scales: [f64; 2],
}

/// The plan's arrivals of one line, phase by phase.
struct Line {
    sessions: bool,
    phase: usize,
    schedule: Option<Schedule>,
    /// The phase is over, and what was due in it waits because this thread is late: it is sent all the same.
    catching_up: bool,
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

/// What a line has next.
enum Next {
    Due(Arrival),
    At(Instant),
    Over,
}

/// A place for one request at a time.
#[derive(Default)]
struct Slot {
    waker: RefCell<Option<Waker>>,
    /// Handed over while parked.
    handed: Cell<Option<Arrival>>,
    parked: Cell<bool>,
    under_way: Cell<Option<UnderWay>>,
}

#[derive(Clone, Copy)]
struct UnderWay {
    arrival: Arrival,
    begun: Instant,
    /// What the class's times measure has come.
    timed: bool,
}

impl Line {
    fn new(sessions: bool) -> Self {
        Self { sessions, phase: 0, schedule: None, catching_up: false }
    }

    fn is_over(&self, phases: usize) -> bool {
        self.phase >= phases
    }
}

impl Worker {
    fn begin(&self, start: Instant) {
        let mut begin = start;
        let times = self.plan.phases.iter().map(|phase| {
            let end = begin + phase.length.0;
            let mix = |sessions: bool| {
                let of = phase.mix.iter().filter(|(class, _)| class.is_session() == sessions);
                let index =
                    |class| self.classes.iter().position(|c| c == class).expect("made from the mixes");
                Weighted::new(&of.map(|(class, weight)| (index(class), *weight)).collect::<Vec<_>>())
            };
            let mixes = [mix(false), mix(true)];
            let total = (mixes[0].total() + mixes[1].total()).max(f64::MIN_POSITIVE);
            let scales = [mixes[0].total() / total, mixes[1].total() / total];
            let times = Times { begin, end, mixes, scales };
            begin = end;
            times
        });
        *self.timetable.borrow_mut() = times.collect();
        self.alarm.set(start);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// The line's next arrival; one that is due is taken. `was_free`: who asks could have sent it when it was due.
    fn next(&self, line: &mut Line, was_free: bool, now: Instant) -> Next {
        let timetable = self.timetable.borrow();
        if timetable.is_empty() {
            // The start is not known yet; `begin` sets the alarm to it.
            return Next::At(now + Duration::from_secs(3600));
        }
        loop {
            let Some(times) = timetable.get(line.phase) else { return Next::Over };
            if now < times.begin {
                return if self.stopped() { Next::Over } else { Next::At(times.begin) };
            }
            let mix = &times.mixes[usize::from(line.sessions)];
            let phase = &self.plan.phases[line.phase];
            let schedule = line.schedule.get_or_insert_with(|| {
                let part = Part { index: self.part.index, count: self.part.count };
                let scale = times.scales[usize::from(line.sessions)];
                let seed = self.plan.client.seed ^ (line.phase as u64) << 40 ^ u64::from(part.index) << 20;
                let poisson = self.plan.client.poisson.then_some(seed ^ u64::from(line.sessions));
                Schedule::new(phase.load, phase.length.0, scale, part, poisson)
            });
            let arrival = |intended| Arrival {
                phase: line.phase,
                class: *mix.draw(&mut self.random.borrow_mut()),
                intended,
            };
            let stopped = self.stopped();
            if now >= times.end || stopped {
                let waiting = schedule.peek().filter(|at| times.begin + *at <= now);
                // That nobody was free was not the reason.
                line.catching_up |= was_free && waiting.is_some();
                match waiting {
                    Some(at) if line.catching_up && !stopped => {
                        schedule.advance();
                        return Next::Due(arrival(times.begin + at));
                    }
                    // Of a run that is broken off, what this thread would have sent in the next moment is no part.
                    _ if line.catching_up => {}
                    _ => self.give_up_backlog(schedule, times, &arrival, now),
                }
                let phase = if stopped { timetable.len() } else { line.phase + 1 };
                *line = Line { phase, ..Line::new(line.sessions) };
                continue;
            }
            if phase.load == Load::Closed && !mix.is_empty() {
                return Next::Due(arrival(now));
            }
            return match schedule.peek() {
                None => Next::At(times.end),
                Some(at) if times.begin + at <= now => {
                    schedule.advance();
                    Next::Due(arrival(times.begin + at))
                }
                Some(at) => Next::At(times.begin + at),
            };
        }
    }

    /// The phase is over: what should have been sent by now and was not, as no connection was free, is counted with its age.
    fn give_up_backlog(
        &self,
        schedule: &mut Schedule,
        times: &Times,
        arrival: &dyn Fn(Instant) -> Arrival,
        now: Instant,
    ) {
        while let Some(at) = schedule.peek().filter(|at| times.begin + *at <= now) {
            schedule.advance();
            self.record(|recorder| recorder.unsent(&arrival(times.begin + at), now));
        }
    }

    /// Waits for the slot's next arrival and since when it could have been sent; `None`: the run is over.
    async fn arrival(&self, slot: &Rc<Slot>) -> Option<(Arrival, Instant)> {
        let freed = Instant::now();
        let mut now = freed;
        std::future::poll_fn(|cx| {
            if let Some(arrival) = slot.handed.take() {
                return std::task::Poll::Ready(Some(arrival));
            }
            if slot.parked.get() {
                *slot.waker.borrow_mut() = Some(cx.waker().clone());
                return std::task::Poll::Pending;
            }
            match self.next(&mut self.pool.borrow_mut(), false, now) {
                Next::Due(arrival) => std::task::Poll::Ready(Some(arrival)),
                Next::Over => std::task::Poll::Ready(None),
                Next::At(due) => {
                    self.alarm.set(due);
                    *slot.waker.borrow_mut() = Some(cx.waker().clone());
                    slot.parked.set(true);
                    self.parked.borrow_mut().push_back(slot.clone());
                    now = Instant::now();
                    std::task::Poll::Pending
                }
            }
        })
        .await
        .map(|arrival| (arrival, freed.max(arrival.intended)))
    }

    /// Hands arrivals to free connections when they are due.
    async fn dispatch(self: Rc<Self>) {
        loop {
            loop {
                let Some(slot) = self.parked.borrow_mut().pop_front() else { break };
                match self.next(&mut self.pool.borrow_mut(), true, Instant::now()) {
                    Next::Due(arrival) => {
                        slot.handed.set(Some(arrival));
                        slot.wake();
                    }
                    Next::At(due) => {
                        self.parked.borrow_mut().push_front(slot);
                        self.alarm.set(due);
                        break;
                    }
                    Next::Over => slot.wake(),
                }
            }
            self.alarm.rung().await;
        }
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
            let mut at = begin;
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
                    planned: interval.sent + backlog,
                    interval,
                    backlog,
                    connections: self.open.get() + u64::from(self.sessions_open.get()),
                    cpu: cpu.saturating_sub(cpu_before),
                    wall: wall - wall_before,
                };
                drop(reports.send((thread, Report::Second(Box::new(second)))));
                (cpu_before, wall_before) = (cpu, wall);
                at = next;
            }
        }
    }

    /// Due in this phase and not sent, of both lines.
    fn backlog(&self, phase: usize, now: Instant) -> u64 {
        let timetable = self.timetable.borrow();
        let since = now.saturating_duration_since(timetable[phase].begin);
        let of = |line: &Line| match &line.schedule {
            Some(schedule) if line.phase == phase => schedule.backlog(since),
            _ => 0,
        };
        of(&self.pool.borrow()) + of(&self.sessions.borrow())
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
        let phases = self.plan.phases.len();
        let over = |line: &RefCell<Line>| line.borrow().is_over(phases);
        let busy = || {
            let under_way = self.slots.borrow().iter().any(|slot| slot.under_way.get().is_some());
            under_way || !over(&self.pool) || !over(&self.sessions)
        };
        while busy() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let now = Instant::now();
        for line in [&self.pool, &self.sessions] {
            line.borrow_mut().catching_up = false;
            self.close(line, now);
        }
    }

    /// Nothing of the line is sent any more, unless it is catching up.
    fn close(&self, line: &RefCell<Line>, now: Instant) {
        let mut line = line.borrow_mut();
        if !line.catching_up {
            let next = self.next(&mut line, false, now);
            debug_assert!(matches!(next, Next::Over), "the plan is over");
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
            if let Some(UnderWay { arrival, begun, timed }) = slot.under_way.get() {
                recorder.unfinished(&arrival, begun, timed, now);
            }
        }
        let (classes, lag) = recorder.finish();
        Done { classes, lag, idle: std::mem::take(&mut self.idle.borrow_mut()) }
    }
}

impl Slot {
    fn begin(&self, arrival: Arrival, begun: Instant) {
        self.under_way.set(Some(UnderWay { arrival, begun, timed: false }));
    }

    fn wake(&self) {
        self.parked.set(false);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
