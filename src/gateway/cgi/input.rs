//! The body of a request that comes through our standard input, and how long it may take.

use super::output::poll_until;
use super::splice::splice;
use crate::gateway::body::Incoming;
use crate::wake::{Ready, Wake};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Our standard input, of which so many bytes are the body: a client that sends a byte an hour must not keep a process.
pub(super) struct Input {
    fd: BorrowedFd<'static>,
    /// `None` where the end of the input is that of the body.
    left: Option<u64>,
    until: Instant,
}

impl Input {
    /// The time starts now.
    pub fn new(fd: BorrowedFd<'static>, length: Option<u64>, limit: Duration) -> Self {
        Self { fd, left: length, until: Instant::now() + limit }
    }

    fn most(&self, wanted: usize) -> usize {
        self.left.map_or(wanted, |left| wanted.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// So many have come; none where the body ends.
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.left {
            Some(_) if bytes == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(left) => {
                *left -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Wake for Input {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (self.left != Some(0)).then_some((self.fd, PollFlags::IN))
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left == Some(0) { Poll::Pending } else { Ready::to_read(self.fd).poll_wake(cx) }
    }
}

impl Incoming for Input {
    fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.most(buffer.len()) == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut input = [PollFd::from_borrowed_fd(self.fd, PollFlags::IN)];
        poll_until(&mut input, self.until);
        Poll::Ready(if input[0].revents().is_empty() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            self.read_now(buffer)
        })
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.most(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        if !Ready::to_read(self.fd).is_ready() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let got = rustix::io::retry_on_intr(|| rustix::io::read(self.fd, &mut buffer[..most]))?;
        self.count(got as u64)?;
        Ok(got)
    }

    fn give_time(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    fn splice_now(&mut self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
        let most = self.most(most);
        if most == 0 {
            return Ok(Some(0));
        }
        let moved = splice(self.fd, pipe, most)?;
        if let Some(moved) = moved {
            self.count(moved)?;
        }
        Ok(moved)
    }
}

/// A body that cannot be read, because its end cannot be seen.
pub(super) struct NoLength;

impl Wake for NoLength {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Incoming for NoLength {
    fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.read_now(buffer))
    }

    fn read_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn give_time(&mut self, _: Duration) {}
}
