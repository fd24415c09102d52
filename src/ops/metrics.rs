//! Every counter, as Prometheus reads it.
//!
//! The workers count in plain cells; a scrape sums the cells and asks the kernel for what it counts, so a scrape is
//! exact and a packet never pays for a metric. Every reason has its line from the start, at 0. No label has values
//! that users choose.

mod process;
mod text;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::text::Text;
use crate::api::admin::refused::counts as admin_refused;
use crate::api::rest::counts::Counts;
use crate::api::rest::refused::IssueRefused;
use crate::api::turned_away;
use crate::net::counters::{Batches, NetCounters};
use crate::net::{Running, SocketKind, clock};
use crate::ops::revocations;
use crate::ops::status::{Phase, Status};
use crate::ops::usage::UsageMetrics;
use crate::protocol::accounting::Amount;
use crate::protocol::address::{Family, Transport};
use crate::protocol::border::{DropReason, EndReason};
use crate::protocol::counters::{Counters, METHODS};
use crate::protocol::genuine::{GenuineCounts, REMAINING_BOUNDS};
use crate::protocol::reject::RejectReason;

/// Renders the counters of a running relay.
pub struct Metrics {
    running: Arc<Running>,
    status: Arc<Status>,
    issuing: Arc<Counts>,
    usage: Option<UsageMetrics>,
    started: u64,
}

impl Metrics {
    /// For this relay and the credentials that are issued for it. Made when the process starts.
    #[must_use]
    pub fn new(running: Arc<Running>, status: Arc<Status>, issuing: Arc<Counts>, usage: Option<UsageMetrics>) -> Self {
        Self { running, status, issuing, usage, started: clock::unix_seconds().0 }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        let workers = Workers(self.running.counters().collect());
        let mut text = Text::default();
        text.gauge("throughway_build_info", "Always 1; the version is its label")
            .each("version", [(env!("CARGO_PKG_VERSION"), 1)]);
        text.gauge("throughway_ready", "1 while new allocations are welcome, as /readyz tells")
            .value(u8::from(self.status.get() == Phase::Ready));
        publish_allocations(&mut text, &workers);
        publish_requests(&mut text, &workers);
        publish_genuine(&mut text, &self.running.genuine());
        publish_traffic(&mut text, &workers);
        self.publish_workers(&mut text, &workers);
        self.publish_sockets(&mut text);
        Self::publish_pieces(&mut text, &workers);
        self.publish_streams(&mut text, &workers);
        self.publish_tls(&mut text);
        self.publish_credentials(&mut text);
        text.counter("throughway_events_lost_total", "Session events that the log could not take in time")
            .value(workers.net(|net| net.events_lost.get()));
        if let Some(usage) = &self.usage {
            publish_usage(&mut text, usage);
        }
        process::publish(&mut text, self.started);
        text.into_string()
    }

    fn publish_workers(&self, text: &mut Text, workers: &Workers<'_>) {
        let of_net = |of: fn(&NetCounters) -> u64| workers.numbered(move |(_, net)| of(net));
        text.counter("throughway_worker_loops_total", "Turns of a worker's loop")
            .each("worker", of_net(|net| net.loops.get()));
        let threads: Vec<_> = self.running.workers().enumerate().map(|(at, of)| (at.to_string(), of)).collect();
        text.real_counter(
            "throughway_worker_cpu_seconds_total",
            "Processor time of a worker's thread; one second per second is all there is",
        )
        .each("worker", threads.iter().filter_map(|(at, (busy, ..))| Some((at, (*busy)? as f64 / 1e9))));
        text.gauge("throughway_worker_inbox_messages", "Messages that wait for a worker")
            .each("worker", threads.iter().map(|(at, (_, waiting, _))| (at, waiting)));
        text.counter("throughway_worker_inbox_refused_total", "Messages that found a worker's inbox full")
            .each("worker", threads.iter().map(|(at, (.., refused))| (at, refused)));
        text.counter("throughway_listener_datagrams_total", "Datagrams received on UDP listeners")
            .each("worker", of_net(|net| net.listener_batches.datagrams()));
        let batches = |kind: SocketKind, of: fn(&NetCounters) -> &Batches| {
            let mut sum: Vec<(u64, u64)> = Vec::new();
            for (_, net) in &workers.0 {
                sum.resize(of(net).buckets().count(), (0, 0));
                for ((largest, total), (of_bucket, batches)) in sum.iter_mut().zip(of(net).buckets()) {
                    *largest = of_bucket;
                    *total += batches;
                }
            }
            (kind.name(), sum, workers.net(|net| of(net).datagrams()))
        };
        text.histogram("throughway_batch_datagrams", "Datagrams received with one call, by socket").buckets(
            "socket",
            [
                batches(SocketKind::Listener, |net| &net.listener_batches),
                batches(SocketKind::Relayed, |net| &net.relayed_batches),
            ],
        );
    }

