//! The home of the store that needs nothing but a folder, and the only code that names a path below it.
//!
//! ```text
//! data/
//!   .htaccess index.html        say no to a web server that would publish the folder
//!   version                     which layout this is: only one that is known is used
//!   settings.conf               optional, see the config module
//!   secret                      what tokens are signed with, unless JWT_SECRET is set
//!   secret.lock                 held by whoever makes the secret
//!   ptth.json                   the servers of PTTH
//!   ptth.lock                   held by whoever changes them
//!   sweep                       when the last sweep was, and where it stopped
//!   probe/                      here while somebody looks at the health of the disk
//!   probe.json                  what was found there last, and when
//!   nodes/ID                    a process that listens, which holds the lock of this file
//!   nodes/ID.wake               what it sleeps on
//!   hosts/counts                how many sessions each shard has
//!   hosts/XX/HASH               a session, its record and its lock: HASH is of the host's id, XX its first two digits (the
//!                               shard). Beside it stands what there is once somebody joins or listens:
//!   hosts/XX/HASH.members       a table of the host's registrations and the clients
//!   hosts/XX/HASH.host          the log of what is said to the host
//!   hosts/XX/HASH.clients       the log of what is said to the clients
//!   buses/counts                how many buses each shard has
//!   buses/XX/HASH               a broadcast bus, its record and its lock: HASH is of its name
//!   buses/XX/HASH.log           its messages
//!   buses/XX/HASH.members       a table of the readers that wait
//!   buses/XX/HASH.users         a table of the registered users
//!   pipes/counts pipes/XX/HASH/ two parties with a pipe each way: HASH is of their session's id
//!     session.json              its record, and the lock of everything below
//!     to-host/ to-guest/        a pipe
//!       receiver                what its receiver sleeps on: whether there is one. A FIFO, or a link that names a node
//!       data taken              while no sender has taken them: the bytes, for a sender of another process than that node, and
//!                               how many of them the receiver's client took
//!       sender-NUMBER           what a sender sleeps on, as above
//!   ptth/counts ptth/XX/HASH/   the requests of a server of PTTH: HASH is of its name
//!     session.json              its record, and the lock for whoever makes or removes the folders below
//!     far-ends/NUMBER           what a far end sleeps on that waits for requests, as above. This folder changes last when one
//!                               comes or goes
//!     waiting/ID given/ID       a request that no far end has, or that one has and has not begun to answer
//!     clients/ID answers/ID     until then: what its client sleeps on, and what the answer comes through, as in a pipe
//! ```
//!
//! Three rules keep it whole when processes are killed at any moment:
//! everything in a session, or a bus, changes under the `flock` on its record, which only [`folder::Folder`] hands
//! out, or, as the requests of PTTH, by single steps that the kernel does for one process only (`rename`, `unlink`);
//! presence is a kernel object that ends with its process (the `flock` of a node, a FIFO that somebody
//! has open); and a file is either appended to in whole
//! records, overwritten with a single write of constant size, or replaced by a rename.

pub mod bus;
mod counts;
pub mod ends;
pub mod far_ends;
pub mod folder;
mod kept;
mod knock;
mod link;
mod log;
mod meeting;
mod members;
mod near;
pub mod node;
pub mod pipes;
pub mod probe;
mod receipt;
pub mod requests;
mod secret;
mod servers;
pub mod session;
pub mod shelf;
mod sleeper;
pub mod sweep;
mod topic;
pub mod wake;

pub use super::error::Error;
use crate::hex;
use rustix::io::{pread, retry_on_intr};
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What the file `version` says: it changes with the layout. A folder of another one is refused, and not brought up to date,
/// because nothing that the relay keeps lives longer than a day.
const VERSION: &str = "3\n";

/// What nobody has used yet is kept for so long, whoever else wants its place.
const UNUSED_TIME: Duration = Duration::from_secs(60);

/// What has a folder for each of its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sessions of the UHST relay, by host id.
    Hosts,
    /// The broadcast buses, by name.
    Buses,
    /// The sessions of two parties with a pipe each way, by their own id.
    Pipes,
    /// The requests that wait for servers of PTTH, by server.
    Ptth,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Hosts, Self::Buses, Self::Pipes, Self::Ptth];

    /// The folder under the data folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Buses => "buses",
            Self::Pipes => "pipes",
            Self::Ptth => "ptth",
        }
    }
}

