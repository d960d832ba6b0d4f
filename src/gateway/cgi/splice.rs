//! Moving bytes past the memory of this process.

use rustix::event::PollFlags;
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::SpliceFlags;
use std::io;

/// Moves bytes between two files of which one is a pipe, as far as that goes without waiting; `None` where it does not go.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
    // Linux waits for the bytes of a socket whatever the flags say, and keeps the pipe locked meanwhile, so that not even
    // what is in it can be read.
    if crate::look(from, PollFlags::IN).is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match retry_on_intr(|| rustix::pipe::splice(from, None, to, None, most, flags)) {
        Ok(moved) => Ok(Some(moved as u64)),
        // A kind of file that cannot be spliced.
        Err(Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
