//! The body of a request that comes through our standard input, and how long it may take.

use super::output::poll_until;
use super::splice::splice;
use crate::gateway::body::{BODY_TIME, Incoming};
use crate::wake::{Ready, Wake};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Where a body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After so many bytes.
    After(u64),
    /// With the input.
    OfInput,
    /// Nobody can see it, so it cannot be read.
    Unseen,
}

/// Our standard input, of which a part is the body: a client that sends a byte an hour must not keep a process.
pub(super) struct Input {
    fd: BorrowedFd<'static>,
    end: End,
    until: Instant,
}

impl Input {
    /// The time starts now.
    pub fn new(fd: BorrowedFd<'static>, end: End) -> Self {
        Self { fd, end, until: Instant::now() + BODY_TIME }
    }

    /// How much of what is wanted there can be.
    fn most(&self, wanted: usize) -> io::Result<usize> {
        match self.end {
            End::After(left) => Ok(wanted.min(usize::try_from(left).unwrap_or(usize::MAX))),
            End::OfInput => Ok(wanted),
            End::Unseen => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// So many have come; none where the input ends.
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        if let End::After(left) = &mut self.end {
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *left -= bytes;
        }
        Ok(())
    }
}

impl Wake for Input {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (!matches!(self.end, End::After(0) | End::Unseen)).then_some((self.fd, PollFlags::IN))
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.descriptor().is_none() { Poll::Pending } else { Ready::to_read(self.fd).poll_wake(cx) }
    }
}

impl Incoming for Input {
    fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some((fd, wanted)) = self.descriptor() {
            let mut input = [PollFd::from_borrowed_fd(fd, wanted)];
            poll_until(&mut input, self.until);
            if input[0].revents().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Poll::Ready(self.read_now(buffer))
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.most(buffer.len())?;
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
        let most = self.most(most)?;
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
