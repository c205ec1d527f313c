//! Equal questions share one flight; a flight nobody waits for any more is cancelled.
//!
//! Equality is the whole [`Question`]: two tokens, two clients or `fresh` make two flights. Knows no API and no
//! mailbox: flying is the caller's, under a tokio task whose id names the flight.

use crate::mailbox::Question;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::{AbortHandle, Id};

/// Who waits: a shard and its ticket. Unique while it waits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Waiter {
    pub shard: usize,
    pub ticket: u64,
}

/// What became of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A flight was started for it.
    Flies,
    /// It waits for a flight that was under way.
    Joined,
    /// No flight may be added now.
    Full,
}

/// The open flights. At most `flights_max`; waiters are bounded by the shards' own bounds on open questions.
pub struct Flights {
    flights: HashMap<Id, Flight>,
    by_question: HashMap<Arc<Question>, Id>,
    by_waiter: HashMap<Waiter, Id>,
    flights_max: usize,
}

struct Flight {
    question: Arc<Question>,
    began: Instant,
    waiters: Vec<Waiter>,
    abort: AbortHandle,
}

impl Flights {
    pub fn new(flights_max: usize) -> Self {
        Self { flights: HashMap::new(), by_question: HashMap::new(), by_waiter: HashMap::new(), flights_max }
    }

    /// Joins the flight of an equal question, or starts one with `launch`.
    pub fn ask(
        &mut self,
        question: Question,
        waiter: Waiter,
        launch: impl FnOnce(Arc<Question>) -> AbortHandle,
    ) -> Asked {
        debug_assert!(!self.by_waiter.contains_key(&waiter), "a ticket is used once");
        if let Some(&id) = self.by_question.get(&question) {
            let flight = self.flights.get_mut(&id).expect("both maps change together");
            flight.waiters.push(waiter);
            self.by_waiter.insert(waiter, id);
            return Asked::Joined;
        }
        if self.flights.len() >= self.flights_max {
            return Asked::Full;
        }
        let question = Arc::new(question);
        let abort = launch(Arc::clone(&question));
        let id = abort.id();
        self.by_question.insert(Arc::clone(&question), id);
        self.by_waiter.insert(waiter, id);
        self.flights.insert(id, Flight { question, began: Instant::now(), waiters: vec![waiter], abort });
        Asked::Flies
    }

    /// When the flight began that an equal question would join.
    pub fn began(&self, question: &Question) -> Option<Instant> {
        self.by_question.get(question).and_then(|id| self.flights.get(id)).map(|flight| flight.began)
    }

    /// Nobody joins the flight of this question any more; who waits for it still gets its answer.
    pub fn leave_alone(&mut self, question: &Question) {
        self.by_question.remove(question);
    }

    /// The waiter does not want its answer any more. Unknown ones have theirs already: not an error.
    pub fn cancel(&mut self, waiter: Waiter) {
        let Some(id) = self.by_waiter.remove(&waiter) else { return };
        let flight = self.flights.get_mut(&id).expect("both maps change together");
        flight.waiters.retain(|other| *other != waiter);
        if flight.waiters.is_empty() {
            flight.abort.abort();
            self.remove(id);
        }
    }

    /// The flight is over: who is to be told. Empty for a flight that was cancelled as it landed.
    pub fn land(&mut self, id: Id) -> Vec<Waiter> {
        let waiters = self.remove(id).map(|flight| flight.waiters).unwrap_or_default();
        for waiter in &waiters {
            self.by_waiter.remove(waiter);
        }
        waiters
    }

    pub fn count(&self) -> usize {
        self.flights.len()
    }

