//! JSON in which no object names a member twice: two readers of such a body may see two different values, and one of them may be the
//! one that allowed it (RFC 8259 section 4).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a body is none that is read here.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRead {
    #[error("{0}")]
    NoJson(serde_json::Error),
    #[error("it must be a JSON object")]
    NoObject,
    #[error("{0}")]
    Twice(serde_json::Error),
}

/// Reads a body that is one JSON object.
///
/// # Errors
/// [`NotRead`]: no JSON, no object, or a member that is there twice.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, NotRead> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let of_data =
        |error: serde_json::Error| if error.is_data() { NotRead::Twice(error) } else { NotRead::NoJson(error) };
    let value = Strict.deserialize(&mut reader).map_err(of_data)?;
    reader.end().map_err(NotRead::NoJson)?;
    match value {
        Value::Object(members) => Ok(members),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(NotRead::NoObject),
    }
}

/// As [`Value`] reads itself, but for members that are there twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("the member {name:?} is there twice")));
            }
            object.insert(name, members.next_value_seed(Self)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_any_reader_does() {
        for text in [
            "{}",
            r#"{"a":null,"b":true,"c":-1,"d":18446744073709551615,"e":1.5,"f":"text \u00e9","g":[1,[2],{"h":{}}]}"#,
            r#" { "a" : { "b" : 1 } , "c" : { "b" : 2 } } "#,
        ] {
            let ours = object(text.as_bytes()).map(Value::Object).map_err(|_| ());
            assert_eq!(ours, serde_json::from_str(text).map_err(|_| ()), "{text}");
        }
    }

    #[test]
    fn no_member_twice_at_any_depth_and_nothing_but_an_object() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"a":[{"b":{"c":1,"d":2,"c":3}}]}"#] {
            let why = object(text.as_bytes()).unwrap_err().to_string();
            assert!(why.contains("is there twice"), "{text}: {why}");
        }
        for text in ["", "[]", "null", "1", "\"a\"", "{} {}", "{", "{\"a\":}", "{\"a\":NaN}"] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(object(format!("{{\"a\":{deep}").as_bytes()).is_err(), "depth is bounded");
    }
}
