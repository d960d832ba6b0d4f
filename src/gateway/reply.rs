//! What a door takes back: status, header fields, and what follows them.

use super::body::Incoming;
use super::client::{Outgoing, Switching};
use super::status::Status;
use std::borrow::Cow;
use std::pin::Pin;

/// What runs until a body, or a connection, has ended.
pub type Producing<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Writes to the outgoing stream until it is done.
pub type Producer = Box<dyn for<'a> FnOnce(&'a mut dyn Outgoing) -> Producing<'a> + Send>;

/// Talks another protocol on the connection, both ways and for as long as it likes.
pub type Talker = Box<dyn FnOnce(Box<dyn Incoming>, Box<dyn Switching>) -> Producing<'static> + Send>;

/// What follows the head of a reply.
pub enum Content {
    /// All of it.
    Whole(Vec<u8>),
    /// Whatever the function writes, for as long as it runs.
    Stream(Producer),
    /// The same of an event stream, whose end says nothing: whoever listens comes back.
    Events(Producer),
    /// So many bytes, which the function writes. Where it writes fewer, the client sees that the body is cut short.
    Sized(u64, Producer),
    /// Nothing: this answer has no body whatever its header fields say of one, as to HEAD, or with 204 or 304.
    Absent,
    /// Another protocol (RFC 9110, 7.8), with [`Status::SwitchingProtocols`]. The connection is closed after it.
    Upgrade(Talker),
}

/// An answer.
pub struct Reply {
    /// The status line's code.
    pub status: Status,
    /// Header fields. Names are ours or have been checked; [`Reply::header`] keeps values clean.
    pub headers: Vec<(Cow<'static, str>, Vec<u8>)>,
    /// The body.
    pub content: Content,
}

impl Reply {
    /// An answer without a body.
    #[must_use]
    pub fn empty(status: Status) -> Self {
        Self { status, headers: Vec::new(), content: Content::Whole(Vec::new()) }
    }

    /// A JSON answer.
    #[must_use]
    pub fn json(status: Status, json: impl Into<Vec<u8>>) -> Self {
        Self { content: Content::Whole(json.into()), ..Self::empty(status) }.header("Content-Type", "application/json")
    }

    /// An error, as every protocol words it: `{"error":"…"}`.
    #[must_use]
    pub fn error(status: Status, sentence: &str) -> Self {
        Self::json(status, serde_json::json!({ "error": sentence }).to_string())
    }

    /// Adds a header field. A value with CR, LF, NUL or any other control character would be a second header field,
    /// or the end of the head; those characters are left out. It need not be UTF-8 (RFC 9110, 5.5).
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Self {
        let mut value = value.into();
        value.retain(|byte| !byte.is_ascii_control());
        self.headers.push((name.into(), value));
        self
    }
}
