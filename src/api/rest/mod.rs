//! Credentials over HTTP, in the shape of whoever asks.
//!
//! The order of a request: method, Host, origin, who asks ([`access`]), what is asked ([`wanted`]), how often
//! ([`rate`]), mint, answer ([`shape`]). Nothing here logs a key, a password or a request's query.

mod access;
pub mod counts;
pub(crate) mod limits;
mod own_key;
mod rate;
pub mod refused;
pub mod shape;
mod token_keys;
mod wanted;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use hashbrown::HashSet;

use self::access::Caller;
use self::counts::Counts;
use self::rate::Rates;
use self::refused::IssueRefused;
use self::shape::{Issued, Shape};
use self::token_keys::TokenKeys;
use self::wanted::Wanted;
use super::Peer;
use super::host::AllowedHosts;
use super::uris::{self, Uri};
use crate::config::Config;
use crate::config::issuing::IssuingConfig;
use crate::credentials::claims::{Claims, Grant};
use crate::credentials::{self, MintRefused, SharedSecret};
use crate::net::Running;
use crate::protocol::revocation::Party;
use crate::protocol::time::{Now, UnixSeconds};

/// The longest body: the longest username, escaped, and little else.
const BODY_BYTES_MAX: usize = 8 * 1024;

/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(3);

/// A user id of its own for each credential whose caller names nobody: nothing about a person goes over the wire.
const RANDOM_ID_BYTES: usize = 12;

/// How long a browser may remember which origins may ask, in seconds.
const PREFLIGHT_SECONDS: &str = "600";

/// Where each shape is found.
const ROUTES: [(&str, Shape); 13] = [
    ("/v1/credentials", Shape::All),
    ("/", Shape::Draft),
    ("/turn", Shape::Draft),
    ("/turn/credentials", Shape::DraftOfNextcloud),
    ("/ice", Shape::Ice),
    ("/_matrix/client/v3/voip/turnServer", Shape::Matrix),
    ("/_matrix/client/r0/voip/turnServer", Shape::Matrix),
    ("/v1/turn/keys/{id}/credentials/generate-ice-servers", Shape::Cloudflare),
    ("/v1/turn/keys/{id}/credentials/generate", Shape::CloudflareOld),
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
    uris: Vec<Uri>,
    token_keys: TokenKeys,
}

