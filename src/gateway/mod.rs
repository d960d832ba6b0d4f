//! How a request comes in and an answer goes out, the same for every door.
//!
//! A handler gets a [`Request`] with a readable body and returns a [`Reply`]: either a whole one, or a head with a
//! function that writes to the [`Outgoing`] stream for as long as it likes.

mod application;
pub mod cgi;
mod forwarded;
#[cfg(feature = "serve")]
pub mod http;

pub(crate) use crate::syntax::digits;
pub use application::Application;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::writev;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, IoSlice, PipeReader, Read};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a client may take to send the whole body of a request.
const BODY_TIME: Duration = Duration::from_secs(60);

/// How long the rest of a body is read that is too large.
const REST_TIME: Duration = Duration::from_secs(5);

/// No more memory than this is reserved for what has not arrived yet.
const WORTH_RESERVING: u64 = 1 << 20;

/// A request, as far as the protocols look at it.
pub struct Request<'a> {
    /// The method, in capitals (RFC 9110, 9.1).
    pub method: String,
    /// The path behind the program's own: `PATH_INFO` under CGI. Empty or beginning with `/`.
    pub path: String,
    /// The same as it came, percent-encoded.
    pub raw_path: String,
    /// The raw query string, without `?`.
    pub query: Vec<u8>,
    /// Header fields by lower-case name.
    pub header: &'a dyn Fn(&str) -> Option<String>,
    /// All of them that have come this far, names in lower case.
    pub headers: &'a dyn Fn() -> Vec<(String, String)>,
    /// Where the relay itself is on its server: `SCRIPT_NAME` under CGI, empty under `serve`.
    pub mount: String,
    /// What the web server calls itself: `SERVER_SOFTWARE` under CGI, the relay's own name under `serve`.
    pub server: String,
    /// Who asks: who opened the connection to the server, or whom that speaks for where it is a [trusted
    /// proxy](crate::config::TrustedProxies). `None` where that is not known, as through a UNIX socket.
    pub remote: Option<IpAddr>,
    /// Whether it uses HTTPS.
    pub is_https: bool,
    /// Whether the connection can be handed over to another protocol ([`Content::Upgrade`]).
    pub can_upgrade: bool,
    /// Who waits for the answer.
    pub client: Client<'a>,
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
    pub reader: &'a mut dyn Source,
}

/// Where the bytes of a body come from. A read blocks, and fails when the time is up.
pub trait Source: Read {
    /// What becomes readable once there is more, after [`Source::read_now`] has found nothing; `None` where there will
    /// never be more.
    fn awaited(&self) -> Option<BorrowedFd<'_>>;

    /// From now on there is that much time for all the rest. Without it, a body has to come within a minute.
    fn give_time(&mut self, time: Duration);

    /// Asks the client for the body, if it waits for that (`Expect: 100-continue`).
    ///
    /// # Errors
    /// When the client has gone.
    fn ask(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Reads what is there already: `WouldBlock` where there is nothing, 0 at the end, and an error where the body breaks
    /// off. It takes no notice of time.
    ///
    /// # Errors
    /// As for a read.
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Moves up to `most` bytes that are there already into a pipe, past this process's memory: `WouldBlock` where there
    /// are none, or no room. `None` where they have to be [read](Source::read_now).
    ///
    /// # Errors
    /// As for a read; `BrokenPipe` when nobody reads the pipe.
    fn splice_now(&mut self, _pipe: BorrowedFd<'_>, _most: usize) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

/// Moves bytes between two files of which one is a pipe, as far as that goes without waiting; `None` where it does not go.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
    use rustix::pipe::SpliceFlags;
    // Linux waits for the bytes of a socket whatever the flags say, and keeps the pipe locked meanwhile, so that not even
    // what is in it can be read.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::from_borrowed_fd(from, PollFlags::IN)], Some(&now)) == Ok(0) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    loop {
        match rustix::pipe::splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(moved) => return Ok(Some(moved as u64)),
            Err(rustix::io::Errno::INTR) => {}
            // A kind of file that cannot be spliced.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// No body.
impl Source for io::Empty {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn give_time(&mut self, _: Duration) {}

    fn read_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
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

impl BodyError {
    /// The status that says it.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::TooLarge(_) => Status::ContentTooLarge,
            Self::CutShort | Self::Malformed => Status::BadRequest,
            Self::NoLength => Status::LengthRequired,
            Self::TooSlow => Status::RequestTimeout,
        }
    }
}

impl From<&io::Error> for BodyError {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TooSlow,
            io::ErrorKind::InvalidData => Self::Malformed,
            io::ErrorKind::Unsupported => Self::NoLength,
            _ => Self::CutShort,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(limit) => write!(f, "The body is larger than {limit} bytes: send less at once."),
            Self::CutShort => f.write_str("The body ended before its Content-Length: send all of it."),
            Self::NoLength => {
                f.write_str("The body has no Content-Length, and this web server does not take chunks: send a length.")
            }
            Self::Malformed => f.write_str("The body's chunks are malformed: see RFC 9112, 7.1."),
            Self::TooSlow => f.write_str("The body took too long to arrive: send it faster, or less."),
        }
    }
}

