//! The keys that check tokens: from a file, or fetched from the login and fetched again.
//!
//! No request ever fetches: one task does, when what it has is no longer fresh, or when a token names a key that is
//! not there, and then no more often than [`FetchTiming::asked_pause`]. While the login can't be reached the old keys stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, Method, StatusCode, header};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::counts::Fetches;
use crate::clock;
use crate::config::issuing::{JWKS_BYTES_MAX, KeySource, KeyUrl};
use crate::fetch::{Client, HttpRequest};
use crate::jwt::{self, TokenKey};

/// How often what is done.
#[derive(Clone, Copy, Debug)]
struct FetchTiming {
    /// A whole fetch takes no longer.
    patience: Duration,
    /// Keys are fresh for as long as the login says, but no shorter and no longer than this.
    fresh: (Duration, Duration),
    /// And so long where it says nothing.
    fresh_usual: Duration,
    /// The pause after a first failure doubles up to the second.
    retry: (Duration, Duration),
    /// Between the end of a fetch and one that a token asks for.
    asked_pause: Duration,
    /// How long a request waits for that.
    wait: Duration,
}

const TIMING: FetchTiming = FetchTiming {
    patience: Duration::from_secs(10),
    fresh: (Duration::from_secs(300), Duration::from_secs(86_400)),
    fresh_usual: Duration::from_secs(3600),
    retry: (Duration::from_secs(5), Duration::from_secs(300)),
    asked_pause: Duration::from_secs(30),
    wait: Duration::from_secs(3),
};

/// Where a token's key is looked for.
#[derive(Clone)]
pub(super) enum TokenKeys {
    /// No tokens are taken.
    None,
    /// Read with the configuration.
    File(Arc<Vec<TokenKey>>),
    /// Fetched.
    Fetched(Arc<Fetched>),
}

impl TokenKeys {
    /// The keys of a configuration; those that `before` fetched from the same place are kept.
    pub(super) fn new(source: Option<&KeySource>, before: &Self, counts: &Arc<Fetches>) -> Self {
        counts.is_on.store(matches!(source, Some(KeySource::Url(_))), Ordering::Relaxed);
        match (source, before) {
            (None, _) => Self::None,
            (Some(KeySource::File(keys)), _) => Self::File(Arc::new(keys.clone())),
            (Some(KeySource::Url(from)), Self::Fetched(fetched)) if fetched.from == *from => before.clone(),
            (Some(KeySource::Url(from)), _) => Self::Fetched(Fetched::start(from.clone(), TIMING, Arc::clone(counts))),
        }
    }

    /// What there is at this moment.
    pub(super) fn now(&self) -> Arc<Vec<TokenKey>> {
        match self {
            Self::None => Arc::default(),
            Self::File(keys) => Arc::clone(keys),
            Self::Fetched(fetched) => fetched.state.keys.load_full(),
        }
    }

    /// Waits a little for newer keys, if there may be some; whether it was worth it.
    pub(super) async fn renewed(&self) -> bool {
        match self {
            Self::None | Self::File(_) => false,
            Self::Fetched(fetched) => fetched.renewed().await,
        }
    }

    /// Whether they come from afar and have not come yet.
    pub(super) fn are_missing(&self) -> bool {
        match self {
            Self::None | Self::File(_) => false,
            Self::Fetched(fetched) => fetched.state.keys.load().is_empty(),
        }
    }
}

/// Keys that a task fetches.
pub(super) struct Fetched {
    from: KeyUrl,
    timing: FetchTiming,
    state: Arc<FetchState>,
    task: JoinHandle<()>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct FetchState {
    keys: ArcSwap<Vec<TokenKey>>,
    /// A token wants newer ones.
    asked: Notify,
    under_way: AtomicBool,
    /// When the last fetch ended, in milliseconds of the boot clock.
    ended_at: AtomicU64,
    /// Counts fetches that ended.
    ended: watch::Sender<u64>,
    counts: Arc<Fetches>,
}

impl Fetched {
    fn start(from: KeyUrl, timing: FetchTiming, counts: Arc<Fetches>) -> Arc<Self> {
        let state = Arc::new(FetchState {
            keys: ArcSwap::default(),
            asked: Notify::new(),
            under_way: AtomicBool::new(true),
            ended_at: AtomicU64::new(0),
            ended: watch::Sender::new(0),
            counts,
        });
        let task = tokio::spawn(follow(from.clone(), timing, Arc::clone(&state)));
        Arc::new(Self { from, timing, state, task })
    }

