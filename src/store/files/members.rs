//! A table of members: one file of fixed-width JSON lines, in which the place of a line never changes.
//!
//! ```text
//! 5b1e97c204fa8d36
//! [         2,    113246208055,{"key":"3f0c…","node":"9a41…",…}]      \n
//! ```
//!
//! Before the lines there is one for the table's *edition*: random digits, and new ones before anything of a line but its cursor
//! changes. Whoever has read the table, and finds the same digits under the lock, knows what stands there without reading it.
//!
//! A line is placed by a hash of its key: the file is a row of segments, of 16, 32, 64 … lines; in each the hash names a bucket
//! of eight lines, and a key stands in a free line of its bucket of the largest segment that has one. So one read of
//! 3 KiB nearly always finds one member, one read of the file tells of all, and the table grows at its end.
//!
//! Everything changes under the lock of the table's owner, with one exception: the two numbers at the beginning of a line
//! (its *cursor*) are written without it, by the member itself, with one write of constant size. They say which of the
//! member's streams has written them, and how far it is.

use super::kept::{FILES, Opened};
use super::{Error, FileIdentity, identity, if_there, private_file};
use crate::hex;
use rustix::io::{pread, retry_on_intr};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The number of a line.
pub(super) type Slot = u32;

/// What tells a table that was changed from what it was before.
type Edition = [u8; EDITION];

/// Which table was read, and when: for whoever keeps what it has read.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    table: FileIdentity,
    edition: Edition,
    at: Instant,
}

/// How long a sight is gone by: a stranger may have written into the table without saying so.
const FRESH: Duration = Duration::from_secs(1);

/// The bytes of a line: a client id of 80 bytes, each of which JSON escapes, and twice what else there is.
const LINE: usize = 384;

/// `[`, ten digits, a comma, 19 digits, a comma.
const CURSOR: usize = 32;

const EDITION: usize = 16;

const BUCKET: usize = 8;
const FIRST_SEGMENT: usize = 16;
/// A table of more segments than this (a million lines) is damaged.
const MOST_SEGMENTS: u32 = 16;

/// What a line says.
pub(super) trait Line: Serialize + DeserializeOwned {
    /// What it is found by.
    fn key(&self) -> &str;
}

/// How far a member's stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cursor {
    /// The number of the stream, counted by its member.
    pub stream: u32,
    /// The id up to which it has been given the log.
    pub position: u64,
}

impl Cursor {
    fn bytes(self) -> [u8; CURSOR] {
        let mut bytes = [0; CURSOR];
        // No id has more than 19 digits: it is below 2^63.
        let text = format!("[{:10},{:19},", self.stream, self.position.min(i64::MAX as u64));
        bytes.copy_from_slice(text.as_bytes());
        bytes
    }
}

/// A line that was read.
#[derive(Clone, Debug)]
pub(super) struct Entry<L> {
    /// Where it stands.
    pub slot: Slot,
    /// What its member has written last.
    pub cursor: Cursor,
    /// What it says.
    pub line: L,
}

/// A table.
pub(super) struct Table<L> {
    path: PathBuf,
    opened: Opened,
    segments: u32,
    /// Whether this has written a new edition.
    is_changed: Cell<bool>,
    line: PhantomData<L>,
}

impl<L> Drop for Table<L> {
    fn drop(&mut self) {
        FILES.keep(&self.path, self.opened.clone());
    }
}

