//! Whether everything the relay needs works, and what to do where it does not: the list that `uhst-relay check` prints
//! and that the page for people shows. The cures are in the words of `deploy/README.md`. Nothing in it names a path or a
//! number that a stranger could use.

use crate::config::{SettingError, Settings};
use crate::store::probe::Findings;
use crate::store::{Error, Store};
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

/// A clock before 2025 (when this was not written yet) or behind 2100 has not been set; in seconds since 1970.
const PLAUSIBLE: std::ops::Range<u64> = 1_735_689_600..4_102_444_800;

/// Further apart than this, the clock of the disk is another machine's.
const CLOCKS_APART: Duration = Duration::from_secs(2);

/// One thing the relay needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// How it is, in a sentence.
    pub sentence: String,
    /// Whether that is fine.
    pub outcome: Outcome,
}

/// Whether a check is passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Ok,
    /// It does not.
    Problem {
        /// What to do. Text between backticks is to be typed.
        cure: String,
    },
}

impl Check {
    fn ok(name: &'static str, sentence: &str) -> Self {
        Self { name, sentence: sentence.to_owned(), outcome: Outcome::Ok }
    }

    fn problem(name: &'static str, sentence: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, sentence: sentence.into(), outcome: Outcome::Problem { cure: cure.into() } }
    }

    /// Whether it is passed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

/// Looks at everything. What cannot be looked at because of something else is not in the list.
#[must_use]
pub fn look(settings: Result<&Settings, &SettingError>) -> Vec<Check> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            let cure = "Correct it in `data/settings.conf` or in the server's configuration; the README lists all settings. \
                        Where the file itself cannot be opened, give the data folder to the user whom the relay runs as: \
                        `chown -R www-data: data`, or permissions 700 on shared hosting.";
            return vec![Check::problem("Settings", error.to_string(), cure)];
        }
    };
    let store = Store::new(&settings.data_dir);
    let probe = store.probe();
    let mut list = vec![Check::ok("Settings", "Every setting can be read.")];
    match &probe {
        Ok(findings) => list.extend([data_folder(*findings), locks(*findings), wake_ups(*findings)]),
        Err(error) => {
            error.log();
            list.push(unusable(error));
        }
    }
    if let Err(error @ Error::BadRegistry(_)) = store.ptth_servers() {
        error.log();
        list.push(unusable(&error));
    }
    list.push(clock(SystemTime::now(), probe.map_or(Duration::ZERO, |findings| findings.clocks_apart)));
    list
}

/// The list as a person at a terminal reads it.
pub struct List {
    /// The lines.
    pub text: String,
    /// Whether there is no problem in it.
    pub is_ok: bool,
}

/// Looks at everything, for a person at a terminal.
#[must_use]
pub fn list(settings: Result<&Settings, &SettingError>) -> List {
    let mut text = String::new();
    // Writing to memory does not fail.
    let mut tell = |line: fmt::Arguments<'_>| text.write_fmt(format_args!("{line}\n")).unwrap_or_default();
    if let Ok(settings) = settings {
        tell(format_args!("Data folder: {}\n", settings.data_dir.display()));
    }
    let list = look(settings);
    for Check { name, sentence, outcome } in &list {
        match outcome {
            Outcome::Ok => tell(format_args!("ok       {name}: {sentence}")),
            Outcome::Problem { cure } => tell(format_args!("PROBLEM  {name}: {sentence}\n         {cure}")),
        }
    }
    if rustix::process::geteuid().is_root() {
        tell(format_args!("\nroot may do everything. Where the relay runs as another user, run this as that user:"));
        tell(format_args!("runuser -u www-data -- ./relay.cgi check"));
    }
    tell(format_args!("\nWhether streams flow is tested by the relay's own page: open its URL in a browser."));
    List { text, is_ok: list.iter().all(Check::is_ok) }
}

const LOCAL_DISK: &str = "Set `RELAY_DATA_DIR` to a folder on a local disk; network drives often lack this.";

fn data_folder(findings: Findings) -> Check {
    const NAME: &str = "Data folder";
    if !findings.keeps {
        Check::problem(NAME, "What is written there is not what is read.", LOCAL_DISK)
    } else if findings.is_full {
        disk_full(NAME)
    } else {
        Check::ok(NAME, "The relay can write there and read it again, and there is room.")
    }
}

fn locks(findings: Findings) -> Check {
    const NAME: &str = "Locks";
    if findings.locks {
        Check::ok(NAME, "A lock keeps others out, and ends with whoever held it.")
    } else {
        no_locks(NAME)
    }
}

fn wake_ups(findings: Findings) -> Check {
    const NAME: &str = "Wake-ups";
    if findings.wakes {
        Check::ok(NAME, "A message wakes the stream that waits for it.")
    } else {
        Check::problem(
            NAME,
            "Messages do not wake streams (no FIFOs): each is late by up to `RELAY_POLL_TICK`.",
            LOCAL_DISK,
        )
    }
}

fn clock(now: SystemTime, disk_is_off: Duration) -> Check {
    const NAME: &str = "Clock";
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    if !PLAUSIBLE.contains(&seconds) {
        let cure = "Set the machine's clock, best over the network: `timedatectl set-ntp true`.";
        Check::problem(NAME, "The machine's clock has not been set.", cure)
    } else if disk_is_off > CLOCKS_APART {
        let sentence = format!("The clocks of the machine and of its disk are {} s apart.", disk_is_off.as_secs());
        let cure = "Set both clocks over the network, `timedatectl set-ntp true`; or set `RELAY_DATA_DIR` to a folder on a local disk.";
        Check::problem(NAME, sentence, cure)
    } else {
        Check::ok(NAME, "The machine's clock is set, and its disk has the same time.")
    }
}

