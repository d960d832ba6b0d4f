//! How a stream, or whoever else waits, is woken: by a byte in a FIFO of its own.

use super::{Error, FileIdentity, identity_at, remove_file};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// What is written into a FIFO: that there is something new, or that the sleeper's place is taken.
const NEWS: u8 = b'!';
const CHALLENGE: u8 = b'>';

/// Wakes whoever sleeps on a FIFO, [opened](open_to_knock) for it. One that is full is a knock that has not been answered
/// yet, and whoever has gone needs none.
pub(super) fn knock(way: &OwnedFd) {
    let _ = rustix::io::write(way, &[NEWS]);
}

/// Writes a whole message into a FIFO, if somebody has it open and there is room. Whether somebody has.
pub(super) fn call(fifo: &Path, message: &[u8]) -> bool {
    let Ok(Some(fifo)) = open_to_knock(fifo) else { return false };
    // All of it or nothing, because it is shorter than `PIPE_BUF`.
    let _ = rustix::io::write(&fifo, message);
    true
}

/// The way to whoever has a FIFO open, which reports an error (`POLLERR`) once nobody has any more. `None`, that nobody has, is what the kernel says with `ENXIO`, or that there is no
/// such FIFO. Any other error (no descriptor left, no right) says nothing about anybody.
pub(super) fn open_to_knock(fifo: &Path) -> Result<Option<OwnedFd>, Error> {
    match rustix::fs::open(fifo, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NXIO | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A FIFO that its owner sleeps on.
pub(super) struct Fifo {
    fd: OwnedFd,
    identity: FileIdentity,
}

impl Fifo {
    /// Makes one at `path`, in place of what a killed process may have left there. In between nobody has it open: so
    /// this is for where nobody looks for it meanwhile.
    pub(super) fn make(path: &Path) -> Result<Self, Error> {
        make_fifo(path)?;
        Ok(Self::open(path)?)
    }

    fn open(path: &Path) -> rustix::io::Result<Self> {
        // Opened for writing too, so that it never reads as ended when a sender closes it.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, identity: FileIdentity(stat.st_dev, stat.st_ino) })
    }

    /// What becomes readable when somebody knocks.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the knocks, and says whether one of them was a challenger's.
    pub(super) fn hear(&self) -> bool {
        let mut knocks = [0; 512];
        let count = rustix::io::read(&self.fd, &mut knocks).unwrap_or(0);
        knocks[..count].contains(&CHALLENGE)
    }

    /// Whether `place` does not name it any more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn is_lost(&self, place: &Path) -> Result<bool, Error> {
        Ok(identity_at(place)? != Some(self.identity))
    }
}

/// Makes a FIFO, in place of what may be there.
pub(super) fn make_fifo(path: &Path) -> Result<(), Error> {
    match new_fifo(path) {
        Err(Errno::EXIST) => {
            remove_file(path)?;
            Ok(new_fifo(path)?)
        }
        other => Ok(other?),
    }
}

fn new_fifo(path: &Path) -> rustix::io::Result<()> {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
}

/// A FIFO that a stream sleeps on.
pub(super) struct NodeFifo {
    pub fifo: Fifo,
    /// Whether every knock is sure to be heard: not where another machine may knock, because a FIFO wakes only its own.
    pub is_sure: bool,
}

/// `f_type` (statfs(2)) of the file systems that several machines may share: NFS, SMB (three kinds), AFS, Coda, 9P, Ceph,
/// Lustre, GFS2, OCFS2, GPFS, `BeeGFS`, and FUSE, which may be anything.
const SHARED_FILE_SYSTEMS: [u64; 14] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x5346_414F,
    0x7375_7245,
    0x0102_1997,
    0x00C3_6400,
    0x0BD0_0BD0,
    0x0116_1970,
    0x7461_636F,
    0x4750_4653,
    0x1983_0326,
    0x6573_5546,
];

impl NodeFifo {
    /// Makes a FIFO `beside` its place, in the same folder, and renames it into it once it is open, so that nobody finds
    /// one there that is not. `None` on a file system without FIFOs, or while there are no descriptors or no room left:
    /// messages are then found at the next tick.
    pub fn make(place: &Path, beside: &Path) -> Option<Self> {
        let made = Fifo::make(beside).ok().filter(|_| std::fs::rename(beside, place).is_ok());
        let Some(fifo) = made else {
            // It may have been made, and not opened.
            let _ = remove_file(beside);
            return None;
        };
        // Asked of the folder: the FIFO itself would do, but not on every kernel.
        let kind = rustix::fs::statfs(place.parent()?).ok().map(|fs| fs.f_type.cast_unsigned() & 0xFFFF_FFFF);
        let is_sure = kind.is_some_and(|kind| !SHARED_FILE_SYSTEMS.contains(&kind));
        Some(Self { fifo, is_sure })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;

    #[test]
    fn only_what_the_kernel_says_of_it_means_that_nobody_is_there() {
        let dir = TestDir::new();
        let path = dir.join("fifo");
        let is_heard = |path: &Path| open_to_knock(path).map(|way| way.is_some());
        assert!(!is_heard(&path).unwrap(), "there is none");
        let fifo = Fifo::make(&path).unwrap();
        assert!(is_heard(&path).unwrap());
        drop(fifo);
        assert!(!is_heard(&path).unwrap(), "nobody has it open");
        // A link to itself cannot be followed: who has it open is not known.
        let unseen = dir.join("unseen");
        std::os::unix::fs::symlink(&unseen, &unseen).unwrap();
        assert!(is_heard(&unseen).is_err());
    }
}
