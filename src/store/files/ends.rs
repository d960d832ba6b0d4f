//! The two ends of a pipe: bytes from one request to another, as they come, through a FIFO, or within one process without.
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
//! In a process that is [one node](super::node) a receiver makes no FIFOs. It leaves a [mark](super::sleeper), and a sender
//! of the same process takes it by the [link](super::link) that the two have then. One of another process has the receiver
//! called, which makes its FIFOs then, and is [taken](Taking::NotYet) by them.
//!
//! Where the two meet is the business of others: `meeting` for pipes, `requests` for PTTH.

pub(super) use super::link::Incoming;
use super::link::Linked;
use super::near::Near;
use super::receipt::{Receipt, ReceiverPaths};
use super::sleeper::Knocker;
use super::wake::{Fifo, make_fifo};
use super::{Error, Files, identity_at, if_there, remove_file};
use crate::store::pipes::LONGEST_HEAD;
use crate::wake::Ready;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How many bytes may be under way, where [there are many](Sender::widen). More than the usual 64 KiB makes for fewer
/// switches between the two processes; the kernel keeps only what is really there.
const CAPACITY: usize = 512 * 1024;

/// How long a receiver may take to read a head, or to make its FIFOs.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(5);

/// The head's length stands before it, in so many bytes.
const LENGTH_SIZE: usize = 4;

/// What the bytes of another process come through.
fn make_data(path: &Path) -> Result<File, Error> {
    make_fifo(path)?;
    let data = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    Ok(data.into())
}

/// How the bytes come.
enum Inlet {
    /// From any process.
    Fifos {
        /// What the receiver sleeps on.
        own: Fifo,
        data: File,
        count: u64,
    },
    /// From this process alone.
    Near(Near),
}

impl Inlet {
    fn is_lost(&self, place: &Path) -> Result<bool, Error> {
        match self {
            Self::Fifos { own, .. } => own.is_lost(place),
            Self::Near(near) => near.is_lost(place),
        }
    }
}

/// Why a receiver was called by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// It was not.
    Not,
    /// Its name is still there: a sender of another process may have come.
    ByOthers,
    /// Its name has been removed.
    Away,
}

/// The receiver's end, once the bytes flow.
pub struct Receiver {
    paths: ReceiverPaths,
    inlet: Inlet,
    receipt: Receipt,
    has_left: bool,
    /// Of a head, what has come so far.
    head: Vec<u8>,
}

impl Receiver {
    /// Becomes the receiver at these names, which no other has. `rest` stands after the receipt. Where `others` wait, it
    /// is for senders of any process at once.
    pub(super) fn make(files: &Files, paths: ReceiverPaths, rest: &[u8], others: bool) -> Result<Self, Error> {
        let make = || {
            let inlet = if let Some(near) = files.come_near().filter(|_| !others) {
                near.mark_at(&paths.receiver)?;
                Inlet::Near(near)
            } else {
                let own = Fifo::make(&paths.receiver)?;
                Inlet::Fifos { own, data: make_data(&paths.data)?, count: 0 }
            };
            // Last: where there is one, there is all that belongs to it.
            Ok((inlet, Receipt::make(&paths.receipt, rest)?))
        };
        match make() {
            Ok((inlet, receipt)) => Ok(Self { paths, inlet, receipt, has_left: false, head: Vec::new() }),
            Err(error) => {
                paths.remove()?;
                Err(error)
            }
        }
    }

    /// Makes its FIFOs, for senders of other processes, unless it has them, or a sender.
    ///
    /// # Errors
    /// When they cannot be made: nobody can take it then.
    pub(super) fn admit_others(&mut self) -> Result<(), Error> {
        let Inlet::Near(near) = &self.inlet else { return Ok(()) };
        if !near.link.move_elsewhere() {
            return Ok(());
        }
        let data = make_data(&self.paths.data)?;
        // Beside its place, where it is opened first: nobody may find a receiver that nobody is. Who takes it for a leftover
        // meanwhile removes only that.
        let beside = self.paths.data.with_extension("new");
        let mut tries = 0..3;
        let own = loop {
            match Fifo::make(&beside).and_then(|own| Ok((own, std::fs::rename(&beside, &self.paths.receiver)?))) {
                Ok((own, ())) => break own,
                Err(error) if tries.next().is_none() => {
                    remove_file(&beside)?;
                    return Err(error);
                }
                Err(_) => {}
            }
        };
        self.inlet = Inlet::Fifos { own, data, count: 0 };
        Ok(())
    }

