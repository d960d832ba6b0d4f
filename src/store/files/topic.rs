//! A topic: a log that several write to and several read, with what may be dropped from it and how much it may hold.

use super::folder::beside;
use super::log::reader::Reader;
use super::log::writer::Writer;
use super::log::{Address, Record};
use super::members::Slot;
use super::{Error, Files};
use crate::clock::now_ms;
use crate::store::error::Full;
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The event type of what others send. All else is the relay's own, of which nobody was promised that it is kept.
pub(super) const MESSAGE: &str = "message";

/// The event type of what nobody was given, because all recipients lagged: those are told so, and it is for nobody else.
pub(super) const LEFT_OUT: &str = "left-out";

/// A log is looked at for what can go each time it has grown by so much: often enough to keep it small, seldom enough to be
/// cheap.
const WORTH_TRIMMING: u64 = 256 * 1024;

/// What has been given may still be under way, in this process, in the sockets at both ends, or in a web server: so much of
/// it is kept, however little may wait.
pub(super) const UNDER_WAY: u64 = 1 << 20;

/// A record's head has about so many bytes.
const HEAD: u64 = 50;

/// What is kept in a log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// So long, whoever has read it.
    pub lifetime: Duration,
    /// So many bytes, once all members have been given it.
    pub given: u64,
    /// No more bytes than this in all.
    pub most: u64,
    /// All logs together hold no more bytes than this.
    pub most_of_all: u64,
}

/// The log of a topic.
pub(super) struct Topic {
    /// Where it stands, and where it is made anew.
    pub log: PathBuf,
    pub keep: Keep,
    pub files: Files,
}

impl Topic {
    /// The id of the last record, or where the first one will begin.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn end(&self) -> Result<u64, Error> {
        let log = Writer::open(&self.log)?;
        let end = log.end();
        log.keep(&self.log);
        Ok(end)
    }

    /// The log, made if it is missing, as one that writes to it has it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> Result<OpenTopic<'_>, Error> {
        Ok(OpenTopic { topic: self, log: Writer::open(&self.log)? })
    }

    /// Drops what may go, if that is not less than what would have to be copied; nothing where there is no log.
    ///
    /// # Errors
    /// When there is no room for what stays. The log is then as it was.
    pub fn trim(&self, floor: u64) -> Result<(), Error> {
        if reader_if_any(&self.log, 0)?.is_none() {
            return Ok(());
        }
        self.trim_log(Writer::open(&self.log)?, 1, floor).map(drop)
    }

    /// The same where it is worth so many bytes; and how many bytes of the log are alive.
    fn trim_log(&self, log: Writer, worth: u64, floor: u64) -> Result<(Writer, u64), Error> {
        let (base, end) = (log.base(), log.end());
        let too_old = Reader::open(&self.log, end)?.dead_up_to(oldest(self.keep.lifetime), u64::MAX)?;
        let given = Reader::open(&self.log, floor.min(end))?.dead_up_to(0, self.keep.given)?;
        let dead = too_old.max(given).max(base);
        // So all this copying costs no more than the appending did.
        if dead == base || dead - base < worth.max(end - dead) {
            return Ok((log, end - dead));
        }
        let size = log.size();
        log.compact(&self.log, &beside(&self.log, "new"), dead)?;
        let log = Writer::open(&self.log)?;
        self.files.count_bytes(&self.log, size, log.size(), self.keep.most_of_all)?;
        Ok((log, end - dead))
    }

    /// To read what comes after `position`; where the log does not have that, from its beginning. A log that is missing is
    /// made.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reader(&self, position: u64) -> Result<Reader, Error> {
        if let Some(reader) = reader_if_any(&self.log, position)? {
            return Ok(reader);
        }
        // Whoever writes makes or mends it.
        Writer::open(&self.log)?;
        Ok(Reader::open(&self.log, position)?)
    }

    /// Whether a message that is not older than the lifetime comes after `position`, of those that `wants` names.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn has_message(&self, position: u64, wants: impl Fn(&Address) -> bool) -> Result<bool, Error> {
        let oldest = oldest(self.keep.lifetime);
        self.any(position, wants, |record| record.event == MESSAGE && record.time >= oldest)
    }

    /// Gives each message that is not older than the lifetime to `see`, until that has seen enough.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn see_messages(&self, mut see: impl FnMut(&Record<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        let oldest = oldest(self.keep.lifetime);
        let is_message = |record: &Record<'_>| record.event == MESSAGE && record.time >= oldest;
        let pick = |record: &Record<'_>| (is_message(record) && see(record).is_break()).then_some(());
        first(reader_if_any(&self.log, 0)?, |_| true, pick).map(drop)
    }

    /// Whether anything is there that is not older than the lifetime.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn has_alive(&self) -> Result<bool, Error> {
        let oldest = oldest(self.keep.lifetime);
        self.any(0, |_| true, |record| record.time >= oldest)
    }

    /// Whether there is such a record after `position`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn any(
        &self,
        position: u64,
        wants: impl Fn(&Address) -> bool,
        is_it: impl Fn(&Record<'_>) -> bool,
    ) -> Result<bool, Error> {
        is_any(&self.log, position, wants, is_it)
    }

    /// How many bytes wait for a member that has been given the log up to `position`: from the first record that is for it
    /// to the end, whoever the others are for. What is not more than `enough` is not looked at so closely.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn lag(&self, position: u64, end: u64, enough: u64, wants: impl Fn(&Address) -> bool) -> Result<u64, Error> {
        if end.saturating_sub(position) <= enough {
            return Ok(end.saturating_sub(position));
        }
        // It may be that nothing of it was for the member, and nobody has woken it.
        let first =
            first(reader_if_any(&self.log, position)?, wants, |record| Some(record.id - record.data.len() as u64))?;
        Ok(first.map_or(0, |first| end.saturating_sub(first)))
    }
}

