//! The control plane: one tokio thread that asks the API so that shards need not.
//!
//! Questions of all shards meet here: equal ones become one flight, a flight nobody waits for any more is cancelled,
//! and every question is answered once, by its deadline at the latest.

pub mod api;
pub mod metrics;
mod runner_address;

use crate::mailbox::{Down, Question, Reply, ToControl, ToShard, Trouble};
use api::Api;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// How long an answer that found a shard's queue full waits before it is offered again.
const REDELIVERY: Duration = Duration::from_millis(5);

/// Who waits for a flight.
type Waiter = (usize, u64);

struct Flight {
    waiters: Vec<Waiter>,
    abort: AbortHandle,
}

/// Answers questions until the mailbox closes. Sends the index of each shard that has drained to `drained`.
pub async fn run(
    api: Arc<Api>,
    mut inbox: mpsc::Receiver<ToControl>,
    downs: Vec<Arc<Down>>,
    flights_max: usize,
    drained: mpsc::UnboundedSender<usize>,
) {
    let mut flights: HashMap<Question, Flight> = HashMap::new();
    let mut by_waiter: HashMap<Waiter, Question> = HashMap::new();
    let mut landed: JoinSet<(Question, Reply)> = JoinSet::new();
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                None => return,
                Some(ToControl::Drained { shard }) => {
                    // Nobody listening any more means that the end is near anyway.
                    let _ = drained.send(shard);
                }
                Some(ToControl::Ask { shard, ticket, question }) => {
                    if let Some(flight) = flights.get_mut(&question) {
                        flight.waiters.push((shard, ticket));
                        by_waiter.insert((shard, ticket), question);
                    } else if flights.len() >= flights_max {
                        deliver(&downs, (shard, ticket), Err(Trouble::Overloaded)).await;
                    } else {
                        let (api, asked) = (api.clone(), question.clone());
                        let abort = landed.spawn(async move {
                            let reply = api.answer(&asked).await;
                            (asked, reply)
                        });
                        by_waiter.insert((shard, ticket), question.clone());
                        flights.insert(question, Flight { waiters: vec![(shard, ticket)], abort });
                    }
                }
                Some(ToControl::Cancel { shard, ticket }) => {
                    let waiter = (shard, ticket);
                    let Some(question) = by_waiter.remove(&waiter) else { continue };
                    let Some(flight) = flights.get_mut(&question) else { continue };
                    flight.waiters.retain(|w| *w != waiter);
                    if flight.waiters.is_empty() {
                        flight.abort.abort();
                        flights.remove(&question);
                    }
                }
            },
            Some(result) = landed.join_next() => {
                // An aborted flight has no waiters.
                let Ok((question, reply)) = result else { continue };
                let Some(flight) = flights.remove(&question) else { continue };
                for waiter in flight.waiters {
                    by_waiter.remove(&waiter);
                    deliver(&downs, waiter, reply.clone()).await;
                }
            }
        }
    }
}

/// Never lost: a shard whose queue is full empties it at its next look.
async fn deliver(downs: &[Arc<Down>], (shard, ticket): Waiter, reply: Reply) {
    let Some(down) = downs.get(shard) else { return };
    let mut message = ToShard::Answer { ticket, reply };
    while let Err(back) = down.push(message) {
        message = back;
        tokio::time::sleep(REDELIVERY).await;
    }
}
