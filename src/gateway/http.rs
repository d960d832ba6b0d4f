//! The embedded server of `serve`: HTTP/1.1 (RFC 9112), one thread a connection, the same blocking handlers as under CGI.
//!
//! It is strict where leniency lets two servers on one connection disagree about where a request ends: a body has one
//! length or is chunked, never both; lines end with CR LF; nothing is folded.

use super::{BODY_TIME, Body, Content, Framing, Outgoing, Reply, Request, Status};
use crate::config::Settings;
use crate::protocol;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The longest head of a request: line and header fields.
const HEAD_SIZE: usize = 16 * 1024;
/// The longest request target in it.
const TARGET_SIZE: usize = 8 * 1024;
/// The most header fields.
const HEAD_FIELDS: usize = 100;
/// How long a head may take from its first byte, and how long a connection may be idle.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a client may take none of an answer's bytes.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// The longest line of a chunk's size, with its extensions, and the most bytes of trailer fields.
const CHUNK_LINE_SIZE: usize = 256;
const TRAILER_SIZE: usize = 8 * 1024;
/// An unread body up to this size is read for the sake of the connection; behind a longer one it is closed.
const WORTH_DRAINING: u64 = 256 * 1024;
/// How long streams and answers may take to end when the server stops.
const STOP_TIME: Duration = Duration::from_millis(4500);
/// What a thread needs at most; only what it really uses becomes memory.
const STACK_SIZE: usize = 256 * 1024;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ADDR:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listening {
    fn bind(address: &Address) -> io::Result<Self> {
        let listening = match address {
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => {
                // A socket that a killed server has left behind answers nobody, and keeps its place.
                if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                    std::fs::remove_file(path)?;
                }
                Self::Unix(UnixListener::bind(path)?, path.clone())
            }
        };
        // The standard library's backlog is too short for thousands of clients who come back at once.
        rustix::net::listen(listening.fd(), 4096)?;
        Ok(listening)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }

    /// The next connection, and who it is from, as the log shows it.
    fn accept(&self) -> io::Result<(OwnedFd, String)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nodelay(true)?;
                (stream.into(), peer.ip().to_string())
            }
            Self::Unix(listener, _) => (listener.accept()?.0.into(), "-".to_owned()),
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What all connections share.
struct Server {
    settings: Settings,
    quiet: bool,
    connections: AtomicUsize,
    /// Requests that are being answered.
    answering: AtomicUsize,
}

/// Counts itself while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves until SIGTERM, SIGINT or SIGHUP. `started` is called once connections are accepted, with the address.
///
/// # Errors
/// When it cannot listen there, or cannot catch signals.
pub fn serve(address: &Address, settings: Settings, quiet: bool, started: impl FnOnce(&Address)) -> io::Result<()> {
    super::catch_signals()?;
    raise_descriptor_limit();
    let listening = Listening::bind(address)?;
    started(&match &listening {
        // Port 0 means that the system has chosen one.
        Listening::Tcp(listener) => Address::Tcp(listener.local_addr()?),
        Listening::Unix(_, path) => Address::Unix(path.clone()),
    });
    let most = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
    let server = Arc::new(Server { settings, quiet, connections: AtomicUsize::new(0), answering: AtomicUsize::new(0) });
    let sweeper = Arc::clone(&server);
    std::thread::Builder::new().stack_size(STACK_SIZE).spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if protocol::sweep_is_due(&sweeper.settings) {
                protocol::sweep_some(&sweeper.settings);
            }
        }
    })?;
    while wait_for_connection(&listening) {
        let (socket, peer) = match listening.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those who are here finish, and then there is room again.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    eprintln!("uhst-relay: a connection could not be accepted: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
                continue;
            }
        };
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(HEAD_TIME));
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(WRITE_TIME));
        let shared = Arc::clone(&server);
        let crowded = shared.connections.load(Ordering::Acquire) >= most;
        if crowded {
            refuse(&socket);
            continue;
        }
        shared.connections.fetch_add(1, Ordering::AcqRel);
        let serving = Arc::clone(&server);
        let thread = std::thread::Builder::new().stack_size(STACK_SIZE).spawn(move || {
            // Also when a handler panics: its connection breaks, and nobody else's.
            struct Leave(Arc<Server>);
            impl Drop for Leave {
                fn drop(&mut self) {
                    self.0.connections.fetch_sub(1, Ordering::AcqRel);
                }
            }
            let leave = Leave(serving);
            Connection { socket, peer, buffer: Vec::new(), taken: 0 }.run(&leave.0);
        });
        if let Err(error) = thread {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            eprintln!("uhst-relay: no thread for a connection: {error}");
        }
    }
    drop(listening);
    let until = Instant::now() + STOP_TIME;
    while server.answering.load(Ordering::Acquire) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// False when the server is asked to stop.
