//! `init`: writes a first configuration, and tells what is left to do outside of it.

mod file;
mod next;
mod questions;

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::check::remedy;
use crate::config::initial_secret::random_text;
use crate::config::issuing;
use crate::config::{Config, DEFAULT_PATH, Environment};
use crate::failure::Failure;
use crate::files;
use crate::net::{User, effective_uid, has_ipv6, routed_addresses};
use crate::public_address;

/// Who reads the configuration besides root.
const GROUP: &str = "throughway";

/// The defaults of the server, which the file leaves out.
const PORT: u16 = 3478;
const TLS_PORT: u16 = 5349;
const RELAY_PORTS: &str = "49152-65535";

/// How long a person waits for the STUN server: four sendings of the request.
const STUN_TIME: Duration = Duration::from_millis(4500);

/// Where the unit keeps the account and the certificate of an authority.
const ACME_STATE: &str = "/var/lib/throughway/acme";

/// Options of `init`.
#[derive(Args, Debug)]
pub(super) struct InitOptions {
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, value_parser = path)]
    config: PathBuf,
    /// The host name of this server, such as turn.example.org
    #[arg(long, value_name = "NAME", value_parser = host)]
    host: Option<String>,
    /// Public address behind which this machine is, one for each family
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    external: Vec<IpAddr>,
    /// Ask this STUN server for the public address; no server is asked without it
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "external", value_parser = text)]
    stun: Option<String>,
    /// Port for clients over UDP and TCP
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), default_value_t = PORT)]
    port: u16,
    /// UDP ports of relayed traffic
    #[arg(long, value_name = "FIRST-LAST", default_value = RELAY_PORTS, value_parser = text)]
    relay_ports: String,
    /// Also relay TCP connections (RFC 6062), over the same ports; calls in browsers need none
    #[arg(long)]
    relay_tcp: bool,
    /// Get a certificate for the host name from Let's Encrypt, whose terms you accept by this, and listen for TLS;
    /// the authority writes to this address when something is wrong
    #[arg(long, value_name = "ADDRESS", requires = "host", conflicts_with = "certificate", value_parser = text)]
    email: Option<String>,
    /// PEM file of a certificate chain: also listen for TLS
    #[arg(long, value_name = "FILE", requires = "private_key", value_parser = path)]
    certificate: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "certificate", value_parser = path)]
    private_key: Option<PathBuf>,
    /// Port for clients over TLS, which needs a certificate [default: 5349]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tls_port: Option<u16>,
    /// Ask nothing: what no option says is left at its default
    #[arg(long)]
    non_interactive: bool,
    /// Replace the file if there is one; its secret is lost
    #[arg(long)]
    force: bool,
}

/// An argument that says something: an empty one mostly comes from a variable that is not set.
fn text(argument: &str) -> Result<String, String> {
    if argument.trim().is_empty() {
        return Err("is empty; give a value, or leave the option out".to_owned());
    }
    Ok(argument.to_owned())
}

fn host(argument: &str) -> Result<String, String> {
    Ok(issuing::host(&text(argument)?)?.to_owned())
}

fn path(argument: &str) -> Result<PathBuf, String> {
    text(argument).map(PathBuf::from)
}

/// What the file will say.
#[derive(Clone, Debug)]
struct Plan {
    host: Option<String>,
    /// Its public addresses, as somebody said: at most one for each family.
    external: Vec<IpAddr>,
    /// What the routes give.
    local: Vec<IpAddr>,
    port: u16,
    relay_ports: String,
    /// Whether TCP is relayed as well.
    relay_tcp: bool,
    tls: Option<Certificate>,
    tls_port: u16,
    /// Whether the kernel has the family: a listener of a family that it lacks keeps the server from starting.
    has_ipv6: bool,
    secret: String,
}

/// Where the certificate comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Certificate {
    /// From two files.
    Files { chain: PathBuf, key: PathBuf },
    /// From an authority, which writes to this address; it keeps its things in that directory.
    Authority { email: String, state: PathBuf },
}

impl Certificate {
    /// From an authority, for a configuration at this path.
    fn of_authority(email: &str, config: &Path) -> Self {
        let beside = || std::path::absolute(config).ok()?.parent().map(|directory| directory.join("acme"));
        let own = (config != Path::new(DEFAULT_PATH)).then(beside).flatten();
        Self::Authority { email: email.to_owned(), state: own.unwrap_or_else(|| ACME_STATE.into()) }
    }
}

