//! `upgrade.socket`: where processes connect that this one did not start and that shall take over from it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::upgrade::Upgrader;
use crate::config::Config;
use crate::failure::Failure;
use crate::net::handoff::{HandoffError, SuccessorSocket};

/// How long accepting rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the path is looked at while it is another process's: whether that has left it, and now and then whether that has
/// died, which only a connection can tell, of which it takes notice if it lives.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_TO_CONNECT: u32 = 30;

/// Listens at `upgrade.socket`, until it is closed.
pub(super) struct Successors(Arc<Mutex<State>>);

enum State {
    /// The configuration has no place for it, or no more process shall connect.
    Closed,
    /// The path is another process's still: mostly of the one that this one has taken over from.
    Waiting,
    Listening(Arc<SuccessorSocket>),
}

impl Successors {
    /// Lets processes connect, if the configuration has a place for that. A process that has taken over waits for its place:
    /// the one before may not have left it yet.
    ///
    /// # Errors
    /// When it can't be made at a start; after that the calls are worth more.
    pub(super) fn invite(config: &Config, upgrader: &Arc<Upgrader>, has_taken_over: bool) -> Result<Self, Failure> {
        let Some(path) = config.upgrade.socket.clone() else { return Ok(Self::new(State::Closed)) };
        let successors = match SuccessorSocket::bind(&path) {
            Ok(socket) => Self::new(State::Listening(Arc::new(socket))),
            Err(error) if has_taken_over => {
                let failure = failure(&path, &error);
                tracing::error!(%failure, "no other process can take over for now; it listens as soon as the path is free");
                Self::new(State::Waiting)
            }
            Err(error) => return Err(failure(&path, &error)),
        };
        let (state, upgrader, runtime) = (Arc::clone(&successors.0), Arc::clone(upgrader), Handle::current());
        let accept = move || {
            let _runtime = runtime.enter();
            if let Some(socket) = listening(&state, &path) {
                accept_from(&socket, &upgrader);
            }
        };
        let thread = std::thread::Builder::new().name("successors".to_owned()).spawn(accept);
        thread.map_err(|error| Failure::Run(format!("upgrade.socket: can't start a thread: {error}")))?;
        Ok(successors)
    }

    fn new(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// No more processes can connect; another one may listen at the path.
    pub(super) fn close(&self) {
        if let State::Listening(socket) = std::mem::replace(&mut *lock(&self.0), State::Closed) {
            socket.close();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Whole after each statement.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until this process has its place; nothing if it does not want it any more. Blocks.
fn listening(state: &Mutex<State>, path: &Path) -> Option<Arc<SuccessorSocket>> {
    for look in 1_u32.. {
        {
            // Held while it binds: what is closed in between must not come back.
            let mut state = lock(state);
            match &*state {
                State::Closed => return None,
                State::Listening(socket) => return Some(Arc::clone(socket)),
                State::Waiting => {
                    let is_due = look.is_multiple_of(LOOKS_TO_CONNECT) || !path.exists();
                    if is_due && let Ok(socket) = SuccessorSocket::bind(path) {
                        tracing::info!(socket = %path.display(), "upgrade.socket: other processes can take over again");
                        *state = State::Listening(Arc::new(socket));
                        continue;
                    }
                }
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    None
}

/// Takes processes in until the socket is closed. Blocks.
fn accept_from(socket: &SuccessorSocket, upgrader: &Arc<Upgrader>) {
    loop {
        match socket.accept() {
            Ok(channel) => upgrader.hand_over_to(channel),
            Err(error @ HandoffError::Stranger { .. }) => tracing::warn!(%error, "upgrade.socket: refused"),
            Err(error) if error.is_of_closed_listener() => return,
            // Out of files, or a process that went before it came.
            Err(_) => std::thread::sleep(ACCEPT_PAUSE),
        }
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    let remedy = if error.kind() == io::ErrorKind::AddrInUse {
        "another process listens there: give each server a path of its own"
    } else {
        "its directory must be there, and be the server's user's"
    };
    Failure::Run(format!("upgrade.socket: can't listen on {path}: {error}; {remedy}"))
}
