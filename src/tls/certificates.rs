//! Certificates from PEM files: read, checked whole, chosen by server name.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::net::clock;

/// No chain or key is longer; a device file given by mistake must not be read for ever.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a certificate and its key lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
}

/// A file that can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct LoadError {
    /// Which file.
    pub path: PathBuf,
    /// Whether it is the key's.
    pub is_key: bool,
    /// What is wrong with it.
    pub reason: String,
}

/// A certificate that is ready to be presented.
#[derive(Clone)]
pub struct Loaded {
    /// Chain and key.
    key: Arc<CertifiedKey>,
    /// The DNS names it stands for, in lower case, wildcards as they are written.
    pub names: Vec<String>,
    /// When the first certificate of its chain ends, in seconds since 1970.
    pub not_after: u64,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("names", &self.names).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Reads one pair of files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(files: &Files, provider: &CryptoProvider) -> Result<Self, LoadError> {
        let chain = read_chain(&files.certificate)?;
        let key = read_key(&files.private_key)?;
        let bad = |path: &Path, is_key, reason: String| LoadError { path: path.to_owned(), is_key, reason };
        let key = provider.key_provider.load_private_key(key).map_err(|error| {
            bad(&files.private_key, true, format!("no key that a certificate can have here ({error}); RSA from 2048 bits on, P-256, P-384 and Ed25519 are fine"))
        })?;
        let mut names = Vec::new();
        let mut not_after = u64::MAX;
        for (at, certificate) in chain.iter().enumerate() {
            let position = || if at == 0 { String::new() } else { format!("certificate {} of the chain ", at + 1) };
            let wrong = |what: String| bad(&files.certificate, false, format!("{}{what}", position()));
            let parsed = webpki::EndEntityCert::try_from(certificate)
                .map_err(|error| wrong(format!("is no certificate of X.509 version 3: {error}")))?;
            if at == 0 {
                names = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
            }
            let ends = end_of(certificate).ok_or_else(|| wrong("has an end that can't be read".to_owned()))?;
            not_after = not_after.min(ends);
        }
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let reason = format!("is not the key of {}", files.certificate.display());
                return Err(bad(&files.private_key, true, reason));
            }
            Err(error) => return Err(bad(&files.certificate, false, error.to_string())),
        }
        Ok(Self { key: Arc::new(certified), names, not_after })
    }

    /// Whole days until its end, negative when that is past.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        let seconds = self.not_after as i64 - clock::unix_seconds().0 as i64;
        seconds.div_euclid(86_400)
    }

    fn stands_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            // RFC 6125 section 6.4.3: a wildcard is one label.
            Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => own == name,
        })
    }
}

fn read_small(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(|error| format!("can't be read: {error}"))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bad = |reason: String| LoadError { path: path.to_owned(), is_key: false, reason };
    let bytes = read_small(path).map_err(bad)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("is not whole PEM: {error}")))?;
    if chain.is_empty() {
        return Err(bad("holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let bad = |reason: String| LoadError { path: path.to_owned(), is_key: true, reason };
    let bytes = read_small(path).map_err(bad)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        if !matches!(error, pem::Error::NoItemsFound) {
            // None of them shows the key.
            return bad(format!("is not whole PEM: {error}"));
        }
        let is_locked = bytes.windows(9).any(|part| part == b"ENCRYPTED");
        bad(if is_locked {
            "is locked with a passphrase, which nobody could type here; store it without".to_owned()
        } else {
            "holds no private key (-----BEGIN PRIVATE KEY-----)".to_owned()
        })
    })
}

/// All that can be presented, in the order of the configuration.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwap<(Vec<Files>, Vec<Loaded>)>,
}

