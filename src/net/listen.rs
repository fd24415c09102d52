//! Binds the listeners: first alone, so that two processes never share a port by accident, then once per worker.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;

use socket2::{Domain, Protocol, Socket, Type};

use super::sys;
use crate::protocol::address::Transport;

/// What a listener asks the kernel to buffer, in bytes; the system's limit may hold it lower.
const RECEIVE_BUFFER: usize = 4 << 20;

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

#[allow(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "; another process has it (see `ss -lnp`): stop that one or change [listen]",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit grants: use it, or a higher port"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
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

/// Binds one UDP address for so many workers, in their order; steered by the client's address when several.
pub(super) fn udp(address: SocketAddr, workers: usize) -> Result<Vec<UdpSocket>, BindError> {
    udp_sockets(address, workers).map_err(|cause| BindError { transport: "udp", address, cause })
}

fn udp_sockets(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let alone = socket(Transport::Udp, address)?;
    alone.bind(&address.into())?;
    if workers == 1 {
        return prepare(alone, address).map(|socket| vec![socket]);
    }
    // Port 0 was chosen by the kernel; the others must have the same.
    let address = alone.local_addr()?.as_socket().unwrap_or(address);
    drop(alone);
    let mut sockets = Vec::with_capacity(workers);
    for worker in 0..workers {
        let shared = socket(Transport::Udp, address)?;
        shared.set_reuse_port(true)?;
        shared.bind(&address.into())?;
        if worker == 0
            && let Err(error) = sys::steer(shared.as_fd(), address.is_ipv6(), workers as u32)
        {
            // The kernel's own hash keeps a five-tuple on its worker as well, while the group does not change.
            tracing::warn!(%address, %error, "can't steer packets to workers by address; leaving it to the kernel's hash");
        }
        sockets.push(prepare(shared, address)?);
    }
    Ok(sockets)
}

fn prepare(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    if address.ip().is_unspecified() {
        sys::tell_destination(socket.as_fd(), address.is_ipv6())?;
    }
    // Large replies are rare and must arrive; path MTU discovery would lose them.
    sys::set_dont_fragment(socket.as_fd(), address.is_ipv6(), false)?;
    // More is better, less still works.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    Ok(socket.into())
}

/// Binds one TCP address; whoever accepts hands the streams to the workers.
pub(super) fn tcp(transport: Transport, address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = socket(transport, address)?;
        // Old connections in TIME-WAIT must not keep a restart from binding.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    bind().map_err(|cause| BindError { transport: transport.name(), address, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_never_share_a_port_by_accident() {
        let first = udp("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(first.len(), 3);
        let address = first[0].local_addr().unwrap();
        assert!(first.iter().all(|socket| socket.local_addr().unwrap() == address));
        for workers in [1, 3] {
            let error = udp(address, workers).unwrap_err();
            assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains("another process has it"), "{error}");
        }
    }

    #[test]
    fn steering_sends_a_client_to_the_worker_that_its_address_names() {
        for ip in ["127.0.0.1", "::1"] {
            let sockets = udp(SocketAddr::new(ip.parse().unwrap(), 0), 3).unwrap();
            let to = sockets[0].local_addr().unwrap();
            for _ in 0..24 {
                let client = UdpSocket::bind((ip, 0)).unwrap();
                let port = u32::from(client.local_addr().unwrap().port());
                let address = if ip == "::1" { 1 } else { 0x7F00_0001 };
                let expected = ((address + port) % 3) as usize;
                client.send_to(b"x", to).unwrap();
                let mut buffer = [0; 8];
                let found: Vec<usize> = (0..3).filter(|at| sockets[*at].recv_from(&mut buffer).is_ok()).collect();
                assert_eq!(found, [expected], "{ip} port {port}");
            }
        }
    }
}
