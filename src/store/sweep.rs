//! The sweep: a little of it after many an answer, so that no request waits for it and its cost does not grow with the
//! number of sessions.
//!
//! Everything is spread over 256 shards. Whoever finds the sweep due takes as many shards as are due by then; nobody
//! waits for a sweep that somebody else is doing, and what is in use is left for the next round.

use super::backlog::LockedBacklog;
use super::bus::Bus;
use super::duplex::Duplex;
use super::folder::Folder;
use super::session::Session;
use super::shelf::Kind;
use super::{Error, Store, private_file, read_small};
use fs2::FileExt as _;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const SHARDS: u64 = super::shelf::SHARDS as u64;

/// No shorter than this between two sweeps.
const PAUSE: Duration = Duration::from_millis(250);

/// No more shards at once than this: with 10,000 hosts a millisecond each.
const MOST_AT_ONCE: u64 = 32;

#[derive(Default, Serialize, Deserialize)]
struct Cursor {
    /// The next shard.
    shard: u8,
}

/// What a sweep has come upon, locked.
pub enum Found {
    /// A host with its clients.
    Session(Session),
    /// A broadcast bus.
    Bus(Bus),
    /// Two parties with a pipe each way.
    Duplex(Duplex),
    /// The requests of a server of PTTH.
    Backlog(LockedBacklog),
}

impl Found {
    /// `None` where it is gone or in use.
    fn lock(kind: Kind, path: &Path) -> Result<Option<Self>, Error> {
        Ok(match kind {
            Kind::Hosts => Folder::try_open(path)?.map(Session::read).transpose()?.map(Self::Session),
            Kind::Buses => Folder::try_open(path)?.map(Bus::read).transpose()?.map(Self::Bus),
            // Its requests do without the lock, so they may be there without it.
            Kind::Ptth => {
                Folder::try_open_or_make_record(path)?.map(LockedBacklog::read).transpose()?.map(Self::Backlog)
            }
            Kind::Pipes => Folder::try_open(path)?.map(Duplex::read).transpose()?.map(Self::Duplex),
        })
    }
}

impl Store {
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

    /// Gives what stands in the shards that are due to `look`, such that all shards have their turn in `round`.
    ///
    /// # Errors
    /// The first failure; what is behind it is for the next sweep.
    pub fn sweep_some(&self, round: Duration, look: impl FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
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
        let Cursor { shard } = serde_json::from_slice(&read_small(&file)?).unwrap_or_default();
        let swept = self.sweep_shards(u64::from(shard), due, look);
        let next = Cursor { shard: shard.wrapping_add(u8::try_from(due).unwrap_or(u8::MAX)) };
        let mut bytes = serde_json::to_vec(&next).map_err(io::Error::other)?;
        bytes.resize(31, b' ');
        bytes.push(b'\n');
        super::folder::write_in_place(&file, &bytes)?;
        swept
    }

    /// Gives what stands in all shards to `look`.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep_all(&self, look: impl FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        self.sweep_shards(0, SHARDS, look)
    }

    fn sweep_shards(
        &self,
        first: u64,
        count: u64,
        mut look: impl FnMut(Found) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut outcome = Ok(());
        for number in first..first + count {
            let number = u8::try_from(number % SHARDS).unwrap_or(0);
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
        }
        outcome
    }
}
