//! One request through all stages, and what is written down of it.

use super::Client;
use super::reply::{self, After, Asked};
use super::visitor;
use crate::access_log::Line;
use crate::admission::{Exceeded, Limit};
use crate::cors::{self, Decision, Relation, Sharing};
use crate::counters::{AuthResult, Class, Counted, add};
use crate::error::Cause;
use crate::exchange::{self, Failed, Next, Outgoing};
use crate::grant::{Asker, Grant, authorize};
use crate::head::{FieldId, Method, RequestHead};
use crate::initiator;
use crate::route::{NoRoute, Route, route_within};
use crate::shard::Shard;
use crate::target;
use crate::warning;
use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

/// To its end: what becomes of the connection, how many of the bytes of `rest` belonged to it, and what was read of a later
/// request.
pub async fn serve(
    shard: &Shard,
    client: &Client,
    head: &RequestHead<'_>,
    rest: &[u8],
    mut stamps: Stamps,
) -> (Next, usize, Vec<u8>) {
    let active = Counted::new(&shard.counters.requests_active);
    let mut request_id = [0; 36];
    let request_id = shard.request_ids.next(&mut request_id);
    client.first_byte.set(None);
    let domains = shard.config.allowed_domains.as_ref();
    let routed = route_within(domains, head, shard.route_rules, client.trusted);
    let mut sharing = None;
    let decision = match routed {
        Err(NoRoute::ForeignHost) => Decision::Nothing,
        _ => cors::decide(head, shard.config.cors, |origin| relation(shard, head, &routed, origin)),
    };
    let asked = Asked { shard, client, head, rest, request_id };
    let outcome = match decision {
        Decision::Preflight(preflight) => Box::pin(reply::preflight(asked, preflight)).await,
        decision => {
            if let Decision::Share(with) = decision {
                sharing = Some(with);
            }
            let decided = Decided { routed, sharing };
            pin!(staged(asked, decided, &mut stamps)).await
        }
    };
    let lingers;
    let (next, used, overread, status, cause) = match outcome {
        Ok(done) => {
            // The client may read only when it has sent everything.
            lingers = matches!(done.next, Next::Close) && (done.early || head.keep_alive);
            (done.next, done.used, done.overread, done.status, None)
        }
        Err(Failed { cause, answerable }) => {
            if let Cause::Rejected(reject) = cause {
                // Before the answer, as for heads: who has the answer finds it counted.
                add(&shard.counters.rejects[reject as usize], 1);
            }
            let status = if answerable { cause.answer().status } else { 0 };
            let after = if answerable { reply::error(asked, cause, sharing).await } else { After::Close };
            lingers = after == After::Linger;
            if after == After::Keep {
                // What ended this request is over with it.
                client.watch.unfire();
            }
            let next = if after == After::Keep { Next::KeepAlive } else { Next::Close };
            (next, asked.body_here().unwrap_or(0), Vec::new(), status, Some(cause))
        }
    };
    client.watch.waits_for_others(false);
    if !matches!(next, Next::Tunnel(_)) {
        client.in_use.set(None);
        client.sandbox_slot.set(None);
    }
    drop(active);
    finish(asked, &stamps, status, cause);
    if lingers {
        // The request is over, and nothing is held for it any more.
        reply::linger(shard, client).await;
    }
    (next, used, overread)
}

/// What is known of a request's course.
pub struct Stamps {
    /// Its first byte was there.
    started: Instant,
    /// All of its head was.
    now: Instant,
    granted: Option<Instant>,
    class: Class,
    auth: Option<AuthResult>,
}

impl Stamps {
    pub fn new(started: Instant, now: Instant) -> Self {
        Self { started, now, granted: None, class: Class::Own, auth: None }
    }
}

/// What follows from the head alone.
struct Decided<'b> {
    routed: Result<Route, NoRoute>,
    /// A page of another origin asks.
    sharing: Option<Sharing<'b>>,
}

