//! The sweep: a little of it after many an answer, so that no request waits for it and its cost does not grow with the
//! number of sessions.
//!
//! Everything is spread over 256 shards. Whoever finds the sweep due takes as many shards as are due by then; nobody
//! waits for a sweep that somebody else is doing, and what is in use is left for the next round.

use super::folder::{Folder, try_lock, write_in_place};
use super::pipes::LockedPipes;
use super::requests::LockedRequests;
use super::session::sweep::remove_unused;
use super::{Error, Files, Kind, if_there, modified, private_file, read_small, remove_dir};
use crate::clock::is_recent;
use crate::store::sessions::Policy;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No shorter than this between two sweeps.
const PAUSE: Duration = Duration::from_millis(250);

/// No more shards at once than this: with 10,000 hosts a millisecond each.
const MOST_AT_ONCE: u128 = 32;

/// After so long no further shard is begun: a web server waits for a program that it wants to see ended.
const LONGEST: Duration = Duration::from_millis(20);

impl Files {
    /// Removes what is dead at `path`.
    fn sweep_one(&self, kind: Kind, path: &Path, policy: &Policy<'_>) -> Result<(), Error> {
        let shape = kind.shape();
        match kind {
            Kind::Hosts => Folder::try_open(path, shape)?.map_or(Ok(()), |folder| self.sweep_session(folder, policy)),
            Kind::Buses => {
                Folder::try_open(path, shape)?.map_or(Ok(()), |folder| self.sweep_bus(folder, policy.settings))
            }
            // Where there is no record to lock, its maker was killed before it wrote one, and the folder is empty: removing
            // it fails unless nobody is about to use it.
            Kind::Pipes => match Folder::try_open(path, shape)? {
                Some(folder) => LockedPipes::read(self, folder)?.sweep(policy.settings.pipe_lifetime),
                None => Ok(remove_dir(path).map(drop)?),
            },
            // Its requests do without the lock, so they may be there without it.
            Kind::Ptth => match Folder::try_open_or_make_record(path, shape)? {
                Some(folder) => LockedRequests::read(self, folder)?.sweep(&*self.ptth_servers()?),
                None => Ok(remove_dir(path).map(drop)?),
            },
        }
    }

    /// Removes what is at `path` if nobody has used it yet, and nobody is using it now. Whether it did.
    pub(super) fn remove_unused(&self, kind: Kind, path: &Path) -> Result<bool, Error> {
        let shape = kind.shape();
        match kind {
            Kind::Hosts => Folder::try_open(path, shape)?.map_or(Ok(false), remove_unused),
            Kind::Buses => Folder::try_open(path, shape)?.map_or(Ok(false), |folder| self.remove_unused_bus(folder)),
            Kind::Pipes => {
                match Folder::try_open(path, shape)?.map(|folder| LockedPipes::read(self, folder)).transpose()? {
                    Some(pipes) if pipes.is_unused()? => pipes.remove().map(|()| true),
                    _ => Ok(false),
                }
            }
            // No stranger makes one.
            Kind::Ptth => Ok(false),
        }
    }

    fn sweep_file(&self) -> PathBuf {
        self.root.join("sweep")
    }

    /// Whether nobody has swept for a while. Costs one look at a file's time.
    #[must_use]
    pub fn sweep_is_due(&self) -> bool {
        match modified(&self.sweep_file()) {
            // A time in the future is a clock that was set back.
            Ok(Some(last)) => !is_recent(last, PAUSE),
            Ok(None) => self.is_used(),
            Err(_) => false,
        }
    }