impl<L: Line> Table<L> {
    /// Opens a table; `None` where there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        if let Some(opened) = FILES.take(path)
            && let Some(there) = if_there(std::fs::metadata(path))?.filter(|there| identity(there) == opened.identity)
        {
            return Ok(Some(Self::of(path, opened, there.len())));
        }
        let Some(file) = if_there(OpenOptions::new().read(true).write(true).open(path))? else { return Ok(None) };
        Self::new(path, file).map(Some)
    }

    /// Opens a table, made if it is missing.
    pub fn open_or_make(path: &Path) -> Result<Self, Error> {
        match Self::open(path)? {
            Some(table) => Ok(table),
            None => Self::new(path, private_file(path)?),
        }
    }

    /// All lines of a table; none where there is no table.
    pub fn all_at(path: &Path) -> Result<Vec<Entry<L>>, Error> {
        Self::open(path)?.map_or(Ok(Vec::new()), |table| table.all())
    }

    fn new(path: &Path, file: File) -> Result<Self, Error> {
        let (opened, size) = Opened::of(file)?;
        Ok(Self::of(path, opened, size))
    }

    fn of(path: &Path, opened: Opened, size: u64) -> Self {
        let is_changed = Cell::new(false);
        let mut table = Self { path: path.to_owned(), opened, segments: 0, is_changed, line: PhantomData };
        table.see_size(size);
        table
    }

    fn see_size(&mut self, size: u64) {
        // Half a segment is what a full disk, or a killed process, has left of a new one.
        let lines = (size / LINE as u64).saturating_sub(1);
        while self.segments < MOST_SEGMENTS && lines >= lines_of(self.segments + 1) {
            self.segments += 1;
        }
    }

    /// Finds the line of a key.
    pub fn find(&self, key: &str) -> Result<Option<Entry<L>>, Error> {
        let hash = hash(key);
        for segment in (0..self.segments).rev() {
            let bucket = self.read(bucket(hash, segment), BUCKET)?;
            if let Some(found) = bucket.into_iter().flatten().find(|entry| entry.line.key() == key) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The same among [all lines](Self::all), as they were read when the table was of this edition.
    pub fn find_among<'e>(&self, all: &'e [Entry<L>], key: &str) -> Option<&'e Entry<L>> {
        let hash = hash(key);
        (0..self.segments).rev().find_map(|segment| {
            let first = bucket(hash, segment);
            let from = &all[all.partition_point(|entry| entry.slot < first)..];
            from.iter().take(BUCKET).find(|entry| entry.line.key() == key)
        })
    }

    /// What is seen of it now, before it is read, under the lock; `None` where it could not be told from what it will be.
    pub fn sight(&self) -> Result<Option<Sight>, Error> {
        let edition = self.edition()?;
        Ok(edition.map(|edition| Sight { table: self.identity(), edition, at: Instant::now() }))
    }

    /// Whether what was read then stands there now, under the lock, but for the cursors.
    pub fn is_as(&self, sight: &Sight) -> Result<bool, Error> {
        let is_fresh = sight.at.elapsed() < FRESH && sight.table == self.identity();
        Ok(is_fresh && self.edition()? == Some(sight.edition))
    }

    fn edition(&self) -> Result<Option<Edition>, Error> {
        let mut edition = [0; EDITION];
        let got = retry_on_intr(|| pread(&self.opened.file, &mut edition[..], 0))?;
        Ok((got == EDITION && edition.iter().all(u8::is_ascii_hexdigit)).then_some(edition))
    }

    /// Whether to read it all costs about what it costs to find one.
    pub fn is_small(&self) -> bool {
        self.segments <= 1
    }

    /// Whether anything but a cursor was changed by this.
    pub fn is_changed(&self) -> bool {
        self.is_changed.get()
    }

    /// The line in a slot; `None` where none stands there.
    pub fn get(&self, slot: Slot) -> Result<Option<Entry<L>>, Error> {
        Ok(self.read(slot, 1)?.pop().flatten())
    }

    /// All lines.
    pub fn all(&self) -> Result<Vec<Entry<L>>, Error> {
        let lines = usize::try_from(lines_of(self.segments)).unwrap_or(0);
        Ok(self.read(0, lines)?.into_iter().flatten().collect())
    }

    /// All lines, under the lock. What is damaged is freed, and the log is told.
    pub fn all_mended(&self) -> Result<Vec<Entry<L>>, Error> {
        let lines = usize::try_from(lines_of(self.segments)).unwrap_or(0);
        let bytes = self.bytes(0, lines)?;
        let mut all = Vec::new();
        for (line, slot) in bytes.chunks(LINE).zip(0..) {
            match parse(line, slot) {
                Some(entry) => all.push(entry),
                None if line.iter().all(|byte| matches!(byte, 0 | b' ' | b'\n')) => {}
                None => {
                    say!("uhst-relay: a member's line is damaged and counts as missing");
                    self.free(slot)?;
                }
            }
        }
        Ok(all)
    }

    /// The lines from a slot on, each as it is: a free one, or one that is damaged (which nobody can use), is `None`.
    fn read(&self, from: Slot, count: usize) -> Result<Vec<Option<Entry<L>>>, Error> {
        let bytes = self.bytes(from, count)?;
        Ok(bytes.chunks(LINE).zip(from..).map(|(line, slot)| parse(line, slot)).collect())
    }

    fn bytes(&self, from: Slot, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count * LINE];
        let mut got = 0;
        while got < bytes.len() {
            let offset = offset(from) + got as u64;
            match retry_on_intr(|| pread(&self.opened.file, &mut bytes[got..], offset))? {
                0 => break,
                more => got += more,
            }
        }
        Ok(bytes)
    }

    /// Adds a line, whose key no other has, and tells where.
    pub fn insert(&mut self, line: &L, cursor: Cursor) -> Result<Slot, Error> {
        let hash = hash(line.key());
        for segment in (0..self.segments).rev() {
            let first = bucket(hash, segment);
            if let Some((slot, _)) = (first..).zip(self.read(first, BUCKET)?).find(|(_, entry)| entry.is_none()) {
                self.put(slot, line, cursor)?;
                return Ok(slot);
            }
        }
        if self.segments >= MOST_SEGMENTS {
            return Err(Error::Io(io::ErrorKind::StorageFull.into()));
        }
        // The file is as long as it says from the first line of the segment on; what nobody has written is a hole.
        self.opened.file.set_len((1 + lines_of(self.segments + 1)) * LINE as u64)?;
        self.segments += 1;
        let slot = bucket(hash, self.segments - 1);
        self.put(slot, line, cursor)?;
        Ok(slot)
    }

    /// Writes what a line says, and its cursor.
    pub fn put(&self, slot: Slot, line: &L, cursor: Cursor) -> Result<(), Error> {
        let mut bytes = cursor.bytes().to_vec();
        bytes.extend_from_slice(&json(line)?);
        self.change(slot, 0, &bytes)
    }

    /// Changes what a line says, and not its cursor.
    pub fn update(&self, slot: Slot, line: &L) -> Result<(), Error> {
        self.change(slot, CURSOR, &json(line)?)
    }

    /// Writes the cursor of a line, which its member may do without the lock.
    pub fn note(&self, slot: Slot, cursor: Cursor) -> Result<(), Error> {
        self.write(slot, 0, &cursor.bytes())
    }

    /// Frees a slot. A reader of a bus may free its own without the lock: whoever posts does not mind one that has gone.
    pub fn free(&self, slot: Slot) -> Result<(), Error> {
        self.change(slot, 0, &[[b' '; LINE - 1].as_slice(), b"\n"].concat())
    }

    fn change(&self, slot: Slot, at: usize, bytes: &[u8]) -> Result<(), Error> {
        // Before the change: whoever is killed in between has only had others read again what they know.
        if !self.is_changed.get() {
            self.opened.file.write_all_at(hex::random(EDITION / 2)?.as_bytes(), 0)?;
            self.is_changed.set(true);
        }
        self.write(slot, at, bytes)
    }

    fn write(&self, slot: Slot, at: usize, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.opened.file.write_all_at(bytes, offset(slot) + at as u64)?)
    }

    /// Which file it is: to see whether its name has come to mean another one.
    pub fn identity(&self) -> FileIdentity {
        self.opened.identity
    }
}

