//! What is left to do after `init`: firewall, DNS, the next commands.

use std::fmt::Write as _;
use std::path::Path;

use super::Plan;
use crate::cli::service::Unit;
use crate::config::DEFAULT_PATH;

/// Where a unit is, if there is one.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/throughway.service",
    "/usr/lib/systemd/system/throughway.service",
    "/lib/systemd/system/throughway.service",
];

/// The service of systemd, as it is when `init` has written the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Service {
    /// There is no unit.
    Missing,
    /// There is a unit that does not run.
    Stopped,
    /// It runs, with the configuration that it had before.
    Running,
}

impl Service {
    pub(super) fn of_machine() -> Self {
        match UNITS.iter().any(|unit| Path::new(unit).exists()) {
            false => Self::Missing,
            true if Unit::of_machine() == Unit::Running => Self::Running,
            true => Self::Stopped,
        }
    }

    /// What makes the server run with the file.
    const fn command(self) -> Option<&'static str> {
        match self {
            Self::Missing => None,
            Self::Stopped => Some("systemctl enable --now throughway"),
            Self::Running => Some("systemctl restart throughway"),
        }
    }
}

impl Plan {
    pub(super) fn next(&self, config: &Path, service: Service) -> String {
        let file = config.display();
        let mut text = self.firewall();
        text += &self.dns();
        text += &self.certificate();
        if let Some(local) = self.hidden(true) {
            let _ = writeln!(
                text,
                "Clients on the internet don't reach {local}, the address of this machine. If they reach it by another one, set\n\
                 relay.external to that in {file}.\n"
            );
        }
        let is_default = config == Path::new(DEFAULT_PATH);
        let option = if is_default { String::new() } else { format!(" --config {file}") };
        let mut commands = vec![format!("throughway check-config {file}")];
        let start = service.command().filter(|_| is_default);
        commands.push(start.map_or_else(|| format!("throughway serve{option}"), str::to_owned));
        commands.push(format!("throughway credentials mint --user alice{option}"));
        let over_tls = self.proof_port().and(self.host.as_ref()).map_or_else(String::new, |host| {
            let port = if self.tls_port == super::TLS_PORT { String::new() } else { format!(":{}", self.tls_port) };
            format!(" turns:{host}{port}")
        });
        commands.push(format!("throughway check{option} turn:{}{over_tls}", self.address()));
        let _ = write!(text, "Next:\n  {}\n", commands.join("\n  "));
        text
    }

    /// What the check names: the host, else an address.
    fn address(&self) -> String {
        let port = if self.port == super::PORT { String::new() } else { format!(":{}", self.port) };
        let ip = || self.public(true).map(|ip| ip.to_string()).or(self.public(false).map(|ip| format!("[{ip}]")));
        let host = self.host.clone().or_else(ip).unwrap_or_else(|| "ADDRESS".to_owned());
        format!("{host}{port}")
    }

    fn firewall(&self) -> String {
        // A range of one port is none to nft and ufw.
        let one = self.relay_ports.split_once('-').filter(|(first, last)| first == last);
        let (port, range) = (self.port, one.map_or(&*self.relay_ports, |(only, _)| only));
        let mut tcp: Vec<String> =
            self.tls.iter().map(|_| self.tls_port).chain(self.proof_port()).map(|port| port.to_string()).collect();
        tcp.dedup();
        // Peers connect to the ports that are relayed.
        tcp.extend(self.relay_tcp.then(|| range.to_owned()));
        let and =
            |before: &str, after: &str| tcp.iter().map(|port| format!("{before}{port}{after}")).collect::<String>();
        let mut text = String::from("Open in the firewall:\n");
        let ufw = format!("{range}/udp{}", and(" && ufw allow ", "/tcp")).replace('-', ":");
        let _ = writeln!(text, "  ufw        ufw allow {port} && ufw allow {ufw}");
        let firewalld = and(" --add-port=", "/tcp");
        let _ = writeln!(
            text,
            "  firewalld  firewall-cmd --permanent --add-port={port}/udp --add-port={port}/tcp --add-port={range}/udp{firewalld} && firewall-cmd --reload"
        );
        let nft = and(", ", "");
        let _ = writeln!(text, "  nft        nft add rule inet filter input udp dport '{{ {port}, {range} }}' accept");
        let _ = writeln!(text, "             nft add rule inet filter input tcp dport '{{ {port}{nft} }}' accept");
        let _ = writeln!(
            text,
            "  clouds     security group or firewall, inbound from everywhere: UDP {port}, UDP {range}, TCP {port}{nft}\n"
        );
        text
    }

