//! The one reader of a credential's limits, and their one writer.
//!
//! The claims of a credential, an object of limits over HTTP, a table of limits of the configuration and the options of
//! `credentials mint` have other names for them, and say other things about a mistake. Which values a limit takes is the same for all of them, and stands here.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Number, Value, json};

use super::claims::{Claim, Grant, PeerScope, Transports};
use crate::address::Transport;

/// The value of a limit as its source has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LimitValue<'a> {
    /// A whole number, not negative.
    Number(u64),
    /// A text.
    Text(&'a str),
    /// A list of texts.
    List(Vec<&'a str>),
    /// Anything else: no limit takes it.
    Other,
}

impl<'a> From<&'a Value> for LimitValue<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Number(number) => whole(number).map_or(Self::Other, Self::Number),
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::of_texts(items.iter().map(Value::as_str)),
            Value::Null | Value::Bool(_) | Value::Object(_) => Self::Other,
        }
    }
}

/// A whole number, not negative, in whatever way JSON has it: 3600.0 and 1e9 are whole numbers too, and some languages
/// write them so.
pub(crate) fn whole(number: &Number) -> Option<u64> {
    /// 2^64, the first that is too large.
    const END: f64 = 18_446_744_073_709_551_616.0;
    let is_whole = |float: &f64| float.fract() == 0.0 && (0.0..END).contains(float);
    // Of such a float each is exactly a u64.
    number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|float| float as u64))
}

/// Why a value is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LimitRefused {
    /// It is of the wrong kind or out of range.
    Kind,
    /// 0, or an empty list: it would allow nothing.
    Empty,
    /// This item of the list is wrong.
    Item(Box<str>),
}

/// How exactly prefixes must be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefixForm {
    /// No bits are set after the length: a program that asks for more than it means should hear of it.
    Exact,
    /// Such bits are dropped: the credential is signed and can't be corrected.
    Truncated,
    /// They are dropped, and an address stands for itself: a person writes it.
    OrAddress,
    /// No bits are set after the length, and an address stands for itself: the file of a person, who is told.
    ExactOrAddress,
}

impl PrefixForm {
    fn parse(self, text: &str) -> Option<IpNet> {
        let prefix = text.parse::<IpNet>().ok();
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        match self {
            Self::Exact => prefix.filter(|net| *net == net.trunc()),
            Self::Truncated => prefix.map(|net| net.trunc()),
            Self::OrAddress => prefix.map(|net| net.trunc()).or_else(address),
            Self::ExactOrAddress => prefix.or_else(address).filter(|net| *net == net.trunc()),
        }
    }
}

impl<'a> LimitValue<'a> {
    /// A list, if each item is a text.
    pub(crate) fn of_texts(items: impl Iterator<Item = Option<&'a str>>) -> Self {
        items.collect::<Option<_>>().map_or(Self::Other, Self::List)
    }

    fn number(&self) -> Result<u64, LimitRefused> {
        match self {
            Self::Number(0) => Err(LimitRefused::Empty),
            Self::Number(number) => Ok(*number),
            Self::Text(_) | Self::List(_) | Self::Other => Err(LimitRefused::Kind),
        }
    }

    /// Each item of a list that is not empty.
    fn items<T>(&self, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, LimitRefused> {
        match self {
            Self::List(items) if items.is_empty() => Err(LimitRefused::Empty),
            Self::List(items) => {
                items.iter().map(|item| read(item).ok_or_else(|| LimitRefused::Item((*item).into()))).collect()
            }
            Self::Number(_) | Self::Text(_) | Self::Other => Err(LimitRefused::Kind),
        }
    }
}

impl Grant {
    /// Takes a limit over. The tenant is no limit, and its caller reads it.
    ///
    /// # Errors
    /// [`LimitRefused`], which the caller puts into words: it knows what the limit is called there.
    pub fn set(&mut self, limit: Claim, value: &LimitValue<'_>, form: PrefixForm) -> Result<(), LimitRefused> {
        match limit {
            Claim::Bytes => self.bytes = Some(value.number()?),
            Claim::Bitrate => self.bits_per_second = Some(value.number()?),
            Claim::Allocations => {
                self.allocations = Some(u32::try_from(value.number()?).map_err(|_| LimitRefused::Kind)?);
            }
            Claim::Peers if *value == LimitValue::Text("relay") => self.peers = vec![PeerScope::Relay],
            Claim::Peers => {
                self.peers = vec![PeerScope::Prefixes(value.items(|item| form.parse(item))?.into())];
            }
            Claim::Transports => {
                let named = |item: &str| Transport::ALL.into_iter().find(|transport| transport.name() == item);
                self.transports = Some(Transports::of(&value.items(named)?));
            }
            Claim::ClosesAt => self.closes_at = Some(value.number()?),
            Claim::Tenant => return Err(LimitRefused::Kind),
        }
        Ok(())
    }

