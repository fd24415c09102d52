//! Every counter, as Prometheus reads it.
//!
//! The workers count in plain cells; a scrape sums the cells and asks the kernel for what it counts, so a scrape is
//! exact and a packet never pays for a metric. Parts above this one register what they count ([`Metrics::with`]). Every reason has its line from the start, at 0. No label has values
//! that users choose.

mod inherited;
mod process;
mod text;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use self::inherited::Inherited;
use crate::address::{Family, Transport};
use crate::clock;
use crate::net::counters::{Batches, NetCounters};
use crate::net::{Running, SocketKind};
use crate::ops::status::{Phase, Status};
use crate::ops::usage::UsageMetrics;
use crate::ops::{limits, log, revocations};
use crate::protocol::accounting::Amount;
use crate::protocol::authenticated::{AuthenticatedCounts, REMAINING_BOUNDS};
use crate::protocol::connection::ConnectionResult;
use crate::protocol::counters::{Counters, METHODS};
use crate::protocol::reason::{DropReason, EndReason};
use crate::protocol::reject::RejectReason;

pub use self::text::Text;

/// Renders the counters of a running relay.
pub struct Metrics {
    running: Arc<Running>,
    status: Arc<Status>,
    usage: Option<UsageMetrics>,
    others: Vec<Source>,
    started: u64,
    /// What an old process counted.
    inherited: OnceLock<Inherited>,
}

/// Writes what another part of the server counts; called at each scrape.
type Source = Box<dyn Fn(&mut Text) + Send + Sync>;

impl Metrics {
    /// For this relay. Made when the process starts.
    #[must_use]
    pub fn new(running: Arc<Running>, status: Arc<Status>, usage: Option<UsageMetrics>) -> Self {
        Self {
            running,
            status,
            usage,
            others: Vec::new(),
            started: clock::unix_seconds().0,
            inherited: OnceLock::new(),
        }
    }

    /// Registers another part of the server, which shows what it counts itself.
    #[must_use]
    pub fn with(mut self, source: impl Fn(&mut Text) + Send + Sync + 'static) -> Self {
        self.others.push(Box::new(source));
        self
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        let text = self.render_own();
        match self.inherited.get() {
            Some(inherited) => inherited.add_to(&text),
            None => text,
        }
    }

    /// The same for who will compare it with a later one: no counter falls, also when this process is killed in between.
    #[must_use]
    pub fn show(&self) -> String {
        let text = self.render();
        self.running.remember_metrics(&text);
        text
    }

    /// Every counter goes on where an old process stopped, whose last text this is; `own` is that of this process from the
    /// moment in which it took over. Once.
    pub fn go_on_after(&self, old: &str, own: &str) {
        let _ = self.inherited.set(Inherited::new(old, own));
    }

    fn render_own(&self) -> String {
        let workers = Workers(self.running.counters().collect());
        let mut text = Text::default();
        text.gauge("throughway_build_info", "Always 1; the label is the version")
            .each("version", [(env!("CARGO_PKG_VERSION"), 1)]);
        text.gauge("throughway_ready", "1 while new allocations are accepted, as in /readyz")
            .value(u8::from(self.status.get() == Phase::Ready && !self.status.lacks_relay_address()));
        publish_allocations(&mut text, &workers);
        publish_requests(&mut text, &workers);
        publish_authenticated(&mut text, &self.running.authenticated());
        publish_traffic(&mut text, &workers);
        self.publish_workers(&mut text, &workers);
        self.publish_sockets(&mut text);
        Self::publish_pieces(&mut text, &workers);
        self.publish_streams(&mut text, &workers);
        self.publish_shared(&mut text);
        self.publish_tls(&mut text);
        self.publish_kept_sets(&mut text);
        for source in &self.others {
            source(&mut text);
        }
        publish_log(&mut text, &workers);
        if let Some(usage) = &self.usage {
            publish_usage(&mut text, usage, workers.net(|net| net.records_lost.get()));
        }
        process::publish(&mut text, self.started);
        text.into_string()
    }

