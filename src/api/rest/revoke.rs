//! Cloudflare's call to revoke: who may get credentials may also take one back before its end.

use axum::http::StatusCode;

use super::access::Caller;
use super::refused::IssueRefused;
use super::shape::ShapedResponse;
use super::{Issuer, Rest};
use crate::credentials::{EXPIRY_SKEW_SECONDS, Holder, parse_username};
use crate::ops::revocations::{NotRevoked, check_name};
use crate::protocol::revocation::Subject;
use crate::time::Now;

const NOT_OWN: &str =
    "this credential can be of another user or tenant than the caller's, so the caller can't revoke it";

impl Rest {
    /// Shuts the credential out and ends its sessions; the answer has no body.
    pub(super) async fn revoke(
        &self,
        issuer: &Issuer,
        caller: &Caller,
        username: &str,
        now: Now,
    ) -> Result<ShapedResponse, IssueRefused> {
        check_owner(issuer, caller, username, now)?;
        let revoker = self.revoker.get().ok_or(IssueRefused::NotRevoked("there is no relay here"))?;
        if !revoker.store().has_room_for_callers() {
            return Err(full());
        }
        let done = revoker.revoke(Subject::Credential(username.into()), issuer.max_ttl).await.map_err(|_| full())?;
        let is_saved = done.saved.is_ok() && revoker.store().file().is_some();
        tracing::info!(key = &*caller.name, username, ended = done.ended, is_saved, "credential revoked by a caller");
        match done.saved {
            Ok(()) => Ok((StatusCode::NO_CONTENT, "", String::new())),
            Err(NotRevoked::Full) => Err(full()),
            Err(error @ NotRevoked::NotSaved(_)) => {
                tracing::debug!(%error, "a revocation will not outlive this process");
                Err(IssueRefused::NotRevoked(
                    "it is in effect, but can't be written, so a restart of the server removes it",
                ))
            }
        }
    }
}

const fn full() -> IssueRefused {
    IssueRefused::NotRevoked("the server has too many revocations; ask again when some have ended")
}

/// Which credentials a caller may revoke: of the user who is vouched for, of the key's tenant, else every time-limited one.
///
/// A username does not tell its secret. So it must be the caller's under each secret that can have made it.
fn check_owner(issuer: &Issuer, caller: &Caller, username: &str, now: Now) -> Result<(), IssueRefused> {
    if check_name(username).is_err() {
        return Err(IssueRefused::BadUser("a username has 1 to 508 bytes and no control characters"));
    }
    let parts = parse_username(username).filter(|_| !issuer.users.contains(username));
    let parts = parts.ok_or(IssueRefused::BadUser("only a time-limited credential can be revoked: EXPIRY:USERID"))?;
    let latest = now.unix.0.saturating_add(issuer.max_ttl).saturating_add(EXPIRY_SKEW_SECONDS);
    if parts.expires_at > latest {
        return Err(IssueRefused::BadUser("the server accepts no credential that ends so late: auth.max_ttl"));
    }
    let is_own = |holder: &Holder<'_>| {
        caller.user.as_deref().is_none_or(|user| user == holder.user_id)
            && (caller.tenant.is_none() || caller.tenant == holder.tenant)
    };
    let mut holders = issuer.secrets.iter().filter_map(|secret| secret.read(parts.user_id).ok()).peekable();
    if holders.peek().is_none() || !holders.all(|holder| is_own(&holder)) {
        return Err(IssueRefused::BadUser(NOT_OWN));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rest::counts::IssueCounts;
    use crate::api::rest::token_keys::TokenKeys;
    use crate::config::Config;
    use crate::credentials::claims::{Claims, Grant};
    use crate::time::{Ticks, UnixSeconds};

    const NOW: Now = Now { ticks: Ticks(0), unix: UnixSeconds(1_000_000) };

    fn issuer(secrets: &str) -> Issuer {
        let config =
            Config::from_toml("c.toml", &format!("auth.users = {{ \"1000060\" = \"wonderland-2026\" }}\n{secrets}"));
        Issuer::new(&config.unwrap(), Vec::new().into(), &TokenKeys::None, &IssueCounts::default())
    }

    fn caller(user: Option<&str>, tenant: Option<&str>) -> Caller {
        Caller {
            name: "web".into(),
            max_ttl: None,
            user: user.map(ToOwned::to_owned),
            tenant: tenant.map(Into::into),
            grant: Grant::default(),
        }
    }

    #[test]
    fn a_caller_revokes_time_limited_credentials_of_its_own_user_and_tenant_only() {
        let one = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\ntenant = \"acme\"\n";
        let two = "[[auth.secrets]]\nid = \"b\"\nvalue = \"south-of-everything\"\ntenant = \"umbrella\"\n";
        let is_own =
            |secrets: &str, caller: Caller, name: &str| check_owner(&issuer(secrets), &caller, name, NOW).is_ok();
        for good in ["1000060:bob", "1000060:bob:x", "999999:bob", "999000"] {
            assert!(is_own(one, caller(None, None), good), "{good}");
        }
        let too_late = format!("{}:bob", NOW.unix.0 + 172_800 + EXPIRY_SKEW_SECONDS + 1);
        for bad in ["", "bob", "1000060", &too_late, "1000060:b\nob", &format!("1000060:{}", "x".repeat(600))] {
            assert!(!is_own(one, caller(None, None), bad), "{bad}");
        }
        assert!(is_own(one, caller(Some("bob"), None), "1000060:bob"));
        assert!(!is_own(one, caller(Some("bob"), None), "1000060:bobby"));
        assert!(is_own(one, caller(None, Some("acme")), "1000060:bob"));
        assert!(!is_own(one, caller(None, Some("umbrella")), "1000060:bob"));
        // Either secret can have made it.
        assert!(is_own(&format!("{one}{two}"), caller(None, None), "1000060:bob"));
        assert!(!is_own(&format!("{one}{two}"), caller(None, Some("acme")), "1000060:bob"));
    }

    #[test]
    fn the_tenant_inside_a_credential_says_whose_it_is() {
        let secret = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\nclaims = [\"tenant\"]\n";
        let claims = Claims { tenant: Some("acme".into()), ..Claims::default() };
        let name = format!("1000060:bob~{}", claims.encode());
        assert!(check_owner(&issuer(secret), &caller(None, Some("acme")), &name, NOW).is_ok());
        assert!(check_owner(&issuer(secret), &caller(None, Some("umbrella")), &name, NOW).is_err());
        assert!(check_owner(&issuer(secret), &caller(None, Some("acme")), "1000060:bob", NOW).is_err());
        assert!(check_owner(&issuer(secret), &caller(None, None), "1000060:bob~nonsense", NOW).is_err());
    }
}
