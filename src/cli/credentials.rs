//! `credentials mint` and `credentials verify`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::address::{Family, Transport};
use crate::api::rest::limits::in_words;
use crate::api::uris;
use crate::check::answer::Login;
use crate::check::skew::Minter;
use crate::cli::mint_format::formatted;
use crate::cli::{LimitOptions, MintOptions, VerifyOptions, first_line, load_existing};
use crate::config::{Config, DURATION, RATE, SIZE, parse_instant};
use crate::credentials::claims::{Claim, Claims, Grant};
use crate::credentials::limits::{LimitRefused, LimitValue, PrefixForm};
use crate::credentials::{self, CredentialRefused, MintRefused, Secret, USERNAME_BYTES_MAX};
use crate::failure::Failure;
use crate::printable::{json_line, printable_lines};
use crate::protocol::settings::{StaticKey, StaticUser};
use crate::turn_uri::TurnUri;

pub(super) fn mint(options: &MintOptions) -> Result<(), Failure> {
    let mut config = load_existing(options.config.as_deref())?;
    let ttl = ttl_of(&options.ttl, config.auth.max_ttl).map_err(Failure::Usage)?;
    super::warn_of_reach(&mut config);
    let now = unix_now()?;
    let claims = claims_of(&options.limits).map_err(Failure::Usage)?;
    let answer = mint_with(&config, &options.user, ttl, now, &claims, address_to_the_world).map_err(Failure::Usage)?;
    for family in guessed(&config) {
        // On standard error: the answer is for programs.
        if let Some(ip) = address_to_the_world(family) {
            eprintln!(
                "{ip} in the URLs is an address of this machine, found from its routes: the configuration does not say which \
                 one clients use. If the server runs elsewhere, or behind NAT, set relay.external or http.public_name"
            );
        }
    }
    let text = if options.json {
        answer.to_string()
    } else {
        formatted(options.format, &answer, &options.user, &config).map_err(Failure::Usage)?
    };
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// A short-lived credential for `check`, and the servers that the configuration offers.
pub(super) fn mint_for_check(
    config: &Config,
    user: &'static str,
    ttl: u64,
) -> Result<(Login, Minter, Vec<String>), String> {
    let now = unix_now().map_err(|error| error.to_string())?;
    let secret = credentials::minting(&config.auth.secrets, now, None).ok_or(
        "there is no secret to mint with: add [[auth.secrets]] to the configuration, or give --username and --password instead",
    )?;
    let minted = credentials::mint(secret, now, user, ttl.min(config.auth.max_ttl), &Claims::default());
    let minted = minted.map_err(|error| error.to_string())?;
    let login = Login { username: minted.username, password: minted.password };
    let minter = Minter { secret: secret.clone(), user, ttl_max: config.auth.max_ttl };
    Ok((login, minter, urls(config, secret.tenant.as_deref(), address_to_the_world)))
}

/// Seconds that the server accepts; its own sentence for a number without a unit, which tells the unit.
fn ttl_of(text: &str, max: u64) -> Result<u64, String> {
    let allowed = || format!("--ttl {text}: must be from 1s to {}, which auth.max_ttl allows", DURATION.show(max));
    match DURATION.parse(text) {
        Ok(ttl) if (1..=max).contains(&ttl) => Ok(ttl),
        Ok(_) => Err(allowed()),
        Err(_) if text.parse::<u64>() == Ok(0) => Err(allowed()),
        Err(message) if message.starts_with("is too large") => Err(allowed()),
        Err(message) => Err(format!("--ttl {text}: {message}")),
    }
}

fn mint_with(
    config: &Config,
    user: &str,
    ttl: u64,
    now: u64,
    claims: &Claims,
    local: impl Fn(Family) -> Option<IpAddr>,
) -> Result<Value, String> {
    if user.is_empty() {
        return Err(
            "--user: must not be empty; quotas, usage records and `throughway revoke --user` need a user id".to_owned()
        );
    }
    let secret = credentials::minting(&config.auth.secrets, now, claims.tenant.as_deref()).ok_or(
        "there is no secret to mint with: add [[auth.secrets]] to the configuration, or set THROUGHWAY_AUTH__SECRET",
    )?;
    if let Some(tenant) = &claims.tenant
        && secret.tenant.as_ref() != Some(tenant)
        && !secret.claims.has(Claim::Tenant)
    {
        let known = config.auth.secrets.iter().filter_map(|secret| secret.tenant.as_deref());
        let known: BTreeSet<&str> = known.collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none has a tenant".to_owned() } else { format!("there are {known}") };
        return Err(format!(
            "--tenant: no secret has the tenant \"{tenant}\", {known}; give a table of auth.secrets `tenant = \"{tenant}\"`"
        ));
    }
    if claims.grant.closes_at.is_some_and(|at| at <= now) {
        return Err(
            "--close-at: this time has passed, so the credential would be refused; give a time to come".to_owned()
        );
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
    if users_named(config, &minted.username).next().is_some() {
        return Err("auth.users has the same name, and it is looked up first; mint again in a second".to_owned());
    }
    let tenant = claims.tenant.as_ref().or(secret.tenant.as_ref());
    let urls = urls(config, tenant.map(|tenant| &**tenant), local);
    if let Some(tenant) =
        tenant.filter(|_| urls.is_empty() && config.listen.iter().all(|of| of.tenancy.tenant.is_some()))
    {
        return Err(format!("there is no URL to give, because every listener has another tenant than \"{tenant}\""));
    }
    if urls.is_empty() {
        return Err("there is no URL to give, because no listener has an address that clients can reach; set relay.external to the public address, or give an address in listen.udp".to_owned());
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
    let number = |flag: &str, text: &Option<String>, parse: fn(&str) -> Result<u64, String>| {
        let number =
            text.as_ref().map(|text| parse(text).map_err(|message| format!("--{flag} {text}: {message}"))).transpose();
        number.map(|number| number.map(LimitValue::Number))
    };
    let instant = |text: &str| {
        let expected = "expected a day such as 2026-12-31, or a time such as 2026-12-31T12:00:00Z (UTC)";
        parse_instant(text).ok_or_else(|| expected.to_owned())
    };
    let peers = match options.peers.as_slice() {
        [word] if word == "relay" => Some(LimitValue::Text(word)),
        items => texts(items),
    };
    let mut grant = Grant::default();
    for (limit, flag, value) in [
        (Claim::Bytes, "bytes", number("bytes", &options.bytes, |text| SIZE.parse(text))?),
        (Claim::Bitrate, "bitrate", number("bitrate", &options.bitrate, |text| RATE.parse(text))?),
        (Claim::Allocations, "allocations", options.allocations.map(|count| LimitValue::Number(count.into()))),
        (Claim::Peers, "peers", peers),
        (Claim::Transports, "transports", texts(&options.transports)),
        (Claim::ClosesAt, "close-at", number("close-at", &options.close_at, instant)?),
    ] {
        let Some(value) = value else { continue };
        grant.set(limit, &value, PrefixForm::OrAddress).map_err(|refused| match (refused, limit) {
            (LimitRefused::Item(item), Claim::Peers) => {
                format!("--{flag} {item}: expected \"relay\", or prefixes such as 198.51.100.0/24")
            }
            (LimitRefused::Item(item), _) => format!("--{flag} {item}: expected udp, tcp or tls"),
            (LimitRefused::Empty | LimitRefused::Kind, _) => format!("--{flag} 0 would allow nothing"),
        })?;
    }
    let tenant = options.tenant.as_deref();
    if tenant.is_some_and(|name| name.is_empty() || name.len() > 64 || name.chars().any(char::is_control)) {
        return Err("--tenant: a tenant's name has 1 to 64 bytes and no control characters".to_owned());
    }
    Ok(Claims { grant, tenant: tenant.map(Into::into), nonce: None })
}

/// A list, unless it is empty.
fn texts(items: &[String]) -> Option<LimitValue<'_>> {
    (!items.is_empty()).then(|| LimitValue::List(items.iter().map(String::as_str).collect()))
}

/// One TURN URI per listener (RFC 7065), at most four: a wildcard becomes the address that clients are told.
pub(super) fn servers(
    config: &Config,
    names: &uris::UriNames<'_>,
    tenant: Option<&str>,
    local: impl Fn(Family) -> Option<IpAddr>,
) -> Vec<TurnUri> {
    let listeners = config.listen.iter().map(|listen| (listen.transport, listen.address, Arc::clone(&listen.tenancy)));
    let servers = uris::of_listeners(listeners, names, |ip| {
        if !ip.is_unspecified() {
            return config.relay.external.advertised(ip);
        }
        let family = Family::of(ip);
        let public = config.relay.external.public().into_iter().find(|public| Family::of(*public) == family);
        let relay = || config.relay.addresses.iter().copied().find(|relay| Family::of(*relay) == family);
        public.or_else(relay).or_else(|| local(family))
    });
    servers.for_tenant(tenant).0
}

fn urls(config: &Config, tenant: Option<&str>, local: impl Fn(Family) -> Option<IpAddr>) -> Vec<String> {
    servers(config, &uris::names(config), tenant, local).iter().map(ToString::to_string).collect()
}

/// Families whose address in the URLs is the one of the machine that runs this command.
pub(super) fn guessed(config: &Config) -> Vec<Family> {
    let is_told = |family| {
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        config.relay.external.public().iter().any(of_family) || config.relay.addresses.iter().any(of_family)
    };
    let listens = |family| {
        config.listen.iter().any(|listen| {
            let ip = listen.address.ip();
            let is_named = listen.transport == Transport::Tls && config.tls.name.is_some();
            ip.is_unspecified() && Family::of(ip) == family && !is_named
        })
    };
    if config.http.issuing.public_name.is_some() {
        return Vec::new();
    }
    [Family::V4, Family::V6].into_iter().filter(|family| listens(*family) && !is_told(*family)).collect()
}

/// The address of ours that the route to the world starts from; connecting a UDP socket sends nothing.
pub(super) fn address_to_the_world(family: Family) -> Option<IpAddr> {
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
enum CredentialVerdict<'a> {
    Static { realm: &'a str },
    Secret { id: &'a str, algorithm: &'static str, user_id: &'a str, expires_at: u64, may: Claims },
    Refused(CredentialRefused),
}

pub(super) fn verify(options: &VerifyOptions) -> Result<(), Failure> {
    let config = load_existing(options.config.as_deref())?;
    let now = unix_now()?;
    let password = match (&options.password, &options.password_file) {
        (Some(password), _) => password.clone(),
        (None, Some(file)) => first_line("--password-file", file)?,
        (None, None) => return Err(Failure::Usage("give the password, or --password-file FILE".to_owned())),
    };
    let verdict = verdict(&config, &options.username, &password, now);
    let mut out = io::stdout().lock();
    if options.json {
        writeln!(out, "{}", json_line(&verdict_json(&verdict).to_string()))?;
    } else {
        writeln!(out, "{}", printable_lines(&verdict_text(&verdict, now)))?;
        if let Some(hint) = milliseconds(&options.username, &verdict) {
            writeln!(out, "{hint}")?;
        }
    }
    match verdict {
        CredentialVerdict::Refused(_) => Err(Failure::Reported(1)),
        CredentialVerdict::Static { .. } | CredentialVerdict::Secret { .. } => Ok(()),
    }
}

/// A hint for an expiry that is too far ahead by a factor of a thousand: JavaScript counts milliseconds.
fn milliseconds(username: &str, verdict: &CredentialVerdict<'_>) -> Option<String> {
    let expiry = username.split(':').next().unwrap_or_default();
    let is_refused = matches!(verdict, CredentialVerdict::Refused(_));
    (is_refused && expiry.len() == 13 && expiry.bytes().all(|byte| byte.is_ascii_digit())).then(|| {
        format!(
            "is it in milliseconds? The expiry {expiry} has 13 digits, but it must be in seconds since 1970, {} (in JavaScript \
             Math.floor(Date.now() / 1000) + ttl)",
            &expiry[..10]
        )
    })
}

/// The static users of a name, each with the realm.
fn users_named<'a>(config: &'a Config, username: &str) -> impl Iterator<Item = (&'a str, &'a StaticUser)> {
    let of_realms = config.auth.realms.iter().map(|of| (&*of.realm, &of.users));
    let all = std::iter::once((&*config.realm, &config.auth.users)).chain(of_realms);
    all.filter_map(move |(realm, users)| Some((realm, users.get(username)?)))
}

/// Judges as the server does: static users by exact name first, then `digits[:id]`.
fn verdict<'a>(config: &'a Config, username: &'a str, password: &str, now: u64) -> CredentialVerdict<'a> {
    let mut is_known = false;
    for (realm, user) in users_named(config, username) {
        is_known = true;
        let is = |known: &Secret| bool::from(known.expose().ct_eq(password.as_bytes()));
        let fits = match &user.key {
            StaticKey::Password { given, opaque } => is(given) || opaque.as_ref().is_some_and(is),
            StaticKey::Keys { md5: known, .. } => {
                use md5::Digest;
                let digest = md5::Md5::digest(format!("{username}:{realm}:{password}"));
                bool::from(known.expose().ct_eq(digest.as_slice()))
            }
        };
        if fits {
            return CredentialVerdict::Static { realm };
        }
    }
    if is_known {
        return CredentialVerdict::Refused(CredentialRefused::BadIntegrity);
    }
    match credentials::verify(&config.auth.secrets, now, config.auth.max_ttl, username, password.as_bytes()) {
        Ok(good) => CredentialVerdict::Secret {
            id: &good.secret.id,
            algorithm: good.secret.algorithm.name(),
            user_id: good.holder.user_id,
            expires_at: good.expires_at,
            may: Claims { grant: good.holder.grant, tenant: good.holder.tenant, nonce: None },
        },
        Err(refused) => CredentialVerdict::Refused(refused),
    }
}

fn verdict_text(verdict: &CredentialVerdict<'_>, now: u64) -> String {
    match verdict {
        CredentialVerdict::Static { realm } => format!("good: a static user of auth.users, in the realm \"{realm}\""),
        CredentialVerdict::Secret { id, algorithm, user_id, expires_at, may } => {
            let left = match expires_at.checked_sub(now) {
                Some(left) => format!("ends in {left} s"),
                None => "ended just now, within the tolerance for clocks that differ".to_owned(),
            };
            let may = if may.is_empty() { String::new() } else { format!("; {}", in_words(may)) };
            format!("good: secret \"{id}\" ({algorithm}), user id \"{user_id}\", {left}{may}")
        }
        CredentialVerdict::Refused(refused) => format!("refused: {refused}"),
    }
}

fn verdict_json(verdict: &CredentialVerdict<'_>) -> Value {
    match verdict {
        CredentialVerdict::Static { realm } => json!({ "valid": true, "static": true, "realm": realm }),
        CredentialVerdict::Secret { id, algorithm, user_id, expires_at, may } => json!({
            "valid": true, "static": false, "secret": id, "algorithm": algorithm,
            "user": user_id, "expires_at": expires_at, "tenant": may.tenant, "limits": in_words(&Claims { tenant: None, ..may.clone() }),
        }),
        CredentialVerdict::Refused(refused) => {
            let text = refused.to_string();
            let remedy = text.strip_prefix(refused.reason()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
            json!({ "valid": false, "reason": refused.reason(), "remedy": remedy })
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command reads the clock once; the core and the workers get theirs from clock"
)]
pub(super) fn unix_now() -> Result<u64, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_secs())
        .map_err(|_| Failure::Run("this machine's clock is before 1970; set it".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::checked::Listen;

    fn config(text: &str) -> Config {
        Config::with_a_secret(text).unwrap()
    }

    fn urls_of(text: &str) -> Vec<String> {
        urls(&config(text), None, |family| (family == Family::V4).then(|| "192.0.2.7".parse().unwrap()))
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
        config.listen.push(Listen {
            transport: Transport::Tls,
            address,
            is_auto: true,
            is_default: false,
            proxy_from: Default::default(),
            tenancy: Arc::default(),
            shared: None,
        });
        let plain = "turn:192.0.2.7:3478?transport=tcp";
        assert_eq!(urls(&config, None, |_| None), [plain, "turns:192.0.2.7:3478?transport=tcp"]);
        config.tls.name = Some("turn.example.org".into());
        assert_eq!(urls(&config, None, |_| None), [plain, "turns:turn.example.org:3478?transport=tcp"]);
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
            CredentialVerdict::Secret {
                id: "s",
                algorithm: "sha1",
                user_id: "bob",
                expires_at: 1060,
                may: Claims::default()
            }
        );
        assert_eq!(
            verdict(&config, "1060:bob", "wrong", 1000),
            CredentialVerdict::Refused(CredentialRefused::BadIntegrity)
        );
        for wrong in ["0", "0s", "3d", "172801s", "9999999999999999999d"] {
            let said = ttl_of(wrong, config.auth.max_ttl);
            assert_eq!(said, Err(format!("--ttl {wrong}: must be from 1s to 2d, which auth.max_ttl allows")));
        }
        assert!(ttl_of("60", config.auth.max_ttl).unwrap_err().contains("would be \"60s\""));
        assert_eq!((ttl_of("1s", 172_800), ttl_of("2d", 172_800)), (Ok(1), Ok(172_800)));
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
            "listen.udp = [\"127.0.0.1:3478\"]\nlisten.tcp = []\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\nclaims = true\ntenant = \"acme\"\n\
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
        assert!(refused.contains("no secret has the tenant \"other\", there are acme"), "{refused}");
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
        assert_eq!(
            verdict(&config, "1700000000:alice", "wonderland", 9_000_000_000),
            CredentialVerdict::Static { realm: "throughway" }
        );
        assert_eq!(
            verdict(&config, "1700000000:alice", "Cd/49soE35ICqcJF/bCTn8Z4OyE=", 1_700_000_000),
            CredentialVerdict::Refused(CredentialRefused::BadIntegrity)
        );
        assert_eq!(verdict(&config, "bob", "no", 0), CredentialVerdict::Refused(CredentialRefused::BadIntegrity));
        assert_eq!(verdict(&config, "carol", "no", 0), CredentialVerdict::Refused(CredentialRefused::UnknownUser));
    }
}
