//! TLS 1.2 sessions that clients without tickets can resume, with a share for each client network.
//!
//! rustls asks its storage by the session's id alone. So each handshake has a configuration of its own, a copy that
//! shares everything but the storage, which knows the client's network: a crowd of one network pushes out its own.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::StoresServerSessions;

use super::fair_limit::Source;
use super::fair_map::FairMap;

/// Sessions of TLS 1.2 clients without tickets that can be resumed.
const SESSIONS: usize = 4096;

/// The sessions of one kind of listener: one of a TURN client must not open a way into HTTP without a handshake of its
/// own.
#[derive(Clone)]
pub(crate) struct ResumableSessions(Arc<FairMap<Vec<u8>, Vec<u8>>>);

impl Default for ResumableSessions {
    fn default() -> Self {
        Self(Arc::new(FairMap::new(SESSIONS)))
    }
}

impl ResumableSessions {
    /// What a handshake with a client of this network is done with.
    pub(crate) fn config_for(&self, common: &ServerConfig, source: Source) -> Arc<ServerConfig> {
        let mut config = common.clone();
        config.session_storage = Arc::new(SessionsFor { sessions: self.clone(), source });
        Arc::new(config)
    }
}

/// The sessions as one client sees them: it may resume any, and what it leaves counts for its network.
struct SessionsFor {
    sessions: ResumableSessions,
    source: Source,
}

/// Without what is in it: those are keys.
impl fmt::Debug for SessionsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionsFor").field("source", &self.source).finish_non_exhaustive()
    }
}

impl StoresServerSessions for SessionsFor {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.sessions.0.insert(self.source, key, value);
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.sessions.0.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.sessions.0.remove(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn of(sessions: &ResumableSessions, ip: &str) -> SessionsFor {
        SessionsFor { sessions: sessions.clone(), source: ip.parse::<IpAddr>().unwrap().into() }
    }

    #[test]
    fn a_network_with_many_sessions_pushes_out_its_own_only() {
        let sessions = ResumableSessions::default();
        let (alice, crowd) = (of(&sessions, "192.0.2.1"), of(&sessions, "192.0.2.2"));
        assert!(alice.put(b"alice".to_vec(), b"hers".to_vec()));
        for number in 0..2 * SESSIONS as u32 {
            crowd.put(number.to_be_bytes().to_vec(), b"theirs".to_vec());
        }
        assert_eq!(alice.get(b"alice").as_deref(), Some(&b"hers"[..]));
        assert_eq!(crowd.get(&0_u32.to_be_bytes()), None);
        // From a network that she moved to.
        let moved = of(&sessions, "198.51.100.7");
        assert_eq!(moved.take(b"alice").as_deref(), Some(&b"hers"[..]));
        assert_eq!(alice.get(b"alice"), None);
    }
}
