//! How a request comes in and an answer goes out, the same for every door.
//!
//! A handler gets a [`Request`] with a readable body and returns a [`Reply`]: either a whole one, or a head with a
//! function that writes to the [`Outgoing`] stream for as long as it likes.

pub mod cgi;
#[cfg(feature = "serve")]
pub mod http;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use std::fmt;
use std::io::{self, PipeReader, Read};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a client may take to send the whole body of a request.
const BODY_TIME: Duration = Duration::from_secs(60);

/// A request, as far as the protocols look at it.
pub struct Request<'a> {
    /// The method, in capitals (RFC 9110, 9.1).
    pub method: String,
    /// The path behind the program's own: `PATH_INFO` under CGI. Empty or beginning with `/`.
    pub path: String,
    /// The raw query string, without `?`.
    pub query: Vec<u8>,
    /// Header fields by lower-case name.
    pub header: &'a dyn Fn(&str) -> Option<String>,
    /// What is sent along.
    pub body: Body<'a>,
}

/// The body of a request.
pub struct Body<'a> {
    /// Its length where the sender said it (`Content-Length`); `None` for a chunked one.
    pub length: Option<u64>,
    /// Whether it comes without being asked for. Otherwise the first read asks the client for it
    /// (`Expect: 100-continue`).
    pub is_awaited: bool,
    /// The bytes, up to their end.
    pub reader: &'a mut dyn Read,
}

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// Larger than the relay takes (the limit in bytes).
    TooLarge(u64),
    /// It ended before its length, or the connection broke.
    CutShort,
    /// Nobody said how long it is, and its end cannot be seen.
    NoLength,
    /// Its chunks are not chunks (RFC 9112, 7.1).
    Malformed,
    /// It did not come within the time limit.
    TooSlow,
}

impl Body<'_> {
    /// Reads the whole body.
    ///
    /// # Errors
    /// A body longer than `limit` bytes is refused; so is one that is cut short or too slow.
    pub fn read(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        if self.length.is_some_and(|length| length > limit) {
            self.drain(limit);
            return Err(BodyError::TooLarge(limit));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.length.unwrap_or(0)).unwrap_or(0));
        self.reader.take(limit + 1).read_to_end(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => BodyError::TooSlow,
            io::ErrorKind::InvalidData => BodyError::Malformed,
            io::ErrorKind::Unsupported => BodyError::NoLength,
            _ => BodyError::CutShort,
        })?;
        let got = bytes.len() as u64;
        if got > limit {
            self.drain(limit);
            return Err(BodyError::TooLarge(limit));
        }
        if self.length.is_some_and(|length| got < length) {
            return Err(BodyError::CutShort);
        }
        Ok(bytes)
    }

    /// A client that is still sending would not see the refusal, only a broken connection; a few times the limit is
    /// read and thrown away for its sake, more is not our problem.
    fn drain(&mut self, limit: u64) {
        if !self.is_awaited {
            return;
        }
        let _ = io::copy(&mut self.reader.take(limit.saturating_mul(8)), &mut io::sink());
    }
}

/// Status codes that the relay gives (RFC 9110, 15; 429 and 507 are RFC 6585 and RFC 4918).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the RFC's own names")]
pub enum Status {
    Ok,
    NoContent,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    LengthRequired,
    ContentTooLarge,
    UriTooLong,
    ExpectationFailed,
    TooManyRequests,
    RequestHeaderFieldsTooLarge,
    InternalServerError,
    NotImplemented,
    ServiceUnavailable,
    HttpVersionNotSupported,
    InsufficientStorage,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::LengthRequired => "411 Length Required",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::UriTooLong => "414 URI Too Long",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::InternalServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::ServiceUnavailable => "503 Service Unavailable",
            Self::HttpVersionNotSupported => "505 HTTP Version Not Supported",
            Self::InsufficientStorage => "507 Insufficient Storage",
        })
    }
}

/// Writes to the outgoing stream until it is done.
pub type Producer = Box<dyn FnOnce(&mut Outgoing)>;

/// What follows the head of a reply.
pub enum Content {
    /// All of it.
    Whole(Vec<u8>),
    /// Whatever the function writes, for as long as it runs.
    Stream(Producer),
}

/// An answer.
pub struct Reply {
    /// The status line's code.
    pub status: Status,
    /// Header fields. Names are ours; [`Reply::header`] keeps values clean.
    pub headers: Vec<(&'static str, String)>,
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
    /// or the end of the head; those characters are left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let mut value = value.into();
        value.retain(|c| !c.is_control());
        self.headers.push((name, value));
        self
    }
}

/// Readable from the moment on that SIGTERM, SIGINT or SIGHUP has come, once [`catch_signals`] has run. It is never read,
/// so it wakes every stream's `poll`, in whatever thread, however late that looks.
static STOP: OnceLock<PipeReader> = OnceLock::new();

/// From here on a web server's SIGTERM (and SIGINT, SIGHUP) asks streams to end instead of killing the process.
///
/// # Errors
/// When there is no file descriptor left for it.
pub fn catch_signals() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (reader, writer) = io::pipe()?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    let _ = STOP.set(reader);
    Ok(())
}

/// What becomes readable when this process is asked to stop.
#[must_use]
pub fn stop_signal() -> Option<BorrowedFd<'static>> {
    STOP.get().map(AsFd::as_fd)
}

/// Why a stream's wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The wake-up's file descriptor is readable.
    Knock,
    /// The client can take more bytes.
    Writable,
    /// The time was up.
    Tick,
    /// The client, or the web server for it, has hung up.
    HungUp,
    /// This process has been asked to stop.
    Stopped,
}

