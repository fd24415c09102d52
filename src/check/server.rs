//! The steps for one server at one address over one transport, in the order in which each needs the one before.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::address::{Family, Transport};
use crate::check::answer::Login;
use crate::check::client::{Client, Failed, Refused, ServerAnswer};
use crate::check::link::{Link, NoAnswer};
use crate::check::relay::{self, FarEnd};
use crate::check::remedy::{self, RelayedLook};
use crate::check::report::{Outcome, Section, Step};
use crate::check::skew::{self, Minter};
use crate::check::tls::{self, BadCertificate, Trust};
use crate::check::{Options, Progress, foreign, traffic};
use crate::credentials::parse_username;
use crate::turn_uri::{Scheme, TurnUri};

/// What is looked at, and with what.
#[derive(Clone, Copy)]
pub(super) struct Server<'a> {
    pub(super) uri: &'a TurnUri,
    pub(super) address: SocketAddr,
    pub(super) login: Option<&'a Login>,
    pub(super) options: &'a Options,
    pub(super) trust: &'a Trust,
}

/// Seconds since 1970 by this machine's clock.
#[allow(
    clippy::disallowed_methods,
    reason = "what is checked is this clock beside others; the core gets its own from net::clock"
)]
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A failed request as a step.
pub(super) fn failed(step: &'static str, request: &str, error: &Failed, login: Option<&Login>) -> Step {
    match error {
        Failed::Refused(refused) => {
            let refusal = remedy::refused(request, refused.code, &refused.reason, login, unix_now());
            let to = refused.alternate.map(|address| format!("; it sends clients to {address}")).unwrap_or_default();
            Step::fail(step, refusal.detail + &to, refusal.remedy).with("code", refused.code)
        }
        Failed::NoAnswer(error) => Step::fail(
            step,
            format!("{request}: {}", error.text()),
            "the server answered before, so look at its log for this moment, and for loss on the way",
        ),
        Failed::Strange(what) => Step::fail(
            step,
            format!("{request}: {what}"),
            "check what else listens on that port, or changes packets on the way",
        ),
    }
}

