//! Who is in which room, and what they may say to each other.
//!
//! A room has at most two members. They are paired as soon as both are there, and the roles
//! follow from their names alone, so a pair that comes back after a restart of the server gets the
//! same roles again. Everything is bounded: rooms, members, each member's queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

/// Rooms at a time. Two tabs need one; the rest is for many tabs left open.
pub(super) const ROOMS_MAX: usize = 256;
/// Messages waiting for one member; who reads slower than this is disconnected and comes back.
pub(super) const QUEUE_MESSAGES_MAX: usize = 128;
/// Members of a room: a call has two ends.
const MEMBERS_MAX: usize = 2;
/// Length of room and member names.
const NAME_BYTES_MAX: usize = 64;

/// What a member hears.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum Notice {
    /// You are in; `boot` differs after a restart of the server.
    Welcome {
        /// Names this run of the server.
        boot: String,
    },
    /// The other one is here.
    Paired {
        /// The other member's name.
        peer: String,
        /// Whether you make the offers.
        caller: bool,
    },
    /// The other one is not connected any more.
    PeerLeft {
        /// They said goodbye. Else their connection broke off, and they may come back.
        goodbye: bool,
    },
    /// The other one says.
    Message {
        /// What they sent, unchanged.
        data: Value,
    },
    /// No way in.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// Why a member can't join.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JoinError {
    /// Two others are there.
    #[error("this room already has two members; open another room")]
    RoomFull,
    /// The bound on rooms is reached.
    #[error("the demo already holds {ROOMS_MAX} rooms; close some tabs")]
    TooManyRooms,
    /// A name that is no name.
    #[error("a {0} name is 1 to {NAME_BYTES_MAX} letters, digits, - or _")]
    BadName(&'static str),
}

/// All rooms.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    inner: Mutex<RoomTable>,
}

#[derive(Debug, Default)]
struct RoomTable {
    rooms: HashMap<String, Vec<Member>>,
    joined: u64,
}

#[derive(Debug)]
struct Member {
    name: String,
    /// Tells a member that came back from their former connection.
    connection: u64,
    queue: mpsc::Sender<Notice>,
}

/// One connection's place in a room; leaving is dropping it.
#[derive(Debug)]
pub(super) struct Membership {
    rooms: Arc<Rooms>,
    room: String,
    connection: u64,
}

impl Rooms {
    /// Enters `room` as `member`. The same name joining again takes its former place, so a tab
    /// whose old connection is not yet known to be dead gets back in.
    pub(super) fn join(
        self: &Arc<Self>,
        room: &str,
        member: &str,
        boot: &str,
    ) -> Result<(Membership, mpsc::Receiver<Notice>), JoinError> {
        check_name("room", room)?;
        check_name("member", member)?;
        let (queue, notices) = mpsc::channel(QUEUE_MESSAGES_MAX);

        let mut inner = self.lock();
        if !inner.rooms.contains_key(room) && inner.rooms.len() >= ROOMS_MAX {
            return Err(JoinError::TooManyRooms);
        }
        inner.joined += 1;
        let connection = inner.joined;
        let members = inner.rooms.entry(room.to_owned()).or_default();
        members.retain(|other| other.name != member);
        if members.len() >= MEMBERS_MAX {
            return Err(JoinError::RoomFull);
        }
        let me = Member { name: member.to_owned(), connection, queue };
        me.tell(Notice::Welcome { boot: boot.to_owned() });
        if let Some(other) = members.first() {
            me.tell(paired(&me, other));
            other.tell(paired(other, &me));
        }
        members.push(me);
        drop(inner);

        let membership = Membership { rooms: Arc::clone(self), room: room.to_owned(), connection };
        Ok((membership, notices))
    }

    /// `member` says goodbye to `room`; their connection ends with it.
    pub(super) fn leave(&self, room: &str, member: &str) {
        self.remove(room, true, |other| other.name == member);
    }