    /// What an authority needs before it gives a certificate.
    fn certificate(&self) -> String {
        let (Some(port), Some(host)) = (self.proof_port(), &self.host) else { return String::new() };
        format!(
            "Certificate: the server gets it from Let's Encrypt when it starts, and renews it. Both times the name {host} must lead to\n\
             this machine, and TCP port {port} of it must be reachable from the internet. The log says `certificate obtained` when it\n\
             is there; until then clients can't use turns:, and the log says why.\n\n"
        )
    }

    fn dns(&self) -> String {
        let Some(host) = &self.host else { return String::new() };
        let mut text = String::from("DNS records:\n");
        let (ipv4, ipv6) = (self.public(true), self.public(false));
        for (kind, ip) in [("A   ", ipv4), ("AAAA", ipv6)] {
            if let Some(ip) = ip {
                let _ = writeln!(text, "  {host}.  {kind}  {ip}");
            }
        }
        if ipv4.is_none() && ipv6.is_none() {
            let _ = writeln!(text, "  {host}.  A     the public address of this machine, which is not known here");
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::Certificate;
    use super::*;

    #[test]
    fn an_authority_needs_a_name_that_leads_here_and_a_port() {
        let mut plan = Plan {
            host: Some("turn.example.org".to_owned()),
            external: vec!["45.0.0.7".parse().unwrap()],
            local: vec!["10.0.0.5".parse().unwrap()],
            port: 3478,
            relay_ports: "49152-65535".to_owned(),
            relay_tcp: false,
            tls: Some(Certificate::of_authority("ops@example.org", Path::new(DEFAULT_PATH))),
            tls_port: 5349,
            has_ipv6: true,
            secret: "north-of-everything".to_owned(),
        };
        let text = plan.next(Path::new(DEFAULT_PATH), Service::Missing);
        for line in [
            "ufw allow 49152:65535/udp && ufw allow 5349/tcp && ufw allow 80/tcp\n",
            "--add-port=5349/tcp --add-port=80/tcp &&",
            "tcp dport '{ 3478, 5349, 80 }' accept",
            "TCP 3478, 5349, 80\n",
            "turn.example.org.  A     45.0.0.7",
            "the name turn.example.org must lead to",
            "TCP port 80 of it must be reachable",
            "throughway check turn:turn.example.org turns:turn.example.org\n",
        ] {
            assert!(text.contains(line), "{text}\nlacks {line}");
        }
        plan.tls_port = 443;
        let text = plan.next(Path::new(DEFAULT_PATH), Service::Missing);
        assert!(text.contains("TCP port 443 of it") && text.contains("TCP 3478, 443\n"), "{text}");
        assert!(text.contains("turns:turn.example.org:443\n") && !text.contains("80"), "{text}");
    }

    #[test]
    fn every_port_is_in_every_firewall_and_every_address_in_dns() {
        let plan = Plan {
            host: Some("turn.example.org".to_owned()),
            external: vec!["45.0.0.7".parse().unwrap()],
            local: vec!["10.0.0.5".parse().unwrap(), "2a00::5".parse().unwrap()],
            port: 3479,
            relay_ports: "50000-50100".to_owned(),
            relay_tcp: false,
            tls: Some(Certificate::Files { chain: "a".into(), key: "b".into() }),
            tls_port: 443,
            has_ipv6: true,
            secret: "north-of-everything".to_owned(),
        };
        let text = plan.next(Path::new("/tmp/c.toml"), Service::Missing);
        for line in [
            "ufw allow 3479 && ufw allow 50000:50100/udp && ufw allow 443/tcp",
            "--add-port=3479/udp --add-port=3479/tcp --add-port=50000-50100/udp --add-port=443/tcp",
            "udp dport '{ 3479, 50000-50100 }' accept",
            "tcp dport '{ 3479, 443 }' accept",
            "UDP 3479, UDP 50000-50100, TCP 3479, 443",
            "turn.example.org.  A     45.0.0.7",
            "turn.example.org.  AAAA  2a00::5",
            "throughway check-config /tmp/c.toml",
            "throughway serve --config /tmp/c.toml",
            "throughway check --config /tmp/c.toml turn:turn.example.org:3479",
        ] {
            assert!(text.contains(line), "{text}\nlacks {line}");
        }
        let hidden = Plan { external: Vec::new(), ..plan.clone() };
        let told = hidden.next(Path::new("/tmp/c.toml"), Service::Missing);
        assert!(told.contains("don't reach 10.0.0.5") && !text.contains("don't reach"), "{told}");
        // Nothing that writes the file anew: that would lose the secret, and what other options said.
        assert!(told.contains("relay.external to that in /tmp/c.toml.\n") && !told.contains("--force"), "{told}");
        // The address that the machine has itself was named: it is the one, whatever its kind.
        let local: std::net::IpAddr = "10.0.0.5".parse().unwrap();
        let named = Plan { external: vec![local], local: vec![local], ..plan.clone() };
        let text = named.next(Path::new("/etc/throughway/config.toml"), Service::Missing);
        assert!(text.contains("A     10.0.0.5") && !text.contains("relay.external"), "{text}");
        assert!(!named.text().contains("external"), "{}", named.text());
        let bare = Plan { host: None, tls: None, external: Vec::new(), local: Vec::new(), ..plan };
        let text = bare.next(Path::new(DEFAULT_PATH), Service::Missing);
        assert!(!text.contains("relay.external"), "nothing is known about its address: {text}");
        assert!(!text.contains("DNS") && !text.contains("443") && text.contains("turn:ADDRESS:3479"), "{text}");
    }
    fn bare() -> Plan {
        Plan {
            host: None,
            external: Vec::new(),
            local: Vec::new(),
            port: 3478,
            relay_ports: "49152-65535".to_owned(),
            relay_tcp: false,
            tls: None,
            tls_port: 5349,
            has_ipv6: true,
            secret: "north-of-everything".to_owned(),
        }
    }

    /// A server that runs goes on with its old secret until it reads the file.
    #[test]
    fn a_service_that_runs_is_restarted_and_one_that_does_not_is_started() {
        let default = Path::new(DEFAULT_PATH);
        for (service, wanted) in [
            (Service::Running, "  systemctl restart throughway\n"),
            (Service::Stopped, "  systemctl enable --now throughway\n"),
            (Service::Missing, "  throughway serve\n"),
        ] {
            let text = bare().next(default, service);
            assert!(text.contains(wanted), "{text}\nlacks {wanted}");
            assert_eq!(text.matches("systemctl").count(), usize::from(service != Service::Missing), "{text}");
            let elsewhere = bare().next(Path::new("/tmp/c.toml"), service);
            assert!(elsewhere.contains("  throughway serve --config /tmp/c.toml\n"), "{elsewhere}");
        }
    }

    #[test]
    fn ports_of_relayed_tcp_are_in_every_firewall() {
        let tls = Some(Certificate::of_authority("ops@example.org", Path::new(DEFAULT_PATH)));
        let plan = Plan { host: Some("turn.example.org".to_owned()), tls, relay_tcp: true, ..bare() };
        let text = plan.next(Path::new(DEFAULT_PATH), Service::Missing);
        for line in [
            "ufw allow 3478 && ufw allow 49152:65535/udp && ufw allow 5349/tcp && ufw allow 80/tcp && ufw allow 49152:65535/tcp\n",
            "--add-port=49152-65535/udp --add-port=5349/tcp --add-port=80/tcp --add-port=49152-65535/tcp &&",
            "udp dport '{ 3478, 49152-65535 }' accept",
            "tcp dport '{ 3478, 5349, 80, 49152-65535 }' accept",
            "UDP 3478, UDP 49152-65535, TCP 3478, 5349, 80, 49152-65535\n",
        ] {
            assert!(text.contains(line), "{text}\nlacks {line}");
        }
        assert!(plan.text().contains("\n[relay]\n") && plan.text().contains("\ntcp = true\n"), "{}", plan.text());
        assert_eq!(plan.check(Path::new(DEFAULT_PATH)), Ok(()));
        let one = Plan { relay_ports: "50000-50000".to_owned(), tls: None, ..plan };
        let text = one.next(Path::new(DEFAULT_PATH), Service::Missing);
        assert!(text.contains("tcp dport '{ 3478, 50000 }' accept") && text.contains("ufw allow 50000/tcp"), "{text}");
        let text = bare().next(Path::new(DEFAULT_PATH), Service::Missing);
        assert!(!text.contains("49152:65535/tcp") && !bare().text().contains("tcp = "), "{text}");
    }

    #[test]
    fn a_range_of_one_port_is_a_port() {
        let text =
            Plan { relay_ports: "50000-50000".to_owned(), ..bare() }.next(Path::new(DEFAULT_PATH), Service::Missing);
        assert!(!text.contains("50000-") && !text.contains("50000:"), "{text}");
        assert!(text.contains("udp dport '{ 3478, 50000 }' accept") && text.contains("ufw allow 50000/udp"), "{text}");
    }
}
