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
//!       receiver                what its receiver sleeps on: whether there is one
//!       data taken              while no sender has taken them: the bytes, and how many of them the receiver's client took
//!       sender-NUMBER           what a sender sleeps on
//!   ptth/counts ptth/XX/HASH/   the requests of a server of PTTH: HASH is of its name
//!     session.json              its record, and the lock for whoever makes or removes the folders below
//!     listeners                 the FIFO on which its far ends wait, touched when one has come or gone last
//!     waiting/ID given/ID       a request that no far end has, or that one has and has not begun to answer
//!     clients/ID answers/ID     until then: what its client sleeps on, and what the answer comes through
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
mod log;
mod meeting;
mod members;
mod node;
pub mod pipes;
pub mod probe;
pub mod requests;
mod servers;
pub mod session;
pub mod shelf;
pub mod sweep;
mod topic;
pub mod wake;

pub use super::Error;
use crate::hex;
pub use node::OneNode;
use sha2::{Digest, Sha256};
use shelf::Kind;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the file `version` says: it changes with the layout. A folder of another one is refused, and not brought up to date,
/// because nothing that the relay keeps lives longer than a day.
const VERSION: &str = "2\n";

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

    /// Fails in a folder that another version of the relay has made.
    fn check_version(&self) -> Result<(), Error> {
        let version = || match std::fs::read(self.root.join("version")) {
            Ok(version) => Ok(Some(version)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::from(error)),
        };
        let is_used = || Kind::ALL.iter().any(|kind| self.root.join(kind.name()).exists());
        match version()? {
            Some(version) if version == VERSION.as_bytes() => Ok(()),
            Some(_) => Err(Error::OtherVersion),
            // The version is written before anything else, by somebody else perhaps, and just now.
            None if is_used() && version()?.is_none() => Err(Error::OtherVersion),
            None => Ok(()),
        }
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

    /// Makes the data folder, and writes in it, so that who starts a server learns at once whether it can.
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

    /// What tokens are signed with: made of 32 random bytes by whichever process comes first.
    ///
    /// # Errors
    /// When it can neither be read nor made, or is damaged.
    pub fn secret(&self) -> Result<Vec<u8>, Error> {
        let path = self.root.join("secret");
        let secret = match File::open(&path).and_then(|file| read_small(&file)) {
            Ok(secret) => secret,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_secret(&path)?,
            Err(error) => return Err(error.into()),
        };
        // It is written in one piece and renamed into place, so a short one is somebody else's doing. Signing with an
        // empty secret would be an open door.
        if secret.len() < 32 { Err(Error::BadSecret) } else { Ok(secret) }
    }

    fn make_secret(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let lock_path = self.root.join("secret.lock");
        let lock = self.with_root(Path::new(""), || Ok(private_file(&lock_path)?))?;
        folder::lock_in_time(&lock, &lock_path)?;
        match std::fs::read(path) {
            Ok(secret) => return Ok(secret),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let secret = hex::random(32)?.into_bytes();
        replace(path, &self.root.join("secret.new"), &secret)?;
        Ok(secret)
    }
}

/// A file name made of a text that may be anything.
fn hash_name(text: &str) -> String {
    crate::hex::encode(&Sha256::digest(text.as_bytes())[..20])
}

/// The names in a folder; none where there is no folder.
fn names(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// When a file was changed last; `None` where there is none.
fn modified(path: &Path) -> Result<Option<SystemTime>, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.modified()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
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
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(identity(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removing what is not there is done.
fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads a file that is usually small from its beginning, whatever its cursor. One read is nearly always enough.
fn read_small(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut got = 0;
    loop {
        match file.read_at(&mut bytes[got..], got as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => got += other?,
        }
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
