//! Whether the disk under the data folder can do what the store asks of it. A log, a lock and a node are used as a
//! stream uses them, in a folder of their own, which is gone afterwards.

use super::folder::{Folder, Shape, is_locked, try_lock};
use super::kept::look_again;
use super::knock::{Cause, Knock};
use super::log::Address;
use super::log::reader::Reader;
use super::log::writer::Writer;
use super::node::NODES;
use super::{
    Error, Files, VERSION, hash_name, if_there, make_dir, names, private_file, read_small, remove_file, replace,
};
use crate::clock::now_ms;
use crate::hex;
use crate::wake::Wake as _;
use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::Access;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The folder's name. One for all: only one looks at a time, and what a killed process has left is used and removed by the
/// next.
const PROBE: &str = "probe";

/// What is made in it: as a stream's log, and as a lock that somebody holds.
const LOG: &str = "log";
const LOCK: &str = "lock";

/// What was found last, and when.
const FOUND: &str = "probe.json";

/// For this long a look serves everybody, however many open the page: each look writes, and syncs, a dozen files.
const FRESH: Duration = Duration::from_secs(5);

/// How long a visitor of the page, and somebody at a terminal, waits for another who is looking.
const PAGE_PATIENCE: Duration = Duration::from_secs(2);
const TERMINAL_PATIENCE: Duration = Duration::from_secs(10);

/// A wake-up takes microseconds. Whoever waits for this long waits in vain.
const WAKE_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// Less room than this is none: the queues of two recipients that do not read.
const ROOM: u64 = 16 << 20;

/// What was found where the data folder could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Findings {
    /// What was put into a log came out of it.
    pub keeps: bool,
    /// A lock keeps others out, and ends with whoever held it.
    pub locks: bool,
    /// A message wakes the stream that waits for it.
    pub wakes: bool,
    /// There is no room left.
    pub is_full: bool,
    /// How far the time of a file written now is from the machine's.
    pub clocks_apart: Duration,
}

impl Findings {
    /// As they are kept, with the time in milliseconds since 1970.
    fn encode(&self, at: u64) -> String {
        json!([at, self]).to_string()
    }
}

/// What keeps the relay from using its data folder, by the look of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What may not be used.
    pub place: Place,
    /// Its owner's number.
    pub owner: u32,
    /// Its permissions, as `chmod` takes them.
    pub mode: u32,
}

/// Where an [`Obstacle`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The folder in which the data folder would have to be made.
    Above,
    /// The data folder itself.
    DataFolder,
    /// Something in it, which was left there by somebody else.
    Inside(&'static str),
}

/// Whether it says that this disk has no locks. Then nobody holds one either.
#[must_use]
pub fn has_no_locks(error: &io::Error) -> bool {
    const NO_LOCKS: [Errno; 3] = [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP];
    Errno::from_io_error(error).is_some_and(|errno| NO_LOCKS.contains(&errno))
}

impl Files {
    /// Looks, for somebody at a terminal. Nothing is left behind, not even the data folder where there was none: whoever
    /// looks may be another user than the relay, whom that folder would lock out.
    ///
    /// # Errors
    /// When the data folder cannot be used; [`Error::Busy`] when another does not stop looking.
    pub fn probe(&self) -> Result<Findings, Error> {
        let missing: Vec<PathBuf> =
            self.root.ancestors().take_while(|path| !path.exists()).map(PathBuf::from).collect();
        let findings = self.make_bare_root().and_then(|()| in_turn(TERMINAL_PATIENCE, || self.examine(|_| ())));
        for path in missing {
            // Only an empty one goes: nobody else has begun to use it.
            let _ = std::fs::remove_dir(path);
        }
        findings
    }

    /// Looks, as the relay itself and for the visitors of its page, unless somebody has looked a moment ago. The data
    /// folder is made if it is missing.
    ///
    /// # Errors
    /// When the data folder cannot be used; [`Error::Busy`] when another does not stop looking.
    pub fn probe_for_page(&self) -> Result<Findings, Error> {
        self.prepare()?;
        in_turn(PAGE_PATIENCE, || match self.found_lately() {
            Some(findings) => Ok(findings),
            None => self.examine(|findings| self.keep(findings)),
        })
    }

