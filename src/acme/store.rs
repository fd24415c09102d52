//! The state directory: the account, and the certificate with its key, in one file so that they always fit each other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};

use crate::config::acme::AcmeConfig;
use crate::tls::certificates::Loaded;
use crate::tls::provider;

/// The account's file.
const ACCOUNT: &str = "account.json";

/// No account is longer.
const ACCOUNT_BYTES_MAX: u64 = 64 << 10;

/// An account, and where it is one.
#[derive(Serialize, Deserialize)]
struct KnownAccount {
    directory: String,
    credentials: AccountCredentials,
}

/// The files of one configuration.
pub(super) struct Store {
    directory: PathBuf,
    pair: PathBuf,
    /// The authority's directory.
    authority: String,
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

impl Store {
    pub(super) fn new(config: &AcmeConfig) -> Self {
        Self { directory: config.state.clone(), pair: config.pair(), authority: config.directory.to_string() }
    }

    /// The certificate that is there; nothing if there is none that can be used.
    pub(super) fn certificate(&self) -> Option<Loaded> {
        let bytes = fs::read(&self.pair).ok()?;
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
        let mut bytes = Vec::new();
        File::open(self.directory.join(ACCOUNT)).ok()?.take(ACCOUNT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let known: KnownAccount = serde_json::from_slice(&bytes).ok()?;
        (known.directory == self.authority).then_some(known.credentials)
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
