//! Proof by HTTP (RFC 8555 section 8.3): the authority fetches a text at `/.well-known/acme-challenge/`, from port 80.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::net::lacks_family;

/// Where the authority looks.
pub const PATH: &str = "/.well-known/acme-challenge/{token}";

/// Connections at a time on a listener that is there for an order only; more wait in the kernel.
const CONNECTIONS_MAX: usize = 16;

/// For a whole connection.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// What is proved at this moment: texts by token.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, String>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Whole after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proves one more.
    pub(super) fn add(&self, token: String, text: String) {
        self.lock().insert(token, text);
    }

    /// Nothing is proved any more.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// Answers the authority.
pub fn router(tokens: Arc<Tokens>) -> Router {
    Router::new().route(PATH, get(answer)).with_state(tokens)
}

async fn answer(State(tokens): State<Arc<Tokens>>, Path(token): Path<String>) -> Response {
    let text = tokens.lock().get(&token).cloned();
    text.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |text| ([(header::CONTENT_TYPE, "application/octet-stream")], text).into_response(),
    )
}

/// The address in place of one that the kernel does not have the family of: `[::]` stands for both families here.
fn in_its_place(address: SocketAddr, lacks_family: bool) -> Option<SocketAddr> {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    (lacks_family && is_any).then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
}

/// What an operator can do about an address that can't be listened on.
#[allow(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
pub(super) fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "free the port, see `ss -ltnp`",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit grants: use it"
        }
        _ if lacks_family(cause) => "this kernel has no IPv6: set tls.acme.http_listen to an IPv4 address",
        _ => "set tls.acme.http_listen to an address of this machine",
    }
}

/// Answers on an address until this is dropped. An address that a listener of our own has is no error: that one answers too.
///
/// # Errors
/// If another program has it, or we may not.
pub(super) async fn listen(address: SocketAddr, tokens: Arc<Tokens>) -> io::Result<Answering> {
    let listener = match TcpListener::bind(address).await {
        Err(error) => match in_its_place(address, lacks_family(&error)) {
            Some(other) => TcpListener::bind(other).await?,
            None => return Err(error),
        },
        listener => listener?,
    };
    let service = TowerToHyperService::new(router(tokens));
    let task = tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Mostly too few open files.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let service = service.clone();
            tokio::spawn(async move {
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(CONNECTION_TIME).max_buf_size(16 << 10);
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                // A client that breaks off is its own business.
                let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
                drop(place);
            });
        }
    });
    Ok(Answering(task))
}

/// While it lives there are answers.
pub(super) struct Answering(tokio::task::JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_in_the_kernel_every_address_is_that_of_ipv4() {
        for (address, place) in
            [("[::]:80", Some("0.0.0.0:80")), ("[::1]:80", None), ("[2001:db8::7]:80", None), ("0.0.0.0:80", None)]
        {
            let address = address.parse().unwrap();
            assert_eq!(in_its_place(address, true), place.map(|place| place.parse().unwrap()), "{address}");
            assert_eq!(in_its_place(address, false), None, "{address}");
        }
    }

    #[test]
    fn the_remedy_is_that_of_the_cause() {
        for (code, words) in [
            (libc::EADDRINUSE, "free the port"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EAFNOSUPPORT, "no IPv6"),
            (libc::EADDRNOTAVAIL, "an address of this machine"),
        ] {
            let said = remedy(&io::Error::from_raw_os_error(code));
            assert!(said.contains(words), "{code}: {said}");
        }
    }
}
