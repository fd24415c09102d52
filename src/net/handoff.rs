//! The channel over which two processes of one server talk while one takes over from the other: messages, each with
//! descriptors, over an AF_UNIX SOCK_SEQPACKET socket; and states as sealed memory that travels as a descriptor.
//!
//! Both ends are one user's. Nothing that comes can make this end wait, allocate or keep descriptors without bound. What
//! the messages mean is not decided here.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use minicbor::{Decode, Encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, shutdown, socket_with, socketpair,
};
use rustix::process::Pid;

use super::sys::user::PeerCredentials;
use crate::clock;
use crate::time::Ticks;

/// Descriptors that the kernel passes with one message (SCM_MAX_FD of unix(7)).
pub const DESCRIPTORS_MAX: usize = 253;

/// The longest message, in bytes; what is longer goes as memory.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The longest state that is read, in bytes.
pub const STATE_BYTES_MAX: u64 = 1 << 30;

/// Processes that may wait at [`SuccessorSocket`]: one is enough.
const SUCCESSORS_WAITING: i32 = 1;

/// How long to wait when too many descriptors of this user are under way.
const RETRY: Duration = Duration::from_millis(1);

/// The number of the protocol in which the two processes talk; both must have the same.
pub const PROTOCOL: u32 = 1;

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    bytes: Box<[u8]>,
}

/// Why a message did not pass.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The other process has closed its end, or has ended.
    #[error("the other process has gone")]
    Closed,
    /// It did not read, or did not say anything, in time.
    #[error("the other process did not answer within {0:?}")]
    Timeout(Duration),
    /// A message is longer than [`MESSAGE_BYTES_MAX`], or memory than its reader takes.
    #[error("{bytes} bytes are more than the {max} that may be passed")]
    TooLong {
        /// How long.
        bytes: u64,
        /// How long it may be.
        max: u64,
    },
    /// More descriptors than [`DESCRIPTORS_MAX`].
    #[error("{0} descriptors are more than one message can pass")]
    TooManyDescriptors(usize),
    /// The kernel could not give this process all descriptors of a message: its limit of open files is too small. Those that
    /// came are closed.
    #[error("descriptors of a message were lost: raise the limit of open files of the new process (LimitNOFILE=)")]
    DescriptorsLost,
    /// The other process is another user's.
    #[error("the other process belongs to user {peer}, this one to user {own}")]
    Stranger {
        /// Of the other process.
        peer: u32,
        /// Of this process.
        own: u32,
    },
    /// The descriptor is no such socket.
    #[error("the descriptor is no channel: a unix socket of type SOCK_SEQPACKET is expected")]
    NotAChannel,
    /// The message is not what was expected.
    #[error("a message of the other process can't be read: {0}")]
    Unreadable(String),
    /// Memory that its sender could still change.
    #[error("the memory of a state is not sealed")]
    NotSealed,
    /// The system refused.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl HandoffError {
    /// Whether [`Channel::connect`] gave it because no process listens at the path.
    #[must_use]
    pub fn is_of_absent_listener(&self) -> bool {
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        matches!(self, Self::System(error) if absent.contains(&error.kind()))
    }

    /// Whether [`SuccessorSocket::accept`] gave it because the socket is closed.
    #[must_use]
    pub fn is_of_closed_listener(&self) -> bool {
        matches!(self, Self::System(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()))
    }
}

impl From<Errno> for HandoffError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            other => Self::System(other.into()),
        }
    }
}

