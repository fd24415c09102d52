//! One order: account, proof of control over each name, certificate. The protocol's messages and signatures are a library's;
//! the requests go through [`crate::fetch`], which bounds them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, Response, header};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error, HttpClient, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};

use super::http01::{self, Tokens};
use super::store::Store;
use crate::clock;
use crate::config::acme::{AcmeConfig, Proof};
use crate::fetch::{Client, HttpRequest, Url};
use crate::tls::certificates::{Certificates, challenge};

/// For one request to the authority.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// No answer of an authority is longer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How often the authority is asked whether it is done, at first and later.
const ASK_FIRST: Duration = Duration::from_millis(500);
const ASK_TIME: Duration = Duration::from_secs(120);

/// After "too many" without a time, in seconds.
const RATE_LIMITED: u64 = 3_600;

/// Why there is no certificate.
#[derive(Debug)]
pub(super) struct OrderError {
    text: String,
    /// The authority does not want to be asked before, in seconds since 1970.
    pub(super) not_before: Option<u64>,
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for OrderError {
    fn from(text: String) -> Self {
        Self { text, not_before: None }
    }
}

impl From<&str> for OrderError {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What an order needs.
pub(super) struct Order<'a> {
    pub(super) config: &'a AcmeConfig,
    pub(super) store: &'a Store,
    pub(super) certificates: &'a Certificates,
    pub(super) tokens: &'a Arc<Tokens>,
}

impl Order<'_> {
    /// Gives the chain and its key in PEM.
    ///
    /// # Errors
    /// Says at which step it ended, and what the authority said.
    pub(super) async fn pair(&self) -> Result<String, OrderError> {
        let client = Client::new(self.config.authorities.as_ref(), REQUEST_TIME)?;
        let retry_after = Arc::new(AtomicU64::new(0));
        let http = AuthorityClient { client, retry_after: Arc::clone(&retry_after) };
        let pair = self.pair_over(http).await;
        pair.map_err(|mut error| {
            error.not_before = error.not_before.max(Some(retry_after.load(Ordering::Relaxed)).filter(|at| *at > 0));
            error
        })
    }

    async fn pair_over(&self, http: AuthorityClient) -> Result<String, OrderError> {
        let account = self.account(http).await?;
        let names: Vec<Identifier> = self.config.domains.iter().map(|name| Identifier::Dns(name.to_string())).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(at("the order"))?;
        // While it lives the authority finds its answers.
        let _answering = self.prove(&mut order).await?;
        self.wait_until_proved(&mut order).await?;
        let policy = policy(ASK_TIME);
        let key = order.finalize().await.map_err(at("the request for the certificate"))?;
        let chain = order.poll_certificate(&policy).await.map_err(at("the certificate"))?;
        Ok(format!("{}\n{key}", chain.trim_end()))
    }

    /// Waits until the authority has seen all proofs.
    async fn wait_until_proved(&self, order: &mut instant_acme::Order) -> Result<(), OrderError> {
        let mut last = None;
        // Some do not say of an order that one of its proofs has failed.
        for time in [ASK_TIME / 8, ASK_TIME] {
            let status = order.poll_ready(&policy(time)).await;
            if matches!(status, Ok(OrderStatus::Ready | OrderStatus::Valid)) {
                return Ok(());
            }
            if let Some(why) = why_invalid(order).await {
                return Err(why.into());
            }
            match status {
                Err(Error::Timeout(_)) => {}
                Err(error) => return Err(at("the proof")(error)),
                Ok(status) => last = Some(status),
            }
            if last.is_some() {
                break;
            }
        }
        let names = self.config.domains.join(", ");
        Err(match last {
            Some(_) => format!("the authority did not accept the proof for {names}, and does not say why"),
            None => format!("the authority has not looked at the proof for {names} within two minutes"),
        }
        .into())
    }

    /// The known account, or a new one.
    async fn account(&self, http: AuthorityClient) -> Result<Account, OrderError> {
        let builder = Account::builder_with_http(Box::new(http));
        if let Some(credentials) = self.store.account() {
            return builder.from_credentials(credentials).await.map_err(at("the account"));
        }
        let contact = self.config.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let created = builder.create(&new, self.config.directory.to_string(), None).await;
        let (account, credentials) = created.map_err(at("a new account"))?;
        self.store.write_account(credentials)?;
        Ok(account)
    }

