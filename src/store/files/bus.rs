//! A broadcast bus: one queue that all write to and all read, with its users and those who wait for a message.
//!
//! Everything changes under the lock of the bus's folder, which a [`Bus`] holds. A [`BusReader`] needs none: it reads the
//! queue, whose ids are positions, and so costs what it returns. What is older than a message's lifetime it does not even
//! pass over, because the record keeps a few *marks*: until when which position had been reached.

use super::folder::{Folder, write_in_place};
use super::mailbox::WORTH_COMPACTING;
use super::queue::{Reader, Writer, ms_since_2026};
use super::wake::{Knock, Wake};
use super::{Error, Files, Kind, UNUSED_TIME, identity_at, make_dir, private_file, read_small, remove_file};
use crate::clock::{has_passed, is_recent, now_ms};
use crate::hex;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use std::fs::{DirEntry, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const QUEUE: &str = "queue";
const QUEUE_BESIDE: &str = "queue.new";
const WAKES: &str = "wakes";
/// Ends the name of a FIFO that is being made.
const BESIDE: &str = ".new";
const USERS: &str = "users";

/// The size of a registered user's file.
const USER_SIZE: usize = 256;

/// A lifetime has about this many marks: a reader passes over at most an eighth of one.
const MARKS: u32 = 8;

/// So much of what was said last tells who crowds a bus, if it is not far larger.
const LATEST: u64 = 64 * 1024;

/// The name of a bus: any text without control characters and slashes, up to 256 bytes. The default bus has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusName(String);

impl BusName {
    /// The longest name in bytes.
    pub const LONGEST: usize = 256;

    /// `None` where the text cannot be a name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = text.len() <= Self::LONGEST && !text.chars().any(|c| c.is_control() || c == '/');
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as it stands in the URL, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of a user: even for a plain one, odd for a registered one.
///
/// A bus counts from a number that is made of the time it was made (as a queue's ids are), so that no number comes again
/// when a bus was removed and made anew, and all are below 2^53, which JavaScript reads exactly, for a century.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(pub u64);

impl User {
    /// The application that the relay belongs to. No bus gives this number out.
    pub const APPLICATION: Self = Self(0);

    /// Whether it has a key.
    #[must_use]
    pub fn is_registered(self) -> bool {
        self.0 % 2 == 1
    }
}

/// What a bus's record says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BusRecord {
    name: String,
    /// Whether only registered users may post.
    signed_only: bool,
    /// The first plain user's number; 0 in a bus that was never finished.
    first: u64,
    /// How many plain users there have been.
    plain: u64,
    /// How many registered users there have been.
    registered: u64,
    /// Oldest first: at this time (ms since 1970) messages up to this id had been posted.
    marks: Vec<(u64, u64)>,
}

impl BusRecord {
    fn is_made(&self) -> bool {
        self.first > 0
    }

    /// Nothing up to this id is still alive.
    fn dead_up_to(&self, lifetime: Duration) -> u64 {
        self.marks.iter().rev().find(|(time, _)| has_passed(*time, lifetime)).map_or(0, |(_, id)| *id)
    }

    /// Notes that `end` is reached now. False where the last mark is recent enough.
    fn mark(&mut self, end: u64, lifetime: Duration) -> bool {
        let now = now_ms();
        // What a clock that was set back, or a queue that was lost, has left behind.
        self.marks.retain(|(time, id)| *time <= now && *id <= end);
        if self.marks.last().is_some_and(|(time, _)| !has_passed(*time, lifetime / MARKS)) {
            return false;
        }
        let dead = self.marks.iter().filter(|(time, _)| has_passed(*time, lifetime)).count();
        self.marks.drain(..dead.saturating_sub(1));
        self.marks.push((now, end));
        true
    }
}

/// A bus, locked.
pub struct Bus {
    folder: Folder<BusRecord>,
    record: BusRecord,
}

impl Files {
    /// Locks a bus; `None` where there is none.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn bus(&self, name: &BusName) -> Result<Option<Bus>, Error> {
        let bus = self.open(Kind::Buses, name.as_str())?.map(Bus::read).transpose()?;
        Ok(bus.filter(|bus| bus.record.is_made()))
    }

    /// When a bus was used last, as far as it was worth a [note](Bus::touch): a look without its lock. `None` where there
    /// is none.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn bus_touched(&self, name: &BusName) -> Result<Option<SystemTime>, Error> {
        Folder::<BusRecord>::touched_at(&self.folder(Kind::Buses, name.as_str()))
    }

    /// Locks a bus, made if it is missing, and says whether it was. `None` where there are `most` buses already.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn bus_or_new(&self, name: &BusName, signed_only: bool, most: u64) -> Result<Option<(Bus, bool)>, Error> {
        let Some(folder) = self.open_or_make(Kind::Buses, name.as_str(), most)? else { return Ok(None) };
        let mut bus = Bus::read(folder)?;
        if bus.record.is_made() {
            return Ok(Some((bus, false)));
        }
        // What is there without a record is of a bus that was being removed, or whose record is damaged.
        bus.clear()?;
        bus.record = BusRecord {
            name: name.as_str().to_owned(),
            signed_only,
            first: (ms_since_2026() + 1) * 2048,
            ..BusRecord::default()
        };
        bus.folder.write(&bus.record)?;
        Ok(Some((bus, true)))
    }
}

