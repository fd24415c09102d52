//! The admin API: look at sessions and refusals, end sessions, revoke, set limits, forgive, reload, drain, upgrade, give out credentials for
//! a connectivity test, and a page for people.
//!
//! On `http.listen` alone. Each call is checked in this order: Host, the caller, method, content type, body; so a
//! caller without rights learns nothing else. What it does is done by others: `net::Running`, `ops::revocations`, `ops::limits`, `ops::refusals`, and the
//! loop in `run`, where reloads and draining stand in one line with signals.

mod access;
mod limits;
mod page;
pub mod refused;
mod sessions;
mod status;
mod test_credential;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::access::{AdminAccess, Operator};
use self::refused::AdminRefused;
use self::sessions::{ForgiveRequest, SessionsQuery, SubjectRequest};
use self::test_credential::{TestCredentialRequest, TestCredentials};
use super::Peer;
use super::failed_logins::{self, FailedLogins};
use super::host::AllowedHosts;
use super::revoker::Revoker;
use super::serve::LONG_PATH;
use super::strict_json;
use crate::acme::Acme;
use crate::calendar::rfc3339;
use crate::config::Config;
use crate::config::checked::LogLevel;
use crate::net::{Cursor, Running};
use crate::ops::alternates::Alternates;
use crate::ops::command::{Command, Commands, UpgradeRequest};
use crate::ops::limits::LimitStore;
use crate::ops::log::Level;
use crate::ops::refusals::Refusals;
use crate::ops::revocations::NotRevoked;
use crate::ops::status::Status;
use crate::ops::usage::UsageMetrics;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::border::Selector;
use crate::protocol::network::Network;
use crate::protocol::reason::EndReason;
use crate::time::Now;

/// The longest body: a user of a tenant, escaped, and little else.
const BODY_BYTES_MAX: usize = 8 * 1024;

/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(3);

/// Refusals in one answer by default, and at most.
const REFUSALS: usize = 50;
const REFUSALS_MAX: usize = 1000;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AdminCall {
    Sessions,
    Session,
    Refusals,
    Revocations,
    Limits,
    Status,
    Kick,
    Revoke,
    SetLimits,
    UnsetLimits,
    Forgive,
    Reload,
    LogLevel,
    Drain,
    Upgrade,
    TestCredential,
}

const ROUTES: [(&str, AdminCall); 16] = [
    ("/v1/sessions", AdminCall::Sessions),
    ("/v1/sessions/{session}", AdminCall::Session),
    ("/v1/refusals", AdminCall::Refusals),
    ("/v1/revocations", AdminCall::Revocations),
    ("/v1/limits", AdminCall::Limits),
    ("/v1/status", AdminCall::Status),
    ("/v1/kick", AdminCall::Kick),
    ("/v1/revoke", AdminCall::Revoke),
    ("/v1/limits/set", AdminCall::SetLimits),
    ("/v1/limits/unset", AdminCall::UnsetLimits),
    ("/v1/forgive", AdminCall::Forgive),
    ("/v1/reload", AdminCall::Reload),
    ("/v1/log-level", AdminCall::LogLevel),
    ("/v1/drain", AdminCall::Drain),
    (LONG_PATH, AdminCall::Upgrade),
    ("/v1/test-credential", AdminCall::TestCredential),
];

impl AdminCall {
    const fn method(self) -> &'static str {
        match self {
            Self::Sessions | Self::Session | Self::Refusals | Self::Revocations | Self::Limits | Self::Status => "GET",
            Self::Kick
            | Self::Revoke
            | Self::SetLimits
            | Self::UnsetLimits
            | Self::Forgive
            | Self::Reload
            | Self::LogLevel
            | Self::Drain
            | Self::Upgrade
            | Self::TestCredential => "POST",
        }
    }
}

/// What the API is about.
pub struct AdminParts {
    /// The relay.
    pub running: Arc<Running>,
    /// Where its life stands.
    pub status: Arc<Status>,
    /// Usage records, if any are kept.
    pub usage: Option<UsageMetrics>,
    /// Who was refused lately.
    pub refusals: Arc<Refusals>,
    /// Certificates that the server gets itself.
    pub acme: Arc<Acme>,
    /// The pool of `turn.alternates`.
    pub alternates: Arc<Alternates>,
    /// Who is shut out, and how more are.
    pub revoker: Arc<Revoker>,
    /// Limits that are set at run time.
    pub limits: Arc<LimitStore>,
    /// What is done beside the signals.
    pub commands: Commands,
    /// The log's level.
    pub level: Level,
    /// The clock.
    pub clock: fn() -> Now,
}

