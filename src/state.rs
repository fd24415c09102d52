//! The state of a running server as bytes that another process, and another release, can read.
//!
//! Bytes: [`MAGIC`], format, kind, length and CRC-32 of what follows (big-endian, [`HEAD`] bytes in all), then CBOR
//! (RFC 8949): an array of the features in use and the state. Records of the state have numbered fields: a reader skips
//! numbers that it does not know. Numbers are never used again for something else, neither those of fields nor those of
//! an enumeration's values. Decision 0196.

use std::collections::BTreeMap;
use std::fmt;

use minicbor::{Decode, Decoder, Encode};

/// What each state begins with.
pub const MAGIC: [u8; 8] = *b"TWstate\n";

/// Bytes before the CBOR.
pub const HEAD: usize = 28;

/// The format that this release writes unless asked for the one before it.
pub const FORMAT: u32 = 2;

/// The oldest format that this release reads and writes.
pub const FORMAT_MIN: u32 = 1;

/// Every feature that a state can use beyond what the first format has, and the first format that can carry it.
///
/// A release that lacks one refuses a state that uses it, and a state that uses one is not written in an older format.
pub const FEATURES: [(&str, u32); 6] = [
    (LINK_LOCAL_CLIENTS, 2),
    (DUAL_ALLOCATIONS, 2),
    (SHA256_KEYS, 2),
    (MOBILE_ALLOCATIONS, 2),
    (OTHER_REALMS, 2),
    (TCP_ALLOCATIONS, 2),
];

/// Clients with an IPv6 link-local address, which need the number of an interface (RFC 4007).
pub const LINK_LOCAL_CLIENTS: &str = "link_local_clients";

/// Allocations with relayed addresses of both families (RFC 8656 section 7.2).
pub const DUAL_ALLOCATIONS: &str = "dual_allocations";

/// Clients that may change their network (RFC 8016).
pub const MOBILE_ALLOCATIONS: &str = "mobile_allocations";

/// Clients that prove themselves by SHA-256 (RFC 8489 section 9.2.4).
pub const SHA256_KEYS: &str = "sha256_keys";

/// Clients of a realm that is not the server's own.
pub const OTHER_REALMS: &str = "other_realms";

/// TCP allocations (RFC 6062), with their connections to peers.
pub const TCP_ALLOCATIONS: &str = "tcp_allocations";

/// How often each feature is in use, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Features(#[n(0)] BTreeMap<String, u64>);

impl Features {
    /// Notes so many uses of a feature.
    pub fn add(&mut self, name: &str, uses: u64) {
        if uses > 0 {
            let sum = self.0.entry(name.to_owned()).or_default();
            *sum = sum.saturating_add(uses);
        }
    }

    /// Those of another state as well.
    pub fn add_all(&mut self, other: &Self) {
        for (name, uses) in &other.0 {
            self.add(name, *uses);
        }
    }

    /// Each name and how often it is used, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, uses)| (name.as_str(), *uses))
    }

    /// Whether a reader that knows these features can take this over.
    ///
    /// # Errors
    /// [`StateError::Feature`] with the first feature that it lacks.
    pub fn check_known(&self, knows: impl Fn(&str) -> bool) -> Result<(), StateError> {
        match self.iter().find(|(name, _)| !knows(name)) {
            Some((name, uses)) => Err(StateError::Feature { name: name.to_owned(), uses }),
            None => Ok(()),
        }
    }
}

/// What the bytes hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// One worker's server.
    Worker = 1,
    /// What the workers of a process share.
    Process = 2,
    /// What has changed of a worker's server since its early export.
    WorkerChanges = 3,
    /// What has changed of what the workers of a process share.
    ProcessChanges = 4,
    /// One worker's streams.
    Streams = 5,
    /// Some allocations of a worker, before everything else.
    EarlyAllocations = 6,
}

/// A state that is handed to another process.
pub trait State: Encode<()> + for<'b> Decode<'b, ()> + Clone {
    /// Its kind.
    const KIND: Kind;

    /// Adds the features that it uses.
    fn add_features(&self, features: &mut Features);

    /// Takes out what only formats after `format` have. Nothing that [`State::add_features`] names may be lost by it.
    fn keep_for(&mut self, format: u32);
}

