//! `[stun]`: what Binding does beyond RFC 8489.

use crate::config::check::Check;
use crate::protocol::settings::StunSettings;

impl Check {
    pub(crate) fn stun(&self) -> StunSettings {
        StunSettings { classic: self.flag_of("stun.classic") }
    }
}