    async fn renewed(&self) -> bool {
        let state = &self.state;
        let mut ended = state.ended.subscribe();
        if !state.under_way.load(Ordering::Relaxed) {
            let since = clock::now().ticks.0.saturating_sub(state.ended_at.load(Ordering::Relaxed));
            if since < self.timing.asked_pause.as_millis() as u64 {
                return false;
            }
            // One of many asks; the others wait for the same answer.
            if !state.under_way.swap(true, Ordering::Relaxed) {
                state.asked.notify_one();
            }
        }
        matches!(tokio::time::timeout(self.timing.wait, ended.changed()).await, Ok(Ok(())))
    }
}

/// Fetches until it is aborted.
async fn follow(from: KeyUrl, timing: FetchTiming, state: Arc<FetchState>) {
    let client = match Client::new(from.authorities.as_ref(), timing.patience) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "can't fetch keys that check tokens");
            return;
        }
    };
    let (mut pause, mut is_failing) = (timing.retry.0, false);
    loop {
        state.under_way.store(true, Ordering::Relaxed);
        let result = fetch(&client, &from, timing).await;
        let rest = match result {
            Ok((keys, fresh)) => {
                if is_failing || *state.keys.load_full() != keys {
                    tracing::info!(url = %from.url, keys = keys.len(), "fetched the keys that check tokens");
                }
                state.counts.succeed(keys.len());
                state.keys.store(Arc::new(keys));
                (pause, is_failing) = (timing.retry.0, false);
                fresh
            }
            Err(error) => {
                let keys = state.keys.load().len();
                if !is_failing {
                    tracing::warn!(url = %from.url, keys, %error, "can't fetch the keys that check tokens; the previous keys stay in use");
                }
                state.counts.fail();
                is_failing = true;
                let rest = pause;
                pause = (pause * 2).min(timing.retry.1);
                rest
            }
        };
        state.ended_at.store(clock::now().ticks.0, Ordering::Relaxed);
        state.under_way.store(false, Ordering::Relaxed);
        state.ended.send_modify(|count| *count += 1);
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = state.asked.notified() => {}
        }
    }
}

/// The keys, and for how long they are fresh.
async fn fetch(client: &Client, from: &KeyUrl, timing: FetchTiming) -> Result<(Vec<TokenKey>, Duration), String> {
    let accept = axum::http::HeaderValue::from_static("application/jwk-set+json, application/json");
    let asked = HttpRequest {
        method: Method::GET,
        headers: vec![(header::ACCEPT, accept)],
        body: Vec::new(),
        response_bytes_max: JWKS_BYTES_MAX as usize,
    };
    let answer = client.ask(&from.url, asked).await.map_err(|error| error.to_string())?;
    if answer.status.is_redirection() {
        return Err(format!("it answered {}, and redirects are not followed; configure the final URL", answer.status));
    }
    if answer.status != StatusCode::OK {
        return Err(format!("it answered {}", answer.status));
    }
    let keys = jwt::parse_published(&answer.body).map_err(|what| format!("what it answered {what}"))?;
    Ok((keys, fresh_for(&answer.headers, timing)))
}

