//! Every key of the configuration, one row each: the one place that knows a key's type, range, default and meaning.
//!
//! The check of types, the reload's list of changes, `check-config`, environment variables, the reference table of
//! docs/reference/keys.md and the first line of each key's comment in config.example.toml are made from these rows. The file
//! of a section (`limits`, `drain`, ...) reads a value by its path and puts it into the typed configuration.

use serde_json::json;

use crate::config::check::{or_nearest, problem, quoted};
use crate::config::document::{self, Node, Value};
use crate::config::error::Problem;
use crate::config::units;
use crate::credentials::claims::Claim;

/// What a value may look like, with its unit and range.
#[derive(Clone, Copy, Debug)]
pub enum ValueType {
    /// A string.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// true or false.
    Flag,
    /// A whole number up to this.
    Count(u32),
    /// "auto", or a whole number from 1 to this.
    AutoOr(u32),
    /// A duration in seconds, from the first to the second.
    Duration(u64, u64),
    /// A size in bytes, at least this.
    Size(u64),
    /// A rate in bits per second.
    Rate,
    /// A list.
    List,
    /// A string, a list, or a table of strings.
    Addresses,
    /// `[[tables]]` with these fields.
    Tables(&'static str),
    /// One table, such as this.
    Table(&'static str),
    /// A day, or a point in time.
    Instant,
    /// true, false, or a list of claims.
    Claims,
    /// "relay", or a list of prefixes.
    Peers,
}

use ValueType::{
    Addresses, AutoOr, Claims, Count, Duration, Flag, Instant, List, Peers, Rate, Size, Table, Tables, Text, Word,
};

/// When a changed value takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applies {
    /// At a reload.
    AtReload,
    /// At a reload, to what is opened after it.
    ToNew(&'static str),
    /// Without a reload too: its file is watched.
    ByItself,
    /// At the next start, for this reason.
    AtRestart(&'static str),
}

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// Section and name.
    pub path: &'static str,
    /// Type, unit and range.
    pub value_type: ValueType,
    /// The default as TOML.
    pub default: &'static str,
    /// What it does, in a sentence; what 0 means is added to it.
    pub help: &'static str,
    /// What 0 stands for; without it 0 is out of range.
    pub zero: Option<&'static str>,
    /// What `check-config` warns of if the value is 0.
    pub zero_warning: Option<&'static str>,
    /// When a changed value takes effect.
    pub applies: Applies,
}

const fn key(path: &'static str, value_type: ValueType, default: &'static str, help: &'static str) -> ConfigKey {
    ConfigKey { path, value_type, default, help, zero: None, zero_warning: None, applies: Applies::AtReload }
}

const ANY: u32 = u32::MAX;
const DAY: u64 = 86_400;
const TEN_YEARS: u64 = 3650 * DAY;
const MIB: u64 = 1 << 20;

/// The longest frame on a TCP connection: a Send indication with a datagram of 65,507 bytes.
const TCP_FRAME_BYTES: u64 = 65_556;

/// All channel numbers there are.
pub(crate) const CHANNELS_MAX: u32 = crate::wire::channel_data::CHANNELS as u32;

const LIMITS: &str = "{ bandwidth = \"3Mbit/s\", bytes = \"10GiB\" }";
const RECORDS: &str = "records that wait belong to the places of the start";
const LOG_OPEN: &str = "the log was opened at the start";

/// Every key of this version, in the order of the example.
#[rustfmt::skip]
pub const KEYS: &[ConfigKey] = &[
    key("realm", Text, "\"throughway\"",
        "The realm of the login challenge (401); up to 12 bytes keep that answer at 72 bytes").restart("it is in the key of every client"),
    key("workers", AutoOr(256), "\"auto\"",
        "Threads that relay: `\"auto\"` (one up to two cores, else one per core), or 1 to 256").restart("each client belongs to one of them"),
    key("supervise", Flag, "false",
        "A second process holds every socket and starts the server again when it is killed: calls over UDP go on").restart("the supervisor is the first process"),

    key("listen.udp", List, "[\"0.0.0.0:3478\", \"[::]:3478\"]",
        "Addresses and ports for clients over UDP; `[::]` is IPv6 only"),
    key("listen.tcp", List, "[\"0.0.0.0:3478\", \"[::]:3478\"]",
        "Addresses and ports for clients over TCP; `[::]` is IPv6 only"),
    key("listen.tls", List, "[]",
        "Addresses and ports for clients over TLS, usually port 5349 or 443; needs a certificate"),
    key("listen.auto", List, "[]",
        "Addresses and ports for both TLS and plain TCP, which the first byte tells apart; needs a certificate"),
    key("listen.shared", Tables("address = \"0.0.0.0:443\" and backend = \"127.0.0.1:8443\""), "[]",
        "Ports for TLS that a web server has too: what is not for this server is passed on to it untouched; needs a certificate"),

    key("tls.certificate", Text, "\"\"",
        "PEM file of the certificate chain, the server's own certificate first").by_itself(),
    key("tls.private_key", Text, "\"\"",
        "PEM file of the private key of that certificate").by_itself(),
    key("tls.certificates", Tables("certificate = \"...\" and private_key = \"...\""), "[]",
        "More pairs of certificate and private_key, chosen by the server name that the client asks for").by_itself(),

    key("tls.acme", Table("{ domains = [\"turn.example.org\"], email = \"ops@example.org\" }"), "{}",
        "A certificate that the server gets and renews itself, from an authority that speaks ACME (RFC 8555)"),

    key("relay.addresses", List, "[]",
        "Local addresses to relay from; empty: one per family, found from the routes").restart("sessions relay from them"),
    key("relay.external", Addresses, "\"\"",
        "Public address that clients get instead of the local one (1:1 NAT): one, a list of one per family, a table, or who is asked for it").restart("sessions were told the old one"),
    key("relay.external_servers", List, "[]",
        "STUN servers that tell how the internet sees this machine, at most 8: `relay.external = \"auto\"` goes by them, all others are compared with them"),
    key("relay.external_metadata", Text, "\"\"",
        "URL to ask instead of the provider's metadata service at 169.254.169.254, such as a proxy's"),
    key("relay.external_interval", Duration(1, DAY), "\"3m\"",
        "How often the public addresses are looked at again"),
    key("relay.ports", Text, "\"49152-65535\"",
        "UDP ports of relayed traffic").for_new("allocations"),
    key("relay.ports_by_tenant", Table("{ acme = \"50000-50999\" }"), "{}",
        "Parts of `relay.ports` that are one tenant's alone; all others share what is in no part").for_new("allocations"),
    key("relay.tcp", Flag, "false",
        "Whether clients over TCP and TLS may get TCP allocations, which relay connections to peers (RFC 6062)"),
    key("relay.tcp_low_ports", Flag, "false",
        "Whether TCP allocations may connect to ports of peers below 1024"),
    key("relay.segmentation_offload", Flag, "true",
        "Let the kernel combine and split bursts of packets (UDP_GRO, UDP_SEGMENT)"),
    key("relay.coalesce_microseconds", Count(200), "30",
        "How long a worker lets packets gather above 50,000 packets per second, a quarter of them in bursts or over TCP, at most 200").zero("no waiting"),
    key("relay.mobility", Flag, "false",
        "Let clients keep their relayed address when they change their network, as from wifi to LTE (RFC 8016)"),

    // [8656-6-4]
    key("turn.default_lifetime", Duration(1, ANY as u64), "\"600s\"",
        "Lifetime of an allocation if the client asks for a shorter one or for none"),
    // [8656-7.2-30]
    key("turn.max_lifetime", Duration(1, ANY as u64), "\"3600s\"",
        "Longest lifetime granted at once; at least turn.default_lifetime"),
    key("turn.channels", Word(&["rfc5766", "rfc8656"]), "\"rfc5766\"",
        "Channel numbers that clients may bind: `rfc5766`: 0x4000 to 0x7FFE, also for older clients; `rfc8656`: 0x4000 to 0x4FFF"),
    key("turn.redirect", Word(&["draining", "full", "always"]), "\"draining\"",
        "When new clients are sent to `turn.alternates`: while this server drains; also when it is `full`; or `always`"),
    key("turn.redirect_percent", Count(100), "90",
        "With `full`: from which share of `limits.allocations`, `limits.bandwidth` or `relay.ports` on, in percent"),
    key("turn.alternates", Tables("address = \"198.51.100.2:3478\""), "[]",
        "Other servers that take clients from this one, at most 16; each is asked every 5 s whether it does"),

    key("stun.classic", Flag, "false",
        "Answer Binding requests of RFC 3489 too, which have no magic cookie: some old telephones and SIP programs send them"),
    key("stun.discovery", List, "[]",
        "Serve NAT behaviour discovery (RFC 5780) at two IPv4 addresses with two ports: the first address and port, and the other two"),

    key("auth.max_ttl", Duration(1, TEN_YEARS), "\"48h\"",
        "How far in the future a time-limited credential may end; the server refuses a later end"),
    key("auth.on_expiry", Word(&["keep", "deny_new", "close"]), "\"keep\"",
        "What happens to the sessions of a credential that expires: `keep`, `deny_new` (no new peers) or `close`"),
    key("auth.expiry_grace", Duration(1, TEN_YEARS), "\"60s\"",
        "With `close`: how long after the expiry sessions end").zero("no grace"),
    key("auth.max_session", Duration(1, TEN_YEARS), "0",
        "Longest life of an allocation, however often it is refreshed, such as `\"24h\"`").zero("no limit"),
    key("auth.sha256", Word(&["streams", "always", "never"]), "\"streams\"",
        "Where clients are offered SHA-256 in place of MD5 and SHA-1 (RFC 8489): over TCP and TLS, over UDP too, or nowhere"),
    // [8656-5-4]
    key("auth.nonce_lifetime", Duration(1, DAY), "\"1h\"",
        "How long a nonce is valid; clients then get a new one and repeat their request"),
    key("auth.nonce_key_file", Text, "\"\"",
        "File with the nonce key, the same on every server of a fleet; empty: each start makes its own").restart("every client has a nonce of the old key"),
    key("auth.revocations_file", Text, "\"\"",
        "File that keeps revocations over a restart; empty: `revocations` in the unit's state directory, if it has one").restart("those of now are in the old one"),
    key("auth.users", Table("{ alice = \"...\" }"), "{}",
        "Static users: a password, or a table with password, file or key_md5"),
    key("auth.secrets", Tables("id = \"...\" and value = \"...\""), "[]",
        "Secrets of time-limited credentials, at most eight; the first one mints"),

    key("peers.allow", List, "[]",
        "Prefixes to allow although they are in the built-in table of denied ones"),
    key("peers.deny", List, "[]",
        "Prefixes to deny; a reload also applies them to live permissions and channels"),

    key("limits.allocations", Count(ANY), "100000",
        "Allocations on the whole server").zero("no limit"),
    key("limits.allocations_per_user", Count(ANY), "100",
        "Allocations per user id of time-limited credentials").zero("no limit"),
    key("limits.allocations_per_user_per_minute", Count(ANY), "300",
        "New allocations per user id and minute, up to 100 of them at once").zero("no limit"),
    key("limits.reservations_per_user", Count(ANY), "2",
        "Ports held for a RESERVATION-TOKEN per user id").zero("no limit"),
    key("limits.allocations_per_credential", Count(ANY), "0",
        "Allocations per time-limited credential").zero("no limit"),
    key("limits.allocations_per_tenant", Count(ANY), "0",
        "Allocations per tenant").zero("no limit"),
    key("limits.allocations_per_client", Count(ANY), "2000",
        "Allocations per client IPv4 address or IPv6 /56, loopback exempt").zero("no limit"),
    key("limits.allocations_per_client_per_minute", Count(ANY), "6000",
        "New allocations per client IPv4 address or IPv6 /56 and minute, also of static users, loopback exempt").zero("no limit"),
    key("limits.replies_per_network", Count(ANY), "1000",
        "Answers per second to UDP requests that prove nothing, for each client IPv4 /24 or IPv6 /56, loopback exempt; twice as many at once").zero("no limit")
        .warns("with forged sources this server can be made to flood others"),
    key("limits.requests_per_allocation", Count(ANY), "100",
        "Requests per second that a client may make on its allocation; twice as many at once, and what is more gets no answer").zero("no limit"),
    key("limits.failures", Count(ANY), "120",
        "Requests per minute with a wrong key or user name, for each client IPv4 /24 or IPv6 /56, loopback exempt; then such requests get no answer for a minute").zero("no limit")
        .warns("passwords can be guessed at any rate, and each guess is answered"),
    key("limits.bandwidth", Rate, "0",
        "Bandwidth of the whole server, each way, such as `\"3Mbit/s\"`").zero("no limit"),
    key("limits.bandwidth_per_tenant", Rate, "0",
        "Bandwidth of a tenant, each way").zero("no limit"),
    key("limits.bandwidth_per_client", Rate, "0",
        "Bandwidth of a client IPv4 address or IPv6 /56, each way").zero("no limit"),
    key("limits.bandwidth_per_user", Rate, "0",
        "Bandwidth of a user, each way").zero("no limit"),
    key("limits.bandwidth_per_credential", Rate, "0",
        "Bandwidth of a credential, each way").zero("no limit"),
    key("limits.bandwidth_per_allocation", Rate, "0",
        "Bandwidth of an allocation, each way").zero("no limit"),
    key("limits.packet_rate", Count(ANY), "0",
        "Packets per second of the whole server, each way").zero("no limit"),
    key("limits.packet_rate_per_tenant", Count(ANY), "0",
        "Packets per second of a tenant, each way").zero("no limit"),
    key("limits.packet_rate_per_client", Count(ANY), "0",
        "Packets per second of a client IPv4 address or IPv6 /56, each way").zero("no limit"),
    key("limits.packet_rate_per_user", Count(ANY), "0",
        "Packets per second of a user, each way").zero("no limit"),
    key("limits.packet_rate_per_credential", Count(ANY), "0",
        "Packets per second of a credential, each way").zero("no limit"),
    key("limits.packet_rate_per_allocation", Count(ANY), "5000",
        "Packets per second of an allocation, each way").zero("no limit"),
    key("limits.burst", Duration(1, 60), "\"1s\"",
        "Size of a burst above a bandwidth or packet rate, as the time that it takes at that rate"),
    key("limits.bytes_per_credential", Size(1), "0",
        "Bytes of a time-limited credential, both ways together, such as `\"10GiB\"`").zero("no limit"),
    key("limits.bytes_per_user_per_day", Size(1), "0",
        "Bytes of a user per day (UTC), both ways together").zero("no limit"),
    key("limits.permissions_per_allocation", Count(ANY), "64",
        "Live permissions of an allocation: the peers that it may talk to at a time").zero("no limit"),
    key("limits.channels_per_allocation", Count(CHANNELS_MAX), "64",
        "Live channels of an allocation, at most 16383").zero("no limit"),
    key("limits.connections_per_allocation", Count(ANY), "64",
        "Connections to peers of a TCP allocation").zero("no limit"),
    key("limits.tcp_queue", Size(TCP_FRAME_BYTES), "\"256KiB\"",
        "Bytes that may wait for a slow TCP or TLS client, at least 65556B (one frame); the server drops and counts the rest").zero("no limit")
        .warns("one slow TCP client can take all memory").for_new("connections"),
    key("limits.tcp_unauthenticated", Duration(1, DAY), "\"10s\"",
        "How long a TCP connection may stay open without an authenticated request").zero("no limit")
        .warns("connections that never authenticate stay for ever").for_new("connections"),
    key("limits.tcp_half_open", Count(ANY), "4096",
        "TCP and TLS connections without an allocation, at most a quarter of the open files").zero("a quarter of the open files"),
    key("limits.tls_handshake", Duration(1, 600), "\"10s\"",
        "How long a TLS handshake may take").zero("no limit").warns("connections that never shake hands stay for ever"),
    key("limits.tls_half_open", Count(ANY), "1000",
        "TLS handshakes at the same time").zero("no limit"),
    key("limits.shared_connections", Count(ANY), "10000",
        "Connections of `listen.shared` that are passed on to web servers at the same time, at most an eighth of the open files").zero("an eighth of the open files"),
    key("limits.shared_idle", Duration(1, DAY), "\"10m\"",
        "How long such a connection may carry nothing either way").zero("no limit")
        .warns("connections whose ends are gone stay until others need their place"),
    key("limits.file", Text, "\"\"",
        "File that keeps the limits of `throughway limits set` over a restart; empty: `limits` in the unit's state directory, if it has one").restart("those of now are in the old one"),
    key("limits.credentials_per_key", Count(ANY), "600",
        "Credentials per minute for each of `http.keys`, for all proxies together and for all unix peers together").zero("no limit"),
    key("limits.credentials_per_user", Count(ANY), "30",
        "Credentials per minute for each user id that a caller, a token or a proxy names").zero("no limit"),

    key("http.listen", Text, "\"127.0.0.1:8080\"",
        "Where metrics, health, credentials and the admin API are served: loopback or `unix:/path`; empty: nowhere"),
    key("http.hosts", List, "[]",
        "More Host names to accept at `http.listen`; loopback names are always accepted"),
    key("http.public", List, "[]",
        "Where other machines get credentials and `/healthz`: `https://address:port`, or `address:port` without TLS"),
    key("http.public_name", Text, "\"\"",
        "Host name or address in `turn:` URIs; empty: the addresses that clients are told"),
    key("http.ttl", Duration(1, TEN_YEARS), "\"1h\"",
        "Lifetime of a credential if the caller asks for none"),
    key("http.unix_uids", List, "[]",
        "User ids of this machine that may ask for credentials over a unix socket without a key"),
    key("http.chatmail_socket", Text, "\"\"",
        "Unix socket on which the processes of these users read a credential as one line, for chatmail relays; empty: none"),
    key("http.chatmail_ttl", Duration(1, TEN_YEARS), "\"48h\"",
        "Lifetime of the credentials on that socket"),
    key("http.proxies", List, "[]",
        "Reverse proxies whose X-Forwarded-For the server believes"),
    key("http.identity_header", Text, "\"\"",
        "Header in which these proxies name the user who has logged in"),
    key("http.jwt_keys", Text, "\"\"",
        "JWKS, a file or an `https://` URL: a JSON Web Token signed with one of its keys may ask for credentials"),
    key("http.jwt_ca_file", Text, "\"\"",
        "PEM file of the authorities to trust for that URL; empty: those of the system"),
    key("http.jwt_audience", Text, "\"\"",
        "Audience that a token must name; needed with `http.jwt_keys`"),
    key("http.jwt_issuer", Text, "\"\"",
        "Issuer that a token must name; empty: any"),
    key("http.jwt_user_claim", Text, "\"sub\"",
        "Claim that names the user"),
    key("http.jwt_tenant_claim", Text, "\"\"",
        "Claim that names the user's tenant, needed in each token then; empty: none"),
    key("http.jwt_limits_claim", Text, "\"\"",
        "Claim that holds the user's limits, as a request for a credential has them; empty: none"),
    key("http.cors", List, "[]",
        "Origins of web pages that may ask for credentials"),
    key("http.admin_socket", Text, "\"\"",
        "Unix socket of the admin API; empty: `admin.sock` in the unit's runtime directory, if it has one; `\"none\"`: none"),
    key("http.admin_uids", List, "[]",
        "User ids that may use the admin API over a unix socket, besides root and the server's own user"),
    key("http.admin_token_file", Text, "\"\"",
        "File with the bearer token of the admin API, at least 16 bytes; empty: none"),
    key("http.admin_token_credential", Text, "\"\"",
        "The same as a name that `LoadCredential=` of the systemd unit gives that file"),
    key("http.keys", Tables("name = \"...\" and sha256 = \"...\""), "[]",
        "API keys that may ask for credentials: tables with name, sha256, max_ttl, from, tenant and limits"),

    key("accounting.interval", Duration(1, DAY), "\"60s\"",
        "Time between two records of a live session").zero("records at start and stop only"),
    key("accounting.file", Text, "\"\"",
        "File of usage records, one JSON object per line; empty: none").restart(RECORDS),
    key("accounting.rotate_size", Size(4096), "\"64MiB\"",
        "Size at which the server renames that file and begins a new one").zero("no rotation").restart(RECORDS),
    key("accounting.rotate_count", Count(ANY), "0",
        "How many renamed files to keep").zero("all of them").restart(RECORDS),
    key("accounting.journal", Text, "\"\"",
        "Socket of the journal for usage records, `/run/systemd/journal/socket`; empty: none").restart(RECORDS),
    key("accounting.webhook", Text, "\"\"",
        "`https://` or `http://` URL that the server posts records to; empty: none").restart(RECORDS),
    key("accounting.webhook_ca_file", Text, "\"\"",
        "PEM file of the authorities to trust for the webhook; empty: those of the system").restart(RECORDS),
    key("accounting.webhook_token_file", Text, "\"\"",
        "File with the bearer token for the webhook; empty: none").restart(RECORDS),
    key("accounting.spool", Text, "\"\"",
        "Directory in which records wait for the webhook; needed with `accounting.webhook`").restart(RECORDS),
    key("accounting.spool_max", Size(MIB), "\"64MiB\"",
        "Bytes that may wait there, at least 1MiB; the server counts and logs records that it loses beyond that").restart(RECORDS),
    key("accounting.sign_key_file", Text, "\"\"",
        "File with the key that signs each line, at least 16 bytes; empty: unsigned").restart(RECORDS),
    key("accounting.server", Text, "\"\"",
        "Name of this server in usage records; empty: the host's name").restart(RECORDS),

    key("drain.on_term", Flag, "false",
        "SIGTERM starts a drain; false: SIGTERM ends every call at once"),
    key("drain.deadline", Duration(1, 30 * DAY), "\"1h\"",
        "How long calls may last during a drain").zero("no deadline"),
    key("drain.alternate", List, "[]",
        "Another server to send new clients to, one address per family"),
    key("drain.alternate_tls", List, "[]",
        "The same for clients over TLS"),
    key("drain.alternate_domain", Text, "\"\"",
        "Name in that server's certificate; empty: the name that clients know already"),

    key("upgrade.on_reload", Flag, "true",
        "SIGHUP upgrades the server if the file of its program has changed; false: it only reloads"),
    key("upgrade.probation", Duration(1, 60), "\"5s\"",
        "How long the new process serves before the old one exits; until then the old one can take the clients back"),
    key("upgrade.socket", Text, "\"\"",
        "Unix socket at which a process in another container takes over; empty: none").restart("the socket is opened at the start"),

    key("log.format", Word(&["auto", "text", "json", "journal"]), "\"auto\"",
        "`text`, `json`, `journal`, or `auto`: the journal under systemd, text on a terminal, else JSON").restart(LOG_OPEN),
    key("log.journal", Text, "\"/run/systemd/journal/socket\"",
        "Socket of the journal; empty: never write to the journal").restart(LOG_OPEN),
    key("log.level", Word(&["error", "warn", "info", "debug", "trace"]), "\"info\"",
        "Least important level to log: `error`, `warn`, `info`, `debug` or `trace`"),
    key("log.session_lines_per_user", Count(ANY), "120",
        "Lines of ended sessions per user and minute; one line sums up the others").zero("no limit"),
];

const fn field(path: &'static str, value_type: ValueType, help: &'static str) -> ConfigKey {
    key(path, value_type, "", help)
}

/// The fields of the tables, each below the path of its table; `*.limits` is the table that users, secrets and keys may have,
/// `listen.*` an entry of any list of listeners but `listen.shared`.
/// None has a default: what is left out says nothing.
#[rustfmt::skip]
pub const FIELDS: &[ConfigKey] = &[
    field("listen.*.address", Text, "Address and port, where an entry of `listen.udp`, `listen.tcp`, `listen.tls` or `listen.auto` is a table"),
    field("listen.*.proxy_from", List, "Proxies in front of this listener: nothing else may connect, and each connection begins with a PROXY header; not in `listen.udp`"),
    field("listen.*.realm", Text, "The realm of this listener; left out: that of the server"),
    field("listen.*.tenant", Text, "The tenant that sessions by this listener belong to"),

    field("listen.shared.address", Text, "Address and port for clients of both servers"),
    field("listen.shared.backend", Text, "Address and port of the web server"),
    field("listen.shared.names", List, "Server names that lead to this server; clients that offer `stun.turn`, or that send neither a name nor an application protocol, come to it too"),
    field("listen.shared.send_proxy", Word(&["off", "v1", "v2"]), "Whether a PROXY header tells the web server each client's address: `off` (the default), `v1` or `v2`"),
    field("listen.shared.proxy_from", List, "Proxies in front of this port: nothing else may connect, and each connection begins with a PROXY header"),
    field("listen.shared.realm", Text, "The realm of this listener; left out: that of the server"),
    field("listen.shared.tenant", Text, "The tenant that sessions by this listener belong to"),

    field("tls.certificates.certificate", Text, "PEM file of a certificate chain"),
    field("tls.certificates.private_key", Text, "PEM file of its private key"),

    field("tls.acme.domains", List, "The host names that the certificate is for"),
    field("tls.acme.email", Text, "Where the authority writes when something is wrong"),
    field("tls.acme.directory", Text, "The authority's directory, an https URL; left out: Let's Encrypt"),
    field("tls.acme.ca_file", Text, "PEM file of the authorities to trust for that URL; left out: those of the system"),
    field("tls.acme.challenge", Word(&["auto", "tls-alpn-01", "http-01"]), "How the authority is shown that the names are this server's: `tls-alpn-01` on port 443, `http-01` on port 80; `auto` (the default): the first if a listener for TLS has port 443"),
    field("tls.acme.http_listen", Text, "Where `http-01` answers; left out: `[::]:80`"),
    field("tls.acme.state", Text, "The directory of the account and of the certificate; left out: `acme` in the state directory of the unit"),

    field("turn.alternates.address", Text, "Its address and port for clients over UDP and TCP"),
    field("turn.alternates.tls", Text, "Its address and port for clients over TLS"),
    field("turn.alternates.name", Text, "The name in its certificate; left out: the name that clients know already"),
    field("turn.alternates.weight", Count(1000), "Its share of the clients; left out: 1"),

    field("auth.users.password", Text, "The password; a text in place of the table says the same"),
    field("auth.users.file", Text, "The file that holds it"),
    field("auth.users.key_md5", Text, "MD5 of `name:realm:password` in place of the password"),
    field("auth.users.key_sha256", Text, "SHA-256 of `name:realm:password`, beside `key_md5`, for clients that use SHA-256"),
    field("auth.users.tenant", Text, "The user's tenant: in records, in quotas and for revocation"),
    field("auth.users.realm", Text, "The user's realm, which is that of a listener; left out: that of the server. A list of tables gives one name to users of several realms"),
    field("auth.users.limits", Table(LIMITS), "The user's limits, without `bytes`"),

    field("auth.secrets.id", Text, "Its name in logs and metrics"),
    field("auth.secrets.value", Text, "The secret itself, at least 16 bytes"),
    field("auth.secrets.file", Text, "The file that holds it"),
    field("auth.secrets.credential", Text, "The name that `LoadCredential=` of the systemd unit gives that file"),
    field("auth.secrets.algorithm", Word(&["sha1", "sha256", "sha512"]), "`sha1` (the default), `sha256` or `sha512`"),
    field("auth.secrets.tenant", Text, "The tenant of its credentials' users"),
    field("auth.secrets.limits", Table(LIMITS), "The limits of each of its credentials"),
    field("auth.secrets.not_after", Instant, "A day, which counts to its end, or a time: later the server refuses its credentials"),
    field("auth.secrets.claims", Claims, "Whether its credentials may carry limits of their own, or which"),
    field("auth.secrets.verify_only", Flag, "true: the server mints nothing with it"),

    field("http.public.address", Text, "Address and port, with `https://` in front for TLS, where an entry is a table"),
    field("http.public.proxy_from", List, "Proxies that pass connections on to this listener: nothing else may connect, and each connection begins with a PROXY header"),

    field("http.keys.name", Text, "Its name in logs and metrics"),
    field("http.keys.sha256", Text, "The SHA-256 of the key, in hexadecimal digits"),
    field("http.keys.max_ttl", Duration(1, u64::MAX), "The longest lifetime that it may ask for"),
    field("http.keys.from", List, "The prefixes it may be used from"),
    field("http.keys.tenant", Text, "The tenant of its credentials' users"),
    field("http.keys.limits", Table(LIMITS), "The limits of each of its credentials, without `bytes_per_day` and `packet_rate`"),

    field("*.limits.allocations", Count(ANY), "Allocations at the same time"),
    field("*.limits.bandwidth", Rate, "Bandwidth, each way"),
    field("*.limits.packet_rate", Count(ANY), "Packets per second, each way"),
    field("*.limits.bytes", Size(1), "Bytes of a credential, both ways together"),
    field("*.limits.bytes_per_day", Size(1), "Bytes of a user per day (UTC), both ways together"),
    field("*.limits.peers", Peers, "Prefixes of the only peers, or `relay`: relayed addresses of this server only"),
    field("*.limits.transports", List, "The only transports to come by: `udp`, `tcp`, `tls`"),
];

/// The rows of a table's fields, each with its name.
pub(crate) fn fields(table: &str) -> impl Iterator<Item = (&'static str, &'static ConfigKey)> {
    FIELDS.iter().filter_map(move |row| Some((row.path.strip_prefix(table)?.strip_prefix('.')?, row)))
}

/// A file with every key, its default, and what it does in more words than its row has.
pub const EXAMPLE: &str = include_str!("../../config.example.toml");

/// Keys of later versions, each with the value that says "off" and is therefore accepted.
pub const LATER: &[(&str, &str)] = &[("listen.dtls", "[]")];

/// Fields of a listener's table in later versions.
pub(crate) const LATER_FIELDS: [&str; 3] = ["relay", "external", "certificate"];

/// The row of a path.
pub(crate) fn find(path: &str) -> Option<&'static ConfigKey> {
    KEYS.iter().find(|key| key.path == path)
}

impl ConfigKey {
    const fn zero(mut self, meaning: &'static str) -> Self {
        self.zero = Some(meaning);
        self
    }

