//! A credential as the key to itself: Metered gives one out when it makes a credential, and a page fetches the same
//! credential with it, in a list of servers. It holds username and password, so it opens nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;

use crate::credentials::{self, Minted, SharedSecret};

/// The key of a credential.
pub(super) fn make(username: &str, password: &str) -> String {
    BASE64URL.encode(format!("{password}:{username}"))
}

/// The credential in the query's `apiKey`, if it is good, and its tenant.
pub(super) fn find(
    query: &[(String, String)],
    secrets: &[SharedSecret],
    now: u64,
    max_ttl: u64,
) -> Option<(Minted, Option<Box<str>>)> {
    let (_, key) = query.iter().find(|(name, _)| name == "apiKey")?;
    let text = String::from_utf8(BASE64URL.decode(key).ok()?).ok()?;
    // A password is base64, so it has no colon.
    let (password, username) = text.split_once(':')?;
    let good = credentials::verify(secrets, now, max_ttl, username, password.as_bytes()).ok()?;
    let (tenant, expires_at) = (good.holder.tenant, good.expires_at);
    Some((Minted { username: username.to_owned(), password: password.to_owned(), expires_at }, tenant))
}
