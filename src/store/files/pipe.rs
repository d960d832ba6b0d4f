//! A pipe: bytes from one process to another, as they come, through a FIFO.
//!
//! A *receiver* comes and waits; a *sender* comes, waits for a receiver, and takes it. From then on the two have each
//! other, through file descriptors alone: nothing on the disk belongs to the transfer, so there is nothing to clean up
//! when one of them is killed.
//!
//! - Whoever is there has a FIFO open that it sleeps on, and others knock at. A FIFO that nobody has open is a leftover of a
//!   killed process; whoever comes upon it removes it. So the FIFO is presence and wake-up in one. It reaches no other
//!   machine, but neither does the FIFO that carries the bytes.
//! - To take a receiver is to remove its tally, which the kernel lets only one sender do, and to open its FIFO `data`. In a
//!   session all of that is under its lock, because the names are used again.
//! - The end of the bytes is that the sender closes `data`. A sender that is killed ends them too.
//! - The end of the receiver is that nobody has its own FIFO open any more, which the sender, who has it open for
//!   writing, is told by the kernel. What its client took stands in a [tally](Tally): a file, so that the count survives a
//!   kill. There the sender notes as well that its bytes are complete.
//!
//! Where nobody waits to send, because it is known who will, a [`Receiver`] and a [`Sender`] do without the [`Pipe`].

use super::wake::{Fifo, Knock, is_heard, make_fifo, watch};
use super::{Error, folder::overwrite, identity_at, make_dir, remove_file};
use crate::hex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const RECEIVER: &str = "receiver";
const DATA: &str = "data";
const TAKEN: &str = "taken";
/// What begins the names of the senders' FIFOs.
const SENDER: &str = "sender-";

/// How many bytes may be under way, where [there are many](Sender::widen). More than the usual 64 KiB makes for fewer
/// switches between the two processes; the kernel keeps only what is really there.
const CAPACITY: usize = 512 * 1024;

/// How long a receiver may take to read a head.
const HEAD_TIME: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The longest head in bytes.
pub const LONGEST_HEAD: usize = 32 * 1024;

/// The head's length stands before it, in so many bytes.
const LENGTH_SIZE: usize = 4;

/// Where the files of a receiver are. Whoever makes or takes one holds the lock of the session, unless the names are never
/// used again.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What it sleeps on.
    pub receiver: PathBuf,
    /// What the bytes come through.
    pub data: PathBuf,
    /// What is known of them.
    pub tally: PathBuf,
}

impl Names {
    /// Whether there is a receiver, who is not woken.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn are_received(&self) -> Result<bool, Error> {
        is_heard(&self.receiver)
    }

    /// Removes the files. As long as the first is there nobody else makes any of these names, so it goes last.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for name in [&self.data, &self.tally, &self.receiver] {
            remove_file(name)?;
        }
        Ok(())
    }
}

/// What the two ends tell each other of the bytes: whether the sender has ended, and how many the receiver's client has
/// taken. It takes no more room once it is made.
struct Tally(File);

impl Tally {
    const ENDED: [u8; 1] = [1];
    const COUNT_AT: u64 = Self::ENDED.len() as u64;
    /// What the count says before there is one.
    const NOT_BEGUN: u64 = u64::MAX;

    /// Made by the receiver, now, while a full disk can still be told. `rest` stands behind it.
    fn make(path: &Path, rest: &[u8]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        overwrite(&file, &[&[0], &Self::NOT_BEGUN.to_be_bytes()[..], rest].concat())?;
        Ok(Self(file))
    }

    /// `None` where the sender has it already.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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

/// How long a tally is.
pub(super) const TALLY_SIZE: usize = Tally::ENDED.len() + size_of::<u64>();

/// What stands [behind](Receiver::make) a tally in a file.
pub(super) fn behind_tally(file: &[u8]) -> Option<&[u8]> {
    file.get(TALLY_SIZE..)
}

/// Whether those who are there are woken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Yes,
    No,
}

/// A pipe, while its session is locked.
pub struct Pipe<'lock> {
    path: PathBuf,
    lock: PhantomData<&'lock ()>,
}

