//! What a thread sends next: a line of arrivals through the phases of a plan, and what becomes of those that are late.
//!
//! Pure: the clock is the caller's, who also draws classes and counts. Two lines run through every plan: one is served by kept
//! connections, which may all be busy, the other starts sessions, for which nobody needs to be free.

use crate::plan::Load;
use crate::schedule::Schedule;
use std::time::Instant;

/// A line's part of one phase.
pub struct Stretch {
    pub begin: Instant,
    pub end: Instant,
    /// In a closed loop something is due whenever somebody asks.
    pub closed: bool,
    pub schedule: Schedule,
}

impl Stretch {
    /// `schedule`: the line's part of `load`. `is_empty`: no class of the phase is the line's.
    pub fn new(begin: Instant, end: Instant, load: Load, is_empty: bool, schedule: Schedule) -> Self {
        Self { begin, end, closed: load == Load::Closed && !is_empty, schedule }
    }

    /// Takes the next arrival if it is due.
    fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due().filter(|due| *due <= now)?;
        self.schedule.advance();
        Some(due)
    }

    fn next_due(&self) -> Option<Instant> {
        self.schedule.peek().map(|at| self.begin + at)
    }
}

/// Who asks for what is next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// Could have sent it when it was due: that it was not sent is this thread's lateness.
    WasFree,
    /// Was busy until now, as everybody was whom the line has.
    WasBusy,
}

/// What a line has next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// To be sent now.
    Send { phase: usize, due: Instant },
    /// Was due in its phase, and nobody was free: it is not sent any more, but counts.
    GiveUp { phase: usize, due: Instant },
    /// Nothing before then.
    Wait(Instant),
    /// Nothing any more.
    Over,
}

pub struct Line {
    stretches: Vec<Stretch>,
    /// Which of them is on; as many as there are: none any more.
    phase: usize,
    state: State,
    /// It was broken off with something still to come.
    cut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The phase is on, or begins next.
    Sending,
    /// The phase is over, and what was due in it waits because this thread is late: it is sent all the same.
    CatchingUp,
    /// The phase is over, and what was due in it waits because nobody was free.
    GivingUp,
    /// The run is broken off, and what was due waits because nobody was free.
    BrokenOff,
}

impl Line {
    pub fn new(stretches: Vec<Stretch>) -> Self {
        Self { stretches, phase: 0, state: State::Sending, cut: false }
    }

    pub fn is_over(&self) -> bool {
        self.phase == self.stretches.len()
    }

    /// The run ended before this line did.
    pub fn was_cut(&self) -> bool {
        self.cut
    }

    /// Due in this phase by `now`, and neither sent nor given up.
    pub fn backlog(&self, phase: usize, now: Instant) -> u64 {
        match self.stretches.get(phase) {
            Some(on) if phase == self.phase => on.schedule.backlog(now.saturating_duration_since(on.begin)),
            _ => 0,
        }
    }

    /// The next step, which is taken by asking. Each is a step forward: who goes on asking comes to a `Wait` or the end, in a
    /// closed loop to a `Send` without end.
    pub fn next(&mut self, asker: Asker, now: Instant) -> Step {
        loop {
            let phase = self.phase;
            let Some(on) = self.stretches.get_mut(phase) else { return Step::Over };
            match self.state {
                State::Sending if now >= on.end => self.end_phase(asker),
                State::Sending => return on.step(phase, now),
                State::CatchingUp => match on.take_due(now) {
                    Some(due) => return Step::Send { phase, due },
                    None => self.go_to(phase + 1),
                },
                State::GivingUp | State::BrokenOff => match on.take_due(now) {
                    Some(due) => return Step::GiveUp { phase, due },
                    None if self.state == State::GivingUp => self.go_to(phase + 1),
                    None => self.go_to(self.stretches.len()),
                },
            }
        }
    }

    /// Breaks the line off, if it is not over. What this thread was late with is no part of the run then; what waited for
    /// somebody to be free is given up by asking on.
    pub fn stop(&mut self, asker: Asker, now: Instant) {
        let Some(on) = self.stretches.get(self.phase) else { return };
        let waiting = on.next_due().is_some_and(|due| due <= now);
        let late = waiting && (asker == Asker::WasFree || self.state == State::CatchingUp);
        let more_to_come = self.stretches.last().is_some_and(|last| now < last.end);
        match self.state {
            State::BrokenOff => return,
            State::Sending | State::GivingUp if !late => self.state = State::BrokenOff,
            _ => self.go_to(self.stretches.len()),
        }
        self.cut = late || more_to_come;
    }

