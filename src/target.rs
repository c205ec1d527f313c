//! Where a granted request goes: runner, path and credentials. Made from a [`Grant`] alone.

use crate::activity::Place;
use crate::cache::TtlMap;
use crate::counters::{CacheKind, add};
use crate::error::Cause;
use crate::forward::RunnerPath;
use crate::grant::{Access, Asker, Grant};
use crate::ids::SandboxId;
use crate::mailbox::{Answer, Question, Trouble};
use crate::pool::Runner;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Instant;

/// A runner, and where on it the request goes.
pub struct Target {
    pub runner: Rc<Runner>,
    /// `None`: not a sandbox's (build logs).
    pub place: Option<Rc<Place>>,
    pub path: RunnerPath,
    pub strip_authorization: bool,
}

/// A shard's memory of where sandboxes are. `None`: on no runner.
pub type Places = TtlMap<SandboxId, Option<Rc<Place>>>;

/// Finds the runner. `fresh`: what is remembered here was wrong (its runner refused), so ask again.
pub async fn locate(asker: &Asker<'_>, grant: &Grant, fresh: bool) -> Result<Target, Cause> {
    let strip_authorization = grant.strips_authorization();
    match grant.access() {
        Access::Preview { sandbox, port } => {
            let place = place_of(asker, sandbox, fresh).await?;
            let path = RunnerPath::Preview { sandbox: *sandbox, port: *port };
            Ok(Target { runner: place.runner.clone(), place: Some(place), path, strip_authorization })
        }
        Access::Toolbox { sandbox, rest_at } => {
            let place = place_of(asker, sandbox, fresh).await?;
            let path = RunnerPath::Toolbox { sandbox: *sandbox, rest_at: *rest_at };
            Ok(Target { runner: place.runner.clone(), place: Some(place), path, strip_authorization })
        }
        Access::BuildLogs { of, follow, bearer } => {
            let question =
                Question::BuildLogs { of: of.clone(), bearer: bearer.clone(), client_ip: asker.ip };
            let (address, snapshot_ref) = match asker.ask(question).await?.reply {
                Ok(Answer::BuildLogs { runner, snapshot_ref }) => (runner, snapshot_ref),
                Ok(Answer::No) => return Err(Cause::AuthInvalid),
                Ok(_) => return Err(Cause::NotFound),
                Err(trouble) => return Err(Cause::Api(trouble)),
            };
            let runner = asker.shard.pool.runner(address).ok_or(Cause::Api(Trouble::RunnerUrl))?;
            let mut target = String::from("/snapshots/logs?snapshotRef=");
            encode_query_value(&snapshot_ref, &mut target);
            if *follow {
                target.push_str("&follow=true");
            }
            let path = RunnerPath::Whole(target);
            Ok(Target { runner, place: None, path, strip_authorization })
        }
    }
}

async fn place_of(asker: &Asker<'_>, sandbox: &SandboxId, fresh: bool) -> Result<Rc<Place>, Cause> {
    let shard = asker.shard;
    if fresh {
        shard.places.borrow_mut().remove(sandbox);
    } else if let Some(place) = shard.places.borrow_mut().get(sandbox, asker.now) {
        add(&shard.counters.cache_hits[CacheKind::Runner as usize], 1);
        return place.clone().ok_or(Cause::SandboxNotRunning);
    }
    add(&shard.counters.cache_misses[CacheKind::Runner as usize], 1);
    let told = asker.ask(Question::Runner { sandbox: *sandbox, fresh }).await?;
    let place = match told.reply {
        Ok(Answer::Runner(address)) => {
            let runner = shard.pool.runner(address).ok_or(Cause::Api(Trouble::RunnerUrl))?;
            Some(Place::new(*sandbox, runner))
        }
        Ok(Answer::NotFound | Answer::No) => None,
        Ok(_) => return Err(Cause::Api(Trouble::ApiGarbage)),
        Err(trouble) => return Err(Cause::Api(trouble)),
    };
    shard.places.borrow_mut().insert(*sandbox, place.clone(), told.keep, Instant::now());
    place.ok_or(Cause::SandboxNotRunning)
}

/// Everything but RFC 3986 unreserved characters is percent-encoded, so the value can end nothing and add nothing.
fn encode_query_value(value: &str, out: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_ref_cannot_add_a_parameter() {
        let mut out = String::new();
        encode_query_value("reg/snap:1&snapshotRef=stolen#x y", &mut out);
        assert_eq!(out, "reg%2Fsnap%3A1%26snapshotRef%3Dstolen%23x%20y");
    }
}
