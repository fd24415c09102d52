//! One of two relayed addresses is given back, or expires (RFC 8656 section 8.2).
//!
//! The second socket is known by an id of its own, under which the shell opens, closes and hands over, as if it were one
//! more allocation. When the own address goes the other one becomes the own: every allocation has a socket under its own id.

use super::Server;
use super::allocation::Allocation;
use super::border::Output;
use super::ids::AllocationId;
use crate::address::Family;
use crate::time::Now;

impl Server {
    /// Gives one of two relayed addresses back, with the permissions and channels of its family and no others.
    // [8656-8.1-2]
    pub(super) fn close_family(&mut self, id: AllocationId, family: Family) {
        let secret = self.secret;
        let Some(allocation) = self.table.get_mut(id) else { return };
        let via = allocation.via();
        let client = Some(via.five_tuple().client.ip());
        let own = allocation.relayed();
        let Some((socket, other)) = allocation.close_family(family, secret) else { return };
        self.table.forget_additional(socket);
        if own.family() == family {
            self.outputs.push_back(Output::CloseRelay { allocation: id, relayed: own, client });
            self.outputs.push_back(Output::MoveRelay { from: socket, to: id, relayed: other });
            let transport = via.five_tuple().transport;
            self.counters.live(transport, own.family()).sub(1);
            self.counters.live(transport, other.family()).add(1);
        } else {
            self.outputs.push_back(Output::CloseRelay { allocation: socket, relayed: other, client });
        }
        self.rearm(id);
    }

    /// The family of two whose time is over, if the allocation goes on with the other one.
    pub(super) fn overdue_family(allocation: &Allocation, now: Now) -> Option<Family> {
        let additional = allocation.additional().filter(|of| of.socket.is_some())?;
        if additional.own_expires_at <= now.ticks {
            Some(allocation.family())
        } else {
            (additional.expires_at <= now.ticks).then(|| additional.relayed.family())
        }
    }
}
