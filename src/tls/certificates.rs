//! Certificates from PEM files: read, checked whole, chosen by server name.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::der::{self, Facts};
use crate::clock;
use crate::files;

/// No chain or key is longer; a device file given by mistake must not be read for ever.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a certificate and its key lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
    /// Of files that are still to come: the names that a stand-in is presented for until then.
    pub stand_in: Option<Arc<[String]>>,
}

impl Files {
    /// Names that no client asks for, of what is presented while certificates of a server that goes on after a crash can't be
    /// read.
    #[must_use]
    pub fn stand_in_for_lost() -> Arc<[String]> {
        Arc::from(["certificate.invalid".to_owned()])
    }
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
    /// When it begins, in seconds since 1970.
    pub not_before: u64,
    /// It signs itself, and is presented until the real one is there.
    pub is_stand_in: bool,
    /// When it ends itself, in seconds since 1970. What comes behind it in the file decides nothing: clients look for a
    /// way to their own list of authorities, and may find one past it.
    pub not_after: u64,
    /// The certificates of the file, its own first.
    pub chain: Vec<ChainLink>,
}

/// What a file of certificates says, without the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// As in [`Loaded`].
    pub names: Vec<String>,
    /// As in [`Loaded`].
    pub not_after: u64,
    /// As in [`Loaded`].
    pub chain: Vec<ChainLink>,
    /// As in [`Loaded`].
    pub is_stand_in: bool,
}

impl Summary {
    /// Whether it is for a host name, in small letters.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        is_for(&self.names, name)
    }
}

/// Whole days until a time in seconds since 1970, negative when it is past.
#[must_use]
pub fn days_until(seconds: u64) -> i64 {
    (seconds as i64 - clock::unix_seconds().0 as i64).div_euclid(86_400)
}

fn is_for(names: &[String], name: &str) -> bool {
    names.iter().any(|own| match own.strip_prefix("*.") {
        // RFC 6125 section 6.4.3: a wildcard is one label.
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => own == name,
    })
}

