//! The body of a message, whatever the protocol: one JSON value, passed on as it is.

use serde_json::value::RawValue;
use std::fmt;

/// A body that is not JSON, and why.
#[derive(Debug)]
pub struct BadJson(String);

impl fmt::Display for BadJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The body is not JSON ({}): send one JSON value in UTF-8.", self.0)
    }
}

/// Any JSON value, byte for byte, without the white space between its tokens (a line end would
/// break the event stream's `data:` line). Nothing is parsed into numbers or maps, so big integers, the order of keys
/// and duplicate keys survive. `None` where there is no body.
///
/// # Errors
/// [`BadJson`].
pub fn compact(body: &[u8]) -> Result<Option<String>, BadJson> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let json: &RawValue = serde_json::from_slice(body).map_err(|error| BadJson(error.to_string()))?;
    let mut rest = json.get();
    let mut message = String::with_capacity(rest.len());
    while let Some(quote) = memchr::memchr(b'"', rest.as_bytes()) {
        let end = quote + string_len(&rest.as_bytes()[quote..]);
        message.extend(rest[..quote].split_ascii_whitespace());
        message.push_str(&rest[quote..end]);
        rest = &rest[end..];
    }
    message.extend(rest.split_ascii_whitespace());
    Ok(Some(message))
}

/// The length of the JSON string that begins here, with its quotes.
fn string_len(json: &[u8]) -> usize {
    let mut len = 1;
    while let Some(at) = memchr::memchr2(b'"', b'\\', &json[len..]) {
        if json[len + at] == b'"' {
            return len + at + 1;
        }
        len = (len + at + 2).min(json.len());
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(body: &str) -> String {
        compact(body.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_message_keeps_every_byte_but_white_space_between_tokens() {
        assert_eq!(
            text(" { \"b\" : 12345678901234567890123 ,\r\n\t\"a\":1.0e5, \"b\": [ ] } "),
            r#"{"b":12345678901234567890123,"a":1.0e5,"b":[]}"#
        );
        assert_eq!(text(r#""a \" b\\" "#), r#""a \" b\\""#);
        assert_eq!(text(r#""\ud800 \u0000""#), r#""\ud800 \u0000""#);
        assert_eq!(compact(b" \n").unwrap(), None);
        assert_eq!(compact(b"").unwrap(), None);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(text(&deep), deep);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for body in
            [&b"{"[..], b"{}{}", b"'a'", b"\xff", b"\"\xff\"", b"\"a\nb\"", b"nul", b"01", b"\xef\xbb\xbf{}", b"\0"]
        {
            assert!(compact(body).is_err(), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn a_message_means_what_its_body_means(body in json_text(), space in "[ \t\r\n]{0,3}") {
            let spaced = format!("{space}{body}{space}");
            let message = text(&spaced);
            prop_assert!(!message.contains(['\n', '\r']));
            let meaning = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            prop_assert_eq!(meaning(&message), meaning(&body));
        }

        #[test]
        fn any_bytes_are_a_message_or_refused(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some(message)) = compact(&body) {
                prop_assert!(!message.contains(['\n', '\r', '\0']));
            }
        }
    }

    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|number| number.to_string()),
            "\\PC{0,10}|[\"\\\\ ]{0,5}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5)
                    .prop_map(|values| format!("[ {} ]", values.join(" ,\n"))),
                proptest::collection::vec(inner, 0..5).prop_map(|values| {
                    let pairs: Vec<_> =
                        values.iter().enumerate().map(|(n, value)| format!("\"k {n}\" :\t{value}")).collect();
                    format!("{{{}}}", pairs.join(", "))
                }),
            ]
        })
    }
}
