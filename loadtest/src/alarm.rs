//! Timers of better than the runtime's millisecond: requests leave when they are due.

use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// One timer; whoever needs it earliest sets it.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    due: Cell<Option<Instant>>,
}

impl Alarm {
    /// Must be made within the thread's runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Deprecated for descriptors that are closed or replaced while registered: this one is owned and stays.
        #[expect(deprecated, reason = "its successor is unsafe to call; OwnedFd keeps what it asks for")]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, due: Cell::new(None) })
    }

    /// Rings at `due` at the latest.
    pub fn set(&self, due: Instant) {
        if self.due.get().is_some_and(|set| set <= due) {
            return;
        }
        self.due.set(Some(due));
        // Zero would disarm it.
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)
            .expect("a valid time for a timer of our own");
    }

    /// Waits until it rings; then it is not set. Cancel-safe.
    pub async fn rung(&self) {
        let mut expirations = [0; 8];
        loop {
            let mut guard = self.timer.readable().await.expect("the runtime outlives its tasks");
            let read = guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            if read.is_ok() {
                self.due.set(None);
                return;
            }
        }
    }
}

/// One alarm for all of a thread's tasks that wait for a moment: a file each would be as many files again as sessions.
pub struct Timers {
    alarm: Alarm,
    waiting: RefCell<BTreeMap<Key, Waker>>,
    next: Cell<u64>,
}

/// When it is due, and a number that tells apart what is due at the same time.
type Key = (Instant, u64);

impl Timers {
    /// Must be made within the thread's runtime. Nobody is woken but by [`Self::run`].
    pub fn new() -> io::Result<Self> {
        Ok(Self { alarm: Alarm::new()?, waiting: RefCell::default(), next: Cell::new(0) })
    }

    /// Waits until this moment. Cancel-safe.
    pub fn until(&self, due: Instant) -> Until<'_> {
        Until { timers: self, due, key: None }
    }

    /// Wakes those whose moment has come, until it is dropped.
    pub async fn run(&self) {
        loop {
            self.alarm.rung().await;
            let now = Instant::now();
            // Nobody who is woken runs before this is done.
            let mut waiting = self.waiting.borrow_mut();
            while let Some(first) = waiting.first_entry() {
                if first.key().0 > now {
                    self.alarm.set(first.key().0);
                    break;
                }
                first.remove().wake();
            }
        }
    }
}

/// See [`Timers::until`].
pub struct Until<'a> {
    timers: &'a Timers,
    due: Instant,
    /// Where it waits.
    key: Option<Key>,
}

impl Future for Until<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.due {
            return Poll::Ready(());
        }
        let Self { timers, due, .. } = *self;
        let key = *self.key.get_or_insert_with(|| (due, timers.next.replace(timers.next.get() + 1)));
        timers.waiting.borrow_mut().insert(key, context.waker().clone());
        timers.alarm.set(due);
        Poll::Pending
    }
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.waiting.borrow_mut().remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use tokio::task::{LocalSet, spawn_local};

    fn on_a_thread(test: impl AsyncFnOnce(Rc<Timers>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(LocalSet::new().run_until(async {
            let timers = Rc::new(Timers::new().expect("a timer"));
            let running = timers.clone();
            let running = spawn_local(async move { running.run().await });
            test(timers).await;
            running.abort();
        }));
    }

    #[test]
    fn everybody_is_woken_in_the_order_of_the_moments_and_never_before() {
        on_a_thread(async |timers| {
            // Far enough away that all wait by then, on a busy machine too: who comes later is not woken but there at once.
            let begun = Instant::now() + Duration::from_millis(200);
            let order = Rc::new(RefCell::new(Vec::new()));
            // Neither sorted nor all different.
            let wait = |ms: u64| {
                let (timers, order) = (timers.clone(), order.clone());
                spawn_local(async move {
                    let due = begun + Duration::from_millis(ms);
                    timers.until(due).await;
                    assert!(Instant::now() >= due, "woken before its time");
                    order.borrow_mut().push(ms);
                })
            };
            for waited in [30, 10, 20, 10, 0, 40].map(wait) {
                waited.await.expect("no panic");
            }
            let order = order.borrow();
            assert_eq!((order.len(), order.is_sorted()), (6, true), "{order:?}");
            assert!(timers.waiting.borrow().is_empty());
        });
    }

    #[test]
    fn who_waits_no_longer_leaves_nothing_behind_and_does_not_hold_up_the_others() {
        on_a_thread(async |timers| {
            let due = Instant::now() + Duration::from_millis(20);
            let early = timers.until(due);
            tokio::select! {
                biased;
                () = early => panic!("it is not due"),
                () = std::future::ready(()) => {}
            }
            assert!(timers.waiting.borrow().is_empty());
            timers.until(due + Duration::from_millis(5)).await;
            assert!(Instant::now() >= due + Duration::from_millis(5));
        });
    }
}
