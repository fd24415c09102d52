//! The HTTP listeners of a running server: bound at the start, opened and closed by reloads.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::task::AbortHandle;

use crate::api::host::AllowedHosts;
use crate::api::{BindError, Bound};
use crate::config::checked::{HttpConfig, HttpListen, PublicListen};
use crate::net::passed::Passed;
use crate::tls::Tls;

/// What a listener is called in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// `http.listen`.
    Private(HttpListen),
    /// One of `http.public`.
    Public(PublicListen),
}

fn places(config: &HttpConfig) -> Vec<Place> {
    let private = config.listen.iter().cloned().map(Place::Private);
    private.chain(config.public.iter().copied().map(Place::Public)).collect()
}

/// Listeners that are bound and not served yet; dropping it closes them.
pub(crate) struct BoundFaces {
    bound: Vec<(Place, Bound)>,
    /// Addresses of those that stay.
    staying: Vec<SocketAddr>,
}

impl BoundFaces {
    /// Binds everything; for the start.
    pub(crate) fn bind(config: &HttpConfig, passed: &Passed) -> Result<Self, BindError> {
        Self::bind_all(places(config), Vec::new(), passed)
    }

    fn bind_all(places: Vec<Place>, staying: Vec<SocketAddr>, passed: &Passed) -> Result<Self, BindError> {
        let bind = |place: Place| {
            let bound = match &place {
                Place::Private(listen) => Bound::open(listen, passed)?,
                Place::Public(listen) => Bound::open_public(*listen, passed)?,
            };
            Ok((place, bound))
        };
        Ok(Self { bound: places.into_iter().map(bind).collect::<Result<_, _>>()?, staying })
    }

    /// Every address that will be ours.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.staying.iter().copied().chain(self.bound.iter().filter_map(|(_, bound)| bound.address())).collect()
    }
}

struct Face {
    place: Place,
    address: Option<SocketAddr>,
    serving: AbortHandle,
}

/// Every open HTTP listener, and what is served there.
pub(crate) struct Faces {
    private: Router,
    public: Router,
    hosts: AllowedHosts,
    open: Vec<Face>,
}

impl Faces {
    /// Serves nothing yet: `private` will be on `http.listen`, whose Host names are `hosts`, and `public` on `http.public`.
    pub(crate) const fn new(private: Router, public: Router, hosts: AllowedHosts) -> Self {
        Self { private, public, hosts, open: Vec::new() }
    }

    /// Binds what a configuration has and this has not.
    pub(crate) fn plan(&self, config: &HttpConfig, passed: &Passed) -> Result<BoundFaces, BindError> {
        let mut left: Vec<&Face> = self.open.iter().collect();
        let (mut missing, mut staying) = (Vec::new(), Vec::new());
        for place in places(config) {
            match left.iter().position(|face| face.place == place) {
                Some(at) => staying.extend(left.remove(at).address),
                None => missing.push(place),
            }
        }
        BoundFaces::bind_all(missing, staying, passed)
    }

    /// Serves what was bound, with these certificates where it speaks TLS, and stops what the configuration has no more; requests under way are answered.
    pub(crate) fn serve(&mut self, config: &HttpConfig, bound: BoundFaces, tls: Option<&Arc<Tls>>) {
        let mut wanted = places(config);
        self.open.retain(|face| {
            let at = wanted.iter().position(|place| *place == face.place);
            match at {
                Some(at) => drop(wanted.remove(at)),
                None => face.serving.abort(),
            }
            at.is_some()
        });
        self.hosts.set(config.hosts.iter().map(ToString::to_string));
        for (place, listener) in bound.bound {
            let address = listener.address();
            let name = listener.name();
            let routes = match &place {
                Place::Private(_) => {
                    tracing::info!(address = name, "metrics and health");
                    &self.private
                }
                Place::Public(_) => {
                    tracing::info!(address = name, "credentials for everybody who has a key");
                    &self.public
                }
            };
            let serving = tokio::spawn(listener.serve(routes.clone(), tls.cloned())).abort_handle();
            self.open.push(Face { place, address, serving });
        }
    }
}
