//! Files that are kept open between two uses. Where one process serves many, the same few files are wanted again and again,
//! and to open and close them is most of what that costs.

use super::{Error, FileIdentity, identity};
use crate::clock::now_ms;
use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Only where there is somebody who [closes](Kept::close_unused) what is not used any more.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// How many of each kind are kept at most, and when (ms since 1970) that was seen last.
static MOST: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

/// For so long (ms) it holds, as whatever else is looked at for each request.
const HOLDS: u64 = 20;

/// Whether what was seen then need not be looked at again.
pub(super) fn holds(seen: Instant) -> bool {
    seen.elapsed() < Duration::from_millis(HOLDS)
}

/// A program for one request has none of the code for it.
pub(super) fn is_on() -> bool {
    cfg!(feature = "serve") && IS_ON.load(Ordering::Relaxed)
}

/// Has files kept from now on.
pub(super) fn keep_files() {
    IS_ON.store(true, Ordering::Relaxed);
}

/// How many of each kind are kept at most: few where there are few descriptors, which clients need more. Their limit may change.
fn most() -> usize {
    let now = now_ms();
    if now.abs_diff(SEEN.load(Ordering::Relaxed)) > HOLDS {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        MOST.store(usize::try_from(limit / 64).unwrap_or(usize::MAX).min(64), Ordering::Relaxed);
        SEEN.store(now, Ordering::Relaxed);
    }
    MOST.load(Ordering::Relaxed)
}

/// What is open and in nobody's hands: whoever takes it has it alone, so that a lock of it is as good as that of a file
/// opened anew.
pub(super) struct Kept<T>(Mutex<BTreeMap<PathBuf, (T, bool)>>);

impl<T> Kept<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, (T, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of the file at `path`, which may not be the one that stands there any more.
    pub fn take(&self, path: &Path) -> Option<T> {
        is_on().then(|| self.lock().remove(path))?.map(|(kept, _)| kept)
    }

    /// Looks at what is kept of the file at `path`, which stays.
    pub fn see<R>(&self, path: &Path, look: impl FnOnce(&T) -> R) -> Option<R> {
        let mut kept = is_on().then(|| self.lock())?;
        let (kept, is_used) = kept.get_mut(path)?;
        *is_used = true;
        Some(look(kept))
    }

    /// Keeps it for the next one that comes.
    pub fn keep(&self, path: &Path, file: T) {
        if is_on() {
            let mut kept = self.lock();
            if kept.len() < most() {
                kept.insert(path.to_owned(), (file, true));
            }
        }
    }

    /// Closes what nobody has used since this was called last: what was removed takes its room on the disk until then.
    pub fn close_unused(&self) {
        self.lock().retain(|_, (_, is_used)| std::mem::take(is_used));
    }
}

impl Kept<Box<dyn Any + Send>> {
    /// The same of whoever has kept one of these.
    pub fn take_as<T: Any>(&self, path: &Path) -> Option<T> {
        self.take(path)?.downcast().ok().map(|kept| *kept)
    }
}

/// A file that is open.
#[derive(Clone)]
pub(super) struct Opened {
    pub file: Arc<File>,
    pub identity: FileIdentity,
}

impl Opened {
    /// And its size.
    pub fn of(file: File) -> io::Result<(Self, u64)> {
        let metadata = file.metadata()?;
        Ok((Self { identity: identity(&metadata), file: Arc::new(file) }, metadata.len()))
    }
}

/// The records and tables that were used last. None of them is locked.
pub(super) static FILES: Kept<Opened> = Kept::new();

/// What was read of files that are as they were then, each as its reader has it, and by its path.
pub(super) static READ: Kept<Box<dyn Any + Send>> = Kept::new();

/// What was looked at, and when.
static LOOKED_AT: Kept<Instant> = Kept::new();

/// Looks at `path`, or knows that it was as it should be a moment ago.
pub(super) fn look_again(path: &Path, look: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    if LOOKED_AT.see(path, |at| holds(*at)) == Some(true) {
        return Ok(());
    }
    look()?;
    LOOKED_AT.keep(path, Instant::now());
    Ok(())
}

/// Closes and forgets what nobody has used since this was called last.
pub(super) fn close_unused() {
    FILES.close_unused();
    READ.close_unused();
    LOOKED_AT.close_unused();
}
