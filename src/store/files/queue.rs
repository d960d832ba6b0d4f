//! A queue: an append-only file of records, one line each.
//!
//! ```text
//! uhst-relay queue 0000000113246208000\n        the header: the id at which this file begins
//! 1763700000123 message {"body":1}\n            time in ms, event, data
//! ```
//!
//! An event's id is the position at which its record ends, counted over the queue's whole life, so an id finds its
//! place in the file by subtraction, and ids increase in the order of arrival over all writers. A writer holds the
//! session's lock and writes a whole record with one `write`; a reader needs no lock, because it takes whole lines
//! only. What a killed writer left half done has no line end: the next writer cuts it off.

use super::{Error, Full};
use crate::clock::now_ms;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const HEADER_START: &str = "uhst-relay queue ";
/// 19 digits hold every id below 2^63, and a line end.
const HEADER_SIZE: usize = HEADER_START.len() + 20;
const HEADER_LEN: u64 = HEADER_SIZE as u64;

/// Where a new queue's ids begin: milliseconds since 2026, times 4096. A queue that replaces a lost one so begins
/// behind all ids of the lost one (unless that took more than 4 MB/s all its life), and ids stay below 2^53, which
/// JavaScript reads exactly, until the year 2095.
const FIRST_BASE_TIME: Duration = Duration::from_secs(1_767_225_600);

/// How much a reader takes from the file at once, if that is a whole record.
const READ_SIZE: usize = 96 * 1024;

/// It is not worth looking for less than this that can go.
const GRAIN: u64 = 64 * 1024;

fn new_base() -> u64 {
    ms_since_2026().saturating_mul(4096)
}

/// What numbers begin with that must not come a second time.
pub(super) fn ms_since_2026() -> u64 {
    let since_1970 = Duration::from_millis(now_ms());
    u64::try_from(since_1970.saturating_sub(FIRST_BASE_TIME).as_millis()).unwrap_or(0)
}

/// One event of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it ends, over the queue's life: its SSE `id`.
    pub id: u64,
    /// When it was written, milliseconds since 1970.
    pub time: u64,
    /// Its SSE event type.
    pub event: &'a str,
    /// Its SSE data.
    pub data: &'a str,
}

/// Takes one line apart. `None` for anything that no writer wrote.
fn parse_line(line: &[u8], id: u64) -> Option<Record<'_>> {
    // A CR would end a line of the event stream, and NUL is what a crashed file system leaves behind.
    if memchr::memchr2(b'\r', 0, line).is_some() {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?;
    let (time, rest) = line.split_once(' ')?;
    let (event, data) = rest.split_once(' ')?;
    if event.is_empty() || !time.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Record { id, time: time.parse().ok()?, event, data })
}

