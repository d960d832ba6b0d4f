//! The embedded server of `serve`: HTTP/1.1 (RFC 9112), one thread a connection, the same blocking handlers as under CGI.
//!
//! It is strict where leniency lets two servers on one connection disagree about where a request ends: a body has one
//! length or is chunked, never both; lines end with CR LF; nothing is folded.

use super::application::Application;
use super::body::{BODY_TIME, Body, BodySource};
use super::client::{Client, poll_for};
use super::forwarded::Asker;
use super::outgoing::{Framing, Outgoing};
use super::reply::{Content, Incoming, Reply, Status};
use super::request::Request;
use super::socket::{LONGEST_SILENCE, set_patience, set_silence, silence_of_stream};
use super::splice::splice;
use super::stop::{catch_signals, stop_signal};
use crate::config::Settings;
use crate::syntax::digits;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The longest head of a request: line and header fields.
const HEAD_SIZE: usize = 16 * 1024;
/// The longest request target in it.
const TARGET_SIZE: usize = 8 * 1024;
/// The most header fields.
const HEAD_FIELDS: usize = 100;
/// How long a client may send nothing: between two requests, in a head, in a body. A head may take twice that in all.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a client may take none of an answer's bytes.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// The longest line of a chunk's size, with its extensions, and the most bytes of trailer fields.
const CHUNK_LINE_SIZE: usize = 256;
const TRAILER_SIZE: usize = 8 * 1024;
/// An unread body up to this size, or up to what the relay takes, is read for the sake of the connection; behind a longer
/// one it is closed.
const WORTH_DRAINING: u64 = 256 * 1024;
/// And no longer than this: the answer waits for it.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// How much is received at once; what a body can take more of goes straight to its place.
const RECEIVE_SIZE: usize = 8 * 1024;
/// So many connections above the limit are refused at leisure; any more are cut off behind the refusal.
const MOST_REFUSED: usize = 100;
/// What a connection may keep open: its socket, and two to four files and pipes of a stream, of a body on its way from one
/// client to another, or of a WebSocket with its handler.
const DESCRIPTORS_OF_CONNECTION: u64 = 5;
/// No fewer descriptors are for what is opened for a moment only, and for those who are refused.
const SPARE_DESCRIPTORS: u64 = 64;
/// A thread's stack with its guards, its memory, and a large body.
const MAPS_OF_THREAD: u64 = 5;
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
    /// With its path, and which file was made there.
    Unix(UnixListener, PathBuf, Option<(u64, u64)>),
}

impl Listening {
    fn bind(address: &Address) -> io::Result<Self> {
        let listening = match address {
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => {
                // A socket that a killed server has left behind answers nobody, and keeps its place. Any other file
                // refuses connections too, and is not ours to remove.
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
                let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && UnixStream::connect(path).is_err_and(refuses) {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                // Whom it is for, the folder says, as with a port: the proxy in front is another user.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
                Self::Unix(listener, path.clone(), file_at(path))
            }
        };
        // The standard library's backlog is too short for thousands of clients who come back at once.
        rustix::net::listen(listening.fd(), 4096)?;
        Ok(listening)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, ..) => listener.as_fd(),
        }
    }

    /// The next connection, and who it is from.
    fn accept(&self) -> io::Result<(OwnedFd, Option<IpAddr>)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A client whose power was cut says nothing; its machine stops acknowledging.
                set_patience(stream.as_fd(), false);
                (stream.into(), Some(peer.ip().to_canonical()))
            }
            Self::Unix(listener, ..) => (listener.accept()?.0.into(), None),
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Self::Unix(_, path, file) = self
            // A newer server may have taken its place.
            && file_at(path) == *file
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Which file a path names.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// What all connections share.
struct Server {
    application: &'static dyn Application,
    settings: Settings,
    quiet: bool,
    connections: AtomicUsize,
    /// Connections above the limit, which are closed as soon as they have taken the refusal.
    refused: AtomicUsize,
    /// Requests that are being answered.
    answering: AtomicUsize,
}