impl Channel {
    /// Both ends; the second is for a child.
    ///
    /// # Errors
    /// Of the system.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::over(one), Self::over(other)))
    }

    /// The same end once more, to send from another thread.
    ///
    /// # Errors
    /// Of the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::over(self.socket.try_clone()?))
    }

    /// The process at the other end, if it is in this PID namespace.
    pub(crate) fn peer(&self) -> Option<Pid> {
        PeerCredentials::of(self.socket.as_fd()).ok()?.pid
    }

    /// Nothing is said any more, and nothing heard: the other end sees the end of it.
    pub(crate) fn shut_down(&self) {
        // It may be gone.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    /// The end that is connected to the unix socket of another process at this path.
    ///
    /// # Errors
    /// Of the system; [`HandoffError::Stranger`].
    pub fn connect(path: &Path) -> Result<Self, HandoffError> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::of(socket)
    }

    /// The end that the process which started this one left as its standard input, which becomes /dev/null.
    ///
    /// # Errors
    /// [`HandoffError::NotAChannel`], [`HandoffError::Stranger`]; of the system.
    pub fn of_standard_input() -> Result<Self, HandoffError> {
        let channel = Self::of(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(channel)
    }

    /// The end that another process left us, or that was accepted or connected; it must be of this user.
    ///
    /// # Errors
    /// [`HandoffError::NotAChannel`], [`HandoffError::Stranger`].
    pub fn of(socket: OwnedFd) -> Result<Self, HandoffError> {
        if socket_type(&socket).map_err(|_| HandoffError::NotAChannel)? != SocketType::SEQPACKET {
            return Err(HandoffError::NotAChannel);
        }
        let peer = PeerCredentials::of(socket.as_fd()).map_err(|_| HandoffError::NotAChannel)?;
        check_user(peer.uid, rustix::process::geteuid().as_raw())?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self::over(socket))
    }

    fn over(socket: OwnedFd) -> Self {
        Self { socket, bytes: vec![0; MESSAGE_BYTES_MAX].into() }
    }

    /// Sends a message with descriptors, which stay open here as well.
    ///
    /// # Errors
    /// [`HandoffError`]; then it was not sent.
    pub fn send<M: Encode<()>>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<(), HandoffError> {
        let bytes = minicbor::to_vec(message).map_err(|error| HandoffError::Unreadable(error.to_string()))?;
        check_length(bytes.len() as u64, MESSAGE_BYTES_MAX as u64)?;
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(HandoffError::TooManyDescriptors(descriptors.len()));
        }
        let until = until(within);
        loop {
            match self.try_send(&bytes, descriptors) {
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until, within)?,
                // More are under way than this user may have open: some will be taken out soon.
                Err(Errno::TOOMANYREFS) if clock::now().ticks < until => std::thread::sleep(RETRY),
                Err(Errno::TOOMANYREFS) => return Err(HandoffError::Timeout(within)),
                Err(Errno::INTR) => {}
                sent => return sent.map_err(HandoffError::from),
            }
        }
    }

    fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits, "there is room for as many as one message can pass");
        }
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Waits for a message and its descriptors, which are closed on exec.
    ///
    /// # Errors
    /// [`HandoffError`]; descriptors that came are closed then.
    pub fn receive<M: for<'b> Decode<'b, ()>>(&mut self, within: Duration) -> Result<(M, Vec<OwnedFd>), HandoffError> {
        let until = until(within);
        loop {
            match self.try_receive() {
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, until, within)?,
                // The other side is gone and had not read all of ours: told once, before what it had said itself.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
                Ok((_, descriptors, flags)) if flags.contains(ReturnFlags::CTRUNC) => {
                    drop(descriptors);
                    return Err(HandoffError::DescriptorsLost);
                }
                Ok((_, _, flags)) if flags.contains(ReturnFlags::TRUNC) => {
                    let max = MESSAGE_BYTES_MAX as u64;
                    return Err(HandoffError::TooLong { bytes: max + 1, max });
                }
                // An empty message is none: the end.
                Ok((0, ..)) => return Err(HandoffError::Closed),
                Ok((len, descriptors, _)) => {
                    let read = minicbor::decode(&self.bytes[..len]);
                    let message = read.map_err(|error| HandoffError::Unreadable(error.to_string()))?;
                    return Ok((message, descriptors));
                }
            }
        }
    }

    fn try_receive(&mut self) -> Result<(usize, Vec<OwnedFd>, ReturnFlags), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut self.bytes)];
        let received = recvmsg(&self.socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok((received.bytes, descriptors, received.flags))
    }

    fn wait(&self, what: PollFlags, until: Ticks, within: Duration) -> Result<(), HandoffError> {
        let left = until.since(clock::now().ticks);
        if left == 0 {
            return Err(HandoffError::Timeout(within));
        }
        let left = Timespec { tv_sec: (left / 1_000) as i64, tv_nsec: (left % 1_000) as i64 * 1_000_000 };
        match poll(&mut [PollFd::new(&self.socket, what)], Some(&left)) {
            // The next try says what it was.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where a process connects that shall take over and was not started by this one: a unix socket for this user only.
#[derive(Debug)]
pub struct SuccessorSocket {
    socket: OwnedFd,
    path: PathBuf,
}

impl SuccessorSocket {
    /// Listens at this path; takes it over from a process that is dead, never from one that still answers.
    ///
    /// # Errors
    /// Of the system.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let new = |flags| socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None);
        // One that does not accept, and has as many waiting as it takes, is there too: it is not waited for.
        if connect(new(SocketFlags::NONBLOCK)?, &address) == Err(Errno::CONNREFUSED) {
            std::fs::remove_file(path)?;
        }
        let socket = new(SocketFlags::empty())?;
        bind(&socket, &address)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&socket, SUCCESSORS_WAITING)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Waits for the next process. Blocks.
    ///
    /// # Errors
    /// Of the system; [`HandoffError::Stranger`].
    pub fn accept(&self) -> Result<Channel, HandoffError> {
        Channel::of(accept_with(&self.socket, SocketFlags::CLOEXEC)?)
    }

    /// No more processes can connect; another one may listen at the path.
    pub fn close(&self) {
        // It may be gone, and no process that matters may be connecting.
        let _ = std::fs::remove_file(&self.path);
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

fn until(within: Duration) -> Ticks {
    Ticks(clock::now().ticks.0.saturating_add(within.as_millis() as u64).saturating_add(1))
}

const fn check_user(peer: u32, own: u32) -> Result<(), HandoffError> {
    if peer == own { Ok(()) } else { Err(HandoffError::Stranger { peer, own }) }
}

const fn check_length(bytes: u64, max: u64) -> Result<(), HandoffError> {
    if bytes <= max { Ok(()) } else { Err(HandoffError::TooLong { bytes, max }) }
}

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Memory that holds these bytes and that can't be changed any more, to be passed as a descriptor.
///
/// # Errors
/// Of the system: out of memory or descriptors.
pub fn to_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = rustix::fs::memfd_create("throughway-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(descriptor);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The bytes that [`to_memory`] put into memory, in this or another process.
///
/// # Errors
/// [`HandoffError::TooLong`] for more than `max` bytes, [`HandoffError::NotSealed`] for memory that could change while it is
/// read.
pub fn from_memory(memory: OwnedFd, max: u64) -> Result<Vec<u8>, HandoffError> {
    let seals = rustix::fs::fcntl_get_seals(&memory).map_err(|_| HandoffError::NotSealed)?;
    if !seals.contains(SEALS) {
        return Err(HandoffError::NotSealed);
    }
    let file = File::from(memory);
    let len = file.metadata()?.len();
    check_length(len, max)?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::UdpSocket;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const AT_ONCE: Duration = Duration::from_millis(20);

    #[derive(Encode, Decode, PartialEq, Debug)]
    struct Note {
        #[n(0)]
        text: String,
        #[n(1)]
        number: u64,
    }

    fn note(text: &str, number: u64) -> Note {
        Note { text: text.to_owned(), number }
    }

    #[test]
    fn messages_arrive_whole_in_order_and_with_their_sockets() {
        let (one, mut other) = Channel::pair().unwrap();
        let sockets: Vec<UdpSocket> = (0..DESCRIPTORS_MAX).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        one.send(&note("first", 1), &[], SOON).unwrap();
        one.send(&note("second", 2), &descriptors, SOON).unwrap();
        assert_eq!(other.receive::<Note>(SOON).unwrap().0, note("first", 1));
        let (message, passed) = other.receive::<Note>(SOON).unwrap();
        assert_eq!((message, passed.len()), (note("second", 2), DESCRIPTORS_MAX));
        for (socket, passed) in sockets.iter().zip(passed) {
            assert_eq!(UdpSocket::from(passed).local_addr().unwrap(), socket.local_addr().unwrap());
        }
        let refused = one.send(&note("third", 3), &[one.as_fd(); DESCRIPTORS_MAX + 1], SOON).unwrap_err();
        assert!(matches!(refused, HandoffError::TooManyDescriptors(254)), "{refused}");
    }

    #[test]
    fn what_waits_at_a_socket_is_there_for_who_gets_it() {
        let (one, mut other) = Channel::pair().unwrap();
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        far.send_to(b"before", here.local_addr().unwrap()).unwrap();
        one.send(&note("yours", 0), &[here.as_fd()], SOON).unwrap();
        drop(here);
        let (_, mut passed) = other.receive::<Note>(SOON).unwrap();
        let here = UdpSocket::from(passed.pop().unwrap());
        far.send_to(b"after", here.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        for expected in [&b"before"[..], b"after"] {
            let (len, from) = here.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (expected, far.local_addr().unwrap()));
        }
    }

    #[test]
    fn a_process_that_is_gone_or_silent_keeps_nobody_waiting() {
        let (one, mut other) = Channel::pair().unwrap();
        assert!(matches!(other.receive::<Note>(AT_ONCE), Err(HandoffError::Timeout(AT_ONCE))));
        // The other end does not read: its queue is bounded.
        let full = (0..100_000).find_map(|number| one.send(&note("more", number), &[], AT_ONCE).err());
        assert!(matches!(full, Some(HandoffError::Timeout(_))), "{full:?}");
        drop(other);
        assert!(matches!(one.send(&note("too late", 0), &[], SOON), Err(HandoffError::Closed)));
        let (one, mut other) = Channel::pair().unwrap();
        one.send(&note("last", 1), &[], SOON).unwrap();
        drop(one);
        assert_eq!(other.receive::<Note>(SOON).unwrap().0, note("last", 1));
        assert!(matches!(other.receive::<Note>(SOON), Err(HandoffError::Closed)));
    }

    #[test]
    fn the_last_word_of_a_process_that_did_not_read_to_the_end_is_heard() {
        let (mut one, other) = Channel::pair().unwrap();
        one.send(&note("unread", 1), &[], SOON).unwrap();
        other.send(&note("why", 2), &[], SOON).unwrap();
        drop(other);
        assert_eq!(one.receive::<Note>(SOON).unwrap().0, note("why", 2));
        assert!(matches!(one.receive::<Note>(SOON), Err(HandoffError::Closed)));
    }

    #[test]
    fn what_is_no_message_is_refused_and_its_descriptors_are_closed() {
        let (one, mut other) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        one.try_send(b"\xFFthis is no CBOR", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(other.receive::<Note>(SOON), Err(HandoffError::Unreadable(_))));
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the other end is closed");
        one.try_send(&vec![0; MESSAGE_BYTES_MAX + 1], &[]).unwrap();
        assert!(matches!(other.receive::<Note>(SOON), Err(HandoffError::TooLong { .. })));
        let long = note(&"x".repeat(MESSAGE_BYTES_MAX), 0);
        assert!(matches!(one.send(&long, &[], SOON), Err(HandoffError::TooLong { .. })));
        one.send(&note("a good one", 7), &[], SOON).unwrap();
        assert_eq!(other.receive::<Note>(SOON).unwrap().0, note("a good one", 7));
    }

    #[test]
    fn only_a_channel_of_this_user_is_one() {
        let (one, other) = Channel::pair().unwrap();
        let (one, mut other) = (Channel::of(one.socket).unwrap(), Channel::of(other.socket).unwrap());
        one.send(&note("as before", 1), &[], SOON).unwrap();
        assert_eq!(other.receive::<Note>(SOON).unwrap().0, note("as before", 1));
        for descriptor in
            [UdpSocket::bind("127.0.0.1:0").unwrap().into(), OwnedFd::from(File::open("/dev/null").unwrap())]
        {
            assert!(matches!(Channel::of(descriptor), Err(HandoffError::NotAChannel)));
        }
        assert!(matches!(check_user(7, 8), Err(HandoffError::Stranger { peer: 7, own: 8 })));
    }

    #[test]
    fn a_process_connects_by_a_path_that_others_can_not_use() {
        let path = std::env::temp_dir().join(format!("throughway-successor-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        // A process that died leaves its file.
        drop(SuccessorSocket::bind(&path).unwrap());
        let socket = SuccessorSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SuccessorSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse, "it still answers");
        // That was a look, not a process that wants to take over.
        let mut look = socket.accept().unwrap();
        assert!(matches!(look.receive::<Note>(SOON), Err(HandoffError::Closed)));
        let mut new = Channel::connect(&path).unwrap();
        let old = socket.accept().unwrap();
        assert_eq!(old.peer().map(|pid| pid.as_raw_nonzero().get() as u32), Some(std::process::id()));
        old.send(&note("hello", 1), &[], SOON).unwrap();
        assert_eq!(new.receive::<Note>(SOON).unwrap().0, note("hello", 1));
        socket.close();
        assert!(!path.exists() && socket.accept().unwrap_err().is_of_closed_listener());
    }

    #[test]
    fn states_pass_as_memory_that_nobody_changes() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        let memory = to_memory(&bytes).unwrap();
        let writable = File::from(memory.try_clone().unwrap());
        assert!(writable.write_at(b"x", 0).is_err() && writable.set_len(1).is_err(), "it is sealed");
        let (one, mut other) = Channel::pair().unwrap();
        one.send(&note("a state", 0), &[memory.as_fd()], SOON).unwrap();
        let (_, mut passed) = other.receive::<Note>(SOON).unwrap();
        assert_eq!(from_memory(passed.pop().unwrap(), 1 << 20).unwrap(), bytes);
        assert!(matches!(from_memory(memory, 999_999), Err(HandoffError::TooLong { .. })));
        let loose = rustix::fs::memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(from_memory(loose, 10), Err(HandoffError::NotSealed)));
        assert!(matches!(from_memory(File::open("/dev/null").unwrap().into(), 10), Err(HandoffError::NotSealed)));
    }
}
