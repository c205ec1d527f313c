//! A recording replayed: each request leaves when it left in the browser, counted from the session's begin, whatever became of
//! those before.

use super::{Boxed, PAGE_CONNECTIONS, Session, join_all};
use crate::failure::Failure;
use crate::har::RecordedRequest;
use crate::http1::{Http1, Reply, Request};
use crate::recorder::{Outcome, Recorder};
use crate::result::HAR_REQUEST;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::Notify;

pub(super) struct Replay<'a> {
    session: &'a Session<'a>,
    requests: &'a [RecordedRequest],
    scheme: &'static str,
    begun: Instant,
    progress: Rc<Progress>,
    /// No more becomes due.
    all_due: Cell<bool>,
    one_more: Notify,
    /// Open connections that are free, the last used one on top. A lane opens one when there is none, so that there are never
    /// more than lanes.
    free: RefCell<Vec<Http1>>,
    /// The first answer's status.
    status: Cell<u16>,
    /// What the session comes to, once that is certain: the first thing that was wrong.
    decided: RefCell<Option<Outcome>>,
}

/// How far a replay has come: what is known of it when the run ends before it does.
pub(in crate::worker) struct Progress {
    /// Requests there are to be sent.
    count: usize,
    /// How many of them are due by now, and how many of those a lane has taken.
    due: Cell<usize>,
    taken: Cell<usize>,
    /// What each lane waits for.
    asked: [Cell<Option<usize>>; PAGE_CONNECTIONS],
}

impl Progress {
    /// Requests that are due and have no answer, by their number.
    pub fn owed(&self) -> impl Iterator<Item = usize> {
        self.asked.iter().filter_map(Cell::get).chain(self.taken.get()..self.due.get())
    }

    /// Not all of it was due when the run was over.
    pub fn is_cut(&self) -> bool {
        self.due.get() < self.count
    }
}

impl<'a> Replay<'a> {
    pub fn new(session: &'a Session<'a>, requests: &'a [RecordedRequest], begun: Instant) -> Self {
        // Who is not let in sees nothing that would make a browser ask for more.
        let count = if session.visitor.refused { requests.len().min(1) } else { requests.len() };
        let (due, taken, asked) = Default::default();
        let progress = Rc::new(Progress { count, due, taken, asked });
        *session.slot.replay.borrow_mut() = Some(progress.clone());
        Self {
            session,
            requests: &requests[..count],
            scheme: if session.worker.connector.place().tls.is_some() { "https" } else { "http" },
            begun,
            progress,
            all_due: Cell::new(false),
            one_more: Notify::new(),
            free: RefCell::default(),
            status: Cell::new(0),
            decided: RefCell::default(),
        }
    }