impl Issuer {
    fn new(config: &Config, uris: Vec<Uri>, before: &TokenKeys, counts: &Counts) -> Self {
        let source = config.http.issuing.jwt.as_ref().map(|jwt| &jwt.source);
        Self {
            config: config.http.issuing.clone(),
            realm: config.realm.clone(),
            secrets: config.auth.secrets.clone(),
            max_ttl: config.auth.max_ttl,
            users: names(config),
            uris: uris::few(uris),
            token_keys: TokenKeys::new(source, before, &counts.fetches),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "they become a set again: no order comes of it")]
fn names(config: &Config) -> HashSet<Box<str>> {
    config.auth.users.keys().cloned().collect()
}

/// The endpoint: one for all listeners, so that rates hold over all of them.
pub struct Rest {
    issuer: ArcSwap<Issuer>,
    rates: Rates,
    counts: Arc<Counts>,
    clock: fn() -> Now,
    is_revoked: OnceLock<IsRevoked>,
}

/// Whether the relay would refuse whoever gets this credential.
type IsRevoked = Box<dyn Fn(&Party<'_>, UnixSeconds) -> bool + Send + Sync>;

/// Through which listener a request came.
#[derive(Clone, Debug)]
pub enum Door {
    /// `http.listen`: only these Host names, since a page of another site can make its own name mean this machine.
    Private(AllowedHosts),
    /// `http.public`: any Host, since nothing is answered there without a key.
    Public,
}

impl Rest {
    /// For these URIs; `clock` is read once for each request. Keys that are fetched need a runtime around.
    #[must_use]
    pub fn new(config: &Config, uris: Vec<Uri>, counts: Arc<Counts>, clock: fn() -> Now) -> Self {
        let issuer = Issuer::new(config, uris, &TokenKeys::None, &counts);
        counts.know(issuer.config.keys.iter().map(|key| &*key.name));
        Self {
            issuer: ArcSwap::from_pointee(issuer),
            rates: Rates::default(),
            counts,
            clock,
            is_revoked: OnceLock::new(),
        }
    }

    /// Refuses those whom the relay shuts out, from now on.
    pub fn shut_out(&self, is_revoked: impl Fn(&Party<'_>, UnixSeconds) -> bool + Send + Sync + 'static) {
        // Told twice it is the same relay.
        let _ = self.is_revoked.set(Box::new(is_revoked));
    }

    /// Takes a new configuration over; requests under way end with the old one.
    pub fn reconfigure(&self, config: &Config, uris: Vec<Uri>) {
        self.counts.know(config.http.issuing.keys.iter().map(|key| &*key.name));
        let before = self.issuer.load_full();
        self.issuer.store(Arc::new(Issuer::new(config, uris, &before.token_keys, &self.counts)));
    }

    /// Checks everything, mints, and gives the answer with its head.
    async fn answer(&self, shape: Shape, door: &Door, peer: Peer, request: Request) -> Response {
        let issuer = self.issuer.load_full();
        let (parts, body) = request.into_parts();
        let (method, uri, headers) = (parts.method, parts.uri, parts.headers);
        let origin = allowed_origin(&issuer.config, &headers);
        if method == Method::OPTIONS {
            return self.preflight(shape, door, &issuer.config, &headers, origin);
        }
        let query: Vec<_> = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let asked = Asked { shape, door, peer, method: &method, path: uri.path(), query: &query, headers: &headers };
        let (status, content_type, text) = match self.issue(&issuer, &asked, body).await {
            Ok(answer) => answer,
            Err(refused) => {
                self.counts.refuse(&refused);
                let client = client_text(&issuer.config, peer, &headers);
                tracing::debug!(client, reason = refused.name(), "credential refused");
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

    /// What a browser asks before it lets a page of another origin ask.
    fn preflight(
        &self,
        shape: Shape,
        door: &Door,
        config: &IssuingConfig,
        headers: &HeaderMap,
        origin: Option<HeaderValue>,
    ) -> Response {
        let refused = if door.answers(headers) { IssueRefused::Origin } else { IssueRefused::Host };
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

    async fn issue(&self, issuer: &Issuer, asked: &Asked<'_>, body: Body) -> Result<shape::Answer, IssueRefused> {
        if !asked.shape.methods().split(", ").any(|method| method == asked.method.as_str()) {
            return Err(IssueRefused::Method);
        }
        if !asked.door.answers(asked.headers) {
            return Err(IssueRefused::Host);
        }
        let now = (self.clock)();
        if asked.shape == Shape::WellKnown {
            // Everybody who has a credential knows this.
            return Ok(shape::well_known(&issuer.realm, &issuer.uris));
        }
        if asked.shape == Shape::Metered
            && let Some(own) = own_key::find(asked.query, &issuer.secrets, now.unix.0, issuer.max_ttl)
        {
            return Ok(asked.shape.render(&Issued {
                username: &own.username,
                password: &own.password,
                ttl: own.expires_at.saturating_sub(now.unix.0),
                now: now.unix.0,
                expires_at: own.expires_at,
                realm: &issuer.realm,
                uris: &issuer.uris,
                tenant: None,
                limits: &Grant::default(),
                label: "",
                account: "",
            }));
        }
        let caller = identify(issuer, asked, now).await?;
        if caller.has_key_rate() {
            self.rates.take(&caller.name, None, issuer.config.per_key, now.ticks.0).map_err(IssueRefused::RateKey)?;
        }
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(IssueRefused::TooLarge);
        }
        let body = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, BODY_BYTES_MAX));
        let body = body.await.map_err(|_| IssueRefused::Slow)?.map_err(|_| IssueRefused::TooLarge)?;
        let wanted = Wanted::parse(asked.query, asked.headers, &body)?;
        let shape = asked.shape.as_asked(&wanted)?;
        let user = user_of(&caller, &wanted)?;
        if let Some(user) = &user {
            self.rates
                .take(&caller.name, Some(user), issuer.config.per_user, now.ticks.0)
                .map_err(IssueRefused::RateUser)?;
        }
        let user = match user {
            Some(user) => user,
            None => random_id()?,
        };
        // The configuration is not taken without a secret where anybody may ask.
        let secret = credentials::minting(&issuer.secrets, now.unix.0).ok_or(IssueRefused::NoMethod)?;
        if issuer.uris.is_empty() {
            return Err(IssueRefused::NoServers);
        }
        let longest = caller.max_ttl.unwrap_or(u64::MAX).min(issuer.max_ttl);
        let ttl = wanted.ttl.unwrap_or(issuer.config.ttl).min(longest);
        let grant = limits::combine(&caller.grant, &wanted.limits, now.unix.0).map_err(IssueRefused::BadRequest)?;
        // What the secret says of the tenant need not be said again.
        let tenant = caller.tenant.clone().filter(|tenant| secret.tenant.as_ref() != Some(tenant));
        let claims = Claims { grant, tenant, nonce: None };
        let minted = credentials::mint(secret, now.unix.0, &user, ttl, &claims);
        let minted = minted.map_err(|refused| {
            match refused {
                MintRefused::Separator => IssueRefused::BadUser("a user id must not contain ~"),
                MintRefused::TooLong => {
                    IssueRefused::BadUser("the user id is too long: a username, limits included, has at most 508 bytes")
                }
                MintRefused::ClaimsTooLong => {
                    IssueRefused::BadRequest("the limits are too long for a credential; name fewer prefixes")
                }
                MintRefused::NotRead(_) => IssueRefused::BadRequest(
                    "limits can't be put into credentials here: the secret that mints does not read these (claims in its table)",
                ),
            }
        })?;
        if issuer.users.contains(minted.username.as_str()) {
            return Err(IssueRefused::BadUser("a static user has this very username; ask again in a second"));
        }
        // As the relay will read it: what the credential says of the tenant goes before what the secret says.
        let tenant = claims.tenant.as_deref().or(secret.tenant.as_deref());
        let party = Party { username: &minted.username, user: &user, tenant };
        if self.is_revoked.get().is_some_and(|is_revoked| is_revoked(&party, now.unix)) {
            return Err(IssueRefused::Revoked);
        }
        self.counts.issue(&caller.name);
        tracing::info!(
            key = &*caller.name,
            user,
            username = minted.username,
            ttl,
            limits = limits::in_words(&claims),
            client = client_text(&issuer.config, asked.peer, asked.headers),
            "credential issued"
        );
        Ok(shape.render(&Issued {
            username: &minted.username,
            password: &minted.password,
            ttl,
            now: now.unix.0,
            expires_at: minted.expires_at,
            realm: &issuer.realm,
            uris: &issuer.uris,
            tenant: caller.tenant.as_deref(),
            limits: &claims.grant,
            label: wanted.label.as_deref().unwrap_or_default(),
            account: asked.path.split('/').nth(3).unwrap_or_default(),
        }))
    }
}

/// Who asks; a token whose key is not known yet waits a little for newer ones.
async fn identify(issuer: &Issuer, asked: &Asked<'_>, now: Now) -> Result<Caller, IssueRefused> {
    let with = |keys: &[_]| access::identify(&issuer.config, keys, asked.peer, asked.headers, asked.query, now.unix.0);
    let keys = issuer.token_keys.now();
    let first = with(&keys);
    if !matches!(first, Err(IssueRefused::BadToken(_))) || !access::needs_newer_keys(&keys, asked.headers, asked.query)
    {
        return first;
    }
    let is_renewed = issuer.token_keys.renewed().await;
    if issuer.token_keys.are_missing() {
        return Err(IssueRefused::NoTokenKeys);
    }
    if is_renewed { with(&issuer.token_keys.now()) } else { first }
}

/// A request without its body.
struct Asked<'a> {
    shape: Shape,
    door: &'a Door,
    peer: Peer,
    method: &'a Method,
    path: &'a str,
    query: &'a [(String, String)],
    headers: &'a HeaderMap,
}

impl Door {
    fn answers(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Private(hosts) => hosts.check(headers).is_some(),
            Self::Public => true,
        }
    }
}

impl Shape {
    /// The shape that `format` makes of ours; and the draft's word `service` must be right where it is.
    fn as_asked(self, wanted: &Wanted) -> Result<Self, IssueRefused> {
        match wanted.service.as_deref() {
            Some("turn") => {}
            None if !self.needs_service() => {}
            Some(_) | None => return Err(IssueRefused::BadRequest("service must be turn")),
        }
        match (self, wanted.format.as_deref()) {
            (Self::All, Some("xep0215")) => Ok(Self::Xep0215),
            (Self::All, Some("xep0215-xml")) => Ok(Self::Xep0215Xml),
            (Self::All, Some(_)) => Err(IssueRefused::BadRequest("format must be xep0215 or xep0215-xml")),
            (_, Some(_) | None) => Ok(self),
        }
    }
}

/// The routes of the endpoint behind one door.
pub fn router(rest: &Arc<Rest>, door: &Door) -> Router {
    let mut router = Router::new();
    for (path, shape) in ROUTES {
        let handler = move |State((rest, door)): State<(Arc<Rest>, Door)>, request: Request| async move {
            // Every listener of ours says who is there.
            let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Unix(None));
            rest.answer(shape, &door, peer, request).await
        };
        router = router.route(path, any(handler));
    }
    router.with_state((Arc::clone(rest), door.clone()))
}

/// The URIs of a running relay's listeners.
#[must_use]
pub fn uris_of(running: &Running, config: &Config) -> Vec<Uri> {
    uris::of_listeners(running.listeners(), &uris::names(config), |ip| {
        if ip.is_unspecified() {
            running.relay_addresses().map(|address| address.advertised).find(|told| told.is_ipv4() == ip.is_ipv4())
        } else {
            Some(config.relay.external.advertised(ip))
        }
    })
}

/// Whom the credential is for: who is vouched for, else whom the caller names, else nobody.
fn user_of(caller: &Caller, wanted: &Wanted) -> Result<Option<String>, IssueRefused> {
    if let (Some(known), Some(named)) = (&caller.user, &wanted.user)
        && known != named
    {
        return Err(IssueRefused::BadUser("this user may ask for credentials in no other name"));
    }
    let user = caller.user.as_ref().or(wanted.user.as_ref());
    user.map(|user| wanted::check_user(user)).transpose()?;
    Ok(user.cloned())
}

fn random_id() -> Result<String, IssueRefused> {
    let mut bytes = [0; RANDOM_ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| IssueRefused::NoRandom)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The client's address for the log.
fn client_text(config: &IssuingConfig, peer: Peer, headers: &HeaderMap) -> String {
    match (access::client_ip(config, peer, headers), peer) {
        (Some(ip), Peer::Tcp(_) | Peer::Unix(_)) => ip.to_string(),
        (None, Peer::Unix(Some(uid))) => format!("unix:{uid}"),
        (None, Peer::Unix(None) | Peer::Tcp(_)) => "unix".to_owned(),
    }
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response {
    let head = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "Authorization"),
    ];
    (status, head, text).into_response()
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
