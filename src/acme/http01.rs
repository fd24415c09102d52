//! Proof by HTTP (RFC 8555 section 8.3): the authority fetches a text at `/.well-known/acme-challenge/`, from port 80.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
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

/// Answers on an address until this is dropped. An address that a listener of our own has is no error: that one answers too.
///
/// # Errors
/// If another program has it, or we may not.
pub(super) async fn listen(address: SocketAddr, tokens: Arc<Tokens>) -> io::Result<Answering> {
    let listener = TcpListener::bind(address).await?;
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
