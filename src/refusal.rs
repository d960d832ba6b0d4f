//! A request that is refused: one type for all protocols.

use crate::gateway::{BodyError, Reply, Request, Status};
use crate::json::BadJson;
use crate::protocol::query::NotUtf8;
use crate::store;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Why a request is refused: a status, and one sentence that says what to do about it. [`fmt::Display`] is the sentence.
#[derive(Debug)]
pub struct Refusal {
    status: Status,
    sentence: Cow<'static, str>,
    fields: Vec<(&'static str, Cow<'static, str>)>,
    /// What the operator is told; the client gets the sentence only.
    cause: Option<store::Error>,
}

impl Refusal {
    /// Refuses with this sentence.
    #[must_use]
    pub fn new(status: Status, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { status, sentence: sentence.into(), fields: Vec::new(), cause: None }
    }

    /// Only these methods are allowed: a list for `Allow`.
    #[must_use]
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let sentence = format!("This method is not allowed here. Use one of these: {allow}.");
        Self::new(Status::MethodNotAllowed, sentence).field("Allow", allow)
    }

    /// This process is asked to stop.
    #[must_use]
    pub fn stopping() -> Self {
        let sentence = "The relay is being stopped: try again in a moment.";
        Self::new(Status::ServiceUnavailable, sentence).field("Retry-After", "5")
    }

    /// The client has gone; nobody will read this.
    #[must_use]
    pub fn hung_up() -> Self {
        Self::new(Status::BadRequest, "You have gone.")
    }

    /// Adds a header field to the answer. `Retry-After` is there already where its status alone tells when to come back;
    /// whoever knows better gives it here.
    #[must_use]
    pub fn field(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Says it in other words. The status and the cause stay.
    #[must_use]
    pub fn worded(mut self, sentence: impl Into<Cow<'static, str>>) -> Self {
        self.sentence = sentence.into();
        self
    }

    /// The answer to a request whose body nobody wants any more: that may be endless, and the answer should not wait for its
    /// end.
    #[must_use]
    pub fn reply_to(self, request: &mut Request<'_>) -> Reply {
        request.body.reader.give_time(Duration::from_secs(1));
        self.reply()
    }

    /// The answer: `{"error":"…"}`, and when another try is worth it. The cause goes to the log.
    #[must_use]
    pub fn reply(self) -> Reply {
        if let Some(cause) = &self.cause {
            cause.log();
        }
        let reply = Reply::error(self.status, &self.sentence);
        let reply = match retry_after(self.status) {
            Some(seconds) if self.fields.iter().all(|(name, _)| *name != "Retry-After") => {
                reply.header("Retry-After", seconds)
            }
            _ => reply,
        };
        self.fields.into_iter().fold(reply, |reply, (name, value)| reply.header(name, value.into_owned()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// After how many seconds another try is worth it: soon where somebody only has to read, later where somebody has to leave.
fn retry_after(status: Status) -> Option<&'static str> {
    match status {
        Status::TooManyRequests => Some("1"),
        Status::ServiceUnavailable => Some("30"),
        _ => None,
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        let status = match error {
            store::Error::DiskFull(_) | store::Error::DataFull(_) => Status::InsufficientStorage,
            store::Error::QueueFull(_) | store::Error::TopicFull(_) => Status::TooManyRequests,
            store::Error::Busy | store::Error::NoDescriptors(_) => Status::ServiceUnavailable,
            #[cfg(feature = "redis")]
            store::Error::Remote(_) => Status::ServiceUnavailable,
            store::Error::OtherVersion
            | store::Error::Unusable(_)
            | store::Error::Io(_)
            | store::Error::BadSecret
            | store::Error::BadRegistry(_) => Status::InternalServerError,
        };
        let refusal = Self::new(status, error.to_string());
        Self { cause: Some(error), ..refusal }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        Self::new(error.0, error.1)
    }
}

impl From<BadJson> for Refusal {
    fn from(error: BadJson) -> Self {
        Self::new(Status::BadRequest, error.to_string())
    }
}

impl From<NotUtf8> for Refusal {
    fn from(error: NotUtf8) -> Self {
        Self::new(Status::BadRequest, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Content;
    use crate::store::Full;

    fn fields(refusal: Refusal) -> Vec<(String, String)> {
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        let fields = refusal.reply().headers.into_iter().filter(|(name, _)| name != "Content-Type");
        fields.map(|(name, value)| (name.into_owned(), text(value))).collect()
    }

    #[test]
    fn a_client_is_told_when_to_try_again_and_what_else_there_is_to_know() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(fields(store::Error::Busy.into()), [field("Retry-After", "30")]);
        assert_eq!(fields(store::Error::QueueFull(Full { limit: 1 }).into()), [field("Retry-After", "1")]);
        assert_eq!(fields(Refusal::method_not_allowed("GET")), [field("Allow", "GET")]);
        assert_eq!(fields(Refusal::stopping()), [field("Retry-After", "5")]);
    }

    #[test]
    fn other_words_leave_the_status_alone() {
        let reply = Refusal::from(store::Error::QueueFull(Full { limit: 1 })).worded("Wait.").reply();
        assert_eq!(reply.status, Status::TooManyRequests);
        let Content::Whole(body) = reply.content else { panic!("an error has a body") };
        assert_eq!(body, br#"{"error":"Wait."}"#);
    }
}