impl Server {
    fn count(&self, is_refused: bool) -> &AtomicUsize {
        if is_refused { &self.refused } else { &self.connections }
    }
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

/// Serves an application until SIGTERM, SIGINT or SIGHUP. `started` is called once connections are accepted, with the address; if it
/// fails, nothing is served.
///
/// # Errors
/// When it cannot listen there, or cannot catch signals; or that of `started`.
pub fn serve(
    application: &'static dyn Application,
    address: &Address,
    settings: Settings,
    quiet: bool,
    started: impl FnOnce(&Address) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    catch_signals()?;
    raise_descriptor_limit();
    let listening = Listening::bind(address).map_err(|error| format!("cannot listen at {address}: {error}"))?;
    started(&match &listening {
        // Port 0 means that the system has chosen one.
        Listening::Tcp(listener) => Address::Tcp(listener.local_addr()?),
        Listening::Unix(_, path, _) => Address::Unix(path.clone()),
    })?;
    let most = settings.max_connections.min(memory_maps() / MAPS_OF_THREAD);
    let server = Arc::new(Server {
        application,
        settings,
        quiet,
        connections: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        answering: AtomicUsize::new(0),
    });
    let worker = Arc::clone(&server);
    std::thread::Builder::new().stack_size(STACK_SIZE).spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if application.has_work(&worker.settings) {
                application.work(&worker.settings);
            }
        }
    })?;
    while wait_for_connection(&listening) {
        let (socket, peer) = match listening.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those who are here finish, and then there is room again.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    say!("uhst-relay: a connection could not be accepted: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
                continue;
            }
        };
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(HEAD_TIME));
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(WRITE_TIME));
        let room = Room::of(descriptor_limit(), most);
        let is_refused = server.connections.load(Ordering::Acquire) >= room.connections;
        if is_refused && server.refused.load(Ordering::Acquire) >= room.refused {
            refuse(&socket);
            continue;
        }
        server.count(is_refused).fetch_add(1, Ordering::AcqRel);
        let (serving, socket) = (Arc::clone(&server), Arc::new(socket));
        let of_thread = Arc::clone(&socket);
        let thread = std::thread::Builder::new().stack_size(STACK_SIZE).spawn(move || {
            // Also when a handler panics: its connection breaks, and nobody else's.
            struct Leave(Arc<Server>, bool);
            impl Drop for Leave {
                fn drop(&mut self) {
                    self.0.count(self.1).fetch_sub(1, Ordering::AcqRel);
                }
            }
            let leave = Leave(serving, is_refused);
            let mut connection = Connection { socket: of_thread, peer, buffer: Vec::new(), taken: 0 };
            if is_refused {
                refuse(&connection.socket);
                connection.linger();
            } else {
                connection.run(&leave.0);
            }
        });
        if let Err(error) = thread {
            server.count(is_refused).fetch_sub(1, Ordering::AcqRel);
            say!("uhst-relay: no thread for a connection: {error}");
            refuse(&socket);
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
    let stop = stop_signal();
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

/// How many connections there may be: whoever has one shall have the descriptors that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    connections: usize,
    /// Those above, which are refused at leisure.
    refused: usize,
}

impl Room {
    /// With so many descriptors in all, and no more than `most` connections.
    fn of(descriptors: u64, most: u64) -> Self {
        let spare = SPARE_DESCRIPTORS.max(descriptors / 8);
        let connections = (descriptors.saturating_sub(spare) / DESCRIPTORS_OF_CONNECTION).min(most).max(1);
        let refused = usize::try_from((spare / 4).min(descriptors / 8)).unwrap_or(usize::MAX);
        Self { connections: usize::try_from(connections).unwrap_or(usize::MAX), refused: refused.min(MOST_REFUSED) }
    }
}

/// An administrator may change it while the server runs.
fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The usual limit is 1024 descriptors.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Only root may go beyond what the system allows at most.
    let enough = Some(1 << 18);
    if setrlimit(Resource::Nofile, Rlimit { current: enough, maximum: enough }).is_err() {
        let most = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    }
}

/// How many memory maps a process may have (`max_map_count` of Linux). Without one to spare, a new thread is the end of the process.
fn memory_maps() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    most.ok().and_then(|most| most.trim().parse().ok()).unwrap_or(65_530)
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
    MethodTooLong,
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
            // RFC 9112, 3.
            Self::MethodTooLong => (Status::NotImplemented, "There is no method as long as this."),
            Self::TargetTooLong => (Status::UriTooLong, "The URL is too long."),
            Self::HeadTooLarge => (Status::RequestHeaderFieldsTooLarge, "The header fields are too many or too long."),
            Self::Version => (Status::HttpVersionNotSupported, "Only HTTP/1.1 and HTTP/1.0 are spoken here."),
            Self::TransferCoding => (Status::NotImplemented, "The only transfer coding is chunked."),
            Self::Expectation => (Status::ExpectationFailed, "The only expectation is 100-continue."),
            Self::TooSlow => (Status::RequestTimeout, "The request took too long to arrive."),
        };
        Reply::error(status, sentence).header("Access-Control-Allow-Origin", "*")
    }
}

/// Optional white space (RFC 9110, 5.6.3). What `trim` takes for white space too, such as U+00A0, belongs to the value:
/// a proxy may not see a length or a coding in it.
const OWS: [char; 2] = [' ', '\t'];