    /// Sweeps the shards that are due.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep_some(&self, policy: &Policy<'_>) -> Result<(), Error> {
        // Half a lifetime a round: as long as there are requests or streams, nothing dead stays for much longer than one and
        // a half.
        self.sweep_due(policy.settings.session_lifetime / 2, |shard| self.sweep_shard(shard, policy))
    }

    /// Gives the shards that are due to `sweep`, such that all have their turn in `round`.
    fn sweep_due(&self, round: Duration, mut sweep: impl FnMut(u8) -> Result<(), Error>) -> Result<(), Error> {
        if self.check_version().is_err() {
            return Ok(());
        }
        let Some(file) = if_there(private_file(&self.sweep_file()))? else { return Ok(()) };
        if !try_lock(&file)? {
            return Ok(());
        }
        let elapsed = file.metadata()?.modified()?.elapsed().unwrap_or(PAUSE).max(PAUSE);
        let due = (256 * elapsed.as_millis()).div_ceil(round.as_millis().max(1)).clamp(1, MOST_AT_ONCE);
        // The file says which shard is next. One that is damaged says the first.
        let next = String::from_utf8(read_small(&file)?).unwrap_or_default();
        let mut shard: u8 = next.trim().parse().unwrap_or(0);
        let began = Instant::now();
        let mut outcome = Ok(());
        for _ in 0..due {
            if began.elapsed() >= LONGEST {
                break;
            }
            // Before the shard, so that one in which processes are killed does not keep the others from their turn. A full
            // disk may have no room for it; then all the more must be swept.
            let written = write_in_place(&file, format!("{:3}\n", shard.wrapping_add(1)).as_bytes());
            outcome = outcome.and(sweep(shard)).and(written.map_err(Error::from));
            shard = shard.wrapping_add(1);
        }
        outcome
    }

    /// Sweeps all shards.
    ///
    /// # Errors
    /// The first failure.
    pub fn sweep_all(&self, policy: &Policy<'_>) -> Result<(), Error> {
        let mut outcome = Ok(());
        for shard in 0..=u8::MAX {
            outcome = outcome.and(self.sweep_shard(shard, policy));
        }
        outcome
    }

    fn sweep_shard(&self, shard: u8, policy: &Policy<'_>) -> Result<(), Error> {
        // What cannot be swept does not keep the others from it.
        let mut outcome = self.sweep_nodes(shard);
        for kind in Kind::ALL {
            for path in self.read_leftovers(kind, shard)? {
                // With an empty record they are swept as what was never finished.
                outcome = outcome.and(private_file(&path).map(drop).map_err(Error::from));
            }
            for path in self.read_shard(kind, shard)? {
                outcome = outcome.and(self.sweep_one(kind, &path, policy));
            }
            self.count_shard(kind, shard)?;
        }
        outcome.and(self.count_sizes(shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::names;
    use crate::store::files::test_dir::TestDir;
    use std::fs::File;
    use std::time::SystemTime;

    /// How many shards one sweep of a round that is over looks at, if a look takes so long.
    fn looked_at(store: &Files, pause: Duration) -> usize {
        let mut count = 0;
        let swept = store.sweep_due(Duration::from_millis(1), |_| {
            count += 1;
            std::thread::sleep(pause);
            Err(Error::Busy)
        });
        assert!(count == 0 || matches!(swept, Err(Error::Busy)), "{swept:?}");
        count
    }

    #[test]
    fn what_belongs_to_nothing_is_removed_and_garbage_keeps_nothing_from_it() {
        use crate::store::sessions::Claim;
        use crate::token::{ClientId, HostId};
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let settings =
            crate::config::Settings { session_lifetime: Duration::ZERO, ..crate::config::Settings::default() };
        let policy = crate::protocol::uhst::policy(&settings);
        let lasting = crate::config::Settings::default();
        let lasting = crate::protocol::uhst::policy(&lasting);
        let record = |id: &str| {
            let host = HostId::new(id).unwrap();
            store.register(&host, "one", Claim::Drawn, &lasting).unwrap();
            store.join(&host, &ClientId::new("c").unwrap(), &lasting).unwrap();
            store.folder(Kind::Hosts, id)
        };
        let all = || {
            names(&dir.join("data/hosts"))
                .unwrap()
                .iter()
                .map(|shard| names(&dir.join("data/hosts").join(shard)).unwrap_or_default().len())
                .sum::<usize>()
        };
        let (removed, garbage) = (record("removed"), record("garbage"));
        std::fs::remove_file(&removed).unwrap();
        std::fs::write(super::super::folder::beside(&garbage, "host"), [b'x'; 100]).unwrap();
        std::fs::write(removed.with_file_name("a stranger's.file"), "").unwrap();
        store.sweep_all(&policy).unwrap();
        // It may be that somebody was about to register it.
        File::options().write(true).open(&removed).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        store.sweep_all(&policy).unwrap();
        assert_eq!(all(), 1, "the stranger's");
    }

    #[test]
    fn a_sweep_is_short_and_the_next_one_goes_on_where_it_stopped() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        assert!(store.open_or_make::<String>(Kind::Pipes, "1", 64).unwrap().is_some());
        let (began, mut looks) = (Instant::now(), 0);
        while looks < 300 {
            // Longer than a sweep may take: no further shard is begun.
            let now = looked_at(&store, Duration::ZERO).min(usize::from(looked_at(&store, LONGEST) <= 1) * 32);
            assert!(now <= 32, "{now} shards");
            looks += now;
            // Now and then nothing can be done: a process that another test starts holds our locks between fork and exec.
            assert!(began.elapsed() < Duration::from_secs(60), "{looks}");
        }
    }
}
