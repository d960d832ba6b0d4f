//! A reader of event streams that is not the relay's: bytes from a web server or from the bare program, through
//! chunked coding where the server uses it, to events. Every read has a time limit.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::place::{LONG, kill, readable};
use crate::relay::{Reply, header};

/// One event, as an `EventSource` would hand it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: String,
}

impl Event {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The message's own part of the data.
    #[track_caller]
    pub fn body(&self) -> Value {
        assert_eq!(self.name, "message", "{self:?}");
        self.json()["body"].clone()
    }

    /// What a host answers a message with.
    #[track_caller]
    pub fn response_token(&self) -> String {
        let json = self.json();
        json["responseToken"].as_str().unwrap_or_else(|| panic!("no responseToken in {self:?}")).to_owned()
    }
}

/// What a stream yields next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    Comment(String),
    End,
    /// Nothing came within the time limit.
    Nothing,
}

/// Where the bytes come from.
enum Source {
    Socket(TcpStream),
    Process(Child, Option<ChildStdout>),
}

impl Source {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(socket) => Some(socket.as_fd()),
            Self::Process(_, output) => output.as_ref().map(AsFd::as_fd),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buffer),
            Self::Process(_, Some(output)) => output.read(buffer),
            Self::Process(_, None) => Ok(0),
        }
    }
}

/// Bytes that are there within a time limit, or the end, or neither.
enum Bytes {
    Some,
    End,
    None,
}

pub struct Stream {
    source: Source,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// As they came, not yet looked at.
    raw: Vec<u8>,
    chunked: bool,
    /// What is left of the chunk that is being read.
    in_chunk: usize,
    /// After chunked coding, not yet a whole line.
    text: Vec<u8>,
    event: Event,
    has_data: bool,
    ended: bool,
    /// How long a browser would wait before it returns, in milliseconds.
    pub retry: Option<u64>,
    /// The id of the last event, as a browser would send it on its return.
    pub last_id: String,
}

impl Stream {
    /// Reads the answer's head. `Err` is a whole answer that is not a stream.
    pub fn from_socket(socket: TcpStream) -> Result<Self, Reply> {
        Self::new(Source::Socket(socket)).stream_or_reply()
    }

