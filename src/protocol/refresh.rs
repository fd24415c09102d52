//! Refresh (RFC 8656 section 8.2): a new lifetime, or the end.

use super::Server;
use super::auth::Authenticated;
use super::border::{Event, Output};
use super::ids::AllocationId;
use super::reason::EndReason;
use super::reject::RejectReason;
use super::timer::Due;
use crate::address::Via;
use crate::fault;
use crate::time::Now;
use crate::wire::attribute::{ATTR_LIFETIME, family};

impl Server {
    pub(super) fn on_refresh(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_refresh(now, &via, request) {
            Ok((id, 0)) => {
                // The five-tuple is free when this response leaves.
                self.end(now, id, EndReason::Refreshed);
                self.reply_success(via, request, &[(ATTR_LIFETIME, &0_u32.to_be_bytes())]);
            }
            Ok((id, lifetime)) => {
                self.extend_lifetime(now, id, lifetime);
                self.reply_success(via, request, &[(ATTR_LIFETIME, &lifetime.to_be_bytes())]);
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    fn check_refresh(
        &self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<(AllocationId, u32), RejectReason> {
        let id = self.check_owner(now, via, request)?;
        let message = request.message();
        let lifetime = message.lifetime().map_err(|_| RejectReason::BadAttribute)?;
        let requested = message.requested_address_family().map_err(|_| RejectReason::BadAttribute)?;
        let relayed = self.table.get(id).map(|allocation| allocation.family());
        // RFC 8656 §8.2: a family that the allocation does not have is 443.
        if requested.is_some_and(|number| family(number) != relayed) {
            return Err(RejectReason::PeerFamily);
        }
        Ok((id, if lifetime == Some(0) { 0 } else { self.grant(lifetime) }))
    }

    fn extend_lifetime(&mut self, now: Now, id: AllocationId, lifetime: u32) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.expires_at = now.ticks.plus_seconds(u64::from(lifetime));
        // A timer that wakes too early is set anew then; only one that would wake too late must move now.
        if allocation.wakes_at() < allocation.armed_at {
            self.rearm(id);
        }
    }

    /// Sets an allocation's timer anew.
    pub(super) fn rearm(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        self.timers.disarm(allocation.armed_at, Due::Allocation(id.index));
        allocation.armed_at = allocation.wakes_at();
        self.timers.arm(allocation.armed_at, Due::Allocation(id.index));
    }

    /// One timer serves the lifetime and the interim records.
    pub(super) fn on_allocation_due(&mut self, now: Now, slot: u32) {
        let Some(allocation) = self.table.at_mut(slot) else { return };
        let id = allocation.id;
        fault::at("deadline", allocation.owner.username().as_bytes());
        if allocation.expires_at <= now.ticks {
            return self.end(now, id, EndReason::Expired);
        }
        if let Some(reason) = allocation.owner.closing().filter(|(at, _)| *at <= now.ticks).map(|(_, reason)| reason) {
            return self.end(now, id, reason);
        }
        if allocation.interim_at() <= now.ticks {
            allocation.plan_interim(self.settings.interim_seconds, now.ticks);
            let record = allocation.write_record(now, None);
            self.outputs.push_back(Output::Happened(Event::AllocationInterim(record)));
        }
        self.rearm(id);
    }

    /// A byte budget was used up by the last packet: the allocation ends when the loop comes to its deadlines.
    #[cold]
    pub(super) fn end_for_budget(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.owner.close_at(now.ticks, EndReason::Budget);
        self.rearm(id);
    }

    /// Ends an allocation: its five-tuple is free at once, its quota given back, its record written.
    pub(super) fn end(&mut self, now: Now, id: AllocationId, reason: EndReason) {
        let Some(mut allocation) = self.table.remove(id) else { return };
        self.timers.disarm(allocation.armed_at, Due::Allocation(id.index));
        self.shared.release(now, &allocation.owner.claim(&allocation.via()), allocation.owner.counted());
        self.counters.live(allocation.via().five_tuple().transport, allocation.family()).sub(1);
        self.counters.ended[reason as usize].add(1);
        let client = Some(allocation.via().five_tuple().client.ip());
        self.outputs.push_back(Output::CloseRelay { allocation: id, relayed: allocation.relayed(), client });
        let record = allocation.write_record(now, Some(reason));
        self.outputs.push_back(Output::Happened(Event::AllocationEnded(record)));
        self.cold_pool.take_back(allocation.into_aside());
    }
}
