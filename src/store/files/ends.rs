//! The two ends of a pipe: bytes from one process to another, as they come, through a FIFO.
//!
//! A *receiver* comes and waits; a *sender* takes it. From then on the two have each other, through file descriptors alone:
//! nothing on the disk belongs to the transfer, so there is nothing to clean up when one of them is killed.
//!
//! - A receiver has a FIFO open that it sleeps on, and others knock at. A FIFO that nobody has open is a leftover of a killed
//!   process; whoever comes upon it removes it. So the FIFO is presence and wake-up in one. It reaches no other machine, but
//!   neither does the FIFO that carries the bytes.
//! - To take a receiver is to remove the name of its receipt, which the kernel lets only one sender do, and to open its FIFO
//!   for the bytes.
//! - The end of the bytes is that the sender closes that FIFO. A sender that is killed ends them too.
//! - The end of the receiver is that nobody has its own FIFO open any more, which the sender, who has it open for
//!   writing, is told by the kernel. What its client took stands in a *receipt*: a file, so that the count survives
//!   a kill. There the sender notes as well that its bytes are complete.
//!
//! Where the two meet is the business of others: `meeting` for pipes, `requests` for PTTH.

use super::wake::{Fifo, is_heard, make_fifo, open_to_knock};
use super::{Error, identity_at, if_there, remove_file};
use crate::store::pipes::LONGEST_HEAD;
use crate::wake::Ready;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How many bytes may be under way, where [there are many](Sender::widen). More than the usual 64 KiB makes for fewer
/// switches between the two processes; the kernel keeps only what is really there.
const CAPACITY: usize = 512 * 1024;

/// How long a receiver may take to read a head.
const HEAD_TIME: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The head's length stands before it, in so many bytes.
const LENGTH_SIZE: usize = 4;

/// Where the files of a receiver are. Whoever makes or takes one holds a lock, unless the names are never used again.
#[derive(Clone, Debug)]
pub(super) struct ReceiverPaths {
    /// What it sleeps on.
    pub receiver: PathBuf,
    /// What the bytes come through.
    pub data: PathBuf,
    /// What is known of them.
    pub receipt: PathBuf,
}

impl ReceiverPaths {
    /// Whether there is a receiver. It is not woken.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn are_received(&self) -> Result<bool, Error> {
        is_heard(&self.receiver)
    }

    /// Removes the files. As long as the first is there nobody else makes any of these names, so it goes last.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for name in [&self.data, &self.receipt, &self.receiver] {
            remove_file(name)?;
        }
        Ok(())
    }
}

/// What the two ends tell each other of the bytes: whether the sender has ended, and how many the receiver's client has
/// taken. It takes no more room once it is made.
struct Receipt(File);

impl Receipt {
    const ENDED: [u8; 1] = [1];
    const COUNT_AT: u64 = Self::ENDED.len() as u64;
    /// What the count says before there is one.
    const NOT_BEGUN: u64 = u64::MAX;

    /// Made by the receiver, now, while a full disk can still be told. `rest` stands after it.
    fn make(path: &Path, rest: &[u8]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all_at(&[&[0], &Self::NOT_BEGUN.to_be_bytes()[..], rest].concat(), 0)?;
        Ok(Self(file))
    }

    /// `None` where the sender has it already.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        if_there(OpenOptions::new().read(true).write(true).open(path).map(Self))
    }

    fn count(&self, taken: u64) -> io::Result<()> {
        self.0.write_all_at(&taken.to_be_bytes(), Self::COUNT_AT)
    }

    fn taken(&self) -> io::Result<Option<u64>> {
        let mut count = [0; 8];
        self.0.read_exact_at(&mut count, Self::COUNT_AT)?;
        Ok(Some(u64::from_be_bytes(count)).filter(|count| *count != Self::NOT_BEGUN))
    }

    fn end(&self) {
        // Where it cannot be written, the receiver takes the bytes for cut short.
        let _ = self.0.write_all_at(&Self::ENDED, 0);
    }

    fn has_ended(&self) -> bool {
        let mut mark = [0];
        self.0.read_exact_at(&mut mark, 0).is_ok() && mark == Self::ENDED
    }
}

/// How long a receipt is.
pub(super) const RECEIPT_SIZE: usize = Receipt::ENDED.len() + size_of::<u64>();

/// What stands [after](Receiver::make) the receipt in a file.
pub(super) fn after_receipt(file: &[u8]) -> Option<&[u8]> {
    file.get(RECEIPT_SIZE..)
}