/// How the bytes of a stream reach the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Through a web server, which shares our standard output and frames what comes out of it.
    WebServer,
    /// On our own socket, in chunks (RFC 9112, 7.1).
    Chunked,
    /// On our own socket; the end of the connection ends the body.
    UntilClose,
}

/// The way to the client, once the head of a streamed reply is out.
pub struct Outgoing<'a> {
    fd: BorrowedFd<'a>,
    framing: Framing,
    broken: bool,
    /// A chunk that is being sent, and how much of it is.
    chunk: Vec<u8>,
    sent: usize,
    /// How many bytes of content the chunk carries.
    carries: usize,
}

impl<'a> Outgoing<'a> {
    /// `broken` says that not even the head could be written.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, framing: Framing, broken: bool) -> Self {
        Self { fd, framing, broken, chunk: Vec::new(), sent: 0, carries: 0 }
    }

    /// Whether the way to the client is our own socket, and not a web server's.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.framing != Framing::WebServer
    }

    /// Whether the client is there and can take bytes.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        let mut client = [PollFd::from_borrowed_fd(self.fd, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.broken && poll(&mut client, Some(&now)).is_ok() && client[0].revents() == PollFlags::OUT
    }

    /// Sleeps until the client has hung up, the process is asked to stop, `knock` is readable, the client can take
    /// bytes (if `to_write`), or `limit` is over.
    pub fn wait(&mut self, knock: Option<BorrowedFd<'_>>, to_write: bool, limit: Duration) -> Woken {
        if self.broken {
            return Woken::HungUp;
        }
        // POLLHUP and POLLERR are reported without being asked for: HUP by a pipe's or UNIX socket's other end that
        // is closed, ERR by a pipe that nobody reads any more. RDHUP is a client that has closed our own socket; a web
        // server may close its half of the socket it shares with us at once, and mean nothing by it.
        let mut wanted = if to_write { PollFlags::OUT } else { PollFlags::empty() };
        if self.framing != Framing::WebServer {
            wanted |= PollFlags::RDHUP;
        }
        let absent = |fd: Option<BorrowedFd<'_>>| if fd.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let stop = stop_signal();
        let mut fds = [
            PollFd::from_borrowed_fd(self.fd, wanted),
            PollFd::from_borrowed_fd(knock.unwrap_or(self.fd), absent(knock)),
            PollFd::from_borrowed_fd(stop.unwrap_or(self.fd), absent(stop)),
        ];
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
        // Interrupted by a signal: the next one has it in the stop pipe.
        let _ = poll(&mut fds, Some(&limit));
        let [client, knock, stop] = fds.map(|fd| fd.revents());
        if stop.contains(PollFlags::IN) {
            Woken::Stopped
        } else if client.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL) {
            Woken::HungUp
        } else if knock.contains(PollFlags::IN) {
            Woken::Knock
        } else if client.contains(PollFlags::OUT) {
            Woken::Writable
        } else {
            Woken::Tick
        }
    }

    /// Writes some of `bytes` to a client that [`Outgoing::wait`] found writable, and says how many are on their way.
    /// What it has not taken is to be given to it again.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        // A writable pipe takes this much without blocking (`PIPE_BUF`). A web server shares our end of it, so it
        // cannot be made non-blocking, and a stream that blocks in a write would not notice anything else.
        const PIPE_BUF: usize = 4096;
        const CHUNK: usize = 64 * 1024;
        match self.framing {
            Framing::WebServer => self.try_write(&bytes[..bytes.len().min(PIPE_BUF)]),
            Framing::UntilClose => self.try_write(bytes),
            Framing::Chunked => {
                if self.chunk.is_empty() {
                    let content = &bytes[..bytes.len().min(CHUNK)];
                    self.chunk.extend_from_slice(format!("{:x}\r\n", content.len()).as_bytes());
                    self.chunk.extend_from_slice(content);
                    self.chunk.extend_from_slice(b"\r\n");
                    self.carries = content.len();
                }
                let chunk = std::mem::take(&mut self.chunk);
                self.sent += self.try_write(&chunk[self.sent..]);
                if self.sent < chunk.len() {
                    self.chunk = chunk;
                    return 0;
                }
                self.sent = 0;
                self.carries
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let written = match self.framing {
            Framing::WebServer => rustix::io::write(self.fd, bytes),
            #[cfg(feature = "serve")]
            _ => {
                use rustix::net::{SendFlags, send};
                send(self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            #[cfg(not(feature = "serve"))]
            _ => Err(rustix::io::Errno::OPNOTSUPP),
        };
        match written {
            Ok(written) => written,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => 0,
            Err(_) => {
                self.broken = true;
                0
            }
        }
    }

    /// Ends the body where that takes bytes. False when the client has not got all of it.
    #[cfg(feature = "serve")]
    fn finish(mut self) -> bool {
        const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
        match self.framing {
            Framing::Chunked if !self.broken && self.chunk.is_empty() => self.try_write(LAST_CHUNK) == LAST_CHUNK.len(),
            _ => false,
        }
    }
}

/// Reads from `fd`, but not for longer than `limit` in all: a client that sends a byte an hour must not keep a process.
pub struct TimedReader<'a> {
    fd: BorrowedFd<'a>,
    until: Instant,
}

impl<'a> TimedReader<'a> {
    /// The time starts now.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, limit: Duration) -> Self {
        Self { fd, until: Instant::now() + limit }
    }
}

impl Read for TimedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
            match poll(&mut [PollFd::from_borrowed_fd(self.fd, PollFlags::IN)], Some(&left)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(rustix::io::read(self.fd, &mut *buffer)?),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