impl Plan {
    /// Whether there can be a certificate for the host: an authority has none for addresses and local names.
    fn has_domain(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.contains('.') && host.parse::<IpAddr>().is_err())
    }

    /// The TCP port at which an authority looks for the proof, if one is asked.
    fn proof_port(&self) -> Option<u16> {
        let is_asked = matches!(self.tls, Some(Certificate::Authority { .. }));
        is_asked.then_some(if self.tls_port == 443 { 443 } else { 80 })
    }

    /// Why the file would be no configuration.
    fn check(&self, path: &Path) -> Result<(), String> {
        let checked = Config::of_text(path, &self.text(), &Environment::default());
        checked.map(|_| ()).map_err(|error| {
            // The file is not there yet, so its lines mean nothing.
            let say = |problem: &crate::config::error::Problem| match &problem.value {
                Some(value) => format!("{} = {value}: {}", problem.key, problem.message),
                None => format!("{}: {}", problem.key, problem.message),
            };
            error.problems.iter().map(say).collect::<Vec<_>>().join("\n")
        })
    }

    /// A port for TLS without a certificate would do nothing.
    fn check_tls_port(&self, options: &InitOptions) -> Result<(), String> {
        match options.tls_port {
            Some(port) if self.tls.is_none() => Err(format!(
                "--tls-port {port}: there is no certificate, so no listener for TLS; give --host and --email to get one, or --certificate and --private-key"
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// The address of a family that clients will reach it by, as far as it is known.
    fn public(&self, is_ipv4: bool) -> Option<IpAddr> {
        let of_family = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4);
        of_family(&self.external).or_else(|| of_family(&self.local).filter(|ip| remedy::is_global(*ip)))
    }

    /// The public addresses that the machine has not itself.
    fn behind_nat(&self) -> Vec<IpAddr> {
        self.external.iter().copied().filter(|ip| !self.local.contains(ip)).collect()
    }

    /// An address of this machine that the internet does not reach, and for which there is no other.
    fn hidden(&self, is_ipv4: bool) -> Option<IpAddr> {
        let local = self.local.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4)?;
        self.public(is_ipv4).is_none().then_some(local)
    }
}

pub(super) fn run(options: &InitOptions) -> Result<(), Failure> {
    let path = &options.config;
    may_write(path, options.force)?;
    let is_person = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !is_person && !options.non_interactive {
        let message = "init asks on a terminal; without one give --non-interactive, and what it would ask as options";
        return Err(Failure::Usage(message.to_owned()));
    }
    let mut plan = plan(options)?;
    plan.check(path).map_err(Failure::Usage)?;
    if options.non_interactive {
        plan.check_tls_port(options).map_err(Failure::Usage)?;
    } else {
        let check = |plan: &Plan| plan.check(path);
        questions::ask(&mut plan, options, &mut io::stdin().lock(), &mut io::stderr(), &check)?;
        plan.check_tls_port(options).map_err(Failure::Usage)?;
    }
    let owner = write(path, &plan.text(), options.force)?;
    let mut out = io::stdout().lock();
    writeln!(out, "Wrote {} (0640, {owner}).\n", path.display())?;
    out.write_all(plan.next(path, next::Service::of_machine()).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// What the options say, with what this machine and the STUN server know.
fn plan(options: &InitOptions) -> Result<Plan, Failure> {
    let local = routed_addresses();
    let mut external = options.external.clone();
    if let Some(server) = &options.stun {
        external = public_address::addresses_seen_by(server, STUN_TIME)
            .map_err(|why| Failure::Run(format!("--stun {why}")))?;
        if let Some(ip) = external.iter().find(|ip| !remedy::is_global(**ip)) {
            let message = format!(
                "--stun {server}: sees this machine as {ip}, which the internet does not reach; ask a server on the internet, or give --external"
            );
            return Err(Failure::Run(message));
        }
    }
    let files = options.certificate.clone().zip(options.private_key.clone());
    let files = files.map(|(chain, key)| Certificate::Files { chain, key });
    let asked = options.email.as_ref().map(|email| Certificate::of_authority(email, &options.config));
    let tls = files.or(asked);
    Ok(Plan {
        host: options.host.clone(),
        external,
        local,
        port: options.port,
        relay_ports: options.relay_ports.clone(),
        relay_tcp: options.relay_tcp,
        tls,
        tls_port: options.tls_port.unwrap_or(TLS_PORT),
        has_ipv6: has_ipv6(),
        secret: random_text(),
    })
}

/// Whether there is no file yet, or it may be replaced. A link to nothing is a file that was meant to be elsewhere.
fn may_write(path: &Path, may_replace: bool) -> Result<(), Failure> {
    let shown = path.display();
    let is_there = files::is_there(path)
        .map_err(|error| Failure::Run(format!("can't tell whether {shown} exists: {error}; mend its directory")))?;
    if !is_there || may_replace {
        return Ok(());
    }
    Err(Failure::Usage(match files::dangling(path) {
        Some(target) => format!(
            "{shown} is a link to {}, which is not there; make that file or remove the link, or write it there with --force",
            target.display()
        ),
        None => format!("{shown} exists; --force replaces it, and its secrets are lost then"),
    }))
}

/// Writes the file whole or not at all; says whose it is. A link stays, and what it leads to is written.
fn write(path: &Path, text: &str, may_replace: bool) -> Result<&'static str, Failure> {
    let failed = |error: io::Error| {
        let remedy = if error.kind() == io::ErrorKind::PermissionDenied { "; try sudo" } else { "" };
        Failure::Run(format!("can't write {}: {error}{remedy}", path.display()))
    };
    let place = files::behind_links(path).map_err(failed)?;
    let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(directory).map_err(failed)?;
    let aside = directory.join(format!(".throughway-init.{}", std::process::id()));
    let written = write_aside(&aside, text).and_then(|owner| {
        // A link fails where a file is, even one that came just now.
        let placed = if may_replace { fs::rename(&aside, &place) } else { fs::hard_link(&aside, &place) };
        placed.map(|()| owner)
    });
    // After a rename it is gone already.
    let _ = fs::remove_file(&aside);
    written.map_err(failed)
}

/// Makes what is missing of a directory so that the server's user can enter it, whatever the umask is.
fn make_directory(directory: &Path) -> io::Result<()> {
    let missing = |directory: &&Path| !directory.as_os_str().is_empty() && !directory.is_dir();
    let missing: Vec<&Path> = directory.ancestors().take_while(missing).collect();
    for directory in missing.into_iter().rev() {
        fs::create_dir(directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn write_aside(aside: &Path, text: &str) -> io::Result<&'static str> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
    let group = if effective_uid() == 0 { User::find(GROUP)? } else { None };
    if let Some(group) = &group {
        chown(aside, None, Some(group.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(0o640))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(match (group, effective_uid()) {
        (Some(_), _) => "root:throughway",
        (None, 0) => "root:root",
        (None, _) => "your own",
    })
}
