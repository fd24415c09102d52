//! From rustls' handshake to a record layer of our own: settings and key log of one connection, and what they leave.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, OnceLock};

use rustls::{
    ConnectionTrafficSecrets, ExtractedSecrets, KeyLog, ServerConfig, ServerConnection, SupportedCipherSuite,
};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::direction::Direction;
use super::suite::{NONCE_BYTES, SECRET_BYTES, SecretArray, Suite, Version};
use super::{RecordLayer, RecordLayerError};
use crate::time::Ticks;

/// Key updates during the handshake's last moments that are looked through. rustls itself ends a connection that sends
/// more in a row.
const GENERATIONS_TRIED: usize = 64;

/// The labels of SSLKEYLOGFILE for the first generation of application traffic secrets.
const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

/// The application traffic secrets of one handshake of TLS 1.3, as rustls tells them; none of TLS 1.2. Wiped when
/// dropped.
#[derive(Default)]
pub struct TrafficSecrets {
    client: OnceLock<SecretArray>,
    server: OnceLock<SecretArray>,
}

impl TrafficSecrets {
    fn cell(&self, label: &str) -> Option<&OnceLock<SecretArray>> {
        match label {
            CLIENT_LABEL => Some(&self.client),
            SERVER_LABEL => Some(&self.server),
            _ => None,
        }
    }
}

impl KeyLog for TrafficSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut kept = Zeroizing::new([0; SECRET_BYTES]);
        if let (Some(cell), Some(place)) = (self.cell(label), kept.get_mut(..secret.len())) {
            place.copy_from_slice(secret);
            let _ = cell.set(kept);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.cell(label).is_some()
    }
}

impl fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecrets(..)")
    }
}

/// The settings of a handshake whose secrets can be taken out, for one connection; tickets and sessions are shared with
/// `config`.
#[must_use]
pub fn config_of_connection(config: &ServerConfig) -> (Arc<ServerConfig>, Arc<TrafficSecrets>) {
    let secrets = Arc::new(TrafficSecrets::default());
    let mut config = config.clone();
    config.enable_secret_extraction = true;
    config.key_log = Arc::clone(&secrets) as _;
    (Arc::new(config), secrets)
}

/// What a finished handshake leaves.
#[derive(Debug)]
pub struct Established {
    /// The records from now on.
    pub records: RecordLayer,
    /// Ciphertext of the handshake to be sent before anything else: tickets, the answer to a key update.
    pub unsent: Vec<u8>,
    /// Data that came behind the handshake and that rustls decrypted.
    pub received: Vec<u8>,
}

impl Established {
    /// Goes on where rustls' handshake ended, with settings from [`config_of_connection`].
    ///
    /// rustls must not hold the start of a record, which would be lost with it: give it whole records during the
    /// handshake, as [`record_bytes`](super::record_bytes) tells, and keep the rest for [`RecordLayer::cut`].
    ///
    /// # Errors
    /// The handshake is not over, the connection has failed, or as [`RecordLayer::of_secrets`].
    pub fn take(mut connection: ServerConnection, logged: &TrafficSecrets) -> Result<Self, RecordLayerError> {
        let suite = connection.negotiated_cipher_suite().ok_or(RecordLayerError::Unfinished)?;
        let (mut unsent, mut received) = (Vec::new(), Vec::new());
        let ended = match connection.reader().read_to_end(&mut received) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => return Err(RecordLayerError::Unfinished),
        };
        // rustls goes on with the next key as soon as the client asks for that, but tells so before the next data only:
        // none are enough.
        connection.writer().write(&[]).map_err(|_| RecordLayerError::Unfinished)?;
        while connection.wants_write() {
            connection.write_tls(&mut unsent).map_err(|_| RecordLayerError::Unfinished)?;
        }
        let secrets = connection.dangerous_extract_secrets().map_err(|_| RecordLayerError::Unfinished)?;
        let mut records = RecordLayer::of_secrets(suite, secrets, logged)?;
        records.has_ended_reading = ended;
        Ok(Self { records, unsent, received })
    }
}

impl RecordLayer {
    /// Of what rustls hands out: the suite, which names the version, keys and record numbers of this moment; and for TLS 1.3 the secrets
    /// of the first generation.
    ///
    /// # Errors
    /// A suite that we don't offer, or keys that don't follow from the secrets.
    pub fn of_secrets(
        suite: SupportedCipherSuite,
        secrets: ExtractedSecrets,
        logged: &TrafficSecrets,
    ) -> Result<Self, RecordLayerError> {
        let number = u16::from(suite.suite());
        let suite = Suite::of(number).ok_or(RecordLayerError::Suite { suite: number })?;
        Ok(Self {
            suite,
            reading: direction(suite, &secrets.rx, &logged.client)?,
            writing: direction(suite, &secrets.tx, &logged.server)?,
            has_ended_reading: false,
            has_ended_writing: false,
            owes_key_update: false,
            empty_records: 0,
            key_updates: 0,
            key_updates_since: Ticks(0),
        })
    }
}

fn direction(
    suite: Suite,
    (number, extracted): &(u64, ConnectionTrafficSecrets),
    logged: &OnceLock<SecretArray>,
) -> Result<Direction, RecordLayerError> {
    let unknown = RecordLayerError::Suite { suite: suite.number };
    let (key, iv) = match extracted {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key.as_ref(), iv.as_ref()),
        _ => return Err(unknown),
    };
    let iv: [u8; NONCE_BYTES] = iv.try_into().map_err(|_| unknown)?;
    match suite.version {
        Version::Tls12 => Direction::of_key(suite, key, iv, *number).ok_or(unknown),
        Version::Tls13 => {
            let secret = logged.get().ok_or(RecordLayerError::Secret)?;
            let secret = generation(suite, secret, key, &iv).ok_or(RecordLayerError::Secret)?;
            Ok(Direction::of_traffic_secret(suite, secret, *number))
        }
    }
}

/// The generation of a traffic secret that this key follows from: the client may have sent key updates already.
fn generation(suite: Suite, first: &SecretArray, key: &[u8], iv: &[u8]) -> Option<SecretArray> {
    let mut secret = first.clone();
    for _ in 0..=GENERATIONS_TRIED {
        let (own_key, own_iv) = suite.traffic_key(&secret);
        let is_it = own_key[..suite.key_bytes()].ct_eq(key) & own_iv.ct_eq(iv);
        if is_it.into() {
            return Some(secret);
        }
        secret = suite.next_secret(&secret);
    }
    None
}
