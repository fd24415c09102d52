//! The demo: a page where two tabs call each other through this very relay.
//!
//! Owns the page and its HTTP face: `/` and its parts, `/config` (ICE servers with fresh
//! credentials for one tab), `/usage` (what the server counted for that tab), `/signal` and `/leave` (the
//! two tabs' signalling) and `/qr.svg` (the link for a phone). What it does not own is the relay: credentials and
//! counts come through [`DemoBackend`], so this module knows neither sockets nor secrets.

mod access;
pub mod lan;
mod page;
mod qr;
mod relay;
mod rooms;
mod run;
mod serve;
mod signalling;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use access::Verdict;
pub use access::{Access, Shared};

use crate::address;
use crate::api::Peer;
pub use crate::api::host::AllowedHosts;
use crate::turn_uri::{Scheme, TurnUri};
use rooms::Rooms;
pub use run::{DemoOptions, run};

/// A boxed future, so that [`DemoBackend`] can stand behind `dyn`.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the page needs to know from the relay.
pub trait DemoBackend: Send + Sync + 'static {
    /// Fresh time-limited credentials for the tab `user`, and the URLs of the relay over
    /// `transport`. `host` is the name under which the browser reached the page, with brackets
    /// around an IPv6 literal.
    fn ice_servers(&self, user: &str, transport: Transport, host: &str) -> IceServers;

    /// What the server counted; `None` if it can't say at the moment.
    fn usage(&self, user: &str) -> BoxFuture<Option<Usage>>;
}

/// How a tab reaches the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TURN over UDP.
    Udp,
    /// TURN over TCP.
    Tcp,
}

/// The list that goes into an `RTCConfiguration`.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IceServers {
    /// As the browser wants it.
    pub ice_servers: Vec<IceServer>,
    /// When the credentials end, in seconds since 1970.
    pub expires_at: u64,
}

/// One entry of `iceServers`.
#[derive(Clone, Serialize)]
pub struct IceServer {
    /// TURN URLs (RFC 7065).
    pub urls: Vec<String>,
    /// USERNAME of the long-term credential.
    pub username: String,
    /// Its password.
    pub credential: String,
}

impl fmt::Debug for IceServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("IceServer")
            .field("urls", &self.urls)
            .field("username", &self.username)
            .field("credential", &"(hidden)")
            .finish()
    }
}

/// What the server counted, for one tab and as a whole. Bytes are payload bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The tab's allocations that are alive.
    pub sessions: Vec<Session>,
    /// The sum over the tab's allocations, ended ones included.
    pub user: Counted,
    /// The sum over all allocations since the server started.
    pub server: Counted,
    /// Allocations alive in the whole server.
    pub allocations: u64,
}

/// One live allocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// How the client reaches the server: `udp` or `tcp`.
    pub transport: String,
    /// The client's address as the server sees it.
    pub client: String,
    /// The relayed transport address.
    pub relayed: String,
    /// What passed through this allocation.
    pub counted: Counted,
}

/// Packets and bytes, four ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// What the client sent for peers.
    pub from_client: Count,
    /// What was passed on to peers.
    pub to_peers: Count,
    /// What peers sent.
    pub from_peers: Count,
    /// What was passed on to the client.
    pub to_client: Count,
}

/// Packets and their payload bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many packets.
    pub packets: u64,
    /// Their payload, in bytes.
    pub bytes: u64,
}

/// The TURN URLs of a relay on `port` as browsers want them: the page's own host name, and the
/// relay's address on the network, because Chromium takes the one and Firefox the other.
pub fn turn_urls(host: &str, lan: IpAddr, port: u16, transport: Transport) -> Vec<String> {
    let transport = match transport {
        Transport::Udp => address::Transport::Udp,
        Transport::Tcp => address::Transport::Tcp,
    };
    let mut seen = BTreeSet::new();
    [lan.to_string().as_str(), host.trim_matches(['[', ']'])]
        .into_iter()
        .filter(|host| seen.insert(host.to_ascii_lowercase()))
        .map(|host| TurnUri { scheme: Scheme::Turn, host: host.into(), port, transport }.to_string())
        .collect()
}

/// Everything the demo's HTTP face needs.
pub struct DemoState {
    backend: Arc<dyn DemoBackend>,
    access: Access,
    notes: Vec<String>,
    rooms: Arc<Rooms>,
    connections: Arc<Semaphore>,
    /// Names this run of the server: a tab that sees it change asks for fresh credentials.
    boot: String,
}

impl DemoState {
    /// A demo over `backend`, open to visitors that `access` accepts; `notes` are shown on the page
    /// (such as [`lan::Lan::warning`]).
    ///
    /// # Errors
    /// If the system's random source fails.
    pub fn new(backend: Arc<dyn DemoBackend>, access: Access, notes: Vec<String>) -> Result<Self, getrandom::Error> {
        let mut boot = [0; 8];
        getrandom::fill(&mut boot)?;
        Ok(Self {
            backend,
            access,
            notes,
            rooms: Arc::new(Rooms::default()),
            connections: Arc::new(Semaphore::new(signalling::CONNECTIONS_MAX)),
            boot: format!("{:016x}", u64::from_be_bytes(boot)),
        })
    }
}