impl Certificates {
    /// Reads every pair.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn load(files: &[Files], provider: &CryptoProvider) -> Result<Self, LoadError> {
        let loaded = read_all(files, provider)?;
        Ok(Self { current: ArcSwap::from_pointee((files.to_vec(), loaded)) })
    }

    /// Where they came from.
    #[must_use]
    pub fn files(&self) -> Vec<Files> {
        self.current.load().0.clone()
    }

    /// What is presented now.
    #[must_use]
    pub fn loaded(&self) -> Vec<Loaded> {
        self.current.load().1.clone()
    }

    /// Reads these files and presents them from the next handshake on; established streams keep what they have.
    ///
    /// # Errors
    /// The first file that can't be used; nothing has changed then.
    pub fn replace(&self, files: &[Files], provider: &CryptoProvider) -> Result<(), LoadError> {
        let loaded = read_all(files, provider)?;
        let current = self.current.load();
        for ((file, new), old) in files.iter().zip(&loaded).zip(&current.1) {
            if new.days_left() < 0 && old.days_left() >= 0 {
                let reason = format!("ended {} days ago, and the one in use has not", -new.days_left());
                return Err(LoadError { path: file.certificate.clone(), is_key: false, reason });
            }
        }
        self.current.store(Arc::new((files.to_vec(), loaded)));
        Ok(())
    }
}

fn read_all(files: &[Files], provider: &CryptoProvider) -> Result<Vec<Loaded>, LoadError> {
    files.iter().map(|files| Loaded::read(files, provider)).collect()
}

impl ResolvesServerCert for Certificates {
    /// The first that stands for the name and whose key the client can verify; a name that nobody has, or none
    /// at all (clients that connect to an address send none), gets the first that the client can verify.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let fits = |loaded: &&Loaded| loaded.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = name.and_then(|name| current.1.iter().filter(fits).find(|loaded| loaded.stands_for(&name)));
        named
            .or_else(|| current.1.iter().find(fits))
            .or_else(|| current.1.first())
            .map(|loaded| Arc::clone(&loaded.key))
    }
}