/// What a reload may change, swapped whole.
struct AdminSettings {
    access: AdminAccess,
    max_ttl: u64,
    test_credentials: TestCredentials,
}

/// The API.
pub struct Admin {
    parts: AdminParts,
    settings: ArcSwap<AdminSettings>,
    hosts: AllowedHosts,
    failed: FailedLogins,
    /// The server's own user.
    own: u32,
    /// The server's own realm.
    realm: Box<str>,
    started: Now,
}

impl Admin {
    /// For this configuration; `hosts` are the Host names that are answered. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(config: &Config, hosts: AllowedHosts, parts: AdminParts) -> Self {
        let started = (parts.clock)();
        let own = own_user();
        Self {
            settings: ArcSwap::from_pointee(AdminSettings::new(config, own, &parts.running)),
            parts,
            hosts,
            failed: FailedLogins::default(),
            own,
            realm: config.realm.clone(),
            started,
        }
    }

    /// Takes a new configuration over.
    pub fn reconfigure(&self, config: &Config) {
        self.settings.store(Arc::new(AdminSettings::new(config, self.own, &self.parts.running)));
    }

    async fn answer(&self, call: AdminCall, peer: Peer, request: Request) -> Result<Value, AdminRefused> {
        let (parts, body) = request.into_parts();
        if self.hosts.check(&parts.headers).is_none() {
            return Err(AdminRefused::Host);
        }
        let settings = self.settings.load_full();
        let operator = if call == AdminCall::Status {
            settings.access.identify_reader(peer, &parts.headers)
        } else {
            settings.access.identify(peer, &parts.headers)
        };
        let operator = operator.map_err(|refused| self.charge(refused, peer))?;
        if parts.method.as_str() != call.method() {
            return Err(AdminRefused::Method(call.method()));
        }
        if call != AdminCall::Status {
            self.check_serves()?;
        }
        match call {
            AdminCall::Sessions => self.sessions(&SessionsQuery::parse(&parts.uri)?).await,
            AdminCall::Session => self.session(parts.uri.path().rsplit('/').next().unwrap_or_default()).await,
            AdminCall::Refusals => self.refusals(&parts.uri),
            AdminCall::Revocations => Ok(self.revocations()),
            AdminCall::Limits => limits::list(&self.parts.limits, &parts.uri),
            AdminCall::Status => Ok(self.status()),
            AdminCall::Kick => self.kick(operator, self.read(&parts.headers, body).await?).await,
            AdminCall::Revoke => self.revoke(operator, self.read(&parts.headers, body).await?, settings.max_ttl).await,
            AdminCall::SetLimits => {
                let wanted = self.read(&parts.headers, body).await?;
                limits::set(&self.parts.limits, operator, wanted, (self.parts.clock)().unix).await
            }
            AdminCall::UnsetLimits => {
                let wanted = self.read(&parts.headers, body).await?;
                limits::unset(&self.parts.limits, operator, wanted, (self.parts.clock)().unix).await
            }
            AdminCall::Forgive => self.forgive(operator, &self.read(&parts.headers, body).await?),
            AdminCall::Reload => {
                let EmptyRequest {} = self.read(&parts.headers, body).await?;
                self.reload(operator).await
            }
            AdminCall::LogLevel => {
                let wanted: LogLevelRequest = self.read(&parts.headers, body).await?;
                self.log_level(operator, &wanted.level)
            }
            AdminCall::Drain => {
                let EmptyRequest {} = self.read(&parts.headers, body).await?;
                self.drain(operator).await
            }
            AdminCall::Upgrade => self.upgrade(operator, self.read(&parts.headers, body).await?).await,
            AdminCall::TestCredential => {
                let wanted = self.read(&parts.headers, body).await?;
                self.test_credential(operator, &settings.test_credentials, &wanted)
            }
        }
    }

    /// Whether this process has the sessions.
    fn check_serves(&self) -> Result<(), AdminRefused> {
        if self.parts.running.is_handed_over() {
            return Err(AdminRefused::Busy(
                "a new process has taken over and must prove itself for some seconds: ask again then".into(),
            ));
        }
        Ok(())
    }

    /// The JSON in a body; while it came this process may have handed the sessions over.
    async fn read<T: DeserializeOwned>(&self, headers: &HeaderMap, body: Body) -> Result<T, AdminRefused> {
        let read = read(headers, body).await?;
        self.check_serves()?;
        Ok(read)
    }

    /// A wrong token is charged to where it comes from, and is no ordinary failure any more if there are many.
    fn charge(&self, refused: AdminRefused, peer: Peer) -> AdminRefused {
        let client = match peer {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix(_) => None,
        };
        match failed_logins::source(client, peer).filter(|_| refused == AdminRefused::WrongToken) {
            Some(source) => match self.failed.charge(source, (self.parts.clock)().ticks.0) {
                Ok(()) => refused,
                Err(seconds) => AdminRefused::RateFailures(seconds),
            },
            None => refused,
        }
    }

    async fn sessions(&self, query: &SessionsQuery) -> Result<Value, AdminRefused> {
        let mut found = Vec::new();
        let (mut after_last, mut more) = (query.after, false);
        self.walk(query.after, |session, after| {
            if !query.includes(&session) {
                return true;
            }
            // One more than wanted tells that there are more; who goes on sees it first.
            more = found.len() >= query.limit;
            if !more {
                found.push(sessions::show(&session, &self.realm));
                after_last = after;
            }
            !more
        })
        .await?;
        Ok(json!({ "sessions": found, "more": more, "next": more.then(|| after_last.to_string()) }))
    }

    async fn session(&self, name: &str) -> Result<Value, AdminRefused> {
        let wanted = sessions::session_id(name);
        let mut found = None;
        if wanted.is_some() {
            self.walk(Cursor::default(), |session, _| {
                if Some(session.session) == wanted {
                    found = Some(sessions::show(&session, &self.realm));
                }
                found.is_none()
            })
            .await?;
        }
        found
            .ok_or(AdminRefused::NotFound("there is no live session with this name; the log has the ended ones".into()))
    }

    async fn walk(&self, from: Cursor, see: impl FnMut(SessionRecord, Cursor) -> bool) -> Result<(), AdminRefused> {
        self.parts.running.walk_sessions(from, see).await.map_err(|worker| {
            AdminRefused::Busy(format!("worker {worker} does not answer; if this lasts, it is stuck").into())
        })
    }

    fn refusals(&self, uri: &axum::http::Uri) -> Result<Value, AdminRefused> {
        let (mut of, mut limit) = (None, REFUSALS);
        for (name, value) in sessions::parameters(uri)? {
            match &*name {
                "of" => of = Some(value),
                "limit" => limit = sessions::limit(&value, REFUSALS_MAX)?,
                _ => return Err(sessions::unknown(&name, "of and limit")),
            }
        }
        let mut found = self.parts.refusals.find(of.as_deref(), limit);
        limits::note_refusals(&self.parts.limits, &mut found.refusals);
        // Those of an address, or of where a user was refused.
        let prefixes: Option<Vec<IpNet>> = of.map(|of| match sessions::prefix(&of) {
            Some(prefix) => vec![prefix],
            None => found.refusals.iter().filter_map(|refusal| sessions::prefix(&refusal.client)).collect(),
        });
        let mut answer = json!(found);
        answer["silenced"] = self.silenced(prefixes.as_deref(), limit);
        Ok(answer)
    }

    /// The networks whose wrong passwords and user names get no answer.
    fn silenced(&self, of: Option<&[IpNet]>, limit: usize) -> Value {
        let now = (self.parts.clock)().unix.0;
        let is_meant = |network: Network| of.is_none_or(|of| of.iter().any(|prefix| network.meets(prefix)));
        let meant = self.parts.running.silenced().into_iter().filter(|of| is_meant(of.network)).take(limit);
        let rows = meant.map(|of| {
            json!({
                "network": of.network.to_string(),
                "until": rfc3339(now + of.remaining.div_ceil(1000)),
                "unanswered": of.unanswered,
            })
        });
        json!(rows.collect::<Vec<_>>())
    }

    fn revocations(&self) -> Value {
        let store = self.parts.revoker.store();
        let all = store.list((self.parts.clock)());
        let entries = all.iter().map(|(whose, until)| {
            let mut entry = sessions::show_whose(whose);
            entry.insert("until".to_owned(), json!(rfc3339(until.0)));
            Value::Object(entry)
        });
        json!({ "revocations": entries.collect::<Vec<_>>(), "file": store.file() })
    }

    async fn kick(&self, by: Operator, meant: SubjectRequest) -> Result<Value, AdminRefused> {
        let which = meant.selector()?;
        let ended = self.parts.running.close(&which, EndReason::Kicked).await;
        let subject = match &which {
            Selector::Session(session) => json!({ "session": session.to_string() }),
            Selector::Subject(whose) => Value::Object(sessions::show_whose(whose)),
            Selector::LinkLocalClients => json!("link-local clients"),
            Selector::DualAllocations => json!("allocations with two addresses"),
            Selector::MobileAllocations => json!("allocations of clients that may change their network"),
            Selector::Sha256Keys => json!("allocations of clients that use SHA-256"),
            Selector::OtherRealms => json!("allocations of clients of other realms"),
            Selector::TcpAllocations => json!("TCP allocations"),
        };
        tracing::info!(%by, %subject, ended, "sessions ended by an operator");
        if ended == 0 && matches!(which, Selector::Session(_)) {
            return Err(AdminRefused::NotFound(
                "there is no live session with this name; the log has the ended ones".into(),
            ));
        }
        Ok(json!({ "ended": ended }))
    }

    async fn revoke(&self, by: Operator, meant: SubjectRequest, max_ttl: u64) -> Result<Value, AdminRefused> {
        let (whose, undo) = meant.revocation()?;
        let subject = Value::Object(sessions::show_whose(&whose));
        let revoker = &self.parts.revoker;
        let is_kept = revoker.store().file().is_some();
        if undo {
            let done = revoker.undo(whose).await;
            tracing::info!(%by, %subject, is_saved = done.is_ok() && is_kept, "revocation undone by an operator");
            return match done {
                Ok(true) => Ok(json!({ "undone": true })),
                Ok(false) => {
                    let what = "no such revocation; `throughway revoke --list` shows all of them";
                    Err(AdminRefused::NotFound(what.into()))
                }
                Err(error) => Err(not_revoked(&error)),
            };
        }
        let done = revoker.revoke(whose, max_ttl).await.map_err(|error| not_revoked(&error))?;
        tracing::info!(%by, %subject, ended = done.ended, is_saved = done.saved.is_ok() && is_kept, "revoked by an operator");
        done.saved.map_err(|error| not_revoked(&error))?;
        let until = done.until.map(|until| rfc3339(until.0));
        Ok(json!({ "until": until, "ended": done.ended, "file": revoker.store().file() }))
    }

    fn forgive(&self, by: Operator, meant: &ForgiveRequest) -> Result<Value, AdminRefused> {
        let networks: Vec<String> =
            self.parts.running.forgive(&meant.prefix()?).iter().map(ToString::to_string).collect();
        tracing::info!(%by, of = meant.network, networks = networks.len(), "failed credentials forgiven by an operator");
        if networks.is_empty() {
            let what = "no network there has failed credentials; `throughway sessions --refused ADDRESS` shows those that are silenced";
            return Err(AdminRefused::NotFound(what.into()));
        }
        Ok(json!({ "forgiven": networks }))
    }

    async fn reload(&self, by: Operator) -> Result<Value, AdminRefused> {
        tracing::info!(%by, "reload asked for by an operator");
        match self.parts.commands.ask(Command::Reload).await {
            Some(Ok(done)) => Ok(json!({ "changed": done.changed, "needs_restart": done.needs_restart })),
            Some(Err(error)) => Err(AdminRefused::BadConfig(error)),
            None => Err(stopping()),
        }
    }

    fn log_level(&self, by: Operator, wanted: &str) -> Result<Value, AdminRefused> {
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
        let Some(level) = levels.into_iter().find(|level| level.name() == wanted) else {
            return Err(AdminRefused::BadRequest("level must be error, warn, info, debug or trace".into()));
        };
        let was = self.parts.level.get();
        self.parts.level.set(level);
        tracing::info!(%by, level = level.name(), was, "log level set by an operator, until the next reload");
        Ok(json!({ "level": level.name(), "was": was }))
    }

    async fn drain(&self, by: Operator) -> Result<Value, AdminRefused> {
        tracing::info!(%by, "draining asked for by an operator");
        let begun = self.parts.commands.ask(Command::Drain).await.ok_or_else(stopping)?;
        Ok(json!({
            "draining": true,
            "was_draining": begun.is_already_under_way,
            "sessions": begun.sessions,
            "ends_in_s": begun.ends_in_s,
        }))
    }

    /// The answer tells what became of it, also if it failed: that is not the request's fault.
    async fn upgrade(&self, by: Operator, request: UpgradeRequest) -> Result<Value, AdminRefused> {
        let UpgradeRequest { check, drop_unknown } = request;
        tracing::info!(%by, check, drop_unknown, "upgrade asked for by an operator");
        let report = self.parts.commands.ask(|answer| Command::Upgrade(request, answer)).await;
        Ok(json!(report.ok_or_else(stopping)?))
    }

    /// For the connectivity test of an operator's own browser, or for the link that a user gets.
    fn test_credential(
        &self,
        by: Operator,
        of: &TestCredentials,
        wanted: &TestCredentialRequest,
    ) -> Result<Value, AdminRefused> {
        let made = of.mint(wanted, (self.parts.clock)().unix, test_credential::fresh_user_id()?)?;
        tracing::info!(%by, user = made.user, ttl = made.ttl, "credential for a connectivity test issued");
        Ok(made.answer)
    }
}

