//! The configuration as an operator meets it: the real binary, files, variables, exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use test_support::json_schema::Validator;
use throughway::config::{Config, Environment, KEYS};

const EXAMPLE: &str = include_str!("../config.example.toml");
const SECRET: &str = "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n";

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughway-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn throughway(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_throughway"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn check(path: &Path, variables: &[(&str, &str)]) -> (i32, String, String) {
    let output = throughway(&["check-config", path.to_str().unwrap()], variables);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// One mistake each: text, line, key, and what the error must say.
const WRONG: &[(&str, usize, &str, &[&str])] = &[
    // keys
    ("relam = \"x\"", 1, "relam", &["unknown key", "did you mean `realm`?"]),
    ("\n[lisen]\nudp = []", 2, "lisen", &["unknown key", "did you mean `listen`?"]),
    ("[listen]\nupd = []", 2, "listen.upd", &["unknown key", "`listen.udp`"]),
    ("[limits]\nmax_lifetime = \"1h\"", 2, "limits.max_lifetime", &["`turn.max_lifetime`"]),
    ("[limits]\nalocations_per_usr = 5", 2, "limits.alocations_per_usr", &["`limits.allocations_per_user`"]),
    ("[http]\nfrobnicate = 5", 2, "http.frobnicate", &["unknown key; [http] knows listen, hosts"]),
    ("zzzzzzzzzz = 5", 1, "zzzzzzzzzz", &["unknown key; the sections are listen, tls, relay, turn"]),
    ("listen = 3478", 1, "listen", &["expected a table [listen], found a number"]),
    // later versions
    ("[listen]\ndtls = [\"[::]:5349\"]", 2, "listen.dtls", &["not in this version; leave it out or write []"]),
    (
        "[auth]\non_expiry = \"closed\"",
        2,
        "auth.on_expiry",
        &["\"keep\", \"deny_new\", \"close\"", "did you mean \"close\""],
    ),
    ("[auth]\nmax_session = 24", 2, "auth.max_session", &["24", "the unit is missing", "\"24s\""]),
    ("[limits]\nbandwidth_per_user = 3", 2, "limits.bandwidth_per_user", &["the unit is missing", "\"3bit/s\""]),
    ("[limits]\nbandwidth = \"3Mb\"", 2, "limits.bandwidth", &["\"3Mb\"", "\"3Mbit/s\""]),
    ("[limits]\npacket_rate = \"many\"", 2, "limits.packet_rate", &["\"many\"", "0 for no limit"]),
    ("[limits]\nbytes_per_credential = \"10GB\"", 2, "limits.bytes_per_credential", &["\"10GB\"", "GiB"]),
    ("[limits]\nburst = \"2m\"", 2, "limits.burst", &["1s to 1m"]),
    (
        "[auth.users]\na = { password = \"b\", limits = { bytes = \"1GiB\" } }",
        2,
        "auth.users.a.limits",
        &["never expires", "bytes_per_day"],
    ),
    // The second one has an accent of its own, which clients join to the letter before it.
    (
        "[auth.users]\n\"jos\u{e9}\" = \"b\"\n\"jose\u{301}\" = \"c\"",
        3,
        "auth.users.\"jose\u{301}\"",
        &["to clients the same name", "as \"jos\u{e9}\""],
    ),
    ("[auth.users]\na = { password = \"b\", tenant = \"\" }", 2, "auth.users.a.tenant", &["1 to 64 bytes"]),
    (
        "[auth.users]\na = { password = \"b\", limits = { bandwith = \"1Mbit/s\" } }",
        2,
        "auth.users.a.limits.bandwith",
        &["unknown field", "`bandwidth`"],
    ),
    (
        "[auth.users]\na = { password = \"b\", limits = { allocations = 0 } }",
        2,
        "auth.users.a.limits.allocations",
        &["leave it out for no limit"],
    ),
    (
        "[auth.users]\na = { password = \"b\", limits = { peers = \"all\" } }",
        2,
        "auth.users.a.limits.peers",
        &["\"relay\"", "list of prefixes"],
    ),
    (
        "[auth.users]\na = { password = \"b\", limits = { transports = [\"sctp\"] } }",
        2,
        "auth.users.a.limits.transports",
        &["\"udp\", \"tcp\", \"tls\""],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"yyyy-of-everything\"\nclaims = [\"byte\"]",
        4,
        "auth.secrets[0].claims",
        &["allowed are", "did you mean \"bytes\""],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"yyyy-of-everything\"\nclaims = \"yes\"",
        4,
        "auth.secrets[0].claims",
        &["true, false or a list"],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"yyyy-of-everything\"\nnot_after = \"2026-02-30x\"",
        4,
        "auth.secrets[0].not_after",
        &["\"2026-12-31\"", "to its end"],
    ),
    (
        "[listen]\nudp = [{ address = \"0.0.0.0:3478\", relay = \"10.0.0.5\" }]",
        2,
        "listen.udp[0].relay",
        &["not in this version"],
    ),
    ("[listen]\nudp = [{ adress = \"0.0.0.0:3478\" }]", 2, "listen.udp[0].adress", &["did you mean `address`?"]),
    // plain values
    ("realm = \"\"", 1, "realm", &["must not be empty"]),
    ("realm = 5", 1, "realm", &["= 5:", "expected a string in quotes, found a number"]),
    ("realm = \"a\\\"b\"", 1, "realm", &["quotes"]),
    ("workers = 0", 1, "workers", &["= 0:", "\"auto\"", "1 to 256"]),
    ("workers = \"many\"", 1, "workers", &["\"many\""]),
    ("[turn]\nmax_lifetime = 3600", 2, "turn.max_lifetime", &["= 3600:", "\"3600s\""]),
    ("[turn]\nmax_lifetime = \"60s\"", 2, "turn.max_lifetime", &["below turn.default_lifetime = \"600s\""]),
    ("[turn]\n\ndefault_lifetime = \"2h\"", 3, "turn.default_lifetime", &["above turn.max_lifetime = \"3600s\""]),
    ("[turn]\ndefault_lifetime = \"0s\"", 2, "turn.default_lifetime", &["allowed are 1s to"]),
    ("[limits]\nallocations = -1", 2, "limits.allocations", &["= -1:", "0 for no limit"]),
    ("[limits]\nchannels_per_allocation = 16384", 2, "limits.channels_per_allocation", &["1 to 16383"]),
    ("[limits]\ntcp_queue = 262144", 2, "limits.tcp_queue", &["\"262144B\""]),
    ("[limits]\ntcp_queue = \"64KB\"", 2, "limits.tcp_queue", &["\"64KB\"", "KiB"]),
    ("[limits]\ntcp_queue = \"1KiB\"", 2, "limits.tcp_queue", &["65556B"]),
    ("[log]\nlevel = \"inof\"", 2, "log.level", &["allowed are \"error\"", "did you mean \"info\"?"]),
    ("[log]\nformat = \"xml\"", 2, "log.format", &["\"auto\", \"text\", \"json\", \"journal\""]),
    // addresses
    ("[listen]\nudp = \"0.0.0.0:3478\"", 2, "listen.udp", &["write [\"0.0.0.0:3478\"]"]),
    ("[listen]\nudp = [\n  \"0.0.0.0:3478\",\n  \"::1\",\n]", 4, "listen.udp", &["port is missing", "\"[::1]:3478\""]),
    (
        "[listen]\nudp = [\"localhost:3478\"]",
        2,
        "listen.udp",
        &["\"localhost:3478\"", "expected an IP address and a port"],
    ),
    ("[listen]\nudp = [\"1.2.3.4:1\", \"1.2.3.4:1\"]", 2, "listen.udp", &["twice"]),
    ("[listen]\ntcp = [\n\"0.0.0.0:3478\",\n\"127.0.0.1:3478\"]", 4, "listen.tcp", &["overlaps with \"0.0.0.0:3478\""]),
    ("[listen]\nudp = [\"[::ffff:1.2.3.4]:3478\"]", 2, "listen.udp", &["write 1.2.3.4"]),
    ("[listen]\nudp = [\"224.0.0.1:3478\"]", 2, "listen.udp", &["multicast"]),
    ("[relay]\naddresses = [\"0.0.0.0\"]", 2, "relay.addresses", &["unspecified"]),
    ("[relay]\naddresses = [\"ff02::1\"]", 2, "relay.addresses", &["multicast"]),
    ("[relay]\naddresses = [\"192.0.2.7:3478\"]", 2, "relay.addresses", &["no port", "\"192.0.2.7\""]),
    ("[relay]\nports = \"65535-49152\"", 2, "relay.ports", &["write \"49152-65535\""]),
    ("[relay]\nports = \"3000-4000\"", 2, "relay.ports", &["0.0.0.0:3478"]),
    ("[listen]\nudp = [\"0.0.0.0:50000\"]", 2, "listen.udp", &["relay.ports = \"49152-65535\""]),
    ("[relay]\nexternal = \"nat.example.org\"", 2, "relay.external", &["expected an IP address"]),
    ("[relay]\nexternal = [\"203.0.113.7\", \"203.0.113.8\"]", 2, "relay.external", &["second ipv4 address"]),
    (
        "[relay]\naddresses = [\"10.0.0.5\"]\nexternal = \"2001:db8::7\"",
        3,
        "relay.external",
        &["no ipv6 address in relay.addresses"],
    ),
    (
        "[relay]\naddresses = [\"10.0.0.5\", \"10.0.0.6\"]\nexternal = \"203.0.113.7\"",
        3,
        "relay.external",
        &["two owners"],
    ),
    ("[relay]\nexternal = { \"10.0.0.5\" = \"2001:db8::7\" }", 2, "relay.external.\"10.0.0.5\"", &["one family"]),
    ("[http]\nlisten = \"0.0.0.0:8080\"", 2, "http.listen", &["must be loopback", "reverse proxy"]),
    ("[http]\nlisten = \"unix:http.sock\"", 2, "http.listen", &["absolute path"]),
    ("[http]\nlisten = \"127.0.0.1:3478\"", 2, "http.listen", &["is taken by listen.tcp = \"0.0.0.0:3478\""]),
    ("[http]\nhosts = [\"http://a/\"]", 2, "http.hosts", &["without scheme"]),
    ("[peers]\nallow = [\"0.0.0.0/0\"]", 2, "peers.allow", &["would open every address"]),
    ("[peers]\nallow = [\n\"10.0.0.0/8\",\n\"2002::/16\"]", 4, "peers.allow", &["\"2002::/16\"", "always denied"]),
    ("[peers]\ndeny = [\"10.1.2.3/8\"]", 2, "peers.deny", &["write \"10.0.0.0/8\""]),
    ("[peers]\ndeny = [\"intranet\"]", 2, "peers.deny", &["expected a prefix"]),
    // TLS
    (
        "[listen]\ntls = [\"0.0.0.0:5349\"]",
        2,
        "listen.tls",
        &["\"0.0.0.0:5349\"", "needs a certificate: set tls.certificate and tls.private_key"],
    ),
    ("[listen]\nauto = [\"0.0.0.0:443\"]", 2, "listen.auto", &["needs a certificate"]),
    (
        "[listen]\ntls = [\"127.0.0.1:3478\"]",
        2,
        "listen.tls",
        &["is taken by listen.tcp = \"0.0.0.0:3478\"", "listen.auto takes both"],
    ),
    // a port that a web server has too
    (
        "[listen]\nshared = [{ address = \"0.0.0.0:443\" }]",
        2,
        "listen.shared[0]",
        &["needs address", "backend", "such as"],
    ),
    ("[listen]\nshared = [\"0.0.0.0:443\"]", 2, "listen.shared[0]", &["expected a table of address, backend, names"]),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"web:8443\"",
        3,
        "listen.shared[0].backend",
        &["\"web:8443\"", "such as \"127.0.0.1:8443\"", "not looked up"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"0.0.0.0:8443\"",
        3,
        "listen.shared[0].backend",
        &["nothing to connect to", "write the address and the port"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0\"\nbackend = \"127.0.0.1:8443\"",
        2,
        "listen.shared[0].address",
        &["the port is missing"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:3478\"\nbackend = \"127.0.0.1:8443\"",
        2,
        "listen.shared[0].address",
        &["is taken by listen.tcp = \"0.0.0.0:3478\"", "leave it out there"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"127.0.0.1:8443\"\nnames = [\"203.0.113.7\"]",
        4,
        "listen.shared[0].names",
        &["is an address", "leave it out"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"127.0.0.1:8443\"\nnames = [\"https://a.example\"]",
        4,
        "listen.shared[0].names",
        &["expected a whole host name, such as \"turn.example.org\""],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"127.0.0.1:8443\"\nsend_proxy = \"v3\"",
        4,
        "listen.shared[0].send_proxy",
        &["allowed are \"off\", \"v1\", \"v2\""],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"127.0.0.1:8443\"\nproxy_from = []",
        4,
        "listen.shared[0].proxy_from",
        &["is empty, so nothing could connect"],
    ),
    (
        "[[listen.shared]]\naddress = \"0.0.0.0:443\"\nbackend = \"127.0.0.1:8443\"\nname = [\"a.example\"]",
        4,
        "listen.shared[0].name",
        &["unknown field", "did you mean `names`?"],
    ),
    ("[limits]\nshared_idle = \"2d\"", 2, "limits.shared_idle", &["allowed are 1s to 1d"]),
    ("[tls]\ncertificate = \"x\"", 2, "tls.certificate", &["has no key; tls.private_key"]),
    ("[tls]\nprivate_key = \"x\"", 2, "tls.private_key", &["has no certificate; tls.certificate"]),
    (
        "[tls]\ncertificate = \"/nowhere/chain\"\nprivate_key = \"/nowhere/key\"",
        2,
        "tls.certificate",
        &["= \"/nowhere/chain\":", "/nowhere/chain: can't be read: No such file"],
    ),
    ("[tls]\ncertificates = \"x\"", 2, "tls.certificates", &["[[tls.certificates]]"]),
    (
        "[tls]\ncertificates = [{ certificate = \"x\" }]",
        2,
        "tls.certificates[0]",
        &["both certificate and private_key"],
    ),
    (
        "[tls]\ncertificates = [{ certificate = \"x\", key = \"y\" }]",
        2,
        "tls.certificates[0].key",
        &["unknown field; known are certificate, private_key"],
    ),
    ("[limits]\ntls_handshake = \"1h\"", 2, "limits.tls_handshake", &["allowed are 1s to 10m"]),
    ("[limits]\ntls_half_open = -1", 2, "limits.tls_half_open", &["0 for no limit"]),
    // how it ends
    ("[upgrade]\nprobation = \"2m\"", 2, "upgrade.probation", &["allowed are 1s to 1m"]),
    ("[upgrade]\nsocket = \"upgrade.sock\"", 2, "upgrade.socket", &["expected an absolute path"]),
    (
        "[http]\nadmin_socket = \"/run/a.sock\"\n[upgrade]\nsocket = \"unix:/run/a.sock\"",
        4,
        "upgrade.socket",
        &["is the socket of http.admin_socket"],
    ),
    (
        "[http]\nchatmail_socket = \"/run/c.sock\"\nunix_uids = [33]\n[upgrade]\nsocket = \"/run/c.sock\"",
        5,
        "upgrade.socket",
        &["is the socket of http.chatmail_socket"],
    ),
    ("[http]\nchatmail_socket = \"c.sock\"", 2, "http.chatmail_socket", &["expected an absolute path"]),
    (
        "[http]\nchatmail_socket = \"/run/c.sock\"",
        2,
        "http.chatmail_socket",
        &["has no caller", "http.unix_uids", "id -u vmail"],
    ),
    (
        "[http]\nlisten = \"unix:/run/c.sock\"\nchatmail_socket = \"unix:/run/c.sock\"\nunix_uids = [33]",
        3,
        "http.chatmail_socket",
        &["is the socket of http.listen"],
    ),
    ("[http]\nchatmail_ttl = \"5d\"", 2, "http.chatmail_ttl", &["for 2d at most", "auth.max_ttl", "48h is enough"]),
    ("[drain]\non_term = \"true\"", 2, "drain.on_term", &["expected true or false"]),
    ("[drain]\non_term = 1", 2, "drain.on_term", &["expected true or false"]),
    ("[drain]\ndeadline = \"31d\"", 2, "drain.deadline", &["allowed are 1s to 30d"]),
    ("[drain]\ndeadline = 60", 2, "drain.deadline", &["\"60s\""]),
    ("[drain]\nalternate = [\"turn2.example.org:3478\"]", 2, "drain.alternate", &["can't be a name"]),
    ("[drain]\nalternate = [\"203.0.113.8\"]", 2, "drain.alternate", &["ADDRESS:PORT"]),
    ("[drain]\nalternate = [\"0.0.0.0:3478\"]", 2, "drain.alternate", &["is not an address clients can reach"]),
    (
        "[drain]\nalternate = [\"203.0.113.8:1\", \"203.0.113.9:2\"]",
        2,
        "drain.alternate",
        &["203.0.113.8:1 is listed already; list one address per family"],
    ),
    (
        "[listen]\nudp = [\"203.0.113.7:3478\"]\n[drain]\nalternate = [\"203.0.113.7:3478\"]",
        4,
        "drain.alternate",
        &["a listener of this server"],
    ),
    ("[drain]\nalternate_domain = \"turn2.example.org\"", 2, "drain.alternate_domain", &["drain.alternate_tls"]),
    (
        "[drain]\nalternate_tls = [\"203.0.113.8:5349\"]\nalternate_domain = \"a b\"",
        3,
        "drain.alternate_domain",
        &["the name in the other server's certificate"],
    ),
    // who may relay
    ("[auth]\nmax_ttl = \"1w\"", 2, "auth.max_ttl", &["\"2d\""]),
    ("[auth]\nusers = { a = \"\" }", 2, "auth.users.a", &["must not be empty"]),
    ("[auth]\nusers = { a = {} }", 2, "auth.users.a", &["exactly one of password, file and key_md5"]),
    ("[auth]\nusers = { a = { key_md5 = \"12\" } }", 2, "auth.users.a.key_md5", &["32 hexadecimal digits"]),
    ("[auth]\nusers = { a = { file = \"missing\" } }", 2, "auth.users.a.file", &["can't read", "missing"]),
    ("[auth]\nusers = { a = { pasword = \"p\" } }", 2, "auth.users.a.pasword", &["`password`"]),
    ("[auth]\nnonce_key_file = \"/nowhere/key\"", 2, "auth.nonce_key_file", &["/nowhere/key"]),
    ("[[auth.secrets]]\nvalue = \"xxxx-of-everything\"", 1, "auth.secrets[0]", &["has no id"]),
    ("[[auth.secrets]]\nid = \"a\"", 1, "auth.secrets[0]", &["exactly one of value, file and credential"]),
    ("[[auth.secrets]]\nid = \"a\"\nvalue = \"\"", 3, "auth.secrets[0].value", &["must not be empty"]),
    (
        "[[auth.secrets]]\nid = \"a b\"\nvalue = \"xxxx-of-everything\"",
        2,
        "auth.secrets[0].id",
        &["\"a b\"", "without spaces"],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"xxxx-of-everything\"\nalgorithm = \"sha255\"",
        4,
        "auth.secrets[0].algorithm",
        &["\"sha1\", \"sha256\", \"sha512\"", "did you mean"],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\nverify_only = 1\nvalue = \"yyyy-of-everything\"",
        3,
        "auth.secrets[0].verify_only",
        &["expected true or false"],
    ),
    (
        "[[auth.secrets]]\nid = \"a\"\ncredential = \"x\"",
        3,
        "auth.secrets[0].credential",
        &["CREDENTIALS_DIRECTORY is not set", "LoadCredential=x:"],
    ),
    ("[[auth.secrets]]\nid = \"main\"\nvalue = \"xxxx-of-everything\"", 4, "auth.secrets[1]", &["\"main\"", "twice"]),
    // not TOML at all
    ("realm = \"x", 1, "", &["not TOML"]),
    ("workers = 1\nworkers = 2", 2, "", &["workers is set twice, first in line 1"]),
    ("[limits]\nallocations = 5\n[turn]\n[limits]", 4, "", &["the section [limits] is there twice, first in line 1"]),
    ("[turn]\n[limits]\nallocations = 5\n# x\nallocations = 6", 5, "", &["allocations is set twice, first in line 3"]),
    ("limits.allocations = 5\n[limits]", 2, "", &["[limits] is set above in another way"]),
    ("auth.users = { a = \"x\", a = \"y\" }", 1, "", &["a is set twice within one value"]),
];

// [8489-14.16-1]
#[test]
fn each_mistake_is_shown_with_line_key_value_and_remedy() {
    for (text, line, key, says) in WRONG {
        let error = Config::from_toml("c.toml", &format!("{text}\n{SECRET}")).expect_err(text);
        let shown = error.to_string();
        let problem = &error.problems[0];
        assert_eq!(error.problems.len(), 1, "{text}\n{shown}");
        assert!(shown.starts_with(&format!("c.toml:{line}: ")), "{text}\n{shown}");
        assert_eq!(&problem.key, key, "{text}\n{shown}");
        for part in *says {
            assert!(shown.contains(part), "{text}\n{shown}\nlacks {part}");
        }
    }
}

/// What only the server can find, by a part of its message: what two keys have to do with each other, what a file holds, and what
/// an address stands for.
const NOT_IN_THE_SCHEMA: &[&str] = &[
    "below turn.default_lifetime = \"600s\"",
    "above turn.max_lifetime = \"3600s\"",
    "twice",
    "overlaps with \"0.0.0.0:3478\"",
    "write 1.2.3.4",
    "multicast",
    "unspecified",
    "nothing to connect to",
    "is taken by listen.tcp = \"0.0.0.0:3478\"",
    "is an address",
    "write \"49152-65535\"",
    "0.0.0.0:3478",
    "relay.ports = \"49152-65535\"",
    "second ipv4 address",
    "no ipv6 address in relay.addresses",
    "two owners",
    "one family",
    "is taken by listen.tcp = \"0.0.0.0:3478\"",
    "always denied",
    "write \"10.0.0.0/8\"",
    "needs a certificate",
    "needs a certificate: set tls.certificate and tls.private_key",
    "has no key; tls.private_key",
    "has no certificate; tls.certificate",
    "/nowhere/chain: can't be read: No such file",
    "is the socket of http.admin_socket",
    "is the socket of http.chatmail_socket",
    "is the socket of http.listen",
    "has no caller",
    "for 2d at most",
    "is not an address clients can reach",
    "203.0.113.8:1 is listed already; list one address per family",
    "a listener of this server",
    "drain.alternate_tls",
    "can't read",
    "/nowhere/key",
    "CREDENTIALS_DIRECTORY is not set",
    "to clients the same name",
];

#[test]
fn the_schema_finds_every_mistake_of_one_value() {
    let schema = Validator::new();
    schema.check(&format!("{EXAMPLE}\n{SECRET}")).expect("the example");
    let mut missed = Vec::new();
    for (text, _, _, says) in WRONG {
        let is_known = says.iter().any(|part| NOT_IN_THE_SCHEMA.contains(part));
        if schema.check(&format!("{text}\n{SECRET}")).is_ok() && !is_known {
            missed.push((text, says));
        }
    }
    assert!(missed.is_empty(), "the schema takes {missed:#?}\nif it can't know better, add a part of the message");
}

#[test]
fn an_id_that_is_used_twice_is_told_though_its_secret_is_wrong_too() {
    let good = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\n";
    let short = "[[auth.secrets]]\nid = \"a\"\nvalue = \"short\"\n";
    for text in [format!("{good}{short}"), format!("{short}{good}"), format!("{short}{short}")] {
        let shown = Config::from_toml("c.toml", &text).expect_err(&text).to_string();
        assert!(shown.contains("c.toml:4: auth.secrets[1]: the id \"a\" is used twice"), "{shown}");
        assert!(shown.contains("at least 16 are needed"), "{shown}");
    }
}

#[test]
fn what_no_client_or_peer_can_reach_is_a_warning() {
    let warnings = |text: &str| {
        let config = Config::from_toml("c.toml", &format!("{text}\n{SECRET}")).unwrap();
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let none = warnings("[listen]\nudp = []\ntcp = []");
    assert!(matches!(&*none, [one] if one.starts_with("c.toml: listen: every list of [listen] is empty")), "{none:?}");
    assert_eq!(warnings("[listen]\nudp = []"), [""; 0], "TCP is left");
    for all in ["0.0.0.0/0", "::/0"] {
        let everybody = warnings(&format!("listen.tcp = [{{ address = \"0.0.0.0:3478\", proxy_from = [\"{all}\"] }}]"));
        assert!(matches!(&*everybody, [one] if one.contains("lets everybody connect")), "{everybody:?}");
    }
    let mapped = format!("listen.tcp = [{{ address = \"[::]:3478\", proxy_from = [\"::ffff:10.0.0.5\"] }}]\n{SECRET}");
    let error = Config::from_toml("c.toml", &mapped).unwrap_err().to_string();
    assert!(error.contains("write it as IPv4, such as \"10.0.0.5\""), "{error}");
    for only in ["[\"127.0.0.1\"]", "[\"127.0.0.1\", \"::1\"]"] {
        let loopback = warnings(&format!("relay.addresses = {only}"));
        assert!(matches!(&*loopback, [one] if one.starts_with("c.toml:1: relay.addresses = ")), "{loopback:?}");
        assert!(loopback[0].contains("loopback addresses only"), "{loopback:?}");
    }
    assert_eq!(warnings("relay.addresses = [\"127.0.0.1\", \"192.0.2.7\"]"), [""; 0]);
    let all = "relay.addresses = [\"127.0.0.1\"]\nlisten.udp = [\"127.0.0.1:3478\"]\nlisten.tcp = [\"[::1]:3478\"]";
    assert_eq!(warnings(all), [""; 0], "all of it is for this machine");
}

#[test]
fn values_out_of_range_and_no_addresses_are_told_with_what_is_allowed() {
    for (arguments, says) in [
        (&["credentials", "mint", "--user", "a", "--allocations", "0"] as &[&str], "0 is not in 1..=4294967295"),
        (&["credentials", "mint", "--user", "a", "--allocations", "99999999999"], "is not in 1..=4294967295"),
        (&["demo", "--http", "foo"], "such as 127.0.0.1:8080"),
        (&["demo", "--http", "localhost:8080"], "such as 127.0.0.1:8080"),
    ] {
        let output = throughway(arguments, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {said}");
        assert!(said.contains(says), "{arguments:?} {said}");
    }
}

#[test]
fn several_mistakes_are_shown_at_once_in_the_order_of_the_file_and_exit_with_2() {
    let directory = Directory::new("several");
    let text = "relm = \"x\"\nworkers = 0\n\n[listen]\nudp = [\"1.2.3.4\"]\n\n[log]\nlevel = \"loud\"\n";
    let path = directory.write("c.toml", text);
    let (code, stdout, stderr) = check(&path, &[]);
    assert_eq!(code, 2);
    assert_eq!(stdout, "");
    let lines: Vec<&str> = stderr.lines().collect();
    let starts =
        [":1: relm: ", ":2: workers = 0: ", ":5: listen.udp = \"1.2.3.4\": ", ":8: log.level = \"loud\": ", ": auth: "];
    assert_eq!(lines.len(), starts.len(), "{stderr}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(&format!("{}{start}", path.display())), "{line}");
    }
    let output = throughway(&["check-config", path.to_str().unwrap(), "--json"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["ok"], &json["errors"][1]["line"]), (&false.into(), &2.into()));
    assert_eq!(json["errors"][0]["suggestion"], "`realm`");
}

#[test]
fn nobody_to_serve_is_an_error_that_names_the_remedy() {
    let error = Config::from_toml("c.toml", "").unwrap_err().to_string();
    for part in ["c.toml: auth: ", "[[auth.secrets]]", "openssl rand", "THROUGHWAY_AUTH__SECRET"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn wrong_configuration_and_wrong_usage_exit_with_2() {
    let directory = Directory::new("exit");
    let path = directory.write("c.toml", "realm = 5");
    let path = path.to_str().unwrap();
    for arguments in [
        &["serve", "--config", path] as &[&str],
        &["serve", "--config", "/nowhere/c.toml"],
        &["check-config", "/nowhere/c.toml"],
        &["credentials", "mint", "--user", "a", "--config", path],
        &["credentials", "mint", "--user", "a", "--ttl", "60"],
        &["credentials", "verify", "a", "b", "--config", path],
        &["serve", "--port", "1"],
        &["session"],
        &["kick"],
        &["revoke"],
        &["log-level", "loud"],
        &["sessions", "bob"],
        &["sessions", "--url", "https://turn.example.org"],
    ] {
        let output = throughway(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn serve_without_configuration_terminal_or_state_directory_refuses_and_names_the_remedy() {
    if Path::new(throughway::config::DEFAULT_PATH).exists() {
        return;
    }
    let output = throughway(&["serve"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("STATE_DIRECTORY"), "{output:?}");
}

#[test]
fn variables_win_over_the_file_and_are_named_in_errors() {
    let directory = Directory::new("variables");
    let path = directory.write("c.toml", "realm = \"file\"\n[limits]\nallocations = 5\n");
    let load = |variables: &[(&str, &str)]| Config::load(&path, &variables.iter().copied().collect::<Environment>());
    let secret = ("THROUGHWAY_AUTH__SECRET", "from-outside-of-everything");
    let config = load(&[
        secret,
        ("THROUGHWAY_REALM", "variable"),
        ("THROUGHWAY_LISTEN__UDP", "127.0.0.1:21001, [::1]:21001"),
        ("THROUGHWAY_LISTEN__TCP", ""),
        ("THROUGHWAY_LIMITS__ALLOCATIONS_PER_USER", "7"),
        ("THROUGHWAY_LIMITS__TCP_UNAUTHENTICATED", "0"),
        ("THROUGHWAY_LISTEN__DTLS", ""),
        ("HOME", "/"),
    ])
    .unwrap();
    assert_eq!(&*config.realm, "variable");
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.limits.tables.allocations, Some(5));
    assert_eq!(config.limits.tables.allocations_per_user, Some(7));
    assert_eq!(config.limits.tcp_unauthenticated, None);
    assert_eq!(config.auth.secrets[0].value.expose(), b"from-outside-of-everything");
    assert_eq!(&*config.auth.secrets[0].id, "environment");

    for (name, value, says) in [
        ("THROUGHWAY_WORKERS", "0", "THROUGHWAY_WORKERS: workers = 0: allowed are"),
        ("THROUGHWAY_LISTEN__UPD", "x", "THROUGHWAY_LISTEN__UPD: unknown variable"),
        ("THROUGHWAY_LISTEN__UPD", "x", "did you mean THROUGHWAY_LISTEN__UDP?"),
        ("THROUGHWAY_LISTEN_UDP", "x", "did you mean THROUGHWAY_LISTEN__UDP?"),
        ("THROUGHWAY_AUTH__USERS", "x", "tables don't fit into a variable"),
        ("THROUGHWAY_LISTEN__TLS", "[::]:443", "THROUGHWAY_LISTEN__TLS: listen.tls = \"[::]:443\": needs"),
        ("THROUGHWAY_LISTEN__SHARED", "[::]:443", "THROUGHWAY_LISTEN__SHARED: listen.shared: tables don't fit"),
        ("THROUGHWAY_LISTEN__DTLS", "[::]:5349", "THROUGHWAY_LISTEN__DTLS: listen.dtls: not in this version"),
        (
            "THROUGHWAY_TLS__CERTIFICATE",
            "/nowhere",
            "THROUGHWAY_TLS__CERTIFICATE: tls.certificate = \"/nowhere\": has no key",
        ),
        ("THROUGHWAY_AUTH__SECRET_FILE", "/nowhere", "not both"),
    ] {
        let error = load(&[secret, (name, value)]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
    let error = load(&[("THROUGHWAY_AUTH__SECRET", "")]).unwrap_err().to_string();
    assert!(error.starts_with("THROUGHWAY_AUTH__SECRET: auth.secret: must not be empty"), "{error}");
}

#[test]
fn secret_files_lose_one_newline_and_stand_beside_the_configuration() {
    let directory = Directory::new("files");
    directory.write("a.secret", "north-of-everything\n");
    directory.write("b.secret", "south-of-everything\n\n");
    directory.write("alice.password", "wonderland-2026");
    let text = "[auth]\nusers.alice.file = \"alice.password\"\n\
        [[auth.secrets]]\nid = \"a\"\nfile = \"a.secret\"\n[[auth.secrets]]\nid = \"b\"\nfile = \"b.secret\"\n";
    let path = directory.write("c.toml", text);
    let config = Config::load(&path, &Environment::default()).unwrap();
    assert_eq!(config.auth.secrets[0].value.expose(), b"north-of-everything");
    assert_eq!(config.auth.secrets[1].value.expose(), b"south-of-everything\n");
    assert_eq!(config.auth.users.len(), 1);
    // Of the second newline in b.secret.
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);

    fs::set_permissions(directory.0.join("a.secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let config = Config::load(&path, &Environment::default()).unwrap();
    assert_eq!(config.warnings.len(), 2);
    assert!(config.warnings[0].to_string().contains("a.secret"), "{}", config.warnings[0]);

    let inline = directory.write("inline.toml", SECRET);
    assert!(Config::load(&inline, &Environment::default()).unwrap().warnings.is_empty());
    fs::set_permissions(&inline, fs::Permissions::from_mode(0o644)).unwrap();
    let config = Config::load(&inline, &Environment::default()).unwrap();
    assert!(config.warnings[0].to_string().contains("chmod 0640"), "{}", config.warnings[0]);
}

#[test]
fn at_most_eight_secrets_are_taken() {
    let secrets = |count| {
        (0..count)
            .map(|i| format!("[[auth.secrets]]\nid = \"{i}\"\nvalue = \"xxxx-of-everything\"\n"))
            .collect::<String>()
    };
    assert_eq!(Config::from_toml("c.toml", &secrets(8)).unwrap().auth.secrets.len(), 8);
    let error = Config::from_toml("c.toml", &secrets(9)).unwrap_err().to_string();
    assert!(error.starts_with("c.toml:25: auth.secrets[8]: is more than 8 secrets"), "{error}");
}

/// The warnings of `check-config`, but for those about the addresses of the machine that runs the test.
fn warned(stdout: &str) -> Vec<&str> {
    let is_of_machine =
        |line: &&str| line.contains("private relay address") || line.contains("no IPv4 address to relay");
    stdout.lines().filter(|line| line.starts_with("warning")).filter(|line| !is_of_machine(line)).collect()
}

// [8489-14.9-1]
#[test]
fn a_realm_above_twelve_bytes_is_no_warning_and_the_size_is_printed() {
    let directory = Directory::new("realm");
    let path = directory.write("c.toml", &format!("realm = \"relay.example.org\"\n{SECRET}"));
    let (code, stdout, _) = check(&path, &[]);
    assert_eq!(code, 0);
    assert!(stdout.contains("relay.example.org: a 401 answer has 80 bytes"), "{stdout}");
    assert_eq!(warned(&stdout), [""; 0]);
    let long = format!("realm = \"{}\"\n{SECRET}", "ö".repeat(128));
    assert!(Config::from_toml("c.toml", &long).unwrap_err().to_string().contains("128 characters"));
}

// RFC 8656 §5, §6, §7.2: what an operator who writes nothing gets [8656-5-4, 8656-6-4, 8656-7.2-26, -27, -30]
#[test]
fn lifetimes_and_ports_are_those_of_the_rfc_by_default() {
    let config = Config::from_toml("c.toml", SECRET).unwrap();
    assert_eq!((config.lifetimes.default, config.lifetimes.max), (600, 3600));
    assert_eq!(config.auth.nonce_lifetime, 3600);
    assert_eq!(config.relay.ports, 49_152..=65_535);
}

#[test]
fn no_secret_appears_in_any_output() {
    let words = ["Xsecretinline", "Xsecretinfile", "Xpassword", "Xhidden", "Xvariable"];
    let long = |text: &str| {
        words.iter().fold(text.to_owned(), |text, word| text.replace(word, &format!("{word}-of-everything")))
    };
    let directory = Directory::new("hidden");
    directory.write("s", &long("Xsecretinfile\n"));
    let good = "[auth]\nusers = { alice = \"Xpassword\", bob = { password = \"Xhidden\" } }\n\
        [[auth.secrets]]\nid = \"a\"\nvalue = \"Xsecretinline\"\n[[auth.secrets]]\nid = \"b\"\nfile = \"s\"\n";
    let path = directory.write("c.toml", &long(good));
    let environment: Environment = [("THROUGHWAY_AUTH__SECRET", long("Xvariable"))].into_iter().collect();
    let config = Config::load(&path, &environment).unwrap();
    let mut shown = format!("{config:?} {environment:?} {} {}", config.describe(), config.describe_json());
    // Each of these is wrong near a secret.
    for text in [
        "[auth]\nusers = [\"Xpassword\"]",
        "[auth]\nusers = \"Xpassword\"",
        "[auth]\nusers = { alice = [\"Xpassword\"] }",
        "[auth]\nusers = { alice = { key_md5 = \"Xpassword\" } }",
        "[auth]\nusers = { file = { password = \"Xpassword\", file = \"Xpassword\" } }",
        "[auth]\nusers = { id = \"Xpassword\", algorithm = [\"Xpassword\"] }",
        "[auth]\nsecret = \"Xsecretinline\"",
        "[auth]\nsecrets = [\"Xsecretinline\"]",
        "[auth]\nsecrets = \"Xsecretinline\"",
        "[[auth.secrets]]\nid = \"a\"\nvale = \"Xsecretinline\"",
        "[[auth.secrets]]\nid = \"a\"\nvalue = [\"Xsecretinline\"]",
        "[[auth.secrets]]\nid = \"a\"\ncredential = \"Xhidden\"\nvalue = \"Xsecretinline\"",
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"Xsecretinline",
        "[[auth.secrets]]\nid = \"a\"\nvalue = Xsecretinline",
        "[[auth.secrets]]\nid = \"a\"\nvalue = \"\\Xsecretinline\"",
    ] {
        let error = Config::from_toml("c.toml", text).expect_err(text);
        shown += &format!("\n{error} {error:?} {}", error.describe_json());
    }
    for word in words {
        assert!(!shown.contains(word), "{word} in {shown}");
    }
}

#[test]
fn example_shows_every_key_with_its_default_and_loads() {
    let example: toml::Table = EXAMPLE.parse().unwrap();
    for key in KEYS.iter().filter(|key| !key.value_type.is_tables()) {
        let shown =
            key.path.split('.').try_fold(&toml::Value::Table(example.clone()), |value, part| value.get(part)).cloned();
        let default: toml::Table = format!("x = {}", key.default).parse().unwrap();
        assert_eq!(shown.as_ref(), default.get("x"), "{}", key.path);
    }
    let directory = Directory::new("example");
    let path = directory.write("config.toml", EXAMPLE);
    let (code, stdout, stderr) = check(&path, &[("THROUGHWAY_AUTH__SECRET", "north-of-everything")]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("udp 0.0.0.0:3478"), "{stdout}");
    assert_eq!(warned(&stdout), [""; 0]);
}

#[test]
fn examples_in_the_example_load_when_their_mark_is_removed() {
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let example =
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()));
        text += example.unwrap_or(line);
        text.push('\n');
    }
    // What stands there asks for a secret, and is refused as one (F-A13).
    let error = Config::from_toml("config.toml", &text).unwrap_err().to_string();
    assert!(error.contains("auth.secrets[0].value") && error.contains("guides print"), "{error}");
    let text = text.replace("\"the output of `openssl rand -hex 32`\"", "\"north-of-everything\"");
    let config = Config::from_toml("config.toml", &text).unwrap();
    assert_eq!((config.auth.users.len(), config.auth.secrets.len()), (1, 1));
}

#[test]
fn check_config_says_what_the_server_will_do() {
    let directory = Directory::new("says");
    let text = format!(
        "workers = 3\n[listen]\nudp = [\"10.0.0.5:3478\"]\ntcp = []\n[relay]\naddresses = [\"10.0.0.5\"]\n\
         external = \"203.0.113.7\"\n[peers]\nallow = [\"10.20.0.0/16\"]\n[limits]\nallocations = 0\n{SECRET}"
    );
    let path = directory.write("c.toml", &text);
    let (code, stdout, stderr) = check(&path, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for part in [
        "is valid. The server will do this:",
        "realm       throughway: a 401 answer has 72 bytes",
        "workers     3",
        "listen      udp 10.0.0.5:3478",
        "relay       from 10.0.0.5, told to clients as 203.0.113.7; UDP ports 49152-65535",
        "users       0",
        "secret      main (sha1, mints)",
        "allowed: 10.20.0.0/16",
        "allocations: no limit in all, 100 per user id, 2000 per client address",
        "per TCP client: 256KiB queued, 10s without authentication",
        "http        127.0.0.1:8080",
    ] {
        assert!(stdout.contains(part), "{stdout}\nlacks {part}");
    }
    let output = throughway(&["check-config", path.to_str().unwrap(), "--json"], &[]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["relay"]["addresses"][0]["advertised"], "203.0.113.7");
    assert_eq!(json["limits"]["allocations"], serde_json::Value::Null);
}

#[test]
fn minted_credentials_verify_and_others_are_refused_with_reason_and_exit_code_1() {
    let directory = Directory::new("mint");
    let path = directory.write("c.toml", &format!("[listen]\nudp = [\"127.0.0.1:3478\"]\ntcp = []\n{SECRET}"));
    let config = ["--config", path.to_str().unwrap()];
    let run = |arguments: &[&str]| throughway(&[&["credentials"], arguments, &config as &[&str]].concat(), &[]);
    let minted = run(&["mint", "--user", "alice", "--ttl", "10m", "--json"]);
    assert!(minted.status.success(), "{minted:?}");
    let json: serde_json::Value = serde_json::from_slice(&minted.stdout).unwrap();
    let server = &json["iceServers"][0];
    assert_eq!(server["urls"][0], "turn:127.0.0.1:3478?transport=udp");
    let (username, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
    assert!(username.ends_with(":alice"));

    let good = run(&["verify", username, password]);
    assert_eq!(good.status.code(), Some(0));
    let text = String::from_utf8(good.stdout).unwrap();
    assert!(text.starts_with("good: secret \"main\" (sha1), user id \"alice\", ends in"), "{text}");

    for (username, password, reason) in [(username, "wrong", "bad_integrity"), ("alice", password, "unknown_user")] {
        let refused = run(&["verify", username, password, "--json"]);
        assert_eq!(refused.status.code(), Some(1));
        let json: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!((&json["valid"], &json["reason"]), (&false.into(), &reason.into()));
        assert!(json["remedy"].as_str().unwrap().len() > 20);
    }
}

#[test]
fn help_is_as_documented() {
    let help = |arguments: &[&str]| {
        let output = throughway(&[arguments, &["--help"]].concat(), &[("COLUMNS", "100")]);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = [
        &[] as &[&str],
        &["demo"],
        &["serve"],
        &["check-config"],
        &["check"],
        &["sessions"],
        &["kick"],
        &["revoke"],
        &["reload"],
        &["log-level"],
        &["drain"],
        &["upgrade"],
        &["health"],
        &["init"],
        &["service"],
        &["service", "install"],
        &["service", "uninstall"],
        &["config"],
        &["completions"],
        &["version"],
        &["credentials", "mint"],
        &["credentials", "verify"],
        &["recipe"],
    ]
    .map(|arguments| {
        format!(
            "$ throughway {}--help\n{}",
            arguments.iter().map(|a| format!("{a} ")).collect::<String>(),
            help(arguments)
        )
    })
    .join("\n");
    let snapshot = include_str!("vectors/help.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/help.txt"), &shown).unwrap();
        return;
    }
    assert_eq!(
        shown, snapshot,
        "the help has changed; if so it should be, run again with UPDATE_SNAPSHOTS=1 and look at the difference"
    );
}

#[test]
fn a_file_cut_or_garbled_anywhere_gives_an_error_or_a_configuration_but_no_panic() {
    let uncommented = EXAMPLE.replace("\n#[[", "\n[[").replace("\n#", "\n");
    for text in [EXAMPLE.to_owned(), uncommented] {
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).step_by(7).collect();
        for at in starts {
            let (head, tail) = text.split_at(at);
            for garbled in [
                head.to_owned(),
                format!("{head}\"{tail}"),
                format!("{head}[{tail}"),
                format!("{head}\u{1f980}={tail}"),
            ] {
                if let Err(error) = Config::from_toml("c.toml", &garbled) {
                    assert!(
                        !error.problems.is_empty() && error.problems.iter().all(|p| !p.message.is_empty()),
                        "{garbled}"
                    );
                }
            }
        }
    }
}

/// All that a command said.
fn said_by(output: &Output) -> String {
    [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat()
}

// A query and a login may hold a key, in what is right and in what is wrong.
#[test]
fn no_output_shows_login_or_query_of_a_url() {
    let directory = Directory::new("urls");
    let check = |lines: &str, code: i32| {
        let path = directory.write("c.toml", &format!("{lines}\n{SECRET}"));
        for json in [&[][..], &["--json"]] {
            let output = throughway(&[&["check-config", path.to_str().unwrap()], json].concat(), &[]);
            let said = said_by(&output);
            assert_eq!(output.status.code(), Some(code), "{lines}: {said}");
            assert!(said.contains("h.example") && !said.contains("geheim"), "{lines}: {said}");
        }
    };
    let spool = directory.0.display().to_string();
    let webhook = |url: &str| format!("[accounting]\nwebhook = {url:?}\nspool = {spool:?}");
    check(&webhook("https://h.example/x?token=geheim"), 0);
    check(&webhook("https://u:geheim@h.example/"), 2);
    check(&webhook("h.example/x?token=geheim"), 2);
    let keys = |url: &str| format!("[http]\njwt_keys = {url:?}\njwt_audience = \"turn\"");
    check(&keys("https://h.example/keys?token=geheim"), 0);
    check(&keys("https://geheim@h.example/keys"), 2);
    check(&keys("h.example/keys?token=geheim"), 2);
}

// A pipe without a writer would hang, and a device has no end.
#[test]
fn what_is_no_ordinary_file_is_refused_at_once_wherever_a_file_is_named() {
    let directory = Directory::new("pipes");
    let pipe = directory.0.join("pipe").display().to_string();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let with_secret = |name: &str| {
        directory.write("c.toml", &format!("[[auth.secrets]]\nid = \"a\"\nfile = {name:?}\n")).display().to_string()
    };
    let (with_pipe, no_end) = (with_secret(&pipe), directory.write("d.toml", "auth.nonce_key_file = \"/dev/zero\"\n"));
    let no_end = no_end.display().to_string();
    let (server, good) = ("turn:127.0.0.1:9", directory.write("good.toml", SECRET).display().to_string());
    for arguments in [
        &["check-config", &pipe][..],
        &["check-config", "/dev/zero"],
        &["check-config", &with_pipe],
        &["check-config", &no_end],
        &["serve", "--config", &pipe],
        &["serve", "--config", &with_pipe],
        &["check", server, "--ca", "/dev/zero"],
        &["check", server, "--ca", &pipe],
        &["check", server, "--username", "u", "--password-file", "/dev/zero"],
        &["check", server, "--header-file", "/dev/zero"],
        &["credentials", "verify", "1:a", "--config", &good, "--password-file", &pipe],
        &["sessions", "--url", "http://127.0.0.1:9", "--token-file", "/dev/zero"],
    ] {
        let output = throughway(arguments, &[]);
        let said = said_by(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("is no ordinary file"), "{arguments:?}: {said}");
    }
    let long = directory.write("long", &"x".repeat((1 << 20) + 1)).display().to_string();
    let output = throughway(&["check", server, "--header-file", &long], &[]);
    assert!(said_by(&output).contains("longer than 1048576 bytes"), "{output:?}");
}

#[test]
fn check_config_warns_of_each_place_that_the_server_could_not_write_to() {
    let directory = Directory::new("places");
    let path = directory.write(
        "c.toml",
        &format!(
            "[upgrade]\nsocket = \"/nonexistent/u.sock\"\n[auth]\nrevocations_file = \"/nonexistent/x\"\n\
             {SECRET}"
        ),
    );
    let (code, said, _) = check(&path, &[]);
    assert_eq!(code, 0, "{said}");
    for part in
        ["auth.revocations_file: the server could not make /nonexistent/x", "upgrade.socket: the server could not make"]
    {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
}
