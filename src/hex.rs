//! Hexadecimal digits.

use std::fmt::Write as _;
use std::io;

/// The digits of these bytes, in lower case.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of these digits, in either case; `None` where anything else is among them.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| Some(digit(high)? * 16 + digit(low)?)).collect())?
}

/// The digits of so many random bytes.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn random(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(encode(&random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digits_are_read_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in ".{0,8}") {
            let digits = encode(&bytes);
            prop_assert_eq!(digits.len(), 2 * bytes.len());
            prop_assert_eq!(decode(&digits), Some(bytes.clone()));
            prop_assert_eq!(decode(&digits.to_uppercase()), Some(bytes));
            if decode(&text).is_some() {
                prop_assert!(text.len() % 2 == 0 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
    }
}
