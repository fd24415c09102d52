//! Handshakes under way: so many at a time, and none that keeps others out.
//!
//! When that many are under way, a new one takes the place of the oldest, but not of one that came within the last two
//! seconds: so silent connections can't keep others out, and a crowd that reconnects waits in the kernel's queue
//! instead of failing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::net::clock;
use crate::protocol::time::Ticks;

/// A handshake so young gives way to nobody: it may be that of a client across two satellites.
const YOUNG: Duration = Duration::from_secs(2);

/// Those that are under way.
#[derive(Default)]
pub struct HalfOpen {
    table: Mutex<Table>,
    room: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    under_way: BTreeMap<u64, (Ticks, oneshot::Sender<()>)>,
}

/// A place among them, free again when it is dropped.
pub struct Place {
    of: Arc<HalfOpen>,
    number: u64,
    /// Hears when somebody else takes this place.
    pub give_way: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.table().under_way.remove(&self.number);
        self.of.room.notify_one();
    }
}

impl HalfOpen {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The map is whole after each statement.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.table().under_way.len() as u64
    }

    /// Waits for one of so many places; `max` is asked anew at each try.
    pub async fn place(self: &Arc<Self>, max: impl Fn() -> u64) -> Place {
        loop {
            let wait = {
                let mut table = self.table();
                let is_full = table.under_way.len() as u64 >= max().max(1);
                let oldest = table.under_way.first_entry().filter(|_| is_full);
                match oldest.map(|entry| (Duration::from_millis(clock::now().ticks.since(entry.get().0)), entry)) {
                    Some((age, _)) if age < YOUNG => YOUNG - age,
                    older => {
                        if let Some((_, entry)) = older {
                            // It may have finished in this moment.
                            let _ = entry.remove().1.send(());
                        }
                        let (sender, give_way) = oneshot::channel();
                        let number = table.next;
                        table.next += 1;
                        table.under_way.insert(number, (clock::now().ticks, sender));
                        return Place { of: Arc::clone(self), number, give_way };
                    }
                }
            };
            tokio::select! {
                () = self.room.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_but_not_while_it_is_young() {
        let half_open = Arc::new(HalfOpen::default());
        let mut first = half_open.place(|| 2).await;
        let second = half_open.place(|| 2).await;
        let soon = tokio::time::timeout(Duration::from_millis(200), half_open.place(|| 2)).await;
        assert!(soon.is_err() && first.give_way.try_recv().is_err(), "both are young");
        drop(second);
        let third = half_open.place(|| 2).await;
        assert_eq!(half_open.count(), 2);
        let fourth = tokio::time::timeout(2 * YOUNG, half_open.place(|| 2)).await.expect("the first is old by now");
        first.give_way.try_recv().expect("it was told");
        drop((first, third, fourth));
        assert_eq!(half_open.count(), 0);
    }
}
