//! The body of a request: how it is read, and for how long.

use super::reply::Status;
use super::splice::splice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// How long a client may take to send the whole body of a request.
pub(super) const BODY_TIME: Duration = Duration::from_secs(60);

/// How long the rest of a body is read that is too large.
const REST_TIME: Duration = Duration::from_secs(5);

/// No more memory than this is reserved for what has not arrived yet.
const WORTH_RESERVING: u64 = 1 << 20;

/// The body of a request.
pub struct Body<'a> {
    /// Its length where the sender said it (`Content-Length`); `None` for a chunked one.
    pub length: Option<u64>,
    /// Whether it comes without being asked for. Otherwise the first read asks the client for it
    /// (`Expect: 100-continue`).
    pub is_awaited: bool,
    /// The bytes, up to their end.
    pub reader: &'a mut dyn BodySource,
}

/// Where the bytes of a body come from. A read blocks, and fails when the time is up.
pub trait BodySource: Read {
    /// What becomes readable once there is more, after [`BodySource::read_now`] has found nothing; `None` where there will
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
    /// are none, or no room. `None` where they have to be [read](BodySource::read_now).
    ///
    /// # Errors
    /// As for a read; `BrokenPipe` when nobody reads the pipe.
    fn splice_now(&mut self, _pipe: BorrowedFd<'_>, _most: usize) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

/// No body.
impl BodySource for io::Empty {
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
    pub(super) fn drain(&mut self) -> bool {
        self.is_awaited && io::copy(&mut self.reader, &mut io::sink()).is_ok()
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

impl BodySource for TimedReader<'_> {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd)
    }

    fn give_time(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if crate::look(self.fd, PollFlags::IN).is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(rustix::io::read(self.fd, buffer)?)
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
