//! Binds the listeners: the first socket of each alone, so that two processes never share a port by accident, then the
//! others of its group beside it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::passed::Passed;
use super::sys::{self, LargeDatagrams};
use crate::address::Transport;

/// What a listener asks the kernel to buffer, in bytes; the system's limit may hold it lower.
pub(super) const RECEIVE_BUFFER: usize = 4 << 20;

/// Connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 1024;

/// What the system grants of it, and what was asked for; nothing where there is no socket to ask with.
#[must_use]
pub fn granted_receive_buffer() -> (Option<usize>, usize) {
    let granted = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).ok()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER).ok()?;
        // The kernel tells twice what a program may fill (socket(7)).
        socket.recv_buffer_size().ok().map(|bytes| bytes / 2)
    };
    (granted(), RECEIVE_BUFFER)
}

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {transport} {address}: {cause}{}", remedy(cause))]
pub struct BindError {
    /// `udp`, `tcp` or `tls`.
    pub transport: &'static str,
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub cause: io::Error,
}

impl BindError {
    /// Another listener of this very process has the port.
    pub(super) fn in_the_way(
        key: &str,
        transport: Transport,
        address: SocketAddr,
        other_key: &str,
        other: SocketAddr,
    ) -> Self {
        let until = match transport {
            Transport::Udp => "as long as a session of it lives; take that one out, reload, and add",
            Transport::Tcp | Transport::Tls => "until this reload is done; take that one out first, reload, and add",
        };
        let then = match transport {
            Transport::Udp => "when it is closed, or restart",
            Transport::Tcp | Transport::Tls => "then",
        };
        let cause = io::Error::other(format!("{other_key} {other} of this server has the port {until} {key} {then}"));
        Self { transport: transport.name(), address, cause }
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "; another process has it (see `ss -lnp`): stop that one or change [listen]",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit grants: use it, or a higher port"
        }
        _ if lacks_family(cause) => {
            "; this kernel has no IPv6: take the IPv6 addresses out of [listen] and [http], or boot without ipv6.disable=1"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
}

/// Whether the kernel does not have the address's family at all.
pub(crate) fn lacks_family(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Whether the kernel has IPv6, if no interface has an address of it.
#[must_use]
pub fn has_ipv6() -> bool {
    !Socket::new(Domain::IPV6, Type::DGRAM, None).is_err_and(|error| lacks_family(&error))
}

/// Binds, and where no interface has the address yet, binds for the time when one will: at a boot the network may be late.
fn bind_early(socket: &Socket, address: SocketAddr, key: &str) -> io::Result<()> {
    let Err(error) = socket.bind(&address.into()) else { return Ok(()) };
    if error.kind() != io::ErrorKind::AddrNotAvailable {
        return Err(error);
    }
    // Neither needs a privilege.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?
    } else {
        socket.set_freebind_v6(true)?
    };
    // The first error says more where this does not help, as with an address of a link that it does not name.
    socket.bind(&address.into()).map_err(|_| error)?;
    tracing::warn!(
        %address,
        "{key}: no interface of this machine has this address yet; clients can connect once one has it. Correct the address if it is wrong"
    );
    Ok(())
}

fn socket(transport: Transport, address: SocketAddr) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Tcp | Transport::Tls => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // The IPv4 listener has its own socket; mapped addresses never appear.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One worker's sockets of a UDP listener.
#[derive(Debug)]
pub(super) struct UdpSockets {
    /// Where ChannelData and Send indications arrive, and from where everything leaves.
    pub(super) data: UdpSocket,
    /// Where all else arrives, so that no flood of data takes a request's place; `None` if `data` has it all.
    pub(super) control: Option<UdpSocket>,
}

/// Binds one UDP address for so many workers, in their order; steered by the client's address, and by what is data.
///
/// Passed sockets come first, and those take everything. The kernel lets others join them only if they were made so (ReusePort=yes) by a process
/// of the same user; then there may be fewer sockets than workers, and the first workers read them.
pub(super) fn udp(address: SocketAddr, workers: usize, passed: &Passed) -> Result<Vec<UdpSockets>, BindError> {
    let sockets = match passed.udp(address) {
        Ok(sockets) if sockets.is_empty() => udp_sockets(address, workers),
        Ok(sockets) => passed_sockets(address, sockets, workers),
        Err(cause) => Err(cause),
    };
    sockets.map_err(|cause| BindError { transport: "udp", address, cause })
}

fn passed_sockets(address: SocketAddr, passed: Vec<Socket>, workers: usize) -> io::Result<Vec<UdpSockets>> {
    let can_be_joined = passed.iter().all(|socket| socket.reuse_port().unwrap_or(false));
    let mut sockets = passed.into_iter().map(|socket| prepare(socket, address)).collect::<io::Result<Vec<_>>>()?;
    while sockets.len() < workers && can_be_joined {
        match bind_shared(address) {
            Ok(socket) => sockets.push(prepare(socket, address)?),
            // Another user's socket, as that of the service manager is.
            Err(_) => break,
        }
    }
    if let [first, _, ..] = &sockets[..] {
        let _ = steer(first.as_fd(), address, sockets.len(), false);
    }
    if sockets.len() < workers {
        tracing::warn!(
            %address,
            sockets = sockets.len(),
            workers,
            "fewer sockets were passed than there are workers, so the others read none; ListenDatagram= once for each worker, with ReusePort=yes, gives each its own"
        );
    }
    Ok(sockets.into_iter().map(|data| UdpSockets { data, control: None }).collect())
}

fn bind_shared(address: SocketAddr) -> io::Result<Socket> {
    let shared = socket(Transport::Udp, address)?;
    shared.set_reuse_port(true)?;
    if address.is_ipv4() {
        shared.set_freebind_v4(true)?
    } else {
        shared.set_freebind_v6(true)?
    };
    shared.bind(&address.into())?;
    Ok(shared)
}

/// Whether the kernel does as it is told.
fn steer(first: BorrowedFd<'_>, address: SocketAddr, workers: usize, by_kind: bool) -> bool {
    let steered = sys::steer(first, address.is_ipv6(), workers as u32, by_kind);
    if let Err(error) = &steered {
        // The kernel's own hash keeps a five-tuple on its worker as well, while the group does not change.
        tracing::warn!(%address, %error, "can't steer packets to workers by address; leaving it to the kernel's hash");
    }
    steered.is_ok()
}

fn udp_sockets(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSockets>> {
    // The first one binds alone, and is let into a group only when the port is its own. The port is held from then on, so
    // of two servers that start in the same moment one is refused.
    let first = socket(Transport::Udp, address)?;
    bind_early(&first, address, "listen.udp")?;
    // Port 0 was chosen by the kernel; the others must have the same.
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    first.set_reuse_port(true)?;
    // The kernel numbers the sockets of a group in the order in which they join it: those for data, those for all else.
    // There is no group, and nothing to steer, before the second one.
    let mut sockets = vec![first, bind_shared(address)?];
    let steered = sockets.first().is_some_and(|first| steer(first.as_fd(), address, workers, true));
    let count = if steered { 2 * workers } else { workers };
    sockets.truncate(count);
    while sockets.len() < count {
        sockets.push(bind_shared(address)?);
    }
    let mut data = sockets.into_iter().map(|socket| prepare(socket, address)).collect::<io::Result<Vec<_>>>()?;
    let mut control = data.split_off(workers).into_iter();
    Ok(data.into_iter().map(|data| UdpSockets { data, control: control.next() }).collect())
}

// [8656-5-9, 8656-14-2, -5]
fn prepare(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    if address.ip().is_unspecified() {
        sys::tell_destination(socket.as_fd(), address.is_ipv6())?;
    }
    // Large replies are rare and must arrive; path MTU discovery would lose them.
    sys::set_large_datagrams(socket.as_fd(), address.is_ipv6(), LargeDatagrams::InFragments)?;
    sys::tell_class(socket.as_fd(), true)?;
    // More is better, less still works. A passed socket may have more already than the limit grants us.
    if !socket.recv_buffer_size().is_ok_and(|bytes| bytes / 2 >= RECEIVE_BUFFER) {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    Ok(socket.into())
}

/// Binds one TCP address for the listener of this key. [8489-12-4, 8656-5-10, 8656-16-1]
pub(super) fn new_tcp(key: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(Transport::Tcp, address)?;
    // Old connections in TIME-WAIT must not keep a restart from binding.
    socket.set_reuse_address(true)?;
    bind_early(&socket, address, key)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_never_share_a_port_by_accident() {
        let first = udp("127.0.0.1:0".parse().unwrap(), 3, &Passed::default()).unwrap();
        assert_eq!(first.len(), 3);
        let address = first[0].data.local_addr().unwrap();
        let all = first.iter().flat_map(|sockets| [Some(&sockets.data), sockets.control.as_ref()]);
        assert!(all.into_iter().all(|socket| socket.unwrap().local_addr().unwrap() == address));
        for workers in [1, 3] {
            let error = udp(address, workers, &Passed::default()).unwrap_err();
            assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains("another process has it"), "{error}");
        }
    }

    // F-A15: the port was free for a moment between the socket that tried it and the group.
    #[test]
    fn of_two_that_start_in_the_same_moment_one_gets_the_port() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for round in 0..300 {
            let ip = if round % 2 == 0 { "127.0.0.1" } else { "0.0.0.0" };
            let both = std::sync::Barrier::new(2);
            let start = |ip: &str, workers| {
                let address = SocketAddr::new(ip.parse().unwrap(), port);
                both.wait();
                udp(address, workers, &Passed::default())
            };
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| start(ip, 2));
                (start("127.0.0.1", 1), other.join().unwrap())
            });
            assert!(one.is_err() || other.is_err(), "both got the port in round {round}");
        }
    }

    // F-E3: an address that a boot brings late.
    #[test]
    fn an_address_that_no_interface_has_yet_is_bound_all_the_same() {
        for address in ["192.0.2.77:0", "[2001:db8::77]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let sockets = udp(address, 2, &Passed::default()).unwrap();
            assert_eq!(sockets[1].data.local_addr().unwrap().ip(), address.ip());
            let listener = new_tcp("listen.tcp", address).unwrap();
            assert_eq!(listener.local_addr().unwrap().ip(), address.ip());
        }
    }

    #[test]
    fn steering_sends_a_client_to_the_worker_that_its_address_names() {
        for ip in ["127.0.0.1", "::1"] {
            for workers in [1, 3] {
                let sockets = udp(SocketAddr::new(ip.parse().unwrap(), 0), workers, &Passed::default()).unwrap();
                let to = sockets[0].data.local_addr().unwrap();
                for _ in 0..24 {
                    let client = UdpSocket::bind((ip, 0)).unwrap();
                    let port = u32::from(client.local_addr().unwrap().port());
                    let address = if ip == "::1" { 1 } else { 0x7F00_0001 };
                    let expected = ((address + port) % workers as u32) as usize;
                    // ChannelData and Send indications one way; requests, other STUN and what is none the other.
                    let kinds: [(&[u8], bool); 8] = [
                        (&[0x40, 0, 0, 0], true),
                        (&[0x7F, 0xFE], true),
                        (&[0x00, 0x16, 0, 0], true),
                        (&[0x00, 0x01, 0, 0], false),
                        (&[0x01, 0x16], false),
                        (&[0x3F, 0x16], false),
                        (&[0x80], false),
                        (&[0xFF, 0x16], false),
                    ];
                    for (bytes, is_data) in kinds {
                        client.send_to(bytes, to).unwrap();
                        let mut buffer = [0; 8];
                        let mut hears = |socket: &UdpSocket| socket.recv_from(&mut buffer).is_ok();
                        let found: Vec<(usize, bool)> = sockets
                            .iter()
                            .enumerate()
                            .flat_map(|(at, own)| [(at, true, &own.data), (at, false, own.control.as_ref().unwrap())])
                            .filter_map(|(at, is_data, socket)| hears(socket).then_some((at, is_data)))
                            .collect();
                        assert_eq!(found, [(expected, is_data)], "{ip} port {port} {bytes:x?}");
                    }
                }
            }
        }
    }
}