    fn remove(&mut self, id: Id) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        // A flight that was left alone may have a successor.
        if self.by_question.get(&flight.question) == Some(&id) {
            self.by_question.remove(&flight.question);
        }
        Some(flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;
    use tokio::task::JoinSet;

    fn question(id: &str, fresh: bool) -> Question {
        Question::Runner { sandbox: SandboxId::parse(id.as_bytes()).expect("an id"), fresh }
    }

    fn waiter(shard: usize, ticket: u64) -> Waiter {
        Waiter { shard, ticket }
    }

    #[tokio::test]
    async fn equal_questions_join_and_different_ones_do_not() {
        let mut tasks = JoinSet::new();
        let mut flights = Flights::new(8);
        let mut ask =
            |question, waiter| flights.ask(question, waiter, |_| tasks.spawn(std::future::pending::<()>()));
        assert_eq!(ask(question("a", false), waiter(0, 1)), Asked::Flies);
        assert_eq!(ask(question("a", false), waiter(1, 1)), Asked::Joined);
        assert_eq!(ask(question("a", true), waiter(1, 2)), Asked::Flies);
        assert_eq!(ask(question("b", false), waiter(1, 3)), Asked::Flies);
        assert_eq!(flights.count(), 3);
    }

    #[tokio::test]
    async fn the_table_is_bounded_but_joining_is_not_refused() {
        let mut tasks = JoinSet::new();
        let mut flights = Flights::new(1);
        let mut ask =
            |question, waiter| flights.ask(question, waiter, |_| tasks.spawn(std::future::pending::<()>()));
        assert_eq!(ask(question("a", false), waiter(0, 1)), Asked::Flies);
        assert_eq!(ask(question("b", false), waiter(0, 2)), Asked::Full);
        assert_eq!(ask(question("a", false), waiter(0, 3)), Asked::Joined);
        flights.cancel(waiter(0, 2));
        flights.cancel(waiter(0, 1));
        assert_eq!(flights.count(), 1, "one still waits");
    }

    #[tokio::test]
    async fn the_last_waiter_to_leave_cancels_the_flight_and_nothing_is_left_behind() {
        let mut tasks = JoinSet::new();
        let mut flights = Flights::new(8);
        for ticket in 0..3 {
            flights
                .ask(question("a", false), waiter(0, ticket), |_| tasks.spawn(std::future::pending::<()>()));
        }
        for ticket in 0..3 {
            assert_eq!(flights.count(), 1);
            flights.cancel(waiter(0, ticket));
        }
        assert_eq!(flights.count(), 0);
        let ended = crate::control::fake_api::within(tasks.join_next()).await;
        let ended = ended.expect("a task").expect_err("cancelled");
        assert!(ended.is_cancelled());
        assert!(flights.by_question.is_empty() && flights.by_waiter.is_empty());
    }

    #[tokio::test]
    async fn a_flight_left_alone_serves_its_waiters_and_not_its_successors() {
        let mut tasks = JoinSet::new();
        let mut flights = Flights::new(8);
        let mut ask = |flights: &mut Flights, waiter| {
            flights.ask(question("a", false), waiter, |_| tasks.spawn(std::future::pending::<()>()))
        };
        assert_eq!(ask(&mut flights, waiter(0, 1)), Asked::Flies);
        assert!(flights.began(&question("a", false)).is_some());
        flights.leave_alone(&question("a", false));
        assert_eq!(flights.began(&question("a", false)), None);
        assert_eq!(ask(&mut flights, waiter(0, 2)), Asked::Flies);
        let old = flights.by_waiter[&waiter(0, 1)];
        assert_eq!(flights.land(old), [waiter(0, 1)]);
        assert_eq!(ask(&mut flights, waiter(0, 3)), Asked::Joined, "its successor is still there");
    }

    #[tokio::test]
    async fn a_flight_that_lands_after_its_cancellation_answers_nobody_and_not_its_successor() {
        let mut tasks = JoinSet::new();
        let mut flights = Flights::new(8);
        flights.ask(question("a", false), waiter(0, 1), |_| tasks.spawn(async {}));
        let (old, ()) = tasks.join_next_with_id().await.expect("a task").expect("it ended");
        flights.cancel(waiter(0, 1));
        flights.ask(question("a", false), waiter(0, 2), |_| tasks.spawn(async {}));
        assert_eq!(flights.land(old), []);
        let (new, ()) = tasks.join_next_with_id().await.expect("a task").expect("it ended");
        assert_eq!(flights.land(new), [waiter(0, 2)]);
        assert!(flights.by_question.is_empty() && flights.by_waiter.is_empty() && flights.count() == 0);
    }
}
