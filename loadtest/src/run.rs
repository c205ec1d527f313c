//! Runs a plan: starts the threads, listens to them, watches proxy and clock, and puts the result together.

mod tally;

use crate::agent::Remote;
use crate::calls::{CallCounter, Calls};
use crate::churn::Changes;
use crate::files;
use crate::host::{self, Meter, ProxySource, Usage};
use crate::plan::{PAGE_CONNECTIONS, Plan, Share};
use crate::result::{CallUse, ProxyUse, Reason, RunResult, ServerCounters, ServerSample, Validity};
use crate::scrape::{self, Scraper};
use crate::transport::Place;
use crate::worker::{self, Assignment, Report};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use tally::Tally;
use tokio::sync::oneshot;

pub use tally::Moment;

/// From "all are ready" to the first request: threads must have got the message by then.
const HEADSTART: Duration = Duration::from_millis(50);
/// Connecting may take as long.
const READY_MAX: Duration = Duration::from_secs(30);

/// Code of the reason that a load generator was lost.
pub const LOST: &str = "client_lost";

/// What to look at besides the load itself.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    pub proxy: Option<ProxySource>,
    /// Its system calls as well as its CPU.
    pub count_calls: bool,
    pub metrics_url: Option<String>,
}

/// Threads that report, here or on other hosts.
pub trait Crew {
    /// How many report.
    fn threads(&self) -> u32;
    /// Starts the first phase so long from now.
    fn start(&mut self, after: Duration) -> Result<(), String>;
    /// Ends everything early.
    fn stop(&mut self);
    fn hosts(&self) -> Vec<crate::result::ClientHost>;
}