    const fn warns(mut self, of: &'static str) -> Self {
        self.zero_warning = Some(of);
        self
    }

    const fn for_new(mut self, things: &'static str) -> Self {
        self.applies = Applies::ToNew(things);
        self
    }

    const fn by_itself(mut self) -> Self {
        self.applies = Applies::ByItself;
        self
    }

    const fn restart(mut self, reason: &'static str) -> Self {
        self.applies = Applies::AtRestart(reason);
        self
    }

    /// What it does and what 0 means, without a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        self.zero.map_or_else(|| self.help.to_owned(), |zero| format!("{}; 0 = {zero}", self.help))
    }

    /// The range of its numbers, where they have one besides what 0 means.
    #[must_use]
    pub fn range(&self) -> Option<String> {
        match self.value_type {
            Count(max) | AutoOr(max) if max < ANY => Some(format!("1 to {max}")),
            Duration(min, max) if max < u64::from(ANY) => {
                Some(format!("{} to {}", units::DURATION.show(min), units::DURATION.show(max)))
            }
            Duration(min, _) => Some(format!("at least {}", units::DURATION.show(min))),
            Size(min) if min > 1 => Some(format!("at least {}", units::SIZE.show(min))),
            Count(_) | AutoOr(_) | Size(_) | Rate | Text | Word(_) | Flag | List | Addresses | Tables(_) | Table(_)
            | Instant | Claims | Peers => None,
        }
    }