/// Why bytes are not a state that this release can take over, or a state can't be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateError {
    /// They don't begin as a state does.
    Magic,
    /// Another kind of state.
    Kind {
        /// The number found.
        found: u32,
        /// The one expected.
        expected: Kind,
    },
    /// The format is none of ours.
    Format {
        /// The number found, or asked for.
        format: u32,
    },
    /// Fewer or more bytes than the head says.
    Length {
        /// Bytes found after the head, or in all where the head itself is cut short.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The bytes were damaged.
    Checksum,
    /// A feature is in use that the reader, or the format asked for, lacks.
    Feature {
        /// Its name.
        name: String,
        /// How often it is used.
        uses: u64,
    },
    /// The CBOR is not that of a state: a field is missing or has another type.
    Body(String),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("this is not the state of a throughway server"),
            Self::Kind { found, expected } => {
                write!(f, "this is a state of kind {found}, expected kind {} ({expected:?})", *expected as u32)
            }
            Self::Format { format } => write!(
                f,
                "the state has format {format}; this release reads and writes {FORMAT_MIN} to {FORMAT}: use releases that follow each other"
            ),
            Self::Length { found, expected } => {
                write!(f, "the state is cut short or too long: {found} bytes of {expected}")
            }
            Self::Checksum => f.write_str("the state is damaged: its checksum does not fit"),
            Self::Feature { name, uses } => write!(
                f,
                "\"{name}\" is in use ({uses} times), which the other release does not know: end these sessions first, or use a newer release"
            ),
            Self::Body(why) => write!(f, "the state can't be read: {why}"),
        }
    }
}

impl std::error::Error for StateError {}

/// A state as bytes of this format.
///
/// # Errors
/// [`StateError::Format`] for a format that this release does not write, [`StateError::Feature`] if the state uses one that the
/// format lacks.
pub fn write<T: State>(state: &T, format: u32) -> Result<Vec<u8>, StateError> {
    if !(FORMAT_MIN..=FORMAT).contains(&format) {
        return Err(StateError::Format { format });
    }
    let mut features = Features::default();
    state.add_features(&mut features);
    features.check_known(|name| FEATURES.iter().any(|(known, since)| *known == name && *since <= format))?;
    let mut bytes = vec![0; HEAD];
    let written = if format == FORMAT {
        minicbor::encode((&features, state), &mut bytes)
    } else {
        let mut older = state.clone();
        older.keep_for(format);
        minicbor::encode((&features, &older), &mut bytes)
    };
    written.map_err(|error| StateError::Body(error.to_string()))?;
    fill_head(&mut bytes, format, T::KIND as u32);
    Ok(bytes)
}

/// Writes the head of what follows the first [`HEAD`] bytes.
///
/// # Panics
/// If there are fewer than [`HEAD`] bytes.
pub fn fill_head(bytes: &mut [u8], format: u32, kind: u32) {
    let (head, body) = bytes.split_at_mut(HEAD);
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&format.to_be_bytes());
    head[12..16].copy_from_slice(&kind.to_be_bytes());
    head[16..24].copy_from_slice(&(body.len() as u64).to_be_bytes());
    head[24..28].copy_from_slice(&crc32fast::hash(body).to_be_bytes());
}

/// The state that [`write`] made, in this release or the one before or after it.
///
/// # Errors
/// [`StateError`]; whatever the bytes are, nothing panics, and what is allocated is bounded by their length.
pub fn read<T: State>(bytes: &[u8]) -> Result<T, StateError> {
    let Some((head, body)) = bytes.split_first_chunk::<HEAD>() else {
        let looks_right = bytes.starts_with(&MAGIC[..bytes.len().min(8)]) && !bytes.is_empty();
        let cut = StateError::Length { found: bytes.len() as u64, expected: HEAD as u64 };
        return Err(if looks_right { cut } else { StateError::Magic });
    };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..8] != MAGIC {
        return Err(StateError::Magic);
    }
    if !(FORMAT_MIN..=FORMAT).contains(&word(8)) {
        return Err(StateError::Format { format: word(8) });
    }
    if word(12) != T::KIND as u32 {
        return Err(StateError::Kind { found: word(12), expected: T::KIND });
    }
    let expected = u64::from(word(16)) << 32 | u64::from(word(20));
    if expected != body.len() as u64 {
        return Err(StateError::Length { found: body.len() as u64, expected });
    }
    if crc32fast::hash(body) != word(24) {
        return Err(StateError::Checksum);
    }
    read_body(body)
}

