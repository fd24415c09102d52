//! `throughway demo`: a relay with a fresh secret and the page that calls through it, in one process.

use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use clap::Args;

use super::lan::{AddressOrigin, Lan};
use super::relay::{Ended, OwnRelay};
use super::{Access, DemoState, Shared, qr, router, serve};
use crate::api::health::{self, Health};
use crate::config::Config;
use crate::failure::Failure;
use crate::net::passed::Passed;
use crate::net::{self, KeptSets, Running, interfaces};
use crate::ops::log::{self, OnEnded};
use crate::ops::status::Phase;
use crate::run::{self, Signal, Signals};

/// Options of `demo`.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug)]
pub struct DemoOptions {
    /// Port for STUN and TURN, UDP and TCP
    #[arg(long, default_value_t = 3478, value_name = "PORT")]
    pub port: u16,
    /// Where the page is served; an address that other machines reach needs --lan
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", value_parser = http_address)]
    pub http: SocketAddr,
    /// Also open the page to the local network, for a call with a phone. It opens only with the link that is printed.
    /// Give ADDRESS if this machine's address is not found, for example in a container
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1)]
    pub lan: Option<Option<IpAddr>>,
    /// Also show the server's log, with a line for each session
    #[arg(long)]
    pub verbose: bool,
}

fn http_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, such as 127.0.0.1:8080 or [::1]:8080 (names such as localhost are not looked up)".to_owned()
    })
}

/// The fragment of both addresses that `--lan` prints.
const LAN_ROOM: &str = "#room=lan";

/// Runs the demo until SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure::Run`] with the address and the remedy when something can't be bound.
pub fn run(options: DemoOptions) -> Result<(), Failure> {
    let runtime = run::runtime()?;
    let result = runtime.block_on(demo(options));
    run::end(runtime);
    result
}

async fn demo(options: DemoOptions) -> Result<(), Failure> {
    let mut lan = Lan::find();
    let shared = match options.lan {
        Some(wanted) => Some(share(&mut lan, wanted)?),
        None => {
            refuse_exposed(options.http)?;
            None
        }
    };
    let listen = listen_addresses(&lan, shared);
    let config = config(&lan, &listen, &options)?;
    let _level = log::start(&config.log).map_err(Failure::Run)?;

    let mut signals = Signals::new()?;
    let pages = bind_pages(options.http, shared)?;
    let mut page_addresses = Vec::new();
    for page in &pages {
        page_addresses.push(page.local_addr()?);
    }
    let ended = Ended::default();
    let heard = ended.clone();
    let on_ended: OnEnded = Box::new(move |record| heard.add(record));
    let started = run::start(&config, &page_addresses, Passed::default(), KeptSets::default(), Some(on_ended), None)
        .map_err(|failure| Failure::Run(format!("{failure}\n(the demo's port is --port, now {})", options.port)))?;
    let status = Arc::clone(&started.status);
    let follow = move |running: &Arc<Running>| status.set_relaying(running.has_relay_address());
    tokio::spawn(net::follow_addresses(Arc::downgrade(&started.running), follow));

    // port 0 has become a number
    let port = started.running.listeners().first().map_or(options.port, |(_, address)| address.port());
    let page_port = page_addresses.first().map_or(options.http.port(), SocketAddr::port);
    let secret =
        config.auth.secrets.first().cloned().ok_or_else(|| Failure::Run("the demo has no secret".to_owned()))?;
    let backend = OwnRelay {
        running: Arc::clone(&started.running),
        secret,
        lan: shared.unwrap_or(IpAddr::V4(lan.ipv4)),
        port,
        ended,
    };
    let no_random = |error| Failure::Run(format!("the system gives no random numbers: {error}"));
    let notes = lan.warning().into_iter().collect();
    let shared =
        shared.map(|address| Shared::new(SocketAddr::new(address, page_port))).transpose().map_err(no_random)?;
    let access = Access::new(shared);
    let hosts = access.hosts().clone();
    let link = access.link();
    let state = DemoState::new(Arc::new(backend), access, notes).map_err(no_random)?;
    let health = Health { status: Arc::clone(&started.status), metrics: Arc::clone(&started.metrics), hosts };
    let routes = router(state, health::router(health));
    let mut serving = Vec::new();
    for page in pages {
        serving.push(tokio::spawn(serve::serve(tokio::net::TcpListener::from_std(page)?, routes.clone())));
    }
    started.status.set(Phase::Ready);
    print!("{}", welcome(&lan, &listen, port, SocketAddr::new(options.http.ip(), page_port), link.as_deref()));

    // SIGHUP finds nothing to reread
    let signal = loop {
        if let Signal::Stop(name) = signals.next().await {
            break name;
        }
    };
    tracing::info!(signal, "stopping");
    for listener in serving {
        listener.abort();
    }
    started.stop().await;
    Ok(())
}

