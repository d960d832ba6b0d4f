//! A folder that is only touched under its lock.
//!
//! The lock is an `flock` on the folder's record, a small JSON file. Making the record its own lock saves a file for
//! every session, which is half the price of a registration. The record is overwritten in place, with a single write of
//! constant size: a killed process has done all of it or nothing.
//!
//! A folder can vanish between opening its record and getting the lock, because a sweep had the lock first. So whoever
//! gets it looks whether the path still means the file that it has locked, and starts over if not. Nobody ever works on a
//! folder that is gone, and a sweep may remove a folder that others are about to lock.

use super::kept::{FILES, Opened};
use super::{Error, identity, if_there, make_dir, modified, read_small, remove_dir, remove_file};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The record's file name.
const RECORD: &str = "session.json";

/// The size of every record on disk; what JSON does not need is white space.
const RECORD_SIZE: usize = 1024;

/// How long to wait for a lock, and how long to sleep between two tries: as long as a lock is usually held, and no longer
/// than a disk takes. Who sleeps longer comes too late again and again where many want the same lock.
const LOCK_TIME: Duration = Duration::from_secs(10);
const SHORTEST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_micros(250);

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// In a folder, under the name `session.json`. The folder is what is locked.
    Folder,
    /// Under the path itself. What belongs to it stands beside it, under longer names: until there is something, it is one
    /// file.
    File,
}

impl Shape {
    fn record(self, path: &Path) -> PathBuf {
        match self {
            Self::Folder => path.join(RECORD),
            Self::File => path.to_owned(),
        }
    }
}

/// A locked folder, or what stands for one, with its record. Dropping it releases the lock.
pub struct Folder<R> {
    path: PathBuf,
    shape: Shape,
    opened: Opened,
    /// When the record was written or touched last, where it was not by this process since it has the lock.
    touched: Cell<Option<SystemTime>>,
    record: PhantomData<R>,
}

impl<R> Drop for Folder<R> {
    fn drop(&mut self) {
        // Whoever waits for the lock gets it by that. What cannot be unlocked so is by its last end.
        if fs2::FileExt::unlock(&*self.opened.file).is_ok() {
            FILES.keep(&self.shape.record(&self.path), self.opened.clone());
        }
    }
}

/// Whether to wait for a lock that somebody holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Yes,
    No,
}

impl<R> Folder<R> {
    /// Locks what is at `path`; `None` where there is nothing.
    pub(super) fn open(path: &Path, shape: Shape) -> Result<Option<Self>, Error> {
        Ok(Self::lock(path, shape, false, Wait::Yes)?.map(|(folder, _)| folder))
    }

    /// Locks what is at `path`, unless there is nothing or somebody holds its lock.
    pub(super) fn try_open(path: &Path, shape: Shape) -> Result<Option<Self>, Error> {
        Ok(Self::lock(path, shape, false, Wait::No)?.map(|(folder, _)| folder))
    }

    /// The same, with a record made if it is missing.
    pub(super) fn try_open_or_make_record(path: &Path, shape: Shape) -> Result<Option<Self>, Error> {
        Ok(Self::lock(path, shape, true, Wait::No)?.map(|(folder, _)| folder))
    }

    /// Locks what is at `path`, made if it is missing (what is above it must be there), and says whether it was.
    pub(super) fn open_or_make(path: &Path, shape: Shape) -> Result<(Self, bool), Error> {
        loop {
            let is_new_folder = shape == Shape::Folder && make_dir(path)?;
            if let Some((folder, is_new_file)) = Self::lock(path, shape, true, Wait::Yes)? {
                return Ok((folder, if shape == Shape::Folder { is_new_folder } else { is_new_file }));
            }
            if shape == Shape::File {
                return Err(Error::Io(io::ErrorKind::NotFound.into()));
            }
            // A sweep has removed the folder under our feet.
        }
    }

    fn lock(path: &Path, shape: Shape, create: bool, wait: Wait) -> Result<Option<(Self, bool)>, Error> {
        let record = shape.record(path);
        loop {
            let (opened, is_new) = match FILES.take(&record) {
                Some(opened) => (opened, false),
                None => match Self::open_record(&record, create)? {
                    Some((file, is_new)) => (Opened::of(file)?.0, is_new),
                    None => return Ok(None),
                },
            };
            match wait {
                Wait::Yes => lock_in_time(&opened.file, &record)?,
                Wait::No if !try_lock(&opened.file)? => return Ok(None),
                Wait::No => {}
            }
            // By a link, if somebody made one: it is as good as its file.
            let Some(there) = if_there(std::fs::metadata(&record))? else { continue };
            if identity(&there) == opened.identity {
                let touched = Cell::new(there.modified().ok());
                return Ok(Some((Self { path: path.to_owned(), shape, opened, touched, record: PhantomData }, is_new)));
            }
        }
    }