impl AdminSettings {
    fn new(config: &Config, own: u32, running: &Running) -> Self {
        Self {
            access: AdminAccess::new(&config.admin, own),
            max_ttl: config.auth.max_ttl,
            test_credentials: TestCredentials::new(config, running),
        }
    }
}

/// A body that says nothing: `{}` or none.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct EmptyRequest {}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct LogLevelRequest {
    #[serde(default)]
    level: String,
}

fn stopping() -> AdminRefused {
    AdminRefused::Busy("the server is about to stop, or has too much to do; ask again".into())
}

fn not_revoked(error: &NotRevoked) -> AdminRefused {
    match error {
        NotRevoked::Full => AdminRefused::Full(error.to_string()),
        NotRevoked::NotSaved(_) => AdminRefused::NotSaved(error.to_string()),
    }
}

/// Which user this process runs as, as the kernel tells those at the other end of a unix socket.
fn own_user() -> u32 {
    let both = tokio::net::UnixStream::pair().and_then(|(end, _other)| end.peer_cred());
    // Without an answer root remains.
    both.map_or(0, |process| process.uid())
}

/// The JSON in a body; none is an empty object.
async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, AdminRefused> {
    // A page of another site can make a browser send a form, but not this without asking first.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(AdminRefused::ContentType);
    }
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(AdminRefused::TooLarge);
    }
    let bytes = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes = bytes.map_err(|_| AdminRefused::Slow)?.map_err(|_| AdminRefused::TooLarge)?;
    parse_body(&bytes)
}

fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AdminRefused> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    let refused = |error: String| AdminRefused::BadRequest(format!("the body: {error}").into());
    let members = strict_json::object(bytes).map_err(|error| refused(error.to_string()))?;
    serde_json::from_value(Value::Object(members)).map_err(|error| refused(error.to_string()))
}

/// Reads a body as each call that takes one does, and throws it away: what is fuzzed.
///
/// # Errors
/// The last call's refusal, if all of them refuse it.
pub fn check_body(bytes: &[u8]) -> Result<(), AdminRefused> {
    let kick = parse_body::<SubjectRequest>(bytes).and_then(SubjectRequest::selector).map(drop);
    let revoke = parse_body::<SubjectRequest>(bytes).and_then(SubjectRequest::revocation).map(drop);
    let level = parse_body::<LogLevelRequest>(bytes).map(drop);
    let forgive = parse_body::<ForgiveRequest>(bytes).and_then(|meant| meant.prefix()).map(drop);
    let upgrade = parse_body::<UpgradeRequest>(bytes).map(drop);
    let test = parse_body::<TestCredentialRequest>(bytes).map(drop);
    let limits = limits::check_bodies(bytes);
    kick.or(revoke)
        .or(limits)
        .or(forgive)
        .or(level)
        .or(upgrade)
        .or(test)
        .or_else(|_| parse_body::<EmptyRequest>(bytes).map(drop))
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, head, body.to_string()).into_response()
}

/// Where the calls and the page are.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|(path, _)| *path).chain(["/status"])
}

/// Each path with its method, the files of the page among them.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(path, call)| (*path, call.method())).chain(page::paths().map(|path| (path, "GET")))
}

/// The calls and the page.
pub fn router(admin: &Arc<Admin>) -> Router {
    let mut router = Router::new();
    for (path, call) in ROUTES {
        let handler = move |State(admin): State<Arc<Admin>>, request: Request| async move {
            // Every listener of ours says who is there.
            let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Unix(None));
            match admin.answer(call, peer, request).await {
                Ok(body) => respond(StatusCode::OK, &body),
                Err(refused) => {
                    tracing::debug!(path, reason = refused.name(), "admin call refused");
                    refused.into_response()
                }
            }
        };
        router = router.route(path, any(handler));
    }
    router.merge(page::router()).with_state(Arc::clone(admin))
}

/// A page is for browsers, which come with GET.
fn is_get(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}
