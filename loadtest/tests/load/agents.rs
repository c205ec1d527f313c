//! Load from several processes' worth of agents, over real connections.

use super::peer::{Server, ok, plan};
use loadtest::agent;
use loadtest::plan::Load;
use loadtest::run::{Agents, Observation, run_on};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

const KEY: &str = "a key both sides know";

fn agent() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    (name, thread::spawn(move || agent::serve(&listener, KEY, true).expect("it serves")))
}

fn on(
    names: Vec<String>,
    key: &str,
    server: &Server,
    stop: &Arc<AtomicBool>,
) -> Result<loadtest::result::RunResult, String> {
    let mut plan = plan(&server.url(), Load::Hold { rate: 200.0 }, 1000);
    plan.client.connections = 8;
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
    handle.join().expect("an agent ends well");
    assert_eq!(server.connections.load(SeqCst), 0);
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