    /// Puts the answers where the authority looks for them, and tells it so.
    async fn prove(&self, order: &mut instant_acme::Order) -> Result<Option<http01::Answering>, OrderError> {
        let (kind, name) = match self.config.proof {
            Proof::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            Proof::Http01(_) => (ChallengeType::Http01, "http-01"),
        };
        let answering = match self.config.proof {
            Proof::TlsAlpn01 => None,
            Proof::Http01(address) => match http01::listen(address, Arc::clone(self.tokens)).await {
                Ok(answering) => Some(answering),
                // One of ours, perhaps, which answers too.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && self.config.is_public_http(address) => {
                    None
                }
                Err(error) => {
                    return Err(format!(
                        "{address}, where the authority looks for the proof, can't be listened on: {error}; {}, or \
                         let a listener of throughway have port 443 (listen.auto), which needs no other port",
                        http01::remedy(&error)
                    )
                    .into());
                }
            },
        };
        let mut challenges = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(at("an authorization"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let domain = authorization.identifier().to_string();
            let mut asked = authorization.challenge(kind.clone()).ok_or_else(|| {
                format!("the authority offers no {name} for {domain}: choose another tls.acme.challenge")
            })?;
            let proof = asked.key_authorization();
            match self.config.proof {
                Proof::TlsAlpn01 => {
                    challenges.push((domain.clone(), challenge(&domain, proof.digest().as_ref())?));
                    self.certificates.present_challenges(challenges.clone());
                }
                Proof::Http01(_) => self.tokens.add(asked.token.clone(), proof.as_str().to_owned()),
            }
            asked.set_ready().await.map_err(at("a proof"))?;
        }
        Ok(answering)
    }
}

fn policy(time: Duration) -> RetryPolicy {
    RetryPolicy::new().initial_delay(ASK_FIRST).backoff(1.5).timeout(time)
}

/// What the authority says of a name that it could not prove.
async fn why_invalid(order: &mut instant_acme::Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let domain = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(error) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(format!("the authority could not prove {domain}: {}", one_line(&error.to_string())));
        }
        if state.status == AuthorizationStatus::Invalid {
            return Some(format!("the authority could not prove {domain}, and does not say why"));
        }
    }
    None
}

/// What others say is shown without line ends, and not at length.
fn one_line(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn at(step: &'static str) -> impl Fn(Error) -> OrderError {
    move |error| {
        let is_limited = matches!(&error, Error::Api(problem) if problem.r#type.as_deref().is_some_and(|of| of.ends_with(":rateLimited")));
        let not_before = is_limited.then(|| clock::unix_seconds().0 + RATE_LIMITED);
        OrderError { text: format!("{step}: {}", one_line(&error.to_string())), not_before }
    }
}

/// Sends the library's requests.
struct AuthorityClient {
    client: Client,
    /// The time of the last Retry-After that came with a refusal, in seconds since 1970.
    retry_after: Arc<AtomicU64>,
}

impl HttpClient for AuthorityClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, retry_after) = (self.client.clone(), Arc::clone(&self.retry_after));
        Box::pin(async move {
            let failed = |what: String| Error::Other(what.into());
            let (head, body) = request.into_parts();
            let url = Url::parse(&head.uri.to_string()).map_err(|error| failed(error.to_string()))?;
            if !url.is_https() {
                return Err(failed(format!("the authority names {url}, which is not https")));
            }
            let body = axum::body::to_bytes(axum::body::Body::new(body), ANSWER_BYTES_MAX);
            let body = body.await.map_err(|error| failed(error.to_string()))?.to_vec();
            let headers = head.headers.into_iter().filter_map(|(name, value)| Some((name?, value)));
            let headers = headers.filter(|(name, _)| *name != header::USER_AGENT).collect();
            let bytes_max = if head.method == Method::HEAD { 0 } else { ANSWER_BYTES_MAX };
            let sent = HttpRequest { method: head.method, headers, body, response_bytes_max: bytes_max };
            let answer = client.ask(&url, sent).await.map_err(|error| failed(format!("{url}: {error}")))?;
            if !answer.status.is_success() {
                let seconds =
                    answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
                if let Some(seconds) = seconds {
                    retry_after.store(clock::unix_seconds().0.saturating_add(seconds), Ordering::Relaxed);
                }
                if serde_json::from_slice::<serde_json::Value>(&answer.body).is_err() {
                    return Err(failed(format!("{url} answers {}", answer.status)));
                }
            }
            let mut response = Response::new(axum::body::Body::from(answer.body));
            (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
            Ok(BytesResponse::from(response))
        })
    }
}
