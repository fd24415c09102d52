//! Looks at the certificate files twice a second and takes over what has changed, once it has settled.
//!
//! By metadata of what the paths lead to, so a rewritten file, a renamed one and a swapped symlink (also of a
//! directory, as orchestrators mount secrets) are all seen; notifications of the kernel miss the last.

use std::sync::Arc;
use std::time::Duration;

use super::certificates::{Certificates, Files, stamps};
use super::provider;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// Runs until it is aborted.
pub async fn watch(certificates: Arc<Certificates>) {
    let mut files = certificates.files();
    // Of what was read: a process that takes over reads them some time before it comes here.
    let mut taken = certificates.stamps();
    let mut before = taken.clone();
    loop {
        tokio::time::sleep(EVERY).await;
        let of = certificates.files();
        if of != files {
            // A reload named other files, and has just read them.
            (taken, files) = (certificates.stamps(), of);
            before.clone_from(&taken);
            continue;
        }
        let seen = {
            let files = files.clone();
            tokio::task::spawn_blocking(move || stamps(&files)).await.unwrap_or_default()
        };
        // Certificate and key are two files: the writer gets time for the other.
        let is_settled = seen == before;
        before = seen;
        if !is_settled || before == taken {
            continue;
        }
        taken.clone_from(&before);
        renew(&certificates, &files).await;
    }
}

/// Takes over what the files hold; the log says so, or why not.
pub async fn renew(certificates: &Arc<Certificates>, files: &[Files]) -> bool {
    let (to, files) = (Arc::clone(certificates), files.to_vec());
    let result = tokio::task::spawn_blocking(move || to.replace(&files, &provider())).await;
    match result {
        Ok(Ok(())) => {
            report(certificates);
            true
        }
        Ok(Err(error)) => {
            tracing::warn!("the certificate in use stays, because the new one is wrong: {error}");
            false
        }
        Err(_) => false,
    }
}

/// One line for each certificate.
pub fn report(certificates: &Certificates) {
    for (at, (files, loaded)) in certificates.files().iter().zip(certificates.loaded()).enumerate() {
        let (days, names) = (loaded.days_left(), loaded.names.join(", "));
        let file = files.certificate.display();
        if loaded.is_stand_in {
            tracing::info!(certificate = at, %file, names, "no certificate yet: a stand-in is presented until the authority gives one");
            continue;
        }
        if days < 0 {
            tracing::warn!(certificate = at, %file, names, days, "a certificate has ended; clients will refuse it");
        } else {
            tracing::info!(certificate = at, %file, names, days, "certificate loaded");
        }
        for warning in loaded.warnings() {
            tracing::warn!(certificate = at, %file, names, "certificate warning: {warning}");
        }
    }
}