    /// The limits that a credential can carry, each with the JSON that [`Self::set`] takes.
    ///
    /// What it can't carry is not among them: [`Grant::bytes_per_day`], [`Grant::packets_per_second`], and of several
    /// peer scopes all but the first.
    pub fn limits(&self) -> impl Iterator<Item = (Claim, Value)> {
        let peers = self.peers.first().map(|scope| match scope {
            PeerScope::Relay => json!("relay"),
            PeerScope::Prefixes(prefixes) => prefixes.iter().map(ToString::to_string).collect(),
        });
        [
            (Claim::Bytes, self.bytes.map(Value::from)),
            (Claim::Bitrate, self.bits_per_second.map(Value::from)),
            (Claim::Allocations, self.allocations.map(Value::from)),
            (Claim::Peers, peers),
            (Claim::Transports, self.transports.map(|transports| transports.names().into())),
            (Claim::ClosesAt, self.closes_at.map(Value::from)),
        ]
        .into_iter()
        .filter_map(|(limit, value)| Some((limit, value?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_values_of_its_kind_that_allow_something() {
        let set = |limit, value: Value, form| Grant::default().set(limit, &(&value).into(), form);
        let exact = |limit, value| set(limit, value, PrefixForm::Exact);
        for limit in [Claim::Bytes, Claim::Bitrate, Claim::Allocations, Claim::ClosesAt] {
            for whole in [json!(7), json!(7.0), json!(1e9)] {
                assert_eq!(exact(limit, whole), Ok(()));
            }
            assert_eq!(exact(limit, json!(0)), Err(LimitRefused::Empty));
            for wrong in [json!(-1), json!(1.5), json!(1e30), json!("7"), json!([7]), json!(null)] {
                assert_eq!(exact(limit, wrong), Err(LimitRefused::Kind));
            }
        }
        assert_eq!(exact(Claim::Allocations, json!(1_u64 << 32)), Err(LimitRefused::Kind));
        for limit in [Claim::Peers, Claim::Transports] {
            assert_eq!(exact(limit, json!([])), Err(LimitRefused::Empty));
            assert_eq!(exact(limit, json!([5])), Err(LimitRefused::Kind));
            assert_eq!(exact(limit, json!("all")), Err(LimitRefused::Kind));
            assert_eq!(exact(limit, json!(["all"])), Err(LimitRefused::Item("all".into())));
        }
        assert_eq!(exact(Claim::Peers, json!("relay")), Ok(()));
        assert_eq!(exact(Claim::Tenant, json!("acme")), Err(LimitRefused::Kind));
    }

    #[test]
    fn a_whole_number_is_read_to_the_last_digit() {
        let read = |text: &str| whole(&serde_json::from_str(text).unwrap());
        for (text, number) in [
            ("0", Some(0)),
            ("-0.0", Some(0)),
            ("3600.0", Some(3600)),
            ("1e9", Some(1_000_000_000)),
            ("9007199254740993", Some(9_007_199_254_740_993)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709549568.0", Some(18_446_744_073_709_549_568)),
            ("18446744073709551616", None),
            ("1.8446744073709552e19", None),
            ("0.5", None),
            ("-1", None),
            ("-1.0", None),
        ] {
            assert_eq!(read(text), number, "{text}");
        }
    }

    #[test]
    fn prefixes_are_read_as_exactly_as_their_source_is_held_to() {
        let peers = |text: &str, form| {
            let mut grant = Grant::default();
            let result = grant.set(Claim::Peers, &LimitValue::List(vec![text]), form);
            result.map(|()| grant.limits().map(|(_, value)| value.to_string()).collect::<String>())
        };
        use PrefixForm::{Exact, ExactOrAddress, OrAddress, Truncated};
        for (text, form, read) in [
            ("10.0.0.0/8", Exact, Some(r#"["10.0.0.0/8"]"#)),
            ("10.0.0.1/8", Exact, None),
            ("10.0.0.1/8", Truncated, Some(r#"["10.0.0.0/8"]"#)),
            ("10.0.0.1/8", OrAddress, Some(r#"["10.0.0.0/8"]"#)),
            ("10.0.0.1", Exact, None),
            ("10.0.0.1", Truncated, None),
            ("10.0.0.1", OrAddress, Some(r#"["10.0.0.1/32"]"#)),
            ("2001:db8::7", OrAddress, Some(r#"["2001:db8::7/128"]"#)),
            ("10.0.0.0/40", OrAddress, None),
            ("10.0.0.0/8", ExactOrAddress, Some(r#"["10.0.0.0/8"]"#)),
            ("10.0.0.1/8", ExactOrAddress, None),
            ("10.0.0.1", ExactOrAddress, Some(r#"["10.0.0.1/32"]"#)),
        ] {
            let refused = LimitRefused::Item(text.into());
            assert_eq!(peers(text, form), read.map(str::to_owned).ok_or(refused), "{text} {form:?}");
        }
    }
}
