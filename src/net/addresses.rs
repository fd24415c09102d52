//! This machine's addresses as they come and go: which ones are relayed from, and which ones no peer may have.
//!
//! Looked at when the server starts, with each reload, and whenever the kernel gives notice of a change. Every worker then
//! gets the settings of this moment and judges its live permissions again.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::ask::{ANSWER_TIME, Patience, shell_settings};
use super::listening::{OwnAddresses, Plan};
use super::relay_addresses::{RelayAddress, RelayAddresses};
use super::rtnetlink::{self, Notices};
use super::running::Running;
use super::{interfaces, listening};
use crate::address::Family;
use crate::config::checked::Config;
use crate::protocol::peer_policy::{LocalAddresses, is_global};
use crate::protocol::settings::Settings;

/// How long a look waits for the next notice: those of one change come together.
const TOGETHER: Duration = Duration::from_millis(50);

/// How often addresses are looked at without a notice.
const EVERY: Duration = Duration::from_secs(60);

/// The same where the kernel gives none.
const EVERY_WITHOUT_NOTICES: Duration = Duration::from_secs(5);

/// The addresses that a configuration relays from on this machine at this moment: the configured ones, or the one of each
/// family that the routes give, each with what clients are told. Not every one of them need exist yet.
#[must_use]
pub fn relay_candidates(config: &Config) -> Vec<RelayAddress> {
    let mut candidates: Vec<RelayAddress> = Vec::new();
    for local in locals(config) {
        let Some(advertised) = config.relay.external.advertised(local) else { continue };
        // Found addresses may be the same behind one NAT: a packet to it would have two owners.
        if !candidates.iter().any(|of| of.advertised == advertised) {
            candidates.push(RelayAddress { local, advertised });
        }
    }
    candidates
}

fn locals(config: &Config) -> Vec<IpAddr> {
    if config.relay.addresses.is_empty() { routed_addresses() } else { config.relay.addresses.clone() }
}

/// The addresses of this machine that clients are told another one for, or may be: those that are relayed from, and those of
/// listeners.
#[must_use]
pub fn advertisable(config: &Config) -> Vec<IpAddr> {
    let mut locals = locals(config);
    let is_relayed_from_loopback = locals.iter().any(IpAddr::is_loopback);
    for listener in &config.listen {
        let ip = listener.address.ip();
        if !ip.is_unspecified() && (!ip.is_loopback() || is_relayed_from_loopback) && !locals.contains(&ip) {
            locals.push(ip);
        }
    }
    locals
}

