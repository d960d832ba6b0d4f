//! The way to the client, for as long as a reply is being written.

use super::client::{Client, Woken};
use super::socket::{send, set_patience};
use super::splice::splice;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use rustix::io::writev;
use std::io::{self, IoSlice};
use std::time::Duration;
#[cfg(feature = "serve")]
use std::time::Instant;

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
    pub(super) fn finish(mut self, limit: Duration) -> bool {
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