fn wait_for_connection(listening: &Listening) -> bool {
    let stop = super::stop_signal();
    let fd = listening.fd();
    let mut fds =
        [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(stop.unwrap_or(fd), PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return !(stop.is_some() && fds[1].revents().contains(PollFlags::IN)),
        }
    }
}

/// A stream takes four descriptors, and the usual limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn refuse(socket: &OwnedFd) {
    let body = r#"{"error":"The relay has all the connections it takes: try again later."}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 5\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = send(socket, answer.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = shutdown(socket, Shutdown::Write);
}

// ---- the head of a request

/// How a request's body is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Known(u64),
    Chunked,
}

/// A request's head.
#[derive(Debug)]
struct Head {
    method: String,
    target: String,
    is_http_1_1: bool,
    /// Names in lower case.
    fields: Vec<(String, String)>,
    length: Length,
}

/// Why a head is refused. After each of them the connection is closed: where the next request begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Malformed {
    Head(&'static str),
    TargetTooLong,
    HeadTooLarge,
    Version,
    TransferCoding,
    Expectation,
    TooSlow,
}

impl Malformed {
    fn reply(self) -> Reply {
        let (status, sentence) = match self {
            Self::Head(sentence) => (Status::BadRequest, sentence),
            Self::TargetTooLong => (Status::UriTooLong, "The URL is too long."),
            Self::HeadTooLarge => (Status::RequestHeaderFieldsTooLarge, "The header fields are too many or too long."),
            Self::Version => (Status::HttpVersionNotSupported, "Only HTTP/1.0 and HTTP/1.1 are spoken here."),
            Self::TransferCoding => (Status::NotImplemented, "The only transfer coding is chunked."),
            Self::Expectation => (Status::ExpectationFailed, "The only expectation is 100-continue."),
            Self::TooSlow => (Status::RequestTimeout, "The request took too long to arrive."),
        };
        Reply::error(status, sentence).header("Access-Control-Allow-Origin", "*")
    }
}

/// Finds a head in what has arrived: it and its size, or `None` when the rest has yet to come.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
    // RFC 9112, 2.2: an empty line before the request line is ignored.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let bytes = &bytes[skipped..];
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let head = &bytes[..end.unwrap_or(bytes.len())];
    check_lines(head)?;
    let Some(end) = end else {
        return if bytes.len() < HEAD_SIZE {
            Ok(None)
        } else if bytes.contains(&b'\n') {
            Err(Malformed::HeadTooLarge)
        } else {
            Err(Malformed::TargetTooLong)
        };
    };
    if end > HEAD_SIZE {
        return Err(Malformed::HeadTooLarge);
    }
    let line = &head[..head.iter().position(|byte| *byte == b'\r').unwrap_or(0)];
    check_request_line(line)?;

    let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Malformed::Head("The head ends early.")),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
        Err(_) => return Err(Malformed::Head("A header field is malformed.")),
    }
    let target = request.path.unwrap_or_default();
    if target.len() > TARGET_SIZE {
        return Err(Malformed::TargetTooLong);
    }
    let fields: Vec<_> = request
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim().to_owned()))
        .collect();
    let is_http_1_1 = request.version == Some(1);
    let length = body_length(&fields, is_http_1_1)?;
    check_host(&fields, is_http_1_1)?;
    if fields.iter().any(|(name, value)| name == "expect" && !value.eq_ignore_ascii_case("100-continue")) {
        return Err(Malformed::Expectation);
    }
    let method = request.method.unwrap_or_default().to_owned();
    let head = Head { target: target.to_owned(), method, is_http_1_1, fields, length };
    Ok(Some((head, skipped + end)))
}