/// What a receiver needs for a sender, with `rest` [after](Receiver::make) the receipt.
fn make_data(paths: &ReceiverPaths, rest: &[u8]) -> Result<(File, Receipt), Error> {
    make_fifo(&paths.data)?;
    let data = rustix::fs::open(&paths.data, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // Last: where there is one, there is all that belongs to it.
    Ok((data.into(), Receipt::make(&paths.receipt, rest)?))
}

/// What has come from a sender.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Nothing yet.
    Nothing,
    /// Its head.
    Head(Vec<u8>),
    /// The sender has gone without one.
    SenderLeft,
}

/// The receiver's end, once the bytes flow.
pub struct Receiver {
    paths: ReceiverPaths,
    /// What it sleeps on.
    fifo: Fifo,
    has_left: bool,
    data: File,
    receipt: Receipt,
    count: u64,
    /// Of a head, what has come so far.
    head: Vec<u8>,
}

impl Receiver {
    /// Becomes the receiver at these names, which no other has. `rest` stands after the receipt.
    pub(super) fn make(paths: ReceiverPaths, rest: &[u8]) -> Result<Self, Error> {
        let made = Fifo::make(&paths.receiver).and_then(|fifo| Ok((fifo, make_data(&paths, rest)?)));
        match made {
            Ok((fifo, (data, receipt))) => {
                Ok(Self { paths, fifo, has_left: false, data, receipt, count: 0, head: Vec::new() })
            }
            Err(error) => {
                paths.remove()?;
                Err(error)
            }
        }
    }