impl Server<'_> {
    /// Runs all steps; what was allocated is given back.
    pub(super) async fn check(&self, progress: &mut Progress) -> Section {
        let mut section = Section::new(self.uri.to_string(), Some(self.address), self.uri.transport.name());
        self.steps(&mut section.steps, progress).await;
        section
    }

    async fn steps(&self, steps: &mut Vec<Step>, progress: &mut Progress) {
        progress.show("reach");
        let nobody = Login { username: String::new(), password: String::new() };
        let (link, mut seen) = self.connect().await;
        steps.append(&mut seen);
        let Some(link) = link else { return };
        let mut client = Client::new(link, self.login.unwrap_or(&nobody).clone());
        let Some(mapped) = self.binding(&client, steps).await else { return };
        progress.show("round-trip time");
        steps.push(traffic::round_trips(&client).await);
        if self.uri.scheme == Scheme::Stun {
            return;
        }
        progress.show("allocate");
        if !self.challenge(&mut client, steps).await {
            return;
        }
        if self.login.is_none() {
            let detail = "there are no credentials to allocate with";
            steps.push(Step::warn("allocate", detail, "give --username and --password, or --config"));
            return;
        }
        let Some(relayed) = self.allocate(&mut client, steps).await else { return };
        self.relay(&mut client, relayed, mapped, steps, progress).await;
        progress.show("release");
        steps.push(match client.release().await {
            Ok(()) => Step::ok("release", "the allocation ended when told to"),
            Err(error) => failed("release", "Refresh with lifetime 0", &error, self.login),
        });
        if let Some((minter, ttl)) = self.minted() {
            progress.show("the clock");
            steps.push(skew::look(self, minter, ttl).await);
        }
        progress.show("the other address family");
        steps.push(self.other_family(relayed, mapped).await);
    }

    /// A new five-tuple to the server, without a word about it.
    pub(super) async fn connect_quietly(&self) -> Result<Link, NoAnswer> {
        match self.connect().await {
            (Some(link), _) => Ok(link),
            (None, _) => Err(NoAnswer::Silence),
        }
    }

    async fn connect(&self) -> (Option<Link>, Vec<Step>) {
        let within = self.options.timeout;
        if self.uri.transport == Transport::Udp {
            return match Link::udp(self.address, within).await {
                Ok(link) => (Some(link), Vec::new()),
                Err(error) => (None, vec![self.unreachable(&error)]),
            };
        }
        let stream = match Link::connect(self.address, within).await {
            Ok(stream) => stream,
            Err(error) => return (None, vec![self.unreachable(&error)]),
        };
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => return (None, vec![self.unreachable(&NoAnswer::of(&error))]),
        };
        let mut steps = vec![Step::ok("reach", "TCP connects")];
        if self.uri.transport == Transport::Tcp {
            return (Some(Link::stream(stream, local, within)), steps);
        }
        let alpn = if self.uri.scheme == Scheme::Turn { "stun.turn" } else { "stun.nat-discovery" };
        let on_bad = BadCertificate::IsNoted;
        let (stream, mut seen) =
            tls::handshake(stream, &self.uri.host, self.trust, on_bad, &[alpn], within, unix_now()).await;
        steps.append(&mut seen);
        (stream.map(|stream| Link::stream(stream, local, within)), steps)
    }

    fn unreachable(&self, error: &NoAnswer) -> Step {
        let port = self.uri.port;
        let remedy = match (error, self.uri.transport) {
            (NoAnswer::NoRoute, _) => {
                let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
                return Step::skip(
                    "reach",
                    format!("this machine has no {family} route there; check from one that has"),
                );
            }
            (NoAnswer::Silence, Transport::Udp) => remedy::silent_udp(port, false),
            (NoAnswer::Silence, Transport::Tcp | Transport::Tls) => {
                format!("open TCP port {port} in the firewall of the server and of its provider, and check the address")
            }
            (NoAnswer::Refused, transport) => format!(
                "the machine is there, but nothing listens on {} port {port}: start the server, and check listen.{} and the port of the URI",
                if transport == Transport::Udp { "UDP" } else { "TCP" },
                transport.name()
            ),
            (NoAnswer::Closed(_), _) => "see the server's log for this moment".to_owned(),
        };
        Step::fail("reach", error.text(), remedy)
    }

    /// Binding; for UDP this is also what tells whether the server is there.
    async fn binding(&self, client: &Client, steps: &mut Vec<Step>) -> Option<SocketAddr> {
        let answer = match client.binding().await {
            Ok(answer) => answer,
            Err(Failed::NoAnswer(error)) if self.uri.transport == Transport::Udp => {
                steps.push(self.unreachable(&error));
                return None;
            }
            Err(Failed::NoAnswer(error)) => {
                let remedy =
                    "something else than a TURN server accepts connections there, or a proxy in between swallows them";
                steps.push(Step::fail("binding", format!("Binding: {}", error.text()), remedy));
                return None;
            }
            Err(error) => {
                steps.push(failed("binding", "Binding", &error, None));
                return None;
            }
        };
        if self.uri.transport == Transport::Udp {
            steps.push(Step::ok("reach", "the server answers"));
        }
        if let Some(refused) = &answer.refused {
            steps.push(failed("binding", "Binding", &Failed::Refused(refused.clone()), None));
            return None;
        }
        let Some(mapped) = answer.mapped else {
            steps.push(failed("binding", "Binding", &Failed::Strange("success without XOR-MAPPED-ADDRESS"), None));
            return None;
        };
        let local = client.link.local;
        let is_nat = !local.ip().is_unspecified() && local.ip() != mapped.ip() || local.port() != mapped.port();
        let seen = if is_nat { "behind a NAT, seen" } else { "seen" };
        steps.push(Step::ok("binding", format!("{seen} as {mapped}")).with("mapped", mapped.to_string()));
        Some(mapped)
    }

    /// The unsigned Allocate, which must be refused with what is needed to sign the next.
    async fn challenge(&self, client: &mut Client, steps: &mut Vec<Step>) -> bool {
        let answer = match client.allocate_unsigned().await {
            Ok(answer) => answer,
            Err(error) => {
                steps.push(failed("challenge", "Allocate without credentials", &error, None));
                return false;
            }
        };
        let (step, goes_on) = judge_challenge(&answer);
        steps.push(step);
        goes_on && client.accept_challenge(&answer)
    }

    async fn allocate(&self, client: &mut Client, steps: &mut Vec<Step>) -> Option<SocketAddr> {
        let answer = match client.allocate(None).await {
            Ok(answer) => answer,
            Err(error) => {
                let step = failed("allocate", "Allocate", &error, self.login);
                steps.push(match (&error, self.minted()) {
                    (Failed::Refused(Refused { code: 401, .. }), Some((minter, ttl))) => {
                        skew::explain(self, minter, ttl, step).await
                    }
                    _ => step,
                });
                return None;
            }
        };
        let relayed = answer.relayed?;
        let lifetime = answer.lifetime.unwrap_or(0);
        let detail = format!("granted {relayed} for {lifetime} s");
        steps.push(
            match (answer.is_signed, lifetime) {
                (false, _) => Step::fail("allocate", format!("{detail}, but the answer's MESSAGE-INTEGRITY is {}", if answer.has_integrity { "wrong" } else { "missing" }), "clients drop such answers: check the server's version, and whether something between changes packets"),
                (true, 0..60) => Step::warn("allocate", detail, "so short a lifetime makes clients refresh without end: raise turn.default_lifetime"),
                (true, _) => Step::ok("allocate", detail),
            }
            .with("lifetime", lifetime)
            .with("relayed", relayed.to_string()),
        );
        steps.push(match remedy::relayed(self.address.ip(), relayed.ip()) {
            RelayedLook::Fine(detail) => Step::ok("relayed-address", detail),
            RelayedLook::Odd(detail, remedy) => {
                Step::warn("relayed-address", format!("{}: {detail}", relayed.ip()), remedy)
            }
            RelayedLook::Wrong(detail, remedy) => {
                Step::fail("relayed-address", format!("{}: {detail}", relayed.ip()), remedy)
            }
        });
        steps.push(match client.refresh().await {
            Ok(seconds) => Step::ok("refresh", format!("good for {seconds} s more")),
            Err(error) => failed("refresh", "Refresh", &error, self.login),
        });
        Some(relayed)
    }

    /// Data through the relay: to a second allocation, to a plain socket, and from another client's code.
    async fn relay(
        &self,
        client: &mut Client,
        relayed: SocketAddr,
        mapped: SocketAddr,
        steps: &mut Vec<Step>,
        progress: &mut Progress,
    ) {
        progress.show("relay to relay");
        let (second, hairpin) = relay::hairpin(self, client, None).await;
        progress.show("a peer");
        let (plain, peer) = relay::plain_peer(self, client, relayed, mapped, hairpin.outcome == Outcome::Ok).await;
        let (hairpin_works, peer_works) = (hairpin.outcome == Outcome::Ok, peer.outcome == Outcome::Ok);
        steps.push(relay::judge_hairpin(hairpin, peer_works));
        steps.push(relay::judge_peer(peer, hairpin_works));
        // What carries the figures: the second allocation, or the plain socket where that fails.
        let mut second = second;
        let far = match (&mut second, plain) {
            (Some(second), _) if hairpin_works => {
                second.relayed.map(|address| FarEnd::Client { address, client: second, to: relayed })
            }
            (_, Some(plain)) if peer_works => Some(plain),
            _ => None,
        };
        let Some(mut far) = far else {
            let detail = "data passes neither to a second allocation nor to a peer";
            if !steps.iter().any(|step| step.outcome == Outcome::Fail) {
                steps.push(Step::warn(
                    "channels",
                    detail,
                    "allow a peer that this check can be, or run it from elsewhere",
                ));
            } else {
                steps.push(Step::skip("channels", detail));
            }
            self.release_second(second).await;
            return;
        };
        progress.show("channels");
        let channels = relay::channels(self, client, &mut far).await;
        let are_bound = channels.outcome == Outcome::Ok;
        steps.push(channels);
        if are_bound {
            progress.show("sizes");
            steps.push(traffic::sizes(client, &mut far, self.options.timeout).await);
            if self.options.burst.seconds() > 0.0 {
                progress.show("burst");
                steps.push(traffic::burst(client, &mut far, &self.options.burst).await);
            }
        }
        drop(far);
        self.release_second(second).await;
        if self.uri.transport == Transport::Udp && hairpin_works {
            progress.show("another client's code");
            steps.push(foreign::meet(self, client, relayed).await);
        }
    }

    /// What made the login, and how long it is good for; nothing where it came from elsewhere.
    fn minted(&self) -> Option<(&Minter, u64)> {
        let minter = self.options.minter.as_ref().filter(|_| self.login == self.options.login.as_ref())?;
        let ends = parse_username(&self.login?.username)?.expires_at;
        Some((minter, ends.saturating_sub(unix_now())))
    }

    /// So that the checks that follow, and the user, don't run into a quota.
    pub(super) async fn release_second(&self, second: Option<Client>) {
        if let Some(mut second) = second
            && second.relayed.is_some()
        {
            // Should this be lost, the allocation ends by its lifetime.
            let _ = second.release().await;
        }
    }

    async fn other_family(&self, relayed: SocketAddr, mapped: SocketAddr) -> Step {
        let (family, name) = if relayed.is_ipv4() { (Family::V6, "IPv6") } else { (Family::V4, "IPv4") };
        let link = match self.connect_quietly().await {
            Ok(link) => link,
            Err(error) => return failed("other-family", "a new connection", &Failed::NoAnswer(error), None),
        };
        let login = self.login.cloned().unwrap_or(Login { username: String::new(), password: String::new() });
        let mut client = Client::new(link, login);
        match client.allocate(Some(family)).await {
            Ok(_) => {}
            Err(Failed::Refused(refused)) if refused.code == 440 => {
                return Step::skip("other-family", format!("the server relays no {name} (440)"));
            }
            Err(error) => return failed("other-family", &format!("Allocate for {name}"), &error, self.login),
        }
        let granted = client.relayed.map(|address| address.to_string()).unwrap_or_default();
        let (second, hairpin) = relay::hairpin(self, &mut client, Some(family)).await;
        // Where this machine has that family too, it is also a peer from outside.
        let peer = match client.relayed {
            Some(relayed) if relayed.is_ipv4() == mapped.is_ipv4() => {
                relay::plain_peer(self, &mut client, relayed, mapped, hairpin.outcome == Outcome::Ok).await.1
            }
            Some(_) | None => Step::skip("peer", ""),
        };
        self.release_second(second).await;
        self.release_second(Some(client)).await;
        if peer.outcome == Outcome::Fail {
            return Step { name: "other-family", detail: format!("{name}: {}", peer.detail), ..peer };
        }
        match hairpin.outcome {
            Outcome::Ok => Step::ok("other-family", format!("{name} is relayed too: {granted}")),
            Outcome::Skip => Step::ok("other-family", format!("{name} is granted: {granted}; {}", hairpin.detail)),
            Outcome::Warn | Outcome::Fail => Step::warn(
                "other-family",
                format!("{name} is granted ({granted}), but data does not pass: {}", hairpin.detail),
                format!("check the server's {name} address, route and firewall, or relay no {name} (relay.addresses)"),
            ),
        }
    }
}

