use super::*;
use crate::ring::{count_turns, on_each_driver};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Wake;

fn sweeps(table: &Deadlines, n: u32) {
    (0..n).for_each(|_| {
        table.sweep_at_once(false);
    });
}

#[test]
fn a_silent_client_is_read_no_more_after_its_time_but_can_still_be_answered() {
    let (mut ours, mut theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watch = table.watch(ours.as_raw_fd());
    watch.client_reads(Some(TICK * 3));
    sweeps(&table, 3);
    assert_eq!(watch.fired(), None);
    sweeps(&table, 2);
    assert_eq!(watch.fired(), Some(Fired::ClientRead));
    assert_eq!(ours.read(&mut [0; 8]).expect("ended"), 0);
    ours.write_all(b"408").expect("still writable");
    let mut answer = [0; 3];
    theirs.read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"408");
}

#[test]
fn a_disarmed_deadline_never_fires() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watch = table.watch(ours.as_raw_fd());
    watch.client_reads(Some(TICK));
    watch.client_reads(None);
    sweeps(&table, 50);
    assert_eq!(watch.fired(), None);
}

#[test]
fn a_client_that_left_ends_the_wait_for_its_runner() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (mut runner, _app) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watch = table.watch(ours.as_raw_fd());
    watch.waits_for_runner(runner.as_raw_fd(), None);
    sweeps(&table, HANGUP_TICKS + 1);
    assert_eq!(watch.fired(), None);
    drop(theirs);
    sweeps(&table, HANGUP_TICKS + 1);
    assert_eq!(watch.fired(), Some(Fired::ClientGone));
    assert_eq!(runner.read(&mut [0; 1]).expect("ended"), 0);
}

#[test]
fn a_runner_s_answer_is_waited_for_until_its_deadline_or_its_release() {
    let wait = |released: bool, client_leaves: bool| {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let (runner, _app) = UnixStream::pair().expect("pair");
        runner.set_nonblocking(true).expect("set");
        let table = Deadlines::new();
        let watch = table.watch(ours.as_raw_fd());
        watch.waits_for_runner(runner.as_raw_fd(), (!client_leaves).then_some(TICK));
        if released {
            watch.detach();
        }
        let _here = (!client_leaves).then_some(theirs);
        sweeps(&table, 2 * HANGUP_TICKS);
        let ended = (&runner).read(&mut [0; 1]).is_ok();
        (watch.fired(), ended)
    };
    assert_eq!(wait(false, false), (Some(Fired::Runner), true));
    assert_eq!(wait(true, false), (None, false));
    assert_eq!(wait(false, true), (Some(Fired::ClientGone), true));
    assert_eq!(wait(true, true), (None, false));
}

#[test]
fn what_ended_one_request_is_over_when_the_next_begins() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watch = table.watch(ours.as_raw_fd());
    watch.client_writes(Some(TICK));
    sweeps(&table, 3);
    assert_eq!(watch.fired(), Some(Fired::ClientWrite));
    // One that was sent together with it.
    watch.begins();
    assert_eq!(watch.fired(), None);
}

/// Its task has not seen the first bytes yet; without the reading side the rest would never come.
#[test]
fn what_idles_with_a_request_waiting_is_not_ended() {
    let table = Deadlines::new();
    for (idle, spoken) in [(Idle::InSocket, true), (Idle::InRing, false)] {
        let (mut ours, mut theirs) = UnixStream::pair().expect("pair");
        let watch = table.watch(ours.as_raw_fd());
        watch.idle(idle, TICK * 100);
        if spoken {
            theirs.write_all(b"P").expect("sent");
        }
        table.sweep_at_once(true);
        theirs.write_all(b"OST").expect("sent");
        let mut all = vec![0; if spoken { 4 } else { 3 }];
        ours.read_exact(&mut all).expect("all of it comes");
    }
    // By its own deadline, either way.
    for idle in [Idle::InSocket, Idle::InRing] {
        let (mut ours, _theirs) = UnixStream::pair().expect("pair");
        let watch = table.watch(ours.as_raw_fd());
        watch.idle(idle, TICK);
        sweeps(&table, 3);
        assert_eq!(ours.read(&mut [0; 1]).expect("ended"), 0);
    }
}

