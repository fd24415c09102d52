//! A credential as one line `USERNAME:PASSWORD` on a unix socket, as relays of chatmail read it.
//!
//! The caller connects, says nothing and reads to the end of the line. The system says whose process it is. The username is
//! the expiry alone, because readers split the line at colons and take the first part as a number.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};

use super::access::Caller;
use super::refused::IssueRefused;
use super::request::CredentialRequest;
use super::{Rest, mint};
use crate::api::Peer;
use crate::api::serve::{BOUNDS, ConnectionSlot};
use crate::config::issuing::IssuingConfig;
use crate::net::front::accept_next;
use crate::net::gate::Gate;
use crate::protocol::revocation::SessionSubject;

/// The line fits into the buffer of a new socket, so nothing waits for its reader.
const WRITE_TIME: Duration = Duration::from_secs(3);

/// Gives a line to each process that connects.
pub(in crate::api) async fn serve(listener: UnixListener, rest: Arc<Rest>, gate: Gate) -> io::Result<()> {
    let places = Arc::default();
    loop {
        let (stream, _) = accept_next(&gate, || listener.accept(), || {}).await;
        let uid = stream.peer_cred().ok().map(|process| process.uid());
        let place = ConnectionSlot::take(&places, &stream, Peer::Unix(uid), BOUNDS);
        let rest = Arc::clone(&rest);
        tokio::spawn(place.hold(async move { rest.write_line(stream, uid).await }));
    }
}

/// What a caller asks for by connecting.
fn request(config: &IssuingConfig) -> CredentialRequest {
    CredentialRequest { ttl: Some(config.chatmail_ttl), ..CredentialRequest::default() }
}

impl Rest {
    /// A caller that gets no credential reads an empty answer: there is no form for a reason.
    async fn write_line(&self, mut stream: UnixStream, uid: Option<u32>) {
        match self.line(uid) {
            Ok(line) => {
                let written = async {
                    stream.write_all(line.as_bytes()).await?;
                    stream.shutdown().await
                };
                // Who has gone needs none.
                let _ = tokio::time::timeout(WRITE_TIME, written).await;
            }
            Err(refused) => {
                self.counts.refuse(&refused);
                tracing::debug!(uid, reason = refused.name(), "credential refused");
            }
        }
    }

    fn line(&self, uid: Option<u32>) -> Result<String, IssueRefused> {
        let issuer = self.issuer.load_full();
        if !uid.is_some_and(|uid| issuer.config.unix_uids.contains(&uid)) {
            return Err(IssueRefused::NoKey);
        }
        let now = (self.clock)();
        let caller = Caller::known_by("unix", None);
        self.rates.take(&caller.name, None, issuer.config.per_key, now.ticks.0).map_err(IssueRefused::RateKey)?;
        let credential = mint(&issuer, &caller, &request(&issuer.config), String::new(), now)?;
        // Without a user id the whole username is the user.
        let username = credential.minted.username.as_str();
        let party = SessionSubject { username, user: username, tenant: credential.tenant.as_deref() };
        if self.is_revoked.get().is_some_and(|is_revoked| is_revoked(&party, now.unix)) {
            return Err(IssueRefused::Revoked);
        }
        self.counts.issue(&caller.name);
        tracing::info!(
            key = &*caller.name,
            user = username,
            username,
            ttl = credential.ttl,
            limits = "",
            client = "unix",
            "credential issued"
        );
        Ok(format!("{username}:{}\n", credential.minted.password))
    }
}