/// One certificate of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainLink {
    /// Whose it is, as people call it.
    pub subject: String,
    /// Who made it.
    pub issuer: String,
    /// When it ends, in seconds since 1970.
    pub not_after: u64,
    /// Whether the certificate of its issuer is in the file too, or known to everybody, or itself.
    pub is_issuer_at_hand: bool,
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
        let loaded = Self::read_files(files, provider);
        match &files.stand_in {
            Some(names) => loaded.or_else(|_| Self::stand_in(files, names, provider)),
            None => loaded,
        }
    }

    fn read_files(files: &Files, provider: &CryptoProvider) -> Result<Self, LoadError> {
        let bad = |path: &Path, is_key, reason| LoadError { path: path.to_owned(), is_key, reason };
        let chain = read_small(&files.certificate).map_err(|reason| bad(&files.certificate, false, reason))?;
        let key = read_small(&files.private_key).map_err(|reason| bad(&files.private_key, true, reason))?;
        Self::of_pem(&chain, &key, files, provider)
    }

    /// Reads a text that holds both.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(pem: &[u8], provider: &CryptoProvider) -> Result<Self, String> {
        let nowhere = Files { certificate: PathBuf::new(), private_key: PathBuf::new(), stand_in: None };
        Self::of_pem(pem, pem, &nowhere, provider).map_err(|error| error.reason)
    }

    /// One that signs itself, for handshakes before there is another one.
    fn stand_in(files: &Files, names: &[String], provider: &CryptoProvider) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError { path: files.certificate.clone(), is_key: false, reason };
        let (chain, key) = self_signed(names.to_vec(), None).map_err(bad)?;
        let nowhere = |error: rustls::Error| bad(error.to_string());
        let key = provider.key_provider.load_private_key(key).map_err(nowhere)?;
        let links = links(std::slice::from_ref(&chain)).map_err(bad)?;
        let now = clock::unix_seconds().0;
        let key = Arc::new(CertifiedKey::new(vec![chain], key));
        Ok(Self { key, names: names.to_vec(), not_before: now, not_after: now, is_stand_in: true, chain: links })
    }

    fn of_pem(chain: &[u8], key: &[u8], files: &Files, provider: &CryptoProvider) -> Result<Self, LoadError> {
        let chain = parse_chain(chain, &files.certificate)?;
        let key = parse_key(key, &files.private_key)?;
        let bad = |path: &Path, is_key, reason: String| LoadError { path: path.to_owned(), is_key, reason };
        let key = provider.key_provider.load_private_key(key).map_err(|error| {
            bad(
                &files.private_key,
                true,
                format!("is not a supported key ({error}); use RSA of 2048 bits or more, P-256, P-384 or Ed25519"),
            )
        })?;
        let own = webpki::EndEntityCert::try_from(&chain[0]).map_err(|error| {
            bad(&files.certificate, false, format!("is not a certificate of X.509 version 3: {error}"))
        })?;
        let names: Vec<String> = own.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let links = links(&chain).map_err(|reason| bad(&files.certificate, false, reason))?;
        let not_before = der::facts(&chain[0]).map_or(0, |facts| facts.not_before);
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let reason = format!("is not the key of {}", files.certificate.display());
                return Err(bad(&files.private_key, true, reason));
            }
            Err(error) => return Err(bad(&files.certificate, false, error.to_string())),
        }
        let not_after = links[0].not_after;
        Ok(Self { key: Arc::new(certified), names, not_before, not_after, is_stand_in: false, chain: links })
    }

    /// What an operator should look at besides its own end, in sentences; nothing here keeps it from being presented.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let now = clock::unix_seconds().0;
        let own = &self.chain[0];
        let mut warnings = Vec::new();
        if !own.is_issuer_at_hand {
            warnings.push(format!(
                "the certificate of its issuer, {}, is not in the file, so many clients find no way to an authority that they \
                 trust: use the whole chain (certbot calls it fullchain.pem), unless your clients know {0} itself",
                own.issuer
            ));
        }
        for (at, link) in self.chain.iter().enumerate().skip(1).filter(|(_, link)| link.not_after < now) {
            warnings.push(format!(
                "certificate {} of the file, {}, ended {} days ago; most clients find a way past it: take it out, or take \
                 the chain that the authority gives today",
                at + 1,
                link.subject,
                (now - link.not_after) / 86_400
            ));
        }
        warnings
    }

    /// Whole days until its end, negative when that is past.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        days_until(self.not_after)
    }

    /// What it says, without the key.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            names: self.names.clone(),
            not_after: self.not_after,
            chain: self.chain.clone(),
            is_stand_in: self.is_stand_in,
        }
    }

    fn stands_for(&self, name: &str) -> bool {
        is_for(&self.names, name)
    }
}

/// What the certificates of a file say of themselves.
fn links(chain: &[CertificateDer<'static>]) -> Result<Vec<ChainLink>, String> {
    let wrong = |at: usize| {
        if at == 0 {
            "has a name or an end that can't be read".to_owned()
        } else {
            format!("certificate {} of the chain is not a certificate", at + 1)
        }
    };
    let all: Vec<Facts<'_>> = chain
        .iter()
        .enumerate()
        .map(|(at, certificate)| der::facts(certificate).ok_or_else(|| wrong(at)))
        .collect::<Result<_, _>>()?;
    let is_known = |name: &[u8]| webpki_roots::TLS_SERVER_ROOTS.iter().any(|root| root.subject.as_ref() == name);
    Ok(all
        .iter()
        .map(|of| ChainLink {
            subject: der::name_text(of.subject),
            issuer: der::name_text(of.issuer),
            not_after: of.not_after,
            is_issuer_at_hand: all.iter().any(|other| other.subject == of.issuer) || is_known(of.issuer),
        })
        .collect())
}

fn read_small(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = files::open(path).map_err(|error| {
        let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let remedy = if is_denied {
            "; let the server's user read it and enter its directories, as with `setfacl -m u:throughway:r FILE`"
        } else {
            ""
        };
        format!("can't be read: {error}{remedy}")
    })?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// A certificate that signs itself, with its key; `proof` is the digest that RFC 8737 section 3 puts into it.
fn self_signed(
    names: Vec<String>,
    proof: Option<&[u8]>,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), String> {
    let failed = |error: rcgen::Error| error.to_string();
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params.custom_extensions = proof.into_iter().map(rcgen::CustomExtension::new_acme_identifier).collect();
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(ToOwned::to_owned)?;
    Ok((certificate.der().clone(), key))
}

/// What proves control over a name in a handshake (RFC 8737), for [`Certificates::present_challenges`].
///
/// # Errors
/// If the system gives no random bytes.
pub fn challenge(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let (certificate, key) = self_signed(vec![name.to_owned()], Some(digest))?;
    let key = super::provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], key)))
}