    /// What to wait for: a head or bytes, the sender's end, and to be called. A wait for the last alone is the second.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        match &self.inlet {
            Inlet::Fifos { own, data, .. } => {
                let own = Some(own).filter(|_| !self.has_left);
                [Some(Ready::to_read(data.as_fd())), own.map(|own| Ready::to_read(own.fd()))]
            }
            Inlet::Near(near) => [None, Some(near.link.awaited())],
        }
    }

    /// To be called when [what is awaited](Self::awaited) has come: whether the pipe has been removed.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_removed(&self) -> Result<bool, Error> {
        Ok(self.called()? == Called::Away)
    }

    /// Whether its name is not there any more, though it has not [left](Self::leave).
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_lost_place(&self) -> Result<bool, Error> {
        Ok(!self.has_left && self.inlet.is_lost(&self.paths.receiver)?)
    }

    /// Whether somebody has called it since the last time, and why.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn called(&self) -> Result<Called, Error> {
        let is_called = match &self.inlet {
            Inlet::Fifos { own, .. } => !self.has_left && rustix::io::read(own.fd(), &mut [0; 64]).is_ok(),
            Inlet::Near(near) => near.link.hears_call() && !self.has_left,
        };
        Ok(match is_called {
            false => Called::Not,
            true if self.inlet.is_lost(&self.paths.receiver)? => Called::Away,
            true => Called::ByOthers,
        })
    }

    /// Makes it ready for another sender, after one has left without a word.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub(super) fn renew(&mut self) -> Result<(), Error> {
        match &mut self.inlet {
            Inlet::Fifos { data, .. } => *data = make_data(&self.paths.data)?,
            Inlet::Near(near) => near.link.renew(),
        }
        self.receipt = Receipt::make(&self.paths.receipt, b"")?;
        self.head.clear();
        Ok(())
    }

    /// Whether a sender has taken it.
    pub(super) fn is_taken(&self) -> bool {
        matches!(identity_at(&self.paths.receipt), Ok(None))
    }

    /// The FIFO from which the kernel can move the bytes, where they come through one.
    #[must_use]
    pub fn fifo(&self) -> Option<BorrowedFd<'_>> {
        match &self.inlet {
            Inlet::Fifos { data, .. } => Some(data.as_fd()),
            Inlet::Near(_) => None,
        }
    }

    /// How many bytes are there.
    #[must_use]
    pub fn there(&self) -> u64 {
        match &self.inlet {
            Inlet::Fifos { data, .. } => rustix::io::ioctl_fionread(data).unwrap_or(0),
            Inlet::Near(near) => near.link.there() as u64,
        }
    }

    /// Gives some of the bytes that are there to `take`, where that can leave some of them: how many it has taken. `None`
    /// where they have to be [read](Self::read).
    pub fn give(&self, take: impl FnOnce(&[u8]) -> usize) -> Option<usize> {
        match &self.inlet {
            Inlet::Fifos { .. } => None,
            Inlet::Near(near) => Some(near.link.give(take)),
        }
    }

    /// Reads some of the bytes that are there; how many.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        match &self.inlet {
            Inlet::Fifos { data, .. } => rustix::io::read(data, buffer).unwrap_or(0),
            Inlet::Near(near) => near.link.give(|bytes| {
                let size = bytes.len().min(buffer.len());
                buffer[..size].copy_from_slice(&bytes[..size]);
                size
            }),
        }
    }

    /// Whether the sender has gone, and no bytes are left.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match &self.inlet {
            Inlet::Fifos { data, .. } => self.there() == 0 && has_hung_up(data),
            // In this order: it sends nothing once it has gone.
            Inlet::Near(near) => near.link.has_ended() && self.there() == 0,
        }
    }

    /// Looks for the head.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(super) fn head(&mut self) -> Result<Incoming, Error> {
        let data = match &self.inlet {
            Inlet::Fifos { data, .. } => data,
            Inlet::Near(near) => return Ok(near.link.look()),
        };
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
            match rustix::io::read(data, &mut bytes) {
                // Nobody has it open for writing: nobody yet, or nobody any more, which only `poll` tells apart.
                Ok(0) => return Ok(if has_hung_up(data) { Incoming::SenderLeft } else { Incoming::Nothing }),
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
        if self.there() < length {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let mut got = 0;
        while got < bytes.len() {
            match self.read(&mut bytes[got..]) {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                some => got += some,
            }
        }
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
        match &mut self.inlet {
            Inlet::Fifos { count, .. } => {
                *count += bytes;
                self.receipt.count(*count)?;
            }
            Inlet::Near(near) => near.link.took(bytes),
        }
        Ok(())
    }

    /// After the last byte: whether the sender has said that it was the last, and was not killed, say.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.inlet {
            Inlet::Fifos { .. } => self.receipt.has_ended(),
            Inlet::Near(near) => near.link.is_complete(),
        }
    }

    /// Leaves the pipe to another receiver, for what the next sender brings.
    pub fn leave(&mut self) {
        let is_there = !std::mem::replace(&mut self.has_left, true);
        // What may be another's is left to whoever comes upon it.
        if is_there && matches!(self.inlet.is_lost(&self.paths.receiver), Ok(false)) {
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
    outlet: Outlet,
    /// Before the end.
    is_open: bool,
}

/// How the bytes go.
enum Outlet {
    Fifos {
        /// `None` after the end.
        data: Option<OwnedFd>,
        receiver: OwnedFd,
        receipt: Receipt,
    },
    Near(Linked),
}

/// What comes of taking a receiver.
pub(super) enum Taking {
    /// It is this sender's alone.
    Taken(Sender),
    /// None waits.
    Nobody,
    /// The one that waits is in another process, and has been called: it makes its FIFOs in a moment.
    NotYet,
}

impl Sender {
    /// Takes the receiver at these names. The receipt's name is removed, the others are left.
    ///
    /// # Errors
    /// When its files cannot be opened or the name not removed.
    pub(super) fn take(files: &Files, paths: &ReceiverPaths) -> Result<Taking, Error> {
        // Whoever removes it is the one that takes the receiver.
        let is_first = || Ok::<_, Error>(if_there(std::fs::remove_file(&paths.receipt))?.is_some());
        let receiver = match files.find_sleeper(&paths.receiver)? {
            None => return Ok(Taking::Nobody),
            Some(Knocker::Near(link)) => {
                return Ok(match link.take(is_first)? {
                    None => Taking::NotYet,
                    Some(false) => Taking::Nobody,
                    Some(true) => Taking::Taken(Self { outlet: Outlet::Near(link), is_open: true }),
                });
            }
            Some(Knocker::Fifo(receiver)) => receiver,
            Some(knocker) => {
                if identity_at(&paths.receipt)?.is_none() {
                    return Ok(Taking::Nobody);
                }
                files.knock_at(&knocker);
                return Ok(Taking::NotYet);
            }
        };
        let Some(receipt) = Receipt::open(&paths.receipt)? else { return Ok(Taking::Nobody) };
        // Only then is the other FIFO opened: a receiver takes one that is closed again for a sender that has left.
        if !is_first()? {
            return Ok(Taking::Nobody);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let data = match rustix::fs::open(&paths.data, flags, Mode::empty()) {
            Ok(data) => Some(data),
            // The receiver has just gone.
            Err(Errno::NOENT | Errno::NXIO) => return Ok(Taking::Nobody),
            Err(error) => return Err(error.into()),
        };
        Ok(Taking::Taken(Self { outlet: Outlet::Fifos { data, receiver, receipt }, is_open: true }))
    }

    /// Whether its bytes have not [ended](Self::end).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The FIFO into which the kernel can move the bytes, where they go through one.
    #[must_use]
    pub fn fifo(&self) -> Option<BorrowedFd<'_>> {
        match &self.outlet {
            Outlet::Fifos { data, .. } => data.as_ref().map(AsFd::as_fd),
            Outlet::Near(_) => None,
        }
    }

    /// Sends some of these bytes; how many.
    ///
    /// # Errors
    /// `WouldBlock` while there is no room, and `BrokenPipe` when the receiver has gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.outlet {
            Outlet::Fifos { data: Some(data), .. } => Ok(rustix::io::write(data, bytes)?),
            Outlet::Fifos { data: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
            Outlet::Near(link) => match link.send(bytes) {
                Some(0) => Err(io::ErrorKind::WouldBlock.into()),
                Some(sent) => Ok(sent),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
        }
    }

    /// What to wait for: room, and that the receiver has gone. A wait for the last alone is the second.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        match &self.outlet {
            Outlet::Fifos { data, receiver, .. } => {
                [data.as_ref().map(|data| Ready::to_write(data.as_fd())), Some(Ready::unread(receiver.as_fd()))]
            }
            Outlet::Near(link) => [None, Some(link.awaited_by_sender())],
        }
    }

    /// Takes note of what [was awaited](Self::awaited), and says whether the receiver is there.
    #[must_use]
    pub fn is_received(&self) -> bool {
        match &self.outlet {
            Outlet::Fifos { receiver, .. } => crate::look(receiver.as_fd(), PollFlags::empty()).is_empty(),
            Outlet::Near(link) => {
                link.hear_receiver();
                link.is_received()
            }
        }
    }

    /// To be called where many bytes are coming. A user may have only so much of it; the usual size does as well.
    pub fn widen(&self) {
        if let Some(data) = self.fifo() {
            let _ = rustix::pipe::fcntl_setpipe_size(data, CAPACITY);
        }
    }

    /// Whether there is room for a head with its first bytes, of so many bytes together, before any other.
    #[must_use]
    pub fn takes_at_once(&self, size: usize) -> bool {
        // However few pages the user of a FIFO may have, there is one.
        const PAGE: usize = 4096;
        self.is_open && size <= PAGE - LENGTH_SIZE
    }

    /// Sends what precedes the bytes, and the first of them. False when the receiver has gone, or does not take it.
    ///
    /// # Panics
    /// When it is longer than [`LONGEST_HEAD`].
    #[must_use]
    pub fn send_head(&self, head: &[u8], first: &[u8]) -> bool {
        assert!(head.len() <= LONGEST_HEAD, "a head that is too long");
        let data = match &self.outlet {
            Outlet::Fifos { data: Some(data), .. } => data,
            Outlet::Fifos { data: None, .. } => return false,
            Outlet::Near(link) => return link.send_head(head, first),
        };
        let length = u32::try_from(head.len()).unwrap_or_default();
        let bytes = [&length.to_be_bytes(), head, first].concat();
        let mut left = &bytes[..];
        while !left.is_empty() {
            match rustix::io::write(data, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::INTR) => {}
                // A FIFO is as small as 8 KiB for a user who has many of them. The receiver reads its head at once.
                Err(Errno::AGAIN) => {
                    let limit = Timespec { tv_sec: HEAD_TIME.as_secs().cast_signed(), tv_nsec: 0 };
                    if poll(&mut [PollFd::new(data, PollFlags::OUT)], Some(&limit)) != Ok(1) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Ends the bytes, and says whether they are complete.
    pub fn end(&mut self, is_complete: bool) {
        if !std::mem::replace(&mut self.is_open, false) {
            return;
        }
        match &mut self.outlet {
            Outlet::Fifos { data, receipt, .. } => {
                if is_complete {
                    receipt.end();
                }
                *data = None;
            }
            Outlet::Near(link) => link.end(is_complete),
        }
    }

    /// How many bytes the receiver's client has taken so far; all of them once the receiver has gone. `None` where it has
    /// not begun.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn taken(&self) -> Result<Option<u64>, Error> {
        match &self.outlet {
            Outlet::Fifos { receipt, .. } => Ok(receipt.taken()?),
            Outlet::Near(link) => Ok(link.taken()),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(false);
    }
}
