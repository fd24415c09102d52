//! Posts what waits in the spool, batch by batch, until it is taken: at least once, in order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Counters;
use super::spool::{Batch, Spool};
use crate::config::accounting::WebhookConfig;

/// A whole delivery takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause after a first failure doubles with each further one up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// A delivery is no larger, unless a single batch is.
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// As much of an answer as is read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Delivers until it is aborted.
pub(super) async fn deliver(config: WebhookConfig, spool: Arc<Spool>, counters: Arc<Counters>) {
    let mut pause = PAUSE_MIN;
    loop {
        let (batches, lines) = gather(&spool, &counters).await;
        if batches.is_empty() {
            continue;
        }
        let posted = tokio::time::timeout(PATIENCE, post(&config, &lines)).await;
        let error = match posted.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 10 s"))) {
            Ok(()) => {
                if counters.webhook_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the webhook takes usage records again");
                }
                for batch in batches {
                    counters.webhook.written.fetch_add(batch.records, Ordering::Relaxed);
                    if let Err(error) = spool.remove(batch) {
                        tracing::warn!(%error, "can't remove a delivered batch from accounting.spool; it will be delivered again after a restart");
                    }
                }
                pause = PAUSE_MIN;
                continue;
            }
            Err(error) => error,
        };
        counters.webhook_failures.fetch_add(1, Ordering::Relaxed);
        let waiting = spool.backlog().0;
        if !counters.webhook_failing.swap(true, Ordering::Relaxed) || pause == PAUSE_MAX {
            tracing::warn!(url = %format_args!("http://{}{}", config.authority, config.path), waiting, %error, "the webhook does not take usage records; they wait in accounting.spool");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The oldest batches and their lines, as soon as there are some; what can't be read is lost, and said to be.
async fn gather(spool: &Spool, counters: &Counters) -> (Vec<Batch>, Vec<u8>) {
    let (mut taken, mut lines) = (Vec::new(), Vec::new());
    for batch in spool.oldest(BODY_BYTES_MAX).await {
        match spool.read(batch) {
            Ok(more) => {
                lines.extend(more);
                taken.push(batch);
            }
            // Those before it go first.
            Err(_) if !taken.is_empty() => break,
            Err(error) => {
                counters.webhook.lost.fetch_add(batch.records, Ordering::Relaxed);
                tracing::error!(records = batch.records, %error, "can't read usage records back from accounting.spool; they are lost");
                // It may be gone already; there is nothing left to lose.
                let _ = spool.remove(batch);
            }
        }
    }
    (taken, lines)
}

/// One POST; only a 2xx answer counts as taken.
async fn post(config: &WebhookConfig, lines: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(&config.authority).await?;
    let mut head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: throughway/{}\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\nConnection: close\r\n",
        config.path,
        config.authority.strip_suffix(":80").unwrap_or(&config.authority),
        env!("CARGO_PKG_VERSION"),
        lines.len()
    );
    if let Some(token) = &config.token {
        head.push_str("Authorization: Bearer ");
        head.push_str(&String::from_utf8_lossy(token.expose()));
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(lines).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(ANSWER_BYTES_MAX);
    while !answer.windows(2).any(|end| end == b"\r\n") {
        if limited.read_buf(&mut answer).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no HTTP answer"));
        }
    }
    match status(&answer) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(io::Error::other(format!("it answered {status}"))),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "what it answered is no HTTP")),
    }
}

/// The number in `HTTP/1.1 204 No Content`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next()?.starts_with("HTTP/1.").then_some(())?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_and_anything_else_is_not() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 500\r\n"), Some(500));
        for wrong in [&b"\r\n"[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"\xff\r\n"] {
            assert_eq!(status(wrong), None);
        }
    }
}