    fn publish_workers(&self, text: &mut Text, workers: &Workers<'_>) {
        let of_net = |of: fn(&NetCounters) -> u64| workers.numbered(move |(_, net)| of(net));
        text.counter("throughway_worker_loops_total", "Iterations of a worker's loop")
            .each("worker", of_net(|net| net.loops.get()));
        let threads: Vec<_> = self.running.workers().enumerate().map(|(at, of)| (at.to_string(), of)).collect();
        text.real_counter(
            "throughway_worker_cpu_seconds_total",
            "Processor time of a worker's thread; one second per second is full load",
        )
        .each("worker", threads.iter().filter_map(|(at, (busy, ..))| Some((at, (*busy)? as f64 / 1e9))));
        text.gauge("throughway_worker_inbox_messages", "Messages waiting in a worker's inbox")
            .each("worker", threads.iter().map(|(at, (_, waiting, _))| (at, waiting)));
        text.counter("throughway_worker_inbox_refused_total", "Messages refused because a worker's inbox was full")
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
        text.counter("throughway_coalesced_datagrams_total", "Datagrams that the kernel coalesced with the one before")
            .value(workers.net(|net| net.coalesced.get()));
        text.counter("throughway_segmented_messages_total", "Messages of several datagrams, by the kernel's result")
            .each(
                "result",
                [
                    ("sent", workers.net(|net| net.segmented.get())),
                    ("refused", workers.net(|net| net.segmented_refused.get())),
                ],
            );
        text.counter("throughway_replies_lost_total", "Replies to clients that the kernel refused to send")
            .value(workers.net(|net| net.replies_lost.get()));
        text.counter(
            "throughway_inside_packets_total",
            "Payload packets from one relayed address to another without the kernel",
        )
        .value(workers.net(|net| net.handed_over.get()));
    }

    fn publish_sockets(&self, text: &mut Text) {
        text.counter("throughway_kernel_drops_total", "Packets that the kernel dropped at our sockets, by socket")
            .each("socket", SocketKind::ALL.map(|kind| (kind.name(), self.running.kernel_drops(kind))));
        let ports = self.running.relay_ports().flat_map(|(address, census, reserved)| {
            let used = census.used - reserved;
            [("used", used), ("reserved", reserved), ("free", census.free), ("resting", census.resting)]
                .map(|(state, ports)| ([address.advertised.to_string()], [state], ports))
        });
        text.gauge("throughway_relay_ports", "Ports of relay.ports, by relay address and state")
            .each_of_two(["address", "state"], ports);
        let of_tenants = self.running.tenant_ports().into_iter().flat_map(|(tenant, address, census)| {
            let (tenant, address) = (tenant.unwrap_or_default().into_string(), address.advertised.to_string());
            [("used", census.used), ("free", census.free), ("resting", census.resting)]
                .map(|(state, ports)| ([tenant.clone(), address.clone(), state.to_owned()], ports))
        });
        text.gauge("throughway_tenant_ports", "Ports of relay.ports_by_tenant, by tenant, relay address and state")
            .each_of_three(["tenant", "address", "state"], of_tenants);
        let (reserved, forgotten) = self.running.reservations();
        text.gauge("throughway_reservations", "Ports held for a RESERVATION-TOKEN").value(reserved as u64);
        text.counter("throughway_quota_forgotten_total", "Users and credentials whose counts were dropped too early")
            .value(forgotten);
    }

    fn publish_streams(&self, text: &mut Text, workers: &Workers<'_>) {
        text.gauge("throughway_streams", "Open client streams").value(workers.net(|net| net.streams_open.get()));
        text.counter("throughway_streams_accepted_total", "Client streams accepted since the start")
            .value(workers.net(|net| net.streams_adopted.get()));
        let (half_open, gave_way) = self.running.streams_half_open();
        text.gauge("throughway_streams_half_open", "Client streams without an allocation, handshakes included")
            .value(half_open);
        text.counter("throughway_streams_refused_total", "Client streams that could not be accepted or served")
            .value(self.running.streams_refused());
        text.counter(
            "throughway_core_restarts_total",
            "Panics after which a worker's server was made anew of its state",
        )
        .value(workers.net(|net| net.core_restarts.get()));
        text.gauge(
            "throughway_stream_input_bytes",
            "Bytes of client streams waiting for their turn or for the rest of a message",
        )
        .value(workers.net(|net| net.stream_input_bytes.get()));
        let [proxy_source, proxy_header] = self.running.streams_not_of_proxies();
        text.counter("throughway_streams_closed_total", "Client streams that we closed, by reason").each(
            "reason",
            [
                ("not_stun", workers.net(|net| net.streams_broken.get())),
                ("no_allocation", workers.net(|net| net.streams_overdue.get())),
                ("asked_too_much", workers.net(|net| net.streams_cut_off.get())),
                ("tls_broken", workers.net(|net| net.streams_tls_broken.get())),
                ("silent", self.running.streams_silent()),
                ("gave_way", gave_way),
                ("proxy_source", proxy_source),
                ("proxy_header", proxy_header),
            ],
        );
    }

