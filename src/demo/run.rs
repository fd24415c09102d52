//! `throughway demo`: a relay with a fresh secret and the page that calls through it, in one process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use super::lan::{Found, Lan};
use super::relay::{Ended, OwnRelay};
use super::{AllowedHosts, DemoState, router};
use crate::api::health::{self, Health};
use crate::cli::{DemoOptions, Failure};
use crate::config::Config;
use crate::net::interfaces;
use crate::net::passed::Passed;
use crate::ops::log::{self, OnEnded};
use crate::ops::status::Phase;
use crate::protocol::revocation::Revocations;
use crate::run::{self, Signals, Told};

/// Runs the demo until SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure::Run`] with the address and the remedy when something can't be bound.
pub fn run(options: DemoOptions) -> Result<(), Failure> {
    run::runtime()?.block_on(demo(options))
}

async fn demo(options: DemoOptions) -> Result<(), Failure> {
    let lan = Lan::find();
    let listen = listen_addresses(&lan);
    let config = config(&lan, &listen, options.port)?;
    let _level = log::start(&config.log).map_err(Failure::Run)?;

    let mut signals = Signals::new()?;
    let page = bind_page(options.http)?;
    let page_address = page.local_addr()?;
    let ended = Ended::default();
    let heard = ended.clone();
    let on_ended: OnEnded = Box::new(move |record| heard.add(record));
    let started = run::start(&config, &[page_address], Passed::default(), Revocations::default(), Some(on_ended))
        .map_err(|failure| Failure::Run(format!("{failure}\n(the demo's port is --port, now {})", options.port)))?;

    // port 0 has become a number
    let port = started.running.listeners().first().map_or(options.port, |(_, address)| address.port());
    let secret =
        config.auth.secrets.first().cloned().ok_or_else(|| Failure::Run("the demo has no secret".to_owned()))?;
    let backend = OwnRelay {
        running: Arc::clone(&started.running),
        secret,
        lan: options.lan.unwrap_or(IpAddr::V4(lan.ipv4)),
        port,
        ended,
    };
    let notes = lan.warning().into_iter().collect();
    let hosts = AllowedHosts::default();
    let state = DemoState::new(Arc::new(backend), hosts.clone(), notes)
        .map_err(|error| Failure::Run(format!("the system gives no random numbers: {error}")))?;
    let health = Health { status: Arc::clone(&started.status), metrics: Arc::clone(&started.metrics), hosts };
    let routes = router(state).merge(health::router(health));
    let page = tokio::net::TcpListener::from_std(page)?;
    let serving = tokio::spawn(async move { axum::serve(page, routes).await });
    started.status.set(Phase::Ready);
    println!("{}", welcome(&lan, &listen, port, page_address));

    // SIGHUP finds nothing to reread
    let signal = loop {
        if let Told::Stop(name) = signals.next().await {
            break name;
        }
    };
    tracing::info!(signal, "stopping");
    serving.abort();
    started.stop().await;
    Ok(())
}

/// 127.0.0.1, ::1 where there is one, and the address on the network, each with a socket of its own: Chromium takes the
/// one, Firefox the other, and each wants its answer from the address it asked.
fn listen_addresses(lan: &Lan) -> Vec<IpAddr> {
    let has_ipv6_loopback =
        interfaces::addresses().is_ok_and(|all| all.iter().any(|entry| entry.address == Ipv6Addr::LOCALHOST));
    let mut listen = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if has_ipv6_loopback {
        listen.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
    if lan.found != Found::LoopbackOnly {
        listen.push(IpAddr::V4(lan.ipv4));
    }
    listen
}

/// The configuration goes the way of every other one, through the same checks. Everything is denied but what the policy
/// grants by itself: the only legal peers are the relay's own relayed addresses.
fn config(lan: &Lan, listen: &[IpAddr], port: u16) -> Result<Config, Failure> {
    let listen: Vec<String> = listen.iter().map(|ip| format!("{:?}", SocketAddr::new(*ip, port).to_string())).collect();
    let listen = listen.join(", ");
    let text = format!(
        "[listen]\nudp = [{listen}]\ntcp = [{listen}]\n\
         [relay]\naddresses = [\"{relay}\"]\n\
         [peers]\ndeny = [\"0.0.0.0/0\", \"::/0\"]\n\
         [[auth.secrets]]\nid = \"demo\"\nvalue = \"{secret}\"\n\
         [http]\nlisten = \"\"\n",
        relay = lan.ipv4,
        secret = fresh_secret()?,
    );
    Config::from_toml("demo", &text).map_err(Failure::from)
}

fn fresh_secret() -> Result<String, Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::Run(format!("the system gives no random numbers for a secret: {error}")))?;
    Ok(secret.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn bind_page(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener)).map_err(|error| {
        Failure::Run(format!(
            "--http: can't serve the page on {address}: {error}; choose another, such as --http 127.0.0.1:0"
        ))
    })
}

