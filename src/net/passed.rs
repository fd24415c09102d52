//! Sockets that were open before us: what systemd passes from a socket unit (sd_listen_fds(3)).
//!
//! They are told by their addresses, not by their names: a socket stands for the listener of the configuration that
//! has its address. Each is kept as long as the process lives, so a reload may close its listener and open it again.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::upgrade_messages::PassedSocket;

/// The first descriptor that is passed.
const FIRST: i32 = 3;

/// More than any set-up has; a wrong number must not make us try a million descriptors.
const MOST: i32 = 4096;

const VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// One socket.
struct Item {
    name: String,
    socket: Socket,
    is_udp: bool,
}

/// Every passed socket.
#[derive(Default)]
pub struct Passed(Vec<Item>);

impl Item {
    fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// How the socket unit calls it.
    fn describe(&self) -> String {
        let (kind, line) = if self.is_udp { ("udp", "ListenDatagram=") } else { ("tcp", "ListenStream=") };
        let place = match self.socket.local_addr() {
            Ok(address) => match (address.as_socket(), address.as_pathname()) {
                (Some(address), _) => format!("{kind} {address}"),
                (None, Some(path)) => format!("unix:{}", path.display()),
                (None, None) => "of a family that throughway does not serve".to_owned(),
            },
            Err(error) => format!("without an address ({error})"),
        };
        format!("the passed socket \"{}\" ({place}, {line})", self.name)
    }
}

impl Passed {
    /// Takes over what this process was given, and removes the variables that tell of it.
    ///
    /// Must be called while the process has one thread.
    ///
    /// # Errors
    /// When a variable makes no sense, or a descriptor is no socket that could be listened on.
    pub fn take() -> Result<Self, String> {
        let [count, pid, names] = VARIABLES.map(|name| std::env::var(name).ok());
        for name in VARIABLES {
            // SAFETY: the caller says that there is no other thread that could read the environment now.
            unsafe { std::env::remove_var(name) };
        }
        let count = match (count, pid) {
            (Some(count), Some(pid)) if pid.parse() == Ok(std::process::id()) => count,
            // Meant for another process, or for none.
            _ => return Ok(Self::default()),
        };
        let count = count.parse::<i32>().ok().filter(|count| (0..=MOST).contains(count));
        let count = count.ok_or("LISTEN_FDS: not a number of sockets; systemd sets it, don't set it yourself")?;
        let names: Vec<&str> = names.as_deref().unwrap_or_default().split(':').collect();
        let mut passed = Self::default();
        for at in 0..count {
            let name = names.get(at as usize).filter(|name| !name.is_empty()).unwrap_or(&"unknown");
            passed.0.push(Item::of(FIRST + at, name)?);
        }
        Ok(passed)
    }

