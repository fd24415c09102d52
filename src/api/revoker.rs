//! Shutting out and ending in one step: what the admin API and a caller with an API key both ask for.

use std::sync::Arc;

use crate::net::Running;
use crate::ops::kept_file::NotSaved;
use crate::ops::revocations::{NotRevoked, Store, until};
use crate::protocol::border::Selector;
use crate::protocol::reason::EndReason;
use crate::protocol::revocation::Subject;
use crate::time::{Now, UnixSeconds};

/// Revokes at a running relay.
pub struct Revoker {
    running: Arc<Running>,
    store: Arc<Store>,
    clock: fn() -> Now,
}

/// What a revocation came to.
#[derive(Debug)]
pub struct Revoked {
    /// Until when it holds; nothing if there was no credential left to shut out.
    pub until: Option<UnixSeconds>,
    /// Sessions that it ended.
    pub ended: usize,
    /// Whether it outlives the process.
    pub saved: Result<(), NotRevoked>,
}

impl Revoker {
    /// For this relay and what keeps its revocations.
    #[must_use]
    pub const fn new(running: Arc<Running>, store: Arc<Store>, clock: fn() -> Now) -> Self {
        Self { running, store, clock }
    }

    /// Who is shut out.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Shuts a subject out and ends its sessions.
    ///
    /// # Errors
    /// [`NotRevoked::Full`]; what can't be written is in [`Revoked::saved`], because it holds all the same.
    pub async fn revoke(&self, whose: Subject, max_ttl: u64) -> Result<Revoked, NotRevoked> {
        let now = (self.clock)();
        let until = until(&whose, now.unix, max_ttl);
        // Where there is no end, no such credential is good any more; a session that outlived it may be there all the same.
        let change = until.map(|until| self.store.revoke(whose.clone(), until, now)).transpose()?;
        // Before the file: a disk that hangs must not keep a session alive.
        let ended = self.running.close(&Selector::Subject(whose), EndReason::Revoked).await;
        let saved = match change {
            Some(change) => self.stored(move |store| store.save(change, now)).await,
            None => Ok(()),
        };
        Ok(Revoked { until, ended, saved })
    }

    /// Takes a revocation back; tells whether there was one.
    ///
    /// # Errors
    /// [`NotRevoked::NotSaved`].
    pub async fn undo(&self, whose: Subject) -> Result<bool, NotRevoked> {
        let now = (self.clock)();
        self.stored(move |store| store.undo(&whose, now)).await
    }

    /// Writing a file blocks, so it is done elsewhere.
    async fn stored<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Store) -> Result<T, NotRevoked> + Send + 'static,
    ) -> Result<T, NotRevoked> {
        let store = Arc::clone(&self.store);
        let changed = tokio::task::spawn_blocking(move || change(&store)).await;
        changed.unwrap_or_else(|error| {
            let cause = std::io::Error::other(error.to_string());
            Err(NotSaved { path: Default::default(), cause }.into())
        })
    }
}