/// What a person reads: the URL first, then who else can reach what.
fn welcome(lan: &Lan, listen: &[IpAddr], port: u16, page: SocketAddr) -> String {
    // behind a published port of a container, 127.0.0.1 outside is this wildcard inside
    let host = if page.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { page.ip() };
    let url = SocketAddr::new(host, page.port());
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    let exposure = match lan.found {
        Found::LoopbackOnly => "Nothing of this can be reached from outside this machine.".to_owned(),
        Found::Route | Found::Interface(_) => format!(
            "Your local network can reach the relay at {}, but not use it: only this page has credentials, made with a \
             secret that is new in each run.",
            lan.ipv4
        ),
    };
    let warning = lan.warning().map(|warning| format!("\n  Warning: {warning}\n")).unwrap_or_default();
    format!(
        "\n  Open   http://{url}/   in Chromium or Firefox, then \"Open the second tab\" there.\n{warning}\n  \
         STUN and TURN on {} port {port}, UDP and TCP; relaying from {}.\n  {exposure}\n  Ctrl-C ends it.\n",
        listen.join(", "),
        lan.ipv4,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::address::Transport;
    use crate::protocol::peer_policy::PeerClass;
    use crate::protocol::settings::LocalAddresses;

    fn lan(found: Found) -> Lan {
        let ipv4 = if found == Found::LoopbackOnly { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(192, 168, 1, 20) };
        Lan { ipv4, found, ipv6: None }
    }

    #[test]
    fn the_configuration_is_right_and_opens_no_peer() {
        let lan = lan(Found::Route);
        let listen = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(lan.ipv4)];

        let config = config(&lan, &listen, 3478).unwrap();

        assert_eq!(config.listen.iter().filter(|listen| listen.transport == Transport::Udp).count(), 3);
        assert_eq!(config.listen.iter().filter(|listen| listen.transport == Transport::Tcp).count(), 3);
        assert_eq!(config.relay.addresses, [IpAddr::V4(lan.ipv4)]);
        let own = LocalAddresses { own: vec![IpAddr::V4(lan.ipv4)], ..LocalAddresses::default() };
        let peers = config.settings(own, true, false).unwrap().peers;
        assert_eq!(peers.judge(IpAddr::V4(lan.ipv4)), Some(PeerClass::Own));
        for denied in ["8.8.8.8", "192.168.1.1", "127.0.0.1", "2606:4700::1111"] {
            assert_eq!(peers.judge(denied.parse().unwrap()), None, "{denied}");
        }
        assert!(config.auth.users.is_empty());
        assert_eq!(config.http.listen, None);
    }

    #[test]
    fn each_run_has_another_secret() {
        assert_ne!(fresh_secret().unwrap(), fresh_secret().unwrap());
        assert_eq!(fresh_secret().unwrap().len(), 64);
    }

    #[test]
    fn the_welcome_names_the_url_and_what_the_network_can_reach() {
        let page = "127.0.0.1:8080".parse().unwrap();
        let reachable = lan(Found::Route);

        let text = welcome(&reachable, &[IpAddr::V4(reachable.ipv4)], 3478, page);

        assert!(text.contains("http://127.0.0.1:8080/"), "{text}");
        assert!(text.contains("Your local network can reach the relay at 192.168.1.20"), "{text}");
        assert!(!text.contains("Warning"), "{text}");
    }

    #[test]
    fn without_an_interface_the_welcome_says_so_and_what_to_do() {
        let page = "0.0.0.0:8080".parse().unwrap();

        let text = welcome(&lan(Found::LoopbackOnly), &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 3478, page);

        assert!(text.contains("http://127.0.0.1:8080/"), "{text}");
        assert!(text.contains("Warning: this machine has no network interface"), "{text}");
        assert!(text.contains("Remedy: connect to any network"), "{text}");
    }
}