    fn publish_shared(&self, text: &mut Text) {
        let (open, ended, [to_backend, to_client]) = self.running.passed_on();
        text.counter("throughway_shared_connections_total", "Connections to listen.shared, by what became of them")
            .each("result", self.running.shared_counts());
        text.gauge("throughway_shared_passed_on", "Open connections that are passed on to web servers").value(open);
        text.counter("throughway_shared_ended_total", "Connections to web servers that have ended, by reason")
            .each("reason", ended);
        text.counter("throughway_shared_bytes_total", "Bytes that were passed on, by direction")
            .each("direction", [("to_backend", to_backend), ("to_client", to_client)]);
        let backends = self.running.backends();
        let is_up = backends.iter().map(|(address, of)| (address.to_string(), u8::from(of.error.is_none())));
        text.gauge("throughway_shared_backend_up", "0 if the last attempt to reach a web server failed")
            .each("backend", is_up);
    }

    fn publish_tls(&self, text: &mut Text) {
        let handshakes = self.running.handshakes();
        text.counter("throughway_tls_handshakes_total", "TLS handshakes, by result")
            .each("result", handshakes.results());
        text.counter("throughway_tls_resumptions_total", "Finished TLS handshakes that resumed a session")
            .value(handshakes.resumed.load(Ordering::Relaxed));
        text.gauge("throughway_tls_handshakes_under_way", "Unfinished TLS handshakes")
            .value(self.running.handshakes_under_way());
        if self.running.tls().is_some() {
            text.counter("throughway_http_tls_handshakes_total", "TLS handshakes on http.public, by result")
                .each("result", self.running.http_handshakes().results());
        }
        text.counter(
            "throughway_http_connections_closed_total",
            "HTTP connections over TCP that were closed before their first request, by reason",
        )
        .each("reason", self.running.http_closed());
        let certificates = self.running.tls().map(|tls| tls.certificates.loaded()).unwrap_or_default();
        let days = certificates.iter().enumerate().map(|(position, of)| (position.to_string(), of.days_left()));
        text.gauge("throughway_tls_certificate_days", "Whole days until a certificate's chain ends, by its position")
            .each("certificate", days);
    }

