//! What tokens are signed with, unless a setting says.

use super::folder::lock_in_time;
use super::{Error, Files, if_there, private_file, read_small, replace};
use crate::hex;
use std::fs::File;
use std::path::Path;

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
        Ok(if_there(File::open(self.root.join("secret")).and_then(|file| read_small(&file)))?)
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
