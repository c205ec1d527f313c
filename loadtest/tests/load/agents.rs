//! Load from several processes' worth of agents, over real connections.

use super::peer::{Answer, Server, change, ok, plan};
use crate::free_port::free_port;
use loadtest::agent;
use loadtest::plan::{Action, Churn, Expectation, Load, Plan};
use loadtest::quantity::Span;
use loadtest::result::{ChurnVerdict, ClientHost, RunResult};
use loadtest::run::{Agents, Crew, Observation, conduct, run_on};
use loadtest::worker::Report;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const KEY: &str = "a key both sides know";

fn agent() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    (name, thread::spawn(move || agent::serve(&listener, KEY, true).expect("it serves")))
}

/// One that serves one coordinator after the other.
fn lasting_agent() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    (name, thread::spawn(move || agent::serve(&listener, KEY, false).expect("it serves")))
}

fn on(names: Vec<String>, key: &str, server: &Server, stop: &Arc<AtomicBool>) -> Result<RunResult, String> {
    load(names, key, server, stop, 1000)
}

fn load(
    names: Vec<String>,
    key: &str,
    server: &Server,
    stop: &Arc<AtomicBool>,
    length_ms: u64,
) -> Result<RunResult, String> {
    let mut plan = plan(&server.url(), Load::Hold { rate: 200.0 }, length_ms);
    plan.client.connections = 8;
    load_of(plan, names, key, stop)
}

fn load_of(plan: Plan, names: Vec<String>, key: &str, stop: &Arc<AtomicBool>) -> Result<RunResult, String> {
    let agents = Agents { names, key: key.into() };
    run_on(&agents, &Arc::new(plan), &Observation::default(), stop, &mut |_| {})
}

#[test]
fn two_agents_together_send_the_plan_once() {
    let server = Server::start(|_| ok());
    let (agents, handles): (Vec<_>, Vec<_>) = [agent(), agent()].into_iter().unzip();
    let result = on(agents, KEY, &server, &Arc::default()).expect("it runs");
    let (phase, total) = (&result.phases[0], result.phases[0].total());
    assert_eq!((total.planned, total.ok, server.requests.load(SeqCst)), (200, 200, 200));
    assert_eq!((total.response.count(), total.service.count()), (200, 200), "histograms are merged");
    assert_eq!(phase.timeline.points.iter().map(|point| point.ok).sum::<u64>(), 200);
    assert_eq!(result.meta.clients.len(), 2);
    assert!(server.connections.load(SeqCst) <= 8, "connections are shared out, too");
    handles.into_iter().for_each(|handle| handle.join().expect("an agent ends well"));
}

#[test]
fn an_agent_refuses_another_key_and_sends_nothing() {
    let server = Server::start(|_| ok());
    let (name, handle) = agent();
    let error = on(vec![name.clone()], "another key", &server, &Arc::default()).expect_err("refused");
    assert!(error.contains(&name) && error.contains("key"), "{error}");
    assert_eq!(server.connections.load(SeqCst), 0);
    assert!(!handle.is_finished(), "who does not know the key ends no agent");
    on(vec![name], KEY, &server, &Arc::default()).expect("the right key opens it");
    handle.join().expect("an agent ends well");
}

#[test]
fn an_agent_is_free_again_when_another_one_could_not_be_reached() {
    let server = Server::start(|_| ok());
    let (name, handle) = lasting_agent();
    let absent = format!("127.0.0.1:{}", free_port());
    let error =
        on(vec![name.clone(), absent.clone()], KEY, &server, &Arc::default()).expect_err("one is absent");
    assert!(error.contains(&absent), "{error}");
    let result = on(vec![name], KEY, &server, &Arc::default()).expect("it runs");
    assert_eq!(result.phases[0].total().ok, 200);
    assert!(!handle.is_finished());
}

