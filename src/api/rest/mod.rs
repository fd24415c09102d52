//! Credentials over HTTP, in the shape that the caller knows.
//!
//! The order of a request: method, Host, origin, who asks ([`access`]), what is asked for ([`request`]), how often
//! ([`rate`]), mint, answer ([`shape`]). Nothing here logs a key, a password or a request's query.

mod access;
pub mod counts;
mod forwarded;
pub(crate) mod limits;
pub(in crate::api) mod line;
mod own_key;
mod rate;
pub mod refused;
mod request;
mod revoke;
pub mod shape;
mod token_keys;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequestParts as _, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use hashbrown::HashSet;

use self::access::Caller;
use self::counts::IssueCounts;
use self::rate::Rates;
use self::refused::IssueRefused;
use self::request::CredentialRequest;
use self::shape::{IssuedCredential, Shape, ShapedResponse};
use self::token_keys::TokenKeys;
use super::Peer;
use super::failed_logins::{self, FailedLogins};
use super::host::AllowedHosts;
use super::revoker::Revoker;
use super::uris::{self, ServerUris};
use crate::config::Config;
use crate::config::issuing::IssuingConfig;
use crate::credentials::claims::{Claims, Grant};
use crate::credentials::{self, MintRefused, Minted, SharedSecret};
use crate::net::Running;
use crate::protocol::revocation::SessionSubject;
use crate::protocol::settings::RealmUsers;
use crate::time::{Now, UnixSeconds};
use crate::turn_uri::TurnUri;

/// The longest body: the longest username, escaped, and little else.
const BODY_BYTES_MAX: usize = 8 * 1024;

/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(3);

/// A user id of its own for each credential whose caller gives no user: nothing about a person goes over the wire.
const RANDOM_ID_BYTES: usize = 12;

/// How long a browser may remember which origins may ask, in seconds.
const PREFLIGHT_SECONDS: &str = "600";

/// Where a request is from, as limits and `from` of keys take it: for fuzzing.
#[must_use]
pub fn client_address(config: &IssuingConfig, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
    forwarded::client(&config.proxies, peer, headers).ip()
}

/// Where each shape is found.
const ROUTES: [(&str, Shape); 14] = [
    ("/v1/credentials", Shape::All),
    ("/", Shape::Draft),
    ("/turn", Shape::Draft),
    ("/turn/credentials", Shape::DraftOfNextcloud),
    ("/ice", Shape::Ice),
    ("/_matrix/client/v3/voip/turnServer", Shape::Matrix),
    ("/_matrix/client/r0/voip/turnServer", Shape::Matrix),
    ("/v1/turn/keys/{id}/credentials/generate-ice-servers", Shape::Cloudflare),
    ("/v1/turn/keys/{id}/credentials/generate", Shape::CloudflareOld),
    ("/v1/turn/keys/{id}/credentials/{username}/revoke", Shape::CloudflareRevoke),
    ("/2010-04-01/Accounts/{id}/Tokens.json", Shape::Twilio),
    ("/api/v1/turn/credentials", Shape::Metered),
    ("/api/v1/turn/credential", Shape::MeteredNew),
    ("/.well-known/turn", Shape::WellKnown),
];

/// What a reload may change, swapped whole.
struct Issuer {
    config: IssuingConfig,
    realm: Box<str>,
    secrets: Vec<SharedSecret>,
    max_ttl: u64,
    /// Names that are looked up first, so no credential may have one.
    users: HashSet<Box<str>>,
    servers: ServerUris,
    token_keys: TokenKeys,
}

impl Issuer {
    fn new(config: &Config, servers: ServerUris, before: &TokenKeys, counts: &IssueCounts) -> Self {
        let source = config.http.issuing.jwt.as_ref().map(|jwt| &jwt.source);
        Self {
            config: config.http.issuing.clone(),
            realm: config.realm.clone(),
            secrets: config.auth.secrets.clone(),
            max_ttl: config.auth.max_ttl,
            users: names(config),
            servers,
            token_keys: TokenKeys::new(source, before, &counts.fetches),
        }
    }
}

fn names(config: &Config) -> HashSet<Box<str>> {
    let of_realms = config.auth.realms.iter().flat_map(RealmUsers::names);
    config.auth.names().into_iter().chain(of_realms).map(Into::into).collect()
}

