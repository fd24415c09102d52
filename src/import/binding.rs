//! Options of Binding, which needs no credentials, and of mobility: each is one of ours.

use crate::import::draft::Draft;
use crate::import::source::Source;
use crate::import::verdict::Outcome;

pub(super) fn carry(source: &mut Source, draft: &mut Draft) {
    for name in ["rfc3489-compatibility", "stun-backward-compatibility"] {
        if let Some(setting) = source.flag(name, draft) {
            if !draft.has("stun.classic") {
                draft.key("stun.classic", "true", std::slice::from_ref(&setting.place));
            }
            draft.say(&setting, Outcome::Carried, "stun.classic");
        }
    }
    if let Some(setting) = source.flag("mobility", draft) {
        draft.key("relay.mobility", "true", std::slice::from_ref(&setting.place));
        draft.say(&setting, Outcome::Carried, "relay.mobility");
    }
}
