//! What a door takes back: status, header fields, and what follows them.

use super::outgoing::Outgoing;
use rustix::fd::BorrowedFd;
use std::borrow::Cow;
use std::fmt;

/// Status codes that the relay gives (RFC 9110, 15; 429, 507 and 508 are RFC 6585, RFC 4918 and RFC 5842), and those that it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[expect(missing_docs, reason = "they are the RFC's own names")]
pub enum Status {
    SwitchingProtocols,
    Ok,
    Created,
    NoContent,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    Gone,
    LengthRequired,
    ContentTooLarge,
    UriTooLong,
    ExpectationFailed,
    UpgradeRequired,
    TooManyRequests,
    RequestHeaderFieldsTooLarge,
    InternalServerError,
    NotImplemented,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    HttpVersionNotSupported,
    InsufficientStorage,
    LoopDetected,
    Passed(u16),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed(code) => return write!(f, "{code} {}", reason(*code)),
            Self::SwitchingProtocols => "101 Switching Protocols",
            Self::Ok => "200 OK",
            Self::Created => "201 Created",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::Conflict => "409 Conflict",
            Self::Gone => "410 Gone",
            Self::LengthRequired => "411 Length Required",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::UriTooLong => "414 URI Too Long",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::UpgradeRequired => "426 Upgrade Required",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::InternalServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::BadGateway => "502 Bad Gateway",
            Self::ServiceUnavailable => "503 Service Unavailable",
            Self::GatewayTimeout => "504 Gateway Timeout",
            Self::HttpVersionNotSupported => "505 HTTP Version Not Supported",
            Self::InsufficientStorage => "507 Insufficient Storage",
            Self::LoopDetected => "508 Loop Detected",
        })
    }
}

/// The reason phrase of a status that is passed on: nobody reads it, but a web server may want one. Where a code is rare,
/// it is the name of its class.
fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        500 => "Internal Server Error",
        _ if code < 300 => "Success",
        _ if code < 400 => "Redirection",
        _ if code < 500 => "Client Error",
        _ => "Server Error",
    }
}

/// Writes to the outgoing stream until it is done.
pub type Producer = Box<dyn FnOnce(&mut Outgoing)>;

/// Talks another protocol on the connection, both ways and for as long as it likes.
pub type Talker = Box<dyn FnOnce(Incoming<'_>, &mut Outgoing)>;

/// The way from the client, where the connection was handed over to another protocol.
pub struct Incoming<'a> {
    /// Where bytes come from. They are to be read once it is readable.
    pub fd: BorrowedFd<'a>,
    /// What has come already.
    pub begun: Vec<u8>,
    /// The head of the answer without the blank line that ends it. The other protocol writes it first, once it knows which
    /// fields belong there.
    pub head: Vec<u8>,
}

/// What follows the head of a reply.
pub enum Content {
    /// All of it.
    Whole(Vec<u8>),
    /// Whatever the function writes, for as long as it runs.
    Stream(Producer),
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
