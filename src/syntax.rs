//! Small pieces of HTTP's grammar.

/// A number that is digits and nothing else, as a length is (RFC 9110, 8.6): `parse` would take a sign.
#[must_use]
pub fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Whether a text is a token (RFC 9110, 5.6.2), as the names of fields and subprotocols are.
#[must_use]
pub fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_nothing_else() {
        assert_eq!(digits(b"0"), Some(0));
        assert_eq!(digits(b"1048576"), Some(1 << 20));
        for wrong in ["", "+1", "-1", " 1", "1 ", "0x10", "1,2", "\u{a0}5", "99999999999999999999999"] {
            assert_eq!(digits(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(digits(b"\xff"), None);
    }

    #[test]
    fn a_token_has_no_spaces_and_no_separators() {
        assert!(is_token("chat.v2") && is_token("X-Any_Name!"));
        for wrong in ["", "a b", "a,b", "a/b", "a\r\n", "ä"] {
            assert!(!is_token(wrong), "{wrong:?}");
        }
    }
}