    /// What it was catching up with is given up: there is no more time for it.
    pub fn give_up(&mut self) {
        if self.state == State::CatchingUp {
            self.state = State::GivingUp;
        }
    }

    pub fn is_catching_up(&self) -> bool {
        self.state == State::CatchingUp
    }

    fn end_phase(&mut self, asker: Asker) {
        self.state = match asker {
            Asker::WasFree => State::CatchingUp,
            Asker::WasBusy => State::GivingUp,
        };
    }

    fn go_to(&mut self, phase: usize) {
        self.phase = phase;
        self.state = State::Sending;
    }
}

impl Stretch {
    fn step(&mut self, phase: usize, now: Instant) -> Step {
        if now < self.begin {
            return Step::Wait(self.begin);
        }
        if self.closed {
            return Step::Send { phase, due: now };
        }
        match self.take_due(now) {
            Some(due) => Step::Send { phase, due },
            None => Step::Wait(self.next_due().unwrap_or(self.end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::Span;
    use crate::schedule::Part;
    use Asker::{WasBusy, WasFree};
    use std::time::Duration;

    const WHOLE: Part = Part { index: 0, count: 1 };

    /// Phases of 100 ms from 1,000 ms on, and what is said as it would be said aloud.
    struct Table {
        line: Line,
        zero: Instant,
    }

    impl Table {
        fn of(loads: &[Load]) -> Self {
            let zero = Instant::now();
            let at = |n: usize| zero + Duration::from_millis(1000 + 100 * n as u64);
            let stretches = loads.iter().enumerate().map(|(n, load)| {
                let schedule = Schedule::new(*load, Duration::from_millis(100), 1.0, WHOLE, None);
                Stretch::new(at(n), at(n + 1), *load, false, schedule)
            });
            Self { line: Line::new(stretches.collect()), zero }
        }

        fn at(&self, ms: u64) -> Instant {
            self.zero + Duration::from_millis(ms)
        }

        fn ms(&self, instant: Instant) -> u64 {
            (instant - self.zero).as_millis() as u64
        }

        fn ask(&mut self, asker: Asker, ms: u64) -> String {
            let step = self.line.next(asker, self.at(ms));
            match step {
                Step::Send { phase, due } => format!("send {phase}:{}", self.ms(due)),
                Step::GiveUp { phase, due } => format!("give up {phase}:{}", self.ms(due)),
                Step::Wait(until) => format!("wait {}", self.ms(until)),
                Step::Over => "over".into(),
            }
        }

        /// What this asker is told until there is nothing to be done at once.
        fn ask_on(&mut self, asker: Asker, ms: u64) -> Vec<String> {
            let mut said = Vec::new();
            loop {
                said.push(self.ask(asker, ms));
                if said.last().is_some_and(|step| step.starts_with("wait") || step == "over") {
                    return said;
                }
            }
        }
    }

    /// 0, 25, 50 and 75 ms into its phase.
    const HOLD: Load = Load::Hold { rate: 40.0 };

    #[test]
    fn a_phase_is_sent_as_planned_whoever_asks() {
        for asker in [WasFree, WasBusy] {
            let mut table = Table::of(&[HOLD, HOLD]);
            for (ms, said) in [
                (0, "wait 1000"),
                (999, "wait 1000"),
                (1000, "send 0:1000"),
                (1000, "wait 1025"),
                (1060, "send 0:1025"),
                (1060, "send 0:1050"),
                (1060, "wait 1075"),
                (1075, "send 0:1075"),
                (1080, "wait 1100"),
                (1100, "send 1:1100"),
                (1180, "send 1:1125"),
                (1180, "send 1:1150"),
                (1180, "send 1:1175"),
                (1199, "wait 1200"),
                (1200, "over"),
                (9999, "over"),
            ] {
                assert_eq!(table.ask(asker, ms), said, "{asker:?} at {ms}");
            }
            assert!(table.line.is_over() && !table.line.was_cut());
        }
    }

    #[test]
    fn what_is_due_at_a_phase_s_end_is_sent_if_somebody_was_free_and_given_up_if_nobody_was() {
        let late = ["0:1050", "0:1075"];
        for (asker, verb) in [(WasFree, "send"), (WasBusy, "give up")] {
            let mut table = Table::of(&[HOLD, HOLD]);
            assert_eq!(table.ask_on(WasFree, 1040), ["send 0:1000", "send 0:1025", "wait 1050"]);
            assert_eq!(table.line.backlog(0, table.at(1110)), 2);
            for late in late {
                assert_eq!(table.ask(asker, 1110), format!("{verb} {late}"));
            }
            assert_eq!(table.ask_on(asker, 1110), ["send 1:1100", "wait 1125"]);
            assert_eq!(
                (table.line.backlog(0, table.at(1110)), table.line.backlog(1, table.at(1200))),
                (0, 3)
            );
        }
    }

    #[test]
    fn who_catches_up_goes_on_whoever_asks_until_there_is_no_more_time() {
        let caught = || {
            let mut table = Table::of(&[HOLD]);
            assert_eq!(table.ask(WasFree, 1100), "send 0:1000");
            assert!(table.line.is_catching_up());
            table
        };
        let mut patient = caught();
        assert_eq!(patient.ask_on(WasBusy, 1150), ["send 0:1025", "send 0:1050", "send 0:1075", "over"]);
        let mut impatient = caught();
        impatient.line.give_up();
        assert_eq!(
            impatient.ask_on(WasFree, 1150),
            ["give up 0:1025", "give up 0:1050", "give up 0:1075", "over"]
        );
        assert!(!patient.line.was_cut() && !impatient.line.was_cut(), "nobody stopped it");
    }

    #[test]
    fn a_stop_ends_all_phases_and_says_whether_something_was_still_to_come() {
        // When which asker sees it, after one has asked until then: what is given up, and whether the run is less than planned.
        for (asked_until, asker, ms, given_up, cut) in [
            // Before anything.
            (0, WasFree, 500, &[][..], true),
            // In a phase: nothing waits; it waits for this thread; it waits for somebody to be free.
            (1010, WasFree, 1020, &[], true),
            (1010, WasFree, 1060, &[], true),
            (1010, WasBusy, 1060, &["0:1025", "0:1050"], true),
            // Behind the last arrival, and just before the end: of the last phase, too.
            (1090, WasBusy, 1099, &[], true),
            (1190, WasFree, 1199, &[], true),
            (1190, WasBusy, 1199, &[], true),
            // The time is over: less than planned is only what this thread did not send.
            (1190, WasFree, 1200, &[], false),
            (1190, WasBusy, 1200, &[], false),
            (1160, WasBusy, 1200, &["1:1175"], false),
            (1160, WasFree, 1200, &[], true),
            // Over before.
            (1200, WasFree, 1300, &[], false),
        ] {
            let mut table = Table::of(&[HOLD, HOLD]);
            for ms in [1099, 1190].into_iter().filter(|ms| *ms < asked_until).chain([asked_until]) {
                table.ask_on(WasFree, ms);
            }
            let now = table.at(ms);
            table.line.stop(asker, now);
            let mut said: Vec<String> = given_up.iter().map(|due| format!("give up {due}")).collect();
            said.push("over".into());
            let case = format!("{asker:?} at {ms}, asked until {asked_until}");
            assert_eq!(table.ask_on(asker, ms), said, "{case}");
            table.line.stop(asker, now);
            assert_eq!((table.line.is_over(), table.line.was_cut()), (true, cut), "{case}");
        }
    }

    #[test]
    fn what_is_being_caught_up_with_at_a_stop_is_no_part_of_the_run() {
        let mut table = Table::of(&[HOLD]);
        assert_eq!(table.ask(WasFree, 1100), "send 0:1000");
        table.line.stop(WasBusy, table.at(1110));
        assert_eq!(table.ask(WasBusy, 1110), "over");
        assert!(table.line.was_cut());
    }

    #[test]
    fn a_closed_loop_has_something_for_everybody_and_a_quiet_phase_for_nobody() {
        let mut table = Table::of(&[Load::Closed, Load::Quiet, HOLD]);
        for ms in [1000, 1001, 1001, 1099] {
            assert_eq!(table.ask(WasBusy, ms), format!("send 0:{ms}"));
        }
        assert_eq!(table.ask(WasFree, 1100), "wait 1200");
        assert_eq!(table.ask(WasFree, 1200), "send 2:1200");
        let mut bursts = Table::of(&[Load::Burst { size: 2, every: Span(Duration::from_millis(60)) }]);
        assert_eq!(bursts.ask_on(WasFree, 1000), ["send 0:1000", "send 0:1000", "wait 1060"]);
        // A closed loop of which no class is this line's.
        let schedule = Schedule::new(Load::Closed, Duration::from_millis(100), 0.0, WHOLE, None);
        let empty = Stretch::new(bursts.at(0), bursts.at(100), Load::Closed, true, schedule);
        let mut none = Line::new(vec![empty]);
        assert_eq!(none.next(WasFree, bursts.at(50)), Step::Wait(bursts.at(100)));
    }
}
