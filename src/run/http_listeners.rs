//! The HTTP listeners of a running server: bound at the start, opened and closed by reloads.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use ipnet::IpNet;
use tokio::task::AbortHandle;

use crate::api;
use crate::api::host::AllowedHosts;
use crate::api::rest::Rest;
use crate::api::{BindError, Bound, Registered};
use crate::config::checked::{HttpConfig, HttpListen, PublicListen};
use crate::net::front::Front;
use crate::net::gate::Gate;
use crate::net::listener_plan::{Freed, Likeness, OpenSockets, compare};
use crate::net::passed::Passed;
use crate::net::upgrade_messages::PassedSocket;
use crate::tls::Tls;

/// What a listener is called in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ConfiguredListener {
    /// `http.listen`.
    Private(HttpListen),
    /// `http.admin_socket`.
    Admin(PathBuf),
    /// `http.chatmail_socket`.
    Chatmail(PathBuf),
    /// One of `http.public`.
    Public(PublicListen),
}

fn configured_listeners(config: &HttpConfig) -> Vec<ConfiguredListener> {
    let private = config.listen.iter().cloned().map(ConfiguredListener::Private);
    let admin = config.admin_socket.iter().cloned().map(ConfiguredListener::Admin);
    let chatmail = config.chatmail_socket.iter().cloned().map(ConfiguredListener::Chatmail);
    private.chain(admin).chain(chatmail).chain(config.public.iter().cloned().map(ConfiguredListener::Public)).collect()
}

/// Listeners that are bound and not served yet; dropping it closes them.
pub(crate) struct BoundHttpListeners {
    bound: Vec<(ConfiguredListener, Registered)>,
    /// Addresses of those that stay.
    staying: Vec<SocketAddr>,
    /// Files of another process's unix sockets, which go with this one once it serves.
    files: Vec<PathBuf>,
}

impl BoundHttpListeners {
    /// Binds everything; for the start.
    pub(crate) fn bind(config: &HttpConfig, passed: &Passed) -> Result<Self, BindError> {
        let mut sockets = OpenSockets::passed(passed);
        Self::bind_all(configured_listeners(config), Vec::new(), &mut sockets, &mut Vec::new())
    }

    /// Takes over what another process served, and binds the rest. Sockets that no listener wants are closed.
    pub(crate) fn adopt(
        config: &HttpConfig,
        passed: &Passed,
        mut sockets: Vec<(PassedSocket, OwnedFd)>,
    ) -> Result<Self, BindError> {
        let ours = sockets.iter().filter_map(|(what, _)| match what {
            PassedSocket::HttpPath { path, is_ours: true } => Some(path.clone()),
            PassedSocket::HttpPath { .. }
            | PassedSocket::Http(_)
            | PassedSocket::Stream(_)
            | PassedSocket::Manager(_) => None,
        });
        let files = ours.collect();
        let mut open = OpenSockets::passed(passed);
        Ok(Self { files, ..Self::bind_all(configured_listeners(config), Vec::new(), &mut open, &mut sockets)? })
    }

    fn bind_all(
        configured_listeners: Vec<ConfiguredListener>,
        staying: Vec<SocketAddr>,
        open: &mut OpenSockets<'_>,
        adopted: &mut Vec<(PassedSocket, OwnedFd)>,
    ) -> Result<Self, BindError> {
        let bind = |configured: ConfiguredListener| {
            if let Some(bound) = configured.take_from(adopted) {
                let name = bound.name();
                let failed = |cause| BindError { key: configured.key(), place: name, cause };
                return Ok((configured.clone(), bound.register().map_err(failed)?));
            }
            let bound = match &configured {
                ConfiguredListener::Private(listen) => Bound::open(listen, open)?,
                ConfiguredListener::Admin(path) => Bound::open_admin(path, open)?,
                ConfiguredListener::Chatmail(path) => Bound::open_chatmail(path, open)?,
                ConfiguredListener::Public(listen) => Bound::open_public(listen, open)?,
            };
            // The last thing that can fail: serving must not.
            let (key, name) = (configured.key(), bound.name());
            let registered = bound.register().map_err(|cause| BindError { key, place: name, cause })?;
            Ok((configured, registered))
        };
        let bound = configured_listeners.into_iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Self { bound, staying, files: Vec::new() })
    }

    /// Every socket that is bound, for a process that goes on if this one is killed.
    pub(crate) fn sockets(&self) -> Vec<(PassedSocket, OwnedFd)> {
        let sockets = self.bound.iter().filter_map(|(configured, listener)| {
            let is_ours = listener.file_is_ours().is_some_and(|ours| ours.load(Ordering::Relaxed));
            let will_be = |path: &PathBuf| is_ours || self.files.contains(path);
            let note = configured.note(is_ours);
            let what = if let PassedSocket::HttpPath { path, .. } = note {
                PassedSocket::HttpPath { is_ours: will_be(&path), path }
            } else {
                note
            };
            Some((what, listener.duplicate().ok()?))
        });
        sockets.collect()
    }

    /// Every address that will be ours.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.staying.iter().copied().chain(self.bound.iter().filter_map(|(_, bound)| bound.address())).collect()
    }
}

