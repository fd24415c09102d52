//! Every option that coturn ever had, one row each, and what becomes of it here.
//!
//! The names are those of all versions up to 4.17.1, and of what its documentation named besides. Read by the check of a
//! configuration, which refuses these names with the right answer, by the importer, and by the table of
//! docs/coming-from-coturn.md.

use Fate::{Asks, Becomes, Dropped, Implied};

/// What becomes of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// These keys replace it; a note, or nothing.
    Becomes(&'static str, &'static str),
    /// It is so in any case, for this reason.
    Implied(&'static str),
    /// Nothing corresponds to it, for this reason.
    Dropped(&'static str),
    /// A person must decide: what about.
    Asks(&'static str),
}

/// An option of turnserver, as a line of its file or on its command line.
#[derive(Clone, Copy, Debug)]
pub struct CoturnOption {
    /// The long name.
    pub name: &'static str,
    /// The letter on a command line.
    pub short: Option<char>,
    /// Whether it must have a value; a flag may have one.
    pub has_value: bool,
    /// Whether the newest coturn no longer knows it.
    pub is_gone: bool,
    /// What becomes of it.
    pub fate: Fate,
}

const fn value(name: &'static str, fate: Fate) -> CoturnOption {
    CoturnOption { name, short: None, has_value: true, is_gone: false, fate }
}

const fn flag(name: &'static str, fate: Fate) -> CoturnOption {
    CoturnOption { name, short: None, has_value: false, is_gone: false, fate }
}

impl CoturnOption {
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    const fn gone(mut self) -> Self {
        self.is_gone = true;
        self
    }

    /// What to do instead, as the end of a sentence.
    #[must_use]
    pub fn instead(&self) -> String {
        match self.fate {
            Becomes(keys, _) => format!("write {keys}"),
            Implied(reason) => format!("nothing is needed for it: {reason}"),
            Dropped(reason) => format!("nothing corresponds to it: {reason}"),
            Asks(what) => format!("nothing corresponds to it: {what}"),
        }
    }

    /// The same as a cell of a table.
    #[must_use]
    pub fn cell(&self) -> String {
        match self.fate {
            Becomes(keys, "") => format!("becomes {keys}"),
            Becomes(keys, note) => format!("becomes {keys}; {note}"),
            Implied(reason) => format!("not needed: {reason}"),
            Dropped(reason) => format!("left out: {reason}"),
            Asks(what) => format!("asks you: {what}"),
        }
    }
}

/// The option of a name, in any spelling of its dashes and capital letters that names no other one.
#[must_use]
pub fn find(name: &str) -> Option<&'static CoturnOption> {
    // A file may have many thousand keys, so nothing is copied for a look.
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let is_alike = |other: &str| {
        other.len() == name.len() && other.bytes().zip(name.bytes()).all(|(one, two)| plain(one) == plain(two))
    };
    let mut alike = OPTIONS.iter().filter(|option| is_alike(option.name));
    let first = alike.next()?;
    // Capital letters tell a few apart.
    if first.name == name { Some(first) } else { alike.find(|option| option.name == name).or(Some(first)) }
}

/// Every option, by subject.
#[rustfmt::skip]
pub const OPTIONS: &[CoturnOption] = &[
    // Listeners.
    value("listening-port", Becomes("listen.udp and listen.tcp, or listen.auto with a certificate", "each port of coturn speaks UDP, TCP and, with a certificate, TLS")).short('p'),
    value("tls-listening-port", Becomes("listen.auto and listen.udp", "without a certificate coturn opens no such port")),
    value("alt-listening-port", Dropped("it serves RFC 5780 (finding out how a NAT behaves), which is off by default: see stun.discovery")),
    value("alt-tls-listening-port", Dropped("it serves RFC 5780 (finding out how a NAT behaves), which is for UDP and TCP here: see stun.discovery")),
    value("listening-ip", Becomes("listen.udp, listen.tcp and listen.auto", "their addresses")).short('L'),
    value("listening-device", Asks("a listener has an address here, not a device: name the address of the device in listen.udp and listen.tcp")).short('d'),
    value("aux-server", Becomes("listen.udp and listen.tcp", "one more address each")),
    value("tcp-proxy-port", Asks("here it belongs to a listener and names the proxies: write { address = \"IP:PORT\", proxy_from = [\"IP OF THE PROXY\"] } into listen.tcp")),
    flag("no-udp", Becomes("listen.udp", "an empty list")),
    flag("no-tcp", Becomes("listen.tcp", "an empty list")),
    flag("no-tls", Becomes("listen.tls and listen.auto", "empty lists, as by default")),
    flag("no-dtls", Implied("there is no DTLS")),
    flag("dtls", Dropped("there is no DTLS: clients that need encryption use TLS over TCP")),
    flag("udp-self-balance", Dropped("all workers share each port")),
    value("sock-buf-size", Dropped("sizes of socket buffers follow the load")),
    flag("udp-recvmmsg", Implied("datagrams are always read in batches")),
    flag("udp-recvmmsg-log", Dropped("/metrics has counters of it")),
    flag("udp-sendmmsg", Implied("datagrams are always sent in batches")).gone(),
    flag("udp-sendmmsg-log", Dropped("/metrics has counters of it")),
    flag("udp-relay-recvmmsg", Implied("datagrams are always read in batches")).gone(),
    flag("recvmmsg", Implied("datagrams are always read in batches")).gone(),
    flag("udp-gso", Becomes("relay.segmentation_offload", "on by default")),
    value("ne", Implied("there is one network engine")).gone(),
    value("relay-threads", Becomes("workers", "\"auto\" suits almost every machine")).short('m'),
    value("cpus", Becomes("workers", "\"auto\" counts the CPUs that the process may use")),
    value("cpus-num", Becomes("workers", "\"auto\" counts the CPUs that the process may use")).gone(),
    flag("multiplex-peer", Dropped("each allocation has a port of its own")),
    value("multiplex-peer-port", Dropped("each allocation has a port of its own")),
    value("multiplex-peer-max-peers", Dropped("each allocation has a port of its own")),
    flag("multiplex-peer-tag", Dropped("each allocation has a port of its own")).gone(),
    flag("multiplex-client", Dropped("each allocation has a port of its own")).gone(),
    flag("port-sharing", Dropped("each allocation has a port of its own")).gone(),
    value("port-sharing-port", Dropped("each allocation has a port of its own")).gone(),

    // Relay.
    value("relay-ip", Becomes("relay.addresses", "")).short('E'),
    value("relay-device", Asks("relayed sockets have an address here, not a device: name the address of the device in relay.addresses")).short('i'),
    value("external-ip", Becomes("relay.external", "")).short('X'),
    value("min-port", Becomes("relay.ports", "")),
    value("max-port", Becomes("relay.ports", "")),
    flag("no-udp-relay", Asks("relaying over UDP is what this server does; it has nothing else to offer")),
    flag("no-tcp-relay", Implied("relay.tcp is off unless it is set (RFC 6062)")),
    flag("keep-address-family", Dropped("a client gets an IPv4 address unless it asks for IPv6, as RFC 8656 says")).short('K'),
    value("allocation-default-address-family", Dropped("a client gets an IPv4 address unless it asks for IPv6, as RFC 8656 says")).short('A'),
    flag("mobility", Becomes("relay.mobility", "")),
    flag("max-allocate-lifetime", Becomes("turn.max_lifetime", "")),
    flag("channel-lifetime", Dropped("it is 600 s, as RFC 8656 says")),
    flag("permission-lifetime", Dropped("it is 300 s, as RFC 8656 says")),
    value("max-allocate-timeout", Becomes("limits.tcp_unauthenticated", "10 s by default")),
    flag("server-relay", Dropped("it switches permissions off: any address could then send to your clients through the relay")),
    flag("rfc5766-channel-numbers", Implied("the channels of RFC 5766 are accepted")),

    // Who may come in.
    value("realm", Becomes("realm", "")).short('r'),
    flag("lt-cred-mech", Implied("it is the only mechanism")).short('a'),
    flag("st-cred-mech", Dropped("no client uses short-term credentials for TURN")).gone(),
    flag("no-auth", Asks("an open relay is not offered: add auth.users or [[auth.secrets]]")).short('z'),
    flag("use-auth-secret", Becomes("[[auth.secrets]]", "")),
    flag("use-auth-secret-sha256", Becomes("[[auth.secrets]]", "with algorithm = \"sha256\"")).gone(),
    value("static-auth-secret", Becomes("[[auth.secrets]]", "")),
    flag("secret-ts-exp-time", Dropped("a credential says itself when it expires")).gone(),
    value("rest-api-separator", Asks("the separator between time and user is always a colon: change the issuer if it uses another one")).short('C'),
    value("user", Becomes("auth.users", "0x and 32 digits is key_md5")).short('u'),
    flag("oauth", Asks("OAuth (RFC 7635) is not in this version: give clients credentials of a shared secret")),
    value("server-name", Dropped("it is for OAuth; a host name for turn: URIs is http.public_name")),
    flag("stale-nonce", Becomes("auth.nonce_lifetime", "")),
    flag("stateless-nonce", Implied("nonces are always stateless")),
    value("stateless-nonce-secret", Asks("for several servers behind one address: put at least 16 bytes into a file of its own and name it in auth.nonce_key_file")),
    flag("no-auth-pings", Dropped("no database is asked, so there is none to keep awake")),
    flag("no-dynamic-ip-list", Implied("no list is read from a database")),
    flag("no-dynamic-realms", Implied("a listener has one realm")),
    flag("check-origin-consistency", Dropped("ORIGIN is not read")),
    flag("sha256", Dropped("it was a draft of what auth.sha256 does, and no client uses it")).gone(),
    flag("sha384", Dropped("it was a draft of MESSAGE-INTEGRITY that no client uses")).gone(),
    flag("sha512", Dropped("it was a draft of MESSAGE-INTEGRITY that no client uses")).gone(),
    value("userdb", Becomes("auth.users and [[auth.secrets]]", "import-coturn reads a SQLite database")).short('b'),
    value("db", Becomes("auth.users and [[auth.secrets]]", "import-coturn reads a SQLite database")),
    value("psql-userdb", Asks("databases are not asked while the server runs: import-coturn takes what SELECT prints, with --csv")).short('e'),
    value("sql-userdb", Asks("databases are not asked while the server runs: import-coturn takes what SELECT prints, with --csv")),
    value("mysql-userdb", Asks("databases are not asked while the server runs: import-coturn takes what SELECT prints, with --csv")).short('M'),
    value("mongo-userdb", Asks("databases are not asked while the server runs: import-coturn takes the collections as CSV, with --csv")).short('J'),
    value("redis-userdb", Asks("databases are not asked while the server runs: import-coturn takes the keys as CSV, with --csv")).short('N'),
    value("http-backend-userdb", Asks("no other server is asked about users: give clients credentials of a shared secret")).gone(),
    value("http-backend-content-type", Dropped("no other server is asked about users")).gone(),
    value("rest-userdb", Asks("no other server is asked about users: give clients credentials of a shared secret")).gone(),
    value("rest-content-type", Dropped("no other server is asked about users")).gone(),
    flag("use-remote-auth-api", Asks("no other server is asked about users: give clients credentials of a shared secret")).gone(),
    flag("zrest", Asks("no other server is asked about users: give clients credentials of a shared secret")).gone(),
    value("secret-key-file", Dropped("it decrypts the password of a database")),
    value("allow-encoding-with-aes", Dropped("it decrypts the password of a database")).gone(),

    // Peers.
    value("allowed-peer-ip", Becomes("peers.allow", "as prefixes")),
    value("denied-peer-ip", Becomes("peers.deny", "as prefixes; most of what guides list is always denied")),
    value("stun-denied-peer-ip", Becomes("peers.deny", "as prefixes; most of what guides list is always denied")).gone(),
    flag("allow-loopback-peers", Becomes("peers.allow", "\"127.0.0.0/8\" and \"::1\"; clients then reach every service of this machine")),
    flag("no-loopback-peers", Implied("loopback peers are always denied unless peers.allow lists them")).gone(),
    flag("no-multicast-peers", Implied("multicast peers are always denied")),

    // Limits.
    value("user-quota", Becomes("limits.allocations_per_user", "")).short('q'),
    value("total-quota", Becomes("limits.allocations", "")).short('Q'),
    value("max-bps", Becomes("limits.bandwidth_per_allocation", "bytes per second there, bits per second here")).short('s'),
    value("bps-capacity", Becomes("limits.bandwidth", "bytes per second there, bits per second here")).short('B'),
    flag("unauthorized-ratelimit", Implied("the refusal is no larger than the request, and wrong requests are bounded for each source")),
    value("unauthorized-ratelimit-rps", Dropped("wrong requests are bounded for each source")),
    flag("401-ratelimit", Implied("the refusal is no larger than the request, and wrong requests are bounded for each source")).gone(),
    value("401-req-limit", Dropped("wrong requests are bounded for each source")).gone(),
    value("401-window", Dropped("wrong requests are bounded for each source")).gone(),
    value("401-allowlist", Dropped("wrong requests are bounded for each source")).gone(),
    flag("no-ratelimit-401", Dropped("wrong requests are bounded for each source")).gone(),
    value("ratelimit-401-requests-per-window", Dropped("wrong requests are bounded for each source")).gone(),
    value("ratelimit-401-window-seconds", Dropped("wrong requests are bounded for each source")).gone(),
    value("drain-min-allocations", Dropped("`throughway drain` waits for the last session, or for drain.deadline")),

    // TLS.
    value("cert", Becomes("tls.certificate", "")),
    value("pkey", Becomes("tls.private_key", "")),
    value("pkey-pwd", Asks("a key with a password can't be read: write it without one, `openssl pkey -in KEY -out NEW`, readable for the server only")),
    value("CA-file", Asks("certificates of clients are not asked for: clients prove who they are by their credential")),
    flag("verify-client-cert", Asks("certificates of clients are not asked for: clients prove who they are by their credential")).gone(),
    value("cipher-list", Dropped("the cipher suites are fixed: those of TLS 1.3, and of TLS 1.2 with forward secrecy")),
    value("ec-curve-name", Dropped("the curves are fixed: X25519, P-256 and P-384")),
    value("dh-file", Dropped("no finite-field key exchange is used")),
    flag("dh566", Dropped("no finite-field key exchange is used")),
    flag("dh1066", Dropped("no finite-field key exchange is used")),
    flag("dh2066", Dropped("no finite-field key exchange is used")).gone(),
    flag("no-sslv2", Implied("TLS 1.2 and 1.3 only")).gone(),
    flag("no-sslv3", Implied("TLS 1.2 and 1.3 only")).gone(),
    flag("no-tlsv1", Implied("TLS 1.2 and 1.3 only")).gone(),
    flag("no-tlsv1_1", Implied("TLS 1.2 and 1.3 only")).gone(),
    flag("no-tlsv1_2", Dropped("TLS 1.2 and 1.3 are always offered")),
    flag("tlsv1", Dropped("TLS 1.2 and 1.3 only")),
    flag("tlsv1_1", Dropped("TLS 1.2 and 1.3 only")),
    flag("raw-public-keys", Dropped("TLS uses certificates")),
    flag("enable-rpk", Dropped("TLS uses certificates")).gone(),

    // STUN.
    flag("fingerprint", Implied("an answer has FINGERPRINT if the request had it")).short('f'),
    flag("findgerprint", Implied("an answer has FINGERPRINT if the request had it")).gone(),
    flag("stun-only", Asks("this server always relays for those who have a credential")).short('S'),
    flag("no-stun", Dropped("Binding is always answered")),
    flag("secure-stun", Dropped("Binding needs no credential, as browsers expect")),
    flag("no-rfc5780", Implied("RFC 5780 is off without stun.discovery")),
    flag("rfc5780", Asks("name two addresses with two ports in stun.discovery, and all four combinations in listen.udp")),
    flag("response-origin-only-with-rfc5780", Implied("RESPONSE-ORIGIN is sent with stun.discovery only")),
    flag("rfc3489-compatibility", Becomes("stun.classic", "")),
    flag("no-stun-backward-compatibility", Implied("requests of RFC 3489 are not answered by default: see stun.classic")).gone(),
    flag("stun-backward-compatibility", Becomes("stun.classic", "")),
    flag("no-software-attribute", Implied("SOFTWARE is never sent")),
    flag("software-attribute", Dropped("SOFTWARE is never sent")),
    flag("prod", Implied("SOFTWARE is never sent")).gone(),
    flag("include-reason-string", Dropped("an error has a code and no text; the log says why")),
    flag("send-error-reason", Dropped("an error has a code and no text; the log says why")).gone(),
    flag("no-error-reason", Implied("an error has a code and no text; the log says why")).gone(),
    flag("drop-invalid-packets", Implied("what is neither STUN nor ChannelData is dropped and counted")),
    flag("drop-invalid-packets-log", Dropped("/metrics counts dropped packets by reason")),
    flag("respond-http-unsupported", Dropped("HTTP on a port for clients is closed without an answer")),
    flag("unsupported-http-gives-400", Dropped("HTTP on a port for clients is closed without an answer")).gone(),
    flag("no-http", Implied("HTTP is never answered on a port for clients")).gone(),
    value("acme-redirect", Dropped("HTTP is never answered on a port for clients; a web server on port 80 can redirect")),

    // Other servers.
    value("alternate-server", Asks("write the server into turn.alternates, with turn.redirect = \"always\" to send all new clients on as coturn does")),
    value("tls-alternate-server", Asks("write the server into turn.alternates as tls, with turn.redirect = \"always\" to send all new clients on as coturn does")),
    value("tcp-alternate-server", Asks("write the server into turn.alternates, with turn.redirect = \"always\" to send all new clients on as coturn does")),
    value("udp-alternate-server", Asks("write the server into turn.alternates, with turn.redirect = \"always\" to send all new clients on as coturn does")),
    value("federation-listening-ip", Dropped("there is no federation")).gone(),
    value("federation-listening-port", Dropped("there is no federation")).gone(),
    flag("federation-no-dtls", Dropped("there is no federation")).gone(),
    flag("federation-use-dtls", Dropped("there is no federation")).gone(),
    value("federation-cert", Dropped("there is no federation")).gone(),
    value("federation-pkey", Dropped("there is no federation")).gone(),
    value("federation-pkey-pwd", Dropped("there is no federation")).gone(),
    value("federation-remote-whitelist", Dropped("there is no federation")).gone(),

    // Logs, metrics, administration.
    value("log-file", Dropped("the log goes to the journal under systemd, and to standard error otherwise")).short('l'),
    value("log-conf-file", Dropped("see log.level")).gone(),
    flag("no-stdout-log", Implied("the log goes to one place only")),
    flag("syslog", Implied("under systemd the log goes to the journal")),
    value("syslog-facility", Dropped("the journal has fields instead: `journalctl -u throughway`")),
    flag("simple-log", Implied("there is no log file to name")),
    flag("new-log-timestamp", Implied("every line has a full time")),
    value("new-log-timestamp-format", Dropped("times are as in RFC 3339")),
    value("new-timestamp-format", Dropped("times are as in RFC 3339")).gone(),
    value("new-timestamp_format", Dropped("times are as in RFC 3339")).gone(),
    flag("log-binding", Dropped("requests for a Binding are counted in /metrics")),
    flag("log-ip", Implied("the line of a session has the client's address")).gone(),
    value("log-min-level", Becomes("log.level", "")),
    flag("verbose", Becomes("log.level", "\"info\" tells enough; \"debug\" tells why each request is refused")).short('v'),
    flag("Verbose", Becomes("log.level", "\"info\" tells enough; \"debug\" tells why each request is refused")).short('V'),
    value("sql-log", Dropped("usage records: see [accounting]")).gone(),
    value("redis-statsdb", Dropped("/metrics has the totals, and [accounting] a record for each session")).short('O'),
    value("stats-server", Dropped("/metrics has the totals")).gone(),
    value("stats-server-port", Dropped("/metrics has the totals")).gone(),
    value("udp-notifier", Dropped("usage records: see [accounting]")).gone(),
    flag("prometheus", Becomes("http.listen", "/metrics, on loopback: a Prometheus elsewhere needs a reverse proxy")),
    value("prometheus-port", Becomes("http.listen", "")),
    value("prometheus-address", Becomes("http.listen", "loopback only")),
    value("prometheus-ip", Becomes("http.listen", "loopback only")).gone(),
    value("prometheus-path", Dropped("the path is /metrics")),
    flag("prometheus-username-labels", Dropped("metrics have no user names: see [accounting]")),
    flag("prometheus-no-username-labels", Implied("metrics have no user names")).gone(),
    flag("no-user-prom-metrics", Implied("metrics have no user names")).gone(),
    flag("prometheus-tls", Dropped("metrics are on loopback: a reverse proxy can add TLS")),
    value("prometheus-cert", Dropped("metrics are on loopback: a reverse proxy can add TLS")),
    value("prometheus-key", Dropped("metrics are on loopback: a reverse proxy can add TLS")),
    flag("prometheus-compact", Implied("metrics have few labels")).gone(),
    flag("no-prometheus", Dropped("http.listen = \"\" switches metrics off")).gone(),
    flag("prom", Becomes("http.listen", "/metrics, on loopback: a Prometheus elsewhere needs a reverse proxy")).gone(),
    value("prom-port", Becomes("http.listen", "")).gone(),
    flag("prom-usernames", Dropped("metrics have no user names: see [accounting]")).gone(),
    flag("prom-compact", Implied("metrics have few labels")).gone(),
    flag("prom-realm", Dropped("metrics have few labels")).gone(),
    flag("prom-sid", Dropped("metrics have few labels")).gone(),
    value("prom-sid-retain", Dropped("metrics have few labels")).gone(),
    flag("prom-uniq-sid", Dropped("metrics have few labels")).gone(),
    flag("no-cli", Implied("there is no telnet console")),
    flag("cli", Dropped("there is no telnet console: `throughway sessions`, `kick` and `drain` do its work")),
    value("cli-ip", Dropped("there is no telnet console: `throughway sessions`, `kick` and `drain` do its work")),
    value("cli-port", Dropped("there is no telnet console: `throughway sessions`, `kick` and `drain` do its work")),
    value("cli-password", Dropped("there is no telnet console; this password stood in clear, so change it wherever else it is used")),
    value("cli-max-output-sessions", Dropped("there is no telnet console: `throughway sessions`, `kick` and `drain` do its work")),
    flag("web-admin", Dropped("the status page and the admin API of http.listen do its work")),
    flag("no-web-admin", Implied("there is no such page on a port for clients")).gone(),
    value("web-admin-ip", Dropped("the status page and the admin API of http.listen do its work")),
    value("web-admin-port", Dropped("the status page and the admin API of http.listen do its work")),
    flag("web-admin-listen-on-workers", Dropped("the status page is never on a port for clients")),

    // The process.
    flag("daemon", Dropped("the server stays in the foreground: systemd or the container starts it")).short('o'),
    value("proc-user", Implied("the unit starts the server as a user of its own")),
    value("proc-group", Implied("the unit starts the server as a user of its own")),
    value("pidfile", Dropped("systemd knows the process")),
    flag("systemd", Implied("systemd is told when the server is ready")).gone(),
    flag("version", Implied("`throughway version` prints it")),
    flag("help", Implied("`throughway help` prints it")).short('h'),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn names_and_letters_are_there_once() {
        for (at, option) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[..at] {
                assert_ne!(option.name, other.name);
                assert!(option.short.is_none() || option.short != other.short, "{} {}", option.name, other.name);
            }
        }
        assert!(OPTIONS.len() >= 181, "{}", OPTIONS.len());
    }

    #[test]
    fn keys_that_replace_an_option_exist() {
        let mut seen = 0;
        for option in OPTIONS {
            let Becomes(text, _) = option.fate else { continue };
            for word in
                text.split([' ', ',']).filter(|word| word.contains('.') || *word == "realm" || *word == "workers")
            {
                seen += 1;
                let path = word.trim_matches(['[', ']']);
                assert!(keys::find(path).is_some(), "{}: {path} is no key", option.name);
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn an_option_is_found_in_other_spellings() {
        for (name, found) in [
            ("static_auth_secret", "static-auth-secret"),
            ("no-tlsv1_1", "no-tlsv1_1"),
            ("no-tlsv1-1", "no-tlsv1_1"),
            ("ca-file", "CA-file"),
            ("Verbose", "Verbose"),
            ("verbose", "verbose"),
        ] {
            assert_eq!(find(name).map(|option| option.name), Some(found), "{name}");
        }
        assert!(find("static-auth").is_none());
    }
}