/// The endpoint: one for all listeners, so that rates hold over all of them.
pub struct Rest {
    issuer: ArcSwap<Issuer>,
    rates: Rates,
    failed: FailedLogins,
    counts: Arc<IssueCounts>,
    clock: fn() -> Now,
    is_revoked: OnceLock<IsRevoked>,
    revoker: OnceLock<Arc<Revoker>>,
}

/// Whether the relay would refuse this credential.
type IsRevoked = Box<dyn Fn(&SessionSubject<'_>, UnixSeconds) -> bool + Send + Sync>;

/// Through which listener a request came.
#[derive(Clone, Debug)]
pub enum Exposure {
    /// `http.listen`: only these Host names, since a page of another site can make its own name mean this machine.
    Private(AllowedHosts),
    /// `http.public`: any Host, since nothing is answered there without a key.
    Public,
}

impl Rest {
    /// For these URIs; `clock` is read once for each request. Keys that are fetched need a runtime around.
    #[must_use]
    pub fn new(config: &Config, servers: impl Into<ServerUris>, counts: Arc<IssueCounts>, clock: fn() -> Now) -> Self {
        let issuer = Issuer::new(config, servers.into(), &TokenKeys::None, &counts);
        counts.know(issuer.config.keys.iter().map(|key| &*key.name));
        Self {
            issuer: ArcSwap::from_pointee(issuer),
            rates: Rates::default(),
            failed: FailedLogins::default(),
            counts,
            clock,
            is_revoked: OnceLock::new(),
            revoker: OnceLock::new(),
        }
    }

    /// Refuses users that the relay shuts out, from now on.
    pub fn shut_out(&self, is_revoked: impl Fn(&SessionSubject<'_>, UnixSeconds) -> bool + Send + Sync + 'static) {
        // Told twice it is the same relay.
        let _ = self.is_revoked.set(Box::new(is_revoked));
    }

    /// Lets callers revoke credentials of the relay, from now on.
    pub fn revoke_with(&self, revoker: Arc<Revoker>) {
        // Told twice it is the same relay.
        let _ = self.revoker.set(revoker);
    }

    /// Takes a new configuration over; requests under way end with the old one.
    pub fn reconfigure(&self, config: &Config, servers: impl Into<ServerUris>) {
        self.counts.know(config.http.issuing.keys.iter().map(|key| &*key.name));
        let before = self.issuer.load_full();
        self.issuer.store(Arc::new(Issuer::new(config, servers.into(), &before.token_keys, &self.counts)));
    }

    /// Checks everything, mints, and gives the answer with its head.
    async fn answer(&self, shape: Shape, exposure: &Exposure, peer: Peer, request: Request) -> Response {
        let issuer = self.issuer.load_full();
        let (mut parts, body) = request.into_parts();
        let username = if matches!(shape, Shape::CloudflareRevoke) {
            // Its escapes are taken out; one that is no UTF-8 is no username.
            Path::<(String, String)>::from_request_parts(&mut parts, &()).await.ok()
        } else {
            None
        };
        let username = username.map(|Path((_, username))| username).unwrap_or_default();
        let (method, uri, headers) = (parts.method, parts.uri, parts.headers);
        let origin = allowed_origin(&issuer.config, &headers);
        if method == Method::OPTIONS {
            return self.preflight(shape, exposure, &issuer.config, &headers, origin);
        }
        let query: Vec<_> =
            url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let head = RequestHead {
            shape,
            exposure,
            peer,
            method: &method,
            path: uri.path(),
            username: &username,
            query: &query,
            headers: &headers,
        };
        let (status, content_type, text) = match self.issue(&issuer, &head, body).await {
            Ok(answer) => answer,
            Err(refused) => {
                let client = forwarded::client(&issuer.config.proxies, peer, &headers);
                let refused = self.charge(refused, client, peer);
                self.counts.refuse(&refused);
                tracing::debug!(%client, reason = refused.name(), "credential refused");
                let (status, content_type, text) = shape.refuse(&refused);
                let mut answer = respond(status, content_type, text);
                let head = answer.headers_mut();
                if status == StatusCode::UNAUTHORIZED {
                    let scheme = if shape == Shape::Twilio { "Basic realm=\"throughway\"" } else { "Bearer" };
                    head.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
                }
                if let Some(seconds) = refused.retry_after() {
                    head.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                if let IssueRefused::RateFailures(_) = refused {
                    head.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                if refused == IssueRefused::Method {
                    head.insert(header::ALLOW, HeaderValue::from_static(shape.methods()));
                }
                add_cors(head, &issuer.config, origin);
                return answer;
            }
        };
        let mut answer = respond(status, content_type, text);
        add_cors(answer.headers_mut(), &issuer.config, origin);
        answer
    }

    /// A wrong key or token is charged to where it comes from, and is no ordinary failure any more if there are many.
    fn charge(&self, refused: IssueRefused, client: forwarded::ClientAddress, peer: Peer) -> IssueRefused {
        if !refused.is_failed_login() {
            return refused;
        }
        let Some(source) = failed_logins::source(client.ip(), peer) else { return refused };
        match self.failed.charge(source, (self.clock)().ticks.0) {
            Ok(()) => refused,
            Err(seconds) => IssueRefused::RateFailures(seconds),
        }
    }

    /// What a browser asks before it lets a page of another origin ask.
    fn preflight(
        &self,
        shape: Shape,
        exposure: &Exposure,
        config: &IssuingConfig,
        headers: &HeaderMap,
        origin: Option<HeaderValue>,
    ) -> Response {
        let refused = if exposure.answers(headers) { IssueRefused::Origin } else { IssueRefused::Host };
        if origin.is_none() || refused == IssueRefused::Host {
            self.counts.refuse(&refused);
            let (status, content_type, text) = shape.refuse(&refused);
            return respond(status, content_type, text);
        }
        let mut answer = StatusCode::NO_CONTENT.into_response();
        let head = answer.headers_mut();
        add_cors(head, config, origin);
        head.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(shape.methods()));
        head.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type"));
        head.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
        answer
    }

    /// In the order of the module's head; whatever is not right ends it.
    async fn issue(&self, issuer: &Issuer, head: &RequestHead<'_>, body: Body) -> Result<ShapedResponse, IssueRefused> {
        if !head.shape.methods().split(", ").any(|method| method == head.method.as_str()) {
            return Err(IssueRefused::Method);
        }
        if !head.exposure.answers(head.headers) {
            return Err(IssueRefused::Host);
        }
        let now = (self.clock)();
        if head.shape == Shape::WellKnown {
            // Everybody who has a credential knows this.
            let (uris, realm) = issuer.servers.for_tenant(None);
            return Ok(shape::well_known(realm.unwrap_or(&issuer.realm), &uris));
        }
        if let Some(own) = of_own_key(issuer, head, now) {
            return Ok(own);
        }
        let caller = identify(issuer, head, now).await?;
        if caller.has_key_rate() {
            self.rates.take(&caller.name, None, issuer.config.per_key, now.ticks.0).map_err(IssueRefused::RateKey)?;
        }
        if head.shape == Shape::CloudflareRevoke {
            return self.revoke(issuer, &caller, head.username, now).await;
        }
        let request = CredentialRequest::parse(head.shape, head.query, head.headers, &read_body(body).await?)?;
        let shape = head.shape.for_request(&request)?;
        let user = match user_of(&caller, &request)? {
            Some(user) => {
                let per_user = issuer.config.per_user;
                self.rates.take(&caller.name, Some(&user), per_user, now.ticks.0).map_err(IssueRefused::RateUser)?;
                user
            }
            None => random_id()?,
        };
        let credential = mint(issuer, &caller, &request, user, now)?;
        let (uris, realm) = issuer.servers.for_tenant(credential.tenant.as_deref());
        if uris.is_empty() {
            return Err(IssueRefused::NoServers);
        }
        let party = SessionSubject {
            username: &credential.minted.username,
            user: &credential.user,
            tenant: credential.tenant.as_deref(),
        };
        if self.is_revoked.get().is_some_and(|is_revoked| is_revoked(&party, now.unix)) {
            return Err(IssueRefused::Revoked);
        }
        self.counts.issue(&caller.name);
        tracing::info!(
            key = &*caller.name,
            user = credential.user,
            username = credential.minted.username,
            ttl = credential.ttl,
            limits = limits::in_words(&credential.claims),
            client = %forwarded::client(&issuer.config.proxies, head.peer, head.headers),
            "credential issued"
        );
        Ok(shape.render(&IssuedCredential {
            username: &credential.minted.username,
            password: &credential.minted.password,
            ttl: credential.ttl,
            now: now.unix.0,
            expires_at: credential.minted.expires_at,
            realm: realm.unwrap_or(&issuer.realm),
            uris: &uris,
            tenant: caller.tenant.as_deref(),
            limits: &credential.claims.grant,
            label: request.label.as_deref().unwrap_or_default(),
            account: head.path.split('/').nth(3).unwrap_or_default(),
        }))
    }
}

/// The credential that a page fetches with the credential itself, see [`own_key`].
fn of_own_key(issuer: &Issuer, head: &RequestHead<'_>, now: Now) -> Option<ShapedResponse> {
    if head.shape != Shape::Metered {
        return None;
    }
    let (own, tenant) = own_key::find(head.query, &issuer.secrets, now.unix.0, issuer.max_ttl)?;
    let (uris, realm) = issuer.servers.for_tenant(tenant.as_deref());
    Some(head.shape.render(&IssuedCredential {
        username: &own.username,
        password: &own.password,
        ttl: own.expires_at.saturating_sub(now.unix.0),
        now: now.unix.0,
        expires_at: own.expires_at,
        realm: realm.unwrap_or(&issuer.realm),
        uris: &uris,
        tenant: None,
        limits: &Grant::default(),
        label: "",
        account: "",
    }))
}

async fn read_body(body: Body) -> Result<Bytes, IssueRefused> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(IssueRefused::TooLarge);
    }
    let body = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, BODY_BYTES_MAX));
    body.await.map_err(|_| IssueRefused::Slow)?.map_err(|_| IssueRefused::TooLarge)
}