struct HttpListener {
    configured: ConfiguredListener,
    address: Option<SocketAddr>,
    serving: AbortHandle,
    /// For a process that takes over.
    socket: Option<OwnedFd>,
    file_is_ours: Option<Arc<AtomicBool>>,
}

/// Every open HTTP listener, and what is served there.
pub(crate) struct HttpListeners {
    private: Router,
    public: Router,
    rest: Arc<Rest>,
    hosts: AllowedHosts,
    /// The stages before HTTP; its gate is that of unix sockets too.
    front: Arc<Front>,
    open: Vec<HttpListener>,
}

impl HttpListener {
    fn likeness(&self, wanted: &ConfiguredListener) -> Likeness {
        if self.configured == *wanted { Likeness::Whole } else { Likeness::None }
    }
}

impl ConfiguredListener {
    const fn key(&self) -> &'static str {
        match self {
            Self::Private(_) => "http.listen",
            Self::Admin(_) => "http.admin_socket",
            Self::Chatmail(_) => "http.chatmail_socket",
            Self::Public(_) => "http.public",
        }
    }

    /// Which proxies connect; empty for any client.
    fn proxies(&self) -> Arc<[IpNet]> {
        match self {
            Self::Public(listen) => Arc::clone(&listen.proxy_from),
            Self::Private(_) | Self::Admin(_) | Self::Chatmail(_) => Arc::default(),
        }
    }

    /// What another process is told of its socket.
    fn note(&self, is_ours: bool) -> PassedSocket {
        match self {
            Self::Private(HttpListen::Tcp(address)) | Self::Public(PublicListen { address, .. }) => {
                PassedSocket::Http(*address)
            }
            Self::Private(HttpListen::Unix(path)) | Self::Admin(path) | Self::Chatmail(path) => {
                PassedSocket::HttpPath { path: path.clone(), is_ours }
            }
        }
    }

    /// The socket of this listener, if another process passed it.
    fn take_from(&self, sockets: &mut Vec<(PassedSocket, OwnedFd)>) -> Option<Bound> {
        let at = sockets.iter().position(|(what, _)| match (what, self) {
            (
                PassedSocket::HttpPath { path, .. },
                Self::Private(HttpListen::Unix(own)) | Self::Admin(own) | Self::Chatmail(own),
            ) => path == own,
            (what, _) => *what == self.note(false),
        })?;
        let (what, socket) = sockets.swap_remove(at);
        Some(match (what, self) {
            // As long as the other process may go on, the file is its.
            (PassedSocket::HttpPath { path, .. }, _) => Bound::adopted_unix(socket, &path),
            (_, Self::Public(listen)) => Bound::adopted(socket, listen.is_https),
            _ => Bound::adopted(socket, false),
        })
    }
}

impl HttpListeners {
    /// Closed while another process may have the listeners.
    pub(crate) fn gate(&self) -> Gate {
        self.front.gate.clone()
    }

    /// Every socket, for a process that takes over.
    pub(crate) fn sockets(&self) -> Vec<(PassedSocket, OwnedFd)> {
        let sockets = self.open.iter().filter_map(|listener| {
            let is_ours = listener.file_is_ours.as_ref().is_some_and(|ours| ours.load(Ordering::Relaxed));
            Some((listener.configured.note(is_ours), listener.socket.as_ref()?.try_clone().ok()?))
        });
        sockets.collect()
    }

