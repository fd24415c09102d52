//! The HTTP listeners of a running server: bound at the start, opened and closed by reloads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use tokio::task::AbortHandle;

use crate::api::host::AllowedHosts;
use crate::api::{BindError, Bound, Registered};
use crate::config::checked::{HttpConfig, HttpListen, PublicListen};
use crate::net::passed::Passed;
use crate::tls::Tls;

/// What a listener is called in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ConfiguredListener {
    /// `http.listen`.
    Private(HttpListen),
    /// `http.admin_socket`.
    Admin(PathBuf),
    /// One of `http.public`.
    Public(PublicListen),
}

fn configured_listeners(config: &HttpConfig) -> Vec<ConfiguredListener> {
    let private = config.listen.iter().cloned().map(ConfiguredListener::Private);
    let admin = config.admin_socket.iter().cloned().map(ConfiguredListener::Admin);
    private.chain(admin).chain(config.public.iter().copied().map(ConfiguredListener::Public)).collect()
}

/// Listeners that are bound and not served yet; dropping it closes them.
pub(crate) struct BoundHttpListeners {
    bound: Vec<(ConfiguredListener, Registered)>,
    /// Addresses of those that stay.
    staying: Vec<SocketAddr>,
}

impl BoundHttpListeners {
    /// Binds everything; for the start.
    pub(crate) fn bind(config: &HttpConfig, passed: &Passed) -> Result<Self, BindError> {
        Self::bind_all(configured_listeners(config), Vec::new(), passed)
    }

    fn bind_all(
        configured_listeners: Vec<ConfiguredListener>,
        staying: Vec<SocketAddr>,
        passed: &Passed,
    ) -> Result<Self, BindError> {
        let bind = |configured: ConfiguredListener| {
            let (key, bound) = match &configured {
                ConfiguredListener::Private(listen) => ("http.listen", Bound::open(listen, passed)?),
                ConfiguredListener::Admin(path) => ("http.admin_socket", Bound::open_admin(path, passed)?),
                ConfiguredListener::Public(listen) => ("http.public", Bound::open_public(*listen, passed)?),
            };
            // The last thing that can fail: serving must not.
            let name = bound.name();
            let registered = bound.register().map_err(|cause| BindError { key, place: name, cause })?;
            Ok((configured, registered))
        };
        Ok(Self { bound: configured_listeners.into_iter().map(bind).collect::<Result<_, _>>()?, staying })
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
}

/// Every open HTTP listener, and what is served there.
pub(crate) struct HttpListeners {
    private: Router,
    public: Router,
    hosts: AllowedHosts,
    open: Vec<HttpListener>,
}

impl HttpListeners {
    /// Serves nothing yet: `private` will be on `http.listen`, whose Host names are `hosts`, and `public` on `http.public`.
    pub(crate) const fn new(private: Router, public: Router, hosts: AllowedHosts) -> Self {
        Self { private, public, hosts, open: Vec::new() }
    }

    /// Binds what a configuration has and this has not.
    pub(crate) fn plan(&self, config: &HttpConfig, passed: &Passed) -> Result<BoundHttpListeners, BindError> {
        let mut left: Vec<&HttpListener> = self.open.iter().collect();
        let (mut missing, mut staying) = (Vec::new(), Vec::new());
        for configured in configured_listeners(config) {
            match left.iter().position(|listener| listener.configured == configured) {
                Some(at) => staying.extend(left.remove(at).address),
                None => missing.push(configured),
            }
        }
        BoundHttpListeners::bind_all(missing, staying, passed)
    }

    /// Serves what was bound, with these certificates where it speaks TLS, and stops what the configuration has no more; requests under way are answered.
    pub(crate) fn serve(&mut self, config: &HttpConfig, bound: BoundHttpListeners, tls: Option<&Arc<Tls>>) {
        let mut wanted = configured_listeners(config);
        self.open.retain(|listener| {
            let at = wanted.iter().position(|configured| *configured == listener.configured);
            match at {
                Some(at) => drop(wanted.remove(at)),
                None => listener.serving.abort(),
            }
            at.is_some()
        });
        self.hosts.set(config.hosts.iter().map(ToString::to_string));
        for (configured, listener) in bound.bound {
            let address = listener.address();
            let name = listener.name().to_owned();
            let routes = match &configured {
                ConfiguredListener::Private(_) => {
                    tracing::info!(address = name, "metrics and health");
                    &self.private
                }
                ConfiguredListener::Admin(_) => {
                    tracing::info!(address = name, "serving the admin API to root and the server's own user");
                    &self.private
                }
                ConfiguredListener::Public(_) => {
                    tracing::info!(address = name, "serving the credential API");
                    &self.public
                }
            };
            let serving = tokio::spawn(listener.serve(routes.clone(), tls.cloned())).abort_handle();
            self.open.push(HttpListener { configured, address, serving });
        }
    }
}