fn parse_chain(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bad = |reason: String| LoadError { path: path.to_owned(), is_key: false, reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("is not complete PEM: {error}")))?;
    if chain.is_empty() {
        return Err(bad("holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(chain)
}

fn parse_key(bytes: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let bad = |reason: String| LoadError { path: path.to_owned(), is_key: true, reason };
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
        // Both forms: the old one keeps PEM's ordinary head and has a line of its own, which is no base64.
        let is_locked = bytes.windows(9).any(|part| part == b"ENCRYPTED");
        bad(if is_locked {
            "is locked with a passphrase, which a server can't ask for; store it without: openssl pkey -in OLD -out NEW"
                .to_owned()
        } else if !matches!(error, pem::Error::NoItemsFound) {
            // None of them shows the key.
            format!("is not complete PEM: {error}")
        } else {
            "holds no private key (-----BEGIN PRIVATE KEY-----)".to_owned()
        })
    })
}

/// Device, inode, size, and the times of content and inode; `None` for what is not there.
pub(super) type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &Path) -> Stamp {
    let of = std::fs::metadata(path).ok()?;
    Some((of.dev(), of.ino(), of.size(), (of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())))
}

/// Of certificate and key of each pair.
pub(super) fn stamps(files: &[Files]) -> Vec<Stamp> {
    files.iter().flat_map(|files| [stamp(&files.certificate), stamp(&files.private_key)]).collect()
}

/// Certificates that were read and found good, and are not presented yet.
#[must_use = "they are not presented yet"]
#[derive(Debug)]
pub struct Pending(Vec<Files>, Vec<Loaded>, Vec<Stamp>);

/// All that can be presented, in the order of the configuration.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwap<Pending>,
    /// What proves control over names at this moment.
    challenges: ArcSwap<Challenges>,
}

/// By name, at most a hundred.
type Challenges = Vec<(String, Arc<CertifiedKey>)>;

impl Certificates {
    /// Reads every pair.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn load(files: &[Files], provider: &CryptoProvider) -> Result<Self, LoadError> {
        let current = ArcSwap::from_pointee(read_all(files, provider)?);
        Ok(Self { current, challenges: ArcSwap::default() })
    }

    /// Where they came from.
    #[must_use]
    pub fn files(&self) -> Vec<Files> {
        self.current.load().0.clone()
    }

    /// What these files were when they were read.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        self.current.load().2.clone()
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
        self.present(self.read(files, provider)?);
        Ok(())
    }

    /// Reads these files, which [`Certificates::present`] presents without anything that could fail.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn read(&self, files: &[Files], provider: &CryptoProvider) -> Result<Pending, LoadError> {
        let read = read_all(files, provider)?;
        let current = self.current.load();
        for ((file, new), old) in files.iter().zip(&read.1).zip(&current.1) {
            if new.is_stand_in && !old.is_stand_in {
                let reason = "can't be read any more, and the one in use is good".to_owned();
                return Err(LoadError { path: file.certificate.clone(), is_key: false, reason });
            }
            if new.days_left() < 0 && old.days_left() >= 0 {
                let reason = format!("ended {} days ago, and the one in use has not", -new.days_left());
                return Err(LoadError { path: file.certificate.clone(), is_key: false, reason });
            }
        }
        Ok(read)
    }

    /// Proves control over these names, and over no others, to clients that ask for nothing else (RFC 8737 section 3).
    pub fn present_challenges(&self, challenges: Challenges) {
        self.challenges.store(Arc::new(challenges));
    }

    /// Presents what was read from the next handshake on.
    pub fn present(&self, read: Pending) {
        self.current.store(Arc::new(read));
    }
}

