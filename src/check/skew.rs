//! The relay's clock, seen through what it accepts; for a check that has the secret and so can mint.
//!
//! A relay judges the expiry of a credential by its own clock and says 401 to whatever is wrong, so a clock that is
//! ahead looks like a wrong secret. Credentials with other expiries tell them apart.

use crate::check::answer::Login;
use crate::check::client::{Client, Failed};
use crate::check::report::Step;
use crate::check::server::{Server, unix_now};
use crate::credentials::{SharedSecret, password};

/// How far the clocks may be apart before it is said: two minutes, of which relays forgive some.
const APART_SECONDS: i64 = 120;

/// How exactly a difference is found, in seconds.
const EXACT_SECONDS: i64 = 30;

const REMEDY: &str =
    "synchronise the clocks of relay and issuer (NTP): a credential's expiry is judged by the relay's clock";

/// Makes credentials as the configuration's first secret does.
#[derive(Clone, Debug)]
pub struct Minter {
    /// The secret.
    pub secret: SharedSecret,
    /// The user id.
    pub user: &'static str,
    /// `auth.max_ttl`.
    pub ttl_max: u64,
}

impl Minter {
    /// One that ends so many seconds from now, or has ended.
    fn mint(&self, ends_in: i64) -> Login {
        let username = format!("{}:{}", unix_now().saturating_add_signed(ends_in), self.user);
        let password = password(&self.secret, username.as_bytes()).as_str().to_owned();
        Login { username, password }
    }
}

/// How often a credential is tried that brings neither yes nor no: a search of thirteen steps must not come to nothing
/// for one lost answer.
const TRIES: usize = 3;

/// Whether the server allocates with a credential that ends so many seconds from now; `None` if that can't be told.
async fn accepts(server: &Server<'_>, minter: &Minter, ends_in: i64) -> Option<bool> {
    first_told(async || accepts_once(server, minter, ends_in).await).await
}

/// The first answer of a few tries.
async fn first_told(ask: impl AsyncFn() -> Option<bool>) -> Option<bool> {
    for _ in 0..TRIES {
        if let Some(told) = ask().await {
            return Some(told);
        }
    }
    None
}

async fn accepts_once(server: &Server<'_>, minter: &Minter, ends_in: i64) -> Option<bool> {
    let link = server.connect_quietly().await.ok()?;
    let mut client = Client::new(link, minter.mint(ends_in));
    match client.allocate(None).await {
        Ok(_) => {
            // Should this be lost, the allocation ends by its lifetime.
            let _ = client.release().await;
            Some(true)
        }
        Err(Failed::Refused(refused)) if refused.code == 401 => Some(false),
        Err(_) => None,
    }
}

/// Between a time that is refused and a later one that is accepted: the first that is accepted, to the minute.
async fn first_accepted(
    mut refused: i64,
    mut accepted: i64,
    accepts: impl AsyncFn(i64) -> Option<bool>,
) -> Option<i64> {
    while accepted - refused > EXACT_SECONDS {
        let middle = refused + (accepted - refused) / 2;
        if accepts(middle).await? {
            accepted = middle;
        } else {
            refused = middle;
        }
    }
    Some(accepted)
}