fn read_body<T: State>(body: &[u8]) -> Result<T, StateError> {
    let unreadable = |error: minicbor::decode::Error| StateError::Body(error.to_string());
    let mut decoder = Decoder::new(body);
    let fields = decoder.array().map_err(unreadable)?;
    let features: Features = decoder.decode().map_err(unreadable)?;
    features.check_known(|name| FEATURES.iter().any(|(known, _)| *known == name))?;
    let state = decoder.decode().map_err(unreadable)?;
    for _ in 2..fields.unwrap_or(2) {
        decoder.skip().map_err(unreadable)?;
    }
    if decoder.position() == body.len() { Ok(state) } else { Err(StateError::Body("bytes after its end".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Debug, Encode, Decode)]
    #[cbor(map)]
    struct Sample {
        #[n(0)]
        one: u32,
        /// Since format 2.
        #[n(1)]
        two: Option<u32>,
        #[n(2)]
        link_local: u64,
    }

    impl State for Sample {
        const KIND: Kind = Kind::Process;
        fn add_features(&self, features: &mut Features) {
            features.add(LINK_LOCAL_CLIENTS, self.link_local);
        }
        fn keep_for(&mut self, format: u32) {
            if format < 2 {
                self.two = None;
            }
        }
    }

    const SAMPLE: Sample = Sample { one: 7, two: Some(9), link_local: 0 };

    /// With a head that fits, whatever the CBOR is.
    fn with_head(format: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [&[0; HEAD], body].concat();
        fill_head(&mut bytes, format, Kind::Process as u32);
        bytes
    }

    #[test]
    fn a_state_comes_back_and_an_older_format_lacks_what_is_new() {
        assert_eq!(read::<Sample>(&write(&SAMPLE, 2).unwrap()), Ok(SAMPLE));
        assert_eq!(read::<Sample>(&write(&SAMPLE, 1).unwrap()), Ok(Sample { two: None, ..SAMPLE }));
        for format in [0, FORMAT + 1] {
            assert_eq!(write(&SAMPLE, format), Err(StateError::Format { format }));
        }
    }

    #[test]
    fn a_feature_that_the_other_lacks_is_refused_with_its_name_and_count() {
        let state = Sample { link_local: 3, ..SAMPLE };
        assert_eq!(read::<Sample>(&write(&state, 2).unwrap()), Ok(state.clone()));
        let refused = write(&state, 1).unwrap_err();
        assert_eq!(refused, StateError::Feature { name: LINK_LOCAL_CLIENTS.into(), uses: 3 });
        let mut body = Vec::new();
        minicbor::encode((BTreeMap::from([("mobility", 2_u64)]), &SAMPLE), &mut body).unwrap();
        let refused = read::<Sample>(&with_head(2, &body)).unwrap_err();
        assert!(refused.to_string().starts_with("\"mobility\" is in use (2 times)"), "{refused}");
    }

    #[test]
    fn fields_of_a_later_release_are_skipped() {
        let mut body = Vec::new();
        let mut e = minicbor::Encoder::new(&mut body);
        e.array(3).unwrap().map(0).unwrap();
        e.map(4).unwrap().u8(0).unwrap().u32(7).unwrap().u8(1).unwrap().u32(9).unwrap();
        e.u8(2).unwrap().u32(0).unwrap().u8(99).unwrap().array(2).unwrap().str("new").unwrap().bool(true).unwrap();
        e.str("a third part").unwrap();
        assert_eq!(read::<Sample>(&with_head(2, &body)), Ok(SAMPLE));
    }

    #[test]
    fn what_is_no_state_is_refused_with_a_reason() {
        let good = write(&SAMPLE, FORMAT).unwrap();
        assert_eq!(read::<Sample>(b""), Err(StateError::Magic));
        assert_eq!(read::<Sample>(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), Err(StateError::Magic));
        for length in 1..good.len() {
            assert!(matches!(read::<Sample>(&good[..length]), Err(StateError::Length { .. })), "{length}");
        }
        assert!(matches!(read::<Sample>(&[&good[..], b"x"].concat()), Err(StateError::Length { .. })));
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read::<Sample>(&flipped).is_err(), "bit {bit}");
        }
        let future = read::<Sample>(&with_head(3, &good[HEAD..])).unwrap_err();
        assert_eq!(future, StateError::Format { format: 3 });
        assert!(future.to_string().contains("reads and writes 1 to 2"), "{future}");
        let missing = read::<Sample>(&with_head(2, &[0x82, 0xA0, 0xA0])).unwrap_err();
        assert!(matches!(missing, StateError::Body(_)), "{missing}");
        assert!(matches!(read::<Sample>(&with_head(2, &[0x82, 0xA0])), Err(StateError::Body(_))));
        let other = with_head(2, &good[HEAD..])
            .iter()
            .enumerate()
            .map(|(at, byte)| if at == 15 { 1 } else { *byte })
            .collect::<Vec<_>>();
        assert_eq!(read::<Sample>(&other), Err(StateError::Kind { found: 1, expected: Kind::Process }));
    }
}
