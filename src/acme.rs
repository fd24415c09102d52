//! Certificates by themselves: an account at a certification authority, orders, proofs of control, renewal (RFC 8555).
//!
//! One task per process, on the control runtime. What it gets is one file in the state directory, which `tls::watch` takes over
//! as any other file; until the first one is there a stand-in is presented. Whatever fails, the certificate in use stays.
//! Decision 0203.

mod http01;
mod order;
mod schedule;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::http01::{PATH as CHALLENGE_PATH, Tokens, router};
use self::order::Order;
use self::schedule::{Failures, due_at};
use self::store::{Refusal, Store};
use crate::clock;
use crate::config::acme::AcmeConfig;
use crate::ops::metrics::Text;
use crate::tls::certificates::Loaded;
use crate::tls::{Tls, provider, watch as files};

/// For a whole order: the authority asks us, and may have a queue.
const ORDER_TIME: Duration = Duration::from_secs(300);

/// How often the clock is looked at: it may jump, and a sleep does not see that.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Gives the certificates that are presented now.
type TlsOf = Box<dyn Fn() -> Option<Arc<Tls>> + Send + Sync>;

/// What an operator sees of it.
#[derive(Default)]
struct State {
    /// Names that are ordered; none if certificates are not asked for.
    domains: Vec<Box<str>>,
    /// When the next order is due, in seconds since 1970.
    next_at: Option<u64>,
    /// Why the last order failed; nothing after one that succeeded.
    error: Option<String>,
}

/// The certificates that the server asks for itself.
pub struct Acme {
    tls: TlsOf,
    config: watch::Sender<Option<AcmeConfig>>,
    tokens: Arc<Tokens>,
    state: Mutex<State>,
    obtained: AtomicU64,
    failed: AtomicU64,
}

