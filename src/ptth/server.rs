//! The name of a server, and what proves that somebody is it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// The name of a server: 1 to 64 letters, digits, `-`, `_` and `.`, not beginning with a dot. So it is a part of a path
/// as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct ServerName(String);

impl ServerName {
    /// `None` for what cannot be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let is_good = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        is_good.then(|| Self(name.to_owned()))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ServerName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name).ok_or("a name is 1 to 64 letters, digits, '-', '_' and '.', and does not begin with a dot")
    }
}

/// What the relay keeps of a server's key: its BLAKE3 hash, as base64. Two are compared in constant time, as the blake3 crate does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Tripcode(blake3::Hash);

impl Tripcode {
    /// That of a key. A key is random, so its hash tells nothing about it.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// By what the relay that knows it is named in `Via` (RFC 9110, 7.6.3) on the way to the server of that name: it tells
    /// nothing of the relay's host, and no other server and no other relay has it.
    #[must_use]
    pub fn pseudonym(&self, name: &ServerName) -> String {
        let hash = blake3::Hasher::new().update(self.0.as_bytes()).update(name.as_str().as_bytes()).finalize();
        format!("uhst-relay-{}", &hash.to_hex()[..16])
    }
}

impl From<Tripcode> for String {
    fn from(tripcode: Tripcode) -> Self {
        STANDARD.encode(tripcode.0.as_bytes())
    }
}

impl TryFrom<String> for Tripcode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(|bytes| Self(bytes.into())).ok_or("a tripcode is 32 bytes as base64, 44 characters")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tripcode_is_what_the_published_relay_has() {
        let tripcode = Tripcode::of("PlaypenCausalPlatformCommodeImproveCatalyze");
        assert_eq!(String::from(tripcode), "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=");
        assert_eq!(Tripcode::try_from(String::from(tripcode)), Ok(tripcode));
        assert_ne!(Tripcode::of("another"), tripcode);
        for wrong in ["", "A9rPwZyY", "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY", "PlaypenCausal"] {
            assert!(Tripcode::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_can_stand_in_a_path() {
        for good in ["a", "aliens_wildland", "A-1.example", &"n".repeat(64)] {
            assert_eq!(ServerName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", "a%", "a\n", &"n".repeat(65)] {
            assert_eq!(ServerName::new(bad), None, "{bad}");
        }
    }
}
