//! The alerts of TLS that we send.

/// Why a stream of TLS ends (RFC 8446 section 6); the number is the alert's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Alert {
    /// We send no more.
    #[error("close_notify")]
    CloseNotify = 0,
    /// A record or message that has no place here.
    #[error("unexpected_message")]
    UnexpectedMessage = 10,
    /// A record that can't be deprotected.
    #[error("bad_record_mac")]
    BadRecordMac = 20,
    /// A record longer than the protocol allows.
    #[error("record_overflow")]
    RecordOverflow = 22,
    /// A field with a value that it can't have.
    #[error("illegal_parameter")]
    IllegalParameter = 47,
    /// A message of the wrong length.
    #[error("decode_error")]
    DecodeError = 50,
    /// We can't go on, for a reason that is not the client's.
    #[error("internal_error")]
    InternalError = 80,
}

/// AlertLevel; TLS 1.3 goes by the description alone.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

impl Alert {
    /// The one with this number; [`Alert::InternalError`] for one that we don't send.
    pub(in crate::net) const fn of(number: u8) -> Self {
        match number {
            0 => Self::CloseNotify,
            10 => Self::UnexpectedMessage,
            20 => Self::BadRecordMac,
            22 => Self::RecordOverflow,
            47 => Self::IllegalParameter,
            50 => Self::DecodeError,
            _ => Self::InternalError,
        }
    }

    /// The two bytes of the message.
    pub(super) const fn message(self) -> [u8; 2] {
        let level = match self {
            Self::CloseNotify => WARNING,
            Self::UnexpectedMessage
            | Self::BadRecordMac
            | Self::RecordOverflow
            | Self::IllegalParameter
            | Self::DecodeError
            | Self::InternalError => FATAL,
        };
        [level, self as u8]
    }
}
