//! ChannelBind (RFC 8656 section 12.2): a number for a peer, and its permission.

use super::Server;
use super::auth::Authenticated;
use super::ids::AllocationId;
use super::peer_policy::PeerClass;
use super::reject::RejectReason;
use super::relay::check_peer;
use crate::address::{PeerAddress, Via};
use crate::time::Now;
use crate::wire::channel_data::is_bindable;

/// A ChannelBind that passed every check.
struct Bind {
    id: AllocationId,
    number: u16,
    peer: PeerAddress,
    class: PeerClass,
}

impl Server {
    pub(super) fn on_channel_bind(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_channel_bind(now, &via, request) {
            Ok(Bind { id, number, peer, class }) => {
                let secret = self.secret;
                if let Some(allocation) = self.table.get_mut(id) {
                    allocation.bind(number, peer, class, now.ticks, secret);
                }
                self.reply_success(via, request, &[]);
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    fn check_channel_bind(&mut self, now: Now, via: &Via, request: &Authenticated<'_>) -> Result<Bind, RejectReason> {
        let id = self.check_owner(now, via, request)?;
        let message = request.message();
        // RFC 8656 §12.2: both attributes, and a number in range. [8656-12.2-1, -2]
        let number = message.channel_number().map_err(|_| RejectReason::BadAttribute)?;
        let peer = message.peer().map_err(|_| RejectReason::BadAttribute)?;
        let (Some(number), Some(peer)) = (number, peer) else { return Err(RejectReason::MissingAttribute) };
        let number = number.0;
        if !is_bindable(number) || number > self.settings.channel_number_max {
            return Err(RejectReason::ChannelRange);
        }
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        if allocation.is_tcp() {
            return Err(RejectReason::TcpAllocation);
        }
        // The channel is bound to another peer, or the peer to another channel. [8656-12.2-3, -4]
        let other_peer = allocation.binding(number, now.ticks).is_some_and(|binding| binding.peer != peer);
        let other_channel = allocation.channel_to(peer, now.ticks).is_some_and(|bound| bound != number);
        if other_peer || other_channel {
            return Err(RejectReason::ChannelConflict);
        }
        self.check_peer_family(id, peer)?;
        let class = self.check_peer_policy(id, peer)?;
        // RFC 8656 §12.2: 403 for an IP address or a port that the server does not allow. No datagram can be sent to port 0,
        // so the channel would lose all that it is given. CreatePermission has no use for a port and takes any.
        // [8656-12.2-6]
        if peer.port() == 0 {
            return Err(RejectReason::PeerPort);
        }
        self.check_expiry(now, id, peer.ip())?;
        check_peer(peer, class, &self.settings.peers, &*self.shared)?;
        self.check_channel_room(id, number, peer, now)?;
        Ok(Bind { id, number, peer, class })
    }

    // [8656-12.2-7]
    fn check_channel_room(
        &mut self,
        id: AllocationId,
        number: u16,
        peer: PeerAddress,
        now: Now,
    ) -> Result<(), RejectReason> {
        let (limits, secret) = (self.settings.limits, self.secret);
        let allocation = self.table.get_mut(id).ok_or(RejectReason::NoAllocation)?;
        if !allocation.has_room_for_channel(number, limits.channels_per_allocation, now.ticks, secret) {
            return Err(RejectReason::ChannelLimit);
        }
        // Binding installs the permission too, so there must be room for it.
        if !allocation.has_room_for_permissions(&[peer.ip()], limits.permissions_per_allocation, now.ticks, secret) {
            return Err(RejectReason::PermissionLimit);
        }
        Ok(())
    }
}