/// The source addresses that the routing table chooses towards the world; no packet is sent.
#[must_use]
pub fn routed_addresses() -> Vec<IpAddr> {
    let source = |bind: &str, towards: &str| {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((towards, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
    };
    // Any global address will do: connecting a UDP socket only looks the route up.
    [source("0.0.0.0", "8.8.8.8"), source("::", "2001:4860:4860::8888")].into_iter().flatten().collect()
}

/// Relays from those candidates that a socket can be bound to; whether that changed anything, and which can't be.
pub(super) fn serve(config: &Config, addresses: &RelayAddresses) -> (bool, Vec<(IpAddr, io::Error)>) {
    let mut missing = Vec::new();
    let mut wanted = relay_candidates(config);
    wanted.retain(|address| match UdpSocket::bind((address.local, 0)) {
        Ok(_) => true,
        Err(error) => {
            missing.push((address.local, error));
            false
        }
    });
    (addresses.serve(&wanted), missing)
}

/// Says which addresses that others found while the server runs no peer on the internet can reach; at the start
/// `ops::advice` does.
fn warn_of_found(before: &[RelayAddress], config: &Config, addresses: &RelayAddresses) {
    if config.relay.external.source().is_none() {
        return;
    }
    let is_out_of_reach = |ip: IpAddr| !is_global(ip) && !ip.is_loopback();
    for address in addresses.serving().iter().filter(|of| !before.contains(of) && is_out_of_reach(of.advertised)) {
        tracing::warn!(
            local = %address.local,
            advertised = %address.advertised,
            "relay.external: what was found is not an address of the internet, so peers there can't reach what clients are given: \
             write the public address, or see who answers (relay.external_servers, relay.external_metadata)"
        );
    }
}

/// Says what is relayed from now on, and what no longer is.
pub(super) fn report(
    before: &[RelayAddress],
    config: &Config,
    addresses: &RelayAddresses,
    missing: &[(IpAddr, io::Error)],
) {
    let now = addresses.serving();
    for address in now.iter().filter(|address| !before.contains(address)) {
        if let Some(old) = before.iter().find(|old| old.local == address.local) {
            tracing::info!(
                local = %address.local,
                old = %old.advertised,
                new = %address.advertised,
                "the public address has changed: new allocations get the new one"
            );
            continue;
        }
        tracing::info!(
            local = %address.local,
            advertised = %address.advertised,
            ports = %format_args!("{}-{}", config.relay.ports.start(), config.relay.ports.end()),
            "relaying from"
        );
    }
    for address in before.iter().filter(|address| !now.iter().any(|of| of.local == address.local)) {
        if config.relay.addresses.is_empty() || config.relay.addresses.contains(&address.local) {
            tracing::warn!(local = %address.local, "this address is gone: no new allocations from it until it is back");
        } else {
            tracing::info!(local = %address.local, "relay.addresses has this address no more: no new allocations from it");
        }
    }
    for (address, error) in missing {
        tracing::warn!(%address, %error, "relay.addresses: no interface has this address yet; it is used as soon as one has (see `ip address`)");
    }
    if now.is_empty() {
        tracing::warn!("{NO_RELAY_ADDRESS}");
    }
}

/// Why a server without an address to relay from is not ready.
pub const NO_RELAY_ADDRESS: &str = "no address to relay from: every Allocate is refused with 508 until this machine has an address and a default route, or one of relay.addresses, and its public address is known if relay.external asks for it";

/// What the core needs of a configuration, with this machine's addresses as they are now.
pub(super) fn settings(
    addresses: &RelayAddresses,
    config: &Config,
    own_listeners: OwnAddresses,
) -> Result<Settings, String> {
    let failed = |error: io::Error| format!("can't read this machine's addresses: {error}");
    let mut interfaces: Vec<IpAddr> =
        interfaces::addresses().map_err(failed)?.into_iter().map(|interface| interface.address).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    let routes = rtnetlink::local_routes().map_err(failed)?;
    let mut own: Vec<IpAddr> = addresses
        .all()
        .iter()
        .flat_map(|of| [of.address.local, of.address.advertised])
        .filter(|ip| !ip.is_loopback())
        .collect();
    own.sort_unstable();
    own.dedup();
    let listeners = own_listeners.all.iter().map(|address| (address.ip(), address.port())).collect();
    let local = LocalAddresses { own, interfaces, routes, listeners };
    // Without any address it is not the family that is at fault; a configured one may come back.
    let has_none = addresses.serving().is_empty();
    let has = |family| {
        let is_configured = config.relay.addresses.iter().any(|local| Family::of(*local) == family);
        let is_awaited = || {
            let is_unknown = |local: &IpAddr| config.relay.external.advertised(*local).is_none();
            config.relay.external.source().is_some()
                && locals(config).iter().any(|local| Family::of(*local) == family && is_unknown(local))
        };
        has_none || is_configured || addresses.serves(family) || is_awaited()
    };
    let settings = config.settings(local, has(Family::V4), has(Family::V6)).map_err(|error| error.to_string())?;
    Ok(Settings { tenancies: own_listeners.tenancies(), ..settings })
}

impl Running {
    /// What the core needs of a configuration now.
    pub(super) fn settings(&self, config: &Config, own: OwnAddresses) -> Result<Settings, String> {
        settings(&self.addresses, config, own)
    }

    /// Whether new allocations get an address of any family.
    #[must_use]
    pub fn has_relay_address(&self) -> bool {
        !self.addresses.serving().is_empty()
    }

    /// Tells clients of new allocations these public addresses, if `relay.external` leaves it to others; whether that changed
    /// anything.
    ///
    /// # Errors
    /// As those of [`Running::look_at_addresses`].
    pub async fn set_found_addresses(&self, pairs: &[(IpAddr, IpAddr)]) -> Result<bool, String> {
        {
            let mut current = self.current.lock().await;
            let mut config = (*current.config).clone();
            if !config.relay.external.set_found(pairs) {
                return Ok(false);
            }
            current.config = Arc::new(config);
        }
        self.look_at_addresses().await?;
        Ok(true)
    }

    /// Looks at this machine's addresses; every worker takes over what changed.
    ///
    /// # Errors
    /// What could not be read, or which worker did not take it over; the next look tries again.
    pub async fn look_at_addresses(&self) -> Result<bool, String> {
        let current = self.current.lock().await;
        let before = self.addresses.serving();
        let (has_changed, missing) = serve(&current.config, &self.addresses);
        if has_changed {
            report(&before, &current.config, &self.addresses, &missing);
            warn_of_found(&before, &current.config, &self.addresses);
        }
        let own = listening::lock(&self.listening).addresses(&Plan::nothing()).with(&current.http);
        let settings = Arc::new(settings(&self.addresses, &current.config, own)?);
        if self.judged_by(&settings) {
            return Ok(has_changed);
        }
        let nothing = self.workers.iter().map(|_| Vec::new()).collect();
        let problems = self
            .deliver(settings, shell_settings(&current.config), nothing, Patience::WithinButSent(ANSWER_TIME))
            .await;
        if problems.is_empty() { Ok(true) } else { Err(problems.join("; ")) }
    }

    /// Whether the workers have these addresses already.
    fn judged_by(&self, settings: &Settings) -> bool {
        let delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        delivered.as_ref().is_some_and(|old| {
            old.peers == settings.peers
                && old.stun == settings.stun
                && (old.relay_ipv4, old.relay_ipv6) == (settings.relay_ipv4, settings.relay_ipv6)
        })
    }
}

/// Follows the addresses of this machine as long as the relay runs; `changed` hears of each change.
pub(crate) async fn follow(running: Weak<Running>, changed: impl Fn(&Arc<Running>)) {
    let mut notices = match Notices::open() {
        Ok(notices) => Some(notices),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not report address changes, so addresses are checked every 5 s; allow AF_NETLINK");
            None
        }
    };
    let mut has_failed = false;
    loop {
        // Once before the first notice too: something may have changed since the start.
        let Some(relay) = running.upgrade() else { return };
        match relay.look_at_addresses().await {
            Ok(has_changed) => {
                has_failed = false;
                if has_changed {
                    changed(&relay);
                }
            }
            Err(error) if !has_failed => {
                has_failed = true;
                tracing::warn!(
                    error,
                    "this machine's addresses may have changed, and the workers don't know; trying again"
                );
            }
            Err(_) => {}
        }
        drop(relay);
        tokio::time::sleep(TOGETHER).await;
        let every = if has_failed || notices.is_none() { EVERY_WITHOUT_NOTICES } else { EVERY };
        let Some(of_kernel) = &notices else {
            tokio::time::sleep(every).await;
            continue;
        };
        if let Ok(Err(error)) = tokio::time::timeout(every, of_kernel.next()).await {
            tracing::warn!(%error, "the kernel stopped reporting address changes, so addresses are checked every 5 s");
            notices = None;
        }
    }
}
