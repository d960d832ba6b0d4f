//! Whether everything the relay needs works, and what to do where it does not: the list that `uhst-relay check` prints
//! and that the page for people shows. The cures are in the words of `deploy/README.md`. Nothing in it names a path or a
//! number that a stranger could use, except where nobody can use the relay yet: then whose the data folder is.

#[cfg(feature = "redis")]
use crate::config::redis::Address;
use crate::config::{Oddity, SettingError, Settings};
#[cfg(feature = "redis")]
use crate::store::Condition;
use crate::store::{Error, Findings, Obstacle, Place, Store, has_no_locks};
use crate::workers::wait;
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

/// A clock before 2025 (when this was not written yet) or after 2100 has not been set; in seconds since 1970.
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
    /// It works, but there is something that the owner wants to know.
    Note {
        /// What to do. Text between backticks is to be typed.
        cure: String,
    },
    /// It does not work.
    Problem {
        /// What to do, in the same way.
        cure: String,
    },
}

/// For whom the list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Somebody at a terminal.
    Terminal,
    /// A visitor of the page, for whom the relay itself looks.
    Page,
}

impl Check {
    fn ok(name: &'static str, sentence: &str) -> Self {
        Self { name, sentence: sentence.to_owned(), outcome: Outcome::Ok }
    }

    fn problem(name: &'static str, sentence: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, sentence: sentence.into(), outcome: Outcome::Problem { cure: cure.into() } }
    }

    fn note(name: &'static str, sentence: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, sentence: sentence.into(), outcome: Outcome::Note { cure: cure.into() } }
    }

    /// Whether it is passed; so it is where there is only something to know.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !matches!(self.outcome, Outcome::Problem { .. })
    }
}

/// Looks at everything. What cannot be looked at because of something else is not in the list. The log is told of what is
/// not fine.
#[must_use]
pub async fn look(settings: Result<&Settings, &SettingError>, audience: Audience) -> Vec<Check> {
    let list = match settings {
        Ok(settings) => look_at(settings, audience).await,
        Err(error) => {
            let cure =
                "Correct it in `data/settings.conf` or in the server's configuration; the README lists all settings.";
            vec![Check::problem("Settings", error.to_string(), cure)]
        }
    };
    if audience == Audience::Page {
        for Check { name, sentence, outcome } in &list {
            if let Outcome::Note { cure } | Outcome::Problem { cure } = outcome {
                say!("uhst-relay: {name}: {sentence} {cure}");
            }
        }
    }
    list
}

async fn look_at(settings: &Settings, audience: Audience) -> Vec<Check> {
    let mut list: Vec<Check> = settings.all_oddities().into_iter().map(odd).collect();
    if list.is_empty() {
        list.push(Check::ok("Settings", "Every setting can be read."));
    }
    let store = Store::of(settings);
    let probe = match audience {
        Audience::Terminal => store.probe().await,
        Audience::Page => store.probe_for_page().await,
    };
    match &probe {
        Ok(findings) => list.extend([data_folder(*findings), locks(*findings), wake_ups(*findings)]),
        Err(error) => {
            error.log();
            list.push(unusable(error, store.obstacle().await.as_ref()));
        }
    }
    #[cfg(not(feature = "redis"))]
    let is_away = false;
    #[cfg(feature = "redis")]
    let mut is_away = false;
    #[cfg(feature = "redis")]
    if let Some(reached) = store.reach_redis().await {
        is_away = reached.is_err();
        if let Err(error) = &reached {
            error.log();
        }
        // Visitors of the page need not know where it is.
        let place = settings.redis.as_ref().filter(|_| audience == Audience::Terminal);
        list.push(redis(reached, place));
    }
    // Whoever waits for the list waits once.
    if !is_away && let Err(error @ Error::BadRegistry(_)) = store.ptth_servers().await {
        error.log();
        list.push(unusable(&error, None));
    }
    list.push(clock(SystemTime::now(), probe.map_or(Duration::ZERO, |findings| findings.clocks_apart)));
    list
}

fn odd(Oddity { sentence, cure }: Oddity) -> Check {
    Check::note("Settings", sentence, cure)
}

