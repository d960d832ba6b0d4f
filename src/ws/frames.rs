//! A message, and how it and the JSON value on a bus become each other.
//!
//! What leaves as a message arrives as the same message at every other WebSocket, but for white space between the tokens
//! of an object or array; and whoever speaks JSON gets a value, not a text that holds one:
//!
//! | message | on the bus |
//! | --- | --- |
//! | text that is a JSON object or array | that value, without white space between its tokens |
//! | text that is a JSON number, `true`, `false` or `null` and nothing else | that value |
//! | any other text, also `"a JSON string"` in its quotes | a string |
//! | binary | `{"base64":"…"}` |
//!
//! The other way round, a string is the text that it stands for, `{"base64":"…"}` is binary, and any other value is its
//! own JSON text. A text that is `{"base64":"…"}` itself goes as a string, so that it stays text.

use crate::json::compact;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Serialize, Serializer};

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Text.
    Text(&'a str),
    /// Any bytes.
    Binary(&'a [u8]),
}

impl Frame<'_> {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `{"size":BYTES}`, and the bytes themselves in base64 where no `text` event follows that has them.
impl Serialize for Frame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("size", &self.len())?;
        if let Self::Binary(bytes) = self {
            map.serialize_entry("binary", &BASE64.encode(bytes))?;
        }
        map.end()
    }
}

/// What the bus holds for a message.
pub(crate) fn to_bus(frame: Frame<'_>) -> String {
    match frame {
        Frame::Binary(bytes) => format!(r#"{{"base64":"{}"}}"#, BASE64.encode(bytes)),
        Frame::Text(text) => value(text).unwrap_or_else(|| string(text)),
    }
}

/// The value that a text is, if it goes as one.
fn value(text: &str) -> Option<String> {
    if text.starts_with('"') {
        return None;
    }
    let value = compact(text.as_bytes()).ok()??;
    let is_composed = value.starts_with(['{', '[']);
    // A lone number with white space around it would come back without.
    ((is_composed || value == text) && binary(&value).is_none() && !value.starts_with('"')).then_some(value)
}

fn string(text: &str) -> String {
    // Every text can be written as JSON.
    serde_json::to_string(text).unwrap_or_else(|_| "null".to_owned())
}

/// The bytes that a value stands for.
fn binary(value: &str) -> Option<Vec<u8>> {
    BASE64.decode(value.strip_prefix(r#"{"base64":""#)?.strip_suffix(r#""}"#)?).ok()
}

/// Gives `take` the message that a value on the bus is.
pub(crate) fn from_bus(value: &str, take: impl FnOnce(Frame<'_>)) {
    if let Some(bytes) = binary(value) {
        return take(Frame::Binary(&bytes));
    }
    if value.starts_with('"') {
        // A string with half a surrogate pair is JSON, but no text.
        if let Ok(text) = serde_json::from_str::<String>(value) {
            return take(Frame::Text(&text));
        }
    }
    take(Frame::Text(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message that has come through the bus.
    #[derive(Debug, PartialEq)]
    enum Arrived {
        Text(String),
        Binary(Vec<u8>),
    }

    fn arrived(value: &str) -> Arrived {
        let mut arrived = None;
        from_bus(value, |frame| {
            arrived = Some(match frame {
                Frame::Text(text) => Arrived::Text(text.to_owned()),
                Frame::Binary(bytes) => Arrived::Binary(bytes.to_owned()),
            });
        });
        arrived.unwrap()
    }

    #[test]
    fn pollers_get_values_where_there_are_some() {
        for (text, value) in [
            (r#"{"b": [1, 2.0],"a":null }"#, r#"{"b":[1,2.0],"a":null}"#),
            ("[]", "[]"),
            ("12345678901234567890", "12345678901234567890"),
            ("true", "true"),
            (" 1", r#"" 1""#),
            ("hello", r#""hello""#),
            ("", r#""""#),
            ("\n", r#""\n""#),
            (r#""quoted""#, r#""\"quoted\"""#),
            (r#" "quoted" "#, r#"" \"quoted\" ""#),
            (r#"{"base64":"aGk="}"#, r#""{\"base64\":\"aGk=\"}""#),
            (r#"{"base64":"not base64"}"#, r#"{"base64":"not base64"}"#),
        ] {
            assert_eq!(to_bus(Frame::Text(text)), value, "{text}");
        }
        assert_eq!(to_bus(Frame::Binary(b"hi")), r#"{"base64":"aGk="}"#);
    }

    #[test]
    fn what_pollers_post_is_a_message() {
        assert_eq!(arrived(r#""h\u00e9\n""#), Arrived::Text("h\u{e9}\n".to_owned()));
        assert_eq!(arrived(r#"{"a":"b"}"#), Arrived::Text(r#"{"a":"b"}"#.to_owned()));
        assert_eq!(arrived(r#"{"base64":"aGk="}"#), Arrived::Binary(b"hi".to_vec()));
        assert_eq!(arrived(r#""\ud800""#), Arrived::Text(r#""\ud800""#.to_owned()));
        assert_eq!(arrived(r#"{"base64":"aGk"}"#), Arrived::Text(r#"{"base64":"aGk"}"#.to_owned()));
    }

    proptest! {
        #[test]
        fn a_message_arrives_as_it_left(
            text in prop_oneof![".{0,40}", "[\"{}:,\\[\\]base64 ntrue1\\\\\\n\\r\\x00]{0,20}"],
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let value = to_bus(Frame::Text(&text));
            // A line of a queue, and JSON.
            prop_assert!(!value.contains(['\n', '\r', '\0']));
            prop_assert_eq!(compact(value.as_bytes()).unwrap(), Some(value.clone()));
            let spaceless = compact(text.as_bytes()).ok().flatten().filter(|json| json.starts_with(['{', '[']));
            let stays = binary(spaceless.as_deref().unwrap_or_default()).is_some();
            let expected = if stays { text } else { spaceless.unwrap_or(text) };
            prop_assert_eq!(arrived(&value), Arrived::Text(expected));
            prop_assert_eq!(arrived(&to_bus(Frame::Binary(&bytes))), Arrived::Binary(bytes));
        }
    }
}
