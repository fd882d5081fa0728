//! Strict JSON in, canonical JSON (RFC 8785) out.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads JSON text as UTF-8 with nothing after it, and refuses an object that names a member twice, at any depth.
///
/// `serde_json` alone would keep the last of two members, so that two readers of one signed text could see two meanings.
///
/// # Errors
/// The text is not such JSON, or not of a `T`.
pub(crate) fn parse_strict<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Strict>(bytes).and_then(|strict| T::deserialize(strict.0))
}

/// The canonical text of `value`: sorted keys, no spaces, ECMAScript strings and numbers. `None` when it has none.
pub(crate) fn canonical(value: &Value) -> Option<String> {
    serde_json_canonicalizer::to_string(value).ok()
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("member \"{name}\" appears twice in one object")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{canonical, parse_strict};

    #[test]
    fn a_member_named_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"y":{"a":1,"\u0061":2}}]}"#] {
            assert!(parse_strict::<Value>(text.as_bytes()).unwrap_err().to_string().contains("appears twice"));
        }
    }

    #[test]
    fn sloppy_text_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{}x", "{} {}", "\u{feff}{}", "{'a':1}", "[1,]", "1e999", r#""\ud800""#, "NaN", &deep] {
            assert!(parse_strict::<Value>(text.as_bytes()).is_err(), "{}", &text[..text.len().min(20)]);
        }
        assert!(parse_strict::<Value>(b"\"\xff\"").is_err());
    }

    #[test]
    fn canonical_text_is_sorted_and_tight() {
        let value: Value = parse_strict(br#" { "b" : [1.0, 2e1, "\u00e9\/"] , "a" : null } "#).unwrap();
        assert_eq!(canonical(&value).unwrap(), "{\"a\":null,\"b\":[1,20,\"\u{e9}/\"]}");
    }
}