#[test]
fn a_drain_ends_idle_connections_and_no_others() {
    let (mut idle, _a) = UnixStream::pair().expect("pair");
    let (busy, _b) = UnixStream::pair().expect("pair");
    busy.set_nonblocking(true).expect("set");
    let table = Deadlines::new();
    let (idle_watch, busy_watch) = (table.watch(idle.as_raw_fd()), table.watch(busy.as_raw_fd()));
    idle_watch.idle(Idle::InSocket, Duration::from_secs(600));
    busy_watch.busy();
    table.sweep_at_once(true);
    assert_eq!(idle.read(&mut [0; 1]).expect("ended"), 0);
    let kind = (&busy).read(&mut [0; 1]).expect_err("open").kind();
    assert_eq!(kind, std::io::ErrorKind::WouldBlock);
}

#[test]
fn who_tells_why_can_still_write_for_a_moment_and_no_longer() {
    let (mut ours, mut theirs) = UnixStream::pair().expect("pair");
    let (mut runner, mut app) = UnixStream::pair().expect("pair");
    let (mut other, _other_end) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let (watch, silent) = (table.watch(ours.as_raw_fd()), table.watch(other.as_raw_fd()));
    watch.attach(runner.as_raw_fd());
    watch.tells_why(Waker::noop());
    assert!(table.revoke(watch.index(), Revoked::Private) && !table.revoke(watch.index(), Revoked::Token));
    assert_eq!(watch.revoked(), Some(Revoked::Private));
    table.end_all();
    assert_eq!(app.read(&mut [0; 1]).expect("nothing goes there"), 0);
    ours.write_all(b"why").expect("still writable");
    theirs.read_exact(&mut [0; 3]).expect("told");
    theirs.write_all(b"bye").expect("still read");
    sweeps(&table, LAST_WORDS_TICKS);
    ours.write_all(b"late").expect_err("over");
    assert_eq!(runner.read(&mut [0; 1]).expect("ended"), 0);
    // Its reason stays, and who cannot tell it is not ended with the others.
    assert_eq!(table.revoke_who_tell_why(Revoked::Draining), 0);
    assert_eq!((watch.revoked(), silent.revoked()), (Some(Revoked::Private), None));
    silent.tells_why(Waker::noop());
    assert_eq!(table.revoke_who_tell_why(Revoked::Draining), 1);
    assert_eq!(silent.revoked(), Some(Revoked::Draining));
    table.end_all();
    sweeps(&table, LAST_WORDS_TICKS);
    assert_eq!(other.read(&mut [0; 1]).expect("ended"), 0);
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn of_a_thousand_that_end_at_once_each_turn_bears_its_part() {
    const ALL: usize = 1000;
    const PART: usize = TURN_WEIGHT / END_WEIGHT;
    on_each_driver(|| async {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        let table = Deadlines::new();
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let watches: Vec<_> = (0..ALL).map(|_| table.watch(ours.as_raw_fd())).collect();
        watches.iter().for_each(|watch| watch.tells_why(&woken.clone().into()));
        monoio::spawn({
            let table = table.clone();
            async move { table.end_revoked().await }
        });
        let turns = count_turns().await;
        assert_eq!(table.revoke_who_tell_why(Revoked::Draining), ALL);
        let (mut ended, mut most) = (woken.0.load(SeqCst), 0);
        while ended < ALL {
            turns::pass().await;
            let now = woken.0.load(SeqCst);
            (ended, most) = (now, most.max(now - ended));
        }
        assert!(most <= 2 * PART, "{most} in one turn");
        assert!(turns.get() as usize >= ALL / PART / 2, "others had {} turns", turns.get());

        watches.iter().for_each(|watch| {
            watch.unfire();
            watch.client_reads(Some(TICK));
        });
        let (counters, rests) = (Counters::default(), Cell::new(0));
        turns.set(0);
        while counters.deadlines.get() == 0 {
            table.sweep(&Cell::new(false), &counters, |_| rests.set(rests.get() + 1)).await;
        }
        assert_eq!(counters.deadlines.get() as usize, ALL);
        assert!(rests.get() >= ALL / PART - 1, "{} rests", rests.get());
        assert!(turns.get() as usize >= ALL / PART - 1, "others had {} turns", turns.get());
    });
}

#[test]
fn an_answer_whose_end_is_the_connections_is_cut_by_a_reset_whatever_cuts_it() {
    type Cut = fn(&Rc<Deadlines>, Watch) -> Option<Watch>;
    let cuts: [(&str, Cut); 4] = [
        ("closed", |_, watch| {
            drop(watch);
            None
        }),
        ("the process ends", |table, watch| {
            table.abort_answers();
            Some(watch)
        }),
        ("revoked", |table, watch| {
            table.revoke(watch.index(), Revoked::Private);
            table.end_all();
            Some(watch)
        }),
        ("its client takes nothing", |table, watch| {
            watch.client_writes(Some(TICK));
            sweeps(table, 3);
            Some(watch)
        }),
    ];
    for (how, cut) in cuts {
        for whole in [false, true] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("bound");
            let mut theirs = std::net::TcpStream::connect(address).expect("connected");
            let (ours, _) = listener.accept().expect("accepted");
            let table = Deadlines::new();
            let watch = table.watch(ours.as_raw_fd());
            watch.ends_answer(true);
            watch.ends_answer(!whole);
            let watch = cut(&table, watch);
            // Left open: it is ended by what happens, not by this.
            let ours = (how != "closed").then_some(ours);
            theirs
                .set_read_timeout(Some(Duration::from_millis(if ours.is_some() { 200 } else { 10_000 })))
                .expect("set");
            let end = theirs.read(&mut [0]).map_err(|error| error.kind());
            let open = whole && how == "the process ends";
            let expected = if open {
                Err(std::io::ErrorKind::WouldBlock)
            } else if whole {
                Ok(0)
            } else {
                Err(std::io::ErrorKind::ConnectionReset)
            };
            assert_eq!(end, expected, "{how}, whole: {whole}");
            drop((watch, ours));
        }
    }
}

