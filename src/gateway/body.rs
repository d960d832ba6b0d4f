//! The body of a request: how it is read, and for how long.

use super::status::Status;
use crate::wake::Wake;
use rustix::fd::BorrowedFd;
use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a client may take to send the whole body of a request.
pub(super) const BODY_TIME: Duration = Duration::from_secs(60);

/// How long the rest of a body is read that is too large.
const REST_TIME: Duration = Duration::from_secs(5);

/// No more memory than this is reserved for what has not arrived yet.
const WORTH_RESERVING: u64 = 1 << 20;

/// How much is read at once.
const READ_SIZE: usize = 16 * 1024;

/// The body of a request.
pub struct Body<'a> {
    /// Its length where the sender said it (`Content-Length`); `None` for a chunked one.
    pub length: Option<u64>,
    /// Whether it comes without being asked for. Otherwise the first read asks the client for it
    /// (`Expect: 100-continue`).
    pub is_awaited: bool,
    /// The bytes, up to their end.
    pub reader: &'a mut dyn Incoming,
}

/// Where bytes come from. It [wakes](Wake) whoever waits once there is more after [`Incoming::read_now`] has found nothing.
pub trait Incoming: Wake + Sync {
    /// Reads what there is, waiting for it no longer than there is [time](Incoming::give_time): 0 at the end, and an error
    /// where the body breaks off, or the time is up.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Reads what is there already: `WouldBlock` where there is nothing, 0 at the end, and an error where the body breaks
    /// off. It takes no notice of time.
    ///
    /// # Errors
    /// As above.
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// From now on there is that much time for all the rest. Without it, a body has to come within a minute. What has no end
    /// that could be waited for takes no notice.
    fn give_time(&mut self, _time: Duration) {}

    /// Moves up to `most` bytes that are there already into a pipe, past this process's memory: `WouldBlock` where there
    /// are none, or no room. `None` where they have to be [read](Incoming::read_now).
    ///
    /// # Errors
    /// As for a read; `BrokenPipe` when nobody reads the pipe.
    fn splice_now(&mut self, _pipe: BorrowedFd<'_>, _most: usize) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

impl dyn Incoming + '_ {
    /// See [`Incoming::poll_read`].
    ///
    /// # Errors
    /// Where the body breaks off, or the time is up.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }
}

/// Why a body could not be read: the status and the sentence that say it.
#[derive(Debug)]
pub struct BodyError(pub Status, pub Cow<'static, str>);

impl From<io::ErrorKind> for BodyError {
    /// By how a [read](Incoming) has failed.
    fn from(kind: io::ErrorKind) -> Self {
        let (status, sentence) = match kind {
            io::ErrorKind::TimedOut => {
                (Status::RequestTimeout, "The body took too long to arrive: send it faster, or less.")
            }
            io::ErrorKind::InvalidData => (Status::BadRequest, "The body's chunks are malformed: see RFC 9112, 7.1."),
            // Its end cannot be seen.
            io::ErrorKind::Unsupported => (
                Status::LengthRequired,
                "The body has no Content-Length, and this web server does not take chunks: send a length.",
            ),
            _ => (Status::BadRequest, "The body ended before its Content-Length: send all of it."),
        };
        Self(status, sentence.into())
    }
}

impl Body<'_> {
    /// Reads the whole body.
    ///
    /// # Errors
    /// A body longer than `limit` bytes is refused; so is one that is cut short or too slow.
    pub async fn read(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        let known = self.length.unwrap_or(0);
        let mut bytes = Vec::with_capacity(usize::try_from(known.min(WORTH_RESERVING)).unwrap_or(0));
        if known <= limit {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            while bytes.len() <= limit {
                let begin = bytes.len();
                // One more than there can be, so that its end is seen.
                let most = (limit - begin).saturating_add(1).min(READ_SIZE.max(bytes.capacity() - begin));
                bytes.resize(begin + most, 0);
                let read = self.reader.read(&mut bytes[begin..]).await.map_err(|error| error.kind())?;
                bytes.truncate(begin + read);
                if read == 0 {
                    let is_whole = self.length.is_none_or(|length| bytes.len() as u64 >= length);
                    return if is_whole { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
            }
        }
        self.reader.give_time(REST_TIME);
        self.drain(u64::MAX).await;
        let sentence = format!("The body is larger than {limit} bytes: send less at once.");
        Err(BodyError(Status::ContentTooLarge, sentence.into()))
    }

    /// A client that is still sending would not see the answer, only a broken connection; for its sake the rest is read
    /// and thrown away, as long as the reader has time, up to so many bytes. Whether that was all of it.
    pub async fn drain(&mut self, most: u64) -> bool {
        let (mut buffer, mut left) = (vec![0; READ_SIZE], most);
        while self.is_awaited && left > 0 {
            match self.reader.read(&mut buffer).await {
                Ok(0) => return true,
                Ok(read) => left = left.saturating_sub(read as u64),
                Err(_) => return false,
            }
        }
        false
    }
}

/// No body.
#[cfg(test)]
impl Wake for io::Empty {
    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

#[cfg(test)]
impl Incoming for io::Empty {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn read_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}