    fn publish_pieces(text: &mut Text, workers: &Workers<'_>) {
        text.counter("throughway_coalesced_datagrams_total", "Datagrams that came behind another one in one piece")
            .value(workers.net(|net| net.coalesced.get()));
        text.counter("throughway_segmented_messages_total", "Messages of several datagrams, by what the kernel said")
            .each(
                "result",
                [
                    ("sent", workers.net(|net| net.segmented.get())),
                    ("refused", workers.net(|net| net.segmented_refused.get())),
                ],
            );
        text.counter(
            "throughway_inside_packets_total",
            "Payload packets from one relayed address to another without the kernel",
        )
        .value(workers.net(|net| net.handed_over.get()));
    }

    fn publish_sockets(&self, text: &mut Text) {
        text.counter("throughway_kernel_drops_total", "Packets that the kernel dropped at our sockets, by socket")
            .each("socket", SocketKind::ALL.map(|kind| (kind.name(), self.running.kernel_drops(kind))));
        let ports = self.running.relay_ports().flat_map(|(address, census)| {
            [("used", census.used), ("free", census.free), ("resting", census.resting)]
                .map(|(state, ports)| ([address.advertised.to_string()], [state], ports))
        });
        text.gauge("throughway_relay_ports", "Ports of relay.ports by relay address and what they do")
            .each_of_two(["address", "state"], ports);
    }

    fn publish_streams(&self, text: &mut Text, workers: &Workers<'_>) {
        text.gauge("throughway_streams", "Open client streams").value(workers.net(|net| net.streams_open.get()));
        text.counter("throughway_streams_accepted_total", "Client streams ever adopted")
            .value(workers.net(|net| net.streams_adopted.get()));
        text.counter("throughway_streams_refused_total", "Client streams that could not be accepted or served")
            .value(self.running.streams_refused());
        text.counter("throughway_streams_closed_total", "Client streams that we closed, by reason").each(
            "reason",
            [
                ("not_stun", workers.net(|net| net.streams_broken.get())),
                ("no_allocation", workers.net(|net| net.streams_overdue.get())),
                ("tls_broken", workers.net(|net| net.streams_tls_broken.get())),
                ("silent", self.running.streams_silent()),
            ],
        );
    }

    fn publish_tls(&self, text: &mut Text) {
        let handshakes = self.running.handshakes();
        text.counter("throughway_tls_handshakes_total", "TLS handshakes by what became of them")
            .each("result", handshakes.results());
        text.counter("throughway_tls_resumptions_total", "Finished TLS handshakes that resumed a session")
            .value(handshakes.resumed.load(Ordering::Relaxed));
        text.gauge("throughway_tls_handshakes_under_way", "TLS handshakes that have not finished")
            .value(self.running.handshakes_under_way());
        if let Some(tls) = self.running.tls() {
            text.counter(
                "throughway_http_tls_handshakes_total",
                "TLS handshakes on http.public by what became of them",
            )
            .each("result", tls.http_handshakes.results());
        }
        let certificates = self.running.tls().map(|tls| tls.certificates.loaded()).unwrap_or_default();
        let days = certificates.iter().enumerate().map(|(position, of)| (position.to_string(), of.days_left()));
        text.gauge("throughway_tls_certificate_days", "Whole days until a certificate's chain ends, by its position")
            .each("certificate", days);
    }