/// A credential before its answer.
struct NewCredential {
    minted: Minted,
    user: String,
    ttl: u64,
    claims: Claims,
    /// As the relay will read it: what the credential says goes before what the secret says.
    tenant: Option<Box<str>>,
}

/// Makes the credential that was asked for, within what the caller and the configuration allow.
fn mint(
    issuer: &Issuer,
    caller: &Caller,
    request: &CredentialRequest,
    user: String,
    now: Now,
) -> Result<NewCredential, IssueRefused> {
    // The configuration is not taken without a secret where anybody may ask.
    let secret =
        credentials::minting(&issuer.secrets, now.unix.0, caller.tenant.as_deref()).ok_or(IssueRefused::NoMethod)?;
    if issuer.servers.is_empty() {
        return Err(IssueRefused::NoServers);
    }
    let longest = caller.max_ttl.unwrap_or(u64::MAX).min(issuer.max_ttl);
    let ttl = request.ttl.unwrap_or(issuer.config.ttl).min(longest);
    let grant = limits::combine(&caller.grant, &request.limits, now.unix.0).map_err(IssueRefused::BadRequest)?;
    // What the secret says of the tenant need not be said again.
    let tenant = caller.tenant.clone().filter(|tenant| secret.tenant.as_ref() != Some(tenant));
    let claims = Claims { grant, tenant, nonce: None };
    let minted = credentials::mint(secret, now.unix.0, &user, ttl, &claims).map_err(|refused| match refused {
        MintRefused::Separator => IssueRefused::BadUser("a user id must not contain ~"),
        MintRefused::TooLong => {
            IssueRefused::BadUser("the user id is too long: a username, limits included, has at most 508 bytes")
        }
        MintRefused::ClaimsTooLong => {
            IssueRefused::BadRequest("the limits are too long for a credential; name fewer prefixes")
        }
        MintRefused::NotRead(_) => IssueRefused::BadRequest(
            "credentials can't carry these limits: add them to the claims of the secret in its table of auth.secrets",
        ),
    })?;
    if issuer.users.contains(minted.username.as_str()) {
        return Err(IssueRefused::BadUser("a static user has the same username; ask again in a second"));
    }
    let tenant = claims.tenant.clone().or_else(|| secret.tenant.clone());
    Ok(NewCredential { minted, user, ttl, claims, tenant })
}

