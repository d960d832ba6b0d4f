//! A mailbox: what waits for one recipient, whether he is listening, and how he is woken.
//!
//! `queue` holds the messages, and its time says when the last one was put in that somebody was promised would be kept.
//! `stream` belongs to the newest stream that listens: it is locked as long as that stream
//! lives, and says how far it has come. `wake` is the FIFO it sleeps on. A mailbox without `stream` has never been
//! listened to. All of it changes under the lock of the session, which a [`Mailbox`] borrows.

use super::folder::overwrite;
use super::queue::{Reader, Record, Writer};
use super::wake::{Knock, LateKnock, Wake};
use super::{Error, FileIdentity, identity, identity_at, make_dir, private_file, read_small, remove_file};
use crate::clock::{has_passed, now_ms};
use fs2::FileExt as _;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const QUEUE: &str = "queue";
const STREAM: &str = "stream";
const WAKE: &str = "wake";
/// What is being made, before it is renamed into place.
const BESIDE: [&str; 3] = ["queue.new", "stream.new", "wake.new"];

/// The event type of what others send.
const MESSAGE: &str = "message";

/// The time of a queue into which no message was ever put.
const NEVER: SystemTime = SystemTime::UNIX_EPOCH;

/// The size of a stream's record on disk.
const STREAM_RECORD_SIZE: usize = 128;

/// A queue is compacted once that many bytes of it can go: often enough to keep it small, seldom enough to be cheap.
pub(super) const WORTH_COMPACTING: u64 = 256 * 1024;

/// Whether the recipient of a mailbox is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No stream has been opened yet.
    Waiting,
    /// A stream is open.
    Listening,
    /// The last stream has ended.
    Ended {
        /// When, in milliseconds since 1970 (for a killed one: when that was noticed).
        at: u64,
        /// Whether its peers have been told.
        told: bool,
    },
}

/// What a `stream` file says.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct StreamRecord {
    /// Events up to this id have been written to the stream.
    position: u64,
    /// When the stream ended, if it could still say so.
    ended: Option<u64>,
    /// Whether the peers know of the end.
    told: bool,
}

impl StreamRecord {
    fn read(file: &File) -> io::Result<Self> {
        // A damaged one is a stream that has said nothing yet.
        Ok(serde_json::from_slice(&read_small(file)?).unwrap_or_default())
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        bytes.resize(STREAM_RECORD_SIZE - 1, b' ');
        bytes.push(b'\n');
        overwrite(file, &bytes)
    }
}

/// A mailbox, while its session is locked.
pub struct Mailbox<'lock> {
    path: PathBuf,
    lock: PhantomData<&'lock ()>,
}

