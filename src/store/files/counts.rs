//! How much each shard holds: a table of 256 lines, so that a limit on all of it costs one read of 2 KiB and
//! not a walk through everything. Kill a process between two writes and it is off until the next sweep.

use super::folder::{lock_in_time, write_in_place};
use super::{Error, Files, Kind, names, private_file, read_small};
use crate::store::error::Full;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The first two hexadecimal digits of a name are its shard.
pub(super) const SHARDS: usize = 256;

/// Logs are counted in pieces of so many bytes: what is smaller costs no count, and is limited by how many hosts and buses there
/// may be.
const PIECE: u64 = 64 * 1024;

/// The table of the bytes of all logs.
const SIZES: &str = "sizes";

/// The shard of what stands in its folder.
pub(super) fn shard_of(path: &Path) -> usize {
    let name = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    name.and_then(|name| usize::from_str_radix(name, 16).ok()).unwrap_or(0) % SHARDS
}

/// A table, locked.
pub(super) struct Counts {
    file: File,
    table: Vec<u8>,
}

impl Counts {
    /// Seven digits and a line end.
    const ENTRY: usize = 8;

    /// Locks the table of this name in a folder below the data folder, made if it is missing.
    pub(super) fn lock(store: &Files, folder: &Path, name: &str) -> Result<Self, Error> {
        let path = store.root.join(folder).join(name);
        let file = store.with_root(folder, || Ok(private_file(&path)?))?;
        lock_in_time(&file, &path)?;
        let mut table = read_small(&file)?;
        if table.len() != SHARDS * Self::ENTRY {
            table = "      0\n".repeat(SHARDS).into_bytes();
            write_in_place(&file, &table)?;
        }
        Ok(Self { file, table })
    }

    pub(super) fn get(&self, shard: usize) -> u64 {
        let entry = &self.table[shard * Self::ENTRY..][..Self::ENTRY];
        std::str::from_utf8(entry).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn total(&self) -> u64 {
        (0..SHARDS).map(|shard| self.get(shard)).sum()
    }

    /// Counts so many more; false where that would be more than `most`.
    pub(super) fn add(&mut self, shard: usize, more: u64, most: u64) -> Result<bool, Error> {
        if self.total() + more > most {
            return Ok(false);
        }
        self.set(shard, self.get(shard) + more)?;
        Ok(true)
    }

    pub(super) fn remove(&mut self, shard: usize, less: u64) -> Result<(), Error> {
        self.set(shard, self.get(shard).saturating_sub(less))
    }

    pub(super) fn set(&mut self, shard: usize, count: u64) -> Result<(), Error> {
        if count == self.get(shard) {
            return Ok(());
        }
        let entry = format!("{:7}\n", count.min(9_999_999));
        self.table[shard * Self::ENTRY..][..Self::ENTRY].copy_from_slice(entry.as_bytes());
        Ok(self.file.write_all_at(entry.as_bytes(), (shard * Self::ENTRY) as u64)?)
    }
}

impl Files {
    fn sizes(&self) -> Result<Counts, Error> {
        Counts::lock(self, Path::new(""), SIZES)
    }

    /// Counts that a log grows, or shrinks, from one size to another.
    ///
    /// # Errors
    /// [`Error::DataFull`] where all logs would hold more than `most` bytes. Then it is not counted.
    pub(super) fn count_bytes(&self, log: &Path, before: u64, after: u64, most: u64) -> Result<(), Error> {
        let (before, after) = (before / PIECE, after / PIECE);
        if before > after {
            return self.sizes()?.remove(shard_of(log), before - after);
        }
        if before < after && !self.sizes()?.add(shard_of(log), after - before, most / PIECE)? {
            return Err(Error::DataFull(Full { limit: most }));
        }
        Ok(())
    }

    /// Corrects the number of bytes in a shard, which killed processes, and what was removed, have left wrong.
    pub(super) fn count_sizes(&self, shard: u8) -> Result<(), Error> {
        let mut pieces = 0;
        for kind in [Kind::Hosts, Kind::Buses] {
            let folder = self.shard(kind, shard);
            for name in names(&folder)?.iter().filter(|name| name.contains('.')) {
                // What has gone in between has no size.
                pieces += std::fs::symlink_metadata(folder.join(name)).map_or(0, |file| file.len() / PIECE);
            }
        }
        if pieces > 0 || self.root.join(SIZES).exists() {
            self.sizes()?.set(usize::from(shard), pieces)?;
        }
        Ok(())
    }
}
