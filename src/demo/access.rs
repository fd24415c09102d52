//! Who may open the page: this machine as it is, other machines with the token of this run.
//!
//! What decides is the address that a connection comes from. The Host header is looked at too, against DNS rebinding, but a
//! client writes into it what it likes.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Uri, header};
use subtle::ConstantTimeEq as _;

use super::AllowedHosts;

/// Bytes of randomness in a token; twice as many characters in the link.
const TOKEN_BYTES: usize = 16;

/// The page on the local network.
#[derive(Clone)]
pub struct Shared {
    /// Where other machines reach the page.
    address: SocketAddr,
    token: String,
}

impl Shared {
    /// A page that other machines reach at `address`, with a token of its own.
    ///
    /// # Errors
    /// If the system's random source fails.
    pub fn new(address: SocketAddr) -> Result<Self, getrandom::Error> {
        let mut token = [0; TOKEN_BYTES];
        getrandom::fill(&mut token)?;
        Ok(Self { address, token: token.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// The link that opens the page from another machine; anyone with the link may use the demo.
    #[must_use]
    pub fn link(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    /// In constant time, so that a guess is no better for being right at its start.
    fn fits(&self, token: &str) -> bool {
        self.token.as_bytes().ct_eq(token.as_bytes()).into()
    }

    /// Cookies are not told apart by port, and two demos may run on one machine.
    fn cookie_name(&self) -> String {
        format!("throughway_demo_{}", self.address.port())
    }

    fn cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.token)
    }

    fn has_cookie(&self, headers: &HeaderMap) -> bool {
        let name = self.cookie_name();
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(key, value)| key == name && self.fits(value))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered.
    Welcome,
    /// The link was opened: from now on this cookie stands for its token.
    TakeCookie(String),
    /// It is refused, with this text.
    Refused(&'static str),
}

/// The rule for one demo.
#[derive(Clone, Debug, Default)]
pub struct Access {
    hosts: AllowedHosts,
    shared: Option<Shared>,
}

impl Access {
    /// This machine alone, or with `shared` also the machines whose people have the link.
    #[must_use]
    pub fn new(shared: Option<Shared>) -> Self {
        let hosts = AllowedHosts::new(shared.iter().map(|shared| shared.address.ip().to_string()));
        Self { hosts, shared }
    }

    /// The Host names that are answered.
    #[must_use]
    pub const fn hosts(&self) -> &AllowedHosts {
        &self.hosts
    }

    /// The link for other machines, if there is one.
    #[must_use]
    pub fn link(&self) -> Option<String> {
        self.shared.as_ref().map(Shared::link)
    }

    /// Judges a request that came from `peer`; without an address it counts as foreign.
    pub(super) fn judge(&self, peer: Option<IpAddr>, uri: &Uri, headers: &HeaderMap) -> Verdict {
        if self.hosts.check(headers).is_none() {
            return Verdict::Refused(
                "the demo does not have this host name: open the page at the address that the demo printed\n",
            );
        }
        if peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
            return Verdict::Welcome;
        }
        let Some(shared) = &self.shared else {
            return Verdict::Refused(
                "only the demo's own machine can open this page: start it with `throughway demo --lan` to open it to others\n",
            );
        };
        let in_link = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .any(|(key, value)| key == "token" && shared.fits(&value));
        if in_link {
            Verdict::TakeCookie(shared.cookie())
        } else if shared.has_cookie(headers) {
            Verdict::Welcome
        } else {
            Verdict::Refused(
                "this link is not valid, or not any longer: scan the QR code of the running demo, or open the link that it printed (each start makes a new link; cookies must be allowed)\n",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "192.0.2.7:8080";

    fn headers(host: &str, cookie: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(cookie) = cookie {
            headers.insert(header::COOKIE, cookie.parse().unwrap());
        }
        headers
    }

    fn verdict(access: &Access, peer: &str, path: &str, host: &str, cookie: Option<&str>) -> Verdict {
        access.judge(Some(peer.parse().unwrap()), &path.parse().unwrap(), &headers(host, cookie))
    }

    // F-C2: what a client writes into Host makes it no neighbour of the server.
    #[test]
    fn without_lan_another_machine_gets_nothing_whatever_host_it_names() {
        let access = Access::new(None);
        for host in ["127.0.0.1:8080", "localhost", "[::1]:8080", PAGE] {
            for peer in ["192.0.2.9", "2001:db8::9", "::ffff:192.0.2.9", "10.0.0.1"] {
                let verdict = verdict(&access, peer, "/config?user=a&transport=udp&token=", host, None);
                assert!(matches!(verdict, Verdict::Refused(_)), "{peer} {host}: {verdict:?}");
            }
        }
        for peer in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(verdict(&access, peer, "/", "127.0.0.1:8080", None), Verdict::Welcome, "{peer}");
        }
        assert!(matches!(access.judge(None, &"/".parse().unwrap(), &headers("localhost", None)), Verdict::Refused(_)));
    }

    // F-C2
    #[test]
    fn with_lan_another_machine_needs_the_token_in_the_link_or_as_a_cookie() {
        let shared = Shared::new(PAGE.parse().unwrap()).unwrap();
        let (token, name) = (shared.token.clone(), shared.cookie_name());
        let access = Access::new(Some(shared));
        let (half, other) = (&token[..16], Shared::new(PAGE.parse().unwrap()).unwrap().token);
        for wrong in ["", "0", half, &other, &format!("{token}0")] {
            for host in [PAGE, "127.0.0.1:8080"] {
                let in_link = verdict(&access, "192.0.2.9", &format!("/?token={wrong}"), host, None);
                assert!(matches!(in_link, Verdict::Refused(_)), "{wrong}");
                let cookie = format!("{name}={wrong}");
                let in_cookie = verdict(&access, "192.0.2.9", "/config", host, Some(&cookie));
                assert!(matches!(in_cookie, Verdict::Refused(_)), "{wrong}");
            }
        }
        let Verdict::TakeCookie(cookie) = verdict(&access, "192.0.2.9", &format!("/?token={token}"), PAGE, None) else {
            panic!("the link opens the page");
        };
        let (pair, rest) = cookie.split_once(';').unwrap();
        assert!(rest.contains("HttpOnly") && rest.contains("SameSite=Strict"), "{rest}");
        let later = format!("other=1; {pair}");
        assert_eq!(verdict(&access, "192.0.2.9", "/config", PAGE, Some(&later)), Verdict::Welcome);
        // The token does not make a rebound name one of ours.
        let rebound = verdict(&access, "192.0.2.9", &format!("/?token={token}"), "attacker.example", Some(pair));
        assert!(matches!(rebound, Verdict::Refused(_)));
        // This machine needs none.
        assert_eq!(verdict(&access, "127.0.0.1", "/config", "127.0.0.1:8080", None), Verdict::Welcome);
    }

    #[test]
    fn each_run_has_a_link_of_its_own_and_it_does_not_print() {
        let [a, b] = [0; 2].map(|_| Shared::new(PAGE.parse().unwrap()).unwrap());
        assert_ne!(a.link(), b.link());
        assert!(a.link().starts_with("http://192.0.2.7:8080/?token="));
        assert_eq!(a.token.len(), 2 * TOKEN_BYTES);
        assert!(!format!("{a:?}").contains(&a.token));
    }
}