    /// Why a changed value waits for a restart; `None` if it does not.
    #[must_use]
    pub const fn restart_reason(&self) -> Option<&'static str> {
        match self.applies {
            Applies::AtRestart(reason) => Some(reason),
            Applies::AtReload | Applies::ToNew(_) | Applies::ByItself => None,
        }
    }

    /// The value that holds if the key is left out.
    pub(crate) fn default_node(&self) -> Node {
        document::parse_default(self.path, self.default)
    }

    /// What is wrong with the type or the range of a value.
    pub(crate) fn check(&self, node: &Node) -> Option<Problem> {
        let found = node.kind();
        let message = match (self.value_type, &node.value) {
            (Text, Value::Text(_)) | (List | Tables(_), Value::List(_)) | (Table(_), Value::Table(_)) => return None,
            (Addresses, Value::Text(_) | Value::List(_) | Value::Table(_)) => return None,
            (Claims | Peers, Value::List(_)) => return None,
            (Claims, _) if node.flag().is_some() => return None,
            (Peers, Value::Text(word)) if word == "relay" => return None,
            (Word(words), Value::Text(word)) => return or_nearest(node, word, words),
            (Text | Word(_), _) => format!("expected a string in quotes, found {found}"),
            (Flag, _) if node.flag().is_some() => return None,
            (Flag, _) => "expected true or false".to_owned(),
            (Count(_) | Duration(..) | Size(_) | Rate | Instant, _) => self.value_type.number(node, self.zero).err()?,
            (AutoOr(_), Value::Text(text)) if text == "auto" => return None,
            (AutoOr(max), Value::Integer(Some(number), _)) if (1..=i64::from(max)).contains(number) => return None,
            (AutoOr(max), _) => format!("allowed are \"auto\" and a number from 1 to {max}"),
            (List, Value::Text(_)) => format!("expected a list of strings; write [{}]", node.render()),
            (List, _) => format!("expected a list of strings, found {found}"),
            (Addresses, _) => {
                "expected an address, a list of one per family, { \"10.0.0.5\" = \"203.0.113.7\" }, or \"auto\"".to_owned()
            }
            (Tables(fields), _) => format!("expected tables: write [[{}]] and below it {fields}", self.path),
            (Table(example), _) => format!("expected a table such as {example}, found {found}"),
            (Claims, _) => {
                format!("expected true, false or a list of {}", quoted(&Claim::ALL.map(Claim::name)))
            }
            (Peers, _) => "expected a list of prefixes such as [\"198.51.100.0/24\"], or \"relay\" for relayed addresses of this server only".to_owned(),
        };
        Some(problem(node, message))
    }

    /// A number, word or flag for machines: a number in the unit of its type, null where 0 has a meaning of its own.
    pub(crate) fn json(&self, node: &Node) -> Option<serde_json::Value> {
        match (self.value_type, &node.value) {
            (Count(_) | Duration(..) | Size(_) | Rate, _) => {
                let number = self.value_type.number(node, self.zero).ok()?;
                Some(if number == 0 { serde_json::Value::Null } else { json!(number) })
            }
            (Word(_), Value::Text(word)) => Some(json!(word)),
            (Flag, _) => Some(json!(node.flag()?)),
            _ => None,
        }
    }
}

