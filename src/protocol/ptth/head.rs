//! What precedes the body of an answer in the pipe, from the process that a far end posts it to, to the one that a client waits
//! for.

use crate::store::pipes::LONGEST_HEAD;

/// The length stands first, in so many bytes.
const LENGTH_SIZE: usize = 8;
const UNKNOWN_LENGTH: u64 = u64::MAX;

/// How many bytes the head of an answer may have, as its far end sent it.
pub(super) const MOST: usize = LONGEST_HEAD - LENGTH_SIZE;

pub(super) struct AnswerHead<'a> {
    /// How long the body is that its far end sends, where it says so.
    pub length: Option<u64>,
    /// As its far end sent it.
    pub head: &'a str,
}

impl<'a> AnswerHead<'a> {
    pub fn encode(&self) -> Vec<u8> {
        [&self.length.unwrap_or(UNKNOWN_LENGTH).to_be_bytes(), self.head.as_bytes()].concat()
    }

    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (length, head) = bytes.split_first_chunk()?;
        let length = Some(u64::from_be_bytes(*length)).filter(|length| *length != UNKNOWN_LENGTH);
        Some(Self { length, head: std::str::from_utf8(head).ok()? })
    }
}