    /// Takes a member out, and tells the other one.
    fn remove(&self, room: &str, goodbye: bool, is_meant: impl Fn(&Member) -> bool) {
        let mut inner = self.lock();
        let Some(members) = inner.rooms.get_mut(room) else {
            return;
        };
        let before = members.len();
        members.retain(|member| !is_meant(member));
        if members.len() < before {
            for member in members.iter() {
                member.tell(Notice::PeerLeft { goodbye });
            }
        }
        if members.is_empty() {
            inner.rooms.remove(room);
        }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().rooms.len()
    }

    fn lock(&self) -> MutexGuard<'_, RoomTable> {
        // Nothing under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// The connection was closed in form, as browsers do for a page that goes away.
    pub(super) fn say_goodbye(&self) {
        self.rooms.remove(&self.room, true, |member| member.connection == self.connection);
    }

    /// Passes `data` to the other member, if there is one. A member whose queue is full loses
    /// their place: their connection ends, and the page opens a new one.
    pub(super) fn say(&self, data: Value) {
        let mut inner = self.rooms.lock();
        let Some(members) = inner.rooms.get_mut(&self.room) else {
            return;
        };
        if !members.iter().any(|member| member.connection == self.connection) {
            return;
        }
        let overrun = members
            .iter()
            .filter(|member| member.connection != self.connection)
            .find(|other| !other.tell(Notice::Message { data: data.clone() }))
            .map(|other| other.connection);
        if let Some(overrun) = overrun {
            members.retain(|member| member.connection != overrun);
            for member in members.iter() {
                member.tell(Notice::PeerLeft { goodbye: false });
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.rooms.remove(&self.room, false, |member| member.connection == self.connection);
    }
}

impl Member {
    /// False if the queue is full or the connection gone.
    fn tell(&self, notice: Notice) -> bool {
        self.queue.try_send(notice).is_ok()
    }
}

/// What `me` hears of `other`. The smaller name makes the offers: one side only, so offers never
/// cross.
fn paired(me: &Member, other: &Member) -> Notice {
    Notice::Paired { peer: other.name.clone(), caller: me.name < other.name }
}

fn check_name(what: &'static str, name: &str) -> Result<(), JoinError> {
    let fine = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    fine.then_some(()).ok_or(JoinError::BadName(what))
}

/// True for what may name a tab: the same rule as for rooms and members.
pub(super) fn is_name(name: &str) -> bool {
    check_name("tab", name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn heard(notices: &mut mpsc::Receiver<Notice>) -> Vec<Notice> {
        std::iter::from_fn(|| notices.try_recv().ok()).collect()
    }

    fn welcome() -> Notice {
        Notice::Welcome { boot: "b1".to_owned() }
    }

    fn paired_with(peer: &str, caller: bool) -> Notice {
        Notice::Paired { peer: peer.to_owned(), caller }
    }

    #[test]
    fn two_members_are_paired_with_one_caller_whoever_comes_first() {
        for order in [["a", "b"], ["b", "a"]] {
            let rooms = Arc::new(Rooms::default());
            let (_first, mut first_notices) = rooms.join("r", order[0], "b1").unwrap();
            let (_second, mut second_notices) = rooms.join("r", order[1], "b1").unwrap();

            assert_eq!(heard(&mut first_notices), [welcome(), paired_with(order[1], order[0] == "a")]);
            assert_eq!(heard(&mut second_notices), [welcome(), paired_with(order[0], order[1] == "a")]);
        }
    }

    #[test]
    fn a_message_reaches_the_other_member_of_the_room_and_nobody_else() {
        let rooms = Arc::new(Rooms::default());
        let (a, mut a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (_b, mut b_notices) = rooms.join("r", "b", "b1").unwrap();
        let (_c, mut c_notices) = rooms.join("other", "c", "b1").unwrap();
        heard(&mut a_notices);
        heard(&mut b_notices);
        heard(&mut c_notices);

        a.say(json!({"kind": "offer"}));

        assert_eq!(heard(&mut b_notices), [Notice::Message { data: json!({"kind": "offer"}) }]);
        assert_eq!(heard(&mut a_notices), []);
        assert_eq!(heard(&mut c_notices), []);
    }

    #[test]
    fn a_third_member_is_refused_and_disturbs_nobody() {
        let rooms = Arc::new(Rooms::default());
        let (_a, mut a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (_b, _b_notices) = rooms.join("r", "b", "b1").unwrap();
        heard(&mut a_notices);

        assert_eq!(rooms.join("r", "c", "b1").unwrap_err(), JoinError::RoomFull);
        assert_eq!(heard(&mut a_notices), []);
    }

    #[test]
    fn the_same_member_coming_back_takes_the_former_place() {
        let rooms = Arc::new(Rooms::default());
        let (_a, mut a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (old, mut old_notices) = rooms.join("r", "b", "b1").unwrap();
        let (_new, mut new_notices) = rooms.join("r", "b", "b1").unwrap();
        heard(&mut a_notices);
        heard(&mut new_notices);

        // the former connection ends, is no longer heard, and its late end changes nothing
        old.say(json!({"stale": true}));
        drop(old);
        heard(&mut old_notices);

        assert!(matches!(old_notices.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert_eq!(heard(&mut a_notices), []);
        assert_eq!(heard(&mut new_notices), []);
    }

    #[test]
    fn leaving_is_told_and_an_empty_room_is_forgotten() {
        let rooms = Arc::new(Rooms::default());
        let (a, _a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (b, mut b_notices) = rooms.join("r", "b", "b1").unwrap();
        heard(&mut b_notices);

        drop(a);
        assert_eq!(heard(&mut b_notices), [Notice::PeerLeft { goodbye: false }]);
        assert_eq!(rooms.count(), 1);

        drop(b);
        assert_eq!(rooms.count(), 0);
    }

    // F-C1: closing a tab is told apart from a connection that broke off.
    #[test]
    fn a_goodbye_is_told_as_such_and_once() {
        let rooms = Arc::new(Rooms::default());
        let (a, mut a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (_b, mut b_notices) = rooms.join("r", "b", "b1").unwrap();
        heard(&mut b_notices);

        for (room, member) in [("r", "c"), ("other", "a")] {
            rooms.leave(room, member);
        }
        assert_eq!(heard(&mut b_notices), []);
        rooms.leave("r", "a");
        assert_eq!(heard(&mut b_notices), [Notice::PeerLeft { goodbye: true }]);
        heard(&mut a_notices);
        assert!(matches!(a_notices.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        drop(a);
        assert_eq!(heard(&mut b_notices), [], "the end of the connection is no news after it");
        let (c, mut c_notices) = rooms.join("r", "c", "b1").unwrap();
        heard(&mut b_notices);
        heard(&mut c_notices);
        c.say_goodbye();
        drop(c);
        assert_eq!(heard(&mut b_notices), [Notice::PeerLeft { goodbye: true }]);
        rooms.leave("r", "b");
        assert_eq!(rooms.count(), 0);
    }

    #[test]
    fn a_member_who_does_not_read_is_disconnected_at_the_bound() {
        let rooms = Arc::new(Rooms::default());
        let (a, mut a_notices) = rooms.join("r", "a", "b1").unwrap();
        let (_b, mut b_notices) = rooms.join("r", "b", "b1").unwrap();
        heard(&mut a_notices);
        heard(&mut b_notices);

        for number in 0..=QUEUE_MESSAGES_MAX {
            a.say(json!(number));
        }

        assert_eq!(heard(&mut b_notices).len(), QUEUE_MESSAGES_MAX);
        assert!(matches!(b_notices.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert_eq!(heard(&mut a_notices), [Notice::PeerLeft { goodbye: false }]);
    }

    #[test]
    fn rooms_and_names_are_bounded() {
        let rooms = Arc::new(Rooms::default());
        let _members: Vec<_> =
            (0..ROOMS_MAX).map(|number| rooms.join(&format!("r{number}"), "a", "b1").unwrap()).collect();

        assert_eq!(rooms.join("one-more", "a", "b1").unwrap_err(), JoinError::TooManyRooms);
        assert!(rooms.join("r0", "b", "b1").is_ok());
        for bad in ["", "a b", "../x", "ä", &"x".repeat(65)] {
            assert_eq!(rooms.join(bad, "a", "b1").unwrap_err(), JoinError::BadName("room"));
            assert_eq!(rooms.join("r0", bad, "b1").unwrap_err(), JoinError::BadName("member"));
        }
    }
}