/// A topic that is written to.
pub(super) struct OpenTopic<'a> {
    topic: &'a Topic,
    log: Writer,
}

impl OpenTopic<'_> {
    /// The id of the last record, or where the first one will begin.
    pub fn end(&self) -> u64 {
        self.log.end()
    }

    /// The bytes of its file.
    pub fn size(&self) -> u64 {
        self.log.size()
    }

    /// Appends a record of this time (ms since 1970), and tells its id. `floor` is asked, seldom, up to which id all members have been given the log.
    ///
    /// # Errors
    /// [`Error::TopicFull`] where the log holds its most; [`Error::DiskFull`] and others when it could not be stored. The log
    /// is then as it was.
    pub fn append(
        self,
        time: u64,
        to: &Address,
        event: &str,
        data: &str,
        floor: impl FnOnce() -> Result<u64, Error>,
    ) -> Result<u64, Error> {
        let Self { topic, mut log } = self;
        let after = log.size() + data.len() as u64;
        if after > topic.keep.most {
            let alive;
            (log, alive) = topic.trim_log(log, WORTH_TRIMMING.min(topic.keep.most), floor()?)?;
            if alive + data.len() as u64 > topic.keep.most {
                return Err(Error::TopicFull(Full { limit: topic.keep.most }));
            }
        } else if after / WORTH_TRIMMING > log.size() / WORTH_TRIMMING {
            log = topic.trim_log(log, WORTH_TRIMMING, floor()?)?.0;
        }
        let size = log.size();
        let (after, most) = (size + data.len() as u64 + HEAD, topic.keep.most_of_all);
        topic.files.count_bytes(&topic.log, size, after, most)?;
        let start = log.end();
        let appended = log.append(time, to, event, data);
        if appended.is_err() {
            topic.files.count_bytes(&topic.log, after, size, most)?;
        }
        let (id, bytes) = appended?;
        log.keep(&topic.log);
        topic.files.written(&topic.log, start, bytes);
        Ok(id)
    }
}

/// To read what comes after `position`; `None` where there is no log.
fn reader_if_any(log: &Path, position: u64) -> Result<Option<Reader>, Error> {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match Reader::open(log, position) {
        // What is no log holds nothing: whoever writes next begins it anew.
        Err(error) if matches!(error.kind(), NotFound | UnexpectedEof | InvalidData) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// What `pick` makes of the first record, of those that `wants` names, of which it makes something.
fn first<T>(
    log: Option<Reader>,
    wants: impl Fn(&Address) -> bool,
    mut pick: impl FnMut(&Record<'_>) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(mut log) = log else { return Ok(None) };
    let (mut first, mut may_have_more) = (None, true);
    while may_have_more && first.is_none() {
        may_have_more = log.read(&wants, |record| {
            if first.is_none() {
                first = pick(&record);
            }
        })?;
    }
    Ok(first)
}

/// Whether there is such a record in a log after `position`, of those that `wants` names.
///
/// # Errors
/// When the log cannot be read.
pub(super) fn is_any(
    log: &Path,
    position: u64,
    wants: impl Fn(&Address) -> bool,
    is_it: impl Fn(&Record<'_>) -> bool,
) -> Result<bool, Error> {
    Ok(first(reader_if_any(log, position)?, wants, |record| is_it(record).then_some(()))?.is_some())
}

/// Whether a record is for a member in this slot and of these generations, or stands where one is that left it out.
pub(super) fn is_for(to: &Address, slot: Slot, generations: &RangeInclusive<u32>) -> bool {
    match to {
        Address::One(one) => *one == slot,
        Address::All { generation, .. } => generations.contains(generation),
    }
}

/// What was written before this time (ms since 1970) is dead.
pub(super) fn oldest(lifetime: Duration) -> u64 {
    now_ms().saturating_sub(milliseconds(lifetime))
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
