//! Refresh (RFC 8656 section 8.2): a new lifetime, or the end.

use super::Server;
use super::allocation::Allocation;
use super::auth::Authenticated;
use super::border::{Event, Output};
use super::ids::AllocationId;
use super::reason::EndReason;
use super::reject::RejectReason;
use super::timer::Due;
use crate::address::{Family, Via};
use crate::fault;
use crate::time::Now;
use crate::wire::attribute::{ATTR_LIFETIME, family};
use crate::wire::message::{Known, Message};

/// A Refresh that passed every check.
pub(super) struct Refresh {
    pub(super) id: AllocationId,
    /// The one of two that is meant; `None` for all there is.
    family: Option<Family>,
    /// In seconds, as granted; 0 gives back.
    pub(super) lifetime: u32,
}

impl Server {
    // [8656-8.2-2, -4]
    pub(super) fn on_refresh(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        if let Some(ticket) = request.message().get(Known::MobilityTicket) {
            return self.on_mobile_refresh(now, via, request, ticket);
        }
        match self.check_refresh(now, &via, request) {
            Ok(refresh) => {
                self.carry_out(now, &refresh);
                self.reply_success(via, request, &[(ATTR_LIFETIME, &refresh.lifetime.to_be_bytes())]);
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    pub(super) fn carry_out(&mut self, now: Now, refresh: &Refresh) {
        let Refresh { id, family, lifetime } = *refresh;
        match (family, lifetime) {
            // The five-tuple is free when the response leaves.
            // [8656-8.2-3]
            (None, 0) => self.end(now, id, EndReason::Refreshed),
            (Some(family), 0) => self.close_family(id, family),
            (family, lifetime) => self.extend_lifetime(now, id, family, lifetime),
        }
    }

    fn check_refresh(&self, now: Now, via: &Via, request: &Authenticated<'_>) -> Result<Refresh, RejectReason> {
        let id = self.check_owner(now, via, request)?;
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        self.check_refresh_of(allocation, request.message())
    }

    /// What a Refresh of this allocation asks for.
    pub(super) fn check_refresh_of(
        &self,
        allocation: &Allocation,
        message: &Message<'_>,
    ) -> Result<Refresh, RejectReason> {
        let lifetime = message.lifetime().map_err(|_| RejectReason::BadAttribute)?;
        let requested = message.requested_address_family().map_err(|_| RejectReason::BadAttribute)?;
        // RFC 8656 §8.2: a family that the allocation does not have is 443. [8656-8.2-1]
        let of_family = match requested {
            None => None,
            Some(number) => {
                Some(family(number).filter(|of| allocation.has_family(*of)).ok_or(RejectReason::PeerFamily)?)
            }
        };
        let is_dual = allocation.sockets().count() > 1;
        let lifetime = if lifetime == Some(0) { 0 } else { self.grant(lifetime) };
        // The only one is all there is. [8656-8.1-1]
        Ok(Refresh { id: allocation.id, family: of_family.filter(|_| is_dual), lifetime })
    }

    fn extend_lifetime(&mut self, now: Now, id: AllocationId, family: Option<Family>, lifetime: u32) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.extend(now.ticks.plus_seconds(u64::from(lifetime)), family);
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
        self.tell_left(now, id);
        let Some(allocation) = self.table.at_mut(slot) else { return };
        let overdue = Self::overdue_family(allocation, now);
        if allocation.interim_at() <= now.ticks {
            allocation.plan_interim(self.settings.interim_seconds, now.ticks);
            let record = allocation.write_record(now, None);
            self.outputs.push_back(Output::Happened(Event::AllocationInterim(record)));
        }
        match overdue {
            Some(family) => self.close_family(id, family),
            None => self.rearm(id),
        }
    }

    /// A byte budget was used up by the last packet: the allocation ends when the loop comes to its deadlines.
    #[cold]
    pub(super) fn end_for_budget(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.owner.close_at(now.ticks, EndReason::Budget);
        self.rearm(id);
    }

    /// Ends an allocation: its five-tuple is free at once, its quota given back, its record written.
    // [8656-9-6, 8656-12-2]
    pub(super) fn end(&mut self, now: Now, id: AllocationId, reason: EndReason) {
        self.tell_left(now, id);
        self.forget_pending(id);
        if self.table.get(id).is_some_and(Allocation::is_tcp) {
            self.close_connections(id);
        }
        let Some(mut allocation) = self.table.remove(id) else { return };
        if allocation.mobility().is_some() {
            self.shared.unset_worker(allocation.session, self.worker);
        }
        self.timers.disarm(allocation.armed_at, Due::Allocation(id.index));
        self.shared.release(now, &allocation.claim(), allocation.owner.counted());
        self.counters.live(allocation.via().five_tuple().transport, allocation.family()).sub(1);
        self.counters.ended[reason as usize].add(1);
        let client = Some(allocation.via().five_tuple().client.ip());
        let close = |(allocation, relayed)| Output::CloseRelay { allocation, relayed, client };
        self.outputs.extend(allocation.sockets().map(close));
        let record = allocation.write_record(now, Some(reason));
        self.outputs.push_back(Output::Happened(Event::AllocationEnded(record)));
        self.cold_pool.take_back(allocation.into_aside());
    }
}
