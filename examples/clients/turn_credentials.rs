//! Credentials for a TURN relay: made from its secret, or asked for at its endpoint.

use std::env;
use std::error::Error;
use std::time::{Duration, SystemTime, SystemTimeError, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

/// Username and password that the relay accepts for this time.
fn mint(secret: &str, user: &str, ttl: Duration) -> Result<(String, String), SystemTimeError> {
    let expiry = (SystemTime::now() + ttl).duration_since(UNIX_EPOCH)?.as_secs();
    let username = format!("{expiry}:{user}");
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(username.as_bytes());
    let password = STANDARD.encode(mac.finalize().into_bytes());
    Ok((username, password))
}

/// The relay's answer for this user: an RTCConfiguration with `iceServers`, to be passed on to the page.
fn ask(relay: &str, key: &str, user: &str) -> Result<String, Box<dyn Error>> {
    let config = ureq::Agent::config_builder();
    let config = config.timeout_global(Some(Duration::from_secs(5))).http_status_as_error(false);
    let mut answer = ureq::Agent::from(config.build())
        .get(format!("{relay}/ice"))
        .query("username", user)
        .header("Authorization", format!("Bearer {key}"))
        .call()?;
    let body = answer.body_mut().read_to_string()?;
    if !answer.status().is_success() {
        return Err(format!("the relay answers {}: {body}", answer.status().as_u16()).into());
    }
    Ok(body)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (command, user) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    if command == "mint" {
        let (username, password) = mint(&env::var("TURN_SECRET")?, &user, Duration::from_secs(3600))?;
        println!("{username}\n{password}");
    } else {
        println!("{}", ask(&env::var("RELAY")?, &env::var("RELAY_KEY")?, &user)?);
    }
    Ok(())
}