    pub async fn run(self) -> Result<Outcome, Failure> {
        let asked = self.progress.asked.iter().take(self.requests.len());
        let lanes = asked.map(|asked| Box::pin(self.lane(asked)) as Boxed<'_, ()>);
        join_all(std::iter::once(Box::pin(self.tell_when_due()) as _).chain(lanes).collect()).await;
        let decided = self.decided.take();
        if self.progress.is_cut() {
            self.session.has_no_time(self.begun);
        }
        if self.progress.is_cut() && decided.is_none() {
            self.session.worker.record(|recorder| recorder.shortened(&self.session.arrival));
        }
        Ok(decided.unwrap_or_else(|| Outcome::Expected { status: self.status.get() }))
    }

    fn due_at(&self, n: usize) -> Instant {
        self.begun + self.requests[n].offset
    }

    /// Lets the lanes have each request when it is due, until the run is over.
    async fn tell_when_due(&self) {
        for n in 0..self.requests.len() {
            tokio::select! {
                biased;
                () = self.session.worker.timers.until(self.due_at(n)) => {}
                _ = self.session.worker.ending.begun() => break,
            }
            self.progress.due.set(n + 1);
            self.one_more.notify_one();
        }
        self.all_due.set(true);
        self.one_more.notify_waiters();
    }

    /// Sends requests that are due, one after the other. `asked`: which it waits for.
    async fn lane(&self, asked: &Cell<Option<usize>>) {
        let mut request = Request::default();
        let mut freed = self.begun;
        while let Some(n) = self.next().await {
            asked.set(Some(n));
            let lag = self.due_at(n).max(freed).elapsed();
            self.session.worker.record(|recorder| recorder.late(&self.session.arrival, lag));
            self.requests[n].write(&mut request, &self.session.visitor, self.scheme);
            let answer = self.ask(&request, self.requests[n].is_idempotent()).await;
            asked.set(None);
            self.answered(n, &request, answer);
            freed = Instant::now();
        }
    }

    async fn next(&self) -> Option<usize> {
        loop {
            let n = self.progress.taken.get();
            if n < self.progress.due.get() {
                self.progress.taken.set(n + 1);
                return Some(n);
            }
            if self.all_due.get() {
                return None;
            }
            self.one_more.notified().await;
        }
    }

    /// On a connection that is there, or on a new one. Both attempts share one deadline.
    async fn ask(&self, request: &Request, is_idempotent: bool) -> Result<Reply, Failure> {
        let deadline = Instant::now() + self.session.timeout();
        if let Some(kept) = self.free_connection() {
            match self.exchange(kept, request, deadline).await {
                // Closed between two requests, as servers may (RFC 9112 9.3.1).
                Err(Failure::ClosedEarly | Failure::Reset) if is_idempotent => {
                    self.session.worker.record(|recorder| recorder.resent(&self.session.arrival));
                }
                answer => return answer,
            }
        }
        self.exchange(self.session.connect().await?, request, deadline).await
    }

    /// In a recorded pause the other side may have closed it, which is nobody's failure.
    fn free_connection(&self) -> Option<Http1> {
        let mut free = self.free.borrow_mut();
        std::iter::from_fn(|| free.pop()).find_map(|mut kept| kept.is_quiet().then_some(kept))
    }

    async fn exchange(
        &self,
        mut connection: Http1,
        request: &Request,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let mut unread = |_: &[u8]| {};
        let exchange = tokio::time::timeout_at(deadline.into(), connection.exchange(request, &mut unread));
        let reply = exchange.await.unwrap_or(Err(Failure::Timeout))?;
        if reply.reusable {
            self.free.borrow_mut().push(connection);
        }
        Ok(reply)
    }

    fn answered(&self, n: usize, request: &Request, answer: Result<Reply, Failure>) {
        let (session, due) = (self.session, self.due_at(n));
        let wrong = match answer {
            Ok(reply) => {
                session.count(request, reply.body_bytes);
                if n == 0 {
                    self.status.set(reply.status);
                }
                self.judge(n, reply)
            }
            Err(failure) => Some(Outcome::Failed(failure)),
        };
        // As for any request: a failure has no time but that of a timeout.
        if matches!(&wrong, None | Some(Outcome::Failed(Failure::Timeout | Failure::ConnectTimeout))) {
            session.worker.record(|recorder| recorder.extra(&session.arrival, HAR_REQUEST, due.elapsed()));
        }
        // The session itself is counted among what came to an end: for one of its requests.
        if n > 0 {
            session.worker.record(Recorder::one_more);
        }
        if let Some(wrong) = wrong {
            self.decided.borrow_mut().get_or_insert(wrong);
        }
    }

    /// What the session comes to with this answer; `None`: it is right.
    fn judge(&self, n: usize, reply: Reply) -> Option<Outcome> {
        let Reply { status, error, .. } = reply;
        let (request, refused) = (&self.requests[n], self.session.visitor.refused);
        match status {
            // An error of the proxy's own was not recorded, whatever its status.
            _ if !refused && error.is_none() && request.expects(status) => None,
            101 | 200..=299 if !refused && error.is_none() => {
                Some(Outcome::Wrong { status, failure: Failure::NotAsRecorded })
            }
            _ => Some(Outcome::Answered { status, error }),
        }
    }
}