    /// Whether the data folder can be used, as far as a look tells that waits for nobody and changes nothing, except that
    /// the folder is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn look(&self) -> Result<(), Error> {
        look_again(&self.root, || {
            if !self.root.exists() {
                self.make_root(Path::new("hosts"))?;
            }
            if !self.root.is_dir() {
                return Err(Error::Unusable(io::ErrorKind::NotADirectory.into()));
            }
            for (path, wanted) in [
                (self.root.clone(), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK),
                (self.root.join("hosts"), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK),
                (self.root.join("secret"), Access::READ_OK),
            ] {
                may(&path, wanted)?;
            }
            self.check_version()
        })
    }

    /// Fails in a folder that another version of the relay has made.
    pub(super) fn check_version(&self) -> Result<(), Error> {
        let path = self.root.join("version");
        let version = || if_there(File::open(&path).and_then(|file| read_small(&file)));
        look_again(&path, || match version()? {
            Some(version) if version == VERSION.as_bytes() => Ok(()),
            Some(_) => Err(Error::OtherVersion),
            // The version is written before anything else, by somebody else perhaps, and just now.
            None if self.is_used() && version()?.is_none() => Err(Error::OtherVersion),
            None => Ok(()),
        })
    }

    /// What keeps this process from using the data folder; `None` where it is nothing that permissions tell.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let there = self.root.ancestors().find(|path| path.exists())?;
        let inside = if there == self.root { ["secret", "hosts", "sweep", PROBE].as_slice() } else { &[] };
        let own = if there == self.root { Place::DataFolder } else { Place::Above };
        let inside = inside.iter().map(|name| (self.root.join(name), Place::Inside(name)));
        for (path, place) in std::iter::once((there.to_owned(), own)).chain(inside) {
            let Ok(about) = std::fs::metadata(&path) else { continue };
            let execute = if about.is_dir() { Access::EXEC_OK } else { Access::empty() };
            if may(&path, Access::READ_OK | Access::WRITE_OK | execute).is_err() {
                return Some(Obstacle { place, owner: about.uid(), mode: about.mode() & 0o7777 });
            }
        }
        None
    }

    fn found_lately(&self) -> Option<Findings> {
        let (at, findings): (u64, _) = serde_json::from_slice(&std::fs::read(self.root.join(FOUND)).ok()?).ok()?;
        // What lies ahead was found before the clock was set back.
        let age = now_ms().checked_sub(at)?;
        (u128::from(age) < FRESH.as_millis()).then_some(findings)
    }

    fn keep(&self, findings: &Findings) {
        let kept = hex::random(4).map_err(Error::from).and_then(|random| {
            let (path, beside) = (self.root.join(FOUND), self.root.join(format!("{FOUND}.{random}")));
            Ok(replace(&path, &beside, findings.encode(now_ms()).as_bytes())?)
        });
        if let Err(error) = kept {
            // The next visitor has it looked at again.
            error.log();
        }
    }

    /// Looks, and hands on what it finds while nobody else can look.
    fn examine(&self, found: impl FnOnce(&Findings)) -> Result<Findings, Error> {
        self.all_is_ours()?;
        let path = self.root.join(PROBE);
        make_dir(&path)?;
        let folder = match Folder::<String>::try_open_or_make_record(&path, Shape::Folder) {
            Ok(Some(folder)) => folder,
            // Somebody is at work in it, or has just removed it.
            Ok(None) => return Err(Error::Busy),
            Err(error) => {
                // Nobody can be at work where there are no locks, or where the lock is no file.
                let is_nobody = match &error {
                    Error::Unusable(_) => true,
                    Error::Io(cause) => has_no_locks(cause),
                    _ => false,
                };
                if is_nobody {
                    let _ = std::fs::remove_dir_all(&path);
                }
                return Err(error);
            }
        };
        let findings = self.try_out(&folder);
        let removed = remove_all(&path);
        let findings = findings.and_then(|findings| removed.map(|()| findings)).inspect(found);
        let removed = folder.remove();
        findings.and_then(|findings| removed.map(|()| findings))
    }

    fn try_out(&self, folder: &Folder<String>) -> Result<Findings, Error> {
        const MESSAGE: &str = "{}";
        folder.write(&PROBE.to_owned())?;
        let (written, now) = (folder.touched()?, SystemTime::now());
        let clocks_apart = now.duration_since(written).unwrap_or_else(|error| error.duration());

        let log = folder.beside(LOG);
        Writer::open(&log)?.append(now_ms(), &Address::One(0), "message", MESSAGE)?;
        let mut got = Vec::new();
        Reader::open(&log, 0)?.read(|_| true, |record| got.push(record.data.to_owned()))?;
        let keeps = got == [MESSAGE] && folder.read()?.as_deref() == Some(PROBE);

        let nodes = Self::new(folder.path());
        let topic = hash_name(PROBE);
        let wakeup = nodes.wakeup(&topic)?;
        nodes.knock(&Knock { node: wakeup.node().to_owned(), topic, slot: None, cause: Cause::News });
        let wakes = wakeup.wake().is_some_and(|wake| {
            let fds = wake.descriptor().map(|(fd, wanted)| PollFd::from_borrowed_fd(fd, wanted));
            poll(&mut fds.into_iter().collect::<Vec<_>>(), Some(&WAKE_TIME)) == Ok(1)
        });

        let other = || private_file(&folder.beside(LOCK));
        let file = other()?;
        let kept_out = try_lock(&file)?
            && is_locked(&other()?)?
            && nodes.alive().is(wakeup.node())?
            && Folder::<String>::try_open(folder.path(), Shape::Folder)?.is_none();
        drop(file);
        let let_go = !is_locked(&other()?)?;
        Ok(Findings { keeps, locks: kept_out && let_go, wakes, is_full: self.is_full()?, clocks_apart })
    }

    /// Fails where something in the data folder belongs to somebody else, such as the administrator who has run the relay
    /// by hand once.
    pub(super) fn all_is_ours(&self) -> Result<(), Error> {
        self.check_version()?;
        let hosts = self.root.join("hosts");
        may(&self.root, Access::EXEC_OK)?;
        let secret = self.root.join("secret");
        let shards = names(&hosts)?.into_iter().map(|name| hosts.join(name));
        for path in shards.chain([hosts.clone(), self.root.clone(), self.root.join("sweep"), secret.clone()]) {
            may(&path, Access::READ_OK | Access::WRITE_OK)?;
        }
        if secret.exists() {
            self.secret()?;
        }
        Ok(())
    }

    fn is_full(&self) -> Result<bool, Error> {
        let disk = rustix::fs::statvfs(&self.root)?;
        // Zero of zero is a file system that does not count.
        let no_bytes = disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM;
        let no_files = disk.f_files > 0 && disk.f_favail < 100;
        Ok(no_bytes || no_files)
    }
}

