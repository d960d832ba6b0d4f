//! Two parties, a host and a guest, with a pipe each way, under one lock.

use super::folder::Folder;
use super::pipe::Pipe;
use super::{Error, Files, Kind};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::SystemTime;

/// What `session.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DuplexRecord {
    /// SHA-256 of the host's token, in base64url.
    pub token_hash: String,
    /// Whether only the guest with the address below may use it.
    pub is_secure: bool,
    /// The guest's address, once the host has named it.
    pub guest: Option<IpAddr>,
    /// Whether a sender has ever met a receiver.
    #[serde(default)]
    pub has_met: bool,
}

/// Which way a pipe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest.
    ToHost,
    /// From the host.
    ToGuest,
}

impl Direction {
    const ALL: [Self; 2] = [Self::ToHost, Self::ToGuest];

    fn name(self) -> &'static str {
        match self {
            Self::ToHost => "to-host",
            Self::ToGuest => "to-guest",
        }
    }
}

/// Two parties' session, locked.
pub struct Duplex {
    folder: Folder<DuplexRecord>,
    record: Option<DuplexRecord>,
}

impl Files {
    /// Locks a session; `None` where there is none.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn duplex(&self, id: &str) -> Result<Option<Duplex>, Error> {
        let Some(folder) = self.open(Kind::Pipes, id)? else { return Ok(None) };
        let duplex = Duplex::read(folder)?;
        Ok(duplex.record.is_some().then_some(duplex))
    }

    /// Makes a session with a fresh id; `None` where there are `most` already.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn new_duplex(&self, id: &str, record: DuplexRecord, most: u64) -> Result<Option<Duplex>, Error> {
        let Some(folder) = self.open_or_make(Kind::Pipes, id, most)? else { return Ok(None) };
        folder.write(&record)?;
        Ok(Some(Duplex { folder, record: Some(record) }))
    }
}

impl Duplex {
    pub(super) fn read(folder: Folder<DuplexRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { folder, record })
    }

    /// The record; `None` where it is missing or damaged.
    #[must_use]
    pub fn record(&self) -> Option<&DuplexRecord> {
        self.record.as_ref()
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_record(&mut self, record: DuplexRecord) -> Result<(), Error> {
        self.folder.write(&record)?;
        self.record = Some(record);
        Ok(())
    }

    /// Notes that a sender has met a receiver, where that is news.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_met(&mut self) -> Result<(), Error> {
        match self.record.clone() {
            Some(record) if !record.has_met => self.set_record(DuplexRecord { has_met: true, ..record }),
            _ => Ok(()),
        }
    }

    /// When it was used last.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn touched(&self) -> Result<SystemTime, Error> {
        self.folder.touched()
    }

    /// Makes it count as used now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn touch(&self) -> Result<(), Error> {
        self.folder.touch()
    }

    /// One of the two pipes.
    #[must_use]
    pub fn pipe(&self, direction: Direction) -> Pipe<'_> {
        Pipe::new(&self.folder, self.folder.path().join(direction.name()))
    }

    /// Whether somebody receives or sends. Removes what killed ones have left behind.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        let mut in_use = false;
        for direction in Direction::ALL {
            in_use |= self.pipe(direction).is_in_use()?;
        }
        Ok(in_use)
    }

    /// Whether nobody has met in it, and nobody waits.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_unused(&self) -> Result<bool, Error> {
        Ok(!self.record.as_ref().is_some_and(|record| record.has_met) && !self.is_in_use()?)
    }

    /// Removes the session. Whoever receives or sends is woken, and finds it gone.
    ///
    /// # Errors
    /// When something cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        for direction in Direction::ALL {
            self.pipe(direction).remove()?;
        }
        self.folder.remove()
    }
}