/// Finds a head in what has arrived: it and its size, or `None` when the rest has yet to come.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
    // RFC 9112, 2.2: an empty line before the request line is ignored.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let bytes = &bytes[skipped..];
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let head = &bytes[..end.unwrap_or(bytes.len())];
    check_lines(head)?;
    let line = head.iter().position(|byte| *byte == b'\r').map(|at| &head[..at]);
    let Some(end) = end.filter(|end| *end <= HEAD_SIZE) else {
        return match line {
            _ if bytes.len() < HEAD_SIZE => Ok(None),
            Some(line) => Err(check_request_line(line).err().unwrap_or(Malformed::HeadTooLarge)),
            None if bytes.contains(&b' ') => Err(Malformed::TargetTooLong),
            None => Err(Malformed::MethodTooLong),
        };
    };
    let line = line.unwrap_or_default();
    check_request_line(line)?;
    // RFC 9110, 2.5: a later minor version is taken for the last that is known here, and to httparse.
    let as_1_1;
    let head = if matches!(line.last(), Some(b'2'..=b'9')) {
        as_1_1 = [&head[..line.len() - 1], b"1", &head[line.len()..]].concat();
        &as_1_1
    } else {
        head
    };

    let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Malformed::Head("The head ends early.")),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
        Err(httparse::Error::Token) => return Err(Malformed::Head("The method or the target is malformed.")),
        Err(_) => return Err(Malformed::Head("A header field is malformed.")),
    }
    let target = request.path.unwrap_or_default();
    if target.len() > TARGET_SIZE {
        return Err(Malformed::TargetTooLong);
    }
    let fields: Vec<_> = request
        .headers
        .iter()
        .map(|field| {
            (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim_matches(OWS).to_owned())
        })
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
        Some([b'1', b'.', b'0'..=b'9']) => {}
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
            // A list of equal lengths is a list.
            let length = digits(length.as_bytes()).map(Length::Known);
            length.ok_or(Malformed::Head("Content-Length is not a number."))
        }
        ([], [coding]) => {
            if !is_http_1_1 {
                return Err(Malformed::Head("HTTP/1.0 has no Transfer-Encoding."));
            }
            let mut codings = coding.rsplit(',').map(|coding| coding.trim_matches(OWS));
            let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
            if !codings.next().is_some_and(is_chunked) {
                return Err(Malformed::Head("The last transfer coding is not chunked."));
            }
            let below: Vec<_> = codings.collect();
            match below[..] {
                [] => Ok(Length::Chunked),
                _ if below.iter().any(|coding| coding.is_empty() || is_chunked(coding)) => {
                    Err(Malformed::Head("Transfer-Encoding is not a list of codings with chunked once."))
                }
                _ => Err(Malformed::TransferCoding),
            }
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
    // It is empty where the target has no authority.
    if host.is_none_or(|host| host.is_empty() || is_authority(host)) {
        Ok(())
    } else {
        Err(Malformed::Head("Host is not a host."))
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, 4.2), without the commas that would make it a list.
fn is_authority(text: &str) -> bool {
    let (is_host, port) = if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        (address.contains(':') && address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
        (!name.is_empty() && name.bytes().all(is_name_byte), port)
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit())))
}

impl Head {
    fn field(&self, name: &str) -> Option<String> {
        let mut values = self.fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let first = values.next()?.to_owned();
        // RFC 9110, 5.3: several lines of a field are one list; RFC 9113, 8.2.3, of cookies.
        let separator = if name == "cookie" { "; " } else { ", " };
        Some(values.fold(first, |list, value| list + separator + value)).filter(|value| !value.is_empty())
    }

    fn keeps_alive(&self) -> bool {
        let connection = self.field("connection").unwrap_or_default().to_ascii_lowercase();
        let has = |option: &str| connection.split(',').any(|item| item.trim() == option);
        // Behind a CONNECT comes what is meant for the tunnel that there is not (RFC 9110, 9.3.6), not a request.
        !has("close") && (self.is_http_1_1 || has("keep-alive")) && self.method != "CONNECT"
    }

    /// Path and query of the target: origin form, or absolute form (RFC 9112, 3.2.2), or `*`.
    /// The path comes decoded, and as it is.
    fn path_and_query(&self) -> Result<(String, String, Vec<u8>), Malformed> {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                // RFC 9110, 4.2.1 and 4.2.4: neither an empty host nor a user.
                if !is_authority(authority) {
                    return Err(Malformed::Head("The target's host is not a host."));
                }
                // Nothing behind the authority is the path `/` (RFC 9110, 4.2.3).
                if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
            }
            _ => self.target.clone(),
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if !(path.starts_with('/') || (path == "*" && self.method == "OPTIONS")) {
            return Err(Malformed::Head("The target is not a path."));
        }
        let path = if path == "*" { "" } else { path };
        match urlencoding::decode(path) {
            Ok(decoded) if !decoded.contains('\0') => {
                Ok((decoded.into_owned(), path.to_owned(), query.as_bytes().to_vec()))
            }
            _ => Err(Malformed::Head("The path is not UTF-8.")),
        }
    }

    /// The target as the log may show it: a token is a secret.
    fn loggable_target(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        // Whoever knows the id of a pipe's session may use it.
        let mut text = match path.rfind("/cama/session/") {
            Some(at) => format!("{}/cama/session/-", &path[..at]),
            None => path.to_owned(),
        };
        for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            text.push(if index == 0 { '?' } else { '&' });
            // Only what is known to be harmless; `%74oken` is a token too, and so is one whose name was forgotten.
            match pair.split_once('=') {
                Some(("action" | "hostId" | "timestamp", _)) => text.push_str(pair),
                Some((name @ ("token" | "lastEventId" | "last_event_id" | "evs_last_event_id"), _)) => {
                    let _ = write!(text, "{name}=-");
                }
                _ => text.push('-'),
            }
        }
        text.chars().map(|c| if c.is_control() || c == '"' || c == '\\' { '_' } else { c }).collect()
    }
}

// ---- a connection