impl Body<'_> {
    /// Reads the whole body.
    ///
    /// # Errors
    /// A body longer than `limit` bytes is refused; so is one that is cut short or too slow.
    pub fn read(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        if self.length.is_some_and(|length| length > limit) {
            self.reader.give_time(REST_TIME);
            self.drain();
            return Err(BodyError::TooLarge(limit));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.length.unwrap_or(0).min(WORTH_RESERVING)).unwrap_or(0));
        self.reader.take(limit + 1).read_to_end(&mut bytes).map_err(|error| BodyError::from(&error))?;
        let got = bytes.len() as u64;
        if got > limit {
            self.reader.give_time(REST_TIME);
            self.drain();
            return Err(BodyError::TooLarge(limit));
        }
        if self.length.is_some_and(|length| got < length) {
            return Err(BodyError::CutShort);
        }
        Ok(bytes)
    }

    /// A client that is still sending would not see the answer, only a broken connection; for its sake the rest is read
    /// and thrown away, as long as the reader has time. Whether that was all of it.
    fn drain(&mut self) -> bool {
        self.is_awaited && io::copy(&mut self.reader, &mut io::sink()).is_ok()
    }
}

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

/// A `poll` that a signal does not end early: whoever waits would take that for the end of the time.
fn poll_for(fds: &mut [PollFd<'_>], limit: Duration) {
    let until = Instant::now() + limit;
    let mut left = limit;
    while poll(fds, Some(&Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 })))
        == Err(rustix::io::Errno::INTR)
    {
        left = until.saturating_duration_since(Instant::now());
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

/// Sleeps until one of `fds` is ready, which they then tell, the process is asked to stop, or `limit` is over.
#[must_use]
pub fn wait_for(fds: &mut Vec<PollFd<'_>>, limit: Duration) -> Woken {
    let count = fds.len();
    fds.extend(stop_signal().map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
    poll_for(fds, limit);
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let is_stopped = fds.drain(count..).any(|stop| is_ready(&stop));
    match is_stopped {
        true => Woken::Stopped,
        false if fds.iter().any(is_ready) => Woken::Knock,
        false => Woken::Tick,
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
    /// Another protocol (RFC 9110, 7.8), with [`Status::SwitchingProtocols`]. The connection is closed behind it.
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

/// Readable from the moment on that SIGTERM, SIGINT or SIGHUP has come, once [`catch_signals`] has run. It is never read,
/// so it wakes every stream's `poll`, in whatever thread, however late that looks.
static STOP: OnceLock<PipeReader> = OnceLock::new();

/// From here on a web server's SIGTERM (and SIGINT, SIGHUP) asks streams to end instead of killing the process.
///
/// # Errors
/// When there is no file descriptor left for it.
pub fn catch_signals() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if STOP.get().is_some() {
        return Ok(());
    }
    let (reader, writer) = io::pipe()?;
    let ignored = ignored_signals();
    // All descriptors before the first signal: one that is caught, and heard by nobody, could not end this process any more.
    let writers = [writer.try_clone()?, writer.try_clone()?, writer];
    let _ = STOP.set(reader);
    // Whoever ignores one (nohup, a shell's background) has a reason.
    let signals = [SIGTERM, SIGINT, SIGHUP].into_iter().zip(writers);
    for (signal, writer) in signals.filter(|(signal, _)| ignored >> (signal - 1) & 1 == 0) {
        signal_hook::low_level::pipe::register(signal, writer)?;
    }
    Ok(())
}

/// The signals that this process was started to ignore, a bit for each; none where the system does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
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

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    fd: BorrowedFd<'a>,
    is_own: bool,
}

impl<'a> Client<'a> {
    /// Behind `fd`, which is our own socket, or (not `is_own`) what a web server shares with us.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, is_own: bool) -> Self {
        Self { fd, is_own }
    }

    /// Sleeps until the client has hung up, the process is asked to stop, one of `others` is ready, the client can take
    /// bytes (if `to_write`), or `limit` is over.
    #[must_use]
    pub fn wait(self, others: &[PollFd<'_>], to_write: bool, limit: Duration) -> Woken {
        // POLLHUP and POLLERR are reported without being asked for: HUP by a pipe's or UNIX socket's other end that
        // is closed, ERR by a pipe that nobody reads any more. RDHUP is a client that has closed our own socket; a web
        // server may close its half of the socket it shares with us at once, and mean nothing by it.
        let mut wanted = if to_write { PollFlags::OUT } else { PollFlags::empty() };
        if self.is_own {
            wanted |= PollFlags::RDHUP;
        }
        let stop = stop_signal();
        let wanted_of_stop = if stop.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = Vec::with_capacity(2 + others.len());
        fds.push(PollFd::from_borrowed_fd(self.fd, wanted));
        fds.push(PollFd::from_borrowed_fd(stop.unwrap_or(self.fd), wanted_of_stop));
        fds.extend_from_slice(others);
        poll_for(&mut fds, limit);
        let (client, stop) = (fds[0].revents(), fds[1].revents());
        if stop.contains(PollFlags::IN) {
            Woken::Stopped
        } else if client.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL) {
            Woken::HungUp
        } else if fds[2..].iter().any(|other| !other.revents().is_empty()) {
            Woken::Knock
        } else if client.contains(PollFlags::OUT) {
            Woken::Writable
        } else {
            Woken::Tick
        }
    }
}

/// How the bytes of a stream reach the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Through a web server, which shares our standard output and frames what comes out of it.
    WebServer,
    /// On our own socket, in chunks (RFC 9112, 7.1).
    Chunked,
    /// On our own socket, so many bytes.
    Length(u64),
    /// On our own socket; the end of the connection ends the body.
    UntilClose,
}