#[test]
fn connections_are_shared_out_exactly_or_refused() {
    let server = Server::start(|_| ok());
    let mut plan = plan(&server.url(), Load::Hold { rate: 100.0 }, 300);
    (plan.client.threads, plan.client.connections) = (2, 3);
    let agents = |count| Agents { names: (0..count).map(|_| lasting_agent().0).collect(), key: KEY.into() };
    let on = |plan: &Plan, count| {
        run_on(&agents(count), &Arc::new(plan.clone()), &Observation::default(), &Arc::default(), &mut |_| {})
    };
    let result = on(&plan, 2).expect("it runs");
    assert_eq!((result.phases[0].total().ok, server.connections.load(SeqCst)), (30, 3));
    let error = on(&plan, 4).expect_err("too few");
    assert!(error.contains("--connections 3") && error.contains("4 --agents"), "{error}");
}

#[test]
fn a_busy_agent_says_so() {
    let server = Server::start(|_| ok());
    let (name, _) = lasting_agent();
    let stop: Arc<AtomicBool> = Arc::default();
    thread::scope(|scope| {
        let first = scope.spawn(|| load(vec![name.clone()], KEY, &server, &stop, 60_000));
        while server.requests.load(SeqCst) == 0 {
            thread::yield_now();
        }
        let error = on(vec![name.clone()], KEY, &server, &Arc::default()).expect_err("it is busy");
        stop.store(true, SeqCst);
        assert!(error.contains(&name) && error.contains("busy with another run"), "{error}");
        assert!(first.join().expect("no panic").expect("undisturbed").meta.partial);
    });
}

#[test]
fn an_agent_that_says_nothing_is_called_that() {
    // Accepts in the kernel, and nobody says hello.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = silent.local_addr().expect("bound").to_string();
    let server = Server::start(|_| ok());
    let error = on(vec![name.clone()], KEY, &server, &Arc::default()).expect_err("silent");
    assert_eq!(error, format!("agent {name}: did not answer within 10 s"));
}

#[test]
fn what_is_no_agent_of_this_version_is_called_that() {
    let server = Server::start(|_| ok());
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "{\"version\":\"0.0.1\"}\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let name = listener.local_addr().expect("bound").to_string();
        let greets = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody");
            stream.write_all(greeting.as_bytes()).expect("open");
            // Until the coordinator goes.
            drop(stream.read(&mut [0]));
        });
        let error = on(vec![name.clone()], KEY, &server, &Arc::default()).expect_err("no agent");
        assert_eq!(error, format!("agent {name}: is no agent of this loadtest's version"));
        greets.join().expect("it ends");
    }
    let error = on(vec!["127.0.0.1".into()], KEY, &server, &Arc::default()).expect_err("no port");
    assert_eq!(error, "agent 127.0.0.1: no port: agents are named host:port");
}