impl ValueType {
    /// Whether it holds tables, which no variable can.
    #[must_use]
    pub const fn is_tables(self) -> bool {
        matches!(self, Tables(_) | Table(_))
    }

    /// A number in the unit of the type; 0 only where it has a meaning.
    pub(crate) fn number(self, node: &Node, zero: Option<&str>) -> Result<u64, String> {
        let (quantity, min, max) = match self {
            Count(max) | AutoOr(max) => return whole_number(node, max, zero),
            Duration(min, max) => (&units::DURATION, min, max),
            Size(min) => (&units::SIZE, min, u64::MAX),
            Rate => (&units::RATE, 1, u64::MAX),
            Instant => return instant(node),
            Text | Word(_) | Flag | List | Addresses | Tables(_) | Table(_) | Claims | Peers => {
                return Err("is no number".to_owned());
            }
        };
        let number = match &node.value {
            Value::Text(text) | Value::Integer(_, text) if zero.is_some() && text == "0" => return Ok(0),
            Value::Text(text) | Value::Integer(_, text) => quantity.parse(text)?,
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                return Err(format!("expected {}, found {}", quantity.example(), node.kind()));
            }
        };
        let or_zero = zero.map_or_else(String::new, |zero| format!(", or 0 for {zero}"));
        match number {
            0 if zero.is_some() => Ok(0),
            _ if (min..=max).contains(&number) => Ok(number),
            0 if max == u64::MAX && min == 1 => Err("must be greater than 0; leave it out for no limit".to_owned()),
            _ if max == u64::MAX => Err(format!("allowed are {} and more{or_zero}", quantity.show(min))),
            _ => Err(format!("allowed are {} to {}{or_zero}", quantity.show(min), quantity.show(max))),
        }
    }
}

/// A point in time, in seconds since 1970: a day lasts to its end.
fn instant(node: &Node) -> Result<u64, String> {
    let instant = match &node.value {
        Value::Text(text) | Value::Other(text) => units::instant(text),
        Value::Integer(..) | Value::List(_) | Value::Table(_) => None,
    };
    let message = "expected a day such as \"2026-12-31\", which counts to its end, or a time such as \"2026-12-31T12:00:00Z\" (UTC)";
    instant.ok_or_else(|| message.to_owned())
}

fn whole_number(node: &Node, max: u32, zero: Option<&str>) -> Result<u64, String> {
    if let Value::Integer(Some(number), _) = &node.value
        && let Ok(number) = u64::try_from(*number)
        && (u64::from(zero.is_none())..=u64::from(max)).contains(&number)
    {
        return Ok(number);
    }
    let or_zero = zero.map_or_else(|| "; leave it out for no limit".to_owned(), |zero| format!(", or 0 for {zero}"));
    Err(format!("expected a whole number from 1 to {max}{or_zero}"))
}
