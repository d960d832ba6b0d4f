//! The answer of the server that is reached.

use crate::ptth::{Fields, ResponseHead, StatusCode};
use std::fmt::Display;
use std::io::{self, Read};

/// The answer to one request.
pub(super) struct Answer {
    pub head: ResponseHead,
    /// How many bytes follow, where that is known.
    pub length: Option<u64>,
    pub body: Box<dyn Read>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        let status = StatusCode::new(status).expect("it stands in this program");
        Self { head: ResponseHead { status, fields: Fields::default() }, length: Some(0), body: Box::new(io::empty()) }
    }

    /// A sentence for a person.
    pub fn sentence(status: u16, sentence: &str) -> Self {
        let text = format!("{sentence}\n").into_bytes();
        Self::new(status).field("content-type", "text/plain; charset=utf-8").bytes(text)
    }

    /// Instead of one that the relay does not take.
    pub fn unfit() -> Self {
        Self::sentence(502, "The server's answer cannot be passed on: its header fields may be too large.")
    }

    /// With a field, if it is one.
    pub fn field(mut self, name: &str, value: impl Display) -> Self {
        let _ = self.head.fields.add(name, value.to_string().as_bytes());
        self
    }

    pub fn bytes(self, bytes: Vec<u8>) -> Self {
        let length = bytes.len() as u64;
        self.body(length, io::Cursor::new(bytes))
    }

    pub fn body(mut self, length: u64, body: impl Read + 'static) -> Self {
        self.length = Some(length);
        self.body = Box::new(body);
        self.field("content-length", length)
    }

    /// Without its body, but with the fields that tell of it (RFC 9110, 9.3.2).
    pub fn head_only(mut self) -> Self {
        self.length = Some(0);
        self.body = Box::new(io::empty());
        self
    }
}
