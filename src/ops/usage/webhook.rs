//! Posts what waits in the spool, batch by batch, until it is taken: at least once, in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};

use super::spool::{Batch, Spool};
use super::{Counters, Loss};
use crate::config::accounting::WebhookConfig;
use crate::fetch::{Client, FetchError, HttpRequest};

/// A whole delivery takes no longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The pause after a first failure doubles with each further one up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// A delivery is no larger, unless a single batch is.
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// Delivers until it is aborted.
pub(super) async fn deliver(config: WebhookConfig, client: Client, spool: Arc<Spool>, counters: Arc<Counters>) {
    let mut pause = PAUSE_MIN;
    let mut bytes_max = BODY_BYTES_MAX;
    loop {
        let (batches, lines) = gather(&spool, &counters, bytes_max).await;
        if batches.is_empty() {
            continue;
        }
        let on_disk: u64 = batches.iter().map(|batch| batch.bytes).sum();
        let error = match post(&client, &config, lines).await {
            Ok(()) => {
                if counters.webhook_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the webhook accepts usage records again");
                }
                for batch in batches {
                    counters.webhook.written.fetch_add(batch.records, Ordering::Relaxed);
                    if let Err(error) = on_disk_of(&spool, move |spool| spool.remove(batch)).await {
                        tracing::warn!(%error, "can't remove a delivered batch from accounting.spool; it will be delivered again after a restart");
                    }
                }
                pause = PAUSE_MIN;
                continue;
            }
            Err(error) => error,
        };
        if matches!(error, NotTaken::Status(StatusCode::PAYLOAD_TOO_LARGE)) {
            // What is refused once would be refused again.
            bytes_max = (on_disk / 2).max(1);
        }
        counters.webhook_failures.fetch_add(1, Ordering::Relaxed);
        let waiting = spool.backlog().0;
        if !counters.webhook_failing.swap(true, Ordering::Relaxed) || pause == PAUSE_MAX {
            tracing::warn!(url = %config.url, waiting, %error, "the webhook does not accept usage records; they wait in accounting.spool");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The oldest batches and their lines, as soon as there are some; what can't be read is lost, and said to be.
async fn gather(spool: &Arc<Spool>, counters: &Counters, bytes_max: u64) -> (Vec<Batch>, Vec<u8>) {
    let (mut taken, mut lines) = (Vec::new(), Vec::new());
    for batch in spool.oldest(bytes_max).await {
        match on_disk_of(spool, move |spool| spool.read(batch)).await {
            Ok(more) => {
                lines.extend(more);
                taken.push(batch);
            }
            // Those before it go first.
            Err(_) if !taken.is_empty() => break,
            Err(error) => {
                counters.webhook.lose(Loss::Unreadable, batch.records);
                tracing::error!(records = batch.records, %error, "can't read usage records back from accounting.spool; they are lost");
                // It may be gone already; there is nothing left to lose.
                let _ = on_disk_of(spool, move |spool| spool.remove(batch)).await;
            }
        }
    }
    (taken, lines)
}

/// A disk may hang, and the control runtime must not wait for it.
async fn on_disk_of<T: Send + 'static>(
    spool: &Arc<Spool>,
    act: impl FnOnce(&Spool) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let spool = Arc::clone(spool);
    tokio::task::spawn_blocking(move || act(&spool)).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it answered {0}, and redirects are not followed")]
    Redirect(StatusCode),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// One POST; only a 2xx answer counts as taken.
async fn post(client: &Client, config: &WebhookConfig, lines: Vec<u8>) -> Result<(), NotTaken> {
    let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    if let Some(token) = &config.token {
        // The check has found nothing but printable ASCII in it.
        let value = HeaderValue::try_from([b"Bearer ", token.expose()].concat());
        headers.extend(value.ok().map(|value| (header::AUTHORIZATION, value)));
    }
    let asked = HttpRequest { method: Method::POST, headers, body: lines, response_bytes_max: 0 };
    let status = client.ask(&config.url, asked).await?.status;
    match status {
        _ if status.is_success() => Ok(()),
        _ if status.is_redirection() => Err(NotTaken::Redirect(status)),
        _ => Err(NotTaken::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Secret;
    use crate::fetch::tests::Scripted;
    use crate::fetch::{Authorities, Url};
    use crate::ops::usage::tests::Directory;

    struct Delivery {
        spool: Arc<Spool>,
        counters: Arc<Counters>,
        _directory: Directory,
    }

    impl Delivery {
        fn start(url: Url, pem: Option<&str>) -> Self {
            let directory = Directory::new();
            let spool = Arc::new(Spool::open(directory.path().join("spool"), 1 << 20).unwrap());
            let authorities = pem.map(|pem| Authorities::parse(pem.as_bytes()).unwrap());
            let client = Client::new(authorities.as_ref(), Duration::from_millis(300)).unwrap();
            let token = Some(Secret::new(*b"let-me-in"));
            let config =
                WebhookConfig { url, authorities, token, spool: directory.path().join("spool"), spool_bytes: 1 << 20 };
            let counters = Arc::new(Counters::default());
            tokio::spawn(deliver(config, client, Arc::clone(&spool), Arc::clone(&counters)));
            Self { spool, counters, _directory: directory }
        }

        async fn until(&self, what: impl Fn(&Counters) -> bool) {
            let wait = async {
                while !what(&self.counters) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it happens");
        }

        async fn until_failures(&self, count: u64) {
            self.until(|counters| counters.webhook_failures.load(Ordering::Relaxed) >= count).await;
        }

        async fn until_written(&self, count: u64) {
            self.until(|counters| counters.webhook.written.load(Ordering::Relaxed) >= count).await;
        }
    }

    #[tokio::test]
    async fn over_tls_to_whom_the_authority_certifies_and_nobody_else() {
        let server = Scripted::start(Some("localhost")).await;
        server.answers("HTTP/1.1 204 No Content\r\n\r\n");
        let trusted = Delivery::start(server.url("https", "/usage?x=1"), Some(&server.pem));
        trusted.spool.put(b"{\"seq\":0}\n", 1, 100).unwrap();
        trusted.until_written(1).await;
        let asked = server.asked().concat();
        assert!(asked.starts_with("POST /usage?x=1 HTTP/1.1\r\n"), "{asked}");
        for part in
            ["Content-Type: application/x-ndjson\r\n", "Authorization: Bearer let-me-in\r\n", "\r\n\r\n{\"seq\":0}\n"]
        {
            assert!(asked.contains(part), "{asked}\nlacks {part}");
        }
        let stranger = Delivery::start(server.url("https", "/usage"), None);
        stranger.spool.put(b"{}\n", 1, 100).unwrap();
        stranger.until_failures(1).await;
        assert_eq!((server.asked().len(), stranger.spool.backlog().0), (1, 1), "neither record nor token went there");
    }

    #[tokio::test]
    async fn a_hanging_webhook_costs_its_patience_and_the_spool_goes_on() {
        let server = Scripted::start(None).await;
        let delivery = Delivery::start(server.url("http", "/"), None);
        delivery.spool.put(b"one\n", 1, 100).unwrap();
        delivery.until_failures(1).await;
        delivery.spool.put(b"two\n", 1, 110).unwrap();
        assert_eq!(delivery.spool.backlog().0, 2);
        server.answers("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhangs behind its head");
        delivery.until_written(2).await;
        delivery.spool.emptied().await;
        assert!(server.asked().last().unwrap().ends_with("\r\n\r\none\ntwo\n"), "in order, together");
    }

    #[tokio::test]
    async fn every_other_answer_keeps_the_records_and_is_tried_again() {
        for status in ["301 Moved", "400 Bad Request", "401 Unauthorized", "404 Not Found", "500 Oh", "503 Later"] {
            let server = Scripted::start(None).await;
            let delivery = Delivery::start(server.url("http", "/"), None);
            server.answers(format!("HTTP/1.1 {status}\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n"));
            delivery.spool.put(b"one\n", 1, 100).unwrap();
            delivery.until_failures(1).await;
            let lost = delivery.counters.webhook.lost();
            assert_eq!((delivery.spool.backlog().0, lost), (1, 0), "{status}");
            server.answers("HTTP/1.1 202 Accepted\r\n\r\n");
            delivery.until_written(1).await;
        }
    }

    #[tokio::test]
    async fn after_a_413_less_is_sent_at_a_time() {
        let server = Scripted::start(None).await;
        server.answers("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
        let delivery = Delivery::start(server.url("http", "/"), None);
        for number in 0..4 {
            delivery.spool.put(format!("{number}\n").as_bytes(), 1, 100).unwrap();
        }
        delivery.until_failures(2).await;
        server.answers("HTTP/1.1 204 No Content\r\n\r\n");
        delivery.until_written(4).await;
        let body = |asked: &String| asked.split_once("\r\n\r\n").unwrap().1.to_owned();
        let bodies: Vec<String> = server.asked().iter().map(body).collect();
        let most = bodies[1..].iter().map(String::len).max().unwrap();
        assert!(most < bodies[0].len() && most <= 4, "{bodies:?}");
    }
}
