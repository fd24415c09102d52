//! What another configuration changes about listeners, whether they are the relay's or HTTP's: which stay, which come and
//! which go. A socket whose listener goes can be that of one that comes, so a port changes its use without a gap.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use super::listen;
use super::passed::Passed;

/// How much an open listener is the one that a configuration asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Likeness {
    /// Another one.
    None,
    /// Its socket can serve.
    Socket,
    /// Its socket can serve, and takes the same already.
    Use,
    /// It is that one.
    Whole,
}

/// What a configuration asks for, beside what is open.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Comparison<W> {
    /// Open ones that stay, by their place, each with what it is from now on.
    pub(crate) staying: Vec<(usize, W)>,
    /// Those that nothing open can be.
    pub(crate) missing: Vec<W>,
    /// Open ones that go, by their place.
    pub(crate) going: Vec<usize>,
}

/// Finds for each that is asked for an open one, the most alike first. Of equals, which there are with port 0, the first
/// ones stay.
pub(crate) fn compare<O, W>(
    open: &[O],
    wanted: impl IntoIterator<Item = W>,
    likeness: impl Fn(&O, &W) -> Likeness,
) -> Comparison<W> {
    let mut missing: Vec<W> = wanted.into_iter().collect();
    let mut going: Vec<usize> = (0..open.len()).collect();
    let mut staying = Vec::new();
    for least in [Likeness::Whole, Likeness::Use, Likeness::Socket] {
        let mut without = Vec::new();
        for wanted in missing {
            let is_it = |place: &usize| open.get(*place).is_some_and(|open| likeness(open, &wanted) >= least);
            match going.iter().position(is_it) {
                Some(at) => staying.push((going.remove(at), wanted)),
                None => without.push(wanted),
            }
        }
        missing = without;
    }
    Comparison { staying, missing, going }
}

/// A TCP socket whose listener goes.
pub(crate) struct Freed {
    /// Where it stands in the configuration that is running.
    pub(crate) key: &'static str,
    /// As that configuration names it.
    pub(crate) configured: SocketAddr,
    /// Nothing once another listener has it.
    pub(crate) socket: Option<OwnedFd>,
}

/// TCP sockets that are open already and can be those of new listeners.
pub(crate) struct OpenSockets<'a> {
    passed: &'a Passed,
    freed: Vec<Freed>,
}

impl<'a> OpenSockets<'a> {
    /// Those that the service manager passed.
    pub(crate) const fn passed(passed: &'a Passed) -> Self {
        Self { passed, freed: Vec::new() }
    }

    /// With those of listeners that go.
    pub(crate) fn with(mut self, freed: impl IntoIterator<Item = Freed>) -> Self {
        self.freed.extend(freed);
        self
    }

    pub(crate) const fn of_manager(&self) -> &'a Passed {
        self.passed
    }

    /// The TCP socket of a new listener: one that is open at this very address, or a new one.
    ///
    /// # Errors
    /// What the system says; if one of our own listeners that go has the port, that one.
    pub(crate) fn tcp(&mut self, key: &str, address: SocketAddr) -> io::Result<TcpListener> {
        if let Some(socket) = self.passed.stream(address)? {
            return Ok(socket.into());
        }
        // With port 0 there may be several.
        let mut alike = self.freed.iter_mut().filter(|freed| freed.configured == address);
        if let Some(socket) = alike.find_map(|freed| freed.socket.take()) {
            return Ok(socket.into());
        }
        listen::new_tcp(key, address).map_err(|error| {
            let in_the_way = self.freed.iter().find(|freed| overlap(freed.configured, address));
            match in_the_way.filter(|_| error.kind() == io::ErrorKind::AddrInUse) {
                Some(Freed { key, configured, .. }) => io::Error::other(format!(
                    "{key} {configured} of this server has the port until this reload is done; take that one out first, reload, and add this one then"
                )),
                None => error,
            }
        })
    }
}

/// Whether sockets of one protocol could not have both addresses.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address, how it is used, and whose it is.
    type Item = (u16, char, char);

    fn likeness(open: &Item, wanted: &Item) -> Likeness {
        match (open.0 == wanted.0, open.1 == wanted.1, open.2 == wanted.2) {
            (true, true, true) => Likeness::Whole,
            (true, true, false) => Likeness::Use,
            (true, false, _) => Likeness::Socket,
            (false, ..) => Likeness::None,
        }
    }

    #[test]
    fn the_most_alike_stays_whatever_the_order() {
        let open = [(1, 'a', 'x'), (1, 'a', 'y'), (1, 'b', 'x'), (2, 'a', 'x')];
        for (wanted, staying, missing, going) in [
            (vec![(1, 'a', 'y'), (1, 'a', 'x')], vec![(1, (1, 'a', 'y')), (0, (1, 'a', 'x'))], vec![], vec![2, 3]),
            // The first of the two would have taken what the second one is, wholly.
            (vec![(1, 'c', 'x'), (1, 'a', 'x')], vec![(0, (1, 'a', 'x')), (1, (1, 'c', 'x'))], vec![], vec![2, 3]),
            (vec![(1, 'b', 'z'), (3, 'a', 'x')], vec![(2, (1, 'b', 'z'))], vec![(3, 'a', 'x')], vec![0, 1, 3]),
            (vec![(2, 'a', 'x'), (2, 'a', 'x')], vec![(3, (2, 'a', 'x'))], vec![(2, 'a', 'x')], vec![0, 1, 2]),
        ] {
            let found = compare(&open, wanted.clone(), likeness);
            assert_eq!(found, Comparison { staying, missing, going }, "{wanted:?}");
        }
    }

    #[test]
    fn a_new_listener_takes_the_socket_of_one_that_goes() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = old.local_addr().unwrap();
        let other_ip = SocketAddr::new("0.0.0.0".parse().unwrap(), address.port());
        let passed = Passed::default();
        let freed = |configured| Freed { key: "listen.tls", configured, socket: Some(old.try_clone().unwrap().into()) };
        let mut sockets = OpenSockets::passed(&passed).with([freed(address)]);
        let taken = sockets.tcp("http.public", address).unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        assert_eq!(taken.accept().unwrap().1, client.local_addr().unwrap(), "it is the same socket");
        let error = sockets.tcp("http.public", other_ip).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listen.tls {address} of this server has the port")), "{error}");
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut sockets = OpenSockets::passed(&passed).with([freed(any)]);
        assert_eq!(sockets.tcp("http.public", any).unwrap().local_addr().unwrap(), address);
        assert_ne!(sockets.tcp("listen.tcp", any).unwrap().local_addr().unwrap(), address, "only one listener gets it");
        assert_eq!(sockets.tcp("http.public", address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