/// Bare CR and bare LF are refused (RFC 9112, 2.2 lets a server take a bare LF for a line end, and a proxy may not have),
/// and so is obsolete folding (5.2).
fn check_lines(head: &[u8]) -> Result<(), Malformed> {
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || head[at - 1] != b'\r' => return Err(Malformed::Head("A line ends without CR.")),
            b'\r' if head.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Err(Malformed::Head("There is a CR inside a line."));
            }
            b'\n' if matches!(head.get(at + 1), Some(b' ' | b'\t')) => {
                return Err(Malformed::Head("A header field is folded over two lines."));
            }
            0 => return Err(Malformed::Head("There is a NUL in the head.")),
            _ => {}
        }
    }
    Ok(())
}

/// `method SP request-target SP HTTP-version`, with exactly these spaces (RFC 9112, 3).
fn check_request_line(line: &[u8]) -> Result<(), Malformed> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Malformed::Head("The request line is not: method, target, version."));
    };
    let is_number =
        |part: &[u8]| part.len() == 3 && part[0].is_ascii_digit() && part[1] == b'.' && part[2].is_ascii_digit();
    match version.strip_prefix(b"HTTP/") {
        Some(b"1.1" | b"1.0") => {}
        Some(number) if is_number(number) => return Err(Malformed::Version),
        _ => return Err(Malformed::Head("The request line does not end with an HTTP version.")),
    }
    if method.is_empty() || target.is_empty() {
        return Err(Malformed::Head("The request line has no method or no target."));
    }
    if target.len() > TARGET_SIZE {
        return Err(Malformed::TargetTooLong);
    }
    if target.contains(&b'#') {
        return Err(Malformed::Head("The target has a fragment."));
    }
    Ok(())
}

/// RFC 9112, 6.3, without its leniency: one length or chunks, never both, never two lengths.
fn body_length(fields: &[(String, String)], is_http_1_1: bool) -> Result<Length, Malformed> {
    let all =
        |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value).collect::<Vec<_>>();
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Length::Known(0)),
        ([length], []) => {
            // Digits only: `parse` would take a sign, and a list of equal lengths is a list.
            if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Malformed::Head("Content-Length is not a number."));
            }
            length.parse().map(Length::Known).map_err(|_| Malformed::Head("Content-Length is not a number."))
        }
        ([], [coding]) => {
            if !is_http_1_1 {
                return Err(Malformed::Head("HTTP/1.0 has no Transfer-Encoding."));
            }
            if coding.eq_ignore_ascii_case("chunked") { Ok(Length::Chunked) } else { Err(Malformed::TransferCoding) }
        }
        ([], _) => Err(Malformed::Head("There is more than one Transfer-Encoding.")),
        (_, []) => Err(Malformed::Head("There is more than one Content-Length.")),
        _ => Err(Malformed::Head("There are both Content-Length and Transfer-Encoding.")),
    }
}

/// RFC 9112, 3.2: exactly one Host in HTTP/1.1, at most one in HTTP/1.0, and nothing in it that no host has.
fn check_host(fields: &[(String, String)], is_http_1_1: bool) -> Result<(), Malformed> {
    let mut hosts = fields.iter().filter(|(name, _)| name == "host").map(|(_, value)| value);
    let host = hosts.next();
    if (host.is_none() && is_http_1_1) || hosts.next().is_some() {
        return Err(Malformed::Head("There must be one Host."));
    }
    let is_plausible =
        |host: &String| host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\,<>\"".contains(&byte));
    if host.is_none_or(is_plausible) { Ok(()) } else { Err(Malformed::Head("Host is not a host.")) }
}

impl Head {
    fn field(&self, name: &str) -> Option<String> {
        let mut values = self.fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let first = values.next()?.to_owned();
        // RFC 9110, 5.3: several lines of a field are one list.
        Some(values.fold(first, |list, value| list + ", " + value)).filter(|value| !value.is_empty())
    }

