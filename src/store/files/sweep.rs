//! The sweep: a little of it after many an answer, so that no request waits for it and its cost does not grow with the
//! number of sessions.
//!
//! Everything is spread over 256 shards. Whoever finds the sweep due takes as many shards as are due by then; nobody
//! waits for a sweep that somebody else is doing, and what is in use is left for the next round.

use super::bus::Bus;
use super::folder::Folder;
use super::pipes::LockedPipes;
use super::requests::LockedRequests;
use super::session::Session;
use super::shelf::Kind;
use super::{Error, Files, private_file, read_small};
use crate::store::Lifetimes;
use fs2::FileExt as _;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// No shorter than this between two sweeps.
const PAUSE: Duration = Duration::from_millis(250);

/// No more shards at once than this: with 10,000 hosts a millisecond each.
const MOST_AT_ONCE: u64 = 32;

/// After so long no further shard is begun: a web server waits for a program that it wants to see ended.
const LONGEST: Duration = Duration::from_millis(20);

#[derive(Default, Serialize, Deserialize)]
struct Cursor {
    /// The next shard.
    shard: u8,
}

/// What a sweep has come upon, locked.
pub(super) enum Found {
    Session(Session),
    Bus(Bus),
    Pipes(LockedPipes),
    Requests(LockedRequests),
}

/// What a protocol sweeps by itself.
pub enum Unswept {
    /// A host with its clients.
    Session(Session),
    /// A broadcast bus.
    Bus(Bus),
}

impl Found {
    /// `None` where it is gone or in use.
    pub(super) fn lock(kind: Kind, path: &Path) -> Result<Option<Self>, Error> {
        Ok(match kind {
            Kind::Hosts => Folder::try_open(path)?.map(Session::read).transpose()?.map(Self::Session),
            Kind::Buses => Folder::try_open(path)?.map(Bus::read).transpose()?.map(Self::Bus),
            // Its requests do without the lock, so they may be there without it.
            Kind::Ptth => {
                Folder::try_open_or_make_record(path)?.map(LockedRequests::read).transpose()?.map(Self::Requests)
            }
            Kind::Pipes => Folder::try_open(path)?.map(LockedPipes::read).transpose()?.map(Self::Pipes),
        })
    }

    /// Whether nobody has used it yet.
    pub(super) fn is_unused(&self) -> Result<bool, Error> {
        match self {
            Self::Session(session) => session.is_unused(),
            Self::Bus(bus) => bus.is_unused(),
            Self::Pipes(pipes) => pipes.is_unused(),
            // No stranger makes one.
            Self::Requests(_) => Ok(false),
        }
    }

    pub(super) fn remove(self) -> Result<(), Error> {
        match self {
            Self::Session(session) => session.remove(),
            Self::Bus(bus) => bus.remove(),
            Self::Pipes(pipes) => pipes.remove(),
            Self::Requests(requests) => requests.remove(),
        }
    }
}

impl Files {
    /// Removes what is dead of it; what a protocol sweeps by itself is given to `look`.
    fn sweep(
        &self,
        found: Found,
        lifetimes: &Lifetimes,
        look: &mut impl FnMut(Unswept) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match found {
            Found::Session(session) => look(Unswept::Session(session)),
            Found::Bus(bus) => look(Unswept::Bus(bus)),
            Found::Pipes(pipes) => pipes.sweep(lifetimes.pipes),
            Found::Requests(requests) => requests.sweep(&*self.ptth_servers()?),
        }
    }

    fn sweep_file(&self) -> PathBuf {
        self.root.join("sweep")
    }

    /// Whether nobody has swept for a while. Costs one look at a file's time.
    #[must_use]
    pub fn sweep_is_due(&self) -> bool {
        match std::fs::metadata(self.sweep_file()).and_then(|metadata| metadata.modified()) {
            // A time in the future is a clock that was set back.
            Ok(last) => last.elapsed().is_ok_and(|elapsed| elapsed >= PAUSE) || last > SystemTime::now() + PAUSE,
            Err(error) => {
                error.kind() == io::ErrorKind::NotFound
                    && Kind::ALL.iter().any(|kind| self.root.join(kind.name()).exists())
            }
        }
    }