/// The page gives a credential to its visitors, so other machines reach it only with the token that `--lan` makes.
fn refuse_exposed(http: SocketAddr) -> Result<(), Failure> {
    if http.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let remedy = if http.ip().is_unspecified() { "--lan".to_owned() } else { format!("--lan {}", http.ip()) };
    Err(Failure::Usage(format!(
        "--http {http}: other machines could open the page there, and the page gives relay credentials. Use {remedy}: then other machines need the link that it prints"
    )))
}

/// The address under which other machines find the page. If this machine has it, the relay uses it too.
fn share(lan: &mut Lan, wanted: Option<IpAddr>) -> Result<IpAddr, Failure> {
    let Some(address) = wanted else {
        if lan.found == AddressOrigin::LoopbackOnly {
            return Err(Failure::Run(
                "--lan: this machine has no active network interface except loopback; connect to a network, or give its address: --lan ADDRESS"
                    .to_owned(),
            ));
        }
        return Ok(IpAddr::V4(lan.ipv4));
    };
    if address.is_unspecified() || address.to_canonical().is_loopback() {
        return Err(Failure::Usage(format!(
            "--lan {address}: other machines can't reach this address; give this machine's address on the network, or use --lan without an address"
        )));
    }
    if let (IpAddr::V4(address), true) = (address, is_own(address)) {
        lan.ipv4 = address;
    }
    Ok(address)
}

fn is_own(address: IpAddr) -> bool {
    interfaces::addresses().is_ok_and(|all| all.iter().any(|entry| entry.address == address))
}

