//! The way to the client through a web server, which shares our standard output and frames what comes out of it.

use super::splice::splice;
use crate::config::Settings;
use crate::gateway::application::Application;
use crate::gateway::client::{Client, Outgoing, Switching, Woken};
use crate::gateway::stop::stop_signal;
use crate::wake::{Wake, poll_fds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::io::ErrorKind;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A writable pipe takes this much without blocking. A web server shares our end of it, so it cannot be made non-blocking, and
/// a stream that blocks in a write would not notice anything else.
const PIPE_BUF: usize = 4096;

/// How often a process that lives long looks whether there is work that nobody waits for.
const ROUND: Duration = Duration::from_secs(2);

/// What is done while the client is waited for.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub application: &'static dyn Application,
    pub settings: &'static Settings,
}

/// Our standard output.
pub(super) struct Output {
    fd: BorrowedFd<'static>,
    is_broken: bool,
    work: Option<(Work, Instant)>,
    /// Whether somebody was told that this process has to stop.
    has_told_stop: bool,
    /// Whether [`Outgoing::splice`] does not block, once somebody has asked.
    can_splice: Option<bool>,
    /// The head of the answer that hands the connection over, without the blank line that ends it.
    head: Vec<u8>,
}

impl Output {
    /// `is_broken` says that not even the head could be written.
    pub fn new(fd: BorrowedFd<'static>, is_broken: bool, work: Option<Work>) -> Self {
        let work = work.map(|work| (work, Instant::now() + ROUND));
        Self { fd, is_broken, work, has_told_stop: false, can_splice: None, head: Vec::new() }
    }

    /// After this head, which it completes.
    pub fn switching(fd: BorrowedFd<'static>, head: Vec<u8>, work: Option<Work>) -> Self {
        Self { head, ..Self::new(fd, false, work) }
    }
}

/// A `poll` that a signal does not end early: whoever waits would take that for the end of the time.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], until: Instant) {
    loop {
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
        if poll(fds, Some(&left)) != Err(rustix::io::Errno::INTR) {
            return;
        }
    }
}

impl Client for Output {
    fn poll_wait(
        &mut self,
        _: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken> {
        if self.is_broken {
            return Poll::Ready(Woken::HungUp);
        }
        if let Some((Work { application, settings }, next)) = &mut self.work
            && Instant::now() >= *next
        {
            *next = Instant::now() + ROUND;
            if application.has_work(settings) {
                application.work(settings);
            }
        }
        // HUP and ERR are reported without being asked for: HUP by a pipe's or UNIX socket's other end that is closed, ERR by
        // a pipe that nobody reads any more. A web server may close its half of a socket at once, and mean nothing by it.
        let wanted = if to_write { PollFlags::OUT } else { PollFlags::empty() };
        let stop = stop_signal().filter(|_| !self.has_told_stop);
        let wanted_of_stop = if stop.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = Vec::with_capacity(2 + wakes.len());
        fds.push(PollFd::from_borrowed_fd(self.fd, wanted));
        fds.push(PollFd::from_borrowed_fd(stop.unwrap_or(self.fd), wanted_of_stop));
        fds.extend(poll_fds(wakes));
        poll_until(&mut fds, until);
        let (client, stop) = (fds[0].revents(), fds[1].revents());
        Poll::Ready(if stop.contains(PollFlags::IN) {
            self.has_told_stop = true;
            Woken::Stopped
        } else if client.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            Woken::HungUp
        } else if fds[2..].iter().any(|other| !other.revents().is_empty()) {
            Woken::Knock
        } else if client.contains(PollFlags::OUT) {
            Woken::Writable
        } else {
            Woken::Tick
        })
    }
}

impl Outgoing for Output {
    fn is_own(&self) -> bool {
        false
    }

    fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn is_writable(&self) -> bool {
        !self.is_broken && crate::look(self.fd, PollFlags::OUT) == PollFlags::OUT
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match rustix::io::write(self.fd, &bytes[..bytes.len().min(PIPE_BUF)]) {
            Ok(written) => written,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => 0,
            Err(_) => {
                self.is_broken = true;
                0
            }
        }
    }

    fn cut(&mut self) {
        self.is_broken = true;
    }

    fn splice(&mut self, pipe: BorrowedFd<'_>) -> Option<u64> {
        use rustix::fs::{FileType, fstat};
        const MOST: usize = 1 << 20;
        let fd = self.fd;
        // Linux waits for room in a socket whatever the flags of `splice` say, and keeps the pipe locked meanwhile. A web
        // server's, which it shares with us, cannot be made non-blocking.
        let is_fifo = || fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if !*self.can_splice.get_or_insert_with(is_fifo) {
            return None;
        }
        splice(pipe, fd, MOST).unwrap_or_else(|error| {
            self.is_broken |= error.kind() != ErrorKind::WouldBlock;
            Some(0)
        })
    }
}

impl Switching for Output {
    fn switch(&mut self, protocol: Option<&str>) -> Vec<u8> {
        let mut head = std::mem::take(&mut self.head);
        if let Some(protocol) = protocol {
            head.extend_from_slice(format!("Sec-WebSocket-Protocol: {protocol}\r\n").as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}
