//! Reading a log, from any id on.

use super::super::if_there;
use super::recent::{Piece, Recent};
use super::{Address, HEADER_LEN, HEADER_SIZE, Record, digits, parse_head, parse_header};
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much a reader takes from the file at once, if that is a whole record.
const READ_SIZE: usize = 96 * 1024;

/// The same where others of this process read with it: mostly it is one message, and they may be thousands.
const SHARED_SIZE: usize = 16 * 1024;

/// It is not worth looking for less than this that can go.
const GRAIN: u64 = 64 * 1024;

/// A log as a reader has it. No lock is needed, and no file is held open between two reads: there may be thousands of
/// readers in a process, and a log that was compacted is found without looking for it.
pub struct Reader {
    path: PathBuf,
    base: u64,
    /// The id up to which records have been taken.
    position: u64,
    /// Whether something was dropped before it was read.
    has_lost: bool,
    /// What others of this process read too.
    recent: Option<Arc<Recent>>,
    /// How much it takes from the file at once.
    size: usize,
}

impl Reader {
    /// Opens a log that a [`Writer`] has made, to read what comes after `position`. A position that is not in it (from a
    /// log that was lost) means its beginning.
    pub fn open(path: &Path, position: u64) -> io::Result<Self> {
        let mut reader =
            Self { path: path.to_owned(), base: 0, position, has_lost: false, recent: None, size: READ_SIZE };
        let file = reader.file()?;
        if !reader.is_record_end(&file, position)? {
            reader.position = reader.base;
        }
        Ok(reader)
    }

    fn file(&mut self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        let mut head = [0; HEADER_SIZE];
        file.read_exact_at(&mut head, 0)?;
        self.base = parse_header(&head).ok_or(io::ErrorKind::InvalidData)?;
        Ok(file)
    }

    /// Goes to `id`, which a stranger gives. False where the log does not have it: then to its beginning if the id is older
    /// than that, and nowhere if no record ends there.
    pub fn resume(&mut self, id: u64) -> io::Result<bool> {
        let file = self.file()?;
        if self.is_record_end(&file, id)? {
            self.position = id;
            return Ok(true);
        }
        if id < self.base {
            self.position = self.base;
        }
        Ok(false)
    }

    /// Goes on to `id` where it is further on, and a place that this store has given out itself.
    pub fn skip_to(&mut self, id: u64) {
        self.position = self.position.max(id);
    }

    /// Goes to where everything after `id` is read from, and as little as can be of what comes before.
    pub fn seek(&mut self, id: u64) -> io::Result<()> {
        let file = self.file()?;
        self.position = id;
        if !self.is_record_end(&file, id)? {
            let before = self.record_end(&file, id.saturating_sub(GRAIN).max(self.base))?;
            self.position = before.unwrap_or(self.base);
        }
        Ok(())
    }

    /// Goes back by so many bytes at most, to where a record begins.
    pub fn go_back(&mut self, bytes: u64) -> io::Result<()> {
        let file = self.file()?;
        let from = self.position.saturating_sub(bytes).max(self.base);
        self.position = self.record_end(&file, from)?.unwrap_or(self.position);
        Ok(())
    }

    /// Where the byte before `id`'s next record is; `None` where no file reaches.
    fn offset_before(&self, id: u64) -> Option<u64> {
        let after = id.checked_sub(self.base)?;
        (after <= i64::MAX as u64 - HEADER_LEN).then_some(HEADER_LEN + after - 1)
    }

    /// Whether `id` is where a record ends, or the file begins.
    fn is_record_end(&self, file: &File, id: u64) -> io::Result<bool> {
        let Some(offset) = self.offset_before(id) else { return Ok(false) };
        let mut byte = [0];
        Ok(file.read_at(&mut byte, offset)? == 1 && byte == *b"\n")
    }

    /// Has it take so much at once, if that is a whole record.
    pub fn take_at_once(&mut self, size: usize) {
        self.size = size;
    }

