//! The header fields of a request or an answer.
//!
//! Names are lower case. A map has a name once, so several fields of a name become one list (RFC 9110, 5.3), except for
//! `set-cookie`, which cannot be a list: its name comes several times.

use crate::syntax::is_token;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;

/// How many header fields a head may have.
pub const MAX_FIELDS: usize = 200;

// A visitor can only fail with words; by these the reader of a head knows them again.
pub(super) const TOO_LARGE: &str = "too large";
pub(super) const BAD_FIELD: &str = "bad field";

/// A header field that cannot be passed on: its name is no token, or its value has a control character.
#[derive(Debug)]
pub struct BadField;

/// Header fields, by lower-case name, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    /// Adds a field; to the list of one that is there already, unless it is `set-cookie`.
    ///
    /// # Errors
    /// For a name that is no token (RFC 9110, 5.6.2) or a value with a control character.
    pub fn add(&mut self, name: &str, value: &[u8]) -> Result<(), BadField> {
        let is_content = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if !is_token(name) || !value.iter().all(is_content) {
            return Err(BadField);
        }
        let name = name.to_ascii_lowercase();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, list)) if name != "set-cookie" => {
                list.extend_from_slice(b", ");
                list.extend_from_slice(value);
            }
            _ => self.0.push((name, value.to_vec())),
        }
        Ok(())
    }

    /// The value of the first field of that (lower-case) name, where it is text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Removes what concerns one connection only and must not be passed on (RFC 9110, 7.6.1).
    pub fn remove_hop_by_hop(&mut self) {
        const ALWAYS: [&str; 9] = [
            "connection",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        let connection = self.get("connection").unwrap_or_default().to_ascii_lowercase();
        let named: Vec<_> = connection.split(',').map(str::trim).collect();
        self.0.retain(|(name, _)| !ALWAYS.contains(&name.as_str()) && !named.contains(&name.as_str()));
    }

    /// Removes the fields of that (lower-case) name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("header fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                let mut count = 0;
                while let Some((name, value)) = map.next_entry::<String, Vec<u8>>()? {
                    count += 1;
                    if count > MAX_FIELDS {
                        return Err(de::Error::custom(TOO_LARGE));
                    }
                    fields.add(&name, &value).map_err(|_| de::Error::custom(BAD_FIELD))?;
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let mut some = Fields::default();
        for (name, value) in [
            ("Connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "1"),
            ("proxy-authorization", "Basic eDp5"),
            ("content-length", "5"),
            ("x-open", "1"),
        ] {
            some.add(name, value.as_bytes()).unwrap();
        }
        some.remove_hop_by_hop();
        let rest: Vec<_> = some.iter().collect();
        assert_eq!(rest, [("content-length", &b"5"[..]), ("x-open", b"1")]);
    }
}