/// Who asks; a token whose key is not known yet waits a little for newer ones.
async fn identify(issuer: &Issuer, head: &RequestHead<'_>, now: Now) -> Result<Caller, IssueRefused> {
    let with = |keys: &[_]| access::identify(&issuer.config, keys, head.peer, head.headers, head.query, now.unix.0);
    let keys = issuer.token_keys.now();
    let first = with(&keys);
    if !matches!(first, Err(IssueRefused::BadToken(_))) || !access::needs_newer_keys(&keys, head.headers, head.query) {
        return first;
    }
    let is_renewed = issuer.token_keys.renewed().await;
    if issuer.token_keys.are_missing() {
        return Err(IssueRefused::NoTokenKeys);
    }
    if is_renewed { with(&issuer.token_keys.now()) } else { first }
}

/// A request without its body.
struct RequestHead<'a> {
    shape: Shape,
    exposure: &'a Exposure,
    peer: Peer,
    method: &'a Method,
    path: &'a str,
    /// Of the credential that is to be revoked.
    username: &'a str,
    query: &'a [(String, String)],
    headers: &'a HeaderMap,
}

impl Exposure {
    fn answers(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Private(hosts) => hosts.check(headers).is_some(),
            Self::Public => true,
        }
    }
}

impl Shape {
    /// The shape that `format` makes of ours; and the draft's word `service` must be right where it is.
    fn for_request(self, request: &CredentialRequest) -> Result<Self, IssueRefused> {
        match request.service.as_deref() {
            Some("turn") => {}
            None if !self.needs_service() => {}
            Some(_) | None => return Err(IssueRefused::BadRequest("service must be turn")),
        }
        match (self, request.format.as_deref()) {
            (Self::All, Some("xep0215")) => Ok(Self::Xep0215),
            (Self::All, Some("xep0215-xml")) => Ok(Self::Xep0215Xml),
            (Self::All, Some(_)) => Err(IssueRefused::BadRequest("format must be xep0215 or xep0215-xml")),
            (_, Some(_) | None) => Ok(self),
        }
    }
}