    /// The record's file, and whether it is new; `None` where there is none.
    fn open_record(record: &Path, create: bool) -> io::Result<Option<(File, bool)>> {
        use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, NotFound};
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        loop {
            let opened = if create { options.clone().create_new(true).open(record) } else { options.open(record) };
            return match opened {
                Ok(file) => Ok(Some((file, create))),
                Err(error) if create && error.kind() == AlreadyExists => match if_there(options.open(record))? {
                    Some(file) => Ok(Some((file, false))),
                    // Somebody has just removed it.
                    None => continue,
                },
                Err(error) if error.kind() == NotFound => Ok(None),
                // A stranger's file where a folder should be, or a folder where a file should be, is neither.
                Err(error) if !create && matches!(error.kind(), NotADirectory | IsADirectory) => Ok(None),
                Err(error) => Err(error),
            };
        }
    }

    /// When the record was written or [touched](Self::touch) last.
    pub(super) fn touched(&self) -> Result<SystemTime, Error> {
        if let Some(touched) = self.touched.get() {
            return Ok(touched);
        }
        Ok(self.opened.file.metadata()?.modified()?)
    }

    /// The same without the lock; `None` where there is nothing at `path`.
    pub(super) fn touched_at(path: &Path, shape: Shape) -> Result<Option<SystemTime>, Error> {
        modified(&shape.record(path))
    }

    /// Makes the folder count as used now.
    pub(super) fn touch(&self) -> Result<(), Error> {
        self.touched.set(None);
        Ok(self.opened.file.set_modified(SystemTime::now())?)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where something that belongs to it stands.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        match self.shape {
            Shape::Folder => self.path.join(name),
            Shape::File => beside(&self.path, name),
        }
    }

    /// Removes the record, and the folder, which must be empty otherwise. Somebody who has made a new record in it in
    /// between keeps it.
    pub(super) fn remove(self) -> Result<(), Error> {
        remove_file(&self.shape.record(&self.path))?;
        if self.shape == Shape::Folder {
            remove_dir(&self.path)?;
        }
        Ok(())
    }
}

impl<R: Serialize + DeserializeOwned> Folder<R> {
    /// The record; `None` where it has never been written, or is damaged (which the log tells).
    pub(super) fn read(&self) -> Result<Option<R>, Error> {
        let bytes = read_small(&self.opened.file)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let record = serde_json::from_slice(&bytes);
        if record.is_err() {
            say!("uhst-relay: a record is damaged and counts as missing: {}", self.path.display());
        }
        Ok(record.ok())
    }

    /// Writes the record.
    pub(super) fn write(&self, record: &R) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
        let size = bytes.len().max(RECORD_SIZE).next_multiple_of(RECORD_SIZE);
        bytes.resize(size - 1, b' ');
        bytes.push(b'\n');
        self.touched.set(None);
        write_in_place(&self.opened.file, &bytes)?;
        Ok(())
    }
}

/// Where something stands that belongs to the record at `path`.
pub(super) fn beside(path: &Path, name: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".");
    path.push(name);
    path.into()
}

/// Removes what stands under these names beside the record at `path`.
pub(super) fn remove_beside(path: &Path, names: &[&str]) -> Result<(), Error> {
    for name in names {
        remove_file(&beside(path, name))?;
    }
    Ok(())
}

/// Whether somebody holds the lock of a file. A shared lock is tried, so that two who ask at once do not take each other
/// for the holder.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    Ok(!is_taken(fs2::FileExt::try_lock_shared(file))?)
}

/// Waits for the lock of the file at `path`, but not forever. Locks are held for microseconds, and the kernel lets go of a
/// killed holder's; one that is stopped (by a debugger, a frozen container, a suspended file server) must not take everybody
/// else with it.
pub(super) fn lock_in_time(file: &File, path: &Path) -> Result<(), Error> {
    if try_lock(file)? {
        return Ok(());
    }
    crate::workers::blocking(|| {
        let until = Instant::now() + LOCK_TIME;
        let _permit = Permit::wait(path, until)?;
        let mut pause = SHORTEST_PAUSE;
        while !try_lock(file)? {
            if Instant::now() > until {
                return Err(Error::Busy);
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        Ok(())
    })
}

/// Takes a lock that nobody holds.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    is_taken(fs2::FileExt::try_lock_exclusive(file))
}

fn is_taken(tried: io::Result<()>) -> io::Result<bool> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => other.map(|()| true),
    }
}

/// Leave to try a lock again and again. Only a few threads of a process have it at a time, for each lock: hundreds would
/// need all the time there is for their tries, and leave none to the holder. The others sleep, and are called in turn.
struct Permit<'a>(&'a Path);

