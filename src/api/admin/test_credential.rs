//! Credentials for the connectivity test, and the link that brings one to a user.
//!
//! Such a credential is an ordinary one of the secret that mints, for a short time, with a user id of its own. Where the
//! secret reads claims, it carries limits: relaying between relayed addresses of this server only, and no more of it than
//! some tests need. So a link in the wrong hands relays no other traffic.

use serde::Deserialize;
use serde_json::{Value, json};

use super::refused::AdminRefused;
use crate::api::uris::{self, ServerUris};
use crate::api::{connectivity, rest};
use crate::config::Config;
use crate::credentials::claims::{Claim, Claims, Grant, PeerScope};
use crate::credentials::{self, Minted, SharedSecret};
use crate::net::Running;
use crate::time::UnixSeconds;

/// How long a credential for a test lives, in seconds: by default, at least and at most.
const TTL: u64 = 600;
const TTL_MIN: u64 = 60;
const TTL_MAX: u64 = 7 * 86_400;

/// What its limits are: a test takes 2 MB, at 250 kbit/s each way, by two allocations, and by some more while browsers
/// close those of the transport before.
const BYTES: u64 = 64 * 1024 * 1024;
const BITS_PER_SECOND: u64 = 2_000_000;
const ALLOCATIONS: u32 = 8;

/// Their user ids begin with it.
const USER: &str = "connectivity-test";
/// Links have users of their own, so that they share no quota, and one can be revoked.
const USER_ID_BYTES: usize = 4;

/// The body of the call.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct TestCredentialRequest {
    ttl: Option<u64>,
}

/// What one configuration says about it.
pub(super) struct TestCredentials {
    secrets: Vec<SharedSecret>,
    max_ttl: u64,
    servers: ServerUris,
    /// Where users find the page of the test.
    page: Option<String>,
}

/// A credential, and for the log whose.
pub(super) struct TestCredential {
    pub(super) user: String,
    pub(super) ttl: u64,
    pub(super) answer: Value,
}

impl TestCredentials {
    pub(super) fn new(config: &Config, running: &Running) -> Self {
        Self {
            secrets: config.auth.secrets.clone(),
            max_ttl: config.auth.max_ttl,
            servers: rest::uris_of(running, config),
            page: page(config, |ip| rest::told(running, config, ip)),
        }
    }

    /// Mints one; `user_id` makes its user another one than all before.
    pub(super) fn mint(
        &self,
        request: &TestCredentialRequest,
        now: UnixSeconds,
        user_id: [u8; USER_ID_BYTES],
    ) -> Result<TestCredential, AdminRefused> {
        let ttl = request.ttl.unwrap_or(TTL);
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            let text = format!("ttl is {ttl}: it must be from {TTL_MIN} to {TTL_MAX} seconds");
            return Err(AdminRefused::BadRequest(text.into()));
        }
        let ttl = ttl.min(self.max_ttl);
        let secret = credentials::minting(&self.secrets, now.0, None).ok_or(AdminRefused::NoCredential(
            "the server has no secret to make a credential with: add one to auth.secrets",
        ))?;
        let (uris, _) = self.servers.for_tenant(secret.tenant.as_deref());
        if uris.is_empty() {
            return Err(AdminRefused::NoCredential(
                "no listener has an address that clients can reach: set http.public_name or relay.external",
            ));
        }
        let user = format!("{USER}-{:08x}", u32::from_be_bytes(user_id));
        let claims = claims(secret, now.0.saturating_add(ttl));
        let minted = credentials::mint(secret, now.0, &user, ttl, &claims)
            .map_err(|_| AdminRefused::NoCredential("the credential would be too long"))?;
        let answer = json!({
            "iceServers": [{
                "urls": uris.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "username": minted.username,
                "credential": minted.password,
            }],
            "user": user,
            "expires_at": minted.expires_at,
            "is_limited": !claims.is_empty(),
            "link": self.page.as_ref().map(|page| link(page, &minted)),
        });
        Ok(TestCredential { user, ttl, answer })
    }
}

/// A user id that no other test has.
pub(super) fn fresh_user_id() -> Result<[u8; USER_ID_BYTES], AdminRefused> {
    let mut bytes = [0; USER_ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| AdminRefused::Busy("the system gives no random numbers".into()))?;
    Ok(bytes)
}

/// The limits that this secret reads.
fn claims(secret: &SharedSecret, closes_at: u64) -> Claims {
    let reads = |claim| secret.claims.has(claim);
    let grant = Grant {
        bytes: reads(Claim::Bytes).then_some(BYTES),
        bits_per_second: reads(Claim::Bitrate).then_some(BITS_PER_SECOND),
        allocations: reads(Claim::Allocations).then_some(ALLOCATIONS),
        peers: reads(Claim::Peers).then_some(PeerScope::Relay).into_iter().collect(),
        closes_at: reads(Claim::ClosesAt).then_some(closes_at),
        ..Grant::default()
    };
    Claims { grant, ..Claims::default() }
}

