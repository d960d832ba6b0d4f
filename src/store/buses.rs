//! The broadcast bus: all that is posted is read by all, in one order, for as long as a message lives.

use super::error::Error;
use super::made::Made;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// The name of a bus: any text without control characters and slashes, up to 256 bytes. The default bus has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusName(String);

impl BusName {
    /// The longest name in bytes.
    pub const LONGEST: usize = 256;

    /// `None` where the text cannot be a name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = text.len() <= Self::LONGEST && !text.chars().any(|c| c.is_control() || c == '/');
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as it stands in the URL, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of a user: even for a plain one, odd for a registered one.
///
/// A bus counts from a number that is made of the time it was made (as the ids of its messages are), so that no number
/// comes again when a bus was removed and made anew, and all are below 2^53, which JavaScript reads exactly, for a century.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(pub u64);

impl User {
    /// The application that the relay belongs to. No bus gives this number out.
    pub const APPLICATION: Self = Self(0);

    /// Whether it has a key.
    #[must_use]
    pub fn is_registered(self) -> bool {
        self.0 % 2 == 1
    }
}

/// What proves that a post is a registered user's own: a number larger than at the last one, and what was signed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof<'a> {
    /// Used up by the post, whatever becomes of it: a request that somebody has caught on its way is worth nothing.
    pub n: u64,
    /// The bytes that were signed.
    pub signed: &'a [u8],
    /// Their HMAC-SHA256 with the user's key.
    pub signature: &'a [u8],
}

impl Proof<'_> {
    /// Whether it was made with this key: compared in constant time.
    #[must_use]
    pub fn is_by(&self, key: &str) -> bool {
        // HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return false };
        mac.update(self.signed);
        mac.verify_slice(self.signature).is_ok()
    }
}

/// A message on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number: larger than those of all messages before it.
    pub id: u64,
    /// Who has posted it.
    pub user: u64,
    /// What was posted: a JSON value in one line.
    pub data: &'a str,
    /// What is made of it, where others of this process are given it too.
    pub made: Option<&'a Made>,
}

/// What a reader is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusEvent<'a> {
    /// A message.
    Message(Message<'a>),
    /// Up to this id, messages that it had not read were dropped.
    Lost(u64),
}

/// Why it cannot be done.
#[derive(Debug)]
pub enum Refused {
    /// There is no such bus.
    UnknownBus,
    /// The bus does not know the user.
    UnknownUser,
    /// Only registered users may post.
    NotRegistered,
    /// A registered user's post without a proof.
    NotSigned,
    /// The proof is not of this user.
    WrongSignature,
    /// The proof's number is not larger than this one, that of the last post.
    StaleNumber(u64),
    /// A bus that is to be for registered users only is there, and open to all.
    IsOpen,
    /// There are so many buses.
    TooManyBuses(u64),
    /// The bus has so many registered users.
    TooManyUsers(u64),
    /// So many readers wait at the bus.
    TooManyReaders(u64),
    /// The last quarter of so many bytes is for those that have said little.
    SaysTooMuch(u64),
    /// The store's reason.
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_all_that_was_signed() {
        // By `printf 'news\n7\n1\n"hi"' | openssl dgst -sha256 -hmac key`.
        let signature = crate::hex::decode("414d96bd3bb152e64350cf3adb5776e4a2d7717ca19b71c62a3bb0185b5cddc1").unwrap();
        let signs =
            |key, signed: &str, signature: &[u8]| Proof { n: 1, signed: signed.as_bytes(), signature }.is_by(key);
        assert!(signs("key", "news\n7\n1\n\"hi\"", &signature));
        assert!(!signs("yek", "news\n7\n1\n\"hi\"", &signature));
        assert!(!signs("key", "new\n7\n1\n\"hi\"", &signature));
        assert!(!signs("key", "news\n7\n1\n\"hi\"", &signature[..31]));
        assert!(!signs("key", "news\n7\n1\n\"hi\"", b""));
    }
}
