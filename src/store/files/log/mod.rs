//! A log: an append-only file of addressed records, one line each.
//!
//! ```text
//! uhst-relay log 0000000113246208000\n                     the header: the id at which this file begins
//! 0000000054 1763700000123 *1 message {"body":1}\n         length, time in ms, address, event, data
//! ```
//!
//! An event's id is the position at which its record ends, counted over the log's whole life, so an id finds its
//! place in the file by subtraction, and ids increase in the order of arrival over all writers. A writer holds the
//! lock of the log's owner and writes a whole record with one `write`; a reader needs no lock, because it takes whole lines
//! only. What a killed writer left half done has no line end: the next writer cuts it off. The length at the head of a
//! record, of the whole line, lets a reader pass over what is for others without reading it.

pub(super) mod reader;
pub(super) mod recent;
pub(super) mod writer;

use super::members::Slot;
use crate::clock::now_ms;
use crate::store::made::Made;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

const HEADER_START: &str = "uhst-relay log ";
/// 19 digits hold every id below 2^63, and a line end.
const HEADER_SIZE: usize = HEADER_START.len() + 20;
const HEADER_LEN: u64 = HEADER_SIZE as u64;

/// The digits of a record's length.
const LENGTH_SIZE: usize = 10;

/// Where a new log's ids begin: milliseconds since 2026, times 4096. A log that replaces a lost one so begins
/// after all ids of the lost one (unless that took more than 4 MB/s all its life), and ids stay below 2^53, which
/// JavaScript reads exactly, until the year 2095.
const FIRST_BASE_TIME: Duration = Duration::from_secs(1_767_225_600);

fn new_base() -> u64 {
    ms_since_2026().saturating_mul(4096)
}

/// What numbers begin with that must not come a second time.
pub(super) fn ms_since_2026() -> u64 {
    let since_1970 = Duration::from_millis(now_ms());
    u64::try_from(since_1970.saturating_sub(FIRST_BASE_TIME).as_millis()).unwrap_or(0)
}

/// Whom a record is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// All members of a generation, but for those that lagged too far when it was written. They are told so where it stands.
    All {
        /// Which members: a host that registers anew has new clients, and the earlier ones may still read.
        generation: u32,
        /// Who is left out.
        except: Vec<Slot>,
    },
    /// One member.
    One(Slot),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(slot) => write!(f, "@{slot}"),
            Self::All { generation, except } => {
                write!(f, "*{generation}")?;
                except.iter().enumerate().try_for_each(|(index, slot)| {
                    f.write_str(if index == 0 { "-" } else { "," })?;
                    write!(f, "{slot}")
                })
            }
        }
    }
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        if let Some(slot) = text.strip_prefix('@') {
            return Some(Self::One(slot.parse().ok()?));
        }
        let (generation, except) = match text.strip_prefix('*')?.split_once('-') {
            Some((generation, slots)) => (generation, slots.split(',').map(str::parse).collect::<Result<_, _>>().ok()?),
            None => (text.strip_prefix('*')?, Vec::new()),
        };
        Some(Self::All { generation: generation.parse().ok()?, except })
    }
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Where it ends, over the log's life: the event's id.
    pub id: u64,
    /// When it was written, milliseconds since 1970.
    pub time: u64,
    /// Whom it is for.
    pub to: &'a Address,
    /// The event's type.
    pub event: &'a str,
    /// The event's data.
    pub data: &'a str,
    /// What is made of it, where others read it too.
    pub made: Option<&'a Made>,
}

/// The beginning of a record: as much as tells whether it is to be read.
struct RecordHead {
    /// Of the whole line, with its end.
    length: u64,
    to: Address,
}

/// Takes the beginning of a line apart, of which at least the address and what follows it must be there.
fn parse_head(start: &[u8]) -> Option<RecordHead> {
    let start = &start[..start.len().min(LONGEST_HEAD)];
    let mut words = start.split(|byte| *byte == b' ');
    let length = digits(words.next()?)?;
    words.next()?;
    let to = Address::parse(std::str::from_utf8(words.next()?).ok()?)?;
    // Only where another word follows has all of the address been there.
    words.next().map(|_| RecordHead { length, to })
}