    /// What becomes readable when the pipe is removed; `None` once the pipe is [left](Receiver::leave).
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_left).then(|| self.fifo.fd())
    }

    /// To be called when [`Receiver::wake`] was readable: whether the pipe has been removed.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_removed(&self) -> Result<bool, Error> {
        Ok(!self.has_left && self.hears() && self.fifo.is_lost(&self.paths.receiver)?)
    }

    /// Whether somebody has knocked since the last time.
    pub(super) fn hears(&self) -> bool {
        rustix::io::read(self.fifo.fd(), &mut [0; 64]).is_ok()
    }

    /// What becomes readable when a head comes, its sender leaves, or somebody knocks.
    pub(super) fn awaited(&self) -> [Ready<'_>; 2] {
        [self.data.as_fd(), self.fifo.fd()].map(Ready::to_read)
    }

    /// Makes it ready for another sender, after one has left without a word.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub(super) fn renew(&mut self) -> Result<(), Error> {
        (self.data, self.receipt) = make_data(&self.paths, b"")?;
        self.head.clear();
        Ok(())
    }

    /// Whether a sender has taken it.
    pub(super) fn is_taken(&self) -> bool {
        matches!(identity_at(&self.paths.receipt), Ok(None))
    }

    /// Where the bytes come from: readable when there are some, and at their end.
    #[must_use]
    pub fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Looks for the head.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(super) fn head(&mut self) -> Result<Incoming, Error> {
        loop {
            let wanted = match self.head.first_chunk::<LENGTH_SIZE>() {
                None => LENGTH_SIZE - self.head.len(),
                Some(length) => {
                    let length = u32::from_be_bytes(*length) as usize;
                    if length > LONGEST_HEAD {
                        return Err(Error::Io(io::ErrorKind::InvalidData.into()));
                    }
                    LENGTH_SIZE + length - self.head.len()
                }
            };
            if wanted == 0 {
                return Ok(Incoming::Head(self.head.split_off(LENGTH_SIZE)));
            }
            let mut bytes = vec![0; wanted];
            match rustix::io::read(&self.data, &mut bytes) {
                // Nobody has it open for writing: nobody yet, or nobody any more, which only `poll` tells apart.
                Ok(0) => return Ok(if has_hung_up(&self.data) { Incoming::SenderLeft } else { Incoming::Nothing }),
                Ok(got) => self.head.extend_from_slice(&bytes[..got]),
                Err(Errno::AGAIN) => return Ok(Incoming::Nothing),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the bytes that follow, if `length` of them are there already, and notes that its client has them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn take_at_once(&mut self, length: u64) -> Result<Option<Vec<u8>>, Error> {
        if rustix::io::ioctl_fionread(&self.data)? < length {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.data.read_exact(&mut bytes)?;
        if let Err(error) = self.took(length) {
            // The client has them all the same; only its sender is told otherwise.
            error.log();
        }
        Ok(Some(bytes))
    }

    /// Notes that its client has taken so many bytes more.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn took(&mut self, bytes: u64) -> Result<(), Error> {
        self.count += bytes;
        Ok(self.receipt.count(self.count)?)
    }

    /// After the last byte: whether the sender has said that it was the last, and was not killed, say.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.receipt.has_ended()
    }

    /// Leaves the pipe to another receiver, for what the next sender brings.
    pub fn leave(&mut self) {
        let is_there = !std::mem::replace(&mut self.has_left, true);
        // What may be another's is left to whoever comes upon it.
        if is_there && matches!(self.fifo.is_lost(&self.paths.receiver), Ok(false)) {
            let _ = self.paths.remove();
        }
    }

    /// From now on there is nothing to remove: its sender has done that.
    pub(super) fn forget_names(&mut self) {
        self.has_left = true;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.leave();
    }
}

fn has_hung_up(fifo: &File) -> bool {
    // One that has come and gone since the last read has left its bytes.
    crate::look(fifo.as_fd(), PollFlags::IN) == PollFlags::HUP
}

/// The sender's end, with a receiver of its own.
pub struct Sender {
    /// `None` after the end.
    data: Option<OwnedFd>,
    receiver: OwnedFd,
    receipt: Receipt,
}

impl Sender {
    /// Takes the receiver at these names; `None` where none waits. The receipt's name is removed, the others are left.
    ///
    /// # Errors
    /// When its files cannot be opened or the name not removed.
    pub(super) fn take(paths: &ReceiverPaths) -> Result<Option<Self>, Error> {
        let Some(receiver) = open_to_knock(&paths.receiver)? else { return Ok(None) };
        let Some(receipt) = Receipt::open(&paths.receipt)? else { return Ok(None) };
        // Whoever removes it is the one that takes the receiver. Only then is the other FIFO opened: a receiver takes one
        // that is closed again for a sender that has left.
        if if_there(std::fs::remove_file(&paths.receipt))?.is_none() {
            return Ok(None);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let data = match rustix::fs::open(&paths.data, flags, Mode::empty()) {
            Ok(data) => data,
            // The receiver has just gone.
            Err(Errno::NOENT | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Self { data: Some(data), receiver, receipt }))
    }

    /// Where the bytes go: writable when there is room; `None` after the end.
    #[must_use]
    pub fn data(&self) -> Option<BorrowedFd<'_>> {
        self.data.as_ref().map(AsFd::as_fd)
    }

    /// What reports an error (`POLLERR`) when the receiver has gone.
    #[must_use]
    pub fn receiver(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    /// To be called where many bytes are coming. A user may have only so much of it; the usual size does as well.
    pub fn widen(&self) {
        if let Some(data) = &self.data {
            let _ = rustix::pipe::fcntl_setpipe_size(data, CAPACITY);
        }
    }

    /// Whether a new FIFO has room for a head with its first bytes, of so many bytes together.
    #[must_use]
    pub fn takes_at_once(&self, size: usize) -> bool {
        // However few pages its user may have, there is one.
        const PAGE: usize = 4096;
        size <= PAGE - LENGTH_SIZE
    }

    /// Sends what precedes the bytes, and the first of them. False when the receiver has gone, or does not take it.
    ///
    /// # Panics
    /// When it is longer than [`LONGEST_HEAD`].
    #[must_use]
    pub fn send_head(&self, head: &[u8], first: &[u8]) -> bool {
        assert!(head.len() <= LONGEST_HEAD, "a head that is too long");
        let Some(data) = &self.data else { return false };
        let length = u32::try_from(head.len()).unwrap_or_default();
        let bytes = [&length.to_be_bytes(), head, first].concat();
        let mut left = &bytes[..];
        while !left.is_empty() {
            match rustix::io::write(data, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::INTR) => {}
                // A FIFO is as small as 8 KiB for a user who has many of them. The receiver reads its head at once.
                Err(Errno::AGAIN) => {
                    if poll(&mut [PollFd::new(data, PollFlags::OUT)], Some(&HEAD_TIME)) != Ok(1) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Ends the bytes.
    pub fn end(&mut self) {
        self.receipt.end();
        self.data = None;
    }

    /// How many bytes the receiver's client has taken so far; all of them once the receiver has gone. `None` where it has
    /// not begun.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn taken(&self) -> Result<Option<u64>, Error> {
        Ok(self.receipt.taken()?)
    }
}
