//! The numbers of the status page: nothing in them tells of a user.

use serde_json::{Map, Value, json};

use super::Admin;
use crate::address::{Family, Transport};
use crate::ops::log;
use crate::ops::status::Phase;
use crate::protocol::accounting::Amount;
use crate::protocol::counters::Counters;
use crate::protocol::reason::{DropReason, EndReason};
use crate::protocol::reject::RejectReason;

/// Names with their counts; those at 0 are left out.
fn counts<'a>(all: impl Iterator<Item = (&'a str, u64)>) -> Value {
    Value::Object(all.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), json!(count))).collect())
}

impl Admin {
    pub(super) fn status(&self) -> Value {
        let running = &self.parts.running;
        let now = (self.parts.clock)();
        let workers: Vec<&Counters> = running.counters().map(|(core, _)| core).collect();
        let sum = |of: &dyn Fn(&Counters) -> u64| workers.iter().map(|core| of(core)).sum::<u64>();
        let amount = |of: &dyn Fn(&Counters) -> Amount| {
            let amount = workers.iter().fold(Amount::default(), |sum, core| sum + of(core));
            json!({ "packets": amount.packets, "bytes": amount.bytes })
        };
        let mut by_transport = Map::new();
        let mut sessions = 0;
        for transport in Transport::ALL {
            let live = |family| sum(&|core| core.live[transport as usize][family as usize].get());
            let live = live(Family::V4) + live(Family::V6);
            sessions += live;
            by_transport.insert(transport.name().to_owned(), json!(live));
        }
        let certificates = running.tls().map(|tls| tls.certificates.loaded()).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.parts.status.get().name(),
            "draining": self.parts.status.get() == Phase::Draining,
            "time_ms": now.ticks.0,
            "uptime_s": now.ticks.since(self.started.ticks) / 1000,
            "workers": workers.len(),
            "sessions": sessions,
            "sessions_by_transport": by_transport,
            "sessions_created": sum(&|core| core.created.get()),
            "sessions_ended": counts(EndReason::ALL.iter().map(|why| (why.name(), sum(&|core| core.ended[*why as usize].get())))),
            "from_clients": amount(&|core| core.from_clients.get()),
            "to_peers": amount(&|core| core.to_peers.get()),
            "from_peers": amount(&|core| core.from_peers.get()),
            "to_clients": amount(&|core| core.to_clients.get()),
            "refused": counts(RejectReason::ALL.iter().map(|why| (why.name(), sum(&|core| core.rejects_of(*why))))),
            "dropped": counts(DropReason::ALL.iter().map(|why| (why.name(), sum(&|core| core.drops_of(*why).packets)))),
            "lost": self.lost(),
            "certificates": certificates.iter().map(|certificate| json!({
                "names": certificate.names, "days": certificate.days_left(),
                "valid_until": (!certificate.is_stand_in).then_some(certificate.not_after),
            })).collect::<Vec<_>>(),
            "acme": self.parts.acme.status(),
            "alternates": self.parts.alternates.status(),
            "revocations": running.revocations().len(),
            "shared": self.shared(),
        })
    }

    /// The web servers behind `listen.shared`; null if there are none.
    fn shared(&self) -> Value {
        let running = &self.parts.running;
        let backends = running.backends();
        if backends.is_empty() {
            return Value::Null;
        }
        let (open, ended, [to_backend, to_client]) = running.passed_on();
        json!({
            "connections": counts(running.shared_counts().into_iter()),
            "passed_on": open,
            "ended": counts(ended.into_iter()),
            "bytes_to_backend": to_backend,
            "bytes_to_client": to_client,
            "backends": backends.iter().map(|(address, of)| json!({
                "address": address, "up": of.error.is_none(), "error": of.error, "failures": of.failures,
            })).collect::<Vec<_>>(),
        })
    }

    /// What outputs did not take: an operator who looks here must not have to look at metrics too.
    fn lost(&self) -> Value {
        let nets = || self.parts.running.counters().map(|(_, net)| net);
        let unrecorded = nets().map(|net| net.records_lost.get()).sum::<u64>();
        let usage = self.parts.usage.iter().flat_map(|usage| usage.lost(unrecorded));
        let all = [
            ("log lines", log::lines_lost().iter().map(|(_, lost)| lost).sum()),
            ("log events", nets().map(|net| net.events_lost.get() + net.refusal_events_lost.get()).sum()),
            ("usage records", usage.map(|(.., lost)| lost).sum()),
        ];
        counts(all.into_iter())
    }
}
