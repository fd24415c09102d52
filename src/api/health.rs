//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::host::AllowedHosts;
use crate::net::NO_RELAY_ADDRESS;
use crate::ops::metrics::Metrics;
use crate::ops::status::{Phase, Status};

/// What the three paths show.
#[derive(Clone)]
pub struct Health {
    /// Alive, ready, draining.
    pub status: Arc<Status>,
    /// Every counter.
    pub metrics: Arc<Metrics>,
    /// Which Host headers are answered.
    pub hosts: AllowedHosts,
}

/// Of `http.listen`, and the first of them of `http.public`.
pub const PATHS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The routes of `http.listen`.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(health))
}

/// The one route of `http.public` that tells of health: whether the process lives, and nothing about it.
pub fn public_router() -> Router {
    Router::new().route("/healthz", get(|| async { "alive\n" }))
}

/// A request over a unix socket carries whatever Host its client likes; the file's mode guards it.
fn refused(health: &Health, headers: &HeaderMap) -> Option<Response> {
    if health.hosts.check(headers).is_some() {
        return None;
    }
    let text = "this Host is not allowed; use 127.0.0.1 or localhost, or list the name in http.hosts\n";
    Some((StatusCode::FORBIDDEN, text).into_response())
}

async fn healthz(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    refused(&health, &headers).unwrap_or_else(|| "alive\n".into_response())
}

async fn readyz(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    refused(&health, &headers).unwrap_or_else(|| match health.status.get() {
        Phase::Ready if health.status.lacks_relay_address() => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{NO_RELAY_ADDRESS}\n")).into_response()
        }
        Phase::Ready => "ready\n".into_response(),
        other @ (Phase::Starting | Phase::Draining) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", other.name())).into_response()
        }
    })
}

async fn metrics(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&health, &headers) {
        return refused;
    }
    // With many sockets the kernel has much to answer; other requests need not wait for that.
    let metrics = Arc::clone(&health.metrics);
    match tokio::task::spawn_blocking(move || metrics.show()).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
