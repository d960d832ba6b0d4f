//! What one that says something to all has read of the table, for those that come next: in one process thousands of messages
//! may go to the same thousand clients, and to read these each time would be most of the work.
//!
//! Three things make it safe. Whoever changes a line, in whatever process, gives the table a new edition under the lock of the
//! session. Cursors change without that, so a roster is kept only where all that listen do so in this process, which knows how far
//! they are; a position in a roster is one that its member had, and so tells at worst that it lags more than it does: then it is
//! asked for anew. And a listener of this process that goes without having said so is [counted](Leaving).
//!
//! A stranger may have written into the table without all this, or damaged it: so nothing is taken from a roster that is old.

use super::super::Error;
use super::super::kept::READ;
use super::super::members::{Entry, Sight, Table, hash};
use super::super::node::topic_of;
use super::member::Member;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many listeners of this process have gone without having said so, of the sessions that share a number.
static LEFT: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// Those of the session whose record stands at `path`.
fn left(path: &Path) -> &'static AtomicU64 {
    // A program for one request has nobody beside it.
    let number = if cfg!(feature = "serve") { hash(&topic_of(path)) % LEFT.len() as u64 } else { 0 };
    &LEFT[usize::try_from(number).unwrap_or(0)]
}

/// Counts a listener that has not said that it ends when it is dropped. It has to go after what the listener is woken by,
/// which shows that it is there.
pub(super) struct Leaving {
    left: &'static AtomicU64,
    pub has_said_so: bool,
}

impl Leaving {
    /// Of the session whose record stands at `path`.
    pub fn of(path: &Path) -> Self {
        Self { left: left(path), has_said_so: false }
    }

    /// How many others have gone like that.
    pub fn others(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if cfg!(feature = "serve") && !self.has_said_so {
            self.left.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// All members of a session, as they were under an earlier lock.
pub(super) struct Roster {
    pub members: Vec<Entry<Member>>,
    /// `None` where the next one has to read the table again.
    sight: Option<Sight>,
    left: u64,
}

/// What a session has of it, which it keeps for the next one.
pub(super) struct Known {
    record: PathBuf,
    pub roster: Option<Roster>,
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(roster) = self.roster.take().filter(|roster| roster.sight.is_some()) {
            READ.keep(&self.record, Box::new(roster));
        }
    }
}

impl Known {
    /// What is known of the session whose record stands at `path`, and is locked.
    pub fn of(path: &Path, table: Option<&Table<Member>>) -> Result<Self, Error> {
        let mut known = Self { record: path.to_owned(), roster: None };
        if let (Some(table), Some(roster)) = (table, READ.take_as::<Roster>(path))
            && roster.left == left(path).load(Ordering::SeqCst)
            && let Some(sight) = &roster.sight
            && table.is_as(sight)?
        {
            known.roster = Some(roster);
        }
        Ok(known)
    }
}

impl Roster {
    /// Reads all members of the session whose record stands at `path`. `bring_up_to_date` says whether all that listen do so in
    /// this process.
    pub fn read(
        path: &Path,
        table: Option<&Table<Member>>,
        bring_up_to_date: impl FnOnce(&mut [Entry<Member>]) -> bool,
    ) -> Result<Self, Error> {
        // Before the members: whatever happens while they are read is seen by the next one.
        let left = left(path).load(Ordering::SeqCst);
        let sight = table.map_or(Ok(None), Table::sight)?;
        let mut members = table.map_or(Ok(Vec::new()), Table::all_mended)?;
        let are_all_here = bring_up_to_date(&mut members);
        Ok(Self { members, sight: sight.filter(|_| are_all_here), left })
    }
}

#[cfg(test)]
mod tests;