fn read_all(files: &[Files], provider: &CryptoProvider) -> Result<Pending, LoadError> {
    // Before they are read: what changes meanwhile is read again.
    let stamps = stamps(files);
    let loaded = files.iter().map(|files| Loaded::read(files, provider)).collect::<Result<_, _>>()?;
    Ok(Pending(files.to_vec(), loaded, stamps))
}

impl ResolvesServerCert for Certificates {
    /// The first that stands for the name and whose key the client can verify; an unknown name, or none
    /// at all (clients that connect to an address send none), gets the first that the client can verify.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == super::ALPN_ACME)) {
            let name = hello.server_name()?;
            let challenges = self.challenges.load();
            return challenges.iter().find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, key)| Arc::clone(key));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};
    use std::fs;

    /// Of version 1, as roots of the nineties are: no extensions, so no name for a server.
    const VERSION_1_ROOT: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBVTCB+wIUGsVBrl//i4SmsOhJdE/30sB0Mi8wCgYIKoZIzj0EAwIwLDEQMA4G\n\
        A1UECgwHRXhhbXBsZTEYMBYGA1UEAwwPb2xkLmV4YW1wbGUub3JnMCAXDTI2MTEy\n\
        OTEzMzU1M1oYDzIxMjYxMTA1MTMzNTUzWjAsMRAwDgYDVQQKDAdFeGFtcGxlMRgw\n\
        FgYDVQQDDA9vbGQuZXhhbXBsZS5vcmcwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n\
        AATVUpn4FrjJ3w2uTlHwJT1wpz3cxgVibU+CgcZqIstjFJ6NpbPgZF0Pe9PPiu8T\n\
        +bfdX+RSRCc5er1ZDhH07NwBMAoGCCqGSM49BAMCA0kAMEYCIQDW8OuqwVSiSCBa\n\
        LkH0F95lGrIWErjZAVDS4bYy5x+0DQIhAO7n6ol6pxQqfa4ldK8q9WlzJBZVyJI+\n\
        V7Hw6iUqf9Pg\n\
        -----END CERTIFICATE-----\n";

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughway-tls-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn files(&self, (certificate, key): (&str, &str)) -> Files {
            let files =
                Files { certificate: self.0.join("chain.pem"), private_key: self.0.join("key.pem"), stand_in: None };
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

    // F-E6
    #[test]
    fn only_the_own_certificate_decides_when_it_ends() {
        let directory = Directory::new("chain");
        let key = KeyPair::generate().unwrap();
        let (own, key_pem) = issue(&["a.example.org"], (2100, 1, 1), &key);
        let (ended, _) = issue(&["old-root.example.org"], (2021, 9, 30), &KeyPair::generate().unwrap());
        let files = directory.files((&(own.clone() + &ended + VERSION_1_ROOT), &key_pem));
        let loaded =
            Loaded::read(&files, &provider()).expect("an extra certificate ends no start, of whatever version");
        assert_eq!((loaded.not_after, &loaded.names[..]), (4_102_444_800, &["a.example.org".to_owned()][..]));
        assert!(loaded.days_left() > 0);
        let warnings = loaded.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("certificate 2 of the file, "), "{warnings:?}");
        assert!(!warnings[0].contains("will refuse it"), "{warnings:?}");
        assert_eq!(loaded.chain.len(), 3);
        assert_eq!(loaded.chain[2].subject, "old.example.org");
        // A renewal to such a file is taken.
        let plain = directory.files((&own, &key_pem));
        let certificates = Certificates::load(std::slice::from_ref(&plain), &provider()).unwrap();
        let files = directory.files((&(own + &ended), &key_pem));
        certificates.replace(&[files], &provider()).expect("the own certificate has not ended");
        assert_eq!(certificates.loaded()[0].chain.len(), 2);
    }

    // F-B5
    #[test]
    fn a_chain_without_the_certificate_of_its_issuer_is_a_warning() {
        let directory = Directory::new("intermediate");
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["ca.example.org".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Example Intermediate");
        let authority_pem = params.self_signed(&authority_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let own =
            CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
        let alone = Loaded::read(&directory.files((&own, &key.serialize_pem())), &provider()).unwrap();
        let warnings = alone.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("fullchain.pem"), "{warnings:?}");
        assert!(warnings[0].contains("Example Intermediate"), "{warnings:?}");
        let whole = directory.files((&(own + &authority_pem), &key.serialize_pem()));
        assert_eq!(Loaded::read(&whole, &provider()).unwrap().warnings(), Vec::<String>::new());
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
        // F-B6
        let old_locked = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let cases: [(&str, &str, bool, &str); 11] = [
            ("nonsense", &key_pem, false, "holds no certificate"),
            (&own[..own.len() / 2], &key_pem, false, "is not complete PEM"),
            (noise, &key_pem, false, "is not a certificate of X.509 version 3"),
            (&format!("{own}{noise}"), &key_pem, false, "certificate 2 of the chain is not a certificate"),
            (&ended, &key_pem, false, "days ago, and the one in use has not"),
            (&own, &other_key, true, "is not the key of"),
            (&other, &key_pem, true, "is not the key of"),
            (&own, "", true, "holds no private key"),
            (&own, locked, true, "passphrase"),
            (&own, old_locked, true, "passphrase"),
            (&own, bad_key, true, "is not a supported key"),
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
    fn a_stand_in_is_replaced_by_what_the_file_holds_and_never_comes_back() {
        let directory = std::env::temp_dir().join(format!("throughway-stand-in-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let pair = directory.join("certificate.pem");
        let stand_in: Arc<[String]> = vec!["turn.example.org".to_owned()].into();
        let files = [Files { certificate: pair.clone(), private_key: pair.clone(), stand_in: Some(stand_in) }];
        let certificates = Certificates::load(&files, &provider()).unwrap();
        let shown = || certificates.loaded().remove(0);
        assert!(shown().is_stand_in && shown().summary().is_for("turn.example.org"));
        let issued = rcgen::generate_simple_self_signed(["turn.example.org".to_owned()]).unwrap();
        std::fs::write(&pair, format!("{}{}", issued.cert.pem(), issued.signing_key.serialize_pem())).unwrap();
        certificates.replace(&files, &provider()).unwrap();
        assert!(!shown().is_stand_in && shown().not_before < shown().not_after);
        std::fs::write(&pair, "broken").unwrap();
        let error = certificates.replace(&files, &provider()).unwrap_err();
        assert!(error.to_string().contains("the one in use is good") && !shown().is_stand_in, "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    // RFC 8737 section 3.
    #[test]
    fn a_proof_holds_the_digest() {
        let key = challenge("turn.example.org", &[0xA7; 32]).unwrap();
        // OID 1.3.6.1.5.5.7.1.31, critical, OCTET STRING of an OCTET STRING of 32 bytes.
        let extension = [&[0x06, 8, 0x2B, 6, 1, 5, 5, 7, 1, 0x1F, 1, 1, 0xFF, 4, 34, 4, 32][..], &[0xA7; 32]].concat();
        assert!(key.cert[0].windows(extension.len()).any(|part| part == extension));
    }
}
