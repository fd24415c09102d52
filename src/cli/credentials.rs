//! `credentials mint` and `credentials verify`.

use std::io::{self, Write};
use std::net::{IpAddr, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::api::rest::limits::in_words;
use crate::api::uris::{self, Uri};
use crate::check::answer::Login;
use crate::check::skew::Minter;
use crate::cli::{Failure, LimitOptions, MintOptions, VerifyOptions, load_existing};
use crate::config::{Config, parse_duration, parse_instant, parse_rate, parse_size};
use crate::credentials::claims::{Claims, Grant, PeerScope, Transports};
use crate::credentials::{self, CredentialRefused, MintRefused, USERNAME_BYTES_MAX};
use crate::protocol::address::{Family, Transport};
use crate::protocol::settings::StaticKey;

pub(super) fn mint(options: &MintOptions) -> Result<(), Failure> {
    let ttl =
        parse_duration(&options.ttl).map_err(|message| Failure::Usage(format!("--ttl {}: {message}", options.ttl)))?;
    let config = load_existing(options.config.as_deref())?;
    let now = unix_now()?;
    let claims = claims_of(&options.limits).map_err(Failure::Usage)?;
    let answer = mint_with(&config, &options.user, ttl, now, &claims, address_to_the_world).map_err(Failure::Usage)?;
    let text = if options.json { answer.to_string() } else { format!("{answer:#}") };
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// A short-lived credential for `check`, and the servers that the configuration offers.
pub(super) fn mint_for_check(
    config: &Config,
    user: &'static str,
    ttl: u64,
) -> Result<(Login, Minter, Vec<String>), String> {
    let now = unix_now().map_err(|error| error.to_string())?;
    let secret = credentials::minting(&config.auth.secrets, now).ok_or(
        "no secret to mint with: add [[auth.secrets]] to the configuration, or give --username and --password instead",
    )?;
    let minted = credentials::mint(secret, now, user, ttl.min(config.auth.max_ttl), &Claims::default());
    let minted = minted.map_err(|error| error.to_string())?;
    let login = Login { username: minted.username, password: minted.password };
    let minter = Minter { secret: secret.clone(), user, ttl_max: config.auth.max_ttl };
    Ok((login, minter, urls(config, address_to_the_world)))
}

fn mint_with(
    config: &Config,
    user: &str,
    ttl: u64,
    now: u64,
    claims: &Claims,
    local: impl Fn(Family) -> Option<IpAddr>,
) -> Result<Value, String> {
    let secret = credentials::minting(&config.auth.secrets, now)
        .ok_or("no secret to mint with: add [[auth.secrets]] to the configuration, or set THROUGHWAY_AUTH__SECRET")?;
    if ttl == 0 || ttl > config.auth.max_ttl {
        return Err(format!(
            "--ttl: {ttl} s is refused by the server: auth.max_ttl allows 1 s to {} s",
            config.auth.max_ttl
        ));
    }
    // What the secret says of the tenant need not be said again.
    let tenant = claims.tenant.clone().filter(|tenant| secret.tenant.as_ref() != Some(tenant));
    let claims = Claims { tenant, ..claims.clone() };
    let minted = credentials::mint(secret, now, user, ttl, &claims).map_err(|error| match error {
        MintRefused::Separator | MintRefused::TooLong => format!("--user: {error}"),
        MintRefused::ClaimsTooLong => format!("--peers: {error}"),
        MintRefused::NotRead(_) => format!("{error} (\"{}\" mints)", secret.id),
    })?;
    if user.chars().any(char::is_control) {
        return Err(format!(
            "--user: the username, expiry included, has at most {USERNAME_BYTES_MAX} bytes and no control characters"
        ));
    }
    if config.auth.users.contains_key(minted.username.as_str()) {
        return Err(
            "auth.users has an entry of this very name, which is looked up first; mint again in a second".to_owned()
        );
    }
    let urls = urls(config, local);
    if urls.is_empty() {
        return Err("no URL to give: no listener has an address that clients could reach; set relay.external to the public one, or name an address in listen.udp".to_owned());
    }
    Ok(json!({
        "iceServers": [{ "urls": urls, "username": minted.username, "credential": minted.password }],
        "expires_at": minted.expires_at,
        "ttl": ttl,
        "secret": &*secret.id,
    }))
}

/// What the options say; each value as the configuration has it.
fn claims_of(options: &LimitOptions) -> Result<Claims, String> {
    let some =
        |number: u64, flag: &str| if number > 0 { Ok(number) } else { Err(format!("--{flag} 0 would allow nothing")) };
    let read = |text: &Option<String>, flag: &str, parse: fn(&str) -> Result<u64, String>| match text {
        None => Ok(None),
        Some(text) => {
            let number = parse(text).map_err(|message| format!("--{flag} {text}: {message}"))?;
            some(number, flag).map(Some)
        }
    };
    let peers = match options.peers.as_slice() {
        [] => Vec::new(),
        [word] if word == "relay" => vec![PeerScope::Relay],
        list => {
            let net = |text: &String| {
                let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
                let wrong = || format!("--peers {text}: expected \"relay\", or prefixes such as 198.51.100.0/24");
                text.parse::<IpNet>().ok().or_else(one).map(|net| net.trunc()).ok_or_else(wrong)
            };
            vec![PeerScope::Prefixes(list.iter().map(net).collect::<Result<_, _>>()?)]
        }
    };
    let transport = |text: &String| {
        let known = Transport::ALL.into_iter().find(|transport| transport.name() == text);
        known.ok_or_else(|| format!("--transports {text}: expected udp, tcp or tls"))
    };
    let transports = options.transports.iter().map(transport).collect::<Result<Vec<_>, _>>()?;
    let closes_at = match &options.close_at {
        None => None,
        Some(text) => Some(parse_instant(text).ok_or_else(|| {
            format!(
                "--close-at {text}: expected a day such as 2026-12-31, or a time such as 2026-12-31T12:00:00Z (UTC)"
            )
        })?),
    };
    let tenant = options.tenant.as_deref();
    if tenant.is_some_and(|name| name.is_empty() || name.len() > 64 || name.chars().any(char::is_control)) {
        return Err("--tenant: a tenant's name has 1 to 64 bytes and no control characters".to_owned());
    }
    Ok(Claims {
        grant: Grant {
            bytes: read(&options.bytes, "bytes", parse_size)?,
            bits_per_second: read(&options.bitrate, "bitrate", parse_rate)?,
            allocations: match options.allocations {
                Some(0) => return Err("--allocations 0 would allow nothing".to_owned()),
                count => count,
            },
            peers,
            transports: (!transports.is_empty()).then(|| Transports::of(&transports)),
            closes_at,
            ..Grant::default()
        },
        tenant: tenant.map(Into::into),
        nonce: None,
    })
}

/// One TURN URI per listener (RFC 7065): a wildcard becomes the address that clients are told.
fn urls(config: &Config, local: impl Fn(Family) -> Option<IpAddr>) -> Vec<String> {
    let listeners = config.listen.iter().map(|listen| (listen.transport, listen.address));
    let uris = uris::of_listeners(listeners, &uris::names(config), |ip| {
        if !ip.is_unspecified() {
            return Some(config.relay.external.advertised(ip));
        }
        let family = Family::of(ip);
        let public = config.relay.external.public().into_iter().find(|public| Family::of(*public) == family);
        let relay = || config.relay.addresses.iter().copied().find(|relay| Family::of(*relay) == family);
        public.or_else(relay).or_else(|| local(family))
    });
    uris::few(uris).iter().map(Uri::turn).collect()
}

/// The address of ours that the route to the world starts from; connecting a UDP socket sends nothing.
fn address_to_the_world(family: Family) -> Option<IpAddr> {
    let (from, to) = match family {
        Family::V4 => ("0.0.0.0:0", "198.41.0.4:53"),
        Family::V6 => ("[::]:0", "[2001:503:ba3e::2:30]:53"),
    };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// What `verify` found.
#[derive(Debug, PartialEq, Eq)]
enum Verdict<'a> {
    Static,
    Secret { id: &'a str, algorithm: &'static str, user_id: &'a str, expires_at: u64, may: Claims },
    Refused(CredentialRefused),
}

pub(super) fn verify(options: &VerifyOptions) -> Result<(), Failure> {
    let config = load_existing(options.config.as_deref())?;
    let now = unix_now()?;
    let verdict = verdict(&config, &options.username, &options.password, now);
    let mut out = io::stdout().lock();
    if options.json {
        writeln!(out, "{}", verdict_json(&verdict))?;
    } else {
        writeln!(out, "{}", verdict_text(&verdict, now))?;
    }
    match verdict {
        Verdict::Refused(_) => Err(Failure::Said(1)),
        Verdict::Static | Verdict::Secret { .. } => Ok(()),
    }
}

/// Judges as the server does: static users by exact name first, then `digits[:id]`.
fn verdict<'a>(config: &'a Config, username: &'a str, password: &str, now: u64) -> Verdict<'a> {
    if let Some(user) = config.auth.users.get(username) {
        let fits = match &user.key {
            StaticKey::Password(known) => bool::from(known.expose().ct_eq(password.as_bytes())),
            StaticKey::KeyMd5(known) => {
                use md5::Digest;
                let digest = md5::Md5::digest(format!("{username}:{}:{password}", config.realm));
                bool::from(known.expose().ct_eq(digest.as_slice()))
            }
        };
        return if fits { Verdict::Static } else { Verdict::Refused(CredentialRefused::BadIntegrity) };
    }
    match credentials::verify(&config.auth.secrets, now, config.auth.max_ttl, username, password.as_bytes()) {
        Ok(good) => Verdict::Secret {
            id: &good.secret.id,
            algorithm: good.secret.algorithm.name(),
            user_id: good.holder.user_id,
            expires_at: good.expires_at,
            may: Claims { grant: good.holder.grant, tenant: good.holder.tenant, nonce: None },
        },
        Err(refused) => Verdict::Refused(refused),
    }
}

fn verdict_text(verdict: &Verdict<'_>, now: u64) -> String {
    match verdict {
        Verdict::Static => "good: a static user of auth.users".to_owned(),
        Verdict::Secret { id, algorithm, user_id, expires_at, may } => {
            let left = match expires_at.checked_sub(now) {
                Some(left) => format!("ends in {left} s"),
                None => "ended just now, within the tolerance for clocks that differ".to_owned(),
            };
            let may = if may.is_empty() { String::new() } else { format!("; {}", in_words(may)) };
            format!("good: secret \"{id}\" ({algorithm}), user id \"{user_id}\", {left}{may}")
        }
        Verdict::Refused(refused) => format!("refused: {refused}"),
    }
}

fn verdict_json(verdict: &Verdict<'_>) -> Value {
    match verdict {
        Verdict::Static => json!({ "valid": true, "static": true }),
        Verdict::Secret { id, algorithm, user_id, expires_at, may } => json!({
            "valid": true, "static": false, "secret": id, "algorithm": algorithm,
            "user": user_id, "expires_at": expires_at, "tenant": may.tenant, "limits": in_words(&Claims { tenant: None, ..may.clone() }),
        }),
        Verdict::Refused(refused) => {
            let text = refused.to_string();
            let remedy = text.strip_prefix(refused.reason()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
            json!({ "valid": false, "reason": refused.reason(), "remedy": remedy })
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command reads the clock once; the core and the workers get theirs from net::clock"
)]
fn unix_now() -> Result<u64, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_secs())
        .map_err(|_| Failure::Run("the clock of this machine stands before 1970; set it".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::checked::Listen;

    fn config(text: &str) -> Config {
        Config::from_toml("c.toml", &format!("{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\n")).unwrap()
    }

    fn urls_of(text: &str) -> Vec<String> {
        urls(&config(text), |family| (family == Family::V4).then(|| "192.0.2.7".parse().unwrap()))
    }

    #[test]
    fn wildcard_listeners_become_the_address_that_clients_are_told() {
        assert_eq!(urls_of(""), ["turn:192.0.2.7:3478?transport=udp", "turn:192.0.2.7:3478?transport=tcp"]);
        assert_eq!(
            urls_of("listen.tcp = []\nrelay.external = [\"203.0.113.7\", \"2001:db8::7\"]"),
            ["turn:203.0.113.7:3478?transport=udp", "turn:[2001:db8::7]:3478?transport=udp"]
        );
        assert_eq!(
            urls_of(
                "listen.tcp = []\nlisten.udp = [\"10.0.0.5:443\"]\nrelay.external = { \"10.0.0.5\" = \"203.0.113.7\" }"
            ),
            ["turn:203.0.113.7:443?transport=udp"]
        );
        assert_eq!(
            urls_of("listen.udp = []\nlisten.tcp = [\"0.0.0.0:3478\"]\nrelay.addresses = [\"198.51.100.4\"]"),
            ["turn:198.51.100.4:3478?transport=tcp"]
        );
    }

    #[test]
    fn tls_listeners_become_turns_uris_under_the_certificates_name() {
        let mut config = config("listen.udp = []\nlisten.tcp = [\"192.0.2.7:3478\"]");
        let address = config.listen[0].address;
        // As listen.auto stands in a configuration: one address, once for each transport.
        config.listen[0].is_auto = true;
        config.listen.push(Listen { transport: Transport::Tls, address, is_auto: true });
        let plain = "turn:192.0.2.7:3478?transport=tcp";
        assert_eq!(urls(&config, |_| None), [plain, "turns:192.0.2.7:3478?transport=tcp"]);
        config.tls.name = Some("turn.example.org".into());
        assert_eq!(urls(&config, |_| None), [plain, "turns:turn.example.org:3478?transport=tcp"]);
    }

    #[test]
    fn minted_credentials_are_found_good_and_lifetimes_beyond_the_servers_are_not_minted() {
        let config = config("listen.udp = [\"127.0.0.1:3478\"]\nlisten.tcp = []");
        let answer = mint_with(&config, "bob", 60, 1000, &Claims::default(), |_| None).unwrap();
        let server = &answer["iceServers"][0];
        assert_eq!(server["username"], "1060:bob");
        assert_eq!(server["urls"], json!(["turn:127.0.0.1:3478?transport=udp"]));
        let password = server["credential"].as_str().unwrap();
        assert_eq!(
            verdict(&config, "1060:bob", password, 1000),
            Verdict::Secret { id: "s", algorithm: "sha1", user_id: "bob", expires_at: 1060, may: Claims::default() }
        );
        assert_eq!(verdict(&config, "1060:bob", "wrong", 1000), Verdict::Refused(CredentialRefused::BadIntegrity));
        assert!(
            mint_with(&config, "bob", 172_801, 1000, &Claims::default(), |_| None)
                .unwrap_err()
                .contains("auth.max_ttl")
        );
        assert!(
            mint_with(&config, &"x".repeat(600), 60, 1000, &Claims::default(), |_| None)
                .unwrap_err()
                .contains("--user")
        );
    }

    #[test]
    fn limits_go_into_the_credential_and_are_said_in_words() {
        let config = Config::from_toml(
            "c.toml",
            "listen.udp = [\"127.0.0.1:3478\"]\nlisten.tcp = []\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\nclaims = true\ntenant = \"acme\"\n\
             limits = { bytes_per_day = \"2GiB\" }",
        )
        .unwrap();
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let options = LimitOptions {
            bytes: Some("1GiB".to_owned()),
            bitrate: Some("3Mbit/s".to_owned()),
            allocations: Some(2),
            peers: texts(&["192.0.2.7", "2001:db8::/32"]),
            transports: texts(&["tls"]),
            close_at: Some("2026-12-31".to_owned()),
            tenant: Some("acme".to_owned()),
        };
        let answer = mint_with(&config, "bob", 60, 1000, &claims_of(&options).unwrap(), |_| None).unwrap();
        let server = &answer["iceServers"][0];
        let (username, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
        let said = verdict_text(&verdict(&config, username, password, 1000), 1000);
        assert_eq!(
            said,
            "good: secret \"s\" (sha1), user id \"bob\", ends in 60 s; tenant acme, 1GiB in all, 2GiB a day, 3Mbit/s each way, \
             2 allocations at a time, peers: 192.0.2.7/32 2001:db8::/32, over tls, closed at 2027-01-01T00:00:00Z"
        );
        let other = LimitOptions { tenant: Some("other".to_owned()), ..LimitOptions::default() };
        let refused = mint_with(&config, "bob", 60, 1000, &claims_of(&other).unwrap(), |_| None).unwrap_err();
        assert!(refused.contains("\"tenant\"") && refused.contains("claims"), "{refused}");
        let wrong = [
            LimitOptions { bytes: Some("1".to_owned()), ..LimitOptions::default() },
            LimitOptions { bytes: Some("0B".to_owned()), ..LimitOptions::default() },
            LimitOptions { bitrate: Some("fast".to_owned()), ..LimitOptions::default() },
            LimitOptions { allocations: Some(0), ..LimitOptions::default() },
            LimitOptions { peers: texts(&["relay", "10.0.0.0/8"]), ..LimitOptions::default() },
            LimitOptions { transports: texts(&["sctp"]), ..LimitOptions::default() },
            LimitOptions { close_at: Some("tomorrow".to_owned()), ..LimitOptions::default() },
            LimitOptions { tenant: Some(String::new()), ..LimitOptions::default() },
        ];
        for (options, flag) in
            wrong.iter().zip(["bytes", "bytes", "bitrate", "allocations", "peers", "transports", "close-at", "tenant"])
        {
            let error = claims_of(options).unwrap_err();
            assert!(error.starts_with(&format!("--{flag}")), "{error}");
        }
    }

    #[test]
    fn static_users_are_looked_up_first_even_when_they_look_time_limited() {
        let config = config(
            "auth.users = { \"1700000000:alice\" = \"wonderland\", bob = { key_md5 = \"7f11bf08db16e05f1a0a2e97e4f3f1c0\" } }",
        );
        assert_eq!(verdict(&config, "1700000000:alice", "wonderland", 9_000_000_000), Verdict::Static);
        assert_eq!(
            verdict(&config, "1700000000:alice", "Cd/49soE35ICqcJF/bCTn8Z4OyE=", 1_700_000_000),
            Verdict::Refused(CredentialRefused::BadIntegrity)
        );
        assert_eq!(verdict(&config, "bob", "no", 0), Verdict::Refused(CredentialRefused::BadIntegrity));
        assert_eq!(verdict(&config, "carol", "no", 0), Verdict::Refused(CredentialRefused::UnknownUser));
    }
}
