//! An IP address and a point in time as small as permissions and channels need them.

use std::net::{IpAddr, Ipv6Addr};

use crate::time::Ticks;

/// An IP address in 16 bytes; which family it is of is noted beside it.
pub(super) type Bits = [u64; 2];

pub(super) fn bits(ip: IpAddr) -> (Bits, bool) {
    match ip {
        IpAddr::V4(ip) => ([0, u64::from(u32::from(ip))], false),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            ([(bits >> 64) as u64, bits as u64], true)
        }
    }
}

pub(super) fn ip([high, low]: Bits, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)))
    } else {
        IpAddr::V4((low as u32).into())
    }
}

/// A point in time in 48 bits: milliseconds of 8,900 years.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiresAt([u16; 3]);

impl ExpiresAt {
    pub(super) fn new(at: Ticks) -> Self {
        let at = at.0.min((1 << 48) - 1);
        Self([(at >> 32) as u16, (at >> 16) as u16, at as u16])
    }

    pub(super) fn ticks(self) -> Ticks {
        let Self([high, middle, low]) = self;
        Ticks(u64::from(high) << 32 | u64::from(middle) << 16 | u64::from(low))
    }
}
