//! Waiting: for the client, for others, and for the end.

use super::stop::stop_signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::time::{Duration, Instant};

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

/// A `poll` that a signal does not end early: whoever waits would take that for the end of the time.
pub(super) fn poll_for(fds: &mut [PollFd<'_>], limit: Duration) {
    let until = Instant::now() + limit;
    let mut left = limit;
    while poll(fds, Some(&Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 })))
        == Err(rustix::io::Errno::INTR)
    {
        left = until.saturating_duration_since(Instant::now());
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

/// The client that waits for an answer.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) is_own: bool,
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
