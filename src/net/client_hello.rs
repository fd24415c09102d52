//! The first message of a TLS client, as far as it tells whose connection this is: server name and application protocols
//! (RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301 section 3.1).
//!
//! Looks at the bytes that have come so far and keeps nothing, so it may be asked again with more of them. It is strict:
//! what breaks a rule that it knows is not ours, and the web server behind a shared port may say what is wrong.

/// Bytes of records in which a ClientHello must end. Those of browsers take 2 KiB, keys of post-quantum exchanges included.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;

/// The head of a record: type, version, length (RFC 8446 section 5.1).
const RECORD_HEAD: usize = 5;

/// The most bytes that a record of a plain handshake holds (RFC 8446 section 5.1).
const FRAGMENT_BYTES_MAX: usize = 1 << 14;

/// The head of a handshake message: type and length (RFC 8446 section 4).
const MESSAGE_HEAD: usize = 4;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;

/// What the bytes so far are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// The start of a ClientHello. It is of no use to look again before there are so many bytes.
    Incomplete(usize),
    /// A whole ClientHello.
    Hello(ClientHello),
    /// Anything else: another protocol, a broken ClientHello, or one that is too long.
    Other,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientHello {
    /// The host name, in lower case; `None` if it names none.
    pub server_name: Option<String>,
    /// The application protocols that it offers, the best first; empty if it does not say.
    pub protocols: Vec<Vec<u8>>,
}

/// Looks at the first bytes of a connection.
#[must_use]
pub fn look(bytes: &[u8]) -> Look {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let head = bytes.get(at..).unwrap_or_default();
        let is_head = match head {
            [kind, major, ..] => (*kind, *major) == (HANDSHAKE, 3),
            [kind] => *kind == HANDSHAKE,
            [] => true,
        };
        if !is_head {
            return Look::Other;
        }
        let &[_, _, _, high, low, ..] = head else { return Look::Incomplete(at + RECORD_HEAD) };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let end = at + RECORD_HEAD + len;
        // An empty fragment is forbidden: a message could go on for ever without getting longer.
        if !(1..=FRAGMENT_BYTES_MAX).contains(&len) || end > CLIENT_HELLO_BYTES_MAX {
            return Look::Other;
        }
        message.extend_from_slice(bytes.get(at + RECORD_HEAD..bytes.len().min(end)).unwrap_or_default());
        let missing = match whole(&message) {
            Err(NoClientHello) => return Look::Other,
            Ok(Some(body)) => return parse(body).map_or(Look::Other, Look::Hello),
            Ok(None) => MESSAGE_HEAD.saturating_sub(message.len()).max(1),
        };
        if bytes.len() < end {
            // Another kind of message is known by its head, the rest only with its record.
            let is_begun = message.len() < MESSAGE_HEAD;
            return Look::Incomplete(if is_begun { end.min(bytes.len() + missing) } else { end });
        }
        at = end;
    }
}

/// A message that is no ClientHello.
struct NoClientHello;

/// The body of the message once it is there.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, NoClientHello> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NoClientHello);
    }
    let Some((&[_, high, middle, low], body)) = message.split_first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
    // Nothing may follow it before the server has answered.
    if len > CLIENT_HELLO_BYTES_MAX || body.len() > len {
        return Err(NoClientHello);
    }
    Ok((body.len() == len).then_some(body))
}

/// A part of a message, read from its front.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, len: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).and_then(|bytes| bytes.first().copied())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// A vector whose length stands before it in one byte.
    fn short(&mut self) -> Option<Reader<'b>> {
        let len = self.u8()?;
        self.take(len.into()).map(Reader)
    }

    /// The same with two bytes.
    fn long(&mut self) -> Option<Reader<'b>> {
        let len = self.u16()?;
        self.take(len.into()).map(Reader)
    }
}

/// Reads the body of a ClientHello; nothing if it breaks a rule.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    let _version = body.u16()?;
    let _random = body.take(32)?;
    let session = body.short()?;
    let suites = body.long()?;
    let compressions = body.short()?;
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || compressions.0.is_empty() {
        return None;
    }
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        // As clients of TLS 1.2 may (RFC 5246 section 7.4.1.2).
        return Some(hello);
    }
    let mut extensions = body.long()?;
    if !body.0.is_empty() {
        return None;
    }
    let (mut is_named, mut has_protocols) = (false, false);
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.u16()?, extensions.long()?);
        match kind {
            // None may be there twice (RFC 8446 section 4.2).
            SERVER_NAME if is_named => return None,
            ALPN if has_protocols => return None,
            SERVER_NAME => {
                is_named = true;
                hello.server_name = Some(server_name(content)?);
            }
            ALPN => {
                has_protocols = true;
                hello.protocols = protocols(content)?;
            }
            _ => {}
        }
    }
    Some(hello)
}

