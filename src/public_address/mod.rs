//! Asking others for the public addresses of this machine: STUN servers, or a cloud's metadata service.
//!
//! Each question is bounded in time, in size and in number. What is made of the answers is left to the caller:
//! `ops::external` keeps a running server's answers fresh, `check-config` and `init` ask once.

mod binding;
mod metadata;

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;

use crate::address::Family;
use crate::config::checked::RelayConfig;
use crate::config::external::{ExternalSource, StunServer};
use crate::protocol::peer_policy::is_global;

/// Local addresses that are asked for; more of them are left as they are.
const LOCALS_MAX: usize = 16;

/// What others say of this machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Discovery {
    /// What clients are to be told for each local address, where `relay.external` leaves that to others.
    pub pairs: Vec<(IpAddr, IpAddr)>,
    /// How STUN servers see each local address.
    pub seen: Vec<(IpAddr, IpAddr)>,
    /// What an operator should know: the key, and a sentence with the remedy.
    pub problems: Vec<(&'static str, String)>,
    /// Local addresses whose public one was asked for and not told.
    pub unknown: Vec<IpAddr>,
}

/// Asks who `relay.external` and `relay.external_servers` name about these addresses, no longer than `within`.
pub async fn discover(relay: &RelayConfig, locals: &[IpAddr], within: Duration) -> Discovery {
    let locals = &locals[..locals.len().min(LOCALS_MAX)];
    let source = relay.external.source();
    let provider = source.filter(|source| *source != ExternalSource::Stun);
    let (seen, told) = tokio::join!(see(&relay.external_look.servers, locals, relay.external.found(), within), async {
        let provider = provider?;
        let asking = metadata::ask(provider, relay.external_look.metadata.as_ref());
        let timeout = || Err(format!("no complete answer within {} s", within.as_secs_f32()));
        Some((provider, tokio::time::timeout(within, asking).await.unwrap_or_else(|_| timeout())))
    });
    let mut discovery = seen;
    match (source, told) {
        (None, _) => {}
        (Some(_), Some((provider, Ok(found)))) => {
            discovery.pairs =
                locals.iter().filter_map(|local| Some((*local, public_of(*local, locals, &found)?))).collect();
            if found.is_empty() {
                let text = "the metadata service says that this machine has no public address; give it one".to_owned();
                discovery.problems.push(("relay.external", format!("\"{}\": {text}", provider.name())));
            }
        }
        (Some(_), Some((provider, Err(error)))) => {
            let text = format!("the metadata service of \"{}\" was asked: {error}", provider.name());
            discovery.problems.push(("relay.external", text));
        }
        (Some(_), None) => discovery.pairs.clone_from(&discovery.seen),
    }
    if source.is_some() {
        keep_old(&mut discovery, relay.external.found(), locals);
    }
    discovery
}

/// What was found before holds where nothing newer is known.
fn keep_old(discovery: &mut Discovery, old: &[(IpAddr, IpAddr)], locals: &[IpAddr]) {
    let is_known = |pairs: &[(IpAddr, IpAddr)], local: IpAddr| pairs.iter().any(|(of, _)| *of == local);
    for (local, public) in old {
        if locals.contains(local) && !is_known(&discovery.pairs, *local) {
            discovery.unknown.push(*local);
            discovery.pairs.push((*local, *public));
        }
    }
    for local in locals.iter().filter(|local| !is_global(**local)) {
        if is_known(&discovery.pairs, *local) {
            continue;
        }
        discovery.unknown.push(*local);
        let text = format!(
            "the public address of {local} is not known, so no allocation is relayed from it; see that who is asked answers, or \
             write the address"
        );
        discovery.problems.push(("relay.external", text));
    }
}

/// An address that a metadata service names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Named {
    /// The local address that it belongs to, if the service says that.
    local: Option<IpAddr>,
    public: IpAddr,
}

/// What clients are told for a local address. A service that does not know the address, as in a container, is followed if
/// there is one address of the family on each side.
fn public_of(local: IpAddr, locals: &[IpAddr], found: &[Named]) -> Option<IpAddr> {
    let family = Family::of(local);
    if let Some(named) = found.iter().find(|named| named.local == Some(local)) {
        return Some(named.public);
    }
    if is_global(local) {
        return None;
    }
    let mut public = found.iter().map(|named| named.public).filter(|public| Family::of(*public) == family);
    let is_only_local = locals.iter().filter(|local| Family::of(**local) == family).count() == 1;
    let first = public.next().filter(|_| is_only_local)?;
    public.all(|other| other == first).then_some(first)
}