/// When a certificate ends (RFC 5280 section 4.1.2.5), in seconds since 1970.
fn end_of(certificate: &[u8]) -> Option<u64> {
    let (SEQUENCE, outer, _) = der(certificate)? else { return None };
    let (SEQUENCE, mut rest, _) = der(outer)? else { return None };
    let (tag, _, after) = der(rest)?;
    // [0] version, DEFAULT v1
    if tag == 0xA0 {
        rest = after;
    }
    // serialNumber, signature, issuer
    for _ in 0..3 {
        rest = der(rest)?.2;
    }
    let (SEQUENCE, validity, _) = der(rest)? else { return None };
    let not_before_on = der(validity)?.2;
    let (tag, time, _) = der(not_before_on)?;
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let text = std::str::from_utf8(time.get(range)?).ok()?;
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let (year, at) = match tag {
        UTC_TIME => (digits(0..2).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        GENERALIZED_TIME => (digits(0..4)?, 4),
        _ => return None,
    };
    let part = |number: usize| digits(at + 2 * number..at + 2 * number + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1..=12).contains(&month) || time.get(at + 10..) != Some(b"Z") {
        return None;
    }
    // Days from 1970-01-01 in the Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
}

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first DER element: its tag, its content, and what follows it.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};
    use std::fs;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughway-tls-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn files(&self, (certificate, key): (&str, &str)) -> Files {
            let files = Files { certificate: self.0.join("chain.pem"), private_key: self.0.join("key.pem") };
            fs::write(&files.certificate, certificate).unwrap();
            fs::write(&files.private_key, key).unwrap();
            files
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn issue(names: &[&str], (year, month, day): (i32, u8, u8), key: &KeyPair) -> (String, String) {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_before = date_time_ymd(1990, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        (params.self_signed(key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn names_and_end_are_read_whatever_the_key() {
        let directory = Directory::new("read");
        // (end, seconds since 1970): both time formats, leap days, the turn of a century.
        let ends = [
            ((1999, 12, 31), 946_598_400),
            ((2000, 2, 29), 951_782_400),
            ((2024, 2, 29), 1_709_164_800),
            ((2026, 11, 21), 1_795_219_200),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 1, 1), 2_524_608_000),
            ((2100, 3, 1), 4_107_542_400),
        ];
        for (at, (end, seconds)) in ends.into_iter().enumerate() {
            let algorithm = [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519][at % 3];
            let key = KeyPair::generate_for(algorithm).unwrap();
            let pem = issue(&["Turn.Example.org", "*.example.net", "192.0.2.7"], end, &key);
            let loaded = Loaded::read(&directory.files((&pem.0, &pem.1)), &provider()).unwrap();
            assert_eq!(loaded.not_after, seconds, "{end:?}");
            assert_eq!(loaded.names, ["turn.example.org", "*.example.net"]);
        }
    }

    #[test]
    fn a_chain_ends_with_its_first_to_end() {
        let directory = Directory::new("chain");
        let key = KeyPair::generate().unwrap();
        let (own, key_pem) = issue(&["a.example.org"], (2100, 1, 1), &key);
        let (issuer, _) = issue(&["ca.example.org"], (2090, 1, 1), &KeyPair::generate().unwrap());
        let files = directory.files((&(own + &issuer), &key_pem));
        let loaded = Loaded::read(&files, &provider()).unwrap();
        assert_eq!((loaded.not_after, loaded.names), (3_786_912_000, vec!["a.example.org".to_owned()]));
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        let directory = Directory::new("wildcard");
        let pem = issue(&["turn.example.org", "*.example.net"], (2100, 1, 1), &KeyPair::generate().unwrap());
        let loaded = Loaded::read(&directory.files((&pem.0, &pem.1)), &provider()).unwrap();
        for (name, stands) in [
            ("turn.example.org", true),
            ("a.example.net", true),
            ("example.net", false),
            ("a.b.example.net", false),
            (".example.net", false),
            ("a.turn.example.org", false),
        ] {
            assert_eq!(loaded.stands_for(name), stands, "{name}");
        }
    }

    #[test]
    fn each_bad_file_is_named_with_its_reason_and_changes_nothing() {
        let directory = Directory::new("bad");
        let key = KeyPair::generate().unwrap();
        let (own, key_pem) = issue(&["a.example.org"], (2100, 1, 1), &key);
        let files = directory.files((&own, &key_pem));
        let certificates = Certificates::load(std::slice::from_ref(&files), &provider()).unwrap();
        let (other, other_key) = issue(&["a.example.org"], (2100, 1, 1), &KeyPair::generate().unwrap());
        let (ended, _) = issue(&["a.example.org"], (2021, 1, 1), &key);
        let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let cases: [(&str, &str, bool, &str); 10] = [
            ("nonsense", &key_pem, false, "holds no certificate"),
            (&own[..own.len() / 2], &key_pem, false, "is not whole PEM"),
            (noise, &key_pem, false, "is no certificate of X.509 version 3"),
            (&format!("{own}{noise}"), &key_pem, false, "certificate 2 of the chain is no certificate"),
            (&ended, &key_pem, false, "days ago, and the one in use has not"),
            (&own, &other_key, true, "is not the key of"),
            (&other, &key_pem, true, "is not the key of"),
            (&own, "", true, "holds no private key"),
            (&own, locked, true, "passphrase"),
            (&own, bad_key, true, "no key that a certificate can have here"),
        ];
        for (certificate, key, is_key, reason) in cases {
            directory.files((certificate, key));
            let error = certificates.replace(std::slice::from_ref(&files), &provider()).unwrap_err();
            let path = if is_key { &files.private_key } else { &files.certificate };
            assert_eq!((error.is_key, &error.path), (is_key, path), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
            assert_eq!(certificates.loaded()[0].not_after, 4_102_444_800);
        }
        fs::remove_file(&files.private_key).unwrap();
        let error = certificates.replace(&[files], &provider()).unwrap_err();
        assert!(error.to_string().contains("key.pem: can't be read: No such file"), "{error}");
    }

    #[test]
    fn der_that_ends_early_or_lies_about_its_length_is_no_certificate() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let whole = certificate.der().to_vec();
        assert!(end_of(&whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(end_of(&whole[..len]), None, "{len} bytes");
        }
        for wrong in [&[0x30, 0x80][..], &[0x30, 0x84, 1, 1, 1, 1], &[0x30, 0x83, 0xFF, 0xFF, 0xFF], &[0x31, 0]] {
            assert_eq!(end_of(wrong), None);
        }
    }
}