/// Whether the data folder can be used, as far as a look tells that waits for nobody; if not, the log is told why. In any case
/// it is told what is odd about the settings, except names of files: to look for those takes longer, the more files there are.
///
/// # Errors
/// When it cannot be used.
pub async fn glance(settings: &Settings) -> Result<(), Error> {
    settings.oddities.iter().for_each(Oddity::log);
    let store = Store::of(settings);
    let looked = store.look().await;
    if let Err(error) = &looked
        && let Check { sentence, outcome: Outcome::Problem { cure }, .. } =
            unusable(error, store.obstacle().await.as_ref())
    {
        say!("uhst-relay: {sentence} {cure}");
    }
    looked
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
    let list = wait(look(settings, Audience::Terminal));
    for Check { name, sentence, outcome } in &list {
        match outcome {
            Outcome::Ok => tell(format_args!("ok       {name}: {sentence}")),
            Outcome::Note { cure } => tell(format_args!("note     {name}: {sentence}\n         {cure}")),
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

#[cfg(feature = "redis")]
fn redis(reached: Result<Condition, Error>, place: Option<&Address>) -> Check {
    const NAME: &str = "Redis";
    let named = |sentence: &str| match place {
        Some(place) => format!("{sentence} ({place})"),
        None => sentence.to_owned(),
    };
    match reached {
        Err(Error::Remote(remote)) => Check::problem(NAME, named(&remote.to_string()), remote.reason.cure()),
        Err(error) => unusable(&error, None),
        Ok(Condition { evicts: Some(true), .. }) => Check::note(
            NAME,
            named("When it is full it drops messages that were answered 200."),
            "Set its `maxmemory-policy` to `noeviction`.",
        ),
        Ok(Condition { keeps: Some(false), .. }) => Check::note(
            NAME,
            named("The relay can use it, but what it was told is lost when it ends."),
            "Set its `appendonly` to `yes`; `deploy/REDIS.md` has what it promises then.",
        ),
        Ok(_) => Check::ok(NAME, &named("The relay can write there and read it again, and what is written stays.")),
    }
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
        Check::ok(NAME, "A lock keeps others out, and ends with the process that held it.")
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
fn unusable(error: &Error, obstacle: Option<&Obstacle>) -> Check {
    const NAME: &str = "Data folder";
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
        Error::Io(cause) if has_no_locks(cause) => no_locks("Locks"),
        Error::Unusable(cause) => match obstacle {
            Some(obstacle) => {
                let (sentence, cure) = forbidden(obstacle, rustix::process::geteuid().as_raw(), &user);
                Check::problem(NAME, sentence, cure)
            }
            None => Check::problem(
                NAME,
                format!("It cannot be used ({}).", cause.kind()),
                "Make it a folder on a disk that can be written, or set `RELAY_DATA_DIR` to another one.",
            ),
        },
        Error::NoDescriptors(_) => Check::problem(
            NAME,
            "The relay, or the machine, has too many files open.",
            "Allow the relay's user more of them: `ulimit -n`, or `LimitNOFILE` where systemd starts it.",
        ),
        Error::OtherVersion => Check::problem(
            NAME,
            "It was made by another version of the relay.",
            "Remove what is in it, but for `secret`, `settings.conf` and `ptth.json`: nothing else in it lives longer than a day.",
        ),
        Error::Busy => Check::note(
            NAME,
            "Another process is looking at it at this moment.",
            "Look again. If it stays like this, find a process of the relay that is stopped, and end it.",
        ),
        #[cfg(feature = "redis")]
        Error::Remote(remote) => Check::problem("Redis", remote.to_string(), remote.reason.cure()),
        Error::Io(_) | Error::QueueFull(_) | Error::TopicFull(_) | Error::DataFull(_) => {
            Check::problem(NAME, "It failed while it was tried out.", "The web server's error log has the cause.")
        }
    }
}

/// Which user may not do what, and what can be done about it, by root and by somebody who only has FTP.
fn forbidden(Obstacle { place, owner, mode }: &Obstacle, me: u32, user: &dyn Fn(u32) -> String) -> (String, String) {
    let (runs_as, owned) = (user(me), format!("belongs to {}, with permissions {mode:o}", user(*owner)));
    let is_own = *owner == me;
    let name = runs_as.trim_matches('`').rsplit(' ').next().unwrap_or_default().to_owned();
    match place {
        Place::DataFolder => (
            format!("The relay runs as {runs_as}, which may not use the data folder: it {owned}."),
            if is_own {
                "Give it permissions 700: `chmod 700 data`.".to_owned()
            } else {
                format!(
                    "With root: `chown -R {name}: data`. Without: give the folder `data`, and no other, permissions 777, and \
                     `settings.conf` in it 644; or make `data` a symbolic link to a folder that {runs_as} may write."
                )
            },
        ),
        Place::Above => (
            format!(
                "There is no data folder, and the relay runs as {runs_as}, which may not make one: the folder above {owned}."
            ),
            if is_own {
                "Give the folder above permissions 755.".to_owned()
            } else {
                format!(
                    "With root: `mkdir data; chown {name}: data`. Without: make the folder `data` there yourself, and give it, \
                     and no other, permissions 777; or make `data` a symbolic link to a folder that {runs_as} may write."
                )
            },
        ),
        Place::Inside(what) => (
            format!("The relay runs as {runs_as}, which may not use `{what}` in the data folder: it {owned}."),
            if is_own {
                format!("Give it to its owner again: `chmod -R u+rwX data/{what}`.")
            } else {
                format!("With root: `chown -R {name}: data`. Without: remove `{what}`, and the relay makes its own.")
            },
        ),
    }
}

/// A user as people call it. The system's own list is asked, which a static program can do.
fn user(number: u32) -> String {
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_it = |line: &&str| line.split(':').nth(2) == Some(number.to_string().as_str());
    match list.lines().find(is_it).and_then(|line| line.split(':').next()) {
        Some(name) => format!("`{name}`"),
        None => format!("user {number}"),
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
            Outcome::Ok | Outcome::Note { .. } => panic!("{check:?}"),
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
        let unusable = |error: &Error| unusable(error, None);
        let locks = unusable(&Error::Io(rustix::io::Errno::NOLCK.into()));
        assert_eq!(locks.name, "Locks");
        let denied = unusable(&Error::from(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)));
        assert!(denied.sentence.contains("read-only"), "{denied:?}");
        assert!(problem(&denied).contains("RELAY_DATA_DIR"));
        assert!(unusable(&Error::Busy).is_ok(), "somebody else who looks is no problem");
        assert!(problem(&unusable(&Error::DiskFull(io::ErrorKind::StorageFull.into()))).contains("room"));
        assert!(problem(&unusable(&Error::BadSecret)).contains("Remove it"));
        assert!(problem(&unusable(&Error::Io(io::Error::other("?")))).contains("error log"));
    }

    #[test]
    fn who_may_not_write_is_told_with_what_can_be_done_about_it() {
        let name = |number: u32| if number == 33 { "`www-data`".to_owned() } else { format!("user {number}") };
        let of = |place: Place, owner| forbidden(&Obstacle { place, owner, mode: 0o700 }, 33, &name);
        for place in [Place::DataFolder, Place::Above, Place::Inside("secret")] {
            let (sentence, cure) = of(place.clone(), 1001);
            for word in ["runs as `www-data`", "user 1001", "permissions 700"] {
                assert!(sentence.contains(word), "{sentence}");
            }
            assert!(
                cure.contains("With root: `") && cure.contains("www-data: data`") && cure.contains("Without: "),
                "{cure}"
            );
            let (_, cure) = of(place, 33);
            assert!(!cure.contains("chown") && !cure.contains("777"), "its own folder needs other permissions: {cure}");
        }
        assert!(of(Place::DataFolder, 1001).1.contains("and no other, permissions 777"));
        assert_eq!(user(0), "`root`");
        assert_eq!(user(4_294_967_294), "user 4294967294");
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
        let error = Settings::read(Some("\0".into()), |_| unreachable!()).unwrap_err();
        let list = wait(look(Err(&error), Audience::Terminal));
        assert_eq!(list.len(), 1, "{list:?}");
        assert!(problem(&list[0]).contains("settings.conf"), "{list:?}");
    }

    #[test]
    fn a_data_folder_that_cannot_be_made_is_a_problem_that_does_not_name_its_path() {
        let settings = Settings { data_dir: "/proc/no/such/folder".into(), ..Settings::default() };
        let list = wait(look(Ok(&settings), Audience::Terminal));
        assert!(!list.iter().all(Check::is_ok), "{list:?}");
        assert!(!format!("{list:?}").contains("/proc"), "{list:?}");
    }
}