/// What one server answered about one local address.
struct Sight {
    local: IpAddr,
    server: String,
    result: Result<binding::Mapped, String>,
}

/// Asks every server about every local address.
async fn see(servers: &[StunServer], locals: &[IpAddr], old: &[(IpAddr, IpAddr)], within: Duration) -> Discovery {
    let asked = join_all(servers.iter().map(|server| async move {
        let resolved = tokio::time::timeout(within, binding::resolve(server)).await;
        let resolved = resolved.unwrap_or_else(|_| Err("its name was not resolved in time".to_owned()));
        let asks = locals.iter().map(|local| {
            let address = resolved.as_ref().map(|found| found.iter().find(|of| of.is_ipv4() == local.is_ipv4()));
            async move {
                let result = match address {
                    Err(error) => Err(error.clone()),
                    // Not a server of this family.
                    Ok(None) => return None,
                    Ok(Some(address)) => {
                        binding::ask(*address, *local, within).await.map_err(|error| error.to_string())
                    }
                };
                Some(Sight { local: *local, server: server.to_string(), result })
            }
        });
        join_all(asks).await
    }));
    let sights: Vec<Sight> = asked.await.into_iter().flatten().flatten().collect();
    let mut discovery = Discovery::default();
    for local in locals {
        let of_local: Vec<&Sight> = sights.iter().filter(|sight| sight.local == *local).collect();
        judge(&mut discovery, *local, &of_local, old);
    }
    // A server that is down is told once, whatever number of addresses it was asked about.
    let mut problems = Vec::new();
    for problem in discovery.problems {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    Discovery { problems, ..discovery }
}

/// Chooses among the answers about one address: what was told before, as long as one server still says so; else the first
/// in the order of the list.
fn judge(discovery: &mut Discovery, local: IpAddr, sights: &[&Sight], old: &[(IpAddr, IpAddr)]) {
    const KEY: &str = "relay.external_servers";
    let mut answers: Vec<(&str, binding::Mapped)> = Vec::new();
    for sight in sights {
        match &sight.result {
            Ok(mapped) => answers.push((&sight.server, *mapped)),
            Err(error) => discovery.problems.push((KEY, format!("{} was asked: {error}", sight.server))),
        }
    }
    let before = old.iter().find(|(of, _)| *of == local).map(|(_, public)| *public);
    let still = answers.iter().find(|(_, mapped)| Some(mapped.ip) == before);
    let Some((server, chosen)) = still.or(answers.first()).copied() else { return };
    if let Some((other, mapped)) = answers.iter().find(|(_, mapped)| mapped.ip != chosen.ip) {
        let text = format!(
            "{server} sees {local} as {}, and {other} sees it as {}: one of them is wrong, or a NAT with several addresses \
             is before this machine, which can't relay; {} is used",
            chosen.ip, mapped.ip, chosen.ip
        );
        discovery.problems.push((KEY, text));
    }
    if !chosen.is_port_kept && chosen.ip != local {
        let text = format!(
            "the NAT before {local} changes ports, so relayed addresses can't be reached from outside; it must forward the \
             UDP ports of relay.ports unchanged, as 1:1 NAT does"
        );
        discovery.problems.push((KEY, text));
    }
    discovery.seen.push((local, chosen.ip));
}

/// The address of this machine in each family in which a STUN server answers, asked once for a person who waits.
///
/// # Errors
/// Why there is none, as a sentence about the server.
pub fn addresses_seen_by(server: &str, within: Duration) -> Result<Vec<IpAddr>, String> {
    let parsed = StunServer::parse(server).map_err(|error| format!("{server}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("can't be asked: {error}"))?;
    runtime.block_on(async {
        let resolved = tokio::time::timeout(within, binding::resolve(&parsed)).await;
        let resolved = resolved.unwrap_or_else(|_| Err("its name was not resolved in time".to_owned()));
        let resolved = resolved.map_err(|error| format!("{server}: {error}"))?;
        let (mut found, mut failed) = (Vec::new(), None);
        for address in resolved {
            match binding::ask(address, binding::unspecified(address), within).await {
                Ok(mapped) => found.push(mapped.ip),
                Err(error) => failed = failed.or(Some(format!("{server} ({address}): {error}"))),
            }
        }
        match (found.is_empty(), failed) {
            (false, _) => Ok(found),
            (true, Some(error)) => Err(error),
            (true, None) => Err(format!("{server} has no address")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn sight(server: &str, result: Result<(&str, bool), &str>) -> Sight {
        let result = result.map(|(public, is_port_kept)| binding::Mapped { ip: ip(public), is_port_kept });
        Sight { local: ip("10.0.0.5"), server: server.to_owned(), result: result.map_err(ToOwned::to_owned) }
    }

    fn judged(sights: &[Sight], old: &[(&str, &str)]) -> (Option<IpAddr>, Vec<String>) {
        let old: Vec<_> = old.iter().map(|(local, public)| (ip(local), ip(public))).collect();
        let mut discovery = Discovery::default();
        judge(&mut discovery, ip("10.0.0.5"), &sights.iter().collect::<Vec<_>>(), &old);
        let seen = discovery.seen.first().map(|(_, public)| *public);
        (seen, discovery.problems.into_iter().map(|(_, text)| text).collect())
    }

    #[test]
    fn servers_that_differ_are_told_and_what_was_told_before_stays_while_one_says_so() {
        let differ = [sight("a:1", Ok(("45.0.0.7", true))), sight("b:1", Ok(("45.0.0.8", true)))];
        let (seen, problems) = judged(&differ, &[]);
        assert_eq!(seen, Some(ip("45.0.0.7")), "the first of the list");
        assert!(problems[0].contains("a:1 sees") && problems[0].contains("b:1 sees"), "{problems:?}");
        let (seen, problems) = judged(&differ, &[("10.0.0.5", "45.0.0.8")]);
        assert_eq!((seen, problems.len()), (Some(ip("45.0.0.8")), 1));
        let (seen, _) = judged(&differ, &[("10.0.0.5", "45.0.0.9")]);
        assert_eq!(seen, Some(ip("45.0.0.7")));
        let one = [sight("a:1", Err("no answer")), sight("b:1", Ok(("45.0.0.8", false)))];
        let (seen, problems) = judged(&one, &[]);
        assert_eq!(seen, Some(ip("45.0.0.8")));
        assert!(problems[0].contains("a:1 was asked: no answer") && problems[1].contains("changes ports"));
        assert_eq!(judged(&[sight("a:1", Err("x"))], &[]).0, None);
    }

    #[test]
    fn what_a_service_names_belongs_to_its_local_address_or_to_the_only_one() {
        let named = |local: Option<&str>, public: &str| Named { local: local.map(ip), public: ip(public) };
        let two = [named(Some("10.0.0.5"), "45.0.0.7"), named(Some("10.0.0.6"), "45.0.0.8")];
        let locals = [ip("10.0.0.5"), ip("10.0.0.6"), ip("2a00::5")];
        let told = |found: &[Named], locals: &[IpAddr]| {
            locals.iter().map(|local| public_of(*local, locals, found)).collect::<Vec<_>>()
        };
        assert_eq!(told(&two, &locals), [Some(ip("45.0.0.7")), Some(ip("45.0.0.8")), None]);
        // A container: its address is nothing that the service knows.
        assert_eq!(told(&two[..1], &[ip("172.17.0.2")]), [Some(ip("45.0.0.7"))]);
        assert_eq!(told(&two, &[ip("172.17.0.2")]), [None], "either could be meant");
        assert_eq!(told(&[named(None, "45.0.0.7")], &locals[..2]), [None, None]);
        assert_eq!(told(&[named(None, "45.0.0.7")], &[ip("45.0.0.9")]), [None], "a public one stays");
    }

    #[test]
    fn what_was_found_before_stays_until_something_else_is_told() {
        let mut discovery = Discovery::default();
        let old = [(ip("10.0.0.5"), ip("45.0.0.7")), (ip("10.0.0.9"), ip("45.0.0.9"))];
        keep_old(&mut discovery, &old, &[ip("10.0.0.5"), ip("10.0.0.6"), ip("45.0.0.1")]);
        assert_eq!(discovery.pairs, old[..1], "of addresses that there are");
        assert_eq!(discovery.unknown, [ip("10.0.0.5"), ip("10.0.0.6")]);
        assert!(discovery.problems.len() == 1 && discovery.problems[0].1.contains("10.0.0.6"));
    }
}
