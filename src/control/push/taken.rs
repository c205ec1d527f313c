//! What news have taken away, for as long as the API may not know it yet itself: until its own memory is over, its
//! "yes" does not count against them.

use crate::ids::SandboxId;
use crate::mailbox::{ProofKind, Question, Said, TokenHash};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Bounded: what finds no room is left to the API, which is asked about every change anyway, and once more when its
/// memory is over.
pub struct Taken {
    sandboxes: HashMap<SandboxId, Known>,
    sandboxes_max: usize,
    lasts: Duration,
}

/// Each with the moment it was said.
#[derive(Clone, Copy, Default)]
struct Known {
    private: Option<Instant>,
    /// The flag's key ended while it said "public"; if it is not there again, it was deleted.
    flag_lost: Option<Instant>,
    token: Option<(TokenHash, Instant)>,
    /// The one before it.
    replaced: Option<(TokenHash, Instant)>,
}

impl Taken {
    /// At most so many sandboxes, about 200 bytes each; nothing counts for longer than `lasts`.
    pub fn new(sandboxes_max: usize, lasts: Duration) -> Self {
        Self { sandboxes: HashMap::new(), sandboxes_max, lasts }
    }

    /// A later "public" takes nothing back: news can be late, and they give no rights. A token that has just been
    /// replaced is not the good one again either: such news are late, and what they say of tokens is left out of the
    /// result.
    pub fn said(&mut self, sandbox: SandboxId, mut said: Said, now: Instant) -> Said {
        if said.public == Some(false) {
            self.note(sandbox, now, |known| known.private = Some(now));
        }
        let replaced = self.of(&sandbox).replaced;
        let is_late = |token: TokenHash| {
            replaced.is_some_and(|(old, at)| old == token && now.saturating_duration_since(at) < self.lasts)
        };
        said.token = said.token.filter(|token| !is_late(*token));
        if let Some(token) = said.token {
            self.note(sandbox, now, |known| {
                let before = known.token.filter(|(before, _)| *before != token);
                known.replaced = before.map(|(before, _)| (before, now)).or(known.replaced);
                known.token = Some((token, now));
            });
        }
        said
    }

    pub fn flag_lost(&mut self, sandbox: SandboxId, now: Instant) {
        self.note(sandbox, now, |known| known.flag_lost = Some(now));
    }

    /// Did the flag's key end lately while it said "public"?
    pub fn has_lost_flag(&self, sandbox: &SandboxId, now: Instant) -> bool {
        self.counts(self.of(sandbox).flag_lost, now)
    }

    /// For so long the answer is "no", whatever the API says. `None`: it may be anything.
    pub fn denies(&self, question: &Question, now: Instant) -> Option<Duration> {
        let said_at = match question {
            Question::Public(sandbox) => self.of(sandbox).private,
            Question::Verdict { proof: ProofKind::PreviewToken, sandbox, token, .. } => {
                let said = self.of(sandbox).token;
                said.filter(|(good, _)| *good != TokenHash::of(token.expose())).map(|(_, at)| at)
            }
            _ => None,
        };
        let left = self.lasts.saturating_sub(now.saturating_duration_since(said_at?));
        (!left.is_zero()).then_some(left)
    }

    fn of(&self, sandbox: &SandboxId) -> Known {
        // The usual case: nothing happened anywhere.
        if self.sandboxes.is_empty() {
            return Known::default();
        }
        self.sandboxes.get(sandbox).copied().unwrap_or_default()
    }

    fn counts(&self, at: Option<Instant>, now: Instant) -> bool {
        at.is_some_and(|at| now.saturating_duration_since(at) < self.lasts)
    }

