//! Moving bytes past the memory of this process.

use rustix::event::PollFlags;
use rustix::fd::BorrowedFd;
use std::io;

/// Moves bytes between two files of which one is a pipe, as far as that goes without waiting; `None` where it does not go.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
    use rustix::pipe::SpliceFlags;
    // Linux waits for the bytes of a socket whatever the flags say, and keeps the pipe locked meanwhile, so that not even
    // what is in it can be read.
    if crate::look(from, PollFlags::IN).is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    loop {
        match rustix::pipe::splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(moved) => return Ok(Some(moved as u64)),
            Err(rustix::io::Errno::INTR) => {}
            // A kind of file that cannot be spliced.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
