//! Whether the disk under the data folder can do what the store asks of it. A mailbox is used as a stream uses it, in a
//! folder of its own, which is gone afterwards.

use super::folder::Folder;
use super::mailbox::{Mailbox, Presence};
use super::{Error, Store, make_dirs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Access;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The folder's name. One for all: whoever looks at the same time waits for its lock, and what a killed process has left
/// is used and removed by the next.
const PROBE: &str = "probe";

/// A wake-up takes microseconds. Whoever waits for this long waits in vain.
const WAKE_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// Less room than this is none: the queues of two recipients that do not read.
const ROOM: u64 = 16 << 20;

/// What was found where the data folder could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Findings {
    /// What was put into a mailbox came out of it.
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

impl Store {
    /// Looks. Nothing is left behind, not even the data folder where there was none.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn probe(&self) -> Result<Findings, Error> {
        // Whoever runs this may be somebody else than the relay, and a folder of his would lock the relay out.
        let missing: Vec<PathBuf> =
            self.root.ancestors().take_while(|path| !path.exists()).map(PathBuf::from).collect();
        let findings = make_dirs(&self.root)
            .map_err(|error| match Error::from(error) {
                Error::Io(error) => Error::Unusable(error),
                other => other,
            })
            .and_then(|()| self.examine());
        for path in missing {
            // Only an empty one goes: nobody else has begun to use it.
            let _ = std::fs::remove_dir(path);
        }
        findings
    }

    fn examine(&self) -> Result<Findings, Error> {
        self.all_is_ours()?;
        let path = self.root.join(PROBE);
        let (folder, _) = Folder::<String>::open_or_make(&path).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&path);
        })?;
        let mailbox = Mailbox::new(&folder, path);
        let findings = self.try_out(&folder, &mailbox);
        let removed = mailbox.remove();
        let findings = findings.and_then(|findings| removed.map(|()| findings));
        let removed = folder.remove();
        findings.and_then(|findings| removed.map(|()| findings))
    }

    fn try_out(&self, folder: &Folder<String>, mailbox: &Mailbox<'_>) -> Result<Findings, Error> {
        const MESSAGE: &str = "{}";
        folder.write(&PROBE.to_owned())?;
        let (written, now) = (folder.touched()?, SystemTime::now());
        let clocks_apart = now.duration_since(written).unwrap_or_else(|error| error.duration());

        let mut listener = mailbox.listen(None, Duration::from_secs(60), u64::MAX)?;
        drop(mailbox.put(MESSAGE, None)?);
        let wakes = listener
            .wake()
            .is_some_and(|wake| poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], Some(&WAKE_TIME)) == Ok(1));
        listener.hear();
        let mut got = Vec::new();
        listener.next(|record| got.push(record.data.to_owned()))?;

        let kept_out =
            mailbox.presence()? == Presence::Listening && Folder::<String>::try_open(folder.path())?.is_none();
        drop(listener);
        let let_go = matches!(mailbox.presence()?, Presence::Ended { .. });

        let keeps = got == [MESSAGE] && folder.read()?.as_deref() == Some(PROBE);
        Ok(Findings { keeps, locks: kept_out && let_go, wakes, is_full: self.is_full()?, clocks_apart })
    }

    /// Fails where something in the data folder belongs to somebody else, such as the administrator who has run the relay
    /// by hand once.
    pub(super) fn all_is_ours(&self) -> Result<(), Error> {
        let hosts = self.root.join("hosts");
        let inside = match std::fs::read_dir(&hosts) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let secret = self.root.join("secret");
        for path in inside.iter().chain([&hosts, &self.root, &self.root.join("sweep"), &secret]) {
            match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
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

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;

    #[test]
    fn a_good_disk_is_found_good_and_left_as_it_was() {
        let dir = TestDir::new();
        let root = dir.join("made/by/the/probe");
        let findings = Store::new(&root).probe().unwrap();
        assert!(findings.keeps && findings.locks && findings.wakes, "{findings:?}");
        assert!(findings.clocks_apart < Duration::from_secs(2), "{findings:?}");
        assert!(!dir.join("made").exists());
    }

    #[test]
    fn a_folder_in_use_stays_and_so_does_what_is_in_it() {
        let dir = TestDir::new();
        let root = dir.join("data");
        let store = Store::new(&root);
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
        for name in ["session.json", "queue", "stream", "wake", "wake.new"] {
            std::fs::write(root.join(PROBE).join(name), "half").unwrap();
        }
        assert!(Store::new(&root).probe().unwrap().keeps);
        assert!(!root.join(PROBE).exists());
    }

    #[test]
    fn many_look_at_once_and_all_find_it_good() {
        let dir = TestDir::new();
        let root = dir.join("data");
        make_dirs(&root).unwrap();
        std::thread::scope(|scope| {
            let probes: Vec<_> = (0..8).map(|_| scope.spawn(|| Store::new(&root).probe().unwrap())).collect();
            for probe in probes {
                let findings = probe.join().unwrap();
                assert!(findings.keeps && findings.locks && findings.wakes, "{findings:?}");
            }
        });
        assert!(!root.join(PROBE).exists());
    }

    #[test]
    fn a_data_folder_that_is_a_file_and_a_damaged_secret_are_told() {
        let dir = TestDir::new();
        std::fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(Store::new(&dir.join("file")).probe(), Err(Error::Unusable(_))));
        let root = dir.join("data");
        make_dirs(&root).unwrap();
        std::fs::write(root.join("secret"), "short").unwrap();
        assert!(matches!(Store::new(&root).probe(), Err(Error::BadSecret)));
    }
}