/// Where a line begins.
fn offset(slot: Slot) -> u64 {
    (1 + u64::from(slot)) * LINE as u64
}

/// How many lines so many segments have.
fn lines_of(segments: u32) -> u64 {
    FIRST_SEGMENT as u64 * ((1 << segments) - 1)
}

/// The first slot of the bucket of a hash.
fn bucket(hash: u64, segment: u32) -> Slot {
    let buckets = (FIRST_SEGMENT as u64 / BUCKET as u64) << segment;
    let slot = lines_of(segment) + hash % buckets * BUCKET as u64;
    // There are no more than a million.
    Slot::try_from(slot).unwrap_or(0)
}

/// FNV-1a, mixed at its end: it only has to spread the keys. Whoever chooses client ids that fall into one bucket makes the
/// table of one host longer, up to the limit on its clients.
pub(super) fn hash(key: &str) -> u64 {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash ^ (hash >> 32)
}

/// What follows the cursor, up to the end of the line.
fn json<L: Line>(line: &L) -> Result<Vec<u8>, Error> {
    let mut json = serde_json::to_vec(line).map_err(io::Error::other)?;
    json.push(b']');
    if json.len() >= LINE - CURSOR {
        return Err(Error::Io(io::Error::new(io::ErrorKind::InvalidInput, "a member's line is too long")));
    }
    json.resize(LINE - CURSOR - 1, b' ');
    json.push(b'\n');
    Ok(json)
}