/// Where each shape is found, `{id}` for anything.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|(path, _)| *path)
}

/// Each of [`paths`] with its shape.
pub fn routes() -> impl Iterator<Item = (&'static str, Shape)> {
    ROUTES.into_iter()
}

/// The routes of the endpoint for listeners of one exposure.
pub fn router(rest: &Arc<Rest>, exposure: &Exposure) -> Router {
    let mut router = Router::new();
    for (path, shape) in ROUTES {
        let handler = move |State((rest, exposure)): State<(Arc<Rest>, Exposure)>, request: Request| async move {
            // Every listener of ours says who is there.
            let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Unix(None));
            rest.answer(shape, &exposure, peer, request).await
        };
        router = router.route(path, any(handler));
    }
    router.with_state((Arc::clone(rest), exposure.clone()))
}

/// Servers and a credential as XEP-0215 services, for those who answer XMPP clients themselves.
#[must_use]
pub fn xep0215(uris: &[TurnUri], username: &str, password: &str, expires_at: u64) -> String {
    let issued = IssuedCredential {
        username,
        password,
        ttl: 0,
        now: 0,
        expires_at,
        realm: "",
        uris,
        tenant: None,
        limits: &Grant::default(),
        label: "",
        account: "",
    };
    Shape::Xep0215Xml.render(&issued).2
}

/// The URIs of a running relay's listeners.
#[must_use]
pub fn uris_of(running: &Running, config: &Config) -> ServerUris {
    uris::of_listeners(running.listeners_of_clients(), &uris::names(config), |ip| told(running, config, ip))
}

/// What clients are told for a local address, or for the unspecified one of a family.
pub(super) fn told(running: &Running, config: &Config, ip: IpAddr) -> Option<IpAddr> {
    if ip.is_unspecified() {
        running.relay_addresses().map(|address| address.advertised).find(|told| told.is_ipv4() == ip.is_ipv4())
    } else {
        config.relay.external.advertised(ip)
    }
}

/// The user of the credential: the verified one, else the one that the caller names, else none.
fn user_of(caller: &Caller, request: &CredentialRequest) -> Result<Option<String>, IssueRefused> {
    if let (Some(known), Some(named)) = (&caller.user, &request.user)
        && known != named
    {
        return Err(IssueRefused::BadUser("this user can't ask for another user's credentials"));
    }
    let user = caller.user.as_ref().or(request.user.as_ref());
    user.map(|user| request::check_user(user)).transpose()?;
    Ok(user.cloned())
}

fn random_id() -> Result<String, IssueRefused> {
    let mut bytes = [0; RANDOM_ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| IssueRefused::NoRandom)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response {
    let head = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "Authorization"),
    ];
    let mut answer = (status, head, text).into_response();
    if content_type.is_empty() {
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    answer
}

/// The origin of a page that may read the answer.
fn allowed_origin(config: &IssuingConfig, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    config.cors.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn add_cors(head: &mut HeaderMap, config: &IssuingConfig, origin: Option<HeaderValue>) {
    if config.cors.is_empty() {
        return;
    }
    // Another origin gets another answer, whether this one is allowed or not.
    head.insert(header::VARY, HeaderValue::from_static("Authorization, Origin"));
    let Some(origin) = origin else { return };
    head.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if config.identity_header.is_some() {
        // The proxy knows its users by a cookie, which browsers leave at home otherwise.
        head.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}
