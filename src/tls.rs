//! TLS for clients: certificates, their choice by server name, their renewal, and the handshake's settings.
//!
//! Owns everything about TLS that is not a byte of an established stream: those belong to the worker that
//! adopted it (`net::tls_session`). One rustls configuration lives as long as the process, so tickets
//! survive a change of certificates; only what the resolver answers is swapped.

pub mod certificates;
pub(crate) mod der;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;

use self::certificates::{Certificates, LoadError};

/// RFC 7443; in the order of our preference. A client that offers neither gets no_application_protocol.
// [7443-1-1, -2]
pub const ALPN: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// A TLS record of type handshake (RFC 8446 section 5.1): no STUN message, no ChannelData and no HTTP request begins
/// with it.
pub const HANDSHAKE: u8 = 0x16;

/// A handshake so young gives way only to a client whose network has fewer under way: it may be that of a client across
/// two satellites, and in a crowd that reconnects each would else end another's.
pub const HANDSHAKE_PROTECTED: Duration = Duration::from_secs(2);

/// For an authority that looks for proof of control over a name (RFC 8737 section 3); no client of ours offers it.
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// For listeners of HTTP: no HTTP/2.
const ALPN_HTTP: &[u8] = b"http/1.1";

/// The only cryptography in use; named everywhere, because an implicit choice panics once there are two.
// [8489-6.2.3-1, -3, -4, -5, -6, -7]
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What became of handshakes; written by the control threads.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// Finished, resumed ones included.
    pub ok: AtomicU64,
    /// Finished without a new exchange of keys and certificates.
    pub resumed: AtomicU64,
    /// Broken off by either side: no common version or ALPN, not TLS at all, closed, ...
    pub failed: AtomicU64,
    /// Not finished within `limits.tls_handshake`.
    pub timeout: AtomicU64,
    /// Given up for others, because too many were under way.
    pub refused: AtomicU64,
}

impl Handshakes {
    /// Counts one.
    pub fn count(cell: &AtomicU64) {
        cell.fetch_add(1, Ordering::Relaxed);
    }

    /// Every result with its name.
    #[must_use]
    pub fn results(&self) -> [(&'static str, u64); 4] {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        [
            ("ok", get(&self.ok)),
            ("failed", get(&self.failed)),
            ("timeout", get(&self.timeout)),
            ("refused", get(&self.refused)),
        ]
    }
}

/// The certificates, and the settings that every handshake uses.
pub struct Tls {
    /// What is presented.
    pub certificates: Arc<Certificates>,
    server: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

impl Tls {
    /// Loads the certificates.
    ///
    /// # Errors
    /// Names the file and what is wrong with it, or says that the system has no entropy.
    // [8489-6.2.3-8, 8656-3.1-1, 8656-5-11]
    pub fn new(files: &[certificates::Files]) -> Result<Self, LoadError> {
        let provider = provider();
        let certificates = Arc::new(Certificates::load(files, &provider)?);
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let nowhere = |error: rustls::Error| LoadError { path: "".into(), is_key: false, reason: error.to_string() };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(nowhere)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        server.alpn_protocols = ALPN.into_iter().chain([ALPN_ACME]).map(<[u8]>::to_vec).collect();
        // Those without tickets are kept by who does the handshake and knows the client: `net::tls_resumption`.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = ring::Ticketer::new().map_err(nowhere)?;
        // Tickets of its own: one of a TURN client must not open a way into HTTP without a handshake of its own.
        let mut http = server.clone();
        http.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_ACME.to_vec()];
        http.ticketer = ring::Ticketer::new().map_err(nowhere)?;
        Ok(Self { certificates, server: Arc::new(server), http: Arc::new(http) })
    }

    /// For listeners of HTTP.
    #[must_use]
    pub fn http(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.http)
    }

    /// For the acceptor.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}