    /// The files of unix sockets stay when this process ends: they are another one's.
    pub(crate) fn leave_files(&self) {
        for file_is_ours in self.open.iter().filter_map(|listener| listener.file_is_ours.as_ref()) {
            file_is_ours.store(false, Ordering::Relaxed);
        }
    }

    /// Serves nothing yet: `private` will be on `http.listen`, whose Host names are `hosts`, `public` on `http.public`, and
    /// lines of `rest` on `http.chatmail_socket`.
    pub(crate) fn new(
        private: Router,
        public: Router,
        rest: Arc<Rest>,
        hosts: AllowedHosts,
        front: Arc<Front>,
    ) -> Self {
        api::set_limits(&front);
        Self { private, public, rest, hosts, front, open: Vec::new() }
    }

    /// The TCP sockets that this configuration no longer has for HTTP as it is served now.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(crate) fn freed(&self, config: &HttpConfig) -> io::Result<Vec<Freed>> {
        let going = compare(&self.open, configured_listeners(config), HttpListener::likeness).going;
        let going = going.into_iter().filter_map(|place| self.open.get(place));
        let freed = going.filter_map(|listener| {
            let PassedSocket::Http(configured) = listener.configured.note(false) else { return None };
            let freed = |socket| Freed { key: listener.configured.key(), configured, socket: Some(socket) };
            Some(listener.socket.as_ref()?.try_clone().map(freed))
        });
        freed.collect()
    }

    /// Binds what a configuration has and this has not; `sockets` may serve, those of [`HttpListeners::freed`] too.
    pub(crate) fn plan(
        &self,
        config: &HttpConfig,
        sockets: &mut OpenSockets<'_>,
    ) -> Result<BoundHttpListeners, BindError> {
        let compared = compare(&self.open, configured_listeners(config), HttpListener::likeness);
        let staying = compared.staying.iter().filter_map(|(place, _)| self.open.get(*place)?.address).collect();
        BoundHttpListeners::bind_all(compared.missing, staying, sockets, &mut Vec::new())
    }

    /// Serves what was bound, with these certificates where it speaks TLS, and stops what the configuration has no more; requests under way are answered.
    pub(crate) fn serve(&mut self, config: &HttpConfig, bound: BoundHttpListeners, tls: Option<&Arc<Tls>>) {
        let mut going = compare(&self.open, configured_listeners(config), HttpListener::likeness).going;
        going.sort_unstable();
        for place in going.into_iter().rev() {
            self.open.remove(place).serving.abort();
        }
        self.hosts.set(config.hosts.iter().map(ToString::to_string));
        for (configured, listener) in bound.bound {
            let address = listener.address();
            let name = listener.name().to_owned();
            let routes = match &configured {
                ConfiguredListener::Private(_) => {
                    tracing::info!(address = name, "metrics and health");
                    Some(&self.private)
                }
                ConfiguredListener::Admin(_) => {
                    tracing::info!(address = name, "serving the admin API to root and the server's own user");
                    Some(&self.private)
                }
                ConfiguredListener::Chatmail(_) => {
                    tracing::info!(address = name, "serving credentials as lines, for chatmail");
                    None
                }
                ConfiguredListener::Public(_) => {
                    tracing::info!(address = name, "serving the credential API");
                    Some(&self.public)
                }
            };
            // Without a duplicate a process that takes over binds it anew.
            let (socket, file_is_ours) = (listener.duplicate().ok(), listener.file_is_ours());
            if let (PassedSocket::HttpPath { path, .. }, Some(is_ours)) = (configured.note(false), &file_is_ours)
                && bound.files.contains(&path)
            {
                is_ours.store(true, Ordering::Relaxed);
            }
            let front = Arc::clone(&self.front);
            let serving = match routes.cloned() {
                Some(routes) => {
                    let (tls, proxies) = (tls.cloned(), configured.proxies());
                    tokio::spawn(async move { listener.serve_through(routes, tls, &front, proxies).await })
                }
                None => tokio::spawn(listener.serve_lines(Arc::clone(&self.rest), front.gate.clone())),
            };
            let serving = serving.abort_handle();
            self.open.push(HttpListener { configured, address, serving, socket, file_is_ours });
        }
    }
}