    fn publish_kept_sets(&self, text: &mut Text) {
        text.gauge("throughway_silenced_networks", "Networks whose wrong keys and user names are not answered")
            .value(self.running.silenced_count() as u64);
        text.gauge("throughway_revocations", "Credentials, users and tenants that are revoked")
            .value(self.running.revocations().len());
        text.counter("throughway_revocation_write_failures_total", "Revocations that could not be written to disk")
            .value(revocations::KIND.write_failures());
        text.gauge("throughway_limits_set", "Users and tenants with limits that were set at run time")
            .value(self.running.with_overrides(|set| set.len()));
        text.counter(
            "throughway_limit_write_failures_total",
            "Limits set at run time that could not be written to disk",
        )
        .value(limits::KIND.write_failures());
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
    text.gauge("throughway_allocations", "Live allocations, by client transport and relayed family")
        .each_of_two(["transport", "family"], live);
    text.counter("throughway_allocations_created_total", "Allocations created since the start")
        .value(workers.core(|core| core.created.get()));
    text.counter(
        "throughway_allocation_moves_total",
        "Moves of allocations to another address of their client (RFC 8016)",
    )
    .value(workers.core(|core| core.moves.get()));
    text.counter(
        "throughway_icmp_errors_total",
        "ICMP errors about relayed datagrams that were told to clients (RFC 8656 section 11.5)",
    )
    .value(workers.core(|core| core.icmp_errors.get()));
    let ended = |reason: &EndReason| workers.core(|core| core.ended[*reason as usize].get());
    text.counter("throughway_allocations_ended_total", "Ended allocations, by reason")
        .each("reason", EndReason::ALL.iter().map(|reason| (reason.name(), ended(reason))));
    let connections = |result: &ConnectionResult| workers.core(|core| core.connections[*result as usize].get());
    text.counter("throughway_tcp_connections_total", "Connections to peers of TCP allocations, by what became of them")
        .each("result", ConnectionResult::ALL.iter().map(|result| (result.name(), connections(result))));
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

/// Clients that proved to hold a credential; the ids of secrets are the operator's own words.
fn publish_authenticated(text: &mut Text, authenticated: &AuthenticatedCounts) {
    let name = |secret: &Option<Box<str>>| secret.as_deref().unwrap_or("(users)").to_owned();
    let results = authenticated.by_secret.iter().flat_map(|(secret, of)| {
        let refused = of.refused.iter().map(|(reason, count)| (*reason, *count));
        std::iter::once(("ok", of.granted)).chain(refused).map(|(result, count)| ([name(secret)], [result], count))
    });
    text.counter(
        "throughway_authenticated_total",
        "Allocate requests with a valid credential, by the id of its secret and by result",
    )
    .each_of_two(["secret", "result"], results.collect::<Vec<_>>());
    let used = authenticated.by_secret.iter().filter_map(|(secret, of)| Some((name(secret), of.last_used?.0)));
    text.gauge(
        "throughway_secret_last_used_timestamp_seconds",
        "Time at which a credential of this secret was last accepted",
    )
    .each("secret", used);
    let (&beyond, within) = authenticated.remaining.split_last().expect("there is one bucket more than bounds");
    text.histogram(
        "throughway_credential_remaining_seconds",
        "Remaining lifetime of time-limited credentials at Allocate; negative if expired",
    )
    .plain_buckets(REMAINING_BOUNDS.into_iter().zip(within.iter().copied()), beyond, authenticated.remaining_sum);
}

fn publish_traffic(text: &mut Text, workers: &Workers<'_>) {
    let dropped: Vec<_> =
        DropReason::ALL.iter().map(|why| (why.name(), workers.amount(|core| core.drops_of(*why)))).collect();
    text.counter("throughway_dropped_packets_total", "Dropped packets, by reason")
        .each("reason", dropped.iter().map(|(why, amount)| (why, amount.packets)));
    text.counter("throughway_dropped_bytes_total", "Dropped bytes, by reason; payload bytes where known")
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

fn publish_log(text: &mut Text, workers: &Workers<'_>) {
    text.counter(
        "throughway_log_lines_lost_total",
        "Log lines lost because standard error or the journal was too slow",
    )
    .each("reason", log::lines_lost());
    text.counter(
        "throughway_log_session_lines_left_out_total",
        "Ended sessions left out of the log: log.session_lines_per_user",
    )
    .value(log::session_lines_left_out());
    let events = [
        ("session", workers.net(|net| net.events_lost.get())),
        ("refusal", workers.net(|net| net.refusal_events_lost.get())),
    ];
    text.counter("throughway_events_lost_total", "Events lost because the log was too slow").each("event", events);
}

fn publish_usage(text: &mut Text, usage: &UsageMetrics, overload: u64) {
    text.counter("throughway_accounting_records_total", "Usage records written or delivered, by sink")
        .each("sink", usage.written());
    text.counter("throughway_accounting_lost_total", "Usage records that a sink lost, by reason")
        .each_of_two(["sink", "reason"], usage.lost(overload).map(|(sink, why, lost)| ([sink], [why.name()], lost)));
    if let Some((failures, backlog)) = usage.webhook() {
        text.counter(
            "throughway_accounting_webhook_failures_total",
            "Failed deliveries to the webhook; they are tried again",
        )
        .value(failures);
        text.gauge("throughway_accounting_spool_records", "Usage records that wait for the webhook")
            .value(backlog.records);
        text.gauge("throughway_accounting_spool_bytes", "Bytes of the usage records that wait for the webhook")
            .value(backlog.bytes);
        text.gauge(
            "throughway_accounting_webhook_lag_seconds",
            "Waiting time of the oldest usage record for the webhook",
        )
        .value(backlog.lag_seconds);
    }
}