    /// Has it read what others of this process have read already of the log at this path.
    pub fn share(&mut self, recent: impl FnOnce(&Path) -> Option<Arc<Recent>>) {
        self.recent = recent(&self.path);
        if self.recent.is_some() {
            self.size = self.size.min(SHARED_SIZE);
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether, since the last time this was asked, something was dropped before it was read.
    pub fn has_lost(&mut self) -> bool {
        std::mem::take(&mut self.has_lost)
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether the log ends elsewhere than where this reader is.
    pub fn has_more(&self) -> io::Result<bool> {
        let end = HEADER_LEN + self.position.saturating_sub(self.base);
        let has_more = if_there(std::fs::metadata(&self.path))?.is_some_and(|metadata| metadata.len() != end);
        if let Some(recent) = self.recent.as_ref().filter(|_| has_more) {
            // Whoever wrote it may have been killed before it knocked.
            recent.knock();
        }
        Ok(has_more)
    }

    /// Up to where the log may be [compacted](Writer::compact): what lies before the position and was written before
    /// `oldest` (ms since 1970), or more than `most` bytes before the position. The beginning, if that is nothing.
    ///
    /// It is found by halving, and then by reading a little.
    pub fn dead_up_to(&mut self, oldest: u64, most: u64) -> io::Result<u64> {
        let file = self.file()?;
        let end = self.position.max(self.base);
        let mut dead = self.base;
        if end - self.base > most {
            dead = self.record_end(&file, end - most)?.unwrap_or(self.base);
        }
        let mut alive = end;
        while alive.saturating_sub(dead) > GRAIN {
            let middle = dead + (alive - dead) / 2;
            match self.record_end(&file, middle)? {
                // What was written before this one is older.
                Some(id) if id < alive && self.time_after(&file, id)? < oldest => dead = id,
                _ => alive = middle,
            }
        }
        // What is left is little enough to be read.
        let mut rest = Self {
            path: self.path.clone(),
            base: self.base,
            position: dead,
            has_lost: false,
            recent: None,
            size: READ_SIZE,
        };
        let (bytes, _) = rest.whole_lines(&file, &mut |_| true)?;
        let mut id = dead;
        for line in bytes.get(1..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            id += line.len() as u64;
            let is_older = line.split(|byte| *byte == b' ').nth(1).and_then(digits).unwrap_or(0) < oldest;
            if !is_older || id > end {
                break;
            }
            dead = id;
        }
        Ok(dead)
    }

    /// The first id from this one on, and not after the position.
    fn record_end(&self, file: &File, from: u64) -> io::Result<Option<u64>> {
        let mut block = [0; 4096];
        let mut id = from;
        while id <= self.position
            && let Some(offset) = self.offset_before(id)
        {
            let got = file.read_at(&mut block, offset)?;
            if let Some(at) = memchr::memchr(b'\n', &block[..got]) {
                return Ok(Some(id + at as u64).filter(|id| *id <= self.position));
            }
            if got == 0 {
                break;
            }
            id += got as u64;
        }
        Ok(None)
    }

    /// When the record after `id` was written; 0 where there is none.
    fn time_after(&self, file: &File, id: u64) -> io::Result<u64> {
        let Some(offset) = self.offset_before(id) else { return Ok(0) };
        let mut start = [0; 32];
        let got = file.read_at(&mut start, offset + 1)?;
        Ok(start[..got].split(|byte| *byte == b' ').nth(1).and_then(digits).unwrap_or(0))
    }

    /// Reads the next whole records, as many as one read gives, and gives each to `take` whose address `wants` says yes to.
    /// False when there were no more than these, or no log.
    pub fn read(&mut self, mut wants: impl FnMut(&Address) -> bool, take: impl FnMut(Record<'_>)) -> io::Result<bool> {
        let Some(piece) = self.piece(&mut wants)? else { return Ok(false) };
        if piece.end == self.position {
            return Ok(false);
        }
        (self.position, self.has_lost) = (piece.end, self.has_lost | piece.has_hole);
        piece.records(self.recent.is_some()).filter(|record| wants(record.to)).for_each(take);
        let has_more = |recent: &Arc<Recent>| recent.knocks() != piece.knocks;
        Ok(!piece.is_end || self.recent.as_ref().is_some_and(has_more))
    }

    /// What follows the position; `None` where there is no log.
    fn piece(&mut self, wants: &mut impl FnMut(&Address) -> bool) -> io::Result<Option<Arc<Piece>>> {
        if let Some(piece) = self.recent.as_ref().and_then(|recent| recent.after(self.position)) {
            return Ok(Some(piece));
        }
        // Before the look: what is written after it is knocked for once more.
        let knocks = self.recent.as_ref().map_or(0, |recent| recent.knocks());
        let file = match self.file() {
            // It is gone, or being made at this moment.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                return Ok(None);
            }
            other => other?,
        };
        let (mut bytes, is_end) = self.whole_lines(&file, wants)?;
        if self.recent.is_some() {
            bytes.shrink_to_fit();
        }
        let piece = Arc::new(Piece::new(self.position, bytes, is_end, knocks));
        if let Some(recent) = &self.recent {
            recent.keep(&piece);
        }
        Ok(Some(piece))
    }

    /// The lines after the position, with their ends and the line end before them, and whether there were no more.
    fn whole_lines(&mut self, file: &File, wants: &mut impl FnMut(&Address) -> bool) -> io::Result<(Vec<u8>, bool)> {
        // Where no line ends before it, this reader has never been.
        let mut bytes = Vec::with_capacity(self.size);
        loop {
            let got = match self.offset_before(self.position) {
                Some(offset) => {
                    let offset = offset + bytes.len() as u64;
                    retry_on_intr(|| pread(file, spare_capacity(&mut bytes), offset))?
                }
                None => 0,
            };
            if bytes.first() != Some(&b'\n') {
                if self.position == self.base {
                    return Ok((Vec::new(), true));
                }
                if self.position > self.base {
                    say!("uhst-relay: a log was cut off where it had been read already; what is left is read again");
                }
                self.has_lost |= self.position < self.base;
                self.position = self.base;
                bytes.clear();
            } else if let Some(end) = memchr::memrchr(b'\n', &bytes).filter(|end| *end > 0) {
                let is_end = bytes.len() < bytes.capacity();
                bytes.truncate(end + 1);
                return Ok((bytes, is_end));
            } else if got == 0 || bytes.len() < bytes.capacity() {
                // The record is still being written, or was never finished.
                return Ok((Vec::new(), true));
            } else if let Some(head) = parse_head(&bytes[1..]).filter(|head| !wants(&head.to))
                // What says that it ends where its end is not is damaged; never to move would be to read for ever.
                && let end = self.position.saturating_add(head.length)
                && end >= self.position + bytes.len() as u64
                && self.is_record_end(file, end)?
            {
                // It is long, and for somebody else.
                self.position = end;
                bytes.clear();
            } else {
                // It is longer than the buffer.
                bytes.reserve(3 * bytes.len());
            }
        }
    }
}

#[cfg(test)]
mod tests;