struct Connection {
    socket: Arc<OwnedFd>,
    peer: Option<IpAddr>,
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
                    let mut out = Vec::new();
                    write_head(&mut out, &reply, false, true, None);
                    if let Content::Whole(body) = &reply.content {
                        log(server, self.peer, "-", reply.status, body.len());
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
            match self.receive(true) {
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
    fn receive(&mut self, waits: bool) -> io::Result<usize> {
        // Only what is not read yet stays: a sender whose packets all end within a line would have everything kept.
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let mut bytes = [0; RECEIVE_SIZE];
        let got = read_socket(&self.socket, &mut bytes, waits)?;
        self.buffer.extend_from_slice(&bytes[..got]);
        Ok(got)
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_with(bytes, SendFlags::empty())
    }

    fn write_with(&self, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&*self.socket, bytes, SendFlags::NOSIGNAL | flags) {
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
        // RFC 9110, 7.8: a server must ignore the wish for another protocol in HTTP/1.0.
        let header = |name: &str| head.field(name).filter(|_| head.is_http_1_1 || name != "upgrade");
        let headers = || head.fields.clone();
        let target = head.path_and_query();
        let is_malformed = target.is_err();
        let left = match head.length {
            Length::Known(length) => BodyPart::Length(length),
            Length::Chunked => BodyPart::ChunkLine,
        };
        let asker = Asker { address: self.peer, is_https: false }.behind(&server.settings.trusted_proxies, &header);
        let socket = Arc::clone(&self.socket);
        let mut body = BodyReader {
            connection: self,
            part: left,
            expects,
            until: Instant::now() + BODY_TIME,
            waits: true,
            failed: None,
        };
        let reply = match target {
            Err(malformed) => malformed.reply(),
            Ok((path, raw_path, query)) => server.application.answer(
                &server.settings,
                &mut Request {
                    method: head.method.clone(),
                    path,
                    raw_path,
                    query,
                    header: &header,
                    headers: &headers,
                    mount: String::new(),
                    server: "uhst-relay".to_owned(),
                    remote: asker.address,
                    is_https: asker.is_https,
                    can_upgrade: true,
                    client: Client::new(socket.as_fd(), true),
                    body: Body {
                        length: if let Length::Known(length) = head.length { Some(length) } else { None },
                        is_awaited: !expects,
                        reader: &mut body,
                    },
                },
            ),
        };
        // Where the body ends, the next request begins; so it must be read.
        let is_read = body.skip(server.settings.max_body.max(WORTH_DRAINING));
        // Also where the protocol has not looked at it, as for a ping (RFC 9112, 7.1).
        let reply = match reply.content {
            Content::Whole(_)
                if body.failed == Some(io::ErrorKind::InvalidData) && reply.status < Status::BadRequest =>
            {
                Malformed::Head("The chunks of the body are malformed.").reply()
            }
            _ => reply,
        };
        let keep_alive = head.keeps_alive() && is_read && !is_malformed && !is_stopping();
        self.give(server, head, asker.address, reply, keep_alive)
    }

    /// Gives the client its answer. False when the connection is to be closed behind it.
    fn give(&mut self, server: &Server, head: &Head, from: Option<IpAddr>, reply: Reply, keep_alive: bool) -> bool {
        let version = if head.is_http_1_1 { "HTTP/1.1" } else { "HTTP/1.0" };
        let head_only = head.method == "HEAD";
        let (status, line) = (reply.status, format!("{} {} {version}", head.method, head.loggable_target()));
        let mut out = Vec::with_capacity(512);
        match reply.content {
            Content::Whole(ref body) => {
                write_head(&mut out, &reply, keep_alive, head.is_http_1_1, None);
                if !head_only {
                    out.extend_from_slice(body);
                }
                log(server, from, &line, status, if head_only { 0 } else { body.len() });
                self.write_all(&out).is_ok() && keep_alive
            }
            Content::Absent => {
                write_head(&mut out, &reply, keep_alive, head.is_http_1_1, None);
                log(server, from, &line, status, 0);
                self.write_all(&out).is_ok() && keep_alive
            }
            Content::Upgrade(_) => {
                write_head(&mut out, &reply, false, true, None);
                log(server, from, &line, status, 0);
                let Content::Upgrade(talk) = reply.content else { return false };
                drop(line);
                let begun = std::mem::take(&mut self.buffer).split_off(std::mem::take(&mut self.taken));
                let fd = self.socket.as_fd();
                let input = Incoming { fd, begun, head: out };
                set_silence(fd, silence_of_stream(server.settings.keep_alive));
                talk(input, &mut Outgoing::new(fd, Framing::UntilClose, false));
                false
            }
            Content::Stream(_) | Content::Sized(..) => {
                let framing = match reply.content {
                    Content::Sized(length, _) => Framing::Length(length),
                    _ if head.is_http_1_1 => Framing::Chunked,
                    _ => Framing::UntilClose,
                };
                let says_keep_alive = keep_alive && (framing != Framing::UntilClose || is_event_stream(&reply));
                write_head(&mut out, &reply, says_keep_alive, head.is_http_1_1, Some(framing));
                let keep_alive = keep_alive && framing != Framing::UntilClose;
                log(server, from, &line, status, 0);
                let (Content::Stream(produce) | Content::Sized(_, produce)) = reply.content else { return false };
                // What is short comes in one packet with its head, if it comes within 200 ms.
                let has_more = matches!(framing, Framing::Length(1..)) && !head_only;
                let flags = if has_more { SendFlags::MORE } else { SendFlags::empty() };
                let written = self.write_with(&out, flags);
                if head_only {
                    return written.is_ok() && keep_alive;
                }
                // A stream may last for days; what it does not need is given back.
                drop((out, line));
                self.buffer.drain(..self.taken);
                self.taken = 0;
                self.buffer.shrink_to_fit();
                let fd = self.socket.as_fd();
                set_silence(fd, silence_of_stream(server.settings.keep_alive));
                let mut outgoing = Outgoing::new(fd, framing, written.is_err());
                produce(&mut outgoing);
                let is_whole = outgoing.finish(WRITE_TIME);
                set_silence(fd, LONGEST_SILENCE);
                is_whole && keep_alive
            }
        }
    }

    /// Closes such that a client that is still sending gets to see the answer: a socket closed with unread bytes in it
    /// resets the connection (RFC 9112, 9.6).
    fn linger(&mut self) {
        if shutdown(&*self.socket, Shutdown::Write).is_err() {
            return;
        }
        let _ = sockopt::set_socket_timeout(&*self.socket, sockopt::Timeout::Recv, Some(Duration::from_millis(500)));
        let until = Instant::now() + Duration::from_secs(2);
        let mut left = WORTH_DRAINING;
        while left > 0 && Instant::now() < until {
            self.taken = self.buffer.len();
            match self.receive(true) {
                Ok(got) if got > 0 => left = left.saturating_sub(got as u64),
                _ => return,
            }
        }
    }
}

fn is_stopping() -> bool {
    stop_signal().is_some_and(|stop| !crate::look(stop, PollFlags::IN).is_empty())
}

fn write_head(out: &mut Vec<u8>, reply: &Reply, keep_alive: bool, is_http_1_1: bool, framing: Option<Framing>) {
    let date = httpdate::HttpDate::from(SystemTime::now());
    let mut head = format!("HTTP/1.1 {}\r\nDate: {date}\r\nServer: uhst-relay\r\n", reply.status);
    for (name, value) in &reply.headers {
        out.extend_from_slice(std::mem::take(&mut head).as_bytes());
        out.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    match (&reply.content, framing) {
        (Content::Whole(body), _) if reply.status != Status::NoContent => {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        (Content::Sized(length, _), _) => _ = write!(head, "Content-Length: {length}\r\n"),
        (Content::Stream(_), Some(Framing::Chunked)) => head.push_str("Transfer-Encoding: chunked\r\n"),
        _ => {}
    }
    head.push_str(match reply.content {
        // The other protocol ends this head.
        Content::Upgrade(_) => "Connection: Upgrade\r\n",
        // RFC 9112, 9.3: that goes without saying, but event streams have always said it.
        _ if keep_alive && is_http_1_1 && !is_event_stream(reply) => "\r\n",
        _ if keep_alive => "Connection: keep-alive\r\n\r\n",
        _ => "Connection: close\r\n\r\n",
    });
    out.extend_from_slice(head.as_bytes());
}

fn is_event_stream(reply: &Reply) -> bool {
    let is_its_type = |value: &[u8]| value.starts_with(b"text/event-stream");
    reply.headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("Content-Type") && is_its_type(value))
}

/// The common log format, which log analysers read.
fn log(server: &Server, from: Option<IpAddr>, line: &str, status: Status, size: usize) {
    if server.quiet {
        return;
    }
    // `Sat, 21 Nov 2026 03:46:30 GMT` has all that is needed, in another order.
    let date = httpdate::HttpDate::from(SystemTime::now()).to_string();
    let parts: Vec<_> = date.split([' ', ',']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, time, _] = parts[..] else { return };
    let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
    let code = status.to_string();
    let code = code.split(' ').next().unwrap_or_default();
    say!("{from} - - [{day}/{month}/{year}:{time} +0000] \"{line}\" {code} {size}");
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
    /// Whether a read waits for bytes to come.
    waits: bool,
    failed: Option<io::ErrorKind>,
}

impl BodyReader<'_> {
    /// Reads and drops the rest, if it is at most so long. False when the connection cannot be used behind it.
    fn skip(&mut self, most: u64) -> bool {
        if self.part == BodyPart::Length(0) {
            return true;
        }
        // A client that still waits for our word may send the body or not (RFC 9110, 10.1.1): the place of the next
        // request is unknown.
        if self.failed.is_some() || self.expects {
            return false;
        }
        // Whoever is slower than that cannot have the connection kept.
        self.until = self.until.min(Instant::now() + DRAIN_TIME);
        let read = io::copy(&mut self.take(most), &mut io::sink());
        read.is_ok() && self.part == BodyPart::Length(0)
    }

    /// Before a read that may block.
    fn await_more(&mut self) -> io::Result<()> {
        self.ask()?;
        if !self.waits {
            return Ok(());
        }
        // The socket's own time limit is for all that have more time than it.
        let left = self.until.saturating_duration_since(Instant::now());
        if left < HEAD_TIME {
            let mut socket = [PollFd::new(&*self.connection.socket, PollFlags::IN)];
            poll_for(&mut socket, left);
            if socket[0].revents().is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        self.await_more()?;
        let received = self.connection.receive(self.waits);
        self.expect_more(received).map(|_| ())
    }

    /// Something has to come before the body's end, and in time.
    fn expect_more(&self, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if self.waits && error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            other => other,
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

    /// Notes that so many bytes of the body's length, or of the chunk, have come.
    fn count(&mut self, bytes: u64) {
        self.part = match self.part {
            BodyPart::Chunk(left) if left == bytes => BodyPart::ChunkEnd,
            BodyPart::Chunk(left) => BodyPart::Chunk(left - bytes),
            BodyPart::Length(left) => BodyPart::Length(left - bytes),
            other => other,
        };
    }

    fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.part {
                BodyPart::Length(0) => return Ok(0),
                BodyPart::Length(left) | BodyPart::Chunk(left) => {
                    let most = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let ready = &self.connection.buffer[self.connection.taken..];
                    let size = if !ready.is_empty() {
                        let size = ready.len().min(most);
                        out[..size].copy_from_slice(&ready[..size]);
                        self.connection.taken += size;
                        size
                    } else if most >= RECEIVE_SIZE {
                        self.await_more()?;
                        let received = read_socket(&self.connection.socket, &mut out[..most], self.waits);
                        self.expect_more(received)?
                    } else {
                        self.fill()?;
                        continue;
                    };
                    self.count(size as u64);
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

impl BodySource for BodyReader<'_> {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (self.part != BodyPart::Length(0) && self.failed.is_none()).then(|| self.connection.socket.as_fd())
    }

    fn give_time(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    fn ask(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.expects) {
            self.connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(())
    }

    fn read_now(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.waits = false;
        let read = self.read(out);
        self.waits = true;
        read
    }

    fn splice_now(&mut self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
        let (BodyPart::Length(left) | BodyPart::Chunk(left)) = self.part else { return Ok(None) };
        if left == 0 || self.expects || self.connection.taken < self.connection.buffer.len() {
            return Ok(None);
        }
        let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        let moved = match splice(self.connection.socket.as_fd(), pipe, most) {
            Ok(Some(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        match &moved {
            Ok(moved) => self.count(moved.unwrap_or(0)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => {}
            Err(error) => self.failed = Some(error.kind()),
        }
        moved
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let read = self.read_some(out);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.failed = Some(error.kind());
        }
        read
    }
}

/// Fails with `WouldBlock` where nothing is there, at once or (`waits`) when the socket's time is up.
fn read_socket(socket: &OwnedFd, bytes: &mut [u8], waits: bool) -> io::Result<usize> {
    let flags = if waits { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    loop {
        match recv(socket, &mut *bytes, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?.0),
        }
    }
}

/// `chunk-size [ chunk-ext ]`: hexadecimal digits, and extensions that are skipped.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    // White space only before the semicolon of an extension.
    let begins = extension.iter().find(|byte| !b" \t".contains(byte));
    if digits.is_empty() || digits.len() > 15 || !(extension.is_empty() || begins == Some(&b';')) {
        return None;
    }
    if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// `field-name ":" field-value`, as httparse has it.
fn is_field(line: &[u8]) -> bool {
    let field = [line, b"\r\n\r\n"].concat();
    matches!(httparse::parse_headers(&field, &mut [httparse::EMPTY_HEADER]), Ok(httparse::Status::Complete(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn parse(head: impl AsRef<[u8]>) -> Result<Option<(Head, usize)>, Malformed> {
        parse_head(head.as_ref())
    }

    /// The head of this text, which is one.
    #[track_caller]
    fn head(text: &str) -> Head {
        let (head, size) = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error:?}")).expect("a whole head");
        assert_eq!(size, text.len(), "{text:?}");
        head
    }

    fn fields(fields: &str) -> Result<Option<(Head, usize)>, Malformed> {
        parse(format!("POST / HTTP/1.1\r\nHost: relay\r\n{fields}\r\n\r\n"))
    }

    #[test]
    fn whoever_has_a_connection_has_the_descriptors_for_it() {
        for descriptors in [0, 10, 64, 65, 100, 200, 256, 1024, 4096, 1 << 18, u64::MAX] {
            let room = Room::of(descriptors, 10_000);
            let (connections, refused) = (room.connections as u64, room.refused as u64);
            assert!((1..=10_000).contains(&connections) && refused <= 100, "{room:?}");
            if descriptors > SPARE_DESCRIPTORS {
                let kept = connections * DESCRIPTORS_OF_CONNECTION;
                // Three quarters of what is spare are left for what is opened for a moment.
                assert!(descriptors - kept.min(descriptors) >= 48 && refused <= 16.max(descriptors / 32), "{room:?}");
            }
        }
        assert_eq!(Room::of(1 << 18, 10_000).connections, 10_000);
        assert_eq!(Room::of(1024, 5), Room { connections: 5, refused: 32 });
    }

    #[test]
    fn a_head_is_found_where_it_ends() {
        let text = "\r\nPOST /?a=b HTTP/1.1\r\nHost: relay\r\nContent-Length: \t5 \r\nX: \u{e9}\r\n\r\n";
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end]).is_ok_and(|head| head.is_none()), "{end}");
        }
        let (head, size) = parse(format!("{text}GET /second")).unwrap().unwrap();
        assert_eq!(size, text.len());
        assert_eq!((head.method.as_str(), head.target.as_str(), head.is_http_1_1), ("POST", "/?a=b", true));
        assert_eq!(head.length, Length::Known(5));
        assert_eq!(head.field("x").as_deref(), Some("\u{e9}"));
        assert_eq!(head.path_and_query().unwrap(), ("/".to_owned(), "/".to_owned(), b"a=b".to_vec()));
    }

    #[test]
    fn what_is_not_a_length_is_none() {
        let length = |lines: &str| fields(lines).map(|head| head.expect("a whole head").0.length);
        assert_eq!(length("A: b"), Ok(Length::Known(0)));
        assert_eq!(length("Content-Length: 18446744073709551615"), Ok(Length::Known(u64::MAX)));
        assert_eq!(length("Transfer-Encoding: \tCHUNKED "), Ok(Length::Chunked));
        for wrong in ["+5", "-5", "5, 5", "0x5", "", "5 5", "\u{a0}5", "5\u{3000}", "18446744073709551616"] {
            assert!(matches!(length(&format!("Content-Length: {wrong}")), Err(Malformed::Head(_))), "{wrong}");
        }
        for wrong in ["identity", "chunked, gzip", "chunked, chunked", ",chunked", "chunked,", "\u{a0}chunked", "x"] {
            assert!(matches!(length(&format!("Transfer-Encoding: {wrong}")), Err(Malformed::Head(_))), "{wrong}");
        }
        assert_eq!(length("Transfer-Encoding: gzip, chunked"), Err(Malformed::TransferCoding));
        assert!(length("Transfer-Encoding: chunked\r\nContent-Length: 0").is_err());
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for right in ["a", "a:", "a:80", "127.0.0.1:1", "[::1]", "[::ffff:1.2.3.4]:80", "a_b.c-d~%20", "a;b=c"] {
            assert!(is_authority(right), "{right}");
        }
        for wrong in
            ["", ":80", "a:b", "a:8:0", "a b", "me@a", "a,b", "a/", "[", "[::1", "[]", "[::1]x", "[a]", "\u{e9}"]
        {
            assert!(!is_authority(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_target_is_seen_through_all_its_forms() {
        let target =
            |target: &str| head(&format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n")).path_and_query().ok();
        let to = |path: &str, query: &str| Some((path.to_owned(), path.to_owned(), query.as_bytes().to_vec()));
        assert_eq!(target("/a%20b?c%20d"), Some(("/a b".into(), "/a%20b".into(), b"c%20d".to_vec())));
        assert_eq!(target("http://a"), to("/", ""));
        assert_eq!(target("HTTP://a?b"), to("/", "b"));
        assert_eq!(target("https://a:1/b?c"), to("/b", "c"));
        assert_eq!(target("*"), to("", ""));
        assert_eq!(target("/?x=http://me@b"), to("/", "x=http://me@b"));
        for wrong in ["a", "?b", "ftp://a/", "http:///", "http://me@a/", "http://a:b/", "/%00", "/%ff", "*x", "a:80"] {
            assert_eq!(target(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_log_shows_no_token() {
        let shown = |target: &str| head(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).loggable_target();
        assert_eq!(shown("/?action=join&hostId=1"), "/?action=join&hostId=1");
        assert_eq!(shown("/?token=secret&lastEventId=7"), "/?token=-&lastEventId=-");
        for target in ["/?%74oken=secret", "/?Token=secret", "/?secret", "/?secret=", "/?a=secret", "/?&&secret&&"] {
            assert!(!shown(target).contains("secret"), "{target}");
        }
        assert_eq!(shown("/\"\\\u{85}"), "/___");
    }

    #[test]
    fn a_chunk_has_a_size_and_nothing_that_could_be_another() {
        for (line, size) in
            [("0", 0), ("0005", 5), ("fF", 255), ("5;a=b", 5), ("5 \t ;a", 5), ("fffffffffffffff", (1 << 60) - 1)]
        {
            assert_eq!(chunk_size(line.as_bytes()), Some(size), "{line}");
        }
        for line in [
            "",
            " 5",
            "5 ",
            "5\t",
            "5\x0c;a",
            "+5",
            "-5",
            "0x5",
            "5g",
            "5,5",
            "5 5",
            ";a",
            "5;\x01",
            "5;\x7f",
            "1000000000000000",
        ] {
            assert_eq!(chunk_size(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_trailer_is_a_field() {
        assert!(is_field(b"A: b") && is_field(b"A:") && is_field(b"!#: \xff"));
        for wrong in [&b"A"[..], b": b", b"A : b", b" A: b", b"A(: b", b"A: \0", b"A: \x7f", b"\xff: b"] {
            assert!(!is_field(wrong), "{wrong:?}");
        }
    }

    /// A connection on which these pieces arrive one by one, and then its end, or nothing.
    fn connection<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, with_end: bool) -> (Connection, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            assert_eq!(send(&theirs, piece, SendFlags::DONTWAIT), Ok(piece.len()));
        }
        if with_end {
            shutdown(&theirs, Shutdown::Write).unwrap();
        }
        (Connection { socket: Arc::new(ours), peer: None, buffer: Vec::new(), taken: 0 }, theirs)
    }

    fn reader(connection: &mut Connection, part: BodyPart, time: Duration) -> BodyReader<'_> {
        let until = Instant::now() + time;
        BodyReader { connection, part, expects: false, until, waits: true, failed: None }
    }

    #[test]
    fn a_body_that_trickles_in_is_not_waited_for_forever() {
        let (mut connection, theirs) = connection([b"1".as_slice()], false);
        sockopt::set_socket_timeout(&*connection.socket, sockopt::Timeout::Recv, Some(Duration::from_secs(10)))
            .unwrap();
        let trickle = std::thread::spawn(move || {
            while send(&theirs, b"1", SendFlags::NOSIGNAL).is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let mut body = reader(&mut connection, BodyPart::Length(1 << 40), Duration::from_millis(200));
        let error = io::copy(&mut body, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!body.skip(u64::MAX));
        drop(connection);
        trickle.join().unwrap();
    }

    #[test]
    fn what_has_been_read_of_a_body_is_not_kept() {
        // Each packet ends in the middle of the next chunk's line.
        let packet = format!("{}\r\n \r\n1;{}", "x".repeat(100), "x".repeat(100));
        let pieces: Vec<_> =
            std::iter::once(b"1;x".as_slice()).chain(std::iter::repeat_n(packet.as_bytes(), 100)).collect();
        let (mut connection, _theirs) = connection(pieces, true);
        let mut body = reader(&mut connection, BodyPart::ChunkLine, Duration::from_secs(10));
        let mut byte = [0];
        for _ in 0..100 {
            body.read_exact(&mut byte).unwrap();
            assert!(body.connection.buffer.len() <= 2 * packet.len(), "{}", body.connection.buffer.len());
        }
    }

    /// A line of a head that a stranger may have thought of.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        let length = prop::sample::select(vec![
            "Content-Length: 5",
            "content-length:5",
            "Content-Length: 7",
            "Content-Length: 5, 5",
            "Content-Length : 5",
            "Content-Length: +5",
            "Content-Length:\u{a0}5",
            "Content-Length: 0",
            " Content-Length: 5",
            "Content-Length: ",
            "Transfer-Encoding: chunked",
            "transfer-encoding:chunked",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding:",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding:\u{b}chunked",
            "Transfer-Encoding\t: chunked",
            "\tTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Host: relay",
            "A: b",
            "A: b\rTransfer-Encoding: chunked",
            "A: b\nContent-Length: 5",
            "A: \0",
            "",
        ]);
        prop_oneof![
            8 => length.prop_map(|line| line.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    /// Lengths and codings as the most credulous of proxies would see them: any line that names one, whatever ends the
    /// line, stands around the name, or is in the value.
    fn claims(head: &[u8]) -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(head).to_lowercase();
        let lines = text.split(['\n', '\r']).filter_map(|line| line.split_once(':'));
        lines
            .map(|(name, value)| (name.trim().to_owned(), value.trim_matches([' ', '\t']).to_owned()))
            .filter(|(name, _)| name == "content-length" || name == "transfer-encoding")
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_make_the_reader_of_heads_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
            let _ = parse([b"GET / HTTP/1.1\r\n".as_slice(), &bytes, b"\r\n\r\n"].concat());
            if let Ok(Some((head, size))) = parse([b"GET ".as_slice(), &bytes, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat()) {
                prop_assert!(size <= bytes.len() + 40);
                let _ = head.path_and_query();
                prop_assert!(!head.loggable_target().contains(['\r', '\n', '"']));
            }
        }

        #[test]
        fn no_two_readers_disagree_about_where_a_body_ends(
            lines in prop::collection::vec(line(), 0..5),
            version in prop::sample::select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/1.2"]),
            ends in prop::collection::vec(prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n"]), 5),
        ) {
            let mut bytes = format!("POST / {version}\r\nHost: relay\r\n").into_bytes();
            for (line, end) in lines.iter().zip(&ends) {
                bytes.extend_from_slice(line);
                bytes.extend_from_slice(end.as_bytes());
            }
            bytes.extend_from_slice(b"\r\n");
            if let Ok(Some((head, size))) = parse(&bytes) {
                // What is accepted leaves no other reading.
                let claims = claims(&bytes[..size]);
                let expected = match &claims[..] {
                    [] => Some(Length::Known(0)),
                    [(name, value)] if name == "content-length" && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                        value.parse().ok().map(Length::Known)
                    }
                    [(name, value)] if name == "transfer-encoding" && value == "chunked" && version != "HTTP/1.0" => {
                        Some(Length::Chunked)
                    }
                    _ => None,
                };
                prop_assert_eq!(Some(head.length), expected, "{:?}", String::from_utf8_lossy(&bytes));
            }
        }

        #[test]
        fn chunks_make_the_same_body_however_they_arrive(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..12),
            extension in prop::sample::select(vec!["", ";a", " ; a=\"b\"", ";0=5"]),
            trailer in prop::sample::select(vec!["", "A: b\r\n", "Content-Length: 5\r\nA: \r\n"]),
            tears in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
            size in 1..64_usize,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(format!("0{extension}\r\n{trailer}\r\n").as_bytes());
            let behind = b"GET /next HTTP/1.1\r\n";
            bytes.extend_from_slice(behind);

            let mut tears: Vec<_> = tears.iter().map(|tear| tear.index(bytes.len())).collect();
            tears.extend([0, bytes.len()]);
            tears.sort_unstable();
            let (mut connection, _theirs) = connection(tears.windows(2).map(|ends| &bytes[ends[0]..ends[1]]), true);
            let mut body = reader(&mut connection, BodyPart::ChunkLine, Duration::from_secs(10));
            let mut found = Vec::new();
            let mut buffer = vec![0; size];
            loop {
                match body.read(&mut buffer).unwrap() {
                    0 => break,
                    count => found.extend_from_slice(&buffer[..count]),
                }
            }
            prop_assert_eq!(found, chunks.concat());
            prop_assert!(body.skip(0));
            // Not a byte of the next request is gone.
            while connection.receive(true).unwrap() > 0 {}
            prop_assert_eq!(&connection.buffer[connection.taken..], behind);
        }

        #[test]
        fn no_bytes_make_the_reader_of_chunks_panic(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 1..30),
                prop::sample::select(vec!["5\r\n12345\r\n", "0\r\n", "\r\n", "1;", "ffffffffffffffff\r\n", "A: b\r\n"])
                    .prop_map(|text| text.as_bytes().to_vec()),
            ], 0..12),
        ) {
            let (mut connection, _theirs) = connection(pieces.iter().map(Vec::as_slice), true);
            let mut body = reader(&mut connection, BodyPart::ChunkLine, Duration::from_secs(10));
            let mut found = Vec::new();
            let read = body.read_to_end(&mut found);
            prop_assert!(found.len() <= pieces.concat().len());
            // A body that has failed leaves a connection that cannot be used.
            prop_assert_eq!(body.skip(u64::MAX), read.is_ok());
        }
    }
}