#[test]
fn strangers_hold_nobody_up_and_may_not_say_much() {
    let server = Server::start(|_| ok());
    let (name, _) = lasting_agent();
    let strangers: Vec<_> = (0..40).map(|_| TcpStream::connect(&name).expect("it listens")).collect();
    let begun = Instant::now();
    on(vec![name.clone()], KEY, &server, &Arc::default()).expect("it runs beside silent peers");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // Of the forty most were sent away for the others' sake.
    let gone = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).expect("a socket");
        let mut hello = [0; 4096];
        let end = std::iter::from_fn(|| Some(stream.read(&mut hello))).find(|read| !matches!(read, Ok(1..)));
        !matches!(end, Some(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(strangers.iter().filter(|stream| gone(stream)).count() >= 24);
    // A first line without end is not read to its end.
    let mut talker = TcpStream::connect(&name).expect("it listens");
    talker.set_write_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let cut =
        std::iter::repeat_with(|| talker.write_all(&[b'x'; 64 * 1024])).take(1024).find_map(Result::err);
    assert!(cut.is_some_and(|error| error.kind() != std::io::ErrorKind::WouldBlock), "64 MiB were taken");
}

/// What the others measured until then is worth having, and must not be taken for the whole. Changes to come are not waited for.
#[test]
fn the_loss_of_an_agent_leaves_a_partial_result_that_is_not_valid() {
    let server = Server::start(|_| ok());
    let (stays, _) = lasting_agent();
    let key_file = std::env::temp_dir().join(format!("loadtest-agent-key-{}", std::process::id()));
    std::fs::write(&key_file, KEY).expect("written");
    let mut dies = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["agent", "--listen", "127.0.0.1:0", "--key-file", key_file.to_str().expect("UTF-8")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(dies.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    let name = line.trim().strip_prefix("agent on ").expect("its address").to_owned();
    let mut plan = plan(&server.url(), Load::Hold { rate: 200.0 }, 60_000);
    plan.client.connections = 8;
    let late = change(Action::Command("true".into()), Expectation::Fails);
    plan.phases[0].churn = vec![Churn { at: Span(Duration::from_secs(50)), ..late }];
    let (result, took) = thread::scope(|scope| {
        let run = scope.spawn(|| load_of(plan, vec![stays, name.clone()], KEY, &Arc::default()));
        server.wait_for(100);
        dies.kill().expect("it lives");
        let killed = Instant::now();
        (run.join().expect("no panic").expect("a result of what there is"), killed.elapsed())
    });
    assert!(took < Duration::from_secs(20), "{took:?}");
    let churn = result.phases[0].churn[0].verdict();
    assert!(matches!(&churn, ChurnVerdict::Unknown(why) if why.contains("not made")), "{churn:?}");
    dies.wait().expect("it ended");
    std::fs::remove_file(&key_file).expect("ours");
    let lost = result.validity.reasons.iter().find(|reason| reason.code == "client_lost").expect("told");
    assert!(lost.fatal && lost.message.contains(&name) && !result.validity.valid, "{lost:?}");
    let (ok, sent) = (result.phases[0].total().ok, server.requests.load(SeqCst));
    assert!(result.meta.partial && ok >= 40 && ok < sent, "{ok} of {sent}");
    assert!(result.phases[0].duration_s < 60.0);
}

/// Behind the last second agents have nothing to report for a while, and the coordinator knows that they are there.
#[test]
fn an_agent_that_waits_for_the_last_answers_is_not_lost() {
    let server = Server::start(|_| Answer::Raw(Vec::new()));
    let (name, handle) = agent();
    let mut plan = plan(&server.url(), Load::Hold { rate: 20.0 }, 200);
    plan.client.grace = Span(Duration::from_secs(5));
    let result = load_of(plan, vec![name], KEY, &Arc::default()).expect("it is there");
    let total = result.phases[0].total();
    assert_eq!((total.sent, total.unfinished), (4, 4));
    assert!(
        result.validity.reasons.iter().all(|reason| reason.code != "client_lost"),
        "{:?}",
        result.validity
    );
    handle.join().expect("an agent ends well");
}

/// Threads that get ready, and cannot be started.
struct Unstartable;

impl Crew for Unstartable {
    fn threads(&self) -> u32 {
        1
    }

    fn start(&mut self, _: Duration) -> Result<(), String> {
        Err("gone".into())
    }

    fn stop(&mut self) {}

    fn hosts(&self) -> Vec<ClientHost> {
        Vec::new()
    }
}

#[test]
fn a_run_that_cannot_begin_leaves_nobody_reading_the_metrics_page() {
    let server = Server::start(|_| Answer::Say(200, "a 1\n".into()));
    let plan = Arc::new(plan(&server.url(), Load::Quiet, 1000));
    let observation = Observation {
        metrics_url: Some(format!("http://{}/metrics", server.address)),
        ..Observation::default()
    };
    let (sender, reports) = mpsc::channel();
    sender.send((0, Report::Ready)).expect("it is there");
    let error = conduct(&plan, &mut Unstartable, &reports, &observation, &Arc::default(), &mut |_| {}).err();
    assert_eq!((error.as_deref(), server.requests.load(SeqCst)), (Some("gone"), 1));
    // No other test of this binary has a thread of that name.
    let is_scraping = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it");
        let name =
            |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task?.path().join("comm"));
        // A thread may end while it is looked at.
        tasks.filter_map(|task| name(task).ok()).any(|name| name == "scrape\n")
    };
    let begun = Instant::now();
    while is_scraping() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it goes on");
        thread::yield_now();
    }
}

#[test]
fn an_agent_that_goes_away_ends_the_run_with_its_name() {
    let server = Server::start(|_| ok());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || drop(listener.accept()));
    let error = on(vec![name.clone()], KEY, &server, &Arc::default()).expect_err("it is gone");
    assert!(error.contains(&name), "{error}");
}
