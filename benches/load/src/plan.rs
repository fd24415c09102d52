//! What a run is asked to do, and the addresses that follow from it.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::account::Account;
use crate::flags::Flags;
use crate::flood::Orders;
use crate::namespace::Namespaces;
use crate::sys;
use crate::tls::Tls;
use crate::traffic::{HEADER, PAYLOAD_MAX};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    /// Plain, or with TLS inside: see `Plan::tls`.
    Tcp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Turn,
    /// Fixed mapping, see `forward`.
    Bare,
}

/// What a payload looks like between client and server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Raw,
    Channel,
    Indication,
}

#[derive(Clone, Copy)]
pub enum Load {
    /// Packets per second, session and direction, whatever comes back.
    Rate(f64),
    /// Packets on their way in both directions together; each arrival makes room for the next.
    InFlight(usize),
}

/// Where everyone is. Sessions differ by address, so one socket a side serves any number of them.
#[derive(Clone, Copy)]
pub struct Places {
    pub server: SocketAddrV4,
    /// Of session 0; the others follow.
    pub first_client: Ipv4Addr,
    pub first_peer: Ipv4Addr,
    pub client_port: u16,
    pub peer_port: u16,
    /// Of the bare forwarder only: its first relay address; the other sessions' ports follow.
    pub bare_relay: Ipv4Addr,
    pub relay_base: u16,
}

pub const SESSIONS_MAX: usize = 65_000;

impl Places {
    #[cfg(test)]
    pub fn on_loopback(server: SocketAddrV4, client_port: u16) -> Self {
        Self {
            server,
            first_client: Ipv4Addr::new(127, 1, 0, 1),
            first_peer: Ipv4Addr::new(127, 2, 0, 1),
            client_port,
            peer_port: 1,
            bare_relay: Ipv4Addr::LOCALHOST,
            relay_base: 1,
        }
    }

    pub fn parse(flags: &mut Flags, server: &str) -> Result<Self, String> {
        let server = flags.or(server, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3478))?;
        Ok(Self {
            server,
            first_client: flags.or("first-client", Ipv4Addr::new(127, 1, 0, 1))?,
            first_peer: flags.or("first-peer", Ipv4Addr::new(127, 2, 0, 1))?,
            client_port: flags.or("client-port", 40_000)?,
            peer_port: flags.or("peer-port", 41_000)?,
            bare_relay: flags.or("bare-relay", *server.ip())?,
            relay_base: flags.or("relay-base", 42_000)?,
        })
    }

    pub fn client(&self, session: usize) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(u32::from(self.first_client) + session as u32), self.client_port)
    }

    pub fn peer(&self, session: usize) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(u32::from(self.first_peer) + session as u32), self.peer_port)
    }

    /// Of the bare forwarder only; a TURN server says where it relays.
    pub fn bare_relay(&self, session: usize) -> SocketAddrV4 {
        SocketAddrV4::new(self.bare_relay, self.relay_base + session as u16)
    }

    /// The session a client address belongs to; the caller checks it against its number of sessions.
    pub fn session_of_client(&self, address: Ipv4Addr) -> usize {
        u32::from(address).wrapping_sub(u32::from(self.first_client)) as usize
    }

    pub fn session_of_peer(&self, address: Ipv4Addr) -> usize {
        u32::from(address).wrapping_sub(u32::from(self.first_peer)) as usize
    }
}

pub fn channel_of(session: usize) -> u16 {
    0x4000 + (session % 0x1000) as u16
}

/// What every mode needs to know: who asks, who is watched, for how long.
pub struct Basics {
    pub user: String,
    pub password: String,
    pub warm_up: f64,
    pub measure: f64,
    pub pids: String,
    pub cpu: Option<usize>,
    pub fifo: bool,
}

impl Basics {
    pub fn parse(flags: &mut Flags, measure: f64) -> Result<Self, String> {
        let basics = Self {
            user: flags.or("user", "load".to_owned())?,
            password: flags.or("password", "load".to_owned())?,
            warm_up: flags.or("warm-up", 0.5)?,
            measure: flags.or("measure", measure)?,
            pids: flags.or("pid", String::new())?,
            cpu: flags.optional("cpu")?,
            fifo: flags.switch("fifo"),
        };
        // allocations and permissions are not refreshed: 300 s is a permission's life
        if !(0.0..=60.0).contains(&basics.warm_up) || !(0.05..=120.0).contains(&basics.measure) {
            return Err("--warm-up is at most 60 s, --measure 0.05 to 120 s".to_owned());
        }
        Ok(basics)
    }

    pub fn account(&self) -> Account {
        Account::new(&self.user, &self.password)
    }

    /// Before the first socket: an end in any case, all the descriptors there are, the CPU.
    pub fn settle(&self, seconds: u32) -> Result<(), String> {
        sys::end_after((self.warm_up + self.measure) as u32 + seconds);
        sys::raise_open_files();
        self.cpu.map_or(Ok(()), sys::pin)
    }
}