impl Bus {
    pub(super) fn read(folder: Folder<BusRecord>) -> Result<Self, Error> {
        let record = folder.read()?.unwrap_or_default();
        Ok(Self { folder, record })
    }

    /// False for a bus that somebody was killed making.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.record.is_made()
    }

    /// Whether only registered users may post.
    #[must_use]
    pub fn is_signed_only(&self) -> bool {
        self.record.signed_only
    }

    /// When the bus was used last, as far as it was worth a [note](Self::touch).
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn touched(&self) -> Result<SystemTime, Error> {
        self.folder.touched()
    }

    /// Whether nobody has posted yet, and nobody waits for a message.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_unused(&self) -> Result<bool, Error> {
        Ok(self.record.marks.is_empty() && self.waiting()? == 0)
    }

    /// Whether it holds what nobody could make anew: a registered user's key, or that only those may post.
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.record.signed_only || self.record.registered > 0
    }

    /// Makes the bus count as used now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn touch(&self) -> Result<(), Error> {
        self.folder.touch()
    }

    /// When a message was posted last; `None` if never.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn last_message(&self) -> Result<Option<SystemTime>, Error> {
        super::mailbox::modified(&self.path(QUEUE))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    // ---- users

    /// A fresh plain user.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn new_user(&mut self) -> Result<User, Error> {
        let user = User(self.record.first + 2 * self.record.plain);
        self.record.plain += 1;
        self.folder.write(&self.record)?;
        Ok(user)
    }

    /// A fresh registered user and his key, 64 hexadecimal digits; `None` where there are `most` already, and none of them
    /// gives way because he has never signed anything.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn register(&mut self, most: u64) -> Result<Option<(User, String)>, Error> {
        let users = self.path(USERS);
        make_dir(&users)?;
        if std::fs::read_dir(&users)?.count() as u64 >= most && !self.forget_unused_user()? {
            return Ok(None);
        }
        let user = User(self.record.first + 1 + 2 * self.record.registered);
        self.record.registered += 1;
        // The number first: who is killed in between has given it to nobody.
        self.folder.write(&self.record)?;
        let key = hex::random(32)?;
        let path = users.join(user.0.to_string());
        let registered = Registered { file: private_file(&path)?, record: UserRecord { key: key.clone(), last: 0 } };
        registered.write().inspect_err(|_| _ = remove_file(&path))?;
        Ok(Some((user, key)))
    }

    /// Removes the oldest registered user that has never signed and has not been seen for [`UNUSED_TIME`]. False where, among
    /// the oldest few hundred, there is none.
    fn forget_unused_user(&self) -> Result<bool, Error> {
        const MOST_LOOKS: usize = 512;
        let names = entries(&self.path(USERS))?.into_iter().map(|entry| entry.file_name());
        // They were counted up.
        let mut numbers: Vec<u64> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().take(MOST_LOOKS) {
            if let Some(user) = self.registered(User(number))?
                && user.last() == 0
                && !is_recent(user.touched()?, UNUSED_TIME)
            {
                remove_file(&self.user_path(User(number)))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this bus has given out the number. A registered user who has not been seen for as long as the bus may be
    /// away is not known any more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn knows(&self, user: User) -> Result<bool, Error> {
        let record = &self.record;
        Ok(if user.is_registered() {
            identity_at(&self.user_path(user))?.is_some()
        } else {
            user.0.checked_sub(record.first).is_some_and(|behind| behind / 2 < record.plain)
        })
    }

    fn user_path(&self, user: User) -> PathBuf {
        self.path(USERS).join(user.0.to_string())
    }

    /// What is kept of a registered user; `None` where there is no such one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn registered(&self, user: User) -> Result<Option<Registered>, Error> {
        if !user.is_registered() {
            return Ok(None);
        }
        let file = match OpenOptions::new().read(true).write(true).open(self.user_path(user)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A damaged one has no key any more, so nobody can sign with it.
        let record = serde_json::from_slice(&read_small(&file)?).ok();
        Ok(record.map(|record| Registered { file, record }))
    }

    // ---- messages

    /// The id of the last message, or where the first one will begin.
    ///
    /// # Errors
    /// When the queue cannot be opened.
    pub fn end(&self) -> Result<u64, Error> {
        Ok(Writer::open(&self.path(QUEUE))?.end())
    }

    /// Posts a message, a JSON value in one line, and gives it its id. Those who wait for it are woken when the [`Bell`]
    /// is dropped: better behind the lock. At most `limit` bytes of messages may be alive.
    ///
    /// # Errors
    /// [`Error::QueueFull`] past the limit; [`Error::DiskFull`] and others when it could not be stored.
    pub fn post(&mut self, user: User, data: &str, limit: u64, lifetime: Duration) -> Result<(u64, Bell), Error> {
        let mut queue = Writer::open(&self.path(QUEUE))?;
        if self.record.mark(queue.end(), lifetime) {
            self.folder.write(&self.record)?;
            queue = self.compact(queue, WORTH_COMPACTING, lifetime)?;
        }
        let dead = || self.record.dead_up_to(lifetime);
        queue.append(&user.0.to_string(), data, Some((limit, &dead)))?;
        Ok((queue.end(), Bell(self.path(WAKES))))
    }

    /// Whether this user is to leave room for others: more than three quarters of the limit are alive, and of what was posted
    /// last more than a quarter is the user's. That is read back, a bounded piece, because nobody counts for each user.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_crowded_by(&self, user: User, limit: u64, lifetime: Duration) -> Result<bool, Error> {
        let (path, many) = (self.path(QUEUE), limit / 4 * 3);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > many => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => return Ok(false),
        }
        let queue = Writer::open(&path)?;
        let (base, end) = (queue.base(), queue.end());
        if end - self.record.dead_up_to(lifetime).clamp(base, end) <= many {
            return Ok(false);
        }
        let mut reader = Reader::open(&path, end)?;
        reader.go_back((limit / 32).max(LATEST))?;
        let (start, mut last, mut own) = (reader.position(), reader.position(), 0);
        while reader.read(|record| {
            if record.event.parse() == Ok(user.0) {
                own += record.id - last;
            }
            last = record.id;
        })? {}
        Ok(own > (last - start) / 4)
    }

    /// Drops the dead from the queue where they are at least `worth` bytes, and no fewer than what would have to be
    /// copied: so that all this copying costs no more than the posting did.
    fn compact(&self, queue: Writer, worth: u64, lifetime: Duration) -> Result<Writer, Error> {
        let (base, end) = (queue.base(), queue.end());
        let dead_up_to = self.record.dead_up_to(lifetime).clamp(base, end);
        if dead_up_to - base < worth.max(end - dead_up_to) {
            return Ok(queue);
        }
        let path = self.path(QUEUE);
        queue.compact(&path, &self.path(QUEUE_BESIDE), dead_up_to)?;
        Writer::open(&path)
    }

    /// Reads what lies behind the id `after` and is alive, except what `except` has posted. An id that no message has
    /// reached yet is somebody's mistake, or another bus's, and means what is posted from now on.
    ///
    /// # Errors
    /// When the queue cannot be opened.
    pub fn reader(&self, after: u64, except: Option<User>, lifetime: Duration) -> Result<BusReader, Error> {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        let path = self.path(QUEUE);
        // Where `after` is no message's id, the mark before it is near enough.
        let mark = self.record.marks.iter().rev().find(|(_, id)| *id <= after).map_or(0, |(_, id)| *id);
        let start = mark.max(self.record.dead_up_to(lifetime));
        let mut queue = match Reader::open(&path, start) {
            Err(error) if matches!(error.kind(), NotFound | UnexpectedEof | InvalidData) => {
                // Who writes makes or mends it.
                Writer::open(&path)?;
                Reader::open(&path, start)?
            }
            other => other?,
        };
        let mut after = after;
        if after > queue.position() {
            queue.resume(after)?;
            if queue.position() != after {
                // No message ends there. Only a writer knows where the last one does: half of one may follow it.
                after = after.min(self.end()?);
                queue.resume(after)?;
            }
        }
        Ok(BusReader { path, queue, after, except, lifetime, wake: None, may_have_more: true })
    }

    /// Has a reader woken by each message from now on. False where `most` readers wait already.
    ///
    /// On a file system without FIFOs he is not, and has to look by himself.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn wake(&self, reader: &mut BusReader, most: u64) -> Result<bool, Error> {
        let wakes = self.path(WAKES);
        make_dir(&wakes)?;
        // Leftovers are only told apart when there are many.
        let count = std::fs::read_dir(&wakes)?.count() as u64;
        if count >= most && self.waiting()? >= most {
            return Ok(false);
        }
        let place = wakes.join(hex::random(8)?);
        let mut beside = place.clone().into_os_string();
        beside.push(BESIDE);
        reader.may_have_more = true;
        reader.wake = Wake::make(&place, Path::new(&beside)).map(|wake| OwnWake { wake, place });
        Ok(true)
    }

    /// How many readers wait. What killed ones have left is removed.
    fn waiting(&self) -> Result<u64, Error> {
        let mut waiting = 0;
        for entry in entries(&self.path(WAKES))? {
            if is_beside(&entry) {
                // They are made under the lock, which is ours now.
                remove_file(&entry.path())?;
            } else {
                // One that cannot be looked for counts as there.
                let knock = Knock::at_or_remove(&entry.path()).inspect_err(|_| waiting += 1);
                if let Ok(knock) = knock {
                    waiting += u64::from(knock.is_heard());
                    knock.cancel();
                }
            }
        }
        Ok(waiting)
    }

    // ---- the sweep

    /// Removes what is dead: messages, users who have not been seen for `user_lifetime`, and what killed readers left.
    ///
    /// # Errors
    /// The first thing that cannot be removed; a later sweep tries again.
    pub fn tidy(&mut self, lifetime: Duration, user_lifetime: Duration) -> Result<(), Error> {
        self.waiting()?;
        for entry in entries(&self.path(USERS))? {
            if entry.metadata()?.modified()?.elapsed().is_ok_and(|unseen| unseen > user_lifetime) {
                remove_file(&entry.path())?;
            }
        }
        if self.last_message()?.is_some() {
            let queue = Writer::open(&self.path(QUEUE))?;
            // The last messages are dead a lifetime after the mark that says they were the last. A quiet bus is not
            // written to for that.
            let last = self.record.marks.last().map_or(0, |(_, id)| *id);
            if queue.end() > last && queue.end() > queue.base() && self.record.mark(queue.end(), lifetime) {
                let touched = self.touched()?;
                self.folder.write(&self.record)?;
                self.folder.touch_at(touched)?;
            }
            self.compact(queue, 1, lifetime)?;
        }
        Ok(())
    }

    /// Everything but the record and its folder.
    fn clear(&self) -> Result<(), Error> {
        for name in [QUEUE, QUEUE_BESIDE] {
            remove_file(&self.path(name))?;
        }
        for name in [WAKES, USERS] {
            match std::fs::remove_dir_all(self.path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the bus.
    ///
    /// # Errors
    /// When something cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        self.clear()?;
        self.folder.remove()
    }
}

/// What is in a folder; nothing where there is none.
fn entries(path: &Path) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_beside(entry: &DirEntry) -> bool {
    entry.file_name().to_str().is_none_or(|name| name.ends_with(BESIDE))
}

#[derive(Serialize, Deserialize)]
struct UserRecord {
    key: String,
    /// The number of the last signed post.
    last: u64,
}

/// What is kept of a registered user.
pub struct Registered {
    file: File,
    record: UserRecord,
}

impl Registered {
    /// What he signs with.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.record.key
    }

    /// The number of his last post; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.record.last
    }

    /// Notes the number of a post. It also counts as his last use.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_last(&mut self, last: u64) -> Result<(), Error> {
        self.record.last = last;
        self.write()
    }

    fn write(&self) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
        bytes.resize(USER_SIZE - 1, b' ');
        bytes.push(b'\n');
        Ok(write_in_place(&self.file, &bytes)?)
    }

    /// When he was seen last, as far as it was worth a [note](Self::touch).
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn touched(&self) -> Result<SystemTime, Error> {
        Ok(self.file.metadata()?.modified()?)
    }

    /// Makes him count as seen now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn touch(&self) -> Result<(), Error> {
        Ok(self.file.set_modified(SystemTime::now())?)
    }
}