/// `max-age` of Cache-Control without the Age that a cache has seen (RFC 9111 section 4.2), within our bounds.
fn fresh_for(headers: &HeaderMap, timing: FetchTiming) -> Duration {
    let text = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let max_age = text(header::CACHE_CONTROL).flat_map(|line| line.split(',')).find_map(|directive| {
        let (name, value) = directive.trim().split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| value.trim_matches('"').parse::<u64>().ok())?
    });
    let age = text(header::AGE).next().and_then(|age| age.trim().parse::<u64>().ok()).unwrap_or(0);
    let fresh = max_age.map_or(timing.fresh_usual, |max_age| Duration::from_secs(max_age.saturating_sub(age)));
    fresh.clamp(timing.fresh.0, timing.fresh.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Scripted;

    const QUICK: FetchTiming = FetchTiming {
        patience: Duration::from_millis(300),
        fresh: (Duration::from_millis(100), Duration::from_secs(60)),
        fresh_usual: Duration::from_secs(60),
        retry: (Duration::from_millis(50), Duration::from_millis(100)),
        asked_pause: Duration::from_millis(400),
        wait: Duration::from_secs(3),
    };

    /// A key of Ed25519 with this id.
    fn key(id: &str) -> String {
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}"#)
    }

    fn answer(head: &str, keys: &[String]) -> String {
        let body = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
    }

    fn start(server: &Scripted, pem: Option<&str>) -> (Arc<Fetched>, Arc<Fetches>) {
        let authorities = pem.map(|pem| crate::fetch::Authorities::parse(pem.as_bytes()).unwrap());
        let scheme = if pem.is_some() { "https" } else { "http" };
        let counts = Arc::new(Fetches::default());
        (Fetched::start(KeyUrl { url: server.url(scheme, "/jwks"), authorities }, QUICK, Arc::clone(&counts)), counts)
    }

    async fn ended(fetched: &Fetched, count: u64) {
        let mut ended = fetched.state.ended.subscribe();
        let wait = ended.wait_for(|seen| *seen >= count);
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("so many fetches").unwrap();
    }

    async fn until_keys(fetched: &Fetched, count: usize) {
        let wait = async {
            while keys(fetched) != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("so many keys");
    }

    fn keys(fetched: &Fetched) -> usize {
        fetched.state.keys.load().len()
    }

    #[tokio::test]
    async fn keys_come_over_tls_and_again_when_they_are_no_longer_fresh() {
        let server = Scripted::start(Some("localhost")).await;
        server.answers(answer("Cache-Control: public, max-age=0\r\n", &[key("a")]));
        let (fetched, counts) = start(&server, Some(&server.pem));
        ended(&fetched, 1).await;
        assert_eq!(keys(&fetched), 1);
        server.answers(answer("Cache-Control: max-age=3600\r\n", &[key("a"), key("b")]));
        until_keys(&fetched, 2).await;
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /jwks HTTP/1.1\r\n"), "{asked:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(server.asked().len() <= 4, "an hour is an hour");
        assert_eq!(counts.ok.load(Ordering::Relaxed), server.asked().len() as u64);
    }

    #[tokio::test]
    async fn garbage_a_flood_slowness_wrong_content_and_redirects_keep_the_old_keys() {
        let server = Scripted::start(None).await;
        server.answers(answer("Cache-Control: max-age=0\r\n", &[key("a")]));
        let (fetched, counts) = start(&server, None);
        ended(&fetched, 1).await;
        let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Sign in</html>".to_owned();
        let secret = r#"{"kty":"oct","k":"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"}"#.to_owned();
        let many: Vec<String> = (0..17).map(|number| key(&number.to_string())).collect();
        for bad in [
            html,
            answer("", &[]),
            answer("", &[secret]),
            answer("", &many),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(100_000)),
            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"keys\":[".to_owned(),
            "HTTP/1.1 301 Moved\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n".to_owned(),
            String::new(),
        ] {
            let before = counts.failed.load(Ordering::Relaxed);
            server.answers(bad.clone());
            let wait = async {
                while counts.failed.load(Ordering::Relaxed) < before + 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("taken: {bad:.80}"));
            assert_eq!(keys(&fetched), 1, "{bad:.80}");
        }
        assert_eq!(counts.keys.load(Ordering::Relaxed), 1);
        server.answers(answer("", &[key("a"), key("b")]));
        // It recovers by itself.
        until_keys(&fetched, 2).await;
    }

    #[tokio::test]
    async fn unknown_keys_are_asked_for_now_and_then_and_by_all_together() {
        let server = Scripted::start(None).await;
        server.answers(answer("Cache-Control: max-age=60\r\n", &[key("a")]));
        let (fetched, _counts) = start(&server, None);
        assert!(fetched.renewed().await, "the first fetch is waited for");
        assert!(!fetched.renewed().await, "just now");
        tokio::time::sleep(QUICK.asked_pause).await;
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let fetched = Arc::clone(&fetched);
                tokio::spawn(async move { fetched.renewed().await })
            })
            .collect();
        for one in waiting {
            one.await.unwrap();
        }
        for _ in 0..50 {
            fetched.renewed().await;
        }
        assert_eq!(server.asked().len(), 2, "the first, and one for a hundred tokens");
    }

    #[test]
    fn freshness_is_what_the_login_says_within_bounds() {
        for (lines, seconds) in [
            (&[][..], 3600),
            (&[("cache-control", "public, max-age=900, must-revalidate")], 900),
            (&[("cache-control", "Max-Age=\"900\""), ("age", "100")], 800),
            (&[("cache-control", "no-store")], 3600),
            (&[("cache-control", "max-age=1")], 300),
            (&[("cache-control", "max-age=99999999999")], 86_400),
            (&[("cache-control", "max-age=soon")], 3600),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(fresh_for(&headers, TIMING).as_secs(), seconds, "{lines:?}");
        }
    }
}
