//! The query string: `application/x-www-form-urlencoded`, as the WHATWG URL text parses it, except that what is not
//! UTF-8 is refused instead of replaced.

use std::fmt;

/// The parameters of a request, in order.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// The query is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("The query string is not UTF-8: percent-encode every parameter as UTF-8.")
    }
}

impl Query {
    /// Reads a raw query string.
    ///
    /// # Errors
    /// [`NotUtf8`].
    pub fn parse(raw: &[u8]) -> Result<Self, NotUtf8> {
        raw.split(|byte| *byte == b'&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
                Ok((decode(&pair[..end])?, decode(pair.get(end + 1..).unwrap_or_default())?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The value of the first parameter of that name; `None` where it is missing or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether there is a parameter of that name, with a value or without one.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }
}

fn decode(part: &[u8]) -> Result<String, NotUtf8> {
    let spaced: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    String::from_utf8(urlencoding::decode_binary(&spaced).into_owned()).map_err(|_| NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_of_several_counts_and_empty_is_missing() {
        let query = Query::parse(b"&a=1&a=2&&b&c=&d=x%3Dy=z&e=a+b%2Bc&%66=g").unwrap();
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.get("b"), None);
        assert_eq!(query.get("c"), None);
        assert_eq!(query.get("d"), Some("x=y=z"));
        assert_eq!(query.get("e"), Some("a b+c"));
        assert_eq!(query.get("f"), Some("g"));
        assert!(query.has("a") && query.has("b") && query.has("c") && !query.has("g"));
    }

    #[test]
    fn what_is_not_utf8_is_refused() {
        for raw in [&b"a=%ff"[..], b"a=\xff", b"%C3=1", b"a=%ed%a0%80"] {
            assert_eq!(Query::parse(raw).unwrap_err(), NotUtf8);
        }
    }

    #[test]
    fn a_percent_sign_that_encodes_nothing_stands_for_itself() {
        assert_eq!(Query::parse(b"a=100%&b=%zz&c=%4").unwrap().get("a"), Some("100%"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read(values in proptest::collection::vec((".{1,10}", ".{1,20}"), 0..5)) {
            let raw: Vec<_> = values
                .iter()
                .map(|(key, value)| format!("{}={}", urlencoding::encode(key), urlencoding::encode(value)))
                .collect();
            let query = Query::parse(raw.join("&").as_bytes()).unwrap();
            for (key, _) in &values {
                let first = values.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str());
                prop_assert_eq!(query.get(key), first);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Query::parse(&raw);
        }
    }
}
