//! Where the folders of one kind stand: spread over shards, so that no folder gets too long and a sweep has an end, and
//! counted, so that there is a limit to how many strangers can make. At the limit what nobody has used yet gives way to
//! newcomers, the oldest first.

use super::counts::{Counts, SHARDS, shard_of};
use super::folder::{Folder, Shape};
use super::{Error, Files, Kind, UNUSED_TIME, names};
use crate::clock::is_recent;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Whoever makes room looks at no more folders than this: it takes some milliseconds. Where there are no more, what gives way
/// is the oldest of all; where there are, the oldest of that many, which begin at a shard that a hash has chosen.
const MOST_LOOKS: usize = 512;

impl Kind {
    /// How one of them looks.
    pub(super) fn shape(self) -> Shape {
        match self {
            Self::Hosts | Self::Buses => Shape::File,
            Self::Pipes | Self::Ptth => Shape::Folder,
        }
    }
}

impl Files {
    /// Locks the folder of `id`; `None` where there is none.
    pub(super) fn open<R>(&self, kind: Kind, id: &str) -> Result<Option<Folder<R>>, Error> {
        let folder = Folder::open(&self.folder(kind, id), kind.shape())?;
        if folder.is_none() {
            // In a folder of another version it may be there, and not be seen.
            self.check_version()?;
        }
        Ok(folder)
    }

    /// Locks the folder of `id`, made if it is missing. `None` where there are `most` of its kind already, and none of them
    /// [gives way](Self::make_room).
    pub(super) fn open_or_make<R>(&self, kind: Kind, id: &str, most: u64) -> Result<Option<Folder<R>>, Error> {
        let path = self.folder(kind, id);
        if let Some(folder) = Folder::open(&path, kind.shape())? {
            return Ok(Some(folder));
        }
        self.check_version()?;
        let (shard, number) = (path.parent().and_then(Path::file_name).unwrap_or_default(), shard_of(&path));
        // Counted first, and made without the lock of the counts: it is everybody's, and a disk takes its time.
        let has_room = self.counts(kind)?.add(number, 1, most)?;
        if !has_room && !self.make_room(kind, number, most)? {
            return Ok(None);
        }
        let inside = Path::new(kind.name()).join(shard);
        let made = self.with_root(&inside, || Folder::open_or_make(&path, kind.shape()));
        if !matches!(made, Ok((_, true))) {
            // Somebody was faster, and has counted it; or nothing was made. What was made counts more than the count, which
            // the next sweep corrects.
            if let Err(error) = self.counts(kind).and_then(|mut counts| counts.remove(number, 1)) {
                error.log();
            }
        }
        Ok(Some(made?.0))
    }

