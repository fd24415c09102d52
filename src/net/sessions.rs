//! Live sessions for those who ask, a part at a time: no question holds a worker up, and none fills the memory.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::ask::{NoAnswer, Patience};
use super::running::Running;
use super::worker::Message;
use crate::protocol::accounting::SessionRecord;

/// How long a worker may take to answer; one that is stuck is the watchdog's affair.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Where a walk over all sessions stands: what lies before it has been seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    worker: usize,
    slot: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.worker, self.slot)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (worker, slot) = text.split_once('-').ok_or(())?;
        Ok(Self { worker: worker.parse().map_err(|_| ())?, slot: slot.parse().map_err(|_| ())? })
    }
}

impl Running {
    /// Every live session; of a worker that does not answer, none.
    pub async fn sessions(&self) -> Vec<SessionRecord> {
        let mut sessions = Vec::new();
        let _ = self
            .walk_sessions(Cursor::default(), |session, _| {
                sessions.push(session);
                true
            })
            .await;
        sessions
    }

    /// Gives each live session to `see`, with the place after it, until that has enough or all were seen.
    ///
    /// A session that lives all the while is seen exactly once; one that begins or ends meanwhile may be missed.
    ///
    /// # Errors
    /// The number of a worker that does not answer.
    pub async fn walk_sessions(
        &self,
        from: Cursor,
        mut see: impl FnMut(SessionRecord, Cursor) -> bool,
    ) -> Result<(), usize> {
        let mut slot = Some(from.slot);
        for worker in from.worker..self.workers.len() {
            while let Some(first) = slot {
                let patience = Patience::Within(ANSWER_TIME);
                let answer = self.ask(worker, patience, |done| Message::InspectFrom(first, done)).await;
                let (sessions, next) = answer.map_err(|NoAnswer| worker)?;
                for session in sessions {
                    let after = Cursor { worker, slot: session.allocation.index as usize + 1 };
                    if !see(session, after) {
                        return Ok(());
                    }
                }
                slot = next;
            }
            slot = Some(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_text_and_back() {
        let cursor = Cursor { worker: 2, slot: 513 };
        assert_eq!(cursor.to_string(), "2-513");
        assert_eq!("2-513".parse(), Ok(cursor));
        for wrong in ["", "2", "-1", "2-", "a-b", "1-2-3", "99999999999999999999999-1"] {
            assert_eq!(wrong.parse::<Cursor>(), Err(()), "{wrong}");
        }
    }
}
