//! CreatePermission (RFC 8656 section 10.2): many peers, all or nothing.

use std::net::IpAddr;

use super::Server;
use super::address::{Family, PeerAddress, Via};
use super::auth::Authenticated;
use super::border::AllocationId;
use super::peer_policy::PeerClass;
use super::reject::RejectReason;
use super::time::Now;

impl Server {
    pub(super) fn on_create_permission(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_create_permission(now, &via, request) {
            Ok((id, peers)) => {
                if let Some(allocation) = self.table.get_mut(id) {
                    for (ip, class) in peers {
                        allocation.permit(ip, class, now.ticks);
                    }
                }
                self.reply_success(via, request, &[]);
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    fn check_create_permission(
        &mut self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<(AllocationId, Vec<(IpAddr, PeerClass)>), RejectReason> {
        let id = self.check_owner(now, via, request)?;
        let mut peers = Vec::new();
        for peer in request.message().peers() {
            let peer = peer.map_err(|_| RejectReason::BadAttribute)?;
            peers.push((peer.ip(), self.check_peer_address(id, peer)?));
        }
        if peers.is_empty() {
            return Err(RejectReason::MissingAttribute);
        }
        let ips: Vec<IpAddr> = peers.iter().map(|(ip, _)| *ip).collect();
        let max = self.settings.limits.permissions_per_allocation;
        let allocation = self.table.get_mut(id).ok_or(RejectReason::NoAllocation)?;
        if !allocation.has_room_for_permissions(&ips, max, now.ticks) {
            return Err(RejectReason::PermissionLimit);
        }
        Ok((id, peers))
    }

    /// 443 for the other family, 403 for what the policy denies; the address's class otherwise.
    pub(super) fn check_peer_address(&self, id: AllocationId, peer: PeerAddress) -> Result<PeerClass, RejectReason> {
        let relayed: Option<Family> = self.table.get(id).map(|allocation| allocation.relayed.family());
        if relayed != Some(peer.family()) {
            return Err(RejectReason::PeerFamily);
        }
        self.settings.peers.judge(peer.ip()).ok_or(RejectReason::PeerDenied)
    }
}