fn parse<L: Line>(line: &[u8], slot: Slot) -> Option<Entry<L>> {
    if !line.starts_with(b"[") {
        return None;
    }
    let (stream, position, line) = serde_json::from_slice(line).ok()?;
    Some(Entry { slot, cursor: Cursor { stream, position }, line })
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Line for (String, u64) {
        fn key(&self) -> &str {
            &self.0
        }
    }

    type Numbers = Table<(String, u64)>;

    #[test]
    fn a_line_holds_the_longest_of_everything() {
        let key = "\\\"".repeat(40);
        let line = (key.clone(), u64::MAX);
        let cursor = Cursor { stream: u32::MAX, position: i64::MAX as u64 };
        let dir = TestDir::new();
        let mut table = Numbers::open_or_make(&dir.join("t")).unwrap();
        table.insert(&line, cursor).unwrap();
        let found = table.find(&key).unwrap().unwrap();
        assert_eq!((found.line, found.cursor), (line, cursor));
    }

    #[test]
    fn a_thousand_members_have_a_place_each_that_never_changes() {
        let dir = TestDir::new();
        let path = dir.join("t");
        let mut slots = BTreeMap::new();
        for number in 0..1000_u64 {
            let mut table = Numbers::open_or_make(&path).unwrap();
            let key = format!("client {number}");
            let slot = table.insert(&(key.clone(), number), Cursor::default()).unwrap();
            assert!(slots.insert(slot, key).is_none());
        }
        let table = Numbers::open(&path).unwrap().unwrap();
        assert!(table.segments <= 8, "{}", table.segments);
        let all = table.all().unwrap();
        assert!(table.find_among(&all, "client 1000").is_none());
        for (slot, key) in &slots {
            assert_eq!(table.find(key).unwrap().unwrap().slot, *slot);
            assert_eq!(table.find_among(&all, key).unwrap().slot, *slot);
            assert_eq!(table.get(*slot).unwrap().unwrap().line.0, *key);
        }
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn whoever_has_read_a_table_is_told_of_every_change_but_how_far_members_are() {
        let dir = TestDir::new();
        let path = dir.join("t");
        let open = || Numbers::open_or_make(&path).unwrap();
        let edition = || open().edition().unwrap();
        assert_eq!(edition(), None, "nobody has written yet");
        let slot = open().insert(&("a".to_owned(), 1), Cursor::default()).unwrap();
        let mut last = edition();
        assert!(last.is_some());
        let changes: [&dyn Fn(&Numbers); 3] = [
            &|table| table.put(slot, &("a".to_owned(), 2), Cursor::default()).unwrap(),
            &|table| table.update(slot, &("a".to_owned(), 3)).unwrap(),
            &|table| table.free(slot).unwrap(),
        ];
        for change in changes {
            open().note(slot, Cursor { stream: 1, position: 7 }).unwrap();
            assert_eq!(edition(), last);
            change(&open());
            assert_ne!(edition(), last);
            last = edition();
        }
    }

    #[test]
    fn a_damaged_line_is_nobody_s_and_its_neighbours_stay() {
        let dir = TestDir::new();
        let path = dir.join("t");
        let mut table = Numbers::open_or_make(&path).unwrap();
        let slots: Vec<Slot> = (0..5).map(|n| table.insert(&(n.to_string(), n), Cursor::default()).unwrap()).collect();
        table.write(slots[2], 40, b"garbage\0\xFF").unwrap();
        assert_eq!(table.all().unwrap().len(), 4);
        assert!(table.find("2").unwrap().is_none());
        table.opened.file.set_len(LINE as u64 * 3).unwrap();
        let mut table = Numbers::open(&path).unwrap().unwrap();
        assert!(table.all().unwrap().is_empty(), "half a segment counts as none");
        table.insert(&("new".to_owned(), 1), Cursor::default()).unwrap();
        assert!(table.find("new").unwrap().is_some());
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in proptest::collection::vec((0..60_u8, 0..4_u8, any::<u64>()), 0..200)) {
            let dir = TestDir::new();
            let mut table = Numbers::open_or_make(&dir.join("t")).unwrap();
            let mut model = BTreeMap::new();
            for (key, step, number) in steps {
                let key = key.to_string();
                let found = table.find(&key).unwrap();
                prop_assert_eq!(found.as_ref().map(|entry| (entry.line.1, entry.cursor)), model.get(&key).copied());
                let cursor = Cursor { stream: 7, position: number >> 1 };
                match (step, found) {
                    (0, Some(entry)) => {
                        table.free(entry.slot).unwrap();
                        model.remove(&key);
                    }
                    (1, Some(entry)) => {
                        table.update(entry.slot, &(key.clone(), number)).unwrap();
                        model.insert(key, (number, entry.cursor));
                    }
                    (_, Some(entry)) => {
                        table.note(entry.slot, cursor).unwrap();
                        model.insert(key, (entry.line.1, cursor));
                    }
                    (_, None) => {
                        table.insert(&(key.clone(), number), cursor).unwrap();
                        model.insert(key, (number, cursor));
                    }
                }
                prop_assert_eq!(table.all().unwrap().len(), model.len());
            }
        }
    }
}