    pub fn from_process(mut process: Child) -> Result<Self, Reply> {
        let output = process.stdout.take();
        Self::new(Source::Process(process, output)).stream_or_reply()
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            status: 0,
            headers: Vec::new(),
            raw: Vec::new(),
            chunked: false,
            in_chunk: 0,
            text: Vec::new(),
            event: Event { id: String::new(), name: "message".into(), data: String::new() },
            has_data: false,
            ended: false,
            retry: None,
            last_id: String::new(),
        }
    }

    fn stream_or_reply(mut self) -> Result<Self, Reply> {
        let deadline = Instant::now() + LONG;
        let end = loop {
            if let Some(end) = end_of_head(&self.raw) {
                break end;
            }
            match self.fill(deadline) {
                Bytes::Some => {}
                Bytes::End => break self.raw.len(),
                Bytes::None => panic!("no head of an answer after {LONG:?}"),
            }
        };
        let body = self.raw.split_off(end);
        (self.status, self.headers) = parse_head(&std::mem::replace(&mut self.raw, body));
        self.chunked = header(&self.headers, "transfer-encoding").is_some_and(|coding| coding == "chunked");
        if self.status == 200 && header(&self.headers, "content-type").is_some_and(|kind| kind.contains("event-stream"))
        {
            self.decode();
            return Ok(self);
        }
        let length = header(&self.headers, "content-length").and_then(|length| length.parse().ok());
        loop {
            self.decode();
            if self.ended || length.is_some_and(|length: usize| self.text.len() >= length) {
                break;
            }
            match self.fill(deadline) {
                Bytes::Some => {}
                Bytes::End => self.ended = self.raw.is_empty() || !self.chunked,
                Bytes::None => panic!("an answer that does not end: {:?}", String::from_utf8_lossy(&self.text)),
            }
        }
        let body = String::from_utf8_lossy(&self.text).into_owned();
        Err(Reply { status: self.status, headers: std::mem::take(&mut self.headers), body })
    }

    /// Reads what is there, waiting for it until `deadline`.
    fn fill(&mut self, deadline: Instant) -> Bytes {
        let Some(fd) = self.source.fd() else { return Bytes::End };
        if !readable(fd, deadline) {
            return Bytes::None;
        }
        let mut buffer = [0; 16384];
        match self.source.read(&mut buffer) {
            Ok(0) => Bytes::End,
            Ok(count) => {
                self.raw.extend_from_slice(&buffer[..count]);
                Bytes::Some
            }
            // A server that is killed resets its connections.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Bytes::End,
            Err(error) => panic!("read: {error}"),
        }
    }

    /// Moves what is complete from `raw` to `text`, through chunked coding (RFC 9112, 7.1).
    fn decode(&mut self) {
        if !self.chunked {
            self.text.append(&mut self.raw);
            return;
        }
        loop {
            if self.in_chunk > 2 {
                // The two bytes after the chunk are its CR LF.
                let count = self.raw.len().min(self.in_chunk - 2);
                self.text.extend(self.raw.drain(..count));
                self.in_chunk -= count;
            }
            if self.in_chunk > 0 && self.in_chunk <= 2 {
                let count = self.raw.len().min(self.in_chunk);
                self.raw.drain(..count);
                self.in_chunk -= count;
            }
            if self.in_chunk > 0 {
                return;
            }
            let Some(end) = self.raw.iter().position(|&byte| byte == b'\n') else { return };
            let line: Vec<u8> = self.raw.drain(..=end).collect();
            let line = String::from_utf8(line).expect("a chunk size is ASCII");
            let size = line.trim().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
            if size == 0 {
                self.ended = true;
                return;
            }
            self.in_chunk = size + 2;
        }
    }

    /// The next event or comment, or what there is instead.
    #[track_caller]
    pub fn next(&mut self, limit: Duration) -> Item {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                let line = String::from_utf8(line).expect("an event stream is UTF-8");
                if let Some(item) = self.line(line.trim_end_matches(['\r', '\n'])) {
                    return item;
                }
            }
            if self.ended {
                return Item::End;
            }
            match self.fill(deadline) {
                Bytes::Some => self.decode(),
                Bytes::End => {
                    self.decode();
                    self.ended = true;
                }
                Bytes::None => return Item::Nothing,
            }
        }
    }

    /// Understands a line (HTML standard, 9.2.6). The relay has no use for any other field than these.
    #[track_caller]
    fn line(&mut self, line: &str) -> Option<Item> {
        if let Some(comment) = line.strip_prefix(':') {
            return Some(Item::Comment(comment.trim_start().to_owned()));
        }
        if line.is_empty() {
            let id = self.event.id.clone();
            let fresh = Event { id: id.clone(), name: "message".into(), data: String::new() };
            let event = std::mem::replace(&mut self.event, fresh);
            self.last_id = id;
            return std::mem::take(&mut self.has_data).then_some(Item::Event(event));
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => value.clone_into(&mut self.event.id),
            "event" => value.clone_into(&mut self.event.name),
            "retry" => self.retry = Some(value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"))),
            "data" => {
                assert!(!self.has_data, "an event of two data lines: {line:?}");
                self.has_data = true;
                value.clone_into(&mut self.event.data);
            }
            _ => panic!("not a line of an event stream: {line:?}"),
        }
        None
    }

    /// The next event, comments aside.
    #[track_caller]
    pub fn event(&mut self) -> Event {
        match self.next_event(LONG) {
            Item::Event(event) => event,
            other => panic!("no event after {LONG:?}, but {other:?}"),
        }
    }

    /// The next event, or `End`, or `Nothing`.
    #[track_caller]
    pub fn next_event(&mut self, limit: Duration) -> Item {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Item::Comment(_) => {}
                item => return item,
            }
        }
    }

    /// The id with which a browser would return that has had no event yet.
    #[track_caller]
    pub fn first_id(&mut self) -> String {
        let deadline = Instant::now() + LONG;
        while self.last_id.is_empty() {
            assert!(Instant::now() < deadline, "a stream that does not say where it begins");
            match self.next(Duration::from_millis(20)) {
                Item::Comment(_) | Item::Nothing => {}
                other => panic!("{other:?} before there was an id"),
            }
        }
        self.last_id.clone()
    }

    /// The body of the next message.
    #[track_caller]
    pub fn body(&mut self) -> Value {
        self.event().body()
    }

    #[track_caller]
    pub fn expect_comment(&mut self, text: &str) {
        assert_eq!(self.next(LONG), Item::Comment(text.to_owned()));
    }

    /// The next event is this `relay_event`.
    #[track_caller]
    pub fn expect_closed(&mut self, kind: &str, id: &str) {
        let event = self.event();
        assert_eq!(event.name, "relay_event", "{event:?}");
        assert_eq!(event.json(), serde_json::json!({"eventType": kind, "body": id}));
    }

    /// No event comes for so long: only for what must never come.
    #[track_caller]
    pub fn expect_silence(&mut self, limit: Duration) {
        assert_eq!(self.next_event(limit), Item::Nothing);
    }

    /// The stream ends, with no event before.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(self.next_event(LONG), Item::End);
    }

    /// All that a stream says until it ends.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.next_event(LONG) {
                Item::Event(event) => events.push(event),
                Item::End => return events,
                other => panic!("a stream that does not end: {other:?}"),
            }
        }
    }

    /// The process of a bare stream.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        match &self.source {
            Source::Process(process, _) => Pid::from_child(process),
            Source::Socket(_) => panic!("a web server's stream has no process that a test may kill"),
        }
    }

    /// Sends its process a signal, and waits until it is gone. What it had written can still be read.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        kill(self.pid(), signal);
        if let Source::Process(process, _) = &mut self.source {
            process.wait().expect("a child can be waited for");
        }
    }

    /// Hangs up, as a browser does whose tab is closed.
    pub fn hang_up(self) {
        drop(self);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        match &mut self.source {
            Source::Socket(socket) => {
                let _ = socket.shutdown(Shutdown::Both);
            }
            Source::Process(process, output) => {
                drop(output.take());
                // With nobody to read it, it has to end by itself: that is what tells its peers.
                let deadline = Instant::now() + Duration::from_secs(10);
                while matches!(process.try_wait(), Ok(None)) {
                    if Instant::now() > deadline {
                        let _ = process.kill();
                        let _ = process.wait();
                        assert!(std::thread::panicking(), "a stream goes on although nobody reads it");
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

/// Where the empty line ends that ends a head: servers write CR LF, a CGI program may write LF.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let after = |separator: &[u8]| {
        bytes.windows(separator.len()).position(|window| window == separator).map(|at| at + separator.len())
    };
    match (after(b"\r\n\r\n"), after(b"\n\n")) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Status and headers, of an HTTP answer or of a CGI program's.
#[track_caller]
pub fn parse_head(bytes: &[u8]) -> (u16, Vec<(String, String)>) {
    let text = String::from_utf8_lossy(bytes);
    let mut status = None;
    let mut headers = Vec::new();
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if status.is_none() && line.starts_with("HTTP/") {
            status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
            continue;
        }
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header line: {line:?} in {text:?}"));
        if name.eq_ignore_ascii_case("status") {
            status = value.trim().split(' ').next().and_then(|code| code.parse().ok());
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    (status.unwrap_or_else(|| panic!("no status in {text:?}")), headers)
}
