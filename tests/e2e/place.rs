//! Where a test happens: a folder of its own, the program in it, and the user it runs as.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// A hang is caught by this, slowness never is: a machine with two cores runs many tests at once.
pub const LONG: Duration = Duration::from_secs(60);

/// A folder under the system's temporary folder, gone when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// A folder of its own in another place, gone when the test ends.
    pub fn below(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("uhst-relay-e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        set_mode(&path, 0o755);
        Self(path)
    }

    /// A folder laid out as on a shared host: `cgi-bin/relay.cgi`.
    pub fn with_program() -> Self {
        Self::with(&program())
    }

    /// The same with another program in its place.
    pub fn with(program: &Path) -> Self {
        let folder = Self::new();
        let cgi_bin = folder.join("cgi-bin");
        fs::create_dir(&cgi_bin).unwrap();
        set_mode(&cgi_bin, 0o755);
        install(program, &cgi_bin.join("relay.cgi"));
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A server that was killed a moment ago may still be writing its last file.
        for _ in 0..10 {
            if fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The program that `deploy/build` made.
pub fn program() -> PathBuf {
    built("relay.cgi")
}

/// One of the programs that `deploy/build` makes.
pub fn built(name: &str) -> PathBuf {
    let path = repository().join("target").join(name);
    assert!(path.is_file(), "{} is missing: `tests/run` or `deploy/build {name}` makes it", path.display());
    path
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Puts the program at `target`. By `cp`, because a file that this process has open for writing could leak into a
/// child that another thread forks at that moment, and running it would fail with "Text file busy".
pub fn install_program(target: &Path) {
    install(&program(), target);
}

fn install(program: &Path, target: &Path) {
    let done = Command::new("cp").arg(program).arg(target).status().expect("cp runs");
    assert!(done.success(), "cp to {} failed", target.display());
    set_mode(target, 0o755);
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("cannot chmod {}: {error}", path.display()));
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// A user of the system with no rights of its own.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// The user as whom the web servers run the program when root starts them.
pub fn web_user() -> User {
    user("www-data")
}

pub fn user(name: &str) -> User {
    let accounts = fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
    let account = accounts.lines().find(|line| line.starts_with(&format!("{name}:")));
    let mut fields = account.unwrap_or_else(|| panic!("this system has no user {name}")).split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).expect("a number in /etc/passwd");
    User { uid: number(), gid: number() }
}

pub fn give_to(path: &Path, user: User) {
    chown(path, Some(user.uid), Some(user.gid))
        .unwrap_or_else(|error| panic!("cannot chown {}: {error}", path.display()));
}

/// The settings a test wants, as the owner of a shared host writes them: `data/settings.conf` beside the program.
pub fn write_settings(data: &Path, settings: &[(&str, &str)], owner: Option<User>) {
    if settings.is_empty() {
        return;
    }
    let file = data.join("settings.conf");
    let mut text = String::from("# written by a test\n\n");
    for (name, value) in settings {
        writeln!(text, "{name}={value}").unwrap();
    }
    if !data.exists() {
        fs::create_dir(data).unwrap();
    }
    set_mode(data, 0o700);
    fs::write(&file, text).unwrap();
    set_mode(&file, 0o600);
    if let Some(owner) = owner {
        give_to(data, owner);
        give_to(&file, owner);
    }
}

/// Says that a test did not run, past the capture of the test harness; under CI that is a failure.
pub fn skip(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run this test: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: {reason}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Sets the time of a file, or a folder, back.
pub fn age(path: &Path, by: Duration) {
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.set_modified(std::time::SystemTime::now() - by).unwrap();
}

/// Is there such a program? Web servers live in `/usr/sbin`, which is not on everybody's PATH.
pub fn have(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
    path.split(':').any(|folder| Path::new(folder).join(program).is_file())
}

/// Asks again and again until the answer is yes. Panics with `what` when it stays no.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is in a log, once nothing more comes: a thread of its own writes it, after the answer that it is about.
pub fn settled_log(path: &Path) -> String {
    let read = || fs::read_to_string(path).unwrap_or_default();
    let mut log = read();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        let now = read();
        if now == log {
            break;
        }
        log = now;
    }
    log
}

/// The processes that run a program below `folder`, or work in it: what a server left behind, or its streams.
pub fn processes_below(folder: &Path) -> Vec<Pid> {
    let is_below =
        |entry: &Path, link: &str| fs::read_link(entry.join(link)).is_ok_and(|target| target.starts_with(folder));
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| is_below(&entry.path(), "exe") || is_below(&entry.path(), "cwd"))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| pid != std::process::id().cast_signed())
        .filter_map(Pid::from_raw)
        .collect()
}

/// The processes that run the relay of `folder` now.
pub fn relays_of(folder: &Path) -> Vec<Pid> {
    let program = folder.join("cgi-bin/relay.cgi");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program))
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// How many they are.
pub fn relays_running(folder: &Path) -> usize {
    relays_of(folder).len()
}