/// No head that is worth passing over without reading is longer.
const LONGEST_HEAD: usize = 16 * 1024;

fn digits(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// A line that holds a record, taken apart.
struct Line {
    id: u64,
    time: u64,
    to: Address,
    /// Where its event's type and its data are in the piece.
    event: Range<usize>,
    data: Range<usize>,
    made: Made,
}

/// Takes one line apart, which stands at `start` in `bytes` and ends at `end`. `None` for anything that no writer wrote.
fn parse_line(bytes: &[u8], start: usize, end: usize, id: u64) -> Option<Line> {
    let line = &bytes[start..end];
    // A CR would end a line of the event stream, and NUL is what a crashed file system leaves behind.
    if memchr::memchr2(b'\r', 0, line).is_some() {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.splitn(5, ' ');
    let length = digits(words.next()?.as_bytes())?;
    let time = digits(words.next()?.as_bytes())?;
    let to = Address::parse(words.next()?)?;
    let (event, data) = (words.next()?, words.next()?);
    let is_record = !event.is_empty() && length == line.len() as u64 + 1;
    let data = end - data.len()..end;
    let event = data.start - 1 - event.len()..data.start - 1;
    is_record.then(|| Line { id, time, to, event, data, made: Made::default() })
}

fn parse_header(header: &[u8]) -> Option<u64> {
    let base = header.strip_prefix(HEADER_START.as_bytes())?.strip_suffix(b"\n")?;
    if base.len() == 19 { digits(base) } else { None }
}

fn header(base: u64) -> String {
    format!("{HEADER_START}{base:019}\n")
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::reader::Reader;
    use super::writer::Writer;
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// Where a log may stand.
    pub(super) fn place() -> (TestDir, PathBuf) {
        let dir = TestDir::new();
        let path = dir.join("log");
        (dir, path)
    }

    pub(super) const ALL: Address = Address::All { generation: 0, except: Vec::new() };

    pub(super) fn append(path: &std::path::Path, data: &str) -> u64 {
        Writer::open(path).unwrap().append(1, &ALL, "message", data).unwrap().0
    }

    /// The ids and the data of what is still to be read.
    pub(super) fn rest(reader: &mut Reader) -> Vec<(u64, String)> {
        rest_for(reader, |_| true)
    }

    /// The same of what is for somebody.
    pub(super) fn rest_for(reader: &mut Reader, wants: impl Fn(&Address) -> bool) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        while reader.read(&wants, |record| all.push((record.id, record.data.to_owned()))).unwrap() {}
        all
    }

    /// The data of all records.
    pub(super) fn data(path: &std::path::Path) -> Vec<String> {
        rest(&mut Reader::open(path, 0).unwrap()).into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn the_header_has_the_length_it_is_read_with() {
        assert_eq!(header(0).len() as u64, HEADER_LEN);
        assert_eq!(header(1 << 62).len() as u64, HEADER_LEN);
        assert_eq!(parse_header(header(1 << 62).as_bytes()), Some(1 << 62));
    }

    #[test]
    fn a_new_log_begins_below_what_javascript_reads_exactly() {
        assert!(new_base() > 0 && new_base() < 1 << 52);
    }

    proptest! {
        #[test]
        fn an_address_is_read_as_it_was_written(generation: u32, except in proptest::collection::vec(any::<u32>(), 0..9), slot: u32) {
            for address in [Address::All { generation, except }, Address::One(slot)] {
                prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
            }
        }

        #[test]
        fn any_text_is_an_address_or_none(text in "[*@0-9,-]{0,9}|.{0,9}") {
            if let Some(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
            }
        }

        #[test]
        fn any_header_is_a_base_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(parse_header(&bytes).is_none());
        }
    }
}