fn parse_header(header: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(header).ok()?.strip_prefix(HEADER_START)?.strip_suffix('\n')?;
    (digits.len() == 19 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn header(base: u64) -> String {
    format!("{HEADER_START}{base:019}\n")
}

/// A queue's file as a writer has it, under the lock of its session (the caller holds it).
pub(super) struct Writer {
    file: File,
    base: u64,
    size: u64,
}

impl Writer {
    /// Opens the queue, makes it where it is missing, and mends what a killed writer or a stranger left in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::create(path)?),
            other => other?,
        };
        let size = file.metadata()?.len();
        let mut head = [0; HEADER_SIZE];
        match file.read_exact_at(&mut head, 0) {
            // It is not the queue that is damaged; what it holds is not to be given up for that.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        if let Some(base) = parse_header(&head) {
            let mut writer = Self { file, base, size };
            writer.cut_torn_tail()?;
            return Ok(writer);
        }
        if size == 0 {
            // Made when there was no room for the header.
            return Ok(Self::begin(file)?);
        }
        say!("uhst-relay: a queue was damaged and begins anew: {}", path.display());
        super::remove_file(path)?;
        Ok(Self::create(path)?)
    }

    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path)?;
        Self::begin(file)
    }

    fn begin(file: File) -> io::Result<Self> {
        let mut writer = Self { file, base: new_base(), size: 0 };
        writer.write_whole(&[header(writer.base).as_bytes()])?;
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

    /// One `writev`; a short one (the disk is full) is taken back, so that no reader ever sees half a record.
    fn write_whole(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        let (before, size) = (self.size, pieces.iter().map(|piece| piece.len()).sum::<usize>());
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let outcome = loop {
            match self.file.write_vectored(&slices) {
                Ok(written) if written == size => break Ok(()),
                Ok(_) => break Err(io::ErrorKind::StorageFull.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        match outcome {
            Ok(()) => self.size += size as u64,
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

    /// Appends a record. With a `limit`, at most that many bytes may lie behind `delivered()`, which is only asked
    /// when the file is large enough to matter.
    pub fn append(&mut self, event: &str, data: &str, limit: Option<(u64, &dyn Fn() -> u64)>) -> Result<(), Error> {
        debug_assert!(!event.contains([' ', '\n', '\r']) && !data.contains(['\n', '\r', '\0']));
        let start = format!("{} {event} ", now_ms());
        let record = [start.as_bytes(), data.as_bytes(), b"\n"];
        let end = self.end() + record.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if let Some((limit, delivered)) = limit
            && end - self.base > limit
            && end - delivered().clamp(self.base, self.end()) > limit
        {
            return Err(Error::QueueFull(Full { limit }));
        }
        Ok(self.write_whole(&record)?)
    }

    /// Drops everything up to the id `keep_from` (a record's end): what lies behind it moves to a new file, which takes
    /// this one's place under `path`. A reader who has the old one open at that moment finds the new one next time.
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
        let end = end / BLOCK * BLOCK;
        if end > BLOCK {
            use rustix::fs::{FallocateFlags, fallocate};
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, BLOCK, end - BLOCK)?;
        }
        Ok(())
    }
}

/// A queue as a reader has it. No lock is needed, and no file is held open between two reads: there may be thousands of
/// readers in a process, and a queue that was compacted is found without looking for it.
pub(super) struct Reader {
    path: PathBuf,
    base: u64,
    /// The id up to which records have been taken.
    position: u64,
}

impl Reader {
    /// Opens a queue that a [`Writer`] has made, to read what lies behind `position`. A position that is not in it (from a
    /// queue that was lost) means its beginning.
    pub fn open(path: &Path, position: u64) -> io::Result<Self> {
        let mut reader = Self { path: path.to_owned(), base: 0, position };
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

    /// Goes to `id`, which a stranger gives: to the beginning if it is older than the file; nowhere if no record ends there.
    pub fn resume(&mut self, id: u64) -> io::Result<()> {
        let file = self.file()?;
        if id < self.base {
            self.position = self.base;
        } else if self.is_record_end(&file, id)? {
            self.position = id;
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
        let behind = id.checked_sub(self.base)?;
        (behind <= i64::MAX as u64 - HEADER_LEN).then_some(HEADER_LEN + behind - 1)
    }

    /// Whether `id` is where a record ends, or the file begins.
    fn is_record_end(&self, file: &File, id: u64) -> io::Result<bool> {
        let Some(offset) = self.offset_before(id) else { return Ok(false) };
        let mut byte = [0];
        Ok(file.read_at(&mut byte, offset)? == 1 && byte == *b"\n")
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether the queue ends elsewhere than where this reader is.
    pub fn has_more(&self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(metadata.len() != HEADER_LEN + self.position.saturating_sub(self.base)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Up to where the queue may be [compacted](Writer::compact): what lies before the position and was written before
    /// `oldest` (ms since 1970), or more than `most` bytes before the position. The beginning, if that is nothing.
    ///
    /// It is found by halving, not by reading all of it, and may be up to [`GRAIN`] too little.
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
                // Who was written before this one is older.
                Some(id) if id < alive && self.time_behind(&file, id)? < oldest => dead = id,
                _ => alive = middle,
            }
        }
        Ok(dead)
    }

    /// The first id from this one on, and not behind the position.
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

    /// When the record behind `id` was written; 0 where there is none.
    fn time_behind(&self, file: &File, id: u64) -> io::Result<u64> {
        let Some(offset) = self.offset_before(id) else { return Ok(0) };
        let mut start = [0; 21];
        let got = file.read_at(&mut start, offset + 1)?;
        let digits = start[..got].split(|byte| *byte == b' ').next().unwrap_or_default();
        Ok(std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// Reads the next whole records, as many as one read gives, and gives each to `take`. False when there were no more
    /// than these, or no queue.
    ///
    /// A line that is no record is passed over: what a stranger put there must not stop what comes behind it.
    pub fn read(&mut self, mut take: impl FnMut(Record<'_>)) -> io::Result<bool> {
        let file = match self.file() {
            // It is gone, or being made at this moment.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                return Ok(false);
            }
            other => other?,
        };
        let (bytes, is_end) = self.whole_lines(&file)?;
        // The first line end is that of what was taken before.
        let mut start = 1;
        for end in memchr::memchr_iter(b'\n', &bytes).skip(1) {
            let line = &bytes[start..end];
            start = end + 1;
            self.position += line.len() as u64 + 1;
            if let Some(record) = parse_line(line, self.position) {
                take(record);
            } else {
                say!("uhst-relay: a queue holds a line that is no record; it is passed over");
            }
        }
        Ok(!is_end)
    }

    /// The lines behind the position, with their ends and the line end before them, and whether there were no more.
    fn whole_lines(&mut self, file: &File) -> io::Result<(Vec<u8>, bool)> {
        // Where no line ends before it, this reader has never been.
        let mut bytes = Vec::with_capacity(READ_SIZE);
        loop {
            let got = match self.offset_before(self.position) {
                Some(offset) => read_some_at(file, &mut bytes, offset)?,
                None => 0,
            };
            if bytes.first() != Some(&b'\n') {
                if self.position == self.base {
                    return Ok((Vec::new(), true));
                }
                // What lies before the file was dropped because nobody is to have it any more.
                if self.position > self.base {
                    say!("uhst-relay: a queue was cut off where it had been read already; what is left is read again");
                }
                self.position = self.base;
                bytes.clear();
            } else if let Some(end) = memchr::memrchr(b'\n', &bytes).filter(|end| *end > 0) {
                let is_end = bytes.len() < bytes.capacity();
                bytes.truncate(end + 1);
                return Ok((bytes, is_end));
            } else if got == 0 || bytes.len() < bytes.capacity() {
                // The record is still being written, or was never finished.
                return Ok((Vec::new(), true));
            } else {
                // It is longer than the buffer.
                bytes.reserve(3 * bytes.len());
            }
        }
    }
}

/// Reads what lies behind the bytes that were read from `offset` on, as far as there is capacity for it.
fn read_some_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    let offset = offset + bytes.len() as u64;
    loop {
        match rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), offset) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use proptest::prelude::*;

    fn read_all(reader: &mut Reader) -> Vec<(u64, String, String)> {
        let mut all = Vec::new();
        while reader.read(|record| all.push((record.id, record.event.to_owned(), record.data.to_owned()))).unwrap() {}
        all
    }

    fn data(path: &Path) -> Vec<String> {
        read_all(&mut Reader::open(path, 0).unwrap()).into_iter().map(|(_, _, data)| data).collect()
    }

    fn append(path: &Path, data: &str) {
        Writer::open(path).unwrap().append("message", data, None).unwrap();
    }

    #[test]
    fn the_header_has_the_length_it_is_read_with() {
        assert_eq!(header(0).len() as u64, HEADER_LEN);
        assert_eq!(header(1 << 62).len() as u64, HEADER_LEN);
        assert_eq!(parse_header(header(1 << 62).as_bytes()), Some(1 << 62));
    }

    #[test]
    fn a_new_queue_begins_below_what_javascript_reads_exactly() {
        assert!(new_base() > 0 && new_base() < 1 << 52);
    }

    #[test]
    fn reading_goes_on_where_an_id_says() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        for n in 0..5 {
            append(&path, &n.to_string());
        }
        let all = read_all(&mut Reader::open(&path, 0).unwrap());
        for (index, (id, ..)) in all.iter().enumerate() {
            assert_eq!(read_all(&mut Reader::open(&path, *id).unwrap()), all[index + 1..]);
        }
    }

    #[test]
    fn an_id_from_elsewhere_means_the_beginning() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        append(&path, "a");
        append(&path, "b");
        let end = Writer::open(&path).unwrap().end();
        for id in [0, end - 1, end + 1, u64::MAX] {
            assert_eq!(read_all(&mut Reader::open(&path, id).unwrap()).len(), 2, "{id}");
        }
    }

    #[test]
    fn a_torn_record_is_cut_off_by_the_next_writer_and_never_read() {
        for torn in [1, 100, 4095, 4096, 4097, 10_000] {
            let dir = TestDir::new();
            let path = dir.join("queue");
            append(&path, "a");
            OpenOptions::new()
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(&"1 message ".repeat(1 + torn / 10).as_bytes()[..torn])
                .unwrap();
            assert_eq!(data(&path), ["a"]);
            append(&path, "b");
            assert_eq!(data(&path), ["a", "b"]);
        }
    }

    #[test]
    fn a_torn_header_is_written_again() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        std::fs::write(&path, "uhst-relay que").unwrap();
        append(&path, "a");
        assert_eq!(data(&path), ["a"]);
    }

    #[test]
    fn a_record_longer_than_the_buffer_is_read_whole() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        let long = "x".repeat(3 * READ_SIZE + 1);
        append(&path, &long);
        append(&path, "b");
        assert_eq!(data(&path), [long.as_str(), "b"]);
    }

    #[test]
    fn compacting_keeps_ids_and_what_lies_behind_them() {
        let dir = TestDir::new();
        let (path, beside) = (dir.join("queue"), dir.join("queue.new"));
        for n in 0..6 {
            append(&path, &n.to_string());
        }
        let all = read_all(&mut Reader::open(&path, 0).unwrap());
        let mut reader = Reader::open(&path, all[4].0).unwrap();
        Writer::open(&path).unwrap().compact(&path, &beside, all[3].0).unwrap();
        append(&path, "6");
        let kept = read_all(&mut Reader::open(&path, all[3].0).unwrap());
        assert_eq!(kept[..2], all[4..]);
        assert_eq!(kept[2].2, "6");
        assert!(kept[2].0 > all[5].0);
        assert_eq!(read_all(&mut reader), kept[1..], "who was reading reads on");
    }

    #[test]
    fn what_is_dead_is_found_without_reading_all_of_it() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        let mut writer = Writer::open(&path).unwrap();
        // Long and short ones; the time counts up.
        for n in 0..3000_usize {
            let size = if n % 100 == 0 { 20_000 } else { n % 300 };
            writer.write_whole(&[format!("{} message {}\n", 1000 + n, "x".repeat(size)).as_bytes()]).unwrap();
        }
        let all = read_all(&mut Reader::open(&path, 0).unwrap());
        let end = writer.end();
        for oldest in [0, 1000, 1001, 1500, 2999, 3999, 4000, u64::MAX] {
            let dead = Reader::open(&path, end).unwrap().dead_up_to(oldest, u64::MAX).unwrap();
            let exact = usize::try_from(oldest.saturating_sub(1000)).unwrap_or(usize::MAX).min(all.len());
            let exact = if exact == 0 { writer.base } else { all[exact - 1].0 };
            assert!(dead <= exact && exact - dead <= GRAIN + 20_100, "{oldest}: {dead} of {exact}");
            assert!(dead == writer.base || all.iter().any(|(id, ..)| *id == dead));
        }
        for most in [0, 1, 50_000, 300_000] {
            let dead = Reader::open(&path, end).unwrap().dead_up_to(0, most).unwrap();
            assert!(end - dead <= most && end - dead + 20_100 > most.min(end - writer.base), "{most}: {}", end - dead);
        }
        assert_eq!(Reader::open(&path, all[9].0).unwrap().dead_up_to(u64::MAX, 0).unwrap(), all[9].0);
    }

    #[test]
    fn a_full_queue_refuses_unless_the_reader_is_ahead() {
        let dir = TestDir::new();
        let path = dir.join("queue");
        let data = "x".repeat(40);
        let mut writer = Writer::open(&path).unwrap();
        let nothing = || 0;
        while writer.append("message", &data, Some((500, &nothing))).is_ok() {}
        assert!(writer.end() - writer.base <= 500);
        let end = writer.end();
        let all = move || end;
        writer.append("message", &data, Some((500, &all))).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_behind_the_header_are_read_without_a_crash_and_only_whole_lines_count(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), Just(b'1'), any::<u8>()], 0..300),
            position in any::<u64>(),
        ) {
            let dir = TestDir::new();
            let path = dir.join("queue");
            let mut file = header(7).into_bytes();
            file.extend(&bytes);
            std::fs::write(&path, &file).unwrap();
            let mut reader = Reader::open(&path, position).unwrap();
            let start = reader.position();
            let records = read_all(&mut reader);
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) as u64;
            prop_assert!(reader.position() == 7 + whole || reader.position() == start);
            for (id, event, data) in records {
                prop_assert!(id <= 7 + whole && id > start);
                prop_assert!(!event.contains(['\n', '\r', ' ']) && !data.contains(['\n', '\r', '\0']));
            }
        }

        #[test]
        fn what_is_appended_is_read(all in proptest::collection::vec("[^\r\n\0]{0,50}", 1..20)) {
            let dir = TestDir::new();
            let path = dir.join("queue");
            for data in &all {
                append(&path, data);
            }
            prop_assert_eq!(data(&path), all);
        }

        #[test]
        fn any_header_is_a_base_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(parse_header(&bytes).is_none());
        }
    }
}