/// The way to the client, once the head of a streamed reply is out.
pub struct Outgoing<'a> {
    client: Client<'a>,
    framing: Framing,
    broken: bool,
    /// What has to go out before any more content: a chunk's size, the end of the chunk before it.
    delimiter: Vec<u8>,
    /// How much of the chunk's content is still to come.
    chunk: usize,
    /// Whether [`Outgoing::splice`] does not block.
    can_splice: bool,
    /// Whether a [transfer](Outgoing::begin_transfer) has begun on our own socket.
    is_patient: bool,
}

impl<'a> Outgoing<'a> {
    /// `broken` says that not even the head could be written.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, framing: Framing, broken: bool) -> Self {
        let client = Client::new(fd, framing != Framing::WebServer);
        Self { client, framing, broken, delimiter: Vec::new(), chunk: 0, can_splice: false, is_patient: false }
    }

    /// Whether the way to the client is our own socket, and not a web server's.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.client.is_own
    }

    /// What tells whether the client can take bytes, and whether it is there at all.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'a> {
        self.client.fd
    }

    /// Whether a write has failed: the client has gone.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the client is there and can take bytes.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.broken && crate::look(self.client.fd, PollFlags::OUT) == PollFlags::OUT
    }

    /// Sleeps as [`Client::wait`] does.
    #[must_use]
    pub fn wait(&mut self, others: &[PollFd<'_>], to_write: bool, limit: Duration) -> Woken {
        if self.broken { Woken::HungUp } else { self.client.wait(others, to_write, limit) }
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
            Framing::Length(left) => {
                let written = self.try_write(&bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))]);
                self.framing = Framing::Length(left - written as u64);
                written
            }
            Framing::Chunked => {
                if self.chunk == 0 && !bytes.is_empty() {
                    self.chunk = bytes.len().min(CHUNK);
                    self.delimiter.extend_from_slice(format!("{:x}\r\n", self.chunk).as_bytes());
                }
                let content = &bytes[..bytes.len().min(self.chunk)];
                self.write_chunk(content)
            }
        }
    }

    /// To be called before a body of any length: its client may take little at a time, and pause for long, and
    /// [`Outgoing::splice`] may be used where it does not block.
    pub fn begin_transfer(&mut self) {
        // Linux waits for room in a socket whatever the flags of `splice` say, and keeps the pipe locked meanwhile. A
        // web server's, which it shares with us, cannot be made non-blocking.
        self.can_splice = if self.client.is_own {
            self.is_patient = true;
            set_patience(self.client.fd, true)
        } else {
            use rustix::fs::{FileType, fstat};
            fstat(self.client.fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        };
    }

    /// Moves bytes from a pipe to the client, past this process's memory and without waiting for either, and says how many
    /// are on their way: none where the client can take none, or has gone. `None` where they have to be
    /// [written](Outgoing::write).
    pub fn splice(&mut self, pipe: BorrowedFd<'_>) -> Option<u64> {
        const MOST: usize = 1 << 20;
        if !self.can_splice {
            return None;
        }
        let there = usize::try_from(rustix::io::ioctl_fionread(pipe).ok()?).ok()?.min(MOST);
        let most = match self.framing {
            Framing::WebServer | Framing::UntilClose => there,
            Framing::Length(left) => there.min(usize::try_from(left).unwrap_or(usize::MAX)),
            Framing::Chunked => {
                if self.chunk == 0 && there > 0 {
                    self.chunk = there;
                    self.delimiter.extend_from_slice(format!("{there:x}\r\n").as_bytes());
                }
                self.write_chunk(b"");
                if self.delimiter.is_empty() { there.min(self.chunk) } else { 0 }
            }
        };
        if most == 0 {
            return Some(0);
        }
        let moved = match splice(pipe, self.client.fd, most) {
            Ok(moved) => moved?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.broken = true;
                0
            }
        };
        match &mut self.framing {
            Framing::Length(left) => *left -= moved,
            Framing::Chunked => {
                self.chunk -= usize::try_from(moved).unwrap_or(self.chunk);
                if self.chunk == 0 {
                    self.delimiter.extend_from_slice(b"\r\n");
                }
            }
            Framing::WebServer | Framing::UntilClose => {}
        }
        Some(moved)
    }

    /// Makes the body end cut short, where the client can see that.
    pub fn cut(&mut self) {
        self.broken = true;
    }

    /// Writes the delimiter, and then some of the chunk. One system call for all of it.
    fn write_chunk(&mut self, content: &[u8]) -> usize {
        const END: &[u8] = b"\r\n";
        let delimiter = std::mem::take(&mut self.delimiter);
        let end = if !content.is_empty() && content.len() == self.chunk { END } else { b"" };
        let written = self.try_write_all(&[IoSlice::new(&delimiter), IoSlice::new(content), IoSlice::new(end)]);
        if written < delimiter.len() {
            self.delimiter.extend_from_slice(&delimiter[written..]);
            return 0;
        }
        let written = written - delimiter.len();
        let taken = written.min(content.len());
        self.chunk -= taken;
        if self.chunk == 0 && taken > 0 {
            self.delimiter.extend_from_slice(&END[written - taken..]);
        }
        taken
    }

    fn try_write(&mut self, bytes: &[u8]) -> usize {
        self.try_write_all(&[IoSlice::new(bytes)])
    }

    fn try_write_all(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        let written = if self.client.is_own { send(self.client.fd, pieces) } else { writev(self.client.fd, pieces) };
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
    fn finish(mut self, limit: Duration) -> bool {
        let is_whole = self.end(limit);
        if self.is_patient {
            set_patience(self.client.fd, false);
        }
        is_whole
    }

    #[cfg(feature = "serve")]
    fn end(&mut self, limit: Duration) -> bool {
        match self.framing {
            _ if self.broken => false,
            Framing::Chunked if self.chunk == 0 => {
                self.delimiter.extend_from_slice(b"0\r\n\r\n");
                let until = Instant::now() + limit;
                while !self.delimiter.is_empty() {
                    self.write_chunk(b"");
                    let left = until.saturating_duration_since(Instant::now());
                    if !self.delimiter.is_empty() && self.wait(&[], true, left) != Woken::Writable {
                        return false;
                    }
                }
                true
            }
            Framing::Length(left) => left == 0,
            _ => false,
        }
    }
}

