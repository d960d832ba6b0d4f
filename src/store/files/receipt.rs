//! What stands on the disk of a receiver: its names, and what the two ends tell each other of the bytes.

use super::{Error, Files, if_there, remove_file};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where the files of a receiver are. Whoever makes or takes one holds a lock, unless the names are never used again.
#[derive(Clone, Debug)]
pub(super) struct ReceiverPaths {
    /// What it sleeps on.
    pub receiver: PathBuf,
    /// What the bytes come through.
    pub data: PathBuf,
    /// What is known of them.
    pub receipt: PathBuf,
}

impl ReceiverPaths {
    /// Whether there is a receiver. It is not woken.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn are_received(&self, files: &Files) -> Result<bool, Error> {
        Ok(files.find_sleeper(&self.receiver)?.is_some())
    }

    /// Removes the files. As long as the first is there nobody else makes any of these names, so it goes last.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for name in [&self.data, &self.receipt, &self.receiver] {
            remove_file(name)?;
        }
        Ok(())
    }
}

/// What the two ends tell each other of the bytes: whether the sender has ended, and how many the receiver's client has
/// taken. It takes no more room once it is made.
pub(super) struct Receipt(File);

impl Receipt {
    const ENDED: [u8; 1] = [1];
    const COUNT_AT: u64 = Self::ENDED.len() as u64;
    /// What the count says before there is one.
    const NOT_BEGUN: u64 = u64::MAX;

    /// Made by the receiver, now, while a full disk can still be told. `rest` stands after it.
    pub fn make(path: &Path, rest: &[u8]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all_at(&[&[0], &Self::NOT_BEGUN.to_be_bytes()[..], rest].concat(), 0)?;
        Ok(Self(file))
    }

    /// `None` where the sender has it already.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        if_there(OpenOptions::new().read(true).write(true).open(path).map(Self))
    }

    pub fn count(&self, taken: u64) -> io::Result<()> {
        self.0.write_all_at(&taken.to_be_bytes(), Self::COUNT_AT)
    }

    pub fn taken(&self) -> io::Result<Option<u64>> {
        let mut count = [0; 8];
        self.0.read_exact_at(&mut count, Self::COUNT_AT)?;
        Ok(Some(u64::from_be_bytes(count)).filter(|count| *count != Self::NOT_BEGUN))
    }

    pub fn end(&self) {
        // Where it cannot be written, the receiver takes the bytes for cut short.
        let _ = self.0.write_all_at(&Self::ENDED, 0);
    }

    pub fn has_ended(&self) -> bool {
        let mut mark = [0];
        self.0.read_exact_at(&mut mark, 0).is_ok() && mark == Self::ENDED
    }
}

/// How long a receipt is.
pub(super) const RECEIPT_SIZE: usize = Receipt::ENDED.len() + size_of::<u64>();

/// What stands after the receipt in a file.
pub(super) fn after_receipt(file: &[u8]) -> Option<&[u8]> {
    file.get(RECEIPT_SIZE..)
}