    fn publish_credentials(&self, text: &mut Text) {
        text.counter("throughway_credentials_issued_total", "Credentials issued over HTTP, by the key that asked")
            .each("key", self.issuing.issued());
        text.counter("throughway_credentials_refused_total", "Credentials refused over HTTP, by reason")
            .each("reason", IssueRefused::ALL.iter().map(|refused| (refused.name(), self.issuing.refused(refused))));
        let fetches = &self.issuing.fetches;
        if fetches.is_on.load(Ordering::Relaxed) {
            let results = [("ok", &fetches.ok), ("failed", &fetches.failed)];
            text.counter("throughway_jwt_key_fetches_total", "Fetches of the keys that check tokens, by result")
                .each("result", results.map(|(result, count)| (result, count.load(Ordering::Relaxed))));
            text.gauge("throughway_jwt_keys", "Fetched keys that check tokens")
                .value(fetches.keys.load(Ordering::Relaxed));
            if let Some(age) = fetches.age() {
                text.gauge("throughway_jwt_keys_age_seconds", "How long ago they came").value(age);
            }
        }
        text.counter("throughway_http_connections_refused_total", "HTTP connections closed because too many were open")
            .value(turned_away());
        text.counter("throughway_admin_refused_total", "Admin calls that were refused or failed, by reason")
            .each("reason", admin_refused());
        text.gauge("throughway_revocations", "Credentials, users and tenants that are revoked")
            .value(self.running.revocations().len());
        text.counter("throughway_revocation_write_failures_total", "Revocations that could not be written to disk")
            .value(revocations::write_failures());
    }
}

/// What every worker counts.
struct Workers<'r>(Vec<(&'r Counters, &'r NetCounters)>);

impl Workers<'_> {
    fn core(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.0.iter().map(|(core, _)| of(core)).sum()
    }

    fn net(&self, of: impl Fn(&NetCounters) -> u64) -> u64 {
        self.0.iter().map(|(_, net)| of(net)).sum()
    }

    fn amount(&self, of: impl Fn(&Counters) -> Amount) -> Amount {
        self.0.iter().map(|(core, _)| of(core)).fold(Amount::default(), |sum, amount| sum + amount)
    }

    /// One value per worker, with its number.
    fn numbered<V>(&self, of: impl Fn((&Counters, &NetCounters)) -> V) -> impl Iterator<Item = (String, V)> {
        self.0.iter().enumerate().map(move |(number, worker)| (number.to_string(), of(*worker)))
    }
}

fn publish_allocations(text: &mut Text, workers: &Workers<'_>) {
    let live = Transport::ALL.into_iter().flat_map(|transport| {
        [Family::V4, Family::V6].map(|family| {
            let live = workers.core(|core| core.live[transport as usize][family as usize].get());
            ([transport.name()], [family.name()], live)
        })
    });
    text.gauge("throughway_allocations", "Live allocations by client transport and relayed family")
        .each_of_two(["transport", "family"], live);
    text.counter("throughway_allocations_created_total", "Allocations ever made")
        .value(workers.core(|core| core.created.get()));
    let ended = |reason: &EndReason| workers.core(|core| core.ended[*reason as usize].get());
    text.counter("throughway_allocations_ended_total", "Ended allocations by reason")
        .each("reason", EndReason::ALL.iter().map(|reason| (reason.name(), ended(reason))));
}

fn publish_requests(text: &mut Text, workers: &Workers<'_>) {
    let granted = |at: usize| workers.core(|core| core.successes[at].get());
    text.counter("throughway_requests_granted_total", "Requests answered with success, by method")
        .each("method", METHODS.iter().enumerate().map(|(at, (_, name))| (name, granted(at))));
    let refused = RejectReason::ALL
        .iter()
        .map(|reason| ([reason.name()], [reason.code().0.to_string()], workers.core(|core| core.rejects_of(*reason))));
    text.counter("throughway_requests_refused_total", "Requests answered with an error, by reason and code")
        .each_of_two(["reason", "code"], refused);
}

