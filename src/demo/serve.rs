//! The demo's HTTP listeners: like `api::serve`, with room for WebSockets.
//!
//! With `--lan` strangers of the local network can connect too. They get no further than the refusal, and each address has
//! its share of the places, so that none of them keeps the others out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use crate::api::Peer;

/// Connections of one listener at a time, those that became WebSockets not included (`signalling` counts them).
const CONNECTIONS_MAX: usize = 256;
/// Of one address. A browser opens six.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// For the headers of a request, and between two requests.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// For a connection on the whole.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// How long accepting rests when the system has no more files.
const REST: Duration = Duration::from_millis(100);

/// Who has how many connections.
#[derive(Default)]
struct ConnectionSlots(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection's place; dropping it gives it back.
struct ConnectionSlot {
    places: Arc<ConnectionSlots>,
    address: IpAddr,
}

impl ConnectionSlots {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionSlot> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&address).copied().unwrap_or_default();
        // This machine's own tabs come from one address and may have them all.
        let share = if address.is_loopback() { CONNECTIONS_MAX } else { CONNECTIONS_PER_ADDRESS_MAX };
        if all >= CONNECTIONS_MAX || own >= share {
            return None;
        }
        taken.insert(address, own + 1);
        Some(ConnectionSlot { places: Arc::clone(self), address })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Answers on `listener` for ever; each request carries its [`Peer`].
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(ConnectionSlots::default());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Some(place) = places.take(peer.ip().to_canonical()) {
                    let router = router.clone();
                    tokio::spawn(async move {
                        connection(stream, Peer::Tcp(peer), router).await;
                        drop(place);
                    });
                }
            }
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, router: Router) {
    // Answers are small and whole; waiting for more of them would only make them late.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // What goes wrong on a client's connection is the client's affair: it is closed, and that is all.
    let _ = tokio::time::timeout(CONNECTION_WITHIN, serving).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_of_the_places_and_gives_it_back() {
        let places = Arc::new(ConnectionSlots::default());
        let [one, other, own] = ["192.0.2.9", "192.0.2.10", "127.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
        let held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none(), "its share is used up");
        assert!(places.take(other).is_some(), "another's is not");
        let rest: Vec<_> = std::iter::from_fn(|| places.take(own)).collect();
        assert_eq!(held.len() + rest.len(), CONNECTIONS_MAX);
        assert!(places.take(other).is_none());
        drop(held);
        assert!(places.take(one).is_some());
        drop(rest);
        assert!(places.0.lock().unwrap().is_empty(), "nothing is remembered of those who left");
    }
}