/// Judges the answer to an Allocate without credentials; whether the check can go on.
fn judge_challenge(answer: &ServerAnswer) -> (Step, bool) {
    let software = answer.software.as_deref().map(|name| format!(", software {}", remedy::printable(name)));
    match (&answer.refused, &answer.realm, &answer.nonce) {
        (None, _, _) => (
            Step::fail(
                "challenge",
                "granted without any credentials: this is an open relay",
                "require credentials at once: anyone can send traffic through this server (coturn: lt-cred-mech or use-auth-secret)",
            ),
            false,
        ),
        (Some(refused), Some(realm), Some(nonce)) if refused.code == 401 => {
            let realm = remedy::printable(&String::from_utf8_lossy(realm));
            let detail = format!("realm {realm:?}, nonce of {} bytes{}", nonce.len(), software.unwrap_or_default());
            (Step::ok("challenge", detail).with("realm", realm), true)
        }
        (Some(refused), _, _) if refused.code == 401 => (
            Step::fail(
                "challenge",
                "401 without realm or nonce",
                "clients can't sign without them: check the server's version and its realm",
            ),
            false,
        ),
        (Some(refused), _, _) => {
            (failed("challenge", "Allocate without credentials", &Failed::Refused(refused.clone()), None), false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_relay_is_a_failure_and_a_challenge_is_not() {
        let answer = |code: Option<u16>, realm: Option<&str>| ServerAnswer {
            refused: code.map(|code| Refused { code, reason: String::new(), alternate: None }),
            mapped: None,
            relayed: None,
            lifetime: None,
            realm: realm.map(Into::into),
            nonce: realm.map(|_| vec![0; 24]),
            software: Some("x\u{7}".into()),
            has_integrity: false,
            is_signed: false,
        };
        let (step, goes_on) = judge_challenge(&answer(None, None));
        assert!(step.detail.contains("open relay") && step.outcome == Outcome::Fail && !goes_on);
        let (step, goes_on) = judge_challenge(&answer(Some(401), Some("example")));
        assert!(goes_on && step.detail == "realm \"example\", nonce of 24 bytes, software x?", "{step:?}");
        assert!(!judge_challenge(&answer(Some(401), None)).1);
        let (step, goes_on) = judge_challenge(&answer(Some(300), None));
        assert!(!goes_on && step.detail.contains("300"), "{step:?}");
    }
}
