//! Appending to a log, and dropping what is dead from its beginning.

use super::super::kept::Kept;
use super::super::{Error, FileIdentity, identity, if_there, remove_file};
use super::{Address, HEADER_LEN, HEADER_SIZE, LENGTH_SIZE, header, new_base, parse_header};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A log as a writer has it, under the lock of its owner (which the caller holds).
pub struct Writer {
    file: File,
    identity: FileIdentity,
    base: u64,
    size: u64,
}

/// The logs that were written to last.
static KEPT: Kept<Writer> = Kept::new();

/// Closes those that nobody has written to since this was called last.
pub fn close_unused() {
    KEPT.close_unused();
}

impl Writer {
    /// Opens the log, makes it where it is missing, and mends what a killed writer or a stranger left in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // What another process has written to, or a stranger, is looked at whole.
        if let Some(kept) = KEPT.take(path)
            && kept.is_current(path)?
        {
            return Ok(kept);
        }
        let Some(file) = if_there(OpenOptions::new().read(true).append(true).open(path))? else {
            return Ok(Self::create(path)?);
        };
        let metadata = file.metadata()?;
        let size = metadata.len();
        let mut head = [0; HEADER_SIZE];
        match file.read_exact_at(&mut head, 0) {
            // It is not the log that is damaged; what it holds is not to be given up for that.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        if let Some(base) = parse_header(&head) {
            let mut writer = Self { file, identity: identity(&metadata), base, size };
            writer.cut_torn_tail()?;
            return Ok(writer);
        }
        if size == 0 {
            // Made when there was no room for the header.
            return Ok(Self::begin(file)?);
        }
        say!("uhst-relay: a log was damaged and begins anew: {}", path.display());
        remove_file(path)?;
        Ok(Self::create(path)?)
    }

    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path)?;
        Self::begin(file)
    }

    /// Keeps it open for the next one that writes to the log.
    pub fn keep(self, path: &Path) {
        KEPT.keep(path, self);
    }

    /// Whether it is the log at this path, as it was left.
    fn is_current(&self, path: &Path) -> io::Result<bool> {
        let there = if_there(std::fs::metadata(path))?;
        Ok(there.is_some_and(|there| identity(&there) == self.identity && there.len() == self.size))
    }

    fn begin(file: File) -> io::Result<Self> {
        let mut writer = Self { identity: identity(&file.metadata()?), file, base: new_base(), size: 0 };
        writer.write_whole(header(writer.base).as_bytes())?;
        Ok(writer)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        self.size = size;
        Ok(())
    }

    fn cut_torn_tail(&mut self) -> io::Result<()> {
        let mut end = self.size;
        let mut block = [0; 4096];
        let mut probe = 1;
        while end > HEADER_LEN {
            let start = end.saturating_sub(probe).max(HEADER_LEN);
            let part = &mut block[..usize::try_from(end - start).unwrap_or(0)];
            self.file.read_exact_at(part, start)?;
            if let Some(line_end) = part.iter().rposition(|byte| *byte == b'\n') {
                end = start + line_end as u64 + 1;
                break;
            }
            end = start;
            // Nearly always the last byte is a line end and one byte was enough.
            probe = block.len() as u64;
        }
        if end < self.size {
            self.truncate(end)?;
        }
        Ok(())
    }

    /// One `write`; a short one (the disk is full) is taken back, so that no reader ever sees half a record.
    fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.size;
        let outcome = loop {
            match (&self.file).write(bytes) {
                Ok(written) if written == bytes.len() => break Ok(()),
                Ok(_) => break Err(io::ErrorKind::StorageFull.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        match outcome {
            Ok(()) => self.size += bytes.len() as u64,
            Err(_) => self.truncate(before)?,
        }
        outcome
    }

    /// The id at which this file begins.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The id of the last record (or of the beginning): where the next one starts.
    pub fn end(&self) -> u64 {
        self.base + (self.size - HEADER_LEN)
    }

    /// The bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a record of this time (ms since 1970), and gives it its id. Also what was written, with the
    /// line end before it.
    pub fn append(&mut self, time: u64, to: &Address, event: &str, data: &str) -> Result<(u64, Vec<u8>), Error> {
        debug_assert!(!event.contains([' ', '\n', '\r']) && !data.contains(['\n', '\r', '\0']));
        let head = format!(" {time} {to} {event} ");
        let length = LENGTH_SIZE + head.len() + data.len() + 1;
        let bytes = format!("\n{length:0LENGTH_SIZE$}{head}{data}\n").into_bytes();
        self.write_whole(&bytes[1..])?;
        Ok((self.end(), bytes))
    }

    /// Drops everything up to the id `keep_from` (a record's end): what follows it moves to a new file, which takes
    /// this one's place under `path`. A reader that has the old one open at that moment finds the new one next time.
    ///
    /// On a full disk there is no room for that. Then the blocks of what is dropped are given back to it, and the file
    /// has a hole.
    pub fn compact(self, path: &Path, beside: &Path, keep_from: u64) -> Result<(), Error> {
        let offset = HEADER_LEN + (keep_from.clamp(self.base, self.end()) - self.base);
        let mut old = &self.file;
        let written = (|| {
            old.seek(SeekFrom::Start(offset))?;
            let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside)?;
            new.write_all(header(self.base + (offset - HEADER_LEN)).as_bytes())?;
            io::copy(&mut old.take(self.size - offset), &mut new)?;
            std::fs::rename(beside, path)
        })();
        match written {
            Err(error) => {
                let _ = std::fs::remove_file(beside);
                match Error::from(error) {
                    Error::DiskFull(_) => Ok(self.punch_hole(offset)?),
                    other => Err(other),
                }
            }
            Ok(()) => Ok(()),
        }
    }

    fn punch_hole(&self, end: u64) -> io::Result<()> {
        // Whole blocks only are given back, and the first one has the header.
        const BLOCK: u64 = 4096;
        // The line end before what stays must stay, too.
        let end = end.saturating_sub(1) / BLOCK * BLOCK;
        if end > BLOCK {
            use rustix::fs::{FallocateFlags, fallocate};
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, BLOCK, end - BLOCK)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
