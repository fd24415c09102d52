//! What operators change at run time and a restart must not lose: revocations and limits, and where each is kept.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::failure::Failure;
use crate::net::{KeptSets, Running};
use crate::ops::kept_file::{self, KeptKind};
use crate::ops::{limits, revocations};

/// Where a server keeps them; nowhere means that they are lost with the process.
pub(super) struct KeptPaths {
    pub(super) revocations: Option<PathBuf>,
    pub(super) limits: Option<PathBuf>,
}

impl KeptPaths {
    pub(super) fn of(config: &Config) -> Self {
        let state_directory = std::env::var("STATE_DIRECTORY").ok();
        let path = |kind: &KeptKind, configured: Option<&Path>| kind.path_of(configured, state_directory.as_deref());
        Self {
            revocations: path(&revocations::KIND, config.admin.revocations_file.as_deref()),
            limits: path(&limits::KIND, config.admin.limits_file.as_deref()),
        }
    }

    /// For a server that begins: what is kept, once it is known that more can be.
    ///
    /// # Errors
    /// [`Failure::Run`] with key, file and remedy.
    pub(super) fn load(&self, config: &Config) -> Result<KeptSets, Failure> {
        let revocations = revocations::load(self.revocations.as_deref()).map_err(Failure::Run)?;
        let overrides = limits::load(self.limits.as_deref()).map_err(Failure::Run)?;
        self.check(config)?;
        Ok(KeptSets { revocations, overrides })
    }

    /// Looks whether more can be written. What is found out at the first change is lost at the next start.
    ///
    /// # Errors
    /// If the operator named the file; a state directory may be missing on purpose, and a full disk is no reason not to relay.
    fn check(&self, config: &Config) -> Result<(), Failure> {
        can_be_kept(&revocations::KIND, self.revocations.as_deref(), config.admin.revocations_file.is_some())?;
        can_be_kept(&limits::KIND, self.limits.as_deref(), config.admin.limits_file.is_some())
    }

    /// For a server that goes on with what another process had: that knew them, unless it was killed. A killed one may have
    /// written what it had not told, and one of an earlier release knows no limits.
    pub(super) fn go_on(&self, config: &Config, running: &Arc<Running>, is_recovered: bool) {
        if is_recovered && self.revocations.is_some() {
            match revocations::load(self.revocations.as_deref()) {
                Ok(revoked) => *running.revocations() = revoked,
                Err(error) => {
                    tracing::error!(%error, "the file of revocations can't be read: those that the killed server knew hold");
                }
            }
        }
        if self.limits.is_some() && (is_recovered || running.with_overrides(|set| set.is_empty())) {
            match limits::load(self.limits.as_deref()) {
                Ok(limits) if limits.is_empty() && !is_recovered => {}
                Ok(limits) => {
                    running.with_overrides(|set| *set = limits);
                    let running = Arc::clone(running);
                    tokio::spawn(async move { running.meter_anew(None).await });
                }
                Err(error) => {
                    tracing::error!(%error, "the file of limits set at run time can't be read: those that the server before this one knew hold");
                }
            }
        }
        if let Err(failure) = self.check(config) {
            tracing::error!(%failure, "what is changed at run time can't be kept: it is lost at the next start");
        }
    }
}

fn can_be_kept(kind: &KeptKind, path: Option<&Path>, is_configured: bool) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let Err(error) = kept_file::probe(path) else { return Ok(()) };
    let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let (key, entries, shown) = (kind.key, kind.entries, path.display());
    if is_configured && !is_full {
        return Err(Failure::Run(format!(
            "{key}: can't write {shown}: {error}, so {entries} would be lost at the next start; its directory must be the \
             server's user's, or name another file"
        )));
    }
    tracing::warn!(file = %shown, %error, "{entries} can't be kept: each is lost at the next start");
    Ok(())
}