/// Wakes all who wait at a bus when it is dropped.
#[must_use]
pub struct Bell(PathBuf);

impl Drop for Bell {
    fn drop(&mut self) {
        // Who cannot be woken looks by himself within seconds.
        for entry in entries(&self.0).unwrap_or_default() {
            if !is_beside(&entry) {
                drop(Knock::at_or_remove(&entry.path()));
            }
        }
    }
}

/// A FIFO under a name that nobody else has, removed when its reader goes.
struct OwnWake {
    wake: Wake,
    place: PathBuf,
}

impl Drop for OwnWake {
    fn drop(&mut self) {
        let _ = remove_file(&self.place);
    }
}

/// A message on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number: larger than those of all messages before it.
    pub id: u64,
    /// Who has posted it.
    pub user: u64,
    /// What he posted: a JSON value in one line.
    pub data: &'a str,
}

/// Reads a bus, without its lock.
pub struct BusReader {
    path: PathBuf,
    queue: Reader,
    /// The last id that was read, or asked for.
    after: u64,
    except: Option<User>,
    lifetime: Duration,
    wake: Option<OwnWake>,
    /// Whether it is worth looking: after a knock, now and then, and until nothing is found.
    may_have_more: bool,
}

impl BusReader {
    /// Gives the next messages to `take`; false when there are no more than these for now. What is dead, or the user's
    /// own, is not given.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn next(&mut self, mut take: impl FnMut(Message<'_>)) -> Result<bool, Error> {
        // Whoever posts knocks; without that it is looked for every time.
        if self.is_surely_woken() && !self.may_have_more {
            return Ok(false);
        }
        let Self { queue, after, except, lifetime, .. } = self;
        self.may_have_more = queue.read(|record| {
            let Ok(user) = record.event.parse() else { return };
            // What was read already comes again where a stranger has cut the queue off.
            if record.id > *after {
                *after = record.id;
                if Some(User(user)) != *except && !has_passed(record.time, *lifetime) {
                    take(Message { id: record.id, user, data: record.data });
                }
            }
        })?;
        Ok(self.may_have_more)
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.after
    }

    /// What becomes readable when something was posted.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(|own| own.wake.fd())
    }

    /// Whether every message is sure to make [`BusReader::fd`] readable.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.wake.as_ref().is_some_and(|own| own.wake.is_sure())
    }

    /// To be called when [`BusReader::fd`] was readable, and from time to time where it may not be, before looking for
    /// messages.
    pub fn hear(&mut self) {
        self.may_have_more = true;
        if let Some(own) = &self.wake {
            own.wake.hear();
        }
    }

    /// Whether it has no FIFO, because none could be made: it is worth another try.
    #[must_use]
    pub fn lacks_wake(&self) -> bool {
        self.wake.is_none()
    }

    /// Whether somebody has removed its FIFO, or the whole bus; and whether there is something that nobody has knocked for.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_lost_wake(&mut self) -> Result<bool, Error> {
        // A poster may have been killed before he knocked.
        self.may_have_more |= self.queue.has_more()?;
        match &self.wake {
            Some(own) => own.wake.is_lost(&own.place),
            None => Ok(identity_at(&self.path)?.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    const MINUTE: Duration = Duration::from_secs(60);
    const MOST: u64 = 1 << 20;

    fn name(text: &str) -> BusName {
        BusName::new(text).unwrap()
    }

    fn bus(store: &Files) -> Bus {
        store.bus_or_new(&name("b"), false, 10).unwrap().unwrap().0
    }

    fn post(bus: &mut Bus, data: &str, lifetime: Duration) -> u64 {
        bus.post(User(2), data, MOST, lifetime).unwrap().0
    }

    fn read(bus: &Bus, after: u64, lifetime: Duration) -> Vec<(u64, String)> {
        let mut reader = bus.reader(after, None, lifetime).unwrap();
        let mut all = Vec::new();
        while reader.next(|message| all.push((message.id, message.data.to_owned()))).unwrap() {}
        all
    }

    #[test]
    fn a_name_cannot_be_a_path() {
        for text in ["a/b", "/", "a\nb", "\0", &"x".repeat(257)] {
            assert_eq!(BusName::new(text), None, "{text:?}");
        }
        for text in ["", ".", "..", "ü", &"x".repeat(256)] {
            assert!(BusName::new(text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn any_number_is_read_from_and_means_everything_behind_it() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let ids: Vec<u64> = (0..20).map(|n| post(&mut bus, &n.to_string(), MINUTE)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        for after in [0, ids[0] - 1].into_iter().chain(ids[0]..=ids[19] + 1).chain([u64::MAX]) {
            let expected: Vec<u64> = ids.iter().copied().filter(|id| *id > after).collect();
            let read: Vec<u64> = read(&bus, after, MINUTE).into_iter().map(|(id, _)| id).collect();
            assert_eq!(read, expected, "{after}");
        }
    }

    #[test]
    fn an_id_that_no_message_has_reached_means_from_now_on() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        for is_torn in [false, true] {
            let newest = post(&mut bus, "0", MINUTE);
            if is_torn {
                // Half a record of a killed writer, which the next one cuts off.
                let torn = OpenOptions::new().append(true).open(bus.path(QUEUE)).unwrap();
                rustix::io::write(&torn, b"1763700000123 2 \"half of a message that was longer than what comes")
                    .unwrap();
            }
            let mut readers: Vec<_> =
                [newest, newest + 1, newest + 40, newest + 100, 999_999_999_999_999_999, u64::MAX]
                    .map(|after| (after, bus.reader(after, None, MINUTE).unwrap()))
                    .into();
            let id = post(&mut bus, "1", MINUTE);
            for (after, reader) in &mut readers {
                let mut heard = Vec::new();
                while reader.next(|message| heard.push(message.id)).unwrap() {}
                assert_eq!(heard, [id], "{after}, torn: {is_torn}");
            }
        }
    }

    #[test]
    fn the_dead_are_neither_read_nor_kept() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let lifetime = Duration::from_millis(400);
        let long = format!("\"{}\"", "x".repeat(10_000));
        let first = post(&mut bus, &long, lifetime);
        for _ in 0..40 {
            post(&mut bus, &long, lifetime);
        }
        std::thread::sleep(lifetime + lifetime / 4);
        assert_eq!(read(&bus, 0, lifetime), []);
        let before = std::fs::metadata(bus.path(QUEUE)).unwrap().len();
        // On a machine that is slow it may die before it is read.
        let id = loop {
            let (start, id) = (std::time::Instant::now(), post(&mut bus, "1", lifetime));
            let heard = [read(&bus, 0, lifetime), read(&bus, first, lifetime)];
            if start.elapsed() < lifetime / 2 {
                for heard in heard {
                    assert_eq!(heard.last(), Some(&(id, "1".to_owned())));
                    assert!(heard.iter().all(|(_, data)| data == "1"));
                }
                break id;
            }
        };
        let mut rounds = 0;
        while std::fs::metadata(bus.path(QUEUE)).unwrap().len() >= before {
            std::thread::sleep(lifetime / 2);
            bus.tidy(lifetime, MINUTE).unwrap();
            rounds += 1;
            assert!(rounds < 100, "the sweep leaves the dead on the disk");
        }
        assert!(post(&mut bus, "3", lifetime) > id);
    }

    #[test]
    fn a_bus_that_is_quiet_keeps_nothing() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let lifetime = Duration::from_millis(50);
        let id = post(&mut bus, &"1".repeat(1000), lifetime);
        for _ in 0..3 {
            std::thread::sleep(lifetime + lifetime / 2);
            bus.tidy(lifetime, MINUTE).unwrap();
        }
        assert!(std::fs::metadata(bus.path(QUEUE)).unwrap().len() < 100);
        assert_eq!(bus.end().unwrap(), id);
    }

    #[test]
    fn a_reader_of_a_compacted_queue_misses_nothing() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let lifetime = Duration::from_millis(100);
        let long = format!("\"{}\"", "x".repeat(10_000));
        let mut reader = bus.reader(0, None, MINUTE).unwrap();
        let (mut posted, mut got) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            posted.push(post(&mut bus, &long, lifetime));
            while reader.next(|message| got.push(message.id)).unwrap() {}
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(got, posted);
        assert!(std::fs::metadata(bus.path(QUEUE)).unwrap().len() < 200 * 10_000, "it never was compacted");
    }

    #[test]
    fn marks_stay_few() {
        let mut record = BusRecord::default();
        for id in 0..2000 {
            record.mark(id, Duration::from_millis(64));
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!((2..=12).contains(&record.marks.len()), "{}", record.marks.len());
        assert!(record.marks.is_sorted());
    }

    #[test]
    fn a_number_belongs_to_the_bus_that_gave_it_out_and_never_comes_again() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut first = bus(&store);
        let plain = first.new_user().unwrap();
        let (registered, key) = first.register(1).unwrap().unwrap();
        assert!(!plain.is_registered() && registered.is_registered() && key.len() == 64);
        assert!(first.register(1).unwrap().is_none());
        assert!(first.knows(plain).unwrap() && first.knows(registered).unwrap());
        for stranger in [0, 1, plain.0 - 2, plain.0 + 2, registered.0 + 2, u64::MAX, u64::MAX - 1] {
            assert!(!first.knows(User(stranger)).unwrap(), "{stranger}");
        }
        let id = post(&mut first, "1", MINUTE);
        first.remove().unwrap();
        assert!(store.bus(&name("b")).unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
        let mut second = bus(&store);
        assert!(!second.knows(plain).unwrap() && !second.knows(registered).unwrap());
        assert!(second.new_user().unwrap().0 > registered.0);
        assert!(post(&mut second, "1", MINUTE) > id);
        assert!(second.new_user().unwrap().0 < 1 << 53);
    }

    #[test]
    fn a_full_bus_refuses_until_its_messages_die() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let lifetime = Duration::from_secs(1);
        let start = std::time::Instant::now();
        while bus.post(User(2), "1", 200, lifetime).is_ok() {}
        while let Err(error) = bus.post(User(2), "1", 200, lifetime) {
            assert!(matches!(error, Error::QueueFull(_)));
            assert!(start.elapsed() < MINUTE);
            std::thread::sleep(lifetime / 10);
        }
        assert!(start.elapsed() >= lifetime);
    }

    #[test]
    fn the_last_quarter_of_a_bus_is_for_those_who_have_said_little() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let (crowder, other, long) = (User(2), User(4), format!("\"{}\"", "x".repeat(1000)));
        let mut posted = 0;
        while !bus.is_crowded_by(crowder, MOST, MINUTE).unwrap() {
            drop(bus.post(crowder, &long, MOST, MINUTE).unwrap());
            posted += long.len() as u64;
        }
        assert!((MOST / 10 * 7..MOST / 4 * 3 + 2000).contains(&posted), "{posted}");
        // The others have it, each as little as anybody.
        let mut others = 0;
        while !bus.is_crowded_by(other, MOST, MINUTE).unwrap() {
            drop(bus.post(other, &long, MOST, MINUTE).unwrap());
            others += long.len() as u64;
        }
        assert!((LATEST / 5..LATEST / 3).contains(&others), "{others}");
        assert!(!bus.is_crowded_by(User(6), MOST, MINUTE).unwrap());
        assert!(!bus.is_crowded_by(crowder, 2 * MOST, MINUTE).unwrap());
    }

    #[test]
    fn a_leftover_does_not_count_as_a_reader() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut bus = bus(&store);
        let mut readers: Vec<_> = (0..3).map(|_| bus.reader(0, None, MINUTE).unwrap()).collect();
        assert!(bus.wake(&mut readers[0], 2).unwrap() && bus.wake(&mut readers[1], 2).unwrap());
        assert!(!bus.wake(&mut readers[2], 2).unwrap());
        // As if it was killed: the FIFO stays, and nobody has it open.
        let place = readers[0].wake.as_ref().unwrap().place.clone();
        readers.remove(0);
        let leave =
            || rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0);
        leave().unwrap();
        assert!(bus.wake(&mut readers[1], 2).unwrap());
        assert!(!place.exists());

        leave().unwrap();
        drop(bus.post(User(2), "1", MOST, MINUTE).unwrap());
        assert!(!place.exists(), "whoever posts removes it too");
        for reader in &mut readers {
            reader.may_have_more = false;
            let knock = [PollFd::from_borrowed_fd(reader.fd().unwrap(), PollFlags::IN)];
            assert_eq!(poll(&mut knock.clone(), Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
            reader.hear();
            assert!(reader.may_have_more);
        }
        drop(readers);
        assert_eq!(std::fs::read_dir(bus.path(WAKES)).unwrap().count(), 0);
    }
}