pub fn kill(pid: Pid, signal: Signal) {
    // It may have ended by itself in this moment.
    let _ = kill_process(pid, signal);
}

/// Every file and folder below `folder`, with `folder` itself first.
pub fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let path = found[next].clone();
        if path.is_dir() && !path.is_symlink() {
            // Sweeping may remove a folder while it is read.
            found.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        next += 1;
    }
    found
}

// ---- where the relay keeps what: no other lines of these tests know how the data folder is laid out

/// The records of all that the relay keeps of a kind: `hosts`, `buses`, `pipes` or `ptth`. Whoever has the lock of such a file
/// has the lock of the session, bus or queue of requests.
pub fn records(data: &Path, kind: &str) -> Vec<PathBuf> {
    let is_folder = ["pipes", "ptth"].contains(&kind);
    let is_record = |path: &PathBuf| {
        if is_folder {
            path.ends_with("session.json")
        } else {
            path.extension().is_none() && path.is_file() && !path.ends_with("counts")
        }
    };
    everything_below(&data.join(kind)).into_iter().filter(is_record).collect()
}

/// The record that `make` makes, and what it returns.
#[track_caller]
pub fn new_record<T>(data: &Path, kind: &str, make: impl FnOnce() -> T) -> (PathBuf, T) {
    let before = records(data, kind);
    let answer = make();
    let mut new = records(data, kind);
    new.retain(|record| !before.contains(record));
    assert_eq!(new.len(), 1, "one more of the {kind}");
    (new.remove(0), answer)
}

/// All files that there are for a session or a bus, its record first.
pub fn files_of(record: &Path) -> Vec<PathBuf> {
    let mut found = everything_below(record.parent().unwrap());
    found.retain(|path| path.file_stem() == record.file_stem());
    found.sort();
    found
}

/// What is said to the host of a session.
pub fn log_of_host(session: &Path) -> PathBuf {
    session.with_extension("host")
}

/// What is said to its clients.
pub fn log_of_clients(session: &Path) -> PathBuf {
    session.with_extension("clients")
}

/// Those that belong to a session, or read a bus.
pub fn members_of(record: &Path) -> PathBuf {
    record.with_extension("members")
}

/// What somebody has who tries out the disk: the file whose lock it holds, and one in which it writes.
pub fn probe_files(data: &Path) -> [PathBuf; 2] {
    ["session.json", "log"].map(|name| data.join("probe").join(name))
}

/// What says of which version the data folder is.
pub fn version_of(data: &Path) -> PathBuf {
    data.join("version")
}

/// What is left of the processes that listen, or have listened.
pub fn node_files(data: &Path) -> Vec<PathBuf> {
    let mut found = everything_below(&data.join("nodes")).split_off(1);
    found.sort();
    found
}

/// The FIFOs on which processes sleep.
pub fn fifos(data: &Path) -> Vec<PathBuf> {
    let mut found = node_files(data);
    found.retain(|path| fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_fifo()));
    found
}

