//! CreatePermission (RFC 8656 section 10.2): many peers, all or nothing.

use std::net::IpAddr;

use super::Server;
use super::auth::Authenticated;
use super::ids::AllocationId;
use super::peer_policy::PeerClass;
use super::reject::RejectReason;
use super::settings::OnExpiry;
use crate::address::{PeerAddress, Via};
use crate::time::Now;

impl Server {
    // [8656-10.2-5]
    pub(super) fn on_create_permission(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_create_permission(now, &via, request) {
            Ok((id, peers)) => {
                let secret = self.secret;
                if let Some(allocation) = self.table.get_mut(id) {
                    for (ip, class) in peers {
                        allocation.permit(ip, class, now.ticks, secret);
                    }
                }
                self.reply_success(via, request, &[]);
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    /// Nothing is looked up for more addresses than an allocation may have; a message of [`CONTROL_BYTES_MAX`] has
    /// room for 340.
    ///
    /// [`CONTROL_BYTES_MAX`]: super::CONTROL_BYTES_MAX
    // [8656-10.2-1, -2, -3]
    fn check_create_permission(
        &mut self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<(AllocationId, Vec<(IpAddr, PeerClass)>), RejectReason> {
        let id = self.check_owner(now, via, request)?;
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        // RFC 8656 §10.2 in its order: every peer is well-formed (400), of the right family (443), allowed (403).
        let mut ips: Vec<IpAddr> = Vec::new();
        let mut is_of_family = true;
        for peer in request.message().peers() {
            let peer = peer.map_err(|_| RejectReason::BadAttribute)?;
            is_of_family &= allocation.has_family(peer.family());
            ips.push(peer.ip());
        }
        if ips.is_empty() {
            return Err(RejectReason::MissingAttribute);
        }
        if !is_of_family {
            return Err(RejectReason::PeerFamily);
        }
        ips.sort_unstable();
        ips.dedup();
        let max = self.settings.limits.permissions_per_allocation;
        if ips.len() > max as usize {
            return Err(RejectReason::PermissionLimit);
        }
        let mut peers = Vec::with_capacity(ips.len());
        for ip in &ips {
            peers.push((*ip, self.check_peer_policy(id, PeerAddress::new(*ip, 0))?));
        }
        for ip in &ips {
            self.check_expiry(now, id, *ip)?;
        }
        let secret = self.secret;
        let allocation = self.table.get_mut(id).ok_or(RejectReason::NoAllocation)?;
        if !allocation.has_room_for_permissions(&ips, max, now.ticks, secret) {
            return Err(RejectReason::PermissionLimit);
        }
        Ok((id, peers))
    }

    /// 443 for a peer of another family than the relayed addresses. [8656-12.2-5]
    pub(super) fn check_peer_family(&self, id: AllocationId, peer: PeerAddress) -> Result<(), RejectReason> {
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        if allocation.has_family(peer.family()) { Ok(()) } else { Err(RejectReason::PeerFamily) }
    }

    /// 403 for what the policy denies or the credential leaves out; the address's class otherwise.
    // [8656-10.2-4, 8656-12.2-6]
    pub(super) fn check_peer_policy(&self, id: AllocationId, peer: PeerAddress) -> Result<PeerClass, RejectReason> {
        let class = self.settings.peers.judge(peer.ip()).ok_or(RejectReason::PeerDenied)?;
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        allocation.owner.narrow(peer.ip(), class).ok_or(RejectReason::PeerOutOfScope)
    }

    /// 403 for a peer that has no permission yet, once the credential has expired and `auth.on_expiry` says so.
    pub(super) fn check_expiry(&self, now: Now, id: AllocationId, ip: IpAddr) -> Result<(), RejectReason> {
        if self.settings.auth.on_expiry != OnExpiry::DenyNew {
            return Ok(());
        }
        let allocation = self.table.get(id).ok_or(RejectReason::NoAllocation)?;
        if allocation.owner.has_expired(now.unix) && allocation.permission(ip, now.ticks).is_none() {
            return Err(RejectReason::CredentialExpired);
        }
        Ok(())
    }
}