/// A turn of the others' that is long must not make the end of many longer in proportion.
#[test]
fn the_longer_the_others_turns_are_the_more_end_in_one() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watches: Vec<_> = (0..2000).map(|_| table.watch(ours.as_raw_fd())).collect();
    let left = |table: &Deadlines| table.to_end.borrow().len();
    watches.iter().for_each(|watch| assert!(table.revoke(watch.index(), Revoked::Stopped)));
    assert!(table.end_some(Duration::from_micros(100)));
    assert_eq!(left(&table), 2000 - 32);
    assert!(table.end_some(Duration::from_millis(100)));
    assert!((1200..=1400).contains(&left(&table)), "{} left", left(&table));
    // A machine that stood still for an hour was not the others' turn.
    assert!(table.end_some(Duration::from_secs(3600)));
    assert!((400..=800).contains(&left(&table)), "{} left", left(&table));
    table.end_all();
    assert_eq!(left(&table), 0);
}

/// Its task was woken by something else and was faster than its turn to end.
#[test]
fn who_has_told_why_before_its_turn_came_has_its_time_to_close() {
    let (mut ours, _theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let watch = table.watch(ours.as_raw_fd());
    watch.tells_why(Waker::noop());
    assert!(table.revoke(watch.index(), Revoked::Stopped));
    watch.told_why(TICK * 20);
    table.end_all();
    sweeps(&table, 2 * LAST_WORDS_TICKS);
    ours.write_all(b"whole").expect("still open");
    sweeps(&table, 20);
    assert_eq!(ours.read(&mut [0; 1]).expect("ended"), 0);
}

#[test]
fn what_was_revoked_and_is_over_takes_nobody_along_who_comes_after_it() {
    let [(one, _a), (other, _b)] = [0; 2].map(|_| UnixStream::pair().expect("pair"));
    let table = Deadlines::new();
    let (first, second) = (table.watch(one.as_raw_fd()), table.watch(other.as_raw_fd()));
    assert!(table.revoke(first.index(), Revoked::Private) && table.revoke(second.index(), Revoked::Private));
    // One connection is closed and its place another's; the other one waits for its next request.
    let place = first.index();
    drop(first);
    let third = table.watch(one.as_raw_fd());
    assert_eq!(third.index(), place);
    second.idle(Idle::InSocket, TICK * 100);
    table.end_all();
    for mut open in [&one, &other] {
        open.set_nonblocking(true).expect("set");
        assert_eq!(open.read(&mut [0]).expect_err("open").kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_place_is_used_again_without_its_past() {
    let (ours, _theirs) = UnixStream::pair().expect("pair");
    let table = Deadlines::new();
    let first = table.watch(ours.as_raw_fd());
    first.client_reads(Some(TICK));
    drop(first);
    let second = table.watch(ours.as_raw_fd());
    sweeps(&table, 10);
    assert_eq!(second.fired(), None);
    assert_eq!(table.entries.borrow().len(), 1);
}