/// Bytes of a line in a file of members or of users.
const LINE: usize = 384;

/// Each line of such a file that somebody has, by its number.
fn lines(file: &Path) -> Vec<(usize, String)> {
    let bytes = fs::read(file).unwrap_or_default();
    let lines = bytes.chunks(LINE).map(|line| String::from_utf8_lossy(line).into_owned()).enumerate();
    lines.filter(|(_, line)| line.starts_with('[')).collect()
}

/// The number of a client's line.
fn line_of(session: &Path, client: &str) -> Option<usize> {
    let is_its = |line: &str| line.contains(client);
    lines(&members_of(session)).into_iter().find_map(|(number, line)| is_its(&line).then_some(number))
}

/// Whether a session still knows a client.
pub fn has_member(session: &Path, client: &str) -> bool {
    line_of(session, client).is_some()
}

/// What a session knows of a client cannot be read any more.
pub fn damage_member(session: &Path, client: &str) {
    let file = fs::File::options().write(true).open(members_of(session)).unwrap();
    file.write_all_at(b"garbage\0\xFF", (line_of(session, client).unwrap() * LINE + 40) as u64).unwrap();
    forget_edition(session);
}

/// Has everybody read again what a session knows of its members, as whoever changes a line does.
fn forget_edition(session: &Path) {
    let file = fs::File::options().write(true).open(members_of(session)).unwrap();
    file.write_all_at(&[b' '; 16], 0).unwrap();
}

/// Those that read a bus and wait, each by what stays the same as long as it waits.
pub fn bus_readers(data: &Path) -> Vec<String> {
    let of = |bus: PathBuf| {
        lines(&members_of(&bus))
            .into_iter()
            .map(move |(number, line)| format!("{} {number}: {}", bus.display(), &line[32..]))
    };
    records(data, "buses").into_iter().flat_map(of).collect()
}

/// Has a client seem to have joined, and to have done everything else, so much earlier.
pub fn age_member(session: &Path, client: &str, by: Duration) {
    let start = line_of(session, client).unwrap() * LINE;
    age_times(&members_of(session), start..start + LINE, by);
    forget_edition(session);
}

/// Has the registered users of a bus seem so much older.
pub fn age_users(bus: &Path, by: Duration) {
    age_times(&bus.with_extension("users"), 0..usize::MAX, by);
}

/// Has everything in a log seem to have been said so much earlier.
pub fn age_log(log: &Path, by: Duration) {
    age_times(log, 0..usize::MAX, by);
    age(log, by);
}

/// The same of all logs.
pub fn age_logs(data: &Path, by: Duration) {
    for log in everything_below(data) {
        if ["host", "clients", "log"].iter().any(|kind| log.extension().is_some_and(|found| found == *kind)) {
            age_log(&log, by);
        }
    }
}

/// Sets the times of the last day back that a file names in this range: numbers of thirteen digits, in milliseconds.
fn age_times(file: &Path, range: Range<usize>, by: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let mut bytes = fs::read(file).unwrap();
    let range = range.start..range.end.min(bytes.len());
    for number in bytes[range].split_mut(|byte| !byte.is_ascii_digit()).filter(|number| number.len() == 13) {
        let time: u128 = std::str::from_utf8(number).unwrap().parse().unwrap();
        if time.abs_diff(now) < Duration::from_secs(86_400).as_millis() {
            number.copy_from_slice((time - by.as_millis()).to_string().as_bytes());
        }
    }
    // In its place: others may have it open.
    fs::File::options().write(true).open(file).unwrap().write_all_at(&bytes, 0).unwrap();
}

/// The bytes of all files below a folder, as long as they say they are.
pub fn bytes_below(folder: &Path) -> u64 {
    let length =
        |path: PathBuf| fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |file| file.len());
    everything_below(folder).into_iter().map(length).sum()
}

/// Waits until something can be read there, the end included; false when the deadline passes first.
pub fn readable(fd: impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}