/// 127.0.0.1, ::1 where there is one, and the address on the network, each with a socket of its own: Chromium takes the
/// one, Firefox the other, and each wants its answer from the address it asked.
fn listen_addresses(lan: &Lan, shared: Option<IpAddr>) -> Vec<IpAddr> {
    let has_ipv6_loopback =
        interfaces::addresses().is_ok_and(|all| all.iter().any(|entry| entry.address == Ipv6Addr::LOCALHOST));
    let mut listen = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if has_ipv6_loopback {
        listen.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
    if lan.found != AddressOrigin::LoopbackOnly {
        listen.push(IpAddr::V4(lan.ipv4));
    }
    listen.extend(shared.filter(|address| is_own(*address) && !listen.contains(address)));
    listen
}

/// The configuration goes the way of every other one, through the same checks. Everything is denied but what the policy
/// grants by itself: the only legal peers are the relay's own relayed addresses.
fn config(lan: &Lan, listen: &[IpAddr], options: &DemoOptions) -> Result<Config, Failure> {
    let port = options.port;
    let listen: Vec<String> = listen.iter().map(|ip| format!("{:?}", SocketAddr::new(*ip, port).to_string())).collect();
    let listen = listen.join(", ");
    let text = format!(
        "[listen]\nudp = [{listen}]\ntcp = [{listen}]\n\
         [relay]\naddresses = [\"{relay}\"]\n\
         [peers]\ndeny = [\"0.0.0.0/0\", \"::/0\"]\n\
         [[auth.secrets]]\nid = \"demo\"\nvalue = \"{secret}\"\n\
         [http]\nlisten = \"\"\n\
         [log]\nlevel = \"{level}\"\n",
        relay = lan.ipv4,
        level = if options.verbose { "info" } else { "warn" },
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

/// The page on `http`, and with `--lan` on that address too, with the same port.
fn bind_pages(http: SocketAddr, shared: Option<IpAddr>) -> Result<Vec<TcpListener>, Failure> {
    let first = bind(http).map_err(|error| {
        Failure::Run(format!(
            "--http: can't serve the page on {http}: {error}; choose another, such as --http 127.0.0.1:0"
        ))
    })?;
    let port = first.local_addr()?.port();
    let mut pages = vec![first];
    if let Some(address) = shared.filter(|address| !http.ip().is_unspecified() && http.ip() != *address) {
        let address = SocketAddr::new(address, port);
        pages.push(bind(address).map_err(|error| {
            Failure::Run(format!(
                "--lan: can't serve the page on {address}: {error}. If it is not an address of this machine but the one \
                 of a container's host, add --http 0.0.0.0:{port}"
            ))
        })?);
    }
    Ok(pages)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What a person reads: who can open the page, and last, where the eye is, the address.
fn welcome(lan: &Lan, listen: &[IpAddr], port: u16, page: SocketAddr, link: Option<&str>) -> String {
    // behind a published port of a container, 127.0.0.1 outside is this wildcard inside
    let host = if page.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { page.ip() };
    let url = SocketAddr::new(host, page.port());
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    let exposure = match (link, &lan.found) {
        (Some(_), _) => "The page is open to your local network with the link below.".to_owned(),
        (None, AddressOrigin::LoopbackOnly) => "Only this machine can reach it.".to_owned(),
        (None, AddressOrigin::Route | AddressOrigin::Interface(_)) => format!(
            "Your local network can reach the relay at {}, but only this machine can open the page and get credentials. To call a phone, use --lan.",
            lan.ipv4
        ),
    };
    let warning = lan.warning().map(|warning| format!("\n  Warning: {warning}\n")).unwrap_or_default();
    // one room for both, so that the phone meets this machine's tab
    let room = if link.is_some() { LAN_ROOM } else { "" };
    let link = link.map(|link| {
        let link = &format!("{link}{room}");
        let code = io::stdout().is_terminal().then(|| qr::blocks(link)).flatten().unwrap_or_default();
        format!("\n{code}  On a phone in the same network, scan this code or open\n  {link}\n")
    });
    format!(
        "\n  STUN and TURN on {} port {port}, UDP and TCP; relaying from {}.\n  {exposure}\n  Ctrl-C ends it.\n{warning}{}\n  \
         Open in Chromium or Firefox:  http://{url}/{room}\n\n",
        listen.join(", "),
        lan.ipv4,
        link.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Transport;
    use crate::config::checked::LogLevel;
    use crate::protocol::peer_policy::LocalAddresses;
    use crate::protocol::peer_policy::PeerClass;

    fn options() -> DemoOptions {
        DemoOptions { port: 3478, http: "127.0.0.1:8080".parse().unwrap(), lan: None, verbose: false }
    }

    fn lan(found: AddressOrigin) -> Lan {
        let ipv4 =
            if found == AddressOrigin::LoopbackOnly { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(192, 168, 1, 20) };
        Lan { ipv4, found, ipv6: None }
    }

    #[test]
    fn the_configuration_is_right_and_opens_no_peer() {
        let lan = lan(AddressOrigin::Route);
        let listen = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(lan.ipv4)];

        let config = config(&lan, &listen, &options()).unwrap();

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

    // F-C3: the address to open is the last line, and no line of the log comes after it.
    #[test]
    fn the_welcome_ends_with_the_url_and_sessions_are_not_logged_unless_asked() {
        let page = "127.0.0.1:8080".parse().unwrap();
        let reachable = lan(AddressOrigin::Route);
        let listen = [IpAddr::V4(reachable.ipv4)];

        let text = welcome(&reachable, &listen, 3478, page, None);

        assert!(text.trim_end().ends_with("http://127.0.0.1:8080/"), "{text}");
        assert!(text.contains("only this machine can open the page"), "{text}");
        assert!(!text.contains("Warning"), "{text}");
        let level = |verbose| config(&reachable, &listen, &DemoOptions { verbose, ..options() }).unwrap().log.level;
        assert_eq!((level(false), level(true)), (LogLevel::Warn, LogLevel::Info));
    }

    #[test]
    fn with_a_link_the_welcome_says_that_the_page_is_open() {
        let reachable = lan(AddressOrigin::Route);
        let link = "http://192.168.1.20:8080/?token=00";

        let text =
            welcome(&reachable, &[IpAddr::V4(reachable.ipv4)], 3478, "127.0.0.1:8080".parse().unwrap(), Some(link));

        assert!(text.contains(&format!("{link}#room=lan\n")) && text.contains("open to your local network"), "{text}");
        assert!(!text.contains("but not"), "{text}");
        assert!(text.trim_end().ends_with("http://127.0.0.1:8080/#room=lan"), "{text}");
    }

    // F-C2
    #[test]
    fn a_page_that_others_reach_needs_lan_and_the_error_says_so() {
        for (http, remedy) in
            [("0.0.0.0:8080", "Use --lan:"), ("[::]:1", "Use --lan:"), ("192.0.2.7:8080", "Use --lan 192.0.2.7:")]
        {
            let Err(Failure::Usage(text)) = refuse_exposed(http.parse().unwrap()) else { panic!("{http} is refused") };
            assert!(text.contains(http) && text.contains(remedy), "{text}");
        }
        for http in ["127.0.0.1:8080", "[::1]:0", "127.3.3.3:1", "[::ffff:127.0.0.1]:1"] {
            assert!(refuse_exposed(http.parse().unwrap()).is_ok(), "{http}");
        }
        for address in ["0.0.0.0", "127.0.0.1", "::1"] {
            let shared = share(&mut lan(AddressOrigin::Route), Some(address.parse().unwrap()));
            assert!(matches!(shared, Err(Failure::Usage(_))), "{address}");
        }
        assert!(share(&mut lan(AddressOrigin::LoopbackOnly), None).is_err());
        assert_eq!(share(&mut lan(AddressOrigin::Route), None).unwrap(), IpAddr::V4(Ipv4Addr::new(192, 168, 1, 20)));
    }

    #[test]
    fn without_an_interface_the_welcome_says_so_and_what_to_do() {
        let page = "0.0.0.0:8080".parse().unwrap();

        let text = welcome(&lan(AddressOrigin::LoopbackOnly), &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 3478, page, None);

        assert!(text.contains("http://127.0.0.1:8080/"), "{text}");
        assert!(text.contains("Warning: this machine has no active network interface"), "{text}");
        assert!(text.contains("Connect to any network"), "{text}");
    }
}