/// The data folder.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Nothing is opened or made before it is needed.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder of `id` among the folders of `kind`. The name is a hash, so that no id can become a path, whatever
    /// it is made of and however long.
    fn folder(&self, kind: Kind, id: &str) -> PathBuf {
        let name = hash_name(id);
        let mut path = self.root.join(kind.name());
        path.push(&name[..2]);
        path.push(&name);
        path
    }

    /// Makes the data folder alone, if it is missing.
    fn make_bare_root(&self) -> Result<(), Error> {
        make_dirs(&self.root).map_err(|error| match Error::from(error) {
            Error::Io(error) => Error::Unusable(error),
            other => other,
        })
    }

    /// Whether anything is kept in it.
    fn is_used(&self) -> bool {
        Kind::ALL.iter().any(|kind| self.root.join(kind.name()).exists())
    }

    /// Makes the data folder with its deny files, and `inside` it, if any of them is missing.
    fn make_root(&self, inside: &Path) -> Result<(), Error> {
        self.make_bare_root()?;
        self.check_version()?;
        for (name, content) in [
            (".htaccess", include_str!("../../../data/.htaccess")),
            ("index.html", include_str!("../../../data/index.html")),
            ("version", VERSION),
        ] {
            // The first two are for people whose web server would publish the folder.
            let path = self.root.join(name);
            if identity_at(&path)?.is_none() {
                // Two processes may be at it at once, so each writes beside it under a name of its own.
                replace(&path, &self.root.join(format!("{name}.{}", hex::random(4)?)), content.as_bytes())?;
            }
        }
        Ok(make_dirs(&self.root.join(inside))?)
    }

    /// The user and the group whose the data folder is, if the user is not this process's: what this process would write
    /// there, the relay could not use.
    #[must_use]
    pub fn other_owner(&self) -> Option<(u32, u32)> {
        let folder = std::fs::metadata(&self.root).ok()?;
        Some((folder.uid(), folder.gid())).filter(|(user, _)| *user != rustix::process::geteuid().as_raw())
    }

    /// Makes the data folder, and writes in it, so that whoever starts a server learns at once whether it can.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn prepare(&self) -> Result<(), Error> {
        self.make_root(Path::new("hosts"))?;
        private_file(&self.root.join("secret.lock"))?;
        self.all_is_ours()
    }

    /// Runs `make`, and if it finds no folder to make something in, makes the data folder and `inside` and tries again.
    fn with_root<T>(&self, inside: &Path, make: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        match make() {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.make_root(inside)?;
                make()
            }
            other => other,
        }
    }
}

/// `None` where what was to be opened, looked at or removed is not there.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// A file name made of a text that may be anything.
fn hash_name(text: &str) -> String {
    crate::hex::encode(&Sha256::digest(text.as_bytes())[..20])
}

/// The names in a folder; none where there is no folder.
fn names(path: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in if_there(std::fs::read_dir(path))?.into_iter().flatten() {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// When a file was changed last; `None` where there is none.
fn modified(path: &Path) -> Result<Option<SystemTime>, Error> {
    Ok(if_there(std::fs::metadata(path).and_then(|metadata| metadata.modified()))?)
}

/// A folder nobody else can enter, and those above it. An existing one is left as it is.
fn make_dirs(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// False where it is there already.
fn make_dir(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    }
}

/// A file nobody else can read, made if it is missing.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes a file beside its place and renames it into it.
fn replace(path: &Path, beside: &Path, content: &[u8]) -> io::Result<()> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside)?;
        file.write_all(content)?;
        // What is written this way must survive a power cut: without the secret every token is void.
        file.sync_all()?;
        std::fs::rename(beside, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(beside);
    }
    written
}

/// Which file it is, whatever its name: to see that a path has come to mean another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity(u64, u64);

fn identity(metadata: &std::fs::Metadata) -> FileIdentity {
    FileIdentity(metadata.dev(), metadata.ino())
}

/// The identity of what `path` names now; `None` when it names nothing.
fn identity_at(path: &Path) -> io::Result<Option<FileIdentity>> {
    if_there(std::fs::symlink_metadata(path).map(|metadata| identity(&metadata)))
}

/// Removing what is not there is done.
fn remove_file(path: &Path) -> io::Result<()> {
    if_there(std::fs::remove_file(path)).map(drop)
}

/// Removes a folder, and tells whether it is gone: one that is not empty, or no folder, stays.
fn remove_dir(path: &Path) -> io::Result<bool> {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory};
    match std::fs::remove_dir(path) {
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotADirectory) => Ok(false),
        other => if_there(other).map(|_| true),
    }
}

/// Reads a file that is usually small from its beginning, whatever its cursor. One read is nearly always enough.
fn read_small(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut got = 0;
    loop {
        got += retry_on_intr(|| pread(file, &mut bytes[got..], got as u64))?;
        // What is larger is damaged.
        if got < bytes.len() || got >= 1 << 20 {
            bytes.truncate(got);
            return Ok(bytes);
        }
        bytes.resize(2 * got, 0);
    }
}

#[cfg(test)]
pub(crate) mod test_dir {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder of its own for one test, removed at its end.
    pub struct TestDir(PathBuf);

    impl TestDir {
        pub fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!("uhst-relay-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
