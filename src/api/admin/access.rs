//! Who may use the admin API: holders of the token, and users of this machine that the kernel reports.

use std::fmt;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::refused::AdminRefused;
use crate::api::Peer;
use crate::config::admin::AdminConfig;

/// Who asks, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operator {
    /// Has the token.
    Token,
    /// A process of this user on the unix socket.
    User(u32),
    /// Without a name: may see numbers only.
    Anybody,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::User(uid) => write!(f, "unix:{uid}"),
            Self::Anybody => f.write_str("anybody"),
        }
    }
}

/// What one configuration says about it.
pub(super) struct AdminAccess {
    /// Of a digest the length tells nothing, and comparing two is one comparison of 32 bytes.
    token: Option<[u8; 32]>,
    uids: Vec<u32>,
}

impl AdminAccess {
    /// `own` is the server's own user.
    pub(super) fn new(config: &AdminConfig, own: u32) -> Self {
        let mut uids = config.uids.clone();
        uids.extend([0, own]);
        Self { token: config.token.as_ref().map(|token| Sha256::digest(token.expose()).into()), uids }
    }

    /// Finds out who asks for what shows users or changes something.
    pub(super) fn identify(&self, peer: Peer, headers: &HeaderMap) -> Result<Operator, AdminRefused> {
        let mut presented = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(value) = presented.next() {
            let bearer = value.to_str().ok().and_then(|text| text.trim().split_once(' '));
            let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let (Some(token), Some((_, given)), None) = (&self.token, bearer, presented.next()) else {
                return Err(if self.token.is_some() { AdminRefused::WrongToken } else { AdminRefused::NotSetUp });
            };
            let given: [u8; 32] = Sha256::digest(given.trim()).into();
            return if bool::from(token.ct_eq(&given)) { Ok(Operator::Token) } else { Err(AdminRefused::WrongToken) };
        }
        match peer {
            Peer::Unix(Some(uid)) if self.uids.contains(&uid) => Ok(Operator::User(uid)),
            Peer::Unix(_) => Err(AdminRefused::WrongUser),
            Peer::Tcp(_) if self.token.is_none() => Err(AdminRefused::NotSetUp),
            Peer::Tcp(_) => Err(AdminRefused::NoToken),
        }
    }

    /// The same for numbers that tell nothing of anybody, which `/metrics` shows too: without a token anybody may.
    pub(super) fn identify_reader(&self, peer: Peer, headers: &HeaderMap) -> Result<Operator, AdminRefused> {
        if self.token.is_none() && !headers.contains_key(header::AUTHORIZATION) {
            return Ok(self.identify(peer, headers).unwrap_or(Operator::Anybody));
        }
        self.identify(peer, headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Secret;

    const TCP: Peer =
        Peer::Tcp(std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9)));

    fn access(token: Option<&str>) -> AdminAccess {
        let token = token.map(|token| Secret::new(token.as_bytes()));
        AdminAccess::new(&AdminConfig { token, uids: vec![33], revocations_file: None, limits_file: None }, 999)
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn the_token_opens_and_nothing_else_does_over_tcp() {
        let access = access(Some("open-sesame-open"));
        for good in ["Bearer open-sesame-open", "bearer  open-sesame-open "] {
            assert_eq!(access.identify(TCP, &headers(&[good])), Ok(Operator::Token), "{good}");
        }
        for wrong in
            ["Bearer open-sesame-opeN", "Bearer open-sesame", "Bearer ", "Bearer", "Basic b3Blbi1zZXNhbWUtb3Blbg==", ""]
        {
            assert_eq!(access.identify(TCP, &headers(&[wrong])), Err(AdminRefused::WrongToken), "{wrong}");
        }
        let twice = headers(&["Bearer open-sesame-open", "Bearer x"]);
        assert_eq!(access.identify(TCP, &twice), Err(AdminRefused::WrongToken));
        assert_eq!(access.identify(TCP, &headers(&[])), Err(AdminRefused::NoToken));
        assert_eq!(access.identify_reader(TCP, &headers(&[])), Err(AdminRefused::NoToken));
    }

    #[test]
    fn without_a_token_tcp_sees_numbers_only_and_an_empty_token_is_none() {
        let access = access(None);
        assert_eq!(access.identify(TCP, &headers(&[])), Err(AdminRefused::NotSetUp));
        assert_eq!(access.identify(TCP, &headers(&["Bearer "])), Err(AdminRefused::NotSetUp));
        assert_eq!(access.identify_reader(TCP, &headers(&[])), Ok(Operator::Anybody));
        assert_eq!(access.identify_reader(TCP, &headers(&["Bearer x"])), Err(AdminRefused::NotSetUp));
    }

    #[test]
    fn root_the_own_user_and_those_listed_may_over_the_unix_socket() {
        for access in [access(None), access(Some("open-sesame-open"))] {
            for uid in [0, 999, 33] {
                assert_eq!(access.identify(Peer::Unix(Some(uid)), &headers(&[])), Ok(Operator::User(uid)));
            }
            for peer in [Peer::Unix(Some(34)), Peer::Unix(None)] {
                assert_eq!(access.identify(peer, &headers(&[])), Err(AdminRefused::WrongUser));
            }
        }
        let token = headers(&["Bearer open-sesame-open"]);
        assert_eq!(access(Some("open-sesame-open")).identify(Peer::Unix(Some(34)), &token), Ok(Operator::Token));
        // A wrong token is an error even on the socket.
        let wrong = headers(&["Bearer x"]);
        assert_eq!(
            access(Some("open-sesame-open")).identify(Peer::Unix(Some(0)), &wrong),
            Err(AdminRefused::WrongToken)
        );
    }
}
