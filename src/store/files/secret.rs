//! What tokens are signed with, unless a setting says.

use super::folder::lock_in_time;
use super::kept::{Kept, holds};
use super::{Error, FileIdentity, Files, identity, if_there, private_file, read_small, replace};
use crate::clock::is_recent;
use crate::hex;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The secret as it was read last: every token is checked with it.
struct Known {
    secret: Vec<u8>,
    version: Version,
    seen: Instant,
}

/// That of each data folder, which is one.
static KNOWN: Kept<Known> = Kept::new();

/// Which file it was, and when that was changed last, which nobody can forge.
type Version = (FileIdentity, i64, i64);

fn version(about: &Metadata) -> Version {
    (identity(about), about.ctime(), about.ctime_nsec())
}

/// Whether whatever is changed from now on has another version, by the clock of the file system.
fn is_past((_, seconds, _): Version) -> bool {
    let changed = UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
    !is_recent(changed, Duration::from_secs(2))
}

impl Files {
    pub fn secret(&self) -> Result<Vec<u8>, Error> {
        let secret = match self.read_secret()? {
            Some(secret) => secret,
            None => self.make_secret()?,
        };
        // It is written in one piece and renamed into place, so a short one is somebody else's doing. Signing with an
        // empty secret would be an open door.
        if secret.len() < 32 { Err(Error::BadSecret) } else { Ok(secret) }
    }

    fn read_secret(&self) -> Result<Option<Vec<u8>>, Error> {
        let path = self.root.join("secret");
        if let Some(mut known) = KNOWN.take(&path) {
            let is_seen = holds(known.seen);
            if is_seen || if_there(std::fs::metadata(&path))?.is_some_and(|there| version(&there) == known.version) {
                known.seen = if is_seen { known.seen } else { Instant::now() };
                let secret = known.secret.clone();
                KNOWN.keep(&path, known);
                return Ok(Some(secret));
            }
        }
        let Some(file) = if_there(File::open(&path))? else { return Ok(None) };
        // Before it is read: what is written meanwhile is seen by the next one.
        let version = if cfg!(feature = "serve") { Some(version(&file.metadata()?)) } else { None };
        let secret = read_small(&file)?;
        if let Some(version) = version.filter(|version| is_past(*version)) {
            KNOWN.keep(&path, Known { secret: secret.clone(), version, seen: Instant::now() });
        }
        Ok(Some(secret))
    }

    fn make_secret(&self) -> Result<Vec<u8>, Error> {
        let lock_path = self.root.join("secret.lock");
        let lock = self.with_root(Path::new(""), || Ok(private_file(&lock_path)?))?;
        lock_in_time(&lock, &lock_path)?;
        // Another process may have been faster.
        if let Some(secret) = self.read_secret()? {
            return Ok(secret);
        }
        let secret = hex::random(32)?.into_bytes();
        replace(&self.root.join("secret"), &self.root.join("secret.new"), &secret)?;
        Ok(secret)
    }
}
