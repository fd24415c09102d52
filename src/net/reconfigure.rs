//! Another configuration for a running relay, as one transaction.
//!
//! [`Running::prepare`] does everything that can fail, the taking of new sockets by the workers included, and undoes it if
//! something does. [`Prepared::commit`] can't fail: a worker that does not answer takes the new settings when it comes
//! back. Decision: docs/decisions/0157-a-reload-is-one-transaction.md.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::ask::{ANSWER_TIME, Patience, shell_settings};
use super::listener_plan::{Freed, OpenSockets};
use super::listening::{self, CarriedOut, Open, Plan, lock, needs_tls};
use super::running::{Current, Running};
use super::worker::{ListenerChange, ListenerId, Users};
use crate::config::checked::Config;
use crate::protocol::settings::Settings;
use crate::tls::certificates::Pending;
use crate::tls::{Tls, provider, watch};

/// How long they may take to show that they live, before anything is changed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// A configuration that can be taken over: nothing is left that could fail.
#[must_use = "nothing has changed yet"]
pub struct Prepared {
    running: Arc<Running>,
    current: OwnedMutexGuard<Current>,
    next: Current,
    plan: Plan,
    opened: Vec<Open>,
    settings: Arc<Settings>,
    tls: NextTls,
}

/// What becomes of the certificates.
enum NextTls {
    /// There were none before.
    First(Arc<Tls>),
    /// Others, or the same files read again.
    Renewed(Arc<Tls>, Pending),
    Unchanged,
}

impl Running {
    /// The TCP sockets that this configuration no longer has for the relay.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(crate) fn freed(&self, config: &Config) -> io::Result<Vec<Freed>> {
        lock(&self.listening).freed(config)
    }

    /// Does all of a change of configuration that can fail: sockets, certificates, settings. `http` are the addresses
    /// that our HTTP listeners will have, `sockets` those that new listeners may take.
    ///
    /// # Errors
    /// Says what can't be bound, read or taken, or which key contradicts which; the old configuration runs on, whole.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        config: Config,
        http: Vec<SocketAddr>,
        mut sockets: OpenSockets<'_>,
    ) -> Result<Prepared, String> {
        let current = Arc::clone(&self.current).lock_owned().await;
        let mut config = config;
        // They may have been found since the configuration was read.
        config.relay.external.set_found(current.config.relay.external.found());
        let stuck = self.silent_workers(SIGN_OF_LIFE).await;
        if !stuck.is_empty() {
            return Err(format!("worker {stuck:?} does not answer, so nothing was changed; try again"));
        }
        let plan = lock(&self.listening).plan(&config, self.workers.len(), &mut sockets).map_err(|e| e.to_string())?;
        self.prepare_plan(current, Current { config: Arc::new(config), http }, plan).await
    }

    async fn prepare_plan(
        self: &Arc<Self>,
        current: OwnedMutexGuard<Current>,
        next: Current,
        mut plan: Plan,
    ) -> Result<Prepared, String> {
        let tls = self.next_tls(&next.config).await?;
        let addresses = lock(&self.listening).addresses(&plan).with(&next.http);
        let settings = Arc::new(self.settings(&next.config, addresses.clone())?);
        let (changes, opened) = lock(&self.listening).opening(&mut plan, self.workers.len(), &self.overflow);
        if !opened.is_empty() {
            // Until the others are taken over too, what is known now holds there, but for the addresses that are ours.
            let meanwhile = Arc::new(self.settings(&current.config, addresses)?);
            let problems =
                self.deliver(meanwhile, shell_settings(&current.config), changes, Patience::Within(ANSWER_TIME)).await;
            if !problems.is_empty() {
                self.take_back(&current, &opened).await;
                return Err(format!("{}; what was opened is closed again", problems.join("; ")));
            }
        }
        Ok(Prepared { running: Arc::clone(self), current, next, plan, opened, settings, tls })
    }

    async fn next_tls(&self, config: &Config) -> Result<NextTls, String> {
        let files = config.tls.files.clone();
        let running = self.tls();
        if running.is_none() && !needs_tls(config) || files.is_empty() {
            // Without certificates the check has found that no listener needs any.
            return Ok(NextTls::Unchanged);
        }
        let read = move || match running {
            None => Tls::new(&files).map(|tls| NextTls::First(Arc::new(tls))),
            Some(tls) => {
                let pending = tls.certificates.read(&files, &provider())?;
                Ok(NextTls::Renewed(tls, pending))
            }
        };
        // Files are read, and a disk may be slow.
        let read = tokio::time::timeout(ANSWER_TIME, tokio::task::spawn_blocking(read)).await;
        let read =
            read.map_err(|_| format!("tls: the certificates could not be read within {} s", ANSWER_TIME.as_secs()))?;
        let read = read.map_err(|error| format!("tls: {error}"))?;
        read.map_err(|error| format!("tls: {error}"))
    }

    /// Closes listeners again that not every worker could open.
    async fn take_back(&self, current: &Current, opened: &[Open]) {
        let addresses = lock(&self.listening).addresses(&Plan::nothing()).with(&current.http);
        // They were valid a moment ago; without them the workers keep what they have, which differs in addresses alone.
        let Ok(settings) = self.settings(&current.config, addresses) else { return };
        let close = || opened.iter().map(|open| ListenerChange::Close(open.id())).collect();
        let changes = self.workers.iter().map(|_| close()).collect();
        for why in self
            .deliver(Arc::new(settings), shell_settings(&current.config), changes, Patience::WithinButSent(ANSWER_TIME))
            .await
        {
            tracing::warn!("{why}; it closes the listeners of the reload that failed when it comes back");
        }
    }

    pub(super) fn close_when_empty(self: &Arc<Self>, id: ListenerId, users: Arc<Users>) {
        let running = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let mut look = std::pin::pin!(users.look.notified());
                // A session that ends between this look and the next wakes us.
                look.as_mut().enable();
                let Some(running) = running.upgrade() else { return };
                if !lock(&running.listening).is_leaving(id) {
                    return;
                }
                if users.count() == 0 {
                    return running.close_listener(id).await;
                }
                drop(running);
                look.await;
            }
        });
    }

    /// Closes the sockets of an unused listener, on every worker.
    async fn close_listener(&self, id: ListenerId) {
        let current = self.current.lock().await;
        let addresses = lock(&self.listening).addresses_without(id).with(&current.http);
        let settings = match self.settings(&current.config, addresses) {
            Ok(settings) => Arc::new(settings),
            Err(error) => {
                tracing::warn!(error, "can't close a listener that is not used any more");
                return;
            }
        };
        let Some(address) = lock(&self.listening).take_empty(id) else { return };
        let changes = self.workers.iter().map(|_| vec![ListenerChange::Close(id)]).collect();
        let problems = self
            .deliver(settings, shell_settings(&current.config), changes, Patience::WithinButSent(ANSWER_TIME))
            .await;
        tracing::info!(%address, "listener closed: its last session has ended");
        for why in problems {
            tracing::warn!("{why}; it gets the changes when it comes back");
        }
    }
}