fn no_locks(name: &'static str) -> Check {
    Check::problem(
        name,
        "The data folder's disk cannot lock files: who is listening and who is not cannot be told.",
        LOCAL_DISK,
    )
}

fn disk_full(name: &'static str) -> Check {
    Check::problem(
        name,
        "The disk, or the quota on it, is full.",
        "Make room on it, or set `RELAY_DATA_DIR` to a folder on another disk.",
    )
}

/// Why nothing could be tried out.
fn unusable(error: &Error) -> Check {
    use rustix::io::Errno;
    const NAME: &str = "Data folder";
    const NO_LOCKS: [Errno; 3] = [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP];
    match error {
        Error::DiskFull(_) => disk_full(NAME),
        Error::BadSecret => {
            Check::problem(NAME, "The file `secret` in it is damaged.", "Remove it, and a new one is made.")
        }
        Error::BadRegistry(_) => Check::problem(
            "PTTH servers",
            error.to_string(),
            "Correct it by hand, the relay's log says what is wrong; or remove it, and register the servers anew.",
        ),
        Error::Io(cause) if Errno::from_io_error(cause).is_some_and(|errno| NO_LOCKS.contains(&errno)) => {
            no_locks("Locks")
        }
        Error::Unusable(cause) => Check::problem(
            NAME,
            format!("It cannot be written ({}).", cause.kind()),
            "Give the folder to the user whom the relay runs as: `chown -R www-data: data`, or permissions 700 on shared \
             hosting. If it is missing, make it yourself.",
        ),
        Error::NoDescriptors(_) => Check::problem(
            NAME,
            "The relay, or the machine, has too many files open.",
            "Allow the relay's user more of them: `ulimit -n`, or `LimitNOFILE` where systemd starts it.",
        ),
        Error::Busy => Check::problem(
            NAME,
            "Another process of the relay does not let go of a lock.",
            "Look for a process of the relay that is stopped, and end it.",
        ),
        Error::Io(_) | Error::QueueFull(_) => {
            Check::problem(NAME, "It failed while it was tried out.", "The web server's error log has the cause.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const GOOD: Findings =
        Findings { keeps: true, locks: true, wakes: true, is_full: false, clocks_apart: Duration::ZERO };

    fn problem(check: &Check) -> &str {
        match &check.outcome {
            Outcome::Ok => panic!("{check:?}"),
            Outcome::Problem { cure } => cure,
        }
    }

    #[test]
    fn each_finding_is_a_problem_with_a_cure() {
        assert!(data_folder(GOOD).is_ok() && locks(GOOD).is_ok() && wake_ups(GOOD).is_ok());
        assert!(problem(&data_folder(Findings { keeps: false, ..GOOD })).contains("RELAY_DATA_DIR"));
        assert!(problem(&data_folder(Findings { is_full: true, ..GOOD })).contains("Make room"));
        assert!(problem(&locks(Findings { locks: false, ..GOOD })).contains("RELAY_DATA_DIR"));
        assert!(problem(&wake_ups(Findings { wakes: false, ..GOOD })).contains("RELAY_DATA_DIR"));
    }

    #[test]
    fn each_failure_is_named_for_what_it_is() {
        let locks = unusable(&Error::Io(rustix::io::Errno::NOLCK.into()));
        assert_eq!(locks.name, "Locks");
        let denied = unusable(&Error::from(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert!(denied.sentence.contains("permission denied"), "{denied:?}");
        assert!(problem(&denied).contains("chown -R www-data: data"));
        assert!(problem(&unusable(&Error::DiskFull(io::ErrorKind::StorageFull.into()))).contains("room"));
        assert!(problem(&unusable(&Error::BadSecret)).contains("Remove it"));
        assert!(problem(&unusable(&Error::Io(io::Error::other("?")))).contains("error log"));
    }

    #[test]
    fn a_clock_that_was_never_set_or_is_not_the_disks_is_a_problem() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(PLAUSIBLE.start + 1);
        assert!(clock(now, Duration::from_secs(1)).is_ok());
        assert!(clock(now, Duration::from_secs(90)).sentence.contains("90 s"));
        problem(&clock(SystemTime::UNIX_EPOCH, Duration::ZERO));
        problem(&clock(SystemTime::UNIX_EPOCH - Duration::from_secs(1), Duration::ZERO));
    }

    #[test]
    fn a_setting_that_cannot_be_read_is_the_whole_list() {
        let error = Settings::read(Some("\0".into()), || unreachable!()).unwrap_err();
        let list = look(Err(&error));
        assert_eq!(list.len(), 1, "{list:?}");
        assert!(problem(&list[0]).contains("settings.conf"), "{list:?}");
    }

    #[test]
    fn a_data_folder_that_cannot_be_made_is_a_problem_that_does_not_name_its_path() {
        let settings = Settings { data_dir: "/proc/no/such/folder".into(), ..Settings::default() };
        let list = look(Ok(&settings));
        assert!(!list.iter().all(Check::is_ok), "{list:?}");
        assert!(!format!("{list:?}").contains("/proc"), "{list:?}");
    }
}
