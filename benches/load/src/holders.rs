//! Clients that each hold one allocation: opened and released many at a time.

use crate::account::{Account, Asked, Outcome};
use crate::fleet::{Ended, Failures, Fleet};
use crate::histogram::Histogram;
use crate::plan::Places;
use crate::stun;
use crate::sys;

/// Requests under way while allocations are opened and released.
const AT_ONCE: usize = 32;

pub struct Holders {
    pub fleet: Fleet,
    pub failures: Failures,
    /// Of the Allocates that succeeded.
    pub allocate: Histogram,
    open: Vec<bool>,
    challenges: Vec<u32>,
}

impl Holders {
    pub fn new(places: Places, port: u16, clients: usize, account: &Account) -> Result<Self, String> {
        Ok(Self {
            fleet: Fleet::open(places, port, clients, account)?,
            failures: Failures::default(),
            allocate: Histogram::new(),
            open: vec![false; clients],
            challenges: vec![0; clients],
        })
    }

    pub fn open(&self) -> usize {
        self.open.iter().filter(|open| **open).count()
    }

    /// Opens an allocation for each of the first clients; `failures` names those that were refused.
    pub fn open_first(&mut self, clients: usize) {
        self.work(0..clients, Self::allocate);
    }

    /// Ends every allocation with a Refresh of lifetime 0.
    pub fn release_all(&mut self) {
        let open: Vec<_> = (0..self.open.len()).filter(|client| self.open[*client]).collect();
        self.work(open.into_iter(), Self::release);
    }

    /// Starts one exchange after the other, `AT_ONCE` under way, until each has come to its end.
    fn work(&mut self, clients: impl Iterator<Item = usize>, start: fn(&mut Self, usize, u64)) {
        self.challenges.fill(0);
        let mut clients = clients;
        let mut ended = Vec::new();
        let mut busy = 0;
        loop {
            let now = sys::now();
            while busy < AT_ONCE {
                let Some(client) = clients.next() else {
                    break;
                };
                start(self, client, now);
                busy += 1;
            }
            self.fleet.flush();
            if busy == 0 {
                return;
            }
            self.fleet.receive(&mut ended);
            self.fleet.look(now, &mut ended);
            for end in ended.drain(..) {
                let client = end.client;
                self.next(end);
                busy -= usize::from(!self.fleet.is_busy(client));
            }
        }
    }

    fn allocate(&mut self, client: usize, now: u64) {
        let signed = self.fleet.account(client).is_challenged();
        let asked = Asked { method: stun::ALLOCATE, signed, lifetime: None };
        self.fleet.ask(client, asked, now, |request| request.attribute(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    }

    fn release(&mut self, client: usize, now: u64) {
        self.refresh(client, 0, now);
    }

    pub fn refresh(&mut self, client: usize, lifetime: u32, now: u64) {
        let asked = Asked { method: stun::REFRESH, signed: true, lifetime: Some(lifetime) };
        self.fleet.ask(client, asked, now, |request| request);
    }

    fn next(&mut self, end: Ended) {
        let client = end.client;
        match (&end.outcome, end.asked.method) {
            (Outcome::Challenged(_), method) if self.challenges[client] < 2 => {
                self.challenges[client] += 1;
                if method == stun::ALLOCATE { self.allocate(client, end.at) } else { self.release(client, end.at) }
            }
            (Outcome::Success { .. }, stun::ALLOCATE) => {
                self.open[client] = true;
                self.allocate.record(end.at - end.first_sent);
            }
            (Outcome::Success { .. }, _) => self.open[client] = false,
            (outcome, _) => self.failures.note(end.asked, outcome),
        }
    }
}