impl Prepared {
    /// Takes the configuration over. No call is lost, and nothing can fail.
    pub async fn commit(self) {
        let Self { running, mut current, next, plan, opened, settings, tls } = self;
        match tls {
            NextTls::First(tls) => {
                watch::report(&tls.certificates);
                running.watch(&tls);
                running.acceptor.tls.store(Some(tls));
            }
            NextTls::Renewed(tls, pending) => {
                tls.certificates.present(pending);
                watch::report(&tls.certificates);
            }
            NextTls::Unchanged => {}
        }
        running.acceptor.set_limits(&next.config);
        running.addresses.set_ports(&next.config.relay.ports, &next.config.relay.port_parts);
        let before = running.listeners();
        let CarriedOut { changes, leaving } = listening::lock(&running.listening).commit(
            plan,
            opened,
            running.workers.len(),
            &running.acceptor,
            &running.overflow,
        );
        *current = next;
        for why in running
            .deliver(settings, shell_settings(&current.config), changes, Patience::WithinButSent(ANSWER_TIME))
            .await
        {
            tracing::warn!("{why}; it gets the changes when it comes back");
        }
        drop(current);
        let now = running.listeners();
        for (transport, address) in now.iter().filter(|listener| !before.contains(listener)) {
            tracing::info!(%address, transport = transport.name(), "listening");
        }
        for (transport, address) in before.iter().filter(|listener| !now.contains(listener)) {
            tracing::info!(%address, transport = transport.name(), "listener removed");
        }
        for (id, users) in leaving {
            running.close_when_empty(id, users);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::net::KeptSets;
    use crate::net::listen::UdpSockets;
    use crate::net::passed::Passed;

    fn config(allocations: u32) -> Config {
        let text = format!(
            "workers = 2\nlisten = {{ udp = [\"127.0.0.1:0\"], tcp = [] }}\nrelay.addresses = [\"127.0.0.1\"]\n\
             auth.users = {{ alice = \"wonderland-wonderland\" }}\nlimits.allocations = {allocations}\n"
        );
        Config::from_toml("c.toml", &text).unwrap()
    }

    /// A descriptor that no epoll set takes: a plain file.
    fn unwatchable() -> UdpSocket {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        UdpSocket::from(OwnedFd::from(file))
    }

    // F-B3: a worker that can't watch a new listener leaves nothing half done.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_a_worker_can_not_open_leaves_the_old_configuration_whole() {
        let started = crate::net::start(&config(5), &[], Passed::default(), KeptSets::default(), None);
        let (running, _events) = started.unwrap();
        let running = Arc::new(running);
        let before = running.listeners();
        let good = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = good.local_addr().unwrap();
        // The first worker can open its socket, the second can't.
        let sockets = [good, unwatchable()].map(|data| UdpSockets { data, control: None });
        let plan = Plan::adding(address, sockets.into());
        let current = Arc::clone(&running.current).lock_owned().await;
        let next = Current { config: Arc::new(config(7)), http: Vec::new() };
        let Err(error) = running.prepare_plan(current, next, plan).await else { panic!("it can't be prepared") };
        assert!(error.contains("worker 1 can't watch") && error.contains("is closed again"), "{error}");
        assert_eq!((running.listeners(), running.config().await.limits.tables.allocations), (before.clone(), Some(5)));
        UdpSocket::bind(address).expect("what the first worker opened is closed");
        // And the next reload finds everything in order.
        running.prepare(config(7), Vec::new(), OpenSockets::passed(running.passed())).await.unwrap().commit().await;
        assert_eq!((running.listeners(), running.config().await.limits.tables.allocations), (before, Some(7)));
        tokio::task::spawn_blocking(move || running.stop()).await.unwrap();
    }
}