    /// The numbers of their descriptors.
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().map(|item| item.socket.as_raw_fd()).collect()
    }

    /// The UDP sockets of an address, in the order in which they were passed.
    pub(super) fn udp(&self, address: SocketAddr) -> io::Result<Vec<Socket>> {
        let of_address = self.0.iter().filter(|item| item.is_udp && item.address() == Some(address));
        of_address.map(|item| item.socket.try_clone()).collect()
    }

    /// The listening stream socket of an address.
    pub(crate) fn stream(&self, address: SocketAddr) -> io::Result<Option<Socket>> {
        let found = self.0.iter().find(|item| !item.is_udp && item.address() == Some(address));
        found.map(|item| item.socket.try_clone()).transpose()
    }

    /// The listening unix socket of a path.
    pub(crate) fn unix(&self, path: &Path) -> io::Result<Option<Socket>> {
        let of_path = |item: &&Item| {
            item.socket.local_addr().is_ok_and(|address| address.as_pathname().is_some_and(|own| own == path))
        };
        self.0.iter().find(of_path).map(|item| item.socket.try_clone()).transpose()
    }

    /// Whether every socket has a listener of its own: `fits` says so for UDP, streams and unix sockets.
    ///
    /// # Errors
    /// Names the first that fits none.
    pub fn check(
        &self,
        workers: usize,
        fits: impl Fn(Result<(bool, SocketAddr), &Path>) -> bool,
    ) -> Result<(), String> {
        for item in &self.0 {
            let place = item.socket.local_addr().map_err(|error| format!("{}: {error}", item.describe()))?;
            let does_fit = match (item.address(), place.as_pathname()) {
                (Some(address), _) => fits(Ok((item.is_udp, address))),
                (None, Some(path)) => fits(Err(path)),
                (None, None) => false,
            };
            if !does_fit {
                return Err(format!(
                    "{} fits no listener of the configuration: give it an entry with this very address in [listen] or [http], or take it out of the socket unit",
                    item.describe()
                ));
            }
            let Some(address) = item.address() else { continue };
            let alike = self.0.iter().filter(|other| other.is_udp == item.is_udp && other.address() == Some(address));
            let most = if item.is_udp { workers } else { 1 };
            if alike.count() > most {
                return Err(format!(
                    "{} was passed more than {most} times, and the rest would not be read: the socket unit needs one line for each of the {most}",
                    item.describe()
                ));
            }
        }
        Ok(())
    }

    /// All of them, for a process that takes over.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(super) fn sockets(&self) -> io::Result<Vec<(PassedSocket, OwnedFd)>> {
        let passed = |item: &Item| Ok((PassedSocket::Manager(item.name.clone()), item.socket.try_clone()?.into()));
        self.0.iter().map(passed).collect()
    }

    /// What another process was passed, by name.
    pub(super) fn adopted(sockets: Vec<(String, OwnedFd)>) -> Self {
        let item = |(name, socket)| {
            let socket = Socket::from(socket);
            let is_udp = socket.r#type().is_ok_and(|kind| kind == Type::DGRAM);
            Item { name, socket, is_udp }
        };
        Self(sockets.into_iter().map(item).collect())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl Item {
    fn of(descriptor: i32, name: &str) -> Result<Self, String> {
        let wrong = |what: String| format!("LISTEN_FDS: descriptor {descriptor} (\"{name}\") {what}");
        // SAFETY: no pointers; asks about a number.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
            return Err(wrong("is not open; systemd sets the variable, don't set it yourself".to_owned()));
        }
        // SAFETY: it is open, and the variables say that it was opened for us; they are gone, so it is not taken twice.
        let socket = unsafe { Socket::from_raw_fd(descriptor) };
        let kind = socket.r#type().map_err(|error| wrong(format!("is no socket: {error}")))?;
        let set_up = || -> io::Result<()> {
            socket.set_cloexec(true)?;
            socket.set_nonblocking(true)
        };
        set_up().map_err(|error| wrong(error.to_string()))?;
        let is_udp = kind == Type::DGRAM;
        if !is_udp && (kind != Type::STREAM || !socket.is_listener().unwrap_or(false)) {
            return Err(wrong("is neither ListenDatagram= nor ListenStream= with Accept=no".to_owned()));
        }
        let is_ipv6 = socket.domain().is_ok_and(|domain| domain == Domain::IPV6);
        if is_ipv6 && !socket.only_v6().unwrap_or(true) {
            let item = Self { name: name.to_owned(), socket, is_udp };
            return Err(format!(
                "{} takes IPv4 as well: the socket unit needs BindIPv6Only=ipv6-only",
                item.describe()
            ));
        }
        Ok(Self { name: name.to_owned(), socket, is_udp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(socket: Socket, address: &str, is_udp: bool) -> Item {
        let address: SocketAddr = address.parse().unwrap();
        socket.bind(&address.into()).unwrap();
        Item { name: "throughway.socket".to_owned(), socket, is_udp }
    }

    fn udp() -> Socket {
        Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap()
    }

    #[test]
    fn a_socket_without_listener_is_named_and_one_too_many_too() {
        let own = item(udp(), "127.0.0.1:0", true);
        let address = own.address().unwrap();
        let passed = Passed(vec![own]);
        assert!(passed.check(1, |place| place == Ok((true, address))).is_ok());
        let error = passed.check(1, |place| place == Ok((false, address))).unwrap_err();
        assert!(error.contains("throughway.socket") && error.contains(&address.to_string()), "{error}");
        assert!(passed.udp(address).unwrap().len() == 1 && passed.stream(address).unwrap().is_none());
        let two = Passed(
            (0..2)
                .map(|_| {
                    let socket = udp();
                    socket.set_reuse_port(true).unwrap();
                    item(socket, "127.0.0.1:22010", true)
                })
                .collect(),
        );
        assert!(two.check(2, |_| true).is_ok());
        assert!(two.check(1, |_| true).unwrap_err().contains("more than 1 times"));
    }
}
