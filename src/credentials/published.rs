//! Secrets that are printed somewhere: the examples of manuals, and placeholders that were never filled in. Those who
//! guess try them first, whatever their length.

/// As [`plain`] writes them: small letters and digits only.
///
/// Examples of coturn, Synapse, eturnal, Prosody, Jitsi, LiveKit and jwt.io, and what people write for want of another.
const PUBLISHED: &[&str] = &[
    "north",
    "logen",
    "youhavetochoosethispassword",
    "yoursecrethere",
    "n0t4ctuallymatr1xd0torgsshar3d5ecret4obviousreasons",
    "longandcryptic",
    "yoursecretturnaccesstoken",
    "keepthissecret",
    "thisismysecret",
    "devsecret",
    "devkey",
    "examplesecret",
    "sharedsecret",
    "sharedsecretkey",
    "turnsecret",
    "testsecret",
    "testsecretkey",
    "mysecret",
    "mysupersecret",
    "mysupersecretkey",
    "secret",
    "secretkey",
    "supersecret",
    "supersecretkey",
    "supersecretpassword",
    "topsecret",
    "verysecret",
    "verysecretpassword",
    "your256bitsecret",
    "astringsecretatleast256bitslong",
    "changeme",
    "password",
    "passw0rd",
    "p4ssw0rd",
    "password1",
    "password123",
    "pass",
    "hunter2",
    "wonderland",
    "correcthorsebatterystaple",
    "letmein",
    "welcome",
    "qwerty",
    "qwertyuiop",
    "admin",
    "administrator",
    "default",
    "guest",
    "test",
    "test123",
    "testing",
    "root",
    "turn",
    "coturn",
    "turnserver",
    "throughway",
    "webrtc",
    "12345678",
    "123456789",
    "1234567890",
    "12345678901234567890",
    "0123456789abcdef",
    "0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "deadbeefdeadbeefdeadbeefdeadbeef",
];

/// What a sentence that asks for a secret begins with, where a secret should stand.
const REQUESTS: &[&str] = &[
    "changeme",
    "changethis",
    "changeit",
    "replaceme",
    "replacethis",
    "replacewith",
    "yoursecret",
    "yourshared",
    "yourturn",
    "yourstatic",
    "yourstrong",
    "yourlong",
    "yourrandom",
    "yourpassword",
    "yourown",
    "yourchosen",
    "insertyour",
    "insertsecret",
    "putyour",
    "enteryour",
    "somesecret",
    "somelongsecret",
    "somerandom",
    "averylong",
    "alongrandom",
    "arandomsecret",
    "theoutputof",
    "generateme",
    "generatewith",
    "opensslrand",
    "todo",
    "xxxxxxxx",
];

/// Whether a secret, password or token is the example of a well-known guide, or a placeholder.
#[must_use]
pub fn is_published(secret: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(secret) else { return false };
    let text = text.trim();
    let plain = plain(text);
    let is_repeated = text.len() > 1 && text.bytes().all(|byte| Some(byte) == text.bytes().next());
    PUBLISHED.contains(&plain.as_str())
        || REQUESTS.iter().any(|start| plain.starts_with(start))
        || is_placeholder(text)
        || is_repeated
}

/// Every published value, so that its digest can be told too.
pub(crate) fn published() -> impl Iterator<Item = &'static str> {
    PUBLISHED.iter().copied()
}

fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// `<SECRET>`, `[SECRET]`, `${SECRET}`, `$(command)`, `{{ secret }}`, `$SECRET`: what a template or a shell should have filled in.
fn is_placeholder(text: &str) -> bool {
    let is_between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    let is_name = |rest: &str| {
        let mut characters = rest.chars();
        characters.next().is_some_and(|first| first.is_ascii_uppercase())
            && characters.all(|c| c.is_ascii_uppercase() || c == '_')
    };
    [("<", ">"), ("[", "]"), ("${", "}"), ("$(", ")"), ("{{", "}}"), ("`", "`")]
        .iter()
        .any(|(start, end)| is_between(start, end))
        || text.strip_prefix('$').is_some_and(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    // F-A13
    #[test]
    fn what_guides_print_is_known_in_every_spelling_and_what_is_random_is_not() {
        for known in [
            "north",
            "logen",
            "youhavetochoosethispassword",
            "your-secret-here",
            "YOUR_SECRET_HERE",
            "change-me",
            "CHANGEME-please-12345",
            "long-and-cryptic",
            "n0t4ctuAllymatr1Xd0TorgSshar3d5ecret4obvIousreAsons",
            "REPLACE_WITH_A_RANDOM_SHARED_SECRET",
            "the output of `openssl rand -hex 32`",
            "$(openssl rand -hex 32)",
            "<yourChosen/GeneratedSecret>",
            "[shared-secret-key]",
            "${TURN_SECRET}",
            "$TURN_SHARED_SECRET",
            "{{ turn_secret }}",
            "hunter2",
            "0000000000000000",
        ] {
            assert!(is_published(known.as_bytes()), "{known}");
        }
        for fine in [
            "4bf1c2a2d6a0c6ac0f4fd1ab4ad0c81ad7f0b46a1e3a1c8ec35d5a2b0cb5b6d2",
            "x7Jk/2mPq+9s$dLw",
            "$tr0ng-3n0ugh-Xq",
            "north-of-everything",
            "",
        ] {
            assert!(!is_published(fine.as_bytes()), "{fine}");
        }
        assert!(!is_published(&[0xFF; 16]), "bytes are no words");
        assert!(published().all(|word| plain(word) == word));
    }
}