pub struct Plan {
    pub basics: Basics,
    pub places: Places,
    /// Set when the clients speak TLS.
    pub tls: Option<Tls>,
    /// Sessions n and n + 1 are each other's peers, by their relayed addresses.
    pub pairs: bool,
    pub flood: Option<Orders>,
    pub namespaces: Namespaces,
    /// Kernel threads that receive for the server.
    pub softirq: String,
    /// Wait around the traffic, see `run::step`.
    pub steps: bool,
    /// Bursts leave in one piece.
    pub segment: bool,
    pub transport: Transport,
    pub protocol: Protocol,
    pub framing: Framing,
    pub sessions: usize,
    pub payload: usize,
    pub burst: usize,
    pub load: Load,
}

pub fn parse_transport(flags: &mut Flags) -> Result<Transport, String> {
    match flags.or("transport", "udp".to_owned())?.as_str() {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        other => Err(format!("--transport: `{other}` is neither udp nor tcp")),
    }
}

impl Plan {
    pub fn parse(flags: Flags) -> Result<Self, String> {
        Self::take(flags, None, 2.0)
    }

    /// A plan whose load and length may be left out.
    pub fn parse_with(flags: Flags, load: Load, measure: f64) -> Result<Self, String> {
        Self::take(flags, Some(load), measure)
    }

    fn take(mut flags: Flags, default: Option<Load>, measure: f64) -> Result<Self, String> {
        let over_tls = flags.take_if("transport", "tls");
        let transport = if over_tls { Transport::Tcp } else { parse_transport(&mut flags)? };
        let protocol = match flags.or("protocol", "turn".to_owned())?.as_str() {
            "turn" => Protocol::Turn,
            "bare" => Protocol::Bare,
            other => return Err(format!("--protocol: `{other}` is neither turn nor bare")),
        };
        let framing = match (flags.or("framing", "channel".to_owned())?.as_str(), protocol, transport) {
            (_, Protocol::Bare, Transport::Udp) => Framing::Raw,
            // a stream needs frames: the forwarder speaks ChannelData there
            (_, Protocol::Bare, _) | ("channel", ..) => Framing::Channel,
            ("indication", ..) => Framing::Indication,
            (other, ..) => {
                return Err(format!("--framing: `{other}` is neither channel nor indication"));
            }
        };
        let places = Places::parse(&mut flags, "server")?;
        let ca: Option<String> = flags.optional("ca")?;
        let name = flags.or("tls-name", places.server.ip().to_string())?;
        let version = flags.or("tls-version", "any".to_owned())?;
        let tls = match over_tls {
            true if protocol == Protocol::Bare => {
                return Err("--protocol bare has no TLS; the forwarder's TCP is its floor".to_owned());
            }
            true => Some(Tls::new(ca.as_deref(), &name, &version)?),
            false if ca.is_some() => return Err("--ca goes with --transport tls only".to_owned()),
            false => None,
        };
        let pairs = flags.switch("pairs");
        let flood = Orders::parse(&mut flags)?;
        let load = match (flags.optional("rate")?, flags.optional("in-flight")?, default) {
            (None, None, Some(load)) => load,
            // an overload finds its rates by itself
            (Some(rate), None, None) if rate > 0.0 => Load::Rate(rate),
            (None, Some(packets), _) if packets > 0 => Load::InFlight(packets),
            (.., Some(_)) => return Err("--in-flight is above zero, and there is no --rate here".to_owned()),
            _ => return Err("one of --rate and --in-flight is needed, above zero".to_owned()),
        };
        let plan = Self {
            basics: Basics::parse(&mut flags, measure)?,
            places,
            tls,
            pairs,
            flood,
            namespaces: Namespaces::parse(&mut flags)?,
            softirq: flags.or("softirq", String::new())?,
            steps: flags.switch("steps"),
            segment: flags.switch("segment"),
            transport,
            protocol,
            framing,
            sessions: flags.or("sessions", 200)?,
            payload: flags.or("payload", 160)?,
            burst: flags.or("burst", 1)?,
            load,
        };
        flags.finish()?;
        plan.check()?;
        Ok(plan)
    }

    /// How many flows there are in each direction.
    pub fn flows(&self) -> usize {
        if self.pairs { self.sessions / 2 } else { self.sessions }
    }

    fn check(&self) -> Result<(), String> {
        if !(HEADER..=PAYLOAD_MAX).contains(&self.payload) {
            return Err(format!("--payload {}: allowed are {HEADER} to {PAYLOAD_MAX}", self.payload));
        }
        if !(1..=SESSIONS_MAX).contains(&self.sessions) {
            return Err(format!("--sessions {}: allowed are 1 to {SESSIONS_MAX}", self.sessions));
        }
        if self.pairs && !self.sessions.is_multiple_of(2) {
            return Err(format!("--sessions {}: --pairs needs an even number", self.sessions));
        }
        if !(1..=64).contains(&self.burst) {
            return Err(format!("--burst {}: allowed are 1 to 64", self.burst));
        }
        if let Load::InFlight(packets) = self.load
            && packets / 2 < self.burst
        {
            return Err(format!("--in-flight {packets} leaves no room for a burst of {} each way", self.burst));
        }
        Ok(())
    }
}