/// Has our own socket leave it to others when a transfer takes too long, and never block; or not. False where it cannot.
#[cfg(feature = "serve")]
fn set_patience(socket: BorrowedFd<'_>, is_patient: bool) -> bool {
    set_silence(socket, if is_patient { Duration::ZERO } else { LONGEST_SILENCE });
    rustix::io::ioctl_fionbio(socket, is_patient).is_ok()
}

/// How long sent bytes may stay unacknowledged before a connection counts as broken. Linux also counts a client that keeps
/// its window shut.
#[cfg(feature = "serve")]
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// No shorter than this for a stream: TCP needs a few tries, further and further apart, where packets are lost.
#[cfg(feature = "serve")]
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// The same for a stream, whose peers wait to be told that it has gone: three keep-alives.
#[cfg(feature = "serve")]
fn silence_of_stream(keep_alive: Duration) -> Duration {
    keep_alive.saturating_mul(3).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}

/// Sets that for our own socket; zero leaves it to the system.
#[cfg(feature = "serve")]
fn set_silence(socket: BorrowedFd<'_>, limit: Duration) {
    // Not a TCP socket, perhaps.
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(socket, limit);
}

#[cfg(not(feature = "serve"))]
fn set_patience(_: BorrowedFd<'_>, _: bool) -> bool {
    false
}

#[cfg(feature = "serve")]
fn send(socket: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
    sendmsg(socket, pieces, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

#[cfg(not(feature = "serve"))]
fn send(_: BorrowedFd<'_>, _: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    Err(rustix::io::Errno::OPNOTSUPP)
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

impl Source for TimedReader<'_> {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd)
    }

    fn give_time(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::from_borrowed_fd(self.fd, PollFlags::IN)], Some(&now)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) => Ok(rustix::io::read(self.fd, buffer)?),
            Err(error) => Err(error.into()),
        }
    }

    fn splice_now(&mut self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
        splice(self.fd, pipe, most)
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
