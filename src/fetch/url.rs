//! URLs of other HTTP servers: only forms that every program reads alike.

use std::fmt;
use std::net::IpAddr;

use url::Position;

/// An `http` or `https` URL with a host, without a login and without a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url(url::Url);

/// What is wrong with a URL.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("expected a URL that begins with https:// or http://")]
    Scheme,
    /// Blanks, control characters, backslashes, or letters outside of ASCII: browsers correct them, each in its way.
    #[error("a URL has only ASCII characters and no blanks; write a blank as %20")]
    Characters,
    /// What follows a #.
    #[error("a # and what follows it are for browsers; leave them out")]
    Fragment,
    /// A user name or a password.
    #[error("a URL must not hold a login")]
    Login,
    /// Port 0.
    #[error("0 is not a port")]
    Port,
    /// Whatever else.
    #[error("this is not a URL: {0}")]
    Other(url::ParseError),
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let after = |scheme: &str| {
            let (start, rest) = text.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some(rest)
        };
        let rest = after("https://").or_else(|| after("http://")).ok_or(UrlError::Scheme)?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(UrlError::Characters);
        }
        if rest.starts_with('/') {
            return Err(UrlError::Other(url::ParseError::EmptyHost));
        }
        let url = url::Url::parse(text).map_err(UrlError::Other)?;
        if url.fragment().is_some() {
            return Err(UrlError::Fragment);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Login);
        }
        if url.port() == Some(0) {
            return Err(UrlError::Port);
        }
        Ok(Self(url))
    }

    /// Another target of the same server: path and query.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn join(&self, target: &str) -> Result<Self, UrlError> {
        self.0.join(target).map(Self).map_err(UrlError::Other)
    }

    /// Whether it is asked over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// A name or an address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The one given, or that of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.0[Position::BeforePath..Position::AfterQuery]
    }

    /// Whether it can only be this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// What the Host header says: the port only where it is not the scheme's own.
    pub(super) fn authority(&self) -> &str {
        &self.0[Position::BeforeHost..Position::AfterPort]
    }
}

/// What may be shown of a text that is meant as a URL, right or wrong: a login and a query may hold a key.
#[must_use]
pub fn masked(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = text.split_at(start);
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (place, query) = rest.split_at(end);
    // A password may have any of these letters unescaped: then it is no URL, and is shown in an error.
    let is_cut_login = !place.contains('/') && query.contains('@');
    let login = if is_cut_login { rest.rfind('@') } else { place.rfind('@') };
    let login = login.filter(|at| start > 0 || rest[..*at].contains(':'));
    let shown = login.map_or(rest, |at| &rest[at + 1..]);
    let end = shown.find(['?', '#']).unwrap_or(shown.len());
    let (place, query) = shown.split_at(end);
    let login = if login.is_some() { "***@" } else { "" };
    let query = query.chars().next().map_or_else(String::new, |mark| format!("{mark}***"));
    format!("{scheme}{login}{place}{query}")
}

/// Without the query, which may hold a key.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0[..Position::AfterPath])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_login_nor_query_is_shown_of_what_is_meant_as_a_url() {
        for (text, shown) in [
            ("https://h/x?token=geheim", "https://h/x?***"),
            ("https://u:geheim@h/x", "https://***@h/x"),
            ("https://geheim@h/x?geheim#geheim", "https://***@h/x?***"),
            ("https://u:ge/geheim@h/", "https://***@h/"),
            ("https://u:ge?geheim@h/x", "https://***@h/x"),
            ("https://h#geheim", "https://h#***"),
            ("h/x?token=geheim", "h/x?***"),
            ("u:geheim@h/x", "***@h/x"),
            ("https://h/x?geheim=a@geheim", "https://h/x?***"),
            ("https://h/x", "https://h/x"),
            ("/etc/keys@home.json", "/etc/keys@home.json"),
            ("", ""),
        ] {
            assert_eq!(masked(text), shown, "{text}");
        }
    }

    #[test]
    fn urls_are_taken_apart_and_shown_without_their_query() {
        for (text, shown) in [
            ("https://login.example/keys?secret=1", "https://login.example/keys"),
            ("http://[::1]:8080", "http://[::1]:8080/"),
            ("HTTPS://LOGIN.example:443?x", "https://login.example/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), shown);
        }
        for wrong in [
            "login.example/keys",
            "ftp://a/",
            "https://",
            "https://a b/",
            "https://user:pass@a/",
            "https://a:0/",
            "https://a:99999/",
            "https://::1/",
            "https://a/#x",
            "https://a\u{e9}/",
            "https:///a",
            "https:a/",
            "https://a\\b/",
        ] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Url::parse("http://127.1.2.3/").unwrap().is_loopback());
        assert!(Url::parse("http://localhost/").unwrap().is_loopback());
        assert!(!Url::parse("http://localhost.example/").unwrap().is_loopback());
    }
}
