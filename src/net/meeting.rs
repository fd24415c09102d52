//! Where the workers of a process and the thread that directs an upgrade wait for each other, each wait bounded.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Decisions of one director, and reports of so many workers.
#[derive(Debug)]
pub(super) struct Meeting<D, R> {
    workers: usize,
    state: Mutex<State<D, R>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<D, R> {
    decisions: Vec<D>,
    reports: Vec<R>,
    /// Workers that wait at the end of a round, and how many rounds are over.
    arrived: usize,
    rounds: u64,
    /// A worker waited in vain: no round ends any more.
    is_broken: bool,
}

impl<D: Copy, R> Meeting<D, R> {
    pub(super) const fn new(workers: usize) -> Self {
        let state = State { decisions: Vec::new(), reports: Vec::new(), arrived: 0, rounds: 0, is_broken: false };
        Self { workers, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<D, R>> {
        // Whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives something; nothing when the time is over.
    fn wait<T>(&self, within: Duration, mut ready: impl FnMut(&mut State<D, R>) -> Option<T>) -> Option<T> {
        let mut found = None;
        let waiting = self.changed.wait_timeout_while(self.lock(), within, |state| {
            found = ready(state);
            found.is_none()
        });
        drop(waiting);
        found
    }

    /// The director's next decision.
    pub(super) fn decide(&self, decision: D) {
        self.lock().decisions.push(decision);
        self.changed.notify_all();
    }

    /// The decision with this number, counted from 0.
    pub(super) fn decision(&self, number: usize, within: Duration) -> Option<D> {
        self.wait(within, |state| state.decisions.get(number).copied())
    }

    /// One worker's report.
    pub(super) fn report(&self, report: R) {
        self.lock().reports.push(report);
        self.changed.notify_all();
    }

    /// A report of each worker, in the order in which they came.
    pub(super) fn reports(&self, within: Duration) -> Option<Vec<R>> {
        self.wait(within, |state| {
            (state.reports.len() >= self.workers).then(|| state.reports.drain(..self.workers).collect())
        })
    }

    /// Waits for all other workers; `false` if one of them does not come.
    pub(super) fn meet(&self, within: Duration) -> bool {
        let round = {
            let mut state = self.lock();
            state.arrived += 1;
            if state.arrived == self.workers {
                state.arrived = 0;
                state.rounds += 1;
                self.changed.notify_all();
                return !state.is_broken;
            }
            state.rounds
        };
        let met =
            self.wait(within, |state| if state.rounds > round { Some(true) } else { state.is_broken.then_some(false) });
        if met.is_none() {
            self.lock().is_broken = true;
            self.changed.notify_all();
        }
        met == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn workers_meet_report_and_hear_decisions_in_order() {
        let meeting = Arc::new(Meeting::<u8, usize>::new(3));
        let before = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|worker| {
                let (meeting, before) = (Arc::clone(&meeting), Arc::clone(&before));
                std::thread::spawn(move || {
                    for round in 1..=5 {
                        before.fetch_add(1, Ordering::SeqCst);
                        assert!(meeting.meet(LONG));
                        assert!(before.load(Ordering::SeqCst) >= 3 * round, "everyone had come");
                        assert!(meeting.meet(LONG));
                    }
                    meeting.report(worker);
                    (meeting.decision(0, LONG), meeting.decision(1, LONG))
                })
            })
            .collect();
        let mut reports = meeting.reports(LONG).unwrap();
        reports.sort_unstable();
        assert_eq!(reports, [0, 1, 2]);
        meeting.decide(7);
        meeting.decide(8);
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), (Some(7), Some(8))));
    }

    #[test]
    fn no_wait_is_for_ever() {
        let meeting = Meeting::<u8, u8>::new(2);
        assert_eq!(meeting.decision(0, SHORT), None);
        assert_eq!(meeting.reports(SHORT), None);
        assert!(!meeting.meet(SHORT), "the other one never comes");
        assert!(!meeting.meet(LONG), "who is late finds it broken");
    }
}
