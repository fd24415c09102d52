//! What new settings mean for allocations that live: each is looked at again, a bounded number at a time.
//!
//! The first piece is done with the reconfiguration itself, the others by [`Server::handle_timeout`], one each; packets
//! pass in between. New clients are judged by the new settings from the start.

use std::sync::Arc;

use super::Server;
use super::review::{Changed, Review};
use super::revocation::Subject;
use super::server::{failure_rate, packet_rate, reply_rate, request_rate};
use super::settings::Settings;
use crate::time::Now;

/// What one piece may cost: an allocation counts one, and one more for each permission and channel that is judged.
const PIECE: usize = 1_024;

impl Server {
    pub(super) fn on_reconfigure(&mut self, now: Now, settings: Arc<Settings>) {
        let changed = Changed::between(&self.settings, &settings);
        self.relay_ipv4 = settings.relay_ipv4;
        self.relay_ipv6 = settings.relay_ipv6;
        self.packet_rate = packet_rate(&settings);
        self.request_rate = request_rate(&settings);
        self.reply_rate = reply_rate(&settings);
        self.failure_rate = failure_rate(&settings);
        let limits = settings.limits;
        self.settings = settings;
        if changed.limits {
            self.meter_openings_anew(&limits);
        }
        // What an earlier review has not come to is looked at for its reasons too.
        let changed = self.review.map_or(changed, |under_way| under_way.changed.or(changed));
        self.review = Some(Review { next_slot: 0, since: now.ticks, changed });
        self.go_on_with_review(now);
    }

    /// Looks at every live allocation again, in pieces from the next deadline on: they came from another process, which may
    /// have had other settings than those that hold here.
    pub fn review_all(&mut self, now: Now) {
        let limits = self.settings.limits;
        self.meter_openings_anew(&limits);
        self.review = Some(Review { next_slot: 0, since: now.ticks, changed: Changed { peers: true, limits: true } });
    }

    /// What limits that were set at run time mean for the live allocations of a subject, or for all of them, in so many slots
    /// from one on: they pass the meters that hold now, and what was used stays used. Gives how many they are, and the slot
    /// to go on with if there are more.
    pub fn meter_anew_from(&mut self, subject: Option<&Subject>, from: u32, count: u32) -> (usize, Option<u32>) {
        let limits = self.settings.limits;
        if from == 0 {
            self.meter_openings_anew(&limits);
        }
        let end = self.table.end().min(from.saturating_add(count));
        let mut metered = 0;
        for slot in from..end {
            let is_meant = self
                .table
                .at(slot)
                .is_some_and(|allocation| subject.is_none_or(|subject| subject.includes(&allocation.owner.subject())));
            if !is_meant {
                continue;
            }
            let Some(allocation) = self.table.at_mut(slot) else { continue };
            let (counted, old) = (allocation.owner.counted(), allocation.owner.meters());
            let meters = self.shared.meters(&allocation.claim(), counted, &limits, &old);
            allocation.owner.set_meters(meters);
            metered += 1;
        }
        (metered, (end < self.table.end()).then_some(end))
    }

    /// Does the next piece of a review that is under way.
    pub(super) fn go_on_with_review(&mut self, now: Now) {
        let Some(mut review) = self.review else { return };
        let settings = Arc::clone(&self.settings);
        let mut cost = 0;
        while cost < PIECE {
            if review.next_slot >= self.table.end() {
                self.review = None;
                return;
            }
            let slot = review.next_slot;
            review.next_slot += 1;
            cost += 1;
            let Some(allocation) = self.table.at_mut(slot) else { continue };
            if review.changed.peers {
                cost += allocation.reaches();
                allocation.rejudge(self.secret, |ip| settings.peers.judge(ip));
            }
            if review.changed.limits {
                let claim = allocation.claim();
                // What was used stays used.
                let (counted, old) = (allocation.owner.counted(), allocation.owner.meters());
                let meters = self.shared.meters(&claim, counted, &settings.limits, &old);
                allocation.owner.set_meters(meters);
            }
            allocation.plan_close(&settings.auth, now);
            allocation.plan_interim(settings.interim_seconds, now.ticks);
            let (id, is_tcp) = (allocation.id, allocation.is_tcp());
            self.rearm(id);
            if is_tcp && review.changed.peers {
                cost += self.rejudge_connections(id);
            }
        }
        self.review = Some(review);
    }
}