    fn keeps_alive(&self) -> bool {
        let connection = self.field("connection").unwrap_or_default().to_ascii_lowercase();
        let has = |option: &str| connection.split(',').any(|item| item.trim() == option);
        if self.is_http_1_1 { !has("close") } else { has("keep-alive") }
    }

    /// Path and query of the target: origin form, or absolute form (RFC 9112, 3.2.2), or `*`.
    fn path_and_query(&self) -> Result<(String, Vec<u8>), Malformed> {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
                rest.find(['/', '?']).map_or("/", |at| &rest[at..])
            }
            _ => &self.target,
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !(path.is_empty() || path.starts_with('/') || (path == "*" && self.method == "OPTIONS")) {
            return Err(Malformed::Head("The target is not a path."));
        }
        let path = if path == "*" { "" } else { path };
        match urlencoding::decode(path) {
            Ok(path) if !path.contains('\0') => Ok((path.into_owned(), query.as_bytes().to_vec())),
            _ => Err(Malformed::Head("The path is not UTF-8.")),
        }
    }

    /// The target as the log may show it: a token is a secret.
    fn loggable_target(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut text = path.to_owned();
        for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Only what is known to be harmless; `%74oken` is a token too.
            let shown = if matches!(name, "action" | "hostId" | "timestamp") { value } else { "-" };
            let _ = write!(text, "{}{name}={shown}", if index == 0 { '?' } else { '&' });
        }
        text.chars().map(|c| if c.is_control() || c == '"' || c == '\\' { '_' } else { c }).collect()
    }
}

// ---- a connection

struct Connection {
    socket: OwnedFd,
    peer: String,
    /// What has arrived; the first `taken` bytes have been read already.
    buffer: Vec<u8>,
    taken: usize,
}

impl Connection {
    fn run(&mut self, server: &Server) {
        loop {
            match self.read_head() {
                Ok(Some(head)) => {
                    let _answering = Counted::new(&server.answering);
                    if !self.answer(server, &head) {
                        break;
                    }
                }
                Ok(None) => return,
                Err(malformed) => {
                    let reply = malformed.reply();
                    log(server, &self.peer, "-", reply.status, 0);
                    let mut out = Vec::new();
                    write_head(&mut out, &reply, "HTTP/1.1", Some(false), None);
                    if let Content::Whole(body) = &reply.content {
                        out.extend_from_slice(body);
                    }
                    let _ = self.write_all(&out);
                    break;
                }
            }
        }
        self.linger();
    }

