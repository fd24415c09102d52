//! One request over UDP and when it is sent again (RFC 8489 section 6.2.1).

use crate::account::Asked;
use crate::stun::TransactionId;

/// RTO: first retransmission after 500 ms, each wait twice the last.
pub const FIRST_WAIT_NS: u64 = 500_000_000;
/// Rc: seven transmissions in all.
pub const SENDS: u32 = 7;
/// Rm: after the last transmission sixteen times the RTO.
const LAST_WAIT: u64 = 16;

pub struct Exchange {
    pub id: TransactionId,
    pub asked: Asked,
    pub bytes: Vec<u8>,
    pub first_sent: u64,
    pub last_sent: u64,
    pub sends: u32,
}

#[derive(PartialEq, Eq, Debug)]
pub enum Due {
    Nothing,
    SendAgain,
    GiveUp,
}

impl Exchange {
    pub fn new(id: TransactionId, asked: Asked, bytes: Vec<u8>, now: u64) -> Self {
        Self { id, asked, bytes, first_sent: now, last_sent: now, sends: 1 }
    }

    /// What the clock demands; `SendAgain` counts as sent.
    pub fn due(&mut self, now: u64) -> Due {
        let factor = if self.sends == SENDS { LAST_WAIT } else { 1 << (self.sends - 1) };
        if now < self.last_sent + factor * FIRST_WAIT_NS {
            return Due::Nothing;
        }
        if self.sends == SENDS {
            return Due::GiveUp;
        }
        self.sends += 1;
        self.last_sent = now;
        Due::SendAgain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun;

    /// The times that RFC 8489 section 6.2.1 gives for an RTO of 500 ms.
    #[test]
    fn transmissions_at_the_times_of_the_rfc() {
        let asked = Asked { method: stun::REFRESH, signed: true, lifetime: None };
        let mut exchange = Exchange::new([0; 12], asked, Vec::new(), 0);
        let mut sent = vec![0];
        for millisecond in 0..60_000 {
            match exchange.due(millisecond * 1_000_000) {
                Due::Nothing => {}
                Due::SendAgain => sent.push(millisecond),
                Due::GiveUp => {
                    assert_eq!(millisecond, 39_500);
                    break;
                }
            }
        }
        assert_eq!(sent, [0, 500, 1_500, 3_500, 7_500, 15_500, 31_500]);
        assert_eq!(exchange.due(60_000_000_000), Due::GiveUp);
    }
}