async fn staged(
    asked: Asked<'_, '_>,
    decided: Decided<'_>,
    stamps: &mut Stamps,
) -> Result<exchange::Done, Failed> {
    let Asked { shard, client, head, rest, request_id } = asked;
    let Decided { routed, sharing } = decided;
    let early = |cause| Failed { cause, answerable: true };
    if shard.config.preview_warning && warns(head, &routed) {
        return Box::pin(reply::warn(asked)).await;
    }
    let route = routed.map_err(|no| early(Cause::NoRoute(no)))?;
    stamps.class = match &route {
        Route::Preview { .. } | Route::Toolbox { .. } if head.websocket => Class::WebSocket,
        Route::Preview { .. } => Class::Preview,
        Route::Toolbox { .. } => Class::Toolbox,
        Route::BuildLogs { .. } => Class::BuildLogs,
        Route::Health | Route::Callback | Route::Handoff => Class::Own,
    };
    if route == Route::Health {
        return reply::health(asked).await;
    }
    let asker = Asker::new(shard, &client.watch, client.visitor(shard, head), stamps.now);
    let limited = |limit, exceeded: Exceeded| {
        add(&shard.counters.limited[limit as usize], 1);
        early(Cause::Limited(limit, exceeded.0))
    };
    shard
        .admission
        .client_request(asker.ip.into(), asker.now)
        .map_err(|exceeded| limited(Limit::ClientRequests, exceeded))?;
    let granted = match &route {
        Route::Callback | Route::Handoff => Err(None),
        route => pin!(authorize(&asker, route, head)).await.map_err(Some),
    };
    let grant = match granted {
        Ok(grant) => grant,
        // Boxed: seldom, and no request that passes should carry its state.
        Err(refusal) => {
            return Box::pin(reply::log_in(asked, &asker, &route, refusal)).await;
        }
    };
    stamps.auth = Some(grant.auth());
    let target = pin!(target::locate(&asker, &grant, false)).await.map_err(early)?;
    asker.repay();
    if let Some(place) = &target.place {
        let slot = shard.admission.sandbox_request(&place.sandbox, asker.now);
        let slot = slot.map_err(|exceeded| limited(Limit::Sandbox, exceeded))?;
        client.sandbox_slot.set(slot.map(Box::new));
    }
    if let Some(place) = target.place.as_ref().filter(|_| keeps_awake(shard, head, &grant)) {
        shard.activity.mention(place, shard.deadlines.now(), &shard.questions, &shard.counters);
        client.in_use.set(Some(shard.activity.begin(place)));
    }
    let located_at = Instant::now();
    stamps.granted = Some(located_at);
    let place = target.place.clone();
    let (ip, place) = (asker.ip, place.as_ref());
    let outgoing = Outgoing { head, rest, grant: &grant, request_id, sharing, ip, place, located_at };
    pin!(exchange::exchange(client, &asker, target, &outgoing)).await
}

/// What the page that asks is to the sandbox it asks.
fn relation(
    shard: &Shard,
    head: &RequestHead<'_>,
    routed: &Result<Route, NoRoute>,
    origin: &[u8],
) -> Relation {
    let (sandbox, own_origin) = match routed {
        Ok(Route::Preview { label, .. }) => (label, true),
        Ok(Route::Toolbox { sandbox, .. }) => (sandbox, false),
        _ => return Relation::Stranger,
    };
    let (https, trusted) = (shard.scheme == "https", shard.config.trusted_origins.as_slice());
    if initiator::is_welcome(origin, head, &initiator::Place { https, sandbox, own_origin, trusted }) {
        Relation::Welcome
    } else if initiator::is_sibling(origin, head) {
        Relation::Sibling
    } else {
        Relation::Stranger
    }
}

/// Is this about the page that is shown before a preview?
fn warns(head: &RequestHead<'_>, routed: &Result<Route, NoRoute>) -> bool {
    let is_form = head.method == Method::Post && head.path() == warning::ACCEPT_PATH;
    (is_form && *routed != Err(NoRoute::ForeignHost))
        || (matches!(routed, Ok(Route::Preview { .. })) && warning::is_due(head))
}

/// Does this request start its sandbox's auto-stop timer anew?
fn keeps_awake(shard: &Shard, head: &RequestHead<'_>, grant: &Grant) -> bool {
    let skips = head.first(FieldId::SkipLastActivity).is_some_and(|v| v.eq_ignore_ascii_case(b"true"));
    !skips && (shard.config.anonymous_activity || grant.auth() != AuthResult::Public)
}

impl Client {
    fn visitor(&self, shard: &Shard, head: &RequestHead<'_>) -> IpAddr {
        if self.trusted { visitor::of(head, self.peer, &shard.config.trusted_proxies) } else { self.peer }
    }
}

/// Counts and, where asked for, logs.
fn finish(asked: Asked<'_, '_>, stamps: &Stamps, status: u16, cause: Option<Cause>) {
    let Asked { shard, client, head, request_id, .. } = asked;
    let took = stamps.started.elapsed();
    let class = stamps.class as usize;
    let counters = &shard.counters;
    add(&counters.requests[class][usize::from(status / 100).min(5)], 1);
    let millis = took.as_millis() as u64;
    let bucket = crate::counters::DURATION_BOUNDS_MS.partition_point(|bound| *bound < millis);
    add(&counters.durations[class][bucket], 1);
    add(&counters.duration_sum_us[class], took.as_micros() as u64);
    if let Some(cause) = cause {
        add(&counters.errors[reply::source_index(cause.answer().source)], 1);
    }
    if shard.log.wants(status, cause, took) {
        let granted = stamps.granted.map(|at| at.duration_since(stamps.started));
        let first_byte = client.first_byte.get().map(|micros| Duration::from_micros(micros.get().into()));
        shard.log.write(&Line {
            request_id,
            class: stamps.class.as_str(),
            method: head.method_text.of(head.bytes),
            host: head.authority.of(head.bytes),
            path: head.path(),
            status,
            cause: cause.map(|c| c.answer()),
            auth: stamps.auth.map(|a| a.as_str()),
            client_ip: client.visitor(shard, head),
            granted,
            first_byte: granted.zip(first_byte).map(|(granted, later)| granted + later),
            took,
        });
    }
}