    /// The next request's head; `None` when there is none to come.
    fn read_head(&mut self) -> Result<Option<Head>, Malformed> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let mut began = (!self.buffer.is_empty()).then(Instant::now);
        loop {
            if began.is_some()
                && let Some((head, size)) = parse_head(&self.buffer)?
            {
                self.taken = size;
                return Ok(Some(head));
            }
            match self.receive() {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(Malformed::Head("The request ends in its head.")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if self.buffer.is_empty() { Ok(None) } else { Err(Malformed::TooSlow) };
                }
                Err(_) => return Ok(None),
            }
            // A byte every nine seconds is no way to send a head.
            if began.get_or_insert_with(Instant::now).elapsed() > HEAD_TIME {
                return Err(Malformed::TooSlow);
            }
        }
    }

    /// Puts what arrives next into the buffer.
    fn receive(&mut self) -> io::Result<usize> {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        let mut bytes = [0; 8192];
        loop {
            match rustix::io::read(&self.socket, &mut bytes) {
                Ok(got) => {
                    self.buffer.extend_from_slice(&bytes[..got]);
                    return Ok(got);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Answers one request. False when the connection is to be closed behind it.
    fn answer(&mut self, server: &Server, head: &Head) -> bool {
        let expects = head.is_http_1_1 && head.field("expect").is_some();
        let header = |name: &str| head.field(name);
        let target = head.path_and_query();
        let left = match head.length {
            Length::Known(length) => BodyPart::Length(length),
            Length::Chunked => BodyPart::ChunkLine,
        };
        let mut body =
            BodyReader { connection: self, part: left, expects, until: Instant::now() + BODY_TIME, failed: false };
        let reply = match target {
            Err(malformed) => malformed.reply(),
            Ok((path, query)) => protocol::answer(
                &server.settings,
                &mut Request {
                    method: head.method.clone(),
                    path,
                    query,
                    header: &header,
                    body: Body {
                        length: if let Length::Known(length) = head.length { Some(length) } else { None },
                        reader: &mut body,
                    },
                },
            ),
        };
        // Where the body ends, the next request begins; so it must be read.
        let is_read = body.skip();
        let keep_alive = head.keeps_alive() && is_read && !is_stopping();
        let version = if head.is_http_1_1 { "HTTP/1.1" } else { "HTTP/1.0" };
        let head_only = head.method == "HEAD";
        let (status, line) = (reply.status, format!("{} {} {version}", head.method, head.loggable_target()));
        let mut out = Vec::with_capacity(512);
        match reply.content {
            Content::Whole(ref body) => {
                write_head(&mut out, &reply, "HTTP/1.1", Some(keep_alive), None);
                if !head_only {
                    out.extend_from_slice(body);
                }
                log(server, &self.peer, &line, status, if head_only { 0 } else { body.len() });
                self.write_all(&out).is_ok() && keep_alive
            }
            Content::Stream(_) => {
                let framing = if head.is_http_1_1 { Framing::Chunked } else { Framing::UntilClose };
                let keep_alive = keep_alive && framing == Framing::Chunked;
                write_head(&mut out, &reply, "HTTP/1.1", Some(keep_alive), Some(framing));
                log(server, &self.peer, &line, status, 0);
                let Content::Stream(produce) = reply.content else { return false };
                let written = self.write_all(&out);
                if head_only {
                    return written.is_ok() && keep_alive;
                }
                // A stream may last for days; what it does not need is given back.
                drop((out, line));
                self.buffer.shrink_to_fit();
                let mut outgoing = Outgoing::new(self.socket.as_fd(), framing, written.is_err());
                produce(&mut outgoing);
                outgoing.finish() && keep_alive
            }
        }
    }

    /// Closes such that a client that is still sending gets to see the answer: a socket closed with unread bytes in it
    /// resets the connection (RFC 9112, 9.6).
    fn linger(&mut self) {
        if shutdown(&self.socket, Shutdown::Write).is_err() {
            return;
        }
        let _ = sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(Duration::from_millis(500)));
        let until = Instant::now() + Duration::from_secs(2);
        for _ in 0..64 {
            self.taken = self.buffer.len();
            if !matches!(self.receive(), Ok(got) if got > 0) || Instant::now() > until {
                return;
            }
        }
    }
}

fn is_stopping() -> bool {
    super::stop_signal().is_some_and(|stop| {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(stop, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    })
}

fn write_head(out: &mut Vec<u8>, reply: &Reply, version: &str, keep_alive: Option<bool>, framing: Option<Framing>) {
    let mut head = format!("{version} {}\r\n", reply.status);
    let _ = write!(head, "Date: {}\r\nServer: uhst-relay\r\n", httpdate::HttpDate::from(SystemTime::now()));
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    match (&reply.content, framing) {
        (Content::Whole(body), _) if reply.status != Status::NoContent => {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        (Content::Stream(_), Some(Framing::Chunked)) => head.push_str("Transfer-Encoding: chunked\r\n"),
        _ => {}
    }
    if let Some(keep_alive) = keep_alive {
        head.push_str(if keep_alive { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" });
    }
    head.push_str("\r\n");
    out.extend_from_slice(head.as_bytes());
}

/// The common log format, which log analysers read.
fn log(server: &Server, peer: &str, line: &str, status: Status, size: usize) {
    if server.quiet {
        return;
    }
    // `Sat, 21 Nov 2026 03:46:30 GMT` has all that is needed, in another order.
    let date = httpdate::HttpDate::from(SystemTime::now()).to_string();
    let parts: Vec<_> = date.split([' ', ',']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, time, _] = parts[..] else { return };
    let code = status.to_string();
    let code = code.split(' ').next().unwrap_or_default();
    eprintln!("{peer} - - [{day}/{month}/{year}:{time} +0000] \"{line}\" {code} {size}");
}

// ---- the body of a request

/// What of the body comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyPart {
    /// That many bytes, and then nothing.
    Length(u64),
    /// The line with a chunk's size.
    ChunkLine,
    /// That many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailer fields, of which so many bytes have been thrown away.
    Trailers(usize),
}

struct BodyReader<'c> {
    connection: &'c mut Connection,
    part: BodyPart,
    /// The client waits for `100 Continue` before it sends.
    expects: bool,
    until: Instant,
    failed: bool,
}

impl BodyReader<'_> {
    /// Reads and drops the rest. False when the connection cannot be used behind it.
    fn skip(&mut self) -> bool {
        if self.part == BodyPart::Length(0) {
            return true;
        }
        // A client that still waits for our word may send the body or not (RFC 9110, 10.1.1): the place of the next
        // request is unknown.
        if self.failed || self.expects {
            return false;
        }
        let read = io::copy(&mut self.take(WORTH_DRAINING), &mut io::sink());
        read.is_ok() && self.part == BodyPart::Length(0)
    }

    fn fill(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.expects) {
            self.connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self.connection.receive() {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        }
    }

    /// A line without its CR LF, at most `most` bytes long.
    fn line(&mut self, most: usize) -> io::Result<Vec<u8>> {
        loop {
            let ready = &self.connection.buffer[self.connection.taken..];
            if let Some(at) = ready.iter().position(|byte| *byte == b'\n') {
                let line = ready[..at].strip_suffix(b"\r").ok_or(io::ErrorKind::InvalidData)?;
                if line.contains(&b'\r') || line.len() > most {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let line = line.to_vec();
                self.connection.taken += at + 1;
                return Ok(line);
            }
            if ready.len() > most + 2 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill()?;
        }
    }

    fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.part {
                BodyPart::Length(0) => return Ok(0),
                BodyPart::Length(left) | BodyPart::Chunk(left) => {
                    let ready = &self.connection.buffer[self.connection.taken..];
                    if ready.is_empty() {
                        self.fill()?;
                        continue;
                    }
                    let size = ready.len().min(out.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
                    out[..size].copy_from_slice(&ready[..size]);
                    self.connection.taken += size;
                    let left = left - size as u64;
                    self.part = match self.part {
                        BodyPart::Chunk(_) if left == 0 => BodyPart::ChunkEnd,
                        BodyPart::Chunk(_) => BodyPart::Chunk(left),
                        _ => BodyPart::Length(left),
                    };
                    return Ok(size);
                }
                BodyPart::ChunkLine => {
                    let line = self.line(CHUNK_LINE_SIZE)?;
                    self.part = match chunk_size(&line).ok_or(io::ErrorKind::InvalidData)? {
                        0 => BodyPart::Trailers(0),
                        size => BodyPart::Chunk(size),
                    };
                }
                BodyPart::ChunkEnd => {
                    if !self.line(0)?.is_empty() {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    self.part = BodyPart::ChunkLine;
                }
                BodyPart::Trailers(size) => {
                    let line = self.line(TRAILER_SIZE)?;
                    // Nobody here has a use for trailer fields (RFC 9112, 7.1.2 lets us drop them).
                    self.part = match line.len() {
                        0 => BodyPart::Length(0),
                        more if size + more <= TRAILER_SIZE && is_field(&line) => BodyPart::Trailers(size + more),
                        _ => return Err(io::ErrorKind::InvalidData.into()),
                    };
                }
            }
        }
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let read = self.read_some(out);
        self.failed |= read.is_err();
        read
    }
}

/// `chunk-size [ chunk-ext ]`: hexadecimal digits, and extensions that are skipped.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let extension = extension.trim_ascii_start();
    if digits.is_empty() || digits.len() > 15 || !(extension.is_empty() || extension[0] == b';') {
        return None;
    }
    if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn is_field(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    name.len() < line.len() && !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}
