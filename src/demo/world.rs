//! The world a gate stands in: an API and a runner on loopback, on a thread of their own.
//!
//! Everything it holds can be changed while it runs, and everything that reaches it is recorded. It knows nothing of
//! the gate but the requests it sends.

use super::peer::Peer;
use super::provider::Provider;
use super::record::{Record, Recorder};
use super::spec::{
    Account, ApiMood, PublicAnswer, RunnerAnswer, SandboxSpec, SandboxState, SignedToken, User, WorldSpec,
};
use super::{api, runner};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A running world; dropping it closes its listeners and connections and joins its thread.
pub struct World {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the world is at the moment.
pub(super) struct State {
    pub api: SocketAddr,
    pub runner: SocketAddr,
    pub proxy_key: String,
    pub runner_key: String,
    pub sandboxes: BTreeMap<String, SandboxSpec>,
    pub users: Vec<User>,
    pub accounts: Vec<Account>,
    /// Of those who logged in.
    pub logins: VecDeque<User>,
    pub userinfo: Option<String>,
    pub provider: Provider,
    pub signed: Vec<SignedToken>,
    pub mood: ApiMood,
}

/// Tokens of logins that are remembered; older ones make room.
const LOGINS_MAX: usize = 1000;

impl State {
    /// From now on the token is a bearer of the account's.
    pub fn logged_in(&mut self, account: &str, token: &str) {
        let Some(account) = self.accounts.iter().find(|known| known.name == account) else { return };
        let user = User { bearer: token.into(), sandboxes: account.sandboxes.clone() };
        if self.logins.len() >= LOGINS_MAX {
            self.logins.pop_front();
        }
        self.logins.push_back(user);
    }

    /// Whose bearer it is.
    pub fn user(&self, bearer: &str) -> Option<&User> {
        self.users.iter().chain(&self.logins).find(|user| user.bearer == bearer)
    }
}

/// What the world's connections and its owner share.
pub(super) struct Shared {
    state: Mutex<State>,
    pub recorder: Arc<Recorder>,
}

impl Shared {
    /// Never held over an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Binds both listeners (so connecting works from here on) and starts the thread. Fails when an address cannot
    /// be bound or the system has no thread or poll descriptor left.
    pub fn start(spec: WorldSpec) -> io::Result<Self> {
        let api_listener = listen(spec.api)?;
        let runner_listener = listen(spec.runner)?;
        let shared = Arc::new(Shared {
            recorder: Arc::new(Recorder::new(spec.record)),
            state: Mutex::new(State {
                api: api_listener.local_addr()?,
                runner: runner_listener.local_addr()?,
                proxy_key: spec.proxy_key,
                runner_key: spec.runner_key,
                sandboxes: spec.sandboxes.into_iter().map(|s| (s.id.clone(), s)).collect(),
                users: spec.users,
                accounts: spec.accounts,
                logins: VecDeque::new(),
                userinfo: spec.userinfo,
                provider: Provider::new(format!("http://{}/oidc", api_listener.local_addr()?))?,
                signed: spec.signed,
                mood: ApiMood::Normal,
            }),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let life = live(Arc::clone(&shared), api_listener, runner_listener, stopped);
        let thread = std::thread::Builder::new().name("world".into()).spawn(move || {
            if let Err(error) = runtime.block_on(life) {
                // Both sockets are bound and non-blocking by now; a test sees this as refused connections.
                eprintln!("the demo's world ended: {error}");
            }
            // Connections end here with the runtime; hashing for a download is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    pub fn api_addr(&self) -> SocketAddr {
        self.shared.state().api
    }

    pub fn runner_addr(&self) -> SocketAddr {
        self.shared.state().runner
    }

    /// The API's base, as a gate is told: `http://ADDRESS/api`.
    pub fn api_url(&self) -> String {
        format!("http://{}/api", self.api_addr())
    }

    pub fn proxy_key(&self) -> String {
        self.shared.state().proxy_key.clone()
    }

    /// Looks at the record; `look` must not call the world (the record is locked meanwhile).
    pub fn log<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        self.shared.recorder.read(look)
    }

    /// Waits, without polling, until `look` finds something in the record; `None` after `deadline`.
    pub fn wait_for<T>(&self, deadline: Duration, look: impl FnMut(&Record) -> Option<T>) -> Option<T> {
        self.shared.recorder.wait_for(deadline, look)
    }

    /// A copy of what came on each runner connection that is still in the record.
    pub fn raw_connections(&self) -> Vec<super::record::RawConnection> {
        self.log(|record| record.connections().cloned().collect())
    }

    /// Forgets all requests and all ended connections.
    pub fn clear(&self) {
        self.shared.recorder.clear();
    }

    /// Adds a sandbox or replaces the one of the same id.
    pub fn put(&self, sandbox: SandboxSpec) {
        self.shared.state().sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    pub fn remove(&self, id: &str) {
        self.shared.state().sandboxes.remove(id);
    }

    pub fn set_public(&self, id: &str, public: PublicAnswer) {
        self.change(id, |s| s.public = public);
    }

    pub fn set_token(&self, id: &str, token: &str) {
        self.change(id, |s| s.token = token.into());
    }

    pub fn set_runner(&self, id: &str, runner: RunnerAnswer) {
        self.change(id, |s| s.runner = runner);
    }

    pub fn set_sandbox_state(&self, id: &str, state: SandboxState) {
        self.change(id, |s| s.state = state);
    }

    /// Replaces what a bearer owns; a new bearer is added.
    pub fn set_user(&self, user: User) {
        let mut state = self.shared.state();
        state.users.retain(|u| u.bearer != user.bearer);
        state.users.push(user);
    }

    /// From now on the bearer is nobody's.
    pub fn remove_user(&self, bearer: &str) {
        self.shared.state().users.retain(|u| u.bearer != bearer);
    }

    /// From now on the token opens nothing.
    pub fn expire_signed(&self, token: &str) {
        self.shared.state().signed.retain(|s| s.token != token);
    }

    pub fn set_runner_key(&self, key: &str) {
        self.shared.state().runner_key = key.into();
    }

    pub fn set_api_mood(&self, mood: ApiMood) {
        self.shared.state().mood = mood;
    }

    /// Panics when there is no such sandbox: a test named the wrong one.
    fn change(&self, id: &str, change: impl FnOnce(&mut SandboxSpec)) {
        let mut state = self.shared.state();
        match state.sandboxes.get_mut(id) {
            Some(sandbox) => change(sandbox),
            None => panic!("the world has no sandbox {id:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed by then.
            let _ = thread.join();
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn live(
    shared: Arc<Shared>,
    api_listener: TcpListener,
    runner_listener: TcpListener,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let api_listener = tokio::net::TcpListener::from_std(api_listener)?;
    let runner_listener = tokio::net::TcpListener::from_std(runner_listener)?;
    let next = AtomicU64::new(1);
    let api = accept(api_listener, |stream| api::serve(Arc::clone(&shared), Peer::new(stream, None)));
    let runner = accept(runner_listener, |stream| {
        let id = next.fetch_add(1, Ordering::Relaxed);
        shared.recorder.connection_opened(id);
        let tape = (Arc::clone(&shared.recorder), id);
        runner::serve(Arc::clone(&shared), Peer::new(stream, Some(tape)), id)
    });
    tokio::select! {
        () = api => {}
        () = runner => {}
        _ = stopped => {}
    }
    Ok(())
}

async fn accept<F>(listener: tokio::net::TcpListener, serve: impl Fn(tokio::net::TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small writes are behaviours here: each must leave at once. Without it they only come later.
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // Out of descriptors or the client left again: give others time to finish.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