/// Where users find the page: on the first `https` listener of `http.public`, else on the first of them.
fn page(config: &Config, told: impl Fn(std::net::IpAddr) -> Option<std::net::IpAddr>) -> Option<String> {
    let public = &config.http.public;
    let listen = public.iter().find(|listen| listen.is_https).or(public.first())?;
    let names = uris::names(config);
    let name = if listen.is_https { names.certificate.or(names.public) } else { names.public };
    let host = name.map(str::to_owned).or_else(|| told(listen.address.ip()).map(|ip| ip.to_string()))?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let (scheme, usual_port) = if listen.is_https { ("https", 443) } else { ("http", 80) };
    match listen.address.port() {
        // What it has become is known to the log alone.
        0 => None,
        port if port == usual_port => Some(format!("{scheme}://{host}{}", connectivity::PATH)),
        port => Some(format!("{scheme}://{host}:{port}{}", connectivity::PATH)),
    }
}

/// What is behind the `#` is sent to no server, and stands in no log.
fn link(page: &str, minted: &Minted) -> String {
    let credential = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("username", &minted.username)
        .append_pair("credential", &minted.password)
        .finish();
    format!("{page}#{credential}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::claims::ClaimSet;
    use crate::credentials::{Algorithm, Secret};

    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

    fn test_credentials(claims: ClaimSet) -> TestCredentials {
        let mut secret = SharedSecret::new("main", Secret::new(*b"0123456789abcdef"), Algorithm::default());
        secret.claims = claims;
        TestCredentials {
            secrets: vec![secret],
            max_ttl: 86_400,
            servers: vec![crate::turn_uri::parse("turn:192.0.2.1:3478?transport=udp").unwrap()].into(),
            page: Some("https://turn.example.org/connectivity".to_owned()),
        }
    }

    fn minted(of: &TestCredentials, ttl: Option<u64>) -> Result<TestCredential, AdminRefused> {
        of.mint(&TestCredentialRequest { ttl }, NOW, [0, 1, 2, 3])
    }

    #[test]
    fn it_is_short_and_relays_within_this_server_only_where_the_secret_reads_claims() {
        let of = test_credentials(ClaimSet::of(&Claim::ALL));
        let TestCredential { user, ttl, answer } = minted(&of, None).unwrap();
        assert_eq!((&*user, ttl), ("connectivity-test-00010203", 600));
        let server = &answer["iceServers"][0];
        let (username, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
        let good = credentials::verify(&of.secrets, NOW.0, of.max_ttl, username, password.as_bytes()).unwrap();
        assert_eq!((good.holder.user_id, good.expires_at), (&*user, NOW.0 + 600));
        let grant = good.holder.grant;
        assert_eq!((grant.peers, grant.bytes), (vec![PeerScope::Relay], Some(BYTES)));
        assert_eq!((grant.allocations, grant.closes_at), (Some(ALLOCATIONS), Some(NOW.0 + 600)));
        assert_eq!(answer["is_limited"], true);
        let link = answer["link"].as_str().unwrap();
        let (page, fragment) = link.split_once('#').unwrap();
        assert_eq!(page, "https://turn.example.org/connectivity");
        let pairs: Vec<_> = url::form_urlencoded::parse(fragment.as_bytes()).into_owned().collect();
        assert_eq!(pairs, [("username".into(), username.to_owned()), ("credential".into(), password.to_owned())]);
    }

    #[test]
    fn a_secret_without_claims_mints_an_ordinary_one() {
        let answer = minted(&test_credentials(ClaimSet::default()), Some(120)).unwrap().answer;
        assert_eq!(answer["is_limited"], false);
        assert_eq!(answer["iceServers"][0]["username"], "1800000120:connectivity-test-00010203");
    }

    #[test]
    fn its_time_is_within_bounds_and_within_those_of_every_credential() {
        let of = test_credentials(ClaimSet::default());
        for wrong in [0, 59, 604_801, u64::MAX] {
            let Err(AdminRefused::BadRequest(text)) = minted(&of, Some(wrong)) else { panic!("{wrong} is refused") };
            assert!(text.contains(&wrong.to_string()) && text.contains("60 to 604800"), "{text}");
        }
        assert_eq!(minted(&of, Some(604_800)).unwrap().ttl, 86_400, "auth.max_ttl");
    }

    #[test]
    fn without_a_secret_or_an_address_it_says_what_to_set() {
        let without_secret = TestCredentials { secrets: Vec::new(), ..test_credentials(ClaimSet::default()) };
        let without_uris = TestCredentials { servers: ServerUris::default(), ..test_credentials(ClaimSet::default()) };
        for (of, key) in [(without_secret, "auth.secrets"), (without_uris, "http.public_name")] {
            let Err(AdminRefused::NoCredential(text)) = minted(&of, None) else { panic!("{key}") };
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn the_page_is_where_users_reach_it() {
        let digest = "0f".repeat(32);
        let of = |public: &str, name: &str| {
            let config = Config::with_a_secret(&format!(
                "http.public = [\"{public}\"]\nhttp.public_name = \"{name}\"\nhttp.keys = [{{ name = \"a\", sha256 = \"{digest}\" }}]"
            ));
            page(&config.unwrap(), Some)
        };
        assert_eq!(of("127.0.0.1:80", "turn.example.org").as_deref(), Some("http://turn.example.org/connectivity"));
        assert_eq!(of("127.0.0.1:8443", "2001:db8::7").as_deref(), Some("http://[2001:db8::7]:8443/connectivity"));
        assert_eq!(of("127.0.0.1:0", "turn.example.org"), None);
        assert_eq!(page(&Config::with_a_secret("").unwrap(), Some), None);
    }
}
