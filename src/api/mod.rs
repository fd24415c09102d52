//! HTTP for people and machines that run the server: its own listener, its own runtime, never a relay port.

pub mod admin;
pub mod connectivity;
pub mod health;
pub mod host;
pub mod not_found;
pub(crate) mod page;
pub mod rest;
pub mod revoker;
pub mod uris;

mod failed_logins;
mod https;
mod serve;
mod slow_reader;
mod strict_json;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use ipnet::IpNet;

use crate::config::checked::{HttpListen, PublicListen};
use crate::net::front::Front;
use crate::net::gate::Gate;
use crate::net::listener_plan::OpenSockets;
use crate::net::passed::Passed;
use crate::ops::metrics::Text;
use crate::tls::Tls;

pub use serve::Peer;
pub(crate) use serve::requests_answered;
pub(crate) use serve::set_limits;

/// Connecting needs the right to write.
const CHATMAIL_MODE: u32 = 0o666;

/// Shows what the listeners and the admin API count; registered with
/// [`Metrics::with`](crate::ops::metrics::Metrics::with).
pub fn publish(text: &mut Text) {
    text.counter("throughway_http_connections_refused_total", "HTTP connections closed to make room for others")
        .value(serve::gave_way());
    text.counter("throughway_admin_refused_total", "Admin calls that were refused or failed, by reason")
        .each("reason", admin::refused::counts());
}

/// A bound HTTP listener; requests are served once [`Bound::serve`] runs.
#[derive(Debug)]
pub enum Bound {
    /// An address, without TLS.
    Tcp(TcpListener),
    /// An address, with TLS.
    Https(TcpListener),
    /// A unix socket, removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when the listener goes, unless somebody else made it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    is_ours: Arc<AtomicBool>,
}

impl SocketFile {
    fn new(path: &Path, is_ours: bool) -> Self {
        Self { path: path.to_owned(), is_ours: Arc::new(AtomicBool::new(is_ours)) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours.load(Ordering::Relaxed) {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// HTTP could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key}: can't listen on {place}: {cause}; {}", remedy(key, cause))]
pub struct BindError {
    pub(crate) key: &'static str,
    pub(crate) place: String,
    pub(crate) cause: io::Error,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
fn remedy(key: &str, cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse if key == "http.listen" => {
            "see `ss -lntp` for who has it: free it, choose another, or write http.listen = \"\" to serve it nowhere"
        }
        io::ErrorKind::AddrInUse => "see `ss -lntp` for who has it: free it, choose another or leave it out",
        io::ErrorKind::NotFound => "make its directory, choose another or leave it out",
        _ => "choose another or leave it out",
    }
}

impl Bound {
    /// Binds before anything is served, so that a wrong address stops the start.
    ///
    /// # Errors
    /// [`BindError`] names the address, the system's word and the remedy.
    pub fn bind(listen: &HttpListen) -> Result<Self, BindError> {
        Self::open(listen, &mut OpenSockets::passed(&Passed::default()))
    }

    /// The same, but a socket that is open already and can be it comes first.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub(crate) fn open(listen: &HttpListen, open: &mut OpenSockets<'_>) -> Result<Self, BindError> {
        let failed = |place: String| move |cause| BindError { key: "http.listen", place, cause };
        match listen {
            HttpListen::Tcp(address) => {
                open.tcp("http.listen", *address).map(Self::Tcp).map_err(failed(address.to_string()))
            }
            HttpListen::Unix(path) => {
                let found = open.of_manager().unix(path).and_then(|found| match found {
                    Some(socket) => Ok(Self::Unix(socket.into(), SocketFile::new(path, false))),
                    None => bind_unix(path),
                });
                found.map_err(failed(path.display().to_string()))
            }
        }
    }

    /// The same for `http.admin_socket`.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub(crate) fn open_admin(path: &Path, open: &mut OpenSockets<'_>) -> Result<Self, BindError> {
        Self::open(&HttpListen::Unix(path.to_owned()), open)
            .map_err(|error| BindError { key: "http.admin_socket", ..error })
    }

    /// The same for `http.chatmail_socket`. Every process may connect: who gets something, its user decides.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub(crate) fn open_chatmail(path: &Path, open: &mut OpenSockets<'_>) -> Result<Self, BindError> {
        let key = "http.chatmail_socket";
        let bound = Self::open(&HttpListen::Unix(path.to_owned()), open);
        let bound = bound.map_err(|error| BindError { key, ..error })?;
        if let Self::Unix(_, file) = &bound
            && file.is_ours.load(Ordering::Relaxed)
        {
            let opened = std::fs::set_permissions(path, std::fs::Permissions::from_mode(CHATMAIL_MODE));
            opened.map_err(|cause| BindError { key, place: path.display().to_string(), cause })?;
        }
        Ok(bound)
    }

    /// The same for one of `http.public`.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub(crate) fn open_public(listen: &PublicListen, open: &mut OpenSockets<'_>) -> Result<Self, BindError> {
        let key = "http.public";
        let listener = open.tcp(key, listen.address);
        let listener = listener.map_err(|cause| BindError { key, place: listen.to_string(), cause })?;
        Ok(if listen.is_https { Self::Https(listener) } else { Self::Tcp(listener) })
    }

