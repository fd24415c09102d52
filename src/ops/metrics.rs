//! Every counter, as Prometheus reads it.
//!
//! The workers count in plain cells; at each scrape the cells are summed and handed to an exporter made for this
//! scrape, so a scrape is exact and a packet never pays for a metric. An exporter that lived longer would keep the
//! highest value it ever saw, also of a packet that was taken back a moment later. Every reason has its line from the start, at 0. No
//! label has values that users choose.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::api::rest::counts::Counts;
use crate::api::rest::refused::IssueRefused;
use crate::api::turned_away;
use crate::net::Running;
use crate::ops::usage::UsageMetrics;
use crate::protocol::accounting::Amount;
use crate::protocol::address::{Family, Transport};
use crate::protocol::border::{DropReason, EndReason};
use crate::protocol::counters::{Counters, METHODS};
use crate::protocol::reject::RejectReason;

/// Renders the counters of a running relay.
pub struct Metrics {
    running: Arc<Running>,
    issuing: Arc<Counts>,
    usage: Option<UsageMetrics>,
}

impl Metrics {
    /// For this relay and the credentials that are issued for it.
    #[must_use]
    pub const fn new(running: Arc<Running>, issuing: Arc<Counts>, usage: Option<UsageMetrics>) -> Self {
        Self { running, issuing, usage }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || {
            describe();
            self.publish();
            if let Some(usage) = &self.usage {
                publish_usage(usage);
            }
        });
        recorder.handle().render()
    }

    fn publish_tls(&self) {
        let handshakes = self.running.handshakes();
        for (result, count) in handshakes.results() {
            counter!("throughway_tls_handshakes_total", "result" => result).absolute(count);
        }
        counter!("throughway_tls_resumptions_total").absolute(handshakes.resumed.load(Ordering::Relaxed));
        gauge!("throughway_tls_handshakes_under_way").set(self.running.handshakes_under_way() as f64);
        if let Some(tls) = self.running.tls() {
            for (result, count) in tls.http_handshakes.results() {
                counter!("throughway_http_tls_handshakes_total", "result" => result).absolute(count);
            }
        }
        let certificates = self.running.tls().map(|tls| tls.certificates.loaded()).unwrap_or_default();
        for (position, certificate) in certificates.iter().enumerate() {
            gauge!("throughway_tls_certificate_days", "certificate" => position.to_string())
                .set(certificate.days_left() as f64);
        }
    }

    fn publish(&self) {
        let workers: Vec<_> = self.running.counters().collect();
        let sum = |of: &dyn Fn(&Counters) -> u64| workers.iter().map(|(core, _)| of(core)).sum::<u64>();
        let amount = |of: &dyn Fn(&Counters) -> Amount| {
            workers.iter().map(|(core, _)| of(core)).fold(Amount::default(), |sum, amount| sum + amount)
        };
        for transport in Transport::ALL {
            for family in [Family::V4, Family::V6] {
                let live = sum(&|core| core.live[transport as usize][family as usize].get());
                gauge!("throughway_allocations", "transport" => transport.name(), "family" => family.name())
                    .set(live as f64);
            }
        }
        counter!("throughway_allocations_created_total").absolute(sum(&|core| core.created.get()));
        for reason in EndReason::ALL {
            counter!("throughway_allocations_ended_total", "reason" => reason.name())
                .absolute(sum(&|core| core.ended[reason as usize].get()));
        }
        for (at, (_, name)) in METHODS.iter().enumerate() {
            counter!("throughway_requests_granted_total", "method" => *name)
                .absolute(sum(&|core| core.successes[at].get()));
        }
        for reason in RejectReason::ALL {
            counter!("throughway_requests_refused_total", "reason" => reason.name(), "code" => reason.code().0.to_string())
                .absolute(sum(&|core| core.rejects_of(*reason)));
        }
        for reason in DropReason::ALL {
            let dropped = amount(&|core| core.drops_of(*reason));
            counter!("throughway_dropped_packets_total", "reason" => reason.name()).absolute(dropped.packets);
            counter!("throughway_dropped_bytes_total", "reason" => reason.name()).absolute(dropped.bytes);
        }
        // What waits in a stream's queue is not sent yet, and may never be.
        let waiting =
            workers.iter().map(|(_, net)| net.waiting.get()).fold(Amount::default(), |sum, amount| sum + amount);
        let to_clients = amount(&|core| core.to_clients.get());
        let sent_to_clients = Amount {
            packets: to_clients.packets.saturating_sub(waiting.packets),
            bytes: to_clients.bytes.saturating_sub(waiting.bytes),
        };
        let flows: [(&str, &str, Amount); 4] = [
            ("received", "clients", amount(&|core| core.from_clients.get())),
            ("sent", "peers", amount(&|core| core.to_peers.get())),
            ("received", "peers", amount(&|core| core.from_peers.get())),
            ("sent", "clients", sent_to_clients),
        ];
        for (way, side, amount) in flows {
            counter!("throughway_payload_packets_total", "way" => way, "side" => side).absolute(amount.packets);
            counter!("throughway_payload_bytes_total", "way" => way, "side" => side).absolute(amount.bytes);
        }
        for (number, (_, net)) in workers.iter().enumerate() {
            let worker = number.to_string();
            counter!("throughway_worker_loops_total", "worker" => worker.clone()).absolute(net.loops.get());
            counter!("throughway_listener_batches_total", "worker" => worker.clone()).absolute(net.batches.get());
            counter!("throughway_listener_datagrams_total", "worker" => worker).absolute(net.datagrams.get());
        }
        let of_net = |of: &dyn Fn(&crate::net::counters::NetCounters) -> u64| {
            workers.iter().map(|(_, net)| of(net)).sum::<u64>()
        };
        gauge!("throughway_streams").set(of_net(&|net| net.streams_open.get()) as f64);
        counter!("throughway_streams_accepted_total").absolute(of_net(&|net| net.streams_adopted.get()));
        counter!("throughway_streams_refused_total").absolute(self.running.streams_refused());
        counter!("throughway_streams_closed_total", "reason" => "not_stun")
            .absolute(of_net(&|net| net.streams_broken.get()));
        counter!("throughway_streams_closed_total", "reason" => "no_allocation")
            .absolute(of_net(&|net| net.streams_overdue.get()));
        counter!("throughway_streams_closed_total", "reason" => "tls_broken")
            .absolute(of_net(&|net| net.streams_tls_broken.get()));
        counter!("throughway_streams_closed_total", "reason" => "silent").absolute(self.running.streams_silent());
        self.publish_tls();
        counter!("throughway_events_lost_total").absolute(of_net(&|net| net.events_lost.get()));
        for (key, count) in self.issuing.issued() {
            counter!("throughway_credentials_issued_total", "key" => key.into_string()).absolute(count);
        }
        for refused in &IssueRefused::ALL {
            counter!("throughway_credentials_refused_total", "reason" => refused.name())
                .absolute(self.issuing.refused(refused));
        }
        let fetches = &self.issuing.fetches;
        if fetches.is_on.load(Ordering::Relaxed) {
            for (result, count) in [("ok", &fetches.ok), ("failed", &fetches.failed)] {
                counter!("throughway_jwt_key_fetches_total", "result" => result)
                    .absolute(count.load(Ordering::Relaxed));
            }
            gauge!("throughway_jwt_keys").set(fetches.keys.load(Ordering::Relaxed) as f64);
            if let Some(age) = fetches.age() {
                gauge!("throughway_jwt_keys_age_seconds").set(age as f64);
            }
        }
        counter!("throughway_http_connections_refused_total").absolute(turned_away());
        gauge!("throughway_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    }
}

fn publish_usage(usage: &UsageMetrics) {
    for (sink, written, lost) in usage.sinks() {
        counter!("throughway_accounting_records_total", "sink" => sink).absolute(written);
        counter!("throughway_accounting_lost_total", "sink" => sink).absolute(lost);
    }
    if let Some((failures, backlog)) = usage.webhook() {
        counter!("throughway_accounting_webhook_failures_total").absolute(failures);
        gauge!("throughway_accounting_spool_records").set(backlog.records as f64);
        gauge!("throughway_accounting_spool_bytes").set(backlog.bytes as f64);
        gauge!("throughway_accounting_webhook_lag_seconds").set(backlog.lag_seconds as f64);
    }
}

fn describe() {
    describe_counter!("throughway_accounting_records_total", "Usage records written or delivered, by sink");
    describe_counter!("throughway_accounting_lost_total", "Usage records that a sink lost");
    describe_counter!(
        "throughway_accounting_webhook_failures_total",
        "Deliveries to the webhook that failed and are tried again"
    );
    describe_gauge!("throughway_accounting_spool_records", "Usage records that wait for the webhook");
    describe_gauge!("throughway_accounting_spool_bytes", "Their bytes on disk");
    describe_gauge!("throughway_accounting_webhook_lag_seconds", "How long the oldest of them waits");
    describe_gauge!("throughway_allocations", "Live allocations by client transport and relayed family");
    describe_counter!("throughway_allocations_created_total", "Allocations ever made");
    describe_counter!("throughway_allocations_ended_total", "Ended allocations by reason");
    describe_counter!("throughway_requests_granted_total", "Requests answered with success, by method");
    describe_counter!("throughway_requests_refused_total", "Requests answered with an error, by reason and code");
    describe_counter!("throughway_dropped_packets_total", "Packets that went nowhere, by reason");
    describe_counter!(
        "throughway_dropped_bytes_total",
        "Bytes that went nowhere, by reason; payload where it is known"
    );
    describe_counter!("throughway_payload_packets_total", "Relayed payload packets, by way and side");
    describe_counter!("throughway_payload_bytes_total", "Relayed payload bytes, by way and side");
    describe_counter!("throughway_worker_loops_total", "Turns of a worker's loop");
    describe_counter!("throughway_listener_batches_total", "Batches received on UDP listeners");
    describe_counter!("throughway_listener_datagrams_total", "Datagrams received on UDP listeners");
    describe_gauge!("throughway_streams", "Open client streams");
    describe_counter!("throughway_streams_accepted_total", "Client streams ever adopted");
    describe_counter!("throughway_streams_refused_total", "Client streams that could not be accepted or served");
    describe_counter!("throughway_streams_closed_total", "Client streams that we closed, by reason");
    describe_counter!("throughway_tls_handshakes_total", "TLS handshakes by what became of them");
    describe_counter!("throughway_tls_resumptions_total", "Finished TLS handshakes that resumed a session");
    describe_counter!("throughway_http_tls_handshakes_total", "TLS handshakes on http.public by what became of them");
    describe_gauge!("throughway_tls_handshakes_under_way", "TLS handshakes that have not finished");
    describe_gauge!("throughway_tls_certificate_days", "Whole days until a certificate's chain ends, by its position");
    describe_counter!("throughway_events_lost_total", "Session events that the log could not take in time");
    describe_counter!("throughway_credentials_issued_total", "Credentials issued over HTTP, by the key that asked");
    describe_counter!("throughway_credentials_refused_total", "Credentials refused over HTTP, by reason");
    describe_counter!("throughway_jwt_key_fetches_total", "Fetches of the keys that check tokens, by result");
    describe_gauge!("throughway_jwt_keys", "Fetched keys that check tokens");
    describe_gauge!("throughway_jwt_keys_age_seconds", "How long ago they came");
    describe_counter!(
        "throughway_http_connections_refused_total",
        "HTTP connections closed because too many were open"
    );
    describe_gauge!("throughway_build_info", "Always 1; the version is its label");
}