/// How many threads have a permit for a lock, and what those sleep on that wait for one.
#[derive(Default)]
struct LockQueue {
    permitted: usize,
    waiting: VecDeque<Arc<Condvar>>,
}

type LockQueues = BTreeMap<PathBuf, LockQueue>;

static QUEUES: Mutex<LockQueues> = Mutex::new(BTreeMap::new());

fn queues() -> MutexGuard<'static, LockQueues> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Permit<'a> {
    const MOST: usize = 4;

    fn wait(path: &'a Path, until: Instant) -> Result<Self, Error> {
        let mut queues = queues();
        let queue = queues.entry(path.to_owned()).or_default();
        if queue.permitted < Self::MOST {
            queue.permitted += 1;
            return Ok(Self(path));
        }
        let own = Arc::new(Condvar::new());
        queue.waiting.push_back(Arc::clone(&own));
        // Whoever leaves its permit to this thread takes it out of the queue.
        let is_own = |other: &Arc<Condvar>| Arc::ptr_eq(other, &own);
        let waits = |queues: &mut LockQueues| queues.get(path).is_some_and(|queue| queue.waiting.iter().any(is_own));
        let left = until.saturating_duration_since(Instant::now());
        let (mut queues, waited) = own.wait_timeout_while(queues, left, waits).unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() {
            return Ok(Self(path));
        }
        if let Some(queue) = queues.get_mut(path) {
            queue.waiting.retain(|other| !is_own(other));
        }
        Err(Error::Busy)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut queues = queues();
        let Some(queue) = queues.get_mut(self.0) else { return };
        if let Some(next) = queue.waiting.pop_front() {
            // It has the permit now.
            next.notify_one();
        } else {
            queue.permitted -= 1;
            if queue.permitted == 0 {
                queues.remove(self.0);
            }
        }
    }
}

/// Overwrites the beginning of a file with one write. A longer old content is cut to the new size afterwards: both ends
/// of that are JSON and white space, so a reader in between is not misled.
pub(super) fn write_in_place(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;

    #[test]
    fn a_record_is_what_was_written() {
        let dir = TestDir::new();
        let path = dir.join("folder");
        let (folder, _) = Folder::<String>::open_or_make(&path, Shape::Folder).unwrap();
        assert_eq!(folder.read().unwrap(), None);
        for text in ["a", &"long".repeat(1000), "b"] {
            folder.write(&text.to_owned()).unwrap();
            assert_eq!(folder.read().unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn a_damaged_record_counts_as_missing() {
        let dir = TestDir::new();
        let path = dir.join("folder");
        Folder::<String>::open_or_make(&path, Shape::Folder).unwrap();
        std::fs::write(path.join(RECORD), "\"half").unwrap();
        assert_eq!(Folder::<String>::open(&path, Shape::Folder).unwrap().unwrap().read().unwrap(), None);
    }

    #[test]
    fn hundreds_who_want_the_same_lock_get_it_one_after_the_other() {
        let dir = TestDir::new();
        let path = dir.join("folder");
        Folder::<u32>::open_or_make(&path, Shape::Folder).unwrap().0.write(&0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..300 {
                scope.spawn(|| {
                    let folder = Folder::<u32>::open(&path, Shape::Folder).unwrap().unwrap();
                    let count = folder.read().unwrap().unwrap();
                    folder.write(&(count + 1)).unwrap();
                });
            }
        });
        assert_eq!(Folder::<u32>::open(&path, Shape::Folder).unwrap().unwrap().read().unwrap(), Some(300));
        assert!(!queues().contains_key(&path.join(RECORD)), "nothing is left of those who waited");
    }

    #[test]
    fn who_waits_for_a_seat_in_vain_is_told_in_time_and_leaves_no_trace() {
        let path = Path::new("a lock");
        let permits: Vec<_> = (0..Permit::MOST).map(|_| Permit::wait(path, Instant::now()).unwrap()).collect();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(Permit::wait(path, soon), Err(Error::Busy)));
        drop(permits);
        assert!(!queues().contains_key(path));
    }

    #[test]
    fn whoever_waits_for_a_folder_that_is_removed_does_not_get_it() {
        let dir = TestDir::new();
        let path = dir.join("folder");
        let (folder, _) = Folder::<String>::open_or_make(&path, Shape::Folder).unwrap();
        assert!(Folder::<String>::try_open(&path, Shape::Folder).unwrap().is_none());
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || Folder::<String>::open(&path, Shape::Folder).unwrap().is_none())
        };
        let making = {
            let path = path.clone();
            std::thread::spawn(move || {
                Folder::<String>::open_or_make(&path, Shape::Folder).unwrap().0.path.join(RECORD).exists()
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        folder.remove().unwrap();
        // The maker may have made a new folder before the waiter looked; either way what it holds is really there.
        let _ = waiting.join().unwrap();
        assert!(making.join().unwrap());
    }
}