impl Mailbox<'_> {
    pub(super) fn new<R>(_lock: &super::folder::Folder<R>, path: PathBuf) -> Mailbox<'_> {
        Mailbox { path, lock: PhantomData }
    }

    /// Makes the mailbox, if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> Result<(), Error> {
        match make_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(self.path.parent().unwrap_or(&self.path))?;
                make_dir(&self.path)?;
                Ok(())
            }
            other => Ok(other.map(|_| ())?),
        }
    }

    /// When its owner used it last without listening: it was made, or [touched](Self::touch). `None` where there is no
    /// such mailbox.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn touched(&self) -> Result<Option<SystemTime>, Error> {
        modified(&self.path)
    }

    /// Makes the mailbox count as used now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn touch(&self) -> Result<(), Error> {
        Ok(File::open(&self.path)?.set_modified(SystemTime::now())?)
    }

    /// When a message was [put](Self::put) in last; `None` if never. What the relay itself has [told](Self::tell) is none.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn last_message(&self) -> Result<Option<SystemTime>, Error> {
        Ok(modified(&self.path.join(QUEUE))?.filter(|at| *at != NEVER))
    }

    /// Whether nobody has ever listened to it, and no message was put in.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_unused(&self) -> Result<bool, Error> {
        Ok(self.presence()? == Presence::Waiting && self.last_message()?.is_none())
    }

    /// Whether a message waits that is younger than `lifetime`: one that no stream has been given.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_message_waiting(&self, lifetime: Duration) -> Result<bool, Error> {
        let oldest = oldest(lifetime);
        let Some(mut queue) = self.reader_if_any(None)? else { return Ok(false) };
        let (mut found, mut may_have_more) = (false, true);
        while may_have_more && !found {
            may_have_more = queue.read(|record| found |= record.event == MESSAGE && record.time >= oldest)?;
        }
        Ok(found)
    }

    /// Whether somebody is listening. A stream that was killed is found out here: its lock is free, but it has not said
    /// that it ended.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn presence(&self) -> Result<Presence, Error> {
        let Some(file) = open_stream(&self.path)? else { return Ok(Presence::Waiting) };
        if is_locked(&file)? {
            return Ok(Presence::Listening);
        }
        let mut record = StreamRecord::read(&file)?;
        let at = if let Some(at) = record.ended {
            at
        } else {
            let now = now_ms();
            record = StreamRecord { ended: Some(now), told: false, ..record };
            record.write(&file)?;
            now
        };
        Ok(Presence::Ended { at, told: record.told })
    }

    /// Notes that the peers know of the end of the last stream, or that there will never be one.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn set_told(&self) -> Result<(), Error> {
        let file = private_file(&self.path.join(STREAM))?;
        let record = StreamRecord::read(&file)?;
        // One that never was has not ended just now.
        StreamRecord { told: true, ended: record.ended.or(Some(0)), ..record }.write(&file)?;
        Ok(())
    }

    /// Puts a message into the mailbox, which is then kept for a lifetime. Its stream is woken when what is returned is
    /// dropped: better after the lock, because the one that is woken runs at once and the others would wait for both. With a
    /// `limit`, at most that many bytes may be waiting.
    ///
    /// # Errors
    /// [`Error::QueueFull`] past the limit; [`Error::DiskFull`] and others when it could not be stored. The queue is
    /// then as it was.
    pub fn put(&self, data: &str, limit: Option<u64>) -> Result<LateKnock, Error> {
        self.append(MESSAGE, data, limit)
    }

    /// Puts an event of the relay itself into the mailbox. Nobody was promised that it is kept, so a mailbox, and its
    /// session, live no longer for it; and where more than `limit` bytes would be waiting, it is not.
    ///
    /// # Errors
    /// When it could not be stored.
    pub fn tell(&self, event: &str, data: &str, limit: u64) -> Result<(), Error> {
        match self.keeping_last_message(|| self.append(event, data, Some(limit))) {
            Err(Error::QueueFull(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Does something to the queue that is no message.
    fn keeping_last_message<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let path = self.path.join(QUEUE);
        let before = modified(&path)?.unwrap_or(NEVER);
        let done = work()?;
        // Where that fails, or is not reached, the mailbox is kept too long.
        let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_modified(before));
        Ok(done)
    }

    fn append(&self, event: &str, data: &str, limit: Option<u64>) -> Result<LateKnock, Error> {
        let delivered = || {
            let record = open_stream(&self.path).ok().flatten().and_then(|file| StreamRecord::read(&file).ok());
            record.map_or(0, |record| record.position)
        };
        let limit = limit.map(|limit| (limit, &delivered as &dyn Fn() -> u64));
        Writer::open(&self.path.join(QUEUE))?.append(event, data, limit)?;
        Ok(LateKnock::at(self.path.join(WAKE)))
    }

    /// Begins to listen, behind the event `resume` if the queue has it, else behind what the last stream has been given.
    /// An older stream of this mailbox is told to end. Waiting messages that are older than `lifetime` are not given; what
    /// was given is kept as long, but no more than `most` bytes of it.
    ///
    /// # Errors
    /// When the mailbox cannot be read or written.
    pub fn listen(&self, resume: Option<u64>, lifetime: Duration, most: u64) -> Result<Listener, Error> {
        let end = self.keeping_last_message(|| Ok(Writer::open(&self.path.join(QUEUE))?.end()))?;
        let mut queue = self.reader(resume)?;
        // Also for those who never listen for long; and before anything is made, because the disk may be full.
        if let Some(keep_from) = can_go(&mut queue, lifetime, most)? {
            self.drop_up_to(keep_from)?;
        }
        let oldest = oldest(lifetime);
        let older = Knock::of_challenger(&self.path.join(WAKE));
        let stream = HeldStream::prepare(&self.path, queue.position())?;
        let wake = self.make_wake();
        let stream = stream.take_place(&self.path)?;
        // Only now does the older stream find itself replaced.
        drop(older);
        Ok(Listener {
            path: self.path.clone(),
            stream,
            wake,
            queue,
            backlog: (end, oldest),
            may_have_more: true,
            lifetime,
        })
    }

    /// The queue behind the event `resume` if it has it, else behind what the last stream has been given.
    fn reader(&self, resume: Option<u64>) -> Result<Reader, Error> {
        let position = match &open_stream(&self.path)? {
            Some(file) => StreamRecord::read(file)?.position,
            None => 0,
        };
        let mut queue = Reader::open(&self.path.join(QUEUE), position)?;
        if let Some(id) = resume {
            queue.resume(id)?;
        }
        Ok(queue)
    }

    /// Whether who [listens](Self::listen) now finds something waiting.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_waiting(&self, resume: Option<u64>) -> Result<bool, Error> {
        match self.reader_if_any(resume)? {
            Some(queue) => Ok(queue.has_more()?),
            None => Ok(false),
        }
    }

    fn reader_if_any(&self, resume: Option<u64>) -> Result<Option<Reader>, Error> {
        match self.reader(resume) {
            Err(Error::Io(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn make_wake(&self) -> Option<Wake> {
        Wake::make(&self.path.join(WAKE), &self.path.join(BESIDE[2]))
    }

    /// Gives `listener` its FIFO back after a stranger has removed it, or the FIFO that could not be made before.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn mend_wake(&self, listener: &mut Listener) -> Result<(), Error> {
        if identity_at(&self.path.join(STREAM))? == Some(listener.stream.identity) {
            listener.wake = self.make_wake();
            // Whoever put something in meanwhile found nobody to knock for.
            listener.may_have_more = true;
        }
        Ok(())
    }

    /// Gives `listener` its place back after a stranger has removed its files.
    ///
    /// # Errors
    /// When the mailbox cannot be written.
    pub fn listen_again(&self, listener: &mut Listener) -> Result<(), Error> {
        self.make()?;
        Writer::open(&self.path.join(QUEUE))?;
        let stream = HeldStream::prepare(&self.path, listener.queue.position())?;
        listener.wake = self.make_wake();
        listener.may_have_more = true;
        listener.stream = stream.take_place(&self.path)?;
        Ok(())
    }

    /// Ends the listening; what waits can still be taken. False when a newer stream has taken over, so that there is
    /// nothing to tell anybody.
    ///
    /// # Errors
    /// When the end cannot be written; it is then noticed as that of a killed stream.
    pub fn end(&self, listener: &Listener) -> Result<bool, Error> {
        if identity_at(&self.path.join(STREAM))? != Some(listener.stream.identity) {
            return Ok(false);
        }
        let record = StreamRecord { ended: Some(now_ms()), ..StreamRecord::read(&listener.stream.file)? };
        record.write(&listener.stream.file)?;
        fs2::FileExt::unlock(&listener.stream.file)?;
        Ok(true)
    }

    /// Drops from the queue what lies before `keep_from`, which [`Listener::can_go`] has named; nothing where `listener` is
    /// not its stream any more.
    ///
    /// # Errors
    /// When there is no room for the rest; the queue is then as it was.
    pub fn compact(&self, listener: &Listener, keep_from: u64) -> Result<(), Error> {
        if identity_at(&self.path.join(STREAM))? == Some(listener.stream.identity) {
            self.drop_up_to(keep_from)?;
        }
        Ok(())
    }

    pub(super) fn drop_up_to(&self, keep_from: u64) -> Result<(), Error> {
        let path = self.path.join(QUEUE);
        self.keeping_last_message(|| Writer::open(&path)?.compact(&path, &self.path.join(BESIDE[0]), keep_from))
    }

    /// Moves what waits to `place`, with how far its stream has come. A stream that lives ends by that.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub(super) fn move_to(&self, place: &Path) -> Result<(), Error> {
        super::make_dirs(place)?;
        // The queue last: what waits is nowhere lost, and without its stream's file it is given once more.
        for name in [STREAM, QUEUE] {
            match std::fs::rename(self.path.join(name), place.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.remove()
    }

    /// Removes the mailbox with everything in it, except the folder itself where others have something in it too.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        // The stream's file first: from then on it is a mailbox that has never been listened to.
        for name in [STREAM, WAKE, QUEUE].iter().chain(&BESIDE) {
            remove_file(&self.path.join(name))?;
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(error.into())
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn modified(path: &Path) -> Result<Option<SystemTime>, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.modified()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the stream of the mailbox at `path` has ended and nobody has taken note: a look without the session's lock,
/// to be repeated under it when the answer is yes.
pub(super) fn has_news(path: &Path, grace: Duration) -> bool {
    let Ok(Some(file)) = open_stream(path) else { return false };
    matches!(is_locked(&file), Ok(false))
        && StreamRecord::read(&file)
            .is_ok_and(|record| !record.told && record.ended.is_none_or(|at| has_passed(at, grace)))
}

fn oldest(lifetime: Duration) -> u64 {
    now_ms().saturating_sub(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX))
}

fn can_go(queue: &mut Reader, lifetime: Duration, most: u64) -> Result<Option<u64>, Error> {
    let worth = WORTH_COMPACTING.min(most);
    if queue.position().saturating_sub(queue.base()) < worth {
        return Ok(None);
    }
    let dead = queue.dead_up_to(oldest(lifetime), most)?;
    Ok((dead.saturating_sub(queue.base()) >= worth).then_some(dead))
}

fn open_stream(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path.join(STREAM)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a living stream holds the lock. A shared lock is tried, so that two who ask at once do not take each other
/// for the stream.
fn is_locked(file: &File) -> io::Result<bool> {
    match fs2::FileExt::try_lock_shared(file) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// The `stream` file of a living stream, locked.
struct HeldStream {
    file: File,
    identity: FileIdentity,
}

impl HeldStream {
    fn prepare(path: &Path, position: u64) -> Result<Self, Error> {
        let beside = path.join(BESIDE[1]);
        // A leftover of a killed process may still be looked at; a new file is nobody else's.
        remove_file(&beside)?;
        let file = private_file(&beside)?;
        file.lock_exclusive()?;
        StreamRecord { position, ..StreamRecord::default() }.write(&file)?;
        let identity = identity(&file.metadata()?);
        Ok(Self { file, identity })
    }

    fn take_place(self, path: &Path) -> Result<Self, Error> {
        std::fs::rename(path.join(BESIDE[1]), path.join(STREAM))?;
        Ok(self)
    }
}

/// What has become of a listener's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the mailbox's stream.
    Listening,
    /// A newer stream has taken over.
    Superseded,
    /// Somebody has removed its file.
    Lost,
}

/// A listening stream's end of a mailbox. As long as it lives, the recipient is [listening](Presence::Listening).
pub struct Listener {
    path: PathBuf,
    stream: HeldStream,
    wake: Option<Wake>,
    queue: Reader,
    /// Up to which id there were messages when it began, and how old (in ms since 1970) they may be.
    backlog: (u64, u64),
    /// Whether it is worth looking: after a knock, once a round, and until nothing is found.
    may_have_more: bool,
    lifetime: Duration,
}

impl Listener {
    /// The id behind which the next event is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.queue.position()
    }

    /// What becomes readable when something was put into the mailbox.
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(|wake| wake.fd())
    }

    /// Whether every message is sure to make [`Listener::wake`] readable: not on a file system without FIFOs, nor on one
    /// that another machine may write to, because a FIFO wakes only its own machine.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.wake.as_ref().is_some_and(Wake::is_sure)
    }

    /// To be called when [`Listener::wake`] was readable, and from time to time where it may not be, before looking for
    /// events. Whether a newer stream has knocked.
    pub fn hear(&mut self) -> bool {
        self.may_have_more = true;
        self.wake.as_ref().is_some_and(|wake| wake.hear())
    }

    /// Gives the next events to `take`; false when there are no more than these for now.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn next(&mut self, mut take: impl FnMut(Record<'_>)) -> Result<bool, Error> {
        let (backlog_end, oldest) = self.backlog;
        let mut fresh = |record: Record<'_>| {
            if record.id > backlog_end || record.time >= oldest {
                take(record);
            }
        };
        if !self.may_have_more {
            return Ok(false);
        }
        self.may_have_more = self.queue.read(&mut fresh)?;
        Ok(self.may_have_more)
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn delivered(&mut self) -> Result<(), Error> {
        let position = self.queue.position();
        StreamRecord { position, ..StreamRecord::default() }.write(&self.stream.file)?;
        Ok(())
    }

    /// Whether that many bytes of what was given are still kept.
    #[must_use]
    pub fn has_grown_beyond(&self, bytes: u64) -> bool {
        self.queue.position().saturating_sub(self.queue.base()) > bytes
    }

    /// The position up to which the queue may be [compacted](Mailbox::compact), if that is worth it: what was given, and
    /// is older than a lifetime or more than `most` bytes ago.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn can_go(&mut self, most: u64) -> Result<Option<u64>, Error> {
        can_go(&mut self.queue, self.lifetime, most)
    }

    /// Looks whether it is still the mailbox's stream, and whether there is something that nobody has knocked for.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&mut self) -> Result<Standing, Error> {
        // A sender may have been killed before he knocked.
        self.may_have_more |= self.queue.has_more()?;
        Ok(match identity_at(&self.path.join(STREAM))? {
            None => Standing::Lost,
            Some(identity) if identity != self.stream.identity => Standing::Superseded,
            Some(_) => Standing::Listening,
        })
    }

    /// Whether it has no FIFO, because none could be made or somebody has removed it: see [`Mailbox::mend_wake`].
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_lost_wake(&self) -> Result<bool, Error> {
        self.wake.as_ref().map_or(Ok(true), |wake| wake.is_lost(&self.path.join(WAKE)))
    }
}
