//! The state directory: the account, and the certificate with its key, in one file so that they always fit each other.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::schedule::WAIT_MOST;
use crate::config::acme::AcmeConfig;
use crate::files;
use crate::tls::certificates::Loaded;
use crate::tls::provider;

/// The account's file.
const ACCOUNT: &str = "account.json";

/// The file of an authority's refusal.
const REFUSAL: &str = "refusal.json";

/// No file of ours is longer.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// An account, and where it is one.
#[derive(Serialize, Deserialize)]
struct KnownAccount {
    directory: String,
    credentials: AccountCredentials,
}

/// An authority that does not want to be asked again before a time, in seconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) error: String,
    pub(super) not_before: u64,
}

/// A refusal, and of what.
#[derive(Serialize, Deserialize)]
struct KnownRefusal {
    directory: String,
    domains: Vec<Box<str>>,
    refusal: Refusal,
}

/// The files of one configuration.
pub(super) struct Store {
    directory: PathBuf,
    pair: PathBuf,
    /// The authority's directory.
    authority: String,
    domains: Vec<Box<str>>,
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

impl Store {
    pub(super) fn new(config: &AcmeConfig) -> Self {
        let (directory, authority) = (config.state.clone(), config.directory.to_string());
        Self { directory, pair: config.pair(), authority, domains: config.domains.clone() }
    }

    /// The certificate that is there; nothing if there is none that can be used.
    pub(super) fn certificate(&self) -> Option<Loaded> {
        let bytes = files::read(&self.pair, FILE_BYTES_MAX).ok()?;
        Loaded::parse(&bytes, &provider()).ok()
    }

    /// Makes the directory, and finds out whether files can be written there.
    pub(super) fn prepare(&self) -> Result<(), String> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.directory).map_err(|error| told(&self.directory, &error))?;
        let probe = self.directory.join("probe");
        // As long as a certificate with its chain: a disk may have room for less.
        let written = write_new(&probe, &[b'#'; 16 << 10]);
        let _ = fs::remove_file(&probe);
        written.map_err(|error| format!("the certificate could not be kept: {}", told(&probe, &error)))
    }

    /// The account at this authority.
    pub(super) fn account(&self) -> Option<AccountCredentials> {
        let known: KnownAccount = self.read(ACCOUNT)?;
        (known.directory == self.authority).then_some(known.credentials)
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Option<T> {
        let bytes = files::read(&self.directory.join(file), FILE_BYTES_MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// A refusal of these names by this authority that still holds.
    pub(super) fn refusal(&self, now: u64) -> Option<Refusal> {
        let known: KnownRefusal = self.read(REFUSAL)?;
        let is_ours = known.directory == self.authority && known.domains == self.domains;
        Some(known.refusal).filter(|of| is_ours && of.not_before > now && of.not_before <= now + WAIT_MOST)
    }

    /// Keeps a refusal for the process after this one; if it can't be kept, that one asks a time too often.
    pub(super) fn write_refusal(&self, refusal: &Refusal) {
        let (directory, domains) = (self.authority.clone(), self.domains.clone());
        let known = KnownRefusal { directory, domains, refusal: refusal.clone() };
        if let Ok(bytes) = serde_json::to_vec(&known) {
            let _ = replace(&self.directory.join(REFUSAL), &bytes);
        }
    }

    pub(super) fn forget_refusal(&self) {
        let _ = fs::remove_file(self.directory.join(REFUSAL));
    }

    pub(super) fn write_account(&self, credentials: AccountCredentials) -> Result<(), String> {
        let known = KnownAccount { directory: self.authority.clone(), credentials };
        let bytes = serde_json::to_vec(&known).map_err(|error| error.to_string())?;
        replace(&self.directory.join(ACCOUNT), &bytes)
    }

    /// Keeps a chain and its key.
    pub(super) fn write(&self, pair: &str) -> Result<(), String> {
        replace(&self.pair, pair.as_bytes())
    }
}

/// Writes all of a file or nothing.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let new = path.with_extension("new");
    let written = write_new(&new, bytes).and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        told(path, &error)
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