impl Acme {
    /// Waits for a configuration; `tls` gives the certificates that are presented at that moment. Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn start(tls: impl Fn() -> Option<Arc<Tls>> + Send + Sync + 'static) -> Arc<Self> {
        let acme = Arc::new(Self {
            tls: Box::new(tls),
            config: watch::Sender::new(None),
            tokens: Arc::default(),
            state: Mutex::default(),
            obtained: AtomicU64::default(),
            failed: AtomicU64::default(),
        });
        tokio::spawn(Arc::clone(&acme).run());
        acme
    }

    /// Looks after the certificates of this configuration from now on.
    pub fn reconfigure(&self, config: Option<&AcmeConfig>) {
        self.config.send_if_modified(|known| {
            let is_new = known.as_ref() != config;
            if is_new {
                *known = config.cloned();
            }
            is_new
        });
    }

    /// What HTTP-01 asks for, for listeners of our own on its port.
    #[must_use]
    pub fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the status: nothing if no certificate is asked for.
    #[must_use]
    pub fn status(&self) -> Value {
        let state = self.state();
        if state.domains.is_empty() {
            return Value::Null;
        }
        json!({ "domains": state.domains, "next_order": state.next_at, "error": state.error })
    }

    /// For `/metrics`.
    pub fn publish(&self, text: &mut Text) {
        let results = [("obtained", &self.obtained), ("failed", &self.failed)];
        text.counter(
            "throughway_acme_orders_total",
            "Orders of certificates at the certification authority, by result",
        )
        .each("result", results.map(|(result, count)| (result, count.load(Ordering::Relaxed))));
        let is_failing = u64::from(self.state().error.is_some());
        text.gauge("throughway_acme_failing", "1 after an order of a certificate that failed, until one succeeds")
            .value(is_failing);
    }

    async fn run(self: Arc<Self>) {
        let mut configs = self.config.subscribe();
        loop {
            let config = configs.borrow_and_update().clone();
            *self.state() = State::default();
            let Some(config) = config else {
                if configs.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.state().domains.clone_from(&config.domains);
            tokio::select! {
                () = self.keep(&config) => {}
                _ = configs.changed() => self.withdraw_proofs(),
            }
        }
    }

    /// Asks the authority nothing more: another process does from now on.
    pub fn leave(&self) {
        self.reconfigure(None);
    }

    /// What no order under way needs is shown to no one.
    fn withdraw_proofs(&self) {
        self.tokens.clear();
        if let Some(tls) = (self.tls)() {
            tls.certificates.present_challenges(Vec::new());
        }
    }

    /// Orders a certificate whenever one is due; never comes back.
    async fn keep(&self, config: &AcmeConfig) {
        let store = Store::new(config);
        let mut failures = Failures::default();
        // What the authority told the process before this one holds for this one too.
        if let Some(Refusal { error, not_before }) = store.refusal(clock::unix_seconds().0) {
            failures.wait_until(not_before);
            self.state().error = Some(error);
        }
        // One that could not be written: it is not ordered again.
        let mut unwritten: Option<String> = None;
        loop {
            let now = clock::unix_seconds().0;
            let due_at = failures.retry_at().unwrap_or_else(|| due_at(config, store.certificate().as_ref(), now));
            self.state().next_at = Some(due_at);
            if due_at > now {
                tokio::time::sleep(LOOK_EVERY.min(Duration::from_secs(due_at - now))).await;
                continue;
            }
            match self.order(config, &store, &mut unwritten).await {
                Ok(names) => {
                    failures = Failures::default();
                    store.forget_refusal();
                    self.obtained.fetch_add(1, Ordering::Relaxed);
                    self.state().error = None;
                    tracing::info!(names, "certificate obtained");
                    self.present().await;
                }
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let retry_at = failures.add(clock::unix_seconds().0, error.not_before);
                    if error.not_before.is_some() {
                        store.write_refusal(&Refusal { error: error.to_string(), not_before: retry_at });
                    }
                    let retry_in_s = retry_at.saturating_sub(clock::unix_seconds().0);
                    tracing::warn!(
                        directory = %config.directory,
                        retry_in_s,
                        "no certificate could be obtained, the one in use stays: {error}"
                    );
                    self.state().error = Some(error.to_string());
                }
            }
        }
    }

    /// One order, from the account to the file; gives the names of the certificate.
    async fn order(
        &self,
        config: &AcmeConfig,
        store: &Store,
        unwritten: &mut Option<String>,
    ) -> Result<String, order::OrderError> {
        let pair = match unwritten.take() {
            Some(pair) => pair,
            None => {
                // Before the authority is asked, which counts orders.
                store.prepare()?;
                let tls = (self.tls)().ok_or("no listener needs a certificate")?;
                let order = Order { config, store, certificates: &tls.certificates, tokens: &self.tokens };
                let pair = tokio::time::timeout(ORDER_TIME, order.pair()).await;
                self.withdraw_proofs();
                pair.map_err(|_| format!("the order was not complete within {} s", ORDER_TIME.as_secs()))??
            }
        };
        let loaded = Loaded::parse(pair.as_bytes(), &provider())
            .map_err(|error| format!("what came is no certificate: {error}"))?;
        let missing: Vec<&str> =
            config.domains.iter().map(|name| &**name).filter(|name| !loaded.summary().is_for(name)).collect();
        if !missing.is_empty() {
            return Err(format!(
                "the certificate that came is for {}, and not for {}",
                loaded.names.join(", "),
                missing.join(", ")
            )
            .into());
        }
        if loaded.days_left() < 0 {
            return Err("the certificate that came has ended already; is the clock right?".to_owned().into());
        }
        if let Err(error) = store.write(&pair) {
            *unwritten = Some(pair);
            return Err(error.into());
        }
        Ok(loaded.names.join(", "))
    }

    /// From the next handshake on, without waiting for the next look at the files.
    async fn present(&self) {
        if let Some(tls) = (self.tls)() {
            let of = tls.certificates.files();
            files::renew(&tls.certificates, &of).await;
        }
    }
}
