//! Messages to workers and their answers: one way for every question that the control threads have.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::running::Running;
use super::worker::{DatagramSettings, ListenerChange, Mailbox, Message, NotSent, ShellSettings, TcpLimits};
use crate::config::checked::Config;
use crate::protocol::border::Selector;
use crate::protocol::reason::EndReason;
use crate::protocol::revocation::Subject;
use crate::protocol::settings::Settings;

/// How long until a message is tried again that found an inbox full.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// How long a worker may take for a reload; one that is stuck longer is the watchdog's.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// How long an asker waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// As long as the worker lives.
    Unbounded,
    /// So long. A message that has not been left by then is not sent any more.
    Within(Duration),
    /// So long, but the message is left whenever there is room: what it says is decided, and a worker that is stuck
    /// takes it when it comes back.
    WithinButSent(Duration),
}

impl Patience {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Unbounded => None,
            Self::Within(time) | Self::WithinButSent(time) => Some(Instant::now() + time),
        }
    }
}

/// A worker gave no answer: its thread has ended, or the time was over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoAnswer;

async fn send(mailbox: Mailbox, mut message: Message) {
    while let Err(NotSent::Full(back)) = mailbox.send(message) {
        message = back;
        sleep(TRY_AGAIN).await;
    }
}

impl Running {
    /// Sends a message to each worker, all at once, and gives their answers in the order of their numbers. `message` is
    /// given the number of the worker and where its answer goes.
    pub(super) async fn ask_all<T>(
        &self,
        patience: Patience,
        mut message: impl FnMut(usize, oneshot::Sender<T>) -> Message,
    ) -> Vec<Result<T, NoAnswer>> {
        let deadline = patience.deadline();
        let workers = 0..self.workers.len();
        let asked: Vec<_> =
            workers.map(|worker| self.begin_asking(worker, patience, |done| message(worker, done))).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            answers.push(wait_for(answer, deadline).await);
        }
        answers
    }

    /// Sends a message to one worker and gives its answer.
    pub(super) async fn ask<T>(
        &self,
        worker: usize,
        patience: Patience,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, NoAnswer> {
        let deadline = patience.deadline();
        wait_for(self.begin_asking(worker, patience, message), deadline).await
    }

    fn begin_asking<T>(
        &self,
        worker: usize,
        patience: Patience,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> oneshot::Receiver<T> {
        let (done, answer) = oneshot::channel();
        let sending = send(self.workers[worker].mailbox.clone(), message(done));
        // A task, because an inbox that is full must keep no other worker waiting. A worker that is gone drops the
        // message, and with it the sender of the answer.
        tokio::spawn(async move {
            match patience {
                Patience::Within(time) => drop(timeout(time, sending).await),
                Patience::Unbounded | Patience::WithinButSent(_) => sending.await,
            }
        });
        answer
    }

    /// One message to each worker, and its answer; says which did not take it in time, or what the system refused.
    pub(super) async fn deliver(
        &self,
        settings: Arc<Settings>,
        shell: ShellSettings,
        changes: Vec<Vec<ListenerChange>>,
        patience: Patience,
    ) -> Vec<String> {
        let mut changes = changes.into_iter();
        let answers = self.ask_all(patience, |_, done| Message::Reconfigure {
            settings: Arc::clone(&settings),
            shell,
            listeners: changes.next().unwrap_or_default(),
            done,
        });
        let mut problems = Vec::new();
        for (number, answer) in answers.await.into_iter().enumerate() {
            match answer {
                Ok(Ok(())) => {}
                Ok(Err(error)) => problems.push(format!("worker {number} can't watch a new listener: {error}")),
                Err(NoAnswer) => problems.push(format!("worker {number} does not answer")),
            }
        }
        if problems.is_empty() {
            *self.delivered.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        }
        problems
    }

    /// Ends the sessions that an operator means and tells how many there were.
    pub async fn close(&self, which: &Selector, reason: EndReason) -> usize {
        let answers =
            self.ask_all(Patience::Unbounded, |_, done| Message::Close { which: which.clone(), reason, done });
        // A worker that is gone has no session.
        answers.await.into_iter().map(|answer| answer.unwrap_or(0)).sum()
    }

    /// Lets the live sessions of a subject, or all of them, pass the meters that hold now; tells how many there are.
    pub async fn meter_anew(&self, subject: Option<Subject>) -> usize {
        let subject = Arc::new(subject);
        let answers =
            self.ask_all(Patience::Unbounded, |_, done| Message::MeterAnew { subject: Arc::clone(&subject), done });
        // A worker that is gone has no session.
        answers.await.into_iter().map(|answer| answer.unwrap_or(0)).sum()
    }

    /// No new allocations once this returns.
    pub async fn drain(&self) {
        // A worker that is gone admits no client either.
        self.ask_all(Patience::Unbounded, |_, done| Message::Drain(done)).await;
    }
}

/// What workers are told of a configuration besides the core's settings.
pub(super) fn shell_settings(config: &Config) -> ShellSettings {
    ShellSettings {
        tcp: TcpLimits {
            queue_bytes: config.limits.tcp_queue.unwrap_or(usize::MAX),
            unauthenticated_ms: config.limits.tcp_unauthenticated.map_or(0, |time| time.as_millis() as u64),
        },
        datagrams: DatagramSettings {
            segmentation_offload: config.relay.segmentation_offload,
            coalesce_microseconds: config.relay.coalesce_microseconds,
        },
    }
}

async fn wait_for<T>(answer: oneshot::Receiver<T>, deadline: Option<Instant>) -> Result<T, NoAnswer> {
    let answer = match deadline {
        None => answer.await,
        Some(deadline) => timeout_at(deadline, answer).await.map_err(|_| NoAnswer)?,
    };
    answer.map_err(|_| NoAnswer)
}
