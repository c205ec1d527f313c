//! Refusals of a moment ago, for questions that come too late to share their flight.
//!
//! A shard remembers an answer once it has it; between the flight's landing and that moment, and on other shards,
//! the same question comes again, in a flood of bad tokens many times over. Only refusals are kept, and no longer than a
//! shard may keep them: who hears one later has it for the rest of that time.

use super::lookup::Found;
use crate::cache::TtlMap;
use crate::ids::Token;
use crate::mailbox::{Answer, Question, Reply};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Costs at worst this many times [`TOKEN_BYTES_MAX`]: 8 MiB.
const QUESTIONS_MAX: usize = 4096;
/// Longer ones are not kept.
const TOKEN_BYTES_MAX: usize = 2048;

pub(super) struct Echo {
    refused: TtlMap<Arc<Question>, Refusal>,
}

struct Refusal {
    reply: Reply,
    began: Instant,
    until: Instant,
}

/// A refusal said again.
pub(super) struct Heard {
    pub(super) reply: Reply,
    /// What is left of the time it may be remembered.
    pub(super) keep: Duration,
    /// When it was asked for: a change since then makes it old.
    pub(super) began: Instant,
}

impl Echo {
    pub(super) fn new() -> Self {
        Self { refused: TtlMap::new(QUESTIONS_MAX) }
    }

    /// What was answered a moment ago, if it was a refusal.
    pub(super) fn of(&mut self, question: &Question, now: Instant) -> Option<Heard> {
        // Equality is by value; the allocation is for a question that would cost a flight.
        let Refusal { reply, began, until } = self.refused.get(&Arc::new(question.clone()), now)?;
        Some(Heard { reply: reply.clone(), keep: until.duration_since(now), began: *began })
    }

    /// A flight has landed that took so long.
    pub(super) fn hear(&mut self, question: Arc<Question>, found: &Found, took: Duration, now: Instant) {
        let Found { reply, keep } = found;
        let short = |token: &Token| token.expose().len() <= TOKEN_BYTES_MAX;
        let worth_it = match &*question {
            Question::Verdict { token, .. } => short(token),
            Question::Public(_) | Question::SignedToken { .. } => true,
            _ => false,
        };
        let refused = matches!(reply, Ok(Answer::No | Answer::NotFound));
        if let Some(until) = now.checked_add(*keep).filter(|until| worth_it && refused && *until > now) {
            let began = now.checked_sub(took).unwrap_or(now);
            self.refused.insert(question, Refusal { reply: reply.clone(), began, until }, *keep, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;
    use crate::mailbox::{ProofKind, Trouble};
    use std::net::Ipv4Addr;

    const KEEP: Duration = Duration::from_secs(5);
    const TOOK: Duration = Duration::from_millis(10);

    fn verdict(token: &str) -> Arc<Question> {
        Arc::new(Question::Verdict {
            proof: ProofKind::PreviewToken,
            sandbox: SandboxId::parse(b"a").expect("an id"),
            token: Token::parse(token.as_bytes()).expect("visible"),
            client_ip: Ipv4Addr::UNSPECIFIED.into(),
        })
    }

    #[test]
    fn a_refusal_is_repeated_for_as_long_as_it_may_be_kept_and_nothing_else_is() {
        let (mut echo, now) = (Echo::new(), Instant::now());
        for (reply, keep, repeated) in [
            (Ok(Answer::No), KEEP, true),
            (Ok(Answer::NotFound), KEEP, true),
            (Ok(Answer::No), Duration::ZERO, false),
            (Ok(Answer::Yes), KEEP, false),
            (Err(Trouble::ApiTimeout), KEEP, false),
        ] {
            let question = verdict(&format!("{reply:?}{keep:?}").replace(' ', ""));
            echo.hear(question.clone(), &Found { reply, keep }, TOOK, now);
            let later = now + Duration::from_secs(2);
            let heard = echo.of(&question, later).map(|heard| (heard.keep, heard.began));
            assert_eq!(
                heard,
                repeated.then_some((KEEP - Duration::from_secs(2), now - TOOK)),
                "{question:?}"
            );
            assert!(echo.of(&question, now + KEEP).is_none());
        }
        assert!(echo.of(&verdict("other"), now).is_none());
    }

    #[test]
    fn a_flood_of_refusals_is_bounded_in_number_and_size() {
        let (mut echo, now) = (Echo::new(), Instant::now());
        let refusal = Found { reply: Ok(Answer::No), keep: KEEP };
        for n in 0..QUESTIONS_MAX * 2 {
            echo.hear(verdict(&format!("t{n}")), &refusal, TOOK, now);
        }
        assert_eq!(echo.refused.len(), QUESTIONS_MAX);
        let long = verdict(&"x".repeat(TOKEN_BYTES_MAX + 1));
        echo.hear(long.clone(), &refusal, TOOK, now);
        assert!(echo.of(&long, now).is_none());
    }
}