/// Whoever proved to hold a credential; the ids of secrets are the operator's own words.
fn publish_genuine(text: &mut Text, genuine: &GenuineCounts) {
    let name = |secret: &Option<Box<str>>| secret.as_deref().unwrap_or("(users)").to_owned();
    let results = genuine.by_secret.iter().flat_map(|(secret, of)| {
        let refused = of.refused.iter().map(|(reason, count)| (*reason, *count));
        std::iter::once(("ok", of.granted)).chain(refused).map(|(result, count)| ([name(secret)], [result], count))
    });
    text.counter(
        "throughway_authenticated_total",
        "Requests for an allocation that proved to hold a credential, by the id of its secret and by result",
    )
    .each_of_two(["secret", "result"], results.collect::<Vec<_>>());
    let used = genuine.by_secret.iter().filter_map(|(secret, of)| Some((name(secret), of.last_used?.0)));
    text.gauge("throughway_secret_last_used_timestamp_seconds", "When a secret last let somebody in")
        .each("secret", used);
    let (&beyond, within) = genuine.remaining.split_last().expect("there is one bucket more than bounds");
    text.histogram(
        "throughway_credential_remaining_seconds",
        "What was left of the lifetime of time-limited credentials at their Allocate; below 0 they were over",
    )
    .plain_buckets(REMAINING_BOUNDS.into_iter().zip(within.iter().copied()), beyond, genuine.remaining_sum);
}

fn publish_traffic(text: &mut Text, workers: &Workers<'_>) {
    let dropped: Vec<_> =
        DropReason::ALL.iter().map(|why| (why.name(), workers.amount(|core| core.drops_of(*why)))).collect();
    text.counter("throughway_dropped_packets_total", "Packets that went nowhere, by reason")
        .each("reason", dropped.iter().map(|(why, amount)| (why, amount.packets)));
    text.counter("throughway_dropped_bytes_total", "Bytes that went nowhere, by reason; payload where it is known")
        .each("reason", dropped.iter().map(|(why, amount)| (why, amount.bytes)));
    // What waits in a stream's queue is not sent yet, and may never be.
    let waiting = workers.0.iter().map(|(_, net)| net.waiting.get());
    let waiting = waiting.fold(Amount::default(), |sum, amount| sum + amount);
    let to_clients = workers.amount(|core| core.to_clients.get());
    let sent_to_clients = Amount {
        packets: to_clients.packets.saturating_sub(waiting.packets),
        bytes: to_clients.bytes.saturating_sub(waiting.bytes),
    };
    let flows = [
        ("received", "clients", workers.amount(|core| core.from_clients.get())),
        ("sent", "peers", workers.amount(|core| core.to_peers.get())),
        ("received", "peers", workers.amount(|core| core.from_peers.get())),
        ("sent", "clients", sent_to_clients),
    ];
    text.counter("throughway_payload_packets_total", "Relayed payload packets, by way and side")
        .each_of_two(["way", "side"], flows.map(|(way, side, amount)| ([way], [side], amount.packets)));
    text.counter("throughway_payload_bytes_total", "Relayed payload bytes, by way and side")
        .each_of_two(["way", "side"], flows.map(|(way, side, amount)| ([way], [side], amount.bytes)));
}

fn publish_usage(text: &mut Text, usage: &UsageMetrics) {
    text.counter("throughway_accounting_records_total", "Usage records written or delivered, by sink")
        .each("sink", usage.sinks().map(|(sink, written, _)| (sink, written)));
    text.counter("throughway_accounting_lost_total", "Usage records that a sink lost")
        .each("sink", usage.sinks().map(|(sink, _, lost)| (sink, lost)));
    if let Some((failures, backlog)) = usage.webhook() {
        text.counter(
            "throughway_accounting_webhook_failures_total",
            "Deliveries to the webhook that failed and are tried again",
        )
        .value(failures);
        text.gauge("throughway_accounting_spool_records", "Usage records that wait for the webhook")
            .value(backlog.records);
        text.gauge("throughway_accounting_spool_bytes", "Their bytes on disk").value(backlog.bytes);
        text.gauge("throughway_accounting_webhook_lag_seconds", "How long the oldest of them waits")
            .value(backlog.lag_seconds);
    }
}