    fn note(&mut self, sandbox: SandboxId, now: Instant, change: impl FnOnce(&mut Known)) {
        if self.sandboxes.len() >= self.sandboxes_max && !self.sandboxes.contains_key(&sandbox) {
            let lasts = self.lasts;
            let counts = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < lasts);
            self.sandboxes.retain(|_, known| {
                counts(known.private) || counts(known.flag_lost) || counts(known.token.map(|(_, at)| at))
            });
            if self.sandboxes.len() >= self.sandboxes_max {
                return;
            }
        }
        change(self.sandboxes.entry(sandbox).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Token;

    const LASTS: Duration = Duration::from_secs(3);

    fn id(n: u32) -> SandboxId {
        SandboxId::parse(format!("s{n}").as_bytes()).expect("an id")
    }

    fn shows(n: u32, proof: ProofKind, token: &str) -> Question {
        let token = Token::parse(token.as_bytes()).expect("visible");
        Question::Verdict { proof, sandbox: id(n), token, client_ip: [127, 0, 0, 1].into() }
    }

    #[test]
    fn what_news_take_away_is_denied_while_the_api_may_not_know_and_nothing_else() {
        let (mut taken, start) = (Taken::new(8, LASTS), Instant::now());
        let token = Some(TokenHash::of("new"));
        taken.said(id(1), Said { public: Some(false), token, ended: None }, start);
        let soon = start + LASTS / 2;
        assert!(taken.denies(&Question::Public(id(1)), soon).is_some());
        assert!(taken.denies(&shows(1, ProofKind::PreviewToken, "old"), soon).is_some());
        for other in [
            shows(1, ProofKind::PreviewToken, "new"),
            shows(1, ProofKind::Bearer, "old"),
            shows(2, ProofKind::PreviewToken, "old"),
            Question::Public(id(2)),
            Question::Runner { sandbox: id(1), fresh: false },
        ] {
            assert_eq!(taken.denies(&other, soon), None, "{other:?}");
        }
        // Late news of the time before give nothing back.
        taken.said(id(1), Said { public: Some(true), ..Said::default() }, soon);
        assert!(taken.denies(&Question::Public(id(1)), soon).is_some());
        assert_eq!(taken.denies(&Question::Public(id(1)), start + LASTS), None);
        assert_eq!(taken.denies(&shows(1, ProofKind::PreviewToken, "old"), start + LASTS), None);
    }

    #[test]
    fn it_holds_its_bound_and_makes_room_of_what_counts_no_more() {
        let (mut taken, start) = (Taken::new(2, LASTS), Instant::now());
        let private = Said { public: Some(false), ..Said::default() };
        for n in 0..3 {
            taken.said(id(n), private, start);
        }
        assert_eq!(taken.sandboxes.len(), 2);
        assert_eq!(taken.denies(&Question::Public(id(2)), start), None);
        let later = start + LASTS;
        taken.flag_lost(id(3), later);
        assert!(taken.has_lost_flag(&id(3), later) && !taken.has_lost_flag(&id(3), later + LASTS));
        assert_eq!(taken.sandboxes.len(), 1);
    }

    #[test]
    fn late_news_make_no_replaced_token_the_good_one_again() {
        let (mut taken, start) = (Taken::new(8, LASTS), Instant::now());
        let of = |text: &str| Said { token: Some(TokenHash::of(text)), ..Said::default() };
        assert!(taken.said(id(1), of("old"), start).token.is_some());
        assert!(taken.said(id(1), of("new"), start + LASTS / 6).token.is_some());
        let late = start + LASTS / 3;
        assert_eq!(taken.said(id(1), of("old"), late).token.map(|_| ()), None, "nobody is told");
        assert!(taken.denies(&shows(1, ProofKind::PreviewToken, "old"), late).is_some());
        assert!(taken.denies(&shows(1, ProofKind::PreviewToken, "new"), late).is_none());
        // Once the API knows for certain, its word counts alone.
        let later = start + LASTS * 2;
        assert!(taken.said(id(1), of("old"), later).token.is_some());
        assert!(taken.denies(&shows(1, ProofKind::PreviewToken, "old"), later).is_none());
    }
}