    /// Removes the oldest of a kind that nobody has used yet, if it is older than [`UNUSED_TIME`], and counts one in the shard
    /// `number` in its stead. False where there is none.
    fn make_room(&self, kind: Kind, number: usize, most: u64) -> Result<bool, Error> {
        let mut looked_at = Vec::new();
        'search: for shard in (0..SHARDS).map(|step| (number + step) % SHARDS) {
            for path in self.read_shard(kind, u8::try_from(shard).unwrap_or(0))? {
                if looked_at.len() >= MOST_LOOKS {
                    break 'search;
                }
                // A look without the lock first. A stranger's file is none of them.
                if let Ok(Some(touched)) = Folder::<()>::touched_at(&path, kind.shape()) {
                    looked_at.push((touched, shard, path));
                }
            }
        }
        looked_at.retain(|(touched, ..)| !is_recent(*touched, UNUSED_TIME));
        looked_at.sort_unstable();
        for (touched, shard, path) in looked_at {
            // What cannot be seen counts as in use, and so does what somebody has used since.
            if matches!(Folder::<()>::touched_at(&path, kind.shape()), Ok(Some(again)) if again == touched)
                && self.remove_unused(kind, &path).unwrap_or(false)
            {
                let mut counts = self.counts(kind)?;
                counts.remove(shard, 1)?;
                return counts.add(number, 1, most);
            }
        }
        Ok(false)
    }

    fn counts(&self, kind: Kind) -> Result<Counts, Error> {
        Counts::lock(self, Path::new(kind.name()), "counts")
    }

    pub(super) fn shard(&self, kind: Kind, number: u8) -> PathBuf {
        self.root.join(kind.name()).join(format!("{number:02x}"))
    }

    /// What stands in a shard, without what belongs to it and stands beside it.
    pub(super) fn read_shard(&self, kind: Kind, number: u8) -> Result<Vec<PathBuf>, Error> {
        let shard = self.shard(kind, number);
        let names = names(&shard)?.into_iter().filter(|name| !name.contains('.'));
        Ok(names.map(|name| shard.join(name)).collect())
    }

    /// What stands in a shard beside a record that is not there: somebody has removed that.
    pub(super) fn read_leftovers(&self, kind: Kind, number: u8) -> Result<Vec<PathBuf>, Error> {
        // Those that are folders have nothing beside them. A stranger's file belongs to nothing.
        const NAME: usize = 40;
        if kind.shape() == Shape::Folder {
            return Ok(Vec::new());
        }
        let shard = self.shard(kind, number);
        let names: BTreeSet<String> = names(&shard)?.into_iter().collect();
        let owners = names.iter().filter_map(|name| Some(name.split_once('.')?.0));
        let missing: BTreeSet<_> = owners.filter(|owner| owner.len() == NAME && !names.contains(*owner)).collect();
        Ok(missing.into_iter().map(|owner| shard.join(owner)).collect())
    }

    /// Corrects the number of folders in a shard, which killed processes may have left wrong.
    pub(super) fn count_shard(&self, kind: Kind, number: u8) -> Result<(), Error> {
        let mut counts = self.counts(kind)?;
        let there = self.read_shard(kind, number)?.len() as u64;
        counts.set(usize::from(number), there)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use crate::config::Settings;
    use crate::store::buses::BusName;
    use std::time::{Duration, SystemTime};

    fn make(store: &Files, id: &str, most: u64) -> Option<Folder<String>> {
        store.open_or_make(Kind::Hosts, id, most).unwrap()
    }

    #[test]
    fn the_limit_on_hosts_counts_what_is_there() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        for id in ["a", "b", "c"] {
            assert!(make(&store, id, 3).is_some());
        }
        assert!(make(&store, "d", 3).is_none());
        make(&store, "c", 3).expect("an existing one is no more").remove().unwrap();
        for shard in 0..=255 {
            store.count_shard(Kind::Hosts, shard).unwrap();
        }
        assert!(make(&store, "d", 3).is_some());
    }

    #[test]
    fn the_oldest_that_nobody_has_used_gives_way_however_many_are_in_use() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let name = |number: u64| BusName::new(&number.to_string()).unwrap();
        let settings = |max_buses| Settings { max_buses, ..Settings::default() };
        let record = |number: u64| store.folder(Kind::Buses, &number.to_string());
        let make = |number: u64, most: u64| store.greet(&name(number), &settings(most)).is_ok();
        let age = |number: u64, seconds: u64| {
            let time = SystemTime::now() - Duration::from_secs(seconds);
            std::fs::File::open(record(number)).unwrap().set_modified(time).unwrap();
        };
        let all = 300;
        for number in 0..all {
            assert!(make(number, all));
            if number % 3 > 0 {
                store.notify(&name(number), "1", &settings(all)).unwrap();
            }
            // The later, the older; and those in use are the oldest of all.
            age(number, if number % 3 > 0 { 5000 } else { 100 + number });
        }
        // A stranger's file, and what somebody is using now, are passed over.
        std::fs::write(record(0).with_file_name("file"), "").unwrap();
        let busy = Folder::<()>::open(&record(297), Shape::File).unwrap().unwrap();
        for (newcomer, victim) in [(1000, 294), (1001, 291), (1002, 288)] {
            assert!(make(newcomer, all));
            assert!(!record(victim).exists() && record(victim - 3).exists());
        }
        drop(busy);
        assert!(make(1003, all) && !record(297).exists());
        for number in (0..all).step_by(3).filter(|number| *number < 288) {
            age(number, 30);
        }
        assert!(!make(1004, all), "what is younger than a minute stays");
        assert!((0..all).filter(|number| number % 3 > 0).all(|number| record(number).exists()), "what is in use stays");
    }

    #[test]
    fn a_table_of_counts_that_is_damaged_begins_anew() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        make(&store, "a", 3).unwrap();
        std::fs::write(dir.join("data/hosts/counts"), "garbage").unwrap();
        assert!(make(&store, "b", 3).is_some());
    }
}