impl Pipe<'_> {
    /// The pipe in the folder `path`.
    pub(super) fn new<R>(_lock: &super::folder::Folder<R>, path: PathBuf) -> Pipe<'_> {
        Pipe { path, lock: PhantomData }
    }

    fn names(&self) -> Names {
        Names { receiver: self.path.join(RECEIVER), data: self.path.join(DATA), tally: self.path.join(TAKEN) }
    }

    /// Becomes the receiver; `None` where there is one. Senders that wait are woken.
    ///
    /// # Errors
    /// When its files cannot be made, or it cannot be seen who is there.
    pub fn receive(&self) -> Result<Option<Receiver>, Error> {
        let names = self.names();
        if names.are_received()? {
            return Ok(None);
        }
        make_dir(&self.path)?;
        let receiver = Receiver::make(names, b"")?;
        self.senders(Call::Yes)?;
        Ok(Some(receiver))
    }

    /// Makes `receiver` ready for another sender, after one has left without a word.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub fn receive_again(&self, receiver: &mut Receiver) -> Result<(), Error> {
        (receiver.data, receiver.tally) = make_data(&receiver.names, b"")?;
        receiver.head.clear();
        self.senders(Call::Yes)?;
        Ok(())
    }

    /// Takes a place among the senders; `None` where `most` have one.
    ///
    /// # Errors
    /// When its file cannot be made, or it cannot be seen who is there.
    pub fn wait_to_send(&self, most: usize) -> Result<Option<Place>, Error> {
        make_dir(&self.path)?;
        if self.senders(Call::No)? >= most {
            return Ok(None);
        }
        Place::make(self.path.join(format!("{SENDER}{}", hex::random(8)?))).map(Some)
    }

    /// How many senders there are.
    fn senders(&self, call: Call) -> Result<usize, Error> {
        let mut count = 0;
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(SENDER)) {
                let knock = Knock::at_or_remove(&entry.path())?;
                count += usize::from(knock.is_heard());
                if call == Call::No {
                    knock.cancel();
                }
            }
        }
        Ok(count)
    }

    /// Takes the receiver that waits; `None` where none does.
    ///
    /// # Errors
    /// When its files cannot be opened or their names not removed.
    pub fn take_receiver(&self) -> Result<Option<Sender>, Error> {
        let names = self.names();
        let sender = Sender::take(&names)?;
        if sender.is_some() {
            remove_file(&names.data)?;
        }
        Ok(sender)
    }

    /// Whether a receiver or a sender is there. Removes what killed ones have left behind.
    ///
    /// # Errors
    /// When it cannot be seen who is there, or a leftover not removed.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        let senders = match self.senders(Call::No) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other? > 0,
        };
        let names = self.names();
        let receiver = names.are_received()?;
        if !receiver {
            names.remove()?;
        }
        Ok(senders || receiver)
    }

    /// Takes the receiver's place away. It wakes and finds [its place gone](Place::is_gone).
    ///
    /// # Errors
    /// When something cannot be removed, or it cannot be seen whom to wake.
    pub fn send_receiver_away(&self) -> Result<(), Error> {
        self.remove_files(|name| !name.starts_with(SENDER))
    }

    /// Takes their places away from the senders, as [`send_receiver_away`](Self::send_receiver_away).
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn send_senders_away(&self) -> Result<(), Error> {
        self.remove_files(|name| name.starts_with(SENDER))
    }

    fn remove_files(&self, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // Nobody is woken before all are gone: a sender whose receiver leaves has to see why. Nothing is removed before all
        // can be woken.
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(&which) {
                paths.push(entry.path());
            }
        }
        let is_slept_on = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name == RECEIVER || name.starts_with(SENDER))
        };
        let mut knocks = Vec::new();
        for path in paths.iter().filter(is_slept_on) {
            knocks.push(Knock::surely_at(path)?);
        }
        for path in &paths {
            remove_file(path)?;
        }
        Ok(())
    }

    /// Removes the pipe. Whoever is there wakes and finds [its place gone](Place::is_gone).
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_files(|_| true)?;
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn make_data(names: &Names, behind: &[u8]) -> Result<(OwnedFd, Tally), Error> {
    make_fifo(&names.data)?;
    let data = rustix::fs::open(&names.data, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // Last: where there is one, there is all that belongs to it.
    Ok((data, Tally::make(&names.tally, behind)?))
}

/// A place at a pipe: the FIFO on which its owner sleeps. As long as this lives, the owner is there.
pub struct Place {
    path: PathBuf,
    fifo: Fifo,
}

impl Place {
    fn make(path: PathBuf) -> Result<Self, Error> {
        let fifo = Fifo::make(&path)?;
        Ok(Self { path, fifo })
    }

    /// What becomes readable when somebody knocks.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.fifo.fd()
    }

    /// To be called when [`Place::wake`] was readable. True when the pipe has been removed.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.fifo.hear();
        matches!(self.fifo.is_lost(&self.path), Ok(true))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before it is closed: as long as it is open nobody else takes this name.
        if matches!(self.fifo.is_lost(&self.path), Ok(false)) {
            let _ = remove_file(&self.path);
        }
    }
}