/// Removes what a look has made beside the record.
fn remove_all(probe: &Path) -> Result<(), Error> {
    for name in [LOG, LOCK] {
        remove_file(&probe.join(name))?;
    }
    Ok(if_there(std::fs::remove_dir_all(probe.join(NODES))).map(drop)?)
}

/// Fails where this process may not do that with what is there; what is not there is no obstacle.
fn may(path: &Path, wanted: Access) -> Result<(), Error> {
    match rustix::fs::access(path, wanted) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tries again as long as another is at it, with so much patience.
fn in_turn<T>(patience: Duration, work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let until = Instant::now() + patience;
    loop {
        match work() {
            Err(Error::Busy) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::make_dirs;
    use super::super::test_dir::TestDir;
    use super::*;

    #[test]
    fn a_good_disk_is_found_good_and_left_as_it_was() {
        let dir = TestDir::new();
        let root = dir.join("made/by/the/probe");
        let findings = Files::new(&root).probe().unwrap();
        assert!(findings.keeps && findings.locks && findings.wakes, "{findings:?}");
        assert!(findings.clocks_apart < Duration::from_secs(2), "{findings:?}");
        assert!(!dir.join("made").exists());
    }

    #[test]
    fn a_folder_in_use_stays_and_so_does_what_is_in_it() {
        let dir = TestDir::new();
        let root = dir.join("data");
        let store = Files::new(&root);
        let secret = store.secret().unwrap();
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        store.probe().unwrap();
        assert_eq!(names(), before);
        assert_eq!(store.secret().unwrap(), secret);
    }

    #[test]
    fn what_a_killed_probe_has_left_is_removed_by_the_next() {
        let dir = TestDir::new();
        let root = dir.join("data");
        make_dirs(&root.join(PROBE)).unwrap();
        for name in ["session.json", "log", "lock"] {
            std::fs::write(root.join(PROBE).join(name), "half").unwrap();
        }
        assert!(Files::new(&root).probe().unwrap().keeps);
        assert!(!root.join(PROBE).exists());
    }

    #[test]
    fn many_look_at_once_and_all_find_it_good() {
        let dir = TestDir::new();
        let root = dir.join("data");
        make_dirs(&root).unwrap();
        std::thread::scope(|scope| {
            let probes: Vec<_> = (0..8).map(|_| scope.spawn(|| Files::new(&root).probe().unwrap())).collect();
            for probe in probes {
                let findings = probe.join().unwrap();
                assert!(findings.keeps && findings.locks && findings.wakes, "{findings:?}");
            }
        });
        assert!(!root.join(PROBE).exists());
    }

    #[test]
    fn somebody_who_is_looking_is_left_alone_and_no_problem_is_made_of_it() {
        let dir = TestDir::new();
        let root = dir.join("data");
        let store = Files::new(&root);
        store.prepare().unwrap();
        make_dir(&root.join(PROBE)).unwrap();
        let other = Folder::<String>::try_open_or_make_record(&root.join(PROBE), Shape::Folder).unwrap().unwrap();
        std::fs::write(root.join(PROBE).join("log"), "his").unwrap();
        assert!(matches!(store.probe_for_page(), Err(Error::Busy)));
        assert_eq!(std::fs::read(root.join(PROBE).join("log")).unwrap(), b"his");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| store.probe());
            std::thread::sleep(Duration::from_millis(50));
            drop(other);
            assert!(waits.join().unwrap().unwrap().keeps);
        });
    }

    #[test]
    fn one_look_serves_everybody_for_a_moment() {
        let dir = TestDir::new();
        let root = dir.join("data");
        let store = Files::new(&root);
        let good = store.probe_for_page().unwrap();
        assert!(good.keeps && root.is_dir() && !root.join(PROBE).exists());
        // Nobody would find this, so whoever says it has not looked.
        let other = Findings { wakes: false, clocks_apart: Duration::from_secs(3), ..good };
        store.keep(&other);
        assert_eq!(store.probe_for_page().unwrap(), other);
        assert!(store.probe().unwrap().wakes, "at a terminal everything is looked at");
        for at in [now_ms() - 6_000, now_ms() + 60_000] {
            std::fs::write(root.join(FOUND), other.encode(at)).unwrap();
            assert!(store.probe_for_page().unwrap().wakes, "what is old, or lies ahead, is looked at again");
        }
        std::fs::write(root.join(FOUND), "half").unwrap();
        assert!(store.probe_for_page().unwrap().wakes);
    }

    #[test]
    fn a_look_makes_the_folder_and_sees_what_is_in_the_way() {
        let dir = TestDir::new();
        let root = dir.join("data");
        let store = Files::new(&root);
        store.look().unwrap();
        assert!(root.join(".htaccess").is_file() && root.join("hosts").is_dir());
        assert_eq!(store.obstacle(), None);
        std::fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(Files::new(&dir.join("file")).look(), Err(Error::Unusable(_))));
        assert!(matches!(Files::new(&dir.join("file/data")).look(), Err(Error::Unusable(_))));
    }

    #[test]
    fn a_data_folder_that_is_a_file_and_a_damaged_secret_are_told() {
        let dir = TestDir::new();
        std::fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(Files::new(&dir.join("file")).probe(), Err(Error::Unusable(_))));
        let root = dir.join("data");
        make_dirs(&root).unwrap();
        std::fs::write(root.join("secret"), "short").unwrap();
        assert!(matches!(Files::new(&root).probe(), Err(Error::BadSecret)));
    }
}
