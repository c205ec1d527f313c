//! Refusals of a moment ago, for questions that come too late to share their flight.
//!
//! A shard remembers an answer once it has it; between the flight's landing and that moment, and on other shards,
//! the same question comes again, in a flood of bad tokens many times over. Only refusals are kept, and only as long as
//! shards would need to hear of them: a refusal is never lengthened by more than [`KEPT`].

use crate::cache::TtlMap;
use crate::ids::Token;
use crate::mailbox::{Answer, Question, Reply};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const KEPT: Duration = Duration::from_secs(1);
/// Costs at worst this many times [`TOKEN_BYTES_MAX`]: 8 MiB.
const QUESTIONS_MAX: usize = 4096;
/// Longer ones are not kept.
const TOKEN_BYTES_MAX: usize = 2048;

pub(super) struct Echo {
    refused: TtlMap<Arc<Question>, Reply>,
}

impl Echo {
    pub(super) fn new() -> Self {
        Self { refused: TtlMap::new(QUESTIONS_MAX) }
    }

    /// What was answered a moment ago, if it was a refusal.
    pub(super) fn of(&mut self, question: &Question, now: Instant) -> Option<Reply> {
        // Equality is by value; the allocation is for a question that would cost a flight.
        self.refused.get(&Arc::new(question.clone()), now).cloned()
    }

    pub(super) fn hear(&mut self, question: Arc<Question>, reply: &Reply, now: Instant) {
        let short = |token: &Token| token.expose().len() <= TOKEN_BYTES_MAX;
        let worth_it = match &*question {
            Question::Verdict { token, .. } => short(token),
            Question::Public(_) | Question::SignedToken { .. } => true,
            Question::Runner { .. } | Question::BuildLogs { .. } | Question::Login(_) => false,
        };
        if worth_it && matches!(reply, Ok(Answer::No | Answer::NotFound)) {
            self.refused.insert(question, reply.clone(), KEPT, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;
    use crate::mailbox::{ProofKind, Trouble};
    use std::net::Ipv4Addr;

    fn verdict(token: &str) -> Arc<Question> {
        Arc::new(Question::Verdict {
            proof: ProofKind::PreviewToken,
            sandbox: SandboxId::parse(b"a").expect("an id"),
            token: Token::parse(token.as_bytes()).expect("visible"),
            client_ip: Ipv4Addr::UNSPECIFIED.into(),
        })
    }

    #[test]
    fn a_refusal_is_repeated_for_a_moment_and_nothing_else_is() {
        let (mut echo, now) = (Echo::new(), Instant::now());
        for (reply, repeated) in [
            (Ok(Answer::No), true),
            (Ok(Answer::NotFound), true),
            (Ok(Answer::Yes), false),
            (Err(Trouble::ApiTimeout), false),
        ] {
            let question = verdict(&format!("{reply:?}").replace(' ', ""));
            echo.hear(question.clone(), &reply, now);
            assert_eq!(echo.of(&question, now).is_some(), repeated, "{reply:?}");
            assert!(echo.of(&question, now + KEPT).is_none(), "{reply:?}");
        }
        assert!(echo.of(&verdict("other"), now).is_none());
    }

    #[test]
    fn a_flood_of_refusals_is_bounded_in_number_and_size() {
        let (mut echo, now) = (Echo::new(), Instant::now());
        for n in 0..QUESTIONS_MAX * 2 {
            echo.hear(verdict(&format!("t{n}")), &Ok(Answer::No), now);
        }
        assert_eq!(echo.refused.len(), QUESTIONS_MAX);
        let long = verdict(&"x".repeat(TOKEN_BYTES_MAX + 1));
        echo.hear(long.clone(), &Ok(Answer::No), now);
        assert!(echo.of(&long, now).is_none());
    }
}