/// What has come from a sender.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// Nothing yet.
    Nothing,
    /// Its head.
    Head(Vec<u8>),
    /// It has gone without one.
    Left,
}

/// The receiver's end.
pub struct Receiver {
    names: Names,
    /// What it sleeps on.
    fifo: Fifo,
    has_left: bool,
    data: OwnedFd,
    tally: Tally,
    count: u64,
    /// Of a head, what has come so far.
    head: Vec<u8>,
}

impl Receiver {
    /// Becomes the receiver at these names, which no other has. `rest` stands behind the tally.
    pub(super) fn make(names: Names, rest: &[u8]) -> Result<Self, Error> {
        let made = Fifo::make(&names.receiver).and_then(|fifo| Ok((fifo, make_data(&names, rest)?)));
        match made {
            Ok((fifo, (data, tally))) => {
                Ok(Self { names, fifo, has_left: false, data, tally, count: 0, head: Vec::new() })
            }
            Err(error) => {
                names.remove()?;
                Err(error)
            }
        }
    }

    /// What becomes readable when the pipe is removed; `None` once the place is [left](Receiver::leave).
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_left).then(|| self.fifo.fd())
    }

    /// To be called when [`Receiver::wake`] was readable. True when the pipe has been removed.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        if self.has_left {
            return false;
        }
        self.fifo.hear();
        matches!(self.fifo.is_lost(&self.names.receiver), Ok(true))
    }

    /// Whether somebody has knocked since the last time.
    #[must_use]
    pub fn hears(&self) -> bool {
        rustix::io::read(self.fifo.fd(), &mut [0; 64]).is_ok()
    }

    /// Whether a sender has taken it.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(identity_at(&self.names.tally), Ok(None))
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
    pub fn head(&mut self) -> Result<Came, Error> {
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
                return Ok(Came::Head(self.head.split_off(LENGTH_SIZE)));
            }
            let mut bytes = vec![0; wanted];
            match rustix::io::read(&self.data, &mut bytes) {
                // Nobody has it open for writing: nobody yet, or nobody any more, which only `poll` tells apart.
                Ok(0) => return Ok(if has_hung_up(&self.data) { Came::Left } else { Came::Nothing }),
                Ok(got) => self.head.extend_from_slice(&bytes[..got]),
                Err(Errno::AGAIN) => return Ok(Came::Nothing),
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
        let mut got = 0;
        while got < bytes.len() {
            match rustix::io::read(&self.data, &mut bytes[got..]) {
                Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(some) => got += some,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
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
        self.count += bytes;
        Ok(self.tally.count(self.count)?)
    }

    /// Behind the last byte: whether the sender has said that it was the last, and was not killed, say.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.tally.has_ended()
    }

    /// Gives the place up: another receiver may come, for what the next sender brings.
    pub fn leave(&mut self) {
        let has_place = !std::mem::replace(&mut self.has_left, true);
        // What may be another's is left to whoever comes upon it.
        if has_place && matches!(self.fifo.is_lost(&self.names.receiver), Ok(false)) {
            let _ = self.names.remove();
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

fn has_hung_up(fifo: &OwnedFd) -> bool {
    // One that has come and gone since the last read has left its bytes.
    crate::look(fifo.as_fd(), PollFlags::IN) == PollFlags::HUP
}

/// The sender's end, with a receiver of its own.
pub struct Sender {
    /// `None` behind the end.
    data: Option<OwnedFd>,
    receiver: OwnedFd,
    tally: Tally,
}

impl Sender {
    /// Takes the receiver at these names; `None` where none waits. The tally's name is removed, the others are left.
    ///
    /// # Errors
    /// When its files cannot be opened or the name not removed.
    pub(super) fn take(names: &Names) -> Result<Option<Self>, Error> {
        let Some(receiver) = watch(&names.receiver)? else { return Ok(None) };
        let Some(tally) = Tally::open(&names.tally)? else { return Ok(None) };
        // Whoever removes it is the one who takes the receiver. Only then is the other FIFO opened: a receiver takes one
        // that is closed again for a sender who has left.
        match std::fs::remove_file(&names.tally) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let data = match rustix::fs::open(&names.data, flags, Mode::empty()) {
            Ok(data) => data,
            // The receiver has just gone.
            Err(Errno::NOENT | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Self { data: Some(data), receiver, tally }))
    }

    /// Where the bytes go: writable when there is room; `None` behind the end.
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
        self.tally.end();
        self.data = None;
    }

    /// How many bytes the receiver's client has taken so far; all of them once the receiver has gone. `None` where it has
    /// not begun.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn taken(&self) -> Result<Option<u64>, Error> {
        Ok(self.tally.taken()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::super::test_dir::TestDir;
    use super::*;

    struct Scene {
        folder: Folder<String>,
        dir: TestDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = TestDir::new();
            Self { folder: Folder::open_or_make(&dir.join("session")).unwrap().0, dir }
        }

        fn pipe(&self) -> Pipe<'_> {
            Pipe::new(&self.folder, self.dir.join("session/pipe"))
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.dir.join("session/pipe")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    fn read(receiver: &Receiver) -> Option<Vec<u8>> {
        let mut bytes = [0; 100];
        rustix::io::read(receiver.data(), &mut bytes).ok().map(|got| bytes[..got].to_vec())
    }

    #[test]
    fn a_head_and_bytes_arrive_and_what_was_taken_is_told() {
        let scene = Scene::new();
        assert!(scene.pipe().wait_to_send(1).unwrap().is_some());
        assert!(scene.pipe().take_receiver().unwrap().is_none());
        let mut receiver = scene.pipe().receive().unwrap().unwrap();
        assert_eq!(receiver.head().unwrap(), Came::Nothing);
        let mut sender = scene.pipe().take_receiver().unwrap().unwrap();
        assert!(sender.send_head(&vec![7; LONGEST_HEAD], b""));
        assert_eq!(receiver.head().unwrap(), Came::Head(vec![7; LONGEST_HEAD]));
        rustix::io::write(sender.data().unwrap(), b"bytes").unwrap();
        assert_eq!(read(&receiver).unwrap(), b"bytes");
        assert_eq!(read(&receiver), None, "there may be more");
        sender.end();
        assert_eq!(read(&receiver).unwrap(), b"", "the end");
        receiver.took(3).unwrap();
        receiver.took(2).unwrap();
        drop(receiver);
        assert_eq!(sender.taken().unwrap(), Some(5));
        assert!(scene.names().is_empty(), "{:?}", scene.names());
    }

    #[test]
    fn there_is_one_receiver_and_one_sender_for_it() {
        let scene = Scene::new();
        let mut first = scene.pipe().receive().unwrap().unwrap();
        assert!(scene.pipe().receive().unwrap().is_none());
        let sender = scene.pipe().take_receiver().unwrap().unwrap();
        assert!(scene.pipe().take_receiver().unwrap().is_none());
        assert!(scene.pipe().receive().unwrap().is_none());
        first.leave();
        let second = scene.pipe().receive().unwrap().unwrap();
        drop(first);
        assert!(scene.pipe().receive().unwrap().is_none(), "the first has not taken the second's place with it");
        assert!(scene.pipe().take_receiver().unwrap().is_some());
        drop((second, sender));
    }

    #[test]
    fn a_sender_that_leaves_without_a_word_makes_room_for_another() {
        let scene = Scene::new();
        let mut receiver = scene.pipe().receive().unwrap().unwrap();
        drop(scene.pipe().take_receiver().unwrap().unwrap());
        assert_eq!(receiver.head().unwrap(), Came::Left);
        let waiting = scene.pipe().wait_to_send(5).unwrap().unwrap();
        scene.pipe().receive_again(&mut receiver).unwrap();
        assert!(!waiting.is_gone());
        let sender = scene.pipe().take_receiver().unwrap().unwrap();
        assert!(sender.send_head(b"", b"first"));
        assert_eq!(receiver.head().unwrap(), Came::Head(vec![]));
        assert_eq!(receiver.take_at_once(6).unwrap(), None, "not all of it");
        assert_eq!(receiver.take_at_once(5).unwrap().unwrap(), b"first");
        assert_eq!(sender.taken().unwrap(), Some(5));
    }

    #[test]
    fn senders_are_counted_and_dead_ones_are_not() {
        let scene = Scene::new();
        let one = scene.pipe().wait_to_send(2).unwrap().unwrap();
        let two = scene.pipe().wait_to_send(2).unwrap().unwrap();
        assert!(scene.pipe().wait_to_send(2).unwrap().is_none());
        // What a killed one leaves: a name that nobody has open.
        drop(two);
        let fifo = scene.dir.join("session/pipe/sender-dead");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(scene.pipe().wait_to_send(2).unwrap().is_some());
        assert!(!fifo.exists());
        drop(one);
        assert!(!scene.pipe().is_in_use().unwrap());
    }

    #[test]
    fn what_cannot_be_looked_at_stays_and_is_in_nobodys_favour() {
        let scene = Scene::new();
        let receiver = scene.pipe().receive().unwrap().unwrap();
        let place = scene.pipe().wait_to_send(2).unwrap().unwrap();
        let before = scene.names();
        // Moved behind a link to itself: to look at it is an error now, as without a descriptor.
        let [fifo, aside] = ["session/pipe/receiver", "aside"].map(|name| scene.dir.join(name));
        std::fs::rename(&fifo, &aside).unwrap();
        std::os::unix::fs::symlink(&fifo, &fifo).unwrap();
        assert!(scene.pipe().receive().is_err() && scene.pipe().take_receiver().is_err());
        assert!(scene.pipe().is_in_use().is_err() && scene.pipe().remove().is_err());
        assert_eq!(scene.names().len(), before.len(), "{:?}", scene.names());
        std::fs::rename(&aside, &fifo).unwrap();
        assert!(!receiver.is_gone() && !place.is_gone());
        assert!(scene.pipe().take_receiver().unwrap().is_some());
    }

    #[test]
    fn who_is_there_learns_that_the_pipe_is_removed() {
        let scene = Scene::new();
        let receiver = scene.pipe().receive().unwrap().unwrap();
        let sender = scene.pipe().wait_to_send(5).unwrap().unwrap();
        assert!(scene.pipe().is_in_use().unwrap());
        assert!(scene.pipe().receive().unwrap().is_none() && scene.pipe().wait_to_send(1).unwrap().is_none());
        let are_called = || {
            [receiver.wake().unwrap(), sender.wake()].map(|wake| {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], Some(&now)) == Ok(1)
            })
        };
        assert_eq!(are_called(), [false, false], "looking wakes nobody");
        assert!(!receiver.is_gone() && !sender.is_gone());
        scene.pipe().remove().unwrap();
        assert_eq!(are_called(), [true, true]);
        assert!(receiver.is_gone() && sender.is_gone());
        assert!(!scene.dir.join("session/pipe").exists());
    }
}
