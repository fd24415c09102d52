//! Public addresses that others tell: asked at the start, and looked at again from time to time.
//!
//! `public_address` asks; this says when, tells the operator what is wrong, and hands what was found to the running relay.
//! Decision: docs/decisions/0226-a-server-asks-for-its-public-address.md.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::advice;
use crate::config::Config;
use crate::config::error::{Problem, SourceLocation};
use crate::config::external::ExternalLook;
use crate::net::{Running, advertisable, interfaces, relay_candidates};
use crate::public_address::{Discovery, discover};

/// How long a start, or a person with a command, waits for answers.
const START_TIME: Duration = Duration::from_secs(2);

/// How long a look waits: a whole STUN transaction (RFC 8489 section 6.2.1).
const LOOK_TIME: Duration = Duration::from_millis(39_500);

/// The same while an address is not known that allocations wait for: five sendings of the request.
const URGENT_TIME: Duration = Duration::from_secs(8);

/// How soon is asked again for an address that is not known; doubled each time, up to `relay.external_interval`.
const RETRY: Duration = Duration::from_secs(5);

/// How often is seen whether the addresses or the keys have changed: nothing is asked for that.
const TICK: Duration = Duration::from_secs(5);

/// Whether anybody is asked.
fn is_asked(config: &Config) -> bool {
    config.relay.external.source().is_some() || !config.relay.external_look.servers.is_empty()
}

/// Asks before anything is bound, and puts what was found and what is wrong into the configuration. A server starts without
/// an answer too.
pub async fn at_start(config: &mut Config) {
    if !is_asked(config) {
        return;
    }
    let discovery = discover(&config.relay, &advertisable(config), START_TIME).await;
    config.relay.external.set_found(&discovery.pairs);
    let warnings = warnings_of(config, &discovery);
    config.warnings.extend(warnings.into_iter().map(|(key, text)| Problem::new(SourceLocation::Nowhere, key, text)));
}

/// The same for a command.
pub fn ask_now(config: &mut Config) {
    if !is_asked(config) {
        return;
    }
    // Without a runtime there is no answer, and the rest of the command is of use.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        runtime.block_on(at_start(config));
    }
}

/// What an operator should look at, with what was found in the configuration already.
fn warnings_of(config: &Config, discovery: &Discovery) -> Vec<(&'static str, String)> {
    let interfaces = interfaces::addresses().unwrap_or_default();
    let interfaces: Vec<IpAddr> = interfaces.into_iter().map(|interface| interface.address).collect();
    let unseen = advice::unseen(&relay_candidates(config), &discovery.seen, &interfaces);
    discovery.problems.iter().cloned().chain(unseen).collect()
}

/// What is known after a look.
#[derive(Default)]
struct Looked {
    locals: Vec<IpAddr>,
    look: Option<ExternalLook>,
    /// When is asked again.
    next: Option<Instant>,
    /// How long until then, while something is not known.
    retry: Option<Duration>,
    /// What the operator was told and what has not changed since.
    told: Vec<(String, String)>,
}

impl Looked {
    fn is_due(&self, config: &Config, locals: &[IpAddr]) -> bool {
        let is_same = self.locals == locals && self.look.as_ref() == Some(&config.relay.external_look);
        !is_same || self.next.is_none_or(|next| Instant::now() >= next)
    }

    fn plan_next(&mut self, interval: Duration, is_unknown: bool) {
        self.retry = is_unknown.then(|| self.retry.map_or(RETRY, |retry| retry * 2).min(interval));
        self.next = Some(Instant::now() + self.retry.unwrap_or(interval));
    }

    /// Each warning once, as long as it holds.
    fn warn(&mut self, warnings: Vec<(&'static str, String)>) {
        let warnings: Vec<_> = warnings.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        for warning in warnings.iter().filter(|warning| !self.told.contains(warning)) {
            tracing::warn!("{}: {}", warning.0, warning.1);
        }
        self.told = warnings;
    }
}

/// Follows the public addresses as long as the relay runs; `changed` hears of each change.
pub(crate) async fn follow(running: Weak<Running>, changed: impl Fn(&Arc<Running>)) {
    let mut looked = Looked::default();
    if let Some(relay) = running.upgrade() {
        let config = relay.config().await;
        looked.told = config.warnings.iter().map(|warning| (warning.key.clone(), warning.message.clone())).collect();
    }
    loop {
        let Some(relay) = running.upgrade() else { return };
        let config = relay.config().await;
        if is_asked(&config) && !relay.is_handed_over() {
            let locals = advertisable(&config);
            if looked.is_due(&config, &locals) {
                drop(relay);
                look(&running, &config, locals, &mut looked, &changed).await;
            }
        }
        tokio::time::sleep(TICK.min(config.relay.external_look.interval)).await;
    }
}

async fn look(
    running: &Weak<Running>,
    config: &Config,
    locals: Vec<IpAddr>,
    looked: &mut Looked,
    changed: &impl Fn(&Arc<Running>),
) {
    let is_urgent = locals.iter().any(|local| config.relay.external.advertised(*local).is_none());
    let discovery = discover(&config.relay, &locals, if is_urgent { URGENT_TIME } else { LOOK_TIME }).await;
    let Some(relay) = running.upgrade() else { return };
    let interval = config.relay.external_look.interval;
    looked.look = Some(config.relay.external_look.clone());
    looked.locals = locals;
    looked.plan_next(interval, !discovery.unknown.is_empty());
    if relay.is_handed_over() {
        return;
    }
    match relay.set_found_addresses(&discovery.pairs).await {
        Ok(true) => changed(&relay),
        Ok(false) => {}
        // The kernel's addresses are looked at each minute, and then it is tried again.
        Err(error) => tracing::warn!(error, "a public address was found, and not every worker knows it yet"),
    }
    let config = relay.config().await;
    looked.warn(warnings_of(&config, &discovery));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_asked_for_soon_and_then_more_seldom() {
        let interval = Duration::from_secs(18);
        let mut looked = Looked::default();
        let waits: Vec<u64> = [true, true, true, false, true]
            .into_iter()
            .map(|is_unknown| {
                looked.plan_next(interval, is_unknown);
                (looked.next.unwrap() - Instant::now()).as_secs() + 1
            })
            .collect();
        assert_eq!(waits, [5, 10, 18, 18, 5]);
    }

    #[test]
    fn other_addresses_or_servers_are_asked_about_at_once() {
        let config = Config::with_a_secret("relay.external_servers = [\"192.0.2.1\"]").unwrap();
        let locals = [IpAddr::from([10, 0, 0, 5])];
        let mut looked = Looked::default();
        assert!(looked.is_due(&config, &locals));
        (looked.locals, looked.look) = (locals.to_vec(), Some(config.relay.external_look.clone()));
        looked.plan_next(config.relay.external_look.interval, false);
        assert!(!looked.is_due(&config, &locals));
        assert!(looked.is_due(&config, &[]));
        let other = Config::with_a_secret("relay.external_servers = [\"192.0.2.2\"]").unwrap();
        assert!(looked.is_due(&other, &locals));
        looked.next = Some(Instant::now());
        assert!(looked.is_due(&config, &locals));
    }

    #[test]
    fn a_warning_is_told_once_as_long_as_it_holds() {
        let mut looked = Looked::default();
        looked.warn(vec![("relay.external", "a".to_owned())]);
        assert_eq!(looked.told, [("relay.external".to_owned(), "a".to_owned())]);
        looked.warn(Vec::new());
        assert!(looked.told.is_empty(), "and told again if it comes back");
    }
}