fn about(seconds: i64) -> String {
    match seconds.unsigned_abs() {
        seconds @ 0..5400 => format!("about {} min", (seconds + 30) / 60),
        seconds => format!("about {} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn longest(minter: &Minter) -> i64 {
    // A minute less: minting takes time, and "further ahead than allowed" is refused too.
    i64::try_from(minter.ttl_max).unwrap_or(i64::MAX) - 60
}

/// Says why a minted credential that is good for `ttl` seconds by our clock was refused: clock or secret.
pub(super) async fn explain(server: &Server<'_>, minter: &Minter, ttl: u64, refusal: Step) -> Step {
    let (ttl, longest) = (i64::try_from(ttl).unwrap_or(i64::MAX), longest(minter));
    if longest <= ttl {
        return refusal;
    }
    match accepts(server, minter, longest).await {
        None => refusal,
        Some(false) => {
            let detail = format!("Allocate: 401 Unauthorized, also with a credential that is good for {longest} s");
            let remedy = "the secret of this configuration is not the relay's: compare value, algorithm and a trailing newline of the first of auth.secrets (coturn: static-auth-secret)";
            Step { detail, remedy: Some(remedy.to_owned()), ..refusal }
        }
        Some(true) => match first_accepted(ttl, longest, |ends_in| accepts(server, minter, ends_in)).await {
            Some(ahead) => {
                let detail = format!(
                    "Allocate: 401 Unauthorized for a credential that is good for {ttl} s: the relay's clock is {} ahead of this machine's",
                    about(ahead)
                );
                Step { detail, remedy: Some(REMEDY.to_owned()), ..refusal }.with("seconds_ahead", ahead)
            }
            None => refusal,
        },
    }
}

/// A relay that lets the minted credential in may still have a clock that is slow, or somewhat fast.
pub(super) async fn look(server: &Server<'_>, minter: &Minter, ttl: u64) -> Step {
    const NAME: &str = "clock";
    let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
    let probe = |ends_in| accepts(server, minter, ends_in);
    let ahead = match (probe(-APART_SECONDS).await, probe(APART_SECONDS).await) {
        (Some(false), Some(true)) => {
            return Step::ok(NAME, format!("the relay's clock is within {APART_SECONDS} s of this machine's"));
        }
        (Some(true), _) => {
            let longest = longest(minter);
            match probe(-longest).await {
                Some(false) => first_accepted(-longest, -APART_SECONDS, probe).await,
                Some(true) => {
                    let detail = format!("a credential that ended {longest} s ago is accepted");
                    return Step::fail(NAME, detail, REMEDY);
                }
                None => None,
            }
        }
        (Some(false), Some(false)) => first_accepted(APART_SECONDS, ttl, probe).await,
        (_, None) | (None, _) => None,
    };
    let Some(ahead) = ahead else { return Step::skip(NAME, "the relay's answers don't tell its clock") };
    let (side, effect) = if ahead > 0 {
        ("ahead of", "credentials end too early")
    } else {
        ("behind", "credentials are valid for longer than they say")
    };
    let detail = format!("the relay's clock is {} {side} this machine's: {effect}", about(ahead));
    Step::fail(NAME, detail, REMEDY).with("seconds_ahead", ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_accepted_time_is_found_to_the_minute() {
        for ahead in [601, 3600, 7199, 100_000, 172_700] {
            let found = first_accepted(600, 172_740, async |ends_in| Some(ends_in > ahead - 30)).await.unwrap();
            assert!((ahead - 30..=ahead + 30).contains(&found), "{ahead}: {found}");
        }
        let found = first_accepted(-172_740, -120, async |ends_in| Some(ends_in > -3600)).await.unwrap();
        assert!((-3600..=-3570).contains(&found), "{found}");
        assert_eq!(first_accepted(0, 1000, async |_| None).await, None);
    }

    #[tokio::test]
    async fn an_answer_that_got_lost_is_asked_for_again() {
        let asked = std::cell::Cell::new(0);
        let told = first_told(async || {
            asked.set(asked.get() + 1);
            (asked.get() == TRIES).then_some(true)
        });
        assert_eq!((told.await, asked.get()), (Some(true), TRIES));
        asked.set(TRIES);
        let told = first_told(async || {
            asked.set(asked.get() + 1);
            None
        });
        assert_eq!((told.await, asked.get()), (None, 2 * TRIES), "a server that never answers is given up");
    }

    #[test]
    fn differences_are_told_in_minutes_and_hours() {
        assert_eq!(about(3590), "about 60 min");
        assert_eq!(about(3625), "about 60 min");
        assert_eq!(about(-3600), "about 60 min");
        assert_eq!(about(7260), "about 2 h 1 min");
    }
}
