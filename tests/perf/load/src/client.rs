//! Any number of connections to one relay, driven by one thread and one epoll.
//!
//! One thread, because the load shares the machine with the server it measures: every context switch spent here
//! is one that the server does not get. What happens on the connections comes out of [`Client::next`] one by one.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::http::{AnswerReader, Target};
use crate::sse::{Event, EventReader};

/// A connection that does not open or an answer that does not come within this time is an error.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub type Result<T> = std::result::Result<T, String>;

/// Names one connection. It outlives the socket: a server that closes after an answer gets a new one.
pub type Key = usize;

/// Something happened on a connection.
pub struct Happening {
    pub key: Key,
    /// When its bytes had been read.
    pub at: Instant,
    pub what: What,
}

pub enum What {
    /// The answer to a request, or to the request for a stream that was refused.
    Answer { status: u16, body: Vec<u8> },
    /// A stream has begun.
    Opened,
    /// An event of a stream.
    Event(Event),
    /// A stream has ended, or a request has failed.
    Failed(String),
}

pub struct Client {
    pub target: Target,
    /// Sockets opened so far.
    pub connects: u64,
    /// Requests sent again because the server had closed an idle connection just then.
    pub resent: u64,
    epoll: OwnedFd,
    lines: Vec<Line>,
    queue: VecDeque<Happening>,
    scratch: Vec<u8>,
}

struct Line {
    socket: Option<TcpStream>,
    request: Vec<u8>,
    written: usize,
    /// The socket's buffer is full: epoll tells when there is room.
    stuck: bool,
    reader: AnswerReader,
    /// For the connection of a stream.
    stream: Option<Stream>,
    /// The socket has carried an answer before, so the server may close it at any moment without being at fault.
    reused: bool,
    busy: bool,
}

#[derive(Default)]
struct Stream {
    events: EventReader,
    opened: bool,
}

impl Client {
    pub fn new(target: Target) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| format!("epoll: {error}"))?;
        Ok(Self {
            target,
            connects: 0,
            resent: 0,
            epoll,
            lines: Vec::new(),
            queue: VecDeque::new(),
            scratch: vec![0; 64 * 1024],
        })
    }

    /// A connection for requests. It is opened by the first of them.
    pub fn line(&mut self) -> Key {
        self.lines.push(Line {
            socket: None,
            request: Vec::new(),
            written: 0,
            stuck: false,
            reader: AnswerReader::new(),
            stream: None,
            reused: false,
            busy: false,
        });
        self.lines.len() - 1
    }

    /// Begins a request; its answer comes out of `next`.
    pub fn send(&mut self, key: Key, request: Vec<u8>) {
        let line = &mut self.lines[key];
        assert!(!line.busy, "one request at a time on a connection");
        line.request = request;
        line.busy = true;
        line.reader.next();
        self.transmit(key);
    }

    /// Opens a stream on a connection of its own.
    pub fn listen(&mut self, query: &str) -> Key {
        let key = self.line();
        self.lines[key].stream = Some(Stream::default());
        let request = self.target.listen(query);
        self.send(key, request);
        key
    }

    /// Gives a stream's socket to somebody who reads it in another way. Nothing happens here on that connection any more.
    pub fn release(&mut self, key: Key) -> Result<TcpStream> {
        let socket = self.lines[key].socket.take().ok_or("the stream has ended")?;
        epoll::delete(&self.epoll, &socket).map_err(|error| error.to_string())?;
        Ok(socket)
    }

    /// The next thing that happens, or nothing if that is not before `until`.
    pub fn next(&mut self, until: Instant) -> Result<Option<Happening>> {
        loop {
            if let Some(happening) = self.queue.pop_front() {
                return Ok(Some(happening));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left)?;
        }
    }

    fn wait(&mut self, left: Duration) -> Result<()> {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 256];
        let left = left.try_into().map_err(|_| "a time limit too long".to_owned())?;
        let count = match epoll::wait(&self.epoll, &mut ready, Some(&left)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(format!("epoll: {error}")),
        };
        for event in &ready[..count] {
            let key = usize::try_from(event.data.u64()).map_err(|error| error.to_string())?;
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.write(key);
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.read(key);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, key: Key) {
        self.lines[key].written = 0;
        if self.lines[key].socket.is_none()
            && let Err(error) = self.connect(key)
        {
            self.fail(key, format!("{}: {error}", self.target.address));
            return;
        }
        self.write(key);
    }

    fn connect(&mut self, key: Key) -> std::io::Result<()> {
        let socket = TcpStream::connect_timeout(&self.target.address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(key as u64), epoll::EventFlags::IN)?;
        self.connects += 1;
        let line = &mut self.lines[key];
        line.socket = Some(socket);
        line.reader = AnswerReader::new();
        line.reused = false;
        line.stuck = false;
        Ok(())
    }

    fn write(&mut self, key: Key) {
        let line = &mut self.lines[key];
        let Some(socket) = &mut line.socket else {
            return;
        };
        while line.written < line.request.len() {
            match socket.write(&line.request[line.written..]) {
                Ok(n) => line.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return self.lost(key, &error.to_string()),
            }
        }
        let stuck = line.written < line.request.len();
        if stuck != line.stuck {
            line.stuck = stuck;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, stuck);
            let data = epoll::EventData::new_u64(key as u64);
            if let Err(error) = epoll::modify(&self.epoll, &*socket, data, flags) {
                self.fail(key, error.to_string());
            }
        }
    }

    fn read(&mut self, key: Key) {
        let line = &mut self.lines[key];
        let Some(socket) = &mut line.socket else {
            return;
        };
        let got = match socket.read(&mut self.scratch) {
            Ok(0) if line.reader.begun() && !line.reader.whole() && line.stream.is_none() => match line.reader.end() {
                Ok(()) => 0,
                Err(error) => return self.fail(key, error),
            },
            Ok(0) => return self.lost(key, "the server closed the connection"),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => return self.lost(key, &error.to_string()),
        };
        let at = Instant::now();
        if let Err(error) = line.reader.take(&self.scratch[..got]) {
            return self.fail(key, error);
        }
        if line.reader.status == 200
            && let Some(stream) = &mut line.stream
        {
            if !stream.opened {
                stream.opened = true;
                self.queue.push_back(Happening { key, at, what: What::Opened });
            }
            let queue = &mut self.queue;
            stream.events.take(&line.reader.body, |event| {
                queue.push_back(Happening { key, at, what: What::Event(event) });
            });
            line.reader.body.clear();
            if line.reader.whole() {
                self.fail(key, "the stream ended".to_owned());
            }
        } else if line.reader.whole() {
            let status = line.reader.status;
            let body = std::mem::take(&mut line.reader.body);
            line.busy = false;
            line.reused = true;
            if line.reader.close {
                line.socket = None;
            }
            self.queue.push_back(Happening { key, at, what: What::Answer { status, body } });
        }
    }

    /// The connection is gone. Between two requests that is the server's right (RFC 9112, 9.5), and a request that
    /// met a connection just being closed is sent again. Should it have been carried out after all, the message
    /// arrives twice and is counted as such.
    fn lost(&mut self, key: Key, why: &str) {
        let line = &mut self.lines[key];
        line.socket = None;
        if !line.busy {
            return;
        }
        if line.reused && line.reader.untouched() {
            self.resent += 1;
            self.transmit(key);
        } else {
            self.fail(key, why.to_owned());
        }
    }

    fn fail(&mut self, key: Key, why: String) {
        let line = &mut self.lines[key];
        line.socket = None;
        line.busy = false;
        self.queue.push_back(Happening { key, at: Instant::now(), what: What::Failed(why) });
    }
}