/// The one host name of the list.
fn server_name(mut content: Reader<'_>) -> Option<String> {
    let mut list = content.long()?;
    let (kind, name) = (list.u8()?, list.long()?);
    let is_one = kind == HOST_NAME && list.0.is_empty() && content.0.is_empty();
    let is_name = !name.0.is_empty() && name.0.iter().all(u8::is_ascii_graphic);
    (is_one && is_name).then(|| String::from_utf8_lossy(name.0).to_ascii_lowercase())
}

fn protocols(mut content: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = content.long()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.short()?;
        if name.0.is_empty() {
            return None;
        }
        protocols.push(name.0.to_vec());
    }
    (!protocols.is_empty() && content.0.is_empty()).then_some(protocols)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &long(content)].concat()
    }

    fn name_of(name: &str) -> Vec<u8> {
        extension(SERVER_NAME, &long(&[&[HOST_NAME][..], &long(name.as_bytes())].concat()))
    }

    fn alpn_of(names: &[&str]) -> Vec<u8> {
        let names: Vec<u8> =
            names.iter().flat_map(|name| [&[name.len() as u8][..], name.as_bytes()].concat()).collect();
        extension(ALPN, &long(&names))
    }

    /// A handshake message of this type.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 0][..], &long(body)].concat()
    }

    fn body(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(extensions.map(long).unwrap_or_default());
        body
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        message(CLIENT_HELLO, &body(Some(extensions)))
    }

    /// A message in records of so many bytes.
    fn records(message: &[u8], bytes: usize) -> Vec<u8> {
        message.chunks(bytes).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &long(part)].concat()).collect()
    }

    fn seen(name: Option<&str>, protocols: &[&str]) -> Look {
        Look::Hello(ClientHello {
            server_name: name.map(ToOwned::to_owned),
            protocols: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        })
    }

    /// GREASE in the places that browsers put it (RFC 8701 section 3).
    fn with_grease(rest: &[u8]) -> Vec<u8> {
        [&extension(0x2A2A, &[])[..], rest, &extension(0xDADA, &[0])].concat()
    }

    fn good() -> Vec<(Vec<u8>, Look)> {
        vec![
            (message(CLIENT_HELLO, &body(None)), seen(None, &[])),
            (hello(&[]), seen(None, &[])),
            (hello(&name_of("turn.example.org")), seen(Some("turn.example.org"), &[])),
            (hello(&name_of("TURN.Example.ORG")), seen(Some("turn.example.org"), &[])),
            (hello(&alpn_of(&["stun.turn"])), seen(None, &["stun.turn"])),
            (
                hello(&with_grease(&[name_of("a.example"), alpn_of(&["\u{1a}\u{1a}", "h2", "http/1.1"])].concat())),
                seen(Some("a.example"), &["\u{1a}\u{1a}", "h2", "http/1.1"]),
            ),
            // Keys of a post-quantum exchange.
            (hello(&[extension(51, &[9; 1300]), name_of("b.example")].concat()), seen(Some("b.example"), &[])),
        ]
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut() {
        for (message, due) in good() {
            for bytes in [1, 2, 3, 4, 5, 100, 16_000] {
                let whole = records(&message, bytes);
                if whole.len() > CLIENT_HELLO_BYTES_MAX {
                    continue;
                }
                assert_eq!(look(&whole), due);
                let mut due_next = 0;
                for cut in 0..whole.len() {
                    match look(&whole[..cut]) {
                        Look::Incomplete(next) => {
                            assert!(next > cut && next <= whole.len(), "{next} after {cut} of {}", whole.len());
                            due_next = due_next.max(next);
                        }
                        Look::Hello(_) | Look::Other => panic!("{cut} of {} bytes are enough", whole.len()),
                    }
                }
                assert_eq!(due_next, whole.len(), "the last look is at the last byte");
            }
        }
    }

    /// Waiting for the bytes that each look asks for is enough.
    #[test]
    fn few_looks_are_enough() {
        let whole = records(&good()[6].0, 700);
        let (mut have, mut looks) = (0, 0);
        while let Look::Incomplete(next) = look(&whole[..have]) {
            have = next;
            looks += 1;
        }
        assert_eq!((have, looks), (whole.len(), 5));
    }

    #[test]
    fn what_breaks_a_rule_is_something_else() {
        let name = name_of("a.example");
        let alpn = alpn_of(&["h2"]);
        let plain = body(None);
        let mut odd_suites = plain.clone();
        odd_suites.splice(35..39, [0, 3, 0x13, 0x01, 0x02]);
        let bad: Vec<Vec<u8>> = vec![
            hello(&[name.clone(), name.clone()].concat()),
            hello(&[alpn.clone(), alpn.clone()].concat()),
            hello(&name_of("")),
            hello(&name_of("a b")),
            hello(&name_of("\u{e4}.example")),
            hello(&extension(SERVER_NAME, &[])),
            hello(&extension(SERVER_NAME, &long(&[1, 0, 1, b'a']))),
            hello(&extension(SERVER_NAME, &long(&[0, 0, 1, b'a', 0, 0, 1, b'b']))),
            hello(&extension(SERVER_NAME, &[long(&[0, 0, 1, b'a']), vec![0]].concat())),
            hello(&alpn_of(&[])),
            hello(&alpn_of(&[""])),
            hello(&extension(ALPN, &[0, 3, 2, b'h'])),
            hello(&name[..name.len() - 1]),
            hello(&[&name[..], &[0]].concat()),
            message(CLIENT_HELLO, &[&body(Some(&name))[..], &[0]].concat()),
            message(CLIENT_HELLO, &plain[..plain.len() - 1]),
            message(CLIENT_HELLO, &plain[..2]),
            message(CLIENT_HELLO, &odd_suites),
            message(CLIENT_HELLO, &[]),
            // A ServerHello, and one with something behind it.
            message(2, &plain),
            [message(CLIENT_HELLO, &plain), vec![0]].concat(),
        ];
        for message in bad {
            assert_eq!(look(&records(&message, 16_000)), Look::Other, "{message:02x?}");
        }
    }

    #[test]
    fn what_is_no_tls_is_known_by_its_first_bytes() {
        let others: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\n",
            b"\0\x01\0\0\x21\x12\xA4\x42",
            // SSL 2.0 with a ClientHello of version 3.1.
            b"\x80\x2E\x01\x03\x01",
            b"\x16\x02",
            b"\x16G",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\x40\x01",
            b"\x16\x03\x01\0\x05\x02",
            // A message that says to be larger than any.
            b"\x16\x03\x01\0\x05\x01\x01\0\0",
        ];
        for bytes in others {
            assert_eq!(look(bytes), Look::Other, "{bytes:02x?}");
        }
        // An alert, and a record behind a begun message that is none of its.
        assert_eq!(look(b"\x15\x03\x01\0\x02\x01\0"), Look::Other);
        let mut other = records(&hello(&[]), 10)[..15].to_vec();
        other.push(23);
        assert_eq!(look(&other), Look::Other);
    }

    #[test]
    fn a_hello_that_is_too_long_is_something_else_before_it_is_whole() {
        let long = hello(&extension(21, &[0; 17_000]));
        let whole = records(&long, 8_000);
        assert_eq!(look(&whole), Look::Other);
        assert_eq!(look(&whole[..9]), Look::Other, "its length stands at its front");
        // A byte in each record: the heads count too.
        let small = records(&hello(&extension(21, &[0; 3_000])), 1);
        assert_eq!(look(&small), Look::Other);
        let needs = |bytes: &[u8]| match look(bytes) {
            Look::Incomplete(next) => next,
            Look::Hello(_) | Look::Other => 0,
        };
        assert!((0..CLIENT_HELLO_BYTES_MAX - 6).all(|cut| needs(&small[..cut]) <= CLIENT_HELLO_BYTES_MAX));
    }

    #[test]
    fn noise_never_panics() {
        let mut state = 1_u32;
        for (message, _) in good() {
            let whole = records(&message, 50);
            for _ in 0..2_000 {
                let mut noise = whole.clone();
                for _ in 0..3 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = state as usize % noise.len();
                    noise[at] = (state >> 24) as u8;
                }
                let _ = look(&noise);
            }
        }
    }
}