/// Runs the plan here. `stop` ends it early with what there is; `watch` is told each second.
pub fn run(
    plan: &Arc<Plan>,
    observation: &Observation,
    stop: &Arc<AtomicBool>,
    watch: &mut dyn FnMut(&Moment<'_>),
) -> Result<RunResult, String> {
    let (sender, reports) = channel();
    let mut crew = Local::spawn(plan, Share::WHOLE, sender)?;
    conduct(plan, &mut crew, &reports, observation, stop, watch)
}

/// Load generators on other hosts and the key they know.
#[derive(Clone)]
pub struct Agents {
    /// `host:port`
    pub names: Vec<String>,
    pub key: String,
}

/// As [`run`], with the load made by agents. What is watched is watched from here.
pub fn run_on(
    agents: &Agents,
    plan: &Arc<Plan>,
    observation: &Observation,
    stop: &Arc<AtomicBool>,
    watch: &mut dyn FnMut(&Moment<'_>),
) -> Result<RunResult, String> {
    plan.check()?;
    check_connections(plan, agents.names.len() as u32)?;
    let (sender, reports) = channel();
    let mut crew = Remote::connect(&agents.names, &agents.key, plan, &sender)?;
    drop(sender);
    conduct(plan, &mut crew, &reports, observation, stop, watch)
}

/// Conducts a crew through a plan.
pub fn conduct(
    plan: &Arc<Plan>,
    crew: &mut dyn Crew,
    reports: &Receiver<(u32, Report)>,
    observation: &Observation,
    stop: &Arc<AtomicBool>,
    watch: &mut dyn FnMut(&Moment<'_>),
) -> Result<RunResult, String> {
    let outcome = Conductor { plan, crew, reports, stop }.conduct(observation, watch);
    if outcome.is_err() {
        crew.stop();
    }
    outcome
}

struct Conductor<'a> {
    plan: &'a Arc<Plan>,
    crew: &'a mut dyn Crew,
    reports: &'a Receiver<(u32, Report)>,
    stop: &'a Arc<AtomicBool>,
}

impl Conductor<'_> {
    fn conduct(
        &mut self,
        observation: &Observation,
        watch: &mut dyn FnMut(&Moment<'_>),
    ) -> Result<RunResult, String> {
        let scraper = observation.metrics_url.as_deref().map(Scraper::new).transpose()?;
        let proxy = observation.proxy.clone();
        let mut proxy = proxy.map(|source| Watched::new(source, observation.count_calls)).transpose()?;
        let threads = self.crew.threads();
        self.await_ready(threads)?;
        let started_at = SystemTime::now();
        let scraping = scraper.map(Scraping::begin).transpose()?;
        let start = Instant::now() + HEADSTART;
        self.crew.start(HEADSTART)?;
        let mut tally = Tally::new(self.plan, threads);
        let mut ticks = ticks(self.plan).peekable();
        let churn = Changes::spawn(self.plan, start, self.stop);
        let mut told_to_stop = false;
        let mut lost = Lost::default();
        while !tally.is_complete() {
            let ending = self.stop.load(Relaxed) || lost.threads > 0;
            if ending && !told_to_stop {
                told_to_stop = true;
                self.crew.stop();
            }
            let wait = ticks.peek().map_or(Duration::from_millis(100), |tick| {
                (start + tick.at).saturating_duration_since(Instant::now()).min(Duration::from_millis(100))
            });
            match self.reports.recv_timeout(wait) {
                Ok((_, Report::Failed(why))) => {
                    tally.thread_lost();
                    lost.add(why);
                    // Those to come would be made under another load.
                    churn.end();
                }
                Ok((thread, report)) => tally.take(thread, report)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("a thread ended without its results".into());
                }
            }
            while ticks.peek().is_some_and(|tick| Instant::now() >= start + tick.at) {
                let tick = ticks.next().expect("just seen");
                if let Some(proxy) = &mut proxy {
                    proxy.tick(&tick, &mut tally);
                }
                for sample in scraping.iter().flat_map(|scraping| scraping.samples.try_iter()) {
                    tally.server(sample);
                }
                watch(&tally.moment(start.elapsed()));
            }
        }
        if lost.threads == threads {
            return Err(lost.causes.join("\n"));
        }
        let server = scraping.and_then(Scraping::finish);
        let churn = churn.finish();
        let (proxy, refused) =
            proxy.map_or_else(Default::default, |watched| (watched.phases, watched.calls_refused));
        let mut result = tally.finish(self.plan, self.crew.hosts(), started_at, server, proxy, churn);
        let refused = refused.map(|message| Reason { code: "calls".into(), message, fatal: false });
        result.validity.reasons.extend(refused);
        result.validity.reasons.extend(result.server.as_ref().and_then(scrape::note));
        result.validity = Validity::of([lost.reasons(), result.validity.reasons].concat());
        Ok(result)
    }

    fn await_ready(&mut self, threads: u32) -> Result<(), String> {
        let deadline = Instant::now() + READY_MAX;
        let mut ready = 0;
        while ready < threads {
            if self.stop.load(Relaxed) {
                return Err("stopped before the first request".into());
            }
            match self.reports.recv_timeout(Duration::from_millis(100)) {
                Ok((_, Report::Ready)) => ready += 1,
                Ok((_, Report::Failed(error))) => return Err(error),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err("the load generator's threads do not get ready".into()),
            }
        }
        Ok(())
    }
}

/// Threads that ended without their results after the load had begun. The rest is stopped then: it is no longer the load
/// that was asked for.
#[derive(Default)]
struct Lost {
    threads: u32,
    /// Each once: an agent that is gone takes all its threads with it.
    causes: Vec<String>,
}

impl Lost {
    fn add(&mut self, why: String) {
        self.threads += 1;
        if !self.causes.contains(&why) {
            self.causes.push(why);
        }
    }

    fn reasons(self) -> Vec<Reason> {
        let reason = |why| Reason {
            code: LOST.into(),
            message: format!(
                "{why}: lost during the run, which was ended; its requests are in the figures over time, not in the totals"
            ),
            fatal: true,
        };
        self.causes.into_iter().map(reason).collect()
    }
}

/// When the proxy is looked at: at the beginning of each phase, each second, at the end.
struct Tick {
    at: Duration,
    phase: usize,
    /// Since the phase's begin; `None`: the phase begins.
    second: Option<u32>,
    /// In the phase's first tenth.
    early: bool,
}

/// Made as they are needed: a load of days has many.
fn ticks(plan: &Plan) -> impl Iterator<Item = Tick> {
    let begins = plan.phases.iter().scan(Duration::ZERO, |end, planned| {
        let begin = *end;
        *end += planned.length.0;
        Some((begin, planned.length.0))
    });
    begins.enumerate().flat_map(|(phase, (begin, length))| {
        let whole = (length.as_secs_f64().ceil() as u32).max(1);
        let seconds = (0..whole).map(move |second| {
            let at = begin + length.min(Duration::from_secs(u64::from(second) + 1));
            Tick { at, phase, second: Some(second), early: second < whole / 10 }
        });
        std::iter::once(Tick { at: begin, phase, second: None, early: true }).chain(seconds)
    })
}

/// The proxy's CPU and calls, phase by phase.
struct Watched {
    meter: Meter,
    calls: Option<CallCounter>,
    /// Why the calls that were asked for are not counted.
    calls_refused: Option<String>,
    last: Option<(Instant, Usage, Option<Calls>)>,
    begin: Usage,
    calls_begin: Calls,
    phases: Vec<Option<ProxyUse>>,
}

impl Watched {
    fn new(source: ProxySource, count_calls: bool) -> Result<Self, String> {
        let mut meter = Meter::new(source);
        meter.read().map_err(|error| format!("{}: {error}", meter.source()))?;
        // The rest of the run is worth having without them.
        let (calls, calls_refused) = match count_calls.then(|| CallCounter::new(meter.source())) {
            Some(Ok(calls)) => (Some(calls), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let (begin, calls_begin) = Default::default();
        Ok(Self { meter, calls, calls_refused, last: None, begin, calls_begin, phases: Vec::new() })
    }

    fn tick(&mut self, tick: &Tick, tally: &mut Tally<'_>) {
        // A proxy that is restarted is away for a while; its CPU until then stays counted.
        let Ok(usage) = self.meter.read() else { return tally.proxy_calls(None) };
        let calls = self.calls();
        let now = Instant::now();
        let Some(second) = tick.second else {
            self.begin = usage;
            self.calls_begin = calls.unwrap_or_default();
            self.last = Some((now, usage, calls));
            return;
        };
        if let Some((before, last, last_calls)) = self.last {
            let percent = share(usage.cpu.saturating_sub(last.cpu), now - before) * 100.0;
            tally.proxy_cpu(tick.phase, second, percent);
            tally.proxy_calls(
                calls.zip(last_calls).map(|(calls, last)| calls.since(last).per_second(now - before)),
            );
        }
        self.last = Some((now, usage, calls));
        self.phases.resize(self.phases.len().max(tick.phase + 1), None);
        let phase = self.phases[tick.phase].get_or_insert_default();
        phase.source = self.meter.source().to_string();
        phase.cpu_s = usage.cpu.saturating_sub(self.begin.cpu).as_secs_f64();
        phase.memory_max_bytes = phase.memory_max_bytes.max(usage.memory_bytes);
        phase.memory_end_bytes = usage.memory_bytes;
        phase.calls = calls.map(|calls| calls.since(self.calls_begin)).map(|calls| CallUse {
            system_calls: calls.system_calls,
            ring_enters: calls.ring_enters,
            ..CallUse::default()
        });
        if tick.early || phase.memory_early_bytes == 0 {
            phase.memory_early_bytes = usage.memory_bytes;
        }
    }

    /// So far, unless they are not counted or not any more.
    fn calls(&mut self) -> Option<Calls> {
        match self.calls.as_mut()?.read() {
            Ok(calls) => Some(calls),
            Err(error) => {
                self.calls = None;
                self.calls_refused = Some(format!("system calls are not counted any more: {error}"));
                None
            }
        }
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

/// The metrics page, scraped on a thread of its own: before the load, each second, after it. Dropping this ends it, too.
struct Scraping {
    samples: Receiver<ServerSample>,
    end: Sender<()>,
    thread: JoinHandle<Option<ServerCounters>>,
}

impl Scraping {
    /// Returns when the first page has been read, or could not be.
    fn begin(mut scraper: Scraper) -> Result<Self, String> {
        let (sender, samples) = channel();
        let (end, ended) = channel();
        let (first, first_read) = channel::<()>();
        let scrape = move || {
            scraper.begin();
            drop(first);
            let begun = Instant::now();
            let mut next = begun + Duration::from_secs(1);
            loop {
                match ended.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(()) => return Some(scraper.end()),
                    // The run was given up.
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                next += Duration::from_secs(1);
                if let Some(sample) = scraper.sample(begun.elapsed()) {
                    // Nobody may be listening any more.
                    drop(sender.send(sample.clone()));
                }
            }
        };
        let thread = thread::Builder::new().name("scrape".into()).spawn(scrape);
        let thread = thread.map_err(|error| format!("thread: {error}"))?;
        // Nothing is sent: the thread drops its end.
        let _ = first_read.recv_timeout(Duration::from_secs(4));
        Ok(Self { samples, end, thread })
    }

    /// Reads the page once more and gives everything out.
    fn finish(self) -> Option<ServerCounters> {
        // A thread that is gone has no counters, as its handle says.
        let _ = self.end.send(());
        self.thread.join().ok()?
    }
}

/// Threads of this process.
pub struct Local {
    starts: Vec<oneshot::Sender<Instant>>,
    stop: Arc<AtomicBool>,
    threads: u32,
    handles: Vec<JoinHandle<()>>,
}

impl Local {
    /// Starts the threads: part `share` of all load generators. They connect and report that they are ready.
    pub fn spawn(plan: &Arc<Plan>, share: Share, reports: Sender<(u32, Report)>) -> Result<Self, String> {
        plan.check()?;
        check_open_files(plan, share)?;
        check_sources(&plan.client.sources)?;
        check_cpus("--cpus", &plan.client.cpus)?;
        check_connections(plan, share.count)?;
        let place = Place::of(&plan.target)?;
        let client = &plan.client;
        // As many on each load generator, so that each thread has a connection.
        let threads = client.threads.min(client.connections / share.count);
        let stop = Arc::new(AtomicBool::new(false));
        let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (mut starts, mut handles) = (Vec::new(), Vec::new());
        for thread in 0..threads {
            let (start, started) = oneshot::channel();
            let part = Share { index: share.index * threads + thread, count: share.count * threads };
            let assignment = Assignment {
                plan: plan.clone(),
                place: place.clone(),
                part,
                connections: part_of(client.connections, part),
                cpu: client.cpus.get(thread as usize % client.cpus.len().max(1)).copied(),
                run,
                stop: stop.clone(),
                reports: reports.clone(),
                start: started,
                thread,
            };
            let name = format!("load-{thread}");
            let handle = thread::Builder::new().name(name).spawn(move || worker::run(assignment));
            handles.push(handle.map_err(|error| format!("thread: {error}"))?);
            starts.push(start);
        }
        Ok(Self { starts, stop, threads, handles })
    }
}

/// A part of a whole number; the parts add up.
fn part_of(whole: u32, part: Share) -> u32 {
    whole / part.count + u32::from(part.index < whole % part.count)
}

impl Crew for Local {
    fn threads(&self) -> u32 {
        self.threads
    }

    fn start(&mut self, after: Duration) -> Result<(), String> {
        let start = Instant::now() + after;
        for sender in self.starts.drain(..) {
            sender.send(start).map_err(|_| "a thread is gone")?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.stop.store(true, Relaxed);
        // Before the start, threads wait for it and look at nothing else.
        self.starts.clear();
    }

    fn hosts(&self) -> Vec<crate::result::ClientHost> {
        vec![host::describe(self.threads)]
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.starts.clear();
        for handle in self.handles.drain(..) {
            drop(handle.join());
        }
    }
}

/// Each load generator sends its part of the rate, and needs something to send it on.
fn check_connections(plan: &Plan, load_generators: u32) -> Result<(), String> {
    match plan.client.connections {
        connections if connections < load_generators => Err(format!(
            "--connections {connections} cannot be shared out to {load_generators} --agents: at least one for each"
        )),
        _ => Ok(()),
    }
}

/// Whether this process may use them; `flag` names them in the error.
pub fn check_cpus(flag: &str, cpus: &[usize]) -> Result<(), String> {
    const MAX: usize = rustix::thread::CpuSet::MAX_CPU;
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|error| format!("{flag}: {error}"))?;
    let Some(cpu) = cpus.iter().find(|cpu| **cpu >= MAX || !allowed.is_set(**cpu)) else { return Ok(()) };
    let there: Vec<String> = (0..MAX).filter(|cpu| allowed.is_set(*cpu)).map(|cpu| cpu.to_string()).collect();
    Err(format!("{flag} {cpu}: this process may run on {} CPU(s) here: {}", there.len(), there.join(",")))
}

/// An address that is not this host's would look like a lack of ports at every connection.
fn check_sources(sources: &[std::net::IpAddr]) -> Result<(), String> {
    sources.iter().try_for_each(|address| match std::net::UdpSocket::bind((*address, 0)) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("source address {address}: {error}")),
    })
}

fn check_open_files(plan: &Plan, share: Share) -> Result<(), String> {
    let wanted = files::wanted(plan, share);
    match host::raise_open_files() {
        Some(limit) if limit < wanted => Err(format!(
            "this load may need {wanted} open files, and this process may open {limit}: raise the hard limit \
             (ulimit -Hn, LimitNOFILE), or lower --connections, --idle or --sessions-max {} (of pages and recordings, \
             each is {PAGE_CONNECTIONS})",
            plan.client.sessions_max
        )),
        _ => Ok(()),
    }
}