    /// Sweeps the shards that are due, such that all have their turn in `round`.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep_some(
        &self,
        round: Duration,
        lifetimes: &Lifetimes,
        mut look: impl FnMut(Unswept) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.sweep_due(round, |found| self.sweep(found, lifetimes, &mut look))
    }

    /// Gives what stands in the shards that are due to `look`.
    fn sweep_due(&self, round: Duration, mut look: impl FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        let file = match private_file(&self.sweep_file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if let Err(error) = file.try_lock_exclusive() {
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error.into()) };
        }
        let elapsed = file.metadata()?.modified()?.elapsed().unwrap_or(PAUSE).max(PAUSE);
        let due = (elapsed.as_secs_f64() / round.as_secs_f64().max(0.001) * 256.0).ceil().clamp(1.0, 256.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=256 above")]
        let due = (due as u64).min(MOST_AT_ONCE);
        // A damaged one is as good as the first.
        let mut cursor: Cursor = serde_json::from_slice(&read_small(&file)?).unwrap_or_default();
        let began = Instant::now();
        let mut outcome = Ok(());
        for _ in 0..due {
            if began.elapsed() >= LONGEST {
                break;
            }
            let number = cursor.shard;
            cursor.shard = number.wrapping_add(1);
            // Before the shard, so that one in which processes are killed does not keep the others from their turn. A full
            // disk may have no room for it; then all the more must be swept.
            let written = write_cursor(&file, &cursor);
            outcome = outcome.and(self.sweep_shard(number, &mut look)).and(written.map_err(Error::from));
        }
        outcome
    }

    /// Sweeps all shards.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep_all(
        &self,
        lifetimes: &Lifetimes,
        mut look: impl FnMut(Unswept) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut outcome = Ok(());
        for number in 0..=u8::MAX {
            let swept = self.sweep_shard(number, &mut |found| self.sweep(found, lifetimes, &mut look));
            outcome = outcome.and(swept);
        }
        outcome
    }

    fn sweep_shard(&self, number: u8, look: &mut impl FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        let mut outcome = Ok(());
        for kind in Kind::ALL {
            let Some(entries) = self.read_shard(kind, number)? else { continue };
            for entry in entries {
                let path = entry?.path();
                // One that cannot be swept does not keep the others from it.
                match Found::lock(kind, &path) {
                    Ok(Some(found)) => outcome = outcome.and(look(found)),
                    // In use, or made by a process that was killed before it wrote the record: then it is empty, and
                    // removing it fails unless nobody is about to use it.
                    Ok(None) => _ = std::fs::remove_dir(&path),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            self.count_shard(kind, number)?;
        }
        outcome
    }
}

fn write_cursor(file: &File, cursor: &Cursor) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(cursor).map_err(io::Error::other)?;
    bytes.resize(31, b' ');
    bytes.push(b'\n');
    super::folder::write_in_place(file, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::test_dir::TestDir;

    /// How many sessions one sweep of a round that is over looks at, if a look takes so long.
    fn looked_at(store: &Files, pause: Duration) -> usize {
        let mut count = 0;
        let swept = store.sweep_due(Duration::from_millis(1), |found| {
            count += 1;
            std::thread::sleep(pause);
            found.remove()?;
            Err(Error::Busy)
        });
        assert!(count == 0 || matches!(swept, Err(Error::Busy)), "{swept:?}");
        count
    }

    #[test]
    fn a_sweep_is_short_and_the_next_one_goes_on_where_it_stopped() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        for number in 0..64 {
            assert!(store.open_or_make::<String>(Kind::Pipes, &number.to_string(), 64).unwrap().is_some());
        }
        let (began, mut looks) = (Instant::now(), 0);
        while looks < 64 {
            // Longer than a sweep may take: no further shard is begun, and in none of them there are more than four.
            let now = looked_at(&store, LONGEST);
            assert!(now <= 4, "{now} sessions");
            looks += now;
            // Now and then nothing can be done: a process that another test starts holds our locks between fork and exec.
            assert!(began.elapsed() < Duration::from_secs(60), "{looks}");
        }
    }
}