    /// The same for one of `http.public`.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub fn bind_public(listen: &PublicListen) -> Result<Self, BindError> {
        Self::open_public(listen, &mut OpenSockets::passed(&Passed::default()))
    }

    /// A listener at an address that another process bound.
    pub(crate) fn adopted(socket: OwnedFd, is_https: bool) -> Self {
        if is_https { Self::Https(socket.into()) } else { Self::Tcp(socket.into()) }
    }

    /// A listener at a path that another process bound, whose file it removes.
    pub(crate) fn adopted_unix(socket: OwnedFd, path: &Path) -> Self {
        Self::Unix(socket.into(), SocketFile::new(path, false))
    }

    /// The address, for listeners that have one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) | Self::Https(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// How a person reaches it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "http".to_owned(), |a| format!("http://{a}")),
            Self::Https(listener) => {
                listener.local_addr().map_or_else(|_| "https".to_owned(), |a| format!("https://{a}"))
            }
            Self::Unix(_, file) => format!("unix:{}", file.path.display()),
        }
    }

    /// Serves until the task is dropped; `tls` has the certificates for a listener that needs them.
    ///
    /// # Errors
    /// As [`Bound::register`] and [`Registered::serve`].
    pub async fn serve(self, router: Router, tls: Option<Arc<Tls>>) -> io::Result<()> {
        self.register()?.serve(router, tls).await
    }

    /// Lets the runtime watch it, which is the last thing that can fail. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn register(self) -> io::Result<Registered> {
        let (address, name) = (self.address(), self.name());
        let listener = match self {
            Self::Https(listener) => Listener::Https(tokio::net::TcpListener::from_std(listener)?),
            Self::Tcp(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Self::Unix(listener, file) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?, file),
        };
        Ok(Registered { listener, address, name })
    }
}

/// A listener that the runtime watches.
pub struct Registered {
    listener: Listener,
    address: Option<SocketAddr>,
    name: String,
}

enum Listener {
    Tcp(tokio::net::TcpListener),
    Https(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, SocketFile),
}

impl Registered {
    /// Its socket once more, for a process that takes over.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Listener::Tcp(listener) | Listener::Https(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Whether the socket's file goes with this listener: to be changed when another process has it.
    pub(crate) fn file_is_ours(&self) -> Option<Arc<AtomicBool>> {
        match &self.listener {
            Listener::Tcp(_) | Listener::Https(_) => None,
            Listener::Unix(_, file) => Some(Arc::clone(&file.is_ours)),
        }
    }

    /// The address, for listeners that have one.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// How a person reaches it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Serves until the task is dropped; `tls` has the certificates for a listener that needs them.
    ///
    /// # Errors
    /// When there are no certificates for a listener that needs them.
    pub async fn serve(self, router: Router, tls: Option<Arc<Tls>>) -> io::Result<()> {
        self.serve_through(router, tls, &serve::front(serve::BOUNDS), Arc::default()).await
    }

    /// The same, but connections come through this front, only while its gate is open, and only from `proxies` if there
    /// are any.
    ///
    /// # Errors
    /// As [`Registered::serve`].
    pub(crate) async fn serve_through(
        self,
        router: Router,
        tls: Option<Arc<Tls>>,
        front: &Arc<Front>,
        proxies: Arc<[IpNet]>,
    ) -> io::Result<()> {
        match self.listener {
            Listener::Https(listener) => {
                let tls = tls.ok_or_else(|| io::Error::other("https without certificates"))?;
                serve::tcp(listener, router, Some(tls), Arc::clone(front), proxies).await
            }
            Listener::Tcp(listener) => serve::tcp(listener, router, None, Arc::clone(front), proxies).await,
            Listener::Unix(listener, _file) => serve::unix(listener, router, front.gate.clone()).await,
        }
    }
}

impl Registered {
    /// Gives a line with a credential to each process that connects to a unix socket, while the gate is open.
    ///
    /// # Errors
    /// When it is no unix socket.
    pub(crate) async fn serve_lines(self, rest: Arc<rest::Rest>, gate: Gate) -> io::Result<()> {
        match self.listener {
            Listener::Unix(listener, _file) => rest::line::serve(listener, rest, gate).await,
            Listener::Tcp(_) | Listener::Https(_) => Err(io::Error::other("credentials as lines need a unix socket")),
        }
    }
}

/// Takes over a path that a dead process left behind, but never one that still answers.
fn bind_unix(path: &Path) -> io::Result<Bound> {
    let is_socket = path.symlink_metadata().is_ok_and(|data| data.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix(listener, SocketFile::new(path, true)))
}