/// The demo's routes, and `more` beside them. Every request has passed [`Access`], and every answer carries the page's
/// security headers.
pub fn router(state: DemoState, more: Router) -> Router {
    let state = Arc::new(state);
    page::routes()
        .route("/config", get(config))
        .route("/usage", get(usage))
        .route("/signal", get(signalling::connect))
        .route("/leave", post(signalling::leave))
        .route("/qr.svg", get(qr_image))
        .with_state(Arc::clone(&state))
        .merge(more)
        .layer(middleware::from_fn_with_state(state, guard))
}

/// Refuses strangers, and adds to each answer what keeps the page to itself.
async fn guard(State(state): State<Arc<DemoState>>, request: Request, next: Next) -> Response {
    let peer = match request.extensions().get::<Peer>() {
        Some(Peer::Tcp(address)) => Some(address.ip()),
        Some(Peer::Unix(_)) | None => None,
    };
    match state.access.judge(peer, request.uri(), request.headers()) {
        Verdict::Welcome => {}
        Verdict::Refused(why) => return (StatusCode::FORBIDDEN, why).into_response(),
        Verdict::TakeCookie(cookie) => {
            // Away from the link, so that the token does not stay in the address bar. Browsers keep the fragment.
            let headers = [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)];
            return (StatusCode::SEE_OTHER, headers).into_response();
        }
    }
    // browsers differ in whether 'self' covers ws:, so the origin is spelt out
    let authority = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("localhost");
    let policy = HeaderValue::from_str(&format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self'; img-src 'self' blob: data:; \
         media-src 'self' blob: mediastream:; connect-src 'self' ws://{authority} wss://{authority}; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    ));

    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(policy) = policy {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

#[derive(Deserialize)]
struct ConfigQuery {
    user: String,
    transport: Transport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigAnswer {
    boot: String,
    host: String,
    #[serde(flatten)]
    servers: IceServers,
    notes: Vec<String>,
    /// The link for other machines, where there is one.
    lan: Option<String>,
}

/// `GET /config?user=TAB&transport=udp|tcp`
async fn config(
    State(state): State<Arc<DemoState>>,
    query: Result<Query<ConfigQuery>, QueryRejection>,
    request: Request,
) -> Response {
    let Ok(Query(query)) = query else { return bad_query("/config?user=TAB&transport=udp, or tcp") };
    if !rooms::is_name(&query.user) {
        return bad_user();
    }
    let host = state.access.hosts().check(request.headers()).unwrap_or("localhost").to_owned();
    let servers = state.backend.ice_servers(&query.user, query.transport, &host);
    Json(ConfigAnswer { boot: state.boot.clone(), host, servers, notes: state.notes.clone(), lan: state.access.link() })
        .into_response()
}

#[derive(Deserialize)]
struct QrQuery {
    room: String,
}

/// `GET /qr.svg?room=ROOM`: the link that brings a phone into this room.
async fn qr_image(State(state): State<Arc<DemoState>>, query: Result<Query<QrQuery>, QueryRejection>) -> Response {
    let Ok(Query(query)) = query else { return bad_query("/qr.svg?room=ROOM") };
    if !rooms::is_name(&query.room) {
        return (StatusCode::BAD_REQUEST, "room is 1 to 64 letters, digits, - or _\n").into_response();
    }
    let image = state.access.link().and_then(|link| qr::image(&format!("{link}#room={}", query.room)));
    match image {
        Some(image) => ([(header::CONTENT_TYPE, "image/svg+xml")], image).into_response(),
        None => {
            (StatusCode::NOT_FOUND, "there is no link for other machines: start the demo with --lan\n").into_response()
        }
    }
}

#[derive(Deserialize)]
struct UsageQuery {
    user: String,
}

/// `GET /usage?user=TAB`
async fn usage(State(state): State<Arc<DemoState>>, query: Result<Query<UsageQuery>, QueryRejection>) -> Response {
    let Ok(Query(query)) = query else { return bad_query("/usage?user=TAB") };
    if !rooms::is_name(&query.user) {
        return bad_user();
    }
    match state.backend.usage(&query.user).await {
        Some(usage) => Json(usage).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the relay gives no counts at the moment\n").into_response(),
    }
}

/// The parser's own sentence is about its types.
fn bad_query(expected: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("the query is not understood; ask {expected}\n")).into_response()
}

fn bad_user() -> Response {
    (StatusCode::BAD_REQUEST, "user is 1 to 64 letters, digits, - or _\n").into_response()
}

#[cfg(test)]
mod tests;
